//! Samplers against diffusers, k-diffusion and papers (`golden/sampling.*`, made by `export/golden_sampling.py`), and
//! against an equation with a known solution. Schedules have tests of their own: `tests/schedule.rs`.

use std::io::Read;
use std::path::{Path, PathBuf};

use calotype::noise::{BrownianTree, NoiseSource, Rng, StepNoise, TorchCpu};
use calotype::prediction::Prediction;
use calotype::sampler::{Denoise, Method, STEP_NOISE, SamplerKind, StepNoiseKind};
use calotype::schedule::{Betas, Clock, FlowShift, Grid, NoiseCurve, Schedule, ScheduleKind};
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
        let taken = (self.steps as f64 * self.strength) as usize;
        match self.curve.as_str() {
            "edm" => {
                let kind = self.schedule.parse().unwrap();
                return (Schedule::edm(&kind, 0.002, 80.0, self.steps).unwrap(), taken);
            }
            "flow" => {
                let shift = FlowShift::Static(self.schedule.parse().unwrap());
                return (Schedule::flow(self.steps, &shift, 1000).unwrap(), taken);
            }
            _ => {}
        }
        let curve = match self.curve.as_str() {
            "scaled_linear" => stable_diffusion(),
            "linear" => NoiseCurve::new(Betas::Linear { start: 0.0001, end: 0.02 }, 1000).unwrap(),
            other => panic!("curve {other}"),
        };
        let sampler = self.method().kind();
        let kind = sampler.own_schedule().unwrap_or_else(|| self.schedule.parse().unwrap());
        // The other references ask the model at fractional timesteps, whatever the sampler.
        let grid = if self.reference == "diffusers" { sampler.grid() } else { Grid::Fractional };
        let schedule = Schedule::of(&kind, &curve, grid, self.steps).unwrap();
        (schedule, taken)
    }

    fn prediction(&self) -> Prediction {
        match self.prediction.as_str() {
            "epsilon" => Prediction::Epsilon,
            "v" => Prediction::V,
            "sample" => Prediction::Sample,
            "edm" => Prediction::Edm { sigma_data: 0.5 },
            "edm_v" => Prediction::EdmV { sigma_data: 0.5 },
            "flow" => Prediction::Flow,
            other => panic!("prediction {other}"),
        }
    }

    fn name(&self) -> String {
        let Self { sampler, curve, schedule, prediction, steps, strength, reference, .. } = self;
        format!(
            "{sampler}, {curve}, {schedule}, {prediction}, {steps} steps, strength {strength} ({reference})"
        )
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
    let file = std::fs::read(golden("sampling.safetensors")).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&file).unwrap();
    let latents = tensors
        .tensor("latents")
        .unwrap()
        .data()
        .as_chunks()
        .0
        .iter()
        .map(|value| f32::from_le_bytes(*value))
        .collect();
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
        let (scale, timestep) = (self.prediction.input_scale(sigma), self.clock.timestep(sigma));
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
    let schedule = whole.last(taken).unwrap();
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
    let noise: &mut dyn StepNoise = match method.get(&STEP_NOISE) {
        StepNoiseKind::Stream => &mut stream,
        StepNoiseKind::Tree => {
            let steps = schedule.steps();
            tree =
                BrownianTree::new(Rng::Torch, LEN, steps[steps.len() - 1].from, steps[0].from, SEED).unwrap();
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
        let close = |ours: f64, theirs: f64| (ours - theirs).abs() <= 1e-6 * theirs.abs() + 1e-6;
        if case.reference == "diffusers" {
            assert!(close(whole.initial_scale(), case.initial_scale), "{name}: {}", whole.initial_scale());
        }
        let schedule = whole.last(taken).unwrap();
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
    let mut failures = Vec::new();
    for case in &cases {
        let name = case.name();
        let actual = sample(case, 1.0);
        let expected: Vec<&[f32]> = case.trajectory(&latents).collect();
        assert_eq!(actual.len(), expected.len(), "{name}");
        for (index, (actual, expected)) in actual.iter().zip(&expected).enumerate() {
            let error = relative_l2(actual, expected);
            if error > TOLERANCE {
                failures.push(format!("{name}: after step {index}: relative error {error:.1e}"));
                break;
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
    assert!(failures.is_empty(), "{} of {} cases:\n{}", failures.len(), cases.len(), failures.join("\n"));
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

/// The perfect denoiser of data distributed as N(0, DATA^2).
struct Gaussian;

const DATA: f64 = 0.5;

impl Denoise for Gaussian {
    fn denoise(&mut self, x: &[f32], sigma: f64, out: &mut [f32]) -> Result<(), Error> {
        let shrink = DATA * DATA / (DATA * DATA + sigma * sigma);
        out.iter_mut().zip(x).for_each(|(out, x)| *out = (shrink * f64::from(*x)) as f32);
        Ok(())
    }
}

/// A wide curve, so that no level is beyond it, and on it unevenly spaced levels from 8 to 0.4 in `steps` steps, then
/// three more, of which the last leads to 0.
fn uneven(steps: usize) -> Schedule {
    let curve = NoiseCurve::new(Betas::Linear { start: 0.0001, end: 0.02 }, 1000).unwrap();
    let level = |i: usize| {
        let part = i as f64 / steps as f64;
        8.0 * (0.4f64 / 8.0).powf(part - 0.1 * (std::f64::consts::TAU * part).sin())
    };
    let levels = (0..=steps).map(level).chain([0.3, 0.2]).collect();
    Schedule::of(&ScheduleKind::Custom(levels), &curve, Grid::Fractional, steps + 3).unwrap()
}

/// The error of a run on Gaussian data from level 8 to level 0.4, on unevenly spaced levels, against the solution
/// `x(sigma) = x(0) * sqrt((DATA^2 + sigma^2) / DATA^2)` of the probability flow ODE. The largest of several starts,
/// whose rounding differs.
fn gaussian_error(method: Method, steps: usize) -> f64 {
    let schedule = uneven(steps);
    let spread = |sigma: f64| DATA.hypot(sigma);
    let exact = spread(0.4) / spread(8.0);
    let mut sampler = method.build(&schedule, 1);
    let mut x = [1.0];
    for step in &schedule.steps()[..steps] {
        sampler.step(&mut x, step, &mut Gaussian, &mut TorchCpu::new(0)).unwrap();
    }
    (f64::from(x[0]) / exact - 1.0).abs()
}

/// Of the published third order the errors shrink as those of second, which `third=exact` mends: see `sampler/dpm.rs`.
/// UniPC's corrector adds an order.
#[test]
fn errors_shrink_with_the_order_of_the_method() {
    let methods = [
        ("euler", 1.0, 48),
        ("ddim", 1.0, 48),
        ("euler-cfg++", 1.0, 48),
        ("heun", 2.0, 24),
        ("dpm2", 2.0, 24),
        ("dpm++2s-a:eta=0", 2.0, 24),
        ("dpm++sde:eta=0", 2.0, 24),
        ("lms:order=1", 1.0, 48),
        ("lms:order=2", 2.0, 48),
        ("lms:order=3", 3.0, 48),
        ("lms", 4.0, 48),
        ("pndm", 2.0, 24),
        ("ipndm:order=2", 2.0, 24),
        ("ipndm", 2.0, 24),
        ("dpm-solver:order=1", 1.0, 48),
        ("dpm-solver", 2.0, 48),
        ("dpm-solver:solver=heun", 2.0, 48),
        ("dpm-solver:order=3", 2.0, 48),
        ("dpm-solver:order=3,third=exact", 3.0, 48),
        ("dpm-solver-s", 2.0, 24),
        ("dpm-solver-s:solver=heun", 2.0, 24),
        ("dpm-solver-s:order=3", 3.0, 24),
        ("dpm-solver-s:order=3,solver=heun", 3.0, 24),
        ("dpm++2m:order=1", 1.0, 48),
        ("dpm++2m", 2.0, 24),
        ("dpm++2m:solver=heun", 2.0, 24),
        ("dpm++3m", 2.0, 48),
        ("dpm++3m:third=exact", 3.0, 48),
        ("dpm++2s", 2.0, 24),
        ("dpm++2s:solver=heun", 2.0, 24),
        ("dpm++3s", 3.0, 24),
        ("dpm++3s:solver=heun", 3.0, 48),
        ("dpm++2m-sde:eta=0", 2.0, 24),
        ("dpm++3m-sde:eta=0,third=exact", 3.0, 48),
        ("unipc:order=1", 2.0, 24),
        ("unipc", 3.0, 12),
        ("unipc:order=1,solver=bh1", 2.0, 24),
        ("deis:order=1", 1.0, 48),
        ("deis", 2.0, 48),
        ("deis:order=3", 3.0, 48),
        ("res-multistep", 2.0, 24),
    ];
    let mut failures = Vec::new();
    for (text, order, steps) in methods {
        let method: Method = text.parse().unwrap();
        let [coarse, fine] = [steps, 2 * steps].map(|steps| gaussian_error(method, steps));
        let measured = (coarse / fine).log2();
        // Errors of single precision are 1e-7.
        if (measured - order).abs() > 0.4 || fine < 5e-7 {
            failures.push(format!(
                "{text}, {steps} steps: order {measured:.2}, errors {coarse:.1e} and {fine:.1e}"
            ));
        }
        if method == method.kind().into() || text.ends_with(":eta=0") {
            assert_eq!(method.kind().about().order as f64, order, "{text}: what its table says");
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    // UniPC's third order reaches single precision before its order shows.
    for steps in [8, 12] {
        let [second, third] =
            ["unipc", "unipc:order=3"].map(|text| gaussian_error(text.parse().unwrap(), steps));
        assert!(third < second / 10.0, "{steps} steps: {third:.1e}, second order {second:.1e}");
    }
    // Every deterministic kind is among them.
    for kind in SamplerKind::ALL.into_iter().filter(|kind| !kind.about().is_stochastic) {
        assert!(methods.iter().any(|(text, ..)| text.parse::<Method>().unwrap().kind() == kind), "{kind}");
    }
}

/// Fresh noise replaces what steps take away: data and noise keep their variance, whatever part is replaced.
#[test]
fn stochastic_steps_keep_the_variance() {
    const COUNT: usize = 8_000;
    const STEPS: usize = 200;
    let curve = NoiseCurve::new(Betas::Linear { start: 0.0001, end: 0.02 }, 1000).unwrap();
    let levels: Vec<f64> = (0..=STEPS).map(|i| 5.0 * (0.5f64 / 5.0).powf(i as f64 / STEPS as f64)).collect();
    let levels = levels.into_iter().chain([0.3, 0.2]).collect();
    let schedule = Schedule::of(&ScheduleKind::Custom(levels), &curve, Grid::Fractional, STEPS + 3).unwrap();
    for text in [
        "euler-a",
        "euler-a:eta=0.5",
        "euler:s_churn=20",
        "heun:s_churn=20",
        "dpm2-a",
        "ddim:eta=0.7",
        "ddpm",
        "sde-dpm-solver",
        "dpm++2m-sde:noise=stream",
        "dpm++2m-sde:noise=stream,eta=0.5",
        "dpm++2m-sde-heun:noise=stream",
        "dpm++3m-sde:noise=stream",
        "dpm++2s-a",
        "dpm++sde:noise=stream",
        "er-sde",
        "er-sde:order=1",
        "euler-a-cfg++",
    ] {
        let method: Method = text.parse().unwrap();
        let mut stream = TorchCpu::new(1);
        let mut x = vec![0.0; COUNT];
        stream.fill_normal(&mut x);
        x.iter_mut().for_each(|x| *x = (f64::from(*x) * DATA.hypot(5.0)) as f32);
        let mut sampler = method.build(&schedule, COUNT);
        for step in &schedule.steps()[..STEPS] {
            sampler.step(&mut x, step, &mut Gaussian, &mut stream).unwrap();
        }
        let variance = x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / COUNT as f64;
        let expected = DATA.hypot(0.5).powi(2);
        // The sampling error is 1.6 % (one standard deviation), the discretisation's about 1 %.
        assert!((variance / expected - 1.0).abs() < 0.06, "{text}: variance {variance}, expected {expected}");
    }
}

#[test]
fn an_error_of_the_denoiser_leaves_the_latents_alone() {
    /// Fails at one evaluation, counted from 0.
    struct Broken(usize);
    impl Denoise for Broken {
        fn denoise(&mut self, x: &[f32], _: f64, out: &mut [f32]) -> Result<(), Error> {
            out.copy_from_slice(x);
            match self.0.checked_sub(1) {
                Some(left) => self.0 = left,
                None => return Err(Error::new(ErrorKind::Cancelled, "cancelled")),
            }
            Ok(())
        }
    }
    let schedule = Schedule::of(&ScheduleKind::KARRAS, &stable_diffusion(), Grid::Fractional, 4).unwrap();
    for kind in SamplerKind::ALL {
        for good in 0..kind.about().evaluations {
            let mut x = [1.0, -2.0];
            let mut sampler = Method::from(kind).build(&schedule, 2);
            let error = sampler
                .step(&mut x, &schedule.steps()[0], &mut Broken(good), &mut TorchCpu::new(0))
                .expect_err("broken");
            assert_eq!((error.kind(), x), (ErrorKind::Cancelled, [1.0, -2.0]), "{kind}, {good} good");
        }
    }
}

/// What the table says of evaluations is what happens.
#[test]
fn steps_ask_as_often_as_their_table_says() {
    struct Counting(usize);
    impl Denoise for Counting {
        fn denoise(&mut self, _: &[f32], sigma: f64, out: &mut [f32]) -> Result<(), Error> {
            assert!(sigma > 0.0, "asked at level 0");
            self.0 += 1;
            out.fill(0.5);
            Ok(())
        }
    }
    let schedule = Schedule::of(&ScheduleKind::KARRAS, &stable_diffusion(), Grid::Fractional, 5).unwrap();
    for kind in SamplerKind::ALL {
        let mut sampler = Method::from(kind).build(&schedule, 2);
        let (mut x, mut counting, mut noise) = ([1.0, -2.0], Counting(0), TorchCpu::new(0));
        for step in schedule.steps() {
            let before = counting.0;
            sampler.step(&mut x, step, &mut counting, &mut noise).unwrap();
            let expected = match kind {
                // Its first step asks ahead.
                SamplerKind::Pndm if step.index == 0 => 2,
                _ if step.to == 0.0 => 1,
                _ => kind.about().evaluations,
            };
            assert_eq!(counting.0 - before, expected, "{kind}, step {}", step.index);
        }
        if kind != SamplerKind::Lcm {
            assert!(
                x.iter().all(|x| (x - 0.5).abs() < 1e-6),
                "{kind} ends at {x:?}, not at the clean latents"
            );
        }
    }
}

/// Slopes are slopes in flow matching, too: `x = (1 - t) x0 + t noise` has `dx/dt = (x - x0) / t`. A straight line, which
/// data of one value has, is followed exactly from `t = 1` in any number of steps.
#[test]
fn slope_methods_run_on_levels_of_flow_matching() {
    struct Point;
    impl Denoise for Point {
        fn denoise(&mut self, _: &[f32], _: f64, out: &mut [f32]) -> Result<(), Error> {
            out.fill(0.75);
            Ok(())
        }
    }
    let levels = [1.0, 0.8, 0.55, 0.2, 0.0];
    let curve = stable_diffusion();
    let schedule =
        Schedule::of(&ScheduleKind::Custom(levels[..4].to_vec()), &curve, Grid::Fractional, 4).unwrap();
    for kind in SamplerKind::ALL.into_iter().filter(|kind| kind.about().is_slope) {
        let (mut x, mut sampler) = ([-1.5f32], Method::from(kind).build(&schedule, 1));
        for (step, level) in schedule.steps().iter().zip(&levels[1..]) {
            sampler.step(&mut x, step, &mut Point, &mut TorchCpu::new(0)).unwrap();
            let expected = (1.0 - level) * 0.75 + level * -1.5;
            assert!((f64::from(x[0]) - expected).abs() < 1e-6, "{kind} at {level}: {}, {expected}", x[0]);
        }
    }
}
