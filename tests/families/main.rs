//! Whole checkpoints of every family against diffusers: the same weights, as folders and as single files, give the same
//! text embeddings, predictions, latents and pictures.

#![cfg(feature = "engine")]

mod adapters;
mod control;
mod dialect;
mod golden;
mod group;
mod mapped;
mod memory;
mod noise;
mod onnx;
mod pack;
mod parts;
mod prompts;
mod storage;
mod t2i_adapter;
mod wide;

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::ops::ControlFlow;

use calotype::engine::{Session, SessionOptions, TensorRef};
use calotype::image_file::{Init, Mask};
use calotype::model::{Model, Part};
use calotype::pipeline::{Options, Pipeline};
use calotype::prompt::Text;
use calotype::recipe::{Image, Recipe};
use calotype::request::Request;
use calotype::weights::Dtype;
use serde_json::{Value, json};

use self::golden::{Call, Golden, Picture, Precision, scratch};

/// Relative L2 distance: two libraries' ways to round in single precision stay below.
const F32_TOLERANCE: f64 = 1e-4;
/// Rounding the weights to 11 bits moves the results of narrow networks of random weights by up to 4e-3.
const F16_TOLERANCE: f64 = 5e-3;
/// To 8 bits, eight times as much.
const BF16_TOLERANCE: f64 = 4e-2;
/// In levels of 255, the mean over a picture.
const PICTURE_TOLERANCE: f64 = 0.05;

macro_rules! families {
    (@tests $family:literal folders) => {
        #[test]
        fn folder_in_f32() {
            folder($family, Precision::F32, 1);
        }

        #[test]
        fn folder_in_f16_in_shards() {
            folder($family, Precision::F16, 2);
        }
    };
    (@tests $family:literal folders and single files) => {
        families! { @tests $family folders }

        #[test]
        fn single_file_in_f32() {
            single_file($family, Precision::F32);
        }

        #[test]
        fn single_file_in_f16() {
            single_file($family, Precision::F16);
        }
    };
    ($($test:ident => $family:literal: $($forms:ident)+;)*) => {$(
        mod $test {
            use super::*;

            families! { @tests $family $($forms)+ }
        }
    )*};
}

families! {
    sd15 => "sd15": folders and single files;
    playground => "playground": folders;
    sd15_noise => "sd15-noise": folders;
    sd15_flow16 => "sd15-flow16": folders;
    sd15_taesd => "sd15-taesd": folders;
    small_sd => "small-sd": folders;
    lcm => "lcm": folders and single files;
    inpaint => "inpaint": folders and single files;
    instruct_pix2pix => "instruct-pix2pix": folders and single files;
    sd21 => "sd21": folders and single files;
    sd21_base => "sd21-base": folders and single files;
    sd_turbo => "sd-turbo": folders and single files;
    x4_upscaler => "x4-upscaler": folders and single files;
    sdxl => "sdxl": folders and single files;
    sdxl_refiner => "sdxl-refiner": folders and single files;
    sdxl_turbo => "sdxl-turbo": folders and single files;
    ssd_1b => "ssd-1b": folders and single files;
}

#[test]
fn folder_in_bf16() {
    folder("sd15", Precision::Bf16, 1);
}

/// Also with the names that other versions of diffusers and transformers gave the same tensors.
#[track_caller]
fn folder(family: &str, precision: Precision, shards: usize) {
    let (golden, scratch) = (Golden::open(family), scratch());
    golden.write_folder(scratch.path(), precision, shards > 1, shards);
    let model = Model::open(scratch.path()).unwrap();
    check_parts(&golden, &model, precision);
    for picture in &golden.pictures {
        Golden::write_scheduler(scratch.path(), &picture.scheduler);
        check_picture(&golden, &Model::open(scratch.path()).unwrap(), picture, precision);
    }
}

/// The parts against diffusers, and the latents against those of the folder, which are bit for bit the same.
#[track_caller]
fn single_file(family: &str, precision: Precision) {
    let (golden, scratch) = (Golden::open(family), scratch());
    let (file, folder) = (scratch.path().join(format!("{family}.safetensors")), scratch.path().join(family));
    golden.write_single_file(&file, precision);
    let model = Model::open(&file).unwrap();
    check_parts(&golden, &model, precision);

    golden.write_folder(&folder, precision, false, 1);
    // What a single file does not tell is taken to be as published, but for the last bit of all: only training makes the
    // difference by which those that predict velocities are known.
    let published = &golden.schedulers["scheduler"];
    // An upscaler is known by its inputs.
    let prediction = if family == "x4-upscaler" { "v_prediction" } else { "epsilon" };
    let mut scheduler = json!({ "_class_name": "PNDMScheduler", "timestep_spacing": "leading", "prediction_type": prediction });
    for key in ["beta_start", "beta_end", "beta_schedule", "num_train_timesteps", "steps_offset"] {
        scheduler[key] = published[key].clone();
    }
    golden::write_json(&folder.join("scheduler/scheduler_config.json"), &scheduler);
    // The first image of a family that takes init images and masks takes them.
    let argument = |name: &str| golden.pictures[0].arguments.get(name);
    let draw = |model: &Model| {
        let mut pipeline = Pipeline::open(model, &options()).unwrap();
        let init = argument("image").map(golden::init);
        let draft = Recipe {
            prompt: "a red apple".into(),
            size: init.is_none().then(|| "64x64".parse().unwrap()),
            init: init.map(Into::into),
            mask: argument("mask_image").map(|mask| golden::mask(mask).into()),
            strength: argument("strength").and_then(Value::as_f64),
            steps: Some(2),
            sampler: Some("euler".parse().unwrap()),
            seed: Some(1),
            ..Recipe::default()
        };
        let request = pipeline.request(draft).unwrap();
        pipeline.denoise(&request, |_| ControlFlow::Continue(())).unwrap()
    };
    assert_eq!(draw(&model), draw(&Model::open(&folder).unwrap()));
}

