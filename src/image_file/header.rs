//! What an image's file says before its pixels: format, size, orientation, and how much memory its decoder takes. Nothing
//! is decoded here, and nothing is in memory but a few bytes at a time. It knows nothing of what the image is for.

use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::ops::Range;

use image::ImageDecoder;
use image::codecs::bmp::BmpDecoder;
use image::metadata::Orientation;
use image_webp::WebPDecoder;
use tiff::tags::Tag;

use super::data::{Data, Patched, Spans};

/// The longest EXIF data that is read for an orientation; JPEG cannot hold more in one place.
const MAX_EXIF_BYTES: u64 = 1 << 16;
/// The most parts of a file that are kept between those that are skipped.
const MAX_SPANS: usize = 1024;
/// The most parts of a file that are looked at.
const MAX_PARTS: usize = 100_000;
/// The most scans of a JPEG, each of which takes as long as all of a simple one.
const MAX_SCANS: usize = 500;
/// The most bytes of a TIFF's strip table.
const MAX_TABLE_BYTES: usize = 4 << 20;
/// The most entries of a TIFF's directory that are looked at.
const MAX_TIFF_ENTRIES: u64 = 4096;
/// What every decoder takes: its buffers, code tables, and what the heap loses.
const DECODER_BYTES: u64 = 3 << 20;

/// An image's format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    Png,
    Jpeg,
    WebP,
    Gif,
    Bmp,
    Tiff,
}

/// What a file says of its image.
#[derive(Clone, Debug)]
pub(super) struct Header {
    pub(super) format: Format,
    /// Width and height as they are stored, before the orientation; neither is 0.
    pub(super) stored: [usize; 2],
    pub(super) orientation: Orientation,
    /// Whether there may be pixels that are not opaque.
    pub(super) has_alpha: bool,
    /// Whether all pixels are opaque shades of grey.
    pub(super) is_grey: bool,
    /// Whether other frames follow the first, which is the one that is decoded.
    pub(super) is_animated: bool,
    /// Whether rows come from the top down.
    pub(super) in_order: bool,
    /// The parts of the file that the decoder reads; text, profiles and previews lie between them.
    pub(super) spans: Vec<Range<u64>>,
    /// Where a TIFF of palette indices says that, and what says grey instead: its decoder knows no palettes.
    pub(super) indexed_at: Option<(u64, [u8; 2])>,
    /// What the decoder takes beside the image at its new size.
    pub(super) decoder_bytes: u64,
    /// Of a JPEG that can be decoded at an eighth, a quarter or half of its size: what the decoder takes beside that image,
    /// twice.
    pub(super) reduced_bytes: Option<u64>,
}

/// What is wrong with a header, for a message.
pub(super) enum Problem {
    /// Not an image, or of a format that is not read: what it is instead.
    Other(&'static str),
    /// The file could not be read, or is damaged.
    Damaged(Box<dyn std::error::Error + Send + Sync>),
    /// It is what it says, which is not supported.
    Refused(String),
}

impl<E: std::error::Error + Send + Sync + 'static> From<E> for Problem {
    fn from(error: E) -> Self {
        Self::Damaged(Box::new(error))
    }
}

impl Header {
    /// Reads the header of a file, whose position it changes.
    pub(super) fn read(data: &mut Data) -> Result<Self, Problem> {
        let length = data.seek(SeekFrom::End(0))?;
        let mut start = [0; 64];
        data.seek(SeekFrom::Start(0))?;
        let read = read_up_to(data, &mut start)?;
        data.seek(SeekFrom::Start(0))?;
        let format = format(&start[..read])?;
        let mut file = BufReader::new(data);
        match format {
            Format::Png => png(&mut file, length),
            Format::Jpeg => jpeg(&mut file, length),
            Format::WebP => webp(file, length),
            Format::Gif => gif(&mut file),
            Format::Bmp => bmp(file, length),
            Format::Tiff => tiff(file, length),
        }
    }
}

