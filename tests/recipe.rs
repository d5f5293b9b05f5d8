//! Recipes: JSON and back, what is refused, and images that are made again from their own receipts.

#![cfg(all(feature = "cli", feature = "builtin"))]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use calotype::control::Steering;
use calotype::recipe::{
    ControlImage, Image, NamedControlModel, NamedFile, NamedLora, Provenance, Ran, Receipt, Recipe,
};
use calotype::{ErrorKind, image_file};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

const OLD: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/receipts/version_0.png");

/// Steele et al. 2014, "SplitMix64".
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    fn one<T: Clone>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())].clone()
    }

    /// Something half of the time.
    fn maybe<T>(&mut self, of: impl FnOnce(&mut Self) -> T) -> Option<T> {
        (self.below(2) == 0).then(|| of(self))
    }

    fn unit(&mut self) -> f64 {
        self.next() as f64 / u64::MAX as f64
    }

    fn text(&mut self) -> String {
        let pieces = [
            "a", " ", "\n", "\"", "\\", ",", ":", "é", "🍎", "{", "]", "\u{7f}", "AND", "\t", "Steps: 1",
            "null",
        ];
        (0..self.below(12)).map(|_| self.one(&pieces)).collect()
    }

    fn file(&mut self) -> NamedFile {
        NamedFile {
            path: self.maybe(|r| PathBuf::from(format!("f{}", r.text()))),
            sha256: self.maybe(|r| format!("{:x}", Sha256::digest(r.next().to_le_bytes()))),
        }
    }

    fn files(&mut self) -> Vec<NamedFile> {
        (0..self.below(3)).map(|_| self.file()).collect()
    }

    fn recipe(&mut self) -> Recipe {
        let samplers = ["euler", "ddim", "dpm++2m-sde", "unipc", "lcm", "heun", "euler-a", "tcd"];
        let settings = ["", ":eta=0.37", ":s_noise=1.003"];
        let schedules = [
            "karras",
            "simple",
            "beta:alpha=0.5",
            "trailing",
            "14.6,3,0.1",
            "laplace",
            "karras:final=sigma_min",
        ];
        let methods =
            ["cfg:rescale=0.7", "apg", "mimic:scale=2", "zero-star", "perpendicular", "residual:from=source"];
        Recipe {
            model: self.maybe(Self::file),
            unet: self.maybe(Self::file),
            vae: self.maybe(Self::file),
            text_encoder: self.files(),
            variant: self.maybe(Self::text),
            prediction: self.maybe(|r| r.one(&["epsilon", "v", "sample"]).parse().unwrap()),
            clip_skip: self.maybe(|r| r.below(12)),
            lora: self
                .files()
                .into_iter()
                .map(|file| NamedLora {
                    file,
                    strength: self.unit() as f32 - 0.5,
                    text_encoder_strength: self.maybe(|r| r.unit() as f32),
                })
                .collect(),
            embedding: self.files(),
            control_model: self
                .files()
                .into_iter()
                .map(|file| NamedControlModel { kind: self.one(&["canny", "depth-2"]).into(), file })
                .collect(),
            control: self
                .files()
                .into_iter()
                .map(|file| ControlImage {
                    kind: self.one(&["canny", "depth-2"]).into(),
                    image: Image::Named(file),
                    annotate: self.maybe(|r| r.one(&["canny", "canny,20,90"]).parse().unwrap()),
                    steering: Steering {
                        weight: self.unit() * 20.0 - 10.0,
                        start: self.unit() / 2.0,
                        end: 0.5 + self.unit() / 2.0,
                        mode: self.one(&["balanced", "prompt", "control", "guess"]).parse().unwrap(),
                    },
                })
                .collect(),
            prompt: self.text(),
            negative: self.maybe(Self::text),
            literal: self.below(2) == 0,
            size: self.maybe(|r| format!("{}x{}", 8 + r.below(999), 8 + r.below(999)).parse().unwrap()),
            steps: self.maybe(|r| r.below(1000)),
            stop_after: self.maybe(|r| r.below(1000)),
            guidance: self.maybe(|r| match r.below(2) {
                0 => (r.unit() * 20.0).into(),
                _ => format!("{}x{},{}", r.unit() * 9.0, r.below(9), r.unit()).parse().unwrap(),
            }),
            guidance_method: self.maybe(|r| r.one(&methods).parse().unwrap()),
            guidance_interval: self.maybe(|r| match r.below(2) {
                0 => format!("{}..{}", r.unit(), 1.0 + r.unit()).parse().unwrap(),
                _ => format!("{}%..{}%", r.unit() * 40.0, 50.0 + r.unit() * 50.0).parse().unwrap(),
            }),
            thresholding: self
                .maybe(|r| format!("dynamic:ratio={},max={}", r.unit(), 1.0 + r.unit()).parse().unwrap()),
            init: self.maybe(|r| Image::Named(r.file())),
            mask: self.maybe(|r| match r.below(3) {
                0 => Image::Given(image_file::Mask::InitAlpha),
                _ => Image::Named(r.file()),
            }),
            resize: self.maybe(|r| r.one(&["crop", "pad", "stretch"]).parse().unwrap()),
            extend: self
                .maybe(|r| format!("left={},feather={}", 1 + r.below(99), r.below(9)).parse().unwrap()),
            mask_fit: self.maybe(|r| r.one(&["crop", "stretch"]).parse().unwrap()),
            hires: self.maybe(|r| r.one(&["2x", "1.5x:0.4:pixel"]).parse().unwrap()),
            mask_invert: self.maybe(|r| r.below(2) == 0),
            mask_grow: self.maybe(|r| r.below(99) as i32 - 50),
            mask_blur: self.maybe(|r| r.unit() * 20.0),
            mask_only: self.maybe(|r| r.below(99) as u32),
            soft_mask: self.maybe(|r| r.below(2) == 0),
            keep_outside: self.maybe(|r| r.below(2) == 0),
            strength: self.maybe(Self::unit),
            image_guidance: self.maybe(Self::unit),
            noise_level: self.maybe(|r| r.below(350)),
            sampler: self.maybe(|r| {
                let (sampler, setting) = (r.one(&samplers), r.one(&settings));
                format!("{sampler}{setting}").parse().or_else(|_| sampler.parse()).unwrap()
            }),
            schedule: self.maybe(|r| r.one(&schedules).parse().unwrap()),
            seed: self.maybe(Self::next),
            rng: self.maybe(|r| r.one(&["torch", "philox", "numpy"]).parse().unwrap()),
            variation_seed: self.maybe(Self::next),
            variation_strength: self.maybe(Self::unit),
            ..Recipe::default()
        }
    }
}

