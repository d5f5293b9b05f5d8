//! Ready-made ONNX folders in the layouts that people have (`tests/golden/onnx_folders`, `export/golden_onnx.py`), run
//! unmodified: the pictures of diffusers with the same weights.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read as _;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use calotype::architecture::clip::{self, States};
use calotype::architecture::{autoencoder_kl, unet};
use calotype::engine::{Residency, SessionOptions};
use calotype::graph::Graph;
use calotype::graph::proto::{ModelProto, TensorProto};
use calotype::model::Model;
use calotype::pipeline::{Options, Pipeline};
use calotype::weights::Weights;
use flate2::read::GzDecoder;
use prost::Message;
use serde::Deserialize;
use serde_json::Value;
use tempfile::TempDir;

use super::golden::{self, Picture, Precision, desk, floats, values};
use super::{distance, options, request};

/// Relative L2 distance of the final latents where the graphs compute in single precision.
const F32_TOLERANCE: f64 = 1e-4;
/// And in half precision, where every sum is rounded to 11 bits.
const F16_TOLERANCE: f64 = 2e-2;

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
    pub pictures: Vec<Picture>,
}

#[derive(Deserialize)]
struct GraphData {
    /// Initializer, the tensor "component/name", whether transposed, type, whether in the graph.
    data: Vec<(String, String, bool, String, bool)>,
}

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
    let (folder, desk) = open(layout);
    let model = Model::open(desk.path()).unwrap();
    let arrays = Weights::open(&[root().join("pictures.safetensors")]).unwrap();
    assert!(!folder.pictures.is_empty());
    for picture in &folder.pictures {
        let mut pipeline = Pipeline::open(&model, &options()).unwrap();
        let request = request(picture, &pipeline);
        let got = pipeline.denoise(&request, |_| ControlFlow::Continue(())).unwrap();
        let expected = floats(&arrays.get(&picture.latents).unwrap().to_bytes());
        let error = distance(&got, &expected);
        assert!(error <= tolerance, "{layout}, {}: relative error {error:.1e}", picture.name);
        assert!(distance(&vec![0.0; got.len()], &expected) > 10.0 * tolerance);
        // Decoding, too, is by signature.
        pipeline.generate(&request, |_| ControlFlow::Continue(())).unwrap();
    }
}

/// With the weights on disk, attention that exporters spelled out in slices of its queries, and nodes that some leave in
/// no order.
#[test]
fn segments_draw_the_same() {
    let residency = Residency::Streamed { grain_bytes: 256 << 10, resident_bytes: 0 };
    for (layout, tolerance) in
        [("optimum", 1e-5), ("optimum-old", 1e-5), ("olive-io16", 1e-2), ("static-2", 1e-5)]
    {
        let (folder, desk) = open(layout);
        let model = Model::open(desk.path()).unwrap();
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

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/onnx_folders")
}

/// The folder as its maker would have left it.
pub fn open(layout: &str) -> (Folder, TempDir) {
    let (root, desk) = (root(), desk());
    let folder: Folder = serde_json::from_slice(&unpacked(&root.join(format!("{layout}.json.gz")))).unwrap();
    for (path, contents) in &folder.files {
        golden::write_json(&desk.path().join(path), contents);
    }
    let (vocabulary, merges) = golden::clip();
    for tokenizer in &folder.tokenizers {
        fs::create_dir_all(desk.path().join(tokenizer)).unwrap();
        fs::write(desk.path().join(tokenizer).join("vocab.json"), &vocabulary).unwrap();
        fs::write(desk.path().join(tokenizer).join("merges.txt"), &merges).unwrap();
    }
    for (path, data) in &folder.graphs {
        let file = desk.path().join(path);
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
    (folder, desk)
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
