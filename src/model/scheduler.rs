//! The scheduler of a diffusers folder: what `scheduler_config.json` says of the noise that a model was trained on, and of
//! the method that it is sampled with. It knows diffusers' classes and their defaults, and nothing of networks.

use std::path::Path;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::read;
use crate::family::Noise;
use crate::manifest::LowRes;
use crate::prediction::Prediction;
use crate::sampler::{Method, SamplerKind};
use crate::schedule::{Betas, Grid, ScheduleKind, Spacing};
use crate::{Error, ErrorKind, json};

/// What `timestep_scaling` is where nobody says otherwise; calotype's consistency samplers have it.
const TIMESTEP_SCALING: f64 = 10.0;

/// `scheduler_config.json`, with the defaults of its class.
#[derive(Clone, Debug)]
pub(super) struct Scheduler {
    class: Class,
    fields: Fields,
    betas: Betas,
    prediction: Prediction,
    /// What of the file is not done, a line each.
    notes: Vec<String>,
}

/// A scheduler of diffusers whose latents follow a curve of betas.
#[derive(Clone, Copy, Debug)]
struct Class {
    name: &'static str,
    /// The method, where calotype has it. PNDM does not count: it is what Stable Diffusion's folders name because it came
    /// first, and takes 50 steps to what others do in 20.
    sampler: Option<SamplerKind>,
    spacing: &'static str,
    /// Whether clean latents are clipped where the file does not say.
    clips: bool,
    /// The settings of its own, in lists that classes share.
    reads: &'static [&'static [&'static str]],
}

/// What all of these classes read.
const BETAS: [&str; 6] =
    ["num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "prediction_type"];
const SPACED: [&str; 2] = ["timestep_spacing", "steps_offset"];
const ZERO_SNR: &str = "rescale_betas_zero_snr";
const LEVELS: [&str; 3] = ["use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"];

const fn class(
    name: &'static str,
    sampler: Option<SamplerKind>,
    spacing: &'static str,
    clips: bool,
    reads: &'static [&'static [&'static str]],
) -> Class {
    Class { name, sampler, spacing, clips, reads }
}

impl Class {
    /// Whether it has this setting of its own.
    fn has(&self, key: &str) -> bool {
        self.reads.iter().any(|keys| keys.contains(&key))
    }

    /// Whether timesteps may be spaced in more ways than one.
    fn is_spaced(&self) -> bool {
        self.name != "DPMSolverSinglestepScheduler"
    }
}

const DDIM: &[&str] = &[
    "clip_sample",
    "clip_sample_range",
    "set_alpha_to_one",
    "thresholding",
    "dynamic_thresholding_ratio",
    "sample_max_value",
    ZERO_SNR,
];
const DDPM: &[&str] = &[
    "clip_sample",
    "clip_sample_range",
    "variance_type",
    "thresholding",
    "dynamic_thresholding_ratio",
    "sample_max_value",
    ZERO_SNR,
];
const KARRAS: &[&str] = &LEVELS;
const EULER: &[&str] = &[
    "use_karras_sigmas",
    "use_exponential_sigmas",
    "use_beta_sigmas",
    "interpolation_type",
    "sigma_min",
    "sigma_max",
    "timestep_type",
    "final_sigmas_type",
    ZERO_SNR,
];
const HEUN: &[&str] =
    &["use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "clip_sample", "clip_sample_range"];
const SDE: &[&str] =
    &["use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "noise_sampler_seed"];
const DEIS: &[&str] = &[
    "use_karras_sigmas",
    "use_exponential_sigmas",
    "use_beta_sigmas",
    "solver_order",
    "thresholding",
    "dynamic_thresholding_ratio",
    "sample_max_value",
    "algorithm_type",
    "solver_type",
    "lower_order_final",
    "use_flow_sigmas",
    "use_dynamic_shifting",
];
/// What DPM-Solver's classes have beside those of DEIS.
const SOLVER: &[&str] = &["final_sigmas_type", "lambda_min_clipped", "variance_type"];
/// What the multistep one has beside those.
const MULTISTEP: &[&str] = &["euler_at_final", "use_lu_lambdas", ZERO_SNR];
const UNIPC: &[&str] = &[
    "use_karras_sigmas",
    "use_exponential_sigmas",
    "use_beta_sigmas",
    "solver_order",
    "thresholding",
    "dynamic_thresholding_ratio",
    "sample_max_value",
    "predict_x0",
    "solver_type",
    "lower_order_final",
    "disable_corrector",
    "solver_p",
    "use_flow_sigmas",
    "final_sigmas_type",
    "use_dynamic_shifting",
    "sigma_min",
    "sigma_max",
    "shift_terminal",
    ZERO_SNR,
];
const DISTILLED: &[&str] = &[
    "original_inference_steps",
    "timestep_scaling",
    "clip_sample",
    "clip_sample_range",
    "set_alpha_to_one",
    "thresholding",
    "dynamic_thresholding_ratio",
    "sample_max_value",
    ZERO_SNR,
];

const CLASSES: [Class; 20] = [
    class("DDIMScheduler", Some(SamplerKind::Ddim), "leading", true, &[DDIM]),
    class("DDIMParallelScheduler", Some(SamplerKind::Ddim), "leading", true, &[DDIM]),
    class("DDPMScheduler", Some(SamplerKind::Ddpm), "leading", true, &[DDPM]),
    class("DDPMParallelScheduler", Some(SamplerKind::Ddpm), "leading", true, &[DDPM]),
    class("PNDMScheduler", None, "leading", false, &[&["skip_prk_steps", "set_alpha_to_one"]]),
    class("LMSDiscreteScheduler", Some(SamplerKind::Lms), "linspace", false, &[KARRAS]),
    class("EulerDiscreteScheduler", Some(SamplerKind::Euler), "linspace", false, &[EULER]),
    class(
        "EulerAncestralDiscreteScheduler",
        Some(SamplerKind::EulerAncestral),
        "linspace",
        false,
        &[&[ZERO_SNR]],
    ),
    class("HeunDiscreteScheduler", Some(SamplerKind::Heun), "linspace", false, &[HEUN]),
    class("KDPM2DiscreteScheduler", Some(SamplerKind::Dpm2), "linspace", false, &[KARRAS]),
    class("KDPM2AncestralDiscreteScheduler", Some(SamplerKind::Dpm2Ancestral), "linspace", false, &[KARRAS]),
    class("DPMSolverSDEScheduler", Some(SamplerKind::DpmPpSde), "linspace", false, &[SDE]),
    class(
        "DPMSolverMultistepScheduler",
        Some(SamplerKind::DpmPp2m),
        "linspace",
        false,
        &[DEIS, SOLVER, MULTISTEP],
    ),
    class("DPMSolverSinglestepScheduler", Some(SamplerKind::DpmPp2s), "linspace", false, &[DEIS, SOLVER]),
    class("DEISMultistepScheduler", Some(SamplerKind::Deis), "linspace", false, &[DEIS]),
    class("UniPCMultistepScheduler", Some(SamplerKind::UniPc), "linspace", false, &[UNIPC]),
    class("LCMScheduler", Some(SamplerKind::Lcm), "leading", false, &[DISTILLED]),
    class("TCDScheduler", Some(SamplerKind::Tcd), "leading", false, &[DISTILLED]),
    class("SASolverScheduler", None, "linspace", false, &[SASOLVER]),
    // A file without a class, as some conversions leave it: the curve alone is meant.
    class("", None, "linspace", false, &[DEIS, SOLVER, MULTISTEP]),
];
const SASOLVER: &[&str] = &[
    "predictor_order",
    "corrector_order",
    "tau_func",
    "thresholding",
    "dynamic_thresholding_ratio",
    "sample_max_value",
    "algorithm_type",
    "lower_order_final",
    "use_karras_sigmas",
    "use_exponential_sigmas",
    "use_beta_sigmas",
    "use_flow_sigmas",
    "lambda_min_clipped",
    "variance_type",
];

/// Starts and ends of the names of classes whose noise is another, and what it is.
const OTHER_NOISE: [(&str, &str); 12] = [
    ("EDM", "noise levels without a curve (Karras et al. 2022, \"EDM\")"),
    ("FlowM", "flow matching"),
    ("LTX", "flow matching"),
    ("Helios", "flow matching"),
    ("Piflow", "flow matching"),
    ("IPNDM", "Dance Diffusion's angles"),
    ("CosineDPMSolver", "Stable Audio's cosine of levels"),
    ("CM", "consistency models of pixels"),
    ("ConsistencyDecoder", "a decoder"),
    ("ScoreSde", "stochastic equations of pixels"),
    ("CogVideoX", "a curve that is moved towards noise"),
    ("SCM", "angles (TrigFlow)"),
];

#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
struct Fields {
    num_train_timesteps: usize,
    beta_start: f64,
    beta_end: f64,
    beta_schedule: String,
    trained_betas: Option<Vec<f32>>,
    rescale_betas_zero_snr: Option<bool>,
    prediction_type: Option<String>,
    timestep_spacing: Option<String>,
    timestep_type: Option<String>,
    interpolation_type: Option<String>,
    steps_offset: Option<u32>,
    use_karras_sigmas: Option<bool>,
    use_exponential_sigmas: Option<bool>,
    use_beta_sigmas: Option<bool>,
    use_lu_lambdas: Option<bool>,
    use_flow_sigmas: Option<bool>,
    use_dynamic_shifting: Option<bool>,
    algorithm_type: Option<String>,
    solver_order: Option<usize>,
    solver_type: Option<String>,
    lower_order_final: Option<bool>,
    euler_at_final: Option<bool>,
    final_sigmas_type: Option<String>,
    set_alpha_to_one: Option<bool>,
    clip_sample: Option<bool>,
    thresholding: Option<bool>,
    dynamic_thresholding_ratio: Option<f64>,
    sample_max_value: Option<f64>,
    clip_sample_range: Option<f64>,
    variance_type: Option<String>,
    lambda_min_clipped: Option<Number>,
    original_inference_steps: Option<usize>,
    timestep_scaling: Option<f64>,
    predict_x0: Option<bool>,
    disable_corrector: Option<Vec<usize>>,
    solver_p: Option<Value>,
    sigma_min: Option<f64>,
    sigma_max: Option<f64>,
}

impl Default for Fields {
    fn default() -> Self {
        Self {
            num_train_timesteps: 1000,
            beta_start: 0.0001,
            beta_end: 0.02,
            beta_schedule: "linear".into(),
            trained_betas: None,
            rescale_betas_zero_snr: None,
            prediction_type: None,
            timestep_spacing: None,
            timestep_type: None,
            interpolation_type: None,
            steps_offset: None,
            use_karras_sigmas: None,
            use_exponential_sigmas: None,
            use_beta_sigmas: None,
            use_lu_lambdas: None,
            use_flow_sigmas: None,
            use_dynamic_shifting: None,
            algorithm_type: None,
            solver_order: None,
            solver_type: None,
            lower_order_final: None,
            euler_at_final: None,
            final_sigmas_type: None,
            set_alpha_to_one: None,
            clip_sample: None,
            thresholding: None,
            dynamic_thresholding_ratio: None,
            sample_max_value: None,
            clip_sample_range: None,
            variance_type: None,
            lambda_min_clipped: None,
            original_inference_steps: None,
            timestep_scaling: None,
            predict_x0: None,
            disable_corrector: None,
            solver_p: None,
            sigma_min: None,
            sigma_max: None,
        }
    }
}

/// A number that may be one of Python's that are not finite, which [`json::standard`] makes texts.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
enum Number {
    Finite(f64),
    Text(String),
}

impl Scheduler {
    /// Reads a scheduler's configuration.
    ///
    /// # Errors
    /// [`ErrorKind::Model`] for JSON that is none, for classes and settings of another kind of noise, and for classes that
    /// diffusers does not have.
    pub(super) fn open(path: &Path) -> Result<Self, Error> {
        Self::parse(&path.display().to_string(), &read(path)?)
    }

    pub(super) fn parse(place: &str, json: &[u8]) -> Result<Self, Error> {
        let refuse = |problem: String| Error::new(ErrorKind::Model, format!("{place}: {problem}"));
        let json = json::standard(place, json)?;
        let object: Map<String, Value> = serde_json::from_slice(&json)
            .map_err(|error| refuse("expected a configuration as a JSON object".into()).source(error))?;
        let name = match object.get("_class_name") {
            None | Some(Value::Null) => "",
            Some(Value::String(name)) => name,
            Some(other) => return Err(refuse(format!("_class_name: expected a name, got {other}"))),
        };
        let class = known(name).map_err(refuse)?;
        // diffusers hands a class the keys that it knows; the others are named below.
        let reads = |key: &str| {
            BETAS.contains(&key) || class.has(key) || (class.is_spaced() && SPACED.contains(&key))
        };
        let read: Map<String, Value> = object
            .iter()
            .filter(|(key, _)| reads(key))
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect();
        let mut fields: Fields = serde_path_to_error::deserialize(Value::Object(read))
            .map_err(|error| refuse(error.path().to_string()).source(error.into_inner()))?;
        if matches!(class.sampler, Some(SamplerKind::Lcm | SamplerKind::Tcd)) {
            let absent = |key: &str| !object.contains_key(key);
            let usual = Fields::distilled();
            fields.beta_start = if absent("beta_start") { usual.beta_start } else { fields.beta_start };
            fields.beta_end = if absent("beta_end") { usual.beta_end } else { fields.beta_end };
            fields.beta_schedule =
                if absent("beta_schedule") { usual.beta_schedule } else { fields.beta_schedule };
        }
        let mut scheduler = Self::of(class, fields).map_err(refuse)?;
        let unread = object.keys().filter(|key| !key.starts_with('_') && !reads(key) && !is_known(key));
        scheduler.notes.extend(unread.map(|key| format!("{key} is not known, and not used")));
        scheduler.notes.iter_mut().for_each(|note| note.insert_str(0, &format!("{place}: ")));
        Ok(scheduler)
    }

    fn of(class: Class, fields: Fields) -> Result<Self, String> {
        let mut notes = Vec::new();
        check(class, &fields)?;
        let said = fields.prediction_type.as_deref().unwrap_or("epsilon");
        let prediction = Prediction::named(said).unwrap_or_else(|| {
            notes.push(format!(
                "prediction_type: expected epsilon, v_prediction or sample, got {said:?}: taken for epsilon; --prediction says otherwise"
            ));
            Prediction::Epsilon
        });
        let mut scheduler = Self { betas: fields.betas()?, class, fields, prediction, notes };
        let notes = scheduler.undone();
        scheduler.notes.extend(notes);
        Ok(scheduler)
    }

    /// What of the file is not done, or not as diffusers does it.
    fn undone(&self) -> Vec<String> {
        let Self { class, fields, .. } = self;
        let is = |flag: Option<bool>| flag == Some(true);
        let mut notes = Vec::new();
        let mut note = |is_so: bool, line: String| {
            if is_so {
                notes.push(line)
            }
        };
        let is_latent = class.sampler.is_some();
        note(
            class.name == "SASolverScheduler",
            "SASolverScheduler: not a method of calotype; another is used on the same curve".into(),
        );
        let range = fields.clip_sample_range.unwrap_or(1.0);
        note(
            is_latent && fields.clip_sample.unwrap_or(class.clips),
            format!(
                "clip_sample: clean latents are not clipped to {range} unless --thresholding static asks for it"
            ),
        );
        note(
            is_latent && is(fields.thresholding),
            "thresholding: not done unless --thresholding dynamic asks for it".into(),
        );
        let variance = fields.variance_type.as_deref();
        let is_ddpm = class.sampler == Some(SamplerKind::Ddpm);
        note(
            match variance {
                None => false,
                Some("fixed_small" | "fixed_small_log" | "fixed_large") => !is_ddpm,
                Some(_) => true,
            },
            format!("variance_type: {} is not done", variance.unwrap_or_default()),
        );
        note(is(fields.euler_at_final), "euler_at_final: the last step is of the solver's own order".into());
        let sigma_max = self.sigma_max();
        let clipped = match &fields.lambda_min_clipped {
            Some(Number::Finite(lambda)) if sigma_max.is_some_and(|sigma| *lambda > -sigma.ln()) => {
                Some(*lambda)
            }
            _ => None,
        };
        note(
            clipped.is_some(),
            format!(
                "lambda_min_clipped: {} is not done; the curve is used to its end",
                clipped.unwrap_or_default()
            ),
        );
        let interpolation = fields.interpolation_type.as_deref().unwrap_or("linear");
        note(
            interpolation != "linear",
            format!("interpolation_type: {interpolation} is not done; levels are linear"),
        );
        let scaling = fields.timestep_scaling.unwrap_or(TIMESTEP_SCALING);
        note(
            scaling != TIMESTEP_SCALING,
            format!("timestep_scaling: expected {TIMESTEP_SCALING}, which is used, got {scaling}"),
        );
        note(fields.predict_x0 == Some(false), "predict_x0: false is not done; the data is predicted".into());
        note(
            is_latent && self.ends_low() && !self.can_end_low(),
            "the last level is 0, not the curve's lowest".into(),
        );
        let is_narrowed = class.sampler.is_some_and(|kind| kind.grid() == Grid::Fractional)
            && self.spacing() != Spacing::Linspace
            && levels(fields).iter().any(|(used, _)| *used == Some(true));
        note(
            is_narrowed,
            "timestep_spacing: levels run over the whole curve, not from the first timestep of the spacing to its last".into(),
        );
        let is_grouped = class.sampler == Some(SamplerKind::DpmPp2s) && self.ends_low();
        note(
            is_grouped && is(fields.lower_order_final),
            "lower_order_final: not done where the run ends at sigma_min".into(),
        );
        let asked_levels = levels(fields).into_iter().filter(|(used, _)| is(*used)).count();
        // Levels down to sigma_min reach it twice. diffusers takes that step, too, in which a group's last evaluation
        // corrects the step before, as UniPC's corrector does.
        let repeats = class.sampler == Some(SamplerKind::UniPc) || fields.solver_order.unwrap_or(2) > 1;
        note(
            asked_levels > 0
                && self.ends_low()
                && repeats
                && matches!(class.sampler, Some(SamplerKind::DpmPp2s | SamplerKind::UniPc)),
            "final_sigmas_type: the model is not asked at sigma_min itself, where diffusers corrects the last step".into(),
        );
        for (key, level) in [("sigma_min", fields.sigma_min), ("sigma_max", fields.sigma_max)] {
            note(
                asked_levels > 0 && level.is_some(),
                format!("{key}: {} is not used; levels run over the whole curve", level.unwrap_or_default()),
            );
        }
        let uncorrected = fields.disable_corrector.as_deref().unwrap_or_default();
        note(!uncorrected.is_empty(), "disable_corrector: not done; every step is corrected".into());
        note(
            fields.solver_p.as_ref().is_some_and(|solver| !solver.is_null()),
            "solver_p: not done; UniPC's own predictor is used".into(),
        );
        note(
            self.is_multistep_for_singlestep() && fields.solver_order.unwrap_or(2) > 1,
            "algorithm_type: sde-dpmsolver++ of singlestep solvers is not done; the multistep solver is used"
                .into(),
        );
        let many = asked_levels > 1;
        note(
            many,
            "more than one kind of levels is asked for; the first of karras, exponential and beta is used"
                .into(),
        );
        let solver = fields.solver_type.as_deref();
        let is_known_solver = match class.name {
            "DEISMultistepScheduler" => matches!(solver, None | Some("logrho")),
            "UniPCMultistepScheduler" => {
                matches!(solver, None | Some("bh1" | "bh2" | "midpoint" | "heun" | "logrho"))
            }
            _ => matches!(solver, None | Some("midpoint" | "heun" | "logrho" | "bh1" | "bh2")),
        };
        note(!is_known_solver, format!("solver_type: {} is not done", solver.unwrap_or_default()));
        notes
    }

    /// Whether the class groups steps of the stochastic equation, in which calotype has multistep solvers alone; those of
    /// first order are the same.
    fn is_multistep_for_singlestep(&self) -> bool {
        let is_stochastic = self.fields.algorithm_type.as_deref() == Some("sde-dpmsolver++");
        self.class.sampler == Some(SamplerKind::DpmPp2s) && is_stochastic
    }

    fn sigma_max(&self) -> Option<f64> {
        let curve =
            crate::schedule::NoiseCurve::new(self.betas.clone(), self.fields.num_train_timesteps).ok()?;
        Some(curve.sigma_max())
    }

    /// The noise that the model was trained on.
    pub(super) fn noise(&self) -> Noise {
        let train_timesteps = self.fields.num_train_timesteps;
        Noise { betas: self.betas.clone(), train_timesteps, spacing: self.spacing() }
    }

    /// What is to be said of the file, a line each.
    pub(super) fn notes(&self) -> &[String] {
        &self.notes
    }

    /// As diffusers' classes default where the file says nothing; but a model that was trained down to noise alone starts
    /// from there (Lin et al. 2024, section 3.3), which the other spacings are not sure to.
    pub(super) fn spacing(&self) -> Spacing {
        let usual = if self.is_zero_terminal_snr() { "trailing" } else { self.class.spacing };
        match self.fields.timestep_spacing.as_deref().unwrap_or(usual) {
            "linspace" => Spacing::Linspace,
            "trailing" => Spacing::Trailing,
            _ => Spacing::Leading { offset: self.fields.steps_offset.unwrap_or(0) },
        }
    }

    pub(super) fn is_zero_terminal_snr(&self) -> bool {
        self.fields.rescale_betas_zero_snr == Some(true)
    }

    /// Whether this is what models of few steps without guidance have: Euler's method on trailing timesteps, with a curve
    /// that does not end in noise alone (SD-Turbo, SDXL-Turbo, SDXL-Lightning).
    pub(super) fn is_for_few_steps(&self) -> bool {
        let is_euler = matches!(self.class.sampler, Some(SamplerKind::Euler | SamplerKind::EulerAncestral));
        is_euler && self.spacing() == Spacing::Trailing && !self.is_zero_terminal_snr()
    }

    pub(super) fn class(&self) -> &'static str {
        self.class.name
    }

    pub(super) fn prediction(&self) -> Prediction {
        self.prediction
    }

    /// The levels that the scheduler names, where these are not its evenly spaced timesteps down to 0; diffusers, too,
    /// takes the first that is named.
    pub(super) fn schedule(&self) -> Option<ScheduleKind> {
        let named = levels(&self.fields).into_iter().find(|(is_used, _)| *is_used == Some(true));
        let schedule = named.map(|(_, name)| name.parse::<ScheduleKind>().expect("the name of a schedule"));
        let schedule = match (self.class.sampler, self.fields.original_inference_steps) {
            (Some(SamplerKind::Lcm | SamplerKind::Tcd), Some(trained_steps)) => {
                Some(ScheduleKind::Lcm { trained_steps })
            }
            _ => schedule,
        };
        if self.ends_low() && self.can_end_low() {
            let schedule = schedule.unwrap_or(ScheduleKind::Spaced(self.spacing()));
            return Some(ScheduleKind::ToSigmaMin(Box::new(schedule)));
        }
        schedule
    }

    /// Whether the class ends at the curve's lowest level as it is set.
    fn ends_low(&self) -> bool {
        let Self { class, fields, .. } = self;
        let algorithm = fields.algorithm_type.as_deref();
        match class.sampler {
            Some(SamplerKind::Ddim | SamplerKind::Tcd) => fields.set_alpha_to_one == Some(false),
            Some(SamplerKind::Deis) => true,
            Some(SamplerKind::DpmPp2m | SamplerKind::DpmPp2s)
                if matches!(algorithm, Some("dpmsolver" | "sde-dpmsolver")) =>
            {
                true
            }
            Some(SamplerKind::Euler | SamplerKind::DpmPp2m | SamplerKind::DpmPp2s | SamplerKind::UniPc) => {
                fields.final_sigmas_type.as_deref() == Some("sigma_min")
            }
            _ => false,
        }
    }

    fn can_end_low(&self) -> bool {
        self.class.sampler != Some(SamplerKind::Tcd)
    }

    /// The scheduler's own method, where calotype has it.
    pub(super) fn sampler(&self) -> Option<Method> {
        let Self { class, fields, .. } = self;
        let kind = class.sampler?;
        let algorithm = fields.algorithm_type.as_deref().unwrap_or("dpmsolver++");
        let name = match (kind, algorithm) {
            (SamplerKind::DpmPp2m, "dpmsolver") => "dpm-solver".into(),
            (SamplerKind::DpmPp2m, "sde-dpmsolver") => "sde-dpm-solver".into(),
            (SamplerKind::DpmPp2m | SamplerKind::DpmPp2s, "sde-dpmsolver++") => {
                "dpm++2m-sde:noise=stream".into()
            }
            (SamplerKind::DpmPp2s, "dpmsolver") => "dpm-solver-s".into(),
            _ => kind.to_string(),
        };
        let order = fields.solver_order.map(|order| format!("order={order}"));
        let solver = fields.solver_type.as_ref().map(|solver| format!("solver={solver}"));
        let lower =
            fields.lower_order_final.map(|lower| format!("lower_final={}", if lower { "on" } else { "off" }));
        let variance = match fields.variance_type.as_deref() {
            Some("fixed_large") => Some("variance=large".to_owned()),
            _ => None,
        };
        // What a class is given and does not have, it ignores, too.
        let settings = order.into_iter().chain(solver).chain(lower).chain(variance);
        let method = settings.fold(name, |method, setting| {
            let longer = format!("{method}{}{setting}", if method.contains(':') { ',' } else { ':' });
            if longer.parse::<Method>().is_ok() { longer } else { method }
        });
        method.parse().ok()
    }

    /// How noise gets onto the picture that is enlarged.
    pub(super) fn low_res(&self, max_level: usize) -> Result<LowRes, Error> {
        LowRes::new(self.betas.clone(), self.fields.num_train_timesteps, max_level)
    }
}

/// The kinds of levels that a file may ask for.
fn levels(fields: &Fields) -> [(Option<bool>, &'static str); 4] {
    [
        (fields.use_karras_sigmas, "karras"),
        // Evenly spaced logarithms, by another name (Lu et al. 2022, with rho 1).
        (fields.use_lu_lambdas, "exponential"),
        (fields.use_exponential_sigmas, "exponential"),
        (fields.use_beta_sigmas, "beta"),
    ]
}

impl Fields {
    /// The defaults of diffusers' classes for distilled models.
    fn distilled() -> Self {
        Self {
            beta_start: 0.00085,
            beta_end: 0.012,
            beta_schedule: "scaled_linear".into(),
            ..Self::default()
        }
    }

    fn betas(&self) -> Result<Betas, String> {
        let (start, end) = (self.beta_start, self.beta_end);
        let betas = match (&self.trained_betas, self.beta_schedule.as_str()) {
            (Some(list), _) => Betas::Trained(list.clone()),
            (None, "linear") => Betas::Linear { start, end },
            (None, "scaled_linear") => Betas::ScaledLinear { start, end },
            (None, "squaredcos_cap_v2") => Betas::SquaredCosCapV2,
            (None, "sigmoid") => Betas::Sigmoid { start, end },
            (None, other) => {
                return Err(format!(
                    "beta_schedule: expected linear, scaled_linear, squaredcos_cap_v2 or sigmoid, got {other}"
                ));
            }
        };
        let is_rescaled = self.rescale_betas_zero_snr == Some(true);
        Ok(if is_rescaled { Betas::ZeroTerminalSnr(Box::new(betas)) } else { betas })
    }
}

/// The class of this name, or why there is none.
fn known(name: &str) -> Result<Class, String> {
    if let Some(class) = CLASSES.iter().find(|class| class.name == name) {
        return Ok(*class);
    }
    let names =
        CLASSES.iter().map(|class| class.name).filter(|name| !name.is_empty()).collect::<Vec<_>>().join(", ");
    let (is_diffusers, noise) = match OTHER_NOISE.iter().find(|(start, _)| name.starts_with(start)) {
        Some((_, noise)) => (true, *noise),
        None => (false, ""),
    };
    Err(if is_diffusers {
        format!(
            "_class_name: expected a scheduler of a curve of betas, got {name}: {noise}, which cannot be run yet"
        )
    } else {
        format!("_class_name: expected one of {names}, got {name:?}")
    })
}

/// Whether what a class is set to is a kind of noise that can be run.
fn check(class: Class, fields: &Fields) -> Result<(), String> {
    let refuse = |key: &str, expected: &str, got: &str| Err(format!("{key}: expected {expected}, got {got}"));
    if let Some(said @ ("flow_prediction" | "trigflow")) = fields.prediction_type.as_deref() {
        return refuse(
            "prediction_type",
            "epsilon, v_prediction or sample",
            &format!("{said}: flow matching cannot be run yet"),
        );
    }
    if fields.use_flow_sigmas == Some(true) || fields.use_dynamic_shifting == Some(true) {
        return refuse("use_flow_sigmas", "false", "true: flow matching cannot be run yet");
    }
    if let Some(other) = fields.timestep_type.as_deref().filter(|name| *name != "discrete") {
        return refuse(
            "timestep_type",
            "discrete",
            &format!("{other}: noise levels without a curve (EDM) cannot be run yet"),
        );
    }
    let spacing = fields.timestep_spacing.as_deref();
    if let Some(other) = spacing.filter(|name| !["leading", "linspace", "trailing"].contains(name)) {
        return refuse("timestep_spacing", "leading, linspace or trailing", other);
    }
    if let Some(other) =
        fields.final_sigmas_type.as_deref().filter(|name| !["zero", "sigma_min"].contains(name))
    {
        return refuse("final_sigmas_type", "zero or sigma_min", other);
    }
    let solver = [
        "dpmsolver",
        "dpmsolver++",
        "sde-dpmsolver",
        "sde-dpmsolver++",
        "deis",
        "data_prediction",
        "noise_prediction",
    ];
    if let Some(other) = fields.algorithm_type.as_deref().filter(|name| !solver.contains(name)) {
        return refuse("algorithm_type", &solver[..4].join(", "), other);
    }
    let is_singlestep = class.sampler == Some(SamplerKind::DpmPp2s);
    if is_singlestep && fields.algorithm_type.as_deref() == Some("sde-dpmsolver") {
        let expected = "dpmsolver++, dpmsolver or sde-dpmsolver++ for singlestep solvers";
        return refuse("algorithm_type", expected, "sde-dpmsolver");
    }
    match &fields.lambda_min_clipped {
        Some(Number::Text(text)) if text != "-Infinity" => {
            refuse("lambda_min_clipped", "a number or -Infinity", text)
        }
        _ => Ok(()),
    }
}

/// Whether some class reads a key: files are handed from class to class, and keep what the class that wrote them had.
fn is_known(key: &str) -> bool {
    const WITHOUT_EFFECT: [&str; 8] = [
        "flow_shift",
        "time_shift_type",
        "rho",
        "sigma_data",
        "shift",
        "skip_prk_steps",
        "noise_sampler_seed",
        "shift_terminal",
    ];
    BETAS.contains(&key)
        || SPACED.contains(&key)
        || WITHOUT_EFFECT.contains(&key)
        || CLASSES.iter().any(|class| class.has(key))
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use flate2::read::GzDecoder;

    use super::*;
    use crate::noise::TorchCpu;
    use crate::sampler::Denoise;
    use crate::schedule::{NoiseCurve, Schedule};

    fn scheduler(json: &str) -> Scheduler {
        Scheduler::parse("scheduler_config.json", json.as_bytes()).unwrap()
    }

    fn betas(json: &str) -> Betas {
        scheduler(json).betas
    }

    #[test]
    fn betas_of_scheduler_configs() {
        assert_eq!(betas("{}"), Betas::Linear { start: 0.0001, end: 0.02 });
        assert_eq!(
            betas(r#"{"beta_schedule": "sigmoid", "beta_end": 0.5}"#),
            Betas::Sigmoid { start: 0.0001, end: 0.5 }
        );
        assert_eq!(
            betas(r#"{"beta_schedule": "scaled_linear", "trained_betas": [0.1, 0.2]}"#),
            Betas::Trained(vec![0.1, 0.2])
        );
        assert_eq!(
            betas(r#"{"trained_betas": null, "rescale_betas_zero_snr": true}"#),
            Betas::ZeroTerminalSnr(Box::new(Betas::Linear { start: 0.0001, end: 0.02 }))
        );
        let error = Scheduler::parse("x", br#"{"beta_schedule": "cosine"}"#).expect_err("cosine");
        assert_eq!(error.kind(), ErrorKind::Model);
        assert!(error.to_string().contains("squaredcos_cap_v2 or sigmoid, got cosine"), "{error}");
    }

    #[test]
    fn models_trained_down_to_noise_start_from_it() {
        let zero = r#"{"_class_name": "EulerDiscreteScheduler", "rescale_betas_zero_snr": true"#;
        assert_eq!(scheduler(&format!("{zero}}}")).spacing(), Spacing::Trailing);
        let said = format!(r#"{zero}, "timestep_spacing": "leading", "steps_offset": 1}}"#);
        assert_eq!(scheduler(&said).spacing(), Spacing::Leading { offset: 1 });
    }

    #[test]
    fn schedules_of_scheduler_configs() {
        for (json, name) in [
            (r#"{"use_karras_sigmas": true, "use_beta_sigmas": false}"#, Some("karras")),
            (r#"{"use_exponential_sigmas": true}"#, Some("exponential")),
            (r#"{"use_karras_sigmas": false, "use_beta_sigmas": true}"#, Some("beta")),
            (r#"{"use_karras_sigmas": null}"#, None),
            ("{}", None),
        ] {
            let schedule = scheduler(json).schedule().map(|kind| kind.to_string());
            assert_eq!(schedule.as_deref(), name, "{json}");
        }
    }

    /// Random configurations of diffusers' own classes, written by `export/golden_schedulers.py`.
    #[derive(Deserialize)]
    struct Golden {
        means: Vec<f64>,
        deviations: Vec<f64>,
        noise: Vec<f64>,
        /// Of each class of diffusers the settings that it has.
        parameters: std::collections::BTreeMap<String, Vec<String>>,
        cases: Vec<Case>,
    }

    #[derive(Deserialize)]
    struct Case {
        config: String,
        steps: usize,
        runs: bool,
        prediction: Option<String>,
        sigmas: Option<Vec<f64>>,
        latents: Option<Vec<f64>>,
    }

    /// A model of normal data, each element with its own mean and deviation, and what it predicts.
    struct Normal<'a>(&'a Golden, Prediction);

    impl Denoise for Normal<'_> {
        fn denoise(&mut self, x: &[f32], sigma: f64, out: &mut [f32]) -> Result<(), Error> {
            let Self(data, prediction) = *self;
            let alpha = 1.0 / sigma.hypot(1.0);
            let predict = |(index, &x): (usize, &f32)| {
                let (x, variance) = (f64::from(x), data.deviations[index].powi(2));
                let clean = (data.means[index] * sigma * sigma + x * variance) / (sigma * sigma + variance);
                let noise = (x - clean) / sigma;
                (match prediction {
                    Prediction::Epsilon => noise,
                    Prediction::V => alpha * noise - alpha * sigma * clean,
                    _ => clean,
                }) as f32
            };
            let output: Vec<f32> = x.iter().enumerate().map(predict).collect();
            prediction.to_denoised(x, &output, sigma, out);
            Ok(())
        }
    }

    impl Golden {
        /// The levels of a run, and the latents that it ends in.
        fn run(
            &self,
            scheduler: &Scheduler,
            method: Method,
            steps: usize,
        ) -> Result<(Vec<f64>, Vec<f64>), Error> {
            let kind = method.kind();
            let levels = scheduler.schedule().or_else(|| kind.own_schedule());
            let levels = levels.unwrap_or(ScheduleKind::Spaced(scheduler.spacing()));
            let curve = NoiseCurve::new(scheduler.betas.clone(), scheduler.fields.num_train_timesteps)?;
            let schedule = Schedule::of(&levels, &curve, kind.grid(), steps)?;
            let scale = schedule.initial_scale();
            let mut x: Vec<f32> = self.noise.iter().map(|noise| (noise * scale) as f32).collect();
            let mut sampler = method.build(&schedule, x.len());
            for step in schedule.steps() {
                sampler.step(
                    &mut x,
                    step,
                    &mut Normal(self, scheduler.prediction()),
                    &mut TorchCpu::new(0),
                )?;
            }
            let sigmas = schedule
                .steps()
                .iter()
                .map(|step| step.from)
                .chain(schedule.steps().last().map(|step| step.to));
            let latents = x.iter().map(|x| f64::from(*x) * schedule.final_scale());
            Ok((sigmas.collect(), latents.collect()))
        }
    }

    fn golden() -> Golden {
        let file = include_bytes!("../../tests/golden/schedulers.json.gz");
        let mut text = String::new();
        GzDecoder::new(&file[..]).read_to_string(&mut text).unwrap();
        serde_json::from_str(&text).unwrap()
    }

    /// A key that a class of diffusers does not have has no effect there, and must have none here.
    #[test]
    fn classes_read_the_settings_that_they_have() {
        let golden = golden();
        // Without effect on a curve of betas.
        let unread = ["flow_shift", "time_shift_type"];
        for class in CLASSES.iter().filter(|class| !class.name.is_empty()) {
            let mut parameters = golden.parameters[class.name].clone();
            parameters.retain(|key| !unread.contains(&key.as_str()));
            parameters.sort();
            let mut reads: Vec<&str> =
                BETAS.iter().chain(class.reads.iter().copied().flatten()).copied().collect();
            reads.extend(SPACED.iter().filter(|_| class.is_spaced()));
            reads.sort();
            assert_eq!(reads, parameters, "{}", class.name);
        }
    }

    /// Every configuration is run as its class runs it, or refused, or a line says what is not done.
    #[test]
    fn configurations_of_diffusers_are_run_refused_or_named() {
        let golden = golden();
        let (mut wrong, mut compared, mut ended, mut named) = (Vec::new(), 0, 0, 0);
        for Case { config, steps, runs, prediction, sigmas, latents } in &golden.cases {
            let scheduler = match Scheduler::parse("x", config.as_bytes()) {
                Ok(scheduler) => scheduler,
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::Model);
                    if *runs {
                        wrong.push(format!("{error}\n  {config}"));
                    }
                    continue;
                }
            };
            if !runs {
                // Some cannot be run in so many steps alone.
                let run = scheduler.sampler().map(|method| golden.run(&scheduler, method, *steps));
                if scheduler.notes().is_empty() && matches!(run, Some(Ok(_))) {
                    wrong.push(format!("{steps} steps: expected to be refused\n  {config}"));
                }
                continue;
            }
            assert_eq!(
                Some(scheduler.prediction()),
                prediction.as_deref().and_then(Prediction::named),
                "{config}"
            );
            if !scheduler.notes().is_empty() {
                named += 1;
                continue;
            }
            let Some(method) = scheduler.sampler() else { continue };
            let (levels, end) = match golden.run(&scheduler, method, *steps) {
                Ok(run) => run,
                Err(error) => {
                    wrong.push(format!("{steps} steps: {error}\n  {config}"));
                    continue;
                }
            };
            let far = |actual: &[f64], expected: &[f64], tolerance: f64| {
                actual.len() != expected.len()
                    || actual.iter().zip(expected).any(|(a, e)| (a - e).abs() > tolerance * (1.0 + e.abs()))
            };
            // Rescaled curves are computed in single precision by diffusers.
            if let Some(sigmas) = sigmas {
                compared += 1;
                if far(&levels, sigmas, 1e-3) {
                    wrong.push(format!("{method}: levels {levels:?}, expected {sigmas:?}\n  {config}"));
                    continue;
                }
            }
            if let Some(latents) = latents {
                ended += 1;
                if far(&end, latents, 2e-3) {
                    wrong.push(format!(
                        "{method}, {steps} steps: latents {end:?}, expected {latents:?}\n  {config}"
                    ));
                }
            }
        }
        assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), golden.cases.len(), wrong.join("\n"));
        // Most are compared: a line for everything would be a way out.
        assert!(
            compared > 60 && ended > 40 && named < golden.cases.len() / 3,
            "{compared}, {ended}, {named}"
        );
    }

    #[test]
    fn other_noise_and_unknown_classes_are_refused_by_name() {
        for (config, message) in [
            (
                r#"{"_class_name": "EDMEulerScheduler"}"#,
                "_class_name: expected a scheduler of a curve of betas, got EDMEulerScheduler: ",
            ),
            (
                r#"{"_class_name": "FlowMatchEulerDiscreteScheduler"}"#,
                "got FlowMatchEulerDiscreteScheduler: flow matching",
            ),
            (r#"{"_class_name": "IPNDMScheduler"}"#, "got IPNDMScheduler: "),
            (r#"{"_class_name": "Nonsense"}"#, "_class_name: expected one of DDIMScheduler, "),
            (r#"{"_class_name": 1}"#, "_class_name: expected a name, got 1"),
            (
                r#"{"_class_name": "EulerDiscreteScheduler", "timestep_type": "continuous"}"#,
                "timestep_type: expected discrete",
            ),
            (
                r#"{"_class_name": "UniPCMultistepScheduler", "use_flow_sigmas": true}"#,
                "flow matching cannot be run yet",
            ),
            (r#"{"_class_name": "DDIMScheduler", "beta_start": NaN}"#, "beta_start"),
            (
                r#"{"_class_name": "DDIMScheduler", "beta_start": 1, "beta_start": 2}"#,
                "every key of an object once",
            ),
            (
                r#"{"_class_name": "DPMSolverMultistepScheduler", "lambda_min_clipped": NaN}"#,
                "expected a number or -Infinity, got NaN",
            ),
            ("[]", "expected a configuration as a JSON object"),
        ] {
            let error = Scheduler::parse("x", config.as_bytes()).expect_err(config);
            assert_eq!(error.kind(), ErrorKind::Model, "{config}");
            assert!(error.to_string().starts_with("x: ") && error.to_string().contains(message), "{error}");
        }
    }

    /// As diffusers writes one, with `-Infinity` in it, and a byte order mark before it.
    #[test]
    fn a_configuration_as_python_writes_it() {
        let config =
            "\u{feff}{\"_class_name\": \"DPMSolverMultistepScheduler\", \"lambda_min_clipped\": -Infinity,
            \"variance_type\": null, \"solver_order\": 3, \"_diffusers_version\": \"0.42.1\", \"odd\": NaN}";
        let scheduler = scheduler(config);
        assert_eq!(scheduler.sampler().unwrap().to_string(), "dpm++2m:order=3");
        assert_eq!(scheduler.notes(), ["scheduler_config.json: odd is not known, and not used"]);
    }

    #[test]
    fn what_is_not_done_is_named() {
        for (config, line) in [
            (r#"{"_class_name": "DDIMScheduler", "clip_sample": true}"#, "clip_sample: "),
            (r#"{"_class_name": "DDIMScheduler"}"#, "clip_sample: "),
            (
                r#"{"_class_name": "DDIMScheduler", "clip_sample": false, "thresholding": true}"#,
                "thresholding: ",
            ),
            (
                r#"{"_class_name": "DPMSolverMultistepScheduler", "variance_type": "learned_range"}"#,
                "variance_type: ",
            ),
            (
                r#"{"_class_name": "DPMSolverMultistepScheduler", "lambda_min_clipped": -1.0}"#,
                "lambda_min_clipped: ",
            ),
            (r#"{"_class_name": "LCMScheduler", "timestep_scaling": 5.0}"#, "timestep_scaling: "),
            (
                r#"{"_class_name": "UniPCMultistepScheduler", "disable_corrector": [0]}"#,
                "disable_corrector: ",
            ),
            (r#"{"_class_name": "UniPCMultistepScheduler", "solver_p": {"x": 1}}"#, "solver_p: "),
            (
                r#"{"_class_name": "EulerDiscreteScheduler", "sigma_max": 10.0, "use_karras_sigmas": true}"#,
                "sigma_max: 10 ",
            ),
            (
                r#"{"_class_name": "UniPCMultistepScheduler", "sigma_min": 0.05, "use_beta_sigmas": true}"#,
                "sigma_min: 0.05 ",
            ),
            (
                r#"{"_class_name": "UniPCMultistepScheduler", "final_sigmas_type": "sigma_min", "use_karras_sigmas": true}"#,
                "final_sigmas_type: ",
            ),
            (
                r#"{"_class_name": "DPMSolverSinglestepScheduler", "algorithm_type": "sde-dpmsolver++"}"#,
                "algorithm_type: ",
            ),
            (r#"{"_class_name": "SASolverScheduler"}"#, "SASolverScheduler: "),
            (r#"{"_class_name": "PNDMScheduler", "prediction_type": "wobble"}"#, "prediction_type: "),
        ] {
            let notes = scheduler(config).notes().to_vec();
            assert!(
                notes.len() == 1 && notes[0].starts_with(&format!("scheduler_config.json: {line}")),
                "{config}: {notes:?}"
            );
        }
        assert_eq!(
            scheduler(r#"{"_class_name": "PNDMScheduler", "set_alpha_to_one": false}"#).notes(),
            [""; 0]
        );
    }

    #[test]
    fn settings_of_methods_are_taken() {
        for (config, sampler, schedule) in [
            (
                r#"{"_class_name": "LCMScheduler", "original_inference_steps": 40}"#,
                "lcm",
                Some("lcm:trained-steps=40"),
            ),
            (
                r#"{"_class_name": "DDIMScheduler", "set_alpha_to_one": false}"#,
                "ddim",
                Some("leading:offset=0,final=sigma_min"),
            ),
            (
                r#"{"_class_name": "DPMSolverMultistepScheduler", "use_lu_lambdas": true}"#,
                "dpm++2m",
                Some("exponential"),
            ),
            (
                r#"{"_class_name": "DDPMScheduler", "variance_type": "fixed_large"}"#,
                "ddpm:variance=large",
                None,
            ),
            (
                r#"{"_class_name": "DPMSolverSinglestepScheduler", "algorithm_type": "sde-dpmsolver++", "solver_order": 1}"#,
                "dpm++2m-sde:order=1,noise=stream",
                None,
            ),
            (
                r#"{"_class_name": "DEISMultistepScheduler", "lower_order_final": false}"#,
                "deis:lower_final=off",
                Some("linspace:final=sigma_min"),
            ),
            (
                r#"{"_class_name": "UniPCMultistepScheduler", "lower_order_final": false}"#,
                "unipc:lower_final=off",
                None,
            ),
            (
                r#"{"_class_name": "DPMSolverMultistepScheduler", "lower_order_final": false}"#,
                "dpm++2m:lower_final=off",
                None,
            ),
        ] {
            let scheduler = scheduler(config);
            assert_eq!(scheduler.sampler().unwrap().to_string(), sampler, "{config}");
            assert_eq!(scheduler.schedule().map(|kind| kind.to_string()).as_deref(), schedule, "{config}");
        }
    }
}
