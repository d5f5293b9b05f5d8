//! Images, against the `image` crate, which reads each format whole: the same size, and the same pixels laid on white.

use std::io::Cursor;

use ::image::{DynamicImage, GenericImageView, ImageDecoder, ImageReader};
use calotype::ErrorKind;
use calotype::image_file::ImageFile;

/// The most pixels of an image that is decoded here: nothing is learnt from large ones.
const MAX_PIXELS: u32 = 1 << 16;
/// What rounding may change: 16 bits become 8, and colours are laid on white.
const TOLERANCE: f64 = 1.0;

pub fn run(bytes: &[u8]) {
    let file = match ImageFile::from_bytes("image", bytes.to_vec()) {
        Ok(file) => file,
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::Input);
            return;
        }
    };
    let (width, height) = file.dimensions();
    assert!(width > 0 && height > 0);
    if u64::from(width) * u64::from(height) > u64::from(MAX_PIXELS) {
        return;
    }
    let (color, mask) = (file.decode(), file.decode_mask());
    assert_eq!(color.is_ok(), mask.is_ok(), "as an image: {:?}, as a mask: {:?}", color.err(), mask.err());
    let (Ok(color), Ok(mask)) = (color, mask) else { return };
    assert_eq!((color.dimensions(), mask.dimensions()), ((width, height), (width, height)));
    assert!(file.decode().is_ok_and(|again| again == color), "decoded again to other pixels");
    let Some(other) = second(bytes) else { return };
    assert_eq!(other.dimensions(), (width, height));
    let rgba = other.to_rgba8();
    let is_opaque = rgba.pixels().all(|pixel| pixel.0[3] == 255);
    let luma = other.to_luma8();
    let is_jpeg = bytes.starts_with(b"\xff\xd8");
    for (((at, rgba), color), (mask, luma)) in
        rgba.pixels().enumerate().zip(color.pixels()).zip(mask.pixels().zip(luma.pixels()))
    {
        let [rgb @ .., alpha] = rgba.0.map(f64::from);
        for (got, expected) in color.0.into_iter().zip(rgb) {
            let expected = expected * alpha / 255.0 + 255.0 - alpha;
            let off = (f64::from(got) - expected).abs();
            assert!(off <= TOLERANCE, "pixel {at}: expected {expected}, got {got}");
        }
        let expected = if is_opaque { luma.0[0] } else { 255 - rgba.0[3] };
        // Black and white are restored in masks that were compressed.
        let expected = match expected {
            0..16 if is_jpeg => 0,
            240.. if is_jpeg => 255,
            grey => grey,
        };
        let off = mask.0[0].abs_diff(expected);
        let is_restored = is_jpeg && matches!(expected, ..18 | 238..);
        assert!(
            f64::from(off) <= TOLERANCE || is_restored && off <= 18,
            "mask, pixel {at}: expected {expected}, got {}",
            mask.0[0]
        );
    }
}

/// What the `image` crate reads, if it does.
fn second(bytes: &[u8]) -> Option<DynamicImage> {
    let mut decoder = ImageReader::new(Cursor::new(bytes)).with_guessed_format().ok()?.into_decoder().ok()?;
    let orientation = decoder.orientation().ok()?;
    let mut image = DynamicImage::from_decoder(decoder).ok()?;
    image.apply_orientation(orientation);
    Some(image)
}
