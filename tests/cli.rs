//! The command line from outside: the real program, its exit codes, its messages, and the files it leaves or does not.

#![cfg(all(feature = "cli", feature = "builtin"))]

use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use calotype::tokenizer::MAX_CHUNKS;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

const BUILT_IN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/models/builtin");

/// An empty folder to draw in.
struct Scratch(TempDir);

impl Scratch {
    fn new() -> Self {
        Self(TempDir::new().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// `calotype generate` with two steps, into `out.png`, unless `args` say otherwise.
    fn command(&self, args: &[impl AsRef<OsStr>]) -> Command {
        let typed = |flag: &str| args.iter().any(|arg| arg.as_ref() == flag);
        let mut command = calotype(&["generate"]);
        if !typed("-o") {
            command.arg("-o").arg(self.path("out.png"));
        }
        if !typed("--steps") {
            command.args(["--steps", "2"]);
        }
        command.args(args);
        command
    }

    fn generate(&self, args: &[impl AsRef<OsStr>]) -> Said {
        Said::of(self.command(args).stdin(Stdio::null()).output().unwrap())
    }

    fn generate_from_stdin(&self, prompt: &[u8]) -> Said {
        let mut command = self.command(&["-"]);
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        // A program that refuses early closes its end.
        let _ = child.stdin.take().unwrap().write_all(prompt);
        Said::of(child.wait_with_output().unwrap())
    }

    /// Runs what must fail, and checks that it leaves nothing behind.
    #[track_caller]
    fn refuses(&self, args: &[impl AsRef<OsStr>], code: i32, messages: &[&str]) {
        self.generate(args).is_refusal(code, messages);
        assert_eq!(self.files(), [""; 0], "a failed run left files");
    }

    /// Runs what must work, with `--json`, and gives the object.
    #[track_caller]
    fn draws(&self, args: &[&str]) -> Value {
        let said = self.generate(&[args, &["--json"]].concat());
        assert_eq!(said.code, Some(0), "{}", said.stderr);
        said.json()
    }

    fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).unwrap()
    }

