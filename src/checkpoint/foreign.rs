//! What files are that are not checkpoints of a kind that can be run: their looks, and the way out.
//! It knows nothing of what is in the others.

use super::source::listed;
use crate::family::{Encoder, supported};
use crate::weights::Weights;
use crate::{Error, ErrorKind};

/// Where there is no other way out, the families that can be run are named.
const SUPPORTED: Option<&str> = None;

/// How a tensor's name gives a kind of file away.
struct Look {
    parts: &'static [&'static str],
    kind: &'static str,
    way_out: Option<&'static str>,
}

const fn look(parts: &'static [&'static str], kind: &'static str, way_out: Option<&'static str>) -> Look {
    Look { parts, kind, way_out }
}

const ADAPTER: Option<&str> = Some("it is an add-on, not a model: give its base model");
const LORA: Option<&str> =
    Some("it is an add-on, not a model: give its base model with {model}, and this file with {lora}");
const INVERSION: Option<&str> =
    Some("it is an add-on, not a model: give its base model with {model}, and this file with {embedding}");
const VAE: Option<&str> = Some("give a complete model with {model}, and this file with {vae}");
const ENCODER: Option<&str> = Some("give a complete model with {model}, and this file with {text_encoder}");
const EDM_FOLDER: &str =
    "give its diffusers folder, whose scheduler and VAE say what noise and latents it was trained on";
const FOLDER: Option<&str> = Some(
    "give the folder that it is a part of, the one with model_index.json, or a complete model with {model} and this \
     file with {unet}",
);

/// Files that have a U-Net, but not one that turns a text into an image. Searched before [`OTHERS`].
const RELATIVES: [Look; 8] = [
    look(&[".time_stack.", ".time_mixer."], "Stable Video Diffusion", SUPPORTED),
    look(&["motion_modules.", ".temporal_transformer."], "AnimateDiff", ADAPTER),
    look(&["input_hint_block.", "controlnet_cond_embedding.", "zero_convs."], "a ControlNet", ADAPTER),
    look(&["cc_projection."], "Zero-1-to-3", SUPPORTED),
    look(&["edm_mean"], "Playground 2.5, which uses EDM noise levels", Some(EDM_FOLDER)),
    look(&["edm_vpred."], "CosXL, which uses EDM noise levels", Some(EDM_FOLDER)),
    look(&["noise_augmentor."], "SD 2.1 unCLIP, which takes an image embedding", Some("use SD 2.1")),
    look(&["depth_model."], "SD 2 depth, which takes a depth map", Some("use SD 2")),
];

/// Everything else; the first that fits is named.
const OTHERS: [Look; 23] = [
    look(
        &[
            "lora_up.",
            "lora_down.",
            ".lora_A.",
            ".lora_B.",
            ".lora.up.",
            ".lora.down.",
            "hada_w1",
            "lokr_w",
            "oft_diag",
        ],
        "a LoRA",
        LORA,
    ),
    look(&["string_to_param", "emb_params"], "a textual inversion", INVERSION),
    look(&["ip_adapter.", "image_proj."], "an IP-Adapter", ADAPTER),
    look(&["single_stream_modulation"], "FLUX.2", SUPPORTED),
    look(&["txt_in.individual_token_refiner."], "HunyuanVideo", SUPPORTED),
    look(&["distilled_guidance_layer."], "Chroma", SUPPORTED),
    look(&["double_blocks.", "single_transformer_blocks."], "FLUX", SUPPORTED),
    look(&["joint_blocks.", ".attn.add_q_proj.", "text_encoders."], "Stable Diffusion 3", SUPPORTED),
    look(&["clip_txt_mapper.", "clip_txt_pooled_mapper.", ".channelwise."], "Stable Cascade", SUPPORTED),
    look(&["double_layers."], "AuraFlow", SUPPORTED),
    look(&["cap_embedder."], "Lumina or Z-Image", SUPPORTED),
    look(&["caption_projection."], "PixArt, Sana or another diffusion transformer", SUPPORTED),
    look(
        &["cond_stage_model.transformer.token_emb.", "diffusion_prior"],
        "an early latent diffusion model",
        SUPPORTED,
    ),
    look(&["transformer_blocks.0.scale_shift_table", "patch_embedding."], "a video model", SUPPORTED),
    look(
        &["taesd_", "decoder.layers.", "encoder.layers.0.conv."],
        "a tiny VAE",
        Some(
            "give a complete model with {model}, and with {vae} the diffusers folder of this VAE, with its config.json",
        ),
    ),
    look(&[".rdb1.", "RDB", "conv_first."], "a super-resolution network", SUPPORTED),
    look(&["model_ema."], "EMA weights without the model itself", Some("download the file for inference")),
    look(
        &["down_blocks.0.resnets.0.time_emb_proj.", "time_embedding.linear_1."],
        "the U-Net of a diffusers folder",
        FOLDER,
    ),
    look(&["encoder.down_blocks.", "decoder.up_blocks."], "the VAE of a diffusers folder", VAE),
    look(&["encoder.down.", "decoder.up."], "a VAE alone", VAE),
    look(
        &["text_model.encoder.layers.", "encoder.layers.0.self_attn.q_proj."],
        "the text encoder of a diffusers folder",
        ENCODER,
    ),
    look(&["transformer.resblocks."], "a text encoder alone", ENCODER),
    look(&["denoiser.", "diffusion_model."], "a diffusion model of an unsupported kind", SUPPORTED),
];

