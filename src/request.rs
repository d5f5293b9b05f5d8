//! A request: what a user typed, made valid for one model at the door, so that nothing behind it checks again.
//! It knows the model's numbers, and nothing of its graphs.

mod check;
mod inpaint;
mod warnings;

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::sync::Arc;

use image::{Rgb, RgbImage};
use sha2::{Digest, Sha256};

use self::check::{check_adapters, check_controls, check_images};
use self::inpaint::Cutting;
pub(crate) use self::inpaint::{Inpaint, WHITE};
pub use self::warnings::Warnings;
use crate::control::{Annotator, Steering};
use crate::engine;
use crate::family::REFINER_STRENGTH;
use crate::guidance::{self, Guidance, Scales, View};
use crate::image_file::{Extend, Fitted, Init, Mask, MaskEdit, Placement, Resize};
use crate::manifest::{Conditions, Manifest};
use crate::memory;
use crate::model::Model;
use crate::noise::Rng;
use crate::prediction::Thresholding;
use crate::prompt::{Part, Prompt, Text};
use crate::recipe::{Hires, HiresUpscaler, Image, NamedFile, Recipe};
use crate::sampler::{Method, STEP_NOISE, StepNoiseKind};
use crate::schedule::{Schedule, ScheduleKind};
use crate::tensor::{LatentShape, PixelSize};
use crate::{Error, ErrorKind};

/// The denoising strength where a request does not say: diffusers' defaults.
const STRENGTH: f64 = 0.8;
/// The same with an inpainting mask.
const MASKED_STRENGTH: f64 = 1.0;
/// The blur of a mask whose surroundings alone are worked at, in pixels, where a request does not say: A1111's default.
const CUT_BLUR_PX: f64 = 4.0;
/// The most that a mask grows or shrinks, and is blurred, in pixels.
const MAX_GROW_PX: i32 = 1024;
const MAX_BLUR_PX: f64 = 256.0;
/// The image guidance scale (InstructPix2Pix) where a request does not say.
const IMAGE_GUIDANCE: f64 = 1.5;
/// The noise level of an image that is upscaled, in timesteps, where a request does not say.
const NOISE_LEVEL: usize = 20;

/// Noise of another seed, mixed into the noise that a run starts from: small changes of an image that stays the same
/// (A1111's `Variation seed`).
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Variation {
    /// The other seed.
    pub(crate) seed: u64,
    /// How much of it, from 0 to 1.
    pub(crate) strength: f64,
}

/// A request that its model can fulfil.
#[derive(Clone, Debug)]
pub struct Request {
    /// [`Manifest::identity`] of the model that it was made valid for, and its name.
    model: (u64, String),
    /// With what this model's defaults add to it; without images and seed.
    recipe: Recipe,
    pub(crate) prompt: Words,
    pub(crate) negative: Option<Words>,
    pub(crate) size: PixelSize,
    pub(crate) shape: LatentShape,
    pub(crate) source: Source,
    /// What steers it.
    pub(crate) controls: Vec<Control>,
    /// A note that nobody asked for an init image to be stretched.
    stretched: Option<String>,
    pub(crate) schedule: Schedule,
    pub(crate) guidance: Guidance,
    /// Of a U-Net that takes it as an input, and needs no other guidance.
    embedded_scale: Option<f64>,
    pub(crate) thresholding: Option<Thresholding>,
    pub(crate) sampler: Method,
    pub(crate) seed: u64,
    pub(crate) rng: Rng,
    pub(crate) variation: Option<Variation>,
}

/// A control image at the request's size, and how it steers.
#[derive(Clone, Debug)]
pub(crate) struct Control {
    /// Which of the model's control networks it is for.
    pub(crate) network: usize,
    pub(crate) image: Arc<Fitted<Rgb<u8>>>,
    pub(crate) annotate: Option<Annotator>,
    pub(crate) steering: Steering,
    /// A note that nobody asked for it to be stretched.
    stretched: Option<String>,
}

/// A prompt, read for the steps of a run.
#[derive(Clone, Debug)]
pub(crate) struct Words {
    /// At least one; of a negative prompt no more.
    pub(crate) parts: Vec<Part>,
}

/// The texts of a run.
#[derive(Debug)]
pub(crate) struct Texts {
    /// Each once; an absent one is zeros.
    pub(crate) texts: Vec<Option<Text>>,
    /// Per step, and per view of the run's guidance, which of them is read.
    pub(crate) of_step: Vec<Vec<usize>>,
    /// How many of the views are of the prompt's parts.
    pub(crate) prompts: usize,
}

/// What a run starts from; images and masks have the request's size unless otherwise said.
#[derive(Clone, Debug)]
pub(crate) enum Source {
    /// Noise alone.
    Noise,
    /// An init image with noise added (Meng et al. 2022, "SDEdit", algorithm 1).
    Init(Arc<Fitted<Rgb<u8>>>),
    /// Inpainting: white areas of the mask are repainted.
    Masked {
        images: Arc<Inpaint>,
        starts_from_noise: bool,
        keeps_outside: bool,
        /// Whether greys are denoising strengths.
        is_soft: bool,
    },
    /// Inpainting around an image that an earlier round is to make.
    Extended {
        earlier: Arc<Request>,
        /// In this round.
        extend: Extend,
        keeps_outside: bool,
        starts_from_noise: bool,
    },
    /// The second of two passes, which starts from the enlarged image of the first, or from its latents.
    Hires { earlier: Arc<Request>, upscaler: HiresUpscaler },
    /// Clean latents with noise added, as those of an init image.
    Latents(Arc<Vec<f32>>),
    /// Noise; the image that is edited is an input of the U-Net.
    Edited(Arc<Fitted<Rgb<u8>>>),
    /// Noise; an image of the latents' size, with noise of this level added, is an input of the U-Net.
    Enlarged { init: Arc<Fitted<Rgb<u8>>>, level: usize },
}

impl Request {
    /// Checks a recipe against a model. Of the files that it names only images matter here, and they must have been opened:
    /// which model, LoRA and embedding files are used is up to whoever opens the model.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] for what this model cannot do, naming the nearest that it can.
    pub fn new(recipe: Recipe, model: &Model) -> Result<Self, Error> {
        Self::of(recipe, model.manifest())
    }

