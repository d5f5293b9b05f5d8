//! Graphs: ONNX models whose parameters are declared but stored without data, and their binding to weights by name.
//! It knows nothing of sessions.

mod activation;
mod bound;
mod cut;
mod dialect;
mod dtype;
mod embedding;
mod file;
mod fixed;
pub mod int8;
mod narrow;
mod node;
pub(crate) mod normal;
mod on_disk;
mod order;
mod parameter;
mod port;
pub mod proto;
pub mod qdq;
pub mod quantize;
mod ready_made;
mod segment;
mod shape;
mod turn;
mod wide;

use std::collections::{BTreeSet, HashSet};
use std::fmt;

use prost::Message;

pub use self::bound::BoundGraph;
pub use self::dialect::Dialect;
pub(crate) use self::dtype::onnx_code;
use self::node::opset;
pub(crate) use self::on_disk::OnDisk;
pub use self::parameter::Parameter;
use self::parameter::parameter;
use self::port::port;
pub use self::port::{Dim, Port};
use self::proto::{GraphProto, ModelProto, TensorProto};
pub(crate) use self::segment::{Segment, SegmentBytes, least_resident_bytes, pinned, resident_bytes};
use crate::{Error, ErrorKind};

/// The `location` of a parameter that has no data yet.
pub(crate) const OPEN_LOCATION: &str = "weights";

/// A decoded ONNX model with its signature.
#[derive(Clone)]
pub struct Graph {
    name: String,
    /// The model but for its graph, which is the next field.
    model: ModelProto,
    graph: GraphProto,
    inputs: Vec<Port>,
    outputs: Vec<Port>,
    parameters: Vec<Parameter>,
}

impl Graph {
    /// Reads an ONNX model; `name` ("unet") says in messages which one it is.
    ///
    /// # Errors
    /// [`ErrorKind::Model`] when the bytes are not an ONNX model, or its inputs, outputs or parameters are not tensors
    /// of a known type and rank.
    pub fn decode(name: impl Into<String>, bytes: &[u8]) -> Result<Self, Error> {
        let name = name.into();
        let (model, graph) = decode(&name, bytes)?;
        Self::of(name, model, graph)
    }

    fn of(name: String, model: ModelProto, graph: GraphProto) -> Result<Self, Error> {
        let refuse = |problem: String| Error::new(ErrorKind::Model, format!("{name}: {problem}"));

        let initialized: HashSet<&str> = graph.initializer.iter().map(TensorProto::name).collect();
        // Before IR version 4 a model listed its initializers among its inputs.
        let fed = graph.input.iter().filter(|input| !initialized.contains(input.name()));
        let inputs = fed.map(|input| port(input).map_err(|problem| refuse(format!("input {problem}"))));
        let inputs = inputs.collect::<Result<Vec<Port>, Error>>()?;
        let outputs = graph.output.iter();
        let outputs =
            outputs.map(|output| port(output).map_err(|problem| refuse(format!("output {problem}"))));
        let outputs = outputs.collect::<Result<Vec<Port>, Error>>()?;
        if outputs.is_empty() {
            return Err(refuse("expected outputs, got none".into()));
        }
        let mut parameters = Vec::new();
        for (index, tensor) in graph.initializer.iter().enumerate() {
            if tensor.data_location() == proto::EXTERNAL {
                let parameter = parameter(index, tensor);
                parameters.push(parameter.map_err(|problem| refuse(format!("parameter {problem}")))?);
            }
        }
        Ok(Self { name, model, graph, inputs, outputs, parameters })
    }

    /// What the graph is fed.
    pub fn inputs(&self) -> &[Port] {
        &self.inputs
    }

    /// What the graph gives.
    pub fn outputs(&self) -> &[Port] {
        &self.outputs
    }

    /// The operators that are not ONNX's own, by their full names: `com.microsoft.MultiHeadAttention`.
    pub fn custom_operators(&self) -> BTreeSet<String> {
        custom_operators(&self.graph)
    }

    /// What weights must provide.
    pub fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    /// The same graph with its largest values computed in slices, as graphs in segments have them.
    pub(crate) fn in_slices(&self) -> Self {
        let mut sliced = self.clone();
        sliced.graph.sort();
        sliced.graph.slice_tokens(opset(&self.model));
        sliced.graph.slice_queries();
        sliced
    }

