//! Where an image goes: a file that is there whole or not at all, a device, a pipe or standard output.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use calotype::image_file::{OutputFormat, RecipeText, encode, encode_with_alpha};
use calotype::whole_file::{folder_of, follow, replace, sweep};
use calotype::{Error, ErrorKind};
use image::{RgbImage, RgbaImage};

use super::say;

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

/// Whether it is a disk, which an image would damage.
#[cfg(unix)]
fn is_disk(found: &Metadata) -> bool {
    std::os::unix::fs::FileTypeExt::is_block_device(&found.file_type())
}

#[cfg(not(unix))]
fn is_disk(_: &Metadata) -> bool {
    false
}
