//! What `torch.randn` gives on the CPU.

use pulp::{Arch, NullaryFnOnce};

use super::{NoiseSource, cephes, mersenne::Mersenne};
use crate::Error;
use crate::state::Record;

/// `torch.manual_seed(seed)`, then one contiguous float32 `torch.randn` on the CPU per call.
///
/// Torch transforms tensors of 16 values or more in blocks of 16, and smaller ones value by value; both
/// transforms are Box-Muller, on different uniforms and in different precision.
/// - Blocks: what torch 2.15 runs on x86-64 processors with AVX2 (it has no AVX-512 variant), bit for bit. Torch
///   elsewhere (aarch64, or `ATEN_CPU_CAPABILITY=default`) calls the C library's functions instead, and differs in
///   the last bits of about 4 in 10 values (by at most 2e-6). This type gives the AVX2 values on every processor.
/// - Single values: double precision through the platform's `sin`, `cos` and `log1p`, then rounded to float, so
///   that differences between C libraries vanish but for about one value in a hundred million.
///
/// Torch maps a negative Python seed to `seed + 2^64`; only the low 32 bits of a seed are used.
pub struct TorchCpu {
    bits: Mersenne,
    /// The second half of the last pair of single values, which the next call for a few values takes up.
    spare: Option<f64>,
}

impl TorchCpu {
    /// A generator in the state that `torch.manual_seed(seed)` leaves.
    pub fn new(seed: u64) -> Self {
        // The cut to 32 bits is torch's (`mt19937_engine::init_with_uint32`).
        Self { bits: Mersenne::new(seed as u32), spare: None }
    }

    /// A multiple of 2^-24 in `[0, 1)`.
    fn uniform_f32(&mut self) -> f32 {
        (self.bits.draw() & ((1 << 24) - 1)) as f32 * (-24f32).exp2()
    }

    /// A multiple of 2^-53 in `[0, 1)`.
    fn uniform_f64(&mut self) -> f64 {
        let high = u64::from(self.bits.draw());
        let low = u64::from(self.bits.draw());
        (((high << 32) | low) & ((1 << 53) - 1)) as f64 * (-53f64).exp2()
    }

    fn normal_f64(&mut self) -> f64 {
        if let Some(spare) = self.spare.take() {
            return spare;
        }
        let u1 = self.uniform_f64();
        let u2 = self.uniform_f64();
        let radius = (-2.0 * (-u2).ln_1p()).sqrt();
        let theta = 2.0 * std::f64::consts::PI * u1;
        self.spare = Some(radius * theta.sin());
        radius * theta.cos()
    }
}

impl NoiseSource for TorchCpu {
    fn fill_normal(&mut self, out: &mut [f32]) {
        if out.len() < BLOCK {
            out.fill_with(|| self.normal_f64() as f32);
            return;
        }
        out.fill_with(|| self.uniform_f32());
        let (blocks, rest) = out.as_chunks_mut::<BLOCK>();
        Arch::new().dispatch(Blocks(blocks));
        if !rest.is_empty() {
            // Torch draws the last 16 values again, over the end of the last whole block.
            let last = out.last_chunk_mut::<BLOCK>().expect("at least one block long");
            last.fill_with(|| self.uniform_f32());
            box_muller(last);
        }
    }

    fn state(&mut self, record: &mut Record) -> Result<(), Error> {
        self.bits.state(record)?;
        record.option(&mut self.spare)
    }
}

/// Values that torch transforms together: 8 pairs, `i` with `i + 8`.
const BLOCK: usize = 16;

/// All whole blocks, for the instructions that this processor has: one for a product that is added in one rounding, and
/// eight pairs at once. Without these a build calls the C library for each, 20 times as long, for the same values.
struct Blocks<'a>(&'a mut [[f32; BLOCK]]);

// Not a closure, which would be compiled without the instructions.
impl NullaryFnOnce for Blocks<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        for block in self.0 {
            box_muller(block);
        }
    }
}

/// Box and Muller (1958): uniforms in `[0, 1)` become standard normal values, in place.
#[inline(always)]
fn box_muller(block: &mut [f32; BLOCK]) {
    let (firsts, seconds) = block.split_at_mut(BLOCK / 2);
    for (first, second) in firsts.iter_mut().zip(seconds) {
        let radius = (-2.0 * cephes::ln(1.0 - *first)).sqrt();
        let (sin, cos) = cephes::sin_cos(std::f32::consts::TAU * *second);
        // Adding the mean makes -0 positive.
        *first = radius * cos + 0.0;
        *second = radius * sin + 0.0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smallest_uniforms_give_positive_zero() {
        let mut block = [0.0; BLOCK];
        box_muller(&mut block);
        assert_eq!(block.map(f32::to_bits), [0; BLOCK]);
    }

    #[test]
    fn the_largest_uniforms_give_finite_values() {
        let mut block = [1.0 - (-24f32).exp2(); BLOCK];
        box_muller(&mut block);
        // sqrt(-2 ln 2^-24), the longest radius there is.
        assert!((block[0] - 5.768).abs() < 1e-3, "{block:?}");
        assert!(block.iter().all(|value| value.is_finite()));
    }

    #[test]
    fn an_empty_call_draws_nothing() {
        let (mut one, mut two) = (TorchCpu::new(7), TorchCpu::new(7));
        one.fill_normal(&mut []);
        let (mut a, mut b) = ([0.0; 5], [0.0; 5]);
        one.fill_normal(&mut a);
        two.fill_normal(&mut b);
        assert_eq!(a, b);
    }
}
