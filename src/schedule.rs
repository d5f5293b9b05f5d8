//! Noise levels: the curve a model was trained on, and the falling levels that a run visits.
//! It knows nothing of samplers, models or latents.
//!
//! A noise level is `sigma`: latents `x = x0 + sigma * noise`, with `x0` clean and `noise` standard normal. Every
//! sampler works on such latents (Karras et al. 2022, section 2); a model that wants `x / sqrt(sigma^2 + 1)`,
//! as Stable Diffusion does, gets it from its [`Prediction`](crate::prediction::Prediction).

use crate::{Error, ErrorKind};

/// The longest noise curve that is believed; published ones have 1000 timesteps.
pub const MAX_TIMESTEPS: usize = 100_000;

/// How much noise each training timestep adds: the recipe of a [`NoiseCurve`].
///
/// `beta[t]` is the variance that timestep `t` adds (Ho et al. 2020, equation 2).
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Betas {
    /// Evenly spaced betas (Ho et al. 2020, section 4).
    Linear {
        /// The first beta.
        start: f64,
        /// The last beta.
        end: f64,
    },
    /// Betas whose square roots are evenly spaced (Stable Diffusion).
    ScaledLinear {
        /// The first beta.
        start: f64,
        /// The last beta.
        end: f64,
    },
    /// The cosine curve with betas of at most 0.999 (Nichol & Dhariwal 2021, equation 17).
    SquaredCosCapV2,
}

/// The noise level of each training timestep, strictly growing.
#[derive(Clone, Debug, PartialEq)]
pub struct NoiseCurve {
    sigmas: Vec<f64>,
}

impl NoiseCurve {
    /// The curve of `timesteps` betas; [`ErrorKind::Model`] where they make no curve.
    pub fn new(betas: Betas, timesteps: usize) -> Result<Self, Error> {
        check_timesteps(timesteps)?;
        let part = |t: usize| t as f64 / (timesteps - 1) as f64;
        let betas: Vec<f32> = match betas {
            Betas::Linear { start, end } => {
                (0..timesteps).map(|t| (start + (end - start) * part(t)) as f32).collect()
            }
            Betas::ScaledLinear { start, end } => {
                let (start, end) = (start.sqrt(), end.sqrt());
                (0..timesteps).map(|t| ((start + (end - start) * part(t)) as f32).powi(2)).collect()
            }
            Betas::SquaredCosCapV2 => {
                let alpha_bar = |t: usize| {
                    let u = (t as f64 / timesteps as f64 + 0.008) / 1.008;
                    (u * std::f64::consts::FRAC_PI_2).cos().powi(2)
                };
                (0..timesteps).map(|t| (1.0 - alpha_bar(t + 1) / alpha_bar(t)).min(0.999) as f32).collect()
            }
        };
        Self::from_betas(&betas)
    }

    /// The curve of betas listed by the model itself; [`ErrorKind::Model`] where they make no curve.
    ///
    /// `sigma = sqrt((1 - a) / a)` with `a` the product of `1 - beta` so far. The factors and the products are
    /// rounded to `f32` as diffusers rounds them: near 1 that moves `sigma` by up to 2e-5 of itself, and
    /// models were trained on, and are compared with, the moved values.
    pub fn from_betas(betas: &[f32]) -> Result<Self, Error> {
        check_timesteps(betas.len())?;
        let mut product = 1.0;
        let mut sigmas = Vec::with_capacity(betas.len());
        for (t, &beta) in betas.iter().enumerate() {
            if !(beta > 0.0 && beta < 1.0) {
                return Err(Error::new(
                    ErrorKind::Model,
                    format!("noise curve: beta[{t}]: expected a number between 0 and 1, got {beta}"),
                ));
            }
            product *= f64::from(1.0 - beta);
            let a = f64::from(product as f32);
            let sigma = ((1.0 - a) / a).sqrt();
            let before = sigmas.last().copied().unwrap_or(0.0);
            if !(sigma > before && sigma.is_finite()) {
                return Err(Error::new(
                    ErrorKind::Model,
                    format!("noise curve: sigma[{t}]: expected a number above {before}, got {sigma}"),
                ));
            }
            sigmas.push(sigma);
        }
        Ok(Self { sigmas })
    }

