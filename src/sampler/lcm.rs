//! The sampler of latent consistency models. It knows nothing of where the levels come from.

use super::{Denoise, Sampler};
use crate::Error;
use crate::noise::NoiseSource;
use crate::schedule::Step;

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
        noise: &mut dyn NoiseSource,
    ) -> Result<(), Error> {
        assert_eq!(x.len(), self.denoised.len(), "latents of the length that the sampler was built for");
        denoiser.denoise(x, step.from, step.timestep, &mut self.denoised)?;
        if step.to > 0.0 {
            noise.fill_normal(&mut self.noise);
        }
        // Diffusers' `sigma_data` and `timestep_scaling`.
        const SIGMA_DATA: f64 = 0.5;
        const TIMESTEP_SCALE: f64 = 10.0;
        let t = TIMESTEP_SCALE * step.timestep;
        let norm = t.hypot(SIGMA_DATA);
        let (c_out, c_skip) = (t / norm, (SIGMA_DATA / norm).powi(2) / step.from.hypot(1.0));
        for ((x, denoised), noise) in x.iter_mut().zip(&self.denoised).zip(&self.noise) {
            let x0 = c_out * f64::from(*denoised) + c_skip * f64::from(*x);
            *x = (x0 + step.to * f64::from(*noise)) as f32;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::noise::TorchCpu;

    struct Three;

    impl Denoise for Three {
        fn denoise(&mut self, _: &[f32], _: f64, _: f64, out: &mut [f32]) -> Result<(), Error> {
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
