//! Original names for the tensors of files that have those of diffusers, or prefixes that wrap a whole file.
//! It knows names, and how blocks are counted on both sides; which network a file holds, its names tell.

use std::collections::BTreeMap;

use super::autoencoder::ATTENTION;
use super::unet::RESIDUAL;
use super::{UNET_PREFIXES, VAE_PREFIXES};
use crate::weights::{Stored, Weights};
use crate::{Error, ErrorKind};

/// What stands before every name of a file that was saved with what it was trained in.
const WRAPPERS: [&str; 6] =
    ["state_dict.", "module.", "ema_model.", "diffusion_model.", "net.", "transformer."];
/// What may stand before the names of diffusers' U-Net and VAE.
const UNET_STARTS: [&str; 3] = ["", "unet.", "model.diffusion_model."];
const VAE_STARTS: [&str; 3] = ["", "vae.", "first_stage_model."];
/// Tensors that every U-Net and every VAE of diffusers has.
const UNET_MARK: &str = "time_embedding.linear_1.weight";
const VAE_MARK: &str = "decoder.conv_norm_out.weight";
/// A number in a name that is believed.
const MAX_INDEX: usize = 256;

/// The same tensors under their original names, where a file has a U-Net or a VAE under the names of diffusers; and without a
/// prefix that all of them have. Nothing is copied.
///
/// # Errors
/// [`ErrorKind::Model`](crate::ErrorKind::Model) when two tensors would have one name; `place` is for messages.
pub fn with_original_names(weights: Weights, place: &str) -> Result<Weights, Error> {
    let names: Vec<&str> = weights.iter().map(|(name, _)| name).collect();
    let wrapper =
        WRAPPERS.iter().find(|start| !names.is_empty() && names.iter().all(|name| name.starts_with(**start)));
    let bare = |name: &str| wrapper.map_or(name, |start| &name[start.len()..]).to_owned();
    let names: Vec<(&str, String)> = names.into_iter().map(|name| (name, bare(name))).collect();

    let has = |wanted: &str| names.iter().any(|(_, name)| name == wanted);
    let unet = UNET_STARTS.iter().find(|start| has(&format!("{start}{UNET_MARK}")));
    let vae = VAE_STARTS.iter().find(|start| has(&format!("{start}{VAE_MARK}")));
    if wrapper.is_none() && unet.is_none() && vae.is_none() {
        return Ok(weights);
    }
    let unet =
        unet.map(|start| (start, Unet::of(names.iter().filter_map(|(_, name)| name.strip_prefix(start)))));
    let vae =
        vae.map(|start| (start, Vae::of(names.iter().filter_map(|(_, name)| name.strip_prefix(start)))));
    // What stands before the original names: nothing where the file has one network alone.
    let is_alone = unet.is_some() != vae.is_some();
    let mut table: BTreeMap<String, Stored> = BTreeMap::new();
    for (stored, name) in &names {
        let unet = unet.as_ref().and_then(|(start, unet)| {
            let new = unet.original(name.strip_prefix(*start)?)?;
            Some(format!("{}{new}", if is_alone && start.is_empty() { "" } else { UNET_PREFIXES[0] }))
        });
        let vae = || {
            let (start, vae) = vae.as_ref()?;
            let new = vae.original(name.strip_prefix(*start)?)?;
            Some(format!("{}{new}", if is_alone && start.is_empty() { "" } else { VAE_PREFIXES[0] }))
        };
        let new = unet.or_else(vae).unwrap_or_else(|| name.clone());
        if table.insert(new.clone(), Stored::whole(*stored)).is_some() {
            return Err(Error::new(
                ErrorKind::Model,
                format!(
                    "{place}: expected each tensor once, got {new} under the names of diffusers and its own"
                ),
            ));
        }
    }
    weights.select(table)
}

/// How the blocks of a U-Net are counted.
struct Unet {
    /// Per level on the way down, and on the way up, its residual blocks.
    down: Vec<usize>,
    up: Vec<usize>,
    /// Whether the last block of a level on the way up has a transformer.
    up_reads: Vec<bool>,
    /// How many blocks a control network has for its image.
    hint_blocks: usize,
}

