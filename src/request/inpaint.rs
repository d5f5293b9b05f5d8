//! The init image and the mask of a run that repaints a part of an image: at the size that it works at, and where only the
//! surroundings of the mask are worked at the whole ones around. It knows nothing of latents.

use std::sync::OnceLock;

use image::{GrayImage, Luma, Rgb, RgbImage};

use crate::image_file::{Extend, Fitted, Init, MaskEdit, Placement, Rect, Region, Resize, fit};
use crate::{Error, ErrorKind};

/// From this value on, a mask's pixel is white.
pub(crate) const WHITE: u8 = 128;

/// An init image and its mask, of one size.
#[derive(Debug)]
pub(crate) struct Inpaint {
    /// Of the run's size, or whole where a region of it is cut out.
    init: Fitted<Rgb<u8>>,
    mask: Fitted<Luma<u8>>,
    cutting: Option<Cutting>,
}

/// What only runs have that work at the surroundings of the mask.
#[derive(Debug)]
pub(crate) struct Cutting {
    /// How many pixels are left around the mask.
    padding_px: u32,
    /// The run's size.
    to: (u32, u32),
    /// None where the mask is black.
    cut: OnceLock<Option<Cut>>,
}

/// A region, and what is in it at the run's size.
#[derive(Debug)]
struct Cut {
    region: Region,
    init: RgbImage,
    mask: GrayImage,
}

impl Cutting {
    pub(crate) fn new(padding_px: u32, to: (u32, u32)) -> Self {
        Self { padding_px, to, cut: OnceLock::new() }
    }
}

impl Inpaint {
    pub(crate) fn new(init: Fitted<Rgb<u8>>, mask: Fitted<Luma<u8>>, cutting: Option<Cutting>) -> Self {
        Self { init, mask, cutting }
    }

    /// An init image that is extended: the mask is what is added, with a seam of so many pixels within the image.
    pub(crate) fn extended(init: Init, extend: &Extend, feather_px: u32) -> Self {
        let place = Placement::extended(init.dimensions(), extend);
        let mask = place.around(feather_px);
        let whole = Placement::new(mask.dimensions(), mask.dimensions(), Resize::Stretch);
        Self::new(Fitted::init(init, place), Fitted::mask(mask, whole, MaskEdit::default()), None)
    }

    /// The init image at the run's size. [`ErrorKind::Usage`] for a file that has not been decoded, and for a black mask where
    /// its surroundings are to be cut out.
    pub(crate) fn init(&self) -> Result<&RgbImage, Error> {
        match &self.cutting {
            Some(cutting) => Ok(&self.cut(cutting)?.init),
            None => self.init.get(),
        }
    }

    /// The mask at the run's size. Errors as [`Inpaint::init`].
    pub(crate) fn mask(&self) -> Result<&GrayImage, Error> {
        match &self.cutting {
            Some(cutting) => Ok(&self.cut(cutting)?.mask),
            None => self.mask.get(),
        }
    }

    /// The whole init image and its mask, and the region that is worked at where that is a part of them.
    pub(crate) fn whole(&self) -> Result<(&RgbImage, &GrayImage, Option<Region>), Error> {
        let region = self.cutting.as_ref().map(|cutting| Ok::<_, Error>(self.cut(cutting)?.region));
        Ok((self.init.get()?, self.mask.get()?, region.transpose()?))
    }

    /// The size of the whole image, where a region of it is worked at.
    pub(crate) fn whole_size(&self) -> Option<(u32, u32)> {
        self.cutting.as_ref().map(|_| self.init.dimensions())
    }

    /// Decodes what is in files. Returns notes, as [`Fitted::load`].
    pub(crate) fn load(&self) -> Result<Vec<String>, Error> {
        let mut notes = self.init.load()?;
        notes.extend(self.mask.load_mask()?);
        if let Some(cutting) = &self.cutting {
            let Region(Rect { width, height, .. }) = self.cut(cutting)?.region;
            let (to_width, to_height) = cutting.to;
            if Placement::new((width, height), cutting.to, Resize::Stretch).is_distorted() {
                notes.push(format!(
                    "mask only: the image leaves a region of {width}x{height}, which is stretched to \
                     {to_width}x{to_height}"
                ));
            }
        }
        if self.mask()?.iter().all(|&value| value < WHITE) {
            notes.push("mask: has no white areas, so that nothing is repainted".into());
        }
        Ok(notes)
    }

    /// As [`Fitted::reduce`].
    pub(crate) fn reduce(&self) {
        self.init.reduce();
        self.mask.reduce();
    }

    /// What decoding takes at most beside what is there, and what stays until the run has finished, in bytes; as
    /// [`Fitted::bytes`].
    pub(crate) fn bytes(&self, is_reduced: Option<bool>) -> (u64, u64) {
        let (init_peak, init_kept) = self.init.bytes(is_reduced);
        let (mask_peak, mask_kept) = self.mask.bytes(is_reduced);
        let kept = init_kept + mask_kept;
        let mask_peak = if mask_peak > 0 { init_kept + mask_peak } else { 0 };
        let peak = init_peak.max(mask_peak);
        let Some(cutting) = &self.cutting else { return (peak, kept) };
        let pixels = |(width, height): (u32, u32)| u64::from(width) * u64::from(height);
        let (whole, worked) = (pixels(self.init.dimensions()), pixels(cutting.to));
        // Where it is made: the region once more in colours and in grey, and rows of the filter.
        let cut = 4 * worked + 4 * whole + 64 * u64::from(self.init.dimensions().0.max(cutting.to.0));
        // In the end: the region of what was decoded at its own size, and the finished image.
        let kept = kept + 4 * worked + 6 * whole;
        (peak.max(kept + cut), kept)
    }

    fn cut<'a>(&self, cutting: &'a Cutting) -> Result<&'a Cut, Error> {
        let (init, mask) = (self.init.get()?, self.mask.get()?);
        let made = cutting.cut.get_or_init(|| {
            let region = Region::of(mask, cutting.padding_px, cutting.to)?;
            let (width, height) = cutting.to;
            let init = fit(region.cut(init), width, height);
            Some(Cut { region, init, mask: fit(region.cut(mask), width, height) })
        });
        made.as_ref().ok_or_else(|| {
            let message =
                "mask only: expected a mask with white areas, whose surroundings are worked at, got none";
            Error::new(ErrorKind::Usage, message)
        })
    }
}
