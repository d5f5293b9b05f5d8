//! `calotype bench`: how long each part of an image takes on this machine, as a table to share and as JSON to compare with.

mod energy;
mod table;

use std::num::NonZeroU16;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use calotype::certify;
use calotype::engine::{SessionOptions, cpu_model};
use calotype::memory;
use calotype::pipeline::Times;
use calotype::plan::{Budget, Plan};
use calotype::provenance::providers;
use calotype::request::Request;
use calotype::{Error, ErrorKind};
use serde::{Deserialize, Serialize};
use serde_json::json;

use self::energy::{CLASSES, Meter};
use super::drawing::Drawing;
use super::images::Opened;
use super::{Common, Report, say};

const PROMPT: &str = "a red apple on a blue background";
/// What is drawn where no steps are given; models that take fewer take theirs.
const STEPS: usize = 5;
const SEED: u64 = 1;
/// The component whose providers the machine's peak is measured on: nearly all of the work is its.
const UNET: &str = "unet";

#[derive(clap::Args)]
pub(super) struct Flags {
    /// A bundle, a diffusers folder, an ONNX folder, or a single-file checkpoint; the built-in model when absent.
    #[arg(value_name = "MODEL", conflicts_with = "model")]
    path: Option<PathBuf>,
    /// How many images are measured, after one that is not, in which sessions are opened.
    #[arg(long, value_name = "N", default_value = "3")]
    runs: NonZeroU16,
    /// An earlier measurement, as --json prints it: the time of each part relative to it.
    #[arg(long, value_name = "JSON")]
    compare: Option<PathBuf>,
    #[command(flatten)]
    drawing: Drawing,
    #[command(flatten)]
    pub(super) common: Common,
}

/// What was measured of one part, in seconds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Part {
    name: String,
    median_s: f64,
    least_s: f64,
    most_s: f64,
    /// Of how many times these are.
    samples: usize,
    /// Billions of multiplications with an addition in a second, where those of its graphs are known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    gmac_per_s: Option<f64>,
}

/// What was measured on what.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Measurement {
    calotype: String,
    onnxruntime: String,
    cpu: Option<String>,
    cores: usize,
    threads: usize,
    provider: String,
    model: String,
    size: String,
    steps: usize,
    guidance: f64,
    runs: u16,
    parts: Vec<Part>,
    /// The first image, from the start of the process.
    first_image_s: f64,
    /// Of the time in the denoising loop, what is not that of the networks.
    host_share: f64,
    /// Of products of matrices of 32-bit floats, on the U-Net's first provider.
    peak_gmac_per_s: Option<f64>,
    budget_bytes: Option<u64>,
    planned_bytes: Option<u64>,
    peak_bytes: Option<u64>,
    watts: Option<f64>,
    watts_of: Option<String>,
}

impl Measurement {
    /// One that `--json` printed: [`ErrorKind::Input`] for a file that cannot be read or is none.
    fn read(path: &Path) -> Result<Self, Error> {
        let refuse = |error: Box<dyn std::error::Error + Send + Sync>| {
            let problem = format!("{}: expected what `calotype bench --json` printed", path.display());
            Error::new(ErrorKind::Input, problem).in_file(path).source(error)
        };
        let json = std::fs::read(path).map_err(|error| refuse(error.into()))?;
        serde_json::from_slice(&json).map_err(|error| refuse(error.into()))
    }
}

pub(super) fn run(flags: &Flags) -> Result<Report, Error> {
    let started = Instant::now();
    let drawing = &flags.drawing;
    drawing.check_bench()?;
    let before = flags.compare.as_deref().map(Measurement::read).transpose()?;
    let prompt = (!drawing.has_origin()).then(|| PROMPT.to_owned());
    let (recipe, _) = drawing.recipe(prompt, flags.path.as_ref())?;
    let (model, mut recipe, additions) = drawing.open_model(recipe)?;
    recipe.seed = recipe.seed.or(Some(SEED));
    recipe.steps = recipe.steps.or(Some(STEPS.min(model.manifest().defaults.steps)));
    let request = Request::new(recipe, &model)?;
    let library = flags.common.library()?;
    let options = drawing.session.options()?;
    let mut opened = Opened::open(model, additions, &request, drawing, None, library)?;
    let mut timed = Timed::default();
    opened.draw(&request, None, |_| ())?;
    let first_image = started.elapsed();
    let meter = Meter::start(Path::new(CLASSES));
    for _ in 0..flags.runs.get() {
        timed.draw(&mut opened, &request)?;
    }
    let power = meter.and_then(Meter::stop);
    let peak_bytes = memory::peak_bytes();
    let planned_bytes = opened.pipeline.plan().map(Plan::peak_bytes);
    let provider = providers(opened.pipeline.placements());
    let work = Work::of(&opened, &request, &options);
    let Opened { model, pipeline, .. } = opened;
    // Its memory is the measurement's now.
    drop(pipeline);
    let peak = peak(drawing.session.memory, &options);
    let now = Measurement {
        calotype: env!("CARGO_PKG_VERSION").into(),
        onnxruntime: library.version().to_string(),
        cpu: cpu_model(),
        cores: std::thread::available_parallelism().map_or(1, usize::from),
        threads: options.threads.get(),
        provider,
        model: model.manifest().name.clone(),
        size: request.size().to_string(),
        steps: request.steps_taken(),
        guidance: request.guidance_scale(),
        runs: flags.runs.get(),
        parts: timed.parts(&work, request.steps_taken()),
        first_image_s: first_image.as_secs_f64(),
        host_share: timed.host_share(),
        peak_gmac_per_s: peak,
        budget_bytes: drawing.session.memory.map(Budget::bytes),
        planned_bytes,
        peak_bytes,
        watts: power.map(|power| power.watts),
        watts_of: power.map(|power| power.of.into()),
    };
    let text = table::text(&now, before.as_ref());
    let mut json = json!(now);
    if let Some(before) = &before {
        json["compared"] = table::ratios(&now, before).into_iter().collect();
    }
    Ok(Report::new(text, json))
}

