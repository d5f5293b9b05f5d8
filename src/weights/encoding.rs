//! How a tensor is stored where that is not how it is used: at odd offsets, in 8 bits with scales, or in blocks of a few bits.
//! It knows bytes and numbers, and nothing of files; what it gives is made for as long as a session needs it.

use std::ops::Range;

use half::{bf16, f16};

use super::Dtype;
use super::block::Block;

/// How many elements are decoded at a time: what is read of a file on the way is never more than this many.
const CHUNK: usize = 1 << 16;
/// The side of the rotation that the others are powers of: ComfyUI's `H4`.
const H4: usize = 4;
/// The largest numbers of the stored types.
const E4M3_MAX: f32 = 448.0;
const E5M2_MAX: f32 = 57344.0;
const INT8_MAX: f32 = 128.0;

/// How the elements of a tensor are stored.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Encoding {
    /// As they are used, but where they may not lie.
    Plain,
    /// In 8 bits: 4 of exponent, 3 of mantissa, no infinity ("fn", Micikevicius et al. 2022, arXiv:2209.05433, section 3).
    F8E4m3(Scale),
    /// In 8 bits: 5 of exponent, 2 of mantissa, the upper half of a 16-bit float.
    F8E5m2(Scale),
    /// ComfyUI's `int8_tensorwise`; with the side of the rotation of each row's groups (ConvRot), where there is one.
    Int8(Scale, Option<usize>),
    /// Blocks of GGUF.
    Block(Block),
}

/// What stored numbers are multiplied by.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Scale {
    One,
    Number(f32),
    /// One for each index of the outermost dimension.
    Rows(Vec<f32>),
}

impl Scale {
    fn largest(&self) -> f32 {
        match self {
            Self::One => 1.0,
            Self::Number(scale) => scale.abs(),
            Self::Rows(scales) => scales.iter().fold(0.0, |largest, scale| scale.abs().max(largest)),
        }
    }

    fn of(&self, row: usize) -> f32 {
        match self {
            Self::One => 1.0,
            Self::Number(scale) => *scale,
            Self::Rows(scales) => scales[row],
        }
    }
}

impl Encoding {
    /// The type of the elements as they are used, given the type that they are stored as where they are stored plainly.
    pub(super) fn dtype(&self, plain: Dtype) -> Dtype {
        let largest = match self {
            Self::Plain => return plain,
            Self::F8E4m3(scale) => E4M3_MAX * scale.largest(),
            Self::F8E5m2(scale) => E5M2_MAX * scale.largest(),
            // A rotation adds up as many numbers as its side, each by the square root of one part in so many.
            Self::Int8(scale, side) => INT8_MAX * scale.largest() * (side.unwrap_or(1) as f32).sqrt(),
            Self::Block(_) => return Dtype::F16,
        };
        if largest > f16::MAX.to_f32() { Dtype::F32 } else { Dtype::F16 }
    }

    /// How many bytes `count` elements take as they are stored; `None` where that is no whole number of blocks, or more than
    /// can be counted.
    pub(super) fn stored_bytes(&self, count: usize, plain: Dtype) -> Option<usize> {
        match self {
            Self::Plain => count.checked_mul(plain.size_bytes()),
            Self::F8E4m3(_) | Self::F8E5m2(_) | Self::Int8(..) => Some(count),
            Self::Block(block) => (count.is_multiple_of(block.elements()))
                .then(|| (count / block.elements()).checked_mul(block.bytes()))?,
        }
    }

    /// Decodes a tensor a few rows or blocks at a time: `read` gives stored bytes, from where to where; `write` takes the
    /// elements' bytes, and a number among them that their type cannot hold.
    pub(super) fn decode(
        &self,
        shape: &[usize],
        plain: Dtype,
        read: impl Fn(Range<usize>) -> Vec<u8>,
        mut write: impl FnMut(&[u8], Option<f32>),
    ) {
        let count: usize = shape.iter().product();
        if count == 0 {
            return;
        }
        let is_half = self.dtype(plain) == Dtype::F16;
        let row = count / shape.first().copied().unwrap_or(1);
        // Whole rows where rows matter; a multiple of four, so that what is written at once is one of eight bytes.
        let chunk = match self {
            Self::Plain | Self::Block(_) => CHUNK,
            Self::F8E4m3(_) | Self::F8E5m2(_) | Self::Int8(..) => {
                row * (CHUNK / row).max(1).next_multiple_of(4)
            }
        };
        let mut values: Vec<f32> = Vec::new();
        for first in (0..count).step_by(chunk) {
            let len = chunk.min(count - first);
            let bytes = |count| self.stored_bytes(count, plain).expect("a size that was checked");
            let stored = read(bytes(first)..bytes(first + len));
            if *self == Self::Plain {
                write(&stored, None);
                continue;
            }
            values.clear();
            match self {
                Self::Plain => {}
                Self::F8E4m3(_) => values.extend(stored.iter().map(|&byte| e4m3(byte))),
                Self::F8E5m2(_) => values.extend(stored.iter().map(|&byte| e5m2(byte))),
                Self::Int8(..) => values.extend(stored.iter().map(|&byte| f32::from(byte as i8))),
                Self::Block(block) => {
                    stored.chunks_exact(block.bytes()).for_each(|bytes| block.decode(bytes, &mut values))
                }
            }
            let was_finite = values.iter().all(|value| value.is_finite());
            if let Self::F8E4m3(scale) | Self::F8E5m2(scale) | Self::Int8(scale, _) = self
                && *scale != Scale::One
            {
                for (row, values) in (first / row..).zip(values.chunks_exact_mut(row)) {
                    let scale = scale.of(row);
                    values.iter_mut().for_each(|value| *value *= scale);
                }
            }
            if let Self::Int8(_, Some(side)) = self {
                values.chunks_exact_mut(*side).for_each(rotate);
            }
            if !is_half {
                let wide = values.iter().copied().find(|value| was_finite && !value.is_finite());
                write(&values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>(), wide);
                continue;
            }
            let (mut out, mut problem) = (Vec::with_capacity(2 * values.len()), None);
            for value in &values {
                let half = f16::from_f32(*value);
                if value.is_finite() && !half.is_finite() {
                    problem = Some(*value);
                }
                out.extend_from_slice(&half.to_le_bytes());
            }
            write(&out, problem);
        }
    }
}

