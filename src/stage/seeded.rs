//! Seeded inputs of a component, of its own sizes and kinds: for comparisons, and for trials of providers.
//! They know nothing of what is compared.

use std::iter::repeat_n;

use super::feed::{Feed, constants, residual_shape, runs, timestep_shape};
use super::text_states::TextStates;
use crate::graph::{Dim, Port};
use crate::guidance::embedding;
use crate::manifest::Manifest;
use crate::model::{Part, TextEncoderPart};
use crate::noise::{NoiseSource, TorchCpu};
use crate::prompt::Text;
use crate::signature::{Binding, Role};
use crate::tensor::{LatentShape, PixelSize};
use crate::{Error, ErrorKind};

/// What text encoders are given, by the seed.
pub(crate) const PROMPTS: [&str; 3] = [
    "a photograph of a red fox that sits on a mossy stone in a forest, soft morning light",
    "an oil painting of a ship in a storm",
    "blue",
];
/// The longest side of latents where a graph takes any: enough for thousands of numbers, and a VAE's gigabytes at larger
/// ones would ask for more memory than all of packing.
const MOST_CELLS: usize = 32;
/// The seed of what else a U-Net sees than the latents that it is given.
const SEED_BESIDE: u64 = 7;
/// How many tokens a U-Net is told of that takes any number, where no text is given.
const TOKENS: usize = 24;

/// Inputs of a component; `encoder` is the same one, if it encodes text. A U-Net is told `text` or, without, noise, which
/// makes its inputs its own and no text encoder's.
pub(crate) fn feeds(
    part: &Part,
    encoder: Option<&TextEncoderPart>,
    manifest: &Manifest,
    text: Option<&TextStates>,
    seed: u64,
) -> Result<Vec<Feed>, Error> {
    match (encoder, text) {
        (Some(encoder), _) => text_feeds(encoder, seed),
        (None, Some(text)) if reads(part) => unet_feeds(part, manifest, text, seed),
        (None, None) if reads(part) => unet_feeds(part, manifest, &no_text(part, seed)?, seed),
        (None, _) => vae_feeds(part, manifest, seed),
    }
}

/// Whether a component takes texts' states: a U-Net, or a control network.
fn reads(part: &Part) -> bool {
    part.signature().input(Role::States).is_some()
}

/// Noise in place of a text's states, which have about its variance behind their last norm.
fn no_text(part: &Part, seed: u64) -> Result<TextStates, Error> {
    let fixed = |role: Role, axis: usize| {
        let port = part.signature().input(role)?;
        match port.dims.get(axis) {
            Some(Dim::Fixed(size)) => Some(*size),
            _ => None,
        }
    };
    let width = fixed(Role::States, 2).ok_or_else(|| {
        Error::new(ErrorKind::Model, "unet: expected states of a fixed width, got an input that takes any")
    })?;
    let tokens = fixed(Role::States, 1).unwrap_or(TOKENS);
    // Not the latents' own noise.
    let noise = |count| noise(count, seed + 1).into_iter().map(|x| x as f32).collect();
    Ok(TextStates {
        states: noise(tokens * width),
        tokens,
        pooled: fixed(Role::Pooled, 1).map(noise),
        cut: None,
    })
}

fn text_feeds(encoder: &TextEncoderPart, seed: u64) -> Result<Vec<Feed>, Error> {
    let signature = encoder.signature();
    let port = signature.input(Role::TokenIds).expect("no signature without token ids");
    let context = match port.dims[1] {
        Dim::Fixed(context) => context,
        Dim::Free(_) => encoder.context(),
    };
    let ids = encoder
        .tokenizer(context)?
        .encode(&Text::literal(PROMPTS[seed as usize % PROMPTS.len()])?, 1)?
        .chunks
        .remove(0)
        .ids;
    let batch = batch(port);
    let mut feeds = constants(signature, batch, context)?;
    let numbers = (0..batch).flat_map(|_| &ids).map(|id| *id as f64);
    feeds.push(Feed::of(port, &[batch, context], numbers)?);
    Ok(feeds)
}

/// Noise in the middle of the curve, and the prompt. What else a U-Net takes is of its size and kind, if not what a
/// image would need.
fn unet_feeds(part: &Part, manifest: &Manifest, text: &TextStates, seed: u64) -> Result<Vec<Feed>, Error> {
    let timestep = manifest.noise.middle_timestep();
    feeds_of_unet(part, manifest, text, seed, |count| noise(count, seed), timestep)
}

