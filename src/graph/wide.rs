//! Wide graphs: what computes in 16-bit floats computes in 32-bit ones, in which a number may be as large as 3e38 instead of 65504.
//! It knows types, and no operator but `Cast`.

use half::{bf16, f16};

use super::Graph;
use super::dtype::onnx_code;
use super::node::cast;
use super::proto::{self, AttributeProto, GraphProto, NodeProto, TensorProto, TypeValue, ValueInfoProto};
use crate::Error;
use crate::weights::Dtype;

/// The types that are widened.
const SHORT: [Dtype; 2] = [Dtype::F16, Dtype::Bf16];
/// The attributes that name the type of what a node gives.
const TYPES: [&str; 3] = ["to", "dtype", "output_dtype"];
/// What the names of new values begin with.
const PREFIX: &str = "wide";

impl Graph {
    /// The same graph in 32-bit floats; none where it computes in these already. Inputs and outputs stay as they are, and
    /// so do weights: those of 16 bits are converted where they are bound.
    ///
    /// # Errors
    /// Those of [`Graph::decode`].
    pub(crate) fn in_f32(&self) -> Result<Option<Self>, Error> {
        let (mut model, mut graph) = (self.model.clone(), self.graph.clone());
        let mut is_changed = widen_nodes(&mut graph.node);
        is_changed |= graph.initializer.iter_mut().fold(false, |changed, tensor| widen(tensor) | changed);
        for function in &mut model.functions {
            is_changed |= widen_nodes(&mut function.node);
        }
        // What is said of values in between is inferred again.
        graph.value_info.retain(|value| short_type(value).is_none());
        for input in &mut graph.input {
            if short_type(input).is_none() {
                continue;
            }
            is_changed = true;
            if self.inputs.iter().all(|port| port.name != input.name()) {
                // A parameter that is listed among the inputs.
                set_type(input, Dtype::F32);
                continue;
            }
            let (name, wide) = (input.name().to_owned(), format!("{PREFIX}/{}", input.name()));
            rename(&mut graph.node, &name, &wide);
            graph.node.insert(0, cast(&name, &wide, Dtype::F32));
        }
        for output in &graph.output {
            let Some(short) = short_type(output) else { continue };
            is_changed = true;
            let (name, wide) = (output.name().to_owned(), format!("{PREFIX}/{}", output.name()));
            rename(&mut graph.node, &name, &wide);
            graph.node.push(cast(&wide, &name, short));
        }
        if !is_changed {
            return Ok(None);
        }
        let mut wide = Self::of(self.name.clone(), model, graph)?;
        wide.turn_as(&self.parameters);
        Ok(Some(wide))
    }
}

/// Widens what nodes, and graphs within them, say of types; tells whether that is a change.
fn widen_nodes(nodes: &mut [NodeProto]) -> bool {
    let attributes = nodes.iter_mut().flat_map(|node| &mut node.attribute);
    attributes.fold(false, |changed, attribute| widen_attribute(attribute) | changed)
}

fn widen_attribute(attribute: &mut AttributeProto) -> bool {
    let mut is_changed = false;
    if TYPES.contains(&attribute.name())
        && SHORT.iter().any(|&short| attribute.i == Some(onnx_code(short).into()))
    {
        attribute.i = Some(onnx_code(Dtype::F32).into());
        is_changed = true;
    }
    for tensor in attribute.t.iter_mut().chain(&mut attribute.tensors) {
        is_changed |= widen(tensor);
    }
    for graph in attribute.g.iter_mut().chain(&mut attribute.graphs) {
        is_changed |= widen_branch(graph);
    }
    is_changed
}

fn widen_branch(graph: &mut GraphProto) -> bool {
    let mut is_changed = widen_nodes(&mut graph.node);
    is_changed |= graph.initializer.iter_mut().fold(false, |changed, tensor| widen(tensor) | changed);
    graph.value_info.retain(|value| short_type(value).is_none());
    for value in graph.input.iter_mut().chain(&mut graph.output) {
        if short_type(value).is_some() {
            set_type(value, Dtype::F32);
            is_changed = true;
        }
    }
    is_changed
}

/// Widens a constant, or the declaration of a parameter; tells whether that is a change.
fn widen(tensor: &mut TensorProto) -> bool {
    let Some(short) = SHORT.into_iter().find(|&short| tensor.data_type() == onnx_code(short)) else {
        return false;
    };
    tensor.data_type = Some(onnx_code(Dtype::F32));
    if tensor.data_location() == proto::EXTERNAL {
        return true;
    }
    let number = |bits: u16| match short {
        Dtype::F16 => f16::from_bits(bits).to_f32(),
        _ => bf16::from_bits(bits).to_f32(),
    };
    let raw = tensor.raw_data.take().unwrap_or_default();
    let raw = raw.chunks_exact(2).map(|bytes| u16::from_le_bytes([bytes[0], bytes[1]]));
    // Otherwise each number's bits are in an integer of their own.
    let listed = std::mem::take(&mut tensor.int32_data).into_iter().map(|bits| bits as u16);
    tensor.raw_data = Some(raw.chain(listed).flat_map(|bits| number(bits).to_le_bytes()).collect());
    true
}

/// The type of an input or output, if it is one of those that are widened.
fn short_type(value: &ValueInfoProto) -> Option<Dtype> {
    let Some(TypeValue::TensorType(tensor)) = value.r#type.as_ref()?.value.as_ref() else { return None };
    SHORT.into_iter().find(|&short| tensor.elem_type == Some(onnx_code(short)))
}

