//! Narrow graphs: operators that would take much memory at once are taken in slices. A linear layer or convolution gives
//! its channels in slices, each with its own rows of the weights; a gated feed-forward goes through its tokens in slices,
//! and unfused attention through its queries. It knows nothing of how much memory there is.
//!
//! The numbers are the same but for rounding: kernels add in an order that may depend on how many rows they are given.

use std::collections::{HashMap, HashSet};
use std::mem;
use std::ops::Range;

use super::dtype::onnx_code;
use super::node::{MICROSOFT, entry, integer};
use super::parameter::declared;
use super::proto::{GraphProto, NodeProto, TensorProto};
use super::segment::{elements, stored};
use crate::weights::Dtype;

/// How many slices the tokens of a feed-forward are taken in.
const TOKEN_SLICES: usize = 4;
/// How many slices the queries of attention are taken in.
const QUERY_SLICES: i64 = 8;
/// The first version of the standard operators whose `Split` takes a number of parts that are not all equally long.
const SPLIT_OPSET: i64 = 18;
/// How many nodes after its first a feed-forward may have its last: those of exporters have 20.
const REGION_NODES: usize = 64;
/// Slices of channels are no narrower than this: the kernel for products takes narrower ones in another order
/// (`MlasSgemmOperation` halves its strides), each thread by itself; that for convolutions goes by the pixels.
const LEAST_PRODUCT_ROWS: usize = 512;
const LEAST_CONV_ROWS: usize = 64;

impl GraphProto {
    /// Takes every gated feed-forward (Shazeer 2020, "GLU variants improve transformer") of the most tokens in slices:
    /// those of the least channels, as only they are large.
    pub(super) fn slice_tokens(&mut self, opset: i64) {
        if opset < SPLIT_OPSET {
            return;
        }
        let constants = Constants::of(self);
        let found = (0..self.node.len()).filter_map(|start| Region::at(self, &constants, start));
        let found: Vec<Region> = found.collect();
        let Some(least) = found.iter().map(|region| region.weights).min() else { return };
        let mut sliced: HashMap<usize, Vec<NodeProto>> = HashMap::new();
        let mut gone: HashSet<usize> = HashSet::new();
        for region in found.iter().filter(|region| region.weights == least) {
            sliced.insert(region.nodes[0], region.slices(self));
            gone.extend(&region.nodes);
        }
        for (index, node) in mem::take(&mut self.node).into_iter().enumerate() {
            self.node.extend(sliced.remove(&index).unwrap_or_default());
            if !gone.contains(&index) {
                self.node.push(node);
            }
        }
    }

    /// Takes all unfused attention, as two products with a `Softmax` between them, in slices of its queries: the
    /// scores of all pairs of tokens are never there at once.
    pub(super) fn slice_queries(&mut self) {
        let constants = Constants::of(self);
        let flow = Flow::of(self);
        let found = (0..self.node.len()).filter_map(|softmax| Scores::at(self, &constants, &flow, softmax));
        // Where the last of its nodes is, all that it reads is there.
        let found: HashMap<usize, Scores> = found.map(|scores| (scores.last(), scores)).collect();
        if found.is_empty() {
            return;
        }
        let within: HashSet<usize> = found.values().flat_map(|scores| &scores.nodes).copied().collect();
        let mut nodes = Vec::new();
        for (index, node) in self.node.iter().enumerate() {
            match found.get(&index) {
                Some(scores) => nodes.extend(scores.slices(self)),
                None if within.contains(&index) => {}
                None => nodes.push(node.clone()),
            }
        }
        self.node = nodes;
        self.initializer.extend((-2..=QUERY_SLICES).map(|value| TensorProto {
            name: Some(number(value)),
            dims: vec![1],
            data_type: Some(onnx_code(Dtype::I64)),
            int64_data: vec![value],
            ..Default::default()
        }));
    }

