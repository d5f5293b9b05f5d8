//! Samplers: how latents move from one noise level to the next, given a denoiser.
//! They know nothing of models, prediction types or guidance.

mod adams;
mod arithmetic;
mod cfgpp;
mod churn;
mod consistency;
mod deis;
mod dpm;
mod er_sde;
mod euler;
mod kind;
mod method;
mod two_stage;
mod unipc;

pub use kind::{About, SamplerKind};
pub use method::{Bh, Method, Sampling, Settings, Solver, StepNoiseKind, Third, Variance};

use crate::Error;
use crate::noise::StepNoise;
use crate::schedule::{Schedule, Step};
use crate::state::Record;

/// What a sampler asks of a model: the clean latents behind noisy ones.
pub trait Denoise {
    /// Writes the clean latents expected behind `x`, which is `x0 + sigma * noise`, to `out`, which is as long.
    fn denoise(&mut self, x: &[f32], sigma: f64, out: &mut [f32]) -> Result<(), Error>;

    /// The same, and to `unconditional` what the model expects without the prompt, for samplers that
    /// [take both apart](SamplerKind::takes_apart). Where there is no guidance, both are the same.
    fn denoise_apart(
        &mut self,
        x: &[f32],
        sigma: f64,
        out: &mut [f32],
        unconditional: &mut [f32],
    ) -> Result<(), Error> {
        self.denoise(x, sigma, out)?;
        unconditional.copy_from_slice(out);
        Ok(())
    }
}

/// One run of a sampling method.
pub trait Sampler {
    /// Takes `x` from noise level `step.from` to `step.to`. Allocates nothing.
    ///
    /// Steps come in the order of the schedule that the sampler was built for. The errors are the denoiser's; `x` is
    /// then as it was.
    ///
    /// # Panics
    /// Where `x` does not have the length that the sampler was built for.
    fn step(
        &mut self,
        x: &mut [f32],
        step: &Step,
        denoiser: &mut dyn Denoise,
        noise: &mut dyn StepNoise,
    ) -> Result<(), Error>;

    /// Lists what is carried from step to step; a sampler that carries nothing lists nothing.
    ///
    /// # Errors
    /// [`ErrorKind::Input`](crate::ErrorKind::Input) for a record of another sampler.
    fn state(&mut self, record: &mut Record) -> Result<(), Error> {
        let _ = record;
        Ok(())
    }
}

impl Method {
    /// A sampler for one run over this schedule, on latents of `len` values.
    pub fn build(&self, schedule: &Schedule, len: usize) -> Box<dyn Sampler> {
        use SamplerKind as Kind;
        let (settings, steps) = (&self.settings(), schedule.steps().len());
        match self.kind() {
            Kind::Euler | Kind::EulerAncestral | Kind::Ddim | Kind::Ddpm => {
                Box::new(euler::Euler::new(settings, steps, len))
            }
            Kind::Heun => Box::new(two_stage::TwoStage::new(two_stage::Rule::Heun, settings, steps, len)),
            Kind::Dpm2 | Kind::Dpm2Ancestral => {
                Box::new(two_stage::TwoStage::new(two_stage::Rule::Dpm2, settings, steps, len))
            }
            Kind::DpmPp2sAncestral => {
                Box::new(two_stage::TwoStage::new(two_stage::Rule::DpmPp2s, settings, steps, len))
            }
            Kind::DpmPpSde => {
                Box::new(two_stage::TwoStage::new(two_stage::Rule::DpmPpSde, settings, steps, len))
            }
            Kind::Lms => Box::new(adams::Adams::new(adams::Rule::Lms, settings, len)),
            Kind::Pndm => Box::new(adams::Adams::new(adams::Rule::Plms, settings, len)),
            Kind::Ipndm => Box::new(adams::Adams::new(adams::Rule::Ipndm, settings, len)),
            Kind::DpmSolver | Kind::DpmSolverSde => {
                Box::new(dpm::Multistep::new(dpm::Equation::Noise, settings, schedule, len))
            }
            Kind::DpmPp2m
            | Kind::DpmPp3m
            | Kind::DpmPp2mSde
            | Kind::DpmPp2mSdeHeun
            | Kind::DpmPp3mSde
            | Kind::ResMultistep => {
                Box::new(dpm::Multistep::new(dpm::Equation::Data, settings, schedule, len))
            }
            Kind::DpmSolverSinglestep => {
                Box::new(dpm::Singlestep::new(dpm::Equation::Noise, settings, schedule, len))
            }
            Kind::DpmPp2s | Kind::DpmPp3s => {
                Box::new(dpm::Singlestep::new(dpm::Equation::Data, settings, schedule, len))
            }
            Kind::UniPc => Box::new(unipc::UniPc::new(settings, schedule, len)),
            Kind::Deis => Box::new(deis::Deis::new(settings, schedule, len)),
            Kind::Lcm => Box::new(consistency::Lcm::new(len)),
            Kind::Tcd => Box::new(consistency::Tcd::new(settings, schedule.clock().clone(), len)),
            Kind::ErSde => Box::new(er_sde::ErSde::new(settings, len)),
            Kind::EulerCfgPp | Kind::EulerAncestralCfgPp => Box::new(cfgpp::EulerCfgPp::new(settings, len)),
        }
    }
}
