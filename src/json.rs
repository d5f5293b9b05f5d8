//! JSON as Python's `json` writes it, made standard: a byte order mark, and numbers that are not finite.
//! It knows nothing of what the JSON says.

use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::{Error, ErrorKind};

const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";
/// The numbers that Python writes and the standard (RFC 8259, section 6) does not have, the longest first.
const NOT_FINITE: [&[u8]; 3] = [b"-Infinity", b"Infinity", b"NaN"];

/// The same JSON without a byte order mark, and with numbers that are not finite as strings: `"-Infinity"`. Whoever wants a
/// number there says then that it got that string; whoever does not read the key is not disturbed.
///
/// Nothing else is forgiven: what is no JSON stays none, for the reader to refuse.
///
/// # Errors
/// [`ErrorKind::Model`] for an object that has a key twice, of which Python would keep the last and others the first.
pub fn standard<'a>(place: &str, json: &'a [u8]) -> Result<Cow<'a, [u8]>, Error> {
    let json = json.strip_prefix(BYTE_ORDER_MARK).unwrap_or(json);
    let json = quoted(json);
    let mut twice = None;
    // A mistake is left to the reader, who knows what was expected; a key that is there twice it would not see.
    let walked = Unique { twice: &mut twice }.deserialize(&mut serde_json::Deserializer::from_slice(&json));
    match (walked, twice) {
        (Err(_), Some(key)) => Err(Error::new(
            ErrorKind::Model,
            format!("{place}: expected every key of an object once, got {key:?} twice"),
        )),
        _ => Ok(json),
    }
}

/// The numbers that are not finite between quotes; where a key is expected they stay, because they are none.
fn quoted(json: &[u8]) -> Cow<'_, [u8]> {
    let mut standard = Vec::new();
    let (mut at, mut copied, mut is_text) = (0, 0, false);
    // Per list or object around this place, whether it is an object.
    let mut around: Vec<bool> = Vec::new();
    let mut is_key = false;
    while at < json.len() {
        match json[at] {
            b'\\' if is_text => at += 1,
            b'"' => is_text = !is_text,
            _ if is_text => {}
            open @ (b'{' | b'[') => {
                is_key = open == b'{';
                around.push(is_key);
            }
            b'}' | b']' => drop(around.pop()),
            b',' => is_key = around.last() == Some(&true),
            b':' => is_key = false,
            b'-' | b'I' | b'N' if !is_key => {
                let is_part = |byte: Option<&u8>| byte.is_some_and(|byte| byte.is_ascii_alphanumeric());
                let found = NOT_FINITE.into_iter().find(|name| json[at..].starts_with(name));
                let found = found.filter(|name| !is_part(json.get(at + name.len())));
                if let Some(name) = found.filter(|_| at == 0 || !is_part(json.get(at - 1))) {
                    standard.extend_from_slice(&json[copied..at]);
                    standard.push(b'"');
                    standard.extend_from_slice(name);
                    standard.push(b'"');
                    at += name.len();
                    copied = at;
                    continue;
                }
            }
            _ => {}
        }
        at += 1;
    }
    if copied == 0 {
        return Cow::Borrowed(json);
    }
    standard.extend_from_slice(&json[copied..]);
    Cow::Owned(standard)
}

/// Walks through a value, and stops at a key that its object has already.
struct Unique<'a> {
    twice: &'a mut Option<String>,
}

impl<'de> DeserializeSeed<'de> for Unique<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Unique<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut keys = HashSet::new();
        while let Some(key) = map.next_key::<String>()? {
            if keys.contains(&key) {
                *self.twice = Some(key);
                return Err(serde::de::Error::custom("a key twice"));
            }
            keys.insert(key);
            map.next_value_seed(Unique { twice: self.twice })?;
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        while seq.next_element_seed(Unique { twice: self.twice })?.is_some() {}
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        IgnoredAny::visit_newtype_struct(IgnoredAny, deserializer).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(json: &str) -> String {
        String::from_utf8(standard("x.json", json.as_bytes()).unwrap().into_owned()).unwrap()
    }

    #[test]
    fn what_python_writes_becomes_standard() {
        for (python, json) in [
            ("\u{feff}{\"a\": 1}", "{\"a\": 1}"),
            ("NaN", "\"NaN\""),
            (
                "{\"a\": -Infinity, \"b\":[Infinity,NaN , -1]}",
                "{\"a\": \"-Infinity\", \"b\":[\"Infinity\",\"NaN\" , -1]}",
            ),
            // Within texts and keys nothing changes, whatever is escaped in them.
            (r#"{"NaN \" NaN": "-Infinity \\", "b": NaN}"#, r#"{"NaN \" NaN": "-Infinity \\", "b": "NaN"}"#),
        ] {
            assert_eq!(text(python), json);
            serde_json::from_str::<serde_json::Value>(&text(python)).expect("standard JSON");
        }
    }

    #[test]
    fn what_python_does_not_write_stays_wrong() {
        for json in [
            "nan",
            "inf",
            "-NaN",
            "+Infinity",
            "xNaN",
            "NaNs",
            "Infinity1",
            "--Infinity",
            "{\"a\": NaN",
            "{NaN: 1}",
            "{\"Infinity\": 0, Infinity}",
            "[{\"a\": [NaN]}, {NaN: 1}]",
            "{\"a\": 1, Infinity \r\n: 1}",
            "{-Infinity:-Infinity}",
            "",
        ] {
            let json = standard("x.json", json.as_bytes()).unwrap();
            let parsed = serde_json::from_slice::<serde_json::Value>(&json);
            assert!(parsed.is_err(), "{}", String::from_utf8_lossy(&json));
        }
    }

    #[test]
    fn a_key_twice_is_refused_wherever_it_is() {
        for json in [
            "{\"a\": 1, \"a\": 2}",
            "[{\"b\": {\"a\": NaN, \"c\": 0, \"a\": {}}}]",
            "{\"\\u0061\": 1, \"a\": 1}",
        ] {
            let error = standard("x.json", json.as_bytes()).expect_err(json);
            assert_eq!(error.kind(), ErrorKind::Model);
            assert_eq!(error.to_string(), "x.json: expected every key of an object once, got \"a\" twice");
        }
        text("[{\"a\": {\"a\": 1}}, {\"a\": 1}]");
    }

    #[test]
    fn depth_is_limited() {
        let deep = "[".repeat(1 << 20);
        let json = standard("x.json", deep.as_bytes()).unwrap();
        assert!(serde_json::from_slice::<serde_json::Value>(&json).is_err());
    }
}
