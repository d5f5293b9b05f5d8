//! Samplers against diffusers, k-diffusion and papers (`golden/sampling.*`, made by `export/golden_sampling.py`), and
//! against an equation with a known solution. Schedules have tests of their own: `tests/schedule.rs`.

use std::io::Read;
use std::path::{Path, PathBuf};

use calotype::noise::{BrownianTree, NoiseSource, StepNoise, TorchCpu};
use calotype::prediction::Prediction;
use calotype::sampler::{Denoise, Method, Sampler, SamplerKind, StepNoiseKind};
use calotype::schedule::{Betas, Clock, NoiseCurve, Schedule, ScheduleKind, Step};
use calotype::weights::Weights;
use calotype::{Error, ErrorKind};
use flate2::read::GzDecoder;
use serde::Deserialize;

/// Diffusers works in single precision: its rounding leaves up to 8e-6 (two Euler steps down from level 41).
const TOLERANCE: f64 = 1e-5;

/// The values of the golden latents, and the seeds of their noise and of what is clean.
const LEN: usize = 16;
const SEED: u64 = 20;
const CLEAN_SEED: u64 = 21;

#[derive(Deserialize)]
struct Golden {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    sampler: String,
    curve: String,
    schedule: String,
    prediction: String,
    steps: usize,
    strength: f64,
    timesteps: Vec<f64>,
    sigmas: Vec<f64>,
    initial_scale: f64,
    reference: String,
    /// The first of its latents, and how many there are: one per step, but for a last one that the reference does not end
    /// at 0.
    start: usize,
    states: usize,
}

impl Case {
    fn method(&self) -> Method {
        self.sampler.parse().unwrap()
    }

    /// The whole schedule, and how many of its last steps the strength leaves.
    fn schedule(&self) -> (Schedule, usize) {
        let curve = match self.curve.as_str() {
            "scaled_linear" => stable_diffusion(),
            "linear" => NoiseCurve::new(Betas::Linear { start: 0.0001, end: 0.02 }, 1000).unwrap(),
            other => panic!("curve {other}"),
        };
        let sampler = self.method().kind();
        let kind = sampler.own_schedule().unwrap_or_else(|| self.schedule.parse().unwrap());
        let schedule = Schedule::of(&kind, &curve, sampler.grid(), self.steps).unwrap();
        (schedule, (self.steps as f64 * self.strength) as usize)
    }

    fn prediction(&self) -> Prediction {
        match self.prediction.as_str() {
            "epsilon" => Prediction::Epsilon,
            "v" => Prediction::V,
            "sample" => Prediction::Sample,
            other => panic!("prediction {other}"),
        }
    }

    fn name(&self) -> String {
        let Self { sampler, curve, schedule, prediction, steps, strength, reference, .. } = self;
        format!("{sampler}, {curve}, {schedule}, {prediction}, {steps} steps, strength {strength} ({reference})")
    }

    /// The latents after each step.
    fn trajectory<'a>(&self, latents: &'a [f32]) -> impl Iterator<Item = &'a [f32]> {
        latents.chunks_exact(LEN).skip(self.start).take(self.states)
    }
}

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

fn cases() -> (Vec<Case>, Vec<f32>) {
    let mut json = String::new();
    let file = std::fs::File::open(golden("sampling.json.gz")).unwrap();
    GzDecoder::new(file).read_to_string(&mut json).unwrap();
    let Golden { cases } = serde_json::from_str(&json).unwrap();
    let bytes = Weights::open(&[golden("sampling.safetensors")]).unwrap().get("latents").unwrap().to_bytes();
    let latents = bytes.as_chunks().0.iter().map(|value| f32::from_le_bytes(*value)).collect();
    (cases, latents)
}

fn stable_diffusion() -> NoiseCurve {
    NoiseCurve::new(Betas::ScaledLinear { start: 0.00085, end: 0.012 }, 1000).unwrap()
}

/// `fake_model` of the golden script behind a prediction; `sign` is 1, or -1 for a wrong one.
struct FakeModel<'a> {
    prediction: Prediction,
    clock: &'a Clock,
    sign: f64,
}

impl Denoise for FakeModel<'_> {
    fn denoise(&mut self, x: &[f32], sigma: f64, out: &mut [f32]) -> Result<(), Error> {
        let (scale, timestep) = (Prediction::input_scale(sigma), self.clock.timestep(sigma));
        let output = x.iter().enumerate().map(|(i, x)| {
            let z = f64::from((f64::from(*x) * scale) as f32);
            let u = (0.6 + 0.0004 * timestep) * z + 0.3 * ((i % 5) as f64 - 2.0);
            (self.sign * u / (1.0 + u.abs())) as f32
        });
        self.prediction.to_denoised(x, &output.collect::<Vec<f32>>(), sigma, out);
        Ok(())
    }

    /// The golden script's unconditional answer is three quarters of the other.
    fn denoise_apart(
        &mut self,
        x: &[f32],
        sigma: f64,
        out: &mut [f32],
        unconditional: &mut [f32],
    ) -> Result<(), Error> {
        self.denoise(x, sigma, out)?;
        unconditional.iter_mut().zip(out).for_each(|(to, from)| *to = 0.75 * *from);
        Ok(())
    }
}

