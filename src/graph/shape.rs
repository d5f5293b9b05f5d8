//! Shapes: the type and the shape of every value of a graph, from the shapes of what it is fed.
//! It computes the small lists of numbers on which shapes depend, and nothing else; it knows nothing of memory.

mod content;
mod operator;

use std::collections::HashMap;

use self::content::Content;
use super::proto::{NodeProto, TensorProto};
use super::{Dim, Graph, dtype};
use crate::weights::Dtype;
use crate::{Error, ErrorKind};

/// The most dimensions that are believed; video models have 5, attention folded for windows 6.
const MAX_RANK: usize = 16;

/// The type and the shape of one value, and its elements where they are known and few.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Tensor {
    /// The type of its elements.
    pub(crate) dtype: Dtype,
    /// Its size in elements, outermost dimension first.
    pub(crate) shape: Vec<usize>,
    content: Option<Content>,
}

impl Tensor {
    /// A tensor of unknown elements, if its bytes can be counted.
    fn new(dtype: Dtype, shape: Vec<usize>) -> Result<Self, String> {
        let bytes = shape.iter().try_fold(dtype.size_bytes(), |all, &size| all.checked_mul(size));
        // Empty tensors have absurd sizes for free, but no kernel takes them.
        let is_sane = shape.iter().all(|&size| isize::try_from(size).is_ok()) && shape.len() <= MAX_RANK;
        match bytes {
            Some(bytes) if is_sane && isize::try_from(bytes).is_ok() => {
                Ok(Self { dtype, shape, content: None })
            }
            _ => Err(format!("expected a shape that fits into memory, got {dtype} {shape:?}")),
        }
    }

    /// The same with elements, which are kept if they are as many as the shape says.
    fn with(mut self, content: Option<Content>) -> Self {
        self.content = content.filter(|content| content.len() == self.elements());
        self
    }

    /// How many elements it has.
    pub(crate) fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// The size of its elements.
    pub(crate) fn len_bytes(&self) -> usize {
        self.elements() * self.dtype.size_bytes()
    }
}

/// The tensors of a graph by the names of its values: what it is fed, its initializers, and what its nodes give.
#[derive(Debug)]
pub(crate) struct Shapes<'a>(HashMap<&'a str, Tensor>);

impl Shapes<'_> {
    /// The tensor of this name.
    pub(crate) fn get(&self, name: &str) -> Option<&Tensor> {
        self.0.get(name)
    }
}

impl Graph {
    /// The types and shapes of all values when the graph is fed tensors of these shapes.
    ///
    /// # Errors
    /// [`ErrorKind::Model`] for inputs that are not the graph's, an operator that is not known here, a shape that
    /// depends on more than shapes and constants, and a graph that no runtime would take.
    pub(crate) fn shapes(&self, inputs: &[(&str, &[usize])]) -> Result<Shapes<'_>, Error> {
        let refuse = |problem: String| Error::new(ErrorKind::Model, format!("{}: {problem}", self.name));
        let mut values: HashMap<&str, Tensor> = HashMap::new();
        for tensor in &self.graph.initializer {
            let known = initializer(tensor)
                .map_err(|problem| refuse(format!("initializer {}: {problem}", tensor.name())))?;
            values.insert(tensor.name(), known);
        }
        if let Some((name, _)) =
            inputs.iter().find(|(name, _)| self.inputs.iter().all(|port| port.name != *name))
        {
            return Err(refuse(format!("input {name}: expected one of the graph's, got another")));
        }
        for port in &self.inputs {
            let fed = inputs.iter().find(|(name, _)| *name == port.name);
            let (_, shape) =
                fed.ok_or_else(|| refuse(format!("input {}: expected a shape, got none", port.name)))?;
            let fits = |(dim, size): (&Dim, &usize)| *dim == Dim::Fixed(*size) || matches!(dim, Dim::Free(_));
            if shape.len() != port.dims.len() || !port.dims.iter().zip(*shape).all(fits) {
                return Err(refuse(format!("input {port}: got shape {shape:?}")));
            }
            let tensor = Tensor::new(port.dtype, shape.to_vec())
                .map_err(|problem| refuse(format!("input {}: {problem}", port.name)))?;
            values.insert(&port.name, tensor);
        }
        for node in &self.graph.node {
            let failed = |problem: String| refuse(describe(node, &problem));
            let mut operands = Vec::with_capacity(node.input.len());
            for name in &node.input {
                // An input that is left out has no name.
                let operand = match values.get(name.as_str()) {
                    None if name.is_empty() => None,
                    None => {
                        return Err(failed(format!(
                            "input {name}: expected a value of an earlier node, got none"
                        )));
                    }
                    some => some,
                };
                operands.push(operand);
            }
            let results = operator::apply(node, &operands).map_err(failed)?;
            if results.len() < node.output.len() {
                let (expected, got) = (results.len(), node.output.len());
                return Err(failed(format!("expected at most {expected} outputs, got {got}")));
            }
            for (name, tensor) in node.output.iter().zip(results) {
                if !name.is_empty() && values.insert(name, tensor).is_some() {
                    return Err(failed(format!("output {name}: expected a new name, got one that is taken")));
                }
            }
        }
        match self.outputs.iter().find(|port| !values.contains_key(port.name.as_str())) {
            Some(port) => {
                Err(refuse(format!("output {}: expected a node that gives it, got none", port.name)))
            }
            None => Ok(Shapes(values)),
        }
    }
}

/// Says at which node of a graph there is a problem.
pub(super) fn describe(node: &NodeProto, problem: &str) -> String {
    format!("node {} ({}): {problem}", node.name(), operator::full_name(node))
}

/// A constant, with its elements where they are few.
fn initializer(tensor: &TensorProto) -> Result<Tensor, String> {
    let dtype = dtype(tensor.data_type())?;
    let sizes = tensor
        .dims
        .iter()
        .map(|&size| usize::try_from(size).map_err(|_| format!("dimension: expected a size, got {size}")));
    let plain = Tensor::new(dtype, sizes.collect::<Result<_, _>>()?)?;
    let content = Content::stored(tensor, dtype, plain.elements());
    Ok(plain.with(content))
}
