//! What `numpy.random.seed` and `numpy.random.randn` give.

use super::{NoiseSource, mersenne::Mersenne};
use crate::Error;
use crate::state::Record;

/// `numpy.random.RandomState(seed)` (or `numpy.random.seed(seed)`), then its `randn`, cast to float32.
///
/// Marsaglia's polar method (Marsaglia & Bray 1964) in double precision through the platform's `log`, then rounded to
/// float, so that differences between C libraries vanish but for about one value in a hundred million. How a
/// request is cut into calls does not matter to this stream.
pub struct Numpy {
    bits: Mersenne,
    /// The second half of the last pair of values.
    spare: Option<f64>,
}

impl Numpy {
    /// A generator in the state that `numpy.random.seed(seed)` leaves.
    pub fn new(seed: u32) -> Self {
        Self { bits: Mersenne::new(seed), spare: None }
    }

    /// A multiple of 2^-53 in `[0, 1)` (Matsumoto & Nishimura's `genrand_res53`).
    fn uniform(&mut self) -> f64 {
        let high = u64::from(self.bits.draw() >> 5);
        let low = u64::from(self.bits.draw() >> 6);
        ((high << 26) | low) as f64 * (-53f64).exp2()
    }

    fn normal(&mut self) -> f64 {
        if let Some(spare) = self.spare.take() {
            return spare;
        }
        loop {
            let x1 = 2.0 * self.uniform() - 1.0;
            let x2 = 2.0 * self.uniform() - 1.0;
            let r2 = x1 * x1 + x2 * x2;
            if r2 < 1.0 && r2 != 0.0 {
                let scale = (-2.0 * r2.ln() / r2).sqrt();
                self.spare = Some(scale * x1);
                return scale * x2;
            }
        }
    }
}

impl NoiseSource for Numpy {
    fn fill_normal(&mut self, out: &mut [f32]) {
        out.fill_with(|| self.normal() as f32);
    }

    fn state(&mut self, record: &mut Record) -> Result<(), Error> {
        self.bits.state(record)?;
        record.option(&mut self.spare)
    }
}