#[test]
fn recipes_are_read_as_they_are_written() {
    let mut random = Random(15);
    let mut written = BTreeSet::new();
    for row in 0..2000 {
        let recipe = random.recipe();
        let json = recipe.to_json();
        let read = Recipe::parse("x.json", json.as_bytes())
            .unwrap_or_else(|error| panic!("row {row}: {error}\n{json}"));
        assert_eq!(format!("{read:?}"), format!("{recipe:?}"), "row {row}: {json}");
        assert_eq!(read.to_json(), json);
        let object: Value = serde_json::from_str(&json).unwrap();
        written.extend(object.as_object().unwrap().keys().cloned());
        // The same within a receipt, and from a receipt.
        let provenance = Provenance {
            calotype: "0.1.0".into(),
            model_name: random.text(),
            sigmas: vec![random.unit() * 15.0, 0.0],
            pixels_sha256: random.maybe(|r| r.text()),
            shares: BTreeMap::from([(
                random.text(),
                BTreeMap::from([("OpenVINOExecutionProvider".to_owned(), Ran { nodes: row, partitions: 1 })]),
            )]),
            ..Provenance::default()
        };
        let receipt = Receipt { recipe, provenance: Some(provenance.clone()) };
        let read = Receipt::parse("x.json", receipt.to_json().as_bytes()).unwrap();
        assert_eq!((read.recipe.to_json(), read.provenance), (json, Some(provenance)), "row {row}");
    }
    let fields: BTreeSet<String> = Recipe::fields().iter().map(|field| (*field).to_owned()).collect();
    assert_eq!(written, fields, "fields that the sweep never writes");
}

