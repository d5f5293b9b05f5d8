//! Images for displays: exact size, rotation, and the few colours of electronic paper, dithered. It knows pixels only.

use std::fmt;

use image::imageops::{self, FilterType};
use image::{Rgb, RgbImage};

use super::limit;
use super::reply::Problem;

/// What a display wants, as the query of an image's address says: `?width=800&height=480&fit=crop&palette=gray16`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Panel {
    size: Option<(u32, u32)>,
    fit: Fit,
    turns: u8,
    palette: Option<&'static Palette>,
    is_plain: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Fit {
    /// Fills the display; what is beyond is cut off.
    #[default]
    Crop,
    /// Shows all, with white beside it.
    Pad,
    /// Changes the proportions.
    Stretch,
}

/// Colours of a display.
#[derive(Debug, PartialEq, Eq)]
struct Palette {
    name: &'static str,
    colours: &'static [[u8; 3]],
}

const BLACK: [u8; 3] = [0, 0, 0];
const WHITE: [u8; 3] = [255, 255, 255];
const RED: [u8; 3] = [255, 0, 0];
const GREEN: [u8; 3] = [0, 255, 0];
const BLUE: [u8; 3] = [0, 0, 255];
const YELLOW: [u8; 3] = [255, 255, 0];
const ORANGE: [u8; 3] = [255, 128, 0];

/// Displays take these pure colours for their own.
const PALETTES: [Palette; 6] = [
    Palette { name: "2", colours: &[BLACK, WHITE] },
    Palette { name: "3", colours: &[BLACK, WHITE, RED] },
    Palette { name: "4", colours: &[BLACK, WHITE, RED, YELLOW] },
    Palette { name: "6", colours: &[BLACK, WHITE, RED, YELLOW, BLUE, GREEN] },
    Palette { name: "7", colours: &[BLACK, WHITE, GREEN, BLUE, RED, YELLOW, ORANGE] },
    Palette { name: "gray16", colours: &GRAYS },
];
const GRAYS: [[u8; 3]; 16] = {
    let mut grays = [[0; 3]; 16];
    let mut level = 0;
    while level < 16 {
        grays[level] = [level as u8 * 17; 3];
        level += 1;
    }
    grays
};

impl Panel {
    /// Reads a query.
    pub(super) fn parse(query: &[(String, String)]) -> Result<Self, Problem> {
        let mut panel = Self::default();
        let (mut width, mut height) = (None, None);
        for (name, value) in query {
            let refuse = |expected: &str| Problem::field(name, format!("expected {expected}, got {value:?}"));
            let side = || {
                let side = value.parse().ok().filter(|side| (1..=limit::PANEL_PX).contains(side));
                side.ok_or_else(|| refuse(&format!("1 to {} pixels", limit::PANEL_PX)))
            };
            match name.as_str() {
                "width" => width = Some(side()?),
                "height" => height = Some(side()?),
                "fit" => {
                    panel.fit = match value.as_str() {
                        "crop" => Fit::Crop,
                        "pad" => Fit::Pad,
                        "stretch" => Fit::Stretch,
                        _ => return Err(refuse("crop, pad or stretch")),
                    }
                }
                "rotate" => {
                    panel.turns = match value.as_str() {
                        "0" => 0,
                        "90" => 1,
                        "180" => 2,
                        "270" => 3,
                        _ => return Err(refuse("0, 90, 180 or 270")),
                    }
                }
                "palette" => {
                    let found = PALETTES.iter().find(|palette| palette.name == value);
                    let names = PALETTES.map(|palette| palette.name).join(", ");
                    panel.palette = Some(found.ok_or_else(|| refuse(&names))?);
                }
                "dither" => {
                    panel.is_plain = match value.as_str() {
                        "floyd-steinberg" => false,
                        "none" => true,
                        _ => return Err(refuse("floyd-steinberg or none")),
                    }
                }
                // A page adds what it likes, so that nothing is taken from its cache.
                _ => {}
            }
        }
        panel.size = match (width, height) {
            (None, None) => None,
            (Some(width), Some(height)) => Some((width, height)),
            _ => return Err(Problem::field("width", "expected both width and height, got one")),
        };
        Ok(panel)
    }

    /// Whether images are sent as they are.
    pub(super) fn is_whole(self) -> bool {
        self.size.is_none() && self.turns == 0 && self.palette.is_none()
    }

    /// The image as the display wants it; width and height are those of the display, after the rotation.
    pub(super) fn draw(self, image: &RgbImage) -> RgbImage {
        let mut image = match self.turns {
            1 => imageops::rotate90(image),
            2 => imageops::rotate180(image),
            3 => imageops::rotate270(image),
            _ => image.clone(),
        };
        if let Some(size) = self.size.filter(|size| *size != image.dimensions()) {
            image = self.fitted(&image, size);
        }
        if let Some(palette) = self.palette {
            reduce(&mut image, palette.colours, !self.is_plain);
        }
        image
    }

