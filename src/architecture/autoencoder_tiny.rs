//! The autoencoder of a few plain convolutions (diffusers' `AutoencoderTiny`, of which TAESD is one). It knows its
//! layers, and nothing of how latents are scaled on their way to the denoiser, but keeps the numbers for it.

use serde::Deserialize;

use super::builder::{Builder, Conv, Value, image};
use super::{MAX_BLOCKS, MAX_CHANNELS, MAX_LAYERS, check_kind, check_range, read, unfit};
use crate::Error;
use crate::graph::Graph;
use crate::weights::Dtype;

/// The most that the decoder enlarges at a time.
const MAX_FACTOR: usize = 8;
/// Latents end up between minus this and this before they are decoded.
const LATENT_BOUND: f32 = 3.0;

/// What `config.json` says; the fields are named as its keys.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default)]
pub struct Config {
    /// Channels of the image that is encoded.
    pub in_channels: usize,
    /// Channels of the image that is decoded.
    pub out_channels: usize,
    /// Channels at each resolution of the encoder, which are equal; each further one halves height and width.
    pub encoder_block_out_channels: Vec<usize>,
    /// Channels at each resolution of the decoder, which are equal; each further one enlarges height and width.
    pub decoder_block_out_channels: Vec<usize>,
    /// Residual blocks at each resolution of the encoder.
    pub num_encoder_blocks: Vec<usize>,
    /// Residual blocks at each resolution of the decoder.
    pub num_decoder_blocks: Vec<usize>,
    /// Channels of the latents.
    pub latent_channels: usize,
    /// How much the decoder enlarges between resolutions.
    pub upsampling_scaling_factor: usize,
    /// What latents are multiplied by for the denoiser.
    pub scaling_factor: f64,
    /// What is taken from latents before they are multiplied.
    pub shift_factor: f64,
}

impl Default for Config {
    /// What diffusers takes for the keys that a file lacks.
    fn default() -> Self {
        Self {
            in_channels: 3,
            out_channels: 3,
            encoder_block_out_channels: vec![64; 4],
            decoder_block_out_channels: vec![64; 4],
            num_encoder_blocks: vec![1, 3, 3, 3],
            num_decoder_blocks: vec![3, 3, 3, 1],
            latent_channels: 4,
            upsampling_scaling_factor: 2,
            scaling_factor: 1.0,
            shift_factor: 0.0,
        }
    }
}

/// The keys of which only some values are built.
#[derive(Deserialize)]
#[serde(default)]
struct Form {
    #[serde(rename = "_class_name")]
    class_name: String,
    act_fn: String,
    upsample_fn: String,
}

impl Default for Form {
    fn default() -> Self {
        Self { class_name: "AutoencoderTiny".into(), act_fn: "relu".into(), upsample_fn: "nearest".into() }
    }
}

impl Config {
    /// Reads a `config.json`; `place` is for messages.
    ///
    /// # Errors
    /// [`ErrorKind::Model`](crate::ErrorKind::Model) for JSON that is not a configuration, numbers that no network can
    /// have, and kinds of layers that are not built.
    pub fn parse(place: &str, json: &[u8]) -> Result<Self, Error> {
        let Form { class_name, act_fn, upsample_fn } = read(place, json)?;
        check_kind(place, "_class_name", &["AutoencoderTiny"], &class_name)?;
        check_kind(place, "act_fn", &["relu"], &act_fn)?;
        check_kind(place, "upsample_fn", &["nearest"], &upsample_fn)?;
        let config: Self = read(place, json)?;
        config.check(place)?;
        Ok(config)
    }

    /// The pixels of an image's side that one cell of the latents becomes.
    pub fn factor_px(&self) -> u32 {
        let factor = u32::try_from(self.upsampling_scaling_factor).unwrap_or(u32::MAX);
        factor.saturating_pow(self.num_decoder_blocks.len().saturating_sub(1) as u32)
    }