    /// Takes every linear layer and convolution whose weights have more than `most_bytes`, where they are converted in
    /// the type in which they are computed with, in slices of its channels that have no more.
    pub(super) fn slice_channels(&mut self, most_bytes: usize) {
        let constants = Constants::of(self);
        let (mut front, mut nodes, mut tensors) = (Vec::new(), Vec::new(), Vec::new());
        for node in &self.node {
            match constants.slices(self, node, most_bytes) {
                Some(Slices { constants, computed, stored }) => {
                    front.extend(constants);
                    nodes.extend(computed);
                    tensors.extend(stored);
                }
                None => nodes.push(node.clone()),
            }
        }
        // Conversions of constants come first, as they do of whole ones.
        self.node = front.into_iter().chain(nodes).collect();
        self.initializer.extend(tensors);
    }
}

/// A node in slices.
#[derive(Default)]
struct Slices {
    /// The conversions of its weights.
    constants: Vec<NodeProto>,
    computed: Vec<NodeProto>,
    /// Its weights.
    stored: Vec<TensorProto>,
}

fn attribute(node: &NodeProto, name: &str) -> Option<i64> {
    node.attribute.iter().find(|attribute| attribute.name() == name).map(|attribute| attribute.i())
}

/// Whether a node multiplies by a matrix of weights, which is its second input.
fn is_product(node: &NodeProto) -> bool {
    matches!((node.op_type(), node.domain()), ("MatMul", "") | ("FusedMatMul" | "MatMulNBits", MICROSOFT))
}

/// The axis of a node's channels in its output, and how many there are by its weight's shape, if its weights lie channel
/// by channel.
fn channels(node: &NodeProto, weight: &TensorProto) -> Option<(i64, usize)> {
    let axis = match (node.op_type(), node.domain()) {
        ("Conv", "") if attribute(node, "group").unwrap_or(1) == 1 => 1,
        ("FusedMatMul", MICROSOFT) if attribute(node, "transB") == Some(1) && weight.dims.len() == 2 => -1,
        ("MatMulNBits", MICROSOFT) if node.input.len() <= 4 => -1,
        _ => return None,
    };
    Some((axis, usize::try_from(*weight.dims.first()?).ok()?))
}

/// The values of a graph that do not depend on what is fed.
struct Constants {
    tensors: HashMap<String, usize>,
    nodes: HashMap<String, usize>,
}

impl Constants {
    fn of(graph: &GraphProto) -> Self {
        let tensors: HashMap<String, usize> = graph
            .initializer
            .iter()
            .enumerate()
            .map(|(index, tensor)| (tensor.name().into(), index))
            .collect();
        let mut nodes: HashMap<String, usize> = HashMap::new();
        for (index, node) in graph.node.iter().enumerate() {
            let is_constant =
                |name: &String| name.is_empty() || tensors.contains_key(name) || nodes.contains_key(name);
            if node.output.len() == 1 && !node.input.is_empty() && node.input.iter().all(is_constant) {
                nodes.insert(node.output[0].clone(), index);
            }
        }
        Self { tensors, nodes }
    }

    fn contains(&self, name: &str) -> bool {
        name.is_empty() || self.tensors.contains_key(name) || self.nodes.contains_key(name)
    }

    /// Whether a node computes of each token by itself.
    fn is_by_token(&self, graph: &GraphProto, node: &NodeProto) -> bool {
        match (node.op_type(), node.domain()) {
            ("Split", "") => attribute(node, "axis") == Some(-1),
            ("Add" | "Div" | "Erf" | "Gelu" | "Mul" | "Sigmoid" | "Tanh", "") => {
                let constants = node.input.iter().filter(|name| self.contains(name));
                let mut tensors = constants.map(|name| self.tensor(graph, name));
                tensors.all(|tensor| tensor.is_some_and(|tensor| tensor.dims.len() <= 1))
            }
            _ => is_product(node) && node.input.iter().skip(1).all(|name| self.contains(name)),
        }
    }