fn check_parts(golden: &Golden, model: &Model, precision: Precision) {
    let mut seen = 0;
    for part in model.text_encoders() {
        let tokenizer_name = part.name().replace("text_encoder", "tokenizer");
        let tokenizer = part.tokenizer(part.context()).unwrap();
        let mut session = open(part);
        for case in &golden.text.cases {
            let ids = &case.ids[&tokenizer_name];
            let encoded = tokenizer.encode(&Text::literal(&case.text).unwrap(), 1).unwrap();
            assert_eq!(&encoded.chunks[0].ids, ids, "{}: {}", golden.family, case.text);
            for (port, array) in &case.arrays {
                let Some(port) = port.strip_prefix(&format!("{}.", part.name())) else { continue };
                let shape = [1, ids.len()];
                let input = [("input_ids", TensorRef::new(&shape, &ids[..]))];
                let got = session.compute(&input, &[port]).unwrap().remove(0);
                let kept = match got.shape[..] {
                    [_, tokens, width] if tokens == ids.len() => golden
                        .text
                        .rows
                        .iter()
                        .flat_map(|row| &got.data[row * width..][..width])
                        .copied()
                        .collect(),
                    _ => got.data,
                };
                close(&format!("{}.{port}", part.name()), &kept, golden.array(array), precision);
                seen += 1;
            }
        }
    }
    assert!(seen >= golden.text.cases.len(), "no text encoder was compared");
    check_call(golden, model.unet(), &golden.unet, precision);
    check_call(golden, model.vae_encoder().unwrap(), &golden.vae.encode, precision);
    check_call(golden, model.vae_decoder(), &golden.vae.decode, precision);
}

fn check_call(golden: &Golden, part: &Part, call: &Call, precision: Precision) {
    let inputs: BTreeMap<&String, _> =
        call.inputs.iter().map(|(name, input)| (name, input.elements())).collect();
    let mut session = open(part);
    let whole: BTreeMap<&String, Vec<i64>> =
        inputs.iter().map(|(name, (_, data, _))| (*name, data.iter().map(|&x| x as i64).collect())).collect();
    let feeds: Vec<_> = inputs
        .iter()
        .map(|(name, (shape, data, _))| {
            let port = session.inputs().iter().find(|port| port.name == **name);
            let port = port.unwrap_or_else(|| panic!("{}: no input {name}", part.name()));
            let tensor = match port.dtype {
                Dtype::I64 => TensorRef::new(shape, &whole[name][..]),
                _ => TensorRef::new(shape, &data[..]),
            };
            (name.as_str(), tensor)
        })
        .collect();
    for (port, array) in &call.outputs {
        let got = session.compute(&feeds, &[port]).unwrap().remove(0);
        close(&format!("{}.{port}", part.name()), &got.data, golden.array(array), precision);
    }
}

fn check_picture(golden: &Golden, model: &Model, picture: &Picture, precision: Precision) {
    let mut pipeline = Pipeline::open(model, &options()).unwrap();
    let request = request(picture, &pipeline);
    let latents = pipeline.denoise(&request, |_| ControlFlow::Continue(())).unwrap();
    close(&format!("{}: latents", picture.name), &latents, golden.array(&picture.latents), precision);
    if let Precision::F32 = precision {
        check_outside(picture, &mut pipeline);
    }
    if let (Some(expected), Precision::F32) = (&picture.picture, precision) {
        let got = pipeline.generate(&request, |_| ControlFlow::Continue(())).unwrap().image;
        let expected = golden.bytes(expected);
        assert_eq!(got.as_raw().len(), expected.len());
        let levels: f64 =
            got.as_raw().iter().zip(expected).map(|(a, b)| f64::from(a.abs_diff(*b))).sum::<f64>()
                / expected.len() as f64;
        assert!(levels < PICTURE_TOLERANCE, "{}: {levels} levels", picture.name);
    }
}

