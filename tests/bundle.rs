//! Manifests that lie, contradict themselves or ask for the impossible: each is refused when it is read, by name.

#![cfg(feature = "builtin")]

use calotype::ErrorKind;
use calotype::manifest::Manifest;
use calotype::model::Model;
use serde_json::{Value, json};

const TOKENIZER: &str = "/components/text_encoder/tokenizer";

fn built_in() -> Value {
    serde_json::from_str(include_str!("../models/builtin/calotype.json")).unwrap()
}

/// Puts a value at a JSON pointer into an otherwise good manifest, and gives the reason why that is refused.
#[track_caller]
fn refusal(pointer: &str, value: Value) -> String {
    let mut manifest = built_in();
    *manifest.pointer_mut(pointer).expect("a field of the manifest") = value;
    refusal_of(&serde_json::to_vec(&manifest).unwrap())
}

#[track_caller]
fn refusal_of(json: &[u8]) -> String {
    let error = Manifest::parse("origin", json).expect_err("a manifest that must be refused");
    assert_eq!(error.kind(), ErrorKind::Model, "{error}");
    error.to_string().strip_prefix("origin: ").expect("the origin first").to_owned()
}

#[test]
fn a_good_manifest_is_taken() {
    let (manifest, contents) = Manifest::parse("origin", &serde_json::to_vec(&built_in()).unwrap()).unwrap();
    let written: Value = serde_json::from_slice(&manifest.to_json(&contents)).unwrap();
    assert_eq!(written, built_in(), "what is written is what was read");
    let (_, schedule) = manifest.schedule(None, None, manifest.defaults.steps).unwrap();
    assert_eq!(schedule.steps().len(), manifest.defaults.steps);
}

/// Numbers with more digits than they need, as other programs write them: a reader that is off by the last bit reads what it
/// wrote as another number again. Rust's own reader of numbers is the second source.
#[test]
fn numbers_are_read_to_the_last_bit() {
    let text = serde_json::to_string(&built_in()).unwrap();
    let at = |name: &str| {
        let start = text.find(name).unwrap_or_else(|| panic!("{name} in the manifest")) + name.len();
        start..start + text[start..].find([',', '}', ']']).unwrap()
    };
    let [guidance, scale, factor] = [at("\"guidance\":"), at("\"scale\":"), at("\"factors\":[[")];
    let mut state = 21_u64;
    let mut random = |below: u64| {
        // Knuth's MMIX; the upper bits are the better ones.
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) % below
    };
    // The first is one that was read as 431.4931537919955 once it had been written.
    let mut number = "431.49315379199553488".to_owned();
    for row in 0..2000 {
        let mut json = text.clone();
        let mut ranges = [&guidance, &scale, &factor].map(Clone::clone);
        ranges.sort_by_key(|range| std::cmp::Reverse(range.start));
        ranges.into_iter().for_each(|range| json.replace_range(range, &number));
        let (manifest, contents) = Manifest::parse("row", json.as_bytes())
            .unwrap_or_else(|error| panic!("row {row}, {number}: {error}"));
        let expected: f64 = number.parse().unwrap();
        let of = |manifest: &Manifest| {
            let factor = manifest.preview.as_ref().unwrap().factors[0][0];
            (manifest.defaults.guidance, manifest.latents.scale, factor)
        };
        assert_eq!(of(&manifest), (expected, expected, number.parse().unwrap()), "row {row}: {number}");
        let written = manifest.to_json(&contents);
        let (again, contents) = Manifest::parse("again", &written).unwrap();
        assert_eq!(of(&again), of(&manifest), "row {row}: {number}");
        assert_eq!(again.to_json(&contents), written, "row {row}: {number}");
        let digits: String = (0..1 + random(24)).map(|_| char::from(b'0' + random(10) as u8)).collect();
        // Above 0 whatever the digits, and within what guidance may be.
        number = format!("{}.{digits}e-{}", 1 + random(900), random(12));
    }
}

