//! The VAE: latents become images, and images latents.

use std::sync::Arc;

use image::RgbImage;

use super::component::{Component, Precise};
use super::feed::{Feed, compute, constants};
use super::tile::{Halves, Planes};
use super::trial;
use crate::engine::{Output, Placement, Providers, Session, SessionOptions};
use crate::manifest::LatentSpace;
use crate::model::{Model, PreviewDecoder};
use crate::noise::NoiseSource;
use crate::recipe::Retry;
use crate::signature::{Role, Signature};
use crate::tensor::{LatentShape, PixelSize};
use crate::tile::Tile;
use crate::{Error, ErrorKind};

/// A model's VAE decoder.
pub(crate) struct VaeDecoder {
    component: Component,
    space: LatentSpace,
}

impl VaeDecoder {
    pub(crate) fn open(model: &Model, options: SessionOptions) -> Result<Self, Error> {
        let part = model.vae_decoder();
        let trial = trial::of(model, part, &options);
        let component = Component::open(part, options, trial)?;
        Ok(Self { component, space: model.manifest().latents.clone() })
    }

    /// The decoder of a model's previews, if it has one, which is opened when it is first needed.
    pub(crate) fn of_previews(model: &Model, options: SessionOptions) -> Option<Self> {
        let PreviewDecoder { part, latents } = model.preview_decoder()?;
        let options = SessionOptions { providers: Providers::default(), ..options };
        Some(Self { component: Component::new(part, options, None), space: latents.clone() })
    }

    /// Reduces memory until [`VaeDecoder::use_plan`], for latents of this shape in tiles of the size that it gives,
    /// if it can run in tiles.
    pub(crate) fn reduce_memory(&mut self, shape: LatentShape) -> Option<Tile> {
        self.component.reduce_memory();
        if !self.component.is_streamed() {
            return None;
        }
        let tile = Tile::new(REDUCED_CELLS).ok()?;
        let halves = Halves::of_decoder(self.component.part(), shape, self.space.factor_px as usize, tile);
        halves.ok().flatten().map(|_| tile)
    }

    #[cfg(test)]
    #[cfg(feature = "builtin")]
    pub(crate) fn is_streamed(&self) -> bool {
        self.component.is_streamed()
    }

    /// Ends reduced memory and higher precision.
    pub(crate) fn use_plan(&mut self, precise: Option<&Arc<Precise>>) {
        self.component.use_plan(precise);
    }

    /// What is said of it if it is computed in higher precision than planned.
    pub(crate) fn retry(&self) -> Option<Retry> {
        self.component.retry()
    }

    /// Where it runs, once it was needed.
    pub(crate) fn placement(&self) -> Option<&Placement> {
        self.component.placement()
    }

    /// Decodes the latents of one image, in tiles where a size is given and the image is larger; in smaller ones where
    /// there is too little memory, and in higher precision where a pixel is not a number otherwise: [`ErrorKind::Numeric`] for
    /// one that is not even so. [`ErrorKind::Model`] also for a graph that cannot run in tiles.
    pub(crate) fn decode(
        &mut self,
        latents: &[f32],
        shape: LatentShape,
        size: PixelSize,
        mut tile: Option<Tile>,
    ) -> Result<RgbImage, Error> {
        let (width, height) = (size.width_px() as usize, size.height_px() as usize);
        loop {
            let planes = self.planes(latents, shape, size, tile)?;
            let Some(at) = planes.iter().position(|value| !value.is_finite()) else {
                return Ok(RgbImage::from_fn(size.width_px(), size.height_px(), |x, y| {
                    let at = y as usize * width + x as usize;
                    image::Rgb([0, 1, 2].map(|channel| byte(planes[channel * width * height + at])))
                }));
            };
            let (name, y, x) = (self.component.part().name(), at / width % height, at % width);
            let error = Error::new(
                ErrorKind::Numeric,
                format!("{name}: expected finite pixels, got {} at ({x}, {y})", planes[at]),
            );
            // The second time it is an error.
            tile = self.component.raise_precision(error, None)?.or(tile);
        }
    }

