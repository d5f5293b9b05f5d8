//! Control networks beside narrow models against diffusers (`golden/control.*`, made by `export/golden_control.py`), and what is
//! refused of them.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read as _;
#[cfg(feature = "server")]
use std::io::{BufRead as _, BufReader, Write as _};
#[cfg(feature = "server")]
use std::net::TcpStream;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::Command;
#[cfg(feature = "server")]
use std::process::Stdio;
#[cfg(feature = "server")]
use std::time::Duration;

#[cfg(feature = "server")]
use base64::Engine as _;
#[cfg(feature = "server")]
use base64::engine::general_purpose::STANDARD;

use calotype::ErrorKind;
use calotype::control::{Mode, Steering};
use calotype::model::{ControlNet, Model};
use calotype::pipeline::Pipeline;
use calotype::recipe::{ControlImage, Recipe};
use calotype::weights::Weights;
use flate2::read::GzDecoder;
use image::RgbImage;
use serde::Deserialize;
use serde_json::{Value, json};

use super::golden::{
    self, Golden, PictureScheduler, Precision, floats, safetensors, scratch, values, write_json,
};
use super::{close, distance, options};

/// What diffusers draws with networks that steer.
#[derive(Deserialize)]
pub struct Control {
    pub networks: BTreeMap<String, Network>,
    pub pictures: Vec<Picture>,
    #[serde(skip)]
    pub arrays: BTreeMap<String, Vec<f32>>,
}

#[derive(Deserialize)]
pub struct Network {
    pub config: Value,
    tensors: Vec<(String, Vec<usize>)>,
    pub original: Option<Vec<(String, String, Vec<usize>)>>,
}

#[derive(Deserialize)]
pub struct Picture {
    pub name: String,
    pub family: String,
    pub scheduler: PictureScheduler,
    seed: u64,
    pub networks: Vec<String>,
    images: Vec<Value>,
    arguments: BTreeMap<String, Value>,
    pub latents: String,
}

impl Control {
    /// Of the files of this name.
    pub fn open(name: &str) -> Self {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
        let mut json = Vec::new();
        let packed = fs::read(folder.join(format!("{name}.json.gz"))).unwrap();
        GzDecoder::new(&packed[..]).read_to_end(&mut json).unwrap();
        let mut control: Self = serde_json::from_slice(&json).unwrap();
        for (name, array) in Weights::open(&[folder.join(format!("{name}.safetensors"))]).unwrap().iter() {
            control.arrays.insert(name.to_owned(), floats(&array.to_bytes()));
        }
        control
    }

    /// A network as `save_pretrained` writes it.
    pub fn write_folder(&self, name: &str, folder: &Path) -> PathBuf {
        let (network, place) = (&self.networks[name], folder.join(name));
        write_json(&place.join("config.json"), &network.config);
        self.write_file(name, &place.join("diffusion_pytorch_model.safetensors"), |name| Some(name.into()));
        place
    }

    /// A network in a file, its tensors under other names.
    pub fn write_file(&self, name: &str, path: &Path, rename: impl Fn(&str) -> Option<String>) {
        let tensors = self.networks[name].tensors.iter().filter_map(|(tensor, shape)| {
            let bytes = Precision::F32.bytes(&values(name, tensor, shape));
            Some((rename(tensor)?, "F32", shape.clone(), bytes))
        });
        fs::write(path, safetensors(tensors.collect())).unwrap();
    }
}

/// A control network of a family in a folder.
pub fn write(family: &str, folder: &Path) -> PathBuf {
    let name = if family == "sdxl" { "controlnet_xl" } else { "controlnet" };
    Control::open("control").write_folder(name, folder)
}

impl Picture {
    fn number(&self, name: &str) -> Option<f64> {
        self.arguments.get(name).and_then(Value::as_f64)
    }

    /// An argument of each network.
    fn each(&self, name: &str, usual: f64) -> Vec<f64> {
        match self.arguments.get(name) {
            Some(Value::Array(all)) => all.iter().map(|value| value.as_f64().unwrap()).collect(),
            value => vec![value.and_then(Value::as_f64).unwrap_or(usual); self.networks.len()],
        }
    }

