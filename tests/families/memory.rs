//! The promise of a budget over models, sizes, budgets and requests drawn at random: the peak of a run is never above its
//! budget and never above its plan, its plan is not far above it, and a budget that is refused names one that is kept.
//!
//! Each run is a process of its own, in a memory control group whose limit is the budget where groups can be made; what
//! counts is `VmHWM`: private pages, and pages of mapped files while they are in memory. `CALOTYPE_SWEEP=ROWS,SEED,FILE`
//! takes other rows, also of middling width, and appends them to FILE as JSON lines.
#![cfg(target_os = "linux")]

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use image::{GrayImage, Luma, Rgb, RgbImage};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::golden::{Precision, desk};
use super::group::limited;
use super::{onnx, wide};

const MIB: u64 = 1 << 20;
/// How much more than is measured may be planned, and from which peak on that is asked.
const MOST_OVER: f64 = 1.25;
const FROM_BYTES: u64 = 150 * MIB;
/// The exit code of a budget that is refused.
const REFUSED: i32 = 5;
/// How many rows are drawn where nobody says, and of which seed: some two minutes. 200 rows are for once a week.
const ROWS: usize = 16;
const SEED: u64 = 14;

/// SplitMix64 (Steele et al. 2014): rows of one seed are the same everywhere.
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, count: usize) -> usize {
        (self.roll() % count as u64) as usize
    }

    fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len())]
    }
}

/// A model on disk, and how large its pictures may be.
struct Subject {
    name: String,
    path: Option<PathBuf>,
    lora: Option<PathBuf>,
    /// What sides are multiples of, and how many of them at most.
    step_px: usize,
    most_px: usize,
    /// The only size, where there is one.
    takes_picture: bool,
}

/// One line of the sweep.
#[derive(Clone)]
struct Row {
    label: String,
    arguments: Vec<String>,
    budget_of_least: f64,
}

fn subjects(folder: &Path, is_wide: bool) -> (Vec<Subject>, Vec<TempDir>) {
    let mut subjects = vec![];
    let subject = |name: &str, path: PathBuf, lora: Option<&Path>, most_px| Subject {
        name: name.into(),
        path: Some(path),
        lora: lora.map(Path::to_owned),
        step_px: 8,
        most_px,
        takes_picture: true,
    };
    subjects.push(Subject {
        name: "built-in".into(),
        path: None,
        lora: None,
        step_px: 16,
        most_px: 512,
        takes_picture: true,
    });
    let mut families = vec![("sd15", wide::sd15(), 320), ("sdxl", wide::sdxl(), 256)];
    if is_wide {
        families.push(("middling", wide::middling(), 512));
    }
    for (name, golden, most_px) in families {
        let lora = folder.join(format!("{name}-lora.safetensors"));
        wide::write_lora(&lora, &golden.shapes(), 16);
        for (precision, text) in [(Precision::F32, "f32"), (Precision::F16, "f16")] {
            let place = folder.join(format!("{name}-{text}"));
            golden.write_folder(&place, precision, false, 1);
            subjects.push(subject(&format!("{name}-{text}"), place.clone(), Some(&lora), most_px));
            let file = folder.join(format!("{name}-{text}.safetensors"));
            golden.write_single_file(&file, precision);
            subjects.push(subject(&format!("{name}-{text}-file"), file, Some(&lora), most_px));
            if text == "f16" {
                for weights in ["int8", "f16"] {
                    let bundle = folder.join(format!("{name}-{weights}-bundle"));
                    wide::pack(&place, &bundle, weights);
                    subjects.push(subject(&format!("{name}-{weights}-bundle"), bundle, None, most_px));
                }
            }
        }
    }
    let mut kept = Vec::new();
    for layout in ["optimum", "optimum-xl", "olive-io16", "optimum-old"] {
        let (_, desk) = onnx::open(layout);
        let subject = subject(layout, desk.path().to_owned(), None, 256);
        // Their exporters did not foresee odd sizes.
        subjects.push(Subject { step_px: 64, ..subject });
        kept.push(desk);
    }
    (subjects, kept)
}

