//! The class `calotype.Pipeline`: opened, planned, called. It knows nothing of how a call computes.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::array::{Latents, array};
use super::call::Shared;
use super::error::setting;
use super::images::{self, Images};
use super::keyword;
use super::run::Run;
use crate::binding::{Binding, Settings, usage};
use crate::plan::Budget;
use crate::recipe::Recipe;

/// The most images of one call, as many as `--count` takes.
const MAX_IMAGES: u32 = u16::MAX as u32;

/// An opened model.
#[pyo3::pyclass(frozen, module = "calotype")]
pub struct Pipeline {
    shared: Arc<Shared>,
    warnings: Mutex<Vec<String>>,
}

/// How much memory a run will take.
#[pyo3::pyclass(frozen, get_all, module = "calotype")]
pub struct Plan {
    /// The most that the process will have.
    peak_bytes: u64,
    /// The least budget with which the run could be planned.
    least_bytes: u64,
    /// The most that it may have.
    budget_bytes: u64,
}

#[pyo3::pymethods]
impl Plan {
    fn __repr__(&self) -> String {
        let Self { peak_bytes, least_bytes, budget_bytes } = self;
        format!("<calotype.Plan: peak {peak_bytes}, least {least_bytes}, budget {budget_bytes} bytes>")
    }
}

