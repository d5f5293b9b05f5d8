//! An image or mask at the size that a run takes: pixels, or a file until it is decoded. It knows nothing of what the run makes
//! of them.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use image::{DynamicImage, GrayImage, ImageBuffer, Pixel};

use super::decode::{Eighths, Want};
use super::placement::Placement;
use super::scale::{Canvas, Part, Window};
use super::{ImageFile, Init, MaskEdit};
use crate::{Error, ErrorKind};

/// An image at the size that a run takes: pixels, or a file until it is decoded.
#[derive(Debug)]
pub(crate) struct Fitted<P: Pixel<Subpixel = u8>> {
    pixels: OnceLock<ImageBuffer<P, Vec<u8>>>,
    file: Option<(ImageFile, Want)>,
    place: Placement,
    /// What is done to a mask.
    edit: MaskEdit,
    /// Whether a JPEG is decoded at a few eighths of its size, if that is enough.
    is_reduced: AtomicBool,
}

impl Fitted<image::Rgb<u8>> {
    pub(crate) fn init(init: Init, place: Placement) -> Self {
        match init {
            Init::Pixels(image) => Self::of_pixels(placed(image, &place), place, MaskEdit::default()),
            Init::File(file) => Self::of_file(file, Want::Color, place, MaskEdit::default()),
        }
    }
}

impl Fitted<image::Luma<u8>> {
    pub(crate) fn mask(mask: GrayImage, place: Placement, edit: MaskEdit) -> Self {
        Self::of_pixels(edit.apply(placed(mask, &place)), place, edit)
    }

    pub(crate) fn mask_file(file: ImageFile, place: Placement, edit: MaskEdit) -> Self {
        Self::of_file(file, Want::Mask, place, edit)
    }

    pub(crate) fn transparency(file: ImageFile, place: Placement, edit: MaskEdit) -> Self {
        Self::of_file(file, Want::Transparency, place, edit)
    }

    /// As [`Fitted::load`].
    pub(crate) fn load_mask(&self) -> Result<Vec<String>, Error> {
        self.load_with(|mask| self.edit.apply(mask))
    }
}

impl<P: Pixel<Subpixel = u8>> Fitted<P> {
    fn of_pixels(pixels: ImageBuffer<P, Vec<u8>>, place: Placement, edit: MaskEdit) -> Self {
        Self { pixels: OnceLock::from(pixels), file: None, place, edit, is_reduced: AtomicBool::new(false) }
    }

    fn of_file(file: ImageFile, want: Want, place: Placement, edit: MaskEdit) -> Self {
        let is_reduced = AtomicBool::new(false);
        Self { pixels: OnceLock::new(), file: Some((file, want)), place, edit, is_reduced }
    }

    /// How it is brought to its size.
    #[cfg(test)]
    pub(super) fn place(&self) -> Placement {
        self.place
    }

    /// Width and height in pixels.
    pub(crate) fn dimensions(&self) -> (u32, u32) {
        (self.place.width, self.place.height)
    }

    /// The pixels. [`ErrorKind::Usage`] for a file that has not been decoded.
    pub(crate) fn get(&self) -> Result<&ImageBuffer<P, Vec<u8>>, Error> {
        self.pixels.get().ok_or_else(|| {
            let origin = self.file.as_ref().map_or("image", |(file, _)| file.origin());
            let error = Error::new(
                ErrorKind::Usage,
                format!("{origin}: expected an image that has been loaded, got its file"),
            )
            .help("call Request::load before the run, and before the pipeline is opened within a budget");
            match &self.file {
                Some((file, _)) => file.located(error),
                None => error,
            }
        })
    }

    /// Has a JPEG decoded smaller, where that is enough for its placement: in less memory, to slightly other pixels.
    pub(crate) fn reduce(&self) {
        self.is_reduced.store(true, Ordering::Relaxed);
    }

    /// At how many eighths of its size a file is decoded.
    fn eighths(&self, file: &ImageFile, is_reduced: bool) -> Eighths {
        let Placement { windows, inner, .. } = self.place;
        if is_reduced { file.eighths(windows, inner.width, inner.height) } else { Eighths::ALL }
    }

    /// What decoding takes, and what is left of it, in bytes; both 0 for what is there. `is_reduced`: as if it were reduced, or
    /// were not; as it is, when absent.
    pub(crate) fn bytes(&self, is_reduced: Option<bool>) -> (u64, u64) {
        let is_reduced = is_reduced.unwrap_or_else(|| self.is_reduced.load(Ordering::Relaxed));
        match &self.file {
            Some((file, want)) if self.pixels.get().is_none() => {
                let Placement { windows, inner, width, height, .. } = self.place;
                let kept = u64::from(width) * u64::from(height) * u64::from(P::CHANNEL_COUNT);
                let eighths = self.eighths(file, is_reduced);
                let decoding = file.decode_bytes(windows, inner.width, inner.height, *want, eighths);
                let padded = if (inner.width, inner.height) == (width, height) { 0 } else { kept };
                let edited = kept + self.edit.bytes(width, height);
                ((decoding + padded).max(edited), kept)
            }
            _ => (0, 0),
        }
    }

