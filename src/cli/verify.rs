//! `calotype verify`: whether a bundle is whole and can be opened, and whether an image is the one that its receipt makes.

use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use calotype::error::shortened;
use calotype::image_file::{ImageFile, OutputFormat, Texts, encode};
use calotype::model::Model;
use calotype::pack::verify_within;
use calotype::plan::Budget;
use calotype::provenance::pixels_sha256;
use calotype::recipe::{Provenance, Receipt, Recipe};
use calotype::request::Request;
use calotype::{Error, ErrorKind};
use image::RgbImage;
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::control::Control;
use super::drawing::Drawing;
use super::images::Opened;
use super::open::{Additions, Components};
use super::session::Session;
use super::{Common, Report, from, path_json, say};

#[derive(clap::Args)]
pub(super) struct Flags {
    /// A bundle, or an image that calotype generated: it is generated again from its receipt, and compared.
    #[arg(value_name = "BUNDLE-OR-IMAGE")]
    path: PathBuf,
    /// The model that generated the image; the one that the receipt names when absent.
    #[arg(short, long, value_name = "PATH")]
    model: Option<PathBuf>,
    /// The init image, if it is not where the receipt says.
    #[arg(long, value_name = "IMG")]
    init: Option<PathBuf>,
    /// The mask, if it is not where the receipt says.
    #[arg(long, value_name = "IMG")]
    mask: Option<PathBuf>,
    #[command(flatten)]
    session: Session,
    #[command(flatten)]
    components: Components,
    #[command(flatten)]
    additions: Additions,
    #[command(flatten)]
    control: Control,
    #[command(flatten)]
    pub(super) common: Common,
}

impl Flags {
    /// Refuses what is there for images that are generated again.
    fn expect_bundle_alone(&self) -> Result<(), Error> {
        let mut files = Recipe::default();
        self.components.apply(&mut files);
        self.additions.apply(&mut files)?;
        self.control.apply(&mut files)?;
        let is_named = self.model.is_some() || self.init.is_some() || self.mask.is_some();
        if is_named || files.to_json() != Recipe::default().to_json() || self.session.says_how_to_compute() {
            let problem = "verify: expected a bundle alone, got flags for an image that is generated again";
            return Err(Error::new(ErrorKind::Usage, problem)
                .help("of a bundle, only {memory} and {require_signed} are used"));
        }
        Ok(())
    }

    /// As if it were generated from its receipt with these files.
    fn drawing(&self) -> Drawing {
        let mut drawing = Drawing::default();
        drawing.from = Some(self.path.clone());
        drawing.model.clone_from(&self.model);
        drawing.init.clone_from(&self.init);
        drawing.mask.clone_from(&self.mask);
        drawing.session = self.session.clone();
        drawing.components = self.components.clone();
        drawing.additions = self.additions.clone();
        drawing.control = self.control.clone();
        drawing.count = 1;
        drawing
    }
}

