//! Kinds of schedules: what a user may ask for, by name.
//! They know names and numbers, and nothing of how levels come from them.

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

use super::MAX_TIMESTEPS;
use crate::name::{self, Setting};
use crate::{Error, ErrorKind};

/// Which training timesteps a run visits (Lin et al. 2024, table 2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Spacing {
    /// Whole multiples of `timesteps / steps`, plus `offset`; never reaches the end of the curve.
    Leading {
        /// Added to each timestep: 1 for Stable Diffusion.
        offset: u32,
    },
    /// Evenly from the last timestep to the first, both included; a single step takes the *first*.
    Linspace,
    /// Evenly from the last timestep on, the first left out.
    Trailing,
}

/// How the noise levels of a run are chosen.
///
/// ```
/// use calotype::schedule::ScheduleKind;
/// assert_eq!("Karras".parse::<ScheduleKind>()?, ScheduleKind::Karras { rho: 7.0 });
/// assert_eq!("beta:alpha=0.5".parse::<ScheduleKind>()?, ScheduleKind::Beta { alpha: 0.5, beta: 0.6 });
/// assert_eq!("14.6, 3, 0.5, 0".parse::<ScheduleKind>()?.own_steps(), Some(3));
/// # Ok::<(), calotype::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub enum ScheduleKind {
    /// Evenly spaced timesteps.
    Spaced(Spacing),
    /// Evenly spaced timesteps from the last to the first, the first left out, at levels interpolated by their logarithm
    /// (ComfyUI's `sgm_uniform`, A1111's `SGM Uniform`).
    SgmUniform,
    /// The same with the first timestep (k-diffusion's `DiscreteSchedule.get_sigmas`; ComfyUI's `normal`, A1111's
    /// `Uniform`, stable-diffusion.cpp's `discrete`). A single step takes the last timestep, unlike
    /// [`Spacing::Linspace`].
    Normal,
    /// Whole timesteps at even distances, from the last on (ComfyUI's `simple`).
    Simple,
    /// Timesteps that a consistency model was distilled on (diffusers' `LCMScheduler`).
    Lcm {
        /// The teacher's steps: 50 for published models (diffusers' `original_inference_steps`).
        trained_steps: usize,
    },
    /// Levels whose `rho`-th roots are evenly spaced (Karras et al. 2022, equation 5).
    Karras {
        /// How much the low levels are favoured: 7 in the paper.
        rho: f64,
    },
    /// Levels whose logarithms are evenly spaced.
    Exponential,
    /// Levels whose logarithms fall as a power does (k-diffusion's `get_sigmas_polyexponential`).
    Polyexponential {
        /// The power: 1 is [`ScheduleKind::Exponential`].
        rho: f64,
    },
    /// Levels that the quantiles of a beta distribution choose (Lee et al. 2024, "Beta sampling is all you need"), as
    /// diffusers and A1111 have them. ComfyUI's `beta` chooses whole timesteps by the same distribution, and fewer than
    /// were asked for where two coincide.
    Beta {
        /// The distribution's first parameter: 0.6 in the paper.
        alpha: f64,
        /// Its second: 0.6 in the paper.
        beta: f64,
    },
    /// Levels whose logarithms have a Laplace distribution, kept within the curve (Hang et al. 2024; ComfyUI's
    /// `LaplaceScheduler`, with the final 0 that it leaves out).
    Laplace {
        /// The logarithm of the level about which most lie: 0 in ComfyUI.
        mu: f64,
        /// How far they spread: 0.5 in ComfyUI.
        beta: f64,
    },
    /// Levels whose arc tangents are evenly spaced, the best ones for normally distributed data (Sabour et al. 2024, "Align
    /// Your Steps"; ComfyUI's `kl_optimal`).
    KlOptimal,
    /// Levels that were optimised for a model family (Sabour et al. 2024).
    Ays(AysTable),
    /// Levels that were optimised for Stable Diffusion 1 (Chen et al. 2024, "On the trajectory regularity of ODE-based
    /// diffusion sampling"; ComfyUI's `GITSScheduler` with coefficient 1.20).
    Gits,
    /// Those of another kind, ending at the lowest level of the model's curve in place of 0 (diffusers'
    /// `final_sigmas_type` of `sigma_min`, `set_alpha_to_one` of false). Where the last of them is that level, the step
    /// from it goes nowhere, and is left out.
    ToSigmaMin(Box<ScheduleKind>),
    /// Levels listed by the user: falling, and all above 0 but the last, which may be left out where it is 0.
    Custom(Vec<f64>),
}

