//! Methods that ask the model twice a step: Heun, DPM2 and its ancestral form, DPM++ 2S ancestral and DPM++ SDE.
//! It knows their coefficients, and nothing of where the levels come from.

use super::about::About;
use super::arithmetic::blend;
use super::churn::{self, CHURN, Churn};
use super::euler::Ancestral;
use super::setting::{ALL_ETA, ANCESTRAL, ETA, NumberRange, S_NOISE, Setting, Settings, TREE};
use super::{Denoise, Sampler};
use crate::Error;
use crate::noise::StepNoise;
use crate::schedule::{Schedule, Step};

pub(super) const HEUN: About = About {
    evaluations: 2,
    order: 2,
    is_slope: true,
    diffusers: "HeunDiscreteScheduler",
    a1111: "Heun",
    comfyui: "heun",
    sd_cpp: "heun",
    others: &["FlowMatchHeunDiscreteScheduler", "k_heun"],
    settings: CHURN,
    check: churn::check,
    ..About::new("heun", |settings, schedule, len| Rule::Heun.build(settings, schedule, len))
};

pub(super) const DPM2: About = About {
    evaluations: 2,
    order: 2,
    is_slope: true,
    diffusers: "KDPM2DiscreteScheduler",
    a1111: "DPM2",
    comfyui: "dpm_2",
    sd_cpp: "dpm2",
    others: &["k_dpm_2", "kdpm_2"],
    settings: CHURN,
    check: churn::check,
    ..About::new("dpm2", |settings, schedule, len| Rule::Dpm2.build(settings, schedule, len))
};

pub(super) const DPM2_ANCESTRAL: About = About {
    evaluations: 2,
    order: 2,
    is_stochastic: true,
    diffusers: "KDPM2AncestralDiscreteScheduler",
    a1111: "DPM2 a",
    comfyui: "dpm_2_ancestral",
    others: &["k_dpm_2_a", "k_dpm_2_ancestral", "kdpm_2_a", "dpm_2_a"],
    settings: ANCESTRAL,
    ..About::new("dpm2-a", |settings, schedule, len| Rule::Dpm2.build(settings, schedule, len))
};

pub(super) const DPMPP_2S_ANCESTRAL: About = About {
    evaluations: 2,
    order: 2,
    is_stochastic: true,
    a1111: "DPM++ 2S a",
    comfyui: "dpmpp_2s_ancestral",
    sd_cpp: "dpm++2s_a",
    others: &["k_dpmpp_2s_a", "k_dpmpp_2s_ancestral", "dpmpp_2s_a"],
    settings: ANCESTRAL,
    ..About::new("dpm++2s-a", |settings, schedule, len| Rule::DpmPp2s.build(settings, schedule, len))
};

pub(super) const DPMPP_SDE: About = About {
    evaluations: 2,
    order: 2,
    is_stochastic: true,
    diffusers: "DPMSolverSDEScheduler",
    a1111: "DPM++ SDE",
    comfyui: "dpmpp_sde",
    others: &["dpmpp_sde_gpu", "k_dpmpp_sde"],
    settings: &[&ALL_ETA, &S_NOISE, &R, &TREE],
    ..About::new("dpm++sde", |settings, schedule, len| Rule::DpmPpSde.build(settings, schedule, len))
};

/// Where in a step of DPM++ SDE, in `ln sigma`, the model is asked again.
pub const R: Setting<f64> = Setting {
    name: "r",
    default: 0.5,
    range: NumberRange { low: f64::from_bits(1), high: 1.0, words: "a number above 0, at most 1" },
    help: "position of the second model call in a step",
};

/// Which method.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Rule {
    /// Heun's method (Karras et al. 2022, algorithm 2): the mean of the slopes at both ends.
    Heun,
    /// k-diffusion's `sample_dpm_2` and `sample_dpm_2_ancestral`, after DPM-Solver-2 (Lu et al. 2022, algorithm 1) and
    /// Karras et al. 2022, algorithm 2: the slope at the geometric mean of the levels.
    Dpm2,
    /// DPM-Solver++(2S) (Lu et al. 2022, "DPM-Solver++", algorithm 1 with `r = 1/2`) down to the ancestral level.
    DpmPp2s,
    /// DPM-Solver++ for the stochastic equation, singlestep (k-diffusion's `sample_dpmpp_sde`), with `r` where in
    /// `ln sigma` the second evaluation lies.
    DpmPpSde,
}

/// A step of two evaluations: `x` at `sigma`, then `x_middle = a x + b D1 (+ noise)` at the middle level, then
/// `c x + d D1 + e D2 (+ noise)`. Where the end is the clean latents themselves there is no second evaluation: the
/// step is Euler's.
pub(super) struct TwoStage {
    rule: Rule,
    churn: Churn,
    eta: f64,
    s_noise: f64,
    r: f64,
    first: Vec<f32>,
    second: Vec<f32>,
    middle: Vec<f32>,
    noise: Vec<f32>,
}

