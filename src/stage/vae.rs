//! The VAE: latents become pictures, and pictures latents.

use image::RgbImage;

use super::feed::{Feed, constants};
use super::trial;
use crate::engine::{Output, Placement, Session, SessionOptions};
use crate::manifest::{LatentSpace, Manifest};
use crate::model::{Model, Part};
use crate::noise::NoiseSource;
use crate::request::Request;
use crate::signature::{Role, Signature};
use crate::tensor::{LatentShape, PixelSize};
use crate::{Error, ErrorKind};

/// A model's VAE decoder.
pub(crate) struct VaeDecoder {
    session: Session,
    signature: Signature,
    space: LatentSpace,
}

impl VaeDecoder {
    pub(crate) fn open(model: &Model, options: &SessionOptions) -> Result<Self, Error> {
        let part = model.vae_decoder();
        let session = trial::open(part, None, model.manifest(), options)?;
        Ok(Self { session, signature: part.signature().clone(), space: model.manifest().latents })
    }

    /// Where it runs.
    pub(crate) fn placement(&self) -> &Placement {
        self.session.placement()
    }

    /// Decodes the latents of one picture. [`ErrorKind::Numeric`] for a pixel that is not a number.
    pub(crate) fn decode(
        &mut self,
        latents: &[f32],
        shape: LatentShape,
        size: PixelSize,
    ) -> Result<RgbImage, Error> {
        let LatentSpace { scale, shift, .. } = self.space;
        let unscaled = latents.iter().map(|x| f64::from(*x) / scale + shift);
        let (width, height) = (size.width_px() as usize, size.height_px() as usize);
        let dims = [1, shape.channels, shape.height_cells, shape.width_cells];
        let picture = self.signature.output(Role::Picture).expect("no signature without a picture");
        let output = run(&mut self.session, &self.signature, Role::Latents, &dims, unscaled, &picture.name)?;
        if output.shape != [1, 3, height, width] {
            return Err(Error::new(
                ErrorKind::Model,
                format!(
                    "vae_decoder: expected a picture of [1, 3, {height}, {width}], got {:?}",
                    output.shape
                ),
            ));
        }
        let planes = output.data;
        if let Some(at) = planes.iter().position(|value| !value.is_finite()) {
            let (y, x) = (at / width % height, at % width);
            return Err(Error::new(
                ErrorKind::Numeric,
                format!("vae_decoder: expected finite pixels, got {} at ({x}, {y})", planes[at]),
            ));
        }
        Ok(RgbImage::from_fn(size.width_px(), size.height_px(), |x, y| {
            let at = y as usize * width + x as usize;
            image::Rgb([0, 1, 2].map(|channel| byte(planes[channel * width * height + at])))
        }))
    }
}

/// A model's VAE encoder, which is opened when it is first needed.
pub(crate) struct VaeEncoder {
    part: Part,
    manifest: Manifest,
    options: SessionOptions,
    session: Option<Session>,
}

/// The latents that an encoder finds behind a picture, not scaled: a normal distribution (Kingma & Welling 2014, section
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
        let manifest = model.manifest().clone();
        model.vae_encoder().map(|part| Self { part: part.clone(), manifest, options, session: None })
    }

    /// Where it runs, once it was needed.
    pub(crate) fn placement(&self) -> Option<&Placement> {
        self.session.as_ref().map(Session::placement)
    }

    /// Whether latents are drawn from what it gives.
    pub(crate) fn is_random(&self) -> bool {
        self.part.signature().output(Role::Moments).is_some()
    }

    /// Encodes a picture, `[3, height, width]` in -1..=1 of the request's size. [`ErrorKind::Model`] for an encoder that
    /// is damaged or unfit; [`ErrorKind::Numeric`] for a latent that is not a number.
    pub(crate) fn encode(&mut self, planes: &[f32], request: &Request) -> Result<Posterior, Error> {
        let (signature, is_random) = (self.part.signature(), self.is_random());
        let role = if is_random { Role::Moments } else { Role::Latents };
        let output = signature.output(role).ok_or_else(|| {
            Error::new(
                ErrorKind::Model,
                "vae_encoder: expected an output of latents or their moments, got none",
            )
        })?;
        let session = match &mut self.session {
            Some(session) => session,
            empty => empty.insert(trial::open(&self.part, None, &self.manifest, &self.options)?),
        };
        let size = request.size;
        let dims = [1, 3, size.height_px() as usize, size.width_px() as usize];
        let numbers = planes.iter().map(|&x| f64::from(x));
        let mut found = run(session, signature, Role::Picture, &dims, numbers, &output.name)?;
        let LatentShape { channels, height_cells, width_cells } = request.shape;
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
        if let Some(value) = found.data.iter().find(|value| !value.is_finite()) {
            return Err(Error::new(
                ErrorKind::Numeric,
                format!("vae_encoder: expected finite latents, got {value}"),
            ));
        }
        let log_variance = is_random.then(|| found.data.split_off(request.shape.len()));
        Ok(Posterior { mean: found.data, log_variance })
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
    let inputs: Vec<_> = feeds.iter().map(Feed::input).collect();
    Ok(session.compute(&inputs, &[output])?.remove(0))
}
