//! Classifier-free guidance: how two predictions become one.
//! It knows nothing of prompts, models or samplers.

use crate::{Error, ErrorKind};

/// How strongly a prompt pulls.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Guidance {
    /// The prompt's own prediction; the unconditional one is not needed.
    Off,
    /// Classifier-free guidance (Ho & Salimans 2022, equation 6, where `scale` is `1 + w`).
    Cfg {
        /// 0 ignores the prompt, 1 is no guidance, 5 to 10 is usual.
        scale: f64,
    },
    /// The same for models that edit a picture, which pulls on its own (Brooks et al. 2023, section 3.2.1).
    Edit {
        /// As in [`Guidance::Cfg`].
        scale: f64,
        /// How strongly the picture pulls: at least 1, 1.2 to 2 is usual.
        image_scale: f64,
    },
}

impl Guidance {
    /// Guidance of a checked scale: [`Guidance::Off`] at exactly 1, which needs half the work;
    /// [`ErrorKind::Usage`] for a scale that is not a number, infinite or negative.
    pub fn new(scale: f64) -> Result<Self, Error> {
        if !scale.is_finite() || scale < 0.0 {
            Err(Error::new(ErrorKind::Usage, format!("guidance: expected a number from 0 up, got {scale}"))
                .help("1 is no guidance, 5 to 10 is usual"))
        } else if scale == 1.0 {
            Ok(Self::Off)
        } else {
            Ok(Self::Cfg { scale })
        }
    }

    /// Guidance by a prompt and a picture: [`Guidance::Off`] where the prompt's scale is exactly 1, as in diffusers;
    /// [`ErrorKind::Usage`] for scales that cannot be used.
    pub fn edit(scale: f64, image_scale: f64) -> Result<Self, Error> {
        if !image_scale.is_finite() || image_scale < 1.0 {
            return Err(Error::new(
                ErrorKind::Usage,
                format!("image guidance: expected a number from 1 up, got {image_scale}"),
            )
            .help("1.5 is usual; less keeps less of the picture"));
        }
        Ok(match Self::new(scale)? {
            Self::Off => Self::Off,
            _ => Self::Edit { scale, image_scale },
        })
    }

    /// The guidance scale; 1 is no guidance.
    pub fn scale(self) -> f64 {
        match self {
            Self::Off => 1.0,
            Self::Cfg { scale } | Self::Edit { scale, .. } => scale,
        }
    }

    /// Writes to `out` what a step goes by. `predictions` holds as many predictions of its length as are needed, one
    /// after the other:
    /// - [`Guidance::Off`]: `cond`, which is copied;
    /// - [`Guidance::Cfg`]: `uncond` and `cond`, for `uncond + scale * (cond - uncond)`;
    /// - [`Guidance::Edit`]: `uncond`, `image` (without the prompt) and `cond`, for
    ///   `uncond + image_scale * (image - uncond) + scale * (cond - image)` (Brooks et al. 2023, equation 3).
    pub fn combine(self, predictions: &[f32], out: &mut [f32]) {
        // As weights that sum to 1, because scales 0 and 1 are then exact.
        match self {
            Self::Off => out.copy_from_slice(predictions),
            Self::Cfg { scale } => weigh(predictions, [1.0 - scale, scale], out),
            Self::Edit { scale, image_scale } => {
                weigh(predictions, [1.0 - image_scale, image_scale - scale, scale], out);
            }
        }
    }
}

fn weigh<const N: usize>(predictions: &[f32], weights: [f64; N], out: &mut [f32]) {
    let len = out.len();
    assert_eq!(predictions.len(), N * len, "predictions of one length");
    let predictions: [&[f32]; N] = std::array::from_fn(|n| &predictions[n * len..][..len]);
    for (i, out) in out.iter_mut().enumerate() {
        let parts = weights.iter().zip(predictions);
        *out = parts.map(|(weight, prediction)| weight * f64::from(prediction[i])).sum::<f64>() as f32;
    }
}

