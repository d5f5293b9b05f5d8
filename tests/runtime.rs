//! The runtime end to end: graphs made here, weights on disk, ONNX Runtime, naive arithmetic as the second source.

#![cfg(feature = "engine")]

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use calotype::engine::{Library, Session, SessionOptions, TensorRef, Value};
use calotype::graph::proto::{
    self, AttributeProto, Dimension, DimensionValue, GraphProto, ModelProto, NodeProto, OperatorSetIdProto,
    StringStringEntryProto, TensorProto, TensorShapeProto, TensorType, TypeProto, TypeValue, ValueInfoProto,
};
use calotype::graph::{BoundGraph, Graph};
use calotype::weights::Weights;
use calotype::{Error, ErrorKind};
use half::{bf16, f16};
use prost::Message;

/// ONNX's numbers for element types.
const F32: i32 = 1;
const I64: i32 = 7;
const F16: i32 = 10;

/// Rows of the dense layer's input, and its sizes.
const ROWS: usize = 5;
const FEATURES: usize = 24;
const OUT: usize = 7;

fn attribute(name: &str, values: &[i64]) -> AttributeProto {
    const INTS: i32 = 7;
    let name = Some(name.into());
    match values {
        [one] => AttributeProto { name, r#type: Some(proto::INT), i: Some(*one), ..Default::default() },
        many => AttributeProto { name, r#type: Some(INTS), ints: many.to_vec(), ..Default::default() },
    }
}

fn node(operator: &str, inputs: &[&str], output: &str, attribute: Vec<AttributeProto>) -> NodeProto {
    NodeProto {
        op_type: Some(operator.into()),
        input: inputs.iter().map(ToString::to_string).collect(),
        output: vec![output.into()],
        attribute,
        ..Default::default()
    }
}

/// An input or output; a dimension of -1 is free.
fn value(name: &str, elem_type: i32, dims: &[i64]) -> ValueInfoProto {
    let dim = dims.iter().map(|&size| Dimension {
        value: Some(if size < 0 {
            DimensionValue::DimParam("n".into())
        } else {
            DimensionValue::DimValue(size)
        }),
        ..Default::default()
    });
    let tensor =
        TensorType { elem_type: Some(elem_type), shape: Some(TensorShapeProto { dim: dim.collect() }) };
    let kind = TypeProto { value: Some(TypeValue::TensorType(tensor)), ..Default::default() };
    ValueInfoProto { name: Some(name.into()), r#type: Some(kind), ..Default::default() }
}

/// A parameter declared without data, as stored graphs do.
fn parameter(name: &str, dims: &[i64]) -> TensorProto {
    TensorProto {
        name: Some(name.into()),
        dims: dims.to_vec(),
        data_type: Some(F32),
        data_location: Some(proto::EXTERNAL),
        external_data: vec![StringStringEntryProto {
            key: Some("location".into()),
            value: Some("weights".into()),
        }],
        ..Default::default()
    }
}

fn encode(graph: GraphProto) -> Vec<u8> {
    let opset = OperatorSetIdProto { domain: None, version: Some(18) };
    let graph = GraphProto { name: Some("test".into()), ..graph };
    ModelProto { ir_version: Some(9), graph: Some(graph), opset_import: vec![opset], ..Default::default() }
        .encode_to_vec()
}

/// `y = x weight^T + bias`, with any number of rows in `x`.
fn dense() -> Vec<u8> {
    let (features, out) = (FEATURES as i64, OUT as i64);
    encode(GraphProto {
        node: vec![node("Gemm", &["x", "dense.weight", "dense.bias"], "y", vec![attribute("transB", &[1])])],
        initializer: vec![parameter("dense.weight", &[out, features]), parameter("dense.bias", &[out])],
        input: vec![value("x", F32, &[-1, features])],
        output: vec![value("y", F32, &[-1, out])],
        ..Default::default()
    })
}

/// Numbers that 16-bit floats of both kinds hold exactly, and that differ from place to place.
fn numbers(count: usize, seed: usize) -> Vec<f32> {
    (0..count).map(|index| ((index * 37 + seed * 11) % 61) as f32 / 16.0 - 1.75).collect()
}

fn dense_by_hand(x: &[f32], weight: &[f32], bias: &[f32]) -> Vec<f32> {
    let dot = |row: &[f32], column: &[f32]| row.iter().zip(column).map(|(a, b)| a * b).sum::<f32>();
    x.chunks(FEATURES)
        .flat_map(|row| weight.chunks(FEATURES).zip(bias).map(move |(column, bias)| dot(row, column) + bias))
        .collect()
}

/// How a test stores the numbers of a weight.
#[derive(Clone, Copy, Debug)]
enum Stored {
    F32,
    F16,
    Bf16,
}

impl Stored {
    fn bytes(self, numbers: &[f32]) -> Vec<u8> {
        match self {
            Self::F32 => numbers.iter().flat_map(|number| number.to_le_bytes()).collect(),
            Self::F16 => numbers.iter().flat_map(|&number| f16::from_f32(number).to_le_bytes()).collect(),
            Self::Bf16 => numbers.iter().flat_map(|&number| bf16::from_f32(number).to_le_bytes()).collect(),
        }
    }
}

/// A safetensors file of these names, shapes and numbers.
fn safetensors(stored: Stored, tensors: &[(&str, &[usize], &[f32])]) -> Vec<u8> {
    let mut data = Vec::new();
    let mut declared = Vec::new();
    for (name, shape, numbers) in tensors {
        let begin = data.len();
        data.extend(stored.bytes(numbers));
        let dtype = format!("{stored:?}").to_uppercase();
        let end = data.len();
        declared.push(format!(
            r#""{name}":{{"dtype":"{dtype}","shape":{shape:?},"data_offsets":[{begin},{end}]}}"#
        ));
    }
    let header = format!("{{{}}}", declared.join(","));
    let header = format!("{header:width$}", width = header.len().next_multiple_of(8));
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &data].concat()
}

/// Maps a file in a folder that is gone when this returns; the map keeps the bytes.
fn mapped(file: &[u8]) -> Weights {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    std::fs::write(&path, file).unwrap();
    Weights::open(&[path]).unwrap()
}

fn bind(onnx: &[u8], weights: Weights) -> BoundGraph {
    Graph::decode("dense", onnx).unwrap().bind(Arc::new(weights)).unwrap()
}

fn options(threads: usize) -> SessionOptions {
    SessionOptions::new(NonZeroUsize::new(threads).unwrap())
}

fn dense_session(stored: Stored, threads: usize) -> Session {
    let (weight, bias) = (numbers(OUT * FEATURES, 1), numbers(OUT, 2));
    let file =
        safetensors(stored, &[("dense.weight", &[OUT, FEATURES], &weight), ("dense.bias", &[OUT], &bias)]);
    Session::open(bind(&dense(), mapped(&file)), &options(threads)).unwrap()
}

fn run_dense(session: &mut Session, x: &[f32]) -> Result<Vec<f32>, Error> {
    let mut y = vec![f32::NAN; x.len() / FEATURES * OUT];
    session.run(&[("x", TensorRef::new(&[x.len() / FEATURES, FEATURES], x))], &mut [("y", &mut y)])?;
    Ok(y)
}

fn expect_dense(y: &[f32], x: &[f32]) {
    let expected = dense_by_hand(x, &numbers(OUT * FEATURES, 1), &numbers(OUT, 2));
    // Sums of 24 products of up to 4 in single precision: a different order of summation moves them by a few 1e-6.
    let close = y.len() == expected.len() && y.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-4);
    assert!(close, "expected {expected:?}, got {y:?}");
}

#[test]
fn dense_layer_in_every_stored_type() {
    for stored in [Stored::F32, Stored::F16, Stored::Bf16] {
        let mut session = dense_session(stored, 1);
        let x = numbers(ROWS * FEATURES, 3);
        expect_dense(&run_dense(&mut session, &x).unwrap(), &x);
    }
}

#[test]
fn a_session_runs_again_with_other_sizes_and_threads() {
    let mut session = dense_session(Stored::F16, 2);
    for rows in [1, 9, 2] {
        let x = numbers(rows * FEATURES, rows);
        expect_dense(&run_dense(&mut session, &x).unwrap(), &x);
    }
}

#[test]
fn a_session_can_move_to_another_thread() {
    let mut session = dense_session(Stored::F32, 1);
    let x = numbers(ROWS * FEATURES, 3);
    let y = std::thread::scope(|scope| scope.spawn(|| run_dense(&mut session, &x)).join().unwrap()).unwrap();
    expect_dense(&y, &x);
}

#[test]
fn weights_in_the_program() {
    let (weight, bias) = (numbers(OUT * FEATURES, 1), numbers(OUT, 2));
    let tensors: [(&str, &[usize], &[f32]); 2] =
        [("dense.weight", &[OUT, FEATURES], &weight), ("dense.bias", &[OUT], &bias)];
    let weights = Weights::from_static("built-in", safetensors(Stored::F16, &tensors).leak()).unwrap();
    let mut session = Session::open(bind(&dense(), weights), &options(1)).unwrap();
    let x = numbers(ROWS * FEATURES, 3);
    expect_dense(&run_dense(&mut session, &x).unwrap(), &x);
}

#[test]
fn convolution() {
    const CHANNELS: usize = 16;
    const SIDE: usize = 6;
    let (c, s) = (CHANNELS as i64, SIDE as i64);
    let onnx = encode(GraphProto {
        node: vec![node(
            "Conv",
            &["x", "conv.weight"],
            "y",
            vec![attribute("kernel_shape", &[3, 3]), attribute("pads", &[1, 1, 1, 1])],
        )],
        initializer: vec![parameter("conv.weight", &[c, c, 3, 3])],
        input: vec![value("x", F32, &[1, c, s, s])],
        output: vec![value("y", F32, &[1, c, s, s])],
        ..Default::default()
    });
    let weight = numbers(CHANNELS * CHANNELS * 9, 4);
    let x = numbers(CHANNELS * SIDE * SIDE, 5);
    for stored in [Stored::F32, Stored::F16] {
        let file = safetensors(stored, &[("conv.weight", &[CHANNELS, CHANNELS, 3, 3], &weight)]);
        let mut session = Session::open(bind(&onnx, mapped(&file)), &options(2)).unwrap();
        let mut y = vec![f32::NAN; x.len()];
        session
            .run(&[("x", TensorRef::new(&[1, CHANNELS, SIDE, SIDE], &x[..]))], &mut [("y", &mut y)])
            .unwrap();

        for (index, &got) in y.iter().enumerate() {
            let (out, row, column) = (index / (SIDE * SIDE), index / SIDE % SIDE, index % SIDE);
            let mut expected = 0.0;
            for (channel, down, right) in
                (0..CHANNELS).flat_map(|c| (0..3).flat_map(move |d| (0..3).map(move |r| (c, d, r))))
            {
                let (Some(from_row), Some(from_column)) =
                    ((row + down).checked_sub(1), (column + right).checked_sub(1))
                else {
                    continue;
                };
                if from_row < SIDE && from_column < SIDE {
                    expected += weight[((out * CHANNELS + channel) * 3 + down) * 3 + right]
                        * x[(channel * SIDE + from_row) * SIDE + from_column];
                }
            }
            assert!((got - expected).abs() < 1e-3, "{stored:?} at {index}: expected {expected}, got {got}");
        }
    }
}

/// A graph without parameters that casts `x` of one type to `y` of another.
fn conversion(from: i32, to: i32, len: i64) -> Session {
    let onnx = encode(GraphProto {
        node: vec![node("Cast", &["x"], "y", vec![attribute("to", &[to.into()])])],
        input: vec![value("x", from, &[len])],
        output: vec![value("y", to, &[len])],
        ..Default::default()
    });
    Session::open(bind(&onnx, mapped(&safetensors(Stored::F32, &[]))), &options(1)).unwrap()
}

#[test]
fn inputs_and_outputs_of_other_types() {
    let mut y = [f32::NAN; 3];
    let mut run = |from: i32, to: i32, x: TensorRef<'_>| {
        conversion(from, to, 3).run(&[("x", x)], &mut [("y", &mut y)]).unwrap();
        y
    };
    let halves = [-1.5f32, 0.0, 65504.0].map(f16::from_f32);
    assert_eq!(run(F16, F32, TensorRef::new(&[3], &halves[..])), [-1.5, 0.0, 65504.0]);
    assert_eq!(run(F16, F16, TensorRef::new(&[3], &halves[..])), [-1.5, 0.0, 65504.0]);
    assert_eq!(
        run(F32, F16, TensorRef::new(&[3], &[0.1f32, 2.0, 3.0][..])),
        [f16::from_f32(0.1).to_f32(), 2.0, 3.0]
    );
    assert_eq!(run(I64, F32, TensorRef::new(&[3], &[-1i64, 49407, 0][..])), [-1.0, 49407.0, 0.0]);
    assert_eq!(run(6, F32, TensorRef::new(&[3], &[-1i32, 7, 0][..])), [-1.0, 7.0, 0.0]);
    assert_eq!(run(9, F32, TensorRef::new(&[3], &[true, false, true][..])), [1.0, 0.0, 1.0]);
}

