//! Guidance as people type it: scales, the part of a run in which there is guidance, and methods with their settings.
//! It knows their forms; what makes sense is the description's business.

use std::fmt;
use std::str::FromStr;

use super::{Guidance, Interval, Measure, Method, Mimic, Origin, Residue};
use crate::name::{self, Setting};
use crate::schedule::Schedule;
use crate::{Error, ErrorKind};

/// Guidance scales for the steps of a run: one for all, or several, each for so many steps.
///
/// `7x5,1x10` is 7 for five steps, then 1 for ten (stable-diffusion.cpp's `guidance_schedule`); the last may leave out
/// its number of steps, and is then for all that are left.
///
/// ```
/// use calotype::guidance::Scales;
/// let scales: Scales = "7x2,1".parse()?;
/// assert_eq!(scales.for_steps(4)?, [7.0, 7.0, 1.0, 1.0]);
/// # Ok::<(), calotype::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Scales {
    /// Scales and for how many steps they are.
    parts: Vec<(f64, usize)>,
    /// The one for the steps that are left.
    rest: Option<f64>,
}

/// The most scales that are typed.
const MAX_PARTS: usize = 10_000;

impl Scales {
    /// A scale per step; one alone where it is for all of them.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] where they are for more steps than there are, or for fewer.
    pub fn for_steps(&self, steps: usize) -> Result<Vec<f64>, Error> {
        let named = self.parts.iter().fold(0usize, |sum, (_, count)| sum.saturating_add(*count));
        match self.rest {
            Some(rest) if named <= steps => {
                if self.parts.is_empty() {
                    return Ok(vec![rest]);
                }
                let parts = self.parts.iter().copied().chain([(rest, steps - named)]);
                Ok(parts.flat_map(|(scale, count)| std::iter::repeat_n(scale, count)).collect())
            }
            None if named == steps => {
                let parts = self.parts.iter().copied();
                Ok(parts.flat_map(|(scale, count)| std::iter::repeat_n(scale, count)).collect())
            }
            _ => {
                let got = format!("guidance: expected scales for {steps} steps, got {named}");
                Err(Error::new(ErrorKind::Usage, got)
                    .help("a last scale without a count applies to all remaining steps"))
            }
        }
    }
}

impl From<f64> for Scales {
    fn from(scale: f64) -> Self {
        Self { parts: Vec::new(), rest: Some(scale) }
    }
}

impl fmt::Display for Scales {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = self.parts.iter().map(|(scale, count)| format!("{scale}x{count}"));
        let parts: Vec<String> = parts.chain(self.rest.map(|rest| rest.to_string())).collect();
        f.pad(&parts.join(","))
    }
}

impl FromStr for Scales {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let refuse = || {
            let got = format!("guidance: expected a scale like 7.5, or several like 7x5,1, got {text:?}");
            Error::new(ErrorKind::Usage, got)
        };
        let count = text.split(',').count();
        if count > MAX_PARTS {
            let got = format!("guidance: expected at most {MAX_PARTS} scales, got {count}");
            return Err(Error::new(ErrorKind::Usage, got));
        }
        let (mut parts, mut rest) = (Vec::new(), None);
        for (index, part) in text.split(',').enumerate() {
            match part.split_once('x') {
                Some((scale, steps)) => {
                    let scale = scale.trim().parse().map_err(|_| refuse())?;
                    parts.push((scale, steps.trim().parse().map_err(|_| refuse())?));
                }
                None if index + 1 == count => rest = Some(part.trim().parse().map_err(|_| refuse())?),
                None => return Err(refuse()),
            }
        }
        Ok(Self { parts, rest })
    }
}

/// The part of a run in which there is guidance: noise levels, or a part of the steps.
///
/// As text `0.28..5.42` are levels, above the first and up to the second, and `10%..60%` are steps.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Within {
    /// See [`Interval::new`].
    Levels {
        /// Above this one.
        above: f64,
        /// Up to this one.
        up_to: f64,
    },
    /// See [`Interval::of_steps`].
    Steps {
        /// From 0 to 1.
        start: f64,
        /// From 0 to 1.
        stop: f64,
    },
}

impl Within {
    /// The noise levels of this part of a run.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] where there is no such part.
    pub fn interval(self, schedule: &Schedule) -> Result<Interval, Error> {
        match self {
            Self::Levels { above, up_to } => Interval::new(above, up_to),
            Self::Steps { start, stop } => Interval::of_steps(start, stop, schedule),
        }
    }
}

impl fmt::Display for Within {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Levels { above, up_to } => f.pad(&format!("{above}..{up_to}")),
            Self::Steps { start, stop } => f.pad(&format!("{}%..{}%", start * 100.0, stop * 100.0)),
        }
    }
}

