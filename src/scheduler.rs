//! Schedulers of diffusers: what a `scheduler_config.json` says of the noise that a model was trained on, and of the
//! method that it is sampled with. It knows diffusers' classes and their defaults, and nothing of networks.

mod class;
mod fields;
mod note;

use serde_json::{Map, Value};

use crate::noise_model::NoiseModel;
use crate::prediction::Prediction;
use crate::sampler::{Method, SamplerKind};
use crate::schedule::{Schedule, ScheduleKind, Spacing};
use crate::{Error, ErrorKind, json};
use class::{Class, Noise};
use fields::Fields;

/// A scheduler of diffusers, with the defaults of its class.
///
/// ```
/// use calotype::sampler::SamplerKind;
/// use calotype::scheduler::Scheduler;
/// let scheduler = Scheduler::from_diffusers(
///     r#"{"_class_name": "DPMSolverMultistepScheduler", "beta_schedule": "scaled_linear",
///         "beta_start": 0.00085, "beta_end": 0.012, "use_karras_sigmas": true}"#,
/// )?;
/// let method = scheduler.method().expect("a sampler of calotype");
/// assert_eq!(method.kind(), SamplerKind::DpmPp2m);
/// let schedule = scheduler.schedule(method.kind(), 20)?;
/// assert_eq!(schedule.steps().len(), 20);
/// assert!((schedule.steps()[0].from - 14.6146).abs() < 1e-3);
/// # Ok::<(), calotype::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Scheduler {
    class: Class,
    fields: Fields,
    noise: NoiseModel,
    prediction: Prediction,
    /// What of the file is not done, a line each.
    notes: Vec<String>,
}

impl Scheduler {
    /// Reads the text of a `scheduler_config.json`.
    ///
    /// # Errors
    /// [`ErrorKind::Model`] for JSON that is none, for classes and settings of another kind of noise, and for classes that
    /// diffusers does not have. What is run in another way than in diffusers is in [`notes`](Self::notes).
    pub fn from_diffusers(json: &str) -> Result<Self, Error> {
        Self::parse("scheduler_config.json", json.as_bytes())
    }

    /// The same of a file's bytes; `place` is named in messages.
    pub(crate) fn parse(place: &str, json: &[u8]) -> Result<Self, Error> {
        let refuse = |problem: String| Error::new(ErrorKind::Model, format!("{place}: {problem}"));
        let json = json::standard(place, json)?;
        let object: Map<String, Value> = serde_json::from_slice(&json)
            .map_err(|error| refuse("expected a configuration as a JSON object".into()).source(error))?;
        let name = match object.get("_class_name") {
            None | Some(Value::Null) => "",
            Some(Value::String(name)) => name,
            Some(other) => return Err(refuse(format!("_class_name: expected a name, got {other}"))),
        };
        let class = class::known(name).map_err(refuse)?;
        // diffusers hands a class the keys that it knows; the others are named below.
        let reads = |key: &str| class.has(key);
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
        let unread =
            object.keys().filter(|key| !key.starts_with('_') && !reads(key) && !class::is_known(key));
        scheduler.notes.extend(unread.map(|key| format!("{key} is not known, and not used")));
        let others = object.iter().filter(|(key, value)| !reads(key) && class::would_count(key, value));
        scheduler.notes.extend(
            others.map(|(key, value)| format!("{key}: {value}: {name} does not have it, and it is not used")),
        );
        scheduler.notes.iter_mut().for_each(|note| note.insert_str(0, &format!("{place}: ")));
        Ok(scheduler)
    }

    fn of(class: Class, fields: Fields) -> Result<Self, String> {
        let mut notes = Vec::new();
        note::check(class, &fields)?;
        let said = fields.prediction_type.as_deref().unwrap_or("epsilon");
        let sigma_data = fields.sigma_data.unwrap_or(0.5);
        let prediction = match (class.noise, said) {
            (Noise::Flow, _) => Prediction::Flow,
            (Noise::Edm, "epsilon") => Prediction::Edm { sigma_data },
            (Noise::Edm, "v_prediction") => Prediction::EdmV { sigma_data },
            (Noise::Edm, _) => {
                return Err(format!("prediction_type: expected epsilon or v_prediction, got {said:?}"));
            }
            (Noise::Betas, _) => Prediction::named(said).unwrap_or_else(|| {
                notes.push(format!(
                    "prediction_type: expected epsilon, v_prediction or sample, got {said:?}: taken for epsilon unless a prediction type is given"
                ));
                Prediction::Epsilon
            }),
        };
        let noise = fields.noise(class, prediction)?;
        noise.check().and_then(|()| prediction.check_noise(&noise)).map_err(|error| error.to_string())?;
        let mut scheduler = Self { noise, class, fields, prediction, notes };
        let notes = note::undone(&scheduler);
        scheduler.notes.extend(notes);
        Ok(scheduler)
    }

