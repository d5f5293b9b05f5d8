//! Stable Diffusion 2: 2.0 and 2.1, base and 768-v, the inpainting model, and SD-Turbo.

use super::{Encoder, Facts, Fit, Heads, Inputs, Label, Layout, Noise, Purpose, Telling, sd1};
use crate::architecture::clip::States;
use crate::prediction::Prediction;

pub(super) static FACTS: Facts = Facts {
    name: "Stable Diffusion 2",
    aliases: &[
        "sd2",
        "sd 2.0",
        "sd 2.1",
        "sd_v2",
        "sd_v2_768_v",
        "stable-diffusion-v2-512",
        "stable-diffusion-v2-768-v",
    ],
    fits,
    inputs: Inputs { states: Some(1024), pooled: false, time_ids: None, class_labels: false },
    tells: &[
        ("input_blocks.0.0.weight", &[320, 4, 3, 3]),
        ("input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight", &[320, 1024]),
        ("input_blocks.1.1.proj_in.weight", &[320, 320]),
        ("input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight", &[640, 1024]),
        ("input_blocks.11.0.out_layers.3.weight", &[1280, 1280, 3, 3]),
        ("middle_block.1.transformer_blocks.0.attn2.to_k.weight", &[1280, 1024]),
        ("output_blocks.11.1.proj_out.weight", &[320, 320]),
        ("out.2.weight", &[4, 320, 3, 3]),
    ],
    purposes: &[Purpose::Generate, Purpose::Inpaint, Purpose::Edit],
    heads: Heads::Width(64),
    only_cross_attention: false,
    // 768-v was trained on larger images than base.
    cells: |prediction| if prediction == Prediction::V { 96 } else { 64 },
    text: &[Encoder::OpenClipH],
    states: States::Last,
    zero_negative: false,
    latents: sd1::LATENTS,
    noise: Noise::STABLE_DIFFUSION,
    prediction: Prediction::Epsilon,
    telling: Some(telling),
    steps: 20,
    guidance: 7.5,
    max_noise_level: None,
};

fn fits(layout: &Layout) -> Fit {
    match layout.label {
        Label::Nothing => layout.is_linear.into(),
        Label::Vector(width) if layout.reads_at_full_size() => Fit::Relative(
            format!("expected no label_emb, got one of a vector of {width}: looks like SD 2.1 unCLIP"),
            "models that take an image embedding are not supported; use SD 2.1 itself",
        ),
        Label::Vector(_) | Label::Class(_) => Fit::No,
    }
}

/// ComfyUI's rule: base and 768-v have the same names and shapes, but the spread of the bias of a norm in the last transformer
/// tells them apart.
fn telling(layout: &Layout, purpose: Purpose) -> Option<Telling> {
    let last = layout.levels.iter().map(|level| level.up.len()).sum::<usize>().checked_sub(1)?;
    let reads = layout.levels[0].up.last().is_some_and(|depth| *depth > 0);
    (reads && purpose == Purpose::Generate).then(|| Telling {
        tensor: format!("output_blocks.{last}.1.transformer_blocks.0.norm1.bias"),
        above: 0.09,
        prediction: Prediction::V,
    })
}
