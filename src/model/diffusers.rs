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
use super::traits::Traits;
use super::{Model, Part, TextEncoderPart, Vocabulary, read};
use crate::architecture::clip::States;
use crate::architecture::{autoencoder_kl, autoencoder_tiny, clip, unet};
use crate::checkpoint;
use crate::graph::{Dim, Graph};
use crate::manifest::{LatentSpace, LowRes};
use crate::prediction::Prediction;
use crate::sampler::{Method, SamplerKind};
use crate::schedule::{Betas, ScheduleKind, Spacing};
use crate::signature::Role;
use crate::tokenizer::SpecialTokens;
use crate::weights::Weights;
use crate::{Error, ErrorKind};

/// The file by which a folder is known for one of these.
pub(super) const INDEX: &str = "model_index.json";
/// Where a folder's models keep their weights, the U-Net and VAE first, then the text encoders.
const STEMS: [&str; 2] = ["diffusion_pytorch_model", "model"];

/// What latents are multiplied by where no configuration says it: Stable Diffusion's, and Stable Diffusion XL's.
pub(super) const SCALE: f64 = 0.18215;
pub(super) const SCALE_XL: f64 = 0.13025;

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
    check_variant(folder, variant)?;
    let scheduler: Scheduler = parse(&folder.join("scheduler/scheduler_config.json"))?;

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
                encoder = TextEncoderPart::new(encoder.part, vocabulary, special, context);
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
        betas: scheduler.betas(&shown(&folder.join("scheduler/scheduler_config.json")))?,
        train_timesteps: scheduler.num_train_timesteps,
        spacing: scheduler.spacing(),
        prediction: replacements.prediction(scheduler.prediction()),
        sampler: scheduler.sampler(),
        schedule: scheduler.schedule(),
        latents,
        zero_negative: index.force_zeros_for_empty_prompt && is_xl,
        low_res: low_res(folder, &index)?,
        cells: unet.sample_size,
    };
    Model::new(traits.manifest(&part.signature)?, text_encoders, part, vae_decoder, Some(vae_encoder))
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
    Ok(TextEncoderPart::new(part, vocabulary, special, context))
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
    .help("leave out --variant, or name one that is there"))
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
    let scheduler: Scheduler = parse(&place)?;
    let max_level = index.max_noise_level.unwrap_or(MAX_NOISE_LEVEL);
    let low_res = LowRes::new(scheduler.betas(&shown(&place))?, scheduler.num_train_timesteps, max_level);
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
    let mut deserializer = serde_json::Deserializer::from_slice(json);
    serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
        Error::new(ErrorKind::Model, format!("{place}: {}", error.path())).source(error.into_inner())
    })
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

/// `scheduler_config.json`, with diffusers' defaults.
#[derive(Deserialize)]
#[serde(default)]
pub(super) struct Scheduler {
    #[serde(rename = "_class_name")]
    class: String,
    pub(super) num_train_timesteps: usize,
    beta_start: f64,
    beta_end: f64,
    beta_schedule: String,
    trained_betas: Option<Vec<f32>>,
    rescale_betas_zero_snr: bool,
    prediction_type: String,
    timestep_spacing: Option<String>,
    steps_offset: u32,
    use_karras_sigmas: Option<bool>,
    use_exponential_sigmas: Option<bool>,
    use_beta_sigmas: Option<bool>,
    algorithm_type: Option<String>,
    solver_order: Option<usize>,
    solver_type: Option<String>,
}

impl Default for Scheduler {
    fn default() -> Self {
        Self {
            class: String::new(),
            num_train_timesteps: 1000,
            beta_start: 0.0001,
            beta_end: 0.02,
            beta_schedule: "linear".into(),
            trained_betas: None,
            rescale_betas_zero_snr: false,
            prediction_type: "epsilon".into(),
            timestep_spacing: None,
            steps_offset: 0,
            use_karras_sigmas: None,
            use_exponential_sigmas: None,
            use_beta_sigmas: None,
            algorithm_type: None,
            solver_order: None,
            solver_type: None,
        }
    }
}

impl Scheduler {
    /// What latent consistency models were distilled with.
    pub(super) fn latent_consistency() -> Self {
        Self { class: "LCMScheduler".into(), steps_offset: 0, ..Self::stable_diffusion() }
    }

