//! Words that a text encoder's table of embeddings lacks: a graph that looks ids up is rewritten to have more rows.
//! The table stays where it lies.

use std::cmp::Reverse;
use std::collections::HashMap;

use half::{bf16, f16};

use super::dtype::onnx_code;
use super::node::cast;
use super::proto::{self, AttributeProto, NodeProto, TensorProto};
use super::{Graph, Port};
use crate::weights::Dtype;
use crate::{Error, ErrorKind};

/// What the new nodes' names start with.
const PREFIX: &str = "added_embedding";
/// The oldest standard operators that can do it.
const OLDEST_OPSET: i64 = 11;
/// The first standard operators whose `Unsqueeze` is given its axes as an input.
const AXES_AS_INPUT: i64 = 13;
/// Operators that leave ids what they are.
const RESHAPING: [&str; 6] = ["Cast", "Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze"];
/// How many of them in a row are looked through; exporters write one or two.
const MAX_STEPS: usize = 16;

impl Graph {
    /// Lets ids from `first_id` on stand for these rows, as wide as the table that the graph's ids are looked up in;
    /// ids below it go to the table as before. To be called once, with all rows.
    ///
    /// # Errors
    /// [`ErrorKind::Model`] when the graph has not one table in which it looks up integers that it is fed, or the rows
    /// are not whole.
    pub fn extend_embedding(&mut self, first_id: u32, rows: &[f32]) -> Result<(), Error> {
        let refuse =
            |problem: String| Error::new(ErrorKind::Model, format!("{}: embeddings: {problem}", self.name));
        let Lookup { node: place, dtype, width, largest } = self.lookup().map_err(refuse)?;
        if rows.is_empty() || !rows.len().is_multiple_of(width) {
            return Err(refuse(format!("expected rows of {width} numbers, got {} numbers", rows.len())));
        }
        let opset = self.model.opset_import.iter().find(|opset| matches!(opset.domain(), "" | "ai.onnx"));
        let opset = opset.map_or(0, |opset| opset.version());
        if opset < OLDEST_OPSET {
            return Err(refuse(format!("expected opset {OLDEST_OPSET} or newer, got {opset}")));
        }

        let mut unsqueeze = node("Unsqueeze", &["is_in_table"], "is_row_in_table");
        if opset >= AXES_AS_INPUT {
            unsqueeze.input.push(named("last_axis"));
        } else {
            unsqueeze.attribute.push(AttributeProto {
                name: Some("axes".into()),
                r#type: Some(proto::INTS),
                ints: vec![-1],
                ..Default::default()
            });
        }
        let gather = &mut self.graph.node[place];
        let ids = std::mem::replace(&mut gather.input[1], named("table_ids"));
        let found = std::mem::replace(&mut gather.output[0], named("from_table"));
        let mut choice = node("Where", &["is_row_in_table", "from_table", "from_rows"], "found");
        choice.output = vec![found];
        let mut insertions = vec![
            (place, within_table(&ids, "").into()),
            (
                place + 1,
                vec![
                    node("Sub", &["ids", "first"], "row"),
                    node("Where", &["is_in_table", "zero", "row"], "row_ids"),
                    // An id behind the last row is refused here, by ONNX Runtime.
                    node("Gather", &["rows", "row_ids"], "from_rows"),
                    unsqueeze,
                    choice,
                ],
            ),
        ];
        for (place, dtype) in largest {
            let prefix = format!("largest_{place}/");
            let input = &mut self.graph.node[place].input[0];
            let ids = std::mem::replace(input, named(&format!("{prefix}of_table")));
            let mut nodes = Vec::from(within_table(&ids, &prefix));
            nodes.push(cast(
                &named(&format!("{prefix}table_ids")),
                &named(&format!("{prefix}of_table")),
                dtype,
            ));
            insertions.push((place, nodes));
        }
        insertions.sort_by_key(|(place, _)| Reverse(*place));
        for (place, nodes) in insertions {
            self.graph.node.splice(place..place, nodes);
        }

        let rows_bytes: Vec<u8> = match dtype {
            Dtype::F16 => rows.iter().flat_map(|&value| f16::from_f32(value).to_le_bytes()).collect(),
            Dtype::Bf16 => rows.iter().flat_map(|&value| bf16::from_f32(value).to_le_bytes()).collect(),
            _ => rows.iter().flat_map(|value| value.to_le_bytes()).collect(),
        };
        let int = |name: &str, dims: &[usize], value: i64| {
            constant(name, Dtype::I64, dims, value.to_le_bytes().into())
        };
        self.graph.initializer.extend([
            constant("rows", dtype, &[rows.len() / width, width], rows_bytes),
            int("first", &[], first_id.into()),
            int("zero", &[], 0),
            int("last_axis", &[1], -1),
        ]);
        Ok(())
    }

    /// The width of the table in which the graph looks up the integers that it is fed.
    ///
    /// # Errors
    /// [`ErrorKind::Model`] when it has not one such table.
    pub fn embedding_width(&self) -> Result<usize, Error> {
        let lookup = self.lookup();
        let refuse = |problem| Error::new(ErrorKind::Model, format!("{}: {problem}", self.name));
        lookup.map(|lookup| lookup.width).map_err(refuse)
    }

