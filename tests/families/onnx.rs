//! Ready-made ONNX folders in the layouts that people have (`tests/golden/onnx_folders`, `export/golden_onnx.py`), run
//! unmodified: text states, U-Net outputs, encoded and decoded images, latents and images are those of diffusers with
//! the same weights.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read as _;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use calotype::ErrorKind;
use calotype::architecture::clip::{self, States};
use calotype::architecture::{autoencoder_kl, unet};
use calotype::engine::{Data, Residency, SessionOptions, TensorRef};
use calotype::graph::proto::{ModelProto, TensorProto};
use calotype::graph::{Dim, Graph, Port};
use calotype::model::{Model, Part};
use calotype::pipeline::{Options, Pipeline};
use calotype::prompt::Text;
use calotype::recipe::Recipe;
use calotype::request::Request;
use calotype::signature::Role;
use calotype::weights::{Dtype, Weights};
use flate2::read::GzDecoder;
use half::f16;
use prost::Message;
use serde::Deserialize;
use serde_json::Value;
use tempfile::TempDir;

use super::golden::{self, Call, Picture, Precision, Vae, floats, scratch, values};
use super::{distance, options, request};

/// Relative L2 distance where the graphs compute in single precision.
const F32_TOLERANCE: f64 = 1e-4;
/// And in half precision, where every sum is rounded to 11 bits. The U-Nets amplify the error of their inputs.
const F16_TOLERANCE: f64 = 2e-2;
/// That of text encoders and VAEs is a tenth of it or less.
const TOLERANCE_BESIDES_UNET: f64 = 0.1;
/// In levels of 255, the mean over an image, in single and in half precision.
const LEVELS: f64 = 0.01;
const HALF_LEVELS: f64 = 1.0;
/// Of an image only as many rows are kept (`KEPT_ROWS` of the generator).
const KEPT_ROW: usize = 9;

macro_rules! layouts {
    ($($test:ident => $layout:literal, $tolerance:expr;)*) => {$(
        #[test]
        fn $test() {
            check($layout, $tolerance);
        }
    )*};
}

layouts! {
    optimum => "optimum", F32_TOLERANCE;
    optimum_lcm => "optimum-lcm", F32_TOLERANCE;
    optimum_sd2 => "optimum-sd2", F32_TOLERANCE;
    optimum_turbo => "optimum-turbo", F32_TOLERANCE;
    optimum_small => "optimum-small", F32_TOLERANCE;
    optimum_edit => "optimum-edit", F32_TOLERANCE;
    optimum_inpaint => "optimum-inpaint", F32_TOLERANCE;
    optimum_xl => "optimum-xl", F32_TOLERANCE;
    optimum_refiner => "optimum-refiner", F32_TOLERANCE;
    optimum_ssd_turbo => "optimum-ssd-turbo", F32_TOLERANCE;
    optimum_old => "optimum-old", F32_TOLERANCE;
    diffusers_script => "diffusers-script", F32_TOLERANCE;
    olive_io16 => "olive-io16", F16_TOLERANCE;
    amd_io32 => "amd-io32", F16_TOLERANCE;
    olive_xl => "olive-xl", F16_TOLERANCE;
    onnxstack_lcm => "onnxstack-lcm", F16_TOLERANCE;
    ort_cuda => "ort-cuda", F16_TOLERANCE;
    web => "web", F16_TOLERANCE;
    static_1 => "static-1", F32_TOLERANCE;
    static_2 => "static-2", F32_TOLERANCE;
}

#[derive(Deserialize)]
pub struct Folder {
    files: BTreeMap<String, Value>,
    tokenizers: Vec<String>,
    pub tensors: BTreeMap<String, Vec<usize>>,
    graphs: BTreeMap<String, GraphData>,
    parts: Parts,
    pub pictures: Vec<Picture>,
}

#[derive(Deserialize)]
struct GraphData {
    /// Initializer, the tensor "component/name", whether transposed, type, whether in the graph.
    data: Vec<(String, String, bool, String, bool)>,
}

