//! What computing in integers costs a U-Net, block by block, on seeded prompts, and which blocks are left in floats so that
//! it costs no more than it may. It has one form of the U-Net open at a time.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use super::comparison::{outputs_of, relative_error};
use super::{ComputeOptions, How};
use crate::engine::SessionOptions;
use crate::graph::Graph;
use crate::manifest::{Compute, ComputeRecord};
use crate::model::{Model, Part};
use crate::prompt::Text;
use crate::stage::feed::Feed;
use crate::stage::seeded::{self, PROMPTS};
use crate::stage::text_encoder::TextEncoder;
use crate::weights::Weights;
use crate::{Error, ErrorKind};

/// How many prompts are told, each with noise of its own: a call of the U-Net for every block and each of them.
const CALLS: usize = 2;

/// What was found: the record for the manifest, and the weights of the layers that stay in floats.
pub(super) struct Found {
    pub(super) record: ComputeRecord,
    pub(super) left: BTreeSet<String>,
}

/// Measures every block of the model's U-Net with these weights. `sources` are those of the layers that can compute in
/// integers, which a file has as such.
///
/// # Errors
/// [`ErrorKind::Usage`] for an error that no choice of blocks keeps to; [`ErrorKind::Numeric`] when the model computes what is
/// no number; otherwise those of opening and running it.
pub(super) fn measure(
    model: &Model,
    goal: ComputeOptions,
    how: How<'_>,
    weights: &Arc<Weights>,
    sources: &BTreeSet<String>,
    integers: &Path,
    options: &SessionOptions,
) -> Result<Found, Error> {
    let part = model.unet();
    let prompts = PROMPTS[..CALLS].iter().map(|prompt| Text::literal(prompt));
    let prompts = prompts.collect::<Result<Vec<_>, _>>()?;
    let mut encoder = TextEncoder::open(model, |_| options.clone())?;
    let mut feeds = Vec::new();
    for (seed, prompt) in prompts.iter().enumerate() {
        let text = encoder.encode(&[Some(prompt)])?.remove(0);
        feeds.push(seeded::feeds(part, None, model.manifest(), Some(&text), seed as u64)?);
    }
    drop(encoder);
    let trial = Trial {
        part,
        upright: part.graph().upright()?,
        weights: Arc::new(weights.with_file(integers)?),
        how,
        expected: run(part, part.graph().clone(), weights, &feeds, options)?,
        feeds,
        options,
    };

    let mut blocks: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    for source in sources {
        let group = if goal.form == Compute::Qdq { always_left(source) } else { None };
        blocks.entry(group.unwrap_or(block(source))).or_default().insert(source.clone());
    }
    let mut losses = BTreeMap::new();
    for (name, own) in &blocks {
        losses.insert((*name).to_owned(), trial.error(&sources.difference(own).cloned().collect())?);
    }
    let mut worst: Vec<&str> = blocks.keys().copied().collect();
    // Those that are left in any case come first.
    let is_left = |name: &str| goal.form == Compute::Qdq && ALWAYS_LEFT.iter().any(|(left, _)| *left == name);
    worst.sort_by(|a, b| is_left(b).cmp(&is_left(a)).then(losses[*b].total_cmp(&losses[*a])));
    let least = worst.iter().filter(|name| is_left(name)).count();
    let left = |count: usize| worst[..count].iter().flat_map(|name| &blocks[name]).cloned().collect();
    let mut count = least;
    let mut error = trial.error(&left(count))?;
    if let Some(max_error) = goal.max_error {
        let each: Vec<f64> = worst.iter().map(|name| losses[*name]).collect();
        while error > max_error {
            count = next(&each, count, error, max_error);
            if count == each.len() {
                return Err(Error::new(
                    ErrorKind::Usage,
                    format!(
                        "max error: expected one that some blocks of the U-Net keep to in integers, got {max_error}: the \
                         least of them has {:.2e}",
                        each.last().copied().unwrap_or_default()
                    ),
                )
                .help("allow a larger error, or pack without {compute}"));
            }
            error = trial.error(&left(count))?;
        }
    }
    let record = ComputeRecord {
        form: goal.form,
        weight_bits: goal.weight_bits(),
        error: rounded(error),
        max_error: goal.max_error,
        losses: losses.into_iter().map(|(name, loss)| (name, rounded(loss))).collect(),
        floats: worst[..count].iter().map(|name| (*name).to_owned()).collect(),
    };
    Ok(Found { record, left: left(count) })
}

/// Layers that static ranges suit badly, and what their weights' names have, as one block each: the second linear layer of
/// feed-forward networks, which reads a product with long tails and carries the whole loss of linear layers, and the
/// timestep's layers, which are little work.
const ALWAYS_LEFT: [(&str, &[&str]); 2] =
    [("ff.net.2", &["ff.net.2."]), ("time", &["time_embedding.", "time_emb_proj.", "add_embedding."])];