    /// Whether the class groups steps of the stochastic equation, in which calotype has multistep solvers alone; those of
    /// first order are the same.
    fn is_multistep_for_singlestep(&self) -> bool {
        let is_stochastic = self.fields.algorithm_type.as_deref() == Some("sde-dpmsolver++");
        self.class.sampler == Some(SamplerKind::DpmPp2s) && is_stochastic
    }

    /// The noise that the model was trained on.
    pub fn noise(&self) -> &NoiseModel {
        &self.noise
    }

    /// The levels of a run by a sampler: those that the scheduler names, or the sampler's own, or evenly spaced timesteps.
    ///
    /// # Errors
    /// Those of [`NoiseModel::schedule`].
    pub fn schedule(&self, kind: SamplerKind, steps: usize) -> Result<Schedule, Error> {
        let levels = self.named_schedule().or_else(|| kind.own_schedule());
        let levels = levels.unwrap_or_else(|| self.noise.usual_levels());
        self.noise.schedule(&levels, kind.grid(), steps)
    }

    /// What of the file is not known, or run in another way than in diffusers, a line each.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Which timesteps of a curve a run visits.
    pub fn spacing(&self) -> Spacing {
        self.fields.spacing(self.class)
    }

    fn is_zero_terminal_snr(&self) -> bool {
        self.fields.rescale_betas_zero_snr == Some(true)
    }

    /// Whether this is what models of few steps without guidance have: Euler's method on trailing timesteps, with a curve
    /// that does not end in noise alone (SD-Turbo, SDXL-Turbo, SDXL-Lightning).
    pub(crate) fn is_for_few_steps(&self) -> bool {
        let is_euler = matches!(self.class.sampler, Some(SamplerKind::Euler | SamplerKind::EulerAncestral));
        is_euler && self.spacing() == Spacing::Trailing && !self.is_zero_terminal_snr()
    }