    /// The planes of one image.
    fn planes(
        &mut self,
        latents: &[f32],
        shape: LatentShape,
        size: PixelSize,
        tile: Option<Tile>,
    ) -> Result<Vec<f32>, Error> {
        let decoded = self.planes_in(latents, shape, size, tile);
        let side = tile.map_or(usize::MAX, Tile::side_cells);
        match decoded {
            Err(error) if error.kind() == ErrorKind::Memory && side > REDUCED_CELLS => {
                let Some(smaller) = self.reduce_memory(shape) else { return Err(error) };
                tracing::warn!(%error, "low memory: the image is decoded in small tiles");
                self.planes_in(latents, shape, size, Some(smaller))
            }
            decoded => decoded,
        }
    }

    fn planes_in(
        &mut self,
        latents: &[f32],
        shape: LatentShape,
        size: PixelSize,
        tile: Option<Tile>,
    ) -> Result<Vec<f32>, Error> {
        let factor_px = self.space.factor_px;
        let unscaled = self.space.unscaled(latents);
        let (width, height) = (size.width_px() as usize, size.height_px() as usize);
        let mut component = self.component.lease();
        let component = &mut *component;
        let (name, signature) = (component.part().name(), component.part().signature().clone());
        let image = signature.output(Role::Image).expect("no signature without an image");
        let halves = match tile {
            Some(tile) => Halves::of_decoder(component.part(), shape, factor_px as usize, tile)?,
            None => None,
        };
        let planes = match halves {
            Some(halves) => {
                // Its weights are not kept twice.
                component.close();
                let cut = &halves.whole.graph.outputs()[0].name;
                let features = halves.run_whole(component, unscaled, cut)?;
                halves.run_tiles(component, &Planes::of(features)?, &image.name)?
            }
            None => {
                let dims = [1, shape.channels, shape.height_cells, shape.width_cells];
                let decoded = component.run(|session| {
                    run(session, &signature, Role::Latents, &dims, unscaled.clone(), &image.name)
                });
                Planes::of(decoded?)?
            }
        };
        let got = [planes.channels, planes.height, planes.width];
        if got != [3, height, width] {
            return Err(Error::new(
                ErrorKind::Model,
                format!("{name}: expected an image of [3, {height}, {width}], got {got:?}"),
            ));
        }
        Ok(planes.data)
    }
}

/// The side of tiles under memory pressure.
const REDUCED_CELLS: usize = 24;

/// A model's VAE encoder, which is opened when it is first needed.
pub(crate) struct VaeEncoder {
    component: Component,
}

/// The latents that an encoder finds behind an image, not scaled: a normal distribution (Kingma & Welling 2014, section
/// 2.3) or, from an autoencoder without one, its mean alone.
pub(crate) struct Posterior {
    mean: Vec<f32>,
    log_variance: Option<Vec<f32>>,
}

impl Posterior {
    /// The most likely latents.
    pub(crate) fn mode(self) -> Vec<f32> {
        self.mean
    }

    /// Latents drawn from the distribution; where there is none, nothing is drawn.
    pub(crate) fn sample(self, noise: &mut dyn NoiseSource) -> Vec<f32> {
        let Some(log_variance) = self.log_variance else { return self.mean };
        let mut latents = vec![0.0; self.mean.len()];
        noise.fill_normal(&mut latents);
        for ((x, mean), log_variance) in latents.iter_mut().zip(self.mean).zip(log_variance) {
            // The bounds are those between which every such VAE was trained.
            let deviation = (0.5 * f64::from(log_variance).clamp(-30.0, 20.0)).exp();
            *x = (f64::from(mean) + deviation * f64::from(*x)) as f32;
        }
        latents
    }
}

impl VaeEncoder {
    /// The model's, if it has one.
    pub(crate) fn of(model: &Model, options: SessionOptions) -> Option<Self> {
        let part = model.vae_encoder()?;
        let trial = trial::of(model, part, &options);
        Some(Self { component: Component::new(part, options, trial) })
    }

    /// Reduces memory until [`VaeEncoder::use_plan`].
    pub(crate) fn reduce_memory(&mut self) {
        self.component.reduce_memory();
    }

    /// Ends reduced memory and higher precision.
    pub(crate) fn use_plan(&mut self, precise: Option<&Arc<Precise>>) {
        self.component.use_plan(precise);
    }

    /// What is said of it if it is computed in higher precision than planned.
    pub(crate) fn retry(&self) -> Option<Retry> {
        self.component.retry()
    }

    /// Where it runs, once it was needed.
    pub(crate) fn placement(&self) -> Option<&Placement> {
        self.component.placement()
    }

