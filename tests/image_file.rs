//! Images of every kind, as other readers see them (Pillow by a golden file, the `image` crate for random ones), and the
//! memory that decoding takes, which is to be what a plan counts. Allocations are counted by the thread that makes them.

#![cfg(feature = "engine")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::collections::BTreeSet;
use std::io::Cursor;
use std::path::Path;

use calotype::image_file::ImageFile;
use calotype::weights::Weights;
use image::{DynamicImage, ImageBuffer, ImageFormat, RgbImage, RgbaImage};

/// The system's allocator, with the bytes that a thread has, and the most that it had.
struct Counting;

thread_local! {
    static LIVE: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn count(bytes: isize) {
    // A thread that ends has no count any more.
    let _ = LIVE.try_with(|live| {
        live.set(live.get() + bytes);
        PEAK.try_with(|peak| peak.set(peak.get().max(live.get())))
    });
}

// SAFETY: every call is passed on as it came; the counts are plain integers of the calling thread, which need no
// allocation and no destructor.
#[allow(unsafe_code)]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller's promises are those that the system's allocator asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // Where it cannot grow in place there are both for a moment.
        count(new_size as isize);
        count(-(layout.size() as isize));
        // SAFETY: as above.
        unsafe { System.realloc(memory, layout, new_size) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: as above.
        unsafe { System.dealloc(memory, layout) }
    }
}

/// What a call takes at most beside what there was before, in bytes.
fn peak<T>(call: impl FnOnce() -> T) -> (T, u64) {
    let before = LIVE.get();
    PEAK.set(before);
    let result = call();
    (result, (PEAK.get() - before) as u64)
}

/// Decodes to a size, and holds what that takes to what is planned for it.
#[track_caller]
fn decoded_to(name: &str, file: &ImageFile, width: u32, height: u32) -> RgbImage {
    let planned = file.decode_to_bytes(width, height);
    let (image, measured) = peak(|| file.decode_to(width, height));
    let image = image.unwrap_or_else(|error| panic!("{name}: {error}"));
    assert!(measured <= planned, "{name} to {width}x{height}: planned {planned}, measured {measured} bytes");
    image
}

/// The largest and the mean distance of an image from another one laid on white.
fn distances(got: &RgbImage, expected: &RgbaImage) -> (f64, f64) {
    assert_eq!(got.dimensions(), expected.dimensions());
    let (mut most, mut sum) = (0f64, 0.0);
    for (got, expected) in got.pixels().zip(expected.pixels()) {
        let [rgb @ .., alpha] = expected.0.map(f64::from);
        for (got, expected) in got.0.iter().zip(rgb) {
            let off = (f64::from(*got) - (expected * alpha / 255.0 + 255.0 - alpha)).abs();
            most = most.max(off);
            sum += off;
        }
    }
    (most, sum / f64::from(3 * got.width() * got.height()))
}

/// Of lossy files, whose readers round otherwise, the largest distance and the mean one; else what 16 bits that become 8
/// and colours that are laid on white leave.
fn tolerance(name: &str) -> (f64, f64) {
    match name {
        _ if name.starts_with("jpeg") => (12.0, 1.5),
        _ if name.starts_with("webp.lossy") => (12.0, 1.5),
        // Divided by alpha in 8 bits.
        "tiff.associated" => (2.0, 1.0),
        _ => (1.0, 1.0),
    }
}

