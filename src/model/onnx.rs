//! An ONNX folder: ready-made graphs with weights, in any layout that exporters write, bound by their signatures.
//! It knows which folder holds which component; what an input is for is the signature's business.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;

use super::diffusers::{self, INDEX, Index};
use super::folder::{self, scheduler_of};
use super::traits::{FewSteps, Traits};
use super::{Model, Part, TextEncoderPart, Vocabulary};
use crate::family::{AESTHETIC_TIME_IDS, CONTEXT, Family, special_tokens};
use crate::graph::{Dim, Graph};
use crate::manifest::LatentSpace;
use crate::scheduler::Scheduler;
use crate::signature::Role;
use crate::{Error, ErrorKind};

/// Where exporters put each component, the usual place first; `*` stands for a version and a precision.
const PLACES: [(&str, &[&str]); 5] = [
    ("text_encoder", &["text_encoder", "clip", "clip.*"]),
    ("text_encoder_2", &["text_encoder_2", "clip2", "clip2.*"]),
    ("unet", &["unet", "unetxl", "unet.*", "unetxl.*"]),
    ("vae_encoder", &["vae_encoder", "vae_encoder.*"]),
    ("vae_decoder", &["vae_decoder", "vae", "vae.*"]),
];
/// What ONNX Runtime's demos call the folder around those.
const INNER: &str = "engine";
/// How many files a message names.
const SHOWN: usize = 6;
/// Pixels per latent cell where nothing tells.
const FACTOR_PX: usize = 8;
/// Whether a folder holds a U-Net as an ONNX graph.
pub(super) fn is_one(folder: &Path) -> bool {
    !candidates(folder, "unet").is_empty()
}

/// Opens the model in a folder.
pub(super) fn open(folder: &Path, variant: Option<&str>) -> Result<Model, Error> {
    let index: Index = match folder.join(INDEX) {
        path if path.exists() => folder::parse(&path)?,
        _ => Index::default(),
    };
    if let Some(variant) = variant {
        check_variant(folder, variant)?;
    }
    let mut unet = required(folder, "unet", variant)?;
    if index.requires_aesthetics_score {
        unet.signature.fix_last(Role::TimeIds, AESTHETIC_TIME_IDS);
    }
    let vae_decoder = required(folder, "vae_decoder", variant)?;
    let vae_encoder = part(folder, "vae_encoder", variant)?;
    let family = Family::like(unet.inputs());
    let text_encoders = text_encoders(folder, variant)?;
    let scheduler = match folder.join("scheduler/scheduler_config.json") {
        path if path.exists() => Some(scheduler_of(&path)?),
        _ => None,
    };
    let latents = latent_space(folder, &vae_decoder, family)?;
    let traits = Traits {
        name: folder.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        licence: diffusers::licence(folder),
        family,
        noise: scheduler
            .as_ref()
            .map_or_else(|| family.noise().model(), |scheduler| Ok(scheduler.noise().clone()))?,
        prediction: scheduler.as_ref().map_or_else(|| family.prediction(), Scheduler::prediction),
        sampler: scheduler.as_ref().and_then(Scheduler::method),
        schedule: scheduler.as_ref().and_then(Scheduler::named_schedule),
        latents,
        zero_negative: index.force_zeros_for_empty_prompt && family.pools(),
        low_res: diffusers::low_res(folder, &index, family)?,
        cells: folder::sample_cells(&folder.join("unet/config.json"))?,
        few_steps: scheduler.as_ref().and_then(FewSteps::of_scheduler).or_else(|| index.few_steps()),
        notes: scheduler.map(|scheduler| scheduler.notes().to_vec()).unwrap_or_default(),
    };
    let (manifest, notes) = traits.manifest(&unet.signature)?;
    let model = Model::new(manifest, text_encoders, unet, vae_decoder, vae_encoder)?;
    Ok(Model { notes, ..model })
}

/// [`ErrorKind::Model`] for a variant that no component has.
fn check_variant(folder: &Path, variant: &str) -> Result<(), Error> {
    let files = || PLACES.iter().flat_map(|(name, _)| candidates(folder, name));
    if files().any(|path| is_of(&path, variant)) {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Model,
        format!(
            "{}: expected .onnx files whose names end in {variant}, got none in {} files",
            folder.display(),
            files().count()
        ),
    )
    .help("omit {variant}, or use one that exists"))
}

/// The text encoders with their tokenizers; at least one.
fn text_encoders(folder: &Path, variant: Option<&str>) -> Result<Vec<TextEncoderPart>, Error> {
    let mut text_encoders = Vec::new();
    for (name, tokenizer) in [("text_encoder", "tokenizer"), ("text_encoder_2", "tokenizer_2")] {
        if let Some(part) = part(folder, name, variant)? {
            let tokenizer = folder.join(tokenizer);
            let (vocabulary, special, context) = if tokenizer.is_dir() {
                folder::tokenizer_of(&tokenizer, CONTEXT)?
            } else {
                // A second encoder is OpenCLIP's.
                (Vocabulary::Clip, special_tokens(name == "text_encoder_2"), CONTEXT)
            };
            text_encoders.push(TextEncoderPart::new(part, vocabulary, special, context));
        }
    }
    if text_encoders.is_empty() {
        required(folder, "text_encoder", variant)?;
    }
    Ok(text_encoders)
}

