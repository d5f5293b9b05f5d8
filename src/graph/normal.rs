//! Norms of an image that is computed in tiles. A norm's mean and variance are the whole image's, which no tile can
//! know, so that the graph is given them, and gives those of the part of it that was computed.

use super::Graph;
use super::cut::value_info;
use super::dtype::onnx_code;
use super::node::{cast, integer};
use super::proto::{self, AttributeProto, DimensionValue, NodeProto, TensorProto};
use crate::Error;
use crate::weights::Dtype;

/// What the new inputs, outputs and values are named by.
const PREFIX: &str = "norms";
/// How far a norm goes by what it sees: 1 for its core alone, 0 for what it is given. `F32[1]`
pub(crate) const OWN: &str = "norms/own";
/// The first row and column of the core, and those behind its last, in units of the input: `I64[2]`
pub(crate) const CORE_START: &str = "norms/core_start";
pub(crate) const CORE_END: &str = "norms/core_end";
/// Per norm the means, then the variances of its groups: `F32[all]`
pub(crate) const GIVEN: &str = "norms/given";
/// The same, of the core.
pub(crate) const FOUND: &str = "norms/found";
/// The oldest standard operators that have all that is used.
const OLDEST_OPSET: i64 = 11;
/// The first whose `ReduceMean` is given its axes as an input.
const AXES_AS_INPUT: i64 = 18;
/// The epsilon of an `InstanceNormalization` that names none.
const DEFAULT_EPSILON: f32 = 1e-5;
/// Operators that look beyond any tile.
const FAR_SIGHTED: [&str; 12] = [
    "Attention",
    "DynamicQuantizeLinear",
    "GlobalAveragePool",
    "GroupNorm",
    "GroupNormalization",
    "LayerNormalization",
    "MultiHeadAttention",
    "ReduceMean",
    "ReduceSum",
    "SkipGroupNorm",
    "Softmax",
    "SkipLayerNormalization",
];

impl Graph {
    /// The same graph with norms whose statistics are given, and the groups of each norm. Without norms it is the same.
    ///
    /// # Errors
    /// [`ErrorKind::Model`](crate::ErrorKind::Model) for a graph that mixes the image's parts in any other way.
    pub(crate) fn with_open_norms(&self, image: &str) -> Result<(Self, Vec<usize>), Error> {
        let far = |node: &&NodeProto| FAR_SIGHTED.contains(&node.op_type());
        if let Some(node) = self.graph.node.iter().find(far) {
            return Err(self.uncut(format!("expected local operators, got {}", node.op_type())));
        }
        let is_norm = |node: &&NodeProto| node.op_type() == "InstanceNormalization";
        if !self.graph.node.iter().any(|node| is_norm(&node)) {
            return Ok((self.clone(), Vec::new()));
        }
        let opset = self.model.opset_import.iter().find(|opset| matches!(opset.domain(), "" | "ai.onnx"));
        let opset = opset.map_or(0, |opset| opset.version());
        if opset < OLDEST_OPSET {
            return Err(self.uncut(format!("expected opset {OLDEST_OPSET} or newer, got {opset}")));
        }

        let mut scratch = Scratch { opset, nodes: Vec::new(), constants: Vec::new() };
        let two = scratch.ints("two", &[2]);
        let four = scratch.ints("four", &[4]);
        scratch.ints("plane_axes", &[2, 3]);
        scratch.ints("last_axis", &[-1]);
        scratch.op("Shape", &[image], "image_shape");
        scratch.op("Slice", &["norms/image_shape", &two, &four], "image_size");
        let (mut groups, mut found) = (Vec::new(), Vec::new());
        for node in &self.graph.node {
            if is_norm(&node) {
                let norm = self.norm(node).map_err(|problem| self.uncut(problem))?;
                let offset = groups.iter().sum::<usize>() * 2;
                groups.push(norm.groups);
                found.extend(scratch.open(&norm, groups.len(), offset));
            } else {
                scratch.nodes.push(node.clone());
            }
        }
        let found: Vec<&str> = found.iter().map(String::as_str).collect();
        scratch.op("Concat", &found, "all").attribute.push(integer("axis", 1));
        scratch.op("Reshape", &["norms/all", "norms/last_axis"], "found");

        let mut graph = self.graph.clone();
        let length = |len: usize| [Some(DimensionValue::DimValue(len as i64))];
        let all = groups.iter().sum::<usize>() * 2;
        graph.input.extend([
            value_info(OWN, Dtype::F32, length(1)),
            value_info(CORE_START, Dtype::I64, length(2)),
            value_info(CORE_END, Dtype::I64, length(2)),
            value_info(GIVEN, Dtype::F32, length(all)),
        ]);
        graph.output.push(value_info(FOUND, Dtype::F32, length(all)));
        graph.initializer.extend(scratch.constants);
        graph.node = scratch.nodes;
        let mut open = Self::of(self.name.clone(), self.model.clone(), graph)?;
        open.parameters.clone_from(&self.parameters);
        Ok((open, groups))
    }