    /// Whether latents are drawn from what it gives.
    pub(crate) fn is_random(&self) -> bool {
        self.component.part().signature().output(Role::Moments).is_some()
    }

    /// Encodes an image, `[3, height, width]` in -1..=1, in tiles where a size is given and the
    /// image is larger, and in higher precision where a latent is not a number otherwise. [`ErrorKind::Model`] for an encoder
    /// that is damaged or unfit, also for tiles; [`ErrorKind::Numeric`] for a latent that is not a number even so.
    pub(crate) fn encode(
        &mut self,
        planes: &[f32],
        size: PixelSize,
        shape: LatentShape,
        mut tile: Option<Tile>,
    ) -> Result<Posterior, Error> {
        loop {
            let mut found = self.encode_in(planes, size, shape, tile)?;
            let Some(value) = found.iter().find(|value| !value.is_finite()) else {
                let log_variance = self.is_random().then(|| found.split_off(shape.len()));
                return Ok(Posterior { mean: found, log_variance });
            };
            let message = format!("vae_encoder: expected finite latents, got {value}");
            // The second time it is an error.
            let error = Error::new(ErrorKind::Numeric, message);
            tile = self.component.raise_precision(error, None)?.or(tile);
        }
    }

    fn encode_in(
        &mut self,
        planes: &[f32],
        size: PixelSize,
        shape: LatentShape,
        tile: Option<Tile>,
    ) -> Result<Vec<f32>, Error> {
        let is_random = self.is_random();
        let mut component = self.component.lease();
        let component = &mut *component;
        let signature = component.part().signature().clone();
        let role = if is_random { Role::Moments } else { Role::Latents };
        let output = signature.output(role).ok_or_else(|| {
            Error::new(
                ErrorKind::Model,
                "vae_encoder: expected an output of latents or their moments, got none",
            )
        })?;
        let LatentShape { channels, height_cells, width_cells } = shape;
        let (width, height) = (size.width_px() as usize, size.height_px() as usize);
        let halves = match tile {
            Some(tile) => Halves::of_encoder(component.part(), shape, width / width_cells, tile)?,
            None => None,
        };
        let found = match halves {
            Some(halves) => {
                // Its weights are not kept twice.
                component.close();
                let image = Planes { channels: 3, height, width, data: planes.to_vec() };
                let cut = &halves.tile.graph.outputs()[0].name;
                let features = halves.run_tiles(component, &image, cut)?.data;
                let features = features.iter().map(|&x| f64::from(x));
                halves.run_whole(component, features, &output.name)?
            }
            None => {
                let (dims, numbers) = ([1, 3, height, width], planes.iter().map(|&x| f64::from(x)));
                component.run(|session| {
                    run(session, &signature, Role::Image, &dims, numbers.clone(), &output.name)
                })?
            }
        };
        let channels = if is_random { 2 * channels } else { channels };
        if found.shape != [1, channels, height_cells, width_cells] {
            return Err(Error::new(
                ErrorKind::Model,
                format!(
                    "vae_encoder: expected {} of [1, {channels}, {height_cells}, {width_cells}], got {:?}",
                    output.name, found.shape
                ),
            ));
        }
        Ok(found.data)
    }
}

/// A value of -1..=1 as a byte; what the decoder draws beyond is as bright or dark as bytes can be.
fn byte(value: f32) -> u8 {
    ((value / 2.0 + 0.5).clamp(0.0, 1.0) * 255.0).round_ties_even() as u8
}

/// One run on one input of numbers, beside what is always fed.
fn run(
    session: &mut Session,
    signature: &Signature,
    role: Role,
    shape: &[usize],
    numbers: impl Iterator<Item = f64>,
    output: &str,
) -> Result<Output, Error> {
    let port = signature.input(role).expect("no signature without its input");
    let mut feeds = constants(signature, 1, 0)?;
    feeds.push(Feed::of(port, shape, numbers)?);
    Ok(compute(session, &mut feeds, &[output])?.remove(0))
}

#[cfg(test)]
#[cfg(feature = "builtin")]
mod tests {
    use super::*;

    const FACTOR_PX: usize = 16;

