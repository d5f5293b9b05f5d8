//! Images that a run starts from: files of PNG, JPEG, WebP, GIF, BMP and TIFF become upright, opaque pixels of the size
//! that is wanted, and finished images become files. It knows nothing of models.
//!
//! A file's header is read first. It says how much memory decoding takes, which a plan counts before anything is decoded;
//! formats that allow it (all but JPEG, WebP and BMP) are decoded a few rows at a time, and scaled on the way.

mod canny;
mod data;
mod decode;
mod encode;
mod fitted;
mod header;
mod mask;
mod metadata;
mod placement;
mod scale;

use std::fs::{self, File};
use std::io::{self, Cursor, Read, Seek, SeekFrom};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use image::metadata::Orientation;
use image::{DynamicImage, GrayImage, ImageBuffer, Pixel, RgbImage, RgbaImage};
use sha2::{Digest, Sha256};

pub(crate) use self::canny::canny;
use self::data::Data;
use self::decode::{Eighths, Want};
pub use self::encode::{OutputFormat, RecipeText, encode, encode_with_alpha};
pub(crate) use self::fitted::{Fitted, fit};
use self::header::{Header, Problem};
pub(crate) use self::mask::{MaskEdit, Region};
pub use self::metadata::Texts;
pub use self::placement::{Extend, Resize};
pub(crate) use self::placement::{Placement, Rect};
use self::scale::{Canvas, Window};
use crate::{Error, ErrorKind};

/// The longest file that is read from a pipe, by way of a temporary file.
pub const MAX_PIPE_BYTES: u64 = 256 << 20;
/// The longest side of an image that is decoded.
pub const MAX_SIDE_PX: usize = 65_535;
/// The most pixels of an image that is decoded, as many as 16384x16384.
pub const MAX_PIXELS: usize = 1 << 28;

/// The file of an image, of which only the header has been read. Clones share the file.
#[derive(Clone, Debug)]
pub struct ImageFile {
    /// Which file, for messages.
    origin: Arc<str>,
    /// Absent for bytes.
    path: Option<Arc<Path>>,
    data: Arc<Mutex<Data>>,
    header: Arc<Header>,
    /// The hash, once it was asked for.
    sha256: Arc<OnceLock<String>>,
}

