//! Images become pixels: what a file stores goes, as few rows at a time as its format allows, to the image at its new size.
//! It knows formats, and nothing of what the image is for.

use std::io::{BufReader, SeekFrom};

use image::ImageDecoder;
use image::codecs::bmp::BmpDecoder;
use image_webp::WebPDecoder;
use png::{BitDepth, Transformations};
use tiff::decoder::DecodingResult;
use tiff::tags::Tag;
use zune_core::colorspace::ColorSpace;
use zune_core::options::DecoderOptions;

use super::data::{Data, Parts};
use super::header::{Format, Header, Problem, tiff_limits};
use super::scale::Canvas;

/// What is made of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Want {
    /// Red, green and blue, laid on white.
    Color,
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

/// Decodes an image to another size, both as it is stored.
pub(super) fn decode(
    data: &mut Data,
    header: &Header,
    to: [usize; 2],
    want: Want,
) -> Result<Decoded, Problem> {
    let channels = want.channels(header);
    let canvas = Canvas::new(channels, header.stored, to, header.in_order);
    let mut sink = Sink { canvas, want, channels, line: Vec::new(), is_opaque: true };
    std::io::Seek::seek(data, SeekFrom::Start(0))?;
    match header.format {
        Format::Png => png(data, header, &mut sink)?,
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
}

impl Sink {
    /// Takes pixels of row `y`, every `step`-th from `x` on.
    fn put(&mut self, y: usize, x: usize, step: usize, layout: Layout, pixels: &[u8]) {
        let direct = match (self.want, layout) {
            (Want::Color, Layout::Rgb) => true,
            (Want::Color | Want::Mask, Layout::Grey) => self.channels == 1,
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
                    self.line.push(luma(rgb));
                    if self.channels == 2 {
                        self.line.push(alpha);
                    }
                }
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

fn webp(data: &mut Data, header: &Header, sink: &mut Sink) -> Result<(), Problem> {
    let mut decoder = WebPDecoder::new(BufReader::new(data))?;
    let layout = if decoder.has_alpha() { Layout::Rgba } else { Layout::Rgb };
    let [width, height] = header.stored;
    let mut pixels = vec![0; width * height * layout.samples()];
    decoder.read_image(&mut pixels)?;
    sink.put_all(width, layout, &pixels);
    Ok(())
}

fn gif(data: &mut Data, header: &Header, sink: &mut Sink) -> Result<(), Problem> {
    /// GIF 89a, appendix E: the first row of each pass, and the step to the next.
    const PASSES: [[usize; 2]; 4] = [[0, 8], [4, 8], [2, 4], [1, 2]];
    let mut options = gif::DecodeOptions::new();
    options.set_color_output(gif::ColorOutput::RGBA);
    let mut decoder = options.read_info(BufReader::new(Parts::of(data, &header.spans)))?;
    let cut_off = || Problem::from(std::io::Error::from(std::io::ErrorKind::UnexpectedEof));
    let frame = decoder.next_frame_info()?.ok_or_else(cut_off)?;
    let [width, height] = header.stored;
    let (left, top) = (usize::from(frame.left), usize::from(frame.top));
    let (across, down, interlaced) = (usize::from(frame.width), usize::from(frame.height), frame.interlaced);
    if left + across > width || top + down > height || across == 0 || down == 0 {
        return Err(Problem::Refused(
            "expected a frame inside of the GIF's screen, got one beyond it".into(),
        ));
    }
    let mut row = vec![0; width * 4];
    for y in (0..top).chain(top + down..height) {
        sink.put(y, 0, 1, Layout::Rgba, &row);
    }
    let passes: &[[usize; 2]] = if interlaced { &PASSES } else { &[[0, 1]] };
    for &[first, step] in passes {
        for y in (first..down).step_by(step) {
            if !decoder.fill_buffer(&mut row[left * 4..(left + across) * 4])? {
                return Err(cut_off());
            }
            sink.put(top + y, 0, 1, Layout::Rgba, &row);
        }
    }
    Ok(())
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
    let mut decoder = tiff::decoder::Decoder::new(BufReader::new(data))?.with_limits(limits);
    let color = decoder.colortype()?;
    let samples = usize::from(color.num_samples());
    let refuse =
        |what: String| Problem::Refused(format!("expected a TIFF of 8 or 16 bits per sample, got {what}"));
    if samples > 1 && decoder.find_tag_unsigned::<u16>(Tag::PlanarConfiguration)?.unwrap_or(1) != 1 {
        return Err(refuse("one with its colours apart".into()));
    }
    let palette = match color {
        tiff::ColorType::Palette(bits) => {
            let table = decoder.get_tag_u16_vec(Tag::ColorMap)?;
            if table.len() != 3 << bits {
                return Err(refuse(format!("a palette of {} values", table.len())));
            }
            table
        }
        _ => Vec::new(),
    };
    let bits = color.bit_depth();
    let layout = match color {
        tiff::ColorType::Gray(_) => Layout::Grey,
        tiff::ColorType::GrayA(_) => Layout::GreyAlpha,
        tiff::ColorType::RGB(_) | tiff::ColorType::CMYK(_) | tiff::ColorType::Palette(_) => Layout::Rgb,
        tiff::ColorType::RGBA(_) => Layout::Rgba,
        other => return Err(refuse(format!("{other:?}"))),
    };
    let [width, height] = header.stored;
    let (chunk_width, chunk_height) = decoder.chunk_dimensions();
    let across = width.div_ceil(chunk_width as usize);
    let down = height.div_ceil(chunk_height as usize);
    let mut line = Vec::new();
    for chunk in 0..across * down {
        let (x, y) = (chunk % across * chunk_width as usize, chunk / across * chunk_height as usize);
        let (columns, rows) = decoder.chunk_data_dimensions(chunk as u32);
        let (columns, rows) = (columns as usize, rows as usize);
        let decoded = decoder.read_chunk(chunk as u32)?;
        for row in 0..rows {
            line.clear();
            let span = row * columns * samples..(row + 1) * columns * samples;
            let missing = || Problem::from(std::io::Error::from(std::io::ErrorKind::UnexpectedEof));
            match &decoded {
                DecodingResult::U8(values) if bits == 8 => {
                    line.extend_from_slice(values.get(span).ok_or_else(missing)?);
                }
                // Bits are packed, and rows begin with a byte.
                DecodingResult::U8(values) if bits < 8 && samples == 1 => {
                    let stride = (columns * usize::from(bits)).div_ceil(8);
                    let packed = values.get(row * stride..(row + 1) * stride).ok_or_else(missing)?;
                    let most = (1u32 << bits) - 1;
                    line.extend((0..columns).map(|column| {
                        let at = column * usize::from(bits);
                        let value = u32::from(packed[at / 8]) >> (8 - usize::from(bits) - at % 8) & most;
                        if palette.is_empty() { (value * 255 / most) as u8 } else { value as u8 }
                    }));
                }
                DecodingResult::U16(values) if bits == 16 => {
                    line.extend(values.get(span).ok_or_else(missing)?.iter().map(|sample| narrow(*sample)));
                }
                DecodingResult::F32(values) => {
                    let byte = |value: &f32| (value.clamp(0.0, 1.0) * 255.0).round() as u8;
                    line.extend(values.get(span).ok_or_else(missing)?.iter().map(byte));
                }
                _ => return Err(refuse(format!("one of {bits} bits"))),
            }
            if let tiff::ColorType::CMYK(_) = color {
                line = line.chunks_exact(4).flat_map(rgb_of_cmyk).collect();
            } else if !palette.is_empty() {
                let colors = palette.len() / 3;
                let of = |index: u8, channel: usize| narrow(palette[channel * colors + usize::from(index)]);
                line = line.iter().flat_map(|&index| [0, 1, 2].map(|channel| of(index, channel))).collect();
            }
            sink.put(y + row, x, 1, layout, &line);
        }
    }
    Ok(())
}