/// `x R` for the rotation `R` that is the Kronecker power of `H4` (orthogonal and symmetric, so that it undoes itself), with
/// `H4 = 1/2 [[1, 1, 1, -1], [1, 1, -1, 1], [1, -1, 1, 1], [-1, 1, 1, 1]]`.
fn rotate(x: &mut [f32]) {
    let mut stride = 1;
    while stride < x.len() {
        for start in (0..x.len()).step_by(H4 * stride) {
            for at in start..start + stride {
                let [a, b, c, d] = [0, 1, 2, 3].map(|step| x[at + step * stride]);
                // Each row of H4 is the sum with one sign turned.
                let half = (a + b + c + d) / 2.0;
                x[at] = half - d;
                x[at + stride] = half - c;
                x[at + 2 * stride] = half - b;
                x[at + 3 * stride] = half - a;
            }
        }
        stride *= H4;
    }
}

/// Whether a rotation can have this side: a power of four.
pub(super) fn is_side(side: usize) -> bool {
    side.is_power_of_two() && side.trailing_zeros().is_multiple_of(2) && side >= H4
}

fn e4m3(byte: u8) -> f32 {
    let (exponent, mantissa) = (i32::from(byte >> 3 & 15), f32::from(byte & 7));
    let size = match (exponent, byte & 7) {
        (15, 7) => f32::NAN,
        (0, _) => mantissa / 8.0 * 2f32.powi(-6),
        _ => (1.0 + mantissa / 8.0) * 2f32.powi(exponent - 7),
    };
    if byte & 0x80 == 0 { size } else { -size }
}

fn e5m2(byte: u8) -> f32 {
    f16::from_bits(u16::from(byte) << 8).to_f32()
}

