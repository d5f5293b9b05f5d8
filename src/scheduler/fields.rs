//! The settings of `scheduler_config.json`, whatever its class, with the defaults that all classes have.
//! It knows which noise they mean, and nothing of the method.

use serde::Deserialize;
use serde_json::Value;

use super::class::{Class, Noise};
use crate::noise_model::{Discrete, NoiseModel, TimeInput};
use crate::prediction::Prediction;
use crate::schedule::{Betas, ScheduleKind, Spacing};

#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
pub(super) struct Fields {
    pub(super) num_train_timesteps: usize,
    pub(super) beta_start: f64,
    pub(super) beta_end: f64,
    pub(super) beta_schedule: String,
    pub(super) trained_betas: Option<Vec<f32>>,
    pub(super) rescale_betas_zero_snr: Option<bool>,
    pub(super) prediction_type: Option<String>,
    pub(super) timestep_spacing: Option<String>,
    pub(super) timestep_type: Option<String>,
    pub(super) interpolation_type: Option<String>,
    pub(super) steps_offset: Option<u32>,
    pub(super) use_karras_sigmas: Option<bool>,
    pub(super) use_exponential_sigmas: Option<bool>,
    pub(super) use_beta_sigmas: Option<bool>,
    pub(super) use_lu_lambdas: Option<bool>,
    pub(super) use_flow_sigmas: Option<bool>,
    pub(super) use_dynamic_shifting: Option<bool>,
    pub(super) algorithm_type: Option<String>,
    pub(super) solver_order: Option<usize>,
    pub(super) solver_type: Option<String>,
    pub(super) lower_order_final: Option<bool>,
    pub(super) euler_at_final: Option<bool>,
    pub(super) final_sigmas_type: Option<String>,
    pub(super) set_alpha_to_one: Option<bool>,
    pub(super) clip_sample: Option<bool>,
    pub(super) thresholding: Option<bool>,
    pub(super) dynamic_thresholding_ratio: Option<f64>,
    pub(super) sample_max_value: Option<f64>,
    pub(super) clip_sample_range: Option<f64>,
    pub(super) variance_type: Option<String>,
    pub(super) lambda_min_clipped: Option<Number>,
    pub(super) original_inference_steps: Option<usize>,
    pub(super) timestep_scaling: Option<f64>,
    pub(super) predict_x0: Option<bool>,
    pub(super) disable_corrector: Option<Vec<usize>>,
    pub(super) solver_p: Option<Value>,
    pub(super) sigma_min: Option<f64>,
    pub(super) sigma_max: Option<f64>,
    pub(super) sigma_data: Option<f64>,
    pub(super) sigma_schedule: Option<String>,
    pub(super) rho: Option<f64>,
    pub(super) shift: Option<f64>,
    pub(super) shift_terminal: Option<f64>,
    pub(super) invert_sigmas: Option<bool>,
    pub(super) stochastic_sampling: Option<bool>,
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
            sigma_data: None,
            sigma_schedule: None,
            rho: None,
            shift: None,
            shift_terminal: None,
            invert_sigmas: None,
            stochastic_sampling: None,
        }
    }
}

/// A number that may be one of Python's that are not finite, which [`json::standard`] makes texts.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum Number {
    Finite(f64),
    Text(String),
}

impl Fields {
    /// The defaults of diffusers' classes for distilled models.
    pub(super) fn distilled() -> Self {
        Self {
            beta_start: 0.00085,
            beta_end: 0.012,
            beta_schedule: "scaled_linear".into(),
            ..Self::default()
        }
    }

    /// The noise of a class that is set like this.
    pub(super) fn noise(&self, class: Class, prediction: Prediction) -> Result<NoiseModel, String> {
        let kind = |text: String| text.parse::<ScheduleKind>().map_err(|error| error.to_string());
        let range =
            |levels, [sigma_min, sigma_max]: [f64; 2]| NoiseModel::Edm { sigma_min, sigma_max, levels };
        match class.noise {
            Noise::Flow => Ok(NoiseModel::Flow {
                shift: self.shift.unwrap_or(1.0),
                train_timesteps: self.num_train_timesteps,
            }),
            Noise::Edm => {
                let levels = match self.sigma_schedule.as_deref() {
                    None | Some("karras") => kind(format!("karras:rho={}", self.rho.unwrap_or(7.0)))?,
                    Some("exponential") => ScheduleKind::Exponential,
                    Some(other) => {
                        return Err(format!("sigma_schedule: expected karras or exponential, got {other}"));
                    }
                };
                Ok(range(levels, [self.sigma_min.unwrap_or(0.002), self.sigma_max.unwrap_or(80.0)]))
            }
            Noise::Betas => {
                // diffusers does nothing else of continuous timesteps than to tell models of velocities their logarithms.
                let is_continuous =
                    self.timestep_type.as_deref() == Some("continuous") && prediction == Prediction::V;
                let asked = self.levels().into_iter().find(|(used, _)| *used == Some(true));
                if let (true, Some((_, name)), Some(low), Some(high)) =
                    (is_continuous, asked, self.sigma_min, self.sigma_max)
                {
                    return Ok(range(kind(name.to_owned())?, [low, high]));
                }
                let time_input = if is_continuous { TimeInput::QuarterLog } else { TimeInput::Timestep };
                let discrete =
                    Discrete::new(self.betas()?, self.num_train_timesteps, self.spacing(class), time_input);
                discrete.map(NoiseModel::Discrete).map_err(|error| error.to_string())
            }
        }
    }

    /// As diffusers' classes default where the file says nothing; but a model that was trained down to noise alone starts
    /// from there (Lin et al. 2024, section 3.3), which the other spacings are not sure to.
    pub(super) fn spacing(&self, class: Class) -> Spacing {
        let usual = if self.rescale_betas_zero_snr == Some(true) { "trailing" } else { class.spacing };
        match self.timestep_spacing.as_deref().unwrap_or(usual) {
            "linspace" => Spacing::Linspace,
            "trailing" => Spacing::Trailing,
            _ => Spacing::Leading { offset: self.steps_offset.unwrap_or(0) },
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

    /// The kinds of levels that a file may ask for.
    pub(super) fn levels(&self) -> [(Option<bool>, &'static str); 4] {
        [
            (self.use_karras_sigmas, "karras"),
            // Evenly spaced logarithms, by another name (Lu et al. 2022, with rho 1).
            (self.use_lu_lambdas, "exponential"),
            (self.use_exponential_sigmas, "exponential"),
            (self.use_beta_sigmas, "beta"),
        ]
    }
}
