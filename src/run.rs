//! One run: a request on its way to an image, step by step, through the only denoising loop there is.
//! It knows the order of the stages, and nothing of ONNX Runtime or of where images go.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use image::RgbImage;
use sha2::{Digest, Sha256};

use crate::guidance::View;
use crate::manifest::PreviewFactors;
use crate::memory::{Held, Watch};
use crate::model::{Additions, ModelFiles};
use crate::noise::{BrownianTree, NoiseSource, StepNoise};
use crate::prediction::Prediction;
use crate::recipe::Retry;
use crate::request::Request;
use crate::sampler::Sampler;
use crate::stage::blend::finished;
use crate::stage::component::Precise;
use crate::stage::conditioning::Conditioning;
use crate::stage::control::Controls;
use crate::stage::denoiser::GuidedDenoiser;
use crate::stage::predictor::Unet;
use crate::stage::start::{InpaintBlend, Start};
use crate::stage::text_encoder::TextEncoder;
use crate::stage::vae::VaeDecoder;
use crate::state::{Record, refused};
use crate::tile::Tile;
use crate::tokenizer::Cut;
use crate::{Error, ErrorKind};

/// The largest number in latents that are believed; they have a deviation of about 1.
const MAX_LATENT: f32 = 1e4;
/// What a snapshot begins with. The number changes with what follows it.
const SNAPSHOT: [u8; 16] = *b"calotype run  04";

/// One run, begun by [`Pipeline::begin`](crate::pipeline::Pipeline::begin). Dropped before its end, it gives back what it holds.
///
/// ```no_run
/// use calotype::model::Model;
/// use calotype::pipeline::{Options, Pipeline};
/// use calotype::recipe::Recipe;
///
/// let mut pipeline = Pipeline::open(&Model::built_in()?, &Options::default())?;
/// let recipe = Recipe { prompt: "a red apple".into(), ..Recipe::default() };
/// let request = pipeline.request(recipe)?;
/// let mut run = pipeline.begin(&request)?;
/// while !run.is_done() {
///     let progress = run.step()?;
///     println!("{} of {}", progress.done, progress.steps);
/// }
/// let output = run.finish()?;
/// # Ok::<(), calotype::Error>(())
/// ```
pub struct Run<'a> {
    request: Request,
    text_encoder: &'a mut TextEncoder,
    denoiser: GuidedDenoiser<'a>,
    vae_decoder: &'a mut VaeDecoder,
    /// Of what is decoded.
    tile: Option<Tile>,
    held: Held,
    /// Components have it as long as the run does.
    _precise: Option<Arc<Precise>>,
    is_short: fn() -> bool,
    watch: Watch,
    sampler: Box<dyn Sampler>,
    noise: Box<dyn NoiseSource + Send>,
    /// In place of the noise, where steps take theirs from a tree.
    tree: Option<BrownianTree>,
    blend: Option<InpaintBlend>,
    latents: Vec<f32>,
    /// The steps that are done.
    done: usize,
    /// Whether a step failed, and left what the sampler knows as it was in the middle of it.
    is_broken: bool,
    preview: Preview<'a>,
    files: &'a ModelFiles,
    additions: &'a Additions,
    /// Of what came before the steps.
    retries: Vec<Retry>,
    times: Times,
}

/// What draws previews.
pub(crate) enum Preview<'a> {
    /// A linear map of the latents, where the model has one.
    Factors(Option<&'a PreviewFactors>),
    /// A tiny autoencoder, in tiles of a size where one is given.
    Decoder { decoder: &'a mut VaeDecoder, tile: Option<Tile> },
}

/// How far a run has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Steps that are done.
    pub done: usize,
    /// Steps in all.
    pub steps: usize,
}

/// A finished image.
#[derive(Clone, Debug)]
pub struct Output {
    /// Its pixels.
    pub image: RgbImage,
    /// The part of the prompt that was truncated.
    pub cut_prompt: Option<Cut>,
    /// The part of the negative prompt that was truncated.
    pub cut_negative: Option<Cut>,
    /// The components that were computed in higher precision than planned, because they had given numbers that are not finite.
    pub retries: Vec<Retry>,
    /// The time that its stages took.
    pub times: Times,
}

