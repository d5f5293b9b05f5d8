//! What a step costs besides the U-Net: sampler, guidance and prediction on latents of a 512x512 picture.

use calotype::Error;
use calotype::guidance::Guidance;
use calotype::noise::{NoiseSource, TorchCpu};
use calotype::prediction::Prediction;
use calotype::sampler::{Denoise, SamplerKind};
use calotype::schedule::{Betas, NoiseCurve, Spacing, Step};
use divan::Bencher;
use divan::counter::ItemsCount;

/// 1x4x64x64.
const LEN: usize = 4 * 64 * 64;

fn main() {
    divan::main();
}

#[divan::bench(args = SamplerKind::ALL)]
fn step(bencher: Bencher, kind: SamplerKind) {
    let mut noise = TorchCpu::new(1);
    let (mut x, mut output, middle) = (normal(&mut noise, LEN), normal(&mut noise, 2 * LEN), middle(kind));
    let mut denoiser = Guided { output: &mut output, guided: vec![0.0; LEN] };
    let mut sampler = kind.build(LEN);
    bencher
        .counter(ItemsCount::new(LEN))
        .bench_local(|| sampler.step(&mut x, &middle, &mut denoiser, &mut noise).unwrap());
}

#[divan::bench]
fn guidance(bencher: Bencher) {
    let output = normal(&mut TorchCpu::new(1), 2 * LEN);
    let (guidance, mut out) = (Guidance::new(7.5).unwrap(), vec![0.0; LEN]);
    bencher.counter(ItemsCount::new(LEN)).bench_local(|| guidance.combine(&output, &mut out));
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
    guided: Vec<f32>,
}

impl Denoise for Guided<'_> {
    fn denoise(&mut self, x: &[f32], sigma: f64, _timestep: f64, out: &mut [f32]) -> Result<(), Error> {
        Guidance::Cfg { scale: 7.5 }.combine(self.output, &mut self.guided);
        Prediction::Epsilon.to_denoised(x, &self.guided, sigma, out);
        Ok(())
    }
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
