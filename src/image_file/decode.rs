//! Images become pixels: what a file stores goes, as few rows at a time as its format allows, to the image at its new size.
//! It knows formats, and nothing of what the image is for.

use std::io::{BufReader, Read, SeekFrom};

use image::ImageDecoder;
use image::codecs::bmp::BmpDecoder;
use image_webp::WebPDecoder;
use png::{BitDepth, Transformations};
use tiff::decoder::DecodingResult;
use tiff::tags::Tag;
use zune_core::colorspace::ColorSpace;
use zune_core::options::DecoderOptions;

use super::data::{Data, Parts, Patched};
use super::header::{Format, Header, Problem, TIFF_ASSOCIATED_ALPHA, bytes, tiff_extra_sample, tiff_limits};
use super::scale::{Canvas, Part, Window};

/// What is made of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Want {
    /// Red, green and blue, composited onto white.
    Color,
    /// Red, green, blue and alpha; at the image's own size alone.
    ColorAlpha,
    /// A mask: shades of grey or, where anything is not opaque, how transparent it is.
    Mask,
    /// How transparent it is.
    Transparency,
}

impl Want {
    /// How many values per pixel are kept until the image has been read.
    pub(super) fn channels(self, header: &Header) -> usize {
        match self {
            Self::Color if header.is_grey => 1,
            Self::Color => 3,
            Self::ColorAlpha => 4,
            Self::Mask if header.has_alpha => 2,
            Self::Mask | Self::Transparency => 1,
        }
    }
}

/// Pixels as they were decoded, of 8 bits per sample.
#[derive(Clone, Copy)]
enum Layout {
    Grey,
    GreyAlpha,
    Rgb,
    Rgba,
}

impl Layout {
    fn samples(self) -> usize {
        match self {
            Self::Grey => 1,
            Self::GreyAlpha => 2,
            Self::Rgb => 3,
            Self::Rgba => 4,
        }
    }
}

/// What an image was decoded to.
pub(super) struct Decoded {
    /// One or three values per pixel, by what was wanted.
    pub(super) pixels: Vec<u8>,
    /// Whether every pixel was opaque.
    pub(super) is_opaque: bool,
}

/// At how many eighths of its stored size a JPEG is decoded before it is scaled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Eighths(usize);

impl Eighths {
    /// The size as it is stored.
    pub(super) const ALL: Self = Self(8);

    /// The fewest at which a part of the image has as many pixels as it is scaled to.
    pub(super) fn least(header: &Header, windows: [Window; 2], to: [usize; 2]) -> Self {
        /// Below, there is nothing to be spared.
        const LEAST_SIDE: usize = 256;
        if header.reduced_bytes.is_none() || header.stored.iter().any(|&side| side < LEAST_SIDE) {
            return Self::ALL;
        }
        let is_enough = |eighths: &usize| {
            windows.iter().zip(to).all(|(window, to)| window.length * *eighths as f64 >= 8.0 * to as f64)
        };
        [1, 2, 4].into_iter().find(is_enough).map_or(Self::ALL, Self)
    }

    /// The size and part of the image that is decoded.
    pub(super) fn part(self, stored: [usize; 2], windows: [Window; 2]) -> Part {
        let share = self.0 as f64 / 8.0;
        let of = stored.map(|side| (side * self.0).div_ceil(8));
        Part {
            of,
            windows: windows
                .map(|Window { start, length }| Window { start: start * share, length: length * share }),
        }
    }

    /// What its decoder takes.
    pub(super) fn decoder_bytes(self, header: &Header) -> u64 {
        let Some(reduced_bytes) = header.reduced_bytes.filter(|_| self != Self::ALL) else {
            return header.decoder_bytes;
        };
        let channels = if header.is_grey { 1 } else { 3 };
        let [width, height] = header.stored.map(|side| (side * self.0).div_ceil(8) as u64);
        reduced_bytes + 2 * width * height * channels
    }
}

