//! Euler's method in its many names: plain, with churn, ancestral, DDIM and DDPM.
//! It knows nothing of where the levels come from, in which these differ.

use super::about::{About, Build};
use super::arithmetic::blend;
use super::churn::{self, CHURN, Churn};
use super::setting::{ALL_ETA, ANCESTRAL, Choice, ETA, S_NOISE, STEP_NOISE, Setting, Settings};
use super::{Denoise, Sampler};
use crate::Error;
use crate::noise::StepNoise;
use crate::schedule::{Grid, Step};

const BUILD: Build = |settings, schedule, len| Box::new(Euler::new(settings, schedule.steps().len(), len));

pub(super) const EULER: About = About {
    is_slope: true,
    diffusers: "EulerDiscreteScheduler",
    a1111: "Euler",
    comfyui: "euler",
    sd_cpp: "euler",
    others: &["FlowMatchEulerDiscreteScheduler", "EDMEulerScheduler", "k_euler", "sample_euler"],
    settings: CHURN,
    check: churn::check,
    ..About::new("euler", BUILD)
};

pub(super) const EULER_ANCESTRAL: About = About {
    is_stochastic: true,
    diffusers: "EulerAncestralDiscreteScheduler",
    a1111: "Euler a",
    comfyui: "euler_ancestral",
    sd_cpp: "euler_a",
    others: &["k_euler_a", "k_euler_ancestral", "euler_ancestral_RF"],
    settings: ANCESTRAL,
    ..About::new("euler-a", BUILD)
};

pub(super) const DDIM: About = About {
    diffusers: "DDIMScheduler",
    a1111: "DDIM",
    comfyui: "ddim",
    settings: &[&ETA, &S_NOISE, &STEP_NOISE],
    grid: Grid::Whole,
    ..About::new("ddim", BUILD)
};

pub(super) const DDPM: About = About {
    is_stochastic: true,
    diffusers: "DDPMScheduler",
    comfyui: "ddpm",
    settings: &[&S_NOISE, &VARIANCE, &STEP_NOISE],
    fixed: &[&ALL_ETA],
    grid: Grid::Whole,
    ..About::new("ddpm", BUILD)
};

/// The variance of DDPM's noise.
pub const VARIANCE: Setting<Variance> = Setting {
    name: "variance",
    default: Variance::Small,
    range: (),
    help: "variance of the added noise: small (of the posterior) or large (of the step), as diffusers' fixed_small and fixed_large",
};

/// The variance of DDPM's noise (Ho et al. 2020, section 3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variance {
    /// The posterior's, right for data of one value: diffusers' `fixed_small`.
    Small,
    /// The step's own, `beta`, right for data of unit variance: diffusers' `fixed_large`.
    Large,
}

impl Choice for Variance {
    const WORDS: &'static [(&'static str, Self)] = &[("small", Self::Small), ("large", Self::Large)];
}

/// A step along the tangent of the probability flow ODE `dx/dsigma = (x - D(x; sigma)) / sigma` (Karras et al. 2022,
/// equation 3), to a level below the target, and fresh noise up to it.
///
/// With `eta` 0 it is Euler's method (Karras et al. 2022, algorithm 1 without lines 6 to 8), to which algorithm 2 adds
/// noise before the step: [`Churn`]. With `eta` it is ancestral sampling: `sigma_down^2 + sigma_up^2 = sigma_to^2` with
/// `sigma_up = eta * sigma_to * sqrt(1 - sigma_to^2 / sigma_from^2)` (Song et al. 2021, "Score-based generative modeling
/// through SDEs", appendix F; k-diffusion's `get_ancestral_step`).
///
/// DDIM (Song, Meng & Ermon 2021, equations 12 and 16) is the same: its `sqrt(alpha) x0 + sqrt(1 - alpha - s^2) eps +
/// s z` divided by `sqrt(alpha)` is `x0 + sigma_down eps + sigma_up z`. So is DDPM (Ho et al. 2020, equations 7 and 11)
/// with `eta` 1, as DDIM's authors say; its other choice of variance is [`Variance::Large`]. What differs between
/// them in diffusers is the levels.
pub(super) struct Euler {
    churn: Churn,
    eta: f64,
    s_noise: f64,
    variance: Variance,
    denoised: Vec<f32>,
    noise: Vec<f32>,
}

