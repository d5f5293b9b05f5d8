//! Graphs: ONNX models whose parameters are declared but stored without data, and their binding to weights by name.
//! It knows nothing of sessions.

mod activation;
mod cut;
mod embedding;
mod file;
mod narrow;
pub(crate) mod normal;
mod order;
pub mod proto;
pub mod quantize;
mod segment;
mod shape;

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt;
use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use prost::Message;
use sha2::{Digest, Sha256};

use self::file::Skeleton;
use self::proto::{
    AttributeProto, DimensionValue, GraphProto, ModelProto, NodeProto, OperatorSetIdProto,
    StringStringEntryProto, TensorProto, TypeValue, ValueInfoProto,
};
pub(crate) use self::segment::{Segment, SegmentBytes, least_resident_bytes, pinned, resident_bytes};
use crate::weights::{Dtype, Stored, Weights};
use crate::{Error, ErrorKind};

/// The `location` of a parameter that has no data yet.
pub(crate) const OPEN_LOCATION: &str = "weights";
/// The operators that only ONNX Runtime has.
const MICROSOFT: &str = "com.microsoft";
/// The longest constant of a node that is taken into the graph.
const MAX_CONSTANT_BYTES: usize = 64 << 20;
/// How many missing parameters an error names.
const NAMED_MISSING: usize = 3;

/// An input or an output of a graph.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// The name by which it is fed or fetched.
    pub name: String,
    /// The type of its elements.
    pub dtype: Dtype,
    /// Its dimensions, outermost first.
    pub dims: Vec<Dim>,
}

/// One dimension of a [`Port`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Dim {
    /// Always this many elements.
    Fixed(usize),
    /// Any number; dimensions of the same name (which may be empty) are meant to have the same number.
    Free(String),
}

impl Port {
    /// Its type and dimensions: `F32[batch, 4, 32, 32]`.
    pub(crate) fn signature(&self) -> String {
        let dims: Vec<String> = self.dims.iter().map(Dim::to_string).collect();
        format!("{}[{}]", self.dtype, dims.join(", "))
    }
}

impl fmt::Display for Port {
    /// Name, type and dimensions: `sample: F32[batch, 4, 32, 32]`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.name, self.signature())
    }
}

impl fmt::Display for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(size) => write!(f, "{size}"),
            Self::Free(name) if name.is_empty() => f.write_str("?"),
            Self::Free(name) => f.write_str(name),
        }
    }
}

/// A parameter that a graph declares without data, for weights to fill.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parameter {
    /// Its name in the reference implementation, and so in the weights.
    pub name: String,
    /// The type in which the graph computes with it.
    pub dtype: Dtype,
    /// Its size in elements, outermost dimension first.
    pub shape: Vec<usize>,
    /// Whether the graph takes it as `[in, out]`, where the reference implementation has `[out, in]`.
    transposed: bool,
    /// Index into the initializers.
    initializer: usize,
}

