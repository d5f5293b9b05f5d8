//! The guide of one run: what a step needs to be predicted, and what becomes of it.
//! It owns what guidance keeps from step to step.

use super::mimic::Desk;
use super::mix::{Mix, Sources};
use super::{Guidance, Method, Residue, View};
use crate::prediction::Prediction;
use crate::tensor::LatentShape;

/// Added to a squared length by which is divided, as in diffusers' `cfg_zero_star_scale`.
const ZERO_STAR_EPSILON: f64 = 1e-8;

/// When a prediction is made.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Moment {
    /// The step, counted from 0.
    pub step: usize,
    /// The noise level of the latents.
    pub sigma: f64,
}

/// [`Guidance`] at work in one run, with all the memory that its steps need.
pub struct Guide {
    guidance: Guidance,
    prediction: Prediction,
    /// Of the fullest step.
    views: Vec<View>,
    len: usize,
    /// The clean latents of [`Method::Residual`], or the running update of [`Method::Projected`]; empty for the others.
    kept: Vec<f32>,
    is_residue_known: bool,
    /// Of [`Method::DynamicThreshold`].
    desk: Option<Desk>,
}

impl Guide {
    /// For one run of a model that predicts so, on latents of this shape.
    pub fn new(guidance: Guidance, prediction: Prediction, shape: LatentShape) -> Self {
        let keeps = matches!(guidance.method, Method::Residual { .. } | Method::Projected { .. });
        let thresholds = matches!(guidance.method, Method::DynamicThreshold(_));
        let len = shape.len();
        Self {
            views: guidance.views(),
            guidance,
            prediction,
            len,
            kept: vec![0.0; if keeps { len } else { 0 }],
            is_residue_known: false,
            desk: thresholds.then(|| Desk::new(len, shape.channels)),
        }
    }

    /// Tells the clean latents of the picture that is drawn from, which [`Residue::Source`] pulls away from; without
    /// them it pulls away from zeros, the clean latents of noise alone. The other methods have no use for them.
    ///
    /// # Panics
    /// Where they are not as long as the latents.
    pub fn remember(&mut self, clean: &[f32]) {
        assert_eq!(clean.len(), self.len, "latents of one length");
        if matches!(self.guidance.method, Method::Residual { residue: Residue::Source, .. }) {
            self.kept.copy_from_slice(clean);
        }
    }

    /// The predictions that [`Guide::combine`] takes next, in its order: the last few of [`Guidance::views`], and none
    /// where the step goes by zeros.
    ///
    /// # Panics
    /// Where there is no scale for the step.
    pub fn needs(&self, at: Moment) -> &[View] {
        if self.is_zero(at) {
            return &[];
        }
        let (scale, is_inside) = (self.guidance.scale(at.step), self.guidance.is_inside(at.sigma));
        let needed = self.guidance.needed(scale, is_inside, self.is_residue_known);
        &self.views[self.views.len() - needed..]
    }

