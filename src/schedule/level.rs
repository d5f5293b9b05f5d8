//! Levels that follow from the range alone: falling noise levels from the highest to the lowest.
//! They know nothing of timesteps.

use super::{ScheduleKind, beta, table};

/// The `steps` levels of a kind that needs no more than a range of levels, or that brings its own; nothing of the others.
/// A single step takes the highest level.
///
/// Levels that formulas give are those of k-diffusion (`get_sigmas_*`) and of diffusers' DPM-Solvers, over the whole range.
/// Diffusers' Euler scheduler and its kin narrow the range to the first and last level of their spacing, which in leading
/// and trailing spacing are others.
pub(super) fn over([min, max]: [f64; 2], kind: &ScheduleKind, steps: usize) -> Option<Vec<f64>> {
    let parts = (0..steps).map(|i| i as f64 / (steps - 1).max(1) as f64);
    let (log_min, log_max) = (min.ln(), max.ln());
    let levels = match kind {
        ScheduleKind::Karras { rho } => {
            let (min, max) = (min.powf(1.0 / rho), max.powf(1.0 / rho));
            parts.map(|part| (max + part * (min - max)).powf(*rho)).collect()
        }
        ScheduleKind::Exponential => parts.map(|part| (log_max + part * (log_min - log_max)).exp()).collect(),
        ScheduleKind::Polyexponential { rho } => {
            parts.map(|part| ((1.0 - part).powf(*rho) * (log_max - log_min) + log_min).exp()).collect()
        }
        ScheduleKind::Beta { alpha, beta } => {
            parts.map(|part| min + beta::quantile(1.0 - part, *alpha, *beta) * (max - min)).collect()
        }
        ScheduleKind::Laplace { mu, beta } => {
            parts.map(|part| laplace(part, *mu, *beta).clamp(min, max)).collect()
        }
        ScheduleKind::KlOptimal => {
            let (min, max) = (min.atan(), max.atan());
            parts.map(|part| (part * min + (1.0 - part) * max).tan()).collect()
        }
        ScheduleKind::Ays(table) => table::align_your_steps(*table, steps),
        ScheduleKind::Gits => table::gits(steps),
        ScheduleKind::Custom(_) => kind.own_levels().to_vec(),
        ScheduleKind::Spaced(_)
        | ScheduleKind::SgmUniform
        | ScheduleKind::Normal
        | ScheduleKind::Simple
        | ScheduleKind::ToSigmaMin(_)
        | ScheduleKind::Lcm { .. } => return None,
    };
    Some(levels)
}

/// The level above which the share `part` of a Laplace distribution of `ln sigma` lies (Hang et al. 2024, "Improved noise
/// schedule for diffusion training", with ComfyUI's guard against the logarithm of 0).
fn laplace(part: f64, mu: f64, beta: f64) -> f64 {
    const GUARD: f64 = 1e-5;
    let distance = 0.5 - part;
    let sign = if distance == 0.0 { 0.0 } else { distance.signum() };
    (mu - beta * sign * (1.0 - 2.0 * distance.abs() + GUARD).ln()).exp()
}
