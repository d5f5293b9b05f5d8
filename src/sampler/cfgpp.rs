//! Euler's method with CFG++. It knows that there is a second, unconditional answer, and nothing of guidance.

use super::about::{About, Build};
use super::arithmetic::blend;
use super::euler::Ancestral;
use super::setting::{ANCESTRAL, ETA, S_NOISE, Settings};
use super::{Denoise, Sampler};
use crate::Error;
use crate::noise::StepNoise;
use crate::schedule::Step;

const BUILD: Build = |settings, _, len| Box::new(EulerCfgPp::new(settings, len));

pub(super) const EULER_CFGPP: About = About {
    models: "with guidance",
    a1111: "DDIM CFG++",
    comfyui: "euler_cfg_pp",
    sd_cpp: "euler_cfg_pp",
    needs_uncond: true,
    ..About::new("euler-cfg++", BUILD)
};

pub(super) const EULER_ANCESTRAL_CFGPP: About = About {
    is_stochastic: true,
    models: "with guidance",
    comfyui: "euler_ancestral_cfg_pp",
    sd_cpp: "euler_a_cfg_pp",
    settings: ANCESTRAL,
    needs_uncond: true,
    ..About::new("euler-a-cfg++", BUILD)
};

/// CFG++ (Chung et al. 2024, algorithm 2): to the guided clean latents, and back by the *unconditional* noise, which
/// keeps the way on the data's own: `x = D + sigma_down * (x - U) / sigma_from`, with `U` the unconditional clean
/// latents; ComfyUI's `sample_euler_cfg_pp`, and with `eta` its `sample_euler_ancestral_cfg_pp`.
///
/// Guidance scales between 0 and 1 are the paper's; those of ComfyUI's users are 1 to 2.
pub(super) struct EulerCfgPp {
    eta: f64,
    s_noise: f64,
    denoised: Vec<f32>,
    unconditional: Vec<f32>,
    noise: Vec<f32>,
}

impl EulerCfgPp {
    /// Of the settings `eta` and `s_noise`.
    pub(super) fn new(settings: &Settings, len: usize) -> Self {
        let (eta, s_noise) = (settings.get(&ETA), settings.get(&S_NOISE));
        let [denoised, unconditional, noise] = std::array::from_fn(|_| vec![0.0; len]);
        Self { eta, s_noise, denoised, unconditional, noise }
    }
}

impl Sampler for EulerCfgPp {
    fn step(
        &mut self,
        x: &mut [f32],
        step: &Step,
        denoiser: &mut dyn Denoise,
        noise: &mut dyn StepNoise,
    ) -> Result<(), Error> {
        denoiser.denoise_apart(x, step.from, &mut self.denoised, &mut self.unconditional)?;
        let Ancestral { down, up } = Ancestral::new(step.from, step.to, self.eta);
        let up = up * self.s_noise;
        if up > 0.0 {
            noise.fill_between(step.from, step.to, &mut self.noise);
        }
        let ratio = down / step.from;
        blend(x, ratio, &[(1.0, &self.denoised), (-ratio, &self.unconditional), (up, &self.noise)]);
        Ok(())
    }
}