    /// `sample [batch, in_channels, height_px, width_px]` in -1..1 → `latent_sample [batch, latent_channels, height,
    /// width]`.
    ///
    /// # Errors
    /// [`ErrorKind::Model`](crate::ErrorKind::Model) for numbers that no network can have.
    pub fn encoder(&self) -> Result<Graph, Error> {
        const NAME: &str = "vae_encoder";
        self.check(NAME)?;
        let mut b = Builder::new();
        let sample = b.input("sample", Dtype::F32, &image(self.in_channels, "height_px", "width_px"));
        // The layers see images in 0..1.
        let (one, two) = (b.float(1.0), b.float(2.0));
        let mut x = b.add(&sample, &one);
        x = b.op("Div", &[&x, &two], &[]);

        let mut layers = Layers { builder: b, part: "encoder", next: 0 };
        let channels = self.encoder_block_out_channels[0];
        for (stage, &blocks) in self.num_encoder_blocks.iter().enumerate() {
            let conv = match stage {
                0 => Conv::same(self.in_channels, channels, 3),
                _ => Conv { stride: 2, bias: false, ..Conv::same(channels, channels, 3) },
            };
            x = layers.conv(&x, conv);
            x = layers.blocks(x, channels, blocks);
        }
        x = layers.conv(&x, Conv::same(channels, self.latent_channels, 3));

        let mut b = layers.builder;
        b.output("latent_sample", &x, &image(self.latent_channels, "height", "width"));
        b.finish(NAME)
    }

    /// `latent_sample [batch, latent_channels, height, width]` → `sample [batch, out_channels, height_px, width_px]`,
    /// -1..1 but for overshoot.
    ///
    /// # Errors
    /// [`ErrorKind::Model`](crate::ErrorKind::Model) for numbers that no network can have.
    pub fn decoder(&self) -> Result<Graph, Error> {
        const NAME: &str = "vae_decoder";
        self.check(NAME)?;
        let mut b = Builder::new();
        let latents = b.input("latent_sample", Dtype::F32, &image(self.latent_channels, "height", "width"));
        let bound = b.float(LATENT_BOUND);
        let mut x = b.op("Div", &[&latents, &bound], &[]);
        x = b.op("Tanh", &[&x], &[]);
        x = b.mul(&x, &bound);

        let mut layers = Layers { builder: b, part: "decoder", next: 0 };
        let channels = self.decoder_block_out_channels[0];
        x = layers.conv(&x, Conv::same(self.latent_channels, channels, 3));
        x = layers.relu(&x);
        let last = self.num_decoder_blocks.len() - 1;
        for (stage, &blocks) in self.num_decoder_blocks.iter().enumerate() {
            x = layers.blocks(x, channels, blocks);
            if stage < last {
                x = layers.enlarge(&x, self.upsampling_scaling_factor);
                x = layers.conv(&x, Conv { bias: false, ..Conv::same(channels, channels, 3) });
            } else {
                x = layers.conv(&x, Conv::same(channels, self.out_channels, 3));
            }
        }

        // The layers draw images in 0..1.
        let mut b = layers.builder;
        let (one, two) = (b.float(1.0), b.float(2.0));
        x = b.mul(&x, &two);
        x = b.op("Sub", &[&x, &one], &[]);
        b.output("sample", &x, &image(self.out_channels, "height_px", "width_px"));
        b.finish(NAME)
    }

    /// Configurations are also made in code, from the shapes of a checkpoint.
    fn check(&self, place: &str) -> Result<(), Error> {
        check_range(place, "in_channels", 1..=MAX_CHANNELS, self.in_channels)?;
        check_range(place, "out_channels", 1..=MAX_CHANNELS, self.out_channels)?;
        check_range(place, "latent_channels", 1..=MAX_CHANNELS, self.latent_channels)?;
        check_range(place, "upsampling_scaling_factor", 1..=MAX_FACTOR, self.upsampling_scaling_factor)?;
        for (part, channels, blocks) in [
            ("encoder", &self.encoder_block_out_channels, &self.num_encoder_blocks),
            ("decoder", &self.decoder_block_out_channels, &self.num_decoder_blocks),
        ] {
            let key = format!("{part}_block_out_channels");
            if !(1..=MAX_BLOCKS).contains(&channels.len()) {
                return Err(unfit(place, &key, format_args!("1 to {MAX_BLOCKS} numbers"), channels.len()));
            }
            check_range(place, &key, 1..=MAX_CHANNELS, channels[0])?;
            // diffusers' convolutions between resolutions keep the channels.
            if channels.iter().any(|&other| other != channels[0]) {
                return Err(unfit(place, &key, "equal numbers", format_args!("{channels:?}")));
            }
            let key = format!("num_{part}_blocks");
            if blocks.len() != channels.len() {
                let expected = format_args!("{} numbers as in {part}_block_out_channels", channels.len());
                return Err(unfit(place, &key, expected, blocks.len()));
            }
            blocks.iter().try_for_each(|&count| check_range(place, &key, 0..=MAX_LAYERS, count))?;
        }
        if !self.scaling_factor.is_finite() || self.scaling_factor <= 0.0 {
            return Err(unfit(place, "scaling_factor", "a positive number", self.scaling_factor));
        }
        if !self.shift_factor.is_finite() {
            return Err(unfit(place, "shift_factor", "a finite number", self.shift_factor));
        }
        Ok(())
    }
}