/// Files that steer a U-Net, but not as a control network does. The first that fits is named.
const OTHER_CONTROLS: [Look; 8] = [
    look(&["lllite_unet_"], "a ControlLLLite, which is not supported", CONTROLNET),
    look(&["lora_controlnet"], "a Control-LoRA, which is not supported", CONTROLNET),
    look(&["style_embedding"], "a style adapter of T2I-Adapter, which is not supported", CONTROLNET),
    look(&["task_embedding", "transformer_layes."], "a ControlNet-Union, which is not supported", CONTROLNET),
    look(&["motion_modules.", ".temporal_transformer."], "a SparseCtrl, which is not supported", CONTROLNET),
    look(&["ip_adapter.", "image_proj."], "an IP-Adapter, which is not supported", CONTROLNET),
    look(
        &["controlnet_x_embedder", "controlnet_blocks.", "single_transformer_blocks.", "double_blocks."],
        "a control network of Flux or Stable Diffusion 3",
        CONTROLNET,
    ),
    look(&["control_all_x_embedder", "control_layers."], "a control network of Z-Image", CONTROLNET),
];

/// What else is given for a control network.
const NO_CONTROLS: [Look; 5] = [
    look(&["lora_up.", "lora_down.", ".lora_A.", ".lora.up."], "a LoRA", Some("give it with {lora}")),
    look(&["output_blocks.", "up_blocks."], "a U-Net or a whole model", CONTROLNET),
    look(&["encoder.down", "decoder.up"], "a VAE", CONTROLNET),
    look(&["text_model.encoder.layers.", "transformer.resblocks."], "a text encoder", CONTROLNET),
    look(&["control_", "controlnet_"], "a control network of another architecture", CONTROLNET),
];

const CONTROLNET: Option<&str> =
    Some("give a ControlNet or a T2I-Adapter for this model's family, such as diffusers' ControlNetModel");

/// Refuses files that steer a U-Net in another way.
pub(crate) fn refuse_other_controls(weights: &Weights, place: &str) -> Result<(), Error> {
    static DIFFERENCE: Look = look(
        &[],
        "a difference to a base model's weights, which is not supported",
        Some("give the full ControlNet, to whose weights those of its base model have been added"),
    );
    // The whole name: others contain the word.
    let is_difference = weights.iter().any(|(name, _)| name == "difference");
    match seen(weights, &OTHER_CONTROLS) {
        Some((name, look)) => Err(not_a_control(weights, place, name, Some(look))),
        None if is_difference => Err(not_a_control(weights, place, "difference", Some(&DIFFERENCE))),
        None => Ok(()),
    }
}

/// What a file without a control network is.
pub(super) fn not_a_control_network(weights: &Weights, place: &str) -> Error {
    let first = weights.iter().next().map_or("", |(name, _)| name);
    match seen(weights, &NO_CONTROLS) {
        Some((name, look)) => not_a_control(weights, place, name, Some(look)),
        None => not_a_control(weights, place, first, None),
    }
}

fn not_a_control(weights: &Weights, place: &str, name: &str, look: Option<&Look>) -> Error {
    let looks = look.map_or(String::new(), |look| format!(": looks like {}", look.kind));
    let seen = described(weights, &listed([name].into_iter()));
    Error::new(
        ErrorKind::Model,
        format!("{place}: expected a ControlNet or a T2I-Adapter, got {seen}{looks}"),
    )
    .help(look.and_then(|look| look.way_out).or(CONTROLNET).unwrap_or_default())
}