/// What the components compute of seeded inputs, in PyTorch.
#[derive(Deserialize)]
struct Parts {
    text: golden::Text,
    unet: Call,
    vae: Vae,
}

/// An input by what it is for: shape and elements.
type Given = (Role, Vec<usize>, Vec<f32>);

impl Folder {
    /// The same weights as diffusers keeps them.
    pub fn write_diffusers_folder(&self, folder: &Path) {
        for (path, contents) in &self.files {
            let path = path.replace("vae_decoder", "vae");
            if !path.starts_with("vae_encoder") {
                golden::write_json(&folder.join(path), contents);
            }
        }
        let (vocabulary, merges) = golden::clip();
        fs::write(folder.join("tokenizer/vocab.json"), vocabulary).unwrap();
        fs::write(folder.join("tokenizer/merges.txt"), merges).unwrap();
        let config =
            |component: &str| serde_json::to_vec(&self.files[&format!("{component}/config.json")]).unwrap();
        let clip = clip::Config::parse("text_encoder", &config("text_encoder")).unwrap();
        let vae = autoencoder_kl::Config::parse("vae", &config("vae_decoder")).unwrap();
        let unet = unet::Config::parse("unet", &config("unet")).unwrap();
        let graphs = [
            ("text_encoder/model", vec![clip.graph(States::Last, false).unwrap()]),
            ("unet/diffusion_pytorch_model", vec![unet.graph().unwrap()]),
            ("vae/diffusion_pytorch_model", vec![vae.encoder().unwrap(), vae.decoder().unwrap()]),
        ];
        for (file, graphs) in graphs {
            let (component, _) = file.split_once('/').unwrap();
            let tensors = graphs.iter().flat_map(Graph::parameters).map(|parameter| {
                let rank = parameter.shape.iter().rposition(|size| *size != 1).map_or(0, |last| last + 1);
                let (name, shape) = (&parameter.name, &parameter.shape[..rank]);
                (name.clone(), "F32", shape.to_vec(), Precision::F32.bytes(&values(component, name, shape)))
            });
            let path = folder.join(format!("{file}.safetensors"));
            fs::write(path, golden::safetensors(tensors.collect())).unwrap();
        }
    }
}

fn check(layout: &str, tolerance: f64) {
    let (folder, scratch) = open(layout);
    let model = Model::open(scratch.path()).unwrap();
    let arrays = Arrays::open(layout, tolerance);
    check_text(&folder.parts.text, &model, &arrays);
    let Parts { unet, vae, .. } = &folder.parts;
    let given = |call: &Call, roles: &[(&str, Role)]| -> Vec<Given> {
        assert_eq!(call.inputs.len(), roles.len());
        let given = roles.iter().map(|(name, role)| {
            let (shape, data, _) = call.inputs[*name].elements();
            (*role, shape, data)
        });
        given.collect()
    };
    let unet_roles = [
        ("sample", Role::Latents),
        ("timestep", Role::Timestep),
        ("encoder_hidden_states", Role::States),
        ("text_embeds", Role::Pooled),
        ("time_ids", Role::TimeIds),
        ("timestep_cond", Role::GuidanceEmbedding),
    ];
    let unet_roles = unet_roles.into_iter().filter(|(name, _)| unet.inputs.contains_key(*name));
    let predicted = compute(model.unet(), &given(unet, &unet_roles.collect::<Vec<_>>()), Role::Latents);
    arrays.close("unet", &predicted, &unet.outputs["out_sample"], tolerance);

    let decoded =
        compute(model.vae_decoder(), &given(&vae.decode, &[("latent_sample", Role::Latents)]), Role::Image);
    arrays.close(
        "vae_decoder",
        &kept_rows(&decoded, 64),
        &vae.decode.outputs["sample"],
        TOLERANCE_BESIDES_UNET * tolerance,
    );
    match model.vae_encoder() {
        Some(encoder) => check_encoder(
            encoder,
            &given(&vae.encode, &[("sample", Role::Image)]),
            &vae.encode.outputs["latent_parameters"],
            &arrays,
        ),
        None => assert!(["ort-cuda", "web"].contains(&layout), "{layout}: no encoder was compared"),
    }

    assert!(folder.pictures[0].picture.is_some(), "{layout}: no image is compared");
    for picture in &folder.pictures {
        let mut pipeline = Pipeline::open(&model, &options()).unwrap();
        let request = request(picture, &pipeline);
        let latents = pipeline.denoise(&request, |_| ControlFlow::Continue(())).unwrap();
        arrays.close(&format!("{}: latents", picture.name), &latents, &picture.latents, tolerance);
        let Some(expected) = &picture.picture else { continue };
        let got = pipeline.generate(&request, |_| ControlFlow::Continue(())).unwrap().image;
        let got = kept_rows(got.as_raw(), 3 * got.width() as usize);
        let expected = arrays.bytes(expected);
        assert_eq!(got.len(), expected.len(), "{layout}, {}", picture.name);
        let levels = |got: &[u8]| {
            let off = got.iter().zip(&expected).map(|(a, b)| f64::from(a.abs_diff(*b)));
            off.sum::<f64>() / expected.len() as f64
        };
        let (off, mut shifted) = (levels(&got), got.clone());
        let allowed = if tolerance == F32_TOLERANCE { LEVELS } else { HALF_LEVELS };
        assert!(off < allowed, "{layout}, {}: {off} levels", picture.name);
        shifted.rotate_right(3);
        assert!(levels(&shifted) > 4.0 * allowed, "{layout}: a shift by a pixel would pass");
    }
}