impl FromStr for Within {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let read = |typed: &str| -> Option<(f64, bool)> {
            let typed = typed.trim();
            match typed.strip_suffix('%') {
                Some(percent) => Some((percent.trim().parse::<f64>().ok()? / 100.0, true)),
                None => Some((typed.parse().ok()?, false)),
            }
        };
        match text.split_once("..").map(|(from, to)| (read(from), read(to))) {
            Some((Some((start, true)), Some((stop, true)))) => Ok(Self::Steps { start, stop }),
            Some((Some((above, false)), Some((up_to, false)))) => Ok(Self::Levels { above, up_to }),
            _ => {
                let got = format!(
                    "guidance interval: expected noise levels like 0.28..5.42 or a part of the steps like 10%..60%, \
                     got {text:?}"
                );
                Err(Error::new(ErrorKind::Usage, got))
            }
        }
    }
}

const NAMES: [&str; 6] = ["cfg", "perpendicular", "projected", "zero-star", "mimic", "residual"];

impl fmt::Display for Method {
    /// As it is read; of [`Method::Edit`], which is not chosen by name, `edit`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, settings): (_, Vec<(&str, String)>) = match *self {
            Self::Cfg { rescale } => ("cfg", vec![("rescale", rescale.to_string())]),
            Self::Edit { image_scale } => ("edit", vec![("image_scale", image_scale.to_string())]),
            Self::Perpendicular { negative_scale, rescale } => (
                "perpendicular",
                vec![("negative_scale", negative_scale.to_string()), ("rescale", rescale.to_string())],
            ),
            Self::Projected { eta, momentum, norm_threshold } => {
                let threshold = norm_threshold.map_or("none".into(), |threshold| threshold.to_string());
                let numbers = [("eta", eta.to_string()), ("momentum", momentum.to_string())];
                ("projected", numbers.into_iter().chain([("norm_threshold", threshold)]).collect())
            }
            Self::ZeroStar { zero_steps, rescale } => {
                ("zero-star", vec![("zero_steps", zero_steps.to_string()), ("rescale", rescale.to_string())])
            }
            Self::DynamicThreshold(mimic) => {
                let measure = if mimic.measure == Measure::Largest { "largest" } else { "deviation" };
                let settings = [
                    ("scale", mimic.scale.to_string()),
                    ("percentile", mimic.percentile.to_string()),
                    ("share", mimic.share.to_string()),
                    ("per_channel", if mimic.per_channel { "on" } else { "off" }.to_string()),
                    ("origin", if mimic.origin == Origin::Mean { "mean" } else { "zero" }.to_string()),
                    ("measure", measure.to_string()),
                ];
                ("mimic", settings.into())
            }
            Self::Residual { residue, delta } => {
                let residue = if residue == Residue::Source { "source" } else { "first-negative" };
                ("residual", vec![("from", residue.into()), ("delta", delta.to_string())])
            }
        };
        f.pad(&name::with_settings(name, &settings))
    }
}

impl FromStr for Method {
    type Err = Error;

