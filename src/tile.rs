//! Tiles: where the parts of an image lie that are computed one after the other, and how they are joined without a
//! seam. It knows cells and pixels, and nothing of what is computed.

use std::f64::consts::PI;
use std::ops::Range;

use crate::{Error, ErrorKind};

/// The least that neighbours have in common. What lies beyond the edge of a tile changes little of it but the outermost
/// cell, which is a quarter of this and is not in the image.
pub const OVERLAP_CELLS: usize = 4;

/// The largest part of an image that is computed at once: a square, in cells of the latents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tile {
    side_cells: usize,
}

impl Tile {
    /// The smallest side: a third of such a tile is its own, and of smaller ones even less.
    pub const MIN_CELLS: usize = 3 * OVERLAP_CELLS;

    /// A checked size; [`ErrorKind::Usage`] below [`Tile::MIN_CELLS`].
    pub fn new(side_cells: usize) -> Result<Self, Error> {
        if side_cells < Self::MIN_CELLS {
            return Err(Error::new(
                ErrorKind::Usage,
                format!("tile: expected at least {} cells, got {side_cells}", Self::MIN_CELLS),
            ));
        }
        Ok(Self { side_cells })
    }

    /// The longest side in cells.
    pub fn side_cells(self) -> usize {
        self.side_cells
    }

    /// The tiles' places along a side of an image. They are equally long, as few as may be, and no longer than those
    /// few must be.
    pub(crate) fn spans(self, length_cells: usize) -> Vec<Span> {
        let side = self.side_cells;
        if length_cells <= side {
            return vec![Span { cells: 0..length_cells, core: 0..length_cells, before: 0, after: 0 }];
        }
        let count = (length_cells - OVERLAP_CELLS).div_ceil(side - OVERLAP_CELLS);
        let side = (length_cells + (count - 1) * OVERLAP_CELLS).div_ceil(count);
        let start = |index: usize| index * (length_cells - side) / (count - 1);
        let shared = |index: usize| start(index) + side - start(index + 1);
        let spans = (0..count).map(|index| {
            let before = if index > 0 { shared(index - 1) } else { 0 };
            let after = if index + 1 < count { shared(index) } else { 0 };
            let cells = start(index)..start(index) + side;
            // A neighbour's core begins where this one's ends, also where they share an odd number of cells.
            let core = cells.start + before / 2..cells.end - after.div_ceil(2);
            Span { cells, core, before, after }
        });
        spans.collect()
    }
}

/// The place of a tile along one side of an image, in cells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    /// What is computed.
    pub(crate) cells: Range<usize>,
    /// What of it is nearer to this tile's middle than to others': the cores of all tiles are the image, each cell once.
    pub(crate) core: Range<usize>,
    /// How many cells it has in common with the tile before it, and with the one after it.
    before: usize,
    after: usize,
}

impl Span {
    /// How many cells are computed.
    pub(crate) fn len(&self) -> usize {
        self.cells.len()
    }
}

