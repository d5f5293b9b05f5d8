//! Where an image lies within one of another size: which part of it is scaled, and to where. It knows sizes, and nothing of
//! the pixels of images.

use std::fmt;
use std::str::FromStr;

use image::{GrayImage, Luma};

use super::scale::Window;
use crate::{Error, ErrorKind};

/// What is done with an image of other proportions than it is to have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Resize {
    /// Both sides are scaled, each by its own factor.
    #[default]
    Stretch,
    /// It is scaled to cover the size; what is left over at both ends of one side is cut off.
    Crop,
    /// It is scaled to lie within the size, in its middle; what is missing repeats its edges.
    Pad,
}

impl Resize {
    const ALL: [Self; 3] = [Self::Stretch, Self::Crop, Self::Pad];
}

impl fmt::Display for Resize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Stretch => "stretch",
            Self::Crop => "crop",
            Self::Pad => "pad",
        })
    }
}

impl FromStr for Resize {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let found = Self::ALL.into_iter().find(|kind| text.trim().eq_ignore_ascii_case(&kind.to_string()));
        found.ok_or_else(|| {
            Error::new(ErrorKind::Usage, format!("resize: expected crop, pad or stretch, got {text:?}"))
        })
    }
}

/// By how many pixels an image is extended on each side.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Extend {
    /// On its left.
    pub left: u32,
    /// Above it.
    pub top: u32,
    /// On its right.
    pub right: u32,
    /// Below it.
    pub bottom: u32,
    /// How far into the image the seam reaches; as the model's latents suggest when absent.
    pub feather: Option<u32>,
}

impl Extend {
    /// The four sides, each with its name.
    fn sides(&self) -> [(&'static str, u32); 4] {
        [("left", self.left), ("top", self.top), ("right", self.right), ("bottom", self.bottom)]
    }

    /// Whether no side is extended.
    pub(crate) fn is_nothing(&self) -> bool {
        self.sides().iter().all(|(_, side_px)| *side_px == 0)
    }

    /// The size of an image (width, height) with it; the largest number where that is no size.
    pub(crate) fn of(&self, (width, height): (u32, u32)) -> (u32, u32) {
        let sum = |side: u32, before: u32, after: u32| side.saturating_add(before).saturating_add(after);
        (sum(width, self.left, self.right), sum(height, self.top, self.bottom))
    }

    /// Divided in two: the second, of an image of this size with the first, adds at most half of each side of that image at
    /// either end. Nothing where all of it is no more than that. Sides are multiples of `step_px` where they all are.
    pub(crate) fn divided(&self, size: (u32, u32), step_px: u32) -> Option<(Self, Self)> {
        let mut rounds = Vec::new();
        let (mut rest, mut now) = (*self, size);
        while !rest.is_nothing() {
            let part = |left: u32, side: u32| left.min((side / 2 / step_px * step_px).max(step_px));
            let round = Self {
                left: part(rest.left, now.0),
                top: part(rest.top, now.1),
                right: part(rest.right, now.0),
                bottom: part(rest.bottom, now.1),
                feather: self.feather,
            };
            rest = rest.without(&round);
            now = round.of(now);
            rounds.push(round);
        }
        let last = rounds.pop().filter(|_| !rounds.is_empty())?;
        Some((self.without(&last), last))
    }

    fn without(&self, other: &Self) -> Self {
        Self {
            left: self.left - other.left,
            top: self.top - other.top,
            right: self.right - other.right,
            bottom: self.bottom - other.bottom,
            feather: self.feather,
        }
    }
}

impl fmt::Display for Extend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sides = self.sides().into_iter().filter(|(_, side_px)| *side_px > 0);
        let all = sides.chain(self.feather.map(|feather| ("feather", feather)));
        let texts: Vec<String> = all.map(|(name, px)| format!("{name}={px}")).collect();
        f.write_str(&if texts.is_empty() { "left=0".into() } else { texts.join(",") })
    }
}

impl FromStr for Extend {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let refuse = |got: &str| {
            let message = format!("extend: expected sides in pixels, as in left=64,top=32, got {got:?}");
            Error::new(ErrorKind::Usage, message)
                .help("sides are left, top, right and bottom; feather is the seam")
        };
        let mut extend = Self::default();
        let mut seen = Vec::new();
        for item in text.split(',') {
            let (name, px) = item.split_once('=').ok_or_else(|| refuse(item))?;
            let (name, px) = (name.trim(), px.trim().parse::<u32>().map_err(|_| refuse(item))?);
            match name {
                "left" => extend.left = px,
                "top" => extend.top = px,
                "right" => extend.right = px,
                "bottom" => extend.bottom = px,
                "feather" => extend.feather = Some(px),
                _ => return Err(refuse(item)),
            }
            if seen.contains(&name) {
                return Err(Error::new(
                    ErrorKind::Usage,
                    format!("extend: expected {name} once, got it twice"),
                ));
            }
            seen.push(name);
        }
        Ok(extend)
    }
}

