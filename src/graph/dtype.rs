//! The types of elements, as ONNX numbers them.

use crate::weights::Dtype;

pub(super) fn dtype(code: i32) -> Result<Dtype, String> {
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
