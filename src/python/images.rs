//! Pillow's images: those that are given, those that are made, and finished ones with their receipts. It knows nothing of how they are drawn.

use std::path::PathBuf;

use image::RgbImage;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList};

use crate::binding::{Finished, usage};
use crate::error::Error as Problem;
use crate::image_file::ImageFile;

/// Whether it is an image of Pillow's: no path and no text has these.
pub(super) fn is_image(given: &Bound<'_, PyAny>) -> bool {
    ["mode", "size", "tobytes"].iter().all(|name| given.hasattr(name).unwrap_or(false))
}

/// An image as if it were a PNG file, which is read as all files are: its mode, its transparency and its depth are the reader's.
pub(super) fn file(name: &str, given: &Bound<'_, PyAny>) -> PyResult<ImageFile> {
    let py = given.py();
    let (file, options) = (py.import("io")?.call_method0("BytesIO")?, PyDict::new(py));
    options.set_item("format", "PNG")?;
    options.set_item("compress_level", 1)?;
    given.call_method("save", (&file,), Some(&options))?;
    let bytes: Vec<u8> = file.call_method0("getvalue")?.extract()?;
    Ok(ImageFile::from_bytes(name, bytes)?)
}

/// The pixels of an image that has red, green and blue already.
pub(super) fn pixels(given: &Bound<'_, PyAny>) -> PyResult<RgbImage> {
    if !is_image(given) {
        let got = given.get_type().name()?;
        return Err(usage(format!("image: expected one of Pillow's, got {got}")).into());
    }
    let mode: String = given.getattr("mode")?.extract()?;
    if mode != "RGB" {
        let problem = usage(format!("image: expected the mode RGB, got {mode}"));
        return Err(problem.help("image.convert(\"RGB\") makes it one").into());
    }
    let (width, height): (u32, u32) = given.getattr("size")?.extract()?;
    let bytes: Vec<u8> = given.call_method0("tobytes")?.extract()?;
    let got = bytes.len();
    let image = RgbImage::from_raw(width, height, bytes).filter(|image| image.as_raw().len() == got);
    Ok(image.ok_or_else(|| {
        usage(format!("image: expected {width}x{height} pixels of 3 bytes, got {got} bytes"))
    })?)
}

/// An image of Pillow's with these pixels.
pub(super) fn image<'py>(py: Python<'py>, pixels: &RgbImage) -> PyResult<Bound<'py, PyAny>> {
    let bytes = PyBytes::new(py, pixels.as_raw());
    py.import("PIL.Image")?.call_method1("frombytes", ("RGB", pixels.dimensions(), bytes))
}

/// JSON as Python has it.
pub(super) fn loads<'py>(py: Python<'py>, json: &str) -> PyResult<Bound<'py, PyAny>> {
    py.import("json")?.call_method1("loads", (json,))
}

/// Finished images.
#[pyo3::pyclass(frozen, module = "calotype")]
pub struct Images {
    /// Of Pillow.
    #[pyo3(get)]
    images: Py<PyList>,
    /// A dict for each.
    #[pyo3(get)]
    receipts: Py<PyList>,
    /// A line for each thing that was not used or not done as asked.
    #[pyo3(get)]
    warnings: Vec<String>,
    finished: Vec<Finished>,
}

impl Images {
    pub(super) fn new(py: Python<'_>, finished: Vec<Finished>, warnings: Vec<String>) -> PyResult<Self> {
        let (images, receipts) = (PyList::empty(py), PyList::empty(py));
        for Finished { image: pixels, parameters, receipt } in &finished {
            let image = image(py, pixels)?;
            // As Pillow has them of a file.
            let info = image.getattr("info")?;
            info.set_item("parameters", parameters)?;
            info.set_item("calotype", receipt)?;
            images.append(image)?;
            receipts.append(loads(py, receipt)?)?;
        }
        Ok(Self { images: images.unbind(), receipts: receipts.unbind(), warnings, finished })
    }
}

#[pyo3::pymethods]
impl Images {
    /// Writes an image with its receipt: PNG, JPEG or WebP by the extension. The file is there whole or not at all.
    #[pyo3(signature = (path, index=None))]
    fn save(&self, py: Python<'_>, path: PathBuf, index: Option<usize>) -> PyResult<()> {
        let refuse = |expected: String| -> Problem {
            let got = index.map_or("none".into(), |index| index.to_string());
            usage(format!("index: expected {expected}, got {got}"))
        };
        let count = self.finished.len();
        let finished = match (index, &self.finished[..]) {
            (None, [only]) => only,
            (None, _) => return Err(refuse(format!("one, as there are {count} images")).into()),
            (Some(index), all) => all.get(index).ok_or_else(|| refuse(format!("a number below {count}")))?,
        };
        py.detach(|| finished.write(&path))?;
        Ok(())
    }

    fn __repr__(&self) -> String {
        format!("<calotype.Images: {}>", self.finished.len())
    }
}
