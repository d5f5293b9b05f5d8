//! Noise levels: the curve a model was trained on, and the falling levels that a run visits.
//! It knows nothing of samplers, models or latents.
//!
//! A noise level is `sigma`: latents `x = x0 + sigma * noise`, with `x0` clean and `noise` standard normal. Every
//! sampler works on such latents (Karras et al. 2022, section 2); a model that wants `x / sqrt(sigma^2 + 1)`,
//! as Stable Diffusion does, gets it from its [`Prediction`](crate::prediction::Prediction).

mod clock;
mod curve;
mod kind;
mod spacing;

pub use clock::Clock;
pub use curve::{Betas, MAX_TIMESTEPS, NoiseCurve};
pub use kind::ScheduleKind;
pub use spacing::Spacing;

use crate::{Error, ErrorKind};
use clock::Time;

/// How a run's levels relate to whole timesteps of the curve: which of diffusers' schedulers a sampler mirrors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Grid {
    /// Levels at fractional timesteps where the spacing gives them (k-diffusion; diffusers' Euler, Heun, KDPM2, LMS
    /// and DPMSolverSDE).
    Fractional,
    /// Levels at whole timesteps (diffusers' DDIM, DDPM, PNDM, LCM and TCD).
    Whole,
    /// The same, spaced as if there were one step more, whose lowest level is left to the final 0 (diffusers'
    /// DPM-Solvers, UniPC and DEIS).
    WholeAboveLast,
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
    clock: Clock,
    starts_from_noise_alone: bool,
}

impl Schedule {
    /// The levels that a kind of schedule visits in `steps` steps.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] for no steps, or for more than the curve and the kind have room for.
    pub fn of(kind: &ScheduleKind, curve: &NoiseCurve, grid: Grid, steps: usize) -> Result<Self, Error> {
        let len = curve.len();
        let most = match kind {
            ScheduleKind::Lcm { trained_steps } => len.min(*trained_steps),
            _ => len,
        };
        if !(1..=most).contains(&steps) {
            return Err(Error::new(ErrorKind::Usage, format!("steps: expected 1 to {most}, got {steps}")));
        }
        let whole = |mut timesteps: Vec<f64>| {
            timesteps.iter_mut().for_each(|timestep| *timestep = timestep.round_ties_even());
            timesteps
        };
        let schedule = match (kind, grid) {
            (ScheduleKind::Spaced(spacing), Grid::Fractional) => {
                Self::at_timesteps(curve, &spacing.timesteps(len, steps))
            }
            (ScheduleKind::Spaced(spacing), Grid::Whole) => {
                Self::at_timesteps(curve, &whole(spacing.timesteps(len, steps)))
            }
            (ScheduleKind::Spaced(spacing), Grid::WholeAboveLast) => {
                Self::at_timesteps(curve, &whole(spacing.timesteps_above_last(len, steps)))
            }
            (ScheduleKind::Custom(l), _) => Self::new(curve, l.iter().map(|s| (*s, curve.timestep_of_sigma(*s))).collect()),
            (ScheduleKind::Karras { .. }, _) => Self::karras(curve, steps),
            (ScheduleKind::Lcm { trained_steps }, _) => {
                Self::at_timesteps(curve, &spacing::distilled(len, *trained_steps, steps))
            }
        }?;
        let is_leading = matches!(kind, ScheduleKind::Spaced(Spacing::Leading { .. }));
        Ok(Self { starts_from_noise_alone: grid == Grid::Fractional && !is_leading, ..schedule })
    }

    /// The schedule that visits the given falling timesteps of a curve; [`ErrorKind::Usage`] where they leave the
    /// curve or repeat.
    pub(crate) fn at_timesteps(curve: &NoiseCurve, timesteps: &[f64]) -> Result<Self, Error> {
        let last = curve.len() - 1;
        if let Some(outside) = timesteps.iter().find(|&&t| !(0.0..=last as f64).contains(&t)) {
            return Err(too_many_steps(timesteps.len(), format!("timesteps up to {last}, got {outside}")));
        }
        Self::new(curve, timesteps.iter().map(|&t| (curve.sigma_of_timestep(t), t)).collect())
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
        Self::new(curve, (0..steps).map(level).collect())
    }

    /// The same schedule, begun as if the latents at the first level were noise alone: see
    /// [`Schedule::initial_scale`].
    pub(crate) fn started_from_noise_alone(self) -> Self {
        Self { starts_from_noise_alone: true, ..self }
    }

    /// The last `count` steps alone, for latents that are only as noisy as the first of them takes; at least one, and at
    /// most all.
    pub fn last(mut self, count: usize) -> Self {
        self.steps.drain(..self.steps.len() - count);
        self.steps.iter_mut().enumerate().for_each(|(index, step)| step.index = index);
        self
    }

    /// The steps, in order.
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// How many steps were asked for, before the first were left out for latents that are less noisy.
    pub fn asked_steps(&self) -> usize {
        self.clock.levels().len()
    }

    /// The model's own time of the levels.
    pub fn clock(&self) -> &Clock {
        &self.clock
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
    fn new(curve: &NoiseCurve, levels: Vec<(f64, f64)>) -> Result<Self, Error> {
        if let Some(pair) = levels.windows(2).find(|pair| pair[1].0 >= pair[0].0) {
            return Err(too_many_steps(levels.len(), format!("falling timesteps, got {} twice", pair[0].1)));
        }
        let ends = levels.iter().skip(1).map(|level| level.0).chain([0.0]);
        let steps = levels.iter().zip(ends).enumerate();
        let steps: Vec<Step> =
            steps.map(|(index, (&(from, timestep), to))| Step { index, from, to, timestep }).collect();
        let clock = Clock::new(levels, Time::Curve(curve.clone()));
        Ok(Self { steps, clock, starts_from_noise_alone: false })
    }
}

fn too_many_steps(steps: usize, expected: String) -> Error {
    Error::new(ErrorKind::Usage, format!("steps: {steps} with this spacing: expected {expected}"))
        .help("ask for fewer steps")
}
