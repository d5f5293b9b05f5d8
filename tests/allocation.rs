//! What a denoising step allocates, which is nothing of ours, and what samplers hold. Allocations are counted by the thread that
//! makes them.

#![cfg(feature = "builtin")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::hint::black_box;
use std::num::NonZeroUsize;
use std::ops::ControlFlow;

use calotype::Error;
use calotype::engine::{NamedTensor, Session, SessionOptions, Value};
use calotype::graph::Dim;
use calotype::guidance::{Guidance, Guide, Method, Mimic, Moment, Residue};
use calotype::model::Model;
use calotype::noise::{BrownianTree, Rng, StepNoise, TorchCpu};
use calotype::pipeline::{Options, Pipeline};
use calotype::prediction::{Prediction, Thresholder, Thresholding};
use calotype::recipe::Recipe;
use calotype::request::Request;
use calotype::sampler::{Denoise, Method as Sampling, ORDER, STEP_NOISE, SamplerKind, StepNoiseKind};
use calotype::schedule::{Betas, NoiseCurve, Schedule, ScheduleKind};
use calotype::tensor::LatentShape;
use image::{GrayImage, RgbImage};

/// The system's allocator, with a count of calls per thread.
struct Counting;

thread_local! {
    static CALLS: Cell<usize> = const { Cell::new(0) };
    /// What is held now, and may be below zero for a thread that frees what another allocated.
    static HELD_BYTES: Cell<isize> = const { Cell::new(0) };
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: every call is passed on as it came; the count is a plain integer of the calling thread, which needs no
// allocation and no destructor.
#[allow(unsafe_code)]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller's promises are those that the system's allocator asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        count(new_size as isize - layout.size() as isize);
        // SAFETY: as above.
        unsafe { System.realloc(memory, layout, new_size) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        HELD_BYTES.set(HELD_BYTES.get() - layout.size() as isize);
        // SAFETY: as above.
        unsafe { System.dealloc(memory, layout) }
    }
}

fn count(bytes: isize) {
    CALLS.set(CALLS.get() + 1);
    HELD_BYTES.set(HELD_BYTES.get() + bytes);
}

/// How often `work` asks for memory.
fn allocations(work: impl FnOnce()) -> usize {
    let before = CALLS.get();
    work();
    CALLS.get() - before
}

const SHAPE: LatentShape = LatentShape { channels: 4, height_cells: 16, width_cells: 16 };
const LEN: usize = 4 * 16 * 16;

/// A denoiser made of the library's own arithmetic, with a fake model: prediction and guidance included.
struct Guided {
    prediction: Prediction,
    guide: Guide,
    output: Vec<f32>,
}

impl Denoise for Guided {
    fn denoise(&mut self, x: &[f32], sigma: f64, out: &mut [f32]) -> Result<(), Error> {
        for (output, x) in self.output.chunks_exact_mut(x.len()).flat_map(|copy| copy.iter_mut().zip(x)) {
            *output = x * self.prediction.input_scale(sigma) as f32;
        }
        self.guide.combine(Moment { step: 0, sigma }, x, &self.output, out, None);
        Ok(())
    }
}

#[test]
fn the_counter_counts() {
    assert_eq!(allocations(|| drop(black_box(vec![0u8; 100]))), 1);
    assert_eq!(allocations(|| drop(black_box(Vec::<u8>::with_capacity(100)))), 1);
    assert_eq!(allocations(|| assert_eq!(black_box([1, 2]).iter().sum::<i32>(), 3)), 0);
}

