//! Spacings: which of a curve's timesteps a run visits, where it visits whole ones or fractions of them.
//! They know nothing of noise levels.

use super::{Grid, ScheduleKind, Spacing};

impl Spacing {
    /// `steps` falling timesteps of a curve of `len` timesteps; those of `Linspace` may be fractions.
    ///
    /// The order of operations is that of numpy's `linspace` and `arange`, which diffusers uses: where timesteps
    /// are rounded it decides which way halves go (in 30 steps of DPM++ 2M, for one).
    fn timesteps(self, len: usize, steps: usize) -> Vec<f64> {
        let (last, end, parts) = ((len - 1) as f64, len as f64, steps as f64);
        match self {
            Self::Leading { offset } => {
                let stride = len / steps;
                (0..steps).rev().map(|i| (i * stride) as f64 + f64::from(offset)).collect()
            }
            Self::Linspace if steps == 1 => vec![0.0],
            Self::Linspace => {
                let stride = last / (parts - 1.0);
                let rest = (0..steps - 1).rev().map(|i| stride * i as f64);
                std::iter::once(last).chain(rest).collect()
            }
            Self::Trailing => {
                let stride = (end - end / parts) - end;
                (0..steps).map(|i| (end + stride * i as f64).round_ties_even() - 1.0).collect()
            }
        }
    }

    /// The same of a grid that leaves the lowest timestep to the final 0: where a spacing includes it, there is one
    /// timestep more, and it is left out.
    fn timesteps_above_last(self, len: usize, steps: usize) -> Vec<f64> {
        match self {
            Self::Trailing => self.timesteps(len, steps),
            Self::Leading { .. } | Self::Linspace => {
                let mut timesteps = self.timesteps(len, steps + 1);
                timesteps.truncate(steps);
                timesteps
            }
        }
    }
}

/// The falling timesteps of a kind that chooses timesteps and not levels; none of the others.
pub(super) fn timesteps(kind: &ScheduleKind, grid: Grid, len: usize, steps: usize) -> Vec<f64> {
    let whole = |timesteps: Vec<f64>| timesteps.into_iter().map(f64::round_ties_even).collect();
    let (last, parts) = ((len - 1) as f64, steps as f64);
    match kind {
        ScheduleKind::Spaced(spacing) => match grid {
            Grid::Fractional => spacing.timesteps(len, steps),
            Grid::Whole => whole(spacing.timesteps(len, steps)),
            Grid::WholeAboveLast => whole(spacing.timesteps_above_last(len, steps)),
        },
        ScheduleKind::SgmUniform => (0..steps).map(|i| last - i as f64 * (last / parts)).collect(),
        ScheduleKind::Normal if steps == 1 => vec![last],
        ScheduleKind::Normal => (0..steps).rev().map(|i| i as f64 * last / (parts - 1.0)).collect(),
        ScheduleKind::Simple => {
            let stride = len as f64 / parts;
            (0..steps).map(|i| last - (i as f64 * stride).floor()).collect()
        }
        ScheduleKind::Lcm { trained_steps } => distilled(len, *trained_steps, steps),
        _ => Vec::new(),
    }
}

/// The timesteps of `steps` of the `trained_steps` that a consistency model's teacher took, evenly chosen from the last
/// on; `steps` is at most `trained`, and that at most `len`.
fn distilled(len: usize, trained: usize, steps: usize) -> Vec<f64> {
    let stride = len / trained;
    (0..steps).map(|i| ((trained - i * trained / steps) * stride - 1) as f64).collect()
}
