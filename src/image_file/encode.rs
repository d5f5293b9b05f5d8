//! Finished images become files: PNG, JPEG or lossless WebP, each with the recipe in it. It knows nothing of where the
//! bytes go.

use std::io::{self, Write};
use std::path::Path;

use image::{RgbImage, RgbaImage};
use image_webp::{ColorType as WebPColor, WebPEncoder};
use jpeg_encoder::{ColorType as JpegColor, EncodingError};
use png::{BitDepth, ColorType, Encoder};

use crate::{Error, ErrorKind};

/// Of JPEG: what Pillow's documentation calls the best; from 90 on, colours have as many pixels as brightness.
const JPEG_QUALITY: u8 = 95;
/// The most EXIF data that fits into a JPEG's segment.
const MAX_EXIF_BYTES: usize = 65_533 - 6;

/// The format that an image is written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutputFormat {
    /// Without loss; the recipe is in text chunks.
    Png,
    /// With loss, quality 95; the recipe is in EXIF.
    Jpeg,
    /// Without loss; the recipe is in EXIF.
    WebP,
}

impl OutputFormat {
    /// The format of a file's name; PNG for a name without an extension.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] for an extension of another format.
    pub fn of_path(path: &Path) -> Result<Self, Error> {
        let Some(extension) = path.extension() else { return Ok(Self::Png) };
        match extension.to_string_lossy().to_lowercase().as_str() {
            "png" => Ok(Self::Png),
            "jpg" | "jpeg" => Ok(Self::Jpeg),
            "webp" => Ok(Self::WebP),
            _ => Err(Error::new(
                ErrorKind::Usage,
                format!(
                    "{}: expected a name in .png, .jpg, .jpeg, .webp, or without an extension",
                    path.display()
                ),
            )
            .help("the extension decides the format")),
        }
    }
}

/// The recipe of an image, in two forms, as its file holds it.
#[derive(Clone, Copy, Debug)]
pub struct RecipeText<'a> {
    /// A1111's `parameters`.
    pub parameters: &'a str,
    /// Calotype's own, as JSON.
    pub json: &'a str,
}

/// Writes an image with its alpha channel; to JPEG, which has none, composited onto white.
///
/// # Errors
/// Those of the writer.
pub fn encode_with_alpha(image: &RgbaImage, format: OutputFormat, out: &mut dyn Write) -> io::Result<()> {
    let (width, height) = image.dimensions();
    match format {
        OutputFormat::Png => png(image.as_raw(), (width, height), ColorType::Rgba, None, out).map_err(of_png),
        OutputFormat::WebP => {
            let encoded = WebPEncoder::new(out).encode(image.as_raw(), width, height, WebPColor::Rgba8);
            encoded.map_err(of_webp)
        }
        OutputFormat::Jpeg => {
            let on_white = |value: u8, alpha: u8| {
                let (value, alpha) = (u32::from(value), u32::from(alpha));
                ((value * alpha + 255 * (255 - alpha) + 127) / 255) as u8
            };
            let opaque = RgbImage::from_fn(width, height, |x, y| {
                let [red, green, blue, alpha] = image.get_pixel(x, y).0;
                image::Rgb([red, green, blue].map(|value| on_white(value, alpha)))
            });
            encode(&opaque, format, None, out).map(drop)
        }
    }
}

fn of_png(error: png::EncodingError) -> io::Error {
    match error {
        // Its own way to an I/O error hides which it was.
        png::EncodingError::IoError(error) => error,
        other => io::Error::other(other),
    }
}

fn of_webp(error: image_webp::EncodingError) -> io::Error {
    match error {
        image_webp::EncodingError::IoError(error) => error,
        other => io::Error::other(other),
    }
}

/// Writes an image, with its recipe if there is one. Returns what of the recipe did not fit, if anything, for a warning.
///
/// PNG has the text chunks `parameters` and `calotype`. JPEG and WebP have EXIF: `UserComment` with A1111's parameters, as
/// A1111 writes it (`UNICODE`, big-endian UTF-16), and `ImageDescription` with the JSON form.
///
/// # Errors
/// Those of the writer.
pub fn encode(
    image: &RgbImage,
    format: OutputFormat,
    text: Option<RecipeText<'_>>,
    out: &mut dyn Write,
) -> io::Result<Option<&'static str>> {
    match format {
        OutputFormat::Png => {
            let written = png(image.as_raw(), image.dimensions(), ColorType::Rgb, text, out);
            written.map(|()| None).map_err(of_png)
        }
        OutputFormat::Jpeg => {
            let (mut segment, mut left_out) = (Vec::new(), None);
            if let Some(RecipeText { parameters, json }) = text {
                segment = exif(Some(json), parameters);
                if segment.len() > MAX_EXIF_BYTES {
                    segment = exif(None, parameters);
                    left_out = Some("the recipe as JSON");
                }
                if segment.len() > MAX_EXIF_BYTES {
                    segment.clear();
                    left_out = Some("the recipe");
                }
            }
            jpeg(image, &segment, out).map_err(|error| match error {
                EncodingError::IoError(error) => error,
                other => io::Error::other(other),
            })?;
            Ok(left_out)
        }
        OutputFormat::WebP => {
            let mut encoder = WebPEncoder::new(out);
            if let Some(RecipeText { parameters, json }) = text {
                encoder.set_exif_metadata(exif(Some(json), parameters));
            }
            let encoded = encoder.encode(image.as_raw(), image.width(), image.height(), WebPColor::Rgb8);
            encoded.map_err(of_webp)?;
            Ok(None)
        }
    }
}