#[test]
fn no_json() {
    for bytes in [&b""[..], b"\xff\xfe", b"{", b"[]", b"null", &b"[".repeat(100_000)] {
        assert!(refusal_of(bytes).starts_with("expected a manifest, got an error at "));
    }
}

#[test]
fn something_behind_the_manifest() {
    let mut json = serde_json::to_vec(&built_in()).unwrap();
    json.extend(b" {}");
    assert!(refusal_of(&json).starts_with("expected a manifest, got data after it: trailing characters"));
}

#[test]
fn format_of_the_future() {
    assert_eq!(
        refusal("/format", 2.into()),
        "format: expected 1, got 2; a newer version of calotype may support it"
    );
    assert_eq!(
        refusal("/format", 0.into()),
        "format: expected 1, got 0; a newer version of calotype may support it"
    );
}

#[test]
fn every_field_is_needed() {
    let whole = built_in();
    let mut fields = 0;
    for parent in ["", "/components", "/components/unet", TOKENIZER, "/curve", "/latents", "/defaults"] {
        let fields_of_parent = whole.pointer(parent).unwrap().as_object().unwrap().keys();
        // A model may have one text encoder or the other, or both, and only they have tokenizers.
        const OPTIONAL: [&str; 6] =
            ["text_encoder", "tokenizer", "vae_encoder", "schedule", "preview", "trained_words"];
        for field in fields_of_parent.filter(|field| !OPTIONAL.contains(&field.as_str())) {
            let mut manifest = whole.clone();
            manifest.pointer_mut(parent).unwrap().as_object_mut().unwrap().remove(field);
            let message = refusal_of(&serde_json::to_vec(&manifest).unwrap());
            assert!(message.contains(&format!("missing field `{field}`")), "{parent}/{field}: {message}");
            fields += 1;
        }
    }
    assert!(fields > 30, "{fields}");
}

#[test]
fn every_unknown_field_is_refused() {
    let whole = built_in();
    for parent in [
        "",
        "/components",
        "/components/unet",
        "/components/unet/inputs/sample",
        TOKENIZER,
        "/curve",
        "/latents",
        "/preview",
        "/defaults",
    ] {
        let mut manifest = whole.clone();
        manifest.pointer_mut(parent).unwrap()["colour"] = 1.into();
        let message = refusal_of(&serde_json::to_vec(&manifest).unwrap());
        assert!(message.contains("unknown field `colour`"), "{parent}: {message}");
    }
}

#[test]
fn noise_on_what_is_enlarged() {
    let low_res = json!({
        "betas": "scaled_linear", "start": 0.0001, "end": 0.02, "train_timesteps": 1000, "max_level": 350
    });
    let mut manifest = built_in();
    manifest["low_res"] = low_res.clone();
    let (read, contents) = Manifest::parse("x", &serde_json::to_vec(&manifest).unwrap()).unwrap();
    assert_eq!(read.low_res.as_ref().unwrap().max_level, 350);
    let written: Value = serde_json::from_slice(&read.to_json(&contents)).unwrap();
    assert_eq!(written["low_res"], low_res);

    for (field, value, message) in [
        ("max_level", 1000.into(), "low_res: noise level: expected at most 999, got up to 1000"),
        ("train_timesteps", 1.into(), "low_res: noise curve: expected 2 to 100000 timesteps, got 1"),
        ("end", 1.5.into(), "low_res: noise curve: beta["),
        ("colour", 1.into(), "unknown field `colour`"),
    ] {
        let mut damaged = manifest.clone();
        damaged["low_res"][field] = value;
        let message_got = refusal_of(&serde_json::to_vec(&damaged).unwrap());
        assert!(message_got.contains(message), "{field}: {message_got}");
    }
}