/// Rows of a seed.
fn rows(count: usize, seed: u64, subjects: &[Subject], folder: &Path) -> Vec<Row> {
    let mut dice = Dice(seed);
    let words = "a photograph of an astronaut riding a white horse through a field of red poppies at dawn, ";
    (0..count)
        .map(|_| {
            // Every third is the built-in model.
            let subject = if dice.chance(30) { &subjects[0] } else { dice.pick(subjects) };
            let side = |dice: &mut Dice| {
                let most = if dice.chance(70) { subject.most_px / 2 } else { subject.most_px };
                (4 * 16 + subject.step_px * dice.below((most - 64) / subject.step_px + 1)).max(64)
            };
            let (width, height) = (side(&mut dice), side(&mut dice));
            let mut arguments = vec!["generate".to_owned()];
            let (parts, long) = match dice.below(6) {
                0 => (1 + dice.below(16), dice.below(2) * 4),
                1 => (1, 1 + dice.below(24)),
                _ => (1, 0),
            };
            let part = |index: usize| format!("{} number {index}, {}", words.repeat(long), "a red apple");
            arguments.push((0..parts).map(part).collect::<Vec<_>>().join(" AND "));
            let threads = *dice.pick(&[1, 2, 8]);
            let guided = dice.chance(70);
            let mut label = format!("{} {width}x{height}, {threads} threads", subject.name);
            let mut add = |name: &str, value: String| arguments.extend([name.to_owned(), value]);
            add("--size", format!("{width}x{height}"));
            add("--threads", threads.to_string());
            add("--guidance", if guided { "5" } else { "1" }.into());
            add("--steps", (2 + dice.below(2)).to_string());
            add("--sampler", "euler".into());
            add("--seed", dice.below(1000).to_string());
            if let Some(path) = &subject.path {
                add("-m", path.display().to_string());
            }
            if guided && dice.chance(20) {
                add("-n", words.repeat(dice.below(8)));
                label += ", negative";
            }
            if parts > 1 || long > 0 {
                label += &format!(", {parts} parts of {long}");
            }
            if !guided {
                label += ", no guidance";
            }
            if let Some(lora) = subject.lora.as_ref().filter(|_| dice.chance(35)) {
                add("--lora", lora.display().to_string());
                label += ", lora";
            }
            if subject.takes_picture && dice.chance(25) {
                add("--init", folder.join("init.png").display().to_string());
                label += ", init";
                if dice.chance(40) {
                    add("--mask", folder.join("mask.png").display().to_string());
                    label += ", mask";
                }
            }
            let budget_of_least = *dice.pick(&[1.0, 1.02, 1.05, 1.1, 1.2, 1.35, 1.6, 2.0, 3.0, 6.0, 40.0]);
            Row { label, arguments, budget_of_least }
        })
        .collect()
}

/// A run of the program within a limit of memory of the kernel's, where that can be had.
fn run(arguments: &[String], budget_bytes: u64, out: &Path) -> Output {
    let budget = format!("{budget_bytes}B");
    let (mut command, _group) = limited(env!("CARGO_BIN_EXE_calotype"), budget_bytes);
    command.args(arguments).args(["--json", "--memory", &budget, "-o"]).arg(out);
    command.output().unwrap()
}

/// The budget that a refusal names.
fn least_bytes(output: &Output) -> Result<u64, String> {
    let message = String::from_utf8_lossy(&output.stderr);
    if output.status.code() != Some(REFUSED) {
        return Err(format!("expected to be refused, got {:?}: {message}", output.status));
    }
    let number =
        message.split("at least ").nth(1).and_then(|rest| rest.split(' ').next()?.parse::<u64>().ok());
    number.map(|mib| mib * MIB).ok_or_else(|| format!("expected the least budget in {message:?}"))
}