    /// The same with what the model says of itself.
    pub(crate) fn of(recipe: Recipe, manifest: &Manifest) -> Result<Self, Error> {
        let defaults = &manifest.defaults;
        let (recipe, init, mask, controls) = take_images(recipe)?;
        check_controls(&recipe, &controls, manifest)?;
        check_images(&recipe, init.as_ref(), mask.as_ref(), manifest)?;
        let extended = recipe.extend.zip(init.as_ref()).map(|(extend, init)| extend.of(init.dimensions()));
        let size = match (recipe.size, &init) {
            (asked, _) if extended.is_some() => extended_size(asked, extended.unwrap_or_default(), manifest)?,
            (Some(size), _) => size,
            (None, Some(_)) if recipe.mask_only.is_some() => defaults.size,
            (None, Some(init)) => own_size("init", init, manifest)?,
            (None, None) => match controls.first() {
                Some(image) => own_size("control", image, manifest)?,
                None => defaults.size,
            },
        };
        let first_size = size;
        let size = match recipe.hires {
            Some(Hires { scale, strength, upscaler }) => Hires::new(scale, strength, upscaler)?.of(size)?,
            None => size,
        };
        let shape = manifest.shape(size).map_err(|error| match (recipe.size, manifest.fixed_size) {
            // That of the init image.
            (None, Some(fixed)) if recipe.hires.is_none() => {
                error.help(format!("give {{size}} {fixed}: it resizes the image"))
            }
            _ => error,
        })?;
        check_adapters(&recipe, size, manifest)?;
        let sampler = recipe.sampler.unwrap_or(defaults.sampler);
        let steps = steps_asked(&recipe, defaults.steps)?;
        let Course { schedule_kind, schedule, strength, prompt, negative, scales, guidance } =
            Course::of(&recipe, manifest, sampler, steps)?;
        let embedded_scale = manifest.embedded_guidance.then(|| scales.for_steps(1)).transpose()?;
        let variation = variation(&recipe)?;
        let level = noise_level(&recipe, manifest)?;
        let keeps_outside = recipe.keep_outside.unwrap_or(true);
        let StartImages { source, stretched, is_masked, is_resized, edit } =
            start_images(init, mask, &recipe, manifest, (size, shape), strength, level)?;
        let source = match recipe.hires {
            Some(Hires { upscaler, .. }) => {
                let mut earlier = Recipe { hires: None, size: Some(first_size), ..recipe.clone() };
                for (control, image) in earlier.control.iter_mut().zip(&controls) {
                    control.image = Image::Given(image.clone());
                }
                Source::Hires { earlier: Arc::new(Self::of(earlier, manifest)?), upscaler }
            }
            None => source,
        };
        let controls = controls_of(controls, &recipe, manifest, size);
        let is_resized = is_resized || controls.iter().any(|(_, is_resized)| *is_resized);
        let controls: Vec<Control> = controls.into_iter().map(|(control, _)| control).collect();
        let seed = recipe.seed.unwrap_or_else(random_seed);
        let rng = recipe.rng.unwrap_or_default();
        // Not every generator takes every seed.
        rng.source(seed)?;
        variation.map(|variation| rng.source(variation.seed)).transpose()?;
        let image_guidance = match guidance.method() {
            guidance::Method::Edit { image_scale } if guidance.views().len() > 1 => Some(image_scale),
            _ => None,
        };
        // All that a default decided: the image stays the same where another version has other defaults.
        let recipe = Recipe {
            // It is this request's own, also where it was random.
            seed: None,
            size: Some(first_size),
            steps: Some(steps),
            guidance: Some(scales),
            sampler: Some(sampler),
            schedule: Some(schedule_kind),
            rng: Some(rng),
            strength: strength.filter(|_| recipe.hires.is_none()),
            image_guidance,
            noise_level: matches!(source, Source::Enlarged { .. }).then_some(level),
            keep_outside: is_masked.then_some(keeps_outside),
            resize: is_resized.then(|| recipe.resize.unwrap_or_default()),
            mask_blur: recipe.mask_blur.or(recipe.mask_only.map(|_| edit.blur_px)),
            ..recipe
        };
        Ok(Self {
            model: (manifest.identity(), manifest.name.clone()),
            thresholding: recipe.thresholding,
            recipe,
            shape,
            source,
            controls,
            stretched,
            schedule,
            seed,
            rng,
            variation,
            prompt,
            negative,
            size,
            guidance,
            embedded_scale: embedded_scale.map(|scales| scales[0]),
            sampler,
        })
    }

    /// The same request with another seed.
    #[must_use]
    pub fn with_seed(&self, seed: u64) -> Self {
        Self { seed, ..self.clone() }
    }

    /// The recipe that draws the same image, with nothing left to defaults. Images in memory are named as files of which
    /// nothing is known.
    pub fn recipe(&self) -> Recipe {
        Recipe { seed: Some(self.seed), ..self.recipe.clone() }
    }

    /// The prompt.
    pub fn prompt(&self) -> &str {
        &self.recipe.prompt
    }

    /// The image's size.
    pub fn size(&self) -> PixelSize {
        self.size
    }

    /// The guidance scale of the first step; 1 is no guidance.
    pub fn guidance_scale(&self) -> f64 {
        self.embedded_scale.unwrap_or_else(|| self.guidance.scales()[0])
    }

    /// Which generator's noise the run takes.
    pub fn rng(&self) -> Rng {
        self.rng
    }

    /// Refuses to make `count` images, of which each has the seed after the one before, with seeds that the generator does
    /// not have.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] where a seed is too large.
    pub fn check_seeds(&self, count: u64) -> Result<(), Error> {
        let Some(last_seed) = self.seed.checked_add(count.saturating_sub(1)) else {
            return Err(Error::new(
                ErrorKind::Usage,
                format!("seed: expected room for {count} consecutive seeds, got {}", self.seed),
            ));
        };
        self.rng.source(last_seed).map(drop)
    }

