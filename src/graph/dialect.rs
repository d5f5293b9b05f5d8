//! Dialects: which of ONNX Runtime's own operators a graph may have, and the standard ones that take the place of others.
//! It knows what each of them computes, and nothing of sessions; a provider's dialect is the engine's to choose.
//!
//! Graphs are built in the CPU's dialect, and ready-made ones come in any; one rewrite serves both, and the built-in
//! model and packed ones, too. It needs no shapes: what it must know of a value (its rank, its width) follows from the
//! weights that it was multiplied by. An operator of which that is not known stays, for the provider to refuse.
//!
//! Standard forms, each of which OpenVINO 2025.4, TensorRT 10.15, CoreML and QNN 2.7 list:
//! - attention: products of 4 dimensions, the scale right before `Softmax` (QNN makes one operator of both);
//! - a linear layer: `Gemm` with `transB`, which takes the weight as PyTorch stores it, so that no optimiser makes a
//!   turned copy of it (of SD 1.5 in f32 these were 3.4 GB with OpenVINO);
//! - SiLU and QuickGELU: `x * Sigmoid(alpha * x)`;
//! - group norm: `InstanceNormalization` of whole groups.

use std::collections::{HashMap, HashSet};
use std::fmt;

use super::dtype::onnx_code;
use super::fixed::fold_sizes;
use super::node::{MICROSOFT, integer, opset};
use super::proto::{self, AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto};
use super::{BoundGraph, Dim, Graph, Port};
use crate::weights::Dtype;

/// What a masked score becomes; after softmax it is nothing, and every type of floats has it.
const MASKED: f32 = -10_000.0;
/// The epsilon of ONNX Runtime's norms that state none.
const SKIP_EPSILON: f32 = 1e-12;
const GROUP_EPSILON: f32 = 1e-5;
/// The alpha of a `QuickGelu` that states none.
const QUICK_GELU_ALPHA: f32 = 1.702;
/// How many operands are looked at; more than any operator here has.
const OPERANDS: usize = 12;
/// The first standard operators whose `Split` is told how many parts there are, that have `Gelu`, whose `Shape` takes a
/// range, and that have `Trilu`.
const SPLIT_COUNTS: i64 = 18;
const HAS_GELU: i64 = 20;
const SHAPE_RANGES: i64 = 15;
const HAS_TRILU: i64 = 14;
/// What the names of new values begin with.
const PREFIX: &str = "standard";

/// Which operators a graph may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dialect {
    /// All of ONNX Runtime's own, as they came: for CUDA and DirectML.
    Contrib,
    /// Those of ONNX Runtime's own that its CPU provider has a kernel for.
    Cpu,
    /// ONNX's standard operators alone, but for what has no standard form.
    Standard,
}

impl Dialect {
    /// Whether a graph may be another in it: for providers that take the whole graph, sizes that are fixed become constants.
    fn changes(self, graph: &GraphProto) -> bool {
        self == Self::Standard || graph.node.iter().any(|node| self.rewrites(node))
    }

    /// Whether an operator of ONNX Runtime's own is rewritten, where it can be.
    fn rewrites(self, node: &NodeProto) -> bool {
        node.domain() == MICROSOFT
            && match self {
                Self::Contrib => false,
                Self::Cpu => NOT_ON_CPU.contains(&node.op_type()),
                Self::Standard => true,
            }
    }
}

impl fmt::Display for Dialect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Contrib => "contrib",
            Self::Cpu => "cpu",
            Self::Standard => "standard",
        })
    }
}

/// Operators of optimised exports for which the CPU provider has no kernel, and that have a standard form.
const NOT_ON_CPU: [&str; 5] = ["BiasAdd", "BiasSplitGelu", "GroupNorm", "NhwcConv", "SkipGroupNorm"];

impl Graph {
    /// The same graph in a dialect, its parameters under the names and in the shapes that they had.
    ///
    /// Operators that have no standard form (`MatMulNBits`, `EPContext`), or whose operands are not understood, stay:
    /// [`Graph::custom_operators`] has them.
    #[must_use]
    pub fn in_dialect(mut self, dialect: Dialect) -> Self {
        rewrite(&self.model, &mut self.graph, [&self.inputs, &self.outputs], dialect);
        self
    }
}

impl BoundGraph {
    /// The same graph in a dialect; nothing where it is in it already.
    pub(crate) fn in_dialect(&self, dialect: Dialect) -> Option<Self> {
        let graph = self.model.graph.as_ref()?;
        if !dialect.changes(graph) {
            return None;
        }
        let mut own = self.clone();
        let mut graph = own.model.graph.take()?;
        rewrite(&own.model, &mut graph, [&own.inputs, &own.outputs], dialect);
        own.custom_operators = super::custom_operators(&graph);
        own.model.graph = Some(graph);
        Some(own)
    }
}

