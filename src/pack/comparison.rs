//! How far the outputs of a packed model lie from those of its source, component by component, on seeded inputs.
//! It has one component of one model open at a time.

use std::iter::repeat_n;

use crate::engine::{Session, SessionOptions};
use crate::graph::{Dim, Port};
use crate::guidance::embedding;
use crate::manifest::Manifest;
use crate::model::{Model, Part, TextEncoderPart};
use crate::noise::{NoiseSource, TorchCpu};
use crate::prompt::Text;
use crate::signature::{Binding, Role};
use crate::stage::denoiser::timestep_shape;
use crate::stage::feed::{Feed, constants, runs};
use crate::stage::text_encoder::{TextEncoder, TextStates};
use crate::tensor::{LatentShape, PixelSize};
use crate::{Error, ErrorKind};

/// What text encoders are given.
const PROMPT: &str = "a photograph of a red fox that sits on a mossy stone in a forest, soft morning light";
/// The seed of all that is random in the inputs.
const SEED: u64 = 0;
/// The longest side of latents where a graph takes any: enough for thousands of numbers, and a VAE's gigabytes at larger
/// ones would ask for more memory than all of packing.
const MOST_CELLS: usize = 32;

/// How far one output lies from that of the source.
#[derive(Clone, Debug, PartialEq)]
pub struct OutputError {
    /// The output's name.
    pub output: String,
    /// The length of the difference, relative to that of the source's output: `|packed - source| / |source|`.
    pub relative: f64,
}

/// The errors of a component's outputs, in the order of [`Model::parts`].
///
/// # Errors
/// [`ErrorKind::Numeric`] when an output is not made of numbers; otherwise those of opening and running the components.
pub(super) fn compare(
    source: &Model,
    packed: &Model,
    options: &SessionOptions,
) -> Result<Vec<Vec<OutputError>>, Error> {
    let manifest = source.manifest();
    let text = TextEncoder::open(source, |_| *options)?.encode(&[Some(&Text::literal(PROMPT)?)])?.remove(0);
    let mut errors = Vec::new();
    for (part, packed) in source.parts().zip(packed.parts()) {
        let encoder = source.text_encoders().iter().find(|encoder| encoder.name() == part.name());
        let feeds = match encoder {
            Some(encoder) => text_feeds(encoder)?,
            None if part.name() == "unet" => unet_feeds(part, manifest, &text)?,
            None => vae_feeds(part, manifest)?,
        };
        let expected = outputs(part, &feeds, options)?;
        let got = outputs(packed, &feeds, options)?;
        let names = part.signature().outputs.iter().map(|binding| &binding.port.name);
        let compared = names.zip(expected.iter().zip(&got)).map(|(name, (expected, got))| {
            let relative = relative_error(expected, got).map_err(|problem| {
                Error::new(ErrorKind::Numeric, format!("{}: output {name}: {problem}", part.name()))
            })?;
            Ok(OutputError { output: name.clone(), relative })
        });
        errors.push(compared.collect::<Result<_, Error>>()?);
    }
    Ok(errors)
}

/// One run of a component, which is closed again.
fn outputs(part: &Part, feeds: &[Feed], options: &SessionOptions) -> Result<Vec<Vec<f32>>, Error> {
    let names: Vec<&str> = part.signature().outputs.iter().map(|binding| &binding.port.name[..]).collect();
    let inputs: Vec<_> = feeds.iter().map(Feed::input).collect();
    let outputs = Session::open(part.bind()?, options)?.compute(&inputs, &names)?;
    Ok(outputs.into_iter().map(|output| output.data).collect())
}

fn text_feeds(encoder: &TextEncoderPart) -> Result<Vec<Feed>, Error> {
    let signature = encoder.signature();
    let port = signature.input(Role::TokenIds).expect("no signature without token ids");
    let context = match port.dims[1] {
        Dim::Fixed(context) => context,
        Dim::Free(_) => encoder.context(),
    };
    let ids = encoder.tokenizer(context)?.encode(&Text::literal(PROMPT)?, 1)?.chunks.remove(0).ids;
    let batch = batch(port);
    let mut feeds = constants(signature, batch, context)?;
    let numbers = (0..batch).flat_map(|_| &ids).map(|id| *id as f64);
    feeds.push(Feed::of(port, &[batch, context], numbers)?);
    Ok(feeds)
}

