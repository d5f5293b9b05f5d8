//! The pipeline: an opened model, whose stages draw one image at a time in a [`Run`].
//! It knows what a run begins with, and nothing of ONNX Runtime or of where images go.

use std::num::NonZeroUsize;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Instant;

use image::RgbImage;

use crate::engine::{Cancel, Placement, Providers, SessionOptions};
use crate::manifest::Manifest;
use crate::memory::{Held, Memory, Readings};
use crate::model::{Additions, Model, ModelFiles, PREVIEW_DECODER};
use crate::plan::{self, Plan};
use crate::prompt::Text;
use crate::recipe::Recipe;
use crate::request::{Request, Texts};
pub use crate::run::{Output, Progress, Run, Times};
use crate::run::{Preview, Stages, stopped};
use crate::stage::component::Precise;
use crate::stage::conditioning::Conditioning;
use crate::stage::control::Controls;
use crate::stage::enlarge::enlarged;
use crate::stage::predictor::Unet;
use crate::stage::start::{Start, planes};
use crate::stage::text_encoder::TextEncoder;
pub use crate::stage::text_states::TextStates;
use crate::stage::vae::{VaeDecoder, VaeEncoder};
use crate::tensor::{LatentShape, PixelSize};
use crate::tile::Tile;
use crate::{Error, ErrorKind};

/// An opened model, ready to generate images.
///
/// ```no_run
/// use std::ops::ControlFlow;
/// use calotype::model::Model;
/// use calotype::pipeline::{Options, Pipeline};
/// use calotype::recipe::Recipe;
///
/// let mut pipeline = Pipeline::open(&Model::built_in()?, &Options::default())?;
/// let recipe = Recipe { prompt: "a red apple on a blue background".into(), ..Recipe::default() };
/// let request = pipeline.request(recipe)?;
/// let output = pipeline.generate(&request, |_| ControlFlow::Continue(()))?;
/// assert_eq!(output.image.dimensions(), (128, 128));
/// # Ok::<(), calotype::Error>(())
/// ```
pub struct Pipeline {
    manifest: Manifest,
    files: ModelFiles,
    additions: Additions,
    text_encoder: TextEncoder,
    unet: Unet,
    controls: Controls,
    vae_encoder: Option<VaeEncoder>,
    vae_decoder: VaeDecoder,
    preview_decoder: Option<VaeDecoder>,
    tiles: Tiles,
    plan: Option<Plan>,
    /// What is planned again when a component is to compute in 32-bit floats.
    model: Option<Arc<Model>>,
    session: SessionOptions,
    /// Whether there is memory pressure.
    is_short: fn() -> bool,
    /// Where the process's own memory is read.
    readings: Readings,
    cancel: Cancel,
}

/// The tiles of both halves of the VAE, where images are not coded whole.
struct Tiles {
    encoder: Option<Tile>,
    decoder: Option<Tile>,
    preview: Option<Tile>,
}

/// How a pipeline runs.
#[derive(Clone, Debug)]
pub struct Options {
    /// How the sessions of its components are opened, but for what a plan says.
    pub session: SessionOptions,
    /// The memory plan, CPU only; without one there are no tiles and nothing is streamed.
    pub plan: Option<Plan>,
}

impl Default for Options {
    /// On the CPU, with one thread per available core, everything in memory, and no budget.
    fn default() -> Self {
        let threads = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
        Self { session: SessionOptions::new(threads), plan: None }
    }
}

