//! The T2I-Adapter of Mou et al. 2023, diffusers' `T2IAdapter`: its configuration, and the graph that it means.
//! It knows the names and shapes of every parameter, and nothing of their values, of images or of samplers.

use serde::Deserialize;

use super::builder::{Builder, Conv, Value, image};
use super::unet::{self, Feature};
use super::{MAX_BLOCKS, MAX_CHANNELS, MAX_LAYERS, check_kind, check_range, read, unfit};
use crate::Error;
use crate::graph::{Dim, Graph};
use crate::weights::Dtype;

/// The most by which the control image is unshuffled.
const MAX_FACTOR: usize = 64;
/// By how much narrower a light adapter's blocks are than what they give.
const LIGHT_PART: usize = 4;
/// Of the larger adapter, the first stage at half the size; those behind it halve no more.
const XL_HALVED: usize = 2;

/// How an adapter's stages are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Each stage but the first halves the image.
    Full,
    /// For Stable Diffusion XL: one stage halves the image.
    FullXl,
    /// Narrow stages, one more than there are widths.
    Light,
}

const KINDS: [(&str, Kind); 3] =
    [("full_adapter", Kind::Full), ("full_adapter_xl", Kind::FullXl), ("light_adapter", Kind::Light)];

/// What sets one adapter apart from another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// How its stages are made.
    pub kind: Kind,
    /// Channels of the control image.
    pub in_channels: usize,
    /// Widths of the stages.
    pub channels: Vec<usize>,
    /// Residual units of each stage.
    pub num_res_blocks: usize,
    /// How many pixels in a row become channels of one place.
    pub downscale_factor: usize,
}

/// One stage: what it takes, what it gives, and whether it halves the image first.
struct Stage {
    inputs: usize,
    outputs: usize,
    halves: bool,
}

impl Config {
    /// Reads diffusers' `config.json` of a `T2IAdapter`; `place` says in messages where it came from.
    ///
    /// # Errors
    /// [`ErrorKind::Model`](crate::ErrorKind::Model) for JSON that is none, and for numbers no network can have, naming the key.
    pub fn parse(place: &str, json: &[u8]) -> Result<Self, Error> {
        let file: File = read(place, json)?;
        if let Some(class) = &file.class {
            check_kind(place, "_class_name", &["T2IAdapter"], class)?;
        }
        check_kind(place, "adapter_type", &KINDS.map(|(name, _)| name), &file.kind)?;
        let (_, kind) =
            KINDS.into_iter().find(|(name, _)| *name == file.kind).expect("a kind that was checked");
        let config = Self {
            kind,
            in_channels: file.in_channels,
            channels: file.channels,
            num_res_blocks: file.num_res_blocks,
            downscale_factor: file.downscale_factor,
        };
        config.check(place)?;
        Ok(config)
    }

    /// What it gives of a control image.
    pub fn features(&self) -> Vec<Feature> {
        let mut factor_px = self.downscale_factor;
        let features = self.stages().into_iter().map(|stage| {
            factor_px *= if stage.halves { 2 } else { 1 };
            Feature { channels: stage.outputs, factor_px }
        });
        features.collect()
    }

    /// The graph, beside a U-Net of whose [`features`](unet::Config::features) it gives as many as it has.
    ///
    /// Input: `control_image [1, channels, height_px, width_px]` in 0..1, sides in multiples of its `downscale_factor`. Outputs:
    /// what [`unet::Config::controlled_graph`] takes, under the same names.
    ///
    /// # Errors
    /// [`ErrorKind::Model`](crate::ErrorKind::Model) for numbers no network can have.
    pub fn graph(&self, unet: &unet::Config) -> Result<Graph, Error> {
        const NAME: &str = "t2i_adapter";
        self.check(NAME)?;
        let (channels, factor) = (self.in_channels, self.downscale_factor);
        let mut builder = Builder::new();
        let b = &mut builder;
        let [_, fixed, height, width] = image(channels, "height_px", "width_px");
        let x = b.input("control_image", Dtype::F32, &[Dim::Fixed(1), fixed, height, width]);
        // PyTorch has the places of a channel side by side, ONNX the channels of a place.
        let planes = if channels == 1 { vec![x] } else { b.split(&x, 1, channels) };
        let planes: Vec<Value> = planes.iter().map(|plane| b.space_to_depth(plane, factor)).collect();
        let mut x = b.concat(&planes.iter().collect::<Vec<_>>(), 1);
        let stages = self.stages();
        if self.kind != Kind::Light {
            x = b.conv(&x, "adapter.conv_in", Conv::same(channels * factor * factor, stages[0].inputs, 3));
        }
        let outputs = unet.block_residuals();
        for (index, stage) in stages.iter().enumerate() {
            x = self.stage(b, x, &format!("adapter.body.{index}"), stage);
            if let Some(output) = outputs.get(index) {
                b.output(&output.name, &x, &output.dims);
            }
        }
        builder.finish(NAME)
    }

