//! Images within a budget: whatever a file says or hides, the program stays within the memory that it was given, or ends
//! with exit code 5 before anything is decoded; and with what a plan asks for it runs. Each run is a process of its own,
//! whose peak the kernel tells.

#![cfg(all(feature = "cli", feature = "builtin"))]
#![cfg(target_os = "linux")]

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Output};

use flate2::Compression;
use flate2::write::ZlibEncoder;
use image::{DynamicImage, GrayImage, ImageFormat, RgbImage, RgbaImage};
use serde_json::Value;

const MIB: f64 = 1048576.0;
/// A budget that the built-in model has room in at its own size, and that large images have not.
const BUDGET: &str = "96MiB";

fn calotype(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_calotype")).args(arguments).output().unwrap()
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

/// Draws from an image; what was planned and what was measured, in MiB, or nothing where the budget was too small.
fn draw(folder: &Path, image: &Path, mask: Option<&Path>, budget: &str) -> Option<(f64, f64)> {
    let out = folder.join("out.png");
    let mut arguments =
        vec!["generate", "a red apple", "--steps", "2", "--seed", "7", "--size", "128x128", "--json"];
    arguments.extend(["--strength", "0.5", "--memory", budget, "-o", out.to_str().unwrap()]);
    arguments.extend(["--init", image.to_str().unwrap()]);
    arguments.extend(mask.iter().flat_map(|mask| ["--mask", mask.to_str().unwrap()]));
    let _ = fs::remove_file(&out);
    let output = calotype(&arguments);
    if output.status.code() == Some(5) {
        assert!(!out.exists());
        return None;
    }
    assert!(output.status.success(), "{}: {output:?}", image.display());
    let json = json(&output);
    let number = |name: &str| json["memory"][name].as_f64().unwrap() / MIB;
    Some((number("planned_bytes"), number("peak_bytes")))
}

/// In a budget that is small for it an image is drawn from within the budget or refused; in the one that the plan asks for
/// it is drawn from, and takes no more than planned.
#[track_caller]
fn holds(folder: &Path, image: &Path) {
    let name = image.file_name().unwrap().display();
    let megabytes: f64 = BUDGET.trim_end_matches("MiB").parse().unwrap();
    if let Some((planned, peak)) = draw(folder, image, None, BUDGET) {
        assert!(
            peak <= planned && planned <= megabytes,
            "{name}: planned {planned:.1}, measured {peak:.1} MiB"
        );
    }
    let path = image.to_str().unwrap();
    let plan = calotype(&["plan", "a red apple", "--size", "128x128", "--init", path, "--json"]);
    let least = json(&plan)["least_bytes"].as_f64().unwrap_or_else(|| panic!("{name}: {plan:?}")) / MIB;
    let budget = format!("{}MiB", least.ceil() + 2.0);
    let (planned, peak) =
        draw(folder, image, None, &budget).unwrap_or_else(|| panic!("{name}: refused {budget}"));
    assert!(peak <= planned, "{name} in {budget}: planned {planned:.1}, measured {peak:.1} MiB");
    // A budget that is too small for decoding is refused with code 5, before anything was taken.
    let decoding = json(&plan)["images_peak_bytes"].as_f64().unwrap() / MIB;
    if decoding > least - 1.0 {
        assert_eq!(draw(folder, image, None, &format!("{}MiB", decoding.floor() - 2.0)), None, "{name}");
    }
}

/// The chunk of a PNG, with its checksum.
fn chunk(kind: &[u8; 4], data: &[u8]) -> Vec<u8> {
    let mut crc = flate2::Crc::new();
    crc.update(kind);
    crc.update(data);
    [&(data.len() as u32).to_be_bytes(), &kind[..], data, &crc.sum().to_be_bytes()].concat()
}

fn compressed(length: usize, byte: u8) -> Vec<u8> {
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::fast());
    let block = vec![byte; 1 << 16];
    let mut left = length;
    while left > 0 {
        let some = left.min(block.len());
        encoder.write_all(&block[..some]).unwrap();
        left -= some;
    }
    encoder.finish().unwrap()
}

/// A PNG of zeros, with chunks between its header and its data.
fn png([width, height]: [usize; 2], bits: u8, color: u8, interlaced: bool, between: &[u8]) -> Vec<u8> {
    let samples = [1, 0, 3, 1, 2, 0, 4][usize::from(color)];
    let row = |pixels: usize| 1 + (pixels * samples * usize::from(bits)).div_ceil(8);
    let passes: &[[usize; 4]] = if interlaced {
        &[[0, 8, 0, 8], [4, 8, 0, 8], [0, 4, 4, 8], [2, 4, 0, 4], [0, 2, 2, 4], [1, 2, 0, 2], [0, 1, 1, 2]]
    } else {
        &[[0, 1, 0, 1]]
    };
    let length = passes.iter().map(|&[x, across, y, down]| {
        let columns = width.saturating_sub(x).div_ceil(across);
        if columns == 0 { 0 } else { row(columns) * height.saturating_sub(y).div_ceil(down) }
    });
    let (w, h) = ((width as u32).to_be_bytes(), (height as u32).to_be_bytes());
    let header = [&w[..], &h, &[bits, color, 0, 0, u8::from(interlaced)]].concat();
    let palette = if color == 3 { chunk(b"PLTE", &[9; 6]) } else { Vec::new() };
    let data = chunk(b"IDAT", &compressed(length.sum(), 0));
    let parts = [&chunk(b"IHDR", &header), between, &palette, &data[..], &chunk(b"IEND", b"")];
    [b"\x89PNG\r\n\x1a\n", &parts.concat()[..]].concat()
}

