//! Weights of 8 bits with scales beside them (scaled fp8, `int8_tensorwise` with and without ConvRot): a made-up module is
//! read as the naive sum says, or is missing where its parts contradict each other.

use calotype::weights::Dtype;
use half::{bf16, f16};

use super::file::{self, Choices, Tensor};
use super::gguf::is_near;

const MODULE: &str = "mid.block.proj";

/// What stands in `.comfy_quant`.
enum Format {
    None,
    Known {
        name: &'static str,
        side: Option<usize>,
    },
    /// Bytes as they come.
    Raw(Vec<u8>),
}

pub fn run(bytes: &[u8]) {
    let mut choices = Choices(bytes);
    let stored = ["F8_E4M3", "F8_E5M2", "I8", "F16"][choices.below(4)];
    let rows = 1 + choices.below(5);
    let inner: &[usize] = [&[][..], &[1], &[4], &[5], &[16], &[64], &[2, 2], &[16, 3, 3]][choices.below(8)];
    let shape: Vec<usize> = std::iter::once(rows).chain(inner.iter().copied()).collect();
    let count: usize = shape.iter().product();
    let scale = (choices.byte() % 4 > 0).then(|| {
        let shapes: [Vec<usize>; 7] =
            [vec![], vec![1], vec![rows], vec![rows, 1], vec![1, rows], vec![rows, 1, 1], vec![rows + 1]];
        let shape = shapes[choices.below(7)].clone();
        let dtype = ["F32", "F16", "BF16", "F64", "I32"][choices.below(5)];
        let values: Vec<f32> = (0..shape.iter().product()).map(|_| scale_value(&mut choices)).collect();
        let suffix = ["scale_weight", "weight_scale"][choices.below(2)];
        (shape, dtype, values, suffix)
    });
    let format = match choices.byte() % 8 {
        0..=2 => Format::None,
        3..=6 => Format::Known {
            name: ["int8_tensorwise", "float8_e4m3fn", "float8_e5m2", "nvfp4"][choices.below(4)],
            side: (choices.byte() % 2 == 0).then(|| [0, 1, 2, 4, 8, 16, 64][choices.below(7)]),
        },
        _ => {
            let len = choices.below(64);
            Format::Raw((0..len).map(|_| choices.byte()).collect())
        }
    };
    let size = if stored == "F16" { 2 } else { 1 };
    let data: Vec<u8> = (0..count * size).map(|_| choices.byte()).collect();

    let mut tensors: Vec<Tensor> = vec![(format!("{MODULE}.weight"), stored, shape.clone(), data.clone())];
    if let Some((shape, dtype, values, suffix)) = &scale {
        tensors.push((format!("{MODULE}.{suffix}"), dtype, shape.clone(), floats(dtype, values)));
    }
    let json = match &format {
        Format::None => None,
        Format::Known { name, side: None } => Some(format!(r#"{{"format":"{name}"}}"#).into_bytes()),
        Format::Known { name, side: Some(side) } => {
            Some(format!(r#"{{"format":"{name}","convrot":true,"convrot_groupsize":{side}}}"#).into_bytes())
        }
        Format::Raw(bytes) => Some(bytes.clone()),
    };
    if let Some(json) = json {
        tensors.push((format!("{MODULE}.comfy_quant"), "U8", vec![json.len()], json));
    }
    // Parts come in any order.
    if choices.byte() % 2 == 0 {
        tensors.reverse();
    }
    let weights = file::weights(&file::safetensors(&tensors)).expect("a whole file");
    let got = weights.get(&format!("{MODULE}.weight"));
    assert_eq!(weights.iter().count(), usize::from(got.is_some()), "parts stayed");
    if matches!(format, Format::Raw(_)) {
        return;
    }
    let scales = match &scale {
        None => Some(vec![1.0]),
        Some((shape, dtype, values, _)) => {
            let total = values.len();
            let is_fitting = (total == 1 || total == rows) && shape.iter().skip(1).all(|&dim| dim == 1);
            let stored: Vec<f64> = values.iter().map(|&value| rounded(dtype, value)).collect();
            (is_fitting && *dtype != "I32" && stored.iter().all(|scale| scale.is_finite())).then_some(stored)
        }
    };
    let Some((expected, is_wide)) = expected(stored, &shape, &data, scale.is_some(), scales, &format) else {
        assert!(got.is_none(), "read where parts contradict each other");
        return;
    };
    let got = got.expect("parts that fit");
    assert_eq!(got.shape(), shape);
    let Some(expected) = expected else {
        // As it is stored.
        assert_eq!((got.dtype().name(), got.to_bytes()), (stored, data));
        return;
    };
    assert_eq!(got.dtype(), if is_wide { Dtype::F32 } else { Dtype::F16 });
    let bytes = got.to_bytes();
    for (at, (expected, summed)) in expected.into_iter().enumerate() {
        if is_wide {
            let got = f64::from(f32::from_le_bytes(*bytes[4 * at..].first_chunk().expect("four bytes")));
            // What overflows on the way is an error when the tensor is used.
            let is_large = summed > f64::from(f32::MAX) / 4.0;
            let is_same =
                (got - expected).abs() <= 1e-5 * summed || !got.is_finite() && !expected.is_finite();
            let is_same = is_same || is_large;
            assert!(is_same, "{at}: expected {expected}, got {got}");
        } else {
            let got = f16::from_le_bytes(*bytes[2 * at..].first_chunk().expect("two bytes"));
            assert!(is_near(got, expected, summed), "{at}: expected {expected}, got {got}");
        }
    }
}

/// Per number its value and the sum of its terms' sizes; none where it stays as it is stored. With whether 16-bit floats
/// are too narrow.
type Expected = (Option<Vec<(f64, f64)>>, bool);

fn expected(
    stored: &str,
    shape: &[usize],
    data: &[u8],
    has_scale: bool,
    scales: Option<Vec<f64>>,
    format: &Format,
) -> Option<Expected> {
    let (name, side) = match format {
        Format::Known { name, side } => (Some(*name), *side),
        _ => (None, None),
    };
    if !has_scale && name.is_none() && matches!(stored, "I8" | "F16") {
        return Some((None, false));
    }
    let scales = scales?;
    let (number, most): (fn(u8) -> f64, f64) = match (stored, name) {
        ("F8_E4M3", None | Some("float8_e4m3fn")) => (e4m3, 448.0),
        ("F8_E5M2", None | Some("float8_e5m2")) => (e5m2, 57344.0),
        ("I8", Some("int8_tensorwise")) if has_scale => (|byte| f64::from(byte as i8), 128.0),
        ("F16", None) if scales == [1.0] => return Some((None, false)),
        _ => return None,
    };
    let row: usize = shape[1..].iter().product();
    let largest = scales.iter().fold(0.0, |largest: f64, scale| largest.max(scale.abs()));
    let side = if stored == "I8" { side } else { None };
    if let Some(side) = side
        && !([4, 16, 64, 256].contains(&side) && row.is_multiple_of(side))
    {
        return None;
    }
    let values: Vec<f64> = data
        .iter()
        .enumerate()
        .map(|(at, byte)| number(*byte) * scales[if scales.len() == 1 { 0 } else { at / row }])
        .collect();
    let group = side.unwrap_or(1);
    let rotated = values.chunks_exact(group).flat_map(|group| {
        (0..group.len()).map(|column| {
            let terms = group.iter().enumerate().map(|(at, value)| value * rotation(group.len(), at, column));
            terms.fold((0.0, 0.0), |(sum, summed), term| (sum + term, summed + f64::abs(term)))
        })
    });
    // Near the limit either is right, and the exact border is a matter of rounding in 32 bits.
    let bound = most * largest * (group as f64).sqrt();
    Some((Some(rotated.collect()), bound as f32 > 65504.0))
}

/// An entry of the Kronecker power of ComfyUI's `H4`.
fn rotation(mut side: usize, mut row: usize, mut column: usize) -> f64 {
    const H4: [[f64; 4]; 4] =
        [[0.5, 0.5, 0.5, -0.5], [0.5, 0.5, -0.5, 0.5], [0.5, -0.5, 0.5, 0.5], [-0.5, 0.5, 0.5, 0.5]];
    let mut product = 1.0;
    while side > 1 {
        product *= H4[row % 4][column % 4];
        (row, column, side) = (row / 4, column / 4, side / 4);
    }
    product
}

fn e4m3(byte: u8) -> f64 {
    let sign = if byte & 0x80 == 0 { 1.0 } else { -1.0 };
    match byte & 0x7f {
        0x7f => f64::NAN,
        low @ 0..8 => sign * f64::from(low) / 512.0,
        low => sign * f64::from(8 + (low & 7)) * 2f64.powi(i32::from(low >> 3) - 10),
    }
}

fn e5m2(byte: u8) -> f64 {
    let sign = if byte & 0x80 == 0 { 1.0 } else { -1.0 };
    match byte & 0x7f {
        0x7c => sign * f64::INFINITY,
        0x7d.. => f64::NAN,
        low @ 0..4 => sign * f64::from(low) / 65536.0,
        low => sign * f64::from(4 + (low & 3)) * 2f64.powi(i32::from(low >> 2) - 17),
    }
}

fn scale_value(choices: &mut Choices<'_>) -> f32 {
    match choices.byte() {
        0..=239 => choices.number(),
        240..=247 => 1.0,
        248..=251 => choices.number() * 1000.0,
        252 => f32::INFINITY,
        253 => f32::NAN,
        254 => 1e-30,
        255 => 1e36,
    }
}

fn rounded(dtype: &str, value: f32) -> f64 {
    match dtype {
        "F16" => f16::from_f32(value).to_f64(),
        "BF16" => bf16::from_f32(value).to_f64(),
        _ => value.into(),
    }
}

fn floats(dtype: &str, values: &[f32]) -> Vec<u8> {
    let bytes = |value: &f32| match dtype {
        "F16" => f16::from_f32(*value).to_le_bytes().to_vec(),
        "BF16" => bf16::from_f32(*value).to_le_bytes().to_vec(),
        "F64" => f64::from(*value).to_le_bytes().to_vec(),
        "I32" => (*value as i32).to_le_bytes().to_vec(),
        _ => value.to_le_bytes().to_vec(),
    };
    values.iter().flat_map(bytes).collect()
}
