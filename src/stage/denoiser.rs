//! The denoiser: the U-Net, its prediction made guided and clean, as samplers want it.

use std::time::{Duration, Instant};

use super::feed::{Feed, constants, runs};
use super::text_encoder::Conditioning;
use crate::engine::{Session, SessionOptions, TensorRef};
use crate::graph::{Dim, Port};
use crate::guidance::{self, Guidance};
use crate::model::Model;
use crate::prediction::Prediction;
use crate::sampler::Denoise;
use crate::signature::{Role, Signature};
use crate::tensor::{LatentShape, PixelSize};
use crate::{Error, ErrorKind};

/// The most inputs of any U-Net that a [`Signature`] describes.
const MAX_INPUTS: usize = 16;

/// A model's U-Net.
pub(crate) struct Denoiser {
    session: Session,
    signature: Signature,
    prediction: Prediction,
}

impl Denoiser {
    pub(crate) fn open(model: &Model, options: &SessionOptions) -> Result<Self, Error> {
        let part = model.unet();
        let signature = part.signature().clone();
        if signature.inputs.len() > MAX_INPUTS {
            return Err(unfit(format!("at most {MAX_INPUTS} inputs, got {}", signature.inputs.len())));
        }
        let session = Session::open(part.bind()?, options)?;
        Ok(Self { session, signature, prediction: model.manifest().prediction })
    }

    /// The U-Net for one run. `conditioning` holds what it is told of the prompt, after what it is told of the negative
    /// prompt where there is guidance.
    pub(crate) fn guided<'a>(
        &'a mut self,
        conditioning: &Conditioning,
        guidance: Guidance,
        shape: LatentShape,
        size: PixelSize,
    ) -> Result<GuidedDenoiser<'a>, Error> {
        let signature = &self.signature;
        let latents = signature.input(Role::Latents).expect("no signature without latents");
        let groups = runs(latents, conditioning.shape[0]);
        let runs = groups
            .into_iter()
            .map(|members| Run::new(signature, conditioning, guidance, shape, size, members));
        let runs = runs.collect::<Result<Vec<Run>, Error>>()?;
        let output = &signature.output(Role::Latents).expect("no signature without a prediction").name;
        Ok(GuidedDenoiser {
            session: &mut self.session,
            prediction: self.prediction,
            output,
            runs,
            guidance,
            predictions: vec![0.0; conditioning.shape[0] * shape.len()],
            guided: vec![0.0; shape.len()],
            spent: Duration::ZERO,
        })
    }
}

/// A denoiser for one run, with all the memory that its steps need.
pub(crate) struct GuidedDenoiser<'a> {
    session: &'a mut Session,
    prediction: Prediction,
    /// The name of the U-Net's output.
    output: &'a str,
    runs: Vec<Run>,
    guidance: Guidance,
    /// One prediction, or the unconditional one before the conditional.
    predictions: Vec<f32>,
    guided: Vec<f32>,
    spent: Duration,
}

/// One call of the U-Net per step: all predictions at once where the graph allows it.
struct Run {
    /// The first two are the latents and the timestep, which every step sets anew.
    feeds: Vec<Feed>,
    /// Per picture of the batch, which prediction it is.
    members: Vec<usize>,
    output: Vec<f32>,
}

