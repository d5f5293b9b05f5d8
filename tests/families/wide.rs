//! Models of any width with random weights: the narrow ones of `tests/golden/checkpoints`, made wider by their
//! configurations, and LoRA files for them.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use calotype::architecture::clip::{self, States};
use calotype::architecture::{autoencoder_kl, unet};
use calotype::graph::Graph;
use serde_json::{Value, json};

use super::golden::{Golden, Precision, safetensors, values};

/// A model of `family` with other numbers in its configurations, per component.
pub fn widened(family: &str, changes: &Value) -> Golden {
    let mut golden = Golden::open(family);
    for (name, component) in &mut golden.components {
        for (key, value) in changes[name].as_object().into_iter().flatten() {
            component.config[key] = value.clone();
        }
        let config = serde_json::to_vec(&component.config).unwrap();
        let pooled = component.config["architectures"][0] == "CLIPTextModelWithProjection";
        let graphs = match name.as_str() {
            "unet" => vec![unet::Config::parse(name, &config).unwrap().graph().unwrap()],
            "vae" => {
                let config = autoencoder_kl::Config::parse(name, &config).unwrap();
                vec![config.encoder().unwrap(), config.decoder().unwrap()]
            }
            _ => {
                let config = clip::Config::parse(name, &config).unwrap();
                vec![config.graph(States::Last, pooled).unwrap()]
            }
        };
        let shapes: BTreeMap<&String, &Vec<usize>> = graphs
            .iter()
            .flat_map(Graph::parameters)
            .map(|parameter| (&parameter.name, &parameter.shape))
            .collect();
        // Graphs leave out trailing dimensions of 1 and the files do not.
        for (tensor, shape) in &mut component.tensors {
            let Some(wide) = shapes.get(tensor) else { continue };
            let len = shape.len().max(wide.len());
            *shape = wide.iter().copied().chain(std::iter::repeat(1)).take(len).collect();
        }
        // Deeper networks have more layers.
        for (tensor, shape) in &shapes {
            if !component.tensors.iter().any(|(known, _)| known == *tensor) {
                component.tensors.push(((*tensor).clone(), (*shape).clone()));
            }
        }
    }
    let wide = golden.shapes();
    // Where a level is wider than the one before it, its first block has a shortcut.
    for (original, name) in [
        (
            "first_stage_model.encoder.down.2.block.0.nin_shortcut",
            "vae/encoder.down_blocks.2.resnets.0.conv_shortcut",
        ),
        (
            "first_stage_model.decoder.up.1.block.0.nin_shortcut",
            "vae/decoder.up_blocks.2.resnets.0.conv_shortcut",
        ),
        (
            "model.diffusion_model.input_blocks.4.0.skip_connection",
            "unet/down_blocks.1.resnets.0.conv_shortcut",
        ),
    ] {
        for (end, how, rank) in [("weight", "reshape", 4), ("bias", "same", 1)] {
            let (original, name) = (format!("{original}.{end}"), format!("{name}.{end}"));
            let rows = golden.single_file.as_mut().expect("a family with single files");
            if wide.contains_key(&name) && rows.iter().all(|(known, ..)| *known != original) {
                rows.push((original, vec![0; rank], how.to_owned(), vec![name]));
            }
        }
    }
    for (name, shape, how, from) in golden.single_file.iter_mut().flatten() {
        let of = |full: &String| &wide[full];
        match how.as_str() {
            "same" => shape.clone_from(of(&from[0])),
            "reshape" => {
                let len = shape.len();
                *shape = of(&from[0]).iter().copied().chain(std::iter::repeat(1)).take(len).collect();
            }
            "concat" => {
                shape.clone_from(of(&from[0]));
                shape[0] = from.iter().map(|full| of(full)[0]).sum();
            }
            "transpose" => *shape = of(&from[0]).iter().rev().copied().collect(),
            "extra" => {}
            other => panic!("{name}: made by {other}"),
        }
    }
    golden
}

/// A narrow Stable Diffusion 1 whose weights are most of what it takes.
pub fn sd15() -> Golden {
    widened(
        "sd15",
        &json!({
            "unet": { "block_out_channels": [64, 128, 256, 256], "cross_attention_dim": 128 },
            "vae": { "block_out_channels": [32, 64, 128, 128] },
            "text_encoder": { "hidden_size": 128, "intermediate_size": 512, "num_attention_heads": 2 },
        }),
    )
}

/// A narrow Stable Diffusion XL.
pub fn sdxl() -> Golden {
    widened(
        "sdxl",
        &json!({
            "unet": { "block_out_channels": [64, 128, 256], "attention_head_dim": [1, 2, 4] },
        }),
    )
}

/// The model of issue reports: a U-Net of 128 to 512 channels, a VAE of 64 to 256, a text encoder of 12 layers of 512.
pub fn middling() -> Golden {
    let mut golden = widened(
        "sd15",
        &json!({
            "unet": { "block_out_channels": [128, 256, 512, 512], "cross_attention_dim": 512 },
            "vae": { "block_out_channels": [64, 128, 256, 256] },
            "text_encoder": {
                "hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8, "num_hidden_layers": 12,
            },
        }),
    );
    // The narrow one's text encoder has fewer layers.
    let known: Vec<String> = golden.single_file.iter().flatten().map(|(name, ..)| name.clone()).collect();
    let prefix = "cond_stage_model.transformer.";
    for (name, shape) in &golden.components["text_encoder"].tensors.clone() {
        let original = format!("{prefix}{name}");
        if !known.contains(&original) {
            let row = (original, shape.clone(), "same".to_owned(), vec![format!("text_encoder/{name}")]);
            golden.single_file.as_mut().unwrap().push(row);
        }
    }
    golden
}

/// A bundle of the model at `source`.
pub fn pack(source: &Path, bundle: &Path, form: [&str; 2]) {
    let output = Command::new(env!("CARGO_BIN_EXE_calotype"))
        .args(["pack", source.to_str().unwrap(), bundle.to_str().unwrap()])
        .args(form)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
}

/// A LoRA of this rank for the attention of a U-Net, named as kohya's trainers do.
pub fn write_lora(path: &Path, tensors: &BTreeMap<String, Vec<usize>>, rank: usize) {
    let ends = ["to_q.weight", "to_k.weight", "to_v.weight", "to_out.0.weight"];
    let is_meant = |name: &str| name.starts_with("unet/") && ends.iter().any(|end| name.ends_with(end));
    let mut stored = Vec::new();
    for (full, shape) in tensors.iter().filter(|(name, _)| is_meant(name)) {
        let name = full.trim_start_matches("unet/").trim_end_matches(".weight");
        let stem = format!("lora_unet_{}", name.replace('.', "_"));
        let (mut down, mut up) = (shape.clone(), shape.clone());
        (down[0], up[0], up[1]) = (rank, shape[0], rank);
        for (part, shape) in [("lora_down", down), ("lora_up", up)] {
            let name = format!("{stem}.{part}.weight");
            let bytes = Precision::F16.bytes(&values("lora", &name, &shape));
            stored.push((name, "F16", shape, bytes));
        }
        stored.push((format!("{stem}.alpha"), "F32", vec![], 1f32.to_le_bytes().to_vec()));
    }
    assert!(stored.len() > 9, "{}", stored.len());
    fs::write(path, safetensors(stored)).unwrap();
}
