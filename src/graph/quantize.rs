//! Quantisation of a graph: large weights become integers with scales, and the nodes that use them what can read those.
//! It knows which layout each kernel wants, and no number.
//!
//! - A linear layer (`FusedMatMul` with `transB`) becomes `com.microsoft.MatMulNBits`: 8 or 4 bits per weight, one scale
//!   for every [`BLOCK`] weights along the input, which is padded with zeros to whole blocks. The kernel computes with
//!   the integers.
//! - A convolution keeps its node; its weight becomes 8-bit integers, at 4 bits too, with one scale per output channel,
//!   which a `DequantizeLinear` at the very front of the graph turns into floats for the time of a run. First, because
//!   ONNX Runtime then frees what it can before it allocates activations.
//! - Everything else stays as it is: embeddings, norms, biases, and weights of fewer than [`LEAST_ELEMENTS`], which are
//!   the ends of networks, where an error does the most harm and a byte the least.

use std::collections::{BTreeMap, HashSet};

use super::{
    AttributeProto, Graph, GraphProto, MICROSOFT, NodeProto, OPEN_LOCATION, Parameter, TensorProto, entry,
    import_microsoft, integer, onnx_code, proto,
};
use crate::Error;
use crate::weights::Dtype;

/// Weights that share a scale in a linear layer.
pub const BLOCK: usize = 32;
/// The least elements that a quantised weight has.
pub const LEAST_ELEMENTS: usize = 16 << 10;
/// The first version of the standard operators whose `DequantizeLinear` takes a scale per channel.
const LEAST_OPSET: i64 = 13;
/// How `MatMulNBits` computes: with activations rounded to 8-bit integers, which is faster than 32-bit floats.
const ACCURACY_LEVEL: i64 = 4;

/// How long the integers of linear layers are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bits {
    /// 16 levels.
    Four,
    /// 256 levels.
    Eight,
}

impl Bits {
    /// How many there are.
    pub const fn count(self) -> usize {
        match self {
            Self::Four => 4,
            Self::Eight => 8,
        }
    }
}

/// A parameter that stands for (part of) a float weight.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quantized {
    /// The weight's name.
    pub source: String,
    /// Which numbers it holds.
    pub form: Form,
}

/// Which numbers a parameter holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// `[out, blocks, bytes]`: the integers of a matrix `[out, in]`, the lower of two in a byte first, above 0.
    BlockCodes(Bits),
    /// `[out, blocks]`: their scales.
    BlockScales(Bits),
    /// As the weight: 8-bit integers with a sign.
    ChannelCodes,
    /// `[out]`: their scales.
    ChannelScales,
}

impl Graph {
    /// The graph with quantised weights, and what its new parameters hold, by name.
    ///
    /// # Errors
    /// Those of [`Graph::decode`].
    pub fn quantize(&self, bits: Bits) -> Result<(Self, BTreeMap<String, Quantized>), Error> {
        let Self { name, model, graph, parameters, .. } = self;
        let (mut model, mut graph) = (model.clone(), graph.clone());
        let is_standard = |domain: &str| domain.is_empty() || domain == "ai.onnx";
        let opset = model.opset_import.iter().find(|import| is_standard(import.domain()));
        let can_dequantize = opset.is_some_and(|import| import.version() >= LEAST_OPSET);

        let mut made = BTreeMap::new();
        let (mut gone, mut new, mut dequantizers) = (HashSet::new(), Vec::new(), Vec::new());
        let known: HashSet<&str> = self.graph.initializer.iter().map(TensorProto::name).collect();
        for parameter in parameters {
            let elements = parameter.shape.iter().try_fold(1usize, |all, &size| all.checked_mul(size));
            let is_large = elements.is_some_and(|elements| elements >= LEAST_ELEMENTS);
            if parameter.dtype != Dtype::F32 || !is_large {
                continue;
            }
            let source = &parameter.name;
            let users = users(&self.graph, source);
            let is_output = self.graph.output.iter().any(|output| output.name() == source);
            if users.is_empty() || is_output {
                continue;
            }
            let mut put = |suffix: &str, dtype: Dtype, shape: &[usize], form: Form| {
                let name = format!("{source}.{suffix}");
                new.push(open(&name, dtype, shape));
                made.insert(name.clone(), Quantized { source: source.clone(), form });
                name
            };
            let is_new = |suffix: &str| !known.contains(format!("{source}.{suffix}").as_str());
            match parameter.shape[..] {
                [out, inputs] if inputs >= BLOCK && users.iter().all(|node| is_linear(node, source)) => {
                    let suffix = format!("q{}", bits.count());
                    if !is_new(&suffix) || !is_new("scales") {
                        continue;
                    }
                    let blocks = inputs.div_ceil(BLOCK);
                    let bytes = BLOCK * bits.count() / 8;
                    let codes = put(&suffix, Dtype::U8, &[out, blocks, bytes], Form::BlockCodes(bits));
                    let scales = put("scales", Dtype::F32, &[out, blocks], Form::BlockScales(bits));
                    for node in graph.node.iter_mut().filter(|node| node.input.contains(source)) {
                        multiply(node, parameter, bits, &codes, &scales);
                    }
                }
                [out, ..] if can_dequantize && users.iter().all(|node| is_convolution(node, source)) => {
                    if !is_new("q8") || !is_new("scales") {
                        continue;
                    }
                    let codes = put("q8", Dtype::I8, &parameter.shape, Form::ChannelCodes);
                    let scales = put("scales", Dtype::F32, &[out], Form::ChannelScales);
                    dequantizers.push(dequantize(codes, scales, source));
                }
                _ => continue,
            }
            gone.insert(source.as_str());
        }

        graph.node.splice(0..0, dequantizers);
        graph.initializer.retain(|tensor| !gone.contains(tensor.name()));
        // Before IR version 4 a model listed its initializers among its inputs.
        graph.input.retain(|input| !gone.contains(input.name()));
        graph.initializer.extend(new);
        import_microsoft(&mut model);
        let mut quantized = Self::of(name.clone(), model, graph)?;
        for parameter in &mut quantized.parameters {
            let same = parameters.iter().find(|old| old.name == parameter.name);
            parameter.transposed = same.is_some_and(|old| old.transposed);
        }
        Ok((quantized, made))
    }
}