impl TwoStage {
    /// Of the settings those of [`Churn`], and `eta`, `s_noise` and `r`. `steps` is how many there will be.
    pub(super) fn new(rule: Rule, settings: &Settings, steps: usize, len: usize) -> Self {
        Self {
            rule,
            churn: Churn::new(settings, steps, len),
            eta: settings.get(&ETA),
            s_noise: settings.get(&S_NOISE),
            r: settings.get(&R),
            first: vec![0.0; len],
            second: vec![0.0; len],
            middle: vec![0.0; len],
            noise: vec![0.0; len],
        }
    }
}

/// The middle of a step and its end, in weights of what is known there.
struct Stages {
    /// The level of the middle.
    sigma: f64,
    /// Weights of `x` and `D1` in the middle, and how much noise is added to it.
    middle: [f64; 3],
    /// Weights of `x`, `D1` and `D2` at the end, and how much noise is added.
    end: [f64; 4],
}

impl Rule {
    fn build(self, settings: &Settings, schedule: &Schedule, len: usize) -> Box<dyn Sampler> {
        Box::new(TwoStage::new(self, settings, schedule.steps().len(), len))
    }

    /// From `from`, `to` not being 0.
    fn stages(self, from: f64, to: f64, eta: f64, r: f64) -> Stages {
        let Ancestral { down, up } = Ancestral::new(from, to, eta);
        // A straight line towards `D1`, which is a step of Euler's and of DPM-Solver++'s first order alike.
        let line = |level: f64| [level / from, 1.0 - level / from, 0.0];
        match self {
            Self::Heun => {
                let step = down - from;
                let first = -step / (2.0 * from) * (1.0 + step / down);
                Stages {
                    sigma: down,
                    middle: line(down),
                    end: [down / from, first, -step / (2.0 * down), 0.0],
                }
            }
            Self::Dpm2 => {
                let sigma = (from * down).sqrt();
                let part = (down - from) / sigma;
                Stages {
                    sigma,
                    middle: line(sigma),
                    end: [down / from, part * (1.0 - sigma / from), -part, up],
                }
            }
            Self::DpmPp2s => {
                let sigma = (from * down).sqrt();
                Stages { sigma, middle: line(sigma), end: [down / from, 0.0, 1.0 - down / from, up] }
            }
            Self::DpmPpSde => {
                let sigma = from.powf(1.0 - r) * to.powf(r);
                let inner = Ancestral::new(from, sigma, eta);
                let [keep, towards, _] = line(inner.down);
                let second = 1.0 / (2.0 * r);
                let whole = 1.0 - down / from;
                Stages {
                    sigma,
                    middle: [keep, towards, inner.up],
                    end: [down / from, whole * (1.0 - second), whole * second, up],
                }
            }
        }
    }
}

impl Sampler for TwoStage {
    fn step(
        &mut self,
        x: &mut [f32],
        step: &Step,
        denoiser: &mut dyn Denoise,
        noise: &mut dyn StepNoise,
    ) -> Result<(), Error> {
        let lift = self.churn.lift(x, step.from, noise);
        denoiser.denoise(self.churn.lifted(x, lift), lift.sigma, &mut self.first)?;
        let from = lift.sigma;
        let Ancestral { down, .. } = Ancestral::new(from, step.to, self.eta);
        if down == 0.0 {
            let up = self.s_noise * step.to;
            if up > 0.0 {
                noise.fill_between(step.from, step.to, &mut self.noise);
            }
            blend(x, 0.0, &[(1.0, &self.first), (up, &self.noise)]);
            return Ok(());
        }
        let stages = self.rule.stages(from, step.to, self.eta, self.r);

        let [keep, first, up] = stages.middle;
        let up = up * self.s_noise;
        if up > 0.0 {
            noise.fill_between(step.from, stages.sigma, &mut self.noise);
        }
        let parts = [(keep, &*x), self.churn.part(lift, keep), (first, &self.first), (up, &self.noise)];
        blend(&mut self.middle, 0.0, &parts);
        denoiser.denoise(&self.middle, stages.sigma, &mut self.second)?;

        let [keep, first, second, up] = stages.end;
        let up = up * self.s_noise;
        if up > 0.0 {
            noise.fill_between(step.from, step.to, &mut self.noise);
        }
        let parts = [self.churn.part(lift, keep), (first, &self.first), (second, &self.second)];
        blend(x, keep, &[parts[0], parts[1], parts[2], (up, &self.noise)]);
        Ok(())
    }
}