    /// The number of training timesteps.
    #[allow(clippy::len_without_is_empty)] // a curve has at least two
    pub fn len(&self) -> usize {
        self.sigmas.len()
    }

    /// The lowest noise level.
    pub fn sigma_min(&self) -> f64 {
        self.sigmas[0]
    }

    /// The highest noise level.
    pub fn sigma_max(&self) -> f64 {
        self.sigmas[self.len() - 1]
    }

    /// The noise level at a timestep between 0 and `len() - 1`, by linear interpolation.
    pub fn sigma_of_timestep(&self, timestep: f64) -> f64 {
        let low = (timestep as usize).min(self.len() - 2);
        let weight = timestep - low as f64;
        self.sigmas[low] + weight * (self.sigmas[low + 1] - self.sigmas[low])
    }

    /// The timestep of a noise level between `sigma_min()` and `sigma_max()`, by linear interpolation of
    /// `ln sigma`.
    pub fn timestep_of_sigma(&self, sigma: f64) -> f64 {
        let high = self.sigmas.partition_point(|&other| other <= sigma).clamp(1, self.len() - 1);
        let [low_log, high_log] = [self.sigmas[high - 1].ln(), self.sigmas[high].ln()];
        // A level computed from an end may miss it by a rounding error.
        let weight = ((sigma.ln() - low_log) / (high_log - low_log)).clamp(0.0, 1.0);
        (high - 1) as f64 + weight
    }
}

/// Which training timesteps a run visits (Lin et al. 2024, table 2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Spacing {
    /// Whole multiples of `timesteps / steps`, plus `offset`; never reaches the end of the curve.
    Leading {
        /// Added to each timestep: 1 for Stable Diffusion.
        offset: u32,
    },
    /// Evenly from the last timestep to the first, both included; a single step takes the *first*.
    Linspace,
    /// Evenly from the last timestep on, the first left out.
    Trailing,
}

impl Spacing {
    /// `steps` falling timesteps of a curve of `len` timesteps; those of `Linspace` may be fractions.
    ///
    /// The order of operations is that of numpy's `linspace` and `arange`, which diffusers uses: where timesteps
    /// are rounded it decides which way halves go (in 30 steps of DPM++ 2M, for one).
    pub(crate) fn timesteps(self, len: usize, steps: usize) -> Vec<f64> {
        let (last, end, parts) = ((len - 1) as f64, len as f64, steps as f64);
        match self {
            Self::Leading { offset } => {
                let stride = len / steps;
                (0..steps).rev().map(|i| (i * stride) as f64 + f64::from(offset)).collect()
            }
            Self::Linspace if steps == 1 => vec![0.0],
            Self::Linspace => {
                let stride = last / (parts - 1.0);
                let rest = (0..steps - 1).rev().map(|i| stride * i as f64);
                std::iter::once(last).chain(rest).collect()
            }
            Self::Trailing => {
                let stride = (end - end / parts) - end;
                (0..steps).map(|i| (end + stride * i as f64).round_ties_even() - 1.0).collect()
            }
        }
    }
}

/// One step of a run: from one noise level down to the next.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Step {
    /// The position in the schedule, from 0.
    pub index: usize,
    /// The noise level of the latents before the step.
    pub from: f64,
    /// The noise level after it: below `from`, and exactly 0 after the last step.
    pub to: f64,
    /// The model's own time of `from`, in training timesteps; a fraction where the curve was interpolated.
    pub timestep: f64,
}

/// The steps of a run: noise levels fall strictly and end in exact 0.
#[derive(Clone, Debug, PartialEq)]
pub struct Schedule {
    steps: Vec<Step>,
    starts_from_noise_alone: bool,
}