/// How latents relate to images, by the VAE's configuration and graph; what neither says is the family's.
fn latent_space(folder: &Path, vae_decoder: &Part, family: Family) -> Result<LatentSpace, Error> {
    let vae: Vae = match folder.join("vae_decoder/config.json") {
        path if path.exists() => folder::parse(&path)?,
        _ => Vae::default(),
    };
    let latents = vae_decoder.signature.input(Role::Latents).expect("no signature without latents");
    let usual = family.latents();
    let channels = match (&latents.dims[1], vae.latent_channels) {
        (Dim::Fixed(channels), _) => *channels,
        (Dim::Free(_), channels) => channels.unwrap_or(usual.channels),
    };
    if channels != usual.channels && vae.scaling_factor.is_none() {
        return Err(Error::new(
            ErrorKind::Model,
            format!(
                "{}: expected the scale of latents of {channels} channels in vae_decoder/config.json, got none",
                folder.display()
            ),
        )
        .help("copy config.json of the original VAE into vae_decoder"));
    }
    let factor_px =
        vae.block_out_channels.map_or(FACTOR_PX, |blocks| 1 << blocks.len().saturating_sub(1).min(16));
    Ok(LatentSpace {
        channels,
        factor_px: factor_px as u32,
        scale: vae.scaling_factor.unwrap_or(usual.scale),
        shift: vae.shift_factor.unwrap_or(if vae.scaling_factor.is_some() { 0.0 } else { usual.shift }),
        normalised: match (vae.latents_mean, vae.latents_std) {
            (Some(means), Some(deviations)) => {
                means.into_iter().zip(deviations).map(|(mean, deviation)| [mean, deviation]).collect()
            }
            _ => Vec::new(),
        },
    })
}

fn required(folder: &Path, name: &'static str, variant: Option<&str>) -> Result<Part, Error> {
    part(folder, name, variant)?.ok_or_else(|| {
        let places =
            PLACES.iter().find(|(component, _)| *component == name).map_or(&[][..], |(_, places)| places);
        Error::new(
            ErrorKind::Model,
            format!(
                "{}: expected a folder {} with an .onnx file, got none",
                folder.display(),
                places.join(" or ")
            ),
        )
    })
}

fn part(folder: &Path, name: &'static str, variant: Option<&str>) -> Result<Option<Part>, Error> {
    let Some(file) = choose(&candidates(folder, name), variant)? else { return Ok(None) };
    let (graph, weights) = Graph::open(name, &file)?;
    let origin = file.display().to_string();
    Part::new(name, origin, "its own weights".into(), graph, Arc::new(weights)).map(Some)
}

/// The ONNX files of a component, in the first of its usual places that has any.
fn candidates(folder: &Path, name: &str) -> Vec<PathBuf> {
    let Some((_, places)) = PLACES.iter().find(|(component, _)| *component == name) else {
        return Vec::new();
    };
    let roots = [folder.to_owned(), folder.join(INNER)];
    let found = places.iter().flat_map(|place| roots.iter().map(move |root| (root, place))).find_map(
        |(root, place)| match place.strip_suffix('*') {
            None => Some(onnx_files(&root.join(place))).filter(|files| !files.is_empty()),
            Some(prefix) => {
                let starts = |path: &PathBuf| {
                    path.file_name().is_some_and(|n| n.to_string_lossy().starts_with(prefix))
                };
                let folders = sorted(root).into_iter().filter(starts);
                folders.map(|folder| onnx_files(&folder)).find(|files| !files.is_empty())
            }
        },
    );
    found.unwrap_or_default()
}

/// Of the ONNX files in one folder that of the variant asked for, where it has one; else `model.onnx`, or whatever the only
/// one is called.
fn choose(files: &[PathBuf], variant: Option<&str>) -> Result<Option<PathBuf>, Error> {
    let of_variant = |variant| files.iter().filter(|path| is_of(path, variant)).collect::<Vec<_>>();
    if let Some([found]) = variant.map(of_variant).as_deref() {
        return Ok(Some((*found).clone()));
    }
    let plain = files.iter().find(|path| path.ends_with("model.onnx"));
    match (files, plain) {
        ([], _) => Ok(None),
        ([only], _) => Ok(Some(only.clone())),
        (_, Some(plain)) => Ok(Some(plain.clone())),
        ([first, ..], None) => {
            let name = |path: &PathBuf| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let names = files.iter().take(SHOWN).map(name).collect::<Vec<_>>().join(", ");
            let more = if files.len() > SHOWN { ", ..." } else { "" };
            let folder = first.parent().unwrap_or(first).display().to_string();
            Err(Error::new(
                ErrorKind::Model,
                format!(
                    "{folder}: expected one .onnx file or a model.onnx{}, got {}: {names}{more}",
                    variant.map(|variant| format!(" or one of the variant {variant}")).unwrap_or_default(),
                    files.len()
                ),
            )
            .help("choose with {variant}, as in fp16 for model_fp16.onnx"))
        }
    }
}

/// Whether a file's name ends with a variant: `model_fp16.onnx`.
fn is_of(path: &Path, variant: &str) -> bool {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy().to_lowercase();
    let head = stem.strip_suffix(&variant.to_lowercase());
    head.is_some_and(|head| head.is_empty() || head.ends_with(['_', '-', '.']))
}

/// The ONNX files in a folder.
fn onnx_files(folder: &Path) -> Vec<PathBuf> {
    sorted(folder).into_iter().filter(|path| path.extension().is_some_and(|e| e == "onnx")).collect()
}

fn sorted(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten();
    let mut paths: Vec<PathBuf> = entries.filter_map(Result::ok).map(|entry| entry.path()).collect();
    paths.sort();
    paths
}

/// What a VAE's configuration tells beside its graph.
#[derive(Default, Deserialize)]
struct Vae {
    latent_channels: Option<usize>,
    block_out_channels: Option<Vec<usize>>,
    scaling_factor: Option<f64>,
    shift_factor: Option<f64>,
    latents_mean: Option<Vec<f64>>,
    latents_std: Option<Vec<f64>>,
}
