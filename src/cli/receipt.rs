//! The recipe that a picture carries: what is needed to draw it again, as our JSON and as A1111's `parameters`.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::ops::Not;
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};

use calotype::engine::Library;
use calotype::guidance::Method;
use calotype::model::Model;
use calotype::request::Request;
use calotype::sampler;
use calotype::schedule::{AysTable, ScheduleKind, Spacing};
use image::RgbImage;
use serde::Serialize;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::{Addition, infotext};

/// What is needed to draw a picture again.
#[derive(Serialize)]
pub(super) struct Receipt<'a> {
    calotype: &'static str,
    model: String,
    /// SHA-256 per file of a bundle; other models are not hashed, which would take longer than to draw.
    model_files: Option<BTreeMap<String, String>>,
    /// The hash by which A1111's form names the model.
    #[serde(skip)]
    model_hash: Option<String>,
    /// SHA-256 of the size and the pixels before they were encoded: [`pixels_sha256`]. Lossy formats change them.
    pixels_sha256: String,
    /// LoRA files and textual inversions.
    #[serde(skip_serializing_if = "<[Addition]>::is_empty")]
    additions: &'a [Addition],
    prompt: String,
    negative: String,
    size: String,
    #[serde(skip_serializing_if = "Not::not")]
    literal: bool,
    /// Which layer of the text encoders was read, as A1111 counts, if one was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    clip_skip: Option<usize>,
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
    /// The sampler and the schedule, for their names in A1111's form.
    #[serde(skip)]
    method: sampler::Method,
    #[serde(skip)]
    levels: ScheduleKind,
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
    /// `init` and `mask` are the SHA-256 of the images that are drawn from.
    #[expect(clippy::too_many_arguments, reason = "a receipt is made of all that made the image")]
    pub(super) fn new(
        image: &RgbImage,
        request: &Request,
        model: &Model,
        model_hash: Option<String>,
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
        Self {
            calotype: env!("CARGO_PKG_VERSION"),
            model: model.manifest().name.clone(),
            model_files: hashes,
            model_hash,
            pixels_sha256: pixels_sha256(image.width(), image.height(), image.as_raw()),
            additions,
            prompt: request.prompt().to_owned(),
            negative: request.negative().to_owned(),
            size: request.size().to_string(),
            literal: request.is_literal(),
            clip_skip: model.clip_skip(),
            sampler: request.sampler().to_string(),
            method: request.sampler(),
            levels: request.schedule().clone(),
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
        let number = |number: Option<f64>| number.map(|number| number.to_string()).unwrap_or_default();
        let from = self.drawn_from.as_ref();
        let [mut loras, mut embeddings] = [Vec::new(), Vec::new()];
        for addition in self.additions {
            let named = format!("{}: {}", addition.name(), short(&addition.a1111_hash, 12));
            if addition.strength.is_some() { &mut loras } else { &mut embeddings }.push(named);
        }
        let mut values = vec![
            ("Steps", from.map_or(self.sigmas.len() - 1, |from| from.steps).to_string()),
            ("Sampler", sampler_name(self.method)),
            ("Schedule type", schedule_name(&self.levels).to_owned()),
            ("CFG scale", self.guidance.to_string()),
            ("Seed", self.seed.to_string()),
            ("Size", self.size.clone()),
            ("Model hash", self.model_hash.as_deref().map_or("", |hash| short(hash, 10)).to_owned()),
            ("Model", self.model.clone()),
            ("Clip skip", self.clip_skip.map(|layer| layer.to_string()).unwrap_or_default()),
            ("Variation seed", self.variation_seed.map(|seed| seed.to_string()).unwrap_or_default()),
            ("Variation seed strength", number(self.variation_strength)),
            ("Denoising strength", number(from.and_then(|from| from.strength))),
            ("Schedule rho", number(rho(&self.levels))),
        ];
        values.extend(settings(self.method));
        values.push(("Lora hashes", loras.join(", ")));
        values.push(("TI hashes", embeddings.join(", ")));
        let rng = match self.rng.as_str() {
            // Absent means the GPU's to A1111.
            "torch" => "CPU",
            "philox" => "NV",
            other => other,
        };
        values.push(("RNG", rng.to_owned()));
        values.push(("Version", format!("calotype {}", self.calotype)));
        infotext::text(&self.prompt, &self.negative, self.literal, &values)
    }
}

/// The SHA-256 by which a receipt knows its image: of `WIDTHxHEIGHT`, a line end, and 3 bytes a pixel in rows.
pub(super) fn pixels_sha256(width_px: u32, height_px: u32, rgb: &[u8]) -> String {
    let mut hash = Sha256::new();
    hash.update(format!("{width_px}x{height_px}\n"));
    hash.update(rgb);
    format!("{:x}", hash.finalize())
}

