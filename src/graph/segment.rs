//! Segments: a bound graph cut into parts that run one after another, each with only its own weights.
//! It knows nothing of sessions, and of time nothing but the order of the nodes.
//!
//! The graph is cut only in front of operators that multiply by a weight. ONNX Runtime fuses operators with those that
//! follow them, but such an operator with nothing that precedes it, so that segments compute what the whole computes.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::mem;
use std::ops::Range;

use prost::Message;

use super::bound::{BoundGraph, tables};
use super::node::opset;
use super::parameter::declared;
use super::proto::{
    self, GraphProto, ModelProto, NodeProto, TensorProto, TensorType, TypeProto, TypeValue, ValueInfoProto,
};

/// Operators in front of which a graph may be cut.
const OPENERS: [&str; 6] = ["Conv", "FusedMatMul", "Gemm", "MatMul", "MatMulIntegerToFloat", "MatMulNBits"];

/// How many pages come into memory around a range of a file that is read, as a rule; also, the gap that is read as well.
const AROUND_BYTES: usize = 64 << 10;

/// How much of a graph's description ONNX Runtime keeps: as many bytes per node, its kernel included.
const NODE_BYTES: usize = 8 << 10;

/// A part of a [`BoundGraph`].
pub(crate) struct Segment {
    /// The model but for the types of its inputs that other segments compute.
    model: ModelProto,
    /// What it reads: inputs of the whole graph, and values of earlier segments.
    pub(crate) inputs: Vec<String>,
    /// What it gives: outputs of the whole graph, and values that later segments read.
    pub(crate) outputs: Vec<String>,
    /// Which of the values that it reads no later segment does.
    pub(crate) spent: Vec<String>,
    /// How many bytes ONNX Runtime has for a session of it, but for weights and what it computes.
    pub(crate) description_bytes: usize,
    /// How many bytes of its weights are copied where kernels want them in another order.
    pub(crate) repacked_bytes: usize,
    /// How many bytes its weights take where they are converted.
    pub(crate) converted_bytes: usize,
    /// Where its weights lie that are used where they lie, by the number of the file in
    /// [`Weights`](crate::weights::Weights).
    pub(crate) ranges: Vec<(usize, Range<usize>)>,
    /// The numbers of all files that it has weights in.
    pub(crate) files: Vec<usize>,
    /// How many bytes of its weights are made in private memory while it is open.
    private_bytes: usize,
}

/// What a segment takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SegmentBytes {
    /// Its weights in files, with what comes with them into memory.
    pub(crate) weight_bytes: usize,
    /// All of it, if it stays open: what is repacked is in memory twice.
    pub(crate) open_bytes: usize,
}

/// Into how many segments the weights that may be in memory are divided: the one that runs, and the one that comes.
const WINDOW: usize = 2;

/// The least bytes of weights with which segments can run.
pub(crate) fn least_resident_bytes(segments: &[SegmentBytes]) -> usize {
    WINDOW * segments.iter().map(|segment| segment.weight_bytes).max().unwrap_or(0)
}

/// Which segments stay open where so many bytes of weights may be in memory: as many as leave room for the others.
pub(crate) fn pinned(segments: &[SegmentBytes], resident_bytes: usize) -> Vec<bool> {
    let mut left_bytes = resident_bytes.saturating_sub(least_resident_bytes(segments));
    let pin = |segment: &SegmentBytes| {
        let is_pinned = segment.open_bytes <= left_bytes;
        if is_pinned {
            left_bytes -= segment.open_bytes;
        }
        is_pinned
    };
    segments.iter().map(pin).collect()
}