fn rewrite(model: &ModelProto, graph: &mut GraphProto, [inputs, outputs]: [&[Port]; 2], dialect: Dialect) {
    if !dialect.changes(graph) {
        return;
    }
    graph.sort();
    let facts = Facts::of(graph, inputs);
    let mut scratch = Scratch {
        opset: opset(model),
        is_mixed: facts.is_mixed,
        nodes: Vec::new(),
        constants: HashMap::new(),
        new: Vec::new(),
    };
    // Nodes that were taken into others.
    let mut merged: HashSet<usize> = HashSet::new();
    for (index, node) in graph.node.iter().enumerate() {
        if merged.contains(&index) {
            continue;
        }
        let written = dialect.rewrites(node) && scratch.rewritten(node, &facts, &mut merged);
        if !written {
            scratch.nodes.push(node.clone());
        }
    }
    let Scratch { nodes, new, .. } = scratch;
    graph.node = nodes;
    // The last, so that parameters keep their places.
    graph.initializer.extend(new);
    // What is said of values that are no more would be refused.
    if dialect == Dialect::Standard {
        fold_sizes(graph, inputs, outputs);
    }
    let made: HashSet<&str> = graph.node.iter().flat_map(|node| &node.output).map(String::as_str).collect();
    graph.value_info.retain(|value| made.contains(value.name()));
}

/// What is known of a value without any shape of what the graph is fed.
#[derive(Clone, Copy, Default)]
struct Known {
    /// How many dimensions it has.
    rank: Option<usize>,
    /// The number of elements in the last of them.
    width: Option<i64>,
}

/// What is known of the values of a graph.
struct Facts<'a> {
    known: HashMap<&'a str, Known>,
    /// The dimensions of weights and constants, also of those that are stored as 16-bit floats and converted.
    weights: HashMap<&'a str, &'a [i64]>,
    nodes: &'a [NodeProto],
    /// The nodes that read each value; a value that the graph gives has one reader more.
    readers: HashMap<&'a str, Vec<Option<usize>>>,
    /// Whether some node computes with 16-bit floats.
    is_mixed: bool,
}

impl<'a> Facts<'a> {
    /// Of a graph whose nodes are in order.
    fn of(graph: &'a GraphProto, inputs: &'a [Port]) -> Self {
        let mut readers: HashMap<&str, Vec<Option<usize>>> = HashMap::new();
        for (index, node) in graph.node.iter().enumerate() {
            node.input.iter().for_each(|name| readers.entry(name).or_default().push(Some(index)));
        }
        graph.output.iter().for_each(|output| readers.entry(output.name()).or_default().push(None));
        let is_short = |tensor: &TensorProto| {
            let converts =
                |reader: &Option<usize>| reader.is_some_and(|reader| graph.node[reader].op_type() == "Cast");
            [Dtype::F16, Dtype::Bf16].map(onnx_code).contains(&tensor.data_type())
                && !readers.get(tensor.name()).is_some_and(|readers| readers.iter().all(converts))
        };
        let is_mixed = graph.initializer.iter().any(is_short);
        let mut facts =
            Self { known: HashMap::new(), weights: HashMap::new(), nodes: &graph.node, readers, is_mixed };
        for port in inputs {
            let width = port.dims.last().and_then(|dim| match dim {
                Dim::Fixed(size) => i64::try_from(*size).ok(),
                Dim::Free(_) => None,
            });
            facts.known.insert(&port.name, Known { rank: Some(port.dims.len()), width });
        }
        // The integers of constants, on which shapes depend.
        let mut lists: HashMap<&str, Vec<i64>> = HashMap::new();
        for tensor in &graph.initializer {
            facts.declare(tensor.name(), tensor, &mut lists);
        }
        for node in &graph.node {
            let stored = node.attribute.iter().find_map(|attribute| attribute.t.as_ref());
            if let ("Constant", Some(tensor), [output]) = (node.op_type(), stored, &node.output[..]) {
                facts.declare(output, tensor, &mut lists);
                continue;
            }
            if let ("Cast" | "DequantizeLinear", [input, ..], [output]) =
                (node.op_type(), &node.input[..], &node.output[..])
                && let Some(dims) = facts.weights.get(input.as_str()).copied()
            {
                facts.weights.insert(output, dims);
            }
            for output in node.output.iter().filter(|name| !name.is_empty()) {
                let known = facts.result(node, &lists).unwrap_or_default();
                facts.known.insert(output, known);
            }
        }
        facts
    }

    fn declare(&mut self, name: &'a str, tensor: &'a TensorProto, lists: &mut HashMap<&'a str, Vec<i64>>) {
        self.weights.insert(name, &tensor.dims);
        self.known.insert(name, Known { rank: Some(tensor.dims.len()), width: tensor.dims.last().copied() });
        if tensor.data_type() == onnx_code(Dtype::I64) && tensor.data_location() != proto::EXTERNAL {
            lists.insert(
                name,
                match &tensor.raw_data {
                    Some(raw) => raw.as_chunks().0.iter().map(|bytes| i64::from_le_bytes(*bytes)).collect(),
                    None => tensor.int64_data.clone(),
                },
            );
        }
    }