impl Pipeline {
    /// Opens every component of a model, but the VAE encoder, which is opened for the first init image.
    ///
    /// # Errors
    /// `ErrorKind::Model` when a component is damaged or unfit; `ErrorKind::Runtime` without ONNX Runtime or the
    /// providers that were asked for; `ErrorKind::Numeric` for a provider with wrong results; `ErrorKind::Usage` for
    /// a plan and a component that may run elsewhere than on the CPU, and for providers that are yet to be chosen.
    pub fn open(model: &Model, options: &Options) -> Result<Self, Error> {
        let Options { session: session_options, plan } = options;
        if session_options.providers.is_automatic() {
            let problem = "provider: expected providers by name, got auto";
            return Err(Error::new(ErrorKind::Usage, problem).help("choose with certify::choose"));
        }
        if let Some(plan) = plan {
            plan::expect_cpu(model, &session_options.providers)?;
            plan.check_model(model)?;
        }
        let session = |component: &str| match plan {
            Some(plan) => plan.session(component, session_options),
            None => session_options.clone(),
        };
        let tile = |component: &str| plan.as_ref().and_then(|plan| plan.tile(component));
        Ok(Self {
            text_encoder: TextEncoder::open(model, session)?,
            unet: Unet::open(model, session("unet"), plan.as_ref().map_or(usize::MAX, Plan::batch))?,
            controls: Controls::open(model, session)?,
            vae_encoder: VaeEncoder::of(model, session("vae_encoder")),
            vae_decoder: VaeDecoder::open(model, session("vae_decoder"))?,
            preview_decoder: VaeDecoder::of_previews(model, session(PREVIEW_DECODER)),
            tiles: Tiles {
                encoder: tile("vae_encoder"),
                decoder: tile("vae_decoder"),
                preview: tile(PREVIEW_DECODER),
            },
            plan: plan.clone(),
            model: plan.as_ref().map(|_| Arc::new(model.clone())),
            session: session_options.clone(),
            manifest: model.manifest().clone(),
            files: model.files(),
            additions: model.additions().clone(),
            cancel: session_options.cancel.clone(),
            is_short: || Memory::of_this_machine().is_some_and(|memory| memory.is_short()),
            readings: Readings::OF_THIS_PROCESS,
        })
    }

    /// What the model says of itself.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// A request of this pipeline's model, as [`Request::new`], which a plan needs before there is a pipeline.
    ///
    /// # Errors
    /// As [`Request::new`].
    pub fn request(&self, recipe: Recipe) -> Result<Request, Error> {
        Request::of(recipe, &self.manifest)
    }

    /// The plan that it was opened with.
    pub fn plan(&self) -> Option<&Plan> {
        self.plan.as_ref()
    }

    /// Whether a request is one that the pipeline was planned for: no larger, and with no more text. Another one is refused, and
    /// needs a pipeline of its own. A pipeline without a plan takes all.
    pub fn covers(&self, request: &Request) -> bool {
        self.plan.as_ref().is_none_or(|plan| plan.check(request).is_ok())
    }

    /// Cancels its runs, from any thread.
    pub fn cancel(&self) -> Cancel {
        self.cancel.clone()
    }

    /// Where its components run, in the order of a run; one that was not needed yet is left out.
    pub fn placements(&self) -> impl Iterator<Item = &Placement> {
        let vae_encoder = self.vae_encoder.as_ref().and_then(VaeEncoder::placement);
        let before = self.text_encoder.placements().chain(self.unet.placement());
        let before = before.chain(self.controls.placements());
        before.chain(vae_encoder).chain(self.vae_decoder.placement())
    }

    /// Generates one image: all steps of a [`Run`]. `on_step` is called after every step and may end the run.
    ///
    /// # Errors
    /// Those of [`Pipeline::begin`], [`Run::step`] and [`Run::finish`], and `ErrorKind::Cancelled` when `on_step` breaks.
    pub fn generate(
        &mut self,
        request: &Request,
        mut on_step: impl FnMut(Progress) -> ControlFlow<()>,
    ) -> Result<Output, Error> {
        let mut run = self.begin(request)?;
        run.steps(|run| on_step(run.progress()))?;
        run.finish()
    }

    /// The latents of one image, `[channels, height_cells, width_cells]` in row-major order, before they are decoded.
    ///
    /// # Errors
    /// As [`Pipeline::generate`].
    pub fn denoise(
        &mut self,
        request: &Request,
        mut on_step: impl FnMut(Progress) -> ControlFlow<()>,
    ) -> Result<Vec<f32>, Error> {
        let mut run = self.begin(request)?;
        run.steps(|run| on_step(run.progress()))?;
        run.final_latents()
    }

