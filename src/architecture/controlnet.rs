//! The control network of Zhang et al. 2023, diffusers' `ControlNetModel`: its configuration, and the graph that it means.
//! It knows the names and shapes of every parameter, and nothing of their values, of images or of samplers.

use serde::Deserialize;
use serde_json::{Map, Value as Json};

use super::builder::{Builder, Conv, free, image};
use super::unet::{self, Middle, Network, time_embedding};
use super::{MAX_BLOCKS, MAX_CHANNELS, check_kind, check_range, read, unfit};
use crate::Error;
use crate::graph::{Dim, Graph};
use crate::weights::Dtype;

/// What the encoder of the control image gives, and the network takes.
const HINT: &str = "controlnet_hint";
const WIDTHS_KEY: &str = "conditioning_embedding_out_channels";

/// What sets one control network apart from another.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The U-Net whose way down and middle it has; the way up counts for nothing.
    pub unet: unet::Config,
    /// Channels of the control image.
    pub conditioning_channels: usize,
    /// Widths of the layers by which the control image is encoded; each after the first halves its size.
    pub conditioning_widths: Vec<usize>,
    /// Whether the order of the control image's channels is turned first.
    pub takes_bgr: bool,
    /// Whether what it gives is the mean over height and width ("shuffle").
    pub pools: bool,
}

impl Config {
    /// Reads diffusers' `config.json` of a `ControlNetModel`; `place` says in messages where it came from.
    ///
    /// # Errors
    /// [`ErrorKind::Model`](crate::ErrorKind::Model) for JSON that is none, for numbers no network can have, and for a network
    /// that is not built here, naming the key.
    pub fn parse(place: &str, json: &[u8]) -> Result<Self, Error> {
        let mut object: Map<String, Json> = read(place, json)?;
        if let Some(class) = object.get("_class_name").and_then(Json::as_str) {
            check_kind(place, "_class_name", &["ControlNetModel"], class)?;
        }
        let File { channels, widths, order, pools } = read(place, json)?;
        check_kind(place, "controlnet_conditioning_channel_order", &["rgb", "bgr"], &order)?;
        // A U-Net of the same way down, and of the way up that mirrors it.
        let down = object.get("down_block_types").and_then(Json::as_array);
        let up = down.map(|types| types.iter().rev().map(mirrored).collect());
        object.retain(|key, _| !key.starts_with("up_block_types") && !key.starts_with("out_channels"));
        object.insert("_class_name".into(), "UNet2DConditionModel".into());
        object.extend(up.map(|types| ("up_block_types".to_owned(), Json::Array(types))));
        let unet = unet::Config::parse(place, Json::Object(object).to_string().as_bytes())?;
        let config = Self {
            unet,
            conditioning_channels: channels,
            conditioning_widths: widths,
            takes_bgr: order == "bgr",
            pools,
        };
        config.check(place)?;
        Ok(config)
    }

    /// How many pixels of the control image make a latent cell.
    pub fn factor_px(&self) -> u32 {
        1 << (self.conditioning_widths.len() - 1)
    }

