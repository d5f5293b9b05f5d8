//! Noise against the programs that it reproduces: what `export/golden_noise.py` recorded of torch, numpy, A1111's web
//! UI and torchsde in `golden/noise*.json`. Everything is compared bit for bit, but for mixtures of variation seeds.

use calotype::noise::{BrownianTree, NoiseSource, Numpy, Philox, Rng, StepNoise, TorchCpu, slerp};
use calotype::tensor::LatentShape;
use calotype::{Error, ErrorKind};
use serde::Deserialize;
use sha2::{Digest, Sha256};

/// What a draw must be.
#[derive(Deserialize)]
struct Draw {
    len: usize,
    first: Vec<f32>,
    last: Vec<f32>,
    sha256: String,
}

impl Draw {
    #[track_caller]
    fn check(&self, values: &[f32], place: &str) {
        // The values come first, because they say more than a hash when they differ.
        assert_eq!(values[..self.first.len()], self.first, "{place}");
        assert_eq!(values[self.len - self.last.len()..], self.last, "{place}");
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        assert_eq!(format!("{:x}", Sha256::digest(&bytes)), self.sha256, "{place}");
    }
}

fn normal(noise: &mut dyn NoiseSource, len: usize) -> Vec<f32> {
    let mut values = vec![f32::NAN; len];
    noise.fill_normal(&mut values);
    values
}

#[test]
fn generators_are_those_of_torch_a1111_and_numpy_bit_for_bit() {
    #[derive(Deserialize)]
    struct Golden {
        cases: Vec<Case>,
    }
    #[derive(Deserialize)]
    struct Case {
        rng: String,
        seed: u64,
        calls: Vec<Draw>,
    }
    let golden: Golden = serde_json::from_str(include_str!("golden/noise.json")).unwrap();
    assert_eq!(golden.cases.len(), 7 * 13 + 8 * 3 + 5 * 3);
    for case in golden.cases {
        let mut noise = case.rng.parse::<Rng>().unwrap().source(case.seed).unwrap();
        for (index, call) in case.calls.iter().enumerate() {
            let place = format!("{}, seed {}, call {index} of {} values", case.rng, case.seed, call.len);
            call.check(&normal(&mut noise, call.len), &place);
        }
    }
}

/// The values that A1111's `modules/rng_philox.py` promises, which are those of a real GPU.
#[test]
fn philox_is_an_nvidia_gpus_but_for_the_last_bits() {
    let gpu = [
        -0.92466259,
        -0.42534415,
        -2.6438457,
        0.14518388,
        -0.12086647,
        -0.57972564,
        -0.62285122,
        -0.32838709,
        -1.07454231,
        -0.36314407,
        -1.67105067,
        2.26550497,
    ];
    let ours = normal(&mut Philox::new(0), gpu.len());
    let most = ours.iter().zip(gpu).map(|(&a, b)| (f64::from(a) - b).abs()).fold(0.0, f64::max);
    // Single precision on the GPU: neighbouring values are a million times farther apart.
    assert!(most < 4e-7, "{most}");
}

#[test]
fn numpy_gives_the_same_however_it_is_asked() {
    let whole = normal(&mut Numpy::new(5), 40);
    let mut parts = Numpy::new(5);
    let parts: Vec<f32> = [0, 1, 2, 17, 20].iter().flat_map(|&len| normal(&mut parts, len)).collect();
    assert_eq!(whole, parts);
}

#[test]
fn numpys_seeds_end_at_32_bits() {
    for seed in [1 << 32, u64::MAX] {
        let error = Rng::Numpy.source(seed).err().expect("numpy has no such seed");
        assert_eq!(error.kind(), ErrorKind::Usage);
        let expected = format!("seed: expected 0 to 4294967295 for numpy, got {seed}");
        assert!(error.to_string().starts_with(&expected), "{error}");
    }
    for (rng, seed) in [(Rng::Numpy, u64::from(u32::MAX)), (Rng::Torch, u64::MAX), (Rng::Philox, u64::MAX)] {
        assert!(rng.source(seed).is_ok(), "{rng} {seed}");
    }
}

#[test]
fn torch_uses_the_low_half_of_a_seed_and_philox_all_of_it() {
    let (low, high) = (9, 9 + (1 << 32));
    assert_eq!(normal(&mut TorchCpu::new(low), 20), normal(&mut TorchCpu::new(high), 20));
    assert_ne!(normal(&mut Philox::new(low), 20), normal(&mut Philox::new(high), 20));
}

#[test]
fn names_are_read_as_written_here_and_by_a1111() {
    for rng in Rng::ALL {
        assert_eq!(rng.to_string().parse::<Rng>().unwrap(), rng);
    }
    assert_eq!(Rng::default(), Rng::Torch);
    let names = [("CPU", Rng::Torch), ("GPU", Rng::Philox), ("NV", Rng::Philox), ("cuda", Rng::Philox)];
    for (name, rng) in names {
        assert_eq!(name.parse::<Rng>().unwrap(), rng, "{name}");
    }
}