/// The same with latents of [`size`] as the U-Net takes them, one image, at a timestep.
pub(crate) fn unet_feeds_at(
    part: &Part,
    manifest: &Manifest,
    text: &TextStates,
    latents: &[f64],
    timestep: f64,
) -> Result<Vec<Feed>, Error> {
    // Channels beside the latents, which some U-Nets take, are noise.
    let given = |count: usize| {
        let beside = noise(count.saturating_sub(latents.len()), SEED_BESIDE);
        let image: Vec<f64> = latents.iter().copied().chain(beside).collect();
        image.into_iter().cycle().take(count).collect()
    };
    feeds_of_unet(part, manifest, text, SEED_BESIDE, given, timestep)
}

/// The size of images whose latents [`unet_feeds_at`] takes.
pub(crate) fn size(part: &Part, manifest: &Manifest) -> Result<PixelSize, Error> {
    let latents = part.signature().input(Role::Latents).expect("no signature without latents");
    Ok(sizes(latents, manifest)?.1)
}

fn feeds_of_unet(
    part: &Part,
    manifest: &Manifest,
    text: &TextStates,
    seed: u64,
    noisy: impl Fn(usize) -> Vec<f64>,
    timestep: f64,
) -> Result<Vec<Feed>, Error> {
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
                (dims, noisy(count))
            }
            Role::ControlHint => {
                let dims = residual_shape(port, 1, shape);
                let count = dims.iter().product();
                (dims, noise(count, seed))
            }
            Role::DownResidual(_) | Role::BlockResidual(_) | Role::MiddleResidual => {
                let dims = residual_shape(port, batch, shape);
                let count = dims.iter().product();
                (dims, noise(count, seed))
            }
            Role::Timestep => (timestep_shape(port, batch), vec![timestep; batch]),
            Role::States => (vec![batch, tokens, width], tiled(&text.states)),
            Role::Pooled => {
                let pooled = text.pooled.as_deref().unwrap_or_default();
                (vec![batch, pooled.len()], tiled(pooled))
            }
            Role::TimeIds => {
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

/// Latents of the variance that the U-Net is trained to give, or an image of noise: for a VAE, or a T2I-Adapter.
fn vae_feeds(part: &Part, manifest: &Manifest, seed: u64) -> Result<Vec<Feed>, Error> {
    let signature = part.signature();
    let mut feeds = constants(signature, 1, 0)?;
    if let Some(port) = signature.input(Role::Latents) {
        let (shape, _) = sizes(port, manifest)?;
        let batch = batch(port);
        let dims = [batch, shape.channels, shape.height_cells, shape.width_cells];
        let latents: Vec<f32> = noise(batch * shape.len(), seed).into_iter().map(|x| x as f32).collect();
        let latents = latents.chunks(shape.len()).flat_map(|latents| manifest.latents.unscaled(latents));
        feeds.push(Feed::of(port, &dims, latents)?);
    }
    if let Some(port) = signature.input(Role::Image) {
        let (_, size) = sizes(port, manifest)?;
        let dims = [batch(port), 3, size.height_px() as usize, size.width_px() as usize];
        let image = noise(dims.iter().product(), seed).into_iter().map(|x| (x / 2.0).clamp(-1.0, 1.0));
        feeds.push(Feed::of(port, &dims, image)?);
    }
    if let Some(port) = signature.input(Role::ControlImage) {
        let (_, size) = sizes(port, manifest)?;
        let channels = if port.dims[1] == Dim::Fixed(1) { 1 } else { 3 };
        let dims = [1, channels, size.height_px() as usize, size.width_px() as usize];
        let image = noise(dims.iter().product(), seed).into_iter().map(|x| (x / 4.0 + 0.5).clamp(0.0, 1.0));
        feeds.push(Feed::of(port, &dims, image)?);
    }
    Ok(feeds)
}

/// The sizes of latents and image for an input: those of the model's default image, but for [`MOST_CELLS`].
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

/// How many latent cells the inputs of a component have or become; nothing where it sees no image.
pub(crate) fn cells(part: &Part, manifest: &Manifest) -> Result<Option<usize>, Error> {
    let input = |role| part.signature().input(role);
    let port = input(Role::Latents).or(input(Role::Image)).or(input(Role::ControlImage));
    let cells = |shape: LatentShape| shape.height_cells * shape.width_cells;
    port.map(|port| Ok(cells(sizes(port, manifest)?.0))).transpose()
}

/// How many images a graph takes at once, at least.
fn batch(port: &Port) -> usize {
    runs(port, 1, 1)[0].len()
}

fn noise(count: usize, seed: u64) -> Vec<f64> {
    let mut noise = vec![0.0; count];
    TorchCpu::new(seed).fill_normal(&mut noise);
    noise.into_iter().map(f64::from).collect()
}
