//! Traits: what the files of a model without a manifest tell of it, completed by what its kind is known to want.

use crate::manifest::{Conditions, Defaults, LatentSpace, LowRes, Manifest};
use crate::prediction::Prediction;
use crate::sampler::{Method, SamplerKind};
use crate::schedule::{Betas, NoiseCurve, ScheduleKind, Spacing};
use crate::signature::{Role, Signature};
use crate::tensor::PixelSize;
use crate::{Error, ErrorKind};

/// Side of the latents that Stable Diffusion was first trained on.
const CELLS: usize = 64;

pub(super) struct Traits {
    pub(super) name: String,
    pub(super) licence: String,
    pub(super) betas: Betas,
    pub(super) train_timesteps: usize,
    pub(super) spacing: Spacing,
    pub(super) prediction: Prediction,
    /// The method that the model's files name, where calotype has it.
    pub(super) sampler: Option<Method>,
    /// The levels that they name, where these are not evenly spaced timesteps.
    pub(super) schedule: Option<ScheduleKind>,
    pub(super) latents: LatentSpace,
    pub(super) zero_negative: bool,
    /// Of a model that enlarges pictures.
    pub(super) low_res: Option<LowRes>,
    /// Rows and columns of the latents that the model was trained on.
    pub(super) cells: Option<[usize; 2]>,
}

impl Traits {
    /// The manifest of the model whose U-Net has this signature.
    ///
    /// # Errors
    /// [`ErrorKind::Model`] for numbers that no model can have.
    pub(super) fn manifest(self, unet: &Signature) -> Result<Manifest, Error> {
        let side_px = |cells: usize| {
            u32::try_from(cells)
                .ok()
                .and_then(|cells| cells.checked_mul(self.latents.factor_px))
                .unwrap_or(u32::MAX)
        };
        let [rows, columns] = self.cells.unwrap_or([CELLS; 2]);
        let size = PixelSize::new(side_px(columns), side_px(rows))
            .map_err(|error| Error::new(ErrorKind::Model, "unet: sample_size").source(error))?;
        let is_consistent = unet.input(Role::GuidanceEmbedding).is_some();
        // Nothing but its name tells a model that was distilled to draw in one step, without guidance.
        let is_turbo = self.name.to_ascii_lowercase().contains("turbo");
        let (steps, guidance) = match unet.input(Role::Pooled) {
            _ if is_consistent => (4, 8.5),
            _ if is_turbo => (1, 1.0),
            Some(_) => (20, 5.0),
            None => (20, 7.5),
        };
        let (sampler, schedule) = match self.sampler {
            Some(sampler) => (sampler, self.schedule),
            None if is_consistent => (SamplerKind::Lcm.into(), None),
            None => (SamplerKind::DpmPp2m.into(), self.schedule.or(Some(ScheduleKind::KARRAS))),
        };
        Ok(Manifest {
            name: self.name,
            licence: self.licence,
            curve: NoiseCurve::new(self.betas.clone(), self.train_timesteps)?,
            betas: self.betas,
            spacing: self.spacing,
            prediction: self.prediction,
            latents: self.latents,
            zero_negative: self.zero_negative,
            embedded_guidance: false,
            fixed_size: None,
            conditions: Conditions::default(),
            encodes: false,
            low_res: self.low_res,
            defaults: Defaults { size, steps, guidance, sampler, schedule },
        })
    }
}
