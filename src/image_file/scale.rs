//! Images at another size, made while they are read: pixels come in any order, each once, and what is kept of them is the
//! new image alone. It knows nothing of files.
//!
//! The filter is Lanczos's of three lobes, as `image::imageops::resize` and Pillow compute it: stretched by the ratio when
//! an image shrinks, its weights adding up to 1 at every place. Both passes are sums over pixels, so that the order of the
//! pixels does not matter but for rounding.

use std::ops::Range;

/// Half the width of the filter, in pixels of the coarser image.
const LOBES: f64 = 3.0;

/// The part of one side of an image that is scaled, in pixels, and within the side; its ends may lie between pixels.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Window {
    pub(super) start: f64,
    pub(super) length: f64,
}

impl Window {
    /// The whole side.
    pub(super) fn whole(side: usize) -> Self {
        Self { start: 0.0, length: side as f64 }
    }

    /// The same part, counted from the other end.
    pub(super) fn reversed(self, side: usize) -> Self {
        Self { start: side as f64 - self.start - self.length, ..self }
    }
}

/// What is scaled of an image: its size (width, height), and the part of each side.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Part {
    pub(super) of: [usize; 2],
    pub(super) windows: [Window; 2],
}

impl Part {
    /// All of an image of this size.
    pub(super) fn whole(of: [usize; 2]) -> Self {
        Self { of, windows: of.map(Window::whole) }
    }

    /// Whether no pixel changes at this size.
    fn is_copied(&self, to: [usize; 2]) -> bool {
        *self == Self::whole(to)
    }
}

/// An image that is being made at its new size.
pub(super) struct Canvas {
    channels: usize,
    from: [usize; 2],
    to: [usize; 2],
    filter: Option<Filter>,
    /// The new image, row by row.
    pixels: Vec<u8>,
}

/// What there is only where the size changes.
struct Filter {
    across: Taps,
    down: Taps,
    /// Whether rows are added up at their old width, and brought to the new one when a sum is complete. That is far less
    /// work, but takes more memory where rows do not come in order, because all sums are open then.
    down_first: bool,
    /// The sums of new rows that are not complete yet.
    sums: Vec<Option<Vec<f32>>>,
    /// Per new row, how many old rows are still to come.
    missing: Vec<u32>,
    /// Per old row, how many of its pixels have come.
    seen: Vec<u32>,
    /// One row at its new width.
    line: Vec<f32>,
}

impl Canvas {
    /// For a part of an image, which becomes one of `to` pixels (width, height); no side is 0. `in_order` where the rows
    /// come from the top down.
    pub(super) fn new(channels: usize, part: Part, to: [usize; 2], in_order: bool) -> Self {
        let from = part.of;
        let filter = (!part.is_copied(to)).then(|| {
            let [across, down] = [0, 1].map(|axis| Taps::new(part.windows[axis], from[axis], to[axis]));
            Filter {
                missing: down.counts(to[1]),
                sums: vec![None; to[1]],
                seen: vec![0; from[1]],
                line: vec![0.0; to[0] * channels],
                across,
                down,
                down_first: in_order,
            }
        });
        Self { channels, from, to, filter, pixels: vec![0; to[0] * to[1] * channels] }
    }

    /// The most bytes that a canvas takes.
    pub(super) fn bytes(channels: usize, part: Part, to: [usize; 2], in_order: bool) -> u64 {
        let pixels = (to[0] * to[1] * channels) as u64;
        if part.is_copied(to) {
            return pixels;
        }
        let Part { of: from, windows } = part;
        let tables: usize = (0..2).map(|axis| Taps::bytes(windows[axis], from[axis], to[axis])).sum();
        let sums = if in_order { most_open(windows[1], from[1], to[1]) * from[0] } else { to[1] * to[0] };
        let rows = (sums + to[0]) * channels * size_of::<f32>();
        let counters =
            from[1] * size_of::<u32>() + to[1] * (size_of::<u32>() + size_of::<Option<Vec<f32>>>());
        pixels + (tables + rows + counters) as u64
    }

