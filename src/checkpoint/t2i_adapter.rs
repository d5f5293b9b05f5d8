//! A T2I-Adapter in a file: what names and shapes tell of it, which is all, and its names in diffusers' folders. It knows nothing
//! of the U-Net beside it.

use super::Names;
use super::source::{Source, Table};
use crate::Error;
use crate::architecture::t2i_adapter::{Config, Kind};
use crate::weights::Weights;

/// What stands before the names of diffusers, and what may stand before the original ones.
const PREFIXES: [&str; 2] = ["adapter.", ""];
/// A tensor that every adapter has: of diffusers, and of light and other ones as they were first published.
const MARKERS: [&str; 3] =
    ["body.0.resnets.0.block1.weight", "body.0.body.0.block1.weight", "body.0.block1.weight"];
/// By how much control images are unshuffled, which with their channels is the width of the first layer: for Stable Diffusion XL,
/// and for others.
const XL_FACTOR: usize = 16;
const FACTOR: usize = 8;
/// Residual units of a stage in files whose names do not tell stages: the original code has no others.
const ORIGINAL_UNITS: usize = 2;

/// A T2I-Adapter in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdapterFile {
    /// What it is.
    pub config: Config,
    /// The network's tensors.
    pub names: Names,
}

/// Whether tensors are those of a T2I-Adapter.
pub(crate) fn is_t2i_adapter(weights: &Weights) -> bool {
    marked(weights).is_some()
}

/// Recognises a file with a T2I-Adapter, under the names of diffusers or the original ones; nothing for files of other kinds.
/// `place` is for messages.
///
/// # Errors
/// [`ErrorKind::Model`](crate::ErrorKind::Model) for adapters with more or fewer tensors than their kind has.
pub fn recognise_t2i_adapter(weights: &Weights, place: &str) -> Option<Result<AdapterFile, Error>> {
    marked(weights).map(|(prefix, marker)| {
        let source = Source::new(weights, format!("{place}: T2I-Adapter"), prefix);
        read(&source, marker == MARKERS[0])
    })
}

/// What stands before an adapter's names, and which of the markers it has.
fn marked(weights: &Weights) -> Option<(&'static str, &'static str)> {
    PREFIXES.into_iter().find_map(|prefix| {
        let has = |marker: &&str| weights.get(&format!("{prefix}{marker}")).is_some();
        Some((prefix, MARKERS.into_iter().find(has)?))
    })
}

fn read(source: &Source<'_>, is_diffusers: bool) -> Result<AdapterFile, Error> {
    let is_light = !source.has("conv_in.weight");
    let first = if is_light { "body.0.in_conv.weight" } else { "conv_in.weight" };
    let inputs = source.size(first, &[4], 1)?;
    let unshuffled =
        [FACTOR, XL_FACTOR].into_iter().flat_map(|factor| [1, 3].map(|channels| (channels, factor)));
    let (in_channels, factor) = unshuffled
        .into_iter()
        .find(|(channels, factor)| channels * factor * factor == inputs)
        .ok_or_else(|| {
            source.refuse(format!(
                "{first}: expected 64 or 192 inputs, or for Stable Diffusion XL 256 or 768, got {inputs}"
            ))
        })?;
    let kind = match (is_light, factor) {
        (true, _) => Kind::Light,
        (false, XL_FACTOR) => Kind::FullXl,
        (false, _) => Kind::Full,
    };
    let (stages, units) = counts(source, is_diffusers, is_light)?;
    let mut table = Table::new(source);
    let t = &mut table;
    if !is_light {
        t.layer("adapter.conv_in", "conv_in");
    }
    let mut channels = Vec::new();
    for stage in 0..stages {
        let name = format!("adapter.body.{stage}");
        // Where nothing stands between stage and unit, units are counted on.
        let original = |unit: usize| match (is_diffusers, is_light) {
            (true, _) => format!("body.{stage}.resnets.{unit}"),
            (false, true) => format!("body.{stage}.body.{unit}"),
            (false, false) => format!("body.{}", stage * units + unit),
        };
        let outer = if is_diffusers || is_light { format!("body.{stage}") } else { original(0) };
        if is_light || source.has(&format!("{outer}.in_conv.weight")) {
            t.layer(&format!("{name}.in_conv"), &format!("{outer}.in_conv"));
        }
        for unit in 0..units {
            for block in ["block1", "block2"] {
                t.layer(&format!("{name}.resnets.{unit}.{block}"), &format!("{}.{block}", original(unit)));
            }
        }
        if is_light {
            t.layer(&format!("{name}.out_conv"), &format!("{outer}.out_conv"));
            channels.push(source.size(&format!("{outer}.out_conv.weight"), &[4], 0)?);
        } else {
            channels.push(source.size(&format!("{}.block1.weight", original(0)), &[4], 0)?);
        }
    }
    if is_light {
        // The last stage is as wide as the one before it, and diffusers does not count it.
        channels.pop();
    }
    let config = Config { kind, in_channels, channels, num_res_blocks: units, downscale_factor: factor };
    Ok(AdapterFile { config, names: table.finish()? })
}

/// How many stages there are, and how many residual units each has.
fn counts(source: &Source<'_>, is_diffusers: bool, is_light: bool) -> Result<(usize, usize), Error> {
    let items = source.count("body.")?;
    match (is_diffusers, is_light) {
        (true, _) => Ok((items, source.count("body.0.resnets.")?)),
        (false, true) => Ok((items, source.count("body.0.body.")?)),
        (false, false) if items % ORIGINAL_UNITS == 0 => Ok((items / ORIGINAL_UNITS, ORIGINAL_UNITS)),
        (false, false) => {
            let problem =
                format!("body: expected {ORIGINAL_UNITS} residual units for each stage, got {items} in all");
            Err(source.refuse(problem))
        }
    }
}
