//! Upscaling: the built-in upscaler against its reference, networks of other kinds, and `calotype upscale` with images and budgets
//! that it refuses.

#![cfg(all(feature = "cli", feature = "builtin"))]

use std::fs;
use std::io::Cursor;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use calotype::engine::SessionOptions;
use calotype::graph::proto::{DimensionValue, ModelProto, TypeValue};
use calotype::{ErrorKind, Upscaler};
use image::{ImageFormat, Rgb, RgbImage, Rgba, RgbaImage};
use prost::Message as _;
use serde_json::Value;

const MIB: f64 = 1_048_576.0;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/upscaler").join(name)
}

fn options() -> SessionOptions {
    SessionOptions::new(NonZeroUsize::new(2).unwrap())
}

fn upscaled(upscaler: &Upscaler, image: &RgbImage) -> RgbImage {
    upscaler.upscale(image, &options(), |_, _| true).unwrap()
}

fn calotype(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_calotype")).arg("upscale").args(arguments).output().unwrap()
}

/// It ends with this code and message, and leaves no file.
#[track_caller]
fn refuses(arguments: &[&str], code: i32, message: &str) {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out.png");
    let output = calotype(&[arguments, &["-o", out.to_str().unwrap()]].concat());
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{said}");
    assert!(said.contains(message), "{said}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "a failed run left files");
}

fn psnr_db(a: &RgbImage, b: &RgbImage) -> f64 {
    assert_eq!(a.dimensions(), b.dimensions());
    let squares = a.iter().zip(b.iter()).map(|(a, b)| f64::from(a.abs_diff(*b)).powi(2));
    10.0 * (255.0 * 255.0 / (squares.sum::<f64>() / a.len() as f64)).log10()
}

/// The mean of each square of pixels.
fn shrunk(image: &RgbImage, factor: u32) -> RgbImage {
    RgbImage::from_fn(image.width() / factor, image.height() / factor, |x, y| {
        let places = (0..factor * factor).map(|at| (x * factor + at % factor, y * factor + at / factor));
        let sums = places.fold([0; 3], |sums, (x, y)| {
            let pixel = image.get_pixel(x, y).0;
            [0, 1, 2].map(|at| sums[at] + u32::from(pixel[at]))
        });
        Rgb(sums.map(|sum| ((sum + factor * factor / 2) / (factor * factor)) as u8))
    })
}

/// What ncnn makes of the same image with the files that the network was converted from.
#[test]
fn the_built_in_upscaler_is_its_reference() {
    let image = image::open(golden("image.png")).unwrap().to_rgb8();
    let expected = image::open(golden("ncnn.png")).unwrap().to_rgb8();
    let upscaler = Upscaler::built_in().unwrap();
    let got = upscaled(&upscaler, &image);
    assert_eq!((upscaler.factor(), got.dimensions()), (4, (332, 244)));
    let worst = |got: &RgbImage| got.iter().zip(expected.iter()).map(|(a, b)| a.abs_diff(*b)).max();
    assert!(worst(&got) <= Some(1), "{:?} levels", worst(&got));
    assert!(psnr_db(&got, &expected) > 55.0, "{:.1} dB", psnr_db(&got, &expected));
    let shifted = RgbImage::from_fn(332, 244, |x, y| *got.get_pixel((x + 1) % 332, y));
    assert!(worst(&shifted) > Some(20) && psnr_db(&shifted, &expected) < 35.0);
}

/// An enlarged image is the image again when each square of pixels becomes one.
#[test]
fn enlarged_images_shrink_to_their_source() {
    let upscaler = Upscaler::built_in().unwrap();
    let sheet = image::open(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/manual/samplers.png")).unwrap();
    let drawn = sheet.to_rgb8();
    let slopes = RgbImage::from_fn(64, 48, |x, y| Rgb([(3 * x) as u8, (5 * y) as u8, (x + y) as u8]));
    let cut = |x, y| image::imageops::crop_imm(&drawn, x, y, 96, 64).to_image();
    for (name, source) in [("slopes", slopes), ("drawn", cut(200, 200)), ("drawn, elsewhere", cut(420, 330))]
    {
        let large = upscaled(&upscaler, &source);
        let db = psnr_db(&shrunk(&large, 4), &source);
        // 27.0 to 30.7 dB: the network sharpens.
        assert!(db > 26.0, "{name}: {db:.1} dB");
        let shifted = RgbImage::from_fn(source.width(), source.height(), |x, y| {
            *source.get_pixel((x + 1) % source.width(), y)
        });
        let db_shifted = psnr_db(&shrunk(&large, 4), &shifted);
        assert!(db_shifted < db - 3.0, "{name}: {db_shifted:.1} dB of a shift by a pixel");
        // It is not the pixels repeated.
        let repeated = image::imageops::resize(
            &source,
            large.width(),
            large.height(),
            image::imageops::FilterType::Nearest,
        );
        assert!(large != repeated, "{name}");
    }
}

/// Other factors, 16-bit floats, a size that is fixed, and an operator of unknown shapes, all of which repeat pixels: what comes is
/// known exactly, tiles included.
#[test]
fn networks_of_other_kinds() {
    let image = RgbImage::from_fn(203, 131, |x, y| Rgb([x as u8, y as u8, (x * y % 251) as u8]));
    for (name, factor, tolerance) in [("x2", 2, 0), ("x3_half", 3, 1), ("x2_fixed", 2, 0)] {
        let upscaler = Upscaler::open(&golden(&format!("{name}.onnx"))).unwrap();
        assert_eq!(upscaler.factor(), factor, "{name}");
        for image in [image.clone(), image::imageops::crop_imm(&image, 3, 4, 17, 5).to_image()] {
            let large = upscaled(&upscaler, &image);
            assert_eq!(large.dimensions(), (image.width() * factor, image.height() * factor), "{name}");
            for (x, y, pixel) in large.enumerate_pixels() {
                let expected = image.get_pixel(x / factor, y / factor);
                let is_near = (0..3).all(|at| pixel.0[at].abs_diff(expected.0[at]) <= tolerance);
                assert!(is_near, "{name}: ({x}, {y}): {pixel:?} for {expected:?}");
            }
        }
    }
    // The factor is found by a trial.
    let upscaler = Upscaler::open(&golden("x2_unknown.onnx")).unwrap();
    assert_eq!(upscaler.factor(), 2);
    assert_eq!(upscaled(&upscaler, &image).dimensions(), (406, 262));
    let budget = SessionOptions { budget_bytes: Some(8 << 30), ..options() };
    let error = upscaler.upscale(&image, &budget, |_, _| true).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Model, "{error}");
}

#[test]
fn networks_that_are_no_upscalers() {
    for (name, message) in [
        (
            "x1_5.onnx",
            "expected an output that is larger than its input by a whole factor from 1 to 16, got [1, 3, 96, 96]",
        ),
        ("two_inputs.onnx", "expected an upscaler, of one input and one output, got 2 inputs and 1 outputs"),
        ("grey.onnx", "input image: expected [1, 3, height, width] in floats, got"),
        ("image.png", "expected"),
    ] {
        let error = Upscaler::open(&golden(name)).map(drop).expect_err(message);
        assert_eq!(error.kind(), ErrorKind::Model, "{error}");
        assert!(error.to_string().contains(message), "{error}");
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("fixed.onnx");
    for [height, width] in
        [[1 << 16, 66], [66, 1 << 31], [1 << 62, 1 << 62], [65_535, 65_535], [i64::MAX, 128]]
    {
        let mut model = ModelProto::decode(&fs::read(golden("x1_5.onnx")).unwrap()[..]).unwrap();
        let input = &mut model.graph.as_mut().unwrap().input[0];
        let Some(TypeValue::TensorType(of)) = &mut input.r#type.as_mut().unwrap().value else { panic!() };
        let dims = &mut of.shape.as_mut().unwrap().dim;
        for (dim, side) in dims[2..].iter_mut().zip([height, width]) {
            dim.value = Some(DimensionValue::DimValue(side));
        }
        fs::write(&path, model.encode_to_vec()).unwrap();
        let error = Upscaler::open(&path).map(drop).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Model, "{error}");
        assert!(error.to_string().contains("input: expected sides of at most 65535 pixels"), "{error}");
    }
    let (image, missing) = (golden("image.png"), golden("nowhere.onnx"));
    refuses(&[image.to_str().unwrap(), "--model", missing.to_str().unwrap()], 4, "nowhere.onnx");
}

/// A PNG of this size, of which there is only the header and nothing of its pixels.
fn header(width: u32, height: u32) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    RgbImage::new(1, 1).write_to(&mut bytes, ImageFormat::Png).unwrap();
    let mut bytes = bytes.into_inner();
    bytes[16..20].copy_from_slice(&width.to_be_bytes());
    bytes[20..24].copy_from_slice(&height.to_be_bytes());
    let mut crc = flate2::Crc::new();
    crc.update(&bytes[12..29]);
    bytes[29..33].copy_from_slice(&crc.sum().to_be_bytes());
    bytes
}

