//! What the libraries for other languages share: an opened model, its memory plan, and one run at a time. It knows recipes, and nothing
//! of how a language passes them.

mod held;

use std::fs;
use std::io::{self, BufWriter, Write};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use image::RgbImage;

use self::held::Held;
use crate::engine::{self, Library, SessionOptions};
use crate::error::{Error, ErrorKind};
use crate::image_file::{OutputFormat, RecipeText, encode};
use crate::model::Model;
use crate::pipeline::{Options, Output, Pipeline, Run};
use crate::plan::{Budget, Plan};
use crate::provenance::{provenance, providers, shares};
use crate::recipe::parameters::{self, Addition};
use crate::recipe::{Receipt, Recipe};
use crate::recipe_file::{self, open_images};
use crate::request::Request;
#[cfg(feature = "python")]
use crate::tensor::{LatentShape, PixelSize};
use crate::whole_file::{follow, replace};

/// More threads than any one device has cores.
const MAX_THREADS: u32 = 1024;

/// How a model is opened.
pub(crate) struct Settings {
    /// Its files, and what is added to it.
    pub(crate) recipe: Recipe,
    /// The ONNX Runtime library, if one is named.
    pub(crate) library: Option<PathBuf>,
    /// One that the language's packages brought, used where nobody named another.
    pub(crate) installed: Option<PathBuf>,
    /// Execution providers; the CPU where none are named.
    pub(crate) provider: Option<String>,
    /// The folder in which providers keep what they compile.
    pub(crate) cache: Option<PathBuf>,
    /// The memory budget; without one what is free when a run is planned.
    pub(crate) budget: Option<Budget>,
    /// Threads of one operator; 0 is one for each core.
    pub(crate) threads: u32,
    /// What the language calls a setting.
    pub(crate) name: Name,
}

/// What a language calls a setting.
pub(crate) type Name = fn(&str) -> String;

/// Who is told what is not used, a line each.
pub(crate) type Note<'a> = &'a mut dyn FnMut(&str);

/// A model that is opened for a caller in another language, and the run there is of it.
pub(crate) struct Binding {
    model: Model,
    /// Which model it is, and what was added to it.
    recipe: Recipe,
    additions: Vec<Addition>,
    library: &'static Library,
    session: SessionOptions,
    budget: Option<Budget>,
    /// The last plan that was asked for.
    plan: Option<Plan>,
    held: Option<Held>,
    name: Name,
}

impl Binding {
    /// Opens a model. Its files are checked and mapped; what computes is opened by the first run.
    pub(crate) fn open(settings: Settings, note: Note) -> Result<Self, Error> {
        let Settings { recipe, library, installed, provider, cache, budget, threads, name } = settings;
        if recipe.of_model().to_json() != recipe.to_json() {
            let problem = "recipe: expected fields of a model, got one of an image";
            return Err(usage(problem).help("prompt, size and the like are in the recipe of each call"));
        }
        let mut session = Options::default().session;
        session.cache = cache;
        if let Some(provider) = provider {
            session.providers = provider.parse()?;
        }
        if threads > MAX_THREADS {
            return Err(usage(format!("threads: expected 0 to {MAX_THREADS}, got {threads}")));
        }
        if let Some(threads) = NonZeroUsize::new(threads as usize) {
            session.threads = threads;
        }
        let library = Library::load_or(library.as_deref(), installed.as_deref())?;
        let opened = recipe_file::open(recipe, &name, &mut |line| note(&line))?;
        let (model, recipe, additions) = (opened.model, opened.recipe, opened.additions);
        Ok(Self { model, recipe, additions, library, session, budget, plan: None, held: None, name })
    }

    /// Cancels what it runs, from any thread.
    pub(crate) fn cancel(&self) -> engine::Cancel {
        self.session.cancel.clone()
    }

    /// What a recipe asks of this model; its images are opened.
    pub(crate) fn request(&self, asked: Recipe, note: Note) -> Result<Request, Error> {
        let files = asked.of_model();
        if files.to_json() != Recipe::default().to_json() && !is_same_model(&files, &self.recipe) {
            let problem = "recipe: expected the model's files that the pipeline was opened with, got others";
            return Err(usage(problem).help("leave these fields out, or open another pipeline"));
        }
        let mut recipe = asked.with_model_of(&self.recipe);
        open_images(&mut recipe, &self.name, &mut |line| note(&line))?;
        Request::new(recipe.without_idle_controls(), &self.model)
    }

