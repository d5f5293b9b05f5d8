//! Churn: fresh noise before a step. It knows nothing of the step.

use super::arithmetic::blend;
use super::setting::{Declared, NumberRange, S_NOISE, Setting, Settings};
use crate::noise::StepNoise;

/// How much noise is added before steps, in all of a run (Karras et al. 2022, section 4).
pub const S_CHURN: Setting<f64> = Setting {
    name: "s_churn",
    default: 0.0,
    range: NumberRange { low: 0.0, high: f64::MAX, words: "a number from 0 up" },
    help: "noise added before steps, in all of a run (Karras et al. 2022)",
};

/// The lowest level at which [`S_CHURN`] is added.
pub const S_TMIN: Setting<f64> = Setting {
    name: "s_tmin",
    default: 0.0,
    range: NumberRange { low: 0.0, high: f64::MAX, words: "a number from 0 up" },
    help: "lowest sigma at which s_churn is added",
};

/// The highest level at which [`S_CHURN`] is added.
pub const S_TMAX: Setting<f64> = Setting {
    name: "s_tmax",
    default: f64::INFINITY,
    range: NumberRange { low: 0.0, high: f64::INFINITY, words: "a number from 0 up, or inf" },
    help: "highest sigma at which s_churn is added",
};

/// The settings of samplers with churn.
pub(super) const CHURN: Declared = &[&S_NOISE, &S_CHURN, &S_TMIN, &S_TMAX];

/// Whether the range of levels is one.
pub(super) fn check(settings: &Settings) -> Result<(), String> {
    let (low, high) = (settings.get(&S_TMIN), settings.get(&S_TMAX));
    if low <= high { Ok(()) } else { Err(format!("expected s_tmin up to s_tmax, got {low} and {high}")) }
}

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
    /// How much noise was added.
    pub(super) weight: f64,
}

impl Churn {
    pub(super) fn new(settings: &Settings, steps: usize, len: usize) -> Self {
        let gamma = (settings.get(&S_CHURN) / steps as f64).min(std::f64::consts::SQRT_2 - 1.0);
        let len = if gamma > 0.0 { len } else { 0 };
        Self {
            gamma,
            from: settings.get(&S_TMIN),
            to: settings.get(&S_TMAX),
            s_noise: settings.get(&S_NOISE),
            noise: vec![0.0; len],
            lifted: vec![0.0; len],
        }
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

    /// The noise that lifted them, of which a step keeps this share, with its weight: none where nothing was lifted, whatever
    /// the share.
    pub(super) fn part(&self, lift: Lift, share: f64) -> (f64, &[f32]) {
        if lift.weight == 0.0 { (0.0, &[]) } else { (share * lift.weight, &self.noise) }
    }
}
