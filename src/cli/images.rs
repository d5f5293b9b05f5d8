//! A model and its pipeline, open for requests: their images, one after another, and the receipts of these.

use std::io::{self, IsTerminal};
use std::ops::ControlFlow;
use std::time::Instant;

use calotype::deadline::Deadline;
use calotype::engine::{Library, Providers, SessionOptions};
use calotype::error::shortened;
use calotype::image_file::RecipeText;
use calotype::model::Model;
use calotype::pipeline::{Options, Output, Pipeline, Progress, Run};
use calotype::plan::Plan;
use calotype::provenance::{provenance, providers, shares};
use calotype::recipe::parameters::{self, Addition};
use calotype::recipe::{Receipt, Recipe};
use calotype::request::Request;
use calotype::{Error, ErrorKind};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::Value;

use super::drawing::Drawing;
use super::interrupt::Heeded;
use super::output::Destination;
use super::receipt::Hashes;
use super::{provider, say};

/// A model and its pipeline.
pub(super) struct Opened {
    pub(super) model: Model,
    /// The small files that were added to it.
    pub(super) additions: Vec<Addition>,
    pub(super) pipeline: Pipeline,
    /// Components whose placement has been reported.
    placed: usize,
    hashes: Hashes,
    library: &'static Library,
    /// As they were chosen for the first request.
    providers: Providers,
    /// How that was, where it was left open.
    pub(super) choice: Option<Value>,
}

impl Opened {
    /// Plans the images of a request within the budget of the flags, loads what they start from, and opens the pipeline. With
    /// `--provider auto` on the providers of an earlier image, `before`, or on those that are chosen.
    pub(super) fn open(
        model: Model,
        additions: Vec<Addition>,
        request: &Request,
        drawing: &Drawing,
        before: Option<&str>,
        library: &'static Library,
    ) -> Result<Self, Error> {
        let session = drawing.session.options()?;
        let images = drawing.count.into();
        let (providers, choice) =
            provider::choose(&model, request, images, &session, drawing.session.memory, before, library)?;
        let pipeline = pipeline(&model, request, drawing, &providers)?;
        let hashes = Hashes::begin(&model, &request.recipe());
        let placed = pipeline.placements().count();
        Ok(Self { model, additions, pipeline, placed, hashes, library, providers, choice })
    }

    /// The same for another request of this model: the pipeline stays open where its plan covers the request.
    pub(super) fn open_for(self, request: &Request, drawing: &Drawing) -> Result<Self, Error> {
        if self.pipeline.covers(request) {
            // A plan that covers the request has counted its images.
            request.load(u64::MAX)?.into_iter().for_each(say);
            return Ok(self);
        }
        let Self { model, additions, pipeline: before, hashes, library, providers, choice, .. } = self;
        drop(before);
        let pipeline = pipeline(&model, request, drawing, &providers)?;
        let placed = pipeline.placements().count();
        Ok(Self { model, additions, pipeline, placed, hashes, library, providers, choice })
    }

    /// Generates an image, from a snapshot if there is one, or stops when a signal comes; `after_step` sees the run after each
    /// step.
    pub(super) fn draw(
        &mut self,
        request: &Request,
        mut snapshot: Option<Vec<u8>>,
        mut after_step: impl FnMut(&mut Run),
    ) -> Result<Output, Error> {
        let heeded = Heeded::new();
        let bar = progress_bar(request.steps_taken());
        let mut take_steps = |mut run: Run| {
            run.steps(|run| {
                bar.set_position(run.progress().done as u64);
                after_step(run);
                if heeded.is_stopped() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            })?;
            run.finish()
        };
        let output = loop {
            let (is_resumed, begun) = match snapshot.take() {
                Some(snapshot) => (true, self.pipeline.restore(request, &snapshot)),
                None => (false, self.pipeline.begin(request)),
            };
            match begun {
                Err(error) if is_resumed && error.kind() == ErrorKind::Input => {
                    say(format_args!("{error}: the image starts over"));
                }
                Err(error) => break Err(error),
                Ok(run) => {
                    if is_resumed {
                        let Progress { done, steps } = run.progress();
                        say(format_args!("resumed after step {done} of {steps}"));
                    }
                    break take_steps(run);
                }
            }
        };
        bar.finish_and_clear();
        self.drawn(&heeded, output)
    }

