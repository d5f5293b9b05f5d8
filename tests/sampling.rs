//! Schedules and samplers against diffusers (`golden/sampling.json`, made by `export/golden_sampling.py`), and
//! against an equation with a known solution.

use calotype::noise::{NoiseSource, TorchCpu};
use calotype::prediction::Prediction;
use calotype::sampler::{Denoise, SamplerKind};
use calotype::schedule::{Betas, NoiseCurve, Schedule, Spacing, Step};
use calotype::{Error, ErrorKind};
use serde::Deserialize;

/// Diffusers works in single precision: its rounding leaves up to 8e-6 (two Euler steps down from level 41).
const TOLERANCE: f64 = 1e-5;

/// The values of the golden latents, and the seed of their noise.
const LEN: usize = 32;
const SEED: u64 = 20;

#[derive(Deserialize)]
struct Golden {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    sampler: String,
    beta_end: f64,
    spacing: String,
    steps: usize,
    timesteps: Vec<f64>,
    sigmas: Vec<f64>,
    initial_scale: f64,
    runs: Vec<Run>,
}

#[derive(Deserialize)]
struct Run {
    prediction: String,
    latents: Vec<f32>,
    next_normal: f32,
}

impl Case {
    fn kind(&self) -> SamplerKind {
        self.sampler.parse().unwrap()
    }

    fn schedule(&self) -> Schedule {
        let spacing = match self.spacing.as_str() {
            "leading" => Spacing::Leading { offset: 1 },
            "linspace" => Spacing::Linspace,
            "trailing" => Spacing::Trailing,
            other => panic!("spacing {other}"),
        };
        self.kind().schedule(&stable_diffusion(self.beta_end), spacing, self.steps).unwrap()
    }

    fn name(&self) -> String {
        let Self { sampler, beta_end, spacing, steps, .. } = self;
        format!("{sampler}, beta_end {beta_end}, {spacing}, {steps} steps")
    }
}

impl Run {
    fn prediction(&self) -> Prediction {
        match self.prediction.as_str() {
            "epsilon" => Prediction::Epsilon,
            "v" => Prediction::V,
            "sample" => Prediction::Sample,
            other => panic!("prediction {other}"),
        }
    }
}

fn golden() -> Golden {
    serde_json::from_str(include_str!("golden/sampling.json")).unwrap()
}

fn stable_diffusion(beta_end: f64) -> NoiseCurve {
    NoiseCurve::new(Betas::ScaledLinear { start: 0.00085, end: beta_end }, 1000).unwrap()
}

/// `fake_model` of the golden script behind a prediction; `sign` is 1, or -1 for a wrong one.
struct FakeModel {
    prediction: Prediction,
    sign: f64,
}

impl Denoise for FakeModel {
    fn denoise(&mut self, x: &[f32], sigma: f64, timestep: f64, out: &mut [f32]) -> Result<(), Error> {
        let scale = self.prediction.input_scale(sigma);
        let output = x.iter().enumerate().map(|(i, x)| {
            let z = f64::from((f64::from(*x) * scale) as f32);
            let u = (0.6 + 0.0004 * timestep) * z + 0.3 * ((i % 5) as f64 - 2.0);
            (self.sign * u / (1.0 + u.abs())) as f32
        });
        self.prediction.to_denoised(x, &output.collect::<Vec<f32>>(), sigma, out);
        Ok(())
    }
}

