//! What is drawn, and how: the flags that `generate` and `plan` share, which become a recipe and options.

use std::path::{Path, PathBuf};

use calotype::image_file::Mask;
use calotype::model::Model;
use calotype::noise::Rng;
use calotype::plan::Budget;
use calotype::recipe::parameters::Addition;
use calotype::recipe::{Image, NamedFile, Recipe};
use calotype::recipe_file::open_images;
use calotype::sampler::{Method, Sampling};
use calotype::schedule::ScheduleKind;
use calotype::tensor::PixelSize;
use calotype::{Error, ErrorKind};
use clap::{ValueEnum, value_parser};

use super::control::Control;
use super::from::{Origin, STDIN};
use super::mention::{Folders, Mentioned};
use super::open::{Additions, Components, open};
use super::preview::PreviewDecoder;
use super::session::Session;
use super::{flag, say, without_bom};

/// The most images that one command draws.
const MAX_COUNT: i64 = 10_000;
/// What `--mask` takes in place of a file.
const ALPHA: &str = "alpha";

#[derive(clap::Args, Default)]
pub(super) struct Drawing {
    /// Take all settings that no flag gives from the receipt of an image (PNG, JPEG, WebP) or a JSON file; `-` reads standard input.
    /// Also reads the `parameters` text of A1111's web UI and of programs that write the same, and reports what it cannot use.
    #[arg(long, value_name = "IMAGE|JSON")]
    pub(super) from: Option<PathBuf>,
    /// A bundle, a diffusers folder, an ONNX folder, or a single-file checkpoint; the built-in model when absent.
    #[arg(short, long, value_name = "PATH")]
    pub(super) model: Option<PathBuf>,
    /// Negative prompt.
    #[arg(short, long, value_name = "PROMPT")]
    negative: Option<String>,
    /// Disable prompt syntax: brackets, AND and BREAK are words.
    #[arg(long, value_name = "true|false", num_args = 0..=1, require_equals = true, default_missing_value = "true", hide_possible_values = true)]
    literal: Option<bool>,
    /// The image's size in pixels.
    #[arg(long, value_name = "WxH")]
    size: Option<String>,
    /// A second pass at a larger size (A1111's Hires fix): the image is enlarged by this factor, and generated again from there. As in
    /// `2x:strength=0.5:upscaler=pixel`: the denoising strength (0.7 when absent), and the upscaler: latent (the default), or
    /// pixel, which preserves more of the image at low strengths.
    #[arg(long, value_name = "SCALE")]
    hires: Option<String>,
    /// An init image: PNG, JPEG, WebP, GIF, BMP or TIFF.
    #[arg(long, value_name = "IMG")]
    pub(super) init: Option<PathBuf>,
    /// How an init image of other proportions than the size is resized, and its mask with it: crop, pad (repeats the edges) or
    /// stretch (the default).
    #[arg(long, value_name = "HOW")]
    resize: Option<String>,
    /// Inpainting mask, of the init image's size: white areas are repainted. If it has transparency, transparent areas
    /// are repainted instead. `alpha` takes the init image's own transparent areas.
    #[arg(long, value_name = "IMG|alpha")]
    pub(super) mask: Option<PathBuf>,
    /// Extend the init image (outpainting), as in `left=64,top=32` (also right, bottom): what is added is painted, and blended with
    /// the image over a seam of `feather` pixels within it (two latent cells when absent).
    #[arg(long, value_name = "SIDES")]
    extend: Option<String>,
    /// Fit a mask of another size to the init image: stretch or crop.
    #[arg(long, value_name = "HOW")]
    mask_fit: Option<String>,
    /// Repaint the black areas of the mask instead of the white ones.
    #[arg(long, value_name = "on|off", num_args = 0..=1, require_equals = true, default_missing_value = "on", hide_possible_values = true)]
    mask_invert: Option<Switch>,
    /// Grow the white areas of the mask by N pixels of the finished image in each direction; a negative number shrinks them.
    #[arg(long, value_name = "PX", allow_negative_numbers = true)]
    mask_grow: Option<i32>,
    /// Blur the mask: standard deviation of a Gaussian filter, in pixels of the finished image.
    #[arg(long, value_name = "PX")]
    mask_blur: Option<f64>,
    /// Inpaint only the masked region ("only masked") with PADDING pixels around it (32 when absent): the region is scaled to the
    /// size, repainted, scaled back and pasted. The finished image has the init image's size; the mask is blurred by 4 pixels by
    /// default.
    #[arg(long, value_name = "PADDING", num_args = 0..=1, require_equals = true, default_missing_value = "32")]
    mask_only: Option<u32>,
    /// Take the mask's grey values as denoising strengths (differential diffusion).
    #[arg(long, value_name = "on|off", num_args = 0..=1, require_equals = true, default_missing_value = "on", hide_possible_values = true)]
    soft_mask: Option<Switch>,
    /// Whether pixels outside of the mask stay as they are in the init image; `off` takes all pixels from the VAE.
    #[arg(long, value_name = "on|off", hide_possible_values = true)]
    keep_outside: Option<Switch>,
    /// Denoising strength, from 0 to 1: how much of the init image is replaced by noise.
    #[arg(long, value_name = "X")]
    strength: Option<f64>,
    /// Image guidance scale (InstructPix2Pix), in models that edit images.
    #[arg(long, value_name = "X")]
    image_guidance: Option<f64>,
    /// How much noise is added to the init image, in models that upscale images.
    #[arg(long, value_name = "N")]
    noise_level: Option<usize>,
    /// Number of denoising steps.
    #[arg(long, value_name = "N")]
    steps: Option<usize>,
    /// End after N of the steps: the image is the model's estimate of the clean image at that step.
    #[arg(long, value_name = "N")]
    stop_after: Option<usize>,
    /// Guidance scale (CFG); 1 is no guidance. `7x5,1` is 7 for five steps, then 1.
    #[arg(long, value_name = "X")]
    guidance: Option<String>,
    /// Guidance method: cfg, perpendicular, projected, zero-star, mimic or residual, with settings, as in
    /// `cfg:rescale=0.7`.
    #[arg(long, value_name = "METHOD")]
    guidance_method: Option<String>,
    /// Limit guidance to a range of sigmas, as in `0.28..5.42`, or of steps, as in `10%..60%`.
    #[arg(long, value_name = "FROM..TO")]
    guidance_interval: Option<String>,
    /// Thresholding of the clean latents, for models that work on pixels: static or dynamic, with settings.
    #[arg(long, value_name = "KIND")]
    thresholding: Option<String>,
    /// The sampling method, with settings, as in `ddim:eta=0.5`; `help` lists all.
    #[arg(long, value_name = "S")]
    pub(super) sampler: Option<String>,
    /// The noise schedule, with settings, as in `karras:rho=5`; `help` lists all.
    #[arg(long, value_name = "K")]
    pub(super) schedule: Option<String>,
    /// A list of falling sigmas instead of a schedule, as in `14.6,7,3,1,0`.
    #[arg(long, value_name = "LIST", conflicts_with = "schedule")]
    sigmas: Option<String>,
    /// Take the text encoder's states of the Nth layer from the end, as A1111's `Clip skip` counts: 1 is the last, which is
    /// Stable Diffusion 1's and 2's own, 2 is Stable Diffusion XL's own. diffusers' clip_skip is N-1, for XL N-2.
    #[arg(long, value_name = "N")]
    clip_skip: Option<usize>,
    /// The seed of the noise; random when absent or -1, and always reported.
    #[arg(long, value_name = "N", value_parser = seed)]
    seed: Option<Seed>,
    /// Random generator to reproduce: torch, philox (NVIDIA GPUs; A1111's GPU noise) or numpy.
    #[arg(long, value_name = "GENERATOR")]
    rng: Option<Rng>,
    /// Seed of noise that is mixed in, for small variations of an image.
    #[arg(long, value_name = "N")]
    variation_seed: Option<u64>,
    /// Strength of the variation, from 0 to 1.
    #[arg(long, value_name = "X")]
    variation_strength: Option<f64>,
    /// Number of images, with consecutive seeds.
    #[arg(long, value_name = "N", default_value = "1", value_parser = value_parser!(u16).range(1..=MAX_COUNT))]
    pub(super) count: u16,
    #[command(flatten)]
    pub(super) session: Session,
    #[command(flatten)]
    pub(super) preview_decoder: PreviewDecoder,
    #[command(flatten)]
    pub(super) components: Components,
    #[command(flatten)]
    pub(super) additions: Additions,
    #[command(flatten)]
    pub(super) control: Control,
    #[command(flatten)]
    folders: Folders,
}

