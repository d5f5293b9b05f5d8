//! GGUF files. Even first byte: bytes as they come, against a naive reader of the header; odd: a made-up file, which has
//! to be read. In both, every number is compared with ggml's formula for one element of a block.

use std::collections::{BTreeMap, BTreeSet};

use calotype::weights::{Dtype, Weights};
use half::f16;

use super::file::{self, Choices};

/// Numbers of plain types, and the bytes of one.
const PLAIN: [(u32, Dtype, usize); 8] = [
    (0, Dtype::F32, 4),
    (1, Dtype::F16, 2),
    (24, Dtype::I8, 1),
    (25, Dtype::I16, 2),
    (26, Dtype::I32, 4),
    (27, Dtype::I64, 8),
    (28, Dtype::F64, 8),
    (30, Dtype::Bf16, 2),
];
/// Numbers of block types, the elements and the bytes of a block.
const BLOCKS: [(u32, usize, usize); 11] = [
    (2, 32, 18),
    (3, 32, 20),
    (6, 32, 22),
    (7, 32, 24),
    (8, 32, 34),
    (10, 256, 84),
    (11, 256, 110),
    (12, 256, 144),
    (13, 256, 176),
    (14, 256, 210),
    (15, 256, 292),
];
/// Names with these ends are scales of other tensors.
const SCALE_ENDS: [&str; 5] = ["scale_weight", "weight_scale", "comfy_quant", "_input", "input_scale"];

pub fn run(bytes: &[u8]) {
    match bytes.split_first() {
        Some((kind, rest)) if kind % 2 == 1 => made_up(rest),
        Some((_, rest)) => raw(rest),
        None => {}
    }
}

fn raw(bytes: &[u8]) {
    let (got, expected) = (file::weights(bytes), naive(bytes));
    match (got, expected) {
        (Ok(weights), Some(header)) => {
            // A file may be of another format as well.
            compare(&weights, &header, bytes);
        }
        (Ok(_), None) => assert!(!bytes.starts_with(b"GGUF"), "read, and refused by the naive reader"),
        (Err(error), Some(header)) => {
            assert!(!is_sound(&header, bytes), "refused, and read by the naive reader: {error}");
        }
        (Err(_), None) => {}
    }
}

