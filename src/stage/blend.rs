//! The finished image of a run with a mask: what is outside of the mask is the init image, bit for bit. It knows nothing of
//! latents, in which a run blends on its own, by cells.

use image::{GrayImage, RgbImage};

/// Mixes the init image into what was decoded: `init + mask * (decoded - init)`, with the mask from 0 to 1, rounded.
/// All have the same size.
pub(crate) fn keep_outside(decoded: &mut RgbImage, init: &RgbImage, mask: &GrayImage) {
    for ((pixel, init), mask) in decoded.pixels_mut().zip(init.pixels()).zip(mask.pixels()) {
        let [mask] = mask.0.map(u32::from);
        for (value, init) in pixel.0.iter_mut().zip(init.0) {
            let mixed = u32::from(*value) * mask + u32::from(init) * (255 - mask);
            *value = ((mixed + 127) / 255) as u8;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All pairs of values and masks, against the sum in floating point.
    #[test]
    fn blends_in_proportion_and_exactly_at_both_ends() {
        for mask in 0..=255u8 {
            let init = RgbImage::from_fn(256, 256, |x, y| image::Rgb([x as u8, y as u8, 7]));
            let before = RgbImage::from_fn(256, 256, |x, y| image::Rgb([y as u8, 3, x as u8]));
            let mut blended = before.clone();
            keep_outside(&mut blended, &init, &GrayImage::from_pixel(256, 256, image::Luma([mask])));
            let share = f64::from(mask) / 255.0;
            for ((got, init), decoded) in blended.iter().zip(init.iter()).zip(before.iter()) {
                let expected = f64::from(*init) + share * (f64::from(*decoded) - f64::from(*init));
                assert!((f64::from(*got) - expected).abs() <= 0.5 + 1e-9, "{init} and {decoded} by {mask}");
            }
            if mask == 0 {
                assert!(blended == init);
            }
            if mask == 255 {
                assert!(blended == before);
            }
        }
    }
}
