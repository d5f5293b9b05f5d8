//! The scheduler classes of diffusers: what each is here, and the settings that it has.
//! It knows nothing of what the settings are set to.

use serde_json::Value;

use crate::sampler::SamplerKind;

/// A scheduler of diffusers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Class {
    pub(super) name: &'static str,
    /// The method, where calotype has it. PNDM does not count: it is what Stable Diffusion's folders name because it came
    /// first, and takes 50 steps to what others do in 20.
    pub(super) sampler: Option<SamplerKind>,
    pub(super) spacing: &'static str,
    /// Whether clean latents are clipped where the file does not say.
    pub(super) clips: bool,
    /// The settings of its own, in lists that classes share.
    pub(super) reads: &'static [&'static [&'static str]],
    pub(super) noise: Noise,
}

/// The noise of a class.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Noise {
    /// A curve of betas.
    Betas,
    /// A range of levels.
    Edm,
    Flow,
}

/// What all classes of a curve read.
pub(super) const BETAS: [&str; 6] =
    ["num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "prediction_type"];
pub(super) const SPACED: [&str; 2] = ["timestep_spacing", "steps_offset"];
const ZERO_SNR: &str = "rescale_betas_zero_snr";
const LEVELS: [&str; 3] = ["use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"];

const fn class(
    name: &'static str,
    sampler: Option<SamplerKind>,
    spacing: &'static str,
    clips: bool,
    reads: &'static [&'static [&'static str]],
) -> Class {
    Class { name, sampler, spacing, clips, reads, noise: Noise::Betas }
}

impl Class {
    const fn without_curve(self, noise: Noise) -> Self {
        Self { noise, ..self }
    }

    /// Whether it has this setting.
    pub(super) fn has(&self, key: &str) -> bool {
        let is_of_curve = BETAS.contains(&key) || (self.is_spaced() && SPACED.contains(&key));
        self.reads.iter().any(|keys| keys.contains(&key)) || (self.noise == Noise::Betas && is_of_curve)
    }

    /// Whether timesteps may be spaced in more ways than one.
    pub(super) fn is_spaced(&self) -> bool {
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

const EDM: &[&str] = &[
    "sigma_min",
    "sigma_max",
    "sigma_data",
    "sigma_schedule",
    "num_train_timesteps",
    "prediction_type",
    "rho",
    "final_sigmas_type",
];
const EDM_SOLVER: &[&str] = &[
    "solver_order",
    "thresholding",
    "dynamic_thresholding_ratio",
    "sample_max_value",
    "algorithm_type",
    "solver_type",
    "lower_order_final",
    "euler_at_final",
];
const FLOW: &[&str] = &["num_train_timesteps", "shift"];
const FLOW_EULER: &[&str] = &[
    "use_dynamic_shifting",
    "base_shift",
    "max_shift",
    "base_image_seq_len",
    "max_image_seq_len",
    "invert_sigmas",
    "shift_terminal",
    "use_karras_sigmas",
    "use_exponential_sigmas",
    "use_beta_sigmas",
    "time_shift_type",
    "stochastic_sampling",
];

pub(super) const CLASSES: [Class; 24] = [
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
    class("EDMEulerScheduler", Some(SamplerKind::Euler), "linspace", false, &[EDM]).without_curve(Noise::Edm),
    class(
        "EDMDPMSolverMultistepScheduler",
        Some(SamplerKind::DpmPp2m),
        "linspace",
        false,
        &[EDM, EDM_SOLVER],
    )
    .without_curve(Noise::Edm),
    class(
        "FlowMatchEulerDiscreteScheduler",
        Some(SamplerKind::Euler),
        "linspace",
        false,
        &[FLOW, FLOW_EULER],
    )
    .without_curve(Noise::Flow),
    class("FlowMatchHeunDiscreteScheduler", Some(SamplerKind::Heun), "linspace", false, &[FLOW])
        .without_curve(Noise::Flow),
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

/// Starts and ends of the names of classes with another kind of noise, and which.
const OTHER_NOISE: [(&str, &str); 11] = [
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

/// The class of this name, or why there is none.
pub(super) fn known(name: &str) -> Result<Class, String> {
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

/// Whether a key of other classes is set to what would give another image, if it were read.
pub(super) fn would_count(key: &str, value: &Value) -> bool {
    const SWITCHES: [&str; 7] = [
        ZERO_SNR,
        "use_karras_sigmas",
        "use_exponential_sigmas",
        "use_beta_sigmas",
        "use_lu_lambdas",
        "use_flow_sigmas",
        "thresholding",
    ];
    match key {
        "final_sigmas_type" => value == "sigma_min",
        "lambda_min_clipped" => value.as_f64().is_some_and(f64::is_finite),
        key => SWITCHES.contains(&key) && *value == Value::Bool(true),
    }
}

/// Whether some class reads a key: files are handed from class to class, and keep what the class that wrote them had.
pub(super) fn is_known(key: &str) -> bool {
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
    WITHOUT_EFFECT.contains(&key) || CLASSES.iter().any(|class| class.has(key))
}
