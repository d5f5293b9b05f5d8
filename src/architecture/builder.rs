//! Builds ONNX graphs without weights: one method per layer, which names its parameters as the reference
//! implementation's state dict does. It knows the operators that ONNX Runtime is fastest at, and no network.

use std::collections::HashMap;

use prost::Message;

use crate::Error;
use crate::graph::proto::{
    self, AttributeProto, Dimension, DimensionValue, GraphProto, ModelProto, NodeProto, OperatorSetIdProto,
    StringStringEntryProto, TensorProto, TensorShapeProto, TensorType, TypeProto, TypeValue, ValueInfoProto,
};
use crate::graph::{Dim, Graph, OPEN_LOCATION, onnx_code};
use crate::weights::Dtype;

/// The version of the standard operators; 20 is the first with `Gelu`.
const OPSET: i64 = 20;
/// The version of the file format that ONNX 1.15 brought together with that opset.
const IR_VERSION: i64 = 9;
/// The operators that only ONNX Runtime has.
const MICROSOFT: &str = "com.microsoft";

/// A tensor that the graph computes, or is given.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Value(String);

/// An attribute of a node.
pub(super) enum Attribute<'a> {
    Int(i64),
    Ints(&'a [i64]),
    Float(f32),
    Text(&'a str),
}

/// The shape of a convolution.
#[derive(Clone, Copy)]
pub(super) struct Conv {
    pub(super) inputs: usize,
    pub(super) outputs: usize,
    pub(super) kernel: usize,
    pub(super) stride: usize,
    /// Rows and columns of zeros: above, left, below, right.
    pub(super) padding: [usize; 4],
    pub(super) bias: bool,
}

impl Conv {
    /// One that keeps the size of the image: `kernel` is odd.
    pub(super) fn same(inputs: usize, outputs: usize, kernel: usize) -> Self {
        Self { inputs, outputs, kernel, stride: 1, padding: [kernel / 2; 4], bias: true }
    }
}

/// The dimensions of a batch of images or latents, whose height and width go by these names.
pub(super) fn image(channels: usize, height: &str, width: &str) -> [Dim; 4] {
    [free("batch"), Dim::Fixed(channels), free(height), free(width)]
}

/// A dimension of any size that goes by this name.
pub(super) fn free(name: &str) -> Dim {
    Dim::Free(name.into())
}

/// A graph in the making.
#[derive(Default)]
pub(super) struct Builder {
    graph: GraphProto,
    /// Constants by their bytes, so that equal ones are stored once.
    constants: HashMap<(i32, Vec<i64>, Vec<u8>), Value>,
}

impl Builder {
    pub(super) fn new() -> Self {
        Self::default()
    }

    /// What the graph is fed.
    pub(super) fn input(&mut self, name: &str, dtype: Dtype, dims: &[Dim]) -> Value {
        self.graph.input.push(port(name, dtype, dims));
        Value(name.into())
    }

    /// What the graph gives.
    pub(super) fn output(&mut self, name: &str, value: &Value, dims: &[Dim]) {
        self.graph.node.push(NodeProto {
            name: Some(name.into()),
            op_type: Some("Identity".into()),
            input: vec![value.0.clone()],
            output: vec![name.into()],
            ..Default::default()
        });
        self.graph.output.push(port(name, Dtype::F32, dims));
    }

    /// A parameter in 32-bit floats; dimensions of 1 may be more or fewer than in the weights.
    pub(super) fn weight(&mut self, name: &str, shape: &[usize]) -> Value {
        self.graph.initializer.push(TensorProto {
            name: Some(name.into()),
            dims: shape.iter().map(|&size| size as i64).collect(),
            data_type: Some(onnx_code(Dtype::F32)),
            data_location: Some(proto::EXTERNAL),
            external_data: vec![StringStringEntryProto {
                key: Some("location".into()),
                value: Some(OPEN_LOCATION.into()),
            }],
            ..Default::default()
        });
        Value(name.into())
    }

    /// A constant list of integers.
    pub(super) fn ints(&mut self, values: &[i64]) -> Value {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.constant(Dtype::I64, vec![values.len() as i64], bytes)
    }

    /// A constant list of floats.
    pub(super) fn floats(&mut self, values: &[f32]) -> Value {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.constant(Dtype::F32, vec![values.len() as i64], bytes)
    }

    /// A constant without dimensions.
    pub(super) fn float(&mut self, value: f32) -> Value {
        self.constant(Dtype::F32, Vec::new(), value.to_le_bytes().to_vec())
    }

    /// A constant integer without dimensions.
    pub(super) fn int(&mut self, value: i64) -> Value {
        self.constant(Dtype::I64, Vec::new(), value.to_le_bytes().to_vec())
    }

    fn constant(&mut self, dtype: Dtype, dims: Vec<i64>, bytes: Vec<u8>) -> Value {
        let data_type = onnx_code(dtype);
        let next = format!("constant_{}", self.constants.len());
        let key = (data_type, dims.clone(), bytes.clone());
        let value = self.constants.entry(key).or_insert_with(|| {
            self.graph.initializer.push(TensorProto {
                name: Some(next.clone()),
                dims,
                data_type: Some(data_type),
                raw_data: Some(bytes),
                ..Default::default()
            });
            Value(next)
        });
        value.clone()
    }

    /// A node of a standard operator with one output.
    pub(super) fn op(&mut self, op: &str, inputs: &[&Value], attributes: &[(&str, Attribute)]) -> Value {
        self.node("", op, inputs, attributes, 1).remove(0)
    }

    /// A node of an operator that only ONNX Runtime has, with one output.
    pub(super) fn microsoft(
        &mut self,
        op: &str,
        inputs: &[&Value],
        attributes: &[(&str, Attribute)],
    ) -> Value {
        self.node(MICROSOFT, op, inputs, attributes, 1).remove(0)
    }

    /// The parts of a tensor that is cut into `parts` equal ones along `axis`.
    pub(super) fn split(&mut self, x: &Value, axis: i64, parts: usize) -> Vec<Value> {
        let attributes = [("axis", Attribute::Int(axis)), ("num_outputs", Attribute::Int(parts as i64))];
        self.node("", "Split", &[x], &attributes, parts)
    }

    fn node(
        &mut self,
        domain: &str,
        op: &str,
        inputs: &[&Value],
        attributes: &[(&str, Attribute)],
        outputs: usize,
    ) -> Vec<Value> {
        let name = format!("{op}_{}", self.graph.node.len());
        let outputs: Vec<Value> = match outputs {
            1 => vec![Value(name.clone())],
            _ => (0..outputs).map(|index| Value(format!("{name}:{index}"))).collect(),
        };
        self.graph.node.push(NodeProto {
            name: Some(name),
            op_type: Some(op.into()),
            domain: (!domain.is_empty()).then(|| domain.into()),
            input: inputs.iter().map(|value| value.0.clone()).collect(),
            output: outputs.iter().map(|value| value.0.clone()).collect(),
            attribute: attributes.iter().map(|(name, value)| attribute(name, value)).collect(),
            ..Default::default()
        });
        outputs
    }

    pub(super) fn add(&mut self, a: &Value, b: &Value) -> Value {
        self.op("Add", &[a, b], &[])
    }

    pub(super) fn mul(&mut self, a: &Value, b: &Value) -> Value {
        self.op("Mul", &[a, b], &[])
    }

    /// Joins tensors along an axis.
    pub(super) fn concat(&mut self, values: &[&Value], axis: i64) -> Value {
        self.op("Concat", values, &[("axis", Attribute::Int(axis))])
    }

    /// Another shape for the same elements: 0 keeps a dimension, -1 takes the rest.
    pub(super) fn reshape(&mut self, x: &Value, shape: &[i64]) -> Value {
        let shape = self.ints(shape);
        self.op("Reshape", &[x, &shape], &[])
    }

    pub(super) fn transpose(&mut self, x: &Value, order: &[i64]) -> Value {
        self.op("Transpose", &[x], &[("perm", Attribute::Ints(order))])
    }

    pub(super) fn cast(&mut self, x: &Value, dtype: Dtype) -> Value {
        self.op("Cast", &[x], &[("to", Attribute::Int(onnx_code(dtype).into()))])
    }

    /// The sizes of a tensor's dimensions `from..to`.
    pub(super) fn sizes(&mut self, x: &Value, from: i64, to: i64) -> Value {
        self.op("Shape", &[x], &[("start", Attribute::Int(from)), ("end", Attribute::Int(to))])
    }

    /// `x * sigmoid(x)`, by the operator that computes it in one pass.
    pub(super) fn silu(&mut self, x: &Value) -> Value {
        self.quick_gelu(x, 1.0)
    }

    /// `x * sigmoid(alpha * x)`; CLIP's own activation at 1.702.
    pub(super) fn quick_gelu(&mut self, x: &Value, alpha: f32) -> Value {
        self.microsoft("QuickGelu", &[x], &[("alpha", Attribute::Float(alpha))])
    }

    pub(super) fn relu(&mut self, x: &Value) -> Value {
        self.op("Relu", &[x], &[])
    }

    /// GELU by the error function.
    pub(super) fn gelu(&mut self, x: &Value) -> Value {
        self.op("Gelu", &[x], &[])
    }

    /// A 2-d convolution of `[batch, channels, height, width]` by `{name}.weight` and `{name}.bias`.
    pub(super) fn conv(&mut self, x: &Value, name: &str, conv: Conv) -> Value {
        let Conv { inputs, outputs, kernel, stride, padding, bias } = conv;
        let mut operands =
            vec![x.clone(), self.weight(&format!("{name}.weight"), &[outputs, inputs, kernel, kernel])];
        if bias {
            operands.push(self.weight(&format!("{name}.bias"), &[outputs]));
        }
        let (kernel, stride) = (kernel as i64, stride as i64);
        self.op(
            "Conv",
            &operands.iter().collect::<Vec<_>>(),
            &[
                ("kernel_shape", Attribute::Ints(&[kernel; 2])),
                ("strides", Attribute::Ints(&[stride; 2])),
                ("pads", Attribute::Ints(&padding.map(|size| size as i64))),
            ],
        )
    }

    /// A linear layer over the last dimension, by `{name}.weight` as PyTorch stores it, which needs no transposed copy,
    /// and `{name}.bias`.
    pub(super) fn linear(&mut self, x: &Value, name: &str, inputs: usize, outputs: usize) -> Value {
        let product = self.linear_without_bias(x, name, inputs, outputs);
        let bias = self.weight(&format!("{name}.bias"), &[outputs]);
        self.add(&product, &bias)
    }

    /// A linear layer without a bias.
    pub(super) fn linear_without_bias(
        &mut self,
        x: &Value,
        name: &str,
        inputs: usize,
        outputs: usize,
    ) -> Value {
        let weight = self.weight(&format!("{name}.weight"), &[outputs, inputs]);
        self.microsoft("FusedMatMul", &[x, &weight], &[("transB", Attribute::Int(1))])
    }

    /// Group normalisation of `[batch, channels, height, width]` (Wu & He 2018) by `{name}.weight` and `{name}.bias`.
    ///
    /// As instance normalisation of whole groups, because GroupNormalization has no kernel on a CPU.
    pub(super) fn group_norm(
        &mut self,
        x: &Value,
        name: &str,
        channels: usize,
        groups: usize,
        epsilon: f64,
    ) -> Value {
        let shape = self.sizes(x, 0, 4);
        let normal = self.groups_normal(x, groups, epsilon);
        let normal = self.op("Reshape", &[&normal, &shape], &[]);
        self.scale_and_shift(&normal, name, &[channels, 1, 1])
    }

    /// The same, but with the image's cells as tokens: `[batch, height * width, channels]`.
    pub(super) fn group_norm_tokens(
        &mut self,
        x: &Value,
        name: &str,
        channels: usize,
        groups: usize,
        epsilon: f64,
    ) -> Value {
        let normal = self.groups_normal(x, groups, epsilon);
        let planes = self.reshape(&normal, &[0, channels as i64, -1]);
        let tokens = self.transpose(&planes, &[0, 2, 1]);
        self.scale_and_shift(&tokens, name, &[channels])
    }

    /// Multiplied by `{name}.weight`, plus `{name}.bias`.
    fn scale_and_shift(&mut self, x: &Value, name: &str, shape: &[usize]) -> Value {
        let scale = self.weight(&format!("{name}.weight"), shape);
        let shift = self.weight(&format!("{name}.bias"), shape);
        let scaled = self.mul(x, &scale);
        self.add(&scaled, &shift)
    }

    /// `[batch, groups, elements]`, each group with mean 0 and variance 1.
    fn groups_normal(&mut self, x: &Value, groups: usize, epsilon: f64) -> Value {
        let grouped = self.reshape(x, &[0, groups as i64, -1]);
        let (ones, zeros) = (self.floats(&vec![1.0; groups]), self.floats(&vec![0.0; groups]));
        let epsilon = [("epsilon", Attribute::Float(epsilon as f32))];
        self.op("InstanceNormalization", &[&grouped, &ones, &zeros], &epsilon)
    }

    /// Layer normalisation over the last dimension (Ba et al. 2016) by `{name}.weight` and `{name}.bias`.
    pub(super) fn layer_norm(&mut self, x: &Value, name: &str, width: usize, epsilon: f64) -> Value {
        let weights = self.layer_norm_weights(name, width);
        self.layer_norm_with(x, &weights, epsilon)
    }

    /// The scale and the shift of a layer normalisation that is used more than once.
    pub(super) fn layer_norm_weights(&mut self, name: &str, width: usize) -> [Value; 2] {
        ["weight", "bias"].map(|kind| self.weight(&format!("{name}.{kind}"), &[width]))
    }

    pub(super) fn layer_norm_with(&mut self, x: &Value, weights: &[Value; 2], epsilon: f64) -> Value {
        let epsilon = [("epsilon", Attribute::Float(epsilon as f32))];
        self.op("LayerNormalization", &[x, &weights[0], &weights[1]], &epsilon)
    }

    /// Attention of `heads` heads on `[batch, tokens, width]` (Vaswani et al. 2017), scaled by the root of a head's width.
    pub(super) fn attention(&mut self, q: &Value, k: &Value, v: &Value, heads: usize, causal: bool) -> Value {
        self.microsoft(
            "MultiHeadAttention",
            &[q, k, v],
            &[("num_heads", Attribute::Int(heads as i64)), ("unidirectional", Attribute::Int(causal.into()))],
        )
    }

    /// Enlarges `[batch, channels, height, width]` to the last two of `sizes` by repeating pixels, as PyTorch's
    /// `interpolate(mode="nearest")` does. `sizes` has four elements.
    pub(super) fn nearest(&mut self, x: &Value, sizes: &Value) -> Value {
        let absent = Value(String::new());
        self.resize(&[x, &absent, &absent, sizes])
    }

    /// Doubles height and width of `[batch, channels, height, width]` by repeating pixels.
    pub(super) fn double(&mut self, x: &Value) -> Value {
        self.enlarge(x, 2)
    }

    /// Enlarges height and width of `[batch, channels, height, width]` by repeating pixels.
    pub(super) fn enlarge(&mut self, x: &Value, factor: usize) -> Value {
        let absent = Value(String::new());
        let scales = self.floats(&[1.0, 1.0, factor as f32, factor as f32]);
        self.resize(&[x, &absent, &scales])
    }

    /// Halves height and width of `[batch, channels, height, width]` by means of four pixels, or of those that are there where a
    /// side is odd: PyTorch's `AvgPool2d(2, ceil_mode=True)`.
    pub(super) fn halve(&mut self, x: &Value) -> Value {
        let sizes = [("kernel_shape", Attribute::Ints(&[2; 2])), ("strides", Attribute::Ints(&[2; 2]))];
        let ceil = [("ceil_mode", Attribute::Int(1))];
        self.op("AveragePool", &[x], &sizes.into_iter().chain(ceil).collect::<Vec<_>>())
    }

    /// Makes channels of blocks of pixels.
    pub(super) fn space_to_depth(&mut self, x: &Value, side: usize) -> Value {
        self.op("SpaceToDepth", &[x], &[("blocksize", Attribute::Int(side as i64))])
    }

    /// A resize that repeats pixels.
    fn resize(&mut self, inputs: &[&Value]) -> Value {
        self.op(
            "Resize",
            inputs,
            &[
                ("mode", Attribute::Text("nearest")),
                ("coordinate_transformation_mode", Attribute::Text("asymmetric")),
                ("nearest_mode", Attribute::Text("floor")),
            ],
        )
    }

    /// The finished graph.
    ///
    /// # Errors
    /// Those of [`Graph::decode`], through which every graph goes.
    pub(super) fn finish(self, name: &str) -> Result<Graph, Error> {
        let mut graph = self.graph;
        graph.name = Some(name.into());
        let model = ModelProto {
            ir_version: Some(IR_VERSION),
            producer_name: Some("calotype".into()),
            graph: Some(graph),
            opset_import: [("", OPSET), (MICROSOFT, 1)]
                .map(|(domain, version)| OperatorSetIdProto {
                    domain: Some(domain.into()),
                    version: Some(version),
                })
                .into(),
            ..Default::default()
        };
        Graph::decode(name, &model.encode_to_vec())
    }
}

fn port(name: &str, dtype: Dtype, dims: &[Dim]) -> ValueInfoProto {
    let dim = dims.iter().map(|dim| Dimension {
        value: Some(match dim {
            Dim::Fixed(size) => DimensionValue::DimValue(*size as i64),
            Dim::Free(name) => DimensionValue::DimParam(name.clone()),
        }),
        ..Default::default()
    });
    let tensor = TensorType {
        elem_type: Some(onnx_code(dtype)),
        shape: Some(TensorShapeProto { dim: dim.collect() }),
    };
    let kind = TypeProto { value: Some(TypeValue::TensorType(tensor)), ..Default::default() };
    ValueInfoProto { name: Some(name.into()), r#type: Some(kind), ..Default::default() }
}

fn attribute(name: &str, value: &Attribute) -> AttributeProto {
    let mut attribute = AttributeProto { name: Some(name.into()), ..Default::default() };
    attribute.r#type = Some(match value {
        Attribute::Int(value) => {
            attribute.i = Some(*value);
            proto::INT
        }
        Attribute::Ints(values) => {
            attribute.ints = values.to_vec();
            proto::INTS
        }
        Attribute::Float(value) => {
            attribute.f = Some(*value);
            proto::FLOAT
        }
        Attribute::Text(value) => {
            attribute.s = Some(value.as_bytes().to_vec());
            proto::STRING
        }
    });
    attribute
}
