//! The recipe that a picture carries: what is needed to draw it again, as our JSON and as A1111's `parameters`.

use std::collections::BTreeMap;

use calotype::engine::Library;
use calotype::model::Model;
use calotype::request::Request;
use serde::Serialize;

/// What is needed to draw a picture again.
#[derive(Serialize)]
pub(super) struct Receipt {
    calotype: &'static str,
    model: String,
    /// SHA-256 per file of a bundle; other models are not hashed, which would take longer than to draw.
    model_files: Option<BTreeMap<String, String>>,
    /// The hash of the U-Net's weights, by which A1111's form names the model.
    #[serde(skip)]
    unet_hash: Option<String>,
    prompt: String,
    negative: String,
    size: String,
    sampler: String,
    sigmas: Vec<f64>,
    guidance: f64,
    seed: u64,
    /// The generator of the noise, named for what it reproduces.
    rng: &'static str,
    provider: &'static str,
    onnxruntime: String,
}

impl Receipt {
    pub(super) fn new(request: &Request, model: &Model, library: &Library) -> Self {
        let contents = model.contents();
        let hashes = contents.map(|contents| {
            contents.files.iter().map(|(name, record)| (name.clone(), record.sha256.clone())).collect()
        });
        let unet = contents.and_then(|contents| contents.files.get(&contents.components.unet.weights[0]));
        Self {
            calotype: env!("CARGO_PKG_VERSION"),
            model: model.manifest().name.clone(),
            model_files: hashes,
            unet_hash: unet.map(|record| record.sha256.clone()),
            prompt: request.prompt().to_owned(),
            negative: request.negative().to_owned(),
            size: request.size().to_string(),
            sampler: request.sampler().to_string(),
            sigmas: request.sigmas(),
            guidance: request.guidance_scale(),
            seed: request.seed(),
            rng: "torch",
            provider: "cpu",
            onnxruntime: library.version().to_owned(),
        }
    }

    pub(super) fn to_json(&self) -> String {
        serde_json::to_string(self).expect("strings and numbers are JSON")
    }

    /// The form that A1111's web UI writes and many tools read.
    pub(super) fn parameters(&self) -> String {
        let negative = match self.negative.as_str() {
            "" => String::new(),
            text => format!("Negative prompt: {text}\n"),
        };
        let hash = match &self.unet_hash {
            // A1111's short form of a hash.
            Some(hash) => format!("Model hash: {}, ", &hash[..10]),
            None => String::new(),
        };
        format!(
            "{}\n{negative}Steps: {}, Sampler: {}, CFG scale: {}, Seed: {}, Size: {}, {hash}Model: {}, \
             Version: calotype {}",
            self.prompt,
            self.sigmas.len() - 1,
            self.sampler,
            self.guidance,
            self.seed,
            self.size,
            self.model,
            self.calotype,
        )
    }
}
