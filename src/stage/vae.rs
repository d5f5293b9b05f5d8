//! The VAE: latents become pictures, and pictures latents.

use image::RgbImage;

use super::feed::{Feed, constants};
use crate::engine::{Output, Session, SessionOptions};
use crate::manifest::LatentSpace;
use crate::model::Model;
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
        let session = Session::open(part.bind()?, options)?;
        Ok(Self { session, signature: part.signature().clone(), space: model.manifest().latents })
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