    /// Takes pixels of row `y`: every `step`-th from `x` on, each of as many bytes as there are channels. Every pixel of
    /// the image, not of the part alone, is to come once.
    pub(super) fn put(&mut self, y: usize, x: usize, step: usize, pixels: &[u8]) {
        let channels = self.channels;
        match &mut self.filter {
            Some(filter) => filter.put(channels, [y, x, step], pixels, self.from[0], &mut self.pixels),
            None if step == 1 => {
                let at = (y * self.to[0] + x) * channels;
                self.pixels[at..at + pixels.len()].copy_from_slice(pixels);
            }
            None => {
                for (index, pixel) in pixels.chunks_exact(channels).enumerate() {
                    let at = (y * self.to[0] + x + index * step) * channels;
                    self.pixels[at..at + channels].copy_from_slice(pixel);
                }
            }
        }
    }

    /// The new image, of which every pixel has come.
    pub(super) fn into_pixels(self) -> Vec<u8> {
        self.pixels
    }
}

impl Filter {
    fn put(
        &mut self,
        channels: usize,
        [y, x, step]: [usize; 3],
        pixels: &[u8],
        width: usize,
        image: &mut [u8],
    ) {
        self.seen[y] += (pixels.len() / channels) as u32;
        let is_complete = self.seen[y] as usize == width;
        let new_length = self.line.len();
        let sum_length = if self.down_first { width * channels } else { new_length };
        if !self.down_first {
            self.line.fill(0.0);
            self.across.add_pixels(channels, x, step, pixels, &mut self.line);
        }
        let (rows, weights) = self.down.of(y);
        for (row, &weight) in rows.zip(weights) {
            let sum = self.sums[row].get_or_insert_with(|| vec![0.0; sum_length]);
            if !self.down_first {
                sum.iter_mut().zip(&self.line).for_each(|(sum, value)| *sum += weight * value);
            } else if step == 1 {
                let sum = &mut sum[x * channels..][..pixels.len()];
                sum.iter_mut().zip(pixels).for_each(|(sum, &value)| *sum += weight * f32::from(value));
            } else {
                let places = sum[x * channels..].chunks_mut(step * channels);
                for (sum, pixel) in places.zip(pixels.chunks_exact(channels)) {
                    sum.iter_mut().zip(pixel).for_each(|(sum, &value)| *sum += weight * f32::from(value));
                }
            }
            if !is_complete {
                continue;
            }
            self.missing[row] -= 1;
            if self.missing[row] > 0 {
                continue;
            }
            if self.down_first {
                self.line.fill(0.0);
                self.across.add_pixels(channels, 0, 1, sum, &mut self.line);
            }
            let done = if self.down_first { &self.line } else { &*sum };
            for (pixel, sum) in image[row * new_length..][..new_length].iter_mut().zip(done) {
                *pixel = sum.round().clamp(0.0, 255.0) as u8;
            }
            self.sums[row] = None;
        }
    }
}

/// Along one side, to which new pixels an old one is added, and with what weight.
struct Taps {
    /// Per old pixel, the first new one, and where its weights begin.
    starts: Vec<(u32, u32)>,
    weights: Vec<f32>,
}

impl Taps {
    fn new(window: Window, from: usize, to: usize) -> Self {
        let spans: Vec<Range<usize>> = (0..to).map(|new| support(new, window, from, to)).collect();
        let ratio = window.length / to as f64;
        let weight = |old: usize, new: usize| {
            let center = window.start + (new as f64 + 0.5) * ratio - 0.5;
            lanczos((old as f64 - center) / ratio.max(1.0))
        };
        let totals: Vec<f64> = spans
            .iter()
            .enumerate()
            .map(|(new, span)| span.clone().map(|old| weight(old, new)).sum())
            .collect();
        let mut starts = Vec::with_capacity(from + 1);
        let mut weights = Vec::with_capacity(spans.iter().map(Range::len).sum());
        // Both ends of the spans rise from one new pixel to the next.
        let (mut first, mut last) = (0, 0);
        for old in 0..from {
            while first < to && spans[first].end <= old {
                first += 1;
            }
            last = last.max(first);
            while last < to && spans[last].start <= old {
                last += 1;
            }
            starts.push((first as u32, weights.len() as u32));
            weights.extend((first..last).map(|new| (weight(old, new) / totals[new]) as f32));
        }
        starts.push((0, weights.len() as u32));
        Self { starts, weights }
    }

