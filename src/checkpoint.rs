//! Single-file checkpoints: which networks a file with the names of CompVis, Stability AI or OpenCLIP holds, their
//! configurations, and which stored tensor each name in diffusers' folders stands for.
//! It knows names and shapes; of values only those that tell what a network predicts, and nothing of graphs.

mod autoencoder;
mod control;
mod folder;
mod foreign;
mod nearest;
mod original;
mod source;
mod t2i_adapter;
mod text_encoder;
mod unet;

use std::collections::BTreeMap;

pub use self::control::{ControlFile, recognise_control};
pub use self::folder::{autoencoder_names, text_encoder_names};
pub(crate) use self::foreign::refuse_other_controls;
pub use self::original::with_original_names;
use self::source::Source;
pub(crate) use self::t2i_adapter::is_t2i_adapter;
pub use self::t2i_adapter::{AdapterFile, recognise_t2i_adapter};
use crate::Error;
use crate::architecture::{self, autoencoder_kl, clip};
pub use crate::family::{Family, Purpose};
use crate::family::{Layout, Telling};
use crate::prediction::Prediction;
use crate::weights::{Dtype, Stored, TensorView, Weights};

/// What stands before the U-Net's names in a whole checkpoint; files with nothing else may leave it out.
const UNET_PREFIXES: [&str; 2] = ["model.diffusion_model.", ""];
/// What stands before the VAE's names; files with nothing else may leave it out.
const VAE_PREFIXES: [&str; 3] = ["first_stage_model.", "vae.", ""];

/// Where a file's header says what its U-Net predicts, if it follows Stability AI's model metadata standard.
const SAID_PREDICTION: [&str; 2] = ["modelspec.prediction_type", SAID_V];
/// Where kohya's trainers say it.
const SAID_V: &str = "ss_v_parameterization";
/// Where they say that the last timestep is noise alone.
const SAID_ZERO_SNR: &str = "ss_zero_terminal_snr";

/// The longest bias that is looked at.
const MAX_BIAS: usize = 1 << 16;

/// Per name in diffusers' folders the stored tensor that has it; for [`Weights::select`].
pub type Names = BTreeMap<String, Stored>;

/// A whole checkpoint in one file.
#[derive(Clone, Debug, PartialEq)]
pub struct Checkpoint {
    /// The models it belongs to.
    pub family: Family,
    /// What its U-Net is given beside noise and text.
    pub purpose: Purpose,
    /// What its U-Net predicts, as far as the file tells.
    pub hint: Hint,
    /// `unet` in a diffusers folder.
    pub unet: Part<architecture::unet::Config>,
    /// `vae` in a diffusers folder.
    pub vae: Option<Part<autoencoder_kl::Config>>,
    /// `text_encoder` in a diffusers folder.
    pub text_encoder: Option<Part<clip::Config>>,
    /// `text_encoder_2` in a diffusers folder.
    pub text_encoder_2: Option<Part<clip::Config>>,
}

/// One network of a checkpoint.
#[derive(Clone, Debug, PartialEq)]
pub struct Part<Config> {
    /// What names and shapes tell of it, and what all such networks have in common.
    pub config: Config,
    /// The network's tensors.
    pub names: Names,
}

/// What a U-Net predicts, as far as a file tells.
#[derive(Clone, Debug, PartialEq)]
pub struct Hint {
    /// The prediction.
    pub prediction: Prediction,
    /// Whether the file says that it was trained down to a signal-to-noise ratio of zero.
    pub zero_terminal_snr: bool,
    /// How that is known.
    pub reason: String,
    /// What the file says of it that is not understood, a line each.
    pub notes: Vec<String>,
}

/// A U-Net in a file, whatever else is there.
#[derive(Clone, Debug, PartialEq)]
pub struct UnetFile {
    /// The models it belongs to.
    pub family: Family,
    /// What it is given beside noise and text.
    pub purpose: Purpose,
    /// What it predicts, as far as the file tells.
    pub hint: Hint,
    /// `unet` in a diffusers folder.
    pub unet: Part<architecture::unet::Config>,
}

/// Recognises a file with a U-Net, alone or with the VAE and the text encoders it was trained with; `place` is for messages.
/// The tensors have their original names: see [`with_original_names`].
///
/// # Errors
/// [`ErrorKind::Model`](crate::ErrorKind::Model) for files of other kinds, which it tries to name, for networks with more or fewer tensors than
/// their kind has, and for shapes that contradict each other.
pub fn recognise(weights: &Weights, place: &str) -> Result<Checkpoint, Error> {
    let UnetFile { family, purpose, hint, unet } = recognise_unet(weights, place)?;
    let vae = VAE_PREFIXES[..2]
        .iter()
        .map(|prefix| Source::new(weights, format!("{place}: VAE"), prefix))
        .find(|source| !source.is_empty())
        .map(|source| autoencoder::part(&source, Some(family)))
        .transpose()?;
    let [text_encoder, text_encoder_2] = text_encoder::parts(weights, place, family)?;
    Ok(Checkpoint { family, purpose, hint, unet, vae, text_encoder, text_encoder_2 })
}

/// Recognises the U-Net of a file as [`recognise`] does, and leaves the rest of it aside.
///
/// # Errors
/// As [`recognise`].
pub fn recognise_unet(weights: &Weights, place: &str) -> Result<UnetFile, Error> {
    foreign::refuse_relatives(weights, place)?;
    unet_file(weights, place).map_err(|error| match nearest::nearest(weights) {
        Some(nearest) => Error::new(error.kind(), format!("{error}; {nearest}")),
        None => error,
    })
}