/// The latents after each of the steps that a case takes, under the fake model or, with `sign` -1, its opposite.
fn sample(case: &Case, sign: f64) -> Vec<Vec<f32>> {
    let (whole, taken) = case.schedule();
    let left_out = case.steps - taken;
    let schedule = whole.last(taken);
    let mut stream = TorchCpu::new(SEED);
    let mut x = vec![0.0; LEN];
    stream.fill_normal(&mut x);
    if left_out == 0 {
        // Where the samplers' kin start otherwise, it is the sampler that is compared here.
        x.iter_mut().for_each(|x| *x = (f64::from(*x) * case.initial_scale) as f32);
    } else {
        let mut clean = vec![0.0; LEN];
        TorchCpu::new(CLEAN_SEED).fill_normal(&mut clean);
        let sigma = schedule.steps()[0].from;
        x.iter_mut().zip(clean).for_each(|(x, clean)| {
            *x = (0.5 * f64::from(clean) + sigma * f64::from(*x)) as f32;
        });
    }
    let method = case.method();
    let mut tree;
    let noise: &mut dyn StepNoise = match method.settings().noise {
        StepNoiseKind::Stream => &mut stream,
        StepNoiseKind::Tree => {
            let steps = schedule.steps();
            tree = BrownianTree::new(LEN, steps[steps.len() - 1].from, steps[0].from, SEED);
            &mut tree
        }
    };
    let mut sampler = method.build(&schedule, LEN);
    let mut model = FakeModel { prediction: case.prediction(), clock: schedule.clock(), sign };
    let states = schedule.steps().iter().take(case.states).map(|step| {
        sampler.step(&mut x, step, &mut model, noise).unwrap();
        x.clone()
    });
    states.collect()
}

/// The length of the difference over the length of the expected vector; endless where something is not a number.
fn relative_l2(actual: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(actual.len(), expected.len());
    let length =
        |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>().sqrt();
    let difference = length(&mut actual.iter().zip(expected).map(|(a, e)| f64::from(*a) - f64::from(*e)));
    let ratio = difference / length(&mut expected.iter().map(|e| f64::from(*e)));
    if ratio.is_nan() { f64::INFINITY } else { ratio }
}

#[test]
fn schedules_of_samplers_are_those_of_their_references() {
    for case in cases().0 {
        let name = case.name();
        let (whole, taken) = case.schedule();
        // Diffusers keeps levels and fractional timesteps in single precision, after some operations in it.
        let close = |ours: f64, theirs: f64| (ours - theirs).abs() <= 1e-6 * theirs;
        if case.reference == "diffusers" {
            assert!(close(whole.initial_scale(), case.initial_scale), "{name}: {}", whole.initial_scale());
        }
        let schedule = whole.last(taken);
        assert_eq!((schedule.asked_steps(), case.sigmas.len()), (case.steps, taken + 1), "{name}");
        for (step, i) in schedule.steps().iter().zip(0..) {
            assert_eq!(step.index, i, "{name}");
            assert!(close(step.from, case.sigmas[i]), "{name}: {step:?}, expected {}", case.sigmas[i]);
            assert!(close(step.to, case.sigmas[i + 1]), "{name}: {step:?}, expected {}", case.sigmas[i + 1]);
            if case.reference == "diffusers" {
                let expected = case.timesteps[i];
                assert!(close(step.timestep, expected), "{name}: {step:?}, expected {expected}");
            }
        }
    }
}

#[test]
fn samplers_are_their_references() {
    let (cases, latents) = cases();
    assert!(cases.len() >= 800, "{} cases", cases.len());
    let mut worst = (0.0, String::new());
    for case in &cases {
        let name = case.name();
        let actual = sample(case, 1.0);
        let expected: Vec<&[f32]> = case.trajectory(&latents).collect();
        assert_eq!(actual.len(), expected.len(), "{name}");
        for (index, (actual, expected)) in actual.iter().zip(&expected).enumerate() {
            let error = relative_l2(actual, expected);
            assert!(error <= TOLERANCE, "{name}: after step {index}: relative error {error:.1e}");
            if error > worst.0 {
                worst = (error, name.clone());
            }
        }

        // What the tolerance must refuse.
        let (Some(first), Some(last)) = (expected.first(), expected.last()) else { continue };
        let zeros = relative_l2(&[0.0; LEN], last);
        let flipped = relative_l2(sample(case, -1.0).last().unwrap(), last);
        let shifted = if expected.len() > 1 { relative_l2(expected[1], first) } else { f64::INFINITY };
        for (wrong, error) in [("zeros", zeros), ("one step too far", shifted), ("sign", flipped)] {
            assert!(error > 10.0 * TOLERANCE, "{name}: {wrong}: relative error of only {error:.1e}");
        }
    }
    println!("worst: {:.1e}, {}", worst.0, worst.1);
}

/// Every kind is in the golden files, with all of the predictions that its reference has.
#[test]
fn every_sampler_is_compared() {
    let (cases, _) = cases();
    for kind in SamplerKind::ALL {
        let of_kind = || cases.iter().filter(|case| case.method().kind() == kind && case.states > 0);
        assert!(of_kind().count() >= 7, "{kind}: {} cases", of_kind().count());
    }
}
