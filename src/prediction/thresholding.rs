//! Thresholding: clean latents kept in the range of the data, for models whose data has one.
//! It knows nothing of how they were predicted.

use std::fmt;
use std::str::FromStr;

use crate::name::{self, Setting};
use crate::{Error, ErrorKind};

/// How clean latents are kept in range: a setting of models that work on pixels. Latents of a VAE have no sharp range,
/// and diffusers warns against it there.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Thresholding(Kind);

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Static { range: f64 },
    Dynamic { ratio: f64, max: f64 },
}

impl Thresholding {
    /// Clips to `-range..=range` (diffusers' `clip_sample_range`); [`ErrorKind::Usage`] where that is no range.
    pub fn fixed(range: f64) -> Result<Self, Error> {
        if !(range.is_finite() && range > 0.0) {
            let message = format!("static thresholding: expected a range above 0, got {range}");
            return Err(Error::new(ErrorKind::Usage, message).help("1 is the range of pixels"));
        }
        Ok(Self(Kind::Static { range }))
    }

    /// Clips to `-s..=s` and divides by `s`, which is the `ratio` quantile of the absolute values, but at least 1 and
    /// at most `max` (Saharia et al. 2022, section 2.3; diffusers' `dynamic_thresholding_ratio` and
    /// `sample_max_value`). [`ErrorKind::Usage`] for a `ratio` outside of 0..=1 or a `max` below 1.
    pub fn dynamic(ratio: f64, max: f64) -> Result<Self, Error> {
        if !(0.0..=1.0).contains(&ratio) {
            let message = format!("dynamic thresholding: expected a ratio from 0 to 1, got {ratio}");
            return Err(Error::new(ErrorKind::Usage, message).help("0.995 is usual"));
        }
        if !(max.is_finite() && max >= 1.0) {
            let message = format!("dynamic thresholding: expected a largest value from 1 up, got {max}");
            return Err(Error::new(ErrorKind::Usage, message).help("at 1 it only clips"));
        }
        Ok(Self(Kind::Dynamic { ratio, max }))
    }
}

impl fmt::Display for Thresholding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&match self.0 {
            Kind::Static { range } => format!("static:range={range}"),
            Kind::Dynamic { ratio, max } => format!("dynamic:ratio={ratio},max={max}"),
        })
    }
}

impl FromStr for Thresholding {
    type Err = Error;

    /// Reads `static:range=1` or `dynamic:ratio=0.995,max=1`, the numbers of diffusers where they are left out;
    /// [`ErrorKind::Usage`] for anything else.
    fn from_str(text: &str) -> Result<Self, Error> {
        const WHAT: &str = "thresholding";
        let (typed, settings) = name::settings(text);
        let mut kind = match name::bare(typed).as_str() {
            "static" => Kind::Static { range: 1.0 },
            "dynamic" => Kind::Dynamic { ratio: 0.995, max: 1.0 },
            _ => return Err(name::unknown(WHAT, ["static", "dynamic"], typed)),
        };
        for setting in settings {
            let Setting { name, .. } = setting;
            match (&mut kind, name) {
                (Kind::Static { range }, "range") => *range = setting.read(WHAT)?,
                (Kind::Dynamic { ratio, .. }, "ratio") => *ratio = setting.read(WHAT)?,
                (Kind::Dynamic { max, .. }, "max") => *max = setting.read(WHAT)?,
                _ => {
                    let got = format!("{WHAT}: {typed}: expected other settings, got {name:?}");
                    return Err(Error::new(ErrorKind::Usage, got).help(format!("it has {}", Self(kind))));
                }
            }
        }
        match kind {
            Kind::Static { range } => Self::fixed(range),
            Kind::Dynamic { ratio, max } => Self::dynamic(ratio, max),
        }
    }
}

/// [`Thresholding`] with the memory that it needs.
pub struct Thresholder {
    kind: Kind,
    magnitudes: Vec<f32>,
}

impl Thresholder {
    /// For clean latents of `len` values.
    pub fn new(thresholding: Thresholding, len: usize) -> Self {
        Self { kind: thresholding.0, magnitudes: vec![0.0; len] }
    }

    /// Keeps the latents of one image in range. Values that are not finite stay so: clipped they would end as a
    /// image that hides a failure.
    pub fn apply(&mut self, denoised: &mut [f32]) {
        let (limit, divisor) = match self.kind {
            Kind::Static { range } => (range, 1.0),
            Kind::Dynamic { ratio, max } => {
                assert_eq!(denoised.len(), self.magnitudes.len(), "latents of one length");
                for (magnitude, value) in self.magnitudes.iter_mut().zip(&*denoised) {
                    *magnitude = value.abs();
                }
                // Not `clamp`, which would turn a quantile that is not a number into a panic or into 1.
                let s = quantile(&mut self.magnitudes, ratio);
                let s = if s > max { max } else { s };
                let s = if s < 1.0 { 1.0 } else { s };
                (s, s)
            }
        };
        for value in denoised.iter_mut().filter(|value| value.is_finite()) {
            let wide = f64::from(*value);
            let kept = if wide.abs() > limit { limit.copysign(wide) } else { wide };
            *value = (kept / divisor) as f32;
        }
    }
}

