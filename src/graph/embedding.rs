//! Words that a text encoder's table of embeddings lacks: a graph that looks ids up is rewritten to have more rows.
//! The table stays where it lies.

use half::{bf16, f16};

use super::proto::{AttributeProto, INT, NodeProto, TensorProto};
use super::{Graph, cast, onnx_code};
use crate::weights::Dtype;
use crate::{Error, ErrorKind};

/// What the new nodes' names start with.
const PREFIX: &str = "added_embedding";
/// The oldest standard operators that can do it.
const OLDEST_OPSET: i64 = 11;
/// The first standard operators whose `Unsqueeze` is given its axes as an input.
const AXES_AS_INPUT: i64 = 13;

impl Graph {
    /// Lets ids from `first_id` on stand for these rows, as wide as the table that the graph's ids are looked up in;
    /// ids below it go to the table as before. To be called once, with all rows.
    ///
    /// # Errors
    /// [`ErrorKind::Model`] when the graph has not one table in which it looks up integers that it is fed, or the rows
    /// are not whole.
    pub fn extend_embedding(&mut self, first_id: u32, rows: &[f32]) -> Result<(), Error> {
        let refuse = |problem: String| Error::new(ErrorKind::Model, format!("{}: {problem}", self.name));
        let lookup = self.lookup().map_err(refuse)?;
        let width = lookup.width;
        if rows.is_empty() || !rows.len().is_multiple_of(width) {
            return Err(refuse(format!(
                "embeddings: expected rows of {width} numbers, got {} numbers",
                rows.len()
            )));
        }
        let opset = self.model.opset_import.iter().find(|opset| matches!(opset.domain(), "" | "ai.onnx"));
        let opset = opset.map_or(0, |opset| opset.version());
        if opset < OLDEST_OPSET {
            return Err(refuse(format!("embeddings: expected opset {OLDEST_OPSET} or newer, got {opset}")));
        }

        let name = |name: &str| format!("{PREFIX}/{name}");
        let bytes: Vec<u8> = match lookup.dtype {
            Dtype::F16 => rows.iter().flat_map(|&value| f16::from_f32(value).to_le_bytes()).collect(),
            Dtype::Bf16 => rows.iter().flat_map(|&value| bf16::from_f32(value).to_le_bytes()).collect(),
            _ => rows.iter().flat_map(|value| value.to_le_bytes()).collect(),
        };
        let constant = |constant: &str, dtype: Dtype, dims: &[usize], bytes: Vec<u8>| TensorProto {
            name: Some(name(constant)),
            dims: dims.iter().map(|&size| size as i64).collect(),
            data_type: Some(onnx_code(dtype)),
            raw_data: Some(bytes),
            ..Default::default()
        };
        self.graph.initializer.extend([
            constant("rows", lookup.dtype, &[rows.len() / width, width], bytes),
            constant("first", Dtype::I64, &[], i64::from(first_id).to_le_bytes().into()),
            constant("zero", Dtype::I64, &[], 0i64.to_le_bytes().into()),
        ]);

        let node = |op: &str, inputs: &[&str], output: &str| NodeProto {
            name: Some(name(output)),
            op_type: Some(op.into()),
            input: inputs.iter().map(|input| name(input)).collect(),
            output: vec![name(output)],
            ..Default::default()
        };
        let gather = &mut self.graph.node[lookup.node];
        let ids = std::mem::replace(&mut gather.input[1], name("table_ids"));
        let found = std::mem::replace(&mut gather.output[0], name("from_table"));
        let mut unsqueeze = node("Unsqueeze", &["is_in_table"], "is_row_in_table");
        if opset >= AXES_AS_INPUT {
            unsqueeze.input.push(name("last_axis"));
            self.graph.initializer.push(constant(
                "last_axis",
                Dtype::I64,
                &[1],
                (-1i64).to_le_bytes().into(),
            ));
        } else {
            unsqueeze.attribute.push(AttributeProto {
                name: Some("axes".into()),
                r#type: Some(super::proto::INTS),
                ints: vec![-1],
                ..Default::default()
            });
        }
        let before = [
            cast(&ids, &name("ids"), Dtype::I64),
            node("Less", &["ids", "first"], "is_in_table"),
            node("Where", &["is_in_table", "ids", "zero"], "table_ids"),
        ];
        // An id behind the last row is outside of the rows, which ONNX Runtime reports.
        let mut after = [
            node("Sub", &["ids", "first"], "place"),
            node("Where", &["is_in_table", "zero", "place"], "row_ids"),
            node("Gather", &["rows", "row_ids"], "from_rows"),
            unsqueeze,
            node("Where", &["is_row_in_table", "from_table", "from_rows"], "found"),
        ];
        after[4].output = vec![found];
        self.graph.node.splice(lookup.node + 1..lookup.node + 1, after);
        self.graph.node.splice(lookup.node..lookup.node, before);
        Ok(())
    }

