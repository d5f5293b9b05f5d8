//! Bound graphs: every parameter points at the weight of its name. It copies no data.

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use prost::Message;
use sha2::{Digest, Sha256};

use super::dtype::onnx_code;
use super::node::{cast, entry};
use super::proto::{ModelProto, NodeProto};
use super::turn::transpose;
use super::{Graph, Parameter, Port};
use crate::weights::{Dtype, Weights};
use crate::{Error, ErrorKind};

/// How many missing parameters an error names.
const NAMED_MISSING: usize = 3;

impl Graph {
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

/// A graph all of whose parameters have data.
#[derive(Clone)]
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
    /// the CPU; a device that takes no 16-bit floats has no lookup for them either.
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

    /// A name for this graph with these weights, and no others: the first half of a SHA-256 in hexadecimal digits.
    pub(crate) fn key(&self) -> String {
        self.key_with(self.weights.sha256())
    }

    /// The same, where the hash of the weights is known: it takes seconds.
    pub(crate) fn key_with(&self, weights: [u8; 32]) -> String {
        let mut hash = Sha256::new();
        hash.update(self.encode());
        hash.update(weights);
        hash.finalize()[..16].iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// The tensors that are tables of rows: all that read them look rows up.
pub(super) fn tables(nodes: &[NodeProto]) -> HashSet<&str> {
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
    use super::*;
    use crate::graph::proto::TensorProto;
    use crate::graph::tests::{decode, model, open_initializer};

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
}
