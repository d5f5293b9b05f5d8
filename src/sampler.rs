//! Samplers: how latents move from one noise level to the next, given a denoiser.
//! They know nothing of models, prediction types or guidance.

mod about;
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
mod setting;
mod two_stage;
mod unipc;

pub use about::About;
pub use churn::{S_CHURN, S_TMAX, S_TMIN};
pub use dpm::{SOLVER, Solver, THIRD, Third};
pub use euler::{VARIANCE, Variance};
pub use method::{Method, Sampling};
pub use setting::{
    AnySetting, Choice, ETA, LOWER_FINAL, NumberRange, ORDER, S_NOISE, STEP_NOISE, Setting, SettingValue,
    StepNoiseKind, Value,
};
pub use two_stage::R;
pub use unipc::{BH, Bh};

use crate::Error;
use crate::noise::StepNoise;
use crate::schedule::Step;
use crate::state::Record;

/// What a sampler asks of a model: the clean latents behind noisy ones.
pub trait Denoise {
    /// Writes the clean latents expected behind `x`, which is `x0 + sigma * noise`, to `out`, which is as long.
    fn denoise(&mut self, x: &[f32], sigma: f64, out: &mut [f32]) -> Result<(), Error>;

    /// The same, and to `unconditional` what the model expects without the prompt, for samplers that
    /// [need it](SamplerKind::needs_uncond). Where there is no guidance, both are the same.
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
pub trait Sampler: Send {
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

/// Declares the kinds of samplers, each with the row that its file declares.
macro_rules! samplers {
    ($($kind:ident = $row:path,)*) => {
        /// The kinds of samplers. What each is, and what it is called elsewhere, is in its [`About`].
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[allow(missing_docs)] // Names are what there is to say; `about` says the rest.
        pub enum SamplerKind {
            $($kind,)*
        }

        impl SamplerKind {
            /// Every kind.
            pub const ALL: [Self; [$(Self::$kind,)*].len()] = [$(Self::$kind,)*];

            /// What is to be known of it.
            pub const fn about(self) -> &'static About {
                match self {
                    $(Self::$kind => &$row,)*
                }
            }
        }
    };
}

// In the order in which they are listed for users.
samplers! {
    Euler = euler::EULER,
    EulerAncestral = euler::EULER_ANCESTRAL,
    Heun = two_stage::HEUN,
    Dpm2 = two_stage::DPM2,
    Dpm2Ancestral = two_stage::DPM2_ANCESTRAL,
    Lms = adams::LMS,
    Ddim = euler::DDIM,
    Ddpm = euler::DDPM,
    Pndm = adams::PNDM,
    Ipndm = adams::IPNDM,
    DpmSolver = dpm::DPM_SOLVER,
    DpmSolverSde = dpm::DPM_SOLVER_SDE,
    DpmSolverSinglestep = dpm::DPM_SOLVER_SINGLESTEP,
    DpmPp2m = dpm::DPMPP_2M,
    DpmPp3m = dpm::DPMPP_3M,
    DpmPp2mSde = dpm::DPMPP_2M_SDE,
    DpmPp2mSdeHeun = dpm::DPMPP_2M_SDE_HEUN,
    DpmPp3mSde = dpm::DPMPP_3M_SDE,
    DpmPp2s = dpm::DPMPP_2S,
    DpmPp3s = dpm::DPMPP_3S,
    DpmPp2sAncestral = two_stage::DPMPP_2S_ANCESTRAL,
    DpmPpSde = two_stage::DPMPP_SDE,
    UniPc = unipc::UNIPC,
    Deis = deis::DEIS,
    Lcm = consistency::LCM,
    Tcd = consistency::TCD,
    ErSde = er_sde::ER_SDE,
    ResMultistep = dpm::RES_MULTISTEP,
    EulerCfgPp = cfgpp::EULER_CFGPP,
    EulerAncestralCfgPp = cfgpp::EULER_ANCESTRAL_CFGPP,
}
