//! Data: the elements of tensors in the process's own memory, as sessions are fed them and give them.
//! It knows nothing of sessions.

use half::f16;

use crate::weights::Dtype;

/// A tensor that a graph has given.
#[derive(Clone, Debug, PartialEq)]
pub struct Output {
    /// Its size in elements, outermost dimension first.
    pub shape: Vec<usize>,
    /// Its elements in row-major order.
    pub data: Vec<f32>,
}

/// A tensor that a run takes and gives back: see [`Session::compute_owned`](super::Session::compute_owned).
#[derive(Clone, Debug)]
pub struct NamedTensor {
    /// The input that it is for.
    pub name: String,
    /// Its size in elements, outermost dimension first.
    pub shape: Vec<usize>,
    /// Its elements in row-major order.
    pub elements: Elements,
}

impl NamedTensor {
    /// Borrows it, as other runs take it.
    pub fn input(&self) -> (&str, TensorRef<'_>) {
        (&self.name, TensorRef::new(&self.shape, self.elements.as_data()))
    }

    /// A copy of a borrowed one.
    pub(super) fn copied((name, tensor): &(&str, TensorRef<'_>)) -> Self {
        Self { name: (*name).to_owned(), shape: tensor.shape.to_vec(), elements: tensor.data.to_elements() }
    }

    /// Takes it, and leaves one without elements.
    pub(super) fn take(&mut self) -> Self {
        let nothing = Self { name: String::new(), shape: Vec::new(), elements: Elements::F32(Vec::new()) };
        std::mem::replace(self, nothing)
    }
}

/// A tensor that is borrowed as an input.
#[derive(Clone, Copy, Debug)]
pub struct TensorRef<'a> {
    pub(super) shape: &'a [usize],
    pub(super) data: Data<'a>,
}

impl<'a> TensorRef<'a> {
    /// `data` in row-major order, `shape` with the outermost dimension first; [`Session::run`](super::Session::run) checks that they agree.
    pub fn new(shape: &'a [usize], data: impl Into<Data<'a>>) -> Self {
        Self { shape, data: data.into() }
    }

    pub(super) fn is_whole(&self) -> bool {
        self.shape.iter().try_fold(1usize, |elements, &dim| elements.checked_mul(dim))
            == Some(self.data.len())
    }
}

/// The elements of a [`TensorRef`].
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)] // Each is what its type says.
pub enum Data<'a> {
    F32(&'a [f32]),
    F16(&'a [f16]),
    F64(&'a [f64]),
    I64(&'a [i64]),
    I32(&'a [i32]),
    Bool(&'a [bool]),
}

impl Data<'_> {
    pub(super) fn len(&self) -> usize {
        match self {
            Self::F32(data) => data.len(),
            Self::F16(data) => data.len(),
            Self::F64(data) => data.len(),
            Self::I64(data) => data.len(),
            Self::I32(data) => data.len(),
            Self::Bool(data) => data.len(),
        }
    }

    fn to_elements(self) -> Elements {
        match self {
            Self::F32(data) => Elements::F32(data.to_vec()),
            Self::F16(data) => Elements::F16(data.to_vec()),
            Self::F64(data) => Elements::F64(data.to_vec()),
            Self::I64(data) => Elements::I64(data.to_vec()),
            Self::I32(data) => Elements::I32(data.to_vec()),
            Self::Bool(data) => Elements::Bool(data.to_vec()),
        }
    }

    pub(super) fn dtype(&self) -> Dtype {
        match self {
            Self::F32(_) => Dtype::F32,
            Self::F16(_) => Dtype::F16,
            Self::F64(_) => Dtype::F64,
            Self::I64(_) => Dtype::I64,
            Self::I32(_) => Dtype::I32,
            Self::Bool(_) => Dtype::Bool,
        }
    }
}

/// The elements of a [`Value`](super::Value) or a [`NamedTensor`].
#[derive(Clone, Debug)]
#[allow(missing_docs)] // Each is what its type says.
pub enum Elements {
    F32(Vec<f32>),
    F16(Vec<f16>),
    F64(Vec<f64>),
    I64(Vec<i64>),
    I32(Vec<i32>),
    Bool(Vec<bool>),
}

impl Elements {
    /// Borrows them.
    pub fn as_data(&self) -> Data<'_> {
        match self {
            Self::F32(data) => Data::F32(data),
            Self::F16(data) => Data::F16(data),
            Self::F64(data) => Data::F64(data),
            Self::I64(data) => Data::I64(data),
            Self::I32(data) => Data::I32(data),
            Self::Bool(data) => Data::Bool(data),
        }
    }
}

macro_rules! elements_from {
    ($($element:ty => $variant:ident),*) => {$(
        impl<'a> From<&'a [$element]> for Data<'a> {
            fn from(data: &'a [$element]) -> Self {
                Self::$variant(data)
            }
        }

        impl From<Vec<$element>> for Elements {
            fn from(data: Vec<$element>) -> Self {
                Self::$variant(data)
            }
        }
    )*};
}

elements_from!(f32 => F32, f16 => F16, f64 => F64, i64 => I64, i32 => I32, bool => Bool);
