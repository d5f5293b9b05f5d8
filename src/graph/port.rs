//! Ports: what a graph is fed and what it gives, with types and dimensions.

use std::fmt;

use super::dtype::dtype;
use super::parameter::checked_name;
use super::proto::{DimensionValue, TypeValue, ValueInfoProto};
use crate::weights::Dtype;

/// An input or an output of a graph.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// The name by which it is fed or fetched.
    pub name: String,
    /// The type of its elements.
    pub dtype: Dtype,
    /// Its dimensions, outermost first.
    pub dims: Vec<Dim>,
}

/// One dimension of a [`Port`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Dim {
    /// Always this many elements.
    Fixed(usize),
    /// Any number; dimensions of the same name (which may be empty) are meant to have the same number.
    Free(String),
}

impl Port {
    /// Its type and dimensions: `F32[batch, 4, 32, 32]`.
    pub(crate) fn signature(&self) -> String {
        let dims: Vec<String> = self.dims.iter().map(Dim::to_string).collect();
        format!("{}[{}]", self.dtype, dims.join(", "))
    }
}

impl Dim {
    /// Its size where the whole is so long: one whose name ends in `/N` is the Nth part of it, rounded up.
    pub(crate) fn divided(&self, whole: usize) -> usize {
        match self {
            Self::Fixed(size) => *size,
            Self::Free(name) => {
                let part = name.rsplit_once('/').and_then(|(_, part)| part.parse::<usize>().ok());
                whole.div_ceil(part.unwrap_or(1).max(1))
            }
        }
    }
}

impl fmt::Display for Port {
    /// Name, type and dimensions: `sample: F32[batch, 4, 32, 32]`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.name, self.signature())
    }
}

impl fmt::Display for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(size) => write!(f, "{size}"),
            Self::Free(name) if name.is_empty() => f.write_str("?"),
            Self::Free(name) => f.write_str(name),
        }
    }
}

pub(super) fn port(info: &ValueInfoProto) -> Result<Port, String> {
    let name = checked_name(info.name())?;
    let Some(TypeValue::TensorType(tensor)) = info.r#type.as_ref().and_then(|kind| kind.value.as_ref())
    else {
        return Err(format!("{name}: expected a tensor, got another type"));
    };
    let dtype = dtype(tensor.elem_type()).map_err(|problem| format!("{name}: {problem}"))?;
    let shape = tensor.shape.as_ref().ok_or_else(|| format!("{name}: expected a shape, got none"))?;
    let dims = shape.dim.iter().map(|dim| match &dim.value {
        Some(DimensionValue::DimValue(size)) => usize::try_from(*size)
            .map(Dim::Fixed)
            .map_err(|_| format!("{name}: dimension: expected a size, got {size}")),
        Some(DimensionValue::DimParam(symbol)) => Ok(Dim::Free(symbol.clone())),
        None => Ok(Dim::Free(String::new())),
    });
    Ok(Port { dims: dims.collect::<Result<_, _>>()?, name, dtype })
}