/// The nodes that use a value, and those that may: a graph within a node sees all values around it.
pub(super) fn users<'a>(graph: &'a GraphProto, value: &str) -> Vec<&'a NodeProto> {
    let has_graph = |node: &NodeProto| node.attribute.iter().any(|a| a.g.is_some() || !a.graphs.is_empty());
    let uses = |node: &&NodeProto| node.input.iter().any(|input| input == value) || has_graph(node);
    graph.node.iter().filter(uses).collect()
}

/// Whether a node is a product with the transpose of `weight`, and nothing else.
fn is_linear(node: &NodeProto, weight: &str) -> bool {
    let is_plain = |attribute: &AttributeProto| match attribute.name() {
        "transB" => attribute.i() == 1,
        "alpha" => attribute.f() == 1.0,
        _ => attribute.i() == 0,
    };
    (node.op_type(), node.domain()) == ("FusedMatMul", MICROSOFT)
        && matches!(&node.input[..], [x, by] if x != weight && by == weight)
        && node.attribute.iter().any(|attribute| attribute.name() == "transB")
        && node.attribute.iter().all(is_plain)
}

fn is_convolution(node: &NodeProto, weight: &str) -> bool {
    let others = node.input.iter().enumerate().filter(|(index, _)| *index != 1);
    (node.op_type(), node.domain()) == ("Conv", "")
        && node.input.get(1).is_some_and(|input| input == weight)
        && others.into_iter().all(|(_, input)| input != weight)
}

/// Makes a linear layer one with quantised weights.
fn multiply(node: &mut NodeProto, weight: &Parameter, bits: Bits, codes: &str, scales: &str) {
    let attributes = [
        ("N", weight.shape[0] as i64),
        ("K", weight.shape[1] as i64),
        ("bits", bits.count() as i64),
        ("block_size", BLOCK as i64),
        ("accuracy_level", ACCURACY_LEVEL),
    ];
    node.op_type = Some("MatMulNBits".into());
    node.input.truncate(1);
    node.input.extend([codes.to_owned(), scales.to_owned()]);
    node.attribute = attributes.map(|(name, value)| integer(name, value)).into();
}

/// A node that makes floats of the integers of a convolution.
fn dequantize(codes: String, scales: String, weight: &str) -> NodeProto {
    NodeProto {
        name: Some(format!("{weight}/dequantize")),
        op_type: Some("DequantizeLinear".into()),
        input: vec![codes, scales],
        output: vec![weight.into()],
        attribute: vec![integer("axis", 0)],
        ..Default::default()
    }
}

/// A parameter without data.
fn open(name: &str, dtype: Dtype, shape: &[usize]) -> TensorProto {
    TensorProto {
        name: Some(name.into()),
        dims: shape.iter().map(|&size| size as i64).collect(),
        data_type: Some(onnx_code(dtype)),
        data_location: Some(proto::EXTERNAL),
        external_data: vec![entry("location", OPEN_LOCATION.into())],
        ..Default::default()
    }
}
