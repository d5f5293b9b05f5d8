//! What text encoders make of weighted and long prompts, against AUTOMATIC1111's web UI (`tests/golden/prompts.*`,
//! written by `export/golden_prompts.py`). The built-in model is compared in `tests/prompt.rs`.

use std::path::Path;

use calotype::prompt::Prompt;
use calotype::weights::Weights;

use super::*;

/// Relative L2 distance: two libraries' ways to round in single precision stay below.
const STATES_TOLERANCE: f64 = 1e-5;
const CONTEXT: usize = 77;

#[test]
fn sd15() {
    states_are_those_of_the_web_ui("sd15");
}

/// Its padding is not its end of text.
#[test]
fn sd21() {
    states_are_those_of_the_web_ui("sd21");
}

/// Each of the two encoders' states is weighed by itself, and the vector is that of the first chunk.
#[test]
fn sdxl() {
    states_are_those_of_the_web_ui("sdxl");
}

/// A prompt and a negative prompt of different lengths are seen in calls of their own, with the same result as a
/// guidance of the two predictions would have.
#[test]
fn lengths_may_differ() {
    let (golden, scratch) = (Golden::open("sd15"), scratch());
    golden.write_folder(scratch.path(), Precision::F32, false, 1);
    let mut pipeline = Pipeline::open(&Model::open(scratch.path()).unwrap(), &options()).unwrap();
    let long = "a red apple, ".repeat(30);
    let mut draw = |prompt: &str, negative: Option<&str>, guidance: f64| {
        let draft = Recipe {
            prompt: prompt.into(),
            negative: negative.map(Into::into),
            guidance: Some(guidance.into()),
            size: Some("64x64".parse().unwrap()),
            steps: Some(1),
            sampler: Some("euler".parse().unwrap()),
            // Leading timesteps would begin with the least noise.
            schedule: Some("trailing".parse().unwrap()),
            seed: Some(1),
            ..Recipe::default()
        };
        let request = pipeline.request(draft).unwrap();
        pipeline.denoise(&request, |_| ControlFlow::Continue(())).unwrap()
    };
    // One step of Euler's method is linear in the guided prediction.
    let (positive, negative) = (draw(&long, None, 1.0), draw("blurry", None, 1.0));
    let expected = positive.iter().zip(&negative).map(|(p, n)| n + 3.0 * (p - n)).collect::<Vec<_>>();
    close("guided", &draw(&long, Some("blurry"), 3.0), &expected, Precision::F32);
    let expected = positive.iter().zip(&negative).map(|(p, n)| p + 3.0 * (n - p)).collect::<Vec<_>>();
    close("guided", &draw("blurry", Some(&long), 3.0), &expected, Precision::F32);
}

#[track_caller]
fn states_are_those_of_the_web_ui(family: &str) {
    let (golden, scratch) = (Golden::open(family), scratch());
    golden.write_folder(scratch.path(), Precision::F32, false, 1);
    let mut pipeline = Pipeline::open(&Model::open(scratch.path()).unwrap(), &options()).unwrap();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let golden: Value = serde_json::from_slice(&std::fs::read(folder.join("prompts.json")).unwrap()).unwrap();
    let arrays = Weights::open(&[folder.join("prompts.safetensors")]).unwrap();
    let array = |name: &Value| -> Vec<f32> {
        let bytes = arrays.get(name.as_str().unwrap()).unwrap().to_bytes();
        bytes.as_chunks().0.iter().map(|value| f32::from_le_bytes(*value)).collect()
    };
    let rows: Vec<usize> = serde_json::from_value(golden["rows"][CONTEXT.to_string()].clone()).unwrap();
    let cases = golden["states"][family].as_array().unwrap();
    assert!(cases.iter().any(|case| case["chunks"].as_u64() > Some(2)), "{family}");
    for case in cases {
        let prompt = case["prompt"].as_str().unwrap();
        let text = Prompt::parse(prompt).unwrap().parts(1).unwrap().remove(0).texts.remove(0);
        let encoded = pipeline.encode(&text).unwrap();
        let chunks = case["chunks"].as_u64().unwrap() as usize;
        assert_eq!((encoded.tokens, encoded.cut), (chunks * CONTEXT, None), "{family}: {prompt}");
        let width = encoded.states.len() / encoded.tokens;
        let kept = (0..chunks).flat_map(|chunk| rows.iter().map(move |row| chunk * CONTEXT + row));
        let kept = |states: &[f32]| -> Vec<f32> {
            kept.clone().flat_map(|row| states[row * width..][..width].to_vec()).collect()
        };
        let (got, expected) = (kept(&encoded.states), array(&case["states"]));
        let error = distance(&got, &expected);
        assert!(error <= STATES_TOLERANCE, "{family}: {prompt}: relative error {error:.1e}");
        let mut shifted = encoded.states.clone();
        shifted.rotate_right(width);
        for (wrong, what) in [(vec![0.0; got.len()], "zeros"), (kept(&shifted), "a token's shift")] {
            assert!(distance(&wrong, &expected) > 100.0 * STATES_TOLERANCE, "{prompt}: {what} would pass");
        }
        if prompt.contains(['(', '[']) {
            let error = distance(&array(&case["plain"]), &expected);
            assert!(error > 100.0 * STATES_TOLERANCE, "{prompt}: without weights it would pass");
        }
        assert_eq!(encoded.pooled.is_some(), !case["pooled"].is_null(), "{family}");
        if let Some(pooled) = encoded.pooled {
            let error = distance(&pooled, &array(&case["pooled"]));
            assert!(error <= STATES_TOLERANCE, "{family}: {prompt}: the vector's relative error {error:.1e}");
        }
    }
}