#[test]
fn images_that_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        fs::write(&path, bytes).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let whole = fs::read(golden("image.png")).unwrap();
    let limit = "expected sides of at most 65535 pixels and 268435456 pixels in all, got 60000x60000";
    for (path, code, message) in [
        (write("60000x60000.png", &header(60_000, 60_000)), 3, limit),
        (write("truncated.png", &whole[..whole.len() / 2]), 3, "truncated.png: expected a complete image"),
        (write("empty.png", b""), 3, "got an empty file"),
        (
            write("enlarged.png", &header(16_384, 16_000)),
            2,
            "expected an enlarged image with sides of at most 65535 pixels and 268435456 pixels in all, got 65536x64000",
        ),
        ("/nowhere/image.png".into(), 3, "/nowhere/image.png"),
    ] {
        refuses(&[&path], code, message);
    }
}

#[test]
fn the_first_frame_of_an_animation() {
    let folder = tempfile::tempdir().unwrap();
    let (path, out) = (folder.path().join("two.gif"), folder.path().join("out.png"));
    let mut encoder = image::codecs::gif::GifEncoder::new(fs::File::create(&path).unwrap());
    for red in [200, 10] {
        let frame = image::Frame::new(RgbaImage::from_pixel(16, 8, Rgba([red, 40, 40, 255])));
        encoder.encode_frame(frame).unwrap();
    }
    drop(encoder);
    let output = calotype(&[path.to_str().unwrap(), "-o", out.to_str().unwrap()]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && said.contains("two.gif: has several frames: only the first is used"),
        "{said}"
    );
    let large = image::open(out).unwrap().to_rgb8();
    assert_eq!(large.dimensions(), (64, 32));
    assert!(large.get_pixel(30, 15).0[0] > 150, "{:?}", large.get_pixel(30, 15));
}

