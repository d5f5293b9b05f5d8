//! Churn: fresh noise before a step. It knows nothing of the step.

use super::Settings;
use super::arithmetic::blend;
use crate::noise::StepNoise;

/// Lifts latents to a higher level before a step (Karras et al. 2022, algorithm 2, lines 4 to 6).
///
/// `sigma_hat = (1 + gamma) * sigma` with `gamma = min(s_churn / steps, sqrt(2) - 1)` for levels in `s_tmin..=s_tmax`.
/// The model is asked at `sigma_hat`, as in the paper and in k-diffusion; diffusers' Euler and Heun ask it at `sigma`,
/// before the noise is added. Without churn nothing is drawn; k-diffusion draws and throws away.
pub(super) struct Churn {
    gamma: f64,
    from: f64,
    to: f64,
    s_noise: f64,
    noise: Vec<f32>,
    lifted: Vec<f32>,
}

/// How far latents were lifted.
#[derive(Clone, Copy)]
pub(super) struct Lift {
    /// The level that they now have.
    pub(super) sigma: f64,
    /// How much of [`Churn::noise`] was added.
    pub(super) weight: f64,
}

impl Churn {
    pub(super) fn new(settings: &Settings, steps: usize, len: usize) -> Self {
        let Settings { s_churn, s_tmin, s_tmax, s_noise, .. } = *settings;
        let gamma = (s_churn / steps as f64).min(std::f64::consts::SQRT_2 - 1.0);
        let len = if gamma > 0.0 { len } else { 0 };
        Self { gamma, from: s_tmin, to: s_tmax, s_noise, noise: vec![0.0; len], lifted: vec![0.0; len] }
    }

    /// Lifts a copy of the latents, where their level asks for it.
    pub(super) fn lift(&mut self, x: &[f32], sigma: f64, noise: &mut dyn StepNoise) -> Lift {
        if self.gamma == 0.0 || !(self.from..=self.to).contains(&sigma) {
            return Lift { sigma, weight: 0.0 };
        }
        let lifted = sigma * (1.0 + self.gamma);
        let weight = self.s_noise * (lifted * lifted - sigma * sigma).sqrt();
        noise.fill_between(lifted, sigma, &mut self.noise);
        blend(&mut self.lifted, 0.0, &[(1.0, x), (weight, &self.noise)]);
        Lift { sigma: lifted, weight }
    }

    /// The latents that the model sees: the lifted ones, or `x` where nothing was lifted.
    pub(super) fn lifted<'a>(&'a self, x: &'a [f32], lift: Lift) -> &'a [f32] {
        if lift.weight == 0.0 { x } else { &self.lifted }
    }

    /// The noise that lifted them.
    pub(super) fn noise(&self) -> &[f32] {
        &self.noise
    }
}
