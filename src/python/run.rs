//! The class `calotype.Run`: the run of a pipeline, step by step. It knows nothing of how a step computes.

use std::sync::{Arc, Mutex, PoisonError};

use pyo3::prelude::*;
use pyo3::types::PyBytes;

use super::array::array;
use super::call::{Shared, State};
use super::images::{self, Images, loads};
use crate::binding::{Finished, usage};
use crate::error::{Error as Problem, ErrorKind};
use crate::pipeline::{self, Progress};
use crate::request::Request;

/// A run that was begun or restored.
#[pyo3::pyclass(frozen, module = "calotype")]
pub struct Run {
    shared: Arc<Shared>,
    /// Which run of its pipeline it is.
    number: u64,
    warnings: Mutex<Vec<String>>,
}

impl Drop for Run {
    fn drop(&mut self) {
        self.shared.forget(self.number);
    }
}

#[pyo3::pymethods]
impl Run {
    /// Steps that are done.
    #[getter]
    fn done(&self, py: Python<'_>) -> PyResult<usize> {
        Ok(self.progress(py)?.done)
    }

    /// Steps in all.
    #[getter]
    fn steps(&self, py: Python<'_>) -> PyResult<usize> {
        Ok(self.progress(py)?.steps)
    }

    /// Its recipe, with nothing left to defaults.
    #[getter]
    fn recipe<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let recipe = self.with_run(py, |run| run.request().recipe().with_images_named())?;
        loads(py, &recipe.to_json())
    }

    /// A line for each thing that is not used or not done as asked.
    #[getter]
    fn warnings(&self) -> Vec<String> {
        self.noted().clone()
    }

    /// Takes the next step; how many are done then.
    fn step(&self, py: Python<'_>) -> PyResult<usize> {
        self.with_run(py, |run| pipeline::Run::step(run).map(|progress| progress.done))
    }

    fn __iter__(slf: Bound<'_, Self>) -> Bound<'_, Self> {
        slf
    }

    fn __next__(&self, py: Python<'_>) -> PyResult<Option<usize>> {
        let next = |run: &mut pipeline::Run<'_>| match run.is_done() {
            true => Ok(None),
            false => pipeline::Run::step(run).map(|progress| Some(progress.done)),
        };
        self.with_run(py, next)
    }

    /// The latents after the last step.
    fn latents<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let (shape, latents) = self.with_run(py, |run| Ok((run.request().shape, run.latents().to_vec())))?;
        array(py, shape, &latents)
    }

    /// The last estimate of the clean latents.
    fn denoised<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let (shape, latents) = self.with_run(py, |run| Ok((run.request().shape, run.denoised().to_vec())))?;
        array(py, shape, &latents)
    }

    /// What the image looks like so far, if the model can say.
    fn preview<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyAny>>> {
        let preview = self.with_run(py, |run| run.preview())?;
        preview.map(|pixels| images::image(py, &pixels)).transpose()
    }

    /// The run as bytes, for `Pipeline.restore`.
    fn snapshot<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        Ok(PyBytes::new(py, &self.with_run(py, |run| run.snapshot())?))
    }

    /// Ends the run with its image, when all steps are done.
    fn finish(&self, py: Python<'_>) -> PyResult<Images> {
        let finished = self.finish_run(py)?;
        Images::new(py, vec![finished], self.noted().clone())
    }
}

impl Run {
    /// Begins the run of a request in place of the one there is.
    pub(super) fn begin(
        py: Python<'_>,
        shared: &Arc<Shared>,
        request: Request,
        snapshot: Option<&[u8]>,
        mut warnings: Vec<String>,
    ) -> PyResult<Self> {
        let number = shared.call(py, |state| {
            state.runs += 1;
            state.binding.begin(&request, snapshot, &mut |line| warnings.push(line.to_owned()))?;
            Ok(state.runs)
        })?;
        Ok(Self { shared: Arc::clone(shared), number, warnings: Mutex::new(warnings) })
    }

    /// Takes all steps, and finishes; the callback is called after each.
    pub(super) fn draw(
        run: &Bound<'_, Self>,
        callback: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<(Finished, Vec<String>)> {
        let (py, this) = (run.py(), run.get());
        let steps = this.steps(py)?;
        while let Some(done) = this.__next__(py)? {
            let answer = callback.map(|callback| callback.call1((run,))).transpose()?;
            // Whatever else it returns, None or what diffusers' callbacks do, goes on.
            if answer.is_some_and(|answer| answer.extract::<bool>().is_ok_and(|goes_on| !goes_on)) {
                let message = format!("stopped after step {done} of {steps}");
                return Err(Problem::new(ErrorKind::Cancelled, message).into());
            }
        }
        Ok((this.finish_run(py)?, this.noted().clone()))
    }

    /// Ends it without an image.
    pub(super) fn end(&self) {
        self.shared.forget(self.number);
    }

    fn finish_run(&self, py: Python<'_>) -> PyResult<Finished> {
        self.call(py, |state| state.binding.finish(&mut |line| self.noted().push(line.to_owned())))
    }

    fn progress(&self, py: Python<'_>) -> PyResult<Progress> {
        self.with_run(py, |run| Ok(run.progress()))
    }

    fn with_run<T: Send>(
        &self,
        py: Python<'_>,
        work: impl for<'a> FnOnce(&mut pipeline::Run<'a>) -> Result<T, Problem> + Send,
    ) -> PyResult<T> {
        self.call(py, |state| state.binding.run(work)?)
    }

    fn call<T: Send>(
        &self,
        py: Python<'_>,
        work: impl FnOnce(&mut State) -> Result<T, Problem> + Send,
    ) -> PyResult<T> {
        self.shared.call(py, |state| {
            if state.runs != self.number {
                return Err(usage("run: expected the one that was begun last, got an earlier one"));
            }
            work(state)
        })
    }

    fn noted(&self) -> std::sync::MutexGuard<'_, Vec<String>> {
        self.warnings.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