impl Euler {
    /// Of the settings those of [`Churn`], and `eta`, `s_noise` and `variance`. `steps` is how many there will be.
    pub(super) fn new(settings: &Settings, steps: usize, len: usize) -> Self {
        let eta = settings.get(&ETA);
        let noise = vec![0.0; if eta > 0.0 { len } else { 0 }];
        Self {
            churn: Churn::new(settings, steps, len),
            eta,
            s_noise: settings.get(&S_NOISE),
            variance: settings.get(&VARIANCE),
            denoised: vec![0.0; len],
            noise,
        }
    }
}

impl Sampler for Euler {
    fn step(
        &mut self,
        x: &mut [f32],
        step: &Step,
        denoiser: &mut dyn Denoise,
        noise: &mut dyn StepNoise,
    ) -> Result<(), Error> {
        let lift = self.churn.lift(x, step.from, noise);
        denoiser.denoise(self.churn.lifted(x, lift), lift.sigma, &mut self.denoised)?;
        let Ancestral { down, up } = Ancestral::new(lift.sigma, step.to, self.eta);
        let up = self.s_noise
            * match self.variance {
                Variance::Small => up,
                Variance::Large => large_variance(lift.sigma, step.to).sqrt(),
            };
        if up > 0.0 {
            noise.fill_between(step.from, step.to, &mut self.noise);
        }
        let ratio = down / lift.sigma;
        blend(x, ratio, &[(1.0 - ratio, &self.denoised), self.churn.part(lift, ratio), (up, &self.noise)]);
        Ok(())
    }
}

/// A level reached from another in two parts: down by the model, up again by fresh noise.
pub(super) struct Ancestral {
    pub(super) down: f64,
    pub(super) up: f64,
}

impl Ancestral {
    pub(super) fn new(from: f64, to: f64, eta: f64) -> Self {
        let ratio = to / from;
        let up = (eta * to * (1.0 - ratio * ratio).sqrt()).min(to);
        Self { down: (to * to - up * up).sqrt(), up }
    }
}

/// The variance of DDPM's other choice, `beta = 1 - alpha_from / alpha_to` (Ho et al. 2020, section 3.2), for latents
/// that are not scaled by `sqrt(alpha)`. The last step has none (their algorithm 2, line 3).
fn large_variance(from: f64, to: f64) -> f64 {
    if to == 0.0 { 0.0 } else { (from * from - to * to) / (1.0 + from * from) * (1.0 + to * to) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ancestral_parts_make_the_level() {
        for (from, to) in [(14.6, 9.0), (2.0, 1.9), (0.5, 0.03)] {
            for eta in [0.0, 0.4, 1.0] {
                let Ancestral { down, up } = Ancestral::new(from, to, eta);
                assert!((down.hypot(up) / to - 1.0).abs() < 1e-12);
                let expected = eta * to * (1.0 - to * to / (from * from)).sqrt();
                assert!((up - expected).abs() < 1e-12 * to, "{from} to {to}, eta {eta}");
            }
        }
        let Ancestral { down, up } = Ancestral::new(3.0, 0.0, 1.0);
        assert_eq!((down, up), (0.0, 0.0));
    }

    /// With so much `eta` that there would be more noise than the level has.
    #[test]
    fn there_is_never_more_noise_than_the_level() {
        let Ancestral { down, up } = Ancestral::new(10.0, 1.0, 2.0);
        assert_eq!((down, up), (0.0, 1.0));
    }
}
