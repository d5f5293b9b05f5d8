//! Two places for a bundle on a device: a new one is installed beside the one in use, and activated by replacing one symbolic link, so that
//! one whole bundle is active whatever ends the process. It knows files and manifests, and nothing of what a model computes.
//!
//! A folder of slots has the bundles `a` and `b`, and the link `active` to one of them, which is the path of a model like any other.

use std::fmt;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::manifest::{self, FileRecord, Manifest};
use crate::model::{SIGNATURE_SUFFIX, Signer, hex, read};
use crate::whole_file::{self, sync_folder};
use crate::{Error, ErrorKind};

/// The link to the bundle in use.
pub const ACTIVE: &str = "active";
/// What it is made as, before it takes its place.
const NEXT: &str = ".active.next";
/// Whoever changes a folder of slots has this file locked.
const LOCK: &str = ".lock";
/// What is copied at once.
const PART_BYTES: usize = 1 << 20;

/// One of the two places.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slot {
    /// The first.
    A,
    /// The second.
    B,
}

impl Slot {
    /// The other one.
    #[must_use]
    pub fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::A => "a",
            Self::B => "b",
        }
    }
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A folder of slots, which no other process changes meanwhile.
#[derive(Debug)]
pub struct Slots {
    folder: PathBuf,
    /// Locked for as long as this is there.
    _lock: File,
}

impl Slots {
    /// Opens a folder, or makes it.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] where another process changes it; [`ErrorKind::Output`] where it cannot be written to.
    pub fn open(folder: &Path) -> Result<Self, Error> {
        let failed = |error| unwritable(folder, error);
        fs::create_dir_all(folder).map_err(failed)?;
        let path = folder.join(LOCK);
        let lock = OpenOptions::new().write(true).create(true).truncate(false).open(&path).map_err(failed)?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { folder: folder.into(), _lock: lock }),
            Err(TryLockError::WouldBlock) => {
                let problem = format!(
                    "{}: expected slots that no other process changes, got some in use",
                    folder.display()
                );
                Err(Error::new(ErrorKind::Usage, problem).in_file(folder))
            }
            Err(TryLockError::Error(error)) => Err(unwritable(&path, error)),
        }
    }

    /// The slot in use; none before the first is activated.
    ///
    /// # Errors
    /// [`ErrorKind::Input`] where `active` is no link to a slot.
    pub fn active(&self) -> Result<Option<Slot>, Error> {
        let path = self.folder.join(ACTIVE);
        let refuse = |problem: &str| {
            let problem = format!("{}: expected a link to a or b, {problem}", path.display());
            Error::new(ErrorKind::Input, problem).in_file(&path)
        };
        match fs::read_link(&path) {
            Ok(target) => {
                let slot = [Slot::A, Slot::B].into_iter().find(|slot| target == Path::new(slot.name()));
                slot.map(Some).ok_or_else(|| refuse(&format!("got one to {}", target.display())))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(refuse("got none").source(error)),
        }
    }

    /// The slot that is not in use.
    ///
    /// # Errors
    /// As [`Slots::active`].
    pub fn spare(&self) -> Result<Slot, Error> {
        Ok(self.active()?.map_or(Slot::A, Slot::other))
    }

    /// Where the bundle of a slot is.
    pub fn path(&self, slot: Slot) -> PathBuf {
        self.folder.join(slot.name())
    }

    /// Whether a bundle was installed in a slot to its end.
    pub fn has(&self, slot: Slot) -> bool {
        self.path(slot).join(manifest::FILE_NAME).is_file()
    }

    /// Copies a bundle into the slot that is not in use, and compares each file with its hash; with a signer, of the manifest that the key
    /// has signed. What the slot had is removed. Nothing is activated.
    ///
    /// # Errors
    /// [`ErrorKind::Model`] for what is no bundle, not signed, or damaged; [`ErrorKind::Output`] where the slot cannot be written.
    /// The slot has no bundle then, and the one in use is untouched.
    pub fn install(&self, bundle: &Path, signer: Option<&Signer>) -> Result<Slot, Error> {
        let slot = self.spare()?;
        let manifest = bundle.join(manifest::FILE_NAME);
        let json = match signer {
            Some(signer) => signer.manifest(bundle)?,
            None => read(&manifest)?,
        };
        let (_, contents) = Manifest::parse(&manifest.display().to_string(), &json)?;
        let folder = self.path(slot);
        let is_itself = [bundle, &folder].map(|path| fs::canonicalize(path).ok());
        if is_itself[0] == is_itself[1] {
            let problem =
                format!("{}: expected a bundle elsewhere, got the slot to install in", bundle.display());
            return Err(Error::new(ErrorKind::Usage, problem).in_file(bundle));
        }
        self.clear(&folder).map_err(|error| unwritable(&folder, error))?;
        for (name, record) in &contents.files {
            copy(&bundle.join(name), &folder.join(name), record)?;
        }
        let signature = [manifest::FILE_NAME, SIGNATURE_SUFFIX].concat();
        let is_signed = bundle.join(&signature).is_file();
        let written =
            is_signed.then(|| read(&bundle.join(&signature))).transpose()?.map_or(Ok(()), |bytes| {
                whole_file::replace(&folder.join(&signature), |file| file.write_all(&bytes))
            });
        // The manifest is the last file: with it the slot has a bundle.
        written
            .and_then(|()| sync_tree(&folder))
            .and_then(|()| {
                whole_file::replace(&folder.join(manifest::FILE_NAME), |file| file.write_all(&json))
            })
            .and_then(|()| sync_folder(&folder))
            .and_then(|()| sync_folder(&self.folder))
            .map_err(|error| unwritable(&folder, error))?;
        Ok(slot)
    }

    /// Puts a slot in use, in one step.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] for a slot without a bundle; [`ErrorKind::Output`] where the link cannot be made.
    pub fn activate(&self, slot: Slot) -> Result<(), Error> {
        if !self.has(slot) {
            let problem = format!("{}: expected a bundle in slot {slot}, got none", self.folder.display());
            return Err(Error::new(ErrorKind::Usage, problem).in_file(&self.folder));
        }
        let (next, active) = (self.folder.join(NEXT), self.folder.join(ACTIVE));
        let linked = match fs::remove_file(&next) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => link(slot.name(), &next),
        };
        linked
            .and_then(|()| fs::rename(&next, &active))
            .and_then(|()| sync_folder(&self.folder))
            .map_err(|error| unwritable(&active, error))
    }

    /// Empties a slot: its manifest goes first, so that what is left of it is no bundle.
    fn clear(&self, folder: &Path) -> io::Result<()> {
        let missing_is_fine = |result: io::Result<()>| match result {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        };
        missing_is_fine(fs::remove_file(folder.join(manifest::FILE_NAME)))?;
        missing_is_fine(sync_folder(folder))?;
        missing_is_fine(fs::remove_dir_all(folder))?;
        fs::create_dir(folder)
    }
}