    /// What is known of a node's outputs.
    fn result(&self, node: &NodeProto, lists: &HashMap<&str, Vec<i64>>) -> Option<Known> {
        let input = |index: usize| node.input.get(index).map(String::as_str);
        let of = |index: usize| input(index).map_or(Known::default(), |name| self.get(name));
        let weight = |index: usize| input(index).and_then(|name| self.weight(name));
        let wide = |width: Option<i64>| Known { rank: of(0).rank, width };
        Some(match node.op_type() {
            "Add" | "Mul" | "Sub" | "Div" => {
                let (a, b) = (of(0), of(1));
                let rank = a.rank.zip(b.rank).map(|(a, b)| a.max(b));
                // One element is spread over all; of what is not known the other is as wide, or one.
                let width = [a.width, b.width].into_iter().flatten().filter(|&width| width > 1).max();
                Known { rank, width }
            }
            "MatMul" => {
                let rank = of(0).rank.zip(of(1).rank).map(|(a, b)| a.max(b));
                Known { rank, width: of(1).width }
            }
            "FusedMatMul" => {
                let dims = weight(1)?;
                wide(if flag(node, "transB") { dims.first() } else { dims.last() }.copied())
            }
            "Gemm" => {
                let dims = weight(1)?;
                let width = if flag(node, "transB") { dims.first() } else { dims.last() }.copied();
                Known { rank: Some(2), width }
            }
            "MatMulNBits" => wide(attribute(node, "N").map(|outputs| outputs.i())),
            "LayerNormalization" => wide(of(0).width.or(weight(1).and_then(|dims| dims.last().copied()))),
            "SkipLayerNormalization" => wide(of(0).width.or(weight(2).and_then(|dims| dims.last().copied()))),
            "Reshape" => match input(1).and_then(|name| lists.get(name)) {
                Some(target) => {
                    Known { rank: Some(target.len()), width: target.last().copied().filter(|&size| size > 0) }
                }
                None => Known::default(),
            },
            "Transpose" => {
                let order = &attribute(node, "perm")?.ints;
                let keeps_last = order.last().is_some_and(|&last| last + 1 == order.len() as i64);
                Known { rank: Some(order.len()), width: of(0).width.filter(|_| keeps_last) }
            }
            "Conv" | "NhwcConv" => Known { rank: weight(1).map(<[i64]>::len), width: None },
            "Gather" => {
                let is_first = attribute(node, "axis").is_none_or(|axis| axis.i() == 0);
                let table = weight(0).filter(|dims| is_first && dims.len() == 2)?;
                Known { rank: of(1).rank.map(|rank| rank + 1), width: table.last().copied() }
            }
            "Slice" | "Concat" | "Expand" => wide(None),
            "Split" | "BiasSplitGelu" => {
                let is_last = node.op_type() != "Split"
                    || attribute(node, "axis").is_some_and(|axis| {
                        axis.i() == -1 || of(0).rank.is_some_and(|rank| axis.i() + 1 == rank as i64)
                    });
                wide(of(0).width.filter(|_| !is_last))
            }
            "MultiHeadAttention" => {
                let width = match (input(1).unwrap_or(""), input(2).unwrap_or("")) {
                    (_, "") => None,
                    (_, value) => self.get(value).width,
                };
                Known { rank: Some(3), width }
            }
            "Attention" => Known { rank: Some(3), width: None },
            "Cast"
            | "CastLike"
            | "Identity"
            | "QuantizeLinear"
            | "DequantizeLinear"
            | "Dropout"
            | "Sigmoid"
            | "Tanh"
            | "Relu"
            | "Erf"
            | "Sin"
            | "Cos"
            | "Softmax"
            | "Gelu"
            | "QuickGelu"
            | "BiasGelu"
            | "FastGelu"
            | "BiasAdd"
            | "Clip"
            | "Sqrt"
            | "Pow"
            | "GroupNorm"
            | "SkipGroupNorm"
            | "InstanceNormalization"
            | "GroupNormalization" => of(0),
            _ => Known::default(),
        })
    }

    fn get(&self, value: &str) -> Known {
        self.known.get(value).copied().unwrap_or_default()
    }

    fn weight(&self, name: &str) -> Option<&'a [i64]> {
        self.weights.get(name).copied()
    }

    fn width(&self, value: &str) -> Option<i64> {
        self.get(value).width
    }

    fn rank(&self, value: &str) -> Option<usize> {
        self.get(value).rank
    }

    /// The only node that reads a value, and its index.
    fn only_reader(&self, value: &str) -> Option<(usize, &'a NodeProto)> {
        match self.readers.get(value)?[..] {
            [Some(index)] => Some((index, &self.nodes[index])),
            _ => None,
        }
    }
}

fn attribute<'a>(node: &'a NodeProto, name: &str) -> Option<&'a AttributeProto> {
    node.attribute.iter().find(|attribute| attribute.name() == name)
}

fn flag(node: &NodeProto, name: &str) -> bool {
    attribute(node, name).is_some_and(|flag| flag.i() != 0)
}

