//! Components from files of their own, in the place of those of a model: a U-Net, a VAE or text encoders alone, under their
//! original names or those of diffusers. It knows what such a file leaves out, and takes that from the model.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::folder;
use super::network::{for_text, kl_graphs, part, text_encoder_part};
use super::{Model, Part, TextEncoderPart};
use crate::checkpoint::{self, UnetFile};
use crate::family::{Family, Latents};
use crate::graph::{Dim, Graph, Port};
use crate::manifest::LatentSpace;
use crate::prediction::Prediction;
use crate::signature::Role;
use crate::weights::Weights;
use crate::{Error, ErrorKind};

/// What a model's text encoders are called.
pub(super) const TEXT_ENCODERS: [&str; 2] = ["text_encoder", "text_encoder_2"];

/// Files that take the place of components of a model, and which form of a folder's files is read.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    /// A file with a U-Net.
    pub unet: Option<PathBuf>,
    /// A file with a VAE, or a diffusers folder of one.
    pub vae: Option<PathBuf>,
    /// Files with text encoders. Each takes the place of the encoder of its kind: CLIP's (768 wide) is the first of
    /// Stable Diffusion XL, OpenCLIP's (1280 wide) the second.
    pub text_encoders: Vec<PathBuf>,
    /// The variant of a folder's files, as in `unet/diffusion_pytorch_model.fp16.safetensors` or `unet/model_fp16.onnx`.
    pub variant: Option<String>,
}

/// The opened files of [`Overrides`].
#[derive(Default)]
pub(super) struct Replacements {
    unet: Option<(String, Weights, UnetFile)>,
    vae: Option<VaeParts>,
    text_encoders: Vec<(String, Weights)>,
}

/// A VAE from a file of its own.
#[derive(Clone)]
pub(super) struct VaeParts {
    pub(super) encoder: Part,
    pub(super) decoder: Part,
    latents: LatentSpace,
    /// Whether a configuration tells what its latents are multiplied by; a file of weights does not.
    tells_scale: bool,
}

impl VaeParts {
    pub(super) fn tells_scale(&self) -> bool {
        self.tells_scale
    }

    /// Its latents, for a model whose own VAE has these.
    pub(super) fn latents(&self, own: LatentSpace) -> Result<LatentSpace, Error> {
        check_latents(&self.decoder, &self.latents, &own)?;
        Ok(if self.tells_scale { self.latents.clone() } else { own })
    }

    /// Its latents, for a model of a family that has no VAE of its own.
    pub(super) fn latents_of(&self, family: Family) -> LatentSpace {
        let Latents { scale, shift, .. } = family.latents();
        let latents = self.latents.clone();
        if self.tells_scale { latents } else { LatentSpace { scale, shift, ..latents } }
    }
}

/// `text_encoder` and `text_encoder_2` from files of their own.
pub(super) type Encoders = [Option<TextEncoderPart>; 2];

impl Replacements {
    pub(super) fn open(overrides: &Overrides) -> Result<Self, Error> {
        let mut opened = Self::default();
        if let Some(path) = &overrides.unet {
            let (place, weights) = open(path)?;
            let file = checkpoint::recognise_unet(&weights, &place)?;
            opened.unet = Some((place, weights, file));
        }
        if let Some(path) = &overrides.vae {
            let (encoder, decoder, latents) =
                if path.is_dir() { folder::vae(path, None)? } else { vae(path)? };
            opened.vae = Some(VaeParts { encoder, decoder, latents, tells_scale: path.is_dir() });
        }
        opened.text_encoders =
            overrides.text_encoders.iter().map(|path| open(path)).collect::<Result<_, _>>()?;
        Ok(opened)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.unet.is_none() && self.vae.is_none() && self.text_encoders.is_empty()
    }

    pub(super) fn has_text_encoders(&self) -> bool {
        !self.text_encoders.is_empty()
    }

    pub(super) fn unet(&self) -> Option<&UnetFile> {
        self.unet.as_ref().map(|(_, _, file)| file)
    }

    pub(super) fn vae(&self) -> Option<&VaeParts> {
        self.vae.as_ref()
    }

    /// The text encoders, for a U-Net of this family.
    pub(super) fn text_encoders(&self, family: Family) -> Result<Encoders, Error> {
        let mut encoders = [None, None];
        for (place, weights) in &self.text_encoders {
            let found = checkpoint::recognise_text_encoders(weights, place, family.pools())?;
            for (index, file) in found.iter().enumerate() {
                let Some(file) = file else { continue };
                let name = TEXT_ENCODERS[index];
                let slot: &mut Option<TextEncoderPart> = &mut encoders[index];
                if let Some(earlier) = slot {
                    return Err(Error::new(
                        ErrorKind::Model,
                        format!("{place}: expected one {name}, got another in {}", earlier.weights_origin),
                    ));
                }
                // Where the prompt is pooled, the second encoder does it.
                let is_pooled = family.pools() && index == 1;
                *slot = Some(text_encoder_part(name, place, weights, file, family, is_pooled)?);
            }
        }
        Ok(encoders)
    }

