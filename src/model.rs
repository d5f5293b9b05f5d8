//! A bundle: a model's manifest, graphs, weights and tokenizer, in a folder or in this program itself.
//! It knows where bytes lie and what they must hash to, and nothing of what they compute.

mod builtin;

use std::borrow::Cow;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use flate2::read::GzDecoder;
use sha2::{Digest, Sha256};

use crate::graph::{BoundGraph, Graph};
use crate::manifest::{self, Component, FileRecord, Manifest};
use crate::weights::Weights;
use crate::{Error, ErrorKind};

/// The longest graph that is unpacked; real ones have a few megabytes.
const MAX_GRAPH_BYTES: u64 = 256 << 20;
/// The longest manifest or tokenizer that is read.
const MAX_TEXT_BYTES: u64 = 64 << 20;

/// An opened model whose files are all there and are what its manifest says they are.
#[derive(Debug)]
pub struct Bundle {
    manifest: Manifest,
    source: Source,
}

#[derive(Debug)]
enum Source {
    BuiltIn,
    Folder(PathBuf),
}

impl Bundle {
    /// The model that every calotype carries.
    ///
    /// # Errors
    /// [`ErrorKind::Internal`] when the program was built around a damaged model.
    pub fn built_in() -> Result<Self, Error> {
        let manifest = Manifest::parse(builtin::NAME, builtin::file(manifest::FILE_NAME)?)?;
        Ok(Self { manifest, source: Source::BuiltIn })
    }

    /// Opens the bundle in a folder and compares every file with the manifest's sizes and hashes.
    ///
    /// # Errors
    /// [`ErrorKind::Model`] when the folder or one of its files is missing, damaged or not understood.
    pub fn open(folder: &Path) -> Result<Self, Error> {
        let shown = folder.display();
        let metadata = fs::metadata(folder)
            .map_err(|error| Error::new(ErrorKind::Model, format!("model {shown}")).source(error))?;
        if !metadata.is_dir() {
            return Err(Error::new(
                ErrorKind::Model,
                format!("model {shown}: expected a folder with a {}, got a file", manifest::FILE_NAME),
            ));
        }
        let path = folder.join(manifest::FILE_NAME);
        let manifest = Manifest::parse(&path.display().to_string(), &read(&path, MAX_TEXT_BYTES)?)?;
        for (name, record) in &manifest.files {
            verify(&folder.join(name), record)?;
        }
        Ok(Self { manifest, source: Source::Folder(folder.to_owned()) })
    }

    /// What the model says of itself.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The bytes of its `tokenizer.json`.
    ///
    /// # Errors
    /// [`ErrorKind::Model`] when the file can no longer be read.
    pub fn tokenizer(&self) -> Result<Cow<'static, [u8]>, Error> {
        self.read(&self.manifest.tokenizer.file)
    }

    /// The graph of a component, checked against the signature that the manifest promises.
    ///
    /// # Errors
    /// [`ErrorKind::Model`] when the graph cannot be read or has another signature.
    pub fn graph(&self, name: &'static str, component: &Component) -> Result<Graph, Error> {
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
    ///
    /// # Errors
    /// [`ErrorKind::Model`] when a file is not safetensors.
    pub fn weights(&self, component: &Component) -> Result<Arc<Weights>, Error> {
        let weights = match (&self.source, &component.weights[..]) {
            (Source::Folder(folder), names) => {
                let paths: Vec<PathBuf> = names.iter().map(|name| folder.join(name)).collect();
                Weights::open(&paths)
            }
            (Source::BuiltIn, [name]) => Weights::from_static(name, builtin::file(name)?),
            (Source::BuiltIn, names) => {
                return Err(Error::new(
                    ErrorKind::Internal,
                    format!("{}: expected one weight file per component, got {}", builtin::NAME, names.len()),
                ));
            }
        };
        Ok(Arc::new(weights?))
    }

    /// The graph of a component with its weights, ready to be opened.
    ///
    /// # Errors
    /// As [`Bundle::graph`] and [`Bundle::weights`]; [`ErrorKind::Model`] when weights and graph do not fit.
    pub fn bind(&self, name: &'static str, component: &Component) -> Result<BoundGraph, Error> {
        self.graph(name, component)?.bind(self.weights(component)?)
    }

    fn read(&self, name: &str) -> Result<Cow<'static, [u8]>, Error> {
        match &self.source {
            Source::BuiltIn => builtin::file(name).map(Cow::Borrowed),
            Source::Folder(folder) => read(&folder.join(name), MAX_TEXT_BYTES).map(Cow::Owned),
        }
    }
}

fn read(path: &Path, max_bytes: u64) -> Result<Vec<u8>, Error> {
    let refuse = |error: io::Error| Error::new(ErrorKind::Model, format!("{}", path.display())).source(error);
    let mut bytes = Vec::new();
    let read =
        File::open(path).and_then(|file| file.take(max_bytes + 1).read_to_end(&mut bytes)).map_err(refuse)?;
    if read as u64 > max_bytes {
        return Err(Error::new(
            ErrorKind::Model,
            format!("{}: expected at most {max_bytes} bytes, got more", path.display()),
        ));
    }
    Ok(bytes)
}

fn verify(path: &Path, record: &FileRecord) -> Result<(), Error> {
    let shown = path.display();
    let refuse = |error: io::Error| Error::new(ErrorKind::Model, format!("{shown}")).source(error);
    let damaged = |what: String| {
        Error::new(ErrorKind::Model, format!("{shown}: {what}"))
            .help("the file is damaged or was replaced: copy the bundle again")
    };
    // Looked at before it is opened: opening a named pipe would wait for ever.
    let metadata = fs::metadata(path).map_err(refuse)?;
    if !metadata.is_file() {
        return Err(damaged("expected a file, got something else".into()));
    }
    let len_bytes = metadata.len();
    if len_bytes != record.len_bytes {
        return Err(damaged(format!("expected {} bytes, got {len_bytes}", record.len_bytes)));
    }
    let mut hash = Sha256::new();
    File::open(path).and_then(|mut file| io::copy(&mut file, &mut hash)).map_err(refuse)?;
    let sha256 = hex(&hash.finalize());
    if sha256 != record.sha256 {
        return Err(damaged(format!("expected SHA-256 {}, got {sha256}", record.sha256)));
    }
    Ok(())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a String takes all text");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_built_in_model_is_what_its_manifest_says() {
        let bundle = Bundle::built_in().unwrap();
        assert!(!bundle.manifest.files.is_empty());
        for (name, record) in &bundle.manifest.files {
            let bytes = builtin::file(name).unwrap();
            assert_eq!(bytes.len() as u64, record.len_bytes, "{name}");
            assert_eq!(hex(&Sha256::digest(bytes)), record.sha256, "{name}");
        }
    }
}