/// The graph that is being rewritten, so far.
struct Scratch {
    opset: i64,
    /// Whether some node computes with 16-bit floats.
    is_mixed: bool,
    nodes: Vec<NodeProto>,
    /// New constants by their bytes, so that equal ones are stored once.
    constants: HashMap<(i32, Vec<i64>, Vec<u8>), String>,
    new: Vec<TensorProto>,
}

impl Scratch {
    /// Writes the standard form of a node, unless it has none.
    fn rewritten(&mut self, node: &NodeProto, facts: &Facts, merged: &mut HashSet<usize>) -> bool {
        let Some(result) = node.output.first() else { return false };
        let form = match node.op_type() {
            "FusedMatMul" => return self.linear(node, facts, merged),
            "MultiHeadAttention" => self.multi_head_attention(node, facts),
            "Attention" => self.attention_with_weights(node, facts),
            "QuickGelu" => self.quick_gelu(node),
            "Gelu" => self.with(node, |scratch, at, x| Some(scratch.gelu(at, x[0]?))),
            "BiasGelu" => self.with(node, |scratch, at, x| {
                let sum = scratch.op(at, "Add", &[x[0]?, x[1]?]);
                Some(scratch.gelu(at, &sum))
            }),
            "FastGelu" => self.with(node, |scratch, at, x| {
                let sum = match x[1] {
                    Some(bias) => scratch.op(at, "Add", &[x[0]?, bias]),
                    None => x[0]?.to_owned(),
                };
                Some(scratch.tanh_gelu(at, &sum))
            }),
            "BiasAdd" => self.with(node, |scratch, at, x| {
                let sum = scratch.op(at, "Add", &[x[0]?, x[1]?]);
                Some(scratch.op(at, "Add", &[&sum, x[2]?]))
            }),
            "BiasSplitGelu" => self.with(node, |scratch, at, x| {
                let sum = scratch.op(at, "Add", &[x[0]?, x[1]?]);
                let halves = scratch.split(at, &sum, -1, 2);
                let gate = scratch.gelu(at, &halves[1]);
                Some(scratch.op(at, "Mul", &[&halves[0], &gate]))
            }),
            "SkipLayerNormalization" => self.skip_layer_norm(node),
            "GroupNorm" => self.with(node, |scratch, at, x| scratch.group_norm(at, x[0]?, node, facts)),
            "SkipGroupNorm" => self.skip_group_norm(node, facts),
            "NhwcConv" => self.nhwc_conv(node),
            "Trilu" => self.with(node, |scratch, at, x| {
                let operands: Vec<&str> = x.iter().copied().flatten().collect();
                let made = scratch.op(at, "Trilu", &operands);
                scratch.last().attribute.clone_from(&node.attribute);
                Some(made)
            }),
            _ => None,
        };
        match form {
            Some(value) => {
                self.rename(&value, result);
                true
            }
            None => false,
        }
    }

    /// Has the last node that gives `value` give `result`.
    fn rename(&mut self, value: &str, result: &str) {
        let maker = self.nodes.iter_mut().rev().find(|node| node.output.iter().any(|name| name == value));
        let maker = maker.expect("a value that was just made");
        let output = maker.output.iter_mut().find(|name| *name == value).expect("one of its outputs");
        result.clone_into(output);
    }

    /// A form of a node by its operands, of which those that are left out are nothing; the nodes that a form that is none
    /// has written are taken back.
    fn with(
        &mut self,
        node: &NodeProto,
        form: impl FnOnce(&mut Self, &str, &[Option<&str>]) -> Option<String>,
    ) -> Option<String> {
        if node.input.len() > OPERANDS || flag(node, "unidirectional") && self.opset < HAS_TRILU {
            return None;
        }
        let mut operands: Vec<Option<&str>> =
            node.input.iter().map(|name| (!name.is_empty()).then_some(name.as_str())).collect();
        operands.resize(OPERANDS, None);
        let before = self.nodes.len();
        let at = format!("{PREFIX}/{}", node.output[0]);
        // A second output would be made by no node.
        let others = node.output.iter().skip(1).filter(|name| !name.is_empty()).count();
        let handles_others = matches!(node.op_type(), "SkipLayerNormalization" | "SkipGroupNorm");
        let made = (others == 0 || handles_others).then(|| form(self, &at, &operands)).flatten();
        if made.is_none() {
            self.nodes.truncate(before);
        }
        made
    }

