//! Quantisation of a graph: large weights become integers with scales, and the nodes that use them what can read those.
//! It knows which layout each kernel wants, and no number. Where activations become integers too is in [`super::int8`].
//!
//! - A linear layer (`FusedMatMul` with `transB`) becomes `com.microsoft.MatMulNBits`: 8 or 4 bits per weight, one scale
//!   for every block of weights along the input, which is padded with zeros to whole blocks. At 8 bits blocks are as long
//!   as 128, and the activations become integers too (accuracy level 4: up to 1.3 times as fast as 32-bit floats where
//!   level 0 takes up to twice their time; 0.6 % of error in one product). At 4 bits blocks have 32, and activations stay
//!   floats (level 0: as fast as 32-bit floats, where level 4 takes 1.4 times as long, and exact).
//! - A convolution keeps its node; its weight becomes 8-bit integers, at 4 bits too, with one scale per output channel,
//!   which a `DequantizeLinear` at the very front of the graph turns into floats for the time of a run. First, because
//!   ONNX Runtime then frees what it can before it allocates activations.
//! - Everything else stays as it is: embeddings, norms, biases, and weights of fewer than [`LEAST_ELEMENTS`], which are
//!   the ends of networks, where an error does the most harm and a byte the least.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::dtype::onnx_code;
use super::node::{MICROSOFT, entry, import_microsoft, integer, opset};
use super::proto::{self, AttributeProto, GraphProto, NodeProto, TensorProto};
use super::{Graph, OPEN_LOCATION, Parameter};
use crate::weights::Dtype;
use crate::{Error, ErrorKind};

/// The lengths of blocks that the kernel is fast at, the longest first; a linear layer with fewer inputs stays as it is.
const BLOCKS: [usize; 3] = [128, 64, 32];
/// The least elements that a quantised weight has.
pub const LEAST_ELEMENTS: usize = 16 << 10;
/// The first version of the standard operators whose `DequantizeLinear` takes a scale per channel.
const LEAST_OPSET: i64 = 13;

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

    /// How `MatMulNBits` computes: 4 rounds activations to 8-bit integers, 0 does not.
    const fn accuracy_level(self) -> i64 {
        match self {
            Self::Four => 0,
            Self::Eight => 4,
        }
    }
}

/// How the matrix of a linear layer is cut: the integers of one block share a scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Blocks {
    /// How long the integers are.
    pub bits: Bits,
    /// How many weights a block has.
    pub len: usize,
}

impl Blocks {
    /// Those of a matrix with this many inputs, if it has enough of them: of 8-bit integers the longest that need no
    /// padding.
    fn of(bits: Bits, inputs: usize) -> Option<Self> {
        let [.., shortest] = BLOCKS;
        let longest = BLOCKS.into_iter().find(|len| inputs.is_multiple_of(*len)).unwrap_or(shortest);
        let len = if bits == Bits::Eight { longest } else { shortest };
        (inputs >= shortest).then_some(Self { bits, len })
    }

    /// The size of the integers of one block.
    pub const fn len_bytes(self) -> usize {
        self.len * self.bits.count() / 8
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
    BlockCodes(Blocks),
    /// `[out, blocks]`: their scales.
    BlockScales(Blocks),
    /// As the weight: integers with a sign.
    ChannelCodes(WeightBits),
    /// `[out]`: their scales.
    ChannelScales(WeightBits),
    /// `[in, out]`: integers with a sign, a column for each output channel; see [`super::int8`].
    ColumnCodes(Columns),
    /// `[out]`: their scales.
    ColumnScales(WeightBits),
}

/// How long the integers of weights are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "u8", into = "u8")]
pub enum WeightBits {
    /// From -63 to 63: without VNNI, x86-64 CPUs add two products of 8-bit integers in 16 bits, and stop at 32767.
    Seven,
    /// From -127 to 127.
    Eight,
}

impl WeightBits {
    /// How many there are.
    pub const fn count(self) -> usize {
        match self {
            Self::Seven => 7,
            Self::Eight => 8,
        }
    }