    /// The graph, but for the encoder of the control image ([`Config::encoder_graph`]).
    ///
    /// Inputs: those of a [`unet`](unet::Config::graph), and `controlnet_hint [images, channels, height, width]`, what the encoder
    /// gives of one image, or of one per latents. Outputs: what [`unet::Config::controlled_graph`] takes, under the same names.
    ///
    /// # Errors
    /// [`ErrorKind::Model`](crate::ErrorKind::Model) for numbers no network can have.
    pub fn graph(&self) -> Result<Graph, Error> {
        const NAME: &str = "controlnet";
        self.check(NAME)?;
        let unet = &self.unet;
        let mut builder = Builder::new();
        let b = &mut builder;
        let sample = b.input("sample", Dtype::F32, &image(unet.in_channels, "height", "width"));
        let time = time_embedding(b, unet);
        let text = [free("batch"), free("tokens"), Dim::Fixed(unet.cross_attention_dim)];
        let text = b.input("encoder_hidden_states", Dtype::F32, &text);
        let first = unet.levels[0].channels;
        let x = b.conv(&sample, "conv_in", Conv::same(unet.in_channels, first, 3));
        let [_, channels, height, width] = image(first, "height", "width");
        let hint = b.input(HINT, Dtype::F32, &[free("images"), channels, height, width]);
        let x = b.add(&x, &hint);
        let mut network = Network { builder, config: unet, time, text };
        let (x, skips) = network.way_down(x, &[]);
        let middle = network.middle(x);

        let mut b = network.builder;
        let [down, mid] = unet.residuals();
        let names = (0..skips.len()).map(|number| format!("controlnet_down_blocks.{number}"));
        let names = names.chain(["controlnet_mid_block".to_owned()]);
        let values = skips.iter().map(|(value, _)| value).chain([&middle]);
        for ((value, name), residual) in values.zip(names).zip(down.iter().chain(&mid)) {
            let channels = residual.channels;
            let mut given = b.conv(value, &name, Conv::same(channels, channels, 1));
            if self.pools {
                let axes = b.ints(&[2, 3]);
                let mean = b.op("ReduceMean", &[&given, &axes], &[]);
                let sizes = b.sizes(&given, 0, 4);
                given = b.op("Expand", &[&mean, &sizes], &[]);
            }
            b.output(&residual.name, &given, &residual.dims);
        }
        b.finish(NAME)
    }

    /// The graph of the encoder of the control image, which reads neither latents nor time: what it gives stays the same in all
    /// steps.
    ///
    /// Input: `controlnet_cond [batch, channels, height_px, width_px]`, the control image in 0..1. Output: `controlnet_hint`, as
    /// [`Config::graph`] takes it.
    ///
    /// # Errors
    /// As [`Config::graph`].
    pub fn encoder_graph(&self) -> Result<Graph, Error> {
        const NAME: &str = "controlnet_cond_embedding";
        self.check(NAME)?;
        let mut builder = Builder::new();
        let b = &mut builder;
        let channels = self.conditioning_channels;
        let mut x = b.input("controlnet_cond", Dtype::F32, &image(channels, "height_px", "width_px"));
        if self.takes_bgr && channels > 1 {
            let parts = b.split(&x, 1, channels);
            x = b.concat(&parts.iter().rev().collect::<Vec<_>>(), 1);
        }
        let name = |layer: &str| format!("controlnet_cond_embedding.{layer}");
        let widths = &self.conditioning_widths;
        x = b.conv(&x, &name("conv_in"), Conv::same(channels, widths[0], 3));
        x = b.silu(&x);
        for (index, pair) in widths.windows(2).enumerate() {
            let same = Conv::same(pair[0], pair[0], 3);
            x = b.conv(&x, &name(&format!("blocks.{}", 2 * index)), same);
            x = b.silu(&x);
            let halve = Conv { stride: 2, ..Conv::same(pair[0], pair[1], 3) };
            x = b.conv(&x, &name(&format!("blocks.{}", 2 * index + 1)), halve);
            x = b.silu(&x);
        }
        let last = widths[widths.len() - 1];
        let first = self.unet.levels[0].channels;
        let hint = b.conv(&x, &name("conv_out"), Conv::same(last, first, 3));
        b.output(HINT, &hint, &image(first, "height", "width"));
        builder.finish(NAME)
    }

    fn check(&self, place: &str) -> Result<(), Error> {
        check_range(place, "conditioning_channels", 1..=MAX_CHANNELS, self.conditioning_channels)?;
        check_range(place, WIDTHS_KEY, 1..=MAX_BLOCKS, self.conditioning_widths.len())?;
        for &width in &self.conditioning_widths {
            check_range(place, WIDTHS_KEY, 1..=MAX_CHANNELS, width)?;
        }
        if self.unet.middle == Middle::Absent {
            return Err(unfit(place, "mid_block_type", "a middle block", "null"));
        }
        self.unet.check(place)
    }
}

/// A block of the way up that stands beside this one of the way down.
fn mirrored(name: &Json) -> Json {
    name.as_str().map_or(name.clone(), |name| name.replace("DownBlock2D", "UpBlock2D").into())
}

