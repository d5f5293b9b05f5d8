//! What predictions are conditioned on: texts, sizes and guidance scales, as the inputs of a U-Net or a control network. It knows
//! nothing of latents.

use super::feed::Feed;
use super::text_states::TextStates;
use crate::engine::Value;
use crate::graph::{Dim, Port};
use crate::guidance::{self, View};
use crate::request::{Request, Source};
use crate::signature::{Role, Signature};
use crate::tensor::PixelSize;
use crate::{Error, ErrorKind};

/// Conditioning of a run: the text encoders' states of its prompts.
pub(crate) struct Conditioning {
    /// Every text that is read in some step.
    pub(crate) texts: Vec<TextStates>,
    /// Per step, and per view of the run's guidance, which of them is read.
    pub(crate) of_step: Vec<Vec<usize>>,
}

/// What a U-Net or a control network takes beside latents, time and texts, for these predictions.
pub(super) fn of_views(signature: &Signature, request: &Request, views: &[View]) -> Result<Vec<Feed>, Error> {
    let batch = views.len();
    let mut feeds = Vec::new();
    for binding in &signature.inputs {
        let port = &binding.port;
        match binding.role {
            Role::TimeIds => {
                let ids = views.iter().map(|view| time_ids(port, request.size, is_negative(*view)));
                let ids = ids.collect::<Result<Vec<_>, Error>>()?;
                feeds.push(Feed::of(port, &[batch, ids[0].len()], ids.concat())?);
            }
            Role::GuidanceEmbedding => {
                let width = fixed(port, 1)
                    .ok_or_else(|| unfit(format!("a guidance embedding of fixed width, got {port}")))?;
                let one = guidance::embedding(request.guidance_scale(), width);
                let numbers = views.iter().flat_map(|_| &one).copied().collect::<Vec<_>>();
                feeds.push(Feed::of(port, &[batch, width], numbers)?);
            }
            Role::ClassLabels => {
                let Source::Enlarged { level, .. } = request.source else {
                    return Err(unfit("a request with an image to upscale, got one without".into()));
                };
                feeds.push(Feed::of(port, &[batch], std::iter::repeat(level as f64))?);
            }
            _ => {}
        }
    }
    Ok(feeds)
}

/// The states of these texts, which have one length, and their vectors for a U-Net that takes them, by the names of the inputs.
pub(super) fn of_texts(
    signature: &Signature,
    conditioning: &Conditioning,
    texts: &[usize],
) -> Result<Vec<(String, Value)>, Error> {
    let texts: Vec<&TextStates> = texts.iter().map(|&text| &conditioning.texts[text]).collect();
    let value = |port: &Port, shape: &[usize], numbers: &mut dyn Iterator<Item = &f32>| {
        Feed::of(port, shape, numbers.map(|&x| f64::from(x)))?.into_value()
    };
    let port = signature.input(Role::States).expect("no signature without states");
    let shape = [texts.len(), texts[0].tokens, texts[0].states.len() / texts[0].tokens];
    let mut values = vec![value(port, &shape, &mut texts.iter().flat_map(|text| &text.states))?];
    if let Some(port) = signature.input(Role::Pooled) {
        let missing = || unfit("a text encoder that pools the prompt, got none".into());
        let width = texts[0].pooled.as_ref().ok_or_else(missing)?.len();
        let vectors = &mut texts.iter().flat_map(|text| text.pooled.iter().flatten());
        values.push(value(port, &[texts.len(), width], vectors)?);
    }
    Ok(values)
}

/// Whether a prediction is of what the image should not be, or of nothing in particular.
pub(super) fn is_negative(view: View) -> bool {
    !matches!(view, View::Positive(_))
}

/// Stable Diffusion XL's image of its own size, not cropped, and asked for at that size (Podell et al. 2023, section
/// 2.2): original height and width, top and left, target height and width. The refiner takes an aesthetic score instead
/// of the target, diffusers' of a good image or, for the negative prompt, of a bad one.
fn time_ids(port: &Port, size: PixelSize, is_negative: bool) -> Result<Vec<f64>, Error> {
    let (width, height) = (f64::from(size.width_px()), f64::from(size.height_px()));
    match fixed(port, 1) {
        Some(6) | None => Ok(vec![height, width, 0.0, 0.0, height, width]),
        Some(5) => Ok(vec![height, width, 0.0, 0.0, if is_negative { 2.5 } else { 6.0 }]),
        Some(other) => Err(unfit(format!("a model with 5 or 6 time ids, got {other}"))),
    }
}

pub(super) fn fixed(port: &Port, axis: usize) -> Option<usize> {
    match port.dims.get(axis) {
        Some(Dim::Fixed(size)) => Some(*size),
        _ => None,
    }
}

pub(super) fn unfit(expected: String) -> Error {
    Error::new(ErrorKind::Model, format!("unet: expected {expected}"))
}