    /// With these control images, whose networks are called as they are.
    pub fn recipe(&self, control: Vec<ControlImage>) -> Recipe {
        let text = |name: &str| self.arguments.get(name).and_then(Value::as_str).map(str::to_owned);
        let sampler = match self.scheduler.class.as_str() {
            "EulerDiscreteScheduler" => Some("euler".parse().unwrap()),
            "DDIMScheduler" => Some("ddim".parse().unwrap()),
            _ => None,
        };
        let size = self.number("width").zip(self.number("height"));
        let size = size.map(|(width, height)| format!("{width}x{height}"));
        Recipe {
            control,
            prompt: text("prompt").unwrap(),
            negative: text("negative_prompt"),
            size: size.map(|size| size.parse().unwrap()),
            init: self.arguments.get("image").map(|image| golden::init(image).into()),
            strength: self.number("strength"),
            steps: self.number("num_inference_steps").map(|steps| steps as usize),
            guidance: self.number("guidance_scale").map(Into::into),
            sampler,
            seed: Some(self.seed),
            ..Recipe::default()
        }
    }

    pub fn images(&self) -> Vec<ControlImage> {
        let is_guess = self.arguments.get("guess_mode") == Some(&json!(true));
        let mode = if is_guess { Mode::Guess } else { Mode::Balanced };
        // As diffusers calls them for ControlNets, or for T2I-Adapters.
        let is_adapter = self.arguments.contains_key("adapter_conditioning_scale");
        let (scale, end) = match is_adapter {
            true => ("adapter_conditioning_scale", "adapter_conditioning_factor"),
            false => ("controlnet_conditioning_scale", "control_guidance_end"),
        };
        let weights = self.each(scale, 1.0);
        let (starts, ends) = (self.each("control_guidance_start", 0.0), self.each(end, 1.0));
        let images = self.images.iter().zip(&self.networks).enumerate().map(|(at, (image, name))| {
            let steering = Steering { weight: weights[at], start: starts[at], end: ends[at], mode };
            ControlImage { steering, ..ControlImage::new(name.clone(), golden::init(image)) }
        });
        images.collect()
    }
}

/// A model with these control networks.
pub fn model(folder: &Path, networks: &[(&str, PathBuf)]) -> Model {
    let mut model = Model::open(folder).unwrap();
    let networks = networks.iter().map(|(kind, path)| ControlNet::open(kind, path).unwrap());
    model.add_controls(&networks.collect::<Vec<_>>()).unwrap();
    model
}

/// The latents of a recipe, and how often control networks were run.
pub fn draw(pipeline: &mut Pipeline, recipe: Recipe) -> (Vec<f32>, usize) {
    let request = pipeline.request(recipe).unwrap();
    let mut run = pipeline.begin(&request).unwrap();
    run.steps(|_| ControlFlow::Continue(())).unwrap();
    (run.latents().to_vec(), run.control_calls())
}

/// Without weight, and outside of its window, control changes no bit of what is drawn without, and runs no network.
pub fn counts_for_nothing(pipeline: &mut Pipeline, picture: &Picture, without: &[f32]) {
    let (weightless, outside) = (
        |steering: &mut Steering| steering.weight = 0.0,
        |steering: &mut Steering| (steering.start, steering.end) = (0.4, 0.6),
    );
    for change in [&weightless as &dyn Fn(&mut Steering), &outside] {
        let mut images = picture.images();
        images.iter_mut().for_each(|image| change(&mut image.steering));
        let (idle, calls) = draw(pipeline, picture.recipe(images));
        assert!(idle == without && calls == 0, "{}: {calls} calls", picture.name);
    }
}

/// All of diffusers' pictures; and that control which counts for nothing changes no bit, and runs no network.
#[test]
fn pictures_are_those_of_diffusers() {
    let (control, scratch) = (Control::open("control"), scratch());
    for family in ["sd15", "sdxl"] {
        let folder = scratch.path().join(family);
        Golden::open(family).write_folder(&folder, Precision::F32, false, 1);
        let of_family = || control.pictures.iter().filter(|picture| picture.family == family);
        assert!(of_family().count() >= 3);
        for picture in of_family() {
            let what = &picture.name;
            Golden::write_scheduler(&folder, &picture.scheduler);
            let names = picture.networks.iter();
            let networks: Vec<_> = names
                .map(|name| (name.as_str(), control.write_folder(name, &folder.join("control"))))
                .collect();
            let mut pipeline = Pipeline::open(&model(&folder, &networks), &options()).unwrap();
            let expected = &control.arrays[&picture.latents];
            let (latents, calls) = draw(&mut pipeline, picture.recipe(picture.images()));
            close(what, &latents, expected, Precision::F32);
            let expected_calls = match what.as_str() {
                // Two predictions of each step but the last.
                "heun" => 5,
                // Of three steps: the first two, and the last two.
                "two" => 2 + 2,
                "window" => 1,
                // 0.7 of three steps.
                "img2img" => 2,
                _ => 3,
            };
            assert_eq!(calls, expected_calls, "{what}");

            let mut plain = Pipeline::open(&Model::open(&folder).unwrap(), &options()).unwrap();
            let (without, calls) = draw(&mut plain, picture.recipe(Vec::new()));
            assert_eq!(calls, 0);
            assert!(distance(&without, expected) > 1e-3, "{what}: no control would pass");
            if !["normal", "two", "xl"].contains(&what.as_str()) {
                continue;
            }
            counts_for_nothing(&mut pipeline, picture, &without);
        }
    }
}