/// The model family that the levels of [`ScheduleKind::Ays`] were optimised for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AysTable {
    /// Stable Diffusion 1.
    Sd1,
    /// Stable Diffusion XL.
    Sdxl,
    /// Stable Video Diffusion, whose levels reach 700: see [`Schedule::edm`](super::Schedule::edm).
    Svd,
}

/// Every kind with its default numbers, under its name here and then the names that others gave it.
///
/// Leading timesteps are offset by 1 as in the schedulers of all published Stable Diffusions; ComfyUI's `ddim_uniform` is
/// the same where the steps divide the curve, and elsewhere has more steps than were asked for.
static NAMED: [(ScheduleKind, &[&str]); 17] = [
    (ScheduleKind::Spaced(Spacing::Leading { offset: 1 }), &["leading", "ddim-uniform", "ddim"]),
    (ScheduleKind::Spaced(Spacing::Linspace), &["linspace"]),
    (ScheduleKind::Spaced(Spacing::Trailing), &["trailing"]),
    (ScheduleKind::SgmUniform, &["sgm-uniform"]),
    (ScheduleKind::Normal, &["normal", "uniform", "discrete"]),
    (ScheduleKind::Simple, &["simple"]),
    (ScheduleKind::LCM, &["lcm"]),
    (ScheduleKind::KARRAS, &["karras", "use-karras-sigmas", "k", "ka"]),
    (ScheduleKind::Exponential, &["exponential", "use-exponential-sigmas"]),
    (ScheduleKind::Polyexponential { rho: 1.0 }, &["polyexponential"]),
    (ScheduleKind::Beta { alpha: 0.6, beta: 0.6 }, &["beta", "use-beta-sigmas"]),
    (ScheduleKind::Laplace { mu: 0.0, beta: 0.5 }, &["laplace"]),
    (ScheduleKind::KlOptimal, &["kl-optimal"]),
    (ScheduleKind::Ays(AysTable::Sd1), &["ays", "ays-sd1", "align-your-steps"]),
    (ScheduleKind::Ays(AysTable::Sdxl), &["ays-xl", "ays-sdxl", "align-your-steps-xl"]),
    (ScheduleKind::Ays(AysTable::Svd), &["ays-svd"]),
    (ScheduleKind::Gits, &["gits", "align-your-steps-gits"]),
];

/// The option of every schedule that says where it ends, and the level of diffusers that is not 0.
const FINAL: &str = "final";
const SIGMA_MIN: &str = "sigma_min";
/// Roots and powers beyond these are lost in rounding.
const RHO: RangeInclusive<f64> = 0.1..=100.0;
/// The parameters of a beta distribution; below, nearly all its values are its ends.
const ALPHA_BETA: RangeInclusive<f64> = 0.1..=50.0;
const LAPLACE_MU: RangeInclusive<f64> = -10.0..=10.0;
const LAPLACE_BETA: RangeInclusive<f64> = 0.01..=10.0;

impl ScheduleKind {
    /// As published.
    pub const KARRAS: Self = Self::Karras { rho: 7.0 };
    /// For models that were distilled as the published ones.
    pub const LCM: Self = Self::Lcm { trained_steps: 50 };

