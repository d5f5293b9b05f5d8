//! `calotype plan`: what memory each stage of a picture takes, and how it is kept within a budget.

use std::fmt::Write as _;
use std::num::NonZeroUsize;
use std::path::PathBuf;

use calotype::Error;
use calotype::pipeline::Options;
use calotype::plan::{Budget, Plan, Stage, multiplications_per_second};
use calotype::request::{Draft, Request};
use calotype::tensor::PixelSize;
use serde_json::json;

use super::{Additions, Common, Components, Report, open_model};

#[derive(clap::Args)]
pub(super) struct Flags {
    /// A bundle, a diffusers folder, an ONNX folder, or a single-file checkpoint; the built-in model when absent.
    model: Option<PathBuf>,
    /// The most memory that the process may take, as in `300MiB`; what is free, less a reserve, when absent.
    #[arg(long, value_name = "SIZE")]
    memory: Option<Budget>,
    /// The size of the picture in pixels.
    #[arg(long, value_name = "WxH")]
    size: Option<String>,
    /// How many denoising steps.
    #[arg(long, value_name = "N")]
    steps: Option<usize>,
    /// How strongly the prompt pulls; 1 is no guidance, and half the work.
    #[arg(long, value_name = "X")]
    guidance: Option<String>,
    /// How many threads work on one operator.
    #[arg(long, value_name = "N")]
    threads: Option<NonZeroUsize>,
    #[command(flatten)]
    components: Components,
    #[command(flatten)]
    additions: Additions,
    #[command(flatten)]
    pub(super) common: Common,
}

pub(super) fn run(flags: &Flags) -> Result<Report, Error> {
    let (model, _) = open_model(
        flags.model.as_ref(),
        &flags.components,
        &flags.additions.lora,
        &flags.additions.embedding,
    )?;
    let draft = Draft {
        size: flags.size.as_deref().map(str::parse::<PixelSize>).transpose()?,
        steps: flags.steps,
        guidance: flags.guidance.as_deref().map(str::parse).transpose()?,
        ..Draft::default()
    };
    let request = Request::new(draft, model.manifest())?;
    flags.common.library()?;
    let budget = flags.memory.unwrap_or_else(Budget::of_this_machine);
    let mut options = Options::default().session;
    options.threads = flags.threads.unwrap_or(options.threads);
    let plan = Plan::new(&model, &request, &options, budget)?;
    let speed = multiplications_per_second(options.threads)?;
    let seconds = |stage: &Stage| stage.multiplications as f64 / speed;
    let mut json = json!(&plan);
    for (json, stage) in json["stages"].as_array_mut().into_iter().flatten().zip(&plan.stages) {
        json["seconds"] = json!(seconds(stage));
    }
    Ok(Report { text: table(&plan, seconds), json })
}

fn table(plan: &Plan, seconds: impl Fn(&Stage) -> f64) -> String {
    let mib = |bytes: u64| bytes.div_ceil(1 << 20);
    let mut text = format!(
        "{:<16} {:<10} {:>5} {:>6} {:>11} {:>15} {:>9} {:>8}\n",
        "stage", "weights", "batch", "tile", "weights MiB", "activations MiB", "peak MiB", "about s"
    );
    for stage in &plan.stages {
        let Stage {
            stage: name,
            residency,
            batch,
            tile_cells,
            weights_bytes,
            activations_bytes,
            peak_bytes,
            ..
        } = stage;
        let tile = tile_cells.map_or("whole".into(), |cells| cells.to_string());
        writeln!(
            text,
            "{name:<16} {residency:<10} {batch:>5} {tile:>6} {:>11} {:>15} {:>9} {:>8.2}",
            mib(*weights_bytes),
            mib(*activations_bytes),
            mib(*peak_bytes),
            seconds(stage),
        )
        .expect("a String takes all text");
    }
    writeln!(
        text,
        "peak {} MiB of {} MiB, of which {} MiB before the first stage; {} MiB would do",
        mib(plan.peak_bytes),
        mib(plan.budget_bytes),
        mib(plan.base_bytes),
        mib(plan.least_bytes),
    )
    .expect("a String takes all text");
    text
}