/// The format that the first bytes of a file show.
fn format(start: &[u8]) -> Result<Format, Problem> {
    let at = |place: usize, magic: &[u8]| start.get(place..).is_some_and(|rest| rest.starts_with(magic));
    let is = |magic: &[u8]| at(0, magic);
    let text = start.trim_ascii_start();
    let other = match () {
        () if is(b"\x89PNG\r\n\x1a\n") => return Ok(Format::Png),
        () if is(b"\xff\xd8\xff") => return Ok(Format::Jpeg),
        () if is(b"RIFF") && at(8, b"WEBP") => return Ok(Format::WebP),
        () if is(b"GIF87a") || is(b"GIF89a") => return Ok(Format::Gif),
        () if is(b"BM") => return Ok(Format::Bmp),
        () if is(b"II*\0") || is(b"MM\0*") || is(b"II+\0") || is(b"MM\0+") => return Ok(Format::Tiff),
        () if start.is_empty() => "an empty file",
        () if at(4, b"ftypavif") || at(4, b"ftypavis") => "AVIF",
        () if [&b"ftyphei"[..], b"ftyphev", b"ftypmif1", b"ftypmsf1"].iter().any(|magic| at(4, magic)) => {
            "HEIC"
        }
        () if at(4, b"ftyp") => "a video",
        () if is(b"\xff\x0a") || is(b"\0\0\0\x0cJXL ") => "JPEG XL",
        () if is(b"\0\0\0\x0cjP  ") || is(b"\xff\x4f\xff\x51") => "JPEG 2000",
        () if is(b"8BPS") => "a Photoshop document",
        () if is(b"gimp xcf") => "a GIMP document",
        () if is(b"%PDF") => "PDF",
        () if is(b"\0\0\x01\0") || is(b"\0\0\x02\0") => "an icon",
        () if is(b"v/1\x01") => "OpenEXR",
        () if is(b"#?RADIANCE") || is(b"#?RGBE") => "Radiance HDR",
        () if is(b"qoif") => "QOI",
        () if is(b"DDS ") => "DDS",
        () if start.first() == Some(&b'P')
            && start.get(1).is_some_and(|kind| (b'1'..=b'7').contains(kind)) =>
        {
            "a Netpbm image"
        }
        () if text.starts_with(b"<svg") || text.starts_with(b"<?xml") => "SVG",
        () if text.starts_with(b"<") => "a web page",
        () => "something else",
    };
    Err(Problem::Other(other))
}

/// The orientation in EXIF data, a TIFF structure; as stored where there is none.
fn orientation(exif: &[u8]) -> Orientation {
    Orientation::from_exif_chunk(exif).unwrap_or(Orientation::NoTransforms)
}

fn area(stored: [usize; 2]) -> u64 {
    stored[0] as u64 * stored[1] as u64
}

fn side(px: u32) -> usize {
    px as usize
}

