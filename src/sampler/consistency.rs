//! Samplers of consistency models: LCM and TCD. They know nothing of where the levels come from, but that timesteps
//! say how far a leap goes.

use super::about::About;
use super::arithmetic::blend;
use super::setting::{ETA, Setting, Settings};
use super::{Denoise, Sampler};
use crate::Error;
use crate::noise::StepNoise;
use crate::schedule::{Clock, Grid, ScheduleKind, Step};

pub(super) const LCM: About = About {
    order: 0,
    is_stochastic: true,
    models: "latent consistency",
    diffusers: "LCMScheduler",
    a1111: "LCM",
    comfyui: "lcm",
    sd_cpp: "lcm",
    others: &["k_lcm"],
    grid: Grid::Whole,
    own_schedule: Some(&ScheduleKind::LCM),
    ..About::new("lcm", |_, _, len| Box::new(Lcm::new(len)))
};

pub(super) const TCD: About = About {
    order: 0,
    is_stochastic: true,
    models: "trajectory consistency",
    diffusers: "TCDScheduler",
    sd_cpp: "tcd",
    settings: &[&GAMMA],
    grid: Grid::Whole,
    own_schedule: Some(&ScheduleKind::LCM),
    ..About::new("tcd", |settings, schedule, len| Box::new(Tcd::new(settings, schedule.clock().clone(), len)))
};

/// TCD's gamma, by diffusers' name and with its default.
const GAMMA: Setting<f64> = Setting { default: 0.3, ..ETA };

/// Multistep consistency sampling (Song et al. 2023, "Consistency models", algorithm 1), as latent consistency models
/// run it (Luo et al. 2023, section 4): to the clean latents in one leap, then fresh noise of the next level.
///
/// The leap is `c_out(t) * D + c_skip(t) * z` (Song et al. 2023, equation 5) with `z = x / sqrt(sigma^2 + 1)`, which
/// is `z` at `t = 0` and all but `D` elsewhere.
pub(super) struct Lcm {
    denoised: Vec<f32>,
    noise: Vec<f32>,
}

impl Lcm {
    pub(super) fn new(len: usize) -> Self {
        Self { denoised: vec![0.0; len], noise: vec![0.0; len] }
    }
}

impl Sampler for Lcm {
    fn step(
        &mut self,
        x: &mut [f32],
        step: &Step,
        denoiser: &mut dyn Denoise,
        noise: &mut dyn StepNoise,
    ) -> Result<(), Error> {
        denoiser.denoise(x, step.from, &mut self.denoised)?;
        if step.to > 0.0 {
            noise.fill_between(step.from, step.to, &mut self.noise);
        }
        // Diffusers' `sigma_data` and `timestep_scaling`.
        const SIGMA_DATA: f64 = 0.5;
        const TIMESTEP_SCALE: f64 = 10.0;
        let t = TIMESTEP_SCALE * step.timestep;
        let norm = t.hypot(SIGMA_DATA);
        let (c_out, c_skip) = (t / norm, (SIGMA_DATA / norm).powi(2) / step.from.hypot(1.0));
        blend(x, c_skip, &[(c_out, &self.denoised), (step.to, &self.noise)]);
        Ok(())
    }
}

/// Strategic stochastic sampling of trajectory consistency models (Zheng et al. 2024, "Trajectory consistency
/// distillation", algorithm 4): a leap to time `s = (1 - gamma) t_to`, below the target, then fresh noise up to it.
///
/// `gamma` is the setting `eta`, as diffusers calls it: 0 draws nothing, and 1 leaps to time 0. That time has the
/// curve's lowest level, not none (diffusers' `alphas_cumprod[0]`), and so has the end of a run. `s` is cut to a whole
/// timestep, as in diffusers.
pub(super) struct Tcd {
    gamma: f64,
    clock: Clock,
    denoised: Vec<f32>,
    noise: Vec<f32>,
}

impl Tcd {
    /// Of the settings `eta`, from 0 to 1.
    pub(super) fn new(settings: &Settings, clock: Clock, len: usize) -> Self {
        Self { gamma: settings.get(&ETA), clock, denoised: vec![0.0; len], noise: vec![0.0; len] }
    }
}

impl Sampler for Tcd {
    fn step(
        &mut self,
        x: &mut [f32],
        step: &Step,
        denoiser: &mut dyn Denoise,
        noise: &mut dyn StepNoise,
    ) -> Result<(), Error> {
        let &Step { from, to, .. } = step;
        denoiser.denoise(x, from, &mut self.denoised)?;
        if to == 0.0 {
            x.copy_from_slice(&self.denoised);
            return Ok(());
        }
        let leap = self.clock.sigma(((1.0 - self.gamma) * self.clock.timestep(to)).floor()).min(to);
        // Noise up to the target's variance; latents here are not scaled by the signal that is left.
        let up = if self.gamma > 0.0 { (to * to - leap * leap).sqrt() } else { 0.0 };
        if up > 0.0 {
            noise.fill_between(from, to, &mut self.noise);
        }
        let ratio = leap / from;
        blend(x, ratio, &[(1.0 - ratio, &self.denoised), (up, &self.noise)]);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::noise::TorchCpu;

    struct Three;

    impl Denoise for Three {
        fn denoise(&mut self, _: &[f32], _: f64, out: &mut [f32]) -> Result<(), Error> {
            out.fill(3.0);
            Ok(())
        }
    }

    /// At real timesteps `c_skip` is below 1e-5, out of sight of the golden latents.
    #[test]
    fn the_leap_keeps_its_part_of_the_latents() {
        // 10 t is sigma_data, so that c_skip is 1/2 and c_out the root of 1/2.
        for (timestep, expected) in [(0.05, (3.0 + 1.0) * 0.5f64.sqrt()), (0.0, 2.0 * 0.5f64.sqrt())] {
            let step = Step { index: 0, from: 1.0, to: 0.0, timestep };
            let mut x = [2.0];
            Lcm::new(1).step(&mut x, &step, &mut Three, &mut TorchCpu::new(0)).unwrap();
            assert!((f64::from(x[0]) - expected).abs() < 1e-6, "{x:?}, expected {expected}");
        }
    }
}