/// Where a GGUF file says what its network is.
const GGUF_ARCHITECTURE: &str = "general.architecture";

/// The most tensors of a textual inversion that has no telling names.
const EMBEDDINGS: usize = 8;

/// Refuses files that have a U-Net which is not what it seems to be.
pub(super) fn refuse_relatives(weights: &Weights, place: &str) -> Result<(), Error> {
    match seen(weights, &RELATIVES) {
        Some((name, look)) => Err(refusal(weights, place, name, Some(look))),
        None => Ok(()),
    }
}

/// What a file without a U-Net is.
pub(super) fn unrecognised(weights: &Weights, place: &str) -> Error {
    static EMBEDDING: Look = look(&[], "a textual inversion", INVERSION);
    let first = weights.iter().next().map_or("", |(name, _)| name);
    match seen(weights, &OTHERS) {
        Some((name, look)) => refusal(weights, place, name, Some(look)),
        None => refusal(weights, place, first, is_embedding(weights).then_some(&EMBEDDING)),
    }
}

/// What a file without a VAE is.
pub(super) fn not_an_autoencoder(weights: &Weights, place: &str) -> Error {
    let names = listed(weights.iter().map(|(name, _)| name));
    Error::new(ErrorKind::Model, format!("{place}: expected a VAE, got {}", described(weights, &names)))
        .help("give a file with encoder.down and decoder.up, or a diffusers folder")
}

/// What a file without a text encoder is.
pub(super) fn not_a_text_encoder(weights: &Weights, place: &str) -> Error {
    let names = listed(weights.iter().map(|(name, _)| name));
    Error::new(
        ErrorKind::Model,
        format!("{place}: expected a CLIP text encoder, got {}", described(weights, &names)),
    )
    .help("give a file with text_model.encoder.layers (transformers) or transformer.resblocks (OpenCLIP)")
}

fn seen<'a>(weights: &'a Weights, looks: &'static [Look]) -> Option<(&'a str, &'static Look)> {
    looks.iter().find_map(|look| {
        let fits = |name: &&str| look.parts.iter().any(|part| name.contains(part));
        weights.iter().map(|(name, _)| name).find(fits).map(|name| (name, look))
    })
}

fn is_embedding(weights: &Weights) -> bool {
    let fits = |shape: &[usize]| {
        (1..=2).contains(&shape.len())
            && shape.last().is_some_and(|width| Encoder::of_width(*width).is_some())
    };
    (1..=EMBEDDINGS).contains(&weights.iter().count())
        && weights.iter().all(|(_, tensor)| fits(tensor.shape()))
}

fn refusal(weights: &Weights, place: &str, name: &str, look: Option<&Look>) -> Error {
    let mut seen = described(weights, &listed([name].into_iter()));
    // What a file says that it is, counts more than how it looks.
    if let Some(architecture) = weights.metadata(GGUF_ARCHITECTURE) {
        seen = format!("a GGUF file of the architecture {}, {seen}", listed([architecture].into_iter()));
    }
    let (looks, way_out) = match look {
        Some(look) => (format!(": looks like {}", look.kind), look.way_out),
        None => (String::new(), SUPPORTED),
    };
    Error::new(
        ErrorKind::Model,
        format!("{place}: expected a Stable Diffusion checkpoint, got {seen}{looks}"),
    )
    .help(way_out.map_or_else(supported, ToOwned::to_owned))
}