#[test]
fn parameters_of_every_type() {
    // ONNX's number of the type, safetensors' name of it, and the number 1 in it.
    let ones: [(i32, &str, &[u8]); 13] = [
        (1, "F32", &1f32.to_le_bytes()),
        (2, "U8", &[1]),
        (3, "I8", &[1]),
        (4, "U16", &1u16.to_le_bytes()),
        (5, "I16", &1i16.to_le_bytes()),
        (6, "I32", &1i32.to_le_bytes()),
        (7, "I64", &1i64.to_le_bytes()),
        (9, "BOOL", &[1]),
        (10, "F16", &f16::ONE.to_le_bytes()),
        (11, "F64", &1f64.to_le_bytes()),
        (12, "U32", &1u32.to_le_bytes()),
        (13, "U64", &1u64.to_le_bytes()),
        (16, "BF16", &bf16::ONE.to_le_bytes()),
    ];
    for (elem_type, dtype, one) in ones {
        let onnx = encode(GraphProto {
            node: vec![node("Cast", &["one"], "y", vec![attribute("to", &[F32.into()])])],
            initializer: vec![TensorProto { data_type: Some(elem_type), ..parameter("one", &[1]) }],
            output: vec![value("y", F32, &[1])],
            ..Default::default()
        });
        let header =
            format!(r#"{{"one":{{"dtype":"{dtype}","shape":[1],"data_offsets":[0,{}]}}}}"#, one.len());
        let header = format!("{header:width$}", width = header.len().next_multiple_of(8));
        let file = [&(header.len() as u64).to_le_bytes(), header.as_bytes(), one].concat();
        let mut y = [f32::NAN];
        let mut session = Session::open(bind(&onnx, mapped(&file)), &options(1)).unwrap();
        session.run(&[], &mut [("y", &mut y)]).unwrap();
        assert_eq!(y, [1.0], "{dtype}");
    }
}

/// The kind and message with which a run is refused.
fn refusal(result: Result<(), Error>) -> (ErrorKind, String) {
    let error = result.expect_err("the call is wrong");
    (error.kind(), error.to_string())
}

#[test]
fn wrong_inputs() {
    let mut session = dense_session(Stored::F32, 1);
    let x = [0.0f32; FEATURES];
    let mut run = |inputs: &[(&str, TensorRef<'_>)]| {
        let (kind, message) = refusal(session.run(inputs, &mut []));
        assert_eq!(kind, ErrorKind::Model);
        message
    };
    let good = TensorRef::new(&[1, FEATURES], &x[..]);
    assert_eq!(run(&[]), "dense: input x: expected once, got 0 times");
    assert_eq!(run(&[("x", good), ("x", good)]), "dense: input x: expected once, got 2 times");
    assert_eq!(run(&[("x", good), ("z", good)]), "dense: input: expected one of x, got z");
    let flat = TensorRef::new(&[FEATURES], &x[..]);
    assert_eq!(run(&[("x", flat)]), "dense: input x: expected F32[n, 24], got F32[24]");
    let narrow = TensorRef::new(&[2, FEATURES / 2], &x[..]);
    assert_eq!(run(&[("x", narrow)]), "dense: input x: expected F32[n, 24], got F32[2, 12]");
    let integers = TensorRef::new(&[1, FEATURES], &[0i64; FEATURES][..]);
    assert_eq!(run(&[("x", integers)]), "dense: input x: expected F32[n, 24], got I64[1, 24]");
}

#[test]
fn input_shape_disagrees_with_its_data() {
    let mut session = dense_session(Stored::F32, 1);
    // The last has 24 elements, if one forgets that sizes do not wrap around.
    for shape in [[2, FEATURES], [0, FEATURES], [usize::MAX / 8 + 2, FEATURES]] {
        let x = TensorRef::new(&shape, &[0.0f32; FEATURES][..]);
        let (kind, message) = refusal(session.run(&[("x", x)], &mut []));
        assert_eq!(kind, ErrorKind::Internal);
        assert_eq!(message, format!("dense: input x: expected data of shape {shape:?}, got 24 elements"));
    }
}

#[test]
fn wrong_outputs() {
    let mut session = dense_session(Stored::F32, 1);
    let inputs = [("x", TensorRef::new(&[1, FEATURES], &[0.0f32; FEATURES][..]))];
    let (kind, message) = refusal(session.run(&inputs, &mut [("z", &mut [0.0; OUT])]));
    assert_eq!((kind, &message[..]), (ErrorKind::Model, "dense: output: expected one of y, got z"));
    for len in [0, OUT - 1, OUT + 1] {
        let (kind, message) = refusal(session.run(&inputs, &mut [("y", &mut vec![0.0; len])]));
        assert_eq!(kind, ErrorKind::Model);
        assert_eq!(message, format!("dense: output y: expected {len} numbers, got shape [1, 7]"));
    }
    let mut numbers = conversion(F32, I64, 1);
    let inputs = [("x", TensorRef::new(&[1], &[0.0f32][..]))];
    let (kind, message) = refusal(numbers.run(&inputs, &mut [("y", &mut [0.0])]));
    assert_eq!((kind, &message[..]), (ErrorKind::Model, "dense: output y: expected f32 or f16, got i64"));
}

#[test]
fn a_failed_run_can_be_repeated() {
    // The shapes fit the signature, but the reshape inside has no answer for them.
    let target = TensorProto {
        name: Some("target".into()),
        dims: vec![1],
        data_type: Some(I64),
        int64_data: vec![4],
        ..Default::default()
    };
    let onnx = encode(GraphProto {
        node: vec![node("Reshape", &["x", "target"], "y", vec![])],
        initializer: vec![target],
        input: vec![value("x", F32, &[-1])],
        output: vec![value("y", F32, &[-1])],
        ..Default::default()
    });
    let mut session =
        Session::open(bind(&onnx, mapped(&safetensors(Stored::F32, &[]))), &options(1)).unwrap();
    let mut y = [f32::NAN; 4];
    let (kind, message) =
        refusal(session.run(&[("x", TensorRef::new(&[3], &[0.0f32; 3][..]))], &mut [("y", &mut y)]));
    assert_eq!(kind, ErrorKind::Runtime);
    assert!(message.starts_with("dense: run: "), "{message}");
    session.run(&[("x", TensorRef::new(&[4], &[1.0f32, 2.0, 3.0, 4.0][..]))], &mut [("y", &mut y)]).unwrap();
    assert_eq!(y, [1.0, 2.0, 3.0, 4.0]);
}

#[test]
fn graphs_that_onnx_runtime_refuses() {
    let open = |operator: &str, inputs: &[&str]| {
        let onnx = encode(GraphProto {
            node: vec![node(operator, inputs, "y", vec![])],
            input: vec![value("x", F32, &[1])],
            output: vec![value("y", F32, &[1])],
            ..Default::default()
        });
        let error =
            Session::open(bind(&onnx, mapped(&safetensors(Stored::F32, &[]))), &options(1)).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Model);
        error.to_string()
    };
    assert!(open("NoSuchOperator", &["x"]).starts_with("dense: ONNX Runtime cannot open the graph: "));
    assert!(open("Relu", &["nowhere"]).starts_with("dense: ONNX Runtime cannot open the graph: "));
}

/// `y = a * b + c`, all of one length.
fn sum() -> Session {
    let inputs = ["a", "b", "c"].map(|name| value(name, F32, &[-1]));
    let graph = encode(GraphProto {
        node: vec![node("Mul", &["a", "b"], "ab", vec![]), node("Add", &["ab", "c"], "y", vec![])],
        input: inputs.to_vec(),
        output: vec![value("y", F32, &[-1])],
        ..Default::default()
    });
    let graph = Graph::decode("sum", &graph).unwrap().bind(Arc::new(Weights::default())).unwrap();
    Session::open(graph, &SessionOptions::new(NonZeroUsize::MIN)).unwrap()
}

fn constant(name: &str, elements: [f32; 3]) -> (String, Value) {
    (name.to_owned(), Value::new(vec![3], elements.to_vec()).unwrap())
}

/// Constants are handed over once for as long as they live, whichever others are used between; their names count, and so
/// does who they are.
#[test]
fn constants_are_bound_once_and_told_apart() {
    const SLICE_BYTES: u64 = 12;
    const CONSTANTS_BYTES: u64 = 24;
    let mut session = sum();
    let mut run = |constants: &[(String, Value)]| {
        let before = session.fed_bytes();
        let mut y = [0.0; 3];
        let a = [1.0_f32, 2.0, 3.0];
        let inputs = [("a", TensorRef::new(&[3], &a[..]))];
        session.run_bound(constants, &inputs, &mut [("y", &mut y)]).unwrap();
        (y, session.fed_bytes() - before)
    };
    let one = [constant("b", [1.0; 3]), constant("c", [0.0; 3])];
    let two = [constant("b", [2.0; 3]), constant("c", [1.0; 3])];
    assert_eq!(run(&one), ([1.0, 2.0, 3.0], SLICE_BYTES + CONSTANTS_BYTES));
    assert_eq!(run(&one), ([1.0, 2.0, 3.0], SLICE_BYTES));
    assert_eq!(run(&two), ([3.0, 5.0, 7.0], SLICE_BYTES + CONSTANTS_BYTES));
    // Both sets stay bound, and the clone of a value is that value.
    assert_eq!(run(&one), ([1.0, 2.0, 3.0], SLICE_BYTES));
    assert_eq!(run(&two.clone()), ([3.0, 5.0, 7.0], SLICE_BYTES));
    // The same values under other names.
    let [(_, b), (_, c)] = two.clone();
    let renamed = [("c".to_owned(), b), ("b".to_owned(), c)];
    assert_eq!(run(&renamed), ([3.0, 4.0, 5.0], SLICE_BYTES + CONSTANTS_BYTES));
    // Equal numbers are not the same value: their memory is another's.
    let equal = [constant("b", [2.0; 3]), constant("c", [1.0; 3])];
    assert_eq!(run(&equal), ([3.0, 5.0, 7.0], SLICE_BYTES + CONSTANTS_BYTES));
    drop(one);
    for round in 0..100 {
        let factor = round as f32;
        let fresh = [constant("b", [factor; 3]), constant("c", [0.0; 3])];
        assert_eq!(run(&fresh), ([factor, 2.0 * factor, 3.0 * factor], SLICE_BYTES + CONSTANTS_BYTES));
    }
    // Half of them as constants, in the place of slices.
    let b = constant("b", [5.0; 3]);
    let mut y = [0.0; 3];
    let (a, c) = ([1.0_f32, 2.0, 3.0], [0.5_f32; 3]);
    let inputs = [("a", TensorRef::new(&[3], &a[..])), ("c", TensorRef::new(&[3], &c[..]))];
    session.run_bound(&[b], &inputs, &mut [("y", &mut y)]).unwrap();
    assert_eq!(y, [5.5, 10.5, 15.5]);
}

#[test]
fn constants_that_do_not_fit_are_refused() {
    let error = Value::new(vec![2, 2], vec![0.0_f32; 3]).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Internal);
    assert_eq!(error.to_string(), "value: expected elements of shape [2, 2], got 3");
    let mut session = sum();
    let a = [1.0_f32, 2.0, 3.0];
    let mut refusal = |constants: &[(String, Value)]| {
        let inputs = [("a", TensorRef::new(&[3], &a[..]))];
        let mut y = [0.0; 3];
        let error = session.run_bound(constants, &inputs, &mut [("y", &mut y)]).unwrap_err();
        assert_eq!((error.kind(), y, session.fed_bytes()), (ErrorKind::Model, [0.0; 3], 0));
        error.to_string()
    };
    let (b, c) = (|| constant("b", [1.0; 3]), || constant("c", [1.0; 3]));
    assert_eq!(refusal(&[b()]), "sum: input c: expected once, got 0 times");
    assert_eq!(refusal(&[b(), c(), c()]), "sum: input c: expected once, got 2 times");
    assert_eq!(refusal(&[b(), c(), constant("a", [1.0; 3])]), "sum: input a: expected once, got 2 times");
    let unknown = refusal(&[b(), c(), constant("d", [1.0; 3])]);
    assert!(unknown.starts_with("sum: input: expected one of "), "{unknown}");
    let other = |value: Value| refusal(&[b(), ("c".to_owned(), value)]);
    let mut other = other;
    let integers = other(Value::new(vec![3], vec![1_i64; 3]).unwrap());
    assert!(integers.starts_with("sum: input c: expected F32["), "{integers}");
    let matrix = other(Value::new(vec![1, 3], vec![1.0_f32; 3]).unwrap());
    assert!(matrix.ends_with("got F32[1, 3]"), "{matrix}");
}