    /// A product with a matrix as PyTorch stores it, with its bias where one follows.
    fn linear(&mut self, node: &NodeProto, facts: &Facts, merged: &mut HashSet<usize>) -> bool {
        let [x, weight] = &node.input[..] else { return false };
        let Some(&[outputs, inputs]) = facts.weight(weight) else { return false };
        let alpha = attribute(node, "alpha").map_or(1.0, |alpha| alpha.f());
        let is_plain = ["transA", "transBatchA", "transBatchB"].iter().all(|name| !flag(node, name));
        let turned = flag(node, "transB");
        let (inputs, outputs) = if turned { (inputs, outputs) } else { (outputs, inputs) };
        if !is_plain || alpha != 1.0 {
            return false;
        }
        let mut result = node.output[0].as_str();
        let mut operands = vec![x.as_str(), weight.as_str()];
        if let Some((index, add)) = facts.only_reader(result).filter(|(_, reader)| reader.op_type() == "Add")
            && let Some(bias) = add.input.iter().find(|operand| *operand != result)
            && facts.weight(bias) == Some(&[outputs])
        {
            operands.push(bias);
            result = &add.output[0];
            merged.insert(index);
        }
        let at = format!("{PREFIX}/{}", node.output[0]);
        let is_matrix = facts.rank(x) == Some(2);
        let rows = match is_matrix {
            true => x.clone(),
            false => self.reshape(&at, x, &[-1, inputs]),
        };
        operands[0] = &rows;
        let mut product = self.op(&at, "Gemm", &operands);
        self.last().attribute = vec![integer("transB", i64::from(turned))];
        if !is_matrix {
            let leading = self.leading_sizes(&at, x);
            let last = self.ints(&[outputs]);
            let sizes = self.op(&at, "Concat", &[&leading, &last]);
            self.last().attribute = vec![integer("axis", 0)];
            product = self.op(&at, "Reshape", &[&product, &sizes]);
        }
        self.rename(&product, result);
        true
    }

    /// The sizes of all dimensions but the last.
    fn leading_sizes(&mut self, at: &str, x: &str) -> String {
        let sizes = self.op(at, "Shape", &[x]);
        if self.opset >= SHAPE_RANGES {
            self.last().attribute = vec![integer("start", 0), integer("end", -1)];
            return sizes;
        }
        let (start, end) = (self.ints(&[0]), self.ints(&[-1]));
        self.op(at, "Slice", &[&sizes, &start, &end])
    }

    /// `x * sigmoid(alpha * x)`.
    fn quick_gelu(&mut self, node: &NodeProto) -> Option<String> {
        let alpha = attribute(node, "alpha").map_or(QUICK_GELU_ALPHA, |alpha| alpha.f());
        self.with(node, |scratch, at, x| Some(scratch.swish(at, x[0]?, alpha)))
    }

    fn swish(&mut self, at: &str, x: &str, alpha: f32) -> String {
        let scaled = match alpha {
            1.0 => x.to_owned(),
            alpha => {
                let alpha = self.like(at, alpha, x);
                self.op(at, "Mul", &[x, &alpha])
            }
        };
        let gate = self.op(at, "Sigmoid", &[&scaled]);
        self.op(at, "Mul", &[x, &gate])
    }

    /// GELU by the error function.
    fn gelu(&mut self, at: &str, x: &str) -> String {
        if self.opset >= HAS_GELU {
            return self.op(at, "Gelu", &[x]);
        }
        let root = self.like(at, std::f32::consts::FRAC_1_SQRT_2, x);
        let (half, one) = (self.like(at, 0.5, x), self.like(at, 1.0, x));
        let scaled = self.op(at, "Mul", &[x, &root]);
        let erf = self.op(at, "Erf", &[&scaled]);
        let raised = self.op(at, "Add", &[&erf, &one]);
        let gate = self.op(at, "Mul", &[&raised, &half]);
        self.op(at, "Mul", &[x, &gate])
    }

    /// GELU by the hyperbolic tangent.
    fn tanh_gelu(&mut self, at: &str, x: &str) -> String {
        if self.opset >= HAS_GELU {
            let made = self.op(at, "Gelu", &[x]);
            self.last().attribute = vec![text("approximate", "tanh")];
            return made;
        }
        let cubic = self.like(at, 0.044_715, x);
        let root = self.like(at, (2.0 / std::f32::consts::PI).sqrt(), x);
        let (half, one) = (self.like(at, 0.5, x), self.like(at, 1.0, x));
        let square = self.op(at, "Mul", &[x, x]);
        let cube = self.op(at, "Mul", &[&square, x]);
        let small = self.op(at, "Mul", &[&cube, &cubic]);
        let sum = self.op(at, "Add", &[x, &small]);
        let scaled = self.op(at, "Mul", &[&sum, &root]);
        let tanh = self.op(at, "Tanh", &[&scaled]);
        let raised = self.op(at, "Add", &[&tanh, &one]);
        let gate = self.op(at, "Mul", &[&raised, &half]);
        self.op(at, "Mul", &[x, &gate])
    }

