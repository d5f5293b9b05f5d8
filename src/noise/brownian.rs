//! Noise that belongs to places on the way from noise to image, not to steps.

use super::{NoiseSource, Numpy, Philox, Rng, StepNoise, TorchCpu, seed_sequence};
use crate::{Error, ErrorKind};

/// Levels are told apart to a millionth (torchsde's `tol=1e-6`).
const PER_LEVEL: f64 = 1e6;

/// Below this, f64 tells millionths apart and a tree is at most 50 halvings deep.
const SIGMA_LIMIT: f64 = 1e9;

/// k-diffusion's `BrownianTreeNoiseSampler` with one seed, on the CPU: the increments of one Brownian motion over
/// noise levels, each divided by the square root of its length.
///
/// What an interval gives depends on the seed, the range and the interval alone: a run of twice the steps follows the
/// same path, and half a run has the noise that it has in the whole. torchsde's tree (Li et al. 2020,
/// section 4) halves the range until a bound of the interval is met, rounding bounds to 6 decimals, and draws each
/// half's increment from a generator of its own; levels go through float as k-diffusion's do.
///
/// With [`Rng::Torch`] the increments are those of torchsde 0.2.6 on the CPU, with [`Rng::Philox`] those of A1111's
/// "NV", bit for bit. The root is the float nearest to the exact one; torch's on x86-64 misses it by one bit in a
/// fifth of the cases, and then all values of the interval differ by one part in ten million. numpy's generator has
/// no trees elsewhere that these could be compared with.
///
/// - The part of an interval that is outside the range of the tree has no increment, so that the noise
///   is smaller than standard; torchsde warns.
/// - Levels that round to the same millionth have no increment either; torchsde does not end.
///
/// torchsde keeps every interval that was ever asked for. This keeps the increments on one path from the whole range
/// down to a millionth, sized when it is made (25 tensors of `len` for Stable Diffusion's 14.6), and allocates
/// nothing after. An interval takes up to twice as many tensors of normal values.
pub struct BrownianTree {
    rng: Rng,
    seed: u64,
    start: f64,
    end: f64,
    /// `path[depth]` is the increment over the interval of that depth that is being looked at.
    path: Vec<Vec<f32>>,
}

impl BrownianTree {
    /// The tree of `len` independent motions over noise levels from `sigma_min` to `sigma_max`; [`ErrorKind::Usage`]
    /// where these are no range in 0 to 10^9.
    pub fn new(rng: Rng, len: usize, sigma_min: f64, sigma_max: f64, seed: u64) -> Result<Self, Error> {
        if !(0.0 <= sigma_min && sigma_min <= sigma_max && sigma_max <= SIGMA_LIMIT) {
            return Err(Error::new(
                ErrorKind::Usage,
                format!(
                    "noise levels: expected 0 <= lowest <= highest <= {SIGMA_LIMIT:e}, got {sigma_min} and {sigma_max}"
                ),
            ));
        }
        let mut path = vec![vec![0.0; len]; Self::tensors(sigma_min, sigma_max)];
        let [sigma_min, sigma_max] = [sigma_min, sigma_max].map(|sigma| f64::from(sigma as f32));
        let [start, end] = [sigma_min, sigma_max].map(rounded);
        fill_normal(rng, seed_sequence::first_word(seed, &[]), &mut path[0]);
        let scale = (sigma_max - sigma_min).sqrt() as f32;
        path[0].iter_mut().for_each(|value| *value *= scale);
        Ok(Self { rng, seed, start, end, path })
    }

    /// How many tensors a tree over these noise levels holds.
    pub fn tensors(sigma_min: f64, sigma_max: f64) -> usize {
        let [start, end] = [sigma_min, sigma_max].map(|sigma| rounded(f64::from(sigma as f32)));
        let halvings = ((end - start) * PER_LEVEL).round().max(1.0).log2().ceil() as usize;
        1 + halvings
    }

