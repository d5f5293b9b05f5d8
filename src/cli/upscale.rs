//! `calotype upscale`: an image becomes a larger one in a file.

use std::path::PathBuf;
use std::time::Instant;

use calotype::engine::SessionOptions;
use calotype::image_file::ImageFile;
use calotype::memory;
use calotype::plan::Budget;
use calotype::recipe::Recipe;
use calotype::{Error, Upscaler};
use serde_json::json;

use super::interrupt::Heeded;
use super::output::Destination;
use super::session::Session;
use super::{Common, Report, path_json, say};

#[derive(clap::Args)]
pub(super) struct Flags {
    /// The image: PNG, JPEG, WebP, GIF, BMP or TIFF.
    image: PathBuf,
    /// Where to write the enlarged image, in the format of the extension: .png, .jpg or .jpeg, .webp (lossless).
    #[arg(short, long, value_name = "OUT")]
    output: PathBuf,
    /// An ONNX upscaler of any factor, as those of the ESRGAN family; the built-in one (x4) when absent.
    #[arg(short, long, value_name = "FILE")]
    model: Option<PathBuf>,
    #[command(flatten)]
    session: Session,
    #[command(flatten)]
    pub(super) common: Common,
}

pub(super) fn run(flags: &Flags) -> Result<Report, Error> {
    let started = Instant::now();
    let files = Recipe { model: flags.model.clone().map(Into::into), ..Recipe::default() };
    flags.session.check_signed(&files)?;
    let destination = Destination::open(flags.output.clone())?;
    let file = ImageFile::open(&flags.image)?;
    let upscaler = match &flags.model {
        Some(path) => Upscaler::open(path)?,
        None => Upscaler::built_in()?,
    };
    let memory = flags.session.memory;
    let options = SessionOptions {
        cancel: Heeded::cancel(),
        budget_bytes: memory.map(Budget::bytes),
        ..flags.session.options()?
    };
    let (from, threads) = (file.dimensions(), options.threads.get());
    let tiling = upscaler.plan(from, upscaler.image_bytes(&file), threads, memory)?;
    flags.common.library()?;
    if file.is_animated() {
        say(format_args!("{}: has several frames: only the first is used", file.origin()));
    }
    let heeded = Heeded::new();
    let on_tile = |_, _| !heeded.is_stopped();
    let (width, height) = if file.has_alpha() {
        let large = upscaler.upscale_with_alpha(&file.decode_with_alpha()?, &options, on_tile)?;
        destination.write_with_alpha(&large)?;
        large.dimensions()
    } else {
        let large = upscaler.upscale(&file.decode()?, &options, on_tile)?;
        destination.write(&large, None)?;
        large.dimensions()
    };
    let text = format!("{} ({width}x{height})\n", destination.path().display());
    let json = json!({
        "path": path_json(destination.path()),
        "upscaler": upscaler.name(),
        "factor": upscaler.factor(),
        "width": width,
        "height": height,
        "tiles": tiling.tiles,
        "seconds": started.elapsed().as_secs_f64(),
        "memory": {
            "budget_bytes": memory.map(Budget::bytes),
            "planned_bytes": tiling.peak_bytes,
            "peak_bytes": memory::peak_bytes(),
        },
    });
    let exceeded = memory.and_then(|budget| memory::check_budget("output", budget.bytes()).err());
    Ok(Report { error: exceeded, ..Report::new(text, json) })
}