#[test]
fn hostile_names_are_usage_errors() {
    // The Mersenne Twister is torch's generator and numpy's, and they draw differently from it.
    for name in ["", " torch", "torch ", "torch\0", "TORCH,NUMPY", "mt19937", "п", &"n".repeat(1 << 16)] {
        let error = name.parse::<Rng>().expect_err(name);
        assert_eq!(error.kind(), ErrorKind::Usage, "{name}");
        assert!(error.to_string().starts_with("rng: expected one of torch, philox, numpy, got "), "{error}");
    }
}

#[derive(Deserialize)]
struct Variations {
    batches: Vec<Batch>,
    interpolations: Vec<Interpolation>,
}

/// An image of a batch: its noise, mixed with its variation's, and the noise of the step after.
#[derive(Deserialize)]
struct Batch {
    rng: String,
    seed: u64,
    variation_seed: u64,
    strength: f64,
    first: Vec<f32>,
    following: Draw,
}

#[derive(Deserialize)]
struct Interpolation {
    distance: f32,
    strength: f64,
    result: Vec<f32>,
}

const BATCH_SHAPE: LatentShape = LatentShape { channels: 4, height_cells: 8, width_cells: 6 };

/// What A1111's single precision loses.
const SLERP_TOLERANCE: f32 = 1e-6;

fn variations() -> Variations {
    serde_json::from_str(include_str!("golden/noise_variation.json")).unwrap()
}

fn distance(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter()
        .zip(b)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, |most, next| if next > most || next.is_nan() { next } else { most })
}

#[test]
fn an_image_of_a_batch_is_that_image_alone() {
    let batches = variations().batches;
    assert_eq!(batches.len(), 2 * 5 * 2);
    for case in batches {
        let rng: Rng = case.rng.parse().unwrap();
        let place = format!("{rng}, seed {}, strength {}", case.seed, case.strength);
        let mut noise = rng.source(case.seed).unwrap();
        let mut first = normal(&mut noise, BATCH_SHAPE.len());
        if case.strength == 0.0 {
            assert_eq!(first, case.first, "{place}");
        } else {
            let variation = normal(&mut rng.source(case.variation_seed).unwrap(), BATCH_SHAPE.len());
            let alone = first.clone();
            slerp(&mut first, &variation, BATCH_SHAPE, case.strength);
            let missed = distance(&first, &case.first);
            assert!(missed < SLERP_TOLERANCE, "{place}: {missed}");
            // The tolerance tells a thousandth of the way from none, and this way from the other.
            let [mut nearer, mut exchanged] = [alone, variation.clone()];
            slerp(&mut exchanged, &nearer, BATCH_SHAPE, case.strength);
            slerp(&mut nearer, &variation, BATCH_SHAPE, case.strength - 0.001);
            assert!(distance(&nearer, &case.first) > 100.0 * SLERP_TOLERANCE, "{place}");
            assert!(case.strength == 0.5 || distance(&exchanged, &case.first) > 0.1, "{place}");
        }
        // Whatever has been mixed into the first noise, the image's generator goes on.
        case.following.check(&normal(&mut noise, BATCH_SHAPE.len()), &place);
    }
}

#[test]
fn nearly_parallel_noises_are_mixed_as_a1111_mixes_them() {
    let cases = variations().interpolations;
    assert_eq!(cases.len(), 3 * 2);
    for case in cases {
        let mut noise = normal(&mut TorchCpu::new(3), BATCH_SHAPE.len());
        let other = normal(&mut TorchCpu::new(4), BATCH_SHAPE.len());
        let variation: Vec<f32> = noise.iter().zip(other).map(|(a, b)| a + case.distance * b).collect();
        slerp(&mut noise, &variation, BATCH_SHAPE, case.strength);
        let missed = distance(&noise, &case.result);
        assert!(missed < SLERP_TOLERANCE, "{} {}: {missed}", case.distance, case.strength);
    }
}

#[test]
#[should_panic(expected = "have the given shape")]
fn noises_of_other_shapes_are_not_mixed() {
    slerp(&mut [0.0; 191], &[0.0; 192], BATCH_SHAPE, 0.5);
}

fn between(tree: &mut BrownianTree, len: usize, from_sigma: f64, to_sigma: f64) -> Vec<f32> {
    let mut values = vec![f32::NAN; len];
    tree.fill_between(from_sigma, to_sigma, &mut values);
    values
}

#[test]
fn brownian_trees_are_torchsdes_bit_for_bit() {
    #[derive(Deserialize)]
    struct Golden {
        cases: Vec<Case>,
    }
    #[derive(Deserialize)]
    struct Case {
        rng: String,
        sigma_min: f64,
        sigma_max: f64,
        seed: u64,
        len: usize,
        draws: Vec<Between>,
    }
    #[derive(Deserialize)]
    struct Between {
        from: f64,
        to: f64,
        #[serde(flatten)]
        draw: Draw,
    }
    let golden: Golden = serde_json::from_str(include_str!("golden/noise_brownian.json")).unwrap();
    assert_eq!(golden.cases.len(), 5 * 5 * 3 + 5 + 1 + 5);
    for case in golden.cases {
        let mut tree =
            BrownianTree::new(case.rng.parse().unwrap(), case.len, case.sigma_min, case.sigma_max, case.seed)
                .unwrap();
        for Between { from, to, draw } in &case.draws {
            let place =
                format!("seed {}, {from} to {to} of {} to {}", case.seed, case.sigma_max, case.sigma_min);
            draw.check(&between(&mut tree, case.len, *from, *to), &place);
        }
    }
}

