//! The U-Net of latent diffusion, diffusers' `UNet2DConditionModel`: its configuration, and the graph that it means.
//! It knows the names and shapes of every parameter, and nothing of their values, of text encoders or of samplers.

use serde::Deserialize;
use serde_json::{Map, Value as Json};

use super::builder::{Attribute, Builder, Conv, Value};
use crate::graph::{Dim, Graph, onnx_code};
use crate::weights::Dtype;
use crate::{Error, ErrorKind};

/// The most levels that are believed; published networks have 2 to 4, and each halves the picture.
const MAX_LEVELS: usize = 16;
/// The most residual and transformer blocks that are believed, all together; SDXL has 87.
const MAX_LAYERS: usize = 1024;
/// The widest tensor that is believed; SDXL's class projection has 2816.
const MAX_WIDTH: usize = 65_536;
/// The largest kernel that is believed at either end; published networks have 3.
const MAX_KERNEL: usize = 31;
/// The epsilon of a transformer's group norm, whatever that of the residual blocks' is.
const TRANSFORMER_GROUP_EPSILON: f64 = 1e-6;
/// The epsilon of the layer norms in a transformer block.
const LAYER_EPSILON: f64 = 1e-5;
/// How much wider a transformer block is inside.
const FEED_FORWARD_FACTOR: usize = 4;
/// The longest wavelength of the time embedding, over 2 pi (Vaswani et al. 2017).
const MAX_PERIOD: f64 = 10_000.0;

