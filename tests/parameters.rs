//! Texts that A1111's web UI, Forge, SD.Next, savers of ComfyUI and stable-diffusion.cpp put into images, read as recipes.

#![cfg(feature = "engine")]

use calotype::ErrorKind;
use calotype::recipe::parameters::{self, Imported};
use serde_json::{Value, json};

/// Reads a text; the recipe without its version.
fn read(text: &str) -> (Value, Imported) {
    let imported = parameters::read("x.png", text).unwrap_or_else(|error| panic!("{error}: {text:?}"));
    let mut recipe: Value = serde_json::from_str(&imported.recipe.to_json()).unwrap();
    recipe.as_object_mut().unwrap().remove("version");
    (recipe, imported)
}

#[track_caller]
fn check(text: &str, expected: Value, warnings: &[&str]) {
    let (recipe, imported) = read(text);
    assert_eq!(recipe, expected, "{text:?}");
    assert_eq!(imported.warnings.len(), warnings.len(), "{text:?}: {:?}", imported.warnings);
    for (line, expected) in imported.warnings.iter().zip(warnings) {
        assert!(line.starts_with(expected), "{text:?}: expected {expected:?}, got {line:?}");
    }
}

/// What most texts here have in common.
const REST: &str = "CFG scale: 7, Seed: 1, Size: 512x768";

/// The recipe of a text with [`REST`], Euler a, and what else is said.
fn usual(others: Value) -> Value {
    let mut recipe = json!({
        "prompt": "a cat", "steps": 20, "sampler": "euler-a", "schedule": "normal", "guidance": 7.0, "seed": 1,
        "size": "512x768", "rng": "philox",
    });
    for (name, value) in others.as_object().unwrap() {
        recipe[name] = value.clone();
    }
    recipe.as_object_mut().unwrap().retain(|_, value| !value.is_null());
    recipe
}

#[test]
fn prompts_end_where_others_end_them() {
    let settings = format!("Steps: 20, Sampler: Euler a, {REST}");
    for (text, prompt, negative) in [
        ("a cat\n", "a cat", None),
        ("a cat\nNegative prompt: a dog\n", "a cat", Some("a dog")),
        (
            "a cat,\n\n(red:1.2), \"q\": {x}\nNegative prompt: a dog\nblurry, [low]\n",
            "a cat,\n\n(red:1.2), \"q\": {x}",
            Some("a dog\nblurry, [low]"),
        ),
        ("Negative prompt: a dog\n", "", Some("a dog")),
        ("\n", "", None),
        ("", "", None),
        ("a cat\r\nNegative prompt: a dog\r\nblurry\r\n", "a cat", Some("a dog\nblurry")),
        ("a Negative prompt: b\n", "a Negative prompt: b", None),
        ("a\nNegative prompt: b\nNegative prompt: c\n", "a", Some("b\nNegative prompt: c")),
        ("Size: 1x1, b: c, d: e\n", "Size: 1x1, b: c, d: e", None),
        ("Steps: 3, a story\nof cats\n", "Steps: 3, a story\nof cats", None),
        ("  a cat  \nNegative prompt:   \n", "a cat", None),
        ("<lora:ink:0.7> caf\u{e9} \u{1f34e}\n", "<lora:ink:0.7> caf\u{e9} \u{1f34e}", None),
    ] {
        let expected = usual(json!({ "prompt": prompt, "negative": negative }));
        check(&format!("{text}{settings}"), expected.clone(), &[]);
        check(&format!("{text}{settings}\r\n\0"), expected, &[]);
    }
}