#[test]
fn what_is_no_recipe_is_refused_with_its_place() {
    let deep = "[".repeat(1_000_000);
    let deep_within = format!("{{\"version\": 1, \"prompt\": {}", "[".repeat(1_000_000));
    let hash = "0".repeat(63);
    for (json, message) in [
        ("", "x.json: expected a recipe as JSON: EOF while parsing a value"),
        ("{\"version\": 1, \"prompt\": \"a", "x.json: expected a recipe as JSON: EOF while parsing a string"),
        (&deep, "x.json: expected a recipe as JSON: recursion limit exceeded"),
        (&deep_within, "x.json: expected a recipe as JSON: recursion limit exceeded"),
        ("[]", "x.json: expected a recipe, an object, got a list"),
        ("1", "x.json: expected a recipe, an object, got a number"),
        ("{}", "x.json: version: expected 1, got none"),
        (
            "{\"version\": 2}",
            "x.json: version: expected 1, got 2; a newer version of calotype may support it",
        ),
        ("{\"version\": \"1\"}", "x.json: version: expected 1, got \"1\""),
        ("{\"version\": 1.5}", "x.json: version: expected 1, got 1.5"),
        ("{\"version\": [1]}", "x.json: version: expected 1, got a list"),
        (
            "{\"version\": 1, \"version\": 1}",
            "x.json: expected every key of an object once, got \"version\" twice",
        ),
        (
            "{\"version\": 1, \"step\": 2}",
            "x.json: step: expected a known field, got this one; did you mean steps?",
        ),
        ("{\"version\": 1, \"colour\": 2}", "x.json: colour: expected a known field, got this one"),
        ("{\"version\": 1, \"steps\": \"20\"}", "x.json: steps: expected a whole number, got string \"20\""),
        ("{\"version\": 1, \"steps\": -1}", "x.json: steps: expected a whole number, got "),
        ("{\"version\": 1, \"steps\": 1e300}", "x.json: steps: expected a whole number, got "),
        ("{\"version\": 1, \"prompt\": null}", "x.json: prompt: expected a text, got "),
        ("{\"version\": 1, \"seed\": 18446744073709551616}", "x.json: seed: expected a whole number, got "),
        ("{\"version\": 1, \"size\": 512}", "x.json: size: expected a text, got "),
        (
            "{\"version\": 1, \"size\": \"512\"}",
            "x.json: size: expected WIDTHxHEIGHT in pixels, like 512x512, got \"512\"",
        ),
        ("{\"version\": 1, \"sampler\": \"eulr\"}", "did you mean euler?"),
        ("{\"version\": 1, \"guidance\": [7]}", "x.json: guidance: expected a number or a text, got a list"),
        ("{\"version\": 1, \"strength\": NaN}", "x.json: strength: expected a number, got "),
        (
            "{\"version\": 1, \"init\": {\"pth\": \"a\"}}",
            "x.json: init.pth: expected a known field, got this one; did you mean path?",
        ),
        ("{\"version\": 1, \"init\": 1}", "x.json: init: expected a path, or an object with a path, got "),
        ("{\"version\": 1, \"init\": \"\"}", "x.json: init: expected a path, got an empty one"),
        (
            &format!("{{\"version\": 1, \"init\": {{\"sha256\": \"{hash}\"}}}}"),
            "x.json: init: sha256: expected 64 hexadecimal digits, got ",
        ),
        (
            "{\"version\": 1, \"lora\": [\"a\", {\"strength\": \"b\"}]}",
            "x.json: lora[1].strength: expected a number, got ",
        ),
        (
            "{\"version\": 1, \"lora\": [{\"path\": \"a\", \"strenth\": 1}]}",
            "x.json: lora[0].strenth: expected a known field, got this one; did you mean strength?",
        ),
        (
            "{\"version\": 1, \"lora\": [{\"path\": \"a\", \"strength\": 1e60}]}",
            "x.json: lora[0]: strength: expected a finite number",
        ),
        ("{\"version\": 1, \"lora\": {}}", "x.json: lora: expected a list, got "),
        ("{\"version\": 1} x", "x.json: expected a recipe as JSON: trailing characters"),
    ] {
        for error in [
            Recipe::parse("x.json", json.as_bytes()).map(drop).expect_err(message),
            Receipt::parse("x.json", json.as_bytes()).map(drop).expect_err(message),
        ] {
            assert_eq!(error.kind(), ErrorKind::Input, "{error}");
            assert!(error.to_string().contains(message), "expected {message:?}, got {:?}", error.to_string());
        }
    }
    for (json, message) in [
        ("{\"version\": 1, \"calotype\": 3}", "x.json: calotype: expected a text, got "),
        ("{\"version\": 1, \"calotype\": \"1\"}", "x.json: model_name: expected a value, got none"),
        ("{\"calotype\": \"0.1.0\", \"colour\": 1}", "x.json: colour: expected a known field"),
        ("{\"calotype\": \"0.1.0\", \"additions\": 1}", "x.json: additions: expected a list, got 1"),
        (
            "{\"calotype\": \"0.1.0\", \"additions\": [1]}",
            "x.json: embedding[0]: expected a path, or an object with a path",
        ),
    ] {
        let error = Receipt::parse("x.json", json.as_bytes()).map(drop).expect_err(message);
        assert!(error.kind() == ErrorKind::Input && error.to_string().starts_with(message), "{error}");
    }
}

