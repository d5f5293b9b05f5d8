//! Mapped weights: opening a model takes next to no private memory, whatever it is kept in. Each model is opened by a process of
//! its own, whose anonymous pages the kernel counts.
#![cfg(target_os = "linux")]

use std::fs;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::Command;

use calotype::engine::{Residency, Session, SessionOptions};
use calotype::model::Model;

use super::golden::{Precision, scratch};
use super::wide;

/// The part of the weights that may be private memory while a model is open: graphs, sessions and the heaps of their threads,
/// which in a model of this width are a larger part than in a published one (SD 1.5: 1.1 % in f16). A component that is copied is
/// far more.
const PRIVATE_PART: u64 = 14;
/// This test, and the variable that makes it the process which opens a model.
const NAME: &str = "mapped::weights_stay_where_they_lie";
const OPENED: &str = "CALOTYPE_TEST_OPENED";
const FOUND: &str = "private bytes: ";

/// Pages that this process alone has and that are of no file.
fn anonymous_bytes() -> u64 {
    let table = fs::read_to_string("/proc/self/smaps_rollup").unwrap();
    let row = table.lines().find_map(|line| line.strip_prefix("Anonymous:")).unwrap();
    row.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() * 1024
}

/// Opens a model with all its components and tells what that takes, in private memory and of weights.
fn open(path: &Path) {
    let library = calotype::engine::Library::load(None).unwrap();
    assert!(!library.version().is_empty());
    let before = anonymous_bytes();
    let model = Model::open(path).unwrap();
    let options = SessionOptions { residency: Residency::PerStage, ..SessionOptions::new(NonZeroUsize::MIN) };
    let mut sessions = Vec::new();
    let mut weights_bytes = 0;
    for part in model.parts() {
        weights_bytes += part.weights().iter().map(|(_, tensor)| tensor.len_bytes()).sum::<usize>();
        sessions.push(Session::open(part.bind().unwrap(), &options).unwrap());
    }
    println!("\n{FOUND}{} {weights_bytes}", anonymous_bytes().saturating_sub(before));
}

#[test]
fn weights_stay_where_they_lie() {
    if let Some(path) = std::env::var_os(OPENED).map(PathBuf::from) {
        open(&path);
        return;
    }
    let folder = scratch();
    let golden = wide::middling();
    for (precision, name) in [(Precision::F32, "f32"), (Precision::F16, "f16")] {
        let place = folder.path().join(name);
        golden.write_folder(&place, precision, false, 1);
        let file = folder.path().join(format!("{name}.safetensors"));
        golden.write_single_file(&file, precision);
        let bundle = folder.path().join(format!("{name}-bundle"));
        wide::pack(&place, &bundle, ["--weights", name]);
        for path in [&place, &file, &bundle] {
            let output = Command::new(std::env::current_exe().unwrap())
                .args(["--exact", NAME, "--nocapture"])
                .env(OPENED, path)
                .output()
                .unwrap();
            let said = String::from_utf8_lossy(&output.stdout);
            let found = said.lines().find_map(|line| line.strip_prefix(FOUND));
            let numbers: Vec<u64> = found
                .unwrap_or_else(|| panic!("{output:?}"))
                .split(' ')
                .map(|number| number.parse().unwrap())
                .collect();
            let (private, weights) = (numbers[0], numbers[1]);
            println!("{}: {private} private bytes, {weights} of weights", path.display());
            assert!(weights > 300 << 20 >> u32::from(name == "f16"), "{weights}");
            assert!(private < weights / PRIVATE_PART, "{}: {private} of {weights}", path.display());
        }
    }
}
