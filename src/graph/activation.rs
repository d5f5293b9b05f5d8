//! Activations: what memory the values of a graph take while ONNX Runtime computes them on a CPU, and how much work that
//! is. It predicts the runtime's order, what shares a buffer, and its kernels' own scratch; it measures nothing.
//!
//! What is predicted is that of ONNX Runtime 1.31 without arena and memory pattern, without prepacking, optimised to the
//! second level. It is an upper bound: where the runtime joins nodes, values are counted that are not made.
//! - It computes depth first, from the outputs back, of a node's sources the last in the file first
//!   (`Graph::ReverseDFSFrom`): conversions of weights, which lie at the front, directly before their use.
//! - Each value gets a buffer that is freed after its last use. Reshapes share their input's. A value whose shape is known
//!   before the run may take the buffer of a dead one of the very same shape, which is not freed in between
//!   (`PlannerImpl::FindReusableTensor`): that of weights that are converted, which can triple what they take.

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use super::proto::NodeProto;
use super::shape::{Shapes, Tensor, describe};
use super::{Dim, Graph};
use crate::{Error, ErrorKind};

/// Buffers are aligned to this.
const ALIGNMENT_BYTES: usize = 64;
/// What is computed from constants alone and is no larger is computed when the session opens (`sys.rs` sets this).
const MAX_FOLDED_BYTES: usize = 64 << 10;
/// The working memory of one thread of a convolution (`MLAS_CONV_WORKING_BUFFER_SIZE_PER_THREAD` floats).
const CONV_BUFFER_BYTES: usize = 128 * 128 * 4;
/// How much of attention's scores a thread keeps is a quarter of the second-level cache; larger ones are rare.
const MAX_CACHE_BYTES: usize = 4 << 20;
const F32_BYTES: usize = 4;
/// What is predicted more than is computed, against the runtime's bookkeeping and nodes that it joins and so moves: one in
/// so many bytes, and a few. Without it 22 graphs and sizes gave 0.977 to 1.000 of what was measured (U-Nets, text
/// encoders and VAEs of Stable Diffusion 1.5, XL and the built-in model; weights in 32 and 16 bits, 8 and 4 bits).
const MARGIN: usize = 32;
const MARGIN_BYTES: usize = 64 << 10;

/// What a graph's values take, node by node in the order in which they are computed.
#[derive(Debug)]
pub(crate) struct Activations {
    steps: Vec<Step>,
    buffers: Vec<Buffer>,
    /// What values take for as long as the session is open, because they are computed when it opens.
    pub(crate) resident_bytes: usize,
}

/// One node's part.
#[derive(Debug)]
pub(crate) struct Step {
    /// What its kernel takes for itself while it runs.
    pub(crate) scratch_bytes: usize,
    /// Its multiplications with an addition.
    pub(crate) operations: u64,
}

/// Memory and when it is taken.
#[derive(Debug)]
struct Buffer {
    len_bytes: usize,
    /// From the step that allocates it to the last that uses it.
    steps: Range<usize>,
}

impl Activations {
    /// What is taken while each step runs, its outputs and its kernel's scratch included.
    fn live_bytes(&self) -> Vec<usize> {
        let mut changes = vec![0isize; self.steps.len() + 1];
        for Buffer { len_bytes, steps } in &self.buffers {
            changes[steps.start] += *len_bytes as isize;
            changes[steps.end] -= *len_bytes as isize;
        }
        let mut live = 0usize;
        let live = self.steps.iter().zip(changes).map(|(step, change)| {
            live = live.saturating_add_signed(change);
            live + step.scratch_bytes
        });
        live.collect()
    }

    /// The most that is taken at once, what is there as long as the session is open included.
    pub(crate) fn peak_bytes(&self) -> usize {
        let peak = self.live_bytes().into_iter().max().unwrap_or(0);
        self.resident_bytes + peak + peak / MARGIN + MARGIN_BYTES
    }

    /// The multiplications with an addition of all steps.
    pub(crate) fn operations(&self) -> u64 {
        self.steps.iter().map(|step| step.operations).sum()
    }
}

