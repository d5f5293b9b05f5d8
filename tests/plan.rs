//! The promise of a budget: what is planned is never less than what is measured, and not much more; what cannot be kept is
//! refused before anything is drawn. Each run is a process of its own, whose peak the kernel tells.
#![cfg(target_os = "linux")]

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

/// How much more than is measured may be planned.
const MOST_OVER: f64 = 1.25;
/// Of smaller peaks a share says little: what the library and its threads take is most of them.
const FROM_MIB: f64 = 150.0;
const MIB: f64 = 1048576.0;

fn calotype(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_calotype")).args(arguments).output().unwrap()
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

/// The number under these names.
fn number(json: &Value, names: &[&str]) -> f64 {
    let found = names.iter().fold(json, |json, name| &json[*name]);
    found.as_f64().unwrap_or_else(|| panic!("expected a number at {names:?}, got {json}"))
}

/// Draws a picture of the built-in model within a budget; its pixels, what was planned and what was measured, in MiB.
fn draw(folder: &Path, size: &str, budget: Option<&str>) -> (image::RgbImage, f64, f64) {
    let path = folder.join("picture.png");
    let mut arguments = vec!["generate", "a red apple on a blue background", "--seed", "7", "--steps", "2"];
    arguments.extend(["--size", size, "--json", "-o", path.to_str().unwrap()]);
    arguments.extend(budget.iter().flat_map(|budget| ["--memory", budget]));
    let output = calotype(&arguments);
    assert!(output.status.success(), "{output:?}");
    let json = json(&output);
    let placements: Vec<&Value> = json["placements"].as_array().unwrap().iter().collect();
    assert_eq!(placements.len(), 3, "also of what is closed by now: {placements:?}");
    let [planned, peak] = ["planned_bytes", "peak_bytes"].map(|name| number(&json, &["memory", name]) / MIB);
    (image::open(path).unwrap().to_rgb8(), planned, peak)
}

#[test]
fn what_is_planned_is_kept_and_hardly_more() {
    let folder = tempfile::tempdir().unwrap();
    let mut whole = None;
    for size in ["128x128", "512x384"] {
        for budget in [None, Some("160MiB"), Some("less")] {
            let least = || {
                let plan = json(&calotype(&["plan", "--size", size, "--json"]));
                format!("{}MiB", (number(&plan, &["least_bytes"]) / MIB).ceil() + 1.0)
            };
            let budget = budget.map(|budget| if budget == "less" { least() } else { budget.to_owned() });
            let (picture, planned, peak) = draw(folder.path(), size, budget.as_deref());
            let place = format!("{size} in {budget:?}: planned {planned:.0} MiB, measured {peak:.0} MiB");
            assert!(peak <= planned, "{place}");
            assert!(planned <= peak.max(FROM_MIB) * MOST_OVER, "{place}");
            if let Some(budget) = &budget {
                assert!(planned <= budget.trim_end_matches("MiB").parse().unwrap(), "{place}");
            }
            // Kernels that copy weights round differently; nothing else is to change the picture.
            let first = whole.get_or_insert_with(|| picture.clone());
            if first.dimensions() == picture.dimensions() {
                let worst = first.iter().zip(picture.iter()).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
                assert!(worst <= 2, "{place}: {worst} levels off");
            } else {
                whole = Some(picture);
            }
        }
    }
}

#[test]
fn a_budget_that_is_too_small_is_refused_with_one_that_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("picture.png");
    let draw = |budget: &str| {
        calotype(&["generate", "a pear", "--steps", "1", "--memory", budget, "-o", path.to_str().unwrap()])
    };
    let refused = draw("20MiB");
    assert_eq!(refused.status.code(), Some(5));
    assert!(!path.exists());
    let message = String::from_utf8(refused.stderr).unwrap();
    let least: u32 = message
        .split("at least ")
        .nth(1)
        .and_then(|rest| rest.split(' ').next()?.parse().ok())
        .unwrap_or_else(|| panic!("expected the least budget in {message:?}"));
    let enough = draw(&format!("{}MiB", least + 1));
    assert!(enough.status.success(), "{enough:?}");
}

#[test]
fn sizes_that_are_none() {
    for budget in ["", "300", "MiB", "-1MiB", "nanMiB", "infGiB", "0MiB", "1e99GiB", "12 apples"] {
        let output = calotype(&["plan", &format!("--memory={budget}")]);
        assert_eq!(output.status.code(), Some(2), "{budget:?}: {output:?}");
    }
    for budget in ["200MiB", "0.2GiB", "2e2 MB", "209715200B"] {
        let output = calotype(&["plan", &format!("--memory={budget}")]);
        assert!(output.status.success(), "{budget:?}: {output:?}");
    }
}
