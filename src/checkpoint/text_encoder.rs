//! CLIP's text encoders in single files, under the names of transformers or of OpenCLIP: their configurations, and their
//! names in folders. It knows which encoder a family reads at which layer.

use super::folder::TEXT_MODEL;
use super::source::{Source, Table};
use super::{Family, Part};
use crate::Error;
use crate::architecture::clip::{Activation, Config};
use crate::weights::Weights;

/// The width of an attention's head, in all of them.
const HEAD_WIDTH: usize = 64;
/// The widest states that are believed.
const MAX_WIDTH: usize = 1 << 16;
/// How many layers OpenCLIP's encoder of SD 2 has; the last is not used.
const SD2_LAYERS: usize = 24;

/// Where an encoder may be, before its own prefix.
const STAGES: [&str; 3] = ["cond_stage_model.", "conditioner.embedders.0.", "conditioner.embedders.1."];
/// The prefixes of encoders with the names of transformers.
const CLIP_PREFIXES: [&str; 2] = ["transformer.", "clip_l.transformer."];
const OPEN_CLIP_PREFIX: &str = "model.";

/// Layers of a layer, in transformers' words and OpenCLIP's.
const LAYERS: [(&str, &str); 5] = [
    ("layer_norm1", "ln_1"),
    ("layer_norm2", "ln_2"),
    ("mlp.fc1", "mlp.c_fc"),
    ("mlp.fc2", "mlp.c_proj"),
    ("self_attn.out_proj", "attn.out_proj"),
];
const HEADS_OF_ATTENTION: [&str; 3] = ["q_proj", "k_proj", "v_proj"];

/// `text_encoder` and `text_encoder_2`, where the file has them.
pub(super) fn parts(
    weights: &Weights,
    place: &str,
    family: Family,
) -> Result<[Option<Part<Config>>; 2], Error> {
    let mut parts = [None, None];
    for stage in STAGES {
        let part = part(weights, place, stage, family)?;
        let position = usize::from(stage == STAGES[2] || family == Family::SdxlRefiner);
        parts[position] = parts[position].take().or(part);
    }
    Ok(parts)
}

/// The encoder of one stage, if there is anything.
fn part(weights: &Weights, place: &str, stage: &str, family: Family) -> Result<Option<Part<Config>>, Error> {
    let place = format!("{place}: text encoder");
    let all = Source::new(weights, place.clone(), stage);
    if all.is_empty() {
        return Ok(None);
    }
    if let Some(prefix) = CLIP_PREFIXES.into_iter().find(|prefix| all.has_any(prefix)) {
        return clip(&Source::new(weights, place, &format!("{stage}{prefix}"))).map(Some);
    }
    if all.has_any(OPEN_CLIP_PREFIX) {
        return open_clip(&Source::new(weights, place, &format!("{stage}{OPEN_CLIP_PREFIX}")), family)
            .map(Some);
    }
    Err(all.refuse(format!("expected CLIP's under {stage}, got {}", all.described())))
}

/// OpenAI's CLIP, with the names of transformers.
fn clip(source: &Source<'_>) -> Result<Part<Config>, Error> {
    // Some files leave this out.
    let inner = if source.has_any(TEXT_MODEL) { TEXT_MODEL } else { "" };
    let original = |name: &str| format!("{inner}{name}");
    let layers = source.count(&original("encoder.layers."))?;
    let tokens = original("embeddings.token_embedding.weight");
    let positions = original("embeddings.position_embedding.weight");
    let width = width(source, &tokens)?;
    let config = Config {
        vocab_size: source.size(&tokens, &[2], 0)?,
        hidden_size: width,
        intermediate_size: source.size(&original("encoder.layers.0.mlp.fc1.weight"), &[2], 0)?,
        // What it would be if the network had one.
        projection_dim: width,
        num_hidden_layers: layers,
        num_attention_heads: width / HEAD_WIDTH,
        max_position_embeddings: source.size(&positions, &[2], 0)?,
        hidden_act: Activation::QuickGelu,
        ..Config::default()
    };
    let mut table = Table::new(source);
    table.tensor(&format!("{TEXT_MODEL}embeddings.token_embedding.weight"), &tokens);
    table.tensor(&format!("{TEXT_MODEL}embeddings.position_embedding.weight"), &positions);
    for layer in 0..layers {
        let layer = format!("encoder.layers.{layer}");
        let attention = HEADS_OF_ATTENTION.map(|head| format!("self_attn.{head}"));
        let others = LAYERS.iter().map(|(name, _)| *name);
        for name in others.chain(attention.iter().map(String::as_str)) {
            table.layer(&format!("{TEXT_MODEL}{layer}.{name}"), &original(&format!("{layer}.{name}")));
        }
    }
    table.layer(&format!("{TEXT_MODEL}final_layer_norm"), &original("final_layer_norm"));
    // A list of numbers, and what compares texts with pictures.
    table.ignore(|name| {
        name.ends_with("position_ids") || matches!(name, "logit_scale" | "text_projection.weight")
    });
    Ok(Part { config, names: table.finish()? })
}