/// What a golden picture's arguments ask of the pipeline.
/// With a mask, what is outside of it is the init image, bit for bit, whatever the model sees of the mask.
#[track_caller]
fn check_outside(picture: &Picture, pipeline: &mut Pipeline) {
    let draft = draft(picture);
    let (Some(Image::Given(Init::Pixels(init))), Some(Image::Given(Mask::Pixels(mask))), None) =
        (&draft.init, &draft.mask, draft.size)
    else {
        return;
    };
    let mut draw = |keep_outside| {
        let draft = Recipe { keep_outside, ..draft.clone() };
        let request = pipeline.request(draft).unwrap();
        pipeline.generate(&request, |_| ControlFlow::Continue(())).unwrap().image
    };
    let (kept, decoded) = (draw(None), draw(Some(false)));
    let (mut outside, mut changed) = (0, 0);
    for (x, y, value) in mask.enumerate_pixels() {
        if value.0[0] == 0 {
            assert_eq!(kept.get_pixel(x, y), init.get_pixel(x, y), "{}: ({x}, {y})", picture.name);
            outside += 1;
            changed += usize::from(decoded.get_pixel(x, y) != init.get_pixel(x, y));
        }
    }
    assert!(outside > 0 && changed * 2 > outside, "{}: {changed} of {outside}", picture.name);
}

fn request(picture: &Picture, pipeline: &Pipeline) -> Request {
    // As diffusers draws: all pixels are the VAE's.
    let draft = draft(picture);
    let keep_outside = draft.mask.as_ref().map(|_| false);
    pipeline.request(Recipe { keep_outside, ..draft }).unwrap()
}

fn draft(picture: &Picture) -> Recipe {
    let known = [
        "prompt",
        "negative_prompt",
        "num_inference_steps",
        "width",
        "height",
        "guidance_scale",
        "image",
        "mask_image",
        "strength",
        "image_guidance_scale",
        "noise_level",
    ];
    let unknown: Vec<_> = picture.arguments.keys().filter(|key| !known.contains(&key.as_str())).collect();
    assert!(unknown.is_empty(), "{}: arguments {unknown:?}", picture.name);
    let argument = |name: &str| picture.arguments.get(name).filter(|value| !value.is_null());
    let number = |name: &str| argument(name).and_then(Value::as_f64);
    let text = |name: &str| argument(name).and_then(Value::as_str).map(str::to_owned);
    let size = number("width").zip(number("height")).map(|(width, height)| format!("{width}x{height}"));
    let sampler = match picture.scheduler.class.as_str() {
        // What the folder says must be enough for these.
        name if name.starts_with("EDM") || name.starts_with("Flow") => "",
        "EulerDiscreteScheduler" => "euler",
        "EulerAncestralDiscreteScheduler" => "euler-a",
        "DDIMScheduler" => "ddim",
        "LCMScheduler" => "lcm",
        other => panic!("{}: {other}", picture.name),
    };
    Recipe {
        prompt: text("prompt").unwrap(),
        negative: text("negative_prompt"),
        size: size.map(|size| size.parse().unwrap()),
        init: argument("image").map(|image| golden::init(image).into()),
        mask: argument("mask_image").map(|mask| golden::mask(mask).into()),
        strength: number("strength"),
        // diffusers takes it and leaves it aside where there is no guidance.
        image_guidance: number("image_guidance_scale").filter(|_| number("guidance_scale") > Some(1.0)),
        noise_level: number("noise_level").map(|level| level as usize),
        steps: number("num_inference_steps").map(|steps| steps as usize),
        // diffusers takes every scale up to 1 for none.
        guidance: number("guidance_scale").map(|scale| scale.max(1.0).into()),
        sampler: (!sampler.is_empty()).then(|| sampler.parse().unwrap()),
        seed: Some(picture.seed),
        ..Recipe::default()
    }
}

fn open(part: &Part) -> Session {
    Session::open(part.bind().unwrap(), &SessionOptions::new(NonZeroUsize::MIN)).unwrap()
}

fn options() -> Options {
    Options { session: SessionOptions::new(NonZeroUsize::MIN), plan: None }
}

/// Also that zeros and the same numbers one place on would be rejected.
#[track_caller]
fn close(what: &str, got: &[f32], expected: &[f32], precision: Precision) {
    let tolerance = match precision {
        Precision::F32 => F32_TOLERANCE,
        Precision::F16 => F16_TOLERANCE,
        Precision::Bf16 => BF16_TOLERANCE,
    };
    assert_eq!(got.len(), expected.len(), "{what}");
    let error = distance(got, expected);
    assert!(error <= tolerance, "{what}: relative error {error:.1e}");
    let mut shifted = got.to_vec();
    shifted.rotate_right(1);
    assert!(distance(&vec![0.0; got.len()], expected) > tolerance, "{what}: zeros would pass");
    assert!(distance(&shifted, expected) > tolerance, "{what}: a shift would pass");
}

fn distance(got: &[f32], expected: &[f32]) -> f64 {
    let square = |(a, b): (&f32, &f32)| (f64::from(*a) - f64::from(*b)).powi(2);
    let difference: f64 = got.iter().zip(expected).map(square).sum();
    let norm: f64 = expected.iter().map(|x| f64::from(*x).powi(2)).sum();
    (difference / norm).sqrt()
}
