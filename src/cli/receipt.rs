//! The recipe that a picture carries: what is needed to draw it again, as our JSON and as A1111's `parameters`.

use std::collections::BTreeMap;

use calotype::engine::Library;
use calotype::manifest::Manifest;
use calotype::request::Request;
use serde::Serialize;

/// What is needed to draw a picture again.
#[derive(Serialize)]
pub(super) struct Receipt {
    calotype: &'static str,
    model: String,
    /// SHA-256 per file of the model.
    model_files: BTreeMap<String, String>,
    /// The file of the U-Net's weights, by whose hash A1111's form names the model.
    #[serde(skip)]
    unet_file: String,
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
    pub(super) fn new(request: &Request, manifest: &Manifest, library: &Library) -> Self {
        let hashes = manifest.files.iter().map(|(name, record)| (name.clone(), record.sha256.clone()));
        Self {
            calotype: env!("CARGO_PKG_VERSION"),
            model: manifest.name.clone(),
            model_files: hashes.collect(),
            unet_file: manifest.components.unet.weights[0].clone(),
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
        // A1111's short form of a hash.
        let hash = &self.model_files[&self.unet_file][..10];
        format!(
            "{}\n{negative}Steps: {}, Sampler: {}, CFG scale: {}, Seed: {}, Size: {}, Model hash: {hash}, Model: {}, \
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
