//! A single-file checkpoint: all networks of a model in one safetensors file, under their original names.
//! It knows what such files leave out; what their tensors mean is the checkpoint's business.

use std::path::Path;

use super::Model;
use super::network::{for_text, kl_graphs, part, text_encoder_part};
use super::replacement::{Replacements, TEXT_ENCODERS, check_widths};
use super::traits::{FewSteps, Traits};
use crate::checkpoint::{self, Checkpoint, UnetFile};
use crate::family::Encoder;
use crate::manifest::LowRes;
use crate::schedule::{ScheduleKind, Spacing};
use crate::weights::Weights;
use crate::{Error, ErrorKind};

/// Where a file's header may say that it draws in few steps, if it follows Stability AI's model metadata standard.
const SAID_OF_STEPS: [&str; 3] = ["modelspec.title", "modelspec.architecture", "modelspec.usage_hint"];
/// Opens the model in a file, with these components in the place of its own.
pub(super) fn open(path: &Path, replacements: &Replacements) -> Result<Model, Error> {
    let place = path.display().to_string();
    let refuse = |problem: String| Error::new(ErrorKind::Model, format!("{place}: {problem}"));
    let weights = checkpoint::with_original_names(Weights::open(&[path])?, &place)?;
    let mut found = checkpoint::recognise(&weights, &place)?;
    if let Some(UnetFile { family, purpose, hint, unet }) = replacements.unet().cloned() {
        found = Checkpoint { family, purpose, hint, unet, ..found };
    }

    let family = found.family;
    let replaced = replacements.text_encoders(family)?;
    let mut text_encoders = Vec::new();
    let has_second = found.text_encoder_2.is_some() || replaced[1].is_some();
    let encoders = [("text_encoder", &found.text_encoder), ("text_encoder_2", &found.text_encoder_2)];
    for ((name, encoder), replaced) in encoders.into_iter().zip(replaced) {
        let is_last = name == "text_encoder_2" || !has_second;
        let own = encoder
            .as_ref()
            .map(|file| text_encoder_part(name, &place, &weights, file, family, family.pools() && is_last));
        text_encoders.extend(replaced.map(Ok).or(own).transpose()?);
    }
    let mut missing = Vec::new();
    let wanted = family.text();
    let has = |wanted: &&Encoder| {
        let name = TEXT_ENCODERS[wanted.position()];
        text_encoders.iter().any(|encoder| encoder.name == name)
    };
    // Another family's U-Net reads other states: that is said once it is there.
    let is_checked = replacements.unet().is_none() || text_encoders.is_empty();
    match wanted.iter().filter(|wanted| is_checked && !has(wanted)).count() {
        0 => {}
        1 if wanted.len() == 2 => missing.push("other text encoder"),
        _ => missing.push(if wanted.len() == 2 { "text encoders" } else { "text encoder" }),
    }
    let vae = match (replacements.vae(), &found.vae) {
        (Some(vae), own) => {
            let latents = match own {
                Some(own) => vae.latents(kl_graphs(&own.config)?.2)?,
                None => vae.latents_of(family),
            };
            Some((vae.encoder.clone(), vae.decoder.clone(), latents))
        }
        (None, None) => None,
        (None, Some(vae)) => {
            let (encoder, decoder, latents) = kl_graphs(&vae.config)?;
            let part = |name, graph| part(name, &place, family, &weights, &vae.names, graph);
            Some((part("vae_encoder", encoder)?, part("vae_decoder", decoder)?, latents))
        }
    };
    if vae.is_none() {
        missing.push("VAE");
    }
    let Some((vae_encoder, vae_decoder, latents)) = vae.filter(|_| missing.is_empty()) else {
        return Err(Error::new(
            ErrorKind::Model,
            format!("{place}: expected a complete checkpoint, got a {family} without its {}", missing.join(" and ")),
        )
        .help(format!(
            "add what is missing with {{text_encoder}} and {{vae}}, or give a complete model with {{model}} and this \
             file with {{unet}}: {place}"
        )));
    };
    // What latents of other numbers of channels are multiplied by, and what is taken from them, no file of weights says.
    let known_channels = family.latents().channels;
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
    let config = for_text(found.unet.config.clone(), &text_encoders);
    let unet = match replacements.unet_part(&text_encoders)? {
        Some(unet) => unet,
        None => part("unet", &place, family, &weights, &found.unet.names, config.graph()?)?,
    };
    if !replacements.is_empty() {
        check_widths(&unet, &text_encoders)?;
    }

    let mut noise = family.noise();
    if config.time_cond_proj_dim.is_some() {
        // Latent consistency models were distilled without an offset.
        noise.spacing = Spacing::Leading { offset: 0 };
    }
    if found.hint.zero_terminal_snr {
        noise = noise.with_zero_terminal_snr();
    }
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