impl Output {
    /// An image of which nothing else is known.
    #[cfg(feature = "server")]
    pub(crate) fn of(image: RgbImage) -> Self {
        Self { image, cut_prompt: None, cut_negative: None, retries: Vec::new(), times: Times::default() }
    }

    /// What of the prompts was not read, and what had to be computed again, a line each.
    pub fn warnings(&self) -> Vec<String> {
        let cuts = [("prompt", &self.cut_prompt), ("negative prompt", &self.cut_negative)];
        let cuts = cuts.into_iter().filter_map(|(which, cut)| Some((which, cut.as_ref()?)));
        let cuts = cuts.map(|(which, Cut { place_bytes, text })| {
            format!("{which}: truncated at byte {place_bytes}; ignored: {text:?}")
        });
        cuts.chain(self.retries.iter().map(Retry::to_string)).collect()
    }
}

/// The time that the stages of one image took.
#[derive(Clone, Copy, Debug, Default)]
pub struct Times {
    /// The text encoders.
    pub text_encoder: Duration,
    /// The calls of the U-Net.
    pub unet: Duration,
    /// The VAE encoder, and drawing the noise.
    pub vae_encoder: Duration,
    /// The denoising loop, U-Net included.
    pub denoising: Duration,
    /// The VAE decoder.
    pub vae_decoder: Duration,
}

/// What of a pipeline a run holds.
pub(crate) struct Stages<'a> {
    pub(crate) text_encoder: &'a mut TextEncoder,
    pub(crate) unet: &'a mut Unet,
    pub(crate) controls: &'a mut Controls,
    pub(crate) prediction: Prediction,
    pub(crate) vae_decoder: &'a mut VaeDecoder,
    /// Of what is decoded.
    pub(crate) tile: Option<Tile>,
    pub(crate) preview: Preview<'a>,
    pub(crate) files: &'a ModelFiles,
    pub(crate) additions: &'a Additions,
    /// Of what came before the steps.
    pub(crate) retries: Vec<Retry>,
    pub(crate) held: Held,
    /// How components are run in 32-bit floats, until the run ends.
    pub(crate) precise: Option<Arc<Precise>>,
    pub(crate) is_short: fn() -> bool,
}

impl<'a> Run<'a> {
    /// With the texts of this request encoded, and its noise drawn.
    pub(crate) fn new(
        request: Request,
        stages: Stages<'a>,
        conditioning: Conditioning,
        start: Start,
        noise: Box<dyn NoiseSource + Send>,
        times: Times,
    ) -> Result<Self, Error> {
        let Stages {
            text_encoder,
            unet,
            controls,
            prediction,
            vae_decoder,
            tile,
            preview,
            files,
            additions,
            retries,
            held,
            precise,
            is_short,
        } = stages;
        let Start { latents, concat_latents, blend, clean } = start;
        let tree =
            |(lowest, highest)| BrownianTree::new(request.rng, latents.len(), lowest, highest, request.seed);
        let tree = request.tree_levels().map(tree).transpose()?;
        let predictor = unet.predictor(conditioning, &request, concat_latents, controls)?;
        let mut denoiser = GuidedDenoiser::new(predictor, prediction, &request);
        if let Some(clean) = &clean {
            denoiser.remember(clean);
        }
        Ok(Self {
            sampler: request.sampler.build(&request.schedule, latents.len()),
            text_encoder,
            denoiser,
            vae_decoder,
            tile,
            held,
            _precise: precise,
            is_short,
            watch: Watch::start(is_short),
            noise,
            tree,
            blend,
            latents,
            done: 0,
            is_broken: false,
            preview,
            files,
            additions,
            retries,
            times,
            request,
        })
    }

