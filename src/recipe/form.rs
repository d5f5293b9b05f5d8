//! How the values of a recipe are written in JSON, and what is said of JSON that is none. It knows no field by name but
//! the version.

use std::fmt;
use std::marker::PhantomData;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::de::value::MapAccessDeserializer;
use serde::de::{DeserializeOwned, Deserializer, Error as _, MapAccess, Visitor};
use serde::{Deserialize, Serialize, Serializer, forward_to_deserialize_any};
use serde_json::{Map, Value};

use super::{ControlImage, Image, NamedControlModel, NamedFile, NamedLora, VERSION};
use crate::control::Steering;
use crate::image_file::{Init, Mask};
use crate::{Error, ErrorKind, json, name};

/// The longest JSON that is read: a prompt of the longest kind, and the largest lists.
const MAX_JSON_BYTES: usize = 16 << 20;
/// What a mask is that is the init image's own transparency.
const ALPHA: &str = "alpha";
/// Hexadecimal digits of a SHA-256.
const SHA256_DIGITS: usize = 64;

/// The object that JSON is.
pub(super) fn object(origin: &str, json: &[u8]) -> Result<Map<String, Value>, Error> {
    let refuse = |problem: &str| Error::new(ErrorKind::Input, format!("{origin}: {problem}"));
    if json.len() > MAX_JSON_BYTES {
        let got = format!("expected a recipe of at most {MAX_JSON_BYTES} bytes, got {}", json.len());
        return Err(refuse(&got));
    }
    let json =
        json::standard(origin, json).map_err(|error| Error::new(ErrorKind::Input, error.to_string()))?;
    let value = serde_json::from_slice::<Value>(&json);
    match value.map_err(|error| refuse("expected a recipe as JSON").source(error))? {
        Value::Object(object) => Ok(object),
        other => Err(refuse(&format!("expected a recipe, an object, got {}", kind(&other)))),
    }
}

/// Refuses another version than ours, before its fields are read.
pub(super) fn check_version(origin: &str, object: &Map<String, Value>) -> Result<(), Error> {
    let got = match object.get("version") {
        Some(version) if version.as_u64() == Some(VERSION.into()) => return Ok(()),
        Some(version) => shown(version),
        None => "none".into(),
    };
    let error = Error::new(ErrorKind::Input, format!("{origin}: version: expected {VERSION}, got {got}"));
    Err(match object.get("version").and_then(Value::as_u64) {
        Some(2..) => error.help("a newer version of calotype may support it"),
        _ => error,
    })
}

/// A value of an object; [`ErrorKind::Input`] for one that it is not, with the path of the field.
pub(super) fn fields<T: DeserializeOwned>(origin: &str, object: Map<String, Value>) -> Result<T, Error> {
    let known = names::<T>();
    if let Some(key) = object.keys().find(|key| !known.contains(&key.as_str())) {
        return Err(unknown(origin, key, known));
    }
    serde_path_to_error::deserialize(Value::Object(object)).map_err(|error| {
        let path = error.path().to_string();
        let problem = error.into_inner().to_string();
        if let Some(field) = problem.strip_prefix("unknown field `").and_then(|rest| rest.split('`').next()) {
            // Serde's list of what it knows: `a`, `b`.
            let known: Vec<&str> = problem.split('`').skip(3).step_by(2).collect();
            let path = if path.ends_with(field) { path } else { format!("{path}.{field}") };
            return unknown(origin, &path, &known);
        }
        Error::new(ErrorKind::Input, format!("{origin}: {}", at(&path, &problem)))
    })
}

/// A problem with the path of its place before it, once, and in our order: what was expected, then what was got.
fn at(path: &str, problem: &str) -> String {
    let ours = |problem: &str| {
        let rest = problem.strip_prefix("invalid ")?.split_once(": ")?.1;
        let (got, expected) = rest.rsplit_once(", expected ")?;
        let expected = match expected {
            "usize" | "u64" | "u32" => "a whole number",
            "f64" | "f32" => "a number",
            "a string" => "a text",
            "a sequence" => "a list",
            "a boolean" => "true or false",
            other => other,
        };
        Some(format!("expected {expected}, got {got}"))
    };
    if let Some(field) = problem.strip_prefix("missing field `").and_then(|rest| rest.strip_suffix('`')) {
        let place = if path == "." { field.to_owned() } else { format!("{path}.{field}") };
        return format!("{place}: expected a value, got none");
    }
    let problem = ours(problem).unwrap_or_else(|| problem.to_owned());
    // The values' own messages begin with the name of what they are.
    let own = format!("{}: ", path.replace('_', " "));
    format!("{path}: {}", problem.strip_prefix(&own).unwrap_or(&problem))
}

