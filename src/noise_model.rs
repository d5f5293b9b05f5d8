//! The noise that a model was trained on: how clean latents and noise are mixed at a level, which levels a run visits, and what
//! the network is told of a level. It knows nothing of what the network predicts.

use std::fmt;

use crate::schedule::{Betas, FlowShift, Grid, NoiseCurve, Schedule, ScheduleKind, Spacing};
use crate::{Error, ErrorKind};

/// How a model's latents are noised.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum NoiseModel {
    /// `x0 + sigma * noise` at the levels of a curve of timesteps (Ho et al. 2020; in these latents Karras et al. 2022, table 1,
    /// column VP).
    Discrete(Discrete),
    /// `(1 - sigma) * x0 + sigma * noise` at levels from 0 to 1 (Liu et al. 2023, "Flow straight and fast", equation 1). The
    /// network is told `sigma * train_timesteps`.
    Flow {
        /// How far levels are moved towards noise: [`FlowShift::Static`]; 1 is not at all.
        shift: f64,
        /// What the network is told of noise alone.
        train_timesteps: usize,
    },
    /// `x0 + sigma * noise` at any level of a range; the network is told `c_noise = ln(sigma) / 4` (Karras et al. 2022, table 1,
    /// column "Ours").
    Edm {
        /// The lowest level, above 0.
        sigma_min: f64,
        /// The highest level.
        sigma_max: f64,
        /// The levels of a run where nothing else is asked for.
        levels: ScheduleKind,
    },
}

/// A curve of timesteps.
#[derive(Clone, Debug, PartialEq)]
pub struct Discrete {
    betas: Betas,
    curve: NoiseCurve,
    spacing: Spacing,
    time_input: TimeInput,
}

/// The time input of a network that was trained on a curve.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TimeInput {
    /// Its timestep.
    #[default]
    Timestep,
    /// `ln(sigma) / 4` (diffusers' `timestep_type` of `continuous`).
    QuarterLog,
}

impl Discrete {
    /// The curve of a recipe.
    ///
    /// # Errors
    /// [`ErrorKind::Model`] where the betas make no curve.
    pub fn new(
        betas: Betas,
        train_timesteps: usize,
        spacing: Spacing,
        time_input: TimeInput,
    ) -> Result<Self, Error> {
        let curve = NoiseCurve::new(betas.clone(), train_timesteps)?;
        Ok(Self { betas, curve, spacing, time_input })
    }

    /// The recipe of the curve.
    pub fn betas(&self) -> &Betas {
        &self.betas
    }

    /// The level of every timestep.
    pub fn curve(&self) -> &NoiseCurve {
        &self.curve
    }

    /// Which timesteps a run visits unless the sampler has its own.
    pub fn spacing(&self) -> Spacing {
        self.spacing
    }

    /// What the network is told of a level.
    pub fn time_input(&self) -> TimeInput {
        self.time_input
    }
}

impl NoiseModel {
    /// The curve of a recipe, of whose levels the network is told the timesteps.
    ///
    /// # Errors
    /// [`ErrorKind::Model`] where the betas make no curve.
    pub fn discrete(betas: Betas, train_timesteps: usize, spacing: Spacing) -> Result<Self, Error> {
        Discrete::new(betas, train_timesteps, spacing, TimeInput::Timestep).map(Self::Discrete)
    }

    /// Noisy latents at a level, of clean ones and of standard normal noise: forward diffusion.
    ///
    /// A level of a curve, or of a range, may be any from 0 on; one of a flow is from 0 to 1. These are the latents that samplers
    /// work on: a network that was trained on latents of unit variance gets them scaled by
    /// [`Preconditioning::c_in`](crate::prediction::Preconditioning::c_in).
    ///
    /// ```
    /// use calotype::NoiseModel;
    /// use calotype::schedule::{Betas, Spacing};
    /// let betas = Betas::ScaledLinear { start: 0.00085, end: 0.012 };
    /// let model = NoiseModel::discrete(betas, 1000, Spacing::Leading { offset: 1 })?;
    /// let NoiseModel::Discrete(discrete) = &model else { unreachable!() };
    /// let mut latents = [0.0; 2];
    /// model.add_noise(&[1.0, 2.0], &[0.5, -0.5], discrete.curve().sigma_of_timestep(999.0), &mut latents)?;
    /// assert!((latents[0] - 8.307).abs() < 1e-3 && (latents[1] + 5.307).abs() < 1e-3);
    /// # Ok::<(), calotype::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] for a level that is none, and for slices of several lengths.
    pub fn add_noise(&self, clean: &[f32], noise: &[f32], sigma: f64, out: &mut [f32]) -> Result<(), Error> {
        let refuse = |problem: String| Err(Error::new(ErrorKind::Usage, format!("add noise: {problem}")));
        let highest = if let Self::Flow { .. } = self { 1.0 } else { f64::MAX };
        if !(0.0..=highest).contains(&sigma) {
            return refuse(match self {
                Self::Flow { .. } => format!("expected a level from 0 to 1, got {sigma}"),
                _ => format!("expected a level from 0 on, got {sigma}"),
            });
        }
        if let Some(len) = [noise.len(), out.len()].into_iter().find(|len| *len != clean.len()) {
            return refuse(format!("expected {} values, got {len}", clean.len()));
        }
        for ((out, clean), noise) in out.iter_mut().zip(clean).zip(noise) {
            *out = self.mixed(*clean, *noise, sigma);
        }
        Ok(())
    }