    /// Decodes the file, if that has not been done. Returns notes on what of the file is not used.
    pub(crate) fn load(&self) -> Result<Vec<String>, Error>
    where
        DynamicImage: From<ImageBuffer<P, Vec<u8>>> + Into<ImageBuffer<P, Vec<u8>>>,
    {
        self.load_with(|image| image)
    }

    fn load_with(
        &self,
        edit: impl FnOnce(ImageBuffer<P, Vec<u8>>) -> ImageBuffer<P, Vec<u8>>,
    ) -> Result<Vec<String>, Error>
    where
        DynamicImage: From<ImageBuffer<P, Vec<u8>>> + Into<ImageBuffer<P, Vec<u8>>>,
    {
        let mut notes = Vec::new();
        let Some((file, want)) = self.file.as_ref().filter(|_| self.pixels.get().is_none()) else {
            return Ok(notes);
        };
        let origin = file.origin();
        let Placement { windows, inner, .. } = self.place;
        let eighths = self.eighths(file, self.is_reduced.load(Ordering::Relaxed));
        let (image, is_opaque) = file.decode_as(windows, inner.width, inner.height, *want, eighths)?;
        if eighths != Eighths::ALL {
            notes.push(format!(
                "{origin}: decoded at {eighths} of its size, because more does not fit within the memory budget: pixels differ \
                 slightly"
            ));
        }
        match want {
            Want::Transparency if is_opaque => {
                let error = Error::new(
                    ErrorKind::Input,
                    format!("{origin}: expected transparent areas, which are the mask, got an opaque image"),
                );
                return Err(file.located(error.help("give a mask with {mask}")));
            }
            Want::Mask if !is_opaque => notes.push(format!(
                "{origin}: has transparent areas: these are repainted, and its colours are not used"
            )),
            _ => {}
        }
        if file.is_animated() {
            notes.push(format!("{origin}: has several frames: only the first is used"));
        }
        // Another thread may have been faster.
        let _ = self.pixels.set(edit(padded(image, &self.place)));
        Ok(notes)
    }
}

/// An image as its placement brings it to its size.
fn placed<P: Pixel<Subpixel = u8>>(
    image: ImageBuffer<P, Vec<u8>>,
    place: &Placement,
) -> ImageBuffer<P, Vec<u8>> {
    padded(scaled(image, place.windows, place.inner.width, place.inner.height), place)
}

/// An image at another size, stretched where the proportions differ, through Lanczos's filter of three lobes; one that has
/// the size is left as it is.
pub(crate) fn fit<P: Pixel<Subpixel = u8>>(
    image: ImageBuffer<P, Vec<u8>>,
    width: u32,
    height: u32,
) -> ImageBuffer<P, Vec<u8>> {
    let all = [image.width(), image.height()].map(|side| Window::whole(side as usize));
    scaled(image, all, width, height)
}

/// A part of an image at another size.
fn scaled<P: Pixel<Subpixel = u8>>(
    image: ImageBuffer<P, Vec<u8>>,
    windows: [Window; 2],
    width: u32,
    height: u32,
) -> ImageBuffer<P, Vec<u8>> {
    let (of, to) = ([image.width() as usize, image.height() as usize], [width as usize, height as usize]);
    let part = Part { of, windows };
    if part == Part::whole(to) {
        return image;
    }
    let channels = usize::from(P::CHANNEL_COUNT);
    let mut canvas = Canvas::new(channels, part, to, true);
    for (y, row) in image.as_raw().chunks_exact(of[0] * channels).enumerate() {
        canvas.put(y, 0, 1, row);
    }
    ImageBuffer::from_raw(width, height, canvas.into_pixels()).expect("as many pixels as the size says")
}

/// An image within its rectangle of the whole; what is around repeats its edges, or mirrors it.
fn padded<P: Pixel<Subpixel = u8>>(
    image: ImageBuffer<P, Vec<u8>>,
    place: &Placement,
) -> ImageBuffer<P, Vec<u8>> {
    let Placement { inner, width, height, mirrors, .. } = *place;
    if image.dimensions() == (width, height) {
        return image;
    }
    let within = |at: u32, start: u32, length: u32| match mirrors {
        true => {
            // Two images beside each other, one of them turned, repeat.
            let at = (i64::from(at) - i64::from(start)).rem_euclid(2 * i64::from(length)) as u32;
            at.min(2 * length - 1 - at)
        }
        false => at.clamp(start, start + length - 1) - start,
    };
    ImageBuffer::from_fn(width, height, |x, y| {
        *image.get_pixel(within(x, inner.x, inner.width), within(y, inner.y, inner.height))
    })
}
