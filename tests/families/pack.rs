//! Models of every form and family, packed: the bundle computes what its source computes.

use std::ops::ControlFlow;

use calotype::ErrorKind;
use calotype::model::Model;
use calotype::pack::{self, Precision};
use calotype::pipeline::Pipeline;

use super::golden::{self, Golden, Picture, scratch};
use super::{distance, onnx, options, request};

/// Relative errors of ready-made graphs whose matrices were turned: the same sums, in another order where the CPU
/// wants it so, in 32 bits and in 16.
const TURNED: f64 = 1e-5;
const TURNED_HALVES: f64 = 5e-3;
/// At 8 bits, of random weights, which amplify every error.
const INT8: f64 = 0.05;

macro_rules! packed {
    ($check:ident: $($test:ident => $what:literal, [$($precision:expr => $tolerance:expr),*];)*) => {$(
        #[test]
        fn $test() {
            $check($what, &[$(($precision, $tolerance)),*]);
        }
    )*};
}

packed! { folder:
    sd15 => "sd15", [None => 0.0, Some(Precision::F32) => 0.0, Some(Precision::Int8) => INT8];
    noise_of_levels => "playground", [None => 0.0, Some(Precision::F16) => 0.0];
    noise_of_flow => "sd15-flow16", [None => 0.0];
    tiny_autoencoder => "sd15-taesd", [None => 0.0];
    lcm => "lcm", [None => 0.0];
    inpaint => "inpaint", [None => 0.0];
    x4_upscaler => "x4-upscaler", [None => 0.0];
    sdxl => "sdxl", [None => 0.0, Some(Precision::F16) => 0.0];
    sdxl_refiner => "sdxl-refiner", [None => 0.0];
}

packed! { single_file:
    sd21_file => "sd21", [None => 0.0];
    sdxl_file => "sdxl", [None => 0.0];
}

packed! { onnx_folder:
    optimum => "optimum", [None => TURNED, Some(Precision::Int8) => INT8];
    optimum_xl => "optimum-xl", [None => TURNED];
    diffusers_script => "diffusers-script", [None => TURNED];
    static_2 => "static-2", [None => TURNED];
    olive_xl => "olive-xl", [None => TURNED_HALVES];
    web => "web", [None => TURNED_HALVES, Some(Precision::F32) => TURNED_HALVES];
}

/// There is nothing to quantise in a graph that computes in 16-bit floats.
#[test]
fn halves_are_not_quantised() {
    let (_, source) = onnx::open("web");
    let model = Model::open(source.path()).unwrap();
    let scratch = scratch();
    let error =
        pack::pack(&model, &scratch.path().join("bundle"), &pack_options(Some(Precision::Int8)), |_| ());
    let error = error.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Usage);
    assert!(error.to_string().contains("expected a model with large weights in 32-bit floats"), "{error}");
    assert_eq!(std::fs::read_dir(scratch.path()).unwrap().count(), 0);
}

fn folder(family: &str, forms: &[(Option<Precision>, f64)]) {
    let (golden, scratch) = (Golden::open(family), scratch());
    golden.write_folder(scratch.path(), golden::Precision::F16, false, 1);
    check(&Model::open(scratch.path()).unwrap(), forms, &golden.pictures[0]);
}

fn single_file(family: &str, forms: &[(Option<Precision>, f64)]) {
    let (golden, scratch) = (Golden::open(family), scratch());
    let file = scratch.path().join("model.safetensors");
    golden.write_single_file(&file, golden::Precision::F32);
    check(&Model::open(&file).unwrap(), forms, &golden.pictures[0]);
}

fn onnx_folder(layout: &str, forms: &[(Option<Precision>, f64)]) {
    let (folder, scratch) = onnx::open(layout);
    check(&Model::open(scratch.path()).unwrap(), forms, &folder.pictures[0]);
}

/// Packs a model in several forms, and compares outputs and a picture's latents.
#[track_caller]
fn check(model: &Model, forms: &[(Option<Precision>, f64)], picture: &Picture) {
    let scratch = scratch();
    let draw = |model: &Model| {
        let mut pipeline = Pipeline::open(model, &options()).unwrap();
        let request = request(picture, &pipeline);
        pipeline.denoise(&request, |_| ControlFlow::Continue(())).unwrap()
    };
    let expected = draw(model);
    for (weights, tolerance) in forms {
        let bundle = scratch.path().join(format!("{weights:?}"));
        let report = pack::pack(model, &bundle, &pack_options(*weights), |_| ()).unwrap();
        assert_eq!(report.components.len(), model.parts().count());
        for component in &report.components {
            assert!(!component.errors.is_empty());
            for error in &component.errors {
                let name = component.name;
                assert!(error.relative <= *tolerance, "{weights:?}, {name}: {error:?}");
            }
        }
        // Errors add up along the way to a picture.
        let error = distance(&draw(&Model::open(&bundle).unwrap()), &expected);
        assert!(error <= 4.0 * tolerance, "{weights:?}, latents: relative error {error:.1e}");
    }
}

fn pack_options(weights: Option<Precision>) -> pack::Options {
    pack::Options {
        weights,
        compute: None,
        name: None,
        licence: None,
        threads: options().session.threads,
        memory: None,
    }
}