fn set_type(value: &mut ValueInfoProto, dtype: Dtype) {
    if let Some(TypeValue::TensorType(tensor)) = value.r#type.as_mut().and_then(|kind| kind.value.as_mut()) {
        tensor.elem_type = Some(onnx_code(dtype));
    }
}

/// Gives a value another name wherever nodes make or use it, those of graphs within nodes included.
fn rename(nodes: &mut [NodeProto], from: &str, to: &str) {
    for node in nodes {
        for name in node.input.iter_mut().chain(&mut node.output).filter(|name| *name == from) {
            to.clone_into(name);
        }
        for attribute in &mut node.attribute {
            for graph in attribute.g.iter_mut().chain(&mut attribute.graphs) {
                rename(&mut graph.node, from, to);
                for output in graph.output.iter_mut().filter(|output| output.name() == from) {
                    output.name = Some(to.to_owned());
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::node::integer;
    use super::super::tests::{decode, model, open_initializer, value};
    use super::*;

    const F16: i32 = 10;
    const BF16: i32 = 16;

    fn node(op: &str, input: &[&str], output: &str, attribute: Vec<AttributeProto>) -> NodeProto {
        NodeProto {
            op_type: Some(op.into()),
            input: input.iter().map(|&name| name.into()).collect(),
            output: vec![output.into()],
            attribute,
            ..Default::default()
        }
    }

    fn constant(code: i32, raw: Option<Vec<u8>>, listed: Vec<i32>) -> TensorProto {
        TensorProto {
            dims: vec![2],
            data_type: Some(code),
            raw_data: raw,
            int32_data: listed,
            ..Default::default()
        }
    }

    #[test]
    fn what_is_in_16_bits_is_in_32_but_inputs_outputs_and_weights() {
        let attribute =
            |name: &str, t| AttributeProto { name: Some(name.into()), t: Some(t), ..Default::default() };
        let halves: Vec<u8> =
            [1.5f32, -65504.0].map(f16::from_f32).iter().flat_map(|x| x.to_le_bytes()).collect();
        let listed = [2.0f32, 3.0].map(|x| i32::from(bf16::from_f32(x).to_bits())).to_vec();
        let branch = GraphProto {
            node: vec![node("Identity", &["x"], "inner", vec![])],
            output: vec![value("inner", F16, &[2])],
            ..Default::default()
        };
        let graph = GraphProto {
            node: vec![
                node("Constant", &[], "a", vec![attribute("value", constant(F16, Some(halves), vec![]))]),
                node("Constant", &[], "b", vec![attribute("value", constant(BF16, None, listed))]),
                node("Cast", &["t"], "c", vec![integer("to", F16.into())]),
                node("Cast", &["t"], "whole", vec![integer("to", 7)]),
                node("If", &["t"], "d", vec![AttributeProto { g: Some(branch), ..Default::default() }]),
                node("Sum", &["x", "a", "b", "c", "d", "w"], "y", vec![]),
                node("Identity", &["y"], "z", vec![]),
            ],
            initializer: vec![TensorProto { data_type: Some(F16), ..open_initializer("w", &[2]) }],
            input: vec![value("x", F16, &[2]), value("t", 9, &[]), value("w", F16, &[2])],
            output: vec![value("y", F16, &[2]), value("z", 1, &[2])],
            value_info: vec![value("c", F16, &[2]), value("whole", 7, &[2])],
            ..Default::default()
        };
        let narrow = decode(&proto::ModelProto { graph: Some(graph), ..model() }).unwrap();
        let wide = narrow.in_f32().unwrap().unwrap();
        assert_eq!((wide.inputs(), wide.outputs()), (narrow.inputs(), narrow.outputs()));
        assert_eq!((wide.parameters()[0].dtype, wide.parameters().len()), (Dtype::F32, 1));
        let nodes: Vec<String> = wide
            .graph
            .node
            .iter()
            .map(|node| format!("{} = {}({})", node.output[0], node.op_type(), node.input.join(", ")))
            .collect();
        let expected = [
            "wide/x = Cast(x)",
            "a = Constant()",
            "b = Constant()",
            "c = Cast(t)",
            "whole = Cast(t)",
            "d = If(t)",
            "wide/y = Sum(wide/x, a, b, c, d, w)",
            "z = Identity(wide/y)",
            "y = Cast(wide/y)",
        ];
        assert_eq!(nodes, expected);
        let to = |place: usize| wide.graph.node[place].attribute[0].i();
        assert_eq!([to(0), to(3), to(4), to(8)], [1, 1, 7, F16.into()]);
        let numbers = |place: usize| -> Vec<f32> {
            let tensor = wide.graph.node[place].attribute[0].t.as_ref().unwrap();
            assert_eq!((tensor.data_type(), &tensor.int32_data[..]), (1, &[][..]));
            tensor.raw_data().chunks(4).map(|x| f32::from_le_bytes(x.try_into().unwrap())).collect()
        };
        assert_eq!((numbers(1), numbers(2)), (vec![1.5, -65504.0], vec![2.0, 3.0]));
        let branch = wide.graph.node[5].attribute[0].g.as_ref().unwrap();
        assert_eq!((branch.node[0].input[0].as_str(), short_type(&branch.output[0])), ("wide/x", None));
        assert_eq!(wide.graph.value_info, [value("whole", 7, &[2])]);
        assert_eq!(short_type(&wide.graph.input[2]), None);
        // What is wide but for its inputs and outputs stays so.
        assert!(decode(&model()).unwrap().in_f32().unwrap().is_some());
        let mut floats = model();
        floats.graph.as_mut().unwrap().output[0] = value("y", 1, &[1, 2]);
        assert!(decode(&floats).unwrap().in_f32().unwrap().is_none());
    }
}
