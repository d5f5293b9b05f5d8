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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::Dtype;

    fn file(names: &[&str]) -> Weights {
        let mut weights = Weights::default();
        names.iter().for_each(|name| weights.replace(*name, Dtype::F32, &[1], &[0; 4]).unwrap());
        weights
    }

    /// Each name of a table, and the stored tensor it stands for.
    fn pairs(names: &Names) -> Vec<(&str, &str)> {
        names.iter().map(|(name, stored)| (name.as_str(), stored.name.as_str())).collect()
    }

    #[test]
    fn old_attention_layers_have_new_names() {
        let old = ["key.bias", "proj_attn.weight", "query.weight", "value.bias", "group_norm.bias"];
        let old = old.map(|name| format!("encoder.mid_block.attentions.0.{name}"));
        let names = autoencoder_names(&file(&old.each_ref().map(String::as_str)));
        let attention = |name: &str| format!("encoder.mid_block.attentions.0.{name}");
        for (new, old) in [
            ("to_k.bias", "key.bias"),
            ("to_out.0.weight", "proj_attn.weight"),
            ("to_q.weight", "query.weight"),
            ("to_v.bias", "value.bias"),
            ("group_norm.bias", "group_norm.bias"),
        ] {
            assert_eq!(names[&attention(new)], Stored::whole(attention(old)));
        }
        assert_eq!(names.len(), old.len());
    }

    #[test]
    fn other_tensors_keep_their_names() {
        let others =
            ["a.attentions.0.key.lora.up", "a.attentions.key.bias", "decoder.key.bias", "quant_conv.bias"];
        assert_eq!(pairs(&autoencoder_names(&file(&others))), others.map(|name| (name, name)));
    }

    #[test]
    fn a_text_encoder_gets_its_prefix_unless_it_has_it() {
        let file = file(&[
            "embeddings.position_ids",
            "encoder.layers.0.mlp.fc1.bias",
            "text_model.final_layer_norm.bias",
            "text_projection.weight",
        ]);
        let expected = [
            ("text_model.embeddings.position_ids", "embeddings.position_ids"),
            ("text_model.encoder.layers.0.mlp.fc1.bias", "encoder.layers.0.mlp.fc1.bias"),
            ("text_model.final_layer_norm.bias", "text_model.final_layer_norm.bias"),
            ("text_projection.weight", "text_projection.weight"),
        ];
        assert_eq!(pairs(&text_encoder_names(&file)), expected);
    }

    #[test]
    fn where_both_names_are_there_the_right_one_counts() {
        let names = text_encoder_names(&file(&["embeddings.x", "text_model.embeddings.x"]));
        assert_eq!(pairs(&names), [("text_model.embeddings.x", "text_model.embeddings.x")]);
    }
}