/// The token ids, and the states and vectors that the pipeline takes of the text encoders.
fn check_text(text: &golden::Text, model: &Model, arrays: &Arrays) {
    let mut compared = 0;
    for part in model.text_encoders() {
        let tokenizer_name = part.name().replace("text_encoder", "tokenizer");
        let tokenizer = part.tokenizer(part.context()).unwrap();
        for case in &text.cases {
            // A model whose one encoder is the second of its kind calls it by either name.
            let ids = case.ids.get(&tokenizer_name).unwrap_or_else(|| case.ids.values().next().unwrap());
            let encoded = tokenizer.encode(&Text::literal(&case.text).unwrap(), 1).unwrap();
            assert_eq!(&encoded.chunks[0].ids, ids, "{}: {}", arrays.layout, case.text);
            let given = [(Role::TokenIds, vec![1, ids.len()], ids.iter().map(|id| *id as f32).collect())];
            for (port, array) in &case.arrays {
                let (encoder, port) = port.split_once('.').unwrap();
                if encoder != part.name() && case.ids.len() > 1 {
                    continue;
                }
                let role = match port {
                    "last_hidden_state" => Role::States,
                    "hidden_states" => Role::PenultimateStates,
                    "text_embeds" => Role::Pooled,
                    other => panic!("{other}: no role"),
                };
                // What nothing in the model asks for need not be there.
                if role == Role::Pooled && part.signature().output(role).is_none() {
                    continue;
                }
                let got = compute(part, &given, role);
                let width = got.len() / ids.len();
                let kept = match role {
                    Role::Pooled => got,
                    _ => text.rows.iter().flat_map(|row| &got[row * width..][..width]).copied().collect(),
                };
                let what = format!("{encoder}.{port}");
                arrays.close(&what, &kept, array, TOLERANCE_BESIDES_UNET * arrays.tolerance);
                compared += 1;
            }
        }
    }
    assert!(compared >= text.cases.len() * model.text_encoders().len(), "no text encoder was compared");
}

