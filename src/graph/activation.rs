//! Activations: how much memory a bound graph computes in, before it is opened. It follows the nodes in their order, as
//! ONNX Runtime does, and frees every value after the node that reads it last.
//!
//! It is an upper bound: operators that work in place, and those that are fused with others, take less. That it holds,
//! and how closely, `tests/plan.rs` measures.

use std::collections::HashMap;

use super::BoundGraph;
use super::proto::{GraphProto, NodeProto};
use super::segment::Plan;
use super::shape::{self, Shape};
use crate::{Error, ErrorKind};

/// Operators whose output is their input's memory.
const ALIASES: [&str; 4] = ["Identity", "Reshape", "Squeeze", "Unsqueeze"];

/// What a run takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Activations {
    /// The most bytes at once, weights that are converted for the operator that needs them included.
    pub(crate) whole_bytes: usize,
    /// The most bytes at once without converted weights.
    pub(crate) plain_bytes: usize,
    /// Multiplications with an addition each.
    pub(crate) operations: u64,
}

impl BoundGraph {
    /// The memory of a run with inputs of these sizes.
    ///
    /// # Errors
    /// [`ErrorKind::Model`] for an operator that is not known, inputs that do not fit, and sizes that depend on data.
    pub(crate) fn activations(&self, inputs: &[(String, Vec<usize>)]) -> Result<Activations, Error> {
        let graph = self.model.graph.as_ref().expect("a bound graph has one");
        let refuse = |problem: String| {
            Error::new(ErrorKind::Model, format!("{}: memory cannot be predicted: {problem}", self.name))
        };
        let mut known = shape::of_initializers(graph).map_err(refuse)?;
        for port in &self.inputs {
            let fed = inputs.iter().find(|(name, _)| *name == port.name);
            let (_, dims) = fed.ok_or_else(|| refuse(format!("input {}: expected a size, got none", port.name)))?;
            known.insert(&port.name, Shape::new(port.dtype, dims.clone()));
        }
        let plan = Plan::of(graph);
        for node in &graph.node {
            let outputs = shape::of_outputs(node, &known)
                .map_err(|problem| refuse(format!("{} ({}): {problem}", node.name(), node.op_type())))?;
            for (name, shape) in node.output.iter().zip(outputs) {
                shape.len_bytes().map_err(refuse)?;
                known.insert(name, shape);
            }
        }
        follow(graph, &plan, &known).map_err(refuse)
    }
}

fn follow(graph: &GraphProto, plan: &Plan, known: &HashMap<&str, Shape>) -> Result<Activations, String> {
    // Values that share memory go by the name of the first of them.
    let mut root: HashMap<&str, &str> = HashMap::new();
    for node in plan.nodes.iter().map(|&index| &graph.node[index]) {
        if ALIASES.contains(&node.op_type()) && !node.input.is_empty() {
            let source = node.input[0].as_str();
            root.insert(&node.output[0], root.get(source).copied().unwrap_or(source));
        }
    }
    let of = |name: &'_ str| -> Option<usize> { known.get(name)?.len_bytes().ok() };
    let mut last: HashMap<&str, usize> = HashMap::new();
    for (place, &index) in plan.nodes.iter().enumerate() {
        for name in &graph.node[index].input {
            last.insert(root.get(name.as_str()).copied().unwrap_or(name), place);
        }
    }
    for output in &graph.output {
        last.insert(root.get(output.name()).copied().unwrap_or(output.name()), usize::MAX);
    }

    let mut activations = Activations::default();
    let mut live: HashMap<&str, usize> = HashMap::new();
    let mut live_bytes = 0usize;
    for (place, (&index, needs)) in plan.nodes.iter().zip(&plan.needs).enumerate() {
        let node = &graph.node[index];
        let is_alias = ALIASES.contains(&node.op_type());
        if !is_alias {
            for name in node.output.iter().filter(|name| !name.is_empty()) {
                let bytes = of(name).ok_or("expected sizes that memory can hold")?;
                live.insert(name, bytes);
                live_bytes = live_bytes.saturating_add(bytes);
            }
        }
        let busy_bytes = live_bytes.saturating_add(scratch_bytes(node, known));
        let converted: usize = needs.iter().map(|&need| plan.converted_bytes(need)).sum();
        activations.plain_bytes = activations.plain_bytes.max(busy_bytes);
        activations.whole_bytes = activations.whole_bytes.max(busy_bytes.saturating_add(converted));
        activations.operations = activations.operations.saturating_add(operations(node, known));
        let ended = node.input.iter().chain(&node.output).map(String::as_str);
        for name in ended.map(|name| root.get(name).copied().unwrap_or(name)) {
            if last.get(name).is_none_or(|&reader| reader <= place) {
                live_bytes -= live.remove(name).unwrap_or(0);
            }
        }
    }
    Ok(activations)
}

/// What an operator computes in beside its inputs and outputs, in ONNX Runtime 1.31 on a CPU.
fn scratch_bytes(node: &NodeProto, known: &HashMap<&str, Shape>) -> usize {
    let input = |index: usize| node.input.get(index).and_then(|name| known.get(name.as_str()));
    let len = |index: usize| input(index).and_then(|shape| shape.len_bytes().ok()).unwrap_or(0);
    let output = node.output.first().and_then(|name| known.get(name.as_str()));
    match node.op_type() {
        // Queries, keys and values with the heads outside.
        "MultiHeadAttention" => {
            let heads = shape::attribute(node, "num_heads").map_or(1, |heads| heads.i()) as usize;
            let is_causal = shape::attribute(node, "unidirectional").is_some_and(|flag| flag.i() != 0);
            // All scores at once, where the kernel that goes block by block cannot mask them.
            let scores = match (is_causal, input(0), input(1)) {
                (true, Some(q), Some(k)) => q.dims[0] * heads * q.dims[1] * k.dims[1] * 4,
                _ => 0,
            };
            len(0) + len(1) + len(2) + scores
        }
        // Pictures with fewer cells than there are filters are unfolded whole (MlasConvPrepare).
        "Conv" => match (input(1), output) {
            (Some(kernel), Some(output)) if output.dims.len() == 4 && kernel.dims.len() == 4 => {
                let cells = output.dims[2] * output.dims[3];
                let window: usize = kernel.dims[1..].iter().product();
                let is_plain = kernel.dims[2..] == [1, 1];
                if kernel.dims[0] > cells && !is_plain { cells * window * 4 } else { 0 }
            }
            _ => 0,
        },
        // The input as 8-bit integers with their scales and sums.
        "MatMulNBits" => len(0) / 2,
        _ => 0,
    }
}

/// Multiplications with an addition each.
fn operations(node: &NodeProto, known: &HashMap<&str, Shape>) -> u64 {
    let dims = |name: Option<&String>| name.and_then(|name| known.get(name.as_str())).map(|shape| &shape.dims[..]);
    let product = |dims: &[usize]| dims.iter().fold(1u64, |all, &dim| all.saturating_mul(dim as u64));
    let (Some(input), Some(output)) = (dims(node.input.first()), dims(node.output.first())) else { return 0 };
    let inner = *input.last().unwrap_or(&1) as u64;
    match (node.op_type(), dims(node.input.get(1))) {
        ("Conv", Some(kernel)) => product(output).saturating_mul(product(&kernel[1..])),
        ("FusedMatMul" | "MatMul" | "MatMulNBits" | "Gemm", _) => product(output).saturating_mul(inner),
        ("MultiHeadAttention", Some([_, keys, _])) => product(output).saturating_mul(2 * *keys as u64),
        _ => 0,
    }
}
