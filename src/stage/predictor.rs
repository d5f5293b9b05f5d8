//! The predictor: the calls of the U-Net in which the predictions of a step are made, with all that they are fed. It knows nothing
//! of what becomes of the predictions.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::component::{Component, Lease, Precise};
use super::conditioning::{Conditioning, is_negative, of_texts, of_views, unfit};
use super::control::{ControlCall, Controls, Steered};
use super::feed::{Feed, constants, runs, timestep_shape};
use super::trial;
use crate::Error;
use crate::engine::{Placement, SessionOptions, Value};
use crate::guidance::View;
use crate::model::Model;
use crate::recipe::Retry;
use crate::request::Request;
use crate::signature::{Role, Signature};
use crate::state::Record;

/// The most inputs of any U-Net that a [`Signature`] describes.
const MAX_INPUTS: usize = 128;

/// A model's U-Net.
pub(crate) struct Unet {
    component: Component,
    signature: Signature,
    /// The most images that one call predicts.
    max_batch: usize,
}

impl Unet {
    pub(crate) fn open(model: &Model, options: SessionOptions, max_batch: usize) -> Result<Self, Error> {
        let part = model.unet();
        let signature = part.signature().clone();
        if signature.inputs.len() > MAX_INPUTS {
            return Err(unfit(format!("at most {MAX_INPUTS} inputs, got {}", signature.inputs.len())));
        }
        let trial = trial::of(model, part, &options);
        let component = Component::open(part, options, trial)?;
        Ok(Self { component, signature, max_batch })
    }

    #[cfg(test)]
    #[cfg(feature = "builtin")]
    pub(crate) fn is_streamed(&self) -> bool {
        self.component.is_streamed()
    }

    #[cfg(test)]
    #[cfg(feature = "builtin")]
    pub(crate) fn is_open(&self) -> bool {
        self.component.is_open()
    }

    /// Ends reduced memory and higher precision.
    pub(crate) fn use_plan(&mut self, precise: Option<&Arc<Precise>>) {
        self.component.use_plan(precise);
    }

    /// Where it runs, once it was needed.
    pub(crate) fn placement(&self) -> Option<&Placement> {
        self.component.placement()
    }

    /// Its predictor for one run, at whose end it gives its memory back unless it is to be kept. `beside` is what it sees
    /// beside the latents, `[channels, rows, columns]`.
    pub(crate) fn predictor<'a>(
        &'a mut self,
        conditioning: Conditioning,
        request: &Request,
        concat_latents: Vec<f32>,
        controls: &'a mut Controls,
    ) -> Result<Predictor<'a>, Error> {
        let steered = controls.steer(&self.signature, request)?;
        let (signature, shape) = (&self.signature, request.shape);
        let views = request.guidance.views();
        let prompts = views.iter().filter(|view| !is_negative(**view)).count();
        let mut layouts: Vec<Layout> = Vec::new();
        let mut layout_of = Vec::new();
        for texts in &conditioning.of_step {
            let mut per_count = vec![usize::MAX; views.len() + 1];
            // A step needs the prompts' own views and some of those before them; which, depends on its noise level.
            for (count, place) in per_count.iter_mut().enumerate().skip(prompts) {
                let first = views.len() - count;
                let texts = &texts[first..];
                let tokens: Vec<usize> = texts.iter().map(|&text| conditioning.texts[text].tokens).collect();
                let known = layouts.iter().position(|layout| layout.tokens == tokens);
                *place = match known {
                    Some(known) => known,
                    None => {
                        let views = &views[first..];
                        let fed = Fed {
                            signature,
                            conditioning: &conditioning,
                            request,
                            concat_latents: &concat_latents,
                            steered: steered.as_ref(),
                        };
                        let layout = Layout::new(&fed, views, texts, self.max_batch)?;
                        layouts.push(layout);
                        layouts.len() - 1
                    }
                };
            }
            layout_of.push(per_count);
        }
        let output = &signature.output(Role::Latents).expect("no signature without a prediction").name;
        Ok(Predictor {
            component: self.component.lease(),
            steered,
            signature,
            output,
            conditioning,
            layouts,
            layout_of,
            concat_latents,
            predictions: vec![0.0; views.len() * shape.len()],
            spent: Duration::ZERO,
        })
    }
}

