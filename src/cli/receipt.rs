//! The recipe that a picture carries: what is needed to draw it again, as our JSON and as A1111's `parameters`.

use std::collections::BTreeMap;
use std::ops::Not;

use calotype::engine::Library;
use calotype::guidance::Method;
use calotype::model::Model;
use calotype::request::Request;
use calotype::sampler;
use serde::Serialize;

use super::Addition;

/// What is needed to draw a picture again.
#[derive(Serialize)]
pub(super) struct Receipt<'a> {
    calotype: &'static str,
    model: String,
    /// SHA-256 per file of a bundle; other models are not hashed, which would take longer than to draw.
    model_files: Option<BTreeMap<String, String>>,
    /// The hash of the U-Net's weights, by which A1111's form names the model.
    #[serde(skip)]
    unet_hash: Option<String>,
    /// LoRA files and textual inversions.
    #[serde(skip_serializing_if = "<[Addition]>::is_empty")]
    additions: &'a [Addition],
    prompt: String,
    negative: String,
    size: String,
    #[serde(skip_serializing_if = "Not::not")]
    literal: bool,
    sampler: String,
    schedule: String,
    sigmas: Vec<f64>,
    guidance: f64,
    /// One per step, where they differ.
    #[serde(skip_serializing_if = "Option::is_none")]
    guidance_schedule: Option<String>,
    /// Where it is not classifier-free guidance alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    guidance_method: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    guidance_interval: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    thresholding: Option<String>,
    #[serde(flatten)]
    drawn_from: Option<DrawnFrom>,
    seed: u64,
    /// The generator of the noise, named for what it reproduces.
    rng: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    variation_seed: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    variation_strength: Option<f64>,
    /// The sampler's name in A1111's form.
    #[serde(skip)]
    a1111_sampler: String,
    /// As `--provider` takes it.
    provider: String,
    onnxruntime: String,
}

/// What a picture was drawn from beside the prompt.
#[derive(Serialize)]
struct DrawnFrom {
    /// SHA-256 of the files.
    init: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    mask: Option<String>,
    /// Where pixels outside of the mask are not those of the init image.
    #[serde(skip_serializing_if = "Option::is_none")]
    keep_outside: Option<bool>,
    /// How many steps were asked for; `sigmas` are of those that the strength left.
    steps: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    strength: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    image_guidance: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    noise_level: Option<usize>,
}

impl<'a> Receipt<'a> {
    /// `init` and `mask` are the SHA-256 of the pictures that are drawn from.
    pub(super) fn new(
        request: &Request,
        model: &Model,
        additions: &'a [Addition],
        library: &Library,
        provider: String,
        init: &Option<String>,
        mask: &Option<String>,
    ) -> Self {
        let contents = model.contents();
        let hashes = contents.map(|contents| {
            contents.files.iter().map(|(name, record)| (name.clone(), record.sha256.clone())).collect()
        });
        let method = request.guidance_method();
        let is_named = !matches!(method, Method::Edit { .. } | Method::Cfg { rescale: 0.0 });
        let unet = contents.and_then(|contents| contents.files.get(&contents.components.unet.weights[0]));
        Self {
            calotype: env!("CARGO_PKG_VERSION"),
            model: model.manifest().name.clone(),
            model_files: hashes,
            unet_hash: unet.map(|record| record.sha256.clone()),
            additions,
            prompt: request.prompt().to_owned(),
            negative: request.negative().to_owned(),
            size: request.size().to_string(),
            literal: request.is_literal(),
            sampler: request.sampler().to_string(),
            a1111_sampler: a1111(request.sampler()),
            schedule: request.schedule().to_string(),
            sigmas: request.sigmas(),
            guidance: request.guidance_scale(),
            guidance_schedule: (request.scales() != &request.guidance_scale().into())
                .then(|| request.scales().to_string()),
            guidance_method: is_named.then(|| method.to_string()),
            guidance_interval: request.guidance_within().map(|within| within.to_string()),
            thresholding: request.thresholding().map(|thresholding| thresholding.to_string()),
            drawn_from: init.as_ref().map(|init| DrawnFrom {
                init: init.clone(),
                mask: mask.clone(),
                keep_outside: request.keeps_outside().filter(|keeps| !keeps),
                steps: request.asked_steps(),
                strength: request.strength(),
                image_guidance: request.image_guidance(),
                noise_level: request.noise_level(),
            }),
            seed: request.seed(),
            rng: request.rng().to_string(),
            variation_seed: request.variation().map(|variation| variation.seed),
            variation_strength: request.variation().map(|variation| variation.strength),
            provider,
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
        let strength = match self.drawn_from.as_ref().and_then(|from| from.strength) {
            Some(strength) => format!("Denoising strength: {strength}, "),
            None => String::new(),
        };
        let variation = match self.variation_seed.zip(self.variation_strength) {
            Some((seed, strength)) => {
                format!("Variation seed: {seed}, Variation seed strength: {strength}, ")
            }
            None => String::new(),
        };
        let rng = match self.rng.as_str() {
            "torch" => String::new(),
            "philox" => "RNG: NV, ".into(),
            other => format!("RNG: {other}, "),
        };
        let steps = self.drawn_from.as_ref().map_or(self.sigmas.len() - 1, |from| from.steps);
        format!(
            "{}\n{negative}Steps: {steps}, Sampler: {}, Schedule type: {}, CFG scale: {}, Seed: {}, Size: {}, \
             {hash}Model: {}, {variation}{strength}{rng}Version: calotype {}",
            self.prompt,
            self.a1111_sampler,
            self.schedule,
            self.guidance,
            self.seed,
            self.size,
            self.model,
            self.calotype,
        )
    }
}

/// A method's name in A1111's web UI or, where it has none there, here.
fn a1111(method: sampler::Method) -> String {
    match method.kind().about().a1111 {
        "" => method.to_string(),
        name => name.to_owned(),
    }
}
