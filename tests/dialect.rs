//! Dialects: what each standard form computes, operator by operator, and which operators of the derived graphs the lists of
//! providers lack in the dialect that is chosen for them.

#![cfg(feature = "engine")]

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroUsize;
use std::sync::Arc;

use calotype::architecture::{autoencoder_kl, autoencoder_tiny, clip, unet};
use calotype::engine::{ProviderKind, Session, SessionOptions, TensorRef};
use calotype::graph::proto::{
    AttributeProto, Dimension, DimensionValue, FLOAT, GraphProto, INT, INTS, ModelProto, NodeProto,
    OperatorSetIdProto, TensorProto, TensorShapeProto, TensorType, TypeProto, TypeValue, ValueInfoProto,
};
use calotype::graph::{Dialect, Graph};
use calotype::weights::Weights;
use prost::Message;
use serde::Deserialize;

/// Relative L2 distance: the same sums in another order.
const TOLERANCE: f64 = 1e-5;
/// The opset of derived graphs, and one of older exports.
const OPSETS: [i64; 2] = [20, 17];

fn int(name: &str, value: i64) -> AttributeProto {
    AttributeProto { name: Some(name.into()), r#type: Some(INT), i: Some(value), ..Default::default() }
}

fn float(name: &str, value: f32) -> AttributeProto {
    AttributeProto { name: Some(name.into()), r#type: Some(FLOAT), f: Some(value), ..Default::default() }
}

fn ints(name: &str, values: &[i64]) -> AttributeProto {
    AttributeProto {
        name: Some(name.into()),
        r#type: Some(INTS),
        ints: values.to_vec(),
        ..Default::default()
    }
}

fn node(op: &str, inputs: &[&str], outputs: &[&str], attribute: Vec<AttributeProto>) -> NodeProto {
    const STANDARD: [&str; 6] = ["MatMul", "Add", "Reshape", "Gemm", "Relu", "Transpose"];
    NodeProto {
        name: Some(format!("{op}_{}", outputs[0])),
        op_type: Some(op.into()),
        domain: (!STANDARD.contains(&op)).then(|| "com.microsoft".into()),
        input: inputs.iter().map(|&name| name.into()).collect(),
        output: outputs.iter().map(|&name| name.into()).collect(),
        attribute,
        ..Default::default()
    }
}

/// Numbers that look random, between -1 and 1.
fn noise(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

/// A small graph: what it is fed and its weights by name and shape, its nodes, and how many dimensions each output has.
struct Case {
    inputs: Vec<(&'static str, Vec<usize>)>,
    weights: Vec<(&'static str, Vec<usize>)>,
    lists: Vec<(&'static str, Vec<i64>)>,
    nodes: Vec<NodeProto>,
    outputs: Vec<(&'static str, usize)>,
}

impl Case {
    fn new(
        inputs: &[(&'static str, &[usize])],
        weights: &[(&'static str, &[usize])],
        nodes: Vec<NodeProto>,
        outputs: &[(&'static str, usize)],
    ) -> Self {
        let owned = |of: &[(&'static str, &[usize])]| {
            of.iter().map(|(name, shape)| (*name, shape.to_vec())).collect()
        };
        Self {
            inputs: owned(inputs),
            weights: owned(weights),
            lists: Vec::new(),
            nodes,
            outputs: outputs.to_vec(),
        }
    }

    fn data(&self, name: &str, shape: &[usize]) -> Vec<f32> {
        let seed = name.bytes().fold(7, |seed: u64, byte| seed * 31 + u64::from(byte));
        noise(shape.iter().product(), seed)
    }

    fn graph(&self, opset: i64) -> Graph {
        let value = |name: &str, rank: usize, shape: Option<&[usize]>| {
            let dim = (0..rank).map(|axis| Dimension {
                // The first is free, as batches are.
                value: shape.filter(|_| axis > 0).map(|shape| DimensionValue::DimValue(shape[axis] as i64)),
                ..Default::default()
            });
            let shape = Some(TensorShapeProto { dim: dim.collect() });
            let tensor = TypeValue::TensorType(TensorType { elem_type: Some(1), shape });
            let kind = TypeProto { value: Some(tensor), ..Default::default() };
            ValueInfoProto { name: Some(name.into()), r#type: Some(kind), ..Default::default() }
        };
        let tensor = |name: &str, code: i32, dims: Vec<i64>, raw: Vec<u8>| TensorProto {
            name: Some(name.into()),
            dims,
            data_type: Some(code),
            raw_data: Some(raw),
            ..Default::default()
        };
        let weights = self.weights.iter().map(|(name, shape)| {
            let bytes = self.data(name, shape).iter().flat_map(|value| value.to_le_bytes()).collect();
            tensor(name, 1, shape.iter().map(|&size| size as i64).collect(), bytes)
        });
        let lists = self.lists.iter().map(|(name, values)| {
            let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            tensor(name, 7, vec![values.len() as i64], bytes)
        });
        let graph = GraphProto {
            name: Some("case".into()),
            node: self.nodes.clone(),
            initializer: weights.chain(lists).collect(),
            input: self.inputs.iter().map(|(name, shape)| value(name, shape.len(), Some(shape))).collect(),
            output: self.outputs.iter().map(|(name, rank)| value(name, *rank, None)).collect(),
            ..Default::default()
        };
        let import = |domain: &str, version| OperatorSetIdProto {
            domain: Some(domain.into()),
            version: Some(version),
        };
        let model = ModelProto {
            ir_version: Some(9),
            opset_import: vec![import("", opset), import("com.microsoft", 1)],
            graph: Some(graph),
            ..Default::default()
        };
        Graph::decode("case", &model.encode_to_vec()).unwrap()
    }

    fn run(&self, opset: i64, dialect: Dialect) -> Vec<Vec<f32>> {
        let bound = self.graph(opset).bind(Arc::new(Weights::default())).unwrap();
        let options = SessionOptions { dialect: Some(dialect), ..SessionOptions::new(NonZeroUsize::MIN) };
        let mut session = Session::open(bound, &options).unwrap();
        let data: Vec<_> = self.inputs.iter().map(|(name, shape)| self.data(name, shape)).collect();
        let feeds: Vec<_> = self
            .inputs
            .iter()
            .zip(&data)
            .map(|((name, shape), data)| (*name, TensorRef::new(shape, &data[..])))
            .collect();
        let ports: Vec<&str> = self.outputs.iter().map(|(name, _)| *name).collect();
        session.compute(&feeds, &ports).unwrap().into_iter().map(|output| output.data).collect()
    }

    /// The standard form computes what the kernel of the CPU provider does.
    #[track_caller]
    fn is_the_same(&self) {
        for opset in OPSETS {
            let standard = self.graph(opset).in_dialect(Dialect::Standard);
            assert!(standard.custom_operators().is_empty(), "{:?}", standard.custom_operators());
            assert!(!self.graph(opset).custom_operators().is_empty());
            for (got, expected) in
                self.run(opset, Dialect::Standard).iter().zip(self.run(opset, Dialect::Cpu))
            {
                close(got, &expected);
            }
        }
    }

    /// The form that the CPU takes of what it has no kernel for computes this.
    #[track_caller]
    fn computes(&self, expected: &[Vec<f32>]) {
        for opset in OPSETS {
            for dialect in [Dialect::Cpu, Dialect::Standard] {
                assert!(self.graph(opset).in_dialect(dialect).custom_operators().is_empty());
                let got = self.run(opset, dialect);
                assert_eq!(got.len(), expected.len());
                got.iter().zip(expected).for_each(|(got, expected)| close(got, expected));
            }
            assert!(!self.graph(opset).in_dialect(Dialect::Contrib).custom_operators().is_empty());
        }
    }
}

/// Also that zeros and the same numbers one place on would be rejected.
#[track_caller]
fn close(got: &[f32], expected: &[f32]) {
    let distance = |got: &[f32]| {
        let square = |(a, b): (&f32, &f32)| (f64::from(*a) - f64::from(*b)).powi(2);
        let norm: f64 = expected.iter().map(|x| f64::from(*x).powi(2)).sum();
        (got.iter().zip(expected).map(square).sum::<f64>() / norm).sqrt()
    };
    assert_eq!(got.len(), expected.len());
    let error = distance(got);
    assert!(error <= TOLERANCE, "relative error {error:.1e}");
    let mut shifted = got.to_vec();
    shifted.rotate_right(1);
    assert!(distance(&vec![0.0; got.len()]) > 0.1 && distance(&shifted) > 0.1);
}

#[test]
fn linear_layers() {
    let flag = || vec![int("transB", 1)];
    // Of tokens with a bias behind, in either order; of a matrix; and two that read the same product.
    let x: (&str, &[usize]) = ("x", &[2, 3, 8]);
    let weights: [(&str, &[usize]); 2] = [("w", &[5, 8]), ("b", &[5])];
    for sum in [["p", "b"], ["b", "p"]] {
        let nodes = vec![node("FusedMatMul", &["x", "w"], &["p"], flag()), node("Add", &sum, &["y"], vec![])];
        Case::new(&[x], &weights, nodes, &[("y", 3)]).is_the_same();
    }
    let nodes = vec![
        node("FusedMatMul", &["x", "w"], &["p"], flag()),
        node("Add", &["p", "b"], &["y"], vec![]),
        node("Relu", &["p"], &["z"], vec![]),
    ];
    Case::new(&[("x", &[4, 8])], &weights, nodes, &[("y", 2), ("z", 2)]).is_the_same();
    let nodes = vec![node("FusedMatMul", &["x", "w"], &["y"], vec![])];
    Case::new(&[("x", &[2, 3, 4, 8])], &[("w", &[8, 5])], nodes, &[("y", 4)]).is_the_same();
    // A scaled product of two values has other rules: it stays.
    let nodes = vec![node("FusedMatMul", &["x", "w"], &["y"], vec![float("alpha", 0.5)])];
    let kept = Case::new(&[x], &[("w", &[8, 5])], nodes, &[("y", 3)]).graph(20).in_dialect(Dialect::Standard);
    assert_eq!(kept.custom_operators().len(), 1);
}

#[test]
fn activations() {
    let x: (&str, &[usize]) = ("x", &[2, 3, 8]);
    let bias: (&str, &[usize]) = ("b", &[8]);
    for (op, inputs, attributes) in [
        ("QuickGelu", vec!["x"], vec![]),
        ("QuickGelu", vec!["x"], vec![float("alpha", 1.0)]),
        ("Gelu", vec!["x"], vec![]),
        ("BiasGelu", vec!["x", "b"], vec![]),
        ("FastGelu", vec!["x"], vec![]),
        ("FastGelu", vec!["x", "b"], vec![]),
    ] {
        Case::new(&[x], &[bias], vec![node(op, &inputs, &["y"], attributes)], &[("y", 3)]).is_the_same();
    }
}

#[test]
fn skipping_layer_norms() {
    let inputs: [(&str, &[usize]); 2] = [("x", &[2, 3, 8]), ("s", &[2, 3, 8])];
    let weights: [(&str, &[usize]); 3] = [("gamma", &[8]), ("beta", &[8]), ("bias", &[8])];
    let norm = |inputs: &[&str], outputs: &[&str]| {
        vec![node("SkipLayerNormalization", inputs, outputs, vec![float("epsilon", 1e-5)])]
    };
    let all = ["x", "s", "gamma", "beta", "bias"];
    Case::new(&inputs, &weights, norm(&all, &["y", "", "", "sum"]), &[("y", 3), ("sum", 3)]).is_the_same();
    Case::new(&inputs, &weights, norm(&all[..4], &["y"]), &[("y", 3)]).is_the_same();
    Case::new(&inputs, &weights, norm(&all[..3], &["y"]), &[("y", 3)]).is_the_same();
}

#[test]
fn attention() {
    let linear = |weight: &str, of: &str, to: &str| node("MatMul", &[of, weight], &[to], vec![]);
    let q_k_v = || vec![linear("wq", "x", "q"), linear("wk", "t", "k"), linear("wv", "t", "v")];
    let inputs: [(&str, &[usize]); 3] = [("x", &[2, 6, 8]), ("t", &[2, 5, 10]), ("bias", &[2, 2, 6, 5])];
    let weights: [(&str, &[usize]); 4] = [("wq", &[8, 8]), ("wk", &[10, 8]), ("wv", &[10, 8]), ("b", &[24])];
    let heads = |more: Vec<AttributeProto>| [vec![int("num_heads", 2)], more].concat();
    for (operands, attributes) in [
        (vec!["q", "k", "v"], heads(vec![])),
        (vec!["q", "k", "v"], heads(vec![float("scale", 0.3)])),
        (vec!["q", "k", "v", "b"], heads(vec![])),
        (vec!["q", "k", "v", "", "", "bias"], heads(vec![])),
    ] {
        let nodes = [q_k_v(), vec![node("MultiHeadAttention", &operands, &["y"], attributes)]].concat();
        let used = if operands.len() == 6 { &inputs[..] } else { &inputs[..2] };
        Case::new(used, &weights, nodes, &[("y", 3)]).is_the_same();
    }
    // Of a token to itself and those before it.
    let causal = vec![
        linear("wq", "x", "q"),
        linear("wk", "x", "k"),
        linear("wv", "x", "v"),
        node("MultiHeadAttention", &["q", "k", "v"], &["y"], heads(vec![int("unidirectional", 1)])),
    ];
    let square: [(&str, &[usize]); 3] = [("wq", &[8, 8]), ("wk", &[8, 8]), ("wv", &[8, 8])];
    Case::new(&inputs[..1], &square, causal, &[("y", 3)]).is_the_same();
    // With weights of its own.
    for attributes in [heads(vec![]), heads(vec![int("unidirectional", 1)]), heads(vec![float("scale", 0.2)])]
    {
        let nodes = vec![node("Attention", &["x", "w", "b"], &["y"], attributes)];
        Case::new(&inputs[..1], &[("w", &[8, 24]), ("b", &[24])], nodes, &[("y", 3)]).is_the_same();
    }
    // What cannot be told from keys of earlier tokens stays, and so does a mask.
    let past: [(&str, &[usize]); 3] = [("q", &[2, 6, 8]), ("k", &[2, 2, 5, 4]), ("v", &[2, 2, 5, 4])];
    let nodes = vec![node("MultiHeadAttention", &["q", "k", "v"], &["y"], heads(vec![]))];
    let kept = Case::new(&past, &[], nodes, &[("y", 3)]).graph(20).in_dialect(Dialect::Standard);
    assert_eq!(kept.custom_operators().len(), 1);
}

/// Packed by head, as optimisers for CUDA leave it: the CPU has no kernel for that.
#[test]
fn packed_attention() {
    let heads = || vec![int("num_heads", 2)];
    let apart = Case::new(
        &[("x", &[2, 6, 8])],
        &[("w", &[8, 24])],
        vec![
            node("MatMul", &["x", "w"], &["all"], vec![]),
            node("Reshape", &["all", "shape"], &["packed"], vec![]),
            node("MultiHeadAttention", &["packed"], &["y"], heads()),
        ],
        &[("y", 3)],
    );
    let case = Case { lists: vec![("shape", vec![0, 0, 2, 3, 4])], ..apart };
    let (x, w) = (case.data("x", &[2, 6, 8]), case.data("w", &[8, 24]));
    let all = |batch: usize, token: usize, column: usize| -> f64 {
        (0..8).map(|i| f64::from(x[(batch * 6 + token) * 8 + i]) * f64::from(w[i * 24 + column])).sum()
    };
    let mut expected = Vec::new();
    for batch in 0..2 {
        for token in 0..6 {
            for head in 0..2 {
                let at = |part: usize, i: usize| (head * 3 + part) * 4 + i;
                let score = |other: usize| {
                    let product: f64 =
                        (0..4).map(|i| all(batch, token, at(0, i)) * all(batch, other, at(1, i))).sum();
                    (product / 2.0).exp()
                };
                let scores: Vec<f64> = (0..6).map(score).collect();
                let sum: f64 = scores.iter().sum();
                expected.extend((0..4).map(|i| {
                    let mixed = (0..6).map(|other| scores[other] / sum * all(batch, other, at(2, i)));
                    mixed.sum::<f64>() as f32
                }));
            }
        }
    }
    for opset in OPSETS {
        close(&case.run(opset, Dialect::Standard)[0], &expected);
    }
}

/// `[batch, height, width, channels]` by groups, then scaled and shifted, with SiLU or without.
fn group_norm(
    x: &[f32],
    channels: usize,
    groups: usize,
    scale: &[f32],
    shift: &[f32],
    is_active: bool,
) -> Vec<f32> {
    let wide = channels / groups;
    let batches = 2;
    let cells = x.len() / batches / channels;
    let mut out = vec![0.0; x.len()];
    for batch in 0..batches {
        for group in 0..groups {
            let places: Vec<usize> = (0..cells)
                .flat_map(|cell| (0..wide).map(move |c| (batch * cells + cell) * channels + group * wide + c))
                .collect();
            let count = places.len() as f64;
            let mean = places.iter().map(|&at| f64::from(x[at])).sum::<f64>() / count;
            let variance = places.iter().map(|&at| (f64::from(x[at]) - mean).powi(2)).sum::<f64>() / count;
            for at in places {
                let channel = at % channels;
                let normal = (f64::from(x[at]) - mean) / (variance + 1e-5).sqrt();
                let y = normal * f64::from(scale[channel]) + f64::from(shift[channel]);
                out[at] = if is_active { y / (1.0 + (-y).exp()) } else { y } as f32;
            }
        }
    }
    out
}

#[test]
fn group_norms() {
    let shape: &[usize] = &[2, 3, 4, 8];
    let weights: [(&str, &[usize]); 3] = [("gamma", &[8]), ("beta", &[8]), ("bias", &[8])];
    for active in [0, 1] {
        let attributes = || {
            vec![int("groups", 4), int("activation", active), float("epsilon", 1e-5), int("channels_last", 1)]
        };
        let nodes = vec![node("GroupNorm", &["x", "gamma", "beta"], &["y"], attributes())];
        let case = Case::new(&[("x", shape)], &weights, nodes, &[("y", 4)]);
        let data = |name: &str| case.data(name, &[8]);
        let (gamma, beta, bias) = (data("gamma"), data("beta"), data("bias"));
        let x = case.data("x", shape);
        case.computes(&[group_norm(&x, 8, 4, &gamma, &beta, active == 1)]);

        // The sum with another image, with what the timestep adds to each channel, and with a bias.
        for (skip_shape, operands) in [
            (shape, &["x", "gamma", "beta", "s"][..]),
            (shape, &["x", "gamma", "beta", "s", "bias"]),
            (&[2, 8], &["x", "gamma", "beta", "s", "bias"]),
            (&[2, 1, 1, 8], &["x", "gamma", "beta", "s"]),
        ] {
            let nodes = vec![node("SkipGroupNorm", operands, &["y", "sum"], attributes())];
            let outputs = [("y", 4), ("sum", 4)];
            let case = Case::new(&[("x", shape), ("s", skip_shape)], &weights, nodes, &outputs);
            let skip = case.data("s", skip_shape);
            let sum: Vec<f32> = x
                .iter()
                .enumerate()
                .map(|(at, x)| {
                    let channel = at % 8;
                    let skip = if skip.len() == 16 { skip[at / 96 * 8 + channel] } else { skip[at] };
                    x + skip + if operands.len() == 5 { bias[channel] } else { 0.0 }
                })
                .collect();
            case.computes(&[group_norm(&sum, 8, 4, &gamma, &beta, active == 1), sum]);
        }
    }
}

#[test]
fn convolutions_of_channels_last() {
    let attributes =
        vec![ints("kernel_shape", &[3, 3]), ints("pads", &[1, 1, 1, 1]), ints("strides", &[1, 1])];
    let nodes = vec![node("NhwcConv", &["x", "w", "b"], &["y"], attributes)];
    let (shape, kernel): (&[usize], &[usize]) = (&[2, 4, 5, 3], &[6, 3, 3, 3]);
    let case = Case::new(&[("x", shape)], &[("w", kernel), ("b", &[6])], nodes, &[("y", 4)]);
    let (x, w, b) = (case.data("x", shape), case.data("w", kernel), case.data("b", &[6]));
    let mut expected = Vec::new();
    for batch in 0..2i64 {
        for row in 0..4i64 {
            for column in 0..5i64 {
                for (out, bias) in b.iter().enumerate() {
                    let mut sum = f64::from(*bias);
                    for (i, j) in (0..9).map(|at| (at / 3, at % 3)) {
                        let (r, c) = (row + i - 1, column + j - 1);
                        if (0..4).contains(&r) && (0..5).contains(&c) {
                            for channel in 0..3 {
                                let cell = ((batch * 4 + r) * 5 + c) as usize * 3 + channel;
                                let tap = (out * 9 + (i * 3 + j) as usize) * 3 + channel;
                                sum += f64::from(x[cell]) * f64::from(w[tap]);
                            }
                        }
                    }
                    expected.push(sum as f32);
                }
            }
        }
    }
    case.computes(&[expected]);
}

#[test]
fn sums_and_gates_of_biases() {
    let shape: &[usize] = &[2, 3, 8];
    let nodes = vec![node("BiasAdd", &["x", "b", "s"], &["y"], vec![])];
    let case = Case::new(&[("x", shape), ("s", shape)], &[("b", &[8])], nodes, &[("y", 3)]);
    let (x, s, b) = (case.data("x", shape), case.data("s", shape), case.data("b", &[8]));
    case.computes(&[(0..48).map(|at| x[at] + b[at % 8] + s[at]).collect()]);

    let nodes = vec![node("BiasSplitGelu", &["x", "b"], &["y"], vec![])];
    let case = Case::new(&[("x", shape)], &[("b", &[8])], nodes, &[("y", 3)]);
    let sum = |row: usize, column: usize| f64::from(x[row * 8 + column]) + f64::from(b[column]);
    // The error function by its series.
    let erf = |x: f64| {
        let (mut term, mut sum) = (x, x);
        for n in 1..60 {
            term *= -x * x / f64::from(n);
            sum += term / f64::from(2 * n + 1);
        }
        sum * 2.0 / std::f64::consts::PI.sqrt()
    };
    let gelu = |x: f64| 0.5 * x * (1.0 + erf(x / 2f64.sqrt()));
    let expected = (0..24).map(|at| (sum(at / 4, at % 4) * gelu(sum(at / 4, at % 4 + 4))) as f32);
    case.computes(&[expected.collect()]);
}

/// What a provider's documents say of it.
#[derive(Deserialize)]
struct Listed {
    source: String,
    version: String,
    takes: BTreeSet<String>,
    /// What it does not take, of the graphs here, and why that is as it is.
    left: BTreeMap<String, String>,
}

fn derived() -> Vec<(&'static str, Graph)> {
    let sdxl = r#"{"addition_embed_type": "text_time", "addition_time_embed_dim": 256, "cross_attention_dim": 2048,
        "projection_class_embeddings_input_dim": 2816, "block_out_channels": [320, 640, 1280],
        "attention_head_dim": [5, 10, 20], "transformer_layers_per_block": [1, 2, 10], "time_cond_proj_dim": 256,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"]}"#;
    let unet = |json: &str| unet::Config::parse("unet", json.as_bytes()).unwrap();
    let (kl, tiny) = (autoencoder_kl::Config::default(), autoencoder_tiny::Config::default());
    let gelu = clip::Config { hidden_act: clip::Activation::Gelu, ..clip::Config::default() };
    vec![
        ("text encoder", clip::Config::default().graph(clip::States::Last, false).unwrap()),
        ("text encoder that pools", gelu.graph(clip::States::Penultimate, true).unwrap()),
        ("unet of SD 1", unet("{}").graph().unwrap()),
        ("unet of SDXL", unet(sdxl).for_text(1280).graph().unwrap()),
        (
            "unet of the upscaler",
            unet(r#"{"num_class_embeds": 1000, "center_input_sample": true}"#).graph().unwrap(),
        ),
        ("unet of unCLIP", unet(r#"{"class_embed_type": "timestep"}"#).graph().unwrap()),
        ("vae encoder", kl.encoder().unwrap()),
        ("vae decoder", kl.decoder().unwrap()),
        ("tiny vae encoder", tiny.encoder().unwrap()),
        ("tiny vae decoder", tiny.decoder().unwrap()),
    ]
}

/// The operators of a graph by their full names.
fn operators(graph: &Graph) -> BTreeSet<String> {
    let model = ModelProto::decode(&graph.encode()[..]).unwrap();
    let name = |node: &NodeProto| match node.domain() {
        "" => node.op_type().to_owned(),
        domain => format!("{domain}.{}", node.op_type()),
    };
    model.graph.unwrap().node.iter().map(name).collect()
}

/// Which of these a provider does not take, and of which graphs.
fn left<'a>(
    takes: &BTreeSet<String>,
    graphs: &'a [(&str, BTreeSet<String>)],
) -> BTreeMap<&'a str, Vec<&'a str>> {
    let mut found: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (graph, operators) in graphs {
        for operator in operators.iter().filter(|operator| !takes.contains(*operator)) {
            found.entry(operator).or_default().push(graph);
        }
    }
    found
}

#[test]
fn providers_take_the_derived_graphs() {
    let listed: BTreeMap<String, Listed> =
        serde_json::from_str(include_str!("golden/operators.json")).unwrap();
    let graphs = derived();
    let mut unlike = Vec::new();
    for (kind, about) in
        ProviderKind::built_in().filter(|(kind, _)| !matches!(kind, ProviderKind::Cpu | ProviderKind::Cuda))
    {
        let Listed { source, version, takes, left: known } =
            listed.get(about.name).unwrap_or_else(|| panic!("{}: no list", about.name));
        assert!(source.starts_with("https://") && !version.is_empty(), "{}", about.name);
        let graphs: Vec<(&str, BTreeSet<String>)> = graphs
            .iter()
            .map(|(name, graph)| (*name, operators(&graph.clone().in_dialect(kind.dialect()))))
            .collect();
        let found = left(takes, &graphs);
        for (operator, of) in &found {
            println!("{} {version} ({}): lacks {operator} of {}", about.name, kind.dialect(), of.join(", "));
        }
        let found: BTreeSet<&str> = found.into_keys().collect();
        let known: BTreeSet<&str> = known.keys().map(String::as_str).collect();
        if found != known {
            unlike.push(format!("{}: expected {known:?}, got {found:?}", about.name));
        }
    }
    assert!(unlike.is_empty(), "operators that are not taken:\n{}", unlike.join("\n"));

    // A new operator is seen.
    let mut planted = vec![("planted", BTreeSet::from(["Einsum".to_owned()]))];
    planted.push(("taken", BTreeSet::from(["Relu".to_owned()])));
    let found = left(&BTreeSet::from(["Relu".to_owned()]), &planted);
    assert_eq!(found, BTreeMap::from([("Einsum", vec!["planted"])]));
}

/// How many kernels of the U-Net of SD 1 multiply, and how many nodes it has: more is slower to open and to run.
#[test]
fn nodes_of_the_unet() {
    let graph = &derived()[2].1;
    let nodes = |dialect: Dialect| {
        let model = ModelProto::decode(&graph.clone().in_dialect(dialect).encode()[..]).unwrap();
        let nodes = model.graph.unwrap().node;
        let count = |name: &str| nodes.iter().filter(|node| node.op_type() == name).count();
        (nodes.len(), ["Conv", "MatMul", "FusedMatMul", "Gemm", "MultiHeadAttention"].map(count))
    };
    assert_eq!(nodes(Dialect::Cpu), (1151, [66, 0, 216, 0, 32]));
    // Attention is two products there.
    assert_eq!(nodes(Dialect::Standard), (2198, [66, 64, 0, 216, 0]));
}

/// Fused operators are what the CPU, CUDA and DirectML are fast at, and none of the others has them.
#[test]
fn dialects_of_providers() {
    for (name, graph) in derived() {
        let cpu = operators(&graph.clone().in_dialect(Dialect::Cpu));
        assert_eq!(cpu, operators(&graph), "{name}");
        assert_eq!(graph.clone().in_dialect(Dialect::Cpu).encode(), graph.encode(), "{name}");
        assert_eq!(graph.clone().in_dialect(Dialect::Contrib).encode(), graph.encode(), "{name}");
        let standard = graph.clone().in_dialect(Dialect::Standard);
        assert!(standard.custom_operators().is_empty(), "{name}: {:?}", standard.custom_operators());
        // What is standard already stays as it is.
        assert_eq!(standard.clone().in_dialect(Dialect::Standard).encode(), standard.encode(), "{name}");
    }
    let dialect = |name: &str| {
        ProviderKind::built_in()
            .find(|(_, about)| about.name == name)
            .map(|(kind, _)| kind.dialect())
            .unwrap()
    };
    for (name, expected) in [
        ("cpu", Dialect::Cpu),
        ("cuda", Dialect::Contrib),
        ("directml", Dialect::Contrib),
        ("openvino", Dialect::Standard),
        ("tensorrt", Dialect::Standard),
        ("coreml", Dialect::Standard),
        ("qnn", Dialect::Standard),
    ] {
        assert_eq!(dialect(name), expected, "{name}");
    }
    let plugin = ProviderKind::Plugin { file: "libx.so".into(), name: None };
    assert_eq!(plugin.dialect(), Dialect::Standard);
}
