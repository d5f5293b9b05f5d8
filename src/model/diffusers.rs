//! A diffusers folder: a configuration and safetensors files per component, as `save_pretrained` writes them.
//! It knows the folder's files; what a configuration means is the architectures' business.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;

use super::folder::{configured_latents, parse, part, scheduler_of, shown, text_encoder, tokenizer_of, vae};
use super::network::for_text;
use super::replacement::{Replacements, check_widths};
use super::traits::{FewSteps, Traits};
use super::{Model, TextEncoderPart, read};
use crate::architecture::unet;
use crate::family::{Family, Inputs};
use crate::manifest::LowRes;
use crate::noise_model::NoiseModel;
use crate::{Error, ErrorKind};

/// The file by which a folder is known for one of these.
pub(super) const INDEX: &str = "model_index.json";
/// How many folders a message names.
const MAX_NAMED: usize = 12;

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
    check_folders(folder, &index, replacements)?;
    check_variant(folder, variant)?;
    let scheduler = scheduler_of(&folder.join("scheduler/scheduler_config.json"))?;

    let own = match replacements.unet() {
        Some(file) => file.unet.config.clone(),
        None => {
            let place = folder.join("unet/config.json");
            unet::Config::parse(&shown(&place), &read(&place)?)?
        }
    };
    let family = Family::like(Inputs::of(&own));

    let mut text_encoders = Vec::new();
    let replaced = replacements.text_encoders(family)?;
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
            // Where the prompt is pooled, the last encoder does it.
            let is_last = name == "text_encoder_2" || !has_second;
            text_encoders.push(text_encoder(name, &place, &tokenizer, variant, family, is_last)?);
        }
    }
    let (vae_encoder, vae_decoder, latents) = match replacements.vae() {
        Some(vae) => {
            let latents = match configured_latents(&folder.join("vae"))? {
                Some(own) => vae.latents(own)?,
                None => vae.latents_of(family),
            };
            (vae.encoder.clone(), vae.decoder.clone(), latents)
        }
        None => vae(&folder.join("vae"), variant)?,
    };
    let unet = for_text(own, &text_encoders);
    let part = match replacements.unet_part(&text_encoders)? {
        Some(part) => part,
        None => {
            let part = part("unet", &folder.join("unet"), variant, unet.graph()?, Ok)?;
            part.derived_from(unet.clone())
        }
    };
    if !replacements.is_empty() {
        check_widths(&part, &text_encoders)?;
    }

    let traits = Traits {
        name: folder.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        licence: licence(folder),
        family,
        noise: scheduler.noise().clone(),
        prediction: replacements.prediction(scheduler.prediction()),
        sampler: scheduler.method(),
        schedule: scheduler.named_schedule(),
        latents,
        zero_negative: index.force_zeros_for_empty_prompt && family.pools(),
        low_res: low_res(folder, &index, family)?,
        cells: unet.sample_size,
        few_steps: FewSteps::of_scheduler(&scheduler).or_else(|| index.few_steps()),
        notes: scheduler.notes().to_vec(),
    };
    let (manifest, notes) = traits.manifest(&part.signature)?;
    let model = Model::new(manifest, text_encoders, part, vae_decoder, Some(vae_encoder))?;
    Ok(Model { notes, ..model })
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
    .help("download the complete model again; components can also come from files: {unet}, {vae}, {text_encoder}"))
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
    .help("omit {variant}, or use one that exists"))
}

/// How noise gets onto the image that is enlarged, where the folder has a second scheduler for it.
pub(super) fn low_res(folder: &Path, index: &Index, family: Family) -> Result<Option<LowRes>, Error> {
    let place = folder.join("low_res_scheduler/scheduler_config.json");
    if !place.is_file() {
        return Ok(None);
    }
    let max_level = index.max_noise_level.or(family.max_noise_level()).unwrap_or_default();
    let scheduler = scheduler_of(&place)?;
    let low_res = match scheduler.noise() {
        NoiseModel::Discrete(discrete) => {
            LowRes::new(discrete.betas().clone(), discrete.curve().len(), max_level)
        }
        _ => Err(Error::new(
            ErrorKind::Model,
            format!("_class_name: expected a scheduler of a curve of betas, got {}", scheduler.class()),
        )),
    };
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

#[derive(Default, Deserialize)]
pub(super) struct Index {
    #[serde(default)]
    pub(super) force_zeros_for_empty_prompt: bool,
    /// Of a refiner.
    #[serde(default)]
    pub(super) requires_aesthetics_score: bool,
    /// Of the image that is enlarged.
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