    /// A linear layer or convolution in slices, if its weights are more than this.
    fn slices(&self, graph: &GraphProto, node: &NodeProto, most_bytes: usize) -> Option<Slices> {
        let weight = self.tensor(graph, node.input.get(1)?)?;
        let (axis, channels) = channels(node, weight)?;
        // Products with integers take them as they are.
        let (size_bytes, least_rows) = match node.op_type() {
            "MatMulNBits" => (1, LEAST_PRODUCT_ROWS),
            "Conv" => (size_of::<f32>(), LEAST_CONV_ROWS),
            _ => (size_of::<f32>(), LEAST_PRODUCT_ROWS),
        };
        let row_bytes = (elements(weight) / channels.max(1)).max(1) * size_bytes;
        let count = channels.div_ceil((most_bytes / row_bytes).max(1)).min(channels / least_rows);
        if count < 2 {
            return None;
        }
        // As equal as may be.
        let rows = channels.div_ceil(count);
        let output = node.output.first()?;
        let mut slices = Slices::default();
        let mut pieces = Vec::new();
        for start in (0..channels).step_by(rows) {
            let rows = start..channels.min(start + rows);
            let mut piece = node.clone();
            for input in piece.input.iter_mut().skip(1).filter(|input| !input.is_empty()) {
                *input = self.rows(graph, input, channels, &rows, &mut slices)?;
            }
            if let Some(count) = piece.attribute.iter_mut().find(|attribute| attribute.name() == "N") {
                count.i = Some(rows.len() as i64);
            }
            let name = of_slice(output, &rows);
            piece.name = Some(name.clone());
            piece.output = vec![name.clone()];
            pieces.push(name);
            slices.computed.push(piece);
        }
        slices.computed.push(join(pieces, output, axis));
        Some(slices)
    }

    /// Some rows of a constant that has `channels` of them, or a number of rows for each; its name.
    fn rows(
        &self,
        graph: &GraphProto,
        name: &str,
        channels: usize,
        rows: &Range<usize>,
        slices: &mut Slices,
    ) -> Option<String> {
        let sliced = of_slice(name, rows);
        if let Some(&index) = self.tensors.get(name) {
            let tensor = &graph.initializer[index];
            if elements(tensor) == 1 {
                return Some(name.into());
            }
            slices.stored.push(rows_of(tensor, &sliced, channels, rows)?);
            return Some(sliced);
        }
        let node = &graph.node[*self.nodes.get(name)?];
        // Others may compute with several rows at once.
        match node.op_type() {
            "Cast" => {}
            "DequantizeLinear" if attribute(node, "axis") == Some(0) => {}
            _ => return None,
        }
        let mut converted = node.clone();
        for input in converted.input.iter_mut().filter(|input| !input.is_empty()) {
            *input = self.rows(graph, input, channels, rows, slices)?;
        }
        converted.name = Some(sliced.clone());
        converted.output = vec![sliced.clone()];
        slices.constants.push(converted);
        Some(sliced)
    }

    /// The tensor that a constant is made of.
    fn tensor<'a>(&self, graph: &'a GraphProto, name: &str) -> Option<&'a TensorProto> {
        match (self.tensors.get(name), self.nodes.get(name)) {
            (Some(&index), _) => graph.initializer.get(index),
            (None, Some(&index)) => self.tensor(graph, graph.node[index].input.first()?),
            (None, None) => None,
        }
    }
}

fn of_slice(name: &str, range: &Range<usize>) -> String {
    format!("{name}/{}..{}", range.start, range.end)
}

fn join(pieces: Vec<String>, output: &str, axis: i64) -> NodeProto {
    NodeProto {
        name: Some(format!("{output}/joined")),
        op_type: Some("Concat".into()),
        input: pieces,
        output: vec![output.into()],
        attribute: vec![integer("axis", axis)],
        ..Default::default()
    }
}

/// The part of a bound tensor that belongs to some of its channels.
fn rows_of(tensor: &TensorProto, name: &str, channels: usize, rows: &Range<usize>) -> Option<TensorProto> {
    let (_, bytes) = stored(tensor)?;
    let size_bytes = declared(0, tensor).ok()?.dtype.size_bytes();
    let all = usize::try_from(*tensor.dims.first()?).ok()?;
    if all % channels != 0 || bytes.len() != elements(tensor) * size_bytes {
        return None;
    }
    let (each, each_bytes) = (all / channels, bytes.len() / channels);
    let mut part = tensor.clone();
    part.name = Some(name.into());
    part.dims[0] = (rows.len() * each) as i64;
    part.external_data.retain(|entry| entry.key() == "location");
    part.external_data.push(entry("offset", (bytes.start + rows.start * each_bytes).to_string()));
    part.external_data.push(entry("length", (rows.len() * each_bytes).to_string()));
    Some(part)
}

