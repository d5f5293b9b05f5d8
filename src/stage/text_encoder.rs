//! The text encoders: texts become the states that the U-Net attends to.

use std::sync::Arc;

use super::component::{Component, Precise};
use super::feed::{Feed, compute, constants, runs};
use super::text_states::TextStates;
use super::trial;
use crate::engine::{Output, Placement, SessionOptions};
use crate::graph::{Dim, Port};
use crate::model::{Model, TextEncoderPart};
use crate::prompt::Text;
use crate::recipe::Retry;
use crate::signature::{Role, Signature};
use crate::tokenizer::{Chunk, MAX_CHUNKS, Tokenizer};
use crate::{Error, ErrorKind};

/// The most chunks that are encoded at once: more would cost memory and save no time.
pub(crate) const MAX_BATCH: usize = 8;

/// A chunk's states, `[tokens, width]`, and its vector, where an encoder gives one.
type OfChunk = (Vec<f32>, Option<Vec<f32>>);

/// The tokenizers and text encoders of a model.
pub(crate) struct TextEncoder {
    encoders: Vec<Encoder>,
    /// As many as the U-Net attends to.
    max_chunks: usize,
}

struct Encoder {
    name: &'static str,
    tokenizer: Tokenizer,
    context: usize,
    component: Component,
    signature: Signature,
    ids: Port,
    /// The name of the output with the states that the U-Net was trained on.
    states: String,
    /// The name of the output with the whole prompt's vector, where this encoder gives the U-Net's.
    pooled: Option<String>,
}

impl TextEncoder {
    pub(crate) fn open(model: &Model, options: impl Fn(&str) -> SessionOptions) -> Result<Self, Error> {
        let parts = model.text_encoders();
        let unet = model.unet().signature();
        // A U-Net that takes the whole prompt's vector was trained on the states before the last layer.
        let is_pooled = unet.input(Role::Pooled).is_some();
        let encoders = parts.iter().enumerate().map(|(index, part)| {
            let is_last = index + 1 == parts.len();
            Encoder::open(model, part, is_pooled, is_pooled && is_last, options(part.name()))
        });
        let encoders = encoders.collect::<Result<Vec<_>, Error>>()?;
        let contexts: Vec<usize> = encoders.iter().map(|encoder| encoder.context).collect();
        if contexts.windows(2).any(|pair| pair[0] != pair[1]) {
            return Err(Error::new(
                ErrorKind::Model,
                format!("text encoders: expected contexts of one length, got {contexts:?} tokens"),
            ));
        }
        let max_chunks = max_chunks(model, contexts[0]);
        Ok(Self { encoders, max_chunks })
    }

    /// Reduces memory until [`TextEncoder::use_plan`]; whether that is a change.
    pub(crate) fn reduce_memory(&mut self) -> bool {
        let mut is_changed = false;
        for encoder in &mut self.encoders {
            is_changed |= encoder.component.reduce_memory();
        }
        is_changed
    }

    #[cfg(test)]
    #[cfg(feature = "builtin")]
    pub(crate) fn is_streamed(&self) -> bool {
        self.encoders.iter().all(|encoder| encoder.component.is_streamed())
    }

    /// Ends reduced memory and higher precision.
    pub(crate) fn use_plan(&mut self, precise: Option<&Arc<Precise>>) {
        self.encoders.iter_mut().for_each(|encoder| encoder.component.use_plan(precise));
    }

    /// What is computed in higher precision than planned.
    pub(crate) fn retries(&self) -> impl Iterator<Item = Retry> {
        self.encoders.iter().filter_map(|encoder| encoder.component.retry())
    }

    /// Where those run that were needed.
    pub(crate) fn placements(&self) -> impl Iterator<Item = &Placement> {
        self.encoders.iter().filter_map(|encoder| encoder.component.placement())
    }