/// Per tile, and per pixel of it along this side, how much of the tile is in the image: half a period of a cosine over
/// the middle half of what two of them share. `scale` is a cell's pixels. Over every pixel the tiles' shares sum to 1.
pub(crate) fn feathers(spans: &[Span], scale: usize) -> Vec<Vec<f32>> {
    let ramp = |at: usize, len: usize| {
        let way = if at < len { 2.0 * (at as f64 + 0.5) / len as f64 - 0.5 } else { 1.0 };
        0.5 - 0.5 * (PI * way.clamp(0.0, 1.0)).cos()
    };
    let mut shares: Vec<Vec<f64>> = Vec::new();
    let mut sums = vec![0.0; spans.last().map_or(0, |last| last.cells.end * scale)];
    for span in spans {
        let len = span.len() * scale;
        let share = |at: usize| ramp(at, span.before * scale) * ramp(len - 1 - at, span.after * scale);
        let share: Vec<f64> = (0..len).map(share).collect();
        sums[span.cells.start * scale..].iter_mut().zip(&share).for_each(|(sum, share)| *sum += share);
        shares.push(share);
    }
    // The ramps of two tiles sum to 1 themselves; where short tiles leave room for a third, they do not.
    let whole = |(span, share): (&Span, Vec<f64>)| {
        let sums = &sums[span.cells.start * scale..];
        share.iter().zip(sums).map(|(share, sum)| (share / sum) as f32).collect()
    };
    spans.iter().zip(shares).map(whole).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every side from one cell to well beyond several tiles, with small, odd and large tiles.
    fn cases() -> impl Iterator<Item = (usize, usize, Vec<Span>)> {
        let tiles = [12, 13, 24, 31, 64];
        tiles.into_iter().flat_map(|side| {
            (1..200).map(move |length| (side, length, Tile::new(side).unwrap().spans(length)))
        })
    }

    #[test]
    fn spans_cover_the_image_with_equal_tiles() {
        for (side, length, spans) in cases() {
            let (first, last) = (&spans[0], spans.last().unwrap());
            assert_eq!((first.cells.start, last.cells.end), (0, length));
            assert!(spans.iter().all(|span| span.len() == first.len() && span.len() <= side));
            for pair in spans.windows(2) {
                let shared = pair[0].cells.end - pair[1].cells.start;
                assert!(shared >= OVERLAP_CELLS, "{length} in {side}: {spans:?}");
                assert_eq!((pair[0].after, pair[1].before), (shared, shared));
            }
            // As few as may be: one fewer of full length would not reach.
            let reach = |count: usize| count * side - count.saturating_sub(1) * OVERLAP_CELLS;
            assert!(spans.len() == 1 || reach(spans.len() - 1) < length, "{length} in {side}: {spans:?}");
            // And not longer than needed.
            let count = spans.len();
            let shorter = count * (first.len() - 1) - (count - 1) * OVERLAP_CELLS;
            assert!(shorter < length, "{length} in {side}: {spans:?}");
        }
    }

    #[test]
    fn cores_are_the_image_once() {
        for (side, length, spans) in cases() {
            let mut cells = spans.iter().flat_map(|span| span.core.clone());
            assert!((0..length).all(|cell| cells.next() == Some(cell)), "{length} in {side}: {spans:?}");
            assert_eq!(cells.next(), None);
            for span in &spans {
                assert!(span.cells.start <= span.core.start && span.core.end <= span.cells.end);
                assert!(span.before == 0 || span.core.start - span.cells.start >= OVERLAP_CELLS / 2);
                assert!(span.after == 0 || span.cells.end - span.core.end >= OVERLAP_CELLS / 2);
            }
        }
    }

    #[test]
    fn shares_sum_to_one() {
        for (side, length, spans) in cases() {
            for scale in [1, 8] {
                let mut sums = vec![0.0; length * scale];
                for (span, shares) in spans.iter().zip(feathers(&spans, scale)) {
                    assert_eq!(shares.len(), span.len() * scale);
                    assert!(shares.iter().all(|share| (0.0..=1.0).contains(share)));
                    let sums = &mut sums[span.cells.start * scale..];
                    sums.iter_mut().zip(shares).for_each(|(sum, share)| *sum += share);
                }
                assert!(sums.iter().all(|sum| (sum - 1.0).abs() < 1e-6), "{length} in {side}");
            }
        }
    }

    #[test]
    fn shares_rise_and_fall_without_a_step() {
        let spans = Tile::new(24).unwrap().spans(44);
        let shares = feathers(&spans, 8);
        assert_eq!(spans.len(), 2);
        // They share 32 pixels. Over the middle 16, a cosine's steepest step is pi / 32.
        assert!(shares[1].windows(2).all(|pair| (0.0..0.099).contains(&(pair[1] - pair[0]))));
        assert!(shares[1][..8].iter().all(|&x| x == 0.0) && shares[1][24..].iter().all(|&x| x == 1.0));
        assert!(shares[1][8..24].iter().all(|&x| 0.0 < x && x < 1.0));
        assert!(
            (shares[1][15] + shares[1][16] - 1.0).abs() < 1e-6,
            "the middle of the overlap is the middle"
        );
        assert!(shares[0].iter().rev().eq(shares[1].iter()), "the first is the second's mirror image");
    }

    #[test]
    fn a_tile_that_is_too_small() {
        let error = Tile::new(11).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Usage);
        assert_eq!(error.to_string(), "tile: expected at least 12 cells, got 11");
    }
}