/// A seed as typed; none for -1, which is random.
#[derive(Clone, Copy)]
struct Seed(Option<u64>);

fn seed(typed: &str) -> Result<Seed, String> {
    if typed == "-1" {
        return Ok(Seed(None));
    }
    let number = typed.parse().map_err(|_| format!("expected 0 to {}, or -1 for a random one", u64::MAX));
    number.map(|seed| Seed(Some(seed)))
}

#[derive(Clone, Copy, ValueEnum)]
pub(super) enum Switch {
    On,
    Off,
}

impl Drawing {
    /// The recipe that the flags, and what [`Self::from`] names, make; `prompt` and `model` as they were typed elsewhere.
    /// Its images have been looked at and not decoded.
    pub(super) fn recipe(
        &self,
        prompt: Option<String>,
        model: Option<&PathBuf>,
    ) -> Result<(Recipe, Origin), Error> {
        let from = self.from.as_deref().map(Origin::read).transpose()?.unwrap_or_default();
        let recipe = self.recipe_over(&from, prompt, model)?;
        Ok((recipe, from))
    }

    /// The recipe that the flags make of another one, as [`Self::recipe`].
    pub(super) fn recipe_over(
        &self,
        from: &Origin,
        prompt: Option<String>,
        model: Option<&PathBuf>,
    ) -> Result<Recipe, Error> {
        let mut recipe = from.recipe().clone();
        let (sampler, schedule) = self.sampling()?;
        fn set<T>(place: &mut Option<T>, typed: Option<T>) {
            if typed.is_some() {
                *place = typed;
            }
        }
        fn parse<T: std::str::FromStr<Err = Error>>(typed: &Option<String>) -> Result<Option<T>, Error> {
            typed.as_deref().map(str::parse).transpose()
        }
        if let Some(prompt) = prompt {
            recipe.prompt = prompt;
        }
        recipe.literal = self.literal.unwrap_or(recipe.literal);
        if let Some(Seed(seed)) = self.seed {
            recipe.seed = seed;
        }
        set(&mut recipe.negative, self.negative.as_deref().map(|text| without_bom(text).to_owned()));
        set(&mut recipe.model, model.or(self.model.as_ref()).cloned().map(NamedFile::from));
        set(&mut recipe.clip_skip, self.clip_skip);
        set(&mut recipe.size, parse::<PixelSize>(&self.size)?);
        set(&mut recipe.hires, parse(&self.hires)?);
        set(&mut recipe.steps, self.steps);
        set(&mut recipe.stop_after, self.stop_after);
        set(&mut recipe.guidance, parse(&self.guidance)?);
        set(&mut recipe.guidance_method, parse(&self.guidance_method)?);
        set(&mut recipe.guidance_interval, parse(&self.guidance_interval)?);
        set(&mut recipe.thresholding, parse(&self.thresholding)?);
        set(&mut recipe.sampler, sampler);
        set(&mut recipe.schedule, schedule);
        set(&mut recipe.rng, self.rng);
        set(&mut recipe.variation_seed, self.variation_seed);
        set(&mut recipe.variation_strength, self.variation_strength);
        let is_on = |switch: &Option<Switch>| switch.map(|switch| matches!(switch, Switch::On));
        set(&mut recipe.keep_outside, is_on(&self.keep_outside));
        set(&mut recipe.resize, parse(&self.resize)?);
        set(&mut recipe.extend, parse(&self.extend)?);
        set(&mut recipe.mask_fit, parse(&self.mask_fit)?);
        set(&mut recipe.mask_invert, is_on(&self.mask_invert));
        set(&mut recipe.mask_grow, self.mask_grow);
        set(&mut recipe.mask_blur, self.mask_blur);
        set(&mut recipe.mask_only, self.mask_only);
        set(&mut recipe.soft_mask, is_on(&self.soft_mask));
        set(&mut recipe.strength, self.strength);
        set(&mut recipe.image_guidance, self.image_guidance);
        set(&mut recipe.noise_level, self.noise_level);
        set(&mut recipe.init, self.init.as_ref().map(|path| Image::Named(path.clone().into())));
        let mask = |path: &PathBuf| match path == Path::new(ALPHA) {
            true => Image::Given(Mask::InitAlpha),
            false => Image::Named(path.clone().into()),
        };
        set(&mut recipe.mask, self.mask.as_ref().map(mask));
        self.components.apply(&mut recipe);
        self.additions.apply(&mut recipe)?;
        self.control.apply(&mut recipe)?;
        from.check(&recipe)?;
        open_images(&mut recipe, &flag, &mut |line| say(line))?;
        Ok(recipe)
    }

