//! A bundle: a model's manifest, graphs, weights and tokenizers, in a folder or in this program itself.
//! It knows where bytes lie and what they must hash to, and nothing of what they compute.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use flate2::read::GzDecoder;
use sha2::{Digest, Sha256};

use super::{Model, Part, TextEncoderPart, Vocabulary, builtin, read};
use crate::graph::Graph;
use crate::graph::int8::WeightBits;
use crate::manifest::{self, Component, Contents, FileRecord, Manifest, TokenizerFiles};
use crate::weights::Weights;
use crate::{Error, ErrorKind};

/// The longest graph that is unpacked; real ones have a few megabytes.
const MAX_GRAPH_BYTES: u64 = 256 << 20;

/// The longest file that is hashed whenever its bundle is opened: 64 MiB take about a twentieth of a second.
const HASHED_AT_OPEN_BYTES: u64 = 64 << 20;

/// Where the files of a bundle are.
enum Files<'a> {
    BuiltIn,
    Folder(&'a Path),
}

/// The model that every calotype carries.
pub(super) fn built_in() -> Result<Model, Error> {
    let (manifest, contents) = Manifest::parse(builtin::NAME, builtin::file(manifest::FILE_NAME)?)?;
    assemble(&Files::BuiltIn, manifest, contents)
}

/// Opens the bundle in a folder and compares its files with the manifest: the size of all, and the hashes of those that
/// are hashed in an instant; `calotype verify` hashes the others too.
pub(super) fn open(folder: &Path) -> Result<Model, Error> {
    let path = folder.join(manifest::FILE_NAME);
    let (manifest, contents) = Manifest::parse(&path.display().to_string(), &read(&path)?)?;
    check_files(folder, &contents, HASHED_AT_OPEN_BYTES)?;
    assemble(&Files::Folder(folder), manifest, contents)
}

/// Compares every file of a bundle with its record, and the hash of those of at most `hashed_bytes`; all that differ are
/// named.
pub(crate) fn check_files(folder: &Path, contents: &Contents, hashed_bytes: u64) -> Result<(), Error> {
    let checked = contents.files.iter().map(|(name, record)| {
        let check = if record.len_bytes <= hashed_bytes { check_file } else { check_size };
        check(&folder.join(name), record)
    });
    let mut damaged: Vec<Error> = checked.filter_map(Result::err).collect();
    match damaged.len() {
        0 => Ok(()),
        1 => Err(damaged.remove(0)),
        count => {
            let (all, each) = (contents.files.len(), damaged.iter().map(Error::to_string));
            let each = each.collect::<Vec<_>>().join("; ");
            Err(Error::new(
                ErrorKind::Model,
                format!("{}: {count} of {all} files have changed: {each}", folder.display()),
            ))
        }
    }
}

fn assemble(files: &Files, manifest: Manifest, contents: Contents) -> Result<Model, Error> {
    let components = &contents.components;
    let part = |name, component| files.part(name, component);
    let mut text_encoders = Vec::new();
    let encoders =
        [("text_encoder", &components.text_encoder), ("text_encoder_2", &components.text_encoder_2)];
    for (name, component) in encoders {
        if let Some(component) = component {
            let tokenizer =
                component.tokenizer.as_ref().expect("a manifest with a tokenizer per text encoder");
            let vocabulary = files.vocabulary(tokenizer)?;
            let (special, context) = (tokenizer.special_tokens(), tokenizer.context);
            text_encoders.push(TextEncoderPart::new(part(name, component)?, vocabulary, special, context));
        }
    }
    let unet = part("unet", &components.unet)?;
    let vae_decoder = part("vae_decoder", &components.vae_decoder)?;
    let vae_encoder = components.vae_encoder.as_ref().map(|c| part("vae_encoder", c)).transpose()?;
    let model = Model::new(manifest, text_encoders, unet, vae_decoder, vae_encoder)?;
    let notes = components.iter().filter_map(|(name, component)| {
        let bits = component.compute.as_ref()?.weight_bits;
        (bits == WeightBits::Eight && WeightBits::of_this_cpu() == WeightBits::Seven).then(|| {
            format!(
                "{name}: expected a CPU with VNNI for products with 8-bit weights, got one without, which cuts sums off: \
                 pack the model again with 7-bit weights"
            )
        })
    });
    let notes = notes.collect();
    Ok(Model { contents: Some(contents), notes, ..model })
}

