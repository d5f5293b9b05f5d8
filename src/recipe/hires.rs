//! A second pass at a larger size (A1111's "Hires fix"): how much larger, how strong, and what enlarges the first image.

use std::fmt;
use std::str::FromStr;

use crate::tensor::PixelSize;
use crate::{Error, ErrorKind};

/// The denoising strength of the second pass where it is not said, as in A1111.
const STRENGTH: f64 = 0.7;
/// The largest scale.
const MAX_SCALE: f64 = 8.0;
const EXPECTED: &str = "a scale like 2x, with settings as in 2x:strength=0.5:upscaler=pixel";

/// A second pass: the image is generated at its size, enlarged, and generated again from there, as from an init image.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Hires {
    /// How many times as wide and high the finished image is; above 1, and at most 8.
    pub scale: f64,
    /// The denoising strength of the second pass, from 0 to 1.
    pub strength: f64,
    /// What enlarges the first image.
    pub upscaler: HiresUpscaler,
}

/// What enlarges the first image of two passes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HiresUpscaler {
    /// The latents of the first pass, by bilinear interpolation (A1111's `Latent`): no VAE runs between the passes, and blur
    /// is left below a strength of 0.5 or so.
    #[default]
    Latent,
    /// The decoded image, by a Lanczos filter, which is encoded again.
    Pixel,
}

impl HiresUpscaler {
    const ALL: [Self; 2] = [Self::Latent, Self::Pixel];

    /// The one that A1111's name means, none being its default, and whether it is that very one.
    pub(crate) fn of_a1111(name: Option<&str>) -> (Self, bool) {
        match name {
            None => (Self::Latent, true),
            Some(name) if name == Self::Latent.a1111() => (Self::Latent, true),
            Some(name) if name == Self::Pixel.a1111() => (Self::Pixel, true),
            Some(name) if name.starts_with("Latent") => (Self::Latent, false),
            Some(_) => (Self::Pixel, false),
        }
    }

    /// Its name in A1111's web UI.
    pub(crate) fn a1111(self) -> &'static str {
        match self {
            Self::Latent => "Latent",
            Self::Pixel => "Lanczos",
        }
    }

    /// What it is, after "a".
    pub(crate) fn about(self) -> &'static str {
        match self {
            Self::Latent => "bilinear filter over latents",
            Self::Pixel => "Lanczos filter",
        }
    }
}

impl Hires {
    /// A second pass.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] for a scale or a strength that is out of range.
    pub fn new(scale: f64, strength: f64, upscaler: HiresUpscaler) -> Result<Self, Error> {
        let refuse = |expected: String, got: f64| {
            Err(Error::new(ErrorKind::Usage, format!("hires: expected {expected}, got {got}")))
        };
        if !(scale > 1.0 && scale <= MAX_SCALE) {
            return refuse(format!("a scale above 1 and at most {MAX_SCALE}"), scale);
        }
        if !(0.0..=1.0).contains(&strength) {
            return refuse("a strength from 0 to 1".into(), strength);
        }
        Ok(Self { scale, strength, upscaler })
    }

    /// The size of the finished image.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] where a side is no whole number, or too large.
    pub(crate) fn of(&self, size: PixelSize) -> Result<PixelSize, Error> {
        let side = |px: u32| {
            let scaled = f64::from(px) * self.scale;
            let is_whole = (scaled - scaled.round()).abs() < 1e-6;
            is_whole.then_some(scaled.round() as u32)
        };
        match (side(size.width_px()), side(size.height_px())) {
            (Some(width), Some(height)) => PixelSize::new(width, height),
            _ => Err(Error::new(
                ErrorKind::Usage,
                format!("hires: expected a scale that gives whole pixels of {size}, got {}x", self.scale),
            )),
        }
    }
}

impl fmt::Display for HiresUpscaler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Latent => "latent",
            Self::Pixel => "pixel",
        })
    }
}

impl fmt::Display for Hires {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x:strength={}:upscaler={}", self.scale, self.strength, self.upscaler)
    }
}

impl FromStr for Hires {
    type Err = Error;

    /// Reads `2x`, `1.5x:strength=0.5:upscaler=pixel`; names may be left out: `2x:0.5:pixel`.
    fn from_str(text: &str) -> Result<Self, Error> {
        let refuse = |expected: &str, got: &str| {
            Error::new(ErrorKind::Usage, format!("hires: expected {expected}, got {got:?}"))
        };
        let mut parts = text.split(':');
        let typed = parts.next().unwrap_or_default().trim();
        let scale = typed.strip_suffix(['x', 'X']).unwrap_or(typed).parse::<f64>();
        let scale = scale.map_err(|_| refuse(EXPECTED, text))?;
        let (mut strength, mut upscaler) = (STRENGTH, HiresUpscaler::default());
        for part in parts {
            let (name, value) = match part.split_once('=') {
                Some((name, value)) => (name.trim(), value.trim()),
                None if part.trim().starts_with(|first: char| first.is_ascii_digit() || first == '.') => {
                    ("strength", part.trim())
                }
                None => ("upscaler", part.trim()),
            };
            match name {
                "strength" => {
                    strength = value.parse().map_err(|_| refuse("a strength from 0 to 1", value))?;
                }
                "upscaler" => {
                    let is_it = |kind: &HiresUpscaler| value.eq_ignore_ascii_case(&kind.to_string());
                    let found = HiresUpscaler::ALL.into_iter().find(is_it);
                    upscaler = found.ok_or_else(|| refuse("the upscaler latent or pixel", value))?;
                }
                _ => return Err(refuse("the settings strength and upscaler", name)),
            }
        }
        Self::new(scale, strength, upscaler)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_read_and_written() {
        for (text, scale, strength, upscaler) in [
            ("2x", 2.0, 0.7, HiresUpscaler::Latent),
            ("2", 2.0, 0.7, HiresUpscaler::Latent),
            ("1.5X:0.4", 1.5, 0.4, HiresUpscaler::Latent),
            ("2x:.5:Pixel", 2.0, 0.5, HiresUpscaler::Pixel),
            ("2x:pixel", 2.0, 0.7, HiresUpscaler::Pixel),
            ("8x:upscaler=pixel:strength=1", 8.0, 1.0, HiresUpscaler::Pixel),
        ] {
            let hires: Hires = text.parse().unwrap();
            assert_eq!(hires, Hires { scale, strength, upscaler }, "{text}");
            assert_eq!(hires.to_string().parse::<Hires>().unwrap(), hires);
        }
        for (text, message) in [
            ("", "expected a scale like 2x"),
            ("x", "expected a scale like 2x"),
            ("1x", "above 1 and at most 8"),
            ("9x", "above 1 and at most 8"),
            ("nanx", "above 1 and at most 8"),
            ("-2x", "above 1 and at most 8"),
            ("2x:1.5", "a strength from 0 to 1"),
            ("2x:strength=nan", "a strength from 0 to 1"),
            ("2x:esrgan", "the upscaler latent or pixel"),
            ("2x:steps=3", "the settings strength and upscaler"),
        ] {
            let error = text.parse::<Hires>().unwrap_err().to_string();
            assert!(error.contains(message), "{text}: {error}");
        }
    }

    #[test]
    fn sizes_are_whole_pixels() {
        let size = PixelSize::new(520, 400).unwrap();
        let of = |text: &str| text.parse::<Hires>().unwrap().of(size).map(|size| size.to_string());
        assert_eq!(of("1.5x").unwrap(), "780x600");
        assert_eq!(of("1.1x").unwrap(), "572x440");
        assert!(of("1.333x").unwrap_err().to_string().contains("whole pixels of 520x400"));
    }
}