    /// The longest whose products the CPU of this machine adds up without loss.
    pub fn of_this_cpu() -> Self {
        #[cfg(target_arch = "x86_64")]
        if !is_x86_feature_detected!("avx512vnni") && !is_x86_feature_detected!("avxvnni") {
            return Self::Seven;
        }
        Self::Eight
    }

    /// The largest integer.
    pub const fn most(self) -> i32 {
        (1 << (self.count() - 1)) - 1
    }
}

impl fmt::Display for WeightBits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.count())
    }
}

impl FromStr for WeightBits {
    type Err = Error;

    /// Reads what `Display` writes; [`ErrorKind::Usage`] for anything else.
    fn from_str(text: &str) -> Result<Self, Error> {
        let bits = [Self::Seven, Self::Eight].into_iter().find(|bits| bits.to_string() == text);
        bits.ok_or_else(|| {
            Error::new(ErrorKind::Usage, format!("weight bits: expected 7 or 8, got {text:?}"))
        })
    }
}

impl TryFrom<u8> for WeightBits {
    type Error = Error;

    fn try_from(count: u8) -> Result<Self, Error> {
        count.to_string().parse()
    }
}

impl From<WeightBits> for u8 {
    fn from(bits: WeightBits) -> Self {
        bits.count() as u8
    }
}

/// How the weight of a layer lies in columns, one for each output channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Columns {
    /// How long the integers are.
    pub bits: WeightBits,
    /// How many places the kernel of a convolution has, and a linear layer 1: of each the column has all input channels,
    /// where the weight has of each input channel all places.
    pub taps: usize,
}

impl Graph {
    /// The graph with quantised weights, and what its new parameters hold, by name.
    ///
    /// # Errors
    /// Those of [`Graph::decode`].
    pub fn quantize(&self, bits: Bits) -> Result<(Self, BTreeMap<String, Quantized>), Error> {
        let Self { name, model, graph, parameters, .. } = self;
        let (mut model, mut graph) = (model.clone(), graph.clone());
        let can_dequantize = opset(&model) >= LEAST_OPSET;

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
                [out, inputs] if users.iter().all(|node| is_linear(node, source)) => {
                    let suffix = format!("q{}", bits.count());
                    let Some(blocks) = Blocks::of(bits, inputs) else { continue };
                    if !is_new(&suffix) || !is_new("scales") {
                        continue;
                    }
                    let count = inputs.div_ceil(blocks.len);
                    let codes = [out, count, blocks.len_bytes()];
                    let codes = put(&suffix, Dtype::U8, &codes, Form::BlockCodes(blocks));
                    let scales = put("scales", Dtype::F32, &[out, count], Form::BlockScales(blocks));
                    for node in graph.node.iter_mut().filter(|node| node.input.contains(source)) {
                        multiply(node, parameter, blocks, &codes, &scales);
                    }
                }
                [out, ..] if can_dequantize && users.iter().all(|node| is_convolution(node, source)) => {
                    if !is_new("q8") || !is_new("scales") {
                        continue;
                    }
                    let codes = put("q8", Dtype::I8, &parameter.shape, Form::ChannelCodes(WeightBits::Eight));
                    let scales = put("scales", Dtype::F32, &[out], Form::ChannelScales(WeightBits::Eight));
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
        quantized.turn_as(parameters);
        Ok((quantized, made))
    }

    /// Notes which parameters are turned: those that are so in the graph from which this one was made.
    pub(super) fn turn_as(&mut self, parameters: &[Parameter]) {
        for parameter in &mut self.parameters {
            let same = parameters.iter().find(|old| old.name == parameter.name);
            parameter.transposed = same.is_some_and(|old| old.transposed);
        }
    }
}

/// The nodes that use a value, and those that may.
pub(super) fn users<'a>(graph: &'a GraphProto, value: &str) -> Vec<&'a NodeProto> {
    graph.node.iter().filter(|node| uses(node, value)).collect()
}

