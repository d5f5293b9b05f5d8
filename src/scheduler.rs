//! Schedulers of diffusers: what a `scheduler_config.json` says of the noise that a model was trained on, and of the
//! method that it is sampled with. It knows diffusers' classes and their defaults, and nothing of networks.

mod class;
mod fields;
mod note;

use serde_json::{Map, Value};

use crate::prediction::Prediction;
use crate::sampler::{Method, SamplerKind};
use crate::schedule::{Betas, NoiseCurve, Schedule, ScheduleKind, Spacing};
use crate::{Error, ErrorKind, json};
use class::{BETAS, Class, SPACED};
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
/// assert!((schedule.steps()[0].from - scheduler.curve()?.sigma_max()).abs() < 1e-9);
/// # Ok::<(), calotype::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Scheduler {
    class: Class,
    fields: Fields,
    betas: Betas,
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
        let unread =
            object.keys().filter(|key| !key.starts_with('_') && !reads(key) && !class::is_known(key));
        scheduler.notes.extend(unread.map(|key| format!("{key} is not known, and not used")));
        scheduler.notes.iter_mut().for_each(|note| note.insert_str(0, &format!("{place}: ")));
        Ok(scheduler)
    }

    fn of(class: Class, fields: Fields) -> Result<Self, String> {
        let mut notes = Vec::new();
        note::check(class, &fields)?;
        let said = fields.prediction_type.as_deref().unwrap_or("epsilon");
        let prediction = Prediction::named(said).unwrap_or_else(|| {
            notes.push(format!(
                "prediction_type: expected epsilon, v_prediction or sample, got {said:?}: taken for epsilon; --prediction says otherwise"
            ));
            Prediction::Epsilon
        });
        let mut scheduler = Self { betas: fields.betas()?, class, fields, prediction, notes };
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

    /// The betas of the noise that the model was trained on.
    pub fn betas(&self) -> &Betas {
        &self.betas
    }

    /// How many timesteps it was trained on.
    pub fn train_timesteps(&self) -> usize {
        self.fields.num_train_timesteps
    }

    /// The curve of these betas.
    ///
    /// # Errors
    /// [`ErrorKind::Model`] where they make none.
    pub fn curve(&self) -> Result<NoiseCurve, Error> {
        NoiseCurve::new(self.betas.clone(), self.train_timesteps())
    }

    /// The levels of a run by a sampler: those that the scheduler names, or the sampler's own, or evenly spaced timesteps.
    ///
    /// # Errors
    /// Those of [`Schedule::of`] and [`Scheduler::curve`].
    pub fn schedule(&self, kind: SamplerKind, steps: usize) -> Result<Schedule, Error> {
        let levels = self.named_schedule().or_else(|| kind.own_schedule());
        let levels = levels.unwrap_or(ScheduleKind::Spaced(self.spacing()));
        Schedule::of(&levels, &self.curve()?, kind.grid(), steps)
    }

    /// What of the file is not known, or run in another way than in diffusers, a line each.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Which timesteps a run visits: as diffusers' classes default where the file says nothing; but a model that was trained down to noise alone starts
    /// from there (Lin et al. 2024, section 3.3), which the other spacings are not sure to.
    pub fn spacing(&self) -> Spacing {
        let usual = if self.is_zero_terminal_snr() { "trailing" } else { self.class.spacing };
        match self.fields.timestep_spacing.as_deref().unwrap_or(usual) {
            "linspace" => Spacing::Linspace,
            "trailing" => Spacing::Trailing,
            _ => Spacing::Leading { offset: self.fields.steps_offset.unwrap_or(0) },
        }
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

    use super::class::CLASSES;
    use super::*;
    use crate::noise::TorchCpu;
    use crate::sampler::Denoise;

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
                let run = scheduler.method().map(|method| golden.run(&scheduler, method, *steps));
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
            let Some(method) = scheduler.method() else { continue };
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