/// A1111's modes: weights of residuals as in a sum of what they give alone are not to be had of diffusers, but which halves they
/// steer is.
#[test]
fn modes_steer_what_they_say() {
    let (control, scratch) = (Control::open("control"), scratch());
    let folder = scratch.path().join("sd15");
    Golden::open("sd15").write_folder(&folder, Precision::F32, false, 1);
    let path = control.write_folder("controlnet", scratch.path());
    let picture = control.pictures.iter().find(|picture| picture.name == "normal").unwrap();
    let mut pipeline = Pipeline::open(&model(&folder, &[("controlnet", path)]), &options()).unwrap();
    let mut with = |mode: Mode, guidance: f64| {
        let mut images = picture.images();
        images[0].steering.mode = mode;
        let negative = picture.recipe(Vec::new()).negative.filter(|_| guidance != 1.0);
        let recipe = Recipe { guidance: Some(guidance.into()), negative, ..picture.recipe(images) };
        draw(&mut pipeline, recipe).0
    };
    // Without guidance there is only the prompt's half: the two soft modes are one.
    assert_eq!(with(Mode::Prompt, 1.0), with(Mode::Control, 1.0));
    let all = [Mode::Balanced, Mode::Prompt, Mode::Control, Mode::Guess].map(|mode| with(mode, 5.0));
    for (at, one) in all.iter().enumerate() {
        assert!(all[..at].iter().all(|other| distance(one, other) > 1e-3), "{at}");
    }
}

/// The same network from a folder, and from files with the original names and with those of diffusers.
#[test]
fn files_hold_the_same_networks_as_folders() {
    let (control, scratch) = (Control::open("control"), scratch());
    let folder = scratch.path().join("sd15");
    Golden::open("sd15").write_folder(&folder, Precision::F32, false, 1);
    let network = &control.networks["controlnet"];
    let rows = network.original.as_ref().unwrap();
    let original = |name: &str| {
        let (original, ..) = rows.iter().find(|(_, diffusers, _)| diffusers == name).unwrap();
        original.clone()
    };
    let files = ["control_model.", "", "diffusers", "whole"].map(|names| {
        let path = scratch.path().join(format!("{names}.safetensors"));
        control.write_file("controlnet", &path, |name| match names {
            "diffusers" => Some(name.to_owned()),
            "" => Some(original(name).replace("control_model.", "")),
            _ => Some(original(name)),
        });
        path
    });
    // A whole checkpoint of SD 1.5 with a control network, as the first ones were published.
    let own = Weights::open(&[&files[3]]).unwrap();
    let mut tensors: Vec<_> = own
        .iter()
        .map(|(name, tensor)| (name.to_owned(), "F32", tensor.shape().to_vec(), tensor.to_bytes()))
        .collect();
    tensors.push((
        "model.diffusion_model.output_blocks.0.0.in_layers.0.bias".into(),
        "F32",
        vec![1],
        vec![0; 4],
    ));
    drop(own);
    fs::write(&files[3], safetensors(tensors)).unwrap();

    let part = |path: &Path| {
        let model = model(&folder, &[("canny", path.to_owned())]);
        let parts: Vec<_> = model.parts().cloned().collect();
        parts.into_iter().find(|part| part.name() == "controlnet").unwrap()
    };
    let expected = part(&control.write_folder("controlnet", scratch.path()));
    for file in &files {
        let got = part(file);
        assert!(got.graph().encode() == expected.graph().encode(), "{}: another graph", file.display());
        for parameter in expected.graph().parameters() {
            let [got, expected] = [&got, &expected].map(|part| part.weights().get(&parameter.name).unwrap());
            assert!(got.to_bytes() == expected.to_bytes(), "{}: {}", file.display(), parameter.name);
        }
    }
}

