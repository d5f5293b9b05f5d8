//! The limits that the system sets a process: where they leave too little, a run ends with an exit code that says so and a
//! message, never by a signal, and never blames the model.

#![cfg(all(feature = "cli", feature = "builtin"))]
#![cfg(target_os = "linux")]

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use calotype::ErrorKind;
use calotype::engine::Residency;
use calotype::model::Model;
use calotype::pipeline::{Options, Pipeline};
use calotype::recipe::Recipe;
use calotype::weights::{Weights, exit_when_truncated};

/// Runs the program with these limits of a shell's `ulimit`.
fn calotype(limits: &str, arguments: &[&str]) -> Output {
    let folder = tempfile::tempdir().unwrap();
    Command::new("bash")
        .args(["-c", &format!("ulimit -c 0; {limits}; exec \"$0\" \"$@\""), env!("CARGO_BIN_EXE_calotype")])
        .args(arguments)
        .current_dir(folder.path())
        .output()
        .unwrap()
}

/// How a run within limits ended; panics if it is in a way that is not allowed.
fn end(limits: &str, arguments: &[&str]) -> i32 {
    let output = calotype(limits, arguments);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let place = format!("{limits}: {arguments:?}: {:?}: {said}", output.status);
    assert_eq!(output.status.signal(), None, "{place}");
    let code = output.status.code().unwrap();
    match code {
        0 => {}
        5 => assert!(said.contains("memory"), "{place}"),
        6 => assert!(said.contains("threads: "), "{place}"),
        _ => panic!("{place}"),
    }
    code
}

/// Address spaces from too small for the library to plenty for the image, at places that a seed chooses.
#[test]
fn too_little_address_space_is_exit_code_5() {
    let mut state = 20261127u64;
    let mut random = move |below: u64| {
        // Knuth's linear congruential generator (MMIX).
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) % below
    };
    let mut codes = Vec::new();
    for size in ["128x128", "512x512", "768x768"] {
        for base in (100_000..800_000).step_by(100_000) {
            let limit = base + random(100_000);
            let arguments = ["generate", "a red apple", "--steps", "1", "--seed", "1", "--size", size];
            codes.push(end(&format!("ulimit -v {limit}"), &arguments));
        }
    }
    // Both ends of the range were met.
    assert!(codes.contains(&0) && codes.contains(&5), "{codes:?}");
}

/// The other limits, other commands, and more threads than fit.
#[test]
fn other_limits_and_commands() {
    let draw = ["generate", "a red apple", "--steps", "1", "--size", "512x512"];
    for limit in ["ulimit -d 120000", "ulimit -d 200000", "ulimit -d 300000"] {
        end(limit, &draw);
    }
    let threads = [&draw[..], &["--threads", "1024"]].concat();
    assert_eq!(end("ulimit -v 1500000", &threads), 5);
    for arguments in [&["doctor", "--certify"][..], &["pack", "bundle"], &["plan", "--size", "768x768"]] {
        for limit in [130_000, 180_000, 230_000, 300_000] {
            end(&format!("ulimit -v {limit}"), arguments);
        }
    }
}

