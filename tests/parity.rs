//! The built-in model against diffusers' pipeline (`golden/pipeline.*`, made by `export/golden_pipeline.py`): the same
//! weights, prompt, seed and settings give the same latents and the same images.

#![cfg(feature = "builtin")]

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;

use calotype::model::Model;
use calotype::pipeline::{Options, Pipeline};
use calotype::prompt::Text;
use calotype::recipe::Recipe;
use calotype::request::Request;
use calotype::sampler::Sampling;
use calotype::weights::Weights;
use image::RgbImage;
use serde::Deserialize;

/// Two ways to round in single precision, over ten steps of two libraries, leave a few 1e-6.
const LATENTS_TOLERANCE: f64 = 1e-4;
/// In levels of 255, the mean over an image: rounding to bytes moves a few values by one level.
const IMAGE_TOLERANCE: f64 = 0.5;

#[derive(Deserialize)]
struct Golden {
    /// SHA-256 per file that the references were made from.
    model: BTreeMap<String, String>,
    seed: u64,
    steps: usize,
    /// A row of all samplers and guidance scales per prompt.
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    prompt: String,
    sampler: String,
    guidance: f64,
}

impl Golden {
    /// The golden cases, if they are of the model that this build carries.
    fn open() -> (Self, Pipeline) {
        let golden: Self = serde_json::from_str(include_str!("golden/pipeline.json")).unwrap();
        assert_eq!(golden.cases.len(), 5 * 4 * 2);
        let bundle = Model::built_in().unwrap();
        for (file, sha256) in &golden.model {
            assert_eq!(
                bundle.contents().unwrap().files.get(file).map(|record| &record.sha256),
                Some(sha256),
                "{file}: models/builtin is not the model that tests/golden/pipeline.* was made from; make both anew: \
                 python export/bundle.py WORK models/builtin DIFFUSERS && \
                 python export/golden_pipeline.py DIFFUSERS models/builtin tests/golden"
            );
        }
        (golden, Pipeline::open(&bundle, &Options::default()).unwrap())
    }

    fn request(&self, case: &Case, pipeline: &Pipeline) -> Request {
        let sampling: Sampling = case.sampler.parse().unwrap();
        let draft = Recipe {
            prompt: Self::read_by_diffusers(&case.prompt).to_owned(),
            steps: Some(self.steps),
            guidance: Some(case.guidance.into()),
            sampler: Some(sampling.method),
            schedule: sampling.schedule,
            seed: Some(self.seed),
            ..Recipe::default()
        };
        pipeline.request(draft).unwrap()
    }

    /// What fits a single chunk: diffusers has no second one.
    fn read_by_diffusers(prompt: &str) -> &str {
        let model = Model::built_in().unwrap();
        let encoder = &model.text_encoders()[0];
        let tokenizer = encoder.tokenizer(encoder.context()).unwrap();
        let cut = tokenizer.encode(&Text::literal(prompt).unwrap(), 1).unwrap().cut;
        &prompt[..cut.map_or(prompt.len(), |cut| cut.place_bytes)]
    }

    /// A case that differs from this one in nothing but its prompt.
    fn with_another_prompt(&self, index: usize) -> usize {
        let (case, others) = (&self.cases[index], self.cases.len());
        let found = (1..others).map(|k| (index + k) % others).find(|k| {
            let other = &self.cases[*k];
            other.sampler == case.sampler && other.guidance == case.guidance
        });
        found.expect("each setting has all prompts")
    }

    /// A case that differs from this one in nothing but its guidance.
    fn with_another_guidance(&self, index: usize) -> usize {
        let case = &self.cases[index];
        let found = self.cases.iter().position(|other| {
            other.sampler == case.sampler && other.prompt == case.prompt && other.guidance != case.guidance
        });
        found.expect("each prompt has all settings")
    }
}

impl Case {
    fn name(&self) -> String {
        format!("{:?}, {}, guidance {}", self.prompt, self.sampler, self.guidance)
    }
}