    /// The request that it fulfils.
    pub fn request(&self) -> &Request {
        &self.request
    }

    /// How far it has come.
    pub fn progress(&self) -> Progress {
        Progress { done: self.done, steps: self.request.steps_taken() }
    }

    /// Whether all its steps are done.
    pub fn is_done(&self) -> bool {
        self.done == self.request.steps_taken()
    }

    /// How often control networks were run so far: once for each call of the U-Net and each control image, unless its weight is 0 or
    /// the step is outside of its window. T2I-Adapters are run once for each control image, unless it counts in no step.
    pub fn control_calls(&self) -> usize {
        self.denoiser.control_calls()
    }

    /// The components that are computed in higher precision than planned so far, because they gave numbers that are not finite.
    pub fn retries(&self) -> Vec<Retry> {
        self.retries.iter().cloned().chain(self.denoiser.retries()).collect()
    }

    /// The latents after the last step, `[channels, height_cells, width_cells]` in row-major order; noise of the next step's
    /// level is in them.
    pub fn latents(&self) -> &[f32] {
        &self.latents
    }

    /// The last estimate of the clean latents, as large; zeros before the first step.
    pub fn denoised(&self) -> &[f32] {
        self.denoiser.clean()
    }

    /// A preview of [`Run::denoised`]: of the request's size where the model has a decoder of previews
    /// ([`Model::decode_previews_by`](crate::model::Model::decode_previews_by)); else one pixel per latent cell, a cheap linear
    /// map of the latents to RGB. `None` for a model that has neither.
    ///
    /// # Errors
    /// Those of the decoder: [`ErrorKind::Cancelled`], [`ErrorKind::Memory`], and [`ErrorKind::Numeric`] for a pixel that is not a
    /// number. The run can go on.
    pub fn preview(&mut self) -> Result<Option<RgbImage>, Error> {
        let (shape, size) = (self.request.shape, self.request.size);
        match &mut self.preview {
            Preview::Factors(factors) => {
                Ok(factors.map(|factors| factors.draw(self.denoiser.clean(), shape)))
            }
            Preview::Decoder { decoder, tile } => {
                let image = decoder.decode(self.denoiser.clean(), shape, size, *tile);
                let image = image.map_err(|error| stopped(error, "before the preview was decoded"))?;
                self.held.check("preview_decoder")?;
                Ok(Some(image))
            }
        }
    }

    /// Takes the next step.
    ///
    /// # Errors
    /// [`ErrorKind::Numeric`] when a value stops being finite; [`ErrorKind::Cancelled`] when the pipeline's
    /// [`Cancel`](crate::engine::Cancel) is cancelled, also in the middle of a call; [`ErrorKind::Memory`] where memory cannot
    /// be had, and where the process has had more than a budget that was stated; [`ErrorKind::Usage`] when no step is left,
    /// or one has failed.
    pub fn step(&mut self) -> Result<Progress, Error> {
        let steps = self.request.steps_taken();
        self.expect_whole()?;
        if self.is_done() {
            return Err(Error::new(
                ErrorKind::Usage,
                format!("run: expected a step that is left, got all {steps} steps done"),
            ));
        }
        self.is_broken = true;
        let started = Instant::now();
        self.take_step()?;
        self.times.denoising += started.elapsed();
        self.times.unet = self.denoiser.spent();
        self.done += 1;
        self.is_broken = false;
        self.held.check("unet")?;
        // Pages of files cost little to have again; only where giving those back does not do, weights are.
        let is_near = self.held.is_near() && {
            self.denoiser.release_pages();
            self.held.is_near()
        };
        if (is_near || self.watch.is_short()) && self.denoiser.reduce_memory() {
            self.text_encoder.reduce_memory();
            tracing::warn!(step = self.done, "memory pressure: weights are streamed from disk from now on");
        }
        Ok(self.progress())
    }