    /// Refuses a request that was made for another model.
    pub(crate) fn check_model(&self, manifest: &Manifest) -> Result<(), Error> {
        let (identity, name) = &self.model;
        if *identity == manifest.identity() {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::Usage,
            format!("request: expected one made for {}, got one made for {name}", manifest.name),
        )
        .help("make requests with Pipeline::request"))
    }

    /// The SHA-256 of all that decides what is drawn by one model, images included.
    pub(crate) fn fingerprint(&self) -> Result<[u8; 32], Error> {
        // All fields, so that a new one is not forgotten. Those that are left out follow from the others.
        let Self {
            model,
            recipe,
            prompt: _,
            negative: _,
            size: _,
            shape: _,
            stretched: _,
            source,
            controls,
            schedule,
            guidance,
            embedded_scale,
            thresholding: _,
            sampler: _,
            seed,
            rng: _,
            variation: _,
        } = self;
        // Files may have moved.
        let settings = recipe.without_files().to_json();
        let steps = (schedule.steps(), guidance, embedded_scale);
        let source = match source {
            Source::Noise => "noise".into(),
            Source::Init(_) => "init".into(),
            Source::Masked { starts_from_noise, keeps_outside, is_soft, .. } => {
                format!("masked {starts_from_noise} {keeps_outside} {is_soft}")
            }
            Source::Extended { .. } => "extended".into(),
            Source::Hires { upscaler, .. } => format!("hires {upscaler}"),
            Source::Latents(_) => "latents".into(),
            Source::Edited(_) => "edited".into(),
            Source::Enlarged { level, .. } => format!("enlarged {level}"),
        };
        let text = format!("{model:?} {settings} {steps:?} {seed} {source}");
        let mut digest = Sha256::new_with_prefix(text);
        match &self.source {
            Source::Noise => {}
            Source::Extended { earlier, .. } | Source::Hires { earlier, .. } => {
                digest.update(earlier.fingerprint()?);
            }
            Source::Latents(latents) => {
                latents.iter().for_each(|latent| digest.update(latent.to_le_bytes()));
            }
            Source::Masked { images, .. } => {
                let (init, mask, _) = images.whole()?;
                digest.update(mask.as_raw());
                digest.update(init.as_raw());
            }
            Source::Init(init) | Source::Edited(init) | Source::Enlarged { init, .. } => {
                digest.update(init.get()?.as_raw());
            }
        }
        for control in controls {
            digest.update(control.network.to_le_bytes());
            digest.update(control.image.get()?.as_raw());
        }
        Ok(digest.finalize().into())
    }

    /// The noise levels, strictly falling, from the first to the final 0.
    pub fn sigmas(&self) -> Vec<f64> {
        let steps = self.schedule.steps();
        steps.iter().map(|step| step.from).chain(steps.last().map(|step| step.to)).collect()
    }

    /// The lowest and the highest noise level of its Brownian tree, where its sampler's noise comes from one.
    pub(crate) fn tree_levels(&self) -> Option<(f64, f64)> {
        let steps = self.schedule.steps();
        match self.sampler.get(&STEP_NOISE) {
            StepNoiseKind::Stream => None,
            StepNoiseKind::Tree => Some((steps.last()?.from, steps.first()?.from)),
        }
    }

    /// Denoising strength, if the run starts from an init image.
    pub fn strength(&self) -> Option<f64> {
        self.recipe.strength
    }

    /// The latents that are denoised.
    pub(crate) fn shape(&self) -> LatentShape {
        self.shape
    }

    /// Every text that some step reads, each once. `zero_negative` says that the model was trained to take zeros for no
    /// negative prompt.
    pub(crate) fn texts(&self, zero_negative: bool) -> Result<Texts, Error> {
        let nothing = Part::unchanging(Text::literal("")?, self.steps());
        let absent = if zero_negative { None } else { Some(&nothing) };
        let negative = self.negative.as_ref().map(|negative| &negative.parts[0]).or(absent);
        let views = self.guidance.views();
        let parts = views.iter().map(|view| match view {
            View::Positive(index) => Some(&self.prompt.parts[*index]),
            View::Negative | View::NegativeWithoutImage => negative,
            View::Empty => absent,
        });
        let parts: Vec<Option<&Part>> = parts.collect();
        let mut texts: Vec<Option<Text>> = Vec::new();
        let mut of_step = Vec::new();
        for step in 0..self.steps() {
            let read = parts.iter().map(|part| {
                let text = part.map(|part| part.text(step));
                texts.iter().position(|known| known.as_ref() == text).unwrap_or_else(|| {
                    texts.push(text.cloned());
                    texts.len() - 1
                })
            });
            of_step.push(read.collect());
        }
        let prompts = views.iter().filter(|view| matches!(view, View::Positive(_))).count();
        Ok(Texts { texts, of_step, prompts })
    }

    /// Whether an image is encoded before anything is drawn.
    pub(crate) fn draws_from_image(&self) -> bool {
        !matches!(self.source, Source::Noise | Source::Latents(_)) && !self.takes_latents()
    }

    /// Decodes the files of images that the request starts from, before the pipeline is opened; pixels, and files that
    /// have been decoded, are left as they are. Returns what of the files is not used, and a mask that repaints nothing,
    /// each as a line for a warning. `budget_bytes` is the most that the process may have meanwhile; `u64::MAX` where a plan
    /// of the request has been made, which counts it.
    ///
    /// # Errors
    /// [`ErrorKind::Memory`] where decoding does not fit into the budget, before it begins; [`ErrorKind::Input`] for files
    /// that are damaged or of a kind that is not supported.
    pub fn load(&self, budget_bytes: u64) -> Result<Vec<String>, Error> {
        if expect_room(self.image_bytes(None).0, budget_bytes).is_err() {
            self.reduce_images();
        }
        expect_room(self.image_bytes(None).0, budget_bytes)?;
        let mut notes = match &self.source {
            Source::Noise | Source::Latents(_) => Vec::new(),
            Source::Masked { images, .. } => images.load()?,
            Source::Extended { earlier, .. } | Source::Hires { earlier, .. } => earlier.load(budget_bytes)?,
            Source::Init(init) | Source::Edited(init) | Source::Enlarged { init, .. } => init.load()?,
        };
        for control in &self.controls {
            notes.extend(control.image.load()?);
            notes.extend(control.stretched.clone());
        }
        notes.extend(self.stretched.clone());
        engine::trim();
        Ok(notes)
    }

    /// Has JPEG files decoded at an eighth to a half of their sizes, where that is as large as what is made of them: in less
    /// memory, to slightly other pixels. [`Request::load`] reports it.
    pub(crate) fn reduce_images(&self) {
        self.controls.iter().for_each(|control| control.image.reduce());
        match &self.source {
            Source::Noise | Source::Latents(_) => {}
            Source::Masked { images, .. } => images.reduce(),
            Source::Extended { earlier, .. } | Source::Hires { earlier, .. } => earlier.reduce_images(),
            Source::Init(init) | Source::Edited(init) | Source::Enlarged { init, .. } => init.reduce(),
        }
    }

    /// What decoding the images that are still in files takes at most, and what of it stays, in bytes; where `is_reduced` says so,
    /// as if they were reduced or were not.
    pub(crate) fn image_bytes(&self, is_reduced: Option<bool>) -> (u64, u64) {
        let own = self.source_bytes(is_reduced);
        self.controls.iter().fold(own, |(peak, kept), control| {
            let (decoding, stays) = control.image.bytes(is_reduced);
            (peak.max(kept + decoding), kept + stays)
        })
    }

    fn source_bytes(&self, is_reduced: Option<bool>) -> (u64, u64) {
        // Images of both rounds, and the mask.
        let own = 7 * u64::from(self.size.width_px()) * u64::from(self.size.height_px());
        match &self.source {
            Source::Noise | Source::Latents(_) => (0, 0),
            // Latents are counted with those of the run.
            Source::Hires { earlier, upscaler: HiresUpscaler::Latent } => earlier.image_bytes(is_reduced),
            Source::Masked { images, .. } => images.bytes(is_reduced),
            Source::Extended { earlier, .. } | Source::Hires { earlier, .. } => {
                let (peak, kept) = earlier.image_bytes(is_reduced);
                (peak + own, kept + own)
            }
            Source::Init(init) | Source::Edited(init) | Source::Enlarged { init, .. } => {
                init.bytes(is_reduced)
            }
        }
    }

    /// The round before this one, whose image this one extends or enlarges.
    pub(crate) fn earlier(&self) -> Option<Self> {
        match &self.source {
            Source::Extended { earlier, .. } | Source::Hires { earlier, .. } => {
                Some(earlier.with_seed(self.seed))
            }
            _ => None,
        }
    }

    /// Whether it takes the latents of the round before, and not the image.
    pub(crate) fn takes_latents(&self) -> bool {
        matches!(self.source, Source::Hires { upscaler: HiresUpscaler::Latent, .. })
    }

    /// The same request with latents of its size, which the round before has made.
    pub(crate) fn with_latents(&self, latents: Vec<f32>) -> Self {
        Self { source: Source::Latents(Arc::new(latents)), ..self.clone() }
    }

    /// The same request with the image that the round before has made.
    pub(crate) fn with_earlier(&self, image: RgbImage) -> Self {
        if let Source::Hires { .. } = self.source {
            let size = (self.size.width_px(), self.size.height_px());
            let place = Placement::new(image.dimensions(), size, Resize::Stretch);
            let source = Source::Init(Arc::new(Fitted::init(image.into(), place)));
            return Self { source, ..self.clone() };
        }
        let Source::Extended { extend, keeps_outside, starts_from_noise, .. } = self.source else {
            return self.clone();
        };
        let images =
            Arc::new(Inpaint::extended(image.into(), &extend, feather_px(&extend, self.shape, self.size)));
        let source = Source::Masked { images, starts_from_noise, keeps_outside, is_soft: false };
        Self { source, ..self.clone() }
    }

    /// The size of the image around the region that is worked at, if that is a part of one.
    pub(crate) fn whole_size(&self) -> Option<(u32, u32)> {
        match &self.source {
            Source::Masked { images, .. } => images.whole_size(),
            _ => None,
        }
    }

    /// The seed of the noise.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// How many steps the recipe has, of which an init image leaves some out.
    pub(crate) fn steps_asked(&self) -> usize {
        self.recipe.steps.unwrap_or(self.steps())
    }

    /// How many steps a run has.
    pub fn steps(&self) -> usize {
        self.schedule.steps().len()
    }

    /// How many of them it takes: all, unless the recipe ends it before.
    pub fn steps_taken(&self) -> usize {
        self.recipe.stop_after.unwrap_or(self.steps())
    }

    /// Ends a run after so many steps, at least one.
    pub(crate) fn stop_after(&mut self, steps: usize) {
        self.recipe.stop_after = Some(steps).filter(|steps| *steps < self.steps());
    }

    /// The same request with other steps: `steps` of them in all, before the first are left out for latents that are less noisy.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] where something of it was made for its own steps, as listed levels are.
    pub(crate) fn with_steps(&self, steps: usize, manifest: &Manifest) -> Result<Self, Error> {
        let recipe = Recipe { steps: Some(steps), stop_after: None, ..self.recipe.clone() };
        let steps = steps_asked(&recipe, steps)?;
        let Course { schedule, prompt, negative, guidance, .. } =
            Course::of(&recipe, manifest, self.sampler, steps)?;
        Ok(Self { recipe, prompt, negative, schedule, guidance, ..self.clone() })
    }
}

