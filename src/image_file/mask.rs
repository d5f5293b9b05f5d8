//! What is done to inpainting masks: inverted, grown, blurred, and the region of an image that one covers. It knows shades of
//! grey, and nothing of what is repainted.

use std::collections::VecDeque;

use image::{GrayImage, ImageBuffer, Pixel, imageops};

use super::placement::Rect;

/// The width of a blur in its standard deviations, on each side, as A1111 cuts it.
const BLUR_REACH: f64 = 2.5;

/// Changes of a mask, in this order.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct MaskEdit {
    /// Black becomes white.
    pub(crate) inverts: bool,
    /// By how many pixels white areas grow in each direction; below 0 they shrink.
    pub(crate) grow_px: i32,
    /// The standard deviation of a Gaussian filter, in pixels; 0 is none.
    pub(crate) blur_px: f64,
}

impl MaskEdit {
    pub(crate) fn apply(&self, mut mask: GrayImage) -> GrayImage {
        let shrinks = self.grow_px < 0;
        // Shrinking white is growing black.
        if self.inverts != shrinks {
            imageops::invert(&mut mask);
        }
        grow(&mut mask, self.grow_px.unsigned_abs() as usize);
        if shrinks {
            imageops::invert(&mut mask);
        }
        blur(mask, self.blur_px)
    }

    /// What it takes beside a mask of this size, in bytes.
    pub(crate) fn bytes(&self, width: u32, height: u32) -> u64 {
        let pixels = u64::from(width) * u64::from(height);
        // Of a line: its values and a queue.
        let line = u64::from(width.max(height)) * 32;
        let grown = if self.grow_px != 0 { line } else { 0 };
        let blurred = if self.blur_px > 0.0 { pixels * size_of::<f32>() as u64 + line } else { 0 };
        grown.max(blurred)
    }
}

/// Each pixel becomes the lightest within a square of `2 * reach + 1` pixels around it.
fn grow(mask: &mut GrayImage, reach: usize) {
    if reach == 0 {
        return;
    }
    let (width, height) = (mask.width() as usize, mask.height() as usize);
    let mut line = Vec::with_capacity(width.max(height));
    let mut lightest = VecDeque::with_capacity(width.max(height));
    for y in 0..height {
        grow_line(mask, y * width, 1, width, reach, &mut line, &mut lightest);
    }
    for x in 0..width {
        grow_line(mask, x, width, height, reach, &mut line, &mut lightest);
    }
}

/// The same of one line: `length` pixels, each `step` after the one before.
fn grow_line(
    pixels: &mut [u8],
    start: usize,
    step: usize,
    length: usize,
    reach: usize,
    line: &mut Vec<u8>,
    lightest: &mut VecDeque<usize>,
) {
    line.clear();
    line.extend((0..length).map(|at| pixels[start + at * step]));
    lightest.clear();
    let mut next = 0;
    for at in 0..length {
        // Places within reach whose value no later one exceeds; the first has the largest.
        while next < length && next <= at + reach {
            while lightest.back().is_some_and(|&last| line[last] <= line[next]) {
                lightest.pop_back();
            }
            lightest.push_back(next);
            next += 1;
        }
        while lightest.front().is_some_and(|&first| first + reach < at) {
            lightest.pop_front();
        }
        pixels[start + at * step] = line[lightest[0]];
    }
}

/// A Gaussian filter of this standard deviation; beyond the edges the mask goes on as at the edge.
fn blur(mask: GrayImage, deviation_px: f64) -> GrayImage {
    if deviation_px <= 0.0 {
        return mask;
    }
    let reach = (BLUR_REACH * deviation_px + 0.5) as usize;
    let weight = |at: usize| (-0.5 * (at as f64 / deviation_px).powi(2)).exp();
    let total = weight(0) + 2.0 * (1..=reach).map(weight).sum::<f64>();
    let weights: Vec<f32> = (0..=reach).map(|at| (weight(at) / total) as f32).collect();
    let (width, height) = (mask.width() as usize, mask.height() as usize);
    let mut sums: Vec<f32> = mask.as_raw().iter().map(|&value| f32::from(value)).collect();
    let mut line = Vec::with_capacity(width.max(height));
    for y in 0..height {
        blur_line(&mut sums, y * width, 1, width, &weights, &mut line);
    }
    for x in 0..width {
        blur_line(&mut sums, x, width, height, &weights, &mut line);
    }
    let mut mask = mask;
    for (value, sum) in mask.iter_mut().zip(sums) {
        *value = sum.round().clamp(0.0, 255.0) as u8;
    }
    mask
}

