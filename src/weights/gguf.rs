//! The GGUF header: keys, then the tensors' names, sizes, types and places.
//! Source: `docs/gguf.md` of ggml. It is given a reader and says what is wrong; it knows nothing of what is in blocks.

use std::collections::BTreeMap;
use std::io::{self, Read};

use super::Dtype;
use super::block::Block;
use super::encoding::Encoding;

/// What such a file begins with.
pub(super) const MAGIC: [u8; 4] = *b"GGUF";
/// The versions that are read: they differ from the first in the width of counts, and from each other in nothing here.
const VERSIONS: std::ops::RangeInclusive<u32> = 2..=3;
/// The longest header that is read; that of safetensors.
const HEADER_LIMIT_BYTES: u64 = 100_000_000;
/// The most tensors and keys that a file is believed to have.
const MAX_TENSORS: u64 = 1 << 16;
const MAX_KEYS: u64 = 1 << 16;
/// The longest name of a key or tensor.
const MAX_NAME_BYTES: u64 = 1 << 16;
/// The most dimensions of a tensor.
const MAX_DIMENSIONS: u32 = 8;
/// How deep lists may lie in lists.
const MAX_DEPTH: usize = 4;
/// What data begins at a multiple of where the file does not say, and the most that it may.
const ALIGNMENT: u64 = 32;
const MAX_ALIGNMENT: u64 = 1 << 16;

/// The key of the network's kind, and what stands before the name of a tensor whose shape ComfyUI-GGUF changed to make whole
/// blocks of it.
pub(super) const ARCHITECTURE: &str = "general.architecture";
const SHAPE: &str = "comfy.gguf.orig_shape.";

/// A file's header.
#[derive(Debug)]
pub(super) struct Header {
    pub(super) tensors: Vec<Tensor>,
    /// The keys with texts.
    pub(super) texts: BTreeMap<String, String>,
}

/// A tensor of the header.
#[derive(Debug)]
pub(super) struct Tensor {
    pub(super) name: String,
    /// Outermost dimension first.
    pub(super) shape: Vec<usize>,
    /// What it is stored as; for blocks, what they become. Without one the name of a type that cannot be read.
    pub(super) kind: Result<(Dtype, Encoding), String>,
    /// From the start of the file.
    pub(super) offset_bytes: usize,
}