/// Fewer threads than a run starts. The superuser's are not counted, so its runs are another user's.
#[test]
fn too_few_threads_are_exit_code_6() {
    let folder = tempfile::tempdir().unwrap();
    let program = Path::new(env!("CARGO_BIN_EXE_calotype"));
    for file in [program, &program.with_file_name("libonnxruntime.so")] {
        std::fs::copy(file, folder.path().join(file.file_name().unwrap())).unwrap();
    }
    let is_root = std::fs::metadata("/proc/self").unwrap().uid() == 0;
    let nobody = 65534;
    if is_root {
        std::os::unix::fs::chown(folder.path(), Some(nobody), Some(nobody)).unwrap();
    }
    let as_user = if is_root { format!("setpriv --reuid {nobody} --clear-groups ") } else { String::new() };
    let mut codes = Vec::new();
    for limit in [1, 2, 3, 4, 5, 6, 8, 64, 100_000] {
        let line = format!(
            "ulimit -u {limit}; exec {as_user}./calotype generate 'a red apple' --steps 1 --threads 4 -o a.png"
        );
        let output = Command::new("bash").args(["-c", &line]).current_dir(folder.path()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let place = format!("{limit}: {:?}: {said}", output.status);
        assert_eq!(output.status.signal(), None, "{place}");
        let code = output.status.code().unwrap();
        assert!(code == 0 || code == 6 && said.contains("thread"), "{place}");
        codes.push(code);
    }
    assert_eq!((codes[0], codes[codes.len() - 1]), (6, 0), "{codes:?}");
}

/// Writes a safetensors file with a vector of so many numbers, whose bytes are all 1.
fn write_weights(path: &Path, len: usize) {
    let bytes = 4 * len;
    let header = format!(r#"{{"x":{{"dtype":"F32","shape":[{len}],"data_offsets":[0,{bytes}]}}}}"#);
    let header = format!("{header:<80}");
    std::fs::write(path, [&80u64.to_le_bytes()[..], header.as_bytes(), &vec![1; bytes]].concat()).unwrap();
}

/// A mapped file that is made shorter: asked for before it is used, an error; when lost bytes are touched all the same, the
/// process ends with a message that names the file, and not by a signal. This test runs itself as that process.
#[test]
fn a_file_that_is_made_shorter_is_named() {
    const NAME: &str = "a_file_that_is_made_shorter_is_named";
    let write = |path: &Path| write_weights(path, 65_536);
    let shorten = |path: &Path| File::options().write(true).open(path).unwrap().set_len(4096).unwrap();
    static OWES_JSON: AtomicBool = AtomicBool::new(true);
    if let Some(path) = std::env::var_os("CALOTYPE_TEST_SHORTENED").map(PathBuf::from) {
        // What the test harness has said before.
        println!();
        exit_when_truncated("test: ", Some(&OWES_JSON));
        let weights = Weights::open(&[&path]).unwrap();
        shorten(&path);
        let lost = weights.get("x").unwrap().to_bytes();
        panic!("expected the process to end, got {} bytes", lost.len());
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("weights \"é\".safetensors");
    write(&path);
    let weights = Weights::open(&[&path]).unwrap();
    weights.check_files().unwrap();
    shorten(&path);
    let error = weights.check_files().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Model);
    assert!(error.to_string().contains(".safetensors: expected 262"), "{error}");
    assert_eq!(error.file(), Some(&*path));

    write(&path);
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", NAME, "--nocapture"])
        .env("CALOTYPE_TEST_SHORTENED", &path)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(4), "{:?}: {said}", output.status);
    assert!(
        said.contains(&format!("test: {}: expected a file that stays as it is", path.display())),
        "{said}"
    );
    let printed = String::from_utf8(output.stdout).unwrap();
    let object: serde_json::Value = serde_json::from_str(printed.lines().last().unwrap()).unwrap();
    let error = &object["error"];
    assert_eq!((&error["kind"], &error["exit_code"]), (&"model".into(), &4.into()));
    // What is not ASCII is a question mark a byte.
    let shown = folder.path().join("weights \"??\".safetensors");
    assert_eq!(error["file"].as_str(), shown.to_str());
    assert!(error["message"].as_str().unwrap().starts_with(shown.to_str().unwrap()));
}

/// The same in the middle of a run, where weights are read from the file at every step.
#[test]
fn a_model_that_is_made_shorter_under_a_run_is_named() {
    const NAME: &str = "a_model_that_is_made_shorter_under_a_run_is_named";
    if let Some(bundle) = std::env::var_os("CALOTYPE_TEST_SHORTENED_MODEL").map(PathBuf::from) {
        exit_when_truncated("test: ", None);
        let mut options = Options::default();
        options.session.residency = Residency::Streamed { segment_bytes: 1 << 20, resident_bytes: 0 };
        let mut pipeline = Pipeline::open(&Model::open(&bundle).unwrap(), &options).unwrap();
        let draft = Recipe { prompt: "a red apple".into(), steps: Some(4), ..Recipe::default() };
        let request = pipeline.request(draft).unwrap();
        let mut run = pipeline.begin(&request).unwrap();
        run.step().unwrap();
        let weights = bundle.join("weights/unet.safetensors");
        File::options().write(true).open(&weights).unwrap().set_len(100_000).unwrap();
        // The readers may still have the first of the weights.
        let ended = (0..3).try_for_each(|_| run.step().map(drop));
        let error = ended.expect_err("weights that are gone");
        eprintln!("{error}");
        std::process::exit(error.kind().exit_code().into());
    }
    let folder = tempfile::tempdir().unwrap();
    let bundle = folder.path().join("bundle");
    let packed = Command::new(env!("CARGO_BIN_EXE_calotype")).arg("pack").arg(&bundle).output().unwrap();
    assert!(packed.status.success(), "{packed:?}");
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", NAME, "--nocapture"])
        .env("CALOTYPE_TEST_SHORTENED_MODEL", &bundle)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(4), "{:?}: {said}", output.status);
    assert!(said.contains("unet.safetensors: expected "), "{said}");
}

/// Replaced by a rename, a model in use stays as it was.
#[test]
fn a_file_that_is_replaced_is_not_missed() {
    let folder = tempfile::tempdir().unwrap();
    let (path, other) = (folder.path().join("a.safetensors"), folder.path().join("b"));
    write_weights(&path, 2);
    let weights = Weights::open(&[&path]).unwrap();
    std::fs::write(&other, "short").unwrap();
    std::fs::rename(&other, &path).unwrap();
    weights.check_files().unwrap();
    assert_eq!(weights.get("x").unwrap().to_bytes(), [1; 8]);
}

