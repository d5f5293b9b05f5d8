//! The Stable Diffusion x4 upscaler, which takes a small image and how much noise is on it.

use super::{Encoder, Facts, Heads, Inputs, Label, Latents, Layout, Noise, Purpose};
use crate::architecture::clip::States;
use crate::prediction::Prediction;
use crate::schedule::{Betas, Spacing};

pub(super) static FACTS: Facts = Facts {
    name: "Stable Diffusion x4 upscaler",
    aliases: &["x4-upscaler", "sd-x4-upscaler", "stable-diffusion-x4-upscaler"],
    fits: |layout: &Layout| matches!(layout.label, Label::Class(_)).into(),
    inputs: Inputs { states: Some(1024), pooled: false, time_ids: None, class_labels: true },
    tells: &[
        ("input_blocks.0.0.weight", &[256, 7, 3, 3]),
        ("label_emb.weight", &[1000, 1024]),
        ("input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight", &[512, 1024]),
        ("out.2.weight", &[4, 256, 3, 3]),
    ],
    purposes: &[Purpose::Upscale],
    heads: Heads::Count(8),
    // Shapes cannot tell this where text and image have one width.
    only_cross_attention: true,
    cells: |_| 128,
    text: &[Encoder::OpenClipH],
    states: States::Last,
    zero_negative: false,
    latents: Latents { channels: 4, scale: 0.08333, shift: 0.0, rgb: None },
    noise: Noise {
        betas: Betas::ScaledLinear { start: 0.0001, end: 0.02 },
        train_timesteps: 1000,
        spacing: Spacing::Leading { offset: 1 },
    },
    prediction: Prediction::V,
    telling: None,
    steps: 20,
    guidance: 7.5,
    // As in diffusers' StableDiffusionUpscalePipeline.
    max_noise_level: Some(350),
};
