//! T2I-Adapters beside narrow models against diffusers (`golden/t2i_adapter.*`, made by `export/golden_t2i_adapter.py`), and what is
//! refused of them.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use calotype::ErrorKind;
use calotype::control::Mode;
use calotype::model::{ControlNet, Model};
use calotype::pipeline::Pipeline;
use calotype::recipe::{ControlImage, Recipe};
use image::RgbImage;
use serde_json::{Value, json};

use super::control::{Control, counts_for_nothing, draw, model};
use super::golden::{Golden, Precision, safetensors, scratch, write_json};
use super::{close, distance, options};

fn open() -> Control {
    Control::open("t2i_adapter")
}

/// An adapter of Stable Diffusion 1 in a folder.
pub fn write(folder: &Path) -> PathBuf {
    open().write_folder("t2i_full", folder)
}

/// All of diffusers' pictures: each image of an adapter is computed once, and control that counts for nothing changes no bit and
/// runs no network.
#[test]
fn pictures_are_those_of_diffusers() {
    let (control, scratch) = (open(), scratch());
    for (family, pictures) in [("sd15", 6), ("sdxl", 3), ("sd21-base", 1)] {
        let folder = scratch.path().join(family);
        Golden::open(family).write_folder(&folder, Precision::F32, false, 1);
        let of_family: Vec<_> = control.pictures.iter().filter(|picture| picture.family == family).collect();
        assert_eq!(of_family.len(), pictures);
        Golden::write_scheduler(&folder, &of_family[0].scheduler);
        let mut plain = Pipeline::open(&Model::open(&folder).unwrap(), &options()).unwrap();
        let names: BTreeSet<&String> = of_family.iter().flat_map(|picture| &picture.networks).collect();
        let networks: Vec<_> = names
            .into_iter()
            .map(|name| (name.as_str(), control.write_folder(name, &folder.join("control"))))
            .collect();
        let mut pipeline = Pipeline::open(&model(&folder, &networks), &options()).unwrap();
        for picture in of_family {
            let what = &picture.name;
            let expected = &control.arrays[&picture.latents];
            let (latents, calls) = draw(&mut pipeline, picture.recipe(picture.images()));
            close(what, &latents, expected, Precision::F32);
            // A ControlNet in each of three steps, an adapter before the first.
            let of = |name: &&String| if name.starts_with("controlnet") { 3 } else { 1 };
            assert_eq!(calls, picture.networks.iter().map(|name| of(&name)).sum::<usize>(), "{what}");

            let (without, _) = draw(&mut plain, picture.recipe(Vec::new()));
            assert!(distance(&without, expected) > 1e-3, "{what}: no control would pass");
            if !["two", "beside", "xl"].contains(&what.as_str()) {
                continue;
            }
            counts_for_nothing(&mut pipeline, picture, &without);
        }
    }
}

/// A1111's modes, with its weights of features; and no other.
#[test]
fn modes_steer_what_they_say() {
    let (control, scratch) = (open(), scratch());
    let folder = scratch.path().join("sd15");
    Golden::open("sd15").write_folder(&folder, Precision::F32, false, 1);
    let path = control.write_folder("t2i_light", scratch.path());
    let picture = control.pictures.iter().find(|picture| picture.name == "light").unwrap();
    let mut pipeline = Pipeline::open(&model(&folder, &[("t2i_light", path)]), &options()).unwrap();
    let recipe = |mode: Mode, guidance: f64| {
        let mut images = picture.images();
        images[0].steering.mode = mode;
        let negative = picture.recipe(Vec::new()).negative.filter(|_| guidance != 1.0);
        Recipe { guidance: Some(guidance.into()), negative, ..picture.recipe(images) }
    };
    let mut with = |mode, guidance| draw(&mut pipeline, recipe(mode, guidance)).0;
    // Without guidance there is only the prompt's half: the two soft modes are one.
    assert_eq!(with(Mode::Prompt, 1.0), with(Mode::Control, 1.0));
    let all = [Mode::Balanced, Mode::Prompt, Mode::Control].map(|mode| with(mode, 5.0));
    for (at, one) in all.iter().enumerate() {
        assert!(all[..at].iter().all(|other| distance(one, other) > 1e-3), "{at}");
    }
    let error = pipeline.request(recipe(Mode::Guess, 5.0)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Usage);
    let expected = "control: t2i_light: mode: expected balanced, prompt or control, got guess";
    assert!(error.to_string().starts_with(expected), "{error}");
}