/// The program's end, and the most memory that it had, in bytes: the kernel's count, read again and again while it runs.
fn measured(arguments: &[&str]) -> (Output, u64) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_calotype"))
        .args(arguments)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let status = format!("/proc/{}/status", child.id());
    let mut peak_kib = 0;
    while child.try_wait().unwrap().is_none() {
        // A process that has ended has no such row any more.
        let rows = std::fs::read_to_string(&status).unwrap_or_default();
        let row = rows.lines().find_map(|row| row.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB"));
        peak_kib = peak_kib.max(row.map_or(0, |kib| kib.parse().unwrap()));
        std::thread::sleep(Duration::from_millis(1));
    }
    (child.wait_with_output().unwrap(), peak_kib << 10)
}

/// `pack`, `verify` and `doctor --certify` stay within a budget that is less than what they would take, or refuse one that is
/// too small; none is exceeded silently.
#[test]
fn other_commands_within_a_budget() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let bundle = path("bundle");
    let (_, free) = measured(&["pack", "--weights", "f16", &bundle]);
    assert!(free > 100 << 20, "{free}");
    const BUDGETS_MIB: [u64; 6] = [20, 60, 80, 100, 140, 400];
    for command in ["pack", "verify", "doctor"] {
        let mut codes = Vec::new();
        for budget_mib in BUDGETS_MIB {
            let (budget, packed) = (format!("{budget_mib}MiB"), path(&format!("packed-{budget_mib}")));
            let arguments = match command {
                "pack" => vec!["pack", "--weights", "f16", &packed, "--memory", &budget],
                "verify" => vec!["verify", &bundle, "--memory", &budget],
                _ => vec!["doctor", "--certify", "--memory", &budget],
            };
            let (output, peak) = measured(&arguments);
            let said = String::from_utf8_lossy(&output.stderr);
            let place = format!("{arguments:?}: {} MiB at most: {:?}: {said}", peak >> 20, output.status);
            match output.status.code() {
                Some(0) => assert!(peak <= budget_mib << 20, "{place}"),
                Some(5) => assert!(said.contains("memory: expected at most "), "{place}"),
                _ => panic!("{place}"),
            }
            codes.push(output.status.code().unwrap());
        }
        assert_eq!((codes[0], codes[codes.len() - 1]), (5, 0), "{command}: {codes:?}");
        assert!(codes.is_sorted_by(|a, b| a >= b), "{command}: more is enough where less is: {codes:?}");
        let enough = codes.iter().position(|&code| code == 0).map(|at| BUDGETS_MIB[at] << 20);
        assert!(enough.is_some_and(|enough| enough < free), "{command}: {codes:?}, {free} without one");
    }
}

/// A photograph of 48 megapixels within a budget that its pixels alone would exceed: it is decoded at an eighth of its size, which
/// is reported, to nearly the same image; where there is room, as ever.
#[test]
fn a_photograph_whose_pixels_do_not_fit() {
    const WIDTH: u16 = 8000;
    const HEIGHT: u16 = 6000;
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let photo = path("photo.jpg");
    let mut pixels = Vec::with_capacity(3 * usize::from(WIDTH) * usize::from(HEIGHT));
    let wave = |at: u16, length: f32| ((f32::from(at) / length).sin() * 60.0) as i32;
    let across: Vec<[i32; 2]> = (0..WIDTH).map(|x| [wave(x, 400.0), wave(x, 5.0) / 8]).collect();
    for y in 0..HEIGHT {
        let down = wave(y, 300.0);
        for [slow, fast] in &across {
            pixels.extend(
                [128 + slow + fast, 128 + down + fast, 128 + (slow + down) / 2].map(|value| value as u8),
            );
        }
    }
    let encoder = jpeg_encoder::Encoder::new_file(&photo, 85).unwrap();
    encoder.encode(&pixels, WIDTH, HEIGHT, jpeg_encoder::ColorType::Rgb).unwrap();
    drop(pixels);
    let draw = |memory: &str| {
        let out = path(&format!("{memory}.png"));
        let flags =
            ["--init", &photo, "--size", "128x128", "--strength", "0.3", "--steps", "4", "--seed", "1"];
        let (output, peak) =
            measured(&[&["generate", "x", "--memory", memory, "-o", &out], &flags[..]].concat());
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(0), "{memory}: {said}");
        (image::open(&out).unwrap().to_rgb8(), peak, said)
    };
    let (reduced, peak, said) = draw("96MiB");
    assert!(peak <= 96 << 20, "{peak}");
    assert!(said.contains("photo.jpg: decoded at 1/8 of its size"), "{said}");
    let (whole, peak, said) = draw("400MiB");
    assert!(peak > 150 << 20 && !said.contains("of its size"), "{peak}: {said}");
    let off: u64 = whole.iter().zip(reduced.iter()).map(|(a, b)| u64::from(a.abs_diff(*b))).sum();
    let mean = off as f64 / whole.len() as f64;
    assert!(mean < 2.0, "{mean} levels off");
}
