//! Nodes, attributes and entries that several rewrites of a graph make. It knows no weights.

use super::dtype::onnx_code;
use super::proto::{self, AttributeProto, ModelProto, NodeProto, OperatorSetIdProto, StringStringEntryProto};
use crate::weights::Dtype;

/// The operators that only ONNX Runtime has.
pub(super) const MICROSOFT: &str = "com.microsoft";

pub(super) fn cast(from: &str, to: &str, dtype: Dtype) -> NodeProto {
    NodeProto {
        name: Some(format!("{to}/cast")),
        op_type: Some("Cast".into()),
        input: vec![from.into()],
        output: vec![to.into()],
        attribute: vec![integer("to", onnx_code(dtype).into())],
        ..Default::default()
    }
}

/// The version of the standard operators.
pub(super) fn opset(model: &ModelProto) -> i64 {
    let standard = model.opset_import.iter().find(|import| matches!(import.domain(), "" | "ai.onnx"));
    standard.map_or(1, |import| import.version())
}

/// Declares that a model has operators that only ONNX Runtime knows.
pub(super) fn import_microsoft(model: &mut ModelProto) {
    if !model.opset_import.iter().any(|import| import.domain() == MICROSOFT) {
        let import = OperatorSetIdProto { domain: Some(MICROSOFT.into()), version: Some(1) };
        model.opset_import.push(import);
    }
}

pub(super) fn integer(name: &str, value: i64) -> AttributeProto {
    AttributeProto { name: Some(name.into()), r#type: Some(proto::INT), i: Some(value), ..Default::default() }
}

pub(super) fn entry(key: &str, value: String) -> StringStringEntryProto {
    StringStringEntryProto { key: Some(key.into()), value: Some(value) }
}
