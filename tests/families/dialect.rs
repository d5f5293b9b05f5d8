//! Every family in both dialects: with nothing but standard operators each network computes what it computes with ONNX
//! Runtime's own, on the CPU, and OpenVINO takes it whole.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;

use calotype::engine::{Session, SessionOptions, TensorRef};
use calotype::graph::Dialect;
use calotype::model::{Model, Part};
use calotype::weights::Dtype;

use super::distance;
use super::golden::{Call, Golden, Precision, scratch};

/// Relative L2 distance: the same sums in another order.
const TOLERANCE: f64 = 1e-5;

macro_rules! families {
    ($($test:ident => $family:literal;)*) => {$(
        #[test]
        fn $test() {
            family($family, Precision::F32);
        }
    )*};
}

families! {
    sd15 => "sd15";
    sd15_flow16 => "sd15-flow16";
    sd15_taesd => "sd15-taesd";
    small_sd => "small-sd";
    lcm => "lcm";
    inpaint => "inpaint";
    instruct_pix2pix => "instruct-pix2pix";
    sd21 => "sd21";
    x4_upscaler => "x4-upscaler";
    sdxl => "sdxl";
    sdxl_refiner => "sdxl-refiner";
    ssd_1b => "ssd-1b";
}

/// Weights that are converted at the front of the graph.
#[test]
fn sd15_in_f16() {
    family("sd15", Precision::F16);
}

#[track_caller]
fn family(family: &str, precision: Precision) {
    let (golden, scratch) = (Golden::open(family), scratch());
    golden.write_folder(scratch.path(), precision, false, 1);
    let model = Model::open(scratch.path()).unwrap();
    for part in model.text_encoders() {
        let ids = &golden.text.cases[0].ids[&part.name().replace("text_encoder", "tokenizer")];
        let shape = [1, ids.len()];
        same(part, &[("input_ids", TensorRef::new(&shape, &ids[..]))]);
    }
    call(model.unet(), &golden.unet);
    call(model.vae_encoder().unwrap(), &golden.vae.encode);
    call(model.vae_decoder(), &golden.vae.decode);
}

fn call(part: &Part, call: &Call) {
    let inputs: BTreeMap<&String, _> =
        call.inputs.iter().map(|(name, input)| (name, input.elements())).collect();
    let whole: BTreeMap<&String, Vec<i64>> =
        inputs.iter().map(|(name, (_, data, _))| (*name, data.iter().map(|&x| x as i64).collect())).collect();
    let feeds: Vec<_> = inputs
        .iter()
        .map(|(name, (shape, data, _))| {
            let port = part.graph().inputs().iter().find(|port| port.name == **name);
            let tensor = match port.unwrap_or_else(|| panic!("{}: no input {name}", part.name())).dtype {
                Dtype::I64 => TensorRef::new(shape, &whole[name][..]),
                _ => TensorRef::new(shape, &data[..]),
            };
            (name.as_str(), tensor)
        })
        .collect();
    same(part, &feeds);
}

/// The outputs are the same in both dialects; zeros and the same numbers one place on would be rejected.
#[track_caller]
fn same(part: &Part, feeds: &[(&str, TensorRef)]) {
    let name = part.name();
    let standard = part.graph().clone().in_dialect(Dialect::Standard);
    assert!(standard.custom_operators().is_empty(), "{name}: {:?}", standard.custom_operators());
    assert_eq!(standard.inputs(), part.graph().inputs());
    assert_eq!(standard.parameters(), part.graph().parameters());
    let ports: Vec<&str> = part.graph().outputs().iter().map(|port| port.name.as_str()).collect();
    let run = |dialect: Dialect| {
        let options = SessionOptions { dialect: Some(dialect), ..SessionOptions::new(NonZeroUsize::MIN) };
        Session::open(part.bind().unwrap(), &options).unwrap().compute(feeds, &ports).unwrap()
    };
    let mut differs = false;
    for ((port, expected), got) in ports.iter().zip(run(Dialect::Cpu)).zip(run(Dialect::Standard)) {
        assert_eq!(got.shape, expected.shape, "{name}.{port}");
        let error = distance(&got.data, &expected.data);
        assert!(error <= TOLERANCE, "{name}.{port}: relative error {error:.1e}");
        differs |= got.data != expected.data;
        let mut shifted = got.data.clone();
        shifted.rotate_right(1);
        for wrong in [vec![0.0; shifted.len()], shifted] {
            assert!(distance(&wrong, &expected.data) > 100.0 * TOLERANCE, "{name}.{port}: would pass");
        }
    }
    // Sums in another order round otherwise; the same bits of a network so deep would mean that one dialect was run twice.
    assert!(differs || name != "unet", "{name}: the same graph twice");
}

/// OpenVINO takes every component of two families as one part, and computes what the CPU does. `CALOTYPE_OPENVINO` names
/// its library, as in `tests/provider.rs`, which says when it is left out.
#[cfg(feature = "cli")]
#[test]
fn openvino_takes_families_whole() {
    const OPENVINO: &str = r#"openvino:load_config={"CPU":{"INFERENCE_PRECISION_HINT":"f32"}}"#;
    let Some(library) = std::env::var_os("CALOTYPE_OPENVINO").filter(|file| file != "none") else {
        eprintln!("left out: CALOTYPE_OPENVINO names no ONNX Runtime with OpenVINO");
        return;
    };
    // Their VAEs are one in graph and weights, but not in the scale of latents.
    for family in ["sd15", "sdxl"] {
        let (golden, scratch) = (Golden::open(family), scratch());
        golden.write_folder(scratch.path(), Precision::F32, false, 1);
        let image = scratch.path().join("image.png");
        // A process of its own, for each loads one library.
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_calotype"))
            .args(["generate", "a red apple", "--steps", "2", "--size", "64x64", "--seed", "1", "--json"])
            .args(["--provider", OPENVINO, "--model"])
            .arg(scratch.path())
            .arg("--ort")
            .arg(&library)
            .arg("-o")
            .arg(image)
            .output()
            .unwrap();
        assert!(output.status.success(), "{family}: {output:?}");
        let told: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let placements = told["placements"].as_array().unwrap();
        assert!(placements.len() >= 3, "{family}: {placements:?}");
        for placement in placements {
            let shares = placement["shares"].as_array().unwrap();
            assert_eq!(shares.len(), 1, "{family}: {placement}");
            assert_eq!(shares[0]["partitions"], 1, "{family}: {placement}");
            let error = placement["trial_error"].as_f64().unwrap();
            assert!(error > 0.0 && error < 1e-4, "{family}: {placement}");
        }
    }
}
