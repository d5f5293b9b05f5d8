//! Values: tensors that are made once and read by many runs. It knows nothing of sessions.

use std::sync::Arc;

use super::data::{Elements, TensorRef};
use super::library::Library;
use super::sys;
use crate::graph::{Dim, Port};
use crate::weights::Dtype;
use crate::{Error, ErrorKind};

/// A tensor that is made once and read by any number of runs, such as a prompt's text states: see
/// [`Session::run_bound`](super::Session::run_bound). Cloning it copies no elements.
#[derive(Clone)]
pub struct Value {
    shape: Vec<usize>,
    dtype: Dtype,
    len: usize,
    tensor: Arc<sys::Value>,
}

impl Value {
    /// Takes `elements` in row-major order, `shape` with the outermost dimension first.
    ///
    /// # Errors
    /// [`ErrorKind::Internal`] when they do not agree; [`ErrorKind::Runtime`] without an ONNX Runtime library.
    pub fn new(shape: Vec<usize>, elements: impl Into<Elements>) -> Result<Self, Error> {
        Library::load(None)?;
        let elements = elements.into();
        let (len, dtype) = (elements.as_data().len(), elements.as_data().dtype());
        if !TensorRef::new(&shape, elements.as_data()).is_whole() {
            return Err(Error::new(
                ErrorKind::Internal,
                format!("value: expected elements of shape {shape:?}, got {len}"),
            ));
        }
        let tensor = Arc::new(sys::Value::of(shape.clone(), elements)?);
        Ok(Self { shape, dtype, len, tensor })
    }

    pub(super) fn tensor(&self) -> &Arc<sys::Value> {
        &self.tensor
    }
}

/// What an input is given.
#[derive(Clone, Copy)]
pub(super) enum Fed<'a> {
    Slice(TensorRef<'a>),
    Value(&'a Value),
}

impl Fed<'_> {
    pub(super) fn shape(&self) -> &[usize] {
        match self {
            Self::Slice(tensor) => tensor.shape,
            Self::Value(value) => &value.shape,
        }
    }

    pub(super) fn dtype(&self) -> Dtype {
        match self {
            Self::Slice(tensor) => tensor.data.dtype(),
            Self::Value(value) => value.dtype,
        }
    }

    /// How many elements there are.
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Slice(tensor) => tensor.data.len(),
            Self::Value(value) => value.len,
        }
    }

    pub(super) fn size_bytes(&self) -> u64 {
        (self.len() * self.dtype().size_bytes()) as u64
    }

    pub(super) fn is_whole(&self) -> bool {
        match self {
            Self::Slice(tensor) => tensor.is_whole(),
            Self::Value(_) => true,
        }
    }

    pub(super) fn fits(&self, port: &Port) -> bool {
        self.dtype() == port.dtype
            && self.shape().len() == port.dims.len()
            && self.shape().iter().zip(&port.dims).all(|(size, dim)| match dim {
                Dim::Fixed(fixed) => size == fixed,
                Dim::Free(_) => true,
            })
    }
}