impl std::fmt::Display for Eighths {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "1/{}", 8 / self.0)
    }
}

/// Decodes a part of an image to another size, all as it is stored.
pub(super) fn decode(
    data: &mut Data,
    header: &Header,
    windows: [Window; 2],
    to: [usize; 2],
    want: Want,
    eighths: Eighths,
) -> Result<Decoded, Problem> {
    let channels = want.channels(header);
    let part = eighths.part(header.stored, windows);
    let canvas = Canvas::new(channels, part, to, header.in_order);
    let is_lossy = header.format == Format::Jpeg;
    let mut sink = Sink { canvas, want, channels, line: Vec::new(), is_opaque: true, is_lossy };
    std::io::Seek::seek(data, SeekFrom::Start(0))?;
    match header.format {
        Format::Png => png(data, header, &mut sink)?,
        Format::Jpeg if eighths != Eighths::ALL => reduced_jpeg(data, header, part.of, &mut sink)?,
        Format::Jpeg => jpeg(data, header, &mut sink)?,
        Format::WebP => webp(data, header, &mut sink)?,
        Format::Gif => gif(data, header, &mut sink)?,
        Format::Bmp => bmp(data, header, &mut sink)?,
        Format::Tiff => tiff(data, header, &mut sink)?,
    }
    let Sink { canvas, is_opaque, .. } = sink;
    let mut pixels = canvas.into_pixels();
    if channels == 2 {
        // Both are known now, and one is meant.
        let of = |pixel: &[u8]| if is_opaque { pixel[0] } else { 255 - pixel[1] };
        pixels = pixels.chunks_exact(2).map(of).collect();
    } else if want == Want::Color && channels == 1 {
        pixels = pixels.iter().flat_map(|&grey| [grey; 3]).collect();
    }
    Ok(Decoded { pixels, is_opaque })
}

/// Where decoded pixels go.
struct Sink {
    canvas: Canvas,
    want: Want,
    channels: usize,
    /// One row as it is wanted.
    line: Vec<u8>,
    is_opaque: bool,
    /// Whether compression has changed the pixels.
    is_lossy: bool,
}

impl Sink {
    /// Takes pixels of row `y`, every `step`-th from `x` on.
    fn put(&mut self, y: usize, x: usize, step: usize, layout: Layout, pixels: &[u8]) {
        let direct = match (self.want, layout) {
            (Want::Color, Layout::Rgb) | (Want::ColorAlpha, Layout::Rgba) => true,
            (Want::Color, Layout::Grey) => self.channels == 1,
            (Want::Mask, Layout::Grey) => self.channels == 1 && !self.is_lossy,
            _ => false,
        };
        if direct {
            return self.canvas.put(y, x, step, pixels);
        }
        self.line.clear();
        for pixel in pixels.chunks_exact(layout.samples()) {
            let (rgb, alpha) = match *pixel {
                [grey] => ([grey; 3], 255),
                [grey, alpha] => ([grey; 3], alpha),
                [r, g, b] => ([r, g, b], 255),
                [r, g, b, alpha] => ([r, g, b], alpha),
                _ => unreachable!("layouts have one to four samples"),
            };
            self.is_opaque &= alpha == 255;
            match self.want {
                Want::Color if self.channels == 1 => self.line.push(luma(rgb)),
                Want::Color => self.line.extend(rgb.map(|byte| on_white(byte, alpha))),
                Want::Mask => {
                    let grey = luma(rgb);
                    self.line.push(if self.is_lossy { settled(grey) } else { grey });
                    if self.channels == 2 {
                        self.line.push(alpha);
                    }
                }
                Want::ColorAlpha => self.line.extend([rgb[0], rgb[1], rgb[2], alpha]),
                Want::Transparency => self.line.push(255 - alpha),
            }
        }
        self.canvas.put(y, x, step, &self.line);
    }