/// Copies a file that has this size and hash, and has it on the disk.
fn copy(from: &Path, to: &Path, record: &FileRecord) -> Result<(), Error> {
    let unreadable =
        |error| Error::new(ErrorKind::Model, from.display().to_string()).source(error).in_file(from);
    let failed = |error| unwritable(to, error);
    if !fs::metadata(from).map_err(unreadable)?.is_file() {
        let problem = format!("{}: expected a regular file, got another kind", from.display());
        return Err(Error::new(ErrorKind::Model, problem).in_file(from));
    }
    let mut source = File::open(from).map_err(unreadable)?.take(record.len_bytes.saturating_add(1));
    fs::create_dir_all(whole_file::folder_of(to)).map_err(failed)?;
    let mut target = OpenOptions::new().write(true).create_new(true).open(to).map_err(failed)?;
    let (mut part, mut hash, mut len_bytes) = (vec![0; PART_BYTES], Sha256::new(), 0);
    loop {
        let count = source.read(&mut part).map_err(unreadable)?;
        if count == 0 {
            break;
        }
        hash.update(&part[..count]);
        target.write_all(&part[..count]).map_err(failed)?;
        len_bytes += count as u64;
    }
    let sha256 = hex(&hash.finalize());
    if (len_bytes, &sha256) != (record.len_bytes, &record.sha256) {
        let problem = format!(
            "{}: expected {} bytes with SHA-256 {}, got {} with {sha256}",
            from.display(),
            record.len_bytes,
            record.sha256,
            if len_bytes > record.len_bytes { "more".into() } else { len_bytes.to_string() },
        );
        return Err(Error::new(ErrorKind::Model, problem).in_file(from));
    }
    target.sync_all().map_err(failed)
}

/// Has the names in a folder, and in those within it, on the disk.
fn sync_tree(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            sync_tree(&entry.path())?;
        }
    }
    sync_folder(folder)
}

#[cfg(unix)]
fn link(target: &str, path: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(target, path)
}

#[cfg(not(unix))]
fn link(_: &str, _: &Path) -> io::Result<()> {
    Err(io::Error::new(io::ErrorKind::Unsupported, "slots need symbolic links"))
}

fn unwritable(path: &Path, error: io::Error) -> Error {
    Error::new(ErrorKind::Output, path.display().to_string()).source(error).in_file(path)
}
