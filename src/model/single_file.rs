//! A single-file checkpoint: all networks of a model in one safetensors file, under their original names.
//! It knows what such files leave out; what their tensors mean is the checkpoint's business.

use std::path::Path;

use super::network::{for_text, kl_graphs, part, text_encoder_part};
use super::replacement::{Replacements, TEXT_ENCODERS, check_widths};
use super::traits::{FewSteps, Traits};
use super::{Model, Part, TextEncoderPart};
use crate::checkpoint::{self, Checkpoint, UnetFile};
use crate::family::{Encoder, Family, Noise};
use crate::manifest::{LatentSpace, LowRes};
use crate::schedule::{ScheduleKind, Spacing};
use crate::weights::Weights;
use crate::{Error, ErrorKind};

/// Where a file's header may say that it draws in few steps, if it follows Stability AI's model metadata standard.
const SAID_OF_STEPS: [&str; 3] = ["modelspec.title", "modelspec.architecture", "modelspec.usage_hint"];
/// Opens the model in a file, with these components in the place of its own.
pub(super) fn open(path: &Path, replacements: &Replacements) -> Result<Model, Error> {
    let place = path.display().to_string();
    let weights = checkpoint::with_original_names(Weights::open(&[path])?, &place)?;
    let mut found = checkpoint::recognise(&weights, &place)?;
    if let Some(UnetFile { family, purpose, hint, unet }) = replacements.unet().cloned() {
        found = Checkpoint { family, purpose, hint, unet, ..found };
    }

    let family = found.family;
    let text_encoders = text_encoders(&found, replacements, &weights, &place)?;
    let vae = vae(&found, replacements, &weights, &place)?;
    let mut missing = Vec::from_iter(missing_encoders(family, replacements, &text_encoders));
    if vae.is_none() {
        missing.push("VAE");
    }
    let Some((vae_encoder, vae_decoder, latents)) = vae.filter(|_| missing.is_empty()) else {
        return Err(incomplete(&place, family, &missing));
    };
    check_latents(&latents, &found, replacements, &place)?;
    let config = for_text(found.unet.config.clone(), &text_encoders);
    let unet = match replacements.unet_part(&text_encoders)? {
        Some(unet) => unet,
        None => {
            let part = part("unet", &place, family, &weights, &found.unet.names, config.graph()?)?;
            part.derived_from(config.clone())
        }
    };
    if !replacements.is_empty() {
        check_widths(&unet, &text_encoders)?;
    }

    let noise = noise(&found, config.time_cond_proj_dim.is_some());
    let low_res = family
        .max_noise_level()
        .map(|level| LowRes::new(noise.betas.clone(), noise.train_timesteps, level))
        .transpose()?;
    let few_steps = SAID_OF_STEPS.iter().find_map(|key| FewSteps::of_text(key, weights.metadata(key)?));
    let traits = Traits {
        name: path.file_stem().unwrap_or_default().to_string_lossy().into_owned(),
        licence: "NOASSERTION".into(),
        family,
        noise: noise.model()?,
        prediction: found.hint.prediction,
        sampler: None,
        schedule: found.hint.zero_terminal_snr.then_some(ScheduleKind::Spaced(Spacing::Trailing)),
        latents,
        zero_negative: family.zero_negative(),
        low_res,
        cells: config.sample_size,
        few_steps,
        notes: found.hint.notes.iter().map(|note| format!("{place}: {note}")).collect(),
    };
    let (manifest, notes) = traits.manifest(&unet.signature)?;
    let model = Model::new(manifest, text_encoders, unet, vae_decoder, Some(vae_encoder))?;
    Ok(Model { notes, ..model })
}

/// The file's text encoders, and those in their place.
fn text_encoders(
    found: &Checkpoint,
    replacements: &Replacements,
    weights: &Weights,
    place: &str,
) -> Result<Vec<TextEncoderPart>, Error> {
    let family = found.family;
    let replaced = replacements.text_encoders(family)?;
    let has_second = found.text_encoder_2.is_some() || replaced[1].is_some();
    let encoders = [("text_encoder", &found.text_encoder), ("text_encoder_2", &found.text_encoder_2)];
    let mut text_encoders = Vec::new();
    for ((name, encoder), replaced) in encoders.into_iter().zip(replaced) {
        let is_last = name == "text_encoder_2" || !has_second;
        let own = encoder
            .as_ref()
            .map(|file| text_encoder_part(name, place, weights, file, family, family.pools() && is_last));
        text_encoders.extend(replaced.map(Ok).or(own).transpose()?);
    }
    Ok(text_encoders)
}