#[test]
fn files_may_be_their_paths() {
    let json = br#"{"version": 1, "model": "m", "init": "alpha", "mask": "alpha", "lora": ["l"], "embedding": ["e"]}"#;
    let recipe = Recipe::parse("x.json", json).unwrap();
    assert_eq!(recipe.model, Some(PathBuf::from("m").into()));
    assert_eq!(
        recipe.lora,
        [NamedLora { file: PathBuf::from("l").into(), strength: 1.0, text_encoder_strength: None }]
    );
    assert_eq!(recipe.init.unwrap().named(), Some(&PathBuf::from("alpha").into()));
    assert!(matches!(recipe.mask, Some(Image::Given(image_file::Mask::InitAlpha))));
}

fn calotype(folder: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_calotype"));
    command.current_dir(folder).args(args).output().unwrap()
}

#[track_caller]
fn draws(folder: &Path, args: &[&str]) -> String {
    let said = calotype(folder, &[&["generate"], args].concat());
    let stderr = String::from_utf8(said.stderr).unwrap();
    assert!(said.status.success(), "{args:?}: {stderr}");
    stderr
}

#[track_caller]
fn refuses(folder: &Path, args: &[&str], message: &str) {
    let said = calotype(folder, &[&["generate"], args].concat());
    let stderr = String::from_utf8(said.stderr).unwrap();
    assert!(stderr.contains(message) && !said.status.success(), "expected {message:?}, got {stderr:?}");
}

#[test]
fn every_field_has_its_flag() {
    let help = calotype(Path::new("."), &["generate", "--help"]);
    let help = String::from_utf8(help.stdout).unwrap();
    for field in Recipe::fields() {
        let flag = match *field {
            "version" => continue,
            "prompt" => "[PROMPT]".into(),
            field => format!("--{} ", field.replace('_', "-")),
        };
        assert!(help.contains(&flag) || help.contains(&flag.replace(' ', "[=")), "{flag}");
    }
}

/// A LoRA of rank 1 for some square weight of the built-in U-Net.
fn lora(path: &Path) {
    let unet = concat!(env!("CARGO_MANIFEST_DIR"), "/models/builtin/weights/unet.safetensors");
    let bytes = fs::read(unet).unwrap();
    let end = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..end]).unwrap();
    let (name, shape) = header
        .as_object()
        .unwrap()
        .iter()
        .find(|(name, tensor)| {
            name.ends_with("attn1.to_q.weight") && tensor["shape"].as_array().unwrap().len() == 2
        })
        .map(|(name, tensor)| (name.trim_end_matches(".weight").replace('.', "_"), tensor["shape"].clone()))
        .unwrap();
    let [out, inner] = [0, 1].map(|axis| shape[axis].as_u64().unwrap() as usize);
    let (down, up) = (4 * inner, 4 * out);
    let header = json!({
        format!("lora_unet_{name}.lora_down.weight"): { "dtype": "F32", "shape": [1, inner], "data_offsets": [0, down] },
        format!("lora_unet_{name}.lora_up.weight"): { "dtype": "F32", "shape": [out, 1], "data_offsets": [down, down + up] },
    });
    let header = header.to_string();
    let values = (0..inner + out).flat_map(|index| (0.05f32 * (index % 7) as f32).to_le_bytes());
    let bytes: Vec<u8> =
        (header.len() as u64).to_le_bytes().into_iter().chain(header.bytes()).chain(values).collect();
    fs::write(path, bytes).unwrap();
}