impl Unet {
    fn of<'n>(names: impl Iterator<Item = &'n str> + Clone) -> Self {
        let counts = |list: &str| {
            let mut counts: Vec<usize> = Vec::new();
            for (level, layer) in names.clone().filter_map(|name| indices(name, list, "resnets")) {
                counts.resize(counts.len().max(level + 1), 0);
                counts[level] = counts[level].max(layer + 1);
            }
            counts
        };
        let (down, up) = (counts("down_blocks."), counts("up_blocks."));
        let blocks = names.clone().filter_map(|name| item(name, "controlnet_cond_embedding.blocks."));
        let hint_blocks = blocks.map(|(block, _)| block + 1).max().unwrap_or(0);
        let mut up_reads = vec![false; up.len()];
        for (level, layer) in names.filter_map(|name| indices(name, "up_blocks.", "attentions")) {
            if up.get(level) == Some(&(layer + 1)) {
                up_reads[level] = true;
            }
        }
        Self { down, up, up_reads, hint_blocks }
    }

    fn original(&self, name: &str) -> Option<String> {
        let plain = [
            ("conv_in.", "input_blocks.0.0."),
            ("time_embedding.linear_1.", "time_embed.0."),
            ("time_embedding.linear_2.", "time_embed.2."),
            ("time_embedding.cond_proj.", "time_embed.cond_proj."),
            ("add_embedding.linear_1.", "label_emb.0.0."),
            ("add_embedding.linear_2.", "label_emb.0.2."),
            ("class_embedding.weight", "label_emb.weight"),
            ("conv_norm_out.", "out.0."),
            ("conv_out.", "out.2."),
            ("mid_block.attentions.0.", "middle_block.1."),
            ("controlnet_mid_block.", "middle_block_out.0."),
            ("controlnet_cond_embedding.conv_in.", "input_hint_block.0."),
        ];
        for (start, new) in plain {
            if let Some(rest) = name.strip_prefix(start) {
                return Some(format!("{new}{rest}"));
            }
        }
        if let Some((number, rest)) = item(name, "controlnet_down_blocks.") {
            return Some(format!("zero_convs.{number}.0.{rest}"));
        }
        // Each is followed by its activation; the last layer follows the last block.
        if let Some((block, rest)) = item(name, "controlnet_cond_embedding.blocks.") {
            return Some(format!("input_hint_block.{}.{rest}", 2 * (block + 1)));
        }
        if let Some(rest) = name.strip_prefix("controlnet_cond_embedding.conv_out.") {
            return Some(format!("input_hint_block.{}.{rest}", 2 * (self.hint_blocks + 1)));
        }
        if let Some((block, layer)) = name.strip_prefix("mid_block.").and_then(|rest| item(rest, "resnets."))
        {
            return Some(format!("middle_block.{}.{}", 2 * block, residual(layer)));
        }
        if let Some((level, rest)) = item(name, "down_blocks.") {
            // A sampler stands behind each level but the last, and the first block is the convolution.
            let first = 1 + self.down.get(..level)?.iter().map(|count| count + 1).sum::<usize>();
            return match inner(rest)? {
                Inner::Residual(layer, rest) => {
                    Some(format!("input_blocks.{}.0.{}", first + layer, residual(rest)))
                }
                Inner::Transformer(layer, rest) => Some(format!("input_blocks.{}.1.{rest}", first + layer)),
                Inner::Sampler(rest) => {
                    Some(format!("input_blocks.{}.0.op.{rest}", first + self.down.get(level)?))
                }
            };
        }
        let (level, rest) = item(name, "up_blocks.")?;
        let first = self.up.get(..level)?.iter().sum::<usize>();
        match inner(rest)? {
            Inner::Residual(layer, rest) => {
                Some(format!("output_blocks.{}.0.{}", first + layer, residual(rest)))
            }
            Inner::Transformer(layer, rest) => Some(format!("output_blocks.{}.1.{rest}", first + layer)),
            Inner::Sampler(rest) => {
                let last = (first + self.up.get(level)?).checked_sub(1)?;
                let position = if *self.up_reads.get(level)? { 2 } else { 1 };
                Some(format!("output_blocks.{last}.{position}.conv.{rest}"))
            }
        }
    }
}