impl Graph {
    /// What the graph's values take when it is fed tensors of these shapes and runs on so many threads.
    /// `converted` names the parameters that are stored in 16-bit floats, and so made 32-bit ones in every run; without it
    /// no weights are counted, in whatever way they are converted.
    ///
    /// # Errors
    /// Those of [`Graph::shapes`].
    pub(crate) fn activations(
        &self,
        inputs: &[(&str, &[usize])],
        threads: usize,
        converted: Option<&HashSet<&str>>,
    ) -> Result<Activations, Error> {
        let shapes = self.shapes(inputs)?;
        let plan = Plan::new(self, &shapes, converted);
        plan.walk(threads)
            .map_err(|problem| Error::new(ErrorKind::Model, format!("{}: {problem}", self.name)))
    }
}

/// The runtime's allocation plan in the making.
struct Plan<'a, 's> {
    graph: &'a Graph,
    shapes: &'s Shapes<'a>,
    /// Parameters that a conversion before their first use makes.
    converted: HashSet<&'a str>,
    /// Values that are there before the run and stay: initializers, and what follows from them when the session opens.
    constant: HashSet<&'a str>,
    /// Values whose shape is known before the run.
    known: HashSet<&'a str>,
    resident_bytes: usize,
}

impl<'a, 's> Plan<'a, 's> {
    fn new(graph: &'a Graph, shapes: &'s Shapes<'a>, converted: Option<&HashSet<&str>>) -> Self {
        let proto = &graph.graph;
        let mut plan = Self {
            graph,
            shapes,
            converted: HashSet::new(),
            constant: HashSet::new(),
            known: HashSet::new(),
            resident_bytes: 0,
        };
        for tensor in &proto.initializer {
            let name = tensor.name();
            plan.known.insert(name);
            if converted.is_none_or(|converted| !converted.contains(name)) {
                plan.constant.insert(name);
            } else if plan.len_bytes(name) <= MAX_FOLDED_BYTES {
                plan.fold(name);
            } else {
                plan.converted.insert(name);
            }
        }
        let is_fixed = |dim: &Dim| matches!(dim, Dim::Fixed(_));
        let is_static = graph.inputs.iter().all(|port| port.dims.iter().all(is_fixed));
        for node in shapes.order.iter().map(|&index| &proto.node[index]) {
            let all_in = |set: &HashSet<&str>| {
                node.input.iter().all(|name| name.is_empty() || set.contains(name.as_str()))
            };
            let is_known = is_static || all_in(&plan.known);
            let is_free = converted.is_none() && !node.input.is_empty() && all_in(&plan.constant);
            let is_constant = all_in(&plan.constant)
                && !matches!(node.op_type(), "DequantizeLinear" | "RandomNormalLike" | "RandomUniformLike")
                && node.output.iter().all(|name| plan.len_bytes(name) <= MAX_FOLDED_BYTES);
            for name in node.output.iter().filter(|name| !name.is_empty()) {
                if is_known {
                    plan.known.insert(name);
                }
                if is_free {
                    plan.constant.insert(name);
                } else if is_constant {
                    plan.fold(name);
                }
            }
        }
        plan
    }

    fn fold(&mut self, name: &'a str) {
        self.resident_bytes += self.len_bytes(name).next_multiple_of(ALIGNMENT_BYTES);
        self.constant.insert(name);
    }