fn blur_line(
    values: &mut [f32],
    start: usize,
    step: usize,
    length: usize,
    weights: &[f32],
    line: &mut Vec<f32>,
) {
    line.clear();
    line.extend((0..length).map(|at| values[start + at * step]));
    let last = length - 1;
    for at in 0..length {
        let pairs = weights.iter().enumerate().skip(1);
        let sides =
            pairs.map(|(by, weight)| weight * (line[at.saturating_sub(by)] + line[(at + by).min(last)]));
        values[start + at * step] = weights[0] * line[at] + sides.sum::<f32>();
    }
}

/// The rectangle of an image that is worked at alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Region(pub(crate) Rect);

impl Region {
    /// Around all of a mask that is not black, with so many pixels around it, and with the proportions of `to` pixels as
    /// far as the image allows; none for a black mask. As diffusers' `get_crop_region` finds it.
    pub(crate) fn of(mask: &GrayImage, padding_px: u32, to: (u32, u32)) -> Option<Self> {
        let (width, height) = (i64::from(mask.width()), i64::from(mask.height()));
        let rows: Vec<bool> = mask
            .as_raw()
            .chunks_exact(width as usize)
            .map(|row| row.iter().any(|&value| value > 0))
            .collect();
        let top = rows.iter().position(|&has| has)? as i64;
        let bottom = rows.iter().rposition(|&has| has)? as i64 + 1;
        let columns = |x: usize| mask.as_raw().iter().skip(x).step_by(width as usize).any(|&value| value > 0);
        let left = (0..width as usize).find(|&x| columns(x))? as i64;
        let right = (0..width as usize).rfind(|&x| columns(x))? as i64 + 1;
        let padding = i64::from(padding_px);
        let mut x = [(left - padding).max(0), (right + padding).min(width)];
        let mut y = [(top - padding).max(0), (bottom + padding).min(height)];
        let (x_side, y_side) = ((x[1] - x[0]) as f64, (y[1] - y[0]) as f64);
        let ratio = f64::from(to.0) / f64::from(to.1);
        if x_side / y_side > ratio {
            widen(&mut y, (x_side / ratio - y_side) as i64, height);
        } else {
            widen(&mut x, (y_side * ratio - x_side) as i64, width);
        }
        let [x, width, y, height] = [x[0], x[1] - x[0], y[0], y[1] - y[0]].map(|side| side as u32);
        Some(Self(Rect { x, y, width, height }))
    }

    /// What is in it.
    pub(crate) fn cut<P: Pixel<Subpixel = u8> + 'static>(
        self,
        image: &ImageBuffer<P, Vec<u8>>,
    ) -> ImageBuffer<P, Vec<u8>> {
        let Rect { x, y, width, height } = self.0;
        imageops::crop_imm(image, x, y, width, height).to_image()
    }
}

/// Widens a span by a number of pixels, half of them on each side if there is room.
fn widen(span: &mut [i64; 2], by: i64, length: i64) {
    span[0] -= by / 2;
    span[1] += by - by / 2;
    let beyond = (span[1] - length).max(0);
    *span = [span[0] - beyond, span[1] - beyond];
    let before = (-span[0]).max(0);
    *span = [span[0] + before, (span[1] + before).min(length)];
}

#[cfg(test)]
mod tests {
    use image::Luma;

    use super::*;

