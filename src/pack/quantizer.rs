//! The numbers of quantised weights: floats become integers around zero and their scale, each to the nearest.
//! It knows nothing of where they are kept, or of graphs.

use crate::graph::int8::WeightBits;
use crate::graph::quantize::{Bits, Blocks};

/// What an integer is stored above, so that it has no sign: half of all levels.
const fn zero_point(bits: Bits) -> i32 {
    1 << (bits.count() - 1)
}

/// The scale of a block: the value that is farthest from 0 becomes the lowest integer, which has no positive twin.
pub(super) fn block_scale(block: &[f32], bits: Bits) -> f32 {
    let extreme =
        block.iter().fold(0.0, |extreme: f32, x| if x.abs() > extreme.abs() { *x } else { extreme });
    extreme / -(zero_point(bits) as f32)
}

/// Appends the integers of a block; the last of a row is padded with zeros.
pub(super) fn block_codes(block: &[f32], blocks: Blocks, into: &mut Vec<u8>) {
    let Blocks { bits, len } = blocks;
    let (scale, zero) = (block_scale(block, bits), zero_point(bits));
    let code = |index: usize| {
        let x = block.get(index).copied().unwrap_or_default();
        (nearest(x, scale) + zero).clamp(0, 2 * zero - 1) as u8
    };
    match bits {
        Bits::Eight => into.extend((0..len).map(code)),
        Bits::Four => into.extend((0..len).step_by(2).map(|index| code(index) | code(index + 1) << 4)),
    }
}

/// The scale of an output channel: the value that is farthest from 0 becomes the largest integer or the least.
pub(super) fn channel_scale(channel: &[f32], bits: WeightBits) -> f32 {
    channel.iter().fold(0.0, |extreme: f32, x| extreme.max(x.abs())) / bits.most() as f32
}

/// The integers of an output channel, in bytes.
pub(super) fn channel_codes(channel: &[f32], bits: WeightBits) -> impl Iterator<Item = u8> {
    let (scale, most) = (channel_scale(channel, bits), bits.most());
    channel.iter().map(move |x| nearest(*x, scale).clamp(-most, most) as i8 as u8)
}

/// How many scales a value is, to the nearest, and to the even of two that are as near.
fn nearest(x: f32, scale: f32) -> i32 {
    // Values too small to have a scale are nothing.
    if scale == 0.0 { 0 } else { (x / scale).round_ties_even() as i32 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::noise::{NoiseSource, TorchCpu};

    fn values(count: usize, seed: u64) -> Vec<f32> {
        let mut values = vec![0.0; count];
        TorchCpu::new(seed).fill_normal(&mut values);
        values
    }

    const BLOCKS: [Blocks; 4] = [
        Blocks { bits: Bits::Four, len: 32 },
        Blocks { bits: Bits::Eight, len: 32 },
        Blocks { bits: Bits::Eight, len: 64 },
        Blocks { bits: Bits::Eight, len: 128 },
    ];

    /// The values that the integers of a block stand for.
    fn block_values(block: &[f32], blocks: Blocks) -> Vec<f32> {
        let Blocks { bits, len } = blocks;
        let mut bytes = Vec::new();
        block_codes(block, blocks, &mut bytes);
        assert_eq!(bytes.len(), blocks.len_bytes());
        let per_byte = 8 / bits.count();
        let code = |index: usize| {
            (bytes[index / per_byte] as usize >> (index % per_byte * bits.count())) % (1 << bits.count())
        };
        let value = |index| (code(index) as f32 - zero_point(bits) as f32) * block_scale(block, bits);
        (0..len).map(value).collect()
    }

    /// Of all levels, by trying each, the distance to the nearest one.
    fn least_distance(x: f32, levels: impl Iterator<Item = i32>, scale: f32) -> f32 {
        levels.map(|level| (level as f32 * scale - x).abs()).fold(f32::INFINITY, f32::min)
    }

    #[test]
    fn every_weight_of_a_block_becomes_the_nearest_level() {
        for (blocks, missing) in BLOCKS.into_iter().flat_map(|blocks| [(blocks, 0), (blocks, 25)]) {
            let len = blocks.len - missing;
            for block in values(len * 50, len as u64).chunks(len) {
                let scale = block_scale(block, blocks.bits);
                let levels = -zero_point(blocks.bits)..zero_point(blocks.bits);
                let got = block_values(block, blocks);
                for (x, got) in block.iter().zip(&got) {
                    let (distance, least) = ((got - x).abs(), least_distance(*x, levels.clone(), scale));
                    assert!(distance <= least + scale.abs() * 1e-5, "{x} became {got}, of scale {scale}");
                }
                assert_eq!(got[len..], vec![0.0; missing], "padding");
            }
        }
    }

    #[test]
    fn the_extreme_of_a_block_is_exact_whatever_its_sign() {
        for (sign, blocks) in [1.0, -1.0].into_iter().flat_map(|sign| BLOCKS.map(|blocks| (sign, blocks))) {
            let mut block = values(blocks.len, 5);
            block[11] = 16.0 * sign;
            assert_eq!(block_values(&block, blocks)[11], 16.0 * sign);
        }
    }

    #[test]
    fn every_weight_of_a_channel_becomes_the_nearest_level() {
        for (channel, (bits, levels)) in values(27 * 50, 6)
            .chunks(27)
            .zip([(WeightBits::Eight, -127..128), (WeightBits::Seven, -63..64)].iter().cycle())
        {
            let scale = channel_scale(channel, *bits);
            for (x, byte) in channel.iter().zip(channel_codes(channel, *bits)) {
                let got = f32::from(byte as i8) * scale;
                let (distance, least) = ((got - x).abs(), least_distance(*x, levels.clone(), scale));
                assert!(distance <= least + scale * 1e-5, "{x} became {got}, of scale {scale}");
            }
        }
    }

    #[test]
    fn nothing_and_next_to_nothing_stay() {
        let smallest = f32::from_bits(1);
        for x in [0.0, smallest, -smallest] {
            for blocks in BLOCKS {
                let values = block_values(&vec![x; blocks.len], blocks);
                assert!(values.iter().all(|x| x.abs() <= smallest));
            }
            let bits = WeightBits::Eight;
            assert!(channel_scale(&[x; 9], bits) <= smallest && channel_codes(&[x; 9], bits).count() == 9);
        }
    }
}
