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
    /// Timesteps that a consistency model was distilled on.
    Lcm {
        /// The teacher's steps: 50 for published models (diffusers' `original_inference_steps`).
        trained_steps: usize,
    },
}
