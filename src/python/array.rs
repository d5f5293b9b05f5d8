//! Latents as numpy arrays, and arrays as latents. It knows shapes, and nothing of what the numbers mean.

use pyo3::buffer::PyBuffer;
use pyo3::prelude::*;
use pyo3::types::PyByteArray;

use crate::binding::usage;
use crate::error::{Error as Problem, ErrorKind};
use crate::tensor::LatentShape;

/// An array of `[channels, height_cells, width_cells]` numbers, of its own.
pub(super) fn array<'py>(py: Python<'py>, shape: LatentShape, values: &[f32]) -> PyResult<Bound<'py, PyAny>> {
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_ne_bytes()).collect();
    let flat = py.import("numpy")?.call_method1("frombuffer", (PyByteArray::new(py, &bytes), "float32"))?;
    flat.call_method1("reshape", (shape.channels, shape.height_cells, shape.width_cells))
}

/// Numbers of an array of 3 dimensions, which are not read yet.
pub(super) struct Latents {
    buffer: PyBuffer<f32>,
    pub(super) shape: LatentShape,
}

impl Latents {
    pub(super) fn of(given: &Bound<'_, PyAny>) -> PyResult<Self> {
        let refuse = |got: String| {
            let problem = format!("latents: expected an array of float32 with 3 dimensions, got {got}");
            PyErr::from(usage(problem).help("an array of other numbers is converted by .astype(\"float32\")"))
        };
        // Of numbers in the other byte order pyo3 0.30 says that they fit.
        let is_native = |buffer: &PyBuffer<f32>| matches!(buffer.format().to_bytes(), b"f" | b"@f" | b"=f");
        let Some(buffer) = PyBuffer::<f32>::get(given).ok().filter(is_native) else {
            let of = given.getattr("dtype").map_or(String::new(), |dtype| format!(" of {dtype}"));
            return Err(refuse(format!("{}{of}", given.get_type().name()?)));
        };
        let &[channels, height_cells, width_cells] = buffer.shape() else {
            return Err(refuse(format!("{} dimensions", buffer.dimensions())));
        };
        Ok(Self { buffer, shape: LatentShape { channels, height_cells, width_cells } })
    }

    /// The numbers; [`ErrorKind::Memory`] where there is no room for them, as an array can be larger than its memory.
    pub(super) fn read(&self, py: Python<'_>) -> PyResult<Vec<f32>> {
        let (mut values, count) = (Vec::new(), self.buffer.item_count());
        values.try_reserve_exact(count).map_err(|error| {
            let problem = format!("latents: memory: expected room for {count} numbers");
            Problem::new(ErrorKind::Memory, problem).source(error)
        })?;
        values.resize(count, 0.0);
        self.buffer.copy_to_slice(py, &mut values)?;
        Ok(values)
    }
}
