//! The folder in which a bundle grows, `DEST.partial`: locked, with a journal of the files that are whole, so that a
//! pack that was stopped can go on; in the end it is renamed. It knows nothing of what the files hold.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs::{self, File, TryLockError};
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::manifest::FileRecord;
use crate::model::{check_file, hex};
use crate::whole_file::sync_folder;
use crate::{Error, ErrorKind};

/// The file that says which others are whole; its lock keeps a second pack out.
const JOURNAL: &str = "pack.journal";
/// The longest journal that is read; real ones have a line per component.
const MAX_JOURNAL_BYTES: u64 = 1 << 20;
/// Bytes that are written at once.
const BUFFER_BYTES: usize = 1 << 20;

/// A bundle in the making.
pub(super) struct Folder {
    destination: PathBuf,
    /// Where the files are until they are all there.
    path: PathBuf,
    journal: File,
    finished: BTreeMap<String, Finished>,
}

/// A line of the journal: a file that is whole and on disk.
#[derive(Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Finished {
    file: String,
    /// The hash of what it was made of.
    source: String,
    record: FileRecord,
}

impl Folder {
    /// Makes the folder, or takes up the one that a pack into `destination` left when it was stopped.
    ///
    /// # Errors
    /// [`ErrorKind::Output`] when the destination is taken or cannot be written to, or another pack is at work there.
    pub(super) fn open(destination: &Path) -> Result<Self, Error> {
        let refuse =
            |problem: &str| Error::new(ErrorKind::Output, format!("{}: {problem}", destination.display()));
        let Some(name) = destination.file_name() else {
            return Err(refuse("expected the name of a new folder"));
        };
        let taken = "expected a new path, got one that exists";
        if is_there(destination) {
            return Err(refuse(taken).help("choose another name, or remove it first"));
        }
        let mut partial = OsString::from(name);
        partial.push(".partial");
        let path = destination.with_file_name(partial);
        let at = |path: &Path| {
            let path = path.display().to_string();
            move |error: io::Error| Error::new(ErrorKind::Output, path).source(error)
        };

        let journal = path.join(JOURNAL);
        match fs::create_dir(&path) {
            Ok(()) => {}
            // A folder that no pack has made is somebody's.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && is_ours(&path, &journal) => {}
            Err(error) => return Err(at(&path)(error)),
        }
        let mut file =
            File::options().read(true).append(true).create(true).open(&journal).map_err(at(&journal))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(refuse("destination is in use by another `calotype pack`"));
            }
            Err(TryLockError::Error(error)) => return Err(at(&journal)(error)),
        }
        // Another pack may have come to its end before this one had the lock.
        if is_there(destination) || !is_there(&journal) {
            return Err(refuse(taken));
        }
        let mut text = String::new();
        let read = (&mut file).take(MAX_JOURNAL_BYTES).read_to_string(&mut text);
        // What cannot be read is as good as not there; every file that it would name is made again.
        let lines = if read.is_ok() { text.lines() } else { "".lines() };
        let finished = lines.filter_map(|line| serde_json::from_str(line).ok());
        let finished = finished.map(|line: Finished| (line.file.clone(), line)).collect();
        if !text.is_empty() && !text.ends_with('\n') {
            file.write_all(b"\n").map_err(at(&journal))?;
        }
        Ok(Self { destination: destination.to_owned(), path, journal: file, finished })
    }

    /// Where the files are until [`Folder::finish`].
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The record of a file that an earlier run made of the same source, if it is still what it was.
    pub(super) fn kept(&self, name: &str, source: impl FnOnce() -> String) -> Option<FileRecord> {
        let finished = self.finished.get(name)?;
        let is_whole = check_file(&self.path.join(name), &finished.record).is_ok();
        (is_whole && source() == finished.source).then(|| finished.record.clone())
    }

    /// Makes a file of what `write` writes.
    pub(super) fn write(
        &self,
        name: &str,
        write: impl FnOnce(&mut Output) -> Result<(), Failure>,
    ) -> Result<FileRecord, Error> {
        self.try_write(&self.path.join(name), write).map_err(|failure| match failure {
            Failure::Content(error) => error,
            Failure::Write(error) => self.unwritable(name, error),
        })
    }

    fn try_write(
        &self,
        path: &Path,
        write: impl FnOnce(&mut Output) -> Result<(), Failure>,
    ) -> Result<FileRecord, Failure> {
        fs::create_dir_all(path.parent().expect("a file in the folder"))?;
        let file = BufWriter::with_capacity(BUFFER_BYTES, File::create(path)?);
        let mut output = Output { file, hash: Sha256::new(), len_bytes: 0 };
        write(&mut output)?;
        let Output { file, hash, len_bytes } = output;
        file.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
        Ok(FileRecord { len_bytes, sha256: hex(&hash.finalize()) })
    }

    /// Notes that a file is whole.
    pub(super) fn note(&mut self, name: &str, source: String, record: &FileRecord) -> Result<(), Error> {
        let finished = Finished { file: name.into(), source, record: record.clone() };
        let mut line = serde_json::to_vec(&finished).expect("names and numbers are JSON");
        line.push(b'\n');
        let written = self.journal.write_all(&line).and_then(|()| self.journal.sync_data());
        written.map_err(|error| self.unwritable(JOURNAL, error))
    }

    /// Gives the folder its name. Only files of these names stay in it.
    pub(super) fn finish(self, names: &BTreeSet<&str>) -> Result<(), Error> {
        let done = sweep(&self.path, "", names).and_then(|()| {
            fs::remove_file(self.path.join(JOURNAL))?;
            sync_folder(&self.path)?;
            fs::rename(&self.path, &self.destination)?;
            sync_folder(match self.destination.parent() {
                Some(parent) if parent != Path::new("") => parent,
                _ => Path::new("."),
            })
        });
        done.map_err(|error| {
            Error::new(ErrorKind::Output, format!("{}", self.destination.display())).source(error)
        })
    }

    /// Removes what was made: another run could not go on from it either.
    pub(super) fn discard(self) {
        // What cannot be removed is in nobody's way: the next pack takes it up, or sweeps it out.
        let _ = fs::remove_dir_all(&self.path);
    }

    fn unwritable(&self, name: &str, error: io::Error) -> Error {
        Error::new(ErrorKind::Output, format!("{}", self.path.join(name).display()))
            .source(error)
            .help(format!("run the same command again to continue, or remove {}", self.path.display()))
    }
}

