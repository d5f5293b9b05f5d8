//! Adapters: small files that change a model when it is loaded. It knows whose weights they change, and no graph.

pub mod embedding;
pub mod lora;

use std::fmt;

use half::slice::HalfFloatSliceExt as _;
use half::{bf16, f16};

use crate::weights::{Dtype, TensorView};
use crate::{Error, ErrorKind};

/// A network that adapters can change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Component {
    /// The U-Net.
    Unet,
    /// The only text encoder, or the first.
    TextEncoder,
    /// Stable Diffusion XL's second text encoder.
    TextEncoder2,
}

impl fmt::Display for Component {
    /// The name of its folder in diffusers' layout.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unet => "unet",
            Self::TextEncoder => "text_encoder",
            Self::TextEncoder2 => "text_encoder_2",
        })
    }
}

/// The elements of a tensor of floats, as 32-bit floats in the order in which they are stored.
fn floats(place: &str, view: TensorView<'_>) -> Result<Vec<f32>, Error> {
    let bytes = view.to_bytes();
    let values: Vec<f32> = match view.dtype() {
        Dtype::F32 => bytes.as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect(),
        Dtype::F16 => {
            let halves = bytes.as_chunks().0.iter().map(|&bytes| f16::from_le_bytes(bytes));
            halves.collect::<Vec<_>>().to_f32_vec()
        }
        Dtype::Bf16 => {
            let halves = bytes.as_chunks().0.iter().map(|&bytes| bf16::from_le_bytes(bytes));
            halves.collect::<Vec<_>>().to_f32_vec()
        }
        // Beyond the range of single precision they become infinite, and are refused below.
        Dtype::F64 => bytes.as_chunks().0.iter().map(|&bytes| f64::from_le_bytes(bytes) as f32).collect(),
        // Floats of 8 bits are 16-bit ones in `Weights`.
        other => return Err(Error::new(ErrorKind::Model, format!("{place}: expected floats, got {other}"))),
    };
    match first_not_finite(&values) {
        Some(index) => Err(Error::new(
            ErrorKind::Model,
            format!("{place}: expected finite values, got {} at index {index}", values[index]),
        )),
        None => Ok(values),
    }
}

/// The little-endian bytes of values as a type of floats, to which they are rounded; or the first value that is not
/// finite in it.
fn to_bytes(values: &[f32], dtype: Dtype) -> Result<Vec<u8>, f32> {
    let refuse = |index: Option<usize>| index.map_or(Ok(()), |index| Err(values[index]));
    Ok(match dtype {
        Dtype::F16 => {
            let mut halves = vec![f16::ZERO; values.len()];
            halves.convert_from_f32_slice(values);
            refuse(halves.iter().position(|half| !half.is_finite()))?;
            little_endian(&halves, |half| half.to_le_bytes())
        }
        Dtype::Bf16 => {
            let mut halves = vec![bf16::ZERO; values.len()];
            halves.convert_from_f32_slice(values);
            refuse(halves.iter().position(|half| !half.is_finite()))?;
            little_endian(&halves, |half| half.to_le_bytes())
        }
        _ => {
            refuse(first_not_finite(values))?;
            little_endian(values, |value| value.to_le_bytes())
        }
    })
}

fn little_endian<T: Copy, const SIZE: usize>(values: &[T], bytes_of: impl Fn(T) -> [u8; SIZE]) -> Vec<u8> {
    let mut bytes = vec![0; values.len() * SIZE];
    for (bytes, &value) in bytes.as_chunks_mut().0.iter_mut().zip(values) {
        *bytes = bytes_of(value);
    }
    bytes
}

/// Looked for without a branch for each value, of which there are millions.
fn first_not_finite(values: &[f32]) -> Option<usize> {
    let largest = values.iter().map(|value| value.abs().to_bits()).max();
    if largest.is_some_and(|bits| bits >= f32::INFINITY.to_bits()) {
        values.iter().position(|value| !value.is_finite())
    } else {
        None
    }
}