    /// Adds to `out` the increments of the intervals that `from..to` falls into, from left to right.
    ///
    /// `path[here.depth]` is the increment over `here`, which holds `from..to`.
    fn add(&mut self, here: Interval, from: f64, to: f64, out: &mut [f32]) {
        if (from, to) == (here.start, here.end) {
            out.iter_mut().zip(&self.path[here.depth]).for_each(|(sum, increment)| *sum += increment);
            return;
        }
        let [left, right] = here.halves();
        let [whole, half] = self
            .path
            .get_disjoint_mut([here.depth, left.depth])
            .expect("the path reaches down to a millionth");
        // The Brownian bridge: what is expected of the left half, given the whole, and how it varies.
        let seed = seed_sequence::first_word(self.seed, &[here.key, here.depth as u64]);
        fill_normal(self.rng, seed, half);
        let (left_length, right_length) = (left.end - left.start, right.end - right.start);
        let reciprocal = 1.0 / (here.end - here.start);
        let deviation = (left_length * right_length * reciprocal).sqrt() as f32;
        // Torch rounds Python's factors to float, and after each operation.
        let (left_length, reciprocal) = (left_length as f32, reciprocal as f32);
        for (value, whole) in half.iter_mut().zip(&*whole) {
            *value = whole * left_length * reciprocal + deviation * *value;
        }
        if from < left.end {
            self.add(left, from, to.min(left.end), out);
        }
        if to > right.start {
            let [whole, half] = self.path.get_disjoint_mut([here.depth, right.depth]).expect("as above");
            half.iter_mut().zip(&*whole).for_each(|(value, whole)| *value = whole - *value);
            self.add(right, from.max(right.start), to, out);
        }
    }
}

impl StepNoise for BrownianTree {
    /// # Panics
    /// Where `out` does not have the length that the tree was made for.
    fn fill_between(&mut self, from_sigma: f64, to_sigma: f64, out: &mut [f32]) {
        assert_eq!(out.len(), self.path[0].len(), "a tree fills tensors of its own length");
        let (from_sigma, to_sigma) = (from_sigma as f32, to_sigma as f32);
        let inside = |sigma: f32| rounded(f64::from(sigma).clamp(self.start, self.end));
        let (low, high) = (inside(to_sigma), inside(from_sigma));
        if low == high {
            out.fill(0.0);
            return;
        }
        // Of the two zeros, the negative one leaves what is added to it as it is.
        out.fill(-0.0);
        self.add(Interval { start: self.start, end: self.end, key: 0, depth: 0 }, low, high, out);
        // The motion runs up the levels, the sampler down: the increment is taken backwards.
        let scale = -(from_sigma - to_sigma).sqrt();
        out.iter_mut().for_each(|value| *value /= scale);
    }
}

/// An interval of the tree.
#[derive(Clone, Copy)]
struct Interval {
    start: f64,
    end: f64,
    /// Which of the intervals of its depth it is, counted from the left.
    key: u64,
    depth: usize,
}

impl Interval {
    fn halves(self) -> [Self; 2] {
        let middle = rounded(0.5 * (self.end + self.start));
        let half = Self { key: 2 * self.key, depth: self.depth + 1, ..self };
        [Self { end: middle, ..half }, Self { start: middle, key: half.key + 1, ..half }]
    }
}

/// Every interval has a generator of its own; a [`Rng::source`] would allocate.
fn fill_normal(rng: Rng, seed: u32, out: &mut [f32]) {
    match rng {
        Rng::Torch => TorchCpu::new(seed.into()).fill_normal(out),
        Rng::Philox => Philox::new(seed.into()).fill_normal(out),
        Rng::Numpy => Numpy::new(seed).fill_normal(out),
    }
}

/// Python's `round(x, 6)`, for `x` within [`SIGMA_LIMIT`]: the nearest float to the nearest decimal, halves to the
/// even one.
fn rounded(x: f64) -> f64 {
    let product = x * PER_LEVEL;
    // Whether `x` is halfway is asked of the exact product: here is what the rounded one lacks.
    let lack = x.mul_add(PER_LEVEL, -product);
    let is_near_half = product - product.floor() == 0.5;
    let millionths = match lack {
        _ if !is_near_half => product.round(),
        lack if lack > 0.0 => product.ceil(),
        lack if lack < 0.0 => product.floor(),
        _ => product.round_ties_even(),
    };
    millionths / PER_LEVEL
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rust writes decimals as Python rounds them: exactly, with halves to the even one.
    #[test]
    fn rounding_is_that_of_decimals() {
        let mut x = 0.029_167_5_f64;
        for i in 0..20_000 {
            let tie = f64::from(i) / 128.0;
            for x in [x, tie, tie.next_up(), tie.next_down().max(0.0), (i as f64 + 0.5) / PER_LEVEL] {
                let text = format!("{x:.6}");
                assert_eq!(rounded(x), text.parse::<f64>().unwrap(), "{x}");
            }
            x = (x * 1.618_033_988).rem_euclid(200.0);
        }
    }
}