/// A rectangle of whole pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rect {
    pub(crate) x: u32,
    pub(crate) y: u32,
    pub(crate) width: u32,
    pub(crate) height: u32,
}

/// How an image becomes one of another size: a part of it is scaled to a rectangle of the other.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Placement {
    pub(super) windows: [Window; 2],
    pub(super) inner: Rect,
    pub(super) width: u32,
    pub(super) height: u32,
    /// What is around the rectangle.
    pub(super) mirrors: bool,
}

impl Placement {
    /// Of an image of `from` pixels (width, height) as one of `to`; no side is 0.
    pub(crate) fn new(from: (u32, u32), to: (u32, u32), resize: Resize) -> Self {
        let ((from_width, from_height), (width, height)) = (from, to);
        let all = [from_width, from_height].map(|side| Window::whole(side as usize));
        let placed =
            Self { windows: all, inner: Rect { x: 0, y: 0, width, height }, width, height, mirrors: false };
        // Above 0 it is wider than it is to be, below 0 higher.
        let wider =
            (u64::from(from_width) * u64::from(height)).cmp(&(u64::from(from_height) * u64::from(width)));
        match resize {
            Resize::Stretch => placed,
            Resize::Crop => {
                let part = |side: u32, other: u32, to: u32, other_to: u32| {
                    let length = f64::from(other) * f64::from(to) / f64::from(other_to);
                    // At a whole pixel, so that an image that is only cut keeps its pixels.
                    Window { start: ((f64::from(side) - length) / 2.0).floor(), length }
                };
                let windows = match wider {
                    std::cmp::Ordering::Greater => [part(from_width, from_height, width, height), all[1]],
                    std::cmp::Ordering::Less => [all[0], part(from_height, from_width, height, width)],
                    std::cmp::Ordering::Equal => all,
                };
                Self { windows, ..placed }
            }
            Resize::Pad => {
                let scaled = |side: u32, to: u32, by: u32| {
                    (u64::from(side) * u64::from(to) / u64::from(by)).max(1) as u32
                };
                let (inner_width, inner_height) = match wider {
                    std::cmp::Ordering::Greater => (width, scaled(from_height, width, from_width)),
                    std::cmp::Ordering::Less => (scaled(from_width, height, from_height), height),
                    std::cmp::Ordering::Equal => (width, height),
                };
                let (x, y) = ((width - inner_width) / 2, (height - inner_height) / 2);
                Self { inner: Rect { x, y, width: inner_width, height: inner_height }, ..placed }
            }
        }
    }

    /// Of an image of `from` pixels that is extended. What is around it mirrors it.
    pub(crate) fn extended(from: (u32, u32), extend: &Extend) -> Self {
        let (width, height) = extend.of(from);
        let inner = Rect { x: extend.left, y: extend.top, width: from.0, height: from.1 };
        Self { inner, width, height, mirrors: true, ..Self::new(from, from, Resize::Stretch) }
    }

    /// The mask of an extended image: white around it, and from there to black over so many pixels within it.
    pub(crate) fn around(&self, feather_px: u32) -> GrayImage {
        let Rect { x: left, y: top, width, height } = self.inner;
        let (right, bottom) = (left + width, top + height);
        // How far a pixel is from what is added, along one side; 0 is added.
        let within = |at: u32, start: u32, end: u32, side: u32| {
            let before = if start > 0 { (at + 1).saturating_sub(start) } else { u32::MAX };
            let after = if end < side { end.saturating_sub(at) } else { u32::MAX };
            before.min(after)
        };
        GrayImage::from_fn(self.width, self.height, |x, y| {
            let depth = within(x, left, right, self.width).min(within(y, top, bottom, self.height));
            let white = u64::from(feather_px + 1).saturating_sub(depth.into());
            Luma([(255 * white / u64::from(feather_px + 1)) as u8])
        })
    }

    /// The same of an image of other size, `own`, that is first brought to `from`, the size that this is the placement of.
    pub(crate) fn of_fitted(self, own: (u32, u32), from: (u32, u32), resize: Resize) -> Self {
        let first = Self::new(own, from, resize);
        let from = [from.0, from.1];
        let windows = [0, 1].map(|axis| {
            let (outer, window) = (first.windows[axis], self.windows[axis]);
            let scale = outer.length / f64::from(from[axis]);
            Window { start: outer.start + window.start * scale, length: window.length * scale }
        });
        Self { windows, ..self }
    }

