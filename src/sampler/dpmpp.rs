//! Second-order multistep DPM-Solver++. It knows nothing of where the levels come from.

use super::{Denoise, Sampler};
use crate::Error;
use crate::noise::NoiseSource;
use crate::schedule::Step;

/// DPM-Solver++(2M) (Lu et al. 2022, "DPM-Solver++", algorithm 2), its midpoint form.
///
/// With `h = ln(from / to)` and `r` the last `h` over this one, the clean latents of this step and the last are
/// continued to `D = (1 + 1 / 2r) D_i - 1 / 2r D_(i-1)`, and `x = (to / from) x + (1 - to / from) D`.
/// The first step, which has no last one, and the step to 0, where `h` is infinite, take `D = D_i`.
pub(super) struct DpmPp2m {
    denoised: Vec<f32>,
    last_denoised: Vec<f32>,
    /// The level that the last step came from.
    last_from: Option<f64>,
}

impl DpmPp2m {
    pub(super) fn new(len: usize) -> Self {
        Self { denoised: vec![0.0; len], last_denoised: vec![0.0; len], last_from: None }
    }
}

impl Sampler for DpmPp2m {
    fn step(
        &mut self,
        x: &mut [f32],
        step: &Step,
        denoiser: &mut dyn Denoise,
        _noise: &mut dyn NoiseSource,
    ) -> Result<(), Error> {
        assert_eq!(x.len(), self.denoised.len(), "latents of the length that the sampler was built for");
        denoiser.denoise(x, step.from, step.timestep, &mut self.denoised)?;
        let ratio = step.to / step.from;
        let last_weight = match self.last_from {
            Some(last_from) if step.to > 0.0 => {
                let h = (step.from / step.to).ln();
                let last_h = (last_from / step.from).ln();
                h / (2.0 * last_h)
            }
            _ => 0.0,
        };
        for ((x, denoised), last) in x.iter_mut().zip(&self.denoised).zip(&self.last_denoised) {
            let continued = (1.0 + last_weight) * f64::from(*denoised) - last_weight * f64::from(*last);
            *x = (ratio * f64::from(*x) + (1.0 - ratio) * continued) as f32;
        }
        std::mem::swap(&mut self.denoised, &mut self.last_denoised);
        self.last_from = Some(step.from);
        Ok(())
    }
}