#[test]
fn numbers_that_are_none() {
    // JSON has no NaN and no infinity, but digits enough for more than any float holds.
    let mut manifest = built_in();
    manifest["latents"]["scale"] = "SCALE".into();
    let json = serde_json::to_string(&manifest).unwrap().replace("\"SCALE\"", "1e999");
    assert!(refusal_of(json.as_bytes()).contains("latents.scale: number out of range"));
    assert!(refusal("/latents/scale", Value::Null).contains("latents.scale: invalid type: null"));
}

#[test]
fn components_missing() {
    assert!(refusal("/components", json!({})).contains("missing field `unet`"));
    assert_eq!(
        refusal("/components/unet/weights", json!([])),
        "components.unet.weights: expected files, got none"
    );
}

#[test]
fn text_encoders_and_tokenizers_belong_together() {
    let mut manifest = built_in();
    let tokenizer =
        manifest["components"]["text_encoder"].as_object_mut().unwrap().remove("tokenizer").unwrap();
    let message = refusal_of(&serde_json::to_vec(&manifest).unwrap());
    assert_eq!(message, "components.text_encoder: expected a tokenizer, got none");
    let mut manifest = built_in();
    manifest["components"]["unet"]["tokenizer"] = tokenizer;
    let message = refusal_of(&serde_json::to_vec(&manifest).unwrap());
    assert_eq!(message, "components.unet: expected no tokenizer, got one");
    let mut manifest = built_in();
    manifest["components"].as_object_mut().unwrap().remove("text_encoder");
    let message = refusal_of(&serde_json::to_vec(&manifest).unwrap());
    assert_eq!(message, "components: expected a text_encoder, got none");
}

#[test]
fn port_of_an_unknown_type() {
    let message = refusal("/components/unet/inputs/sample/dtype", "F8".into());
    assert!(
        message
            .contains("components.unet.inputs.sample.dtype: expected an element type like F32, got \"F8\"")
    );
}

#[test]
fn context_that_is_none() {
    for context in [0, 1, 2, 65_537, 1 << 62, u64::MAX] {
        let message =
            format!("components.text_encoder.tokenizer.context: expected 3 to 65536 tokens, got {context}");
        assert_eq!(refusal(&format!("{TOKENIZER}/context"), context.into()), message);
    }
}

#[test]
fn latents_that_are_none() {
    for (pointer, value, got) in [
        ("/latents/scale", json!(0.0), "scale 0"),
        ("/latents/scale", json!(-0.5), "scale -0.5"),
        ("/latents/channels", json!(0), "got 0 channels"),
        ("/latents/channels", json!(1u64 << 60), "got 1152921504606846976 channels"),
        ("/latents/factor_px", json!(0), " 0 pixels"),
    ] {
        let message = refusal(pointer, value);
        assert!(
            message.starts_with("latents: expected 1 to 1024 channels and positive numbers, got "),
            "{message}"
        );
        assert!(message.contains(got), "{message}");
    }
    assert!(
        refusal("/latents/channels", json!(-1)).contains("latents.channels: invalid value: integer `-1`")
    );
    assert!(refusal("/latents/factor_px", json!(1u64 << 32)).contains("latents.factor_px: invalid value"));
}

#[test]
fn curve_that_is_none() {
    for (pointer, value) in [
        ("/curve/start", json!(0.0)),
        ("/curve/start", json!(-0.1)),
        ("/curve/end", json!(1.0)),
        ("/curve/end", json!(2.0)),
    ] {
        let message = refusal(pointer, value);
        assert!(message.starts_with("curve: noise curve: "), "{message}");
        assert!(message.contains("expected a number "), "{message}");
    }
    for timesteps in [0, 1, 100_001, u64::MAX] {
        let message = refusal("/curve/train_timesteps", timesteps.into());
        assert!(message.starts_with("curve: noise curve: expected 2 to 100000 timesteps, got "), "{message}");
    }
    assert!(refusal("/curve/betas", "cosine".into()).contains("curve.betas: unknown variant `cosine`"));
    assert!(refusal("/curve/spacing", "random".into()).contains("curve.spacing: unknown variant `random`"));
    assert!(refusal("/prediction", "score".into()).contains("prediction: unknown variant `score`"));
}

