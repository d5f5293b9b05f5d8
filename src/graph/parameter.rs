//! Parameters: what a graph declares without data, for weights to fill.

use super::OPEN_LOCATION;
use super::dtype::dtype;
use super::proto::TensorProto;
use crate::weights::Dtype;

/// A parameter that a graph declares without data, for weights to fill.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parameter {
    /// Its name in the reference implementation, and so in the weights.
    pub name: String,
    /// The type in which the graph computes with it.
    pub dtype: Dtype,
    /// Its size in elements, outermost dimension first.
    pub shape: Vec<usize>,
    /// Whether the graph takes it as `[in, out]`, where the reference implementation has `[out, in]`.
    pub(super) transposed: bool,
    /// Index into the initializers.
    pub(super) initializer: usize,
}

impl Parameter {
    /// Whether the graph takes it as `[in, out]`, where the reference implementation has `[out, in]`.
    pub fn is_transposed(&self) -> bool {
        self.transposed
    }
}

pub(super) fn parameter(initializer: usize, tensor: &TensorProto) -> Result<Parameter, String> {
    let name = checked_name(tensor.name())?;
    // A graph could name any file, and any place in it.
    let location =
        tensor.external_data.iter().find(|entry| entry.key() == "location").map_or("", |entry| entry.value());
    if location != OPEN_LOCATION {
        return Err(format!("{name}: expected no data ({OPEN_LOCATION:?}), got data in file {location:?}"));
    }
    declared(initializer, tensor)
}

pub(super) fn declared(initializer: usize, tensor: &TensorProto) -> Result<Parameter, String> {
    let name = checked_name(tensor.name())?;
    let dtype = dtype(tensor.data_type()).map_err(|problem| format!("{name}: {problem}"))?;
    let sizes = tensor.dims.iter().map(|&size| {
        usize::try_from(size).map_err(|_| format!("{name}: dimension: expected a size, got {size}"))
    });
    let shape = sizes.collect::<Result<_, _>>()?;
    Ok(Parameter { shape, name, dtype, transposed: false, initializer })
}

/// Names end up in C strings.
pub(super) fn checked_name(name: &str) -> Result<String, String> {
    if name.is_empty() || name.contains('\0') {
        return Err(format!("{name:?}: expected a name"));
    }
    Ok(name.to_owned())
}
