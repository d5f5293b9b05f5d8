//! `--preview`: a file that shows an image while it is generated, and that every preview replaces as a whole.
//! It knows nothing of how previews are computed.

use std::path::{Path, PathBuf};

use calotype::model::Model;
use calotype::run::Run;
use calotype::{Error, ErrorKind};
use clap::{Args, value_parser};
use image::imageops::{self, FilterType};

use super::output::{Destination, STDOUT};
use super::say;

/// The longer side of a preview that is enlarged, so that its memory stays small beside any model's.
const MAX_SIDE_PX: u32 = 512;

#[derive(Args)]
pub(super) struct PreviewFlags {
    /// Write a preview of the image to this file while it is generated, in the format of the extension; each preview replaces
    /// the last one. A rough, cheap estimate from the latents, or decoded with --taesd; at most 512 pixels wide or high.
    #[arg(long, value_name = "FILE")]
    preview: Option<PathBuf>,
    /// Number of steps from one preview to the next.
    #[arg(long, value_name = "N", default_value = "1", requires = "preview", value_parser = value_parser!(u16).range(1..))]
    preview_every: u16,
}

/// The decoder of previews, which is no part of a recipe: it does not change the image.
#[derive(Args, Default)]
pub(super) struct PreviewDecoder {
    /// A tiny decoder (TAESD) for previews: a diffusers folder, its file, or taesd_decoder.safetensors. Finished images are
    /// decoded by the VAE; for faster, coarser images give such a folder to --vae.
    #[arg(long, value_name = "FILE")]
    taesd: Option<PathBuf>,
}

impl PreviewDecoder {
    /// Gives it to a model, if one was named.
    pub(super) fn give_to(&self, model: &mut Model) -> Result<(), Error> {
        self.taesd.as_deref().map_or(Ok(()), |path| model.decode_previews_by(path))
    }

    /// [`ErrorKind::Usage`] if one was named for a command without previews.
    pub(super) fn expect_none(&self) -> Result<(), Error> {
        match self.taesd {
            Some(_) => Err(Error::new(
                ErrorKind::Usage,
                "--taesd: expected a command with previews, got one without",
            )),
            None => Ok(()),
        }
    }
}

impl PreviewFlags {
    /// The file of the previews, if one was asked for; [`ErrorKind::Usage`] for standard output, a device, and a file in which
    /// an image is written.
    pub(super) fn open(&self, images: &[Destination]) -> Result<Option<Preview>, Error> {
        let Some(path) = &self.preview else { return Ok(None) };
        let refuse =
            |got: &str| Error::new(ErrorKind::Usage, format!("--preview: expected a file, got {got}"));
        if path == Path::new(STDOUT) {
            return Err(refuse("standard output"));
        }
        let file = Destination::open(path.clone())?;
        if file.is_special() {
            return Err(refuse("a device or pipe"));
        }
        if images.iter().any(|image| image.is_same_file(&file)) {
            return Err(refuse("the file of the image"));
        }
        Ok(Some(Preview { file, every: self.preview_every, has_failed: false }))
    }
}

/// The file of the previews of a command.
pub(super) struct Preview {
    file: Destination,
    /// In steps.
    every: u16,
    has_failed: bool,
}

impl Preview {
    /// Refuses a model of which there are no previews.
    pub(super) fn check(&self, model: &Model) -> Result<(), Error> {
        let manifest = model.manifest();
        match model.has_previews() {
            true => Ok(()),
            false => Err(Error::new(
                ErrorKind::Usage,
                format!("--preview: expected a model with preview factors, got {}", manifest.name),
            )
            .help("name a tiny decoder with --taesd; a bundle may have factors: `preview` in calotype.json")),
        }
    }

    /// Writes a preview if the last step is one that has one. Where it cannot be written that is reported once, and the run
    /// goes on: the image is what was asked for.
    pub(super) fn show(&mut self, run: &mut Run<'_>) {
        if self.has_failed || !run.progress().done.is_multiple_of(self.every.into()) {
            return;
        }
        let preview = match run.preview() {
            Ok(Some(preview)) => preview,
            Ok(None) => return,
            Err(error) => return self.fail(&error),
        };
        let size = run.request().size();
        let shrink = (f64::from(MAX_SIDE_PX) / f64::from(size.width_px().max(size.height_px()))).min(1.0);
        // One pixel per cell is never made smaller.
        let side = |px: u32, own: u32| {
            let side = (f64::from(px) * shrink).round() as u32;
            if own < px { side.max(own) } else { side }
        };
        let (width_px, height_px) =
            (side(size.width_px(), preview.width()), side(size.height_px(), preview.height()));
        let image = imageops::resize(&preview, width_px, height_px, FilterType::CatmullRom);
        if let Err(error) = self.file.write(&image, None) {
            self.fail(&error);
        }
    }

    fn fail(&mut self, error: &Error) {
        self.has_failed = true;
        // Whoever stops a run is not told of its preview.
        if error.kind() != ErrorKind::Cancelled {
            say(format_args!("previews are off: {error}"));
        }
    }
}
