//! Trials: a component's outputs on seeded inputs, compared with what they must be, so that a provider that computes
//! wrong results is found before the first image. They know how far is too far, and nothing of images.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::path::Path;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::component::Trial;
use super::feed::Feed;
use super::seeded;
use crate::engine::{Precision, Provider, Providers, Session, SessionOptions};
use crate::graph::Dim;
use crate::model::{Model, Part};
use crate::{Error, ErrorKind};

/// The seed of the trial that every component has that does not run on the CPU, and that has golden values.
pub(crate) const SEED: u64 = 0;
/// How many elements of an output are kept.
const SAMPLES: usize = 64;
/// The longest file of outputs that is read: a few hundred numbers each.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// Golden values of the built-in model, from PyTorch: `export/golden_trials.py`.
const GOLDEN: &str = include_str!("../../models/builtin/golden.json");

#[derive(Deserialize)]
struct Golden {
    /// By the SHA-256 of a component's weights.
    components: BTreeMap<String, Vec<Sampled>>,
}

/// What is kept of one output: its length, and elements from all over it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Sampled {
    /// How many elements there are.
    len: usize,
    /// The root of the sum of their squares.
    norm: f64,
    samples: Vec<f32>,
}

impl Sampled {
    pub(crate) fn of(output: &[f32]) -> Self {
        let norm = output.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt();
        let samples =
            (0..SAMPLES).map(|index| output.get(place(index, output.len())).copied().unwrap_or(0.0));
        Self { len: output.len(), norm, samples: samples.collect() }
    }
}

/// Where the elements lie that are kept: multiples of the golden ratio, which no row or tile of an output repeats.
fn place(index: usize, len: usize) -> usize {
    const GOLDEN_RATIO: u64 = 0x9E37_79B9_7F4A_7C15;
    let fraction = (index as u64).wrapping_mul(GOLDEN_RATIO);
    ((u128::from(fraction) * len as u128) >> u64::BITS) as usize
}

/// The trial of a component, which its session need not hold where it came to run on the CPU alone; nothing where it may run
/// nowhere else. [`ErrorKind::Numeric`] for a provider that computes wrong results.
pub(crate) fn of(model: &Model, part: &Part, options: &SessionOptions) -> Option<Trial> {
    if options.providers.is_cpu(part.name()) {
        return None;
    }
    let (manifest, encoder) = (model.manifest().clone(), model.encoder(part).cloned());
    Some(Box::new(move |session, part, options| {
        let mut error = None;
        if !session.placement().is_cpu() {
            let feeds = seeded::feeds(part, encoder.as_ref(), &manifest, None, SEED)?;
            let outputs = run(session, part, &feeds)?;
            match reference(part, &feeds, options) {
                Ok(expected) => {
                    let providers = Provider::join(&session.placement().providers);
                    error = Some(check(
                        part.name(),
                        &providers,
                        distance(&expected, &outputs),
                        limit(session.placement().precision),
                    )?);
                }
                Err(problem) => {
                    tracing::warn!(component = part.name(), %problem, "not compared with the CPU")
                }
            }
        }
        session.settle(error);
        Ok(())
    }))
}

/// How far outputs may lie from the reference, relative to its length.
///
/// Sums in another order differ by 1e-6 to 1e-5 in 32-bit floats after a U-Net's hundred layers; 11 digits (TF32, f16)
/// make that 1e-3, and 8 (bfloat16) 9e-3. A wrong layout or weight is wrong by a tenth and more, but a wrong kernel in
/// one layer may be by no more than 2.5e-2: so wrong was WebGPU 0.4.0 with a U-Net.
pub(crate) fn limit(precision: Precision) -> f64 {
    match precision {
        Precision::Full => 1e-3,
        Precision::Reduced => 2e-2,
        // In bfloat16 the built-in model's U-Net with measured ranges is 2.4e-2 off: other sums are rounded to other integers.
        Precision::Integers => 5e-2,
    }
}

/// The error as it is, or, where it is above the limit or none could be found, an [`ErrorKind::Numeric`].
fn check(component: &str, provider: &str, error: Result<f64, String>, limit: f64) -> Result<f64, Error> {
    let got = match error {
        Ok(error) if error <= limit => return Ok(error),
        Ok(error) => format!("{error:.1e}"),
        Err(problem) => problem,
    };
    Err(Error::new(
        ErrorKind::Numeric,
        format!(
            "{component}: trial on {provider}: expected a relative error of at most {limit:.0e}, got {got}"
        ),
    )
    .help("this provider computes wrong results; use another one or another version"))
}