#[test]
fn networks_that_do_not_fit_are_refused() {
    let (control, scratch) = (Control::open("control"), scratch());
    let folders = ["sd15", "sdxl", "sd21-base"].map(|family| {
        let folder = scratch.path().join(family);
        Golden::open(family).write_folder(&folder, Precision::F32, false, 1);
        folder
    });
    let [sd15, sdxl, sd21] = &folders;
    let refused = |folder: &Path, path: &Path, expected: &str| {
        let mut model = Model::open(folder).unwrap();
        let added = ControlNet::open("canny", path).and_then(|network| model.add_controls(&[network]));
        let error = added.expect_err(expected);
        assert_eq!(error.kind(), ErrorKind::Model, "{error}");
        assert!(error.to_string().contains(expected), "expected {expected:?} in: {error}");
        assert!(model.manifest().controls.is_empty());
    };
    let [one, xl] = ["controlnet", "controlnet_xl"].map(|name| control.write_folder(name, scratch.path()));
    // The first tensor that both have, in other shapes.
    let cross = "tensor time_embedding.linear_1.weight: expected shape [256, 64], as in the model's U-Net, got [128, 32]";
    refused(sd21, &one, cross);
    refused(sdxl, &one, "tensor ");
    refused(sdxl, &one, "as in the model's U-Net, got");
    refused(sd15, &xl, "as in the model's U-Net, got");

    let [original, difference] =
        ["original", "difference"].map(|name| scratch.path().join(format!("{name}.safetensors")));
    let rows = control.networks["controlnet"].original.as_ref().unwrap();
    let rename =
        |name: &str| rows.iter().find(|(_, diffusers, _)| diffusers == name).map(|row| row.0.clone());
    control.write_file("controlnet", &original, rename);
    refused(sd21, &original, cross);
    refused(sdxl, &original, "as in the model's U-Net, got");
    // One tensor less, and one more.
    control.write_file("controlnet", &difference, |name| {
        rename(name).filter(|name| !name.contains("zero_convs.3.0.bias"))
    });
    refused(sd15, &difference, "1 are missing, such as zero_convs.3.0.bias");
    let bytes = fs::read(&original).unwrap();
    fs::write(&difference, &bytes[..bytes.len() - 1]).unwrap();
    refused(sd15, &difference, "difference.safetensors: ");

    // What steers in another way, or is something else, by its name.
    let tensor = |name: &str| vec![(name.to_owned(), "F32", vec![1], vec![0; 4])];
    for (name, expected) in [
        (
            "lllite_unet_input_blocks_4_1.lora_down.weight",
            "looks like a ControlLLLite, which is not supported",
        ),
        ("lora_controlnet", "looks like a Control-LoRA, which is not supported"),
        ("task_embedding", "looks like a ControlNet-Union, which is not supported"),
        ("ip_adapter.1.to_k_ip.weight", "looks like an IP-Adapter, which is not supported"),
        ("down_blocks.0.motion_modules.0.norm.bias", "looks like a SparseCtrl, which is not supported"),
        ("controlnet_x_embedder.weight", "looks like a control network of Flux or Stable Diffusion 3"),
        ("model.diffusion_model.output_blocks.0.0.weight", "looks like a U-Net or a whole model"),
        ("lora_unet_a.lora_down.weight", "looks like a LoRA"),
        ("first_stage_model.encoder.down.0.weight", "looks like a VAE"),
        (
            "a",
            "expected a ControlNet or a T2I-Adapter, got one tensor, a; give a ControlNet or a T2I-Adapter for this model's family",
        ),
    ] {
        fs::write(&difference, safetensors(tensor(name))).unwrap();
        refused(sd15, &difference, expected);
        // Also in a folder, whatever its configuration says.
        let folder = scratch.path().join("other");
        write_json(&folder.join("config.json"), &control.networks["controlnet"].config);
        fs::copy(&difference, folder.join("diffusion_pytorch_model.safetensors")).unwrap();
        if expected.contains("not supported") {
            refused(sd15, &folder, expected);
        }
    }
    let own = Weights::open(&[&original]).unwrap();
    let whole =
        own.iter().map(|(name, tensor)| (name.to_owned(), "F32", tensor.shape().to_vec(), tensor.to_bytes()));
    fs::write(&difference, safetensors(whole.chain(tensor("difference")).collect())).unwrap();
    refused(sd15, &difference, "looks like a difference to a base model's weights, which is not supported");
    refused(sd15, &scratch.path().join("none"), "none");

    // A configuration that its file does not have.
    let place = scratch.path().join("controlnet/config.json");
    let config = &control.networks["controlnet"].config;
    for (key, value, expected) in [
        (
            "_class_name",
            json!("ControlNetUnionModel"),
            "_class_name: expected ControlNetModel, got ControlNetUnionModel",
        ),
        ("layers_per_block", json!(1), "expected an output down_block_"),
        ("conditioning_channels", json!(1), "expected a network that takes images of 3 channels, got 1"),
        (
            "conditioning_embedding_out_channels",
            json!([8, 16, 32]),
            "expected a network for 4 latent channels and 8 pixels",
        ),
        (
            "conditioning_embedding_out_channels",
            json!([8, 16, 24, 40]),
            "controlnet_cond_embedding.blocks.5.weight",
        ),
    ] {
        let mut other = config.clone();
        other[key] = value;
        write_json(&place, &other);
        refused(sd15, &one, expected);
    }
    write_json(&place, config);
    let mut model = Model::open(sd15).unwrap();
    let network = ControlNet::open("canny", &one).unwrap();
    let error = model.add_controls(&[network.clone(), network]).unwrap_err();
    assert!(
        error.to_string().starts_with("control model: expected one of each kind, got two of canny"),
        "{error}"
    );
    let built_in = Model::built_in()
        .and_then(|mut model| model.add_controls(&[ControlNet::open("canny", &one).unwrap()]));
    let error = built_in.unwrap_err().to_string();
    assert!(error.contains("expected a U-Net whose graph calotype derives"), "{error}");
}

