//! The U-Net of latent diffusion, diffusers' `UNet2DConditionModel`: its configuration, and the graph that it means.
//! It knows the names and shapes of every parameter, and nothing of their values, of text encoders or of samplers.

use serde::Deserialize;
use serde_json::{Map, Value as Json};

use super::builder::{Builder, Conv, Value, free, picture};
use super::{MAX_BLOCKS, MAX_CHANNELS, MAX_LAYERS, check_range, read, unfit};
use crate::Error;
use crate::graph::{Dim, Graph};
use crate::weights::Dtype;

/// The most residual and transformer blocks that are believed, all together; SDXL has 87.
const MAX_ALL_LAYERS: usize = 1024;
/// The largest kernel that is believed at either end; published networks have 3.
const MAX_KERNEL: usize = 31;
/// The epsilon of a transformer's group norm, whatever that of the residual blocks' is.
const TRANSFORMER_GROUP_EPSILON: f64 = 1e-6;
/// The epsilon of the layer norms in a transformer block.
const LAYER_EPSILON: f64 = 1e-5;
/// How much wider a transformer block is inside.
const FEED_FORWARD_FACTOR: usize = 4;
/// How much wider the time embedding is than the first level, unless the configuration says.
const TIME_FACTOR: usize = 4;
/// The longest wavelength of the time embedding, over 2 pi (Vaswani et al. 2017).
const MAX_PERIOD: f64 = 10_000.0;

/// Keys that several messages name.
const PROJECTION_KEY: &str = "projection_class_embeddings_input_dim";
const DEPTHS_KEY: &str = "transformer_layers_per_block";
const REVERSE_DEPTHS_KEY: &str = "reverse_transformer_layers_per_block";

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
    /// The width of the pooled text, once it is known: a configuration does not tell it.
    pub text_width: Option<usize>,
}

impl Config {
    /// Reads diffusers' `config.json` of a `UNet2DConditionModel`; `place` says in messages where it came from.
    ///
    /// # Errors
    /// [`ErrorKind::Model`](crate::ErrorKind::Model) for JSON that is none, for numbers no network can have, and for a network that is not built
    /// here, naming the key.
    pub fn parse(place: &str, json: &[u8]) -> Result<Self, Error> {
        let object: Map<String, Json> = read(place, json)?;
        for (key, built) in ONLY {
            let other = object.get(key).map(Json::to_string).filter(|got| !built.contains(&got.as_str()));
            if let Some(got) = other {
                return Err(unfit(place, key, built[0], got).help("unsupported architecture"));
            }
        }
        let config = read::<File>(place, json)?.config(place)?;
        config.check(place)?;
        Ok(config)
    }

    /// The same network beside text encoders that pool prompts to this width: its graph then says how many sizes it takes,
    /// which is what tells a refiner from others. Without an added embedding nothing changes.
    #[must_use]
    pub fn for_text(mut self, text_width: usize) -> Self {
        if let Some(added) = &mut self.added_embedding {
            added.text_width = Some(text_width);
        }
        self
    }

    /// The graph.
    ///
    /// Inputs: `sample [batch, in, height, width]`, `timestep []`, `encoder_hidden_states [batch, tokens, cross]`, and
    /// where the configuration has them `timestep_cond [batch, width]`, `class_labels` (`[batch]` in 64-bit integers, or
    /// `[batch, width]`), `text_embeds [batch, text_width]` and `time_ids [batch, sizes]`.
    /// Output: `out_sample [batch, out, height, width]`. Height and width may be odd.
    ///
    /// # Errors
    /// [`ErrorKind::Model`](crate::ErrorKind::Model) for numbers no network can have.
    pub fn graph(&self) -> Result<Graph, Error> {
        const NAME: &str = "unet";
        self.check(NAME)?;
        let mut builder = Builder::new();
        let b = &mut builder;
        let picture = |channels| picture(channels, "height", "width");
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
        b.finish(NAME)
    }