impl ImageFile {
    /// Opens a file and reads its header. Content decides the format, not the name.
    ///
    /// # Errors
    /// [`ErrorKind::Input`] for a file that cannot be read, is not an image of a format that is read, or is larger than
    /// the limits of this module.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let opened = Self::open_named(path).map_err(|error| error.in_file(path))?;
        Ok(Self { path: Some(path.into()), ..opened })
    }

    fn open_named(path: &Path) -> Result<Self, Error> {
        let origin = path.display().to_string();
        let refuse = |error: io::Error| Error::new(ErrorKind::Input, origin.clone()).source(error);
        let mut file = File::open(path).map_err(refuse)?;
        let kind = fs::metadata(path).map_err(refuse)?.file_type();
        if kind.is_dir() {
            // As the system says it.
            return Err(refuse(file.read(&mut [0]).err().unwrap_or(io::ErrorKind::IsADirectory.into())));
        }
        if !kind.is_file() {
            // A pipe is read once, and images twice.
            let mut copy = tempfile::tempfile().map_err(refuse)?;
            if io::copy(&mut file.take(MAX_PIPE_BYTES + 1), &mut copy).map_err(refuse)? > MAX_PIPE_BYTES {
                return Err(Error::new(
                    ErrorKind::Input,
                    format!("{origin}: expected an image of at most {MAX_PIPE_BYTES} bytes, got more"),
                ));
            }
            file = copy;
        }
        Self::read(origin, Data::File(file))
    }

    /// The image in these bytes; `origin` says in messages where they are from.
    ///
    /// # Errors
    /// As [`ImageFile::open`].
    pub fn from_bytes(origin: &str, bytes: Vec<u8>) -> Result<Self, Error> {
        Self::read(origin.into(), Data::Bytes(Cursor::new(bytes)))
    }

    fn read(origin: String, mut data: Data) -> Result<Self, Error> {
        let header = Header::read(&mut data).map_err(|problem| refusal(&origin, problem))?;
        let [width, height] = header.stored;
        if width == 0 || height == 0 {
            let message = format!("{origin}: expected an image with pixels, got {width}x{height}");
            return Err(Error::new(ErrorKind::Input, message));
        }
        if width > MAX_SIDE_PX || height > MAX_SIDE_PX || width * height > MAX_PIXELS {
            let message = format!(
                "{origin}: expected sides of at most {MAX_SIDE_PX} pixels and {MAX_PIXELS} pixels in all, got \
                 {width}x{height}"
            );
            return Err(Error::new(ErrorKind::Input, message));
        }
        let data = Arc::new(Mutex::new(data));
        Ok(Self { origin: origin.into(), path: None, data, header: Arc::new(header), sha256: Arc::default() })
    }

    /// Width and height of the upright image in pixels.
    pub fn dimensions(&self) -> (u32, u32) {
        let [width, height] = self.upright(self.header.stored);
        (width as u32, height as u32)
    }

    /// Which file, for messages.
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// Whether it may have pixels that are not opaque.
    pub fn has_alpha(&self) -> bool {
        self.header.has_alpha
    }

    /// Whether other frames follow the first, which alone is decoded.
    pub fn is_animated(&self) -> bool {
        self.header.is_animated
    }

    /// Whether its format is one that does not keep pixels as they were: JPEG.
    pub fn is_lossy(&self) -> bool {
        matches!(self.header.format, header::Format::Jpeg)
    }

    /// The SHA-256 of the file, as hexadecimal digits.
    ///
    /// # Errors
    /// [`ErrorKind::Input`] for a file that can no longer be read.
    pub fn sha256(&self) -> Result<String, Error> {
        if let Some(known) = self.sha256.get() {
            return Ok(known.clone());
        }
        let mut hash = Sha256::new();
        let mut data = self.lock();
        let read = data.seek(SeekFrom::Start(0)).and_then(|_| io::copy(&mut *data, &mut hash));
        read.map_err(|error| self.located(Error::new(ErrorKind::Input, &*self.origin).source(error)))?;
        Ok(self.sha256.get_or_init(|| format!("{:x}", hash.finalize())).clone())
    }

    /// The image at its own size, with 8 bits per channel, turned as its orientation (EXIF, TIFF) asks, and composited onto white
    /// where it is transparent. Colour profiles are not applied. Of an animation it is the first frame.
    ///
    /// # Errors
    /// [`ErrorKind::Input`] for a file that is damaged, cut off or of a kind that is not supported.
    pub fn decode(&self) -> Result<RgbImage, Error> {
        let (width, height) = self.dimensions();
        self.decode_to(width, height)
    }

    /// The image as [`ImageFile::decode`] gives it, with its alpha channel in place of white.
    ///
    /// # Errors
    /// As [`ImageFile::decode`].
    pub fn decode_with_alpha(&self) -> Result<RgbaImage, Error> {
        let (width, height) = self.dimensions();
        Ok(self.decode_as(self.whole(), width, height, Want::ColorAlpha, Eighths::ALL)?.0)
    }

    /// How many bytes [`ImageFile::decode_with_alpha`] takes at most, the result included.
    pub fn decode_with_alpha_bytes(&self) -> u64 {
        let (width, height) = self.dimensions();
        self.decode_bytes(self.whole(), width, height, Want::ColorAlpha, Eighths::ALL)
    }

    /// The image as [`ImageFile::decode`] gives it, scaled to a size in pixels, neither side of which is 0: stretched where
    /// the proportions differ.
    ///
    /// # Errors
    /// As [`ImageFile::decode`].
    pub fn decode_to(&self, width: u32, height: u32) -> Result<RgbImage, Error> {
        Ok(self.decode_as(self.whole(), width, height, Want::Color, Eighths::ALL)?.0)
    }

    /// How many bytes [`ImageFile::decode_to`] takes at most, the result included.
    pub fn decode_to_bytes(&self, width: u32, height: u32) -> u64 {
        self.decode_bytes(self.whole(), width, height, Want::Color, Eighths::ALL)
    }

    /// The image as a mask, at its own size, in shades of grey; where any pixel is transparent the colours are not used,
    /// and what is transparent is white, what is opaque black.
    ///
    /// # Errors
    /// As [`ImageFile::decode`].
    pub fn decode_mask(&self) -> Result<GrayImage, Error> {
        let (width, height) = self.dimensions();
        Ok(self.decode_as(self.whole(), width, height, Want::Mask, Eighths::ALL)?.0)
    }

    /// All of the upright image.
    fn whole(&self) -> [Window; 2] {
        self.upright(self.header.stored).map(Window::whole)
    }

    /// A part of the upright image at another size, and whether every pixel of the image is opaque.
    fn decode_as<P>(
        &self,
        windows: [Window; 2],
        width: u32,
        height: u32,
        want: Want,
        eighths: Eighths,
    ) -> Result<(ImageBuffer<P, Vec<u8>>, bool), Error>
    where
        P: Pixel<Subpixel = u8>,
        DynamicImage: From<ImageBuffer<P, Vec<u8>>> + Into<ImageBuffer<P, Vec<u8>>>,
    {
        let to = self.upright([width as usize, height as usize]);
        let windows = self.as_stored(windows);
        let decoded = decode::decode(&mut self.lock(), &self.header, windows, to, want, eighths);
        let decoded = decoded.map_err(|problem| self.located(refusal(&self.origin, problem)))?;
        let image = ImageBuffer::from_raw(to[0] as u32, to[1] as u32, decoded.pixels);
        let image: ImageBuffer<P, Vec<u8>> = image.expect("as many pixels as the size says");
        if self.header.orientation == Orientation::NoTransforms {
            return Ok((image, decoded.is_opaque));
        }
        let mut image = DynamicImage::from(image);
        image.apply_orientation(self.header.orientation);
        Ok((image.into(), decoded.is_opaque))
    }

    /// What [`ImageFile::decode_as`] takes at most, in bytes, the result included.
    fn decode_bytes(
        &self,
        windows: [Window; 2],
        width: u32,
        height: u32,
        want: Want,
        eighths: Eighths,
    ) -> u64 {
        let Header { stored, in_order, orientation, .. } = *self.header;
        let to = self.upright([width as usize, height as usize]);
        let channels = want.channels(&self.header);
        let part = eighths.part(stored, self.as_stored(windows));
        let canvas = Canvas::bytes(channels, part, to, in_order);
        // Two channels of a mask become one, and grey becomes three; what is turned is copied.
        let wanted = match want {
            Want::Color => 3,
            Want::ColorAlpha => 4,
            Want::Mask | Want::Transparency => 1,
        };
        let result = (to[0] * to[1] * wanted) as u64;
        let copies = u64::from(channels != wanted) + u64::from(orientation != Orientation::NoTransforms);
        eighths.decoder_bytes(&self.header) + canvas + copies * result
    }

    /// At how many eighths of its size it can be decoded for a part at a size.
    fn eighths(&self, windows: [Window; 2], width: u32, height: u32) -> Eighths {
        let to = self.upright([width as usize, height as usize]);
        Eighths::least(&self.header, self.as_stored(windows), to)
    }

    /// A size before the orientation is applied, or after.
    fn upright(&self, [width, height]: [usize; 2]) -> [usize; 2] {
        use Orientation::{Rotate90, Rotate90FlipH, Rotate270, Rotate270FlipH};
        match self.header.orientation {
            Rotate90 | Rotate270 | Rotate90FlipH | Rotate270FlipH => [height, width],
            _ => [width, height],
        }
    }

    /// An error about this file.
    fn located(&self, error: Error) -> Error {
        match &self.path {
            Some(path) => error.in_file(&**path),
            None => error,
        }
    }

    /// A part of the upright image as a part of the stored one.
    fn as_stored(&self, [x, y]: [Window; 2]) -> [Window; 2] {
        use Orientation::{
            FlipHorizontal, FlipVertical, NoTransforms, Rotate90, Rotate90FlipH, Rotate180, Rotate270,
            Rotate270FlipH,
        };
        let [width, height] = self.upright(self.header.stored);
        let (left, up) = (x.reversed(width), y.reversed(height));
        match self.header.orientation {
            NoTransforms => [x, y],
            FlipHorizontal => [left, y],
            FlipVertical => [x, up],
            Rotate180 => [left, up],
            Rotate90 => [y, left],
            Rotate90FlipH => [y, x],
            Rotate270 => [up, x],
            Rotate270FlipH => [up, left],
        }
    }

    fn lock(&self) -> MutexGuard<'_, Data> {
        // Every reader begins with a seek.
        self.data.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn refusal(origin: &str, problem: Problem) -> Error {
    let refuse = |problem: &str| Error::new(ErrorKind::Input, format!("{origin}: {problem}"));
    match problem {
        Problem::Other(other) => {
            let error =
                refuse(&format!("expected an image as PNG, JPEG, WebP, GIF, BMP or TIFF, got {other}"));
            match other {
                "an empty file" | "something else" => error,
                _ => error.help("save it as PNG or JPEG"),
            }
        }
        Problem::Damaged(source) => refuse("expected a complete image").source(source),
        Problem::Refused(problem) => refuse(&problem),
    }
}

