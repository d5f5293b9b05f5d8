//! The journal of a run: a folder with what the run was asked for and its last snapshot, from which it goes on when its process
//! was killed or the machine lost its power. It knows files, and nothing of what is in a job or a snapshot.
//!
//! Each file is written under another name, synced and renamed, and ends with the SHA-256 of what is before: at any moment
//! there is a whole one, or the one before it.

use std::fs::{self, File, TryLockError};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

use crate::whole_file::sync_folder;
use crate::{Error, ErrorKind};

/// A snapshot waits until so many times as long have passed as the last one took: at most one part in so many of a run's
/// time is spent on them.
const COST_PART: u32 = 100;
/// The files of a journal.
const JOB: &str = "job";
const STATE: &str = "state";
/// What the name of a file that is not whole yet ends with.
const UNFINISHED: &str = "part";
/// What the files begin with; the number changes with what follows.
const START: [u8; 16] = *b"calotype job  01";
/// The longest file that is read: snapshots of the largest images are a tenth of that.
const MAX_BYTES: u64 = 1 << 30;

/// A journal, which no other process can open while this one has it.
#[derive(Debug)]
pub struct Journal {
    folder: PathBuf,
    /// The file of the job, locked.
    _lock: File,
    /// When the last snapshot was written, and how long that took.
    last: Instant,
    cost: Duration,
}

/// How far a job has come.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// How many images are finished.
    pub images: u64,
    /// The [snapshot](crate::run::Run::snapshot) of the next one, or nothing where it has not begun.
    pub snapshot: Vec<u8>,
}

impl Journal {
    /// Begins the journal of a job in a folder, which is made if it is not there.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] where the folder has a journal already; [`ErrorKind::Output`] where it cannot be written to.
    pub fn create(folder: &Path, job: &[u8]) -> Result<Self, Error> {
        let failed =
            |error: io::Error| problem(ErrorKind::Output, folder, "cannot be written to").source(error);
        fs::create_dir_all(folder).map_err(failed)?;
        let folder = &folder.canonicalize().map_err(failed)?;
        if folder.join(JOB).exists() {
            let error = problem(
                ErrorKind::Usage,
                folder,
                "expected a folder without a journal, got one with a journal",
            );
            return Err(error.help("continue its run with `calotype resume`, or delete the folder"));
        }
        write(folder, JOB, job).map_err(failed)?;
        Self::locked(folder)
    }

    /// Opens the journal in a folder, with its job.
    ///
    /// # Errors
    /// [`ErrorKind::Input`] where there is none, or one whose job is damaged or of another version; [`ErrorKind::Usage`] while
    /// another process has it.
    pub fn open(folder: &Path) -> Result<(Self, Vec<u8>), Error> {
        let failed = |error: io::Error| problem(ErrorKind::Input, folder, "expected a journal").source(error);
        let folder = &folder.canonicalize().map_err(failed)?;
        let journal = Self::locked(folder)?;
        let job = read(folder, JOB)?.ok_or_else(|| failed(io::ErrorKind::NotFound.into()))?;
        Ok((journal, job))
    }

    fn locked(folder: &Path) -> Result<Self, Error> {
        let failed = |error: io::Error| problem(ErrorKind::Input, folder, "expected a journal").source(error);
        let lock = File::open(folder.join(JOB)).map_err(failed)?;
        match lock.try_lock() {
            Err(TryLockError::WouldBlock) => {
                let expected = "expected a journal that no process has open, got one that is in use";
                return Err(problem(ErrorKind::Usage, folder, expected));
            }
            // Some file systems have no locks.
            Ok(()) | Err(TryLockError::Error(_)) => {}
        }
        Ok(Self { folder: folder.to_owned(), _lock: lock, last: Instant::now(), cost: Duration::ZERO })
    }

    /// How far the job has come; none where nothing has been written yet.
    ///
    /// # Errors
    /// [`ErrorKind::Input`] for a file that is damaged, cut off or of another version.
    pub fn state(&self) -> Result<Option<State>, Error> {
        let Some(bytes) = read(&self.folder, STATE)? else { return Ok(None) };
        let Some((images, snapshot)) = bytes.split_first_chunk::<8>() else {
            return Err(damaged(&self.folder, STATE));
        };
        Ok(Some(State { images: u64::from_le_bytes(*images), snapshot: snapshot.to_vec() }))
    }

    /// Keeps a snapshot of the image after the first `images`, if the last one is old enough, in proportion to what it took.
    ///
    /// # Errors
    /// Those of `snapshot`, and [`ErrorKind::Output`] where it cannot be written.
    pub fn keep(
        &mut self,
        images: u64,
        snapshot: impl FnOnce() -> Result<Vec<u8>, Error>,
    ) -> Result<(), Error> {
        if self.last.elapsed() < self.cost * COST_PART {
            return Ok(());
        }
        let started = Instant::now();
        self.write_state(images, &snapshot()?)?;
        self.last = Instant::now();
        self.cost = self.last - started;
        Ok(())
    }

    /// Notes that so many images are finished.
    ///
    /// # Errors
    /// [`ErrorKind::Output`] where that cannot be written.
    pub fn finish_image(&mut self, images: u64) -> Result<(), Error> {
        self.write_state(images, &[])
    }

