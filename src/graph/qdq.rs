//! Static int8 compute in standard operators: what layers read is rounded to 8-bit integers with a range that was measured
//! before, and so are weights. It knows which operators say so, and how ranges are measured; no number of a model.
//!
//! - In front of each layer a `QuantizeLinear` and a `DequantizeLinear` (once for all layers that read a value), with one scale
//!   and one zero point for the whole tensor. The weight is integers with one scale for each output channel, which a
//!   `DequantizeLinear` at the front of the graph turns into floats.
//! - Outputs are floats: rounding them too is what static quantisation loses most by.
//! - A provider that has kernels for 8-bit integers (OpenVINO) makes one operator of each layer and the nodes around it. The
//!   CPU provider computes what the operators say: the same numbers, in floats, and no faster.
//!
//! The layers are those that can [compute with ranges of the run](super::int8).

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use super::Graph;
use super::cut::value_info;
use super::dtype::onnx_code;
use super::int8::{Int8, kind};
use super::node::{integer, opset};
use super::proto::{NodeProto, TensorProto};
use super::quantize::{Form, Quantized, WeightBits, dequantize, open};
use crate::Error;
use crate::weights::Dtype;

/// The first version of the standard operators whose `DequantizeLinear` takes a scale per channel.
const LEAST_OPSET: i64 = 13;
/// The largest of the integers that layers read.
const MOST: f32 = 255.0;
/// What the names of new values begin with.
const PREFIX: &str = "qdq";

/// By value, the least and the largest number that it had.
pub type Ranges = BTreeMap<String, (f32, f32)>;

impl Graph {
    /// The values that layers read which can compute in integers.
    pub fn values_to_range(&self) -> BTreeSet<String> {
        let weights: HashSet<&str> =
            self.layers(&BTreeSet::new()).into_iter().map(|(weight, _)| weight).collect();
        let is_layer =
            |node: &&NodeProto| node.input.get(1).is_some_and(|name| weights.contains(name.as_str()));
        self.graph.node.iter().filter(is_layer).map(|node| node.input[0].clone()).collect()
    }

    /// The graph with two more outputs for each of some values, its least and its largest number, `F32[]`: the names of
    /// these outputs, by value.
    ///
    /// # Errors
    /// Those of [`Graph::decode`].
    pub fn with_ranges_as_outputs(
        &self,
        values: &BTreeSet<String>,
    ) -> Result<(Self, BTreeMap<String, [String; 2]>), Error> {
        let Self { name, model, graph, parameters, .. } = self;
        let mut graph = graph.clone();
        let mut outputs = BTreeMap::new();
        for value in values {
            let names = ["ReduceMin", "ReduceMax"].map(|op| format!("{PREFIX}/{value}/{op}"));
            for (op, output) in ["ReduceMin", "ReduceMax"].iter().zip(&names) {
                graph.node.push(node(op, &[value], output, "keepdims", 0));
                graph.output.push(value_info(output, Dtype::F32, []));
            }
            outputs.insert(value.clone(), names);
        }
        let mut observed = Self::of(name.clone(), model.clone(), graph)?;
        observed.turn_as(parameters);
        Ok((observed, outputs))
    }

