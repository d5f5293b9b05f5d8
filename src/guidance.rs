//! Guidance: how the predictions of a step become the clean latents that it goes by.
//! It knows nothing of prompts' words, models or samplers.

mod guide;
mod mimic;
mod mix;
mod typed;

pub use guide::{Guide, Moment};
pub use mimic::{Measure, Mimic, Origin};
pub use typed::{Scales, Within};

use crate::schedule::Schedule;
use crate::{Error, ErrorKind};

/// The most prompts that one image is drawn from.
pub const MAX_PROMPTS: usize = 16;
/// The largest scale, and the largest weight of a prompt; people use up to 30.
const MAX_SCALE: f64 = 1000.0;

/// The most predictions of a step: one per prompt, and at most two that pull the other way.
const MAX_VIEWS: usize = MAX_PROMPTS + 2;

/// How strongly prompts pull, and how: a checked description, from which a [`Guide`] is made for every run.
///
/// Every method pulls from a base prediction to the prompts' own; `scale` says how far. Several prompts act as one:
/// `cond = base + sum(weight * (cond_i - base))` (Liu et al. 2022, "Compositional visual generation with composable
/// diffusion models", algorithm 1; A1111's `AND`), which every method then takes for the prompt's own prediction.
///
/// A step goes by `cond` alone where its scale is exactly 1, or where it is outside of the interval. It then needs no
/// base, unless the weights of several prompts sum to something else than 1.
#[derive(Clone, Debug, PartialEq)]
pub struct Guidance {
    method: Method,
    /// One for all steps, or one per step.
    scales: Vec<f64>,
    /// Of the prompts.
    weights: Vec<f64>,
    interval: Option<Interval>,
    keeps_base: bool,
}

/// What is done with the predictions.
///
/// A `rescale` belongs to the methods that work on the model's output; the others have their own cure for the same ill.
/// It is the share, from 0 to 1, of a guided output that is brought back to the deviation of `cond` (Lin et al. 2024,
/// "Common diffusion noise schedules and sample steps are flawed", equations 15 and 16); a guided output that is one
/// value throughout has none, and is left as it is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Method {
    /// Classifier-free guidance: `uncond + scale * (cond - uncond)` (Ho & Salimans 2022, equation 6, where `scale` is
    /// `1 + w`).
    Cfg {
        /// See [`Method`].
        rescale: f64,
    },
    /// The same for models that edit an image, which pulls on its own: `uncond + image_scale * (image - uncond) +
    /// scale * (cond - image)` (Brooks et al. 2023, equation 3). At a scale of 1 the image's is not used, either, as
    /// in diffusers. One prompt only.
    Edit {
        /// How strongly the image pulls: at least 1, 1.2 to 2 is usual.
        image_scale: f64,
    },
    /// A negative prompt that cannot pull against the prompt: of `negative - empty` only what is perpendicular to
    /// `cond - empty` is taken away (Armandpour et al. 2023, "Re-imagine the negative prompt algorithm";
    /// ComfyUI's `perp_neg`). The base is the prediction of an empty prompt. At a scale of 1 the negative prompt still
    /// counts.
    Perpendicular {
        /// How strongly the negative prompt pushes: from 0 up, 1 is usual.
        negative_scale: f64,
        /// See [`Method`].
        rescale: f64,
    },
    /// Adaptive projected guidance (Sadat et al. 2025, "Eliminating oversaturation and artifacts of high guidance scales
    /// in diffusion models"): of the update `cond - uncond`, the part parallel to `cond` counts `eta` times.
    ///
    /// As in the paper it works on clean latents, `D_cond + (scale - 1) * update`, so that thresholds and momentum mean
    /// the same at every noise level. diffusers' guider works on what the model puts out, and by default starts from
    /// `uncond`: that is another method wherever `eta` is not 1 or the update was shortened.
    Projected {
        /// The share of the parallel part: 0 is the paper's, and 1 leaves it, as in classifier-free guidance.
        eta: f64,
        /// What earlier updates add to this one, above -1 and below 1; the paper's are negative, 0 is none.
        momentum: f64,
        /// The length to which longer updates are shortened.
        norm_threshold: Option<f64>,
    },
    /// CFG-Zero* (Fan et al. 2025, "CFG-Zero*: improved classifier-free guidance for flow matching models"):
    /// `uncond` is first scaled by `<cond, uncond> / |uncond|^2`, and the first steps go by an output of zeros,
    /// which needs no model.
    ZeroStar {
        /// How many steps go by zeros; 1 is usual.
        zero_steps: usize,
        /// See [`Method`]; zeros are left as they are.
        rescale: f64,
    },
    /// Classifier-free guidance whose clean latents are brought back to the range of those at a smaller scale.
    DynamicThreshold(Mimic),
    /// Residual classifier-free guidance (Kodaira et al. 2023, "StreamDiffusion", section 3.2): the unconditional noise
    /// is what leads from the latents back to clean ones that are known already, times `delta`. (StreamDiffusion's code
    /// moves that noise along from step to step instead, with a note that it should follow the paper.)
    Residual {
        /// Which clean latents those are.
        residue: Residue,
        /// The share of that noise: above 0, 1 is all of it.
        delta: f64,
    },
}

