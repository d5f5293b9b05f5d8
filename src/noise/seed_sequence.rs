//! numpy's `SeedSequence`, as far as a Brownian tree needs it: many seeds made of one.
//! It knows nothing of what its seeds are used for.

/// How many words of entropy are kept: torchsde's choice for a tree.
const POOL: usize = 24;

/// The first word of `numpy.random.SeedSequence(entropy, spawn_key=spawn_key, pool_size=24).generate_state(n)`.
///
/// After O'Neill (2015), "Developing a seed_seq alternative"; every constant is hers.
pub(super) fn first_word(entropy: u64, spawn_key: &[u64]) -> u32 {
    let mut hash = Hash { constant: 0x43b0_d7e5, multiplier: 0x931e_8875 };
    let mut entropy = words(entropy);
    let mut pool = [0; POOL];
    pool.fill_with(|| hash.of(entropy.next().unwrap_or(0)));
    for source in 0..POOL {
        for target in (0..POOL).filter(|&target| target != source) {
            pool[target] = mixed(pool[target], hash.of(pool[source]));
        }
    }
    for word in spawn_key.iter().copied().flat_map(words) {
        for target in &mut pool {
            *target = mixed(*target, hash.of(word));
        }
    }
    Hash { constant: 0x8b51_f9dd, multiplier: 0x58f3_8ded }.of(pool[0])
}

/// The 32-bit words of a number, the lowest first; 0 has one.
fn words(number: u64) -> impl Iterator<Item = u32> {
    let high = (number >> 32) as u32;
    [Some(number as u32), (high != 0).then_some(high)].into_iter().flatten()
}

/// A multiplicative hash whose constant changes with every use.
struct Hash {
    constant: u32,
    multiplier: u32,
}

impl Hash {
    fn of(&mut self, word: u32) -> u32 {
        let word = word ^ self.constant;
        self.constant = self.constant.wrapping_mul(self.multiplier);
        let word = word.wrapping_mul(self.constant);
        word ^ (word >> 16)
    }
}

fn mixed(x: u32, y: u32) -> u32 {
    let word = x.wrapping_mul(0xca01_f9dd).wrapping_sub(y.wrapping_mul(0x4973_f715));
    word ^ (word >> 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// numpy 2.4: `SeedSequence(entropy=e, spawn_key=k, pool_size=24).generate_state(4)[0]`.
    #[test]
    fn words_are_numpys() {
        assert_eq!(first_word(0, &[]), 0xeff4_1bd6);
        assert_eq!(first_word(42, &[0, 0]), 0x7d4a_3fcb);
        // Two words of each, as keys have more than 32 halvings down.
        assert_eq!(first_word(u64::MAX, &[(1 << 33) + 5, 34]), 0xcc0b_1e37);
        assert_eq!(first_word(1 << 32, &[1 << 32, 33]), 0xcbf7_bbd3);
    }
}
