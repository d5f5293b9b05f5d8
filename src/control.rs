//! How a control image steers a run: with which weight, in which steps, and in which predictions. It knows nothing of networks.

use std::fmt;
use std::str::FromStr;

use crate::guidance::View;
use crate::{Error, ErrorKind};

/// The largest weight that is believed.
pub const MAX_WEIGHT: f64 = 10.0;
/// By how much less each residual counts than the one after it (Mikubill's extension of A1111's web UI, "soft weights").
const SOFT: f64 = 0.825;
/// The last of its thirteen residuals, which counts whole.
const SOFT_LAST: i32 = 12;
/// How much each feature of a T2I-Adapter counts there.
const SOFT_FEATURES: [f64; 4] = [0.25, 0.62, 0.825, 1.0];

/// Which predictions a control image steers, and how much its early residuals count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// All predictions, all residuals alike: A1111's "Balanced", and what diffusers does.
    #[default]
    Balanced,
    /// All predictions; residual k counts 0.825^(12-k): A1111's "My prompt is more important".
    Prompt,
    /// The prompt's predictions alone, so that guidance amplifies it; residual k counts 0.825^(12-k): A1111's "ControlNet is
    /// more important".
    Control,
    /// The prompt's predictions alone; residuals count from 0.1 to 1, evenly spaced in their logarithms: diffusers'
    /// `guess_mode`.
    Guess,
}

const MODES: [(&str, Mode); 4] = [
    ("balanced", Mode::Balanced),
    ("prompt", Mode::Prompt),
    ("control", Mode::Control),
    ("guess", Mode::Guess),
];

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(MODES.iter().find(|(_, mode)| mode == self).expect("every mode has a name").0)
    }
}

impl FromStr for Mode {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        MODES.iter().find(|(name, _)| *name == text).map(|(_, mode)| *mode).ok_or_else(|| {
            let names = MODES.map(|(name, _)| name).join(", ");
            Error::new(ErrorKind::Usage, format!("control mode: expected one of {names}, got {text:?}"))
        })
    }
}

/// The gradients where edges begin and go on, where nobody says: those of A1111 and of diffusers' examples.
const LOW: u16 = 100;
const HIGH: u16 = 200;
/// The longest gradient of eight bits by Sobel's filter.
const MAX_GRADIENT: u16 = 2040;

/// What makes a control image of an ordinary one, at the size of the result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Annotator {
    /// Edges, white on black, as OpenCV's `Canny` finds them with these thresholds.
    Canny {
        /// The gradient above which an edge goes on.
        low: u16,
        /// The gradient above which an edge begins.
        high: u16,
    },
}

impl fmt::Display for Annotator {
    /// `canny,100,200`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self::Canny { low, high } = self;
        write!(f, "canny,{low},{high}")
    }
}

impl FromStr for Annotator {
    type Err = Error;

    /// `canny`, or `canny,LOW,HIGH`.
    fn from_str(text: &str) -> Result<Self, Error> {
        let refuse = |expected: String| {
            Error::new(ErrorKind::Usage, format!("annotate: expected {expected}, got {text:?}"))
        };
        let mut parts = text.split(',');
        if parts.next() != Some("canny") {
            return Err(refuse("canny, or canny,LOW,HIGH".into()));
        }
        let thresholds: Vec<&str> = parts.collect();
        let number = |text: &str| text.parse::<u16>().ok().filter(|number| *number <= MAX_GRADIENT);
        match thresholds.iter().map(|text| number(text)).collect::<Option<Vec<_>>>().as_deref() {
            Some([]) => Ok(Self::Canny { low: LOW, high: HIGH }),
            Some([low, high]) if low <= high => Ok(Self::Canny { low: *low, high: *high }),
            _ => Err(refuse(format!("canny,LOW,HIGH with rising thresholds from 0 to {MAX_GRADIENT}"))),
        }
    }
}

/// How a control image steers a run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Steering {
    /// How much all of its residuals count.
    pub weight: f64,
    /// The part of the steps before which it counts for nothing.
    pub start: f64,
    /// The part of the steps after which it counts for nothing.
    pub end: f64,
    /// In which predictions.
    pub mode: Mode,
}