    /// Checks that a network has these numbers; messages name diffusers' keys.
    fn check(&self, place: &str) -> Result<(), Error> {
        check_range(place, "block_out_channels", 1..=MAX_BLOCKS, self.levels.len())?;
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
            ClassEmbedding::Projection(width) => Some((PROJECTION_KEY, width)),
        }));
        if let Some(AddedEmbedding { time_width, inputs, .. }) = self.added_embedding {
            widths.push(("addition_time_embed_dim", time_width));
            widths.push((PROJECTION_KEY, inputs));
        }
        for (key, width) in widths {
            check_range(place, key, 1..=MAX_CHANNELS, width)?;
        }
        let max_time = TIME_FACTOR * MAX_CHANNELS;
        check_range(place, "time_embedding_dim", 1..=max_time, self.time_embedding_dim)?;
        for (key, kernel) in
            [("conv_in_kernel", self.conv_in_kernel), ("conv_out_kernel", self.conv_out_kernel)]
        {
            if kernel > MAX_KERNEL || kernel.is_multiple_of(2) {
                return Err(unfit(place, key, format_args!("an odd number up to {MAX_KERNEL}"), kernel));
            }
        }
        if !self.norm_eps.is_finite() || self.norm_eps <= 0.0 {
            return Err(unfit(place, "norm_eps", "a positive number", self.norm_eps));
        }
        self.check_frequencies(place, "block_out_channels[0]", self.levels[0].channels)?;
        if let Some(AddedEmbedding { time_width, inputs, text_width }) = self.added_embedding {
            self.check_frequencies(place, "addition_time_embed_dim", time_width)?;
            if inputs <= time_width {
                let expected = format_args!("more than addition_time_embed_dim, {time_width}");
                return Err(unfit(place, PROJECTION_KEY, expected, inputs));
            }
            if let Some(text_width) = text_width.filter(|width| {
                inputs.checked_sub(*width).is_none_or(|sizes| sizes == 0 || sizes % time_width != 0)
            }) {
                let expected = format_args!("{text_width} for the text and {time_width} for each size");
                return Err(unfit(place, PROJECTION_KEY, expected, inputs));
            }
        }

        for (index, level) in self.levels.iter().enumerate() {
            level.check(place, index, self.norm_num_groups)?;
        }
        let middle = match self.middle {
            Middle::Absent => 0,
            Middle::Residual => 1,
            Middle::Transformer(blocks) => blocks.saturating_add(2),
        };
        if let Middle::Transformer(_) = self.middle {
            let last = self.levels.len() - 1;
            self.levels[last].check_heads(place, last)?;
        }
        let layers = self.levels.iter().map(Level::size).fold(middle, usize::saturating_add);
        if layers > MAX_ALL_LAYERS {
            let expected = format_args!("at most {MAX_ALL_LAYERS} residual and transformer blocks in all");
            return Err(unfit(place, "layers_per_block, transformer_layers_per_block", expected, layers));
        }
        Ok(())
    }

    /// Checks that sines and cosines of this width can be made.
    fn check_frequencies(&self, place: &str, key: &str, width: usize) -> Result<(), Error> {
        if !width.is_multiple_of(2) {
            return Err(unfit(place, key, "an even number of sines and cosines", width));
        }
        // Refuses what is not a number, too.
        if !(0.0..(width / 2) as f64).contains(&self.freq_shift) {
            let expected = format_args!("0 up to the frequencies of {key}, {}", width / 2);
            return Err(unfit(place, "freq_shift", expected, self.freq_shift));
        }
        Ok(())
    }
}

impl Level {
    fn check(&self, place: &str, index: usize, groups: usize) -> Result<(), Error> {
        let Self { channels, layers, down, up, .. } = self;
        if !channels.is_multiple_of(groups) {
            let expected = format_args!("a multiple of norm_num_groups, {groups}");
            return Err(unfit(place, &format!("block_out_channels[{index}]"), expected, channels));
        }
        check_range(place, "layers_per_block", 1..=MAX_LAYERS, *layers)?;
        for (transformers, expected) in [(down, *layers), (up, layers + 1)] {
            let Some(transformers) = transformers else { continue };
            self.check_heads(place, index)?;
            if transformers.len() != expected {
                let key = format!("transformer_layers_per_block[{index}]");
                let expected = format_args!("{expected} numbers, one for each residual block");
                return Err(unfit(place, &key, expected, transformers.len()));
            }
        }
        Ok(())
    }