fn described(weights: &Weights, names: &str) -> String {
    match weights.iter().count() {
        0 => "no tensors".into(),
        1 => format!("one tensor, {names}"),
        count => format!("{count} tensors, such as {names}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::{recognise, recognise_autoencoder};
    use crate::weights::Dtype;

    fn file(tensors: &[(&str, &[usize])]) -> Weights {
        let mut weights = Weights::default();
        for (name, shape) in tensors {
            let bytes = vec![0; 4 * shape.iter().product::<usize>()];
            weights.replace(*name, Dtype::F32, shape, &bytes).unwrap();
        }
        weights
    }

    #[test]
    fn other_files_are_named_with_a_way_out() {
        let kinds = [
            ("double_blocks.0.img_attn.qkv.weight", "FLUX", "are supported"),
            ("model.diffusion_model.double_blocks.0.img_attn.qkv.weight", "FLUX", "are supported"),
            ("single_transformer_blocks.0.attn.to_q.weight", "FLUX", "are supported"),
            (
                "model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight",
                "Stable Diffusion 3",
                "are supported",
            ),
            (
                "text_encoders.clip_l.transformer.text_model.final_layer_norm.bias",
                "Stable Diffusion 3",
                "are supported",
            ),
            ("clip_txt_mapper.weight", "Stable Cascade", "are supported"),
            ("down_blocks.0.0.channelwise.0.weight", "Stable Cascade", "are supported"),
            (
                "model.diffusion_model.input_blocks.1.1.time_stack.0.norm1.weight",
                "Stable Video Diffusion",
                "are supported",
            ),
            ("lora_unet_mid_block_attentions_0_proj_in.lora_up.weight", "a LoRA", "this file with `lora`"),
            ("unet.mid_block.attentions.0.proj_in.lora_A.weight", "a LoRA", "give its base model"),
            ("control_model.input_hint_block.0.weight", "a ControlNet", "give its base model"),
            ("controlnet_cond_embedding.conv_in.weight", "a ControlNet", "give its base model"),
            ("down_blocks.0.motion_modules.0.norm.weight", "AnimateDiff", "give its base model"),
            ("ip_adapter.1.to_k_ip.weight", "an IP-Adapter", "give its base model"),
            ("emb_params", "a textual inversion", "`embedding`"),
            (
                "down_blocks.0.resnets.0.time_emb_proj.weight",
                "the U-Net of a diffusers folder",
                "model_index.json",
            ),
            ("decoder.up_blocks.0.resnets.0.conv1.weight", "the VAE of a diffusers folder", "`vae`"),
            (
                "text_model.encoder.layers.0.mlp.fc1.bias",
                "the text encoder of a diffusers folder",
                "`text_encoder`",
            ),
            (
                "encoder.layers.0.self_attn.q_proj.bias",
                "the text encoder of a diffusers folder",
                "`text_encoder`",
            ),
            ("first_stage_model.decoder.up.0.block.0.conv1.bias", "a VAE alone", "`vae`"),
            ("decoder.up.0.block.0.conv1.bias", "a VAE alone", "`vae`"),
            ("model_ema.diffusion_modelout2weight", "EMA weights", "for inference"),
        ];
        for (name, kind, way_out) in kinds {
            let error = recognise(&file(&[(name, &[2, 3])]), "x.safetensors").expect_err(name);
            assert_eq!(error.kind(), ErrorKind::Model);
            let message = error.to_string();
            let start = format!(
                "x.safetensors: expected a Stable Diffusion checkpoint, got one tensor, {name}: looks like "
            );
            assert!(message.starts_with(&start), "{message}");
            assert!(
                message[start.len()..].starts_with(kind) && message.contains(way_out),
                "{name}: {message}"
            );
        }
    }

    #[test]
    fn a_file_of_a_few_embeddings_is_a_textual_inversion() {
        let looks = |tensors: &[(&str, &[usize])]| recognise(&file(tensors), "x").unwrap_err().to_string();
        assert!(looks(&[("<cat>", &[768])]).contains("looks like a textual inversion"));
        assert!(
            looks(&[("clip_g", &[4, 1280]), ("clip_l", &[4, 768])])
                .contains("looks like a textual inversion")
        );
        assert!(!looks(&[("a", &[4, 768]), ("b", &[4, 100])]).contains("looks like"));
    }

    #[test]
    fn unknown_and_empty_files_say_what_was_seen_and_what_is_supported() {
        let message = recognise(&file(&[("b", &[1]), ("a", &[2])]), "x").unwrap_err().to_string();
        assert!(
            message.starts_with("x: expected a Stable Diffusion checkpoint, got 2 tensors, such as a; "),
            "{message}"
        );
        assert!(message.contains("Stable Diffusion 1, Stable Diffusion 2, Stable Diffusion XL"), "{message}");
        let message = recognise(&Weights::default(), "x").unwrap_err().to_string();
        assert!(
            message.starts_with("x: expected a Stable Diffusion checkpoint, got no tensors; "),
            "{message}"
        );
        let message = recognise_autoencoder(&file(&[("a", &[2])]), "x").unwrap_err().to_string();
        assert!(message.starts_with("x: expected a VAE, got one tensor, a; "), "{message}");
    }

    #[test]
    fn an_absurdly_long_name_is_shown_in_part() {
        let message = recognise(&file(&[(&"é".repeat(100_000), &[1])]), "x").unwrap_err().to_string();
        assert!(message.len() < 600, "{} bytes", message.len());
    }
}