#[test]
fn predictions_that_no_betas_belong_to() {
    for prediction in
        [json!("flow"), json!({"edm": {"sigma_data": 0.5}}), json!({"edm_v": {"sigma_data": -1.0}})]
    {
        let message = refusal("/prediction", prediction);
        assert!(message.starts_with("prediction: expected one that goes with a curve of betas"), "{message}");
    }
}

/// Manifests of models without a curve are read and written; their numbers must be ones that such a model can have.
#[test]
fn noise_without_a_curve() {
    let with = |noise: Value, prediction: Value, sampler: &str| {
        let mut manifest = built_in();
        manifest.as_object_mut().unwrap().remove("curve");
        manifest["defaults"].as_object_mut().unwrap().remove("schedule");
        manifest["defaults"]["sampler"] = sampler.into();
        (manifest["noise"], manifest["prediction"]) = (noise, prediction);
        manifest
    };
    let flow = |shift: f64| json!({"flow": {"shift": shift, "train_timesteps": 1000}});
    let edm =
        |low: f64, levels: &str| json!({"edm": {"sigma_min": low, "sigma_max": 80.0, "levels": levels}});
    let data = |sigma_data: f64| json!({"edm": {"sigma_data": sigma_data}});
    for (noise, prediction, sampler, first) in [
        (flow(3.0), json!("flow"), "euler", 1.0),
        (edm(0.002, "karras"), data(0.5), "dpm++2m", 80.0),
        (edm(0.002, "karras:rho=3"), json!({"edm_v": {"sigma_data": 1.0}}), "euler", 80.0),
        (edm(0.002, "exponential"), json!("v_prediction"), "ddim", 80.0),
    ] {
        let whole = with(noise, prediction, sampler);
        let (manifest, contents) = Manifest::parse("origin", &serde_json::to_vec(&whole).unwrap()).unwrap();
        let written: Value = serde_json::from_slice(&manifest.to_json(&contents)).unwrap();
        assert_eq!(written, whole);
        let (_, schedule) = manifest.schedule(None, None, manifest.defaults.steps).unwrap();
        let from = schedule.steps()[0].from;
        assert!((from - first).abs() < 1e-9, "{from}");
    }
    let both = |mut manifest: Value| {
        manifest["curve"] = built_in()["curve"].clone();
        manifest
    };
    for (manifest, expected) in [
        (both(with(flow(1.0), json!("flow"), "euler")), "expected either curve or noise, got both"),
        (with(flow(0.0), json!("flow"), "euler"), "noise: shift: expected a number above 0, got 0"),
        (with(flow(1.0), json!("epsilon"), "euler"), "prediction: expected one that goes with flow matching"),
        (
            with(flow(1.0), json!("flow"), "dpm++2m"),
            "defaults.steps: sampler: expected one for flow matching (euler,",
        ),
        (
            with(flow(1.0), json!("flow"), "euler:s_churn=1"),
            "defaults.steps: sampler: s_churn: expected 0 for flow",
        ),
        (
            with(edm(0.0, "karras"), data(0.5), "euler"),
            "noise: levels: expected a range above 0, got 0 to 80",
        ),
        (with(edm(0.1, "colour"), data(0.5), "euler"), "noise: edm.levels: schedule: "),
        (
            with(edm(0.1, "trailing"), data(0.5), "euler"),
            "defaults.steps: schedule: expected one of noise levels",
        ),
        (with(edm(0.1, "karras"), data(0.0), "euler"), "prediction: expected a sigma_data above 0, got Edm"),
        (
            with(edm(0.1, "karras"), json!("epsilon"), "euler"),
            "prediction: expected one that goes with a range",
        ),
        (
            with(edm(0.1, "karras"), data(0.5), "lcm"),
            "defaults.steps: schedule: expected one of noise levels",
        ),
    ] {
        let message = refusal_of(&serde_json::to_vec(&manifest).unwrap());
        assert!(message.starts_with(expected), "{message}");
    }
}