#[test]
fn the_library_says_what_it_is() {
    let library = Library::load(None).unwrap();
    assert!(library.version().starts_with("1."), "{}", library.version());
    assert!(library.providers().unwrap().contains(&"CPUExecutionProvider".to_owned()));
    let error = Library::load(Some(Path::new("/another/libonnxruntime.so"))).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Runtime);
    assert!(error.to_string().contains("expected /another/libonnxruntime.so, got "), "{error}");
    assert_eq!(error.file(), Some(Path::new("/another/libonnxruntime.so")));
}

/// Loads the library that `file` makes in a folder, in a process of its own, since a process loads at most one; gives
/// the message. The process is this very test, once more; there, this function does not return.
fn load_refusal(test: &str, file: impl FnOnce(&Path) -> PathBuf) -> String {
    const CHILD: &str = "CALOTYPE_TEST_LOADS_LIBRARY";
    if std::env::var_os(CHILD).is_some() {
        let code = Library::load(None).err().map_or(0, |error| {
            eprintln!("{error}\n{}", error.file().expect("the library's file").display());
            error.kind().exit_code()
        });
        std::process::exit(code.into());
    }
    let folder = tempfile::tempdir().unwrap();
    let path = file(folder.path());
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(CHILD, "1")
        .env("ORT_DYLIB_PATH", &path)
        .output()
        .unwrap();
    let message = String::from_utf8(child.stderr).unwrap();
    assert_eq!(child.status.code(), Some(6), "{message}");
    assert!(message.starts_with("no ONNX Runtime library could be loaded: ORT_DYLIB_PATH ("), "{message}");
    assert!(message.contains("; name a library of version 1.23 or newer with `ort`"), "{message}");
    assert!(message.ends_with(&format!("\n{}\n", path.display())), "{message}");
    message
}

