//! int8 compute: linear layers and convolutions multiply 8-bit integers and give 32-bit floats, without any calibration.
//! It knows which operators compute so, and no number.
//!
//! - What a layer reads becomes integers from 0 to 255 with the range of the whole tensor in that very run
//!   (`DynamicQuantizeLinear`), once for all layers that read it. Weights are integers around 0, with one scale per output
//!   channel.
//! - `com.microsoft.MatMulIntegerToFloat` multiplies both and adds the bias in floats. Outputs are never rounded to integers,
//!   which is what static quantisation loses most by.
//! - A convolution is such a product with its columns (im2col), in integers: channels go last, borders are filled with the
//!   zero point, a `Slice` for each place of the kernel takes the pixels under it, and `Concat` puts them side by side, nine
//!   times the bytes of the image for a kernel of 3x3.
//! - Layers of [`NARROW`] channels or fewer on either side stay as they are, as do attention and what these kernels do not
//!   compute: convolutions in groups, with dilation, or with large kernels.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use super::dtype::onnx_code;
use super::node::{MICROSOFT, import_microsoft, integer, opset};
use super::proto::{self, AttributeProto, GraphProto, NodeProto, TensorProto};
pub use super::quantize::WeightBits;
use super::quantize::{
    Bits, Blocks, Columns, Form, Quantized, is_convolution, is_linear, multiply, open, users, uses,
};
use super::{Graph, Parameter};
use crate::Error;
use crate::weights::Dtype;

/// Layers with as many input or output channels, or fewer, stay in floats: they are little work, and the first and last
/// layers of networks, where an error does the most harm.
pub const NARROW: usize = 16;
/// The most products whose sum a 32-bit integer holds whatever they are: `2^31 / (255 * 127)`.
const MOST_PRODUCTS: usize = 66_310;
/// The most places of a kernel, each of which is a copy of the image.
const MOST_TAPS: usize = 9;
/// The first version of the standard operators whose `Pad` takes 8-bit integers.
const LEAST_OPSET: i64 = 13;
/// The blocks of linear layers that have scales of their own.
const BLOCKS: Blocks = Blocks { bits: Bits::Eight, len: 32 };
/// What the names of new constants begin with.
const PREFIX: &str = "int8";

/// How layers compute in integers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Int8 {
    /// Whether linear layers have a scale for every 32 weights, and for every 32 numbers that they read (`MatMulNBits`),
    /// which is slower and nearer to floats.
    pub has_blocks: bool,
    /// How long the integers of weights with a scale per channel are.
    pub bits: WeightBits,
}

impl Graph {
    /// The graph with layers that compute in integers, and what its new parameters hold, by name. Layers whose weights are
    /// in `left` stay as they are.
    ///
    /// # Errors
    /// Those of [`Graph::decode`].
    pub fn compute_in_int8(
        &self,
        how: Int8,
        left: &BTreeSet<String>,
    ) -> Result<(Self, BTreeMap<String, Quantized>), Error> {
        let Self { name, model, graph, parameters, .. } = self;
        let (mut model, mut graph) = (model.clone(), graph.clone());
        graph.sort();
        let mut made = BTreeMap::new();
        let mut layers: HashMap<&str, Layer> = HashMap::new();
        let mut writer = Writer::of(&graph);
        let candidates = parameters.iter().filter(|parameter| !left.contains(&parameter.name));
        for parameter in candidates.filter(|_| opset(&model) >= LEAST_OPSET) {
            let Some(kind) = kind(&graph, parameter, how) else { continue };
            let source = &parameter.name;
            let bits = if matches!(kind, Kind::Blocks) { Bits::Eight.count() } else { how.bits.count() };
            let [codes, scales] = [format!("{source}.q{bits}"), format!("{source}.scales")];
            if writer.taken.contains(&codes) || writer.taken.contains(&scales) {
                continue;
            }
            let [out, inputs] = [parameter.shape[0], parameter.shape[1..].iter().product()];
            let columns = |taps| Form::ColumnCodes(Columns { bits: how.bits, taps });
            let (dtype, shape, form) = match kind {
                Kind::Blocks => {
                    let shape = vec![out, inputs.div_ceil(BLOCKS.len), BLOCKS.len_bytes()];
                    (Dtype::U8, shape, Form::BlockCodes(BLOCKS))
                }
                Kind::Linear => (Dtype::I8, vec![inputs, out], columns(1)),
                Kind::Convolution { taps } => (Dtype::I8, vec![inputs, out], columns(taps)),
            };
            let (scales_shape, scales_form) = match kind {
                Kind::Blocks => (vec![out, inputs.div_ceil(BLOCKS.len)], Form::BlockScales(BLOCKS)),
                _ => (vec![out], Form::ColumnScales(how.bits)),
            };
            for (name, dtype, shape, form) in
                [(&codes, dtype, shape, form), (&scales, Dtype::F32, scales_shape, scales_form)]
            {
                writer.new.push(open(name, dtype, &shape));
                writer.taken.insert(name.clone());
                made.insert(name.clone(), Quantized { source: source.clone(), form });
            }
            layers.insert(source, Layer { parameter, kind, codes, scales });
        }

        let biases = biases(&graph, &layers);
        let merged: HashSet<usize> = biases.values().map(|bias| bias.addition).collect();
        for (index, node) in graph.node.iter().enumerate().filter(|(index, _)| !merged.contains(index)) {
            match node.input.get(1).and_then(|weight| layers.get(weight.as_str())) {
                Some(layer) => writer.layer(&graph, node, layer, biases.get(&index)),
                None => writer.nodes.push(node.clone()),
            }
        }

        let Writer { nodes, new, .. } = writer;
        graph.node = nodes;
        graph.initializer.retain(|tensor| !layers.contains_key(tensor.name()));
        // Before IR version 4 a model listed its initializers among its inputs.
        graph.input.retain(|input| !layers.contains_key(input.name()));
        graph.initializer.extend(new);
        // What is said of values that are no more would be refused.
        let outputs: HashSet<&str> =
            graph.node.iter().flat_map(|node| &node.output).map(String::as_str).collect();
        graph.value_info.retain(|value| outputs.contains(value.name()));
        import_microsoft(&mut model);
        let mut computing = Self::of(name.clone(), model, graph)?;
        computing.turn_as(parameters);
        Ok((computing, made))
    }
}

