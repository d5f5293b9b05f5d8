//! Graphs in two parts: what a VAE computes at the lowest resolutions, where a whole image is small, and what it computes
//! at the others, where it is large. It knows nothing of tiles.

use std::collections::{BTreeSet, HashMap};

use super::dtype::{dtype, onnx_code};
use super::proto::{
    Dimension, DimensionValue, GraphProto, NodeProto, TensorProto, TensorShapeProto, TensorType, TypeProto,
    TypeValue, ValueInfoProto,
};
use super::{Dim, Graph};
use crate::weights::Dtype;
use crate::{Error, ErrorKind};

/// How many nodes in a row are looked through for a tensor's type and channels.
const MAX_STEPS: usize = 4096;

impl Graph {
    /// How often a decoder enlarges.
    pub(crate) fn enlargements(&self) -> usize {
        self.graph.node.iter().filter(enlarges).count()
    }

    /// How often an encoder shrinks.
    pub(crate) fn reductions(&self) -> usize {
        self.graph.node.iter().filter(shrinks).count()
    }

    /// A decoder cut where it enlarges for the time after the first `level` ones: what comes before, and the rest.
    ///
    /// # Errors
    /// [`ErrorKind::Model`] for a graph that does not enlarge so often, takes images of one size alone, or is not held
    /// together by one tensor there.
    pub(crate) fn cut_before_enlarging(&self, level: usize) -> Result<(Self, Self), Error> {
        let node = self.graph.node.iter().filter(enlarges).nth(level);
        let value = node.and_then(|node| node.input.first());
        self.cut(value.ok_or_else(|| self.uncut("expected an upsampling layer, got none".into()))?)
    }

    /// An encoder cut where it has shrunk for all but the last `level` times: what comes up to there, and the rest.
    ///
    /// # Errors
    /// As [`Graph::cut_before_enlarging`].
    pub(crate) fn cut_after_shrinking(&self, level: usize) -> Result<(Self, Self), Error> {
        let node = self.graph.node.iter().rev().filter(shrinks).nth(level);
        let value = node.and_then(|node| node.output.first());
        self.cut(value.ok_or_else(|| self.uncut("expected a downsampling layer, got none".into()))?)
    }

    /// What makes a value, and what makes the outputs of it.
    fn cut(&self, value: &str) -> Result<(Self, Self), Error> {
        let makers = self.graph.makers();
        let port = self.port_of(value, &makers).map_err(|problem| self.uncut(problem))?;
        let outputs = self.outputs.iter().map(|output| &output.name[..]);
        let before = self.behind([value], None, &makers).map_err(|problem| self.uncut(problem))?;
        let after = self.behind(outputs, Some(value), &makers).map_err(|problem| self.uncut(problem))?;
        for input in &self.inputs {
            if after.values.contains(&input.name[..]) {
                return Err(
                    self.uncut(format!("expected {value} as the only value at the cut, got {input} too"))
                );
            }
            let sizes = input.dims.iter().skip(2);
            if sizes.clone().count() == 2 && sizes.clone().any(|size| matches!(size, Dim::Fixed(_))) {
                return Err(self.uncut(format!("expected an input of dynamic shape, got {input}")));
            }
        }
        let ports = |values: &BTreeSet<&str>| -> Vec<ValueInfoProto> {
            self.graph.input.iter().filter(|input| values.contains(input.name())).cloned().collect()
        };
        let before_ports = (ports(&before.values), vec![port.clone()]);
        let mut after_ports = (ports(&after.values), self.graph.output.clone());
        after_ports.0.push(port);
        Ok((self.part(before, before_ports)?, self.part(after, after_ports)?))
    }