    /// Begins a run: encodes its texts and the image that it starts from, and draws its noise. Of an image that is made in
    /// several rounds, because it is extended or has a second pass, the earlier ones are drawn first.
    ///
    /// # Errors
    /// `ErrorKind::Usage` for a request that was made for another model, and for a prompt that cannot be read;
    /// `ErrorKind::Memory` for a request that is larger than the one that the pipeline's plan was made for, before anything
    /// is run; when memory cannot be had, and where the process has had more than a budget that was stated;
    /// `ErrorKind::Cancelled` when the pipeline's [`Cancel`] is cancelled; otherwise those of the
    /// text encoders and of the VAE encoder.
    pub fn begin(&mut self, request: &Request) -> Result<Run<'_>, Error> {
        self.begin_run(request).map_err(|error| stopped(error, "before the first step"))
    }

    fn begin_run(&mut self, request: &Request) -> Result<Run<'_>, Error> {
        let mut retries = Vec::new();
        let request = &match request.earlier() {
            Some(earlier) if request.takes_latents() => {
                self.cancel.check()?;
                let mut run = self.begin(&earlier)?;
                run.steps(|_| ControlFlow::Continue(()))?;
                retries = run.retries();
                request.with_latents(enlarged(&run.final_latents()?, earlier.shape, request.shape))
            }
            Some(earlier) => {
                self.cancel.check()?;
                let output = self.generate(&earlier, |_| ControlFlow::Continue(()))?;
                retries = output.retries;
                request.with_earlier(output.image)
            }
            None => request.clone(),
        };
        self.cancel.check()?;
        let (held, precise) = self.hold(Some(request));
        request.check_model(&self.manifest)?;
        if let Some(plan) = &self.plan {
            plan.check(request)?;
        }
        let mut times = Times::default();
        let started = Instant::now();
        let conditioning = self.encode_prompts(request)?;
        held.check("text_encoder")?;
        if let Some(plan) = &self.plan {
            plan.check_tokens(conditioning.texts.iter().map(|text| text.tokens).sum())?;
        }
        times.text_encoder = started.elapsed();
        if held.is_near() && self.text_encoder.reduce_memory() {
            tracing::warn!("near the memory budget: the text encoders are closed");
        }

        let started = Instant::now();
        if held.is_near() {
            self.vae_encoder.iter_mut().for_each(VaeEncoder::reduce_memory);
        }
        let mut noise = request.rng.source(request.seed)?;
        let start =
            Start::new(request, &self.manifest, self.vae_encoder.as_mut(), self.tiles.encoder, &mut noise)?;
        held.check("vae_encoder")?;
        times.vae_encoder = started.elapsed();
        retries.extend(self.text_encoder.retries());
        retries.extend(self.vae_encoder.as_ref().and_then(VaeEncoder::retry));
        let stages = Stages {
            text_encoder: &mut self.text_encoder,
            unet: &mut self.unet,
            controls: &mut self.controls,
            prediction: self.manifest.prediction,
            vae_decoder: &mut self.vae_decoder,
            tile: self.tiles.decoder,
            preview: match &mut self.preview_decoder {
                Some(decoder) => Preview::Decoder { decoder, tile: self.tiles.preview },
                None => Preview::Factors(self.manifest.preview.as_ref()),
            },
            files: &self.files,
            additions: &self.additions,
            retries,
            held,
            precise,
            is_short: self.is_short,
        };
        Run::new(request.clone(), stages, conditioning, start, noise, times)
    }

    /// Begins a run and takes it to where another one was when it gave this [snapshot](Run::snapshot): both go on to the same
    /// pixels.
    ///
    /// # Errors
    /// `ErrorKind::Input` for a snapshot that is damaged, of another version, request or model, or of the model with other
    /// weights, LoRA files, strengths, embeddings or clip skip; otherwise those of [`Pipeline::begin`]. Weights are compared by
    /// the hashes of a bundle's manifest, or by samples of every tensor.
    pub fn restore(&mut self, request: &Request, snapshot: &[u8]) -> Result<Run<'_>, Error> {
        let mut run = self.begin(request)?;
        run.restore(snapshot)?;
        Ok(run)
    }

    /// The text encoders' states of a text, for the U-Net.
    ///
    /// # Errors
    /// `ErrorKind::Numeric` for a state that is not a number; otherwise those of running a text encoder.
    pub fn encode(&mut self, text: &Text) -> Result<TextStates, Error> {
        let (held, _precise) = self.hold(None);
        let states = self.text_encoder.encode(&[Some(text)])?.remove(0);
        held.check("text_encoder")?;
        Ok(states)
    }

    /// The latents of an image, `[channels, height_cells, width_cells]` in row-major order, as samplers take them: the mean
    /// where the VAE gives a distribution. The size of the image is a multiple of the latents' cells.
    ///
    /// ```no_run
    /// # use calotype::{model::Model, pipeline::{Options, Pipeline}, tensor::PixelSize};
    /// let mut pipeline = Pipeline::open(&Model::built_in()?, &Options::default())?;
    /// let image = image::RgbImage::new(128, 128);
    /// let latents = pipeline.encode_image(&image)?;
    /// let decoded = pipeline.decode_latents(&latents, PixelSize::new(128, 128)?)?;
    /// assert_eq!(decoded.dimensions(), image.dimensions());
    /// # Ok::<(), calotype::Error>(())
    /// ```
    ///
    /// # Errors
    /// `ErrorKind::Usage` for a model without a VAE encoder, and for a size that its latents cannot have;
    /// `ErrorKind::Memory` for an image that the pipeline's plan does not cover; otherwise those of the VAE encoder.
    pub fn encode_image(&mut self, image: &RgbImage) -> Result<Vec<f32>, Error> {
        let size = PixelSize::new(image.width(), image.height())?;
        let (shape, held, _precise) = self.hold_for_image(size, true)?;
        let Some(encoder) = &mut self.vae_encoder else {
            return Err(Error::new(
                ErrorKind::Usage,
                format!("encode: expected a model with a VAE encoder, got {}", self.manifest.name),
            ));
        };
        let planes = planes(image, |_, _| true);
        let latents = encoder.encode(&planes, size, shape, self.tiles.encoder)?.mode();
        held.check("vae_encoder")?;
        Ok(self.manifest.latents.scaled(latents))
    }

    /// The image of latents as [`Pipeline::encode_image`] and [`Pipeline::denoise`] give them, of this size.
    ///
    /// # Errors
    /// `ErrorKind::Usage` for a size that latents cannot have, and for latents of another; `ErrorKind::Memory` as in
    /// [`Pipeline::encode_image`]; `ErrorKind::Numeric` for a pixel that is not a number; otherwise those of the VAE decoder.
    pub fn decode_latents(&mut self, latents: &[f32], size: PixelSize) -> Result<RgbImage, Error> {
        let (shape, held, _precise) = self.hold_for_image(size, false)?;
        if latents.len() != shape.len() {
            return Err(Error::new(
                ErrorKind::Usage,
                format!("latents: expected {} values for {size}, got {}", shape.len(), latents.len()),
            ));
        }
        let image = self.vae_decoder.decode(latents, shape, size, self.tiles.decoder)?;
        held.check("vae_decoder")?;
        Ok(image)
    }

    /// The latents of an image that is coded alone, if the model and the plan have room for it, and what holds the process
    /// to the budget meanwhile.
    fn hold_for_image(
        &mut self,
        size: PixelSize,
        is_encoded: bool,
    ) -> Result<(LatentShape, Held, Option<Arc<Precise>>), Error> {
        self.cancel.check()?;
        let shape = self.manifest.shape(size)?;
        if let Some(plan) = &self.plan {
            plan.check_image(size, shape, is_encoded)?;
        }
        let (held, precise) = self.hold(None);
        Ok((shape, held, precise))
    }

    /// How components are run in 32-bit floats: with a plan as another one says, which is made for the request when it comes to
    /// that, and not at all where there is none.
    fn precise(&self, request: Option<&Request>) -> Option<Arc<Precise>> {
        let session = self.session.clone();
        let Some((model, plan)) = self.model.clone().zip(self.plan.clone()) else {
            let options = SessionOptions { providers: Providers::default(), ..session };
            return Some(Arc::new(move |_| Ok((options.clone(), None))));
        };
        let request = request?.clone();
        Some(Arc::new(move |part| {
            let plan = plan.again(&model.with_part(part), &request, &session)?;
            Ok((plan.session(part.name(), &session), plan.tile(part.name())))
        }))
    }

    /// From now on the process is held to the budget, if one was stated. What an earlier run took less for want of memory is
    /// taken again: if there is too little of it still, that is found again; and so is what was computed in higher precision.
    /// Images are the same then whichever were drawn before. Components are run in 32-bit floats only while what is given with
    /// it is kept.
    fn hold(&mut self, request: Option<&Request>) -> (Held, Option<Arc<Precise>>) {
        let owned = self.precise(request);
        let precise = owned.as_ref();
        self.text_encoder.use_plan(precise);
        self.unet.use_plan(precise);
        self.controls.use_plan(precise);
        self.vae_encoder.iter_mut().for_each(|encoder| encoder.use_plan(precise));
        self.vae_decoder.use_plan(precise);
        self.preview_decoder.iter_mut().for_each(|decoder| decoder.use_plan(None));
        (Held::to(self.plan.as_ref().and_then(Plan::promised_bytes), self.readings), owned)
    }

    /// Encodes every text that some step reads, each once.
    fn encode_prompts(&mut self, request: &Request) -> Result<Conditioning, Error> {
        let Texts { texts, of_step, .. } = request.texts(self.manifest.zero_negative)?;
        let texts: Vec<Option<&Text>> = texts.iter().map(Option::as_ref).collect();
        let texts = self.text_encoder.encode(&texts)?;
        Ok(Conditioning { texts, of_step })
    }
}