    fn fitted(self, image: &RgbImage, (width, height): (u32, u32)) -> RgbImage {
        let (from_width, from_height) = image.dimensions();
        let scales = [f64::from(width) / f64::from(from_width), f64::from(height) / f64::from(from_height)];
        let scale = match self.fit {
            Fit::Stretch => return imageops::resize(image, width, height, FilterType::Lanczos3),
            Fit::Crop => scales[0].max(scales[1]),
            Fit::Pad => scales[0].min(scales[1]),
        };
        let side = |side: u32| ((f64::from(side) * scale).round() as u32).max(1);
        let (scaled_width, scaled_height) = (side(from_width), side(from_height));
        let scaled = imageops::resize(image, scaled_width, scaled_height, FilterType::Lanczos3);
        let mut shown = RgbImage::from_pixel(width, height, Rgb(WHITE));
        let at = |outer: u32, inner: u32| (i64::from(outer) - i64::from(inner)) / 2;
        imageops::replace(&mut shown, &scaled, at(width, scaled_width), at(height, scaled_height));
        shown
    }
}

impl fmt::Display for Panel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_whole() {
            return f.write_str("whole");
        }
        let (width, height) = self.size.unwrap_or_default();
        let palette = self.palette.map_or("all", |palette| palette.name);
        write!(f, "{width}x{height}-{:?}-{}-{palette}-{}", self.fit, self.turns, self.is_plain)
    }
}

/// Replaces each pixel by the nearest of these colours; what is lost goes to its neighbours that are still to come
/// (Floyd and Steinberg, 1976).
fn reduce(image: &mut RgbImage, colours: &[[u8; 3]], is_dithered: bool) {
    let (width, height) = (image.width() as usize, image.height());
    // What this row and the next were given, with a column beside each end.
    let mut rows = [vec![[0f32; 3]; width + 2], vec![[0f32; 3]; width + 2]];
    for y in 0..height {
        for x in 0..width {
            let pixel = image.get_pixel_mut(x as u32, y);
            let wanted: [f32; 3] = std::array::from_fn(|c| f32::from(pixel.0[c]) + rows[0][x + 1][c]);
            let distance = |colour: &[u8; 3]| -> f32 {
                wanted.iter().zip(colour).map(|(w, &c)| (w - f32::from(c)).powi(2)).sum()
            };
            let nearest =
                colours.iter().min_by(|a, b| distance(a).total_cmp(&distance(b))).copied().unwrap_or(BLACK);
            pixel.0 = nearest;
            if !is_dithered {
                continue;
            }
            for channel in 0..3 {
                let lost = wanted[channel] - f32::from(nearest[channel]);
                rows[0][x + 2][channel] += lost * 7.0 / 16.0;
                rows[1][x][channel] += lost * 3.0 / 16.0;
                rows[1][x + 1][channel] += lost * 5.0 / 16.0;
                rows[1][x + 2][channel] += lost * 1.0 / 16.0;
            }
        }
        rows.swap(0, 1);
        rows[1].fill([0.0; 3]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn panel(query: &str) -> Result<Panel, Problem> {
        let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
        Panel::parse(&pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect::<Vec<_>>())
    }

    #[test]
    fn displays_get_their_exact_size() {
        let image = RgbImage::from_fn(64, 32, |x, _| Rgb(if x < 32 { RED } else { BLUE }));
        for query in
            ["width=80&height=48", "width=80&height=48&fit=pad", "width=7&height=90&fit=stretch&rotate=90"]
        {
            let panel = panel(query).unwrap();
            assert_eq!(Some(panel.draw(&image).dimensions()), panel.size, "{query}");
        }
        let padded = panel("width=64&height=64&fit=pad").unwrap().draw(&image);
        assert_eq!((padded[(0, 0)].0, padded[(0, 32)].0, padded[(63, 32)].0), (WHITE, RED, BLUE));
        let cropped = panel("width=32&height=32").unwrap().draw(&image);
        assert_eq!((cropped[(0, 0)].0, cropped[(31, 31)].0), (RED, BLUE));
        let turned = panel("rotate=90").unwrap().draw(&image);
        assert_eq!((turned.dimensions(), turned[(0, 0)].0, turned[(0, 63)].0), ((32, 64), RED, BLUE));
    }

    #[test]
    fn dithering_keeps_the_mean_and_uses_the_palette_alone() {
        let image = RgbImage::from_pixel(64, 64, Rgb([100, 100, 100]));
        for palette in PALETTES {
            let drawn = panel(&format!("palette={}", palette.name)).unwrap().draw(&image);
            assert!(drawn.pixels().all(|pixel| palette.colours.contains(&pixel.0)), "{}", palette.name);
            for channel in 0..3 {
                let mean = drawn.pixels().map(|pixel| f64::from(pixel.0[channel])).sum::<f64>() / 4096.0;
                assert!((mean - 100.0).abs() < 4.0, "{}: {mean}", palette.name);
            }
        }
        let plain = panel("palette=2&dither=none").unwrap().draw(&image);
        assert!(plain.pixels().all(|pixel| pixel.0 == BLACK));
    }

    #[test]
    fn odd_queries_are_refused() {
        for query in [
            "width=80",
            "width=0&height=1",
            "width=9000&height=1",
            "width=x&height=1",
            "fit=x",
            "rotate=45",
            "palette=5",
            "dither=maybe",
            "width=-1&height=1",
        ] {
            assert!(panel(query).is_err(), "{query}");
        }
        assert!(panel("t=123").unwrap().is_whole());
    }
}