fn written(folder: &Path, bytes: &[u8]) -> PathBuf {
    let path = folder.join("libonnxruntime.so");
    std::fs::write(&path, bytes).unwrap();
    path
}

#[test]
fn library_is_missing() {
    let message = load_refusal("library_is_missing", |_| "/no/such/libonnxruntime.so".into());
    assert!(message.contains("(/no/such/libonnxruntime.so): No such file"), "{message}");
}

#[test]
fn library_is_a_folder() {
    let message = load_refusal("library_is_a_folder", Path::to_path_buf);
    assert!(message.contains("s a directory"), "{message}");
}

#[test]
fn library_is_a_text_file() {
    let message =
        load_refusal("library_is_a_text_file", |folder| written(folder, b"this is not a library\n"));
    assert!(message.contains("file too short") || message.contains("invalid ELF header"), "{message}");
}

#[test]
fn library_is_truncated() {
    let message = load_refusal("library_is_truncated", |folder| {
        let whole = std::fs::read(Library::load(None).unwrap().path()).unwrap();
        written(folder, &whole[..whole.len() / 2])
    });
    assert!(message.contains("the file is truncated"), "{message}");
}

#[test]
fn library_for_another_processor() {
    let message = load_refusal("library_for_another_processor", |folder| {
        let mut library = std::fs::read(Library::load(None).unwrap().path()).unwrap();
        // The machine's number in the ELF header: x86-64 or aarch64, whichever it is not.
        library[18] = if library[18] == 62 { 183 } else { 62 };
        written(folder, &library)
    });
    assert!(message.contains("the library is for another CPU architecture"), "{message}");
}