/// The clean latents that [`Method::Residual`] pulls away from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Residue {
    /// Those of the image that is drawn from ("self-negative"), see [`Guide::remember`]: no negative prediction.
    Source,
    /// Those that the negative prompt leads to in the first guided step ("onetime-negative"): one prediction per run.
    FirstNegative,
}

/// What a model is told for one prediction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum View {
    /// The negative prompt, and nothing of the image beside the latents.
    NegativeWithoutImage,
    /// The negative prompt.
    Negative,
    /// An empty prompt, whatever the negative one says.
    Empty,
    /// One of the prompts, counted from 0.
    Positive(usize),
}

/// The noise levels at which there is guidance (Kynkaanniemi et al. 2024, "Applying guidance in a limited interval
/// improves sample and distribution quality in diffusion models"): above the one, up to the other.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Interval {
    above: f64,
    up_to: f64,
}

impl Interval {
    /// Levels `sigma` in `above < sigma <= up_to`, which may be infinite; [`ErrorKind::Usage`] where none is.
    pub fn new(above: f64, up_to: f64) -> Result<Self, Error> {
        if above.is_finite() && above >= 0.0 && above < up_to {
            return Ok(Self { above, up_to });
        }
        let got = format!(
            "guidance interval: expected noise levels from 0 up, the lower first, got {above} to {up_to}"
        );
        Err(Error::new(ErrorKind::Usage, got).help("a scale of 1 is no guidance"))
    }

    /// The levels of a part of a schedule's steps, in fractions from 0 to 1, as diffusers' guiders take them: step
    /// `floor(start * steps)` is the first, `floor(stop * steps)` the first without; [`ErrorKind::Usage`] where no step
    /// is left.
    pub fn of_steps(start: f64, stop: f64, schedule: &Schedule) -> Result<Self, Error> {
        let steps = schedule.steps();
        let fractions = 0.0..=1.0;
        if !(fractions.contains(&start) && fractions.contains(&stop) && start < stop) {
            let got = format!("guidance interval: expected 0 to 1, the lower first, got {start} to {stop}");
            return Err(Error::new(ErrorKind::Usage, got).help("a scale of 1 is no guidance"));
        }
        let first = |fraction: f64| (fraction * steps.len() as f64) as usize;
        let (start, stop) = (first(start), first(stop));
        if start == stop {
            let got = format!(
                "guidance interval: expected a range that contains a step, got none of {}",
                steps.len()
            );
            return Err(Error::new(ErrorKind::Usage, got).help("use more steps or a wider interval"));
        }
        // A sampler that adds noise before its first step starts above the first level.
        let up_to = if start == 0 { f64::INFINITY } else { steps[start].from };
        Ok(Self { above: steps[stop - 1].to, up_to })
    }

    fn contains(self, sigma: f64) -> bool {
        self.above < sigma && sigma <= self.up_to
    }
}

impl Guidance {
    /// Classifier-free guidance by one prompt, and nothing else: 0 ignores the prompt, 1 is no guidance, 5 to 10 is
    /// usual; [`ErrorKind::Usage`] for a scale that is not a number, infinite or negative.
    pub fn new(scale: f64) -> Result<Self, Error> {
        Self::by(Method::Cfg { rescale: 0.0 }, scale)
    }