/// Every image is made again from its own receipt to the same bytes, receipt included, without a warning.
#[test]
fn images_are_made_again_from_their_receipts() {
    let folder = TempDir::new().unwrap();
    let here = folder.path();
    image::RgbImage::from_fn(64, 64, |x, y| image::Rgb([(4 * x) as u8, (3 * y) as u8, 90]))
        .save(here.join("init.png"))
        .unwrap();
    image::GrayImage::from_fn(64, 64, |x, _| image::Luma([(4 * x) as u8]))
        .save(here.join("mask.png"))
        .unwrap();
    image::RgbaImage::from_fn(64, 64, |x, _| image::Rgba([9, 99, 200, if x < 30 { 0 } else { 255 }]))
        .save(here.join("alpha.png"))
        .unwrap();
    lora(&here.join("ink.safetensors"));
    fs::create_dir(here.join("loras")).unwrap();
    lora(&here.join("loras/mentioned.safetensors"));
    let size = ["--size", "64x64", "--steps", "3"];
    for args in [
        &["a (red:1.2) apple\nNegative prompt: x, \"q\" é"][..],
        &["x", "--literal", "-n", "a dog", "--guidance", "3.7"],
        &[
            "a\"b",
            "--guidance",
            "7.1x2,1",
            "--guidance-method",
            "cfg:rescale=0.7",
            "--guidance-interval",
            "3%..77%",
        ],
        &["x", "--sampler", "dpm++2m-sde:noise=tree", "--schedule", "karras:rho=5"],
        &["x", "--sampler", "ddim:eta=0.37", "--rng", "philox", "--seed", "18446744073709551615"],
        &["x", "--sampler", "euler-a", "--rng", "numpy"],
        &["x", "--sampler", "unipc", "--schedule", "beta:alpha=0.5"],
        &["x", "--sampler", "heun:s_churn=1.5", "--schedule", "trailing"],
        &["x", "--sampler", "euler", "--schedule", "simple:final=sigma_min"],
        &["x", "--sampler", "lcm"],
        &["x", "--sigmas", "20,5.5,1", "--variation-seed", "9", "--variation-strength", "0.3"],
        &["x", "--thresholding", "dynamic:ratio=0.9"],
        &["x", "--init", "init.png", "--strength", "0.7"],
        &["x", "--init", "init.png"],
        &["x", "--init", "init.png", "--mask", "mask.png", "--keep-outside", "off"],
        &["x", "--init", "init.png", "--mask", "mask.png", "--strength", "0.9"],
        &["x", "--init", "init.png", "--mask", "mask.png", "--mask-only=8", "--mask-blur", "2"],
        &[
            "x",
            "--init",
            "init.png",
            "--mask",
            "mask.png",
            "--mask-only",
            "--mask-invert",
            "--mask-grow",
            "-3",
        ],
        &["x", "--init", "init.png", "--mask", "mask.png", "--soft-mask", "--mask-blur", "9.5"],
        &["x", "--init", "init.png", "--size", "64x128", "--resize", "pad"],
        &["x", "--init", "init.png", "--size", "128x112", "--extend", "left=64,bottom=48,feather=9"],
        &["x", "--init", "alpha.png", "--mask", "alpha"],
        &["x", "--lora", "ink.safetensors@0.8"],
        &["x <lora:mentioned:0.4:0.7>", "--lora-dir", "loras", "--lora", "ink.safetensors"],
    ] {
        let seed: &[&str] = if args.contains(&"--seed") { &[] } else { &["--seed", "5"] };
        let size: &[&str] = match () {
            () if args.contains(&"--sigmas") => &size[..2],
            () if args.contains(&"--size") => &size[2..],
            () => &size,
        };
        let told = draws(here, &[args, seed, size, &["-o", "first.png"]].concat());
        let first = fs::read(here.join("first.png")).unwrap();
        let said = draws(here, &["--from", "first.png", "-o", "again.png"]);
        assert_eq!(said, told, "{args:?}");
        assert!(first == fs::read(here.join("again.png")).unwrap(), "{args:?}");
    }
    // A seed that was random, and other formats.
    for format in ["png", "jpg", "webp"] {
        let [first, again] = ["first", "again"].map(|name| format!("{name}.{format}"));
        let told = draws(here, &["a red \u{1f34e}", "--size", "64x64", "--steps", "2", "-o", &first]);
        assert_eq!(draws(here, &["--from", &first, "-o", &again]), told);
        let bytes = [first, again].map(|name| fs::read(here.join(name)).unwrap());
        assert!(bytes[0] == bytes[1], "{format}");
    }
}