    fn tensor(&self, name: &str) -> Option<&'s Tensor> {
        self.shapes.get(name)
    }

    fn len_bytes(&self, name: &str) -> usize {
        self.tensor(name).map_or(0, Tensor::len_bytes)
    }

    /// The nodes that are computed in a run, in that order.
    fn order(&self) -> Vec<usize> {
        let nodes = &self.graph.graph.node;
        let is_run = |node: &NodeProto| node.output.iter().any(|name| !self.constant.contains(name.as_str()));
        let mut sources: HashMap<&str, usize> = HashMap::new();
        let mut is_used = vec![false; nodes.len()];
        for (index, node) in nodes.iter().enumerate() {
            let given = node.output.iter().filter(|name| !name.is_empty());
            sources.extend(given.map(|name| (name.as_str(), index)));
        }
        for name in nodes.iter().filter(|node| is_run(node)).flat_map(|node| &node.input) {
            if let Some(&source) = sources.get(name.as_str()) {
                is_used[source] = true;
            }
        }
        let mut order = Vec::with_capacity(nodes.len());
        let mut is_entered = vec![false; nodes.len()];
        // What is not used by another node is where the runtime begins; it takes the last of a stack first.
        let ends = (0..nodes.len()).filter(|&index| !is_used[index] && is_run(&nodes[index]));
        let mut stack: Vec<(usize, bool)> = ends.map(|index| (index, false)).collect();
        while let Some((index, is_left)) = stack.pop() {
            if is_left {
                order.push(index);
                continue;
            }
            if std::mem::replace(&mut is_entered[index], true) {
                continue;
            }
            stack.push((index, true));
            let mut before: Vec<usize> =
                nodes[index].input.iter().filter_map(|name| sources.get(name.as_str()).copied()).collect();
            before.sort_unstable();
            before.dedup();
            let open = before.into_iter().filter(|&source| !is_entered[source] && is_run(&nodes[source]));
            stack.extend(open.map(|source| (source, false)));
        }
        order
    }

    /// What `x * sigmoid(x)` makes on the way, which the runtime computes in one pass (`QuickGeluFusion`).
    fn joined(&self) -> HashSet<&'a str> {
        let nodes = &self.graph.graph.node;
        let mut uses: HashMap<&str, usize> = HashMap::new();
        for name in nodes.iter().flat_map(|node| &node.input) {
            *uses.entry(name).or_default() += 1;
        }
        let is_sigmoid = |node: &&NodeProto| node.op_type() == "Sigmoid" && node.domain().is_empty();
        let sigmoids: HashMap<&str, &str> = nodes
            .iter()
            .filter(is_sigmoid)
            .filter_map(|node| Some((node.output.first()?.as_str(), node.input.first()?.as_str())))
            .collect();
        let is_own = |sigmoid: &str, x: &str| sigmoids.get(sigmoid) == Some(&x) && uses[sigmoid] == 1;
        let products = nodes.iter().filter(|node| node.op_type() == "Mul" && node.domain().is_empty());
        products
            .filter_map(|node| match &node.input[..] {
                [a, b] if is_own(a, b) => Some(a.as_str()),
                [a, b] if is_own(b, a) => Some(b.as_str()),
                _ => None,
            })
            .filter(|name| self.graph.outputs.iter().all(|port| port.name != *name))
            .collect()
    }

    fn walk(self, threads: usize) -> Result<Activations, String> {
        let nodes = &self.graph.graph.node;
        let order = self.order();
        let outputs: HashSet<&str> = self.graph.outputs.iter().map(|port| port.name.as_str()).collect();

        // The step after the last that uses each value; outputs are there to the end.
        let mut ends: HashMap<&str, usize> = HashMap::new();
        for (step, &index) in order.iter().enumerate() {
            for name in nodes[index].input.iter().chain(&nodes[index].output) {
                ends.insert(name, if outputs.contains(name.as_str()) { order.len() } else { step + 1 });
            }
        }

        let joined = self.joined();
        let mut buffers: Vec<Buffer> = Vec::new();
        let mut owner: HashMap<&str, usize> = HashMap::new();
        // The shape for which a buffer was made, if another value may have it.
        let mut shared: Vec<Option<&Tensor>> = Vec::new();
        let mut free: Vec<usize> = Vec::new();
        let mut steps = Vec::with_capacity(order.len());
        for (step, &index) in order.iter().enumerate() {
            let node = &nodes[index];
            let converted =
                node.input.iter().map(String::as_str).filter(|name| self.converted.contains(name));
            let made: Vec<&str> = converted.filter(|name| !owner.contains_key(name)).collect();
            let given = node.output.iter().map(String::as_str).filter(|name| !name.is_empty());
            for name in made.into_iter().chain(given) {
                if owner.contains_key(name) || joined.contains(name) {
                    continue;
                }
                let Some(tensor) = self.tensor(name) else { continue };
                let end = *ends.get(name).unwrap_or(&(step + 1));
                let is_made_here = node.output.iter().any(|output| output == name);
                if is_made_here && shares_input(node) {
                    let input = node.input[0].as_str();
                    match owner.get(input) {
                        Some(&buffer) => {
                            owner.insert(name, buffer);
                            buffers[buffer].steps.end = buffers[buffer].steps.end.max(end);
                        }
                        // What is there before the run is nobody's to count.
                        None if self.tensor(input).is_some() => {}
                        None => return Err(describe(node, "expected a value of an earlier node")),
                    }
                    continue;
                }
                let is_known =
                    self.known.contains(name) && !outputs.contains(name) && !tensor.shape.is_empty();
                let fits = |&&buffer: &&usize| {
                    shared[buffer].is_some_and(|other| {
                        other.shape == tensor.shape && other.dtype.size_bytes() == tensor.dtype.size_bytes()
                    })
                };
                // The one that became free last.
                let found = if is_known { free.iter().rposition(|buffer| fits(&buffer)) } else { None };
                let buffer = match found {
                    Some(place) => {
                        let buffer = free.remove(place);
                        buffers[buffer].steps.end = end;
                        buffer
                    }
                    None => {
                        let len_bytes = tensor.len_bytes().next_multiple_of(ALIGNMENT_BYTES);
                        buffers.push(Buffer { len_bytes, steps: step..end });
                        shared.push(is_known.then_some(tensor));
                        buffers.len() - 1
                    }
                };
                owner.insert(name, buffer);
            }
            let ended = node.input.iter().chain(&node.output).filter_map(|name| owner.get(name.as_str()));
            for &buffer in ended {
                if buffers[buffer].steps.end == step + 1
                    && shared[buffer].is_some()
                    && !free.contains(&buffer)
                {
                    free.push(buffer);
                }
            }
            let (scratch_bytes, operations) = cost(node, self.shapes, threads);
            steps.push(Step { scratch_bytes, operations });
        }
        Ok(Activations { steps, buffers, resident_bytes: self.resident_bytes })
    }
}

