//! A single-file checkpoint: all networks of a model in one safetensors file, under their original names.
//! It knows what such files leave out; what their tensors mean is the checkpoint's business.

use std::path::Path;
use std::sync::Arc;

use super::diffusers::{MAX_NOISE_LEVEL, Scheduler, for_text, kl_graphs, text_states};
use super::traits::Traits;
use super::{Model, Part, TextEncoderPart, Vocabulary};
use crate::architecture::clip;
use crate::checkpoint::{self, Family};
use crate::graph::Graph;
use crate::manifest::LowRes;
use crate::tokenizer::SpecialTokens;
use crate::weights::Weights;
use crate::{Error, ErrorKind};

/// The marks that CLIP puts around a prompt.
const BOS: u32 = 49406;
const EOS: u32 = 49407;
/// What OpenCLIP's prompts are filled up with: `!`.
const OPEN_CLIP_PAD: u32 = 0;

/// Opens the model in a file.
pub(super) fn open(path: &Path) -> Result<Model, Error> {
    let place = path.display().to_string();
    let refuse = |problem: String| Error::new(ErrorKind::Model, format!("{place}: {problem}"));
    let weights = Weights::open(&[path])?;
    let found = checkpoint::recognise(&weights, &place)?;
    let part = |name: &'static str, names: &checkpoint::Names, graph: Graph| {
        let weights = weights.select(names.clone())?;
        Part::new(name, format!("derived for {}", found.family), place.clone(), graph, Arc::new(weights))
    };

    let is_xl = found.unet.config.added_embedding.is_some();
    let mut text_encoders = Vec::new();
    let encoders = [("text_encoder", &found.text_encoder), ("text_encoder_2", &found.text_encoder_2)];
    for (name, encoder) in encoders {
        let Some(encoder) = encoder else { continue };
        let config = &encoder.config;
        let is_last = name == "text_encoder_2" || found.text_encoder_2.is_none();
        let graph = config.graph(text_states(is_xl), is_xl && is_last)?;
        let pad = if config.hidden_act == clip::Activation::Gelu { OPEN_CLIP_PAD } else { EOS };
        let special = SpecialTokens { bos: BOS, eos: EOS, pad };
        let (part, context) = (part(name, &encoder.names, graph)?, config.max_position_embeddings);
        text_encoders.push(TextEncoderPart::new(part, Vocabulary::Clip, special, context));
    }
    let config = for_text(found.unet.config.clone(), &text_encoders);
    let unet = part("unet", &found.unet.names, config.graph()?)?;
    let missing = |what: &str| {
        refuse(format!("expected a whole checkpoint, got a {} without its {what}", found.family))
            .help(format!("put it into a diffusers folder, as its unet, beside a {what}"))
    };
    if text_encoders.is_empty() {
        return Err(missing("text encoder"));
    }
    let vae = found.vae.as_ref().ok_or_else(|| missing("VAE"))?;
    let (encoder, decoder, latents) = kl_graphs(&vae.config)?;
    let vae_encoder = part("vae_encoder", &vae.names, encoder)?;
    let vae_decoder = part("vae_decoder", &vae.names, decoder)?;

    let is_upscaler = found.family == Family::Upscaler;
    let is_consistent = config.time_cond_proj_dim.is_some();
    let scheduler = match (is_upscaler, is_consistent) {
        (true, _) => Scheduler::upscaler(),
        (_, true) => Scheduler::latent_consistency(),
        _ => Scheduler::stable_diffusion(),
    };
    let scheduler = if found.hint.zero_terminal_snr { scheduler.with_zero_terminal_snr() } else { scheduler };
    let low_res = is_upscaler
        .then(|| LowRes::new(scheduler.betas(&place)?, scheduler.num_train_timesteps, MAX_NOISE_LEVEL));
    let traits = Traits {
        name: path.file_stem().unwrap_or_default().to_string_lossy().into_owned(),
        licence: "NOASSERTION".into(),
        betas: scheduler.betas(&place)?,
        train_timesteps: scheduler.num_train_timesteps,
        spacing: scheduler.spacing(),
        prediction: found.hint.prediction,
        sampler: None,
        schedule: None,
        latents,
        zero_negative: found.family == Family::Sdxl,
        low_res: low_res.transpose()?,
        cells: config.sample_size,
    };
    Model::new(traits.manifest(&unet.signature)?, text_encoders, unet, vae_decoder, Some(vae_encoder))
}
