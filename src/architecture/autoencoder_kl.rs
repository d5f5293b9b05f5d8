//! The variational autoencoder of Stable Diffusion (diffusers' `AutoencoderKL`; Rombach et al. 2022, arXiv:2112.10752,
//! section 3.1). It knows nothing of how latents are scaled on their way to the denoiser, but keeps the numbers for it.

use serde::{Deserialize, Deserializer};

use super::builder::{Builder, Conv, Value, image};
use super::{MAX_BLOCKS, MAX_CHANNELS, MAX_LAYERS, check_kind, check_range, read, unfit};
use crate::Error;
use crate::graph::Graph;
use crate::weights::Dtype;

/// The most groups of channels that are believed; published networks have 32.
const MAX_GROUPS: usize = 1024;
/// The epsilon of every group normalisation in the network.
const EPSILON: f64 = 1e-6;

/// What `config.json` says; the fields are named as its keys.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default)]
pub struct Config {
    /// Channels of the image that is encoded.
    pub in_channels: usize,
    /// Channels of the image that is decoded.
    pub out_channels: usize,
    /// Channels at each resolution, beginning with the image's own; each further one halves height and width.
    pub block_out_channels: Vec<usize>,
    /// Residual blocks at each resolution of the encoder; the decoder has one more.
    pub layers_per_block: usize,
    /// Channels of the latents.
    pub latent_channels: usize,
    /// Groups of channels that are normalised together.
    pub norm_num_groups: usize,
    /// Whether there is attention at the lowest resolution.
    pub mid_block_add_attention: bool,
    /// Whether a convolution of one cell follows the encoder.
    pub use_quant_conv: bool,
    /// Whether a convolution of one cell precedes the decoder.
    pub use_post_quant_conv: bool,
    /// What latents are multiplied by for the denoiser.
    pub scaling_factor: f64,
    /// What is taken from latents before they are multiplied.
    pub shift_factor: Option<f64>,
    /// The latents' mean per channel.
    pub latents_mean: Option<Vec<f64>>,
    /// The latents' standard deviation per channel.
    pub latents_std: Option<Vec<f64>>,
    /// The side of the images that it was trained on, in pixels.
    #[serde(deserialize_with = "side")]
    pub sample_size: usize,
    /// Whether 16-bit floats are too narrow for it.
    pub force_upcast: bool,
}