    /// Takes a whole image, row by row.
    fn put_all(&mut self, width: usize, layout: Layout, pixels: &[u8]) {
        for (y, row) in pixels.chunks_exact(width * layout.samples()).enumerate() {
            self.put(y, 0, 1, layout, row);
        }
    }
}

/// Black and white of a mask that compression has left a few levels of them: what is nearly black is outside of the mask, whose pixels
/// are to stay as they are.
fn settled(grey: u8) -> u8 {
    const RINGING: u8 = 16;
    match grey {
        ..RINGING => 0,
        grey if grey > 255 - RINGING => 255,
        grey => grey,
    }
}

fn on_white(byte: u8, alpha: u8) -> u8 {
    let (byte, alpha) = (u32::from(byte), u32::from(alpha));
    ((byte * alpha + 255 * (255 - alpha) + 127) / 255) as u8
}

/// Brightness as ITU-R BT.709 weighs colours, and as the `image` crate does.
fn luma([r, g, b]: [u8; 3]) -> u8 {
    ((2126 * u32::from(r) + 7152 * u32::from(g) + 722 * u32::from(b)) / 10_000) as u8
}

/// The nearest of 256 values to one of 65,536.
fn narrow(sample: u16) -> u8 {
    ((u32::from(sample) + 128) / 257) as u8
}

/// Ink to light, without a profile.
fn rgb_of_cmyk(pixel: &[u8]) -> [u8; 3] {
    let light = |ink: u8| 255 - u32::from(ink);
    [0, 1, 2].map(|at| ((light(pixel[at]) * light(pixel[3]) + 127) / 255) as u8)
}

fn png(data: &mut Data, header: &Header, sink: &mut Sink) -> Result<(), Problem> {
    /// PNG (third edition), section 8.2: per pass the first column, the step to the next, and the same of rows.
    const PASSES: [[usize; 4]; 7] =
        [[0, 8, 0, 8], [4, 8, 0, 8], [0, 4, 4, 8], [2, 4, 0, 4], [0, 2, 2, 4], [1, 2, 0, 2], [0, 1, 1, 2]];
    let mut decoder = png::Decoder::new(BufReader::new(Parts::of(data, &header.spans)));
    decoder.set_transformations(Transformations::EXPAND);
    let mut reader = decoder.read_info()?;
    let (color, depth) = reader.output_color_type();
    let layout = match color {
        png::ColorType::Grayscale => Layout::Grey,
        png::ColorType::GrayscaleAlpha => Layout::GreyAlpha,
        png::ColorType::Rgba => Layout::Rgba,
        png::ColorType::Rgb | png::ColorType::Indexed => Layout::Rgb,
    };
    let [width, height] = header.stored;
    let passes: &[[usize; 4]] = if reader.info().interlaced { &PASSES } else { &[[0, 1, 0, 1]] };
    let mut narrowed = Vec::new();
    for &[x, step, first, down] in passes.iter().filter(|[x, ..]| *x < width) {
        for y in (first..height).step_by(down) {
            let Some(row) = reader.next_interlaced_row()? else {
                return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into());
            };
            let row = if depth == BitDepth::Sixteen {
                narrowed.clear();
                narrowed.extend(row.data().as_chunks().0.iter().map(|two| narrow(u16::from_be_bytes(*two))));
                &narrowed[..]
            } else {
                row.data()
            };
            sink.put(y, x, step, layout, row);
        }
    }
    // What ends the image's data is checked here.
    reader.next_interlaced_row()?;
    Ok(())
}