#[test]
fn files_of_every_kind_as_pillow_sees_them() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/images.safetensors");
    let golden = Weights::open(&[golden]).unwrap();
    let names: BTreeSet<&str> = golden
        .iter()
        .filter_map(|(name, _)| name.strip_suffix(".file").or(name.strip_suffix(".rgba")))
        .collect();
    assert!(names.len() > 110, "{} files", names.len());
    let mut wrong = Vec::new();
    for name in names {
        let bytes = golden.get(&format!("{name}.file")).unwrap().to_bytes();
        let file = match ImageFile::from_bytes(name, bytes) {
            Ok(file) => file,
            Err(error) => {
                wrong.push(error.to_string());
                continue;
            }
        };
        let (width, height) = file.dimensions();
        let Some(expected) = golden.get(&format!("{name}.rgba")) else {
            decoded_to(name, &file, width, height);
            decoded_to(name, &file, 128, 96);
            continue;
        };
        let (rows, columns) = (expected.shape()[0] as u32, expected.shape()[1] as u32);
        let expected = RgbaImage::from_raw(columns, rows, expected.to_bytes()).unwrap();
        let got = match file.decode() {
            Ok(got) => got,
            Err(error) => {
                wrong.push(error.to_string());
                continue;
            }
        };
        decoded_to(name, &file, width, height);
        let (most, mean) = distances(&got, &expected);
        if most > tolerance(name).0 || mean > tolerance(name).1 {
            wrong.push(format!("{name}, {width}x{height}: off by {most}, {mean} in the mean"));
        }
        // An image one pixel further would be seen.
        if width > 8 && height > 8 && !name.starts_with("tiff.1") {
            let shifted = RgbImage::from_fn(width, height, |x, y| {
                *got.get_pixel((x + 1).min(width - 1), (y + 1).min(height - 1))
            });
            let (most, mean) = distances(&shifted, &expected);
            assert!(most > tolerance(name).0 || mean > tolerance(name).1, "{name}: a shift is not seen");
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Steele and Vigna's splitmix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ bits >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ bits >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ bits >> 31
    }

    /// Of one pixel, narrow, or of any size up to `most`.
    fn side(&mut self, most: u32) -> u32 {
        match self.next() % 8 {
            0 => 1,
            1 => 2 + (self.next() % 7) as u32,
            _ => 1 + (self.next() % u64::from(most)) as u32,
        }
    }

    fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[(self.next() % choices.len() as u64) as usize]
    }

    /// An image of random kind: noise, or one colour.
    fn image(&mut self, width: u32, height: u32) -> DynamicImage {
        let count = width as usize * height as usize;
        let is_flat = self.next().is_multiple_of(4);
        let mut bytes = |channels: usize| -> Vec<u8> {
            (0..count * channels).map(|_| if is_flat { 77 } else { self.next() as u8 }).collect()
        };
        let rgba = RgbaImage::from_raw(width, height, bytes(4)).unwrap();
        let image = DynamicImage::from(rgba);
        match self.next() % 8 {
            0 => image,
            1 => image.to_rgb8().into(),
            2 => image.to_luma8().into(),
            3 => image.to_luma_alpha8().into(),
            4 => image.to_rgb16().into(),
            5 => image.to_rgba16().into(),
            6 => image.to_luma16().into(),
            _ => {
                let noise = (0..count).map(|_| self.next() as u16).collect();
                ImageBuffer::<image::Luma<u16>, _>::from_raw(width, height, noise).unwrap().into()
            }
        }
    }
}

/// A TIFF of one strip of grey samples, each `bits` long, packed as TIFF 6.0 says: across bytes, rows from a byte on.
fn grey_tiff(width: u32, bits: u16, rows: &[Vec<u8>]) -> Vec<u8> {
    let mut packed = Vec::new();
    for row in rows {
        let mut line = vec![0u8; (row.len() * usize::from(bits)).div_ceil(8)];
        let ones = row.iter().enumerate().flat_map(|(index, sample)| {
            (0..usize::from(bits))
                .filter(move |bit| sample >> (usize::from(bits) - 1 - bit) & 1 == 1)
                .map(move |bit| index * usize::from(bits) + bit)
        });
        ones.for_each(|at| line[at / 8] |= 0x80 >> (at % 8));
        packed.extend(line);
    }
    let entries: [(u16, u32); 8] = [
        (0x100, width),
        (0x101, rows.len() as u32),
        (0x102, bits.into()),
        (0x103, 1),
        (0x106, 1),
        (0x111, 8 + 2 + 8 * 12 + 4),
        (0x116, rows.len() as u32),
        (0x117, packed.len() as u32),
    ];
    let mut bytes = [&b"II*\0\x08\0\0\0"[..], &(entries.len() as u16).to_le_bytes()].concat();
    for (tag, value) in entries {
        bytes.extend(tag.to_le_bytes());
        bytes.extend([4, 0, 1, 0, 0, 0]);
        bytes.extend(value.to_le_bytes());
    }
    bytes.extend([0; 4]);
    bytes.extend(packed);
    bytes
}