/// How many resolutions a VAE has.
struct Vae {
    levels: usize,
}

impl Vae {
    fn of<'n>(names: impl Iterator<Item = &'n str>) -> Self {
        let levels = names.filter_map(|name| indices(name, "decoder.up_blocks.", "resnets"));
        Self { levels: levels.map(|(level, _)| level + 1).max().unwrap_or(0) }
    }

    fn original(&self, name: &str) -> Option<String> {
        let (side, rest) = name.split_once('.')?;
        if !["encoder", "decoder"].contains(&side) {
            return None;
        }
        if let Some(rest) = rest.strip_prefix("conv_norm_out.") {
            return Some(format!("{side}.norm_out.{rest}"));
        }
        if let Some(rest) = rest.strip_prefix("mid_block.") {
            if let Some((block, layer)) = item(rest, "resnets.") {
                return Some(format!("{side}.mid.block_{}.{}", block + 1, shortcut(layer)));
            }
            let (layer, kind) = rest.strip_prefix("attentions.0.")?.rsplit_once('.')?;
            let known = ATTENTION.iter().find(|(new, old)| *new == layer || old.contains(&layer));
            return known.map(|(_, originals)| format!("{side}.mid.attn_1.{}.{kind}", originals[0]));
        }
        let (list, sampler) = if side == "encoder" { ("down", "downsample") } else { ("up", "upsample") };
        let (level, rest) = item(rest, &format!("{list}_blocks."))?;
        // On the way up the original numbers run against the order.
        let level = if side == "encoder" { level } else { self.levels.checked_sub(level + 1)? };
        match inner(rest)? {
            Inner::Residual(layer, rest) => {
                Some(format!("{side}.{list}.{level}.block.{layer}.{}", shortcut(rest)))
            }
            Inner::Sampler(rest) => Some(format!("{side}.{list}.{level}.{sampler}.conv.{rest}")),
            Inner::Transformer(..) => None,
        }
    }
}

/// What is in a block of diffusers, and the rest of the name.
enum Inner<'n> {
    Residual(usize, &'n str),
    Transformer(usize, &'n str),
    Sampler(&'n str),
}

fn inner(name: &str) -> Option<Inner<'_>> {
    let sampler = ["downsamplers.0.conv.", "upsamplers.0.conv."];
    if let Some(rest) = sampler.iter().find_map(|start| name.strip_prefix(start)) {
        return Some(Inner::Sampler(rest));
    }
    let residual = item(name, "resnets.").map(|(layer, rest)| Inner::Residual(layer, rest));
    residual.or_else(|| item(name, "attentions.").map(|(layer, rest)| Inner::Transformer(layer, rest)))
}

/// The original name of a layer of a U-Net's residual block, weight or bias included.
fn residual(layer: &str) -> String {
    let (name, kind) = layer.rsplit_once('.').unwrap_or((layer, ""));
    match RESIDUAL.iter().find(|(new, _)| *new == name) {
        Some((_, original)) => format!("{original}.{kind}"),
        None if name == "conv_shortcut" => format!("skip_connection.{kind}"),
        None => layer.to_owned(),
    }
}

/// That of a VAE's.
fn shortcut(layer: &str) -> String {
    layer.replace("conv_shortcut.", "nin_shortcut.")
}

fn item<'n>(name: &'n str, list: &str) -> Option<(usize, &'n str)> {
    let (index, rest) = name.strip_prefix(list)?.split_once('.')?;
    let index = index.parse().ok().filter(|index| *index < MAX_INDEX)?;
    Some((index, rest))
}

/// The numbers of `down_blocks.1.resnets.0.…`.
fn indices(name: &str, list: &str, inner: &str) -> Option<(usize, usize)> {
    let (level, rest) = item(name, list)?;
    let (layer, _) = item(rest, &format!("{inner}."))?;
    Some((level, layer))
}
