//! The U-Net of latent diffusion, diffusers' `UNet2DConditionModel`: its configuration, and the graph that it means.
//! It knows the names and shapes of every parameter, and nothing of their values, of text encoders or of samplers.

mod check;
mod embedding;
mod file;
mod network;
mod transformer;

pub(super) use self::embedding::time_embedding;
pub(super) use self::network::Network;
use super::builder::{Builder, Conv, free, image};
use crate::Error;
use crate::graph::{Dim, Graph};
use crate::weights::Dtype;

/// How much wider the time embedding is than the first level, unless the configuration says.
const TIME_FACTOR: usize = 4;

/// Keys that several messages name.
const PROJECTION_KEY: &str = "projection_class_embeddings_input_dim";
const DEPTHS_KEY: &str = "transformer_layers_per_block";
const REVERSE_DEPTHS_KEY: &str = "reverse_transformer_layers_per_block";

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
    /// Channels of the image.
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

/// What a U-Net takes of networks that steer it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Takes {
    /// What control networks add to what the way up takes from the way down.
    pub residuals: bool,
    /// What T2I-Adapters add within the way down.
    pub features: bool,
}

/// What a T2I-Adapter gives for one place of a U-Net.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Feature {
    /// Its channels.
    pub channels: usize,
    /// How many pixels in a row make one of its places.
    pub factor_px: usize,
}

/// What a control network adds at one place.
pub(super) struct Residual {
    pub(super) name: String,
    pub(super) channels: usize,
    /// How often its sides were halved.
    level: usize,
    pub(super) dims: [Dim; 4],
}

impl Config {
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
        self.controlled_graph(Takes::default())
    }

    /// The graph of a U-Net that other networks steer, which has more inputs.
    ///
    /// For control networks (Zhang et al. 2023, "ControlNet"): `down_block_N_additional_residual [batch, channels, height/2^k,
    /// width/2^k]` for each of what the way up takes from the way down, where they are added after the way down, which does not
    /// see them. For T2I-Adapters (Mou et al. 2023): `down_intrablock_N_additional_residual` for each level, which is added to
    /// the level's last transformer, or, where a level has none, to all that it gives. For both
    /// `mid_block_additional_residual`, which is added to the middle.
    ///
    /// # Errors
    /// As [`Config::graph`].
    pub fn controlled_graph(&self, takes: Takes) -> Result<Graph, Error> {
        const NAME: &str = "unet";
        self.check(NAME)?;
        let mut builder = Builder::new();
        let b = &mut builder;
        let image = |channels| image(channels, "height", "width");
        let mut x = b.input("sample", Dtype::F32, &image(self.in_channels));
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
        let x = network.levels(x, takes);

        let mut b = network.builder;
        let x = b.group_norm(&x, "conv_norm_out", first, self.norm_num_groups, self.norm_eps);
        let x = b.silu(&x);
        let x = b.conv(&x, "conv_out", Conv::same(first, self.out_channels, self.conv_out_kernel));
        b.output("out_sample", &x, &image(self.out_channels));
        b.finish(NAME)
    }

    /// What it takes of a T2I-Adapter, where `factor_px` pixels in a row make a latent cell: one for each level, and one for the
    /// middle, if there is one.
    pub fn features(&self, factor_px: usize) -> Vec<Feature> {
        let residuals = self.block_residuals().into_iter();
        let feature = |residual: Residual| Feature {
            channels: residual.channels,
            factor_px: factor_px << residual.level,
        };
        residuals.map(feature).collect()
    }

    /// What a control network gives, in order: for the way up, and for the middle, which is one.
    pub(super) fn residuals(&self) -> [Vec<Residual>; 2] {
        let last = self.levels.len() - 1;
        let mut places = vec![(self.levels[0].channels, 0)];
        for (index, level) in self.levels.iter().enumerate() {
            places.extend(std::iter::repeat_n((level.channels, index), level.layers));
            places.extend((index < last).then_some((level.channels, index + 1)));
        }
        let down = places.into_iter().enumerate().map(|(number, (channels, level))| {
            Residual::new(format!("down_block_{number}_additional_residual"), channels, level)
        });
        [down.collect(), vec![self.middle_residual()]]
    }

    /// What a T2I-Adapter gives, in order: for each level of the way down, and for the middle.
    pub(super) fn block_residuals(&self) -> Vec<Residual> {
        let last = self.levels.len() - 1;
        let blocks = self.levels.iter().enumerate().map(|(index, level)| {
            // Behind what halves the image, but where a transformer takes it before.
            let halvings = if level.down.is_some() { index } else { (index + 1).min(last) };
            let name = format!("down_intrablock_{index}_additional_residual");
            Residual::new(name, level.channels, halvings)
        });
        let middle = (self.middle != Middle::Absent).then(|| self.middle_residual());
        blocks.chain(middle).collect()
    }

    fn middle_residual(&self) -> Residual {
        let last = self.levels.len() - 1;
        Residual::new("mid_block_additional_residual".into(), self.levels[last].channels, last)
    }
}

impl Residual {
    fn new(name: String, channels: usize, level: usize) -> Self {
        let side = |name: &str| match level {
            0 => free(name),
            // Rounded up where it does not divide.
            _ => free(&format!("{name}/{}", 1usize << level)),
        };
        let dims = [free("batch"), Dim::Fixed(channels), side("height"), side("width")];
        Self { name, channels, level, dims }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::{Map, Value as Json};

    use super::*;
    use crate::ErrorKind;
    use crate::graph::Port;

    pub(super) const SD15: &str = r#"{
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

    pub(super) fn parse(json: &str) -> Config {
        Config::parse("unet/config.json", json.as_bytes()).unwrap()
    }

    /// The configuration with another value for a key, which it may lack.
    pub(super) fn with(json: &str, key: &str, value: &str) -> String {
        let mut object: Map<String, Json> = serde_json::from_str(json).unwrap();
        object.insert(key.into(), serde_json::from_str(value).unwrap());
        Json::Object(object).to_string()
    }

    pub(super) fn sdxl() -> String {
        format!(r#"{{{SDXL}, {SDXL_LEVELS}, "transformer_layers_per_block": [1, 2, 10]}}"#)
    }

    pub(super) fn ssd_1b() -> String {
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
    pub(super) fn refusal(json: &str) -> String {
        let error =
            Config::parse("unet/config.json", json.as_bytes()).expect_err("the configuration is hostile");
        assert_eq!(error.kind(), ErrorKind::Model);
        error.to_string().strip_prefix("unet/config.json: ").expect("the message names the file").to_owned()
    }

    /// The message with which Stable Diffusion 1.5 is refused when one of its keys is changed.
    pub(super) fn refusal_with(key: &str, value: &str) -> String {
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

    /// What a call multiplies for one image, in billions: more is slower. Of Stable Diffusion 1.5
    /// 0.8 TFLOP, two for each, are published.
    #[test]
    fn work_of_a_call() {
        let work = |json: &str, side: usize, width: usize, more: &[(&str, &[usize])]| {
            let (latents, states) = ([1, 4, side, side], [1, 77, width]);
            let inputs: [(&str, &[usize]); 3] =
                [("sample", &latents), ("timestep", &[]), ("encoder_hidden_states", &states)];
            let graph = parse(json).graph().unwrap();
            graph.activations(&[&inputs, more].concat(), 1, None).unwrap().operations() / 1_000_000_000
        };
        assert_eq!(work(SD15, 64, 768, &[]), 401);
        assert_eq!(work(&sdxl(), 128, 2048, &[("text_embeds", &[1, 1280]), ("time_ids", &[1, 6])]), 3380);
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
}
