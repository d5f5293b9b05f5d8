//! `--from`: the recipe of an image, of a receipt, or of a text that other programs write, and whether it is followed.

use std::fs::{self, File};
use std::io::{self, BufReader, Cursor, Read};
use std::path::Path;

use calotype::image_file::{self, Texts};
use calotype::model::Model;
use calotype::recipe::parameters::{self, Addition, Imported};
use calotype::recipe::{Image, NamedFile, Provenance, Receipt, Recipe};
use calotype::{Error, ErrorKind};

use super::output::STDOUT;
use super::{say, without_bom};

/// The longest JSON or text that is read.
const MAX_TEXT_BYTES: u64 = 16 << 20;
/// The longest image that is read from standard input.
const MAX_STDIN_BYTES: u64 = image_file::MAX_PIPE_BYTES;
/// What stands for standard input, as for standard output elsewhere.
pub(super) const STDIN: &str = STDOUT;

/// What a recipe was taken from; nothing by default.
#[derive(Default)]
pub(super) struct Origin {
    imported: Imported,
    provenance: Option<Provenance>,
}

impl Origin {
    /// Reads an image, a JSON file, or a `.txt` file with A1111's `parameters`; tells what of it cannot be used.
    pub(super) fn read(path: &Path) -> Result<Self, Error> {
        Self::open(path).map_err(|error| match path == Path::new(STDIN) {
            true => error,
            false => error.in_file(path),
        })
    }

    fn open(path: &Path) -> Result<Self, Error> {
        let origin = path.display().to_string();
        let refuse = |error: io::Error| Error::new(ErrorKind::Input, origin.clone()).source(error);
        let (texts, text) = if path == Path::new(STDIN) {
            let bytes = limited(io::stdin(), MAX_STDIN_BYTES, "standard input")?;
            (Texts::read("standard input", &mut Cursor::new(&bytes))?, bytes)
        } else {
            let mut file = File::open(path).map_err(refuse)?;
            let kind = fs::metadata(path).map_err(refuse)?.file_type();
            if kind.is_dir() {
                return Err(refuse(file.read(&mut [0]).err().unwrap_or(io::ErrorKind::IsADirectory.into())));
            }
            let texts = match kind.is_file() {
                true => Texts::read(&origin, &mut BufReader::new(&mut file))?,
                false => None,
            };
            match (texts, kind.is_file()) {
                (Some(texts), _) => (Some(texts), Vec::new()),
                (None, true) => (None, limited(File::open(path).map_err(refuse)?, MAX_TEXT_BYTES, &origin)?),
                (None, false) => {
                    let bytes = limited(file, MAX_STDIN_BYTES, &origin)?;
                    (Texts::read(&origin, &mut Cursor::new(&bytes))?, bytes)
                }
            }
        };
        let is_text = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("txt"));
        let read = match texts {
            Some(Texts { json: Some(json), .. }) => Self::of_receipt(&origin, json.as_bytes())?,
            Some(Texts { parameters: Some(text), .. }) => Self::of_parameters(&origin, &text)?,
            Some(Texts { other, .. }) => {
                let got = other
                    .map_or("one without".into(), |other| format!("one with {other}, which is not read"));
                let message =
                    format!("{origin}: expected an image with a receipt or A1111's parameters, got {got}");
                return Err(Error::new(ErrorKind::Input, message));
            }
            None if is_text => {
                let text = String::from_utf8(text).map_err(|error| {
                    Error::new(ErrorKind::Input, format!("{origin}: expected UTF-8"))
                        .source(error.utf8_error())
                })?;
                Self::of_parameters(&origin, without_bom(&text))?
            }
            None => Self::of_receipt(&origin, &text)?,
        };
        read.imported.warnings.iter().for_each(|line| say(format_args!("{origin}: {line}")));
        Ok(read)
    }

    /// Of the JSON of a receipt or a recipe.
    pub(super) fn of_receipt(origin: &str, json: &[u8]) -> Result<Self, Error> {
        let Receipt { recipe, provenance } = Receipt::parse(origin, json)?;
        let mut imported = Imported { recipe, ..Imported::default() };
        imported.model_name = provenance.as_ref().map(|made| made.model_name.clone());
        Self { imported, provenance }.with_model()
    }

    fn of_parameters(origin: &str, text: &str) -> Result<Self, Error> {
        Self { imported: parameters::read(origin, text)?, provenance: None }.with_model()
    }

    /// With no model where it is the built-in one, by its name.
    fn with_model(mut self) -> Result<Self, Error> {
        let Imported { recipe, model_name, .. } = &mut self.imported;
        if recipe.model.as_ref().is_some_and(|file| file.path.is_none())
            && let Some(name) = model_name
            && *name == Model::built_in()?.manifest().name
        {
            recipe.model = None;
        }
        Ok(self)
    }

    /// The providers on which an image was generated.
    pub(super) fn provider(&self) -> Option<&str> {
        self.provenance.as_ref().map(|made| made.provider.as_str())
    }

    pub(super) fn recipe(&self) -> &Recipe {
        &self.imported.recipe
    }

    /// Refuses a recipe of which a file is still the one of here, and is not there.
    pub(super) fn check(&self, recipe: &Recipe) -> Result<(), Error> {
        let own = files(&self.imported.recipe);
        for (flag, file) in files(recipe) {
            if !own.contains(&(flag, file)) || file.path.as_ref().is_some_and(|path| path.exists()) {
                continue;
            }
            let name = flag.trim_start_matches('-').replace('-', " ");
            let got = match (&file.path, &self.imported.model_name) {
                (Some(path), _) => format!("none at {}", path.display()),
                (None, Some(model)) if flag == "--model" => format!("only the name {model:?}"),
                (None, _) => "no path".into(),
            };
            let message = format!("{name}: expected the file that the image was made with, got {got}");
            return Err(Error::new(ErrorKind::Usage, message).help(format!("give it with {flag}")));
        }
        Ok(())
    }

    /// Tells what an image was made with that is not what the one here was made with.
    pub(super) fn compare(&self, made: &Provenance, additions: &[Addition]) {
        let tell = |what: &str, expected: &str, got: &str| {
            say(format_args!(
                "{what}: expected {expected} as in the receipt, got {got}: the image may differ"
            ));
        };
        if let Some(before) = &self.provenance {
            for (what, expected, got) in differences(before, made) {
                tell(what, expected, got);
            }
            match (&before.model_sha256, &made.model_sha256) {
                (Some(expected), Some(got)) if expected != got => {
                    tell("model", &format!("{} with SHA-256 {expected}", before.model_name), got);
                }
                _ if before.model_files.is_some() && before.model_files != made.model_files => {
                    tell("model", &format!("the files of {}", before.model_name), "others");
                }
                _ => {}
            }
            return;
        }
        if let (Some(expected), Some(got)) = (&self.imported.model_hash, &made.model_sha256)
            && !got.starts_with(expected)
        {
            tell("model", &format!("one with SHA-256 {expected}..."), got);
        }
        for expected in &self.imported.additions {
            let is_it = |addition: &&Addition| {
                addition.is_lora == expected.is_lora && addition.name.eq_ignore_ascii_case(&expected.name)
            };
            match additions.iter().find(is_it) {
                Some(found) if !found.hash.starts_with(&expected.hash) => {
                    tell(&expected.name, &format!("hash {}", expected.hash), &found.hash);
                }
                _ => {}
            }
        }
    }
}

