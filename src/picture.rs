//! Pictures to draw from: PNG and JPEG files become upright, opaque pixels, and pixels a picture of the size that is
//! wanted. It knows nothing of models.

use std::fs::File;
use std::io::{Cursor, Read};
use std::path::Path;

use image::codecs::jpeg::JpegDecoder;
use image::codecs::png::PngDecoder;
use image::imageops::{self, FilterType};
use image::{
    DynamicImage, GrayImage, ImageBuffer, ImageDecoder, ImageFormat, ImageResult, Limits, Pixel, RgbImage,
};

use crate::{Error, ErrorKind};

/// The longest file that is read.
pub const MAX_FILE_BYTES: u64 = 256 << 20;
/// The longest side of a picture that is decoded.
pub const MAX_SIDE_PX: u32 = 16_384;
/// The most memory that a decoded picture takes: enough for 170 million pixels of 8 bits per channel.
pub const MAX_DECODED_BYTES: u64 = 512 << 20;

/// The bytes of a picture's file.
///
/// # Errors
/// [`ErrorKind::Input`] for a file that cannot be read, or is longer than [`MAX_FILE_BYTES`].
pub fn read(path: &Path) -> Result<Vec<u8>, Error> {
    let shown = path.display();
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes))
        .map_err(|error| Error::new(ErrorKind::Input, format!("{shown}")).source(error))?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(Error::new(
            ErrorKind::Input,
            format!("{shown}: expected a picture of at most {MAX_FILE_BYTES} bytes, got more"),
        ));
    }
    Ok(bytes)
}

/// The picture in a PNG or JPEG file; `origin` says in messages which file.
///
/// It is turned as its EXIF orientation asks, cut to 8 bits per channel, and laid on white where it is transparent.
/// Colour profiles are not applied.
///
/// # Errors
/// [`ErrorKind::Input`] for bytes that are no such file, are cut off, hold an animation, or are larger than the limits
/// of this module.
pub fn decode(origin: &str, bytes: &[u8]) -> Result<RgbImage, Error> {
    let image = open(origin, bytes)?;
    if !image.color().has_alpha() {
        return Ok(image.into_rgb8());
    }
    let image = image.into_rgba8();
    Ok(RgbImage::from_fn(image.width(), image.height(), |x, y| {
        let [rgb @ .., alpha] = image.get_pixel(x, y).0;
        let on_white = |byte: u8| {
            let (byte, alpha) = (u32::from(byte), u32::from(alpha));
            ((byte * alpha + 255 * (255 - alpha) + 127) / 255) as u8
        };
        image::Rgb(rgb.map(on_white))
    }))
}

/// The mask in a PNG or JPEG file, as [`decode`] reads it, in shades of grey.
///
/// # Errors
/// As [`decode`]; also for a mask that is transparent anywhere, which would mean black to some and white to others.
pub fn decode_mask(origin: &str, bytes: &[u8]) -> Result<GrayImage, Error> {
    let image = open(origin, bytes)?;
    if image.color().has_alpha() && image.to_rgba8().pixels().any(|pixel| pixel.0[3] < u8::MAX) {
        return Err(Error::new(
            ErrorKind::Input,
            format!("{origin}: expected a mask of opaque pixels, got transparent ones"),
        )
        .help("paint white what is to be drawn anew, and black what is to stay"));
    }
    Ok(image.into_luma8())
}

/// The picture at another size, stretched where the proportions differ, through Lanczos's filter of three lobes; a
/// picture that has the size is left as it is.
pub(crate) fn fit<P>(
    picture: ImageBuffer<P, Vec<u8>>,
    width_px: u32,
    height_px: u32,
) -> ImageBuffer<P, Vec<u8>>
where
    P: Pixel<Subpixel = u8> + 'static,
{
    if picture.dimensions() == (width_px, height_px) {
        return picture;
    }
    imageops::resize(&picture, width_px, height_px, FilterType::Lanczos3)
}