    /// Plans a run, by which later runs that are no larger are run; ends the run there is.
    pub(crate) fn plan(&mut self, request: &Request) -> Result<&Plan, Error> {
        // It is counted from what the process has without.
        self.held = None;
        engine::trim();
        let budget = self.budget.unwrap_or_else(Budget::of_this_machine);
        let plan = Plan::new(&self.model, request, &self.session, budget)?;
        Ok(self.plan.insert(plan))
    }

    /// Begins a run in place of the one there is, from a snapshot if there is one.
    pub(crate) fn begin(
        &mut self,
        request: &Request,
        snapshot: Option<&[u8]>,
        note: Note,
    ) -> Result<(), Error> {
        request.warnings(&self.model)?.lines(self.name).iter().for_each(|line| note(line));
        let held = self.held_for(request, note)?;
        held.begin(request, snapshot).inspect_err(|_| held.end())
    }

    /// What the run gives.
    pub(crate) fn run<T>(&mut self, call: impl for<'a> FnOnce(&mut Run<'a>) -> T) -> Result<T, Error> {
        self.held.as_mut().and_then(|held| held.with_run(call)).ok_or_else(no_run)
    }

    /// Ends a run whose steps are all done with its image; where steps are left, it stays as it is.
    pub(crate) fn finish(&mut self, note: Note) -> Result<Finished, Error> {
        let (request, is_done) = self.run(|run| (run.request().clone(), run.is_done()))?;
        let held = self.held.as_mut().ok_or_else(no_run)?;
        if !is_done {
            // Says so, and leaves the run alone.
            held.with_run(|run| run.final_latents().map(drop)).ok_or_else(no_run)??;
        }
        let output: Output = held.finish().ok_or_else(no_run)??;
        output.warnings().iter().for_each(|line| note(line));
        let contents = self.model.contents();
        let unet = contents.and_then(|contents| contents.files.get(&contents.components.unet.weights[0]));
        let model_sha256 = unet.map(|record| record.sha256.clone());
        let placed = |opened: &mut Pipeline| (providers(opened.placements()), shares(opened.placements()));
        let (provider, shares) = held.with_pipeline(placed).ok_or_else(no_run)?;
        let made = provenance(&output, &request, &self.model, model_sha256, self.library, provider, shares);
        let receipt = Receipt { recipe: request.recipe().with_images_named()?, provenance: Some(made) };
        let parameters = parameters::write(&receipt, &self.additions);
        Ok(Finished { image: output.image, parameters, receipt: receipt.to_json() })
    }

    /// Ends the run without.
    pub(crate) fn end(&mut self) {
        self.held.iter_mut().for_each(Held::end);
    }

    /// The latents of an image, and their shape, as [`Pipeline::encode_image`] gives them. Ends the run there is.
    #[cfg(feature = "python")]
    pub(crate) fn encode_image(
        &mut self,
        image: &RgbImage,
        note: Note,
    ) -> Result<(LatentShape, Vec<f32>), Error> {
        let size = PixelSize::new(image.width(), image.height())?;
        let asked = Recipe { init: Some(image.clone().into()), size: Some(size), ..Recipe::default() };
        let shape = self.model.manifest().latents.shape(size)?;
        let latents = self.with_pipeline_for(asked, note, |pipeline| pipeline.encode_image(image))?;
        Ok((shape, latents))
    }

    /// The size of the image of latents; [`ErrorKind::Usage`] for a shape that this model's do not have.
    #[cfg(feature = "python")]
    pub(crate) fn size_of(&self, shape: LatentShape) -> Result<PixelSize, Error> {
        let space = &self.model.manifest().latents;
        let LatentShape { channels, height_cells, width_cells } = shape;
        let px = |cells: usize| u32::try_from(cells).ok()?.checked_mul(space.factor_px);
        match (px(width_cells), px(height_cells)) {
            (Some(width_px), Some(height_px)) if channels == space.channels => {
                PixelSize::new(width_px, height_px)
            }
            _ => {
                let got = format!("{channels}, {height_cells}, {width_cells}");
                Err(usage(format!(
                    "latents: expected {} channels, then rows and columns of an image, got {got}",
                    space.channels
                )))
            }
        }
    }

    /// The image of latents of this size, as [`Pipeline::decode_latents`] gives it. Ends the run there is.
    #[cfg(feature = "python")]
    pub(crate) fn decode_latents(
        &mut self,
        latents: &[f32],
        size: PixelSize,
        note: Note,
    ) -> Result<RgbImage, Error> {
        if let Some(value) = latents.iter().find(|value| !value.is_finite()) {
            let problem = format!("latents: expected finite numbers, got {value}");
            return Err(Error::new(ErrorKind::Numeric, problem));
        }
        let asked = Recipe { size: Some(size), ..Recipe::default() };
        self.with_pipeline_for(asked, note, |pipeline| pipeline.decode_latents(latents, size))
    }

    /// What the pipeline gives that is planned for such a request.
    #[cfg(feature = "python")]
    fn with_pipeline_for<T>(
        &mut self,
        asked: Recipe,
        note: Note,
        call: impl FnOnce(&mut Pipeline) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let request = self.request(asked, note)?;
        self.held_for(&request, note)?.with_pipeline(call).ok_or_else(no_run)?
    }

    /// The pipeline for a request: the one there is, if it was planned for requests like it. Ends the run there is.
    fn held_for(&mut self, request: &Request, note: Note) -> Result<&mut Held, Error> {
        if let Some(held) = &mut self.held {
            held.end();
        }
        let covers =
            self.held.as_mut().and_then(|held| held.with_pipeline(|pipeline| pipeline.covers(request)));
        if covers == Some(true) {
            // A plan that covers the request has counted its images.
            request.load(u64::MAX)?.iter().for_each(|line| note(line));
        } else {
            self.held = None;
            engine::trim();
            let plan = match self.plan.as_ref().filter(|plan| plan.check(request).is_ok()) {
                Some(plan) => Some(plan.clone()),
                None => Plan::for_run(self.budget, &self.model, request, &self.session)?,
            };
            let room_bytes = if plan.is_some() { u64::MAX } else { Budget::of_this_machine().bytes() };
            request.load(room_bytes)?.iter().for_each(|line| note(line));
            let options = Options { session: self.session.clone(), plan };
            self.held = Some(Held::new(Pipeline::open(&self.model, &options)?));
        }
        self.held
            .as_mut()
            .ok_or_else(|| Error::new(ErrorKind::Internal, "expected an open pipeline, got none"))
    }
}