    /// What the x4 upscaler was trained on.
    pub(super) fn upscaler() -> Self {
        Self { beta_start: 0.0001, beta_end: 0.02, ..Self::stable_diffusion() }
    }

    /// What Stable Diffusion was trained on.
    pub(super) fn stable_diffusion() -> Self {
        Self {
            beta_start: 0.00085,
            beta_end: 0.012,
            beta_schedule: "scaled_linear".into(),
            timestep_spacing: Some("leading".into()),
            steps_offset: 1,
            ..Self::default()
        }
    }

    /// The same of a model that was trained down to noise alone.
    pub(super) fn with_zero_terminal_snr(self) -> Self {
        Self { rescale_betas_zero_snr: true, timestep_spacing: None, ..self }
    }

    pub(super) fn betas(&self, place: &str) -> Result<Betas, Error> {
        let refuse = |problem: String| Err(Error::new(ErrorKind::Model, format!("{place}: {problem}")));
        if !["epsilon", "v_prediction", "sample"].contains(&self.prediction_type.as_str()) {
            return refuse(format!(
                "prediction_type: expected epsilon, v_prediction or sample, got {}",
                self.prediction_type
            ));
        }
        if let Some(other) = self
            .timestep_spacing
            .as_deref()
            .filter(|name| !["leading", "linspace", "trailing"].contains(name))
        {
            return refuse(format!("timestep_spacing: expected leading, linspace or trailing, got {other}"));
        }
        let (start, end) = (self.beta_start, self.beta_end);
        let betas = match (&self.trained_betas, self.beta_schedule.as_str()) {
            (Some(list), _) => Betas::Trained(list.clone()),
            (None, "linear") => Betas::Linear { start, end },
            (None, "scaled_linear") => Betas::ScaledLinear { start, end },
            (None, "squaredcos_cap_v2") => Betas::SquaredCosCapV2,
            (None, "sigmoid") => Betas::Sigmoid { start, end },
            (None, other) => {
                return refuse(format!(
                    "beta_schedule: expected linear, scaled_linear, squaredcos_cap_v2 or sigmoid, got {other}"
                ));
            }
        };
        let is_rescaled = self.rescale_betas_zero_snr;
        Ok(if is_rescaled { Betas::ZeroTerminalSnr(Box::new(betas)) } else { betas })
    }

    /// As diffusers' classes default where the file says nothing; but a model that was trained down to noise alone starts
    /// from there (Lin et al. 2024, section 3.3), which the other spacings are not sure to.
    pub(super) fn spacing(&self) -> Spacing {
        let leading = Spacing::Leading { offset: self.steps_offset };
        match self.timestep_spacing.as_deref() {
            Some("linspace") => Spacing::Linspace,
            Some("trailing") => Spacing::Trailing,
            Some(_) => leading,
            None if self.rescale_betas_zero_snr => Spacing::Trailing,
            None => match self.class.as_str() {
                "DDIMScheduler" | "PNDMScheduler" | "DDPMScheduler" | "LCMScheduler" => leading,
                _ => Spacing::Linspace,
            },
        }
    }

    pub(super) fn prediction(&self) -> Prediction {
        match self.prediction_type.as_str() {
            "v_prediction" => Prediction::V,
            "sample" => Prediction::Sample,
            _ => Prediction::Epsilon,
        }
    }

    /// The levels that the scheduler names, where these are not evenly spaced timesteps; diffusers, too, takes the first
    /// that is named.
    pub(super) fn schedule(&self) -> Option<ScheduleKind> {
        let named = [
            (self.use_karras_sigmas, "karras"),
            (self.use_exponential_sigmas, "exponential"),
            (self.use_beta_sigmas, "beta"),
        ];
        let (_, name) = named.into_iter().find(|(is_used, _)| *is_used == Some(true))?;
        Some(name.parse().expect("the name of a schedule"))
    }

