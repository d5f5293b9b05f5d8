//! Previews without a VAE: how the colours of an image follow from latents, to first order. It knows nothing of models.

use image::{Rgb, RgbImage};
use serde::{Deserialize, Serialize};

use crate::tensor::LatentShape;

/// Per cell of the latents that the U-Net takes, red, green and blue are `base + sum(factors[channel] * latents[channel])`, in
/// -1..=1.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct PreviewFactors {
    /// Per channel its share of red, green and blue.
    pub factors: Vec<[f32; 3]>,
    /// The colour of latents that are zeros; grey when absent.
    #[serde(default)]
    pub base: [f32; 3],
}

impl PreviewFactors {
    /// What is wrong with them for latents of so many channels.
    pub(super) fn problem(&self, channels: usize) -> Option<String> {
        let is_finite = self.factors.iter().chain([&self.base]).flatten().all(|value| value.is_finite());
        (self.factors.len() != channels || !is_finite).then(|| {
            let got = if is_finite { format!("{} of them", self.factors.len()) } else { "others".into() };
            format!("preview: expected finite factors of {channels} channels, got {got}")
        })
    }

    /// An image with a pixel for each cell of latents, which are `[channels, height_cells, width_cells]`.
    pub(crate) fn draw(&self, latents: &[f32], shape: LatentShape) -> RgbImage {
        let LatentShape { height_cells, width_cells, .. } = shape;
        RgbImage::from_fn(width_cells as u32, height_cells as u32, |x, y| {
            let cell = y as usize * width_cells + x as usize;
            let values = latents.iter().skip(cell).step_by(height_cells * width_cells);
            let mut color = self.base;
            for (factor, &value) in self.factors.iter().zip(values) {
                color.iter_mut().zip(factor).for_each(|(sum, factor)| *sum += factor * value);
            }
            Rgb(color.map(|part| ((part + 1.0) * 127.5).round().clamp(0.0, 255.0) as u8))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cell_is_a_pixel() {
        let preview =
            PreviewFactors { factors: vec![[1.0, 0.0, 0.0], [0.0, 0.5, -1.0]], base: [0.0, -1.0, 0.0] };
        let shape = LatentShape { channels: 2, height_cells: 1, width_cells: 3 };
        let image = preview.draw(&[0.0, 1.0, -3.0, 0.0, 2.0, 1.0], shape);
        let pixels: Vec<[u8; 3]> = image.pixels().map(|pixel| pixel.0).collect();
        assert_eq!(pixels, [[128, 0, 128], [255, 128, 0], [0, 64, 0]]);
    }

    #[test]
    fn factors_are_one_per_channel_and_finite() {
        let factors = |count, base| PreviewFactors { factors: vec![[0.5; 3]; count], base: [base; 3] };
        assert_eq!(factors(4, 0.0).problem(4), None);
        assert_eq!(
            factors(3, 0.0).problem(4).unwrap(),
            "preview: expected finite factors of 4 channels, got 3 of them"
        );
        assert!(factors(4, f32::NAN).problem(4).is_some());
    }
}
