//! Euler's method, plain and ancestral. It knows nothing of where the levels come from.

use super::{Denoise, Sampler};
use crate::Error;
use crate::noise::NoiseSource;
use crate::schedule::Step;

/// Euler's method on the probability flow ODE `dx/dsigma = (x - D(x; sigma)) / sigma` (Karras et al. 2022,
/// algorithm 1 without lines 6 to 8, and without churn).
pub(super) struct Euler {
    denoised: Vec<f32>,
}

impl Euler {
    pub(super) fn new(len: usize) -> Self {
        Self { denoised: vec![0.0; len] }
    }
}

impl Sampler for Euler {
    fn step(
        &mut self,
        x: &mut [f32],
        step: &Step,
        denoiser: &mut dyn Denoise,
        _noise: &mut dyn NoiseSource,
    ) -> Result<(), Error> {
        denoiser.denoise(x, step.from, step.timestep, &mut self.denoised)?;
        descend(x, &self.denoised, step.from, step.to);
        Ok(())
    }
}

/// Ancestral sampling (Song et al. 2021, "Score-based generative modeling through SDEs", appendix F): an Euler step to
/// `sigma_down`, below the target, then fresh noise of `sigma_up`, so that
/// `sigma_down^2 + sigma_up^2 = sigma_to^2`; k-diffusion's `sample_euler_ancestral` with `eta = 1`.
pub(super) struct EulerAncestral {
    denoised: Vec<f32>,
    noise: Vec<f32>,
}

impl EulerAncestral {
    pub(super) fn new(len: usize) -> Self {
        Self { denoised: vec![0.0; len], noise: vec![0.0; len] }
    }
}

impl Sampler for EulerAncestral {
    fn step(
        &mut self,
        x: &mut [f32],
        step: &Step,
        denoiser: &mut dyn Denoise,
        noise: &mut dyn NoiseSource,
    ) -> Result<(), Error> {
        denoiser.denoise(x, step.from, step.timestep, &mut self.denoised)?;
        // The last step adds none of its noise, but diffusers draws it: the stream must go on behind it.
        noise.fill_normal(&mut self.noise);
        let ratio = step.to / step.from;
        let sigma_up = step.to * (1.0 - ratio * ratio).sqrt();
        let sigma_down = step.to * ratio;
        descend(x, &self.denoised, step.from, sigma_down);
        for (x, noise) in x.iter_mut().zip(&self.noise) {
            *x = (f64::from(*x) + sigma_up * f64::from(*noise)) as f32;
        }
        Ok(())
    }
}

/// `x + (to - from) * (x - denoised) / from`: along the tangent from one level to another.
fn descend(x: &mut [f32], denoised: &[f32], from: f64, to: f64) {
    assert_eq!(x.len(), denoised.len(), "latents of the length that the sampler was built for");
    for (x, denoised) in x.iter_mut().zip(denoised) {
        let slope = (f64::from(*x) - f64::from(*denoised)) / from;
        *x = (f64::from(*x) + (to - from) * slope) as f32;
    }
}
