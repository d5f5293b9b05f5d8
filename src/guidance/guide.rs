//! The guide of one run: what a step needs to be predicted, and what becomes of it.
//! It owns what guidance keeps from step to step.

use super::mimic::Scratch;
use super::mix::{Mix, Sources};
use super::{Guidance, Method, Residue, View};
use crate::Error;
use crate::prediction::Prediction;
use crate::state::Record;
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
    scratch: Option<Scratch>,
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
            scratch: thresholds.then(|| Scratch::new(len, shape.channels)),
        }
    }

    /// Tells the clean latents of the image that is drawn from, which [`Residue::Source`] pulls away from; without
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

    /// Lists what is carried from step to step.
    ///
    /// # Errors
    /// [`ErrorKind::Input`](crate::ErrorKind::Input) for a record of another guidance.
    pub fn state(&mut self, record: &mut Record) -> Result<(), Error> {
        record.flag(&mut self.is_residue_known)?;
        record.f32s(&mut self.kept)
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
        if let (Method::DynamicThreshold(mimic), Some(scratch), false) =
            (self.guidance.method, &mut self.scratch, step.is_plain)
        {
            step.clean(step.guided(mimic.scale)).write(sources, &mut scratch.mimicked);
            scratch.apply(&mimic, denoised);
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
                let edited = bare.toward(image, image_scale).plus(image.times(-self.scale));
                self.clean(edited.plus(cond.times(self.scale)))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guidance::{Interval, Measure, Mimic, Origin};
    use crate::noise::{NoiseSource, TorchCpu};

    /// More than a block of [`Mix`], and no multiple of it.
    const SHAPE: LatentShape = LatentShape { channels: 3, height_cells: 11, width_cells: 13 };
    const LEN: usize = 429;
    const AT: Moment = Moment { step: 0, sigma: 2.5 };
    const PREDICTIONS: [Prediction; 5] = [
        Prediction::Epsilon,
        Prediction::V,
        Prediction::Sample,
        Prediction::Flow,
        Prediction::Edm { sigma_data: 0.5 },
    ];
    const CFG: Method = Method::Cfg { rescale: 0.0 };
    const PLAIN_PROJECTED: Method = Method::Projected { eta: 1.0, momentum: 0.0, norm_threshold: None };

    fn normal(seed: u64) -> Vec<f32> {
        let mut values = vec![0.0; LEN];
        TorchCpu::new(seed).fill_normal(&mut values);
        values
    }

    fn guide(method: Method, scale: f64) -> Guide {
        Guide::new(Guidance::by(method, scale).unwrap(), Prediction::Sample, SHAPE)
    }

    /// What a first step makes of the predictions that it needs.
    fn combined(mut guide: Guide, predictions: &[&[f32]]) -> Vec<f32> {
        next(&mut guide, AT, predictions).0
    }

    fn next(guide: &mut Guide, at: Moment, predictions: &[&[f32]]) -> (Vec<f32>, Vec<f32>) {
        let (mut denoised, mut base) = (vec![f32::NAN; LEN], vec![f32::NAN; LEN]);
        guide.combine(at, &normal(9), &predictions.concat(), &mut denoised, Some(&mut base));
        (denoised, base)
    }

    fn to_denoised(prediction: Prediction, output: &[f32]) -> Vec<f32> {
        let mut denoised = vec![f32::NAN; LEN];
        prediction.to_denoised(&normal(9), output, AT.sigma, &mut denoised);
        denoised
    }

    #[track_caller]
    fn near(actual: &[f32], expected: &[f32], case: &str) {
        assert_eq!(actual.len(), expected.len());
        for (i, (actual, expected)) in actual.iter().zip(expected).enumerate() {
            let tolerance = 2e-6 * expected.abs().max(1.0); // a few roundings to single precision
            assert!((actual - expected).abs() <= tolerance, "{case}, {i}: {actual}, {expected}");
        }
    }

    #[track_caller]
    fn differ(one: &[f32], other: &[f32], case: &str) {
        let largest = one.iter().zip(other).map(|(one, other)| (one - other).abs()).fold(0.0, f32::max);
        assert!(largest > 1e-2, "{case}: {largest}");
    }

    fn methods() -> [Method; 8] {
        [
            Method::Cfg { rescale: 0.7 },
            Method::Edit { image_scale: 1.5 },
            Method::Perpendicular { negative_scale: 1.0, rescale: 0.7 },
            Method::Projected { eta: 0.0, momentum: -0.5, norm_threshold: Some(2.0) },
            Method::ZeroStar { zero_steps: 0, rescale: 0.7 },
            Method::DynamicThreshold(Mimic { percentile: 0.9, ..Mimic::default() }),
            Method::Residual { residue: Residue::Source, delta: 0.9 },
            Method::Residual { residue: Residue::FirstNegative, delta: 0.9 },
        ]
    }

    #[test]
    fn it_is_the_naive_formula() {
        let (uncond, cond, x) = (normal(1), normal(2), normal(9));
        for (scale, prediction) in [0.0, 0.3, 2.0, 7.5, 30.0].into_iter().zip(PREDICTIONS) {
            let guide = Guide::new(Guidance::new(scale).unwrap(), prediction, SHAPE);
            let out = combined(guide, &[&uncond, &cond]);
            let factors = prediction.preconditioning(AT.sigma);
            for i in 0..LEN {
                let output = f64::from(uncond[i]) + scale * (f64::from(cond[i]) - f64::from(uncond[i]));
                let naive = factors.c_skip * f64::from(x[i]) + factors.c_out * output;
                assert!((f64::from(out[i]) - naive).abs() <= 1e-7 * naive.abs() + 1e-12, "{scale}, {i}");
            }
        }
    }

    #[test]
    fn scale_one_is_the_prompts_own_prediction_bit_for_bit() {
        let cond = normal(2);
        for prediction in PREDICTIONS {
            for method in methods() {
                if matches!(method, Method::Perpendicular { .. }) {
                    continue; // the negative prompt still counts
                }
                let mut guide = Guide::new(Guidance::by(method, 1.0).unwrap(), prediction, SHAPE);
                assert_eq!(guide.needs(AT), [View::Positive(0)], "{method:?}");
                let (denoised, base) = next(&mut guide, AT, &[&cond]);
                let expected = to_denoised(prediction, &cond);
                assert_eq!(denoised, expected, "{method:?}, {prediction:?}");
                if !matches!(method, Method::Residual { .. }) {
                    assert_eq!(base, expected, "{method:?}, {prediction:?}");
                }
            }
            // With both predictions, too: in weights of exactly 0 and 1.
            let method = Method::Perpendicular { negative_scale: 0.0, rescale: 0.0 };
            let step = Step::new(&Guidance::by(method, 1.0).unwrap(), prediction, AT, 2).guided(1.0);
            assert_eq!(step.views[..2], [0.0, 1.0]);
        }
    }

    #[test]
    fn scale_zero_ignores_the_prompt_bit_for_bit() {
        let uncond = normal(1);
        for prediction in PREDICTIONS {
            let guide = Guide::new(Guidance::new(0.0).unwrap(), prediction, SHAPE);
            assert_eq!(combined(guide, &[&uncond, &normal(2)]), to_denoised(prediction, &uncond));
        }
        let image = normal(3);
        let guide = guide(Method::Edit { image_scale: 1.0 }, 0.0);
        assert_eq!(combined(guide, &[&uncond, &image, &normal(2)]), image, "the image is left");
    }

    #[test]
    fn equal_predictions_are_left_as_they_are() {
        let same = normal(1);
        for method in methods() {
            let guide = guide(method, 7.5);
            let count = guide.needs(AT).len();
            if matches!(method, Method::Residual { residue: Residue::Source, .. }) {
                continue; // it pulls away from something that is no prediction
            }
            if let Method::Residual { residue, .. } = method {
                let whole = self::guide(Method::Residual { residue, delta: 1.0 }, 7.5);
                near(&combined(whole, &[&same, &same]), &same, "residual");
                continue;
            }
            near(&combined(guide, &vec![&same[..]; count]), &same, &format!("{method:?}"));
        }
        assert_eq!(combined(guide(CFG, 7.5), &[&same, &same]), same);
    }

    #[test]
    fn classifier_free_guidance_is_linear_in_its_predictions() {
        let (a, b, c, d) = (normal(1), normal(2), normal(3), normal(4));
        let sum = |one: &[f32], other: &[f32]| -> Vec<f32> {
            one.iter().zip(other).map(|(one, other)| one + 2.0 * other).collect()
        };
        for (method, rest) in [(CFG, None), (Method::Edit { image_scale: 1.5 }, Some(normal(5)))] {
            let run = |uncond: &[f32], cond: &[f32]| {
                let views: Vec<&[f32]> =
                    [Some(uncond), rest.as_deref(), Some(cond)].into_iter().flatten().collect();
                combined(guide(method, 3.0), &views)
            };
            let still = run(&vec![0.0; LEN], &vec![0.0; LEN]);
            let linear = |out: Vec<f32>| -> Vec<f32> {
                out.iter().zip(&still).map(|(out, still)| out - still).collect()
            };
            let (one, other) = (linear(run(&a, &b)), linear(run(&c, &d)));
            near(&linear(run(&sum(&a, &c), &sum(&b, &d))), &sum(&one, &other), &format!("{method:?}"));
        }
    }

    #[test]
    fn an_image_pulls_beside_the_prompt() {
        let (uncond, image, cond) = (normal(1), normal(2), normal(3));
        for (scale, image_scale) in [(7.5, 1.5), (0.5, 1.0), (0.0, 2.0)] {
            let out = combined(guide(Method::Edit { image_scale }, scale), &[&uncond, &image, &cond]);
            for i in 0..LEN {
                let (u, i_, c) = (f64::from(uncond[i]), f64::from(image[i]), f64::from(cond[i]));
                let naive = u + scale * (c - i_) + image_scale * (i_ - u);
                assert!((f64::from(out[i]) - naive).abs() <= 1e-6 * naive.abs() + 1e-7, "{scale}, {i}");
            }
        }
    }

    #[test]
    fn outside_of_the_interval_only_the_prompt_is_predicted() {
        let interval = Interval::new(1.0, 3.0).unwrap();
        let (negative, cond) = (normal(1), normal(2));
        for method in methods() {
            let guidance = Guidance::by(method, 7.5).unwrap().within(interval);
            let mut guide = Guide::new(guidance.clone(), Prediction::Sample, SHAPE);
            for sigma in [0.5, 1.0, 3.01] {
                let at = Moment { step: 0, sigma };
                assert_eq!(guide.needs(at), [View::Positive(0)], "{method:?}, {sigma}");
                assert_eq!(next(&mut guide, at, &[&cond]).0, cond, "{method:?}, {sigma}");
            }
            let inside = Moment { step: 0, sigma: 3.0 };
            assert_eq!(guide.needs(inside), guidance.views(), "{method:?}");
            let mut predictions = vec![&negative[..]; guide.needs(inside).len()];
            *predictions.last_mut().unwrap() = &cond;
            let everywhere = combined(self::guide(method, 7.5), &predictions);
            assert_eq!(next(&mut guide, inside, &predictions).0, everywhere, "{method:?}");
            differ(&everywhere, &cond, &format!("{method:?}"));
        }
    }

    #[test]
    fn scales_follow_the_steps() {
        let (uncond, cond) = (normal(1), normal(2));
        let guidance = Guidance::new(7.5).unwrap().with_scales(vec![7.5, 1.0, 3.0], 3).unwrap();
        let mut changing = Guide::new(guidance, Prediction::Sample, SHAPE);
        for (step, scale) in [7.5, 1.0, 3.0].into_iter().enumerate() {
            let (at, mut constant) = (Moment { step, ..AT }, guide(CFG, scale));
            assert_eq!(changing.needs(at), constant.needs(at));
            let both = [&uncond[..], &cond];
            let predictions = &both[2 - changing.needs(at).len()..];
            assert_eq!(next(&mut changing, at, predictions), next(&mut constant, at, predictions), "{step}");
        }
    }

    #[test]
    fn prompts_that_sum_to_one_prompt_are_that_prompt() {
        let (uncond, cond) = (normal(1), normal(2));
        for method in methods() {
            if matches!(method, Method::Edit { .. }) {
                continue;
            }
            let halves = Guidance::by(method, 7.5).unwrap().with_prompts(vec![0.25, 0.75]).unwrap();
            let halves = Guide::new(halves, Prediction::Sample, SHAPE);
            let mut views: Vec<&[f32]> = vec![&uncond; halves.needs(AT).len() - 2];
            views.push(&cond);
            let whole = combined(guide(method, 7.5), &views);
            views.push(&cond);
            near(&combined(halves, &views), &whole, &format!("{method:?}"));
        }
    }

    #[test]
    fn prompts_pull_as_their_weights_say() {
        let (uncond, one, other) = (normal(1), normal(2), normal(3));
        for (scale, weights) in [(5.0, [0.7, 0.8]), (1.0, [1.0, -0.5])] {
            let guidance = Guidance::new(scale).unwrap().with_prompts(weights.to_vec()).unwrap();
            let out = combined(Guide::new(guidance, Prediction::Sample, SHAPE), &[&uncond, &one, &other]);
            let naive: Vec<f32> = (0..LEN)
                .map(|i| {
                    let [u, a, b] = [uncond[i], one[i], other[i]].map(f64::from);
                    (u + weights[0] * scale * (a - u) + weights[1] * scale * (b - u)) as f32
                })
                .collect();
            near(&out, &naive, &format!("{scale}"));
        }
    }

    #[test]
    fn rescaling_all_of_it_gives_the_prompts_own_deviation() {
        let (uncond, cond) = (normal(1), normal(2));
        let deviation = |values: &[f32]| {
            let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / LEN as f64;
            let squares: f64 = values.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum();
            (squares / (LEN as f64 - 1.0)).sqrt()
        };
        let run = |rescale| combined(guide(Method::Cfg { rescale }, 7.5), &[&uncond, &cond]);
        assert!((deviation(&run(1.0)) / deviation(&cond) - 1.0).abs() < 1e-6);
        assert!(deviation(&run(0.0)) > 2.0 * deviation(&cond));
        let halfway: Vec<f32> = run(0.0).iter().zip(run(1.0)).map(|(none, all)| (none + all) / 2.0).collect();
        near(&run(0.5), &halfway, "half of it");
    }

    #[test]
    fn what_has_no_deviation_is_not_rescaled() {
        for value in (1..100).map(|k| 0.137 * k as f32) {
            let (uncond, cond) = (vec![value; LEN], vec![-0.7 * value; LEN]);
            let run = |method| combined(guide(method, 7.5), &[&uncond, &cond]);
            assert_eq!(run(Method::Cfg { rescale: 1.0 }), run(CFG), "{value}");
            for (measure, origin) in [(Measure::Deviation, Origin::Zero), (Measure::Largest, Origin::Mean)] {
                let mimic = Mimic { measure, origin, ..Mimic::default() };
                assert_eq!(run(Method::DynamicThreshold(mimic)), run(CFG), "{value}, {mimic:?}");
            }
        }
    }

    #[test]
    fn what_a_perpendicular_negative_takes_away_is_perpendicular() {
        let (negative, empty, cond) = (normal(1), normal(2), normal(3));
        let run = |negative: &[f32], negative_scale| {
            let guide = guide(Method::Perpendicular { negative_scale, rescale: 0.0 }, 4.0);
            let views = [negative, &empty, &cond];
            let needed = guide.needs(AT).len();
            combined(guide, &views[3 - needed..])
        };
        let without = run(&negative, 0.0);
        let taken: Vec<f64> = run(&negative, 1.0)
            .iter()
            .zip(&without)
            .map(|(with, without)| f64::from(with - without))
            .collect();
        let pull = cond.iter().zip(&empty).map(|(cond, empty)| f64::from(cond - empty));
        let length = |values: &[f64]| values.iter().map(|value| value * value).sum::<f64>().sqrt();
        let cosine = taken.iter().zip(pull.clone()).map(|(taken, pull)| taken * pull).sum::<f64>()
            / length(&taken)
            / length(&pull.collect::<Vec<_>>());
        assert!(length(&taken) > 1.0 && cosine.abs() < 1e-6, "{cosine}");
        near(&without, &combined(guide(CFG, 4.0), &[&empty, &cond]), "nothing taken away");
        near(&run(&cond, 3.0), &without, "the prompt itself as the negative one");
        let still = run(&empty, 3.0);
        near(&still, &without, "an empty negative prompt");
    }

    #[test]
    fn an_unprojected_update_is_classifier_free_guidance() {
        let (uncond, cond) = (normal(1), normal(2));
        for prediction in PREDICTIONS {
            let run = |method| {
                let guide = Guide::new(Guidance::by(method, 7.5).unwrap(), prediction, SHAPE);
                combined(guide, &[&uncond, &cond])
            };
            let (projected, plain) = (run(PLAIN_PROJECTED), run(CFG));
            let largest = plain.iter().map(|value| value.abs()).fold(0.0, f32::max);
            for (projected, plain) in projected.iter().zip(&plain) {
                assert!((projected - plain).abs() < 1e-6 * largest, "{prediction:?}: {projected}, {plain}");
            }
        }
    }

    #[test]
    fn a_projected_update_is_short_and_perpendicular() {
        let (uncond, cond) = (normal(1), normal(2));
        let method = Method::Projected { eta: 0.0, momentum: 0.0, norm_threshold: Some(2.0) };
        let out = combined(guide(method, 3.0), &[&uncond, &cond]);
        let update: Vec<f64> = out.iter().zip(&cond).map(|(out, cond)| f64::from(out - cond)).collect();
        let product = |a: &[f64], b: &[f32]| a.iter().zip(b).map(|(a, &b)| a * f64::from(b)).sum::<f64>();
        assert!(product(&update, &cond).abs() < 1e-4);
        // The length of 2, twice because the scale is 3, less the parallel part that is gone.
        let plain: Vec<f64> =
            cond.iter().zip(&uncond).map(|(cond, uncond)| f64::from(cond - uncond)).collect();
        let length = |values: &[f64]| values.iter().map(|value| value * value).sum::<f64>().sqrt();
        let wide: Vec<f64> = cond.iter().map(|&cond| f64::from(cond)).collect();
        let cosine = product(&plain, &cond) / length(&plain) / length(&wide);
        let expected = 2.0 * 2.0 * (1.0 - cosine * cosine).sqrt();
        assert!((length(&update) - expected).abs() < 1e-4, "{}, {expected}", length(&update));
    }

    #[test]
    fn momentum_is_kept_over_the_guided_steps() {
        let (uncond, cond) = (normal(1), normal(2));
        let method = Method::Projected { eta: 1.0, momentum: -0.5, norm_threshold: None };
        let mut kept = guide(method, 3.0);
        let first = next(&mut kept, AT, &[&uncond, &cond]).0;
        let second = next(&mut kept, Moment { step: 1, ..AT }, &[&uncond, &cond]).0;
        let expected: Vec<f32> =
            first.iter().zip(&cond).map(|(first, cond)| cond + (first - cond) / 2.0).collect();
        near(&second, &expected, "half of the update is taken back");
    }

    #[test]
    fn zero_steps_need_no_prediction() {
        let (uncond, cond, x) = (normal(1), normal(2), normal(9));
        for prediction in PREDICTIONS {
            let guidance = Guidance::by(Method::ZeroStar { zero_steps: 2, rescale: 0.7 }, 4.0).unwrap();
            let mut guide = Guide::new(guidance, prediction, SHAPE);
            for step in 0..2 {
                let at = Moment { step, ..AT };
                assert!(guide.needs(at).is_empty());
                let (denoised, base) = next(&mut guide, at, &[]);
                assert_eq!(denoised, to_denoised(prediction, &[0.0; LEN]));
                assert_eq!(denoised, base);
                if prediction == Prediction::Flow {
                    assert_eq!(denoised, x, "without velocity nothing moves");
                }
            }
            assert_eq!(guide.needs(Moment { step: 2, ..AT }).len(), 2);
            next(&mut guide, Moment { step: 2, ..AT }, &[&uncond, &cond]);
        }
    }

    #[test]
    fn the_scale_of_the_unconditional_prediction_does_not_matter_to_zero_star() {
        let (uncond, cond) = (normal(1), normal(2));
        let doubled: Vec<f32> = uncond.iter().map(|value| 2.0 * value).collect();
        let run = |uncond: &[f32]| {
            combined(guide(Method::ZeroStar { zero_steps: 0, rescale: 0.0 }, 4.0), &[uncond, &cond])
        };
        near(&run(&doubled), &run(&uncond), "doubled");
        differ(&run(&uncond), &combined(guide(CFG, 4.0), &[&uncond, &cond]), "as if not scaled");
    }

    #[test]
    fn a_scale_mimics_itself() {
        let (uncond, cond) = (normal(1), normal(2));
        let plain = combined(guide(CFG, 7.5), &[&uncond, &cond]);
        for measure in [Measure::Largest, Measure::Deviation] {
            for (per_channel, origin) in [(true, Origin::Mean), (false, Origin::Mean), (true, Origin::Zero)] {
                let mimic = Mimic { scale: 7.5, measure, per_channel, origin, ..Mimic::default() };
                let run = |mimic| combined(guide(Method::DynamicThreshold(mimic), 7.5), &[&uncond, &cond]);
                near(&run(mimic), &plain, &format!("{mimic:?}"));
                let smaller = Mimic { scale: 3.0, ..mimic };
                differ(&run(smaller), &plain, &format!("{smaller:?}"));
                assert_eq!(run(Mimic { share: 0.0, ..smaller }), plain, "{smaller:?}");
            }
        }
    }

    #[test]
    fn residual_guidance_predicts_the_negative_prompt_once() {
        let (negative, cond) = (normal(1), normal(2));
        let method = Method::Residual { residue: Residue::FirstNegative, delta: 1.0 };
        let mut guide = guide(method, 4.0);
        assert_eq!(guide.needs(AT), [View::Negative, View::Positive(0)]);
        let (first, base) = next(&mut guide, AT, &[&negative, &cond]);
        near(
            &first,
            &combined(self::guide(CFG, 4.0), &[&negative, &cond]),
            "the first step is guided as ever",
        );
        assert_eq!(base, negative);
        let second = Moment { step: 1, sigma: 1.0 };
        assert_eq!(guide.needs(second), [View::Positive(0)]);
        let (_, base) = next(&mut guide, second, &[&cond]);
        assert_eq!(base, negative, "the clean latents of the first step are pulled away from");
    }

    #[test]
    fn self_negative_guidance_pulls_away_from_the_source() {
        let (source, cond) = (normal(1), normal(2));
        let run = |delta, source: Option<&[f32]>| {
            let mut guide = guide(Method::Residual { residue: Residue::Source, delta }, 4.0);
            source.into_iter().for_each(|source| guide.remember(source));
            combined(guide, &[&cond])
        };
        let cfg = |uncond: &[f32]| combined(guide(CFG, 4.0), &[uncond, &cond]);
        near(&run(1.0, Some(&source)), &cfg(&source), "as from a prediction of the source");
        near(&run(1.0, None), &cfg(&[0.0; LEN]), "noise alone has no source");
        let halfway: Vec<f32> = normal(9).iter().zip(&source).map(|(x, source)| (x + source) / 2.0).collect();
        near(&run(0.5, Some(&source)), &cfg(&halfway), "half of the noise");
        assert_eq!(guide(Method::Residual { residue: Residue::Source, delta: 1.0 }, 4.0).needs(AT).len(), 1);
    }

    #[test]
    fn the_base_is_what_was_guided_away_from() {
        let views = [normal(1), normal(2), normal(3)];
        for (method, at) in
            [(CFG, 1), (Method::Edit { image_scale: 1.5 }, 0), (methods()[2], 1), (methods()[4], 1)]
        {
            let mut guide = guide(method, 4.0);
            let needed: Vec<&[f32]> = views[3 - guide.needs(AT).len()..].iter().map(Vec::as_slice).collect();
            let (denoised, base) = next(&mut guide, AT, &needed);
            assert_eq!(base, views[at], "{method:?}");
            differ(&denoised, &base, &format!("{method:?}"));
        }
    }

    #[test]
    fn a_prediction_that_is_not_a_number_is_not_hidden() {
        for method in methods() {
            for hostile in [f32::NAN, f32::INFINITY] {
                let guide = guide(method, 7.5);
                let mut cond = normal(2);
                cond[100] = hostile;
                let negative = normal(1);
                let mut predictions = vec![&negative[..]; guide.needs(AT).len()];
                *predictions.last_mut().unwrap() = &cond;
                let out = combined(guide, &predictions);
                assert!(!out[100].is_finite(), "{method:?}: {hostile} became {}", out[100]);
            }
        }
    }

    #[test]
    #[should_panic(expected = "the predictions that are needed")]
    fn a_missing_prediction_is_noticed() {
        combined(guide(CFG, 7.5), &[&normal(1)]);
    }
}