    /// Refuses what a file of recipes has in each line.
    pub(super) fn check_batch(&self) -> Result<(), Error> {
        self.preview_decoder.expect_none()?;
        let typed = match (&self.from, self.count) {
            (Some(_), _) => "--from",
            (None, 2..) => "--count",
            (None, _) => return Ok(()),
        };
        let message = format!("{typed}: expected one line in FILE for each image, got {typed}");
        Err(Error::new(ErrorKind::Usage, message))
    }

    /// Refuses what measurements have a flag of their own for.
    pub(super) fn check_bench(&self) -> Result<(), Error> {
        if self.count > 1 {
            return Err(Error::new(
                ErrorKind::Usage,
                "--count: expected --runs for several images, got --count",
            ));
        }
        Ok(())
    }

    /// Takes this seed, whatever was typed.
    pub(super) fn fix_seed(&mut self, seed: u64) {
        self.seed = Some(Seed(Some(seed)));
    }

    /// Whether there is a recipe whose prompt can be taken.
    pub(super) fn has_origin(&self) -> bool {
        self.from.is_some()
    }

    /// Whether that is read from standard input.
    pub(super) fn reads_stdin(&self) -> bool {
        self.from.as_deref() == Some(Path::new(STDIN))
    }

    /// The model of a recipe; the recipe with what its prompts mention; and the small files that were added.
    pub(super) fn open_model(&self, recipe: Recipe) -> Result<(Model, Recipe, Vec<Addition>), Error> {
        let mentioned = self.mentioned(&recipe)?;
        let (mut model, recipe, additions) = open(recipe, &mentioned, &self.session)?;
        self.preview_decoder.give_to(&mut model)?;
        Ok((model, recipe, additions))
    }

