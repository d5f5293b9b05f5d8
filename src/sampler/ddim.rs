//! Deterministic DDIM. It knows nothing of where the levels come from.

use super::{Denoise, Sampler};
use crate::Error;
use crate::noise::NoiseSource;
use crate::schedule::Step;

/// Denoising diffusion implicit models (Song, Meng & Ermon 2021, equation 12 with `eta = 0`), ending in the clean
/// latents themselves (diffusers' `set_alpha_to_one`).
///
/// In the paper's `x / sqrt(sigma^2 + 1)` an update is `sqrt(alpha) * x0 + sqrt(1 - alpha) * eps`; divided by
/// `sqrt(alpha)` it is `x0 + sigma * eps` (their equation 13), Euler's step in other words. What differs between
/// the two in diffusers is the levels. It also differs from diffusers where timesteps are unevenly spaced: diffusers
/// steps to `timestep - timesteps / steps` rather than to the timestep that comes next, and this to the latter.
pub(super) struct Ddim {
    denoised: Vec<f32>,
}

impl Ddim {
    pub(super) fn new(len: usize) -> Self {
        Self { denoised: vec![0.0; len] }
    }
}

impl Sampler for Ddim {
    fn step(
        &mut self,
        x: &mut [f32],
        step: &Step,
        denoiser: &mut dyn Denoise,
        _noise: &mut dyn NoiseSource,
    ) -> Result<(), Error> {
        assert_eq!(x.len(), self.denoised.len(), "latents of the length that the sampler was built for");
        denoiser.denoise(x, step.from, step.timestep, &mut self.denoised)?;
        for (x, denoised) in x.iter_mut().zip(&self.denoised) {
            let x0 = f64::from(*denoised);
            let eps = (f64::from(*x) - x0) / step.from;
            *x = (x0 + step.to * eps) as f32;
        }
        Ok(())
    }
}