/// One sequence of layers, of which those without parameters count too.
struct Layers {
    builder: Builder,
    part: &'static str,
    next: usize,
}

impl Layers {
    fn conv(&mut self, x: &Value, conv: Conv) -> Value {
        let name = self.name();
        self.builder.conv(x, &name, conv)
    }

    fn relu(&mut self, x: &Value) -> Value {
        self.next += 1;
        self.builder.relu(x)
    }

    fn enlarge(&mut self, x: &Value, factor: usize) -> Value {
        self.next += 1;
        self.builder.enlarge(x, factor)
    }

    fn blocks(&mut self, mut x: Value, channels: usize, count: usize) -> Value {
        for _ in 0..count {
            let (name, conv) = (self.name(), Conv::same(channels, channels, 3));
            let b = &mut self.builder;
            let mut y = b.conv(&x, &format!("{name}.conv.0"), conv);
            y = b.relu(&y);
            y = b.conv(&y, &format!("{name}.conv.2"), conv);
            y = b.relu(&y);
            y = b.conv(&y, &format!("{name}.conv.4"), conv);
            y = b.add(&y, &x);
            x = b.relu(&y);
        }
        x
    }

    fn name(&mut self) -> String {
        self.next += 1;
        format!("{}.layers.{}", self.part, self.next - 1)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::ErrorKind;
    use crate::graph::Port;

    const TAESD: &str = r#"{
        "_class_name": "AutoencoderTiny", "_diffusers_version": "0.20.0.dev0", "act_fn": "relu",
        "decoder_block_out_channels": [64, 64, 64, 64], "encoder_block_out_channels": [64, 64, 64, 64],
        "force_upcast": false, "in_channels": 3, "latent_channels": 4, "latent_magnitude": 3, "latent_shift": 0.5,
        "num_decoder_blocks": [3, 3, 3, 1], "num_encoder_blocks": [1, 3, 3, 3], "out_channels": 3,
        "scaling_factor": 1.0, "upsampling_scaling_factor": 2}"#;

    fn taesd() -> Config {
        Config::parse("vae/config.json", TAESD.as_bytes()).unwrap()
    }

    /// The built-in model's, as `export/model.py` declares it.
    fn built_in() -> Config {
        Config {
            encoder_block_out_channels: vec![48; 5],
            decoder_block_out_channels: vec![48; 5],
            num_encoder_blocks: vec![0, 0, 1, 2, 3],
            num_decoder_blocks: vec![3, 2, 1, 0, 0],
            latent_channels: 16,
            ..Config::default()
        }
    }

    fn values(graph: Result<Graph, Error>) -> usize {
        graph.unwrap().parameters().iter().map(|parameter| parameter.shape.iter().product::<usize>()).sum()
    }

    /// The message with which the configuration is refused once `from` is replaced by `to`.
    fn refusal(from: &str, to: &str) -> String {
        assert!(TAESD.contains(from));
        let json = TAESD.replacen(from, to, 1);
        let error =
            Config::parse("vae/config.json", json.as_bytes()).expect_err("the configuration is hostile");
        assert_eq!(error.kind(), ErrorKind::Model);
        error.to_string().strip_prefix("vae/config.json: ").expect("the message names the file").to_owned()
    }

