//! Scales beside weights of 8 bits, as ComfyUI and the tools around it name them: found by name, taken into the weights.
//! It knows these names and forms, and nothing of what the weights are for.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::Dtype;
use super::encoding::{Encoding, Scale, floats, is_side};

/// What ends the names of a weight, and of the scale beside it.
const WEIGHT: &str = ".weight";
const SCALES: [&str; 2] = [".scale_weight", ".weight_scale"];
/// How a weight is stored, as JSON.
const FORMAT: &str = ".comfy_quant";
/// Scales of what a layer is fed: activations stay floats here, so that they say nothing.
const UNUSED: [&str; 3] = [".scale_input", ".input_scale", ".scaled_fp8"];
/// The tensor that says that a file's weights have scales.
const MARKER: &str = "scaled_fp8";
/// The longest scale and format that are read.
const MAX_SCALE_BYTES: usize = 1 << 20;
const MAX_FORMAT_BYTES: usize = 1 << 12;

/// A tensor as a header declares it.
pub(super) struct Stored<'a> {
    pub(super) dtype: Dtype,
    pub(super) encoding: &'a Encoding,
    pub(super) shape: &'a [usize],
}

/// What [`FORMAT`] says.
#[derive(Deserialize)]
struct Format {
    format: String,
    #[serde(default)]
    convrot: bool,
    convrot_groupsize: Option<usize>,
}

/// What a file's scales mean.
#[derive(Default)]
pub(super) struct Scaled {
    /// How weights are stored, by name; or why they cannot be read.
    pub(super) weights: BTreeMap<String, Result<Encoding, String>>,
    /// What was taken into the weights or says nothing: no tensors of a network.
    pub(super) spent: Vec<String>,
}

/// Finds scales and formats among a file's tensors; `read` gives the data of those that are short.
pub(super) fn find<'a>(
    tensors: impl Fn() -> Vec<&'a str>,
    stored: impl Fn(&str) -> Option<Stored<'a>>,
    read: impl Fn(&str) -> Vec<u8>,
) -> Scaled {
    let mut found = Scaled::default();
    for name in tensors() {
        if name == MARKER || UNUSED.iter().any(|end| name.ends_with(end)) {
            found.spent.push(name.to_owned());
            continue;
        }
        let scale = SCALES.iter().find_map(|end| name.strip_suffix(end));
        let Some(module) = scale.or_else(|| name.strip_suffix(FORMAT)) else { continue };
        let weight = format!("{module}{WEIGHT}");
        let Some(target) = stored(&weight) else { continue };
        found.spent.push(name.to_owned());
        if found.weights.contains_key(&weight) {
            continue;
        }
        let scale_name =
            SCALES.iter().map(|end| format!("{module}{end}")).find(|name| stored(name).is_some());
        let format = stored(&format!("{module}{FORMAT}")).map(|tensor| (format!("{module}{FORMAT}"), tensor));
        let encoding =
            format.map(|(name, tensor)| parse_format(&tensor, &name, &read)).transpose().and_then(|format| {
                let scale = match &scale_name {
                    Some(name) => parse_scale(
                        &stored(name).expect("a tensor that was found"),
                        name,
                        target.shape,
                        &read,
                    )?,
                    None => Scale::One,
                };
                encoding(&target, format.as_ref(), scale)
            });
        found.weights.insert(weight, encoding);
    }
    found
}

/// How a weight is stored.
fn encoding(target: &Stored<'_>, format: Option<&Format>, scale: Scale) -> Result<Encoding, String> {
    let said = format.map(|format| format.format.as_str());
    match (target.encoding, target.dtype, said) {
        (Encoding::F8E4m3(_), _, None | Some("float8_e4m3fn")) => Ok(Encoding::F8E4m3(scale)),
        (Encoding::F8E5m2(_), _, None | Some("float8_e5m2")) => Ok(Encoding::F8E5m2(scale)),
        (_, Dtype::I8, Some("int8_tensorwise")) => {
            let format = format.expect("a format that was named");
            if matches!(scale, Scale::One) {
                return Err("expected a scale beside 8-bit integers, got none".into());
            }
            if !format.convrot {
                return Ok(Encoding::Int8(scale, None));
            }
            let side = format.convrot_groupsize.unwrap_or(0);
            match target.shape {
                // A weight is rotated before it is scaled row by row, so that either may be undone first.
                [_, inputs @ ..]
                    if is_side(side) && inputs.iter().product::<usize>().is_multiple_of(side) =>
                {
                    Ok(Encoding::Int8(scale, Some(side)))
                }
                shape => Err(format!(
                    "convrot_groupsize: expected a power of 4 that divides the rows of {shape:?}, got {side}"
                )),
            }
        }
        // A layer that was left in floats.
        (Encoding::Plain, dtype, None)
            if dtype.is_float() && matches!(scale, Scale::One | Scale::Number(1.0)) =>
        {
            Ok(Encoding::Plain)
        }
        (_, _, Some(format)) => Err(format!("stored as {format}, which cannot be read")),
        (_, dtype, None) => Err(format!("expected a scale beside 8-bit floats, got one beside {dtype}")),
    }
}

fn parse_format(tensor: &Stored<'_>, name: &str, read: impl Fn(&str) -> Vec<u8>) -> Result<Format, String> {
    let count: usize = tensor.shape.iter().product();
    if tensor.dtype != Dtype::U8 || count > MAX_FORMAT_BYTES {
        return Err(format!(
            "{name}: expected at most {MAX_FORMAT_BYTES} bytes of JSON, got {} {:?}",
            tensor.dtype, tensor.shape
        ));
    }
    serde_json::from_slice(&read(name))
        .map_err(|error| format!("{name}: expected JSON with a format: {error}"))
}

/// One number, or one a row of the weight.
fn parse_scale(
    tensor: &Stored<'_>,
    name: &str,
    weight: &[usize],
    read: impl Fn(&str) -> Vec<u8>,
) -> Result<Scale, String> {
    let count = tensor.shape.iter().try_fold(1usize, |count, &dim| count.checked_mul(dim));
    let rows = weight.first().copied().unwrap_or(1);
    let is_column = tensor.shape.iter().skip(1).all(|&dim| dim == 1);
    let refuse = || {
        format!(
            "{name}: expected one float, or one for each of {rows} rows, got {} {:?}",
            tensor.dtype, tensor.shape
        )
    };
    let size = count.filter(|count| (*count == 1 || *count == rows) && is_column).ok_or_else(refuse)?;
    if *tensor.encoding != Encoding::Plain || size * tensor.dtype.size_bytes() > MAX_SCALE_BYTES {
        return Err(refuse());
    }
    let values = floats(tensor.dtype, &read(name)).ok_or_else(refuse)?;
    if let Some(value) = values.iter().find(|value| !value.is_finite()) {
        return Err(format!("{name}: expected finite numbers, got {value}"));
    }
    Ok(match values[..] {
        [scale] => Scale::Number(scale),
        _ => Scale::Rows(values),
    })
}
