//! The denoiser: the U-Net, its prediction made guided and clean, as samplers want it.

use std::time::{Duration, Instant};

use super::text_encoder::Conditioning;
use crate::Error;
use crate::bundle::Bundle;
use crate::engine::{Session, SessionOptions, TensorRef};
use crate::guidance::Guidance;
use crate::prediction::Prediction;
use crate::sampler::Denoise;
use crate::tensor::LatentShape;

/// A model's U-Net.
pub(crate) struct Denoiser {
    session: Session,
    prediction: Prediction,
}

impl Denoiser {
    pub(crate) fn open(bundle: &Bundle, options: &SessionOptions) -> Result<Self, Error> {
        let manifest = bundle.manifest();
        let session = Session::open(bundle.bind("unet", &manifest.components.unet)?, options)?;
        Ok(Self { session, prediction: manifest.prediction })
    }

    /// The U-Net for one run. `conditioning` holds the prompt's states, after the negative prompt's where there is
    /// guidance.
    pub(crate) fn guided<'a>(
        &'a mut self,
        conditioning: &'a Conditioning,
        guidance: Guidance,
        shape: LatentShape,
    ) -> GuidedDenoiser<'a> {
        let calls = conditioning.shape[0];
        GuidedDenoiser {
            denoiser: self,
            conditioning,
            guidance,
            shape: [calls, shape.channels, shape.height_cells, shape.width_cells],
            input: vec![0.0; calls * shape.len()],
            output: vec![0.0; calls * shape.len()],
            guided: vec![0.0; shape.len()],
            spent: Duration::ZERO,
        }
    }
}

/// A denoiser for one run, with all the memory that its steps need.
pub(crate) struct GuidedDenoiser<'a> {
    denoiser: &'a mut Denoiser,
    conditioning: &'a Conditioning,
    guidance: Guidance,
    /// Of the U-Net's input: one picture, or two with guidance.
    shape: [usize; 4],
    input: Vec<f32>,
    output: Vec<f32>,
    guided: Vec<f32>,
    spent: Duration,
}

impl GuidedDenoiser<'_> {
    /// The time spent in the U-Net so far.
    pub(crate) fn spent(&self) -> Duration {
        self.spent
    }
}

impl Denoise for GuidedDenoiser<'_> {
    fn denoise(&mut self, x: &[f32], sigma: f64, timestep: f64, out: &mut [f32]) -> Result<(), Error> {
        let scale = Prediction::input_scale(sigma);
        for copy in self.input.chunks_exact_mut(x.len()) {
            for (input, x) in copy.iter_mut().zip(x) {
                *input = (f64::from(*x) * scale) as f32;
            }
        }
        let timestep = [timestep as f32];
        let inputs = [
            ("sample", TensorRef::new(&self.shape, &self.input[..])),
            ("timestep", TensorRef::new(&[], &timestep[..])),
            (
                "encoder_hidden_states",
                TensorRef::new(&self.conditioning.shape, &self.conditioning.states[..]),
            ),
        ];
        let started = Instant::now();
        self.denoiser.session.run(&inputs, &mut [("out_sample", &mut self.output)])?;
        self.spent += started.elapsed();
        let prediction = match self.guidance {
            Guidance::Off => &self.output,
            Guidance::Cfg { .. } => {
                let (uncond, cond) = self.output.split_at(x.len());
                self.guidance.combine(uncond, cond, &mut self.guided);
                &self.guided
            }
        };
        self.denoiser.prediction.to_denoised(x, prediction, sigma, out);
        Ok(())
    }
}
