//! What an image costs: the whole program, the opening of the model, and the drawing alone; 20 steps with guidance.

use std::ops::ControlFlow;
use std::process::{Command, Stdio};

use calotype::model::Model;
use calotype::pipeline::{Options, Pipeline};
use calotype::recipe::Recipe;
use divan::Bencher;

const PROMPT: &str = "a red apple on a blue background";
const STEPS: usize = 20;
const GUIDANCE: f64 = 3.5;

fn main() {
    divan::main();
}

/// From the start of the process to the PNG in its place.
#[divan::bench(sample_count = 30, sample_size = 1)]
fn program(bencher: Bencher) {
    let folder = tempfile::tempdir().unwrap();
    bencher.bench_local(|| {
        let status = Command::new(env!("CARGO_BIN_EXE_calotype"))
            .args(["generate", PROMPT, "--seed", "1", "--steps", &STEPS.to_string()])
            .args(["--guidance", &GUIDANCE.to_string(), "-o"])
            .arg(folder.path().join("out.png"))
            .stdout(Stdio::null())
            .status();
        assert!(status.unwrap().success());
    });
}

/// The built-in model, up to its sessions.
#[divan::bench(sample_count = 30, sample_size = 1)]
fn open() -> Pipeline {
    Pipeline::open(&Model::built_in().unwrap(), &Options::default()).unwrap()
}

/// An image from an open model.
#[divan::bench(sample_count = 30, sample_size = 1)]
fn generate(bencher: Bencher) {
    let mut pipeline = open();
    let draft = Recipe {
        prompt: PROMPT.into(),
        steps: Some(STEPS),
        guidance: Some(GUIDANCE.into()),
        seed: Some(1),
        ..Recipe::default()
    };
    let request = pipeline.request(draft).unwrap();
    bencher.bench_local(|| pipeline.generate(&request, |_| ControlFlow::Continue(())).unwrap());
}
