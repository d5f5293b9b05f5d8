//! The table of a safetensors file, against the format's reference implementation.

use std::collections::BTreeMap;
use std::fmt;

use ::safetensors::SafeTensors;
use calotype::weights::Weights;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};

use super::file;

pub fn run(bytes: &[u8]) {
    let (got, expected) = (file::weights(bytes), SafeTensors::deserialize(bytes));
    match (got, expected) {
        (Ok(got), Ok(expected)) => same(&got, &expected),
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
        assert_eq!(got.dtype().name(), format!("{:?}", expected.dtype()), "{name}");
        assert_eq!(got.to_bytes(), expected.data(), "{name}");
    }
}

/// Whether the file has what calotype refuses and the reference does not: a type that no model of its has, one name
/// twice, or data where its elements cannot lie.
fn is_stricter(bytes: &[u8], expected: &SafeTensors) -> bool {
    let known = ["F32", "F16", "BF16", "F64", "I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL"];
    let unknown = |dtype: String| !known.contains(&&dtype[..]);
    let start = bytes.as_ptr() as usize;
    let odd = |data: &[u8], size: usize| !(data.as_ptr() as usize - start).is_multiple_of(size.max(1));
    let mut tensors = expected.tensors().into_iter();
    tensors.any(|(_, tensor)| {
        unknown(format!("{:?}", tensor.dtype())) || odd(tensor.data(), tensor.dtype().size())
    }) || declared(bytes) != Some(expected.len())
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
