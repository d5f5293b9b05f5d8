//! Noise curves and schedules against diffusers, k-diffusion, scipy and ComfyUI's definitions
//! (`golden/schedules.json.gz`, made by `export/golden_schedules.py`), and the properties that all of them share.

use std::io::Read;

use calotype::noise::TorchCpu;
use calotype::sampler::{
    BH, Bh, Denoise, ETA, LOWER_FINAL, Method, ORDER, R, S_CHURN, S_NOISE, S_TMAX, S_TMIN, SOLVER,
    SamplerKind, Solver,
};
use calotype::schedule::{
    AysTable, Betas, FlowShift, Grid, MAX_TIMESTEPS, NoiseCurve, Schedule, ScheduleKind, Spacing, Step,
    TimeShift,
};
use calotype::{Error, ErrorKind};
use serde::Deserialize;

/// Diffusers keeps curves and some levels in single precision, whose neighbours are 1.2e-7 of themselves apart.
const TOLERANCE: f64 = 1e-6;
/// It rescales curves in single precision, through factors near 1: its rounding moves levels by up to 2e-5, and the times of
/// levels where the curve is flat by up to 4e-5.
const RESCALED_TOLERANCE: f64 = 1e-4;
/// It computes some of EDM's and flow matching's levels in it from numbers near 1 or 10, with several roundings.
const SINGLE_TOLERANCE: f64 = 1e-5;

#[derive(Deserialize)]
struct Golden {
    curves: Vec<Curve>,
    flows: Vec<Flow>,
    edms: Vec<Case>,
}

#[derive(Deserialize)]
struct Curve {
    name: String,
    trained_betas: Option<Vec<f32>>,
    range: [f64; 2],
    sigmas: Vec<f64>,
    schedules: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    kind: String,
    grid: String,
    steps: usize,
    sigmas: Vec<f64>,
    timesteps: Vec<f64>,
    initial_scale: f64,
    /// Of a model without a curve.
    range: Option<[f64; 2]>,
}