    /// Whether both sides are scaled by factors that differ by more than a hundredth.
    pub(crate) fn is_distorted(&self) -> bool {
        let [x, y] = self.windows.map(|window| window.length);
        let (x, y) = (f64::from(self.inner.width) / x, f64::from(self.inner.height) / y);
        (x / y - 1.0).abs() > 0.01 && (y / x - 1.0).abs() > 0.01
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proportions_are_kept_by_crop_and_pad() {
        let window = |start: f64, length: f64| Window { start, length };
        let crop = Placement::new((640, 480), (256, 256), Resize::Crop);
        assert_eq!(crop.windows, [window(80.0, 480.0), window(0.0, 480.0)]);
        let crop = Placement::new((480, 640), (512, 256), Resize::Crop);
        assert_eq!(crop.windows, [window(0.0, 480.0), window(200.0, 240.0)]);
        let pad = Placement::new((640, 480), (256, 256), Resize::Pad);
        assert_eq!(pad.inner, Rect { x: 0, y: 32, width: 256, height: 192 });
        let pad = Placement::new((3, 8000), (64, 64), Resize::Pad);
        assert_eq!(pad.inner, Rect { x: 31, y: 0, width: 1, height: 64 });
        let stretch = Placement::new((640, 480), (256, 256), Resize::Stretch);
        assert!(
            stretch.is_distorted()
                && !crop.is_distorted()
                && !Placement::new((640, 480), (257, 192), Resize::Stretch).is_distorted()
        );
        // An image that is only cut keeps its pixels: the part begins at a whole one.
        assert_eq!(Placement::new((65, 64), (64, 64), Resize::Crop).windows[0], window(0.0, 64.0));
    }

    #[test]
    fn a_mask_of_another_size_lies_on_its_image() {
        let crop = Placement::new((640, 480), (256, 256), Resize::Crop);
        let half = crop.of_fitted((320, 240), (640, 480), Resize::Stretch);
        assert_eq!(half.windows[0], Window { start: 40.0, length: 240.0 });
        let square = crop.of_fitted((64, 64), (640, 480), Resize::Crop);
        assert_eq!(square.windows[1], Window { start: 8.0, length: 48.0 });
        assert_eq!(square.windows[0], Window { start: 8.0, length: 48.0 });
    }

    #[test]
    fn extensions_are_read_and_divided() {
        let extend = |text: &str| text.parse::<Extend>().unwrap();
        let all = extend("left=64, top=32,right=0,bottom=7,feather=9");
        assert_eq!((all.left, all.top, all.bottom, all.feather), (64, 32, 7, Some(9)));
        assert_eq!(all.to_string(), "left=64,top=32,bottom=7,feather=9");
        assert_eq!(extend("left=0").to_string().parse::<Extend>().unwrap(), Extend::default());
        for wrong in ["", "left", "left=", "left=-1", "left=1.5", "up=3", "left=1,,top=2", "left=4294967296"]
        {
            let error = wrong.parse::<Extend>().unwrap_err().to_string();
            assert!(
                error.starts_with("extend: expected sides in pixels, as in left=64,top=32, got"),
                "{error}"
            );
        }
        assert!(
            "left=1,left=2".parse::<Extend>().unwrap_err().to_string().contains("left once, got it twice")
        );
        assert_eq!(extend("left=64,top=64").divided((128, 128), 16), None);
        // 64 of 128, then 96 of 192, and what is left.
        let (first, last) = extend("right=176,top=16").divided((128, 128), 16).unwrap();
        assert_eq!((first, last), (extend("right=160,top=16"), extend("right=16")));
        assert_eq!(first.divided((128, 128), 16).unwrap(), (extend("right=64,top=16"), extend("right=96")));
        assert_eq!(Extend { left: u32::MAX, ..extend("left=0") }.of((9, 9)), (u32::MAX, 9));
    }

    #[test]
    fn masks_of_extensions_end_within_the_image() {
        let place = Placement::extended((8, 6), &"left=3,bottom=2".parse().unwrap());
        let mask = place.around(3);
        assert_eq!(mask.dimensions(), (11, 8));
        let row = |y: u32| (0..11).map(|x| mask.get_pixel(x, y).0[0]).collect::<Vec<_>>();
        assert_eq!(row(0), [255, 255, 255, 191, 127, 63, 0, 0, 0, 0, 0]);
        assert_eq!(row(5), [255, 255, 255, 191, 191, 191, 191, 191, 191, 191, 191]);
        assert_eq!(row(6), [255; 11]);
    }

    #[test]
    fn names() {
        for kind in Resize::ALL {
            assert_eq!(kind.to_string().parse::<Resize>().unwrap(), kind);
        }
        assert_eq!(" Crop".parse::<Resize>().unwrap(), Resize::Crop);
        let error = "cut".parse::<Resize>().unwrap_err().to_string();
        assert_eq!(error, "resize: expected crop, pad or stretch, got \"cut\"");
    }
}
