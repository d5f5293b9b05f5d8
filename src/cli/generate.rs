//! `calotype generate`: a prompt becomes pictures in files.

use std::io::{self, IsTerminal, Read};
use std::num::NonZeroUsize;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use calotype::engine::SessionOptions;
use calotype::memory;
use calotype::model::Model;
use calotype::noise::Rng;
use calotype::picture;
use calotype::pipeline::{Options, Picture, Pipeline, Progress};
use calotype::plan::{Budget, Plan};
use calotype::request::{Draft, Request, Variation};
use calotype::sampler::{Method, Sampling};
use calotype::schedule::ScheduleKind;
use calotype::tensor::PixelSize;
use calotype::tokenizer::Cut;
use calotype::{Error, ErrorKind};
use clap::value_parser;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::json;
use sha2::{Digest, Sha256};

use super::output::Destination;
use super::receipt::Receipt;
use super::{Additions, Common, Components, Report, open_model};
use super::{provider, samplers};

/// What is asked for in place of a name.
const HELP: &str = "help";
/// The longest prompt that is read from standard input.
const MAX_PROMPT_BYTES: u64 = 1 << 20;
/// The most pictures that one command draws.
const MAX_COUNT: i64 = 10_000;
/// More threads than any one device has cores.
const MAX_THREADS: i64 = 1024;