#[test]
fn flags_override_a_receipt() {
    let folder = TempDir::new().unwrap();
    let here = folder.path();
    draws(
        here,
        &["a", "--seed", "5", "--size", "64x64", "--steps", "2", "--literal", "-n", "n", "-o", "a.png"],
    );
    let args = ["b", "--seed", "6", "--guidance", "2", "--literal=false", "--json"];
    let said = calotype(here, &[&["generate", "--from", "a.png"], &args[..]].concat());
    let said: Value = serde_json::from_slice(&said.stdout).unwrap();
    let receipt = &said["images"][0]["receipt"];
    for (field, value) in [
        ("prompt", json!("b")),
        ("seed", json!(6)),
        ("guidance", json!(2.0)),
        ("size", json!("64x64")),
        ("steps", json!(2)),
        ("negative", json!("n")),
        ("literal", Value::Null),
    ] {
        assert_eq!(receipt[field], value, "{field}");
    }
    // The receipt that a program was told is a recipe, too; so is what is on standard input.
    fs::write(here.join("receipt.json"), receipt.to_string()).unwrap();
    draws(here, &["--from", "receipt.json", "-o", "b.png"]);
    draws(here, &["--from", "b.png", "-o", "c.png"]);
    let mut piped = Command::new(env!("CARGO_BIN_EXE_calotype"));
    let mut piped = piped
        .current_dir(here)
        .args(["generate", "--from", "-", "-o", "d.png"])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    piped.stdin.take().unwrap().write_all(&fs::read(here.join("b.png")).unwrap()).unwrap();
    assert!(piped.wait().unwrap().success());
    let bytes = ["b.png", "c.png", "d.png"].map(|name| fs::read(here.join(name)).unwrap());
    assert!(bytes[0] == bytes[1] && bytes[1] == bytes[2]);
    // `plan` takes what `generate` takes.
    let plan = calotype(here, &["plan", "--from", "b.png"]);
    assert!(plan.status.success(), "{plan:?}");
    refuses(
        here,
        &["-", "--from", "-"],
        "PROMPT: expected standard input for one of prompt and --from, got both",
    );
}