/// One run of a component.
pub(crate) fn run(session: &mut Session, part: &Part, feeds: &[Feed]) -> Result<Vec<Vec<f32>>, Error> {
    let names: Vec<&str> = part.signature().outputs.iter().map(|binding| &binding.port.name[..]).collect();
    let inputs: Vec<_> = feeds.iter().map(Feed::input).collect();
    Ok(session.compute(&inputs, &names)?.into_iter().map(|output| output.data).collect())
}

/// What the outputs on the inputs of [`SEED`] must be: golden values where there are some, else what the CPU finds,
/// once if there is a folder to keep it in.
pub(crate) fn reference(
    part: &Part,
    feeds: &[Feed],
    options: &SessionOptions,
) -> Result<Vec<Sampled>, Error> {
    let weights = part.weights().sha256();
    if let Some(golden) = golden_of(part, weights) {
        return Ok(golden);
    }
    let file = match &options.cache {
        // Inputs may differ between versions, and follow from more than graph and weights: two models may have one VAE.
        Some(root) => Some(root.join("trials").join(env!("CARGO_PKG_VERSION")).join(format!(
            "{}-{}.json",
            part.bind()?.key_with(weights),
            key(feeds)
        ))),
        None => None,
    };
    if let Some(known) = file.as_deref().and_then(recall) {
        return Ok(known);
    }
    let sampled = on_cpu(part, [feeds], options)?.remove(0);
    if let Some(file) = file
        && let Err(error) = remember(&file, &sampled)
    {
        tracing::warn!(file = %file.display(), %error, "the CPU's results were not cached");
    }
    Ok(sampled)
}

/// The golden values of a component, if its weights are the built-in model's.
pub(crate) fn golden(part: &Part) -> Option<Vec<Sampled>> {
    golden_of(part, part.weights().sha256())
}

/// A name for inputs, and no others.
pub(crate) fn key(feeds: &[Feed]) -> String {
    let mut hash = Sha256::new();
    feeds.iter().for_each(|feed| feed.hash(&mut hash));
    hash.finalize()[..8].iter().map(|byte| format!("{byte:02x}")).collect()
}

fn golden_of(part: &Part, weights: [u8; 32]) -> Option<Vec<Sampled>> {
    // They are of inputs of one size, which graphs of fixed shapes may not take.
    let is_fixed =
        part.graph().inputs().iter().flat_map(|port| &port.dims).all(|dim| matches!(dim, Dim::Fixed(_)));
    if part.added_cost().is_some() || is_fixed {
        return None;
    }
    let mut golden: Golden = serde_json::from_str(GOLDEN).expect("a file of this build");
    golden.components.remove(&crate::model::hex(&weights))
}

/// What the CPU finds on each of these inputs.
pub(crate) fn on_cpu<'a>(
    part: &Part,
    feeds: impl IntoIterator<Item = &'a [Feed]>,
    options: &SessionOptions,
) -> Result<Vec<Vec<Sampled>>, Error> {
    let options = SessionOptions { providers: Providers::default(), ..options.clone() };
    let mut session = Session::open(part.bind()?, &options)?;
    let outputs = feeds.into_iter().map(|feeds| run(&mut session, part, feeds));
    outputs.map(|outputs| Ok(outputs?.iter().map(|output| Sampled::of(output)).collect())).collect()
}

/// What was found before; nothing when that is not to be had or not understood.
pub(crate) fn recall<T: DeserializeOwned>(file: &Path) -> Option<T> {
    let is_small = fs::metadata(file).ok()?.len() <= MAX_FILE_BYTES;
    is_small.then(|| fs::read(file).ok()).flatten().and_then(|bytes| serde_json::from_slice(&bytes).ok())
}

pub(crate) fn remember(file: &Path, found: &impl Serialize) -> std::io::Result<()> {
    let folder = file.parent().unwrap_or(file);
    fs::create_dir_all(folder)?;
    let mut temporary = tempfile::NamedTempFile::new_in(folder)?;
    temporary.write_all(&serde_json::to_vec(found)?)?;
    temporary.persist(file)?;
    Ok(())
}