    /// The bytes of the ONNX model, its parameters without data, as [`Graph::decode`] reads them.
    pub fn encode(&self) -> Vec<u8> {
        ModelProto { graph: Some(self.graph.clone()), ..self.model.clone() }.encode_to_vec()
    }
}

impl fmt::Debug for Graph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (nodes, parameters) = (self.graph.node.len(), self.parameters.len());
        write!(f, "Graph({}: {nodes} nodes, {parameters} parameters)", self.name)
    }
}

/// The operators of a graph that are not ONNX's own, by their full names.
fn custom_operators(graph: &GraphProto) -> BTreeSet<String> {
    let custom = graph.node.iter().filter(|node| !matches!(node.domain(), "" | "ai.onnx"));
    custom.map(|node| format!("{}.{}", node.domain(), node.op_type())).collect()
}

/// A model and its graph; `place` is for messages.
fn decode(place: &str, bytes: &[u8]) -> Result<(ModelProto, GraphProto), Error> {
    let refuse = |problem: String| Error::new(ErrorKind::Model, format!("{place}: {problem}"));
    let mut model = ModelProto::decode(bytes).map_err(|error| {
        refuse(format!("expected an ONNX model, got {} other bytes", bytes.len())).source(error)
    })?;
    let graph =
        model.graph.take().ok_or_else(|| refuse("expected an ONNX model, got one without a graph".into()))?;
    Ok((model, graph))
}

#[cfg(test)]
mod tests {
    use super::node::entry;
    use super::proto::{
        AttributeProto, Dimension, DimensionValue, NodeProto, TensorShapeProto, TensorType, TypeProto,
        TypeValue, ValueInfoProto,
    };
    use super::*;
    use crate::weights::Dtype;

    pub(super) fn value(name: &str, elem_type: i32, dims: &[i64]) -> ValueInfoProto {
        let dim = dims.iter().map(|&size| Dimension {
            value: (size >= 0).then_some(DimensionValue::DimValue(size)),
            ..Default::default()
        });
        let shape = Some(TensorShapeProto { dim: dim.collect() });
        let tensor = TensorType { elem_type: Some(elem_type), shape };
        let kind = TypeProto { value: Some(TypeValue::TensorType(tensor)), ..Default::default() };
        ValueInfoProto { name: Some(name.into()), r#type: Some(kind), ..Default::default() }
    }

    pub(super) fn open_initializer(name: &str, dims: &[i64]) -> TensorProto {
        TensorProto {
            name: Some(name.into()),
            dims: dims.to_vec(),
            data_type: Some(1),
            data_location: Some(proto::EXTERNAL),
            external_data: vec![entry("location", OPEN_LOCATION.into())],
            ..Default::default()
        }
    }

    /// A graph of two parameters and one node.
    pub(super) fn model() -> ModelProto {
        let graph = GraphProto {
            node: vec![NodeProto { op_type: Some("Gemm".into()), ..Default::default() }],
            initializer: vec![
                TensorProto { name: Some("constant".into()), raw_data: Some(vec![1]), ..Default::default() },
                open_initializer("block.0.weight", &[2, 3]),
                open_initializer("block.0.bias", &[2]),
            ],
            input: vec![value("x", 1, &[-1, 3]), value("block.0.bias", 1, &[2])],
            output: vec![value("y", 10, &[1, 2])],
            ..Default::default()
        };
        ModelProto { graph: Some(graph), ..Default::default() }
    }

    pub(super) fn decode(model: &ModelProto) -> Result<Graph, Error> {
        Graph::decode("unet", &model.encode_to_vec())
    }

    /// The message with which a model is refused.
    fn refusal(model: &ModelProto) -> String {
        let error = decode(model).expect_err("the graph is hostile");
        assert_eq!(error.kind(), ErrorKind::Model);
        error.to_string()
    }

    #[test]
    fn nothing_is_lost_by_reading_and_writing() {
        let bytes = include_bytes!("../tests/golden/onnx/every_field.onnx");
        let written = ModelProto::decode(&bytes[..]).unwrap().encode_to_vec();
        // The order of fields within a message is not part of the format, and the reference has another one.
        let sorted = |bytes: &[u8]| {
            let mut bytes = bytes.to_vec();
            bytes.sort_unstable();
            bytes
        };
        assert_eq!(sorted(&written), sorted(bytes));
    }

    #[test]
    fn signature() {
        let graph = decode(&model()).unwrap();
        let ports = |ports: &[Port]| ports.iter().map(Port::to_string).collect::<Vec<_>>();
        assert_eq!(ports(graph.inputs()), ["x: F32[?, 3]"]);
        assert_eq!(ports(graph.outputs()), ["y: F16[1, 2]"]);
        let parameters: Vec<_> =
            graph.parameters().iter().map(|p| (p.name.as_str(), p.dtype, &p.shape[..])).collect();
        assert_eq!(
            parameters,
            [("block.0.weight", Dtype::F32, &[2, 3][..]), ("block.0.bias", Dtype::F32, &[2][..])]
        );
    }

    #[test]
    fn garbage() {
        let error = Graph::decode("unet", b"this is not a graph").err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Model);
        assert!(
            error.to_string().starts_with("unet: expected an ONNX model, got 19 other bytes: "),
            "{error}"
        );
        assert_eq!(
            Graph::decode("unet", b"").err().unwrap().to_string(),
            "unet: expected an ONNX model, got one without a graph"
        );
    }

