//! CLIP's text encoders in single files, under the names of transformers or of OpenCLIP: their configurations, and their
//! names in folders. It knows which encoder a family reads at which layer.

use super::Part;
use super::folder::TEXT_MODEL;
use super::source::{Source, Table};
use crate::Error;
use crate::architecture::clip::{Activation, Config};
use crate::family::{Encoder, Family};
use crate::weights::Weights;

/// The width of an attention's head, in all of them.
const HEAD_WIDTH: usize = 64;
/// The widest states that are believed.
const MAX_WIDTH: usize = 1 << 16;
/// Where an encoder may be, before its own prefix.
const STAGES: [&str; 5] = [
    "cond_stage_model.",
    "conditioner.embedders.0.",
    "conditioner.embedders.1.",
    // As stable-diffusion.cpp calls it.
    "cond_stage_model.1.",
    // As ComfyUI does.
    "text_encoders.clip_g.",
];
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
/// How many layers such an encoder is published with.
const LAYERS_WITH_UNREAD: usize = Encoder::OpenClipH.layers_with_unread().expect("one of these");

/// What turns the state at a prompt's end into a vector that is compared with images.
const PROJECTION: &str = "text_projection.weight";
/// What the names of CLIP's other half begin with, the one that reads images.
const IMAGES: [&str; 4] = ["vision_model.", "visual_projection.", "visual.", "text_model.vision_model."];
const HEADS_OF_ATTENTION: [&str; 3] = ["q_proj", "k_proj", "v_proj"];

/// Whether the last layer of OpenCLIP's encoder, where a family has one of these, is not read.
fn ends_early(encoders: &[Encoder]) -> bool {
    encoders.iter().any(|encoder| encoder.layers_with_unread().is_some())
}

/// `text_encoder` and `text_encoder_2`, where the file has them.
pub(super) fn parts(
    weights: &Weights,
    place: &str,
    family: Family,
) -> Result<[Option<Part<Config>>; 2], Error> {
    let mut parts = [None, None];
    let ends_early = ends_early(family.text());
    for stage in STAGES {
        let is_second = STAGES[2..].contains(&stage);
        let part = part(weights, place, stage, ends_early, is_second)?;
        let position = if is_second { 1 } else { family.text()[0].position() };
        parts[position] = parts[position].take().or(part);
    }
    Ok(parts)
}

/// Where a file of text encoders may have one: the prefix, and whether what is there is Stable Diffusion XL's second. The
/// longer of two that begin alike comes first.
const PLACES: [(&str, Option<bool>); 17] = [
    ("cond_stage_model.1.transformer.", Some(true)),
    ("cond_stage_model.transformer.", Some(false)),
    ("cond_stage_model.model.", None),
    ("conditioner.embedders.0.transformer.", Some(false)),
    ("conditioner.embedders.0.model.", None),
    ("conditioner.embedders.1.transformer.", Some(true)),
    ("conditioner.embedders.1.model.", Some(true)),
    ("text_encoders.clip_l.transformer.", Some(false)),
    ("text_encoders.clip_g.transformer.", Some(true)),
    ("clip_l.transformer.", Some(false)),
    ("clip_g.transformer.", Some(true)),
    ("clip_l.", Some(false)),
    ("clip_g.", Some(true)),
    ("text_encoder.", Some(false)),
    ("text_encoder_2.", Some(true)),
    ("model.", None),
    ("", None),
];

/// The encoders of a file for a model of Stable Diffusion XL or of another family.
pub(super) fn alone(weights: &Weights, place: &str, is_xl: bool) -> Result<[Option<Part<Config>>; 2], Error> {
    let place = format!("{place}: text encoder");
    let mut parts = [None, None];
    for (prefix, is_second) in PLACES {
        let source = Source::new(weights, place.clone(), prefix);
        let is_clip =
            source.has_any(&format!("{TEXT_MODEL}encoder.layers.")) || source.has_any("encoder.layers.");
        let is_open_clip = source.has_any("transformer.resblocks.");
        if !is_clip && !is_open_clip {
            continue;
        }
        let is_second = is_second.map_or_else(|| is_second_kind(&source, is_open_clip), Ok)?;
        let part = match is_open_clip {
            true => open_clip(&source, !is_xl)?,
            false => clip(&source, !is_xl, is_xl && is_second)?,
        };
        // Other families have one encoder.
        let slot: &mut Option<_> = &mut parts[usize::from(is_xl && is_second)];
        if slot.is_some() {
            return Err(source.refuse(format!("expected one of each kind, got a second under {prefix:?}")));
        }
        *slot = Some(part);
        if prefix.is_empty() {
            break;
        }
    }
    match parts {
        [None, None] => Err(super::foreign::not_a_text_encoder(weights, &place)),
        parts => Ok(parts),
    }
}

