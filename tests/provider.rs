//! Providers: how they are typed, which component gets which, what is said of those that are missing, and whether wrong
//! results are seen. Another provider than the CPU is OpenVINO: `CALOTYPE_OPENVINO` names the `libonnxruntime.so` of
//! PyPI's `onnxruntime-openvino`, which `.ci/run` installs.

#![cfg(all(feature = "cli", feature = "builtin"))]

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use calotype::certify::certify;
use calotype::engine::{Library, Placement, Provider, ProviderKind, Providers};
use calotype::model::Model;
use calotype::pipeline::{Options, Pipeline};
use calotype::plan::{Budget, Plan};
use calotype::recipe::Recipe;
use calotype::request::Request;
use calotype::{Error, ErrorKind};

const COMPONENTS: [&str; 5] = ["text_encoder", "text_encoder_2", "unet", "vae_encoder", "vae_decoder"];

/// Per component its providers, as they are typed.
fn lists(text: &str) -> [String; 5] {
    let providers: Providers = text.parse().unwrap_or_else(|error| panic!("{text}: {error}"));
    COMPONENTS.map(|component| Provider::join(providers.of(component)))
}

#[track_caller]
fn is_refused(text: &str, message: &str) {
    let error = text.parse::<Providers>().expect_err(text);
    assert_eq!(error.kind(), ErrorKind::Usage, "{text}");
    assert!(error.to_string().contains(message), "{text}: expected {message:?} in {error}");
}

#[test]
fn an_order_is_for_every_component() {
    assert_eq!(lists("cuda,cpu"), ["cuda,cpu"; 5]);
    assert_eq!(lists(" tensorrt , cuda ,cpu "), ["tensorrt,cuda,cpu"; 5]);
}

#[test]
fn components_have_their_own() {
    assert_eq!(lists("unet=cuda,vae=cpu"), ["cpu", "cpu", "cuda", "cpu", "cpu"]);
    assert_eq!(lists("unet=cuda,unet=cpu"), ["cpu", "cpu", "cuda,cpu", "cpu", "cpu"]);
    assert_eq!(lists("vae_decoder=cuda,coreml"), ["coreml", "coreml", "coreml", "coreml", "cuda"]);
    assert_eq!(lists("text_encoder=cuda"), ["cuda", "cuda", "cpu", "cpu", "cpu"]);
}

#[test]
fn nothing_typed_is_the_processor() {
    let providers = Providers::default();
    assert_eq!(Provider::join(providers.of("unet")), "cpu");
    assert_eq!(providers.to_string(), "cpu");
    assert_eq!(providers.all().count(), 0);
}

#[test]
fn names_are_read_in_their_spellings() {
    for (typed, kind) in [
        ("CUDA", ProviderKind::Cuda),
        ("CUDAExecutionProvider", ProviderKind::Cuda),
        ("TensorRT", ProviderKind::TensorRt),
        ("tensor-rt", ProviderKind::TensorRt),
        ("DmlExecutionProvider", ProviderKind::DirectMl),
        ("CoreML", ProviderKind::CoreMl),
    ] {
        assert_eq!(typed.parse::<Provider>().unwrap().kind, kind, "{typed}");
    }
    for (kind, about) in ProviderKind::built_in() {
        assert_eq!(about.name.parse::<Provider>().unwrap().kind, kind);
        assert_eq!(about.canonical.parse::<Provider>().unwrap().kind, kind);
    }
}

#[test]
fn options_are_kept_as_typed() {
    let provider: Provider = "cuda:device_id=1:use_tf32=0".parse().unwrap();
    let options = |pairs: &[(&str, &str)]| {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect::<Vec<_>>()
    };
    assert_eq!(provider.options, options(&[("device_id", "1"), ("use_tf32", "0")]));
    let text = r#"unet=openvino:load_config={"CPU":{"A":"f32","B":[1,2]}}:num_streams=1,cpu"#;
    let providers: Providers = text.parse().unwrap();
    let json = r#"{"CPU":{"A":"f32","B":[1,2]}}"#;
    assert_eq!(providers.of("unet")[0].options, options(&[("load_config", json), ("num_streams", "1")]));
    let provider: Provider = r"tensorrt:trt_engine_cache_path=C:\a=b:trt_fp16_enable=1".parse().unwrap();
    let expected = options(&[("trt_engine_cache_path", r"C:\a=b"), ("trt_fp16_enable", "1")]);
    assert_eq!(provider.options, expected);
}