/// What a recipe becomes for its number of steps.
struct Course {
    schedule_kind: ScheduleKind,
    schedule: Schedule,
    strength: Option<f64>,
    prompt: Words,
    negative: Option<Words>,
    scales: Scales,
    guidance: Guidance,
}

impl Course {
    fn of(recipe: &Recipe, manifest: &Manifest, sampler: Method, steps: usize) -> Result<Self, Error> {
        let (schedule_kind, mut schedule) =
            manifest.schedule(recipe.sampler, recipe.schedule.clone(), steps)?;
        let strength = strength(recipe, manifest.conditions)?;
        match strength {
            Some(strength) => schedule = schedule.last(steps_left(steps, strength)?)?,
            None => check_start(&schedule, &schedule_kind, manifest.noise.even_level())?,
        }
        check_stop(recipe, schedule.steps().len())?;
        let (prompt, negative) = words(recipe, schedule.steps().len())?;
        let scales = recipe.guidance.clone().unwrap_or_else(|| manifest.defaults.guidance.into());
        let guidance = guidance(recipe, manifest, sampler, &scales, &prompt, &schedule)?;
        Ok(Self { schedule_kind, schedule, strength, prompt, negative, scales, guidance })
    }
}

/// What the images of a recipe become.
struct StartImages {
    source: Source,
    /// A line on an init image that is stretched.
    stretched: Option<String>,
    is_masked: bool,
    /// Whether the init image is brought to another size.
    is_resized: bool,
    edit: MaskEdit,
}

/// Places the images of a recipe at the sizes that a run takes; `level` is that of an image that is upscaled.
fn start_images(
    init: Option<Init>,
    mask: Option<Mask>,
    recipe: &Recipe,
    manifest: &Manifest,
    (size, shape): (PixelSize, LatentShape),
    strength: Option<f64>,
    level: usize,
) -> Result<StartImages, Error> {
    let (width_px, height_px) = match manifest.conditions {
        Conditions::Upscaling => (shape.width_cells as u32, shape.height_cells as u32),
        _ => (size.width_px(), size.height_px()),
    };
    let keeps_outside = recipe.keep_outside.unwrap_or(true);
    let edit = mask_edit(recipe)?;
    let (resize, from) = (recipe.resize.unwrap_or_default(), init.as_ref().map(Init::dimensions));
    let source = match (init, mask, manifest.conditions) {
        (None, _, _) => Source::Noise,
        (Some(init), None, _) if recipe.extend.is_some() => {
            extended_source(init, recipe, manifest, strength == Some(1.0), keeps_outside)?
        }
        (Some(init), Some(mask), _) => Source::Masked {
            images: Arc::new(inpaint(init, mask, recipe, (width_px, height_px), edit)?),
            starts_from_noise: strength == Some(1.0),
            keeps_outside,
            is_soft: recipe.soft_mask.unwrap_or(false),
        },
        (Some(init), None, conditions) => {
            let place = Placement::new(init.dimensions(), (width_px, height_px), resize);
            let init = Arc::new(Fitted::init(init, place));
            match conditions {
                Conditions::Editing => Source::Edited(init),
                Conditions::Upscaling => Source::Enlarged { init, level },
                _ => Source::Init(init),
            }
        }
    };
    let place = from.map(|from| Placement::new(from, (width_px, height_px), resize));
    let is_stretched = recipe.resize.is_none()
        && recipe.mask_only.is_none()
        && recipe.extend.is_none()
        && place.is_some_and(|place| place.is_distorted());
    let stretched = from.filter(|_| is_stretched).map(|(width, height)| {
        format!(
            "init: stretched from {width}x{height} to {width_px}x{height_px}; resize crop or pad keeps its proportions"
        )
    });
    let is_masked = matches!(source, Source::Masked { .. } | Source::Extended { .. });
    let is_resized = recipe.mask_only.is_none()
        && recipe.extend.is_none()
        && from.is_some_and(|from| from != (width_px, height_px));
    Ok(StartImages { source, stretched, is_masked, is_resized, edit })
}

/// The noise level of an image that is upscaled, in timesteps.
fn noise_level(recipe: &Recipe, manifest: &Manifest) -> Result<usize, Error> {
    let level = recipe.noise_level.unwrap_or(NOISE_LEVEL);
    match &manifest.low_res {
        Some(low_res) if level > low_res.max_level => Err(Error::new(
            ErrorKind::Usage,
            format!("noise level: expected at most {}, got {level}", low_res.max_level),
        )),
        _ => Ok(level),
    }
}

/// [`ErrorKind::Memory`] where so much more than the process has is over a budget.
fn expect_room(bytes: u64, budget_bytes: u64) -> Result<(), Error> {
    let least_bytes = memory::resident_bytes().unwrap_or(0) + bytes;
    if bytes > 0 && least_bytes > budget_bytes {
        let mib = |bytes: u64| bytes.div_ceil(1 << 20);
        return Err(Error::new(
            ErrorKind::Memory,
            format!(
                "memory: expected at least {} MiB to decode an image, got {} MiB",
                mib(least_bytes),
                mib(budget_bytes)
            ),
        )
        .help("a PNG that is not interlaced, or a smaller image, takes less"));
    }
    Ok(())
}