/// All pixels are in memory before they are scaled, 144 MiB of a photograph of 48 megapixels, because zune-jpeg gives neither
/// rows nor a scaled image; where they do not fit, [`reduced_jpeg`] does. What else there is, as of November 2026:
/// libjpeg-turbo-rs 0.9 takes the whole file in memory; zenjpeg gives rows, and is under the AGPL.
fn jpeg(data: &mut Data, header: &Header, sink: &mut Sink) -> Result<(), Problem> {
    let options =
        DecoderOptions::default().set_strict_mode(false).set_max_width(usize::MAX).set_max_height(usize::MAX);
    let reader = BufReader::with_capacity(1 << 16, Parts::of(data, &header.spans));
    let mut decoder = zune_jpeg::JpegDecoder::new_with_options(reader, options);
    let failed = |error: zune_jpeg::errors::DecodeErrors| Problem::Damaged(format!("{error:?}").into());
    decoder.decode_headers().map_err(failed)?;
    let is_grey = decoder.input_colorspace() == Some(ColorSpace::Luma);
    let (space, layout) =
        if is_grey { (ColorSpace::Luma, Layout::Grey) } else { (ColorSpace::RGB, Layout::Rgb) };
    decoder.set_options(decoder.options().jpeg_set_out_colorspace(space));
    let [width, height] = header.stored;
    let mut pixels = vec![0; width * height * layout.samples()];
    decoder.decode_into(&mut pixels).map_err(failed)?;
    sink.put_all(width, layout, &pixels);
    Ok(())
}

/// A JPEG at a few eighths of its size, as its inverse cosine transform gives it: 6 MB of memory for 48 megapixels. The mean of
/// the pixels that become one, but for rounding and what the eye does not see; not the pixels that [`jpeg`] and the filter make.
///
/// rusty_jpeg is a fork of jpeg-decoder 0.3, which hands coefficients to threads through queues without a bound; here it has no
/// threads, and no unsafe code (its feature `platform_independent`).
fn reduced_jpeg(
    data: &mut Data,
    header: &Header,
    [width, height]: [usize; 2],
    sink: &mut Sink,
) -> Result<(), Problem> {
    let failed = |error: rusty_jpeg::decode::Error| Problem::Damaged(error.to_string().into());
    let mut decoder =
        rusty_jpeg::Decoder::new(BufReader::with_capacity(1 << 16, Parts::of(data, &header.spans)));
    decoder.set_single_threaded(true);
    let got = decoder.scale(width as u16, height as u16).map_err(failed)?;
    let layout = match decoder.info().map(|info| info.pixel_format) {
        Some(rusty_jpeg::PixelFormat::L8) => Layout::Grey,
        Some(rusty_jpeg::PixelFormat::RGB24) => Layout::Rgb,
        _ => {
            return Err(Problem::Refused(
                "expected a JPEG of one or three components of 8 bits, got another".into(),
            ));
        }
    };
    if got != (width as u16, height as u16) {
        let problem =
            format!("expected a JPEG whose size is in its header, got {got:?} for {:?}", (width, height));
        return Err(Problem::Refused(problem));
    }
    let pixels = decoder.decode().map_err(failed)?;
    if pixels.len() != width * height * layout.samples() {
        return Err(Problem::Damaged(format!("{} bytes of pixels", pixels.len()).into()));
    }
    sink.put_all(width, layout, &pixels);
    Ok(())
}

fn webp(data: &mut Data, header: &Header, sink: &mut Sink) -> Result<(), Problem> {
    let mut decoder = WebPDecoder::new(BufReader::new(data))?;
    let layout = if decoder.has_alpha() { Layout::Rgba } else { Layout::Rgb };
    let [width, height] = header.stored;
    let mut pixels = vec![0; width * height * layout.samples()];
    decoder.read_image(&mut pixels)?;
    sink.put_all(width, layout, &pixels);
    Ok(())
}

