//! Single-file checkpoints against the originals that diffusers reads: `tests/golden/checkpoints`, written by
//! `export/golden_checkpoints.py`.

#![cfg(feature = "engine")]

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::sync::LazyLock;

use calotype::ErrorKind;
use calotype::architecture::{autoencoder_kl, clip, unet};
use calotype::checkpoint::{self, Checkpoint, Family, Names, Purpose};
use calotype::prediction::Prediction;
use calotype::weights::{Dtype, Stored, Weights};
use flate2::read::GzDecoder;
use serde_json::{Value, json};

#[test]
fn every_original_is_recognised_down_to_the_last_tensor() {
    let mut seen = BTreeMap::new();
    for golden in records().iter().filter(|golden| golden["single_file"].is_array()) {
        let name = golden["family"].as_str().unwrap();
        let weights = weights(&tensors_of(golden));
        let Checkpoint { family, purpose, hint: _, unet, vae, text_encoder, text_encoder_2 } =
            checkpoint::recognise(&weights, name).unwrap();
        let mut components = vec!["unet"];
        check_names(&weights, golden, "unet", &unet.names);
        let published = unet::Config::parse("unet", &config(golden, "unet")).unwrap();
        assert_eq!(unet.config, unet::Config { sample_size: unet.config.sample_size, ..published }, "{name}");

        if let Some(vae) = vae {
            components.push("vae");
            check_names(&weights, golden, "vae", &vae.names);
            let published = autoencoder_kl::Config::parse("vae", &config(golden, "vae")).unwrap();
            let told = autoencoder_kl::Config { sample_size: published.sample_size, ..vae.config };
            assert_eq!(
                told,
                autoencoder_kl::Config { force_upcast: told.force_upcast, ..published },
                "{name}"
            );
        }
        for (component, part) in [("text_encoder", text_encoder), ("text_encoder_2", text_encoder_2)] {
            let Some(part) = part else { continue };
            components.push(component);
            check_names(&weights, golden, component, &part.names);
            let published = clip::Config::parse(component, &config(golden, component)).unwrap();
            let projects = part.names.contains_key("text_projection.weight");
            let projection_dim = if projects { part.config.projection_dim } else { published.projection_dim };
            assert_eq!(clip::Config { projection_dim, ..part.config }, published, "{name}: {component}");
        }
        components.sort_unstable();
        let published = golden["components"].as_object().unwrap().keys();
        assert!(published.eq(&components), "{name}: {components:?}");
        seen.insert(name.to_owned(), (family, purpose));
    }
    let families = [
        ("inpaint", Family::Sd1, Purpose::Inpaint),
        ("instruct-pix2pix", Family::Sd1, Purpose::Edit),
        ("lcm", Family::Sd1, Purpose::Generate),
        ("sd-turbo", Family::Sd2, Purpose::Generate),
        ("sd15", Family::Sd1, Purpose::Generate),
        ("sd21", Family::Sd2, Purpose::Generate),
        ("sd21-base", Family::Sd2, Purpose::Generate),
        ("sdxl", Family::Sdxl, Purpose::Generate),
        ("sdxl-refiner", Family::SdxlRefiner, Purpose::Generate),
        ("sdxl-turbo", Family::Sdxl, Purpose::Generate),
        ("ssd-1b", Family::Sdxl, Purpose::Generate),
        ("x4-upscaler", Family::Upscaler, Purpose::Upscale),
    ];
    assert!(
        seen.into_iter().eq(families.map(|(name, family, purpose)| (name.to_owned(), (family, purpose))))
    );
}

#[test]
fn folders_of_all_ages_have_the_same_names() {
    let mut renamed = 0;
    for golden in records() {
        for (component, record) in golden["components"].as_object().unwrap() {
            let names: Vec<String> = tensor_list(&record["tensors"]).into_keys().collect();
            let other =
                |name: &String| (record["also_named"][name].as_str().unwrap_or(name).to_owned(), vec![1]);
            let file = weights(&names.iter().map(other).collect());
            let table = match component.as_str() {
                "vae" => checkpoint::autoencoder_names(&file),
                "unet" => continue,
                _ => checkpoint::text_encoder_names(&file),
            };
            assert!(names.iter().eq(table.keys()), "{}: {component}", golden["family"]);
            renamed += record["also_named"].as_object().unwrap().len();
        }
    }
    assert!(renamed > 100, "only {renamed} other names");
}

