//! Where the tiles of an image lie that is enlarged, and which part of each is used. It knows lengths, and nothing of pixels.

use std::ops::Range;

/// How much of a tile's surroundings it has at each edge that is not the image's. The network that is built in sees 18 pixels
/// far, so that its tiles are as the whole image; what others see beyond this changes little.
pub(super) const MARGIN_PX: usize = 32;
/// The longest sides of tiles, in the order in which they are tried.
pub(super) const SIDES_PX: [usize; 6] = [512, 384, 256, 192, 128, 96];

/// One side of an image, divided.
pub(super) struct Axis {
    length_px: usize,
    /// Of each tile; more than the image where that is small.
    pub(super) tile_px: usize,
}

/// A tile along one side: where it begins, and the part of the image that is taken from it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) start: usize,
    pub(super) core: Range<usize>,
}

impl Axis {
    /// A side of the image in tiles of `fixed` pixels or else at most `most`; where the image is one tile its side is a multiple
    /// of `step`.
    pub(super) fn new(length_px: usize, fixed: Option<usize>, most_px: usize, step: usize) -> Self {
        let whole_px = length_px.next_multiple_of(step);
        Self { length_px, tile_px: fixed.unwrap_or(whole_px.min(most_px)) }
    }

    /// The tiles, as few as can be and evenly spread.
    pub(super) fn spans(&self) -> impl Iterator<Item = Span> {
        let Self { length_px, tile_px } = *self;
        let count = match length_px <= tile_px {
            true => 1,
            false => (length_px - 2 * MARGIN_PX).div_ceil(tile_px - 2 * MARGIN_PX),
        };
        let start = move |index: usize| match count {
            1 => 0,
            _ => index * (length_px - tile_px) / (count - 1),
        };
        // Neighbours share at least both margins, and meet in the middle of what they share.
        let edge = move |index: usize| match index {
            0 => 0,
            _ if index == count => length_px,
            _ => (start(index) + start(index - 1) + tile_px) / 2,
        };
        (0..count).map(move |index| Span { start: start(index), core: edge(index)..edge(index + 1) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_cover_a_side_with_margins() {
        for length in 1..700 {
            for (fixed, most) in [(None, 96), (None, 128), (None, 512), (Some(100), 0), (Some(65), 0)] {
                let axis = Axis::new(length, fixed, most, 8);
                let spans: Vec<Span> = axis.spans().collect();
                assert_eq!((spans[0].core.start, spans[spans.len() - 1].core.end), (0, length));
                for span in &spans {
                    let end = span.start + axis.tile_px;
                    assert!(spans.len() == 1 || end <= length, "{length} in {}", axis.tile_px);
                    let before = span.core.start - span.start;
                    assert!(span.start == 0 && before == 0 || before >= MARGIN_PX, "{length}: {span:?}");
                    let after = end - span.core.end;
                    assert!(span.core.end == length || after >= MARGIN_PX, "{length}: {span:?}");
                    assert!(!span.core.is_empty());
                }
                assert!(spans.windows(2).all(|pair| pair[0].core.end == pair[1].core.start));
            }
        }
    }
}
