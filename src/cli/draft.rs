//! What is drawn, and how: the flags that `generate` and `plan` share, which become a draft and options.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use calotype::engine::SessionOptions;
use calotype::model::Model;
use calotype::noise::Rng;
use calotype::picture::{ImageFile, Mask};
use calotype::plan::Budget;
use calotype::request::{Draft, Variation};
use calotype::sampler::{Method, Sampling};
use calotype::schedule::ScheduleKind;
use calotype::tensor::PixelSize;
use calotype::{Error, ErrorKind};
use clap::{ValueEnum, value_parser};

use super::generate::without_mark;
use super::mention::{Folders, Mentioned};
use super::{Addition, Additions, Components, open_mentioned, provider};

/// The most pictures that one command draws.
const MAX_COUNT: i64 = 10_000;
/// More threads than any one device has cores.
const MAX_THREADS: i64 = 1024;
/// What `--mask` takes in place of a file.
const ALPHA: &str = "alpha";

#[derive(clap::Args)]
pub(super) struct Drawing {
    /// A bundle, a diffusers folder, an ONNX folder, or a single-file checkpoint; the built-in model when absent.
    #[arg(short, long, value_name = "PATH")]
    pub(super) model: Option<PathBuf>,
    /// Negative prompt.
    #[arg(short, long, value_name = "PROMPT")]
    negative: Option<String>,
    /// Disable prompt syntax: brackets, AND and BREAK are words.
    #[arg(long)]
    literal: bool,
    /// The image's size in pixels.
    #[arg(long, value_name = "WxH")]
    size: Option<String>,
    /// An init image: PNG, JPEG, WebP, GIF, BMP or TIFF.
    #[arg(long, value_name = "IMG")]
    init: Option<PathBuf>,
    /// Inpainting mask, of the init image's size: white areas are repainted. Where it has transparent areas, these are
    /// repainted instead. `alpha` takes the init image's own transparent areas.
    #[arg(long, value_name = "IMG|alpha")]
    mask: Option<PathBuf>,
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
    #[arg(long, value_name = "N", requires = "variation_strength")]
    variation_seed: Option<u64>,
    /// Strength of the variation, from 0 to 1.
    #[arg(long, value_name = "X", requires = "variation_seed")]
    variation_strength: Option<f64>,
    /// Number of images, with consecutive seeds.
    #[arg(long, value_name = "N", default_value = "1", value_parser = value_parser!(u16).range(1..=MAX_COUNT))]
    pub(super) count: u16,
    /// Memory limit of the process, as in `300MiB`; the available memory, less a reserve, when absent. CPU only.
    #[arg(long, value_name = "SIZE")]
    pub(super) memory: Option<Budget>,
    /// Number of threads per operator.
    #[arg(long, value_name = "N", value_parser = value_parser!(u16).range(1..=MAX_THREADS))]
    threads: Option<u16>,
    #[command(flatten)]
    provider: provider::Choice,
    #[command(flatten)]
    components: Components,
    #[command(flatten)]
    additions: Additions,
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

/// The images that a draft starts from, as they are recorded.
pub(super) struct Images {
    init: Option<ImageFile>,
    mask: Option<ImageFile>,
    mask_is_alpha: bool,
}

impl Images {
    /// The SHA-256 of the init image's file.
    pub(super) fn init_sha256(&self) -> Result<Option<String>, Error> {
        self.init.as_ref().map(ImageFile::sha256).transpose()
    }

    /// The SHA-256 of the mask's file, or `alpha`.
    pub(super) fn mask_sha256(&self) -> Result<Option<String>, Error> {
        if self.mask_is_alpha {
            return Ok(Some(ALPHA.into()));
        }
        self.mask.as_ref().map(ImageFile::sha256).transpose()
    }
}

impl Drawing {
    /// The draft, whose images have been looked at and not decoded.
    pub(super) fn draft(&self, prompt: String) -> Result<(Draft, Images), Error> {
        let init = self.init.as_deref().map(ImageFile::open).transpose()?;
        let mask_is_alpha = self.mask.as_deref() == Some(Path::new(ALPHA));
        let mask = self.mask.as_deref().filter(|_| !mask_is_alpha).map(ImageFile::open).transpose()?;
        let (sampler, schedule) = self.sampling()?;
        let variation = self.variation_seed.zip(self.variation_strength);
        let draft = Draft {
            prompt,
            negative: self.negative.as_deref().map(|text| without_mark(text).to_owned()),
            literal: self.literal,
            size: self.size.as_deref().map(str::parse::<PixelSize>).transpose()?,
            steps: self.steps,
            guidance: self.guidance.as_deref().map(str::parse).transpose()?,
            guidance_method: self.guidance_method.as_deref().map(str::parse).transpose()?,
            guidance_within: self.guidance_interval.as_deref().map(str::parse).transpose()?,
            thresholding: self.thresholding.as_deref().map(str::parse).transpose()?,
            sampler,
            schedule,
            seed: self.seed.and_then(|Seed(seed)| seed),
            rng: self.rng.unwrap_or_default(),
            variation: variation.map(|(seed, strength)| Variation { seed, strength }),
            init: init.clone().map(Into::into),
            mask: if mask_is_alpha { Some(Mask::InitAlpha) } else { mask.clone().map(Into::into) },
            keep_outside: self.keep_outside.map(|switch| matches!(switch, Switch::On)),
            strength: self.strength,
            image_guidance: self.image_guidance,
            noise_level: self.noise_level,
        };
        Ok((draft, Images { init, mask, mask_is_alpha }))
    }

    /// The model, at `path` or as `--model` names it, with what is put in and added; and a record of what was added.
    pub(super) fn open_model(
        &self,
        path: Option<&PathBuf>,
        draft: &Draft,
    ) -> Result<(Model, Vec<Addition>), Error> {
        let path = path.or(self.model.as_ref());
        let Additions { lora, embedding } = &self.additions;
        let mentioned = Mentioned::find(draft, &self.folders, &self.additions)?;
        open_mentioned(path, &self.components, self.clip_skip, lora, embedding, &mentioned)
    }

    /// How sessions are opened.
    pub(super) fn session(&self) -> Result<SessionOptions, Error> {
        let mut session = self.provider.options()?;
        if let Some(threads) = self.threads.map(usize::from).and_then(NonZeroUsize::new) {
            session.threads = threads;
        }
        Ok(session)
    }

    /// The budget that was given, or what is free.
    pub(super) fn budget(&self) -> Budget {
        self.memory.unwrap_or_else(Budget::of_this_machine)
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
