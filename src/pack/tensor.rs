//! The tensors of a packed file: each made of one weight of the source, in a type and form of its own.
//! It holds one weight at a time, and knows nothing of files.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::Write;

use half::{bf16, f16};
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::folder::Failure;
use super::{How, Precision, quantizer};
use crate::graph::Graph;
use crate::graph::quantize::{Bits, Columns, Form, Quantized};
use crate::model::hex;
use crate::weights::{Dtype, TensorView, Weights};
use crate::{Error, ErrorKind};

/// Elements that are converted at once.
const CHUNK: usize = 1 << 14;

/// A tensor to be written.
pub(super) struct Packed<'a> {
    pub(super) name: String,
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<usize>,
    pub(super) source: TensorView<'a>,
    /// Whether the source is a matrix that is to be turned.
    pub(super) is_turned: bool,
    /// Which numbers it holds, where they are not the source's.
    pub(super) form: Option<Form>,
}

/// The graph for weights in this form, and its tensors in the order in which safetensors keeps them: those of the
/// largest elements first, then by name. Where layers compute in integers, all but those whose weights are named, other
/// weights stay in floats.
pub(super) fn plan<'a>(
    graph: &Graph,
    weights: &'a Weights,
    precision: Option<Precision>,
    compute: Option<(How, &BTreeSet<String>)>,
) -> Result<(Graph, Vec<Packed<'a>>), Error> {
    let upright = graph.upright()?;
    let parameters = upright.parameters().iter();
    let takes_turned: HashMap<&str, bool> =
        parameters.map(|parameter| (parameter.name.as_str(), parameter.is_transposed())).collect();
    let (graph, quantized) = match (compute, precision) {
        (Some((how, left)), _) => how.apply(&upright, left)?,
        (None, Some(Precision::Int8)) => upright.quantize(Bits::Eight)?,
        (None, Some(Precision::Int4)) => upright.quantize(Bits::Four)?,
        (None, _) => (upright.clone(), BTreeMap::new()),
    };
    let tensors = graph.parameters().iter().map(|parameter| {
        let quantized = quantized.get(&parameter.name);
        let name = quantized.map_or(&parameter.name, |Quantized { source, .. }| source);
        let source = weights.get(name).expect("a weight that was bound");
        let is_turned = source.is_transposed() != takes_turned[name.as_str()];
        // A file may have more or fewer dimensions of 1 than the graph, and keeps them.
        let is_new = is_turned || quantized.is_some();
        let shape = if is_new { parameter.shape.clone() } else { source.shape().to_vec() };
        let mut dtype = source.dtype();
        match precision {
            _ if quantized.is_some() => dtype = parameter.dtype,
            Some(Precision::F32) if parameter.dtype == Dtype::F32 => dtype = Dtype::F32,
            Some(Precision::F16) if parameter.dtype == Dtype::F32 => dtype = Dtype::F16,
            _ => {}
        }
        let form = quantized.map(|quantized| quantized.form);
        Packed { name: parameter.name.clone(), dtype, shape, source, is_turned, form }
    });
    let mut tensors: Vec<Packed> = tensors.collect();
    tensors.sort_by(|a, b| (b.dtype.size_bytes(), &a.name).cmp(&(a.dtype.size_bytes(), &b.name)));
    Ok((graph, tensors))
}

/// A hash of all that a file of these tensors is made of.
pub(super) fn source(tensors: &[Packed]) -> String {
    let mut hash = Sha256::new();
    for tensor in tensors {
        tensor.digest(&tensor.source.to_bytes(), &mut hash);
        tensor.source.release();
    }
    hex(&hash.finalize())
}

/// Writes a safetensors file, and gives [`source`] of the tensors; `on_tensor` is told how long each was.
///
/// # Errors
/// [`ErrorKind::Model`] for a number that a tensor's type cannot hold.
pub(super) fn write(
    tensors: &[Packed],
    to: &mut impl Write,
    mut on_tensor: impl FnMut(usize),
) -> Result<String, Failure> {
    #[derive(Serialize)]
    struct Declared<'a> {
        dtype: &'static str,
        shape: &'a [usize],
        data_offsets: [usize; 2],
    }
    let mut end = 0;
    let mut declared = BTreeMap::new();
    for tensor in tensors {
        let begin = end;
        end += tensor.len_bytes();
        let (dtype, shape) = (tensor.dtype.name(), &tensor.shape[..]);
        declared.insert(&tensor.name, Declared { dtype, shape, data_offsets: [begin, end] });
    }
    let mut header = serde_json::to_vec(&declared).expect("names and numbers are JSON");
    // The data starts at a multiple of eight.
    header.resize(header.len().next_multiple_of(8), b' ');
    to.write_all(&(header.len() as u64).to_le_bytes())?;
    to.write_all(&header)?;
    let mut hash = Sha256::new();
    for tensor in tensors {
        let source = tensor.source.to_bytes();
        tensor.digest(&source, &mut hash);
        tensor.write(&source, to)?;
        // Else all of the source would be in memory at the end.
        tensor.source.release();
        on_tensor(tensor.len_bytes());
    }
    Ok(hex(&hash.finalize()))
}