/// A gated feed-forward: two linear layers, and what lies between them treats each token by itself.
struct Region {
    /// In order; the first is the first linear layer.
    nodes: Vec<usize>,
    input: String,
    output: String,
    /// How many numbers its first weight has.
    weights: usize,
}

impl Region {
    /// The one that begins with a node, if one does.
    fn at(graph: &GraphProto, constants: &Constants, start: usize) -> Option<Self> {
        let first = &graph.node[start];
        if !is_product(first) || constants.contains(&first.input[0]) {
            return None;
        }
        let weight = constants.tensor(graph, first.input.get(1)?)?;
        let mut inside: HashSet<&str> = HashSet::new();
        let (mut nodes, mut products, mut is_gated) = (Vec::new(), 0, false);
        for (index, node) in graph.node.iter().enumerate().skip(start).take(REGION_NODES) {
            let mut fed = node.input.iter().filter(|name| !constants.contains(name)).peekable();
            let is_within =
                index == start || fed.peek().is_some() && fed.all(|name| inside.contains(&**name));
            if !is_within || !constants.is_by_token(graph, node) || is_product(node) && products == 2 {
                continue;
            }
            products += usize::from(is_product(node));
            is_gated |= node.op_type() == "Split";
            inside.extend(node.output.iter().map(String::as_str));
            nodes.push(index);
        }
        if products < 2 || !is_gated {
            return None;
        }
        let within: HashSet<usize> = nodes.iter().copied().collect();
        let outside = graph.node.iter().enumerate().filter(|(index, _)| !within.contains(index));
        let read = outside.flat_map(|(_, node)| &node.input).map(String::as_str);
        let results = graph.output.iter().map(|output| output.name());
        let left: HashSet<&str> = read.chain(results).filter(|name| inside.contains(name)).collect();
        let mut left = left.into_iter();
        match (left.next(), left.next()) {
            (Some(output), None) => Some(Self {
                nodes,
                input: first.input[0].clone(),
                output: output.into(),
                weights: elements(weight),
            }),
            _ => None,
        }
    }

    /// The same computed for some tokens after others.
    fn slices(&self, graph: &GraphProto) -> Vec<NodeProto> {
        let of = |name: &str, slice: usize| format!("{name}/{slice}");
        let mut computed = vec![NodeProto {
            name: Some(format!("{}/sliced", self.output)),
            op_type: Some("Split".into()),
            input: vec![self.input.clone()],
            output: (0..TOKEN_SLICES).map(|slice| of(&self.output, slice) + "/in").collect(),
            attribute: vec![integer("axis", 1), integer("num_outputs", TOKEN_SLICES as i64)],
            ..Default::default()
        }];
        let nodes: Vec<&NodeProto> = self.nodes.iter().map(|&index| &graph.node[index]).collect();
        let made: HashSet<&String> = nodes.iter().flat_map(|node| &node.output).collect();
        for slice in 0..TOKEN_SLICES {
            for (place, &node) in nodes.iter().enumerate() {
                let mut piece = node.clone();
                piece.name = Some(of(&node.output[0], slice));
                for name in piece.input.iter_mut().chain(&mut piece.output) {
                    if made.contains(name) {
                        *name = of(name, slice);
                    }
                }
                if place == 0 {
                    piece.input[0] = of(&self.output, slice) + "/in";
                }
                computed.push(piece);
            }
        }
        let pieces = (0..TOKEN_SLICES).map(|slice| of(&self.output, slice)).collect();
        computed.push(join(pieces, &self.output, 1));
        computed
    }
}

/// Who computes the values of a graph, and who reads them.
struct Flow<'a> {
    makers: HashMap<&'a str, usize>,
    /// Those that one node reads, once, and that are no results.
    readers: HashMap<&'a str, Option<usize>>,
}