fn png(
    pixels: &[u8],
    (width, height): (u32, u32),
    color: ColorType,
    text: Option<RecipeText<'_>>,
    out: &mut dyn Write,
) -> Result<(), png::EncodingError> {
    let mut encoder = Encoder::new(out, width, height);
    encoder.set_color(color);
    encoder.set_depth(BitDepth::Eight);
    let texts = text.map(|text| [("parameters", text.parameters), ("calotype", text.json)]);
    for (keyword, text) in texts.into_iter().flatten() {
        // tEXt holds Latin-1 and every reader knows it; iTXt holds the rest.
        if text.is_ascii() {
            encoder.add_text_chunk(keyword.into(), text.into())?;
        } else {
            encoder.add_itxt_chunk(keyword.into(), text.into())?;
        }
    }
    let mut writer = encoder.write_header()?;
    writer.write_image_data(pixels)?;
    writer.finish()?;
    Ok(())
}

fn jpeg(image: &RgbImage, exif: &[u8], out: &mut dyn Write) -> Result<(), EncodingError> {
    let mut encoder = jpeg_encoder::Encoder::new(out, JPEG_QUALITY);
    if !exif.is_empty() {
        encoder.add_exif_metadata(exif)?;
    }
    let side = |px: u32| u16::try_from(px).map_err(|error| EncodingError::Write(error.to_string()));
    encoder.encode(image.as_raw(), side(image.width())?, side(image.height())?, JpegColor::Rgb)
}

/// EXIF 2.32, section 4.6: a TIFF structure, here big-endian as A1111 writes it (through piexif), with `ImageDescription`
/// in its first directory and `UserComment` in the EXIF one.
fn exif(description: Option<&str>, comment: &str) -> Vec<u8> {
    const IMAGE_DESCRIPTION: u16 = 0x010e;
    const EXIF_DIRECTORY: u16 = 0x8769;
    const USER_COMMENT: u16 = 0x9286;
    const ASCII: u16 = 2;
    const LONG: u16 = 4;
    const UNDEFINED: u16 = 7;
    /// Of a directory with so many entries: their number, 12 bytes each, and where the next directory is.
    const fn directory_bytes(entries: u32) -> u32 {
        2 + 12 * entries + 4
    }
    let mut comment: Vec<u8> =
        b"UNICODE\0".iter().copied().chain(comment.encode_utf16().flat_map(u16::to_be_bytes)).collect();
    // What is longer than four bytes lies outside of its entry.
    comment.resize(comment.len().max(5), 0);
    let description = description.map(|text| [text.as_bytes(), b"\0"].concat()).filter(|text| text.len() > 4);
    let first = 8;
    let second = first + directory_bytes(1 + u32::from(description.is_some()));
    let data = second + directory_bytes(1);
    let mut bytes = b"MM\0*".to_vec();
    let number = |bytes: &mut Vec<u8>, number: u32| bytes.extend(number.to_be_bytes());
    number(&mut bytes, first);
    let entry = |bytes: &mut Vec<u8>, tag: u16, kind: u16, count: usize, value: u32| {
        bytes.extend(tag.to_be_bytes());
        bytes.extend(kind.to_be_bytes());
        number(bytes, count as u32);
        number(bytes, value);
    };
    bytes.extend((1 + u16::from(description.is_some())).to_be_bytes());
    if let Some(description) = &description {
        // Entries are in the order of their tags.
        entry(&mut bytes, IMAGE_DESCRIPTION, ASCII, description.len(), data + comment.len() as u32);
    }
    entry(&mut bytes, EXIF_DIRECTORY, LONG, 1, second);
    bytes.extend([0; 4]);
    bytes.extend(1u16.to_be_bytes());
    entry(&mut bytes, USER_COMMENT, UNDEFINED, comment.len(), data);
    bytes.extend([0; 4]);
    bytes.extend(comment);
    bytes.extend(description.into_iter().flatten());
    bytes
}