#[test]
fn tiff_samples_of_every_width() {
    let mut random = Random(102);
    for bits in 1..=8u16 {
        for width in [1, 5, 7, 8, 13] {
            let most = (1u32 << bits) - 1;
            let rows: Vec<Vec<u8>> = (0..4)
                .map(|_| (0..width).map(|_| (random.next() % u64::from(most + 1)) as u8).collect())
                .collect();
            let file = ImageFile::from_bytes("tiff", grey_tiff(width, bits, &rows)).unwrap();
            let image = file.decode().unwrap_or_else(|error| panic!("{bits} bits: {error}"));
            for (x, y, pixel) in image.enumerate_pixels() {
                let grey = (u32::from(rows[y as usize][x as usize]) * 255 / most) as u8;
                assert_eq!(pixel.0, [grey; 3], "{bits} bits, {width} wide, {x},{y}");
            }
        }
    }
}

#[test]
fn random_images_as_another_reader_sees_them_and_within_what_is_planned() {
    let mut random = Random(14);
    let mut compared = 0;
    for number in 0..300 {
        let most = if number % 10 == 0 { 700 } else { 90 };
        let (width, height) = (random.side(most), random.side(most));
        let image = random.image(width, height);
        let format = random.of(&[
            ImageFormat::Png,
            ImageFormat::WebP,
            ImageFormat::Bmp,
            ImageFormat::Tiff,
            ImageFormat::Gif,
            ImageFormat::Jpeg,
        ]);
        let mut bytes = Cursor::new(Vec::new());
        // Not every format has every kind.
        if image.write_to(&mut bytes, format).is_err() {
            continue;
        }
        let bytes = bytes.into_inner();
        let name = format!("{number}: {format:?}, {:?}, {width}x{height}", image.color());
        let expected = image::load_from_memory_with_format(&bytes, format).unwrap().to_rgba8();
        let file = ImageFile::from_bytes("x", bytes).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(file.dimensions(), (width, height), "{name}");
        let whole = decoded_to(&name, &file, width, height);
        let (most, _) = distances(&whole, &expected);
        assert!(most <= 1.0, "{name}: off by {most}");
        let (width, height) = (random.side(200), random.side(200));
        let scaled = decoded_to(&name, &file, width, height);
        let expected = image::imageops::resize(&whole, width, height, image::imageops::FilterType::Lanczos3);
        let (most, _) = distances(&scaled, &DynamicImage::from(expected).to_rgba8());
        assert!(most <= 2.0, "{name} to {width}x{height}: off by {most}");
        compared += 1;
    }
    assert!(compared > 150, "{compared} images");
}

/// Codes of flat images stand for many rows, the last one too.
#[test]
fn flat_gifs() {
    for side in 1..90 {
        for (width, height) in [(side, 90 - side), (side, side), (1 + side * 7 % 13, 30 * side)] {
            let image = DynamicImage::from(RgbImage::from_pixel(width, height, image::Rgb([77, 3, 200])));
            let mut bytes = Cursor::new(Vec::new());
            image.write_to(&mut bytes, ImageFormat::Gif).unwrap();
            let file = ImageFile::from_bytes("x", bytes.into_inner()).unwrap();
            let name = format!("{width}x{height}");
            let (most, _) = distances(&decoded_to(&name, &file, width, height), &image.to_rgba8());
            assert!(most <= 1.0, "{name}: off by {most}");
        }
    }
}

/// Those whose decoders keep more than pixels, so large that it shows: all coefficients of a progressive JPEG, and the tables
/// of a WebP without loss.
#[test]
fn what_decoders_keep_beside_pixels() {
    let mut random = Random(7);
    let (width, height) = (2000, 1500);
    let waves = RgbImage::from_fn(width, height, |x, y| {
        image::Rgb([(x / 8) as u8, (y / 8) as u8, ((x + y) / 16) as u8])
    });
    let mut progressive = Vec::new();
    let mut encoder = jpeg_encoder::Encoder::new(&mut progressive, 80);
    encoder.set_progressive(true);
    encoder.set_sampling_factor(jpeg_encoder::SamplingFactor::F_1_1);
    encoder.encode(waves.as_raw(), width as u16, height as u16, jpeg_encoder::ColorType::Rgb).unwrap();
    let noise =
        RgbImage::from_fn(1000, 1000, |_, _| image::Rgb([random.next() as u8, random.next() as u8, 9]));
    let mut webp = Cursor::new(Vec::new());
    DynamicImage::from(noise).write_to(&mut webp, ImageFormat::WebP).unwrap();
    for (name, bytes) in [("progressive", progressive), ("webp", webp.into_inner())] {
        decoded_to(name, &ImageFile::from_bytes(name, bytes).unwrap(), 128, 96);
    }
}