pub(super) fn run(flags: &Flags) -> Result<Report, Error> {
    if flags.path.is_dir() {
        flags.expect_bundle_alone()?;
        flags.common.library()?;
        let bundle_alone = Recipe { model: Some(flags.path.clone().into()), ..Recipe::default() };
        flags.session.check_signed(&bundle_alone)?;
        bundle(&flags.path, flags.session.memory)
    } else {
        image(flags)
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

/// The most pixels of an image: those of the largest that is drawn.
const MAX_PIXELS: usize = 8192 * 8192;
/// Hexadecimal digits of a SHA-256.
const SHA256_DIGITS: usize = 64;

/// Generates an image again from its receipt, and tells whether it is the same, and what else differs.
fn image(flags: &Flags) -> Result<Report, Error> {
    let path = &flags.path;
    let Seen { receipt, image, is_lossy } = read(path)?;
    let made = receipt.provenance.as_ref().expect("a receipt that was read with it");
    let drawing = flags.drawing();
    let (recipe, origin) = drawing.recipe(None, None)?;
    let (model, recipe, additions) = drawing.open_model(recipe)?;
    expect_files(path, made, &model)?;
    let request = Request::new(recipe, &model)?;
    let library = flags.common.library()?;
    let mut opened = Opened::open(model, additions, &request, &drawing, origin.provider(), library)?;
    let output = opened.draw(&request, None, |_| {})?;
    output.warnings().iter().for_each(|line| say(shortened(line)));
    let again = opened.receipt(request.recipe().with_images_named()?, &request, &output);
    let differences = differences(&receipt, &again);
    let size = output.image.dimensions();
    let sha256 = sha256_of(&output.image);
    let again = as_in_file(output.image, is_lossy)?;
    let psnr_db = psnr_db(&image, &again);
    let is_equal = image == again && made.pixels_sha256.as_ref().is_none_or(|expected| *expected == sha256);

    let files = made.model_files.as_ref().map_or(0, |files| files.len());
    let mut text = format!("{}: generated by {}", path.display(), made.model_name);
    text += &match files {
        0 => String::from("\n"),
        count => format!(", whose {count} files match this model's\n"),
    };
    text += match &made.pixels_sha256 {
        Some(_) if is_lossy => "the pixels were not compared with the receipt: JPEG does not keep them\n",
        Some(_) => "the pixels match the receipt\n",
        None => "the pixels were not compared with the receipt, which has no hash of them\n",
    };
    let found = match psnr_db {
        _ if is_equal => "equal pixels".to_owned(),
        None if image == again => "other pixels, which are equal once compressed".to_owned(),
        Some(psnr_db) => format!("other pixels, PSNR {psnr_db:.1} dB"),
        None => format!("another size, {}x{}", size.0, size.1),
    };
    text += &format!("generated again: {found}\n");
    for Difference { what, expected, got } in &differences {
        text += &format!("{what}: expected {expected} as in the receipt, got {got}\n");
    }
    let json = json!({
        "image": path_json(path),
        "model": made.model_name,
        "model_files": made.model_files,
        "pixels_sha256": made.pixels_sha256,
        "equal": is_equal,
        "psnr_db": psnr_db,
        "differences": differences,
    });
    let error = (!is_equal).then(|| {
        let problem = format!("{}: expected the image that its receipt makes, got {found}", path.display());
        let error = Error::new(ErrorKind::Input, problem).in_file(path);
        match differences.is_empty() {
            true => error.help("other threads, memory limits and kinds of CPU round differently"),
            false => error.help("what differs is listed"),
        }
    });
    Ok(Report { text, json, error })
}

/// An image and what its file says of it.
struct Seen {
    receipt: Receipt,
    image: RgbImage,
    /// Whether the file's pixels are not those that were generated, but what JPEG keeps of them.
    is_lossy: bool,
}

/// The receipt of an image, with what made it, and its pixels, which are those of the receipt where the format keeps them.
fn read(path: &Path) -> Result<Seen, Error> {
    let refuse = |problem: String| {
        Error::new(ErrorKind::Input, format!("{}: {problem}", path.display())).in_file(path)
    };
    let origin = path.display().to_string();
    let mut file =
        File::open(path).map_err(|error| refuse("expected a bundle or an image".into()).source(error))?;
    let Some(Texts { json, .. }) = Texts::read(&origin, &mut BufReader::new(&mut file))? else {
        return Err(refuse("expected a bundle or an image in PNG, JPEG or WebP, got another file".into()));
    };
    let Some(json) = json else {
        return Err(refuse("expected an image with a receipt, got one without".into()));
    };
    let receipt = Receipt::parse(&origin, json.as_bytes()).map_err(|error| error.in_file(path))?;
    let Some(made) = &receipt.provenance else {
        return Err(refuse("expected a receipt, got a recipe without what made the image".into()));
    };
    if let Some(expected) = &made.pixels_sha256
        && (expected.len() != SHA256_DIGITS || !expected.bytes().all(|byte| byte.is_ascii_hexdigit()))
    {
        return Err(refuse(format!("receipt: pixels_sha256: expected a SHA-256, got {expected:?}")));
    }
    let file = ImageFile::open(path)?;
    let (width, height) = file.dimensions();
    if width as usize * height as usize > MAX_PIXELS {
        return Err(refuse(format!("expected at most {MAX_PIXELS} pixels, got {width}x{height}")));
    }
    if file.has_alpha() || file.is_animated() {
        return Err(refuse(
            "expected one opaque image, got transparency or several: the image was changed".into(),
        ));
    }
    let (image, is_lossy) = (file.decode()?, file.is_lossy());
    if !is_lossy && made.pixels_sha256.as_ref().is_some_and(|expected| *expected != sha256_of(&image)) {
        return Err(refuse("expected the pixels of the receipt, got others: the image was changed".into()));
    }
    Ok(Seen { receipt, image, is_lossy })
}

fn sha256_of(image: &RgbImage) -> String {
    pixels_sha256(image.width(), image.height(), image.as_raw())
}

/// The image as its file has it: for a lossy one it is compressed as all are, and decoded.
fn as_in_file(image: RgbImage, is_lossy: bool) -> Result<RgbImage, Error> {
    if !is_lossy {
        return Ok(image);
    }
    let mut bytes = Vec::new();
    encode(&image, OutputFormat::Jpeg, None, &mut bytes)
        .map_err(|error| Error::new(ErrorKind::Output, "the image generated again").source(error))?;
    ImageFile::from_bytes("the image generated again", bytes)?.decode()
}

/// Refuses a bundle with other files than those that made an image.
fn expect_files(path: &Path, made: &Provenance, model: &Model) -> Result<(), Error> {
    let (Some(drew), Some(contents)) = (&made.model_files, model.contents()) else { return Ok(()) };
    let names = drew.keys().chain(contents.files.keys());
    let mut differing =
        names.filter(|name| drew.get(*name) != contents.files.get(*name).map(|record| &record.sha256));
    let Some(first) = differing.next() else { return Ok(()) };
    let problem = format!(
        "{}: expected an image of {}, got one of {} with another {first}",
        path.display(),
        model.manifest().name,
        made.model_name
    );
    let error = Error::new(ErrorKind::Input, problem).in_file(path);
    Err(error.help("give the bundle that generated it with --model"))
}

/// Something that is not as it was when an image was generated.
#[derive(Serialize)]
struct Difference {
    what: String,
    expected: String,
    got: String,
}

/// What is not the same in two receipts: versions, providers, CPU, hashes of files, and settings.
fn differences(before: &Receipt, after: &Receipt) -> Vec<Difference> {
    let mut all = Vec::new();
    let mut note = |what: &str, expected: &str, got: &str| {
        if expected != got {
            let [what, expected, got] = [what, expected, got].map(str::to_owned);
            all.push(Difference { what, expected, got });
        }
    };
    if let (Some(made), Some(again)) = (&before.provenance, &after.provenance) {
        from::differences(made, again)
            .into_iter()
            .for_each(|(what, expected, got)| note(what, expected, got));
        if let (Some(expected), Some(got)) = (&made.model_sha256, &again.model_sha256) {
            note("model", expected, got);
        }
        let retries = |made: &Provenance| json!(made.retries).to_string();
        note("retries", &retries(made), &retries(again));
    }
    for ((flag, expected), (_, got)) in
        from::files(&before.recipe).into_iter().zip(from::files(&after.recipe))
    {
        if let (Some(expected), Some(got)) = (&expected.sha256, &got.sha256) {
            note(flag, expected, got);
        }
    }
    let [expected, got] = [before, after].map(|receipt| settings(&receipt.recipe));
    for name in expected.keys().chain(got.keys().filter(|name| !expected.contains_key(*name))) {
        let value = |settings: &Map<String, Value>| settings.get(name).unwrap_or(&Value::Null).to_string();
        note(name, &value(&expected), &value(&got));
    }
    all
}

/// What a recipe has but for where its files are and what is in them.
fn settings(recipe: &Recipe) -> Map<String, Value> {
    const FILES: [&str; 11] = [
        "model",
        "unet",
        "vae",
        "text_encoder",
        "lora",
        "embedding",
        "init",
        "mask",
        "control_model",
        "control",
        "image",
    ];
    fn without_files(value: &mut Value) {
        match value {
            Value::String(_) => *value = Value::Null,
            Value::Array(values) => values.iter_mut().for_each(without_files),
            Value::Object(fields) => {
                fields.retain(|name, _| name != "path" && name != "sha256");
                fields
                    .iter_mut()
                    .filter(|(name, _)| FILES.contains(&&name[..]))
                    .for_each(|(_, field)| without_files(field));
                if fields.is_empty() {
                    *value = Value::Null;
                }
            }
            _ => {}
        }
    }
    let Value::Object(mut fields) = json!(recipe) else { return Map::new() };
    fields
        .iter_mut()
        .filter(|(name, _)| FILES.contains(&&name[..]))
        .for_each(|(_, field)| without_files(field));
    fields
}

/// The peak signal-to-noise ratio of two images of one size; none of others, and of equal ones, where it has no limit.
fn psnr_db(one: &RgbImage, other: &RgbImage) -> Option<f64> {
    if one.dimensions() != other.dimensions() || one == other {
        return None;
    }
    let squares = one.iter().zip(other.iter()).map(|(a, b)| f64::from(a.abs_diff(*b)).powi(2));
    let mean = squares.sum::<f64>() / one.len() as f64;
    Some(10.0 * (255.0f64.powi(2) / mean).log10())
}
