//! What every sampler computes with: weighted sums of latents, and the last few evaluations of a model.
//! It knows no method.

use crate::Error;
use crate::state::Record;

/// Values that are summed together, so that the sums stay in the nearest cache.
const BLOCK: usize = 128;

/// The order of a step; 1 for one beyond the schedule.
pub(super) fn order_at(orders: &[usize], index: usize) -> usize {
    orders.get(index).copied().unwrap_or(1)
}

/// `x = keep * x + sum of weight * values`, in double precision and one pass over memory.
///
/// What has no weight is not read, `x` included, and may be absent.
///
/// # Panics
/// Where slices with a weight differ in length.
pub(super) fn blend(x: &mut [f32], keep: f64, parts: &[(f64, &[f32])]) {
    for (_, values) in parts.iter().filter(|(weight, _)| *weight != 0.0) {
        assert_eq!(values.len(), x.len(), "latents of the length that the sampler was built for");
    }
    let mut sums = [0.0f64; BLOCK];
    for (index, block) in x.chunks_mut(BLOCK).enumerate() {
        let sums = &mut sums[..block.len()];
        if keep == 0.0 {
            sums.fill(0.0);
        } else {
            sums.iter_mut().zip(&*block).for_each(|(sum, x)| *sum = keep * f64::from(*x));
        }
        for (weight, values) in parts.iter().filter(|(weight, _)| *weight != 0.0) {
            let values = &values[index * BLOCK..][..block.len()];
            sums.iter_mut().zip(values).for_each(|(sum, value)| *sum += weight * f64::from(*value));
        }
        block.iter_mut().zip(&*sums).for_each(|(x, sum)| *x = *sum as f32);
    }
}

/// The last few evaluations, each with its level, the newest first.
pub(super) struct History {
    entries: Vec<(f64, Vec<f32>)>,
    filled: usize,
}

impl History {
    /// Room for `depth` evaluations of `len` values, at least one.
    pub(super) fn new(depth: usize, len: usize) -> Self {
        Self { entries: (0..depth).map(|_| (0.0, vec![0.0; len])).collect(), filled: 0 }
    }

    /// How many evaluations there are.
    pub(super) fn len(&self) -> usize {
        self.filled
    }

    /// The place of the next evaluation, in which the oldest lies; [`History::keep`] makes it the newest.
    pub(super) fn next(&mut self) -> &mut [f32] {
        &mut self.entries.last_mut().expect("room for one").1
    }

    /// Keeps what was written to [`History::next`] as the evaluation at this level.
    pub(super) fn keep(&mut self, sigma: f64) {
        self.entries.rotate_right(1);
        self.entries[0].0 = sigma;
        self.filled = self.entries.len().min(self.filled + 1);
    }

    /// The values of the evaluation before `age` others.
    pub(super) fn values(&self, age: usize) -> &[f32] {
        &self.entries[age].1
    }

    /// Its level.
    pub(super) fn sigma(&self, age: usize) -> f64 {
        self.entries[age].0
    }

    /// Lists the evaluations.
    pub(super) fn state(&mut self, record: &mut Record) -> Result<(), Error> {
        record.count(&mut self.filled, self.entries.len())?;
        for (sigma, values) in &mut self.entries[..self.filled] {
            record.f64(sigma)?;
            record.f32s(values)?;
        }
        Ok(())
    }
}

/// Solves `matrix * solution = right` for the first `size` rows and columns, by elimination with pivots.
///
/// The systems of multistep methods are Vandermonde's, of different nodes: they have a solution.
pub(super) fn solve<const N: usize>(mut matrix: [[f64; N]; N], mut right: [f64; N], size: usize) -> [f64; N] {
    for column in 0..size {
        let largest =
            (column..size).max_by(|&a, &b| matrix[a][column].abs().total_cmp(&matrix[b][column].abs()));
        let pivot = largest.expect("at least one row is left");
        matrix.swap(column, pivot);
        right.swap(column, pivot);
        for row in column + 1..size {
            let factor = matrix[row][column] / matrix[column][column];
            let upper = matrix[column];
            matrix[row].iter_mut().zip(upper).for_each(|(value, upper)| *value -= factor * upper);
            right[row] -= factor * right[column];
        }
    }
    for row in (0..size).rev() {
        let known: f64 = (row + 1..size).map(|k| matrix[row][k] * right[k]).sum();
        right[row] = (right[row] - known) / matrix[row][row];
    }
    right
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::noise::{NoiseSource, TorchCpu};

    #[test]
    fn blend_is_the_naive_sum() {
        for len in [1, BLOCK - 1, BLOCK, 3 * BLOCK + 5] {
            let mut noise = TorchCpu::new(4);
            let mut drawn = || {
                let mut values = vec![0.0; len];
                noise.fill_normal(&mut values);
                values
            };
            let (x, a, b) = (drawn(), drawn(), drawn());
            for keep in [0.0, -0.7] {
                let mut blended = x.clone();
                blend(&mut blended, keep, &[(1.5, &a), (-2.25, &b)]);
                for i in 0..len {
                    let naive = keep * f64::from(x[i]) + 1.5 * f64::from(a[i]) - 2.25 * f64::from(b[i]);
                    assert_eq!(blended[i], naive as f32, "{i} of {len}, keeping {keep}");
                }
            }
        }
    }

    #[test]
    fn what_has_no_weight_is_not_read() {
        let mut x = [f32::NAN; 3];
        blend(&mut x, 0.0, &[(0.0, &[f32::NAN; 3]), (2.0, &[1.0, 2.0, 3.0]), (0.0, &[])]);
        assert_eq!(x, [2.0, 4.0, 6.0]);
    }

    #[test]
    #[should_panic(expected = "latents of the length")]
    fn blend_wants_slices_of_one_length() {
        blend(&mut [0.0; 2], 1.0, &[(1.0, &[0.0; 3])]);
    }

    #[test]
    fn history_gives_the_newest_first_and_forgets_the_oldest() {
        let mut history = History::new(3, 1);
        for n in 1..=5u8 {
            history.next()[0] = f32::from(n);
            history.keep(f64::from(n) / 2.0);
            assert_eq!(history.len(), usize::from(n.min(3)));
            for age in 0..history.len() {
                let expected = n - age as u8;
                assert_eq!(history.values(age), [f32::from(expected)]);
                assert_eq!(history.sigma(age), f64::from(expected) / 2.0);
            }
        }
    }

    #[test]
    fn an_evaluation_that_is_not_kept_leaves_the_others() {
        let mut history = History::new(2, 1);
        history.next()[0] = 1.0;
        history.keep(1.0);
        history.next()[0] = 9.0;
        assert_eq!((history.len(), history.values(0)), (1, &[1.0f32][..]));
    }

    #[test]
    fn solutions_solve() {
        let matrix = [[0.0, 2.0, 1.0], [1.0, -1.0, 0.5], [3.0, 0.25, -2.0]];
        for size in 2..=3 {
            let right = [1.0, 2.0, -3.0];
            let solution = solve(matrix, right, size);
            for row in 0..size {
                let product: f64 = (0..size).map(|k| matrix[row][k] * solution[k]).sum();
                assert!((product - right[row]).abs() < 1e-12, "row {row} of {size}");
            }
        }
        assert_eq!(solve([[4.0]], [2.0], 1), [0.5]);
    }
}
