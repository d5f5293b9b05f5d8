//! The pipeline: one request becomes one picture, through the only denoising loop there is.
//! It knows the order of the stages, and nothing of ONNX Runtime or of where pictures go.

use std::num::NonZeroUsize;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use image::RgbImage;

use crate::engine::SessionOptions;
use crate::guidance::Guidance;
use crate::manifest::Manifest;
use crate::model::Model;
use crate::noise::TorchCpu;
use crate::prompt::{Part, Prompt, Text};
use crate::request::Request;
use crate::stage::denoiser::Denoiser;
use crate::stage::start::Start;
pub use crate::stage::text_encoder::TextStates;
use crate::stage::text_encoder::{Conditioning, TextEncoder};
use crate::stage::vae::{VaeDecoder, VaeEncoder};
use crate::tokenizer::Cut;
use crate::{Error, ErrorKind};

/// An opened model, ready to draw.
///
/// ```no_run
/// use std::ops::ControlFlow;
/// use calotype::model::Model;
/// use calotype::pipeline::{Options, Pipeline};
/// use calotype::request::{Draft, Request};
///
/// let mut pipeline = Pipeline::open(&Model::built_in()?, &Options::default())?;
/// let draft = Draft { prompt: "a red apple on a blue background".into(), ..Draft::default() };
/// let request = Request::new(draft, pipeline.manifest())?;
/// let picture = pipeline.generate(&request, |_| ControlFlow::Continue(()))?;
/// assert_eq!(picture.image.dimensions(), (128, 128));
/// # Ok::<(), calotype::Error>(())
/// ```
pub struct Pipeline {
    manifest: Manifest,
    text_encoder: TextEncoder,
    denoiser: Denoiser,
    vae_encoder: Option<VaeEncoder>,
    vae_decoder: VaeDecoder,
}

/// How a pipeline runs.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// How many threads work on one operator.
    pub threads: NonZeroUsize,
}

impl Default for Options {
    /// As many threads as the process may use cores.
    fn default() -> Self {
        Self { threads: std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN) }
    }
}

/// How far a run has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Steps that are done.
    pub done: usize,
    /// Steps in all.
    pub steps: usize,
}

/// A finished picture.
#[derive(Clone, Debug)]
pub struct Picture {
    /// Its pixels.
    pub image: RgbImage,
    /// What of the prompt was too long to be read.
    pub cut_prompt: Option<Cut>,
    /// What of the negative prompt was too long to be read.
    pub cut_negative: Option<Cut>,
    /// Where the time went.
    pub times: Times,
}

/// Where the time of one picture went.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    /// From tokens to states.
    pub text_encoder: Duration,
    /// In the U-Net.
    pub unet: Duration,
    /// From the pictures that are drawn from to what the loop starts with.
    pub vae_encoder: Duration,
    /// In the denoising loop, the U-Net included.
    pub denoising: Duration,
    /// From latents to pixels.
    pub vae_decoder: Duration,
}

/// The latents that the loop ended with, `[channels, height_cells, width_cells]`, and what came of the prompts.
struct Denoised {
    latents: Vec<f32>,
    conditioning: Conditioning,
    times: Times,
}

impl Pipeline {
    /// Opens every component of a model, but the VAE encoder, which the first picture that is drawn from opens.
    ///
    /// # Errors
    /// [`ErrorKind::Model`] when a component is damaged or unfit; [`ErrorKind::Runtime`] without ONNX Runtime.
    pub fn open(model: &Model, options: &Options) -> Result<Self, Error> {
        let options = SessionOptions { threads: options.threads };
        Ok(Self {
            text_encoder: TextEncoder::open(model, &options)?,
            denoiser: Denoiser::open(model, &options)?,
            vae_encoder: VaeEncoder::of(model, options),
            vae_decoder: VaeDecoder::open(model, &options)?,
            manifest: model.manifest().clone(),
        })
    }