/// Whether a run from noise alone begins where there is mostly noise. Below, a model takes what it is given for an image, and
/// draws a flat one: `linspace` in one step takes the *lowest* timestep.
fn check_start(schedule: &Schedule, kind: &ScheduleKind, least: f64) -> Result<(), Error> {
    let from = schedule.steps()[0].from;
    if from >= least {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Usage,
        format!("schedule: {kind}: expected a first level of {least} or more, where there is noise to start from, got {from:.4}"),
    )
    .help("use more steps, or trailing, which starts at the last timestep"))
}

/// How many steps a recipe asks for: of a list of levels, as many as it has.
fn steps_asked(recipe: &Recipe, default: usize) -> Result<usize, Error> {
    match (recipe.schedule.as_ref().and_then(ScheduleKind::own_steps), recipe.steps) {
        (Some(own), Some(asked)) if own != asked => Err(Error::new(
            ErrorKind::Usage,
            format!("steps: expected {own}, the number of listed levels, got {asked}"),
        )),
        (Some(own), _) => Ok(own),
        (None, asked) => Ok(asked.unwrap_or(default)),
    }
}

/// Refuses to end a run after more steps than these, or after none.
fn check_stop(recipe: &Recipe, steps: usize) -> Result<(), Error> {
    let Some(stop_after) = recipe.stop_after else { return Ok(()) };
    if recipe.hires.is_some() || recipe.extend.is_some() {
        let problem = "stop after: expected an image that is made in one pass, got one with several";
        return Err(Error::new(ErrorKind::Usage, problem));
    }
    if !(1..=steps).contains(&stop_after) {
        let problem = format!("stop after: expected 1 to {steps} steps, got {stop_after}");
        return Err(Error::new(ErrorKind::Usage, problem));
    }
    Ok(())
}

/// The prompts of a recipe, for so many steps.
fn words(recipe: &Recipe, steps: usize) -> Result<(Words, Option<Words>), Error> {
    let read = |source: &str, parse: fn(&str) -> Result<Prompt, Error>| {
        let prompt = if recipe.literal { Prompt::literal(source)? } else { parse(source)? };
        Ok::<Words, Error>(Words { parts: prompt.parts(steps)? })
    };
    let negative = recipe.negative.as_deref().map(|negative| {
        read(negative, Prompt::parse_negative)
            .map_err(|error| Error::new(error.kind(), "negative").source(error))
    });
    Ok((read(&recipe.prompt, Prompt::parse)?, negative.transpose()?))
}

/// The guidance of a recipe, for a run with this schedule.
fn guidance(
    recipe: &Recipe,
    manifest: &Manifest,
    sampler: Method,
    scales: &Scales,
    prompt: &Words,
    schedule: &Schedule,
) -> Result<Guidance, Error> {
    let refuse = |message: String, help: &str| {
        let error = Error::new(ErrorKind::Usage, message);
        Err(if help.is_empty() { error } else { error.help(help) })
    };
    let weights = prompt.parts.iter().map(|part| part.weight).collect::<Vec<_>>();
    if manifest.embedded_guidance {
        let asked = [
            (recipe.negative.is_some(), "negative prompt"),
            (recipe.guidance_method.is_some(), "guidance method"),
            (recipe.guidance_interval.is_some(), "guidance interval"),
            (sampler.kind().needs_uncond(), "sampler with CFG++"),
            (weights != [1.0], "weights of whole prompts"),
        ];
        if let Some((_, what)) = asked.into_iter().find(|(is_asked, _)| *is_asked) {
            let why = "because this model takes the guidance scale as an input, got one";
            return refuse(format!("{what}: expected none, {why}"), "");
        }
        // Checked as any other, and then left to the U-Net.
        Guidance::new(scales.for_steps(1)?[0])?;
        return Guidance::new(1.0);
    }
    let method = match (manifest.conditions, recipe.guidance_method) {
        (Conditions::Editing, None) => {
            guidance::Method::Edit { image_scale: recipe.image_guidance.unwrap_or(IMAGE_GUIDANCE) }
        }
        (Conditions::Editing, Some(method)) => {
            let why = "because this model edits images, which has its own guidance";
            return refuse(format!("guidance method: expected none, {why}, got {method}"), "");
        }
        (_, method) => method.unwrap_or(guidance::Method::Cfg { rescale: 0.0 }),
    };
    let steps = schedule.steps().len();
    let scales = scales.for_steps(steps)?;
    let mut guidance = Guidance::by(method, scales[0])?.with_prompts(weights)?;
    if scales.len() > 1 {
        guidance = guidance.with_scales(scales, steps)?;
    }
    if let Some(within) = recipe.guidance_interval {
        guidance = guidance.within(within.interval(schedule)?);
    }
    if sampler.kind().needs_uncond() {
        guidance = guidance.with_base();
    }
    let is_guided = guidance.views().contains(&View::Negative);
    if recipe.image_guidance.is_some() && !is_guided {
        return refuse(
            "image guidance: expected guidance other than 1, got 1".into(),
            "at guidance 1 image guidance has no effect",
        );
    }
    if recipe.negative.is_some() && !is_guided {
        if guidance.scales().iter().any(|scale| *scale != 1.0) {
            let expected = "negative prompt: expected a guidance method that uses one";
            return refuse(format!("{expected}, got {method}"), "");
        }
        return refuse(
            "negative prompt: expected guidance other than 1, got 1".into(),
            "at guidance 1 only the prompt is used",
        );
    }
    Ok(guidance)
}

/// The images of a recipe; in their place it keeps their files, or a file of which nothing is known.
#[expect(clippy::type_complexity, reason = "what is taken out of the recipe")]
fn take_images(mut recipe: Recipe) -> Result<(Recipe, Option<Init>, Option<Mask>, Vec<Init>), Error> {
    fn take<T: Clone>(what: &str, image: &mut Image<T>, is_small: fn(&T) -> bool) -> Result<T, Error> {
        match image {
            Image::Given(given) => {
                let taken = given.clone();
                if !is_small(given) {
                    *image = Image::Named(NamedFile::default());
                }
                Ok(taken)
            }
            Image::Named(file) => {
                let path = file.path.as_ref();
                let name = path.map_or("the name of none".into(), |path| path.display().to_string());
                let message = format!("{what}: expected an image that has been opened, got {name}");
                Err(Error::new(ErrorKind::Usage, message))
            }
        }
    }
    let is_file = |init: &Init| matches!(init, Init::File(_));
    let init = recipe.init.as_mut().map(|init| take("init", init, is_file)).transpose()?;
    let is_small = |mask: &Mask| !matches!(mask, Mask::Pixels(_));
    let mask = recipe.mask.as_mut().map(|mask| take("mask", mask, is_small)).transpose()?;
    let controls = recipe.control.iter_mut().map(|control| take("control", &mut control.image, is_file));
    let controls = controls.collect::<Result<_, _>>()?;
    Ok((recipe, init, mask, controls))
}

