//! Stable Diffusion 1 (Rombach et al. 2022): 1.1 to 1.5, and the inpainting and InstructPix2Pix models made from it.

use super::{Encoder, Facts, Heads, Inputs, Label, Latents, Layout, Noise, Purpose};
use crate::architecture::clip::States;
use crate::prediction::Prediction;

pub(super) static FACTS: Facts = Facts {
    name: "Stable Diffusion 1",
    aliases: &["sd1", "sd 1.4", "sd 1.5", "sd_v1", "stable-diffusion-v1"],
    fits: |layout: &Layout| (layout.label == Label::Nothing && !layout.is_linear).into(),
    inputs: Inputs { states: Some(768), pooled: false, time_ids: None, class_labels: false },
    tells: &[
        ("input_blocks.0.0.weight", &[320, 4, 3, 3]),
        ("input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight", &[320, 768]),
        ("input_blocks.1.1.proj_in.weight", &[320, 320, 1, 1]),
        ("input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight", &[640, 768]),
        ("input_blocks.11.0.out_layers.3.weight", &[1280, 1280, 3, 3]),
        ("middle_block.1.transformer_blocks.0.attn2.to_k.weight", &[1280, 768]),
        ("output_blocks.11.1.proj_out.weight", &[320, 320, 1, 1]),
        ("out.2.weight", &[4, 320, 3, 3]),
    ],
    purposes: &[Purpose::Generate, Purpose::Inpaint, Purpose::Edit],
    heads: Heads::Count(8),
    only_cross_attention: false,
    cells: |_| 64,
    text: &[Encoder::ClipL],
    states: States::Last,
    zero_negative: false,
    latents: LATENTS,
    noise: Noise::STABLE_DIFFUSION,
    prediction: Prediction::Epsilon,
    telling: None,
    steps: 20,
    guidance: 7.5,
    max_noise_level: None,
};

/// Those of its VAE, which Stable Diffusion 2 has, too. The shares of colours are InvokeAI's (Apache-2.0), by torridgristle.
pub(super) const LATENTS: Latents = Latents {
    channels: 4,
    scale: 0.18215,
    shift: 0.0,
    rgb: Some(&[
        [0.3444, 0.1385, 0.0670],
        [0.1247, 0.4027, 0.1494],
        [-0.3192, 0.2513, 0.2103],
        [-0.1307, -0.1874, -0.7445],
    ]),
};