    fn skip_layer_norm(&mut self, node: &NodeProto) -> Option<String> {
        let sum_name = node.output.get(3).filter(|name| !name.is_empty());
        // Mean and deviation are for training.
        if node.output.iter().skip(1).take(2).any(|name| !name.is_empty()) {
            return None;
        }
        let epsilon = attribute(node, "epsilon").map_or(SKIP_EPSILON, |epsilon| epsilon.f());
        self.with(node, |scratch, at, x| {
            let mut sum = scratch.op(at, "Add", &[x[0]?, x[1]?]);
            if let Some(bias) = x[4] {
                sum = scratch.op(at, "Add", &[&sum, bias]);
            }
            if let Some(name) = sum_name {
                scratch.rename(&sum, name);
                sum = name.clone();
            }
            let operands = [Some(sum.as_str()), Some(x[2]?), x[3]];
            let operands: Vec<&str> = operands.into_iter().flatten().collect();
            let made = scratch.op(at, "LayerNormalization", &operands);
            scratch.last().attribute = vec![integer("axis", -1), float("epsilon", epsilon)];
            Some(made)
        })
    }

    /// A group norm of `[batch, height, width, channels]`, with the activation that may follow.
    fn group_norm(&mut self, at: &str, x: &str, node: &NodeProto, facts: &Facts) -> Option<String> {
        let (scale, shift) = (node.input.get(1)?, node.input.get(2)?);
        let groups = attribute(node, "groups")?.i();
        let is_last = attribute(node, "channels_last").is_none_or(|last| last.i() != 0);
        let activation = attribute(node, "activation").map_or(0, |activation| activation.i());
        if !is_last || !(1..=i64::from(u16::MAX)).contains(&groups) || !(0..=1).contains(&activation) {
            return None;
        }
        let epsilon = attribute(node, "epsilon").map_or(GROUP_EPSILON, |epsilon| epsilon.f());
        // Scale and shift are 32-bit floats beside images of 16-bit ones, and the kernel computes in the former.
        let is_mixed = facts.is_mixed;
        let wide = match is_mixed {
            true => self.cast(at, x, Dtype::F32),
            false => x.to_owned(),
        };
        let planes = self.transpose(at, &wide, &[0, 3, 1, 2]);
        let grouped = self.reshape(at, &planes, &[0, groups, -1]);
        let count = groups as usize;
        let (ones, zeros) = (self.floats(&vec![1.0; count]), self.floats(&vec![0.0; count]));
        let normal = self.op(at, "InstanceNormalization", &[&grouped, &ones, &zeros]);
        self.last().attribute = vec![float("epsilon", epsilon)];
        let sizes = self.op(at, "Shape", &[&planes]);
        let normal = self.op(at, "Reshape", &[&normal, &sizes]);
        let normal = self.transpose(at, &normal, &[0, 2, 3, 1]);
        let [scale, shift] = [scale, shift].map(|value| match is_mixed {
            true => self.cast(at, value, Dtype::F32),
            false => value.clone(),
        });
        let scaled = self.op(at, "Mul", &[&normal, &scale]);
        let mut y = self.op(at, "Add", &[&scaled, &shift]);
        if activation == 1 {
            y = self.swish(at, &y, 1.0);
        }
        Some(self.of_type(at, &y, x))
    }

    fn skip_group_norm(&mut self, node: &NodeProto, facts: &Facts) -> Option<String> {
        let sum_name = node.output.get(1).filter(|name| !name.is_empty());
        self.with(node, |scratch, at, x| {
            let mut skip = x[3]?.to_owned();
            // What the timestep adds to each channel.
            if facts.rank(&skip) == Some(2) {
                skip = scratch.reshape(at, &skip, &[0, 1, 1, -1]);
            }
            let mut sum = scratch.op(at, "Add", &[x[0]?, &skip]);
            if let Some(bias) = x[4] {
                sum = scratch.op(at, "Add", &[&sum, bias]);
            }
            if let Some(name) = sum_name {
                scratch.rename(&sum, name);
                sum = name.clone();
            }
            scratch.group_norm(at, &sum, node, facts)
        })
    }

    /// A convolution of `[batch, height, width, channels]` by `[out, height, width, in]`.
    fn nhwc_conv(&mut self, node: &NodeProto) -> Option<String> {
        self.with(node, |scratch, at, x| {
            let planes = scratch.transpose(at, x[0]?, &[0, 3, 1, 2]);
            let weight = scratch.transpose(at, x[1]?, &[0, 3, 1, 2]);
            let bias = x[2];
            let operands: Vec<&str> = [planes.as_str(), weight.as_str()].into_iter().chain(bias).collect();
            let made = scratch.op(at, "Conv", &operands);
            scratch.last().attribute.clone_from(&node.attribute);
            Some(scratch.transpose(at, &made, &[0, 2, 3, 1]))
        })
    }