/// Why a file was not made.
pub(super) enum Failure {
    /// What was to be written.
    Content(Error),
    /// The place where it was written.
    Write(io::Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Content(error)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Write(error)
    }
}

/// A file that is being written.
pub(super) struct Output {
    file: BufWriter<File>,
    hash: Sha256,
    len_bytes: u64,
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.hash.update(&bytes[..written]);
        self.len_bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Whether anything has this name, be it a link to nothing.
fn is_there(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok()
}

/// Whether a folder is one that [`Folder::open`] made.
fn is_ours(folder: &Path, journal: &Path) -> bool {
    let is = |path: &Path, kind: fn(&fs::Metadata) -> bool| {
        fs::symlink_metadata(path).is_ok_and(|found| kind(&found))
    };
    let is_empty = || fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_none());
    is(folder, fs::Metadata::is_dir) && (is(journal, fs::Metadata::is_file) || is_empty())
}

/// Removes everything from a folder but the journal and the files of these names, and makes the folders lasting.
fn sweep(folder: &Path, prefix: &str, names: &BTreeSet<&str>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
        let inside = format!("{name}/");
        if entry.file_type()?.is_dir() {
            match names.iter().any(|kept| kept.starts_with(&inside)) {
                true => sweep(&entry.path(), &inside, names)?,
                false => fs::remove_dir_all(entry.path())?,
            }
        } else if name != JOURNAL && !names.contains(name.as_str()) {
            fs::remove_file(entry.path())?;
        }
    }
    sync_folder(folder)
}