    /// The most bytes that such a table takes, also while it is made.
    fn bytes(window: Window, from: usize, to: usize) -> usize {
        let longest = (2.0 * LOBES * (window.length / to as f64).max(1.0)) as usize + 3;
        let spans = to * (size_of::<Range<usize>>() + size_of::<f64>());
        (from + 1) * size_of::<(u32, u32)>() + to * longest.min(from) * size_of::<f32>() + spans
    }

    /// Per new pixel, how many old ones are added to it.
    fn counts(&self, to: usize) -> Vec<u32> {
        let mut counts = vec![0; to];
        for old in 0..self.starts.len() - 1 {
            self.of(old).0.for_each(|new| counts[new] += 1);
        }
        counts
    }

    /// The new pixels that take something of an old one, and the weights.
    fn of(&self, old: usize) -> (Range<usize>, &[f32]) {
        let (first, start) = self.starts[old];
        let weights = &self.weights[start as usize..self.starts[old + 1].1 as usize];
        (first as usize..first as usize + weights.len(), weights)
    }

    /// Adds old pixels, every `step`-th from `x` on, to a line of new ones.
    fn add_pixels<T: Copy + Into<f32>>(
        &self,
        channels: usize,
        x: usize,
        step: usize,
        pixels: &[T],
        line: &mut [f32],
    ) {
        match channels {
            1 => self.add::<T, 1>(x, step, pixels, line),
            2 => self.add::<T, 2>(x, step, pixels, line),
            _ => self.add::<T, 3>(x, step, pixels, line),
        }
    }

    fn add<T: Copy + Into<f32>, const N: usize>(
        &self,
        x: usize,
        step: usize,
        pixels: &[T],
        line: &mut [f32],
    ) {
        let (line, _) = line.as_chunks_mut::<N>();
        for (index, pixel) in pixels.as_chunks::<N>().0.iter().enumerate() {
            let pixel = pixel.map(Into::into);
            let (new, weights) = self.of(x + index * step);
            for (sum, weight) in line[new].iter_mut().zip(weights) {
                for channel in 0..N {
                    sum[channel] += weight * pixel[channel];
                }
            }
        }
    }
}

/// The old pixels that a new one is made of; never none.
fn support(new: usize, window: Window, from: usize, to: usize) -> Range<usize> {
    let ratio = window.length / to as f64;
    let (center, half) = (window.start + (new as f64 + 0.5) * ratio, LOBES * ratio.max(1.0));
    let start = ((center - half).floor().max(0.0) as usize).min(from - 1);
    start..((center + half).ceil() as usize).clamp(start + 1, from)
}

/// How many new rows are open at a time at most, where old rows come in order.
fn most_open(window: Window, from: usize, to: usize) -> usize {
    let mut last = 0;
    let mut most = 0;
    for first in 0..to {
        let end = support(first, window, from, to).end;
        last = last.max(first);
        while last < to && support(last, window, from, to).start < end {
            last += 1;
        }
        most = most.max(last - first);
    }
    most
}