/// PNG (third edition), section 5: chunks of a length, a kind, data and a checksum.
fn png(file: &mut (impl BufRead + Seek), length: u64) -> Result<Header, Problem> {
    let mut spans = Spans::kept(0..8);
    let mut stored = [0; 2];
    let (mut bits, mut color, mut has_alpha, mut interlaced) = (0, 0, false, false);
    let (mut is_animated, mut turned) = (false, Orientation::NoTransforms);
    let mut at = 8;
    file.seek(SeekFrom::Start(at))?;
    loop {
        let head: [u8; 8] = bytes(file)?;
        let data_bytes = u64::from(u32::from_be_bytes([head[0], head[1], head[2], head[3]]));
        let end = at + 12 + data_bytes;
        match &head[4..] {
            b"IDAT" => {
                spans.keep(at..length);
                break;
            }
            b"IHDR" if data_bytes == 13 => {
                let header: [u8; 13] = bytes(file)?;
                let number = |at: usize| {
                    u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
                };
                stored = [side(number(0)), side(number(4))];
                color = header[9];
                // Grey, colour, palette, grey and colour with alpha.
                let samples = match color {
                    0 | 3 => 1,
                    2 => 3,
                    4 => 2,
                    _ => 4,
                };
                bits = samples * u64::from(header[8]);
                has_alpha |= color & 4 != 0;
                interlaced = header[12] != 0;
                spans.keep(at..end);
            }
            b"eXIf" if data_bytes <= MAX_EXIF_BYTES => turned = orientation(&some_bytes(file, data_bytes)?),
            b"acTL" => {
                let frames: [u8; 4] = bytes(file)?;
                is_animated = u32::from_be_bytes(frames) > 1;
            }
            b"tRNS" => {
                has_alpha = true;
                spans.keep(at..end);
            }
            // Critical ones: the decoder knows them, or says that it does not.
            kind if kind[0] & 0x20 == 0 => spans.keep(at..end),
            _ => {}
        }
        spans.limit()?;
        at = end;
        file.seek(SeekFrom::Start(at))?;
    }
    // Raw rows, unfiltered, expanded and ours.
    let row = (stored[0] as u64 * bits).div_ceil(8) + stored[0] as u64 * 8;
    Ok(Header {
        reduced_bytes: None,
        indexed_at: None,
        format: Format::Png,
        stored,
        orientation: turned,
        has_alpha,
        is_grey: color == 0 && !has_alpha,
        is_animated,
        in_order: !interlaced,
        spans: spans.into_ranges(),
        decoder_bytes: DECODER_BYTES + 4 * row,
    })
}

/// The size, and what decoding takes, of what the segments say.
fn jpeg(file: &mut (impl BufRead + Seek), length: u64) -> Result<Header, Problem> {
    let JpegSegments { spans, turned, frame, first_scan } = jpeg_segments(file, length)?;
    let Some((is_progressive, frame)) = frame.filter(|(_, frame)| frame.len() >= 6) else {
        return Err(Problem::Refused("expected a frame in a JPEG file, got none".into()));
    };
    let stored = [3, 1].map(|at| usize::from(u16::from_be_bytes([frame[at], frame[at + 1]])));
    let factors =
        frame[6..].chunks_exact(3).map(|component| [component[1] >> 4, component[1] & 15].map(u64::from));
    let factors: Vec<[u64; 2]> = factors.collect();
    let most = |axis: usize| factors.iter().map(|factor| factor[axis]).max().unwrap_or(1).max(1);
    let units = [0, 1].map(|axis| (stored[axis] as u64).div_ceil(8 * most(axis)));
    let blocks =
        |rows: u64| factors.iter().map(|[across, down]| units[0] * across * rows * down).sum::<u64>();
    let channels = if factors.len() == 1 { 1 } else { 3 };
    // Where a scan does not complete the image, all coefficients are kept, of two bytes each.
    let is_in_parts = is_progressive || usize::from(first_scan) != factors.len();
    let coefficients = if is_in_parts { 128 * blocks(units[1]) } else { 0 };
    // A row of blocks, its pixels, and those for smoother colours.
    let rows = 64 * 8 * blocks(1);
    // More is known of these than that all programs read them alike.
    let is_reducible = !is_in_parts && frame[0] == 8 && matches!(factors.len(), 1 | 3);
    Ok(Header {
        reduced_bytes: is_reducible.then_some(DECODER_BYTES + 2 * rows),
        indexed_at: None,
        format: Format::Jpeg,
        stored,
        orientation: turned.unwrap_or(Orientation::NoTransforms),
        has_alpha: false,
        is_grey: channels == 1,
        is_animated: false,
        in_order: true,
        spans: spans.into_ranges(),
        decoder_bytes: DECODER_BYTES + area(stored) * channels + coefficients + rows,
    })
}

