//! What of a scheduler's settings cannot be run, and what is run in another way, in a line each.
//! It knows nothing of how the rest is run.

use super::Scheduler;
use super::class::{Class, Noise};
use super::fields::{Fields, Number};
use crate::noise_model::NoiseModel;
use crate::sampler::SamplerKind;
use crate::schedule::{Grid, Spacing};

/// What `timestep_scaling` is where nobody says otherwise; calotype's consistency samplers have it.
const TIMESTEP_SCALING: f64 = 10.0;

/// Whether what a class is set to is a kind of noise that can be run.
pub(super) fn check(class: Class, fields: &Fields) -> Result<(), String> {
    let refuse = |key: &str, expected: &str, got: &str| Err(format!("{key}: expected {expected}, got {got}"));
    if let Some(said @ ("flow_prediction" | "trigflow")) = fields.prediction_type.as_deref() {
        return refuse(
            "prediction_type",
            "epsilon, v_prediction or sample",
            &format!("{said}: flow matching is supported with FlowMatchEulerDiscreteScheduler"),
        );
    }
    if fields.use_flow_sigmas == Some(true) {
        return refuse(
            "use_flow_sigmas",
            "false",
            "true: flow matching is supported with FlowMatchEulerDiscreteScheduler",
        );
    }
    if fields.use_dynamic_shifting == Some(true) {
        return refuse(
            "use_dynamic_shifting",
            "false",
            "true: no pipeline of a U-Net says how the shift follows from the image's size",
        );
    }
    if let Some(other) =
        fields.timestep_type.as_deref().filter(|name| !["discrete", "continuous"].contains(name))
    {
        return refuse("timestep_type", "discrete or continuous", other);
    }
    if fields.invert_sigmas == Some(true) {
        return refuse("invert_sigmas", "false", "true, which is for another kind of network");
    }
    if fields.stochastic_sampling == Some(true) {
        return refuse("stochastic_sampling", "false", "true, which is not supported yet");
    }
    if let Some(terminal) =
        fields.shift_terminal.filter(|terminal| class.noise == Noise::Flow && *terminal != 0.0)
    {
        return refuse("shift_terminal", "none", &format!("{terminal}, which is not supported yet"));
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
    let algorithm = fields.algorithm_type.as_deref();
    if let Some(other) = algorithm.filter(|name| class.noise == Noise::Edm && !name.ends_with("++")) {
        return refuse("algorithm_type", "dpmsolver++ or sde-dpmsolver++", other);
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

/// What of the file is not done, or not as diffusers does it.
pub(super) fn undone(scheduler: &Scheduler) -> Vec<String> {
    let mut notes = Notes::default();
    of_outputs(scheduler, &mut notes);
    of_curve(scheduler, &mut notes);
    of_levels(scheduler, &mut notes);
    of_solver(scheduler, &mut notes);
    notes.0
}

/// Lines, in the order in which they are said.
#[derive(Default)]
struct Notes(Vec<String>);

impl Notes {
    fn add(&mut self, is_so: bool, line: String) {
        if is_so {
            self.0.push(line);
        }
    }
}

fn is_on(flag: Option<bool>) -> bool {
    flag == Some(true)
}

/// Of settings of the model's output and of the noise that is added.
fn of_outputs(scheduler: &Scheduler, notes: &mut Notes) {
    let Scheduler { class, fields, .. } = scheduler;
    let is_latent = class.sampler.is_some();
    notes.add(
        class.name == "SASolverScheduler",
        "SASolverScheduler: not a method of calotype; another is used on the same curve".into(),
    );
    // What its folders have by default is not told: all of Stable Diffusion's name it.
    let is_pndm = class.name == "PNDMScheduler";
    let spacing = fields.timestep_spacing.as_deref().filter(|spacing| is_pndm && *spacing != class.spacing);
    notes.add(
        spacing.is_some(),
        "timestep_spacing: not used: another method is run in place of PNDM, on levels of its own".into(),
    );
    notes.add(
        is_pndm && is_on(fields.set_alpha_to_one),
        "set_alpha_to_one: not used: another method is run in place of PNDM".into(),
    );
    let range = fields.clip_sample_range.unwrap_or(1.0);
    notes.add(
        is_latent && fields.clip_sample.unwrap_or(class.clips),
        format!(
            "clip_sample: clean latents are not clipped to {range} unless static thresholding is requested"
        ),
    );
    notes.add(
        is_latent && is_on(fields.thresholding),
        "thresholding: not done unless dynamic thresholding is requested".into(),
    );
    let variance = fields.variance_type.as_deref();
    let is_ddpm = class.sampler == Some(SamplerKind::Ddpm);
    notes.add(
        match variance {
            None => false,
            Some("fixed_small" | "fixed_small_log" | "fixed_large") => !is_ddpm,
            Some(_) => true,
        },
        format!("variance_type: {} is not done", variance.unwrap_or_default()),
    );
    notes.add(
        is_on(fields.euler_at_final),
        "euler_at_final: the last step is of the solver's own order".into(),
    );
}

/// Of settings of the curve, its timesteps and the prediction.
fn of_curve(scheduler: &Scheduler, notes: &mut Notes) {
    let fields = &scheduler.fields;
    let sigma_max = match &scheduler.noise {
        NoiseModel::Discrete(discrete) => Some(discrete.curve().sigma_max()),
        _ => None,
    };
    let clipped = match &fields.lambda_min_clipped {
        Some(Number::Finite(lambda)) if sigma_max.is_some_and(|sigma| *lambda > -sigma.ln()) => Some(*lambda),
        _ => None,
    };
    notes.add(
        clipped.is_some(),
        format!(
            "lambda_min_clipped: {} is not done; the curve is used to its end",
            clipped.unwrap_or_default()
        ),
    );
    let interpolation = fields.interpolation_type.as_deref().unwrap_or("linear");
    notes.add(
        interpolation != "linear",
        format!("interpolation_type: {interpolation} is not done; levels are linear"),
    );
    let scaling = fields.timestep_scaling.unwrap_or(TIMESTEP_SCALING);
    notes.add(
        scaling != TIMESTEP_SCALING,
        format!("timestep_scaling: expected {TIMESTEP_SCALING}, which is used, got {scaling}"),
    );
    notes
        .add(fields.predict_x0 == Some(false), "predict_x0: false is not done; the data is predicted".into());
}

/// Of settings of the noise levels and of where they end.
fn of_levels(scheduler: &Scheduler, notes: &mut Notes) {
    let Scheduler { class, fields, .. } = scheduler;
    let is_curve = matches!(scheduler.noise, NoiseModel::Discrete(_));
    let asked_levels = asked_levels(fields);
    notes.add(
        class.sampler.is_some() && scheduler.ends_low() && !scheduler.can_end_low(),
        "the last level is 0, not the curve's lowest".into(),
    );
    let is_narrowed = class.sampler.is_some_and(|kind| kind.grid() == Grid::Fractional)
        && scheduler.spacing() != Spacing::Linspace
        && fields.levels().iter().any(|(used, _)| *used == Some(true));
    notes.add(
        is_narrowed,
        "timestep_spacing: levels run over the whole curve, not from the first timestep of the spacing to its last".into(),
    );
    let is_grouped = class.sampler == Some(SamplerKind::DpmPp2s) && scheduler.ends_low();
    notes.add(
        is_grouped && is_on(fields.lower_order_final),
        "lower_order_final: not done where the run ends at sigma_min".into(),
    );
    // Levels down to sigma_min reach it twice. diffusers takes that step, too, in which a group's last evaluation
    // corrects the step before, as UniPC's corrector does.
    let repeats = class.sampler == Some(SamplerKind::UniPc) || fields.solver_order.unwrap_or(2) > 1;
    notes.add(
        asked_levels > 0
            && scheduler.ends_low()
            && repeats
            && matches!(class.sampler, Some(SamplerKind::DpmPp2s | SamplerKind::UniPc)),
        "final_sigmas_type: the model is not asked at sigma_min itself, where diffusers corrects the last step".into(),
    );
    for (key, level) in [("sigma_min", fields.sigma_min), ("sigma_max", fields.sigma_max)] {
        notes.add(
            is_curve && asked_levels > 0 && level.is_some(),
            format!("{key}: {} is not used; levels run over the whole curve", level.unwrap_or_default()),
        );
    }
}

/// Of settings of the solver.
fn of_solver(scheduler: &Scheduler, notes: &mut Notes) {
    let Scheduler { class, fields, .. } = scheduler;
    let uncorrected = fields.disable_corrector.as_deref().unwrap_or_default();
    notes.add(!uncorrected.is_empty(), "disable_corrector: not done; every step is corrected".into());
    notes.add(
        fields.solver_p.as_ref().is_some_and(|solver| !solver.is_null()),
        "solver_p: not done; UniPC's own predictor is used".into(),
    );
    notes.add(
        scheduler.is_multistep_for_singlestep() && fields.solver_order.unwrap_or(2) > 1,
        "algorithm_type: sde-dpmsolver++ of singlestep solvers is not done; the multistep solver is used"
            .into(),
    );
    let many = asked_levels(fields) > 1;
    notes.add(
        many,
        "more than one kind of levels is asked for; the first of karras, exponential and beta is used".into(),
    );
    let solver = fields.solver_type.as_deref();
    let is_known_solver = match class.name {
        "DEISMultistepScheduler" => matches!(solver, None | Some("logrho")),
        "UniPCMultistepScheduler" => {
            matches!(solver, None | Some("bh1" | "bh2" | "midpoint" | "heun" | "logrho"))
        }
        _ => matches!(solver, None | Some("midpoint" | "heun" | "logrho" | "bh1" | "bh2")),
    };
    notes.add(!is_known_solver, format!("solver_type: {} is not done", solver.unwrap_or_default()));
}

/// How many kinds of levels a file asks for.
fn asked_levels(fields: &Fields) -> usize {
    fields.levels().into_iter().filter(|(used, _)| is_on(*used)).count()
}
