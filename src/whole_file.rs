//! Files that are there whole or not at all, whatever ends the process meanwhile. It knows nothing of what is in them.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::process;

/// Names of files that are not whole yet, where there is no way to write a file without a name.
const UNFINISHED: (&str, &str) = (".calotype-", ".tmp");
/// The most links that are followed from one name to the next, as Linux has it.
const MAX_LINKS: usize = 40;

/// The name that a chain of links ends in, whether or not there is a file of that name.
pub fn follow(path: &Path) -> PathBuf {
    let mut path = path.to_owned();
    for _ in 0..MAX_LINKS {
        let Ok(link) = fs::read_link(&path) else { break };
        path = folder_of(&path).join(link);
    }
    path
}

/// Makes a file of what `write` writes, with the permissions of the file that it replaces, or of a new one. What was there before stays
/// until the new one is whole and on the disk.
///
/// # Errors
/// Those of `write` and of the system; nothing is left of the new file then.
pub fn replace(path: &Path, write: impl Fn(&mut File) -> io::Result<()>) -> io::Result<()> {
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
pub fn sweep(folder: &Path) {
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

/// Has the names in a folder on the disk; where folders cannot be opened, the system has them there.
///
/// # Errors
/// Those of the system.
pub fn sync_folder(folder: &Path) -> io::Result<()> {
    if cfg!(unix) { File::open(folder)?.sync_all() } else { Ok(()) }
}

/// The folder of a file.
pub fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    }
}