impl Default for Config {
    /// What diffusers takes for the keys that a file lacks.
    fn default() -> Self {
        Self {
            in_channels: 3,
            out_channels: 3,
            block_out_channels: vec![64],
            layers_per_block: 1,
            latent_channels: 4,
            norm_num_groups: 32,
            mid_block_add_attention: true,
            use_quant_conv: true,
            use_post_quant_conv: true,
            scaling_factor: 0.18215,
            shift_factor: None,
            latents_mean: None,
            latents_std: None,
            sample_size: 32,
            force_upcast: true,
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
    down_block_types: Vec<String>,
    up_block_types: Vec<String>,
}

impl Default for Form {
    fn default() -> Self {
        Self {
            class_name: "AutoencoderKL".into(),
            act_fn: "silu".into(),
            down_block_types: vec!["DownEncoderBlock2D".into()],
            up_block_types: vec!["UpDecoderBlock2D".into()],
        }
    }
}

impl Config {
    /// Reads a `config.json`; `place` is for messages.
    ///
    /// # Errors
    /// [`ErrorKind::Model`](crate::ErrorKind::Model) for JSON that is not a configuration, numbers that no network can
    /// have, and kinds of layers that are not built.
    pub fn parse(place: &str, json: &[u8]) -> Result<Self, Error> {
        let Form { class_name, act_fn, down_block_types, up_block_types } = read(place, json)?;
        check_kind(place, "_class_name", &["AutoencoderKL"], &class_name)?;
        check_kind(place, "act_fn", &["silu", "swish"], &act_fn)?;
        let config: Self = read(place, json)?;
        for (key, types, built) in [
            ("down_block_types", down_block_types, "DownEncoderBlock2D"),
            ("up_block_types", up_block_types, "UpDecoderBlock2D"),
        ] {
            types.iter().try_for_each(|got| check_kind(place, key, &[built], got))?;
            if types.len() != config.block_out_channels.len() {
                let expected = format_args!("{} as in block_out_channels", config.block_out_channels.len());
                return Err(unfit(place, key, expected, types.len()));
            }
        }
        config.check(place)?;
        Ok(config)
    }

    /// The pixels of an image's side that become one cell of the latents.
    pub fn factor_px(&self) -> u32 {
        2u32.saturating_pow(self.block_out_channels.len().saturating_sub(1) as u32)
    }

    /// `sample [batch, in_channels, height_px, width_px]` in -1..1 → `latent_parameters [batch, 2 * latent_channels,
    /// height, width]`: the means of the latents, then the logarithms of their variances.
    ///
    /// # Errors
    /// [`ErrorKind::Model`](crate::ErrorKind::Model) for numbers that no network can have.
    pub fn encoder(&self) -> Result<Graph, Error> {
        const NAME: &str = "vae_encoder";
        self.check(NAME)?;
        let mut network = Network { builder: Builder::new(), groups: self.norm_num_groups };
        let sample =
            network.builder.input("sample", Dtype::F32, &image(self.in_channels, "height_px", "width_px"));

        let mut channels = self.block_out_channels[0];
        let conv_in = Conv::same(self.in_channels, channels, 3);
        let mut x = network.builder.conv(&sample, "encoder.conv_in", conv_in);
        let last = self.block_out_channels.len() - 1;
        for (block, &wanted) in self.block_out_channels.iter().enumerate() {
            let name = format!("encoder.down_blocks.{block}");
            for layer in 0..self.layers_per_block {
                x = network.resnet(&x, &format!("{name}.resnets.{layer}"), channels, wanted);
                channels = wanted;
            }
            if block < last {
                let halved = Conv { stride: 2, padding: [0, 0, 1, 1], ..Conv::same(channels, channels, 3) };
                x = network.builder.conv(&x, &format!("{name}.downsamplers.0.conv"), halved);
            }
        }
        x = network.middle(&x, "encoder.mid_block", channels, self.mid_block_add_attention);
        let moments = 2 * self.latent_channels;
        x = network.end(&x, "encoder", channels, moments);
        if self.use_quant_conv {
            x = network.builder.conv(&x, "quant_conv", Conv::same(moments, moments, 1));
        }

        network.builder.output("latent_parameters", &x, &image(moments, "height", "width"));
        network.builder.finish(NAME)
    }

    /// `latent_sample [batch, latent_channels, height, width]` → `sample [batch, out_channels, height_px, width_px]`,
    /// -1..1 but for overshoot.
    ///
    /// # Errors
    /// [`ErrorKind::Model`](crate::ErrorKind::Model) for numbers that no network can have.
    pub fn decoder(&self) -> Result<Graph, Error> {
        const NAME: &str = "vae_decoder";
        self.check(NAME)?;
        let mut network = Network { builder: Builder::new(), groups: self.norm_num_groups };
        let latents = image(self.latent_channels, "height", "width");
        let mut x = network.builder.input("latent_sample", Dtype::F32, &latents);

        if self.use_post_quant_conv {
            let conv = Conv::same(self.latent_channels, self.latent_channels, 1);
            x = network.builder.conv(&x, "post_quant_conv", conv);
        }
        let last = self.block_out_channels.len() - 1;
        let mut channels = self.block_out_channels[last];
        x = network.builder.conv(&x, "decoder.conv_in", Conv::same(self.latent_channels, channels, 3));
        x = network.middle(&x, "decoder.mid_block", channels, self.mid_block_add_attention);
        for (block, &wanted) in self.block_out_channels.iter().rev().enumerate() {
            let name = format!("decoder.up_blocks.{block}");
            for layer in 0..=self.layers_per_block {
                x = network.resnet(&x, &format!("{name}.resnets.{layer}"), channels, wanted);
                channels = wanted;
            }
            if block < last {
                x = network.builder.double(&x);
                let conv = Conv::same(channels, channels, 3);
                x = network.builder.conv(&x, &format!("{name}.upsamplers.0.conv"), conv);
            }
        }
        x = network.end(&x, "decoder", channels, self.out_channels);

        network.builder.output("sample", &x, &image(self.out_channels, "height_px", "width_px"));
        network.builder.finish(NAME)
    }

    /// Configurations are also made in code, from the shapes of a checkpoint.
    fn check(&self, place: &str) -> Result<(), Error> {
        check_range(place, "in_channels", 1..=MAX_CHANNELS, self.in_channels)?;
        check_range(place, "out_channels", 1..=MAX_CHANNELS, self.out_channels)?;
        check_range(place, "latent_channels", 1..=MAX_CHANNELS, self.latent_channels)?;
        check_range(place, "layers_per_block", 1..=MAX_LAYERS, self.layers_per_block)?;
        check_range(place, "norm_num_groups", 1..=MAX_GROUPS, self.norm_num_groups)?;
        let key = "block_out_channels";
        if !(1..=MAX_BLOCKS).contains(&self.block_out_channels.len()) {
            let expected = format_args!("1 to {MAX_BLOCKS} numbers");
            return Err(unfit(place, key, expected, self.block_out_channels.len()));
        }
        for &channels in &self.block_out_channels {
            check_range(place, key, 1..=MAX_CHANNELS, channels)?;
            if !channels.is_multiple_of(self.norm_num_groups) {
                let expected = format_args!("multiples of norm_num_groups ({})", self.norm_num_groups);
                return Err(unfit(place, key, expected, channels));
            }
        }
        let is_scale = |value: f64| value.is_finite() && value > 0.0;
        if !is_scale(self.scaling_factor) {
            return Err(unfit(place, "scaling_factor", "a positive number", self.scaling_factor));
        }
        if let Some(shift) = self.shift_factor.filter(|shift| !shift.is_finite()) {
            return Err(unfit(place, "shift_factor", "a finite number", shift));
        }
        for (key, values) in [("latents_mean", &self.latents_mean), ("latents_std", &self.latents_std)] {
            let Some(values) = values else { continue };
            if values.len() != self.latent_channels {
                let expected = format_args!("a number for each of {} channels", self.latent_channels);
                return Err(unfit(place, key, expected, values.len()));
            }
        }
        let mut means = self.latents_mean.iter().flatten();
        if let Some(mean) = means.find(|mean| !mean.is_finite()) {
            return Err(unfit(place, "latents_mean", "finite numbers", mean));
        }
        let mut deviations = self.latents_std.iter().flatten();
        if let Some(deviation) = deviations.find(|deviation| !is_scale(**deviation)) {
            return Err(unfit(place, "latents_std", "positive numbers", deviation));
        }
        Ok(())
    }
}

/// A number, or the first of several, as diffusers takes it.
fn side<'de, D: Deserializer<'de>>(deserializer: D) -> Result<usize, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Side {
        Square(usize),
        Oblong([usize; 2]),
    }
    Ok(match Side::deserialize(deserializer)? {
        Side::Square(side) | Side::Oblong([side, _]) => side,
    })
}

/// The layers that encoder and decoder have in common.
struct Network {
    builder: Builder,
    groups: usize,
}

impl Network {
    fn resnet(&mut self, x: &Value, name: &str, inputs: usize, outputs: usize) -> Value {
        let y = self.norm_silu(x, &format!("{name}.norm1"), inputs);
        let y = self.builder.conv(&y, &format!("{name}.conv1"), Conv::same(inputs, outputs, 3));
        let y = self.norm_silu(&y, &format!("{name}.norm2"), outputs);
        let y = self.builder.conv(&y, &format!("{name}.conv2"), Conv::same(outputs, outputs, 3));
        if inputs == outputs {
            return self.builder.add(x, &y);
        }
        let shortcut = Conv::same(inputs, outputs, 1);
        let shortcut = self.builder.conv(x, &format!("{name}.conv_shortcut"), shortcut);
        self.builder.add(&shortcut, &y)
    }

