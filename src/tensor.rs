//! The sizes of images and latents, in units that cannot be confused.
//! It knows nothing of models: which sizes a model can draw is the request's business.

use std::fmt;
use std::str::FromStr;

use crate::{Error, ErrorKind};

/// The longest side of an image, in pixels; a request beyond it is a slip of the keyboard.
pub const MAX_SIDE_PX: u32 = 8192;

/// The size of an image in pixels: neither side is 0 or longer than [`MAX_SIDE_PX`].
///
/// ```
/// use calotype::tensor::PixelSize;
/// let size: PixelSize = "768x512".parse()?;
/// assert_eq!((size.width_px(), size.height_px()), (768, 512));
/// assert_eq!(size.to_string(), "768x512");
/// # Ok::<(), calotype::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PixelSize {
    width_px: u32,
    height_px: u32,
}

impl PixelSize {
    /// A checked size; [`ErrorKind::Usage`] where a side is 0 or too long.
    pub fn new(width_px: u32, height_px: u32) -> Result<Self, Error> {
        let valid = 1..=MAX_SIDE_PX;
        if valid.contains(&width_px) && valid.contains(&height_px) {
            Ok(Self { width_px, height_px })
        } else {
            Err(Error::new(
                ErrorKind::Usage,
                format!("size: expected sides of 1 to {MAX_SIDE_PX} pixels, got {width_px}x{height_px}"),
            ))
        }
    }

    /// The width in pixels.
    pub fn width_px(self) -> u32 {
        self.width_px
    }

    /// The height in pixels.
    pub fn height_px(self) -> u32 {
        self.height_px
    }
}

impl FromStr for PixelSize {
    type Err = Error;

    /// Reads `WIDTHxHEIGHT`; [`ErrorKind::Usage`] for anything else.
    fn from_str(text: &str) -> Result<Self, Error> {
        // `u32::from_str` takes a leading plus, which nobody means here.
        let side = |side: &str| side.parse().ok().filter(|_| !side.starts_with('+'));
        match text.split_once('x').map(|(width, height)| (side(width), side(height))) {
            Some((Some(width_px), Some(height_px))) => Self::new(width_px, height_px),
            _ => Err(Error::new(
                ErrorKind::Usage,
                format!("size: expected WIDTHxHEIGHT in pixels, like 512x512, got {text:?}"),
            )),
        }
    }
}

impl fmt::Display for PixelSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}", self.width_px, self.height_px)
    }
}

/// The shape of one image's latents: channels, then rows and columns of latent cells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LatentShape {
    /// Values per cell.
    pub channels: usize,
    /// Rows.
    pub height_cells: usize,
    /// Columns.
    pub width_cells: usize,
}

impl LatentShape {
    /// How many values there are.
    #[allow(clippy::len_without_is_empty)] // there is no image without cells
    pub fn len(self) -> usize {
        self.channels * self.height_cells * self.width_cells
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn width_comes_first() {
        let size: PixelSize = "640x480".parse().unwrap();
        assert_eq!((size.width_px(), size.height_px()), (640, 480));
        assert_eq!(size.to_string(), "640x480");
        assert_eq!("1x8192".parse::<PixelSize>().unwrap(), PixelSize::new(1, 8192).unwrap());
    }

    #[test]
    fn bad_sizes_are_usage_errors() {
        let bad = [
            "",
            "x",
            "64",
            "64x",
            "x64",
            "64X64",
            "64x64x64",
            "64 x 64",
            "-64x64",
            "+64x64",
            "6.4x64",
            "0x64",
            "64x0",
            "8193x64",
            "64x8193",
            "4294967296x64",
            "64x99999999999999999999",
        ];
        for text in bad {
            let error = text.parse::<PixelSize>().expect_err(text);
            assert_eq!(error.kind(), ErrorKind::Usage, "{text}");
        }
    }

    #[test]
    fn latents_count_every_cell_and_channel() {
        assert_eq!(LatentShape { channels: 4, height_cells: 3, width_cells: 5 }.len(), 60);
    }
}