    /// The same of one value.
    pub(crate) fn mixed(&self, clean: f32, noise: f32, sigma: f64) -> f32 {
        let (signal, clean, noise) = (self.signal(sigma), f64::from(clean), f64::from(noise));
        (signal * clean + sigma * noise) as f32
    }

    /// The share of the clean latents at a level.
    fn signal(&self, sigma: f64) -> f64 {
        match self {
            Self::Discrete(_) | Self::Edm { .. } => 1.0,
            Self::Flow { .. } => 1.0 - sigma,
        }
    }

    /// The levels that a kind of schedule visits in `steps` steps, with what the network is told of them. `grid` is the sampler's;
    /// it matters to curves alone.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] as [`Schedule::of`], [`Schedule::flow_of`] and [`Schedule::edm`] have it.
    pub fn schedule(&self, kind: &ScheduleKind, grid: Grid, steps: usize) -> Result<Schedule, Error> {
        match self {
            Self::Discrete(Discrete { curve, time_input, .. }) => {
                let schedule = Schedule::of(kind, curve, grid, steps)?;
                Ok(if *time_input == TimeInput::QuarterLog { schedule.with_log_times() } else { schedule })
            }
            Self::Flow { shift, train_timesteps } => {
                Schedule::flow_of(kind, &FlowShift::Static(*shift), *train_timesteps, steps)
            }
            Self::Edm { sigma_min, sigma_max, .. } => Schedule::edm(kind, *sigma_min, *sigma_max, steps),
        }
    }

    /// The kind of schedule of a run where nothing else is asked for.
    pub fn usual_levels(&self) -> ScheduleKind {
        match self {
            Self::Discrete(discrete) => ScheduleKind::Spaced(discrete.spacing),
            Self::Flow { .. } => ScheduleKind::Spaced(Spacing::Linspace),
            Self::Edm { levels, .. } => levels.clone(),
        }
    }

    /// The level where there is as much noise as image, in latents of unit variance.
    pub(crate) fn even_level(&self) -> f64 {
        match self {
            Self::Discrete(_) | Self::Edm { .. } => 1.0,
            Self::Flow { .. } => 0.5,
        }
    }

    /// What the network is told of a level in the middle.
    pub(crate) fn middle_timestep(&self) -> f64 {
        match self {
            Self::Discrete(Discrete { curve, time_input: TimeInput::Timestep, .. }) => {
                (curve.len() / 2) as f64
            }
            Self::Discrete(Discrete { curve, time_input: TimeInput::QuarterLog, .. }) => {
                curve.sigma_of_timestep((curve.len() / 2) as f64).ln() / 4.0
            }
            Self::Flow { train_timesteps, .. } => *train_timesteps as f64 / 2.0,
            Self::Edm { sigma_min, sigma_max, .. } => (sigma_min * sigma_max).ln() / 8.0,
        }
    }

    /// Whether what the network is told of levels may be no whole number, even at those that it was trained on.
    pub(crate) fn tells_fractions(&self) -> bool {
        match self {
            Self::Discrete(discrete) => discrete.time_input == TimeInput::QuarterLog,
            Self::Flow { .. } => false,
            Self::Edm { .. } => true,
        }
    }

    /// Whether the numbers are ones that a model can have.
    ///
    /// # Errors
    /// [`ErrorKind::Model`] naming the number.
    pub(crate) fn check(&self) -> Result<(), Error> {
        let refuse = |problem: String| Err(Error::new(ErrorKind::Model, problem));
        match self {
            Self::Discrete(_) => Ok(()),
            Self::Flow { shift, train_timesteps } => {
                if *train_timesteps < 1 {
                    return refuse(format!("train_timesteps: expected at least 1, got {train_timesteps}"));
                }
                if !(shift.is_finite() && *shift > 0.0) {
                    return refuse(format!("shift: expected a number above 0, got {shift}"));
                }
                Ok(())
            }
            Self::Edm { sigma_min, sigma_max, .. } => {
                if !(*sigma_min > 0.0 && sigma_min < sigma_max && sigma_max.is_finite()) {
                    return refuse(format!(
                        "levels: expected a range above 0, got {sigma_min} to {sigma_max}"
                    ));
                }
                Ok(())
            }
        }
    }
}