/// GIF 89a, of whose blocks the header kept those that the first frame needs.
fn gif(data: &mut Data, header: &Header, sink: &mut Sink) -> Result<(), Problem> {
    /// Appendix E: the first row of each pass, and the step to the next.
    const PASSES: [[usize; 2]; 4] = [[0, 8], [4, 8], [2, 4], [1, 2]];
    let mut file = BufReader::new(Parts::of(data, &header.spans));
    let screen: [u8; 13] = bytes(&mut file)?;
    let mut table = gif_table(&mut file, screen[10])?;
    let mut transparent = None;
    let frame: [u8; 9] = loop {
        match bytes(&mut file)? {
            [0x2c] => break bytes(&mut file)?,
            // Graphic control: label, length, flags, delay, index, end.
            _ => {
                let control: [u8; 7] = bytes(&mut file)?;
                if (control[1], control[6]) != (4, 0) {
                    return Err(Problem::Refused(
                        "expected a graphic control of a GIF, got something else".into(),
                    ));
                }
                transparent = (control[2] & 1 != 0).then_some(control[5]);
            }
        }
    };
    if frame[8] & 0x80 != 0 {
        table = gif_table(&mut file, frame[8])?;
    }
    if table.is_empty() {
        return Err(Problem::Refused("expected a table of colours in a GIF, got none".into()));
    }
    let number = |at: usize| usize::from(u16::from_le_bytes([frame[at], frame[at + 1]]));
    let (left, top, across, down) = (number(0), number(2), number(4), number(6));
    let [width, height] = header.stored;
    if left + across > width || top + down > height || across == 0 || down == 0 {
        return Err(Problem::Refused(
            "expected a frame inside of the GIF's screen, got one beyond it".into(),
        ));
    }
    let mut row = vec![0; width * 4];
    for y in (0..top).chain(top + down..height) {
        sink.put(y, 0, 1, Layout::Rgba, &row);
    }
    let mut indices = Indices::of(file)?;
    let mut line = vec![0; across];
    let passes: &[[usize; 2]] = if frame[8] & 0x40 != 0 { &PASSES } else { &[[0, 1]] };
    for y in passes.iter().flat_map(|&[first, step]| (first..down).step_by(step)) {
        indices.fill(&mut line)?;
        for (pixel, &index) in row[left * 4..].chunks_exact_mut(4).zip(&line) {
            // What no table has is transparent.
            let color = table.get(usize::from(index)).filter(|_| transparent != Some(index));
            pixel.copy_from_slice(&color.map_or([0; 4], |&[r, g, b]| [r, g, b, 255]));
        }
        sink.put(top + y, 0, 1, Layout::Rgba, &row);
    }
    Ok(())
}

/// The table of colours whose size is in these flags, if they say that there is one.
fn gif_table(file: &mut impl Read, flags: u8) -> Result<Vec<[u8; 3]>, Problem> {
    let count = if flags & 0x80 == 0 { 0 } else { 2 << (flags & 7) };
    let mut table = vec![[0; 3]; count];
    file.read_exact(table.as_flattened_mut())?;
    Ok(table)
}

/// The colour indices of a GIF's frame: LZW in blocks of at most 255 bytes. (The `gif` crate loses pixels where it is not
/// given a whole frame to fill: strings that are longer than what is left of a row.)
struct Indices<R> {
    file: R,
    decoder: weezl::decode::Decoder,
    block: Vec<u8>,
    /// How much of the block has been decoded.
    at: usize,
    /// Whether the block that ends the data was read.
    is_over: bool,
}

impl<R: Read> Indices<R> {
    fn of(mut file: R) -> Result<Self, Problem> {
        const CODE_BITS: std::ops::RangeInclusive<u8> = 1..=11;
        let [bits] = bytes(&mut file)?;
        if !CODE_BITS.contains(&bits) {
            return Err(Problem::Refused(format!("expected codes of 1 to 11 bits in a GIF, got {bits}")));
        }
        let decoder = weezl::decode::Decoder::new(weezl::BitOrder::Lsb, bits);
        Ok(Self { file, decoder, block: Vec::new(), at: 0, is_over: false })
    }