    /// Guidance by one prompt at all noise levels; [`ErrorKind::Usage`] for settings that cannot be used.
    pub fn by(method: Method, scale: f64) -> Result<Self, Error> {
        let guidance = Self {
            method: method.checked()?,
            scales: vec![],
            weights: vec![1.0],
            interval: None,
            keeps_base: false,
        };
        guidance.with_scales(vec![scale], 1)
    }

    /// With a scale for each of the run's steps, in their order; [`ErrorKind::Usage`] for another number of them, or
    /// for scales that cannot be used.
    pub fn with_scales(mut self, scales: Vec<f64>, steps: usize) -> Result<Self, Error> {
        if scales.len() != steps || scales.is_empty() {
            let got = format!("guidance: expected a scale for each of {steps} steps, got {}", scales.len());
            return Err(Error::new(ErrorKind::Usage, got));
        }
        for &scale in &scales {
            from_0("guidance", scale, "1 is no guidance, 5 to 10 is usual")?;
        }
        self.scales = scales;
        Ok(self)
    }

    /// With several prompts, which pull as strongly as their weights say; one below 0 pushes. [`ErrorKind::Usage`] for
    /// weights that are not finite, for none or more than [`MAX_PROMPTS`], and for several where an image pulls, too.
    pub fn with_prompts(mut self, weights: Vec<f64>) -> Result<Self, Error> {
        if !(1..=MAX_PROMPTS).contains(&weights.len()) {
            let got = format!("prompts: expected 1 to {MAX_PROMPTS}, got {}", weights.len());
            return Err(Error::new(ErrorKind::Usage, got));
        }
        if let Some(weight) = weights.iter().find(|weight| weight.is_nan() || weight.abs() > MAX_SCALE) {
            let got = format!("weight of a prompt: expected a number of at most {MAX_SCALE}, got {weight}");
            return Err(Error::new(ErrorKind::Usage, got).help("1 is usual"));
        }
        if matches!(self.method, Method::Edit { .. }) && weights != [1.0] {
            let got = format!("prompts: expected one of weight 1 for image editing, got {weights:?}");
            return Err(Error::new(ErrorKind::Usage, got).help("use a single prompt"));
        }
        self.weights = weights;
        Ok(self)
    }

    /// With guidance at these noise levels only.
    #[must_use]
    pub fn within(self, interval: Interval) -> Self {
        Self { interval: Some(interval), ..self }
    }

    /// With the base predicted in every step, also where the step goes by `cond` alone: for samplers that use it for
    /// themselves (Chung et al. 2024, "CFG++").
    #[must_use]
    pub fn with_base(self) -> Self {
        Self { keeps_base: true, ..self }
    }

    /// What is done with the predictions.
    pub fn method(&self) -> Method {
        self.method
    }

    /// The guidance scales: one for all steps, or one per step.
    pub fn scales(&self) -> &[f64] {
        &self.scales
    }

    /// The guidance scale of a step, counted from 0; 1 is no guidance.
    pub fn scale(&self, step: usize) -> f64 {
        match self.scales[..] {
            [scale] => scale,
            _ => self.scales[step],
        }
    }

    /// The predictions of the step that needs the most, in the order in which [`Guide::combine`] takes them. Every step
    /// needs these or the last few of them.
    pub fn views(&self) -> Vec<View> {
        let mut views = match self.method {
            Method::Edit { .. } => vec![View::NegativeWithoutImage, View::Negative],
            Method::Perpendicular { .. } => vec![View::Negative, View::Empty],
            Method::Residual { residue: Residue::Source, .. } => vec![],
            _ => vec![View::Negative],
        };
        views.extend((0..self.weights.len()).map(View::Positive));
        let most = self.scales.iter().map(|&scale| self.needed(scale, true, false)).max();
        views.split_off(views.len() - most.expect("a scale"))
    }

    /// How many predictions a step needs, the last ones of all: with this scale, inside of the interval or outside, and
    /// after the clean latents of [`Method::Residual`] are known or before. Steps by zeros are left to the guide.
    fn needed(&self, scale: f64, is_inside: bool, is_residue_known: bool) -> usize {
        let prompts = self.weights.len();
        let is_plain = self.is_plain(scale, is_inside);
        let needs_base = !is_plain || self.keeps_base || self.base_weight() != 0.0;
        match self.method {
            Method::Residual { residue: Residue::Source, .. } => prompts,
            Method::Residual { residue: Residue::FirstNegative, .. } => {
                prompts + usize::from(needs_base && !is_residue_known)
            }
            Method::Perpendicular { negative_scale, .. } if !is_plain && negative_scale != 0.0 => prompts + 2,
            Method::Edit { .. } if !is_plain => prompts + 2,
            _ => prompts + usize::from(needs_base),
        }
    }

