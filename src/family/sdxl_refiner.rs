//! Stable Diffusion XL's refiner (Podell et al. 2023, section 2.5), which takes an aesthetic score of the image.

use super::{Encoder, Facts, Heads, Inputs, Layout, Noise, Purpose, sdxl};
use crate::architecture::clip::States;
use crate::prediction::Prediction;

/// How many sizes its U-Net takes: an aesthetic score stands in place of the target size.
pub(crate) const TIME_IDS: usize = 5;

/// The default denoising strength of an init image.
pub(crate) const STRENGTH: f64 = 0.3;

pub(super) static FACTS: Facts = Facts {
    name: "Stable Diffusion XL refiner",
    aliases: &["sdxl-refiner", "sdxl_refiner_v1-0", "stable-diffusion-xl-v1-refiner"],
    fits: |layout: &Layout| sdxl::is_xl(layout, true).into(),
    inputs: Inputs { states: Some(1280), pooled: true, time_ids: Some(TIME_IDS), class_labels: false },
    tells: &[
        ("input_blocks.0.0.weight", &[384, 4, 3, 3]),
        ("label_emb.0.0.weight", &[1536, 2560]),
        ("input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight", &[768, 1280]),
        ("middle_block.1.transformer_blocks.3.attn2.to_k.weight", &[1536, 1280]),
        ("out.2.weight", &[4, 384, 3, 3]),
    ],
    purposes: &[Purpose::Generate, Purpose::Inpaint, Purpose::Edit],
    heads: Heads::Width(64),
    only_cross_attention: false,
    cells: |_| 128,
    text: &[Encoder::OpenClipG],
    states: States::Penultimate,
    zero_negative: false,
    latents: sdxl::LATENTS,
    noise: Noise::STABLE_DIFFUSION,
    prediction: Prediction::Epsilon,
    telling: None,
    steps: 20,
    guidance: 5.0,
    max_noise_level: None,
};