fn short(hash: &str, len: usize) -> &str {
    hash.get(..len).unwrap_or(hash)
}

/// A method's name in A1111's web UI or, where it has none there, here.
fn sampler_name(method: sampler::Method) -> String {
    let about = method.kind().about();
    if about.a1111.is_empty() { about.name } else { about.a1111 }.to_owned()
}

/// Those of a method's settings that A1111 has names for, where they are not the usual ones.
fn settings(method: sampler::Method) -> Vec<(&'static str, String)> {
    let about = method.kind().about();
    let Ok(usual) = sampler_name(method).parse::<sampler::Method>() else { return Vec::new() };
    let eta = if about.a1111 == "DDIM" { "Eta DDIM" } else { "Eta" };
    let numbers = [
        (eta, sampler::ETA),
        ("Sigma churn", sampler::S_CHURN),
        ("Sigma tmin", sampler::S_TMIN),
        ("Sigma tmax", sampler::S_TMAX),
        ("Sigma noise", sampler::S_NOISE),
    ];
    let changed = numbers.into_iter().filter(|(_, setting)| method.get(setting) != usual.get(setting));
    let mut changed: Vec<_> =
        changed.map(|(name, setting)| (name, method.get(&setting).to_string())).collect();
    if about.a1111 == "UniPC" {
        let variant = |method: sampler::Method| method.get(&sampler::BH);
        if variant(method) != variant(usual) {
            let name = if variant(method) == sampler::Bh::Bh1 { "bh1" } else { "bh2" };
            changed.push(("UniPC variant", name.into()));
        }
        if method.get(&sampler::ORDER) != usual.get(&sampler::ORDER) {
            changed.push(("UniPC order", method.get(&sampler::ORDER).to_string()));
        }
    }
    changed
}

/// The label of a schedule in A1111's web UI, or of the nearest that it has; `Automatic` is the sampler's own.
fn schedule_name(kind: &ScheduleKind) -> &'static str {
    match kind {
        ScheduleKind::Spaced(Spacing::Leading { .. }) => "DDIM",
        ScheduleKind::Spaced(Spacing::Linspace) | ScheduleKind::Normal => "Uniform",
        // From the last timestep on, evenly, the first left out: the same to within a timestep.
        ScheduleKind::Spaced(Spacing::Trailing) | ScheduleKind::SgmUniform => "SGM Uniform",
        ScheduleKind::Simple => "Simple",
        ScheduleKind::Karras { .. } => "Karras",
        ScheduleKind::Exponential => "Exponential",
        ScheduleKind::Polyexponential { .. } => "Polyexponential",
        ScheduleKind::Beta { .. } => "Beta",
        ScheduleKind::KlOptimal => "KL Optimal",
        ScheduleKind::Ays(AysTable::Sd1 | AysTable::Sdxl) => "Align Your Steps",
        _ => "Automatic",
    }
}

/// The power of a schedule, where it is not A1111's default.
fn rho(kind: &ScheduleKind) -> Option<f64> {
    match *kind {
        ScheduleKind::Karras { rho } if rho != 7.0 => Some(rho),
        ScheduleKind::Polyexponential { rho } if rho != 1.0 => Some(rho),
        _ => None,
    }
}

/// The hash by which A1111 names a model, found while images are drawn, because reading gigabytes takes a while.
pub(super) struct ModelHash {
    known: Option<String>,
    search: Option<JoinHandle<Option<String>>>,
}

impl ModelHash {
    /// Of a bundle, that of its U-Net's weights, which the manifest has; of a single file, that of the file, as A1111; of
    /// a folder, that of the weights in its `unet`, as if they were one file in the order of their names.
    pub(super) fn begin(model: &Model, path: Option<&Path>) -> Self {
        let contents = model.contents();
        let unet = contents.and_then(|contents| contents.files.get(&contents.components.unet.weights[0]));
        let known = unet.map(|record| record.sha256.clone());
        let search = path.filter(|_| contents.is_none()).map(weight_files).and_then(|files| {
            thread::Builder::new().name("calotype-hash".into()).spawn(move || hash_of(&files).ok()).ok()
        });
        Self { known, search }
    }

    /// Waits until it is found.
    pub(super) fn get(&mut self) -> Option<String> {
        if let Some(search) = self.search.take() {
            self.known = search.join().ok().flatten();
        }
        self.known.clone()
    }
}

fn weight_files(path: &Path) -> Vec<PathBuf> {
    if !path.is_dir() {
        return vec![path.to_owned()];
    }
    let entries = fs::read_dir(path.join("unet")).into_iter().flatten().flatten();
    let is_weights = |path: &PathBuf| {
        let extension = path.extension().and_then(OsStr::to_str).unwrap_or_default();
        ["safetensors", "onnx", "onnx_data", "data"].contains(&extension)
    };
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(is_weights).collect();
    files.sort();
    files
}

