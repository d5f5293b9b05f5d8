//! Guidance, predictions and thresholding against diffusers and against the papers' equations (`golden/guidance.json`,
//! made by `export/golden_guidance.py`).

use std::collections::BTreeMap;

use calotype::guidance::{
    Guidance, Guide, Interval, Measure, Method, Mimic, Moment, Origin, Residue, View, embedding,
};
use calotype::prediction::{Prediction, Thresholder, Thresholding};
use calotype::schedule::{Betas, Grid, NoiseCurve, Schedule, ScheduleKind, Spacing};
use calotype::tensor::LatentShape;
use serde::Deserialize;

/// The golden numbers were computed in double precision but for diffusers' Euler scheduler, which rounds to single;
/// rounding clean latents to single leaves 3e-8, and what is kept from step to step is rounded, too.
const TOLERANCE: f64 = 2e-7;

const SHAPE: LatentShape = LatentShape { channels: 4, height_cells: 5, width_cells: 5 };
/// How far every step's inputs are rolled.
const ROLL: usize = 7;

#[derive(Deserialize)]
struct Golden {
    inputs: BTreeMap<String, Vec<f32>>,
    input_scales: Vec<InputScale>,
    intervals: Vec<IntervalCase>,
    thresholds: Vec<ThresholdCase>,
    embeddings: Vec<EmbeddingCase>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct InputScale {
    prediction: String,
    sigma: f64,
    scale: f64,
}

#[derive(Deserialize)]
struct IntervalCase {
    steps: usize,
    start: f64,
    stop: f64,
    guided: Vec<bool>,
}

#[derive(Deserialize)]
struct ThresholdCase {
    range: Option<f64>,
    ratio: Option<f64>,
    max: Option<f64>,
    denoised: Vec<f32>,
}

#[derive(Deserialize)]
struct EmbeddingCase {
    scale: f64,
    embedding: Vec<f64>,
}

#[derive(Deserialize)]
struct Case {
    source: String,
    method: MethodCase,
    scale: f64,
    weights: Vec<f64>,
    prediction: String,
    steps: Vec<StepCase>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
enum MethodCase {
    Cfg { rescale: f64 },
    Edit { image_scale: f64 },
    Perpendicular { negative_scale: f64, rescale: f64 },
    Projected { eta: f64, momentum: f64, norm_threshold: Option<f64> },
    ZeroStar { zero_steps: usize, rescale: f64 },
    DynamicThreshold(MimicCase),
    Residual { residue: ResidueCase, delta: f64 },
}

#[derive(Clone, Copy, Debug, Deserialize)]
struct MimicCase {
    scale: f64,
    percentile: f64,
    share: f64,
    per_channel: bool,
    origin: OriginCase,
    measure: MeasureCase,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
enum ResidueCase {
    Source,
    FirstNegative,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
enum OriginCase {
    Mean,
    Zero,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
enum MeasureCase {
    Largest,
    Deviation,
}

#[derive(Deserialize)]
struct StepCase {
    sigma: f64,
    denoised: Vec<f32>,
}

impl Case {
    fn guide(&self, source: &[f32]) -> Guide {
        let method = match self.method {
            MethodCase::Cfg { rescale } => Method::Cfg { rescale },
            MethodCase::Edit { image_scale } => Method::Edit { image_scale },
            MethodCase::Perpendicular { negative_scale, rescale } => {
                Method::Perpendicular { negative_scale, rescale }
            }
            MethodCase::Projected { eta, momentum, norm_threshold } => {
                Method::Projected { eta, momentum, norm_threshold }
            }
            MethodCase::ZeroStar { zero_steps, rescale } => Method::ZeroStar { zero_steps, rescale },
            MethodCase::DynamicThreshold(mimic) => Method::DynamicThreshold(Mimic {
                scale: mimic.scale,
                percentile: mimic.percentile,
                share: mimic.share,
                per_channel: mimic.per_channel,
                origin: match mimic.origin {
                    OriginCase::Mean => Origin::Mean,
                    OriginCase::Zero => Origin::Zero,
                },
                measure: match mimic.measure {
                    MeasureCase::Largest => Measure::Largest,
                    MeasureCase::Deviation => Measure::Deviation,
                },
            }),
            MethodCase::Residual { residue, delta } => {
                let residue = match residue {
                    ResidueCase::Source => Residue::Source,
                    ResidueCase::FirstNegative => Residue::FirstNegative,
                };
                Method::Residual { residue, delta }
            }
        };
        let guidance = Guidance::by(method, self.scale).unwrap().with_prompts(self.weights.clone()).unwrap();
        let mut guide = Guide::new(guidance, prediction(&self.prediction), SHAPE);
        guide.remember(source);
        guide
    }