fn write(folder: &Path, name: &str, bytes: &[u8]) -> std::path::PathBuf {
    let path = folder.join(name);
    fs::write(&path, bytes).unwrap();
    path
}

#[test]
fn large_png_files_are_read_in_rows() {
    let folder = tempfile::tempdir().unwrap();
    for (name, bytes) in [
        ("one bit of 16384x16384", png([16_384, 16_384], 1, 0, false, &[])),
        ("colour with alpha", png([6000, 5000], 8, 6, false, &[])),
        ("16 bits", png([4000, 3000], 16, 6, false, &[])),
        ("palette", png([5000, 5000], 1, 3, false, &[])),
    ] {
        let path = write(folder.path(), name, &bytes);
        let (planned, peak) =
            draw(folder.path(), &path, None, BUDGET).unwrap_or_else(|| panic!("{name}: refused"));
        assert!(peak <= planned && planned <= 96.0, "{name}: planned {planned:.1}, measured {peak:.1} MiB");
    }
    let white = write(folder.path(), "mask", &png([16_384, 16_384], 1, 0, false, &[]));
    let (planned, peak) = draw(folder.path(), &white, Some(&white), BUDGET).expect("a mask is read in rows");
    assert!(peak <= planned && planned <= 96.0, "mask: planned {planned:.1}, measured {peak:.1} MiB");
}

#[test]
fn text_and_profiles_take_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let text = chunk(b"tEXt", &[&b"Comment\0"[..], &vec![b'x'; 60 << 20]].concat());
    let profile = chunk(b"iCCP", &[&b"sRGB\0\0"[..], &compressed(256 << 20, 0)].concat());
    let bomb = chunk(b"zTXt", &[&b"Comment\0\0"[..], &compressed(256 << 20, b'x')].concat());
    let exif = chunk(b"eXIf", &vec![0; 60 << 20]);
    for (name, between) in [("tEXt", text), ("iCCP", profile), ("zTXt", bomb), ("eXIf", exif)] {
        let path = write(folder.path(), name, &png([256, 256], 8, 2, false, &between));
        let (planned, peak) =
            draw(folder.path(), &path, None, BUDGET).unwrap_or_else(|| panic!("{name}: refused"));
        assert!(peak <= planned && planned <= 96.0, "{name}: planned {planned:.1}, measured {peak:.1} MiB");
    }
}

#[test]
fn every_format_is_counted() {
    let folder = tempfile::tempdir().unwrap();
    let noise =
        |x: u32, y: u32| (x.wrapping_mul(2_654_435_761) ^ y.wrapping_mul(40_503)).wrapping_mul(97) as u8;
    let image = RgbImage::from_fn(2600, 1900, |x, y| image::Rgb([(x / 9) as u8, noise(x, y), (y / 7) as u8]));
    let image = DynamicImage::from(image);
    let small = image.crop_imm(0, 0, 1200, 900);
    let alpha =
        RgbaImage::from_fn(1200, 900, |x, y| image::Rgba([noise(x, y), 9, (y / 7) as u8, (x / 5) as u8]));
    let alpha = DynamicImage::from(alpha);
    for (name, image, format) in [
        ("jpeg", &image, ImageFormat::Jpeg),
        ("webp", &small, ImageFormat::WebP),
        ("webp with alpha", &alpha, ImageFormat::WebP),
        ("bmp", &image, ImageFormat::Bmp),
        ("tiff", &image, ImageFormat::Tiff),
        ("tiff with alpha", &alpha, ImageFormat::Tiff),
    ] {
        let path = folder.path().join(name);
        image.save_with_format(&path, format).unwrap();
        holds(folder.path(), &path);
    }
    let grey = GrayImage::from_fn(2000, 2000, |x, y| image::Luma([noise(x, y) / 64]));
    let mut gif = Vec::new();
    let mut encoder =
        gif::Encoder::new(&mut gif, 2000, 2000, &[0, 0, 0, 99, 9, 9, 9, 99, 9, 9, 9, 99]).unwrap();
    encoder
        .write_frame(&gif::Frame {
            width: 2000,
            height: 2000,
            buffer: grey.into_raw().into(),
            ..Default::default()
        })
        .unwrap();
    drop(encoder);
    holds(folder.path(), &write(folder.path(), "gif", &gif));
    holds(folder.path(), &write(folder.path(), "interlaced", &png([3000, 2000], 8, 6, true, &[])));
    for (name, progressive, quality) in [("baseline", false, 90), ("progressive", true, 90)] {
        let mut bytes = Vec::new();
        let mut encoder = jpeg_encoder::Encoder::new(&mut bytes, quality);
        encoder.set_sampling_factor(jpeg_encoder::SamplingFactor::F_2_2);
        encoder.set_progressive(progressive);
        // A camera that was held upright.
        let exif = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0";
        encoder.add_exif_metadata(exif).unwrap();
        encoder.encode(image.as_bytes(), 2600, 1900, jpeg_encoder::ColorType::Rgb).unwrap();
        holds(folder.path(), &write(folder.path(), name, &bytes));
    }
    for progressive in [false, true] {
        let mut bytes = Vec::new();
        let mut encoder = jpeg_encoder::Encoder::new(&mut bytes, 90);
        encoder.set_progressive(progressive);
        let ink: Vec<u8> = alpha.as_bytes().to_vec();
        encoder.encode(&ink, 1200, 900, jpeg_encoder::ColorType::Cmyk).unwrap();
        holds(folder.path(), &write(folder.path(), &format!("cmyk {progressive}"), &bytes));
    }
}