#[derive(clap::Args)]
pub(super) struct Flags {
    /// What to draw; `-` reads it from standard input. `(words:1.2)` weigh more, `[words]` less.
    #[arg(required_unless_present_any = ["sampler", "schedule"])]
    prompt: Option<String>,
    /// A bundle, a diffusers folder, an ONNX folder, or a single-file checkpoint; the built-in model when absent.
    #[arg(short, long, value_name = "PATH")]
    model: Option<PathBuf>,
    /// What to steer away from.
    #[arg(short, long, value_name = "PROMPT")]
    negative: Option<String>,
    /// Take brackets, AND and BREAK in prompts for what they are.
    #[arg(long)]
    literal: bool,
    /// Where to write the picture.
    #[arg(short, long, value_name = "OUT.png", default_value = "calotype.png")]
    output: PathBuf,
    /// Its size in pixels.
    #[arg(long, value_name = "WxH")]
    size: Option<String>,
    /// A picture to draw from, as PNG or JPEG.
    #[arg(long, value_name = "IMG")]
    init: Option<PathBuf>,
    /// What of it is drawn anew: where this picture is white.
    #[arg(long, value_name = "IMG")]
    mask: Option<PathBuf>,
    /// How far it goes back to noise, from 0 to 1.
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    strength: Option<f64>,
    /// How strongly it pulls, in models that edit pictures.
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    image_guidance: Option<f64>,
    /// How much noise is put on it, in models that enlarge pictures.
    #[arg(long, value_name = "N")]
    noise_level: Option<usize>,
    /// How many denoising steps.
    #[arg(long, value_name = "N")]
    steps: Option<usize>,
    /// How strongly the prompt pulls; 1 is no guidance. `7x5,1` is 7 for five steps, then 1.
    #[arg(long, value_name = "X", allow_hyphen_values = true)]
    guidance: Option<String>,
    /// How guidance works: cfg, perpendicular, projected, zero-star, mimic or residual, with settings, as in
    /// `cfg:rescale=0.7`.
    #[arg(long, value_name = "METHOD")]
    guidance_method: Option<String>,
    /// Where there is guidance: at noise levels, as in `0.28..5.42`, or in a part of the steps, as in `10%..60%`.
    #[arg(long, value_name = "FROM..TO")]
    guidance_interval: Option<String>,
    /// Keep clean latents in range, in models that work on pixels: static or dynamic, with settings.
    #[arg(long, value_name = "KIND")]
    thresholding: Option<String>,
    /// The sampling method, with settings, as in `ddim:eta=0.5`; `help` lists all.
    #[arg(long, value_name = "S")]
    sampler: Option<String>,
    /// How the noise levels are chosen, with settings, as in `karras:rho=5`; `help` lists all.
    #[arg(long, value_name = "K")]
    schedule: Option<String>,
    /// The noise levels themselves, falling, as in `14.6,7,3,1,0`.
    #[arg(long, value_name = "LIST", conflicts_with = "schedule", allow_hyphen_values = true)]
    sigmas: Option<String>,
    /// The seed of the noise; random when absent, and always reported.
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Whose noise: torch, philox (NVIDIA GPUs; A1111's GPU noise) or numpy.
    #[arg(long, value_name = "GENERATOR")]
    rng: Option<Rng>,
    /// The seed of noise that is mixed in, for small changes of a picture.
    #[arg(long, value_name = "N", requires = "variation_strength")]
    variation_seed: Option<u64>,
    /// How much of that noise, from 0 to 1.
    #[arg(long, value_name = "X", requires = "variation_seed", allow_negative_numbers = true)]
    variation_strength: Option<f64>,
    /// How many pictures, with consecutive seeds.
    #[arg(long, value_name = "N", default_value = "1", value_parser = value_parser!(u16).range(1..=MAX_COUNT))]
    count: u16,
    /// The most memory that the process may take, as in `300MiB`; what is free, less a reserve, when absent. For the
    /// processor alone.
    #[arg(long, value_name = "SIZE")]
    memory: Option<Budget>,
    /// How many threads work on one operator.
    #[arg(long, value_name = "N", value_parser = value_parser!(u16).range(1..=MAX_THREADS))]
    threads: Option<u16>,
    #[command(flatten)]
    provider: provider::Choice,
    #[command(flatten)]
    components: Components,
    #[command(flatten)]
    additions: Additions,
    #[command(flatten)]
    pub(super) common: Common,
}

pub(super) fn run(flags: &Flags) -> Result<Report, Error> {
    match (flags.sampler.as_deref(), flags.schedule.as_deref()) {
        (Some(HELP), _) => return Ok(samplers::report()),
        (_, Some(HELP)) => return Ok(samplers::report_schedules()),
        _ => {}
    }
    let started = Instant::now();
    let init = flags.init.as_deref().map(|path| open_picture(path, picture::decode)).transpose()?;
    let mask = flags.mask.as_deref().map(|path| open_picture(path, picture::decode_mask)).transpose()?;
    let (init, init_sha256) = init.unzip();
    let (mask, mask_sha256) = mask.unzip();
    let (sampler, schedule) = sampling(flags)?;
    let variation = flags.variation_seed.zip(flags.variation_strength);
    let draft = Draft {
        prompt: match flags.prompt.as_deref() {
            Some("-") => prompt_from_stdin()?,
            Some(prompt) => prompt.to_owned(),
            None => {
                let expected = "PROMPT: expected what to draw, got none";
                return Err(Error::new(ErrorKind::Usage, expected).help("an empty one is \"\""));
            }
        },
        negative: flags.negative.clone(),
        literal: flags.literal,
        size: flags.size.as_deref().map(str::parse::<PixelSize>).transpose()?,
        steps: flags.steps,
        guidance: flags.guidance.as_deref().map(str::parse).transpose()?,
        guidance_method: flags.guidance_method.as_deref().map(str::parse).transpose()?,
        guidance_within: flags.guidance_interval.as_deref().map(str::parse).transpose()?,
        thresholding: flags.thresholding.as_deref().map(str::parse).transpose()?,
        sampler,
        schedule,
        seed: flags.seed,
        rng: flags.rng.unwrap_or_default(),
        variation: variation.map(|(seed, strength)| Variation { seed, strength }),
        init,
        mask,
        strength: flags.strength,
        image_guidance: flags.image_guidance,
        noise_level: flags.noise_level,
    };
    let destinations = destinations(&flags.output, flags.count)?;
    let (model, additions) = open_model(
        flags.model.as_ref(),
        &flags.components,
        &flags.additions.lora,
        &flags.additions.embedding,
    )?;
    let first = Request::new(draft, model.manifest())?;
    let Some(last_seed) = first.seed().checked_add(u64::from(flags.count) - 1) else {
        return Err(Error::new(
            ErrorKind::Usage,
            format!("seed: expected room for {} consecutive seeds, got {}", flags.count, first.seed()),
        ));
    };
    // The first seed may be the last that the generator takes.
    first.rng().source(last_seed)?;
    let stop = stop_on_interrupt()?;
    let library = flags.common.library()?;
    let mut session = flags.provider.options()?;
    if let Some(threads) = flags.threads.map(usize::from).and_then(NonZeroUsize::new) {
        session.threads = threads;
    }
    let options = Options { plan: plan(flags.memory, &model, &first, &session)?, session };
    let mut pipeline = Pipeline::open(&model, &options)?;
    let opened = started.elapsed();
    pipeline.placements().for_each(provider::report);
    let mut placed = pipeline.placements().count();

    let (mut text, mut pictures) = (String::new(), Vec::new());
    for (index, destination) in destinations.iter().enumerate() {
        let request = first.with_seed(first.seed() + index as u64);
        let bar = progress_bar(request.steps());
        let picture = pipeline.generate(&request, |Progress { done, .. }| {
            bar.set_position(done as u64);
            if stop.load(Ordering::Relaxed) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        bar.finish_and_clear();
        let picture = picture?;
        // A picture whose last step was done when Ctrl-C came is not wanted either.
        if stop.load(Ordering::Relaxed) {
            return Err(Error::new(ErrorKind::Cancelled, "stopped before the picture was written"));
        }
        if pipeline.placements().count() > placed {
            // The first picture that is drawn from opened it.
            let vae_encoder = pipeline.placements().filter(|placement| placement.component == "vae_encoder");
            vae_encoder.for_each(provider::report);
            placed = pipeline.placements().count();
        }
        let provider = provider::summary(pipeline.placements());
        let receipt =
            Receipt::new(&request, &model, &additions, library, provider, &init_sha256, &mask_sha256);
        report_cut(&picture);
        destination.write(&picture.image, &receipt)?;
        text += &format!("{} (seed {})\n", destination.path().display(), request.seed());
        pictures.push(json!({
            "file": destination.path(),
            "cut_prompt": picture.cut_prompt.as_ref().map(|cut| &cut.text),
            "cut_negative": picture.cut_negative.as_ref().map(|cut| &cut.text),
            "seconds": {
                "text_encoder": seconds(picture.times.text_encoder),
                "vae_encoder": seconds(picture.times.vae_encoder),
                "unet": seconds(picture.times.unet),
                "denoising": seconds(picture.times.denoising),
                "vae_decoder": seconds(picture.times.vae_decoder),
            },
            "receipt": receipt,
        }));
    }
    let json = json!({
        "pictures": pictures,
        "placements": pipeline.placements().map(provider::json).collect::<Vec<_>>(),
        "seconds": { "open": seconds(opened), "all": seconds(started.elapsed()) },
        "memory": {
            "budget_bytes": flags.memory.map(Budget::bytes),
            "planned_bytes": options.plan.as_ref().map(|plan| plan.peak_bytes),
            "peak_bytes": memory::peak_bytes(),
        },
    });
    Ok(Report { text, json })
}

/// The method and the schedule that were typed; a method's name may end in its schedule's.
fn sampling(flags: &Flags) -> Result<(Option<Method>, Option<ScheduleKind>), Error> {
    let sampling = flags.sampler.as_deref().map(str::parse::<Sampling>).transpose()?;
    let (method, of_name) = sampling.map(|Sampling { method, schedule }| (method, schedule)).unzip();
    let of_name = of_name.flatten();
    let typed = match (&flags.schedule, &flags.sigmas) {
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

/// The plan within a budget; where nobody gave one, within what is free, if it can be made.
fn plan(
    budget: Option<Budget>,
    model: &Model,
    request: &Request,
    options: &SessionOptions,
) -> Result<Option<Plan>, Error> {
    let is_cpu = model.parts().all(|part| options.providers.is_cpu(part.name()));
    if budget.is_none() && !is_cpu {
        return Ok(None);
    }
    match Plan::new(model, request, options, budget.unwrap_or_else(Budget::of_this_machine)) {
        Ok(plan) => Ok(Some(plan)),
        // Nobody asked for a promise.
        Err(error) if budget.is_none() && error.kind() == ErrorKind::Model => {
            tracing::info!(%error, "no plan of memory");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// One file per picture: the name as given, or with a number before its extension.
fn destinations(output: &Path, count: u16) -> Result<Vec<Destination>, Error> {
    // Also where numbers follow: a folder is refused by the name that was typed.
    let typed = Destination::open(output.to_owned())?;
    if count == 1 {
        return Ok(vec![typed]);
    }
    let digits = count.to_string().len();
    (1..=count)
        .map(|number| {
            let mut name = output.file_stem().unwrap_or_default().to_owned();
            name.push(format!("-{number:0digits$}"));
            if let Some(extension) = output.extension() {
                name.push(".");
                name.push(extension);
            }
            Destination::open(output.with_file_name(name))
        })
        .collect()
}

/// A picture to draw from, and the SHA-256 of its file.
fn open_picture<T>(
    path: &Path,
    decode: impl Fn(&str, &[u8]) -> Result<T, Error>,
) -> Result<(T, String), Error> {
    let bytes = picture::read(path)?;
    let picture = decode(&path.display().to_string(), &bytes)?;
    Ok((picture, format!("{:x}", Sha256::digest(&bytes))))
}

fn prompt_from_stdin() -> Result<String, Error> {
    let mut bytes = Vec::new();
    let read = io::stdin().take(MAX_PROMPT_BYTES + 1).read_to_end(&mut bytes);
    let read = read.map_err(|error| Error::new(ErrorKind::Input, "standard input").source(error))?;
    if read as u64 > MAX_PROMPT_BYTES {
        return Err(Error::new(
            ErrorKind::Input,
            format!("standard input: expected a prompt of at most {MAX_PROMPT_BYTES} bytes, got more"),
        ));
    }
    let text = String::from_utf8(bytes).map_err(|error| {
        Error::new(ErrorKind::Input, "standard input: expected a prompt in UTF-8").source(error.utf8_error())
    })?;
    Ok(text.trim_end_matches(['\r', '\n']).to_owned())
}

/// Raised by the first Ctrl-C, which the denoising loop then obeys.
fn stop_on_interrupt() -> Result<&'static AtomicBool, Error> {
    static STOP: AtomicBool = AtomicBool::new(false);
    ctrlc::set_handler(|| STOP.store(true, Ordering::Relaxed))
        .map_err(|error| Error::new(ErrorKind::Internal, "interrupt handler").source(error))?;
    Ok(&STOP)
}

fn progress_bar(steps: usize) -> ProgressBar {
    let target =
        if io::stderr().is_terminal() { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    let style = ProgressStyle::with_template("drawing {bar:30} {pos}/{len} steps, {eta} left")
        .expect("the template is right");
    ProgressBar::with_draw_target(Some(steps as u64), target).with_style(style)
}

fn report_cut(picture: &Picture) {
    for (which, cut) in [("prompt", &picture.cut_prompt), ("negative prompt", &picture.cut_negative)] {
        if let Some(Cut { place_bytes, text }) = cut {
            eprintln!(
                "calotype: {which}: longer than the model reads; not used, from byte {place_bytes} on: {text:?}"
            );
        }
    }
}

fn seconds(duration: Duration) -> f64 {
    duration.as_secs_f64()
}
