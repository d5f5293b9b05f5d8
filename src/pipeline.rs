//! The pipeline: one request becomes one picture, through the only denoising loop there is.
//! It knows the order of the stages, and nothing of ONNX Runtime or of where pictures go.

use std::num::NonZeroUsize;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use image::RgbImage;

use crate::engine::{Placement, SessionOptions};
use crate::guidance::View;
use crate::manifest::Manifest;
use crate::memory::{Held, Memory, Watch};
use crate::model::Model;
use crate::noise::{BrownianTree, StepNoise};
use crate::plan::{self, Plan};
use crate::prompt::Text;
use crate::request::{Request, Source, Texts};
use crate::sampler::StepNoiseKind;
use crate::stage::blend::keep_outside;
use crate::stage::denoiser::{Denoiser, Told};
use crate::stage::start::Start;
use crate::stage::text_encoder::TextEncoder;
pub use crate::stage::text_encoder::TextStates;
use crate::stage::vae::{VaeDecoder, VaeEncoder};
use crate::tile::Tile;
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
    tiles: Tiles,
    plan: Option<Plan>,
    /// Whether memory runs short.
    is_short: fn() -> bool,
}

/// The largest number in latents that are believed; they have a deviation of about 1.
const MAX_LATENT: f32 = 1e4;

/// The tiles of both halves of the VAE, where pictures are not coded whole.
struct Tiles {
    encoder: Option<Tile>,
    decoder: Option<Tile>,
}

/// How a pipeline runs.
#[derive(Clone, Debug)]
pub struct Options {
    /// How the sessions of its components are opened, but for what a plan says.
    pub session: SessionOptions,
    /// How it keeps within a budget, all on the processor; without one pictures are drawn whole.
    pub plan: Option<Plan>,
}

