//! Receipts of before recipes had a version, as those of version 1. They named the model, and images by their hash alone.

use serde_json::{Map, Value, json};

use super::VERSION;
use crate::{Error, ErrorKind};

/// The same receipt in version 1.
///
/// # Errors
/// [`ErrorKind::Input`] for a list of additions that is none; all else is left to who reads version 1.
pub(super) fn upgrade(origin: &str, mut old: Map<String, Value>) -> Result<Map<String, Value>, Error> {
    old.insert("version".into(), VERSION.into());
    if let Some(name) = old.remove("model") {
        old.insert("model_name".into(), name);
    }
    // Where it was is not known.
    old.insert("model".into(), json!({}));
    if old.get("model_files").is_some_and(Value::is_null) {
        old.remove("model_files");
    }
    // There was one in every receipt.
    if old.get("negative").is_some_and(|negative| negative == "") {
        old.remove("negative");
    }
    if let Some(scales) = old.remove("guidance_schedule") {
        old.insert("guidance".into(), scales);
    }
    for image in ["init", "mask"] {
        match old.get_mut(image) {
            Some(value) if value.is_string() && value != "alpha" => *value = json!({ "sha256": value }),
            _ => {}
        }
    }
    // The number of steps was told where an init image left some of them out.
    let levels = old.get("sigmas").and_then(Value::as_array).map_or(0, Vec::len);
    if !old.contains_key("steps") && levels > 1 {
        old.insert("steps".into(), (levels - 1).into());
    }
    if let Some(additions) = old.remove("additions") {
        let Value::Array(additions) = additions else {
            let got = format!("{origin}: additions: expected a list, got {additions}");
            return Err(Error::new(ErrorKind::Input, got));
        };
        let (mut lora, mut embedding) = (Vec::new(), Vec::new());
        for mut addition in additions {
            if let Some(file) = addition.as_object_mut().and_then(|addition| addition.remove("file")) {
                addition["path"] = file;
            }
            if addition.get("strength").is_some() { &mut lora } else { &mut embedding }.push(addition);
        }
        for (name, files) in [("lora", lora), ("embedding", embedding)] {
            if !files.is_empty() {
                old.insert(name.into(), files.into());
            }
        }
    }
    Ok(old)
}