impl<'a> Flow<'a> {
    fn of(graph: &'a GraphProto) -> Self {
        let mut readers = HashMap::new();
        for (index, node) in graph.node.iter().enumerate() {
            for name in &node.input {
                readers.entry(name.as_str()).and_modify(|reader| *reader = None).or_insert(Some(index));
            }
        }
        readers.extend(graph.output.iter().map(|output| (output.name(), None)));
        Self { makers: graph.makers(), readers }
    }

    fn only_reader(&self, value: &str) -> Option<usize> {
        *self.readers.get(value)?
    }
}

/// Unfused attention, from the product of queries and keys to that with the values.
struct Scores {
    /// In order; each but the last is read by the next alone.
    nodes: Vec<usize>,
}

impl Scores {
    /// The one around a `Softmax`, if one is.
    fn at(graph: &GraphProto, constants: &Constants, flow: &Flow, softmax: usize) -> Option<Self> {
        let node = &graph.node[softmax];
        if node.op_type() != "Softmax" || attribute(node, "axis") != Some(-1) {
            return None;
        }
        let is_between = |node: &NodeProto| node.op_type() == "Cast" || constants.is_by_token(graph, node);
        let is_of_two = |node: &NodeProto| {
            let is_plain = (node.op_type(), node.domain()) == ("MatMul", "");
            is_plain
                && node.input.iter().all(|name| !constants.contains(name))
                && node.input[0] != node.input[1]
        };
        let mut nodes = vec![softmax];
        loop {
            let first = &graph.node[nodes[0]];
            let mut fed = first.input.iter().filter(|name| !constants.contains(name));
            let (Some(value), None) = (fed.next(), fed.next()) else { return None };
            flow.only_reader(value)?;
            let maker = *flow.makers.get(value.as_str())?;
            nodes.insert(0, maker);
            match &graph.node[maker] {
                node if is_of_two(node) => break,
                node if is_between(node) => {}
                _ => return None,
            }
        }
        loop {
            let [value] = &graph.node[*nodes.last()?].output[..] else { return None };
            let reader = flow.only_reader(value)?;
            nodes.push(reader);
            match &graph.node[reader] {
                node if is_of_two(node) && node.input[0] == *value => return Some(Self { nodes }),
                node if is_between(node) => {}
                _ => return None,
            }
        }
    }

    fn last(&self) -> usize {
        self.nodes[self.nodes.len() - 1]
    }

    /// The same computed for some queries after others.
    fn slices(&self, graph: &GraphProto) -> Vec<NodeProto> {
        let nodes: Vec<&NodeProto> = self.nodes.iter().map(|&index| &graph.node[index]).collect();
        let (queries, output) = (&nodes[0].input[0], &nodes[nodes.len() - 1].output[0]);
        let of = |name: &str, slice: i64| format!("{name}/{slice}");
        let op = |op: &str, inputs: &[&str], output: String| NodeProto {
            name: Some(output.clone()),
            op_type: Some(op.into()),
            input: inputs.iter().map(ToString::to_string).collect(),
            output: vec![output],
            ..Default::default()
        };
        let local = |name: &str| format!("{output}/{name}");
        // As many queries in each slice as make all of them, rounded up; the last ones may have fewer, or none.
        let mut computed = vec![
            op("Shape", &[queries], local("sizes")),
            op("Gather", &[&local("sizes"), &number(-2)], local("queries")),
            op("Add", &[&local("queries"), &number(QUERY_SLICES - 1)], local("sum")),
            op("Div", &[&local("sum"), &number(QUERY_SLICES)], local("each")),
        ];
        let bound = |slice: i64| of(&local("bound"), slice);
        computed.extend((0..=QUERY_SLICES).map(|at| op("Mul", &[&local("each"), &number(at)], bound(at))));
        for slice in 0..QUERY_SLICES {
            let mut value = of(&local("in"), slice);
            computed.push(op(
                "Slice",
                &[queries, &bound(slice), &bound(slice + 1), &number(-2)],
                value.clone(),
            ));
            for (place, &node) in nodes.iter().enumerate() {
                let mut piece = node.clone();
                piece.name = Some(of(&node.output[0], slice));
                let earlier = if place == 0 { queries } else { &nodes[place - 1].output[0] };
                piece
                    .input
                    .iter_mut()
                    .filter(|name| *name == earlier)
                    .for_each(|name| name.clone_from(&value));
                value = of(&node.output[0], slice);
                piece.output = vec![value.clone()];
                computed.push(piece);
            }
        }
        let pieces = (0..QUERY_SLICES).map(|slice| of(output, slice)).collect();
        computed.push(join(pieces, output, -2));
        computed
    }
}