fn unknown(origin: &str, path: &str, known: &[&str]) -> Error {
    let field = path.rsplit('.').next().unwrap_or(path);
    let error =
        Error::new(ErrorKind::Input, format!("{origin}: {path}: expected a known field, got this one"));
    if path == "sigmas" {
        return error.help("a list of falling sigmas is the value of schedule");
    }
    match name::nearest(field, known.iter().copied()) {
        Some(near) => error.help(format!("did you mean {near}?")),
        None => error,
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

fn shown(value: &Value) -> String {
    match value {
        Value::Array(_) | Value::Object(_) => kind(value).into(),
        other => other.to_string(),
    }
}

/// The names of the fields that a type's derived reader knows.
pub(super) fn names<T: DeserializeOwned>() -> &'static [&'static str] {
    /// A reader that has nothing to read, and is told what would be read.
    struct Asked<'a>(&'a mut &'static [&'static str]);

    impl<'de> Deserializer<'de> for Asked<'_> {
        type Error = serde::de::value::Error;

        fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Self::Error> {
            Err(Self::Error::custom("nothing"))
        }

        fn deserialize_struct<V: Visitor<'de>>(
            self,
            _: &'static str,
            fields: &'static [&'static str],
            _: V,
        ) -> Result<V::Value, Self::Error> {
            *self.0 = fields;
            Err(Self::Error::custom("nothing"))
        }

        forward_to_deserialize_any! {
            bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct
            newtype_struct seq tuple tuple_struct map enum identifier ignored_any
        }
    }

    let mut fields: &'static [&'static str] = &[];
    drop(T::deserialize(Asked(&mut fields)));
    fields
}

/// Values that have a text form.
pub(super) mod as_text {
    use super::*;

    pub(crate) fn serialize<T: fmt::Display, S: Serializer>(
        value: &Option<T>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match value {
            Some(value) => serializer.collect_str(value),
            None => serializer.serialize_none(),
        }
    }

    pub(crate) fn deserialize<'de, T: FromStr<Err = Error>, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<T>, D::Error> {
        let text = Option::<String>::deserialize(deserializer)?;
        text.map(|text| text.parse().map_err(D::Error::custom)).transpose()
    }
}

/// Guidance scales: a number, or where they change a text.
pub(super) mod as_scales {
    use super::*;
    use crate::guidance::Scales;

    pub(crate) fn serialize<S: Serializer>(
        scales: &Option<Scales>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        let Some(scales) = scales else { return serializer.serialize_none() };
        let text = scales.to_string();
        match text.parse::<f64>() {
            Ok(scale) if scale.is_finite() => serializer.serialize_f64(scale),
            _ => serializer.serialize_str(&text),
        }
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Scales>, D::Error> {
        match Option::<Value>::deserialize(deserializer)? {
            None => Ok(None),
            Some(Value::Number(number)) => Ok(number.as_f64().map(Scales::from)),
            Some(Value::String(text)) => text.parse().map(Some).map_err(D::Error::custom),
            Some(other) => {
                Err(D::Error::custom(format!("expected a number or a text, got {}", kind(&other))))
            }
        }
    }
}

pub(super) fn path<S: Serializer>(path: &Option<PathBuf>, serializer: S) -> Result<S::Ok, S::Error> {
    path.as_deref().map(Path::to_string_lossy).serialize(serializer)
}

/// A path, or an object that has one.
pub(super) enum PathOr<T> {
    Path(String),
    Fields(T),
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for PathOr<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for Either<T> {
            type Value = PathOr<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a path, or an object with a path")
            }