/// What of that which makes an image is not the same, but for files: what it is, what it was before, and what it is now.
pub(super) fn differences<'a>(
    before: &'a Provenance,
    made: &'a Provenance,
) -> Vec<(&'static str, &'a str, &'a str)> {
    // What an older version did not note is not known to differ.
    let cpu = before.cpu.as_deref().zip(made.cpu.as_deref());
    let all = [
        ("calotype", &before.calotype[..], &made.calotype[..]),
        ("ONNX Runtime", &before.onnxruntime, &made.onnxruntime),
        ("provider", &before.provider, &made.provider),
    ];
    let all = all.into_iter().chain(cpu.map(|(before, made)| ("CPU", before, made)));
    all.filter(|(_, before, made)| before != made).collect()
}

/// The files that a recipe names, and their flags.
pub(super) fn files(recipe: &Recipe) -> Vec<(&'static str, &NamedFile)> {
    let Recipe {
        model, unet, vae, text_encoder, lora, embedding, init, mask, control_model, control, ..
    } = recipe;
    let one = [
        ("--model", model.as_ref()),
        ("--unet", unet.as_ref()),
        ("--vae", vae.as_ref()),
        ("--init", init.as_ref().and_then(Image::named)),
        ("--mask", mask.as_ref().and_then(Image::named)),
    ];
    let one = one.into_iter().filter_map(|(flag, file)| Some((flag, file?)));
    let text_encoder = text_encoder.iter().map(|file| ("--text-encoder", file));
    let lora = lora.iter().map(|lora| ("--lora", &lora.file));
    let control_model = control_model.iter().map(|model| ("--control-model", &model.file));
    let control = control.iter().filter_map(|control| Some(("--control", control.image.named()?)));
    let one = one.chain(control_model).chain(control);
    one.chain(text_encoder).chain(lora).chain(embedding.iter().map(|file| ("--embedding", file))).collect()
}

/// All of what is read, if it is not too long.
fn limited(from: impl Read, most: u64, origin: &str) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    let read = from.take(most + 1).read_to_end(&mut bytes);
    read.map_err(|error| Error::new(ErrorKind::Input, origin.to_owned()).source(error))?;
    if bytes.len() as u64 > most {
        let message = format!("{origin}: expected an image, or JSON of at most {most} bytes, got more");
        return Err(Error::new(ErrorKind::Input, message));
    }
    Ok(bytes)
}