/// The value below which a share `q` (from 0 to 1) of the values lies, with the straight line between two neighbours,
/// as `torch.quantile`; not a number where one of them is none. The values, of which there is at least one, are
/// reordered.
pub(crate) fn quantile(values: &mut [f32], q: f64) -> f64 {
    if values.iter().any(|value| value.is_nan()) {
        return f64::NAN;
    }
    let rank = q * (values.len() - 1) as f64;
    let (_, &mut below, above) = values.select_nth_unstable_by(rank as usize, f32::total_cmp);
    let below = f64::from(below);
    match above.iter().copied().min_by(f32::total_cmp) {
        Some(above) if rank.fract() > 0.0 => below + rank.fract() * (f64::from(above) - below),
        _ => below,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_reads_as_it_is_written() {
        for text in ["static:range=2", "dynamic:ratio=0.9,max=3"] {
            assert_eq!(text.parse::<Thresholding>().unwrap().to_string(), text);
        }
        assert_eq!("dynamic".parse::<Thresholding>().unwrap(), Thresholding::dynamic(0.995, 1.0).unwrap());
        for (text, message) in [
            ("statik", "did you mean static?"),
            ("static:ratio=1", "expected other settings, got \"ratio\"; it has static:range=1"),
            ("static:range=-1", "expected a range above 0, got -1"),
            ("dynamic:max=x", "thresholding: max: expected a number, got \"x\""),
        ] {
            let error = text.parse::<Thresholding>().expect_err(text);
            assert!(error.to_string().contains(message), "{error}");
        }
    }
    use crate::noise::{NoiseSource, TorchCpu};

    fn normal(len: usize, scale: f32) -> Vec<f32> {
        let mut values = vec![0.0; len];
        TorchCpu::new(4).fill_normal(&mut values);
        values.iter_mut().for_each(|value| *value *= scale);
        values
    }

    fn applied(thresholding: Thresholding, mut values: Vec<f32>) -> Vec<f32> {
        Thresholder::new(thresholding, values.len()).apply(&mut values);
        values
    }

    #[test]
    fn quantiles_are_those_of_a_sorted_list() {
        for len in [1, 2, 3, 100, 257] {
            let values = normal(len, 1.0);
            let mut sorted = values.clone();
            sorted.sort_by(f32::total_cmp);
            for q in [0.0, 0.25, 0.5, 0.9, 0.995, 1.0] {
                let rank = q * (len - 1) as f64;
                let (below, above) = (sorted[rank.floor() as usize], sorted[rank.ceil() as usize]);
                let naive = f64::from(below) * (1.0 - rank.fract()) + f64::from(above) * rank.fract();
                let quantile = quantile(&mut values.clone(), q);
                assert!((quantile - naive).abs() < 1e-12, "{len}, {q}: {quantile}, {naive}");
            }
        }
    }

    #[test]
    fn what_is_in_range_is_left_as_it_is() {
        let values: Vec<f32> = normal(100, 1.0).iter().map(|value| value.clamp(-1.0, 1.0)).collect();
        assert_eq!(applied(Thresholding::fixed(1.0).unwrap(), values.clone()), values);
        assert_eq!(applied(Thresholding::dynamic(0.9, 2.0).unwrap(), values.clone()), values);
    }

    #[test]
    fn dynamic_thresholding_fills_the_range_and_leaves_none_outside() {
        let values = normal(1000, 3.0);
        let kept = applied(Thresholding::dynamic(0.9, 100.0).unwrap(), values.clone());
        assert!(kept.iter().all(|value| value.abs() <= 1.0));
        let at_the_edge = kept.iter().filter(|value| value.abs() == 1.0).count();
        assert_eq!(at_the_edge, 100, "a tenth lies above the quantile");
        let clipped = applied(Thresholding::fixed(1.0).unwrap(), values.clone());
        assert_eq!(applied(Thresholding::dynamic(0.9, 1.0).unwrap(), values), clipped, "at 1 it only clips");
    }

    #[test]
    fn values_that_are_not_finite_are_not_hidden() {
        for hostile in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for thresholding in [Thresholding::fixed(1.0).unwrap(), Thresholding::dynamic(0.9, 2.0).unwrap()]
            {
                let kept = applied(thresholding, vec![0.5, hostile, -3.0]);
                assert!(!kept[1].is_finite(), "{thresholding:?}: {hostile} became {}", kept[1]);
            }
        }
        assert!(quantile(&mut [1.0, f32::NAN, 2.0], 0.0).is_nan());
    }

    #[test]
    fn unusable_settings_are_usage_errors() {
        let kind = |result: Result<Thresholding, Error>| result.expect_err("unusable").kind();
        for value in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -1.0] {
            assert_eq!(kind(Thresholding::fixed(value)), ErrorKind::Usage, "{value}");
            assert_eq!(kind(Thresholding::dynamic(value, 2.0)), ErrorKind::Usage, "{value}");
            assert_eq!(kind(Thresholding::dynamic(0.9, value)), ErrorKind::Usage, "{value}");
        }
        assert_eq!(kind(Thresholding::fixed(0.0)), ErrorKind::Usage);
        assert_eq!(kind(Thresholding::dynamic(1.01, 2.0)), ErrorKind::Usage);
        assert_eq!(kind(Thresholding::dynamic(0.9, 0.99)), ErrorKind::Usage);
    }
}