/// The same adapter from a folder, and from files with the names of diffusers and with those that were published first.
#[test]
fn files_hold_the_same_adapters_as_folders() {
    let (control, scratch) = (open(), scratch());
    for (family, names) in
        [("sd15", &["t2i_full", "t2i_light_grey"][..]), ("sd21-base", &["t2i_sd2"]), ("sdxl", &["t2i_xl"])]
    {
        let folder = scratch.path().join(family);
        Golden::open(family).write_folder(&folder, Precision::F32, false, 1);
        let part = |path: &Path| {
            let model = model(&folder, &[("a", path.to_owned())]);
            let parts: Vec<_> = model.parts().cloned().collect();
            parts.into_iter().find(|part| part.name() == "controlnet").unwrap()
        };
        for name in names {
            let rows = control.networks[*name].original.as_ref().unwrap();
            let original =
                |name: &str| rows.iter().find(|(_, diffusers, _)| diffusers == name).unwrap().0.clone();
            let expected = part(&control.write_folder(name, scratch.path()));
            assert!(expected.family().starts_with("T2I-Adapter"));
            for names in ["", "diffusers", "adapter."] {
                let path = scratch.path().join("adapter.safetensors");
                control.write_file(name, &path, |name| match names {
                    "diffusers" => Some(name.to_owned()),
                    _ => Some(format!("{names}{}", original(name))),
                });
                let got = part(&path);
                assert!(got.graph().encode() == expected.graph().encode(), "{name}: another graph");
                for parameter in expected.graph().parameters() {
                    let [got, expected] =
                        [&got, &expected].map(|part| part.weights().get(&parameter.name).unwrap());
                    assert!(got.to_bytes() == expected.to_bytes(), "{name}: {}", parameter.name);
                }
            }
        }
    }
}

#[test]
fn adapters_that_do_not_fit_are_refused() {
    let (control, scratch) = (open(), scratch());
    let [sd15, sdxl] = ["sd15", "sdxl"].map(|family| {
        let folder = scratch.path().join(family);
        Golden::open(family).write_folder(&folder, Precision::F32, false, 1);
        folder
    });
    let refused = |folder: &Path, path: &Path, expected: &str| {
        let mut model = Model::open(folder).unwrap();
        let added = ControlNet::open("a", path).and_then(|network| model.add_controls(&[network]));
        let error = added.expect_err(expected);
        assert_eq!(error.kind(), ErrorKind::Model, "{error}");
        assert!(error.to_string().contains(expected), "expected {expected:?} in: {error}");
        assert!(model.manifest().controls.is_empty());
    };
    let [full, xl] = ["t2i_full", "t2i_xl"].map(|name| control.write_folder(name, scratch.path()));
    refused(
        &sdxl,
        &full,
        "expected features of 64 channels at 1/16, 64 channels at 1/16, 128 channels at 1/32, 128 channels at 1/32, \
         as in the model's U-Net, got 32 channels at 1/8",
    );
    refused(&sd15, &xl, "as in the model's U-Net, got 64 channels at 1/16");

    let file = scratch.path().join("file.safetensors");
    let without =
        |left_out: &'static str| move |name: &str| (!name.contains(left_out)).then(|| name.to_owned());
    control.write_file("t2i_full", &file, without("body.1.resnets.1.block2.bias"));
    refused(&sd15, &file, "1 are missing, such as body.1.resnets.1.block2.bias");
    control.write_file("t2i_full", &file, without("body.2."));
    refused(&sd15, &file, "expected 3 of body.0, body.1 and so on, got no body.2 but body.3");
    control.write_file("t2i_full", &file, |name| Some(name.replace("conv_in.bias", "strange.bias")));
    refused(&sd15, &file, "are missing, such as ");
    let tensor = |name: &str, shape: &[usize]| {
        let bytes = vec![0; 4 * shape.iter().product::<usize>()];
        (name.to_owned(), "F32", shape.to_vec(), bytes)
    };
    let strange =
        vec![tensor("conv_in.weight", &[4, 100, 3, 3]), tensor("body.0.block1.weight", &[4, 4, 3, 3])];
    fs::write(&file, safetensors(strange)).unwrap();
    refused(
        &sd15,
        &file,
        "conv_in.weight: expected 64 or 192 inputs, or for Stable Diffusion XL 256 or 768, got 100",
    );
    fs::write(&file, safetensors(vec![tensor("style_embedding", &[1, 8, 4])])).unwrap();
    refused(&sd15, &file, "looks like a style adapter of T2I-Adapter, which is not supported");

    // A configuration that its file does not have.
    let place = full.join("config.json");
    let config = &control.networks["t2i_full"].config;
    for (key, value, expected) in [
        ("_class_name", json!("ControlNetModel"), "_class_name: expected T2IAdapter, got ControlNetModel"),
        ("in_channels", json!(2), "expected a network that takes images of 1 or 3 channels, got 2"),
        ("in_channels", json!(1), "adapter.conv_in.weight"),
        ("downscale_factor", json!(16), "got 32 channels at 1/16"),
        ("channels", json!([32, 64, 96]), "expected features of"),
        ("channels", json!([32, 64, 96, 96, 96, 96]), "expected features of"),
        ("adapter_type", json!("style"), "adapter_type: expected full_adapter"),
    ] {
        let mut other = config.clone();
        other[key] = value;
        write_json(&place, &other);
        refused(&sd15, &full, expected);
    }

    // Sides that its first layer does not divide; only of what is used.
    let mut networks = model(&sdxl, &[("a", xl)]);
    let asked = |size: &str, is_used: bool| Recipe {
        control: is_used.then(|| ControlImage::new("a", RgbImage::new(64, 64))).into_iter().collect(),
        size: Some(size.parse().unwrap()),
        ..Recipe::default()
    };
    let pipeline = Pipeline::open(&networks, &options()).unwrap();
    let error = pipeline.request(asked("72x64", true)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Usage);
    let expected = "size: expected multiples of 16 pixels for the T2I-Adapter a, got 72x64; try 80x64";
    assert_eq!(error.to_string(), expected);
    pipeline.request(asked("72x64", false)).unwrap();
    pipeline.request(asked("80x64", true)).unwrap();
    networks.fix_shapes("80x64".parse().unwrap()).unwrap();
}