/// The program: images are drawn with control, receipts carry it, and what is wrong is refused before anything is opened.
#[test]
fn the_program_takes_control() {
    let (control, scratch) = (Control::open("control"), scratch());
    let folder = scratch.path().join("sd15");
    Golden::open("sd15").write_folder(&folder, Precision::F32, false, 1);
    control.write_folder("controlnet", scratch.path());
    RgbImage::from_fn(64, 64, |x, y| image::Rgb([x as u8 * 4, y as u8 * 4, 9]))
        .save(scratch.path().join("a.png"))
        .unwrap();
    RgbImage::new(96, 64).save(scratch.path().join("wide.png")).unwrap();
    let whole = fs::read(scratch.path().join("a.png")).unwrap();
    fs::write(scratch.path().join("cut.png"), &whole[..whole.len() / 2]).unwrap();
    let run = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_calotype"));
        command.current_dir(scratch.path()).args(arguments).output().unwrap()
    };
    let common = ["-m", "sd15", "--steps", "2", "--seed", "3", "--size", "64x64"];
    let generate = |more: &[&str]| run(&[&["generate", "a fox"], &common[..], more].concat());
    let network = ["--control-model", "canny=controlnet"];
    let with = |image: &str, out: &str| generate(&[&network[..], &["--control", image, "-o", out]].concat());

    let drawn = with("canny=a.png:weight=0.75:end=0.5:mode=prompt", "one.png");
    assert!(drawn.status.success(), "{}", String::from_utf8_lossy(&drawn.stderr));
    assert!(generate(&["-o", "plain.png"]).status.success());
    let pixels = |name: &str| image::open(scratch.path().join(name)).unwrap().into_rgb8();
    assert_ne!(pixels("one.png"), pixels("plain.png"));
    // The receipt makes the same image, and says what of.
    let again = run(&["generate", "--from", "one.png", "-o", "again.png", "--json"]);
    assert!(again.status.success(), "{}", String::from_utf8_lossy(&again.stderr));
    assert_eq!(pixels("one.png"), pixels("again.png"));
    let json: Value = serde_json::from_slice(&again.stdout).unwrap();
    let receipt = &json["images"][0]["receipt"];
    let image = &receipt["control"][0];
    let steering = ["kind", "weight", "start", "end", "mode"].map(|key| image[key].clone());
    assert_eq!(steering, [json!("canny"), json!(0.75), json!(0.0), json!(0.5), json!("prompt")]);
    for file in [image, &receipt["control_model"][0]] {
        assert_eq!(file["sha256"].as_str().map(str::len), Some(64), "{file}");
    }
    // Edges are made of an ordinary image, as the receipt says.
    let edges = with("canny=a.png:annotate=canny,20,60", "edges.png");
    assert!(edges.status.success(), "{}", String::from_utf8_lossy(&edges.stderr));
    let again = run(&["generate", "--from", "edges.png", "-o", "again.png"]);
    assert!(again.status.success(), "{}", String::from_utf8_lossy(&again.stderr));
    assert_eq!(pixels("edges.png"), pixels("again.png"));
    assert_ne!(pixels("edges.png"), pixels("one.png"));
    // Both passes are steered: the second by the image at its size.
    let second = ["--size", "128x128", "--strength", "0.5", "--resize", "stretch", "-o", "second.png"];
    let more = ["--control", "canny=a.png:weight=0.75:end=0.5:mode=prompt", "--init", "one.png"];
    let second = run(&[&["generate", "a fox"], &common[..6], &network, &more, &second].concat());
    assert!(second.status.success(), "{}", String::from_utf8_lossy(&second.stderr));
    for hires in ["2x:0.5:pixel", "2x:0.5:latent"] {
        let more = [&network[..], &more[..2], &["--hires", hires, "-o", "hires.png"]].concat();
        let drawn = generate(&more);
        assert!(drawn.status.success(), "{}", String::from_utf8_lossy(&drawn.stderr));
        assert_eq!(pixels("hires.png") == pixels("second.png"), hires.ends_with("pixel"));
        let again = run(&["generate", "--from", "hires.png", "-o", "again.png"]);
        assert!(again.status.success(), "{}", String::from_utf8_lossy(&again.stderr));
        assert_eq!(pixels("hires.png"), pixels("again.png"));
    }
    // Another file in its place is told of.
    fs::copy(scratch.path().join("wide.png"), scratch.path().join("a.png")).unwrap();
    let other = run(&["generate", "--from", "one.png", "-o", "other.png"]);
    assert!(
        String::from_utf8_lossy(&other.stderr).contains("--control: a.png: expected the file of the recipe")
    );
    fs::write(scratch.path().join("a.png"), &whole).unwrap();

    // An image of other proportions is stretched, which is told, or cropped.
    let wide = with("canny=wide.png", "wide_out.png");
    assert!(wide.status.success(), "{}", String::from_utf8_lossy(&wide.stderr));
    let told = "control: canny: stretched from 96x64 to 64x64";
    assert!(String::from_utf8_lossy(&wide.stderr).contains(told));
    let cropped = generate(
        &[&network[..], &["--control", "canny=wide.png", "--resize", "crop", "-o", "c.png"]].concat(),
    );
    assert!(cropped.status.success() && !String::from_utf8_lossy(&cropped.stderr).contains("stretched"));

    let plan =
        run(&["plan", "sd15", "--json", "--control", "canny=a.png", "--control-model", "canny=controlnet"]);
    let plan: Value = serde_json::from_slice(&plan.stdout).unwrap();
    let stages: Vec<&str> =
        plan["stages"].as_array().unwrap().iter().map(|s| s["stage"].as_str().unwrap()).collect();
    assert_eq!(stages, ["text_encoder", "unet", "controlnet", "vae_decoder"]);

    for (arguments, code, expected) in [
        (
            &["--control", "canny=a.png"][..],
            2,
            "control: canny: expected a control model of this kind, got none",
        ),
        (
            &["--control-model", "canny=controlnet"],
            2,
            "control model: canny: expected a control image of this kind",
        ),
        (
            &["--control-model", "canny=controlnet", "--control", "depth=a.png"],
            2,
            "control: depth: expected a control model",
        ),
        (&["--control-model", "canny=controlnet", "--control", "canny=cut.png"], 3, "cut.png"),
        (&["--control-model", "canny=controlnet", "--control", "canny=none.png"], 3, "none.png"),
        (
            &["--control-model", "canny=controlnet", "--control", "canny=a.png:weight=nan"],
            2,
            "control: weight",
        ),
        (
            &["--control-model", "canny=controlnet", "--control", "canny=a.png:start=1:end=0"],
            2,
            "control: start",
        ),
        (&["--control-model", "canny=controlnet", "--control", "canny=a.png:mode=strict"], 2, "control mode"),
        (
            &[
                "--control-model",
                "canny=controlnet",
                "--control",
                "canny=a.png",
                "--init",
                "a.png",
                "--extend",
                "left=8",
            ],
            2,
            "extend: expected none with a control image",
        ),
    ] {
        let refused = generate(&[arguments, &["-o", "no.png"]].concat());
        let message = String::from_utf8_lossy(&refused.stderr);
        assert_eq!(refused.status.code(), Some(code), "{arguments:?}: {message}");
        assert!(message.contains(expected), "{arguments:?}: {message}");
        assert!(!scratch.path().join("no.png").exists());
    }
}