    /// Writes to `denoised` the clean latents that the step goes by, and to `base` those of the unconditional
    /// prediction that it was guided away from, which are the same where the step needs none. `predictions` holds the
    /// model's outputs for [`Guide::needs`], one after the other.
    ///
    /// [`Method::Residual`] and [`Method::Projected`] remember what they are given: every call counts, in its order.
    /// Linear methods go over memory once; what depends on lengths or deviations goes over it once more for each.
    ///
    /// # Panics
    /// Where the slices do not have the length of the latents, or there are more predictions or fewer.
    pub fn combine(
        &mut self,
        at: Moment,
        x: &[f32],
        predictions: &[f32],
        denoised: &mut [f32],
        base: Option<&mut [f32]>,
    ) {
        let lengths = [x.len(), denoised.len(), base.as_ref().map_or(self.len, |base| base.len())];
        assert_eq!(lengths, [self.len; 3], "latents of one length");
        assert_eq!(predictions.len(), self.needs(at).len() * self.len, "the predictions that are needed");
        let is_zero = self.is_zero(at);
        let step = Step::new(&self.guidance, self.prediction, at, predictions.len() / self.len);
        self.is_residue_known |= step.learn(x, &mut self.kept, predictions);
        let sources = Sources { x, kept: &self.kept, predictions };
        let mix = if is_zero { step.clean(Mix::NOTHING) } else { step.mix(sources) };
        mix.write(sources, denoised);
        if let (Method::DynamicThreshold(mimic), Some(desk), false) =
            (self.guidance.method, &mut self.desk, step.is_plain)
        {
            step.clean(step.guided(mimic.scale)).write(sources, &mut desk.mimicked);
            desk.apply(&mimic, denoised);
        }
        match (base, step.clean_base()) {
            (Some(out), Some(base)) => base.write(sources, out),
            (Some(out), None) => out.copy_from_slice(denoised),
            (None, _) => {}
        }
    }

    /// Whether a step goes by an output of zeros.
    fn is_zero(&self, at: Moment) -> bool {
        matches!(self.guidance.method, Method::ZeroStar { zero_steps, .. } if at.step < zero_steps)
    }
}

/// What one call of [`Guide::combine`] works with. Mixes are of the model's outputs unless they are called clean.
struct Step<'a> {
    guidance: &'a Guidance,
    scale: f64,
    is_plain: bool,
    c_skip: f64,
    c_out: f64,
    /// Where the base is among the predictions, if it is.
    base: Option<usize>,
    /// Where the prompts begin.
    first: usize,
}

impl<'a> Step<'a> {
    fn new(guidance: &'a Guidance, prediction: Prediction, at: Moment, given: usize) -> Self {
        let scale = guidance.scale(at.step);
        let factors = prediction.preconditioning(at.sigma);
        let first = given.saturating_sub(guidance.weights.len());
        let base = match guidance.method {
            Method::Edit { .. } => 0,
            _ => first.saturating_sub(1),
        };
        Self {
            guidance,
            scale,
            is_plain: guidance.is_plain(scale, guidance.is_inside(at.sigma)),
            c_skip: factors.c_skip,
            c_out: factors.c_out,
            base: (first > 0).then_some(base),
            first,
        }
    }

    /// Updates what is kept from step to step; says whether that is now the first step's negative prediction.
    fn learn(&self, x: &[f32], kept: &mut [f32], predictions: &[f32]) -> bool {
        match (self.guidance.method, self.base) {
            (Method::Residual { .. }, Some(base)) => {
                self.clean(Mix::view(base)).keep(x, kept, predictions);
                return true;
            }
            (Method::Projected { momentum, .. }, Some(base)) if !self.is_plain => {
                let update = self.cond().plus(Mix::view(base).times(-1.0)).times(self.c_out);
                Mix { kept: momentum, ..update }.keep(x, kept, predictions);
            }
            _ => {}
        }
        false
    }