#[test]
fn a_file_may_have_nothing_but_the_unet() {
    for prefix in ["", UNET] {
        let unet = original("sdxl").into_iter().filter_map(|(name, shape)| {
            name.strip_prefix(UNET).map(|name| (format!("{prefix}{name}"), shape))
        });
        let got = checkpoint::recognise(&weights(&unet.collect()), "x").unwrap();
        assert_eq!(got.family, Family::Sdxl);
        assert_eq!((got.vae, got.text_encoder, got.text_encoder_2), (None, None, None));
        assert_eq!(got.unet.names["conv_in.weight"].name, format!("{prefix}input_blocks.0.0.weight"));
    }
}

#[test]
fn a_file_may_have_nothing_but_the_vae() {
    let whole = checkpoint::recognise(&weights(&original("sd15")), "x").unwrap().vae.unwrap();
    for prefix in ["", "first_stage_model.", "vae."] {
        let vae = original("sd15").into_iter().filter_map(|(name, shape)| {
            name.strip_prefix(VAE).map(|name| (format!("{prefix}{name}"), shape))
        });
        let mut vae: Tensors = vae.collect();
        vae.insert(format!("{prefix}loss.logvar"), vec![]);
        let got = checkpoint::recognise_autoencoder(&weights(&vae), "x").unwrap();
        assert_eq!(got.config, whole.config);
        assert!(got.names.keys().eq(whole.names.keys()));
        assert_eq!(got.names["quant_conv.bias"].name, format!("{prefix}quant_conv.bias"));
    }
}

/// As other programs write them.
#[test]
fn text_encoders_may_have_other_prefixes() {
    let expected = checkpoint::recognise(&weights(&original("sd15")), "x").unwrap().text_encoder.unwrap();
    for prefix in ["cond_stage_model.transformer.", "cond_stage_model.clip_l.transformer.text_model."] {
        let renamed = original("sd15")
            .into_iter()
            .map(|(name, shape)| (name.replace("cond_stage_model.transformer.text_model.", prefix), shape));
        let got = checkpoint::recognise(&weights(&renamed.collect()), "x").unwrap().text_encoder.unwrap();
        assert_eq!(got.config, expected.config);
        assert!(got.names.keys().eq(expected.names.keys()));
        let name = "encoder.layers.0.mlp.fc1.bias";
        assert_eq!(got.names[&format!("text_model.{name}")].name, format!("{prefix}{name}"));
    }
}

#[test]
fn a_projection_may_be_stored_as_a_layer() {
    let original_name = "conditioner.embedders.1.model.text_projection";
    let mut file = original("sdxl");
    let mut shape = file.remove(original_name).unwrap();
    shape.reverse();
    file.insert(format!("{original_name}.weight"), shape);
    let got = checkpoint::recognise(&weights(&file), "x").unwrap().text_encoder_2.unwrap();
    assert_eq!(got.names["text_projection.weight"], Stored::whole(format!("{original_name}.weight")));
}

/// Files made from diffusers folders lack the layer that nothing reads, and then the projection, too.
#[test]
fn an_encoder_without_its_unused_layer_keeps_the_others() {
    let mut file = original("sd21");
    let last = "cond_stage_model.model.transformer.resblocks.2.";
    file.retain(|name, _| !name.starts_with(last) && !name.ends_with("text_projection"));
    let got = checkpoint::recognise(&weights(&file), "x").unwrap().text_encoder.unwrap();
    assert_eq!(got.config.num_hidden_layers, 2);
}