impl Run {
    fn new(
        signature: &Signature,
        conditioning: &Conditioning,
        guidance: Guidance,
        shape: LatentShape,
        size: PixelSize,
        members: Vec<usize>,
    ) -> Result<Self, Error> {
        let batch = members.len();
        let input = |role: Role| signature.input(role).expect("no signature without it");
        let timestep = input(Role::Timestep);
        let mut feeds = vec![
            Feed::zeros(
                input(Role::Latents),
                &[batch, shape.channels, shape.height_cells, shape.width_cells],
            )?,
            Feed::zeros(timestep, &timestep_shape(timestep, batch))?,
        ];
        let of_members = |values: &[f32]| {
            let one = values.len() / conditioning.shape[0];
            members
                .iter()
                .flat_map(|&member| &values[member * one..][..one])
                .map(|&x| f64::from(x))
                .collect::<Vec<_>>()
        };
        let [_, tokens, width] = conditioning.shape;
        let states = of_members(&conditioning.states);
        feeds.push(Feed::of(input(Role::States), &[batch, tokens, width], states)?);
        for port in signature.inputs.iter() {
            let (role, port) = (port.role, &port.port);
            match role {
                Role::Pooled => {
                    let pooled = conditioning
                        .pooled
                        .as_ref()
                        .ok_or_else(|| unfit("a text encoder that pools the prompt, got none".into()))?;
                    let width = pooled.len() / conditioning.shape[0];
                    feeds.push(Feed::of(port, &[batch, width], of_members(pooled))?);
                }
                Role::SizeIds => {
                    let ids = size_ids(port, size)?;
                    let numbers = members.iter().flat_map(|_| &ids).copied().collect::<Vec<_>>();
                    feeds.push(Feed::of(port, &[batch, ids.len()], numbers)?);
                }
                Role::GuidanceEmbedding => {
                    let width = fixed(port, 1)
                        .ok_or_else(|| unfit(format!("a guidance embedding of fixed width, got {port}")))?;
                    let one = guidance::embedding(guidance.scale(), width);
                    let numbers = members.iter().flat_map(|_| &one).copied().collect::<Vec<_>>();
                    feeds.push(Feed::of(port, &[batch, width], numbers)?);
                }
                Role::ClassLabels => {
                    return Err(unfit(
                        "a model that draws from a prompt alone, got one that enlarges pictures".into(),
                    ));
                }
                _ => {}
            }
        }
        feeds.extend(constants(signature, batch, tokens)?);
        Ok(Self { feeds, output: vec![0.0; batch * shape.len()], members })
    }
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
        for run in &mut self.runs {
            let latents = run.members.iter().flat_map(|_| x).map(|&x| f64::from(x) * scale);
            run.feeds[0].fill(latents);
            run.feeds[1].fill(std::iter::repeat(timestep));
            let started = Instant::now();
            let mut inputs = [("", TensorRef::new(&[], &[] as &[f32])); MAX_INPUTS];
            inputs.iter_mut().zip(&run.feeds).for_each(|(input, feed)| *input = feed.input());
            self.session.run(&inputs[..run.feeds.len()], &mut [(self.output, &mut run.output)])?;
            self.spent += started.elapsed();
            for (prediction, &member) in run.output.chunks_exact(x.len()).zip(&run.members) {
                self.predictions[member * x.len()..][..x.len()].copy_from_slice(prediction);
            }
        }
        let prediction = match self.predictions.split_at(x.len()) {
            (prediction, []) => prediction,
            (uncond, cond) => {
                self.guidance.combine(uncond, cond, &mut self.guided);
                &self.guided
            }
        };
        self.prediction.to_denoised(x, prediction, sigma, out);
        Ok(())
    }
}

/// The shape of a timestep for a batch: graphs want none, one, one per picture, or a column.
fn timestep_shape(port: &Port, batch: usize) -> Vec<usize> {
    let size = |(axis, dim): (usize, &Dim)| match dim {
        Dim::Fixed(size) => *size,
        // `steps` is what optimum once called it; the graph repeats a single one for the batch.
        Dim::Free(name) if axis > 0 || name == "steps" => 1,
        Dim::Free(_) => batch,
    };
    port.dims.iter().enumerate().map(size).collect()
}

/// Stable Diffusion XL's picture of its own size, not cropped, and asked for at that size (Podell et al. 2023, section
/// 2.2): original height and width, top and left, target height and width.
fn size_ids(port: &Port, size: PixelSize) -> Result<Vec<f64>, Error> {
    let (width, height) = (f64::from(size.width_px()), f64::from(size.height_px()));
    match fixed(port, 1) {
        Some(6) | None => Ok(vec![height, width, 0.0, 0.0, height, width]),
        Some(other) => Err(unfit(format!("a model with 6 size ids, got {other}")).help(
            "models with 5, and an aesthetic score, refine pictures; they do not draw from a prompt alone",
        )),
    }
}

fn fixed(port: &Port, axis: usize) -> Option<usize> {
    match port.dims.get(axis) {
        Some(Dim::Fixed(size)) => Some(*size),
        _ => None,
    }
}

fn unfit(expected: String) -> Error {
    Error::new(ErrorKind::Model, format!("unet: expected {expected}"))
}