    /// Numbers below a bound, the same for a seed every time (Knuth's linear congruential generator).
    fn random(seed: u64) -> impl FnMut(u32) -> u32 {
        let mut state = seed;
        move |below| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as u32 % below
        }
    }

    fn mask(random: &mut impl FnMut(u32) -> u32) -> GrayImage {
        let (width, height) = (1 + random(30), 1 + random(30));
        GrayImage::from_fn(width, height, |_, _| {
            Luma([[0, 0, 0, 255, random(256) as u8][random(5) as usize]])
        })
    }

    fn at(mask: &GrayImage, x: i64, y: i64) -> u8 {
        let clamped = |at: i64, side: u32| at.clamp(0, i64::from(side) - 1) as u32;
        mask.get_pixel(clamped(x, mask.width()), clamped(y, mask.height())).0[0]
    }

    /// Against the definition, pixel by pixel.
    #[test]
    fn masks_grow_and_shrink_by_squares() {
        let mut random = random(1);
        for _ in 0..150 {
            let mask = mask(&mut random);
            let grow_px = random(13) as i32 - 6;
            let edit = MaskEdit { inverts: random(2) == 0, grow_px, ..MaskEdit::default() };
            let got = edit.apply(mask.clone());
            let reach = i64::from(grow_px.unsigned_abs());
            for (x, y, value) in got.enumerate_pixels() {
                let (x, y) = (i64::from(x), i64::from(y));
                let near = (-reach..=reach).flat_map(|dy| (-reach..=reach).map(move |dx| (x + dx, y + dy)));
                let values =
                    near.map(|(x, y)| at(&mask, x, y)).map(|v| if edit.inverts { 255 - v } else { v });
                let expected = if grow_px < 0 { values.min() } else { values.max() };
                assert_eq!(Some(value.0[0]), expected, "{edit:?} of {:?}", mask.dimensions());
            }
        }
    }

    /// Against the two-dimensional filter in double precision.
    #[test]
    fn masks_are_blurred_by_a_gaussian() {
        let mut random = random(2);
        let mut changed = 0;
        for _ in 0..30 {
            let mask = mask(&mut random);
            let blur_px = 0.3 + f64::from(random(40)) / 10.0;
            let got = MaskEdit { blur_px, ..MaskEdit::default() }.apply(mask.clone());
            let reach = (2.5 * blur_px + 0.5) as i64;
            for (x, y, value) in got.enumerate_pixels() {
                let (mut sum, mut total) = (0.0, 0.0);
                for (dx, dy) in (-reach..=reach).flat_map(|dx| (-reach..=reach).map(move |dy| (dx, dy))) {
                    let weight = (-((dx * dx + dy * dy) as f64) / (2.0 * blur_px * blur_px)).exp();
                    sum += weight * f64::from(at(&mask, i64::from(x) + dx, i64::from(y) + dy));
                    total += weight;
                }
                assert!((f64::from(value.0[0]) - sum / total).abs() < 0.51, "{blur_px}");
            }
            changed += usize::from(got != mask);
        }
        assert!(changed > 20, "{changed}");
        let mask = mask(&mut random);
        assert_eq!(MaskEdit::default().apply(mask.clone()), mask);
    }

    /// What `diffusers.image_processor.VaeImageProcessor.get_crop_region` of 0.42.1 gives: `export/golden_crop_region.py`.
    #[test]
    fn regions_are_those_of_diffusers() {
        let golden = include_str!("../../tests/golden/crop_regions.json");
        let rows: Vec<[u32; 13]> = serde_json::from_str(golden).unwrap();
        assert!(rows.len() >= 300);
        for row in rows {
            let [width, height, left, top, right, bottom, to_width, to_height, padding, x1, y1, x2, y2] = row;
            let mask = GrayImage::from_fn(width, height, |x, y| {
                Luma([u8::from((left..right).contains(&x) && (top..bottom).contains(&y))])
            });
            let expected = Region(Rect { x: x1, y: y1, width: x2 - x1, height: y2 - y1 });
            assert_eq!(Region::of(&mask, padding, (to_width, to_height)), Some(expected), "{row:?}");
        }
        assert_eq!(Region::of(&GrayImage::new(9, 9), 3, (8, 8)), None);
    }
}
