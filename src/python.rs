//! The Python module `calotype`: a call of the library's own API behind each function, and exceptions for its errors. It knows nothing
//! of arithmetic, and has no defaults of its own.
//!
//! [The manual](crate::manual::python) says how it is used, and how maturin makes a wheel of it. What its types are is in `calotype.pyi`.

mod array;
mod call;
mod error;
mod images;
mod keyword;
mod pipeline;
mod run;

/// What `import calotype` gives.
#[pyo3::pymodule(name = "calotype")]
mod module {
    use pyo3::prelude::*;

    #[pymodule_export]
    use super::error::{
        CancelledError, Error, InputError, InternalError, MemoryError, ModelError, NumericError, OutputError,
        RuntimeError, UsageError,
    };
    #[pymodule_export]
    use super::images::Images;
    #[pymodule_export]
    use super::pipeline::{Pipeline, Plan};
    #[pymodule_export]
    use super::run::Run;

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        module.add("__version__", env!("CARGO_PKG_VERSION"))
    }
}
