//! Recipes as A1111's `parameters` and back: what its web UI, Forge, SD.Next, savers of ComfyUI and stable-diffusion.cpp
//! call a setting. It knows nothing of how such a text is put together.
//!
//! What a name means was found by reading images and the programs' documentation; no code is theirs.

use super::infotext::{self, Parts};
use super::{Hires, HiresUpscaler, Image, NamedFile, Receipt, Recipe};
use crate::noise::Rng;
use crate::sampler::{self, Method, Sampling};
use crate::schedule::{AysTable, ScheduleKind, Spacing};
use crate::{Error, ErrorKind};

/// The longest text that is read.
const MAX_TEXT_BYTES: usize = 4 << 20;
/// The digits of a model's hash in such a text, and of a small file's.
const MODEL_DIGITS: usize = 10;
const ADDITION_DIGITS: usize = 12;

/// A small file that is added to a model, as such a text names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Addition {
    /// The file's name without its extension.
    pub name: String,
    /// Whether it is a LoRA; otherwise it is a textual inversion.
    pub is_lora: bool,
    /// The hash by which A1111 knows it; of one that was read as many digits as were there.
    pub hash: String,
}

/// A recipe that was read, and what of the text is not in it.
#[derive(Clone, Debug, Default)]
pub struct Imported {
    /// The recipe. A model, an init image and a mask that the text speaks of are files of which nothing is known.
    pub recipe: Recipe,
    /// What could not be used, each as a line.
    pub warnings: Vec<String>,
    /// The model's name.
    pub model_name: Option<String>,
    /// The first digits of its SHA-256.
    pub model_hash: Option<String>,
    /// LoRA files and textual inversions, which the prompts mention.
    pub additions: Vec<Addition>,
}

/// The text that A1111's web UI would have written.
pub fn write(receipt: &Receipt, additions: &[Addition]) -> String {
    let Receipt { recipe, provenance } = receipt;
    fn text<T: ToString>(value: Option<&T>) -> String {
        value.map(ToString::to_string).unwrap_or_default()
    }
    let of_model = provenance.as_ref().map(|made| (made.model_name.clone(), made.model_sha256.clone()));
    let (model_name, model_hash) = of_model.unwrap_or_default();
    let model_hash = model_hash.unwrap_or_default();
    let hashes = |is_lora: bool| {
        let named = additions.iter().filter(|addition| addition.is_lora == is_lora);
        let named =
            named.map(|addition| format!("{}: {}", addition.name, short(&addition.hash, ADDITION_DIGITS)));
        named.collect::<Vec<_>>().join(", ")
    };
    let scale = recipe.guidance.as_ref().and_then(|scales| scales.for_steps(recipe.steps.unwrap_or(1)).ok());
    let mut values = vec![
        ("Steps", text(recipe.steps.as_ref())),
        ("Sampler", recipe.sampler.map(sampler_name).unwrap_or_default()),
        ("Schedule type", recipe.schedule.as_ref().map(schedule_name).unwrap_or_default().to_owned()),
        ("CFG scale", text(scale.as_ref().map(|scales| &scales[0]))),
        ("Seed", text(recipe.seed.as_ref())),
        ("Size", text(recipe.size.as_ref())),
        ("Model hash", short(&model_hash, MODEL_DIGITS).to_owned()),
        ("Model", model_name),
        ("Clip skip", text(recipe.clip_skip.as_ref())),
        ("Variation seed", text(recipe.variation_seed.as_ref())),
        ("Variation seed strength", text(recipe.variation_strength.as_ref())),
        ("Denoising strength", text(recipe.strength.or(recipe.hires.map(|hires| hires.strength)).as_ref())),
        ("Hires upscale", text(recipe.hires.map(|hires| hires.scale).as_ref())),
        ("Hires upscaler", recipe.hires.map(|hires| hires.upscaler.a1111()).unwrap_or_default().to_owned()),
        ("Mask blur", text(recipe.mask_blur.filter(|blur_px| *blur_px > 0.0).as_ref())),
        ("Mask mode", if recipe.mask_invert == Some(true) { NOT_MASKED } else { "" }.to_owned()),
        ("Inpaint area", if recipe.mask_only.is_some() { ONLY_MASKED } else { "" }.to_owned()),
        ("Masked area padding", text(recipe.mask_only.as_ref())),
        ("Schedule rho", text(recipe.schedule.as_ref().and_then(rho).as_ref())),
    ];
    values.extend(recipe.sampler.map(settings).unwrap_or_default());
    values.push(("Lora hashes", hashes(true)));
    values.push(("TI hashes", hashes(false)));
    let rng = match recipe.rng.unwrap_or_default() {
        // Absent means the GPU's to A1111.
        Rng::Torch => "CPU".into(),
        Rng::Philox => "NV".into(),
        other => other.to_string(),
    };
    values.push(("RNG", rng));
    let version = provenance.as_ref().map(|provenance| format!("{PROGRAM} {}", provenance.calotype));
    values.push(("Version", version.unwrap_or_default()));
    infotext::text(&recipe.prompt, recipe.negative.as_deref().unwrap_or_default(), recipe.literal, &values)
}

