//! A control network in a file: what names and shapes tell of it, and its names in diffusers' folders. What they do not tell is
//! that of the U-Net which it steers. It knows nothing of that U-Net.

use super::Names;
use super::foreign::{not_a_control_network, refuse_other_controls};
use super::source::{Source, Table};
use super::unet::{residual, transformer, way_down};
use crate::Error;
use crate::architecture::unet::Middle;
use crate::weights::Weights;

/// What stands before the names of a control network; files with nothing else may leave it out.
const PREFIXES: [&str; 2] = ["control_model.", ""];
/// A tensor that every control network has.
const MARKER: &str = "input_hint_block.0.weight";

/// A level's channels, and how many transformer blocks follow each residual block, unless there are no transformers.
pub type Level = (usize, Option<Vec<usize>>);

/// A control network in a file.
#[derive(Clone, Debug, PartialEq)]
pub struct ControlFile {
    /// Channels of the latents that it sees.
    pub in_channels: usize,
    /// Per level its channels, and how many transformer blocks follow each residual block, unless there are no transformers.
    pub levels: Vec<Level>,
    /// What is between the ways.
    pub middle: Middle,
    /// The width of what is added to the time embedding, if something is.
    pub added: Option<usize>,
    /// Channels of the control image.
    pub conditioning_channels: usize,
    /// Widths of the layers by which the control image is encoded.
    pub conditioning_widths: Vec<usize>,
    /// The network's tensors.
    pub names: Names,
}

/// Recognises a file with a control network; `place` is for messages. The tensors have their original names: see
/// [`with_original_names`](super::with_original_names).
///
/// # Errors
/// [`ErrorKind::Model`](crate::ErrorKind::Model) for files of other kinds, which it tries to name, and for networks with more or
/// fewer tensors than their kind has.
pub fn recognise_control(weights: &Weights, place: &str) -> Result<ControlFile, Error> {
    refuse_other_controls(weights, place)?;
    let Some(prefix) =
        PREFIXES.into_iter().find(|prefix| weights.get(&format!("{prefix}{MARKER}")).is_some())
    else {
        return Err(not_a_control_network(weights, place));
    };
    let source = &Source::new(weights, format!("{place}: ControlNet"), prefix);

    let mut table = Table::new(source);
    let t = &mut table;
    t.layer("conv_in", "input_blocks.0.0");
    t.layer("time_embedding.linear_1", "time_embed.0");
    t.layer("time_embedding.linear_2", "time_embed.2");
    let mut added = None;
    if source.has_any("label_emb.") {
        t.layer("add_embedding.linear_1", "label_emb.0.0");
        t.layer("add_embedding.linear_2", "label_emb.0.2");
        added = Some(source.size("label_emb.0.0.weight", &[2], 1)?);
    }
    let conditioning_widths = hint(t, source)?;
    let levels = levels(t, source)?;
    let middle = middle(t, source)?;
    Ok(ControlFile {
        in_channels: source.size("input_blocks.0.0.weight", &[4], 1)?,
        levels,
        middle,
        added,
        conditioning_channels: source.size(MARKER, &[4], 1)?,
        conditioning_widths,
        names: table.finish()?,
    })
}

/// The layers by which the control image is encoded; their widths.
fn hint(t: &mut Table<'_, '_>, source: &Source<'_>) -> Result<Vec<usize>, Error> {
    // A layer and its activation by turns: the first, two for each halving, and the last.
    let mut count = 0;
    while source.has(&format!("input_hint_block.{}.weight", 2 * count)) {
        count += 1;
    }
    if count < 2 || count % 2 != 0 {
        return Err(source.refuse(format!(
            "input_hint_block: expected a first and a last layer, and two for each halving, got {count} layers"
        )));
    }
    t.layer("controlnet_cond_embedding.conv_in", "input_hint_block.0");
    let mut widths = vec![source.size(MARKER, &[4], 0)?];
    for block in 0..count - 2 {
        let original = format!("input_hint_block.{}", 2 * (block + 1));
        t.layer(&format!("controlnet_cond_embedding.blocks.{block}"), &original);
        if block % 2 == 1 {
            widths.push(source.size(&format!("{original}.weight"), &[4], 0)?);
        }
    }
    t.layer("controlnet_cond_embedding.conv_out", &format!("input_hint_block.{}", 2 * (count - 1)));
    Ok(widths)
}

/// The levels of the way down, with what they give.
fn levels(t: &mut Table<'_, '_>, source: &Source<'_>) -> Result<Vec<Level>, Error> {
    let mut levels = Vec::new();
    let found = way_down(source, &mut Vec::new())?;
    let (last, mut index) = (found.len() - 1, 1);
    for (number, level) in found.into_iter().enumerate() {
        let block = format!("down_blocks.{number}");
        let mut with_transformers = 0;
        for (layer, depth) in level.down.iter().enumerate() {
            residual(t, source, &format!("{block}.resnets.{layer}"), &format!("input_blocks.{index}.0"));
            let original = format!("input_blocks.{index}.1");
            // One without blocks has its outer layers.
            if source.has_any(&format!("{original}.")) {
                transformer(t, &format!("{block}.attentions.{layer}"), &original, *depth);
                with_transformers += 1;
            }
            index += 1;
        }
        if with_transformers != 0 && with_transformers != level.down.len() {
            return Err(source.refuse(format!(
                "expected a transformer after all {} residual blocks of a level or none, got {with_transformers}",
                level.down.len()
            )));
        }
        if number < last {
            t.layer(&format!("{block}.downsamplers.0.conv"), &format!("input_blocks.{index}.0.op"));
            index += 1;
        }
        levels.push((level.channels, (with_transformers > 0).then_some(level.down)));
    }
    for number in 0..index {
        t.layer(&format!("controlnet_down_blocks.{number}"), &format!("zero_convs.{number}.0"));
    }
    Ok(levels)
}

fn middle(t: &mut Table<'_, '_>, source: &Source<'_>) -> Result<Middle, Error> {
    residual(t, source, "mid_block.resnets.0", "middle_block.0");
    let middle = if source.has("middle_block.1.norm.weight") {
        let depth = source.count("middle_block.1.transformer_blocks.")?;
        transformer(t, "mid_block.attentions.0", "middle_block.1", depth);
        residual(t, source, "mid_block.resnets.1", "middle_block.2");
        Middle::Transformer(depth)
    } else {
        Middle::Residual
    };
    t.layer("controlnet_mid_block", "middle_block_out.0");
    Ok(middle)
}