/// The guidance scale as a model distilled with it takes it (Meng et al. 2023, section 3; Luo et al. 2023, section
/// 4.1): `width` sines and cosines of `1000 * (scale - 1)`, as for timesteps (Vaswani et al. 2017, section 3.5).
pub fn embedding(scale: f64, width: usize) -> Vec<f64> {
    let half = width / 2;
    let decay = 10_000f64.ln() / (half as f64 - 1.0);
    let angle = |k: usize| 1000.0 * (scale - 1.0) * (-decay * k as f64).exp();
    let sines = (0..half).map(|k| angle(k).sin());
    sines.chain((0..half).map(|k| angle(k).cos())).chain((half * 2..width).map(|_| 0.0)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::noise::{NoiseSource, TorchCpu};

    const LEN: usize = 257;

    fn predictions() -> ([f32; LEN], [f32; LEN]) {
        let mut noise = TorchCpu::new(3);
        let (mut uncond, mut cond) = ([0.0; LEN], [0.0; LEN]);
        noise.fill_normal(&mut uncond);
        noise.fill_normal(&mut cond);
        (uncond, cond)
    }

    fn combined(guidance: Guidance, uncond: &[f32], cond: &[f32]) -> [f32; LEN] {
        let mut out = [f32::NAN; LEN];
        guidance.combine(&[uncond, cond].concat(), &mut out);
        out
    }

    #[test]
    fn it_is_the_naive_formula() {
        let (uncond, cond) = predictions();
        for scale in [0.0, 0.3, 2.0, 7.5, 30.0] {
            let out = combined(Guidance::new(scale).unwrap(), &uncond, &cond);
            for i in 0..LEN {
                let naive = f64::from(uncond[i]) + scale * (f64::from(cond[i]) - f64::from(uncond[i]));
                assert!((f64::from(out[i]) - naive).abs() <= 1e-6 * naive.abs(), "scale {scale}, {i}");
            }
        }
    }

    #[test]
    fn scale_one_is_off_bit_for_bit() {
        let (uncond, cond) = predictions();
        assert_eq!(Guidance::new(1.0).unwrap(), Guidance::Off);
        let mut alone = [f32::NAN; LEN];
        Guidance::Off.combine(&cond, &mut alone);
        assert_eq!(alone, cond);
        assert_eq!(combined(Guidance::Cfg { scale: 1.0 }, &uncond, &cond), cond);
    }

    #[test]
    fn scale_zero_ignores_the_prompt() {
        let (uncond, cond) = predictions();
        assert_eq!(combined(Guidance::new(0.0).unwrap(), &uncond, &cond), uncond);
    }

    #[test]
    fn two_equal_predictions_are_left_as_they_are() {
        let (uncond, _) = predictions();
        assert_eq!(combined(Guidance::new(7.5).unwrap(), &uncond, &uncond), uncond);
    }

    #[test]
    fn a_picture_pulls_beside_the_prompt() {
        let (uncond, cond) = predictions();
        let image: Vec<f32> = uncond.iter().rev().map(|x| x * 0.5).collect();
        let combined = |scale, image_scale| {
            let mut out = [f32::NAN; LEN];
            let predictions = [&uncond[..], &image, &cond].concat();
            Guidance::Edit { scale, image_scale }.combine(&predictions, &mut out);
            out
        };
        for (scale, image_scale) in [(7.5, 1.5), (0.5, 1.0), (0.0, 2.0)] {
            let out = combined(scale, image_scale);
            for i in 0..LEN {
                let (u, i_, c) = (f64::from(uncond[i]), f64::from(image[i]), f64::from(cond[i]));
                let naive = u + scale * (c - i_) + image_scale * (i_ - u);
                assert!((f64::from(out[i]) - naive).abs() <= 1e-6 * naive.abs() + 1e-7, "{scale}, {i}");
            }
        }
        assert_eq!(combined(1.0, 1.0), cond, "scales of 1 leave the prompt's own prediction");
        assert_eq!(combined(0.0, 1.0)[..], image[..], "without the prompt the picture is left");
    }

    #[test]
    fn unusable_scales_are_usage_errors() {
        for scale in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -0.1] {
            assert_eq!(Guidance::new(scale).expect_err("unusable").kind(), ErrorKind::Usage, "{scale}");
            for (scale, image_scale) in [(scale, 1.5), (7.5, scale), (7.5, 0.9)] {
                let error = Guidance::edit(scale, image_scale).expect_err("unusable");
                assert_eq!(error.kind(), ErrorKind::Usage, "{scale}, {image_scale}");
            }
        }
        assert_eq!(Guidance::edit(1.0, 1.5).unwrap(), Guidance::Off);
    }
}
