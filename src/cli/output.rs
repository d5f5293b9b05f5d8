//! Where an image goes: a file that is there whole or not at all, a device, a pipe or standard output.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use calotype::picture::{OutputFormat, Recipe, encode};
use calotype::{Error, ErrorKind};
use image::RgbImage;

use super::receipt::Receipt;

/// A place that can be written to, as far as can be told before there is a picture.
pub(super) struct Destination {
    path: PathBuf,
    /// A device or pipe, which is written to as it is; files are replaced by renaming.
    special: bool,
    format: OutputFormat,
}

/// What stands for standard output.
pub(super) const STDOUT: &str = "-";

impl Destination {
    /// Checks a path: [`ErrorKind::Usage`] for an extension of no format that is written, [`ErrorKind::Output`] when it is
    /// a folder, or its folder is missing or cannot be written to.
    pub(super) fn open(path: PathBuf) -> Result<Self, Error> {
        let format = OutputFormat::of_path(&path)?;
        if path == Path::new(STDOUT) {
            return Ok(Self { path, special: true, format });
        }
        let refuse =
            |problem: String| Error::new(ErrorKind::Output, format!("{}: {problem}", path.display()));
        let folder = || refuse("expected a file, got a folder".into()).help("add a file name: OUT.png");
        let special = match fs::metadata(&path) {
            Ok(found) if found.is_dir() => return Err(folder()),
            // The system finds no such folder, and would say so when the picture is done.
            Err(_) if path.as_os_str().as_encoded_bytes().ends_with(b"/") => return Err(folder()),
            Ok(found) => !found.is_file(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => false,
            Err(error) => return Err(refuse("expected a place for a file".into()).source(error)),
        };
        if !special {
            // A file without a name: it is gone with this process, whatever happens.
            tempfile::tempfile_in(folder_of(&path))
                .map_err(|error| refuse("expected a folder that can be written to".into()).source(error))?;
        }
        Ok(Self { path, special, format })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Writes a picture and its recipe; what was there before stays until the new file is whole.
    pub(super) fn write(&self, image: &RgbImage, receipt: &Receipt) -> Result<(), Error> {
        self.try_write(image, receipt).map_err(|error| {
            Error::new(
                ErrorKind::Output,
                format!("{}: the picture could not be written", self.path.display()),
            )
            .source(error)
        })
    }

    fn try_write(&self, image: &RgbImage, receipt: &Receipt) -> io::Result<()> {
        if self.path == Path::new(STDOUT) {
            return self.encode(image, receipt, &mut io::stdout().lock());
        }
        if self.special {
            return self.encode(image, receipt, &mut OpenOptions::new().write(true).open(&self.path)?);
        }
        let mut file = tempfile::Builder::new().prefix(".calotype-").tempfile_in(folder_of(&self.path))?;
        self.encode(image, receipt, file.as_file_mut())?;
        file.as_file().sync_all()?;
        share(file.as_file())?;
        file.persist(&self.path)?;
        Ok(())
    }

    fn encode(&self, image: &RgbImage, receipt: &Receipt, out: &mut dyn Write) -> io::Result<()> {
        let mut out = BufWriter::new(out);
        let recipe = Recipe { parameters: &receipt.parameters(), json: &receipt.to_json() };
        if let Some(left_out) = encode(image, self.format, recipe, &mut out)? {
            eprintln!(
                "calotype: {}: {left_out} is too long for this format; PNG takes it",
                self.path.display()
            );
        }
        out.flush()
    }
}

/// Temporary files are for their owner alone; pictures get the permissions of any new file.
#[cfg(unix)]
fn share(file: &File) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    // The process's mask cannot be read without changing it; 0644 is what it leaves nearly everywhere.
    file.set_permissions(fs::Permissions::from_mode(0o644))
}

#[cfg(not(unix))]
fn share(_: &File) -> io::Result<()> {
    Ok(())
}

fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    }
}