/// Whether a node uses a value, or may: a graph within a node sees all values around it.
pub(super) fn uses(node: &NodeProto, value: &str) -> bool {
    let has_graph = |node: &NodeProto| node.attribute.iter().any(|a| a.g.is_some() || !a.graphs.is_empty());
    node.input.iter().any(|input| input == value) || has_graph(node)
}

/// Whether a node is a product with the transpose of `weight`, and nothing else.
pub(super) fn is_linear(node: &NodeProto, weight: &str) -> bool {
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

pub(super) fn is_convolution(node: &NodeProto, weight: &str) -> bool {
    let others = node.input.iter().enumerate().filter(|(index, _)| *index != 1);
    (node.op_type(), node.domain()) == ("Conv", "")
        && node.input.get(1).is_some_and(|input| input == weight)
        && others.into_iter().all(|(_, input)| input != weight)
}

/// Makes a linear layer one with quantised weights.
pub(super) fn multiply(node: &mut NodeProto, weight: &Parameter, blocks: Blocks, codes: &str, scales: &str) {
    let attributes = [
        ("N", weight.shape[0] as i64),
        ("K", weight.shape[1] as i64),
        ("bits", blocks.bits.count() as i64),
        ("block_size", blocks.len as i64),
        ("accuracy_level", blocks.bits.accuracy_level()),
    ];
    node.op_type = Some("MatMulNBits".into());
    node.input.truncate(1);
    node.input.extend([codes.to_owned(), scales.to_owned()]);
    node.attribute = attributes.map(|(name, value)| integer(name, value)).into();
}

/// A node that makes floats of the integers of a weight with a scale for each output channel.
pub(super) fn dequantize(codes: String, scales: String, weight: &str) -> NodeProto {
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
pub(super) fn open(name: &str, dtype: Dtype, shape: &[usize]) -> TensorProto {
    TensorProto {
        name: Some(name.into()),
        dims: shape.iter().map(|&size| size as i64).collect(),
        data_type: Some(onnx_code(dtype)),
        data_location: Some(proto::EXTERNAL),
        external_data: vec![entry("location", OPEN_LOCATION.into())],
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;
    use crate::graph::proto::{
        Dimension, DimensionValue, ModelProto, OperatorSetIdProto, TensorShapeProto, TensorType, TypeProto,
        TypeValue, ValueInfoProto,
    };

    fn value(name: &str) -> ValueInfoProto {
        let dim = vec![Dimension { value: Some(DimensionValue::DimValue(1)), ..Default::default() }];
        let tensor = TensorType { elem_type: Some(1), shape: Some(TensorShapeProto { dim }) };
        let kind = TypeProto { value: Some(TypeValue::TensorType(tensor)), ..Default::default() };
        ValueInfoProto { name: Some(name.into()), r#type: Some(kind), ..Default::default() }
    }

    fn node(op: &str, inputs: &[&str], output: &str) -> NodeProto {
        let is_linear = op == "FusedMatMul";
        NodeProto {
            op_type: Some(op.into()),
            domain: is_linear.then(|| MICROSOFT.into()),
            input: inputs.iter().map(ToString::to_string).collect(),
            output: vec![output.into()],
            attribute: if is_linear { vec![integer("transB", 1)] } else { Vec::new() },
            ..Default::default()
        }
    }

    /// A network with one of everything.
    fn model() -> ModelProto {
        let parameters: [(&str, &[usize]); 8] = [
            ("linear.weight", &[512, 96]),
            ("linear.bias", &[512]),
            ("twice.weight", &[128, 128]),
            ("conv.weight", &[64, 64, 3, 3]),
            ("conv_out.weight", &[4, 64, 3, 3]),
            ("embedding.weight", &[1000, 128]),
            ("tied.weight", &[1000, 128]),
            ("narrow.weight", &[1024, 24]),
        ];
        let graph = GraphProto {
            node: vec![
                node("FusedMatMul", &["x", "linear.weight"], "a"),
                node("Add", &["a", "linear.bias"], "b"),
                node("FusedMatMul", &["b", "twice.weight"], "c"),
                node("FusedMatMul", &["c", "twice.weight"], "d"),
                node("Conv", &["d", "conv.weight", "linear.bias"], "e"),
                node("Conv", &["e", "conv_out.weight"], "f"),
                node("Gather", &["embedding.weight", "f"], "g"),
                node("Gather", &["tied.weight", "g"], "h"),
                node("FusedMatMul", &["h", "tied.weight"], "i"),
                node("FusedMatMul", &["i", "narrow.weight"], "y"),
            ],
            initializer: parameters.map(|(name, shape)| open(name, Dtype::F32, shape)).into(),
            input: vec![value("x")],
            output: vec![value("y")],
            ..Default::default()
        };
        let opset = OperatorSetIdProto { domain: None, version: Some(13) };
        ModelProto { graph: Some(graph), opset_import: vec![opset], ..Default::default() }
    }

    fn quantized(model: &ModelProto, bits: Bits) -> (Graph, BTreeMap<String, Quantized>) {
        Graph::decode("unet", &model.encode_to_vec()).unwrap().quantize(bits).unwrap()
    }

    /// The weights that become integers when a model is changed.
    fn sources(change: impl FnOnce(&mut ModelProto, &mut GraphProto)) -> Vec<String> {
        let mut model = model();
        let mut graph = model.graph.take().unwrap();
        change(&mut model, &mut graph);
        model.graph = Some(graph);
        let (_, made) = quantized(&model, Bits::Eight);
        let mut sources: Vec<String> = made.into_values().map(|quantized| quantized.source).collect();
        sources.sort();
        sources.dedup();
        sources
    }

    #[test]
    fn large_linear_layers_and_convolutions_become_integers() {
        let parameters = |graph: &Graph| {
            let parameters = graph.parameters().iter();
            let mut lines: Vec<String> =
                parameters.map(|p| format!("{} {} {:?}", p.name, p.dtype, p.shape)).collect();
            lines.sort();
            lines
        };
        let (four, made) = quantized(&model(), Bits::Four);
        let others = [
            "conv.weight.q8 I8 [64, 64, 3, 3]",
            "conv.weight.scales F32 [64]",
            "conv_out.weight F32 [4, 64, 3, 3]",
            "embedding.weight F32 [1000, 128]",
            "linear.bias F32 [512]",
            "narrow.weight F32 [1024, 24]",
            "tied.weight F32 [1000, 128]",
        ];
        let with = |linear: [&'static str; 4]| {
            let mut all = [&others[..], &linear].concat();
            all.sort();
            all
        };
        let fours = with([
            "linear.weight.q4 U8 [512, 3, 16]",
            "linear.weight.scales F32 [512, 3]",
            "twice.weight.q4 U8 [128, 4, 16]",
            "twice.weight.scales F32 [128, 4]",
        ]);
        assert_eq!(parameters(&four), fours);
        let eights = with([
            "linear.weight.q8 U8 [512, 3, 32]",
            "linear.weight.scales F32 [512, 3]",
            "twice.weight.q8 U8 [128, 1, 128]",
            "twice.weight.scales F32 [128, 1]",
        ]);
        assert_eq!(parameters(&quantized(&model(), Bits::Eight).0), eights);
        let blocks = Blocks { bits: Bits::Four, len: 32 };
        let codes = Quantized { source: "linear.weight".into(), form: Form::BlockCodes(blocks) };
        assert_eq!(made["linear.weight.q4"], codes);
        assert_eq!(made["conv.weight.scales"].form, Form::ChannelScales(WeightBits::Eight));
        assert_eq!(made.len(), 6);
    }

    #[test]
    fn nodes_take_the_integers() {
        let (graph, _) = quantized(&model(), Bits::Eight);
        let nodes = &graph.graph.node;
        let operators: Vec<&str> = nodes.iter().map(NodeProto::op_type).collect();
        assert_eq!(operators[..4], ["DequantizeLinear", "MatMulNBits", "Add", "MatMulNBits"]);
        assert_eq!(
            operators[4..],
            ["MatMulNBits", "Conv", "Conv", "Gather", "Gather", "FusedMatMul", "FusedMatMul"]
        );
        assert_eq!(nodes[0].input, ["conv.weight.q8", "conv.weight.scales"]);
        assert_eq!((&nodes[0].output[0][..], nodes[0].attribute[0].i()), ("conv.weight", 0));
        assert_eq!(nodes[1].input, ["x", "linear.weight.q8", "linear.weight.scales"]);
        assert_eq!(nodes[1].output, ["a"]);
        let attributes: Vec<_> = nodes[1].attribute.iter().map(|a| (a.name(), a.i())).collect();
        let expected = [("N", 512), ("K", 96), ("bits", 8), ("block_size", 32), ("accuracy_level", 4)];
        assert_eq!(attributes, expected);
        assert!(graph.model.opset_import.iter().any(|import| import.domain() == MICROSOFT));
        // It is a graph like any other.
        assert_eq!(Graph::decode("unet", &graph.encode()).unwrap().parameters(), graph.parameters());
    }

    #[test]
    fn what_is_not_just_a_layer_stays() {
        let all = ["conv.weight", "linear.weight", "twice.weight"];
        assert_eq!(sources(|_, _| {}), all);
        let but = |name: &str| all.into_iter().filter(|other| *other != name).collect::<Vec<_>>();
        let alpha =
            |value| AttributeProto { name: Some("alpha".into()), f: Some(value), ..Default::default() };
        assert_eq!(sources(|_, graph| graph.node[0].attribute.push(alpha(1.0))), all);
        assert_eq!(sources(|_, graph| graph.node[0].attribute.push(alpha(0.5))), but("linear.weight"));
        assert_eq!(
            sources(|_, graph| graph.node[0].attribute.push(integer("transA", 1))),
            but("linear.weight")
        );
        assert_eq!(sources(|_, graph| graph.node[0].attribute.clear()), but("linear.weight"));
        assert_eq!(sources(|_, graph| graph.node[0].input.swap(0, 1)), but("linear.weight"));
        assert_eq!(sources(|_, graph| graph.node[4].input[0] = "conv.weight".into()), but("conv.weight"));
        assert_eq!(sources(|_, graph| graph.output.push(value("conv.weight"))), but("conv.weight"));
        assert_eq!(sources(|_, graph| graph.initializer[0].data_type = Some(10)), but("linear.weight"));
        let taken = |name| {
            move |_: &mut ModelProto, graph: &mut GraphProto| {
                graph.initializer.push(open(name, Dtype::F32, &[1]));
            }
        };
        assert_eq!(sources(taken("linear.weight.q8")), but("linear.weight"));
        assert_eq!(sources(taken("conv.weight.scales")), but("conv.weight"));
        assert_eq!(sources(|model, _| model.opset_import[0].version = Some(12)), but("conv.weight"));
        let body = AttributeProto { g: Some(GraphProto::default()), ..Default::default() };
        assert_eq!(sources(|_, graph| graph.node[1].attribute.push(body)), [""; 0]);
    }

    #[test]
    fn what_stays_lies_as_it_lay() {
        let mut graph = Graph::decode("unet", &model().encode_to_vec()).unwrap();
        graph
            .parameters
            .iter_mut()
            .for_each(|parameter| parameter.transposed = parameter.name == "tied.weight");
        let (graph, _) = graph.quantize(Bits::Four).unwrap();
        for parameter in graph.parameters() {
            assert_eq!(parameter.is_transposed(), parameter.name == "tied.weight", "{}", parameter.name);
        }
    }

    #[test]
    fn absurd_shapes_stay() {
        let absurd = |_: &mut ModelProto, graph: &mut GraphProto| {
            graph.initializer[0].dims = vec![i64::MAX, i64::MAX];
            graph.initializer[3].dims = vec![0, 64, 3, 3];
        };
        assert_eq!(sources(absurd), ["twice.weight"]);
    }
}
