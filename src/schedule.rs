//! Noise levels: the curve a model was trained on, and the falling levels that a run visits.
//! It knows nothing of samplers, models or latents.
//!
//! A noise level is `sigma`: latents `x = x0 + sigma * noise`, with `x0` clean and `noise` standard normal. Every
//! sampler works on such latents (Karras et al. 2022, section 2); a model that wants `x / sqrt(sigma^2 + 1)`,
//! as Stable Diffusion does, gets it from its [`Prediction`](crate::prediction::Prediction).

mod beta;
mod clock;
mod curve;
mod flow;
mod kind;
mod level;
mod spacing;
mod table;

pub use clock::Clock;
pub use curve::{Betas, MAX_TIMESTEPS, NoiseCurve};
pub use flow::{FlowShift, TimeShift};
pub use kind::{AysTable, ScheduleKind, Spacing};

use crate::{Error, ErrorKind};
use clock::Time;

/// The most steps of a run on levels that no curve limits.
const MAX_EDM_STEPS: usize = 1000;
/// How far a level may lie above the highest that a model was trained on: lists of levels are published in few digits.
const MAX_EXCESS: f64 = 1.01;

/// How a run's levels relate to whole timesteps of the curve: which of diffusers' schedulers a sampler mirrors.
///
/// It moves the levels of a [`Spacing`] alone. Where levels come first, as Karras's do, it says whether the model is told
/// their fractional timesteps or the nearest whole ones. So diffusers' DPM-Solvers do for Karras's levels; for those of
/// its exponential and beta schedules, and of Karras's on a squared cosine curve, they cut the fraction off instead.
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

/// The steps of a run: noise levels fall strictly and end in exact 0, or in the curve's lowest level where
/// [`ScheduleKind::ToSigmaMin`] asks for that.
#[derive(Clone, Debug, PartialEq)]
pub struct Schedule {
    steps: Vec<Step>,
    clock: Clock,
    starts_from_noise_alone: bool,
    /// How many steps at the end went nowhere and were left out.
    left_out: usize,
    final_scale: f64,
}

impl Schedule {
    /// The levels that a kind of schedule visits in `steps` steps.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] for no steps, for more than the curve and the kind have room for, for numbers of the kind that
    /// make no sense, and for levels above those of the curve.
    pub fn of(kind: &ScheduleKind, curve: &NoiseCurve, grid: Grid, steps: usize) -> Result<Self, Error> {
        let (kind, ends_low) = kind.ends();
        let end = if ends_low { curve.sigma_min() } else { 0.0 };
        if ends_low && matches!(kind, ScheduleKind::Lcm { .. }) {
            return Err(Error::new(
                ErrorKind::Usage,
                "schedule: lcm: final: expected zero, because consistency models end at clean latents, got sigma_min",
            ));
        }
        let len = curve.len();
        let most = match kind {
            ScheduleKind::Lcm { trained_steps } if *trained_steps > len => {
                let problem =
                    format!("schedule: lcm: trained-steps: expected at most {len}, got {trained_steps}");
                return Err(Error::new(ErrorKind::Usage, problem));
            }
            ScheduleKind::Lcm { trained_steps } => *trained_steps,
            _ => len,
        };
        check(kind, steps, most)?;
        let time_input = |timestep: f64| match grid {
            Grid::Fractional => timestep,
            Grid::Whole | Grid::WholeAboveLast => timestep.round_ties_even(),
        };
        let range = [curve.sigma_min(), curve.sigma_max()];
        let levels = if let Some(sigmas) = level::over(range, kind, steps) {
            check_highest(sigmas[0], curve.sigma_max())?;
            sigmas.into_iter().map(|sigma| (sigma, time_input(curve.timestep_of_sigma(sigma)))).collect()
        } else {
            let timesteps = spacing::timesteps(kind, grid, len, steps);
            let last = len - 1;
            if let Some(outside) = timesteps.iter().find(|&&t| !(0.0..=last as f64).contains(&t)) {
                return Err(too_many_steps(steps, format!("timesteps up to {last}, got {outside}")));
            }
            let is_log = matches!(kind, ScheduleKind::SgmUniform | ScheduleKind::Normal);
            let level = |timestep: f64| match is_log {
                true => (curve.log_sigma_of_timestep(timestep), time_input(timestep)),
                false => (curve.sigma_of_timestep(timestep), timestep),
            };
            timesteps.into_iter().map(level).collect()
        };
        let is_leading = matches!(kind, ScheduleKind::Spaced(Spacing::Leading { .. }));
        let starts_from_noise_alone = grid == Grid::Fractional && !is_leading;
        let mut schedule = Self::new(levels, Time::Curve(curve.clone()), starts_from_noise_alone, end)?;
        if grid != Grid::Fractional {
            schedule.final_scale = 1.0 / end.hypot(1.0);
        }
        Ok(schedule)
    }