    fn middle(&mut self, x: &Value, name: &str, channels: usize, attention: bool) -> Value {
        let mut x = self.resnet(x, &format!("{name}.resnets.0"), channels, channels);
        if attention {
            x = self.attention(&x, &format!("{name}.attentions.0"), channels);
        }
        self.resnet(&x, &format!("{name}.resnets.1"), channels, channels)
    }

    /// One head over all cells. MultiHeadAttention takes as long as the plain products, and never holds all scores.
    fn attention(&mut self, x: &Value, name: &str, channels: usize) -> Value {
        let norm = format!("{name}.group_norm");
        let y = self.builder.group_norm(x, &norm, channels, self.groups, EPSILON);
        let b = &mut self.builder;
        let y = b.reshape(&y, &[0, 0, -1]);
        let y = b.transpose(&y, &[0, 2, 1]);
        let [q, k, v] =
            ["to_q", "to_k", "to_v"].map(|part| b.linear(&y, &format!("{name}.{part}"), channels, channels));
        let y = b.attention(&q, &k, &v, 1, false);
        let y = b.linear(&y, &format!("{name}.to_out.0"), channels, channels);
        let y = b.transpose(&y, &[0, 2, 1]);
        let shape = b.sizes(x, 0, 4);
        let y = b.op("Reshape", &[&y, &shape], &[]);
        b.add(x, &y)
    }