/// Moments are compared; an encoder that draws from them in its graph is held to their distribution.
fn check_encoder(encoder: &Part, given: &[Given], moments: &str, arrays: &Arrays) {
    if encoder.signature().output(Role::Moments).is_some() {
        let got = compute(encoder, given, Role::Moments);
        return arrays.close("vae_encoder", &got, moments, TOLERANCE_BESIDES_UNET * arrays.tolerance);
    }
    let moments = arrays.get(moments);
    let (means, log_variances) = moments.split_at(moments.len() / 2);
    let drawn = compute(encoder, given, Role::Latents);
    assert_eq!(drawn.len(), means.len());
    let normal: Vec<f64> = (drawn.iter().zip(means).zip(log_variances))
        .map(|((x, mean), log_variance)| f64::from(x - mean) / f64::from(0.5 * log_variance).exp())
        .collect();
    let count = normal.len() as f64;
    let mean = normal.iter().sum::<f64>() / count;
    let variance = normal.iter().map(|z| (z - mean).powi(2)).sum::<f64>() / count;
    // Five standard deviations of either: the graph has no seed.
    assert!(mean.abs() < 5.0 / count.sqrt(), "{}: vae_encoder: mean {mean}", arrays.layout);
    let within = 5.0 * (2.0 / count).sqrt();
    assert!((variance - 1.0).abs() < within, "{}: vae_encoder: variance {variance}", arrays.layout);
}

/// What a component makes of inputs that are given by what they are for, in as many calls as its graph wants.
fn compute(part: &Part, given: &[Given], output: Role) -> Vec<f32> {
    let signature = part.signature();
    let port = |role: Role| signature.input(role).unwrap_or_else(|| panic!("{}: no {role}", part.name()));
    assert!(given.iter().all(|(role, ..)| port(*role).dims.len() <= 4));
    let output = &signature.output(output).unwrap_or_else(|| panic!("{}: no {output}", part.name())).name;
    let members = given[0].1[0];
    let batch = match port(given[0].0).dims[0] {
        Dim::Fixed(batch) => batch,
        Dim::Free(_) => members,
    };
    assert_eq!(members % batch, 0, "{}: batches of {batch}", part.name());
    let mut session = super::open(part);
    let mut outputs = Vec::new();
    for first in (0..members).step_by(batch) {
        let feeds: Vec<_> = signature
            .inputs
            .iter()
            .map(|binding| {
                let port = &binding.port;
                let (shape, data) = match given.iter().find(|(role, ..)| *role == binding.role) {
                    Some((Role::Timestep, _, data)) => {
                        let shape = timestep_shape(port, batch);
                        (shape.clone(), vec![data[0]; shape.iter().product()])
                    }
                    Some((_, shape, data)) => {
                        let one = data.len() / shape[0];
                        let shape: Vec<usize> = [&[batch], &shape[1..]].concat();
                        (shape, data[first * one..][..batch * one].to_vec())
                    }
                    None => match binding.role {
                        Role::On => (vec![], vec![1.0]),
                        Role::Off => (vec![], vec![0.0]),
                        other => panic!("{}: nothing is given for {other}", part.name()),
                    },
                };
                (&port.name[..], shape, Elements::of(port.dtype, &data))
            })
            .collect();
        let inputs: Vec<_> =
            feeds.iter().map(|(name, shape, data)| (*name, TensorRef::new(shape, data.borrowed()))).collect();
        outputs.extend(session.compute(&inputs, &[output]).unwrap().remove(0).data);
    }
    outputs
}

fn timestep_shape(port: &Port, batch: usize) -> Vec<usize> {
    let sizes = port.dims.iter().map(|dim| match dim {
        Dim::Fixed(size) => *size,
        Dim::Free(name) if name == "steps" => 1,
        Dim::Free(_) => batch,
    });
    sizes.collect()
}

/// Elements in the type that an input has.
enum Elements {
    F32(Vec<f32>),
    F16(Vec<f16>),
    I64(Vec<i64>),
    I32(Vec<i32>),
    Bool(Vec<bool>),
}