    fn files(&self) -> Vec<String> {
        let entries = fs::read_dir(self.0.path()).unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

/// What a run said when it ended.
struct Said {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl Said {
    fn of(output: Output) -> Self {
        Self {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    #[track_caller]
    fn is_refusal(&self, code: i32, messages: &[&str]) {
        assert_eq!(self.code, Some(code), "{}", self.stderr);
        for message in messages {
            assert!(self.stderr.contains(message), "expected {message:?} in {:?}", self.stderr);
        }
        assert_eq!(self.stdout, "");
    }

    #[track_caller]
    fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).expect("one JSON object")
    }
}

/// A copy of the built-in model in a folder, to be damaged.
struct Bundle(TempDir);

impl Bundle {
    fn new() -> Self {
        let folder = TempDir::new().unwrap();
        for name in ["", "graphs", "text_encoder", "weights"] {
            let to = folder.path().join(name);
            fs::create_dir_all(&to).unwrap();
            for entry in fs::read_dir(Path::new(BUILT_IN).join(name)).unwrap().map(Result::unwrap) {
                if entry.file_type().unwrap().is_file() {
                    fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
                }
            }
        }
        Self(folder)
    }

    fn path(&self) -> &str {
        self.0.path().to_str().unwrap()
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Changes a file and says nothing to the manifest.
    fn damage(&self, name: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let mut bytes = fs::read(self.file(name)).unwrap();
        change(&mut bytes);
        fs::write(self.file(name), bytes).unwrap();
    }

    fn edit_manifest(&self, change: impl FnOnce(&mut Value)) {
        self.damage("calotype.json", |json| {
            let mut manifest = serde_json::from_slice(json).unwrap();
            change(&mut manifest);
            *json = serde_json::to_vec(&manifest).unwrap();
        });
    }

    /// Changes a file and its record in the manifest.
    fn edit(&self, name: &str, change: impl FnOnce(&mut Vec<u8>)) {
        self.damage(name, change);
        let bytes = fs::read(self.file(name)).unwrap();
        self.edit_manifest(|manifest| {
            manifest["files"][name] = serde_json::json!({
                "len_bytes": bytes.len(),
                "sha256": format!("{:x}", Sha256::digest(&bytes)),
            });
        });
    }

    /// Makes the first element of a weight a NaN.
    fn poison(&self, file: &str, weight: &str) {
        self.edit(file, |bytes| {
            let data_start = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
            let header: Value = serde_json::from_slice(&bytes[8..data_start]).unwrap();
            let found = &header[weight];
            let at = data_start + found["data_offsets"][0].as_u64().unwrap() as usize;
            let nan: &[u8] = match found["dtype"].as_str().unwrap() {
                "F16" => &[0x00, 0x7e],
                "F32" => &[0x00, 0x00, 0xc0, 0x7f],
                other => panic!("no NaN of type {other} is known here"),
            };
            bytes[at..at + nan.len()].copy_from_slice(nan);
        });
    }
}

const UNET: &str = "weights/unet.safetensors";
const TEXT_ENCODER_GRAPH: &str = "graphs/text_encoder.onnx.gz";

fn calotype(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_calotype"));
    command.args(args);
    command
}

fn manifest() -> Value {
    serde_json::from_slice(&fs::read(Path::new(BUILT_IN).join("calotype.json")).unwrap()).unwrap()
}

fn receipts(report: &Value) -> Vec<&Value> {
    report["images"].as_array().unwrap().iter().map(|image| &image["receipt"]).collect()
}

/// Writes a LoRA file for one layer of the built-in model, all of whose numbers are this one.
fn write_lora(path: &Path, number: f32) {
    let bytes = fs::read(Path::new(BUILT_IN).join(UNET)).unwrap();
    let end = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..end]).unwrap();
    let mut tensors = header.as_object().unwrap().iter();
    let is_layer = |tensor: &Value| tensor["shape"].as_array().is_some_and(|shape| shape.len() == 2);
    let (name, tensor) =
        tensors.find(|(name, tensor)| name.ends_with("attn1.to_q.weight") && is_layer(tensor)).unwrap();
    let name = name.trim_end_matches(".weight").replace('.', "_");
    let [out, inner] = [0, 1].map(|axis| tensor["shape"][axis].as_u64().unwrap() as usize);
    let header = json!({
        format!("lora_unet_{name}.lora_down.weight"): { "dtype": "F32", "shape": [1, inner], "data_offsets": [0, 4 * inner] },
        format!("lora_unet_{name}.lora_up.weight"):
            { "dtype": "F32", "shape": [out, 1], "data_offsets": [4 * inner, 4 * (inner + out)] },
    });
    let (header, numbers) = (header.to_string(), number.to_le_bytes().repeat(inner + out));
    fs::write(path, [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &numbers].concat())
        .unwrap();
}

mod addition {
    use super::*;

    #[test]
    fn lora_missing() {
        Scratch::new().refuses(
            &["x", "--lora", "no.safetensors"],
            4,
            &["lora", "no.safetensors: No such file"],
        );
    }

    #[test]
    fn lora_strength_that_is_no_number() {
        for typed in
            ["ink.safetensors@much", "ink.safetensors@", "ink.safetensors@nan", "ink.safetensors@inf"]
        {
            let message = format!("--lora: expected FILE or FILE@W with a number W, got {typed:?}");
            Scratch::new().refuses(&["x", "--lora", typed], 2, &[&message]);
        }
    }

    #[test]
    fn lora_that_is_a_model() {
        let unet = concat!(env!("CARGO_MANIFEST_DIR"), "/models/builtin/weights/unet.safetensors");
        Scratch::new().refuses(&["x", "--lora", unet], 4, &["lora ", "expected a name as kohya's trainers"]);
    }

    #[test]
    fn embedding_missing() {
        Scratch::new().refuses(&["x", "--embedding", "no.safetensors"], 4, &["no.safetensors: No such file"]);
    }
}

mod prompt {
    use super::*;

    #[test]
    fn empty() {
        let scratch = Scratch::new();
        assert_eq!(receipts(&scratch.draws(&["", "--steps", "1"]))[0]["prompt"], "");
        assert_eq!(scratch.files(), ["out.png"]);
    }

    #[test]
    fn with_nul() {
        let scratch = Scratch::new();
        scratch
            .generate_from_stdin(b"an\0apple")
            .is_refusal(2, &["calotype: prompt: expected text, got NUL at byte 2"]);
        assert_eq!(scratch.files(), [""; 0]);
    }

    #[test]
    fn in_invalid_utf8_on_standard_input() {
        let scratch = Scratch::new();
        scratch.generate_from_stdin(b"ap\xffple").is_refusal(
            3,
            &["standard input: expected a prompt in UTF-8: invalid utf-8 sequence of 1 bytes from index 2"],
        );
        assert_eq!(scratch.files(), [""; 0]);
    }

    #[cfg(unix)]
    #[test]
    fn in_invalid_utf8_as_an_argument() {
        use std::os::unix::ffi::OsStrExt;
        Scratch::new().refuses(&[OsStr::from_bytes(b"ap\xffple")], 2, &["invalid UTF-8"]);
    }

    #[test]
    fn endless() {
        let scratch = Scratch::new();
        scratch
            .generate_from_stdin(&vec![b'a'; (1 << 20) + 1])
            .is_refusal(3, &["standard input: expected a prompt of at most 1048576 bytes, got more"]);
        assert_eq!(scratch.files(), [""; 0]);
    }

    #[test]
    fn missing() {
        Scratch::new().refuses(&["--seed", "1"], 2, &["<PROMPT>"]);
    }

    #[test]
    fn on_standard_input_is_the_prompt_without_its_line_end() {
        let scratch = Scratch::new();
        let said = scratch.generate_from_stdin(b"an apple\r\n");
        assert_eq!(said.code, Some(0), "{}", said.stderr);
        assert_eq!(texts(&scratch.read("out.png")).receipt()["prompt"], "an apple");
    }

    #[test]
    fn byte_order_marks_are_no_part_of_it() {
        let scratch = Scratch::new();
        for (typed, negative) in [("\u{feff}an apple", "\u{feff}a dog"), ("an apple", "a dog")] {
            let receipt = receipts(&scratch.draws(&[typed, "-n", negative, "--steps", "1"]))[0].clone();
            assert_eq!((&receipt["prompt"], &receipt["negative"]), (&"an apple".into(), &"a dog".into()));
        }
        let said = scratch.generate_from_stdin("\u{feff}an apple\n".as_bytes());
        assert_eq!(said.code, Some(0), "{}", said.stderr);
        assert_eq!(texts(&scratch.read("out.png")).receipt()["prompt"], "an apple");
        scratch.generate_from_stdin(b"\xff\xfea\0").is_refusal(3, &["; it is UTF-16: save it as UTF-8"]);
    }

    #[test]
    fn values_may_begin_with_a_hyphen() {
        let scratch = Scratch::new();
        for args in [&["-n", "-blue", "a cat"][..], &["--negative=-blue", "a cat"], &["-n=-blue", "a cat"]] {
            let receipt = receipts(&scratch.draws(&[args, &["--steps", "1"]].concat()))[0].clone();
            assert_eq!((&receipt["prompt"], &receipt["negative"]), (&"a cat".into(), &"-blue".into()));
        }
        let said = scratch.generate(&["--steps", "1", "--json", "--", "-blue"]);
        assert_eq!(receipts(&said.json())[0]["prompt"], "-blue");
    }

    #[test]
    fn longer_than_the_context_is_reported() {
        let scratch = Scratch::new();
        let context =
            manifest()["components"]["text_encoder"]["tokenizer"]["context"].as_u64().unwrap() as usize;
        // It goes on in further chunks, as many as there are.
        let [prompt, negative] = ["zebra", "yak"].map(|last| "apple ".repeat(MAX_CHUNKS * context) + last);
        let said = scratch.generate(&[&prompt, "-n", &negative, "--json"]);
        assert_eq!(said.code, Some(0), "{}", said.stderr);
        let report = said.json();
        for (which, key, whole, end) in [
            ("prompt", "cut_prompt", prompt, "apple zebra"),
            ("negative prompt", "cut_negative", negative, "apple yak"),
        ] {
            let cut = report["images"][0][key].as_str().unwrap();
            assert!(cut.ends_with(end) && whole.ends_with(cut) && cut != whole, "{cut}");
            let place = whole.len() - cut.len();
            let line = format!("calotype: {which}: truncated at byte {place}; ignored: {cut:?}\n");
            assert!(said.stderr.contains(&line), "{}", said.stderr);
        }
        assert_eq!(scratch.files(), ["out.png"]);
    }

    #[test]
    fn that_fits_is_not_reported() {
        let scratch = Scratch::new();
        let said = scratch.generate(&["a red apple", "--json"]);
        assert_eq!((said.code, said.stderr.as_str()), (Some(0), ""));
        assert_eq!(said.json()["images"][0]["cut_prompt"], Value::Null);
    }
}

mod number {
    use super::*;

    #[test]
    fn size_not_a_multiple_of_the_factor() {
        let factor_px = manifest()["latents"]["factor_px"].as_u64().unwrap();
        let (width, below, above) = (5 * factor_px + 1, 5 * factor_px, 6 * factor_px);
        Scratch::new().refuses(
            &["x", "--size", &format!("{width}x{below}")],
            2,
            &[&format!(
                "size: expected multiples of {factor_px} pixels, got {width}x{below}; try {below}x{below} or {above}x{below}"
            )],
        );
        Scratch::new().refuses(&["x", "--size", "1x1"], 2, &[&format!("; try {factor_px}x{factor_px}\n")]);
    }

    #[test]
    fn size_zero() {
        for size in ["0x128", "128x0"] {
            let message = format!("size: expected sides of 1 to 8192 pixels, got {size}");
            Scratch::new().refuses(&["x", "--size", size], 2, &[&message]);
        }
    }

    #[test]
    fn size_absurd() {
        let message = "size: expected sides of 1 to 8192 pixels, got 1000000x16";
        Scratch::new().refuses(&["x", "--size", "1000000x16"], 2, &[message]);
        let message = "size: expected WIDTHxHEIGHT in pixels, like 512x512, got \"99999999999x16\"";
        Scratch::new().refuses(&["x", "--size", "99999999999x16"], 2, &[message]);
    }

    #[test]
    fn size_not_a_size() {
        let message = "size: expected WIDTHxHEIGHT in pixels, like 512x512, got \"big\"";
        Scratch::new().refuses(&["x", "--size", "big"], 2, &[message]);
    }

    #[test]
    fn steps_zero() {
        Scratch::new().refuses(&["x", "--steps", "0"], 2, &["steps: expected 1 to 1000, got 0"]);
    }

    #[test]
    fn steps_over_the_curve() {
        let most = manifest()["curve"]["train_timesteps"].as_u64().unwrap();
        let over = (most + 1).to_string();
        let message = format!("steps: expected 1 to {most}, got {over}");
        Scratch::new().refuses(&["x", "--steps", &over], 2, &[&message]);
        Scratch::new().refuses(
            &["x", "--steps", "51", "--sampler", "lcm"],
            2,
            &["steps: expected 1 to 50, got 51"],
        );
    }

    #[test]
    fn steps_not_a_number() {
        Scratch::new().refuses(&["x", "--steps", "many"], 2, &["invalid value 'many' for '--steps <N>'"]);
    }

    #[test]
    fn guidance_not_a_number() {
        Scratch::new().refuses(
            &["x", "--guidance", "NaN"],
            2,
            &["guidance: expected a number from 0 up, got NaN"],
        );
    }

    #[test]
    fn guidance_infinite() {
        Scratch::new().refuses(&["x", "--guidance", "inf"], 2, &["guidance: expected at most 1000, got inf"]);
    }

    #[test]
    fn guidance_negative() {
        Scratch::new().refuses(
            &["x", "--guidance", "-1"],
            2,
            &["guidance: expected a number from 0 up, got -1"],
        );
    }

    #[test]
    fn guidance_beyond_all_models_is_refused() {
        Scratch::new().refuses(
            &["x", "--guidance", "1e300"],
            2,
            &["guidance: expected at most 1000, got 1000"],
        );
    }

    #[test]
    fn negative_prompt_without_guidance() {
        let message =
            "negative prompt: expected guidance other than 1, got 1; at guidance 1 only the prompt is used";
        Scratch::new().refuses(&["x", "-n", "a dog", "--guidance", "1"], 2, &[message]);
    }

    #[test]
    fn sampler_unknown() {
        Scratch::new().refuses(
            &["x", "--sampler", "eluer"],
            2,
            &["sampler: expected one of euler, ", "got \"eluer\"; did you mean euler?"],
        );
    }

    #[test]
    fn seeds_that_do_not_exist() {
        let message = "seed: expected room for 3 consecutive seeds, got 18446744073709551614";
        Scratch::new().refuses(&["x", "--seed", "18446744073709551614", "--count", "3"], 2, &[message]);
        Scratch::new().refuses(&["x", "--seed", "18446744073709551616"], 2, &["for '--seed <N>'"]);
    }

    #[test]
    fn seed_minus_one_is_random() {
        let scratch = Scratch::new();
        let draw = |args: &[&str]| {
            receipts(&scratch.draws(&[&["x", "--steps", "1"], args].concat()))[0]["seed"].clone()
        };
        assert_ne!(draw(&["--seed", "-1"]), draw(&["--seed=-1"]));
        Scratch::new().refuses(&["x", "--seed", "-2"], 2, &["expected 0 to 18446744073709551615, or -1 for"]);
    }

    #[test]
    fn endless_numbers_are_not_told_again() {
        let digits = "9".repeat(400);
        for flag in
            ["--seed", "--steps", "--size", "--guidance", "--strength", "--memory", "--sigmas", "--count"]
        {
            let said = Scratch::new().generate(&["x", flag, &digits, "--json"]);
            assert_eq!(said.code, Some(2), "{flag}: {}", said.stderr);
            let message = said.json()["error"]["message"].to_string();
            assert!(said.stderr.len() < 800 && message.len() < 800, "{flag}: {}", said.stderr);
        }
    }

    #[test]
    fn the_last_seeds_are_seeds() {
        let scratch = Scratch::new();
        let report = scratch.draws(&["x", "--seed", "18446744073709551614", "--count", "2", "--steps", "1"]);
        let seeds: Vec<&Value> = receipts(&report).iter().map(|receipt| &receipt["seed"]).collect();
        assert_eq!(seeds, [u64::MAX - 1, u64::MAX]);
    }

    #[test]
    fn count_out_of_range() {
        for count in ["0", "10001", "18446744073709551616"] {
            Scratch::new().refuses(&["x", "--count", count], 2, &["for '--count <N>'"]);
        }
    }

    #[test]
    fn threads_zero() {
        Scratch::new().refuses(&["x", "--threads", "0"], 2, &["for '--threads <N>'"]);
    }
}

mod init {
    use super::*;

    use image::{DynamicImage, ImageFormat, Luma, RgbImage};

    const PNG: &str = "init.png";

    /// A folder with an image of this size in it.
    fn scratch(width: u32, height: u32) -> (Scratch, String) {
        let scratch = Scratch::new();
        let path = scratch.path(PNG);
        RgbImage::from_pixel(width, height, image::Rgb([200, 30, 30])).save(&path).unwrap();
        (scratch, path.into_os_string().into_string().unwrap())
    }

    #[track_caller]
    fn refuses(scratch: &Scratch, args: &[&str], code: i32, message: &str) {
        let before = scratch.files();
        scratch.generate(&[&["x"], args].concat()).is_refusal(code, &[message]);
        assert_eq!(scratch.files(), before, "a failed run left files");
    }

    #[test]
    fn receipts_say_what_was_drawn_from() {
        let (scratch, init) = scratch(128, 64);
        let report = scratch.draws(&["x", "--init", &init, "--strength", "0.5", "--steps", "4"]);
        let receipt = receipts(&report)[0];
        let named =
            serde_json::json!({ "path": init, "sha256": format!("{:x}", Sha256::digest(scratch.read(PNG))) });
        assert_eq!(receipt["init"], named);
        assert_eq!(receipt.get("mask"), None);
        assert_eq!((&receipt["strength"], &receipt["steps"]), (&0.5.into(), &4.into()));
        assert_eq!(receipt["sigmas"].as_array().unwrap().len(), 3);
        assert_eq!(receipt["size"], "128x64");
        let texts = texts(&scratch.read("out.png"));
        assert_eq!(texts.receipt(), *receipt);
        assert!(texts.parameters.contains("Steps: 4, "), "{}", texts.parameters);
        assert!(texts.parameters.contains(", Denoising strength: 0.5, "), "{}", texts.parameters);
    }

    #[test]
    fn masks_are_in_receipts_and_keep_what_is_black() {
        let (scratch, init) = scratch(64, 64);
        let mask = scratch.path("mask.png");
        image::GrayImage::from_fn(64, 64, |x, _| Luma([if x < 32 { 0 } else { 255 }])).save(&mask).unwrap();
        let report = scratch.draws(&["x", "--init", &init, "--mask", mask.to_str().unwrap()]);
        let receipt = receipts(&report)[0];
        let named = serde_json::json!({ "path": mask, "sha256": format!("{:x}", Sha256::digest(scratch.read("mask.png"))) });
        assert_eq!(receipt["mask"], named);
        assert_eq!(receipt["strength"], 1.0);
        assert_eq!(texts(&scratch.read("out.png")).receipt(), *receipt);
    }

    #[test]
    fn without_a_image_receipts_say_nothing_of_one() {
        let report = Scratch::new().draws(&["x"]);
        let keys = ["init", "mask", "keep_outside", "strength", "image_guidance", "noise_level"];
        assert!(keys.iter().all(|key| receipts(&report)[0].get(key).is_none()), "{report}");
    }

    #[test]
    fn jpeg() {
        let scratch = Scratch::new();
        let path = scratch.path("init.jpg");
        let image = DynamicImage::from(RgbImage::from_pixel(64, 64, image::Rgb([9, 200, 9])));
        image.save_with_format(&path, ImageFormat::Jpeg).unwrap();
        let report = scratch.draws(&["x", "--init", path.to_str().unwrap()]);
        assert_eq!(receipts(&report)[0]["size"], "64x64");
    }

    #[test]
    fn missing() {
        Scratch::new().refuses(
            &["x", "--init", "/nowhere/init.png"],
            3,
            &["/nowhere/init.png: No such file"],
        );
    }

    #[test]
    fn is_a_folder() {
        let scratch = Scratch::new();
        let folder = scratch.0.path().to_str().unwrap();
        refuses(&scratch, &["--init", folder], 3, "Is a directory");
    }

    #[test]
    fn empty() {
        let scratch = Scratch::new();
        fs::write(scratch.path(PNG), b"").unwrap();
        let path = scratch.path(PNG);
        let message = "init.png: expected an image as PNG, JPEG, WebP, GIF, BMP or TIFF, got an empty file";
        refuses(&scratch, &["--init", path.to_str().unwrap()], 3, message);
    }

    #[test]
    fn cut_off() {
        let (scratch, init) = scratch(64, 64);
        let bytes = scratch.read(PNG);
        fs::write(&init, &bytes[..bytes.len() / 2]).unwrap();
        refuses(&scratch, &["--init", &init], 3, "init.png: expected a complete image: ");
    }

    #[test]
    fn of_a_size_that_is_not_made_of_cells() {
        let (scratch, init) = scratch(65, 64);
        let message = "init: its own size: size: expected multiples of 16 pixels, got 65x64; try 64x64 or 80x64; \
                       give --size: it resizes the image";
        refuses(&scratch, &["--init", &init], 2, message);
        scratch.draws(&["x", "--init", &init, "--size", "64x64"]);
    }

    #[test]
    fn mask_of_another_size() {
        let (scratch, init) = scratch(64, 64);
        let mask = scratch.path("mask.png");
        image::GrayImage::new(32, 32).save(&mask).unwrap();
        let mask = mask.to_str().unwrap();
        let message =
            "mask: expected the size of the init image, 64x64, got 32x32; --mask-fit stretch or crop fits it";
        refuses(&scratch, &["--init", &init, "--mask", mask], 2, message);
        let report = scratch.draws(&["x", "--init", &init, "--mask", mask, "--mask-fit", "crop"]);
        assert_eq!(receipts(&report)[0]["mask_fit"], "crop");
        let message = "mask fit: expected stretch or crop, got pad";
        refuses(&scratch, &["--init", &init, "--mask", mask, "--mask-fit", "pad"], 2, message);
    }

    #[test]
    fn all_white_mask() {
        let (scratch, init) = scratch(64, 64);
        let mask = scratch.path("mask.png");
        image::GrayImage::from_pixel(64, 64, Luma([255])).save(&mask).unwrap();
        let mask = mask.to_str().unwrap();
        for more in [&[][..], &["--mask-only"], &["--soft-mask"], &["--mask-blur", "3"]] {
            scratch.draws(&[&["x", "--init", &init, "--mask", mask, "--size", "64x64"], more].concat());
            let drawn = image::open(scratch.path("out.png")).unwrap().to_rgb8();
            let init = image::open(&init).unwrap().to_rgb8();
            assert!(drawn.pixels().zip(init.pixels()).filter(|(a, b)| a == b).count() < 400, "{more:?}");
        }
        // All that is black now.
        let said = scratch.generate(&["x", "--init", &init, "--mask", mask, "--mask-invert"]);
        assert!(said.stderr.contains("mask: has no white areas"), "{}", said.stderr);
        let message =
            "mask only: expected a mask with white areas, whose surroundings are worked at, got none";
        refuses(&scratch, &["--init", &init, "--mask", mask, "--mask-invert", "--mask-only"], 2, message);
    }

    #[test]
    fn strength_of_0_and_1() {
        let (scratch, init) = scratch(64, 64);
        let mask = scratch.path("mask.png");
        image::GrayImage::from_pixel(64, 64, Luma([200])).save(&mask).unwrap();
        let mask = mask.to_str().unwrap();
        for more in [&[][..], &["--mask", mask], &["--mask", mask, "--soft-mask"]] {
            let init = [&["--init", &init][..], more].concat();
            let message =
                "strength: expected enough for a step of 20, got 0; use 0.05 or more, or more steps";
            refuses(&scratch, &[&init[..], &["--steps", "20", "--strength", "0"]].concat(), 2, message);
            let report = scratch.draws(&[&["x"], &init[..], &["--steps", "3", "--strength", "1"]].concat());
            assert_eq!(receipts(&report)[0]["strength"], 1.0);
        }
    }

    #[test]
    fn settings_of_masks_out_of_range() {
        let (scratch, init) = scratch(64, 64);
        let mask = scratch.path("mask.png");
        image::GrayImage::from_pixel(64, 64, Luma([200])).save(&mask).unwrap();
        let both = ["--init", &init, "--mask", mask.to_str().unwrap()];
        for (more, message) in [
            (&["--mask-grow", "1025"][..], "mask grow: expected a number from -1024 to 1024, got 1025"),
            (
                &["--mask-grow", "-2147483648"],
                "mask grow: expected a number from -1024 to 1024, got -2147483648",
            ),
            (&["--mask-blur=-1"], "mask blur: expected a number from 0 to 256, got -1"),
            (&["--mask-blur", "NaN"], "mask blur: expected a number from 0 to 256, got NaN"),
            (&["--resize", "fill"], "resize: expected crop, pad or stretch, got \"fill\""),
            (&["--mask-only", "--resize", "crop"], "resize: expected none with mask only"),
        ] {
            refuses(&scratch, &[&both[..], more].concat(), 2, message);
        }
        for flag in [
            "--mask-fit=crop",
            "--mask-invert",
            "--mask-grow=3",
            "--mask-blur=3",
            "--mask-only",
            "--soft-mask",
        ] {
            let name = flag.trim_start_matches("--").split('=').next().unwrap().replace('-', " ");
            refuses(
                &scratch,
                &["--init", &init, flag],
                2,
                &format!("{name}: expected a mask, got none; give one with --mask"),
            );
        }
        refuses(&scratch, &["--resize", "crop"], 2, "resize: expected an init image, got none");
    }

    /// Nobody asked for it, so it is said.
    #[test]
    fn stretched_images_are_reported() {
        let (scratch, init) = scratch(64, 32);
        let said = scratch.generate(&["x", "--init", &init, "--size", "64x64"]);
        let note = "init: stretched from 64x32 to 64x64; resize crop or pad keeps its proportions";
        assert!(said.stderr.contains(note), "{}", said.stderr);
        for how in ["crop", "pad", "stretch"] {
            let said = scratch.generate(&["x", "--init", &init, "--size", "64x64", "--resize", how]);
            assert!(said.code == Some(0) && !said.stderr.contains("init:"), "{}", said.stderr);
            assert_eq!(texts(&scratch.read("out.png")).receipt()["resize"], how);
        }
        let said = scratch.generate(&["x", "--init", &init, "--size", "128x64"]);
        assert!(!said.stderr.contains("init:"), "{}", said.stderr);
    }

    #[test]
    fn mask_without_white() {
        let (scratch, init) = scratch(64, 64);
        let mask = scratch.path("mask.png");
        image::GrayImage::new(64, 64).save(&mask).unwrap();
        let said = scratch.generate(&["x", "--init", &init, "--mask", mask.to_str().unwrap()]);
        assert_eq!(said.code, Some(0), "{}", said.stderr);
        assert!(
            said.stderr.contains("mask: has no white areas, so that nothing is repainted"),
            "{}",
            said.stderr
        );
        let drawn = image::open(scratch.path("out.png")).unwrap().to_rgb8();
        assert_eq!(drawn, image::open(init).unwrap().to_rgb8());
    }

    /// The transparent half is repainted, and the other keeps its pixels.
    #[test]
    fn own_transparency_as_the_mask() {
        let scratch = Scratch::new();
        let init = scratch.path(PNG);
        image::RgbaImage::from_fn(64, 64, |x, _| image::Rgba([200, 30, 30, if x < 32 { 255 } else { 0 }]))
            .save(&init)
            .unwrap();
        let report = scratch.draws(&["x", "--init", init.to_str().unwrap(), "--mask", "alpha"]);
        assert_eq!(receipts(&report)[0]["mask"], "alpha");
        let drawn = image::open(scratch.path("out.png")).unwrap().to_rgb8();
        let is_kept = |x: u32| (0..64).all(|y| drawn.get_pixel(x, y).0 == [200, 30, 30]);
        assert!((0..32).all(is_kept), "pixels outside of the mask changed");
        assert!(!(32..64).any(is_kept), "nothing was repainted");
    }

    #[test]
    fn strength_without_it() {
        Scratch::new().refuses(
            &["x", "--strength", "0.5"],
            2,
            &["strength: expected an init image, got none"],
        );
    }

    #[test]
    fn what_the_built_in_model_does_not_draw_from() {
        let (scratch, init) = scratch(64, 64);
        let editing = "image guidance: expected none, because this model does not edit images, got one";
        refuses(&scratch, &["--init", &init, "--image-guidance", "1.5"], 2, editing);
        let enlarging = "noise level: expected none, because this model does not upscale images, got one";
        refuses(&scratch, &["--init", &init, "--noise-level", "20"], 2, enlarging);
    }
}

mod output {
    use super::*;

    #[test]
    fn folder_missing() {
        let scratch = Scratch::new();
        let out = scratch.path("none/out.png");
        let message = format!("{}: expected a folder that can be written to: No such file", out.display());
        scratch.refuses(&["x", "-o", out.to_str().unwrap()], 9, &[&message]);
    }

    /// Not even root can make a file in `/proc`.
    #[cfg(target_os = "linux")]
    #[test]
    fn folder_read_only() {
        let message = "/proc/out.png: expected a folder that can be written to: ";
        Scratch::new().refuses(&["x", "-o", "/proc/out.png"], 9, &[message]);
    }

    #[test]
    fn is_a_folder() {
        let (scratch, folder) = (Scratch::new(), TempDir::new().unwrap());
        for path in [folder.path().to_owned(), folder.path().join("none/"), folder.path().join("..")] {
            let path = path.to_str().unwrap();
            let message = format!("{path}: expected a file, got a folder; add a file name: OUT.png");
            scratch.refuses(&["x", "-o", path], 9, &[&message]);
            scratch.refuses(&["x", "-o", path, "--count", "3"], 9, &[&message]);
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn is_inside_a_file() {
        let out = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml/out.png");
        Scratch::new().refuses(&["x", "-o", out], 9, &["Cargo.toml/out.png: expected a path for a file: "]);
    }

    /// By way of a link, so that a program that replaced what it cannot write to would replace the link alone.
    #[cfg(target_os = "linux")]
    #[test]
    fn disk_full() {
        let folder = TempDir::new().unwrap();
        let full = folder.path().join("full.png");
        std::os::unix::fs::symlink("/dev/full", &full).unwrap();
        let full = full.to_str().unwrap();
        let message = format!("{full}: the image could not be written: No space left on device");
        Scratch::new().refuses(&["x", "-o", full], 9, &[&message]);
        assert_eq!(fs::read_link(full).unwrap(), Path::new("/dev/full"), "the device was replaced");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    /// A limit on the size of files ends the writing in the middle, as a disk that fills up does. An emulator writes the
    /// list of mappings that the C library reads at the start, some 8 KiB, to such a file too.
    #[cfg(unix)]
    #[test]
    fn disk_full_halfway() {
        let scratch = Scratch::new();
        fs::write(scratch.path("out.png"), "precious").unwrap();
        let image = scratch.command(&["x"]);
        let limited = "ulimit -f 20; exec \"$@\"";
        let mut shell = Command::new("sh");
        shell.args(["-c", limited, "sh"]).arg(image.get_program()).args(image.get_args());
        let said = Said::of(shell.output().unwrap());
        said.is_refusal(9, &["out.png: the image could not be written: File too large"]);
        assert_eq!(scratch.read("out.png"), b"precious");
        assert_eq!(scratch.files(), ["out.png"]);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn standard_output_full() {
        let scratch = Scratch::new();
        let full = fs::File::options().write(true).open("/dev/full").unwrap();
        let said = scratch.command(&["x"]).stdout(full).output().unwrap();
        Said::of(said).is_refusal(9, &["calotype: standard output: No space left on device"]);
        assert_eq!(scratch.files(), ["out.png"]);
    }

    /// As with `| head -c 10`: whoever closes the pipe has read enough.
    #[cfg(unix)]
    #[test]
    fn standard_output_that_is_closed_early() {
        let scratch = Scratch::new();
        for args in [&["-o", "-"][..], &["--json"]] {
            let mut command = scratch.command(&[&["a red apple"], args].concat());
            let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
            drop(child.stdout.take());
            let said = Said::of(child.wait_with_output().unwrap());
            assert_eq!(said.code, Some(0), "{args:?}: {}", said.stderr);
            assert!(!said.stderr.contains("calotype:"), "{args:?}: {}", said.stderr);
        }
    }

    #[test]
    fn existing_file_survives_a_failing_run() {
        let (scratch, bundle) = (Scratch::new(), Bundle::new());
        bundle.poison(UNET, "conv_out.weight");
        fs::write(scratch.path("out.png"), "precious").unwrap();
        scratch.generate(&["x", "-m", bundle.path()]).is_refusal(8, &[]);
        scratch.generate(&["x", "--steps", "0"]).is_refusal(2, &[]);
        assert_eq!(scratch.read("out.png"), b"precious");
        assert_eq!(scratch.files(), ["out.png"]);
    }

    #[cfg(unix)]
    #[test]
    fn permissions_are_those_of_the_file_or_of_a_new_one() {
        use std::os::unix::fs::PermissionsExt;
        let scratch = Scratch::new();
        let mode = |name: &str| fs::metadata(scratch.path(name)).unwrap().permissions().mode() & 0o7777;
        for bits in [0o600, 0o640, 0o666, 0o777] {
            fs::write(scratch.path("out.png"), "precious").unwrap();
            fs::set_permissions(scratch.path("out.png"), fs::Permissions::from_mode(bits)).unwrap();
            scratch.draws(&["x", "--steps", "1"]);
            assert_eq!(mode("out.png"), bits);
        }
        fs::remove_file(scratch.path("out.png")).unwrap();
        for (mask, bits) in [("077", 0o600), ("002", 0o664)] {
            let (image, mut shell) = (scratch.command(&["x", "--steps", "1"]), Command::new("sh"));
            shell.args(["-c", &format!("umask {mask}; exec \"$@\""), "sh"]);
            assert!(shell.arg(image.get_program()).args(image.get_args()).status().unwrap().success());
            assert_eq!(mode("out.png"), bits, "{mask}");
            fs::remove_file(scratch.path("out.png")).unwrap();
        }
    }

    #[cfg(unix)]
    #[test]
    fn links_are_followed() {
        use std::os::unix::fs::symlink;
        let (scratch, folder) = (Scratch::new(), TempDir::new().unwrap());
        fs::write(folder.path().join("there.png"), "old").unwrap();
        symlink(folder.path().join("there.png"), scratch.path("b.png")).unwrap();
        symlink("b.png", scratch.path("a.png")).unwrap();
        symlink("new.png", scratch.path("dangling.png")).unwrap();
        symlink("loop.png", scratch.path("loop.png")).unwrap();
        for name in ["a.png", "dangling.png"] {
            let path = scratch.path(name);
            scratch.draws(&["x", "--steps", "1", "-o", path.to_str().unwrap()]);
            assert!(fs::read_link(&path).is_ok(), "{name} was replaced");
        }
        assert!(fs::read(folder.path().join("there.png")).unwrap().starts_with(b"\x89PNG"));
        assert!(scratch.read("new.png").starts_with(b"\x89PNG"));
        let path = scratch.path("loop.png");
        scratch.generate(&["x", "-o", path.to_str().unwrap()]).is_refusal(9, &["loop.png: expected a path"]);
        assert_eq!(scratch.files(), ["a.png", "b.png", "dangling.png", "loop.png", "new.png"]);
    }

    /// Whatever kills a run: there is nothing to leave behind until the image is whole.
    #[cfg(target_os = "linux")]
    #[test]
    fn no_name_is_there_before_the_image_is_whole() {
        let scratch = Scratch::new();
        let mut child = scratch.command(&["x", "--steps", "1", "--count", "3"]).spawn().unwrap();
        while child.try_wait().unwrap().is_none() {
            for name in scratch.files() {
                assert!(name.starts_with("out-"), "{name}");
                // The file may only be there whole.
                assert!(scratch.read(&name).ends_with(b"IEND\xaeB`\x82"), "{name}");
            }
        }
        assert_eq!(scratch.files().len(), 3);
    }

    #[test]
    fn leftovers_of_killed_runs_are_swept_out() {
        let scratch = Scratch::new();
        for name in
            ["left0123456789ab", "held0123456789ab"].map(|name| format!(".calotype-{name}.tmp")).iter()
        {
            fs::write(scratch.path(name), "half").unwrap();
        }
        fs::write(scratch.path(".calotype-mine.tmp"), "a name that is not of ours").unwrap();
        let held = fs::File::open(scratch.path(".calotype-held0123456789ab.tmp")).unwrap();
        held.lock().unwrap();
        scratch.draws(&["x", "--steps", "1"]);
        assert_eq!(scratch.files(), [".calotype-held0123456789ab.tmp", ".calotype-mine.tmp", "out.png"]);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn devices_take_every_image() {
        let before = fs::read_dir("/dev").unwrap().count();
        let scratch = Scratch::new();
        scratch.refuses(&["x", "-o", "/dev/full", "--count", "3"], 9, &["/dev/full: the image could not be"]);
        let report = scratch.draws(&["x", "-o", "/dev/null", "--count", "2", "--steps", "1"]);
        assert_eq!(report["images"][1]["file"], "/dev/null");
        assert_eq!(fs::read_dir("/dev").unwrap().count(), before);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn what_was_done_is_reported_when_a_later_image_fails() {
        let scratch = Scratch::new();
        std::os::unix::fs::symlink("/dev/full", scratch.path("out-2.png")).unwrap();
        let said = scratch.generate(&["x", "--steps", "1", "--seed", "4", "--count", "3", "--json"]);
        assert_eq!(said.code, Some(9));
        let report = said.json();
        assert_eq!(receipts(&report).iter().map(|receipt| &receipt["seed"]).collect::<Vec<_>>(), [4]);
        assert_eq!(report["error"]["exit_code"], 9);
        assert!(report["error"]["message"].as_str().unwrap().contains("out-2.png"));
        let said = scratch.generate(&["x", "--steps", "1", "--seed", "4", "--count", "3"]);
        assert_eq!(said.stdout, format!("{} (seed 4)\n", scratch.path("out-1.png").display()));
    }

    #[test]
    fn existing_file_is_replaced_by_the_image() {
        let scratch = Scratch::new();
        fs::write(scratch.path("out.png"), "precious").unwrap();
        scratch.draws(&["x"]);
        assert!(scratch.read("out.png").starts_with(b"\x89PNG"));
        assert_eq!(scratch.files(), ["out.png"]);
    }
}

mod model {
    use std::io::Read;

    use calotype::graph::proto::{GraphProto, ModelProto};
    use flate2::Compression;
    use flate2::read::GzDecoder;
    use flate2::write::GzEncoder;
    use prost::Message;

    use super::*;

    #[track_caller]
    fn is_refused(bundle: &Bundle, messages: &[&str]) {
        Scratch::new().refuses(&["x", "-m", bundle.path()], 4, messages);
    }

    #[test]
    fn missing() {
        let message = "calotype: model no/such/model: No such file or directory";
        Scratch::new().refuses(&["x", "-m", "no/such/model"], 4, &[message]);
    }

    #[test]
    fn is_a_file() {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
        let message =
            "Cargo.toml: expected weights (safetensors or GGUF), got text; download the file itself";
        Scratch::new().refuses(&["x", "-m", file], 4, &[message]);
    }

    #[test]
    fn errors_name_file_and_tensor() {
        let error = |args: &[&str]| {
            let scratch = Scratch::new();
            let said = scratch.generate(&[args, &["x", "--json"]].concat());
            assert_ne!(said.code, Some(0));
            let error = said.json()["error"].clone();
            ["file", "tensor"].map(|part| error[part].as_str().unwrap_or_default().to_owned())
        };
        let text = String::from;
        assert_eq!(error(&["--init", "no/such.png"]), [text("no/such.png"), text("")]);
        assert_eq!(error(&["-m", "no/such"]), [text("no/such"), text("")]);
        assert_eq!(error(&["-o", "no/such/a.png"]), [text("no/such/a.png"), text("")]);
        assert_eq!(error(&["--lora", "no such"]), [text("no such"), text("")]);
        assert_eq!(error(&["--steps", "0"]), [text(""), text("")]);
        let bundle = Bundle::new();
        let graph = bundle.file("graphs/unet.onnx.gz");
        bundle.damage("graphs/unet.onnx.gz", |bytes| bytes.truncate(100));
        let [file, _] = error(&["-m", bundle.path()]);
        assert_eq!(Path::new(&file), graph);
        let bundle = Bundle::new();
        let weights = bundle.file(UNET);
        // The first tensor is given a type that there is not.
        bundle.edit(UNET, |bytes| {
            let at = bytes.windows(5).position(|text| text == b"\"F16\"").unwrap();
            bytes[at..at + 5].copy_from_slice(b"\"F99\"");
        });
        let [file, tensor] = error(&["-m", bundle.path()]);
        assert_eq!(Path::new(&file), weights);
        assert!(tensor.contains('.'), "{tensor}");
    }

    #[test]
    fn folder_without_a_manifest() {
        let bundle = Bundle(TempDir::new().unwrap());
        let message = "expected a calotype.json (a bundle), a unet/config.json (a diffusers folder) or a \
                       unet/model.onnx (an ONNX folder), got an empty folder";
        is_refused(&bundle, &[message]);
    }

    /// As some published folders are: the safetensors are taken, and what is wrong is what is wrong with them.
    #[test]
    fn folder_with_both_forms_of_weights() {
        let bundle = Bundle(TempDir::new().unwrap());
        fs::create_dir(bundle.file("unet")).unwrap();
        fs::write(bundle.file("unet/config.json"), "{}").unwrap();
        fs::write(bundle.file("unet/model.onnx"), "").unwrap();
        is_refused(&bundle, &["unet/model.onnx: expected an ONNX model"]);
        fs::write(bundle.file("unet/diffusion_pytorch_model.safetensors"), "").unwrap();
        is_refused(&bundle, &["missing are scheduler, vae, text_encoder; got unet"]);
    }

    #[test]
    fn weights_missing() {
        let bundle = Bundle::new();
        fs::remove_file(bundle.file(UNET)).unwrap();
        is_refused(&bundle, &["weights/unet.safetensors: No such file or directory"]);
    }

    #[test]
    fn weights_truncated() {
        let bundle = Bundle::new();
        bundle.damage(UNET, |bytes| {
            bytes.pop();
        });
        let len = fs::metadata(bundle.file(UNET)).unwrap().len();
        let message =
            format!("weights/unet.safetensors: expected {} bytes, got {len}; the file is damaged", len + 1);
        is_refused(&bundle, &[&message]);
    }

    #[test]
    fn weights_with_a_flipped_bit() {
        let bundle = Bundle::new();
        bundle.damage(UNET, |bytes| *bytes.last_mut().unwrap() ^= 1);
        is_refused(&bundle, &["weights/unet.safetensors: expected SHA-256 ", "; the file is damaged"]);
    }

    #[test]
    fn weights_of_another_graph() {
        let bundle = Bundle::new();
        let vae = fs::read(bundle.file("weights/vae_decoder.safetensors")).unwrap();
        bundle.edit(UNET, |bytes| *bytes = vae);
        is_refused(&bundle, &["unet: expected ", " weights, got ", "missing are "]);
    }

    #[test]
    fn weights_with_a_nan() {
        let bundle = Bundle::new();
        bundle.poison(UNET, "conv_out.weight");
        let messages = [
            "unet: expected finite numbers in step 1, got NaN",
            "it computes in 32-bit floats or integers already",
        ];
        Scratch::new().refuses(&["x", "-m", bundle.path()], 8, &messages);
    }

    #[test]
    fn text_encoder_with_a_nan() {
        let bundle = Bundle::new();
        bundle.poison("weights/text_encoder.safetensors", "text_model.encoder.layers.1.mlp.fc2.weight");
        let message = "text_encoder: expected finite states, got NaN";
        Scratch::new().refuses(&["x", "-m", bundle.path()], 8, &[message]);
    }

    #[test]
    fn vae_decoder_with_a_nan() {
        let bundle = Bundle::new();
        bundle.poison("weights/vae_decoder.safetensors", "decoder.layers.16.bias");
        let message = "vae_decoder: expected finite pixels, got NaN at (0, 0)";
        Scratch::new().refuses(&["x", "-m", bundle.path()], 8, &[message]);
    }

    #[cfg(unix)]
    #[test]
    fn weights_that_are_a_pipe() {
        let bundle = Bundle::new();
        fs::remove_file(bundle.file(UNET)).unwrap();
        assert!(Command::new("mkfifo").arg(bundle.file(UNET)).status().unwrap().success());
        is_refused(&bundle, &["weights/unet.safetensors: expected a regular file, got another kind"]);
    }

    #[test]
    fn manifest_that_is_no_json() {
        let bundle = Bundle::new();
        bundle.damage("calotype.json", Vec::clear);
        is_refused(&bundle, &["calotype.json: expected a manifest, got an error at", "EOF while parsing"]);
    }

    #[test]
    fn manifest_without_a_field() {
        let bundle = Bundle::new();
        bundle.edit_manifest(|manifest| {
            manifest["latents"].as_object_mut().unwrap().remove("scale");
        });
        is_refused(&bundle, &["calotype.json: ", "an error at latents: missing field `scale`"]);
    }

    #[test]
    fn manifest_with_a_field_of_the_wrong_type() {
        let bundle = Bundle::new();
        bundle.edit_manifest(|manifest| manifest["defaults"]["steps"] = "twenty".into());
        is_refused(&bundle, &["an error at defaults.steps: invalid type: string \"twenty\""]);
    }

    #[test]
    fn manifest_with_an_unknown_field() {
        let bundle = Bundle::new();
        bundle.edit_manifest(|manifest| manifest["curve"]["colour"] = 1.into());
        is_refused(&bundle, &["an error at curve.colour: unknown field `colour`"]);
    }

    #[test]
    fn manifest_that_leads_outside() {
        let bundle = Bundle::new();
        bundle.edit_manifest(|manifest| {
            let record = manifest["files"][UNET].clone();
            manifest["files"]["../outside"] = record;
            manifest["components"]["unet"]["weights"][0] = "../outside".into();
        });
        is_refused(&bundle, &["files: expected names inside the bundle, got \"../outside\""]);
    }

    /// The text encoder's graph under another input name, as the model's other graphs would be broken.
    #[test]
    fn graph_with_a_renamed_input() {
        let bundle = Bundle::new();
        bundle
            .edit(TEXT_ENCODER_GRAPH, |bytes| edit_graph(bytes, |graph| rename(graph, "input_ids", "words")));
        is_refused(
            &bundle,
            &[
                "text_encoder: input input_ids: expected I64[batch, ",
                "got none of that name",
                "manifest does not match graph",
            ],
        );
    }

    #[test]
    fn graph_whose_input_is_missing() {
        let bundle = Bundle::new();
        bundle.edit(TEXT_ENCODER_GRAPH, |bytes| edit_graph(bytes, |graph| graph.input.clear()));
        is_refused(&bundle, &["text_encoder: input input_ids: expected ", "got none of that name"]);
    }

    /// A manifest that agrees with such a graph: what it is for is plain from its shape and type.
    #[test]
    fn graph_and_manifest_with_a_renamed_input() {
        let bundle = Bundle::new();
        bundle
            .edit(TEXT_ENCODER_GRAPH, |bytes| edit_graph(bytes, |graph| rename(graph, "input_ids", "words")));
        bundle.edit_manifest(|manifest| {
            let inputs = manifest["components"]["text_encoder"]["inputs"].as_object_mut().unwrap();
            let port = inputs.remove("input_ids").unwrap();
            inputs.insert("words".into(), port);
        });
        Scratch::new().draws(&["x", "-m", bundle.path()]);
        let inspected = Said::of(calotype(&["inspect", bundle.path()]).output().unwrap());
        let line = "in  words: I64[batch, tokens] = token ids (the only one of its rank and type)";
        assert!(inspected.stdout.contains(line), "{}", inspected.stdout);
    }

    #[test]
    fn graph_that_is_not_gzipped() {
        let bundle = Bundle::new();
        bundle.edit(TEXT_ENCODER_GRAPH, |bytes| *bytes = b"not a graph".to_vec());
        is_refused(&bundle, &["graphs/text_encoder.onnx.gz: expected a gzipped graph"]);
    }

    #[test]
    fn a_whole_copy_draws_what_the_built_in_model_draws() {
        let (scratch, bundle) = (Scratch::new(), Bundle::new());
        scratch.draws(&["a red apple", "--seed", "1", "-m", bundle.path()]);
        let pixels = || image::open(scratch.path("out.png")).unwrap().to_rgb8();
        let copied = pixels();
        scratch.draws(&["a red apple", "--seed", "1"]);
        assert!(copied == pixels());
    }

    fn rename(graph: &mut GraphProto, from: &str, to: &str) {
        let names = graph.node.iter_mut().flat_map(|node| &mut node.input);
        names.filter(|name| *name == from).for_each(|name| *name = to.into());
        let mut ports = graph.input.iter_mut().filter(|port| port.name.as_deref() == Some(from));
        ports.next().unwrap().name = Some(to.into());
    }

    fn edit_graph(packed: &mut Vec<u8>, change: impl FnOnce(&mut GraphProto)) {
        let mut onnx = Vec::new();
        GzDecoder::new(&packed[..]).read_to_end(&mut onnx).unwrap();
        let mut model = ModelProto::decode(&onnx[..]).unwrap();
        change(model.graph.as_mut().unwrap());
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(&model.encode_to_vec()).unwrap();
        *packed = encoder.finish().unwrap();
    }
}

mod runtime {
    use super::*;

    #[test]
    fn library_missing() {
        Scratch::new().refuses(
            &["x", "--ort", "no/such/library.so"],
            6,
            &[
                "no ONNX Runtime library could be loaded: the one named (",
                "no/such/library.so): No such file or directory",
                "; name a library of version 1.23 or newer with --ort or ORT_DYLIB_PATH",
            ],
        );
    }

    #[test]
    fn library_that_is_a_text_file() {
        let scratch = Scratch::new();
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
        let said = scratch.command(&["x"]).env("ORT_DYLIB_PATH", file).output().unwrap();
        let message = format!("no ONNX Runtime library could be loaded: ORT_DYLIB_PATH ({file}): ");
        Said::of(said).is_refusal(6, &[&message, "; name a library of version "]);
        assert_eq!(scratch.files(), [""; 0]);
    }
}

/// What no run may end in: a panic, or a signal.
#[cfg(target_os = "linux")]
mod hard_use {
    use std::ffi::OsString;
    use std::os::unix::ffi::{OsStrExt, OsStringExt};

    use super::*;

    /// What ended without a panic and without a signal, and with `--json` wrote one object and nothing else.
    #[track_caller]
    fn ends(mut command: Command) -> i32 {
        let output = command.stdin(Stdio::null()).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        let code = output.status.code().unwrap_or_else(|| panic!("{:?}: {stderr}", output.status));
        assert!(code != 101 && code != 70, "{command:?}: {stderr}");
        if command.get_args().any(|arg| arg == "--json") {
            let object: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
                panic!("{command:?}: {error}: {:?}", String::from_utf8_lossy(&output.stdout))
            });
            let said = &object["error"]["exit_code"];
            assert_eq!(*said, if code == 0 { Value::Null } else { code.into() }, "{command:?}: {object}");
            let message = object["error"]["message"].as_str().unwrap_or_default();
            assert_eq!(message.is_empty(), code == 0, "{command:?}: {object}");
            let is_setting = ["with `", "give `", "omit `"].iter().any(|start| message.contains(start));
            assert!(!is_setting, "a setting that is no flag: {message}");
        }
        code
    }

    /// The flags of a command that take a value, but that for the output.
    fn flags_of(command: &str) -> Vec<String> {
        let help = String::from_utf8(calotype(&[command, "--help"]).output().unwrap().stdout).unwrap();
        let lines = help.lines().filter_map(|line| line.trim_start().split_once("--"));
        let with_value = lines.filter(|(short, rest)| short.len() <= 4 && rest.contains('<'));
        let names = with_value.map(|(_, rest)| rest.split([' ', '[', '=']).next().unwrap());
        let flags: Vec<String> =
            names.filter(|name| *name != "output").map(|name| format!("--{name}")).collect();
        let least = if command == "resume" { 1 } else { 4 };
        assert!(flags.len() >= least && flags.contains(&"--ort".into()), "{command}: {flags:?}");
        flags
    }

    #[test]
    fn names_that_are_not_unicode() {
        let scratch = Scratch::new();
        let odd =
            |name: &[u8]| OsString::from_vec([scratch.0.path().as_os_str().as_bytes(), b"/", name].concat());
        let (missing, png) = (odd(b"mis\xffsing"), odd(b"pic\xffture.png"));
        let mut draw = calotype(&["generate", "x", "--steps", "1", "--json", "-o"]);
        draw.arg(&png);
        assert_eq!(ends(draw), 0);
        for flag in [
            "--model",
            "--init",
            "--mask",
            "--lora",
            "--embedding",
            "--ort",
            "--provider-cache",
            "--unet",
            "--vae",
            "--text-encoder",
        ] {
            let mut command = calotype(&["generate", "x", "--steps", "1", "--json", "-o", "/dev/null", flag]);
            command.arg(&missing);
            let code = ends(command);
            assert!(flag == "--provider-cache" || [3, 4, 6].contains(&code), "{flag}: {code}");
        }
        for command in ["inspect", "plan", "verify"] {
            for json in [&["--json"][..], &[]] {
                let mut run = calotype(&[command]);
                run.arg(&missing).args(json);
                assert!([2, 3, 4].contains(&ends(run)), "{command}");
            }
        }
        let mut verify = calotype(&["verify", "--json"]);
        verify.arg(&png);
        assert_eq!(ends(verify), 0);
        let bundle = odd(b"bun\xffdle");
        let mut pack = calotype(&["pack", "--json"]);
        pack.arg(&bundle);
        assert_eq!(ends(pack), 0);
        for command in ["inspect", "verify", "plan"] {
            let mut run = calotype(&[command, "--json"]);
            run.arg(&bundle);
            assert_eq!(ends(run), 0, "{command}");
        }
        let mut doctor = calotype(&["doctor", "--json", "--ort"]);
        doctor.arg(&missing);
        assert_eq!(ends(doctor), 6);
    }

    #[test]
    fn standard_streams_that_are_closed_or_full() {
        let scratch = Scratch::new();
        for (redirection, expected) in [
            ("2>&-", 0),
            (">&-", 0),
            ("2>/dev/full", 0),
            (">/dev/full", 9),
            (">/dev/full 2>/dev/full", 9),
            ("--steps 0 2>/dev/full", 2),
            ("--no-such-flag 2>/dev/full", 2),
            ("--help >/dev/full", 9),
        ] {
            let mut shell = Command::new("sh");
            let out = scratch.path("out.png");
            let line = format!("exec \"$0\" generate x --size 64x64 -o \"$1\" {redirection}");
            shell.args(["-c", &line, env!("CARGO_BIN_EXE_calotype")]).arg(out);
            assert_eq!(ends(shell), expected, "{redirection}");
        }
        let mut shell = Command::new("sh");
        let line = "{ \"$0\" generate --help; echo $? >&3; } 3>&2 | true";
        let said = shell.args(["-c", line, env!("CARGO_BIN_EXE_calotype")]).output().unwrap();
        assert_eq!(String::from_utf8(said.stderr).unwrap(), "0\n", "a reader that is gone");
    }

    #[test]
    fn small_stack() {
        let scratch = Scratch::new();
        for (kib, expected) in [(128, 0), (127, 5), (64, 5)] {
            let (image, mut shell) = (scratch.command(&["x", "--size", "64x64"]), Command::new("sh"));
            shell.args(["-c", &format!("ulimit -s {kib}; exec \"$@\""), "sh"]);
            shell.arg(image.get_program()).args(image.get_args());
            assert_eq!(ends(shell), expected, "{kib}");
        }
    }

    /// Arguments drawn from a bag of odd ones, for every command; the seed is fixed.
    #[test]
    fn odd_arguments() {
        let folder = TempDir::new().unwrap();
        let files =
            ["empty", "array.json", "deep.json", "nul", "calotype.json"].map(|name| folder.path().join(name));
        let deep = "[".repeat(100_000);
        for (file, bytes) in
            files.iter().zip([&b""[..], b"[]", deep.as_bytes(), b"\0\0\0\0\0\0\0\x10\0", b"{\"a\":NaN}"])
        {
            fs::write(file, bytes).unwrap();
        }
        let mut words: Vec<OsString> = [
            "",
            "-1",
            "0",
            "1e400",
            "NaN",
            "-inf",
            "99999999999999999999",
            "1x1",
            "0x0",
            "4294967296x4294967296",
            "x",
            ":",
            "=",
            ",",
            "@",
            "..",
            "/",
            "/dev/null",
            "/dev/zero",
            "/proc/self/mem",
            "/proc/self/exe",
            "a:b=c",
            "1MiB",
            "1e30GB",
            "--",
            "-",
            "(((((",
            "[a:b:",
            "\u{feff}",
            "🚀",
        ]
        .map(OsString::from)
        .into();
        words.push(OsStr::from_bytes(b"\xff\xfe").into());
        words.push("9".repeat(5000).into());
        words.extend(files.iter().map(|file| file.clone().into_os_string()));
        words.push(folder.path().as_os_str().into());
        let commands = [
            "generate", "batch", "resume", "inspect", "plan", "pack", "verify", "doctor", "upscale", "bench",
        ]
        .map(|command| (command, flags_of(command)));
        let mut state = 14_u64;
        let mut draw = |below: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            ((state >> 33) % below as u64) as usize
        };
        for run in 0..300 {
            let (command, flags) = &commands[run % commands.len()];
            let (command, mut odd) = (*command, calotype(&[command]));
            odd.current_dir(folder.path());
            if run % 4 != 0 {
                odd.arg("--json");
            }
            // What is in order is not drawn: it would take long.
            match command {
                "generate" => drop(odd.args(["-o", "/dev/full", "--size", "64x64"])),
                "upscale" => drop(odd.args(["-o", "/dev/full"])),
                "batch" => drop(odd.args(["-o", "images"])),
                "bench" => drop(odd.args(["--compare", "/dev/null"])),
                _ => {}
            }
            for _ in 0..1 + draw(2) {
                odd.arg(&flags[draw(flags.len())]).arg(&words[draw(words.len())]);
            }
            if command != "doctor" {
                odd.arg(&words[draw(words.len())]);
            }
            if command == "pack" {
                // Never a place that can be packed into.
                odd.arg("/proc/none");
            }
            ends(odd);
        }
    }
}

#[cfg(target_os = "linux")]
mod interrupt {
    use std::process::Child;
    use std::thread::sleep;
    use std::time::{Duration, Instant};

    use super::*;

    /// How long a run may take to come to an end, on the slowest of machines; the whole run would take longer.
    const HANG: Duration = Duration::from_secs(60);
    const SIGHUP: u32 = 1;
    const SIGTERM: u32 = 15;

    #[test]
    fn stops_within_a_step_and_leaves_no_file() {
        let scratch = Scratch::new();
        let mut child = scratch.command(&["x", "--steps", "1000"]).stderr(Stdio::piped()).spawn().unwrap();
        until("the run minds signals", &mut child, |child| catches(child, SIGTERM));
        // Some steps on most machines; the test holds wherever in the run the signal comes.
        sleep(Duration::from_secs(1));
        send("TERM", &child);
        until("the run ends", &mut child, |child| child.try_wait().unwrap().is_some());
        let said = Said::of(child.wait_with_output().unwrap());
        // Before the first step there is none to name.
        said.is_refusal(7, &["calotype: stopped"]);
        assert!(!said.stderr.contains("step 1000 of 1000"), "it drew to the end: {}", said.stderr);
        assert_eq!(scratch.files(), [""; 0]);
    }

    /// A pipe that nobody reads or writes.
    fn fifo(scratch: &Scratch, name: &str) -> String {
        let path = scratch.path(name).into_os_string().into_string().unwrap();
        assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
        path
    }

    /// Whether the thread that works waits for something.
    fn is_asleep(child: &Child) -> bool {
        let tasks = fs::read_dir(format!("/proc/{}/task", child.id())).into_iter().flatten().flatten();
        let mut stats = tasks.map(|task| fs::read_to_string(task.path().join("stat")).unwrap_or_default());
        let first = format!("{} ", child.id());
        stats.any(|stat| stat.contains("(calotype) S ") && !stat.starts_with(&first))
    }

    #[test]
    fn pipes_without_another_end_do_not_hold_it() {
        let scratch = Scratch::new();
        let pipe = fifo(&scratch, "pipe");
        for args in [
            &["generate", "x", "--steps", "1", "-o", &pipe][..],
            &["generate", "x", "--steps", "1", "-o", "/dev/null", "--init", &pipe],
            &["generate", "-", "--steps", "1", "-o", "/dev/null"],
            &["verify", &pipe],
        ] {
            let mut command = calotype(args);
            let mut child =
                command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
            until("the run minds signals", &mut child, |child| catches(child, SIGTERM));
            until("the run waits", &mut child, |child| is_asleep(child));
            send("TERM", &child);
            until("the run ends", &mut child, |child| child.try_wait().unwrap().is_some());
            Said::of(child.wait_with_output().unwrap()).is_refusal(7, &["calotype: stopped"]);
        }
        let mut command = calotype(&["generate", "x", "--json", "--steps", "1", "-o", &pipe]);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        until("the run minds signals", &mut child, |child| catches(child, SIGTERM));
        send("TERM", &child);
        until("the run ends", &mut child, |child| child.try_wait().unwrap().is_some());
        let said = Said::of(child.wait_with_output().unwrap());
        assert_eq!((said.code, &said.json()["error"]["kind"]), (Some(7), &"cancelled".into()));
    }

    /// Its first signal leads to a message, which a full pipe holds up.
    #[test]
    fn second_signal_ends_it_at_once() {
        let scratch = Scratch::new();
        let (pipe, full) = (fifo(&scratch, "pipe"), fifo(&scratch, "full"));
        let both_ends = || fs::File::options().read(true).write(true).open(&full).unwrap();
        let mut end = both_ends();
        end.write_all(&[b'.'; 65536]).unwrap();
        let mut command = calotype(&["generate", "x", "--steps", "1", "-o", &pipe]);
        let mut child = command.stderr(both_ends()).spawn().unwrap();
        until("the run minds signals", &mut child, |child| catches(child, SIGTERM));
        send("TERM", &child);
        sleep(Duration::from_millis(500));
        assert!(child.try_wait().unwrap().is_none(), "expected a run that is held up by its message");
        send("TERM", &child);
        until("the run ends", &mut child, |child| child.try_wait().unwrap().is_some());
        assert_eq!(child.wait().unwrap().code(), Some(128 + SIGTERM as i32));
    }

    /// The same with `--json`, whose object is there all the same.
    #[test]
    fn second_signal_leaves_the_one_object() {
        let scratch = Scratch::new();
        let (pipe, full) = (fifo(&scratch, "pipe"), fifo(&scratch, "full"));
        let both_ends = || fs::File::options().read(true).write(true).open(&full).unwrap();
        let mut end = both_ends();
        end.write_all(&[b'.'; 65536]).unwrap();
        let mut command = calotype(&["generate", "x", "--json", "--steps", "1", "-o", &pipe]);
        let mut child = command.stdout(Stdio::piped()).stderr(both_ends()).spawn().unwrap();
        until("the run minds signals", &mut child, |child| catches(child, SIGTERM));
        send("TERM", &child);
        sleep(Duration::from_millis(500));
        assert!(child.try_wait().unwrap().is_none(), "expected a run that is held up by its message");
        send("TERM", &child);
        until("the run ends", &mut child, |child| child.try_wait().unwrap().is_some());
        let said = Said::of(child.wait_with_output().unwrap());
        assert_eq!(said.code, Some(128 + SIGTERM as i32));
        let error = &said.json()["error"];
        assert_eq!((&error["kind"], &error["exit_code"]), (&"cancelled".into(), &(128 + SIGTERM).into()));
    }

    /// Nobody reads what it says, on either stream: the second signal ends it nevertheless.
    #[test]
    fn second_signal_waits_for_no_reader() {
        let scratch = Scratch::new();
        let (pipe, full) = (fifo(&scratch, "pipe"), fifo(&scratch, "full"));
        let both_ends = || fs::File::options().read(true).write(true).open(&full).unwrap();
        let mut end = both_ends();
        end.write_all(&[b'.'; 65536]).unwrap();
        let mut command = calotype(&["generate", "x", "--json", "--steps", "1", "-o", &pipe]);
        let mut child = command.stdout(both_ends()).stderr(both_ends()).spawn().unwrap();
        until("the run minds signals", &mut child, |child| catches(child, SIGTERM));
        send("TERM", &child);
        sleep(Duration::from_millis(500));
        send("TERM", &child);
        until("the run ends", &mut child, |child| child.try_wait().unwrap().is_some());
        assert_eq!(child.wait().unwrap().code(), Some(128 + SIGTERM as i32));
    }

    #[test]
    fn ignored_signals_stay_ignored() {
        let scratch = Scratch::new();
        let pipe = fifo(&scratch, "pipe");
        let mut shell = Command::new("sh");
        shell.args(["-c", "trap '' HUP INT; exec \"$@\"", "sh", env!("CARGO_BIN_EXE_calotype")]);
        let mut child = shell.args(["generate", "x", "-o", &pipe]).stderr(Stdio::null()).spawn().unwrap();
        until("the run minds signals", &mut child, |child| catches(child, SIGTERM));
        send("HUP", &child);
        send("INT", &child);
        sleep(Duration::from_millis(500));
        assert!(child.try_wait().unwrap().is_none(), "an ignored signal ended it");
        assert!(!catches(&child, SIGHUP));
        send("TERM", &child);
        until("the run ends", &mut child, |child| child.try_wait().unwrap().is_some());
        assert_eq!(child.wait().unwrap().code(), Some(7));
    }

    fn send(signal: &str, child: &Child) {
        let kill = format!("kill -{signal} {}", child.id());
        assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
    }

    /// Whether a process has a handler of its own for a signal.
    fn catches(child: &Child, signal: u32) -> bool {
        let status = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
        let mask = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap();
        u64::from_str_radix(mask.trim(), 16).unwrap() >> (signal - 1) & 1 == 1
    }

    #[track_caller]
    fn until(what: &str, child: &mut Child, is_so: impl Fn(&mut Child) -> bool) {
        let started = Instant::now();
        while !is_so(child) {
            if started.elapsed() > HANG {
                child.kill().unwrap();
                panic!("expected that {what} within {HANG:?}");
            }
            sleep(Duration::from_millis(5));
        }
    }
}

mod preview {
    use image::{GenericImageView, ImageFormat};

    use super::*;

    fn opened(bytes: &[u8], format: ImageFormat) -> image::DynamicImage {
        image::load_from_memory_with_format(bytes, format).unwrap()
    }

    #[test]
    fn is_replaced_at_the_steps_asked_for() {
        let scratch = Scratch::new();
        let preview = scratch.path("preview.png").into_os_string().into_string().unwrap();
        let of = |steps: &str, every: &[&str]| {
            let _ = fs::remove_file(&preview);
            let args = ["a red apple", "--seed", "3", "--steps", steps, "--preview", &preview];
            scratch.draws(&[&args, every].concat());
            fs::read(&preview).ok()
        };
        let all = of("4", &[]).unwrap();
        assert_eq!(opened(&all, ImageFormat::Png).dimensions(), (128, 128));
        // The fourth step is the last that either shows.
        assert_eq!(of("4", &["--preview-every", "2"]).unwrap(), all);
        let third = of("4", &["--preview-every", "3"]).unwrap();
        assert_ne!(third, all);
        assert_eq!(of("4", &["--preview-every", "5"]), None);
        assert_eq!(scratch.files(), ["out.png"]);
        // It is like the image, and nothing of it has a recipe, which is the image's.
        let image = opened(&scratch.read("out.png"), ImageFormat::Png).to_rgb8();
        let off = |preview: &[u8]| {
            let preview = opened(preview, ImageFormat::Png).to_rgb8();
            let sum: u64 = preview.iter().zip(image.iter()).map(|(a, b)| u64::from(a.abs_diff(*b))).sum();
            sum as f64 / image.len() as f64
        };
        assert!(off(&all) < off(&third), "{} {}", off(&all), off(&third));
        assert!(!all.windows(4).any(|chunk| chunk == b"tEXt"));
    }

    #[test]
    fn leaves_the_image_as_it_is() {
        let scratch = Scratch::new();
        scratch.draws(&["x", "--seed", "3"]);
        let without = scratch.read("out.png");
        for (name, format) in [("p.jpg", ImageFormat::Jpeg), ("p.webp", ImageFormat::WebP)] {
            let preview = scratch.path(name);
            scratch.draws(&["x", "--seed", "3", "--preview", preview.to_str().unwrap()]);
            assert_eq!(scratch.read("out.png"), without);
            let size = "128x128".parse::<calotype::tensor::PixelSize>().unwrap();
            let shown = opened(&scratch.read(name), format).dimensions();
            assert_eq!(shown, (size.width_px(), size.height_px()));
        }
        // Large images have small previews.
        let preview = scratch.path("p.png");
        let args = ["x", "--seed", "3", "--size", "640x320", "--preview", preview.to_str().unwrap()];
        scratch.draws(&[&args[..], &["--steps", "1"]].concat());
        assert_eq!(opened(&scratch.read("p.png"), ImageFormat::Png).dimensions(), (512, 256));
    }

    #[test]
    fn what_cannot_be_one_is_refused() {
        let scratch = Scratch::new();
        let out = scratch.path("out.png");
        let out = out.to_str().unwrap();
        let dotted = scratch.path("./out.png");
        for (args, code, message) in [
            (&["--preview", "-"][..], 2, "--preview: expected a file, got standard output"),
            (&["--preview", "/dev/null"], 2, "--preview: expected a file, got a device or pipe"),
            (&["--preview", out], 2, "--preview: expected a file, got the file of the image"),
            (&["--preview", dotted.to_str().unwrap()], 2, "got the file of the image"),
            (&["--preview", "p.gif"], 2, "p.gif: expected a name in .png"),
            (&["--preview", "no/such/p.png"], 9, "no/such/p.png: expected a folder"),
            (&["--preview-every", "2"], 2, "--preview <FILE>"),
            (&["--preview", "p.png", "--preview-every", "0"], 2, "--preview-every"),
            (&["--taesd", "/no/such.safetensors"], 4, "/no/such.safetensors: "),
            (&["--taesd", "/no/such.safetensors", "--preview", "p.png"], 4, "/no/such.safetensors: "),
        ] {
            scratch.refuses(&[&["x"], args].concat(), code, &[message]);
        }
        let bundle = Bundle::new();
        bundle.edit_manifest(|manifest| {
            manifest.as_object_mut().unwrap().remove("preview").unwrap();
        });
        let preview = scratch.path("p.png");
        let args = ["x", "-m", bundle.path(), "--preview", preview.to_str().unwrap()];
        scratch.refuses(
            &args,
            2,
            &["--preview: expected a model with preview factors, got calotype-emoji-1"],
        );
    }

    /// The image is what was asked for. A file may have 10 KiB: the image is smaller, its preview larger.
    #[cfg(target_os = "linux")]
    #[test]
    fn that_cannot_be_written_is_reported_once() {
        let scratch = Scratch::new();
        let (image, preview) = (scratch.path("out.jpg"), scratch.path("p.png"));
        let args = ["a red apple", "--seed", "3", "--steps", "4", "-o", image.to_str().unwrap()];
        let command = scratch.command(&[&args[..], &["--preview", preview.to_str().unwrap()]].concat());
        let mut shell = Command::new("sh");
        shell
            .args(["-c", "ulimit -f 20; exec \"$@\"", "sh"])
            .arg(command.get_program())
            .args(command.get_args());
        let said = Said::of(shell.output().unwrap());
        assert_eq!(said.code, Some(0), "{}", said.stderr);
        let problem = "p.png: the image could not be written: File too large";
        assert_eq!(said.stderr.matches(problem).count(), 1, "{}", said.stderr);
        // The first preview, which is small enough, stays whole.
        assert_eq!(scratch.files(), ["out.jpg", "p.png"]);
        opened(&scratch.read("p.png"), ImageFormat::Png);
    }
}

mod images {
    use serde_json::json;

    use super::*;

    #[test]
    fn same_seed_same_bytes() {
        let scratch = Scratch::new();
        scratch.draws(&["a red apple", "--seed", "5"]);
        let first = scratch.read("out.png");
        scratch.draws(&["a red apple", "--seed", "5"]);
        assert!(first == scratch.read("out.png"));
        scratch.draws(&["a red apple", "--seed", "6"]);
        assert!(pixels(&first) != pixels(&scratch.read("out.png")), "the seed changes nothing");
        scratch.draws(&["a blue dog", "--seed", "5"]);
        assert!(pixels(&first) != pixels(&scratch.read("out.png")), "the prompt changes nothing");
    }

    #[test]
    fn count_draws_consecutive_seeds() {
        let scratch = Scratch::new();
        let report = scratch.draws(&["a red apple", "--seed", "5", "--count", "3"]);
        assert_eq!(scratch.files(), ["out-1.png", "out-2.png", "out-3.png"]);
        for (index, receipt) in receipts(&report).iter().enumerate() {
            let (seed, name) = (5 + index, format!("out-{}.png", index + 1));
            assert_eq!(receipt["seed"], seed);
            assert_eq!(report["images"][index]["file"], scratch.path(&name).to_str().unwrap());
            scratch.draws(&["a red apple", "--seed", &seed.to_string()]);
            assert!(scratch.read(&name) == scratch.read("out.png"), "{name}");
        }
        assert_eq!(receipts(&report).len(), 3);
    }

    #[test]
    fn random_seed_is_reported_and_draws_it_again() {
        let scratch = Scratch::new();
        let said = scratch.generate(&["a red apple"]);
        assert_eq!(said.code, Some(0), "{}", said.stderr);
        let start = format!("{} (seed ", scratch.path("out.png").display());
        let seed = said.stdout.strip_prefix(&start).unwrap().strip_suffix(")\n").unwrap();
        let first = scratch.read("out.png");
        scratch.draws(&["a red apple", "--seed", seed]);
        assert!(first == scratch.read("out.png"));
        let other = scratch.draws(&["a red apple"]);
        assert_ne!(receipts(&other)[0]["seed"].to_string(), seed);
    }

    #[test]
    fn size_is_the_one_asked_for() {
        let scratch = Scratch::new();
        scratch.draws(&["x", "--size", "160x96"]);
        let (width, height, _) = pixels(&scratch.read("out.png"));
        assert_eq!((width, height), (160, 96));
    }

    #[test]
    fn guidance_and_negative_prompt_change_it() {
        let scratch = Scratch::new();
        let mut drawn = Vec::new();
        for args in [&["--guidance", "1"][..], &["--guidance", "5"], &["--guidance", "5", "-n", "a dog"]] {
            scratch.draws(&[&["a red apple", "--seed", "5"], args].concat());
            drawn.push(pixels(&scratch.read("out.png")));
        }
        assert!(drawn[0] != drawn[1] && drawn[1] != drawn[2] && drawn[0] != drawn[2]);
    }

    #[test]
    fn guidance_zero_ignores_the_prompt() {
        let scratch = Scratch::new();
        let [apple, dog] = ["a red apple", "a blue dog"].map(|prompt| {
            scratch.draws(&[prompt, "--guidance", "0", "--seed", "5"]);
            pixels(&scratch.read("out.png"))
        });
        assert!(apple == dog);
    }

    #[test]
    fn every_sampler_draws() {
        let scratch = Scratch::new();
        let samplers = help("--sampler", "samplers");
        assert!(samplers.len() >= 30, "{samplers:?}");
        for row in samplers {
            let sampler = row["name"].as_str().unwrap();
            let report = scratch.draws(&["a red apple", "--sampler", sampler]);
            assert_eq!(receipts(&report)[0]["sampler"], sampler);
        }
    }

    #[test]
    fn every_schedule_draws() {
        let scratch = Scratch::new();
        let schedules = help("--schedule", "schedules");
        assert!(schedules.len() >= 16, "{schedules:?}");
        for schedule in schedules {
            let schedule = schedule["name"].as_str().unwrap();
            // Levels for video reach further up than this model's.
            if schedule == "ays-svd" {
                scratch.generate(&["x", "--schedule", schedule]).is_refusal(
                    2,
                    &["schedule: expected levels up to 65.9287, the model's highest, got 700"],
                );
                continue;
            }
            let report = scratch.draws(&["a red apple", "--schedule", schedule]);
            assert_eq!(receipts(&report)[0]["schedule"], schedule);
        }
        let report =
            scratch.draws(&["a red apple", "--sampler", "euler", "--steps", "3", "--sigmas", "20, 5.5, 1,0"]);
        assert_eq!(receipts(&report)[0]["sigmas"], json!([20.0, 5.5, 1.0, 0.0]));
        assert_eq!(receipts(&report)[0]["schedule"], "20,5.5,1");
    }

    /// What a recipe says of sampling draws the same image again, and every part of it counts.
    #[test]
    fn what_is_asked_of_sampling_is_done_and_in_the_recipe() {
        let scratch = Scratch::new();
        let base = ["a red apple", "--seed", "3", "--steps", "4", "--sampler", "euler-a"];
        let draw = |args: &[&str]| {
            let report = scratch.draws(&[&base, args].concat());
            (receipts(&report)[0].clone(), pixels(&scratch.read("out.png")))
        };
        let (_, plain) = draw(&[]);
        for (args, field, expected) in [
            (&["--schedule", "karras:rho=5"][..], "schedule", json!("karras:rho=5")),
            (&["--rng", "philox"], "rng", json!("philox")),
            (&["--rng", "numpy"], "rng", json!("numpy")),
            (&["--variation-seed", "9", "--variation-strength", "0.4"], "variation_seed", json!(9)),
            (&["--guidance", "5x2,1"], "guidance", json!("5x2,1")),
            (&["--guidance-method", "cfg:rescale=0.9"], "guidance_method", json!("cfg:rescale=0.9")),
            (
                &["--guidance-method", "apg"],
                "guidance_method",
                json!("projected:eta=0,momentum=-0.5,norm_threshold=15"),
            ),
            (
                &["--guidance-method", "zero-star"],
                "guidance_method",
                json!("zero-star:zero_steps=1,rescale=0"),
            ),
            (
                &["--guidance-method", "mimic:scale=2"],
                "guidance_method",
                json!("mimic:scale=2,percentile=1,share=1,per_channel=on,origin=mean,measure=largest"),
            ),
            (
                &["--guidance-method", "residual"],
                "guidance_method",
                json!("residual:from=first-negative,delta=1"),
            ),
            (
                &["-n", "a dog", "--guidance-method", "perpendicular"],
                "guidance_method",
                json!("perpendicular:negative_scale=1,rescale=0"),
            ),
            (&["--guidance-interval", "0.5..8"], "guidance_interval", json!("0.5..8")),
            (&["--guidance-interval", "25%..75%"], "guidance_interval", json!("25%..75%")),
            (&["--thresholding", "static:range=0.5"], "thresholding", json!("static:range=0.5")),
        ] {
            let (receipt, image) = draw(args);
            assert_eq!(receipt[field], expected, "{args:?}");
            assert!(image != plain, "{args:?} changes nothing");
            let (_, again) = draw(args);
            assert!(image == again, "{args:?} twice");
        }
        // Nothing of these is in a recipe that does without.
        let (receipt, _) = draw(&[]);
        for field in ["variation_seed", "guidance_method", "guidance_interval", "thresholding"] {
            assert_eq!(receipt.get(field), None, "{field}");
        }
        // All of the other seed's noise is that seed's image.
        let (_, other) = draw(&["--variation-seed", "9", "--variation-strength", "0"]);
        assert!(other == plain, "a variation of nothing");
    }

    /// Where guidance ends, the step goes by the prompt, which is what a scale next to 1 goes by with both predictions.
    #[test]
    fn steps_without_guidance_go_by_the_prompt() {
        let scratch = Scratch::new();
        let draw = |guidance: &str, args: &[&str]| {
            let sampler = if args.contains(&"--sampler") { &[][..] } else { &["--sampler", "euler"] };
            let base = ["a red apple", "--seed", "3", "--steps", "4", "--guidance", guidance];
            scratch.draws(&[&base, sampler, args].concat());
            pixels(&scratch.read("out.png")).2
        };
        let far = |one: &[u8], other: &[u8]| {
            one.iter().zip(other).map(|(a, b)| f64::from(a.abs_diff(*b))).sum::<f64>() / one.len() as f64
        };
        let near = draw("5x1,1.000001", &[]);
        for (guidance, args) in [("5x1,1", &[][..]), ("5", &["--guidance-interval", "0%..25%"])] {
            let image = draw(guidance, args);
            assert!(far(&image, &near) < 0.01, "{guidance} {args:?}: {}", far(&image, &near));
        }
        assert!(far(&draw("5", &[]), &near) > 1.0, "a later step's guidance changes nothing");
        // CFG++ goes back by the unconditional noise, also where the prompt's prediction is all that a step goes by.
        assert!(far(&draw("1", &["--sampler", "euler-cfg++"]), &draw("1", &[])) > 1.0);
    }

    /// A pickle in the folder is told of only where a prompt has its name.
    #[test]
    fn pickles_that_prompts_name_are_told() {
        let scratch = Scratch::new();
        let folder = scratch.path("words");
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("easy.pt"), "x").unwrap();
        let flags = ["--steps", "1", "--size", "64x64", "--embedding-dir", folder.to_str().unwrap()];
        for (prompt, is_told) in
            [("a dog, easy", true), ("a dog, embedding:easy", true), ("uneasy dog", false), ("a dog", false)]
        {
            let said = scratch.generate(&[&[prompt], &flags[..]].concat());
            assert_eq!(said.code, Some(0));
            let line = "easy.pt: not used: a PyTorch pickle";
            assert_eq!(said.stderr.contains(line), is_told, "{prompt}: {}", said.stderr);
        }
    }

    #[test]
    fn prompts_are_a_language() {
        let scratch = Scratch::new();
        let draw = |prompt: &str, args: &[&str]| {
            scratch.draws(&[&[prompt, "--seed", "3", "--steps", "4"], args].concat());
            pixels(&scratch.read("out.png"))
        };
        let plain = draw("a red apple", &[]);
        for prompt in [
            "a (red:1.6) apple",
            "a [[red]] apple",
            "a red apple BREAK on blue",
            "[a red apple:a blue dog:2]",
            "[a red apple|a blue dog]",
            "a red apple AND a blue dog",
            "a red apple AND a blue dog :-0.5",
        ] {
            assert!(draw(prompt, &[]) != plain, "{prompt}: changes nothing");
        }
        assert!(draw("[a red apple:a blue dog:9]", &[]) == plain, "a switch after the end");
        assert!(draw("a red apple AND a blue dog :0", &[]) == plain, "a part without weight");
        assert!(draw("(a red apple:1.0)", &[]) == plain, "a weight of one");
        assert!(draw("a red apple 16:9", &[]) == draw("a red apple 16:9", &["--literal"]), "not a weight");
        assert!(draw(r"a red apple \(on\)", &[]) == draw("a red apple (on)", &["--literal"]), "escapes");
    }

    #[test]
    fn sampling_that_cannot_be_is_refused() {
        let scratch = Scratch::new();
        for (args, message) in [
            (&["--sampler", "eluer"][..], "did you mean euler?"),
            (&["--sampler", "ddim:eta=2"], "sampler: ddim: eta: expected a number from 0 to 1, got \"2\""),
            (&["--schedule", "carras"], "did you mean karras?"),
            (&["--sampler", "dpm++2m-karras", "--schedule", "beta"], "schedule: expected one, got karras"),
            (&["--sigmas", "1,2,3", "--steps", "3"], "schedule"),
            (&["--sigmas", "5,1", "--steps", "3"], "steps: expected 2, the number of listed levels, got 3"),
            (&["--sigmas", "karras"], "levels: expected numbers"),
            (&["--rng", "numpy", "--seed", "4294967296"], "4294967296"),
            (&["--rng", "numpy", "--seed", "4294967295", "--count", "2"], "4294967296"),
            (
                &["--rng", "numpy", "--variation-seed", "4294967296", "--variation-strength", "1"],
                "4294967296",
            ),
            (
                &["--variation-seed", "1", "--variation-strength", "1.5"],
                "variation strength: expected a number",
            ),
            (&["--guidance", "5x1,1x9"], "guidance: expected scales for 2 steps, got 10"),
            (&["--guidance-method", "pag"], "guidance method: expected one of cfg,"),
            (
                &["--guidance-method", "residual:from=source", "-n", "x"],
                "negative prompt: expected a guidance",
            ),
            (&["--guidance-interval", "5..1"], "guidance interval"),
            (&["--guidance-interval", "1%..2%"], "expected a range that contains a step"),
            (&["--thresholding", "dynamic:max=0"], "dynamic thresholding"),
        ] {
            scratch.refuses(&[&["a red apple"], args].concat(), 2, &[message]);
        }
        scratch.refuses(&["--sampler", "euler"], 2, &["PROMPT: expected a prompt, got none"]);
    }

    /// What there is, from a table.
    fn help(flag: &str, table: &str) -> Vec<Value> {
        let output = calotype(&["generate", flag, "help", "--json"]).output().unwrap();
        let object: Value = serde_json::from_slice(&output.stdout).unwrap();
        object[table].as_array().unwrap().clone()
    }

    #[test]
    fn recipe_can_be_read_back() {
        let scratch = Scratch::new();
        let report = scratch.draws(&[
            "a red apple",
            "-n",
            "a dog",
            "--seed",
            "7",
            "--sampler",
            "euler",
            "--guidance",
            "2.5",
        ]);
        let texts = texts(&scratch.read("out.png"));
        let (manifest, receipt) = (manifest(), texts.receipt());
        assert_eq!(&receipt, receipts(&report)[0], "the report and the image disagree");

        let hashes = manifest["files"].as_object().unwrap();
        let hashes: serde_json::Map<_, _> =
            hashes.iter().map(|(name, record)| (name.clone(), record["sha256"].clone())).collect();
        assert_eq!(receipt["model_files"], Value::Object(hashes));
        assert_eq!(receipt["calotype"], env!("CARGO_PKG_VERSION"));
        assert_eq!(receipt["model_name"], manifest["name"]);
        assert_eq!(receipt["prompt"], "a red apple");
        assert_eq!(receipt["negative"], "a dog");
        assert_eq!(receipt["sampler"], "euler");
        assert_eq!(receipt["guidance"], 2.5);
        assert_eq!(receipt["seed"], 7);
        assert_eq!(receipt["rng"], "torch");
        assert_eq!(receipt["provider"], "cpu");
        assert!(receipt["onnxruntime"].as_str().unwrap().starts_with("1."));
        let sigmas: Vec<f64> =
            receipt["sigmas"].as_array().unwrap().iter().map(|sigma| sigma.as_f64().unwrap()).collect();
        assert_eq!((sigmas.len(), sigmas[2]), (3, 0.0));
        assert!(sigmas.is_sorted_by(|a, b| a > b), "{sigmas:?}");

        let [width, height] = [0, 1].map(|side| manifest["defaults"]["size"][side].as_u64().unwrap());
        assert_eq!(
            texts.parameters,
            format!(
                "a red apple\nNegative prompt: a dog\nSteps: 2, Sampler: Euler, Schedule type: SGM Uniform, CFG scale: 2.5, \
                 Seed: 7, Size: {width}x{height}, Model hash: {}, Model: {}, RNG: CPU, Version: calotype {}",
                &manifest["files"][UNET]["sha256"].as_str().unwrap()[..10],
                manifest["name"].as_str().unwrap(),
                env!("CARGO_PKG_VERSION"),
            )
        );
    }

    #[test]
    fn prompt_beyond_ascii_comes_back() {
        let scratch = Scratch::new();
        let prompt = "ein süßer Apfel, 赤いりんご 🍎";
        scratch.draws(&[prompt]);
        let texts = texts(&scratch.read("out.png"));
        assert_eq!(texts.receipt()["prompt"], prompt);
        assert!(texts.parameters.starts_with(&format!("{prompt}\nSteps: 2, ")), "{}", texts.parameters);
    }

    /// What other programs take from the text.
    #[test]
    fn settings_have_their_names_elsewhere() {
        let scratch = Scratch::new();
        for (args, expected) in [
            (&["--rng", "philox"][..], ", RNG: NV, "),
            (&["--rng", "torch"], ", RNG: CPU, "),
            (&["--schedule", "karras"], ", Schedule type: Karras, "),
            (&["--schedule", "karras:rho=5"], ", Schedule rho: 5, "),
            (&["--schedule", "sgm-uniform"], ", Schedule type: SGM Uniform, "),
            (&["--schedule", "exponential"], ", Schedule type: Exponential, "),
            (&["--sampler", "dpm++2m"], "Sampler: DPM++ 2M, "),
            (&["--sampler", "ddim:eta=0.5"], "Sampler: DDIM, "),
            (&["--sampler", "ddim:eta=0.5"], ", Eta DDIM: 0.5, "),
            (
                &["--variation-seed", "9", "--variation-strength", "0.4"],
                ", Variation seed: 9, Variation seed strength: 0.4, ",
            ),
        ] {
            scratch.draws(&[&["x", "--size", "64x64"], args].concat());
            let text = texts(&scratch.read("out.png")).parameters;
            assert!(text.contains(expected), "{expected:?} in {text:?}");
        }
        scratch.draws(&["a\nNegative prompt: b", "--size", "64x64"]);
        let texts = texts(&scratch.read("out.png"));
        assert_eq!(texts.receipt()["prompt"], "a\nNegative prompt: b");
        assert!(texts.parameters.starts_with("a\nNegative\\ prompt: b\nSteps: 2, "), "{}", texts.parameters);
    }

    #[test]
    fn names_and_hashes_of_bundles_are_quoted() {
        let (scratch, bundle) = (Scratch::new(), Bundle::new());
        bundle.edit_manifest(|manifest| manifest["name"] = "a, \"b\": c".into());
        scratch.draws(&["x", "--size", "64x64", "-m", bundle.path()]);
        let text = texts(&scratch.read("out.png")).parameters;
        assert!(text.contains(r#", Model: "a, \"b\": c", "#), "{text}");
    }

    #[test]
    fn words_that_the_model_does_not_know_are_told() {
        let scratch = Scratch::new();
        let said = scratch.generate(&["a 🚀 on a red (🍎:1.2)", "-n", "🚗", "--json", "--size", "64x64"]);
        assert_eq!(said.code, Some(0), "{}", said.stderr);
        let unknown = &said.json()["unknown_words"];
        let known = |word: &str| !unknown["prompt"].as_array().unwrap().contains(&word.into());
        assert!(known("red") && known("on") && known("a"), "{unknown}");
        // A model may have learnt emoji; what it has not is named.
        let odd = "\u{1f9ff}\u{10ffff}";
        let said = scratch.generate(&[&format!("a {odd}"), "-n", odd, "--json", "--size", "64x64"]);
        assert_eq!(said.json()["unknown_words"], json!({"prompt": [odd], "negative": [odd]}));
        let line = format!("calotype: prompt: words that this model does not know: {odd:?}\n");
        assert!(said.stderr.starts_with(&line), "{}", said.stderr);
        assert_eq!(scratch.draws(&["a red apple"])["unknown_words"], json!({"prompt": [], "negative": []}));
    }

    #[test]
    fn words_that_the_model_was_not_trained_on_are_told() {
        let scratch = Scratch::new();
        // Both words are in the vocabulary, with which they start near their relatives, and in no caption.
        let flags = ["-n", "Money, blue", "--json", "--size", "64x64"];
        let said = scratch.generate(&[&["a (river:1.2), on a red background."], &flags[..]].concat());
        assert_eq!(said.code, Some(0), "{}", said.stderr);
        let json = said.json();
        assert_eq!(json["unknown_words"], json!({"prompt": [], "negative": []}));
        assert_eq!(json["untrained_words"], json!({"prompt": ["river"], "negative": ["Money"]}));
        let lines = "calotype: prompt: words that this model was not trained on: \"river\"\n\
                     calotype: negative prompt: words that this model was not trained on: \"Money\"\n";
        assert!(said.stderr.starts_with(lines), "{}", said.stderr);
        // Every caption's words are there.
        let json = scratch.draws(&["an airplane on a teal background, 3d style", "--size", "64x64"]);
        assert_eq!(json["untrained_words"], json!({"prompt": [], "negative": []}));
    }

    /// An emoji of something that the model draws stands for its name, with and without a variation selector; others are
    /// reported. Receipts have the prompt as it was typed.
    #[test]
    fn emoji_are_words_of_the_built_in_model() {
        let scratch = Scratch::new();
        let draw = |prompt: &str| {
            let json = scratch.draws(&[prompt, "--size", "64x64", "--steps", "2", "--seed", "1"]);
            let drawn = scratch.read("out.png");
            assert_eq!(texts(&drawn).receipt()["prompt"], json!(prompt));
            let told = ["unknown_words", "untrained_words"].map(|kind| json[kind]["prompt"].clone());
            (pixels(&drawn).2, told)
        };
        let nothing = [json!([]), json!([])];
        let [rocket, apple] = ["a rocket on a teal background", "a red apple on a teal background"].map(draw);
        assert!(rocket.0 != apple.0);
        assert_eq!([&rocket.1, &apple.1], [&nothing, &nothing]);
        assert_eq!(draw("a 🚀 on a teal background"), rocket);
        assert_eq!(draw("a 🍎 on a teal background"), apple);
        assert_eq!(draw("a ❤️ on a teal background").1, nothing);
        let (_, [unknown, _]) = draw("a 🛸 on a teal background");
        assert_eq!(unknown, json!(["🛸"]));
    }

    /// The list of words is the one that the captions of the training are made of.
    #[test]
    fn words_of_the_training_are_those_of_its_captions() {
        let manifest: Value = serde_json::from_str(include_str!("../models/builtin/calotype.json")).unwrap();
        let trained = manifest["trained_words"].as_array().unwrap();
        let objects: Value = serde_json::from_str(include_str!("../export/emoji/objects.json")).unwrap();
        let nouns = objects.as_object().unwrap().values().flat_map(|nouns| nouns.as_array().unwrap());
        let mut words: Vec<&str> =
            nouns.flat_map(|noun| noun.as_str().unwrap().split(|c: char| !c.is_alphanumeric())).collect();
        words.extend(["a", "an", "on", "background", "style", "3d", "flat", "teal", "brown", "white"]);
        for word in words {
            assert!(trained.contains(&word.into()), "{word:?} of a caption is not in the manifest");
        }
        let emoji: Value = serde_json::from_str(include_str!("../export/emoji/words.json")).unwrap();
        for (symbol, text) in emoji.as_object().unwrap() {
            assert!(trained.contains(&symbol.as_str().into()), "{symbol} is not in the manifest");
            for word in text.as_str().unwrap().split(' ') {
                assert!(trained.contains(&word.into()), "{word:?} of {symbol} is not in the manifest");
            }
        }
        let said = trained.iter().map(|word| word.as_str().unwrap()).collect::<Vec<_>>();
        assert!(!said.contains(&"river") && said.is_sorted(), "{said:?}");
    }

    #[test]
    fn verify_sees_pixels_that_were_changed() {
        let scratch = Scratch::new();
        scratch.draws(&["x", "--size", "64x64"]);
        let drawn = scratch.read("out.png");
        let verify = |png: &[u8]| {
            fs::write(scratch.path("changed.png"), png).unwrap();
            let path = scratch.path("changed.png");
            Said::of(calotype(&["verify", path.to_str().unwrap()]).output().unwrap())
        };
        let said = verify(&drawn);
        assert_eq!(said.code, Some(0), "{}", said.stderr);
        let end = "the pixels match the receipt\ngenerated again: equal pixels\n";
        assert!(said.stdout.ends_with(end), "{}", said.stdout);

        let (width, height, rgb) = pixels(&drawn);
        let receipt = texts(&drawn).receipt();
        let mut one = rgb.clone();
        one[5000] ^= 1;
        let rows = width as usize * 3;
        for (what, png) in [
            ("one bit", encode(width, height, &one, &receipt)),
            ("cut off", encode(width, height - 8, &rgb[..rgb.len() - 8 * rows], &receipt)),
            ("another shape", encode(width * 2, height / 2, &rgb, &receipt)),
        ] {
            let said = verify(&png);
            assert_eq!(said.code, Some(3), "{what}: {}", said.stdout);
            assert!(
                said.stderr.contains("expected the pixels of the receipt, got others"),
                "{what}: {}",
                said.stderr
            );
        }
        assert_eq!(verify(&encode(width, height, &rgb, &receipt)).code, Some(0));
        verify(&drawn[..drawn.len() - 400]).is_refusal(3, &["changed.png: "]);

        let mut odd = receipt.clone();
        odd["pixels_sha256"] = "0123".into();
        verify(&encode(width, height, &rgb, &odd))
            .is_refusal(3, &["pixels_sha256: expected a SHA-256, got \"0123\""]);
        odd.as_object_mut().unwrap().remove("pixels_sha256");
        let said = verify(&encode(width, height, &rgb, &odd));
        assert_eq!(said.code, Some(0), "{}", said.stderr);
        assert!(
            said.stdout.contains("the pixels were not compared with the receipt, which has no hash"),
            "{}",
            said.stdout
        );
    }

    #[test]
    fn verify_generates_again_and_says_what_differs() {
        let scratch = Scratch::new();
        let lora = scratch.path("ink.safetensors");
        write_lora(&lora, 0.2);
        let typed = format!("{}@0.5", lora.display());
        let first = scratch.draws(&["an apple", "--size", "64x64", "--steps", "3", "--lora", &typed]);
        let made = receipts(&first)[0].clone();
        let drawn = scratch.read("out.png");
        let (width, height, rgb) = pixels(&drawn);
        let verify = |receipt: &Value, more: &[&str]| {
            let path = scratch.path("changed.png");
            fs::write(&path, encode(width, height, &rgb, receipt)).unwrap();
            let mut command = calotype(&["verify", path.to_str().unwrap(), "--json"]);
            let said = Said::of(command.args(more).output().unwrap());
            let json = said.json();
            (said, json)
        };
        let difference =
            |what: &str, expected: &str, got: &str| json!({ "what": what, "expected": expected, "got": got });

        let (said, json) = verify(&made, &[]);
        assert_eq!((said.code, &json["equal"], &json["psnr_db"]), (Some(0), &json!(true), &Value::Null));
        assert_eq!(json["differences"], json!([]), "{}", said.stderr);

        // WebP keeps the pixels; of JPEG it is known what it keeps of them, and what they were.
        for name in ["out.webp", "out.jpg"] {
            let flags = ["an apple", "--size", "64x64", "--steps", "3", "--seed"];
            let seed = made["seed"].to_string();
            let path = scratch.path(name);
            scratch.draws(&[&flags[..], &[&seed, "--lora", &typed, "-o", path.to_str().unwrap()]].concat());
            let verify = || Said::of(calotype(&["verify", path.to_str().unwrap()]).output().unwrap());
            let said = verify();
            assert_eq!(said.code, Some(0), "{name}: {}", said.stderr);
            let mut other = image::open(&path).unwrap().into_rgb8();
            other.put_pixel(9, 9, image::Rgb([255, 0, 0]));
            let text = made.to_string();
            let text = Some(calotype::image_file::RecipeText { parameters: "", json: &text });
            let mut file = fs::File::create(&path).unwrap();
            let format = calotype::image_file::OutputFormat::of_path(&path).unwrap();
            calotype::image_file::encode(&other, format, text, &mut file).unwrap();
            let said = verify();
            assert_eq!(said.code, Some(3), "{name}: {}", said.stdout);
        }

        // The image is the same; what made it is said to have been something else.
        let mut other = made.clone();
        for (name, value) in
            [("calotype", "0.0.1"), ("onnxruntime", "1.2.3"), ("provider", "cuda"), ("cpu", "x y")]
        {
            other[name] = value.into();
        }
        let (said, json) = verify(&other, &[]);
        assert_eq!((said.code, &json["equal"]), (Some(0), &json!(true)), "{}", said.stderr);
        let made_by = |name: &str| made[name].as_str().unwrap();
        let expected = [
            difference("calotype", "0.0.1", made_by("calotype")),
            difference("ONNX Runtime", "1.2.3", made_by("onnxruntime")),
            difference("provider", "cuda", "cpu"),
            difference("CPU", "x y", made_by("cpu")),
        ];
        assert_eq!(json["differences"], json!(expected));

        // Another recipe makes another image.
        let mut other = made.clone();
        other["steps"] = 2.into();
        let (said, json) = verify(&other, &[]);
        assert_eq!((said.code, &json["equal"]), (Some(3), &json!(false)));
        let seed = made["seed"].to_string();
        scratch.draws(&["an apple", "--size", "64x64", "--steps", "2", "--seed", &seed, "--lora", &typed]);
        let (_, _, again) = pixels(&scratch.read("out.png"));
        let squares: f64 = rgb.iter().zip(&again).map(|(a, b)| f64::from(a.abs_diff(*b)).powi(2)).sum();
        let expected = 20.0 * (255.0 / (squares / rgb.len() as f64).sqrt()).log10();
        assert!((json["psnr_db"].as_f64().unwrap() - expected).abs() < 1e-6, "{expected}: {json}");
        assert!(said.stderr.contains("expected the image that its receipt makes, got other pixels, PSNR "));
        let mut other = made.clone();
        other["size"] = "128x128".into();
        let (said, json) = verify(&other, &[]);
        assert_eq!((said.code, &json["psnr_db"]), (Some(3), &Value::Null));
        assert!(said.stderr.contains("got another size, 128x128"), "{}", said.stderr);

        // Other files, and what was typed in place of the receipt's settings.
        let (said, json) = verify(&made, &["--lora", lora.to_str().unwrap()]);
        assert_eq!(
            (said.code, &json["differences"][0]["what"]),
            (Some(3), &json!("lora")),
            "{}",
            said.stderr
        );
        write_lora(&lora, 0.4);
        let (said, json) = verify(&made, &[]);
        let got = format!("{:x}", Sha256::digest(fs::read(&lora).unwrap()));
        let noted = made["lora"][0]["sha256"].as_str().unwrap();
        assert_eq!(json["differences"], json!([difference("--lora", noted, &got)]), "{}", said.stderr);
        assert_eq!(said.code, Some(3));
        let bundle = Bundle::new();
        bundle.edit_manifest(|manifest| manifest["name"] = "other".into());
        bundle.edit(UNET, |bytes| *bytes.last_mut().unwrap() ^= 1);
        let (said, _) = verify(&made, &["-m", bundle.path()]);
        let message = format!("expected an image of other, got one of calotype-emoji-1 with another {UNET}");
        assert!(said.code == Some(3) && said.stderr.contains(&message), "{}", said.stderr);
    }

    fn encode(width: u32, height: u32, rgb: &[u8], receipt: &Value) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut encoder = png::Encoder::new(&mut bytes, width, height);
        encoder.set_color(png::ColorType::Rgb);
        encoder.add_text_chunk("calotype".into(), receipt.to_string()).unwrap();
        encoder.write_header().unwrap().write_image_data(rgb).unwrap();
        bytes
    }

    fn pixels(png: &[u8]) -> (u32, u32, Vec<u8>) {
        let mut reader = png::Decoder::new(std::io::Cursor::new(png)).read_info().unwrap();
        let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
        let frame = reader.next_frame(&mut pixels).unwrap();
        (frame.width, frame.height, pixels)
    }
}

mod bench {
    use super::*;

    fn bench(scratch: &Scratch, args: &[&str]) -> Said {
        Said::of(calotype(&[&["bench"], args].concat()).current_dir(scratch.0.path()).output().unwrap())
    }

    /// A part of a measurement, by its name.
    fn part(measured: &Value, name: &str) -> Value {
        let parts = measured["parts"].as_array().unwrap();
        parts.iter().find(|part| part["name"] == name).cloned().unwrap_or_default()
    }

    #[test]
    fn parts_of_images_are_measured() {
        let scratch = Scratch::new();
        let flags = ["--size", "64x64", "--runs", "2", "--threads", "1", "--json"];
        let said = bench(&scratch, &[&flags[..], &["--steps", "3"]].concat());
        assert_eq!(said.code, Some(0), "{}", said.stderr);
        let first = said.json();
        for (name, samples) in [("text_encoder", 2), ("step", 6), ("vae_decoder", 2), ("image", 2)] {
            let part = part(&first, name);
            let [least, median, most] =
                ["least_s", "median_s", "most_s"].map(|key| part[key].as_f64().expect(name));
            assert!(0.0 < least && least <= median && median <= most, "{part}");
            assert_eq!(part["samples"], samples, "{part}");
            assert_eq!(
                part["gmac_per_s"].as_f64().is_some_and(|speed| speed > 0.0),
                name != "image",
                "{part}"
            );
        }
        assert_eq!(part(&first, "vae_encoder"), Value::Null);
        assert!(first["peak_gmac_per_s"].as_f64().unwrap() > 0.1, "{first}");
        assert!(first["peak_bytes"].as_u64().unwrap() <= first["planned_bytes"].as_u64().unwrap(), "{first}");

        // Of other steps, and with an init image, whose encoder is a part.
        fs::write(scratch.path("first.json"), said.stdout).unwrap();
        scratch.draws(&["x", "--size", "64x64", "--steps", "1"]);
        let more = ["--steps", "2", "--compare", "first.json", "--init", "out.png"];
        let said = bench(&scratch, &[&flags[..], &more].concat());
        assert_eq!(said.code, Some(0), "{}", said.stderr);
        let second = said.json();
        assert!(part(&second, "vae_encoder")["gmac_per_s"].as_f64().unwrap() > 0.0, "{second}");
        let medians = [&second, &first].map(|json| part(json, "step")["median_s"].as_f64().unwrap());
        assert_eq!(second["compared"]["step"].as_f64().unwrap(), medians[0] / medians[1]);
        assert_eq!(second["compared"]["vae_encoder"], Value::Null);
    }

    #[test]
    fn what_cannot_be_measured_is_refused() {
        let scratch = Scratch::new();
        let other = "other.json: expected what `calotype bench --json` printed";
        fs::write(scratch.path("other.json"), "{\"steps\": 3}").unwrap();
        for (args, code, message) in [
            (&["--compare", "other.json"][..], 3, other),
            (&["--compare", "none.json"], 3, "none.json"),
            (&["--count", "2"], 2, "--count: expected --runs"),
            (&["--runs", "0"], 2, "--runs"),
            (&["none"], 4, "model none: "),
        ] {
            bench(&scratch, args).is_refusal(code, &[message]);
        }
    }
}

mod report {
    use super::*;

    #[test]
    fn failure_in_json_is_an_object_too() {
        let said = Scratch::new().generate(&["x", "--steps", "0", "--json"]);
        assert_eq!(said.code, Some(2));
        let expected = serde_json::json!({"error": {
            "kind": "usage", "message": "steps: expected 1 to 1000, got 0", "exit_code": 2,
            "place": "steps", "expected": "1 to 1000", "got": "0",
        }});
        assert_eq!(said.json(), expected);
        assert_eq!(said.stderr, "calotype: steps: expected 1 to 1000, got 0\n");
    }

    #[test]
    fn seconds_add_up() {
        let report = Scratch::new().draws(&["x"]);
        let all = report["seconds"]["all"].as_f64().unwrap();
        let parts = report["images"][0]["seconds"].as_object().unwrap();
        let parts: Vec<f64> = ["text_encoder", "denoising", "vae_decoder"]
            .map(|part| parts[part].as_f64().unwrap())
            .into_iter()
            .chain([report["seconds"]["open"].as_f64().unwrap()])
            .collect();
        assert!(parts.iter().all(|&part| part > 0.0) && parts.iter().sum::<f64>() <= all, "{report}");
    }

    #[test]
    fn inspect_names_every_component() {
        let said = Said::of(calotype(&["inspect", "--json"]).output().unwrap());
        assert_eq!(said.code, Some(0), "{}", said.stderr);
        let report = said.json();
        let manifest = manifest();
        assert_eq!(report["name"], manifest["name"]);
        for (name, component) in manifest["components"].as_object().unwrap() {
            assert_eq!(report["components"][name]["graph"], component["graph"]);
            assert!(report["components"][name]["parameters"].as_u64().unwrap() > 0);
        }
        let said = Said::of(calotype(&["inspect"]).output().unwrap());
        assert!(said.stdout.contains("unet: ") && said.stdout.contains("  in  sample: "), "{}", said.stdout);
    }

    #[test]
    fn inspect_of_a_damaged_model() {
        let bundle = Bundle::new();
        bundle.damage(UNET, |bytes| bytes.truncate(100));
        let said = Said::of(calotype(&["inspect", bundle.path()]).output().unwrap());
        said.is_refusal(4, &["weights/unet.safetensors: expected ", ", got 100; the file is damaged"]);
    }

    #[test]
    fn no_run_leaves_a_trace_in_the_home_folder() {
        let (scratch, home) = (Scratch::new(), Scratch::new());
        let mut command = scratch.command(&["a cat"]);
        for variable in ["XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME"] {
            command.env_remove(variable);
        }
        let said = Said::of(command.env("HOME", home.path("")).output().unwrap());
        assert_eq!(said.code, Some(0), "{}", said.stderr);
        assert_eq!(
            home.files(),
            [""; 0],
            "ONNX Runtime keeps a database of its runs unless it is told not to"
        );
    }

    #[test]
    fn doctor_knows_the_library() {
        let said = Said::of(calotype(&["doctor", "--json"]).output().unwrap());
        assert_eq!(said.code, Some(0), "{}", said.stderr);
        let providers = &said.json()["onnxruntime"]["providers"];
        assert!(providers.as_array().unwrap().contains(&"CPUExecutionProvider".into()), "{providers}");
        let said = Said::of(calotype(&["doctor", "--ort", "no/such/library.so"]).output().unwrap());
        said.is_refusal(6, &["no ONNX Runtime library could be loaded: the one named ("]);
    }

    #[test]
    fn doctor_says_what_there_is_and_how_to_get_the_rest() {
        let said = Said::of(calotype(&["doctor", "--json"]).output().unwrap());
        let json = said.json();
        let providers = json["providers"].as_array().unwrap();
        assert_eq!(providers.len(), 9);
        assert_eq!(
            (providers[0]["name"].as_str(), providers[0]["present"].as_bool()),
            (Some("cpu"), Some(true))
        );
        assert!(providers.iter().all(|provider| !provider["source"].as_str().unwrap().is_empty()));
        assert!(!json["devices"].as_array().unwrap().is_empty());
        if cfg!(target_os = "linux") {
            let number = |name: &str| json["memory"][name].as_u64().unwrap();
            assert!(number("available_bytes") <= number("total_bytes"));
        }
        let said = Said::of(calotype(&["doctor"]).output().unwrap());
        for part in ["CPU: ", "memory: ", "device: cpu from ", "provider cpu: in this library"] {
            assert!(said.stdout.contains(part), "expected {part:?} in {:?}", said.stdout);
        }
        // The library of this build has the CPU alone.
        if cfg!(all(target_os = "linux", target_arch = "x86_64")) {
            let said = Said::of(calotype(&["doctor"]).env("XDG_CACHE_HOME", "/cache dir").output().unwrap());
            for line in [
                "    pip install --target \"/cache dir/calotype/libraries/openvino\" onnxruntime-openvino\n",
                "    calotype doctor --certify --provider openvino --ort \
                 \"/cache dir/calotype/libraries/openvino/onnxruntime/capi\"/libonnxruntime.so.1.*\n",
            ] {
                assert!(said.stdout.contains(line), "expected {line:?} in {}", said.stdout);
            }
            assert!(!said.stdout.contains("onnxruntime-directml\n"), "for Windows: {}", said.stdout);
        }
    }

    #[test]
    fn doctor_certifies() {
        let said =
            Said::of(calotype(&["doctor", "--certify", "--provider", "cpu", "--json"]).output().unwrap());
        assert_eq!(said.code, Some(0), "{}", said.stderr);
        let json = said.json();
        let certificates = json["certificates"].as_array().unwrap();
        assert_eq!(certificates.len(), 4);
        for certificate in certificates {
            assert!(certificate["error"].as_f64().unwrap() < certificate["limit"].as_f64().unwrap());
            assert!(certificate["seconds"]["run"].as_f64().unwrap() > 0.0);
        }
        assert_eq!(said.stderr.lines().count(), 4, "one line as each is done: {}", said.stderr);
        let said = Said::of(calotype(&["doctor", "--model", BUILT_IN]).output().unwrap());
        assert_eq!(said.code, Some(2), "a model is for --certify alone");
    }

    #[test]
    fn providers_that_are_missing_are_errors_and_fallbacks_are_told() {
        // A library for a processor alone lacks it everywhere.
        let scratch = Scratch::new();
        scratch.refuses(
            &["a cat", "--provider", "qnn"],
            6,
            &["text_encoder: provider qnn: not in this ONNX Runtime build"],
        );
        scratch.refuses(
            &["a cat", "--provider", "unet=qnn"],
            6,
            &["unet: provider qnn", "pip install onnxruntime-qnn"],
        );
        scratch.refuses(
            &["a cat", "--provider", "qn"],
            2,
            &["expected one of cpu, cuda", "did you mean qnn?"],
        );
        scratch.refuses(&["a cat", "--provider", "plugin:none.so"], 6, &["none.so"]);

        scratch.refuses(
            &["a cat", "--provider", "vae=qnn,vae=cpu", "--memory", "1B"],
            2,
            &["memory: expected all components on the CPU, got qnn for vae_encoder", "leave out --memory"],
        );

        let said = scratch.generate(&["a cat", "--seed", "1", "--provider", "unet=qnn,unet=cpu", "--json"]);
        assert_eq!(said.code, Some(0), "{}", said.stderr);
        assert!(
            said.stderr.contains("calotype: unet: not on qnn: not in this ONNX Runtime build"),
            "{}",
            said.stderr
        );
        assert!(said.stderr.contains("calotype: unet: on cpu\n"), "{}", said.stderr);
        let json = said.json();
        let placements = json["placements"].as_array().unwrap();
        let unet = placements.iter().find(|placement| placement["component"] == "unet").unwrap();
        assert_eq!(unet["providers"], serde_json::json!(["cpu"]));
        assert_eq!(unet["passed_over"][0]["provider"], "qnn");
        assert!(json["memory"]["planned_bytes"].is_null(), "what devices have is not planned");
        assert_eq!(texts(&scratch.read("out.png")).receipt()["provider"], "cpu");
    }
}

/// What an image says of itself.
struct Texts {
    parameters: String,
    calotype: String,
}

impl Texts {
    fn receipt(&self) -> Value {
        serde_json::from_str(&self.calotype).unwrap()
    }
}

fn texts(png: &[u8]) -> Texts {
    let reader = png::Decoder::new(std::io::Cursor::new(png)).read_info().unwrap();
    let info = reader.info();
    let of = |keyword: &str| {
        let latin1 = info.uncompressed_latin1_text.iter().find(|chunk| chunk.keyword == keyword);
        let utf8 = info.utf8_text.iter().find(|chunk| chunk.keyword == keyword);
        let text = latin1.map(|chunk| chunk.text.clone());
        text.or_else(|| utf8.map(|chunk| chunk.get_text().unwrap())).expect(keyword)
    };
    Texts { parameters: of("parameters"), calotype: of("calotype") }
}

/// Images within a time.
mod deadline {
    use super::*;

    #[test]
    fn an_image_with_time_to_spare_is_the_same_and_one_without_is_refused() {
        let scratch = Scratch::new();
        let flags = ["a red apple", "--size", "64x64", "--seed", "3", "--steps", "6"];
        let plain = scratch.draws(&flags);
        let drawn = scratch.read("out.png");
        let within = scratch.draws(&[&flags[..], &["--deadline", "10min"]].concat());
        assert_eq!(
            (&within["images"][0]["receipt"], scratch.read("out.png")),
            (&plain["images"][0]["receipt"], drawn)
        );
        let stopped = scratch.draws(&[&flags[..], &["--stop-after", "3"]].concat());
        assert_eq!(stopped["images"][0]["receipt"]["stop_after"], 3);
        let path = scratch.path("out.png");
        assert_eq!(calotype(&["verify", path.to_str().unwrap()]).status().unwrap().code(), Some(0));
        fs::remove_file(path).unwrap();
        for (typed, code, message) in [
            (&["--deadline", "1ms"][..], 2, "deadline: expected at least "),
            (&["--deadline", "0s"], 2, "expected a time of at most a day, as in 8s, 500ms or 2m"),
            (&["--deadline", "8h"], 2, "expected a time of at most a day"),
            (&["--deadline", "8s", "--hires", "2x"], 2, "expected an image that is made in one pass"),
            (&["--deadline", "8s", "--journal", "j"], 2, "--journal"),
            (&["--stop-after", "7"], 2, "stop after: expected 1 to 6 steps, got 7"),
        ] {
            scratch.refuses(&[&flags[..], typed].concat(), code, &[message]);
        }
    }
}

/// Runs that are killed go on from their journals.
#[cfg(unix)]
mod journal {
    use std::time::Duration;

    use super::*;

    const RUN: [&str; 9] = [
        "a red apple on a blue background",
        "--seed",
        "5",
        "--steps",
        "30",
        "--sampler",
        "dpm++2m-sde",
        "--count",
        "2",
    ];

    /// Starts a run and kills it after a while, counted from when its journal has a state.
    pub(super) fn kill(mut command: Command, journal: &Path, after: Duration) {
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        while !journal.join("state").exists() && child.try_wait().unwrap().is_none() {
            std::thread::sleep(Duration::from_millis(2));
        }
        std::thread::sleep(after);
        // SIGKILL; nothing of the program can mind it.
        let _ = child.kill();
        child.wait().unwrap();
    }

    fn with_journal(scratch: &Scratch, journal: &Path) -> Command {
        let mut command = scratch.command(&RUN);
        command.arg("--journal").arg(journal);
        command
    }

    fn resume(journal: &Path) -> Said {
        Said::of(calotype(&["resume"]).arg(journal).output().unwrap())
    }

    #[test]
    fn killed_runs_end_with_the_same_bytes() {
        let scratch = Scratch::new();
        assert_eq!(scratch.generate(&RUN).code, Some(0));
        let images = ["out-1.png", "out-2.png"];
        let whole = images.map(|name| scratch.read(name));
        let (journal, mut resumed) = (scratch.path("new/journal"), 0);
        for row in 0..4_u64 {
            images.iter().for_each(|name| fs::remove_file(scratch.path(name)).unwrap());
            // Other moments in each row; the first is that of the first snapshot on any machine, which the last resume then has.
            kill(with_journal(&scratch, &journal), &journal, Duration::from_millis(row * 170));
            if row > 0 {
                let mut again = calotype(&["resume"]);
                again.arg(&journal);
                kill(again, &journal, Duration::from_millis(row * 450));
            }
            if journal.exists() {
                let said = resume(&journal);
                assert_eq!(said.code, Some(0), "row {row}: {}", said.stderr);
                resumed += said.stderr.matches("resumed after step ").count();
            }
            assert_eq!(images.map(|name| scratch.read(name)), whole, "row {row}");
            assert_eq!(scratch.files(), ["new", "out-1.png", "out-2.png"], "row {row}");
            assert!(!journal.exists(), "row {row}: a finished run left its journal");
        }
        assert!(resumed > 0, "no run went on from a snapshot");
    }

    #[test]
    fn snapshots_that_are_damaged_or_of_other_runs_are_not_used() {
        let scratch = Scratch::new();
        let (journal, other) = (scratch.path("journal"), scratch.path("other"));
        let mut foreign = with_journal(&scratch, &other);
        foreign.args(["-n", "blue"]);
        kill(foreign, &other, Duration::ZERO);
        let foreign = fs::read(other.join("state")).unwrap();
        kill(with_journal(&scratch, &journal), &journal, Duration::ZERO);
        assert_eq!(scratch.generate(&RUN).code, Some(0));
        let whole = scratch.read("out-2.png");
        let files = ["job", "state"].map(|name| (name, fs::read(journal.join(name)).unwrap()));
        let mut damaged = files[1].1.clone();
        let middle = damaged.len() / 2;
        damaged[middle] ^= 1;
        for (state, reason) in [(damaged, ": the run starts over\n"), (foreign, ": the image starts over\n")]
        {
            fs::create_dir_all(&journal).unwrap();
            files.iter().for_each(|(name, bytes)| fs::write(journal.join(name), bytes).unwrap());
            fs::write(journal.join("state"), state).unwrap();
            let said = resume(&journal);
            assert_eq!(said.code, Some(0), "{}", said.stderr);
            assert!(said.stderr.contains(reason), "{}", said.stderr);
            assert_eq!(scratch.read("out-2.png"), whole, "{reason:?}");
        }
    }

    #[test]
    fn what_cannot_be_resumed_is_refused() {
        let scratch = Scratch::new();
        resume(&scratch.path("none")).is_refusal(3, &["journal: ", "expected a journal"]);
        let (folder, journal) = (scratch.path(""), scratch.path("journal"));
        resume(&folder).is_refusal(3, &["journal: ", "expected a journal"]);
        fs::create_dir(&journal).unwrap();
        fs::write(journal.join("job"), "x").unwrap();
        resume(&journal).is_refusal(3, &["journal: ", "damaged or truncated"]);
        let journal = journal.to_str().unwrap();
        scratch
            .generate(&["x", "--size", "64x64", "--journal", journal])
            .is_refusal(2, &["journal: ", "got one with a journal", "`calotype resume`"]);
        for piped in [&["x", "-o", "-", "--journal", "new"][..], &["-", "--journal", "new"]] {
            scratch.generate(piped).is_refusal(2, &["--journal: expected files"]);
        }
    }
}

/// Files of recipes.
#[cfg(unix)]
mod batch {
    use std::time::Duration;

    use serde_json::json;

    use super::*;

    /// Writes lines, each with the settings of a small image where it has none.
    fn write(scratch: &Scratch, lines: &[Value]) {
        let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
        fs::write(scratch.path("lines.jsonl"), text).unwrap();
    }

    fn command(scratch: &Scratch) -> Command {
        let mut command = calotype(&["batch", "lines.jsonl", "-o", "images"]);
        command.current_dir(scratch.path("")).stdin(Stdio::null());
        command
    }

    /// Runs a file of recipes: the results that were printed.
    fn run(scratch: &Scratch, code: i32) -> Vec<Value> {
        let said = Said::of(command(scratch).output().unwrap());
        assert_eq!(said.code, Some(code), "{}", said.stderr);
        said.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    fn statuses(results: &[Value]) -> Vec<&str> {
        results.iter().map(|result| result["status"].as_str().unwrap()).collect()
    }

    #[test]
    fn lines_become_the_images_of_generate_and_are_skipped_when_done() {
        let scratch = Scratch::new();
        let apple = json!({ "prompt": "a red apple", "seed": 7, "steps": 2, "size": "64x64" });
        let cat = json!({ "prompt": "a cat", "steps": 1, "size": "64x64", "output": "cats/cat.webp" });
        write(&scratch, &[apple.clone(), cat.clone()]);
        // What a batch leaves that is killed while its journal begins.
        let journal = scratch.path("images/.calotype-batch");
        fs::create_dir_all(&journal).unwrap();
        fs::write(journal.join("job.part"), "half").unwrap();
        let first = run(&scratch, 0);
        assert!(!journal.exists());
        assert_eq!(statuses(&first), ["done", "done"]);
        assert_eq!(
            (&first[0]["line"], &first[0]["file"], &first[0]["seed"]),
            (&json!(1), &json!("00001.png"), &json!(7))
        );
        scratch.draws(&["a red apple", "--seed", "7", "--size", "64x64"]);
        assert_eq!(scratch.read("images/00001.png"), scratch.read("out.png"));
        // The seed that was chosen is reported, and makes the image again.
        let seed = first[1]["seed"].to_string();
        let webp = scratch.path("out.webp");
        scratch.draws(&[
            "a cat",
            "--seed",
            &seed,
            "--size",
            "64x64",
            "--steps",
            "1",
            "-o",
            webp.to_str().unwrap(),
        ]);
        assert_eq!(scratch.read("images/cats/cat.webp"), scratch.read("out.webp"));

        // A journal that is damaged.
        fs::create_dir_all(&journal).unwrap();
        fs::write(journal.join("job"), "x").unwrap();
        let again = run(&scratch, 0);
        assert!(!journal.exists());
        assert_eq!(statuses(&again), ["skipped", "skipped"]);
        assert_eq!(again[1]["seed"], first[1]["seed"]);
        // An image that was changed or deleted, and a line that was.
        fs::write(scratch.path("images/00001.png"), "x").unwrap();
        fs::remove_file(scratch.path("images/cats/cat.webp")).unwrap();
        assert_eq!(statuses(&run(&scratch, 0)), ["done", "done"]);
        assert_eq!(scratch.read("images/00001.png"), scratch.read("out.png"));
        let mut other = apple.clone();
        other["seed"] = json!(8);
        write(&scratch, &[other, cat.clone()]);
        assert_eq!(statuses(&run(&scratch, 0)), ["done", "skipped"]);
        assert_ne!(scratch.read("images/00001.png"), scratch.read("out.png"));
        // A flag is over all lines; a log that ends within a line is taken as far as it goes.
        let log = scratch.read("images/results.jsonl");
        fs::write(scratch.path("images/results.jsonl"), [&log[..], b"{\"file\": "].concat()).unwrap();
        write(&scratch, &[apple, cat]);
        let said = Said::of(command(&scratch).args(["--seed", "7", "--json"]).output().unwrap());
        assert_eq!((said.code, said.json()), (Some(0), json!({ "done": 2, "skipped": 0, "failed": 0 })));
        assert_eq!(scratch.read("images/00001.png"), scratch.read("out.png"));
        let log = String::from_utf8(scratch.read("images/results.jsonl")).unwrap();
        assert!(log.lines().all(|line| serde_json::from_str::<Value>(line).is_ok()), "{log}");
    }

    #[test]
    fn lines_that_fail_are_told_and_others_go_on() {
        let scratch = Scratch::new();
        let good = json!({ "prompt": "a dog", "steps": 1, "size": "64x64" });
        let with = |name: &str, value: Value| {
            let mut line = good.clone();
            line[name] = value;
            line
        };
        let lines = [
            with("stepz", json!(3)),
            with("steps", json!(0)),
            with("init", json!("none.png")),
            with("output", json!("../escaped.png")),
            with("output", json!("/tmp/escaped.png")),
            with("output", json!("nul\u{0}.png")),
            with("output", json!("00008.png")),
            good.clone(),
            with("output", json!(5)),
            with("output", json!("x.doc")),
            with("model", json!("none.safetensors")),
            json!([]),
            with("output", json!("last.png")),
        ];
        write(&scratch, &lines);
        let results = run(&scratch, 3);
        let messages: Vec<&str> =
            results.iter().map(|result| result["error"]["message"].as_str().unwrap_or("done")).collect();
        let expected = [
            "did you mean steps?",
            "steps: expected",
            "init: expected",
            "got \"../escaped.png\"",
            "got \"/tmp/escaped.png\"",
            "got \"nul\\0.png\"",
            "done",
            "00008.png, which line 7 has",
            "output: expected a file name, got 5",
            "x.doc",
            "none.safetensors",
            "recipe: expected a JSON object",
            "done",
        ];
        assert_eq!(messages.len(), expected.len());
        for (message, expected) in messages.iter().zip(expected) {
            assert!(message.contains(expected), "expected {expected:?}, got {message:?}");
        }
        assert!(!scratch.path("escaped.png").exists());
        let said = Said::of(command(&scratch).output().unwrap());
        assert!(said.stderr.ends_with("11 of 13 lines failed, line 1 first\n"), "{}", said.stderr);
        for flags in [["--count", "2"], ["--from", "x.json"]] {
            Said::of(command(&scratch).args(flags).output().unwrap())
                .is_refusal(2, &["expected one line in FILE"]);
        }
        // What is no file of recipes is refused at its first line.
        fs::write(scratch.path("lines.jsonl"), "\na prompt\nanother\n").unwrap();
        let said = Said::of(command(&scratch).output().unwrap());
        said.is_refusal(3, &["recipe: expected a JSON object"]);
        assert!(
            said.stdout.is_empty() && said.stderr.contains("0 done, 0 skipped, 0 failed"),
            "{}",
            said.stderr
        );
        // Another program's file is not written to.
        fs::write(scratch.path("images/results.jsonl"), "a note\n").unwrap();
        Said::of(command(&scratch).output().unwrap())
            .is_refusal(3, &["results.jsonl: line 1: expected a result"]);
        assert_eq!(scratch.read("images/results.jsonl"), b"a note\n");
    }

    #[test]
    fn killed_batches_end_with_the_same_bytes() {
        let settings = ["--steps", "30", "--sampler", "dpm++2m-sde"];
        for seed in [Some(5), None] {
            let scratch = Scratch::new();
            let line =
                json!({ "prompt": "a red apple", "steps": 30, "sampler": "dpm++2m-sde", "seed": seed });
            write(&scratch, &[line.clone(), line]);
            let journal = scratch.path("images/.calotype-batch");
            super::journal::kill(command(&scratch), &journal, Duration::ZERO);
            let said = Said::of(command(&scratch).output().unwrap());
            assert_eq!(said.code, Some(0), "{}", said.stderr);
            assert!(said.stderr.contains("resumed after step "), "{}", said.stderr);
            assert!(!journal.exists());
            for result in said.stdout.lines() {
                let result: Value = serde_json::from_str(result).unwrap();
                let (file, seed) = (result["file"].as_str().unwrap(), result["seed"].to_string());
                scratch.draws(&[&["a red apple", "--seed", &seed][..], &settings].concat());
                assert_eq!(scratch.read(&format!("images/{file}")), scratch.read("out.png"), "{result}");
            }
        }
    }
}

/// One image for each combination of settings, and a sheet.
mod grid {
    use serde_json::json;

    use super::*;

    const GRID: [&str; 8] = [
        "a red apple",
        "--seed",
        "3",
        "--size",
        "64x64",
        "--grid",
        "steps=1,2,3",
        "--grid=sampler=euler|DPM++ 2M Karras",
    ];

    #[test]
    fn cells_are_images_of_their_own_beside_a_labelled_sheet() {
        let scratch = Scratch::new();
        let report = scratch.draws(&GRID);
        let names: Vec<String> = (1..=6).map(|cell| format!("out-{cell}.png")).collect();
        let files: Vec<&str> = names.iter().map(String::as_str).chain(["out.png"]).collect();
        assert_eq!(scratch.files(), files);
        assert_eq!(report["grid"]["axes"][0], json!({ "field": "steps", "values": ["1", "2", "3"] }));
        // Columns first; each is the image of its settings alone.
        let cell = scratch.read("out-5.png");
        let alone =
            ["a red apple", "--seed", "3", "--size", "64x64", "--steps", "2", "--sampler", "DPM++ 2M Karras"];
        let place = scratch.path("alone.png");
        scratch.draws(&[&alone[..], &["-o", place.to_str().unwrap()]].concat());
        assert_eq!(cell, scratch.read("alone.png"));
        let open = |name: &str| image::open(scratch.path(name)).unwrap().to_rgb8();
        let sheet = open("out.png");
        // Three columns and two rows, behind labels.
        assert!(sheet.width() > 3 * 64 && sheet.height() > 2 * 64, "{:?}", sheet.dimensions());
        let (left, top) = (sheet.width() - 3 * 72, sheet.height() - 2 * 72);
        for (index, name) in names.iter().enumerate() {
            let (x, y) = (left + index as u32 % 3 * 72, top + index as u32 / 3 * 72);
            let part = image::imageops::crop_imm(&sheet, x, y, 64, 64).to_image();
            assert_eq!(part, open(name), "{name}");
        }
        // Something is written above and beside them, in black on white.
        for (x, y, width, height) in [(left, 0, 64, top), (0, top, left, 64)] {
            let label = image::imageops::crop_imm(&sheet, x, y, width, height).to_image();
            let black = label.pixels().filter(|pixel| pixel.0 == [0; 3]).count();
            assert!(
                black > 30 && label.pixels().all(|pixel| [[0; 3], [255; 3]].contains(&pixel.0)),
                "{black}"
            );
        }
    }

    #[test]
    fn cells_may_have_other_sizes_within_a_budget() {
        let scratch = Scratch::new();
        let args =
            ["a cat", "--seed", "3", "--steps", "1", "--memory", "110MiB", "--grid", "size=64x64,128x96"];
        let report = scratch.draws(&args);
        let peak = report["memory"]["peak_bytes"].as_u64().unwrap();
        assert!(peak <= 110 << 20, "{peak}");
        let size = |name: &str| image::image_dimensions(scratch.path(name)).unwrap();
        assert_eq!((size("out-1.png"), size("out-2.png")), ((64, 64), (128, 96)));
    }

    #[test]
    fn grids_that_cannot_be_are_refused() {
        let scratch = Scratch::new();
        for (grid, message) in [
            (&["steps"][..], "--grid: expected a setting and its values like steps=10,20"),
            (&["steps=1,,2"], "--grid: expected a setting and its values"),
            (&["steps=1"], "--grid: expected 2 to 10000 images"),
            (&["steps=1,2", "steps=3,4"], "--grid: expected each setting once"),
            (&["stepz=1,2"], "did you mean steps?"),
            (&["steps=1,x"], "grid: steps: expected a whole number"),
            (&["model=a,b"], "which is of a file"),
            (&["init=a,b"], "which is of a file"),
            (&["sampler=euler,eulr"], "eulr"),
            (&["steps=1,0"], "steps: expected"),
        ] {
            let args: Vec<&str> =
                ["x"].into_iter().chain(grid.iter().flat_map(|axis| ["--grid", axis])).collect();
            scratch.refuses(&args, 2, &[message]);
        }
        scratch.refuses(&["x", "--grid", "steps=1,2", "--count", "2"], 2, &["got --count"]);
        scratch.refuses(&["x", "--grid", "steps=1,2", "-o", "-"], 2, &["got standard output"]);
    }
}