    /// The scheduler's own method, where calotype has it. PNDM does not count: it is what Stable Diffusion's folders name
    /// because it came first, and takes 50 steps to what others do in 20.
    pub(super) fn sampler(&self) -> Option<Method> {
        let kind: SamplerKind = self.class.parse().ok().filter(|kind| *kind != SamplerKind::Pndm)?;
        let algorithm = self.algorithm_type.as_deref().unwrap_or("dpmsolver++");
        let name = match (kind, algorithm) {
            (SamplerKind::DpmPp2m, "dpmsolver") => "dpm-solver".into(),
            (SamplerKind::DpmPp2m, "sde-dpmsolver") => "sde-dpm-solver".into(),
            (SamplerKind::DpmPp2m, "sde-dpmsolver++") => "dpm++2m-sde".into(),
            (SamplerKind::DpmPp2s, "dpmsolver") => "dpm-solver-s".into(),
            _ => kind.to_string(),
        };
        let order = self.solver_order.map(|order| format!("order={order}"));
        let solver = self.solver_type.as_ref().map(|solver| format!("solver={solver}"));
        // What a class is given and does not have, it ignores, too.
        let settings = order.into_iter().chain(solver);
        let method = settings.fold(name, |method, setting| {
            let longer = format!("{method}{}{setting}", if method.contains(':') { ',' } else { ':' });
            if longer.parse::<Method>().is_ok() { longer } else { method }
        });
        method.parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scheduler(json: &str) -> Scheduler {
        parse_json("scheduler_config.json", json.as_bytes()).unwrap()
    }

    fn betas(json: &str) -> Betas {
        scheduler(json).betas("scheduler_config.json").unwrap()
    }

    #[test]
    fn betas_of_scheduler_configs() {
        assert_eq!(betas("{}"), Betas::Linear { start: 0.0001, end: 0.02 });
        assert_eq!(
            betas(r#"{"beta_schedule": "sigmoid", "beta_end": 0.5}"#),
            Betas::Sigmoid { start: 0.0001, end: 0.5 }
        );
        assert_eq!(
            betas(r#"{"beta_schedule": "scaled_linear", "trained_betas": [0.1, 0.2]}"#),
            Betas::Trained(vec![0.1, 0.2])
        );
        assert_eq!(
            betas(r#"{"trained_betas": null, "rescale_betas_zero_snr": true}"#),
            Betas::ZeroTerminalSnr(Box::new(Betas::Linear { start: 0.0001, end: 0.02 }))
        );
        let error = scheduler(r#"{"beta_schedule": "cosine"}"#).betas("x").expect_err("cosine");
        assert_eq!(error.kind(), ErrorKind::Model);
        assert!(error.to_string().contains("squaredcos_cap_v2 or sigmoid, got cosine"), "{error}");
    }

    #[test]
    fn models_trained_down_to_noise_start_from_it() {
        let zero = r#"{"_class_name": "EulerDiscreteScheduler", "rescale_betas_zero_snr": true"#;
        assert_eq!(scheduler(&format!("{zero}}}")).spacing(), Spacing::Trailing);
        let said = format!(r#"{zero}, "timestep_spacing": "leading", "steps_offset": 1}}"#);
        assert_eq!(scheduler(&said).spacing(), Spacing::Leading { offset: 1 });
        let stable_diffusion = Scheduler::stable_diffusion();
        let plain = stable_diffusion.betas("x").unwrap();
        assert_eq!(stable_diffusion.spacing(), Spacing::Leading { offset: 1 });
        let rescaled = stable_diffusion.with_zero_terminal_snr();
        assert_eq!(rescaled.betas("x").unwrap(), Betas::ZeroTerminalSnr(Box::new(plain)));
        assert_eq!(rescaled.spacing(), Spacing::Trailing);
    }

    #[test]
    fn schedules_of_scheduler_configs() {
        for (json, name) in [
            (r#"{"use_karras_sigmas": true, "use_beta_sigmas": false}"#, Some("karras")),
            (r#"{"use_exponential_sigmas": true}"#, Some("exponential")),
            (r#"{"use_karras_sigmas": false, "use_beta_sigmas": true}"#, Some("beta")),
            (r#"{"use_karras_sigmas": null}"#, None),
            ("{}", None),
        ] {
            let schedule = scheduler(json).schedule().map(|kind| kind.to_string());
            assert_eq!(schedule.as_deref(), name, "{json}");
        }
    }
}