/// Places control images at the size that a run takes; whether each is brought to another size.
fn controls_of(
    images: Vec<Init>,
    recipe: &Recipe,
    manifest: &Manifest,
    size: PixelSize,
) -> Vec<(Control, bool)> {
    let (width, height) = (size.width_px(), size.height_px());
    let placed = images.into_iter().zip(&recipe.control).map(|(image, control)| {
        let from = image.dimensions();
        let place = Placement::new(from, (width, height), recipe.resize.unwrap_or_default());
        let stretched = (recipe.resize.is_none() && place.is_distorted()).then(|| {
            format!(
                "control: {}: stretched from {}x{} to {width}x{height}; resize crop or pad keeps its proportions",
                control.kind, from.0, from.1
            )
        });
        let network = manifest.controls.iter().position(|kind| kind.name == control.kind);
        let network = network.expect("kinds that were checked");
        let image = Arc::new(Fitted::init(image, place));
        (Control { network, image, annotate: control.annotate, steering: control.steering, stretched }, from != (width, height))
    });
    placed.collect()
}

/// What a recipe does to its mask.
fn mask_edit(recipe: &Recipe) -> Result<MaskEdit, Error> {
    let refuse = |message: String| Err(Error::new(ErrorKind::Usage, message));
    let grow_px = recipe.mask_grow.unwrap_or(0);
    if grow_px.unsigned_abs() > MAX_GROW_PX.unsigned_abs() {
        return refuse(format!(
            "mask grow: expected a number from -{MAX_GROW_PX} to {MAX_GROW_PX}, got {grow_px}"
        ));
    }
    let blur_px = recipe.mask_blur.unwrap_or(if recipe.mask_only.is_some() { CUT_BLUR_PX } else { 0.0 });
    if !(0.0..=MAX_BLUR_PX).contains(&blur_px) {
        return refuse(format!("mask blur: expected a number from 0 to {MAX_BLUR_PX}, got {blur_px}"));
    }
    Ok(MaskEdit { inverts: recipe.mask_invert.unwrap_or(false), grow_px, blur_px })
}

/// The init image and the mask of a run of `to` pixels.
fn inpaint(
    init: Init,
    mask: Mask,
    recipe: &Recipe,
    to: (u32, u32),
    edit: MaskEdit,
) -> Result<Inpaint, Error> {
    let own = init.dimensions();
    let (size, resize) = match recipe.mask_only {
        Some(_) => (own, Resize::Stretch),
        None => (to, recipe.resize.unwrap_or_default()),
    };
    let place = Placement::new(own, size, resize);
    let of_mask = |mask: (u32, u32)| place.of_fitted(mask, own, recipe.mask_fit.unwrap_or_default());
    let mask = match (mask, &init) {
        (Mask::Pixels(mask), _) => {
            let place = of_mask(mask.dimensions());
            Fitted::mask(mask, place, edit)
        }
        (Mask::File(file), _) => {
            let place = of_mask(file.dimensions());
            Fitted::mask_file(file, place, edit)
        }
        (Mask::InitAlpha, Init::File(file)) if file.has_alpha() => {
            Fitted::transparency(file.clone(), place, edit)
        }
        (Mask::InitAlpha, _) => {
            return Err(Error::new(
                ErrorKind::Usage,
                "mask: expected an init image with transparent areas, which are the mask, got an opaque one",
            )
            .help("give a mask with {mask}"));
        }
    };
    let cutting = recipe.mask_only.map(|padding_px| Cutting::new(padding_px, to));
    Ok(Inpaint::new(Fitted::init(init, place), mask, cutting))
}

/// The size of an extended image: no other may be asked for.
fn extended_size(
    asked: Option<PixelSize>,
    extended: (u32, u32),
    manifest: &Manifest,
) -> Result<PixelSize, Error> {
    let (width, height) = extended;
    if let Some(asked) = asked.filter(|asked| (asked.width_px(), asked.height_px()) != extended) {
        let message = format!("size: expected {width}x{height}, that of the extended image, got {asked}");
        return Err(Error::new(ErrorKind::Usage, message).help("leave out {size}"));
    }
    let size = PixelSize::new(width, height);
    let size = size.and_then(|size| manifest.latents.shape(size).map(|_| size));
    size.map_err(|error| Error::new(ErrorKind::Usage, "extend: the extended image").source(error))
}

/// What the last round of an extension starts from.
fn extended_source(
    init: Init,
    recipe: &Recipe,
    manifest: &Manifest,
    starts_from_noise: bool,
    keeps_outside: bool,
) -> Result<Source, Error> {
    let extend = recipe.extend.unwrap_or_default();
    let from = init.dimensions();
    let Some((first, last)) = extend.divided(from, manifest.latents.factor_px) else {
        let (width, height) = extend.of(from);
        let size = PixelSize::new(width, height)?;
        let feather_px = feather_px(&extend, manifest.latents.shape(size)?, size);
        let images = Arc::new(Inpaint::extended(init, &extend, feather_px));
        return Ok(Source::Masked { images, starts_from_noise, keeps_outside, is_soft: false });
    };
    let earlier = Recipe { init: Some(init.into()), extend: Some(first), size: None, ..recipe.clone() };
    let earlier = Arc::new(Request::of(earlier, manifest)?);
    Ok(Source::Extended { earlier, extend: last, keeps_outside, starts_from_noise })
}

/// How far a seam reaches into the image: as asked for, or two cells of the latents, and 16 pixels at least.
fn feather_px(extend: &Extend, shape: LatentShape, size: PixelSize) -> u32 {
    extend.feather.unwrap_or_else(|| (2 * size.width_px() / shape.width_cells as u32).max(16))
}

/// The variation of a recipe.
fn variation(recipe: &Recipe) -> Result<Option<Variation>, Error> {
    let refuse = |message: String| Err(Error::new(ErrorKind::Usage, message));
    match (recipe.variation_seed, recipe.variation_strength) {
        (None, None) => Ok(None),
        (Some(seed), Some(strength)) if (0.0..=1.0).contains(&strength) => {
            Ok(Some(Variation { seed, strength }))
        }
        (Some(_), Some(strength)) => {
            refuse(format!("variation strength: expected a number from 0 to 1, got {strength}"))
        }
        (Some(_), None) => refuse("variation strength: expected one with a variation seed, got none".into()),
        (None, Some(_)) => refuse("variation seed: expected one with a variation strength, got none".into()),
    }
}

/// The size of what is drawn from an image of this size.
fn own_size(what: &str, init: &Init, manifest: &Manifest) -> Result<PixelSize, Error> {
    let factor = match manifest.conditions {
        Conditions::Upscaling => manifest.latents.factor_px,
        _ => 1,
    };
    let side_px = |side_px: u32| side_px.saturating_mul(factor);
    let (width, height) = init.dimensions();
    let size = PixelSize::new(side_px(width), side_px(height));
    let size = size.and_then(|size| manifest.latents.shape(size).map(|_| size));
    size.map_err(|error| {
        let error = Error::new(ErrorKind::Usage, format!("{what}: its own size")).source(error);
        error.help("give {size}: it resizes the image")
    })
}