/// A layer that computes in integers.
struct Layer<'a> {
    parameter: &'a Parameter,
    kind: Kind,
    /// The names of its parameters.
    codes: String,
    scales: String,
}

#[derive(Clone, Copy)]
pub(super) enum Kind {
    /// A linear layer in blocks.
    Blocks,
    /// A linear layer with a scale per channel.
    Linear,
    /// A convolution whose kernel has so many places.
    Convolution { taps: usize },
}

/// What becomes of a weight, if it is one of layers that can compute in integers.
pub(super) fn kind(graph: &GraphProto, parameter: &Parameter, how: Int8) -> Option<Kind> {
    let weight = &parameter.name;
    let users = users(graph, weight);
    let is_output = graph.output.iter().any(|output| output.name() == weight);
    if parameter.dtype != Dtype::F32 || users.is_empty() || is_output {
        return None;
    }
    let [out, inputs] = [*parameter.shape.first()?, *parameter.shape.get(1)?];
    let products = parameter.shape[1..].iter().try_fold(1usize, |all, &size| all.checked_mul(size))?;
    if out <= NARROW || inputs <= NARROW || products > MOST_PRODUCTS {
        return None;
    }
    match parameter.shape[2..] {
        [] if users.iter().all(|node| is_linear(node, weight)) => match how.has_blocks {
            true => (inputs >= BLOCKS.len).then_some(Kind::Blocks),
            false => Some(Kind::Linear),
        },
        [height, width] => {
            let computes = |node: &&NodeProto| {
                is_convolution(node, weight) && Window::of(node, [height, width]).is_some()
            };
            users.iter().all(computes).then_some(Kind::Convolution { taps: height * width })
        }
        _ => None,
    }
}

/// How a convolution's kernel goes over the image.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Window {
    /// Height and width.
    kernel: [usize; 2],
    strides: [i64; 2],
    /// Above, left, below, right.
    pads: [i64; 4],
}

impl Window {
    /// That of a convolution, if it is one whose columns are taken here.
    fn of(node: &NodeProto, kernel: [usize; 2]) -> Option<Self> {
        let (mut strides, mut pads) = ([1; 2], [0; 4]);
        for attribute in &node.attribute {
            let ints = &attribute.ints[..];
            match attribute.name() {
                "group" if attribute.i() == 1 => {}
                "dilations" if ints == [1, 1] => {}
                "kernel_shape" if ints.iter().map(|&size| usize::try_from(size)).eq(kernel.map(Ok)) => {}
                "auto_pad" if attribute.s.as_deref().is_none_or(|text| text == b"NOTSET") => {}
                "strides" => strides = ints.try_into().ok()?,
                "pads" => pads = ints.try_into().ok()?,
                _ => return None,
            }
        }
        let taps = kernel[0].checked_mul(kernel[1])?;
        let fits = strides.iter().all(|&stride| stride > 0) && pads.iter().all(|&pad| pad >= 0);
        (fits && (1..=MOST_TAPS).contains(&taps)).then_some(Self { kernel, strides, pads })
    }
}