impl Parameter {
    /// Whether the graph takes it as `[in, out]`, where the reference implementation has `[out, in]`.
    pub fn is_transposed(&self) -> bool {
        self.transposed
    }
}

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

    /// Opens a ready-made ONNX file: its graph, and the weights in it and in the files beside it that it names, where
    /// they lie.
    ///
    /// Matrices that an exporter turned and renamed (`onnx::MatMul_1234`) get the name back under which the reference
    /// implementation keeps them, where the node that multiplies by them tells it.
    ///
    /// # Errors
    /// [`ErrorKind::Model`] when the file is not an ONNX model, or data is missing or lies outside the file's folder.
    pub fn open(name: impl Into<String>, path: &Path) -> Result<(Self, Weights), Error> {
        let name = name.into();
        let place = path.display();
        let refuse = |problem: String| Error::new(ErrorKind::Model, format!("{place}: {problem}"));
        let skeleton = Skeleton::read(path)
            .map_err(|error| Error::new(ErrorKind::Model, place.to_string()).source(error))?;
        let (model, mut graph) = decode(&place.to_string(), &skeleton.bytes)?;
        let mut weights = Weights::default();
        let mut files: HashMap<PathBuf, usize> = HashMap::new();
        for (tensor, data) in graph.initializer.iter_mut().zip(skeleton.data) {
            let (file, offset_bytes) = match data {
                Some((offset_bytes, len_bytes)) => {
                    check_len(tensor, Some(len_bytes)).map_err(refuse)?;
                    (path.to_owned(), offset_bytes)
                }
                None if tensor.data_location() == proto::EXTERNAL => {
                    let (location, offset_bytes) = external(tensor).map_err(refuse)?;
                    (path.with_file_name(location), offset_bytes)
                }
                None => continue,
            };
            let index = match files.get(&file) {
                Some(index) => *index,
                None => {
                    let index = weights.map(&file)?;
                    files.insert(file, index);
                    index
                }
            };
            let Parameter { name, dtype, shape, .. } = declared(0, tensor).map_err(refuse)?;
            weights.insert(&name, dtype, &shape, index, offset_bytes)?;
            tensor.data_location = Some(proto::EXTERNAL);
            tensor.external_data = vec![entry("location", OPEN_LOCATION.into())];
        }
        for node in &mut graph.node {
            bring_in(node, path).map_err(refuse)?;
        }
        let (weights, turned) = recover_names(&mut graph, weights)?;
        let mut graph = Self::of(name, model, graph)?;
        for parameter in &mut graph.parameters {
            parameter.transposed = turned.contains(&parameter.name);
        }
        Ok((graph, weights))
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
        let custom = self.graph.node.iter().filter(|node| !matches!(node.domain(), "" | "ai.onnx"));
        custom.map(|node| format!("{}.{}", node.domain(), node.op_type())).collect()
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

    /// The parameters that these weights have as 16-bit floats, and that are made 32-bit ones whenever they are used.
    pub(crate) fn converted(&self, weights: &Weights) -> HashSet<&str> {
        let is_short = |parameter: &&Parameter| {
            let stored = weights.get(&parameter.name).map(|weight| weight.dtype());
            parameter.dtype == Dtype::F32 && matches!(stored, Some(Dtype::F16 | Dtype::Bf16))
        };
        let names = self.parameters.iter().filter(is_short).map(|parameter| parameter.name.as_str());
        let tables = tables(&self.graph.node);
        names.filter(|name| !tables.contains(name)).collect()
    }

    /// The bytes of the ONNX model, its parameters without data, as [`Graph::decode`] reads them.
    pub fn encode(&self) -> Vec<u8> {
        ModelProto { graph: Some(self.graph.clone()), ..self.model.clone() }.encode_to_vec()
    }

    /// The same graph with every matrix of a plain product as `[out, in]`, as the reference implementation keeps it.
    ///
    /// A parameter that is turned here takes its weight turned, too.
    ///
    /// # Errors
    /// [`ErrorKind::Model`] for a product of other than two factors.
    pub(crate) fn upright(&self) -> Result<Self, Error> {
        let refuse = |problem: String| Error::new(ErrorKind::Model, format!("{}: {problem}", self.name));
        let mut turned = self.clone();
        for parameter in turned.parameters.iter_mut().filter(|parameter| parameter.shape.len() == 2) {
            let is_product = |node: &&NodeProto| {
                node.op_type() == "MatMul" && node.domain().is_empty() && node.input[0] != parameter.name
            };
            let users = quantize::users(&self.graph, &parameter.name);
            if !users.is_empty() && users.iter().all(is_product) {
                transpose(&mut turned.model, &mut turned.graph, &parameter.name).map_err(refuse)?;
                turned.graph.initializer[parameter.initializer].dims.reverse();
                parameter.shape.reverse();
                parameter.transposed = !parameter.transposed;
            }
        }
        Ok(turned)
    }

    /// Points every parameter at the weight of the same name; no data is copied.
    ///
    /// A weight of 16-bit floats may fill a parameter of 32-bit floats: it is declared as it is stored, and converted
    /// at the very front of the graph, where conversions of constants cost the least memory.
    ///
    /// # Errors
    /// [`ErrorKind::Model`] when a weight is missing or has another shape or type.
    pub fn bind(self, weights: Arc<Weights>) -> Result<BoundGraph, Error> {
        let custom_operators = self.custom_operators();
        let Self { name, mut model, mut graph, inputs, outputs, parameters } = self;
        let refuse = |problem: String| Error::new(ErrorKind::Model, format!("{name}: {problem}"));

        let count = parameters.len();
        let (mut found, mut missing) = (Vec::new(), Vec::new());
        for parameter in parameters {
            match weights.get(&parameter.name) {
                Some(weight) => found.push((parameter, weight)),
                None => missing.push(parameter.name),
            }
        }
        if let Some((name, reason)) = missing.iter().find_map(|name| Some((name, weights.unreadable(name)?)))
        {
            return Err(refuse(format!("weight {name}: {reason}")));
        }
        if !missing.is_empty() {
            return Err(refuse(describe_missing(&missing, count, &weights)));
        }

        let known: HashSet<String> = tables(&graph.node).into_iter().map(str::to_owned).collect();
        let (mut casts, mut tables) = (Vec::new(), Vec::new());
        let (mut float_bytes, mut table_bytes, mut has_integers) = (0, 0, false);
        for (parameter, weight) in found {
            let wanted = &parameter.name;
            let mut stored_shape = parameter.shape.clone();
            let is_turned = weight.is_transposed() != parameter.transposed;
            if is_turned {
                stored_shape.reverse();
            }
            // A 1x1 convolution is a linear layer, and a bias of one number per channel a column: the same bytes.
            let matters = |size: &&usize| **size != 1;
            if !weight.shape().iter().filter(matters).eq(stored_shape.iter().filter(matters)) {
                return Err(refuse(format!(
                    "weight {wanted}: expected shape {stored_shape:?}, got {:?}",
                    weight.shape()
                )));
            }
            if is_turned {
                transpose(&mut model, &mut graph, wanted).map_err(refuse)?;
                graph.initializer[parameter.initializer].dims.reverse();
            }
            if parameter.dtype.is_float() {
                let bytes = parameter.shape.iter().product::<usize>() * parameter.dtype.size_bytes();
                float_bytes += bytes;
                table_bytes += if known.contains(wanted) { bytes } else { 0 };
            } else {
                has_integers = true;
            }
            match (weight.dtype(), parameter.dtype) {
                (got, expected) if got == expected => {}
                (Dtype::F16 | Dtype::Bf16, Dtype::F32) => {
                    let stored = format!("{wanted}/stored");
                    casts.push(cast(&stored, wanted, parameter.dtype));
                    if known.contains(wanted) {
                        tables.push((wanted.clone(), stored.clone()));
                    }
                    let initializer = &mut graph.initializer[parameter.initializer];
                    initializer.name = Some(stored);
                    initializer.data_type = Some(onnx_code(weight.dtype()));
                }
                (got, expected) => {
                    return Err(refuse(format!("weight {wanted}: expected type {expected}, got {got}")));
                }
            }
            let (file, offset_bytes) = weight.location();
            let initializer = &mut graph.initializer[parameter.initializer];
            initializer.external_data = vec![
                entry("location", file),
                entry("offset", offset_bytes.to_string()),
                entry("length", weight.len_bytes().to_string()),
            ];
        }
        graph.node.splice(0..0, casts);
        model.graph = Some(graph);
        Ok(BoundGraph {
            model,
            name,
            inputs,
            outputs,
            weights,
            tables,
            float_bytes,
            table_bytes,
            has_integers,
            custom_operators,
        })
    }
}

