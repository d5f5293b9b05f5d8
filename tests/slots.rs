//! `calotype bundle`: what is installed is whole, what is tried and fails is not put in use, and a kill at any moment leaves the bundle in use
//! as it was.

#![cfg(all(unix, feature = "cli", feature = "builtin"))]

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

const BUILT_IN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/models/builtin");
const WEIGHTS: &str = "weights/unet.safetensors";

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_calotype"));
    command.arg("bundle").args(arguments);
    command
}

/// What a command says in JSON, which ends with this code.
#[track_caller]
fn run(arguments: &[&str], code: i32) -> Value {
    let output = command(arguments).arg("--json").output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
    serde_json::from_slice(&output.stdout).unwrap()
}

#[track_caller]
fn refuses(arguments: &[&str], code: i32, message: &str) {
    let error = run(arguments, code)["error"]["message"].to_string();
    assert!(error.contains(message), "expected {message:?}, got {error}");
}

struct Slots(TempDir);

impl Slots {
    fn new() -> Self {
        Self(TempDir::new().unwrap())
    }

    /// With the built-in model in use in `a`, or in both slots, of which `b` is in use.
    fn in_use(has_both: bool) -> Self {
        let slots = Self::new();
        for _ in 0..1 + usize::from(has_both) {
            slots.install(Path::new(BUILT_IN));
            run(&["activate", slots.folder()], 0);
        }
        slots
    }