#[test]
fn a_bias_tells_what_sd_2_predicts() {
    let bias = "model.diffusion_model.output_blocks.11.1.transformer_blocks.0.norm1.bias";
    let hint = |family: &str, dtype: Dtype, bytes: &[u8]| {
        let mut weights = weights(&original(family));
        let size = bytes.len() / dtype.size_bytes();
        weights.replace(bias, dtype, &[size], bytes).unwrap();
        checkpoint::recognise(&weights, "x").unwrap().hint
    };
    // Numbers whose standard deviation is the one asked for, around a mean that is not zero.
    let numbers = |deviation: f32| [1.0 + deviation, 1.0 - deviation].repeat(32);
    let f32 = |deviation| numbers(deviation).into_iter().flat_map(f32::to_le_bytes).collect::<Vec<u8>>();
    let f16 = |deviation| -> Vec<u8> {
        numbers(deviation).into_iter().flat_map(|value| half::f16::from_f32(value).to_le_bytes()).collect()
    };
    let bf16 = |deviation| -> Vec<u8> {
        numbers(deviation).into_iter().flat_map(|value| half::bf16::from_f32(value).to_le_bytes()).collect()
    };
    for (deviation, prediction) in [(0.05, Prediction::Epsilon), (0.15, Prediction::V)] {
        assert_eq!(hint("sd21", Dtype::F32, &f32(deviation)).prediction, prediction);
        assert_eq!(hint("sd21", Dtype::F16, &f16(deviation)).prediction, prediction);
        assert_eq!(hint("sd21", Dtype::Bf16, &bf16(deviation)).prediction, prediction);
    }
    let reason = hint("sd21", Dtype::F32, &f32(0.125)).reason;
    assert!(reason.ends_with("norm1.bias has a standard deviation of 0.125, above 0.09"), "{reason}");
    // Others predict noise, whatever this bias is.
    assert_eq!(hint("sd15", Dtype::F32, &f32(0.15)).prediction, Prediction::Epsilon);
}

#[test]
fn marks_tell_what_a_finetune_predicts() {
    let hint = |family: &str, marks: &[&str]| {
        let mut file = original(family);
        file.extend(marks.iter().map(|mark| (mark.to_string(), vec![0])));
        checkpoint::recognise(&weights(&file), "x").unwrap().hint
    };
    let plain = hint("sdxl", &[]);
    assert_eq!((plain.prediction, plain.zero_terminal_snr), (Prediction::Epsilon, false));
    let marked = hint("sdxl", &["v_pred", "ztsnr"]);
    assert_eq!((marked.prediction, marked.zero_terminal_snr), (Prediction::V, true));
    assert_eq!(marked.reason, "the file has a tensor v_pred");
    assert_eq!(hint("x4-upscaler", &[]).prediction, Prediction::V);
}