    /// Encodes texts; an absent one is zeros, as many as the longest has, which says the same at any length.
    ///
    /// # Errors
    /// [`ErrorKind::Numeric`] for a state that is not a number; [`ErrorKind::Model`] when encoders differ in what they
    /// make of a text.
    pub(crate) fn encode(&mut self, texts: &[Option<&Text>]) -> Result<Vec<TextStates>, Error> {
        let max_chunks = self.max_chunks;
        let encoded = self.encoders.iter_mut().map(|encoder| encoder.encode(texts, max_chunks));
        let mut encoded = encoded.collect::<Result<Vec<Vec<TextStates>>, Error>>()?.into_iter();
        let mut joined = encoded.next().unwrap_or_default();
        for others in encoded {
            for (one, other) in joined.iter_mut().zip(others) {
                one.join(other)?;
            }
        }
        let longest = joined.iter().max_by_key(|one| one.tokens);
        let (tokens, len) = longest.map_or((0, 0), |one| (one.tokens, one.states.len()));
        for (one, _) in joined.iter_mut().zip(texts).filter(|(_, text)| text.is_none()) {
            one.tokens = tokens;
            one.states = vec![0.0; len];
            one.pooled.iter_mut().for_each(|pooled| pooled.fill(0.0));
        }
        Ok(joined)
    }
}

/// How many tokens a chunk has.
pub(crate) fn context(part: &TextEncoderPart) -> usize {
    match part.signature().input(Role::TokenIds).and_then(|ids| ids.dims.get(1)) {
        Some(Dim::Fixed(context)) => *context,
        _ => part.context(),
    }
}

/// How many chunks of a text are read.
pub(crate) fn max_chunks(model: &Model, context: usize) -> usize {
    match model.unet().signature().input(Role::States).and_then(|port| port.dims.get(1)) {
        Some(Dim::Fixed(tokens)) => (tokens / context).max(1),
        _ => MAX_CHUNKS,
    }
}

impl Encoder {
    fn open(
        model: &Model,
        part: &TextEncoderPart,
        penultimate: bool,
        pooled: bool,
        options: SessionOptions,
    ) -> Result<Self, Error> {
        let name = part.name();
        let signature = part.signature().clone();
        let output = |role: Role| {
            signature.output(role).map(|port| port.name.clone()).ok_or_else(|| {
                let got = signature.outputs.iter().map(|binding| binding.role.to_string());
                let got = got.collect::<Vec<_>>().join(", ");
                Error::new(ErrorKind::Model, format!("{name}: expected an output of {role}, got {got}"))
                    .help("export it with all hidden states")
            })
        };
        let states = output(if penultimate { Role::PenultimateStates } else { Role::States })?;
        let pooled = pooled.then(|| output(Role::Pooled)).transpose()?;
        let ids = signature.input(Role::TokenIds).expect("no signature without token ids").clone();
        let context = context(part);
        let tokenizer = part.tokenizer(context)?;
        let trial = trial::of(model, part, &options);
        let component = Component::open(part, options, trial)?;
        Ok(Self { name, tokenizer, context, component, signature, ids, states, pooled })
    }

    /// The states of these texts; of an absent one those of no words.
    fn encode(&mut self, texts: &[Option<&Text>], max_chunks: usize) -> Result<Vec<TextStates>, Error> {
        let nothing = Text::literal("")?;
        let encoded = texts.iter().map(|text| self.tokenizer.encode(text.unwrap_or(&nothing), max_chunks));
        let encoded = encoded.collect::<Result<Vec<_>, Error>>()?;
        let chunks: Vec<&Chunk> = encoded.iter().flat_map(|text| &text.chunks).collect();
        let mut outputs = self.run_finite(&chunks)?.into_iter();
        let texts = encoded.iter().map(|text| {
            let (mut states, mut pooled) = (Vec::new(), None);
            for (chunk, (mut of_chunk, vector)) in text.chunks.iter().zip(outputs.by_ref()) {
                weigh(&mut of_chunk, &chunk.weights);
                states.extend(of_chunk);
                pooled = pooled.or(vector);
            }
            // Weights may make them so.
            self.expect_finite(states.iter())?;
            let tokens = text.chunks.len() * self.context;
            Ok(TextStates { states, tokens, pooled, cut: text.cut.clone() })
        });
        texts.collect()
    }