#[test]
fn what_is_missing_or_changed_is_told() {
    let folder = TempDir::new().unwrap();
    let here = folder.path();
    image::RgbImage::new(64, 64).save(here.join("init.png")).unwrap();
    lora(&here.join("ink.safetensors"));
    let args = ["x", "--init", "init.png", "--lora", "ink.safetensors", "--steps", "2", "--seed", "1"];
    draws(here, &[&args[..], &["-o", "a.png"]].concat());
    image::RgbImage::from_pixel(64, 64, image::Rgb([200, 9, 9])).save(here.join("init.png")).unwrap();
    let said = draws(here, &["--from", "a.png", "-o", "b.png"]);
    assert!(said.contains("init.png: expected the file of the recipe with SHA-256"), "{said}");
    fs::rename(here.join("init.png"), here.join("moved.png")).unwrap();
    let message =
        "init: expected the file that the image was made with, got none at init.png; give it with --init";
    refuses(here, &["--from", "a.png"], message);
    draws(here, &["--from", "a.png", "--init", "moved.png", "-o", "b.png"]);
    fs::remove_file(here.join("ink.safetensors")).unwrap();
    let message = "lora: expected the file that the image was made with, got none at ink.safetensors; give it with --lora";
    refuses(here, &["--from", "a.png", "--init", "moved.png"], message);

    let json = fs::read(here.join("b.png")).unwrap();
    assert!(json.len() > 100);
    let other = json!({
        "version": 1, "prompt": "x", "steps": 1, "calotype": "0.0.9", "model_name": "calotype-emoji-1", "sigmas": [],
        "provider": "cuda", "onnxruntime": "1.2.3", "model_files": {"x": "y"},
    });
    fs::write(here.join("other.json"), other.to_string()).unwrap();
    let said = draws(here, &["--from", "other.json", "-o", "b.png"]);
    for line in [
        "calotype: expected 0.0.9 as in the receipt, got ",
        "ONNX Runtime: expected 1.2.3 as in the receipt, got ",
        "provider: expected cuda as in the receipt, got cpu",
        "model: expected the files of calotype-emoji-1 as in the receipt, got others",
    ] {
        assert!(said.contains(line), "{line}: {said}");
    }
    for (name, bytes, message) in [
        ("none.png", None, "none.png: No such file"),
        ("empty.png", Some(&b""[..]), "empty.png: expected a recipe as JSON: EOF"),
        ("text.json", Some(b"a red apple"), "text.json: expected a recipe as JSON: "),
        ("text.txt", Some(b" \n"), "text.txt: parameters: expected prompts and settings, got an empty text"),
        ("cut.png", Some(&json[..60]), "cut.png: expected a complete image: it is cut off"),
    ] {
        if let Some(bytes) = bytes {
            fs::write(here.join(name), bytes).unwrap();
        }
        refuses(here, &["--from", name], message);
    }
    let model = json!({ "version": 1, "model": "no.safetensors" });
    fs::write(here.join("model.json"), model.to_string()).unwrap();
    let message = "model: expected the file that the image was made with, got none at no.safetensors; give it with --model";
    refuses(here, &["--from", "model.json"], message);
}

/// An image of before recipes had a version is made again, pixel for pixel.
#[test]
fn receipts_of_before_are_followed() {
    let folder = TempDir::new().unwrap();
    let said = draws(folder.path(), &["--from", OLD, "-o", "new.png"]);
    assert!(said.is_empty() || said.lines().all(|line| line.contains("as in the receipt")), "{said}");
    let pixels = |path: &Path| image::open(path).unwrap().to_rgb8();
    assert!(pixels(Path::new(OLD)) == pixels(&folder.path().join("new.png")));
    // Its pixels are the receipt's; the model's tokenizer is another since it knows emoji.
    let seen = calotype(folder.path(), &["verify", OLD]);
    let message = String::from_utf8_lossy(&seen.stderr);
    assert_eq!(seen.status.code(), Some(3), "{seen:?}");
    assert!(message.contains("with another text_encoder/tokenizer.json"), "{message}");

    let old = json!({
        "calotype": "0.1.0", "model": "my-model", "model_files": null, "pixels_sha256": "0", "prompt": "p",
        "negative": "", "size": "64x64", "sampler": "euler", "schedule": "karras", "sigmas": [2.0, 1.0, 0.0],
        "guidance": 5.0, "seed": 1, "rng": "torch", "provider": "cpu", "onnxruntime": "1.2.3",
        "init": "a".repeat(64), "mask": "alpha", "steps": 9, "strength": 0.5,
        "additions": [{"file": "l", "sha256": "b".repeat(64), "strength": 0.5}, {"file": "e", "sha256": "c".repeat(64)}],
    });
    let Receipt { recipe, provenance } = Receipt::parse("x.json", old.to_string().as_bytes()).unwrap();
    assert_eq!((recipe.steps, recipe.negative.as_deref()), (Some(9), None));
    assert_eq!(recipe.init.unwrap().named().unwrap().sha256, Some("a".repeat(64)));
    assert!(matches!(recipe.mask, Some(Image::Given(image_file::Mask::InitAlpha))));
    assert_eq!(recipe.lora[0].file, NamedFile { path: Some("l".into()), sha256: Some("b".repeat(64)) });
    assert_eq!((recipe.lora[0].strength, recipe.embedding[0].path.as_deref()), (0.5, Some(Path::new("e"))));
    assert_eq!(provenance.unwrap().model_name, "my-model");
    fs::write(folder.path().join("old.json"), old.to_string()).unwrap();
    let message = "model: expected the file that the image was made with, got only the name \"my-model\"; give it with --model";
    refuses(folder.path(), &["--from", "old.json"], message);
}