#[test]
fn what_a_file_says_of_its_prediction_counts() {
    let hint = |family: &str, said: &str| {
        let weights = weights_with(&original(family), json!({"modelspec.prediction_type": said}));
        checkpoint::recognise(&weights, "x").map(|checkpoint| checkpoint.hint)
    };
    let said = hint("sdxl", "v").unwrap();
    assert_eq!(said.prediction, Prediction::V);
    assert_eq!(said.reason, "the file says modelspec.prediction_type v");
    assert_eq!(hint("sd21", "epsilon").unwrap().prediction, Prediction::Epsilon);
    for name in ["v_prediction", "velocity", "vpred", "V", " V-Prediction "] {
        assert_eq!(hint("sdxl", name).unwrap().prediction, Prediction::V, "{name}");
    }
    for name in ["eps", "epsilon", "EPS"] {
        assert_eq!(hint("sd21", name).unwrap().prediction, Prediction::Epsilon, "{name}");
    }
    // kohya's trainers write Python's words. A run that starts from noise alone needs a model that does not predict it.
    for (v, zero, expected) in [
        ("True", "True", (Prediction::V, true)),
        ("True", "False", (Prediction::V, false)),
        ("False", "True", (Prediction::Epsilon, false)),
        ("None", "None", (Prediction::Epsilon, false)),
    ] {
        let said = json!({"ss_v_parameterization": v, "ss_zero_terminal_snr": zero});
        let hint = checkpoint::recognise(&weights_with(&original("sdxl"), said), "x").unwrap().hint;
        assert_eq!((hint.prediction, hint.zero_terminal_snr), expected, "{v}, {zero}");
        assert_eq!(hint.notes, Vec::<String>::new(), "{v}, {zero}");
    }
    // Without an answer, or with one that is not understood, the rest of the evidence counts.
    let plain = weights_with(&original("sd21"), json!({}));
    let plain = checkpoint::recognise(&plain, "x").unwrap().hint;
    for name in ["", " "] {
        assert_eq!(hint("sd21", name).unwrap(), plain, "{name:?}");
    }
    let unknown = hint("sd21", "flow").unwrap();
    assert_eq!((unknown.prediction, &unknown.reason), (plain.prediction, &plain.reason));
    assert_eq!(unknown.notes.len(), 1);
    assert!(unknown.notes[0].starts_with("modelspec.prediction_type: expected v or epsilon, got \"flow\""));

    let trained = |said: serde_json::Value| {
        checkpoint::recognise(&weights_with(&original("sdxl"), said), "x").unwrap().hint.prediction
    };
    assert_eq!(trained(json!({"ss_v_parameterization": "True"})), Prediction::V);
    assert_eq!(trained(json!({"ss_v_parameterization": "False"})), Prediction::Epsilon);
    assert_eq!(
        trained(json!({"modelspec.prediction_type": "wobble", "ss_v_parameterization": "True"})),
        Prediction::V
    );
}