    fn take_step(&mut self) -> Result<(), Error> {
        let (step, steps) = (self.request.schedule.steps()[self.done], self.request.steps());
        let number = self.done + 1;
        let noise: &mut dyn StepNoise = match &mut self.tree {
            Some(tree) => tree,
            None => &mut self.noise,
        };
        self.denoiser.begin(&step);
        self.sampler
            .step(&mut self.latents, &step, &mut self.denoiser, noise)
            .map_err(|error| stopped(error, &format!("in step {number} of {steps}")))?;
        if !self.latents.iter().all(|value| value.is_finite()) {
            return Err(Error::new(
                ErrorKind::Numeric,
                format!("unet: expected finite latents after step {number} of {steps}, got NaN or infinity"),
            ));
        }
        if let Some(blend) = &self.blend {
            blend.apply(&mut self.latents, number, step.to);
        }
        Ok(())
    }

    /// Ends the run after the steps that it has taken: [`Run::finish`] gives the image of [`Run::denoised`], as a recipe with
    /// `stop_after` does, which [`Run::request`] then has.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] before the first step, and when a step has failed.
    pub fn stop(&mut self) -> Result<(), Error> {
        self.expect_whole()?;
        if self.done == 0 {
            return Err(Error::new(ErrorKind::Usage, "run: expected at least one step done, got none"));
        }
        self.request.stop_after(self.done);
        Ok(())
    }

    /// Takes all remaining steps. `on_step` is called with the run after each, and may end it.
    ///
    /// # Errors
    /// Those of [`Run::step`], and [`ErrorKind::Cancelled`] when `on_step` breaks.
    pub fn steps(&mut self, mut on_step: impl FnMut(&mut Self) -> ControlFlow<()>) -> Result<(), Error> {
        while !self.is_done() {
            let Progress { done, steps } = self.step()?;
            if on_step(self).is_break() {
                return Err(Error::new(
                    ErrorKind::Cancelled,
                    format!("stopped after step {done} of {steps}"),
                ));
            }
        }
        Ok(())
    }

    /// Decodes the image.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] when steps are left; [`ErrorKind::Numeric`] for values that no image has; otherwise as
    /// [`Run::step`].
    pub fn finish(self) -> Result<Output, Error> {
        let latents = self.final_latents()?;
        let [cut_prompt, cut_negative] = self.cuts();
        let mut retries = self.retries();
        let Self { request, denoiser, vae_decoder, tile, held, is_short, watch, mut times, .. } = self;
        // The U-Net's memory is given back before the VAE takes its own.
        drop((denoiser, watch));
        let started = Instant::now();
        let mut tile = tile;
        if is_short() || held.is_near() {
            tile = vae_decoder.reduce_memory(request.shape).or(tile);
            tracing::warn!("memory pressure: the image is decoded in tiles, if the model allows it");
        }
        let image = vae_decoder.decode(&latents, request.shape, request.size, tile);
        let image = image.map_err(|error| stopped(error, "before the image was decoded"))?;
        let image = finished(image, &request)?;
        held.check("vae_decoder")?;
        times.vae_decoder = started.elapsed();
        retries.extend(vae_decoder.retry());
        Ok(Output { image, cut_prompt, cut_negative, retries, times })
    }

    /// The latents at the end, as the VAE takes them.
    pub(crate) fn final_latents(&self) -> Result<Vec<f32>, Error> {
        self.expect_whole()?;
        let Progress { done, steps } = self.progress();
        if done < steps {
            return Err(Error::new(
                ErrorKind::Usage,
                format!("run: expected all {steps} steps done, got {done}"),
            ));
        }
        let (mut latents, scale, blend) = if steps < self.request.steps() {
            (self.denoiser.clean().to_vec(), 1.0, self.blend.as_ref())
        } else {
            (self.latents.clone(), self.request.schedule.final_scale(), None)
        };
        // Of numbers beyond any that a VAE was trained on an image would be rubbish.
        if let Some(value) = latents.iter().find(|value| value.abs() > MAX_LATENT) {
            return Err(Error::new(
                ErrorKind::Numeric,
                format!("unet: expected latents up to {MAX_LATENT} at the end, got {value}"),
            )
            .help("guidance, weights of words and LoRA strengths may be too large"));
        }
        if let Some(blend) = blend {
            blend.apply(&mut latents, done, 0.0);
        }
        if scale != 1.0 {
            latents.iter_mut().for_each(|value| *value = (f64::from(*value) * scale) as f32);
        }
        Ok(latents)
    }