    #[test]
    fn truncated_graph() {
        let bytes = model().encode_to_vec();
        for len in 0..bytes.len() {
            let error = Graph::decode("unet", &bytes[..len]).expect_err("a part is no graph");
            assert_eq!(error.kind(), ErrorKind::Model);
        }
    }

    #[test]
    fn graph_nested_without_end() {
        // Each layer is a node whose attribute is a graph.
        let mut graph = GraphProto::default();
        for _ in 0..1000 {
            let attribute = AttributeProto { g: Some(graph), ..Default::default() };
            let node = NodeProto { attribute: vec![attribute], ..Default::default() };
            graph = GraphProto { node: vec![node], ..Default::default() };
        }
        assert!(
            refusal(&ModelProto { graph: Some(graph), ..Default::default() }).contains("recursion limit")
        );
    }

    #[test]
    fn no_outputs() {
        let mut model = model();
        model.graph.as_mut().unwrap().output.clear();
        assert_eq!(refusal(&model), "unet: expected outputs, got none");
    }

    #[test]
    fn unusable_ports() {
        let refusal_of = |port: ValueInfoProto| {
            let mut model = model();
            model.graph.as_mut().unwrap().input[0] = port;
            refusal(&model)
        };
        assert_eq!(refusal_of(value("", 1, &[1])), "unet: input \"\": expected a name");
        assert_eq!(refusal_of(value("a\0b", 1, &[1])), "unet: input \"a\\0b\": expected a name");
        assert!(refusal_of(value("x", 8, &[1])).ends_with("got ONNX type 8"));
        let mut sequence = value("x", 1, &[1]);
        sequence.r#type = None;
        assert_eq!(refusal_of(sequence), "unet: input x: expected a tensor, got another type");
        let mut unranked = value("x", 1, &[1]);
        unranked.r#type.as_mut().unwrap().value =
            Some(TypeValue::TensorType(TensorType { elem_type: Some(1), shape: None }));
        assert_eq!(refusal_of(unranked), "unet: input x: expected a shape, got none");
        let mut negative = value("x", 1, &[1]);
        let Some(TypeValue::TensorType(tensor)) = &mut negative.r#type.as_mut().unwrap().value else {
            unreachable!()
        };
        tensor.shape.as_mut().unwrap().dim[0].value = Some(DimensionValue::DimValue(-5));
        assert_eq!(refusal_of(negative), "unet: input x: dimension: expected a size, got -5");
    }

    #[test]
    fn unusable_parameter() {
        let mut model = model();
        model.graph.as_mut().unwrap().initializer[1].dims = vec![2, -3];
        assert_eq!(refusal(&model), "unet: parameter block.0.weight: dimension: expected a size, got -3");
    }

    #[test]
    fn data_in_another_file() {
        let mut model = model();
        model.graph.as_mut().unwrap().initializer[1].external_data[0].value = Some("../secret".into());
        assert_eq!(
            refusal(&model),
            "unet: parameter block.0.weight: expected no data (\"weights\"), got data in file \"../secret\""
        );
    }
}
