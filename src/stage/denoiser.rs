//! The guided denoiser: predictions of the U-Net combined by the guidance and made clean, as samplers want them. It knows nothing
//! of how they are made.

use std::time::Duration;

use super::conditioning::Conditioning;
use super::predictor::Predictor;
use crate::Error;
use crate::guidance::{Guide, Moment};
use crate::prediction::{Prediction, Thresholder};
use crate::recipe::Retry;
use crate::request::Request;
use crate::sampler::Denoise;
use crate::schedule::{Clock, Step};
use crate::state::Record;

/// A denoiser for one run, with all the memory that its steps need.
pub(crate) struct GuidedDenoiser<'a> {
    predictor: Predictor<'a>,
    prediction: Prediction,
    guide: Guide,
    thresholder: Option<Thresholder>,
    clock: Clock,
    /// The step that is being taken.
    step: usize,
    /// The clean latents of the last call.
    clean: Vec<f32>,
}

impl<'a> GuidedDenoiser<'a> {
    pub(crate) fn new(predictor: Predictor<'a>, prediction: Prediction, request: &Request) -> Self {
        let shape = request.shape;
        Self {
            predictor,
            prediction,
            guide: Guide::new(request.guidance.clone(), prediction, shape),
            thresholder: request.thresholding.map(|kind| Thresholder::new(kind, shape.len())),
            clock: request.schedule.clock().clone(),
            step: 0,
            clean: vec![0.0; shape.len()],
        }
    }

    /// The time spent in the U-Net so far.
    pub(crate) fn spent(&self) -> Duration {
        self.predictor.spent()
    }

    /// Reduces memory until `Unet::use_plan`; whether that is a change.
    pub(crate) fn reduce_memory(&mut self) -> bool {
        self.predictor.reduce_memory()
    }

    /// Gives back what costs little to have again.
    pub(crate) fn release_pages(&self) {
        self.predictor.release_pages();
    }

    /// What is computed in higher precision than planned.
    pub(crate) fn retries(&self) -> impl Iterator<Item = Retry> {
        self.predictor.retries()
    }

    /// How often control networks were run so far.
    pub(crate) fn control_calls(&self) -> usize {
        self.predictor.control_calls()
    }

    /// Says which step comes next: texts and guidance scales may differ from step to step.
    pub(crate) fn begin(&mut self, step: &Step) {
        self.step = step.index;
    }

    /// Tells the guide the clean latents of the image that is drawn from.
    pub(crate) fn remember(&mut self, clean: &[f32]) {
        self.guide.remember(clean);
    }

    /// The clean latents of the last call, which are zeros before the first.
    pub(crate) fn clean(&self) -> &[f32] {
        &self.clean
    }

    /// What the U-Net is told.
    pub(crate) fn conditioning(&self) -> &Conditioning {
        self.predictor.conditioning()
    }

    /// Lists what is carried from step to step.
    pub(crate) fn state(&mut self, record: &mut Record) -> Result<(), Error> {
        record.f32s(&mut self.clean)?;
        self.guide.state(record)?;
        self.predictor.state(record)
    }

    fn predict(
        &mut self,
        x: &[f32],
        sigma: f64,
        out: &mut [f32],
        unconditional: Option<&mut [f32]>,
    ) -> Result<(), Error> {
        let at = Moment { step: self.step, sigma };
        let count = self.guide.needs(at).len();
        let (scale, timestep) = (self.prediction.input_scale(sigma), self.clock.timestep(sigma));
        let predictions = self.predictor.predict(self.step, count, x, scale, timestep)?;
        self.guide.combine(at, x, predictions, out, unconditional);
        if let Some(thresholder) = &mut self.thresholder {
            thresholder.apply(out);
        }
        self.clean.copy_from_slice(out);
        Ok(())
    }
}

impl Denoise for GuidedDenoiser<'_> {
    fn denoise(&mut self, x: &[f32], sigma: f64, out: &mut [f32]) -> Result<(), Error> {
        self.predict(x, sigma, out, None)
    }

    fn denoise_apart(
        &mut self,
        x: &[f32],
        sigma: f64,
        out: &mut [f32],
        unconditional: &mut [f32],
    ) -> Result<(), Error> {
        self.predict(x, sigma, out, Some(unconditional))
    }
}