/// The most that is in memory of segments of which some stay open, and the others come and go, each while the one before
/// it runs.
pub(crate) fn resident_bytes(segments: &[SegmentBytes], pinned: &[bool]) -> usize {
    let of = |is_pinned: bool| segments.iter().zip(pinned).filter(move |(_, pin)| **pin == is_pinned);
    let open: usize = of(true).map(|(segment, _)| segment.open_bytes).sum();
    let streamed: Vec<usize> = of(false).map(|(segment, _)| segment.weight_bytes).collect();
    let next = |index: usize| if streamed.len() > 1 { streamed[(index + 1) % streamed.len()] } else { 0 };
    open + streamed.iter().enumerate().map(|(index, bytes)| bytes + next(index)).max().unwrap_or(0)
}

impl Segment {
    /// What it takes.
    pub(crate) fn extent(&self) -> SegmentBytes {
        let weight_bytes = self.weight_bytes();
        SegmentBytes { weight_bytes, open_bytes: weight_bytes + self.repacked_bytes + self.description_bytes }
    }

    /// How many bytes of weights it has, with what comes with them into memory.
    pub(crate) fn weight_bytes(&self) -> usize {
        self.ranges.iter().map(|(_, range)| range.len() + AROUND_BYTES).sum::<usize>() + self.private_bytes
    }

    /// The bytes of its ONNX model, once the element types of values of earlier segments are known.
    pub(crate) fn encode(mut self, types: &HashMap<String, i32>) -> (Vec<u8>, Self) {
        let graph = self.model.graph.get_or_insert_default();
        for input in &mut graph.input {
            if let (None, Some(&code)) = (&input.r#type, types.get(input.name())) {
                let tensor = TypeValue::TensorType(TensorType { elem_type: Some(code), shape: None });
                input.r#type = Some(TypeProto { value: Some(tensor), ..Default::default() });
            }
        }
        let bytes = mem::take(&mut self.model).encode_to_vec();
        (bytes, self)
    }
}

impl BoundGraph {
    /// The numbers of the files of `weights` in which its parameters lie.
    pub(crate) fn files(&self) -> Vec<usize> {
        self.model.graph.as_ref().map_or_else(Vec::new, files)
    }

    /// Whether its weights are repacked however it is opened: kernels for blocks of integers are three times as slow on
    /// weights that are not, those for columns ([`super::int8`]) by an eighth.
    pub(crate) fn repacks(&self) -> bool {
        let nodes = || self.model.graph.iter().flat_map(|graph| &graph.node);
        let has = |op: &str| nodes().any(|node| node.op_type() == op);
        self.has_integers && (has("MatMulNBits") || !has("MatMulIntegerToFloat"))
    }

    /// Whether it rounds what layers read to integers.
    pub(crate) fn rounds(&self) -> bool {
        let mut nodes = self.model.graph.iter().flat_map(|graph| &graph.node);
        nodes.any(|node| matches!(node.op_type(), "QuantizeLinear" | "DynamicQuantizeLinear"))
    }

    /// How many bytes of integers are repacked where the session may keep copies.
    pub(crate) fn repacked_bytes(&self) -> usize {
        self.model.graph.as_ref().map_or(0, repacked)
    }

    /// Cuts the graph into as few segments as keep each one's weights, in the types in which they are computed with, to
    /// `segment_bytes`; operators with more are taken in slices, where they can be. A graph that cannot be cut, because
    /// nodes of it hold graphs, is one segment.
    pub(crate) fn segments(&self, segment_bytes: usize) -> Vec<Segment> {
        let mut graph = self.model.graph.clone().expect("a bound graph has one");
        graph.sort();
        if Plan::of(&graph).is_simple {
            graph.slice_tokens(opset(&self.model));
            graph.slice_queries();
            graph.slice_channels(segment_bytes);
        }
        let graph = &graph;
        let plan = Plan::of(graph);
        let mut cuts = vec![0];
        if plan.is_simple {
            let (mut bytes, mut seen) = (0, HashSet::new());
            for (place, needs) in plan.needs.iter().enumerate() {
                let new: Vec<usize> = needs.iter().copied().filter(|need| !seen.contains(need)).collect();
                let more: usize = new.iter().map(|&need| plan.constants[need].len_bytes).sum();
                let node = &graph.node[plan.nodes[place]];
                let may_cut = OPENERS.contains(&node.op_type()) && cuts.last() != Some(&place);
                if bytes + more > segment_bytes && may_cut {
                    cuts.push(place);
                    seen.clear();
                    bytes = needs.iter().map(|&need| plan.constants[need].len_bytes).sum();
                    seen.extend(needs);
                } else {
                    bytes += more;
                    seen.extend(new);
                }
            }
        }
        cuts.push(plan.nodes.len());
        let parts: Vec<Range<usize>> = cuts.windows(2).map(|pair| pair[0]..pair[1]).collect();
        self.parts(graph, &plan, &parts)
    }