    /// The clean latents that the step goes by, from what was learnt.
    fn mix(&self, sources: Sources<'_>) -> Mix {
        let plain_scale = if self.is_plain { 1.0 } else { self.scale };
        match (self.guidance.method, self.base) {
            (Method::Residual { delta, .. }, _) => {
                self.pulled(plain_scale, residual_base(delta), |view| self.clean(Mix::view(view)))
            }
            (Method::Edit { image_scale }, Some(_)) => {
                let [bare, image, cond] = [0, 1, 2].map(Mix::view);
                let picture = bare.toward(image, image_scale).plus(image.times(-self.scale));
                self.clean(picture.plus(cond.times(self.scale)))
            }
            (Method::Perpendicular { negative_scale, rescale }, Some(empty)) if !self.is_plain => {
                let empty = Mix::view(empty);
                let mut pull = self.cond().plus(empty.times(-1.0));
                if negative_scale != 0.0 {
                    let push = Mix::view(0).plus(empty.times(-1.0));
                    let products = sources.products(push, pull);
                    // Against a prompt that does not pull, everything is perpendicular.
                    let perpendicular = push.plus(pull.times(-ratio(products.ab, products.bb, 0.0)));
                    pull = pull.plus(perpendicular.times(-negative_scale));
                }
                self.rescaled(empty.plus(pull.times(self.scale)), rescale, sources)
            }
            (Method::ZeroStar { rescale, .. }, Some(uncond)) if !self.is_plain => {
                let (cond, uncond) = (self.cond(), Mix::view(uncond));
                let products = sources.products(cond, uncond);
                let optimum = products.ab / (products.bb + ZERO_STAR_EPSILON);
                self.rescaled(uncond.times(optimum).toward(cond, self.scale), rescale, sources)
            }
            (Method::Projected { eta, norm_threshold, .. }, Some(_)) if !self.is_plain => {
                let (update, cond) = (Mix { kept: 1.0, ..Mix::NOTHING }, self.clean(self.cond()));
                let products = sources.products(update, cond);
                let length = products.aa.sqrt();
                let shortened =
                    norm_threshold.filter(|threshold| length > *threshold).map_or(1.0, |to| to / length);
                let parallel = ratio(products.ab, products.bb, 0.0);
                let projected = update.plus(cond.times((eta - 1.0) * parallel));
                cond.plus(projected.times((self.scale - 1.0) * shortened))
            }
            (Method::Cfg { rescale }, Some(_)) if !self.is_plain => {
                self.rescaled(self.guided(self.scale), rescale, sources)
            }
            _ => self.clean(self.guided(plain_scale)),
        }
    }

    /// The clean latents of what is pulled away from, where the step has such.
    fn clean_base(&self) -> Option<Mix> {
        match self.guidance.method {
            Method::Residual { delta, .. } => Some(residual_base(delta)),
            _ => self.base.map(|base| self.clean(Mix::view(base))),
        }
    }

    /// The clean latents of an output of which a share has the prompts' own deviation.
    fn rescaled(&self, output: Mix, rescale: f64, sources: Sources<'_>) -> Mix {
        if rescale == 0.0 {
            return self.clean(output);
        }
        let [own, guided] = sources.deviations([self.cond(), output]);
        self.clean(output.times(rescale * ratio(own, guided, 1.0) + (1.0 - rescale)))
    }

    /// The prompts' own prediction.
    fn cond(&self) -> Mix {
        self.guided(1.0)
    }

    /// Classifier-free guidance.
    fn guided(&self, scale: f64) -> Mix {
        self.pulled(scale, self.base.map_or(Mix::NOTHING, Mix::view), Mix::view)
    }

    /// `base + scale * sum(weight * (prompt - base))`, in weights that are exact at scales 0 and 1.
    fn pulled(&self, scale: f64, base: Mix, prompt: impl Fn(usize) -> Mix) -> Mix {
        let weights = &self.guidance.weights;
        let base = base.times(1.0 - scale * weights.iter().sum::<f64>());
        let prompts = weights.iter().enumerate();
        prompts.fold(base, |sum, (i, weight)| sum.plus(prompt(self.first + i).times(scale * weight)))
    }

    /// The clean latents of an output.
    fn clean(&self, output: Mix) -> Mix {
        Mix { x: self.c_skip, ..output.times(self.c_out) }
    }
}

/// The clean latents that [`Method::Residual`] pulls away from: `x - delta * (x - kept)`.
fn residual_base(delta: f64) -> Mix {
    Mix { x: 1.0 - delta, kept: delta, ..Mix::NOTHING }
}

/// A ratio, or something else in place of a division by zero.
fn ratio(numerator: f64, denominator: f64, otherwise: f64) -> f64 {
    if denominator == 0.0 { otherwise } else { numerator / denominator }
}
