//! Graphs that run in segments compute what the whole graph computes, bit for bit; where the segment is so small that
//! convolutions are taken in slices of a few channels, to the rounding of sums in another order.

#![cfg(feature = "builtin")]

use std::num::NonZeroUsize;

use calotype::engine::{Residency, Session, SessionOptions, TensorRef};
use calotype::graph::Dim;
use calotype::manifest::Compute;
use calotype::model::{Model, Part};
use calotype::pack::{ComputeOptions, Options, pack};

/// What a session of one part of the built-in model gives, on numbers that are nobody's choice.
fn outputs(part: &Part, residency: Residency) -> Vec<Vec<f32>> {
    let options = SessionOptions { residency, ..SessionOptions::new(NonZeroUsize::new(2).unwrap()) };
    let mut session = Session::open(part.bind().unwrap(), &options).unwrap();
    let ports = session.inputs().to_vec();
    let shapes: Vec<Vec<usize>> = ports
        .iter()
        .map(|port| {
            let size = |dim: &Dim| match dim {
                Dim::Fixed(size) => *size,
                Dim::Free(name) if name == "batch" => 1,
                Dim::Free(name) if name == "tokens" => 24,
                Dim::Free(name) if name.ends_with("_px") => 64,
                Dim::Free(_) => 8,
            };
            port.dims.iter().map(size).collect()
        })
        .collect();
    let floats: Vec<Vec<f32>> = shapes
        .iter()
        .map(|shape| (0..shape.iter().product()).map(|at: usize| (at as f32 * 0.37).sin()).collect())
        .collect();
    let ids: Vec<i64> = (0..24).collect();
    let inputs: Vec<(&str, TensorRef<'_>)> = ports
        .iter()
        .zip(&shapes)
        .zip(&floats)
        .map(|((port, shape), floats)| match port.name.as_str() {
            "input_ids" => ("input_ids", TensorRef::new(shape, &ids[..])),
            name => (name, TensorRef::new(shape, &floats[..])),
        })
        .collect();
    let names: Vec<String> = session.outputs().iter().map(|port| port.name.clone()).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    // The second run finds the thread that reads ahead at another place than the first.
    let first = session.compute(&inputs, &names).unwrap();
    let second = session.compute(&inputs, &names).unwrap();
    assert_eq!(first, second);
    first.into_iter().map(|output| output.data).collect()
}

#[test]
fn segments_compute_what_the_whole_computes() {
    let model = Model::built_in().unwrap();
    model.parts().for_each(check);
}

/// A U-Net that computes in integers: no number of it depends on where it is cut.
#[test]
fn segments_in_integers_compute_what_the_whole_computes() {
    let folder = tempfile::tempdir().unwrap();
    let bundle = folder.path().join("bundle");
    let options = Options {
        weights: None,
        compute: Some(ComputeOptions { form: Compute::Int8, weight_bits: None, max_error: None }),
        name: None,
        licence: None,
        threads: NonZeroUsize::new(2).unwrap(),
        memory: None,
    };
    pack(&Model::built_in().unwrap(), &bundle, &options, |_| ()).unwrap();
    check(Model::open(&bundle).unwrap().unet());
}

fn check(part: &Part) {
    let whole = outputs(part, Residency::PerStage);
    assert!(whole.iter().flatten().any(|value| value.abs() > 1e-3), "{} gives something", part.name());
    for segment_bytes in [1, 100 << 10, 1 << 20, 4 << 20] {
        for resident_bytes in [0, 2 << 20] {
            let streamed = outputs(part, Residency::Streamed { segment_bytes, resident_bytes });
            let pairs = || whole.iter().flatten().zip(streamed.iter().flatten());
            let differ = pairs().filter(|(one, other)| one.to_bits() != other.to_bits()).count();
            let most = pairs().map(|(one, other)| (one - other).abs()).fold(0.0, f32::max);
            let place = format!("{}, {segment_bytes} bytes: {differ} differ, by {most}", part.name());
            assert!(if segment_bytes <= 100 << 10 { most < 1e-5 } else { differ == 0 }, "{place}");
        }
    }
}