    /// The levels of a run of flow matching, where latents are `(1 - sigma) * x0 + sigma * noise` and the model is told
    /// `sigma * train_timesteps`. They fall from exactly 1: the first latents are noise alone.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] for no steps, or more than `train_timesteps`, and for a shift that leaves no levels between.
    pub fn flow(steps: usize, shift: &FlowShift, train_timesteps: usize) -> Result<Self, Error> {
        check_flow(train_timesteps)?;
        check_steps(steps, train_timesteps)?;
        Self::of_flow(shift.levels(steps, train_timesteps)?, train_timesteps)
    }

    /// The levels of a run of flow matching as they are listed: falling, at most 1 and above 0, but for a last 0, which may
    /// be left out. No shift is applied to them; diffusers' schedulers shift the `sigmas` that they are given.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] for other levels, for none, and for more than `train_timesteps`.
    ///
    /// ```
    /// use calotype::schedule::Schedule;
    /// let schedule = Schedule::flow_listed(&[1.0, 0.75, 0.5, 0.25], 1000)?;
    /// assert_eq!(schedule.steps()[1].timestep, 750.0);
    /// # Ok::<(), calotype::Error>(())
    /// ```
    pub fn flow_listed(levels: &[f64], train_timesteps: usize) -> Result<Self, Error> {
        check_flow(train_timesteps)?;
        let kind = ScheduleKind::Custom(levels.to_vec());
        kind.check()?;
        let levels = kind.own_levels();
        check_steps(levels.len(), train_timesteps)?;
        if levels[0] > 1.0 {
            let problem = format!("levels: expected at most 1, which is noise alone, got {}", levels[0]);
            return Err(Error::new(ErrorKind::Usage, format!("schedule: {problem}")));
        }
        Self::of_flow(levels.to_vec(), train_timesteps)
    }

    /// The levels of a run of flow matching by a kind of schedule: `linspace` is [`Schedule::flow`]; `trailing` has levels that are
    /// even from 1 to `1 / steps` before they are shifted, as pipelines ask it of diffusers' schedulers; those that need a range of
    /// levels are given that of `linspace`, as `use_karras_sigmas` and its kin are.
    ///
    /// # Errors
    /// As [`Schedule::flow`], and [`ErrorKind::Usage`] for a kind that chooses timesteps of a curve, and for levels above 1.
    pub fn flow_of(
        kind: &ScheduleKind,
        shift: &FlowShift,
        train_timesteps: usize,
        steps: usize,
    ) -> Result<Self, Error> {
        check_flow(train_timesteps)?;
        check(kind, steps, train_timesteps)?;
        let even = shift.levels(steps, train_timesteps)?;
        let levels = match kind {
            ScheduleKind::Spaced(Spacing::Linspace) => even,
            ScheduleKind::Spaced(Spacing::Trailing) => shift.levels_to_steps(steps)?,
            ScheduleKind::Custom(_) => return Self::flow_listed(kind.own_levels(), train_timesteps),
            kind => {
                let lowest = shift.levels(steps.max(2), train_timesteps)?[steps.max(2) - 1];
                level::over([lowest, 1.0], kind, steps).ok_or_else(|| {
                    Error::new(
                        ErrorKind::Usage,
                        format!(
                            "schedule: expected linspace, trailing or one of noise levels, because this model has no curve of \
                             timesteps, got {kind}"
                        ),
                    )
                })?
            }
        };
        // A first level that a formula gives may miss 1 by a rounding error.
        if levels[0] > 1.0 + 1e-9 {
            return Err(Error::new(
                ErrorKind::Usage,
                format!("schedule: expected levels up to 1, which is noise alone, got {}", levels[0]),
            ));
        }
        Self::of_flow(levels.into_iter().map(|level| level.min(1.0)).collect(), train_timesteps)
    }

    fn of_flow(levels: Vec<f64>, train_timesteps: usize) -> Result<Self, Error> {
        let time = Time::Flow { train_timesteps: train_timesteps as f64 };
        let levels = levels.into_iter().map(|sigma| (sigma, time.of_sigma(sigma))).collect();
        Self::new(levels, time, true, 0.0)
    }