    /// Whether a step goes by `cond` alone.
    fn is_plain(&self, scale: f64, is_inside: bool) -> bool {
        let counts_at_1 =
            matches!(self.method, Method::Perpendicular { negative_scale, .. } if negative_scale != 0.0);
        !is_inside || scale == 1.0 && !counts_at_1
    }

    fn is_inside(&self, sigma: f64) -> bool {
        self.interval.is_none_or(|interval| interval.contains(sigma))
    }

    /// The weight of the base in `cond`.
    fn base_weight(&self) -> f64 {
        1.0 - self.weights.iter().sum::<f64>()
    }
}

impl Method {
    fn checked(self) -> Result<Self, Error> {
        match self {
            Self::Cfg { rescale } | Self::ZeroStar { rescale, .. } => share("guidance rescale", rescale)?,
            Self::Edit { image_scale } => {
                if !(1.0..=MAX_SCALE).contains(&image_scale) {
                    let got = format!("image guidance: expected a number from 1 up, got {image_scale}");
                    let error = Error::new(ErrorKind::Usage, got);
                    return Err(error.help("1.5 is usual; less keeps less of the image"));
                }
            }
            Self::Perpendicular { negative_scale, rescale } => {
                from_0("negative scale", negative_scale, "1 is usual")?;
                share("guidance rescale", rescale)?;
            }
            Self::Projected { eta, momentum, norm_threshold } => {
                from_0("eta", eta, "0 is usual, 1 is no projection")?;
                if momentum.is_nan() || momentum.abs() >= 1.0 {
                    let got =
                        format!("guidance momentum: expected a number between -1 and 1, got {momentum}");
                    return Err(Error::new(ErrorKind::Usage, got).help("-0.5 is usual, 0 is none"));
                }
                if let Some(threshold) = norm_threshold {
                    above_0("norm threshold", threshold, "15 is usual")?;
                }
            }
            Self::DynamicThreshold(mimic) => {
                from_0("mimic scale", mimic.scale, "7 is usual")?;
                share("threshold percentile", mimic.percentile)?;
                share("share of dynamic thresholding", mimic.share)?;
            }
            Self::Residual { delta, .. } => {
                above_0("delta of residual guidance", delta, "1 is all of the noise")?
            }
        }
        Ok(self)
    }
}

fn from_0(what: &str, value: f64, help: &str) -> Result<(), Error> {
    check(value.is_nan() || value <= MAX_SCALE, what, &format!("at most {MAX_SCALE}"), value, help)?;
    check(value.is_finite() && value >= 0.0, what, "a number from 0 up", value, help)
}

fn above_0(what: &str, value: f64, help: &str) -> Result<(), Error> {
    check(value.is_finite() && value > 0.0, what, "a number above 0", value, help)
}

fn share(what: &str, value: f64) -> Result<(), Error> {
    check((0.0..=1.0).contains(&value), what, "a share from 0 to 1", value, "0 is none, 1 is all")
}

fn check(is_right: bool, what: &str, expected: &str, got: f64, help: &str) -> Result<(), Error> {
    if is_right {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Usage, format!("{what}: expected {expected}, got {got}")).help(help))
}