    /// What an `InstanceNormalization` says of itself.
    fn norm<'a>(&'a self, node: &'a NodeProto) -> Result<Norm<'a>, String> {
        let makers = self.graph.makers();
        let maker = |value: &str| makers.get(value).map(|&maker| &self.graph.node[maker]);
        let ([x, scale, bias], [output]) = (&node.input[..], &node.output[..]) else {
            return Err(format!("{}: expected a norm of 3 inputs, got {}", node.name(), node.input.len()));
        };
        // Exporters write a group norm as the instance norm of its groups.
        let grouping = maker(x).filter(|maker| maker.op_type() == "Reshape");
        let planes = grouping.and_then(|grouping| grouping.input.first()).unwrap_or(x);
        let constant = |name: &str| {
            let of_node = || maker(name)?.attribute.iter().find_map(|attribute| attribute.t.as_ref());
            let stored = self.graph.initializer.iter().find(|tensor| tensor.name() == name);
            stored.or_else(of_node).and_then(|tensor| usize::try_from(*tensor.dims.first()?).ok())
        };
        let groups = constant(scale).ok_or_else(|| format!("{scale}: expected a constant, got none"))?;
        let rank = match grouping.and_then(|grouping| grouping.input.get(1)) {
            Some(shape) => {
                constant(shape).ok_or_else(|| format!("{shape}: expected a constant, got none"))?
            }
            None => 4,
        };
        let epsilon = node.attribute.iter().find(|attribute| attribute.name() == "epsilon");
        let dtype = self.dtype_of(x, &makers)?;
        Ok(Norm {
            x,
            scale,
            bias,
            output,
            planes,
            groups,
            rank,
            epsilon: epsilon.map_or(DEFAULT_EPSILON, |epsilon| epsilon.f()),
            dtype,
        })
    }
}

/// A norm as it was.
struct Norm<'a> {
    x: &'a str,
    scale: &'a str,
    bias: &'a str,
    output: &'a str,
    /// What `x` is as `[batch, channels, height, width]`.
    planes: &'a str,
    groups: usize,
    /// Of `x`.
    rank: usize,
    epsilon: f32,
    /// Of `x`, `scale` and `bias`.
    dtype: Dtype,
}

/// The graph in the making.
struct Scratch {
    opset: i64,
    nodes: Vec<NodeProto>,
    constants: Vec<TensorProto>,
}