/// The block of a weight that is left in floats in any case.
fn always_left(weight: &str) -> Option<&'static str> {
    let found = ALWAYS_LEFT.iter().find(|(_, parts)| parts.iter().any(|part| weight.contains(part)));
    found.map(|(name, _)| *name)
}

/// The block of a network that a weight belongs to: its name up to the last number among its first four parts, as in
/// `up_blocks.3.resnets.2`; where there is none, all but the layer's own name.
fn block(weight: &str) -> &str {
    let layer = weight.rsplit_once('.').map_or(weight, |(layer, _)| layer);
    let parts: Vec<&str> = layer.split('.').take(4).collect();
    let is_number = |part: &&str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    let kept = match parts.iter().rposition(is_number) {
        Some(number) => number + 1,
        None => parts.len().saturating_sub(1).max(1),
    };
    let len: usize = parts[..kept].iter().map(|part| part.len() + 1).sum();
    &layer[..len - 1]
}

/// How many of the worst blocks to leave next, where leaving `count` leaves `error`: errors of blocks hardly depend on one
/// another, so that their squares add up.
fn next(each: &[f64], count: usize, error: f64, max_error: f64) -> usize {
    let squares = |from: usize| each[from..].iter().map(|loss| loss * loss).sum::<f64>();
    let scale = error * error / squares(count);
    let fits = |&count: &usize| scale * squares(count) <= max_error * max_error;
    (count + 1..each.len()).find(fits).unwrap_or(each.len())
}

/// Two digits: what other kernels and numbers of threads leave the same.
fn rounded(error: f64) -> f64 {
    format!("{error:.1e}").parse().unwrap_or(error)
}

/// The U-Net of which some layers compute in integers.
struct Trial<'a> {
    part: &'a Part,
    upright: Graph,
    /// Those of the source, and their integers.
    weights: Arc<Weights>,
    how: How<'a>,
    feeds: Vec<Vec<Feed>>,
    /// What the source gives.
    expected: Vec<f32>,
    options: &'a SessionOptions,
}

impl Trial<'_> {
    /// The error when these layers stay in floats.
    fn error(&self, left: &BTreeSet<String>) -> Result<f64, Error> {
        let (graph, _) = self.how.apply(&self.upright, left)?;
        let got = run(self.part, graph, &self.weights, &self.feeds, self.options)?;
        relative_error(&self.expected, &got)
            .map_err(|problem| Error::new(ErrorKind::Numeric, format!("{}: {problem}", self.part.name())))
    }
}

/// All outputs for all feeds, one after another.
fn run(
    part: &Part,
    graph: Graph,
    weights: &Arc<Weights>,
    feeds: &[Vec<Feed>],
    options: &SessionOptions,
) -> Result<Vec<f32>, Error> {
    let outputs = outputs_of(part, graph.bind(weights.clone())?, feeds, options)?;
    weights.release_all();
    Ok(outputs.into_iter().flatten().flatten().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_belong_to_blocks() {
        for (weight, expected) in [
            ("up_blocks.3.resnets.2.conv1.weight", "up_blocks.3.resnets.2"),
            (
                "down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_q.weight",
                "down_blocks.0.attentions.1",
            ),
            ("down_blocks.0.downsamplers.0.conv.weight", "down_blocks.0.downsamplers.0"),
            ("mid_block.resnets.1.conv2.weight", "mid_block.resnets.1"),
            ("mid_block.attentions.0.transformer_blocks.0.ff.net.2.weight", "mid_block.attentions.0"),
            ("time_embedding.linear_1.weight", "time_embedding"),
            ("conv_in.weight", "conv_in"),
            ("weight", "weight"),
            ("onnx::MatMul_123", "onnx::MatMul_123"),
            ("é.1.2", "é.1"),
            ("", ""),
        ] {
            assert_eq!(block(weight), expected, "{weight}");
        }
    }

    #[test]
    fn as_many_blocks_are_left_as_their_squares_ask_for() {
        // Squares 16, 9, 4, 1: 30 in all.
        let each = [4.0, 3.0, 2.0, 1.0];
        let whole = 30f64.sqrt();
        assert_eq!(next(&each, 0, whole, 14f64.sqrt() + 1e-9), 1);
        assert_eq!(next(&each, 0, whole, 5f64.sqrt() + 1e-9), 2);
        // They add up to twice as much as they should.
        assert_eq!(next(&each, 0, whole * 2.0, 5f64.sqrt() + 1e-9), 3);
        assert_eq!(next(&each, 2, 3.0, 2.0), 3);
        assert_eq!(next(&each, 0, whole, 0.9), 4);
        assert_eq!(next(&each, 3, 1.0, 0.5), 4);
    }

    #[test]
    fn errors_have_two_digits() {
        assert_eq!([0.0123456, 0.0, 1.0].map(rounded), [0.012, 0.0, 1.0]);
    }
}
