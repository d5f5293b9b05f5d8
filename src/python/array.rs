//! Latents as numpy arrays, and arrays as latents. It knows shapes, and nothing of what the numbers mean.

use pyo3::buffer::PyBuffer;
use pyo3::prelude::*;
use pyo3::types::PyByteArray;

use crate::binding::usage;
use crate::tensor::LatentShape;

/// An array of `[channels, height_cells, width_cells]` numbers, of its own.
pub(super) fn array<'py>(py: Python<'py>, shape: LatentShape, values: &[f32]) -> PyResult<Bound<'py, PyAny>> {
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_ne_bytes()).collect();
    let flat = py.import("numpy")?.call_method1("frombuffer", (PyByteArray::new(py, &bytes), "float32"))?;
    flat.call_method1("reshape", (shape.channels, shape.height_cells, shape.width_cells))
}

/// The numbers of an array of 3 dimensions, and its shape.
pub(super) fn latents(given: &Bound<'_, PyAny>) -> PyResult<(LatentShape, Vec<f32>)> {
    let refuse = |got: String| {
        let problem = format!("latents: expected an array of float32 with 3 dimensions, got {got}");
        PyErr::from(usage(problem).help("an array of other numbers is converted by .astype(\"float32\")"))
    };
    let Ok(buffer) = PyBuffer::<f32>::get(given) else {
        let of = given.getattr("dtype").map_or(String::new(), |dtype| format!(" of {dtype}"));
        return Err(refuse(format!("{}{of}", given.get_type().name()?)));
    };
    let &[channels, height_cells, width_cells] = buffer.shape() else {
        return Err(refuse(format!("{} dimensions", buffer.dimensions())));
    };
    Ok((LatentShape { channels, height_cells, width_cells }, buffer.to_vec(given.py())?))
}