#[test]
fn hostile_files_are_model_errors() {
    let (unet, clip) = (|name: &str| format!("{UNET}{name}"), "cond_stage_model.transformer.text_model.");
    let without = |start: String| move |file: &mut Tensors| file.retain(|name, _| !name.starts_with(&start));
    let with = |name: String, shape: &[usize]| {
        let shape = shape.to_vec();
        move |file: &mut Tensors| drop(file.insert(name, shape))
    };
    let depth = "input_blocks.1.1.transformer_blocks.";

    refused(
        "sd15",
        with(unet("input_blocks.99999999.0.op.bias"), &[1]),
        "no input_blocks.12 but input_blocks.99999999",
    );
    refused(
        "sd15",
        with(unet("input_blocks.99999999999999999999999.0.op.bias"), &[1]),
        "got 1 others too, such as input",
    );
    refused(
        "sd15",
        with(unet("input_blocks.01.0.op.bias"), &[1]),
        "got 1 others too, such as input_blocks.01.0.op.bias",
    );
    refused(
        "sd15",
        with(unet("output_blocks.12.0.op.bias"), &[1]),
        "got 1 others too, such as output_blocks.12.0",
    );
    refused("sd15", with(unet("motion.weight"), &[1]), "got 1 others too, such as motion.weight");
    refused(
        "sd15",
        with(unet(&format!("{depth}9.norm1.bias")), &[1]),
        "no input_blocks.1.1.transformer_blocks.1 but",
    );
    refused("sd15", without(unet("input_blocks.3.")), "got no input_blocks.3 but input_blocks.11");
    refused(
        "sd15",
        without(unet("out.")),
        "U-Net: expected a tensor out.2.weight, got none; the file is incomplete",
    );
    refused(
        "sd15",
        without(unet("middle_block.2.in")),
        "4 are missing, such as middle_block.2.in_layers.0.weight, ",
    );
    refused(
        "sd15",
        without(unet("output_blocks.3.1.")),
        "after all 3 residual blocks of a level or none, got 2",
    );
    refused("sd15", without(unet("input_blocks.0.0.weight")), "expected a Stable Diffusion checkpoint, got ");
    refused("sd15", with(unet("input_blocks.0.0.weight"), &[4]), "expected 4 dimensions, got shape [4]");
    refused(
        "sd15",
        with(unet("input_blocks.1.0.in_layers.2.weight"), &[]),
        "expected 4 dimensions, got shape []",
    );
    refused(
        "sd15",
        with(unet("time_embed.0.weight"), &[1, 1, 1]),
        "expected 2 dimensions, got shape [1, 1, 1]",
    );
    refused(
        "sd15",
        with(unet("input_blocks.0.0.weight"), &[32, 5, 3, 3]),
        "looks like a model that takes a depth",
    );
    refused(
        "sd15",
        with(unet("input_blocks.0.0.weight"), &[32, 2, 3, 3]),
        "expected 4 input channels, 9 for inpainting",
    );
    refused(
        "sd15",
        with(unet("input_blocks.0.0.weight"), &[0, usize::MAX, 3, 3]),
        "expected 4 input channels",
    );
    refused("sd15", with(unet("out.2.weight"), &[1 << 60, 0, 3, 3]), "input channels");
    refused("sd21", with(unet("label_emb.0.0.weight"), &[64, 2048]), "looks like SD 2.1 unCLIP");
    refused(
        "sd21",
        with(unet("input_blocks.2.0.in_layers.2.weight"), &[96, 1, 3, 3]),
        "U-Net: input_blocks.2: expected 64 channels, as in the block before it, got 96",
    );
    refused(
        "sd21",
        |file| {
            for block in [1, 2] {
                file.insert(format!("{UNET}input_blocks.{block}.0.in_layers.2.weight"), vec![96, 1, 3, 3]);
            }
        },
        "expected channels in multiples of 64, got 96",
    );
    refused("sdxl", with("edm_mean".into(), &[4]), "looks like Playground 2.5");
    refused(
        "sd15",
        |file| file.retain(|name, _| !name.contains(".1.transformer_blocks")),
        "with cross-attention, got none",
    );

    refused(
        "sd15",
        without(format!("{VAE}decoder.conv_out")),
        "VAE: expected a tensor decoder.conv_out.weight, got none",
    );
    refused(
        "sd15",
        without(format!("{VAE}decoder.up.2.")),
        "VAE: expected 244 tensors, but 26 are missing, such as decoder",
    );
    refused(
        "sd15",
        with(format!("{VAE}encoder.down.7.attn.0.q.bias"), &[1]),
        "no encoder.down.4 but encoder.down.7",
    );
    refused(
        "sd15",
        with(format!("{VAE}encoder.down.3.attn.0.q.bias"), &[1]),
        "got 1 others too, such as encoder.down.3",
    );

    refused(
        "sd15",
        without(format!("{clip}embeddings.")),
        "text encoder: expected a tensor text_model.embeddings.tok",
    );
    refused(
        "sd15",
        without(format!("{clip}encoder.layers.1.mlp")),
        "4 are missing, such as text_model.encoder.layers.1",
    );
    refused(
        "sd15",
        with(format!("{clip}embeddings.token_embedding.weight"), &[9, 65]),
        "in multiples of 64 up to 65536, got 65",
    );
    refused(
        "sd15",
        with(format!("{clip}embeddings.token_embedding.weight"), &[0, 1 << 63]),
        "in multiples of 64 up to 65536",
    );
    refused(
        "sd15",
        rename("cond_stage_model.transformer.", "cond_stage_model.roberta."),
        "expected a CLIP text encoder under cond_stage_model.",
    );
    let fused = "conditioner.embedders.1.model.transformer.resblocks.0.attn.in_proj_weight";
    refused("sdxl", with(fused.into(), &[385, 128]), "expected 3 x 128 rows, got shape [385, 128]");
    refused("sdxl", with(fused.into(), &[]), "expected 3 x 128 rows, got shape []");
}