    fn stage(&self, b: &mut Builder, mut x: Value, name: &str, stage: &Stage) -> Value {
        let &Stage { inputs, outputs, halves } = stage;
        if halves {
            x = b.halve(&x);
        }
        let is_light = self.kind == Kind::Light;
        let width = if is_light { outputs / LIGHT_PART } else { outputs };
        if is_light || inputs != outputs {
            x = b.conv(&x, &format!("{name}.in_conv"), Conv::same(inputs, width, 1));
        }
        for unit in 0..self.num_res_blocks {
            let unit = format!("{name}.resnets.{unit}");
            let inner = b.conv(&x, &format!("{unit}.block1"), Conv::same(width, width, 3));
            let inner = b.relu(&inner);
            let kernel = if is_light { 3 } else { 1 };
            let inner = b.conv(&inner, &format!("{unit}.block2"), Conv::same(width, width, kernel));
            x = b.add(&inner, &x);
        }
        if is_light {
            x = b.conv(&x, &format!("{name}.out_conv"), Conv::same(width, outputs, 1));
        }
        x
    }

    fn stages(&self) -> Vec<Stage> {
        let last = self.channels.last().copied().filter(|_| self.kind == Kind::Light);
        let mut inputs = match self.kind {
            Kind::Light => self.in_channels * self.downscale_factor * self.downscale_factor,
            Kind::Full | Kind::FullXl => self.channels[0],
        };
        let stages = self.channels.iter().copied().chain(last).enumerate().map(|(index, outputs)| Stage {
            inputs: std::mem::replace(&mut inputs, outputs),
            outputs,
            halves: if self.kind == Kind::FullXl { index == XL_HALVED } else { index > 0 },
        });
        stages.collect()
    }

    fn check(&self, place: &str) -> Result<(), Error> {
        check_range(place, "in_channels", 1..=MAX_CHANNELS, self.in_channels)?;
        check_range(place, "channels", 1..=MAX_BLOCKS, self.channels.len())?;
        for &channels in &self.channels {
            let least = if self.kind == Kind::Light { LIGHT_PART } else { 1 };
            check_range(place, "channels", least..=MAX_CHANNELS, channels)?;
        }
        if self.kind == Kind::FullXl
            && let Some(pair) = self.channels.windows(2).skip(XL_HALVED).find(|pair| pair[0] != pair[1])
        {
            let expected = format!("no change of width behind stage {XL_HALVED}");
            return Err(unfit(place, "channels", expected, format_args!("{} and {}", pair[0], pair[1])));
        }
        check_range(place, "num_res_blocks", 1..=MAX_LAYERS, self.num_res_blocks)?;
        check_range(place, "downscale_factor", 1..=MAX_FACTOR, self.downscale_factor)
    }
}

/// What is absent is what diffusers' constructor takes then.
#[derive(Deserialize)]
#[serde(default)]
struct File {
    #[serde(rename = "_class_name")]
    class: Option<String>,
    #[serde(rename = "adapter_type")]
    kind: String,
    in_channels: usize,
    channels: Vec<usize>,
    num_res_blocks: usize,
    downscale_factor: usize,
}