    /// Reads `cfg`, `perpendicular`, `projected`, `zero-star`, `mimic` (dynamic thresholding) or `residual`, with settings
    /// behind a colon; [`ErrorKind::Usage`] for anything else. Numbers out of range are found by [`Guidance::by`].
    fn from_str(text: &str) -> Result<Self, Error> {
        const WHAT: &str = "guidance method";
        let (typed, settings) = name::settings(text);
        let mut method = match name::bare(typed).as_str() {
            "cfg" | "classifierfree" => Self::Cfg { rescale: 0.0 },
            "perpendicular" | "perpneg" => Self::Perpendicular { negative_scale: 1.0, rescale: 0.0 },
            "projected" | "apg" => Self::Projected { eta: 0.0, momentum: -0.5, norm_threshold: Some(15.0) },
            "zerostar" | "cfgzerostar" | "cfgzero" => Self::ZeroStar { zero_steps: 1, rescale: 0.0 },
            "mimic" | "dynamicthresholding" | "dynthres" => Self::DynamicThreshold(Mimic::default()),
            "residual" | "rcfg" => Self::Residual { residue: Residue::FirstNegative, delta: 1.0 },
            _ => return Err(name::unknown(WHAT, NAMES, typed)),
        };
        for setting in settings {
            let Setting { name, .. } = setting;
            match (&mut method, name) {
                (
                    Self::Cfg { rescale }
                    | Self::Perpendicular { rescale, .. }
                    | Self::ZeroStar { rescale, .. },
                    "rescale",
                ) => *rescale = setting.read(WHAT)?,
                (Self::Perpendicular { negative_scale, .. }, "negative_scale") => {
                    *negative_scale = setting.read(WHAT)?;
                }
                (Self::Projected { eta, .. }, "eta") => *eta = setting.read(WHAT)?,
                (Self::Projected { momentum, .. }, "momentum") => *momentum = setting.read(WHAT)?,
                (Self::Projected { norm_threshold, .. }, "norm_threshold") => {
                    *norm_threshold = if setting.value == "none" { None } else { Some(setting.read(WHAT)?) };
                }
                (Self::ZeroStar { zero_steps, .. }, "zero_steps") => *zero_steps = setting.read(WHAT)?,
                (Self::DynamicThreshold(mimic), "scale") => mimic.scale = setting.read(WHAT)?,
                (Self::DynamicThreshold(mimic), "percentile") => mimic.percentile = setting.read(WHAT)?,
                (Self::DynamicThreshold(mimic), "share") => mimic.share = setting.read(WHAT)?,
                (Self::DynamicThreshold(mimic), "per_channel") => {
                    mimic.per_channel = setting.choose(WHAT, [("on", true), ("off", false)])?;
                }
                (Self::DynamicThreshold(mimic), "origin") => {
                    mimic.origin = setting.choose(WHAT, [("mean", Origin::Mean), ("zero", Origin::Zero)])?;
                }
                (Self::DynamicThreshold(mimic), "measure") => {
                    let measures = [("largest", Measure::Largest), ("deviation", Measure::Deviation)];
                    mimic.measure = setting.choose(WHAT, measures)?;
                }
                (Self::Residual { residue, .. }, "from") => {
                    let residues = [("source", Residue::Source), ("first-negative", Residue::FirstNegative)];
                    *residue = setting.choose(WHAT, residues)?;
                }
                (Self::Residual { delta, .. }, "delta") => *delta = setting.read(WHAT)?,
                _ => {
                    let got = format!("{WHAT}: {typed}: expected other settings, got {name:?}");
                    return Err(Error::new(ErrorKind::Usage, got).help(format!("it has {method}")));
                }
            }
        }
        // What is out of range is refused where it is typed, whatever the scale.
        Guidance::by(method, 2.0)?;
        Ok(method)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_are_for_steps() {
        let steps = |text: &str, steps| text.parse::<Scales>().expect(text).for_steps(steps);
        assert_eq!(steps("7.5", 3).unwrap(), [7.5]);
        assert_eq!(steps("7x2,1x1", 3).unwrap(), [7.0, 7.0, 1.0]);
        assert_eq!(steps("7x1,3x1,1", 5).unwrap(), [7.0, 3.0, 1.0, 1.0, 1.0]);
        assert_eq!(steps("7x3,1", 3).unwrap(), [7.0; 3]);
        for (text, count) in [("7x2,1x1", 4), ("7x2,1x1", 2), ("7x4,1", 3), ("1x18446744073709551615,2x9", 3)]
        {
            assert_eq!(steps(text, count).expect_err(text).kind(), ErrorKind::Usage, "{text}");
        }
        for text in ["", "x", "7x", "x5", "7,1", "7x5,", "7x-1", "7x1.5", "seven", &"1x1,".repeat(20_000)] {
            assert_eq!(text.parse::<Scales>().expect_err("none").kind(), ErrorKind::Usage);
        }
        for text in ["7.5", "7x2,1", "7x2,1x3"] {
            assert_eq!(text.parse::<Scales>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn parts_of_a_run_are_levels_or_steps() {
        assert_eq!("0.28..5.42".parse::<Within>().unwrap(), Within::Levels { above: 0.28, up_to: 5.42 });
        assert_eq!("10% .. 60%".parse::<Within>().unwrap(), Within::Steps { start: 0.1, stop: 0.6 });
        for text in ["0.28..5.42", "25%..50%"] {
            assert_eq!(text.parse::<Within>().unwrap().to_string(), text);
        }
        for text in ["", "..", "1", "1..", "1..2%", "1%..2", "a..b"] {
            assert_eq!(text.parse::<Within>().expect_err(text).kind(), ErrorKind::Usage, "{text}");
        }
    }

    #[test]
    fn methods_read_what_they_write() {
        for text in [
            "cfg:rescale=0.7",
            "perpendicular:negative_scale=2,rescale=0",
            "projected:eta=0.5,momentum=0,norm_threshold=none",
            "zero-star:zero_steps=2,rescale=0.5",
            "mimic:scale=5,percentile=0.9,share=0.8,per_channel=off,origin=zero,measure=deviation",
            "residual:from=source,delta=0.9",
        ] {
            assert_eq!(text.parse::<Method>().expect(text).to_string(), text);
        }
        for name in NAMES {
            name.parse::<Method>().expect(name);
        }
        assert!(matches!("APG".parse().unwrap(), Method::Projected { .. }));
        for (text, message) in [
            ("cgf", "did you mean cfg?"),
            ("cfg:scale=2", "expected other settings, got \"scale\"; it has cfg:rescale=0"),
            ("cfg:rescale=2", "guidance rescale: expected a share from 0 to 1, got 2"),
            ("cfg:rescale=x", "guidance method: rescale: expected a number, got \"x\""),
            ("mimic:origin=top", "guidance method: origin: expected mean or zero, got \"top\""),
        ] {
            let error = text.parse::<Method>().expect_err(text);
            assert!(error.to_string().contains(message), "{error}");
        }
    }
}
