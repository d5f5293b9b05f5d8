//! Fixed shapes: a graph for inputs of one size, in which all that follows from sizes alone is constant. QNN takes no other
//! graphs, CoreML none in parts that read sizes. It knows no network.

use std::collections::{HashMap, HashSet};

use super::dtype::onnx_code;
use super::proto::{
    DimensionValue, GraphProto, ModelProto, NodeProto, TensorProto, TypeValue, ValueInfoProto,
};
use super::shape::Shapes;
use super::{Dim, Graph, Port};
use crate::weights::Dtype;
use crate::{Error, ErrorKind};

/// The most elements of a mask that becomes a constant: of 2048 tokens.
const MAX_MASK_ELEMENTS: usize = 2048 * 2048;
/// What the names of new constants begin with.
const PREFIX: &str = "fixed";

impl Graph {
    /// The same graph for these inputs in these shapes alone; inputs that are not among them keep their dimensions.
    ///
    /// # Errors
    /// [`ErrorKind::Model`] for an input that the graph has not, or that has other dimensions, and for a graph whose
    /// shapes cannot be inferred.
    pub fn with_shapes(&self, shapes: &[(String, Vec<usize>)]) -> Result<Self, Error> {
        let refuse = |problem: String| Error::new(ErrorKind::Model, format!("{}: {problem}", self.name));
        let mut graph = self.graph.clone();
        for (name, shape) in shapes {
            let port = self.inputs.iter().find(|port| port.name == *name);
            let port = port
                .ok_or_else(|| refuse(format!("input {name}: expected one of the graph's, got another")))?;
            let fits = |(dim, size): (&Dim, &usize)| match dim {
                Dim::Fixed(fixed) => fixed == size,
                Dim::Free(_) => true,
            };
            if port.dims.len() != shape.len() || !port.dims.iter().zip(shape).all(fits) {
                return Err(refuse(format!("input {port}: got shape {shape:?}")));
            }
            fix(graph.input.iter_mut().filter(|input| input.name() == name), shape);
        }
        let mut fixed = Self::of(self.name.clone(), self.model.clone(), graph)?;
        if let Some(fed) = sizes(&fixed.inputs) {
            let inferred = fixed.shapes(&lent(&fed))?;
            let outputs: Vec<(String, Vec<usize>)> = fixed
                .outputs
                .iter()
                .filter_map(|port| Some((port.name.clone(), inferred.get(&port.name)?.shape.clone())))
                .collect();
            let mut graph = fixed.graph.clone();
            for (name, shape) in &outputs {
                fix(graph.output.iter_mut().filter(|output| output.name() == name), shape);
            }
            fixed = Self::of(fixed.name, fixed.model, graph)?;
        }
        fixed.parameters.clone_from(&self.parameters);
        Ok(fixed)
    }
}

/// Gives inputs or outputs this shape.
fn fix<'a>(values: impl Iterator<Item = &'a mut ValueInfoProto>, shape: &[usize]) {
    for value in values {
        let kind = value.r#type.as_mut().and_then(|kind| kind.value.as_mut());
        if let Some(TypeValue::TensorType(tensor)) = kind
            && let Some(own) = &mut tensor.shape
        {
            for (dim, &size) in own.dim.iter_mut().zip(shape) {
                dim.value = Some(DimensionValue::DimValue(size as i64));
            }
        }
    }
}

/// The shapes of inputs that are all fixed.
fn sizes(inputs: &[Port]) -> Option<Vec<(String, Vec<usize>)>> {
    let size = |dim: &Dim| match dim {
        Dim::Fixed(size) => Some(*size),
        Dim::Free(_) => None,
    };
    let shape = |port: &Port| port.dims.iter().map(size).collect::<Option<Vec<usize>>>();
    inputs.iter().map(|port| Some((port.name.clone(), shape(port)?))).collect()
}

/// Tensors by name, as shapes are inferred from them.
fn lent(shapes: &[(String, Vec<usize>)]) -> Vec<(&str, &[usize])> {
    shapes.iter().map(|(name, shape)| (name.as_str(), &shape[..])).collect()
}