#[test]
fn alpha_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("alpha.png");
    RgbaImage::from_fn(32, 24, |x, _| Rgba([40, 160, 90, if x < 16 { 0 } else { 255 }])).save(&path).unwrap();
    for name in ["out.png", "out.webp", "out.jpg"] {
        let out = folder.path().join(name);
        let output = calotype(&[path.to_str().unwrap(), "-o", out.to_str().unwrap(), "--json"]);
        assert!(output.status.success(), "{output:?}");
        let json: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!((&json["factor"], &json["width"], &json["height"]), (&4.into(), &128.into(), &96.into()));
        let large = image::open(&out).unwrap();
        assert_eq!(large.color().has_alpha(), name != "out.jpg");
        let large = large.to_rgba8();
        let (left, right) = (large.get_pixel(20, 50).0, large.get_pixel(100, 50).0);
        assert!(right[1].abs_diff(160) < 12 && right[3] == 255, "{name}: {right:?}");
        if name == "out.jpg" {
            assert!(left[..3].iter().all(|value| *value > 240), "composited onto white: {left:?}");
        } else {
            assert!(left[3] == 0 && left[1].abs_diff(160) < 12, "{name}: {left:?}");
        }
    }
}

/// A budget is kept by smaller tiles, or refused before anything is decoded, with the one that is enough.
#[test]
#[cfg(target_os = "linux")]
fn budgets_are_kept_or_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image.png");
    RgbImage::from_fn(320, 256, |x, y| Rgb([x as u8, y as u8, 90])).save(&path).unwrap();
    let path = path.to_str().unwrap();
    let out = folder.path().join("out.png");
    let draw = |budget: &[&str]| {
        let output =
            calotype(&[&[path, "--json", "--threads", "2", "-o", out.to_str().unwrap()], budget].concat());
        let json: Value = serde_json::from_slice(&output.stdout).unwrap();
        (output.status.code(), json)
    };
    let (code, refused) = draw(&["--memory", "30MiB"]);
    assert_eq!(code, Some(5), "{refused}");
    let message = refused["error"]["message"].as_str().unwrap();
    let least: f64 = message
        .strip_prefix("memory: expected at least ")
        .and_then(|rest| rest.split_once(" MiB to enlarge an image of 320x256 to 1280x1024, got 30 MiB"))
        .and_then(|(least, _)| least.parse().ok())
        .unwrap_or_else(|| panic!("{message}"));
    let mut tiles = Vec::new();
    for budget in [least + 4.0, least * 1.6, 2000.0] {
        let (code, json) = draw(&["--memory", &format!("{budget}MiB")]);
        assert_eq!(code, Some(0), "{budget}: {json}");
        let number = |name: &str| json["memory"][name].as_f64().unwrap() / MIB;
        let (planned, peak) = (number("planned_bytes"), number("peak_bytes"));
        assert!(peak <= planned && planned <= budget, "{budget}: planned {planned:.1}, measured {peak:.1}");
        tiles.push(json["tiles"].as_u64().unwrap());
    }
    assert!(tiles[0] > tiles[2] && tiles[2] == 1, "{tiles:?}");
}
