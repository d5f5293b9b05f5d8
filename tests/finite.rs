//! Components that overflow in 16-bit floats: they are run again in 32-bit ones, which warnings and receipts say, or end with an
//! error that says why not.

#![cfg(feature = "builtin")]

use std::fs::{self, File};
use std::io::Read as _;
use std::ops::ControlFlow;
use std::path::Path;
use std::process::Command;

use calotype::graph::proto::{AttributeProto, INT, ModelProto, NodeProto, TensorProto};
use calotype::model::Model;
use calotype::pipeline::{Options, Pipeline, Progress};
use calotype::recipe::{Recipe, Retry};
use calotype::tensor::PixelSize;
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use prost::Message as _;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

const BUILT_IN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/models/builtin");
const FLOAT: i64 = 1;
const HALF: i64 = 10;

/// A copy of the built-in model, whose graphs are changed.
struct Bundle(TempDir);

impl Bundle {
    fn new() -> Self {
        let folder = TempDir::new().unwrap();
        for name in ["", "graphs", "text_encoder", "weights"] {
            let to = folder.path().join(name);
            fs::create_dir_all(&to).unwrap();
            for entry in fs::read_dir(Path::new(BUILT_IN).join(name)).unwrap().map(Result::unwrap) {
                if entry.file_type().unwrap().is_file() {
                    fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
                }
            }
        }
        Self(folder)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    /// Changes the graph of a component, and its record in the manifest.
    fn edit(&self, component: &str, change: impl FnOnce(&mut ModelProto)) {
        let name = format!("graphs/{component}.onnx.gz");
        let path = self.path().join(&name);
        let mut bytes = Vec::new();
        GzDecoder::new(File::open(&path).unwrap()).read_to_end(&mut bytes).unwrap();
        let mut model = ModelProto::decode(&bytes[..]).unwrap();
        change(&mut model);
        let mut packed = GzEncoder::new(Vec::new(), Compression::fast());
        std::io::Write::write_all(&mut packed, &model.encode_to_vec()).unwrap();
        let packed = packed.finish().unwrap();
        fs::write(&path, &packed).unwrap();
        let manifest = self.path().join("calotype.json");
        let mut json: Value = serde_json::from_slice(&fs::read(&manifest).unwrap()).unwrap();
        json["files"][name] =
            json!({ "len_bytes": packed.len(), "sha256": format!("{:x}", Sha256::digest(&packed)) });
        fs::write(manifest, serde_json::to_vec(&json).unwrap()).unwrap();
    }

    /// Has a component's output multiplied and divided again by a number that 16-bit floats cannot hold, in these.
    fn overflow(&self, component: &str) {
        self.edit(component, |model| tail(model, &[], "great"));
    }

    /// The same of the U-Net, in steps whose timestep is below a number.
    fn overflow_below(&self, timestep: f32) {
        self.edit("unet", |model| {
            let gate = [
                node("Less", &["timestep", "gate"], "is_late"),
                cast("is_late", "late", HALF),
                node("Mul", &["late", "great"], "late_great"),
                node("Add", &["late_great", "one"], "factor"),
            ];
            model.graph.as_mut().unwrap().initializer.push(floats("gate", timestep));
            tail(model, &gate, "factor");
        });
    }
}

fn node(op: &str, input: &[&str], output: &str) -> NodeProto {
    NodeProto {
        op_type: Some(op.into()),
        input: input.iter().map(|&name| name.into()).collect(),
        output: vec![output.into()],
        ..Default::default()
    }
}

fn cast(from: &str, to: &str, code: i64) -> NodeProto {
    NodeProto { attribute: vec![integer("to", code)], ..node("Cast", &[from], to) }
}

fn integer(name: &str, value: i64) -> AttributeProto {
    AttributeProto { name: Some(name.into()), r#type: Some(INT), i: Some(value), ..Default::default() }
}

fn floats(name: &str, value: f32) -> TensorProto {
    let (name, data_type) = (Some(name.into()), Some(FLOAT as i32));
    TensorProto { name, data_type, raw_data: Some(value.to_le_bytes().into()), ..Default::default() }
}

fn list(name: &str, number: i64) -> TensorProto {
    let (name, bytes) = (Some(name.into()), number.to_le_bytes().into());
    TensorProto { name, dims: vec![1], data_type: Some(7), raw_data: Some(bytes), ..Default::default() }
}

fn halves(name: &str, value: f32) -> TensorProto {
    let bits = half::f16::from_f32(value).to_le_bytes().into();
    TensorProto {
        name: Some(name.into()),
        data_type: Some(HALF as i32),
        raw_data: Some(bits),
        ..Default::default()
    }
}

/// Puts behind a graph's output: to 16-bit floats, twice times a factor, divided by it twice, and back.
fn tail(model: &mut ModelProto, before: &[NodeProto], factor: &str) {
    let graph = model.graph.as_mut().unwrap();
    let output = graph.output[0].name().to_owned();
    // Text states have their channels last.
    let (axis, channels) = match output.as_str() {
        "last_hidden_state" => (2, 192),
        "sample" => (1, 3),
        _ => (1, 16),
    };
    graph.initializer.extend([list("from_channel", 0), list("to_channel", channels), list("axes", axis)]);
    for name in graph.node.iter_mut().flat_map(|node| node.input.iter_mut().chain(&mut node.output)) {
        if *name == output {
            *name = "result".into();
        }
    }
    graph.initializer.extend([halves("great", 60_000.0), halves("one", 1.0)]);
    graph.node.extend_from_slice(before);
    graph.node.extend([
        cast("result", "half", HALF),
        node("Mul", &["half", factor], "times"),
        node("Mul", &["times", factor], "times_times"),
        // On the CPU ONNX Runtime computes the others in 32-bit floats, and leaves out the casts between them.
        NodeProto {
            attribute: vec![integer("axis", axis)],
            ..node("Concat", &["times_times", "times_times"], "twice")
        },
        node("Slice", &["twice", "from_channel", "to_channel", "axes"], "first"),
        node("Div", &["first", factor], "once"),
        node("Div", &["once", factor], "again"),
        cast("again", &output, FLOAT),
    ]);
}

fn open(bundle: &Bundle) -> Pipeline {
    Pipeline::open(&Model::open(bundle.path()).unwrap(), &Options::default()).unwrap()
}

fn draft(steps: usize) -> Recipe {
    let size = PixelSize::new(64, 64).ok();
    Recipe { prompt: "a red apple".into(), seed: Some(1), steps: Some(steps), size, ..Recipe::default() }
}

fn retry(component: &str, step: Option<usize>) -> Retry {
    Retry { component: component.into(), step, precision: "f32".into() }
}

/// The largest difference of two images' pixels.
fn apart(one: &image::RgbImage, other: &image::RgbImage) -> u8 {
    one.iter().zip(other.iter()).map(|(a, b)| a.abs_diff(*b)).max().unwrap()
}

fn calotype(arguments: &[&str]) -> (Option<i32>, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_calotype")).args(arguments).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[test]
fn every_component_is_run_again_in_32_bits() {
    let bundle = Bundle::new();
    for component in ["text_encoder", "vae_encoder", "unet", "vae_decoder"] {
        bundle.overflow(component);
    }
    let init = image::RgbImage::from_fn(64, 64, |x, y| image::Rgb([4 * x as u8, 4 * y as u8, 90]));
    let draft = Recipe { init: Some(init.into()), strength: Some(1.0), ..draft(2) };
    let draw = |pipeline: &mut Pipeline| {
        let request = pipeline.request(draft.clone()).unwrap();
        pipeline.generate(&request, |_| ControlFlow::Continue(())).unwrap()
    };
    let expected = draw(&mut Pipeline::open(&Model::built_in().unwrap(), &Options::default()).unwrap());
    assert!(expected.retries.is_empty());
    let mut pipeline = open(&bundle);
    // The second image is as the first.
    for _ in 0..2 {
        let output = draw(&mut pipeline);
        let components =
            [("text_encoder", None), ("vae_encoder", None), ("unet", Some(1)), ("vae_decoder", None)];
        assert_eq!(output.retries, components.map(|(component, step)| retry(component, step)));
        assert_eq!(output.warnings()[2], "unet: not finite in step 1; computed in f32 from there on");
        assert_eq!(output.warnings()[3], "vae_decoder: not finite; computed again in f32");
        // A product and a quotient are rounded once each.
        assert!(apart(&output.image, &expected.image) <= 1);
    }
}

/// SDXL's VAE does so in 16-bit floats.
#[test]
fn a_vae_that_overflows_is_said_and_its_receipt_makes_the_same_image() {
    let bundle = Bundle::new();
    bundle.overflow("vae_decoder");
    let out = TempDir::new().unwrap();
    let (model, file) = (bundle.path().to_str().unwrap(), out.path().join("a.png"));
    let file = file.to_str().unwrap();
    let draw = |arguments: &[&str]| -> Value {
        let (code, stdout, stderr) = calotype(&[&["generate", "--json", "-m", model], arguments].concat());
        assert_eq!(code, Some(0), "{stderr}");
        let warning = "vae_decoder: not finite; computed again in f32";
        assert_eq!(stderr.matches(warning).count(), 1, "{stderr}");
        let report: Value = serde_json::from_str(&stdout).unwrap();
        report["images"][0]["receipt"].clone()
    };
    let first = draw(&["a red apple", "--steps", "2", "--seed", "1", "-o", file]);
    assert_eq!(first["retries"], json!([{ "component": "vae_decoder", "precision": "f32" }]));
    let again = out.path().join("b.png");
    let again = draw(&["--from", file, "-o", again.to_str().unwrap()]);
    assert_eq!(first["pixels_sha256"], again["pixels_sha256"]);
    assert_eq!(first["retries"], again["retries"]);
}

/// Up to step 7 the U-Net's numbers are finite in 16 bits; from there on it computes in 32, also in a run that is restored.
#[test]
fn a_unet_that_turns_bad_at_step_7_goes_on_in_32_bits() {
    let bundle = Bundle::new();
    // Eight steps are at 999, 874, .., 249, 124 of 1000.
    bundle.overflow_below(300.0);
    let mut pipeline = open(&bundle);
    let request = pipeline.request(Recipe { sampler: "ddim".parse().ok(), ..draft(8) }).unwrap();
    let bad = [retry("unet", Some(7))];
    let mut run = pipeline.begin(&request).unwrap();
    let mut snapshot = Vec::new();
    while !run.is_done() {
        let done = run.step().unwrap().done;
        assert_eq!(run.retries(), if done < 7 { &bad[..0] } else { &bad });
        if done == 7 {
            snapshot = run.snapshot().unwrap();
        }
    }
    let latents = run.latents().to_vec();
    let whole = run.finish().unwrap();
    assert_eq!(whole.retries, bad);
    // The next run begins as planned.
    assert!(pipeline.begin(&request).unwrap().retries().is_empty());

    let mut run = pipeline.restore(&request, &snapshot).unwrap();
    assert_eq!((run.progress(), &run.retries()[..]), (Progress { done: 7, steps: 8 }, &bad[..]));
    run.step().unwrap();
    assert_eq!(run.latents(), latents);
    let restored = run.finish().unwrap();
    assert_eq!((restored.image, &restored.retries[..]), (whole.image, &bad[..]));
}

/// What cannot be made better is an error, as before, that says what was tried.
#[test]
fn numbers_that_stay_wrong_are_an_error() {
    let bundle = Bundle::new();
    bundle.edit("vae_decoder", |model| tail(model, &[node("Sub", &["great", "great"], "none")], "none"));
    let (code, _, stderr) =
        calotype(&["generate", "a red apple", "--steps", "1", "-m", bundle.path().to_str().unwrap()]);
    assert_eq!(code, Some(8), "{stderr}");
    for part in ["vae_decoder: expected finite pixels, got NaN at (0, 0)", "32-bit floats were tried"] {
        assert!(stderr.contains(part), "{stderr}");
    }
}

/// A budget that 32-bit floats do not fit is kept, and the error says so.
#[test]
fn a_budget_without_room_for_32_bits_is_kept() {
    const ELEMENTS: i64 = 24 << 20;
    let bundle = Bundle::new();
    bundle.edit("vae_decoder", |model| {
        let graph = model.graph.as_mut().unwrap();
        graph.initializer.extend([list("elements", ELEMENTS), list("zero", 0), list("end", 1)]);
        let zero = TensorProto { dims: vec![1], ..halves("", 0.0) };
        let zero = AttributeProto {
            name: Some("value".into()),
            r#type: Some(4),
            t: Some(zero),
            ..Default::default()
        };
        // Twice as long in 32-bit floats.
        let before = [
            NodeProto { attribute: vec![zero], ..node("ConstantOfShape", &["elements"], "long") },
            node("Slice", &["long", "zero", "end"], "short"),
            node("Add", &["short", "great"], "factor"),
        ];
        tail(model, &before, "factor");
    });
    // In processes of their own, whose memory is no other test's.
    let (model, out) = (bundle.path().to_str().unwrap(), TempDir::new().unwrap());
    let out = out.path().join("a.png");
    let flags = ["a red apple", "--steps", "1", "--size", "64x64", "--json", "-m", model, "--memory"];
    let run = |command: &str, budget: u64, more: &[&str]| {
        calotype(&[&[command], &flags[..], &[&format!("{budget}B")], more].concat())
    };
    let draw = |budget: u64| run("generate", budget, &["-o", out.to_str().unwrap()]);
    let (code, plan, stderr) = run("plan", 1 << 40, &[]);
    assert_eq!(code, Some(0), "{stderr}");
    let plan: Value = serde_json::from_str(&plan).unwrap();
    let [least, kept] = ["least_bytes", "peak_bytes"].map(|name| plan[name].as_u64().unwrap());
    // In the first budget only one component fits at a time, in the second all of them do.
    for (budget, reason) in
        [(least + (16 << 20), "at least "), (kept + (8 << 20), "room for it beside what is open")]
    {
        let (code, _, stderr) = draw(budget);
        assert_eq!(code, Some(8), "{stderr}");
        let reason = format!("32-bit floats were not tried: memory: expected {reason}");
        assert!(stderr.contains(&reason), "{stderr}");
        assert!(!out.exists());
    }
    let (code, report, stderr) = draw(kept + (1 << 30));
    assert_eq!(code, Some(0), "{stderr}");
    let report: Value = serde_json::from_str(&report).unwrap();
    assert_eq!(report["images"][0]["receipt"]["retries"][0]["component"], "vae_decoder");
}