    /// Generates an image within a deadline, counted from `started`; the request that is given makes it again.
    pub(super) fn draw_within(
        &mut self,
        deadline: &mut Deadline,
        started: Instant,
        request: &Request,
        mut after_step: impl FnMut(&mut Run),
    ) -> Result<(Request, Output), Error> {
        let heeded = Heeded::new();
        let bar = progress_bar(request.steps_taken());
        let drawn = deadline.generate(&mut self.pipeline, request, started, |run| {
            let Progress { done, steps } = run.progress();
            bar.set_length(steps as u64);
            bar.set_position(done as u64);
            after_step(run);
            if heeded.is_stopped() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        bar.finish_and_clear();
        let (made, output) = self.drawn(&heeded, drawn)?;
        if (made.steps(), made.steps_taken()) != (request.steps(), request.steps_taken()) {
            let taken = match (made.steps_taken(), made.steps()) {
                (taken, all) if taken < all => format!("the first {taken} of {all}"),
                (_, all) => all.to_string(),
            };
            say(format_args!("deadline: expected time for {} steps, took {taken}", request.steps_taken()));
        }
        Ok((made, output))
    }

    /// What was drawn, if no signal came.
    fn drawn<T>(&mut self, heeded: &Heeded, drawn: Result<T, Error>) -> Result<T, Error> {
        let drawn = drawn?;
        // An image whose last step was done when the signal came is not wanted either.
        if heeded.is_stopped() {
            return Err(Error::new(ErrorKind::Cancelled, "stopped before the image was written"));
        }
        self.report_encoder();
        Ok(drawn)
    }

    /// Reports where the VAE encoder runs, which the first init image opens.
    fn report_encoder(&mut self) {
        let placed = self.pipeline.placements().count();
        if placed > self.placed {
            let placements = self.pipeline.placements();
            placements.filter(|placement| placement.component == "vae_encoder").for_each(provider::report);
            self.placed = placed;
        }
    }

    /// Writes an image with its receipt, which this gives.
    pub(super) fn write(
        &mut self,
        request: &Request,
        output: &Output,
        destination: &Destination,
    ) -> Result<Receipt, Error> {
        let receipt = self.receipt(request.recipe().with_images_named()?, request, output);
        output.warnings().iter().for_each(|line| say(shortened(line)));
        let parameters = parameters::write(&receipt, &self.additions);
        let text = RecipeText { parameters: &parameters, json: &receipt.to_json() };
        destination.write(&output.image, Some(text))?;
        Ok(receipt)
    }

    /// The receipt of an image: `recipe`, in which files are named, gets their hashes and the image's seed.
    pub(super) fn receipt(&mut self, mut recipe: Recipe, request: &Request, output: &Output) -> Receipt {
        let model_sha256 = self.hashes.note(&mut recipe);
        let provider = providers(self.pipeline.placements());
        let shares = shares(self.pipeline.placements());
        let made = provenance(output, request, &self.model, model_sha256, self.library, provider, shares);
        let recipe = Recipe { seed: Some(request.seed()), ..recipe };
        Receipt { recipe, provenance: Some(made) }
    }
}

fn pipeline(
    model: &Model,
    request: &Request,
    drawing: &Drawing,
    providers: &Providers,
) -> Result<Pipeline, Error> {
    let options = drawing.session.options()?;
    let session = SessionOptions { cancel: Heeded::cancel(), providers: providers.clone(), ..options };
    let options = Options { plan: Plan::for_run(drawing.session.memory, model, request, &session)?, session };
    // A plan has counted them.
    let room_bytes = if options.plan.is_some() { u64::MAX } else { drawing.budget().bytes() };
    request.load(room_bytes)?.into_iter().for_each(say);
    let pipeline = Pipeline::open(model, &options)?;
    pipeline.placements().for_each(provider::report);
    Ok(pipeline)
}

fn progress_bar(steps: usize) -> ProgressBar {
    let target =
        if io::stderr().is_terminal() { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    let style = ProgressStyle::with_template("sampling {bar:30} {pos}/{len} steps, {eta} left")
        .expect("the template is right");
    ProgressBar::with_draw_target(Some(steps as u64), target).with_style(style)
}