impl Elements {
    fn of(dtype: Dtype, data: &[f32]) -> Self {
        match dtype {
            Dtype::F32 => Self::F32(data.to_vec()),
            Dtype::F16 => Self::F16(data.iter().copied().map(f16::from_f32).collect()),
            Dtype::I64 => Self::I64(data.iter().map(|x| *x as i64).collect()),
            Dtype::I32 => Self::I32(data.iter().map(|x| *x as i32).collect()),
            Dtype::Bool => Self::Bool(data.iter().map(|x| *x != 0.0).collect()),
            other => panic!("{other}: no layout has such an input"),
        }
    }

    fn borrowed(&self) -> Data<'_> {
        match self {
            Self::F32(data) => data[..].into(),
            Self::F16(data) => data[..].into(),
            Self::I64(data) => data[..].into(),
            Self::I32(data) => data[..].into(),
            Self::Bool(data) => data[..].into(),
        }
    }
}

/// The reference's arrays, and how near results must be.
struct Arrays {
    layout: String,
    tolerance: f64,
    weights: Weights,
}

impl Arrays {
    fn open(layout: &str, tolerance: f64) -> Self {
        let weights = Weights::open(&[root().join("pictures.safetensors")]).unwrap();
        Self { layout: layout.into(), tolerance, weights }
    }

    fn get(&self, name: &str) -> Vec<f32> {
        floats(&self.bytes(name))
    }

    fn bytes(&self, name: &str) -> Vec<u8> {
        self.weights.get(name).unwrap_or_else(|| panic!("no array {name}")).to_bytes()
    }

    /// Also that zeros and the same numbers one place on would be rejected.
    #[track_caller]
    fn close(&self, what: &str, got: &[f32], expected: &str, tolerance: f64) {
        let (layout, expected) = (&self.layout, self.get(expected));
        assert_eq!(got.len(), expected.len(), "{layout}: {what}");
        let error = distance(got, &expected);
        assert!(error <= tolerance, "{layout}: {what}: relative error {error:.1e}");
        let mut shifted = got.to_vec();
        shifted.rotate_right(1);
        for wrong in [vec![0.0; got.len()], shifted] {
            assert!(distance(&wrong, &expected) > 10.0 * tolerance, "{layout}: {what}: would pass");
        }
    }
}

/// Every [`KEPT_ROW`]th row of an image of 64 rows; of one plane behind another where there are several.
fn kept_rows<T: Copy>(data: &[T], row_elements: usize) -> Vec<T> {
    let planes = data.chunks(64 * row_elements);
    planes.flat_map(|plane| plane.chunks(row_elements).step_by(KEPT_ROW).flatten()).copied().collect()
}

/// With the weights on disk, attention that exporters spelled out in slices of its queries, and nodes that some leave in
/// no order.
#[test]
fn segments_draw_the_same() {
    let residency = Residency::Streamed { segment_bytes: 256 << 10, resident_bytes: 0 };
    for (layout, tolerance) in
        [("optimum", 1e-5), ("optimum-old", 1e-5), ("olive-io16", 1e-2), ("static-2", 1e-5)]
    {
        let (folder, scratch) = open(layout);
        let model = Model::open(scratch.path()).unwrap();
        let draw = |options: Options| {
            let mut pipeline = Pipeline::open(&model, &options).unwrap();
            let request = request(&folder.pictures[0], &pipeline);
            pipeline.denoise(&request, |_| ControlFlow::Continue(())).unwrap()
        };
        let streamed = SessionOptions { residency, ..options().session };
        let error = distance(&draw(Options { session: streamed, plan: None }), &draw(options()));
        assert!(error <= tolerance, "{layout}: relative difference {error:.1e}");
    }
}