    fn folder(&self) -> &str {
        self.0.path().to_str().unwrap()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    #[track_caller]
    fn install(&self, bundle: &Path) -> Value {
        run(&["install", bundle.to_str().unwrap(), self.folder()], 0)
    }

    fn active(&self) -> Option<PathBuf> {
        fs::read_link(self.path("active")).ok()
    }

    /// Whether every file of a slot is that of the built-in model; none for a slot without a manifest.
    fn is_whole(&self, slot: &str) -> Option<bool> {
        let manifest = fs::read(self.path(slot).join("calotype.json")).ok()?;
        let json: Value = serde_json::from_slice(&manifest).unwrap();
        let same = |name: &String| {
            fs::read(self.path(slot).join(name)).ok()
                == Some(fs::read(Path::new(BUILT_IN).join(name)).unwrap())
        };
        Some(json["files"].as_object().unwrap().keys().all(same))
    }
}

/// A copy of the built-in model, of which a file is changed and, if so, its record in the manifest.
fn changed(name: &str, records: bool, change: impl FnOnce(&mut Vec<u8>)) -> TempDir {
    let slots = Slots::new();
    slots.install(Path::new(BUILT_IN));
    let bundle = TempDir::new().unwrap();
    fs::rename(slots.path("a"), bundle.path().join("x")).unwrap();
    let path = bundle.path().join("x").join(name);
    let mut bytes = fs::read(&path).unwrap();
    change(&mut bytes);
    fs::write(&path, &bytes).unwrap();
    if records {
        let manifest = bundle.path().join("x/calotype.json");
        let mut json: Value = serde_json::from_slice(&fs::read(&manifest).unwrap()).unwrap();
        json["files"][name] =
            json!({ "len_bytes": bytes.len(), "sha256": format!("{:x}", Sha256::digest(&bytes)) });
        fs::write(manifest, serde_json::to_vec(&json).unwrap()).unwrap();
    }
    bundle
}

#[test]
fn a_bundle_is_installed_activated_and_rolled_back() {
    let slots = Slots::new();
    let installed = slots.install(Path::new(BUILT_IN));
    assert_eq!((&installed["installed"], &installed["active"]), (&json!("a"), &Value::Null));
    assert_eq!((slots.is_whole("a"), slots.active()), (Some(true), None));
    for nothing_in_use in ["rollback", "check"] {
        refuses(&[nothing_in_use, slots.folder()], 2, "expected a slot in use, got none");
    }
    let activated = run(&["activate", slots.folder()], 0);
    refuses(&["rollback", slots.folder()], 2, "expected a bundle in slot b, got none");
    assert_eq!((&activated["activated"], &activated["active"]), (&json!("a"), &json!("a")));
    let model = activated["model"].as_str().unwrap();
    let plan = Command::new(env!("CARGO_BIN_EXE_calotype")).args(["plan", "-m", model]).status();
    assert!(plan.unwrap().success());

    assert_eq!(slots.install(Path::new(BUILT_IN))["bundles"], json!({ "a": true, "b": true }));
    assert_eq!(slots.active(), Some("a".into()));
    assert_eq!(run(&["activate", slots.folder()], 0)["active"], "b");
    assert_eq!(run(&["rollback", slots.folder()], 0)["active"], "a");
    assert_eq!(run(&["check", slots.folder()], 0)["whole"], "a");
}

#[test]
fn what_is_damaged_is_not_installed() {
    let slots = Slots::in_use(false);
    let damaged = changed(WEIGHTS, false, |bytes| *bytes.last_mut().unwrap() ^= 1);
    let cut = changed(WEIGHTS, false, |bytes| bytes.truncate(1000));
    let longer = changed(WEIGHTS, false, |bytes| bytes.push(0));
    for bundle in [&damaged, &cut, &longer] {
        let path = bundle.path().join("x");
        refuses(&["install", path.to_str().unwrap(), slots.folder()], 4, "unet.safetensors: expected ");
        assert_eq!(
            (slots.is_whole("a"), slots.is_whole("b"), slots.active()),
            (Some(true), None, Some("a".into()))
        );
    }
    refuses(&["activate", slots.folder()], 2, "expected a bundle in slot b, got none");
    let nothing = slots.path("nothing");
    refuses(&["install", nothing.to_str().unwrap(), slots.folder()], 4, "calotype.json");
    refuses(&["activate", nothing.to_str().unwrap()], 2, "expected a folder of slots, got none");
    let key = "RWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3";
    let unsigned = ["install", BUILT_IN, slots.folder(), "--require-signed", key];
    refuses(&unsigned, 4, "expected a signature");
    let itself = slots.path("b");
    fs::create_dir_all(&itself).unwrap();
    fs::copy(Path::new(BUILT_IN).join("calotype.json"), itself.join("calotype.json")).unwrap();
    refuses(&["install", itself.to_str().unwrap(), slots.folder()], 2, "got the slot to install in");
}

/// Weights that are not numbers are as they should be by their hash, and draw nothing.
#[test]
fn what_fails_its_trial_is_not_activated() {
    let slots = Slots::in_use(false);
    let bad = changed(WEIGHTS, true, |bytes| {
        let from = bytes.len() / 2;
        bytes[from..].fill(0xff);
    });
    slots.install(&bad.path().join("x"));
    refuses(&["activate", slots.folder()], 8, "unet");
    assert_eq!(slots.active(), Some("a".into()));
    // The budget is the trial's, too.
    slots.install(Path::new(BUILT_IN));
    refuses(&["activate", slots.folder(), "--memory", "30MiB"], 5, "memory");
    assert_eq!(slots.active(), Some("a".into()));
    run(&["activate", slots.folder()], 0);
    assert_eq!(slots.active(), Some("b".into()));
}

#[test]
fn a_bundle_that_is_damaged_later_gives_way_to_the_other() {
    let slots = Slots::in_use(true);
    assert_eq!(slots.active(), Some("b".into()));
    let spare = "a";
    let weights = slots.path("b").join(WEIGHTS);
    let mut bytes = fs::read(&weights).unwrap();
    bytes[9999] ^= 1;
    fs::write(&weights, &bytes).unwrap();
    assert_eq!(run(&["check", slots.folder()], 0)["activated"], spare);
    assert_eq!(slots.active(), Some(spare.into()));
    refuses(&["rollback", slots.folder()], 4, "unet.safetensors: expected SHA-256");
    // Nothing is left to take.
    fs::write(slots.path(spare).join(WEIGHTS), &bytes[..1000]).unwrap();
    refuses(&["check", slots.folder()], 4, "unet.safetensors: expected ");
    assert_eq!(slots.active(), Some(spare.into()));
}

#[test]
fn one_process_changes_slots_at_a_time() {
    let slots = Slots::in_use(false);
    let lock = File::options().write(true).open(slots.path(".lock")).unwrap();
    lock.lock().unwrap();
    refuses(&["install", BUILT_IN, slots.folder()], 2, "expected slots that no other process changes");
    drop(lock);
    slots.install(Path::new(BUILT_IN));
}

/// At twelve moments of an installation, from its start to its end.
#[test]
fn a_kill_leaves_the_bundle_in_use() {
    let slots = Slots::in_use(false);
    let started = Instant::now();
    slots.install(Path::new(BUILT_IN));
    let whole = started.elapsed();
    let mut left = Vec::new();
    for moment in 0..12 {
        let mut child =
            command(&["install", BUILT_IN, slots.folder()]).stdout(Stdio::null()).spawn().unwrap();
        thread::sleep(whole.mul_f64(f64::from(moment) / 12.0) + Duration::from_millis(1));
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!((slots.is_whole("a"), slots.active()), (Some(true), Some("a".into())), "{moment}");
        let spare = slots.is_whole("b");
        assert_ne!(spare, Some(false), "{moment}: a manifest and not its files");
        left.push(spare);
    }
    slots.install(Path::new(BUILT_IN));
    assert_eq!(slots.is_whole("b"), Some(true), "after {left:?}");
    let names = |folder: &Path| -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name());
        entries
            .map(|name| name.to_string_lossy().into_owned())
            .filter(|name| name.starts_with(".cal"))
            .collect()
    };
    assert_eq!((names(&slots.path("a")), names(&slots.path("b"))), (Vec::new(), Vec::new()));
    let output: Output = command(&["activate", slots.folder()]).output().unwrap();
    assert!(output.status.success());
}