impl Packed<'_> {
    /// How many bytes are written.
    pub(super) fn len_bytes(&self) -> usize {
        // No more than the source has, or four times as many: the product cannot overflow.
        self.shape.iter().product::<usize>() * self.dtype.size_bytes()
    }

    /// Hashes what the tensor is made of, and how. The numbers of scales are those of the integers beside them.
    fn digest(&self, source: &[u8], hash: &mut Sha256) {
        let Self { name, dtype, shape, source: view, is_turned, form } = self;
        let recipe =
            format!("{name} {dtype} {shape:?} {} {:?} {is_turned} {form:?}\n", view.dtype(), view.shape());
        hash.update(recipe);
        if !matches!(form, Some(Form::BlockScales(_) | Form::ChannelScales(_) | Form::ColumnScales(_))) {
            hash.update(source);
        }
    }

    /// Writes the tensor's bytes, made of the bytes of its source.
    ///
    /// # Errors
    /// [`ErrorKind::Model`] for a number that the type cannot hold.
    fn write(&self, source: &[u8], to: &mut impl Write) -> Result<(), Failure> {
        let from = self.source.dtype();
        let mut bytes = Vec::new();
        match self.form {
            None if from == self.dtype && !self.is_turned => to.write_all(source)?,
            None if from == self.dtype => self.rows(source, |row| Ok(to.write_all(row)?))?,
            None => self.rows(source, |row| {
                for chunk in row.chunks(CHUNK * from.size_bytes()) {
                    bytes.clear();
                    self.convert(chunk, &mut bytes)?;
                    to.write_all(&bytes)?;
                }
                Ok(())
            })?,
            Some(Form::ColumnCodes(columns)) => to.write_all(&self.columns(source, columns)?)?,
            Some(form) => self.rows(source, |row| {
                bytes.clear();
                let row = self.floats(row)?;
                match form {
                    Form::BlockCodes(blocks) => {
                        let each = row.chunks(blocks.len);
                        each.for_each(|block| quantizer::block_codes(block, blocks, &mut bytes));
                    }
                    Form::BlockScales(blocks) => {
                        let each = row.chunks(blocks.len);
                        let scales = each.map(|block| quantizer::block_scale(block, blocks.bits));
                        bytes.extend(scales.flat_map(f32::to_le_bytes));
                    }
                    Form::ChannelCodes(bits) => bytes.extend(quantizer::channel_codes(&row, bits)),
                    Form::ChannelScales(bits) | Form::ColumnScales(bits) => {
                        bytes.extend(quantizer::channel_scale(&row, bits).to_le_bytes());
                    }
                    Form::ColumnCodes(_) => unreachable!("written above"),
                }
                Ok(to.write_all(&bytes)?)
            })?,
        }
        Ok(())
    }

    /// The integers of a weight in columns, row by row of all columns.
    fn columns(&self, source: &[u8], Columns { bits, taps }: Columns) -> Result<Vec<u8>, Failure> {
        let [inputs, out] = self.shape[..] else { unreachable!("columns make a matrix") };
        let mut bytes = vec![0; inputs * out];
        let mut column = 0;
        self.rows(source, |row| {
            for (index, code) in quantizer::channel_codes(&self.floats(row)?, bits).enumerate() {
                // The weight has the places of the kernel last, and the columns have them first.
                let (channel, tap) = (index / taps, index % taps);
                bytes[(tap * (inputs / taps) + channel) * out + column] = code;
            }
            column += 1;
            Ok(())
        })?;
        Ok(bytes)
    }

    /// Calls `each` with the bytes of every row of the source, as the reference implementation has them.
    fn rows(&self, source: &[u8], mut each: impl FnMut(&[u8]) -> Result<(), Failure>) -> Result<(), Failure> {
        let size = self.source.dtype().size_bytes();
        let axis = usize::from(matches!(self.form, Some(Form::ColumnCodes(_))));
        let out = self.shape.get(axis).copied().unwrap_or(1).max(1);
        if !self.is_turned {
            return source.chunks((source.len() / out).max(1)).try_for_each(each);
        }
        let mut row = Vec::with_capacity(source.len() / out);
        for column in 0..out {
            row.clear();
            for element in source.chunks_exact(size).skip(column).step_by(out) {
                row.extend_from_slice(element);
            }
            each(&row)?;
        }
        Ok(())
    }

    /// Appends elements of the source in the tensor's type.
    fn convert(&self, elements: &[u8], into: &mut Vec<u8>) -> Result<(), Error> {
        let floats = self.floats(elements)?;
        match self.dtype {
            Dtype::F16 => {
                for x in floats {
                    let half = f16::from_f32(x);
                    if !half.is_finite() {
                        let largest = f16::MAX;
                        return Err(self
                            .refuse(format!("expected numbers up to {largest}, the largest of F16, got {x}"))
                            .help("keep this model in F32"));
                    }
                    into.extend(half.to_le_bytes());
                }
            }
            _ => into.extend(floats.into_iter().flat_map(f32::to_le_bytes)),
        }
        Ok(())
    }

    /// Elements of the source as 32-bit floats, all of them numbers.
    fn floats(&self, elements: &[u8]) -> Result<Vec<f32>, Error> {
        let floats: Vec<f32> = match self.source.dtype() {
            Dtype::F16 => elements.as_chunks().0.iter().map(|x| f16::from_le_bytes(*x).to_f32()).collect(),
            Dtype::Bf16 => elements.as_chunks().0.iter().map(|x| bf16::from_le_bytes(*x).to_f32()).collect(),
            _ => elements.as_chunks().0.iter().map(|x| f32::from_le_bytes(*x)).collect(),
        };
        match floats.iter().find(|x| !x.is_finite()) {
            Some(x) => Err(self.refuse(format!("expected finite numbers, got {x}"))),
            None => Ok(floats),
        }
    }

    fn refuse(&self, problem: String) -> Error {
        Error::new(ErrorKind::Model, format!("weight {}: {problem}", self.name))
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;
    use std::sync::Arc;

    use prost::Message;

    use super::*;
    use crate::engine::{Session, SessionOptions, TensorRef};
    use crate::graph::int8::{Int8, WeightBits};
    use crate::graph::proto::{
        self, AttributeProto, Dimension, DimensionValue, GraphProto, ModelProto, NodeProto,
        OperatorSetIdProto, StringStringEntryProto, TensorProto, TensorShapeProto, TensorType, TypeProto,
        TypeValue, ValueInfoProto,
    };
    use crate::graph::qdq::Ranges;
    use crate::noise::{NoiseSource, TorchCpu};
    use crate::weights::Stored;

    fn value(name: &str, dims: &[usize]) -> ValueInfoProto {
        let dim = dims.iter().map(|&size| Dimension {
            value: Some(DimensionValue::DimValue(size as i64)),
            ..Default::default()
        });
        let tensor = TensorType { elem_type: Some(1), shape: Some(TensorShapeProto { dim: dim.collect() }) };
        let kind = TypeProto { value: Some(TypeValue::TensorType(tensor)), ..Default::default() };
        ValueInfoProto { name: Some(name.into()), r#type: Some(kind), ..Default::default() }
    }

    /// A graph of one node with one parameter, `w`.
    fn graph(op: &str, shape: &[usize], x: &[usize], y: &[usize]) -> Graph {
        let flag = AttributeProto {
            name: Some("transB".into()),
            r#type: Some(proto::INT),
            i: Some(1),
            ..Default::default()
        };
        let is_fused = op == "FusedMatMul";
        let node = NodeProto {
            op_type: Some(op.into()),
            domain: is_fused.then(|| "com.microsoft".into()),
            input: vec!["x".into(), "w".into()],
            output: vec!["y".into()],
            attribute: if is_fused { vec![flag] } else { Vec::new() },
            ..Default::default()
        };
        let weight = open_parameter("w", shape);
        let graph = GraphProto {
            name: Some("test".into()),
            node: vec![node],
            initializer: vec![weight],
            input: vec![value("x", x)],
            output: vec![value("y", y)],
            ..Default::default()
        };
        let opset = |domain: &str, version| OperatorSetIdProto {
            domain: Some(domain.into()),
            version: Some(version),
        };
        let model = ModelProto {
            ir_version: Some(9),
            graph: Some(graph),
            opset_import: vec![opset("", 18), opset("com.microsoft", 1)],
            ..Default::default()
        };
        Graph::decode("test", &model.encode_to_vec()).unwrap()
    }

    fn weights(dtype: Dtype, shape: &[usize], values: &[f32]) -> Weights {
        let bytes: Vec<u8> = match dtype {
            Dtype::F16 => values.iter().flat_map(|x| f16::from_f32(*x).to_le_bytes()).collect(),
            Dtype::Bf16 => values.iter().flat_map(|x| bf16::from_f32(*x).to_le_bytes()).collect(),
            _ => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
        };
        let mut weights = Weights::default();
        weights.replace("w", dtype, shape, &bytes).unwrap();
        weights
    }

    fn normal(count: usize, seed: u64) -> Vec<f32> {
        let mut values = vec![0.0; count];
        TorchCpu::new(seed).fill_normal(&mut values);
        values
    }

    /// The graph and the weights as they are read from the file that is written of them.
    fn packed(
        graph: &Graph,
        weights: &Weights,
        precision: Option<Precision>,
    ) -> Result<(Graph, Weights), Error> {
        let (graph, tensors) = plan(graph, weights, precision, None)?;
        let mut file = Vec::new();
        match write(&tensors, &mut file, |_| ()) {
            Ok(source_hash) => assert_eq!(source_hash, source(&tensors)),
            Err(Failure::Content(error)) => return Err(error),
            Err(Failure::Write(error)) => panic!("{error}"),
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("w.safetensors");
        std::fs::write(&path, file).unwrap();
        Ok((Graph::decode("test", &graph.encode())?, Weights::open(&[path])?))
    }

    fn run(graph: Graph, weights: Weights, shape: &[usize], x: &[f32]) -> Vec<f32> {
        let options = SessionOptions::new(NonZeroUsize::MIN);
        let mut session = Session::open(graph.bind(Arc::new(weights)).unwrap(), &options).unwrap();
        session.compute(&[("x", TensorRef::new(shape, x))], &["y"]).unwrap().remove(0).data
    }

    fn floats(weights: &Weights, name: &str) -> Vec<f32> {
        let view = weights.get(name).unwrap();
        assert_eq!(view.dtype(), Dtype::F32);
        view.to_bytes().as_chunks().0.iter().map(|x| f32::from_le_bytes(*x)).collect()
    }

    /// The matrix that a packed file's integers stand for, `[out, inputs]`, by the format's definition.
    fn matrix(weights: &Weights, bits: usize, out: usize, inputs: usize) -> Vec<f32> {
        let view = weights.get(&format!("w.q{bits}")).unwrap();
        let [rows, blocks, bytes] = *view.shape() else { panic!("{:?}", view.shape()) };
        let (codes, scales) = (view.to_bytes(), floats(weights, "w.scales"));
        assert_eq!((rows, scales.len()), (out, out * blocks));
        let len = bytes * 8 / bits;
        let mut matrix = Vec::new();
        for (row, column) in (0..out).flat_map(|row| (0..inputs).map(move |column| (row, column))) {
            let block = row * blocks + column / len;
            let bit = column % len * bits;
            let code = codes[block * bytes + bit / 8] >> (bit % 8) & ((1u32 << bits) - 1) as u8;
            matrix.push((f32::from(code) - (1 << (bits - 1)) as f32) * scales[block]);
        }
        matrix
    }

    #[track_caller]
    fn expect_near(got: &[f32], expected: &[f32], tolerance: f64) {
        assert_eq!(got.len(), expected.len());
        let square = |x: f64| x * x;
        let length = expected.iter().map(|x| square((*x).into())).sum::<f64>().sqrt();
        let pairs = got.iter().zip(expected);
        let error = pairs.map(|(a, b)| square(f64::from(*a) - f64::from(*b))).sum::<f64>().sqrt();
        assert!(error <= tolerance * length, "relative error {}", error / length);
    }

    /// Activations that 8-bit integers hold exactly, whatever the blocks.
    fn exact(rows: usize, inputs: usize) -> Vec<f32> {
        let value = |index: usize| match index % inputs % 32 {
            0 => 127.0,
            _ => (index * 89 % 255) as f32 - 127.0,
        };
        (0..rows * inputs).map(value).collect()
    }

    #[test]
    fn onnx_runtime_computes_with_the_matrix_that_the_integers_stand_for() {
        const ROWS: usize = 3;
        // One block of each length, several, and padding.
        for (bits, precision, inputs) in [
            (4, Precision::Int4, 32),
            (4, Precision::Int4, 40),
            (4, Precision::Int4, 96),
            (8, Precision::Int8, 32),
            (8, Precision::Int8, 40),
            (8, Precision::Int8, 64),
            (8, Precision::Int8, 128),
            (8, Precision::Int8, 192),
            (8, Precision::Int8, 320),
            (8, Precision::Int8, 384),
        ] {
            let out = (16usize << 10).div_ceil(inputs);
            let source = normal(out * inputs, inputs as u64);
            let graph = graph("FusedMatMul", &[out, inputs], &[ROWS, inputs], &[ROWS, out]);
            let (graph, weights) =
                packed(&graph, &weights(Dtype::F32, &[out, inputs], &source), Some(precision)).unwrap();
            let matrix = matrix(&weights, bits, out, inputs);
            let x = exact(ROWS, inputs);
            let expected: Vec<f32> = x
                .chunks(inputs)
                .flat_map(|x| matrix.chunks(inputs).map(|w| x.iter().zip(w).map(|(x, w)| x * w).sum::<f32>()))
                .collect();
            let got = run(graph, weights, &[ROWS, inputs], &x);
            // 32-bit sums in another order: those of ARM's kernels are 2.2e-6 off.
            expect_near(&got, &expected, 5e-6);
            // Gaussian weights at 3 and 4 sigma by 8 and 128 levels each side, and their spread.
            expect_near(&matrix, &source, if bits == 4 { 0.11 } else { 0.01 });
        }
    }

    #[test]
    fn onnx_runtime_computes_with_the_convolution_that_the_integers_stand_for() {
        const SIDE: usize = 3;
        let (out, inputs) = (48, 40);
        let shape = [out, inputs, SIDE, SIDE];
        let source = normal(shape.iter().product(), 1);
        // One pixel comes out: the product with the whole kernel.
        let graph = graph("Conv", &shape, &[1, inputs, SIDE, SIDE], &[1, out, 1, 1]);
        for precision in [Precision::Int8, Precision::Int4] {
            let (graph, weights) =
                packed(&graph, &weights(Dtype::F32, &shape, &source), Some(precision)).unwrap();
            let codes = weights.get("w.q8").unwrap();
            assert_eq!((codes.dtype(), codes.shape()), (Dtype::I8, &shape[..]));
            let (codes, scales) = (codes.to_bytes(), floats(&weights, "w.scales"));
            assert_eq!(scales.len(), out);
            let kernel: Vec<f32> = codes
                .chunks(inputs * SIDE * SIDE)
                .zip(scales)
                .flat_map(|(channel, scale)| channel.iter().map(move |code| f32::from(*code as i8) * scale))
                .collect();
            let x = normal(inputs * SIDE * SIDE, 2);
            let products = kernel.chunks(x.len()).map(|w| x.iter().zip(w).map(|(x, w)| x * w).sum::<f32>());
            let expected: Vec<f32> = products.collect();
            let got = run(graph, weights, &[1, inputs, SIDE, SIDE], &x);
            expect_near(&got, &expected, 1e-5);
            expect_near(&kernel, &source, 0.01);
        }
    }

    /// A matrix as `[in, out]`, in the file or in the graph, and as the reference implementation has it.
    #[test]
    fn matrices_are_turned_upright() {
        let (out, inputs) = (160, 128);
        let source = normal(out * inputs, 3);
        let turned: Vec<f32> = (0..inputs * out).map(|at| source[at % out * inputs + at / out]).collect();
        let upright = weights(Dtype::F32, &[out, inputs], &source);
        let fused = graph("FusedMatMul", &[out, inputs], &[2, inputs], &[2, out]);
        let plain = graph("MatMul", &[inputs, out], &[2, inputs], &[2, out]);
        let lying = weights(Dtype::F32, &[inputs, out], &turned);
        let marked = lying.select([("w".into(), Stored { transposed: true, ..Stored::whole("w") })]).unwrap();
        let x = normal(2 * inputs, 4);
        for precision in [None, Some(Precision::F16), Some(Precision::Int8)] {
            let (graph, expected) = packed(&fused, &upright, precision).unwrap();
            let y = run(graph, expected.clone(), &[2, inputs], &x);
            for (graph, weights) in [(&fused, &marked), (&plain, &lying)] {
                let (graph, weights) = packed(graph, weights, precision).unwrap();
                let tensors = |weights: &Weights| {
                    let each =
                        weights.iter().map(|(name, w)| (name.to_owned(), w.shape().to_vec(), w.to_bytes()));
                    each.collect::<Vec<_>>()
                };
                assert_eq!(tensors(&weights), tensors(&expected));
                assert_eq!(run(graph, weights, &[2, inputs], &x), y);
            }
        }
    }

    /// The bytes of a weight of one row in another type.
    fn converted(from: Dtype, to: Precision, values: &[f32]) -> Result<Vec<u8>, Error> {
        let graph = graph("FusedMatMul", &[1, values.len()], &[1, values.len()], &[1, 1]);
        let (_, weights) = packed(&graph, &weights(from, &[1, values.len()], values), Some(to))?;
        Ok(weights.get("w").unwrap().to_bytes())
    }

    #[test]
    fn floats_become_the_nearest_halves() {
        // Halves around 1 are 2^-10 apart; between two, the one whose last bit is 0. Below 2^-24, none.
        let step = (-10f32).exp2();
        let pairs = [
            (1.0 + 0.49 * step, 1.0),
            (1.0 + 0.5 * step, 1.0),
            (1.0 + 0.51 * step, 1.0 + step),
            (1.0 + 1.5 * step, 1.0 + 2.0 * step),
            (-1.0 - 1.5 * step, -1.0 - 2.0 * step),
            (65519.996, 65504.0),
            ((-24f32).exp2(), (-24f32).exp2()),
            ((-25f32).exp2(), 0.0),
        ];
        let (values, expected) = (pairs.map(|(value, _)| value), pairs.map(|(_, half)| half));
        let expected: Vec<u8> = expected.iter().flat_map(|x| f16::from_f32(*x).to_le_bytes()).collect();
        assert_eq!(converted(Dtype::F32, Precision::F16, &values).unwrap(), expected);
    }

    #[test]
    fn halves_of_both_kinds_become_floats() {
        let values = [1.5f32, -0.0, 65504.0, (-24f32).exp2()];
        let expected: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        assert_eq!(converted(Dtype::F16, Precision::F32, &values).unwrap(), expected);
        let values = [1.5f32, -0.0, (100f32).exp2(), (-100f32).exp2()];
        let expected: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        assert_eq!(converted(Dtype::Bf16, Precision::F32, &values).unwrap(), expected);
    }

    #[test]
    fn numbers_beyond_a_half_are_refused() {
        for (from, x) in [(Dtype::F32, 65520.0f32), (Dtype::F32, -65520.0), (Dtype::Bf16, (17f32).exp2())] {
            let error = converted(from, Precision::F16, &[0.0, x]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Model);
            let expected = "weight w: expected numbers up to 65504, the largest of F16, got ";
            assert!(error.to_string().starts_with(expected), "{error}");
        }
    }

    #[test]
    fn what_is_no_number_is_refused() {
        for (x, precision) in [
            (f32::NAN, Precision::F16),
            (f32::INFINITY, Precision::F16),
            (f32::NAN, Precision::Int8),
            (f32::NEG_INFINITY, Precision::Int4),
        ] {
            let mut values = vec![0.5; 16 << 10];
            values[77] = x;
            let graph = graph("FusedMatMul", &[128, 128], &[1, 128], &[1, 128]);
            let error =
                packed(&graph, &weights(Dtype::F32, &[128, 128], &values), Some(precision)).err().unwrap();
            assert_eq!(error.kind(), ErrorKind::Model);
            assert!(error.to_string().contains("expected finite numbers, got "), "{error}");
        }
    }

    /// Numbers that a seed gives.
    struct Dice(u64);

    impl Dice {
        fn below(&mut self, most: usize) -> usize {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (self.0 >> 33) as usize % most
        }
    }

    /// A convolution of the sweep.
    struct Conv {
        out: usize,
        kernel: [usize; 2],
        strides: [usize; 2],
        pads: [usize; 4],
        dilation: usize,
        groups: usize,
    }

    impl Conv {
        fn random(dice: &mut Dice) -> Self {
            let kernel = [[3, 3], [1, 1], [3, 1], [2, 2], [1, 3]][dice.below(5)];
            let pads = [0, 1, 0, 1].map(|axis: usize| dice.below(kernel[axis]));
            let strides = [1 + dice.below(2), 1 + dice.below(2)];
            Self { out: 17 + dice.below(9), kernel, strides, pads, dilation: 1, groups: 1 }
        }

        fn node(&self, name: &str, bias: bool) -> NodeProto {
            let attribute = |name: &str, values: &[usize]| AttributeProto {
                name: Some(name.into()),
                r#type: Some(proto::INTS),
                ints: values.iter().map(|&value| value as i64).collect(),
                ..Default::default()
            };
            let group = AttributeProto {
                name: Some("group".into()),
                r#type: Some(proto::INT),
                i: Some(self.groups as i64),
                ..Default::default()
            };
            let inputs = ["x".to_owned(), format!("{name}.weight"), format!("{name}.bias")];
            NodeProto {
                op_type: Some("Conv".into()),
                input: inputs[..if bias { 3 } else { 2 }].to_vec(),
                output: vec![name.into()],
                attribute: vec![
                    attribute("kernel_shape", &self.kernel),
                    attribute("strides", &self.strides),
                    attribute("pads", &self.pads),
                    attribute("dilations", &[self.dilation; 2]),
                    group,
                ],
                ..Default::default()
            }
        }

        /// The sums of products, naively, and their shape.
        fn sums(
            &self,
            x: &[f64],
            [batch, channels, height, width]: [usize; 4],
            w: &[f64],
        ) -> (Vec<f64>, [usize; 4]) {
            let Self { out, kernel, strides, pads, dilation, groups } = *self;
            let side = |size: usize, axis: usize| {
                (size + pads[axis] + pads[axis + 2] - dilation * (kernel[axis] - 1) - 1) / strides[axis] + 1
            };
            let (rows, columns, inside) = (side(height, 0), side(width, 1), channels / groups);
            let mut sums = Vec::new();
            for (image, channel) in (0..batch).flat_map(|image| (0..out).map(move |channel| (image, channel)))
            {
                let first = channel / (out / groups) * inside;
                for (row, column) in (0..rows).flat_map(|row| (0..columns).map(move |column| (row, column))) {
                    let mut sum = 0.0;
                    for (from, down, right) in (0..inside)
                        .flat_map(|from| (0..kernel[0]).map(move |down| (from, down)))
                        .flat_map(|(from, down)| (0..kernel[1]).map(move |right| (from, down, right)))
                    {
                        let y = (row * strides[0] + down * dilation).wrapping_sub(pads[0]);
                        let z = (column * strides[1] + right * dilation).wrapping_sub(pads[1]);
                        if y < height && z < width {
                            let pixel = x[((image * channels + first + from) * height + y) * width + z];
                            sum +=
                                pixel * w[((channel * inside + from) * kernel[0] + down) * kernel[1] + right];
                        }
                    }
                    sums.push(sum);
                }
            }
            (sums, [batch, out, rows, columns])
        }
    }

    /// Integers from 0 to 255 less their zero point, and their scale (ONNX, `DynamicQuantizeLinear`).
    fn activations(x: &[f32]) -> (Vec<f64>, f32) {
        let least = x.iter().copied().fold(0.0, f32::min);
        let scale = (x.iter().copied().fold(0.0, f32::max) - least) / 255.0;
        let zero = (-least / scale).clamp(0.0, 255.0).round_ties_even();
        let integer = |x: &f32| f64::from(((x / scale).round_ties_even() + zero).clamp(0.0, 255.0) - zero);
        (x.iter().map(integer).collect(), scale)
    }

    /// Integers of each of `out` channels, and their scales.
    fn columns(weight: &[f32], out: usize, most: f32) -> (Vec<f64>, Vec<f32>) {
        let channels = || weight.chunks(weight.len() / out);
        let scales: Vec<f32> =
            channels().map(|c| c.iter().fold(0f32, |most, x| most.max(x.abs())) / most).collect();
        let integers = channels().zip(&scales).flat_map(|(channel, scale)| {
            channel.iter().map(move |x| f64::from((x / scale).round_ties_even().clamp(-most, most)))
        });
        (integers.collect(), scales)
    }

    /// A product with the transpose of a layer's weight.
    fn product(x: &str, name: &str, output: &str) -> NodeProto {
        let transposed = AttributeProto {
            name: Some("transB".into()),
            r#type: Some(proto::INT),
            i: Some(1),
            ..Default::default()
        };
        NodeProto {
            op_type: Some("FusedMatMul".into()),
            domain: Some("com.microsoft".into()),
            input: vec![x.into(), format!("{name}.weight")],
            output: vec![output.into()],
            attribute: vec![transposed],
            ..Default::default()
        }
    }

    fn open_parameter(name: &str, shape: &[usize]) -> TensorProto {
        TensorProto {
            name: Some(name.into()),
            dims: shape.iter().map(|&size| size as i64).collect(),
            data_type: Some(1),
            data_location: Some(proto::EXTERNAL),
            external_data: vec![StringStringEntryProto {
                key: Some("location".into()),
                value: Some("weights".into()),
            }],
            ..Default::default()
        }
    }

    /// A network of one layer of nodes under test.
    #[derive(Default)]
    struct Network {
        nodes: Vec<NodeProto>,
        parameters: Vec<TensorProto>,
        weights: Weights,
        outputs: Vec<(String, Vec<usize>, Vec<f32>)>,
    }

    impl Network {
        fn add(&mut self, name: &str, shape: &[usize], seed: usize) -> Vec<f32> {
            let values = normal(shape.iter().product(), seed as u64);
            let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
            self.weights.replace(name, Dtype::F32, shape, &bytes).unwrap();
            self.parameters.push(open_parameter(name, shape));
            values
        }

        /// Computes it with and without integers; the operators that the former has.
        fn check(self, x: &[f32], dims: &[usize], how: How, place: &str) -> Vec<String> {
            self.check_without(x, dims, how, &BTreeSet::new(), place)
        }

        fn graph(&self, dims: &[usize]) -> Graph {
            let model = |bits: Vec<NodeProto>| ModelProto {
                ir_version: Some(9),
                graph: Some(GraphProto {
                    name: Some("test".into()),
                    node: bits,
                    initializer: self.parameters.clone(),
                    input: vec![value("x", dims)],
                    output: self.outputs.iter().map(|(name, dims, _)| value(name, dims)).collect(),
                    ..Default::default()
                }),
                opset_import: [("", 18), ("com.microsoft", 1)]
                    .map(|(domain, version)| OperatorSetIdProto {
                        domain: Some(domain.into()),
                        version: Some(version),
                    })
                    .into(),
                ..Default::default()
            };
            Graph::decode("test", &model(self.nodes.clone()).encode_to_vec()).unwrap()
        }

        /// The same, where layers whose weights are in `left` stay in floats.
        fn check_without(
            self,
            x: &[f32],
            dims: &[usize],
            how: How,
            left: &BTreeSet<String>,
            place: &str,
        ) -> Vec<String> {
            let graph = self.graph(dims);
            let (graph, tensors) = plan(&graph, &self.weights, None, Some((how, left))).unwrap();
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("w.safetensors");
            let mut file = Vec::new();
            assert!(write(&tensors, &mut file, |_| ()).is_ok());
            std::fs::write(&path, file).unwrap();
            let operators = ModelProto::decode(&graph.encode()[..]).unwrap().graph.unwrap().node;
            let weights = Arc::new(Weights::open(&[path]).unwrap());
            let options = SessionOptions::new(NonZeroUsize::MIN);
            let mut session = Session::open(graph.bind(weights).unwrap(), &options).unwrap();
            let names: Vec<&str> = self.outputs.iter().map(|(name, ..)| &name[..]).collect();
            let got = session.compute(&[("x", TensorRef::new(dims, x))], &names).unwrap();
            for (got, (name, shape, expected)) in got.iter().zip(&self.outputs) {
                assert_eq!(&got.shape, shape, "{place}: {name}");
                let error = distance(&got.data, expected);
                assert!(error < 1e-5, "{place}: {name}: {error}");
            }
            operators.into_iter().map(|node| node.op_type().to_owned()).collect()
        }
    }

    fn distance(got: &[f32], expected: &[f32]) -> f64 {
        let square = |x: f64| x * x;
        let pairs = got.iter().zip(expected);
        let error = pairs.map(|(a, b)| square(f64::from(*a) - f64::from(*b))).sum::<f64>();
        (error / expected.iter().map(|x| square((*x).into())).sum::<f64>()).sqrt()
    }

    /// Convolutions of one image, of which those in groups, with dilation and with few channels stay in floats, against a
    /// naive twin in the numbers of which each computes.
    #[test]
    fn convolutions_in_integers_are_those_of_a_naive_twin() {
        let mut dice = Dice(19);
        for round in 0..24 {
            let bits = [WeightBits::Eight, WeightBits::Seven][round % 2];
            let dims = [1 + dice.below(2), 34 + 2 * dice.below(3), 3 + dice.below(5), 3 + dice.below(6)];
            let x: Vec<f32> = normal(dims.iter().product(), round as u64).iter().map(|x| x + 0.7).collect();
            let (integers, scale) = activations(&x);
            let mut network = Network::default();
            let mut expected_products = 0;
            for (index, name) in ["a", "b", "groups", "dilated", "narrow"].into_iter().enumerate() {
                let mut conv = Conv::random(&mut dice);
                match name {
                    "groups" => (conv.groups, conv.out) = (2, 18),
                    "dilated" => (conv.kernel, conv.dilation, conv.pads) = ([2, 2], 2, [0, 0, 1, 1]),
                    "narrow" => conv.out = 16,
                    _ => expected_products += 1,
                }
                let shape = [conv.out, dims[1] / conv.groups, conv.kernel[0], conv.kernel[1]];
                let weight = network.add(&format!("{name}.weight"), &shape, 7 * round + index);
                let has_bias = dice.below(3) > 0;
                let bias = match has_bias {
                    true => network.add(&format!("{name}.bias"), &[conv.out], round + index),
                    false => vec![0.0; conv.out],
                };
                let wide = |values: &[f32]| values.iter().map(|x| f64::from(*x)).collect::<Vec<_>>();
                let (floats, shape) = conv.sums(&wide(&x), dims, &wide(&weight));
                let pixels = shape[2] * shape[3];
                let with_bias = |sums: Vec<f64>, scales: &[f32]| -> Vec<f32> {
                    let channel = |at: usize| at / pixels % conv.out;
                    let each = sums.iter().enumerate();
                    each.map(|(at, sum)| (sum * f64::from(scales[channel(at)])) as f32 + bias[channel(at)])
                        .collect()
                };
                let floats = with_bias(floats, &vec![1.0; conv.out]);
                let expected = match name {
                    "a" | "b" => {
                        let (weight, scales) = columns(&weight, conv.out, bits.most() as f32);
                        let scales: Vec<f32> = scales.iter().map(|own| own * scale).collect();
                        let expected = with_bias(conv.sums(&integers, dims, &weight).0, &scales);
                        assert!(distance(&floats, &expected) > 1e-3, "integers can be told from floats");
                        expected
                    }
                    _ => floats,
                };
                network.nodes.push(conv.node(name, has_bias));
                network.outputs.push((name.into(), shape.to_vec(), expected));
            }
            let how = Int8 { has_blocks: round % 3 == 0, bits };
            let operators = network.check(&x, &dims, How::Dynamic(how), &format!("round {round}, {dims:?}"));
            let count = |op: &str| operators.iter().filter(|name| *name == op).count();
            assert_eq!(count("DynamicQuantizeLinear"), 1, "integers are shared");
            assert_eq!((count("MatMulIntegerToFloat"), count("Conv")), (expected_products, 3));
        }
    }

    /// Linear layers that share what they read, with a bias that the product takes in and one that it may not.
    #[test]
    fn linear_layers_in_integers_are_those_of_a_naive_twin() {
        let mut dice = Dice(20);
        for round in 0..16 {
            let bits = [WeightBits::Eight, WeightBits::Seven][round % 2];
            let dims = [1 + dice.below(2), 1 + dice.below(7), 17 + dice.below(40)];
            let x: Vec<f32> = normal(dims.iter().product(), round as u64).iter().map(|x| x - 0.4).collect();
            let (integers, scale) = activations(&x);
            let mut network = Network::default();
            for (index, name) in ["plain", "bias", "read twice", "narrow"].into_iter().enumerate() {
                let out = if name == "narrow" { 16 } else { 17 + dice.below(20) };
                let weight = network.add(&format!("{name}.weight"), &[out, dims[2]], 5 * round + index);
                let products = |x: &[f64], weight: &[f64]| -> Vec<f64> {
                    let row = |x: &[f64]| {
                        let each = weight.chunks(dims[2]);
                        each.map(|w| x.iter().zip(w).map(|(x, w)| x * w).sum::<f64>()).collect::<Vec<_>>()
                    };
                    x.chunks(dims[2]).flat_map(row).collect()
                };
                let wide = |values: &[f32]| values.iter().map(|x| f64::from(*x)).collect::<Vec<_>>();
                let floats: Vec<f32> =
                    products(&wide(&x), &wide(&weight)).iter().map(|x| *x as f32).collect();
                let (codes, scales) = columns(&weight, out, bits.most() as f32);
                let sums = products(&integers, &codes);
                let scaled =
                    sums.iter().enumerate().map(|(at, x)| (x * f64::from(scales[at % out] * scale)) as f32);
                let expected: Vec<f32> = if name == "narrow" { floats.clone() } else { scaled.collect() };
                assert!(name == "narrow" || distance(&floats, &expected) > 1e-3);
                network.nodes.push(product("x", name, &format!("{name}/product")));
                let shape = vec![dims[0], dims[1], out];
                if name != "bias" {
                    network.outputs.push((format!("{name}/product"), shape.clone(), expected.clone()));
                }
                if ["bias", "read twice"].contains(&name) {
                    let bias = network.add(&format!("{name}.bias"), &[out], round + index);
                    let mut inputs = vec![format!("{name}/product"), format!("{name}.bias")];
                    inputs.rotate_left(dice.below(2));
                    network.nodes.push(NodeProto {
                        op_type: Some("Add".into()),
                        input: inputs,
                        output: vec![name.into()],
                        ..Default::default()
                    });
                    let sums = expected.iter().enumerate().map(|(at, x)| x + bias[at % out]);
                    network.outputs.push((name.into(), shape, sums.collect()));
                }
            }
            let how = Int8 { has_blocks: false, bits };
            let operators = network.check(&x, &dims, How::Dynamic(how), &format!("round {round}, {dims:?}"));
            let count = |op: &str| operators.iter().filter(|name| *name == op).count();
            assert_eq!((count("DynamicQuantizeLinear"), count("MatMulIntegerToFloat")), (1, 3));
            assert_eq!((count("Add"), count("FusedMatMul")), (1, 1), "one bias is merged");
        }
    }

    /// Layers of both kinds that read one value, with a range that cuts some of its numbers off, and one with another range.
    #[test]
    fn static_ranges_are_those_of_a_naive_twin() {
        let mut dice = Dice(21);
        for round in 0..12 {
            let bits = [WeightBits::Eight, WeightBits::Seven][round % 2];
            let dims = [1 + dice.below(2), 17 + dice.below(20), 3 + dice.below(4), 17 + dice.below(20)];
            let x: Vec<f32> = normal(dims.iter().product(), round as u64).iter().map(|x| x + 0.3).collect();
            let ranges: Ranges =
                [("x".to_owned(), [(-1.5, 2.0), (0.5, 2.5), (-2.0, -0.5)][round % 3])].into();
            let (least, most) = (ranges["x"].0.min(0.0), ranges["x"].1.max(0.0));
            let scale = (most - least) / 255.0;
            let zero = (-least / scale).round_ties_even();
            let rounded = |x: &f32| {
                f64::from(((x / scale).round_ties_even() + zero).clamp(0.0, 255.0) - zero) * f64::from(scale)
            };
            let integers: Vec<f64> = x.iter().map(rounded).collect();
            let wide = |values: &[f32]| values.iter().map(|x| f64::from(*x)).collect::<Vec<_>>();
            let mut network = Network::default();
            for (index, name) in ["conv", "linear", "left", "narrow"].into_iter().enumerate() {
                let out = if name == "narrow" { 16 } else { 17 + dice.below(9) };
                let conv = Conv { out, ..Conv::random(&mut dice) };
                let shape = match name {
                    "conv" => vec![out, dims[1], conv.kernel[0], conv.kernel[1]],
                    _ => vec![out, dims[3]],
                };
                let weight = network.add(&format!("{name}.weight"), &shape, 3 * round + index);
                let (codes, scales) = columns(&weight, out, bits.most() as f32);
                let own = weight.len() / out;
                let codes: Vec<f64> =
                    codes.iter().enumerate().map(|(at, x)| x * f64::from(scales[at / own])).collect();
                let is_rounded = ["conv", "linear"].contains(&name);
                let (x, weight) =
                    if is_rounded { (integers.clone(), codes) } else { (wide(&x), wide(&weight)) };
                let (expected, shape) = match name {
                    "conv" => {
                        network.nodes.push(conv.node(name, false));
                        let (sums, shape) = conv.sums(&x, dims, &weight);
                        (sums, shape.to_vec())
                    }
                    _ => {
                        network.nodes.push(product("x", name, name));
                        let dot = |row: &[f64], w: &[f64]| row.iter().zip(w).map(|(x, w)| x * w).sum::<f64>();
                        let rows = x.chunks(dims[3]);
                        let sums = rows.flat_map(|row| weight.chunks(dims[3]).map(move |w| dot(row, w)));
                        (sums.collect(), [&dims[..3], &[out]].concat())
                    }
                };
                let expected = expected.into_iter().map(|x| x as f32).collect();
                network.outputs.push((name.into(), shape, expected));
            }
            let how = How::Static { ranges: Some(&ranges), bits };
            let left = BTreeSet::from(["left.weight".to_owned()]);
            let operators = network.check_without(&x, &dims, how, &left, &format!("round {round}, {dims:?}"));
            let count = |op: &str| operators.iter().filter(|name| *name == op).count();
            // What both layers read is rounded once.
            assert_eq!((count("QuantizeLinear"), count("DequantizeLinear")), (1, 3));
        }
    }

    /// The ranges of what layers read are those of the numbers themselves.
    #[test]
    fn ranges_are_outputs() {
        let (dims, x) = ([2, 3, 20], normal(120, 5));
        let mut network = Network::default();
        network.add("a.weight", &[18, 20], 1);
        network.add("narrow.weight", &[16, 18], 2);
        for (x, name) in [("x", "a"), ("a", "narrow")] {
            network.nodes.push(product(x, name, name));
        }
        network.outputs.push(("narrow".into(), vec![2, 3, 16], Vec::new()));
        let graph = network.graph(&dims);
        let values = graph.values_to_range();
        assert_eq!(values, BTreeSet::from(["x".to_owned()]), "narrow layers stay in floats");
        let (observed, names) = graph.with_ranges_as_outputs(&values).unwrap();
        let bound = observed.bind(Arc::new(network.weights)).unwrap();
        let mut session = Session::open(bound, &SessionOptions::new(NonZeroUsize::MIN)).unwrap();
        let names = names["x"].each_ref().map(String::as_str);
        let found = session.compute(&[("x", TensorRef::new(&dims, &x[..]))], &names).unwrap();
        let expected = [f32::INFINITY, f32::NEG_INFINITY];
        let expected = x.iter().fold(expected, |[least, most], x| [least.min(*x), most.max(*x)]);
        assert_eq!([found[0].data[0], found[1].data[0]], expected);
    }
}