/// Keys whose other values mean a network that is not built here, and the values that are, as JSON.
///
/// Keys that are neither here nor in [`File`] change nothing: they matter to training, or to kinds of blocks that are
/// refused anyway.
const ONLY: [(&str, &[&str]); 14] = [
    ("_class_name", &[r#""UNet2DConditionModel""#]),
    ("act_fn", &[r#""silu""#, r#""swish""#]),
    ("attention_type", &[r#""default""#]),
    ("class_embeddings_concat", &["false"]),
    ("downsample_padding", &["1"]),
    ("dual_cross_attention", &["false"]),
    ("encoder_hid_dim", &["null"]),
    ("encoder_hid_dim_type", &["null"]),
    ("mid_block_scale_factor", &["1", "1.0"]),
    ("num_attention_heads", &["null"]),
    ("resnet_time_scale_shift", &[r#""default""#]),
    ("time_embedding_act_fn", &["null"]),
    ("time_embedding_type", &[r#""positional""#]),
    ("timestep_post_act", &["null"]),
];

/// What sets one U-Net apart from another.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Height and width in latent cells of what it was trained on, where that is known.
    pub sample_size: Option<[usize; 2]>,
    /// Channels of its input: latents, and whatever is stacked upon them.
    pub in_channels: usize,
    /// Channels of its output.
    pub out_channels: usize,
    /// Whether its input comes in 0..1 and is to be brought to -1..1.
    pub center_input_sample: bool,
    /// The size of the first convolution; odd.
    pub conv_in_kernel: usize,
    /// The size of the last convolution; odd.
    pub conv_out_kernel: usize,
    /// Groups of every group norm.
    pub norm_num_groups: usize,
    /// The epsilon of the group norms in residual blocks.
    pub norm_eps: f64,
    /// The width of the text's states.
    pub cross_attention_dim: usize,
    /// Whether cosines stand before sines in the time embedding.
    pub flip_sin_to_cos: bool,
    /// What is taken from the number of frequencies of the time embedding, where they are spaced.
    pub freq_shift: f64,
    /// The width of the time embedding after its first layer.
    pub time_embedding_dim: usize,
    /// The width of an embedding of the guidance scale (LCM), where there is one.
    pub time_cond_proj_dim: Option<usize>,
    /// A class that is added to the time.
    pub class_embedding: Option<ClassEmbedding>,
    /// The pooled text and sizes that are added to the time (SDXL).
    pub added_embedding: Option<AddedEmbedding>,
    /// From the full resolution to the smallest.
    pub levels: Vec<Level>,
    /// What is between the way down and the way up.
    pub middle: Middle,
}

/// One resolution, on the way down and on the way up.
#[derive(Clone, Debug, PartialEq)]
pub struct Level {
    /// Channels of the picture.
    pub channels: usize,
    /// Residual blocks on the way down; on the way up there is one more.
    pub layers: usize,
    /// Heads of every attention.
    pub heads: usize,
    /// Whether its transformers attend twice to the text, where they attend to themselves and to the text otherwise.
    pub only_cross_attention: bool,
    /// On the way down: how many transformer blocks follow each residual block, unless there are no transformers.
    pub down: Option<Vec<usize>>,
    /// The same on the way up.
    pub up: Option<Vec<usize>>,
}

/// What is between the way down and the way up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Middle {
    /// Nothing.
    Absent,
    /// One residual block.
    Residual,
    /// A transformer of so many blocks between two residual blocks.
    Transformer(usize),
}

/// How a class becomes an embedding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClassEmbedding {
    /// From a table of so many classes; the input is an index (the noise level of the upscaler).
    Table(usize),
    /// As a timestep; the input is one.
    Timestep,
    /// By two layers; the input is a vector of this width (the image embedding of unCLIP).
    Projection(usize),
}

/// How pooled text and sizes become an embedding: the sizes as timesteps are, then both by two layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddedEmbedding {
    /// The width of each size's embedding.
    pub time_width: usize,
    /// The width of everything: the pooled text's and `time_width` for each size.
    pub inputs: usize,
}

impl Config {
    /// Reads diffusers' `config.json` of a `UNet2DConditionModel`; `place` says in messages where it came from.
    ///
    /// # Errors
    /// [`ErrorKind::Model`] for JSON that is none, for numbers no network can have, and for a network that is not built
    /// here, naming the key.
    pub fn parse(place: &str, json: &[u8]) -> Result<Self, Error> {
        let refuse = |problem: String| Error::new(ErrorKind::Model, format!("{place}: {problem}"));
        let object: Map<String, Json> = serde_json::from_slice(json)
            .map_err(|error| refuse("expected a configuration as a JSON object".into()).source(error))?;
        for (key, values) in ONLY {
            let other = object.get(key).map(Json::to_string).filter(|got| !values.contains(&got.as_str()));
            if let Some(got) = other {
                return Err(refuse(format!("{key}: expected {}, got {got}", values[0]))
                    .help("this kind of U-Net cannot be run yet"));
            }
        }
        let file: File = serde_path_to_error::deserialize(Json::Object(object))
            .map_err(|error| refuse(error.path().to_string()).source(error.into_inner()))?;
        let config = file.config().map_err(refuse)?;
        config.check().map_err(refuse)?;
        Ok(config)
    }

    /// The graph.
    ///
    /// Inputs: `sample [batch, in, height, width]`, `timestep []`, `encoder_hidden_states [batch, tokens, cross]`, and
    /// where the configuration has them `timestep_cond [batch, width]`, `class_labels` (`[batch]` in 64-bit integers, or
    /// `[batch, width]`), `text_embeds [batch, text_width]` and `time_ids [batch, sizes]`.
    /// Output: `out_sample [batch, out, height, width]`. Height and width may be odd.
    ///
    /// # Errors
    /// [`ErrorKind::Model`] for numbers no network can have.
    pub fn graph(&self) -> Result<Graph, Error> {
        self.check().map_err(|problem| Error::new(ErrorKind::Model, format!("unet: {problem}")))?;
        let mut builder = Builder::new();
        let b = &mut builder;
        let picture = |channels| [free("batch"), Dim::Fixed(channels), free("height"), free("width")];
        let mut x = b.input("sample", Dtype::F32, &picture(self.in_channels));
        let time = time_embedding(b, self);
        let text = [free("batch"), free("tokens"), Dim::Fixed(self.cross_attention_dim)];
        let text = b.input("encoder_hidden_states", Dtype::F32, &text);

        if self.center_input_sample {
            let (two, minus_one) = (b.float(2.0), b.float(-1.0));
            x = b.mul(&x, &two);
            x = b.add(&x, &minus_one);
        }
        let first = self.levels[0].channels;
        let x = b.conv(&x, "conv_in", Conv::same(self.in_channels, first, self.conv_in_kernel));
        let mut network = Network { builder, config: self, time, text };
        let x = network.levels(x);

        let mut b = network.builder;
        let x = b.group_norm(&x, "conv_norm_out", first, self.norm_num_groups, self.norm_eps);
        let x = b.silu(&x);
        let x = b.conv(&x, "conv_out", Conv::same(first, self.out_channels, self.conv_out_kernel));
        b.output("out_sample", &x, &picture(self.out_channels));
        b.finish("unet")
    }

    /// Checks that a network has these numbers; messages name diffusers' keys.
    fn check(&self) -> Result<(), String> {
        levels_fit(self.levels.len())?;
        let mut widths = vec![
            ("in_channels", self.in_channels),
            ("out_channels", self.out_channels),
            ("norm_num_groups", self.norm_num_groups),
            ("cross_attention_dim", self.cross_attention_dim),
        ];
        widths.extend(self.levels.iter().map(|level| ("block_out_channels", level.channels)));
        widths.extend(self.time_cond_proj_dim.map(|width| ("time_cond_proj_dim", width)));
        widths.extend(self.class_embedding.and_then(|class| match class {
            ClassEmbedding::Table(classes) => Some(("num_class_embeds", classes)),
            ClassEmbedding::Timestep => None,
            ClassEmbedding::Projection(width) => Some(("projection_class_embeddings_input_dim", width)),
        }));
        if let Some(AddedEmbedding { time_width, inputs }) = self.added_embedding {
            widths.push(("addition_time_embed_dim", time_width));
            widths.push(("projection_class_embeddings_input_dim", inputs));
        }
        if let Some((key, width)) = widths.into_iter().find(|(_, width)| !(1..=MAX_WIDTH).contains(width)) {
            return Err(format!("{key}: expected 1 to {MAX_WIDTH}, got {width}"));
        }
        // The default is four times a width.
        let max_time = FEED_FORWARD_FACTOR * MAX_WIDTH;
        if !(1..=max_time).contains(&self.time_embedding_dim) {
            return Err(format!(
                "time_embedding_dim: expected 1 to {max_time}, got {}",
                self.time_embedding_dim
            ));
        }
        for (key, kernel) in
            [("conv_in_kernel", self.conv_in_kernel), ("conv_out_kernel", self.conv_out_kernel)]
        {
            if kernel > MAX_KERNEL || kernel.is_multiple_of(2) {
                return Err(format!("{key}: expected an odd number up to {MAX_KERNEL}, got {kernel}"));
            }
        }
        if !self.norm_eps.is_finite() || self.norm_eps <= 0.0 {
            return Err(format!("norm_eps: expected a positive number, got {}", self.norm_eps));
        }
        let first = ("block_out_channels[0]", self.levels[0].channels);
        let added = self.added_embedding.map(|added| ("addition_time_embed_dim", added.time_width));
        for (key, width) in [Some(first), added].into_iter().flatten() {
            let frequencies = width / 2;
            if !width.is_multiple_of(2) {
                return Err(format!("{key}: expected an even number of sines and cosines, got {width}"));
            }
            // Written so that it refuses what is not a number, too.
            if !(self.freq_shift >= 0.0 && self.freq_shift < frequencies as f64) {
                return Err(format!(
                    "freq_shift: expected 0 up to the number of frequencies, {frequencies}, got {}",
                    self.freq_shift
                ));
            }
        }

        for (index, level) in self.levels.iter().enumerate() {
            level.check(index, self.norm_num_groups)?;
        }
        if let (Middle::Transformer(_), Some(last)) = (self.middle, self.levels.last()) {
            last.check_heads(self.levels.len() - 1)?;
        }
        let middle = match self.middle {
            Middle::Absent => 0,
            Middle::Residual => 1,
            Middle::Transformer(blocks) => blocks.saturating_add(2),
        };
        let layers = self.levels.iter().map(Level::size).fold(middle, usize::saturating_add);
        if layers > MAX_LAYERS {
            return Err(format!(
                "layers_per_block, transformer_layers_per_block: expected at most {MAX_LAYERS} residual and \
                 transformer blocks in all, got {layers}"
            ));
        }
        Ok(())
    }
}

impl Level {
    fn check(&self, index: usize, groups: usize) -> Result<(), String> {
        let Self { channels, layers, heads: _, only_cross_attention: _, down, up } = self;
        if !channels.is_multiple_of(groups) {
            return Err(format!(
                "block_out_channels[{index}]: expected a multiple of norm_num_groups, {groups}, got {channels}"
            ));
        }
        layers_fit(*layers)?;
        for (way, transformers, expected) in [("down", down, *layers), ("up", up, layers + 1)] {
            let Some(transformers) = transformers else { continue };
            self.check_heads(index)?;
            if transformers.len() != expected {
                return Err(format!(
                    "transformer_layers_per_block: expected {expected} on the way {way} at level {index}, got {}",
                    transformers.len()
                ));
            }
        }
        Ok(())
    }

    fn check_heads(&self, index: usize) -> Result<(), String> {
        let Self { channels, heads, .. } = self;
        if *heads == 0 || !channels.is_multiple_of(*heads) {
            return Err(format!(
                "attention_head_dim[{index}]: expected a number of heads that divides {channels} channels, got {heads}"
            ));
        }
        Ok(())
    }

    /// How many residual and transformer blocks it has.
    fn size(&self) -> usize {
        let transformers = self.down.iter().chain(&self.up).flatten().copied();
        transformers.fold(self.layers.saturating_mul(2).saturating_add(1), usize::saturating_add)
    }
}

/// The time embedding after its activation: `[1, width]`, or `[batch, width]` where something of each picture is added.
fn time_embedding(b: &mut Builder, config: &Config) -> Value {
    let width = config.time_embedding_dim;
    let inputs = config.levels[0].channels;
    let timestep = b.input("timestep", Dtype::F32, &[]);
    let timestep = b.reshape(&timestep, &[1, 1]);
    let mut sample = sinusoids(b, config, &timestep, inputs);
    if let Some(width) = config.time_cond_proj_dim {
        let condition = b.input("timestep_cond", Dtype::F32, &[free("batch"), Dim::Fixed(width)]);
        let condition = b.linear_without_bias(&condition, "time_embedding.cond_proj", width, inputs);
        sample = b.add(&sample, &condition);
    }
    let mut time = two_layers(b, &sample, "time_embedding", inputs, width);

    if let Some(class) = config.class_embedding {
        let class = class_embedding(b, config, class);
        time = b.add(&time, &class);
    }
    if let Some(AddedEmbedding { time_width, inputs }) = config.added_embedding {
        let text = b.input("text_embeds", Dtype::F32, &[free("batch"), free("text_width")]);
        let sizes = b.input("time_ids", Dtype::F32, &[free("batch"), free("sizes")]);
        let sizes = b.reshape(&sizes, &[0, -1, 1]);
        let sizes = sinusoids(b, config, &sizes, time_width);
        let sizes = b.reshape(&sizes, &[0, -1]);
        let both = b.concat(&[&text, &sizes], -1);
        let added = two_layers(b, &both, "add_embedding", inputs, width);
        time = b.add(&time, &added);
    }
    // Every residual block begins with this.
    b.silu(&time)
}

fn class_embedding(b: &mut Builder, config: &Config, class: ClassEmbedding) -> Value {
    let width = config.time_embedding_dim;
    match class {
        ClassEmbedding::Table(classes) => {
            let labels = b.input("class_labels", Dtype::I64, &[free("batch")]);
            let table = b.weight("class_embedding.weight", &[classes, width]);
            b.op("Gather", &[&table, &labels], &[])
        }
        ClassEmbedding::Timestep => {
            let labels = b.input("class_labels", Dtype::I64, &[free("batch")]);
            let float = Attribute::Int(onnx_code(Dtype::F32).into());
            let labels = b.op("Cast", &[&labels], &[("to", float)]);
            let labels = b.reshape(&labels, &[-1, 1]);
            let inputs = config.levels[0].channels;
            let sample = sinusoids(b, config, &labels, inputs);
            two_layers(b, &sample, "class_embedding", inputs, width)
        }
        ClassEmbedding::Projection(inputs) => {
            let labels = b.input("class_labels", Dtype::F32, &[free("batch"), Dim::Fixed(inputs)]);
            two_layers(b, &labels, "class_embedding", inputs, width)
        }
    }
}

/// `[.., 1]` -> `[.., width]`: sines and cosines of `t * exp(-ln(max period) * i / (half - shift))` (Ho et al. 2020,
/// after Vaswani et al. 2017), rounded where diffusers' `get_timestep_embedding` rounds.
fn sinusoids(b: &mut Builder, config: &Config, t: &Value, width: usize) -> Value {
    let half = width / 2;
    let spacing = half as f32 - config.freq_shift as f32;
    let frequency = |index| (-MAX_PERIOD.ln() as f32 * index as f32 / spacing).exp();
    let frequencies: Vec<f32> = (0..half).map(frequency).collect();
    let frequencies = b.floats(&frequencies);
    let angles = b.mul(t, &frequencies);
    let (sine, cosine) = (b.op("Sin", &[&angles], &[]), b.op("Cos", &[&angles], &[]));
    let order = if config.flip_sin_to_cos { [&cosine, &sine] } else { [&sine, &cosine] };
    b.concat(&order, -1)
}

/// diffusers' `TimestepEmbedding`.
fn two_layers(b: &mut Builder, x: &Value, name: &str, inputs: usize, width: usize) -> Value {
    let x = b.linear(x, &format!("{name}.linear_1"), inputs, width);
    let x = b.silu(&x);
    b.linear(&x, &format!("{name}.linear_2"), width, width)
}

/// What every block of the network needs.
struct Network<'a> {
    builder: Builder,
    config: &'a Config,
    /// The time embedding after its activation.
    time: Value,
    /// The text's states, `[batch, tokens, cross]`.
    text: Value,
}

impl Network<'_> {
    /// All that is between the first convolution and the last norm; as many channels come out as go in.
    fn levels(&mut self, mut x: Value) -> Value {
        let levels = &self.config.levels;
        let last = levels.len() - 1;
        let mut channels = levels[0].channels;
        // What the way up takes from the way down, with its channels.
        let mut skips = vec![(x.clone(), channels)];
        for (index, level) in levels.iter().enumerate() {
            let name = format!("down_blocks.{index}");
            for layer in 0..level.layers {
                x = self.residual(&x, &format!("{name}.resnets.{layer}"), channels, level.channels);
                channels = level.channels;
                if let Some(transformers) = &level.down {
                    x = self.transformer(
                        &x,
                        &format!("{name}.attentions.{layer}"),
                        level,
                        transformers[layer],
                    );
                }
                skips.push((x.clone(), channels));
            }
            if index < last {
                let halve = Conv { stride: 2, ..Conv::same(channels, channels, 3) };
                x = self.builder.conv(&x, &format!("{name}.downsamplers.0.conv"), halve);
                skips.push((x.clone(), channels));
            }
        }

        if self.config.middle != Middle::Absent {
            x = self.residual(&x, "mid_block.resnets.0", channels, channels);
        }
        if let Middle::Transformer(blocks) = self.config.middle {
            // Where the other transformers of a level look only at the text, this one does not.
            let level = Level { only_cross_attention: false, ..levels[last].clone() };
            x = self.transformer(&x, "mid_block.attentions.0", &level, blocks);
            x = self.residual(&x, "mid_block.resnets.1", channels, channels);
        }

        for (index, level) in levels.iter().rev().enumerate() {
            let name = format!("up_blocks.{index}");
            let own = skips.split_off(skips.len() - (level.layers + 1));
            for (layer, (skip, skip_channels)) in own.iter().rev().enumerate() {
                x = self.builder.concat(&[&x, skip], 1);
                let inputs = channels + skip_channels;
                x = self.residual(&x, &format!("{name}.resnets.{layer}"), inputs, level.channels);
                channels = level.channels;
                if let Some(transformers) = &level.up {
                    x = self.transformer(
                        &x,
                        &format!("{name}.attentions.{layer}"),
                        level,
                        transformers[layer],
                    );
                }
            }
            if let Some((next, _)) = skips.last() {
                // To the size of what it will be joined with: an odd one is not twice its half.
                let b = &mut self.builder;
                let (planes, sides) = (b.sizes(&x, 0, 2), b.sizes(next, 2, 4));
                let sizes = b.concat(&[&planes, &sides], 0);
                x = b.nearest(&x, &sizes);
                x = b.conv(&x, &format!("{name}.upsamplers.0.conv"), Conv::same(channels, channels, 3));
            }
        }
        x
    }

    /// diffusers' `ResnetBlock2D`.
    fn residual(&mut self, x: &Value, name: &str, inputs: usize, outputs: usize) -> Value {
        let Config { norm_num_groups: groups, norm_eps: epsilon, time_embedding_dim, .. } = *self.config;
        let b = &mut self.builder;
        let inner = b.group_norm(x, &format!("{name}.norm1"), inputs, groups, epsilon);
        let inner = b.silu(&inner);
        let inner = b.conv(&inner, &format!("{name}.conv1"), Conv::same(inputs, outputs, 3));
        let time = b.linear(&self.time, &format!("{name}.time_emb_proj"), time_embedding_dim, outputs);
        let time = b.reshape(&time, &[0, -1, 1, 1]);
        let inner = b.add(&inner, &time);
        let inner = b.group_norm(&inner, &format!("{name}.norm2"), outputs, groups, epsilon);
        let inner = b.silu(&inner);
        let inner = b.conv(&inner, &format!("{name}.conv2"), Conv::same(outputs, outputs, 3));
        if inputs == outputs {
            return b.add(x, &inner);
        }
        let x = b.conv(x, &format!("{name}.conv_shortcut"), Conv::same(inputs, outputs, 1));
        b.add(&x, &inner)
    }

    /// diffusers' `Transformer2DModel`: a picture's cells as tokens, and back.
    ///
    /// Its outer layers are linear here, also for `use_linear_projection: false`, which stores the same numbers as
    /// convolutions of one cell.
    fn transformer(&mut self, x: &Value, name: &str, level: &Level, blocks: usize) -> Value {
        let channels = level.channels;
        let b = &mut self.builder;
        let groups = self.config.norm_num_groups;
        let tokens =
            b.group_norm_tokens(x, &format!("{name}.norm"), channels, groups, TRANSFORMER_GROUP_EPSILON);
        let mut tokens = b.linear(&tokens, &format!("{name}.proj_in"), channels, channels);
        for block in 0..blocks {
            tokens = self.transformer_block(&tokens, &format!("{name}.transformer_blocks.{block}"), level);
        }
        let b = &mut self.builder;
        let tokens = b.linear(&tokens, &format!("{name}.proj_out"), channels, channels);
        let planes = b.transpose(&tokens, &[0, 2, 1]);
        let sizes = b.sizes(x, 0, 4);
        let planes = b.op("Reshape", &[&planes, &sizes], &[]);
        b.add(&planes, x)
    }

    /// diffusers' `BasicTransformerBlock`.
    fn transformer_block(&mut self, x: &Value, name: &str, level: &Level) -> Value {
        let channels = level.channels;
        let normal = self.builder.layer_norm(x, &format!("{name}.norm1"), channels, LAYER_EPSILON);
        let attended = self.attention(&normal, &format!("{name}.attn1"), level, level.only_cross_attention);
        let x = self.builder.add(&attended, x);
        let normal = self.builder.layer_norm(&x, &format!("{name}.norm2"), channels, LAYER_EPSILON);
        let attended = self.attention(&normal, &format!("{name}.attn2"), level, true);
        let b = &mut self.builder;
        let x = b.add(&attended, &x);

        // GEGLU (Shazeer 2020).
        let inner = FEED_FORWARD_FACTOR * channels;
        let normal = b.layer_norm(&x, &format!("{name}.norm3"), channels, LAYER_EPSILON);
        let both = b.linear(&normal, &format!("{name}.ff.net.0.proj"), channels, 2 * inner);
        let halves = b.split(&both, -1, 2);
        let gate = b.gelu(&halves[1]);
        let gated = b.mul(&halves[0], &gate);
        let fed = b.linear(&gated, &format!("{name}.ff.net.2"), inner, channels);
        b.add(&fed, &x)
    }

    /// Attention to the text, or to `x` itself.
    fn attention(&mut self, x: &Value, name: &str, level: &Level, to_text: bool) -> Value {
        let channels = level.channels;
        let (seen, width) =
            if to_text { (&self.text, self.config.cross_attention_dim) } else { (x, channels) };
        let b = &mut self.builder;
        let q = b.linear_without_bias(x, &format!("{name}.to_q"), channels, channels);
        let k = b.linear_without_bias(seen, &format!("{name}.to_k"), width, channels);
        let v = b.linear_without_bias(seen, &format!("{name}.to_v"), width, channels);
        let mixed = b.attention(&q, &k, &v, level.heads, false);
        b.linear(&mixed, &format!("{name}.to_out.0"), channels, channels)
    }
}

/// `config.json` as it is written; what is absent is what diffusers' constructor takes then.
#[derive(Deserialize)]
#[serde(default)]
struct File {
    sample_size: Option<OneOrMany<usize>>,
    in_channels: usize,
    out_channels: usize,
    center_input_sample: bool,
    flip_sin_to_cos: bool,
    freq_shift: f64,
    down_block_types: Vec<String>,
    mid_block_type: Option<String>,
    up_block_types: Vec<String>,
    only_cross_attention: OneOrMany<bool>,
    block_out_channels: Vec<usize>,
    layers_per_block: OneOrMany<usize>,
    norm_num_groups: usize,
    norm_eps: f64,
    cross_attention_dim: OneOrMany<usize>,
    transformer_layers_per_block: OneOrMany<OneOrMany<usize>>,
    reverse_transformer_layers_per_block: Option<Vec<OneOrMany<usize>>>,
    /// The number of heads, in spite of its name.
    attention_head_dim: OneOrMany<usize>,
    class_embed_type: Option<String>,
    addition_embed_type: Option<String>,
    addition_time_embed_dim: Option<usize>,
    num_class_embeds: Option<usize>,
    time_embedding_dim: Option<usize>,
    time_cond_proj_dim: Option<usize>,
    conv_in_kernel: usize,
    conv_out_kernel: usize,
    projection_class_embeddings_input_dim: Option<usize>,
}

impl Default for File {
    fn default() -> Self {
        let (plain_down, down) = ("DownBlock2D".to_owned(), "CrossAttnDownBlock2D".to_owned());
        let (plain_up, up) = ("UpBlock2D".to_owned(), "CrossAttnUpBlock2D".to_owned());
        Self {
            sample_size: None,
            in_channels: 4,
            out_channels: 4,
            center_input_sample: false,
            flip_sin_to_cos: true,
            freq_shift: 0.0,
            down_block_types: vec![down.clone(), down.clone(), down, plain_down],
            mid_block_type: Some("UNetMidBlock2DCrossAttn".into()),
            up_block_types: vec![plain_up, up.clone(), up.clone(), up],
            only_cross_attention: OneOrMany::One(false),
            block_out_channels: vec![320, 640, 1280, 1280],
            layers_per_block: OneOrMany::One(2),
            norm_num_groups: 32,
            norm_eps: 1e-5,
            cross_attention_dim: OneOrMany::One(1280),
            transformer_layers_per_block: OneOrMany::One(OneOrMany::One(1)),
            reverse_transformer_layers_per_block: None,
            attention_head_dim: OneOrMany::One(8),
            class_embed_type: None,
            addition_embed_type: None,
            addition_time_embed_dim: None,
            num_class_embeds: None,
            time_embedding_dim: None,
            time_cond_proj_dim: None,
            conv_in_kernel: 3,
            conv_out_kernel: 3,
            projection_class_embeddings_input_dim: None,
        }
    }
}

impl File {
    fn config(self) -> Result<Config, String> {
        let count = self.block_out_channels.len();
        levels_fit(count)?;
        let heads = self.attention_head_dim.spread("attention_head_dim", count)?;
        let layers = self.layers_per_block.spread("layers_per_block", count)?;
        let only_cross_attention = self.only_cross_attention.spread("only_cross_attention", count)?;
        let down_depths = self.transformer_layers_per_block.spread("transformer_layers_per_block", count)?;
        let up_depths = match self.reverse_transformer_layers_per_block {
            Some(depths) => OneOrMany::Many(depths).spread("reverse_transformer_layers_per_block", count)?,
            None if down_depths.iter().any(|depths| matches!(depths, OneOrMany::Many(_))) => {
                return Err("reverse_transformer_layers_per_block: expected a list, because \
                            transformer_layers_per_block has lists in it, got none"
                    .into());
            }
            None => down_depths.iter().rev().cloned().collect(),
        };
        // Lists of widths occur, but no text has several.
        let cross_attention_dims = self.cross_attention_dim.spread("cross_attention_dim", count)?;
        let cross_attention_dim = cross_attention_dims[0];
        if cross_attention_dims.iter().any(|width| *width != cross_attention_dim) {
            return Err(format!("cross_attention_dim: expected one width, got {cross_attention_dims:?}"));
        }

        let down_types = with_transformers("down_block_types", &self.down_block_types, "Down", count)?;
        let up_types = with_transformers("up_block_types", &self.up_block_types, "Up", count)?;
        let mut levels = Vec::new();
        for (index, &channels) in self.block_out_channels.iter().enumerate() {
            let (layers, up_index) = (layers[index], count - 1 - index);
            layers_fit(layers)?;
            let down = down_depths[index].per_layer("transformer_layers_per_block", index, layers);
            let up =
                up_depths[up_index].per_layer("reverse_transformer_layers_per_block", up_index, layers + 1);
            levels.push(Level {
                channels,
                layers,
                heads: heads[index],
                only_cross_attention: only_cross_attention[index],
                down: down_types[index].then_some(down).transpose()?,
                up: up_types[up_index].then_some(up).transpose()?,
            });
        }
        let middle = match self.mid_block_type.as_deref() {
            None => Middle::Absent,
            Some("UNetMidBlock2D") => Middle::Residual,
            Some("UNetMidBlock2DCrossAttn") => Middle::Transformer(match &down_depths[count - 1] {
                OneOrMany::One(blocks) => *blocks,
                OneOrMany::Many(blocks) => *blocks.first().ok_or_else(|| {
                    format!("transformer_layers_per_block[{}]: expected numbers, got none", count - 1)
                })?,
            }),
            Some(other) => {
                return Err(format!(
                    "mid_block_type: expected UNetMidBlock2DCrossAttn, UNetMidBlock2D or null, got {other}"
                ));
            }
        };

        let projection = self.projection_class_embeddings_input_dim;
        let needed = |key: &str, value: Option<usize>, by: &str| {
            value.ok_or_else(|| format!("{key}: expected a width, because of {by}, got null"))
        };
        let projection_key = "projection_class_embeddings_input_dim";
        let class_embedding = match self.class_embed_type.as_deref() {
            None => self.num_class_embeds.map(ClassEmbedding::Table),
            Some("timestep") => Some(ClassEmbedding::Timestep),
            Some("projection") => {
                let width = needed(projection_key, projection, "class_embed_type projection")?;
                Some(ClassEmbedding::Projection(width))
            }
            Some(other) => {
                return Err(format!("class_embed_type: expected timestep, projection or null, got {other}"));
            }
        };
        let added_embedding = match self.addition_embed_type.as_deref() {
            None => None,
            Some(kind @ "text_time") => {
                let by = format!("addition_embed_type {kind}");
                let time_width = needed("addition_time_embed_dim", self.addition_time_embed_dim, &by)?;
                Some(AddedEmbedding { time_width, inputs: needed(projection_key, projection, &by)? })
            }
            Some(other) => {
                return Err(format!("addition_embed_type: expected text_time or null, got {other}"));
            }
        };
        let sample_size = match self.sample_size {
            None => None,
            Some(OneOrMany::One(side)) => Some([side; 2]),
            Some(OneOrMany::Many(sides)) => Some(
                <[usize; 2]>::try_from(sides)
                    .map_err(|sides| format!("sample_size: expected height and width, got {sides:?}"))?,
            ),
        };
        Ok(Config {
            sample_size,
            in_channels: self.in_channels,
            out_channels: self.out_channels,
            center_input_sample: self.center_input_sample,
            conv_in_kernel: self.conv_in_kernel,
            conv_out_kernel: self.conv_out_kernel,
            norm_num_groups: self.norm_num_groups,
            norm_eps: self.norm_eps,
            cross_attention_dim,
            flip_sin_to_cos: self.flip_sin_to_cos,
            freq_shift: self.freq_shift,
            time_embedding_dim: match self.time_embedding_dim {
                Some(width) => width,
                None => levels[0].channels.saturating_mul(FEED_FORWARD_FACTOR),
            },
            time_cond_proj_dim: self.time_cond_proj_dim,
            class_embedding,
            added_embedding,
            levels,
            middle,
        })
    }
}

/// A value for all levels, or one for each.
#[derive(Clone, Deserialize)]
#[serde(untagged, expecting = "expected a value or a list of them")]
enum OneOrMany<T> {
    // The first, so that a list is one of values for levels where such a value may be a list, too.
    Many(Vec<T>),
    One(T),
}

impl<T: Clone> OneOrMany<T> {
    /// A value for each of so many levels.
    fn spread(self, key: &str, levels: usize) -> Result<Vec<T>, String> {
        match self {
            Self::One(value) => Ok(vec![value; levels]),
            Self::Many(values) if values.len() == levels => Ok(values),
            Self::Many(values) => Err(format!(
                "{key}: expected {levels}, as many as block_out_channels has, got {}",
                values.len()
            )),
        }
    }
}

impl OneOrMany<usize> {
    /// How many transformer blocks follow each of so many residual blocks.
    fn per_layer(&self, key: &str, index: usize, layers: usize) -> Result<Vec<usize>, String> {
        match self {
            Self::One(blocks) => Ok(vec![*blocks; layers]),
            Self::Many(blocks) if blocks.len() == layers => Ok(blocks.clone()),
            Self::Many(blocks) => Err(format!(
                "{key}[{index}]: expected {layers}, one for each residual block, got {}",
                blocks.len()
            )),
        }
    }
}

/// Which blocks of one way have transformers.
fn with_transformers(key: &str, types: &[String], way: &str, levels: usize) -> Result<Vec<bool>, String> {
    if types.len() != levels {
        return Err(format!(
            "{key}: expected {levels}, as many as block_out_channels has, got {}",
            types.len()
        ));
    }
    let (plain, crossed) = (format!("{way}Block2D"), format!("CrossAttn{way}Block2D"));
    let each = types.iter().enumerate().map(|(index, name)| match name {
        name if *name == plain => Ok(false),
        name if *name == crossed => Ok(true),
        name => Err(format!("{key}[{index}]: expected {plain} or {crossed}, got {name}")),
    });
    each.collect()
}

fn levels_fit(count: usize) -> Result<(), String> {
    if (1..=MAX_LEVELS).contains(&count) {
        return Ok(());
    }
    Err(format!("block_out_channels: expected 1 to {MAX_LEVELS}, got {count}"))
}

fn layers_fit(layers: usize) -> Result<(), String> {
    if (1..=MAX_LAYERS).contains(&layers) {
        return Ok(());
    }
    Err(format!("layers_per_block: expected 1 to {MAX_LAYERS}, got {layers}"))
}

fn free(name: &str) -> Dim {
    Dim::Free(name.into())
}
