//! The table of a safetensors file, against the format's reference implementation.

use std::collections::BTreeMap;
use std::fmt;

use ::safetensors::SafeTensors;
use calotype::weights::Weights;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};

use super::file;

pub fn run(bytes: &[u8]) {
    // Contents decide the format; the other one has a target of its own.
    if bytes.starts_with(b"GGUF") {
        return;
    }
    let (got, expected) = (file::weights(bytes), SafeTensors::deserialize(bytes));
    match (got, expected) {
        (Ok(got), Ok(expected)) => same(&got, &expected),
        // Types that the format got after that version.
        (Ok(_), Err(_)) if NEWER.iter().any(|name| bytes.windows(name.len()).any(|part| part == *name)) => {}
        (Ok(got), Err(error)) => {
            panic!("read as {:?}, refused by the reference: {error}", got.iter().next().map(|(name, _)| name))
        }
        (Err(error), Ok(expected)) => {
            assert!(is_stricter(bytes, &expected), "read by the reference, refused: {error}");
        }
        (Err(_), Err(_)) => {}
    }
}

fn same(got: &Weights, expected: &SafeTensors) {
    let tensors: BTreeMap<_, _> = expected.tensors().into_iter().collect();
    assert_eq!(got.iter().count(), tensors.len());
    for ((name, got), (expected_name, expected)) in got.iter().zip(&tensors) {
        assert_eq!(name, expected_name);
        assert_eq!(got.shape(), expected.shape(), "{name}");
        let dtype = format!("{:?}", expected.dtype());
        if EIGHT_BITS.contains(&&dtype[..]) {
            // Read as the values that they stand for.
            assert_eq!((got.dtype().name(), got.len_bytes()), ("F16", 2 * expected.data().len()), "{name}");
        } else {
            assert_eq!(got.dtype().name(), dtype, "{name}");
            assert_eq!(got.to_bytes(), expected.data(), "{name}");
        }
    }
}

/// As they stand in a header.
const NEWER: [&[u8]; 5] = [b"\"F4\"", b"\"F6_E2M3\"", b"\"F6_E3M2\"", b"\"F8_E8M0\"", b"\"C64\""];

/// Floats of 8 bits, which are F16 when they are read.
const EIGHT_BITS: [&str; 2] = ["F8_E4M3", "F8_E5M2"];

/// Whether the file has what calotype refuses and the reference does not: a type that no model of its has, or one name
/// twice.
fn is_stricter(bytes: &[u8], expected: &SafeTensors) -> bool {
    let known = ["F32", "F16", "BF16", "F64", "I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL"];
    let unknown = |dtype: String| !known.contains(&&dtype[..]) && !EIGHT_BITS.contains(&&dtype[..]);
    let mut tensors = expected.tensors().into_iter();
    tensors.any(|(_, tensor)| unknown(format!("{:?}", tensor.dtype())))
        || declared(bytes) != Some(expected.len())
}

/// How many tensors the header declares, those of one name counted each.
fn declared(bytes: &[u8]) -> Option<usize> {
    struct Counter;

    impl<'de> Visitor<'de> for Counter {
        type Value = usize;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<usize, A::Error> {
            let mut count = 0;
            while let Some((name, _)) = map.next_entry::<String, IgnoredAny>()? {
                count += usize::from(name != "__metadata__");
            }
            Ok(count)
        }
    }

    let length = usize::try_from(u64::from_le_bytes(*bytes.first_chunk()?)).ok()?;
    let mut json = serde_json::Deserializer::from_slice(bytes.get(8..8 + length)?);
    json.deserialize_map(Counter).ok()
}
