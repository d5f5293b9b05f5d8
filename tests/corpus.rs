//! Every committed input of the fuzz targets (`tests/fuzz`), and seeded mutants of them, through the same functions with
//! the stable compiler.

#![cfg(feature = "engine")]

use std::collections::BTreeSet;
use std::fs;
use std::panic::{self, AssertUnwindSafe};
use std::path::Path;

#[path = "fuzz/src/lib.rs"]
mod targets;

macro_rules! replays {
    ($($target:ident * $mutants:literal),* $(,)?) => {
        $(
            #[test]
            fn $target() {
                replay(stringify!($target), $mutants);
            }
        )*

        #[test]
        fn every_target_is_replayed() {
            let replayed = BTreeSet::from([$(stringify!($target)),*]);
            let targets: BTreeSet<&str> = targets::TARGETS.iter().map(|(name, _)| *name).collect();
            assert_eq!(replayed, targets);
        }
    };
}

// As many mutants of each input as take a few seconds.
replays! {
    config * 40, gguf * 200, image * 100, json * 400, lora * 200, manifest * 400, onnx * 200, prompt * 400, safetensors * 200, scaled * 400, single_file * 10, tokenizer * 200
}

fn replay(target: &str, mutants: usize) {
    let (_, run) = targets::TARGETS.iter().find(|(name, _)| *name == target).expect("a target of this name");
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus").join(target);
    let entries = fs::read_dir(&corpus).unwrap_or_else(|error| panic!("{}: {error}", corpus.display()));
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    let inputs: Vec<Vec<u8>> = paths.iter().map(|path| fs::read(path).unwrap()).collect();
    assert!(!inputs.is_empty(), "{}: expected inputs, got none", corpus.display());
    for (path, input) in paths.iter().zip(&inputs) {
        checked(*run, input, &path.display().to_string());
    }
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    for (path, input) in paths.iter().zip(&inputs) {
        for number in 0..mutants {
            let other = &inputs[random.below(inputs.len())];
            let mutant = mutated(input, other, &mut random);
            checked(*run, &mutant, &format!("mutant {number} of {}", path.display()));
        }
    }
}

/// Runs a target; where it panics, the input is kept for `cargo fuzz run TARGET FILE`.
fn checked(run: fn(&[u8]), input: &[u8], what: &str) {
    if let Err(panic) = panic::catch_unwind(AssertUnwindSafe(|| run(input))) {
        let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join("finding");
        fs::write(&kept, input).unwrap();
        eprintln!("{what}, kept as {}", kept.display());
        panic::resume_unwind(panic);
    }
}

/// A few changes: a bit, a byte, a number of telling size, bytes removed, doubled, or taken from another input.
fn mutated(input: &[u8], other: &[u8], random: &mut Random) -> Vec<u8> {
    let mut bytes = input.to_vec();
    for _ in 0..1 + random.below(4) {
        if bytes.is_empty() {
            bytes.push(random.below(256) as u8);
        }
        let at = random.below(bytes.len());
        let until = at + random.below((bytes.len() - at).min(16) + 1);
        match random.below(8) {
            0 => bytes[at] ^= 1 << random.below(8),
            1 => bytes[at] = random.below(256) as u8,
            2 => bytes[at] = *b"\0\xff\x7f\x80\"{}[],:0-9e.\\".get(random.below(18)).unwrap_or(&b' '),
            3 => drop(bytes.drain(at..until)),
            4 => {
                let doubled = bytes[at..until].to_vec();
                bytes.splice(at..at, doubled);
            }
            5 if !other.is_empty() => {
                let from = random.below(other.len());
                let piece = other[from..(from + 1 + random.below(24)).min(other.len())].to_vec();
                bytes.splice(at..until, piece);
            }
            6 => bytes.truncate(at),
            _ => {
                let numbers =
                    ["0", "-1", "1e999", "4294967296", "18446744073709551615", "null", "NaN", "65536"];
                let number = numbers[random.below(numbers.len())].bytes();
                bytes.splice(at..until, number);
            }
        }
    }
    bytes
}

/// Steele and Vigna's splitmix64.
struct Random(u64);

impl Random {
    /// One of `0..count`.
    fn below(&mut self, count: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ bits >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ bits >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((bits ^ bits >> 31) % count as u64) as usize
    }
}
