//! The start of a run: the latents that its first step takes, and what the U-Net sees of an image beside them. It knows
//! in which order diffusers' pipelines draw their noise, and nothing of how an image is asked for.

use image::{GrayImage, RgbImage};

use super::vae::VaeEncoder;
use crate::manifest::{Conditions, LowRes, Manifest};
use crate::noise::{NoiseSource, slerp};
use crate::noise_model::NoiseModel;
use crate::request::{Request, Source, Variation, WHITE};
use crate::tile::Tile;
use crate::{Error, ErrorKind};

/// What a run starts with.
pub(crate) struct Start {
    /// `[channels, rows, columns]`
    pub(crate) latents: Vec<f32>,
    /// Extra input channels of the U-Net, concatenated with the latents, `[channels, rows, columns]`; empty for most models.
    pub(crate) concat_latents: Vec<f32>,
    /// Inpainting with a U-Net that has no mask input.
    pub(crate) blend: Option<InpaintBlend>,
    /// The latents of the init image, where the run starts from it.
    pub(crate) clean: Option<Vec<f32>>,
}

/// Inpainting with any U-Net: after every step the area outside of the mask is the init image again (Avrahami et al. 2023, "Blended
/// latent diffusion", algorithm 1; Lugmayr et al. 2022, equation 8). With a soft mask the area changes from step to step (Levin
/// & Fried 2023, "Differential diffusion", algorithm 1).
pub(crate) struct InpaintBlend {
    /// Per latent value, before how many of the run's steps it is the init image's.
    kept_steps: Vec<usize>,
    clean: Vec<f32>,
    noise: Vec<f32>,
    model: NoiseModel,
}

impl InpaintBlend {
    /// Replaces latents outside of the mask by the init image's, at the noise level to which the first `done` steps have led.
    pub(crate) fn apply(&self, latents: &mut [f32], done: usize, sigma: f64) {
        let blend = self.kept_steps.iter().zip(&self.clean).zip(&self.noise);
        for (latent, ((&kept_steps, &clean), &noise)) in latents.iter_mut().zip(blend) {
            if done < kept_steps {
                *latent = self.model.mixed(clean, noise, sigma);
            }
        }
    }
}

impl Start {
    pub(crate) fn new(
        request: &Request,
        manifest: &Manifest,
        encoder: Option<&mut VaeEncoder>,
        tile: Option<Tile>,
        noise: &mut dyn NoiseSource,
    ) -> Result<Self, Error> {
        let mut scratch = Scratch { request, manifest, encoder, tile, noise };
        match &request.source {
            Source::Noise => {
                let noise = scratch.draw_first()?;
                Ok(Self {
                    latents: scratch.alone(&noise),
                    concat_latents: Vec::new(),
                    blend: None,
                    clean: None,
                })
            }
            // StableDiffusionImg2ImgPipeline and StableDiffusionXLImg2ImgPipeline
            Source::Init(init) => {
                let clean = scratch.sample(planes(init.get()?, |_, _| true))?;
                let noise = scratch.draw_first()?;
                let latents = scratch.noised(&clean, &noise)?;
                Ok(Self { latents, concat_latents: Vec::new(), blend: None, clean: Some(clean) })
            }
            // StableDiffusionInpaintPipeline and StableDiffusionXLInpaintPipeline
            Source::Masked { images, starts_from_noise, is_soft, .. } => {
                let (init, mask) = (images.init()?, images.mask()?);
                if *is_soft {
                    return scratch.soft(init, mask);
                }
                let sees_mask = manifest.conditions == Conditions::Inpainting;
                let needs_clean = !(sees_mask && *starts_from_noise);
                let clean = needs_clean.then(|| scratch.sample(planes(init, |_, _| true))).transpose()?;
                let noise = scratch.draw_first()?;
                let latents = match &clean {
                    Some(clean) if !starts_from_noise => scratch.noised(clean, &noise)?,
                    _ => scratch.alone(&noise),
                };
                let is_white = |x, y| mask.get_pixel(x, y).0[0] >= WHITE;
                let cells = scratch.cells(mask);
                match clean {
                    Some(clean) if !sees_mask => {
                        scratch.skip_sample();
                        let of_cell = |white: &bool| if *white { 0 } else { usize::MAX };
                        let kept_steps = cells.iter().map(of_cell).cycle().take(clean.len()).collect();
                        let model = manifest.noise.clone();
                        let blend = InpaintBlend { kept_steps, clean: clean.clone(), noise, model };
                        Ok(Self {
                            latents,
                            concat_latents: Vec::new(),
                            blend: Some(blend),
                            clean: Some(clean),
                        })
                    }
                    clean => {
                        let mut concat_latents: Vec<f32> =
                            cells.iter().map(|&white| f32::from(u8::from(white))).collect();
                        concat_latents.extend(scratch.sample(planes(init, |x, y| !is_white(x, y)))?);
                        Ok(Self { latents, concat_latents, blend: None, clean })
                    }
                }
            }
            Source::Latents(clean) => {
                let noise = scratch.draw_first()?;
                let latents = scratch.noised(clean, &noise)?;
                Ok(Self { latents, concat_latents: Vec::new(), blend: None, clean: Some(clean.to_vec()) })
            }
            Source::Extended { .. } | Source::Hires { .. } => Err(Error::new(
                ErrorKind::Internal,
                "request: expected the image of an earlier round, got none",
            )),
            // StableDiffusionInstructPix2PixPipeline
            Source::Edited(init) => {
                let planes = planes(init.get()?, |_, _| true);
                let tile = scratch.tile;
                let encoder = scratch.encoder()?;
                let concat_latents = encoder.encode(&planes, request.size, request.shape, tile)?.mode();
                let noise = scratch.draw_first()?;
                Ok(Self { latents: scratch.alone(&noise), concat_latents, blend: None, clean: None })
            }
            // StableDiffusionUpscalePipeline
            Source::Enlarged { init, level } => {
                let concat_latents = scratch.enlarged(planes(init.get()?, |_, _| true), *level)?;
                let noise = scratch.draw_first()?;
                Ok(Self { latents: scratch.alone(&noise), concat_latents, blend: None, clean: None })
            }
        }
    }
}

