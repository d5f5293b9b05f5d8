//! The fields of a request, JSON or form, read as clients write them: numbers as texts, null as absent, names of several
//! programs. It knows nothing of what becomes of them but the recipe.

use std::str::FromStr;

use axum::http::StatusCode;
use serde_json::{Map, Value};

use super::limit;
use super::reply::{Problem, from_base64};
use crate::guidance::Scales;
use crate::image_file::ImageFile;
use crate::recipe::Recipe;
use crate::sampler::Sampling;
use crate::schedule::ScheduleKind;

/// Fields that are taken one after another; what is left at the end was not used.
pub(super) struct Fields {
    values: Map<String, Value>,
    /// The files of a form, by the names of their fields.
    files: Vec<(String, Vec<u8>)>,
    /// What was not done as asked.
    pub(super) warnings: Vec<String>,
}

impl Fields {
    /// Those of a JSON object.
    pub(super) fn of_json(body: &[u8]) -> Result<Self, Problem> {
        let read = crate::json::standard("body", body).map_err(|error| error.to_string());
        let value =
            read.and_then(|json| serde_json::from_slice::<Value>(&json).map_err(|error| error.to_string()));
        match value {
            Ok(Value::Object(values)) => Ok(Self::of(values)),
            Ok(_) => Err(Problem::field("body", "expected a JSON object, got another value")),
            Err(error) => Err(Problem::field("body", format!("expected JSON: {error}"))),
        }
    }

    /// Those of an object.
    pub(super) fn of(values: Map<String, Value>) -> Self {
        Self { values, files: Vec::new(), warnings: Vec::new() }
    }

    /// Those of a form.
    pub(super) fn of_form(texts: Vec<(String, String)>, files: Vec<(String, Vec<u8>)>) -> Self {
        let values = texts.into_iter().map(|(name, text)| (name, Value::String(text))).collect();
        Self { values, files, warnings: Vec::new() }
    }

    /// The value of the first of these names that is there.
    pub(super) fn take(&mut self, names: &[&str]) -> Option<(String, Value)> {
        let mut found = None;
        for name in names {
            // The other names are used, too: they say the same.
            match self.values.remove(*name) {
                None | Some(Value::Null) => {}
                Some(value) => found = found.or(Some(((*name).to_owned(), value))),
            }
        }
        found
    }

    /// The same of a value that is like this; another stays.
    pub(super) fn take_if(&mut self, names: &[&str], is_so: fn(&Value) -> bool) -> Option<(String, Value)> {
        let name = names.iter().find(|name| self.values.get(**name).is_some_and(is_so))?;
        self.values.remove_entry(*name)
    }

    /// Another value for a field.
    pub(super) fn put(&mut self, name: &str, value: Option<Value>) {
        self.values.insert(name.to_owned(), value.unwrap_or_default());
    }

    pub(super) fn text(&mut self, names: &[&str]) -> Result<Option<String>, Problem> {
        match self.take(names) {
            None => Ok(None),
            Some((_, Value::String(text))) => Ok(Some(text)),
            Some((_, Value::Number(number))) => Ok(Some(number.to_string())),
            Some((name, _)) => Err(Problem::field(&name, "expected a text, got another value")),
        }
    }

    /// A number, which a form or a careless client writes as text; an empty text is none.
    pub(super) fn number<T: FromStr>(&mut self, names: &[&str]) -> Result<Option<T>, Problem> {
        let Some((name, value)) = self.take(names) else { return Ok(None) };
        let text = match &value {
            Value::String(text) if text.trim().is_empty() => return Ok(None),
            Value::String(text) => text.trim().to_owned(),
            // 20.0 is a whole number, too.
            Value::Number(number) => match number.as_f64() {
                Some(whole) if whole.fract() == 0.0 && whole.abs() < 9e15 && !number.is_u64() => {
                    format!("{whole:.0}")
                }
                _ => number.to_string(),
            },
            _ => String::new(),
        };
        text.parse().map(Some).map_err(|_| Problem::field(&name, format!("expected a number, got {value}")))
    }

    pub(super) fn flag(&mut self, names: &[&str]) -> Result<bool, Problem> {
        match self.take(names) {
            None => Ok(false),
            Some((_, Value::Bool(flag))) => Ok(flag),
            Some((name, value)) => match value.to_string().trim_matches('"').to_lowercase().as_str() {
                "true" | "1" | "on" | "yes" => Ok(true),
                "false" | "0" | "off" | "no" | "" => Ok(false),
                _ => Err(Problem::field(&name, format!("expected true or false, got {value}"))),
            },
        }
    }

    /// The first image of these names: a file of a form, or base64, alone or in a list.
    pub(super) fn image(&mut self, names: &[&str]) -> Result<Option<ImageFile>, Problem> {
        let Some((name, bytes)) = self.image_bytes(names)? else { return Ok(None) };
        Ok(Some(ImageFile::from_bytes(&name, bytes)?))
    }

    pub(super) fn image_bytes(&mut self, names: &[&str]) -> Result<Option<(String, Vec<u8>)>, Problem> {
        let (mut found, mut more) = (None, 0);
        for (name, bytes) in std::mem::take(&mut self.files) {
            if !names.contains(&name.as_str()) {
                self.files.push((name, bytes));
            } else if found.is_none() {
                found = Some((name, bytes));
            } else {
                more += 1;
            }
        }
        if found.is_none() {
            found = match self.take(names) {
                None => None,
                Some((name, Value::String(text))) if text.is_empty() => {
                    return Err(Problem::field(&name, "expected an image, got an empty text"));
                }
                Some((name, Value::String(text))) => Some((name.clone(), from_base64(&name, &text)?)),
                Some((_, Value::Array(list))) if list.is_empty() => None,
                Some((name, Value::Array(list))) => {
                    more = list.len() - 1;
                    let first = list.first().and_then(Value::as_str);
                    let first = first.ok_or_else(|| Problem::field(&name, "expected images in base64"))?;
                    Some((name.clone(), from_base64(&name, first)?))
                }
                Some((name, _)) => return Err(Problem::field(&name, "expected an image in base64")),
            };
        }
        if let (Some((name, _)), 1..) = (&found, more) {
            self.warnings.push(format!("{name}: only the first image is used; {more} more ignored"));
        }
        Ok(found)
    }