    fn end(&mut self, x: &Value, name: &str, channels: usize, outputs: usize) -> Value {
        let x = self.norm_silu(x, &format!("{name}.conv_norm_out"), channels);
        self.builder.conv(&x, &format!("{name}.conv_out"), Conv::same(channels, outputs, 3))
    }

    fn norm_silu(&mut self, x: &Value, name: &str, channels: usize) -> Value {
        let x = self.builder.group_norm(x, name, channels, self.groups, EPSILON);
        self.builder.silu(&x)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;
    use crate::graph::Port;

    const STABLE_DIFFUSION: &str = r#"{
        "_class_name": "AutoencoderKL", "_diffusers_version": "0.6.0", "act_fn": "silu",
        "block_out_channels": [128, 256, 512, 512], "down_block_types": ["DownEncoderBlock2D", "DownEncoderBlock2D",
        "DownEncoderBlock2D", "DownEncoderBlock2D"], "in_channels": 3, "latent_channels": 4, "layers_per_block": 2,
        "norm_num_groups": 32, "out_channels": 3, "sample_size": 512, "up_block_types": ["UpDecoderBlock2D",
        "UpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D"]}"#;

    fn stable_diffusion() -> Config {
        Config::parse("vae/config.json", STABLE_DIFFUSION.as_bytes()).unwrap()
    }

    fn values(graph: Result<Graph, Error>) -> usize {
        graph.unwrap().parameters().iter().map(|parameter| parameter.shape.iter().product::<usize>()).sum()
    }

    /// The message with which the configuration is refused once `from` is replaced by `to`.
    fn refusal(from: &str, to: &str) -> String {
        assert!(STABLE_DIFFUSION.contains(from));
        let json = STABLE_DIFFUSION.replacen(from, to, 1);
        let error =
            Config::parse("vae/config.json", json.as_bytes()).expect_err("the configuration is hostile");
        assert_eq!(error.kind(), ErrorKind::Model);
        error.to_string().strip_prefix("vae/config.json: ").expect("the message names the file").to_owned()
    }