/// The predictor of one run, with all the memory that its steps need.
pub(crate) struct Predictor<'a> {
    component: Lease<'a>,
    steered: Option<Steered<'a>>,
    signature: &'a Signature,
    /// The name of the U-Net's output.
    output: &'a str,
    conditioning: Conditioning,
    layouts: Vec<Layout>,
    /// Per step, and per number of predictions that it needs, the layout.
    layout_of: Vec<Vec<usize>>,
    /// What the U-Net sees beside the latents.
    concat_latents: Vec<f32>,
    /// One after the other, as many as any step needs.
    predictions: Vec<f32>,
    spent: Duration,
}

impl Predictor<'_> {
    /// The time spent in the U-Net so far.
    pub(crate) fn spent(&self) -> Duration {
        self.spent
    }

    /// Reduces memory until `Unet::use_plan`; whether that is a change.
    pub(crate) fn reduce_memory(&mut self) -> bool {
        let of_controls = self.steered.as_mut().is_some_and(Steered::reduce_memory);
        self.component.reduce_memory() || of_controls
    }

    /// Gives back what costs little to have again.
    pub(crate) fn release_pages(&self) {
        self.component.release_pages();
        self.steered.iter().for_each(Steered::release_pages);
    }

    /// What is computed in higher precision than planned.
    pub(crate) fn retries(&self) -> impl Iterator<Item = Retry> {
        let of_controls = self.steered.iter().flat_map(Steered::retries);
        self.component.retry().into_iter().chain(of_controls)
    }

    /// Lists what is carried from step to step.
    pub(crate) fn state(&mut self, record: &mut Record) -> Result<(), Error> {
        let steps = self.conditioning.of_step.len();
        self.component.state(record, steps)?;
        self.steered.iter_mut().try_for_each(|steered| steered.state(record, steps))
    }

    /// How often control networks were run.
    pub(crate) fn control_calls(&self) -> usize {
        self.steered.as_ref().map_or(0, Steered::calls)
    }

    /// What the U-Net is told.
    pub(crate) fn conditioning(&self) -> &Conditioning {
        &self.conditioning
    }

    /// The predictions for the last `count` views of the run's guidance in a step, each as large as the latents `x`, which the
    /// U-Net gets times `scale`.
    pub(crate) fn predict(
        &mut self,
        step: usize,
        count: usize,
        x: &[f32],
        scale: f64,
        timestep: f64,
    ) -> Result<&[f32], Error> {
        if count == 0 {
            return Ok(&[]);
        }
        let texts = &self.conditioning.of_step[step];
        let texts = &texts[texts.len() - count..];
        for call in &mut self.layouts[self.layout_of[step][count]].calls {
            call.read(self.signature, &self.conditioning, self.steered.as_ref(), texts)?;
            let (latents, concat_latents) = (x.iter(), self.concat_latents.iter());
            call.latents.fill(call.views.iter().flat_map(|view| {
                let seen = if *view == View::NegativeWithoutImage { 0.0 } else { 1.0 };
                let latents = latents.clone().map(move |&x| f64::from(x) * scale);
                latents.chain(concat_latents.clone().map(move |&x| f64::from(x) * seen))
            }));
            call.timestep.fill(std::iter::repeat(timestep));
            let started = Instant::now();
            let batch = call.members.len();
            if let (Some(steered), Some(control)) = (&mut self.steered, &mut call.control) {
                steered.run(control, step, batch, x, scale, timestep)?;
            }
            let (constants, output) = (&call.constants, &mut call.output);
            let mut own = [call.latents.tensor_mut(), call.timestep.tensor_mut()];
            let mut steered: Vec<_>;
            let inputs = match &mut self.steered {
                // Without an allocation.
                None => &mut own[..],
                Some(controls) => {
                    steered = own.into_iter().chain(controls.sums_mut(batch)).collect();
                    &mut steered
                }
            };
            self.component.run_finite(step, |session| {
                session.run_owned(constants, inputs, &mut [(self.output, output)])?;
                Ok(output.iter().find(|value| !value.is_finite()).copied())
            })?;
            self.spent += started.elapsed();
            for (prediction, &member) in call.output.chunks_exact(x.len()).zip(&call.members) {
                self.predictions[member * x.len()..][..x.len()].copy_from_slice(prediction);
            }
        }
        Ok(&self.predictions[..count * x.len()])
    }
}