/// Makes constants of what follows from sizes alone in a graph whose inputs are all of fixed shapes: lists of integers, the
/// targets of `Reshape`, and masks of later tokens. A graph whose shapes cannot be inferred stays as it is.
pub(super) fn fold_sizes(graph: &mut GraphProto, inputs: &[Port], outputs: &[Port]) {
    let Some(fed) = sizes(inputs) else { return };
    let whole = Graph {
        name: String::new(),
        model: ModelProto::default(),
        graph: graph.clone(),
        inputs: inputs.to_vec(),
        outputs: outputs.to_vec(),
        parameters: Vec::new(),
    };
    let shapes = match whole.shapes(&lent(&fed)) {
        Ok(shapes) => shapes,
        Err(error) => return tracing::debug!(%error, "sizes stay computed"),
    };
    let mut constants: HashMap<String, TensorProto> = HashMap::new();
    let mut lists: Vec<TensorProto> = Vec::new();
    for node in &mut graph.node {
        if let [output] = &node.output[..]
            && let Some(constant) =
                list(node, output, &shapes).or_else(|| mask(&whole.graph, node, output, &shapes))
        {
            constants.insert(output.clone(), constant);
        } else if node.op_type() == "Reshape"
            && let Some(tensor) = shapes.get(&node.output[0])
            && node.input.len() == 2
        {
            let target = integers(&format!("{PREFIX}/{}", node.output[0]), &tensor.shape);
            node.input[1] = target.name().to_owned();
            lists.push(target);
        }
    }
    let given: HashSet<&str> = outputs.iter().map(|port| port.name.as_str()).collect();
    constants.retain(|name, _| !given.contains(name.as_str()));
    graph.node.retain(|node| !node.output.iter().any(|output| constants.contains_key(output)));
    // What nothing reads any more.
    loop {
        let read: HashSet<String> = graph.node.iter().flat_map(|node| node.input.iter().cloned()).collect();
        let before = graph.node.len();
        let is_used = |name: &String| read.contains(name) || given.contains(name.as_str());
        graph.node.retain(|node| node.output.iter().any(is_used));
        if graph.node.len() == before {
            constants.retain(|name, _| read.contains(name));
            break;
        }
    }
    let mut constants: Vec<TensorProto> = constants.into_values().collect();
    constants.sort_by(|a, b| a.name().cmp(b.name()));
    graph.initializer.extend(lists.into_iter().chain(constants));
}

/// A list of integers that is known.
fn list(node: &NodeProto, output: &str, shapes: &Shapes) -> Option<TensorProto> {
    let tensor = shapes.get(output).filter(|tensor| tensor.dtype == Dtype::I64)?;
    // A constant is one already.
    if node.op_type() == "Constant" {
        return None;
    }
    let values = tensor.ints()?;
    let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    Some(stored(output, Dtype::I64, &tensor.shape, bytes))
}

/// A triangle of one number, as masks of later tokens are.
fn mask(graph: &GraphProto, node: &NodeProto, output: &str, shapes: &Shapes) -> Option<TensorProto> {
    let filled = node.input.first().filter(|_| node.op_type() == "Trilu" && node.domain().is_empty())?;
    let maker = graph.node.iter().find(|maker| maker.output.contains(filled))?;
    let value = maker.attribute.iter().find(|attribute| attribute.name() == "value")?.t.as_ref()?;
    let value = value.raw_data.as_ref().filter(|raw| raw.len() == 4)?;
    let upper = node.attribute.iter().find(|attribute| attribute.name() == "upper");
    let is_upper = upper.is_none_or(|upper| upper.i() == 1);
    let diagonal = match node.input.get(1) {
        Some(name) => *shapes.get(name)?.ints()?.first()?,
        None => 0,
    };
    let tensor = shapes.get(output).filter(|tensor| tensor.dtype == Dtype::F32)?;
    let &[rows, columns] = &tensor.shape[..] else { return None };
    if maker.op_type() != "ConstantOfShape" || rows.checked_mul(columns)? > MAX_MASK_ELEMENTS {
        return None;
    }
    let zero = 0f32.to_le_bytes();
    let mut bytes = Vec::with_capacity(rows * columns * 4);
    for (row, column) in (0..rows).flat_map(|row| (0..columns).map(move |column| (row, column))) {
        let beyond = column as i64 - row as i64 - diagonal;
        let is_kept = if is_upper { beyond >= 0 } else { beyond <= 0 };
        bytes.extend(if is_kept { &value[..] } else { &zero[..] });
    }
    Some(stored(output, Dtype::F32, &[rows, columns], bytes))
}

fn integers(name: &str, values: &[usize]) -> TensorProto {
    let bytes = values.iter().flat_map(|&value| (value as i64).to_le_bytes()).collect();
    stored(name, Dtype::I64, &[values.len()], bytes)
}

fn stored(name: &str, dtype: Dtype, shape: &[usize], bytes: Vec<u8>) -> TensorProto {
    TensorProto {
        name: Some(name.into()),
        dims: shape.iter().map(|&size| size as i64).collect(),
        data_type: Some(onnx_code(dtype)),
        raw_data: Some(bytes),
        ..Default::default()
    }
}