impl fmt::Display for NoiseModel {
    /// In words: `levels from 0.002 to 80 (EDM)`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Discrete(discrete) => {
                let time_input = if discrete.time_input == TimeInput::QuarterLog {
                    ", passed as logarithms of levels"
                } else {
                    ""
                };
                write!(f, "curve of {} timesteps{time_input}", discrete.curve.len())
            }
            Self::Flow { shift, .. } => write!(f, "flow matching, shift {shift}"),
            Self::Edm { sigma_min, sigma_max, .. } => {
                write!(f, "levels from {sigma_min} to {sigma_max} (EDM)")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn models() -> [NoiseModel; 3] {
        let betas = Betas::ScaledLinear { start: 0.00085, end: 0.012 };
        [
            NoiseModel::discrete(betas, 1000, Spacing::Trailing).unwrap(),
            NoiseModel::Flow { shift: 3.0, train_timesteps: 1000 },
            NoiseModel::Edm { sigma_min: 0.002, sigma_max: 80.0, levels: ScheduleKind::KARRAS },
        ]
    }

    /// At the even level latents of unit variance have as much of each, and a run begins above it.
    #[test]
    fn noise_is_added_as_the_model_knows_it() {
        let (clean, noise) = ([1.0f32, -2.0, 0.0], [0.5f32, 4.0, 1.0]);
        for (model, expected) in
            models().iter().zip([[1.125f32, -1.0, 0.25], [0.875, -0.5, 0.25], [1.125, -1.0, 0.25]])
        {
            let mut mixed = [f32::NAN; 3];
            model.add_noise(&clean, &noise, 0.25, &mut mixed).unwrap();
            let highest = if let NoiseModel::Flow { .. } = model { 1.0 } else { 100.0 };
            model.add_noise(&clean, &noise, highest, &mut [0.0; 3]).unwrap();
            for level in [-0.1, f64::NAN, 1.5 * highest].into_iter().take(if highest > 1.0 { 2 } else { 3 }) {
                let error = model.add_noise(&clean, &noise, level, &mut [0.0; 3]).expect_err("no level");
                assert_eq!(error.kind(), ErrorKind::Usage);
            }
            assert!(model.add_noise(&clean, &noise[1..], 0.25, &mut [0.0; 3]).is_err());
            assert_eq!(mixed, expected, "{model:?}");
            let even = model.even_level();
            assert_eq!(model.mixed(1.0, 0.0, even), model.mixed(0.0, 1.0, even));
            let schedule = model.schedule(&model.usual_levels(), Grid::Fractional, 8).unwrap();
            assert!(schedule.steps()[0].from > even && schedule.steps()[7].to == 0.0);
            model.check().unwrap();
        }
    }

    #[test]
    fn networks_are_told_levels_as_they_know_them() {
        let [discrete, flow, edm] = models();
        let first = |model: &NoiseModel| {
            model.schedule(&model.usual_levels(), Grid::Fractional, 4).unwrap().steps()[0].timestep
        };
        assert_eq!((first(&discrete), first(&flow)), (999.0, 1000.0));
        assert!((first(&edm) - 80f64.ln() / 4.0).abs() < 1e-12);
        assert_eq!((discrete.middle_timestep(), flow.middle_timestep()), (500.0, 500.0));
        assert!((edm.middle_timestep() - 0.4f64.ln() / 4.0).abs() < 1e-12);
        let NoiseModel::Discrete(plain) = &discrete else { panic!("a curve") };
        let continuous =
            Discrete::new(plain.betas.clone(), 1000, Spacing::Trailing, TimeInput::QuarterLog).unwrap();
        let continuous = NoiseModel::Discrete(continuous);
        let [plain, logs] = [&discrete, &continuous].map(|model| {
            model.schedule(&ScheduleKind::Spaced(Spacing::Trailing), Grid::Fractional, 4).unwrap()
        });
        for (plain, log) in plain.steps().iter().zip(logs.steps()) {
            assert_eq!((plain.from, plain.to), (log.from, log.to));
            assert!((log.timestep - plain.from.ln() / 4.0).abs() < 1e-12);
        }
        assert!((logs.clock().timestep(2.0) - 2f64.ln() / 4.0).abs() < 1e-12);
        assert_eq!((discrete.tells_fractions(), continuous.tells_fractions()), (false, true));
    }

    #[test]
    fn numbers_of_no_model_are_refused() {
        let edm =
            |sigma_min, sigma_max| NoiseModel::Edm { sigma_min, sigma_max, levels: ScheduleKind::KARRAS };
        let flow = |shift, train_timesteps| NoiseModel::Flow { shift, train_timesteps };
        for model in [
            edm(0.0, 1.0),
            edm(1.0, 1.0),
            edm(f64::NAN, 1.0),
            edm(1.0, f64::INFINITY),
            flow(0.0, 1000),
            flow(f64::NAN, 1000),
            flow(1.0, 0),
        ] {
            assert_eq!(model.check().expect_err("no such model").kind(), ErrorKind::Model, "{model:?}");
        }
    }
}