impl Scratch {
    /// A norm whose mean and variance are part its core's own, part given; gives the names of its own.
    ///
    /// That the own ones count also where their part is 0 keeps them in their place: what nothing waits for, ONNX Runtime
    /// computes last, and keeps every norm's input until then.
    fn open(&mut self, norm: &Norm<'_>, number: usize, offset: usize) -> [String; 2] {
        let named = |name: &str| format!("{number}/{name}");
        let groups = norm.groups as i64;
        let column = self.ints(&named("column"), &[1, groups, 1]);
        let grouped = self.ints(&named("grouped"), &[1, groups, -1]);

        // A cell of the input is a whole number of cells here, or a whole number of cells there is one here.
        let shape = self.chain("Shape", &[norm.planes], &named("shape"));
        let size = self.chain("Slice", &[&shape, "norms/two", "norms/four"], &named("size"));
        let [from, to] = [(CORE_START, "from"), (CORE_END, "to")].map(|(edge, name)| {
            let scaled = self.chain("Mul", &[edge, &size], &named(&format!("{name}_scaled")));
            self.chain("Div", &[&scaled, "norms/image_size"], &named(name))
        });
        let core = self.chain("Slice", &[norm.planes, &from, &to, "norms/plane_axes"], &named("core"));
        let core = self.chain("Reshape", &[&core, &grouped], &named("core_grouped"));
        let core = self.converted(&core, norm.dtype, Dtype::F32);
        let own_mean = self.mean(&core, &named("own_mean"));
        let distance = self.chain("Sub", &[&core, &own_mean], &named("distance"));
        let square = self.chain("Mul", &[&distance, &distance], &named("square"));
        let own_variance = self.mean(&square, &named("own_variance"));

        let parts = [("mean", &own_mean, 0), ("variance", &own_variance, norm.groups)];
        let [mean, variance] = parts.map(|(name, own, after)| {
            let at = (offset + after) as i64;
            let start = self.ints(&named(&format!("{name}_at")), &[at]);
            let end = self.ints(&named(&format!("{name}_end")), &[at + groups]);
            let given = self.chain("Slice", &[GIVEN, &start, &end], &named(&format!("{name}_row")));
            let given = self.chain("Reshape", &[&given, &column], &named(&format!("{name}_given")));
            let change = self.chain("Sub", &[own, &given], &named(&format!("{name}_change")));
            let change = self.chain("Mul", &[&change, OWN], &named(&format!("{name}_part")));
            self.chain("Add", &[&given, &change], &named(name))
        });
        let epsilon = self.constant(&named("epsilon"), Dtype::F32, &[], norm.epsilon.to_le_bytes().into());
        let variance = self.chain("Add", &[&variance, &epsilon], &named("positive"));
        let deviation = self.chain("Sqrt", &[&variance], &named("deviation"));
        let [scale, bias] = [(norm.scale, "scale"), (norm.bias, "bias")].map(|(value, name)| {
            let value = self.chain("Reshape", &[value, &column], &named(name));
            self.converted(&value, norm.dtype, Dtype::F32)
        });
        let factor = self.chain("Div", &[&scale, &deviation], &named("factor"));
        let shift = self.chain("Mul", &[&mean, &factor], &named("shifted"));
        let shift = self.chain("Sub", &[&bias, &shift], &named("shift"));

        let mut shape = vec![1; norm.rank];
        shape[1] = groups;
        let shape = self.ints(&named("ranked"), &shape);
        let [factor, shift] = [factor, shift].map(|value| {
            let value = self.converted(&value, Dtype::F32, norm.dtype);
            self.chain("Reshape", &[&value, &shape], &format!("{value}_ranked"))
        });
        let scaled = self.chain("Mul", &[norm.x, &factor], &named("scaled"));
        self.op("Add", &[&scaled, &shift], &named("normal")).output = vec![norm.output.into()];
        [own_mean, own_variance]
    }

    /// The mean over the last dimension, which is kept.
    fn mean(&mut self, x: &str, name: &str) -> String {
        let axes_as_input = self.opset >= AXES_AS_INPUT;
        let node = self.op("ReduceMean", &[x], name);
        if axes_as_input {
            node.input.push("norms/last_axis".into());
        } else {
            node.attribute.push(AttributeProto {
                name: Some("axes".into()),
                r#type: Some(proto::INTS),
                ints: vec![-1],
                ..Default::default()
            });
        }
        node.output[0].clone()
    }

    fn converted(&mut self, x: &str, from: Dtype, to: Dtype) -> String {
        if from == to {
            return x.into();
        }
        let converted = format!("{x}/{to}");
        self.nodes.push(cast(x, &converted, to));
        converted
    }

    /// A node whose output goes on.
    fn chain(&mut self, op: &str, inputs: &[&str], name: &str) -> String {
        self.op(op, inputs, name).output[0].clone()
    }

    /// A node; its name and its output's begin with ours.
    fn op(&mut self, op: &str, inputs: &[&str], name: &str) -> &mut NodeProto {
        let name = if name.starts_with(PREFIX) { name.to_owned() } else { format!("{PREFIX}/{name}") };
        self.nodes.push(NodeProto {
            op_type: Some(op.into()),
            input: inputs.iter().map(|&input| input.into()).collect(),
            output: vec![name.clone()],
            name: Some(name),
            ..Default::default()
        });
        self.nodes.last_mut().expect("a node that was pushed")
    }

    fn ints(&mut self, name: &str, values: &[i64]) -> String {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.constant(name, Dtype::I64, &[values.len()], bytes)
    }

    fn constant(&mut self, name: &str, dtype: Dtype, dims: &[usize], bytes: Vec<u8>) -> String {
        let name = format!("{PREFIX}/{name}");
        self.constants.push(TensorProto {
            name: Some(name.clone()),
            dims: dims.iter().map(|&size| size as i64).collect(),
            data_type: Some(onnx_code(dtype)),
            raw_data: Some(bytes),
            ..Default::default()
        });
        name
    }
}