/// What only control networks say; what is absent is what diffusers' constructor takes then.
#[derive(Deserialize)]
#[serde(default)]
struct File {
    #[serde(rename = "conditioning_channels")]
    channels: usize,
    #[serde(rename = "conditioning_embedding_out_channels")]
    widths: Vec<usize>,
    #[serde(rename = "controlnet_conditioning_channel_order")]
    order: String,
    #[serde(rename = "global_pool_conditions")]
    pools: bool,
}

impl Default for File {
    fn default() -> Self {
        Self { channels: 3, widths: vec![16, 32, 96, 256], order: "rgb".into(), pools: false }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;

    const SD15: &str = r#"{"_class_name": "ControlNetModel", "cross_attention_dim": 768}"#;
    const SDXL: &str = r#""_class_name": "ControlNetModel", "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816, "cross_attention_dim": 2048, "use_linear_projection": true,
        "block_out_channels": [320, 640, 1280], "attention_head_dim": [5, 10, 20], "num_attention_heads": null"#;
    const CROSSED: &str = r#"["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"]"#;

    fn parse(json: &str) -> Result<Config, Error> {
        Config::parse("controlnet/config.json", json.as_bytes())
    }

    /// How many tensors, numbers and outputs the network has.
    fn size(json: &str) -> (usize, usize, usize) {
        let config = parse(json).unwrap();
        let (graph, encoder) = (config.graph().unwrap(), config.encoder_graph().unwrap());
        let parameters = || graph.parameters().iter().chain(encoder.parameters());
        let numbers = parameters().map(|parameter| parameter.shape.iter().product::<usize>());
        (parameters().count(), numbers.sum(), graph.outputs().len())
    }

    fn sdxl(types: &str, depths: &str, middle: &str) -> String {
        format!(
            r#"{{{SDXL}, "down_block_types": {types}, "transformer_layers_per_block": {depths}, "mid_block_type": "{middle}"}}"#
        )
    }

    #[test]
    fn parameters_of_published_networks() {
        // As counted by diffusers 0.42.1.
        assert_eq!(size(SD15), (340, 361_279_120, 13));
        let crossed = "UNetMidBlock2DCrossAttn";
        assert_eq!(size(&sdxl(CROSSED, "[1, 2, 10]", crossed)), (844, 1_251_014_160, 10));
        // "mid", whose transformers of the second level have no blocks, and "small", which has none.
        assert_eq!(size(&sdxl(CROSSED, "[0, 0, 1]", crossed)), (224, 272_586_000, 10));
        let plain = r#"["DownBlock2D", "DownBlock2D", "DownBlock2D"]"#;
        assert_eq!(size(&sdxl(plain, "[1, 2, 10]", "UNetMidBlock2D")), (124, 125_690_640, 10));
    }

    #[test]
    fn what_is_not_built_is_refused_by_its_key() {
        for (json, expected) in [
            (
                r#"{"_class_name": "ControlNetUnionModel"}"#,
                "_class_name: expected ControlNetModel, got ControlNetUnionModel",
            ),
            (r#"{"controlnet_conditioning_channel_order": "gbr"}"#, "expected rgb or bgr, got gbr"),
            (r#"{"conditioning_embedding_out_channels": []}"#, "expected 1 to 16, got 0"),
            (r#"{"conditioning_channels": 0}"#, "conditioning_channels: expected 1 to 65536, got 0"),
            (r#"{"mid_block_type": null}"#, "mid_block_type: expected a middle block, got null"),
            (r#"{"mid_block_type": "Other"}"#, "mid_block_type: expected"),
            (r#"{"down_block_types": ["DownBlock2D"]}"#, "down_block_types: expected 4 values"),
            (
                r#"{"down_block_types": ["A", "DownBlock2D", "DownBlock2D", "DownBlock2D"]}"#,
                "down_block_types[0]: expected",
            ),
            (r#"{"num_attention_heads": 8}"#, "num_attention_heads: expected null"),
            (r#"{"global_pool_conditions": 3}"#, "global_pool_conditions: "),
        ] {
            let error = parse(json).expect_err(json);
            assert_eq!(error.kind(), ErrorKind::Model);
            assert!(error.to_string().contains(expected), "{json}: {error}");
        }
    }
}