/// What A1111 calls an inverted mask, and a run at the surroundings of the mask.
const NOT_MASKED: &str = "Inpaint not masked";
const ONLY_MASKED: &str = "Only masked";

/// How our own texts begin to name what wrote them.
const PROGRAM: &str = "calotype";

/// A method's name in A1111's web UI or, where it has none there, here.
fn sampler_name(method: Method) -> String {
    let about = method.kind().about();
    if about.a1111.is_empty() { about.name } else { about.a1111 }.to_owned()
}

/// Those of a method's settings that A1111 has names for, where they are not the usual ones.
fn settings(method: Method) -> Vec<(&'static str, String)> {
    let about = method.kind().about();
    let Ok(usual) = sampler_name(method).parse::<Method>() else { return Vec::new() };
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
        let variant = |method: Method| method.get(&sampler::BH);
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

fn short(hash: &str, len: usize) -> &str {
    hash.get(..len).unwrap_or(hash)
}

/// Values that say nothing of how an image is drawn.
const NOTES: [&str; 19] = [
    "App",
    "Backend",
    "Batch pos",
    "Batch size",
    "Civitai metadata",
    "Civitai resources",
    "Comment",
    "Created Date",
    "Hashes",
    "Init image hash",
    "Init image size",
    "Negative Template",
    "Operations",
    "Pipeline",
    "Template",
    "User",
    "Version",
    "Wildcard negative prompt",
    "Wildcard prompt",
];
/// Values of one feature: what their names begin with, and what is not done.
const FEATURES: [(&str, &str); 14] = [
    ("Hires", "Hires fix: settings that are not used"),
    ("ADetailer", "ADetailer: not done"),
    ("ControlNet", "ControlNet: not used"),
    ("Refiner", "Refiner: not used"),
    ("FreeU", "FreeU: not used"),
    ("freeu", "FreeU: not used"),
    ("Token merging", "Token merging: not done"),
    ("Dynamic thresholding", "Dynamic thresholding: not done; the guidance method mimic is similar"),
    ("Mimic", "Dynamic thresholding: not done; the guidance method mimic is similar"),
    ("Ultimate SD upscale", "Ultimate SD upscale: not done"),
    ("SD upscale", "SD upscale: not done"),
    ("RP ", "Regional Prompter: not used"),
    ("Tiled Diffusion", "Tiled Diffusion: not done"),
    ("Module ", "Modules: not used: a VAE or text encoder in a separate file"),
];
/// What only images that start from another with a mask have.
const OF_MASKS: [&str; 8] = [
    "Mask mode",
    "Masked content",
    "Inpaint area",
    "Masked area padding",
    "Mask blur",
    "Inpaint mode",
    "Only masked padding",
    "Mask invert",
];
/// A1111's samplers whose next to last noise level it leaves out.
const SHORTENED: [&str; 3] = ["DPM2", "DPM2 a", "DPM++ 3M SDE"];

/// Reads a text of A1111's web UI, or of a program that writes the same. What the text does not say is what the program
/// would have done: without `RNG` noise is that of a GPU, without `Schedule type` the sampler's schedule is the one that
/// A1111 has for it.
///
/// # Errors
/// [`ErrorKind::Input`] for a text that is empty or too long.
pub fn read(origin: &str, text: &str) -> Result<Imported, Error> {
    let refuse = |problem: String| Error::new(ErrorKind::Input, format!("{origin}: parameters: {problem}"));
    if text.len() > MAX_TEXT_BYTES {
        return Err(refuse(format!("expected at most {MAX_TEXT_BYTES} bytes, got {}", text.len())));
    }
    if text.trim().is_empty() {
        return Err(refuse("expected prompts and settings, got an empty text".into()));
    }
    let Parts { prompt, negative, values } = infotext::parts(text);
    let mut reader = Reader { values, ..Reader::default() };
    let recipe = Recipe {
        prompt,
        negative: Some(negative).filter(|negative| !negative.is_empty()),
        ..Recipe::default()
    };
    reader.imported.recipe = recipe;
    reader.read();
    Ok(reader.imported)
}

/// A text's values, on the way into a recipe.
#[derive(Default)]
struct Reader {
    /// Those that have not been read.
    values: Vec<(String, String)>,
    imported: Imported,
}

impl Reader {
    fn read(&mut self) {
        if self.values.is_empty() {
            self.warn(
                "settings: expected a last line with them, got none: all of the text is the prompt".into(),
            );
            return;
        }
        self.imported.recipe.steps = self.number("Steps");
        self.imported.recipe.size = self.number("Size");
        self.imported.recipe.clip_skip = self.number("Clip skip");
        self.imported.recipe.image_guidance = self.number("Image CFG scale");
        let scale: Option<f64> = self.number("CFG scale");
        self.imported.recipe.guidance = scale.map(Into::into);
        match self.take("Seed") {
            // A seed that was to be random is not known any more.
            Some(seed) if seed == "-1" => {
                self.warn("Seed: expected a number, got -1: a random one is used".into())
            }
            Some(seed) => self.imported.recipe.seed = self.parsed("Seed", &seed),
            None => {}
        }
        let version = self.peek("Version").unwrap_or_default().to_lowercase();
        let sampler = self.take("Sampler");
        self.sampling(sampler.as_deref(), version.starts_with(PROGRAM));
        self.rng(sampler.as_deref(), &version);
        self.variation();
        self.images();
        self.files();
        self.rest();
    }

    fn peek(&self, name: &str) -> Option<&str> {
        // Of several, the last counts in A1111.
        let value = self.values.iter().rfind(|(known, _)| known.eq_ignore_ascii_case(name));
        value.map(|(_, value)| value.as_str()).filter(|value| !value.is_empty())
    }

    /// A value, which then has been read.
    fn take(&mut self, name: &str) -> Option<String> {
        let value = self.peek(name).map(str::to_owned);
        let mut others = self.values.iter().filter(|(known, other)| {
            known.eq_ignore_ascii_case(name) && value.as_ref().is_some_and(|value| value != other)
        });
        if let Some((_, other)) = others.next_back() {
            let line = format!("{name}: there several times: the last is used, and not {other:?}");
            self.warn(line);
        }
        self.values.retain(|(known, _)| !known.eq_ignore_ascii_case(name));
        value
    }

    fn number<T: std::str::FromStr>(&mut self, name: &str) -> Option<T> {
        let value = self.take(name)?;
        self.parsed(name, &value)
    }

    fn parsed<T: std::str::FromStr>(&mut self, name: &str, value: &str) -> Option<T> {
        let is_finite = value.trim().parse::<f64>().map_or(true, f64::is_finite);
        let parsed = value.trim().parse().ok().filter(|_| is_finite);
        if parsed.is_none() {
            self.warn(format!("{name}: not understood, not used: {value:?}"));
        }
        parsed
    }

    fn warn(&mut self, line: String) {
        if !self.imported.warnings.contains(&line) {
            self.imported.warnings.push(line);
        }
    }

    /// Sampler, schedule and the settings of both.
    fn sampling(&mut self, sampler: Option<&str>, is_ours: bool) {
        let schedule = ["Schedule type", "Scheduler"].into_iter().find_map(|name| self.take(name));
        let typed = sampler.unwrap_or_default();
        // ComfyUI's variants that make noise on the GPU.
        let name = typed.strip_suffix("_gpu").unwrap_or(typed);
        let (mut method, mut of_name) = (None, None);
        match name.parse::<Sampling>() {
            Ok(sampling) => (method, of_name) = (Some(sampling.method), sampling.schedule),
            Err(_) if name.is_empty() => {}
            Err(error) => {
                let why = error.to_string();
                let why = why.strip_prefix("sampler: ").unwrap_or(&why).to_owned();
                // A list of all that there are is of no use here.
                let why =
                    if why.starts_with("expected one of") { format!("not known: {typed:?}") } else { why };
                self.warn(format!("Sampler: {why}; the model's own is used"));
            }
        }
        let a1111 = method.map(sampler_name).unwrap_or_default();
        let is_automatic = |name: &String| name.eq_ignore_ascii_case("automatic");
        let named = schedule.filter(|name| !is_automatic(name) || is_ours);
        let schedule = match named {
            Some(name) if is_automatic(&name) => {
                self.warn(
                    "Schedule type: expected its name, got Automatic: the sampler's own is used".into(),
                );
                None
            }
            Some(name) => match name.parse::<ScheduleKind>() {
                Ok(kind) => Some(kind),
                Err(_) => {
                    self.warn(format!("Schedule type: not known: {name:?}; the sampler's own is used"));
                    None
                }
            },
            None if is_ours => of_name,
            None => of_name.or_else(|| automatic(&a1111)),
        };
        let schedule = match (schedule, self.number::<f64>("Schedule rho")) {
            (Some(ScheduleKind::Karras { .. }), Some(rho)) => Some(ScheduleKind::Karras { rho }),
            (Some(ScheduleKind::Polyexponential { .. }), Some(rho)) => {
                Some(ScheduleKind::Polyexponential { rho })
            }
            (schedule, _) => schedule,
        };
        let schedule =
            match (schedule, self.number::<f64>("Beta schedule alpha"), self.number("Beta schedule beta")) {
                (Some(ScheduleKind::Beta { alpha, beta }), new_alpha, new_beta) => Some(ScheduleKind::Beta {
                    alpha: new_alpha.unwrap_or(alpha),
                    beta: new_beta.unwrap_or(beta),
                }),
                (schedule, ..) => schedule,
            };
        if !is_ours && SHORTENED.contains(&a1111.as_str()) {
            self.warn(format!("Sampler: {a1111}: A1111 discards the next-to-last sigma; not reproduced"));
        }
        let eta = if a1111 == "DDIM" { "Eta DDIM" } else { "Eta" };
        for (value, setting) in [
            (eta, "eta"),
            ("Sigma churn", "s_churn"),
            ("Sigma tmin", "s_tmin"),
            ("Sigma tmax", "s_tmax"),
            ("Sigma noise", "s_noise"),
            ("UniPC variant", "solver"),
            ("UniPC order", "order"),
        ] {
            let (Some(known), Some(number)) = (method, self.take(value)) else { continue };
            let text = known.to_string();
            let separator = if text.contains(':') { ',' } else { ':' };
            match format!("{text}{separator}{setting}={number}").parse::<Method>() {
                Ok(with_setting) => method = Some(with_setting),
                Err(_) => self.warn(format!("{value}: not used: {number:?}")),
            }
        }
        self.imported.recipe.sampler = method;
        self.imported.recipe.schedule = schedule;
    }

    fn rng(&mut self, sampler: Option<&str>, version: &str) {
        let delta = ["ENSD", "Eta noise seed delta"].into_iter().find_map(|name| self.take(name));
        if let Some(delta) = delta.filter(|delta| delta != "0") {
            self.warn(format!("ENSD: not used: noise of the steps from another seed: {delta}"));
        }
        let rng = match self.take("RNG") {
            Some(name) => self.parsed("RNG", &name),
            None => {
                // ComfyUI makes noise on the CPU, and names samplers in small letters.
                let is_small = sampler.is_some_and(|name| !name.contains(char::is_uppercase));
                let is_cpu = is_small || version.contains("comfyui") || version.starts_with(PROGRAM);
                Some(if is_cpu { Rng::Torch } else { Rng::Philox })
            }
        };
        self.imported.recipe.rng = rng;
    }

    fn variation(&mut self) {
        let seed = self.number("Variation seed");
        let strength = self.number("Variation seed strength");
        if let (Some(seed), Some(strength)) = (seed, strength) {
            self.imported.recipe.variation_seed = Some(seed);
            self.imported.recipe.variation_strength = Some(strength);
        } else if seed.is_some() {
            self.warn("Variation seed: not used: without its strength".into());
        } else if strength.is_some() {
            self.warn("Variation seed strength: not used: without its seed".into());
        }
    }

    /// What an image starts from, of which such a text has no name.
    fn images(&mut self) {
        let strength = self.number::<f64>("Denoising strength");
        let is_hires = self.hires(strength);
        let has_mask = OF_MASKS.into_iter().any(|name| self.peek(name).is_some());
        // With Hires fix it is that of the second pass.
        if let Some(strength) = strength.filter(|_| !is_hires) {
            self.imported.recipe.strength = Some(strength);
            self.imported.recipe.init = Some(Image::Named(NamedFile::default()));
            if has_mask {
                self.imported.recipe.mask = Some(Image::Named(NamedFile::default()));
                self.mask();
            }
        }
    }

    /// The second pass; whether there is one.
    fn hires(&mut self, strength: Option<f64>) -> bool {
        if !self.values.iter().any(|(name, _)| name.starts_with("Hires")) {
            return false;
        }
        let is_ours = self.peek("Version").is_some_and(|version| version.to_lowercase().starts_with(PROGRAM));
        let name = self.take("Hires upscaler");
        let (upscaler, is_known) = HiresUpscaler::of_a1111(name.as_deref());
        let (Some(scale), Some(strength)) = (self.number("Hires upscale"), strength) else {
            self.warn("Hires fix: not done: without its scale and strength".into());
            return true;
        };
        match Hires::new(scale, strength, upscaler) {
            Ok(hires) => self.imported.recipe.hires = Some(hires),
            Err(error) => self.warn(format!("Hires fix: not done: {error}")),
        }
        if let Some(name) = name.filter(|_| !is_known) {
            self.warn(format!("Hires upscaler: {name} is not supported: a {} is used", upscaler.about()));
        }
        let has_steps = self.take("Hires steps").is_some();
        if self.imported.recipe.hires.is_some() && (has_steps || !is_ours) {
            self.warn("Hires fix: the second pass runs strength x steps here, in A1111 all of them: the image will differ".into());
        }
        true
    }

    /// What is done to the mask.
    fn mask(&mut self) {
        self.imported.recipe.mask_blur = self.number("Mask blur");
        for (name, value) in [("Mask mode", NOT_MASKED), ("Inpaint area", ONLY_MASKED)] {
            match self.take(name) {
                Some(mode) if mode == value && value == NOT_MASKED => {
                    self.imported.recipe.mask_invert = Some(true);
                }
                Some(mode) if mode == value => {
                    let padding = ["Masked area padding", "Only masked padding"]
                        .into_iter()
                        .find_map(|name| self.number(name));
                    self.imported.recipe.mask_only = Some(padding.unwrap_or(0));
                }
                // The other choice, which is the usual one.
                Some(mode) if ["Inpaint masked", "Whole picture"].contains(&mode.as_str()) => {}
                Some(mode) => self.warn(format!("{name}: not understood, not used: {mode:?}")),
                None => {}
            }
        }
        if self.imported.recipe.mask_only.is_some() && self.imported.recipe.mask_blur.is_none() {
            // Absent means none, and not what is usual here.
            self.imported.recipe.mask_blur = Some(0.0);
        }
    }

    /// The model, and what is put into it.
    fn files(&mut self) {
        self.imported.model_name = self.take("Model");
        self.imported.model_hash = self.take("Model hash").map(|hash| hash.to_lowercase());
        if self.imported.model_name.is_some() || self.imported.model_hash.is_some() {
            self.imported.recipe.model = Some(NamedFile::default());
        }
        let vae = self.take("VAE");
        let hash = self.take("VAE hash");
        if let Some(vae) = vae.or(hash).filter(|vae| !["None", "Automatic"].contains(&vae.as_str())) {
            self.warn(format!("VAE: not used: {vae:?}: a VAE in a separate file"));
        }
        for (value, is_lora) in [("Lora hashes", true), ("TI hashes", false)] {
            for pair in self.take(value).unwrap_or_default().split(',') {
                if let Some((name, hash)) = pair.rsplit_once(':') {
                    let (name, hash) = (name.trim().to_owned(), hash.trim().to_lowercase());
                    self.imported.additions.push(Addition { name, is_lora, hash });
                }
            }
        }
    }

    /// What has not been read.
    fn rest(&mut self) {
        for (name, value) in std::mem::take(&mut self.values) {
            let feature = FEATURES.iter().find(|(prefix, _)| name.starts_with(prefix));
            match feature {
                Some((_, line)) => self.warn((*line).to_owned()),
                None if NOTES.contains(&name.as_str()) => {}
                None => self.warn(format!("{name}: not used: {value:?}")),
            }
        }
    }
}

/// The schedule that A1111 has for one of its samplers where none was chosen. DDIM, PLMS, UniPC and LCM choose their own
/// timesteps.
fn automatic(a1111: &str) -> Option<ScheduleKind> {
    Some(match a1111 {
        "DPM++ 2M" | "DPM++ SDE" | "DPM++ 2S a" | "DPM2" | "DPM2 a" => ScheduleKind::KARRAS,
        "DPM++ 2M SDE" | "DPM++ 2M SDE Heun" | "DPM++ 3M SDE" => ScheduleKind::Exponential,
        "Euler" | "Euler a" | "Heun" | "LMS" => ScheduleKind::Normal,
        _ => return None,
    })
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
}