#[test]
fn library_is_another_one() {
    // A shared library that is there for certain: this process uses it.
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let libc = maps
        .lines()
        .find_map(|line| line.split_whitespace().last().filter(|path| path.contains("/libc.so")))
        .unwrap();
    let message = load_refusal("library_is_another_one", |_| libc.into());
    assert!(message.contains("not an ONNX Runtime library: it has no OrtGetApiBase"), "{message}");
}

/// ONNX Runtime's own plug-ins for providers call, while they are loaded, what only ONNX Runtime has: the dynamic linker would end
/// the process with code 127.
#[test]
#[cfg(target_os = "linux")]
fn library_is_a_plug_in_for_a_provider() {
    let message = load_refusal("library_is_a_plug_in_for_a_provider", |folder| {
        let (source, library) = (folder.join("plug_in.c"), folder.join("libonnxruntime_providers_x.so"));
        let code = "void Provider_GetHost(void);\n__attribute__((constructor)) static void begin(void) { Provider_GetHost(); }\n";
        std::fs::write(&source, code).unwrap();
        let mut compile = Command::new("cc");
        compile.args(["-shared", "-fPIC", "-Wl,-z,lazy", "-o"]).args([&library, &source]);
        assert!(compile.status().unwrap().success());
        library
    });
    assert!(message.contains("not an ONNX Runtime library: it has no OrtGetApiBase"), "{message}");
}