impl Default for File {
    fn default() -> Self {
        Self {
            class: None,
            kind: "full_adapter".into(),
            in_channels: 3,
            channels: vec![320, 640, 1280, 1280],
            num_res_blocks: 2,
            downscale_factor: 8,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;
    use crate::graph::Port;

    const LIGHT: &str =
        r#"{"adapter_type": "light_adapter", "channels": [320, 640, 1280], "num_res_blocks": 4}"#;
    const XL: &str = r#"{"adapter_type": "full_adapter_xl", "downscale_factor": 16}"#;
    const SDXL: &str = r#"{"block_out_channels": [320, 640, 1280], "layers_per_block": 2,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"]}"#;

    fn parse(json: &str) -> Result<Config, Error> {
        Config::parse("adapter/config.json", json.as_bytes())
    }

    fn unet(json: &str) -> unet::Config {
        unet::Config::parse("unet/config.json", json.as_bytes()).unwrap()
    }

    /// How many tensors and numbers the network has.
    fn size(json: &str, beside: &str) -> (usize, usize) {
        let graph = parse(json).unwrap().graph(&unet(beside)).unwrap();
        let numbers = graph.parameters().iter().map(|parameter| parameter.shape.iter().product::<usize>());
        (graph.parameters().len(), numbers.sum())
    }

    #[test]
    fn parameters_of_published_networks() {
        // As counted by diffusers 0.42.1.
        assert_eq!(size("{}", "{}"), (38, 77_369_280));
        assert_eq!(size(r#"{"in_channels": 1}"#, "{}"), (38, 77_000_640));
        assert_eq!(size(XL, SDXL), (38, 79_028_160));
        assert_eq!(size(LIGHT, "{}"), (80, 18_689_200));
    }

    #[test]
    fn features_are_what_their_unets_take() {
        let features = |json: &str| parse(json).unwrap().features();
        assert_eq!(features("{}"), unet("{}").features(8)[..4]);
        assert_eq!(features(LIGHT), unet("{}").features(8)[..4]);
        assert_eq!(features(XL), unet(SDXL).features(8));
        let outputs = |json: &str, beside: &str| {
            let graph = parse(json).unwrap().graph(&unet(beside)).unwrap();
            graph.outputs().iter().map(Port::to_string).collect::<Vec<_>>()
        };
        assert_eq!(
            outputs(XL, SDXL),
            [
                "down_intrablock_0_additional_residual: F32[batch, 320, height/2, width/2]",
                "down_intrablock_1_additional_residual: F32[batch, 640, height/2, width/2]",
                "down_intrablock_2_additional_residual: F32[batch, 1280, height/4, width/4]",
                "mid_block_additional_residual: F32[batch, 1280, height/4, width/4]",
            ]
        );
        assert_eq!(
            outputs("{}", "{}")[3],
            "down_intrablock_3_additional_residual: F32[batch, 1280, height/8, width/8]"
        );
    }

    #[test]
    fn what_is_not_built_is_refused_by_its_key() {
        for (json, expected) in [
            (r#"{"_class_name": "MultiAdapter"}"#, "_class_name: expected T2IAdapter, got MultiAdapter"),
            (
                r#"{"adapter_type": "style_adapter"}"#,
                "expected full_adapter or full_adapter_xl or light_adapter, got style_adapter",
            ),
            (r#"{"channels": []}"#, "channels: expected 1 to 16, got 0"),
            (r#"{"channels": [0]}"#, "channels: expected 1 to 65536, got 0"),
            (r#"{"adapter_type": "light_adapter", "channels": [3]}"#, "channels: expected 4 to 65536, got 3"),
            (
                r#"{"adapter_type": "full_adapter_xl", "channels": [1, 2, 3, 4]}"#,
                "channels: expected no change of width behind stage 2, got 3 and 4",
            ),
            (r#"{"num_res_blocks": 0}"#, "num_res_blocks: expected 1 to 256, got 0"),
            (r#"{"downscale_factor": 65}"#, "downscale_factor: expected 1 to 64, got 65"),
            (r#"{"in_channels": "3"}"#, "in_channels: "),
        ] {
            let error = parse(json).expect_err(json);
            assert_eq!(error.kind(), ErrorKind::Model);
            assert!(error.to_string().contains(expected), "{json}: {error}");
        }
    }
}
