//! Models of flow matching and of EDM: every sampler that works on their noise is reached from the model, and the others are
//! refused.

use std::ops::ControlFlow;

use calotype::ErrorKind;
use calotype::model::Model;
use calotype::pipeline::Pipeline;
use calotype::prediction::Prediction;
use calotype::recipe::Recipe;
use calotype::sampler::SamplerKind;

use super::golden::{Golden, Precision, scratch};
use super::{distance, options};

#[test]
fn every_sampler_runs_or_is_refused() {
    for family in ["sd15-flow16", "playground"] {
        let (golden, scratch) = (Golden::open(family), scratch());
        golden.write_folder(scratch.path(), Precision::F32, false, 1);
        let mut pipeline = Pipeline::open(&Model::open(scratch.path()).unwrap(), &options()).unwrap();
        let recipe = Recipe {
            prompt: "a red apple".into(),
            size: Some("64x64".parse().unwrap()),
            steps: Some(3),
            seed: Some(1),
            ..Recipe::default()
        };
        let (mut ran, mut refused, mut drawn) = (0, 0, Vec::<Vec<f32>>::new());
        for kind in SamplerKind::ALL {
            let about = kind.about();
            let works = if family == "playground" { kind.own_schedule().is_none() } else { about.is_slope };
            let recipe = Recipe { sampler: Some(kind.into()), ..recipe.clone() };
            let request = match pipeline.request(recipe) {
                Ok(request) => request,
                Err(error) => {
                    assert_eq!(
                        (works, error.kind()),
                        (false, ErrorKind::Usage),
                        "{family}, {}: {error}",
                        about.name
                    );
                    refused += 1;
                    continue;
                }
            };
            assert!(works, "{family}, {}: expected to be refused", about.name);
            let latents = pipeline.denoise(&request, |_| ControlFlow::Continue(())).unwrap();
            assert!(latents.iter().all(|x| x.is_finite()), "{family}, {}", about.name);
            ran += 1;
            drawn.push(latents);
        }
        assert!(ran > 4 && refused > 0, "{family}: {ran} ran, {refused} were refused");
        // They are methods of their own, not the model's default by other names.
        let first = &drawn[0];
        let others = drawn.iter().filter(|latents| distance(latents, first) > 1e-6).count();
        assert!(others + 2 >= ran, "{family}: {others} of {ran} differ from the first");
    }
}

/// What a user says of the prediction is taken as the model's noise has it.
#[test]
fn predictions_go_with_the_noise() {
    let open = |family: &str| {
        let (golden, scratch) = (Golden::open(family), scratch());
        golden.write_folder(scratch.path(), Precision::F32, false, 1);
        (Model::open(scratch.path()).unwrap(), scratch)
    };
    let (mut model, _desk) = open("playground");
    let sigma_data = 0.5;
    assert_eq!(model.manifest().prediction, Prediction::Edm { sigma_data });
    for (said, meant) in [
        (Prediction::V, Prediction::EdmV { sigma_data }),
        (Prediction::Epsilon, Prediction::Edm { sigma_data }),
    ] {
        model.predict(said).unwrap();
        assert_eq!(model.manifest().prediction, meant);
    }
    let error = model.predict(Prediction::Sample).expect_err("not of EDM");
    assert_eq!(error.kind(), ErrorKind::Usage);
    assert_eq!(
        error.to_string(),
        "prediction: expected one that goes with a range of levels (edm, edm_v or v), got Sample"
    );
    let (mut model, _desk) = open("sd15-flow16");
    assert_eq!((model.manifest().prediction, model.manifest().latents.channels), (Prediction::Flow, 16));
    assert_eq!(model.predict(Prediction::V).expect_err("a flow").kind(), ErrorKind::Usage);
}