#[test]
fn settings_are_read() {
    for (settings, others, warnings) in [
        // A1111 of every age.
        ("Steps: 20, Sampler: Euler a", json!({}), &[][..]),
        ("Steps: 20, Sampler: DPM++ 2M Karras", json!({"sampler": "dpm++2m", "schedule": "karras"}), &[]),
        (
            "Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras",
            json!({"sampler": "dpm++2m", "schedule": "karras"}),
            &[],
        ),
        (
            "Steps: 20, Sampler: DPM++ 2M, Schedule type: Automatic",
            json!({"sampler": "dpm++2m", "schedule": "karras"}),
            &[],
        ),
        ("Steps: 20, Sampler: Euler, Schedule type: Automatic", json!({"sampler": "euler"}), &[]),
        ("Steps: 20, Sampler: Euler a, Schedule type: SGM Uniform", json!({"schedule": "sgm-uniform"}), &[]),
        (
            "Steps: 20, Sampler: Euler a, Schedule type: Karras, Schedule rho: 5",
            json!({"schedule": "karras:rho=5"}),
            &[],
        ),
        (
            "Steps: 20, Sampler: Euler a, Schedule type: Beta, Beta schedule alpha: 0.5",
            json!({"schedule": "beta:alpha=0.5"}),
            &[],
        ),
        (
            "Steps: 20, Sampler: Euler a, Schedule type: Turbo",
            json!({"schedule": null}),
            &["Schedule type: not known: \"Turbo\""],
        ),
        ("Steps: 20, Sampler: Euler a, Clip skip: 2, RNG: CPU", json!({"clip_skip": 2, "rng": "torch"}), &[]),
        ("Steps: 20, Sampler: Euler a, RNG: NV", json!({}), &[]),
        (
            "Steps: 20, Sampler: Euler a, Variation seed: 9, Variation seed strength: 0.25",
            json!({"variation_seed": 9, "variation_strength": 0.25}),
            &[],
        ),
        ("Steps: 20, Sampler: Euler a, Variation seed: 9", json!({}), &["Variation seed: not used"]),
        (
            "Steps: 20, Sampler: Euler a, ENSD: 31337",
            json!({}),
            &["ENSD: not used: noise of the steps from another seed: 31337"],
        ),
        ("Steps: 20, Sampler: Euler a, Eta: 0.5", json!({"sampler": "euler-a:eta=0.5"}), &[]),
        (
            "Steps: 20, Sampler: Euler, Sigma churn: 5, Sigma tmin: 0.1",
            json!({"sampler": "euler:s_churn=5,s_tmin=0.1"}),
            &[],
        ),
        (
            "Steps: 20, Sampler: DDIM, Eta DDIM: 0.3",
            json!({"sampler": "ddim:eta=0.3", "schedule": null}),
            &[],
        ),
        (
            "Steps: 20, Sampler: Euler a, Steps: 30, CFG scale: nan",
            json!({"steps": 30, "guidance": null}),
            &[
                "Steps: there several times: the last is used, and not \"20\"",
                "CFG scale: there several times: the last is used, and not \"7\"",
                "CFG scale: not understood",
            ],
        ),
        (
            "Steps: 20, Sampler: DPM2 a Karras",
            json!({"sampler": "dpm2-a", "schedule": "karras"}),
            &["Sampler: DPM2 a: A1111 discards the next-to-last sigma"],
        ),
        (
            "Steps: 20, Sampler: DPM adaptive",
            json!({"sampler": null, "schedule": null}),
            &["Sampler: DPM adaptive: expected a sampler with a given number of steps"],
        ),
        (
            "Steps: 20, Sampler: Fancy 3000",
            json!({"sampler": null, "schedule": null}),
            &["Sampler: not known: \"Fancy 3000\"; the model's own is used"],
        ),
        ("Steps: 20", json!({"sampler": null, "schedule": null}), &[]),
        (
            "Steps: many, Sampler: Euler a",
            json!({"steps": null}),
            &["Steps: not understood, not used: \"many\""],
        ),
        ("Steps: 20, Sampler: Euler a, Denoising strength: 0.6", json!({"strength": 0.6, "init": {}}), &[]),
        (
            "Steps: 20, Sampler: Euler a, Denoising strength: 0.6, Mask blur: 4",
            json!({"strength": 0.6, "init": {}, "mask": {}, "mask_blur": 4.0}),
            &[],
        ),
        (
            "Steps: 20, Sampler: Euler a, Denoising strength: 0.6, Mask mode: Inpaint not masked, Inpaint area: Only masked, \
             Masked area padding: 32",
            json!({"strength": 0.6, "init": {}, "mask": {}, "mask_invert": true, "mask_only": 32, "mask_blur": 0.0}),
            &[],
        ),
        (
            "Steps: 20, Sampler: Euler a, Denoising strength: 0.6, Hires upscale: 2, Hires steps: 10, Hires upscaler: Latent",
            json!({"hires": "2x:strength=0.6:upscaler=latent"}),
            &["Hires fix: the second pass runs strength x steps here"],
        ),
        (
            "Steps: 20, Sampler: Euler a, Denoising strength: 0.6, Hires upscale: 1.5, Hires upscaler: R-ESRGAN 4x+, Hires CFG Scale: 5",
            json!({"hires": "1.5x:strength=0.6:upscaler=pixel"}),
            &[
                "Hires upscaler: R-ESRGAN 4x+ is not supported: a Lanczos filter",
                "Hires fix: the second pass",
                "Hires fix: settings that are not used",
            ],
        ),
        (
            "Steps: 20, Sampler: Euler a, Denoising strength: 0.6, Hires upscale: 1",
            json!({}),
            &["Hires fix: not done: hires: expected a scale above 1"],
        ),
        (
            "Steps: 20, Sampler: Euler a, Denoising strength: 0.6, Hires resize: 1024x1024",
            json!({}),
            &["Hires fix: not done: without its scale", "Hires fix: settings that are not used"],
        ),
        (
            "Steps: 20, Sampler: Euler a, ADetailer model: face_yolov8n.pt, ADetailer prompt: \"a, b: \\\"c\\\"\", ADetailer version: 24.1",
            json!({}),
            &["ADetailer: not done"],
        ),
        (
            "Steps: 20, Sampler: Euler a, ControlNet 0: \"preprocessor: canny, model: control [abc], weight: 1\", ControlNet 1: \"x, y\"",
            json!({}),
            &["ControlNet: not used"],
        ),
        (
            "Steps: 20, Sampler: Euler a, Face restoration: CodeFormer, Tiling: True",
            json!({}),
            &["Face restoration: not used: \"CodeFormer\"", "Tiling: not used"],
        ),
        (
            "Steps: 20, Sampler: Euler a, VAE hash: 735e4c3a44, VAE: vae-ft-mse.pt",
            json!({}),
            &["VAE: not used: \"vae-ft-mse.pt\""],
        ),
        (
            "Steps: 20, Sampler: Euler a, Refiner: xl [abc], Refiner switch at: 0.8",
            json!({}),
            &["Refiner: not used"],
        ),
        // JSON without quotes, as Civitai writes it.
        (
            "Steps: 20, Sampler: Euler a, Civitai resources: [{\"type\":\"lora\",\"weight\":0.5,\"name\":\"Steps: 9, x\"}], Civitai metadata: {}",
            json!({}),
            &[],
        ),
        (
            "Steps: 20, Sampler: Euler a, Hashes: {\"model\": \"abc\", \"lora:x\": \"def\"}, Version: v1.10.1",
            json!({}),
            &[],
        ),
        // Forge.
        (
            "Steps: 20, Sampler: Euler, Schedule type: Simple, Module 1: ae, Distilled CFG Scale: 3.5, Version: f2.0.1v1.10.1",
            json!({"sampler": "euler", "schedule": "simple"}),
            &["Modules: not used", "Distilled CFG Scale: not used: \"3.5\""],
        ),
        // SD.Next, in another order.
        (
            "Steps: 20, Seed: 1, Sampler: Euler a, App: SD.Next, Backend: Diffusers, Operations: txt2img",
            json!({}),
            &[],
        ),
        // Savers of ComfyUI.
        (
            "Steps: 20, Sampler: dpmpp_2m_karras",
            json!({"sampler": "dpm++2m", "schedule": "karras", "rng": "torch"}),
            &[],
        ),
        (
            "Steps: 20, Sampler: dpmpp_2m_sde_gpu, Scheduler: exponential",
            json!({"sampler": "dpm++2m-sde", "schedule": "exponential", "rng": "torch"}),
            &[],
        ),
        (
            "Steps: 20, Sampler: euler_normal, Version: ComfyUI",
            json!({"sampler": "euler", "rng": "torch"}),
            &[],
        ),
        // stable-diffusion.cpp.
        (
            "Steps: 20, Guidance: 3.5, RNG: cuda, Sampler: euler_a, Version: stable-diffusion.cpp",
            json!({}),
            &["Guidance: not used: \"3.5\""],
        ),
        // Broken.
        ("Steps: 20, Sampler: Euler a, ADetailer prompt: \"open", json!({}), &["ADetailer: not done"]),
        ("Steps: 20, Sampler: Euler a, , Odd:, : x, no colon", json!({}), &["Odd: not used"]),
    ] {
        let (first, rest) = settings.split_at(settings.find(',').unwrap_or(settings.len()));
        let seed_is_there = settings.contains("Seed: 1");
        let own = if seed_is_there { "CFG scale: 7, Size: 512x768" } else { REST };
        check(&format!("a cat\n{first}, {own}{rest}"), usual(others), warnings);
    }
}