    /// `MultiHeadAttention` of queries, keys and values apart, or packed by head.
    fn multi_head_attention(&mut self, node: &NodeProto, facts: &Facts) -> Option<String> {
        let heads = attribute(node, "num_heads")?.i();
        self.with(node, |scratch, at, x| {
            let (query, key, value) = (x[0]?, x[1], x[2]);
            // A mask of padding, and what earlier tokens left.
            if x[4].is_some() || x[6..].iter().any(Option::is_some) {
                return None;
            }
            let bias = x[3];
            let (head, [q, k, v]) = match (key, value) {
                (Some(key), Some(value)) => {
                    let (wide, depth) = (facts.width(query)?, facts.width(value)?);
                    let is_flat = [query, key, value].iter().all(|value| facts.rank(value) == Some(3));
                    if !is_flat || facts.width(key)? != wide || wide % heads != 0 || depth % heads != 0 {
                        return None;
                    }
                    let mut parts = [query, key, value].map(str::to_owned);
                    if let Some(bias) = bias {
                        let ends = [0, wide, 2 * wide, 2 * wide + depth];
                        for (index, part) in parts.iter_mut().enumerate() {
                            let own = scratch.slice(at, bias, ends[index], ends[index + 1]);
                            *part = scratch.op(at, "Add", &[part, &own]);
                        }
                    }
                    (wide / heads, parts.map(|part| scratch.heads(at, &part, heads)))
                }
                // `[batch, tokens, heads, 2 or 3, width]`.
                (packed, None) if bias.is_none() => {
                    let count = if packed.is_some() { 2 } else { 3 };
                    let packed = packed.unwrap_or(query);
                    let head = facts.width(packed)?;
                    if facts.rank(packed) != Some(5) {
                        return None;
                    }
                    let mut parts: Vec<String> = scratch
                        .split(at, packed, 3, count)
                        .iter()
                        .map(|part| scratch.reshape(at, part, &[0, 0, heads, -1]))
                        .collect();
                    if count == 2 {
                        if facts.width(query)? != heads * head || facts.rank(query) != Some(3) {
                            return None;
                        }
                        let query = scratch.heads(at, query, heads);
                        parts.insert(0, query);
                    }
                    (head, [parts.remove(0), parts.remove(0), parts.remove(0)])
                }
                _ => return None,
            };
            Some(scratch.attention(at, node, [&q, &k, &v], head, x[5]))
        })
    }

    /// `Attention`, whose weights are its own.
    fn attention_with_weights(&mut self, node: &NodeProto, facts: &Facts) -> Option<String> {
        let heads = attribute(node, "num_heads")?.i();
        self.with(node, |scratch, at, x| {
            let [_, all] = *facts.weight(x[1]?)? else { return None };
            let parts = match attribute(node, "qkv_hidden_sizes").map(|sizes| &sizes.ints[..]) {
                None if all % 3 == 0 => [all / 3; 3],
                Some(&[q, k, v]) if q == k && q + k + v == all => [q, k, v],
                _ => return None,
            };
            let is_masked = [3, 4, 6].iter().any(|&index| x[index].is_some());
            if is_masked || flag(node, "do_rotary") || parts.iter().any(|width| width % heads != 0) {
                return None;
            }
            let mut all = scratch.op(at, "MatMul", &[x[0]?, x[1]?]);
            if let Some(bias) = x[2] {
                all = scratch.op(at, "Add", &[&all, bias]);
            }
            let mut from = 0;
            let [q, k, v] = parts.map(|width| {
                let part = scratch.slice(at, &all, from, from + width);
                from += width;
                scratch.heads(at, &part, heads)
            });
            Some(scratch.attention(at, node, [&q, &k, &v], parts[0] / heads, x[5]))
        })
    }

    /// `[batch, tokens, width]` as `[batch, tokens, heads, width of one]`.
    fn heads(&mut self, at: &str, x: &str, heads: i64) -> String {
        self.reshape(at, x, &[0, 0, heads, -1])
    }

    /// Attention of `[batch, tokens, heads, width of one]` (Vaswani et al. 2017).
    fn attention(
        &mut self,
        at: &str,
        node: &NodeProto,
        [q, k, v]: [&str; 3],
        head: i64,
        bias: Option<&str>,
    ) -> String {
        let scale = attribute(node, "scale").map(|scale| scale.f()).filter(|&scale| scale != 0.0);
        let scale = self.like(at, scale.unwrap_or(1.0 / (head as f32).sqrt()), q);
        let q = self.transpose(at, q, &[0, 2, 1, 3]);
        let k = self.transpose(at, k, &[0, 2, 3, 1]);
        let v = self.transpose(at, v, &[0, 2, 1, 3]);
        let mut scores = self.op(at, "MatMul", &[&q, &k]);
        scores = self.op(at, "Mul", &[&scores, &scale]);
        if let Some(bias) = bias {
            scores = self.op(at, "Add", &[&scores, bias]);
        }
        if flag(node, "unidirectional") {
            let mask = self.later_tokens(at, &scores);
            scores = self.op(at, "Add", &[&scores, &mask]);
        }
        let parts = self.op(at, "Softmax", &[&scores]);
        self.last().attribute = vec![integer("axis", -1)];
        let mixed = self.op(at, "MatMul", &[&parts, &v]);
        let mixed = self.transpose(at, &mixed, &[0, 2, 1, 3]);
        self.reshape(at, &mixed, &[0, 0, -1])
    }