    /// The graph with layers that compute in integers, and what its new parameters hold, by name. Layers whose weights are
    /// in `left` stay as they are. Without `ranges` those of all values are from 0 to 1; a value that has none is not rounded.
    ///
    /// # Errors
    /// Those of [`Graph::decode`].
    pub fn compute_in_qdq(
        &self,
        ranges: Option<&Ranges>,
        bits: WeightBits,
        left: &BTreeSet<String>,
    ) -> Result<(Self, BTreeMap<String, Quantized>), Error> {
        let Self { name, model, graph, parameters, .. } = self;
        let mut graph = graph.clone();
        graph.sort();
        let (mut made, mut new, mut dequantizers) = (BTreeMap::new(), Vec::new(), Vec::new());
        let layers: HashMap<&str, &[usize]> = self.layers(left).into_iter().collect();
        for (source, shape) in &layers {
            let [codes, scales] = [format!("{source}.q{}", bits.count()), format!("{source}.scales")];
            for (name, dtype, shape, form) in [
                (&codes, Dtype::I8, *shape, Form::ChannelCodes(bits)),
                (&scales, Dtype::F32, &shape[..1], Form::ChannelScales(bits)),
            ] {
                new.push(open(name, dtype, shape));
                made.insert(name.clone(), Quantized { source: (*source).to_owned(), form });
            }
            dequantizers.push(dequantize(codes, scales, source));
        }
        // The order of a map is another in every run.
        new.sort_by(|a, b| a.name.cmp(&b.name));
        dequantizers.sort_by(|a, b| a.name.cmp(&b.name));

        let mut nodes = dequantizers;
        let mut rounded: HashMap<String, String> = HashMap::new();
        for mut node in std::mem::take(&mut graph.node) {
            if node.input.get(1).is_some_and(|weight| layers.contains_key(weight.as_str())) {
                let x = node.input[0].clone();
                let range = match ranges {
                    Some(ranges) => ranges.get(&x).copied(),
                    None => Some((0.0, 1.0)),
                };
                if let (false, Some(range)) = (rounded.contains_key(&x), range) {
                    let output = round(&x, range, &mut nodes, &mut new);
                    rounded.insert(x.clone(), output);
                }
                if let Some(output) = rounded.get(&x) {
                    node.input[0].clone_from(output);
                }
            }
            nodes.push(node);
        }
        graph.node = nodes;
        graph.initializer.retain(|tensor| !layers.contains_key(tensor.name()));
        // Before IR version 4 a model listed its initializers among its inputs.
        graph.input.retain(|input| !layers.contains_key(input.name()));
        graph.initializer.extend(new);
        let mut computing = Self::of(name.clone(), model.clone(), graph)?;
        computing.turn_as(parameters);
        Ok((computing, made))
    }

    /// The weights of layers that can compute in integers and are not in `left`, and their shapes.
    fn layers(&self, left: &BTreeSet<String>) -> Vec<(&str, &[usize])> {
        let how = Int8 { has_blocks: false, bits: WeightBits::Eight };
        let names: HashSet<&str> = self.graph.initializer.iter().map(TensorProto::name).collect();
        let is_free = |name: &str| {
            let taken = |suffix: &str| names.contains(format!("{name}.{suffix}").as_str());
            !["q7", "q8", "scales"].into_iter().any(taken)
        };
        let candidates = self.parameters.iter().filter(|parameter| {
            opset(&self.model) >= LEAST_OPSET
                && !left.contains(&parameter.name)
                && is_free(&parameter.name)
                && kind(&self.graph, parameter, how).is_some()
        });
        candidates.map(|parameter| (parameter.name.as_str(), &parameter.shape[..])).collect()
    }
}

/// Writes the nodes that round a value to integers of a range and back; what they give.
fn round(
    x: &str,
    (least, most): (f32, f32),
    nodes: &mut Vec<NodeProto>,
    new: &mut Vec<TensorProto>,
) -> String {
    // Nothing is among the integers: borders of convolutions are filled with it.
    let (least, most) = (least.min(0.0), most.max(0.0));
    let scale = if most > least { (most - least) / MOST } else { 1.0 };
    let zero = (-least / scale).round_ties_even().clamp(0.0, MOST);
    let [scale_name, zero_name, integers, output] =
        ["scale", "zero", "integers", "rounded"].map(|what| format!("{PREFIX}/{x}/{what}"));
    new.push(TensorProto {
        name: Some(scale_name.clone()),
        data_type: Some(onnx_code(Dtype::F32)),
        float_data: vec![scale],
        ..Default::default()
    });
    new.push(TensorProto {
        name: Some(zero_name.clone()),
        data_type: Some(onnx_code(Dtype::U8)),
        int32_data: vec![zero as i32],
        ..Default::default()
    });
    nodes.push(node("QuantizeLinear", &[x, &scale_name, &zero_name], &integers, "axis", 1));
    nodes.push(node("DequantizeLinear", &[&integers, &scale_name, &zero_name], &output, "axis", 1));
    output
}

fn node(op: &str, inputs: &[&str], output: &str, attribute: &str, value: i64) -> NodeProto {
    NodeProto {
        name: Some(format!("{output}/{op}")),
        op_type: Some(op.into()),
        input: inputs.iter().map(|input| (*input).to_owned()).collect(),
        output: vec![output.into()],
        attribute: vec![integer(attribute, value)],
        ..Default::default()
    }
}