    /// What the model says of itself.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Draws one picture. `on_step` is called after every step and may break off.
    ///
    /// # Errors
    /// [`ErrorKind::Cancelled`] when `on_step` breaks; [`ErrorKind::Numeric`] when a value stops being finite;
    /// [`ErrorKind::Usage`] for a prompt that cannot be read.
    pub fn generate(
        &mut self,
        request: &Request,
        on_step: impl FnMut(Progress) -> ControlFlow<()>,
    ) -> Result<Picture, Error> {
        let Denoised { latents, conditioning, mut times } = self.run(request, on_step)?;
        let started = Instant::now();
        let image = self.vae_decoder.decode(&latents, request.shape, request.size)?;
        times.vae_decoder = started.elapsed();
        let mut cut = conditioning.texts.into_iter().map(|text| text.cut).rev();
        Ok(Picture { image, cut_prompt: cut.next().flatten(), cut_negative: cut.next().flatten(), times })
    }

    /// The latents of one picture, `[channels, height_cells, width_cells]` in row-major order, before they are decoded.
    ///
    /// # Errors
    /// As [`Pipeline::generate`].
    pub fn denoise(
        &mut self,
        request: &Request,
        on_step: impl FnMut(Progress) -> ControlFlow<()>,
    ) -> Result<Vec<f32>, Error> {
        Ok(self.run(request, on_step)?.latents)
    }

    /// What the U-Net is told of a text.
    ///
    /// # Errors
    /// [`ErrorKind::Numeric`] for a state that is not a number; otherwise those of running a text encoder.
    pub fn encode(&mut self, text: &Text) -> Result<TextStates, Error> {
        Ok(self.text_encoder.encode(&[Some(text)])?.texts.remove(0))
    }

    fn run(
        &mut self,
        request: &Request,
        mut on_step: impl FnMut(Progress) -> ControlFlow<()>,
    ) -> Result<Denoised, Error> {
        let started = Instant::now();
        let prompt = unchanging(&Prompt::parse(&request.prompt)?, request)?;
        let negative = request.negative.as_deref().or((!self.manifest.zero_negative).then_some(""));
        let negative = negative.map(|negative| unchanging(&Prompt::parse_negative(negative)?, request));
        let negative = negative.transpose()?;
        let conditioning = match request.guidance {
            Guidance::Cfg { .. } | Guidance::Edit { .. } if !self.manifest.embedded_guidance => {
                self.text_encoder.encode(&[negative.as_ref(), Some(&prompt)])?
            }
            _ => self.text_encoder.encode(&[Some(&prompt)])?,
        };
        let text_encoder = started.elapsed();

        let started = Instant::now();
        let mut noise = TorchCpu::new(request.seed);
        let Start { mut latents, beside, kept } =
            Start::new(request, &self.manifest, self.vae_encoder.as_mut(), &mut noise)?;
        let vae_encoder = started.elapsed();

        let started = Instant::now();
        let mut sampler = request.sampler.build(latents.len());
        let mut denoiser = self.denoiser.guided(&conditioning, request, &beside)?;
        let steps = request.schedule.steps();
        for step in steps {
            sampler.step(&mut latents, step, &mut denoiser, &mut noise)?;
            let done = step.index + 1;
            if !latents.iter().all(|value| value.is_finite()) {
                return Err(Error::new(
                    ErrorKind::Numeric,
                    format!("unet: expected finite latents, got others after step {done} of {}", steps.len()),
                ));
            }
            if let Some(kept) = &kept {
                kept.restore(&mut latents, step.to);
            }
            if on_step(Progress { done, steps: steps.len() }).is_break() {
                return Err(Error::new(
                    ErrorKind::Cancelled,
                    format!("stopped after step {done} of {}", steps.len()),
                ));
            }
        }
        let (unet, denoising) = (denoiser.spent(), started.elapsed());
        let times = Times { text_encoder, vae_encoder, unet, denoising, vae_decoder: Duration::ZERO };
        Ok(Denoised { latents, conditioning, times })
    }
}

/// The text of a prompt that is the same in all steps.
fn unchanging(prompt: &Prompt, request: &Request) -> Result<Text, Error> {
    let mut parts = prompt.parts(request.schedule.steps().len())?;
    match &mut parts[..] {
        [Part { weight: 1.0, texts, .. }] if texts.len() == 1 => Ok(texts.remove(0)),
        _ => Err(Error::new(ErrorKind::Usage, "prompt: expected one text in all steps, got several")),
    }
}