/// Whether an encoder without a telling prefix is Stable Diffusion XL's second, OpenCLIP's ViT-bigG.
fn is_second_kind(source: &Source<'_>, is_open_clip: bool) -> Result<bool, Error> {
    if is_open_clip {
        return Ok(source.size("token_embedding.weight", &[2], 1)? != Encoder::OpenClipH.width());
    }
    let inner = if source.has_any(TEXT_MODEL) { TEXT_MODEL } else { "" };
    let width = source.size(&format!("{inner}embeddings.token_embedding.weight"), &[2], 1)?;
    Ok(match Encoder::of_width(width) {
        Some(encoder) => encoder.position() > 0,
        // Of a width that no published encoder has, what compares texts with images tells it.
        None => width >= Encoder::OpenClipG.width() || source.has(PROJECTION),
    })
}

/// The encoder of one stage, if there is anything.
fn part(
    weights: &Weights,
    place: &str,
    stage: &str,
    ends_early: bool,
    is_second: bool,
) -> Result<Option<Part<Config>>, Error> {
    let place = format!("{place}: text encoder");
    let all = Source::new(weights, place.clone(), stage);
    if all.is_empty() {
        return Ok(None);
    }
    if let Some(prefix) = CLIP_PREFIXES.into_iter().find(|prefix| all.has_any(prefix)) {
        return clip(&Source::new(weights, place, &format!("{stage}{prefix}")), ends_early, is_second)
            .map(Some);
    }
    if all.has_any(OPEN_CLIP_PREFIX) {
        return open_clip(&Source::new(weights, place, &format!("{stage}{OPEN_CLIP_PREFIX}")), ends_early)
            .map(Some);
    }
    Err(all.refuse(format!("expected a CLIP text encoder under {stage}, got {}", all.described())))
}

/// A CLIP with the names of transformers: OpenAI's, or OpenCLIP's as it was renamed. `projects`: whether it gives the
/// prompt in one vector, as Stable Diffusion XL's second does.
fn clip(source: &Source<'_>, ends_early: bool, projects: bool) -> Result<Part<Config>, Error> {
    // Some files leave this out.
    let inner = if source.has_any(TEXT_MODEL) { TEXT_MODEL } else { "" };
    let original = |name: &str| format!("{inner}{name}");
    let stored_layers = source.count(&original("encoder.layers."))?;
    let tokens = original("embeddings.token_embedding.weight");
    let positions = original("embeddings.position_embedding.weight");
    let width = width(source, &tokens)?;
    let is_open_clip = projects || width == Encoder::OpenClipH.width() || width >= Encoder::OpenClipG.width();
    let is_cut = is_open_clip && !projects && ends_early && stored_layers == LAYERS_WITH_UNREAD;
    let layers = if is_cut { stored_layers - 1 } else { stored_layers };
    // stable-diffusion.cpp keeps it as OpenCLIP does, with its sides changed.
    let turned = original("text_projection");
    let projection = [PROJECTION, &turned].into_iter().find(|name| source.has(name)).unwrap_or(PROJECTION);
    let projection_dim = match projects {
        true => source.size(projection, &[2], usize::from(projection != PROJECTION))?,
        // What it would be if the network had one.
        false => width,
    };
    let config = Config {
        vocab_size: source.size(&tokens, &[2], 0)?,
        hidden_size: width,
        intermediate_size: source.size(&original("encoder.layers.0.mlp.fc1.weight"), &[2], 0)?,
        projection_dim,
        num_hidden_layers: layers,
        num_attention_heads: width / HEAD_WIDTH,
        max_position_embeddings: source.size(&positions, &[2], 0)?,
        hidden_act: if is_open_clip { Activation::Gelu } else { Activation::QuickGelu },
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
    match (projects, projection == PROJECTION) {
        (true, true) => table.tensor(PROJECTION, projection),
        (true, false) => table.transposed(PROJECTION, projection),
        (false, _) => {}
    }
    let unused = original(&format!("encoder.layers.{layers}."));
    // A list of numbers, what compares texts with images, and the network of images beside this one.
    table.ignore(|name| {
        name.ends_with("position_ids")
            || matches!(name, "logit_scale" | PROJECTION)
            || name == turned
            || is_cut && name.starts_with(&unused)
            || IMAGES.iter().any(|start| name.starts_with(start))
    });
    Ok(Part { config, names: table.finish()? })
}

fn open_clip(source: &Source<'_>, ends_early: bool) -> Result<Part<Config>, Error> {
    let stored_layers = source.count("transformer.resblocks.")?;
    let projection = ["text_projection", "text_projection.weight"].into_iter().find(|name| source.has(name));
    // These read the last but one layer, so that diffusers' encoder ends there; files made from it do, too, and then have
    // no projection either.
    let is_whole = stored_layers == LAYERS_WITH_UNREAD
        || projection.is_some() && stored_layers + 1 != LAYERS_WITH_UNREAD;
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
    table.ignore(|name| {
        matches!(name, "logit_scale" | "attn_mask" | "position_ids")
            || IMAGES.iter().any(|start| name.starts_with(start))
    });
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