/// What a run within a budget planned and took.
fn measured(output: &Output) -> Result<(u64, u64), String> {
    if !output.status.success() {
        return Err(format!("{:?}: {}", output.status, String::from_utf8_lossy(&output.stderr)));
    }
    let json: Value = serde_json::from_slice(&output.stdout).map_err(|error| error.to_string())?;
    let [planned, peak] = ["planned_bytes", "peak_bytes"].map(|name| json["memory"][name].as_u64());
    planned.zip(peak).ok_or_else(|| format!("expected a plan and a peak, got {}", json["memory"]))
}

/// What is wrong with a row, if anything, and its record.
fn check(row: &Row, out: &Path) -> (Vec<String>, Value) {
    let mut record = json!({ "row": row.label, "of_least": row.budget_of_least });
    let least = match least_bytes(&run(&row.arguments, MIB, out)) {
        Ok(least) => least,
        Err(problem) => return (vec![problem], record),
    };
    record["least_mib"] = json!(least / MIB);
    let mut problems = Vec::new();
    let mut budgets = vec![("least", least)];
    if row.budget_of_least > 1.0 {
        budgets.push(("budget", (least as f64 * row.budget_of_least) as u64));
    }
    for (name, budget) in budgets {
        let (planned, peak) = match measured(&run(&row.arguments, budget, out)) {
            Ok(measured) => measured,
            Err(problem) => {
                problems.push(format!("{} MiB: {problem}", budget / MIB));
                continue;
            }
        };
        let mib = |bytes: u64| bytes as f64 / MIB as f64;
        record[name] = json!([mib(budget), mib(planned), mib(peak)]);
        let place = format!("{:.1} MiB: planned {:.1}, measured {:.1}", mib(budget), mib(planned), mib(peak));
        if peak > budget {
            problems.push(format!("above its budget: {place}"));
        }
        if peak > planned {
            problems.push(format!("above its plan: {place}"));
        }
        if peak >= FROM_BYTES && planned as f64 > MOST_OVER * peak as f64 {
            problems.push(format!("planned too much ({:.2}): {place}", planned as f64 / peak as f64));
        }
    }
    (problems, record)
}

#[test]
fn budgets_are_kept_and_hardly_more_is_planned() {
    let said = std::env::var("CALOTYPE_SWEEP").unwrap_or_default();
    let mut said = said.splitn(3, ',').filter(|part| !part.is_empty());
    let count = said.next().map_or(ROWS, |count| count.parse().unwrap());
    let seed = said.next().map_or(SEED, |seed| seed.parse().unwrap());
    let file: Option<Mutex<File>> =
        said.next().map(|path| Mutex::new(OpenOptions::new().create(true).append(true).open(path).unwrap()));

    let desk = desk();
    RgbImage::from_fn(192, 128, |x, y| Rgb([x as u8, y as u8, (x ^ y) as u8]))
        .save(desk.path().join("init.png"))
        .unwrap();
    GrayImage::from_fn(192, 128, |x, _| Luma([if x < 96 { 255 } else { 0 }]))
        .save(desk.path().join("mask.png"))
        .unwrap();
    let (subjects, _kept) = subjects(desk.path(), file.is_some());
    let rows = rows(count, seed, &subjects, desk.path());
    let next = AtomicUsize::new(0);
    let problems = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for worker in 0..2 {
            let (rows, next, problems, file) = (&rows, &next, &problems, &file);
            let out = desk.path().join(format!("{worker}.png"));
            scope.spawn(move || {
                while let Some(row) = rows.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let (found, mut record) = check(row, &out);
                    record["problems"] = json!(found);
                    if let Some(file) = file {
                        writeln!(file.lock().unwrap(), "{record}").unwrap();
                    }
                    let found = found.into_iter().map(|problem| format!("{}: {problem}", row.label));
                    problems.lock().unwrap().extend(found);
                }
            });
        }
    });
    let problems = problems.into_inner().unwrap();
    assert!(problems.is_empty(), "{} of {count} rows, seed {seed}:\n{}", problems.len(), problems.join("\n"));
}