    #[test]
    fn parameters_of_stable_diffusion() {
        // As counted by diffusers 0.42.1.
        let config = stable_diffusion();
        assert_eq!(values(config.encoder()), 34_163_664);
        assert_eq!(values(config.decoder()), 49_490_199);
        assert_eq!(34_163_664 + 49_490_199, 83_653_863);
        let shape = |graph: &Graph, name: &str| {
            graph
                .parameters()
                .iter()
                .find(|parameter| parameter.name == name)
                .map(|found| found.shape.clone())
        };
        let (encoder, decoder) = (config.encoder().unwrap(), config.decoder().unwrap());
        let shortcut = shape(&encoder, "encoder.down_blocks.1.resnets.0.conv_shortcut.weight");
        assert_eq!(shortcut.unwrap(), [256, 128, 1, 1]);
        assert_eq!(shape(&encoder, "encoder.down_blocks.3.downsamplers.0.conv.weight"), None);
        let shortcut = shape(&decoder, "decoder.up_blocks.2.resnets.0.conv_shortcut.weight");
        assert_eq!(shortcut.unwrap(), [256, 512, 1, 1]);
        assert_eq!(shape(&decoder, "post_quant_conv.weight").unwrap(), [4, 4, 1, 1]);
    }

    #[test]
    fn parameters_of_the_upscaler() {
        let config =
            Config { block_out_channels: vec![128, 256, 512], layers_per_block: 2, ..Config::default() };
        assert_eq!(values(config.encoder()), 22_360_528);
        assert_eq!(values(config.decoder()), 32_965_399);
        assert_eq!(config.factor_px(), 4);
    }

    #[test]
    fn parameters_of_sixteen_channels_without_quant_convs() {
        let config = Config {
            latent_channels: 16,
            use_quant_conv: false,
            use_post_quant_conv: false,
            ..stable_diffusion()
        };
        assert_eq!(values(config.encoder()), 34_274_208);
        assert_eq!(values(config.decoder()), 49_545_475);
    }

    #[test]
    fn parameters_without_attention() {
        let config = Config { mid_block_add_attention: false, ..stable_diffusion() };
        let attention = 4 * (512 * 512 + 512) + 2 * 512;
        assert_eq!(values(config.encoder()), 34_163_664 - attention);
        assert_eq!(values(config.decoder()), 49_490_199 - attention);
    }

    #[test]
    fn signature() {
        let ports = |ports: &[Port]| ports.iter().map(Port::to_string).collect::<Vec<_>>();
        let (encoder, decoder) =
            (stable_diffusion().encoder().unwrap(), stable_diffusion().decoder().unwrap());
        assert_eq!(ports(encoder.inputs()), ["sample: F32[batch, 3, height_px, width_px]"]);
        assert_eq!(ports(encoder.outputs()), ["latent_parameters: F32[batch, 8, height, width]"]);
        assert_eq!(ports(decoder.inputs()), ["latent_sample: F32[batch, 4, height, width]"]);
        assert_eq!(ports(decoder.outputs()), ["sample: F32[batch, 3, height_px, width_px]"]);
    }

    #[test]
    fn numbers_for_the_pipeline() {
        let config = stable_diffusion();
        assert_eq!((config.scaling_factor, config.shift_factor, config.sample_size), (0.18215, None, 512));
        assert_eq!(config.factor_px(), 8);
        let json = STABLE_DIFFUSION.replace(
            r#""sample_size": 512"#,
            r#""sample_size": [768, 512], "scaling_factor": 0.3611, "shift_factor": 0.1159, "force_upcast": false,
               "latents_mean": [0.5, 0, 0, -1], "latents_std": [1, 1, 2, 1]"#,
        );
        let config = Config::parse("", json.as_bytes()).unwrap();
        assert_eq!(
            (config.scaling_factor, config.shift_factor, config.sample_size),
            (0.3611, Some(0.1159), 768)
        );
        assert_eq!(config.latents_mean.unwrap(), [0.5, 0.0, 0.0, -1.0]);
        assert_eq!(config.latents_std.unwrap(), [1.0, 1.0, 2.0, 1.0]);
        assert!(!config.force_upcast);
    }

    #[test]
    fn no_json() {
        let error = Config::parse("c", b"PK\x03\x04").unwrap_err().to_string();
        assert!(error.starts_with("c: expected a configuration as a JSON object: "), "{error}");
        let error = Config::parse("c", b"[]").unwrap_err().to_string();
        assert!(error.starts_with("c: expected a configuration as a JSON object: "), "{error}");
    }

