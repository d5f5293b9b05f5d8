//! The check of a bundle: every file's bytes against the manifest, graphs against their contracts, weights against
//! graphs, and whether ONNX Runtime takes them. It changes nothing.

use std::num::NonZeroUsize;
use std::path::Path;

use sha2::{Digest, Sha256};

use crate::engine::{Session, SessionOptions};
use crate::manifest::{self, Contents, Manifest};
use crate::model::{Model, check_files, hex, read};
use crate::plan::Budget;
use crate::{Error, ErrorKind, memory};

/// A bundle that is what its manifest says.
#[derive(Clone, Debug)]
pub struct Verified {
    /// What it says of itself.
    pub manifest: Manifest,
    /// The SHA-256 of the manifest, which vouches for all other files and for which nothing vouches but its publisher.
    pub manifest_sha256: String,
    /// The files that were found whole.
    pub contents: Contents,
    /// The components that were opened.
    pub components: Vec<&'static str>,
}

/// Checks the bundle in a folder. Every damaged file is named, not only the first.
///
/// # Errors
/// [`ErrorKind::Model`] when it is not a bundle, a file is not what the manifest says, or a component cannot be opened;
/// [`ErrorKind::Runtime`] without ONNX Runtime.
pub fn verify(folder: &Path) -> Result<Verified, Error> {
    verify_within(folder, None)
}

/// As [`verify`], within a budget of memory where there is one.
///
/// # Errors
/// As [`verify`]; [`ErrorKind::Memory`] where the budget does not do.
pub fn verify_within(folder: &Path, budget: Option<Budget>) -> Result<Verified, Error> {
    let model = Model::open(folder)?;
    let Some(contents) = model.contents() else {
        return Err(Error::new(
            ErrorKind::Model,
            format!("{}: expected a bundle, got a model without a {}", folder.display(), manifest::FILE_NAME),
        )
        .help("calotype pack makes a bundle of it"));
    };
    check_files(folder, contents, u64::MAX)?;
    let options = super::within(SessionOptions::new(NonZeroUsize::MIN), budget);
    let mut components = Vec::new();
    for part in model.parts() {
        Session::open(part.bind()?, &options)?;
        components.push(part.name());
        part.weights().release_all();
        if let Some(budget) = budget {
            memory::check_budget(part.name(), budget.bytes())?;
        }
    }
    for encoder in model.text_encoders() {
        encoder.tokenizer(encoder.context())?;
    }
    let json = read(&folder.join(manifest::FILE_NAME))?;
    Ok(Verified {
        manifest: model.manifest().clone(),
        manifest_sha256: hex(&Sha256::digest(&json)),
        contents: contents.clone(),
        components,
    })
}