/// What the segments of a JPEG file say.
struct JpegSegments {
    /// What decoders are given.
    spans: Spans,
    /// By the first EXIF.
    turned: Option<Orientation>,
    /// Whether the frame is progressive, and its data.
    frame: Option<(bool, Vec<u8>)>,
    /// How many components the first scan has.
    first_scan: u8,
}

/// ITU T.81, annex B: segments of a marker, a length and data, and coded data behind a scan's. All of the file is walked,
/// because what is missing at its end is not missed by the decoder, and so that nothing of it need be in memory.
fn jpeg_segments(file: &mut (impl BufRead + Seek), length: u64) -> Result<JpegSegments, Problem> {
    const END: u8 = 0xd9;
    let mut spans = Spans::kept(0..2);
    let mut turned = None;
    let mut frame: Option<(bool, Vec<u8>)> = None;
    let (mut scans, mut first_scan) = (0, 0);
    let mut at = 2;
    file.seek(SeekFrom::Start(at))?;
    loop {
        let from = at;
        let marker = jpeg_marker(file, &mut at)?;
        if marker == END {
            spans.keep(from..at);
            break;
        }
        let size: [u8; 2] = bytes(file).map_err(|_: io::Error| cut_off())?;
        let size = u64::from(u16::from_be_bytes(size)).max(2);
        let end = at + size;
        if end > length {
            return Err(cut_off());
        }
        let is_kept = match marker {
            // Frames: all but tables and arithmetic conditioning.
            0xc0..=0xcf if !matches!(marker, 0xc4 | 0xc8 | 0xcc) => {
                if marker > 0xc2 {
                    let problem = "expected a baseline, extended or progressive JPEG, got another kind";
                    return Err(Problem::Refused(format!("{problem} (marker {marker:#04x})")));
                }
                // Decoders differ in which of two is the image's.
                if frame.replace((marker == 0xc2, some_bytes(file, size - 2)?)).is_some() {
                    return Err(Problem::Refused("expected one frame in a JPEG file, got two".into()));
                }
                true
            }
            0xda => {
                scans += 1;
                if scans == 1 {
                    [first_scan] = bytes(file)?;
                }
                true
            }
            // Those that decoders collect. Within coded data, where they end a scan, only damage puts them: without them what
            // lies on both sides would be read as one.
            0xe1 | 0xe2 | 0xed if scans > 0 => {
                let problem = "expected application data before the image's, got it within";
                return Err(Problem::Refused(format!("{problem} (JPEG marker {marker:#04x})")));
            }
            0xe1 => {
                let data = some_bytes(file, size - 2)?;
                if let Some(exif) = data.strip_prefix(b"Exif\0\0") {
                    turned.get_or_insert_with(|| orientation(exif));
                }
                false
            }
            // JFIF, and Adobe's, which says what the components are.
            0xe0 | 0xee => true,
            // Other applications' and comments.
            0xe2..=0xef | 0xfe => scans > 0,
            _ => true,
        };
        // Coded data lies between the segments.
        let start = at - 2;
        spans.keep(from..if is_kept { end } else { start });
        spans.limit()?;
        if scans > MAX_SCANS {
            return Err(Problem::Refused(format!("expected at most {MAX_SCANS} scans, got more")));
        }
        at = end;
        file.seek(SeekFrom::Start(at))?;
    }
    Ok(JpegSegments { spans, turned, frame, first_scan })
}

/// The next marker: over coded data, in which 0xff is followed by 0 or a restart, and fill bytes. `at` is moved behind it.
fn jpeg_marker(file: &mut impl BufRead, at: &mut u64) -> Result<u8, Problem> {
    loop {
        *at += file.skip_until(0xff)? as u64;
        let mut marker = 0xff;
        while marker == 0xff {
            [marker] = bytes(file).map_err(|_: io::Error| cut_off())?;
            *at += 1;
        }
        if !matches!(marker, 0x00 | 0x01 | 0xd0..=0xd7) {
            return Ok(marker);
        }
    }
}

fn cut_off() -> Problem {
    io::Error::new(io::ErrorKind::UnexpectedEof, "it is cut off").into()
}