/// The machine's peak; nothing where a budget leaves no room to measure it.
fn peak(budget: Option<Budget>, options: &SessionOptions) -> Option<f64> {
    let options = SessionOptions { budget_bytes: budget.map(Budget::bytes), ..options.clone() };
    let measured = certify::peak(UNET, &options).inspect_err(|error| say(format_args!("peak: {error}")));
    Some(measured.ok()? / 1e9)
}

/// Multiplications with an addition of all calls of an image, where they are known.
#[derive(Clone, Copy, Debug, Default)]
struct Work {
    text_encoder: Option<u64>,
    vae_encoder: Option<u64>,
    /// The U-Net and control networks.
    denoising: Option<u64>,
    vae_decoder: Option<u64>,
}

impl Work {
    fn of(opened: &Opened, request: &Request, options: &SessionOptions) -> Self {
        // Elsewhere than on the CPU nothing is planned, but the graphs are the same.
        let elsewhere = || {
            let options = SessionOptions::new(options.threads);
            Plan::new(&opened.model, request, &options, Budget::of_bytes(u64::MAX / 2)).ok()
        };
        let Some(plan) = opened.pipeline.plan().cloned().or_else(elsewhere) else { return Self::default() };
        let all = |components: &[&str]| plan.multiplications(components);
        Self {
            text_encoder: all(&["text_encoder"]),
            vae_encoder: all(&["vae_encoder"]),
            denoising: all(&[UNET, "control"]),
            vae_decoder: all(&["vae_decoder"]),
        }
    }
}

/// How long images and their parts took.
#[derive(Default)]
struct Timed {
    images: Vec<Duration>,
    steps: Vec<Duration>,
    times: Vec<Times>,
}

impl Timed {
    fn draw(&mut self, opened: &mut Opened, request: &Request) -> Result<(), Error> {
        let started = Instant::now();
        let mut ends = Vec::with_capacity(request.steps_taken());
        let times = opened.draw(request, None, |_| ends.push(Instant::now()))?.times;
        self.images.push(started.elapsed());
        // What comes before the first step is other parts'.
        let later = ends.windows(2).map(|pair| pair[1] - pair[0]);
        let first = times.denoising.saturating_sub(later.clone().sum());
        self.steps.extend([first].into_iter().chain(later));
        self.times.push(times);
        Ok(())
    }

    fn parts(&self, work: &Work, steps: usize) -> Vec<Part> {
        let of = |stage: fn(&Times) -> Duration| self.times.iter().map(stage).collect::<Vec<_>>();
        let per_step = work.denoising.map(|work| work / steps.max(1) as u64);
        [
            ("text_encoder", of(|times| times.text_encoder), work.text_encoder),
            ("vae_encoder", of(|times| times.vae_encoder), work.vae_encoder),
            ("step", self.steps.clone(), per_step),
            ("vae_decoder", of(|times| times.vae_decoder), work.vae_decoder),
            ("image", self.images.clone(), None),
        ]
        .into_iter()
        // Drawing the noise of an image without an init image takes no time worth a row.
        .filter(|(name, ..)| *name != "vae_encoder" || work.vae_encoder.is_some())
        .map(|(name, durations, work)| Part::of(name, durations, work))
        .collect()
    }

    fn host_share(&self) -> f64 {
        let all =
            |stage: fn(&Times) -> Duration| self.times.iter().map(stage).sum::<Duration>().as_secs_f64();
        let denoising = all(|times| times.denoising);
        if denoising > 0.0 { 1.0 - all(|times| times.unet) / denoising } else { 0.0 }
    }
}

impl Part {
    fn of(name: &str, mut durations: Vec<Duration>, work: Option<u64>) -> Self {
        durations.sort();
        let samples = durations.len();
        let seconds = |index: usize| durations.get(index).map_or(0.0, Duration::as_secs_f64);
        let median_s = (seconds(samples.saturating_sub(1) / 2) + seconds(samples / 2)) / 2.0;
        let gmac_per_s = work.filter(|_| median_s > 0.0).map(|work| work as f64 / 1e9 / median_s);
        Self {
            name: name.into(),
            median_s,
            least_s: seconds(0),
            most_s: seconds(samples.saturating_sub(1)),
            samples,
            gmac_per_s,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_of_even_and_odd_counts() {
        let part = |millis: &[u64], work| {
            Part::of("step", millis.iter().map(|ms| Duration::from_millis(*ms)).collect(), work)
        };
        let odd = part(&[300, 100, 200], Some(400_000_000));
        assert_eq!((odd.median_s, odd.least_s, odd.most_s, odd.samples), (0.2, 0.1, 0.3, 3));
        assert_eq!(odd.gmac_per_s, Some(2.0));
        assert_eq!(part(&[400, 100, 200, 300], None).median_s, 0.25);
        assert_eq!(part(&[7], None).median_s, 0.007);
    }

    #[test]
    fn the_host_has_what_the_networks_leave_of_the_loop() {
        let times = |denoising, unet| Times {
            denoising: Duration::from_millis(denoising),
            unet: Duration::from_millis(unet),
            ..Times::default()
        };
        let timed =
            Timed { images: Vec::new(), steps: Vec::new(), times: vec![times(100, 90), times(300, 270)] };
        assert!((timed.host_share() - 0.1).abs() < 1e-12);
        assert_eq!(Timed::default().host_share(), 0.0);
    }
}