    #[test]
    fn wrong_type() {
        let message = refusal(r#""layers_per_block": 2"#, r#""layers_per_block": -2"#);
        assert_eq!(message, "layers_per_block: invalid value: integer `-2`, expected usize");
        let message = refusal("[128, 256,", "[128, null,");
        assert_eq!(message, "block_out_channels[1]: invalid type: null, expected usize");
    }

    #[test]
    fn another_kind_of_network() {
        assert_eq!(
            refusal(r#""AutoencoderKL""#, r#""AsymmetricAutoencoderKL""#),
            "_class_name: expected AutoencoderKL, got AsymmetricAutoencoderKL; \
             unsupported architecture"
        );
        assert_eq!(
            refusal(r#""UpDecoderBlock2D""#, r#""AttnUpDecoderBlock2D""#),
            "up_block_types: expected UpDecoderBlock2D, got AttnUpDecoderBlock2D; \
             unsupported architecture"
        );
        assert!(refusal(r#""silu""#, r#""mish""#).starts_with("act_fn: expected silu or swish, got mish"));
    }

    #[test]
    fn blocks_that_do_not_match() {
        assert_eq!(
            refusal("[128, 256, 512, 512]", "[128, 256, 512]"),
            "down_block_types: expected 3 as in block_out_channels, got 4"
        );
    }

    #[test]
    fn no_blocks() {
        let config = Config { block_out_channels: Vec::new(), ..Config::default() };
        let error = config.decoder().err().unwrap().to_string();
        assert_eq!(error, "vae_decoder: block_out_channels: expected 1 to 16 numbers, got 0");
    }

    #[test]
    fn absurd_numbers() {
        let key = "block_out_channels";
        let channels = |to| refusal("[128, 256, 512, 512]", to);
        assert_eq!(channels("[128, 256, 512, 0]"), format!("{key}: expected 1 to 65536, got 0"));
        assert_eq!(channels("[65568, 256, 512, 512]"), format!("{key}: expected 1 to 65536, got 65568"));
        assert_eq!(
            channels("[128, 256, 512, 500]"),
            format!("{key}: expected multiples of norm_num_groups (32), got 500")
        );
        let refused = |key: &str, from, to| {
            let message = refusal(&format!("\"{key}\": {from}"), &format!("\"{key}\": {to}"));
            message.strip_prefix(&format!("{key}: expected ")).expect("the message names the key").to_owned()
        };
        assert_eq!(refused("norm_num_groups", 32, 0), "1 to 1024, got 0");
        assert_eq!(refused("layers_per_block", 2, 257), "1 to 256, got 257");
        assert_eq!(refused("in_channels", 3, 0), "1 to 65536, got 0");
        assert_eq!(refused("latent_channels", 4, u64::MAX), "1 to 65536, got 18446744073709551615");
    }

    #[test]
    fn impossible_scales() {
        let error = |config: Config| config.encoder().err().unwrap().to_string();
        let scaling_factor = |scaling_factor| error(Config { scaling_factor, ..Config::default() });
        assert_eq!(scaling_factor(0.0), "vae_encoder: scaling_factor: expected a positive number, got 0");
        assert_eq!(
            scaling_factor(f64::NAN),
            "vae_encoder: scaling_factor: expected a positive number, got NaN"
        );
        assert_eq!(
            error(Config { shift_factor: Some(f64::INFINITY), ..Config::default() }),
            "vae_encoder: shift_factor: expected a finite number, got inf"
        );
        assert_eq!(
            error(Config { latents_mean: Some(vec![0.0; 3]), ..Config::default() }),
            "vae_encoder: latents_mean: expected a number for each of 4 channels, got 3"
        );
        assert_eq!(
            error(Config { latents_std: Some(vec![1.0, 1.0, 1.0, 0.0]), ..Config::default() }),
            "vae_encoder: latents_std: expected positive numbers, got 0"
        );
    }
}
