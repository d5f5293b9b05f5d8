//! What `torch.randn` gives on an NVIDIA GPU, as A1111's web UI computes it on the CPU.

use super::NoiseSource;
use crate::Error;
use crate::state::Record;

/// `torch.manual_seed(seed)`, then one contiguous float32 `torch.randn(..., device="cuda")` per call, as A1111's
/// "NV" noise imitates it.
///
/// Torch gives each value a thread of its own, and each thread cuRAND's Philox4x32-10 (Salmon et al. 2011): the seed is
/// the key, the counter is the number of the call and the index of the value. A thread draws four normal values
/// and keeps the first, the sine of the first pair of Box & Muller (1958).
/// - A1111's "NV" (`modules/rng_philox.py`) is this in double precision, rounded to float. It is reproduced bit for
///   bit, but for about one value in a hundred million where C libraries differ.
/// - A real GPU computes in single precision: the values that A1111 quotes from one differ by up to 4e-7. No
///   GPU has been compared beyond these.
/// - Torch runs out of threads where a tensor has more values than the GPU holds threads at once (40,960 on a T4,
///   221,184 on an A100), and takes the second to fourth values for the rest. A1111 does not imitate that, and
///   neither does this; 65,536 values are latents of 1024x1024 pixels.
pub struct Philox {
    key: [u32; 2],
    /// How many calls there have been.
    calls: u64,
}

impl Philox {
    /// A generator in the state that `torch.manual_seed(seed)` leaves.
    pub fn new(seed: u64) -> Self {
        Self { key: words(seed), calls: 0 }
    }
}

impl NoiseSource for Philox {
    fn fill_normal(&mut self, out: &mut [f32]) {
        if out.is_empty() {
            return; // Torch launches nothing.
        }
        let [call_low, call_high] = words(self.calls);
        for (index, value) in (0..).zip(out) {
            let [index_low, index_high] = words(index);
            let [first, second, ..] = philox_4x32_10([call_low, call_high, index_low, index_high], self.key);
            *value = box_muller(first, second);
        }
        self.calls += 1;
    }

    fn state(&mut self, record: &mut Record) -> Result<(), Error> {
        record.u64(&mut self.calls)
    }
}

/// The low and the high half.
fn words(x: u64) -> [u32; 2] {
    [x as u32, (x >> 32) as u32]
}

/// Salmon et al. (2011), "Parallel random numbers: as easy as 1, 2, 3", section 4.3: ten rounds of four words.
fn philox_4x32_10(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let round = |[c0, c1, c2, c3]: [u32; 4], [k0, k1]: [u32; 2]| {
        let [low0, high0] = words(u64::from(c0) * 0xd251_1f53);
        let [low1, high1] = words(u64::from(c2) * 0xcd9e_8d57);
        [high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0]
    };
    (0..10).fold(counter, |counter, i| {
        let bumped = |word: u32, bump: u32| word.wrapping_add(bump.wrapping_mul(i));
        round(counter, [bumped(key[0], 0x9e37_79b9), bumped(key[1], 0xbb67_ae85)])
    })
}

/// The first of the two normal values of Box & Muller (1958), of uniforms in `(0, 1)` and `(0, 2 pi)`.
fn box_muller(first: u32, second: u32) -> f32 {
    /// cuRAND's float constant 2^-32 * 2 pi; that the other, 2^-32, is exact.
    const TURN: f64 = (2.328_306_4e-10 * 6.283_185_5) as f32 as f64;
    let unit = (-32f64).exp2();
    let u = f64::from(first) * unit + unit / 2.0;
    let v = f64::from(second) * TURN + TURN / 2.0;
    ((-2.0 * u.ln()).sqrt() * v.sin()) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Three of the known answers that come with the Random123 library (`kat_vectors`).
    #[test]
    fn philox_gives_the_published_answers() {
        let known = [
            ([0; 4], [0; 2], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]),
            ([u32::MAX; 4], [u32::MAX; 2], [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]),
            (
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                [0xa409_3822, 0x299f_31d0],
                [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
            ),
        ];
        for (counter, key, answer) in known {
            assert_eq!(philox_4x32_10(counter, key), answer, "{counter:08x?} {key:08x?}");
        }
    }

    #[test]
    fn the_extreme_uniforms_give_finite_values() {
        for first in [0, u32::MAX] {
            for second in [0, u32::MAX / 4, u32::MAX / 4 * 3, u32::MAX] {
                let value = box_muller(first, second);
                // sqrt(-2 ln 2^-33), the longest radius there is.
                assert!(value.abs() < 6.77, "{first} {second} {value}");
            }
        }
        assert!((box_muller(0, u32::MAX / 4) - 6.764).abs() < 1e-3);
    }

    #[test]
    fn an_empty_call_draws_nothing() {
        let (mut one, mut two) = (Philox::new(7), Philox::new(7));
        one.fill_normal(&mut []);
        let (mut a, mut b) = ([0.0; 5], [0.0; 5]);
        one.fill_normal(&mut a);
        two.fill_normal(&mut b);
        assert_eq!(a, b);
    }
}