/// The program: adapters are drawn with through the options of control networks, planned as a stage of their own, and in receipts.
#[test]
fn the_program_takes_adapters() {
    let (control, scratch) = (open(), scratch());
    let folder = scratch.path().join("sd15");
    Golden::open("sd15").write_folder(&folder, Precision::F32, false, 1);
    for name in ["t2i_full", "controlnet"] {
        control.write_folder(name, scratch.path());
    }
    RgbImage::from_fn(64, 64, |x, y| image::Rgb([x as u8 * 4, y as u8 * 4, 9]))
        .save(scratch.path().join("a.png"))
        .unwrap();
    let run = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_calotype"));
        let output = command.current_dir(scratch.path()).args(arguments).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    };
    let steered = [
        "--control-model",
        "sketch=t2i_full",
        "--control",
        "sketch=a.png:weight=0.75:end=0.5",
        "--control-model",
        "canny=controlnet",
        "--control",
        "canny=a.png",
    ];
    let plan = run(&[&["plan", "sd15", "--json", "--size", "64x64"], &steered[..]].concat());
    let plan: Value = serde_json::from_slice(&plan).unwrap();
    let stages: Vec<&str> =
        plan["stages"].as_array().unwrap().iter().map(|s| s["stage"].as_str().unwrap()).collect();
    assert_eq!(stages, ["text_encoder", "controlnet", "unet", "controlnet_2", "vae_decoder"]);

    let common = ["-m", "sd15", "--steps", "2", "--seed", "3", "--size", "64x64", "--memory", "400MiB"];
    run(&[&["generate", "a fox", "-o", "one.png"], &common[..], &steered[..]].concat());
    run(&[&["generate", "a fox", "-o", "other.png"], &common[..], &steered[4..]].concat());
    let again = run(&["generate", "--from", "one.png", "-o", "again.png", "--json"]);
    let pixels = |name: &str| image::open(scratch.path().join(name)).unwrap().into_rgb8();
    assert_eq!(pixels("one.png"), pixels("again.png"));
    assert_ne!(pixels("one.png"), pixels("other.png"));
    let json: Value = serde_json::from_slice(&again).unwrap();
    let receipt = &json["images"][0]["receipt"];
    assert_eq!(receipt["control"][0]["kind"], "sketch");
    assert_eq!(receipt["control_model"][0]["sha256"].as_str().map(str::len), Some(64));
}