    /// The one place where a table's rows are looked up by integers that the graph is fed.
    fn lookup(&self) -> Result<Lookup, String> {
        let nodes = &self.graph.node;
        let outputs = nodes.iter().flat_map(|node| node.output.iter().map(move |output| (&output[..], node)));
        let makers: HashMap<&str, &NodeProto> = outputs.collect();
        let port_of = |name: &str| {
            let (name, converted) = origin(&makers, name, &RESHAPING);
            let port = self.inputs.iter().find(|port| port.name == name);
            port.filter(|port| matches!(port.dtype, Dtype::I64 | Dtype::I32)).map(|port| (port, converted))
        };

        let mut lookups: Vec<(usize, &TensorProto, Option<i32>, &Port)> = Vec::new();
        for (place, node) in nodes.iter().enumerate() {
            let ([table, ids], [_]) = (&node.input[..], &node.output[..]) else { continue };
            let axis = node.attribute.iter().find(|attribute| attribute.name() == "axis");
            if node.op_type() != "Gather" || axis.is_some_and(|axis| axis.i() != 0) {
                continue;
            }
            let (table, converted) = origin(&makers, table, &["Cast", "Identity"]);
            let table = self.graph.initializer.iter().find(|tensor| tensor.name() == table);
            if let (Some(table), Some((port, _))) = (table, port_of(ids)) {
                lookups.push((place, table, converted, port));
            }
        }
        let [(node, table, converted, port)] = lookups[..] else {
            return Err(format!("expected one table that token ids are looked up in, got {}", lookups.len()));
        };
        let code = converted.unwrap_or(table.data_type());
        let float = [Dtype::F32, Dtype::F16, Dtype::Bf16].into_iter().find(|&dtype| onnx_code(dtype) == code);
        let width = match table.dims[..] {
            [_, width] => usize::try_from(width).ok().filter(|&width| width > 0),
            _ => None,
        };
        let (Some(dtype), Some(width)) = (float, width) else {
            return Err(format!(
                "{}: expected a matrix of floats, got ONNX type {code}, shape {:?}",
                table.name(),
                table.dims
            ));
        };

        let mut largest = Vec::new();
        for (place, node) in nodes.iter().enumerate().filter(|(_, node)| node.op_type() == "ArgMax") {
            let ids = node.input.first().and_then(|ids| port_of(ids));
            if let Some((_, converted)) = ids.filter(|(of, _)| of.name == port.name) {
                let code = converted.unwrap_or(onnx_code(port.dtype));
                largest.push((place, super::dtype::dtype(code)?));
            }
        }
        Ok(Lookup { node, dtype, width, largest })
    }
}

/// A `Gather` of token ids.
struct Lookup {
    /// Index into the nodes.
    node: usize,
    /// The type of the rows that it gives.
    dtype: Dtype,
    width: usize,
    /// The nodes that look for the largest of the same ids, and the type in which they get them. That is how many
    /// exporters find the end of a prompt, whose id is the last of the table.
    largest: Vec<(usize, Dtype)>,
}

/// Where a value comes from if nodes of these kinds are looked through, and the type to which the last of them casts.
fn origin<'a>(
    makers: &HashMap<&str, &'a NodeProto>,
    mut value: &'a str,
    operators: &[&str],
) -> (&'a str, Option<i32>) {
    let mut converted = None;
    for _ in 0..MAX_STEPS {
        let maker = makers.get(value).filter(|maker| operators.contains(&maker.op_type()));
        let Some((maker, input)) = maker.and_then(|maker| Some((maker, maker.input.first()?))) else { break };
        let to = maker.attribute.iter().find(|attribute| attribute.name() == "to");
        converted = converted.or(to.and_then(|to| i32::try_from(to.i()).ok()));
        value = input;
    }
    (value, converted)
}

fn named(name: &str) -> String {
    format!("{PREFIX}/{name}")
}

/// A node between our own values.
fn node(op: &str, inputs: &[&str], output: &str) -> NodeProto {
    NodeProto {
        name: Some(named(output)),
        op_type: Some(op.into()),
        input: inputs.iter().map(|input| named(input)).collect(),
        output: vec![named(output)],
        ..Default::default()
    }
}

fn constant(name: &str, dtype: Dtype, dims: &[usize], bytes: Vec<u8>) -> TensorProto {
    TensorProto {
        name: Some(named(name)),
        dims: dims.iter().map(|&size| size as i64).collect(),
        data_type: Some(onnx_code(dtype)),
        raw_data: Some(bytes),
        ..Default::default()
    }
}

/// The nodes that make `{prefix}table_ids` of ids: those of rows are 0 in it.
fn within_table(ids: &str, prefix: &str) -> [NodeProto; 3] {
    let [all, is_in_table, table] = ["ids", "is_in_table", "table_ids"].map(|name| format!("{prefix}{name}"));
    [
        cast(ids, &named(&all), Dtype::I64),
        node("Less", &[&all, "first"], &is_in_table),
        node("Where", &[&is_in_table, &all, "zero"], &table),
    ]
}