#[test]
fn plugins_have_a_file_and_perhaps_a_name() {
    for (typed, file, name) in [
        ("plugin:/a/libx.so", "/a/libx.so", None),
        ("plugin:libx.so:XExecutionProvider", "libx.so", Some("XExecutionProvider")),
        (r"plugin:C:\a\x.dll", r"C:\a\x.dll", None),
        (r"plugin:C:\a\x.dll:X", r"C:\a\x.dll", Some("X")),
        ("plugin:/a=b/libx.so", "/a=b/libx.so", None),
    ] {
        let kind = ProviderKind::Plugin { file: file.into(), name: name.map(Into::into) };
        let provider = Provider { kind: kind.clone(), options: Vec::new() };
        assert_eq!(typed.parse::<Provider>().unwrap(), provider, "{typed}");
        assert_eq!(typed.parse::<Providers>().unwrap().of("unet"), [provider], "{typed}");
        let with_option: Provider = format!("{typed}:device=1").parse().unwrap();
        assert_eq!((with_option.kind, with_option.options.len()), (kind, 1), "{typed}");
    }
}

#[test]
fn choices_are_written_as_they_are_read() {
    for text in [
        "cuda,cpu",
        "unet=cuda:device_id=1,unet=cpu,vae=cpu",
        "tensorrt:trt_fp16_enable=1,cuda,cpu,vae_decoder=cpu",
        "plugin:/a/libx.so:X:device=1",
    ] {
        let providers: Providers = text.parse().unwrap();
        assert_eq!(providers.to_string(), text);
        assert_eq!(providers.to_string().parse::<Providers>().unwrap(), providers);
    }
}

#[test]
fn mistakes_are_refused_with_what_was_expected() {
    for (text, message) in [
        (
            "cudda",
            "expected one of cpu, cuda, tensorrt, coreml, openvino, directml, qnn, xnnpack, webgpu, plugin:FILE",
        ),
        ("cudda", "did you mean cuda?"),
        ("", "expected a provider between commas, got none"),
        ("cuda,,cpu", "expected a provider between commas, got none"),
        ("unet=", "expected one of cpu, "),
        (
            "u-net=cuda",
            "component: expected one of text_encoder, unet, controlnet, vae, vae_encoder, vae_decoder, got \"u-net\"",
        ),
        ("cuda,cuda:device_id=1", "cuda: expected once, got twice"),
        ("unet=cuda,unet=cuda", "unet: cuda: expected once, got twice"),
        ("vae=cuda,vae_decoder=cpu", "expected vae or vae_decoder, got both"),
        ("vae_encoder=cpu,vae=cuda", "expected vae_encoder or vae, got both"),
        ("cpu,cuda", "cpu: expected as the last provider, got cuda after it"),
        ("cpu:threads=2", "cpu: expected no options, got threads"),
        ("cuda:device_id=", "cuda: device_id: expected a value, got none"),
        ("cuda:a=1:a=2", "cuda: a: expected once, got twice"),
        ("plugin:", "plugin: expected a library's file, got none"),
        ("cuda:a={1", "expected balanced brackets, got 1 unclosed"),
        ("cuda:a=1}", "expected balanced brackets, got an unmatched }"),
    ] {
        is_refused(text, message);
    }
}

fn open(providers: &str) -> Result<Pipeline, Error> {
    let mut options = Options::default();
    options.session.providers = providers.parse().unwrap();
    Pipeline::open(&Model::built_in().unwrap(), &options)
}

/// A provider that the library of this build lacks.
fn missing() -> &'static str {
    let has = Library::load(None).unwrap().providers().unwrap();
    let lacks = |about: &calotype::engine::About| !has.iter().any(|name| name == about.canonical);
    ProviderKind::built_in().map(|(_, about)| about).find(lacks).expect("no library has all").name
}

#[test]
fn a_missing_provider_is_an_error() {
    let missing = missing();
    for list in [missing.to_owned(), format!("unet={missing}")] {
        let error = open(&list).err().expect("nothing runs elsewhere in silence");
        assert_eq!(error.kind(), ErrorKind::Runtime);
        let message = error.to_string();
        for part in
            [&format!("provider {missing}"), "available: ", "CPUExecutionProvider", "name it with `ort`"]
        {
            assert!(message.contains(part), "expected {part:?} in {message}");
        }
    }
}