    #[test]
    fn parameters_of_taesd() {
        // As counted by diffusers 0.42.1.
        assert_eq!(taesd(), Config::default());
        assert_eq!(values(taesd().encoder()), 1_222_532);
        assert_eq!(values(taesd().decoder()), 1_222_531);
        assert_eq!(taesd().factor_px(), 8);
    }

    #[test]
    fn parameters_of_sixteen_channels() {
        let config = Config { latent_channels: 16, ..Config::default() };
        assert_eq!(values(config.encoder()), 1_229_456);
        assert_eq!(values(config.decoder()), 1_229_443);
    }

    #[test]
    fn built_in_graph_is_what_is_built_today() {
        let packed = include_bytes!("../../models/builtin/graphs/vae_decoder.onnx.gz");
        let mut onnx = Vec::new();
        std::io::copy(&mut flate2::read::GzDecoder::new(&packed[..]), &mut onnx).unwrap();
        let (stored, derived) = (Graph::decode("", &onnx).unwrap(), built_in().decoder().unwrap());
        assert_eq!((derived.inputs(), derived.outputs()), (stored.inputs(), stored.outputs()));
        let parameters = |graph: &Graph| -> BTreeMap<String, Vec<usize>> {
            graph.parameters().iter().map(|found| (found.name.clone(), found.shape.clone())).collect()
        };
        assert_eq!(parameters(&derived), parameters(&stored));
        assert_eq!(built_in().factor_px(), 16);
    }

    #[test]
    fn signature() {
        let ports = |ports: &[Port]| ports.iter().map(Port::to_string).collect::<Vec<_>>();
        let encoder = taesd().encoder().unwrap();
        assert_eq!(ports(encoder.inputs()), ["sample: F32[batch, 3, height_px, width_px]"]);
        assert_eq!(ports(encoder.outputs()), ["latent_sample: F32[batch, 4, height, width]"]);
    }

    #[test]
    fn another_kind_of_network() {
        assert_eq!(
            refusal(r#""relu""#, r#""gelu""#),
            "act_fn: expected relu, got gelu; unsupported architecture"
        );
        assert!(refusal(r#""AutoencoderTiny""#, r#""AutoencoderKL""#).starts_with("_class_name: expected"));
        assert_eq!(
            refusal(r#""scaling_factor": 1.0"#, r#""upsample_fn": "bilinear""#),
            "upsample_fn: expected nearest, got bilinear; unsupported architecture"
        );
    }

    #[test]
    fn uneven_channels() {
        assert_eq!(
            refusal("[64, 64, 64, 64]", "[64, 64, 128, 64]"),
            "decoder_block_out_channels: expected equal numbers, got [64, 64, 128, 64]"
        );
    }

    #[test]
    fn blocks_that_do_not_match() {
        assert_eq!(
            refusal("[1, 3, 3, 3]", "[1, 3, 3]"),
            "num_encoder_blocks: expected 4 numbers as in encoder_block_out_channels, got 3"
        );
    }

    #[test]
    fn no_blocks() {
        let config = Config {
            decoder_block_out_channels: Vec::new(),
            num_decoder_blocks: Vec::new(),
            ..Config::default()
        };
        let error = config.decoder().err().unwrap().to_string();
        assert_eq!(error, "vae_decoder: decoder_block_out_channels: expected 1 to 16 numbers, got 0");
    }

    #[test]
    fn absurd_numbers() {
        assert_eq!(
            refusal("[1, 3, 3, 3]", "[1, 3, 3, 257]"),
            "num_encoder_blocks: expected 0 to 256, got 257"
        );
        let message = refusal(r#""latent_channels": 4"#, r#""latent_channels": 0"#);
        assert_eq!(message, "latent_channels: expected 1 to 65536, got 0");
        let message = refusal(r#"_factor": 2"#, r#"_factor": 9"#);
        assert_eq!(message, "upsampling_scaling_factor: expected 1 to 8, got 9");
        let message = refusal(r#""scaling_factor": 1.0"#, r#""scaling_factor": -1.0"#);
        assert_eq!(message, "scaling_factor: expected a positive number, got -1");
        let message = refusal(r#""latent_channels": 4"#, r#""latent_channels": 4.5"#);
        assert_eq!(message, "latent_channels: invalid type: floating point `4.5`, expected usize");
    }
}
