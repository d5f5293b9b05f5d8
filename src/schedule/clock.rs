//! Clocks: the model's own time of any noise level of a run.
//! They know a run's levels, and nothing of how these were chosen.

use super::NoiseCurve;

/// The model's own time of any noise level of a run, and back.
#[derive(Clone, Debug, PartialEq)]
pub struct Clock {
    /// Level and timestep of every step that was asked for, from the highest level down.
    levels: Vec<(f64, f64)>,
    time: Time,
}

/// How time and noise level hang together where a run has no level of its own.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Time {
    /// Training timesteps of a curve.
    Curve(NoiseCurve),
    /// The level as a share of the training timesteps.
    Flow { train_timesteps: f64 },
    /// The fourth part of the level's logarithm.
    Edm,
}

impl Time {
    pub(super) fn of_sigma(&self, sigma: f64) -> f64 {
        match self {
            Self::Curve(curve) => curve.timestep_of_sigma(sigma),
            Self::Flow { train_timesteps } => sigma * train_timesteps,
            Self::Edm => sigma.ln() / 4.0,
        }
    }

    fn sigma(&self, timestep: f64) -> f64 {
        match self {
            Self::Curve(curve) => curve.sigma_of_timestep(timestep),
            Self::Flow { train_timesteps } => timestep / train_timesteps,
            Self::Edm => (4.0 * timestep).exp(),
        }
    }
}

impl Clock {
    pub(super) fn new(levels: Vec<(f64, f64)>, time: Time) -> Self {
        Self { levels, time }
    }

    pub(super) fn levels(&self) -> &[(f64, f64)] {
        &self.levels
    }

    /// The timestep of a level above 0: the schedule's own where `sigma` is one of its levels, which may have been
    /// rounded; elsewhere the curve's [`timestep_of_sigma`](NoiseCurve::timestep_of_sigma), or what the model knows in
    /// place of a curve.
    pub fn timestep(&self, sigma: f64) -> f64 {
        let at = self.levels.partition_point(|&(level, _)| level > sigma);
        match self.levels.get(at) {
            Some(&(level, timestep)) if level == sigma => timestep,
            _ => self.time.of_sigma(sigma),
        }
    }

    /// The level of a timestep of the model: the curve's [`sigma_of_timestep`](NoiseCurve::sigma_of_timestep), or what
    /// the model knows in place of a curve.
    ///
    /// At whole timesteps it is the inverse of [`timestep`](Self::timestep), but for levels whose own were rounded.
    pub fn sigma(&self, timestep: f64) -> f64 {
        self.time.sigma(timestep)
    }
}
