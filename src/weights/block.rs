//! The blocks in which GGUF keeps numbers: a few bits each, with the scales that they share.
//! Source: ggml's `dequantize_row_*` (`ggml-quants.c`); held to the `gguf` Python package by its tests.

use half::f16;

/// A kind of block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Block {
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2K,
    Q3K,
    Q4K,
    Q5K,
    Q6K,
    Q8K,
}

impl Block {
    /// All of them, with GGUF's number and name.
    pub(super) const ALL: [(u32, &'static str, Self); 11] = [
        (2, "Q4_0", Self::Q4_0),
        (3, "Q4_1", Self::Q4_1),
        (6, "Q5_0", Self::Q5_0),
        (7, "Q5_1", Self::Q5_1),
        (8, "Q8_0", Self::Q8_0),
        (10, "Q2_K", Self::Q2K),
        (11, "Q3_K", Self::Q3K),
        (12, "Q4_K", Self::Q4K),
        (13, "Q5_K", Self::Q5K),
        (14, "Q6_K", Self::Q6K),
        (15, "Q8_K", Self::Q8K),
    ];

    /// How many numbers are in a block.
    pub(super) fn elements(self) -> usize {
        match self {
            Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 | Self::Q8_0 => 32,
            Self::Q2K | Self::Q3K | Self::Q4K | Self::Q5K | Self::Q6K | Self::Q8K => 256,
        }
    }

    /// How many bytes a block takes.
    pub(super) fn bytes(self) -> usize {
        match self {
            Self::Q4_0 => 18,
            Self::Q4_1 => 20,
            Self::Q5_0 => 22,
            Self::Q5_1 => 24,
            Self::Q8_0 => 34,
            Self::Q2K => 84,
            Self::Q3K => 110,
            Self::Q4K => 144,
            Self::Q5K => 176,
            Self::Q6K => 210,
            Self::Q8K => 292,
        }
    }

    /// Appends the numbers of a block of [`Self::bytes`].
    pub(super) fn decode(self, block: &[u8], out: &mut Vec<f32>) {
        match self {
            Self::Q4_0 => small(out, half(block, 0), -8.0 * half(block, 0), &block[2..], 0),
            Self::Q4_1 => small(out, half(block, 0), half(block, 2), &block[4..], 0),
            Self::Q5_0 => small(out, half(block, 0), -16.0 * half(block, 0), &block[6..], word(block, 2)),
            Self::Q5_1 => small(out, half(block, 0), half(block, 2), &block[8..], word(block, 4)),
            Self::Q8_0 => out.extend(block[2..].iter().map(|&byte| half(block, 0) * f32::from(byte as i8))),
            Self::Q2K => q2_k(block, out),
            Self::Q3K => q3_k(block, out),
            Self::Q4K => q4_q5_k(block, &[0; 32], &block[16..], out),
            Self::Q5K => q4_q5_k(block, &block[16..48], &block[48..], out),
            Self::Q6K => q6_k(block, out),
            Self::Q8K => {
                let scale = f32::from_bits(word(block, 0));
                out.extend(block[4..260].iter().map(|&byte| scale * f32::from(byte as i8)));
            }
        }
    }
}

fn half(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

fn word(block: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]])
}

/// 32 numbers of 4 bits, the first 16 in the lower halves, with a fifth bit of each in `high`.
fn small(out: &mut Vec<f32>, scale: f32, least: f32, low: &[u8], high: u32) {
    let value = |low: u8, at: usize| scale * f32::from(low | ((high >> at & 1) as u8) << 4) + least;
    out.extend(low.iter().enumerate().map(|(at, byte)| value(byte & 15, at)));
    out.extend(low.iter().enumerate().map(|(at, byte)| value(byte >> 4, at + 16)));
}

fn q2_k(block: &[u8], out: &mut Vec<f32>) {
    let (scales, low) = (&block[..16], &block[16..80]);
    let (scale, least) = (half(block, 80), half(block, 82));
    let mut scales = scales.iter();
    for low in low.chunks_exact(32) {
        for shift in [0, 2, 4, 6] {
            for low in low.chunks_exact(16) {
                let &pair = scales.next().expect("one of 16");
                let (scale, least) = (scale * f32::from(pair & 15), least * f32::from(pair >> 4));
                out.extend(low.iter().map(|byte| scale * f32::from(byte >> shift & 3) - least));
            }
        }
    }
}

fn q3_k(block: &[u8], out: &mut Vec<f32>) {
    let (high, low, packed) = (&block[..32], &block[32..96], &block[96..108]);
    let all = half(block, 108);
    // Six bits each: the lower four of two in a byte, the upper two of four.
    let scale = |at: usize| {
        let low = packed[at % 8] >> (at / 8 * 4) & 15;
        let high = packed[8 + at % 4] >> (at / 4 * 2) & 3;
        all * (f32::from(high << 4 | low) - 32.0)
    };
    let (mut at, mut bit) = (0, 0);
    for low in low.chunks_exact(32) {
        for shift in [0, 2, 4, 6] {
            for (low, high) in low.chunks_exact(16).zip(high.chunks_exact(16)) {
                let scale = scale(at);
                let value = |(low, high): (&u8, &u8)| {
                    let missing = if high >> bit & 1 == 1 { 0.0 } else { 4.0 };
                    scale * (f32::from(low >> shift & 3) - missing)
                };
                out.extend(low.iter().zip(high).map(value));
                at += 1;
            }
            bit += 1;
        }
    }
}

/// `high` has a fifth bit of each number, for those of 4 bits none.
fn q4_q5_k(block: &[u8], high: &[u8], low: &[u8], out: &mut Vec<f32>) {
    let (scale, least, packed) = (half(block, 0), half(block, 2), &block[4..16]);
    // Six bits each, four scales and four minima first, then their others in the upper bits.
    let pair = |at: usize| {
        let (scale, least) = match at {
            0..4 => (packed[at] & 63, packed[at + 4] & 63),
            _ => {
                let both = packed[at + 4];
                (both & 15 | packed[at - 4] >> 6 << 4, both >> 4 | packed[at] >> 6 << 4)
            }
        };
        (f32::from(scale), f32::from(least))
    };
    for (group, low) in low.chunks_exact(32).enumerate() {
        for side in [0, 1] {
            let (own_scale, own_least) = pair(2 * group + side);
            let (scale, least) = (scale * own_scale, least * own_least);
            let value = |(low, high): (&u8, &u8)| {
                let fifth = (high >> (2 * group + side) & 1) << 4;
                scale * f32::from(low >> (4 * side) & 15 | fifth) - least
            };
            out.extend(low.iter().zip(high).map(value));
        }
    }
}

fn q6_k(block: &[u8], out: &mut Vec<f32>) {
    let (low, high, scales) = (&block[..128], &block[128..192], &block[192..208]);
    let all = half(block, 208);
    for (part, (low, high)) in low.chunks_exact(64).zip(high.chunks_exact(32)).enumerate() {
        for quarter in 0..4 {
            let low = &low[quarter % 2 * 32..][..32];
            for (at, (low, high)) in low.iter().zip(high).enumerate() {
                let scale = f32::from(scales[8 * part + 2 * quarter + at / 16] as i8);
                let value = low >> (quarter / 2 * 4) & 15 | (high >> (2 * quarter) & 3) << 4;
                out.push(all * scale * (f32::from(value) - 32.0));
            }
        }
    }
}