/// What a message calls the text encoders that are missing, if some are.
fn missing_encoders(
    family: Family,
    replacements: &Replacements,
    text_encoders: &[TextEncoderPart],
) -> Option<&'static str> {
    let wanted = family.text();
    let has = |wanted: &&Encoder| {
        let name = TEXT_ENCODERS[wanted.position()];
        text_encoders.iter().any(|encoder| encoder.name == name)
    };
    // Another family's U-Net reads other states: that is said once it is there.
    let is_checked = replacements.unet().is_none() || text_encoders.is_empty();
    match wanted.iter().filter(|wanted| is_checked && !has(wanted)).count() {
        0 => None,
        1 if wanted.len() == 2 => Some("other text encoder"),
        _ if wanted.len() == 2 => Some("text encoders"),
        _ => Some("text encoder"),
    }
}

/// Encoder, decoder and latents of the file's VAE, or of the one in its place.
fn vae(
    found: &Checkpoint,
    replacements: &Replacements,
    weights: &Weights,
    place: &str,
) -> Result<Option<(Part, Part, LatentSpace)>, Error> {
    match (replacements.vae(), &found.vae) {
        (Some(vae), own) => {
            let latents = match own {
                Some(own) => vae.latents(kl_graphs(&own.config)?.2)?,
                None => vae.latents_of(found.family),
            };
            Ok(Some((vae.encoder.clone(), vae.decoder.clone(), latents)))
        }
        (None, None) => Ok(None),
        (None, Some(vae)) => {
            let (encoder, decoder, latents) = kl_graphs(&vae.config)?;
            let part = |name, graph| part(name, place, found.family, weights, &vae.names, graph);
            Ok(Some((part("vae_encoder", encoder)?, part("vae_decoder", decoder)?, latents)))
        }
    }
}

fn incomplete(place: &str, family: Family, missing: &[&str]) -> Error {
    Error::new(
        ErrorKind::Model,
        format!("{place}: expected a complete checkpoint, got a {family} without its {}", missing.join(" and ")),
    )
    .help(format!(
        "add what is missing with {{text_encoder}} and {{vae}}, or give a complete model with {{model}} and this \
         file with {{unet}}: {place}"
    ))
}

/// [`ErrorKind::Model`] for latents whose scale is not known, and for those of another U-Net.
fn check_latents(
    latents: &LatentSpace,
    found: &Checkpoint,
    replacements: &Replacements,
    place: &str,
) -> Result<(), Error> {
    let refuse = |problem: String| Error::new(ErrorKind::Model, format!("{place}: {problem}"));
    // What latents of other numbers of channels are multiplied by, and what is taken from them, no file of weights says.
    let known_channels = found.family.latents().channels;
    if latents.channels != known_channels && replacements.vae().is_none_or(|vae| !vae.tells_scale()) {
        return Err(refuse(format!(
            "expected latents of {known_channels} channels, got {}, whose scale and shift a single file does not contain",
            latents.channels
        ))
        .help("give the model as a diffusers folder, or its VAE as one with {vae}, where vae/config.json says both"));
    }
    if latents.channels != found.unet.config.out_channels {
        return Err(refuse(format!(
            "expected a VAE of {} latent channels, which the U-Net predicts, got one of {}",
            found.unet.config.out_channels, latents.channels
        )));
    }
    Ok(())
}

/// The noise that the U-Net was trained on.
fn noise(found: &Checkpoint, is_distilled: bool) -> Noise {
    let mut noise = found.family.noise();
    if is_distilled {
        // Latent consistency models were distilled without an offset.
        noise.spacing = Spacing::Leading { offset: 0 };
    }
    if found.hint.zero_terminal_snr {
        noise = noise.with_zero_terminal_snr();
    }
    noise
}
