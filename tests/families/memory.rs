//! The promise of a budget over models, sizes, budgets and requests drawn at random: the peak of a run is never above its
//! budget and never above its plan, its plan is not far above it, and a budget that is refused names one that is kept.
//!
//! Each run is a process of its own, in a cgroup whose limit is the budget where groups can be made; what counts is `VmHWM`:
//! private pages, and pages of mapped files while they are in memory. `CALOTYPE_SWEEP=ROWS,SEED,FILE` takes other rows of wide
//! models, also of middling width, and appends them to FILE as JSON lines; `CALOTYPE_SMALL_SWEEP` does so of narrow ones.
#![cfg(target_os = "linux")]

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use image::{GrayImage, Luma, Rgb, RgbImage};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::golden::{Golden, Precision, scratch};
use super::group::limited;
use super::{control, onnx, t2i_adapter, wide};

const MIB: u64 = 1 << 20;
/// How much more than is measured may be planned, and from which peak on that is asked.
const MOST_OVER: f64 = 1.25;
const FROM_BYTES: u64 = 150 * MIB;
/// The exit code of a budget that is refused.
const REFUSED: i32 = 5;
/// How many rows of wide models are drawn where nobody says, each in two budgets; and how many of narrow ones, each in one.
const ROWS: usize = 10;
const SMALL_ROWS: usize = 200;
const SEED: u64 = 14;
/// The longest side of small images.
const SMALL_PX: usize = 192;
/// The range of small rows' budgets: from less than any run needs to more than most do.
const SMALL_MIB: [u64; 2] = [56, 240];

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
    /// A ControlNet, and a T2I-Adapter.
    control: Option<PathBuf>,
    adapter: Option<PathBuf>,
    /// What sides are multiples of, and how long they are at most.
    step_px: usize,
    most_px: usize,
}

/// One line of the sweep.
#[derive(Clone)]
struct Row {
    label: String,
    arguments: Vec<String>,
    budget: Budget,
}

/// The budgets that a row is run in.
#[derive(Clone, Copy)]
enum Budget {
    /// The least, and so many times that.
    OfLeast(f64),
    /// This one; the least where it is refused.
    Bytes(u64),
}

fn subject(name: &str, path: PathBuf, lora: Option<&Path>, most_px: usize) -> Subject {
    Subject {
        name: name.into(),
        path: Some(path),
        lora: lora.map(Path::to_owned),
        control: None,
        adapter: None,
        step_px: 8,
        most_px,
    }
}

fn built_in(most_px: usize) -> Subject {
    Subject {
        name: "built-in".into(),
        path: None,
        lora: None,
        control: None,
        adapter: None,
        step_px: 16,
        most_px,
    }
}

/// A model in a folder, in one file and in bundles, with a LoRA.
fn forms(name: &str, golden: &Golden, most_px: usize, folder: &Path) -> Vec<Subject> {
    let mut subjects = vec![];
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
            for (form, value) in [("weights", "int8"), ("weights", "f16"), ("compute", "int8")] {
                let label = format!("{name}-{form}-{value}-bundle");
                let bundle = folder.join(&label);
                wide::pack(&place, &bundle, [&format!("--{form}"), value]);
                subjects.push(subject(&label, bundle, None, most_px));
            }
        }
    }
    subjects
}

fn subjects(folder: &Path, is_wide: bool) -> (Vec<Subject>, Vec<TempDir>) {
    let mut subjects = vec![built_in(512)];
    let mut families = vec![("sd15", wide::sd15(), 320), ("sdxl", wide::sdxl(), 256)];
    if is_wide {
        families.push(("middling", wide::middling(), 512));
    }
    for (name, golden, most_px) in families {
        subjects.extend(forms(name, &golden, most_px, folder));
    }
    let mut kept = Vec::new();
    for layout in ["optimum", "optimum-xl", "olive-io16", "optimum-old"] {
        let (_, scratch) = onnx::open(layout);
        let subject = subject(layout, scratch.path().to_owned(), None, 256);
        // Their exporters did not predict odd sizes.
        subjects.push(Subject { step_px: 64, ..subject });
        kept.push(scratch);
    }
    (subjects, kept)
}

/// Narrow models, whose weights are little beside what else is in memory.
fn small_subjects(folder: &Path) -> Vec<Subject> {
    let mut subjects = vec![built_in(SMALL_PX)];
    for family in ["sd15", "sdxl"] {
        let control = control::write(family, folder);
        // That of Stable Diffusion XL takes other sizes.
        let adapter = (family == "sd15").then(|| t2i_adapter::write(folder));
        let mut forms = forms(&format!("narrow-{family}"), &Golden::open(family), SMALL_PX, folder);
        // A bundle's U-Net is as it was packed.
        let derived = forms.iter_mut().filter(|form| !form.name.ends_with("bundle"));
        derived.for_each(|form| {
            (form.control, form.adapter) = (Some(control.clone()), adapter.clone());
        });
        subjects.extend(forms);
    }
    subjects
}