/// The denoising strength of a recipe, if it starts from an init image.
fn strength(recipe: &Recipe, conditions: Conditions) -> Result<Option<f64>, Error> {
    if let Some(Hires { strength, .. }) = recipe.hires {
        return Ok(Some(strength));
    }
    let default = match (&recipe.init, &recipe.mask, conditions) {
        (Some(_), None, _) if recipe.extend.is_some() => MASKED_STRENGTH,
        (None, _, _) | (_, _, Conditions::Editing | Conditions::Upscaling) => return Ok(None),
        (_, Some(_), _) => MASKED_STRENGTH,
        (_, None, Conditions::Refiner) => REFINER_STRENGTH,
        (_, None, _) => STRENGTH,
    };
    let strength = recipe.strength.unwrap_or(default);
    if !(0.0..=1.0).contains(&strength) {
        return Err(Error::new(
            ErrorKind::Usage,
            format!("strength: expected a number from 0 to 1, got {strength}"),
        )
        .help("0.3 keeps most of the image, 0.8 little"));
    }
    Ok(Some(strength))
}

/// How many of the steps are left for an init image at this denoising strength.
fn steps_left(steps: usize, strength: f64) -> Result<usize, Error> {
    // Cut as diffusers cuts it, rounding errors included: 0.58 of 50 steps are 28.
    match (steps as f64 * strength) as usize {
        0 => Err(Error::new(
            ErrorKind::Usage,
            format!("strength: expected enough for a step of {steps}, got {strength}"),
        )
        .help(format!("use {} or more, or more steps", (1000.0 / steps as f64).ceil() / 1000.0))),
        left => Ok(left.min(steps)),
    }
}

/// 32 random bits, which are easier to read and to type again than 64.
fn random_seed() -> u64 {
    RandomState::new().hash_one(0) >> 32
}

#[cfg(test)]
#[cfg(feature = "builtin")]
mod tests {
    use image::{GrayImage, RgbImage};

    use super::*;
    use crate::manifest::LowRes;
    use crate::model::Model;
    use crate::schedule::Betas;

    /// The built-in model's, as if its U-Net drew from something else. Latents have 16 pixels a cell.
    fn manifest(conditions: Conditions) -> Manifest {
        let low_res = LowRes::new(Betas::ScaledLinear { start: 0.0001, end: 0.02 }, 1000, 350).unwrap();
        let low_res = (conditions == Conditions::Upscaling).then_some(low_res);
        Manifest { conditions, low_res, ..Model::built_in().unwrap().manifest().clone() }
    }

    fn init(width: u32, height: u32) -> Option<Image<Init>> {
        Some(RgbImage::new(width, height).into())
    }

    fn mask(width: u32, height: u32) -> Option<Image<Mask>> {
        Some(GrayImage::new(width, height).into())
    }

    #[track_caller]
    fn refuses(conditions: Conditions, draft: Recipe, message: &str) {
        refuses_of(&manifest(conditions), draft, message);
    }

    #[track_caller]
    fn refuses_of(manifest: &Manifest, draft: Recipe, message: &str) {
        let error = Request::of(draft, manifest).expect_err(message);
        assert_eq!(error.kind(), ErrorKind::Usage);
        assert!(error.to_string().starts_with(message), "{error}");
    }

    fn steps_of(conditions: Conditions, draft: Recipe) -> usize {
        Request::of(draft, &manifest(conditions)).unwrap().steps()
    }

    #[test]
    fn what_a_model_draws_from_must_be_there() {
        use Conditions::{Editing, Inpainting, Prompt, Refiner, Upscaling};
        for (conditions, verb) in
            [(Refiner, "refines"), (Inpainting, "repaints"), (Editing, "edits"), (Upscaling, "upscales")]
        {
            let message =
                format!("init: expected an image, because this model {verb} images, got none; give one");
            refuses(conditions, Recipe::default(), &message);
        }
        refuses(
            Inpainting,
            Recipe { init: init(128, 128), ..Recipe::default() },
            "mask: expected one, because this model repaints a part of an image, got none",
        );
        for conditions in [Prompt, Refiner, Inpainting] {
            let draft = Recipe { mask: mask(128, 128), ..Recipe::default() };
            refuses(conditions, draft, "mask: expected an init image with it, got none");
        }
        let draft = Recipe { strength: Some(0.5), ..Recipe::default() };
        refuses(Prompt, draft, "strength: expected an init image, got none; give one with `init`");
        assert!(Request::of(Recipe::default(), &manifest(Prompt)).is_ok());
    }

    #[test]
    fn what_a_model_does_not_draw_from_is_refused() {
        use Conditions::{Editing, Inpainting, Prompt, Refiner, Upscaling};
        let with_init = || Recipe { init: init(128, 128), ..Recipe::default() };
        for (conditions, verb) in [(Editing, "edits"), (Upscaling, "upscales")] {
            let message = format!("mask: expected none, because this model {verb} whole images, got one");
            refuses(conditions, Recipe { mask: mask(128, 128), ..with_init() }, &message);
            let message =
                format!("strength: expected none, because this model {verb} images from noise, got one");
            refuses(conditions, Recipe { strength: Some(1.0), ..with_init() }, &message);
        }
        for conditions in [Prompt, Refiner, Inpainting, Upscaling] {
            let mask = if conditions == Inpainting { mask(128, 128) } else { None };
            let draft = Recipe { image_guidance: Some(1.5), mask, ..with_init() };
            refuses(
                conditions,
                draft,
                "image guidance: expected none, because this model does not edit images",
            );
        }
        for conditions in [Prompt, Refiner, Inpainting, Editing] {
            let mask = if conditions == Inpainting { mask(128, 128) } else { None };
            let draft = Recipe { noise_level: Some(20), mask, ..with_init() };
            refuses(
                conditions,
                draft,
                "noise level: expected none, because this model does not upscale images",
            );
        }
    }

    #[test]
    fn without_an_encoder_only_small_images_can_be_drawn_from() {
        let without = |conditions| Manifest { encodes: false, ..manifest(conditions) };
        for conditions in [Conditions::Prompt, Conditions::Refiner, Conditions::Editing] {
            let draft = Recipe { init: init(128, 128), ..Recipe::default() };
            refuses_of(
                &without(conditions),
                draft,
                "init: expected none, because this model's files have no VAE encoder",
            );
        }
        let draft = Recipe { init: init(8, 8), ..Recipe::default() };
        assert!(Request::of(draft, &without(Conditions::Upscaling)).is_ok());
    }

