//! JSON as Python writes it, against a naive reader of that dialect: what the one reads the other reads, as the same value.

use std::collections::BTreeSet;

use calotype::json;
use serde_json::Value;

/// How deep values may lie in values; serde_json's limit.
const MAX_DEPTH: usize = 127;

pub fn run(bytes: &[u8]) {
    let mut reader = Naive {
        rest: bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes),
        is_twice: false,
        is_large: false,
    };
    let expected = reader.whole();
    let got = json::standard("x.json", bytes).map(|json| serde_json::from_slice::<Value>(&json));
    match (got, expected) {
        (Ok(Ok(got)), Some(expected)) => {
            assert!(!reader.is_twice, "a key twice, and read as {got}");
            assert!(is_same(&got, &expected), "read as {got}, by the naive reader as {expected}");
        }
        (Ok(Ok(got)), None) => panic!("read as {got}, refused by the naive reader"),
        // A key twice may be found before what is wrong behind it.
        (Err(error), _) => assert!(reader.is_twice, "no key twice: {error}"),
        // Numbers beyond 64-bit floats are none for serde_json.
        (Ok(Err(error)), Some(expected)) => {
            assert!(reader.is_large, "refused, and read by the naive reader as {expected}: {error}");
        }
        (Ok(Err(_)), None) => {}
    }
}

/// Whether values are the same but for the last digit of a float, which serde_json may round otherwise.
fn is_same(got: &Value, expected: &Value) -> bool {
    match (got, expected) {
        (Value::Array(got), Value::Array(expected)) => {
            got.len() == expected.len()
                && got.iter().zip(expected).all(|(got, expected)| is_same(got, expected))
        }
        (Value::Object(got), Value::Object(expected)) => {
            got.len() == expected.len()
                && got
                    .iter()
                    .all(|(key, got)| expected.get(key).is_some_and(|expected| is_same(got, expected)))
        }
        (Value::Number(got), Value::Number(expected)) if got.is_f64() && expected.is_f64() => {
            let [got, expected] = [got, expected].map(|number| number.as_f64().unwrap_or(f64::NAN));
            (got - expected).abs() <= 4.0 * f64::EPSILON * expected.abs()
        }
        _ => got == expected,
    }
}

struct Naive<'a> {
    rest: &'a [u8],
    /// Whether an object had a key twice.
    is_twice: bool,
    /// Whether a number was beyond 64-bit floats.
    is_large: bool,
}

impl Naive<'_> {
    fn whole(&mut self) -> Option<Value> {
        let value = self.value(0)?;
        self.blanks();
        self.rest.is_empty().then_some(value)
    }

    fn blanks(&mut self) {
        while let [b' ' | b'\n' | b'\r' | b'\t', rest @ ..] = self.rest {
            self.rest = rest;
        }
    }

    fn takes(&mut self, text: &str) -> bool {
        let rest = self.rest.strip_prefix(text.as_bytes());
        self.rest = rest.unwrap_or(self.rest);
        rest.is_some()
    }

    fn value(&mut self, depth: usize) -> Option<Value> {
        self.blanks();
        for (word, value) in [
            ("null", Value::Null),
            ("true", true.into()),
            ("false", false.into()),
            ("NaN", "NaN".into()),
            ("Infinity", "Infinity".into()),
            ("-Infinity", "-Infinity".into()),
        ] {
            if self.takes(word) {
                return Some(value);
            }
        }
        match *self.rest.first()? {
            b'"' => self.text().map(Value::String),
            b'[' | b'{' if depth == MAX_DEPTH => None,
            b'[' => {
                self.takes("[");
                let mut list = Vec::new();
                self.blanks();
                if self.takes("]") {
                    return Some(list.into());
                }
                loop {
                    list.push(self.value(depth + 1)?);
                    self.blanks();
                    if self.takes("]") {
                        return Some(list.into());
                    }
                    self.takes(",").then_some(())?;
                }
            }
            b'{' => {
                self.takes("{");
                let (mut object, mut keys) = (serde_json::Map::new(), BTreeSet::new());
                self.blanks();
                if self.takes("}") {
                    return Some(object.into());
                }
                loop {
                    self.blanks();
                    let key = self.text()?;
                    self.is_twice |= !keys.insert(key.clone());
                    self.blanks();
                    self.takes(":").then_some(())?;
                    object.insert(key, self.value(depth + 1)?);
                    self.blanks();
                    if self.takes("}") {
                        return Some(object.into());
                    }
                    self.takes(",").then_some(())?;
                }
            }
            _ => self.number(),
        }
    }

    fn number(&mut self) -> Option<Value> {
        let start = self.rest;
        self.takes("-");
        if !self.takes("0") {
            (self.digits() > 0).then_some(())?;
        }
        let mut is_integer = true;
        if self.takes(".") {
            is_integer = false;
            (self.digits() > 0).then_some(())?;
        }
        if self.takes("e") || self.takes("E") {
            is_integer = false;
            let _ = self.takes("+") || self.takes("-");
            (self.digits() > 0).then_some(())?;
        }
        // A number ends where no more of one or of a name follows.
        let text = std::str::from_utf8(&start[..start.len() - self.rest.len()]).ok()?;
        if is_integer && text != "-0" {
            if let Ok(number) = text.parse::<u64>() {
                return Some(number.into());
            }
            if let Ok(number) = text.parse::<i64>() {
                return Some(number.into());
            }
        }
        let number: f64 = text.parse().ok()?;
        self.is_large |= number.is_infinite();
        Some(serde_json::Number::from_f64(number).map_or(Value::Null, Value::Number))
    }

    fn digits(&mut self) -> usize {
        let count = self.rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
        self.rest = &self.rest[count..];
        count
    }

    fn text(&mut self) -> Option<String> {
        self.takes("\"").then_some(())?;
        let mut text: Vec<u8> = Vec::new();
        loop {
            let (&byte, rest) = self.rest.split_first()?;
            self.rest = rest;
            match byte {
                b'"' => return String::from_utf8(text).ok(),
                0..0x20 => return None,
                b'\\' => {
                    let (&escaped, rest) = self.rest.split_first()?;
                    self.rest = rest;
                    let character = match escaped {
                        b'"' | b'\\' | b'/' => char::from(escaped),
                        b'b' => '\u{8}',
                        b'f' => '\u{c}',
                        b'n' => '\n',
                        b'r' => '\r',
                        b't' => '\t',
                        b'u' => {
                            let mut units = vec![self.unit()?];
                            // A half of a pair alone is no character.
                            if (0xd800..0xdc00).contains(&units[0]) {
                                self.takes("\\u").then_some(())?;
                                units.push(self.unit()?);
                            }
                            char::decode_utf16(units).next()?.ok()?
                        }
                        _ => return None,
                    };
                    text.extend(character.to_string().bytes());
                }
                _ => text.push(byte),
            }
        }
    }

    fn unit(&mut self) -> Option<u16> {
        let (digits, rest) = self.rest.split_at_checked(4)?;
        self.rest = rest;
        digits.iter().try_fold(0, |unit, digit| Some(unit << 4 | char::from(*digit).to_digit(16)? as u16))
    }
}