fn open(origin: &str, bytes: &[u8]) -> Result<DynamicImage, Error> {
    let refuse = |problem: &str| Error::new(ErrorKind::Input, format!("{origin}: {problem}"));
    if bytes.is_empty() {
        return Err(refuse("expected a PNG or JPEG picture, got an empty file"));
    }
    let damaged = |error| refuse("expected a whole picture").source(error);
    match image::guess_format(bytes) {
        Ok(ImageFormat::Png) => {
            let decoder = PngDecoder::with_limits(Cursor::new(bytes), limits()).map_err(damaged)?;
            if decoder.is_apng().map_err(damaged)? {
                return Err(refuse("expected one picture, got an animation"));
            }
            load(decoder).map_err(damaged)
        }
        Ok(ImageFormat::Jpeg) => {
            if !jpeg_is_whole(bytes) {
                return Err(refuse("expected a whole picture, got one that is cut off"));
            }
            JpegDecoder::new(Cursor::new(bytes)).and_then(load).map_err(damaged)
        }
        Ok(other) => Err(refuse(&format!("expected a PNG or JPEG picture, got {other:?}"))),
        Err(_) => Err(refuse("expected a PNG or JPEG picture, got something else")),
    }
}

fn limits() -> Limits {
    let mut limits = Limits::no_limits();
    limits.max_image_width = Some(MAX_SIDE_PX);
    limits.max_image_height = Some(MAX_SIDE_PX);
    limits.max_alloc = Some(MAX_DECODED_BYTES);
    limits
}

fn load(mut decoder: impl ImageDecoder) -> ImageResult<DynamicImage> {
    let mut limits = limits();
    limits.reserve(decoder.total_bytes())?;
    decoder.set_limits(limits)?;
    let orientation = decoder.orientation()?;
    let mut image = DynamicImage::from_decoder(decoder)?;
    image.apply_orientation(orientation);
    Ok(image)
}