fn open_clip(source: &Source<'_>, family: Family) -> Result<Part<Config>, Error> {
    let stored_layers = source.count("transformer.resblocks.")?;
    let projection = ["text_projection", "text_projection.weight"].into_iter().find(|name| source.has(name));
    // These read the last but one layer, so that diffusers' encoder ends there; files made from it do, too, and then have
    // no projection either.
    let ends_early = matches!(family, Family::Sd2 | Family::Upscaler);
    let is_whole = stored_layers == SD2_LAYERS || projection.is_some() && stored_layers + 1 != SD2_LAYERS;
    let layers = if ends_early && is_whole { stored_layers.saturating_sub(1) } else { stored_layers };
    let width = width(source, "token_embedding.weight")?;
    let mut config = Config {
        vocab_size: source.size("token_embedding.weight", &[2], 0)?,
        hidden_size: width,
        intermediate_size: source.size("transformer.resblocks.0.mlp.c_fc.weight", &[2], 0)?,
        projection_dim: width,
        num_hidden_layers: layers,
        num_attention_heads: width / HEAD_WIDTH,
        max_position_embeddings: source.size("positional_embedding", &[2], 0)?,
        hidden_act: Activation::Gelu,
        ..Config::default()
    };

    let mut table = Table::new(source);
    table.tensor(&format!("{TEXT_MODEL}embeddings.token_embedding.weight"), "token_embedding.weight");
    table.tensor(&format!("{TEXT_MODEL}embeddings.position_embedding.weight"), "positional_embedding");
    for layer in 0..layers {
        let (name, original) =
            (format!("{TEXT_MODEL}encoder.layers.{layer}"), format!("transformer.resblocks.{layer}"));
        for (part, original_part) in LAYERS {
            table.layer(&format!("{name}.{part}"), &format!("{original}.{original_part}"));
        }
        for kind in ["weight", "bias"] {
            let names = HEADS_OF_ATTENTION.map(|head| format!("{name}.self_attn.{head}.{kind}"));
            let fused = format!("{original}.attn.in_proj_{kind}");
            table.thirds(names.each_ref().map(String::as_str), &fused, width)?;
        }
    }
    table.layer(&format!("{TEXT_MODEL}final_layer_norm"), "ln_final");
    if ends_early {
        let unused = format!("transformer.resblocks.{layers}.");
        table.ignore(|name| name.starts_with(&unused) || name.starts_with("text_projection"));
    } else {
        // OpenCLIP multiplies from the left; files that were saved as a layer are the other way round.
        let (name, width_axis) = match projection {
            Some(name @ "text_projection.weight") => (name, 0),
            _ => ("text_projection", 1),
        };
        config.projection_dim = source.size(name, &[2], width_axis)?;
        match width_axis {
            0 => table.tensor("text_projection.weight", name),
            _ => table.transposed("text_projection.weight", name),
        }
    }
    table.ignore(|name| matches!(name, "logit_scale" | "attn_mask" | "position_ids"));
    Ok(Part { config, names: table.finish()? })
}

fn width(source: &Source<'_>, tokens: &str) -> Result<usize, Error> {
    let width = source.size(tokens, &[2], 1)?;
    if !(HEAD_WIDTH..=MAX_WIDTH).contains(&width) || !width.is_multiple_of(HEAD_WIDTH) {
        return Err(source.refuse(format!(
            "{tokens}: expected a width in multiples of {HEAD_WIDTH} up to {MAX_WIDTH}, got {width}"
        )));
    }
    Ok(width)
}