/// Of the published sizes, under the names of transformers: width, layers and names tell what the file does not say.
#[test]
fn text_encoders_alone_go_where_their_kind_belongs() {
    let encoder = |prefix: &str, width: usize, layers: usize, projection: Option<&str>| {
        let mut file = Tensors::new();
        let mut add =
            |name: &str, shape: &[usize]| drop(file.insert(format!("{prefix}{name}"), shape.to_vec()));
        add("text_model.embeddings.token_embedding.weight", &[49408, width]);
        add("text_model.embeddings.position_embedding.weight", &[77, width]);
        for layer in 0..layers {
            let layer = format!("text_model.encoder.layers.{layer}");
            for (name, shape) in [
                ("layer_norm1", vec![width]),
                ("layer_norm2", vec![width]),
                ("mlp.fc1", vec![4 * width, width]),
                ("mlp.fc2", vec![width, 4 * width]),
                ("self_attn.q_proj", vec![width, width]),
                ("self_attn.k_proj", vec![width, width]),
                ("self_attn.v_proj", vec![width, width]),
                ("self_attn.out_proj", vec![width, width]),
            ] {
                add(&format!("{layer}.{name}.weight"), &shape);
                add(&format!("{layer}.{name}.bias"), &shape[..1]);
            }
        }
        add("text_model.final_layer_norm.weight", &[width]);
        add("text_model.final_layer_norm.bias", &[width]);
        if let Some(name) = projection {
            add(name, &[width, width]);
        }
        file
    };
    let found = |file: &Tensors, is_xl: bool| {
        checkpoint::recognise_text_encoders(&weights(file), "x", is_xl).unwrap().map(|part| {
            part.map(|part| {
                let projection = part.names.get("text_projection.weight").map(|stored| stored.transposed);
                (part.config.num_hidden_layers, part.config.hidden_act, projection)
            })
        })
    };
    let (quick, gelu) = (clip::Activation::QuickGelu, clip::Activation::Gelu);
    let projection = Some("text_projection.weight");
    assert_eq!(found(&encoder("", 768, 12, projection), false), [Some((12, quick, None)), None]);
    assert_eq!(found(&encoder("", 768, 12, projection), true), [Some((12, quick, None)), None]);
    assert_eq!(found(&encoder("", 1024, 24, None), false), [Some((23, gelu, None)), None]);
    assert_eq!(found(&encoder("", 1024, 23, None), false), [Some((23, gelu, None)), None]);
    assert_eq!(found(&encoder("", 1280, 32, projection), true), [None, Some((32, gelu, Some(false)))]);
    // As stable-diffusion.cpp writes both into one file.
    let mut both = encoder("cond_stage_model.transformer.", 768, 12, None);
    both.extend(encoder("cond_stage_model.1.transformer.", 1280, 32, Some("text_model.text_projection")));
    assert_eq!(found(&both, true), [Some((12, quick, None)), Some((32, gelu, Some(true)))]);
}

/// Sizes that only a graph is refused for.
#[test]
fn absurd_sizes_do_not_become_graphs() {
    let mut file = original("sd15");
    for block in [1, 2] {
        file.insert(format!("{UNET}input_blocks.{block}.0.in_layers.2.weight"), vec![1 << 60, 0, 3, 3]);
    }
    let got = checkpoint::recognise(&weights(&file), "x").unwrap();
    let error = got.unet.config.graph().err().unwrap();
    assert!(error.to_string().contains("block_out_channels: expected 1 to 65536"), "{error}");
}

#[track_caller]
fn refused(family: &str, change: impl FnOnce(&mut Tensors), message: &str) {
    let mut file = original(family);
    let before = file.clone();
    change(&mut file);
    assert!(file != before, "nothing was changed for {message:?}");
    let error = checkpoint::recognise(&weights(&file), "x.safetensors").expect_err(message);
    assert_eq!(error.kind(), ErrorKind::Model, "{error}");
    let text = error.to_string();
    assert!(text.starts_with("x.safetensors: ") && text.contains(message), "expected {message:?} in: {text}");
}

fn rename(from: &'static str, to: &'static str) -> impl FnOnce(&mut Tensors) {
    move |file| *file = file.iter().map(|(name, shape)| (name.replace(from, to), shape.clone())).collect()
}

const UNET: &str = "model.diffusion_model.";
const VAE: &str = "first_stage_model.";

type Tensors = BTreeMap<String, Vec<usize>>;

/// Every family's golden record.
fn records() -> Vec<Value> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/checkpoints");
    let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let packed = files.filter(|path| path.extension().is_some_and(|extension| extension == "gz"));
    packed.map(|path| unpacked(&path)).filter(|record| record["family"].is_string()).collect()
}

