//! What is given as a model and is none: messages that say what it is, and which way leads out.

#![cfg(feature = "engine")]

use std::fs;
use std::path::{Path, PathBuf};

use calotype::ErrorKind;
use calotype::model::{Model, Overrides};

/// A safetensors file of tensors of 32-bit floats without data, and of these shapes.
fn safetensors(tensors: &[(&str, &[usize])]) -> Vec<u8> {
    let mut end = 0;
    let entries = tensors.iter().map(|(name, shape)| {
        let begin = end;
        end += 4 * shape.iter().product::<usize>();
        format!(r#""{name}":{{"dtype":"F32","shape":{shape:?},"data_offsets":[{begin},{end}]}}"#)
    });
    let header = format!("{{{}}}", entries.collect::<Vec<_>>().join(","));
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &vec![0; end]].concat()
}

/// A GGUF file of one tensor that says that it is of this architecture.
fn gguf(architecture: &str, tensor: &str) -> Vec<u8> {
    let text = |text: &str| [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat();
    let mut file =
        [b"GGUF\x03\0\0\0".to_vec(), 1u64.to_le_bytes().to_vec(), 1u64.to_le_bytes().to_vec()].concat();
    file.extend([text("general.architecture"), 8u32.to_le_bytes().to_vec(), text(architecture)].concat());
    let numbers = [
        1u32.to_le_bytes().to_vec(),
        8u64.to_le_bytes().to_vec(),
        0u32.to_le_bytes().to_vec(),
        0u64.to_le_bytes().to_vec(),
    ];
    file.extend([text(tensor), numbers.concat()].concat());
    file.resize(file.len().next_multiple_of(32) + 32, 0);
    file
}

#[track_caller]
fn refused(path: &Path, parts: &[&str]) {
    refused_with(path, &Overrides::default(), parts);
}

#[track_caller]
fn refused_with(path: &Path, overrides: &Overrides, parts: &[&str]) {
    let error = Model::open_with(Some(path), overrides).expect_err(&format!("{parts:?}"));
    assert_eq!(error.kind(), ErrorKind::Model, "{error}");
    let text = error.to_string();
    assert!(text.contains(&path.display().to_string()), "no place in: {text}");
    for part in parts {
        assert!(text.contains(part), "expected {part:?} in: {text}");
    }
}

#[test]
fn files_that_are_no_models_say_what_they_are() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let zip = b"PK\x03\x04\x14\0\0\0archive/data.pkl".to_vec();
    let mut cut = safetensors(&[("a", &[1000])]);
    let whole = cut.len();
    cut.truncate(100);
    let cases: Vec<(Vec<u8>, Vec<String>)> = [
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 2\n".to_vec(),
            vec!["git-lfs", "run `git lfs pull`"],
        ),
        (
            b"<!DOCTYPE html><html><head><title>Sign in</title>".to_vec(),
            vec!["a web page", "download the file itself"],
        ),
        (b"{\"error\":\"Repository not found\"}".to_vec(), vec!["got JSON"]),
        (zip, vec!["pickle", "torch.load(..., weights_only=True)"]),
        (b"\x80\x02}q\0".to_vec(), vec!["pickle", "torch.load(..., weights_only=True)"]),
        (b"\x1f\x8b\x08\0\0\0\0\0".to_vec(), vec!["a gzip archive", "unpack"]),
        (b"7z\xbc\xaf\x27\x1c\0\x04".to_vec(), vec!["a 7z archive", "unpack"]),
        ([&[b'm'; 257][..], b"ustar\x0000"].concat(), vec!["a tar archive", "unpack"]),
        (b"\x08\x0a\x12\x07pytorch\x1a\x03".to_vec(), vec!["an ONNX graph", "the folder that holds unet"]),
        (Vec::new(), vec!["an empty file"]),
        (vec![0; 4096], vec!["only zeros"]),
        (gguf("llama", "token_embd.weight"), vec!["a GGUF file of the architecture llama"]),
        (
            gguf("flux", "double_blocks.0.img_attn.qkv.weight"),
            vec!["a GGUF file of the architecture flux", "looks like FLUX"],
        ),
        (
            gguf("sd3", "joint_blocks.0.x_block.attn.qkv.weight"),
            vec!["architecture sd3", "Stable Diffusion 3"],
        ),
        (safetensors(&[("lora_unet_x.lora_up.weight", &[1])]), vec!["a LoRA", "this file with `lora`"]),
        (
            safetensors(&[("emb_params", &[2, 768])]),
            vec!["a textual inversion", "this file with `embedding`"],
        ),
        (safetensors(&[("control_model.input_hint_block.0.weight", &[1])]), vec!["a ControlNet"]),
        (
            safetensors(&[("decoder.up.0.block.0.conv1.bias", &[1])]),
            vec!["a VAE alone", "this file with `vae`"],
        ),
        (
            safetensors(&[("text_model.encoder.layers.0.mlp.fc1.bias", &[1])]),
            vec!["text encoder", "this file with `text_encoder`"],
        ),
    ]
    .into_iter()
    .map(|(bytes, parts)| (bytes, parts.into_iter().map(str::to_owned).collect()))
    .chain([(cut, vec![format!("the file is truncated (100 of {whole} bytes)")])])
    .collect();
    for (bytes, parts) in cases {
        fs::write(&path, bytes).unwrap();
        refused(&path, &parts.iter().map(String::as_str).collect::<Vec<_>>());
    }
}