/// A snapshot goes on with the same control images and networks, and no others.
#[test]
fn snapshots_are_of_one_control_image_and_network() {
    let (control, scratch) = (Control::open("control"), scratch());
    let folder = scratch.path().join("sd15");
    Golden::open("sd15").write_folder(&folder, Precision::F32, false, 1);
    let [one, other] = ["controlnet", "controlnet_2"].map(|name| control.write_folder(name, scratch.path()));
    let picture = control.pictures.iter().find(|picture| picture.name == "normal").unwrap();
    let mut pipeline = Pipeline::open(&model(&folder, &[("controlnet", one)]), &options()).unwrap();
    let request = pipeline.request(picture.recipe(picture.images())).unwrap();
    let mut run = pipeline.begin(&request).unwrap();
    run.step().unwrap();
    let snapshot = run.snapshot().unwrap();
    run.steps(|_| ControlFlow::Continue(())).unwrap();
    let expected = run.latents().to_vec();
    drop(run);
    let mut run = pipeline.restore(&request, &snapshot).unwrap();
    run.steps(|_| ControlFlow::Continue(())).unwrap();
    assert_eq!(run.latents(), expected);
    drop(run);

    let refused = |pipeline: &mut Pipeline, images: Vec<ControlImage>, expected: &str| {
        let request = pipeline.request(picture.recipe(images)).unwrap();
        let error = pipeline.restore(&request, &snapshot).err().expect(expected);
        assert_eq!(error.kind(), ErrorKind::Input);
        assert!(error.to_string().contains(expected), "{error}");
    };
    let mut images = picture.images();
    images[0] = ControlImage {
        steering: images[0].steering,
        ..ControlImage::new("controlnet", RgbImage::new(64, 64))
    };
    refused(&mut pipeline, images, "made for another");
    let mut images = picture.images();
    images[0].steering.weight = 0.7;
    refused(&mut pipeline, images, "made for another");
    drop(pipeline);
    let mut pipeline = Pipeline::open(&model(&folder, &[("controlnet", other)]), &options()).unwrap();
    refused(&mut pipeline, picture.images(), "other weights");
}

