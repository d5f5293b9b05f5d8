//! Threads of pipelines in one process: each has its own. A test program of its own, for it counts those of the process.

#![cfg(all(feature = "builtin", target_os = "linux"))]

use std::num::NonZeroUsize;
use std::ops::ControlFlow;

use calotype::engine::SessionOptions;
use calotype::model::Model;
use calotype::pipeline::{Options, Pipeline};
use calotype::recipe::Recipe;

fn threads() -> usize {
    std::fs::read_dir("/proc/self/task").unwrap().count()
}

fn open(threads: usize) -> Pipeline {
    let session = SessionOptions::new(NonZeroUsize::new(threads).unwrap());
    Pipeline::open(&Model::built_in().unwrap(), &Options { session, plan: None }).unwrap()
}

/// The latents of one image, and the most threads that the process had meanwhile.
fn draw(pipeline: &mut Pipeline) -> (Vec<f32>, usize) {
    let recipe = Recipe { prompt: "a red apple".into(), seed: Some(1), steps: Some(2), ..Recipe::default() };
    let request = pipeline.request(recipe).unwrap();
    let mut most = 0;
    let latents = pipeline.denoise(&request, |_| {
        most = most.max(threads());
        ControlFlow::Continue(())
    });
    (latents.unwrap(), most)
}

#[test]
fn pipelines_have_threads_of_their_own() {
    // Text encoder, U-Net, VAE decoder; each lives on a thread, which is one of those that compute.
    const SESSIONS: usize = 3;
    let mut one = open(1);
    let before = threads();
    drop(open(1));
    assert_eq!(threads(), before);
    let (expected, drawing) = draw(&mut one);
    let mut three = open(3);
    assert_eq!(threads(), before + 3 * SESSIONS);
    let (latents, most) = draw(&mut three);
    assert_eq!(most, drawing + 3 * SESSIONS);
    let off = latents.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(off < 1e-3, "{off}");
    let two = open(2);
    assert_eq!(threads(), before + 5 * SESSIONS);
    assert_eq!(draw(&mut one).0, expected);
    drop(three);
    assert_eq!(threads(), before + 2 * SESSIONS);
    drop(two);
    assert_eq!(threads(), before);
    assert_eq!(draw(&mut one).0, expected);
}