#[test]
fn texts_without_settings_are_prompts() {
    for text in ["a cat", "a cat\nNegative prompt: a dog", "a, b: c"] {
        let (recipe, imported) = read(text);
        assert_eq!(recipe["steps"], Value::Null);
        assert_eq!(
            imported.warnings,
            ["settings: expected a last line with them, got none: all of the text is the prompt"]
        );
    }
    for empty in ["", " \n\r\n", "\0"] {
        let error = parameters::read("x.png", empty).map(drop);
        if let Err(error) = error {
            assert_eq!(error.kind(), ErrorKind::Input);
            assert!(
                error.to_string().starts_with("x.png: parameters: expected prompts and settings"),
                "{error}"
            );
        } else {
            assert_eq!(empty, "\0");
        }
    }
}

#[test]
fn models_and_small_files_are_known_by_name_and_hash() {
    let text = format!(
        "a <lora:ink:1> star\nSteps: 20, Sampler: Euler a, {REST}, Model hash: 6CE0161689, Model: v1-5-pruned, \
         Lora hashes: \"ink: 0123456789ab, a: b: ff\", TI hashes: \"star: abcdef012345\""
    );
    let (recipe, imported) = read(&text);
    assert_eq!(recipe["model"], json!({}));
    assert_eq!(imported.model_name.as_deref(), Some("v1-5-pruned"));
    assert_eq!(imported.model_hash.as_deref(), Some("6ce0161689"));
    let named: Vec<_> =
        imported.additions.iter().map(|file| (&file.name[..], file.is_lora, &file.hash[..])).collect();
    assert_eq!(named, [("ink", true, "0123456789ab"), ("a: b", true, "ff"), ("star", false, "abcdef012345")]);
    assert_eq!(imported.warnings, [""; 0]);
}

/// No text panics, and what is read twice is the same.
#[test]
fn texts_that_are_odd_are_read() {
    let pieces = [
        "Steps: 20",
        "Sampler: Euler a",
        ", ",
        ":",
        "\n",
        "\r\n",
        "Negative prompt:",
        "\"",
        "\\",
        "{",
        "[",
        "}",
        "é",
        "\0",
        "Seed: -1",
        "Size: 0x0",
        "CFG scale: NaN",
        "Eta: inf",
        "Denoising strength: 1e999",
        "Schedule type: ",
        " ",
        "Variation seed: 99999999999999999999",
        "Lora hashes: \"a: b\"",
    ];
    let mut state = 7u64;
    for _ in 0..20_000 {
        let mut text = String::from("a");
        for _ in 0..state % 17 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            text += pieces[(state >> 33) as usize % pieces.len()];
        }
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let (first, second) = (parameters::read("x", &text), parameters::read("x", &text));
        assert_eq!(format!("{first:?}"), format!("{second:?}"));
    }
}
