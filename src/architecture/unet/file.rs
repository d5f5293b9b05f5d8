//! diffusers' `config.json` of a U-Net: what is written in it, and the [`Config`] that it means.
//! It knows what diffusers' constructor takes where a key is absent, and no graph.

use serde::Deserialize;
use serde_json::{Map, Value as Json};

use super::{
    AddedEmbedding, ClassEmbedding, Config, DEPTHS_KEY, Level, Middle, PROJECTION_KEY, REVERSE_DEPTHS_KEY,
    TIME_FACTOR,
};
use crate::Error;
use crate::architecture::{MAX_BLOCKS, MAX_LAYERS, check_range, read, unfit};

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
        let middle = middle(place, self.mid_block_type.as_deref(), &down_depths[count - 1], count)?;
        let projection = self.projection_class_embeddings_input_dim;
        let class_embedding =
            class_embedding(place, self.class_embed_type.as_deref(), self.num_class_embeds, projection)?;
        let added_embedding = added_embedding(
            place,
            self.addition_embed_type.as_deref(),
            self.addition_time_embed_dim,
            projection,
        )?;
        let sample_size = sample_size(place, self.sample_size)?;
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

/// The blocks between the two halves; `depths` are those of the lowest of `count` levels.
fn middle(place: &str, kind: Option<&str>, depths: &OneOrMany<usize>, count: usize) -> Result<Middle, Error> {
    match kind {
        None => Ok(Middle::Absent),
        Some("UNetMidBlock2D") => Ok(Middle::Residual),
        Some("UNetMidBlock2DCrossAttn") => Ok(Middle::Transformer(match depths {
            OneOrMany::One(blocks) => *blocks,
            OneOrMany::Many(blocks) => *blocks
                .first()
                .ok_or_else(|| unfit(place, &format!("{DEPTHS_KEY}[{}]", count - 1), "numbers", "none"))?,
        })),
        Some(other) => {
            let expected = "UNetMidBlock2DCrossAttn, UNetMidBlock2D or null";
            Err(unfit(place, "mid_block_type", expected, other))
        }
    }
}

/// A width that is there because of another key.
fn needed(place: &str, key: &str, value: Option<usize>, by: &str) -> Result<usize, Error> {
    value.ok_or_else(|| unfit(place, key, format_args!("a width, because of {by}"), "none"))
}

fn class_embedding(
    place: &str,
    kind: Option<&str>,
    classes: Option<usize>,
    projection: Option<usize>,
) -> Result<Option<ClassEmbedding>, Error> {
    Ok(match kind {
        None => classes.map(ClassEmbedding::Table),
        Some("timestep") => Some(ClassEmbedding::Timestep),
        Some("projection") => {
            let width = needed(place, PROJECTION_KEY, projection, "class_embed_type projection")?;
            Some(ClassEmbedding::Projection(width))
        }
        Some(other) => return Err(unfit(place, "class_embed_type", "timestep, projection or null", other)),
    })
}

fn added_embedding(
    place: &str,
    kind: Option<&str>,
    time_width: Option<usize>,
    projection: Option<usize>,
) -> Result<Option<AddedEmbedding>, Error> {
    const BY: &str = "addition_embed_type text_time";
    match kind {
        None => Ok(None),
        Some("text_time") => {
            let time_width = needed(place, "addition_time_embed_dim", time_width, BY)?;
            let inputs = needed(place, PROJECTION_KEY, projection, BY)?;
            Ok(Some(AddedEmbedding { time_width, inputs, text_width: None }))
        }
        Some(other) => Err(unfit(place, "addition_embed_type", "text_time or null", other)),
    }
}

fn sample_size(place: &str, size: Option<OneOrMany<usize>>) -> Result<Option<[usize; 2]>, Error> {
    match size {
        None => Ok(None),
        Some(OneOrMany::One(side)) => Ok(Some([side; 2])),
        Some(OneOrMany::Many(sides)) => match sides[..] {
            [height, width] => Ok(Some([height, width])),
            _ => Err(unfit(place, "sample_size", "height and width", format!("{sides:?}"))),
        },
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
    use crate::architecture::unet::tests::{SD15, parse, refusal, refusal_with, sdxl, ssd_1b, with};
    use crate::architecture::unet::{Config, DEPTHS_KEY, Level, Middle, PROJECTION_KEY, REVERSE_DEPTHS_KEY};

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
}