    /// The nodes that make values, and all that these nodes are given, up to a value that is taken as given.
    fn behind<'a>(
        &'a self,
        wanted: impl IntoIterator<Item = &'a str>,
        given: Option<&str>,
        makers: &HashMap<&'a str, usize>,
    ) -> Result<Behind<'a>, String> {
        let mut behind = Behind { nodes: BTreeSet::new(), values: BTreeSet::new() };
        let mut open: Vec<&str> = wanted.into_iter().collect();
        while let Some(value) = open.pop() {
            if value.is_empty() || Some(value) == given || !behind.values.insert(value) {
                continue;
            }
            let Some(&maker) = makers.get(value) else { continue };
            if behind.nodes.insert(maker) {
                let node = &self.graph.node[maker];
                if node.attribute.iter().any(|attribute| attribute.g.is_some()) {
                    // What a branch uses is not among its node's inputs.
                    return Err(format!("expected a graph without branches, got {}", node.op_type()));
                }
                open.extend(node.input.iter().map(String::as_str));
            }
        }
        Ok(behind)
    }

    /// A graph of some of the nodes.
    fn part(
        &self,
        Behind { nodes, values }: Behind<'_>,
        (input, output): (Vec<ValueInfoProto>, Vec<ValueInfoProto>),
    ) -> Result<Self, Error> {
        let is_used = |tensor: &&TensorProto| values.contains(tensor.name());
        let graph = GraphProto {
            node: nodes.into_iter().map(|index| self.graph.node[index].clone()).collect(),
            name: self.graph.name.clone(),
            initializer: self.graph.initializer.iter().filter(is_used).cloned().collect(),
            input,
            output,
            ..Default::default()
        };
        let mut part = Self::of(self.name.clone(), self.model.clone(), graph)?;
        for parameter in &mut part.parameters {
            let known = self.parameters.iter().find(|known| known.name == parameter.name);
            parameter.transposed = known.is_some_and(|known| known.transposed);
        }
        Ok(part)
    }

    fn initializer(&self, name: &str) -> Option<&TensorProto> {
        self.graph.initializer.iter().find(|tensor| tensor.name() == name)
    }

    /// A batch of planes as an input or output.
    fn port_of(&self, value: &str, makers: &HashMap<&str, usize>) -> Result<ValueInfoProto, String> {
        let channels = self.channels_of(value, makers)?;
        let dims = [None, Some(DimensionValue::DimValue(channels)), None, None];
        Ok(value_info(value, self.dtype_of(value, makers)?, dims))
    }

    /// The channels of a sum of convolutions.
    fn channels_of(&self, value: &str, makers: &HashMap<&str, usize>) -> Result<i64, String> {
        let mut value = value;
        for _ in 0..MAX_STEPS {
            let Some(node) = makers.get(value).map(|&maker| &self.graph.node[maker]) else { break };
            // Exporters divide by 1, and weights may be stored in another type.
            let next = match (node.op_type(), &node.input[..]) {
                ("Conv", [_, weight, ..]) => weight,
                ("Add" | "Div" | "Mul" | "Identity" | "Cast" | "Relu" | "DequantizeLinear", [x, ..]) => x,
                _ => break,
            };
            value = next;
        }
        let channels = self.initializer(value).and_then(|tensor| tensor.dims.first());
        channels.copied().ok_or_else(|| format!("{value}: expected a convolution's channels, got none"))
    }

    /// The type of a tensor's elements: that of what it is computed from, up to a conversion.
    pub(super) fn dtype_of(&self, value: &str, makers: &HashMap<&str, usize>) -> Result<Dtype, String> {
        let mut value = value;
        for _ in 0..MAX_STEPS {
            let Some(node) = makers.get(value).map(|&maker| &self.graph.node[maker]) else { break };
            let to = node.attribute.iter().find(|attribute| attribute.name() == "to");
            let next = match node.op_type() {
                "Cast" => return dtype(to.map_or(0, |to| i32::try_from(to.i()).unwrap_or(0))),
                "DequantizeLinear" | "Where" => node.input.get(1),
                _ => node.input.first(),
            };
            value = next.ok_or_else(|| format!("{value}: expected a computed value, got a constant"))?;
        }
        let port = self.inputs.iter().find(|input| input.name == value).map(|input| Ok(input.dtype));
        let of_tensor = || self.initializer(value).map(|tensor| dtype(tensor.data_type()));
        port.or_else(of_tensor).unwrap_or_else(|| Err(format!("{value}: expected a type, got none")))
    }

    pub(super) fn uncut(&self, problem: String) -> Error {
        Error::new(ErrorKind::Model, format!("{}: cannot run in tiles: {problem}", self.name))
    }
}

fn enlarges(node: &&NodeProto) -> bool {
    matches!(node.op_type(), "Resize" | "Upsample")
}

fn shrinks(node: &&NodeProto) -> bool {
    let strides = node.attribute.iter().find(|attribute| attribute.name() == "strides");
    node.op_type() == "Conv" && strides.is_some_and(|strides| strides.ints.iter().any(|&by| by > 1))
}

/// What makes some values.
struct Behind<'a> {
    /// Indices, in the graph's order.
    nodes: BTreeSet<usize>,
    /// Made and used.
    values: BTreeSet<&'a str>,
}

/// An input or output of these dimensions, `None` for any.
pub(crate) fn value_info(
    name: &str,
    dtype: Dtype,
    dims: impl IntoIterator<Item = Option<DimensionValue>>,
) -> ValueInfoProto {
    let dim = dims.into_iter().map(|value| Dimension { value, ..Default::default() }).collect();
    let tensor = TensorType { elem_type: Some(onnx_code(dtype)), shape: Some(TensorShapeProto { dim }) };
    let kind = TypeProto { value: Some(TypeValue::TensorType(tensor)), ..Default::default() };
    ValueInfoProto { name: Some(name.into()), r#type: Some(kind), ..Default::default() }
}