#[test]
fn latents_are_those_of_diffusers() {
    let (golden, mut pipeline) = Golden::open();
    let expected = latents(golden.cases.len());
    for (index, case) in golden.cases.iter().enumerate() {
        let request = golden.request(case, &pipeline);
        let actual = pipeline.denoise(&request, |_| ControlFlow::Continue(())).unwrap();
        let error = relative_l2(&actual, &expected[index]);
        assert!(error <= LATENTS_TOLERANCE, "{}: relative L2 {error:.1e}", case.name());

        let zeros = vec![0.0; actual.len()];
        let flipped: Vec<f32> = actual.iter().map(|value| -value).collect();
        for (wrong, what) in [
            (&zeros, "zeros"),
            (&flipped, "flipped signs"),
            (&expected[golden.with_another_prompt(index)], "another prompt's latents"),
            (&expected[golden.with_another_guidance(index)], "latents of another guidance"),
        ] {
            let error = relative_l2(wrong, &expected[index]);
            assert!(error > 10.0 * LATENTS_TOLERANCE, "{}: {what} would pass: {error:.1e}", case.name());
        }
    }
}

#[test]
fn images_are_those_of_diffusers() {
    let (golden, mut pipeline) = Golden::open();
    let expected = images(golden.cases.len());
    for (index, case) in golden.cases.iter().enumerate() {
        let request = golden.request(case, &pipeline);
        let actual = pipeline.generate(&request, |_| ControlFlow::Continue(())).unwrap().image;
        let error = mean_difference(&actual, &expected[index]);
        assert!(error <= IMAGE_TOLERANCE, "{}: mean difference {error:.3}", case.name());

        let mut negative = actual.clone();
        image::imageops::invert(&mut negative);
        for (wrong, what) in [
            (&RgbImage::new(actual.width(), actual.height()), "black"),
            (&negative, "the negative"),
            (&expected[golden.with_another_prompt(index)], "another prompt's image"),
            (&expected[golden.with_another_guidance(index)], "an image of another guidance"),
        ] {
            let error = mean_difference(wrong, &expected[index]);
            assert!(error > 2.0 * IMAGE_TOLERANCE, "{}: {what} would pass: {error:.3}", case.name());
        }
    }
}

/// The latents of every case.
fn latents(cases: usize) -> Vec<Vec<f32>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/pipeline.safetensors");
    let weights = Weights::open(&[path]).unwrap();
    let bytes = weights.get("latents").unwrap().to_bytes();
    let values: Vec<f32> = bytes.as_chunks().0.iter().map(|value| f32::from_le_bytes(*value)).collect();
    values.chunks_exact(values.len() / cases).map(<[f32]>::to_vec).collect()
}

/// The image of every case, cut from the sheet: eight in a row.
fn images(cases: usize) -> Vec<RgbImage> {
    const COLUMNS: u32 = 8;
    let sheet = image::load_from_memory(include_bytes!("golden/pipeline.png")).unwrap().into_rgb8();
    let (width, height) = (sheet.width() / COLUMNS, sheet.height() / (cases as u32 / COLUMNS));
    let cut = |k| image::imageops::crop_imm(&sheet, k % COLUMNS * width, k / COLUMNS * height, width, height);
    (0..cases as u32).map(|k| cut(k).to_image()).collect()
}

/// The length of the difference over the length of the expected vector.
fn relative_l2(actual: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(actual.len(), expected.len());
    let squares =
        |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>().sqrt();
    let difference = actual.iter().zip(expected).map(|(a, e)| f64::from(*a) - f64::from(*e));
    squares(&mut { difference }) / squares(&mut expected.iter().map(|e| f64::from(*e)))
}

/// The mean absolute difference of two images, in levels of 255.
fn mean_difference(actual: &RgbImage, expected: &RgbImage) -> f64 {
    assert_eq!(actual.dimensions(), expected.dimensions());
    let sum: u64 = actual.iter().zip(expected.iter()).map(|(a, e)| u64::from(a.abs_diff(*e))).sum();
    sum as f64 / actual.len() as f64
}