/// What every call of a run is fed from.
struct Fed<'r> {
    signature: &'r Signature,
    conditioning: &'r Conditioning,
    request: &'r Request,
    concat_latents: &'r [f32],
    steered: Option<&'r Steered<'r>>,
}

/// How the predictions of a step are made: which together, in one call of the U-Net.
struct Layout {
    /// Per prediction, how long its text is.
    tokens: Vec<usize>,
    calls: Vec<Call>,
}

impl Layout {
    /// For these predictions, which read these texts at first. As many are made at once as the graph and the lengths of
    /// the texts allow.
    fn new(fed: &Fed<'_>, views: &[View], texts: &[usize], max_batch: usize) -> Result<Self, Error> {
        let Fed { signature, conditioning, .. } = *fed;
        let latents = signature.input(Role::Latents).expect("no signature without latents");
        let tokens: Vec<usize> = texts.iter().map(|&text| conditioning.texts[text].tokens).collect();
        let mut lengths = tokens.clone();
        lengths.sort_unstable();
        lengths.dedup();
        let mut calls = Vec::new();
        for length in lengths {
            let alike: Vec<usize> = (0..views.len()).filter(|&index| tokens[index] == length).collect();
            for slots in runs(latents, alike.len(), max_batch) {
                let members: Vec<usize> = slots.into_iter().map(|slot| alike[slot]).collect();
                let views = members.iter().map(|&member| views[member]).collect();
                let texts = members.iter().map(|&member| texts[member]).collect();
                calls.push(Call::new(fed, members, views, texts)?);
            }
        }
        Ok(Self { tokens, calls })
    }
}

/// One call of the U-Net.
struct Call {
    latents: Feed,
    timestep: Feed,
    /// What no step changes, by the names of the inputs. First, for as long as the texts are the same, their states and, where
    /// the U-Net takes them, the whole texts' vectors.
    constants: Vec<(String, Value)>,
    /// Per image of the batch, which prediction it is, what it goes by, and the text that its constants hold.
    members: Vec<usize>,
    views: Vec<View>,
    texts: Vec<usize>,
    output: Vec<f32>,
    /// What control networks are fed.
    control: Option<ControlCall>,
}

impl Call {
    fn new(fed: &Fed<'_>, members: Vec<usize>, views: Vec<View>, texts: Vec<usize>) -> Result<Self, Error> {
        let Fed { signature, conditioning, request, concat_latents, steered } = *fed;
        let (batch, shape) = (members.len(), request.shape);
        let channels = shape.channels + concat_latents.len() / (shape.height_cells * shape.width_cells);
        let input = |role: Role| signature.input(role).expect("no signature without it");
        let timestep = input(Role::Timestep);
        let dims = [batch, channels, shape.height_cells, shape.width_cells];
        let mut feeds = constants(signature, batch, conditioning.texts[texts[0]].tokens)?;
        feeds.extend(of_views(signature, request, &views)?);
        let mut constants = of_texts(signature, conditioning, &texts)?;
        for feed in feeds {
            constants.push(feed.into_value()?);
        }
        Ok(Self {
            latents: Feed::zeros(input(Role::Latents), &dims)?,
            timestep: Feed::zeros(timestep, &timestep_shape(timestep, batch))?,
            constants,
            output: vec![0.0; batch * shape.len()],
            control: steered
                .map(|steered| steered.call(conditioning, request, &views, &texts))
                .transpose()?,
            members,
            views,
            texts,
        })
    }

