//! The elements of small constant tensors: sizes, axes, scales. It knows no operator.

use crate::graph::proto::{EXTERNAL, TensorProto};
use crate::weights::Dtype;

/// The most elements that are followed; lists on which shapes depend have a few.
pub(super) const MAX_ELEMENTS: usize = 1024;

/// Elements, row by row: integers (truth values are 0 or 1), or floats.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Content {
    Ints(Vec<i64>),
    Floats(Vec<f32>),
}

impl Content {
    /// The elements that a constant stores, if they are few and of a type that shapes depend on.
    pub(super) fn stored(tensor: &TensorProto, dtype: Dtype, elements: usize) -> Option<Self> {
        if elements > MAX_ELEMENTS || tensor.data_location() == EXTERNAL {
            return None;
        }
        if let Some(raw) = tensor.raw_data.as_deref() {
            let (bytes, rest) = (raw, raw.len() % dtype.size_bytes());
            return match dtype {
                _ if rest != 0 => None,
                Dtype::F32 => {
                    Some(Self::Floats(bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()))
                }
                Dtype::F16 => Some(Self::Floats(
                    bytes.as_chunks().0.iter().map(|b| half::f16::from_le_bytes(*b).to_f32()).collect(),
                )),
                Dtype::I64 => {
                    Some(Self::Ints(bytes.as_chunks().0.iter().map(|b| i64::from_le_bytes(*b)).collect()))
                }
                Dtype::I32 => Some(Self::Ints(
                    bytes.as_chunks().0.iter().map(|b| i32::from_le_bytes(*b).into()).collect(),
                )),
                Dtype::Bool => Some(Self::Ints(bytes.iter().map(|b| i64::from(*b)).collect())),
                _ => None,
            };
        }
        match dtype {
            Dtype::F32 => Some(Self::Floats(tensor.float_data.clone())),
            Dtype::I64 => Some(Self::Ints(tensor.int64_data.clone())),
            Dtype::I32 | Dtype::Bool => {
                Some(Self::Ints(tensor.int32_data.iter().map(|&value| value.into()).collect()))
            }
            _ => None,
        }
    }

    pub(super) fn len(&self) -> usize {
        match self {
            Self::Ints(values) => values.len(),
            Self::Floats(values) => values.len(),
        }
    }

    pub(super) fn ints(&self) -> Option<&[i64]> {
        match self {
            Self::Ints(values) => Some(values),
            Self::Floats(_) => None,
        }
    }

    pub(super) fn floats(&self) -> Option<&[f32]> {
        match self {
            Self::Floats(values) => Some(values),
            Self::Ints(_) => None,
        }
    }

    /// The elements at these places.
    pub(super) fn pick(&self, places: &[usize]) -> Option<Self> {
        fn all<T: Copy>(values: &[T], places: &[usize]) -> Option<Vec<T>> {
            places.iter().map(|&place| values.get(place).copied()).collect()
        }
        match self {
            Self::Ints(values) => all(values, places).map(Self::Ints),
            Self::Floats(values) => all(values, places).map(Self::Floats),
        }
    }

    /// As another type.
    pub(super) fn cast(&self, dtype: Dtype) -> Option<Self> {
        Some(match (self, dtype) {
            (_, Dtype::Bool) => Self::Ints(match self {
                Self::Ints(values) => values.iter().map(|&value| (value != 0).into()).collect(),
                Self::Floats(values) => values.iter().map(|&value| (value != 0.0).into()).collect(),
            }),
            (Self::Ints(values), Dtype::F32) => {
                Self::Floats(values.iter().map(|&value| value as f32).collect())
            }
            (Self::Floats(values), Dtype::F32) => Self::Floats(values.clone()),
            (Self::Ints(values), Dtype::I64) => Self::Ints(values.clone()),
            (Self::Ints(values), Dtype::I32) => {
                Self::Ints(values.iter().map(|&value| i64::from(value as i32)).collect())
            }
            (Self::Floats(values), Dtype::I64 | Dtype::I32) => {
                Self::Ints(values.iter().map(|&value| value as i64).collect())
            }
            _ => return None,
        })
    }
}

/// The distance in elements between neighbours in each dimension.
pub(super) fn strides(shape: &[usize]) -> Vec<usize> {
    let mut strides = vec![1usize; shape.len()];
    for index in (1..shape.len()).rev() {
        strides[index - 1] = strides[index].saturating_mul(shape[index]);
    }
    strides
}

/// The places, row by row, of the elements of a tensor of `shape` whose neighbours lie `strides` apart, from `first`.
/// At most [`MAX_ELEMENTS`] are computed.
pub(super) fn places(first: usize, shape: &[usize], strides: &[isize]) -> Option<Vec<usize>> {
    let elements = shape.iter().try_fold(1usize, |all, &size| all.checked_mul(size))?;
    if elements > MAX_ELEMENTS {
        return None;
    }
    (0..elements)
        .map(|mut index| {
            let mut place = first as isize;
            for (&size, &stride) in shape.iter().zip(strides).rev() {
                place = place.checked_add(stride.checked_mul((index % size) as isize)?)?;
                index /= size;
            }
            usize::try_from(place).ok()
        })
        .collect()
}
