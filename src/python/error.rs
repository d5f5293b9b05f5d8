//! The exceptions: one class for each kind of error, below `calotype.Error`. It knows nothing of what failed.

use pyo3::create_exception;
use pyo3::exceptions::PyException;
use pyo3::prelude::*;
use pyo3::types::PyType;

use crate::error::{Error as Problem, ErrorKind};

create_exception!(
    calotype,
    Error,
    PyException,
    "Whatever calotype refuses or fails at; `kind`, `place`, `expected`, `got` and `help` are its parts."
);
create_exception!(
    calotype,
    UsageError,
    Error,
    "A request that cannot be fulfilled, or a wrong use of this module."
);
create_exception!(calotype, InputError, Error, "A recipe, a snapshot or an image file that cannot be used.");
create_exception!(calotype, ModelError, Error, "The model's files are missing, damaged or not understood.");
create_exception!(
    calotype,
    MemoryError,
    Error,
    "The memory budget is too small for the request, or memory could not be had."
);
create_exception!(calotype, RuntimeError, Error, "ONNX Runtime or one of its providers is missing or unfit.");
create_exception!(calotype, CancelledError, Error, "It was cancelled.");
create_exception!(
    calotype,
    NumericError,
    Error,
    "A NaN or an infinity appeared while an image was generated."
);
create_exception!(calotype, OutputError, Error, "A file could not be written.");
create_exception!(calotype, InternalError, Error, "An internal error: a bug in calotype.");

impl From<Problem> for PyErr {
    fn from(problem: Problem) -> Self {
        Python::attach(|py| raised(py, &problem).unwrap_or_else(|error| error))
    }
}

fn raised(py: Python<'_>, problem: &Problem) -> PyResult<PyErr> {
    let (class, kind) = class(py, problem.kind());
    let error = PyErr::from_type(class, (problem.message_with(setting),));
    let value = error.value(py);
    value.setattr("kind", kind)?;
    value.setattr("place", problem.place())?;
    value.setattr("expected", problem.expected())?;
    value.setattr("got", problem.got())?;
    value.setattr("help", problem.way_out_with(setting))?;
    Ok(error)
}

fn class(py: Python<'_>, kind: ErrorKind) -> (Bound<'_, PyType>, &'static str) {
    match kind {
        ErrorKind::Usage => (py.get_type::<UsageError>(), "usage"),
        ErrorKind::Input => (py.get_type::<InputError>(), "input"),
        ErrorKind::Model => (py.get_type::<ModelError>(), "model"),
        ErrorKind::Memory => (py.get_type::<MemoryError>(), "memory"),
        ErrorKind::Runtime => (py.get_type::<RuntimeError>(), "runtime"),
        ErrorKind::Cancelled => (py.get_type::<CancelledError>(), "cancelled"),
        ErrorKind::Numeric => (py.get_type::<NumericError>(), "numeric"),
        ErrorKind::Output => (py.get_type::<OutputError>(), "output"),
        ErrorKind::Internal => (py.get_type::<InternalError>(), "internal"),
    }
}

/// How messages name a setting: the names of arguments.
pub(super) fn setting(name: &str) -> String {
    match name {
        "ort" => "`onnxruntime`".into(),
        field => format!("`{field}`"),
    }
}