#[derive(Deserialize)]
struct Flow {
    shift: Shift,
    steps: usize,
    sigmas: Vec<f64>,
    timesteps: Vec<f64>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Shift {
    Static { r#static: f64 },
    Dynamic { tokens: usize, mu: f64, time_shift: String, terminal: Option<f64> },
}

impl Curve {
    fn betas(&self) -> Betas {
        match self.name.as_str() {
            "stable-diffusion" => stable_diffusion(),
            "linear" => Betas::Linear { start: 0.0001, end: 0.02 },
            "cosine" => Betas::SquaredCosCapV2,
            "sigmoid" => Betas::Sigmoid { start: 0.0001, end: 0.02 },
            "trained" => Betas::Trained(self.trained_betas.clone().unwrap()),
            "zero-snr" => Betas::ZeroTerminalSnr(Box::new(stable_diffusion())),
            other => panic!("curve {other}"),
        }
    }

    fn curve(&self) -> NoiseCurve {
        NoiseCurve::new(self.betas(), 1000).unwrap()
    }

    fn tolerance(&self) -> f64 {
        if self.name == "zero-snr" { RESCALED_TOLERANCE } else { TOLERANCE }
    }
}

impl Case {
    fn kind(&self) -> ScheduleKind {
        self.kind.parse().unwrap()
    }

    fn grid(&self) -> Grid {
        match self.grid.as_str() {
            "fractional" => Grid::Fractional,
            "whole" => Grid::Whole,
            "whole-above-last" => Grid::WholeAboveLast,
            other => panic!("grid {other}"),
        }
    }

    fn name(&self) -> String {
        format!("{}, {}, {} steps", self.kind, self.grid, self.steps)
    }
}

fn golden() -> Golden {
    let mut json = String::new();
    let packed = &include_bytes!("golden/schedules.json.gz")[..];
    flate2::read::GzDecoder::new(packed).read_to_string(&mut json).unwrap();
    serde_json::from_str(&json).unwrap()
}

fn stable_diffusion() -> Betas {
    Betas::ScaledLinear { start: 0.00085, end: 0.012 }
}

fn curves() -> Vec<(&'static str, NoiseCurve)> {
    let linear = Betas::Linear { start: 0.0001, end: 0.02 };
    let zero = |betas| Betas::ZeroTerminalSnr(Box::new(betas));
    let curve = |betas, timesteps| NoiseCurve::new(betas, timesteps).unwrap();
    vec![
        ("stable diffusion", curve(stable_diffusion(), 1000)),
        ("linear", curve(linear.clone(), 1000)),
        ("cosine", curve(Betas::SquaredCosCapV2, 1000)),
        ("zero terminal SNR", curve(zero(stable_diffusion()), 1000)),
        ("linear, zero terminal SNR", curve(zero(linear), 1000)),
        ("40 timesteps", curve(Betas::ScaledLinear { start: 0.01, end: 0.2 }, 40)),
    ]
}

const GRIDS: [Grid; 3] = [Grid::Fractional, Grid::Whole, Grid::WholeAboveLast];

/// Every kind, with its usual numbers and others.
fn kinds() -> Vec<ScheduleKind> {
    let others = [
        ScheduleKind::Spaced(Spacing::Leading { offset: 0 }),
        ScheduleKind::Karras { rho: 3.0 },
        ScheduleKind::Polyexponential { rho: 0.5 },
        ScheduleKind::Beta { alpha: 2.0, beta: 1.5 },
        ScheduleKind::Laplace { mu: 0.5, beta: 0.3 },
        ScheduleKind::Lcm { trained_steps: 24 },
    ];
    ScheduleKind::names().map(|name| name.parse().unwrap()).chain(others).collect()
}

/// What lists of numbers are compared as.
#[derive(Clone, Copy)]
enum Scale {
    /// Levels: differences count as parts of the number.
    Level,
    /// Times: below 1 they count as they are, because a timestep is one.
    Time,
}

/// The largest difference; endless for something that is not a number.
fn difference(actual: &[f64], expected: &[f64], scale: Scale) -> f64 {
    assert_eq!(actual.len(), expected.len());
    let unit = |expected: f64| match scale {
        Scale::Level => expected.abs(),
        Scale::Time => expected.abs().max(1.0),
    };
    let each = actual.iter().zip(expected).map(|(a, e)| (a - e).abs() / unit(*e));
    each.fold(0.0, |most, one| if one.is_nan() { f64::INFINITY } else { most.max(one) })
}

/// Checks a list against the golden one, and that the comparison would refuse others.
#[track_caller]
fn is_close(name: &str, actual: &[f64], expected: &[f64], scale: Scale, tolerance: f64) {
    let error = difference(actual, expected, scale);
    assert!(error <= tolerance, "{name}: difference {error:.1e}\n{actual:?}, expected\n{expected:?}");
    let shifted: Vec<f64> = actual[1..].iter().copied().chain([0.0]).collect();
    let reversed: Vec<f64> = actual.iter().rev().copied().collect();
    for (wrong, list) in
        [("one step on", shifted), ("reversed", reversed), ("zeros", vec![0.0; actual.len()])]
    {
        // A single number is its own reverse, and a single 0 zeros and what comes after it.
        let is_same = list == actual;
        assert!(
            is_same || difference(&list, expected, scale) > 10.0 * tolerance,
            "{name}: {wrong} is close, too"
        );
    }
}

fn from(schedule: &Schedule) -> Vec<f64> {
    schedule.steps().iter().map(|step| step.from).collect()
}

fn timesteps(schedule: &Schedule) -> Vec<f64> {
    schedule.steps().iter().map(|step| step.timestep).collect()
}

#[test]
fn curves_are_those_of_diffusers() {
    let Golden { curves, .. } = golden();
    let names: Vec<&str> = curves.iter().map(|curve| curve.name.as_str()).collect();
    assert_eq!(names, ["stable-diffusion", "linear", "cosine", "sigmoid", "trained", "zero-snr"]);
    for golden in &curves {
        let curve = golden.curve();
        let at = |shift: usize| -> Vec<f64> {
            (shift..curve.len()).map(|t| curve.sigma_of_timestep(t as f64)).collect()
        };
        is_close(&golden.name, &at(0), &golden.sigmas, Scale::Level, golden.tolerance());
        is_close(
            &golden.name,
            &[curve.sigma_min(), curve.sigma_max()],
            &golden.range,
            Scale::Level,
            TOLERANCE,
        );
        let shifted = difference(&at(1), &golden.sigmas[..golden.sigmas.len() - 1], Scale::Level);
        assert!(shifted > 1e-3, "{}: one timestep on is close, too", golden.name);
    }
}

#[test]
fn schedules_are_those_of_their_references() {
    let mut kinds = std::collections::BTreeMap::<String, usize>::new();
    for golden in golden().curves {
        let curve = golden.curve();
        for case in &golden.schedules {
            let name = format!("{}: {}", golden.name, case.name());
            let schedule = Schedule::of(&case.kind(), &curve, case.grid(), case.steps).unwrap();
            assert_eq!(schedule.steps().len(), case.steps, "{name}");
            is_close(
                &format!("{name}: levels"),
                &from(&schedule),
                &case.sigmas,
                Scale::Level,
                golden.tolerance(),
            );
            let name_of_times = format!("{name}: timesteps");
            is_close(&name_of_times, &timesteps(&schedule), &case.timesteps, Scale::Time, golden.tolerance());
            let scale = difference(&[schedule.initial_scale()], &[case.initial_scale], Scale::Level);
            assert!(scale <= golden.tolerance(), "{name}: initial scale {}", schedule.initial_scale());
            *kinds.entry(case.kind.split(':').next().unwrap().to_owned()).or_default() += 1;
        }
    }
    for name in ScheduleKind::names().filter(|name| *name != "ays-svd") {
        assert!(kinds.get(name).is_some_and(|count| *count >= 6), "{name}: {:?}", kinds.get(name));
    }
}

#[test]
fn flow_matching_levels_are_those_of_diffusers() {
    let flows = golden().flows;
    assert!(flows.len() > 40);
    for flow in flows {
        let shift = match &flow.shift {
            Shift::Static { r#static } => FlowShift::Static(*r#static),
            Shift::Dynamic { tokens, mu, time_shift, terminal } => {
                let ours = FlowShift::mu(*tokens, [256, 4096], [0.5, 1.15]);
                assert!((ours - mu).abs() < 1e-9, "{tokens} tokens: mu {ours}, expected {mu}");
                let time_shift = match time_shift.as_str() {
                    "exponential" => TimeShift::Exponential,
                    "linear" => TimeShift::Linear,
                    other => panic!("time shift {other}"),
                };
                FlowShift::Dynamic { mu: *mu, time_shift, terminal: *terminal }
            }
        };
        let name = format!("{shift:?}, {} steps", flow.steps);
        let schedule = Schedule::flow(flow.steps, &shift, 1000).unwrap();
        is_close(&name, &from(&schedule), &flow.sigmas, Scale::Level, SINGLE_TOLERANCE);
        is_close(&name, &timesteps(&schedule), &flow.timesteps, Scale::Time, SINGLE_TOLERANCE);
        assert_eq!((schedule.steps()[0].from, schedule.initial_scale()), (1.0, 1.0), "{name}");
        if shift == FlowShift::Static(1.0) {
            assert_eq!(Schedule::flow(flow.steps, &FlowShift::None, 1000).unwrap(), schedule);
        }
        falls_to_zero(&name, &schedule, flow.steps);
        let clock = schedule.clock();
        assert!((clock.sigma(250.0) - 0.25).abs() < 1e-12 && (clock.timestep(0.123) - 123.0).abs() < 1e-9);
    }
}

#[test]
fn edm_levels_are_those_of_diffusers() {
    let edms = golden().edms;
    assert!(edms.len() > 30);
    for case in edms {
        let name = case.name();
        let [sigma_min, sigma_max] = case.range.unwrap();
        let schedule = Schedule::edm(&case.kind(), sigma_min, sigma_max, case.steps).unwrap();
        is_close(&name, &from(&schedule), &case.sigmas, Scale::Level, SINGLE_TOLERANCE);
        is_close(&name, &timesteps(&schedule), &case.timesteps, Scale::Time, SINGLE_TOLERANCE);
        assert!(
            difference(&[schedule.initial_scale()], &[case.initial_scale], Scale::Level) <= TOLERANCE,
            "{name}"
        );
        falls_to_zero(&name, &schedule, case.steps);
        let clock = schedule.clock();
        assert!((clock.sigma(clock.timestep(3.0)) - 3.0).abs() < 1e-12);
    }
}

/// Checks what every schedule promises.
#[track_caller]
fn falls_to_zero(name: &str, schedule: &Schedule, steps: usize) {
    let list = schedule.steps();
    assert_eq!((list.len(), schedule.asked_steps()), (steps, steps), "{name}");
    assert_eq!(list[steps - 1].to, 0.0, "{name}");
    assert!(list.iter().all(|step| step.from > step.to && step.from.is_finite()), "{name}");
    assert!(list.windows(2).all(|pair| pair[0].to == pair[1].from), "{name}");
    assert!(list.windows(2).all(|pair| pair[0].timestep >= pair[1].timestep), "{name}");
    assert!(list.iter().zip(0..).all(|(step, i)| step.index == i), "{name}");
    assert!(schedule.initial_scale() >= list[0].from, "{name}");
    let clock = schedule.clock();
    assert!(list.iter().all(|step| clock.timestep(step.from) == step.timestep), "{name}: clock");
}

#[test]
fn every_schedule_falls_strictly_to_zero() {
    for (curve_name, curve) in curves() {
        let len = curve.len();
        for (kind, grid) in kinds().into_iter().flat_map(|kind| GRIDS.map(|grid| (kind.clone(), grid))) {
            let mut made = 0;
            // Every small number, the crowded end, and some of those between.
            let tried = (1..=len).filter(|n| n % 97 == 0 || *n <= 60 || len - n < 3);
            for steps in tried {
                let name = format!("{curve_name}, {kind}, {grid:?}, {steps} of {len}");
                let schedule = match Schedule::of(&kind, &curve, grid, steps) {
                    Ok(schedule) => schedule,
                    Err(error) => {
                        assert_eq!(error.kind(), ErrorKind::Usage, "{name}");
                        continue;
                    }
                };
                made += 1;
                falls_to_zero(&name, &schedule, steps);
                let list = schedule.steps();
                assert!(list[0].timestep <= (len - 1) as f64 && list[steps - 1].timestep >= 0.0, "{name}");
                assert!(list[0].from <= curve.sigma_max() * 1.01, "{name}");
                if grid != Grid::Fractional {
                    assert!(list.iter().all(|step| step.timestep.fract() == 0.0), "{name}");
                }
                is_inverse(&name, &schedule, grid);
            }
            // That many fit shows that they were tested.
            let fit = match kind {
                ScheduleKind::Ays(AysTable::Svd) if curve.sigma_max() < 600.0 => 0,
                ScheduleKind::Ays(_) | ScheduleKind::Gits if curve.sigma_max() < 14.0 => 0,
                ScheduleKind::Lcm { trained_steps } if trained_steps > len => 0,
                ScheduleKind::Lcm { trained_steps } => trained_steps,
                _ => 60.min(len) - 2,
            };
            assert!(made >= fit, "{curve_name}, {kind}, {grid:?}: {made} of {fit}");
        }
    }
}

/// Time and level are inverse at whole timesteps; where a schedule's own timestep was rounded, by less than half.
fn is_inverse(name: &str, schedule: &Schedule, grid: Grid) {
    let clock = schedule.clock();
    for timestep in [0.0, 1.0, 7.0, 20.0, 38.0] {
        let error = (clock.timestep(clock.sigma(timestep)) - timestep).abs();
        let allowed = if grid == Grid::Fractional { 1e-9 } else { 0.5 };
        assert!(error <= allowed, "{name}: timestep {timestep} is {error} off");
    }
}

#[test]
fn levels_between_those_of_a_schedule_have_times_between() {
    let curve = NoiseCurve::new(stable_diffusion(), 1000).unwrap();
    for grid in GRIDS {
        let schedule = Schedule::of(&"karras".parse().unwrap(), &curve, grid, 10).unwrap();
        for &Step { from, to, timestep, .. } in &schedule.steps()[..9] {
            let between = schedule.clock().timestep((from * to).sqrt());
            let next = schedule.clock().timestep(to);
            assert!(next < between && between < timestep, "{grid:?}: {timestep}, {between}, {next}");
        }
    }
}

#[test]
fn whole_grids_round_to_the_nearest() {
    let curve = NoiseCurve::new(stable_diffusion(), 1000).unwrap();
    for name in ["karras", "exponential", "beta", "kl-optimal", "sgm-uniform", "normal"] {
        let kind = name.parse().unwrap();
        let of = |grid| Schedule::of(&kind, &curve, grid, 37).unwrap();
        let [fractional, whole, above] = GRIDS.map(of);
        assert_eq!(from(&fractional), from(&whole), "{name}");
        assert_eq!(whole.steps(), above.steps(), "{name}");
        let rounded: Vec<f64> = timesteps(&fractional).into_iter().map(f64::round_ties_even).collect();
        assert_eq!(rounded, timesteps(&whole), "{name}");
    }
}

#[test]
fn steps_out_of_range_are_refused_and_the_range_named() {
    let (_, curve) = curves().swap_remove(0);
    let (_, short) = curves().swap_remove(5);
    for (kind, curve, steps, range) in [
        ("trailing", &curve, 0, "1 to 1000"),
        ("trailing", &curve, 1001, "1 to 1000"),
        ("karras", &curve, usize::MAX, "1 to 1000"),
        ("lcm", &curve, 51, "1 to 50"),
        ("lcm:trained-steps=40", &short, 41, "1 to 40"),
        ("lcm", &short, 4, "lcm: trained-steps: expected at most 40, got 50"),
        ("lcm:trained-steps=1000000", &curve, 4, "lcm: trained-steps: expected at most 1000, got 1000000"),
        ("lcm:trained-steps=0", &curve, 1, "1 to 0"),
        ("14,3,1", &curve, 2, "expected 3, as many as there are levels, got 2"),
        ("14,3,1,0", &curve, usize::MAX, "expected 3, as many as there are levels"),
        ("beta", &short, 0, "1 to 40"),
    ] {
        for grid in GRIDS {
            refuses(Schedule::of(&kind.parse().unwrap(), curve, grid, steps), range);
        }
    }
    for steps in [0, 1001, usize::MAX] {
        refuses(Schedule::flow(steps, &FlowShift::None, 1000), "1 to 1000");
        refuses(Schedule::edm(&ScheduleKind::Exponential, 0.002, 80.0, steps), "1 to 1000");
    }
    // In range, but the offset pushes the first timestep off the curve.
    let leading = ScheduleKind::Spaced(Spacing::Leading { offset: 1 });
    refuses(Schedule::of(&leading, &curve, Grid::Whole, 1000), "timesteps up to 999");
    let leading = ScheduleKind::Spaced(Spacing::Leading { offset: u32::MAX });
    refuses(Schedule::of(&leading, &curve, Grid::Fractional, 20), "timesteps up to 999");
    // One timestep more than there is room for between the first and the last.
    let linspace = ScheduleKind::Spaced(Spacing::Linspace);
    refuses(Schedule::of(&linspace, &curve, Grid::WholeAboveLast, 1000), "falling levels");
}

#[track_caller]
fn refuses(schedule: Result<Schedule, Error>, message: &str) {
    let error = schedule.expect_err(message);
    assert_eq!(error.kind(), ErrorKind::Usage);
    assert!(error.to_string().contains(message), "{error}, expected {message}");
}

#[test]
fn numbers_that_make_no_levels() {
    let (_, curve) = curves().swap_remove(0);
    let hostile = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 0.0, -7.0, 1e-300, 1e300];
    for number in hostile {
        let kinds = [
            (ScheduleKind::Karras { rho: number }, "rho: expected 0.1 to 100"),
            (ScheduleKind::Polyexponential { rho: number }, "rho: expected 0.1 to 100"),
            (ScheduleKind::Beta { alpha: number, beta: 0.6 }, "alpha: expected 0.1 to 50"),
            (ScheduleKind::Beta { alpha: 0.6, beta: number }, "beta: expected 0.1 to 50"),
            (ScheduleKind::Laplace { mu: 0.0, beta: number }, "beta: expected 0.01 to 10"),
        ];
        for (kind, message) in kinds {
            refuses(Schedule::of(&kind, &curve, Grid::Fractional, 10), message);
            refuses(Schedule::edm(&kind, 0.002, 80.0, 10), message);
        }
    }
    for mu in [f64::NAN, f64::INFINITY, 11.0] {
        let kind = ScheduleKind::Laplace { mu, beta: 0.5 };
        refuses(Schedule::of(&kind, &curve, Grid::Fractional, 10), "mu: expected -10 to 10");
    }
    // All levels are clamped to the ends of the curve.
    let kind = ScheduleKind::Laplace { mu: 10.0, beta: 0.01 };
    refuses(Schedule::of(&kind, &curve, Grid::Fractional, 10), "falling levels");
}

#[test]
fn listed_levels_that_make_no_schedule() {
    let (_, curve) = curves().swap_remove(0);
    let of = |levels: &[f64]| {
        let kind = ScheduleKind::Custom(levels.to_vec());
        Schedule::of(&kind, &curve, Grid::Fractional, kind.own_steps().unwrap())
    };
    for (levels, message) in [
        (&[][..], "levels: expected at least one above 0, got none"),
        (&[0.0], "levels: expected at least one above 0, got none"),
        (&[1.0, 0.0, 0.0], "levels: expected numbers above 0, got 0"),
        (&[f64::NAN], "levels: expected numbers above 0, got NaN"),
        (&[f64::INFINITY, 1.0], "levels: expected numbers above 0, got inf"),
        (&[3.0, -1.0], "levels: expected numbers above 0, got -1"),
        (&[3.0, 2.0, f64::NAN, 1.0], "levels: expected numbers above 0, got NaN"),
        (&[1.0, 2.0], "levels: expected one below 1, got 2"),
        (&[2.0, 2.0, 1.0], "levels: expected one below 2, got 2"),
        (&[15.0, 1.0], "expected levels up to 14.6146, the model's highest, got 15"),
    ] {
        refuses(of(levels), message);
    }
    let million: Vec<f64> = (1..=1_000_000).rev().map(|i| f64::from(i) * 1e-6).collect();
    refuses(of(&million), "steps: expected 1 to 1000, got 1000000");
}

#[test]
fn listed_levels_are_taken_as_they_are() {
    let (_, curve) = curves().swap_remove(0);
    let listed = |text: &str| {
        let kind: ScheduleKind = text.parse().unwrap();
        Schedule::of(&kind, &curve, Grid::Whole, kind.own_steps().unwrap()).unwrap()
    };
    let schedule = listed("14.615, 7, 3, 1, 0");
    assert_eq!(from(&schedule), [14.615, 7.0, 3.0, 1.0]);
    falls_to_zero("listed", &schedule, 4);
    assert_eq!(schedule, listed("14.615,7,3,1"));
    // Levels beyond the curve's have the time of its ends.
    assert_eq!(timesteps(&listed("14.7,0.001")), [999.0, 0.0]);
    // What one schedule shows can be typed as another.
    let karras = Schedule::of(&"karras".parse().unwrap(), &curve, Grid::Whole, 12).unwrap();
    let text = from(&karras).iter().map(f64::to_string).collect::<Vec<_>>().join(",");
    assert_eq!(listed(&text).steps(), karras.steps());
}

#[test]
fn hostile_lists_of_levels() {
    let endless = "1,".repeat(MAX_TIMESTEPS + 1);
    for (text, message) in [
        ("1,,2", "levels: expected numbers, got \"\""),
        ("1;2", "levels: expected numbers, got \"1;2\""),
        ("14.6,x", "levels: expected numbers, got \"x\""),
        ("-", "levels: expected numbers, got \"-\""),
        (&endless, "levels: expected at most 100000, got 100002"),
    ] {
        let error = text.parse::<ScheduleKind>().expect_err(message);
        assert_eq!(error.kind(), ErrorKind::Usage);
        assert!(error.to_string().ends_with(message), "{error}");
    }
}

#[test]
fn flow_shifts_that_leave_no_levels() {
    let dynamic = |mu, time_shift, terminal| FlowShift::Dynamic { mu, time_shift, terminal };
    for factor in [f64::NAN, f64::INFINITY, 0.0, -3.0, 1e9] {
        for shift in [FlowShift::Static(factor), dynamic(factor, TimeShift::Linear, None)] {
            refuses(Schedule::flow(4, &shift, 1000), "flow shift: factor: expected 0.01 to 100");
        }
    }
    for mu in [f64::NAN, 1e9, -1e9] {
        let shift = dynamic(mu, TimeShift::Exponential, None);
        refuses(Schedule::flow(4, &shift, 1000), "flow shift: factor: expected 0.01 to 100");
    }
    for terminal in [f64::NAN, 0.0, 1.0, -1.0, f64::INFINITY] {
        let shift = dynamic(0.5, TimeShift::Exponential, Some(terminal));
        refuses(Schedule::flow(4, &shift, 1000), "flow shift: terminal: expected a level between 0 and 1");
    }
}

#[test]
fn models_without_timesteps_take_no_timesteps() {
    for name in ["trailing", "linspace", "leading", "lcm", "simple", "normal", "sgm-uniform"] {
        let schedule = Schedule::edm(&name.parse().unwrap(), 0.002, 80.0, 4);
        refuses(schedule, &format!("this model has no timesteps, got {name}"));
    }
    refuses(Schedule::edm(&ScheduleKind::Ays(AysTable::Svd), 0.002, 80.0, 10), "got 700");
    for range in [[0.0, 80.0], [-1.0, 1.0], [2.0, 1.0], [1.0, f64::INFINITY], [f64::NAN, 1.0]] {
        let error = Schedule::edm(&ScheduleKind::Exponential, range[0], range[1], 4).expect_err("no range");
        assert_eq!(error.kind(), ErrorKind::Model, "{range:?}");
    }
}

#[test]
fn listed_levels_of_flow_matching_are_taken_as_they_are() {
    let schedule = Schedule::flow_listed(&[1.0, 0.8, 0.25, 0.0], 1000).unwrap();
    assert_eq!(from(&schedule), [1.0, 0.8, 0.25]);
    assert_eq!(timesteps(&schedule), [1000.0, 800.0, 250.0]);
    assert_eq!((schedule.initial_scale(), schedule.clock().timestep(0.5)), (1.0, 500.0));
    falls_to_zero("listed", &schedule, 3);
    assert_eq!(schedule, Schedule::flow_listed(&[1.0, 0.8, 0.25], 1000).unwrap());
    let unshifted = Schedule::flow(4, &FlowShift::None, 1000).unwrap();
    assert_eq!(Schedule::flow_listed(&from(&unshifted), 1000).unwrap(), unshifted);
    for (levels, message) in [
        (&[][..], "levels: expected at least one above 0, got none"),
        (&[1.5, 1.0], "levels: expected at most 1, which is noise alone, got 1.5"),
        (&[1.0, f64::NAN], "levels: expected numbers above 0, got NaN"),
        (&[0.5, 0.5], "levels: expected one below 0.5, got 0.5"),
    ] {
        refuses(Schedule::flow_listed(levels, 1000), message);
    }
    refuses(Schedule::flow_listed(&[1.0, 0.5], 1), "steps: expected 1 to 1, got 2");
    for none in [0, MAX_TIMESTEPS + 1, usize::MAX] {
        for schedule in [Schedule::flow_listed(&[1.0], none), Schedule::flow(1, &FlowShift::None, none)] {
            assert_eq!(schedule.expect_err("no timesteps").kind(), ErrorKind::Model, "{none}");
        }
    }
}

/// Arguments from a generator, often odd ones.
struct Odd {
    state: u64,
    curves: Vec<(&'static str, NoiseCurve)>,
    kinds: Vec<ScheduleKind>,
}

impl Odd {
    /// SplitMix64 (Steele, Lea & Flood 2014).
    fn bits(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.state ^ (self.state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    fn one_of<T: Clone>(&mut self, of: &[T]) -> T {
        of[self.bits() as usize % of.len()].clone()
    }

    fn number(&mut self) -> f64 {
        let unit = (self.bits() >> 11) as f64 / (1u64 << 53) as f64;
        match self.bits() % 8 {
            0 => self.one_of(&[0.0, -0.0, 1.0, -1.0, f64::NAN, f64::INFINITY, f64::NEG_INFINITY]),
            1 => self.one_of(&[f64::MAX, f64::MIN_POSITIVE, 5e-324, 1e300, 1e-300]),
            2 => f64::from_bits(self.bits()),
            3 => unit * 1000.0,
            _ => unit * 10.0,
        }
    }

    fn count(&mut self) -> usize {
        match self.bits() % 8 {
            0 => self.one_of(&[0, 1, 2, 999, 1000, 1001, MAX_TIMESTEPS, MAX_TIMESTEPS + 1, usize::MAX]),
            _ => (self.bits() % 30) as usize,
        }
    }

    fn kind(&mut self) -> ScheduleKind {
        let mut kind = match self.bits() % 9 {
            0 => ScheduleKind::Spaced(Spacing::Leading { offset: self.bits() as u32 }),
            1 => ScheduleKind::Lcm { trained_steps: self.count() },
            2 => ScheduleKind::Karras { rho: self.number() },
            3 => ScheduleKind::Polyexponential { rho: self.number() },
            4 => ScheduleKind::Beta { alpha: self.number(), beta: self.number() },
            5 => ScheduleKind::Laplace { mu: self.number(), beta: self.number() },
            6 => ScheduleKind::Custom(self.levels()),
            _ => {
                let at = self.bits() as usize % self.kinds.len();
                self.kinds[at].clone()
            }
        };
        while self.bits().is_multiple_of(4) {
            kind = ScheduleKind::ToSigmaMin(Box::new(kind));
        }
        kind
    }

    fn levels(&mut self) -> Vec<f64> {
        let mut levels: Vec<f64> = (0..self.bits() % 9).map(|_| self.number()).collect();
        if self.bits().is_multiple_of(2) {
            levels.sort_by(|a, b| b.total_cmp(a));
        }
        levels
    }

    fn betas(&mut self) -> Betas {
        let (start, end) = (self.number() / 1000.0, self.number() / 100.0);
        let betas = match self.bits() % 6 {
            0 => Betas::Linear { start, end },
            1 => Betas::Sigmoid { start, end },
            2 => Betas::SquaredCosCapV2,
            3 => Betas::Trained((0..self.count().min(50)).map(|_| self.number() as f32).collect()),
            4 => stable_diffusion(),
            _ => Betas::ScaledLinear { start, end },
        };
        if self.bits().is_multiple_of(4) { Betas::ZeroTerminalSnr(Box::new(betas)) } else { betas }
    }

    fn shift(&mut self) -> FlowShift {
        let time_shift = self.one_of(&[TimeShift::Exponential, TimeShift::Linear]);
        let terminal = Some(self.number()).filter(|_| self.bits().is_multiple_of(2));
        let ends = [self.number(), self.number()];
        let mu = FlowShift::mu(self.count(), [self.count(), self.count()], ends);
        let any = self.number();
        let mu = self.one_of(&[mu, any]);
        match self.bits() % 3 {
            0 => FlowShift::None,
            1 => FlowShift::Static(self.number()),
            _ => FlowShift::Dynamic { mu, time_shift, terminal },
        }
    }

    fn schedule(&mut self) -> Result<Schedule, Error> {
        let (kind, steps) = (self.kind(), self.count());
        let steps = if self.bits().is_multiple_of(2) { kind.own_steps().unwrap_or(steps) } else { steps };
        match self.bits() % 6 {
            0 => Schedule::flow(steps, &self.shift(), self.count()),
            1 => Schedule::flow_listed(&self.levels(), self.count()),
            2 => Schedule::edm(&kind, self.number(), self.number(), steps),
            3 => Schedule::edm(&kind, 0.002, 80.0, steps),
            4 => {
                let curve = NoiseCurve::new(self.betas(), self.count().min(2000))?;
                Schedule::of(&kind, &curve, self.one_of(&GRIDS), steps)
            }
            _ => {
                let at = self.bits() as usize % self.curves.len();
                let grid = self.one_of(&GRIDS);
                Schedule::of(&kind, &self.curves[at].1, grid, steps)
            }
        }
    }

    fn method(&mut self) -> Method {
        let mut method = Method::from(self.one_of(&SamplerKind::ALL));
        for _ in 0..self.bits() % 4 {
            let number = self.number();
            let setting = self.one_of(&[ETA, S_NOISE, S_CHURN, S_TMIN, S_TMAX, R]);
            method = method.with(&setting, number).unwrap_or(method);
            method = method.with(&ORDER, self.count()).unwrap_or(method);
            method = method.with(&LOWER_FINAL, self.bits().is_multiple_of(2)).unwrap_or(method);
            method = method.with(&SOLVER, self.one_of(&[Solver::Midpoint, Solver::Heun])).unwrap_or(method);
            method = method.with(&BH, self.one_of(&[Bh::Bh1, Bh::Bh2])).unwrap_or(method);
        }
        method
    }
}

/// A denoiser that answers anything.
struct Any;

impl Denoise for Any {
    fn denoise(&mut self, _: &[f32], sigma: f64, out: &mut [f32]) -> Result<(), Error> {
        out.iter_mut()
            .enumerate()
            .for_each(|(index, out)| *out = if index.is_multiple_of(2) { sigma as f32 } else { f32::NAN });
        Ok(())
    }
}

/// Whatever a schedule and a sampler are made of, they are refused, or they run; nothing panics. Schedules that are made
/// fall strictly.
#[test]
fn odd_arguments_are_refused_or_run() {
    let (mut odd, mut made) = (Odd { state: 15, curves: curves(), kinds: kinds() }, 0);
    for round in 0..30_000 {
        let Ok(schedule) = odd.schedule() else { continue };
        let count = odd.count();
        let schedule = schedule.clone().last(count).unwrap_or(schedule);
        made += 1;
        let steps = schedule.steps();
        assert!(
            !steps.is_empty() && steps.iter().all(|step| step.from > step.to && step.to >= 0.0),
            "{round}"
        );
        let (clock, number) = (schedule.clock(), odd.number());
        let times = [clock.timestep(number), clock.sigma(number), schedule.initial_scale()];
        assert!(times.len() == 3 && schedule.asked_steps() >= steps.len() && schedule.final_scale() > 0.0);

        let method = odd.method();
        assert_eq!(method.to_string().parse::<Method>().unwrap(), method, "{round}");
        let mut x = vec![odd.number() as f32; (odd.bits() % 3) as usize];
        let mut sampler = method.build(&schedule, x.len());
        for step in steps.iter().take(20) {
            sampler.step(&mut x, step, &mut Any, &mut TorchCpu::new(round)).unwrap();
        }
    }
    assert!(made > 4_000, "only {made} schedules were made");
}

#[test]
fn every_kind_reads_its_own_name() {
    for kind in kinds() {
        assert_eq!(kind.to_string().parse::<ScheduleKind>().unwrap(), kind);
    }
    for text in [
        "karras",
        "beta:alpha=0.5",
        "laplace:mu=-1,beta=2",
        "leading:offset=3",
        "lcm:trained-steps=100",
        "3,2.5",
    ] {
        assert_eq!(text.parse::<ScheduleKind>().unwrap().to_string(), text);
    }
}

#[test]
fn ends_are_set_by_name() {
    let read = |text: &str| text.parse::<ScheduleKind>().unwrap().to_string();
    assert_eq!(read("karras:final=sigma_min"), "karras:final=sigma_min");
    assert_eq!(read("karras:final=zero"), "karras");
    assert_eq!(read("karras:final=sigma_min,final=zero"), "karras");
}

/// One step of `linspace` takes the lowest timestep, as numpy's does.
#[test]
fn one_evenly_spaced_step_is_the_lowest() {
    let curve = NoiseCurve::new(stable_diffusion(), 1000).unwrap();
    let linspace = ScheduleKind::Spaced(Spacing::Linspace);
    let schedule = Schedule::of(&linspace, &curve, Grid::Whole, 1).unwrap();
    assert_eq!(timesteps(&schedule), [0.0]);
}

#[test]
fn names_are_read_as_people_write_them() {
    let named = |name: &str| name.parse::<ScheduleKind>().unwrap();
    for (typed, name) in [
        // A1111
        ("Karras", "karras"),
        ("Polyexponential", "polyexponential"),
        ("SGM Uniform", "sgm-uniform"),
        ("SGMUniform", "sgm-uniform"),
        ("KL Optimal", "kl-optimal"),
        ("Align Your Steps", "ays"),
        ("Align Your Steps GITS", "gits"),
        ("Uniform", "normal"),
        ("DDIM", "leading"),
        // ComfyUI
        ("ddim_uniform", "leading"),
        ("sgm_uniform", "sgm-uniform"),
        ("kl_optimal", "kl-optimal"),
        // diffusers
        ("use_karras_sigmas", "karras"),
        ("use_beta_sigmas", "beta"),
        // stable-diffusion.cpp
        ("discrete", "normal"),
        // with options
        (" KARRAS : RHO = 7 ", "karras"),
        ("beta:alpha=0.6,beta=0.6", "beta"),
        ("lcm:trained_steps=50", "lcm"),
    ] {
        assert_eq!(named(typed), named(name), "{typed}");
    }
    assert_eq!(named("karras:rho=5"), ScheduleKind::Karras { rho: 5.0 });
    assert_eq!(named("beta:beta=0.7"), ScheduleKind::Beta { alpha: 0.6, beta: 0.7 });
}

#[test]
fn unknown_names_list_all_and_suggest_the_nearest() {
    for (typo, nearest) in
        [("karas", "karras"), ("exponental", "exponential"), ("ays-sd", "ays-svd"), ("gist", "gits")]
    {
        let error = typo.parse::<ScheduleKind>().expect_err(typo);
        assert_eq!(error.kind(), ErrorKind::Usage);
        let text = error.to_string();
        assert!(text.ends_with(&format!("did you mean {nearest}?")), "{text}");
        assert!(ScheduleKind::names().all(|name| text.contains(name)), "{text}");
    }
    for hostile in [
        "",
        "++",
        "\0",
        ":",
        "NaN,1",
        "karras:rho",
        "karras:rho=",
        "karras:rho=x",
        "gits:x=1",
        &"k".repeat(1 << 20),
    ] {
        assert_eq!(hostile.parse::<ScheduleKind>().expect_err("no name").kind(), ErrorKind::Usage);
    }
    for (typed, message) in [
        ("karras:alpha=1", "option: expected rho or final, got \"alpha\""),
        ("beta:rho=1", "option: expected alpha or beta or final, got \"rho\""),
        ("gits:rho=1", "option: expected final, got \"rho\""),
        ("leading:offset=-1", "offset: expected a number, got \"-1\""),
    ] {
        let error = typed.parse::<ScheduleKind>().expect_err(typed).to_string();
        assert_eq!(error, format!("schedule: {message}"));
    }
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
        (NoiseCurve::new(Betas::Trained(vec![0.5, 0.1, 0.7]), 3), [0.5, 0.1, 0.7]),
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

/// Lin et al. 2024, algorithm 1: the first level stays, the last is noise alone, and roots of the signal between move by
/// one line.
#[test]
fn rescaled_curves_end_in_noise_alone() {
    for betas in [stable_diffusion(), Betas::Linear { start: 0.0001, end: 0.02 }, Betas::SquaredCosCapV2] {
        let plain = NoiseCurve::new(betas.clone(), 1000).unwrap();
        let rescaled = NoiseCurve::new(Betas::ZeroTerminalSnr(Box::new(betas.clone())), 1000).unwrap();
        assert!((rescaled.sigma_min() / plain.sigma_min() - 1.0).abs() < 1e-3, "{betas:?}");
        assert!(rescaled.sigma_max() >= 4095.9, "{betas:?}: {}", rescaled.sigma_max());
        let root = |curve: &NoiseCurve, t: f64| 1.0 / curve.sigma_of_timestep(t).hypot(1.0);
        let [first, last] = [root(&plain, 0.0), root(&plain, 999.0)];
        for t in [1.0, 100.0, 500.0, 900.0] {
            let expected = (root(&plain, t) - last) * first / (first - last);
            assert!((root(&rescaled, t) - expected).abs() < 1e-5, "{betas:?}, timestep {t}");
        }
    }
}

#[test]
fn sigma_and_timestep_are_inverse_at_whole_timesteps() {
    for (name, curve) in curves() {
        for t in 0..curve.len() {
            let sigma = curve.sigma_of_timestep(t as f64);
            assert!((curve.timestep_of_sigma(sigma) - t as f64).abs() < 1e-9, "{name}: timestep {t}");
        }
        // Halfway between two levels in the logarithm, where linear interpolation of sigma would be elsewhere.
        let between = (curve.sigma_of_timestep(0.0) * curve.sigma_of_timestep(1.0)).sqrt();
        assert!((curve.timestep_of_sigma(between) - 0.5).abs() < 1e-9, "{name}");
    }
}

#[test]
fn hostile_curves_are_model_errors() {
    let linear = |start, end| Betas::Linear { start, end };
    let zero = |betas| Betas::ZeroTerminalSnr(Box::new(betas));
    let nan = f64::NAN;
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
        ("nan beta", "beta[0]", NoiseCurve::new(linear(0.1, nan), 10)),
        ("infinite beta", "beta[", NoiseCurve::new(linear(0.1, f64::INFINITY), 10)),
        ("sigmoid of nan", "beta[0]", NoiseCurve::new(Betas::Sigmoid { start: nan, end: 0.1 }, 10)),
        ("sigmoid below 0", "beta[0]", NoiseCurve::new(Betas::Sigmoid { start: -0.1, end: 0.1 }, 10)),
        ("vanishing signal", "sigma[", NoiseCurve::from_betas(&[0.999; 100])),
        ("betas too small to change anything", "sigma[0]", NoiseCurve::from_betas(&[1e-30; 10])),
        ("listed nan", "beta[1]", NoiseCurve::from_betas(&[0.1, f32::NAN])),
        ("nothing listed", "got 0", NoiseCurve::from_betas(&[])),
        (
            "fewer listed than timesteps",
            "expected 1000 betas, as many as timesteps, got 3",
            NoiseCurve::new(Betas::Trained(vec![0.1; 3]), 1000),
        ),
        ("nothing listed for no timesteps", "got 0", NoiseCurve::new(Betas::Trained(vec![]), 0)),
        ("rescaled nan", "beta[0]", NoiseCurve::new(zero(linear(nan, 0.2)), 10)),
        ("rescaled without timesteps", "got 0", NoiseCurve::new(zero(linear(0.1, 0.2)), 0)),
        ("rescaled vanishing signal", "sigma[", NoiseCurve::new(zero(Betas::Trained(vec![0.999; 100])), 100)),
    ];
    for (name, place, curve) in hostile {
        let error = curve.expect_err(name);
        assert_eq!(error.kind(), ErrorKind::Model, "{name}");
        assert!(error.to_string().contains(place), "{name}: {error}");
    }
}

/// What manifests keep of them.
#[cfg(feature = "engine")]
mod manifest {
    use calotype::manifest::{Contents, Manifest};
    use calotype::noise_model::NoiseModel;
    use serde_json::{Value, json};

    use super::*;

    /// The built-in model's manifest, with changes.
    fn manifest(change: impl FnOnce(&mut Value)) -> Result<(Manifest, Contents), Error> {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/models/builtin/calotype.json");
        let mut json: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        change(&mut json);
        Manifest::parse("calotype.json", &serde_json::to_vec(&json).unwrap())
    }

    #[test]
    fn manifests_keep_curves_and_schedules() {
        let betas: Vec<f32> = (0..1000).map(|t| 0.001 + t as f32 * 1e-5).collect();
        let set = |curve: Value, schedule: Value| {
            move |json: &mut Value| {
                json["curve"] = curve;
                json["defaults"]["schedule"] = schedule;
            }
        };
        let curve = |betas: &str| {
            json!({"betas": betas, "start": 0.0001, "end": 0.02, "train_timesteps": 1000, "spacing": "trailing",
               "steps_offset": 0})
        };
        let with = |mut curve: Value, name: &str, value: Value| {
            curve[name] = value;
            curve
        };
        let sigmoid = Betas::Sigmoid { start: 0.0001, end: 0.02 };
        let zero = Betas::ZeroTerminalSnr(Box::new(Betas::Linear { start: 0.0001, end: 0.02 }));
        for (curve, expected) in [
            (curve("sigmoid"), sigmoid),
            (with(curve("linear"), "zero_terminal_snr", true.into()), zero),
            (with(curve("trained"), "trained", json!(betas)), Betas::Trained(betas.clone())),
        ] {
            let (manifest, contents) = manifest(set(curve, "beta:alpha=0.5".into())).unwrap();
            assert_eq!(manifest.noise, NoiseModel::discrete(expected, 1000, Spacing::Trailing).unwrap());
            assert_eq!(manifest.defaults.schedule, Some(ScheduleKind::Beta { alpha: 0.5, beta: 0.6 }));
            let (again, _) = Manifest::parse("again", &manifest.to_json(&contents)).unwrap();
            assert_eq!(again.noise, manifest.noise);
            assert_eq!(again.defaults.schedule, manifest.defaults.schedule);
        }
        // Manifests of before say nothing of these, and such as need none of them still do not.
        let (plain, contents) = manifest(|json| {
            json["defaults"].as_object_mut().unwrap().remove("schedule");
        })
        .unwrap();
        assert_eq!(plain.defaults.schedule, None);
        let written = String::from_utf8(plain.to_json(&contents)).unwrap();
        assert!(
            !["trained\"", "zero_terminal_snr", "\"schedule\""].iter().any(|field| written.contains(field))
        );

        for (curve, schedule, message) in [
            (
                curve("trained"),
                Value::Null,
                "curve: noise curve: expected 1000 betas, as many as timesteps, got 0",
            ),
            (curve("linear"), "karas".into(), "defaults.schedule: schedule: expected one of"),
            (curve("linear"), "karras:rho=0".into(), "defaults.steps: schedule: karras:rho=0: rho: expected"),
        ] {
            let error = manifest(set(curve, schedule)).expect_err(message);
            assert_eq!(error.kind(), ErrorKind::Model);
            assert!(error.to_string().contains(message), "{error}");
        }
    }
}