/// Two layouts have whole timesteps alone; of none the layers of the text encoder can be skipped.
#[test]
fn rounded_timesteps_are_counted_and_clip_skip_is_refused() {
    for (layout, takes_whole) in [("onnxstack-lcm", true), ("web", true), ("optimum", false)] {
        let (_, scratch) = open(layout);
        let mut model = Model::open(scratch.path()).unwrap();
        let rounded = |sampler: &str, schedule: &str| {
            let draft = Recipe {
                sampler: Some(sampler.parse().unwrap()),
                schedule: Some(schedule.parse().unwrap()),
                steps: Some(10),
                ..Recipe::default()
            };
            Request::new(draft, &model).unwrap().warnings(&model).unwrap().rounded_timesteps
        };
        let expected = if takes_whole { 8 } else { 0 };
        assert_eq!((rounded("euler", "karras"), rounded("ddim", "trailing")), (expected, 0), "{layout}");
        let error = model.skip_clip_layers(2).expect_err("a ready-made graph");
        assert_eq!(error.kind(), ErrorKind::Model, "{layout}");
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/onnx_folders")
}

/// The folder as its maker would have left it.
pub fn open(layout: &str) -> (Folder, TempDir) {
    let (root, scratch) = (root(), scratch());
    let folder: Folder = serde_json::from_slice(&unpacked(&root.join(format!("{layout}.json.gz")))).unwrap();
    for (path, contents) in &folder.files {
        golden::write_json(&scratch.path().join(path), contents);
    }
    let (vocabulary, merges) = golden::clip();
    for tokenizer in &folder.tokenizers {
        fs::create_dir_all(scratch.path().join(tokenizer)).unwrap();
        fs::write(scratch.path().join(tokenizer).join("vocab.json"), &vocabulary).unwrap();
        fs::write(scratch.path().join(tokenizer).join("merges.txt"), &merges).unwrap();
    }
    for (path, data) in &folder.graphs {
        let file = scratch.path().join(path);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        let onnx = unpacked(&root.join(layout).join(format!("{path}.gz")));
        let mut model = ModelProto::decode(&onnx[..]).unwrap();
        let mut outside: BTreeMap<String, Vec<u8>> = BTreeMap::new();
        let initializers = &mut model.graph.as_mut().unwrap().initializer;
        let mut find = |name: &str| initializers.iter_mut().position(|tensor| tensor.name() == name).unwrap();
        let mut filled = Vec::new();
        for (initializer, of, transposed, dtype, inline) in &data.data {
            filled.push((find(initializer), bytes_of(of, &folder.tensors[of], *transposed, dtype), *inline));
        }
        for (index, bytes, inline) in filled {
            put(&mut initializers[index], bytes, inline, &mut outside);
        }
        for (name, bytes) in outside {
            fs::write(file.with_file_name(name), bytes).unwrap();
        }
        fs::write(file, model.encode_to_vec()).unwrap();
    }
    (folder, scratch)
}

/// Puts data where the graph says that it lies: in the graph, or at an offset in a file.
fn put(tensor: &mut TensorProto, bytes: Vec<u8>, inline: bool, outside: &mut BTreeMap<String, Vec<u8>>) {
    if inline {
        tensor.data_location = None;
        tensor.external_data.clear();
        tensor.raw_data = Some(bytes);
        return;
    }
    let value =
        |key: &str| tensor.external_data.iter().find(|entry| entry.key() == key).map(|entry| entry.value());
    let offset: usize = value("offset").map_or(0, |offset| offset.parse().unwrap());
    let file = outside.entry(value("location").unwrap().to_owned()).or_default();
    file.resize(file.len().max(offset + bytes.len()), 0);
    file[offset..][..bytes.len()].copy_from_slice(&bytes);
}

fn bytes_of(full: &str, shape: &[usize], transposed: bool, dtype: &str) -> Vec<u8> {
    let (component, name) = full.split_once('/').unwrap();
    let mut data = values(component, name, shape);
    if transposed {
        let (rows, columns) = (shape[0], shape[1]);
        data = (0..data.len()).map(|at| data[at % rows * columns + at / rows]).collect();
    }
    let precision = if dtype == "F16" { Precision::F16 } else { Precision::F32 };
    precision.bytes(&data)
}

fn unpacked(path: &Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    GzDecoder::new(&fs::read(path).unwrap()[..]).read_to_end(&mut bytes).unwrap();
    bytes
}