    /// The one place where a table's rows are looked up by integers that the graph is fed.
    fn lookup(&self) -> Result<Lookup, String> {
        let mut lookups = Vec::new();
        for (index, node) in self.graph.node.iter().enumerate() {
            let [table, ids] = &node.input[..] else { continue };
            let axis =
                node.attribute.iter().find(|attribute| attribute.name() == "axis").map_or(0, |axis| axis.i());
            if node.op_type() != "Gather" || axis != 0 || node.output.len() != 1 {
                continue;
            }
            let (ids, _) =
                self.origin(ids, &["Cast", "Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze"]);
            let is_fed =
                |port: &super::Port| port.name == ids && matches!(port.dtype, Dtype::I64 | Dtype::I32);
            let (table, converted) = self.origin(table, &["Cast", "Identity"]);
            let table = self.graph.initializer.iter().find(|tensor| tensor.name() == table);
            if let (true, Some(table)) = (self.inputs.iter().any(is_fed), table) {
                lookups.push((index, table, converted));
            }
        }
        let [(node, table, converted)] = lookups[..] else {
            return Err(format!(
                "embeddings: expected one table that token ids are looked up in, got {}",
                lookups.len()
            ));
        };
        let code = converted.unwrap_or(table.data_type());
        let float = [Dtype::F32, Dtype::F16, Dtype::Bf16].into_iter().find(|&dtype| onnx_code(dtype) == code);
        match (float, &table.dims[..]) {
            (Some(dtype), &[_, width]) if width > 0 => Ok(Lookup { node, dtype, width: width as usize }),
            _ => Err(format!(
                "embeddings: {}: expected a matrix of floats, got ONNX type {code}, shape {:?}",
                table.name(),
                table.dims
            )),
        }
    }

    /// Where a value comes from if nodes of these kinds are looked through, and the type to which the last of them casts.
    fn origin<'a>(&'a self, mut value: &'a str, operators: &[&str]) -> (&'a str, Option<i32>) {
        let mut converted = None;
        // As many steps as there are nodes, in case that they go round in a circle.
        for _ in &self.graph.node {
            let mut nodes = self.graph.node.iter();
            let Some(node) = nodes.find(|node| node.output.iter().any(|output| output == value)) else {
                break;
            };
            let (true, Some(input)) = (operators.contains(&node.op_type()), node.input.first()) else {
                break;
            };
            let to = node.attribute.iter().find(|attribute| attribute.name() == "to");
            if let (None, Some(to)) = (converted, to.filter(|to| to.r#type() == INT)) {
                converted = i32::try_from(to.i()).ok();
            }
            value = input;
        }
        (value, converted)
    }
}

/// A `Gather` of token ids.
struct Lookup {
    /// Index into the nodes.
    node: usize,
    /// The type of the rows that it gives.
    dtype: Dtype,
    width: usize,
}
