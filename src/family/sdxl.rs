//! Stable Diffusion XL's base (Podell et al. 2023): also SSD-1B, and the Turbo, Lightning and inpainting models made from it.

use super::{Encoder, Facts, Heads, Inputs, Label, Latents, Layout, Noise, Purpose};
use crate::architecture::clip::States;
use crate::prediction::Prediction;

pub(super) static FACTS: Facts = Facts {
    name: "Stable Diffusion XL",
    aliases: &["sdxl", "sdxl 1.0", "sdxl_base_v1-0", "stable-diffusion-xl-v1-base"],
    fits: |layout: &Layout| is_xl(layout, false).into(),
    inputs: Inputs { states: Some(2048), pooled: true, time_ids: Some(6), class_labels: false },
    tells: &[
        ("input_blocks.0.0.weight", &[320, 4, 3, 3]),
        ("label_emb.0.0.weight", &[1280, 2816]),
        ("input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight", &[640, 2048]),
        ("input_blocks.7.1.transformer_blocks.9.attn2.to_k.weight", &[1280, 2048]),
        ("middle_block.1.transformer_blocks.9.attn2.to_k.weight", &[1280, 2048]),
        ("output_blocks.8.0.out_layers.3.weight", &[320, 320, 3, 3]),
        ("out.2.weight", &[4, 320, 3, 3]),
    ],
    purposes: &[Purpose::Generate, Purpose::Inpaint, Purpose::Edit],
    heads: Heads::Width(64),
    only_cross_attention: false,
    cells: |_| 128,
    text: &[Encoder::ClipL, Encoder::OpenClipG],
    states: States::Penultimate,
    zero_negative: true,
    latents: LATENTS,
    noise: Noise::STABLE_DIFFUSION,
    prediction: Prediction::Epsilon,
    telling: None,
    steps: 20,
    guidance: 5.0,
    max_noise_level: None,
};

/// Those of its VAE, which the refiner has, too. The shares of colours are InvokeAI's (Apache-2.0), by StAlKeR7779.
pub(super) const LATENTS: Latents = Latents {
    channels: 4,
    scale: 0.13025,
    shift: 0.0,
    rgb: Some(&[
        [0.3816, 0.4930, 0.5320],
        [-0.3753, 0.1631, 0.1739],
        [0.1770, 0.3588, -0.2048],
        [-0.4350, -0.2644, -0.4289],
    ]),
};

/// Whether a U-Net takes a vector beside the text, and reads the text at no more than half the latents' size. The refiner has
/// four resolutions.
pub(super) fn is_xl(layout: &Layout, is_refiner: bool) -> bool {
    let is_labelled = matches!(layout.label, Label::Vector(_));
    is_labelled && !layout.reads_at_full_size() && (layout.levels.len() == 4) == is_refiner
}
