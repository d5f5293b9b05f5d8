//! A receipt: the recipe of an image, and what made it. It is JSON within the image's file.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{Recipe, form, old};
use crate::Error;

/// The recipe of an image, and what made it; one JSON object.
#[derive(Clone, Debug, Serialize)]
pub struct Receipt {
    /// How to make the image again.
    #[serde(flatten)]
    pub recipe: Recipe,
    /// What made it; unknown for a recipe alone.
    #[serde(flatten)]
    pub provenance: Option<Provenance>,
}

/// What made an image, and what it looks like.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Provenance {
    /// The version of calotype.
    pub calotype: String,
    /// The model's name, which its manifest or its file gives it.
    pub model_name: String,
    /// The hash by which A1111 names it: SHA-256 of the single file, or of the U-Net's weights.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model_sha256: Option<String>,
    /// SHA-256 of every file of a bundle; other models have [`Self::model_sha256`] alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model_files: Option<BTreeMap<String, String>>,
    /// SHA-256 of the size and the pixels before they were encoded, which lossy formats change. Absent in images of older
    /// versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pixels_sha256: Option<String>,
    /// The noise levels of the steps that were taken.
    pub sigmas: Vec<f64>,
    /// The providers, as they are chosen.
    pub provider: String,
    /// Per component that another provider than the CPU ran, what each provider ran of its graph, by its name in ONNX Runtime.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub shares: BTreeMap<String, BTreeMap<String, Ran>>,
    /// The version of ONNX Runtime.
    pub onnxruntime: String,
    /// The kind of CPU: its architecture and the vector instructions that change how sums are rounded, `x86_64 avx2 fma`. Absent in
    /// images of older versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu: Option<String>,
    /// The components that gave numbers that are not finite and were run again in higher precision. The same files do so
    /// again, so that the recipe makes the same image.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub retries: Vec<Retry>,
}

/// A component that was computed in higher precision than planned, because it had given numbers that are not finite.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Retry {
    /// The component: `vae_decoder`.
    pub component: String,
    /// From which step on, the first being 1, for one that is called in each.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<usize>,
    /// What it was computed in instead: `f32`.
    pub precision: String,
}

impl fmt::Display for Retry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { component, step, precision } = self;
        match step {
            Some(step) => {
                write!(f, "{component}: not finite in step {step}; computed in {precision} from there on")
            }
            None => write!(f, "{component}: not finite; computed again in {precision}"),
        }
    }
}

/// How much of a graph a provider ran.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ran {
    /// How many nodes.
    pub nodes: usize,
    /// In how many parts.
    pub partitions: usize,
}

impl Receipt {
    /// Reads a receipt, a recipe alone, or a receipt of calotype 0.1 before recipes had a version; `origin` says in
    /// messages where the JSON is from.
    ///
    /// # Errors
    /// As [`Recipe::parse`].
    pub fn parse(origin: &str, json: &[u8]) -> Result<Self, Error> {
        let object = form::object(origin, json)?;
        // Receipts have told the version of calotype from the first on.
        let object = if !object.contains_key("version") && object.contains_key("calotype") {
            old::upgrade(origin, object)?
        } else {
            object
        };
        form::check_version(origin, &object)?;
        let of_provenance = form::names::<Provenance>();
        let (provenance, recipe): (Map<String, Value>, Map<String, Value>) =
            object.into_iter().partition(|(key, _)| of_provenance.contains(&key.as_str()));
        let recipe = Recipe::read(origin, recipe)?;
        let provenance = (!provenance.is_empty()).then(|| form::fields(origin, provenance)).transpose()?;
        Ok(Self { recipe, provenance })
    }

    /// Its JSON on one line.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("texts and numbers are JSON")
    }
}
