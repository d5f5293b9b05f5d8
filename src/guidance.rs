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

    /// The guidance scale; 1 is no guidance.
    pub fn scale(self) -> f64 {
        match self {
            Self::Off => 1.0,
            Self::Cfg { scale } => scale,
        }
    }

    /// Writes `uncond + scale * (cond - uncond)` to `out`. All slices have one length.
    pub fn combine(self, uncond: &[f32], cond: &[f32], out: &mut [f32]) {
        assert!(uncond.len() == out.len() && cond.len() == out.len(), "predictions of one length");
        let scale = match self {
            Self::Off => return out.copy_from_slice(cond),
            Self::Cfg { scale } => scale,
        };
        for ((out, uncond), cond) in out.iter_mut().zip(uncond).zip(cond) {
            // As two weights that sum to 1, because scales 0 and 1 are then exact.
            *out = ((1.0 - scale) * f64::from(*uncond) + scale * f64::from(*cond)) as f32;
        }
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
        guidance.combine(uncond, cond, &mut out);
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
        assert_eq!(combined(Guidance::Off, &uncond, &cond), cond);
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
    fn unusable_scales_are_usage_errors() {
        for scale in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -0.1] {
            assert_eq!(Guidance::new(scale).expect_err("unusable").kind(), ErrorKind::Usage, "{scale}");
        }
    }
}
