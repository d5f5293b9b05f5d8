//! The folder of one component, as `save_pretrained` writes it: its configuration, its weights, a tokenizer's files.
//! It knows such a folder's files; which components make a model is not its business.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::network::kl_graphs;
use super::{Part, TextEncoderPart, Vocabulary, read};
use crate::architecture::{autoencoder_kl, autoencoder_tiny, clip};
use crate::checkpoint;
use crate::family::Family;
use crate::graph::Graph;
use crate::manifest::LatentSpace;
use crate::scheduler::Scheduler;
use crate::tokenizer::SpecialTokens;
use crate::weights::Weights;
use crate::{Error, ErrorKind, json};

/// Where a folder's models keep their weights, the U-Net and VAE first, then the text encoders.
const STEMS: [&str; 2] = ["diffusion_pytorch_model", "model"];

/// The special tokens around a prompt where a tokenizer's files name no others: CLIP's.
const BOS: &str = "<|startoftext|>";
const EOS: &str = "<|endoftext|>";

/// The class of the component that a folder is, if it is one.
pub(super) fn class_of(folder: &Path) -> Option<String> {
    let path = folder.join("config.json");
    let class: Class = if path.is_file() { parse(&path).ok()? } else { return None };
    let known = ["UNet2DConditionModel", "AutoencoderKL", "AutoencoderTiny", "ControlNetModel"];
    known.contains(&class.name.as_str()).then_some(class.name)
}

/// Graph and weights of one component; `arrange` gives the weights the names that the graph knows.
pub(super) fn part(
    name: &'static str,
    folder: &Path,
    variant: Option<&str>,
    graph: Graph,
    arrange: impl FnOnce(Weights) -> Result<Weights, Error>,
) -> Result<Part, Error> {
    let files = weight_files(folder, variant)?;
    let weights = arrange(Weights::open(&files)?)?;
    let origin = files.iter().map(|file| shown(file)).collect::<Vec<_>>().join(", ");
    let config = format!("derived from {}", shown(&folder.join("config.json")));
    Part::new(name, config, origin, graph, Arc::new(weights))
}

pub(super) fn text_encoder(
    name: &'static str,
    folder: &Path,
    tokenizer: &Path,
    variant: Option<&str>,
    family: Family,
    is_last: bool,
) -> Result<TextEncoderPart, Error> {
    let place = folder.join("config.json");
    let config = clip::Config::parse(&shown(&place), &read(&place)?)?;
    let graph = config.graph(family.states(), family.pools() && is_last)?;
    let modern = |weights: Weights| weights.select(checkpoint::text_encoder_names(&weights));
    let part = part(name, folder, variant, graph, modern)?;
    let (vocabulary, special, context) = tokenizer_of(tokenizer, config.max_position_embeddings)?;
    let encoder = TextEncoderPart::new(part, vocabulary, special, context);
    Ok(encoder.derived_from(&config, family.states(), family.pools() && is_last))
}

/// The VAE in a folder: its encoder, its decoder, and how its latents relate to images.
pub(super) fn vae(folder: &Path, variant: Option<&str>) -> Result<(Part, Part, LatentSpace), Error> {
    let place = folder.join("config.json");
    let (encoder, decoder, latents) = vae_graphs(&shown(&place), &read(&place)?)?;
    let modern = |weights: Weights| weights.select(checkpoint::autoencoder_names(&weights));
    let encoder = part("vae_encoder", folder, variant, encoder, modern)?;
    let decoder = part("vae_decoder", folder, variant, decoder, modern)?;
    Ok((encoder, decoder, latents))
}

/// How the latents of a folder's VAE relate to images, where it has a configuration.
pub(super) fn configured_latents(folder: &Path) -> Result<Option<LatentSpace>, Error> {
    let place = folder.join("config.json");
    if !place.is_file() {
        return Ok(None);
    }
    vae_graphs(&shown(&place), &read(&place)?).map(|(_, _, latents)| Some(latents))
}