impl Default for Steering {
    fn default() -> Self {
        Self { weight: 1.0, start: 0.0, end: 1.0, mode: Mode::Balanced }
    }
}

impl Steering {
    /// The same, if its numbers are such.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] for a weight that is no number or beyond [`MAX_WEIGHT`], and for parts of the steps that are not in
    /// 0..=1 or in another order.
    pub fn checked(self) -> Result<Self, Error> {
        let Self { weight, start, end, .. } = self;
        let refuse = |message: String, help: &'static str| {
            Err(Error::new(ErrorKind::Usage, format!("control: {message}")).help(help))
        };
        if !(-MAX_WEIGHT..=MAX_WEIGHT).contains(&weight) {
            let message =
                format!("weight: expected a number from -{MAX_WEIGHT} to {MAX_WEIGHT}, got {weight}");
            return refuse(message, "1 is usual");
        }
        for (name, part) in [("start", start), ("end", end)] {
            if !(0.0..=1.0).contains(&part) {
                let message = format!("{name}: expected a part of the steps from 0 to 1, got {part}");
                return refuse(message, "start 0 and end 1 are all steps");
            }
        }
        if start > end {
            let message = format!("start: expected one up to its end, {end}, got {start}");
            return refuse(message, "start 0 and end 1 are all steps");
        }
        Ok(self)
    }

    /// Whether it counts for anything in a step of so many, counted from 0: not where a part of the step lies before its start
    /// or after its end (diffusers' `controlnet_keep`).
    pub fn is_active(&self, step: usize, steps: usize) -> bool {
        let (from, to) = (step as f64 / steps as f64, (step + 1) as f64 / steps as f64);
        self.weight != 0.0 && from >= self.start && to <= self.end
    }

    /// Whether it steers this prediction. `pools`: of a network that gives means, which are for the prompt alone.
    pub fn steers(&self, view: View, pools: bool) -> bool {
        let is_for_all = matches!(self.mode, Mode::Balanced | Mode::Prompt) && !pools;
        is_for_all || matches!(view, View::Positive(_))
    }

    /// By what each feature of a T2I-Adapter is multiplied.
    pub fn adapter_factors(&self, features: usize) -> Vec<f64> {
        let factor = |index: usize| match self.mode {
            Mode::Balanced | Mode::Guess => 1.0,
            Mode::Prompt | Mode::Control => SOFT_FEATURES.get(index).copied().unwrap_or(1.0),
        };
        (0..features).map(|index| self.weight * factor(index)).collect()
    }

    /// By what each of a network's residuals is multiplied, the middle's last.
    pub fn factors(&self, residuals: usize, pools: bool) -> Vec<f64> {
        let last = residuals.saturating_sub(1).max(1) as f64;
        let factor = |index: usize| match self.mode {
            Mode::Balanced => 1.0,
            // Of the means, diffusers weighs none less than others.
            Mode::Guess if pools => 1.0,
            Mode::Guess => 10f64.powf(index as f64 / last - 1.0),
            // Networks with fewer residuals have the first of these factors.
            Mode::Prompt | Mode::Control => SOFT.powi(SOFT_LAST - index as i32),
        };
        (0..residuals).map(|index| self.weight * factor(index)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_have_names() {
        for (name, mode) in MODES {
            assert_eq!(name.parse::<Mode>().unwrap(), mode);
            assert_eq!(mode.to_string(), name);
        }
        let error = "strict".parse::<Mode>().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Usage);
        assert!(
            error.to_string().contains("expected one of balanced, prompt, control, guess, got \"strict\"")
        );
    }

    #[test]
    fn annotators_have_thresholds() {
        for (text, low, high) in [("canny", 100, 200), ("canny,0,0", 0, 0), ("canny,50,2040", 50, 2040)] {
            let annotator = text.parse::<Annotator>().unwrap();
            assert_eq!(annotator, Annotator::Canny { low, high });
            assert_eq!(annotator.to_string().parse::<Annotator>().unwrap(), annotator);
        }
        for text in
            ["", "depth", "canny,", "canny,1", "canny,2,1", "canny,1,2041", "canny,-1,2", "canny,1,2,3"]
        {
            let error = text.parse::<Annotator>().expect_err(text);
            assert_eq!(error.kind(), ErrorKind::Usage);
            assert!(error.to_string().starts_with("annotate: expected canny"), "{error}");
        }
    }

    #[test]
    fn factors_are_those_of_their_programs() {
        let with = |mode, weight| Steering { mode, weight, ..Steering::default() };
        assert_eq!(with(Mode::Balanced, 0.5).factors(3, false), [0.5; 3]);
        // torch.logspace(-1, 0, 13)
        let guess = with(Mode::Guess, 1.0).factors(13, false);
        for (index, expected) in [(0, 0.1), (1, 0.121_152_8), (6, 0.316_227_8), (11, 0.825_404_2), (12, 1.0)]
        {
            assert!((guess[index] - expected).abs() < 1e-6, "{index}: {}", guess[index]);
        }
        assert_eq!(with(Mode::Guess, 2.0).factors(4, true), [2.0; 4]);
        // [0.825 ** float(12 - i) for i in range(13)]
        for mode in [Mode::Prompt, Mode::Control] {
            let soft = with(mode, 1.0).factors(13, false);
            assert!((soft[0] - 0.099_414_0).abs() < 1e-6 && (soft[11] - 0.825).abs() < 1e-12);
            assert_eq!(soft[12], 1.0);
            assert!((with(mode, 1.0).factors(10, false)[9] - 0.561_515_6).abs() < 1e-6);
            assert_eq!(with(mode, 2.0).adapter_factors(4), [0.5, 1.24, 1.65, 2.0]);
        }
        assert_eq!(with(Mode::Balanced, 0.5).adapter_factors(4), [0.5; 4]);
    }

    #[test]
    fn steps_outside_of_the_window_are_not_steered() {
        let active = |start, end, weight, steps: usize| {
            let steering = Steering { start, end, weight, ..Steering::default() };
            (0..steps).map(|step| usize::from(steering.is_active(step, steps))).collect::<Vec<_>>()
        };
        // 1 - float(i / n < start or (i + 1) / n > end)
        assert_eq!(active(0.0, 1.0, 1.0, 4), [1, 1, 1, 1]);
        assert_eq!(active(0.25, 0.75, 1.0, 4), [0, 1, 1, 0]);
        assert_eq!(active(0.3, 0.7, 1.0, 4), [0, 0, 0, 0], "a step that is outside in part is outside");
        assert_eq!(active(0.3, 0.7, 1.0, 10), [0, 0, 0, 1, 1, 1, 1, 0, 0, 0]);
        assert_eq!(active(0.0, 0.0, 1.0, 2), [0, 0]);
        assert_eq!(active(0.0, 1.0, 0.0, 2), [0, 0]);
    }

    #[test]
    fn predictions_that_are_steered() {
        let views =
            [View::Negative, View::NegativeWithoutImage, View::Empty, View::Positive(0), View::Positive(1)];
        for (mode, pools, all) in [
            (Mode::Balanced, false, true),
            (Mode::Prompt, false, true),
            (Mode::Control, false, false),
            (Mode::Guess, false, false),
            (Mode::Balanced, true, false),
        ] {
            let steering = Steering { mode, ..Steering::default() };
            let got = views.map(|view| steering.steers(view, pools));
            assert_eq!(got, [all, all, all, true, true], "{mode} {pools}");
        }
    }

    #[test]
    fn unusable_numbers_are_usage_errors() {
        let usual = Steering::default();
        for weight in [f64::NAN, f64::INFINITY, -10.1, 1e30] {
            let error = Steering { weight, ..usual }.checked().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Usage);
            assert!(error.to_string().starts_with("control: weight: expected a number from -10 to 10, got"));
        }
        for (start, end, expected) in [
            (f64::NAN, 1.0, "control: start: expected a part of the steps from 0 to 1, got NaN"),
            (0.0, 1.1, "control: end: expected a part of the steps from 0 to 1, got 1.1"),
            (-0.1, 1.0, "control: start: expected"),
            (0.6, 0.5, "control: start: expected one up to its end, 0.5, got 0.6"),
        ] {
            let error = Steering { start, end, ..usual }.checked().unwrap_err();
            assert!(error.to_string().starts_with(expected), "{error}");
        }
        usual.checked().unwrap();
    }
}