impl Default for Options {
    /// On the processor, as many threads as the process may use cores, everything in memory, and no budget.
    fn default() -> Self {
        let threads = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
        Self { session: SessionOptions::new(threads), plan: None }
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

/// The latents that the loop ended with, `[channels, height_cells, width_cells]`, and what was not read of the prompt and
/// of the negative prompt.
struct Denoised {
    latents: Vec<f32>,
    cuts: [Option<Cut>; 2],
    times: Times,
}

impl Pipeline {
    /// Opens every component of a model, but the VAE encoder, which the first picture that is drawn from opens.
    ///
    /// # Errors
    /// [`ErrorKind::Model`] when a component is damaged or unfit; [`ErrorKind::Runtime`] without ONNX Runtime or the
    /// providers that were asked for; [`ErrorKind::Numeric`] for a provider that computes wrongly; [`ErrorKind::Usage`] for
    /// a plan and a component that may run elsewhere than on the processor.
    pub fn open(model: &Model, options: &Options) -> Result<Self, Error> {
        let Options { session, plan } = options;
        if let Some(plan) = plan {
            plan::expect_cpu(model, &session.providers)?;
            plan.check_model(model)?;
        }
        let session = |component: &str| match plan {
            Some(plan) => plan.session(component, session),
            None => session.clone(),
        };
        let tile = |component: &str| plan.as_ref().and_then(|plan| plan.tile(component));
        Ok(Self {
            text_encoder: TextEncoder::open(model, session)?,
            denoiser: Denoiser::open(model, session("unet"), plan.as_ref().map_or(usize::MAX, Plan::batch))?,
            vae_encoder: VaeEncoder::of(model, session("vae_encoder")),
            vae_decoder: VaeDecoder::open(model, session("vae_decoder"))?,
            tiles: Tiles { encoder: tile("vae_encoder"), decoder: tile("vae_decoder") },
            plan: plan.clone(),
            manifest: model.manifest().clone(),
            is_short: || Memory::of_this_machine().is_some_and(|memory| memory.is_short()),
        })
    }

    /// What the model says of itself.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Where its components run, in the order in which a picture meets them; one that was not needed yet runs nowhere.
    pub fn placements(&self) -> impl Iterator<Item = &Placement> {
        let vae_encoder = self.vae_encoder.as_ref().and_then(VaeEncoder::placement);
        let before = self.text_encoder.placements().chain(self.denoiser.placement());
        before.chain(vae_encoder).chain(self.vae_decoder.placement())
    }

    /// Draws one picture. `on_step` is called after every step and may break off.
    ///
    /// # Errors
    /// [`ErrorKind::Memory`] for a request that is larger than the one that the pipeline's plan was made for, before anything
    /// is run; when memory cannot be had, and where the process has had more than a budget that was stated.
    /// [`ErrorKind::Cancelled`] when `on_step` breaks; [`ErrorKind::Numeric`] when a value stops being finite;
    /// [`ErrorKind::Usage`] for a prompt that cannot be read, and for a request that was made for another model.
    pub fn generate(
        &mut self,
        request: &Request,
        on_step: impl FnMut(Progress) -> ControlFlow<()>,
    ) -> Result<Picture, Error> {
        let held = self.hold();
        let Denoised { latents, cuts, mut times } = self.run(request, held, on_step)?;
        let started = Instant::now();
        let mut tile = self.tiles.decoder;
        if (self.is_short)() {
            tile = self.vae_decoder.reduce_memory(request.shape).or(tile);
            tracing::warn!("memory pressure: the image is decoded in tiles, if the model allows it");
        }
        let mut image = self.vae_decoder.decode(&latents, request.shape, request.size, tile)?;
        if let Source::Masked { picture, mask, keeps_outside: true, .. } = &request.source {
            keep_outside(&mut image, picture.get()?, mask.get()?);
        }
        held.check("vae_decoder")?;
        times.vae_decoder = started.elapsed();
        let [cut_prompt, cut_negative] = cuts;
        Ok(Picture { image, cut_prompt, cut_negative, times })
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
        let held = self.hold();
        Ok(self.run(request, held, on_step)?.latents)
    }

    /// What the U-Net is told of a text.
    ///
    /// # Errors
    /// [`ErrorKind::Numeric`] for a state that is not a number; otherwise those of running a text encoder.
    pub fn encode(&mut self, text: &Text) -> Result<TextStates, Error> {
        Ok(self.text_encoder.encode(&[Some(text)])?.remove(0))
    }

    /// From now on the process is held to the budget, if one was stated. What an earlier run took less for want of memory is
    /// taken again: if there is too little of it still, that is found again.
    fn hold(&mut self) -> Held {
        self.text_encoder.restore();
        self.denoiser.restore();
        self.vae_encoder.iter_mut().for_each(VaeEncoder::restore);
        self.vae_decoder.restore();
        Held::to(self.plan.as_ref().and_then(Plan::promised_bytes))
    }

    fn run(
        &mut self,
        request: &Request,
        held: Held,
        mut on_step: impl FnMut(Progress) -> ControlFlow<()>,
    ) -> Result<Denoised, Error> {
        request.check_model(&self.manifest)?;
        if let Some(plan) = &self.plan {
            plan.check(request)?;
        }
        let started = Instant::now();
        let told = self.tell(request)?;
        held.check("text_encoder")?;
        if let Some(plan) = &self.plan {
            plan.check_tokens(told.texts.iter().map(|text| text.tokens).sum())?;
        }
        let text_encoder = started.elapsed();

        let started = Instant::now();
        let mut noise = request.rng.source(request.seed)?;
        let Start { mut latents, beside, kept, clean } =
            Start::new(request, &self.manifest, self.vae_encoder.as_mut(), self.tiles.encoder, &mut noise)?;
        held.check("vae_encoder")?;
        let vae_encoder = started.elapsed();

        let started = Instant::now();
        let steps = request.schedule.steps();
        let mut tree;
        let noise: &mut dyn StepNoise = match request.sampler.settings().noise {
            StepNoiseKind::Stream => &mut noise,
            StepNoiseKind::Tree => {
                let (highest, lowest) = (steps[0].from, steps[steps.len() - 1].from);
                tree = BrownianTree::new(request.rng, latents.len(), lowest, highest, request.seed)?;
                &mut tree
            }
        };
        let mut sampler = request.sampler.build(&request.schedule, latents.len());
        let mut denoiser = self.denoiser.guided(&told, request, &beside)?;
        if let Some(clean) = &clean {
            denoiser.remember(clean);
        }
        let watch = Watch::start(self.is_short);
        for step in steps {
            denoiser.begin(step);
            sampler.step(&mut latents, step, &mut denoiser, noise)?;
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
            held.check("unet")?;
            if held.is_near() {
                denoiser.release_pages();
            }
            if watch.is_short() && denoiser.reduce_memory() {
                self.text_encoder.reduce_memory();
                tracing::warn!(step = done, "memory pressure: weights are streamed from disk from now on");
            }
        }
        // Of numbers beyond any that a VAE was trained on a picture would be rubbish.
        if let Some(value) = latents.iter().find(|value| value.abs() > MAX_LATENT) {
            return Err(Error::new(
                ErrorKind::Numeric,
                format!("unet: expected latents up to {MAX_LATENT} at the end, got {value}"),
            )
            .help("guidance, weights of words and LoRA strengths may be too large"));
        }
        let scale = request.schedule.final_scale();
        if scale != 1.0 {
            latents.iter_mut().for_each(|value| *value = (f64::from(*value) * scale) as f32);
        }
        let (unet, denoising) = (denoiser.spent(), started.elapsed());
        drop(denoiser);
        let times = Times { text_encoder, vae_encoder, unet, denoising, vae_decoder: Duration::ZERO };
        let views = request.guidance.views();
        let cuts = [true, false].map(|is_prompt| {
            let is_meant = |view: &View| matches!(view, View::Positive(_)) == is_prompt;
            let read = told.of_step.iter().flat_map(|texts| views.iter().zip(texts));
            let mut cuts =
                read.filter(|(view, _)| is_meant(view)).filter_map(|(_, &text)| told.texts[text].cut.clone());
            cuts.next()
        });
        Ok(Denoised { latents, cuts, times })
    }

    /// Encodes every text that some step reads, each once.
    fn tell(&mut self, request: &Request) -> Result<Told, Error> {
        let Texts { texts, of_step, .. } = request.texts(self.manifest.zero_negative)?;
        let texts: Vec<Option<&Text>> = texts.iter().map(Option::as_ref).collect();
        let texts = self.text_encoder.encode(&texts)?;
        Ok(Told { texts, of_step })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Residency;
    use crate::plan::Budget;
    use crate::request::Draft;
    use crate::tensor::PixelSize;

    #[test]
    fn requests_for_another_model_are_refused() {
        let mut pipeline = Pipeline::open(&Model::built_in().unwrap(), &Options::default()).unwrap();
        let mut other = pipeline.manifest().clone();
        other.name = "another".into();
        other.latents.scale *= 2.0;
        let request = Request::new(Draft::default(), &other).unwrap();
        let error = pipeline.generate(&request, |_| ControlFlow::Continue(())).expect_err("another model");
        assert_eq!(error.kind(), ErrorKind::Usage);
        assert!(error.to_string().contains("got one made for another;"), "{error}");
    }

    /// When memory runs short in the middle of a run, it goes on in other ways, and to the same picture but for rounding. The
    /// next run, for which there is enough again, is as the first.
    #[test]
    fn a_run_goes_on_when_memory_runs_short() {
        let mut pipeline = Pipeline::open(&Model::built_in().unwrap(), &Options::default()).unwrap();
        let draft = Draft { prompt: "a red apple".into(), seed: Some(1), steps: Some(3), ..Draft::default() };
        let request = Request::new(draft, pipeline.manifest()).unwrap();
        let mut draw = |is_short: fn() -> bool| {
            pipeline.is_short = is_short;
            let picture = pipeline.generate(&request, |_| ControlFlow::Continue(())).unwrap();
            (picture.image, pipeline.denoiser.is_streamed())
        };
        let (whole, was_streamed) = draw(|| false);
        assert!(!was_streamed);
        // The first step is in memory, the others are read from the disk; so is all of the second picture.
        for _ in 0..2 {
            let (reduced, is_streamed) = draw(|| true);
            assert!(is_streamed);
            let worst = whole.iter().zip(reduced.iter()).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
            assert!(worst <= 2, "{worst} levels off");
        }
        let (again, is_streamed) = draw(|| false);
        assert!(!is_streamed && again == whole);
    }

    /// Longer prompts than those that were planned are refused, where a budget was stated.
    #[test]
    fn a_plan_guards_the_length_of_its_texts() {
        let mut pipeline = planned(draft(128)).unwrap();
        let long = Draft { prompt: "a red apple on a blue background, ".repeat(30), ..draft(128) };
        let request = Request::new(long, pipeline.manifest()).unwrap();
        let error = pipeline.generate(&request, |_| ControlFlow::Continue(())).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Memory);
        assert!(error.to_string().contains("tokens of text, for which the plan was made, got "), "{error}");
    }

    /// A pipeline of the built-in model with a plan of this request, as it was typed.
    fn planned(draft: Draft) -> Result<Pipeline, Error> {
        let (model, session) = (Model::built_in()?, SessionOptions::new(NonZeroUsize::MIN));
        let request = Request::new(draft, model.manifest())?;
        let plan = Plan::new(&model, &request, &session, Budget::of_bytes(u64::MAX))?;
        Pipeline::open(&model, &Options { session, plan: Some(plan) })
    }

    fn draft(size: u32) -> Draft {
        Draft {
            prompt: "a red apple".into(),
            size: Some(PixelSize::new(size, size).unwrap()),
            seed: Some(1),
            steps: Some(2),
            ..Draft::default()
        }
    }

    fn generate(pipeline: &mut Pipeline, draft: Draft) -> Result<Picture, Error> {
        let request = Request::new(draft, pipeline.manifest())?;
        pipeline.generate(&request, |_| ControlFlow::Continue(()))
    }

    /// Whatever is larger than what was planned is refused before anything is run; what is not, is drawn.
    #[test]
    fn a_plan_guards_its_size() {
        let mut pipeline = planned(Draft { guidance: Some(5.0.into()), ..draft(128) }).unwrap();
        let flat = |size| image::RgbImage::new(size, size);
        let wide = PixelSize::new(256, 64).unwrap();
        let parts = "a red apple AND a green pear".to_owned();
        for larger in [
            draft(256),
            Draft { size: Some(wide), ..draft(128) },
            Draft { prompt: parts, ..draft(128) },
            Draft { init: Some(flat(128).into()), ..draft(128) },
        ] {
            let error = generate(&mut pipeline, larger).map(|_| ()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Memory, "{error}");
            assert!(error.to_string().contains("for which the plan was made, got "), "{error}");
        }
        for not_larger in [draft(128), draft(64), Draft { guidance: Some(1.0.into()), ..draft(128) }] {
            generate(&mut pipeline, not_larger).unwrap();
        }
    }

    /// However a run ends, what its stages took is given back.
    #[test]
    fn what_is_broken_off_gives_back_its_memory() {
        let per_stage =
            SessionOptions { residency: Residency::PerStage, ..SessionOptions::new(NonZeroUsize::MIN) };
        let options = Options { session: per_stage, plan: None };
        let mut pipeline = Pipeline::open(&Model::built_in().unwrap(), &options).unwrap();
        let request = Request::new(draft(128), pipeline.manifest()).unwrap();
        let cancelled = pipeline.generate(&request, |_| ControlFlow::Break(())).map(|_| ()).unwrap_err();
        assert_eq!(cancelled.kind(), ErrorKind::Cancelled);
        assert!(!pipeline.denoiser.is_open());
        pipeline.generate(&request, |_| ControlFlow::Continue(())).unwrap();
        assert!(!pipeline.denoiser.is_open());
        // One that fails in the middle.
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            pipeline.generate(&request, |_| panic!("a caller's"))
        }));
        assert!(panicked.is_err() && !pipeline.denoiser.is_open());
    }

    /// A process that has more than the budget that was stated is stopped, and the stage is named.
    #[test]
    #[cfg(target_os = "linux")]
    fn a_budget_that_is_exceeded_is_an_error() {
        let mut pipeline = planned(draft(128)).unwrap();
        pipeline.plan.as_mut().unwrap().budget_bytes = 1 << 20;
        let request = Request::new(draft(128), pipeline.manifest()).unwrap();
        let mut held = Vec::new();
        let result = pipeline.generate(&request, |_| {
            // Above all that the process had before, which is not the run's.
            let (peak, resident) = (crate::memory::peak_bytes(), crate::memory::resident_bytes());
            held.push(vec![1u8; (peak.unwrap() - resident.unwrap()) as usize + (64 << 20)]);
            ControlFlow::Continue(())
        });
        let error = result.map(|_| ()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Memory, "{error}");
        let message = error.to_string();
        assert!(message.contains(": memory: expected at most 1024 KiB, the budget, got "), "{message}");
    }
}