    /// The same levels with `ln(sigma) / 4` as the model's time input, in place of timesteps.
    #[must_use]
    pub fn with_log_times(mut self) -> Self {
        self.steps.iter_mut().for_each(|step| step.timestep = Time::Edm.of_sigma(step.from));
        let time_input = |&(sigma, _): &(f64, f64)| (sigma, Time::Edm.of_sigma(sigma));
        self.clock = Clock::new(self.clock.levels().iter().map(time_input).collect(), Time::Edm);
        self
    }

    /// The levels of a model that was trained on a range of them, and is told `ln(sigma) / 4` (Karras et al. 2022, table
    /// 1; diffusers' `EDMEulerScheduler`, and its `EulerDiscreteScheduler` with continuous timesteps).
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] as in [`Schedule::of`], and for a kind that chooses timesteps of a curve;
    /// [`ErrorKind::Model`] for a range that is none.
    pub fn edm(kind: &ScheduleKind, sigma_min: f64, sigma_max: f64, steps: usize) -> Result<Self, Error> {
        if !(sigma_min > 0.0 && sigma_min < sigma_max && sigma_max.is_finite()) {
            return Err(Error::new(
                ErrorKind::Model,
                format!("noise levels: expected a range above 0, got {sigma_min} to {sigma_max}"),
            ));
        }
        let (kind, ends_low) = kind.ends();
        check(kind, steps, MAX_EDM_STEPS)?;
        let Some(sigmas) = level::over([sigma_min, sigma_max], kind, steps) else {
            return Err(Error::new(
                ErrorKind::Usage,
                format!(
                    "schedule: expected one of noise levels, because this model has no timesteps, got {kind}"
                ),
            )
            .help("try karras"));
        };
        check_highest(sigmas[0], sigma_max)?;
        Self::new(
            sigmas.into_iter().map(|sigma| (sigma, Time::Edm.of_sigma(sigma))).collect(),
            Time::Edm,
            false,
            if ends_low { sigma_min } else { 0.0 },
        )
    }

    /// The last `count` steps alone, for latents that are only as noisy as the first of them takes. A step that was left out
    /// because it went nowhere is the last of them, as in diffusers.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] for none, and for more than there are.
    pub fn last(mut self, count: usize) -> Result<Self, Error> {
        let (fewest, all) = (self.left_out + 1, self.steps_from(0));
        if !(fewest..=all).contains(&count) {
            return Err(Error::new(
                ErrorKind::Usage,
                format!("schedule: expected the last {fewest} to {all} steps, got {count}"),
            ));
        }
        self.steps.drain(..all - count);
        self.steps.iter_mut().enumerate().for_each(|(index, step)| step.index = index);
        Ok(self)
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
    /// `sqrt(sigma^2 + 1)`; noise alone has the scale `sigma`. On whole timesteps, whose schedulers scale latents by
    /// what is left of the signal, runs start with `sqrt(sigma^2 + 1)`, and in flow matching with noise alone, as in
    /// diffusers. On [`Grid::Fractional`] a run in leading spacing starts with `sqrt(sigma^2 + 1)` and every other with
    /// noise alone, whatever the model's files say: diffusers goes by the `timestep_spacing` of the file even where the
    /// levels are Karras's or listed by the user.
    pub fn initial_scale(&self) -> f64 {
        let sigma = self.steps[0].from;
        if self.starts_from_noise_alone { sigma } else { sigma.hypot(1.0) }
    }

    /// The factor that turns latents at the last level into what a VAE decodes: 1 where that is 0, and for schedulers of
    /// [`Grid::Fractional`]; otherwise what is left of the signal at the last level, as in diffusers.
    pub fn final_scale(&self) -> f64 {
        self.final_scale
    }

    /// How many steps there are from one on, itself included, where none was left out at the end.
    pub(crate) fn steps_from(&self, index: usize) -> usize {
        (self.steps.len() + self.left_out).saturating_sub(index)
    }

    /// Pairs of noise level and timestep, at least one; [`ErrorKind::Usage`] where levels do not fall, or reach 0.
    fn new(
        levels: Vec<(f64, f64)>,
        time: Time,
        starts_from_noise_alone: bool,
        end: f64,
    ) -> Result<Self, Error> {
        // An end that a formula gives may miss the curve's by a rounding error.
        let is_above = |level: f64| level > end * (1.0 + 1e-6);
        let left_out = levels.iter().rev().take_while(|level| !is_above(level.0)).count();
        let moving = levels.len() - left_out;
        if moving == 0 || left_out > 1 {
            return Err(too_many_steps(
                levels.len(),
                format!("levels above {end:.4}, where it ends, got none"),
            ));
        }
        let ends = levels[..moving].iter().skip(1).map(|level| level.0).chain([end]);
        let steps = levels[..moving].iter().zip(ends).enumerate();
        let steps: Vec<Step> =
            steps.map(|(index, (&(from, timestep), to))| Step { index, from, to, timestep }).collect();
        // Levels that are no numbers fall nowhere.
        let falls = |step: &Step| step.from > step.to && step.from.is_finite();
        match steps.iter().find(|step| !falls(step)) {
            Some(Step { from, to, .. }) if from == to => {
                Err(too_many_steps(steps.len(), format!("falling levels, got {from} twice")))
            }
            Some(Step { from, to, .. }) => {
                Err(too_many_steps(steps.len(), format!("falling levels, got {from} and then {to}")))
            }
            None => Ok(Self {
                steps,
                clock: Clock::new(levels, time),
                starts_from_noise_alone,
                left_out,
                final_scale: 1.0,
            }),
        }
    }
}