    fn check_heads(&self, place: &str, index: usize) -> Result<(), Error> {
        let Self { channels, heads, .. } = self;
        if *heads == 0 || !channels.is_multiple_of(*heads) {
            let expected = format_args!("a number of heads that divides {channels} channels");
            return Err(unfit(place, &format!("attention_head_dim[{index}]"), expected, heads));
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
    if let Some(AddedEmbedding { time_width, inputs, text_width }) = config.added_embedding {
        let (text_dim, sizes_dim) = match text_width {
            Some(width) => (Dim::Fixed(width), Dim::Fixed((inputs - width) / time_width)),
            None => (free("text_width"), free("sizes")),
        };
        let text = b.input("text_embeds", Dtype::F32, &[free("batch"), text_dim]);
        let sizes = b.input("time_ids", Dtype::F32, &[free("batch"), sizes_dim]);
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
            let labels = b.cast(&labels, Dtype::F32);
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
    fn config(self, place: &str) -> Result<Config, Error> {
        let count = self.block_out_channels.len();
        check_range(place, "block_out_channels", 1..=MAX_BLOCKS, count)?;
        let heads = self.attention_head_dim.spread(place, "attention_head_dim", count)?;
        let layers = self.layers_per_block.spread(place, "layers_per_block", count)?;
        let only_cross_attention = self.only_cross_attention.spread(place, "only_cross_attention", count)?;
        let down_depths = self.transformer_layers_per_block.spread(place, DEPTHS_KEY, count)?;
        let up_depths = match self.reverse_transformer_layers_per_block {
            Some(depths) => OneOrMany::Many(depths).spread(place, REVERSE_DEPTHS_KEY, count)?,
            None if down_depths.iter().any(|depths| matches!(depths, OneOrMany::Many(_))) => {
                let expected = format_args!("a list, as there are lists in {DEPTHS_KEY}");
                return Err(unfit(place, REVERSE_DEPTHS_KEY, expected, "none"));
            }
            None => down_depths.iter().rev().cloned().collect(),
        };
        // Lists of widths occur, but no text has several.
        let cross_attention_dims = self.cross_attention_dim.spread(place, "cross_attention_dim", count)?;
        let cross_attention_dim = cross_attention_dims[0];
        if cross_attention_dims.iter().any(|width| *width != cross_attention_dim) {
            let got = format!("{cross_attention_dims:?}");
            return Err(unfit(place, "cross_attention_dim", "equal numbers", got));
        }

        let down_types = with_transformers(place, "down_block_types", &self.down_block_types, "Down", count)?;
        let up_types = with_transformers(place, "up_block_types", &self.up_block_types, "Up", count)?;
        let mut levels = Vec::new();
        for (index, &channels) in self.block_out_channels.iter().enumerate() {
            let (layers, up_index) = (layers[index], count - 1 - index);
            check_range(place, "layers_per_block", 1..=MAX_LAYERS, layers)?;
            let down = || down_depths[index].per_layer(place, DEPTHS_KEY, index, layers);
            let up = || up_depths[up_index].per_layer(place, REVERSE_DEPTHS_KEY, up_index, layers + 1);
            levels.push(Level {
                channels,
                layers,
                heads: heads[index],
                only_cross_attention: only_cross_attention[index],
                down: down_types[index].then(down).transpose()?,
                up: up_types[up_index].then(up).transpose()?,
            });
        }
        let middle = match self.mid_block_type.as_deref() {
            None => Middle::Absent,
            Some("UNetMidBlock2D") => Middle::Residual,
            Some("UNetMidBlock2DCrossAttn") => Middle::Transformer(match &down_depths[count - 1] {
                OneOrMany::One(blocks) => *blocks,
                OneOrMany::Many(blocks) => *blocks.first().ok_or_else(|| {
                    unfit(place, &format!("{DEPTHS_KEY}[{}]", count - 1), "numbers", "none")
                })?,
            }),
            Some(other) => {
                let expected = "UNetMidBlock2DCrossAttn, UNetMidBlock2D or null";
                return Err(unfit(place, "mid_block_type", expected, other));
            }
        };

        let needed = |key: &str, value: Option<usize>, by: &str| {
            value.ok_or_else(|| unfit(place, key, format_args!("a width, because of {by}"), "none"))
        };
        let projection = self.projection_class_embeddings_input_dim;
        let class_embedding = match self.class_embed_type.as_deref() {
            None => self.num_class_embeds.map(ClassEmbedding::Table),
            Some("timestep") => Some(ClassEmbedding::Timestep),
            Some("projection") => {
                let width = needed(PROJECTION_KEY, projection, "class_embed_type projection")?;
                Some(ClassEmbedding::Projection(width))
            }
            Some(other) => {
                return Err(unfit(place, "class_embed_type", "timestep, projection or null", other));
            }
        };
        let added_embedding = match self.addition_embed_type.as_deref() {
            None => None,
            Some("text_time") => {
                const BY: &str = "addition_embed_type text_time";
                let time_width = needed("addition_time_embed_dim", self.addition_time_embed_dim, BY)?;
                let inputs = needed(PROJECTION_KEY, projection, BY)?;
                Some(AddedEmbedding { time_width, inputs, text_width: None })
            }
            Some(other) => return Err(unfit(place, "addition_embed_type", "text_time or null", other)),
        };
        let sample_size = match self.sample_size {
            None => None,
            Some(OneOrMany::One(side)) => Some([side; 2]),
            Some(OneOrMany::Many(sides)) => match sides[..] {
                [height, width] => Some([height, width]),
                _ => return Err(unfit(place, "sample_size", "height and width", format!("{sides:?}"))),
            },
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
                None => levels[0].channels.saturating_mul(TIME_FACTOR),
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
    fn spread(self, place: &str, key: &str, levels: usize) -> Result<Vec<T>, Error> {
        match self {
            Self::One(value) => Ok(vec![value; levels]),
            Self::Many(values) if values.len() == levels => Ok(values),
            Self::Many(values) => Err(uneven(place, key, levels, values.len())),
        }
    }
}

impl OneOrMany<usize> {
    /// How many transformer blocks follow each of so many residual blocks.
    fn per_layer(&self, place: &str, key: &str, index: usize, layers: usize) -> Result<Vec<usize>, Error> {
        match self {
            Self::One(blocks) => Ok(vec![*blocks; layers]),
            Self::Many(blocks) if blocks.len() == layers => Ok(blocks.clone()),
            Self::Many(blocks) => {
                let expected = format_args!("{layers} numbers, one for each residual block");
                Err(unfit(place, &format!("{key}[{index}]"), expected, blocks.len()))
            }
        }
    }
}

/// Which blocks of one way have transformers.
fn with_transformers(
    place: &str,
    key: &str,
    types: &[String],
    way: &str,
    levels: usize,
) -> Result<Vec<bool>, Error> {
    if types.len() != levels {
        return Err(uneven(place, key, levels, types.len()));
    }
    let (plain, crossed) = (format!("{way}Block2D"), format!("CrossAttn{way}Block2D"));
    let each = types.iter().enumerate().map(|(index, name)| {
        if *name != plain && *name != crossed {
            let key = format!("{key}[{index}]");
            return Err(unfit(place, &key, format_args!("{plain} or {crossed}"), name)
                .help("unsupported architecture"));
        }
        Ok(*name == crossed)
    });
    each.collect()
}

fn uneven(place: &str, key: &str, levels: usize, got: usize) -> Error {
    unfit(place, key, format_args!("{levels} values as in block_out_channels"), got)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::ErrorKind;
    use crate::graph::Port;

    const SD15: &str = r#"{
        "_class_name": "UNet2DConditionModel", "_diffusers_version": "0.6.0", "act_fn": "silu", "attention_head_dim": 8,
        "block_out_channels": [320, 640, 1280, 1280], "center_input_sample": false, "cross_attention_dim": 768,
        "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
        "downsample_padding": 1, "flip_sin_to_cos": true, "freq_shift": 0, "in_channels": 4, "layers_per_block": 2,
        "mid_block_scale_factor": 1, "norm_eps": 1e-05, "norm_num_groups": 32, "out_channels": 4, "sample_size": 64,
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"]}"#;
    /// What the configurations of SDXL and of what was made from it have in common.
    const SDXL: &str = r#""addition_embed_type": "text_time", "addition_time_embed_dim": 256,
        "use_linear_projection": true, "mid_block_type": "UNetMidBlock2DCrossAttn", "cross_attention_dim": 2048,
        "projection_class_embeddings_input_dim": 2816, "class_embed_type": null, "num_class_embeds": null"#;
    const SDXL_LEVELS: &str = r#""block_out_channels": [320, 640, 1280], "attention_head_dim": [5, 10, 20],
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"]"#;

    fn parse(json: &str) -> Config {
        Config::parse("unet/config.json", json.as_bytes()).unwrap()
    }

    /// The configuration with another value for a key, which it may lack.
    fn with(json: &str, key: &str, value: &str) -> String {
        let mut object: Map<String, Json> = serde_json::from_str(json).unwrap();
        object.insert(key.into(), serde_json::from_str(value).unwrap());
        Json::Object(object).to_string()
    }

    fn sdxl() -> String {
        format!(r#"{{{SDXL}, {SDXL_LEVELS}, "transformer_layers_per_block": [1, 2, 10]}}"#)
    }

    fn ssd_1b() -> String {
        let depths = r#""transformer_layers_per_block": [[1, 1], [2, 2], [4, 4]]"#;
        let reversed = r#""reverse_transformer_layers_per_block": [[4, 4, 10], [2, 1, 1], 1]"#;
        let json = format!("{{{SDXL}, {SDXL_LEVELS}, {depths}, {reversed}}}");
        with(&json, "mid_block_type", r#""UNetMidBlock2D""#)
    }

    fn upscaler() -> String {
        r#"{"in_channels": 7, "block_out_channels": [256, 512, 512, 1024], "cross_attention_dim": 1024,
            "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
            "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
            "num_class_embeds": 1000, "only_cross_attention": [true, true, true, false]}"#
            .into()
    }

    /// How many tensors and how many numbers the weights have.
    fn size(json: &str) -> (usize, usize) {
        let graph = parse(json).graph().unwrap();
        let numbers = graph.parameters().iter().map(|parameter| parameter.shape.iter().product::<usize>());
        (graph.parameters().len(), numbers.sum())
    }

    /// The parameters whose name begins so, with their shapes, without dimensions of 1.
    fn parameters(graph: &Graph, prefix: &str) -> BTreeMap<String, Vec<usize>> {
        let named = graph.parameters().iter().filter_map(|parameter| {
            let shape = parameter.shape.iter().copied().filter(|&size| size != 1);
            Some((parameter.name.strip_prefix(prefix)?.to_owned(), shape.collect()))
        });
        named.collect()
    }

    fn shapes(expected: &[(&str, &[usize])]) -> BTreeMap<String, Vec<usize>> {
        expected.iter().map(|(name, shape)| (name.to_string(), shape.to_vec())).collect()
    }

    fn inputs(json: &str) -> Vec<String> {
        parse(json).graph().unwrap().inputs().iter().map(Port::to_string).collect()
    }

    /// The message with which a configuration is refused, after its place.
    fn refusal(json: &str) -> String {
        let error =
            Config::parse("unet/config.json", json.as_bytes()).expect_err("the configuration is hostile");
        assert_eq!(error.kind(), ErrorKind::Model);
        error.to_string().strip_prefix("unet/config.json: ").expect("the message names the file").to_owned()
    }

    /// The message with which Stable Diffusion 1.5 is refused when one of its keys is changed.
    fn refusal_with(key: &str, value: &str) -> String {
        refusal(&with(SD15, key, value))
    }

    #[test]
    fn parameters_of_published_networks() {
        // As counted by diffusers 0.42.1.
        let heads = with(SD15, "attention_head_dim", "[5, 10, 20, 20]");
        let sd21 = with(&heads, "cross_attention_dim", "1024");
        let unclip = with(&sd21, "class_embed_type", r#""projection""#);
        let unclip = with(&unclip, "projection_class_embeddings_input_dim", "2048");
        assert_eq!(size(SD15), (686, 859_520_964));
        assert_eq!(size(&with(SD15, "in_channels", "9")), (686, 859_535_364));
        assert_eq!(size(&with(SD15, "layers_per_block", "1")), (442, 579_384_964));
        assert_eq!(size(&sd21), (686, 865_910_724));
        assert_eq!(size(&unclip), (690, 870_173_124));
        assert_eq!(size(&sdxl()), (1680, 2_567_463_684));
        assert_eq!(size(&with(&sdxl(), "time_cond_proj_dim", "256")), (1681, 2_567_545_604));
        assert_eq!(size(&ssd_1b()), (944, 1_331_334_404));
        assert_eq!(size(&upscaler()), (687, 473_398_020));
    }

    #[test]
    fn parameters_of_three_levels_without_a_middle() {
        let tiny_sd = r#"{"block_out_channels": [320, 640, 1280], "layers_per_block": 1, "cross_attention_dim": 768,
            "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
            "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
            "mid_block_type": null}"#;
        assert_eq!(parse(tiny_sd).middle, Middle::Absent);
        assert_eq!(size(tiny_sd), (358, 323_384_964));
    }

    #[test]
    fn names_in_a_residual_block() {
        let graph = parse(SD15).graph().unwrap();
        let expected = shapes(&[
            ("norm1.weight", &[960]),
            ("norm1.bias", &[960]),
            ("conv1.weight", &[320, 960, 3, 3]),
            ("conv1.bias", &[320]),
            ("time_emb_proj.weight", &[320, 1280]),
            ("time_emb_proj.bias", &[320]),
            ("norm2.weight", &[320]),
            ("norm2.bias", &[320]),
            ("conv2.weight", &[320, 320, 3, 3]),
            ("conv2.bias", &[320]),
            ("conv_shortcut.weight", &[320, 960]),
            ("conv_shortcut.bias", &[320]),
        ]);
        assert_eq!(parameters(&graph, "up_blocks.3.resnets.0."), expected);
        assert_eq!(parameters(&graph, "down_blocks.0.resnets.0.").len(), 10);
    }

    #[test]
    fn names_in_a_transformer() {
        let expected = shapes(&[
            ("norm.weight", &[320]),
            ("norm.bias", &[320]),
            ("proj_in.weight", &[320, 320]),
            ("proj_in.bias", &[320]),
            ("transformer_blocks.0.norm1.weight", &[320]),
            ("transformer_blocks.0.norm1.bias", &[320]),
            ("transformer_blocks.0.attn1.to_q.weight", &[320, 320]),
            ("transformer_blocks.0.attn1.to_k.weight", &[320, 320]),
            ("transformer_blocks.0.attn1.to_v.weight", &[320, 320]),
            ("transformer_blocks.0.attn1.to_out.0.weight", &[320, 320]),
            ("transformer_blocks.0.attn1.to_out.0.bias", &[320]),
            ("transformer_blocks.0.norm2.weight", &[320]),
            ("transformer_blocks.0.norm2.bias", &[320]),
            ("transformer_blocks.0.attn2.to_q.weight", &[320, 320]),
            ("transformer_blocks.0.attn2.to_k.weight", &[320, 768]),
            ("transformer_blocks.0.attn2.to_v.weight", &[320, 768]),
            ("transformer_blocks.0.attn2.to_out.0.weight", &[320, 320]),
            ("transformer_blocks.0.attn2.to_out.0.bias", &[320]),
            ("transformer_blocks.0.norm3.weight", &[320]),
            ("transformer_blocks.0.norm3.bias", &[320]),
            ("transformer_blocks.0.ff.net.0.proj.weight", &[2560, 320]),
            ("transformer_blocks.0.ff.net.0.proj.bias", &[2560]),
            ("transformer_blocks.0.ff.net.2.weight", &[320, 1280]),
            ("transformer_blocks.0.ff.net.2.bias", &[320]),
            ("proj_out.weight", &[320, 320]),
            ("proj_out.bias", &[320]),
        ]);
        assert_eq!(parameters(&parse(SD15).graph().unwrap(), "down_blocks.0.attentions.0."), expected);
    }

    #[test]
    fn names_of_embeddings() {
        let json = with(&sdxl(), "num_class_embeds", "10");
        let graph = parse(&with(&json, "time_cond_proj_dim", "256")).graph().unwrap();
        let layers = |inputs| {
            shapes(&[
                ("linear_1.weight", &[1280, inputs]),
                ("linear_1.bias", &[1280]),
                ("linear_2.weight", &[1280, 1280]),
                ("linear_2.bias", &[1280]),
            ])
        };
        let mut time = layers(320);
        time.extend(shapes(&[("cond_proj.weight", &[320, 256])]));
        assert_eq!(parameters(&graph, "time_embedding."), time);
        assert_eq!(parameters(&graph, "add_embedding."), layers(2816));
        assert_eq!(parameters(&graph, "class_embedding."), shapes(&[("weight", &[10, 1280])]));
        let timestep = parse(&with(SD15, "class_embed_type", r#""timestep""#)).graph().unwrap();
        assert_eq!(parameters(&timestep, "class_embedding."), layers(320));
    }

    #[test]
    fn only_cross_attention_spares_the_middle() {
        let graph = parse(&with(SD15, "only_cross_attention", "true")).graph().unwrap();
        let key = |name| parameters(&graph, name)[".transformer_blocks.0.attn1.to_k.weight"].clone();
        assert_eq!(key("down_blocks.0.attentions.0"), [320, 768]);
        assert_eq!(key("up_blocks.3.attentions.2"), [320, 768]);
        assert_eq!(key("mid_block.attentions.0"), [1280, 1280]);
    }

    #[test]
    fn built_in_graph_is_what_is_built_today() {
        let packed = include_bytes!("../../models/builtin/graphs/unet.onnx.gz");
        let mut onnx = Vec::new();
        std::io::copy(&mut flate2::read::GzDecoder::new(&packed[..]), &mut onnx).unwrap();
        let stored = Graph::decode("", &onnx).unwrap();
        // As `export/model.py` declares it.
        let level = |channels| Level {
            channels,
            layers: 1,
            heads: 4,
            only_cross_attention: false,
            down: Some(vec![1]),
            up: Some(vec![1; 2]),
        };
        let config = Config {
            in_channels: 16,
            out_channels: 16,
            norm_num_groups: 16,
            cross_attention_dim: 192,
            time_embedding_dim: 384,
            levels: vec![level(96), level(192)],
            ..parse("{}")
        };
        let derived = config.graph().unwrap();
        assert_eq!(parameters(&derived, ""), parameters(&stored, ""));
        let sorted = |graph: &Graph| {
            let mut ports: Vec<String> = graph.inputs().iter().map(Port::to_string).collect();
            ports.sort();
            ports
        };
        assert_eq!(sorted(&derived), sorted(&stored));
        assert_eq!(derived.outputs(), stored.outputs());
    }

    #[test]
    fn signatures() {
        let sample = "sample: F32[batch, 4, height, width]";
        let text = |width| format!("encoder_hidden_states: F32[batch, tokens, {width}]");
        assert_eq!(inputs(SD15), [sample, "timestep: F32[]", &text(768)]);
        let lcm = with(SD15, "time_cond_proj_dim", "256");
        assert_eq!(inputs(&lcm)[2], "timestep_cond: F32[batch, 256]");
        assert_eq!(inputs(&upscaler())[2], "class_labels: I64[batch]");
        let sizes = ["text_embeds: F32[batch, text_width]", "time_ids: F32[batch, sizes]"];
        assert_eq!(inputs(&sdxl())[2..4], sizes);
        let known = parse(&sdxl()).for_text(1280).graph().unwrap();
        let ports = known.inputs().iter().map(Port::to_string).collect::<Vec<_>>();
        assert_eq!(ports[2..4], ["text_embeds: F32[batch, 1280]", "time_ids: F32[batch, 6]"]);
        for width in [1, 2816, usize::MAX] {
            let error = parse(&sdxl()).for_text(width).graph().expect_err("a text of another width");
            assert_eq!(error.kind(), ErrorKind::Model, "{width}");
        }
        let graph = parse(&with(SD15, "out_channels", "8")).graph().unwrap();
        assert_eq!(
            graph.outputs().iter().map(Port::to_string).collect::<Vec<_>>(),
            ["out_sample: F32[batch, 8, height, width]"]
        );
    }

    #[test]
    fn an_empty_configuration_is_what_diffusers_constructs() {
        let level = |channels, transformers: bool| Level {
            channels,
            layers: 2,
            heads: 8,
            only_cross_attention: false,
            down: transformers.then(|| vec![1; 2]),
            up: transformers.then(|| vec![1; 3]),
        };
        let expected = Config {
            sample_size: None,
            in_channels: 4,
            out_channels: 4,
            center_input_sample: false,
            conv_in_kernel: 3,
            conv_out_kernel: 3,
            norm_num_groups: 32,
            norm_eps: 1e-5,
            cross_attention_dim: 1280,
            flip_sin_to_cos: true,
            freq_shift: 0.0,
            time_embedding_dim: 1280,
            time_cond_proj_dim: None,
            class_embedding: None,
            added_embedding: None,
            levels: vec![level(320, true), level(640, true), level(1280, true), level(1280, false)],
            middle: Middle::Transformer(1),
        };
        assert_eq!(parse("{}"), expected);
        let sd15 = Config { sample_size: Some([64; 2]), cross_attention_dim: 768, ..expected };
        assert_eq!(parse(SD15), sd15);
    }

    #[test]
    fn lists_go_down_and_reversed_ones_up() {
        let config = parse(&ssd_1b());
        let depths: Vec<_> =
            config.levels.iter().map(|level| (level.down.clone(), level.up.clone())).collect();
        assert_eq!(
            depths,
            [(None, None), (Some(vec![2, 2]), Some(vec![2, 1, 1])), (Some(vec![4, 4]), Some(vec![4, 4, 10])),]
        );
        assert_eq!(config.middle, Middle::Residual);
        let config = parse(&with(&sdxl(), "layers_per_block", "[2, 1, 3]"));
        assert_eq!(config.levels[1].down, Some(vec![2]));
        assert_eq!(config.levels[2].up, Some(vec![10; 4]));
        assert_eq!(config.middle, Middle::Transformer(10));
        let heads: Vec<usize> = config.levels.iter().map(|level| level.heads).collect();
        assert_eq!(heads, [5, 10, 20]);
        assert_eq!(parse(&with(SD15, "sample_size", "[96, 64]")).sample_size, Some([96, 64]));
    }

    #[test]
    fn other_spellings_of_what_is_built() {
        let json = with(SD15, "mid_block_scale_factor", "1.0");
        let json = with(&json, "cross_attention_dim", "[768, 768, 768, 768]");
        assert_eq!(parse(&with(&json, "act_fn", r#""swish""#)), parse(SD15));
    }

    #[test]
    fn another_kind_of_network() {
        for (key, value, expected) in [
            ("_class_name", r#""UNet3DConditionModel""#, r#""UNet2DConditionModel""#),
            ("act_fn", r#""gelu""#, r#""silu""#),
            ("attention_type", r#""gated""#, r#""default""#),
            ("class_embeddings_concat", "true", "false"),
            ("downsample_padding", "0", "1"),
            ("dual_cross_attention", "true", "false"),
            ("encoder_hid_dim", "4096", "null"),
            ("encoder_hid_dim_type", r#""text_proj""#, "null"),
            ("mid_block_scale_factor", "1.4", "1"),
            ("num_attention_heads", "8", "null"),
            ("resnet_time_scale_shift", r#""scale_shift""#, r#""default""#),
            ("time_embedding_act_fn", r#""silu""#, "null"),
            ("time_embedding_type", r#""fourier""#, r#""positional""#),
            ("timestep_post_act", r#""silu""#, "null"),
        ] {
            let help = "unsupported architecture";
            assert_eq!(refusal_with(key, value), format!("{key}: expected {expected}, got {value}; {help}"));
        }
        assert_eq!(
            refusal_with("mid_block_type", r#""UNetMidBlock2DSimpleCrossAttn""#),
            "mid_block_type: expected UNetMidBlock2DCrossAttn, UNetMidBlock2D or null, got \
             UNetMidBlock2DSimpleCrossAttn"
        );
        let types = r#"["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"]"#;
        assert!(
            refusal_with("up_block_types", types).starts_with(
                "up_block_types[2]: expected UpBlock2D or CrossAttnUpBlock2D, got AttnUpBlock2D"
            )
        );
        let types = r#"["DownBlock2D", "UpBlock2D", "DownBlock2D", "DownBlock2D"]"#;
        assert!(refusal_with("down_block_types", types).starts_with("down_block_types[1]: expected"));
        assert_eq!(
            refusal_with("class_embed_type", r#""identity""#),
            "class_embed_type: expected timestep, projection or null, got identity"
        );
        assert_eq!(
            refusal_with("addition_embed_type", r#""image""#),
            "addition_embed_type: expected text_time or null, got image"
        );
    }

    #[test]
    fn lengths_that_do_not_match() {
        let four = "expected 4 values as in block_out_channels, got";
        for key in ["attention_head_dim", "layers_per_block", "cross_attention_dim", DEPTHS_KEY] {
            assert_eq!(refusal_with(key, "[1, 1, 1]"), format!("{key}: {four} 3"));
            assert_eq!(refusal_with(key, "[]"), format!("{key}: {four} 0"));
        }
        for key in ["down_block_types", "up_block_types"] {
            assert_eq!(refusal_with(key, r#"["DownBlock2D"]"#), format!("{key}: {four} 1"));
        }
        let key = "only_cross_attention";
        assert_eq!(refusal_with(key, "[true, true]"), format!("{key}: {four} 2"));
        assert_eq!(refusal_with(REVERSE_DEPTHS_KEY, "[1]"), format!("{REVERSE_DEPTHS_KEY}: {four} 1"));
        assert_eq!(
            refusal_with("sample_size", "[1, 2, 3]"),
            "sample_size: expected height and width, got [1, 2, 3]"
        );
    }

    #[test]
    fn transformers_that_do_not_match_their_layers() {
        assert_eq!(
            refusal_with(DEPTHS_KEY, "[1, [1, 1], 1, 1]"),
            "reverse_transformer_layers_per_block: expected a list, as there are lists in \
             transformer_layers_per_block, got none"
        );
        assert_eq!(
            refusal(&with(&ssd_1b(), DEPTHS_KEY, "[1, [2, 2, 2], 4]")),
            "transformer_layers_per_block[1]: expected 2 numbers, one for each residual block, got 3"
        );
        assert_eq!(
            refusal(&with(&ssd_1b(), REVERSE_DEPTHS_KEY, "[[4, 4], 1, 1]")),
            "reverse_transformer_layers_per_block[0]: expected 3 numbers, one for each residual block, got 2"
        );
        // The list of a level without transformers is read only for the middle.
        let json = with(&ssd_1b(), "down_block_types", r#"["DownBlock2D", "DownBlock2D", "DownBlock2D"]"#);
        let json = with(&json, "mid_block_type", r#""UNetMidBlock2DCrossAttn""#);
        assert_eq!(
            refusal(&with(&json, DEPTHS_KEY, "[1, 1, []]")),
            "transformer_layers_per_block[2]: expected numbers, got none"
        );
    }

    #[test]
    fn several_widths_of_text() {
        assert_eq!(
            refusal_with("cross_attention_dim", "[768, 768, 1024, 768]"),
            "cross_attention_dim: expected equal numbers, got [768, 768, 1024, 768]"
        );
    }

    #[test]
    fn missing_widths() {
        assert_eq!(
            refusal_with("class_embed_type", r#""projection""#),
            "projection_class_embeddings_input_dim: expected a width, because of class_embed_type projection, got none"
        );
        assert_eq!(
            refusal_with("addition_embed_type", r#""text_time""#),
            "addition_time_embed_dim: expected a width, because of addition_embed_type text_time, got none"
        );
        assert_eq!(
            refusal(&with(&sdxl(), PROJECTION_KEY, "256")),
            "projection_class_embeddings_input_dim: expected more than addition_time_embed_dim, 256, got 256"
        );
    }

    #[test]
    fn levels_without_end() {
        assert_eq!(refusal_with("block_out_channels", "[]"), "block_out_channels: expected 1 to 16, got 0");
        let many = format!("{:?}", [32; 17]);
        assert_eq!(refusal_with("block_out_channels", &many), "block_out_channels: expected 1 to 16, got 17");
    }

    #[test]
    fn layers_without_end() {
        let key = "layers_per_block";
        for (value, got) in [("0", "0"), ("257", "257"), ("[2, 0, 2, 2]", "0")] {
            assert_eq!(refusal_with(key, value), format!("{key}: expected 1 to 256, got {got}"));
        }
        let most = u64::MAX.to_string();
        assert_eq!(refusal_with(key, &most), format!("{key}: expected 1 to 256, got {most}"));
        // There are sixteen transformers: each may be believable, and all together not.
        for depth in ["100", &most] {
            let message = refusal_with(DEPTHS_KEY, depth);
            assert!(
                message.starts_with(
                    "layers_per_block, transformer_layers_per_block: expected at most 1024 residual and \
                     transformer blocks in all, got "
                ),
                "{message}"
            );
        }
    }

    #[test]
    fn absurd_widths() {
        let most = u64::MAX.to_string();
        for key in
            ["in_channels", "out_channels", "norm_num_groups", "cross_attention_dim", "time_cond_proj_dim"]
        {
            assert_eq!(refusal_with(key, "0"), format!("{key}: expected 1 to 65536, got 0"));
            assert_eq!(refusal_with(key, &most), format!("{key}: expected 1 to 65536, got {most}"));
        }
        assert_eq!(refusal_with("num_class_embeds", "0"), "num_class_embeds: expected 1 to 65536, got 0");
        let most_channels = format!("[320, 640, {most}, 1280]");
        let message = refusal_with("block_out_channels", &most_channels);
        assert_eq!(message, format!("block_out_channels: expected 1 to 65536, got {most}"));
        let message = refusal_with("block_out_channels", &format!("[{most}, 640, 640, 1280]"));
        assert_eq!(message, format!("block_out_channels: expected 1 to 65536, got {most}"));
        let message = refusal_with("time_embedding_dim", "0");
        assert_eq!(message, "time_embedding_dim: expected 1 to 262144, got 0");
        let json = with(&sdxl(), "addition_time_embed_dim", "65537");
        assert_eq!(refusal(&json), "addition_time_embed_dim: expected 1 to 65536, got 65537");
    }

    #[test]
    fn channels_that_cannot_be_divided() {
        assert_eq!(
            refusal_with("norm_num_groups", "48"),
            "block_out_channels[0]: expected a multiple of norm_num_groups, 48, got 320"
        );
        assert_eq!(
            refusal_with("attention_head_dim", "7"),
            "attention_head_dim[0]: expected a number of heads that divides 320 channels, got 7"
        );
        assert_eq!(
            refusal_with("attention_head_dim", "[8, 0, 8, 8]"),
            "attention_head_dim[1]: expected a number of heads that divides 640 channels, got 0"
        );
        // The last level of SD 1.5 has no transformers, but its middle has one, and the same heads.
        assert_eq!(
            refusal_with("attention_head_dim", "[8, 8, 8, 9]"),
            "attention_head_dim[3]: expected a number of heads that divides 1280 channels, got 9"
        );
    }

    #[test]
    fn kernels_that_change_the_size() {
        for (key, value) in [("conv_in_kernel", 2), ("conv_out_kernel", 0), ("conv_in_kernel", 33)] {
            assert_eq!(
                refusal_with(key, &value.to_string()),
                format!("{key}: expected an odd number up to 31, got {value}")
            );
        }
    }

    #[test]
    fn frequencies_that_cannot_be() {
        let message = refusal_with("freq_shift", "160");
        assert_eq!(
            message,
            "freq_shift: expected 0 up to the frequencies of block_out_channels[0], 160, got 160"
        );
        assert!(refusal_with("freq_shift", "-1").ends_with("got -1"));
        let message = refusal(&with(&sdxl(), "addition_time_embed_dim", "255"));
        assert_eq!(message, "addition_time_embed_dim: expected an even number of sines and cosines, got 255");
        let odd = with(SD15, "norm_num_groups", "1");
        let message = refusal(&with(&odd, "block_out_channels", "[321, 640, 1280, 1280]"));
        assert_eq!(message, "block_out_channels[0]: expected an even number of sines and cosines, got 321");
    }

    #[test]
    fn epsilons_that_cannot_be() {
        assert_eq!(refusal_with("norm_eps", "0.0"), "norm_eps: expected a positive number, got 0");
        assert_eq!(refusal_with("norm_eps", "-1e-5"), "norm_eps: expected a positive number, got -0.00001");
    }

    #[test]
    fn values_of_another_type() {
        let message = refusal_with("in_channels", "-4");
        assert_eq!(message, "in_channels: invalid value: integer `-4`, expected usize");
        assert!(refusal_with("norm_num_groups", "null").starts_with("norm_num_groups: invalid type: null"));
        let message = refusal_with("attention_head_dim", r#"{"a": 1}"#);
        assert_eq!(message, "attention_head_dim: expected a value or a list of them");
        for json in ["", "[]", "1", "{", r#"{"a": 1} 2"#] {
            let message = refusal(json);
            assert!(message.starts_with("expected a configuration as a JSON object: "), "{json}: {message}");
        }
        assert!(
            refusal(&r#"{"a":"#.repeat(100_000)).starts_with("expected a configuration as a JSON object")
        );
    }

    #[test]
    fn configurations_built_in_code_are_checked_too() {
        let refusal = |change: fn(&mut Config)| {
            let mut config = parse(SD15);
            change(&mut config);
            config.graph().expect_err("the configuration is hostile").to_string()
        };
        assert_eq!(
            refusal(|config| config.levels.clear()),
            "unet: block_out_channels: expected 1 to 16, got 0"
        );
        assert_eq!(
            refusal(|config| config.levels[1].up = Some(vec![1, 1])),
            "unet: transformer_layers_per_block[1]: expected 3 numbers, one for each residual block, got 2"
        );
        assert_eq!(
            refusal(|config| config.levels[3].layers = usize::MAX),
            format!("unet: layers_per_block: expected 1 to 256, got {}", usize::MAX)
        );
        assert_eq!(
            refusal(|config| config.norm_eps = f64::NAN),
            "unet: norm_eps: expected a positive number, got NaN"
        );
        assert!(refusal(|config| config.freq_shift = f64::NAN).starts_with("unet: freq_shift: expected"));
        assert!(refusal(|config| config.middle = Middle::Transformer(usize::MAX)).contains("in all"));
    }
}