/// Runs all steps but the first `left_out`, and gives the latents and the generator behind them.
fn sample(
    kind: SamplerKind,
    schedule: &Schedule,
    left_out: usize,
    mut model: FakeModel,
) -> (Vec<f32>, TorchCpu) {
    let mut noise = TorchCpu::new(SEED);
    let mut x = vec![0.0; LEN];
    noise.fill_normal(&mut x);
    x.iter_mut().for_each(|x| *x = (f64::from(*x) * schedule.initial_scale()) as f32);
    let mut sampler = kind.build(LEN);
    for step in &schedule.steps()[left_out..] {
        sampler.step(&mut x, step, &mut model, &mut noise).unwrap();
    }
    (x, noise)
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
fn schedules_are_those_of_diffusers() {
    let golden = golden();
    assert_eq!(golden.cases.len(), SamplerKind::ALL.len() * 3 * (2 * 4 + 3));
    for case in golden.cases {
        let name = case.name();
        let schedule = case.schedule();
        assert_eq!(schedule.steps().len(), case.steps, "{name}");
        assert_eq!(case.sigmas.len(), case.steps + 1, "{name}");
        // Diffusers keeps levels and fractional timesteps in single precision, after some operations in it.
        let close = |ours: f64, theirs: f64| (ours - theirs).abs() <= 1e-6 * theirs;
        assert!(close(schedule.initial_scale(), case.initial_scale), "{name}: {}", schedule.initial_scale());
        for (step, i) in schedule.steps().iter().zip(0..) {
            assert_eq!(step.index, i, "{name}");
            assert!(
                close(step.timestep, case.timesteps[i]),
                "{name}: {step:?}, expected {}",
                case.timesteps[i]
            );
            assert!(close(step.from, case.sigmas[i]), "{name}: {step:?}, expected {}", case.sigmas[i]);
            assert!(close(step.to, case.sigmas[i + 1]), "{name}: {step:?}, expected {}", case.sigmas[i + 1]);
        }
    }
}

#[test]
fn samplers_are_those_of_diffusers() {
    let mut runs = 0;
    for case in golden().cases {
        let (kind, schedule) = (case.kind(), case.schedule());
        for run in &case.runs {
            let name = format!("{}, {}", case.name(), run.prediction);
            let prediction = run.prediction();
            let (latents, mut noise) = sample(kind, &schedule, 0, FakeModel { prediction, sign: 1.0 });
            let error = relative_l2(&latents, &run.latents);
            assert!(error <= TOLERANCE, "{name}: relative error {error:.1e}");

            let mut next = [0.0];
            noise.fill_normal(&mut next);
            assert_eq!(next, [run.next_normal], "{name}: noise drawn");

            // What the tolerance must refuse.
            let zeros = relative_l2(&[0.0; LEN], &run.latents);
            let (shifted, _) = sample(kind, &schedule, 1, FakeModel { prediction, sign: 1.0 });
            let shifted = relative_l2(&shifted, &run.latents);
            let (flipped, _) = sample(kind, &schedule, 0, FakeModel { prediction, sign: -1.0 });
            let flipped = relative_l2(&flipped, &run.latents);
            for (wrong, error) in [("zeros", zeros), ("one step left out", shifted), ("sign", flipped)] {
                assert!(error > 10.0 * TOLERANCE, "{name}: {wrong}: relative error of only {error:.1e}");
            }
            runs += 1;
        }
    }
    // All but Euler ancestral predicting samples, and DDIM in linspace spacing of several steps.
    assert_eq!(runs, 6 * 2 * 3 * 4 * 3 - 2 * 3 * 4 - 2 * 3 * 3);
}

/// The perfect denoiser of data distributed as N(0, DATA^2).
struct Gaussian;

const DATA: f64 = 0.5;

impl Denoise for Gaussian {
    fn denoise(&mut self, x: &[f32], sigma: f64, _timestep: f64, out: &mut [f32]) -> Result<(), Error> {
        let shrink = DATA * DATA / (DATA * DATA + sigma * sigma);
        out.iter_mut().zip(x).for_each(|(out, x)| *out = (shrink * f64::from(*x)) as f32);
        Ok(())
    }
}

/// The error of a run on Gaussian data from level 8 to level 0.4, on unevenly spaced levels, against the solution
/// `x(sigma) = x(0) * sqrt((DATA^2 + sigma^2) / DATA^2)` of the probability flow ODE.
fn gaussian_error(kind: SamplerKind, steps: usize) -> f64 {
    let level = |i: usize| {
        let part = i as f64 / steps as f64;
        8.0 * (0.4f64 / 8.0).powf(part - 0.1 * (std::f64::consts::TAU * part).sin())
    };
    let mut sampler = kind.build(1);
    let mut x = [1.0];
    for index in 0..steps {
        let step = Step { index, from: level(index), to: level(index + 1), timestep: 0.0 };
        sampler.step(&mut x, &step, &mut Gaussian, &mut TorchCpu::new(0)).unwrap();
    }
    let spread = |sigma: f64| DATA.hypot(sigma);
    let exact = spread(level(steps)) / spread(level(0));
    (f64::from(x[0]) / exact - 1.0).abs()
}

#[test]
fn errors_shrink_with_the_order_of_the_method() {
    for (kind, order) in [(SamplerKind::Euler, 1.0), (SamplerKind::Ddim, 1.0), (SamplerKind::DpmPp2m, 2.0)] {
        for steps in [20, 40, 80] {
            let measured = (gaussian_error(kind, steps) / gaussian_error(kind, 2 * steps)).log2();
            assert!((measured - order).abs() < 0.2, "{kind}, {steps} steps: order {measured:.2}");
        }
    }
}

/// Ancestral noise replaces what the step below the target takes away: data and noise keep their variance.
#[test]
fn ancestral_steps_keep_the_variance() {
    const COUNT: usize = 10_000;
    let mut noise = TorchCpu::new(1);
    let mut x = vec![0.0; COUNT];
    noise.fill_normal(&mut x);
    let levels: Vec<f64> = (0..=200).map(|i| 5.0 * (0.5f64 / 5.0).powf(f64::from(i) / 200.0)).collect();
    x.iter_mut().for_each(|x| *x = (f64::from(*x) * DATA.hypot(levels[0])) as f32);
    let mut sampler = SamplerKind::EulerAncestral.build(COUNT);
    for (index, pair) in levels.windows(2).enumerate() {
        let step = Step { index, from: pair[0], to: pair[1], timestep: 0.0 };
        sampler.step(&mut x, &step, &mut Gaussian, &mut noise).unwrap();
    }
    let variance = x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / COUNT as f64;
    let expected = DATA.hypot(0.5).powi(2);
    // The sampling error is 1.4 % (one standard deviation), the discretisation's about as much.
    assert!((variance / expected - 1.0).abs() < 0.05, "variance {variance}, expected {expected}");
}

#[test]
fn an_error_of_the_denoiser_leaves_the_latents_alone() {
    struct Broken;
    impl Denoise for Broken {
        fn denoise(&mut self, _: &[f32], _: f64, _: f64, _: &mut [f32]) -> Result<(), Error> {
            Err(Error::new(ErrorKind::Cancelled, "cancelled"))
        }
    }
    let step = Step { index: 0, from: 2.0, to: 1.0, timestep: 500.0 };
    for kind in SamplerKind::ALL {
        let mut x = [1.0, -2.0];
        let error =
            kind.build(2).step(&mut x, &step, &mut Broken, &mut TorchCpu::new(0)).expect_err("broken");
        assert_eq!((error.kind(), x), (ErrorKind::Cancelled, [1.0, -2.0]), "{kind}");
    }
}

const SPACINGS: [Spacing; 4] =
    [Spacing::Leading { offset: 0 }, Spacing::Leading { offset: 1 }, Spacing::Linspace, Spacing::Trailing];

#[test]
fn every_schedule_falls_strictly_to_zero() {
    let curves = [
        stable_diffusion(0.012),
        NoiseCurve::new(Betas::Linear { start: 0.0001, end: 0.02 }, 1000).unwrap(),
        NoiseCurve::new(Betas::SquaredCosCapV2, 1000).unwrap(),
        NoiseCurve::new(Betas::ScaledLinear { start: 0.01, end: 0.2 }, 40).unwrap(),
    ];
    for curve in &curves {
        for (kind, spacing) in
            SamplerKind::ALL.into_iter().flat_map(|kind| SPACINGS.map(|spacing| (kind, spacing)))
        {
            let mut made = 0;
            // Every small number, the crowded end, and some of those between.
            let tried = (1..=curve.len()).filter(|n| n % 41 == 0 || *n <= 60 || curve.len() - n < 3);
            for steps in tried.clone() {
                let name = format!("{kind}, {spacing:?}, {steps} of {}", curve.len());
                let schedule = match kind.schedule(curve, spacing, steps) {
                    Ok(schedule) => schedule,
                    Err(error) => {
                        assert_eq!(error.kind(), ErrorKind::Usage, "{name}");
                        continue;
                    }
                };
                made += 1;
                let list = schedule.steps();
                assert_eq!(list.len(), steps, "{name}");
                assert_eq!(list[steps - 1].to, 0.0, "{name}");
                assert!(list.iter().all(|step| step.from > step.to), "{name}");
                assert!(list.windows(2).all(|pair| pair[0].to == pair[1].from), "{name}");
                assert!(list.windows(2).all(|pair| pair[0].timestep >= pair[1].timestep), "{name}");
                assert!(list[0].timestep <= (curve.len() - 1) as f64, "{name}");
                assert!(list[0].from <= curve.sigma_max() * (1.0 + 1e-12), "{name}");
                assert!(schedule.initial_scale() >= list[0].from, "{name}");
            }
            // All that fit but those next to the curve's own number: that they are few shows that the rest was tested.
            let fit = if kind == SamplerKind::Lcm { 50.min(curve.len()) } else { tried.count() - 3 };
            assert!(made >= fit, "{kind}, {spacing:?}: {made} of {fit}");
        }
    }
}

#[test]
fn steps_out_of_range_are_refused_and_the_range_named() {
    let curve = stable_diffusion(0.012);
    let short = NoiseCurve::new(Betas::Linear { start: 0.01, end: 0.2 }, 40).unwrap();
    for (kind, curve, steps, range) in [
        (SamplerKind::Euler, &curve, 0, "1 to 1000"),
        (SamplerKind::Euler, &curve, 1001, "1 to 1000"),
        (SamplerKind::DpmPp2mKarras, &curve, usize::MAX, "1 to 1000"),
        (SamplerKind::Lcm, &curve, 51, "1 to 50"),
        (SamplerKind::Lcm, &short, 41, "1 to 40"),
    ] {
        let error = kind.schedule(curve, Spacing::Trailing, steps).expect_err("out of range");
        assert_eq!(error.kind(), ErrorKind::Usage);
        assert!(error.to_string().contains(range), "{error}");
    }
    // In range, but the offset pushes the first timestep off the curve.
    let error =
        SamplerKind::Ddim.schedule(&curve, Spacing::Leading { offset: 1 }, 1000).expect_err("off the curve");
    assert_eq!(error.kind(), ErrorKind::Usage);
    assert!(error.to_string().contains("999"), "{error}");
    // One timestep more than there is room for between the first and the last.
    let error = SamplerKind::DpmPp2m.schedule(&curve, Spacing::Linspace, 1000).expect_err("crowded");
    assert_eq!(error.kind(), ErrorKind::Usage);
}

#[test]
fn the_cosine_curve_is_not_integer_division() {
    let curve = NoiseCurve::new(Betas::SquaredCosCapV2, 1000).unwrap();
    // alpha_bar(1/2) of Nichol & Dhariwal 2021, equation 17, after 500 of 1000 timesteps.
    let f = |u: f64| ((u + 0.008) / 1.008 * std::f64::consts::FRAC_PI_2).cos().powi(2);
    let alpha_bar = f(0.5) / f(0.0);
    let sigma = ((1.0 - alpha_bar) / alpha_bar).sqrt();
    assert!((curve.sigma_of_timestep(499.0) / sigma - 1.0).abs() < 1e-5);
    // The last beta is capped: a thousandth of the signal's variance is left, not nothing.
    let signal = |t: f64| 1.0 / (curve.sigma_of_timestep(t).powi(2) + 1.0);
    assert!((signal(999.0) / signal(998.0) - 0.001).abs() < 1e-6);
}

#[test]
fn a_curve_is_the_product_of_its_betas() {
    let curves = [
        (NoiseCurve::new(Betas::Linear { start: 0.1, end: 0.3 }, 3), [0.1, 0.2, 0.3]),
        (NoiseCurve::new(Betas::ScaledLinear { start: 0.04, end: 0.36 }, 3), [0.04, 0.16, 0.36]),
        (NoiseCurve::from_betas(&[0.5, 0.1, 0.7]), [0.5, 0.1, 0.7]),
    ];
    for (curve, betas) in curves {
        let curve = curve.unwrap();
        let mut signal = 1.0f64;
        for (beta, t) in betas.into_iter().zip(0..) {
            signal *= 1.0 - beta;
            let sigma = ((1.0 - signal) / signal).sqrt();
            assert!((curve.sigma_of_timestep(f64::from(t)) / sigma - 1.0).abs() < 1e-6, "{betas:?}, {t}");
        }
    }
}

#[test]
fn sigma_and_timestep_are_inverse_at_whole_timesteps() {
    let curve = stable_diffusion(0.012);
    for t in 0..curve.len() {
        let sigma = curve.sigma_of_timestep(t as f64);
        assert!((curve.timestep_of_sigma(sigma) - t as f64).abs() < 1e-9, "timestep {t}");
    }
    // Halfway between two levels in the logarithm, where linear interpolation of sigma would be elsewhere.
    let between = (curve.sigma_of_timestep(0.0) * curve.sigma_of_timestep(1.0)).sqrt();
    assert!((curve.timestep_of_sigma(between) - 0.5).abs() < 1e-9);
}

#[test]
fn hostile_curves_are_model_errors() {
    let linear = |start, end| Betas::Linear { start, end };
    let hostile = [
        ("no timesteps", "got 0", NoiseCurve::new(linear(0.1, 0.2), 0)),
        ("one timestep", "got 1", NoiseCurve::new(linear(0.1, 0.2), 1)),
        ("endless timesteps", "timesteps", NoiseCurve::new(linear(0.1, 0.2), usize::MAX)),
        ("zero beta", "beta[0]", NoiseCurve::new(linear(0.0, 0.2), 10)),
        ("negative beta", "beta[0]", NoiseCurve::new(linear(-0.1, 0.2), 10)),
        (
            "root of a negative beta",
            "beta[0]",
            NoiseCurve::new(Betas::ScaledLinear { start: -0.1, end: 0.2 }, 10),
        ),
        ("beta of one", "beta[9]", NoiseCurve::new(linear(0.1, 1.0), 10)),
        ("nan beta", "beta[0]", NoiseCurve::new(linear(0.1, f64::NAN), 10)),
        ("infinite beta", "beta[", NoiseCurve::new(linear(0.1, f64::INFINITY), 10)),
        ("vanishing signal", "sigma[", NoiseCurve::from_betas(&[0.999; 100])),
        ("betas too small to change anything", "sigma[0]", NoiseCurve::from_betas(&[1e-30; 10])),
        ("listed nan", "beta[1]", NoiseCurve::from_betas(&[0.1, f32::NAN])),
        ("nothing listed", "got 0", NoiseCurve::from_betas(&[])),
    ];
    for (name, place, curve) in hostile {
        let error = curve.expect_err(name);
        assert_eq!(error.kind(), ErrorKind::Model, "{name}");
        assert!(error.to_string().contains(place), "{name}: {error}");
    }
}