/// The bias of a linear layer, which its product adds.
struct Bias {
    /// The node that adds it.
    addition: usize,
    name: String,
}

/// The biases that linear layers with a scale per channel take in, by the index of the product.
fn biases(graph: &GraphProto, layers: &HashMap<&str, Layer>) -> HashMap<usize, Bias> {
    let dims: HashMap<&str, &[i64]> =
        graph.initializer.iter().map(|tensor| (tensor.name(), &tensor.dims[..])).collect();
    let mut biases = HashMap::new();
    for (product, node) in graph.node.iter().enumerate() {
        let layer = node.input.get(1).and_then(|weight| layers.get(weight.as_str()));
        let Some(Layer { parameter, kind: Kind::Linear, .. }) = layer else { continue };
        let output = &node.output[0];
        let is_output = graph.output.iter().any(|given| given.name() == output);
        let mut readers = graph.node.iter().enumerate().skip(product + 1);
        let is_reader = |(_, node): &(usize, &NodeProto)| uses(node, output);
        let Some((addition, add)) = readers.find(is_reader) else { continue };
        let [a, b] = &add.input[..] else { continue };
        let name = if a == output { b } else { a };
        let is_bias = dims.get(name.as_str()).is_some_and(|dims| *dims == [parameter.shape[0] as i64]);
        let is_addition = (add.op_type(), add.domain()) == ("Add", "") && is_bias;
        if is_addition && !is_output && !readers.any(|reader| is_reader(&reader)) {
            biases.insert(product, Bias { addition, name: name.clone() });
        }
    }
    biases
}

/// The nodes of the new graph in the making.
struct Writer {
    nodes: Vec<NodeProto>,
    /// Its new parameters and constants.
    new: Vec<TensorProto>,
    /// All names that values have.
    taken: HashSet<String>,
    /// Lists of numbers, by what they hold.
    constants: HashMap<Vec<i64>, String>,
    /// By value, its integers, their scale and their zero point.
    integers: HashMap<String, [String; 3]>,
    /// By integers, the same with channels last.
    images: HashMap<String, String>,
    /// By image, its columns.
    columns: HashMap<(String, Window), String>,
}

impl Writer {
    fn of(graph: &GraphProto) -> Self {
        let nodes = graph.node.iter().flat_map(|node| &node.output).map(String::as_str);
        let tensors = graph.initializer.iter().map(TensorProto::name);
        let inputs = graph.input.iter().map(|input| input.name());
        Self {
            nodes: Vec::with_capacity(graph.node.len()),
            new: Vec::new(),
            taken: nodes.chain(tensors).chain(inputs).map(str::to_owned).collect(),
            constants: HashMap::new(),
            integers: HashMap::new(),
            images: HashMap::new(),
            columns: HashMap::new(),
        }
    }

    /// Writes a layer in integers.
    fn layer(&mut self, graph: &GraphProto, node: &NodeProto, layer: &Layer, bias: Option<&Bias>) {
        let x = &node.input[0];
        match layer.kind {
            Kind::Blocks => {
                let mut node = node.clone();
                multiply(&mut node, layer.parameter, BLOCKS, &layer.codes, &layer.scales);
                self.nodes.push(node);
            }
            Kind::Linear => {
                let integers = self.integers(x);
                let (bias, output) = match bias {
                    Some(Bias { addition, name }) => (name.as_str(), &graph.node[*addition].output[0]),
                    None => ("", &node.output[0]),
                };
                let a = integers[0].clone();
                self.product(a, &integers, layer, bias, output.clone());
            }
            Kind::Convolution { .. } => {
                let kernel = [layer.parameter.shape[2], layer.parameter.shape[3]];
                let window = Window::of(node, kernel).expect("a window that was looked at");
                let integers = self.integers(x);
                let columns = self.columns(&integers, window);
                let bias = node.input.get(2).map_or("", String::as_str);
                let product = self.name(&format!("{}/product", node.output[0]));
                self.product(columns, &integers, layer, bias, product.clone());
                self.op("Transpose", vec![product], &node.output[0], vec![ints("perm", &[0, 3, 1, 2])]);
            }
        }
    }

    /// The product of integers that are those of a value in some order, as floats.
    fn product(
        &mut self,
        a: String,
        [_, scale, zero]: &[String; 3],
        layer: &Layer,
        bias: &str,
        output: String,
    ) {
        let Layer { codes, scales, .. } = layer;
        let mut inputs = vec![a, codes.clone(), scale.clone(), scales.clone(), zero.clone()];
        if !bias.is_empty() {
            // The weights' zero point, which is 0.
            inputs.extend([String::new(), bias.to_owned()]);
        }
        self.op("MatMulIntegerToFloat", inputs, &output, Vec::new());
        let node = self.nodes.last_mut().expect("the node that was pushed");
        node.domain = Some(MICROSOFT.into());
    }