    fn fill(&mut self, line: &mut [u8]) -> Result<(), Problem> {
        let mut filled = 0;
        // The decoder may put a string aside and give out nothing; after that it does.
        let mut idle = 0;
        while filled < line.len() {
            if self.at == self.block.len() && !self.is_over {
                let [size] = bytes(&mut self.file)?;
                self.block.resize(usize::from(size), 0);
                self.file.read_exact(&mut self.block)?;
                (self.at, self.is_over) = (0, size == 0);
            }
            let decoded = self.decoder.decode_bytes(&self.block[self.at..], &mut line[filled..]);
            let has_ended = matches!(decoded.status?, weezl::LzwStatus::Done);
            self.at += decoded.consumed_in;
            filled += decoded.consumed_out;
            idle = if decoded.consumed_in + decoded.consumed_out > 0 { 0 } else { idle + 1 };
            if idle > 2 || has_ended && idle > 0 {
                return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into());
            }
        }
        Ok(())
    }
}

fn bmp(data: &mut Data, header: &Header, sink: &mut Sink) -> Result<(), Problem> {
    let decoder = BmpDecoder::new(BufReader::new(data))?;
    let layout = match decoder.color_type() {
        image::ColorType::L8 => Layout::Grey,
        image::ColorType::Rgba8 => Layout::Rgba,
        _ => Layout::Rgb,
    };
    let [width, height] = header.stored;
    let mut pixels = vec![0; width * height * layout.samples()];
    decoder.read_image(&mut pixels)?;
    sink.put_all(width, layout, &pixels);
    Ok(())
}

fn tiff(data: &mut Data, header: &Header, sink: &mut Sink) -> Result<(), Problem> {
    let mut limits = tiff_limits();
    // What was counted.
    limits.decoding_buffer_size = header.decoder_bytes as usize;
    limits.intermediate_buffer_size = header.decoder_bytes as usize;
    let mut decoder = tiff::decoder::Decoder::new(BufReader::new(Patched::of(data, header.indexed_at)))?
        .with_limits(limits);
    let color = decoder.colortype()?;
    let samples = usize::from(color.num_samples());
    let refuse =
        |what: String| Problem::Refused(format!("expected a TIFF of 8 or 16 bits per sample, got {what}"));
    let bits = color.bit_depth();
    let palette = match header.indexed_at {
        Some(_) => {
            let table = decoder.get_tag_u16_vec(Tag::ColorMap)?;
            if bits > 8 || table.len() != 3 << bits || color != tiff::ColorType::Gray(bits) {
                return Err(refuse(format!("a palette of {} values", table.len())));
            }
            table
        }
        None => Vec::new(),
    };
    let layout = match color {
        tiff::ColorType::Gray(_) if palette.is_empty() => Layout::Grey,
        tiff::ColorType::GrayA(_) | tiff::ColorType::Multiband { num_samples: 2, .. } => Layout::GreyAlpha,
        tiff::ColorType::RGB(_) | tiff::ColorType::CMYK(_) | tiff::ColorType::Gray(_) => Layout::Rgb,
        tiff::ColorType::RGBA(_) => Layout::Rgba,
        other => return Err(refuse(format!("{other:?}"))),
    };
    let is_multiplied = tiff_extra_sample(&mut decoder)? == Some(TIFF_ASSOCIATED_ALPHA);
    let is_planar = decoder.find_tag_unsigned::<u16>(Tag::PlanarConfiguration)?.unwrap_or(1) != 1;
    // Samples that lie apart: all chunks of the first, then all of the second.
    let planes = if is_planar { samples } else { 1 };
    let [width, height] = header.stored;
    let (chunk_width, chunk_height) = decoder.chunk_dimensions();
    let across = width.div_ceil(chunk_width as usize);
    let count = across * height.div_ceil(chunk_height as usize);
    let (mut line, mut plane_line) = (Vec::new(), Vec::new());
    for chunk in 0..count {
        let (x, y) = (chunk % across * chunk_width as usize, chunk / across * chunk_height as usize);
        let (columns, rows) = decoder.chunk_data_dimensions(chunk as u32);
        let (columns, rows) = (columns as usize, rows as usize);
        let decoded = (0..planes).map(|plane| decoder.read_chunk((plane * count + chunk) as u32));
        let decoded = decoded.collect::<Result<Vec<_>, _>>()?;
        for row in 0..rows {
            line.clear();
            for (plane, decoded) in decoded.iter().enumerate() {
                plane_line.clear();
                tiff_row(
                    decoded,
                    row,
                    columns * samples / planes,
                    bits,
                    palette.is_empty(),
                    &mut plane_line,
                )?;
                line.resize(columns * samples, 0);
                let places = line[plane..].iter_mut().step_by(planes);
                places.zip(&plane_line).for_each(|(place, value)| *place = *value);
            }
            if let tiff::ColorType::CMYK(_) = color {
                line = line.chunks_exact(4).flat_map(rgb_of_cmyk).collect();
            } else if !palette.is_empty() {
                let colors = palette.len() / 3;
                let of = |index: u8, channel: usize| narrow(palette[channel * colors + usize::from(index)]);
                line = line.iter().flat_map(|&index| [0, 1, 2].map(|channel| of(index, channel))).collect();
            } else if is_multiplied {
                line.chunks_exact_mut(samples).for_each(divide_by_alpha);
            }
            sink.put(y + row, x, 1, layout, &line);
        }
    }
    Ok(())
}

