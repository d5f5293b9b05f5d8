//! Shapes: the type and the shape of every value of a graph, from the shapes of what it is fed.
//! It computes the small lists of numbers on which shapes depend, and nothing else; it knows nothing of memory.

mod content;
mod operator;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

use self::content::Content;
use super::dtype::dtype;
use super::proto::{NodeProto, TensorProto};
use super::{Dim, Graph};
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

    /// Its elements, where they are known, few and integers.
    pub(crate) fn ints(&self) -> Option<&[i64]> {
        self.content.as_ref()?.ints()
    }

    /// The size of its elements.
    pub(crate) fn len_bytes(&self) -> usize {
        self.elements() * self.dtype.size_bytes()
    }
}

/// The tensors of a graph by the names of its values: what it is fed, its initializers, and what its nodes give.
#[derive(Debug)]
pub(crate) struct Shapes<'a> {
    tensors: HashMap<&'a str, Tensor>,
    /// The nodes, each after those whose values it uses; where that allows, as in the file.
    pub(super) order: Vec<usize>,
}

impl Shapes<'_> {
    /// The tensor of this name.
    pub(crate) fn get(&self, name: &str) -> Option<&Tensor> {
        self.tensors.get(name)
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
        // Tools that convert graphs append nodes whose values earlier ones use, and ONNX Runtime takes that.
        let nodes = &self.graph.node;
        let mut users: HashMap<&str, Vec<usize>> = HashMap::new();
        let mut missing = vec![0usize; nodes.len()];
        for (index, node) in nodes.iter().enumerate() {
            for name in
                node.input.iter().filter(|name| !name.is_empty() && !values.contains_key(name.as_str()))
            {
                users.entry(name).or_default().push(index);
                missing[index] += 1;
            }
        }
        let mut ready: BinaryHeap<Reverse<usize>> =
            (0..nodes.len()).filter(|&index| missing[index] == 0).map(Reverse).collect();
        let mut order = Vec::with_capacity(nodes.len());
        while let Some(Reverse(index)) = ready.pop() {
            order.push(index);
            let node = &nodes[index];
            let failed = |problem: String| refuse(describe(node, &problem));
            // An input that is left out has no name.
            let operands: Vec<Option<&Tensor>> = node
                .input
                .iter()
                .map(|name| values.get(name.as_str()).filter(|_| !name.is_empty()))
                .collect();
            let results = operator::apply(node, &operands).map_err(failed)?;
            if results.len() < node.output.len() {
                let (expected, got) = (results.len(), node.output.len());
                return Err(failed(format!("expected at most {expected} outputs, got {got}")));
            }
            for (name, tensor) in node.output.iter().zip(results).filter(|(name, _)| !name.is_empty()) {
                if values.insert(name, tensor).is_some() {
                    return Err(failed(format!("output {name}: expected a new name, got one that is taken")));
                }
                for user in users.remove(name.as_str()).unwrap_or_default() {
                    missing[user] -= 1;
                    if missing[user] == 0 {
                        ready.push(Reverse(user));
                    }
                }
            }
        }
        if let Some(index) = missing.iter().position(|&count| count > 0) {
            let node = &nodes[index];
            let absent = |name: &&String| !name.is_empty() && !values.contains_key(name.as_str());
            let name = node.input.iter().find(absent).map_or("", String::as_str);
            let problem = format!("input {name}: expected a value that a node before it gives, got none");
            return Err(refuse(describe(node, &problem)));
        }
        match self.outputs.iter().find(|port| !values.contains_key(port.name.as_str())) {
            Some(port) => {
                Err(refuse(format!("output {}: expected a node that gives it, got none", port.name)))
            }
            None => Ok(Shapes { tensors: values, order }),
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

#[cfg(test)]
pub(super) mod tests {
    use std::collections::BTreeSet;
    use std::io::Read as _;
    use std::path::Path;

    use flate2::read::GzDecoder;
    use prost::Message as _;
    use serde_json::Value as Json;

    use super::*;
    use crate::graph::OPEN_LOCATION;
    use crate::graph::int8::{Int8, WeightBits};
    use crate::graph::node::{MICROSOFT, entry, integer};
    use crate::graph::proto::{
        AttributeProto, Dimension, DimensionValue, EXTERNAL, GraphProto, ModelProto, TensorShapeProto,
        TensorType, TypeProto, TypeValue, ValueInfoProto,
    };
    use crate::graph::quantize::Bits;

    const GOLDEN: &str = include_str!("../../tests/golden/shapes/values.json");

    /// A graph of the repository, its initializers without data as those of graphs that are bound.
    pub(in crate::graph) fn stored(path: &str) -> Graph {
        let file = std::fs::File::open(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap();
        let mut bytes = Vec::new();
        GzDecoder::new(file).read_to_end(&mut bytes).unwrap();
        let mut model = ModelProto::decode(&bytes[..]).unwrap();
        let graph = model.graph.as_mut().unwrap();
        for tensor in graph.initializer.iter_mut().filter(|tensor| tensor.data_location() == EXTERNAL) {
            tensor.external_data = vec![entry("location", OPEN_LOCATION.into())];
        }
        Graph::decode(path, &model.encode_to_vec()).unwrap()
    }

    fn sizes(json: &Json) -> Vec<usize> {
        json.as_array().unwrap().iter().map(|size| size.as_u64().unwrap() as usize).collect()
    }

    fn described(tensor: &Tensor) -> String {
        let sizes = tensor.shape.iter().map(usize::to_string);
        [tensor.dtype.to_string()].into_iter().chain(sizes).collect::<Vec<_>>().join(" ")
    }

    /// Calls back with each golden graph, its inputs, and what ONNX Runtime gave for each value.
    fn each_golden(check: impl Fn(&Graph, &[(&str, &[usize])], &[(String, String)])) {
        let golden: Json = serde_json::from_str(GOLDEN).unwrap();
        let cases = golden["graphs"].as_array().unwrap();
        assert_eq!(cases.len(), 18);
        for case in cases {
            let graph = stored(case["graph"].as_str().unwrap());
            let inputs = case["inputs"].as_object().unwrap();
            let inputs: Vec<(&str, Vec<usize>)> =
                inputs.iter().map(|(name, shape)| (name.as_str(), sizes(shape))).collect();
            let inputs: Vec<(&str, &[usize])> =
                inputs.iter().map(|(name, shape)| (*name, &shape[..])).collect();
            let names = graph.graph.node.iter().flat_map(|node| &node.output).filter(|name| !name.is_empty());
            let values = sizes(&case["values"]);
            let types = values.iter().map(|&index| case["types"][index].as_str().unwrap().to_owned());
            let expected: Vec<(String, String)> = names.cloned().zip(types).collect();
            assert_eq!(expected.len(), values.len());
            check(&graph, &inputs, &expected);
        }
    }

    #[test]
    fn values_are_those_of_onnx_runtime() {
        each_golden(|graph, inputs, expected| {
            let shapes = graph.shapes(inputs).unwrap();
            for (name, expected) in expected {
                assert_eq!(&described(shapes.get(name).unwrap()), expected, "{}: {name}", graph.name);
            }
        });
    }

    #[test]
    fn quantised_graphs_have_the_same_shapes() {
        each_golden(|graph, inputs, expected| {
            if !graph.name.starts_with("models/builtin") {
                return;
            }
            for bits in [Bits::Four, Bits::Eight] {
                let (graph, made) = graph.quantize(bits).unwrap();
                assert!(!made.is_empty() || graph.name.contains("text_encoder"), "{}", graph.name);
                let shapes = graph.shapes(inputs).unwrap();
                for (name, expected) in expected {
                    assert_eq!(&described(shapes.get(name).unwrap()), expected, "{}: {name}", graph.name);
                }
            }
            let (rounded, made) = graph.compute_in_qdq(None, WeightBits::Eight, &BTreeSet::new()).unwrap();
            assert!(!made.is_empty(), "{}", graph.name);
            let shapes = rounded.shapes(inputs).unwrap();
            for (name, expected) in expected {
                assert_eq!(&described(shapes.get(name).unwrap()), expected, "{}: {name}", graph.name);
            }
            // Products of convolutions have other names, and biases are part of products.
            for has_blocks in [false, true] {
                let how = Int8 { has_blocks, bits: WeightBits::Eight };
                let (graph, made) = graph.compute_in_int8(how, &BTreeSet::new()).unwrap();
                assert!(!made.is_empty(), "{}", graph.name);
                let shapes = graph.shapes(inputs).unwrap();
                let known =
                    expected.iter().filter_map(|(name, expected)| Some((name, shapes.get(name)?, expected)));
                let mut count = 0;
                for (name, tensor, expected) in known {
                    assert_eq!(&described(tensor), expected, "{}: {name}", graph.name);
                    count += 1;
                }
                assert!(count > expected.len() / 2, "{}: {count} of {}", graph.name, expected.len());
            }
        });
    }

    fn value(name: &str, dims: &[i64]) -> ValueInfoProto {
        let dim = dims.iter().map(|&size| Dimension {
            value: (size >= 0).then_some(DimensionValue::DimValue(size)),
            ..Default::default()
        });
        let tensor = TensorType { elem_type: Some(1), shape: Some(TensorShapeProto { dim: dim.collect() }) };
        let kind = TypeProto { value: Some(TypeValue::TensorType(tensor)), ..Default::default() };
        ValueInfoProto { name: Some(name.into()), r#type: Some(kind), ..Default::default() }
    }

    pub(in crate::graph) fn node(
        op: &str,
        inputs: &[&str],
        output: &str,
        attribute: Vec<AttributeProto>,
    ) -> NodeProto {
        NodeProto {
            name: Some(format!("the {op}")),
            op_type: Some(op.into()),
            input: inputs.iter().map(ToString::to_string).collect(),
            output: vec![output.into()],
            attribute,
            ..Default::default()
        }
    }

    fn list(name: &str, values: &[i64]) -> TensorProto {
        TensorProto {
            name: Some(name.into()),
            dims: vec![values.len() as i64],
            data_type: Some(7),
            int64_data: values.to_vec(),
            ..Default::default()
        }
    }

    pub(in crate::graph) fn plain(name: &str, dims: &[i64]) -> TensorProto {
        TensorProto { name: Some(name.into()), dims: dims.to_vec(), data_type: Some(1), ..Default::default() }
    }

    /// A graph from `x` of so many dimensions to `y`.
    pub(in crate::graph) fn graph(
        nodes: Vec<NodeProto>,
        initializer: Vec<TensorProto>,
        rank: usize,
    ) -> Graph {
        let graph = GraphProto {
            node: nodes,
            initializer,
            input: vec![value("x", &vec![-1; rank])],
            output: vec![value("y", &[])],
            ..Default::default()
        };
        let model = ModelProto { graph: Some(graph), ..Default::default() };
        Graph::decode("unet", &model.encode_to_vec()).unwrap()
    }

    /// The shape of `y` when `x` has this one.
    fn given(nodes: Vec<NodeProto>, initializer: Vec<TensorProto>, x: &[usize]) -> Result<Vec<usize>, Error> {
        let graph = graph(nodes, initializer, x.len());
        let shapes = graph.shapes(&[("x", x)])?;
        Ok(shapes.get("y").unwrap().shape.clone())
    }

    fn refusal(nodes: Vec<NodeProto>, initializer: Vec<TensorProto>, x: &[usize]) -> String {
        let error = given(nodes, initializer, x).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Model);
        error.to_string()
    }

    #[test]
    fn operators_that_no_stored_graph_has() {
        let mut equation = integer("equation", 0);
        equation.s = Some(b"bhqd,bhkd->bhqk".to_vec());
        let einsum = node("Einsum", &["x", "x"], "y", vec![equation]);
        assert_eq!(given(vec![einsum], vec![], &[2, 3, 5, 7]).unwrap(), [2, 3, 5, 5]);
        let mut strides = integer("strides", 0);
        strides.ints = vec![2, 2];
        let turned = node("ConvTranspose", &["x", "w"], "y", vec![strides]);
        assert_eq!(
            given(vec![turned], vec![plain("w", &[3, 4, 2, 3])], &[1, 3, 5, 7]).unwrap(),
            [1, 4, 10, 15]
        );
        let blocks = |op: &str, block: i64, shape: &[usize]| {
            given(vec![node(op, &["x"], "y", vec![integer("blocksize", block)])], vec![], shape)
        };
        assert_eq!(blocks("DepthToSpace", 4, &[1, 48, 5, 7]).unwrap(), [1, 3, 20, 28]);
        assert_eq!(blocks("SpaceToDepth", 2, &[1, 3, 6, 10]).unwrap(), [1, 12, 3, 5]);
        assert!(blocks("DepthToSpace", 4, &[1, 40, 5, 7]).is_err());
        assert!(blocks("SpaceToDepth", 2, &[1, 3, 5, 10]).is_err());
        assert!(
            blocks("DepthToSpace", 0, &[1, 4, 2, 2]).is_err()
                && blocks("SpaceToDepth", -1, &[1, 4, 2, 2]).is_err()
        );
        let pooled = |ceil: i64, kernel: &[i64], shape: &[usize]| {
            let ints = |name: &str, values: &[i64]| {
                let mut list = integer(name, 0);
                list.ints = values.to_vec();
                list
            };
            let attributes =
                vec![ints("kernel_shape", kernel), ints("strides", &[2, 2]), integer("ceil_mode", ceil)];
            given(vec![node("AveragePool", &["x"], "y", attributes)], vec![], shape)
        };
        assert_eq!(pooled(0, &[2, 2], &[1, 3, 5, 8]).unwrap(), [1, 3, 2, 4]);
        assert_eq!(pooled(1, &[2, 2], &[1, 3, 5, 8]).unwrap(), [1, 3, 3, 4]);
        // A second window would begin behind the image.
        assert_eq!(pooled(1, &[1, 1], &[1, 3, 2, 1]).unwrap(), [1, 3, 1, 1]);
        assert!(pooled(0, &[2], &[1, 3, 5, 8]).is_err() && pooled(0, &[-1, 2], &[1, 3, 5, 8]).is_err());
        assert_eq!(pooled(1, &[2, 2], &[1, 3, 1, 8]).unwrap(), [1, 3, 1, 4]);
        assert!(pooled(0, &[2, 2], &[1, 3, 1, 8]).is_err());
        let slice = node("Slice", &["x", "from", "to", "axes", "steps"], "y", vec![]);
        let lists =
            || vec![list("from", &[-1]), list("to", &[i64::MIN]), list("axes", &[1]), list("steps", &[-2])];
        assert_eq!(given(vec![slice], lists(), &[2, 5]).unwrap(), [2, 3]);
        // The fifth example of ONNX's description.
        let gathered = |batch: i64| {
            let gather = node("GatherND", &["x", "at"], "y", vec![integer("batch_dims", batch)]);
            given(vec![gather], vec![plain("at", &[2, 1])], &[2, 3, 5])
        };
        assert_eq!((gathered(1).unwrap(), gathered(0).unwrap()), (vec![2, 5], vec![2, 3, 5]));
        assert!(gathered(3).is_err() && gathered(-1).is_err());
        let pad = node("Pad", &["x", "pads"], "y", vec![]);
        assert_eq!(given(vec![pad], vec![list("pads", &[0, 1, 2, -1])], &[3, 4]).unwrap(), [5, 4]);
        let half = vec![
            node("Shape", &["x"], "s", vec![]),
            node("Less", &["s", "to"], "l", vec![]),
            node("Where", &["l", "s", "to"], "w", vec![]),
            node("ConstantOfShape", &["w"], "y", vec![]),
        ];
        assert_eq!(given(half, vec![list("to", &[4])], &[2, 5]).unwrap(), [2, 4]);
        let sizes = node("Shape", &["x"], "s", vec![]);
        let turned = node("Slice", &["s", "from", "to", "axes", "steps"], "t", vec![]);
        let made = node("ConstantOfShape", &["t"], "y", vec![]);
        let reverse =
            vec![list("from", &[-1]), list("to", &[i64::MIN]), list("axes", &[0]), list("steps", &[-1])];
        assert_eq!(given(vec![sizes, turned, made], reverse, &[2, 3, 5]).unwrap(), [5, 3, 2]);
    }

    #[test]
    fn unknown_operators_are_named() {
        let message = refusal(vec![node("NonZero", &["x"], "y", vec![])], vec![], &[2]);
        assert!(message.contains("node the NonZero (NonZero): expected a supported operator"), "{message}");
        let mut custom = node("Relu", &["x"], "y", vec![]);
        custom.domain = Some(MICROSOFT.into());
        let message = refusal(vec![custom], vec![], &[2]);
        assert!(message.contains("(com.microsoft.Relu)"), "{message}");
    }

    #[test]
    fn shapes_that_depend_on_data_are_refused() {
        let reshape = node("Reshape", &["x", "x"], "y", vec![]);
        assert!(
            refusal(vec![reshape], vec![], &[2])
                .contains("expected values that depend on shapes only, got data")
        );
    }

    #[test]
    fn cycles_are_refused_and_other_orders_are_not() {
        let nodes = vec![node("Add", &["x", "b"], "a", vec![]), node("Relu", &["a"], "b", vec![])];
        assert!(
            refusal(nodes, vec![], &[2]).contains("input b: expected a value that a node before it gives")
        );
        let late = vec![node("Relu", &["a"], "y", vec![]), node("Relu", &["x"], "a", vec![])];
        assert_eq!(given(late, vec![], &[2]).unwrap(), [2]);
        let twice = vec![node("Relu", &["x"], "y", vec![]), node("Relu", &["y"], "x", vec![])];
        assert!(refusal(twice, vec![], &[2]).contains("output x: expected a new name"));
        assert!(refusal(vec![], vec![], &[2]).contains("output y: expected a node"));
    }

    #[test]
    fn absurd_sizes_are_refused() {
        let huge = || vec![list("s", &[i64::MAX, i64::MAX])];
        let expand = node("Expand", &["x", "s"], "y", vec![]);
        assert!(refusal(vec![expand], huge(), &[1]).contains("fits into memory"));
        let reshape = || node("Reshape", &["x", "s"], "y", vec![]);
        assert!(refusal(vec![reshape()], vec![list("s", &[-2])], &[2]).contains("expected a shape"));
        assert!(refusal(vec![reshape()], vec![list("s", &[0, -1])], &[0]).contains("expected a shape"));
        assert!(
            refusal(vec![reshape()], vec![list("s", &[3])], &[2]).contains("expected a shape of 2 elements")
        );
        let relu = || node("Relu", &["x"], "y", vec![]);
        assert!(refusal(vec![relu()], vec![plain("w", &[-1])], &[2]).contains("expected a size, got -1"));
        assert!(refusal(vec![relu()], vec![], &[usize::MAX, 2]).contains("fits into memory"));
        let conv = node("Conv", &["x", "w"], "y", vec![]);
        assert!(
            refusal(vec![conv], vec![plain("w", &[1, 1, 9, 9])], &[1, 1, 8, 8]).contains("kernel's size")
        );
    }

    #[test]
    fn inputs_must_be_the_graphs() {
        let graph = stored("models/builtin/graphs/vae_decoder.onnx.gz");
        let message = |inputs: &[(&str, &[usize])]| graph.shapes(inputs).unwrap_err().to_string();
        assert!(message(&[]).contains("input latent_sample: expected a shape, got none"));
        assert!(message(&[("latent_sample", &[1, 3, 8, 8])]).contains("got shape [1, 3, 8, 8]"));
        assert!(message(&[("latent_sample", &[1, 16, 8])]).contains("got shape"));
        assert!(message(&[("latent_sample", &[1, 16, 8, 8]), ("x", &[])]).contains("input x: expected one"));
    }
}
