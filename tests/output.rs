//! Finished images in files and on standard output: the extension decides the format, and every format carries the recipe
//! where other programs look for it.

#![cfg(all(feature = "cli", feature = "builtin"))]

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use image::{ImageDecoder as _, ImageFormat};

const PROMPT: &str = "a red apple, caf\u{e9} \u{1f34e}";

fn draw(output: &Path, others: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_calotype"));
    command.args(["generate", PROMPT, "--steps", "1", "--seed", "3", "-o"]).arg(output).args(others);
    command.output().unwrap()
}

/// A1111's text in EXIF's `UserComment`.
fn user_comment(exif: &[u8]) -> String {
    let start = exif.windows(8).position(|bytes| bytes == b"UNICODE\0").expect("a comment") + 8;
    // The tag's entry says how long it is: 0x9286, undefined bytes.
    let entry = exif.windows(4).position(|bytes| bytes == [0x92, 0x86, 0, 7]).expect("an entry");
    let length = u32::from_be_bytes(exif[entry + 4..][..4].try_into().unwrap()) as usize;
    let place = u32::from_be_bytes(exif[entry + 8..][..4].try_into().unwrap()) as usize;
    assert_eq!(place + 8, start);
    let units: Vec<u16> =
        exif[start..][..length - 8].as_chunks().0.iter().map(|two| u16::from_be_bytes(*two)).collect();
    String::from_utf16(&units).unwrap()
}

#[test]
fn the_extension_decides() {
    let folder = tempfile::tempdir().unwrap();
    let mut pixels = Vec::new();
    for (name, format) in [
        ("out.png", ImageFormat::Png),
        ("out", ImageFormat::Png),
        ("out.JPG", ImageFormat::Jpeg),
        ("out.jpeg", ImageFormat::Jpeg),
        ("out.webp", ImageFormat::WebP),
    ] {
        let path = folder.path().join(name);
        let said = draw(&path, &[]);
        assert!(said.status.success(), "{name}: {said:?}");
        let bytes = fs::read(&path).unwrap();
        assert_eq!(image::guess_format(&bytes).unwrap(), format, "{name}");
        let image = image::load_from_memory(&bytes).unwrap().to_rgb8();
        let first = pixels.first().unwrap_or(&image);
        let off: Vec<u8> = first.iter().zip(image.iter()).map(|(a, b)| a.abs_diff(*b)).collect();
        let mean = off.iter().map(|&off| f64::from(off)).sum::<f64>() / off.len() as f64;
        assert!(if format == ImageFormat::Jpeg { mean < 3.0 } else { mean == 0.0 }, "{name}: {mean}");
        let exif = match format {
            ImageFormat::Jpeg => {
                image::codecs::jpeg::JpegDecoder::new(std::io::Cursor::new(&bytes)).unwrap().exif_metadata()
            }
            ImageFormat::WebP => {
                image::codecs::webp::WebPDecoder::new(std::io::Cursor::new(&bytes)).unwrap().exif_metadata()
            }
            _ => Ok(None),
        };
        if let Some(exif) = exif.unwrap() {
            let comment = user_comment(&exif);
            assert!(comment.starts_with(PROMPT) && comment.contains("Steps: 1"), "{name}: {comment}");
            let text = String::from_utf8_lossy(&exif);
            assert!(text.contains("{\"version\":1,") && text.contains("\"seed\":3"), "{name}");
        } else {
            assert_eq!(format, ImageFormat::Png, "{name}: no EXIF");
        }
        pixels.push(image);
    }
}

#[test]
fn other_extensions_are_refused_before_anything_is_opened() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["out.gif", "out.bmp", "out.v2", "out.pngx", "out.tiff"] {
        let path = folder.path().join(name);
        // The model is not there either, and is not what is said.
        let said = draw(&path, &["--model", "/no/such/model"]);
        let message = String::from_utf8(said.stderr).unwrap();
        assert_eq!(said.status.code(), Some(2), "{name}: {message}");
        assert!(message.contains("expected a name in .png, .jpg, .jpeg, .webp"), "{name}: {message}");
        assert!(!path.exists());
    }
}

#[test]
fn standard_output_is_the_image_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("out.png");
    assert!(draw(&path, &[]).status.success());
    let piped = draw(Path::new("-"), &[]);
    assert!(piped.status.success(), "{piped:?}");
    assert!(piped.stdout == fs::read(&path).unwrap(), "the same bytes as in a file, and no others");
    assert!(String::from_utf8(piped.stderr).unwrap().contains("seed 3"));
    for others in [&["--json"][..], &["--count", "2"]] {
        let said = draw(Path::new("-"), others);
        assert_eq!(said.status.code(), Some(2), "{said:?}");
        assert!(!said.stdout.starts_with(b"\x89PNG"));
    }
}