/// An image to start from.
#[derive(Clone, Debug)]
pub enum Init {
    /// Pixels.
    Pixels(RgbImage),
    /// A file that is decoded when its size is known.
    File(ImageFile),
}

impl Init {
    /// Width and height in pixels.
    pub fn dimensions(&self) -> (u32, u32) {
        match self {
            Self::Pixels(image) => image.dimensions(),
            Self::File(file) => file.dimensions(),
        }
    }
}

impl From<RgbImage> for Init {
    fn from(image: RgbImage) -> Self {
        Self::Pixels(image)
    }
}

impl From<ImageFile> for Init {
    fn from(file: ImageFile) -> Self {
        Self::File(file)
    }
}

/// An inpainting mask: white areas are repainted.
#[derive(Clone, Debug)]
pub enum Mask {
    /// Shades of grey.
    Pixels(GrayImage),
    /// A file, see [`ImageFile::decode_mask`].
    File(ImageFile),
    /// The init image's own transparency: transparent areas are repainted.
    InitAlpha,
}

impl From<GrayImage> for Mask {
    fn from(mask: GrayImage) -> Self {
        Self::Pixels(mask)
    }
}

impl From<ImageFile> for Mask {
    fn from(file: ImageFile) -> Self {
        Self::File(file)
    }
}

#[cfg(test)]
mod tests {
    use image::{ImageEncoder, ImageFormat, Luma, LumaA, Rgb, Rgba, imageops};

    use super::*;

