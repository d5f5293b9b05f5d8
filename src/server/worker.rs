//! The one thread that generates images: it takes jobs from the queue, and keeps the pipeline of the last one.
//! It knows nothing of HTTP.

use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};
use std::time::{Instant, SystemTime};

use super::queue::{Finished, Job, Queue, setting};
use crate::certify;
use crate::engine::{Library, SessionOptions};
use crate::model::Model;
use crate::pipeline::{Options, Output, Pipeline};
use crate::plan::{Budget, Plan};
use crate::provenance::{provenance, providers, shares};
use crate::recipe::parameters::{self, Addition};
use crate::recipe::{Receipt, Recipe};
use crate::request::Request;
use crate::stage::blend::finished;
use crate::{Error, ErrorKind};

/// As many as make opening a provider's session worth it, however long it takes.
const MANY_IMAGES: u64 = 1 << 20;

/// A model that a server offers.
pub struct Served {
    /// Its name in requests.
    pub name: String,
    /// It.
    pub model: Model,
    /// What every recipe begins with: the model's files, and what was added to it.
    pub recipe: Recipe,
    /// What was added to it.
    pub additions: Vec<Addition>,
    /// The hash by which A1111 names it, once it is known.
    pub sha256: Arc<OnceLock<String>>,
}

/// What a worker needs.
pub(super) struct Worker {
    pub(super) queue: Arc<Queue>,
    pub(super) models: Arc<Vec<Served>>,
    pub(super) session: SessionOptions,
    pub(super) budget: Option<Budget>,
    pub(super) library: &'static Library,
    pub(super) opened: Option<(usize, Pipeline)>,
}

impl Worker {
    /// Works until the queue is closed.
    pub(super) fn run(mut self) {
        while let Some(job) = self.queue.next() {
            let result = catch_unwind(AssertUnwindSafe(|| self.generate(&job))).unwrap_or_else(|_| {
                // What it left is not trusted.
                self.opened = None;
                Err(Error::new(ErrorKind::Internal, "internal error (a bug in calotype)"))
            });
            self.queue.finish(&job, result);
        }
    }

    fn generate(&mut self, job: &Job) -> Result<(), Error> {
        let Some(first) = job.take_request() else {
            return Err(Error::new(ErrorKind::Internal, "expected a job that has not run, got one that has"));
        };
        let mut warnings = first.warnings(&self.models[job.model].model)?.lines(setting);
        warnings.extend(self.open(job.model, &first)?);
        job.update(|state| state.warnings.extend(warnings));
        for index in 0..job.count {
            self.generate_one(job, &first.with_seed(first.seed() + index))?;
        }
        Ok(())
    }

    /// Opens the pipeline of a model for a request, where the one that is open is another's or too small. Returns what is
    /// to be said of the request's images.
    fn open(&mut self, model: usize, request: &Request) -> Result<Vec<String>, Error> {
        let served = &self.models[model];
        let fits = self
            .opened
            .as_ref()
            .is_some_and(|(opened, pipeline)| *opened == model && pipeline.covers(request));
        if fits {
            // A plan that covers the request has counted its images.
            return request.load(u64::MAX);
        }
        self.opened = None;
        crate::engine::trim();
        let (model_of, budget) = (&served.model, self.budget);
        let mut session = self.session.clone();
        let choice = certify::choose(model_of, request, MANY_IMAGES, &session, budget.is_some())?;
        if let Some(choice) = &choice {
            session.providers = choice.providers.clone();
        }
        let plan = Plan::for_run(budget, model_of, request, &session)?;
        let room_bytes = match (&plan, budget) {
            (None, Some(budget)) => budget.bytes(),
            _ => u64::MAX,
        };
        let mut notes = request.load(room_bytes)?;
        notes.extend(choice.map(|choice| format!("provider auto: {choice}")));
        let options = Options { session, plan };
        self.opened = Some((model, Pipeline::open(&served.model, &options)?));
        Ok(notes)
    }

    fn generate_one(&mut self, job: &Job, request: &Request) -> Result<(), Error> {
        let served = &self.models[job.model];
        let Some((_, pipeline)) = &mut self.opened else {
            return Err(Error::new(ErrorKind::Internal, "expected an open pipeline, got none"));
        };
        job.update(|state| {
            state.step = 0;
            state.began = Some(Instant::now());
        });
        let mut run = pipeline.begin(request)?;
        let steps = run.steps(|run| {
            self.queue.counts.steps.fetch_add(1, Ordering::Relaxed);
            let wants_preview = job.wants_previews.load(Ordering::Relaxed);
            // A job is not lost for a preview of it.
            let preview = wants_preview.then(|| run.preview().ok().flatten()).flatten();
            job.update(|state| {
                state.step = run.progress().done;
                if let Some(preview) = preview {
                    state.preview = Some(Arc::new(preview));
                }
            });
            if job.is_interrupted() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        match steps {
            // What there is by now is what was asked for.
            Err(error) if error.kind() == ErrorKind::Cancelled && job.is_interrupted() => {}
            steps => steps?,
        }
        let is_whole = run.is_done();
        let (output, warnings) = if is_whole {
            let output = run.finish()?;
            let warnings = output.warnings();
            (output, warnings)
        } else {
            let denoised = run.denoised().to_vec();
            let taken = run.request().clone();
            drop(run);
            let warning = "interrupted: the image shows the last completed step";
            let image = pipeline.decode_latents(&denoised, request.size())?;
            (Output::of(finished(image, &taken)?), vec![warning.to_owned()])
        };
        let mut recipe = request.recipe().with_images_named()?;
        recipe.model.clone_from(&served.recipe.model);
        let (provider, shares) = (providers(pipeline.placements()), shares(pipeline.placements()));
        let made = provenance(
            &output,
            request,
            &served.model,
            served.sha256.get().cloned(),
            self.library,
            provider,
            shares,
        );
        let receipt = Receipt { recipe, provenance: Some(made) };
        let finished = Finished {
            parameters: parameters::write(&receipt, &served.additions),
            receipt: is_whole.then_some(receipt),
            seed: request.seed(),
            time: SystemTime::now(),
            image: output.image,
        };
        self.queue.counts.images.fetch_add(1, Ordering::Relaxed);
        job.update(|state| {
            // The images of a job share their prompt.
            for warning in warnings {
                if !state.warnings.contains(&warning) {
                    state.warnings.push(warning);
                }
            }
            state.images.push(Arc::new(finished));
        });
        Ok(())
    }
}