#[test]
fn a_step_of_any_sampler_allocates_nothing() {
    let betas = Betas::ScaledLinear { start: 0.00085, end: 0.012 };
    let curve = NoiseCurve::new(betas, 1000).unwrap();
    for kind in SamplerKind::ALL {
        for prediction in [Prediction::Epsilon, Prediction::V, Prediction::Sample] {
            let schedule = Schedule::of(&ScheduleKind::KARRAS, &curve, kind.grid(), 8).unwrap();
            let method = Sampling::from(kind);
            let mut denoiser = Guided {
                prediction,
                guide: Guide::new(Guidance::new(5.0).unwrap(), prediction, SHAPE),
                output: vec![0.0; 2 * LEN],
            };
            let (mut sampler, mut x) = (method.build(&schedule, LEN), vec![1.0; LEN]);
            let (mut stream, mut tree) = (TorchCpu::new(1), tree(&schedule));
            let noise: &mut dyn StepNoise = match method.get(&STEP_NOISE) {
                StepNoiseKind::Stream => &mut stream,
                StepNoiseKind::Tree => &mut tree,
            };
            for step in schedule.steps() {
                let calls = allocations(|| sampler.step(&mut x, step, &mut denoiser, noise).unwrap());
                assert_eq!(calls, 0, "{kind}, {prediction:?}, step {}", step.index);
            }
        }
    }
}

/// Beside a Brownian tree plans count twelve latents for a run, of which it has four itself: what is denoised, the last clean
/// estimate, the image that it starts from, and noise.
#[test]
fn samplers_and_guidance_hold_no_more_than_plans_count() {
    // Long enough that what does not grow with it is a small part.
    let shape = LatentShape { channels: 4, height_cells: 128, width_cells: 128 };
    let len = shape.len();
    let held = |before: isize| (HELD_BYTES.get() - before) as f64 / (len * size_of::<f32>()) as f64;
    let betas = Betas::ScaledLinear { start: 0.00085, end: 0.012 };
    let curve = NoiseCurve::new(betas, 1000).unwrap();
    let mut of_samplers = 0.0_f64;
    for kind in SamplerKind::ALL {
        let schedule = Schedule::of(&ScheduleKind::KARRAS, &curve, kind.grid(), 30).unwrap();
        let method = Sampling::from(kind);
        let orders = (1..=9).filter_map(|order| method.with(&ORDER, order).ok());
        for method in orders.chain([method]) {
            let before = HELD_BYTES.get();
            let sampler = method.build(&schedule, len);
            of_samplers = of_samplers.max(held(before));
            drop(sampler);
        }
        let (steps, before) = (schedule.steps(), HELD_BYTES.get());
        let (low, high) = (steps[steps.len() - 1].from, steps[0].from);
        let tree = BrownianTree::new(Rng::Torch, len, low, high, 1).unwrap();
        let tensors = BrownianTree::tensors(low, high) as f64;
        assert!((tensors..tensors + 0.1).contains(&held(before)), "{kind}: {} latents", held(before));
        drop(tree);
    }
    let mut of_guidance = 0.0_f64;
    for method in guidance_methods() {
        let before = HELD_BYTES.get();
        let guide = Guide::new(Guidance::by(method, 5.0).unwrap(), Prediction::V, shape);
        of_guidance = of_guidance.max(held(before));
        drop(guide);
    }
    assert!(of_samplers > 1.0 && of_guidance > 0.5, "{of_samplers} and {of_guidance} latents");
    assert!(4.0 + of_samplers + of_guidance <= 12.01, "{of_samplers} and {of_guidance} latents");
}

fn tree(schedule: &Schedule) -> BrownianTree {
    let steps = schedule.steps();
    BrownianTree::new(Rng::Torch, LEN, steps[steps.len() - 1].from, steps[0].from, 1).unwrap()
}

fn guidance_methods() -> [Method; 7] {
    [
        Method::Cfg { rescale: 0.7 },
        Method::Edit { image_scale: 1.5 },
        Method::Perpendicular { negative_scale: 1.0, rescale: 0.7 },
        Method::Projected { eta: 0.0, momentum: -0.5, norm_threshold: Some(2.0) },
        Method::ZeroStar { zero_steps: 1, rescale: 0.7 },
        Method::DynamicThreshold(Mimic { percentile: 0.9, ..Mimic::default() }),
        Method::Residual { residue: Residue::FirstNegative, delta: 0.9 },
    ]
}