fn unpacked(path: &Path) -> Value {
    serde_json::from_reader(GzDecoder::new(File::open(path).unwrap())).unwrap()
}

/// The tensors of a family's original file.
fn original(family: &str) -> Tensors {
    static ORIGINALS: LazyLock<BTreeMap<String, Tensors>> = LazyLock::new(|| {
        let records = records().into_iter().filter(|record| record["single_file"].is_array());
        records.map(|record| (record["family"].as_str().unwrap().to_owned(), tensors_of(&record))).collect()
    });
    ORIGINALS[family].clone()
}

fn tensors_of(golden: &Value) -> Tensors {
    tensor_list(&golden["single_file"])
}

/// Rows that begin with a name and a shape.
fn tensor_list(rows: &Value) -> Tensors {
    rows.as_array().unwrap().iter().map(|row| (row[0].as_str().unwrap().to_owned(), sizes(&row[1]))).collect()
}

fn config(golden: &Value, component: &str) -> Vec<u8> {
    serde_json::to_vec(&golden["components"][component]["config"]).unwrap()
}

/// Whether a component's tensors are all found where they are, in their shapes.
fn check_names(weights: &Weights, golden: &Value, component: &str, names: &Names) {
    let family = &golden["family"];
    assert_eq!(*names, expected_names(golden, component), "{family}: {component}");
    let selected = weights.select(names.clone()).unwrap();
    for (name, shape) in tensor_list(&golden["components"][component]["tensors"]) {
        let got = selected.get(&name).unwrap();
        let mut got_shape = got.shape().to_vec();
        if got.is_transposed() {
            got_shape.reverse();
        }
        // Linear layers are stored as convolutions of one cell.
        let ones = got_shape.split_off(shape.len());
        assert!(got_shape == shape && ones.iter().all(|size| *size == 1), "{family}: {component}: {name}");
    }
}

/// Where a family's record says that a component's tensors are.
fn expected_names(golden: &Value, component: &str) -> Names {
    let mut names = Names::new();
    for row in golden["single_file"].as_array().unwrap() {
        let (original, how) = (row[0].as_str().unwrap(), row[2].as_str().unwrap());
        let of = row[3].as_array().unwrap();
        let rows = sizes(&row[1]).first().map_or(0, |rows| rows / of.len());
        for (part, of) in of.iter().enumerate() {
            let Some(name) = of.as_str().unwrap().strip_prefix(&format!("{component}/")) else { continue };
            let mut stored = Stored::whole(original);
            stored.transposed = how == "transpose";
            stored.rows = (how == "concat").then(|| part * rows..(part + 1) * rows);
            names.insert(name.to_owned(), stored);
        }
    }
    names
}

/// A file of such tensors, all zeros.
fn weights(tensors: &Tensors) -> Weights {
    weights_with(tensors, json!({}))
}

/// The same with metadata; the file has a hole where the tensors are.
fn weights_with(tensors: &Tensors, metadata: Value) -> Weights {
    let mut end = 0;
    let mut header = serde_json::Map::from_iter([("__metadata__".to_owned(), metadata)]);
    for (name, shape) in tensors {
        let start = end;
        // Sizes that nothing could hold have a size of 0 beside them.
        end += 4 * shape.iter().fold(1usize, |product, size| product.saturating_mul(*size));
        header.insert(name.clone(), json!({"dtype": "F32", "shape": shape, "data_offsets": [start, end]}));
    }
    let mut header = serde_json::to_string(&header).unwrap();
    header.extend(std::iter::repeat_n(' ', header.len().next_multiple_of(8) - header.len()));
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(header.as_bytes()).unwrap();
    file.as_file().set_len((8 + header.len() + end) as u64).unwrap();
    Weights::open(&[file.path()]).unwrap()
}

fn sizes(value: &Value) -> Vec<usize> {
    value.as_array().unwrap().iter().map(|size| size.as_u64().unwrap() as usize).collect()
}