    /// The name of every kind but [`Self::Custom`], which is written as its levels.
    pub fn names() -> impl Iterator<Item = &'static str> {
        NAMED.iter().map(|(_, names)| names[0])
    }

    /// Of every kind but [`Self::Custom`] its name, its settings with their defaults, and the names that others gave it.
    pub fn about() -> impl Iterator<Item = (&'static str, String, &'static [&'static str])> {
        NAMED.iter().map(|(kind, names)| {
            let settings = kind.options().into_iter().map(|(name, value)| format!("{name}={value}"));
            (names[0], settings.collect::<Vec<_>>().join(","), &names[1..])
        })
    }

    /// Levels as a user types them, with commas between.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] for what are no numbers, or too many.
    pub fn listed(text: &str) -> Result<Self, Error> {
        let count = text.split(',').count();
        if count > MAX_TIMESTEPS {
            return Err(refused(format!("levels: expected at most {MAX_TIMESTEPS}, got {count}")));
        }
        let level = |typed: &str| {
            typed.trim().parse().map_err(|_| refused(format!("levels: expected numbers, got {typed:?}")))
        };
        Ok(Self::Custom(text.split(',').map(level).collect::<Result<_, _>>()?))
    }

    /// The kind itself, and whether it ends at the curve's lowest level.
    pub(super) fn ends(&self) -> (&Self, bool) {
        let (mut kind, mut is_low) = (self, false);
        while let Self::ToSigmaMin(inner) = kind {
            (kind, is_low) = (inner, true);
        }
        (kind, is_low)
    }

    /// How many steps the levels listed by the user make; nothing where any number may be asked for.
    pub fn own_steps(&self) -> Option<usize> {
        matches!(self.ends().0, Self::Custom(_)).then(|| self.own_levels().len())
    }

    /// The levels listed by the user, without the final 0.
    pub(super) fn own_levels(&self) -> &[f64] {
        match self.ends().0 {
            Self::Custom(levels) => levels.strip_suffix(&[0.0]).unwrap_or(levels),
            _ => &[],
        }
    }

    /// Whether the numbers of a kind make sense.
    pub(super) fn check(&self) -> Result<(), Error> {
        let within = |what: &str, range: &RangeInclusive<f64>, value: f64| {
            if range.contains(&value) {
                return Ok(());
            }
            let (low, high) = (range.start(), range.end());
            Err(refused(format!("{self}: {what}: expected {low} to {high}, got {value}")))
        };
        match *self.ends().0 {
            Self::Karras { rho } | Self::Polyexponential { rho } => within("rho", &RHO, rho),
            Self::Beta { alpha, beta } => {
                within("alpha", &ALPHA_BETA, alpha)?;
                within("beta", &ALPHA_BETA, beta)
            }
            Self::Laplace { mu, beta } => {
                within("mu", &LAPLACE_MU, mu)?;
                within("beta", &LAPLACE_BETA, beta)
            }
            Self::Custom(_) => check_levels(self.own_levels()),
            _ => Ok(()),
        }
    }

    fn name(&self) -> Option<&'static str> {
        let is_same = |kind: &Self| match (kind, self) {
            (Self::Spaced(Spacing::Leading { .. }), Self::Spaced(Spacing::Leading { .. })) => true,
            (Self::Spaced(one), Self::Spaced(other)) => one == other,
            (Self::Ays(one), Self::Ays(other)) => one == other,
            (one, other) => std::mem::discriminant(one) == std::mem::discriminant(other),
        };
        NAMED.iter().find(|(kind, _)| is_same(kind)).map(|(_, names)| names[0]).or_else(|| match self {
            Self::ToSigmaMin(kind) => kind.name(),
            _ => None,
        })
    }

    /// The numbers that may be given with the name.
    fn options(&self) -> Vec<(&'static str, String)> {
        match self {
            Self::Spaced(Spacing::Leading { offset }) => vec![("offset", offset.to_string())],
            Self::Lcm { trained_steps } => vec![("trained-steps", trained_steps.to_string())],
            Self::Karras { rho } | Self::Polyexponential { rho } => vec![("rho", rho.to_string())],
            Self::Beta { alpha, beta } => vec![("alpha", alpha.to_string()), ("beta", beta.to_string())],
            Self::Laplace { mu, beta } => vec![("mu", mu.to_string()), ("beta", beta.to_string())],
            Self::ToSigmaMin(kind) => {
                let end = (FINAL, SIGMA_MIN.to_owned());
                kind.options().into_iter().chain([end]).collect()
            }
            _ => Vec::new(),
        }
    }

    /// Takes one of these numbers.
    fn set(&mut self, option: &str, typed: &str) -> Result<(), Error> {
        fn read<T: FromStr>(into: &mut T, option: &str, typed: &str) -> Result<(), Error> {
            *into = typed
                .trim()
                .parse()
                .map_err(|_| refused(format!("{option}: expected a number, got {typed:?}")))?;
            Ok(())
        }
        if option == FINAL {
            let kind = self.ends().0.clone();
            *self = match typed.trim() {
                "zero" => kind,
                SIGMA_MIN => Self::ToSigmaMin(Box::new(kind)),
                _ => return Err(refused(format!("{FINAL}: expected zero or {SIGMA_MIN}, got {typed:?}"))),
            };
            return Ok(());
        }
        if let Self::ToSigmaMin(kind) = self {
            return kind.set(option, typed);
        }
        let known: Vec<&str> = self.options().into_iter().map(|(name, _)| name).chain([FINAL]).collect();
        match (self, option) {
            (Self::Spaced(Spacing::Leading { offset }), "offset") => read(offset, option, typed),
            (Self::Lcm { trained_steps }, "trained-steps") => read(trained_steps, option, typed),
            (Self::Karras { rho } | Self::Polyexponential { rho }, "rho") => read(rho, option, typed),
            (Self::Beta { alpha, .. }, "alpha") => read(alpha, option, typed),
            (Self::Beta { beta, .. } | Self::Laplace { beta, .. }, "beta") => read(beta, option, typed),
            (Self::Laplace { mu, .. }, "mu") => read(mu, option, typed),
            _ => Err(refused(format!("option: expected {}, got {option:?}", known.join(" or ")))),
        }
    }
}

