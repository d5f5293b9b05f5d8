//! Edges of an image by the method of Canny 1986, "A computational approach to edge detection", pixel for pixel as OpenCV's
//! `Canny` finds them in an image of three channels. It knows nothing of what they are for.

use image::RgbImage;

/// The tangent of 22.5 degrees, times 2^15.
const TAN_22: i32 = 13573;
const SHIFT: u32 = 15;

/// White edges on black. A gradient (the sum of its absolute parts by Sobel's filter of three pixels, of the channel where it is
/// largest) above `high` begins an edge, and one above `low` goes on with it.
pub(crate) fn canny(image: &RgbImage, low: u16, high: u16) -> RgbImage {
    let (low, high) = (i32::from(low.min(high)), i32::from(low.max(high)));
    let (width, height) = (image.width() as usize, image.height() as usize);
    let gradients: Vec<[i16; 2]> =
        (0..height).flat_map(|y| (0..width).map(move |x| gradient(image, x, y))).collect();
    let length = |x: isize, y: isize| -> i32 {
        let is_inside = (0..width as isize).contains(&x) && (0..height as isize).contains(&y);
        if is_inside { length(gradients[y as usize * width + x as usize]) } else { 0 }
    };
    let mut is_candidate = vec![false; width * height];
    let mut edges = RgbImage::new(image.width(), image.height());
    let mut found = Vec::new();
    for (at, gradient) in gradients.iter().enumerate() {
        let (x, y) = ((at % width) as isize, (at / width) as isize);
        let own = length(x, y);
        if own <= low {
            continue;
        }
        // The neighbours across the edge: beside, above and below, or in the corners.
        let [dx, dy] = gradient.map(i32::from);
        let (across, along) = (dx.abs() * TAN_22, dy.abs() << SHIFT);
        let is_longest = if along < across {
            own > length(x - 1, y) && own >= length(x + 1, y)
        } else if along > across + (dx.abs() << (SHIFT + 1)) {
            own > length(x, y - 1) && own >= length(x, y + 1)
        } else {
            let side = if (dx ^ dy) < 0 { -1 } else { 1 };
            own > length(x - side, y - 1) && own > length(x + side, y + 1)
        };
        if is_longest && own > high {
            found.push(at);
        }
        is_candidate[at] = is_longest;
    }
    while let Some(at) = found.pop() {
        let (x, y) = (at % width, at / width);
        // A candidate once.
        is_candidate[at] = false;
        edges.put_pixel(x as u32, y as u32, image::Rgb([255; 3]));
        for y in y.saturating_sub(1)..(y + 2).min(height) {
            for x in x.saturating_sub(1)..(x + 2).min(width) {
                if std::mem::take(&mut is_candidate[y * width + x]) {
                    found.push(y * width + x);
                }
            }
        }
    }
    edges
}

fn length([dx, dy]: [i16; 2]) -> i32 {
    i32::from(dx).abs() + i32::from(dy).abs()
}

/// Sobel's gradient at a pixel; edges of the image repeat.
fn gradient(image: &RgbImage, x: usize, y: usize) -> [i16; 2] {
    let (width, height) = (image.width() as usize, image.height() as usize);
    let columns = [x.saturating_sub(1), x, (x + 1).min(width - 1)];
    let rows = [y.saturating_sub(1), y, (y + 1).min(height - 1)];
    let of_channel = |channel: usize| {
        let at = |column: usize, row: usize| {
            i16::from(image.as_raw()[3 * (rows[row] * width + columns[column]) + channel])
        };
        let side = |column: usize| at(column, 0) + 2 * at(column, 1) + at(column, 2);
        let level = |row: usize| at(0, row) + 2 * at(1, row) + at(2, row);
        [side(2) - side(0), level(2) - level(0)]
    };
    // The first of equals.
    let mut longest = of_channel(0);
    for other in [of_channel(1), of_channel(2)] {
        if length(other) > length(longest) {
            longest = other;
        }
    }
    longest
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Images and edges of `export/golden_canny.py`; no pixel differs.
    #[test]
    fn edges_are_those_of_opencv() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/canny");
        let open = |name: String| image::open(folder.join(&name)).expect(&name);
        for number in 0..5 {
            let image = open(format!("canny_{number}.png")).into_rgb8();
            let mut seen = Vec::new();
            for (low, high) in [(100, 200), (30, 90), (0, 0), (200, 100)] {
                let expected = open(format!("canny_{number}_{low}_{high}.png")).into_luma8();
                let edges = canny(&image, low, high);
                assert_eq!(edges.dimensions(), expected.dimensions());
                for (got, expected) in edges.pixels().zip(expected.pixels()) {
                    assert_eq!(got.0, [expected.0[0]; 3], "image {number}, {low} to {high}");
                }
                seen.push(edges);
            }
            assert_eq!(seen[0], seen[3], "the smaller threshold is the lower one");
            assert!(number > 1 || seen[0] != seen[1] && seen[1] != seen[2], "thresholds matter");
        }
    }
}