fn webp(file: BufReader<&mut Data>, length: u64) -> Result<Header, Problem> {
    let mut decoder = WebPDecoder::new(file)?;
    let (width, height) = decoder.dimensions();
    let stored = [side(width), side(height)];
    let (has_alpha, is_animated) = (decoder.has_alpha(), decoder.is_animated());
    decoder.set_memory_limit(MAX_EXIF_BYTES as usize);
    // Data that is damaged or long says nothing of an orientation.
    let exif = decoder.exif_metadata().ok().flatten();
    // Pixels, and per pixel: brightness and colours, alpha with its own decoder, what is laid on a canvas.
    let pixels = if has_alpha { 4 } else { 3 };
    let frame = match (decoder.is_lossy(), has_alpha) {
        (true, false) => 2,
        (true, true) => 7,
        (false, _) => 4,
    };
    let transforms = 1;
    let canvas = if is_animated { 12 } else { 0 };
    // Compressed data is read whole, into tables that are several times as long.
    let tables = 8 * length.min(area(stored) * 4);
    Ok(Header {
        reduced_bytes: None,
        indexed_at: None,
        format: Format::WebP,
        stored,
        orientation: exif.map_or(Orientation::NoTransforms, |exif| orientation(&exif)),
        has_alpha,
        is_grey: false,
        is_animated,
        in_order: true,
        spans: std::iter::once(0..length).collect(),
        decoder_bytes: DECODER_BYTES + area(stored) * (pixels + frame + transforms + canvas) + tables,
    })
}

/// GIF 89a: blocks of a kind, most in sub-blocks of a length.
fn gif(file: &mut (impl BufRead + Seek)) -> Result<Header, Problem> {
    let table = |packed: u8| if packed & 0x80 == 0 { 0 } else { 3 << ((packed & 7) + 1) };
    let screen: [u8; 13] = bytes(file)?;
    let stored = [6, 8].map(|at| usize::from(u16::from_le_bytes([screen[at], screen[at + 1]])));
    let mut at = 13 + table(screen[10]);
    let mut spans = Spans::kept(0..at);
    let (mut images, mut has_alpha) = (0, false);
    loop {
        file.seek(SeekFrom::Start(at))?;
        let [kind] = match bytes(file) {
            Ok(kind) => kind,
            // What follows the first image is of no matter.
            Err(_) if images > 0 => break,
            Err(error) => return Err(error.into()),
        };
        let from = at;
        at += 1;
        match kind {
            0x21 => {
                let [label] = bytes(file)?;
                at = sub_blocks(file, at + 1)?;
                // Graphic control: which colour is transparent.
                if label == 0xf9 && images == 0 {
                    spans.keep(from..at);
                    file.seek(SeekFrom::Start(from + 3))?;
                    let [packed] = bytes(file)?;
                    has_alpha = packed & 1 != 0;
                }
            }
            0x2c => {
                if images > 0 {
                    images += 1;
                    break;
                }
                images += 1;
                let frame: [u8; 9] = bytes(file)?;
                let number = |at: usize| usize::from(u16::from_le_bytes([frame[at], frame[at + 1]]));
                // What the first image does not cover is transparent.
                has_alpha |= [number(0), number(2), number(4), number(6)] != [0, 0, stored[0], stored[1]];
                let data = at + 9 + table(frame[8]) + 1;
                file.seek(SeekFrom::Start(data - 1))?;
                let [bits] = bytes(file)?;
                let packed = if frame[8] & 0x80 == 0 { screen[10] } else { frame[8] };
                // An index beyond the colours is transparent.
                has_alpha |= table(packed) < 3 << bits.min(8);
                at = sub_blocks(file, data)?;
                spans.keep(from..at);
            }
            0x3b => break,
            _ => return Err(Problem::Refused("expected a block of a GIF, got something else".into())),
        }
        spans.limit()?;
    }
    if images == 0 {
        return Err(Problem::Refused("expected an image in a GIF, got none".into()));
    }
    Ok(Header {
        reduced_bytes: None,
        indexed_at: None,
        format: Format::Gif,
        stored,
        orientation: Orientation::NoTransforms,
        has_alpha,
        is_grey: false,
        is_animated: images > 1,
        in_order: false,
        spans: spans.into_ranges(),
        decoder_bytes: DECODER_BYTES + 16 * stored[0] as u64,
    })
}