/// Whether a kind's numbers make sense, and it has so many steps.
fn check(kind: &ScheduleKind, steps: usize, most: usize) -> Result<(), Error> {
    kind.check()?;
    match kind.own_steps() {
        Some(own) if own != steps && own <= most => Err(Error::new(
            ErrorKind::Usage,
            format!("steps: expected {own}, as many as there are levels, got {steps}"),
        )),
        _ => check_steps(steps, most),
    }
}

fn check_flow(train_timesteps: usize) -> Result<(), Error> {
    if (1..=MAX_TIMESTEPS).contains(&train_timesteps) {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Model,
        format!("flow matching: expected 1 to {MAX_TIMESTEPS} training timesteps, got {train_timesteps}"),
    ))
}

fn check_steps(steps: usize, most: usize) -> Result<(), Error> {
    if (1..=most).contains(&steps) {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Usage, format!("steps: expected 1 to {most}, got {steps}")))
}

/// Whether a model knows the highest level. Below the lowest that it was trained on there is next to no noise, so that
/// lower ones do no harm.
fn check_highest(sigma: f64, sigma_max: f64) -> Result<(), Error> {
    if sigma <= sigma_max * MAX_EXCESS {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Usage,
        format!("schedule: expected levels up to {sigma_max:.4}, the model's highest, got {sigma}"),
    ))
}

fn too_many_steps(steps: usize, expected: String) -> Error {
    Error::new(ErrorKind::Usage, format!("steps: {steps} with this schedule: expected {expected}"))
        .help("ask for fewer steps")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_steps_keep_the_levels_and_the_number_of_all() {
        let curve = NoiseCurve::new(Betas::ScaledLinear { start: 0.00085, end: 0.012 }, 1000).unwrap();
        let all = Schedule::of(&"karras".parse().unwrap(), &curve, Grid::Whole, 10).unwrap();
        let last = all.clone().last(4).unwrap();
        assert_eq!((last.steps().len(), last.asked_steps(), last.clock()), (4, 10, all.clock()));
        for (step, of_all) in last.steps().iter().zip(&all.steps()[6..]) {
            assert_eq!(Step { index: of_all.index, ..*step }, *of_all);
        }
        assert_eq!(last.steps().iter().map(|step| step.index).collect::<Vec<_>>(), [0, 1, 2, 3]);
        assert_eq!(last.initial_scale(), all.steps()[6].from.hypot(1.0));
        assert_eq!(all.clone().last(10).unwrap(), all);
        assert_eq!(all.clone().last(4).unwrap().last(2).unwrap(), all.clone().last(2).unwrap());
        for count in [0, 11, usize::MAX] {
            let error = all.clone().last(count).expect_err("no steps");
            let expected = format!("schedule: expected the last 1 to 10 steps, got {count}");
            assert_eq!((error.kind(), error.to_string()), (ErrorKind::Usage, expected));
        }
    }

    /// Diffusers counts the step from the lowest level to itself, and takes it.
    #[test]
    fn a_step_that_goes_nowhere_counts_among_the_last() {
        let curve = NoiseCurve::new(Betas::ScaledLinear { start: 0.00085, end: 0.012 }, 1000).unwrap();
        let kind = "karras:final=sigma_min".parse().unwrap();
        let all = Schedule::of(&kind, &curve, Grid::Whole, 10).unwrap();
        assert_eq!((all.steps().len(), all.asked_steps()), (9, 10));
        assert_eq!(all.clone().last(10).unwrap(), all);
        let last = all.clone().last(4).unwrap();
        assert_eq!(last.steps()[0].from, all.steps()[6].from);
        assert!(all.clone().last(1).is_err());
        assert_eq!(all.last(2).unwrap().steps().len(), 1);
    }
}
