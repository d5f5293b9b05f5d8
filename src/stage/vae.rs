//! The VAE decoder: latents become pictures.

use image::RgbImage;

use crate::bundle::Bundle;
use crate::engine::{Session, SessionOptions, TensorRef};
use crate::tensor::{LatentShape, PixelSize};
use crate::{Error, ErrorKind};

/// A model's VAE decoder.
pub(crate) struct VaeDecoder {
    session: Session,
    scale: f64,
}

impl VaeDecoder {
    pub(crate) fn open(bundle: &Bundle, options: &SessionOptions) -> Result<Self, Error> {
        let manifest = bundle.manifest();
        let session = Session::open(bundle.bind("vae_decoder", &manifest.components.vae_decoder)?, options)?;
        Ok(Self { session, scale: manifest.latents.scale })
    }

    /// Decodes the latents of one picture. [`ErrorKind::Numeric`] for a pixel that is not a number.
    pub(crate) fn decode(
        &mut self,
        latents: &[f32],
        shape: LatentShape,
        size: PixelSize,
    ) -> Result<RgbImage, Error> {
        let unscaled: Vec<f32> = latents.iter().map(|x| (f64::from(*x) / self.scale) as f32).collect();
        let (width, height) = (size.width_px() as usize, size.height_px() as usize);
        let mut planes = vec![0.0; 3 * width * height];
        let dims = [1, shape.channels, shape.height_cells, shape.width_cells];
        let input = [("latent_sample", TensorRef::new(&dims, &unscaled[..]))];
        self.session.run(&input, &mut [("sample", &mut planes)])?;
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