/// The place behind sub-blocks that begin at `at`, where the file is.
fn sub_blocks(file: &mut (impl BufRead + Seek), mut at: u64) -> io::Result<u64> {
    loop {
        let [size] = bytes(file)?;
        at += 1 + u64::from(size);
        if size == 0 {
            return Ok(at);
        }
        file.seek_relative(i64::from(size))?;
    }
}

fn bmp(file: BufReader<&mut Data>, length: u64) -> Result<Header, Problem> {
    let decoder = BmpDecoder::new(file)?;
    let (width, height) = decoder.dimensions();
    let stored = [side(width), side(height)];
    let color = decoder.color_type();
    Ok(Header {
        reduced_bytes: None,
        indexed_at: None,
        format: Format::Bmp,
        stored,
        orientation: Orientation::NoTransforms,
        has_alpha: color.has_alpha(),
        is_grey: false,
        is_animated: false,
        in_order: true,
        spans: std::iter::once(0..length).collect(),
        decoder_bytes: DECODER_BYTES
            + area(stored) * u64::from(color.bytes_per_pixel())
            + 16 * stored[0] as u64,
    })
}

fn tiff(mut file: BufReader<&mut Data>, length: u64) -> Result<Header, Problem> {
    let indexed_at = tiff_palette(&mut file)?;
    let file = BufReader::new(Patched::of(file.into_inner(), indexed_at));
    let mut decoder = tiff::decoder::Decoder::new(file)?.with_limits(tiff_limits());
    let (width, height) = decoder.dimensions()?;
    let stored = [side(width), side(height)];
    let color = decoder.colortype()?;
    let (chunk_width, chunk_height) = decoder.chunk_dimensions();
    let chunk = [
        side(chunk_width).min(stored[0].next_multiple_of(16)),
        side(chunk_height).min(stored[1].next_multiple_of(16)),
    ];
    let turned = decoder.find_tag_unsigned::<u8>(Tag::Orientation)?;
    let has_alpha = match color {
        tiff::ColorType::GrayA(_) | tiff::ColorType::RGBA(_) | tiff::ColorType::CMYKA(_) => true,
        // Grey with another sample, of which nothing is known but that it is alpha.
        tiff::ColorType::Multiband { num_samples: 2, .. } => {
            let extra = tiff_extra_sample(&mut decoder)?;
            if !matches!(extra, Some(TIFF_ASSOCIATED_ALPHA | TIFF_UNASSOCIATED_ALPHA)) {
                return Err(Problem::Refused(
                    "expected a TIFF of shades or colours, got other samples".into(),
                ));
            }
            true
        }
        _ => false,
    };
    let bits = u64::from(color.bit_depth()) * u64::from(color.num_samples());
    // Decoded, and once more where samples are put in another order.
    let chunks = 3 * (area(chunk) * bits.div_ceil(8)).max(1);
    Ok(Header {
        reduced_bytes: None,
        indexed_at,
        format: Format::Tiff,
        stored,
        orientation: turned.and_then(Orientation::from_exif).unwrap_or(Orientation::NoTransforms),
        has_alpha,
        is_grey: false,
        is_animated: decoder.more_images(),
        // Tiles come from the left to the right, and strips in order.
        in_order: decoder.get_chunk_type() == tiff::decoder::ChunkType::Strip,
        spans: std::iter::once(0..length).collect(),
        decoder_bytes: DECODER_BYTES + chunks + 2 * MAX_TABLE_BYTES as u64,
    })
}

