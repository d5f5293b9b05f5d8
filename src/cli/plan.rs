//! `calotype plan`: what memory each stage of an image takes, and how it is kept within a budget.

use std::ffi::{OsStr, OsString};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use calotype::plan::{Plan, Stage};
use calotype::request::Request;
use calotype::{Error, ErrorKind};
use serde_json::json;

use super::drawing::Drawing;
use super::{Common, Report, say};

#[derive(clap::Args)]
pub(super) struct Flags {
    /// The prompt, as for `generate`. An existing path is used as `--model`, if that is absent.
    #[arg(value_name = "PROMPT|MODEL")]
    prompt: Option<OsString>,
    #[command(flatten)]
    drawing: Drawing,
    #[command(flatten)]
    pub(super) common: Common,
}

pub(super) fn run(flags: &Flags) -> Result<Report, Error> {
    let drawing = &flags.drawing;
    let positional = flags.prompt.as_ref();
    let named = positional.map(PathBuf::from).filter(|path| drawing.model.is_none() && path.exists());
    if let Some(path) =
        positional.filter(|typed| named.is_none() && drawing.model.is_none() && is_path(typed))
    {
        let problem =
            format!("PROMPT|MODEL: expected a prompt or a model, got {path:?}, where there is none");
        return Err(Error::new(ErrorKind::Usage, problem)
            .help("for a prompt that looks like a path, name the model with {model}"));
    }
    let prompt = match positional.filter(|_| named.is_none()).map(|typed| typed.to_str()) {
        Some(Some(prompt)) => Some(prompt.to_owned()),
        Some(None) => {
            let problem = "PROMPT|MODEL: expected a prompt in UTF-8 or a model, got neither";
            return Err(Error::new(ErrorKind::Usage, problem));
        }
        None => None,
    };
    let (recipe, _) = drawing.recipe(prompt, named.as_ref())?;
    let (model, recipe, _) = drawing.open_model(recipe)?;
    let request = Request::new(recipe, &model)?;
    flags.common.library()?;
    let options = drawing.session.options()?;
    if options.providers.is_automatic() {
        say("provider auto: only memory of the CPU can be planned");
    }
    let plan = Plan::new(&model, &request, &options, drawing.budget())?;
    Ok(Report::new(table(&plan), json!(&plan)))
}

/// Whether a text is one word that names a folder or a model's file.
fn is_path(typed: &OsStr) -> bool {
    const MODELS: [&str; 5] = ["safetensors", "gguf", "ckpt", "onnx", "json"];
    let text = typed.to_string_lossy();
    let is_file = Path::new(typed)
        .extension()
        .is_some_and(|found| MODELS.iter().any(|name| found.eq_ignore_ascii_case(name)));
    !text.contains(char::is_whitespace) && (is_file || text.contains(std::path::is_separator))
}

fn table(plan: &Plan) -> String {
    let mib = |bytes: u64| bytes.div_ceil(1 << 20);
    let mut text = format!(
        "{:<16} {:<10} {:>5} {:>6} {:>11} {:>15} {:>9} {:>8}\n",
        "stage", "weights", "batch", "tile", "weights MiB", "activations MiB", "peak MiB", "GMAC"
    );
    if let Some(bytes) = plan.images_peak_bytes() {
        writeln!(text, "{:<60} {:>15} {:>9}", "images", "", mib(bytes)).expect("a String takes all text");
    }
    for stage in plan.stages() {
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
            "{name:<16} {residency:<10} {batch:>5} {tile:>6} {:>11} {:>15} {:>9} {:>8.1}",
            mib(*weights_bytes),
            mib(*activations_bytes),
            mib(*peak_bytes),
            stage.multiplications as f64 / 1e9,
        )
        .expect("a String takes all text");
    }
    writeln!(
        text,
        "peak {} MiB of {} MiB, of which {} MiB before the first stage; {} MiB would suffice",
        mib(plan.peak_bytes()),
        mib(plan.budget_bytes()),
        mib(plan.base_bytes()),
        mib(plan.least_bytes()),
    )
    .expect("a String takes all text");
    text
}
