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