/// The graphs of a VAE's encoder and decoder, and how its latents relate to images.
fn vae_graphs(place: &str, json: &[u8]) -> Result<(Graph, Graph, LatentSpace), Error> {
    let class: Class = parse_json(place, json)?;
    match class.name.as_str() {
        "AutoencoderTiny" => {
            let config = autoencoder_tiny::Config::parse(place, json)?;
            let latents = LatentSpace {
                channels: config.latent_channels,
                factor_px: config.factor_px(),
                scale: config.scaling_factor,
                shift: config.shift_factor,
                normalised: Vec::new(),
            };
            Ok((config.encoder()?, config.decoder()?, latents))
        }
        "AutoencoderKL" => {
            let config = autoencoder_kl::Config::parse(place, json)?;
            if config.latents_mean.is_some() != config.latents_std.is_some() {
                let got = if config.latents_mean.is_some() { "latents_mean" } else { "latents_std" };
                return Err(Error::new(
                    ErrorKind::Model,
                    format!("{place}: expected latents_mean and latents_std or neither, got {got} alone"),
                ));
            }
            kl_graphs(&config)
        }
        other => Err(Error::new(
            ErrorKind::Model,
            format!("{place}: _class_name: expected AutoencoderKL or AutoencoderTiny, got {other:?}"),
        )),
    }
}

/// The safetensors files of a component: one, or the shards that an index lists; those of `variant` if there are any, then
/// full precision before half.
pub(super) fn weight_files(folder: &Path, variant: Option<&str>) -> Result<Vec<PathBuf>, Error> {
    let asked = variant.map(|variant| format!(".{variant}"));
    for variant in asked.as_deref().into_iter().chain(["", ".fp16"]) {
        for stem in STEMS {
            let single = folder.join(format!("{stem}{variant}.safetensors"));
            if single.is_file() {
                return Ok(vec![single]);
            }
            let indices = [
                format!("{stem}{variant}.safetensors.index.json"),
                format!("{stem}.safetensors.index{variant}.json"),
            ];
            if let Some(index) = indices.map(|name| folder.join(name)).into_iter().find(|path| path.is_file())
            {
                let shards: Shards = parse(&index)?;
                let names: BTreeSet<String> = shards.weight_map.into_values().collect();
                if let Some(name) =
                    names.iter().find(|name| Path::new(name).file_name() != Some(name.as_ref()))
                {
                    return Err(Error::new(
                        ErrorKind::Model,
                        format!(
                            "{}: weight_map: expected names of files beside it, got {name:?}",
                            shown(&index)
                        ),
                    ));
                }
                return Ok(names.into_iter().map(|name| folder.join(name)).collect());
            }
        }
    }
    let names = fs::read_dir(folder).map(|entries| {
        entries.filter_map(Result::ok).map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
    });
    let mut names: Vec<String> = names.unwrap_or_default();
    names.sort();
    let error = Error::new(
        ErrorKind::Model,
        format!(
            "{}: expected {}.safetensors or {}.safetensors, got {}",
            shown(folder),
            STEMS[0],
            STEMS[1],
            if names.is_empty() { "no files".into() } else { names.join(", ") }
        ),
    );
    Err(match names.iter().find(|name| name.ends_with(".bin") || name.ends_with(".ckpt")) {
        Some(name) => error.help(format!(
            "{name} is a PyTorch pickle, which can run code when it is opened: convert it in Python with \
             torch.load(..., weights_only=True) and safetensors.torch.save_file"
        )),
        None => error,
    })
}