#[test]
fn folders_that_are_no_models_say_what_they_are() {
    let root = tempfile::tempdir().unwrap();
    let folder = |name: &str, files: &[&str]| -> PathBuf {
        let folder = root.path().join(name);
        fs::create_dir_all(&folder).unwrap();
        for file in files {
            fs::create_dir_all(folder.join(file).parent().unwrap()).unwrap();
            fs::write(folder.join(file), "{}").unwrap();
        }
        folder
    };
    refused(&folder("empty", &[]), &["got an empty folder"]);
    refused(
        &folder("files", &["a.safetensors", "b.gguf", "README.md"]),
        &["a folder with a.safetensors, b.gguf", "give one of these files"],
    );
    refused(&folder("pickles", &["v1-5.ckpt"]), &["a folder with v1-5.ckpt", "PyTorch pickles can run code"]);
    refused(&folder("flat", &["unet.onnx"]), &["a folder with unet.onnx", "in a folder of its component"]);
    refused(
        &folder("hub", &["snapshots/0123/model_index.json", "blobs/x"]),
        &["the cache of a model hub", "snapshots/0123"],
    );
    let component = folder("whole/unet", &["diffusion_pytorch_model.safetensors"]);
    fs::write(component.join("config.json"), r#"{"_class_name": "UNet2DConditionModel"}"#).unwrap();
    refused(
        &component,
        &["a single component (UNet2DConditionModel)", "give the folder that it is a part of"],
    );
    // All that is missing is named.
    let cut = folder("cut", &["model_index.json", "unet/config.json", "tokenizer/vocab.json"]);
    refused(&cut, &["missing are scheduler, vae, text_encoder; got tokenizer, unet", "`vae`"]);
    let cut = folder("index", &["model_index.json"]);
    refused(&cut, &["missing are scheduler, unet, vae, text_encoder; got no folders"]);
    let null = folder(
        "null",
        &["unet/config.json", "scheduler/s.json", "vae/config.json", "text_encoder/config.json"],
    );
    fs::write(
        null.join("model_index.json"),
        r#"{"text_encoder_2": ["transformers", "CLIPTextModelWithProjection"]}"#,
    )
    .unwrap();
    refused(&null, &["missing are text_encoder_2;"]);
}

#[test]
fn onnx_folders_with_several_candidates_name_them() {
    let root = tempfile::tempdir().unwrap();
    let golden =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/onnx_folders/optimum/unet/model.onnx.gz");
    let packed = fs::read(golden).unwrap();
    let mut graph = Vec::new();
    std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(&packed[..]), &mut graph).unwrap();
    let unet = root.path().join("unet");
    fs::create_dir(&unet).unwrap();
    for name in ["model_fp16.onnx", "model_quantized.onnx"] {
        fs::write(unet.join(name), &graph).unwrap();
    }
    let variant = |name: &str| Overrides { variant: Some(name.into()), ..Overrides::default() };
    refused(
        root.path(),
        &[
            "got 2: model_fp16.onnx, model_quantized.onnx",
            "choose with `variant`, as in fp16 for model_fp16.onnx",
        ],
    );
    refused_with(root.path(), &variant("int4"), &["whose names end in int4, got none in 2 files"]);
    // The one that is chosen is read: its weights are not beside it.
    let error = Model::open_with(Some(root.path()), &variant("fp16")).unwrap_err().to_string();
    assert!(error.contains("model_fp16.onnx") || error.contains("unet/"), "{error}");
    assert!(!error.contains("model_quantized.onnx"), "{error}");
}

/// Built-in models and bundles have one form.
#[test]
fn variants_of_other_models_are_refused() {
    let overrides = Overrides { variant: Some("fp16".into()), ..Overrides::default() };
    let error = Model::open_with(None, &overrides).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Usage);
    assert!(
        error.to_string().contains("expected a diffusers folder or an ONNX folder, got the built-in model"),
        "{error}"
    );
}

#[test]
fn the_nearest_family_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    fs::write(
        &path,
        safetensors(&[
            ("model.diffusion_model.input_blocks.0.0.weight", &[320, 4, 3, 3]),
            ("model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight", &[320, 512]),
            ("model.diffusion_model.input_blocks.1.1.proj_in.weight", &[320, 320]),
        ]),
    )
    .unwrap();
    refused(
        &path,
        &[
            "nearest is Stable Diffusion 2, whose input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight has shape [320, 1024]: got shape [320, 512]",
        ],
    );
}

#[test]
#[cfg(not(feature = "builtin"))]
fn a_program_without_the_built_in_model_says_so() {
    let error = Model::built_in().expect_err("no model");
    assert_eq!(error.kind(), calotype::ErrorKind::Usage);
    let expected =
        "built-in model: expected a program built with calotype's feature `builtin`, got one without";
    assert!(error.to_string().starts_with(expected), "{error}");
}