/// The name of a constant.
fn number(value: i64) -> String {
    format!("queries/number {value}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::node::cast;
    use crate::graph::proto::{EXTERNAL, ValueInfoProto};
    use crate::graph::shape::tests::{node, stored as graph_file};

    /// A tensor of a file, from byte 1000 on.
    fn bound(name: &str, dtype: Dtype, dims: &[i64]) -> TensorProto {
        let len_bytes = dims.iter().product::<i64>() as usize * dtype.size_bytes();
        TensorProto {
            name: Some(name.into()),
            dims: dims.to_vec(),
            data_type: Some(onnx_code(dtype)),
            data_location: Some(EXTERNAL),
            external_data: vec![
                entry("location", "weights-3".into()),
                entry("offset", "1000".into()),
                entry("length", len_bytes.to_string()),
            ],
            ..Default::default()
        }
    }

    fn graph(node: Vec<NodeProto>, initializer: Vec<TensorProto>) -> GraphProto {
        let output = vec![ValueInfoProto { name: Some("y".into()), ..Default::default() }];
        GraphProto { node, initializer, output, ..Default::default() }
    }

    fn described(graph: &GraphProto) -> Vec<String> {
        let node = |node: &NodeProto| {
            format!("{} {} -> {}", node.op_type(), node.input.join(" "), node.output.join(" "))
        };
        graph.node.iter().map(node).collect()
    }

    fn places(graph: &GraphProto) -> Vec<(&str, Vec<i64>, Range<usize>)> {
        let tensors = graph.initializer.iter();
        tensors
            .map(|tensor| {
                let (file, range) = stored(tensor).unwrap();
                assert_eq!(file, 3);
                (tensor.name(), tensor.dims.clone(), range)
            })
            .collect()
    }

    #[test]
    fn a_convolution_gives_its_channels_in_slices_of_its_weights() {
        let nodes = vec![cast("h", "w", Dtype::F32), node("Conv", &["x", "w", "b"], "y", vec![])];
        let tensors = vec![bound("h", Dtype::F16, &[130, 2, 3, 3]), bound("b", Dtype::F32, &[130])];
        let mut narrow = graph(nodes.clone(), tensors.clone());
        // As floats the weights of a channel have 72 bytes.
        narrow.slice_channels(72 * 65);
        assert_eq!(
            described(&narrow),
            [
                "Cast h/0..65 -> w/0..65",
                "Cast h/65..130 -> w/65..130",
                "Cast h -> w", // Nothing reads it, so that no segment has it.
                "Conv x w/0..65 b/0..65 -> y/0..65",
                "Conv x w/65..130 b/65..130 -> y/65..130",
                "Concat y/0..65 y/65..130 -> y",
            ]
        );
        assert_eq!(attribute(&narrow.node[5], "axis"), Some(1));
        assert_eq!(
            places(&narrow)[2..],
            [
                ("h/0..65", vec![65, 2, 3, 3], 1000..3340),
                ("b/0..65", vec![65], 1000..1260),
                ("h/65..130", vec![65, 2, 3, 3], 3340..5680),
                ("b/65..130", vec![65], 1260..1520),
            ]
        );
        // Narrower slices than kernels take at once are not made, and what fits is left.
        for (most_bytes, count) in [(1, 6), (72 * 130, 2)] {
            let mut other = graph(nodes.clone(), tensors.clone());
            other.slice_channels(most_bytes);
            assert_eq!(other.node.len(), count, "{most_bytes}");
        }
    }

    #[test]
    fn quantised_layers_are_sliced_with_their_scales() {
        let flags = [("N", 1024), ("K", 64), ("bits", 8), ("block_size", 32)];
        let flags = flags.map(|(name, value)| integer(name, value)).to_vec();
        let mut product = node("MatMulNBits", &["x", "q", "s"], "y", flags);
        product.domain = Some(MICROSOFT.into());
        let tensors = vec![bound("q", Dtype::U8, &[1024, 2, 32]), bound("s", Dtype::F32, &[2048])];
        let mut narrow = graph(vec![product], tensors);
        narrow.slice_channels(512 * 64);
        assert_eq!(described(&narrow)[1], "MatMulNBits x q/512..1024 s/512..1024 -> y/512..1024");
        assert_eq!(attribute(&narrow.node[1], "N"), Some(512));
        assert_eq!(attribute(&narrow.node[2], "axis"), Some(-1));
        let last = &places(&narrow)[4..];
        assert_eq!(last[0], ("q/512..1024", vec![512, 2, 32], 1000 + 512 * 64..1000 + 1024 * 64));
        assert_eq!(last[1], ("s/512..1024", vec![1024], 1000 + 4096..1000 + 8192));

        let scaled = |axis| {
            let dequantize = node("DequantizeLinear", &["q", "s"], "w", vec![integer("axis", axis)]);
            let tensors = vec![bound("q", Dtype::I8, &[128, 2, 3, 3]), bound("s", Dtype::F32, &[128])];
            let mut narrow = graph(vec![dequantize, node("Conv", &["x", "w"], "y", vec![])], tensors);
            narrow.slice_channels(1);
            described(&narrow).len()
        };
        assert_eq!((scaled(0), scaled(1)), (6, 2));
    }

    #[test]
    fn what_has_no_rows_for_its_channels_stays_whole() {
        let weight = || vec![bound("w", Dtype::F32, &[2048, 2048])];
        let grouped = vec![integer("group", 2)];
        for whole in [
            node("MatMul", &["x", "w"], "y", vec![]),
            node("Gemm", &["x", "w"], "y", vec![]),
            node("Conv", &["x", "w"], "y", grouped),
            node("Conv", &["x", "z"], "y", vec![]),
        ] {
            let mut graph = graph(vec![whole.clone()], weight());
            graph.slice_channels(1);
            assert_eq!(graph.node, [whole]);
        }
    }

    #[test]
    fn feed_forwards_of_the_most_tokens_are_sliced() {
        let unet = graph_file("models/builtin/graphs/unet.onnx.gz");
        let count =
            |graph: &GraphProto, op: &str| graph.node.iter().filter(|node| node.op_type() == op).count();
        let mut sliced = unet.graph.clone();
        sliced.slice_tokens(SPLIT_OPSET - 1);
        assert_eq!(sliced.node, unet.graph.node);
        sliced.slice_tokens(SPLIT_OPSET);
        let (gates, all) = (count(&unet.graph, "Gelu"), count(&sliced, "Gelu"));
        let regions = (all - gates) / (TOKEN_SLICES - 1);
        assert!(regions > 0 && regions < gates, "{regions} of {gates}");
        assert_eq!(count(&sliced, "Concat"), count(&unet.graph, "Concat") + regions);
        // What it takes is less, and its results are of the same shapes.
        let inputs: [(&str, &[usize]); 3] =
            [("sample", &[2, 16, 32, 32]), ("timestep", &[]), ("encoder_hidden_states", &[2, 32, 192])];
        let narrow = unet.in_slices();
        let shape = |graph: &crate::graph::Graph| {
            graph.shapes(&inputs).unwrap().get("out_sample").map(|output| output.shape.clone())
        };
        assert_eq!(shape(&narrow), shape(&unet));
        let peak = |graph: &crate::graph::Graph| graph.activations(&inputs, 1, None).unwrap().peak_bytes();
        assert!(peak(&narrow) < peak(&unet), "{} of {}", peak(&narrow), peak(&unet));
    }

    #[test]
    fn a_feed_forward_that_is_read_from_within_is_left() {
        let split = NodeProto {
            output: vec!["a".into(), "b".into()],
            ..node("Split", &["h"], "a", vec![integer("axis", -1)])
        };
        let nodes = |last: &str| {
            vec![
                node("MatMul", &["x", "v"], "h", vec![]),
                split.clone(),
                node("Gelu", &["b"], "g", vec![]),
                node("Mul", &["a", "g"], "m", vec![]),
                node("MatMul", &["m", "w"], "n", vec![]),
                node("Add", &["n", last], "y", vec![]),
            ]
        };
        let weights = || vec![bound("v", Dtype::F32, &[4, 8]), bound("w", Dtype::F32, &[4, 4])];
        let sliced = |last: &str| {
            let mut graph = graph(nodes(last), weights());
            graph.slice_tokens(SPLIT_OPSET);
            graph.node.len()
        };
        // With the rest of the network added to it, and with a value from within.
        assert_eq!(sliced("x"), 1 + 5 * TOKEN_SLICES + 2);
        assert_eq!(sliced("n"), 1 + 6 * TOKEN_SLICES + 1);
        let mut read_twice = graph(nodes("x"), weights());
        read_twice.node.push(node("Relu", &["m"], "z", vec![]));
        read_twice.slice_tokens(SPLIT_OPSET);
        assert_eq!(read_twice.node.len(), 7);
    }

    /// Attention as exporters spell it out, with `change` made to it.
    fn unfused(change: impl FnOnce(&mut GraphProto)) -> GraphProto {
        let scale = TensorProto { name: Some("scale".into()), ..Default::default() };
        let nodes = vec![
            node("MatMul", &["q", "k"], "scores", vec![]),
            node("Mul", &["scores", "scale"], "scaled", vec![]),
            node("Softmax", &["scaled"], "parts", vec![integer("axis", -1)]),
            node("Transpose", &["x"], "v", vec![]),
            node("MatMul", &["parts", "v"], "y", vec![]),
        ];
        let mut graph = graph(nodes, vec![scale]);
        change(&mut graph);
        graph
    }

    #[test]
    fn unfused_attention_goes_through_its_queries_in_slices() {
        let mut graph = unfused(|_| {});
        graph.slice_queries();
        let lines = described(&graph);
        assert_eq!(lines.len(), 1 + 4 + 9 + 8 * 5 + 1);
        assert_eq!(lines[..2], ["Transpose x -> v", "Shape q -> y/sizes"]);
        let last = lines.len() - 1;
        assert_eq!(
            lines[last - 5..last],
            [
                "Slice q y/bound/7 y/bound/8 queries/number -2 -> y/in/7",
                "MatMul y/in/7 k -> scores/7",
                "Mul scores/7 scale -> scaled/7",
                "Softmax scaled/7 -> parts/7",
                "MatMul parts/7 v -> y/7",
            ]
        );
        assert_eq!(lines[last], "Concat y/0 y/1 y/2 y/3 y/4 y/5 y/6 y/7 -> y");
        assert_eq!(attribute(&graph.node[last], "axis"), Some(-2));
    }

    #[test]
    fn attention_that_mixes_its_queries_is_left() {
        let is_left = |change: fn(&mut GraphProto)| {
            let before = unfused(change);
            let mut after = before.clone();
            after.slice_queries();
            after == before
        };
        assert!(!is_left(|_| {}));
        assert!(is_left(|graph| graph.node[2].attribute[0].i = Some(1)), "another axis");
        assert!(is_left(|graph| graph.node[2].attribute.clear()), "an axis that is not named");
        assert!(is_left(|graph| graph.node[1].input[1] = "mask".into()), "a mask of every query");
        assert!(is_left(|graph| graph.node[1].op_type = Some("CumSum".into())), "a sum over queries");
        assert!(is_left(|graph| graph.node[4].input.swap(0, 1)), "scores on the right");
        assert!(is_left(|graph| graph.node.push(node("Relu", &["scaled"], "z", vec![]))), "read twice");
        assert!(is_left(|graph| graph.output[0].name = Some("parts".into())), "a result");
        assert!(is_left(|graph| graph.node[0].input[1] = "scale".into()), "no keys");
    }
}
