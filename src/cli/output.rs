//! Where an image goes: a file that is there whole or not at all, a device, a pipe or standard output.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process;

use calotype::image_file::{OutputFormat, RecipeText, encode, encode_with_alpha};
use calotype::{Error, ErrorKind};
use image::{RgbImage, RgbaImage};

use super::say;

/// Names of files that are not whole yet, where there is no way to write a file without a name.
const UNFINISHED: (&str, &str) = (".calotype-", ".tmp");
/// The most links that are followed from one name to the next, as Linux has it.
const MAX_LINKS: usize = 40;

/// A place that can be written to, as far as can be told before there is an image.
#[derive(Clone)]
pub(super) struct Destination {
    path: PathBuf,
    place: Place,
    format: OutputFormat,
}

/// What stands for standard output.
pub(super) const STDOUT: &str = "-";

#[derive(Clone)]
enum Place {
    /// A file, where the links end; it is replaced by a whole one.
    File(PathBuf),
    /// A device or pipe, which is written to as it is.
    Special,
    Stdout,
}

impl Destination {
    /// Checks a path: [`ErrorKind::Usage`] for an extension of no format that is written, [`ErrorKind::Output`] when it is a folder or a disk, may not be written to, or its folder is
    /// missing or cannot be written to. Links are followed: what they lead to is written.
    pub(super) fn open(path: PathBuf) -> Result<Self, Error> {
        let format = OutputFormat::of_path(&path)?;
        if path == Path::new(STDOUT) {
            return Ok(Self { path, place: Place::Stdout, format });
        }
        let refuse = |problem: String| {
            Error::new(ErrorKind::Output, format!("{}: {problem}", path.display())).in_file(&path)
        };
        let folder = || refuse("expected a file, got a folder".into()).help("add a file name: OUT.png");
        let place = match fs::metadata(&path) {
            Ok(found) if found.is_dir() => return Err(folder()),
            // The system finds no such folder, and would say so when the image is done.
            Err(_) if path.as_os_str().as_encoded_bytes().ends_with(b"/") => return Err(folder()),
            Ok(found) if is_disk(&found) => return Err(refuse("expected a file, got a block device".into())),
            Ok(found) if !found.is_file() => Place::Special,
            Ok(_) => Place::File(follow(&path)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Place::File(follow(&path)),
            Err(error) => return Err(refuse("expected a path for a file".into()).source(error)),
        };
        if let Place::File(file) = &place {
            let folder = folder_of(file);
            // A file without a name: it is gone with this process, whatever happens.
            tempfile::tempfile_in(folder)
                .map_err(|error| refuse("expected a folder that can be written to".into()).source(error))?;
            if file.exists() {
                OpenOptions::new()
                    .write(true)
                    .open(file)
                    .map_err(|error| refuse("expected a file that can be written to".into()).source(error))?;
            }
            sweep(folder);
        }
        Ok(Self { path, place, format })
    }

    /// Whether it is a device or pipe, which takes any number of images one after another.
    pub(super) fn is_special(&self) -> bool {
        matches!(self.place, Place::Special)
    }

    /// Whether both are one file.
    pub(super) fn is_same_file(&self, other: &Self) -> bool {
        let file = |of: &Self| match &of.place {
            Place::File(path) => path
                .canonicalize()
                .ok()
                .or_else(|| Some(folder_of(path).canonicalize().ok()?.join(path.file_name()?))),
            Place::Special | Place::Stdout => None,
        };
        file(self).is_some_and(|path| file(other) == Some(path))
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Writes an image, and its recipe if it has one; what was there before stays until the new file is whole.
    pub(super) fn write(&self, image: &RgbImage, text: Option<RecipeText<'_>>) -> Result<(), Error> {
        self.write_by(|out| {
            if let Some(left_out) = encode(image, self.format, text, out)? {
                say(format_args!("{}: {left_out} is too long for this format; use PNG", self.path.display()));
            }
            Ok(())
        })
    }

    /// Writes an image with its alpha channel, in the same way.
    pub(super) fn write_with_alpha(&self, image: &RgbaImage) -> Result<(), Error> {
        self.write_by(|out| encode_with_alpha(image, self.format, out))
    }

    fn write_by(&self, encode: impl Fn(&mut dyn Write) -> io::Result<()>) -> Result<(), Error> {
        let encode = |out: &mut dyn Write| {
            let mut out = BufWriter::new(out);
            encode(&mut out)?;
            out.flush()
        };
        let write = |file: &mut File| encode(file);
        let written = match &self.place {
            Place::Special => {
                OpenOptions::new().write(true).open(&self.path).and_then(|mut file| write(&mut file))
            }
            // A reader that has gone away (`| head`) has all that it wants.
            Place::Stdout => match encode(&mut io::stdout().lock()) {
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
                written => written,
            },
            Place::File(path) => replace(path, write),
        };
        written.map_err(|error| {
            Error::new(ErrorKind::Output, format!("{}: the image could not be written", self.path.display()))
                .source(error)
                .in_file(&self.path)
        })
    }
}

/// The name that a chain of links ends in, whether or not there is a file of that name.
fn follow(path: &Path) -> PathBuf {
    let mut path = path.to_owned();
    for _ in 0..MAX_LINKS {
        let Ok(link) = fs::read_link(&path) else { break };
        path = folder_of(&path).join(link);
    }
    path
}

/// Makes a file of what `write` writes, with the permissions of the file that it replaces, or of a new one.
fn replace(path: &Path, write: impl Fn(&mut File) -> io::Result<()>) -> io::Result<()> {
    let before = fs::metadata(path).ok();
    if let Some(mut file) = unnamed(folder_of(path)) {
        finish(&mut file, before.as_ref(), &write)?;
        if link(&file, path, before.is_some())? {
            return Ok(());
        }
    }
    let (mut file, name) = named(path, before.is_some())?;
    finish(&mut file, before.as_ref(), &write).and_then(|()| fs::rename(&name, path)).inspect_err(|_| {
        let _ = fs::remove_file(&name);
    })
}

fn finish(
    file: &mut File,
    before: Option<&Metadata>,
    write: impl Fn(&mut File) -> io::Result<()>,
) -> io::Result<()> {
    write(file)?;
    if let Some(before) = before {
        keep_permissions(file, before)?;
    }
    file.sync_all()
}

/// A new file under a name of its own beside `path`, locked until it has the name it is meant for; private where it
/// replaces a file whose permissions are not its own yet.
fn named(path: &Path, is_private: bool) -> io::Result<(File, PathBuf)> {
    loop {
        let name = unfinished(path);
        let mut options = OpenOptions::new();
        options.write(true).create_new(true);
        #[cfg(unix)]
        if is_private {
            std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        }
        #[cfg(not(unix))]
        let _ = is_private;
        match options.open(&name) {
            Ok(file) => {
                // Not every file system has locks; where there are none, nothing is swept out either.
                let is_taken = matches!(file.try_lock(), Err(fs::TryLockError::WouldBlock));
                if !is_taken && name.exists() {
                    return Ok((file, name));
                }
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
}

/// A name that no other file beside `path` has, as far as chance goes.
fn unfinished(path: &Path) -> PathBuf {
    use std::hash::{BuildHasher, RandomState};
    let random = RandomState::new().hash_one(process::id());
    folder_of(path).join(format!("{}{random:016x}{}", UNFINISHED.0, UNFINISHED.1))
}

/// Removes what runs that were killed left in a folder: files of our names whose locks went with their process.
fn sweep(folder: &Path) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let is_ours = name.starts_with(UNFINISHED.0)
            && name.ends_with(UNFINISHED.1)
            && name.len() == UNFINISHED.0.len() + 16 + UNFINISHED.1.len();
        if !is_ours || !entry.file_type().is_ok_and(|found| found.is_file()) {
            continue;
        }
        let Ok(file) = OpenOptions::new().write(true).open(entry.path()) else { continue };
        if file.try_lock().is_ok() {
            // The lock is held until it is gone.
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// A file without a name: whatever ends this process, nothing is left of it.
#[cfg(target_os = "linux")]
fn unnamed(folder: &Path) -> Option<File> {
    use rustix::fs::{Mode, OFlags, open};
    // The process's mask takes from these what it takes from any new file.
    let mode = Mode::RUSR | Mode::WUSR | Mode::RGRP | Mode::WGRP | Mode::ROTH | Mode::WOTH;
    let file = File::from(open(folder, OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC, mode).ok()?);
    // For the moment in which it has a name that is not yet the right one.
    file.try_lock().ok()?;
    Some(file)
}

/// Gives an unnamed file its name; `false` where the system cannot.
#[cfg(target_os = "linux")]
fn link(file: &File, path: &Path, is_taken: bool) -> io::Result<bool> {
    use std::os::fd::AsRawFd;

    use rustix::fs::{AtFlags, CWD, linkat};
    use rustix::io::Errno;
    let own = format!("/proc/self/fd/{}", file.as_raw_fd());
    let link = |name: &Path| linkat(CWD, &own, CWD, name, AtFlags::SYMLINK_FOLLOW);
    if !is_taken {
        match link(path) {
            Ok(()) => return Ok(true),
            // Somebody was quicker: that file is replaced.
            Err(Errno::EXIST) => {}
            Err(_) => return Ok(false),
        }
    }
    let name = unfinished(path);
    if link(&name).is_err() {
        return Ok(false);
    }
    fs::rename(&name, path).inspect_err(|_| {
        let _ = fs::remove_file(&name);
    })?;
    Ok(true)
}

#[cfg(not(target_os = "linux"))]
fn unnamed(_: &Path) -> Option<File> {
    None
}

#[cfg(not(target_os = "linux"))]
fn link(_: &File, _: &Path, _: bool) -> io::Result<bool> {
    Ok(false)
}

/// Gives a file the owner, where the system allows it, and the permissions that another has.
#[cfg(unix)]
fn keep_permissions(file: &File, of: &Metadata) -> io::Result<()> {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, fchown};
    const GROUP: u32 = 0o070;
    let own = file.metadata()?;
    let mut mode = of.mode() & 0o7777;
    if own.uid() != of.uid() {
        let _ = fchown(file, Some(of.uid()), None);
    }
    if own.gid() != of.gid() && fchown(file, None, Some(of.gid())).is_err() {
        // These would be another group's.
        mode &= !GROUP;
    }
    file.set_permissions(fs::Permissions::from_mode(mode))
}

#[cfg(not(unix))]
fn keep_permissions(_: &File, _: &Metadata) -> io::Result<()> {
    Ok(())
}

/// Whether it is a disk, which an image would damage.
#[cfg(unix)]
fn is_disk(found: &Metadata) -> bool {
    std::os::unix::fs::FileTypeExt::is_block_device(&found.file_type())
}

#[cfg(not(unix))]
fn is_disk(_: &Metadata) -> bool {
    false
}

fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    }
}