    fn parts(&self, graph: &GraphProto, plan: &Plan, parts: &[Range<usize>]) -> Vec<Segment> {
        // In which part each value is computed, and the last in which it is read; results are read after all parts.
        let mut made: HashMap<&str, usize> = HashMap::new();
        let mut read: HashMap<&str, usize> = HashMap::new();
        for (part, places) in parts.iter().enumerate() {
            for node in places.clone().map(|place| &graph.node[plan.nodes[place]]) {
                node.input.iter().for_each(|name| {
                    read.insert(name, part);
                });
                node.output.iter().for_each(|name| {
                    made.insert(name, part);
                });
            }
        }
        graph.output.iter().for_each(|output| {
            read.insert(output.name(), parts.len());
        });
        let fed: HashMap<&str, &ValueInfoProto> =
            graph.input.iter().map(|input| (input.name(), input)).collect();

        let repacks = self.repacks();
        let segment = |part: usize, places: &Range<usize>| {
            let nodes: Vec<&NodeProto> = places.clone().map(|place| &graph.node[plan.nodes[place]]).collect();
            let mut needs: Vec<usize> =
                places.clone().flat_map(|place| &plan.needs[place]).copied().collect();
            needs.sort_unstable();
            needs.dedup();
            let mut inputs: Vec<&str> =
                nodes.iter().flat_map(|node| &node.input).map(String::as_str).collect();
            inputs.sort_unstable();
            inputs.dedup();
            inputs.retain(|name| match made.get(name) {
                Some(&maker) => maker < part,
                None => fed.contains_key(name) && !plan.is_constant(name),
            });
            let mut outputs: Vec<&str> =
                nodes.iter().flat_map(|node| &node.output).map(String::as_str).collect();
            outputs.retain(|name| read.get(name).is_some_and(|&reader| reader > part));
            let spent = inputs.iter().filter(|name| made.contains_key(*name) && read[*name] == part);

            let mut own = GraphProto { name: graph.name.clone(), ..Default::default() };
            let mut ranges = Vec::new();
            for Constant { origin, range, .. } in needs.iter().map(|&need| &plan.constants[need]) {
                match origin {
                    Origin::Initializer(index) => own.initializer.push(graph.initializer[*index].clone()),
                    Origin::Node(index) => own.node.push(graph.node[*index].clone()),
                }
                ranges.extend(range.clone().filter(|(file, _)| !self.weights.is_private(*file)));
            }
            own.node.extend(nodes.into_iter().cloned());
            own.input = inputs
                .iter()
                .map(|&name| match fed.get(name) {
                    Some(&input) => input.clone(),
                    None => ValueInfoProto { name: Some(name.into()), ..Default::default() },
                })
                .collect();
            let results: HashMap<&str, &ValueInfoProto> =
                graph.output.iter().map(|output| (output.name(), output)).collect();
            own.output = outputs
                .iter()
                .map(|&name| match results.get(name) {
                    Some(&output) => output.clone(),
                    None => ValueInfoProto { name: Some(name.into()), ..Default::default() },
                })
                .collect();
            let files = files(&own);
            let private_bytes = |file: &usize| self.weights.private_bytes(*file);
            ranges.retain(|(file, _)| private_bytes(file) == 0);
            let owned = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
            Segment {
                inputs: owned(&inputs),
                spent: spent.map(|&name| name.to_owned()).collect(),
                outputs: owned(&outputs),
                description_bytes: own.node.len() * NODE_BYTES,
                repacked_bytes: if repacks { repacked(&own) } else { 0 },
                converted_bytes: needs.iter().map(|&need| plan.converted_bytes(need)).sum(),
                ranges: joined(ranges),
                private_bytes: files.iter().map(private_bytes).sum(),
                files,
                model: ModelProto { graph: Some(own), ..self.model_without_graph() },
            }
        };
        parts.iter().enumerate().map(|(part, places)| segment(part, places)).collect()
    }