    /// Every pixel another.
    fn sample() -> RgbImage {
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

    fn decode(bytes: &[u8]) -> Result<RgbImage, Error> {
        ImageFile::from_bytes("x", bytes.to_vec())?.decode()
    }

    fn decode_mask(bytes: &[u8]) -> Result<GrayImage, Error> {
        ImageFile::from_bytes("x", bytes.to_vec())?.decode_mask()
    }

    fn stretched(file: ImageFile, width: u32, height: u32) -> Fitted<Rgb<u8>> {
        let place = Placement::new(file.dimensions(), (width, height), Resize::Stretch);
        Fitted::init(file.into(), place)
    }

    /// JPEG at few eighths of their size, for parts of any size and turned: as the whole ones but for a few levels, in what is
    /// counted for them; what cannot be reduced stays as it is.
    #[test]
    fn reduced_jpegs_are_like_whole_ones() {
        let mut state = 7u64;
        let mut below = |count: u32| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) as u32 % count
        };
        let mut reduced_ones = 0;
        for row in 0..24 {
            let (width, height) = (250 + below(500), 250 + below(500));
            let turns = f64::from(2 + below(5));
            let value = |x: u32, y: u32, phase: f64| {
                let wave = |at: u32, side: u32| (turns * f64::from(at) / f64::from(side) + phase).sin();
                (128.0 + 60.0 * wave(x, width) + 60.0 * wave(y, height)) as u8
            };
            let image = RgbImage::from_fn(width, height, |x, y| {
                Rgb([value(x, y, 0.0), value(x, y, 1.0), value(x, y, 2.0)])
            });
            let image = if row % 4 == 3 {
                DynamicImage::ImageLuma8(DynamicImage::from(image).to_luma8())
            } else {
                image.into()
            };
            let bytes = file(&image, ImageFormat::Jpeg);
            let to = (16 + below(200), 16 + below(200));
            let resize = [Resize::Stretch, Resize::Crop, Resize::Pad][below(3) as usize];
            let fitted = || {
                let file = ImageFile::from_bytes("x", bytes.clone()).unwrap();
                let place = Placement::new(file.dimensions(), to, resize);
                let fitted: Fitted<Rgb<u8>> = Fitted::init(file.into(), place);
                fitted
            };
            let (whole, reduced) = (fitted(), fitted());
            reduced.reduce();
            assert_eq!(whole.load().unwrap(), [""; 0]);
            let notes = fitted().bytes(Some(true));
            let is_less = notes.0 < fitted().bytes(Some(false)).0;
            let said = reduced.load().unwrap();
            assert_eq!(
                said.len(),
                usize::from(said.iter().any(|note| note.contains(" of its size, because ")))
            );
            assert!(!is_less || said.len() == 1, "{width}x{height} to {to:?}");
            reduced_ones += said.len();
            let (whole, reduced) = (whole.get().unwrap(), reduced.get().unwrap());
            let off = whole.iter().zip(reduced.iter()).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
            assert!(off <= 12, "{width}x{height} to {to:?}, {resize:?}: {off} levels off");
            assert!(said.len() == 1 || off == 0);
        }
        assert!(reduced_ones >= 8, "{reduced_ones}");
        // A small one, and one that is not made smaller.
        for (side, to) in [(200, 16), (512, 512)] {
            let image = RgbImage::from_pixel(side, side, Rgb([9, 99, 199]));
            let file = ImageFile::from_bytes("x", file(&image.into(), ImageFormat::Jpeg)).unwrap();
            let fitted = stretched(file, to, to);
            assert_eq!(fitted.bytes(Some(true)), fitted.bytes(Some(false)));
            fitted.reduce();
            assert_eq!(fitted.load().unwrap(), [""; 0]);
        }
    }

    #[track_caller]
    fn refuses(bytes: &[u8], message: &str) {
        for error in [decode(bytes).map(drop), decode_mask(bytes).map(drop)] {
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

    /// A PNG's signature and header, with nothing behind it.
    fn png_head(width: u32, height: u32, depth_and_colour: [u8; 2]) -> Vec<u8> {
        let header = [&width.to_be_bytes(), &height.to_be_bytes(), &depth_and_colour[..], &[0; 3]].concat();
        [b"\x89PNG\r\n\x1a\n", &chunk(b"IHDR", &header)[..]].concat()
    }

    /// An orientation as EXIF, big-endian, with one entry.
    fn exif(orientation: u8) -> Vec<u8> {
        let head = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0";
        [&head[..], &[orientation, 0, 0, 0, 0, 0, 0]].concat()
    }

    /// A JPEG with a segment behind its start.
    fn jpeg_with(marker: u8, data: &[u8]) -> Vec<u8> {
        let segment = [&[0xff, marker], &(data.len() as u16 + 2).to_be_bytes()[..], data].concat();
        [&jpeg()[..2], &segment, &jpeg()[2..]].concat()
    }

    #[test]
    fn pixels_are_what_was_written() {
        assert_eq!(decode(&png(sample())).unwrap(), sample());
        let grey = GrayImage::from_fn(4, 4, |x, y| Luma([(16 * x + y) as u8]));
        assert_eq!(decode_mask(&png(grey.clone())).unwrap(), grey);
        let colour = decode(&png(grey.clone())).unwrap();
        assert!(colour.pixels().zip(grey.pixels()).all(|(colour, grey)| colour.0 == [grey.0[0]; 3]));
        let deep = ImageBuffer::<Rgb<u16>, _>::from_fn(5, 3, |x, y| {
            Rgb(sample().get_pixel(x, y).0.map(|b| u16::from(b) * 257))
        });
        assert_eq!(decode(&png(DynamicImage::ImageRgb16(deep))).unwrap(), sample());
        let decoded = decode(&jpeg()).unwrap();
        assert_eq!(decoded.dimensions(), (16, 8));
        assert!(decoded.get_pixel(2, 2).0[0] > 240 && decoded.get_pixel(13, 2).0[0] < 15);
    }

    /// Every format that is written without loss, in every kind of pixels, against the pixels; and against the `image`
    /// crate for what it decodes otherwise.
    #[test]
    fn formats_as_another_reader_sees_them() {
        let image = RgbImage::from_fn(37, 21, |x, y| Rgb([(7 * x) as u8, (11 * y) as u8, (x * y) as u8]));
        let image = DynamicImage::from(image);
        let alpha = DynamicImage::from(image::RgbaImage::from_fn(37, 21, |x, y| {
            Rgba([(7 * x) as u8, (11 * y) as u8, 90, (13 * x) as u8])
        }));
        let kinds = [
            image.clone(),
            image.grayscale(),
            image.to_rgb16().into(),
            image.to_luma16().into(),
            alpha.clone(),
            alpha.to_luma_alpha8().into(),
            alpha.to_rgba16().into(),
        ];
        let mut compared = 0;
        for format in [
            ImageFormat::Png,
            ImageFormat::WebP,
            ImageFormat::Bmp,
            ImageFormat::Tiff,
            ImageFormat::Gif,
            ImageFormat::Jpeg,
        ] {
            for kind in &kinds {
                let mut bytes = Cursor::new(Vec::new());
                // Not every format has every kind.
                if kind.write_to(&mut bytes, format).is_err() {
                    continue;
                }
                let bytes = bytes.into_inner();
                let expected = image::load_from_memory_with_format(&bytes, format).unwrap();
                let got =
                    decode(&bytes).unwrap_or_else(|error| panic!("{format:?}, {:?}: {error}", kind.color()));
                let rgba = expected.to_rgba8();
                let has_alpha = rgba.pixels().any(|pixel| pixel.0[3] < 255);
                for (got, expected) in got.pixels().zip(rgba.pixels()) {
                    assert!(off_white(*got, *expected) <= 1.0, "{format:?}, {:?}: {got:?}", kind.color());
                }
                let mask = decode_mask(&bytes).unwrap();
                let luma = expected.to_luma8();
                for ((mask, luma), rgba) in mask.pixels().zip(luma.pixels()).zip(rgba.pixels()) {
                    let expected = if has_alpha { 255 - rgba.0[3] } else { luma.0[0] };
                    let is_near = mask.0[0].abs_diff(expected) <= 1;
                    // Nearly black and nearly white are black and white in a JPEG mask.
                    let is_restored = format == ImageFormat::Jpeg && matches!(expected, ..17 | 239..);
                    assert!(is_near || is_restored, "{format:?}, {:?}", kind.color());
                }
                compared += 1;
            }
        }
        assert!(compared >= 20, "{compared} kinds of files");
    }

    /// The largest distance of a pixel from another one that is composited onto white.
    fn off_white(got: Rgb<u8>, expected: Rgba<u8>) -> f64 {
        let [rgb @ .., alpha] = expected.0.map(f64::from);
        let on_white = rgb.map(|value| value * alpha / 255.0 + 255.0 - alpha);
        got.0.iter().zip(on_white).map(|(a, b)| (f64::from(*a) - b).abs()).fold(0.0, f64::max)
    }

    /// Interlaced, palettes with and without transparency, 1, 2 and 4 bits: what the `png` crate expands whole.
    #[test]
    fn kinds_of_png() {
        use png::{BitDepth, ColorType};
        let mut state = 1u32;
        let mut random = move || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        };
        for (color, depth) in [
            (ColorType::Grayscale, BitDepth::One),
            (ColorType::Grayscale, BitDepth::Two),
            (ColorType::Grayscale, BitDepth::Four),
            (ColorType::Indexed, BitDepth::One),
            (ColorType::Indexed, BitDepth::Four),
            (ColorType::Indexed, BitDepth::Eight),
            (ColorType::Rgba, BitDepth::Sixteen),
        ] {
            for (width, height) in [(1, 1), (3, 5), (17, 9), (64, 33)] {
                let mut bytes = Vec::new();
                let mut encoder = png::Encoder::new(&mut bytes, width, height);
                encoder.set_color(color);
                encoder.set_depth(depth);
                if color == ColorType::Indexed {
                    encoder.set_palette((0..768).map(|_| random()).collect::<Vec<u8>>());
                    encoder.set_trns(vec![0, 100]);
                }
                let row = (color.samples() * width as usize * depth as usize).div_ceil(8);
                let pixels: Vec<u8> = (0..row * height as usize).map(|_| random()).collect();
                let mut writer = encoder.write_header().unwrap();
                writer.write_image_data(&pixels).unwrap();
                writer.finish().unwrap();
                let expected = image::load_from_memory(&bytes).unwrap().to_rgba8();
                let got = decode(&bytes).unwrap();
                for (got, expected) in got.pixels().zip(expected.pixels()) {
                    assert!(off_white(*got, *expected) <= 1.0, "{color:?}, {depth:?}, {width}x{height}");
                }
            }
        }
    }

    #[test]
    fn transparent_images_lie_on_white() {
        let image = image::RgbaImage::from_fn(3, 1, |x, _| Rgba([10, 20, 30, [0, 51, 255][x as usize]]));
        let pixels: Vec<_> = decode(&png(image)).unwrap().pixels().map(|pixel| pixel.0).collect();
        assert_eq!(pixels, [[255; 3], [206, 208, 210], [10, 20, 30]]);
    }

    /// As in OpenAI's edits, ComfyUI and InvokeAI: what is transparent is repainted.
    #[test]
    fn transparent_areas_of_masks_are_white() {
        let mask = |alpha| png(DynamicImage::from(ImageBuffer::from_pixel(2, 2, LumaA([77u8, alpha]))));
        assert_eq!(decode_mask(&mask(255)).unwrap(), GrayImage::from_pixel(2, 2, Luma([77])));
        assert_eq!(decode_mask(&mask(0)).unwrap(), GrayImage::from_pixel(2, 2, Luma([255])));
        assert_eq!(decode_mask(&mask(155)).unwrap(), GrayImage::from_pixel(2, 2, Luma([100])));
    }

    #[test]
    fn cameras_that_were_held_upright() {
        let upright = decode(&jpeg()).unwrap();
        let exif = |orientation| [b"Exif\0\0", &exif(orientation)[..]].concat();
        let turned = jpeg_with(0xe1, &exif(6));
        assert_eq!(decode(&turned).unwrap(), imageops::rotate90(&upright));
        assert_eq!(ImageFile::from_bytes("", turned).unwrap().dimensions(), (8, 16));

        let mut turned = Vec::new();
        let mut encoder = image::codecs::png::PngEncoder::new(&mut turned);
        encoder.set_exif_metadata(self::exif(3)).unwrap();
        encoder.write_image(sample().as_raw(), 5, 3, image::ExtendedColorType::Rgb8).unwrap();
        assert_eq!(decode(&turned).unwrap(), imageops::rotate180(&sample()));

        // Turned after it was scaled.
        for (orientation, turn) in
            [(6, imageops::rotate90 as fn(&RgbImage) -> RgbImage), (8, imageops::rotate270)]
        {
            let file = ImageFile::from_bytes("", jpeg_with(0xe1, &exif(orientation))).unwrap();
            let fitted = stretched(file, 4, 8);
            fitted.load().unwrap();
            let scaled = fit(upright.clone(), 8, 4);
            assert_eq!(fitted.get().unwrap(), &turn(&scaled));
        }
    }

    /// A part of an image is the same however it is stored.
    #[test]
    fn parts_are_of_the_upright_image() {
        let plain =
            png(RgbImage::from_fn(17, 11, |x, y| Rgb([(15 * x) as u8, (20 * y) as u8, (x * y) as u8])));
        let head = 8 + 25;
        for orientation in 1..=8 {
            let exif = chunk(b"eXIf", &exif(orientation));
            let file = ImageFile::from_bytes("", [&plain[..head], &exif, &plain[head..]].concat()).unwrap();
            let whole = file.decode().unwrap();
            let (width, height) = (whole.width() - 4, whole.height() - 3);
            let window = |start: u32, length: u32| Window { start: start.into(), length: length.into() };
            let windows = [window(1, width), window(2, height)];
            let (part, _) =
                file.decode_as::<Rgb<u8>>(windows, width, height, Want::Color, Eighths::ALL).unwrap();
            assert_eq!(part, imageops::crop_imm(&whole, 1, 2, width, height).to_image(), "{orientation}");
        }
    }

    #[test]
    fn no_image_at_all() {
        let expected = "expected an image as PNG, JPEG, WebP, GIF, BMP or TIFF, got";
        for (bytes, what) in [
            (&b""[..], "an empty file"),
            (b"a text\n", "something else"),
            (b"\0\0\0\x18ftypheic\0\0\0\0", "HEIC"),
            (b"\0\0\0\x18ftypmif1\0\0\0\0", "HEIC"),
            (b"\0\0\0\x1cftypavif\0\0\0\0", "AVIF"),
            (b"\0\0\0\x20ftypisom", "a video"),
            (b"\xff\x0a\xfa\x7f", "JPEG XL"),
            (b"<svg xmlns=", "SVG"),
            (b"\n<?xml version=", "SVG"),
            (b"<!DOCTYPE html>", "a web page"),
            (b"8BPS\0\x01", "a Photoshop document"),
            (b"%PDF-1.7", "PDF"),
            (b"P6\n1 1\n255\n", "a Netpbm image"),
        ] {
            refuses(bytes, &format!("{expected} {what}"));
        }
    }

    /// The image's data is missed wherever it ends; what follows it is not.
    #[test]
    fn truncated_anywhere() {
        let image = DynamicImage::from(sample());
        // A PNG lacks nothing but its empty last chunk from there on, and a GIF but its last byte.
        for (format, end) in [
            (ImageFormat::Png, 12),
            (ImageFormat::Jpeg, 0),
            (ImageFormat::Gif, 2),
            (ImageFormat::Bmp, 0),
            (ImageFormat::Tiff, 2),
        ] {
            let whole = file(&image, format);
            assert!(decode(&whole).is_ok(), "{format:?}");
            for len in 0..whole.len() - end {
                let Err(error) = decode(&whole[..len]) else {
                    panic!("{format:?}, {len} of {}", whole.len())
                };
                assert_eq!(error.kind(), ErrorKind::Input, "{format:?}, {len}");
            }
        }
    }

    /// A marker in the middle of coded data ends it, also one of a segment that is not read: the same pixels as the `image`
    /// crate's, which is given the file as it is, or an error.
    #[test]
    fn markers_within_coded_data() {
        let mut state = 7u32;
        let mut random = move |below: usize| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as usize % below
        };
        let noise = RgbImage::from_fn(48, 40, |x, y| Rgb([(x * 5) as u8, (x * y) as u8, random(256) as u8]));
        let whole = file(&noise.into(), ImageFormat::Jpeg);
        let scan = whole.windows(2).position(|two| two == [0xff, 0xda]).unwrap() + 14;
        let mut compared = 0;
        for marker in [0xe0, 0xe1, 0xe2, 0xe5, 0xed, 0xee, 0xef, 0xfe, 0xd3, 0xdb, 0xd9, 0xc4] {
            for _ in 0..60 {
                let mut bytes = whole.clone();
                let at = scan + random(whole.len() - scan - 40);
                bytes[at..at + 4].copy_from_slice(&[0xff, marker, 0, 2 + random(16) as u8]);
                let Ok(got) = decode(&bytes) else { continue };
                let Ok(expected) = image::load_from_memory_with_format(&bytes, ImageFormat::Jpeg) else {
                    panic!("marker {marker:#x} at {at}: read, and by no other reader")
                };
                let off = got.iter().zip(expected.to_rgb8().iter()).map(|(a, b)| a.abs_diff(*b)).max();
                assert!(off <= Some(1), "marker {marker:#x} at {at}: {off:?} levels off");
                compared += 1;
            }
        }
        assert!(compared > 100, "{compared} files were compared");
    }

    /// What is around a white area is black after compression, too, and grey stays grey.
    #[test]
    fn jpeg_masks_have_black_and_white() {
        let grey = |x: u32, y: u32| match (x, y) {
            (20..40, 24..44) => 255,
            (..64, ..) => 0,
            _ => 100,
        };
        for is_grey in [false, true] {
            let mask = GrayImage::from_fn(80, 64, |x, y| image::Luma([grey(x, y)]));
            let mask = DynamicImage::from(mask);
            let mask = if is_grey { mask } else { mask.to_rgb8().into() };
            let mut bytes = Vec::new();
            mask.write_with_encoder(image::codecs::jpeg::JpegEncoder::new_with_quality(&mut bytes, 50))
                .unwrap();
            let compressed = image::load_from_memory(&bytes).unwrap().to_luma8();
            assert!(compressed.iter().any(|value| (1..16).contains(value)), "nothing rings");
            for (x, y, got) in decode_mask(&bytes).unwrap().enumerate_pixels() {
                match compressed.get_pixel(x, y).0[0] {
                    ..=14 => assert_eq!(got.0, [0], "{x}, {y}"),
                    241.. => assert_eq!(got.0, [255], "{x}, {y}"),
                    value @ 17..=238 => assert!(got.0[0].abs_diff(value) <= 1, "{x}, {y}"),
                    _ => {}
                }
            }
        }
    }

    #[test]
    fn a_jpeg_has_one_frame() {
        let whole = file(&sample().into(), ImageFormat::Jpeg);
        let at = whole.windows(2).position(|two| two == [0xff, 0xc0]).unwrap();
        let end = at + 2 + usize::from(u16::from_be_bytes([whole[at + 2], whole[at + 3]]));
        let message = |bytes: &[u8]| decode(bytes).unwrap_err().to_string();
        for marker in (0xc0..=0xcf).filter(|marker| ![0xc4, 0xc8, 0xcc].contains(marker)) {
            let mut other = whole[at..end].to_vec();
            other[1] = marker;
            let expected = if marker > 0xc2 { format!("marker {marker:#04x}") } else { "got two".into() };
            for place in [at, end] {
                let two = [&whole[..place], &other, &whole[place..]].concat();
                assert!(message(&two).contains(&expected), "{}", message(&two));
            }
            if marker > 0xc2 {
                let alone = [&whole[..at], &other, &whole[end..]].concat();
                assert!(message(&alone).contains(&expected), "{}", message(&alone));
            }
        }
    }

    #[test]
    fn damaged_anywhere() {
        let image = DynamicImage::from(sample());
        for format in [
            ImageFormat::Png,
            ImageFormat::Jpeg,
            ImageFormat::Gif,
            ImageFormat::Bmp,
            ImageFormat::Tiff,
            ImageFormat::WebP,
        ] {
            let whole = file(&image, format);
            for at in 0..whole.len() {
                for bits in [0x01, 0x80, 0xff] {
                    let mut damaged = whole.clone();
                    damaged[at] ^= bits;
                    let Ok(file) = ImageFile::from_bytes("", damaged) else { continue };
                    // As a plan would refuse it.
                    if file.decode_to_bytes(5, 3) > 64 << 20 {
                        continue;
                    }
                    // Some damage is an image of other pixels; none is more than an error.
                    if let Err(error) = stretched(file, 5, 3).load() {
                        assert_eq!(error.kind(), ErrorKind::Input, "{format:?}, {at}");
                    }
                }
            }
        }
    }

    #[test]
    fn of_animations_the_first_frame() {
        let mut bytes = Vec::new();
        let mut encoder = png::Encoder::new(&mut bytes, 5, 3);
        encoder.set_color(png::ColorType::Rgb);
        encoder.set_animated(2, 0).unwrap();
        let mut writer = encoder.write_header().unwrap();
        writer.write_image_data(sample().as_raw()).unwrap();
        writer.write_image_data(&[0; 45]).unwrap();
        writer.finish().unwrap();
        let mut gif = Vec::new();
        let mut encoder = gif::Encoder::new(&mut gif, 5, 3, &[]).unwrap();
        for image in [sample().into_raw(), vec![0; 45]] {
            encoder.write_frame(&gif::Frame::from_rgb(5, 3, &image)).unwrap();
        }
        drop(encoder);
        for bytes in [bytes, gif] {
            let file = ImageFile::from_bytes("x", bytes).unwrap();
            assert!(file.is_animated());
            let fitted = stretched(file, 5, 3);
            assert_eq!(fitted.load().unwrap(), ["x: has several frames: only the first is used"]);
            assert_eq!(fitted.get().unwrap(), &sample());
            assert!(fitted.load().unwrap().is_empty(), "said once");
        }
        assert!(!ImageFile::from_bytes("x", png(sample())).unwrap().is_animated());
    }

    #[test]
    fn interlaced_gifs_and_frames_smaller_than_the_screen() {
        let colors: Vec<u8> = (0..16u8).flat_map(|index| [index * 16, 255 - index * 16, 3]).collect();
        for interlaced in [false, true] {
            let mut bytes = Vec::new();
            let mut encoder = gif::Encoder::new(&mut bytes, 9, 21, &colors).unwrap();
            let frame = gif::Frame {
                left: 2,
                top: 3,
                width: 4,
                height: 16,
                interlaced,
                buffer: (0..64u8).map(|at| at / 4).collect(),
                ..gif::Frame::default()
            };
            encoder.write_frame(&frame).unwrap();
            drop(encoder);
            let image = decode(&bytes).unwrap();
            for (x, y, pixel) in image.enumerate_pixels() {
                if !(2..6).contains(&x) || !(3..19).contains(&y) {
                    assert_eq!(pixel.0, [255; 3], "outside of the frame");
                    continue;
                }
                // Rows of an interlaced frame come in another order, and this encoder writes them as they come.
                let passes = [(0, 8), (4, 8), (2, 4), (1, 2)];
                let order: Vec<u32> = if interlaced {
                    passes.iter().flat_map(|&(first, step)| (first..16).step_by(step)).collect()
                } else {
                    (0..16).collect()
                };
                let index = order.iter().position(|&row| row == y - 3).unwrap() as u8;
                assert_eq!(pixel.0, [index * 16, 255 - index * 16, 3], "row {y}, {interlaced}");
            }
        }
    }

    /// Sizes that no file of a few bytes can have: refused by their header, or for what is missing behind it, without
    /// memory for the pixels.
    #[test]
    fn sizes_without_pixels() {
        const RGBA16: [u8; 2] = [16, 6];
        const GREY1: [u8; 2] = [1, 0];
        for (width, height) in
            [(u32::MAX >> 1, 1), (65_536, 1), (1, 65_536), (60_000, 60_000), (16_385, 16_384)]
        {
            let whole = [&png_head(width, height, RGBA16)[..], &chunk(b"IDAT", &[0; 64])].concat();
            refuses(&whole, "expected sides of at most 65535 pixels and 268435456 pixels in all, got ");
        }
        for (width, height) in [(0, 1), (1, 0), (0, 0)] {
            let whole = [&png_head(width, height, RGBA16)[..], &chunk(b"IDAT", &[0; 64])].concat();
            refuses(&whole, "expected an image with pixels, got");
        }
        let nothing =
            [&png_head(16_384, 16_384, GREY1)[..], &chunk(b"IDAT", &[]), &chunk(b"IEND", b"")].concat();
        let file = ImageFile::from_bytes("", nothing).unwrap();
        assert!(file.decode_to_bytes(128, 128) < 8 << 20);
        let error = stretched(file, 128, 128).load().expect_err("no pixels");
        assert_eq!(error.kind(), ErrorKind::Input);
        refuses(&png_head(64, 64, GREY1), "expected a complete image");
        let mut jpeg = jpeg();
        let frame = jpeg.windows(4).position(|bytes| bytes == [0xff, 0xc0, 0, 17]).unwrap();
        jpeg[frame + 5..][..4].copy_from_slice(&[0xff; 4]);
        refuses(&jpeg, "expected sides of at most");
        jpeg[frame + 5..][..4].copy_from_slice(&[0; 4]);
        refuses(&jpeg, "expected an image with pixels, got 0x0");
    }

    /// Errors have the path of the file, also those that are found when its pixels are decoded.
    #[test]
    fn errors_have_their_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("init.png");
        let whole = png(sample());
        let written = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            ImageFile::open(&path)
        };
        let of = |error: Error| error.file().map(Path::to_owned);
        assert_eq!(written(&whole[..20]).err().and_then(of), Some(path.clone()), "its header is read");
        let cut = || written(&whole[..whole.len() - 30]).expect("a header");
        assert_eq!(cut().decode().err().and_then(of), Some(path.clone()));
        assert_eq!(cut().decode_mask().err().and_then(of), Some(path.clone()));
        assert_eq!(stretched(cut(), 8, 8).load().err().and_then(of), Some(path.clone()));
        let transparency = Fitted::transparency(
            written(&whole).unwrap(),
            stretched(cut(), 8, 8).place(),
            MaskEdit::default(),
        );
        assert_eq!(transparency.get().err().and_then(of), Some(path.clone()), "it has not been loaded");
        assert_eq!(transparency.load().err().and_then(of), Some(path), "it is opaque");
        let bytes = ImageFile::from_bytes("reply", whole[..whole.len() - 30].to_vec()).unwrap();
        assert_eq!(bytes.decode().err().and_then(of), None);
    }

    /// Text, profiles and EXIF, however long and however compressed, lie between what is read.
    #[test]
    fn chunks_that_are_skipped() {
        let whole = png(sample());
        let junk = vec![b'x'; 3 << 20];
        let long = [&b"Comment\0"[..], &junk].concat();
        let body: Vec<u8> = [b"tEXt", b"zTXt", b"iTXt", b"iCCP", b"eXIf", b"sPLT", b"teSt"]
            .iter()
            .flat_map(|kind| chunk(kind, &long))
            .collect();
        // Behind the header of 8 + 25 bytes.
        let bytes = [&whole[..33], &body, &whole[33..]].concat();
        let file = ImageFile::from_bytes("", bytes).unwrap();
        let read: u64 = file.header.spans.iter().map(|span| span.end - span.start).sum();
        assert!(read <= whole.len() as u64, "{read} bytes are read of {}", whole.len());
        assert_eq!(file.decode().unwrap(), sample());

        let upright = decode(&jpeg()).unwrap();
        for marker in [0xe1, 0xe2, 0xed, 0xfe] {
            let bytes = jpeg_with(marker, &[b'x'; 65_000]);
            let file = ImageFile::from_bytes("", bytes).unwrap();
            let read: u64 = file.header.spans.iter().map(|span| span.end - span.start).sum();
            assert!(read <= jpeg().len() as u64, "{read} bytes are read with marker {marker:x}");
            assert_eq!(file.decode().unwrap(), upright);
        }
    }

    #[test]
    fn more_parts_than_any_program_writes() {
        let whole = png(sample());
        let body: Vec<u8> =
            (0..2000).flat_map(|_| [chunk(b"tRNS", &[0; 6]), chunk(b"teSt", b"x")].concat()).collect();
        refuses(&[&whole[..33], &body, &whole[33..]].concat(), "expected at most 1024 parts, got more");
    }

    #[test]
    fn endless_file() {
        let path = Path::new("/dev/zero");
        if path.exists() {
            assert_eq!(ImageFile::open(path).expect_err("endless").kind(), ErrorKind::Input);
        }
        assert_eq!(ImageFile::open(Path::new("/no/such/file")).expect_err("none").kind(), ErrorKind::Input);
        assert_eq!(ImageFile::open(Path::new("/")).expect_err("a folder").kind(), ErrorKind::Input);
    }

    #[test]
    fn fit_resizes_only_what_has_another_size() {
        assert_eq!(fit(sample(), 5, 3), sample());
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