/// Noise in the middle of the curve, and the prompt. What else a U-Net takes is of its size and kind, if not what a
/// picture would need.
fn unet_feeds(part: &Part, manifest: &Manifest, text: &TextStates) -> Result<Vec<Feed>, Error> {
    let signature = part.signature();
    let latents = signature.input(Role::Latents).expect("no signature without latents");
    let (shape, size) = sizes(latents, manifest)?;
    let (batch, tokens) = (batch(latents), text.tokens);
    let width = text.states.len() / tokens;
    let (width_px, height_px) = (f64::from(size.width_px()), f64::from(size.height_px()));
    let tiled =
        |numbers: &[f32]| repeat_n(numbers, batch).flatten().map(|x| f64::from(*x)).collect::<Vec<_>>();
    let mut feeds = constants(signature, batch, tokens)?;
    for Binding { port, role, .. } in &signature.inputs {
        let fixed = |axis: usize| match port.dims.get(axis) {
            Some(Dim::Fixed(size)) => Some(*size),
            _ => None,
        };
        let (dims, numbers) = match role {
            Role::Latents => {
                let channels = fixed(1).unwrap_or(shape.channels);
                let dims = vec![batch, channels, shape.height_cells, shape.width_cells];
                let count = dims.iter().product();
                (dims, noise(count))
            }
            Role::Timestep => (timestep_shape(port, batch), vec![(manifest.curve.len() / 2) as f64; batch]),
            Role::States => (vec![batch, tokens, width], tiled(&text.states)),
            Role::Pooled => {
                let pooled = text.pooled.as_deref().unwrap_or_default();
                (vec![batch, pooled.len()], tiled(pooled))
            }
            Role::SizeIds => {
                let ids = [height_px, width_px, 0.0, 0.0, height_px, width_px];
                let ids = &ids[..fixed(1).unwrap_or(ids.len()).min(ids.len())];
                (vec![batch, ids.len()], ids.repeat(batch))
            }
            Role::GuidanceEmbedding => {
                let embedding = embedding(manifest.defaults.guidance, fixed(1).unwrap_or_default());
                (vec![batch, embedding.len()], embedding.repeat(batch))
            }
            Role::ClassLabels => (vec![batch], vec![0.0; batch]),
            _ => continue,
        };
        feeds.push(Feed::of(port, &dims, numbers)?);
    }
    Ok(feeds)
}

/// Latents of the variance that the U-Net is trained to give, or a picture of noise.
fn vae_feeds(part: &Part, manifest: &Manifest) -> Result<Vec<Feed>, Error> {
    let signature = part.signature();
    let mut feeds = constants(signature, 1, 0)?;
    if let Some(port) = signature.input(Role::Latents) {
        let (shape, _) = sizes(port, manifest)?;
        let batch = batch(port);
        let dims = [batch, shape.channels, shape.height_cells, shape.width_cells];
        let latents = noise(batch * shape.len()).into_iter();
        let latents = latents.map(|x| x / manifest.latents.scale + manifest.latents.shift);
        feeds.push(Feed::of(port, &dims, latents)?);
    }
    if let Some(port) = signature.input(Role::Picture) {
        let (_, size) = sizes(port, manifest)?;
        let dims = [batch(port), 3, size.height_px() as usize, size.width_px() as usize];
        let picture = noise(dims.iter().product()).into_iter().map(|x| (x / 2.0).clamp(-1.0, 1.0));
        feeds.push(Feed::of(port, &dims, picture)?);
    }
    Ok(feeds)
}

/// The sizes of latents and picture for an input: those of the model's default picture, but for [`MOST_CELLS`].
fn sizes(port: &Port, manifest: &Manifest) -> Result<(LatentShape, PixelSize), Error> {
    let default = manifest.latents.shape(manifest.defaults.size)?;
    let is_fixed = port.dims[2..].iter().any(|dim| matches!(dim, Dim::Fixed(_)));
    let side_px = |cells: usize, default_px: u32| match cells > MOST_CELLS && !is_fixed {
        true => MOST_CELLS as u32 * manifest.latents.factor_px,
        false => default_px,
    };
    let size = PixelSize::new(
        side_px(default.width_cells, manifest.defaults.size.width_px()),
        side_px(default.height_cells, manifest.defaults.size.height_px()),
    )?;
    Ok((manifest.latents.shape(size)?, size))
}

/// How many pictures a graph takes at once, at least.
fn batch(port: &Port) -> usize {
    runs(port, 1, 1)[0].len()
}

fn noise(count: usize) -> Vec<f64> {
    let mut noise = vec![0.0; count];
    TorchCpu::new(SEED).fill_normal(&mut noise);
    noise.into_iter().map(f64::from).collect()
}

/// `|got - expected| / |expected|`; 0 when both are nothing.
fn relative_error(expected: &[f32], got: &[f32]) -> Result<f64, String> {
    if expected.len() != got.len() {
        return Err(format!("expected {} numbers, got {}", expected.len(), got.len()));
    }
    for (whose, values) in [("the source", expected), ("the packed model", got)] {
        if let Some(value) = values.iter().find(|value| !value.is_finite()) {
            return Err(format!("expected finite numbers of {whose}, got {value}"));
        }
    }
    let length = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>().sqrt();
    let (expected, got) = (|| expected.iter().map(|x| f64::from(*x)), got.iter().map(|x| f64::from(*x)));
    let difference = length(&mut expected().zip(got).map(|(expected, got)| got - expected));
    Ok(if difference == 0.0 { 0.0 } else { difference / length(&mut expected()) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_is_relative_to_the_source() {
        assert_eq!(relative_error(&[3.0, 4.0], &[3.0, 4.0]), Ok(0.0));
        assert_eq!(relative_error(&[3.0, 4.0], &[3.0, 4.5]), Ok(0.1));
        assert_eq!(relative_error(&[3.0, 4.0], &[0.0, 0.0]), Ok(1.0));
        assert_eq!(relative_error(&[0.0], &[0.0]), Ok(0.0));
        assert_eq!(relative_error(&[0.0], &[1.0]), Ok(f64::INFINITY));
    }

    #[test]
    fn what_is_no_number_has_no_error() {
        assert_eq!(relative_error(&[1.0], &[]).unwrap_err(), "expected 1 numbers, got 0");
        let refusal = relative_error(&[f32::NAN], &[1.0]).unwrap_err();
        assert_eq!(refusal, "expected finite numbers of the source, got NaN");
        let refusal = relative_error(&[1.0], &[f32::INFINITY]).unwrap_err();
        assert_eq!(refusal, "expected finite numbers of the packed model, got inf");
    }
}