    #[test]
    fn numbers_out_of_range() {
        use Conditions::{Editing, Prompt, Upscaling};
        let with_init = || Recipe { init: init(128, 128), ..Recipe::default() };
        for strength in [-0.1, 1.1, f64::NAN, f64::INFINITY] {
            let draft = Recipe { strength: Some(strength), ..with_init() };
            refuses(Prompt, draft, "strength: expected a number from 0 to 1, got");
        }
        refuses(
            Prompt,
            Recipe { strength: Some(0.04), steps: Some(20), ..with_init() },
            "strength: expected enough for a step of 20, got 0.04; use 0.05 or more",
        );
        refuses(
            Prompt,
            Recipe { strength: Some(0.0), ..with_init() },
            "strength: expected enough for a step of 20, got 0;",
        );
        refuses(
            Editing,
            Recipe { image_guidance: Some(0.5), ..with_init() },
            "image guidance: expected a number from 1 up, got 0.5",
        );
        refuses(
            Editing,
            Recipe { image_guidance: Some(1.5), guidance: Some(1.0.into()), ..with_init() },
            "image guidance: expected guidance other than 1, got 1",
        );
        let level = |level| Recipe { init: init(8, 8), noise_level: Some(level), ..Recipe::default() };
        refuses(Upscaling, level(351), "noise level: expected at most 350, got 351");
        refuses(Upscaling, level(usize::MAX), "noise level: expected at most 350, got");
        assert_eq!(Request::of(level(350), &manifest(Upscaling)).unwrap().recipe().noise_level, Some(350));
    }

    #[test]
    fn images_without_pixels() {
        for size in [None, Some(PixelSize::new(128, 128).unwrap())] {
            let draft = Recipe { init: init(0, 0), size, ..Recipe::default() };
            refuses(Conditions::Prompt, draft, "init: expected an image with pixels, got none");
        }
    }

    #[test]
    fn masks_that_are_not_there() {
        let draft = Recipe { keep_outside: Some(false), init: init(64, 64), ..Recipe::default() };
        refuses(Conditions::Prompt, draft, "keep outside: expected a mask, got none");
        let message =
            "mask: expected an init image with transparent areas, which are the mask, got an opaque one";
        let draft = Recipe { mask: Some(Mask::InitAlpha.into()), init: init(64, 64), ..Recipe::default() };
        refuses(Conditions::Prompt, draft, message);
    }

    #[test]
    fn sizes_follow_the_init_image() {
        let size = |conditions, draft| Request::of(draft, &manifest(conditions)).unwrap().size().to_string();
        let of = |width, height| Recipe { init: init(width, height), ..Recipe::default() };
        assert_eq!(size(Conditions::Prompt, of(160, 96)), "160x96");
        assert_eq!(size(Conditions::Upscaling, of(10, 7)), "160x112");
        let wanted = Some(PixelSize::new(64, 32).unwrap());
        assert_eq!(size(Conditions::Prompt, Recipe { size: wanted, ..of(161, 5) }), "64x32");
        assert_eq!(size(Conditions::Upscaling, Recipe { size: wanted, ..of(161, 5) }), "64x32");

        refuses(
            Conditions::Prompt,
            of(161, 100),
            "init: its own size: size: expected multiples of 16 pixels, got 161x100; try 160x96 or 176x112; \
             give `size`: it resizes the image",
        );
        refuses(
            Conditions::Prompt,
            of(8208, 16),
            "init: its own size: size: expected sides of 1 to 8192 pixels",
        );
        refuses(
            Conditions::Upscaling,
            of(513, 16),
            "init: its own size: size: expected sides of 1 to 8192 pixels",
        );
        let fixed =
            Manifest { fixed_size: Some(PixelSize::new(128, 128).unwrap()), ..manifest(Conditions::Prompt) };
        refuses_of(
            &fixed,
            of(64, 64),
            "size: expected 128x128, the only size of this model's graph, got 64x64; give `size` 128x128: it resizes",
        );

        let draft = Recipe { mask: mask(128, 96), ..of(128, 128) };
        refuses(Conditions::Prompt, draft, "mask: expected the size of the init image, 128x128, got 128x96");
    }

    #[test]
    fn images_are_brought_to_their_sizes() {
        let size = Some(PixelSize::new(64, 32).unwrap());
        let draft = Recipe { init: init(100, 50), mask: mask(100, 50), size, ..Recipe::default() };
        let request = Request::of(draft, &manifest(Conditions::Inpainting)).unwrap();
        let Source::Masked { images, starts_from_noise: true, keeps_outside: true, is_soft: false } =
            &request.source
        else {
            panic!("{:?}", request.strength())
        };
        let (image, mask) = (images.init().unwrap(), images.mask().unwrap());
        assert_eq!((image.dimensions(), mask.dimensions()), ((64, 32), (64, 32)));

        let draft = Recipe { init: init(100, 50), size, ..Recipe::default() };
        let request = Request::of(draft, &manifest(Conditions::Upscaling)).unwrap();
        let Source::Enlarged { init, level: 20 } = &request.source else {
            panic!("{:?}", request.strength())
        };
        assert_eq!(init.get().unwrap().dimensions(), (4, 2), "cells of 16 pixels");
    }

    /// `min(int(steps * strength), steps)` in Python, which is what diffusers' `get_timesteps` keeps.
    #[test]
    fn strength_leaves_as_many_steps_as_in_diffusers() {
        let table = [
            (1, 1.0, 1),
            (4, 0.3, 1),
            (4, 0.75, 3),
            (4, 0.9999, 3),
            (10, 0.29, 2),
            (10, 0.3, 3),
            (10, 0.57, 5),
            (10, 0.7, 7),
            (20, 0.35, 7),
            (20, 0.8, 16),
            (30, 0.3, 9),
            (30, 0.7, 21),
            // 28.999999999999996
            (50, 0.58, 28),
            (150, 0.58, 87),
            (50, 0.57, 28),
            (50, 0.9999, 49),
            (999, 0.1, 99),
            (999, 1.0, 999),
        ];
        for (steps, strength, left) in table {
            assert_eq!(steps_left(steps, strength).unwrap(), left, "{strength} of {steps}");
        }
    }

    #[test]
    fn the_last_steps_are_taken() {
        let sigmas = |strength: Option<f64>| {
            let init = if strength.is_some() { init(128, 128) } else { None };
            let draft = Recipe { init, strength, steps: Some(10), ..Recipe::default() };
            Request::of(draft, &manifest(Conditions::Prompt)).unwrap()
        };
        let (all, some) = (sigmas(None), sigmas(Some(0.35)));
        assert_eq!((some.steps(), some.recipe().steps, some.strength()), (3, Some(10), Some(0.35)));
        assert_eq!(some.sigmas()[..], all.sigmas()[7..]);
        let numbers: Vec<usize> = some.schedule.steps().iter().map(|step| step.index).collect();
        assert_eq!(numbers, [0, 1, 2]);
        assert_eq!(sigmas(Some(1.0)).sigmas(), all.sigmas());
    }

    #[test]
    fn strengths_that_are_not_asked_for() {
        let draft = || Recipe { init: init(128, 128), steps: Some(10), ..Recipe::default() };
        assert_eq!(steps_of(Conditions::Prompt, draft()), 8);
        assert_eq!(steps_of(Conditions::Refiner, draft()), 3);
        assert_eq!(steps_of(Conditions::Prompt, Recipe { mask: mask(128, 128), ..draft() }), 10);
        assert_eq!(steps_of(Conditions::Inpainting, Recipe { mask: mask(128, 128), ..draft() }), 10);
        assert_eq!(steps_of(Conditions::Editing, draft()), 10);
        assert_eq!(steps_of(Conditions::Upscaling, Recipe { init: init(8, 8), ..draft() }), 10);
    }
}
