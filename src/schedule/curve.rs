//! Noise curves: the noise level of every timestep that a model was trained on.
//! They know nothing of the levels that a run visits.

use std::sync::Arc;

use crate::{Error, ErrorKind};

/// The longest noise curve that is believed; published ones have 1000 timesteps.
pub const MAX_TIMESTEPS: usize = 100_000;

/// How much noise each training timestep adds: the recipe of a [`NoiseCurve`].
///
/// `beta[t]` is the variance that timestep `t` adds (Ho et al. 2020, equation 2).
#[derive(Clone, Debug, PartialEq)]
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
    /// Betas on a logistic curve (diffusers' `DDPMScheduler`, which has it of Xu et al. 2022, "GeoDiff").
    Sigmoid {
        /// The beta that the curve rises from.
        start: f64,
        /// The beta that it nears.
        end: f64,
    },
    /// Betas that the model lists.
    Trained(Vec<f32>),
    /// Those of another recipe, rescaled so that the last timestep is noise alone (Lin et al. 2024, algorithm 1).
    ///
    /// "Alone" is a level of 4096, as in diffusers' schedulers that keep levels: an endless one could not be computed
    /// with. Of the signal's variance 2^-24 is left. Where timesteps before have less than that, as with linear betas up to
    /// 0.02, diffusers' levels fall to it at the end; here they rise to it, evenly in their logarithms.
    ZeroTerminalSnr(Box<Betas>),
}

/// The noise level of each training timestep, strictly growing.
#[derive(Clone, Debug, PartialEq)]
pub struct NoiseCurve {
    sigmas: Arc<[f64]>,
}

impl NoiseCurve {
    /// The curve of `timesteps` betas; [`ErrorKind::Model`] where they make no curve.
    pub fn new(betas: Betas, timesteps: usize) -> Result<Self, Error> {
        Self::from_signals(&signals(betas, timesteps)?)
    }

    /// The curve of betas listed by the model itself; [`ErrorKind::Model`] where they make no curve.
    ///
    /// `sigma = sqrt((1 - a) / a)` with `a` the product of `1 - beta` so far. The factors and the products are
    /// rounded to `f32` as diffusers rounds them: near 1 that moves `sigma` by up to 2e-5 of itself, and
    /// models were trained on, and are compared with, the moved values.
    pub fn from_betas(betas: &[f32]) -> Result<Self, Error> {
        Self::from_signals(&products(betas)?)
    }

    fn from_signals(signals: &[f64]) -> Result<Self, Error> {
        let mut sigmas = Vec::with_capacity(signals.len());
        for (t, &a) in signals.iter().enumerate() {
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

    /// The noise level at a timestep by linear interpolation of `ln sigma`, as k-diffusion and ComfyUI have it: the inverse of
    /// [`timestep_of_sigma`](Self::timestep_of_sigma).
    pub(super) fn log_sigma_of_timestep(&self, timestep: f64) -> f64 {
        let low = (timestep as usize).min(self.len() - 2);
        let weight = timestep - low as f64;
        self.sigmas[low] * (self.sigmas[low + 1] / self.sigmas[low]).powf(weight)
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

/// What diffusers leaves of the signal's variance where the last timestep is noise alone: the least that half precision
/// can tell from nothing.
const LEAST_SIGNAL: f64 = 1.0 / (1 << 24) as f64;

/// How much of the signal's variance is left after each timestep.
fn signals(betas: Betas, timesteps: usize) -> Result<Vec<f64>, Error> {
    check_timesteps(timesteps)?;
    let betas: Vec<f32> = match betas {
        Betas::Linear { start, end } => evenly(start, end, timesteps).collect(),
        Betas::ScaledLinear { start, end } => {
            evenly(start.sqrt(), end.sqrt(), timesteps).map(|root| root.powi(2)).collect()
        }
        Betas::SquaredCosCapV2 => {
            let alpha_bar = |t: usize| {
                let u = (t as f64 / timesteps as f64 + 0.008) / 1.008;
                (u * std::f64::consts::FRAC_PI_2).cos().powi(2)
            };
            (0..timesteps).map(|t| (1.0 - alpha_bar(t + 1) / alpha_bar(t)).min(0.999) as f32).collect()
        }
        Betas::Sigmoid { start, end } => {
            let share = |u: f32| (1.0 / (1.0 + f64::from(-u).exp())) as f32;
            let beta = |u: f32| share(u) * (end - start) as f32 + start as f32;
            evenly(-6.0, 6.0, timesteps).map(beta).collect()
        }
        Betas::Trained(betas) if betas.len() == timesteps => betas,
        Betas::Trained(betas) => {
            return Err(Error::new(
                ErrorKind::Model,
                format!("noise curve: expected {timesteps} betas, as many as timesteps, got {}", betas.len()),
            ));
        }
        Betas::ZeroTerminalSnr(betas) => {
            let plain = signals(*betas, timesteps)?;
            NoiseCurve::from_signals(&plain)?;
            return Ok(rescaled(&plain));
        }
    };
    products(&betas)
}

/// Evenly spaced numbers from `start` to `end`, rounded as torch's `linspace` rounds them in single precision: from
/// either end to the middle.
fn evenly(start: f64, end: f64, count: usize) -> impl Iterator<Item = f32> {
    let (start, end) = (start as f32, end as f32);
    let step = f64::from((end - start) / (count - 1) as f32);
    (0..count).map(move |i| {
        let number = if i < count / 2 {
            f64::from(start) + step * i as f64
        } else {
            f64::from(end) - step * (count - 1 - i) as f64
        };
        number as f32
    })
}

/// The products of `1 - beta` so far.
fn products(betas: &[f32]) -> Result<Vec<f64>, Error> {
    check_timesteps(betas.len())?;
    let mut product = 1.0;
    let product_to = |(t, &beta): (usize, &f32)| {
        if !(beta > 0.0 && beta < 1.0) {
            return Err(Error::new(
                ErrorKind::Model,
                format!("noise curve: beta[{t}]: expected a number between 0 and 1, got {beta}"),
            ));
        }
        product *= f64::from(1.0 - beta);
        Ok(f64::from(product as f32))
    };
    betas.iter().enumerate().map(product_to).collect()
}

/// Signals whose roots are moved along one line, so that the first stays and nothing of the last is left (Lin et al.
/// 2024, algorithm 1).
///
/// Diffusers does it in single precision, and goes back to betas; its levels differ by its rounding, by 2e-5 of
/// themselves for Stable Diffusion's betas.
fn rescaled(signals: &[f64]) -> Vec<f64> {
    let (first, last) = (signals[0].sqrt(), signals[signals.len() - 1].sqrt());
    let mut rescaled: Vec<f64> =
        signals.iter().map(|signal| ((signal.sqrt() - last) * first / (first - last)).powi(2)).collect();
    // At least the last is below.
    let above = rescaled.partition_point(|signal| *signal > LEAST_SIGNAL).clamp(1, rescaled.len() - 1);
    let (before, count) = (rescaled[above - 1], rescaled.len() - above);
    for (place, signal) in rescaled[above..].iter_mut().enumerate() {
        *signal = before * (LEAST_SIGNAL / before).powf((place + 1) as f64 / count as f64);
    }
    rescaled
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