    /// Tells the U-Net of these texts, one per prediction, where it was told of others before.
    fn read(
        &mut self,
        signature: &Signature,
        conditioning: &Conditioning,
        steered: Option<&Steered<'_>>,
        texts: &[usize],
    ) -> Result<(), Error> {
        let mut is_changed = false;
        for (text, &member) in self.texts.iter_mut().zip(&self.members) {
            is_changed |= std::mem::replace(text, texts[member]) != texts[member];
        }
        if is_changed {
            let values = of_texts(signature, conditioning, &self.texts)?;
            self.constants.splice(..values.len(), values);
            if let (Some(steered), Some(control)) = (steered, &mut self.control) {
                steered.read(control, conditioning, &self.texts)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
#[cfg(feature = "builtin")]
mod tests {
    use std::num::NonZeroUsize;

    use super::*;
    use crate::engine::Residency;
    use crate::recipe::Recipe;
    use crate::stage::conditioning::fixed;
    use crate::stage::text_states::TextStates;

    /// Texts of noise: `seed` tells them apart.
    fn text(seed: u64, tokens: usize, width: usize) -> TextStates {
        let states = (0..tokens * width).map(|at| ((at as f32 + 1e3 * seed as f32) * 0.37).sin()).collect();
        TextStates { states, tokens, pooled: None, cut: None }
    }

    /// A step hands over the latents and the time; the texts only when they change. With its weights on the disk as much.
    #[test]
    fn what_stays_the_same_is_fed_once() {
        let model = Model::built_in().unwrap();
        let request = Request::new(Recipe { steps: Some(4), ..Recipe::default() }, &model).unwrap();
        let width = fixed(model.unet().signature().input(Role::States).unwrap(), 2).unwrap();
        let count = request.shape.len();
        let (step_bytes, texts_bytes) = (2 * count as u64 * 4 + 4, (2 * 77 * width * 4) as u64);
        let streamed = Residency::Streamed { segment_bytes: 1 << 20, resident_bytes: 0 };
        for residency in [Residency::Keep, streamed] {
            let options = SessionOptions { residency, ..SessionOptions::new(NonZeroUsize::MIN) };
            let mut unet = Unet::open(&model, options, usize::MAX).unwrap();
            let mut controls = Controls::default();
            let conditioning = Conditioning {
                texts: (0..3).map(|seed| text(seed, 77, width)).collect(),
                of_step: vec![vec![0, 1], vec![0, 1], vec![0, 2], vec![0, 2]],
            };
            let mut predictor = unet.predictor(conditioning, &request, Vec::new(), &mut controls).unwrap();
            let x: Vec<f32> = (0..count).map(|at| (at as f32).cos()).collect();
            let mut fed_bytes = vec![0];
            let mut predictions: Vec<Vec<f32>> = Vec::new();
            for step in 0..4 {
                predictions.push(predictor.predict(step, 2, &x, 1.0, 500.0).unwrap().to_vec());
                fed_bytes.push(predictor.component.session().unwrap().fed_bytes());
            }
            let per_step: Vec<u64> = fed_bytes.windows(2).map(|pair| pair[1] - pair[0]).collect();
            let texts_bytes = if residency == Residency::Keep { texts_bytes } else { 0 };
            let expected = [step_bytes + texts_bytes, step_bytes, step_bytes + texts_bytes, step_bytes];
            assert_eq!(per_step, expected, "{residency:?}");
            // The first text of both is the same, the second is not.
            assert_eq!(predictions[0], predictions[1]);
            assert_eq!(predictions[2], predictions[3]);
            assert_eq!(predictions[0][..count], predictions[2][..count]);
            assert_ne!(predictions[0][count..], predictions[2][count..]);
        }
    }
}
