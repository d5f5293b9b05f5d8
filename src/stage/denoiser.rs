//! The denoiser: the U-Net, its prediction made guided and clean, as samplers want it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::feed::{Feed, constants, runs};
use super::text_encoder::{Conditioning, TextStates};
use crate::engine::{Session, SessionOptions, TensorRef};
use crate::graph::{Dim, Port};
use crate::guidance::{self, Guidance};
use crate::model::Model;
use crate::prediction::Prediction;
use crate::request::{Request, Source};
use crate::sampler::Denoise;
use crate::signature::{Role, Signature};
use crate::tensor::PixelSize;
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
    /// prompt where there is guidance; `beside` is what it sees beside the latents, `[channels, rows, columns]`.
    pub(crate) fn guided<'a>(
        &'a mut self,
        conditioning: &Conditioning,
        request: &Request,
        beside: &'a [f32],
    ) -> Result<GuidedDenoiser<'a>, Error> {
        let (signature, guidance, shape) = (&self.signature, request.guidance, request.shape);
        let latents = signature.input(Role::Latents).expect("no signature without latents");
        let texts = &conditioning.texts;
        let views = View::all(texts.len(), guidance);
        let runs = by_tokens(&views, texts).into_iter().flat_map(|alike| {
            let members = runs(latents, alike.len()).into_iter();
            members.map(move |slots| slots.into_iter().map(|slot| alike[slot]).collect::<Vec<_>>())
        });
        let runs = runs.map(|members| {
            let views = members.iter().map(|&member| views[member]).collect();
            Run::new(signature, texts, request, beside, members, views)
        });
        let runs = runs.collect::<Result<Vec<Run>, Error>>()?;
        let output = &signature.output(Role::Latents).expect("no signature without a prediction").name;
        Ok(GuidedDenoiser {
            session: &mut self.session,
            prediction: self.prediction,
            output,
            runs,
            beside,
            guidance,
            predictions: vec![0.0; views.len() * shape.len()],
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
    /// What the U-Net sees beside the latents.
    beside: &'a [f32],
    guidance: Guidance,
    /// One prediction, or those that [`Guidance::combine`] takes.
    predictions: Vec<f32>,
    guided: Vec<f32>,
    spent: Duration,
}

/// What the U-Net goes by for one of a step's predictions.
#[derive(Clone, Copy)]
struct View {
    /// Which of the encoded prompts.
    prompt: usize,
    /// Whether that is the negative one.
    is_negative: bool,
    /// Whether what is beside the latents is seen, too, or zeros.
    sees_beside: bool,
}

impl View {
    /// Those of a step, in the order in which [`Guidance::combine`] takes their predictions.
    fn all(prompts: usize, guidance: Guidance) -> Vec<Self> {
        let positive = Self { prompt: prompts - 1, is_negative: false, sees_beside: true };
        let negative = Self { prompt: 0, is_negative: true, sees_beside: true };
        match guidance {
            // Also of a U-Net that takes the guidance scale as an input.
            _ if prompts == 1 => vec![positive],
            Guidance::Edit { .. } => vec![Self { sees_beside: false, ..negative }, negative, positive],
            _ => vec![negative, positive],
        }
    }
}

/// The predictions whose texts are of one length, and can be made at once.
fn by_tokens(views: &[View], texts: &[TextStates]) -> Vec<Vec<usize>> {
    let mut groups: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (member, view) in views.iter().enumerate() {
        groups.entry(texts[view.prompt].tokens).or_default().push(member);
    }
    groups.into_values().collect()
}

/// One call of the U-Net per step: as many predictions at once as the graph and the texts allow.
struct Run {
    /// The first two are the latents and the timestep, which every step sets anew.
    feeds: Vec<Feed>,
    /// Per picture of the batch, which prediction it is, and what it goes by.
    members: Vec<usize>,
    views: Vec<View>,
    output: Vec<f32>,
}

impl Run {
    fn new(
        signature: &Signature,
        texts: &[TextStates],
        request: &Request,
        beside: &[f32],
        members: Vec<usize>,
        views: Vec<View>,
    ) -> Result<Self, Error> {
        let (batch, shape) = (members.len(), request.shape);
        let channels = shape.channels + beside.len() / (shape.height_cells * shape.width_cells);
        let input = |role: Role| signature.input(role).expect("no signature without it");
        let timestep = input(Role::Timestep);
        let mut feeds = vec![
            Feed::zeros(input(Role::Latents), &[batch, channels, shape.height_cells, shape.width_cells])?,
            Feed::zeros(timestep, &timestep_shape(timestep, batch))?,
        ];
        let tokens = texts[views[0].prompt].tokens;
        let states = views.iter().flat_map(|view| &texts[view.prompt].states).map(|x| f64::from(*x));
        let width = texts[views[0].prompt].states.len() / tokens;
        feeds.push(Feed::of(input(Role::States), &[batch, tokens, width], states)?);
        for port in signature.inputs.iter() {
            let (role, port) = (port.role, &port.port);
            match role {
                Role::Pooled => {
                    let pooled = views.iter().map(|view| texts[view.prompt].pooled.as_deref());
                    let pooled = pooled
                        .collect::<Option<Vec<_>>>()
                        .ok_or_else(|| unfit("a text encoder that pools the prompt, got none".into()))?;
                    let numbers = pooled.concat().into_iter().map(f64::from);
                    feeds.push(Feed::of(port, &[batch, pooled[0].len()], numbers)?);
                }
                Role::SizeIds => {
                    let ids = views.iter().map(|view| size_ids(port, request.size, view.is_negative));
                    let ids = ids.collect::<Result<Vec<_>, Error>>()?;
                    feeds.push(Feed::of(port, &[batch, ids[0].len()], ids.concat())?);
                }
                Role::GuidanceEmbedding => {
                    let width = fixed(port, 1)
                        .ok_or_else(|| unfit(format!("a guidance embedding of fixed width, got {port}")))?;
                    let one = guidance::embedding(request.guidance.scale(), width);
                    let numbers = members.iter().flat_map(|_| &one).copied().collect::<Vec<_>>();
                    feeds.push(Feed::of(port, &[batch, width], numbers)?);
                }
                Role::ClassLabels => {
                    let Source::Enlarged { level, .. } = request.source else {
                        return Err(unfit("a request with a picture to enlarge, got one without".into()));
                    };
                    feeds.push(Feed::of(port, &[batch], std::iter::repeat(level as f64))?);
                }
                _ => {}
            }
        }
        feeds.extend(constants(signature, batch, tokens)?);
        Ok(Self { feeds, output: vec![0.0; batch * shape.len()], members, views })
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
            let (latents, beside) = (x.iter(), self.beside.iter());
            run.feeds[0].fill(run.views.iter().flat_map(|view| {
                let seen = if view.sees_beside { 1.0 } else { 0.0 };
                let latents = latents.clone().map(move |&x| f64::from(x) * scale);
                latents.chain(beside.clone().map(move |&x| f64::from(x) * seen))
            }));
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
        let prediction = if self.predictions.len() == x.len() {
            &self.predictions
        } else {
            self.guidance.combine(&self.predictions, &mut self.guided);
            &self.guided
        };
        self.prediction.to_denoised(x, prediction, sigma, out);
        Ok(())
    }
}

/// The shape of a timestep for a batch: graphs want none, one, one per picture, or a column.
pub(crate) fn timestep_shape(port: &Port, batch: usize) -> Vec<usize> {
    let size = |(axis, dim): (usize, &Dim)| match dim {
        Dim::Fixed(size) => *size,
        // `steps` is what optimum once called it; the graph repeats a single one for the batch.
        Dim::Free(name) if axis > 0 || name == "steps" => 1,
        Dim::Free(_) => batch,
    };
    port.dims.iter().enumerate().map(size).collect()
}

/// Stable Diffusion XL's picture of its own size, not cropped, and asked for at that size (Podell et al. 2023, section
/// 2.2): original height and width, top and left, target height and width. The refiner takes an aesthetic score instead
/// of the target, diffusers' of a good picture or, for the negative prompt, of a bad one.
fn size_ids(port: &Port, size: PixelSize, is_negative: bool) -> Result<Vec<f64>, Error> {
    let (width, height) = (f64::from(size.width_px()), f64::from(size.height_px()));
    match fixed(port, 1) {
        Some(6) | None => Ok(vec![height, width, 0.0, 0.0, height, width]),
        Some(5) => Ok(vec![height, width, 0.0, 0.0, if is_negative { 2.5 } else { 6.0 }]),
        Some(other) => Err(unfit(format!("a model with 5 or 6 size ids, got {other}"))),
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