    fn model_without_graph(&self) -> ModelProto {
        let ModelProto { ir_version, opset_import, functions, .. } = &self.model;
        ModelProto {
            ir_version: *ir_version,
            opset_import: opset_import.clone(),
            functions: functions.clone(),
            ..Default::default()
        }
    }
}

/// A value that does not depend on what is fed.
struct Constant {
    origin: Origin,
    /// How many bytes it takes in memory.
    len_bytes: usize,
    /// Where it lies in a file.
    range: Option<(usize, Range<usize>)>,
}

enum Origin {
    Initializer(usize),
    Node(usize),
}

/// Which nodes wait for what is fed, and which constants each of them needs.
pub(super) struct Plan {
    constants: Vec<Constant>,
    names: HashMap<String, usize>,
    /// Indices of the nodes that are no constants, in order.
    pub(super) nodes: Vec<usize>,
    /// Per such node, the constants that it needs, and those that they need.
    pub(super) needs: Vec<Vec<usize>>,
    /// Whether no node holds a graph of its own, and every node follows those whose values it reads.
    is_simple: bool,
}

impl Plan {
    pub(super) fn of(graph: &GraphProto) -> Self {
        let mut plan =
            Self { constants: vec![], names: HashMap::new(), nodes: vec![], needs: vec![], is_simple: true };
        let mut closures: Vec<Vec<usize>> = Vec::new();
        let tables = tables(&graph.node);
        for (index, tensor) in graph.initializer.iter().enumerate() {
            let len_bytes = declared(0, tensor)
                .map_or(0, |own| own.shape.iter().product::<usize>() * own.dtype.size_bytes());
            plan.names.insert(tensor.name().into(), plan.constants.len());
            closures.push(vec![plan.constants.len()]);
            // Of a table only the rows that are looked up are ever in memory.
            let is_table = tables.contains(tensor.name());
            plan.constants.push(Constant {
                origin: Origin::Initializer(index),
                len_bytes: if is_table { 0 } else { len_bytes },
                range: if is_table { None } else { stored(tensor) },
            });
        }
        let mut known: HashSet<&str> = graph.input.iter().map(|input| input.name()).collect();
        for (index, node) in graph.node.iter().enumerate() {
            let holds_graph = |node: &NodeProto| {
                node.attribute.iter().any(|attribute| attribute.g.is_some() || !attribute.graphs.is_empty())
            };
            plan.is_simple &= !holds_graph(node);
            let read = node.input.iter().filter(|name| !name.is_empty());
            let mut needs: Vec<usize> = Vec::new();
            let mut is_constant = node.output.len() == 1 && !node.op_type().starts_with("Random");
            for name in read {
                match plan.names.get(name) {
                    Some(&constant) => needs.extend(&closures[constant]),
                    None => {
                        is_constant = false;
                        plan.is_simple &= known.contains(name.as_str());
                    }
                }
            }
            needs.sort_unstable();
            needs.dedup();
            if is_constant {
                // A conversion of a weight: as many elements, at most of 4 bytes.
                let source = node.input.first().and_then(|name| plan.names.get(name));
                let elements = source.map_or(0, |&source| match plan.constants[source].origin {
                    Origin::Initializer(index) => elements(&graph.initializer[index]),
                    Origin::Node(_) => plan.constants[source].len_bytes / 4,
                });
                let constant = plan.constants.len();
                plan.constants.push(Constant {
                    origin: Origin::Node(index),
                    len_bytes: elements * 4,
                    range: None,
                });
                needs.push(constant);
                closures.push(needs);
                plan.names.insert(node.output[0].clone(), constant);
            } else {
                known.extend(node.output.iter().map(String::as_str));
                plan.nodes.push(index);
                plan.needs.push(needs);
            }
        }
        // Results that wait for nothing have no place in any segment.
        plan.is_simple &= graph.output.iter().all(|output| known.contains(output.name()));
        plan
    }