/// The guidance scale as a model distilled with it takes it (Meng et al. 2023, section 3; Luo et al. 2023, section
/// 4.1): `width` sines and cosines of `1000 * (scale - 1)`, as for timesteps (Vaswani et al. 2017, section 3.5).
pub fn embedding(scale: f64, width: usize) -> Vec<f64> {
    let half = width / 2;
    let decay = 10_000f64.ln() / (half as f64 - 1.0);
    let angle = |k: usize| 1000.0 * (scale - 1.0) * (-decay * k as f64).exp();
    let sines = (0..half).map(|k| angle(k).sin());
    sines.chain((0..half).map(|k| angle(k).cos())).chain((half * 2..width).map(|_| 0.0)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schedule::{Betas, Grid, NoiseCurve, ScheduleKind};

    const UNUSABLE: [f64; 4] = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -0.1];
    const MIMIC: Mimic = Mimic {
        scale: 4.0,
        percentile: 0.9,
        share: 0.5,
        per_channel: true,
        origin: Origin::Mean,
        measure: Measure::Largest,
    };

    #[track_caller]
    fn refused<T: std::fmt::Debug>(result: Result<T, Error>, case: &str) {
        let error = result.expect_err(case);
        assert_eq!(error.kind(), ErrorKind::Usage, "{case}: {error}");
        assert!(error.to_string().contains("expected"), "{case}: {error}");
    }

    #[test]
    fn unusable_scales_are_usage_errors() {
        for scale in UNUSABLE {
            let case = scale.to_string();
            refused(Guidance::new(scale), &case);
            refused(Guidance::new(7.5).unwrap().with_scales(vec![7.5, scale], 2), &case);
            refused(Guidance::by(Method::Edit { image_scale: 1.5 }, scale), &case);
            refused(Guidance::by(Method::Edit { image_scale: scale }, 7.5), &case);
        }
        refused(Guidance::by(Method::Edit { image_scale: 0.9 }, 7.5), "below 1");
    }

    #[test]
    fn unusable_settings_are_usage_errors() {
        let projected =
            |eta, momentum, threshold| Method::Projected { eta, momentum, norm_threshold: Some(threshold) };
        let residual = |delta| Method::Residual { residue: Residue::Source, delta };
        let mut methods = vec![
            Method::Cfg { rescale: 1.1 },
            Method::Perpendicular { negative_scale: 1.0, rescale: 1.1 },
            Method::ZeroStar { zero_steps: 1, rescale: 1.1 },
            projected(0.0, 1.0, 1.0),
            projected(0.0, -1.0, 1.0),
            projected(0.0, 0.0, 0.0),
            Method::DynamicThreshold(Mimic { percentile: 1.1, ..MIMIC }),
            Method::DynamicThreshold(Mimic { share: 1.1, ..MIMIC }),
            residual(0.0),
        ];
        for value in UNUSABLE {
            methods.extend([
                Method::Cfg { rescale: value },
                Method::Perpendicular { negative_scale: value, rescale: 0.0 },
                Method::Perpendicular { negative_scale: 1.0, rescale: value },
                Method::ZeroStar { zero_steps: 1, rescale: value },
                projected(value, 0.0, 1.0),
                projected(0.0, if value == -0.1 { f64::NAN } else { value }, 1.0),
                projected(0.0, 0.0, value),
                Method::DynamicThreshold(Mimic { scale: value, ..MIMIC }),
                Method::DynamicThreshold(Mimic { percentile: value, ..MIMIC }),
                Method::DynamicThreshold(Mimic { share: value, ..MIMIC }),
                residual(value),
            ]);
        }
        for method in methods {
            refused(Guidance::by(method, 7.5), &format!("{method:?}"));
        }
        Guidance::by(Method::DynamicThreshold(MIMIC), 7.5).unwrap();
        Guidance::by(projected(0.0, -0.5, 15.0), 7.5).unwrap();
    }

    #[test]
    fn scales_and_steps_must_agree() {
        let guidance = || Guidance::new(7.5).unwrap();
        refused(guidance().with_scales(vec![7.0, 1.0], 3), "too few");
        refused(guidance().with_scales(vec![7.0, 1.0], 1), "too many");
        refused(guidance().with_scales(vec![], 0), "no step");
        let falling = guidance().with_scales(vec![7.0, 1.0, 3.0], 3).unwrap();
        assert_eq!([0, 1, 2].map(|step| falling.scale(step)), [7.0, 1.0, 3.0]);
        assert_eq!([0, 1, 900].map(|step| guidance().scale(step)), [7.5; 3]);
    }

    #[test]
    fn unusable_prompts_are_usage_errors() {
        let guidance = || Guidance::new(7.5).unwrap();
        refused(guidance().with_prompts(vec![]), "none");
        refused(guidance().with_prompts(vec![1.0; MAX_PROMPTS + 1]), "too many");
        for weight in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            refused(guidance().with_prompts(vec![1.0, weight]), &weight.to_string());
        }
        guidance().with_prompts(vec![1.0; MAX_PROMPTS]).unwrap();
        guidance().with_prompts(vec![1.0, -0.5]).unwrap();
        let edit = || Guidance::by(Method::Edit { image_scale: 1.5 }, 7.5).unwrap();
        refused(edit().with_prompts(vec![0.5, 0.5]), "two for an image");
        assert_eq!(edit().with_prompts(vec![1.0]).unwrap(), edit());
    }

    #[test]
    fn intervals_are_falling_levels() {
        for (above, up_to) in [(5.0, 1.0), (1.0, 1.0), (-1.0, 1.0), (f64::NAN, 1.0), (1.0, f64::NAN)] {
            refused(Interval::new(above, up_to), &format!("{above} to {up_to}"));
        }
        refused(Interval::new(f64::INFINITY, f64::INFINITY), "infinite");
        let interval = Interval::new(0.3, 5.0).unwrap();
        let contains = [0.2, 0.3, 0.31, 5.0, 5.1, f64::NAN].map(|sigma| interval.contains(sigma));
        assert_eq!(contains, [false, false, true, true, false, false]);
        assert!(Interval::new(0.0, f64::INFINITY).unwrap().contains(1e30));
    }

    #[test]
    fn unusable_parts_of_the_steps_are_usage_errors() {
        let curve = NoiseCurve::new(Betas::ScaledLinear { start: 0.00085, end: 0.012 }, 1000).unwrap();
        let schedule = Schedule::of(&ScheduleKind::KARRAS, &curve, Grid::Fractional, 10).unwrap();
        let cases = [(0.5, 0.2), (0.5, 0.5), (-0.1, 0.5), (0.5, 1.1), (f64::NAN, 0.5), (0.5, f64::NAN)];
        for (start, stop) in cases {
            refused(Interval::of_steps(start, stop, &schedule), &format!("{start} to {stop}"));
        }
        refused(Interval::of_steps(0.11, 0.19, &schedule), "no step in it");
        let all = Interval::of_steps(0.0, 1.0, &schedule).unwrap();
        assert!(schedule.steps().iter().all(|step| all.contains(step.from)));
        assert!(all.contains(schedule.steps()[0].from * 1.4), "noise may be added before the first step");
    }

    #[test]
    fn no_more_is_predicted_than_is_needed() {
        use View::{Empty, Negative, NegativeWithoutImage, Positive};
        let views = |method, scale| Guidance::by(method, scale).unwrap().views();
        let cfg = Method::Cfg { rescale: 0.7 };
        assert_eq!(views(cfg, 7.5), [Negative, Positive(0)]);
        assert_eq!(views(cfg, 1.0), [Positive(0)]);
        let edit = Method::Edit { image_scale: 1.5 };
        assert_eq!(views(edit, 7.5), [NegativeWithoutImage, Negative, Positive(0)]);
        assert_eq!(views(edit, 1.0), [Positive(0)], "as in diffusers");
        let perpendicular = |negative_scale| Method::Perpendicular { negative_scale, rescale: 0.0 };
        assert_eq!(views(perpendicular(1.0), 7.5), [Negative, Empty, Positive(0)]);
        assert_eq!(views(perpendicular(1.0), 1.0), [Negative, Empty, Positive(0)], "still pushed away");
        assert_eq!(views(perpendicular(0.0), 7.5), [Empty, Positive(0)]);
        assert_eq!(views(perpendicular(0.0), 1.0), [Positive(0)]);
        let residual = |residue| Method::Residual { residue, delta: 1.0 };
        assert_eq!(views(residual(Residue::Source), 7.5), [Positive(0)]);
        assert_eq!(views(residual(Residue::FirstNegative), 7.5), [Negative, Positive(0)]);
        let of = |weights: &[f64], scale| {
            Guidance::new(scale).unwrap().with_prompts(weights.to_vec()).unwrap().views()
        };
        assert_eq!(of(&[0.5, 0.5], 7.5), [Negative, Positive(0), Positive(1)]);
        assert_eq!(of(&[0.5, 0.5], 1.0), [Positive(0), Positive(1)]);
        assert_eq!(of(&[1.0, 0.5], 1.0), [Negative, Positive(0), Positive(1)], "the base counts");
        let some = Guidance::new(1.0).unwrap().with_scales(vec![1.0, 2.0, 1.0], 3).unwrap();
        assert_eq!(some.views(), [Negative, Positive(0)], "one step needs both");
    }
}