    /// Sets what both APIs call the same in a recipe.
    pub(super) fn fill(&mut self, recipe: &mut Recipe) -> Result<(), Problem> {
        recipe.prompt = checked_prompt("prompt", self.text(&["prompt"])?.unwrap_or_default())?;
        if let Some(negative) = self.text(&["negative_prompt", "negative"])? {
            recipe.negative = Some(checked_prompt("negative_prompt", negative)?);
        }
        recipe.steps = self.number(&["steps", "num_inference_steps", "step"])?;
        let scale = self.number::<f64>(&["cfg_scale", "guidance_scale", "true_cfg_scale", "guidance"])?;
        recipe.guidance = scale.map(Scales::from);
        recipe.strength = self.number(&["strength", "denoising_strength"])?;
        recipe.seed = match self.number::<i128>(&["seed"])? {
            None | Some(-1) => None,
            Some(seed) => Some(u64::try_from(seed).map_err(|_| {
                Problem::field("seed", format!("expected -1 or a number below 2^64, got {seed}"))
            })?),
        };
        self.sampling(recipe)
    }

    fn sampling(&mut self, recipe: &mut Recipe) -> Result<(), Problem> {
        let is_named = |name: &String| !name.is_empty() && !name.eq_ignore_ascii_case("automatic");
        let sampler = self.text(&["sampler_name", "sampler_index", "sampler"])?.filter(is_named);
        let schedule = self.text(&["scheduler", "schedule"])?.filter(is_named);
        if let Some(name) = sampler {
            let Sampling { method, schedule } = name.parse()?;
            recipe.sampler = Some(method);
            recipe.schedule = schedule;
        }
        if let Some(name) = schedule {
            recipe.schedule = Some(name.parse::<ScheduleKind>()?);
        }
        Ok(())
    }

    /// The warnings so far, and one with the names of unused fields.
    pub(super) fn rest(mut self) -> Vec<String> {
        let values = self.values.into_iter().filter(|(_, value)| !is_nothing(value)).map(|(name, _)| name);
        let names: Vec<String> = values.chain(self.files.into_iter().map(|(name, _)| name)).collect();
        if !names.is_empty() {
            self.warnings.push(format!("fields that are not used: {}", names.join(", ")));
        }
        self.warnings
    }
}

/// Whether a field that is not used asks for nothing: clients send dozens of those.
fn is_nothing(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(object) => object.is_empty(),
        Value::Bool(true) => false,
    }
}

pub(super) fn checked_prompt(name: &str, prompt: String) -> Result<String, Problem> {
    let count = prompt.chars().count();
    if count > limit::PROMPT_CHARS {
        let got = format!("expected at most {} characters, got {count}", limit::PROMPT_CHARS);
        return Err(Problem::field(name, got).status(StatusCode::PAYLOAD_TOO_LARGE));
    }
    Ok(prompt)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(json: &str) -> Fields {
        Fields::of_json(json.as_bytes()).expect("an object")
    }

    #[test]
    fn numbers_are_read_as_clients_write_them() {
        let mut read = fields(
            r#"{"a": 20.0, "b": "7.5", "c": null, "d": "", "e": [], "f": "x", "g": 18446744073709551615}"#,
        );
        assert_eq!(read.number::<usize>(&["a"]).unwrap(), Some(20));
        assert_eq!(read.number::<f64>(&["b"]).unwrap(), Some(7.5));
        assert_eq!(read.number::<f64>(&["c"]).unwrap(), None);
        assert_eq!(read.number::<f64>(&["d"]).unwrap(), None);
        assert!(read.number::<f64>(&["e"]).is_err());
        assert!(read.number::<f64>(&["f"]).is_err());
        assert_eq!(read.number::<i128>(&["g"]).unwrap(), Some(i128::from(u64::MAX)));
    }

    #[test]
    fn what_is_not_used_is_told_unless_it_asks_for_nothing() {
        let mut read = fields(r#"{"prompt": "x", "tiling": false, "styles": [], "quality": "high", "n": 0}"#);
        read.text(&["prompt"]).unwrap();
        assert_eq!(read.rest(), ["fields that are not used: quality"]);
    }

    #[test]
    fn images_may_have_a_prefix_and_must_be_base64() {
        let mut read = fields(
            r#"{"a": "data:image/png;base64,aGk=", "b": ["aGk=", "eA=="], "c": "%", "d": 1, "e": "data:x"}"#,
        );
        assert_eq!(read.image_bytes(&["a"]).unwrap().unwrap().1, b"hi");
        assert_eq!(read.image_bytes(&["b"]).unwrap().unwrap().1, b"hi");
        assert_eq!(read.warnings, ["b: only the first image is used; 1 more ignored"]);
        for name in ["c", "d", "e"] {
            assert!(read.image_bytes(&[name]).is_err(), "{name}");
        }
        assert_eq!(read.image_bytes(&["f"]).unwrap(), None);
    }

    #[test]
    fn odd_json_is_refused() {
        let deep = "[".repeat(1_000_000);
        for json in ["", "[]", "1", "{", "\u{feff}", "{\"a\": tru}", &deep] {
            assert!(Fields::of_json(json.as_bytes()).is_err(), "{}", &json[..json.len().min(10)]);
        }
    }
}