    /// The state of the run as bytes, from which [`Pipeline::restore`](crate::pipeline::Pipeline::restore) continues with the same
    /// request: latents, history of sampler and guidance, and the position in the stream of noise.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] when a step has failed.
    pub fn snapshot(&mut self) -> Result<Vec<u8>, Error> {
        self.expect_whole()?;
        let mut record = Record::new();
        self.state(&mut record)?;
        let mut bytes = record.into_bytes();
        bytes.extend(Sha256::digest(&bytes));
        Ok(bytes)
    }

    /// Takes a run that was just begun to where a snapshot was made.
    pub(crate) fn restore(&mut self, snapshot: &[u8]) -> Result<(), Error> {
        let damaged = || refused("expected a complete snapshot, got one that is damaged or truncated".into());
        let (bytes, digest) = snapshot.split_last_chunk::<32>().ok_or_else(damaged)?;
        if Sha256::digest(bytes)[..] != digest[..] {
            return Err(damaged());
        }
        let mut record = Record::of(bytes.to_vec());
        self.state(&mut record)?;
        record.end()
    }

    fn state(&mut self, record: &mut Record) -> Result<(), Error> {
        let mut version = SNAPSHOT;
        record.bytes(&mut version)?;
        if version != SNAPSHOT {
            return Err(refused(
                "expected one made by this version of calotype, got one made by another version".into(),
            ));
        }
        let own = self.request.fingerprint()?;
        let mut fingerprint = own;
        record.bytes(&mut fingerprint)?;
        if fingerprint != own {
            return Err(refused(
                "expected one made for this request and model, got one made for another".into(),
            ));
        }
        let own = self.files.sha256();
        let mut files = own;
        record.bytes(&mut files)?;
        if files != own {
            return Err(refused(
                "expected one made with this model's weights, got one made with other weights".into(),
            ));
        }
        let own = self.additions.sha256();
        let mut additions = own;
        record.bytes(&mut additions)?;
        if additions != own {
            return Err(refused(
                "expected one made with this model's LoRA files, strengths, embeddings and clip skip, got one made with others"
                    .into(),
            ));
        }
        record.count(&mut self.done, self.request.steps())?;
        record.f32s(&mut self.latents)?;
        self.sampler.state(record)?;
        self.noise.state(record)?;
        self.denoiser.state(record)
    }

    fn expect_whole(&self) -> Result<(), Error> {
        if self.is_broken {
            let message =
                format!("run: expected a run without errors, got one whose step {} failed", self.done + 1);
            return Err(Error::new(ErrorKind::Usage, message));
        }
        Ok(())
    }

    /// What was not read of the prompt and of the negative prompt.
    fn cuts(&self) -> [Option<Cut>; 2] {
        let (conditioning, views) = (self.denoiser.conditioning(), self.request.guidance.views());
        [true, false].map(|is_prompt| {
            let is_meant = |view: &View| matches!(view, View::Positive(_)) == is_prompt;
            let read = conditioning.of_step.iter().flat_map(|texts| views.iter().zip(texts));
            let mut cuts = read
                .filter(|(view, _)| is_meant(view))
                .filter_map(|(_, &text)| conditioning.texts[text].cut.clone());
            cuts.next()
        })
    }
}

/// Where a run was when it was cancelled, in place of the component that was; other errors are passed on.
pub(crate) fn stopped(error: Error, place: &str) -> Error {
    match error.kind() {
        ErrorKind::Cancelled => Error::new(ErrorKind::Cancelled, format!("stopped {place}")),
        _ => error,
    }
}
