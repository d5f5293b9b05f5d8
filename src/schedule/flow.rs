//! Flow matching: levels of latents that are mixed of image and noise.
//! It knows nothing of curves.

use std::ops::RangeInclusive;

use crate::{Error, ErrorKind};

/// How far the levels of flow matching are moved towards noise (Esser et al. 2024, "Scaling rectified flow transformers",
/// equation 23).
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum FlowShift {
    /// Not at all.
    None,
    /// By a factor on the ratio of noise to image (Stable Diffusion 3: 3).
    Static(f64),
    /// By the size of the image (Flux, Qwen-Image, LTX).
    Dynamic {
        /// See [`FlowShift::mu`].
        mu: f64,
        /// How the factor follows from `mu`.
        time_shift: TimeShift,
        /// The lowest level, to which the rest is stretched (diffusers' `shift_terminal`).
        terminal: Option<f64>,
    },
}

/// How the factor of [`FlowShift::Dynamic`] follows from `mu` (diffusers' `time_shift_type`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TimeShift {
    /// `exp(mu)`.
    Exponential,
    /// `mu` itself.
    Linear,
}

/// Factors beyond these leave no levels between noise and image.
const FACTOR: RangeInclusive<f64> = 0.01..=100.0;

impl FlowShift {
    /// `mu` for an image of `tokens`: on the straight line through two numbers of tokens and their values (diffusers'
    /// `calculate_shift`; Flux: 256 and 4096, 0.5 and 1.15).
    pub fn mu(tokens: usize, [low, high]: [usize; 2], [at_low, at_high]: [f64; 2]) -> f64 {
        let slope = (at_high - at_low) / (high as f64 - low as f64);
        at_low + (tokens as f64 - low as f64) * slope
    }

    /// The falling levels, from exactly 1 on; at least one step.
    ///
    /// Those of diffusers' `FlowMatchEulerDiscreteScheduler`: from 1 evenly to the shifted `1 / train_timesteps`, and then
    /// shifted, once more, or as its pipelines with dynamic shifting ask, evenly to `1 / steps`.
    pub(super) fn levels(&self, steps: usize, train_timesteps: usize) -> Result<Vec<f64>, Error> {
        match self {
            Self::Dynamic { .. } => self.levels_to_steps(steps),
            Self::None | Self::Static(_) => {
                let last = shifted(self.factor()?, 1.0 / train_timesteps as f64);
                self.levels_to(last, steps)
            }
        }
    }

    /// The falling levels, from exactly 1 evenly to `1 / steps`, and then shifted; at least one step.
    pub(super) fn levels_to_steps(&self, steps: usize) -> Result<Vec<f64>, Error> {
        self.levels_to(1.0 / steps as f64, steps)
    }

    fn levels_to(&self, last: f64, steps: usize) -> Result<Vec<f64>, Error> {
        let factor = self.factor()?;
        let even = |i: usize| 1.0 + i as f64 * (last - 1.0) / (steps - 1).max(1) as f64;
        let mut levels: Vec<f64> = (0..steps).map(|i| shifted(factor, even(i))).collect();
        // A single level is noise, and nothing can be stretched between it and the lowest.
        if let Some(terminal) = self.terminal().filter(|_| steps > 1) {
            if !(terminal > 0.0 && terminal < 1.0) {
                return Err(refused(format!("terminal: expected a level between 0 and 1, got {terminal}")));
            }
            let stretch = (1.0 - terminal) / (1.0 - levels[steps - 1]);
            levels.iter_mut().for_each(|level| *level = 1.0 - (1.0 - *level) * stretch);
        }
        Ok(levels)
    }

    fn factor(&self) -> Result<f64, Error> {
        let factor = match *self {
            Self::None => 1.0,
            Self::Static(factor) => factor,
            Self::Dynamic { mu, time_shift: TimeShift::Exponential, .. } => mu.exp(),
            Self::Dynamic { mu, time_shift: TimeShift::Linear, .. } => mu,
        };
        if !FACTOR.contains(&factor) {
            let (low, high) = (FACTOR.start(), FACTOR.end());
            return Err(refused(format!("factor: expected {low} to {high}, got {factor}")));
        }
        Ok(factor)
    }

    fn terminal(&self) -> Option<f64> {
        match self {
            Self::Dynamic { terminal, .. } => *terminal,
            Self::None | Self::Static(_) => None,
        }
    }
}

fn shifted(factor: f64, level: f64) -> f64 {
    factor * level / (1.0 + (factor - 1.0) * level)
}

fn refused(problem: String) -> Error {
    Error::new(ErrorKind::Usage, format!("flow shift: {problem}"))
}