/// Whether a node's output is its first input by another name or shape.
fn shares_input(node: &NodeProto) -> bool {
    let names = ["Reshape", "Identity", "Squeeze", "Unsqueeze", "Flatten", "Dropout"];
    names.contains(&node.op_type()) && node.domain().is_empty()
}

/// What a node's kernel takes for itself, and its multiplications with an addition.
fn cost(node: &NodeProto, shapes: &Shapes<'_>, threads: usize) -> (usize, u64) {
    let find = |names: &[String], index: usize| names.get(index).and_then(|name| shapes.get(name));
    let (Some(x), Some(y)) = (find(&node.input, 0), find(&node.output, 0)) else { return (0, 0) };
    let int = |name: &str, default: i64| {
        node.attribute
            .iter()
            .find(|attribute| attribute.name() == name)
            .map_or(default, |attribute| attribute.i())
    };
    let by = find(&node.input, 1);
    let work = |each: usize| (y.elements() as u64).saturating_mul(each as u64);
    match (node.op_type(), by) {
        ("Conv", Some(weight)) => {
            let depth: usize = weight.shape[1..].iter().product();
            (conv_bytes(node, x, weight, y, threads), work(depth))
        }
        ("ConvTranspose", Some(weight)) => {
            // One image's columns, before they are added up.
            let columns =
                weight.shape[1..].iter().product::<usize>() * x.shape[2..].iter().product::<usize>();
            (
                columns * F32_BYTES,
                (x.elements() as u64).saturating_mul(weight.shape[1..].iter().product::<usize>() as u64),
            )
        }
        ("MatMul" | "FusedMatMul" | "Gemm", Some(weight)) => {
            let turned = int("transB", 0) != 0;
            let depth = match weight.shape[..] {
                [.., rows, columns] => {
                    if turned {
                        columns
                    } else {
                        rows
                    }
                }
                _ => 1,
            };
            (0, work(depth))
        }
        ("MatMulNBits", _) => {
            nbits(x, y, int("accuracy_level", 0), int("block_size", 32), int("N", 0), int("K", 0))
        }
        // Integers are multiplied in their place, and are in memory as the values that they are.
        ("MatMulIntegerToFloat", Some(weight)) => (0, work(weight.shape.first().copied().unwrap_or(1))),
        ("MultiHeadAttention", Some(k)) => match find(&node.input, 2) {
            Some(v) => attention(x, k, v, int("num_heads", 1), int("unidirectional", 0) != 0, threads),
            None => (0, 0),
        },
        // Turned so that the axis is the last one, and back.
        ("Softmax", _) => {
            let last = x.shape.len() as i64 - 1;
            let axis = int("axis", -1);
            let is_last = axis == -1 || axis == last;
            (if is_last { 0 } else { 2 * x.len_bytes() }, 0)
        }
        // Operands turned, and the product before it is turned.
        ("Einsum", Some(b)) => {
            (x.len_bytes() + b.len_bytes() + y.len_bytes(), work(x.shape.last().copied().unwrap_or(1)))
        }
        _ => (0, 0),
    }
}