fn hash_of(files: &[PathBuf]) -> io::Result<String> {
    if files.is_empty() {
        return Err(io::ErrorKind::NotFound.into());
    }
    let mut hash = Sha256::new();
    for file in files {
        io::copy(&mut File::open(file)?, &mut hash)?;
    }
    Ok(format!("{:x}", hash.finalize()))
}

/// The hash by which A1111 names a small file that is added to a model: of a LoRA in safetensors what its trainer wrote
/// into it, or that of the tensors alone; of all else that of the file.
pub(super) fn addition_hash(path: &Path, is_lora: bool) -> io::Result<String> {
    let bytes = fs::read(path)?;
    let header_bytes = bytes.first_chunk().map(|head| u64::from_le_bytes(*head));
    let data = header_bytes
        .and_then(|len| usize::try_from(len).ok()?.checked_add(8))
        .and_then(|start| Some((bytes.get(8..start)?, bytes.get(start..)?)));
    let Some((header, data)) = data.filter(|_| is_lora) else {
        return Ok(format!("{:x}", Sha256::digest(&bytes)));
    };
    let written = serde_json::from_slice::<Value>(header)
        .ok()
        .and_then(|header| header["__metadata__"]["sshs_model_hash"].as_str().map(str::to_owned));
    Ok(written
        .filter(|hash| hash.len() >= 12 && hash.bytes().all(|byte| byte.is_ascii_hexdigit()))
        .unwrap_or_else(|| format!("{:x}", Sha256::digest(data))))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What A1111 would do otherwise by a sampler's name.
    #[test]
    fn settings_are_those_that_a1111_does_not_have_by_default() {
        for (method, expected) in [
            ("unipc", &[("UniPC variant", "bh2"), ("UniPC order", "2")][..]),
            ("unipc:order=3,solver=bh1", &[]),
            ("ddim:eta=0.5", &[("Eta DDIM", "0.5")]),
            ("euler:s_churn=5,s_tmin=0.1", &[("Sigma churn", "5"), ("Sigma tmin", "0.1")]),
            ("deis:order=3", &[]),
        ] {
            let settings = settings(method.parse().expect(method));
            let settings: Vec<_> = settings.iter().map(|(name, value)| (*name, &value[..])).collect();
            assert_eq!(settings, expected, "{method}");
        }
    }

    /// Lengths and hashes as A1111's `addnet_hash_safetensors` and `sha256` give them.
    #[test]
    fn small_files_have_the_hashes_that_a1111_gives_them() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("lora.safetensors");
        let file =
            |header: &str| [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), b"data"].concat();
        let of = |bytes: &[u8], is_lora| {
            fs::write(&path, bytes).expect("written");
            addition_hash(&path, is_lora).expect("a hash")
        };
        let sha256 = |bytes: &[u8]| format!("{:x}", Sha256::digest(bytes));
        assert_eq!(of(&file("{}"), true), sha256(b"data"));
        assert_eq!(of(&file("{}"), false), sha256(&file("{}")));
        let named = file(r#"{"__metadata__": {"sshs_model_hash": "0123456789abcdef"}}"#);
        assert_eq!(of(&named, true), "0123456789abcdef");
        for odd in [&b""[..], b"short", &[0xff; 20]] {
            assert_eq!(of(odd, true), sha256(odd));
        }
    }

    #[test]
    fn models_are_named_by_their_files() {
        let folder = tempfile::tempdir().expect("a folder");
        fs::create_dir(folder.path().join("unet")).expect("a folder");
        for (name, bytes) in [("b.safetensors", "2"), ("a.safetensors", "1"), ("config.json", "3")] {
            fs::write(folder.path().join("unet").join(name), bytes).expect("written");
        }
        let hash = hash_of(&weight_files(folder.path())).expect("a hash");
        assert_eq!(hash, format!("{:x}", Sha256::digest(b"12")));
        let file = folder.path().join("unet/config.json");
        assert_eq!(hash_of(&weight_files(&file)).expect("a hash"), format!("{:x}", Sha256::digest(b"3")));
        assert!(hash_of(&weight_files(&folder.path().join("unet"))).is_err());
    }

    #[test]
    fn pixels_are_known_by_their_shape_too() {
        assert_ne!(pixels_sha256(2, 1, &[0; 6]), pixels_sha256(1, 2, &[0; 6]));
        // printf '2x1\n\0\0\0\0\0\0' | sha256sum
        assert_eq!(
            pixels_sha256(2, 1, &[0; 6]),
            "7fea82c78698410c5065f48be3cc9c73ef1fb32994a6f475736daa15895ac5c8"
        );
    }
}