    /// What the prompts of a recipe mention.
    pub(super) fn mentioned(&self, recipe: &Recipe) -> Result<Mentioned, Error> {
        Mentioned::find(recipe, &self.folders)
    }

    /// The budget that was given, or what is free.
    pub(super) fn budget(&self) -> Budget {
        self.session.memory.unwrap_or_else(Budget::of_this_machine)
    }

    /// The method and the schedule that were typed; a method's name may end in its schedule's.
    fn sampling(&self) -> Result<(Option<Method>, Option<ScheduleKind>), Error> {
        let sampling = self.sampler.as_deref().map(str::parse::<Sampling>).transpose()?;
        let (method, of_name) = sampling.map(|Sampling { method, schedule }| (method, schedule)).unzip();
        let of_name = of_name.flatten();
        let typed = match (&self.schedule, &self.sigmas) {
            // A1111's name for the one that the method goes with.
            (Some(kind), _) if kind.eq_ignore_ascii_case("automatic") => None,
            (Some(kind), _) => Some(kind.parse::<ScheduleKind>()?),
            (None, Some(levels)) => Some(ScheduleKind::listed(levels)?),
            (None, None) => None,
        };
        match (&of_name, &typed) {
            (Some(one), Some(other)) if one != other => Err(Error::new(
                ErrorKind::Usage,
                format!("schedule: expected one, got {one} with the sampler and {other}"),
            )),
            _ => Ok((method, typed.or(of_name))),
        }
    }
}