    /// The integers of a value, their scale and their zero point.
    fn integers(&mut self, x: &str) -> [String; 3] {
        if let Some(names) = self.integers.get(x) {
            return names.clone();
        }
        let names = ["integers", "scale", "zero"].map(|what| self.name(&format!("{x}/{what}")));
        self.op("DynamicQuantizeLinear", vec![x.to_owned()], &names[0], Vec::new());
        let node = self.nodes.last_mut().expect("the node that was pushed");
        node.output = names.to_vec();
        self.integers.insert(x.to_owned(), names.clone());
        names
    }

    /// The columns of an image: for each pixel of the result, channels last, those of all pixels under the kernel.
    fn columns(&mut self, [integers, _, zero]: &[String; 3], window: Window) -> String {
        let key = (integers.clone(), window);
        if let Some(columns) = self.columns.get(&key) {
            return columns.clone();
        }
        let mut image = match self.images.get(integers) {
            Some(image) => image.clone(),
            None => {
                let image = self.name(&format!("{integers}/last"));
                self.op("Transpose", vec![integers.clone()], &image, vec![ints("perm", &[0, 2, 3, 1])]);
                self.images.insert(integers.clone(), image.clone());
                image
            }
        };
        let Window { kernel: [height, width], strides, pads: [above, left, below, right] } = window;
        if window.pads != [0; 4] {
            let pads = self.constant(&[0, above, left, 0, 0, below, right, 0]);
            let padded = self.name(&format!("{image}/padded"));
            self.op("Pad", vec![image, pads, zero.clone()], &padded, Vec::new());
            image = padded;
        }
        let mut parts = Vec::new();
        if height * width > 1 || strides != [1; 2] {
            let (axes, steps) = (self.constant(&[1, 2]), self.constant(&strides));
            for (row, column) in (0..height).flat_map(|row| (0..width).map(move |column| (row, column))) {
                // As many pixels before the end as the kernel still covers.
                let end = |at: usize, size: usize| match size - 1 - at {
                    0 => i64::MAX,
                    more => -(more as i64),
                };
                let starts = self.constant(&[row as i64, column as i64]);
                let ends = self.constant(&[end(row, height), end(column, width)]);
                let part = self.name(&format!("{image}/{row},{column}"));
                let inputs = vec![image.clone(), starts, ends, axes.clone(), steps.clone()];
                self.op("Slice", inputs, &part, Vec::new());
                parts.push(part);
            }
        }
        let columns = match parts.len() {
            0 => image,
            1 => parts.remove(0),
            _ => {
                let columns = self.name(&format!("{image}/columns"));
                self.op("Concat", parts, &columns, vec![integer("axis", 3)]);
                columns
            }
        };
        self.columns.insert(key, columns.clone());
        columns
    }

    fn op(&mut self, op: &str, input: Vec<String>, output: &str, attribute: Vec<AttributeProto>) {
        self.nodes.push(NodeProto {
            name: Some(format!("{output}/{op}")),
            op_type: Some(op.into()),
            input,
            output: vec![output.into()],
            attribute,
            ..Default::default()
        });
    }

    /// A list of numbers.
    fn constant(&mut self, values: &[i64]) -> String {
        if let Some(name) = self.constants.get(values) {
            return name.clone();
        }
        let numbers = values.iter().map(i64::to_string).collect::<Vec<_>>().join(",");
        let name = self.name(&format!("{PREFIX}/{numbers}"));
        self.new.push(TensorProto {
            name: Some(name.clone()),
            dims: vec![values.len() as i64],
            data_type: Some(onnx_code(Dtype::I64)),
            int64_data: values.to_vec(),
            ..Default::default()
        });
        self.constants.insert(values.to_vec(), name.clone());
        name
    }

    /// A name that no other value has.
    fn name(&mut self, wanted: &str) -> String {
        let numbered = (2..).map(|count| format!("{wanted}/{count}"));
        let name = std::iter::once(wanted.to_owned()).chain(numbered).find(|name| !self.taken.contains(name));
        let name = name.expect("one of all numbers is free");
        self.taken.insert(name.clone());
        name
    }
}

pub(super) fn ints(name: &str, values: &[i64]) -> AttributeProto {
    AttributeProto {
        name: Some(name.into()),
        r#type: Some(proto::INTS),
        ints: values.to_vec(),
        ..Default::default()
    }
}