    fn name(&self) -> String {
        let Self { source, method, scale, weights, prediction, .. } = self;
        format!("{source}: {method:?}, scale {scale}, weights {weights:?}, {prediction}")
    }
}

fn golden() -> Golden {
    serde_json::from_str(include_str!("golden/guidance.json")).unwrap()
}

fn prediction(name: &str) -> Prediction {
    match name {
        "epsilon" => Prediction::Epsilon,
        "v" => Prediction::V,
        "sample" => Prediction::Sample,
        "flow" => Prediction::Flow,
        "edm" => Prediction::Edm { sigma_data: 0.5 },
        "edm_v" => Prediction::EdmV { sigma_data: 0.5 },
        other => panic!("prediction {other}"),
    }
}

fn input(golden: &Golden, name: &str, step: usize) -> Vec<f32> {
    let mut values = golden.inputs[name].clone();
    values.rotate_right(ROLL * step);
    values
}

fn output(golden: &Golden, view: View, step: usize) -> Vec<f32> {
    let name = match view {
        View::NegativeWithoutImage => "negative_without_picture".into(),
        View::Negative => "negative".into(),
        View::Empty => "empty".into(),
        View::Positive(index) => format!("positive_{index}"),
    };
    input(golden, &name, step)
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
fn guided_clean_latents_are_those_of_the_references() {
    let golden = golden();
    let mut worst = 0.0f64;
    for case in &golden.cases {
        let name = case.name();
        let mut guide = case.guide(&golden.inputs["source"]);
        for (step, expected) in case.steps.iter().enumerate() {
            let at = Moment { step, sigma: expected.sigma };
            let views = guide.needs(at).to_vec();
            let outputs: Vec<Vec<f32>> = views.iter().map(|&view| output(&golden, view, step)).collect();
            let x = input(&golden, "x", step);
            let mut denoised = vec![f32::NAN; SHAPE.len()];
            guide.combine(at, &x, &outputs.concat(), &mut denoised, None);
            let error = relative_l2(&denoised, &expected.denoised);
            assert!(error < TOLERANCE, "{name}, step {step}: {error}");
            worst = worst.max(error);

            // The comparison can fail.
            let zeros = vec![0.0; SHAPE.len()];
            assert!(
                relative_l2(&zeros, &expected.denoised) > 100.0 * TOLERANCE,
                "{name}, step {step}: zeros"
            );
            if step == 0 && views.len() > 1 {
                let swapped: Vec<f32> = outputs.iter().rev().flatten().copied().collect();
                case.guide(&golden.inputs["source"]).combine(at, &x, &swapped, &mut denoised, None);
                let error = relative_l2(&denoised, &expected.denoised);
                assert!(error > 100.0 * TOLERANCE, "{name}: swapped predictions pass, {error}");
            }
        }
    }
    assert!(golden.cases.len() > 40 && worst > 0.0, "{} cases, worst {worst}", golden.cases.len());
}

#[test]
fn model_inputs_are_scaled_as_diffusers_scales_them() {
    for InputScale { prediction: name, sigma, scale } in golden().input_scales {
        let ours = prediction(&name).input_scale(sigma);
        // Single precision in the Euler scheduler.
        assert!((ours - scale).abs() < 1e-7 * scale, "{name}, {sigma}: {ours}, {scale}");
    }
}

#[test]
fn intervals_hold_the_steps_that_diffusers_guides() {
    let curve = NoiseCurve::new(Betas::ScaledLinear { start: 0.00085, end: 0.012 }, 1000).unwrap();
    for IntervalCase { steps, start, stop, guided } in golden().intervals {
        assert!(guided.contains(&true) && guided.contains(&false));
        let kind = ScheduleKind::Spaced(Spacing::Trailing);
        let schedule = Schedule::of(&kind, &curve, Grid::Fractional, steps).unwrap();
        let interval = Interval::of_steps(start, stop, &schedule).unwrap();
        let guidance = Guidance::new(7.5).unwrap().within(interval);
        let guide = Guide::new(guidance, Prediction::Epsilon, SHAPE);
        let ours: Vec<bool> = schedule
            .steps()
            .iter()
            .map(|step| guide.needs(Moment { step: step.index, sigma: step.from }).contains(&View::Negative))
            .collect();
        assert_eq!(ours, guided, "{steps} steps, {start} to {stop}");
    }
}

#[test]
fn thresholding_is_that_of_diffusers() {
    let golden = golden();
    for ThresholdCase { range, ratio, max, denoised } in &golden.thresholds {
        let thresholding = match (range, ratio, max) {
            (Some(range), None, None) => Thresholding::fixed(*range),
            (None, Some(ratio), Some(max)) => Thresholding::dynamic(*ratio, *max),
            other => panic!("{other:?}"),
        };
        let thresholding = thresholding.unwrap();
        let mut ours = golden.inputs["x"].clone();
        Thresholder::new(thresholding, ours.len()).apply(&mut ours);
        assert!(relative_l2(&ours, denoised) < TOLERANCE, "{thresholding:?}");
        assert!(relative_l2(&golden.inputs["x"], denoised) > 0.01, "{thresholding:?} does nothing");
    }
}

#[test]
fn guidance_is_embedded_as_in_diffusers() {
    for EmbeddingCase { scale, embedding: expected } in golden().embeddings {
        let ours = embedding(scale, expected.len());
        for (k, (ours, expected)) in ours.iter().zip(&expected).enumerate() {
            // diffusers rounds the logarithm to single precision: 6e-8 of an angle of up to 7500.
            assert!((ours - expected).abs() < 1e-4, "{scale}, {k}: {ours}, {expected}");
        }
        assert!(scale == 1.0 || embedding(scale + 0.01, expected.len())[0] != ours[0]);
    }
}