/// What every start is made with.
struct Scratch<'a> {
    request: &'a Request,
    manifest: &'a Manifest,
    encoder: Option<&'a mut VaeEncoder>,
    /// Of what the encoder encodes.
    tile: Option<Tile>,
    noise: &'a mut dyn NoiseSource,
}

impl Scratch<'_> {
    /// A small image with noise of this level, for a U-Net that enlarges it.
    fn enlarged(&mut self, mut planes: Vec<f32>, level: usize) -> Result<Vec<f32>, Error> {
        let mut noise = vec![0.0; planes.len()];
        self.noise.fill_normal(&mut noise);
        let LowRes { curve, .. } = self.manifest.low_res.as_ref().ok_or_else(|| {
            Error::new(ErrorKind::Internal, "request: expected one for this model, got one for an upscaler")
        })?;
        let sigma = curve.sigma_of_timestep(level as f64);
        // Not added as to latents: the sum keeps its variance (Ho et al. 2020, equation 4).
        let alpha = 1.0 / sigma.hypot(1.0);
        for (x, noise) in planes.iter_mut().zip(noise) {
            *x = (alpha * (f64::from(*x) + sigma * f64::from(noise))) as f32;
        }
        Ok(planes)
    }

    /// Fresh noise, of the latents' size.
    fn draw(&mut self) -> Vec<f32> {
        let mut noise = vec![0.0; self.request.shape.len()];
        self.noise.fill_normal(&mut noise);
        noise
    }

    /// The noise that the run starts from, with some of another seed's where that is asked for.
    fn draw_first(&mut self) -> Result<Vec<f32>, Error> {
        let mut noise = self.draw();
        if let Some(Variation { seed, strength }) = self.request.variation {
            let mut other = vec![0.0; noise.len()];
            self.request.rng.source(seed)?.fill_normal(&mut other);
            slerp(&mut noise, &other, self.request.shape, strength);
        }
        Ok(noise)
    }

    /// Latents of noise alone, as the first step takes them.
    fn alone(&self, noise: &[f32]) -> Vec<f32> {
        let scale = self.request.schedule.initial_scale();
        noise.iter().map(|&noise| (f64::from(noise) * scale) as f32).collect()
    }

    /// Clean latents with noise, as the first step takes them.
    fn noised(&self, clean: &[f32], noise: &[f32]) -> Result<Vec<f32>, Error> {
        let mut latents = vec![0.0; clean.len()];
        let sigma = self.request.schedule.steps()[0].from;
        self.manifest.noise.add_noise(clean, noise, sigma, &mut latents)?;
        Ok(latents)
    }

    fn encoder(&mut self) -> Result<&mut VaeEncoder, Error> {
        self.encoder.as_deref_mut().ok_or_else(|| {
            Error::new(ErrorKind::Internal, "vae_encoder: expected one for the init image, got none")
        })
    }

    /// Latents of an image as the U-Net takes them, drawn from the VAE's distribution where it gives one.
    fn sample(&mut self, planes: Vec<f32>) -> Result<Vec<f32>, Error> {
        let (request, space) = (self.request, &self.manifest.latents);
        let tile = self.tile;
        let posterior = self.encoder()?.encode(&planes, request.size, request.shape, tile)?;
        Ok(space.scaled(posterior.sample(self.noise)))
    }

    /// The start of a run whose mask has greys: of the init image with noise, everywhere. A cell is repainted before the step of
    /// this number, of all that the recipe has, when its mask is at least `1 - number / steps`, as diffusers' community pipeline
    /// `pipeline_stable_diffusion_xl_differential_img2img` takes a map that is white where the image stays.
    fn soft(&mut self, init: &RgbImage, mask: &GrayImage) -> Result<Start, Error> {
        let clean = self.sample(planes(init, |_, _| true))?;
        let noise = self.draw_first()?;
        let latents = self.noised(&clean, &noise)?;
        let steps = self.request.steps_asked() as f64;
        // The number of steps with `number / steps < 1 - mask`.
        let of_cell = |white: f64| (steps * (1.0 - white)).ceil() as usize;
        let kept_steps: Vec<usize> = self.greys(mask).into_iter().map(of_cell).collect();
        let kept_steps = kept_steps.iter().copied().cycle().take(clean.len()).collect();
        let model = self.manifest.noise.clone();
        let blend = InpaintBlend { kept_steps, clean: clean.clone(), noise, model };
        Ok(Start { latents, concat_latents: Vec::new(), blend: Some(blend), clean: Some(clean) })
    }

    /// Per cell, the mask from 0 to 1 in the middle of it: of the four pixels there, as a bilinear filter that is not widened
    /// takes it, or of the one.
    fn greys(&self, mask: &GrayImage) -> Vec<f64> {
        let shape = self.request.shape;
        let factor_px = mask.width() / shape.width_cells as u32;
        let (first, last) = ((factor_px - 1) / 2, factor_px / 2);
        let grey = |x: usize, y: usize| {
            let (x, y) = (x as u32 * factor_px, y as u32 * factor_px);
            let corners = [(first, first), (last, first), (first, last), (last, last)];
            let sum: u32 =
                corners.iter().map(|(dx, dy)| u32::from(mask.get_pixel(x + dx, y + dy).0[0])).sum();
            f64::from(sum) / (4.0 * 255.0)
        };
        (0..shape.height_cells).flat_map(|y| (0..shape.width_cells).map(move |x| grey(x, y))).collect()
    }

    /// Draws what [`Scratch::sample`] would: diffusers also encodes the masked image where nothing sees it.
    fn skip_sample(&mut self) {
        if self.encoder.as_ref().is_some_and(|encoder| encoder.is_random()) {
            self.draw();
        }
    }

    /// Per cell, whether the mask is white: that of its first pixel, as diffusers takes it.
    fn cells(&self, mask: &GrayImage) -> Vec<bool> {
        let shape = self.request.shape;
        let factor_px = mask.width() / shape.width_cells as u32;
        let white =
            |x: usize, y: usize| mask.get_pixel(x as u32 * factor_px, y as u32 * factor_px).0[0] >= WHITE;
        (0..shape.height_cells).flat_map(|y| (0..shape.width_cells).map(move |x| white(x, y))).collect()
    }
}

/// An image as `[3, height, width]` in -1..=1, and 0, which is grey, where it is not to be seen.
pub(crate) fn planes(image: &RgbImage, is_seen: impl Fn(u32, u32) -> bool) -> Vec<f32> {
    let pixels = (image.width() * image.height()) as usize;
    let mut planes = vec![0.0; 3 * pixels];
    for (at, (x, y, pixel)) in image.enumerate_pixels().enumerate() {
        if is_seen(x, y) {
            for (channel, byte) in pixel.0.into_iter().enumerate() {
                planes[channel * pixels + at] = 2.0 * (f32::from(byte) / 255.0) - 1.0;
            }
        }
    }
    planes
}
