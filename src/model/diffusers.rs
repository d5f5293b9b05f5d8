//! A diffusers folder: a configuration and safetensors files per component, as `save_pretrained` writes them.
//! It knows the folder's files; what a configuration means is the architectures' business.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::replacement::{Replacements, check_widths};
use super::scheduler::Scheduler;
use super::traits::{FewSteps, Traits};
use super::{Model, Part, TextEncoderPart, Vocabulary, read};
use crate::architecture::clip::States;
use crate::architecture::{autoencoder_kl, autoencoder_tiny, clip, unet};
use crate::checkpoint;
use crate::graph::{Dim, Graph};
use crate::manifest::{LatentSpace, LowRes};
use crate::signature::Role;
use crate::tokenizer::SpecialTokens;
use crate::weights::Weights;
use crate::{Error, ErrorKind, json};

/// The file by which a folder is known for one of these.
pub(super) const INDEX: &str = "model_index.json";
/// Where a folder's models keep their weights, the U-Net and VAE first, then the text encoders.
const STEMS: [&str; 2] = ["diffusion_pytorch_model", "model"];

/// What latents are multiplied by where no configuration says it: Stable Diffusion's, and Stable Diffusion XL's.
pub(super) const SCALE: f64 = 0.18215;
pub(super) const SCALE_XL: f64 = 0.13025;

/// How many folders a message names.
const MAX_NAMED: usize = 12;

/// The most noise on a picture that is enlarged, where an index does not say: diffusers' default.
pub(super) const MAX_NOISE_LEVEL: usize = 350;

/// The marks around a prompt where a tokenizer's files do not name others: CLIP's.
const BOS: &str = "<|startoftext|>";
const EOS: &str = "<|endoftext|>";

/// Whether a folder has a U-Net's configuration and weights.
pub(super) fn has_weights(folder: &Path) -> bool {
    let unet = folder.join("unet");
    let files = fs::read_dir(&unet).into_iter().flatten().filter_map(Result::ok);
    let is_weights = |path: PathBuf| path.extension().is_some_and(|extension| extension == "safetensors");
    unet.join("config.json").exists() && files.map(|file| file.path()).any(is_weights)
}

/// Whether a folder says that it is one.
pub(super) fn is_one(folder: &Path) -> bool {
    folder.join(INDEX).is_file()
}

/// The class of the component that a folder is, if it is one.
pub(super) fn class_of(folder: &Path) -> Option<String> {
    let path = folder.join("config.json");
    let class: Class = if path.is_file() { parse(&path).ok()? } else { return None };
    let known = ["UNet2DConditionModel", "AutoencoderKL", "AutoencoderTiny"];
    known.contains(&class.name.as_str()).then_some(class.name)
}

/// Opens the model in a folder, with these components in the place of its own.
pub(super) fn open(
    folder: &Path,
    variant: Option<&str>,
    replacements: &Replacements,
) -> Result<Model, Error> {
    let index: Index = match folder.join(INDEX) {
        path if path.exists() => parse(&path)?,
        _ => Index::default(),
    };
    check_folders(folder, &index, replacements)?;
    check_variant(folder, variant)?;
    let scheduler = Scheduler::open(&folder.join("scheduler/scheduler_config.json"))?;

    let own = match replacements.unet() {
        Some(file) => file.unet.config.clone(),
        None => {
            let place = folder.join("unet/config.json");
            unet::Config::parse(&shown(&place), &read(&place)?)?
        }
    };
    let is_xl = own.added_embedding.is_some();

    let mut text_encoders = Vec::new();
    let replaced = replacements.text_encoders(is_xl)?;
    let has_second = replaced[1].is_some() || folder.join("text_encoder_2").is_dir();
    let names = [("text_encoder", "tokenizer"), ("text_encoder_2", "tokenizer_2")];
    for ((name, tokenizer), replaced) in names.into_iter().zip(replaced) {
        let (place, tokenizer) = (folder.join(name), folder.join(tokenizer));
        if let Some(mut encoder) = replaced {
            if tokenizer.is_dir() {
                let (vocabulary, special, context) = tokenizer_of(&tokenizer, encoder.context)?;
                encoder = TextEncoderPart { vocabulary, special, context, ..encoder };
            }
            text_encoders.push(encoder);
        } else if place.is_dir() && !index.is_null(name) {
            // Stable Diffusion XL pools the prompt with its last encoder.
            let is_last = name == "text_encoder_2" || !has_second;
            text_encoders.push(text_encoder(name, &place, &tokenizer, variant, is_xl, is_last)?);
        }
    }
    let (vae_encoder, vae_decoder, latents) = match replacements.vae() {
        Some(vae) => {
            let latents = match configured_latents(&folder.join("vae"))? {
                Some(own) => vae.latents(own)?,
                None => vae.latents_of_scale(if is_xl { SCALE_XL } else { SCALE }),
            };
            (vae.encoder.clone(), vae.decoder.clone(), latents)
        }
        None => vae(&folder.join("vae"), variant)?,
    };
    let unet = for_text(own, &text_encoders);
    let part = match replacements.unet_part(&text_encoders)? {
        Some(part) => part,
        None => part("unet", &folder.join("unet"), variant, unet.graph()?, Ok)?,
    };
    if !replacements.is_empty() {
        check_widths(&part, &text_encoders)?;
    }

    let traits = Traits {
        name: folder.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        licence: licence(folder),
        betas: scheduler.betas(),
        train_timesteps: scheduler.train_timesteps(),
        spacing: scheduler.spacing(),
        prediction: replacements.prediction(scheduler.prediction()),
        sampler: scheduler.sampler(),
        schedule: scheduler.schedule(),
        latents,
        zero_negative: index.force_zeros_for_empty_prompt && is_xl,
        low_res: low_res(folder, &index)?,
        cells: unet.sample_size,
        few_steps: FewSteps::of_scheduler(&scheduler).or_else(|| index.few_steps()),
        notes: scheduler.notes().to_vec(),
    };
    let (manifest, notes) = traits.manifest(&part.signature)?;
    let model = Model::new(manifest, text_encoders, part, vae_decoder, Some(vae_encoder))?;
    Ok(Model { notes, ..model })
}