            fn visit_str<E>(self, path: &str) -> Result<PathOr<T>, E> {
                Ok(PathOr::Path(path.into()))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<PathOr<T>, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map)).map(PathOr::Fields)
            }
        }

        deserializer.deserialize_any(Either(PhantomData))
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FileFields {
    path: Option<String>,
    sha256: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LoraFields {
    path: Option<String>,
    sha256: Option<String>,
    #[serde(default = "whole")]
    strength: f32,
    text_encoder_strength: Option<f32>,
}

fn whole() -> f32 {
    1.0
}

impl TryFrom<FileFields> for NamedFile {
    type Error = String;

    fn try_from(FileFields { path, sha256 }: FileFields) -> Result<Self, String> {
        if path.as_deref() == Some("") {
            return Err("expected a path, got an empty one".into());
        }
        let is_hash = |hash: &String| {
            hash.len() == SHA256_DIGITS && hash.bytes().all(|digit| digit.is_ascii_hexdigit())
        };
        match sha256 {
            Some(hash) if !is_hash(&hash) => {
                Err(format!("sha256: expected {SHA256_DIGITS} hexadecimal digits, got {hash:?}"))
            }
            sha256 => Ok(Self {
                path: path.map(PathBuf::from),
                sha256: sha256.map(|hash| hash.to_ascii_lowercase()),
            }),
        }
    }
}

impl TryFrom<PathOr<FileFields>> for NamedFile {
    type Error = String;

    fn try_from(read: PathOr<FileFields>) -> Result<Self, String> {
        match read {
            PathOr::Path(path) => FileFields { path: Some(path), sha256: None }.try_into(),
            PathOr::Fields(fields) => fields.try_into(),
        }
    }
}

impl TryFrom<PathOr<LoraFields>> for NamedLora {
    type Error = String;

    fn try_from(read: PathOr<LoraFields>) -> Result<Self, String> {
        let (path, sha256, strength, text_encoder_strength) = match read {
            PathOr::Path(path) => (Some(path), None, whole(), None),
            PathOr::Fields(LoraFields { path, sha256, strength, text_encoder_strength }) => {
                (path, sha256, strength, text_encoder_strength)
            }
        };
        for strength in [Some(strength), text_encoder_strength].into_iter().flatten() {
            if !strength.is_finite() {
                return Err(format!("strength: expected a finite number, got {strength}"));
            }
        }
        let file = FileFields { path, sha256 }.try_into()?;
        Ok(Self { file, strength, text_encoder_strength })
    }
}

/// The longest name of a kind of control that is taken.
const MAX_KIND_BYTES: usize = 64;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ControlModelFields {
    kind: String,
    path: Option<String>,
    sha256: Option<String>,
}

impl TryFrom<ControlModelFields> for NamedControlModel {
    type Error = String;

    fn try_from(ControlModelFields { kind, path, sha256 }: ControlModelFields) -> Result<Self, String> {
        Ok(Self { kind: checked_kind(kind)?, file: FileFields { path, sha256 }.try_into()? })
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ControlFields {
    kind: String,
    path: Option<String>,
    sha256: Option<String>,
    weight: Option<f64>,
    start: Option<f64>,
    end: Option<f64>,
    mode: Option<String>,
    annotate: Option<String>,
}

impl TryFrom<ControlFields> for ControlImage {
    type Error = String;

    fn try_from(read: ControlFields) -> Result<Self, String> {
        let ControlFields { kind, path, sha256, weight, start, end, mode, annotate } = read;
        let usual = Steering::default();
        let mode = mode.map_or(Ok(usual.mode), |mode| mode.parse()).map_err(|error| error.to_string())?;
        let steering = Steering {
            weight: weight.unwrap_or(usual.weight),
            start: start.unwrap_or(usual.start),
            end: end.unwrap_or(usual.end),
            mode,
        };
        let image = Image::Named(FileFields { path, sha256 }.try_into()?);
        let steering = steering.checked().map_err(|error| error.to_string())?;
        let annotate =
            annotate.map(|text| text.parse()).transpose().map_err(|error: Error| error.to_string())?;
        Ok(Self { kind: checked_kind(kind)?, image, annotate, steering })
    }
}

fn checked_kind(kind: String) -> Result<String, String> {
    let is_part = |c: char| c.is_alphanumeric() || "-_.".contains(c);
    match !kind.is_empty() && kind.len() <= MAX_KIND_BYTES && kind.chars().all(is_part) {
        true => Ok(kind),
        false => Err(format!("kind: expected a word such as canny, got {kind:?}")),
    }
}

/// How a control image steers, as fields beside those of its file.
pub(super) fn steering<S: Serializer>(steering: &Steering, serializer: S) -> Result<S::Ok, S::Error> {
    #[derive(Serialize)]
    struct Fields {
        weight: f64,
        start: f64,
        end: f64,
        mode: String,
    }
    let Steering { weight, start, end, mode } = *steering;
    Fields { weight, start, end, mode: mode.to_string() }.serialize(serializer)
}

impl Serialize for Image<Init> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let path = match self {
            Self::Named(file) => return file.serialize(serializer),
            Self::Given(Init::File(file)) => Some(file.origin().into()),
            Self::Given(Init::Pixels(_)) => None,
        };
        NamedFile { path, sha256: None }.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Image<Init> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        NamedFile::deserialize(deserializer).map(Self::Named)
    }
}

impl Serialize for Image<Mask> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let path = match self {
            Self::Named(file) => return file.serialize(serializer),
            Self::Given(Mask::InitAlpha) => return serializer.serialize_str(ALPHA),
            Self::Given(Mask::File(file)) => Some(file.origin().into()),
            Self::Given(Mask::Pixels(_)) => None,
        };
        NamedFile { path, sha256: None }.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Image<Mask> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match PathOr::<FileFields>::deserialize(deserializer)? {
            PathOr::Path(path) if path == ALPHA => Ok(Self::Given(Mask::InitAlpha)),
            read => read.try_into().map(Self::Named).map_err(D::Error::custom),
        }
    }
}
