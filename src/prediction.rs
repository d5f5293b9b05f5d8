//! What a model's output means, and how the clean latents follow from it.
//! It knows nothing of graphs, guidance or samplers.

mod thresholding;

use std::fmt;
use std::str::FromStr;

pub(crate) use thresholding::quantile;
pub use thresholding::{Thresholder, Thresholding};

use crate::noise_model::NoiseModel;
use crate::{Error, ErrorKind, name};

/// What a denoising model predicts.
///
/// The latents `x` given to the methods are `x0 + sigma * noise` (variance exploding), except for
/// [`Prediction::Flow`]. The model itself was trained on `c_in * x`: see [`Preconditioning`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Prediction {
    /// The noise (Ho et al. 2020, section 3.2).
    Epsilon,
    /// The velocity `v = alpha * noise - sqrt(1 - alpha^2) * x0` with `alpha = 1 / sqrt(sigma^2 + 1)` (Salimans & Ho
    /// 2022, section 4).
    V,
    /// The clean latents `x0` themselves.
    Sample,
    /// The velocity `noise - x0` of latents that go straight from one to the other: `x = (1 - sigma) * x0 + sigma *
    /// noise`, with `sigma` from 0 to 1 (Liu et al. 2023, "Flow straight and fast", equation 1).
    Flow,
    /// The output of a network that is told how far the latents are from data of deviation `sigma_data`, which is
    /// above 0 (Karras et al. 2022, table 1, column "Ours").
    Edm {
        /// The deviation of the data that the model was trained on.
        sigma_data: f64,
    },
    /// The same of the opposite sign, as diffusers' `EDMEulerScheduler` has it for `v_prediction`; at a `sigma_data` of
    /// 1 this is [`Prediction::V`].
    EdmV {
        /// As in [`Prediction::Edm`].
        sigma_data: f64,
    },
}

/// How a network `F` becomes a denoiser, `D(x; sigma) = c_skip * x + c_out * F(c_in * x)` (Karras et al. 2022,
/// equation 7).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Preconditioning {
    /// The share of the latents themselves.
    pub c_skip: f64,
    /// The share of the model's output.
    pub c_out: f64,
    /// The factor that turns latents into the model's input.
    pub c_in: f64,
}

impl Prediction {
    /// The prediction that goes with a curve of betas, by the names that trainers and programs have for it, in whatever
    /// case and punctuation; nothing for other names.
    pub(crate) fn named(name: &str) -> Option<Self> {
        Some(match name::bare(name).as_str() {
            "v" | "vpred" | "vprediction" | "vparameterization" | "velocity" => Self::V,
            "eps" | "epsilon" | "epsprediction" | "epspred" | "noise" => Self::Epsilon,
            "sample" | "x0" | "xstart" | "x0prediction" | "x0pred" => Self::Sample,
            _ => return None,
        })
    }

    /// The prediction that is meant where somebody says that a network predicts `said`, and its files say `self`.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] for one that a network that was trained on this noise cannot have.
    pub(crate) fn replaced(self, said: Self, noise: &NoiseModel) -> Result<Self, Error> {
        let sigma_data = match self {
            Self::Edm { sigma_data } | Self::EdmV { sigma_data } => sigma_data,
            _ => 1.0,
        };
        let prediction = match (noise, said) {
            (NoiseModel::Edm { .. }, Self::Epsilon) => Self::Edm { sigma_data },
            (NoiseModel::Edm { .. }, Self::V) if self != Self::V => Self::EdmV { sigma_data },
            _ => said,
        };
        let meant = prediction.check_noise(noise).map(|()| prediction);
        meant.map_err(|error| Error::new(ErrorKind::Usage, error.to_string()))
    }

    /// Whether a network that was trained on this noise can predict this.
    ///
    /// # Errors
    /// [`ErrorKind::Model`] for one that it cannot, and for a deviation that is none.
    pub fn check_noise(self, noise: &NoiseModel) -> Result<(), Error> {
        let (fits, expected) = match noise {
            NoiseModel::Discrete(_) => (
                matches!(self, Self::Epsilon | Self::V | Self::Sample),
                "one that goes with a curve of betas (epsilon, v or sample)",
            ),
            NoiseModel::Flow { .. } => (self == Self::Flow, "one that goes with flow matching (flow)"),
            NoiseModel::Edm { .. } => match self {
                Self::V => (true, ""),
                Self::Edm { sigma_data } | Self::EdmV { sigma_data } => {
                    (sigma_data.is_finite() && sigma_data > 0.0, "a sigma_data above 0")
                }
                _ => (false, "one that goes with a range of levels (edm, edm_v or v)"),
            },
        };
        if fits {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Model, format!("prediction: expected {expected}, got {self:?}")))
    }

    /// The factors at a noise level. Models of noise, `V` and `x0` were trained on `z = alpha * x0 + sqrt(1 - alpha^2)
    /// * noise` (variance preserving), so that `z = alpha * x` (Karras et al. 2022, table 1, column VP).
    pub fn preconditioning(self, sigma: f64) -> Preconditioning {
        let alpha = 1.0 / sigma.hypot(1.0);
        let (c_skip, c_out, c_in) = match self {
            Self::Epsilon => (1.0, -sigma, alpha),
            Self::V => (alpha * alpha, -sigma * alpha, alpha),
            Self::Sample => (0.0, 1.0, alpha),
            Self::Flow => (1.0, -sigma, 1.0),
            Self::Edm { sigma_data } | Self::EdmV { sigma_data } => {
                let c_in = 1.0 / sigma.hypot(sigma_data);
                let sign = if matches!(self, Self::Edm { .. }) { 1.0 } else { -1.0 };
                ((sigma_data * c_in).powi(2), sign * sigma * sigma_data * c_in, c_in)
            }
        };
        Preconditioning { c_skip, c_out, c_in }
    }

    /// The factor that turns latents into the model's input: [`Preconditioning::c_in`].
    pub fn input_scale(self, sigma: f64) -> f64 {
        self.preconditioning(sigma).c_in
    }

    /// Writes the clean latents behind `x` to `out`. All slices have one length.
    pub fn to_denoised(self, x: &[f32], model_output: &[f32], sigma: f64, out: &mut [f32]) {
        assert!(x.len() == out.len() && model_output.len() == out.len(), "latents of one length");
        let Preconditioning { c_skip, c_out, .. } = self.preconditioning(sigma);
        for ((out, x), output) in out.iter_mut().zip(x).zip(model_output) {
            *out = (c_skip * f64::from(*x) + c_out * f64::from(*output)) as f32;
        }
    }
}

