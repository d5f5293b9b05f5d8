//! Where a picture goes: a PNG file that is there whole or not at all.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use calotype::{Error, ErrorKind};
use image::RgbImage;
use png::{BitDepth, ColorType, Encoder};

use super::receipt::Receipt;

/// A place that can be written to, as far as can be told before there is a picture.
pub(super) struct Destination {
    path: PathBuf,
    /// A device or pipe, which is written to as it is; files are replaced by renaming.
    special: bool,
}

impl Destination {
    /// Checks a path: [`ErrorKind::Output`] when it is a folder, or its folder is missing or cannot be written to.
    pub(super) fn open(path: PathBuf) -> Result<Self, Error> {
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
        Ok(Self { path, special })
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
        if self.special {
            return encode(image, receipt, &mut OpenOptions::new().write(true).open(&self.path)?);
        }
        let mut file = tempfile::Builder::new().prefix(".calotype-").tempfile_in(folder_of(&self.path))?;
        encode(image, receipt, file.as_file_mut())?;
        file.as_file().sync_all()?;
        share(file.as_file())?;
        file.persist(&self.path)?;
        Ok(())
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

fn encode(image: &RgbImage, receipt: &Receipt, file: &mut File) -> io::Result<()> {
    let mut out = BufWriter::new(file);
    let mut encoder = Encoder::new(&mut out, image.width(), image.height());
    encoder.set_color(ColorType::Rgb);
    encoder.set_depth(BitDepth::Eight);
    for (keyword, text) in [("parameters", receipt.parameters()), ("calotype", receipt.to_json())] {
        // tEXt holds Latin-1 and every reader knows it; iTXt holds the rest.
        if text.is_ascii() {
            encoder.add_text_chunk(keyword.into(), text)?;
        } else {
            encoder.add_itxt_chunk(keyword.into(), text)?;
        }
    }
    let mut writer = encoder.write_header()?;
    writer.write_image_data(image.as_raw())?;
    writer.finish()?;
    out.flush()
}
