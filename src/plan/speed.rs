//! How fast this machine computes, found by timing one convolution as U-Nets have them. It knows nothing of models.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Instant;

use prost::Message as _;

use crate::Error;
use crate::engine::{Session, SessionOptions, TensorRef};
use crate::graph::proto::{DimensionValue, GraphProto, ModelProto, NodeProto, OperatorSetIdProto};
use crate::graph::{Graph, value_info};
use crate::weights::{Dtype, Weights};

/// Those of the first level of Stable Diffusion 1.5, on a picture of 256x256.
const CHANNELS: usize = 320;
const SIDE: usize = 32;
const KERNEL: usize = 3;
/// How often it is timed; the first times include the fetching of memory, and others may be disturbed.
const RUNS: usize = 5;

/// Multiplications with an addition per second, in 32-bit floats on so many threads.
///
/// # Errors
/// Those of [`Session::open`] and [`Session::run`].
pub fn multiplications_per_second(threads: NonZeroUsize) -> Result<f64, Error> {
    let border = KERNEL - 1;
    let (x, w) = ([1, CHANNELS, SIDE + border, SIDE + border], [CHANNELS, CHANNELS, KERNEL, KERNEL]);
    let value = |name: &str, dims: [usize; 4]| {
        value_info(name, Dtype::F32, dims.map(|size| Some(DimensionValue::DimValue(size as i64))))
    };
    let graph = GraphProto {
        node: vec![NodeProto {
            op_type: Some("Conv".into()),
            input: vec!["x".into(), "w".into()],
            output: vec!["y".into()],
            ..Default::default()
        }],
        input: vec![value("x", x), value("w", w)],
        output: vec![value("y", [1, CHANNELS, SIDE, SIDE])],
        name: Some("speed".into()),
        ..Default::default()
    };
    let opset = OperatorSetIdProto { domain: None, version: Some(20) };
    let model = ModelProto {
        ir_version: Some(9),
        graph: Some(graph),
        opset_import: vec![opset],
        ..Default::default()
    };
    let bound = Graph::decode("speed", &model.encode_to_vec())?.bind(Arc::new(Weights::default()))?;
    let mut session = Session::open(bound, &SessionOptions::new(threads))?;
    let (picture, weights) = (vec![0.5f32; x.iter().product()], vec![0.5f32; w.iter().product()]);
    let inputs = [("x", TensorRef::new(&x, &picture[..])), ("w", TensorRef::new(&w, &weights[..]))];
    let mut seconds = f64::INFINITY;
    for _ in 0..RUNS {
        let started = Instant::now();
        session.compute(&inputs, &["y"])?;
        seconds = seconds.min(started.elapsed().as_secs_f64());
    }
    Ok((weights.len() * SIDE * SIDE) as f64 / seconds)
}