impl fmt::Display for Prediction {
    /// As it is read; models of other predictions are not asked for by name.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Epsilon => "epsilon",
            Self::V => "v",
            Self::Sample => "sample",
            Self::Flow => "flow",
            Self::Edm { .. } => "edm",
            Self::EdmV { .. } => "edm-v",
        })
    }
}

impl FromStr for Prediction {
    type Err = Error;

    /// Reads `epsilon`, `v` or `sample`, or another name for one of them; [`ErrorKind::Usage`] for anything else.
    fn from_str(text: &str) -> Result<Self, Error> {
        Self::named(text).ok_or_else(|| {
            Error::new(ErrorKind::Usage, format!("prediction: expected epsilon, v or sample, got {text:?}"))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each prediction is made from its definition, for known clean latents and noise.
    #[test]
    fn every_prediction_leads_back_to_the_clean_latents() {
        let (x0, noise) = ([0.5f64, -1.25, 3.0], [1.5f64, 0.25, -2.0]);
        for sigma in [0.03, 1.0, 14.6] {
            let alpha = 1.0 / (sigma * sigma + 1.0f64).sqrt();
            let spread = (1.0 - alpha * alpha).sqrt();
            let x: Vec<f64> = x0.iter().zip(noise).map(|(x0, noise)| x0 + sigma * noise).collect();
            let v: Vec<f64> = x0.iter().zip(noise).map(|(x0, noise)| alpha * noise - spread * x0).collect();
            check(Prediction::Epsilon, sigma, &x, &noise, &x0);
            check(Prediction::V, sigma, &x, &v, &x0);
            check(Prediction::Sample, sigma, &x, &x0, &x0);
            // Equation 8: the training target is what is left of x0 without its share of x, at unit variance.
            let sigma_data: f64 = 0.5;
            let variance = sigma * sigma + sigma_data * sigma_data;
            let target = |(x0, x): (&f64, &f64)| {
                (x0 - sigma_data * sigma_data / variance * x) / (sigma * sigma_data / variance.sqrt())
            };
            let output: Vec<f64> = x0.iter().zip(&x).map(target).collect();
            check(Prediction::Edm { sigma_data }, sigma, &x, &output, &x0);
            let negated: Vec<f64> = output.iter().map(|output| -output).collect();
            check(Prediction::EdmV { sigma_data }, sigma, &x, &negated, &x0);
        }
        for sigma in [0.02, 0.5, 1.0] {
            let x: Vec<f64> =
                x0.iter().zip(noise).map(|(x0, noise)| (1.0 - sigma) * x0 + sigma * noise).collect();
            let velocity: Vec<f64> = x0.iter().zip(noise).map(|(x0, noise)| noise - x0).collect();
            check(Prediction::Flow, sigma, &x, &velocity, &x0);
        }
    }

    #[track_caller]
    fn check(prediction: Prediction, sigma: f64, x: &[f64], output: &[f64], x0: &[f64]) {
        let single = |values: &[f64]| values.iter().map(|&value| value as f32).collect::<Vec<_>>();
        let mut denoised = [f32::NAN; 3];
        prediction.to_denoised(&single(x), &single(output), sigma, &mut denoised);
        for (denoised, x0) in denoised.into_iter().zip(x0) {
            // Rounding x to f32 leaves an error of half a unit in the last place of its noise.
            assert!((f64::from(denoised) - x0).abs() < 1e-5, "{prediction:?}, {sigma}: {denoised}");
        }
    }

    #[test]
    fn the_model_input_has_unit_variance() {
        for sigma in [0.03, 1.0, 14.6] {
            for (prediction, sigma_data) in [
                (Prediction::Epsilon, 1.0f64),
                (Prediction::V, 1.0),
                (Prediction::Sample, 1.0),
                (Prediction::Edm { sigma_data: 0.5 }, 0.5),
                (Prediction::EdmV { sigma_data: 3.0 }, 3.0),
            ] {
                let variance = (sigma_data.powi(2) + sigma * sigma) * prediction.input_scale(sigma).powi(2);
                assert!((variance - 1.0f64).abs() < 1e-12, "{prediction:?}, {sigma}: {variance}");
            }
        }
        assert_eq!(Prediction::Flow.input_scale(0.3), 1.0, "flows mix, so that nothing grows");
    }

    #[test]
    fn v_is_edm_v_of_data_of_unit_deviation() {
        for sigma in [0.03, 1.0, 14.6] {
            let (v, edm) = (Prediction::V, Prediction::EdmV { sigma_data: 1.0 });
            let (v, edm) = (v.preconditioning(sigma), edm.preconditioning(sigma));
            assert!((v.c_skip - edm.c_skip).abs() < 1e-15 && (v.c_out - edm.c_out).abs() < 1e-15, "{sigma}");
            assert_eq!(v.c_in, edm.c_in);
        }
    }
}
