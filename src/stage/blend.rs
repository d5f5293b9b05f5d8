//! The finished image of a run: with a mask, what is outside of it is the init image, bit for bit, and a region is pasted
//! into the image that it was cut out of. It knows nothing of latents, in which a run blends on its own, by cells.

use image::{GrayImage, RgbImage};

use crate::Error;
use crate::image_file::{Rect, Region, fit};
use crate::request::{Request, Source};

/// The finished image of a request, of what was decoded.
pub(crate) fn finished(decoded: RgbImage, request: &Request) -> Result<RgbImage, Error> {
    let Source::Masked { images, keeps_outside, is_soft, .. } = &request.source else { return Ok(decoded) };
    let (init, mask, region) = images.whole()?;
    let [asked, taken] = [request.steps_asked(), request.steps()].map(|steps| steps as u64);
    let share = |mask: u8| match (keeps_outside, is_soft) {
        (false, _) => 255,
        (true, false) => mask.into(),
        // What a soft mask has repainted in a step or more is the VAE's, because the steps have blended it.
        (true, true) => (u64::from(mask) * asked).saturating_sub(255 * (asked - taken)).min(255) as u32,
    };
    let Some(Region(rect)) = region else { return Ok(blended(decoded, init, mask, share)) };
    let cut = Region(rect);
    let pasted = fit(decoded, rect.width, rect.height);
    let pasted = blended(pasted, &cut.cut(init), &cut.cut(mask), share);
    let Rect { x, y, .. } = rect;
    let mut image = init.clone();
    image::imageops::replace(&mut image, &pasted, x.into(), y.into());
    Ok(image)
}

/// The init image with what was decoded: `init + share * (decoded - init)`, rounded, with a share of 255 by the mask. All have
/// the same size.
fn blended(mut decoded: RgbImage, init: &RgbImage, mask: &GrayImage, share: impl Fn(u8) -> u32) -> RgbImage {
    for ((pixel, init), mask) in decoded.pixels_mut().zip(init.pixels()).zip(mask.pixels()) {
        let share = share(mask.0[0]);
        for (value, init) in pixel.0.iter_mut().zip(init.0) {
            let mixed = u32::from(*value) * share + u32::from(init) * (255 - share);
            *value = ((mixed + 127) / 255) as u8;
        }
    }
    decoded
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
            let flat = GrayImage::from_pixel(256, 256, image::Luma([mask]));
            let blended = blended(before.clone(), &init, &flat, u32::from);
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