/// The largest of the outputs' relative errors: of the elements that were kept, and of the norm, which sees the others.
pub(crate) fn distance(expected: &[Sampled], outputs: &[Vec<f32>]) -> Result<f64, String> {
    if expected.len() != outputs.len() {
        return Err(format!("{} outputs instead of {}", outputs.len(), expected.len()));
    }
    let mut most = 0.0f64;
    for (expected, output) in expected.iter().zip(outputs) {
        if expected.len != output.len() {
            return Err(format!("{} numbers instead of {}", output.len(), expected.len));
        }
        if let Some(value) = output.iter().find(|value| !value.is_finite()) {
            return Err(format!("{value}"));
        }
        let got = Sampled::of(output);
        let squares = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>().sqrt();
        let pairs = expected.samples.iter().zip(&got.samples);
        let difference = squares(&mut pairs.map(|(a, b)| f64::from(*b) - f64::from(*a)));
        let length = squares(&mut expected.samples.iter().map(|&x| f64::from(x)));
        for (difference, length) in [(difference, length), ((got.norm - expected.norm).abs(), expected.norm)]
        {
            // Nothing is as far from something as can be.
            let relative = if difference == 0.0 { 0.0 } else { difference / length };
            if relative.is_nan() || relative > most {
                most = relative;
            }
        }
    }
    Ok(most)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wave(len: usize) -> Vec<f32> {
        (0..len).map(|index| (index as f32 * 0.37).sin()).collect()
    }

    fn error(output: Vec<f32>) -> Result<f64, String> {
        distance(&[Sampled::of(&wave(4096))], &[output])
    }

    #[test]
    #[cfg(feature = "builtin")]
    fn golden_values_are_those_of_the_built_in_model_and_of_no_other_input() {
        let model = crate::model::Model::built_in().unwrap();
        for part in model.parts() {
            let name = part.name();
            let golden = golden(part).unwrap_or_else(|| panic!("{name}: no golden values"));
            let feeds = [SEED, SEED + 1]
                .map(|seed| seeded::feeds(part, model.encoder(part), model.manifest(), None, seed).unwrap());
            let options = SessionOptions::new(std::num::NonZeroUsize::MIN);
            let mut session = Session::open(part.bind().unwrap(), &options).unwrap();
            let [right, other] = feeds.map(|feeds| run(&mut session, part, &feeds).unwrap());
            // PyTorch's sums in its own order.
            let error = distance(&golden, &right).unwrap();
            assert!(error < 5e-6, "{name}: {error}");
            assert!(distance(&golden, &other).unwrap() > limit(Precision::Reduced), "{name}: another seed");
            let zeros: Vec<Vec<f32>> = right.iter().map(|output| vec![0.0; output.len()]).collect();
            assert_eq!(distance(&golden, &zeros), Ok(1.0), "{name}: zeros");
            let mut shifted = right.clone();
            shifted.iter_mut().for_each(|output| output.rotate_right(1));
            assert!(
                distance(&golden, &shifted).unwrap() > limit(Precision::Reduced),
                "{name}: a shift by one"
            );
            let off = |by: f32| right.iter().map(|output| output.iter().map(|x| x * by).collect()).collect();
            let off: [Vec<Vec<f32>>; 2] = [off(1.0005), off(1.002)];
            assert!(distance(&golden, &off[0]).unwrap() < limit(Precision::Full), "{name}");
            assert!(distance(&golden, &off[1]).unwrap() > limit(Precision::Full), "{name}");
        }
    }

    #[test]
    #[cfg(feature = "builtin")]
    fn changed_weights_are_another_models() {
        let model = crate::model::Model::built_in().unwrap();
        let part = model.unet();
        let key = part.bind().unwrap().key();
        let (name, tensor) = part.weights().iter().next().expect("a U-Net with weights");
        let mut bytes = tensor.to_bytes();
        bytes[0] ^= 1;
        let mut weights = crate::weights::Weights::clone(part.weights());
        weights.replace(name, tensor.dtype(), tensor.shape(), &bytes).unwrap();
        assert_ne!(weights.sha256(), part.weights().sha256());
        assert_ne!(part.graph().clone().bind(weights.into()).unwrap().key(), key);
        assert_eq!(part.bind().unwrap().key(), key);
    }

    /// What the CPU found on other inputs is no reference.
    #[test]
    #[cfg(feature = "builtin")]
    fn references_are_of_their_inputs() {
        let model = crate::model::Model::built_in().unwrap();
        let feeds = |seed| seeded::feeds(model.vae_decoder(), None, model.manifest(), None, seed).unwrap();
        assert_eq!(key(&feeds(1)), key(&feeds(1)));
        assert_ne!(key(&feeds(1)), key(&feeds(2)));
    }

    #[test]
    fn the_same_output_has_no_error() {
        assert_eq!(error(wave(4096)), Ok(0.0));
    }

    #[test]
    fn errors_are_relative_and_seen() {
        let scaled = |by: f32| wave(4096).into_iter().map(|x| x * by).collect::<Vec<f32>>();
        let one = error(scaled(1.01)).unwrap();
        assert!((one - 0.01).abs() < 1e-5, "{one}");
        assert!((error(scaled(0.0)).unwrap() - 1.0).abs() < 1e-12);
        let mut shifted = wave(4096);
        shifted.rotate_left(1);
        assert!(error(shifted).unwrap() > 0.1, "a layout that is off by one");
        // A wrong corner that no kept element lies in.
        let mut corner = wave(4096);
        let kept: Vec<usize> = (0..SAMPLES).map(|index| place(index, 4096)).collect();
        (0..4096).filter(|at| !kept.contains(at)).take(2000).for_each(|at| corner[at] = 0.0);
        assert!(error(corner).unwrap() > 0.1, "the norm sees it");
    }

    #[test]
    fn what_is_no_number_is_refused() {
        for value in [f32::NAN, f32::INFINITY] {
            let mut output = wave(4096);
            output[17] = value;
            assert_eq!(error(output), Err(value.to_string()));
        }
        assert_eq!(error(wave(4095)), Err("4095 numbers instead of 4096".into()));
        assert_eq!(distance(&[], &[wave(3)]), Err("1 outputs instead of 0".into()));
        let zeros = [Sampled::of(&[0.0; 100])];
        assert_eq!(distance(&zeros, &[vec![0.0; 100]]), Ok(0.0));
        assert_eq!(distance(&zeros, &[vec![1.0; 100]]), Ok(f64::INFINITY));
    }

    #[test]
    fn above_the_limit_is_an_error_that_names_all() {
        assert_eq!(check("unet", "cuda", Ok(1e-3), limit(Precision::Full)).unwrap(), 1e-3);
        for (error, got) in [(Ok(2e-3), "2.0e-3"), (Ok(f64::NAN), "NaN"), (Err("NaN".into()), "NaN")] {
            let refusal = check("unet", "cuda", error, limit(Precision::Full)).unwrap_err();
            assert_eq!(refusal.kind(), ErrorKind::Numeric);
            let expected = format!(
                "unet: trial on cuda: expected a relative error of at most 1e-3, got {got}; this provider computes \
                 wrong results; use another one or another version"
            );
            assert_eq!(refusal.to_string(), expected);
        }
    }

    #[test]
    fn kept_elements_lie_apart_and_within() {
        for len in [0, 1, 63, 64, 65, 49_152] {
            let places: Vec<usize> = (0..SAMPLES).map(|index| place(index, len)).collect();
            assert!(places.iter().all(|&at| at < len.max(1)), "{len}");
        }
        let mut places: Vec<usize> = (0..SAMPLES).map(|index| place(index, 49_152)).collect();
        places.sort_unstable();
        places.dedup();
        assert_eq!(places.len(), SAMPLES);
        // No two in one column of an image's rows would be the same row's neighbours: the gaps have three sizes at most.
        let gaps: std::collections::BTreeSet<usize> =
            places.windows(2).map(|pair| (pair[1] - pair[0]) / 4).collect();
        assert!(gaps.len() <= 6, "{gaps:?}");
    }

    #[test]
    fn what_is_remembered_is_recalled_and_nonsense_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a/b.json");
        assert_eq!(recall::<Vec<Sampled>>(&file), None);
        let sampled = vec![Sampled::of(&wave(100))];
        remember(&file, &sampled).unwrap();
        assert_eq!(recall(&file), Some(sampled));
        for nonsense in ["", "[{}]", "[1]", "\u{0}"] {
            fs::write(&file, nonsense).unwrap();
            assert_eq!(recall::<Vec<Sampled>>(&file), None, "{nonsense:?}");
        }
    }
}