fn unet_file(weights: &Weights, place: &str) -> Result<UnetFile, Error> {
    let prefix =
        UNET_PREFIXES.into_iter().find(|prefix| weights.get(&format!("{prefix}{}", unet::MARKER)).is_some());
    let source = match prefix {
        Some(prefix) => Source::new(weights, format!("{place}: U-Net"), prefix),
        None => return Err(foreign::unrecognised(weights, place)),
    };
    let layout = Layout::read(&source)?;
    let family = layout.family(&source)?;
    let purpose = layout.purpose(&source, family)?;
    let hint = hint(weights, &source, &layout, family, purpose)?;
    let unet = layout.part(&source, family, hint.prediction)?;
    Ok(UnetFile { family, purpose, hint, unet })
}

/// Recognises the text encoders of a file, whatever else is there: `text_encoder` and `text_encoder_2` of Stable Diffusion XL,
/// or the only one of another family, which is then the first. `place` is for messages.
///
/// # Errors
/// As [`recognise`].
pub fn recognise_text_encoders(
    weights: &Weights,
    place: &str,
    is_xl: bool,
) -> Result<[Option<Part<clip::Config>>; 2], Error> {
    text_encoder::alone(weights, place, is_xl)
}

/// Recognises a file with a VAE alone, under its original names; `place` is for messages.
///
/// Such a file does not tell what its latents are multiplied by: the configuration has the factor of Stable Diffusion 1.
///
/// # Errors
/// As [`recognise`].
pub fn recognise_autoencoder(weights: &Weights, place: &str) -> Result<Part<autoencoder_kl::Config>, Error> {
    let marked = |prefix: &&str| weights.get(&format!("{prefix}{}", autoencoder::MARKER)).is_some();
    match VAE_PREFIXES.iter().find(|prefix| marked(prefix)) {
        Some(prefix) => autoencoder::part(&Source::new(weights, format!("{place}: VAE"), prefix), None),
        None => Err(foreign::not_an_autoencoder(weights, place)),
    }
}

fn hint(
    weights: &Weights,
    unet: &Source<'_>,
    layout: &Layout,
    family: Family,
    purpose: Purpose,
) -> Result<Hint, Error> {
    let has_tensor = weights.get("ztsnr").is_some();
    // Noise alone, where such a run starts, tells nothing of an image to a U-Net that predicts it.
    let is_said =
        weights.metadata(SAID_ZERO_SNR).is_some_and(|said| said.trim().eq_ignore_ascii_case("true"));
    let mut notes = Vec::new();
    let hint = |prediction, notes, reason: String| {
        let zero_terminal_snr = has_tensor || is_said && prediction == Prediction::V;
        Ok(Hint { prediction, zero_terminal_snr, reason, notes })
    };
    if weights.get("v_pred").is_some() {
        return hint(Prediction::V, notes, "the file has a tensor v_pred".into());
    }
    for key in SAID_PREDICTION {
        let Some(said) = weights.metadata(key).filter(|said| !said.trim().is_empty()) else { continue };
        let prediction = match (key, said.trim().to_ascii_lowercase().as_str()) {
            // kohya's trainers write a truth value of Python's.
            (SAID_V, "true" | "1") => Some(Prediction::V),
            (SAID_V, "false" | "0") => Some(Prediction::Epsilon),
            (SAID_V, "none") => continue,
            (SAID_V, _) => None,
            _ => Prediction::named(said),
        };
        match prediction {
            Some(prediction) => return hint(prediction, notes, format!("the file says {key} {said}")),
            None => notes.push(format!("{key}: expected v or epsilon, got {said:?}; ignored")),
        }
    }
    let usual = family.prediction();
    let Some(Telling { tensor: bias, above, prediction }) = family.telling(layout, purpose) else {
        let reason = match usual {
            Prediction::Epsilon => format!("{family} predicts noise unless the file has a tensor v_pred"),
            Prediction::V => format!("every {family} predicts velocities"),
            other => format!("every {family} predicts {other:?}"),
        };
        return hint(usual, notes, reason);
    };
    let deviation =
        deviation(&unet.get(&bias)?).map_err(|problem| unet.refuse(format!("{bias}: {problem}")))?;
    let (prediction, side) = if deviation > above { (prediction, "above") } else { (usual, "not above") };
    let reason = format!("{bias} has a standard deviation of {deviation:.3}, {side} {above}");
    hint(prediction, notes, reason)
}

/// The standard deviation of a vector's values.
fn deviation(tensor: &TensorView<'_>) -> Result<f64, String> {
    if !matches!(tensor.shape(), [1..=MAX_BIAS]) {
        return Err(format!("expected a vector of up to {MAX_BIAS} numbers, got shape {:?}", tensor.shape()));
    }
    let bytes = tensor.to_bytes();
    let values: Vec<f64> = match tensor.dtype() {
        Dtype::F32 => elements(&bytes, |bytes| f32::from_le_bytes(bytes).into()),
        Dtype::F16 => elements(&bytes, |bytes| half::f16::from_le_bytes(bytes).into()),
        Dtype::Bf16 => elements(&bytes, |bytes| half::bf16::from_le_bytes(bytes).into()),
        Dtype::F64 => elements(&bytes, f64::from_le_bytes),
        other => return Err(format!("expected floats, got {other}")),
    };
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count;
    Ok((values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / count).sqrt())
}

fn elements<const SIZE: usize>(bytes: &[u8], read: impl Fn([u8; SIZE]) -> f64) -> Vec<f64> {
    bytes.as_chunks().0.iter().map(|bytes| read(*bytes)).collect()
}