/// Where the first directory of a TIFF or BigTIFF says that samples are palette indices, and the bytes that say shades of
/// grey (TIFF 6.0, sections 2 and 8).
fn tiff_palette(file: &mut (impl Read + Seek)) -> io::Result<Option<(u64, [u8; 2])>> {
    const PHOTOMETRIC: u64 = 262;
    const GREY: u16 = 1;
    const PALETTE: u64 = 3;
    file.seek(SeekFrom::Start(0))?;
    let start: [u8; 4] = bytes(file)?;
    let is_big_endian = start[0] == b'M';
    // BigTIFF: 8 bytes where there are 4, and 8 for the number of entries.
    let is_big = start[2..].contains(&43);
    let mut number = |at: u64, width: usize| -> io::Result<u64> {
        let mut number: [u8; 8] = [0; 8];
        file.seek(SeekFrom::Start(at))?;
        file.read_exact(&mut number[..width])?;
        if is_big_endian {
            number[..width].reverse();
        }
        Ok(u64::from_le_bytes(number))
    };
    let (directory, entries_at, entry_bytes, value_at) = if is_big {
        let directory = number(8, 8)?;
        (directory, directory.saturating_add(8), 20, 12)
    } else {
        let directory = number(4, 4)?;
        (directory, directory + 2, 12, 8)
    };
    let count = number(directory, if is_big { 8 } else { 2 })?.min(MAX_TIFF_ENTRIES);
    for index in 0..count {
        let entry = entries_at.saturating_add(index * entry_bytes);
        let place = entry.saturating_add(value_at);
        if number(entry, 2)? == PHOTOMETRIC {
            let grey = if is_big_endian { GREY.to_be_bytes() } else { GREY.to_le_bytes() };
            return Ok((number(place, 2)? == PALETTE).then_some((place, grey)));
        }
    }
    Ok(None)
}

/// TIFF 6.0, section 18, `ExtraSamples`: colours were multiplied by alpha, or not.
pub(super) const TIFF_ASSOCIATED_ALPHA: u16 = 1;
const TIFF_UNASSOCIATED_ALPHA: u16 = 2;

/// What the first sample beside grey or colours is.
pub(super) fn tiff_extra_sample<R: Read + Seek>(
    decoder: &mut tiff::decoder::Decoder<R>,
) -> Result<Option<u16>, Problem> {
    let extra = decoder.find_tag_unsigned_vec::<u16>(Tag::ExtraSamples)?;
    Ok(extra.and_then(|extra| extra.first().copied()))
}

/// What is read of a TIFF before its pixels; these are counted.
pub(super) fn tiff_limits() -> tiff::decoder::Limits {
    let mut limits = tiff::decoder::Limits::unlimited();
    limits.ifd_value_size = MAX_TABLE_BYTES;
    // Also of a tag's values, of which there is room for as many as the tag says before any is read.
    limits.decoding_buffer_size = MAX_TABLE_BYTES;
    limits
}

pub(super) fn bytes<const N: usize>(file: &mut impl Read) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    file.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// So many bytes, of which there are few.
fn some_bytes(file: &mut impl Read, count: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(count).read_to_end(&mut bytes)?;
    if bytes.len() as u64 == count { Ok(bytes) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

/// As many bytes as there are, at most the buffer's length.
fn read_up_to(file: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut read = 0;
    while read < buffer.len() {
        match file.read(&mut buffer[read..])? {
            0 => break,
            some => read += some,
        }
    }
    Ok(read)
}

impl Spans {
    /// [`Problem::Refused`] for a file of more parts than any program writes, kept or looked at; called once for each that
    /// is looked at.
    fn limit(&mut self) -> Result<(), Problem> {
        if self.len() > MAX_SPANS || self.look() > MAX_PARTS {
            return Err(Problem::Refused(format!("expected at most {MAX_SPANS} parts, got more")));
        }
        Ok(())
    }
}