impl fmt::Display for ScheduleKind {
    /// The name, and those of its numbers that are not the defaults: `beta:alpha=0.5`; of listed levels the list.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(name) = self.name() else {
            let levels = self.own_levels().iter().map(f64::to_string).collect::<Vec<_>>().join(",");
            let end = if self.ends().1 { format!(":{FINAL}={SIGMA_MIN}") } else { String::new() };
            return f.pad(&format!("{levels}{end}"));
        };
        let usual = NAMED.iter().find(|(_, names)| names[0] == name).map(|(kind, _)| kind.options());
        let options =
            self.options().into_iter().filter(|option| !usual.iter().flatten().any(|o| o == option));
        f.pad(&name::with_settings(name, &options.collect::<Vec<_>>()))
    }
}

impl FromStr for ScheduleKind {
    type Err = Error;

    /// Reads a name as it is written here, by diffusers' users, A1111's, ComfyUI's or stable-diffusion.cpp's (case, spaces
    /// and punctuation do not matter), with options behind a colon; or levels, with commas between.
    /// [`ErrorKind::Usage`] for anything else; numbers out of range are found when a schedule is made.
    fn from_str(text: &str) -> Result<Self, Error> {
        if text.trim_start().starts_with(|c: char| c.is_ascii_digit() || "+-.".contains(c)) {
            let (levels, options) = name::settings(text);
            let mut kind = Self::listed(levels)?;
            for Setting { name, value } in options {
                kind.set(name, value)?;
            }
            return Ok(kind);
        }
        let (typed, options) = name::settings(text);
        let bare = name::bare(typed);
        let found = NAMED.iter().find(|(_, names)| names.iter().any(|name| name::bare(name) == bare));
        let Some((kind, _)) = found else {
            return Err(name::unknown("schedule", Self::names().collect::<Vec<_>>(), typed));
        };
        let mut kind = kind.clone();
        for Setting { name, value } in options {
            kind.set(&name.to_lowercase().replace('_', "-"), value)?;
        }
        Ok(kind)
    }
}

fn check_levels(levels: &[f64]) -> Result<(), Error> {
    if levels.is_empty() {
        return Err(refused("levels: expected at least one above 0, got none".into()));
    }
    if let Some(level) = levels.iter().find(|level| !(level.is_finite() && **level > 0.0)) {
        return Err(refused(format!("levels: expected numbers above 0, got {level}")));
    }
    match levels.windows(2).find(|pair| pair[1] >= pair[0]) {
        Some(pair) => Err(refused(format!("levels: expected one below {}, got {}", pair[0], pair[1]))),
        None => Ok(()),
    }
}

fn refused(problem: String) -> Error {
    Error::new(ErrorKind::Usage, format!("schedule: {problem}"))
}
