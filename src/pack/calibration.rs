//! Calibration: the ranges of what a U-Net's layers read, over all steps of seeded images. It has one session open at a time.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use super::comparison::outputs_of_names;
use crate::Error;
use crate::engine::SessionOptions;
use crate::graph::qdq::Ranges;
use crate::model::Model;
use crate::pipeline::{Options, Pipeline, Run, TextStates};
use crate::prompt::Text;
use crate::recipe::Recipe;
use crate::schedule::Step;
use crate::stage::feed::Feed;
use crate::stage::seeded::{self, PROMPTS};
use crate::weights::Weights;

/// What images are drawn of beside [`PROMPTS`]: with those alone others had values out of range, and the built-in model's
/// images of six other prompts were 5 dB further from those of floats.
const MORE_PROMPTS: [&str; 5] = [
    "a bowl of fruit on a wooden table",
    "a smiling yellow face with blue eyes",
    "a house in the snow at night",
    "a white dog, flat design",
    "",
];

/// The least and the largest number of each value, over all steps of an image of each prompt, with its prompt and without.
///
/// # Errors
/// Those of drawing the images and of running the U-Net.
pub(super) fn ranges(
    model: &Model,
    weights: &Arc<Weights>,
    options: &SessionOptions,
) -> Result<Ranges, Error> {
    let part = model.unet();
    let feeds = feeds(model, options)?;
    let upright = part.graph().upright()?;
    let (observed, names) = upright.with_ranges_as_outputs(&upright.values_to_range())?;
    let flat: Vec<&str> = names.values().flatten().map(String::as_str).collect();
    let runs = outputs_of_names(observed.bind(weights.clone())?, &feeds, &flat, options)?;
    weights.release_all();
    let mut ranges: Ranges = BTreeMap::new();
    for found in runs {
        for (value, found) in names.keys().zip(found.chunks(2)) {
            let (least, most) = (found[0][0], found[1][0]);
            let range = ranges.entry(value.clone()).or_insert((least, most));
            *range = (range.0.min(least), range.1.max(most));
        }
    }
    Ok(ranges)
}

/// What the U-Net is given in each step.
fn feeds(model: &Model, options: &SessionOptions) -> Result<Vec<Vec<Feed>>, Error> {
    let (part, manifest) = (model.unet(), model.manifest());
    let options = Options { session: options.clone(), plan: None };
    let mut pipeline = Pipeline::open(model, &options)?;
    let mut feeds = Vec::new();
    for (seed, prompt) in PROMPTS.iter().chain(&MORE_PROMPTS).enumerate() {
        let recipe = Recipe {
            prompt: (*prompt).into(),
            literal: true,
            seed: Some(seed as u64),
            size: Some(seeded::size(part, manifest)?),
            ..Recipe::default()
        };
        let request = pipeline.request(recipe)?;
        let texts = [*prompt, ""].map(|text| pipeline.encode(&Text::literal(text)?));
        let texts: Vec<TextStates> = texts.into_iter().collect::<Result<_, Error>>()?;
        let mut note = |run: &Run| -> Result<(), Error> {
            let Some(Step { from, timestep, .. }) = request.schedule.steps().get(run.progress().done) else {
                return Ok(());
            };
            let scale = manifest.prediction.input_scale(*from);
            let latents = run.latents().iter().map(|&x| f64::from(x) * scale).collect::<Vec<_>>();
            for text in &texts {
                feeds.push(seeded::unet_feeds_at(part, manifest, text, &latents, *timestep)?);
            }
            Ok(())
        };
        let mut run = pipeline.begin(&request)?;
        let mut noted = note(&run);
        let ended = run.steps(|run| {
            noted = note(run);
            if noted.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        });
        noted?;
        ended?;
    }
    Ok(feeds)
}
