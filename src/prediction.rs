//! What a model's output means, and how the clean latents follow from it.
//! It knows nothing of graphs, guidance or samplers.

/// What a denoising model predicts.
///
/// The latents `x` given to the methods are `x0 + sigma * noise` (variance exploding). The model itself was
/// trained on `z = alpha * x0 + sqrt(1 - alpha^2) * noise` (variance preserving) with
/// `alpha = 1 / sqrt(sigma^2 + 1)`, so that `z = alpha * x`: [`Prediction::input_scale`] turns one into the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Prediction {
    /// The noise (Ho et al. 2020, section 3.2).
    Epsilon,
    /// The velocity `v = alpha * noise - sqrt(1 - alpha^2) * x0` (Salimans & Ho 2022, section 4).
    V,
    /// The clean latents `x0` themselves.
    Sample,
}

impl Prediction {
    /// The factor `c_in = 1 / sqrt(sigma^2 + 1)` that turns latents into the model's input
    /// (Karras et al. 2022, equation 7 and table 1, column VP).
    pub fn input_scale(sigma: f64) -> f64 {
        1.0 / sigma.hypot(1.0)
    }

    /// Writes the clean latents `D(x; sigma) = c_skip * x + c_out * model_output` to `out`
    /// (Karras et al. 2022, equation 7). All slices have one length.
    pub fn to_denoised(self, x: &[f32], model_output: &[f32], sigma: f64, out: &mut [f32]) {
        assert!(x.len() == out.len() && model_output.len() == out.len(), "latents of one length");
        let alpha = Self::input_scale(sigma);
        let (c_skip, c_out) = match self {
            Self::Epsilon => (1.0, -sigma),
            Self::V => (alpha * alpha, -sigma * alpha),
            Self::Sample => (0.0, 1.0),
        };
        for ((out, x), output) in out.iter_mut().zip(x).zip(model_output) {
            *out = (c_skip * f64::from(*x) + c_out * f64::from(*output)) as f32;
        }
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
            let x: Vec<f32> = x0.iter().zip(noise).map(|(x0, noise)| (x0 + sigma * noise) as f32).collect();
            let v: Vec<f64> = x0.iter().zip(noise).map(|(x0, noise)| alpha * noise - spread * x0).collect();
            for (prediction, output) in
                [(Prediction::Epsilon, noise.to_vec()), (Prediction::V, v), (Prediction::Sample, x0.to_vec())]
            {
                let output: Vec<f32> = output.into_iter().map(|value| value as f32).collect();
                let mut denoised = [f32::NAN; 3];
                prediction.to_denoised(&x, &output, sigma, &mut denoised);
                for (denoised, x0) in denoised.into_iter().zip(x0) {
                    // Rounding x to f32 leaves an error of half a unit in the last place of its noise.
                    assert!((f64::from(denoised) - x0).abs() < 1e-5, "{prediction:?}, {sigma}: {denoised}");
                }
            }
        }
    }

    #[test]
    fn the_model_input_has_unit_variance() {
        for sigma in [0.03, 1.0, 14.6] {
            let variance: f64 = (1.0 + sigma * sigma) * Prediction::input_scale(sigma).powi(2);
            assert!((variance - 1.0).abs() < 1e-12);
        }
    }
}
