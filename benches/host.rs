//! What a step costs besides the U-Net: sampler, guidance and prediction on latents of a 512x512 picture.

use calotype::Error;
use calotype::guidance::{Guidance, Guide, Moment};
use calotype::noise::{NoiseSource, TorchCpu};
use calotype::prediction::Prediction;
use calotype::sampler::{Denoise, SamplerKind};
use calotype::schedule::{Betas, NoiseCurve, Spacing, Step};
use calotype::tensor::LatentShape;
use divan::Bencher;
use divan::counter::ItemsCount;

const SHAPE: LatentShape = LatentShape { channels: 4, height_cells: 64, width_cells: 64 };
const LEN: usize = 4 * 64 * 64;

fn main() {
    divan::main();
}

#[divan::bench(args = SamplerKind::ALL)]
fn step(bencher: Bencher, kind: SamplerKind) {
    let mut noise = TorchCpu::new(1);
    let (mut x, mut output, middle) = (normal(&mut noise, LEN), normal(&mut noise, 2 * LEN), middle(kind));
    let mut denoiser = Guided { output: &mut output, guide: guide() };
    let mut sampler = kind.build(LEN);
    bencher
        .counter(ItemsCount::new(LEN))
        .bench_local(|| sampler.step(&mut x, &middle, &mut denoiser, &mut noise).unwrap());
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
    output: &'a mut [f32],
    guide: Guide,
}

impl Denoise for Guided<'_> {
    fn denoise(&mut self, x: &[f32], sigma: f64, _timestep: f64, out: &mut [f32]) -> Result<(), Error> {
        self.guide.combine(Moment { step: 0, sigma }, x, self.output, out, None);
        Ok(())
    }
}

fn guide() -> Guide {
    Guide::new(Guidance::new(7.5).unwrap(), Prediction::Epsilon, SHAPE)
}

/// A step from the middle of twenty.
fn middle(kind: SamplerKind) -> Step {
    let betas = Betas::ScaledLinear { start: 0.00085, end: 0.012 };
    let curve = NoiseCurve::new(betas, 1000).unwrap();
    kind.schedule(&curve, Spacing::Trailing, 20).unwrap().steps()[10]
}

fn normal(noise: &mut TorchCpu, len: usize) -> Vec<f32> {
    let mut values = vec![0.0; len];
    noise.fill_normal(&mut values);
    values
}