    /// `[tokens, tokens]` of what is added to scores so that no token sees later ones.
    fn later_tokens(&mut self, at: &str, scores: &str) -> String {
        let sizes = self.op(at, "Shape", &[scores]);
        let (start, end) = (self.ints(&[2]), self.ints(&[4]));
        let sizes = self.op(at, "Slice", &[&sizes, &start, &end]);
        let value = TensorProto {
            dims: vec![1],
            data_type: Some(onnx_code(Dtype::F32)),
            raw_data: Some(MASKED.to_le_bytes().to_vec()),
            ..Default::default()
        };
        let all = self.op(at, "ConstantOfShape", &[&sizes]);
        self.last().attribute = vec![AttributeProto {
            name: Some("value".into()),
            r#type: Some(proto::TENSOR),
            t: Some(value),
            ..Default::default()
        }];
        let one = self.constant(Dtype::I64, &[], 1i64.to_le_bytes().to_vec());
        let mask = self.op(at, "Trilu", &[&all, &one]);
        self.last().attribute = vec![integer("upper", 1)];
        self.of_type(at, &mask, scores)
    }

    /// The parts of a tensor that is cut into equal ones.
    fn split(&mut self, at: &str, x: &str, axis: i64, parts: usize) -> Vec<String> {
        let first = self.op(at, "Split", &[x]);
        let outputs: Vec<String> = (0..parts).map(|index| format!("{first}:{index}")).collect();
        let count = (self.opset >= SPLIT_COUNTS).then(|| integer("num_outputs", parts as i64));
        let node = self.last();
        node.output.clone_from(&outputs);
        node.attribute = [integer("axis", axis)].into_iter().chain(count).collect();
        outputs
    }

    /// Elements of the last dimension.
    fn slice(&mut self, at: &str, x: &str, from: i64, to: i64) -> String {
        let (from, to, axis) = (self.ints(&[from]), self.ints(&[to]), self.ints(&[-1]));
        self.op(at, "Slice", &[x, &from, &to, &axis])
    }

    fn reshape(&mut self, at: &str, x: &str, shape: &[i64]) -> String {
        let shape = self.ints(shape);
        self.op(at, "Reshape", &[x, &shape])
    }

    fn transpose(&mut self, at: &str, x: &str, order: &[i64]) -> String {
        let made = self.op(at, "Transpose", &[x]);
        self.last().attribute = vec![AttributeProto {
            name: Some("perm".into()),
            r#type: Some(proto::INTS),
            ints: order.to_vec(),
            ..Default::default()
        }];
        made
    }

    fn cast(&mut self, at: &str, x: &str, dtype: Dtype) -> String {
        let made = self.op(at, "Cast", &[x]);
        self.last().attribute = vec![integer("to", onnx_code(dtype).into())];
        made
    }

    /// A number of the type of `x`.
    fn like(&mut self, at: &str, value: f32, x: &str) -> String {
        let value = self.constant(Dtype::F32, &[], value.to_le_bytes().to_vec());
        self.of_type(at, &value, x)
    }

    /// 32-bit floats in the type of `x`.
    fn of_type(&mut self, at: &str, value: &str, x: &str) -> String {
        match self.is_mixed {
            true => self.op(at, "CastLike", &[value, x]),
            false => value.to_owned(),
        }
    }

    /// A node whose name and output begin with `at`.
    fn op(&mut self, at: &str, op: &str, inputs: &[&str]) -> String {
        let name = format!("{at}/{op}_{}", self.nodes.len());
        self.nodes.push(NodeProto {
            op_type: Some(op.into()),
            input: inputs.iter().map(|&input| input.into()).collect(),
            output: vec![name.clone()],
            name: Some(name.clone()),
            ..Default::default()
        });
        name
    }

    fn last(&mut self) -> &mut NodeProto {
        self.nodes.last_mut().expect("a node that was pushed")
    }

    fn ints(&mut self, values: &[i64]) -> String {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.constant(Dtype::I64, &[values.len()], bytes)
    }

    fn floats(&mut self, values: &[f32]) -> String {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.constant(Dtype::F32, &[values.len()], bytes)
    }

    fn constant(&mut self, dtype: Dtype, dims: &[usize], bytes: Vec<u8>) -> String {
        let dims: Vec<i64> = dims.iter().map(|&size| size as i64).collect();
        let key = (onnx_code(dtype), dims, bytes);
        if let Some(name) = self.constants.get(&key) {
            return name.clone();
        }
        let name = format!("{PREFIX}/constant_{}", self.new.len());
        let (code, dims, bytes) = key.clone();
        self.new.push(TensorProto {
            name: Some(name.clone()),
            dims,
            data_type: Some(code),
            raw_data: Some(bytes),
            ..Default::default()
        });
        self.constants.insert(key, name.clone());
        name
    }
}

fn float(name: &str, value: f32) -> AttributeProto {
    AttributeProto {
        name: Some(name.into()),
        r#type: Some(proto::FLOAT),
        f: Some(value),
        ..Default::default()
    }
}

fn text(name: &str, value: &str) -> AttributeProto {
    AttributeProto {
        name: Some(name.into()),
        r#type: Some(proto::STRING),
        s: Some(value.into()),
        ..Default::default()
    }
}
