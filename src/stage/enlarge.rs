//! Latents of a larger image: bilinear interpolation between the middles of cells, as PyTorch's `interpolate` with
//! `align_corners=False` and no anti-aliasing, which A1111's `Latent` upscaler is.

use crate::tensor::LatentShape;

/// Latents `[channels, height_cells, width_cells]` of one shape as those of another with as many channels.
pub(crate) fn enlarged(latents: &[f32], from: LatentShape, to: LatentShape) -> Vec<f32> {
    let rows = places(from.height_cells, to.height_cells);
    let columns = places(from.width_cells, to.width_cells);
    let mut enlarged = Vec::with_capacity(to.len());
    for plane in latents.chunks_exact(from.height_cells * from.width_cells) {
        for &(top, bottom, down) in &rows {
            let row = |index: usize| &plane[index * from.width_cells..][..from.width_cells];
            let (top, bottom) = (row(top), row(bottom));
            enlarged.extend(columns.iter().map(|&(left, right, across)| {
                let between = |row: &[f32]| row[left] + (row[right] - row[left]) * across;
                let (top, bottom) = (between(top), between(bottom));
                top + (bottom - top) * down
            }));
        }
    }
    enlarged
}

/// Per cell of a side, the two cells of the other side that it lies between, and how far from the first.
fn places(from: usize, to: usize) -> Vec<(usize, usize, f32)> {
    let step = from as f32 / to as f32;
    (0..to)
        .map(|cell| {
            let place = ((cell as f32 + 0.5) * step - 0.5).max(0.0);
            let first = (place as usize).min(from - 1);
            (first, (first + 1).min(from - 1), place - first as f32)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `torch.nn.functional.interpolate(x, (3, 4), mode="bilinear")` of PyTorch 2.15.0 for two planes of 2x2.
    #[test]
    fn as_pytorch_interpolates() {
        let shape = |height_cells, width_cells| LatentShape { channels: 2, height_cells, width_cells };
        let latents = [1.0, 3.0, -2.0, 5.0, 0.0, 8.0, 4.0, -4.0];
        let expected = [
            1.0, 1.5, 2.5, 3.0, -0.5, 0.625, 2.875, 4.0, -2.0, -0.25, 3.25, 5.0, //
            0.0, 2.0, 6.0, 8.0, 2.0, 2.0, 2.0, 2.0, 4.0, 2.0, -2.0, -4.0,
        ];
        let got = enlarged(&latents, shape(2, 2), shape(3, 4));
        assert_eq!(got.len(), expected.len());
        for (got, expected) in got.iter().zip(expected) {
            assert!((got - expected).abs() < 1e-6, "{got} {expected}");
        }
        assert_eq!(enlarged(&latents, shape(2, 2), shape(2, 2)), latents);
    }
}