    /// How many bytes a constant takes, if it is computed.
    pub(super) fn converted_bytes(&self, constant: usize) -> usize {
        let Constant { origin, len_bytes, .. } = &self.constants[constant];
        if matches!(origin, Origin::Node(_)) { *len_bytes } else { 0 }
    }

    fn is_constant(&self, name: &str) -> bool {
        self.names.contains_key(name)
    }
}

/// Ranges of files in order, those that are in the same pages or nearly so as one.
fn joined(mut ranges: Vec<(usize, Range<usize>)>) -> Vec<(usize, Range<usize>)> {
    ranges.sort_unstable_by_key(|(file, range)| (*file, range.start));
    ranges.dedup_by(|(file, range), (earlier_file, earlier)| {
        let is_near = file == earlier_file && range.start <= earlier.end + AROUND_BYTES;
        if is_near {
            earlier.end = earlier.end.max(range.end);
        }
        is_near
    });
    ranges
}

/// The numbers of the files in which a graph's parameters lie.
fn files(graph: &GraphProto) -> Vec<usize> {
    let files: BTreeSet<usize> = graph.initializer.iter().filter_map(stored).map(|(file, _)| file).collect();
    files.into_iter().collect()
}

/// The bytes of weights that products with integers keep in their own order, where they may.
fn repacked(graph: &GraphProto) -> usize {
    let packed = graph.node.iter().filter(|node| node.op_type() == "MatMulNBits");
    let names: HashSet<&str> = packed.flat_map(|node| &node.input[1..]).map(String::as_str).collect();
    let tensors = graph.initializer.iter().filter(|tensor| names.contains(tensor.name()));
    let blocks: usize = tensors.filter_map(stored).map(|(_, range)| range.len()).sum();
    blocks + repacked_columns(graph)
}

/// The bytes of those of `MatMulIntegerToFloat`: in whole tiles, with the sum of each column (`MlasGemmPackBSize`).
fn repacked_columns(graph: &GraphProto) -> usize {
    let packed = graph.node.iter().filter(|node| node.op_type() == "MatMulIntegerToFloat");
    let names: HashSet<&str> = packed.filter_map(|node| node.input.get(1)).map(String::as_str).collect();
    let tensors = graph.initializer.iter().filter(|tensor| names.contains(tensor.name()));
    let bytes = |tensor: &TensorProto| match tensor.dims[..] {
        [inputs, out] => {
            let [inputs, out] = [inputs, out].map(|size| usize::try_from(size).unwrap_or(0));
            out.next_multiple_of(16) * (inputs.next_multiple_of(64) + size_of::<i32>())
        }
        _ => 0,
    };
    tensors.map(bytes).sum()
}

pub(super) fn elements(tensor: &TensorProto) -> usize {
    tensor.dims.iter().map(|&size| usize::try_from(size).unwrap_or(0)).product()
}

/// Where a bound parameter lies: the number of its file, and its bytes.
pub(super) fn stored(tensor: &TensorProto) -> Option<(usize, Range<usize>)> {
    if tensor.data_location() != proto::EXTERNAL {
        return None;
    }
    let value =
        |key: &str| tensor.external_data.iter().find(|entry| entry.key() == key).map(|entry| entry.value());
    let number = |key: &str| value(key).and_then(|value| value.parse::<usize>().ok());
    let file = value("location")?.strip_prefix("weights-")?.parse().ok()?;
    let offset = number("offset")?;
    Some((file, offset..offset + number("length")?))
}