#[test]
fn falling_back_is_asked_for_and_told() {
    let missing = missing();
    let pipeline = open(&format!("unet={missing},unet=cpu")).unwrap();
    for Placement { component, providers, passed_over, error, .. } in pipeline.placements() {
        assert_eq!(Provider::join(providers), "cpu", "{component}");
        assert_eq!(*error, None);
        let passed: Vec<String> = passed_over.iter().map(|(provider, _)| provider.to_string()).collect();
        let expected: &[&str] = if component == "unet" { &[missing] } else { &[] };
        assert_eq!(passed, expected, "{component}");
    }
}

#[test]
fn a_plugin_that_is_none_is_an_error() {
    for (file, reason) in [
        ("no/such/file.so", "no/such/file.so"),
        (concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"), "Cargo.toml"),
    ] {
        let error = open(&format!("plugin:{file}")).err().expect("no plugin");
        assert_eq!(error.kind(), ErrorKind::Runtime);
        assert!(error.to_string().contains(reason), "{error}");
    }
}

#[test]
fn the_processor_is_certified() {
    let mut told = 0;
    let certificates =
        certify(&Model::built_in().unwrap(), &Options::default().session, |_| told += 1).unwrap();
    let components: Vec<&str> = certificates.iter().map(|certificate| certificate.component).collect();
    assert_eq!(components, ["text_encoder", "unet", "vae_encoder", "vae_decoder"]);
    assert_eq!(told, components.len());
    for certificate in certificates {
        let error = certificate.error.clone().unwrap();
        // PyTorch's own numbers differ a little; exactly none would mean that nothing was compared.
        assert!(error > 0.0 && error < 5e-6, "{}: {error}", certificate.component);
        assert!(certificate.has_golden && certificate.is_passed());
        assert!(!calotype::certify::Certificate { error: Ok(2e-3), ..certificate.clone() }.is_passed());
        assert!(!calotype::certify::Certificate { error: Ok(f64::NAN), ..certificate.clone() }.is_passed());
        assert!(!calotype::certify::Certificate { error: Err("NaN".into()), ..certificate }.is_passed());
    }
}

#[test]
fn plans_are_for_the_processor() {
    let model = Model::built_in().unwrap();
    let request = Request::new(Recipe::default(), &model).unwrap();
    let Options { mut session, .. } = Options::default();
    let plan = Plan::new(&model, &request, &session, Budget::of_bytes(1 << 40)).unwrap();
    session.providers = "vae_decoder=cuda,vae_decoder=cpu".parse().unwrap();
    let refused = [
        Plan::new(&model, &request, &session, Budget::of_bytes(1)).err(),
        Pipeline::open(&model, &Options { session, plan: Some(plan) }).err(),
    ];
    for error in refused.map(|error| error.expect("a device's memory is not planned")) {
        assert_eq!(error.kind(), ErrorKind::Usage);
        let expected =
            "memory: expected all components on the CPU, got cuda for vae_decoder; leave out `memory`";
        assert_eq!(error.to_string(), expected);
    }
}

/// OpenVINO computes in bfloat16 where the CPU has it, unless told otherwise.
const OPENVINO: &str = r#"openvino:load_config={"CPU":{"INFERENCE_PRECISION_HINT":"f32"}}"#;

/// An ONNX Runtime library with OpenVINO; `.ci/run` names one wherever there is a build of it.
fn openvino() -> Option<PathBuf> {
    let named = env::var_os("CALOTYPE_OPENVINO").filter(|file| file != "none");
    if named.is_none() {
        let is_meant = env::var_os("CALOTYPE_OPENVINO").is_some() || env::var_os("CI").is_none();
        assert!(is_meant, "expected CALOTYPE_OPENVINO to name a library in CI, got nothing");
        // Seen even when the test passes, unlike what `eprintln!` writes.
        eprintln!("left out: CALOTYPE_OPENVINO names no ONNX Runtime with OpenVINO");
    }
    named.map(Into::into)
}

/// A process of its own, for each loads one library.
fn generate(library: &Path, providers: &str, into: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_calotype"))
        .args(["generate", "a red apple", "--steps", "2", "--seed", "1", "--json", "--provider", providers])
        .arg("--ort")
        .arg(library)
        .arg("-o")
        .arg(into)
        .output()
        .unwrap()
}

#[test]
fn openvino_draws_what_the_cpu_draws() {
    let Some(library) = openvino() else { return };
    let folder = tempfile::tempdir().unwrap();
    let draw = |providers: &str, name: &str| {
        let path = folder.path().join(name);
        let output = generate(&library, providers, &path);
        assert!(output.status.success(), "{providers}: {output:?}");
        let told: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        (image::open(path).unwrap().to_rgb8(), told["placements"].as_array().unwrap().clone())
    };
    let (expected, placements) = draw("cpu", "cpu.png");
    assert!(placements.iter().all(|placement| placement["trial_error"].is_null()), "{placements:?}");
    let (got, placements) = draw(&format!("{OPENVINO},cpu"), "openvino.png");
    let components: Vec<_> = placements.iter().map(|placement| placement["component"].as_str()).collect();
    assert_eq!(components, [Some("text_encoder"), Some("unet"), Some("vae_decoder")]);
    for placement in &placements {
        assert_eq!(placement["providers"], serde_json::json!([OPENVINO, "cpu"]));
        // None at all would mean that nothing but the CPU had computed.
        let error = placement["trial_error"].as_f64().unwrap();
        assert!(error > 0.0 && error < 1e-5, "{placement}");
    }
    let off = expected.iter().zip(got.iter()).map(|(a, b)| a.abs_diff(*b)).max();
    assert!(off <= Some(1), "{off:?} levels");
}

/// Every component goes to OpenVINO as one part, with its weights in files: nothing is left to the CPU.
#[test]
fn openvino_takes_whole_graphs_of_a_folder() {
    let Some(library) = openvino() else { return };
    let folder = tempfile::tempdir().unwrap();
    let packed = folder.path().join("packed");
    let pack = Command::new(env!("CARGO_BIN_EXE_calotype")).arg("pack").arg(&packed).output();
    assert!(pack.as_ref().unwrap().status.success(), "{pack:?}");
    let draw = |providers: &str, model: &[&str], name: &str| {
        let path = folder.path().join(name);
        let output = Command::new(env!("CARGO_BIN_EXE_calotype"))
            .args([
                "generate",
                "a red apple",
                "--steps",
                "2",
                "--seed",
                "1",
                "--json",
                "--provider",
                providers,
            ])
            .args(model)
            .arg("--ort")
            .arg(&library)
            .arg("-o")
            .arg(&path)
            .output()
            .unwrap();
        assert!(output.status.success(), "{providers}: {output:?}");
        let told: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        (image::open(path).unwrap().to_rgb8(), told["placements"].as_array().unwrap().clone())
    };
    let (expected, placements) = draw("cpu", &[], "cpu.png");
    assert!(placements.iter().all(|placement| placement["shares"].is_null()), "{placements:?}");
    for model in [&[][..], &["-m", packed.to_str().unwrap()]] {
        let (got, placements) = draw(OPENVINO, model, "openvino.png");
        assert_eq!(placements.len(), 3);
        for placement in &placements {
            let shares = placement["shares"].as_array().unwrap();
            assert_eq!(shares.len(), 1, "{placement}");
            assert_eq!(shares[0]["provider"], "OpenVINOExecutionProvider");
            assert_eq!(shares[0]["partitions"], 1);
            assert!(shares[0]["nodes"].as_u64().unwrap() > 50, "{placement}");
        }
        let off = expected.iter().zip(got.iter()).map(|(a, b)| a.abs_diff(*b)).max();
        assert!(off <= Some(1), "{off:?} levels");
    }
}

#[test]
fn certificates_say_what_ran_where() {
    let Some(library) = openvino() else { return };
    let folder = tempfile::tempdir().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_calotype"))
        .args(["doctor", "--certify", "--json", "--provider", "openvino"])
        .arg("--ort")
        .arg(&library)
        .env("XDG_CACHE_HOME", folder.path())
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let told: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let certificates = told["certificates"].as_array().unwrap();
    assert_eq!(certificates.len(), 4);
    for certificate in certificates {
        assert_eq!(certificate["shares"].as_array().unwrap().len(), 1, "{certificate}");
        assert_eq!(certificate["shares"][0]["partitions"], 1, "{certificate}");
    }
}

/// Without `cpu` behind it there is nothing to fall back on: every component runs whole, as one part.
#[test]
fn openvino_runs_whole_components() {
    let Some(library) = openvino() else { return };
    let folder = tempfile::tempdir().unwrap();
    let output = generate(&library, OPENVINO, &folder.path().join("whole.png"));
    assert!(output.status.success(), "{output:?}");
    let told: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let placements = told["placements"].as_array().unwrap();
    assert_eq!(placements.len(), 3);
    // The image's receipt has it, too.
    let bytes = std::fs::read(folder.path().join("whole.png")).unwrap();
    let text = String::from_utf8_lossy(&bytes).replace([' ', '\n'], "");
    assert!(text.contains(r#""shares":{"text_encoder":{"OpenVINOExecutionProvider":{"nodes":"#));
    for placement in placements {
        assert_eq!(placement["providers"], serde_json::json!([OPENVINO]));
        let shares = placement["shares"].as_array().unwrap();
        assert_eq!(shares.len(), 1, "{placement}");
        assert_eq!(shares[0]["provider"], "OpenVINOExecutionProvider");
        assert_eq!(shares[0]["partitions"], 1, "{placement}");
        let error = placement["trial_error"].as_f64().unwrap();
        assert!(error > 0.0 && error < 1e-5, "{placement}");
    }
}

/// `generate --provider auto` with its cache in a folder: what it says, and its report.
fn automatic(folder: &Path, more: &[&str]) -> (String, serde_json::Value) {
    let output = Command::new(env!("CARGO_BIN_EXE_calotype"))
        .args(["generate", "a red apple", "--steps", "1", "--seed", "1", "--json", "--provider", "auto"])
        .arg("--provider-cache")
        .arg(folder.join("cache"))
        .args(more)
        .args(["-o", folder.join("image.png").to_str().unwrap()])
        .output()
        .unwrap();
    assert!(output.status.success(), "{more:?}: {output:?}");
    (String::from_utf8(output.stderr).unwrap(), serde_json::from_slice(&output.stdout).unwrap())
}

#[test]
fn nothing_to_choose_from_is_the_cpu() {
    let folder = tempfile::tempdir().unwrap();
    for (more, reason) in [
        (&[][..], "this ONNX Runtime library has no other provider"),
        (&["--memory", "2GiB"], "memory is planned for the CPU only"),
    ] {
        let (said, told) = automatic(folder.path(), more);
        assert!(said.contains(&format!("calotype: provider auto: cpu: {reason}\n")), "{said}");
        assert_eq!(told["provider_choice"]["reason"], reason);
        assert_eq!(told["images"][0]["receipt"]["provider"], "cpu");
    }
    let error = open("auto").err().expect("nobody chose");
    assert_eq!(error.kind(), ErrorKind::Usage);
    assert!(!folder.path().join("cache/auto").exists());
    let planned = Command::new(env!("CARGO_BIN_EXE_calotype")).args(["plan", "--provider", "auto"]).output();
    let said = String::from_utf8(planned.unwrap().stderr).unwrap();
    assert!(said.contains("provider auto: only memory of the CPU can be planned"), "{said}");
}

/// Which is faster depends on the machine, so that what the trials found is replaced in the cache.
#[test]
fn the_fastest_is_chosen_and_remembered() {
    let Some(library) = openvino() else { return };
    let folder = tempfile::tempdir().unwrap();
    let library = ["--ort", library.to_str().unwrap()];
    let (said, told) = automatic(folder.path(), &library);
    assert!(said.contains("provider auto: text_encoder on "), "{said}");
    let choice = &told["provider_choice"]["components"];
    assert_eq!(
        choice.as_object().unwrap().keys().collect::<Vec<_>>(),
        ["text_encoder", "unet", "vae_decoder"]
    );
    for (component, chosen) in choice.as_object().unwrap() {
        let seconds = |provider: &str| {
            chosen["estimates"][provider]["seconds"].as_f64().unwrap_or_else(|| panic!("{choice}"))
        };
        let is_faster = seconds("openvino") < 0.95 * seconds("cpu");
        assert_eq!(chosen["provider"] == "openvino,cpu", is_faster, "{component}: {choice}");
    }
    let edit = |cpu: serde_json::Value, other: serde_json::Value| {
        let mut count = 0;
        for entry in
            std::fs::read_dir(folder.path().join("cache/auto").join(env!("CARGO_PKG_VERSION"))).unwrap()
        {
            let path = entry.unwrap().path();
            let mut found: serde_json::Value =
                serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
            found["trial"] = if found["provider"] == "cpu" { cpu.clone() } else { other.clone() };
            std::fs::write(path, found.to_string()).unwrap();
            count += 1;
        }
        // Three components on two providers.
        assert_eq!(count, 6);
    };
    let times =
        |open: f64, run: f64| serde_json::json!({ "Ok": { "open": open, "first_run": 0.0, "run": run } });
    let receipt = |told: &serde_json::Value| told["images"][0]["receipt"]["provider"].clone();

    edit(times(0.0, 1.0), times(0.0, 0.9));
    let (said, told) = automatic(folder.path(), &library);
    assert_eq!(receipt(&told), "openvino,cpu", "{said}");
    assert!(said.contains("unet: on openvino,cpu, relative error "), "{said}");
    // As much faster as timings differ by is not faster.
    edit(times(0.0, 1.0), times(0.0, 0.96));
    assert_eq!(receipt(&automatic(folder.path(), &library).1), "cpu");
    // Opening counts for an image, which makes two calls of the U-Net.
    edit(times(0.0, 1.0), times(9.0, 0.5));
    let (_, told) = automatic(folder.path(), &library);
    assert_eq!(receipt(&told), "cpu");
    let seconds = told["provider_choice"]["components"]["unet"]["estimates"]["openvino"]["seconds"].as_f64();
    assert_eq!(seconds, Some(10.0));
    // One that was refused stays so.
    edit(times(0.0, 1.0), serde_json::json!({ "Err": "a relative error of 1" }));
    let (said, told) = automatic(folder.path(), &library);
    assert_eq!(receipt(&told), "cpu");
    assert!(said.contains("unet on cpu (cpu 2.0 s, not openvino: a relative error of 1)"), "{said}");

    // A receipt's providers are taken again, whatever is the fastest now.
    edit(times(0.0, 1.0), times(0.0, 0.5));
    automatic(folder.path(), &library);
    let from = folder.path().join("from.png");
    std::fs::rename(folder.path().join("image.png"), &from).unwrap();
    edit(times(0.0, 0.5), times(0.0, 1.0));
    let again = [&library[..], &["--from", from.to_str().unwrap()]].concat();
    let (said, told) = automatic(folder.path(), &again);
    assert!(said.contains("provider auto: openvino,cpu, as in the receipt\n"), "{said}");
    assert_eq!(receipt(&told), "openvino,cpu");
    // Where they are not to be had, this is said.
    let (said, told) = automatic(folder.path(), &["--from", from.to_str().unwrap()]);
    assert!(said.contains("expected openvino,cpu as in the receipt, got a library without"), "{said}");
    assert_eq!(receipt(&told), "cpu");
}

fn inspect(arguments: &[&str]) -> Output {
    let output =
        Command::new(env!("CARGO_BIN_EXE_calotype")).arg("inspect").args(arguments).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    output
}

#[test]
fn inspect_says_where_components_run() {
    let missing = missing();
    let list = format!("unet={missing},unet=cpu");
    let output = inspect(&["--provider", &list]);
    let (text, said) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert_eq!(text.matches("\n  on cpu: all nodes\n").count(), 4, "{text}");
    assert_eq!(text.matches(&format!("\n  not on {missing}: not in this ")).count(), 1, "{text}");
    assert!(!said.contains("slow"), "{said}");
    let told: serde_json::Value =
        serde_json::from_slice(&inspect(&["--json", "--provider", &list]).stdout).unwrap();
    let placement = |component: &str| told["components"][component]["placement"].clone();
    assert_eq!(placement("unet")["passed_over"][0]["provider"], missing);
    assert_eq!(placement("unet")["providers"], serde_json::json!(["cpu"]));
    assert_eq!(placement("vae_decoder")["passed_over"], serde_json::json!([]));
    // Without the flag nothing is opened.
    let told: serde_json::Value = serde_json::from_slice(&inspect(&["--json"]).stdout).unwrap();
    assert!(told["components"]["unet"]["placement"].is_null());
}

/// The U-Net of a bundle that computes in integers by ONNX Runtime's own operators falls into many parts, which is
/// said; all other components are one part.
#[test]
fn inspect_says_what_openvino_takes() {
    let Some(library) = openvino() else { return };
    let folder = tempfile::tempdir().unwrap();
    let packed = folder.path().join("packed");
    let pack = Command::new(env!("CARGO_BIN_EXE_calotype"))
        .args(["pack", "--compute", "int8"])
        .arg(&packed)
        .output();
    assert!(pack.as_ref().unwrap().status.success(), "{pack:?}");
    let packed = packed.to_str().unwrap();
    let flags = ["--provider", "openvino,cpu", "--ort", library.to_str().unwrap()];
    let output = inspect(&[&[packed][..], &flags].concat());
    let (text, said) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert_eq!(text.matches(" in 1 part on OpenVINOExecutionProvider\n").count(), 3, "{text}");
    let left = text.lines().find(|line| line.starts_with("  left on the CPU: ")).unwrap();
    assert!(left.contains("MatMulIntegerToFloat (") && left.contains("Cast ("), "{left}");
    let warning = said.lines().find(|line| line.contains("slow")).unwrap_or_else(|| panic!("{said}"));
    assert!(
        warning.starts_with("calotype: unet: slow: expected one part on one provider, got "),
        "{warning}"
    );
    assert!(warning.contains("MatMulIntegerToFloat (") && !warning.contains("Cast ("), "{warning}");
    assert_eq!(said.matches("slow").count(), 1, "{said}");

    let told = inspect(&[&["--json"][..], &flags].concat());
    let told: serde_json::Value = serde_json::from_slice(&told.stdout).unwrap();
    for (name, component) in told["components"].as_object().unwrap() {
        let placement = &component["placement"];
        assert_eq!(placement["providers"], serde_json::json!(["openvino", "cpu"]), "{name}");
        assert_eq!(placement["shares"].as_array().unwrap().len(), 1, "{name}");
        assert_eq!(placement["shares"][0]["partitions"], 1, "{name}");
        assert!(placement["divided"].is_null(), "{name}");
    }
}

/// A U-Net with measured ranges is one part, too, and its images are those of the same numbers in floats.
#[test]
fn openvino_computes_in_integers() {
    let Some(library) = openvino() else { return };
    let folder = tempfile::tempdir().unwrap();
    let packed = folder.path().join("packed");
    let pack =
        Command::new(env!("CARGO_BIN_EXE_calotype")).args(["pack", "--compute", "qdq"]).arg(&packed).output();
    assert!(pack.as_ref().unwrap().status.success(), "{pack:?}");
    let draw = |model: Option<&Path>, provider: &str| {
        let image = folder.path().join("image.png");
        let mut command = Command::new(env!("CARGO_BIN_EXE_calotype"));
        command.args(["generate", "a red apple", "--seed", "0", "--json", "--provider", provider]);
        model.iter().for_each(|model| _ = command.arg("-m").arg(model));
        let output = command.arg("--ort").arg(&library).arg("-o").arg(&image).output().unwrap();
        assert!(output.status.success(), "{provider}: {output:?}");
        let told: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        (image::open(image).unwrap().to_rgb8(), told["placements"].clone())
    };
    let decibels = |a: &image::RgbImage, b: &image::RgbImage| {
        let squares: f64 = a.iter().zip(b.iter()).map(|(a, b)| f64::from(a.abs_diff(*b)).powi(2)).sum();
        10.0 * (255.0 * 255.0 * a.len() as f64 / squares).log10()
    };
    let floats = draw(None, "cpu").0;
    let on_cpu = draw(Some(&packed), "cpu").0;
    let (image, placements) = draw(Some(&packed), OPENVINO);
    let unet =
        placements.as_array().unwrap().iter().find(|placement| placement["component"] == "unet").unwrap();
    assert_eq!(unet["shares"][0]["partitions"], 1, "{unet}");
    assert_eq!(unet["shares"].as_array().unwrap().len(), 1, "{unet}");
    let error = unet["trial_error"].as_f64().unwrap();
    assert!(error > 0.0 && error < 2e-2, "{unet}");
    let found = [decibels(&floats, &on_cpu), decibels(&floats, &image), decibels(&on_cpu, &image)];
    println!("{found:?}");
    // Measured: 46, 46 and 44. None is exact, for numbers that differ by a rounding error may be rounded to other integers.
    assert!(found.iter().all(|decibels| (40.0..70.0).contains(decibels)), "{found:?}");
}
