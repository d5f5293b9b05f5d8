//! A request: what a user typed, made valid for one model at the door, so that nothing behind it checks again.
//! It knows the model's numbers, and nothing of its graphs.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;

use crate::guidance::Guidance;
use crate::manifest::Manifest;
use crate::sampler::SamplerKind;
use crate::schedule::Schedule;
use crate::tensor::{LatentShape, PixelSize};
use crate::{Error, ErrorKind};

/// A request as typed: what is absent gets the model's default.
#[derive(Clone, Debug, Default)]
pub struct Draft {
    /// What to draw; may be empty.
    pub prompt: String,
    /// What to steer away from.
    pub negative: Option<String>,
    /// The picture's size.
    pub size: Option<PixelSize>,
    /// How many denoising steps.
    pub steps: Option<usize>,
    /// The guidance scale.
    pub guidance: Option<f64>,
    /// The sampling method.
    pub sampler: Option<SamplerKind>,
    /// The seed; random when absent.
    pub seed: Option<u64>,
}

/// A request that its model can fulfil.
#[derive(Clone, Debug)]
pub struct Request {
    pub(crate) prompt: String,
    pub(crate) negative: Option<String>,
    pub(crate) size: PixelSize,
    pub(crate) shape: LatentShape,
    pub(crate) schedule: Schedule,
    pub(crate) guidance: Guidance,
    pub(crate) sampler: SamplerKind,
    pub(crate) seed: u64,
}

impl Request {
    /// Checks a draft against a model.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] for what this model cannot do, naming the nearest that it can.
    pub fn new(draft: Draft, manifest: &Manifest) -> Result<Self, Error> {
        let defaults = &manifest.defaults;
        let size = draft.size.unwrap_or(defaults.size);
        if let Some(fixed) = manifest.fixed_size.filter(|fixed| *fixed != size) {
            return Err(Error::new(
                ErrorKind::Usage,
                format!("size: expected {fixed}, the only one that this model's graph draws, got {size}"),
            ));
        }
        let sampler = draft.sampler.unwrap_or(defaults.sampler);
        let steps = draft.steps.unwrap_or(defaults.steps);
        let guidance = Guidance::new(draft.guidance.unwrap_or(defaults.guidance))?;
        if draft.negative.is_some() && guidance == Guidance::Off {
            return Err(Error::new(
                ErrorKind::Usage,
                "negative prompt: expected guidance other than 1, got 1",
            )
            .help("at guidance 1 only the prompt is used"));
        }
        if draft.negative.is_some() && manifest.embedded_guidance {
            return Err(Error::new(
                ErrorKind::Usage,
                "negative prompt: expected none, because this model takes the guidance scale as an input, got one",
            ));
        }
        Ok(Self {
            shape: manifest.latents.shape(size)?,
            schedule: sampler.schedule(&manifest.curve, manifest.spacing, steps)?,
            seed: draft.seed.unwrap_or_else(random_seed),
            prompt: draft.prompt,
            negative: draft.negative,
            size,
            guidance,
            sampler,
        })
    }

    /// The same request with another seed.
    #[must_use]
    pub fn with_seed(&self, seed: u64) -> Self {
        Self { seed, ..self.clone() }
    }

    /// What to draw.
    pub fn prompt(&self) -> &str {
        &self.prompt
    }

    /// What to steer away from; empty when nothing is.
    pub fn negative(&self) -> &str {
        self.negative.as_deref().unwrap_or_default()
    }

    /// The picture's size.
    pub fn size(&self) -> PixelSize {
        self.size
    }

    /// The sampling method.
    pub fn sampler(&self) -> SamplerKind {
        self.sampler
    }

    /// The guidance scale; 1 is no guidance.
    pub fn guidance_scale(&self) -> f64 {
        self.guidance.scale()
    }

    /// The noise levels, strictly falling, from the first to the final 0.
    pub fn sigmas(&self) -> Vec<f64> {
        let steps = self.schedule.steps();
        steps.iter().map(|step| step.from).chain(steps.last().map(|step| step.to)).collect()
    }

    /// The seed of the noise.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// How many steps a run takes.
    pub fn steps(&self) -> usize {
        self.schedule.steps().len()
    }
}

/// 32 random bits, which are easier to read and to type again than 64.
fn random_seed() -> u64 {
    RandomState::new().hash_one(0) >> 32
}