    /// The U-Net, for what these text encoders give.
    pub(super) fn unet_part(&self, text_encoders: &[TextEncoderPart]) -> Result<Option<Part>, Error> {
        let Some((place, weights, file)) = &self.unet else { return Ok(None) };
        check_width(place, file.unet.config.cross_attention_dim, text_encoders)?;
        let config = for_text(file.unet.config.clone(), text_encoders);
        let part = part("unet", place, file.family, weights, &file.unet.names, config.graph()?)?;
        Ok(Some(part.derived_from(config)))
    }

    /// What a model predicts with this U-Net, `own` where its file does not say.
    pub(super) fn prediction(&self, own: Prediction) -> Prediction {
        // What a file says of itself is said of a network that was trained on a curve.
        if matches!(own, Prediction::Flow | Prediction::Edm { .. } | Prediction::EdmV { .. }) {
            return own;
        }
        match self.unet() {
            // A file that does not say so may still hold velocities; one of SD 2 tells it by its weights.
            Some(file) if file.hint.prediction == Prediction::V || file.family.tells_prediction() => {
                file.hint.prediction
            }
            _ => own,
        }
    }

    /// A whole model with these components in the place of its own.
    pub(super) fn put_into(&self, model: Model) -> Result<Model, Error> {
        let Model { mut manifest, mut text_encoders, mut unet, mut vae_decoder, mut vae_encoder, .. } = model;
        let family = self.unet().map_or_else(|| Family::like(unet.inputs()), |file| file.family);
        for new in self.text_encoders(family)?.into_iter().flatten() {
            let Some(old) = text_encoders.iter_mut().find(|encoder| encoder.name == new.name) else {
                return Err(Error::new(
                    ErrorKind::Model,
                    format!(
                        "{}: expected an encoder that the model has, got its {}",
                        new.weights_origin, new.name
                    ),
                ));
            };
            *old = new.with_tokenizer_of(old);
        }
        if let Some(new) = self.unet_part(&text_encoders)? {
            unet = new;
            manifest.prediction = self.prediction(manifest.prediction);
        }
        if let Some(vae) = self.vae() {
            manifest.latents = vae.latents(manifest.latents)?;
            (vae_encoder, vae_decoder) = (Some(vae.encoder.clone()), vae.decoder.clone());
        }
        check_widths(&unet, &text_encoders)?;
        Model::new(manifest, text_encoders, unet, vae_decoder, vae_encoder)
    }
}

/// [`ErrorKind::Model`] for a VAE whose latents have other sizes than those of the model.
fn check_latents(vae: &Part, got: &LatentSpace, own: &LatentSpace) -> Result<(), Error> {
    if (got.channels, got.factor_px) == (own.channels, own.factor_px) {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Model,
        format!(
            "{}: expected a VAE of {} latent channels and {} pixels per cell, as the model's own, got {} and {}",
            vae.weights_origin, own.channels, own.factor_px, got.channels, got.factor_px
        ),
    ))
}

/// [`ErrorKind::Model`] when a U-Net reads states of another width than the encoders give.
pub(super) fn check_widths(unet: &Part, text_encoders: &[TextEncoderPart]) -> Result<(), Error> {
    match width(unet.signature.input(Role::States)) {
        Some(wanted) => check_width(&unet.weights_origin, wanted, text_encoders),
        None => Ok(()),
    }
}

fn check_width(unet: &str, wanted: usize, text_encoders: &[TextEncoderPart]) -> Result<(), Error> {
    let states = |encoder: &TextEncoderPart| {
        let signature = encoder.signature();
        width(signature.output(Role::PenultimateStates).or(signature.output(Role::States)))
    };
    match text_encoders.iter().map(states).collect::<Option<Vec<usize>>>() {
        Some(widths) if widths.iter().sum::<usize>() != wanted => Err(Error::new(
            ErrorKind::Model,
            format!("{unet}: expected text encoders whose states are {wanted} wide together, got {widths:?}"),
        )
        .help("U-Net and text encoders must be of the same family; give the others with {text_encoder}")),
        _ => Ok(()),
    }
}

/// The size of the last dimension, where it is fixed.
fn width(port: Option<&Port>) -> Option<usize> {
    match port?.dims.last() {
        Some(Dim::Fixed(width)) => Some(*width),
        _ => None,
    }
}

fn open(path: &Path) -> Result<(String, Weights), Error> {
    let place = path.display().to_string();
    let weights = checkpoint::with_original_names(Weights::open(&[path])?, &place);
    let weights = weights.map_err(|error| error.in_file(path))?;
    Ok((place, weights))
}

fn vae(path: &Path) -> Result<(Part, Part, LatentSpace), Error> {
    let (place, weights) = open(path)?;
    let found = checkpoint::recognise_autoencoder(&weights, &place)?;
    let (encoder, decoder, latents) = kl_graphs(&found.config)?;
    let part = |name: &'static str, graph: Graph| {
        let weights = Arc::new(weights.select(found.names.clone())?);
        Part::new(name, "derived for the VAE".into(), place.clone(), graph, weights)
    };
    Ok((part("vae_encoder", encoder)?, part("vae_decoder", decoder)?, latents))
}