/// Graph and weights of one component; `arrange` gives the weights the names that the graph knows.
fn part(
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

fn text_encoder(
    name: &'static str,
    folder: &Path,
    tokenizer: &Path,
    variant: Option<&str>,
    is_xl: bool,
    is_last: bool,
) -> Result<TextEncoderPart, Error> {
    let place = folder.join("config.json");
    let config = clip::Config::parse(&shown(&place), &read(&place)?)?;
    let graph = config.graph(text_states(is_xl), is_xl && is_last)?;
    let modern = |weights: Weights| weights.select(checkpoint::text_encoder_names(&weights));
    let part = part(name, folder, variant, graph, modern)?;
    let (vocabulary, special, context) = tokenizer_of(tokenizer, config.max_position_embeddings)?;
    let encoder = TextEncoderPart::new(part, vocabulary, special, context);
    Ok(encoder.derived_from(&config, text_states(is_xl), is_xl && is_last))
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
fn configured_latents(folder: &Path) -> Result<Option<LatentSpace>, Error> {
    let place = folder.join("config.json");
    if !place.is_file() {
        return Ok(None);
    }
    vae_graphs(&shown(&place), &read(&place)?).map(|(_, _, latents)| Some(latents))
}

/// The graphs of a VAE's encoder and decoder, and how its latents relate to pictures.
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
            };
            Ok((config.encoder()?, config.decoder()?, latents))
        }
        "AutoencoderKL" => {
            let config = autoencoder_kl::Config::parse(place, json)?;
            if config.latents_mean.is_some() || config.latents_std.is_some() {
                return Err(Error::new(
                    ErrorKind::Model,
                    format!(
                        "{place}: latents_mean: expected one scale for all channels, got one per channel"
                    ),
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

/// The same of the VAEs that single files have.
pub(super) fn kl_graphs(config: &autoencoder_kl::Config) -> Result<(Graph, Graph, LatentSpace), Error> {
    let latents = LatentSpace {
        channels: config.latent_channels,
        factor_px: config.factor_px(),
        scale: config.scaling_factor,
        shift: config.shift_factor.unwrap_or(0.0),
    };
    Ok((config.encoder()?, config.decoder()?, latents))
}

/// Which states a U-Net was trained on: Stable Diffusion XL takes those before the last layer.
pub(super) fn text_states(is_xl: bool) -> States {
    if is_xl { States::Penultimate } else { States::Last }
}

/// A U-Net that takes what these text encoders give.
pub(super) fn for_text(unet: unet::Config, text_encoders: &[TextEncoderPart]) -> unet::Config {
    let pooled = text_encoders.last().and_then(|encoder| encoder.signature().output(Role::Pooled));
    match pooled.map(|port| &port.dims[1]) {
        Some(Dim::Fixed(width)) => unet.for_text(*width),
        _ => unet,
    }
}

/// [`ErrorKind::Model`] when folders are missing, all of which are named.
fn check_folders(folder: &Path, index: &Index, replacements: &Replacements) -> Result<(), Error> {
    let is_there = |name: &str| folder.join(name).is_dir();
    let mut missing = Vec::new();
    if !is_there("scheduler") {
        missing.push("scheduler");
    }
    if !is_there("unet") && replacements.unet().is_none() {
        missing.push("unet");
    }
    if !is_there("vae") && replacements.vae().is_none() {
        missing.push("vae");
    }
    if !replacements.has_text_encoders() {
        let is_lacking =
            |name: &&str| index.entries.contains_key(*name) && !index.is_null(name) && !is_there(name);
        missing.extend(["text_encoder", "text_encoder_2"].into_iter().filter(is_lacking));
        if !is_there("text_encoder") && !is_there("text_encoder_2") && !missing.contains(&"text_encoder") {
            missing.push("text_encoder");
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    let have: BTreeSet<String> = fs::read_dir(folder)
        .into_iter()
        .flatten()
        .filter_map(Result::ok)
        .filter(|entry| entry.path().is_dir())
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    Err(Error::new(
        ErrorKind::Model,
        format!(
            "{}: expected the folders of a diffusers model, but missing are {}; got {}",
            shown(folder),
            missing.join(", "),
            if have.is_empty() { "no folders".into() } else { have.into_iter().take(MAX_NAMED).collect::<Vec<_>>().join(", ") }
        ),
    )
    .help("download the complete model again; components can also come from files: --unet, --vae, --text-encoder FILE"))
}

/// [`ErrorKind::Model`] when no component of a folder has files of this variant.
fn check_variant(folder: &Path, variant: Option<&str>) -> Result<(), Error> {
    let Some(variant) = variant else { return Ok(()) };
    let entries = |folder: &Path| {
        let entries = fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok);
        entries.map(|entry| entry.path()).collect::<Vec<_>>()
    };
    let mut others = BTreeSet::new();
    for path in entries(folder).iter().flat_map(|component| entries(component)) {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if !name.contains(".safetensors") {
            continue;
        }
        let mut parts =
            name.split('.').skip(1).filter(|part| !["safetensors", "index", "json"].contains(part));
        match parts.next() {
            Some(part) if part == variant => return Ok(()),
            Some(part) => others.insert(part.to_owned()),
            None => false,
        };
    }
    let others = others.into_iter().collect::<Vec<_>>().join(", ");
    Err(Error::new(
        ErrorKind::Model,
        format!(
            "{}: expected files of the variant {variant}, got {}",
            shown(folder),
            if others.is_empty() { "none of any variant".into() } else { format!("those of {others}") }
        ),
    )
    .help("omit --variant, or use one that exists"))
}

/// The safetensors files of a component: one, or the shards that an index lists; those of `variant` if there are any, then
/// full precision before half.
fn weight_files(folder: &Path, variant: Option<&str>) -> Result<Vec<PathBuf>, Error> {
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

/// The tokenizer in a folder, its marks, and the length of its prompts.
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
    let marks = [text(|c| &c.bos_token, BOS), text(|c| &c.eos_token, EOS), text(|c| &c.pad_token, EOS)];
    let ids = vocabulary.ids(marks)?;
    let id = |at: usize, role: &str| {
        ids[at].ok_or_else(|| {
            Error::new(
                ErrorKind::Model,
                format!("{}: {role}: expected a token {:?}, got none", shown(folder), marks[at]),
            )
        })
    };
    let special =
        SpecialTokens { bos: id(0, "bos_token")?, eos: id(1, "eos_token")?, pad: id(2, "pad_token")? };
    let context =
        config.model_max_length.filter(|length| *length < positions as f64).map_or(positions, |x| x as usize);
    Ok((vocabulary, special, context))
}

/// How noise gets onto the picture that is enlarged, where the folder has a second scheduler for it.
pub(super) fn low_res(folder: &Path, index: &Index) -> Result<Option<LowRes>, Error> {
    let place = folder.join("low_res_scheduler/scheduler_config.json");
    if !place.is_file() {
        return Ok(None);
    }
    let max_level = index.max_noise_level.unwrap_or(MAX_NOISE_LEVEL);
    let low_res = Scheduler::open(&place)?.low_res(max_level);
    low_res.map(Some).map_err(|error| Error::new(ErrorKind::Model, shown(&place)).source(error))
}

/// The licence that the model's README declares at its head.
pub(super) fn licence(folder: &Path) -> String {
    let readme = read(&folder.join("README.md")).unwrap_or_default();
    let readme = String::from_utf8_lossy(&readme);
    let head = readme.strip_prefix("---\n").and_then(|text| text.split("\n---").next()).unwrap_or_default();
    let licence = head.lines().find_map(|line| line.strip_prefix("license:")).map(str::trim);
    licence.filter(|text| !text.is_empty()).unwrap_or("NOASSERTION").to_owned()
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

fn shown(path: &Path) -> String {
    path.display().to_string()
}

pub(super) fn parse<T: DeserializeOwned>(path: &Path) -> Result<T, Error> {
    parse_json(&shown(path), &read(path)?)
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

#[derive(Default, Deserialize)]
pub(super) struct Index {
    #[serde(default)]
    pub(super) force_zeros_for_empty_prompt: bool,
    /// Of a refiner.
    #[serde(default)]
    pub(super) requires_aesthetics_score: bool,
    /// Of the picture that is enlarged.
    max_noise_level: Option<usize>,
    /// A component's library and class, both null where the model has none.
    #[serde(flatten)]
    entries: BTreeMap<String, Value>,
}

impl Index {
    /// What the place that the folder was made from says of steps.
    pub(super) fn few_steps(&self) -> Option<FewSteps> {
        let origin = self.entries.get("_name_or_path").and_then(Value::as_str)?;
        FewSteps::of_text("model_index.json: _name_or_path", origin)
    }

    fn is_null(&self, component: &str) -> bool {
        match self.entries.get(component) {
            Some(Value::Array(parts)) => parts.iter().all(Value::is_null),
            Some(value) => value.is_null(),
            None => false,
        }
    }
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