#[pyo3::pymethods]
impl Pipeline {
    #[new]
    #[pyo3(signature = (model=None, *, memory=None, threads=0, provider=None, cache=None, onnxruntime=None, **files))]
    #[allow(clippy::too_many_arguments)]
    fn new(
        py: Python<'_>,
        model: Option<&Bound<'_, PyAny>>,
        memory: Option<&Bound<'_, PyAny>>,
        threads: u32,
        provider: Option<String>,
        cache: Option<PathBuf>,
        onnxruntime: Option<PathBuf>,
        files: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<Self> {
        let mut recipe = keyword::recipe(None, files, py)?;
        if let Some(model) = model {
            let named = PyDict::new(py);
            named.set_item("model", model)?;
            if recipe.model.is_some() {
                return Err(PyTypeError::new_err("expected model, or a recipe with one, got both"));
            }
            recipe.model = keyword::parse(&named)?.model;
        }
        let settings = Settings {
            recipe,
            library: onnxruntime,
            installed: installed(py)?,
            provider,
            cache,
            budget: memory.map(budget).transpose()?,
            threads,
            name: setting,
        };
        let mut warnings = Vec::new();
        let binding = py.detach(|| Binding::open(settings, &mut |line| warnings.push(line.to_owned())))?;
        Ok(Self { shared: Arc::new(Shared::new(binding)), warnings: Mutex::new(warnings) })
    }

    /// A line for each thing in the model's files that is not used, and for what `encode_image` and `decode_latents` noted.
    #[getter]
    fn warnings(&self) -> Vec<String> {
        self.warnings.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Generates images.
    #[pyo3(signature = (prompt=None, *, num_images_per_prompt=1, callback_on_step_end=None, **settings))]
    fn __call__(
        &self,
        py: Python<'_>,
        prompt: Option<&Bound<'_, PyAny>>,
        num_images_per_prompt: u32,
        callback_on_step_end: Option<&Bound<'_, PyAny>>,
        settings: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<Images> {
        if !(1..=MAX_IMAGES).contains(&num_images_per_prompt) {
            let problem =
                format!("num_images_per_prompt: expected 1 to {MAX_IMAGES}, got {num_images_per_prompt}");
            return Err(usage(problem).into());
        }
        if callback_on_step_end.is_some_and(|callback| !callback.is_callable()) {
            return Err(PyTypeError::new_err("callback_on_step_end: expected a function"));
        }
        let recipe = keyword::recipe(prompt, settings, py)?;
        let drawing = self.shared.draw()?;
        let (mut finished, mut warnings) = (Vec::new(), Vec::new());
        let request = self.shared.call(py, |state| {
            let request = state.binding.request(recipe, &mut |line| warnings.push(line.to_owned()))?;
            request.check_seeds(num_images_per_prompt.into())?;
            Ok(request)
        })?;
        for image in 0..u64::from(num_images_per_prompt) {
            let request = request.with_seed(request.seed() + image);
            let run = Bound::new(py, Run::begin(py, &self.shared, request, None, Vec::new())?)?;
            let drawn = Run::draw(&run, callback_on_step_end);
            let (image, lines) = drawn.inspect_err(|_| run.get().end())?;
            finished.push(image);
            lines.into_iter().for_each(|line| {
                if !warnings.contains(&line) {
                    warnings.push(line);
                }
            });
        }
        drop(drawing);
        Images::new(py, finished, warnings)
    }

    /// Predicts the memory of a run, before anything is loaded.
    #[pyo3(signature = (prompt=None, **settings))]
    fn plan(
        &self,
        py: Python<'_>,
        prompt: Option<&Bound<'_, PyAny>>,
        settings: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<Plan> {
        let recipe = keyword::recipe(prompt, settings, py)?;
        self.shared.expect_idle()?;
        self.shared.call(py, |state| {
            let request = state.binding.request(recipe, &mut |_| {})?;
            let plan = state.binding.plan(&request)?;
            let (peak_bytes, least_bytes) = (plan.peak_bytes(), plan.least_bytes());
            Ok(Plan { peak_bytes, least_bytes, budget_bytes: plan.budget_bytes() })
        })
    }

    /// Begins a run, to be taken step by step.
    #[pyo3(signature = (prompt=None, **settings))]
    fn begin(
        &self,
        py: Python<'_>,
        prompt: Option<&Bound<'_, PyAny>>,
        settings: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<Run> {
        self.begin_run(py, keyword::recipe(prompt, settings, py)?, None)
    }

    /// Begins a run where another one was when it gave this snapshot.
    #[pyo3(signature = (snapshot, prompt=None, **settings))]
    fn restore(
        &self,
        py: Python<'_>,
        snapshot: &[u8],
        prompt: Option<&Bound<'_, PyAny>>,
        settings: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<Run> {
        self.begin_run(py, keyword::recipe(prompt, settings, py)?, Some(snapshot))
    }

    /// The latents of an image.
    fn encode_image<'py>(&self, image: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        let (py, image) = (image.py(), images::pixels(image)?);
        self.shared.expect_idle()?;
        let (shape, latents) =
            self.shared.call(py, |state| state.binding.encode_image(&image, &mut |line| self.note(line)))?;
        array(py, shape, &latents)
    }

    /// The image of latents.
    fn decode_latents<'py>(&self, array: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        let (py, latents) = (array.py(), Latents::of(array)?);
        self.shared.expect_idle()?;
        let size = self.shared.call(py, |state| state.binding.size_of(latents.shape))?;
        let values = latents.read(py)?;
        let image = self
            .shared
            .call(py, |state| state.binding.decode_latents(&values, size, &mut |line| self.note(line)))?;
        images::image(py, &image)
    }

    /// Cancels the call that computes, within its step, from any thread.
    fn cancel(&self) {
        self.shared.cancel();
    }

    fn __repr__(&self) -> &'static str {
        "<calotype.Pipeline>"
    }
}

impl Pipeline {
    fn begin_run(&self, py: Python<'_>, recipe: Recipe, snapshot: Option<&[u8]>) -> PyResult<Run> {
        self.shared.expect_idle()?;
        let mut warnings = Vec::new();
        let request = self
            .shared
            .call(py, |state| state.binding.request(recipe, &mut |line| warnings.push(line.to_owned())))?;
        Run::begin(py, &self.shared, request, snapshot, warnings)
    }

    fn note(&self, line: &str) {
        let mut warnings = self.warnings.lock().unwrap_or_else(PoisonError::into_inner);
        if !warnings.iter().any(|known| known == line) {
            warnings.push(line.to_owned());
        }
    }
}

/// A budget: a number of bytes, or a text with a unit.
fn budget(given: &Bound<'_, PyAny>) -> PyResult<Budget> {
    match given.extract::<u64>() {
        Ok(bytes) => Ok(Budget::of_bytes(bytes)),
        Err(_) => {
            let text: String = given.extract().map_err(|_| {
                PyTypeError::new_err("memory: expected a number of bytes, or a text as in \"300MiB\"")
            })?;
            Ok(text.parse::<Budget>()?)
        }
    }
}

/// The library of PyPI's `onnxruntime`, or of what is installed in its place; it is not imported.
fn installed(py: Python<'_>) -> PyResult<Option<PathBuf>> {
    let spec = py.import("importlib.util")?.call_method1("find_spec", ("onnxruntime",))?;
    if spec.is_none() {
        return Ok(None);
    }
    let folders: Option<Vec<PathBuf>> = spec.getattr("submodule_search_locations")?.extract()?;
    let is_library = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with("libonnxruntime.") || name == "onnxruntime.dll"
    };
    let inside = |folder: PathBuf| {
        let files = std::fs::read_dir(folder.join("capi")).ok()?;
        files.flatten().map(|file| file.path()).find(is_library)
    };
    Ok(folders.into_iter().flatten().find_map(inside))
}
