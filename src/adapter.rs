//! Adapters: small files that change a model when it is loaded. It knows whose weights they change, and no graph.

pub mod embedding;
pub mod lora;

use std::fmt;

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
    let halves = || bytes.chunks_exact(2).map(|b| [b[0], b[1]]);
    let values: Vec<f32> = match view.dtype() {
        Dtype::F32 => bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
        Dtype::F16 => halves().map(|half| f16::from_le_bytes(half).to_f32()).collect(),
        Dtype::Bf16 => halves().map(|half| bf16::from_le_bytes(half).to_f32()).collect(),
        other => {
            return Err(Error::new(
                ErrorKind::Model,
                format!("{place}: expected floats of 16 or 32 bits, got {other}"),
            ));
        }
    };
    match values.iter().position(|value| !value.is_finite()) {
        Some(index) => Err(Error::new(
            ErrorKind::Model,
            format!("{place}: expected finite values, got {} at index {index}", values[index]),
        )),
        None => Ok(values),
    }
}
