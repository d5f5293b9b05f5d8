//! Traits: what the files of a model without a manifest tell of it, completed by what its kind is known to want.

use crate::family::Family;
use crate::manifest::{Conditions, Defaults, LatentSpace, LowRes, Manifest, PreviewFactors};
use crate::noise_model::NoiseModel;
use crate::prediction::Prediction;
use crate::sampler::{Method, SamplerKind};
use crate::schedule::ScheduleKind;
use crate::scheduler::Scheduler;
use crate::signature::{Role, Signature};
use crate::tensor::PixelSize;
use crate::{Error, ErrorKind};

/// What distilled models are called.
const DISTILLED: [&str; 4] = ["turbo", "lightning", "hyper-sd", "dmd2"];
/// How many steps such a model takes where nothing says.
const FEW_STEPS: usize = 4;

/// A model that was distilled to draw in few steps, without guidance; and what says so.
pub(super) struct FewSteps {
    steps: usize,
    why: String,
}

impl FewSteps {
    /// The scheduler of such models.
    pub(super) fn of_scheduler(scheduler: &Scheduler) -> Option<Self> {
        let why = || format!("{} on trailing timesteps", scheduler.class());
        scheduler.is_for_few_steps().then(|| Self { steps: FEW_STEPS, why: why() })
    }

    /// What a text, which `place` names, calls the model.
    pub(super) fn of_text(place: &str, text: &str) -> Option<Self> {
        let lower = text.to_ascii_lowercase();
        let words = lower.split(|c: char| !c.is_ascii_alphanumeric()).collect::<Vec<_>>().join("-");
        let word = |name: &&str| format!("-{words}-").contains(&format!("-{name}-"));
        let name = DISTILLED.iter().find(|name| word(name))?;
        let before = lower.split_once("step").map(|(before, _)| before.trim_end_matches([' ', '-', '_']));
        let digits =
            before.map(|before| before.rsplit(|c: char| !c.is_ascii_digit()).next().unwrap_or_default());
        let said = digits.and_then(|digits| digits.parse().ok()).filter(|steps| (1..=16).contains(steps));
        let usual = if *name == "turbo" { 1 } else { FEW_STEPS };
        Some(Self { steps: said.unwrap_or(usual), why: format!("{place} says {name}") })
    }
}

pub(super) struct Traits {
    pub(super) name: String,
    pub(super) licence: String,
    /// Whose numbers are used where the files say none.
    pub(super) family: Family,
    pub(super) noise: NoiseModel,
    pub(super) prediction: Prediction,
    /// The method that the model's files name, where calotype has it.
    pub(super) sampler: Option<Method>,
    /// The levels that they name, where these are not evenly spaced timesteps.
    pub(super) schedule: Option<ScheduleKind>,
    pub(super) latents: LatentSpace,
    pub(super) zero_negative: bool,
    /// Of a model that enlarges images.
    pub(super) low_res: Option<LowRes>,
    /// Rows and columns of the latents that the model was trained on.
    pub(super) cells: Option<[usize; 2]>,
    /// Of a model that says so.
    pub(super) few_steps: Option<FewSteps>,
    /// What is to be said of the files, a line each.
    pub(super) notes: Vec<String>,
}

impl Traits {
    /// The manifest of the model whose U-Net has this signature, and what is to be said of it, a line each.
    ///
    /// # Errors
    /// [`ErrorKind::Model`] for numbers that no model can have.
    pub(super) fn manifest(mut self, unet: &Signature) -> Result<(Manifest, Vec<String>), Error> {
        let side_px = |cells: usize| {
            u32::try_from(cells)
                .ok()
                .and_then(|cells| cells.checked_mul(self.latents.factor_px))
                .unwrap_or(u32::MAX)
        };
        let [rows, columns] = self.cells.unwrap_or([self.family.cells(self.prediction); 2]);
        let size = PixelSize::new(side_px(columns), side_px(rows))
            .map_err(|error| Error::new(ErrorKind::Model, "unet: sample_size").source(error))?;
        let is_consistent = unet.input(Role::GuidanceEmbedding).is_some();
        let (steps, guidance) = match &self.few_steps {
            _ if is_consistent => (4, 8.5),
            Some(few) => (few.steps, 1.0),
            None => (self.family.steps(), self.family.guidance()),
        };
        let said = "unless steps and guidance are given";
        match &self.few_steps {
            _ if is_consistent => {}
            Some(few) => self.notes.push(format!(
                "{}: treated as a few-step model ({}): {steps}, without guidance, {said}",
                self.name, few.why
            )),
            // A name is no evidence: merges are called after what is in them.
            None => {
                if let Some(named) = FewSteps::of_text("", &self.name) {
                    self.notes.push(format!(
                        "{}: its name suggests a few-step model, but its files do not say so: {steps} steps and guidance \
                         {guidance}, {said}, such as {} and 1",
                        self.name, named.steps
                    ));
                }
            }
        }
        let (sampler, schedule) = match self.sampler {
            Some(sampler) => (sampler, self.schedule),
            None if is_consistent => (SamplerKind::Lcm.into(), None),
            None if matches!(self.noise, NoiseModel::Flow { .. }) => {
                (SamplerKind::Euler.into(), self.schedule)
            }
            None => (SamplerKind::DpmPp2m.into(), self.schedule.or(Some(ScheduleKind::KARRAS))),
        };
        // Of the U-Net's latents, whichever VAE they are decoded by.
        let shares = self.family.latent_rgb().filter(|shares| shares.len() == self.latents.channels);
        let preview = shares.map(|shares| PreviewFactors { factors: shares.to_vec(), base: [0.0; 3] });
        let manifest = Manifest {
            name: self.name,
            licence: self.licence,
            noise: self.noise,
            prediction: self.prediction,
            latents: self.latents,
            preview,
            trained_words: Vec::new(),
            zero_negative: self.zero_negative,
            embedded_guidance: false,
            fixed_size: None,
            conditions: Conditions::default(),
            encodes: false,
            controls: Vec::new(),
            low_res: self.low_res,
            defaults: Defaults { size, steps, guidance, sampler, schedule },
        };
        Ok((manifest, self.notes))
    }
}
