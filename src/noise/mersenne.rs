//! The 32-bit Mersenne Twister MT19937. It knows nothing of what its bits are used for.

use crate::Error;
use crate::state::Record;

const N: usize = 624;
const M: usize = 397;

/// Matsumoto & Nishimura (1998), "Mersenne Twister", seeded by `init_genrand` of their 2002 code.
pub(super) struct Mersenne {
    state: [u32; N],
    next: usize,
}

impl Mersenne {
    pub(super) fn new(seed: u32) -> Self {
        let mut state = [seed; N];
        for i in 1..N {
            let before = state[i - 1];
            state[i] = 1_812_433_253_u32.wrapping_mul(before ^ (before >> 30)).wrapping_add(i as u32);
        }
        Self { state, next: N }
    }

    /// The next 32 bits.
    pub(super) fn draw(&mut self) -> u32 {
        if self.next == N {
            self.twist();
        }
        let mut y = self.state[self.next];
        self.next += 1;
        y ^= y >> 11;
        y ^= (y << 7) & 0x9d2c_5680;
        y ^= (y << 15) & 0xefc6_0000;
        y ^ (y >> 18)
    }

    pub(super) fn state(&mut self, record: &mut Record) -> Result<(), Error> {
        record.u32s(&mut self.state)?;
        record.count(&mut self.next, N)
    }

    fn twist(&mut self) {
        for i in 0..N {
            let mixed = (self.state[i] & 0x8000_0000) | (self.state[(i + 1) % N] & 0x7fff_ffff);
            let odd = if mixed & 1 == 1 { 0x9908_b0df } else { 0 };
            self.state[i] = self.state[(i + M) % N] ^ (mixed >> 1) ^ odd;
        }
        self.next = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The C++ standard, [rand.predef]: the 10000th value of a default-constructed `std::mt19937`.
    #[test]
    fn the_ten_thousandth_draw_is_the_published_one() {
        let mut bits = Mersenne::new(5489);
        let last = (0..10_000).map(|_| bits.draw()).last();
        assert_eq!(last, Some(4_123_659_995));
    }
}