    /// Removes the journal of a job that is done; the folder as well, where nothing else is in it.
    ///
    /// # Errors
    /// [`ErrorKind::Output`] where a file cannot be removed.
    pub fn finish(self) -> Result<(), Error> {
        let failed = |error| problem(ErrorKind::Output, &self.folder, "cannot be removed").source(error);
        for name in [STATE, JOB] {
            for path in [self.folder.join(name), self.folder.join(name).with_extension(UNFINISHED)] {
                match fs::remove_file(path) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
                    _ => {}
                }
            }
        }
        // It may be a folder of other things, too.
        let _ = fs::remove_dir(&self.folder);
        Ok(())
    }

    fn write_state(&self, images: u64, snapshot: &[u8]) -> Result<(), Error> {
        write(&self.folder, STATE, &[&images.to_le_bytes(), snapshot].concat())
            .map_err(|error| problem(ErrorKind::Output, &self.folder, "cannot be written to").source(error))
    }
}

fn problem(kind: ErrorKind, folder: &Path, problem: &str) -> Error {
    Error::new(kind, format!("journal: {}: {problem}", folder.display()))
}

fn damaged(folder: &Path, name: &str) -> Error {
    problem(
        ErrorKind::Input,
        &folder.join(name),
        "expected a complete file, got one that is damaged or truncated",
    )
}

/// Replaces a file as a whole, also where the power is lost meanwhile.
fn write(folder: &Path, name: &str, contents: &[u8]) -> io::Result<()> {
    let path = folder.join(name);
    let part = path.with_extension(UNFINISHED);
    let digest = Sha256::new().chain_update(START).chain_update(contents).finalize();
    let mut file = File::create(&part)?;
    [&START[..], contents, &digest[..]].iter().try_for_each(|bytes| file.write_all(bytes))?;
    file.sync_all()?;
    fs::rename(&part, &path)?;
    // Only then the new name is on the disk as well.
    sync_folder(folder)
}

/// What a file holds, if there is one.
fn read(folder: &Path, name: &str) -> Result<Option<Vec<u8>>, Error> {
    let path = folder.join(name);
    let failed = |error: io::Error| problem(ErrorKind::Input, &path, "cannot be read").source(error);
    let file = match File::open(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file.map_err(failed)?,
    };
    let mut bytes = Vec::new();
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
    let Some((whole, digest)) = bytes.split_last_chunk::<32>() else { return Err(damaged(folder, name)) };
    if Sha256::digest(whole)[..] != digest[..] {
        return Err(damaged(folder, name));
    }
    match whole.strip_prefix(&START) {
        Some(contents) => Ok(Some(contents.to_vec())),
        None => {
            Err(problem(ErrorKind::Input, &path, "expected a file of this version of calotype, got another"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_kept_is_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().join("new/journal");
        let mut journal = Journal::create(&place, b"a job").unwrap();
        assert_eq!(journal.state().unwrap(), None);
        journal.keep(2, || Ok(vec![1, 2, 3])).unwrap();
        // Too soon, by what the first one took.
        journal.cost = Duration::from_secs(3600);
        journal.keep(2, || panic!("not yet")).unwrap();
        assert_eq!(journal.state().unwrap(), Some(State { images: 2, snapshot: vec![1, 2, 3] }));
        let other = Journal::open(&place).expect_err("one process at a time");
        assert_eq!(other.kind(), ErrorKind::Usage, "{other}");
        drop(journal);

        let created = Journal::create(&place, b"another").expect_err("a folder with a journal");
        assert_eq!(created.kind(), ErrorKind::Usage, "{created}");
        let (mut journal, job) = Journal::open(&place).unwrap();
        assert_eq!(job, b"a job");
        journal.finish_image(3).unwrap();
        assert_eq!(journal.state().unwrap(), Some(State { images: 3, snapshot: vec![] }));
        journal.finish().unwrap();
        assert!(!place.exists() && folder.path().join("new").exists());
        assert_eq!(Journal::open(&place).unwrap_err().kind(), ErrorKind::Input);
    }

    #[test]
    fn damaged_files_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let mut journal = Journal::create(folder.path(), b"a job").unwrap();
        journal.keep(0, || Ok(vec![7; 40])).unwrap();
        let path = folder.path().join(STATE);
        let whole = fs::read(&path).unwrap();
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            for damaged in [&bytes[..], &whole[..at]] {
                fs::write(&path, damaged).unwrap();
                assert_eq!(journal.state().unwrap_err().kind(), ErrorKind::Input, "byte {at}");
            }
        }
        // Of another version, and whole.
        let other = [b"calotype job  99", &whole[16..whole.len() - 32]].concat();
        fs::write(&path, [&other[..], &Sha256::digest(&other)[..]].concat()).unwrap();
        let error = journal.state().unwrap_err().to_string();
        assert!(error.contains("this version"), "{error}");
        // A write that was cut off leaves the file before it.
        fs::write(&path, &whole).unwrap();
        fs::write(path.with_extension(UNFINISHED), b"half").unwrap();
        assert_eq!(journal.state().unwrap().unwrap().snapshot, vec![7; 40]);
        drop(journal);
        fs::write(folder.path().join(JOB), b"x").unwrap();
        assert_eq!(Journal::open(folder.path()).unwrap_err().kind(), ErrorKind::Input);
    }
}
