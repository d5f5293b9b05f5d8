//! Noise curves: the noise level of every timestep that a model was trained on.
//! They know nothing of the levels that a run visits.

use std::sync::Arc;

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
    sigmas: Arc<[f64]>,
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
        Ok(Self { sigmas: sigmas.into() })
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