#[test]
fn offset_beyond_the_curve() {
    let mut manifest = built_in();
    manifest["curve"]["spacing"] = "leading".into();
    manifest["curve"]["steps_offset"] = u32::MAX.into();
    manifest["defaults"].as_object_mut().unwrap().remove("schedule");
    let message = refusal_of(&serde_json::to_vec(&manifest).unwrap());
    assert!(message.starts_with("defaults.steps: steps: "), "{message}");
}

#[test]
fn defaults_that_the_model_cannot_draw() {
    for (pointer, value, expected) in [
        (
            "/defaults/size",
            json!([0, 128]),
            "defaults.size: size: expected sides of 1 to 8192 pixels, got 0x128",
        ),
        (
            "/defaults/size",
            json!([128, 4_000_000_000u32]),
            "defaults.size: size: expected sides of 1 to 8192",
        ),
        ("/defaults/size", json!([128, 127]), "defaults.size: size: expected multiples of "),
        ("/defaults/steps", json!(0), "defaults.steps: steps: expected 1 to 1000, got 0"),
        ("/defaults/steps", json!(1001), "defaults.steps: steps: expected 1 to 1000, got 1001"),
        (
            "/defaults/guidance",
            json!(-1.0),
            "defaults.guidance: guidance: expected a number from 0 up, got -1",
        ),
        ("/defaults/schedule", json!("karas"), "defaults.schedule: schedule: expected one of "),
        ("/defaults/sampler", json!("eluer"), "defaults.sampler: sampler: expected one of euler, "),
    ] {
        let message = refusal(pointer, value);
        assert!(message.starts_with(expected), "{pointer}: {message}");
    }
}

#[test]
fn files_outside_the_bundle() {
    // Whether a component refers to them or not.
    for name in ["../outside", "/etc/passwd", "weights/../../outside", "", ".", "..", "weights/.."] {
        let mut manifest = built_in();
        manifest["files"][name] = json!({ "len_bytes": 0, "sha256": "00" });
        let message = refusal_of(&serde_json::to_vec(&manifest).unwrap());
        assert_eq!(message, format!("files: expected names inside the bundle, got {name:?}"));
    }
}

#[test]
fn files_without_a_record() {
    for pointer in [
        "/components/text_encoder/tokenizer/files/0",
        "/components/unet/graph",
        "/components/vae_decoder/weights/0",
    ] {
        let message = refusal(pointer, "elsewhere".into());
        assert_eq!(message, "files: expected a record of \"elsewhere\", got none", "{pointer}");
    }
}

#[test]
fn hashes_that_are_none() {
    let folder = tempfile::tempdir().unwrap();
    let mut manifest = built_in();
    let name = manifest["components"]["text_encoder"]["tokenizer"]["files"][0].as_str().unwrap().to_owned();
    manifest["files"] = json!({ &name: { "len_bytes": 2, "sha256": "no hash" } });
    for component in ["text_encoder", "unet", "vae_encoder", "vae_decoder"] {
        manifest["components"][component]["graph"] = name.as_str().into();
        manifest["components"][component]["weights"][0] = name.as_str().into();
    }
    std::fs::write(folder.path().join("calotype.json"), serde_json::to_vec(&manifest).unwrap()).unwrap();
    std::fs::create_dir_all(folder.path().join(&name).parent().unwrap()).unwrap();
    std::fs::write(folder.path().join(&name), "{}").unwrap();
    let error = Model::open(folder.path()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Model);
    // The SHA-256 of the two bytes, from coreutils' sha256sum.
    let got = "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a";
    assert!(error.to_string().contains(&format!("{name}: expected SHA-256 no hash, got {got}")), "{error}");
}
