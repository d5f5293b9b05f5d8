//! The names in the weight files of diffusers folders, which changed over the years: old ones are given today's.
//! It knows nothing of single-file checkpoints.

use super::Names;
use crate::weights::{Stored, Weights};

/// What stands before the names of a text encoder's tensors, but for its projection; some files leave it out.
pub(super) const TEXT_MODEL: &str = "text_model.";

/// What the names of a text encoder's tensors begin with behind [`TEXT_MODEL`].
const TEXT_PARTS: [&str; 3] = ["embeddings.", "encoder.", "final_layer_norm."];

/// Names of an attention's layers before diffusers 0.12 and since.
const ATTENTION: [(&str, &str); 4] =
    [("query", "to_q"), ("key", "to_k"), ("value", "to_v"), ("proj_attn", "to_out.0")];

/// The tensors of a diffusers folder's VAE under the names that diffusers gives them today.
pub fn autoencoder_names(weights: &Weights) -> Names {
    let modern = |name: &str| {
        let (block, layer) = name.rsplit_once(".attentions.")?;
        let [index, old, kind] = layer.split('.').collect::<Vec<_>>().try_into().ok()?;
        let (_, new) = ATTENTION.iter().find(|(known, _)| *known == old)?;
        Some(format!("{block}.attentions.{index}.{new}.{kind}"))
    };
    renamed(weights, modern)
}

/// The tensors of a folder's text encoder, all of them with `text_model.` but for `text_projection`.
pub fn text_encoder_names(weights: &Weights) -> Names {
    let prefixed = |name: &str| {
        let is_bare = TEXT_PARTS.iter().any(|part| name.starts_with(part));
        is_bare.then(|| format!("{TEXT_MODEL}{name}"))
    };
    renamed(weights, prefixed)
}

/// A tensor that has its right name already stays, whatever else would be called so.
fn renamed(weights: &Weights, rename: impl Fn(&str) -> Option<String>) -> Names {
    let mut names: Names = weights
        .iter()
        .map(|(name, _)| (rename(name).unwrap_or_else(|| name.into()), Stored::whole(name)))
        .collect();
    for (name, _) in weights.iter().filter(|(name, _)| rename(name).is_none()) {
        names.insert(name.to_owned(), Stored::whole(name));
    }
    names
}