/// Rows of a seed.
fn rows(count: usize, seed: u64, is_small: bool, subjects: &[Subject], folder: &Path) -> Vec<Row> {
    // Of its own, so that rows without control stay what they were.
    let (mut dice, mut control_dice, mut adapter_dice) = (Dice(seed), Dice(!seed), Dice(!seed << 1));
    let words = "a photograph of an astronaut riding a white horse through a field of red poppies at dawn, ";
    (0..count)
        .map(|_| {
            // Many are of the built-in model.
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
            add("--steps", if is_small { 2 } else { 2 + dice.below(2) }.to_string());
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
            if is_small && dice.chance(15) {
                add("--count", "2".into());
                label += ", two images";
            }
            if dice.chance(25) {
                add("--init", folder.join("init.png").display().to_string());
                label += ", init";
                if dice.chance(40) {
                    add("--mask", folder.join("mask.png").display().to_string());
                    label += ", mask";
                }
            } else if is_small && dice.chance(15) {
                let upscaler = *dice.pick(&["latent", "pixel"]);
                add("--hires", format!("2x:0.5:{upscaler}"));
                label += &format!(", twice the size by {upscaler}");
            }
            let is_steered = control_dice.chance(40);
            if let Some(path) = subject.control.as_ref().filter(|_| is_steered) {
                arguments.extend(["--control-model".to_owned(), format!("a={}", path.display())]);
                let count = 1 + control_dice.below(2);
                for _ in 0..count {
                    let mode = control_dice.pick(&["balanced", "guess"]);
                    let image = folder.join("init.png");
                    arguments.extend(["--control".to_owned(), format!("a={}:mode={mode}", image.display())]);
                }
                label += &format!(", {count} control images");
            }
            let is_adapted = adapter_dice.chance(30);
            if let Some(path) = subject.adapter.as_ref().filter(|_| is_adapted) {
                let (model, image) = (path.display(), folder.join("init.png"));
                arguments.extend(["--control-model".to_owned(), format!("b={model}")]);
                arguments.extend(["--control".to_owned(), format!("b={}", image.display())]);
                label += ", an adapter";
            }
            let [from, to] = SMALL_MIB.map(|mib| mib * MIB);
            let budget = match is_small {
                true => Budget::Bytes(from + dice.roll() % (to - from)),
                false => {
                    Budget::OfLeast(*dice.pick(&[1.0, 1.02, 1.05, 1.1, 1.2, 1.35, 1.6, 2.0, 3.0, 6.0, 40.0]))
                }
            };
            Row { label, arguments, budget }
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
    let mut record = json!({ "row": row.label });
    let mut problems = Vec::new();
    let started = Instant::now();
    let first = match row.budget {
        Budget::OfLeast(_) => MIB,
        Budget::Bytes(bytes) => bytes,
    };
    let output = run(&row.arguments, first, out);
    let mut runs = Vec::new();
    if first > MIB && output.status.code() != Some(REFUSED) {
        runs.push(("budget", first, output));
    } else {
        let least = match least_bytes(&output) {
            Ok(least) if least > first => least,
            Ok(least) => {
                problems.push(format!("refused {first} bytes, and named {least}"));
                return (problems, record);
            }
            Err(problem) => return (vec![problem], record),
        };
        record["least_mib"] = json!(least / MIB);
        runs.push(("least", least, run(&row.arguments, least, out)));
        if let Budget::OfLeast(times) = row.budget
            && times > 1.0
        {
            let larger = (least as f64 * times) as u64;
            runs.push(("budget", larger, run(&row.arguments, larger, out)));
        }
    }
    for (name, budget, output) in runs {
        let (planned, peak) = match measured(&output) {
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
    record["seconds"] = json!(started.elapsed().as_secs_f64());
    (problems, record)
}

/// Images that rows start from.
fn write_images(folder: &Path) {
    RgbImage::from_fn(192, 128, |x, y| Rgb([x as u8, y as u8, (x ^ y) as u8]))
        .save(folder.join("init.png"))
        .unwrap();
    GrayImage::from_fn(192, 128, |x, _| Luma([if x < 96 { 255 } else { 0 }]))
        .save(folder.join("mask.png"))
        .unwrap();
}

/// Runs all rows, two at a time; panics where anything is wrong with one.
fn sweep(rows: &[Row], seed: u64, folder: &Path, file: Option<File>) {
    let (next, problems, file) = (AtomicUsize::new(0), Mutex::new(Vec::new()), file.map(Mutex::new));
    std::thread::scope(|scope| {
        for worker in 0..2 {
            let (next, problems, file) = (&next, &problems, &file);
            let out = folder.join(format!("{worker}.png"));
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
    let count = rows.len();
    assert!(problems.is_empty(), "{} of {count} rows, seed {seed}:\n{}", problems.len(), problems.join("\n"));
}

/// How many rows, of which seed, and where they are recorded, by an environment variable `ROWS,SEED,FILE`.
fn asked(variable: &str, rows: usize) -> (usize, u64, Option<File>) {
    let said = std::env::var(variable).unwrap_or_default();
    let mut said = said.splitn(3, ',').filter(|part| !part.is_empty());
    let count = said.next().map_or(rows, |count| count.parse().unwrap());
    let seed = said.next().map_or(SEED, |seed| seed.parse().unwrap());
    let file = said.next().map(|path| OpenOptions::new().create(true).append(true).open(path).unwrap());
    (count, seed, file)
}

#[test]
fn budgets_are_kept_and_hardly_more_is_planned() {
    let (count, seed, file) = asked("CALOTYPE_SWEEP", ROWS);
    let scratch = scratch();
    write_images(scratch.path());
    let (subjects, _kept) = subjects(scratch.path(), file.is_some());
    sweep(&rows(count, seed, false, &subjects, scratch.path()), seed, scratch.path(), file);
}

#[test]
fn budgets_of_small_models_are_kept() {
    let (count, seed, file) = asked("CALOTYPE_SMALL_SWEEP", SMALL_ROWS);
    let scratch = scratch();
    write_images(scratch.path());
    let subjects = small_subjects(scratch.path());
    sweep(&rows(count, seed, true, &subjects, scratch.path()), seed, scratch.path(), file);
}