/// `sinc(x) * sinc(x / 3)` within three lobes.
fn lanczos(x: f64) -> f64 {
    let sinc = |x: f64| {
        let x = x * std::f64::consts::PI;
        if x == 0.0 { 1.0 } else { x.sin() / x }
    };
    if x.abs() < LOBES { sinc(x) * sinc(x / LOBES) } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use image::imageops::{FilterType, resize};
    use image::{GrayImage, RgbImage};

    use super::*;

    /// Numbers below a bound, the same for a seed every time (Knuth's linear congruential generator).
    fn random(seed: u64) -> impl FnMut(usize) -> usize {
        let mut state = seed;
        move |below| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize % below
        }
    }

    fn image(
        channels: usize,
        [width, height]: [usize; 2],
        random: &mut impl FnMut(usize) -> usize,
    ) -> Vec<u8> {
        (0..width * height * channels).map(|_| random(256) as u8).collect()
    }

    fn in_rows(channels: usize, from: [usize; 2], to: [usize; 2], pixels: &[u8]) -> (Vec<u8>, usize) {
        let mut canvas = Canvas::new(channels, Part::whole(from), to, true);
        let mut open = 0;
        for (y, row) in pixels.chunks_exact(from[0] * channels).enumerate() {
            canvas.put(y, 0, 1, row);
            if let Some(filter) = &canvas.filter {
                open = open.max(filter.sums.iter().flatten().count());
            }
        }
        (canvas.into_pixels(), open)
    }

    /// Against the resampling that was used when goldens were made: at most one level off, which is rounding.
    #[test]
    fn as_the_reference_resizes() {
        let mut random = random(1);
        let mut off = 0;
        for round in 0..120 {
            let channels = [1, 3][round % 2];
            let [from, to] = [(); 2].map(|()| [1 + random(90), 1 + random(90)]);
            let pixels = image(channels, from, &mut random);
            let [w, h, to_w, to_h] = [from[0], from[1], to[0], to[1]].map(|side| side as u32);
            let expected = if channels == 1 {
                let image = GrayImage::from_raw(w, h, pixels.clone()).unwrap();
                resize(&image, to_w, to_h, FilterType::Lanczos3).into_raw()
            } else {
                let image = RgbImage::from_raw(w, h, pixels.clone()).unwrap();
                resize(&image, to_w, to_h, FilterType::Lanczos3).into_raw()
            };
            let (got, _) = in_rows(channels, from, to, &pixels);
            let worst = got.iter().zip(&expected).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
            assert!(worst <= 1, "{from:?} to {to:?}: {worst} levels off");
            off += usize::from(worst > 0);
            // Pixels that were taken from one place further would be far off.
            if from[0] > 8 && to != from {
                let mut shifted = pixels.clone();
                shifted.rotate_right(channels);
                let (other, _) = in_rows(channels, from, to, &shifted);
                let worst = other.iter().zip(&expected).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
                assert!(worst > 1, "{from:?} to {to:?}: a shift is not seen");
            }
        }
        assert!(off < 60, "{off} of 120 differ at all");
    }

    #[test]
    fn the_order_of_pixels_does_not_matter() {
        let mut random = random(2);
        for _ in 0..40 {
            let [from, to] = [(); 2].map(|()| [1 + random(60), 1 + random(60)]);
            let pixels = image(3, from, &mut random);
            let (expected, _) = in_rows(3, from, to, &pixels);
            for in_order in [false, true] {
                let mut canvas = Canvas::new(3, Part::whole(from), to, in_order);
                // Rows from the bottom up, of each the odd pixels first.
                for y in (0..from[1]).rev() {
                    for start in [1, 0] {
                        let row = &pixels[y * from[0] * 3..][..from[0] * 3];
                        let some: Vec<u8> =
                            row.chunks_exact(3).skip(start).step_by(2).flatten().copied().collect();
                        canvas.put(y, start, 2, &some);
                    }
                }
                let got = canvas.into_pixels();
                assert!(got.iter().zip(&expected).all(|(a, b)| a.abs_diff(*b) <= 1), "{from:?} to {to:?}");
            }
        }
    }

    #[test]
    fn no_more_rows_are_open_than_are_counted() {
        let mut random = random(3);
        for _ in 0..200 {
            let [from, to] = [(); 2].map(|()| [1 + random(20), 1 + random(200)]);
            let (_, open) = in_rows(1, from, to, &image(1, from, &mut random));
            let counted = if from == to { 0 } else { most_open(Window::whole(from[1]), from[1], to[1]) };
            // Those that end together are closed when this is looked at.
            let together = to[1].div_ceil(from[1]) + 1;
            assert!(open <= counted && counted <= open + together, "{from:?} to {to:?}: {open} of {counted}");
        }
        // A large image that shrinks is never in memory.
        assert!(Canvas::bytes(3, Part::whole([16_000, 16_000]), [128, 128], true) < 4 << 20);
    }
}