/// Whether a JPEG file has an end; the decoder fills up with grey what is missing before it.
///
/// Segments are skipped by their lengths, because an embedded preview has an end of its own (ITU T.81, annex B.1).
fn jpeg_is_whole(bytes: &[u8]) -> bool {
    const END: u8 = 0xd9;
    const WITHOUT_LENGTH: [u8; 10] = [0x00, 0x01, 0xd0, 0xd1, 0xd2, 0xd3, 0xd4, 0xd5, 0xd6, 0xd7];
    let mut at = 2;
    loop {
        // To the next marker: over coded data, in which 0xff is followed by 0 or a restart, and fill bytes.
        let Some(skipped) = bytes.get(at..).and_then(|rest| rest.iter().position(|&byte| byte == 0xff))
        else {
            return false;
        };
        at += skipped + 1;
        match bytes.get(at..) {
            None | Some([]) => return false,
            Some([END, ..]) => return true,
            Some([0xff, ..]) => {}
            Some([marker, ..]) if WITHOUT_LENGTH.contains(marker) => at += 1,
            Some([_, high, low, ..]) => at += 1 + usize::from(u16::from_be_bytes([*high, *low])),
            Some(_) => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use image::{ImageEncoder, Luma, LumaA, Rgb, Rgba};

    use super::*;

    /// Every pixel another.
    fn picture() -> RgbImage {
        RgbImage::from_fn(5, 3, |x, y| Rgb([(40 * x) as u8, (80 * y) as u8, 200]))
    }

    fn png(image: impl Into<DynamicImage>) -> Vec<u8> {
        file(&image.into(), ImageFormat::Png)
    }

    fn jpeg() -> Vec<u8> {
        file(
            &DynamicImage::from(RgbImage::from_fn(16, 8, |x, _| Rgb([if x < 8 { 250 } else { 5 }; 3]))),
            ImageFormat::Jpeg,
        )
    }

    fn file(image: &DynamicImage, format: ImageFormat) -> Vec<u8> {
        let mut bytes = Cursor::new(Vec::new());
        image.write_to(&mut bytes, format).unwrap();
        bytes.into_inner()
    }

    #[track_caller]
    fn refuses(bytes: &[u8], message: &str) {
        for error in [decode("x", bytes).map(drop), decode_mask("x", bytes).map(drop)] {
            let error = error.expect_err(message);
            assert_eq!(error.kind(), ErrorKind::Input);
            assert!(error.to_string().starts_with(&format!("x: {message}")), "{error}");
        }
    }

    /// The chunk of a PNG, with its checksum.
    fn chunk(kind: &[u8; 4], data: &[u8]) -> Vec<u8> {
        let mut crc = flate2::Crc::new();
        crc.update(kind);
        crc.update(data);
        [&(data.len() as u32).to_be_bytes(), &kind[..], data, &crc.sum().to_be_bytes()].concat()
    }

    /// An orientation as EXIF, big-endian, with one entry.
    fn exif(orientation: u8) -> Vec<u8> {
        let head = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0";
        [&head[..], &[orientation, 0, 0, 0, 0, 0, 0]].concat()
    }

    #[test]
    fn pixels_are_what_was_written() {
        assert_eq!(decode("", &png(picture())).unwrap(), picture());
        let grey = GrayImage::from_fn(4, 4, |x, y| Luma([(16 * x + y) as u8]));
        assert_eq!(decode_mask("", &png(grey.clone())).unwrap(), grey);
        let colour = decode("", &png(grey.clone())).unwrap();
        assert!(colour.pixels().zip(grey.pixels()).all(|(colour, grey)| colour.0 == [grey.0[0]; 3]));
        let deep = ImageBuffer::<Rgb<u16>, _>::from_fn(5, 3, |x, y| {
            Rgb(picture().get_pixel(x, y).0.map(|b| u16::from(b) * 257))
        });
        assert_eq!(decode("", &png(DynamicImage::ImageRgb16(deep))).unwrap(), picture());
        let decoded = decode("", &jpeg()).unwrap();
        assert_eq!(decoded.dimensions(), (16, 8));
        assert!(decoded.get_pixel(2, 2).0[0] > 240 && decoded.get_pixel(13, 2).0[0] < 15);
    }

    #[test]
    fn transparent_pictures_lie_on_white() {
        let image = image::RgbaImage::from_fn(3, 1, |x, _| Rgba([10, 20, 30, [0, 51, 255][x as usize]]));
        let pixels: Vec<_> = decode("", &png(image)).unwrap().pixels().map(|pixel| pixel.0).collect();
        assert_eq!(pixels, [[255; 3], [206, 208, 210], [10, 20, 30]]);
    }

    #[test]
    fn transparent_masks_are_refused() {
        let mask = |alpha| png(DynamicImage::from(ImageBuffer::from_pixel(2, 2, LumaA([255u8, alpha]))));
        assert_eq!(decode_mask("", &mask(255)).unwrap(), GrayImage::from_pixel(2, 2, Luma([255])));
        let error = decode_mask("mask.png", &mask(254)).expect_err("transparent");
        assert_eq!(error.kind(), ErrorKind::Input);
        assert!(error.to_string().starts_with("mask.png: expected a mask of opaque pixels"), "{error}");
    }

    #[test]
    fn cameras_that_were_held_upright() {
        let upright = decode("", &jpeg()).unwrap();
        let exif = [b"Exif\0\0", &exif(6)[..]].concat();
        let segment = [&[0xff, 0xe1], &(exif.len() as u16 + 2).to_be_bytes()[..], &exif].concat();
        let turned = [&jpeg()[..2], &segment, &jpeg()[2..]].concat();
        assert_eq!(decode("", &turned).unwrap(), imageops::rotate90(&upright));

        let mut turned = Vec::new();
        let mut encoder = image::codecs::png::PngEncoder::new(&mut turned);
        encoder.set_exif_metadata(self::exif(3)).unwrap();
        encoder.write_image(picture().as_raw(), 5, 3, image::ExtendedColorType::Rgb8).unwrap();
        assert_eq!(decode("", &turned).unwrap(), imageops::rotate180(&picture()));
    }

    #[test]
    fn no_picture_at_all() {
        refuses(b"", "expected a PNG or JPEG picture, got an empty file");
        refuses(b"a text\n", "expected a PNG or JPEG picture, got something else");
        refuses(b"GIF89a\x01\0\x01\0", "expected a PNG or JPEG picture, got Gif");
        refuses(b"RIFF\x24\0\0\0WEBPVP8 ", "expected a PNG or JPEG picture, got WebP");
    }

    #[test]
    fn truncated_anywhere() {
        for (whole, name) in [(png(picture()), "png"), (jpeg(), "jpeg")] {
            assert!(decode("", &whole).is_ok());
            // A PNG lacks nothing but its empty last chunk from there on.
            let end = if name == "png" { whole.len() - 12 } else { whole.len() };
            for len in 0..end {
                let error = decode("", &whole[..len]).expect_err(name);
                assert_eq!(error.kind(), ErrorKind::Input, "{name}, {len}");
            }
        }
    }

    #[test]
    fn damaged_anywhere() {
        for whole in [png(picture()), jpeg()] {
            for at in 0..whole.len() {
                for bits in [0x01, 0x80, 0xff] {
                    let mut damaged = whole.clone();
                    damaged[at] ^= bits;
                    // Some damage is a picture of other pixels; none is more than an error.
                    if let Err(error) = decode("", &damaged) {
                        assert_eq!(error.kind(), ErrorKind::Input, "{at}");
                    }
                }
            }
        }
    }

    #[test]
    fn animation() {
        let mut bytes = Vec::new();
        let mut encoder = png::Encoder::new(&mut bytes, 5, 3);
        encoder.set_color(png::ColorType::Rgb);
        encoder.set_animated(2, 0).unwrap();
        let mut writer = encoder.write_header().unwrap();
        (0..2).for_each(|_| writer.write_image_data(picture().as_raw()).unwrap());
        writer.finish().unwrap();
        refuses(&bytes, "expected one picture, got an animation");
    }

    #[test]
    fn sides_beyond_the_limit() {
        let png = |width: u32, height: u32, depth_and_colour: [u8; 2]| {
            let header =
                [&width.to_be_bytes(), &height.to_be_bytes(), &depth_and_colour[..], &[0; 3]].concat();
            let chunks = [chunk(b"IHDR", &header), chunk(b"IDAT", &[0; 64]), chunk(b"IEND", b"")];
            [b"\x89PNG\r\n\x1a\n", &chunks.concat()[..]].concat()
        };
        const RGBA16: [u8; 2] = [16, 6];
        for (width, height) in [(u32::MAX >> 1, 1), (MAX_SIDE_PX + 1, 1), (1, MAX_SIDE_PX + 1), (9000, 9000)]
        {
            refuses(&png(width, height, RGBA16), "expected a whole picture");
        }
        let mut jpeg = jpeg();
        let frame = jpeg.windows(4).position(|bytes| bytes == [0xff, 0xc0, 0, 17]).unwrap();
        jpeg[frame + 5..][..4].copy_from_slice(&[0xff; 4]);
        refuses(&jpeg, "expected a whole picture");
    }

    #[test]
    fn endless_file() {
        let path = Path::new("/dev/zero");
        if path.exists() {
            assert_eq!(read(path).expect_err("endless").kind(), ErrorKind::Input);
        }
        assert_eq!(read(Path::new("/no/such/file")).expect_err("none").kind(), ErrorKind::Input);
        assert_eq!(read(Path::new("/")).expect_err("a folder").kind(), ErrorKind::Input);
    }

    #[test]
    fn fit_resizes_only_what_has_another_size() {
        assert_eq!(fit(picture(), 5, 3), picture());
        let flat = RgbImage::from_pixel(40, 30, Rgb([7, 99, 201]));
        assert_eq!(fit(flat, 16, 24), RgbImage::from_pixel(16, 24, Rgb([7, 99, 201])));
        // Shrunk, fine stripes become their mean, where taking single pixels would keep one of the two.
        let stripes = GrayImage::from_fn(64, 64, |x, _| Luma([if x % 2 == 0 { 0 } else { 200 }]));
        let shrunk = fit(stripes, 16, 16);
        assert!(
            shrunk
                .enumerate_pixels()
                .all(|(x, _, pixel)| (1..15).contains(&x) && pixel.0[0].abs_diff(100) < 12
                    || !(1..15).contains(&x))
        );
    }
}