impl Schedule {
    /// The schedule that visits the given falling timesteps of a curve; [`ErrorKind::Usage`] where they leave the
    /// curve or repeat.
    pub(crate) fn at_timesteps(curve: &NoiseCurve, timesteps: &[f64]) -> Result<Self, Error> {
        let last = curve.len() - 1;
        if let Some(outside) = timesteps.iter().find(|&&t| !(0.0..=last as f64).contains(&t)) {
            return Err(too_many_steps(timesteps.len(), format!("timesteps up to {last}, got {outside}")));
        }
        Self::new(timesteps.iter().map(|&t| (curve.sigma_of_timestep(t), t)).collect())
    }

    /// The schedule of Karras et al. 2022, equation 5 with `rho = 7`, over the whole of a curve.
    /// The model is told the nearest whole timestep of each level.
    pub(crate) fn karras(curve: &NoiseCurve, steps: usize) -> Result<Self, Error> {
        const RHO: f64 = 7.0;
        let (max, min) = (curve.sigma_max().powf(1.0 / RHO), curve.sigma_min().powf(1.0 / RHO));
        let level = |i: usize| {
            let part = if steps == 1 { 0.0 } else { i as f64 / (steps - 1) as f64 };
            let sigma = (max + part * (min - max)).powf(RHO);
            (sigma, curve.timestep_of_sigma(sigma).round_ties_even())
        };
        Self::new((0..steps).map(level).collect())
    }

    /// The same schedule, begun as if the latents at the first level were noise alone: see
    /// [`Schedule::initial_scale`].
    pub(crate) fn started_from_noise_alone(self) -> Self {
        Self { starts_from_noise_alone: true, ..self }
    }

    /// The last `count` steps alone, for latents that are only as noisy as the first of them takes; at least one, and at
    /// most all.
    pub(crate) fn last(mut self, count: usize) -> Self {
        self.steps.drain(..self.steps.len() - count);
        self.steps.iter_mut().enumerate().for_each(|(index, step)| step.index = index);
        self
    }

    /// The steps, in order.
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// The factor that turns unit noise into the latents that the first step takes.
    ///
    /// Latents at level `sigma` are data and noise together, so that with data of unit variance their scale is
    /// `sqrt(sigma^2 + 1)`; noise alone has the scale `sigma`. Samplers differ in which they start from, and
    /// calotype starts as diffusers does: with noise alone for Euler and its ancestral variant in linspace and
    /// trailing spacing, otherwise with `sqrt(sigma^2 + 1)`.
    pub fn initial_scale(&self) -> f64 {
        let sigma = self.steps[0].from;
        if self.starts_from_noise_alone { sigma } else { sigma.hypot(1.0) }
    }

    /// Pairs of noise level and timestep, at least one; [`ErrorKind::Usage`] where levels do not fall.
    fn new(levels: Vec<(f64, f64)>) -> Result<Self, Error> {
        if let Some(pair) = levels.windows(2).find(|pair| pair[1].0 >= pair[0].0) {
            return Err(too_many_steps(levels.len(), format!("falling timesteps, got {} twice", pair[0].1)));
        }
        let ends = levels.iter().skip(1).map(|level| level.0).chain([0.0]);
        let steps = levels.iter().zip(ends).enumerate();
        let steps: Vec<Step> =
            steps.map(|(index, (&(from, timestep), to))| Step { index, from, to, timestep }).collect();
        Ok(Self { steps, starts_from_noise_alone: false })
    }
}

fn check_timesteps(timesteps: usize) -> Result<(), Error> {
    if (2..=MAX_TIMESTEPS).contains(&timesteps) {
        Ok(())
    } else {
        Err(Error::new(
            ErrorKind::Model,
            format!("noise curve: expected 2 to {MAX_TIMESTEPS} timesteps, got {timesteps}"),
        ))
    }
}

fn too_many_steps(steps: usize, expected: String) -> Error {
    Error::new(ErrorKind::Usage, format!("steps: {steps} with this spacing: expected {expected}"))
        .help("ask for fewer steps")
}
