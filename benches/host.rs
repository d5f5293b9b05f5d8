//! What steps cost besides the U-Net: sampler, guidance, prediction and noise, on latents of a 1024x1024 image.

use calotype::Error;
use calotype::guidance::{Guidance, Guide, Moment};
use calotype::noise::{BrownianTree, NoiseSource, Rng, StepNoise, TorchCpu};
use calotype::prediction::Prediction;
use calotype::sampler::{Denoise, Method, STEP_NOISE, SamplerKind, StepNoiseKind};
use calotype::schedule::{Betas, NoiseCurve, Schedule, ScheduleKind};
use calotype::tensor::LatentShape;
use divan::Bencher;
use divan::counter::ItemsCount;

const SHAPE: LatentShape = LatentShape { channels: 4, height_cells: 128, width_cells: 128 };
const LEN: usize = 4 * 128 * 128;
/// A run's steps.
const STEPS: usize = 20;

fn main() {
    divan::main();
}

/// A whole run.
#[divan::bench(args = SamplerKind::ALL, sample_count = 20, sample_size = 1)]
fn run(bencher: Bencher, kind: SamplerKind) {
    let betas = Betas::ScaledLinear { start: 0.00085, end: 0.012 };
    let curve = NoiseCurve::new(betas, 1000).unwrap();
    let schedule_kind = kind.own_schedule().unwrap_or(ScheduleKind::KARRAS);
    let schedule = Schedule::of(&schedule_kind, &curve, kind.grid(), STEPS).unwrap();
    let (method, steps) = (Method::from(kind), schedule.steps());
    let mut stream = TorchCpu::new(1);
    let (latents, output) = (normal(&mut stream, LEN), normal(&mut stream, 2 * LEN));
    let mut tree = BrownianTree::new(Rng::Torch, LEN, steps[STEPS - 1].from, steps[0].from, 1).unwrap();
    let noise: &mut dyn StepNoise = match method.get(&STEP_NOISE) {
        StepNoiseKind::Stream => &mut stream,
        StepNoiseKind::Tree => &mut tree,
    };
    bencher.counter(ItemsCount::new(STEPS)).bench_local(|| {
        let (mut x, mut sampler) = (latents.clone(), method.build(&schedule, LEN));
        let mut denoiser = Guided { output: &output, guide: guide() };
        for step in steps {
            sampler.step(&mut x, step, &mut denoiser, noise).unwrap();
        }
        x
    });
}

#[divan::bench]
fn guidance(bencher: Bencher) {
    let mut noise = TorchCpu::new(1);
    let (x, output) = (normal(&mut noise, LEN), normal(&mut noise, 2 * LEN));
    let (mut guide, mut out) = (guide(), vec![0.0; LEN]);
    let at = Moment { step: 0, sigma: 1.5 };
    bencher.counter(ItemsCount::new(LEN)).bench_local(|| guide.combine(at, &x, &output, &mut out, None));
}

#[divan::bench(args = [Prediction::Epsilon, Prediction::V, Prediction::Sample])]
fn prediction(bencher: Bencher, prediction: &Prediction) {
    let mut noise = TorchCpu::new(1);
    let (x, output, mut out) = (normal(&mut noise, LEN), normal(&mut noise, LEN), vec![0.0; LEN]);
    bencher.counter(ItemsCount::new(LEN)).bench_local(|| prediction.to_denoised(&x, &output, 1.5, &mut out));
}

#[divan::bench]
fn noise(bencher: Bencher) {
    let (mut noise, mut out) = (TorchCpu::new(1), vec![0.0; LEN]);
    bencher.counter(ItemsCount::new(LEN)).bench_local(|| noise.fill_normal(&mut out));
}

/// A denoiser whose model costs nothing: guidance and prediction remain.
struct Guided<'a> {
    output: &'a [f32],
    guide: Guide,
}

impl Denoise for Guided<'_> {
    fn denoise(&mut self, x: &[f32], sigma: f64, out: &mut [f32]) -> Result<(), Error> {
        self.guide.combine(Moment { step: 0, sigma }, x, self.output, out, None);
        Ok(())
    }
}

fn guide() -> Guide {
    Guide::new(Guidance::new(7.5).unwrap(), Prediction::Epsilon, SHAPE)
}

fn normal(noise: &mut TorchCpu, len: usize) -> Vec<f32> {
    let mut values = vec![0.0; len];
    noise.fill_normal(&mut values);
    values
}
