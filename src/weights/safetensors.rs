//! The safetensors header: eight bytes of length, JSON, then the tensors' data without gaps.
//! It knows nothing of files; it is given bytes and says what is wrong with them.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashSet};
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, Visitor};

use super::Dtype;
use super::encoding::{Encoding, Scale};

/// The bytes that hold the header's length.
pub(super) const PREFIX_BYTES: usize = 8;
/// The longest header that is read; the reference implementation's limit.
const HEADER_LIMIT_BYTES: u64 = 100_000_000;

/// One tensor of a file whose header was found to be right.
pub(super) struct Entry {
    pub(super) name: String,
    /// What its elements are stored as; without one, the name of a type that cannot be read.
    pub(super) kind: Result<(Dtype, Encoding), String>,
    pub(super) shape: Vec<usize>,
    /// From the start of the file.
    pub(super) offset_bytes: usize,
    pub(super) len_bytes: usize,
}

/// What is wrong with a file, and the way out where there is a special one.
#[derive(Debug)]
pub(super) struct Problem {
    pub(super) message: String,
    pub(super) help: Option<Cow<'static, str>>,
}

/// The length of the JSON header, from the file's first bytes (all of them, if it has fewer than eight) and its size.
pub(super) fn header_len(prefix: &[u8], file_bytes: usize) -> Result<usize, Problem> {
    let Ok(len) = <[u8; PREFIX_BYTES]>::try_from(prefix).map(u64::from_le_bytes) else {
        return Err(problem(format!("expected safetensors, at least 8 bytes, got {file_bytes} bytes")));
    };
    if len > HEADER_LIMIT_BYTES {
        return Err(problem(format!(
            "expected safetensors with a header of at most {HEADER_LIMIT_BYTES} bytes, got one of {len} bytes"
        )));
    }
    let rest = file_bytes.saturating_sub(PREFIX_BYTES);
    match usize::try_from(len) {
        Ok(len) if len <= rest => Ok(len),
        _ => Err(truncated(format!("expected a header of {len} bytes, got {rest} bytes"), None, file_bytes)),
    }
}

/// What a header says beside its tensors.
type Metadata = BTreeMap<String, String>;

/// The tensors that `json` (the header) declares, in the order of their data, checked against the size of the file; and
/// the metadata.
///
/// The data must be covered exactly: no tensor overlaps another, no byte is unclaimed.
pub(super) fn parse(json: &[u8], file_bytes: usize) -> Result<(Vec<Entry>, Metadata), Problem> {
    let data_start = PREFIX_BYTES + json.len();
    let data_bytes = file_bytes - data_start;
    let Header(mut declared, metadata) = serde_json::from_slice(json)
        .map_err(|error| problem(format!("header: expected JSON of tensors, {error}")))?;
    declared.sort_by(|(a_name, a), (b_name, b)| (a.data_offsets, a_name).cmp(&(b.data_offsets, b_name)));

    let last_end = declared.iter().map(|(_, tensor)| tensor.data_offsets[1]).max().unwrap_or(0);
    let mut entries = Vec::with_capacity(declared.len());
    let mut end_of_last = 0;
    for (name, tensor) in declared {
        let [begin, end] = tensor.data_offsets;
        let dtype = &tensor.dtype;
        let (kind, bits) = kind(dtype).ok_or_else(|| {
            problem(format!(
                "tensor {name}: dtype: expected one of {}, got {dtype}",
                Dtype::ALL.map(Dtype::name).join(", "),
            ))
        })?;
        let count = tensor.shape.iter().try_fold(1usize, |count, &dim| count.checked_mul(dim));
        let needed = count
            .and_then(|count| count.checked_mul(bits))
            .map(|bits| bits.div_ceil(8))
            .ok_or_else(|| {
                problem(format!("tensor {name}: shape {:?}: more bytes than can be counted", tensor.shape))
            })?;
        if end.checked_sub(begin) != Some(needed) {
            return Err(problem(format!(
                "tensor {name}: {dtype} {:?}: expected {needed} bytes of data, got offsets {begin} to {end}",
                tensor.shape
            )));
        }
        if begin != end_of_last {
            let what =
                if begin < end_of_last { "overlaps the tensor before it" } else { "leaves a gap before it" };
            return Err(problem(format!(
                "tensor {name}: {what}: expected data from offset {end_of_last}, got {begin}"
            )));
        }
        if end > data_bytes {
            return Err(truncated(
                format!("tensor {name}: expected data up to offset {end}, got {data_bytes} bytes"),
                Some(data_start.saturating_add(last_end)),
                file_bytes,
            ));
        }
        end_of_last = end;
        entries.push(Entry {
            name,
            kind: kind.ok_or(tensor.dtype),
            shape: tensor.shape,
            offset_bytes: data_start + begin,
            len_bytes: needed,
        });
    }
    if end_of_last != data_bytes {
        return Err(problem(format!("expected {end_of_last} bytes of data, got {data_bytes}")));
    }
    Ok((entries, metadata))
}

fn problem(message: String) -> Problem {
    Problem { message, help: None }
}

fn truncated(message: String, expected_bytes: Option<usize>, file_bytes: usize) -> Problem {
    let size =
        expected_bytes.map(|expected| format!(" ({file_bytes} of {expected} bytes)")).unwrap_or_default();
    Problem { message, help: Some(format!("the file is truncated{size}: download or copy it again").into()) }
}

/// What a type of safetensors is here, where it can be read, and how many bits an element has.
fn kind(dtype: &str) -> Option<(Option<(Dtype, Encoding)>, usize)> {
    /// Types that nothing here is made of.
    const OTHERS: [(&str, usize); 8] = [
        ("F4", 4),
        ("F6_E2M3", 6),
        ("F6_E3M2", 6),
        ("F8_E8M0", 8),
        ("F8_E4M3FNUZ", 8),
        ("F8_E5M2FNUZ", 8),
        ("C64", 64),
        ("C128", 128),
    ];
    let plain = Dtype::ALL.into_iter().find(|known| known.name() == dtype);
    if let Some(plain) = plain {
        return Some((Some((plain, Encoding::Plain)), 8 * plain.size_bytes()));
    }
    match dtype {
        "F8_E4M3" => Some((Some((Dtype::F16, Encoding::F8E4m3(Scale::One))), 8)),
        "F8_E5M2" => Some((Some((Dtype::F16, Encoding::F8E5m2(Scale::One))), 8)),
        _ => OTHERS.iter().find(|(name, _)| *name == dtype).map(|(_, bits)| (None, *bits)),
    }
}

#[derive(Deserialize)]
struct Declared {
    dtype: String,
    shape: Vec<usize>,
    /// Begin and end, from the start of the data.
    data_offsets: [usize; 2],
}

/// The JSON object, with each name at most once: a map type would keep the last of two and say nothing.
struct Header(Vec<(String, Declared)>, Metadata);

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(HeaderVisitor)
    }
}

struct HeaderVisitor;

impl<'de> Visitor<'de> for HeaderVisitor {
    type Value = Header;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
        let mut names = HashSet::new();
        let (mut tensors, mut metadata) = (Vec::new(), Metadata::new());
        while let Some(name) = map.next_key::<String>()? {
            if !names.insert(name.clone()) {
                return Err(A::Error::custom(format!("got {name} twice")));
            }
            if name == "__metadata__" {
                metadata = map.next_value()?;
            } else {
                let tensor =
                    map.next_value().map_err(|error| A::Error::custom(format!("tensor {name}: {error}")))?;
                tensors.push((name, tensor));
            }
        }
        Ok(Header(tensors, metadata))
    }
}