/// The server: A1111's units and jobs give the images of the command line, and receipts that make them again.
#[cfg(feature = "server")]
#[test]
fn the_server_takes_control() {
    let (control, scratch) = (Control::open("control"), scratch());
    let folder = scratch.path().join("sd15");
    Golden::open("sd15").write_folder(&folder, Precision::F32, false, 1);
    control.write_folder("controlnet", scratch.path());
    let edges = RgbImage::from_fn(64, 64, |x, y| image::Rgb([x as u8 * 4, y as u8 * 4, 9]));
    edges.save(scratch.path().join("a.png")).unwrap();
    let program = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_calotype"));
        command.current_dir(scratch.path());
        command
    };
    let common = ["-m", "sd15", "--control-model", "canny=controlnet"];
    let drawn = |name: &str, more: &[&str]| {
        let settings = ["--steps", "2", "--seed", "3", "--size", "64x64", "-o", name];
        let output = program().args(["generate", "a fox"]).args(settings).args(more).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        image::open(scratch.path().join(name)).unwrap().into_rgb8()
    };
    let plain = drawn("plain.png", &common[..2]);
    let expected =
        drawn("one.png", &[&common[..], &["--control", "canny=a.png:weight=0.75:mode=prompt"]].concat());
    assert_ne!(plain, expected);

    let mut server = program();
    let server =
        server.args(["serve", "--address", "127.0.0.1:0"]).args(common).stderr(Stdio::piped()).spawn();
    let mut server = Running(server.unwrap());
    let mut line = String::new();
    BufReader::new(server.0.stderr.take().unwrap()).read_line(&mut line).unwrap();
    let address = line.trim().rsplit('/').next().unwrap().to_owned();
    let ask = |method: &str, path: &str, body: &Value| -> (u16, Vec<u8>) {
        let body = body.to_string();
        let mut stream = TcpStream::connect(&address).unwrap();
        let head = format!(
            "{method} {path} HTTP/1.0\r\nHost: {address}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(&[head.as_bytes(), body.as_bytes()].concat()).unwrap();
        let mut reply = Vec::new();
        stream.read_to_end(&mut reply).unwrap();
        let at = reply.windows(4).position(|bytes| bytes == b"\r\n\r\n").unwrap();
        let status = std::str::from_utf8(&reply[9..12]).unwrap().parse().unwrap();
        (status, reply.split_off(at + 4))
    };
    let json = |(status, body): (u16, Vec<u8>)| -> Value {
        assert!((200..300).contains(&status), "{status}: {}", String::from_utf8_lossy(&body));
        serde_json::from_slice(&body).unwrap()
    };
    let list = json(ask("GET", "/controlnet/model_list", &Value::Null));
    assert_eq!(list, json!({ "model_list": ["canny"] }));
    let png = STANDARD.encode(fs::read(scratch.path().join("a.png")).unwrap());
    let text = |units: Value| {
        json!({
            "prompt": "a fox", "steps": 2, "seed": 3, "width": 64, "height": 64,
            "alwayson_scripts": { "ControlNet": { "args": units } },
        })
    };
    let unit = json!({
        "image": png, "model": "canny [0123abcd]", "module": "none", "weight": 0.75, "control_mode": 1, "pixel_perfect": true,
        "resize_mode": "Crop and Resize",
    });
    for (units, expected) in [(json!([unit]), &expected), (json!([]), &plain)] {
        let reply = json(ask("POST", "/sdapi/v1/txt2img", &text(units)));
        let image = STANDARD.decode(reply["images"][0].as_str().unwrap()).unwrap();
        assert!(image::load_from_memory(&image).unwrap().into_rgb8() == *expected);
        let info: Value = serde_json::from_str(reply["info"].as_str().unwrap()).unwrap();
        assert!(!info["warnings"].to_string().contains("alwayson_scripts"), "{info}");
    }
    let (status, body) = ask("POST", "/sdapi/v1/txt2img", &text(json!([{ "image": png, "model": "pose" }])));
    let told = String::from_utf8_lossy(&body).into_owned();
    assert!(status == 400 && told.contains("args[0]: model: expected one of canny, got pose"), "{told}");

    // A job, whose receipt tells of the network and the image.
    let recipe = json!({ "version": 1, "prompt": "a fox", "steps": 2, "seed": 3, "size": "64x64" });
    let controls = json!([{ "kind": "canny", "image": png, "weight": 0.75, "mode": "prompt" }]);
    let job = json(ask("POST", "/api/jobs", &json!({ "recipe": recipe, "control": controls })));
    let path = format!("/api/jobs/{}", job["id"].as_str().unwrap());
    let ended = loop {
        let job = json(ask("GET", &path, &Value::Null));
        if !["queued", "running"].contains(&job["status"].as_str().unwrap()) {
            break job;
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    assert_eq!(ended["status"], "done", "{ended}");
    let (_, image) = ask("GET", &format!("{path}/image.png"), &Value::Null);
    assert!(image::load_from_memory(&image).unwrap().into_rgb8() == expected);
    let receipt = json(ask("GET", &format!("{path}/receipt.json"), &Value::Null));
    assert_eq!(receipt["control"][0]["weight"], 0.75);
    assert_eq!(receipt["control"][0]["sha256"].as_str().map(str::len), Some(64), "{receipt}");
    assert_eq!(receipt["control_model"][0]["kind"], "canny");
    for (controls, expected) in [
        (json!([{ "kind": "canny", "path": "a.png" }]), "control[0]: image: expected an image, got none"),
        (json!([{ "kind": "canny", "image": png, "path": "a.png" }]), "control[0]: path: expected no value"),
        (json!([{ "kind": "canny", "image": png, "weight": 99 }]), "control[0]: "),
        (json!({ "kind": "canny" }), "control: expected a list"),
        (json!([{ "kind": "pose", "image": png }]), "control: pose: expected a control model of this kind"),
    ] {
        let (status, body) = ask("POST", "/api/jobs", &json!({ "recipe": recipe, "control": controls }));
        let told = String::from_utf8_lossy(&body);
        assert!(status == 400 && told.contains(expected), "{status}: {told}");
    }
}

/// A program that ends with the test.
#[cfg(feature = "server")]
struct Running(std::process::Child);

#[cfg(feature = "server")]
impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