/// A file of a few tensors.
fn made_up(bytes: &[u8]) {
    let mut choices = Choices(bytes);
    let count = 1 + choices.below(4);
    let alignment = 8usize << choices.below(5);
    let text = |text: &str| [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat();
    let (mut keys, mut tensors, mut data) = (1u64, Vec::new(), Vec::new());
    let mut head =
        [text("general.alignment"), 4u32.to_le_bytes().to_vec(), (alignment as u32).to_le_bytes().to_vec()]
            .concat();
    for number in 0..count {
        let name = format!("block.{number}.weight");
        let kind = choices.below(PLAIN.len() + BLOCKS.len());
        let (code, elements, size) = match PLAIN.get(kind) {
            Some((code, _, size)) => (*code, 1, *size),
            None => BLOCKS[kind - PLAIN.len()],
        };
        // The innermost dimension first.
        let mut dims = vec![elements as u64 * (1 + choices.below(3)) as u64];
        (0..choices.below(4)).for_each(|_| dims.push(1 + choices.below(3) as u64));
        let total = dims.iter().product::<u64>() as usize;
        let is_turned = choices.byte() % 4 == 0;
        if is_turned {
            let shape: Vec<u8> = dims.iter().flat_map(|dim| (*dim as u32).to_le_bytes()).collect();
            head.extend(text(&format!("comfy.gguf.orig_shape.{name}")));
            head.extend([9u32.to_le_bytes(), 5u32.to_le_bytes()].concat());
            head.extend((dims.len() as u64).to_le_bytes());
            head.extend(shape);
            keys += 1;
        }
        tensors.extend(text(&name));
        tensors.extend((dims.len() as u32).to_le_bytes());
        dims.iter().for_each(|dim| tensors.extend(dim.to_le_bytes()));
        tensors.extend(code.to_le_bytes());
        tensors.extend((data.len() as u64).to_le_bytes());
        data.extend((0..total / elements * size).map(|_| choices.byte()));
        data.resize(data.len().next_multiple_of(alignment), 0);
    }
    let mut whole = [&b"GGUF"[..], &3u32.to_le_bytes(), &(count as u64).to_le_bytes()].concat();
    whole.extend(keys.to_le_bytes());
    whole.extend(head);
    whole.extend(tensors);
    whole.resize(whole.len().next_multiple_of(alignment), 0);
    whole.extend(data);
    let header = naive(&whole).expect("a whole file");
    assert!(is_sound(&header, &whole));
    compare(&file::weights(&whole).expect("a whole file"), &header, &whole);
}

fn compare(weights: &Weights, header: &[Declared], bytes: &[u8]) {
    if header.iter().any(|tensor| is_scale(&tensor.name)) {
        return;
    }
    let readable: BTreeMap<&str, &Declared> = header
        .iter()
        .filter(|tensor| tensor.len_bytes().is_some())
        .map(|tensor| (tensor.name.as_str(), tensor))
        .collect();
    assert_eq!(
        weights.iter().map(|(name, _)| name).collect::<Vec<_>>(),
        readable.keys().copied().collect::<Vec<_>>()
    );
    for (name, view) in weights.iter() {
        let tensor = readable[name];
        let shape: Vec<u64> = view.shape().iter().map(|dim| *dim as u64).collect();
        assert_eq!(shape, tensor.shape, "{name}");
        let stored = &bytes[tensor.offset..tensor.offset + tensor.len_bytes().expect("a known type")];
        let data = view.to_bytes();
        if let Some((_, dtype, _)) = PLAIN.iter().find(|(code, ..)| *code == tensor.code) {
            assert_eq!(view.dtype(), *dtype, "{name}");
            assert!(data == stored, "{name}: other bytes");
            continue;
        }
        assert_eq!(view.dtype(), Dtype::F16, "{name}");
        let (code, elements, size) =
            *BLOCKS.iter().find(|(code, ..)| *code == tensor.code).expect("a kind of block");
        let got: Vec<f16> = data.as_chunks().0.iter().map(|two| f16::from_le_bytes(*two)).collect();
        assert_eq!(got.len(), stored.len() / size * elements, "{name}");
        for (at, got) in got.into_iter().enumerate() {
            let block = &stored[at / elements * size..][..size];
            let (expected, summed) = element(code, block, at % elements);
            assert!(is_near(got, expected, summed), "{name}: {at}: expected {expected}, got {got}");
        }
    }
}

/// Whether a 16-bit float is this number, whose terms' sizes add up to `summed`.
pub(super) fn is_near(got: f16, expected: f64, summed: f64) -> bool {
    let (got, most) = (got.to_f64(), f16::MAX.to_f64());
    if !expected.is_finite() || !summed.is_finite() {
        return !got.is_finite();
    }
    let slack = 1e-6 * summed + expected.abs() / 1024.0 + 1e-7;
    if got.is_infinite() { expected.abs() + slack >= most } else { (got - expected).abs() <= slack }
}

/// A number of a block and the sum of its terms' sizes: `dequantize_row_*` of ggml for one index.
fn element(code: u32, block: &[u8], at: usize) -> (f64, f64) {
    let half = |from: usize| f16::from_le_bytes([block[from], block[from + 1]]).to_f64();
    let word = |from: usize| u32::from_le_bytes(*block[from..].first_chunk().expect("four bytes"));
    let nibble = |from: usize| match at {
        0..16 => block[from + at] & 15,
        _ => block[from + at - 16] >> 4,
    };
    let sum = |a: f64, b: f64| (a + b, a.abs() + b.abs());
    // Of blocks of 256: the half, the quarter of it, the place in that.
    let (part, quarter, place) = (at / 128, at % 128 / 32, at % 32);
    let group = 8 * part + 2 * quarter + place / 16;
    match code {
        2 => sum(half(0) * f64::from(nibble(2)), -8.0 * half(0)),
        3 => sum(half(0) * f64::from(nibble(4)), half(2)),
        6 | 7 => {
            let (high, low, least) = if code == 6 { (2, 6, -16.0 * half(0)) } else { (4, 8, half(2)) };
            let fifth = (word(high) >> at & 1) << 4;
            sum(half(0) * f64::from(u32::from(nibble(low)) | fifth), least)
        }
        8 => sum(half(0) * f64::from(block[2 + at] as i8), 0.0),
        10 => {
            let low = block[16 + 32 * part + place] >> (2 * quarter) & 3;
            let scales = block[group];
            sum(half(80) * f64::from(scales & 15) * f64::from(low), -half(82) * f64::from(scales >> 4))
        }
        11 => {
            let low = block[32 + 32 * part + place] >> (2 * quarter) & 3;
            let high = block[place] >> (4 * part + quarter) & 1;
            let packed = &block[96..108];
            let four = if group < 8 { packed[group] & 15 } else { packed[group - 8] >> 4 };
            let two = packed[8 + group % 4] >> (group / 4 * 2) & 3;
            let scale = half(108) * (f64::from(four | two << 4) - 32.0);
            sum(scale * f64::from(low), if high == 1 { 0.0 } else { -4.0 * scale })
        }
        12 | 13 => {
            let (part, side, place) = (at / 64, at % 64 / 32, at % 32);
            let (group, packed) = (2 * part + side, &block[4..16]);
            let (scale, least) = if group < 4 {
                (packed[group] & 63, packed[group + 4] & 63)
            } else {
                (
                    packed[group + 4] & 15 | packed[group - 4] >> 6 << 4,
                    packed[group + 4] >> 4 | packed[group] >> 6 << 4,
                )
            };
            let low_start = if code == 12 { 16 } else { 48 };
            let low = block[low_start + 32 * part + place] >> (4 * side) & 15;
            let fifth = if code == 12 { 0 } else { (block[16 + place] >> group & 1) << 4 };
            sum(half(0) * f64::from(scale) * f64::from(low | fifth), -half(2) * f64::from(least))
        }
        14 => {
            let low = block[64 * part + quarter % 2 * 32 + place] >> (quarter / 2 * 4) & 15;
            let high = block[128 + 32 * part + place] >> (2 * quarter) & 3;
            let scale = half(208) * f64::from(block[192 + group] as i8);
            sum(scale * f64::from(low | high << 4), -32.0 * scale)
        }
        15 => sum(f64::from(f32::from_bits(word(0))) * f64::from(block[4 + at] as i8), 0.0),
        other => unreachable!("{other} is no kind of block"),
    }
}

struct Declared {
    name: String,
    /// Outermost dimension first.
    shape: Vec<u64>,
    code: u32,
    /// From the start of the file.
    offset: usize,
}

impl Declared {
    /// The size of its data, if its type is one that is read.
    fn len_bytes(&self) -> Option<usize> {
        let count = self.shape.iter().try_fold(1usize, |count, dim| count.checked_mul(*dim as usize))?;
        if let Some((.., size)) = PLAIN.iter().find(|(code, ..)| *code == self.code) {
            return count.checked_mul(*size);
        }
        let (_, elements, size) = BLOCKS.iter().find(|(code, ..)| *code == self.code)?;
        (count / elements).checked_mul(*size)
    }

    fn is_whole(&self) -> bool {
        let count = self.shape.iter().try_fold(1u64, |count, dim| count.checked_mul(*dim));
        let block =
            BLOCKS.iter().find(|(code, ..)| *code == self.code).map_or(1, |(_, elements, _)| *elements);
        count.is_some_and(|count| count % block as u64 == 0) && self.len_bytes().is_some()
    }
}

fn is_scale(name: &str) -> bool {
    name.contains("scaled_fp8") || SCALE_ENDS.iter().any(|end| name.ends_with(end))
}

/// Whether nothing is wrong with the tensors.
fn is_sound(header: &[Declared], bytes: &[u8]) -> bool {
    let names: BTreeSet<&str> = header.iter().map(|tensor| tensor.name.as_str()).collect();
    let mut spans: Vec<(usize, usize)> = Vec::new();
    for tensor in header {
        let end = tensor.len_bytes().and_then(|len| tensor.offset.checked_add(len));
        match end {
            Some(end) if end <= bytes.len() && tensor.is_whole() => spans.push((tensor.offset, end)),
            _ => return false,
        }
    }
    spans.sort();
    names.len() == header.len() && spans.windows(2).all(|pair| pair[0].1 <= pair[1].0)
}

/// The header, by `docs/gguf.md` of ggml.
fn naive(bytes: &[u8]) -> Option<Vec<Declared>> {
    let mut rest = bytes.strip_prefix(b"GGUF")?;
    if !matches!(u32(&mut rest)?, 2 | 3) {
        return None;
    }
    let (tensors, keys) = (u64(&mut rest)?, u64(&mut rest)?);
    let (mut alignment, mut shapes) = (32, BTreeMap::new());
    if tensors > 1 << 16 || keys > 1 << 16 {
        return None;
    }
    for _ in 0..keys {
        let key = String::from_utf8(text(&mut rest)?.to_vec()).ok()?;
        let kind = u32(&mut rest)?;
        let integers = value(&mut rest, kind, 0)?;
        if key == "general.alignment" && !matches!(kind, 8 | 9) {
            alignment = integers.first().copied().unwrap_or(alignment);
        }
        if let (9, Some(name)) = (kind, key.strip_prefix("comfy.gguf.orig_shape.")) {
            (integers.len() <= 8).then_some(())?;
            shapes.insert(name.to_owned(), integers);
        }
    }
    if !alignment.is_power_of_two() || alignment > 1 << 16 {
        return None;
    }
    let mut declared = Vec::new();
    for _ in 0..tensors {
        let name = String::from_utf8(text(&mut rest)?.to_vec()).ok()?;
        let count = u32(&mut rest)?;
        let mut shape =
            (0..(count <= 8).then_some(count)?).map(|_| u64(&mut rest)).collect::<Option<Vec<_>>>()?;
        shape.reverse();
        declared.push((name, shape, u32(&mut rest)?, u64(&mut rest)?));
    }
    let start = (bytes.len() - rest.len()).next_multiple_of(alignment as usize);
    let size = |shape: &[u64]| shape.iter().try_fold(1u64, |size, dim| size.checked_mul(*dim));
    let mut found = Vec::new();
    for (name, mut shape, code, offset) in declared {
        if let Some(other) = shapes.remove(&name) {
            if size(&other) != size(&shape) {
                return None;
            }
            shape = other;
        }
        let offset = start.checked_add(usize::try_from(offset).ok()?)?;
        found.push(Declared { name, shape, code, offset });
    }
    Some(found)
}

/// A value, of which integers are given: its own, or those of a list.
fn value(rest: &mut &[u8], kind: u32, depth: usize) -> Option<Vec<u64>> {
    Some(match kind {
        0 | 1 | 7 => vec![take(rest, 1)?[0].into()],
        2 | 3 => vec![u16::from_le_bytes(*take(rest, 2)?.first_chunk()?).into()],
        4 | 5 => vec![u32(rest)?.into()],
        10 | 11 => vec![u64(rest)?],
        6 => take(rest, 4).map(|_| Vec::new())?,
        12 => take(rest, 8).map(|_| Vec::new())?,
        8 => {
            let len = usize::try_from(u64(rest)?).ok()?;
            take(rest, len).map(|_| Vec::new())?
        }
        9 if depth < 4 => {
            let (kind, count) = (u32(rest)?, u64(rest)?);
            let mut integers = Vec::new();
            for _ in 0..count {
                let inner = value(rest, kind, depth + 1)?;
                // Every value takes bytes, so that this ends.
                if kind != 9 {
                    integers.extend(inner);
                }
            }
            integers
        }
        _ => return None,
    })
}

fn take<'a>(rest: &mut &'a [u8], count: usize) -> Option<&'a [u8]> {
    let (taken, left) = rest.split_at_checked(count)?;
    *rest = left;
    Some(taken)
}

fn u32(rest: &mut &[u8]) -> Option<u32> {
    take(rest, 4).and_then(|bytes| Some(u32::from_le_bytes(*bytes.first_chunk()?)))
}

fn u64(rest: &mut &[u8]) -> Option<u64> {
    take(rest, 8).and_then(|bytes| Some(u64::from_le_bytes(*bytes.first_chunk()?)))
}

/// A name, which is short.
fn text<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let len = usize::try_from(u64(rest)?).ok()?;
    take(rest, (len <= 1 << 16).then_some(len)?)
}