/// `MlasConvPrepare`: which of its ways a convolution goes depends on its shape.
fn conv_bytes(node: &NodeProto, x: &Tensor, weight: &Tensor, y: &Tensor, threads: usize) -> usize {
    let list = |name: &str| {
        node.attribute.iter().find(|attribute| attribute.name() == name).map_or(&[][..], |a| &a.ints)
    };
    let groups = x.shape[1] / weight.shape[1].max(1);
    let (batch, filters) = (x.shape[0], weight.shape[0] / groups.max(1));
    let pixels: usize = y.shape[2..].iter().product();
    let kernel: usize = weight.shape[2..].iter().product();
    let depth = weight.shape[1] * kernel;
    let is_plain =
        list("strides").iter().all(|&stride| stride == 1) && list("pads").iter().all(|&pad| pad == 0);
    if is_plain && kernel == 1 {
        return 0; // The image itself is the matrix.
    }
    if filters > pixels {
        return pixels * depth * F32_BYTES;
    }
    if groups > 1 {
        let each = (pixels * depth.max(filters) * F32_BYTES).max(CONV_BUFFER_BYTES);
        return threads.min(batch * groups) * each;
    }
    threads * CONV_BUFFER_BYTES
}

/// The scratch and the work of a product with quantised weights.
fn nbits(x: &Tensor, y: &Tensor, level: i64, block: i64, outputs: i64, inputs: i64) -> (usize, u64) {
    let size = |value: i64| usize::try_from(value).unwrap_or(0);
    let (block, outputs, inputs) = (size(block).max(1), size(outputs), size(inputs));
    let rows = x.elements() / inputs.max(1);
    let operations = (y.elements() as u64).saturating_mul(inputs as u64);
    let rounded = rows * inputs.div_ceil(block) * (block + 2 * F32_BYTES);
    // Without prepacking, weights are made floats for the product.
    let floats = inputs.next_multiple_of(block) * outputs * F32_BYTES;
    (if level == 4 { rounded.max(floats) } else { floats }, operations)
}