    /// What the built-in model draws at its best: flat colours, edges, a shade.
    fn image(width: usize, height: usize) -> Vec<f32> {
        let value = |at: usize| {
            let (channel, row, column) = (at / (width * height), at / width % height, at % width);
            let (x, y) = (column as f32 / 64.0 - 2.0, row as f32 / 64.0 - 2.0);
            let is_disc = x.rem_euclid(3.0).powi(2) + y * y < 1.0;
            let shade = 0.4 * (x + y).sin();
            if is_disc { [0.8, -0.6, -0.4][channel] + 0.2 * shade } else { [-0.2, 0.3, 0.7][channel] + shade }
        };
        (0..3 * width * height).map(value).collect()
    }

    fn psnr_db(got: &[f32], expected: &[f32], range: f64) -> f64 {
        let squares = got.iter().zip(expected).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2));
        10.0 * (range * range / (squares.sum::<f64>() / got.len() as f64)).log10()
    }

    fn floats(image: &RgbImage) -> Vec<f32> {
        image.iter().map(|&byte| f32::from(byte)).collect()
    }

    /// The built-in model's encoder and decoder, without norms, in tiles as they are whole.
    #[test]
    fn tiles_of_the_built_in_model() {
        let model = Model::built_in().unwrap();
        let options = SessionOptions::new(std::num::NonZeroUsize::MIN);
        let mut encoder = VaeEncoder::of(&model, options.clone()).unwrap();
        let mut decoder = VaeDecoder::open(&model, options).unwrap();
        let LatentSpace { channels, scale, shift, .. } = model.manifest().latents;
        for (height_cells, width_cells, side) in [(16, 16, 12), (12, 29, 12), (25, 25, 16), (32, 32, 24)] {
            let shape = LatentShape { channels, height_cells, width_cells };
            let (width, height) = (width_cells * FACTOR_PX, height_cells * FACTOR_PX);
            let size = PixelSize::new(width as u32, height as u32).unwrap();
            let tile = Some(Tile::new(side).unwrap());
            let image = image(width, height);
            let mut encode = |tile| encoder.encode(&image, size, shape, tile).unwrap().mode();
            let (whole, tiled) = (encode(None), encode(tile));
            let encoded = psnr_db(&tiled, &whole, 6.0);
            let latents: Vec<f32> = whole.iter().map(|&x| ((f64::from(x) - shift) * scale) as f32).collect();
            let mut decode = |tile| decoder.decode(&latents, shape, size, tile).unwrap();
            let (whole, tiled) = (decode(None), decode(tile));
            let decoded = psnr_db(&floats(&tiled), &floats(&whole), 255.0);
            assert!(encoded >= 45.0, "{width}x{height} in {side}: encoded {encoded:.1} dB");
            assert!(decoded >= 50.0, "{width}x{height} in {side}: decoded {decoded:.1} dB");
        }
    }

    #[test]
    fn an_image_of_one_tile_is_whole() {
        let model = Model::built_in().unwrap();
        let options = SessionOptions::new(std::num::NonZeroUsize::MIN);
        let mut decoder = VaeDecoder::open(&model, options).unwrap();
        let shape = LatentShape { channels: 16, height_cells: 12, width_cells: 8 };
        let size = PixelSize::new(128, 192).unwrap();
        let latents: Vec<f32> = (0..shape.len()).map(|at| (at as f32).sin()).collect();
        let tiled = decoder.decode(&latents, shape, size, Some(Tile::new(12).unwrap())).unwrap();
        assert_eq!(tiled, decoder.decode(&latents, shape, size, None).unwrap());
    }

    #[test]
    fn what_is_no_number_is_named_with_its_place_in_the_whole_image() {
        let model = Model::built_in().unwrap();
        let options = SessionOptions::new(std::num::NonZeroUsize::MIN);
        let mut decoder = VaeDecoder::open(&model, options).unwrap();
        let shape = LatentShape { channels: 16, height_cells: 40, width_cells: 40 };
        let size = PixelSize::new(640, 640).unwrap();
        let mut latents = vec![0.1; shape.len()];
        latents[35 * 40 + 36] = f32::NAN;
        let error = decoder.decode(&latents, shape, size, Some(Tile::new(12).unwrap())).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Numeric);
        let message = error.to_string();
        let place = message.strip_prefix("vae_decoder: expected finite pixels, got NaN at (").unwrap();
        let (x, y) = place.strip_suffix(')').unwrap().split_once(", ").unwrap();
        let (x, y): (usize, usize) = (x.parse().unwrap(), y.parse().unwrap());
        // It spreads by less than a tile, from near the end of the image.
        assert!((320..640).contains(&x) && (320..640).contains(&y), "{message}");
    }
}