/// Headers that promise what is not there.
#[test]
fn headers_without_data() {
    let folder = tempfile::tempdir().unwrap();
    let head = |width: u32, height: u32| {
        let mut bytes = png([64, 64], 8, 6, false, &[]);
        bytes[16..20].copy_from_slice(&width.to_be_bytes());
        bytes[20..24].copy_from_slice(&height.to_be_bytes());
        let crc = chunk(b"IHDR", &bytes[16..29])[21..].to_vec();
        bytes[29..33].copy_from_slice(&crc);
        bytes
    };
    let out = folder.path().join("out.png");
    for (name, bytes, message) in [
        ("short", &head(16_000, 16_000)[..], "expected a complete image"),
        ("head", &head(16_000, 16_000)[..33], "expected a complete image"),
        ("huge", &head(60_000, 60_000), "expected sides of at most 65535 pixels"),
        ("none", &head(0, 7), "expected an image with pixels, got 0x7"),
    ] {
        let path = write(folder.path(), name, bytes);
        let arguments = [
            "generate",
            "x",
            "--steps",
            "2",
            "--size",
            "64x64",
            "--memory",
            BUDGET,
            "--init",
            path.to_str().unwrap(),
        ];
        let output = calotype(&[&arguments[..], &["-o", out.to_str().unwrap()]].concat());
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(3), "{name}: {said}");
        assert!(said.contains(message), "{name}: {said}");
        assert!(!out.exists());
    }
}

/// The whole image and mask of a run that works at the surroundings of a mask, and what filters of masks take.
#[test]
fn what_is_done_to_masks_is_in_the_plan() {
    let folder = tempfile::tempdir().unwrap();
    let image = write(folder.path(), "image", &png([3000, 2000], 8, 2, false, &[]));
    let mask = folder.path().join("box.png");
    image::GrayImage::from_fn(3000, 2000, |x, y| {
        image::Luma([if (900..1900).contains(&x) && (700..1500).contains(&y) { 255 } else { 0 }])
    })
    .save(&mask)
    .unwrap();
    let out = folder.path().join("out.png");
    let paths = [&image, &mask, &out].map(|path| path.to_str().unwrap());
    for (more, least) in [
        (&["--size", "1024x1024"][..], 0.0),
        (&["--size", "1024x1024", "--mask-blur", "40", "--mask-grow", "-9"], 0.0),
        // 10 bytes for each of 6 million pixels.
        (&["--mask-only", "--size", "128x128"], 60e6 / MIB),
    ] {
        let fixed = [
            "generate", "x", "--steps", "1", "--json", "--init", paths[0], "--mask", paths[1], "-o", paths[2],
        ];
        let plan = [&["plan", "x", "--init", paths[0], "--mask", paths[1], "--json"], more].concat();
        let enough = json(&calotype(&plan))["least_bytes"].as_f64().unwrap() / MIB;
        let budget = format!("{}MiB", enough.ceil() + 2.0);
        let output = calotype(&[&fixed, &["--memory", &budget][..], more].concat());
        assert!(output.status.success(), "{more:?}: {output:?}");
        let json = json(&output);
        let number = |name: &str| json["memory"][name].as_f64().unwrap() / MIB;
        let (planned, peak) = (number("planned_bytes"), number("peak_bytes"));
        assert!(peak <= planned, "{more:?} in {budget}: planned {planned:.1}, measured {peak:.1} MiB");
        assert!(peak > least, "{more:?}: {peak:.1} MiB");
    }
}