#[test]
fn guidance_of_any_kind_allocates_nothing() {
    let x: Vec<f32> = (0..LEN).map(|i| (i % 17) as f32).collect();
    let predictions: Vec<f32> = (0..3 * LEN).map(|i| (i % 23) as f32).collect();
    let (mut denoised, mut base) = (vec![0.0; LEN], vec![0.0; LEN]);
    let mut thresholder = Thresholder::new(Thresholding::dynamic(0.9, 2.0).unwrap(), LEN);
    for method in guidance_methods() {
        let mut guide = Guide::new(Guidance::by(method, 5.0).unwrap(), Prediction::V, SHAPE);
        for step in 0..3 {
            let at = Moment { step, sigma: 3.0 - step as f64 };
            let calls = allocations(|| {
                let predictions = &predictions[..guide.needs(at).len() * LEN];
                guide.combine(at, &x, predictions, &mut denoised, Some(&mut base));
                thresholder.apply(&mut denoised);
            });
            assert_eq!(calls, 0, "{method:?}, step {step}");
        }
    }
}

/// Between two calls of `on_step` lies a whole step. It asks for memory as often as one run of the U-Net's session
/// alone does (which hands its tensors to ONNX Runtime), so what is left for the step itself is nothing.
#[test]
fn a_step_of_the_pipeline_allocates_no_more_than_running_its_unet() {
    let model = Model::built_in().unwrap();
    let mut pipeline = Pipeline::open(&model, &Options::default()).unwrap();
    let alone = allocations_of_one_unet_run(&model);
    let (init, mask) = (RgbImage::new(128, 128), GrayImage::new(128, 128));
    for (sampler, is_masked) in SamplerKind::ALL.into_iter().flat_map(|kind| [(kind, false), (kind, true)]) {
        let draft = Recipe {
            sampler: Some(sampler.into()),
            steps: Some(5),
            seed: Some(1),
            init: is_masked.then(|| init.clone().into()),
            mask: is_masked.then(|| mask.clone().into()),
            ..Recipe::default()
        };
        let request = Request::new(draft, &model).unwrap();
        assert!(request.guidance_scale() != 1.0, "the session alone is run with guidance");
        let mut marks = Vec::with_capacity(request.steps());
        pipeline
            .generate(&request, |_| {
                marks.push(CALLS.get());
                ControlFlow::Continue(())
            })
            .unwrap();
        let per_step: Vec<usize> = marks.windows(2).map(|pair| pair[1] - pair[0]).collect();
        // The last step, to 0, asks once.
        let asked = [sampler.about().evaluations * alone; 3].into_iter().chain([alone]);
        assert_eq!(per_step, asked.collect::<Vec<_>>(), "{sampler}, masked: {is_masked}");
    }
}

/// With the inputs of a guided step on an image of the model's default size.
fn allocations_of_one_unet_run(model: &Model) -> usize {
    let manifest = model.manifest();
    let threads = NonZeroUsize::new(2).unwrap();
    let bound = model.unet().bind().unwrap();
    let mut session = Session::open(bound, &SessionOptions::new(threads)).unwrap();
    let states = session.inputs().iter().find(|port| port.name == "encoder_hidden_states").unwrap();
    let Dim::Fixed(width) = states.dims[2] else { panic!("{states}") };

    let latents = manifest.latents.shape(manifest.defaults.size).unwrap();
    let sample_shape = [2, latents.channels, latents.height_cells, latents.width_cells];
    let states_shape = [2, model.text_encoders()[0].context(), width];
    let (sample, states): (Vec<f32>, Vec<f32>) =
        (vec![0.1; 2 * latents.len()], vec![0.1; states_shape.iter().product()]);
    let constants = ["encoder_hidden_states"]
        .map(|name| (name.to_owned(), Value::new(states_shape.into(), states.clone()).unwrap()));
    let mut out = vec![0.0; sample.len()];
    let tensor = |name: &str, shape: &[usize], elements: Vec<f32>| NamedTensor {
        name: name.into(),
        shape: shape.into(),
        elements: elements.into(),
    };
    let (mut sample, mut timestep) =
        (tensor("sample", &sample_shape, sample), tensor("timestep", &[], vec![500.0]));
    let mut run = || {
        session
            .run_owned(&constants, &mut [&mut sample, &mut timestep], &mut [("out_sample", &mut out)])
            .unwrap();
    };
    // The first runs fetch what every later one has.
    (0..8).map(|_| allocations(&mut run)).last().unwrap()
}