/// Appends a row of samples, in 8 bits; of palettes the indices.
fn tiff_row(
    decoded: &DecodingResult,
    row: usize,
    count: usize,
    bits: u8,
    is_shade: bool,
    line: &mut Vec<u8>,
) -> Result<(), Problem> {
    let missing = || Problem::from(std::io::Error::from(std::io::ErrorKind::UnexpectedEof));
    let span = row * count..(row + 1) * count;
    match decoded {
        DecodingResult::U8(values) if bits == 8 => {
            line.extend_from_slice(values.get(span).ok_or_else(missing)?);
        }
        // Bits are packed, also across bytes, and rows begin with a byte.
        DecodingResult::U8(values) if bits < 8 => {
            let bits = usize::from(bits);
            let stride = (count * bits).div_ceil(8);
            let packed = values.get(row * stride..(row + 1) * stride).ok_or_else(missing)?;
            let most = (1u32 << bits) - 1;
            line.extend((0..count).map(|sample| {
                let at = sample * bits;
                let pair = [packed[at / 8], packed.get(at / 8 + 1).copied().unwrap_or(0)];
                let value = u32::from(u16::from_be_bytes(pair)) >> (16 - bits - at % 8) & most;
                if is_shade { (value * 255 / most) as u8 } else { value as u8 }
            }));
        }
        DecodingResult::U16(values) if bits == 16 => {
            line.extend(values.get(span).ok_or_else(missing)?.iter().map(|sample| narrow(*sample)));
        }
        DecodingResult::F32(values) => {
            let byte = |value: &f32| (value.clamp(0.0, 1.0) * 255.0).round() as u8;
            line.extend(values.get(span).ok_or_else(missing)?.iter().map(byte));
        }
        _ => {
            return Err(Problem::Refused(format!(
                "expected a TIFF of 8 or 16 bits per sample, got one of {bits} bits"
            )));
        }
    }
    Ok(())
}

/// Colours that were multiplied by alpha, which is the last sample, as they were.
fn divide_by_alpha(pixel: &mut [u8]) {
    let Some((alpha, colors)) = pixel.split_last_mut() else { return };
    let alpha = u32::from(*alpha);
    if alpha > 0 {
        colors.iter_mut().for_each(|color| {
            *color = ((u32::from(*color) * 255 + alpha / 2) / alpha).min(255) as u8;
        });
    }
}
