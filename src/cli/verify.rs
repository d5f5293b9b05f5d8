//! `calotype verify`: whether a bundle is whole and can be opened, and whether an image was drawn by a model.

use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use calotype::model::Model;
use calotype::pack::verify_within;
use calotype::plan::Budget;
use calotype::provenance::pixels_sha256;
use calotype::recipe::Receipt;
use calotype::{Error, ErrorKind};
use serde_json::json;

use super::open::{Additions, Components, open_model};
use super::{Common, Report, path_json};

#[derive(clap::Args)]
pub(super) struct Flags {
    /// A bundle, or an image that calotype generated.
    #[arg(value_name = "BUNDLE-OR-IMAGE")]
    path: PathBuf,
    /// The bundle that generated the image; the built-in model when absent.
    #[arg(short, long, value_name = "PATH")]
    model: Option<PathBuf>,
    /// Memory limit of the process, as in `300MiB`: components are opened a segment at a time.
    #[arg(long, value_name = "SIZE")]
    memory: Option<Budget>,
    #[command(flatten)]
    components: Components,
    #[command(flatten)]
    pub(super) common: Common,
}

pub(super) fn run(flags: &Flags) -> Result<Report, Error> {
    if flags.path.is_dir() {
        flags.common.library()?;
        bundle(&flags.path, flags.memory)
    } else {
        image(&flags.path, &open_model(flags.model.as_ref(), &flags.components, &Additions::default())?)
    }
}

fn bundle(path: &Path, memory: Option<Budget>) -> Result<Report, Error> {
    let verified = verify_within(path, memory)?;
    let (files, manifest) = (&verified.contents.files, &verified.manifest);
    let bytes: u64 = files.values().map(|record| record.len_bytes).sum();
    let text = format!(
        "{}: whole\n{} ({})\n{} files of {bytes} bytes, as the manifest says; the manifest itself has SHA-256 {}\n\
         opened: {}\n",
        path.display(),
        manifest.name,
        manifest.licence,
        files.len(),
        verified.manifest_sha256,
        verified.components.join(", "),
    );
    let json = json!({
        "bundle": path_json(path),
        "name": manifest.name,
        "licence": manifest.licence,
        "manifest_sha256": verified.manifest_sha256,
        "files": files,
        "opened": verified.components,
    });
    Ok(Report::new(text, json))
}

/// The most bytes that the pixels of an image take: those of the largest that is drawn.
const MAX_PIXELS_BYTES: usize = 8192 * 8192 * 3;
/// Hexadecimal digits of a SHA-256.
const SHA256_DIGITS: usize = 64;

/// Compares the model files that an image's receipt names with those of a model.
fn image(path: &Path, model: &Model) -> Result<Report, Error> {
    let refuse = |problem: String| {
        Error::new(ErrorKind::Input, format!("{}: {problem}", path.display())).in_file(path)
    };
    let file =
        File::open(path).map_err(|error| refuse("expected a bundle or an image".into()).source(error))?;
    let mut reader = png::Decoder::new(BufReader::new(file))
        .read_info()
        .map_err(|error| refuse("expected a bundle or a PNG file".into()).source(error))?;
    let info = reader.info();
    let latin1 = info.uncompressed_latin1_text.iter().find(|chunk| chunk.keyword == "calotype");
    let utf8 = info.utf8_text.iter().find(|chunk| chunk.keyword == "calotype");
    let text = match (latin1, utf8) {
        (Some(chunk), _) => chunk.text.clone(),
        (None, Some(chunk)) => chunk.get_text().map_err(|error| refuse("receipt".into()).source(error))?,
        (None, None) => return Err(refuse("expected an image with a receipt, got one without".into())),
    };
    let receipt =
        Receipt::parse(&path.display().to_string(), text.as_bytes()).map_err(|error| error.in_file(path))?;
    let Some(receipt) = receipt.provenance else {
        return Err(refuse("expected a receipt, got a recipe without what made the image".into()));
    };
    if let Some(expected) = &receipt.pixels_sha256 {
        if expected.len() != SHA256_DIGITS || !expected.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(refuse(format!("receipt: pixels_sha256: expected a SHA-256, got {expected:?}")));
        }
        let found = pixels(&mut reader).map_err(&refuse)?;
        if found != *expected {
            return Err(refuse(
                "expected the pixels of the receipt, got others: the image was changed".into(),
            ));
        }
    }
    let Some(drew) = receipt.model_files else {
        return Err(refuse("expected a receipt with hashes, got one of a model that is not a bundle".into()));
    };
    let Some(contents) = model.contents() else {
        return Err(Error::new(ErrorKind::Usage, "model: expected a bundle, got a model without hashes"));
    };
    let names = drew.keys().chain(contents.files.keys());
    let differing: Vec<&str> = names
        .filter(|name| drew.get(*name) != contents.files.get(*name).map(|record| &record.sha256))
        .map(String::as_str)
        .collect();
    if let Some(first) = differing.first() {
        let problem = format!(
            "expected an image of {}, got one of {} with another {first}",
            model.manifest().name,
            receipt.model_name
        );
        return Err(refuse(problem).help("give the bundle that generated it with --model"));
    }
    let pixels = match &receipt.pixels_sha256 {
        Some(_) => "the pixels match the receipt",
        None => "the pixels were not checked: the receipt has no hash of them",
    };
    let text = format!(
        "{}: generated by {}, whose {} files match this model's\n{pixels}\n",
        path.display(),
        receipt.model_name,
        drew.len()
    );
    let json = json!({ "image": path_json(path), "model": receipt.model_name, "model_files": drew, "pixels_sha256": receipt.pixels_sha256 });
    Ok(Report::new(text, json))
}

/// The hash of an image's pixels, as receipts have it.
fn pixels(reader: &mut png::Reader<BufReader<File>>) -> Result<String, String> {
    let (kind, depth) = reader.output_color_type();
    if (kind, depth) != (png::ColorType::Rgb, png::BitDepth::Eight) {
        return Err("expected 8-bit RGB pixels, got another format".into());
    }
    let len_bytes = reader.output_buffer_size().filter(|len| *len <= MAX_PIXELS_BYTES);
    let Some(len_bytes) = len_bytes else {
        return Err(format!("expected at most {MAX_PIXELS_BYTES} bytes of pixels, got more"));
    };
    let mut rgb = vec![0; len_bytes];
    let frame = reader.next_frame(&mut rgb);
    let frame = frame.map_err(|error| format!("expected a complete image: {error}"))?;
    Ok(pixels_sha256(frame.width, frame.height, &rgb))
}
