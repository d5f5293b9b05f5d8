//! `calotype pack`: a model of any form becomes a bundle.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::io::{self, IsTerminal};
use std::path::PathBuf;

use calotype::Error;
use calotype::graph::int8::WeightBits;
use calotype::manifest::{Compute, ComputeRecord};
use calotype::pack::{ComputeOptions, Options, Precision, Progress, pack};
use calotype::pipeline;
use calotype::plan::Budget;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::json;

use super::open::{Additions, Components, open_model};
use super::{Common, Report, path_json};

#[derive(clap::Args)]
#[command(allow_missing_positional = true)]
pub(super) struct Flags {
    /// A bundle, a diffusers folder, an ONNX folder, or a single-file checkpoint; the built-in model when absent.
    model: Option<PathBuf>,
    /// The folder to create.
    #[arg(value_name = "DEST")]
    destination: PathBuf,
    /// Weight format: f32, f16, int8 or int4; unchanged when absent.
    #[arg(long, value_name = "FORM")]
    weights: Option<String>,
    /// Computes the U-Net in integers: on CPUs int8 (fastest) or int8-fine (more accurate), which need no calibration; for
    /// OpenVINO qdq, with ranges that are measured on seeded images. In floats when absent.
    #[arg(long, value_name = "FORM")]
    compute: Option<String>,
    /// With --compute: bits of the weights' integers, 8, or 7 for x86-64 CPUs without VNNI; as this CPU needs them when
    /// absent.
    #[arg(long, value_name = "7|8", requires = "compute")]
    weight_bits: Option<String>,
    /// With --compute: largest error of a U-Net call, relative to floats; the worst blocks stay in floats to meet it.
    #[arg(long, value_name = "E", requires = "compute")]
    max_error: Option<f64>,
    /// Licence as an SPDX expression; the model's when absent.
    #[arg(long, value_name = "SPDX")]
    licence: Option<String>,
    /// Name of the bundle; the model's when absent.
    #[arg(long, value_name = "N")]
    name: Option<String>,
    /// A LoRA file to merge into the bundle's weights, with optional strength (default 1); repeatable.
    #[arg(long, value_name = "FILE[@W]")]
    lora: Vec<OsString>,
    /// Memory limit of the process, as in `300MiB`: components are compared a segment at a time.
    #[arg(long, value_name = "SIZE")]
    memory: Option<Budget>,
    #[command(flatten)]
    components: Components,
    #[command(flatten)]
    pub(super) common: Common,
}

pub(super) fn run(flags: &Flags) -> Result<Report, Error> {
    let options = Options {
        weights: flags.weights.as_deref().map(str::parse::<Precision>).transpose()?,
        compute: match &flags.compute {
            Some(form) => Some(ComputeOptions {
                form: form.parse::<Compute>()?,
                weight_bits: flags.weight_bits.as_deref().map(str::parse::<WeightBits>).transpose()?,
                max_error: flags.max_error,
            }),
            None => None,
        },
        name: flags.name.clone(),
        licence: flags.licence.clone(),
        threads: pipeline::Options::default().session.threads,
        memory: flags.memory,
    };
    let additions = Additions { lora: flags.lora.clone(), ..Additions::default() };
    let model = open_model(flags.model.as_ref(), &flags.components, &additions)?;
    // Before gigabytes are written: without it, the bundle could not be compared with the model.
    flags.common.library()?;
    let bar = progress_bar();
    let report = pack(&model, &flags.destination, &options, |Progress { done_bytes, all_bytes }| {
        bar.set_length(all_bytes as u64);
        bar.set_position(done_bytes as u64);
    });
    bar.finish_and_clear();
    let report = report?;

    let mut text = format!("{}\n", flags.destination.display());
    writeln!(text, "{:<16}{:>12}{:>12}  {:<10}relative error", "component", "source", "packed", "seconds")
        .expect("a String takes all text");
    let mut components = serde_json::Map::new();
    for component in &report.components {
        let seconds = component.time.as_secs_f64();
        let time = if component.is_kept { "kept".into() } else { format!("{seconds:.1}") };
        let errors = component.errors.iter().map(|error| format!("{:.1e} {}", error.relative, error.output));
        let errors = errors.collect::<Vec<_>>().join(", ");
        let (source, packed) = (mebibytes(component.source_bytes as u64), mebibytes(component.packed_bytes));
        writeln!(text, "{:<16}{source:>12}{packed:>12}  {time:<10}{errors}", component.name)
            .expect("a String takes all text");
        if let Some(compute) = &component.compute {
            text += &losses(compute);
        }
        let errors = component.errors.iter().map(|error| (error.output.clone(), json!(error.relative)));
        components.insert(
            component.name.into(),
            json!({
                "source_bytes": component.source_bytes,
                "packed_bytes": component.packed_bytes,
                "kept": component.is_kept,
                "seconds": seconds,
                "relative_errors": errors.collect::<serde_json::Map<_, _>>(),
                "compute": component.compute,
            }),
        );
    }
    let json = json!({
        "bundle": path_json(&flags.destination),
        "weights": options.weights.map(|weights| weights.to_string()),
        "components": components,
        "files": report.contents.files,
        "seconds": report.time.as_secs_f64(),
    });
    Ok(Report::new(text, json))
}

/// How a component computes in integers, and what its blocks lose by it, the worst first.
pub(super) fn losses(compute: &ComputeRecord) -> String {
    let ComputeRecord { form, weight_bits, error, max_error, losses, floats } = compute;
    let most = max_error.map_or(String::new(), |most| format!(", at most {most}"));
    let mut text =
        format!("  computes in {form}, {weight_bits}-bit weights, relative error {error:.1e}{most}\n");
    let mut losses: Vec<(&String, &f64)> = losses.iter().collect();
    losses.sort_by(|(_, a), (_, b)| b.total_cmp(a));
    for (block, loss) in losses {
        let note = if floats.contains(block) { "  in floats" } else { "" };
        text += &format!("    {loss:.1e}  {block}{note}\n");
    }
    text
}

fn mebibytes(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

fn progress_bar() -> ProgressBar {
    let target =
        if io::stderr().is_terminal() { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    let style = ProgressStyle::with_template("packing {bar:30} {bytes} of {total_bytes}, {eta} left")
        .expect("the template is right");
    ProgressBar::with_draw_target(Some(0), target).with_style(style)
}
