//! Networks whose graphs are derived from a configuration, with the weights of a file: what folders, single files and
//! replacements have in common. It knows nothing of where the configurations come from.

use std::sync::Arc;

use super::{Part, TextEncoderPart, Vocabulary};
use crate::Error;
use crate::architecture::{autoencoder_kl, clip, unet};
use crate::checkpoint::{self, Names};
use crate::family::{Family, special_tokens};
use crate::graph::{Dim, Graph};
use crate::manifest::LatentSpace;
use crate::signature::Role;
use crate::weights::Weights;

/// A network of a single file under these names.
pub(super) fn part(
    name: &'static str,
    place: &str,
    family: Family,
    weights: &Weights,
    names: &Names,
    graph: Graph,
) -> Result<Part, Error> {
    let weights = Arc::new(weights.select(names.clone())?);
    Part::new(name, format!("derived for {family}"), place.to_owned(), graph, weights)
}

/// A text encoder of a file; `is_pooled`: whether it pools the prompt.
pub(super) fn text_encoder_part(
    name: &'static str,
    place: &str,
    weights: &Weights,
    file: &checkpoint::Part<clip::Config>,
    family: Family,
    is_pooled: bool,
) -> Result<TextEncoderPart, Error> {
    let config = &file.config;
    let graph = config.graph(family.states(), is_pooled)?;
    let special = special_tokens(config.hidden_act == clip::Activation::Gelu);
    let weights = Arc::new(weights.select(file.names.clone())?);
    let part = Part::new(name, "derived for CLIP".into(), place.to_owned(), graph, weights)?;
    let encoder = TextEncoderPart::new(part, Vocabulary::Clip, special, config.max_position_embeddings);
    Ok(encoder.derived_from(config, family.states(), is_pooled))
}

/// The graphs of a KL autoencoder's encoder and decoder, and how its latents relate to images.
pub(super) fn kl_graphs(config: &autoencoder_kl::Config) -> Result<(Graph, Graph, LatentSpace), Error> {
    let latents = LatentSpace {
        channels: config.latent_channels,
        factor_px: config.factor_px(),
        scale: config.scaling_factor,
        shift: config.shift_factor.unwrap_or(0.0),
        normalised: match (&config.latents_mean, &config.latents_std) {
            (Some(means), Some(deviations)) => {
                means.iter().zip(deviations).map(|(mean, deviation)| [*mean, *deviation]).collect()
            }
            _ => Vec::new(),
        },
    };
    Ok((config.encoder()?, config.decoder()?, latents))
}

/// A U-Net that takes what these text encoders give.
pub(super) fn for_text(unet: unet::Config, text_encoders: &[TextEncoderPart]) -> unet::Config {
    let pooled = text_encoders.last().and_then(|encoder| encoder.signature().output(Role::Pooled));
    match pooled.map(|port| &port.dims[1]) {
        Some(Dim::Fixed(width)) => unet.for_text(*width),
        _ => unet,
    }
}