/// The header that `file` begins with.
pub(super) fn read(file: impl Read, file_bytes: usize) -> Result<Header, String> {
    let mut reader = Reader { file: file.take(HEADER_LIMIT_BYTES), at: 0, file_bytes };
    if reader.bytes::<4>()? != MAGIC {
        return Err("expected GGUF".into());
    }
    let version = reader.u32()?;
    if !VERSIONS.contains(&version) {
        let is_turned = VERSIONS.contains(&version.swap_bytes());
        return Err(format!(
            "expected GGUF of version {} or {}, got {}",
            VERSIONS.start(),
            VERSIONS.end(),
            if is_turned { "one with big-endian numbers".into() } else { format!("version {version}") }
        ));
    }
    let (tensors, keys) = (reader.u64()?, reader.u64()?);
    if tensors > MAX_TENSORS || keys > MAX_KEYS {
        return Err(format!(
            "expected at most {MAX_TENSORS} tensors and {MAX_KEYS} keys, got {tensors} and {keys}"
        ));
    }
    let (mut alignment, mut texts, mut shapes) = (ALIGNMENT, BTreeMap::new(), BTreeMap::new());
    for _ in 0..keys {
        let key = reader.text(MAX_NAME_BYTES)?;
        let kind = reader.u32()?;
        match (key.as_str(), reader.value(kind, 0)?) {
            ("general.alignment", Value::Integer(number)) => alignment = number,
            (_, Value::Text(text)) => drop(texts.insert(key, text)),
            (_, Value::Integers(list)) => {
                if let Some(name) = key.strip_prefix(SHAPE) {
                    if list.len() > MAX_DIMENSIONS as usize {
                        return Err(format!("{key}: expected at most {MAX_DIMENSIONS} dimensions, got more"));
                    }
                    shapes.insert(name.to_owned(), list);
                }
            }
            _ => {}
        }
    }
    if !alignment.is_power_of_two() || alignment > MAX_ALIGNMENT {
        return Err(format!(
            "general.alignment: expected a power of two up to {MAX_ALIGNMENT}, got {alignment}"
        ));
    }
    let mut declared = Vec::new();
    for _ in 0..tensors {
        let name = reader.text(MAX_NAME_BYTES)?;
        let dimensions = reader.u32()?;
        if dimensions > MAX_DIMENSIONS {
            return Err(format!(
                "tensor {name}: expected at most {MAX_DIMENSIONS} dimensions, got {dimensions}"
            ));
        }
        // The innermost is the first here.
        let mut shape = (0..dimensions).map(|_| reader.u64()).collect::<Result<Vec<u64>, _>>()?;
        shape.reverse();
        let kind = reader.u32()?;
        let offset = reader.u64()?;
        declared.push((name, shape, kind, offset));
    }
    let data_start = reader.at.next_multiple_of(alignment);
    let mut found = Vec::new();
    for (name, mut stored_shape, code, offset) in declared {
        if let Some(shape) = shapes.remove(&name) {
            let count = |shape: &[u64]| shape.iter().try_fold(1u64, |count, &dim| count.checked_mul(dim));
            if count(&shape) != count(&stored_shape) {
                return Err(format!(
                    "tensor {name}: {SHAPE}: expected the size of {stored_shape:?}, got {shape:?}"
                ));
            }
            stored_shape = shape;
        }
        let shape = stored_shape.iter().map(|&dim| usize::try_from(dim)).collect::<Result<Vec<usize>, _>>();
        let offset_bytes = data_start.checked_add(offset).and_then(|offset| usize::try_from(offset).ok());
        let (Ok(shape), Some(offset_bytes)) = (shape, offset_bytes) else {
            return Err(format!("tensor {name}: more bytes than can be counted"));
        };
        found.push(Tensor { name, shape, kind: kind(code), offset_bytes });
    }
    Ok(Header { tensors: found, texts })
}

/// The type of this number.
fn kind(code: u32) -> Result<(Dtype, Encoding), String> {
    const PLAIN: [(u32, Dtype); 8] = [
        (0, Dtype::F32),
        (1, Dtype::F16),
        (24, Dtype::I8),
        (25, Dtype::I16),
        (26, Dtype::I32),
        (27, Dtype::I64),
        (28, Dtype::F64),
        (30, Dtype::Bf16),
    ];
    const OTHERS: [(u32, &str); 13] = [
        (9, "Q8_1"),
        (16, "IQ2_XXS"),
        (17, "IQ2_XS"),
        (18, "IQ3_XXS"),
        (19, "IQ1_S"),
        (20, "IQ4_NL"),
        (21, "IQ3_S"),
        (22, "IQ2_S"),
        (23, "IQ4_XS"),
        (29, "IQ1_M"),
        (34, "TQ1_0"),
        (35, "TQ2_0"),
        (39, "MXFP4"),
    ];
    if let Some((_, dtype)) = PLAIN.iter().find(|(known, _)| *known == code) {
        return Ok((*dtype, Encoding::Plain));
    }
    match Block::ALL.iter().find(|(known, ..)| *known == code) {
        Some((.., block)) => Ok((Dtype::F16, Encoding::Block(*block))),
        None => Err(OTHERS
            .iter()
            .find(|(known, _)| *known == code)
            .map_or_else(|| format!("GGUF type {code}"), |(_, name)| (*name).to_owned())),
    }
}

enum Value {
    Integer(u64),
    Text(String),
    Integers(Vec<u64>),
    Other,
}

struct Reader<R> {
    file: io::Take<R>,
    at: u64,
    file_bytes: usize,
}