    /// What becomes of each chunk, in higher precision where it is not finite otherwise.
    fn run_finite(&mut self, chunks: &[&Chunk]) -> Result<Vec<OfChunk>, Error> {
        loop {
            let results = self.run(chunks)?;
            let all =
                results.iter().flat_map(|(states, pooled)| states.iter().chain(pooled.iter().flatten()));
            let Err(error) = self.expect_finite(all) else { return Ok(results) };
            // The second time it is an error.
            self.component.raise_precision(error, None)?;
        }
    }

    fn expect_finite<'s>(&self, mut states: impl Iterator<Item = &'s f32>) -> Result<(), Error> {
        match states.find(|value| !value.is_finite()) {
            None => Ok(()),
            Some(value) => {
                let message = format!("{}: expected finite states, got {value}", self.name);
                Err(Error::new(ErrorKind::Numeric, message))
            }
        }
    }

    /// What becomes of each chunk.
    fn run(&mut self, chunks: &[&Chunk]) -> Result<Vec<OfChunk>, Error> {
        let tokens = self.context;
        let names: Vec<&str> =
            [Some(&self.states), self.pooled.as_ref()].into_iter().flatten().map(String::as_str).collect();
        let mut results = vec![(Vec::new(), None); chunks.len()];
        let mut component = self.component.lease();
        for (chunks, results) in chunks.chunks(MAX_BATCH).zip(results.chunks_mut(MAX_BATCH)) {
            for members in runs(&self.ids, chunks.len(), MAX_BATCH) {
                let batch = members.len();
                let numbers =
                    members.iter().flat_map(|&member| chunks[member].ids.iter().map(|&id| id as f64));
                let mut feeds = constants(&self.signature, batch, tokens)?;
                feeds.push(Feed::of(&self.ids, &[batch, tokens], numbers)?);
                let outputs = component.run(|session| compute(session, &mut feeds, &names))?;
                let of = |index: usize, slot: usize| {
                    let output: Option<&Output> = outputs.get(index);
                    output.map(|output| {
                        let one = output.data.len() / batch;
                        output.data[slot * one..][..one].to_vec()
                    })
                };
                for (slot, &member) in members.iter().enumerate() {
                    results[member] = (of(0, slot).unwrap_or_default(), of(1, slot));
                }
            }
        }
        if let Some((states, _)) =
            results.iter().find(|(states, _)| states.is_empty() || states.len() % tokens > 0)
        {
            return Err(Error::new(
                ErrorKind::Model,
                format!("{}: expected states for {tokens} tokens, got {} numbers", self.name, states.len()),
            ));
        }
        Ok(results)
    }
}

/// Multiplies the states of a chunk, `[tokens, width]`, by the weights of its tokens, and all of them by what restores
/// their mean: AUTOMATIC1111's "original" emphasis, `z' = w z`, `z'' = z' mean(z) / mean(z')`.
fn weigh(states: &mut [f32], weights: &[f32]) {
    if weights.iter().all(|weight| *weight == 1.0) {
        return; // They are to stay as they are, to the last bit.
    }
    let width = states.len() / weights.len();
    // The mean is that of the sum: there are as many before as after.
    let sum = |states: &[f32]| states.iter().map(|state| f64::from(*state)).sum::<f64>();
    let before = sum(states);
    for (states, weight) in states.chunks_exact_mut(width).zip(weights) {
        states.iter_mut().for_each(|state| *state *= weight);
    }
    let factor = (before / sum(states)) as f32;
    states.iter_mut().for_each(|state| *state *= factor);
}