#[test]
fn brownian_noise_does_not_depend_on_the_steps() {
    const LEN: usize = 32;
    let (low, high) = (0.03, 14.6);
    let mut tree = BrownianTree::new(Rng::Torch, LEN, low, high, 3).unwrap();
    let whole = between(&mut tree, LEN, high, low);
    for steps in [2, 3, 10, 50] {
        let level = |step: usize| high + (low - high) * step as f64 / steps as f64;
        let mut sum = vec![0.0; LEN];
        for step in 0..steps {
            let (from, to) = (level(step), level(step + 1));
            let part = between(&mut tree, LEN, from, to);
            sum.iter_mut().zip(part).for_each(|(sum, part)| *sum += f64::from(part) * (from - to).sqrt());
        }
        let sum: Vec<f32> = sum.into_iter().map(|sum| (sum / (high - low).sqrt()) as f32).collect();
        // The tree tells levels apart to a millionth, and here they are divided by the root of their exact distances.
        let missed = distance(&sum, &whole);
        assert!(missed < 3e-6, "{steps} steps: {missed}");
    }
}

#[test]
fn brownian_noise_does_not_depend_on_what_was_asked_before() {
    const LEN: usize = 20;
    let mut fresh = BrownianTree::new(Rng::Torch, LEN, 0.1, 10.0, 8).unwrap();
    let expected = between(&mut fresh, LEN, 4.4, 1.7);
    let mut used = BrownianTree::new(Rng::Torch, LEN, 0.1, 10.0, 8).unwrap();
    for (from, to) in [(10.0, 0.1), (4.4, 1.7), (2.0, 1.99), (5.05, 5.0), (0.2, 0.1), (9.0, 1.7)] {
        between(&mut used, LEN, from, to);
        assert_eq!(between(&mut used, LEN, 4.4, 1.7), expected, "after {from} to {to}");
    }
}

#[test]
fn brownian_noise_is_standard_and_that_of_parts_independent() {
    const LEN: usize = 4096;
    for rng in Rng::ALL {
        let mut tree = BrownianTree::new(rng, LEN, 0.0, 14.6, 1).unwrap();
        let [one, two] = [(7.1, 3.3), (3.3, 0.9)].map(|(from, to)| between(&mut tree, LEN, from, to));
        let mean = |product: &dyn Fn(usize) -> f32| {
            (0..LEN).map(|i| f64::from(product(i))).sum::<f64>() / LEN as f64
        };
        // Five standard deviations of each: sqrt(1 / n) of a mean or a product, sqrt(2 / n) of a square.
        let deviation = (1.0 / LEN as f64).sqrt();
        assert!(mean(&|i| one[i]).abs() < 5.0 * deviation);
        assert!((mean(&|i| one[i] * one[i]) - 1.0).abs() < 5.0 * std::f64::consts::SQRT_2 * deviation);
        assert!(mean(&|i| one[i] * two[i]).abs() < 5.0 * deviation);
    }
}

#[test]
fn levels_of_the_same_millionth_have_no_increment() {
    let mut tree = BrownianTree::new(Rng::Torch, 3, 0.1, 10.0, 8).unwrap();
    for (from, to) in [(2.000_000_2, 2.0), (2.0_f64.next_up(), 2.0), (0.1, 0.0), (30.0, 20.0)] {
        assert_eq!(between(&mut tree, 3, from, to), [0.0; 3], "{from} to {to}");
    }
}

#[test]
fn ranges_that_are_none_are_usage_errors() {
    let nan = f64::NAN;
    let ranges = [(1.0, 0.5), (-1.0, 1.0), (nan, 1.0), (0.0, nan), (0.0, f64::INFINITY), (0.0, 1.1e9)];
    for (sigma_min, sigma_max) in ranges {
        let error: Error = BrownianTree::new(Rng::Torch, 1, sigma_min, sigma_max, 0).err().expect("no range");
        assert_eq!(error.kind(), ErrorKind::Usage, "{sigma_min} {sigma_max}");
    }
}

#[test]
fn the_widest_range_is_resolved_to_a_millionth() {
    let mut tree = BrownianTree::new(Rng::Torch, 1, 0.0, 1e9, 0).unwrap();
    for (from, to) in [(1e9, 0.0), (1e9 / 3.0, 1e-6), (3e-6, 2e-6), (1e9, 1e9 - 64.0)] {
        assert!(between(&mut tree, 1, from, to)[0].is_finite(), "{from} to {to}");
    }
}

#[test]
fn any_stream_is_noise_for_steps() {
    let mut step = [0.0; 20];
    Rng::Philox.source(2).unwrap().fill_between(3.0, 1.0, &mut step);
    assert_eq!(step, *normal(&mut Philox::new(2), 20));
}