#[cfg(test)]
#[cfg(feature = "builtin")]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::engine::Residency;
    use crate::plan::Budget;
    use crate::request::Source;

    #[test]
    fn requests_for_another_model_are_refused() {
        let mut pipeline = Pipeline::open(&Model::built_in().unwrap(), &Options::default()).unwrap();
        let mut other = pipeline.manifest().clone();
        other.name = "another".into();
        other.latents.scale *= 2.0;
        let request = Request::of(Recipe::default(), &other).unwrap();
        let error = pipeline.generate(&request, |_| ControlFlow::Continue(())).expect_err("another model");
        assert_eq!(error.kind(), ErrorKind::Usage);
        assert!(error.to_string().contains("got one made for another;"), "{error}");
    }

    /// Under memory pressure in the middle of a run, it goes on in other ways, and to the same image but for rounding. The
    /// next run, for which there is enough again, is as the first.
    #[test]
    fn a_run_goes_on_when_memory_runs_short() {
        let mut pipeline = Pipeline::open(&Model::built_in().unwrap(), &Options::default()).unwrap();
        let draft =
            Recipe { prompt: "a red apple".into(), seed: Some(1), steps: Some(3), ..Recipe::default() };
        let request = pipeline.request(draft).unwrap();
        let mut draw = |is_short: fn() -> bool| {
            pipeline.is_short = is_short;
            let output = pipeline.generate(&request, |_| ControlFlow::Continue(())).unwrap();
            (output.image, pipeline.unet.is_streamed())
        };
        let (whole, was_streamed) = draw(|| false);
        assert!(!was_streamed);
        // The first step is in memory, the others are read from the disk; so is all of the second image.
        for _ in 0..2 {
            let (reduced, is_streamed) = draw(|| true);
            assert!(is_streamed);
            let worst = whole.iter().zip(reduced.iter()).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
            assert!(worst <= 2, "{worst} levels off");
        }
        let (again, is_streamed) = draw(|| false);
        assert!(!is_streamed && again == whole);
    }

    /// More than any process has, and the budget of the runs below.
    const BUDGET: u64 = 1 << 40;

    thread_local! {
        /// How often this thread has read the peak and the resident memory.
        static READ: Cell<[usize; 2]> = const { Cell::new([0; 2]) };
        /// From which reading on the peak is above the budget, and in which readings the process is near it.
        static ABOVE: Cell<usize> = const { Cell::new(usize::MAX) };
        static NEAR: Cell<[usize; 2]> = const { Cell::new([0; 2]) };
    }

    fn number_of_reading(which: usize) -> usize {
        let mut read = READ.get();
        read[which] += 1;
        READ.set(read);
        read[which] - 1
    }

    const READINGS: Readings = Readings {
        peak_bytes: || Some(if number_of_reading(0) >= ABOVE.get() { 2 * BUDGET } else { 1 }),
        resident_bytes: || {
            let ([from, to], number) = (NEAR.get(), number_of_reading(1));
            Some(if (from..to).contains(&number) { BUDGET } else { 1 })
        },
    };

    /// As if the process were above its budget from one reading on, and near it in some.
    fn as_if(above: usize, near: [usize; 2]) {
        READ.set([0; 2]);
        ABOVE.set(above);
        NEAR.set(near);
    }

    fn watched(draft: Recipe) -> Pipeline {
        let mut pipeline = planned(draft).unwrap();
        pipeline.plan = pipeline.plan.take().map(|plan| plan.with_budget(BUDGET));
        pipeline.readings = READINGS;
        pipeline
    }

    /// The process's memory is looked at after every stage and every step; above the budget the run ends there with an error.
    #[test]
    fn every_stage_is_held_to_the_budget() {
        let init = Some(image::RgbImage::new(64, 64).into());
        let draft = Recipe { init, strength: Some(1.0), ..draft(64) };
        let mut pipeline = watched(draft.clone());
        let stages = ["text_encoder", "vae_encoder", "unet", "unet", "vae_decoder"];
        for (above, stage) in (1..).zip(stages) {
            as_if(above, [0; 2]);
            let error = generate(&mut pipeline, draft.clone()).map(|_| ()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Memory, "{stage}: {error}");
            assert!(error.to_string().contains(&format!("{stage}: memory: expected at most ")), "{error}");
        }
        as_if(1 + stages.len(), [0; 2]);
        generate(&mut pipeline, draft).unwrap();
        as_if(1, [0; 2]);
        let error = pipeline.encode_image(&image::RgbImage::new(64, 64)).unwrap_err();
        assert!(error.to_string().starts_with("vae_encoder: memory: expected at most "), "{error}");
        as_if(1, [0; 2]);
        let error = pipeline.decode_latents(&[0.0; 256], PixelSize::new(64, 64).unwrap()).unwrap_err();
        assert!(error.to_string().starts_with("vae_decoder: memory: expected at most "), "{error}");
    }

    /// Near its budget a run first gives back pages of files, and takes less memory where that does not do; to the same image
    /// but for rounding.
    #[test]
    fn a_run_near_its_budget_takes_less_memory() {
        let draft = Recipe { steps: Some(3), ..draft(128) };
        let mut pipeline = watched(draft.clone());
        let mut draw = |near| {
            as_if(usize::MAX, near);
            let image = generate(&mut pipeline, draft.clone()).unwrap().image;
            let reduced = [
                pipeline.text_encoder.is_streamed(),
                pipeline.unet.is_streamed(),
                pipeline.vae_decoder.is_streamed(),
            ];
            (image, reduced)
        };
        let (whole, reduced) = draw([0, 0]);
        assert_eq!(reduced, [false; 3]);
        // It is read after the texts, before an image would be encoded, after each step, and before decoding.
        for (near, expected) in [
            ([0, 1], [true, false, false]),
            ([2, 3], [false; 3]),
            ([2, 4], [true, true, false]),
            ([5, 6], [false, false, true]),
            ([0, usize::MAX], [true; 3]),
        ] {
            let (image, reduced) = draw(near);
            assert_eq!(reduced, expected, "{near:?}");
            let worst = whole.iter().zip(image.iter()).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
            assert!(worst <= 2, "{near:?}: {worst} levels off");
        }
    }

    /// Longer prompts than those that were planned are refused, where a budget was stated.
    #[test]
    fn a_plan_guards_the_length_of_its_texts() {
        let mut pipeline = planned(draft(128)).unwrap();
        let long = Recipe { prompt: "a red apple on a blue background, ".repeat(30), ..draft(128) };
        let request = pipeline.request(long).unwrap();
        let error = pipeline.generate(&request, |_| ControlFlow::Continue(())).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Memory);
        assert!(error.to_string().contains("tokens of text, for which the plan was made, got "), "{error}");
    }

    /// A pipeline of the built-in model with a plan of this request, as it was typed.
    fn planned(draft: Recipe) -> Result<Pipeline, Error> {
        let (model, session) = (Model::built_in()?, SessionOptions::new(NonZeroUsize::MIN));
        let request = Request::new(draft, &model)?;
        let plan = Plan::new(&model, &request, &session, Budget::of_bytes(u64::MAX))?;
        Pipeline::open(&model, &Options { session, plan: Some(plan) })
    }

    fn draft(size: u32) -> Recipe {
        Recipe {
            prompt: "a red apple".into(),
            size: Some(PixelSize::new(size, size).unwrap()),
            seed: Some(1),
            steps: Some(2),
            ..Recipe::default()
        }
    }

    fn generate(pipeline: &mut Pipeline, draft: Recipe) -> Result<Output, Error> {
        let request = pipeline.request(draft)?;
        pipeline.generate(&request, |_| ControlFlow::Continue(()))
    }

    /// Whatever is larger than what was planned is refused before anything is run; what is not, is drawn.
    #[test]
    fn a_plan_guards_its_size() {
        let mut pipeline = planned(Recipe { guidance: Some(5.0.into()), ..draft(128) }).unwrap();
        let flat = |size| image::RgbImage::new(size, size);
        let wide = PixelSize::new(256, 64).unwrap();
        let parts = "a red apple AND a green pear".to_owned();
        for larger in [
            draft(256),
            Recipe { size: Some(wide), ..draft(128) },
            Recipe { prompt: parts, ..draft(128) },
            Recipe { init: Some(flat(128).into()), ..draft(128) },
        ] {
            let error = generate(&mut pipeline, larger).map(|_| ()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Memory, "{error}");
            assert!(error.to_string().contains("for which the plan was made, got "), "{error}");
        }
        for not_larger in [draft(128), draft(64), Recipe { guidance: Some(1.0.into()), ..draft(128) }] {
            generate(&mut pipeline, not_larger).unwrap();
        }
    }

    /// A run that has ended keeps none of its images: those of the next one are loaded beside what is open.
    #[test]
    fn images_of_a_run_are_given_back() {
        let draft = Recipe { init: Some(image::RgbImage::new(64, 64).into()), ..draft(64) };
        let mut pipeline = planned(draft.clone()).unwrap();
        let request = pipeline.request(draft).unwrap();
        let Source::Init(image) = &request.source else { panic!("{:?}", request.source) };
        let image = Arc::downgrade(image);
        let run = pipeline.begin(&request).unwrap();
        drop(request);
        assert!(image.strong_count() > 0);
        drop(run);
        assert_eq!(image.strong_count(), 0);
    }

    /// However a run ends, what its stages took is given back.
    #[test]
    fn what_is_broken_off_gives_back_its_memory() {
        let per_stage =
            SessionOptions { residency: Residency::PerStage, ..SessionOptions::new(NonZeroUsize::MIN) };
        let options = Options { session: per_stage, plan: None };
        let mut pipeline = Pipeline::open(&Model::built_in().unwrap(), &options).unwrap();
        let request = pipeline.request(draft(128)).unwrap();
        let cancelled = pipeline.generate(&request, |_| ControlFlow::Break(())).map(|_| ()).unwrap_err();
        assert_eq!(cancelled.kind(), ErrorKind::Cancelled);
        assert!(!pipeline.unet.is_open());
        pipeline.generate(&request, |_| ControlFlow::Continue(())).unwrap();
        assert!(!pipeline.unet.is_open());
        // One that fails in the middle.
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            pipeline.generate(&request, |_| panic!("a caller's"))
        }));
        assert!(panicked.is_err() && !pipeline.unet.is_open());
    }

    /// An image comes back from its latents, and they are those that a run starts from; what cannot be coded is refused.
    #[test]
    fn images_are_encoded_and_decoded() {
        let mut pipeline = Pipeline::open(&Model::built_in().unwrap(), &Options::default()).unwrap();
        let size = PixelSize::new(128, 64).unwrap();
        let image = RgbImage::from_fn(128, 64, |x, y| image::Rgb([2 * x as u8, 3 * y as u8, 128]));
        let latents = pipeline.encode_image(&image).unwrap();
        assert_eq!(latents.len(), pipeline.manifest().latents.shape(size).unwrap().len());
        let decoded = pipeline.decode_latents(&latents, size).unwrap();
        let error = |other: &RgbImage| -> f64 {
            let squares = image.iter().zip(other.iter()).map(|(a, b)| f64::from(a.abs_diff(*b)).powi(2));
            (squares.sum::<f64>() / image.len() as f64).sqrt()
        };
        // The gradient is steep for so small an autoencoder: 21 of 255. Without colours it would be twice that.
        assert!(error(&decoded) < 30.0, "{}", error(&decoded));
        assert!(error(&RgbImage::from_pixel(128, 64, image::Rgb([128; 3]))) > 40.0);
        // As a finished run decodes.
        let request = pipeline.request(draft(64)).unwrap();
        let end = pipeline.denoise(&request, |_| ControlFlow::Continue(())).unwrap();
        let output = pipeline.generate(&request, |_| ControlFlow::Continue(())).unwrap();
        assert_eq!(pipeline.decode_latents(&end, request.size()).unwrap(), output.image);

        for (error, kind) in [
            (pipeline.encode_image(&RgbImage::new(100, 64)).map(|_| ()), ErrorKind::Usage),
            (pipeline.encode_image(&RgbImage::new(0, 0)).map(|_| ()), ErrorKind::Usage),
            (pipeline.decode_latents(&latents[1..], size).map(|_| ()), ErrorKind::Usage),
            (pipeline.decode_latents(&[], size).map(|_| ()), ErrorKind::Usage),
        ] {
            let error = error.unwrap_err();
            assert_eq!(error.kind(), kind, "{error}");
        }
        // A plan covers what its request has.
        let mut planned = planned(draft(64)).unwrap();
        let small = PixelSize::new(64, 64).unwrap();
        planned.decode_latents(&end, small).unwrap();
        let (encoded, decoded) =
            (planned.encode_image(&RgbImage::new(64, 64)), planned.decode_latents(&latents, size));
        for error in [encoded.unwrap_err(), decoded.unwrap_err()] {
            assert_eq!(error.kind(), ErrorKind::Memory, "{error}");
        }
    }

    /// A process that has more than the budget that was stated is stopped, and the stage is named.
    #[test]
    #[cfg(target_os = "linux")]
    fn a_budget_that_is_exceeded_is_an_error() {
        let mut pipeline = planned(draft(128)).unwrap();
        pipeline.plan = pipeline.plan.take().map(|plan| plan.with_budget(1 << 20));
        let request = pipeline.request(draft(128)).unwrap();
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