impl fmt::Debug for Graph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (nodes, parameters) = (self.graph.node.len(), self.parameters.len());
        write!(f, "Graph({}: {nodes} nodes, {parameters} parameters)", self.name)
    }
}

/// The tensors that are tables of rows: all that read them look rows up.
fn tables(nodes: &[NodeProto]) -> HashSet<&str> {
    let mut is_table: HashMap<&str, bool> = HashMap::new();
    for node in nodes {
        let axis = node.attribute.iter().find(|attribute| attribute.name() == "axis");
        let looks_up = node.op_type() == "Gather" && axis.is_none_or(|axis| axis.i() == 0);
        for (place, name) in node.input.iter().enumerate() {
            *is_table.entry(name).or_insert(true) &= looks_up && place == 0;
        }
    }
    is_table.into_iter().filter_map(|(name, is_table)| is_table.then_some(name)).collect()
}

/// A graph all of whose parameters have data.
pub struct BoundGraph {
    pub(crate) name: String,
    pub(crate) inputs: Vec<Port>,
    pub(crate) outputs: Vec<Port>,
    /// The model; parameters refer to `weights` by [`Weights::files`].
    pub(crate) model: ModelProto,
    pub(crate) weights: Arc<Weights>,
    /// Tables of rows that are converted before they are used, and their names as they are stored.
    tables: Vec<(String, String)>,
    /// How much memory the weights in floats take, in the types in which the graph computes with them.
    pub(crate) float_bytes: usize,
    /// How much of that tables of rows take.
    pub(crate) table_bytes: usize,
    /// Whether there are weights in integers.
    pub(crate) has_integers: bool,
    /// [`Graph::custom_operators`].
    pub(crate) custom_operators: BTreeSet<String>,
}

impl BoundGraph {
    /// The bytes of the ONNX model.
    pub(crate) fn encode(&self) -> Vec<u8> {
        self.model.encode_to_vec()
    }

    /// Has rows looked up in tables as these are stored, and converted then: they are few, and the table is long. It is for
    /// the processor; a device that takes no 16-bit floats has no lookup for them either.
    pub(crate) fn convert_rows(&mut self) {
        let nodes = self.model.graph.as_mut().map(|graph| &mut graph.node).expect("a bound graph");
        for (table, stored) in std::mem::take(&mut self.tables) {
            nodes.retain(|node| !node.output.contains(&table));
            while let Some(place) = nodes.iter().position(|node| node.input.contains(&table)) {
                let node = &mut nodes[place];
                let rows = node.output[0].clone();
                node.input[0].clone_from(&stored);
                node.output[0] = format!("{rows}/stored");
                let cast = cast(&node.output[0], &rows, Dtype::F32);
                nodes.insert(place + 1, cast);
            }
        }
    }

    /// The numbers of the files of `weights` in which its parameters lie.
    pub(crate) fn files(&self) -> Vec<usize> {
        self.model.graph.as_ref().map_or_else(Vec::new, segment::files)
    }