/// The same PNG without the chunk of a keyword, and with another one in its place.
fn exchanged(png: &[u8], keyword: &[u8], text: &[u8]) -> Vec<u8> {
    let mut out = png[..8].to_vec();
    let mut at = 8;
    while at < png.len() {
        let len = u32::from_be_bytes(png[at..at + 4].try_into().unwrap()) as usize;
        let chunk = &png[at..at + 12 + len];
        if &chunk[4..8] == b"tEXt" && chunk[8..].starts_with(keyword) {
            if !text.is_empty() {
                out.extend((text.len() as u32).to_be_bytes());
                out.extend(b"tEXt");
                out.extend(text);
                out.extend([0; 4]);
            }
        } else {
            out.extend(chunk);
        }
        at += 12 + len;
    }
    out
}

/// An image that has only A1111's text is made again as far as that goes; what it lacks is told.
#[test]
fn parameters_of_other_programs_are_followed() {
    let folder = TempDir::new().unwrap();
    let here = folder.path();
    let args = [
        "a (red:1.2) apple",
        "-n",
        "a dog",
        "--seed",
        "7",
        "--size",
        "64x64",
        "--steps",
        "3",
        "--guidance",
        "4.5",
    ];
    draws(
        here,
        &[&args[..], &["--sampler", "euler-a", "--schedule", "karras:rho=5", "-o", "a.png"]].concat(),
    );
    let drawn = fs::read(here.join("a.png")).unwrap();
    fs::write(here.join("b.png"), exchanged(&drawn, b"calotype\0", b"")).unwrap();
    assert_eq!(draws(here, &["--from", "b.png", "-o", "c.png"]), "");
    assert!(drawn == fs::read(here.join("c.png")).unwrap());

    let foreign = |parameters: &str| {
        let text = [b"parameters\0", parameters.as_bytes()].concat();
        let png = exchanged(&drawn, b"calotype\0", b"");
        fs::write(here.join("d.png"), exchanged(&png, b"parameters\0", &text)).unwrap();
    };
    let settings = "Steps: 2, Sampler: Euler a, CFG scale: 3, Seed: 1, Size: 64x64";
    foreign(&format!("a dog\n{settings}, Hires upscale: 2, Denoising strength: 0.6"));
    let said = draws(here, &["--from", "d.png", "-o", "e.png"]);
    assert_eq!(
        said,
        "calotype: d.png: Hires fix: the second pass runs strength x steps here, in A1111 all of them: the image will differ\n"
    );
    foreign(&format!("a dog\n{settings}, Model: v1-5, Model hash: 6ce0161689"));
    let message = "model: expected the file that the image was made with, got only the name \"v1-5\"; give it with --model";
    refuses(here, &["--from", "d.png"], message);
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/models/builtin");
    let said = draws(here, &["--from", "d.png", "-m", model, "-o", "e.png"]);
    assert!(
        said.contains("model: expected one with SHA-256 6ce0161689... as in the receipt, got "),
        "{said}"
    );
    foreign(&format!("a dog\n{settings}, Denoising strength: 0.5"));
    let message = "init: expected the file that the image was made with, got no path; give it with --init";
    refuses(here, &["--from", "d.png"], message);
    draws(here, &["--from", "d.png", "--init", "a.png", "-o", "e.png"]);
    let png = exchanged(&drawn, b"parameters\0", b"");
    fs::write(here.join("f.png"), exchanged(&png, b"calotype\0", b"workflow\0{}")).unwrap();
    let message = "f.png: expected an image with a receipt or A1111's parameters, got one with a workflow of ComfyUI, which is not read";
    refuses(here, &["--from", "f.png"], message);
    fs::write(here.join("g.txt"), format!("\u{feff}a dog\r\n{settings}")).unwrap();
    draws(here, &["--from", "g.txt", "-o", "e.png"]);
}