/// A number stored as floats of some width.
pub(super) fn floats(dtype: Dtype, bytes: &[u8]) -> Option<Vec<f32>> {
    Some(match dtype {
        Dtype::F32 => bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect(),
        Dtype::F16 => bytes.as_chunks().0.iter().map(|bytes| f16::from_le_bytes(*bytes).to_f32()).collect(),
        Dtype::Bf16 => bytes.as_chunks().0.iter().map(|bytes| bf16::from_le_bytes(*bytes).to_f32()).collect(),
        Dtype::F64 => bytes.as_chunks().0.iter().map(|bytes| f64::from_le_bytes(*bytes) as f32).collect(),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The numbers, and one that their type cannot hold.
    fn decoded(encoding: &Encoding, shape: &[usize], stored: &[u8]) -> Result<Vec<f32>, f32> {
        let (mut out, mut problem) = (Vec::new(), None);
        encoding.decode(
            shape,
            Dtype::F16,
            |range| stored[range].to_vec(),
            |bytes, wide| {
                out.extend_from_slice(bytes);
                problem = problem.or(wide);
            },
        );
        problem.map_or_else(|| Ok(floats(encoding.dtype(Dtype::F16), &out).unwrap()), Err)
    }

    /// Every byte, against what the format's tables say of its ends, and against the neighbours' distances.
    #[test]
    fn all_numbers_of_eight_bits() {
        let bytes: Vec<u8> = (0..=255).collect();
        let got = decoded(&Encoding::F8E4m3(Scale::One), &[256], &bytes).unwrap();
        let at = |byte: u8| got[usize::from(byte)];
        assert_eq!([at(0x7e), at(0x08), at(0x07), at(0x01)], [448.0, 0.015625, 0.013671875, 0.001953125]);
        assert_eq!([at(0x38), at(0xb8), at(0x30), at(0x40)], [1.0, -1.0, 0.5, 2.0]);
        assert!(at(0x7f).is_nan() && at(0xff).is_nan() && got.iter().filter(|x| x.is_nan()).count() == 2);
        assert!(at(0x80) == 0.0 && at(0x80).is_sign_negative());
        assert!((0..0x7e).all(|byte| at(byte) < at(byte + 1)), "they rise");

        let got = decoded(&Encoding::F8E5m2(Scale::One), &[256], &bytes).unwrap();
        let at = |byte: u8| got[usize::from(byte)];
        assert_eq!([at(0x7b), at(0x04), at(0x01), at(0x3c)], [57344.0, 6.1035156e-5, 1.5258789e-5, 1.0]);
        assert!(at(0x7c) == f32::INFINITY && at(0xfc) == f32::NEG_INFINITY);
        assert!([0x7d, 0x7e, 0x7f, 0xfd, 0xfe, 0xff].map(at).iter().all(|x| x.is_nan()));
    }

    #[test]
    fn scales_are_of_the_tensor_or_of_its_rows() {
        let one = 0x38;
        let rows = Encoding::F8E4m3(Scale::Rows(vec![0.5, 2.0, 3.0]));
        assert_eq!(decoded(&rows, &[3, 2], &[one; 6]).unwrap(), [0.5, 0.5, 2.0, 2.0, 3.0, 3.0]);
        let number = Encoding::Int8(Scale::Number(0.25), None);
        assert_eq!(decoded(&number, &[4], &[1, 0xff, 127, 0x80]).unwrap(), [0.25, -0.25, 31.75, -32.0]);
    }

    /// Many chunks and a rest, whatever the shape.
    #[test]
    fn long_tensors_are_decoded_in_pieces() {
        for shape in [vec![3, 70_000], vec![70_001, 3], vec![200_003], vec![1, 5, 40_001]] {
            let count = shape.iter().product::<usize>();
            let stored: Vec<u8> = (0..count).map(|at| (at * 7 % 251) as u8).collect();
            let scales: Vec<f32> = (0..shape[0]).map(|row| 1.0 + (row % 5) as f32).collect();
            let got = decoded(&Encoding::Int8(Scale::Rows(scales), None), &shape, &stored).unwrap();
            let row = count / shape[0];
            let naive: Vec<f32> = stored
                .iter()
                .enumerate()
                .map(|(at, &byte)| f32::from(byte as i8) * (1.0 + (at / row % 5) as f32))
                .collect();
            assert!(got == naive, "{shape:?}");
        }
    }

    /// Against the product with the matrix itself.
    #[test]
    fn the_rotation_is_the_kronecker_power_and_undoes_itself() {
        const ROWS: [[f32; 4]; 4] =
            [[1.0, 1.0, 1.0, -1.0], [1.0, 1.0, -1.0, 1.0], [1.0, -1.0, 1.0, 1.0], [-1.0, 1.0, 1.0, 1.0]];
        for side in [4usize, 16, 64, 256] {
            let entry = |mut row: usize, mut column: usize| {
                let mut product = 1.0;
                let mut size = side;
                while size > 1 {
                    product *= ROWS[row % 4][column % 4] / 2.0;
                    (row, column, size) = (row / 4, column / 4, size / 4);
                }
                product
            };
            let x: Vec<f32> = (0..side).map(|at| ((at * 37 + 11) % 101) as f32 - 50.0).collect();
            let naive: Vec<f32> =
                (0..side).map(|column| (0..side).map(|row| x[row] * entry(row, column)).sum()).collect();
            let mut got = x.clone();
            rotate(&mut got);
            assert!(got.iter().zip(&naive).all(|(a, b)| (a - b).abs() < 1e-3), "{side}");
            rotate(&mut got);
            assert!(got.iter().zip(&x).all(|(a, b)| (a - b).abs() < 1e-3), "{side}");
            assert!(is_side(side) && !is_side(2 * side) && !is_side(side + 1));
        }
        assert!(!is_side(1) && !is_side(0));
    }

    #[test]
    fn numbers_beyond_16_bit_floats_are_kept_or_told() {
        let wide = Encoding::F8E4m3(Scale::Number(1000.0));
        assert_eq!(wide.dtype(Dtype::F16), Dtype::F32);
        assert_eq!(decoded(&wide, &[2], &[0x38, 0x7e]).unwrap(), [1000.0, 448_000.0]);
        // Too large for 32 bits as well.
        let huge = Encoding::Int8(Scale::Number(1e38), None);
        assert_eq!(decoded(&huge, &[2], &[3, 1]).unwrap(), [3e38, 1e38]);
        assert_eq!(decoded(&huge, &[2], &[1, 4]), Err(f32::INFINITY));
        let block = [&f16::from_f32(60_000.0).to_le_bytes()[..], &[2; 32]].concat();
        assert_eq!(decoded(&Encoding::Block(Block::Q8_0), &[32], &block), Err(120_000.0));
    }
}