impl Files<'_> {
    fn part(&self, name: &'static str, component: &Component) -> Result<Part, Error> {
        let graph = self.graph(name, component)?;
        let weights = self.weights(component)?;
        Part::new(name, component.graph.clone(), component.weights.join(", "), graph, weights)
    }

    /// The graph of a component, checked against the signature that the manifest promises.
    fn graph(&self, name: &'static str, component: &Component) -> Result<Graph, Error> {
        let packed = self.read(&component.graph)?;
        let mut onnx = Vec::new();
        let mut unpacked = GzDecoder::new(&packed[..]).take(MAX_GRAPH_BYTES + 1);
        let read = unpacked.read_to_end(&mut onnx).map_err(|error| {
            Error::new(ErrorKind::Model, format!("{}: expected a gzipped graph", component.graph))
                .source(error)
        })?;
        if read as u64 > MAX_GRAPH_BYTES {
            return Err(Error::new(
                ErrorKind::Model,
                format!("{}: expected a graph of at most {MAX_GRAPH_BYTES} bytes, got more", component.graph),
            ));
        }
        let graph = Graph::decode(name, &onnx)?;
        component.check(name, &graph)?;
        Ok(graph)
    }

    /// The weights of a component, where they lie.
    fn weights(&self, component: &Component) -> Result<Arc<Weights>, Error> {
        let weights = match (self, &component.weights[..]) {
            (Self::Folder(folder), names) => {
                let paths: Vec<PathBuf> = names.iter().map(|name| folder.join(name)).collect();
                Weights::open(&paths)
            }
            (Self::BuiltIn, [name]) => Weights::from_static(name, builtin::file(name)?),
            (Self::BuiltIn, names) => {
                return Err(Error::new(
                    ErrorKind::Internal,
                    format!("{}: expected one weight file per component, got {}", builtin::NAME, names.len()),
                ));
            }
        };
        Ok(Arc::new(weights?))
    }

    fn vocabulary(&self, tokenizer: &TokenizerFiles) -> Result<Vocabulary, Error> {
        Ok(match &tokenizer.files[..] {
            [] => Vocabulary::Clip,
            [json] => Vocabulary::Json(self.read(json)?),
            [vocabulary, merges, ..] => {
                Vocabulary::Merges { vocabulary: self.read(vocabulary)?, merges: self.read(merges)? }
            }
        })
    }

    fn read(&self, name: &str) -> Result<Cow<'static, [u8]>, Error> {
        match self {
            Self::BuiltIn => builtin::file(name).map(Cow::Borrowed),
            Self::Folder(folder) => read(&folder.join(name)).map(Cow::Owned),
        }
    }
}

/// Compares a file with what is recorded of it.
pub(crate) fn check_file(path: &Path, record: &FileRecord) -> Result<(), Error> {
    check_size(path, record)?;
    let mut hash = Sha256::new();
    File::open(path).and_then(|mut file| io::copy(&mut file, &mut hash)).map_err(|error| {
        Error::new(ErrorKind::Model, path.display().to_string()).source(error).in_file(path)
    })?;
    let sha256 = hex(&hash.finalize());
    if sha256 != record.sha256 {
        return Err(damaged(path, format!("expected SHA-256 {}, got {sha256}", record.sha256)));
    }
    Ok(())
}

fn check_size(path: &Path, record: &FileRecord) -> Result<(), Error> {
    // Looked at before it is opened: opening a named pipe would wait for ever.
    let metadata = fs::metadata(path).map_err(|error| {
        Error::new(ErrorKind::Model, path.display().to_string()).source(error).in_file(path)
    })?;
    if !metadata.is_file() {
        return Err(damaged(path, "expected a regular file, got another kind".into()));
    }
    let len_bytes = metadata.len();
    if len_bytes != record.len_bytes {
        return Err(damaged(path, format!("expected {} bytes, got {len_bytes}", record.len_bytes)));
    }
    Ok(())
}

fn damaged(path: &Path, what: String) -> Error {
    Error::new(ErrorKind::Model, format!("{}: {what}", path.display()))
        .help("the file is damaged or was replaced: copy the bundle again")
        .in_file(path)
}

/// Bytes in lower-case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a String takes all text");
        text
    })
}

#[cfg(test)]
#[cfg(feature = "builtin")]
mod tests {
    use super::*;

    #[test]
    fn the_built_in_model_is_what_its_manifest_says() {
        let contents = built_in().unwrap().contents.expect("the contents of a bundle");
        assert!(!contents.files.is_empty());
        for (name, record) in &contents.files {
            let bytes = builtin::file(name).unwrap();
            assert_eq!(bytes.len() as u64, record.len_bytes, "{name}");
            assert_eq!(hex(&Sha256::digest(bytes)), record.sha256, "{name}");
        }
    }
}