    /// The name of its class in diffusers; empty where the file has none.
    pub fn class(&self) -> &'static str {
        self.class.name
    }

    /// What the model predicts.
    pub fn prediction(&self) -> Prediction {
        self.prediction
    }

    /// The levels that the scheduler names, where these are not its evenly spaced timesteps down to 0; diffusers, too,
    /// takes the first that is named.
    pub fn named_schedule(&self) -> Option<ScheduleKind> {
        let named = self.fields.levels().into_iter().find(|(is_used, _)| *is_used == Some(true));
        let schedule = named.map(|(_, name)| name.parse::<ScheduleKind>().expect("the name of a schedule"));
        let schedule = match (self.class.sampler, self.fields.original_inference_steps) {
            (Some(SamplerKind::Lcm | SamplerKind::Tcd), Some(trained_steps)) => {
                Some(ScheduleKind::Lcm { trained_steps })
            }
            _ => schedule,
        };
        if self.ends_low() && self.can_end_low() {
            let schedule = schedule.unwrap_or_else(|| self.noise.usual_levels());
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
    pub fn method(&self) -> Option<Method> {
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
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use flate2::read::GzDecoder;
    use serde::Deserialize;

    use super::class::{BETAS, CLASSES, SPACED};
    use super::*;
    use crate::noise::TorchCpu;
    use crate::sampler::Denoise;
    use crate::schedule::Betas;

    fn scheduler(json: &str) -> Scheduler {
        Scheduler::parse("scheduler_config.json", json.as_bytes()).unwrap()
    }

    fn betas(json: &str) -> Betas {
        match scheduler(json).noise {
            NoiseModel::Discrete(discrete) => discrete.betas().clone(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn betas_of_scheduler_configs() {
        assert_eq!(betas("{}"), Betas::Linear { start: 0.0001, end: 0.02 });
        assert_eq!(
            betas(r#"{"beta_schedule": "sigmoid", "beta_end": 0.03}"#),
            Betas::Sigmoid { start: 0.0001, end: 0.03 }
        );
        assert_eq!(
            betas(
                r#"{"beta_schedule": "scaled_linear", "trained_betas": [0.1, 0.2], "num_train_timesteps": 2}"#
            ),
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
            let schedule = scheduler(json).named_schedule().map(|kind| kind.to_string());
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
        /// What the model is told of the levels.
        timesteps: Option<Vec<f64>>,
        sigmas: Option<Vec<f64>>,
        latents: Option<Vec<f64>>,
    }

    /// A model of normal data, each element with its own mean and deviation, and what it predicts.
    struct Normal<'a>(&'a Golden, Prediction);

    impl Denoise for Normal<'_> {
        fn denoise(&mut self, x: &[f32], sigma: f64, out: &mut [f32]) -> Result<(), Error> {
            let Self(data, prediction) = *self;
            let signal = if prediction == Prediction::Flow { 1.0 - sigma } else { 1.0 };
            let alpha = 1.0 / sigma.hypot(1.0);
            let predict = |(index, &x): (usize, &f32)| {
                let (x, variance) = (f64::from(x), data.deviations[index].powi(2));
                let clean = (data.means[index] * sigma * sigma + signal * x * variance)
                    / (sigma * sigma + signal * signal * variance);
                let noise = (x - signal * clean) / sigma;
                // Karras et al. 2022, equation 8.
                let edm = |sigma_data: f64| {
                    let total = sigma_data.hypot(sigma);
                    (clean - (sigma_data / total).powi(2) * x) * total / (sigma * sigma_data)
                };
                (match prediction {
                    Prediction::Flow => noise - clean,
                    Prediction::Edm { sigma_data } => edm(sigma_data),
                    Prediction::EdmV { sigma_data } => -edm(sigma_data),
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
        /// The schedule of a run, and the latents that it ends in.
        fn run(
            &self,
            scheduler: &Scheduler,
            method: Method,
            steps: usize,
        ) -> Result<(Schedule, Vec<f64>), Error> {
            let schedule = scheduler.schedule(method.kind(), steps)?;
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
            let latents = x.iter().map(|x| f64::from(*x) * schedule.final_scale()).collect();
            Ok((schedule, latents))
        }
    }

    fn golden() -> Golden {
        let file = include_bytes!("../tests/golden/schedulers.json.gz");
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
        let is_unread = |class: &Class, key: &str| class.noise != Noise::Flow && unread.contains(&key);
        for class in CLASSES.iter().filter(|class| !class.name.is_empty()) {
            let mut parameters = golden.parameters[class.name].clone();
            parameters.retain(|key| !is_unread(class, key));
            parameters.sort();
            let all = BETAS.iter().chain(&SPACED).chain(class.reads.iter().copied().flatten());
            let mut reads: Vec<&str> = all.copied().filter(|key| class.has(key)).collect();
            reads.sort();
            reads.dedup();
            assert_eq!(reads, parameters, "{}", class.name);
        }
    }

    /// Every configuration is run as its class runs it, or refused, or a line says what is not done.
    #[test]
    fn configurations_of_diffusers_are_run_refused_or_named() {
        let golden = golden();
        let (mut wrong, mut compared, mut ended, mut named, mut told) = (Vec::new(), 0, 0, 0, 0);
        for Case { config, steps, runs, prediction, timesteps, sigmas, latents } in &golden.cases {
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
                let run = scheduler.method().map(|method| golden.run(&scheduler, method, *steps));
                if scheduler.notes().is_empty() && matches!(run, Some(Ok(_))) {
                    wrong.push(format!("{steps} steps: expected to be refused\n  {config}"));
                }
                continue;
            }
            let expected = match prediction.as_deref() {
                Some("flow") => Some(Prediction::Flow),
                Some(edm @ ("edm" | "edm_v")) => {
                    let config: Value = serde_json::from_str(config).unwrap();
                    let sigma_data = config["sigma_data"].as_f64().unwrap();
                    let is_v = edm == "edm_v";
                    Some(if is_v { Prediction::EdmV { sigma_data } } else { Prediction::Edm { sigma_data } })
                }
                other => other.and_then(Prediction::named),
            };
            assert_eq!(Some(scheduler.prediction()), expected, "{config}");
            if !scheduler.notes().is_empty() {
                named += 1;
                continue;
            }
            let Some(method) = scheduler.method() else { continue };
            let (schedule, end) = match golden.run(&scheduler, method, *steps) {
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
            let levels: Vec<f64> = schedule
                .steps()
                .iter()
                .map(|step| step.from)
                .chain(schedule.steps().last().map(|step| step.to))
                .collect();
            if let Some(timesteps) = timesteps {
                told += 1;
                let ours: Vec<f64> = schedule.steps().iter().map(|step| step.timestep).collect();
                // A step that goes nowhere is left out.
                if far(&ours, &timesteps[..ours.len().min(timesteps.len())], 1e-4) {
                    wrong.push(format!("{method}: timesteps {ours:?}, expected {timesteps:?}\n  {config}"));
                    continue;
                }
            }
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
            compared > 60 && ended > 40 && named < golden.cases.len() / 3 && told > 50,
            "{compared}, {ended}, {named}, {told}"
        );
    }

    #[test]
    fn other_noise_and_unknown_classes_are_refused_by_name() {
        for (config, message) in [
            (
                r#"{"_class_name": "EDMEulerScheduler", "sigma_schedule": "linear"}"#,
                "sigma_schedule: expected karras or exponential, got linear",
            ),
            (
                r#"{"_class_name": "EDMEulerScheduler", "prediction_type": "sample"}"#,
                "prediction_type: expected epsilon or v_prediction, got \"sample\"",
            ),
            (
                r#"{"_class_name": "EDMEulerScheduler", "sigma_min": 0}"#,
                "expected a range above 0, got 0 to 80",
            ),
            (r#"{"_class_name": "EDMEulerScheduler", "sigma_data": -1}"#, "expected a sigma_data above 0"),
            (
                r#"{"_class_name": "EDMDPMSolverMultistepScheduler", "algorithm_type": "dpmsolver"}"#,
                "algorithm_type: expected dpmsolver++ or sde-dpmsolver++, got dpmsolver",
            ),
            (
                r#"{"_class_name": "FlowMatchEulerDiscreteScheduler", "use_dynamic_shifting": true}"#,
                "use_dynamic_shifting: expected false, got true: ",
            ),
            (
                r#"{"_class_name": "FlowMatchEulerDiscreteScheduler", "shift_terminal": 0.02}"#,
                "shift_terminal: expected none, got 0.02",
            ),
            (
                r#"{"_class_name": "FlowMatchEulerDiscreteScheduler", "invert_sigmas": true}"#,
                "invert_sigmas: expected false, got true",
            ),
            (
                r#"{"_class_name": "FlowMatchEulerDiscreteScheduler", "stochastic_sampling": true}"#,
                "stochastic_sampling: expected false, got true",
            ),
            (
                r#"{"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 0}"#,
                "shift: expected a number above 0",
            ),
            (r#"{"_class_name": "FlowMatchLCMScheduler"}"#, "got FlowMatchLCMScheduler: flow matching"),
            (r#"{"_class_name": "IPNDMScheduler"}"#, "got IPNDMScheduler: "),
            (r#"{"_class_name": "Nonsense"}"#, "_class_name: expected one of DDIMScheduler, "),
            (r#"{"_class_name": 1}"#, "_class_name: expected a name, got 1"),
            (
                r#"{"_class_name": "EulerDiscreteScheduler", "timestep_type": "other"}"#,
                "timestep_type: expected discrete or continuous, got other",
            ),
            (
                r#"{"_class_name": "UniPCMultistepScheduler", "use_flow_sigmas": true}"#,
                "use_flow_sigmas: expected false, got true: flow matching is supported with",
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
        assert_eq!(scheduler.method().unwrap().to_string(), "dpm++2m:order=3");
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
            (
                r#"{"_class_name": "PNDMScheduler", "timestep_spacing": "trailing"}"#,
                "timestep_spacing: not used: ",
            ),
            (r#"{"_class_name": "PNDMScheduler", "set_alpha_to_one": true}"#, "set_alpha_to_one: not used: "),
            (
                r#"{"_class_name": "PNDMScheduler", "rescale_betas_zero_snr": true}"#,
                "rescale_betas_zero_snr: true: PNDMScheduler does not have it",
            ),
            (
                r#"{"_class_name": "DDPMScheduler", "clip_sample": false, "use_karras_sigmas": true}"#,
                "use_karras_sigmas: true: DDPMScheduler does not have it",
            ),
            (
                r#"{"_class_name": "DDIMScheduler", "clip_sample": false, "final_sigmas_type": "sigma_min"}"#,
                "final_sigmas_type: \"sigma_min\": DDIMScheduler does not have it",
            ),
            (
                r#"{"_class_name": "DDIMScheduler", "clip_sample": false, "lambda_min_clipped": -5.1}"#,
                "lambda_min_clipped: -5.1: DDIMScheduler does not have it",
            ),
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
            assert_eq!(scheduler.method().unwrap().to_string(), sampler, "{config}");
            assert_eq!(
                scheduler.named_schedule().map(|kind| kind.to_string()).as_deref(),
                schedule,
                "{config}"
            );
        }
    }
}