impl<R: Read> Reader<R> {
    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), String> {
        self.at += bytes.len() as u64;
        if self.at > HEADER_LIMIT_BYTES {
            return Err(format!("expected a header of at most {HEADER_LIMIT_BYTES} bytes, got more"));
        }
        self.file.read_exact(bytes).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => {
                format!(
                    "expected a header, got {} bytes that end in it: the file is truncated",
                    self.file_bytes
                )
            }
            _ => format!("header: {error}"),
        })
    }

    fn bytes<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let mut bytes = [0; N];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    fn u32(&mut self) -> Result<u32, String> {
        self.bytes().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, String> {
        self.bytes().map(u64::from_le_bytes)
    }

    fn text(&mut self, limit: u64) -> Result<String, String> {
        let len = self.u64()?;
        if len > limit {
            return Err(format!("expected a text of at most {limit} bytes, got one of {len}"));
        }
        let mut bytes = vec![0; len as usize];
        self.fill(&mut bytes)?;
        String::from_utf8(bytes).map_err(|error| format!("expected text in UTF-8: {}", error.utf8_error()))
    }

    fn skip(&mut self, count: u64) -> Result<(), String> {
        let end = self.at.checked_add(count).filter(|end| *end <= HEADER_LIMIT_BYTES);
        let Some(end) = end else {
            return Err(format!("expected a header of at most {HEADER_LIMIT_BYTES} bytes, got more"));
        };
        let copied = io::copy(&mut self.file.by_ref().take(count), &mut io::sink())
            .map_err(|error| format!("header: {error}"))?;
        if copied < count {
            return Err(format!(
                "expected a header, got {} bytes that end in it: the file is truncated",
                self.file_bytes
            ));
        }
        self.at = end;
        Ok(())
    }

    fn value(&mut self, kind: u32, depth: usize) -> Result<Value, String> {
        const TEXT: u32 = 8;
        const LIST: u32 = 9;
        Ok(match kind {
            0 | 1 | 7 => Value::Integer(u64::from(self.bytes::<1>()?[0])),
            2 | 3 => Value::Integer(u16::from_le_bytes(self.bytes()?).into()),
            4 | 5 => Value::Integer(self.u32()?.into()),
            10 | 11 => Value::Integer(self.u64()?),
            6 => {
                self.skip(4)?;
                Value::Other
            }
            12 => {
                self.skip(8)?;
                Value::Other
            }
            TEXT => {
                let len = self.u64()?;
                // Chat templates and the like are long.
                if len > MAX_NAME_BYTES {
                    self.skip(len)?;
                    return Ok(Value::Other);
                }
                let mut bytes = vec![0; len as usize];
                self.fill(&mut bytes)?;
                Value::Text(String::from_utf8_lossy(&bytes).into_owned())
            }
            LIST => {
                let (kind, count) = (self.u32()?, self.u64()?);
                if depth == MAX_DEPTH {
                    return Err(format!("expected lists of at most {MAX_DEPTH} levels, got more"));
                }
                let mut integers = Vec::new();
                for _ in 0..count {
                    match self.value(kind, depth + 1)? {
                        Value::Integer(number) if integers.len() < MAX_DIMENSIONS as usize + 1 => {
                            integers.push(number)
                        }
                        _ => {}
                    }
                }
                Value::Integers(integers)
            }
            other => return Err(format!("expected keys of known types, got type {other}")),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Parts of a header.
    fn text(text: &str) -> Vec<u8> {
        [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
    }

    fn header(version: u32, tensors: u64, keys: u64, rest: &[u8]) -> Vec<u8> {
        [&MAGIC[..], &version.to_le_bytes(), &tensors.to_le_bytes(), &keys.to_le_bytes(), rest].concat()
    }

    fn tensor(name: &str, dims: &[u64], kind: u32, offset: u64) -> Vec<u8> {
        let dims_bytes: Vec<u8> = dims.iter().flat_map(|dim| dim.to_le_bytes()).collect();
        [
            text(name),
            (dims.len() as u32).to_le_bytes().to_vec(),
            dims_bytes,
            kind.to_le_bytes().to_vec(),
            offset.to_le_bytes().to_vec(),
        ]
        .concat()
    }

    fn key(name: &str, kind: u32, value: &[u8]) -> Vec<u8> {
        [text(name), kind.to_le_bytes().to_vec(), value.to_vec()].concat()
    }

    fn of(bytes: &[u8]) -> Result<Header, String> {
        read(bytes, bytes.len())
    }

    #[test]
    fn keys_and_tensors_are_read() {
        let shape = [
            5u32.to_le_bytes().to_vec(),
            2u64.to_le_bytes().to_vec(),
            4u32.to_le_bytes().to_vec(),
            64u32.to_le_bytes().to_vec(),
        ]
        .concat();
        let rest = [
            key("general.architecture", 8, &text("sdxl")),
            key("general.alignment", 4, &64u32.to_le_bytes()),
            key("a.float", 6, &1f32.to_le_bytes()),
            key("comfy.gguf.orig_shape.b", 9, &shape),
            tensor("a", &[3, 2], 1, 0),
            tensor("b", &[256, 1], 12, 64),
            tensor("c", &[256], 18, 256),
        ]
        .concat();
        for version in VERSIONS {
            let file = header(version, 3, 4, &rest);
            let Header { tensors, texts } = of(&file).unwrap();
            assert_eq!(texts[ARCHITECTURE], "sdxl");
            let start = file.len().next_multiple_of(64);
            let seen: Vec<_> =
                tensors.iter().map(|t| (t.name.as_str(), t.shape.clone(), t.offset_bytes - start)).collect();
            assert_eq!(seen, [("a", vec![2, 3], 0), ("b", vec![4, 64], 64), ("c", vec![256], 256)]);
            assert_eq!(tensors[0].kind, Ok((Dtype::F16, Encoding::Plain)));
            assert_eq!(tensors[1].kind, Ok((Dtype::F16, Encoding::Block(Block::Q4K))));
            assert_eq!(tensors[2].kind, Err("IQ3_XXS".into()));
        }
    }

    #[test]
    fn hostile_headers_are_refused() {
        let refused = |file: &[u8], message: &str| {
            let error = of(file).expect_err(message);
            assert!(error.contains(message), "expected {message:?} in: {error}");
        };
        refused(&header(1, 0, 0, &[]), "got version 1");
        refused(&header(3u32.swap_bytes(), 0, 0, &[]), "big-endian");
        refused(&header(3, u64::MAX, 0, &[]), "at most 65536 tensors");
        refused(&header(3, 0, u64::MAX, &[]), "at most 65536 tensors");
        refused(&header(3, 0, 1, &u64::MAX.to_le_bytes()), "a text of at most 65536 bytes");
        refused(&header(3, 0, 1, &key("k", 99, &[])), "got type 99");
        refused(
            &header(3, 0, 1, &key("k", 8, &u64::MAX.to_le_bytes())),
            "a header of at most 100000000 bytes",
        );
        let lists = [9u32.to_le_bytes().to_vec(), 1u64.to_le_bytes().to_vec()].concat().repeat(9);
        refused(&header(3, 0, 1, &key("k", 9, &lists)), "at most 4 levels");
        let endless = [0u32.to_le_bytes().to_vec(), u64::MAX.to_le_bytes().to_vec()].concat();
        refused(&header(3, 0, 1, &key("k", 9, &endless)), "the file is truncated");
        refused(&header(3, 1, 0, &tensor("t", &[1; 9], 0, 0)), "at most 8 dimensions");
        refused(&header(3, 1, 0, &tensor("t", &[1], 0, u64::MAX)), "more bytes than can be counted");
        refused(
            &header(
                3,
                1,
                1,
                &[key("general.alignment", 4, &3u32.to_le_bytes()), tensor("t", &[1], 0, 0)].concat(),
            ),
            "a power of two",
        );
        refused(&header(3, 1, 0, &[text("x")[..8].to_vec(), vec![0xff]].concat()), "UTF-8");
    }

    /// Cut anywhere and with any byte changed it is read or refused, never more.
    #[test]
    fn every_cut_and_every_changed_byte_is_survived() {
        let rest = [key("general.architecture", 8, &text("sd1")), tensor("a", &[32, 2], 8, 0)].concat();
        let file = header(3, 1, 1, &rest);
        assert!((0..file.len()).all(|len| of(&file[..len]).is_err()));
        for at in 0..file.len() {
            for byte in [0, 1, 9, 0x7f, 0xff] {
                let mut changed = file.clone();
                changed[at] = byte;
                let _ = of(&changed);
            }
        }
    }
}