    /// A name for this graph with these weights, and no others: the first half of a SHA-256 in hexadecimal digits.
    pub(crate) fn key(&self) -> String {
        let mut hash = Sha256::new();
        hash.update(self.encode());
        hash.update(self.weights.sha256());
        hash.finalize()[..16].iter().map(|byte| format!("{byte:02x}")).collect()
    }
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

fn port(info: &ValueInfoProto) -> Result<Port, String> {
    let name = checked_name(info.name())?;
    let Some(TypeValue::TensorType(tensor)) = info.r#type.as_ref().and_then(|kind| kind.value.as_ref())
    else {
        return Err(format!("{name}: expected a tensor, got another type"));
    };
    let dtype = dtype(tensor.elem_type()).map_err(|problem| format!("{name}: {problem}"))?;
    let shape = tensor.shape.as_ref().ok_or_else(|| format!("{name}: expected a shape, got none"))?;
    let dims = shape.dim.iter().map(|dim| match &dim.value {
        Some(DimensionValue::DimValue(size)) => usize::try_from(*size)
            .map(Dim::Fixed)
            .map_err(|_| format!("{name}: dimension: expected a size, got {size}")),
        Some(DimensionValue::DimParam(symbol)) => Ok(Dim::Free(symbol.clone())),
        None => Ok(Dim::Free(String::new())),
    });
    Ok(Port { dims: dims.collect::<Result<_, _>>()?, name, dtype })
}

fn parameter(initializer: usize, tensor: &TensorProto) -> Result<Parameter, String> {
    let name = checked_name(tensor.name())?;
    // A graph could name any file, and any place in it.
    let location =
        tensor.external_data.iter().find(|entry| entry.key() == "location").map_or("", |entry| entry.value());
    if location != OPEN_LOCATION {
        return Err(format!("{name}: expected no data ({OPEN_LOCATION:?}), got data in file {location:?}"));
    }
    declared(initializer, tensor)
}

fn declared(initializer: usize, tensor: &TensorProto) -> Result<Parameter, String> {
    let name = checked_name(tensor.name())?;
    let dtype = dtype(tensor.data_type()).map_err(|problem| format!("{name}: {problem}"))?;
    let sizes = tensor.dims.iter().map(|&size| {
        usize::try_from(size).map_err(|_| format!("{name}: dimension: expected a size, got {size}"))
    });
    let shape = sizes.collect::<Result<_, _>>()?;
    Ok(Parameter { shape, name, dtype, transposed: false, initializer })
}

/// Whether data of this many bytes (unless that is left open) is what a tensor's type and shape need.
fn check_len(tensor: &TensorProto, len_bytes: Option<u64>) -> Result<(), String> {
    let Parameter { name, dtype, shape, .. } = declared(0, tensor)?;
    let needed = shape.iter().try_fold(dtype.size_bytes(), |bytes, &dim| bytes.checked_mul(dim));
    match (needed, len_bytes) {
        (Some(_), None) => Ok(()),
        (Some(needed), Some(got)) if needed as u64 == got => Ok(()),
        (needed, got) => Err(format!(
            "weight {name}: {dtype} {shape:?}: expected {} bytes of data, got {}",
            needed.map_or("countable".into(), |needed| needed.to_string()),
            got.unwrap_or_default()
        )),
    }
}

/// The file beside the graph in which a tensor's data lies, and the offset in it.
fn external(tensor: &TensorProto) -> Result<(&str, u64), String> {
    let name = tensor.name();
    let value =
        |key: &str| tensor.external_data.iter().find(|entry| entry.key() == key).map(|entry| entry.value());
    let number = |key: &str| match value(key) {
        Some(text) => text
            .parse()
            .map(Some)
            .map_err(|_| format!("weight {name}: {key}: expected a number, got {text:?}")),
        None => Ok(None),
    };
    let location = value("location").unwrap_or_default();
    // A graph could name any file on the device.
    let mut parts = Path::new(location).components();
    if location.is_empty() || !parts.all(|part| matches!(part, Component::Normal(_) | Component::CurDir)) {
        return Err(format!("weight {name}: expected data in a file beside the graph, got {location:?}"));
    }
    check_len(tensor, number("length")?)?;
    Ok((location, number("offset")?.unwrap_or(0)))
}

/// Puts data that a node's own constants have in other files into the graph: exporters move small ones out, too.
fn bring_in(node: &mut NodeProto, path: &Path) -> Result<(), String> {
    let mut nodes = Vec::new();
    let mut tensors = Vec::new();
    for attribute in &mut node.attribute {
        tensors.extend(attribute.t.as_mut());
        tensors.extend(&mut attribute.tensors);
        for graph in attribute.g.as_mut().into_iter().chain(&mut attribute.graphs) {
            tensors.extend(&mut graph.initializer);
            nodes.extend(&mut graph.node);
        }
    }
    for tensor in tensors.into_iter().filter(|tensor| tensor.data_location() == proto::EXTERNAL) {
        let (location, offset_bytes) = external(tensor)?;
        let Parameter { name, dtype, shape, .. } = declared(0, tensor)?;
        let len_bytes = shape.iter().product::<usize>() * dtype.size_bytes();
        if len_bytes > MAX_CONSTANT_BYTES {
            return Err(format!(
                "constant {name}: expected at most {MAX_CONSTANT_BYTES} bytes, got {len_bytes}"
            ));
        }
        let file = path.with_file_name(location);
        // Opening a named pipe would wait for ever.
        if file.metadata().is_ok_and(|metadata| !metadata.is_file()) {
            return Err(format!("constant {name}: {}: expected a file, got something else", file.display()));
        }
        let mut bytes = vec![0; len_bytes];
        let read = File::open(&file).and_then(|mut file| {
            file.seek(SeekFrom::Start(offset_bytes))?;
            file.read_exact(&mut bytes)
        });
        read.map_err(|error| format!("constant {name}: {}: {error}", file.display()))?;
        tensor.raw_data = Some(bytes);
        tensor.data_location = None;
        tensor.external_data.clear();
    }
    nodes.into_iter().try_for_each(|node| bring_in(node, path))
}

/// Gives matrices back the names that PyTorch's exporter took from them when it turned them: a node
/// `/mid_block/attentions.0/to_q/MatMul` multiplies by `mid_block.attentions.0.to_q.weight`. Gives the names found.
fn recover_names(graph: &mut GraphProto, weights: Weights) -> Result<(Weights, HashSet<String>), Error> {
    let mut uses: HashMap<&str, usize> = HashMap::new();
    for input in graph.node.iter().flat_map(|node| &node.input) {
        *uses.entry(input).or_default() += 1;
    }
    let mut names: HashMap<String, String> = HashMap::new();
    for node in graph
        .node
        .iter()
        .filter(|node| node.op_type() == "MatMul" && node.input.len() == 2 && !node.output.is_empty())
    {
        // Tools that optimise graphs drop the names of nodes, but not those of what they give.
        let scope = [(node.name(), "/MatMul"), (&node.output[0], "/MatMul_output_0")]
            .into_iter()
            .find_map(|(name, end)| name.strip_prefix('/')?.strip_suffix(end));
        let (matrix, Some(scope)) = (&node.input[1], scope) else { continue };
        let is_matrix = weights.get(matrix).is_some_and(|weight| weight.shape().len() == 2);
        let name = format!("{}.weight", scope.replace('/', "."));
        if is_matrix && uses[matrix.as_str()] == 1 && weights.get(&name).is_none() {
            names.insert(matrix.clone(), name);
        }
    }
    // Two nodes of one name would make two weights of one name.
    let turned: HashSet<String> = names.values().cloned().collect();
    if turned.len() < names.len() {
        return Ok((weights, HashSet::new()));
    }
    let renamed = |name: &str| names.get(name).cloned();
    for tensor in &mut graph.initializer {
        if let Some(name) = renamed(tensor.name()) {
            tensor.name = Some(name);
        }
    }
    for input in graph.node.iter_mut().flat_map(|node| &mut node.input) {
        if let Some(name) = renamed(input) {
            *input = name;
        }
    }
    let table = weights.iter().map(|(name, _)| match renamed(name) {
        Some(canonical) => (canonical, Stored { name: name.to_owned(), rows: None, transposed: true }),
        None => (name.to_owned(), Stored::whole(name)),
    });
    Ok((weights.select(table.collect::<Vec<_>>())?, turned))
}

/// Names end up in C strings.
fn checked_name(name: &str) -> Result<String, String> {
    if name.is_empty() || name.contains('\0') {
        return Err(format!("{name:?}: expected a name"));
    }
    Ok(name.to_owned())
}

fn dtype(code: i32) -> Result<Dtype, String> {
    Dtype::ALL
        .into_iter()
        .find(|&dtype| onnx_code(dtype) == code)
        .ok_or_else(|| format!("expected a number or bool as element type, got ONNX type {code}"))
}

/// `TensorProto.DataType`
pub(crate) fn onnx_code(dtype: Dtype) -> i32 {
    match dtype {
        Dtype::F32 => 1,
        Dtype::U8 => 2,
        Dtype::I8 => 3,
        Dtype::U16 => 4,
        Dtype::I16 => 5,
        Dtype::I32 => 6,
        Dtype::I64 => 7,
        Dtype::Bool => 9,
        Dtype::F16 => 10,
        Dtype::F64 => 11,
        Dtype::U32 => 12,
        Dtype::U64 => 13,
        Dtype::Bf16 => 16,
    }
}

fn cast(from: &str, to: &str, dtype: Dtype) -> NodeProto {
    NodeProto {
        name: Some(format!("{to}/cast")),
        op_type: Some("Cast".into()),
        input: vec![from.into()],
        output: vec![to.into()],
        attribute: vec![integer("to", onnx_code(dtype).into())],
        ..Default::default()
    }
}

/// Makes the products with a matrix take it the other way round.
fn transpose(model: &mut ModelProto, graph: &mut GraphProto, weight: &str) -> Result<(), String> {
    let is_used = |node: &&mut NodeProto| node.input.iter().any(|input| input == weight);
    for node in graph.node.iter_mut().filter(is_used) {
        let is_right = node.input.len() == 2 && node.input[0] != weight;
        let is_product =
            matches!((node.op_type(), node.domain()), ("MatMul", "") | ("FusedMatMul", MICROSOFT));
        if !is_product || !is_right {
            return Err(format!(
                "weight {weight}: expected a matrix as [out, in], got [in, out], which {} cannot use",
                node.op_type()
            ));
        }
        node.op_type = Some("FusedMatMul".into());
        node.domain = Some(MICROSOFT.into());
        match node.attribute.iter_mut().find(|attribute| attribute.name() == "transB") {
            Some(flag) => flag.i = Some(i64::from(flag.i() == 0)),
            None => node.attribute.push(integer("transB", 1)),
        }
    }
    import_microsoft(model);
    Ok(())
}

/// The version of the standard operators.
fn opset(model: &ModelProto) -> i64 {
    let standard = model.opset_import.iter().find(|import| matches!(import.domain(), "" | "ai.onnx"));
    standard.map_or(1, |import| import.version())
}

/// Declares that a model has operators that only ONNX Runtime knows.
fn import_microsoft(model: &mut ModelProto) {
    if !model.opset_import.iter().any(|import| import.domain() == MICROSOFT) {
        let import = OperatorSetIdProto { domain: Some(MICROSOFT.into()), version: Some(1) };
        model.opset_import.push(import);
    }
}

fn integer(name: &str, value: i64) -> AttributeProto {
    AttributeProto { name: Some(name.into()), r#type: Some(proto::INT), i: Some(value), ..Default::default() }
}

fn entry(key: &str, value: String) -> StringStringEntryProto {
    StringStringEntryProto { key: Some(key.into()), value: Some(value) }
}

/// Says which weights are missing, and for each the name that resembles it most.
fn describe_missing(missing: &[String], parameters: usize, weights: &Weights) -> String {
    let named = missing.iter().take(NAMED_MISSING).map(|wanted| {
        match weights.iter().map(|(name, _)| name).min_by_key(|name| Reverse(shared_ends(wanted, name))) {
            Some(nearest) => format!("{wanted} (nearest: {nearest})"),
            None => wanted.clone(),
        }
    });
    let named = named.collect::<Vec<_>>().join(", ");
    let others = missing.len().saturating_sub(NAMED_MISSING);
    let more = if others > 0 { format!(" and {others} more") } else { String::new() };
    format!("expected {parameters} weights, got {}: missing are {named}{more}", parameters - missing.len())
}

/// How many bytes two names have in common at the front and at the back; parameter names differ in the middle.
fn shared_ends(a: &str, b: &str) -> usize {
    let front = a.bytes().zip(b.bytes()).take_while(|(a, b)| a == b).count();
    let back = a.bytes().rev().zip(b.bytes().rev()).take_while(|(a, b)| a == b).count();
    front + back.min(a.len().min(b.len()) - front)
}

#[cfg(test)]
mod tests {
    use super::proto::{Dimension, TensorShapeProto, TensorType, TypeProto};
    use super::*;

    fn value(name: &str, elem_type: i32, dims: &[i64]) -> ValueInfoProto {
        let dim = dims.iter().map(|&size| Dimension {
            value: (size >= 0).then_some(DimensionValue::DimValue(size)),
            ..Default::default()
        });
        let shape = Some(TensorShapeProto { dim: dim.collect() });
        let tensor = TensorType { elem_type: Some(elem_type), shape };
        let kind = TypeProto { value: Some(TypeValue::TensorType(tensor)), ..Default::default() };
        ValueInfoProto { name: Some(name.into()), r#type: Some(kind), ..Default::default() }
    }

    fn open_initializer(name: &str, dims: &[i64]) -> TensorProto {
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
    fn model() -> ModelProto {
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

    fn decode(model: &ModelProto) -> Result<Graph, Error> {
        Graph::decode("unet", &model.encode_to_vec())
    }

    /// Writes a model and a file `data` beside it, and opens it.
    fn open(model: &ModelProto, data: &[u8]) -> Result<(Graph, Weights), Error> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.onnx");
        std::fs::write(&path, model.encode_to_vec()).unwrap();
        std::fs::write(folder.path().join("data"), data).unwrap();
        Graph::open("unet", &path)
    }

    /// A tensor of four floats, at an offset in a file.
    fn outside(name: &str, location: &str, offset: &str) -> TensorProto {
        TensorProto {
            name: Some(name.into()),
            dims: vec![4],
            data_type: Some(1),
            data_location: Some(proto::EXTERNAL),
            external_data: vec![entry("location", location.into()), entry("offset", offset.into())],
            ..Default::default()
        }
    }

    /// `w` multiplied by a constant of a node's own.
    fn with_data(weight: TensorProto, constant: TensorProto) -> ModelProto {
        let attribute =
            AttributeProto { name: Some("value".into()), t: Some(constant), ..Default::default() };
        let constant = NodeProto {
            op_type: Some("Constant".into()),
            output: vec!["c".into()],
            attribute: vec![attribute],
            ..Default::default()
        };
        let graph = GraphProto {
            node: vec![constant],
            initializer: vec![weight],
            output: vec![value("c", 1, &[4])],
            ..Default::default()
        };
        ModelProto { graph: Some(graph), ..Default::default() }
    }

    #[test]
    fn data_outside_is_found_for_weights_and_for_constants_of_nodes() {
        let data: Vec<u8> = (0..48).collect();
        let (graph, weights) =
            open(&with_data(outside("w", "data", "16"), outside("k", "./data", "32")), &data).unwrap();
        assert_eq!(weights.get("w").unwrap().to_bytes(), data[16..32]);
        let constant = graph.graph.node[0].attribute[0].t.as_ref().unwrap();
        assert_eq!(constant.raw_data.as_deref(), Some(&data[32..]));
        assert!(constant.external_data.is_empty() && constant.data_location != Some(proto::EXTERNAL));
    }

    /// Caches of model hubs keep every file elsewhere and link to it: a link beside the graph is the user's own, a path that
    /// leads out is the graph's.
    #[cfg(unix)]
    #[test]
    fn data_outside_may_be_a_link_that_leads_out_of_the_folder() {
        let folder = tempfile::tempdir().unwrap();
        let (blobs, snapshot) = (folder.path().join("blobs"), folder.path().join("snapshot"));
        [&blobs, &snapshot].iter().for_each(|folder| std::fs::create_dir(folder).unwrap());
        let data: Vec<u8> = (0..48).collect();
        let model = |location: &str| with_data(outside("w", location, "16"), outside("k", location, "32"));
        std::fs::write(blobs.join("0"), model("data").encode_to_vec()).unwrap();
        std::fs::write(blobs.join("1"), &data).unwrap();
        let path = snapshot.join("model.onnx");
        for (blob, name) in [("0", "model.onnx"), ("1", "data")] {
            std::os::unix::fs::symlink(format!("../blobs/{blob}"), snapshot.join(name)).unwrap();
        }
        let (_, weights) = Graph::open("unet", &path).unwrap();
        assert_eq!(weights.get("w").unwrap().to_bytes(), data[16..32]);
        // A link whose file is gone names the link.
        std::fs::remove_file(blobs.join("1")).unwrap();
        assert!(Graph::open("unet", &path).unwrap_err().to_string().contains("snapshot/data"));
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, model("../blobs/1").encode_to_vec()).unwrap();
        let error = Graph::open("unet", &path).unwrap_err().to_string();
        assert!(error.contains("expected data in a file beside the graph"), "{error}");
    }

    #[test]
    fn data_inside_stays_where_it_lies() {
        for len in [4usize, 4096] {
            let bytes: Vec<u8> = (0..len).map(|at| at as u8).collect();
            let inside = TensorProto {
                dims: vec![(len / 4) as i64],
                raw_data: Some(bytes.clone()),
                data_location: None,
                external_data: Vec::new(),
                ..outside("w", "", "")
            };
            let (graph, weights) = open(&with_data(inside, outside("k", "data", "0")), &[0; 16]).unwrap();
            let is_long = len >= 1024;
            assert_eq!(weights.get("w").map(|weight| weight.to_bytes()), is_long.then_some(bytes));
            assert_eq!(graph.parameters().len(), usize::from(is_long));
        }
    }

    #[test]
    fn data_outside_the_folder() {
        for location in ["../data", "/etc/passwd", "", "a/../../data"] {
            for model in [
                with_data(outside("w", location, "0"), outside("k", "data", "0")),
                with_data(outside("w", "data", "0"), outside("k", location, "0")),
            ] {
                let error = open(&model, &[0; 16]).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Model);
                assert!(error.to_string().contains("expected data in a file beside the graph"), "{error}");
            }
        }
    }

    #[test]
    fn data_cut_short() {
        for offset in ["4", "18446744073709551615"] {
            for model in [
                with_data(outside("w", "data", offset), outside("k", "data", "0")),
                with_data(outside("w", "data", "0"), outside("k", "data", offset)),
            ] {
                assert_eq!(open(&model, &[0; 16]).unwrap_err().kind(), ErrorKind::Model);
            }
        }
        let error = open(&with_data(outside("w", "nowhere", "0"), outside("k", "data", "0")), &[0; 16]);
        assert!(error.unwrap_err().to_string().contains("nowhere"));
    }

    #[test]
    fn file_cut_anywhere() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.onnx");
        let whole = model().encode_to_vec();
        for len in 0..whole.len() {
            std::fs::write(&path, &whole[..len]).unwrap();
            assert!(Graph::open("unet", &path).is_err(), "{len} of {} bytes", whole.len());
        }
    }

    /// The message with which a model is refused.
    fn refusal(model: &ModelProto) -> String {
        let error = decode(model).expect_err("the graph is hostile");
        assert_eq!(error.kind(), ErrorKind::Model);
        error.to_string()
    }

    /// Weights of these names, types and shapes, full of zeros.
    fn weights(tensors: &[(&str, Dtype, &[usize])]) -> Arc<Weights> {
        let mut end = 0;
        let declared: Vec<String> = tensors
            .iter()
            .map(|(name, dtype, shape)| {
                let begin = end;
                end += shape.iter().product::<usize>() * dtype.size_bytes();
                format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape:?},"data_offsets":[{begin},{end}]}}"#)
            })
            .collect();
        let header = format!("{{{}}}", declared.join(","));
        let header = format!("{header:width$}", width = header.len().next_multiple_of(8));
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("w");
        std::fs::write(
            &path,
            [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &vec![0; end]].concat(),
        )
        .unwrap();
        Arc::new(Weights::open(&[path]).unwrap())
    }

    /// The message with which weights are refused.
    fn bind_refusal(tensors: &[(&str, Dtype, &[usize])]) -> String {
        let error = decode(&model()).unwrap().bind(weights(tensors)).err().expect("the weights do not fit");
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
    fn weights_are_bound_where_they_lie() {
        let weights = weights(&[("block.0.bias", Dtype::F32, &[2]), ("block.0.weight", Dtype::F16, &[2, 3])]);
        let offset = |name: &str| weights.get(name).unwrap().location().1.to_string();
        let bound = decode(&model()).unwrap().bind(weights.clone()).unwrap();
        let graph = ModelProto::decode(&bound.encode()[..]).unwrap().graph.unwrap();

        let external = |tensor: &TensorProto| {
            let entries =
                tensor.external_data.iter().map(|entry| format!("{}={}", entry.key(), entry.value()));
            entries.collect::<Vec<_>>().join(" ")
        };
        let [constant, weight, bias] = &graph.initializer[..] else { panic!("there are three initializers") };
        assert_eq!(*constant, model().graph.unwrap().initializer[0]);
        assert_eq!((bias.name(), bias.data_type()), ("block.0.bias", 1));
        assert_eq!(external(bias), format!("location=weights-0 offset={} length=8", offset("block.0.bias")));
        assert_eq!((weight.name(), weight.data_type()), ("block.0.weight/stored", 10));
        assert_eq!(
            external(weight),
            format!("location=weights-0 offset={} length=12", offset("block.0.weight"))
        );

        let operators: Vec<&str> = graph.node.iter().map(NodeProto::op_type).collect();
        assert_eq!(operators, ["Cast", "Gemm"]);
        assert_eq!(graph.node[0].input, ["block.0.weight/stored"]);
        assert_eq!(graph.node[0].output, ["block.0.weight"]);
        assert_eq!(graph.node[0].attribute[0].i(), 1);
    }

    #[test]
    fn rows_are_converted_where_all_that_read_a_table_look_them_up() {
        let lookup = |output: &str| NodeProto {
            op_type: Some("Gather".into()),
            input: vec!["block.0.weight".into(), "ids".into()],
            output: vec![output.into()],
            ..Default::default()
        };
        let sum = NodeProto {
            op_type: Some("ReduceSum".into()),
            input: vec!["block.0.weight".into()],
            output: vec!["z".into()],
            ..Default::default()
        };
        let bind = |nodes: Vec<NodeProto>| {
            let mut model = model();
            model.graph.as_mut().unwrap().node = nodes;
            let stored: [(&str, Dtype, &[usize]); 2] =
                [("block.0.bias", Dtype::F32, &[2]), ("block.0.weight", Dtype::F16, &[2, 3])];
            decode(&model).unwrap().bind(weights(&stored)).unwrap()
        };
        let nodes = |bound: &BoundGraph| {
            let nodes = bound.model.graph.as_ref().unwrap().node.iter();
            nodes
                .map(|node| format!("{} {} = {}", node.output[0], node.op_type(), node.input[0]))
                .collect::<Vec<_>>()
        };
        let whole = "block.0.weight Cast = block.0.weight/stored";
        let lookups = || vec![lookup("x"), lookup("y")];
        let mut bound = bind(lookups());
        assert_eq!(nodes(&bound), [whole, "x Gather = block.0.weight", "y Gather = block.0.weight"]);
        for _ in 0..2 {
            bound.convert_rows();
            let converted = [
                "x/stored Gather = block.0.weight/stored",
                "x Cast = x/stored",
                "y/stored Gather = block.0.weight/stored",
                "y Cast = y/stored",
            ];
            assert_eq!(nodes(&bound), converted);
        }
        let mut bound = bind([lookups(), vec![sum]].concat());
        bound.convert_rows();
        assert_eq!(nodes(&bound)[0], whole, "one reader needs all of it");
    }

    #[test]
    fn missing_weight() {
        assert_eq!(
            bind_refusal(&[("block.1.weight", Dtype::F32, &[2, 3]), ("block.0.bias", Dtype::F32, &[2])]),
            "unet: expected 2 weights, got 1: missing are block.0.weight (nearest: block.1.weight)"
        );
        assert_eq!(
            bind_refusal(&[]),
            "unet: expected 2 weights, got 0: missing are block.0.weight, block.0.bias"
        );
    }

    #[test]
    fn many_missing_weights() {
        let mut model = model();
        let graph = model.graph.as_mut().unwrap();
        graph.initializer = (0..9).map(|index| open_initializer(&format!("w{index}"), &[1])).collect();
        let error = decode(&model).unwrap().bind(weights(&[("w8", Dtype::F32, &[1])])).err().unwrap();
        assert_eq!(
            error.to_string(),
            "unet: expected 9 weights, got 1: missing are w0 (nearest: w8), w1 (nearest: w8), w2 (nearest: w8) and 5 more"
        );
    }

    #[test]
    fn wrong_shape() {
        assert_eq!(
            bind_refusal(&[("block.0.weight", Dtype::F32, &[3, 2]), ("block.0.bias", Dtype::F32, &[2])]),
            "unet: weight block.0.weight: expected shape [2, 3], got [3, 2]"
        );
    }

    #[test]
    fn wrong_dtype() {
        assert_eq!(
            bind_refusal(&[("block.0.weight", Dtype::I32, &[2, 3]), ("block.0.bias", Dtype::F32, &[2])]),
            "unet: weight block.0.weight: expected type F32, got I32"
        );
    }

    #[test]
    fn nearest_name_does_not_count_a_byte_twice() {
        assert_eq!(shared_ends("aa", "aaa"), 2);
        assert_eq!(shared_ends("a.b.c", "a.x.c"), 4);
        assert_eq!(shared_ends("abc", "xyz"), 0);
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