/// The tokenizer in a folder, its special tokens, and the length of its prompts.
pub(super) fn tokenizer_of(
    folder: &Path,
    positions: usize,
) -> Result<(Vocabulary, SpecialTokens, usize), Error> {
    let file = |name: &str| read(&folder.join(name)).map(Cow::Owned);
    let has = |name: &str| folder.join(name).is_file();
    let config: TokenizerConfig = match folder.join("tokenizer_config.json") {
        path if path.is_file() => parse(&path)?,
        _ => TokenizerConfig::default(),
    };
    let map: TokenizerConfig = match folder.join("special_tokens_map.json") {
        path if path.is_file() => parse(&path)?,
        _ => TokenizerConfig::default(),
    };
    let vocabulary = if has("tokenizer.json") {
        Vocabulary::Json(file("tokenizer.json")?)
    } else if has("vocab.json") && has("merges.txt") {
        Vocabulary::Merges { vocabulary: file("vocab.json")?, merges: file("merges.txt")? }
    } else {
        return Err(Error::new(
            ErrorKind::Model,
            format!(
                "{}: expected a tokenizer.json, or a vocab.json and a merges.txt, got none",
                shown(folder)
            ),
        ));
    };
    let text = |key: fn(&TokenizerConfig) -> &Option<AddedToken>, default: &'static str| {
        key(&config).as_ref().or(key(&map).as_ref()).map_or(default, AddedToken::text)
    };
    let special = [text(|c| &c.bos_token, BOS), text(|c| &c.eos_token, EOS), text(|c| &c.pad_token, EOS)];
    let ids = vocabulary.ids(special)?;
    let id = |at: usize, role: &str| {
        ids[at].ok_or_else(|| {
            Error::new(
                ErrorKind::Model,
                format!("{}: {role}: expected a token {:?}, got none", shown(folder), special[at]),
            )
        })
    };
    let special =
        SpecialTokens { bos: id(0, "bos_token")?, eos: id(1, "eos_token")?, pad: id(2, "pad_token")? };
    let context =
        config.model_max_length.filter(|length| *length < positions as f64).map_or(positions, |x| x as usize);
    Ok((vocabulary, special, context))
}

/// Rows and columns of the latents that a U-Net was trained on.
pub(super) fn sample_cells(config: &Path) -> Result<Option<[usize; 2]>, Error> {
    #[derive(Deserialize)]
    struct Unet {
        sample_size: Option<Cells>,
    }
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Cells {
        Square(usize),
        Sides([usize; 2]),
    }
    if !config.is_file() {
        return Ok(None);
    }
    let unet: Unet = parse(config)?;
    Ok(unet.sample_size.map(|cells| match cells {
        Cells::Square(side) => [side; 2],
        Cells::Sides(sides) => sides,
    }))
}

pub(super) fn shown(path: &Path) -> String {
    path.display().to_string()
}

/// The scheduler that a `scheduler_config.json` describes.
pub(super) fn scheduler_of(path: &Path) -> Result<Scheduler, Error> {
    Scheduler::parse(&shown(path), &read(path)?)
}

pub(super) fn parse<T: DeserializeOwned>(path: &Path) -> Result<T, Error> {
    parse_json(&shown(path), &read(path)?).map_err(|error| error.in_file(path))
}

fn parse_json<T: DeserializeOwned>(place: &str, json: &[u8]) -> Result<T, Error> {
    let json = json::standard(place, json)?;
    let mut deserializer = serde_json::Deserializer::from_slice(&json);
    let parsed = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
        Error::new(ErrorKind::Model, format!("{place}: {}", error.path())).source(error.into_inner())
    })?;
    deserializer.end().map_err(|error| {
        Error::new(ErrorKind::Model, format!("{place}: expected one value")).source(error)
    })?;
    Ok(parsed)
}

#[derive(Deserialize)]
struct Class {
    #[serde(rename = "_class_name", default)]
    name: String,
}

#[derive(Deserialize)]
struct Shards {
    weight_map: BTreeMap<String, String>,
}

#[derive(Default, Deserialize)]
struct TokenizerConfig {
    bos_token: Option<AddedToken>,
    eos_token: Option<AddedToken>,
    pad_token: Option<AddedToken>,
    /// Some folders say 1e30 here.
    model_max_length: Option<f64>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum AddedToken {
    Text(String),
    Object { content: String },
}

impl AddedToken {
    fn text(&self) -> &str {
        match self {
            Self::Text(text) | Self::Object { content: text } => text,
        }
    }
}
