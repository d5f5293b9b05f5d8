//! Signed bundles: a key vouches for the manifest, and the manifest's hashes for every file. It knows minisign's format, and no
//! secret keys.

use std::path::Path;

use minisign_verify::{PublicKey, Signature};

use super::bundle::check_files;
use super::{read, read_at_most};
use crate::manifest::{self, Manifest};
use crate::{Error, ErrorKind};

/// What is added to the manifest's name for the file of its signature, as `minisign -S` does.
pub(crate) const SIGNATURE_SUFFIX: &str = ".minisig";
/// The longest file of a key or a signature; real ones have a few hundred bytes.
const MAX_KEY_BYTES: u64 = 64 << 10;

/// A public key, as `minisign -G` makes it.
#[derive(Clone, Debug)]
pub struct Signer(PublicKey);

impl Signer {
    /// That of a file, or the key itself in base64, which begins with `RW`.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] for what is neither.
    pub fn open(key: &str) -> Result<Self, Error> {
        let refuse = || {
            let problem =
                format!("signature: expected a public key of minisign or a file with one, got {key:?}");
            Error::new(ErrorKind::Usage, problem)
        };
        let path = Path::new(key);
        let found = match path.exists() {
            true => PublicKey::decode(&text(path).map_err(|error| refuse().source(error))?),
            false => PublicKey::from_base64(key),
        };
        found.map(Self).map_err(|error| refuse().source(error))
    }

    /// Checks that the model at a path is a bundle whose manifest this key has signed, in `calotype.json.minisig` beside it, and
    /// whose files are all those of the manifest: every one is read.
    ///
    /// # Errors
    /// [`ErrorKind::Model`] for any other.
    pub fn check(&self, path: &Path) -> Result<(), Error> {
        let json = self.manifest(path)?;
        let (_, contents) = Manifest::parse(&path.join(manifest::FILE_NAME).display().to_string(), &json)?;
        check_files(path, &contents, u64::MAX)
    }

    /// The manifest of a bundle, which this key has signed.
    pub(crate) fn manifest(&self, path: &Path) -> Result<Vec<u8>, Error> {
        let manifest = path.join(manifest::FILE_NAME);
        let place = manifest.display().to_string();
        let refuse =
            |problem: &str| Error::new(ErrorKind::Model, format!("{place}: {problem}")).in_file(&manifest);
        if !manifest.is_file() {
            let problem = format!("{}: expected a signed bundle, got another model", path.display());
            return Err(
                Error::new(ErrorKind::Model, problem).help("pack it, and sign its manifest with minisign")
            );
        }
        let json = read(&manifest)?;
        let signature = path.join([manifest::FILE_NAME, SIGNATURE_SUFFIX].concat());
        let signature = text(&signature).map_err(|error| refuse("expected a signature").source(error))?;
        let signature = Signature::decode(&signature)
            .map_err(|error| refuse("expected a signature in minisign's format").source(error))?;
        self.0
            .verify(&json, &signature, false)
            .map_err(|error| refuse("expected one that the key has signed, got another").source(error))?;
        Ok(json)
    }
}

/// The text of a small file.
fn text(path: &Path) -> Result<String, Error> {
    let refuse =
        |error| Error::new(ErrorKind::Model, format!("{}: expected text", path.display())).source(error);
    String::from_utf8(read_at_most(path, MAX_KEY_BYTES)?).map_err(refuse)
}
