//! Dynamic thresholding of guidance: clean latents at a high scale in the range of those at a smaller one.
//! It knows nothing of where the two come from.

use crate::prediction::quantile;

/// The settings of dynamic thresholding, by which a high guidance scale mimics a smaller one: sd-dynamic-thresholding's
/// `DynThresh` at constant scales, which has no paper. It works on clean latents, as that does in A1111 and ComfyUI.
/// What has no range, because it is one value throughout, is left as it is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Mimic {
    /// The guidance scale whose range is taken (`mimic_scale`).
    pub scale: f64,
    /// The share of the values that count for the range at the high scale (`threshold_percentile`); for
    /// [`Measure::Largest`] only.
    pub percentile: f64,
    /// The share of the result; the rest is plain guidance (`interpolate_phi`).
    pub share: f64,
    /// Whether every channel has a range of its own (`separate_feature_channels`).
    pub per_channel: bool,
    /// What is left in place (`scaling_startpoint`).
    pub origin: Origin,
    /// What a range is (`variability_measure`).
    pub measure: Measure,
}

/// What [`Mimic`] leaves in place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The mean of each channel.
    Mean,
    /// Zero; nothing is clipped.
    Zero,
}

/// What [`Mimic`] takes for the range of values around the mean of their channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Measure {
    /// The largest distance (`AD`).
    Largest,
    /// The standard deviation (`STD`).
    Deviation,
}

impl Default for Mimic {
    /// The settings that sd-dynamic-thresholding starts with.
    fn default() -> Self {
        Self {
            scale: 7.0,
            percentile: 1.0,
            share: 1.0,
            per_channel: true,
            origin: Origin::Mean,
            measure: Measure::Largest,
        }
    }
}

/// The memory that a [`Mimic`] needs.
pub(super) struct Scratch {
    /// The clean latents at the scale that is mimicked; afterwards anything.
    pub(super) mimicked: Vec<f32>,
    distances: Vec<f32>,
    channels: usize,
}

impl Scratch {
    /// For latents of `channels` channels.
    pub(super) fn new(len: usize, channels: usize) -> Self {
        Self { mimicked: vec![0.0; len], distances: vec![0.0; len], channels }
    }

    /// Brings guided clean latents into the range of [`Scratch::mimicked`].
    pub(super) fn apply(&mut self, settings: &Mimic, guided: &mut [f32]) {
        let plane = guided.len() / self.channels;
        let group = if settings.per_channel { plane } else { guided.len() };
        let groups = self.mimicked.chunks_exact_mut(group).zip(self.distances.chunks_exact_mut(group));
        for ((mimicked, distances), guided) in groups.zip(guided.chunks_exact_mut(group)) {
            distances.copy_from_slice(guided);
            [&mut *mimicked, &mut *distances].into_iter().for_each(|values| to_distances(values, plane));
            let (target, range) = match settings.measure {
                Measure::Largest => (quantile(mimicked, 1.0), quantile(distances, settings.percentile)),
                Measure::Deviation => (deviation(mimicked), deviation(distances)),
            };
            // With values clipped to the larger of the two ranges, that is what is shrunk to the target.
            let clips = (settings.origin, settings.measure) == (Origin::Mean, Measure::Largest);
            let (range, limit) =
                if clips { (range.max(target), range.max(target)) } else { (range, f64::INFINITY) };
            if range == 0.0 {
                continue;
            }
            for guided in guided.chunks_exact_mut(plane) {
                let origin = if settings.origin == Origin::Mean { mean(guided) } else { 0.0 };
                for value in guided {
                    let plain = f64::from(*value);
                    let distance = plain - origin;
                    let kept = if distance.abs() > limit { limit.copysign(distance) } else { distance };
                    let mimic = origin + kept * (target / range);
                    *value = (settings.share * mimic + (1.0 - settings.share) * plain) as f32;
                }
            }
        }
    }
}

/// Turns the values of each plane into their distances from its mean.
fn to_distances(values: &mut [f32], plane: usize) {
    for values in values.chunks_exact_mut(plane) {
        let mean = mean(values);
        values.iter_mut().for_each(|value| *value = (f64::from(*value) - mean).abs() as f32);
    }
}

/// From the first value on, so that the mean of one value throughout is exactly that.
fn mean(values: &[f32]) -> f64 {
    let pivot = f64::from(values[0]);
    pivot + values.iter().map(|&value| f64::from(value) - pivot).sum::<f64>() / values.len() as f64
}

/// The standard deviation of values with these distances from their mean, as in [`super::mix`].
fn deviation(distances: &[f32]) -> f64 {
    let squares: f64 = distances.iter().map(|&distance| f64::from(distance).powi(2)).sum();
    (squares / distances.len() as f64).sqrt()
}
