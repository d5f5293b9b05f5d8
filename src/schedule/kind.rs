//! Kinds of schedules: what a user may ask for.
//! They know names and numbers, and nothing of how levels come from them.

use super::Spacing;

/// How the noise levels of a run are chosen.
#[derive(Clone, Debug, PartialEq)]
pub enum ScheduleKind {
    /// Evenly spaced timesteps.
    Spaced(Spacing),
    /// Levels whose `rho`-th roots are evenly spaced (Karras et al. 2022, equation 5).
    Karras {
        /// How much the low levels are favoured: 7 in the paper.
        rho: f64,
    },
    /// TEMP
    Custom(Vec<f64>),
    /// Timesteps that a consistency model was distilled on.
    Lcm {
        /// The teacher's steps: 50 for published models (diffusers' `original_inference_steps`).
        trained_steps: usize,
    },
}

impl ScheduleKind {
    /// As published.
    pub const KARRAS: Self = Self::Karras { rho: 7.0 };
    /// As published models were distilled.
    pub const LCM: Self = Self::Lcm { trained_steps: 50 };
}

impl std::fmt::Display for ScheduleKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Spaced(Spacing::Leading { .. }) => "leading",
            Self::Spaced(Spacing::Linspace) => "linspace",
            Self::Spaced(Spacing::Trailing) => "trailing",
            Self::Karras { .. } => "karras",
            Self::Lcm { .. } => "lcm", Self::Custom(_) => "custom",
        })
    }
}

impl std::str::FromStr for ScheduleKind {
    type Err = crate::Error;
    fn from_str(text: &str) -> Result<Self, crate::Error> {
        match text.to_lowercase().as_str() {
            "leading" => Ok(Self::Spaced(Spacing::Leading { offset: 1 })),
            "linspace" => Ok(Self::Spaced(Spacing::Linspace)),
            "trailing" => Ok(Self::Spaced(Spacing::Trailing)),
            "karras" => Ok(Self::KARRAS),
            "lcm" => Ok(Self::LCM),
            _ => Err(crate::Error::new(crate::ErrorKind::Usage, "schedule")),
        }
    }
}