/// The scratch and the work of attention: copies with heads outermost, and either the scores of a few queries and keys
/// for each thread, or all.
fn attention(q: &Tensor, k: &Tensor, v: &Tensor, heads: i64, causal: bool, threads: usize) -> (usize, u64) {
    let heads = usize::try_from(heads).unwrap_or(1).max(1);
    let (batch, queries, width) = (q.shape[0], q.shape[1], q.shape[2]);
    let (keys, value_width) = (k.shape[1], v.shape[2]);
    let copies = q.len_bytes() + k.len_bytes() + v.len_bytes();
    let operations = (batch * queries * keys) as u64 * (width + value_width) as u64;
    let scratch = if causal {
        // All scores, the mask, and the result with heads outermost.
        batch * heads * queries * keys + queries * keys + batch * queries * value_width
    } else {
        let (head, value_head) = (width / heads, value_width / heads);
        let fitting = (MAX_CACHE_BYTES / (4 * F32_BYTES * (head + value_head).max(1))).max(1);
        let rows = fitting.min(head + value_head).min(queries);
        threads * rows * (2 + fitting.min(keys) + value_head)
    };
    (copies + scratch * F32_BYTES, operations)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    use crate::graph::OPEN_LOCATION;
    use crate::graph::int8::{Int8, WeightBits, ints};
    use crate::graph::node::{MICROSOFT, entry, integer};
    use crate::graph::proto::{EXTERNAL, OperatorSetIdProto, TensorProto};
    use crate::graph::shape::tests::{graph, node, plain, stored};

    fn builtin(name: &str) -> Graph {
        stored(&format!("models/builtin/graphs/{name}.onnx.gz"))
    }

    /// Peaks of bytes that ONNX Runtime 1.31.1 really allocated in a run, by an allocation counter loaded before it.
    #[test]
    fn peaks_are_as_measured_and_never_less() {
        let text: [(&str, &[usize]); 1] = [("input_ids", &[2, 24])];
        let unet: [(&str, &[usize]); 3] =
            [("sample", &[2, 16, 32, 32]), ("timestep", &[]), ("encoder_hidden_states", &[2, 32, 192])];
        let small: [(&str, &[usize]); 3] =
            [("sample", &[1, 16, 16, 16]), ("timestep", &[]), ("encoder_hidden_states", &[1, 32, 192])];
        let decoder: [(&str, &[usize]); 1] = [("latent_sample", &[1, 16, 64, 64])];
        let encoder: [(&str, &[usize]); 1] = [("sample", &[1, 3, 128, 128])];
        type Feeds<'a> = &'a [(&'a str, &'a [usize])];
        let cases: [(&str, Feeds<'_>, usize, usize); 5] = [
            ("text_encoder", &text, 2, 352_104),
            ("unet", &small, 1, 1_914_084),
            ("unet", &unet, 2, 15_013_092),
            ("vae_decoder", &decoder, 1, 402_720_928),
            ("vae_encoder", &encoder, 2, 4_065_272),
        ];
        let exported: [(&str, &[usize]); 1] = [("latent_sample", &[1, 4, 32, 32])];
        let exported = ("optimum/vae_decoder", &exported[..], 2, 8_528_416);
        for (name, inputs, threads, measured) in cases.into_iter().chain([exported]) {
            let graph = match name {
                "optimum/vae_decoder" => {
                    stored("tests/golden/onnx_folders/optimum/vae_decoder/model.onnx.gz")
                }
                _ => builtin(name),
            };
            let activations = graph.activations(inputs, threads, Some(&HashSet::new())).unwrap();
            let peak = activations.peak_bytes();
            assert!(peak >= measured, "{name}: {peak}, measured {measured}");
            assert!(peak as f64 <= 1.25 * measured as f64, "{name}: {peak}, measured {measured}");
        }
    }

    #[test]
    fn converted_weights_take_memory() {
        let graph = builtin("unet");
        let all = graph.parameters().iter().map(|parameter| parameter.name.as_str()).collect();
        let inputs: [(&str, &[usize]); 3] =
            [("sample", &[1, 16, 16, 16]), ("timestep", &[]), ("encoder_hidden_states", &[1, 32, 192])];
        let plain = graph.activations(&inputs, 1, Some(&HashSet::new())).unwrap();
        let converted = graph.activations(&inputs, 1, Some(&all)).unwrap();
        assert!(converted.peak_bytes() > plain.peak_bytes());
        assert_eq!(plain.resident_bytes, 0);
        assert!(converted.resident_bytes > 0);
    }

    #[test]
    fn work_is_that_of_products_and_convolutions() {
        let graph = builtin("vae_encoder");
        let inputs: [(&str, &[usize]); 1] = [("sample", &[1, 3, 128, 128])];
        let first = graph.activations(&inputs, 1, Some(&HashSet::new())).unwrap();
        let conv = first.steps.iter().find(|step| step.operations > 0).unwrap();
        let node = graph.graph.node.iter().find(|node| node.op_type() == "Conv").unwrap();
        let weight = graph.parameters().iter().find(|parameter| parameter.name == node.input[1]).unwrap();
        assert_eq!(conv.operations, (weight.shape.iter().product::<usize>() * 128 * 128) as u64);
    }

    fn of(graph: &Graph, x: &[usize], converted: &[&str]) -> Activations {
        graph.activations(&[("x", x)], 2, Some(&converted.iter().copied().collect())).unwrap()
    }

    #[test]
    fn convolutions_take_columns_or_a_buffer_per_thread() {
        let conv = || vec![node("Conv", &["x", "w"], "y", vec![])];
        // More filters than the 2x2 pixels: all columns, of 9 floats.
        let narrow = graph(conv(), vec![plain("w", &[32, 1, 3, 3])], 4);
        assert_eq!(of(&narrow, &[1, 1, 4, 4], &[]).steps[0].scratch_bytes, 4 * 9 * 4);
        let wide = graph(conv(), vec![plain("w", &[32, 1, 3, 3])], 4);
        assert_eq!(of(&wide, &[1, 1, 40, 40], &[]).steps[0].scratch_bytes, 2 * 65_536);
        let pointwise = graph(conv(), vec![plain("w", &[32, 1, 1, 1])], 4);
        assert_eq!(of(&pointwise, &[1, 1, 40, 40], &[]).steps[0].scratch_bytes, 0);
    }

    /// Nine copies of the image in integers, and as many again while they are put side by side, in place of a convolution's
    /// scratch.
    #[test]
    fn columns_of_integers_take_nine_images_twice() {
        let mut graph = graph(
            vec![node("Conv", &["x", "w"], "y", vec![ints("pads", &[1, 1, 1, 1])])],
            vec![TensorProto {
                data_location: Some(EXTERNAL),
                external_data: vec![entry("location", OPEN_LOCATION.into())],
                ..plain("w", &[20, 32, 3, 3])
            }],
            4,
        );
        graph.model.opset_import = vec![OperatorSetIdProto { domain: None, version: Some(18) }];
        let graph = Graph::decode("unet", &graph.encode()).unwrap();
        let how = Int8 { has_blocks: false, bits: WeightBits::Eight };
        let (graph, _) = graph.compute_in_int8(how, &BTreeSet::new()).unwrap();
        let shapes = graph.shapes(&[("x", &[2, 32, 16, 16])]).unwrap();
        assert_eq!(shapes.get("y").unwrap().shape, [2, 20, 16, 16]);
        let found = of(&graph, &[2, 32, 16, 16], &[]);
        let (pixels, numbers) = (2 * 16 * 16, 2 * ALIGNMENT_BYTES);
        assert_eq!(found.live_bytes().into_iter().max(), Some(18 * 32 * pixels + numbers));
        let product = found.steps.iter().find(|step| step.operations > 0).unwrap();
        assert_eq!((product.operations, product.scratch_bytes), ((20 * 9 * 32 * pixels) as u64, 0));
    }

    #[test]
    fn attention_takes_copies_and_scores() {
        let scratch = |causal: i64| {
            let flags = vec![integer("num_heads", 2), integer("unidirectional", causal)];
            let mut attention = node("MultiHeadAttention", &["x", "x", "x"], "y", flags);
            attention.domain = Some(MICROSOFT.into());
            of(&graph(vec![attention], vec![], 3), &[1, 4, 8], &[]).steps[0].scratch_bytes
        };
        let copies = 3 * 4 * 8;
        assert_eq!(scratch(0), (copies + 2 * 4 * (2 + 4 + 4)) * 4);
        assert_eq!(scratch(1), (copies + 2 * 4 * 4 + 4 * 4 + 4 * 8) * 4);
    }

    #[test]
    fn sources_come_last_first_and_reshapes_and_silu_take_nothing() {
        let nodes = vec![
            node("Relu", &["x"], "a", vec![]),
            node("Exp", &["x"], "b", vec![]),
            node("Add", &["a", "b"], "c", vec![]),
            node("Flatten", &["c"], "d", vec![]),
            node("Sigmoid", &["d"], "e", vec![]),
            node("Mul", &["d", "e"], "y", vec![]),
        ];
        let graph = graph(nodes, vec![], 2);
        let shapes = graph.shapes(&[("x", &[4, 16])]).unwrap();
        assert_eq!(Plan::new(&graph, &shapes, None).order(), [1, 0, 2, 3, 4, 5]);
        let live: Vec<usize> = of(&graph, &[4, 16], &[]).live_bytes().iter().map(|live| live / 256).collect();
        assert_eq!(live, [1, 2, 3, 1, 1, 2]);
    }

    #[test]
    fn buffers_of_converted_weights_are_held_for_the_next_of_their_shape() {
        let nodes = || {
            vec![
                node("Add", &["x", "v"], "a", vec![]),
                node("Relu", &["a"], "b", vec![]),
                node("Add", &["b", "w"], "y", vec![]),
            ]
        };
        let each = 128 * 256 * 4;
        let live = |second: &[i64]| {
            let graph = graph(nodes(), vec![plain("v", &[128, 256]), plain("w", second)], 2);
            let live = of(&graph, &[128, 256], &["v", "w"]).live_bytes();
            live.into_iter().map(|live| live / each).collect::<Vec<_>>()
        };
        assert_eq!(live(&[128, 256]), [2, 3, 3]);
        assert_eq!(live(&[1, 128, 256]), [2, 2, 3]);
    }
}