/// A finished image, and its receipt.
pub(crate) struct Finished {
    pub(crate) image: RgbImage,
    /// How A1111 would have written its settings.
    pub(crate) parameters: String,
    /// JSON.
    pub(crate) receipt: String,
}

impl Finished {
    /// Writes it with its receipt, in the format of the name: the file is there whole or not at all.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] for an extension of no format that is written; [`ErrorKind::Output`] for a folder or a device, for a
    /// receipt that is too long for the format, and where the system cannot write.
    pub(crate) fn write(&self, file: &Path) -> Result<(), Error> {
        let format = OutputFormat::of_path(file)?;
        let refuse = |problem: &str| {
            Error::new(ErrorKind::Output, format!("{}: {problem}", file.display())).in_file(file)
        };
        // A device would be replaced by a file.
        if fs::metadata(file).is_ok_and(|found| !found.is_file()) {
            return Err(refuse("expected a file, got a folder or a device"));
        }
        let Self { image, parameters, receipt } = self;
        let written = replace(&follow(file), |out| {
            let mut out = BufWriter::new(out);
            match encode(image, format, Some(RecipeText { parameters, json: receipt }), &mut out)? {
                Some(left_out) => {
                    Err(io::Error::other(format!("{left_out} is too long for this format; use PNG")))
                }
                None => out.flush(),
            }
        });
        written.map_err(|error| refuse("the image could not be written").source(error))
    }
}

/// A wrong use of the library.
pub(crate) fn usage(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Usage, message)
}

fn no_run() -> Error {
    usage("run: expected one that was begun, got none").help("begin or restore one first")
}

/// Whether recipes name the same files, whether or not they know what was in them.
fn is_same_model(one: &Recipe, other: &Recipe) -> bool {
    let names = |recipe: &Recipe| {
        let mut recipe = recipe.of_model();
        let Recipe { model, unet, vae, text_encoder, lora, embedding, control_model, .. } = &mut recipe;
        let single = model.iter_mut().chain(unet).chain(vae).chain(text_encoder).chain(embedding);
        let single = single.chain(lora.iter_mut().map(|lora| &mut lora.file));
        single
            .chain(control_model.iter_mut().map(|model| &mut model.file))
            .for_each(|file| file.sha256 = None);
        recipe.to_json()
    };
    names(one) == names(other)
}
