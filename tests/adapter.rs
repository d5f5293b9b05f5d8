//! LoRA files against diffusers, PEFT and LyCORIS's formulas (`golden/adapters/lora.json`, made by
//! `export/golden_adapters.py`), on tiny models whose weights are functions of their names; and textual inversion in
//! graphs that run.

#![cfg(feature = "engine")]

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::{Arc, LazyLock, Mutex};

use calotype::adapter::Component;
use calotype::adapter::lora::{Applied, Lora, apply};
use calotype::architecture::clip;
use calotype::engine::{Session, SessionOptions, TensorRef};
use calotype::graph::Graph;
use calotype::graph::proto::{
    self, AttributeProto, Dimension, DimensionValue, GraphProto, ModelProto, NodeProto, OperatorSetIdProto,
    StringStringEntryProto, TensorProto, TensorShapeProto, TensorType, TypeProto, TypeValue, ValueInfoProto,
};
use calotype::noise::{NoiseSource, TorchCpu};
use calotype::weights::{Dtype, Stored, Weights};
use calotype::{Error, ErrorKind};
use half::{bf16, f16};
use prost::Message;
use serde::Deserialize;

/// Between single precision here and there lie sums of up to 64 products, a few 1e-7 of the weight.
const TOLERANCE: f64 = 1e-5;

const PERIOD: usize = 65521;
const SAMPLES: usize = 16;
const STRIDE: usize = 7919;

#[derive(Deserialize)]
struct Golden {
    models: BTreeMap<String, BTreeMap<String, BTreeMap<String, Vec<usize>>>>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    model: String,
    files: Vec<GoldenFile>,
    /// By component and tensor: the norm, then some of the elements.
    changed: BTreeMap<String, BTreeMap<String, Vec<f64>>>,
}

#[derive(Clone, Deserialize)]
struct GoldenFile {
    weight: f32,
    shapes: BTreeMap<String, Vec<usize>>,
    #[serde(default)]
    alphas: BTreeMap<String, f32>,
    #[serde(default)]
    metadata: BTreeMap<String, String>,
}

type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

/// `values` of the script.
fn values(component: &str, name: &str, shape: &[usize]) -> Vec<f32> {
    let seed = format!("{component}/{name}")
        .bytes()
        .fold(2_166_136_261u32, |seed, byte| (seed ^ u32::from(byte)).wrapping_mul(16_777_619));
    let count: usize = shape.iter().product();
    let mut base = vec![0.0; count.min(PERIOD)];
    TorchCpu::new(seed.into()).fill_normal(&mut base);
    let embeddings = ["token_embedding.weight", "position_embedding.weight", "class_embedding.weight"];
    let normal = (0..count).map(|index| base[index % PERIOD]);
    if shape.len() == 1 && name.ends_with(".weight") {
        normal.map(|value| 1.0 + 0.1 * value).collect()
    } else if name.ends_with("bias") {
        normal.map(|value| 0.05 * value).collect()
    } else if embeddings.iter().any(|ending| name.ends_with(ending)) {
        normal.map(|value| 0.5 * value).collect()
    } else {
        let fan_in: usize = shape.iter().skip(1).product();
        let gain = (1.0 / (fan_in as f64).sqrt()) as f32;
        normal.map(|value| value * gain).collect()
    }
}

fn bytes(dtype: Dtype, values: &[f32]) -> Vec<u8> {
    match dtype {
        Dtype::F16 => values.iter().flat_map(|&value| f16::from_f32(value).to_le_bytes()).collect(),
        Dtype::Bf16 => values.iter().flat_map(|&value| bf16::from_f32(value).to_le_bytes()).collect(),
        _ => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
    }
}

fn numbers(weights: &Weights, name: &str) -> Vec<f32> {
    let view = weights.get(name).unwrap();
    let bytes = view.to_bytes();
    match view.dtype() {
        Dtype::F16 => bytes.chunks(2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
        Dtype::Bf16 => bytes.chunks(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
        _ => bytes.chunks(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
    }
}

/// A safetensors file in a folder that lives as long as what is returned.
fn written(
    dtype: Dtype,
    tensors: &Tensors,
    metadata: &BTreeMap<String, String>,
) -> (tempfile::TempDir, PathBuf) {
    let mut header = serde_json::Map::new();
    if !metadata.is_empty() {
        header.insert("__metadata__".into(), serde_json::json!(metadata));
    }
    let mut data = Vec::new();
    for (name, (shape, values)) in tensors {
        let begin = data.len();
        data.extend(bytes(dtype, values));
        let offsets = [begin, data.len()];
        header.insert(
            name.clone(),
            serde_json::json!({"dtype": dtype.name(), "shape": shape, "data_offsets": offsets}),
        );
    }
    let header = serde_json::to_string(&header).unwrap();
    let header = format!("{header:width$}", width = header.len().next_multiple_of(8));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.safetensors");
    std::fs::write(&path, [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &data].concat()).unwrap();
    (folder, path)
}

fn golden() -> &'static Golden {
    static GOLDEN: LazyLock<Golden> =
        LazyLock::new(|| serde_json::from_str(include_str!("golden/adapters/lora.json")).unwrap());
    &GOLDEN
}

impl Golden {
    fn case(&self, name: &str) -> &Case {
        self.cases.iter().find(|case| case.name == name).unwrap()
    }

    fn tensors(&self, model: &str, component: &str) -> Tensors {
        let shapes = self.models[model][component].iter();
        shapes.map(|(name, shape)| (name.clone(), (shape.clone(), values(component, name, shape)))).collect()
    }

    fn weights(&self, model: &str, component: &str, dtype: Dtype) -> Weights {
        static MADE: Mutex<BTreeMap<String, Weights>> = Mutex::new(BTreeMap::new());
        let mut made = MADE.lock().unwrap();
        let weights = made.entry(format!("{model} {component} {dtype}")).or_insert_with(|| {
            let (_folder, path) = written(dtype, &self.tensors(model, component), &BTreeMap::new());
            Weights::open(&[path]).unwrap()
        });
        weights.clone()
    }
}

impl GoldenFile {
    fn tensors(&self) -> Tensors {
        let shaped =
            self.shapes.iter().map(|(key, shape)| (key, (shape.clone(), values("lora", key, shape))));
        let alphas = self.alphas.iter().map(|(key, alpha)| (key, (vec![], vec![*alpha])));
        shaped.chain(alphas).map(|(key, tensor)| (key.clone(), tensor)).collect()
    }

    fn open(&self) -> Lora {
        let (_folder, path) = written(Dtype::F32, &self.tensors(), &self.metadata);
        Lora::open(&path).unwrap()
    }
}

fn component(name: &str) -> Component {
    let all = [Component::Unet, Component::TextEncoder, Component::TextEncoder2];
    all.into_iter().find(|component| component.to_string() == name).unwrap()
}

fn norm(values: impl Iterator<Item = f64>) -> f64 {
    values.map(|value| value * value).sum::<f64>().sqrt()
}

/// How far weights are from what the reference has, relative to it: of norm and samples, the larger.
fn deviation(expected: &[f64], got: &[f32]) -> f64 {
    let (expected_norm, samples) = (expected[0], &expected[1..]);
    assert_eq!(samples.len(), SAMPLES);
    let of_norm = (norm(got.iter().map(|&value| value.into())) - expected_norm).abs() / expected_norm;
    let got = (0..SAMPLES).map(|index| f64::from(got[index * STRIDE % got.len()]));
    let of_samples = norm(got.zip(samples).map(|(got, expected)| got - expected));
    of_norm.max(of_samples / norm(samples.iter().copied()))
}

/// The largest deviation among the tensors that a case changes; checks that no others are.
fn worst(golden: &Golden, case: &Case, files: &[GoldenFile]) -> f64 {
    let loras: Vec<(Lora, f32)> = files.iter().map(|file| (file.open(), file.weight)).collect();
    let loras: Vec<(&Lora, f32)> = loras.iter().map(|(lora, weight)| (lora, *weight)).collect();
    let mut worst = 0.0f64;
    for name in golden.models[&case.model].keys() {
        let weights = golden.weights(&case.model, name, Dtype::F32);
        let (changed, applied) = apply(component(name), &weights, &loras).unwrap();
        let none = BTreeMap::new();
        let expected = case.changed.get(name).unwrap_or(&none);
        let bytes = expected.keys().map(|tensor| weights.get(tensor).unwrap().len_bytes()).sum();
        assert_eq!(applied, Applied { tensors: expected.len(), bytes }, "{}: {name}", case.name);
        for (tensor, old) in weights.iter() {
            let new = changed.get(tensor).unwrap();
            assert_eq!((new.dtype(), new.shape()), (old.dtype(), old.shape()));
            match expected.get(tensor) {
                Some(expected) => worst = worst.max(deviation(expected, &numbers(&changed, tensor))),
                None => assert_eq!(new.to_bytes(), old.to_bytes(), "{}: {tensor}", case.name),
            }
        }
        assert_eq!(changed.iter().count(), weights.iter().count());
    }
    worst
}

#[test]
fn every_kind_of_file_does_what_its_reference_does() {
    let golden = golden();
    assert_eq!(golden.cases.len(), 18);
    for case in &golden.cases {
        let worst = worst(golden, case, &case.files);
        assert!(worst < TOLERANCE, "{}: {worst:.1e}", case.name);
    }
}

#[test]
fn the_tolerance_rejects_mistakes() {
    let golden = golden();
    let with = |name: &str, change: fn(&mut GoldenFile)| {
        let case = golden.case(name);
        let mut files = case.files.clone();
        files.iter_mut().for_each(change);
        worst(golden, case, &files)
    };
    for name in ["kohya, attention", "kohya, convolutions", "dora of lycoris", "loha", "lokr"] {
        let slightly = with(name, |file| file.alphas.values_mut().for_each(|alpha| *alpha *= 1.01));
        assert!(slightly > 10.0 * TOLERANCE, "{name}: another alpha: {slightly:.1e}");
        let missing = with(name, |file| file.alphas.clear());
        assert!(missing > 100.0 * TOLERANCE, "{name}: no alpha: {missing:.1e}");
    }
    for name in ["kohya, attention", "kohya, original names", "two files", "dora of lycoris", "lycoris"] {
        let unscaled = with(name, |file| file.weight = 1.0);
        assert!(unscaled > 100.0 * TOLERANCE, "{name}: no weight: {unscaled:.1e}");
    }
    let without = with("peft, metadata", |file| file.metadata.clear());
    assert!(without > 100.0 * TOLERANCE, "no metadata: {without:.1e}");
}

/// On square weights the shapes would not tell.
#[test]
fn the_tolerance_rejects_swapped_factors() {
    let golden = golden();
    let case = golden.case("diffusers until 0.20");
    let mut tensors = case.files[0].tensors();
    let transposed = |(shape, values): &(Vec<usize>, Vec<f32>)| {
        let (rows, columns) = (shape[0], shape[1]);
        let values = (0..values.len()).map(|index| values[index % rows * columns + index / rows]);
        (vec![columns, rows], values.collect())
    };
    let downs: Vec<String> = tensors.keys().filter(|key| key.ends_with(".down.weight")).cloned().collect();
    for down in downs {
        let up = down.replace(".down.", ".up.");
        let swapped = (transposed(&tensors[&up]), transposed(&tensors[&down]));
        tensors.insert(down, swapped.0);
        tensors.insert(up, swapped.1);
    }
    let (_folder, path) = written(Dtype::F32, &tensors, &BTreeMap::new());
    let weights = golden.weights(&case.model, "unet", Dtype::F32);
    let (changed, _) = apply(Component::Unet, &weights, &[(&Lora::open(&path).unwrap(), 1.0)]).unwrap();
    for (name, expected) in &case.changed["unet"] {
        let deviation = deviation(expected, &numbers(&changed, name));
        assert!(deviation > 100.0 * TOLERANCE, "{name}: {deviation:.1e}");
    }
}

/// Several files are summed in 32-bit floats, and only the sum is rounded.
#[test]
fn weights_of_16_bits_are_rounded_once() {
    let golden = golden();
    let case = golden.case("two files");
    let loras: Vec<(Lora, f32)> = case.files.iter().map(|file| (file.open(), file.weight)).collect();
    let loras: Vec<(&Lora, f32)> = loras.iter().map(|(lora, weight)| (lora, *weight)).collect();
    for dtype in [Dtype::F16, Dtype::Bf16] {
        let weights = golden.weights(&case.model, "unet", dtype);
        let widened: Tensors = weights
            .iter()
            .map(|(name, view)| (name.to_owned(), (view.shape().to_vec(), numbers(&weights, name))))
            .collect();
        let (_folder, path) = written(Dtype::F32, &widened, &BTreeMap::new());
        let (exact, _) = apply(Component::Unet, &Weights::open(&[path]).unwrap(), &loras).unwrap();
        let (changed, _) = apply(Component::Unet, &weights, &loras).unwrap();
        for name in case.changed["unet"].keys() {
            let rounded = bytes(dtype, &numbers(&exact, name));
            assert_eq!(changed.get(name).unwrap().to_bytes(), rounded, "{dtype} {name}");
        }
    }
}

/// ONNX files keep the matrices of linear layers as `[in, out]`.
#[test]
fn a_transposed_weight_stays_transposed() {
    let golden = golden();
    for name in ["kohya, attention", "dora of lycoris", "lokr"] {
        let case = golden.case(name);
        let loras = [(&case.files[0].open(), case.files[0].weight)];
        let mut tensors = golden.tensors(&case.model, "unet");
        for (shape, values) in tensors.values_mut().filter(|(shape, _)| shape.len() == 2) {
            let (rows, columns) = (shape[0], shape[1]);
            *values = (0..values.len()).map(|index| values[index % rows * columns + index / rows]).collect();
            shape.reverse();
        }
        let (_folder, path) = written(Dtype::F32, &tensors, &BTreeMap::new());
        let stored = |(name, (shape, _)): (&String, &(Vec<usize>, _))| {
            (name.clone(), Stored { transposed: shape.len() == 2, ..Stored::whole(name) })
        };
        let weights = Weights::open(&[path]).unwrap().select(tensors.iter().map(stored)).unwrap();

        let (changed, _) = apply(Component::Unet, &weights, &loras).unwrap();
        for (tensor, view) in changed.iter() {
            let old = weights.get(tensor).unwrap();
            assert_eq!((view.shape(), view.is_transposed()), (old.shape(), old.is_transposed()), "{tensor}");
        }
        for (tensor, expected) in &case.changed["unet"] {
            let (view, mut values) = (changed.get(tensor).unwrap(), numbers(&changed, tensor));
            if let (true, &[rows, columns]) = (view.is_transposed(), view.shape()) {
                values =
                    (0..values.len()).map(|index| values[index % rows * columns + index / rows]).collect();
            }
            let deviation = deviation(expected, &values);
            assert!(deviation < TOLERANCE, "{name}: {tensor}: {deviation:.1e}");
        }
    }
}

#[test]
fn a_weight_of_zero_changes_nothing() {
    let golden = golden();
    let case = golden.case("kohya, attention");
    let weights = golden.weights(&case.model, "unet", Dtype::F32);
    let (changed, applied) = apply(Component::Unet, &weights, &[(&case.files[0].open(), 0.0)]).unwrap();
    assert_eq!(applied, Applied { tensors: 0, bytes: 0 });
    assert!(weights.iter().all(|(name, view)| view.to_bytes() == changed.get(name).unwrap().to_bytes()));
}

#[test]
fn a_file_says_which_networks_it_changes() {
    let golden = golden();
    let components = |name: &str| golden.case(name).files[0].open().components().collect::<Vec<_>>();
    assert_eq!(
        components("kohya, original names"),
        [(Component::Unet, 19), (Component::TextEncoder, 3), (Component::TextEncoder2, 2)]
    );
    assert_eq!(components("lycoris"), [(Component::Unet, 8)]);
}

#[test]
fn a_file_for_another_family() {
    let golden = golden();
    let refusal = |file: &str, model: &str| {
        let weights = golden.weights(model, "unet", Dtype::F32);
        let error =
            apply(Component::Unet, &weights, &[(&golden.case(file).files[0].open(), 1.0)]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Model);
        let message = error.to_string();
        assert!(message.starts_with("lora /"), "{message}");
        message.split_once(".safetensors: ").unwrap().1.to_owned()
    };
    let help = "it was made for another model family";
    assert_eq!(
        refusal("kohya, original names", "sd"),
        format!(
            "lora_unet_output_blocks_2_1_transformer_blocks_0_attn1_to_q: expected shape [32, 32] for \
             up_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q.weight, got [64, 64]; {help}"
        )
    );
    // One for the U-Net alone.
    let names: Vec<String> = (0..5).map(|at| format!("lora_unet_strange_{at}_to_q")).collect();
    let ends = [("lora_up.weight", [4, 2]), ("lora_down.weight", [2, 4])];
    let tensors: Tensors = names
        .iter()
        .flat_map(|name| ends.map(|(end, shape)| (format!("{name}.{end}"), (shape.to_vec(), vec![0.5; 8]))))
        .collect();
    let (_folder, path) = written(Dtype::F32, &tensors, &BTreeMap::new());
    let weights = golden.weights("sd", "unet", Dtype::F32);
    let error =
        apply(Component::Unet, &weights, &[(&Lora::open(&path).unwrap(), 1.0)]).unwrap_err().to_string();
    let expected = format!(
        "expected names of the model's unet, got 5 of 5 that are not: {} and 2 more; {help}",
        names[..3].join(", ")
    );
    assert!(error.ends_with(&expected), "{error}");
}

/// The table that ids are looked up in, called as a module that a LoRA can change; its rows and columns.
const TABLE: &str = "conv_in.weight";
const VOCABULARY: usize = 5;
const WIDTH: usize = 3;
/// ONNX's numbers for element types.
const F32: i32 = 1;
const I32: i32 = 6;
const I64: i32 = 7;
const F16: i32 = 10;

fn node(operator: &str, inputs: &[&str], output: &str, attribute: &[(&str, i64)]) -> NodeProto {
    let attribute = attribute.iter().map(|(name, value)| AttributeProto {
        name: Some((*name).into()),
        r#type: Some(proto::INT),
        i: Some(*value),
        ..Default::default()
    });
    NodeProto {
        op_type: Some(operator.into()),
        input: inputs.iter().map(ToString::to_string).collect(),
        output: vec![output.into()],
        attribute: attribute.collect(),
        ..Default::default()
    }
}

fn port(name: &str, elem_type: i32, rank: usize) -> ValueInfoProto {
    let dim = (0..rank).map(|axis| Dimension {
        value: Some(DimensionValue::DimParam(format!("n{axis}"))),
        ..Default::default()
    });
    let tensor =
        TensorType { elem_type: Some(elem_type), shape: Some(TensorShapeProto { dim: dim.collect() }) };
    let kind = TypeProto { value: Some(TypeValue::TensorType(tensor)), ..Default::default() };
    ValueInfoProto { name: Some(name.into()), r#type: Some(kind), ..Default::default() }
}

/// A graph of one integer input, `input_ids`, an open table, and `y`, of these types and nodes.
fn lookup(ids: i32, table: i32, opset: i64, nodes: Vec<NodeProto>) -> Result<Graph, Error> {
    let location = StringStringEntryProto { key: Some("location".into()), value: Some("weights".into()) };
    let graph = GraphProto {
        name: Some("lookup".into()),
        node: nodes,
        initializer: vec![
            TensorProto {
                name: Some(TABLE.into()),
                dims: vec![VOCABULARY as i64, WIDTH as i64],
                data_type: Some(table),
                data_location: Some(proto::EXTERNAL),
                external_data: vec![location],
                ..Default::default()
            },
            TensorProto {
                name: Some("flat".into()),
                dims: vec![1],
                data_type: Some(I64),
                int64_data: vec![-1],
                ..Default::default()
            },
        ],
        input: vec![port("input_ids", ids, 2)],
        output: vec![port("y", F32, 3)],
        ..Default::default()
    };
    let opset = OperatorSetIdProto { domain: None, version: Some(opset) };
    let model = ModelProto {
        ir_version: Some(8),
        graph: Some(graph),
        opset_import: vec![opset],
        ..Default::default()
    };
    Graph::decode("text_encoder", &model.encode_to_vec())
}

fn table(dtype: Dtype) -> Weights {
    let values = (0..VOCABULARY * WIDTH).map(|index| index as f32).collect();
    let (_folder, path) =
        written(dtype, &[(TABLE.into(), (vec![VOCABULARY, WIDTH], values))].into(), &BTreeMap::new());
    Weights::open(&[path]).unwrap()
}

/// What a graph whose table has two rows of 100s and 200s more, from id 7 on, makes of these ids.
fn look_up(mut graph: Graph, dtype: Dtype, ids: &[i32]) -> Result<Vec<f32>, Error> {
    let rows: Vec<f32> = [[100.0; WIDTH], [200.0; WIDTH]].concat();
    graph.extend_embedding(7, &rows)?;
    let wide: Vec<i64> = ids.iter().map(|&id| id.into()).collect();
    let is_wide = graph.inputs()[0].dtype == Dtype::I64;
    let options = SessionOptions::new(NonZeroUsize::MIN);
    let mut session = Session::open(graph.bind(Arc::new(table(dtype)))?, &options)?;
    let shape = [1, ids.len()];
    let ids = if is_wide { TensorRef::new(&shape, &wide[..]) } else { TensorRef::new(&shape, ids) };
    let mut y = vec![f32::NAN; wide.len() * WIDTH];
    session.run(&[("input_ids", ids)], &mut [("y", &mut y)])?;
    Ok(y)
}

#[test]
fn added_embeddings_are_looked_up_beside_the_table() {
    let gather = || node("Gather", &[TABLE, "input_ids"], "y", &[]);
    let expected = [12.0, 13.0, 14.0, 200.0, 200.0, 200.0, 0.0, 1.0, 2.0, 100.0, 100.0, 100.0];
    // As we derive it; with narrow ids and the oldest operators; with a table of half the size; and as PyTorch exports it.
    for (name, ids, stored, dtype, opset, nodes) in [
        ("derived", I64, F32, Dtype::F32, 20, vec![gather()]),
        ("narrow ids", I32, F32, Dtype::F32, 18, vec![gather()]),
        ("oldest", I64, F32, Dtype::F32, 11, vec![gather()]),
        ("widened when bound", I64, F32, Dtype::F16, 18, vec![gather()]),
        (
            "half precision",
            I64,
            F16,
            Dtype::F16,
            14,
            vec![
                node("Gather", &[TABLE, "input_ids"], "found", &[("axis", 0)]),
                node("Cast", &["found"], "y", &[("to", F32.into())]),
            ],
        ),
        (
            "exported",
            I32,
            F16,
            Dtype::F16,
            17,
            vec![
                node("Cast", &["input_ids"], "ids", &[("to", I64.into())]),
                node("Cast", &[TABLE], "wide_table", &[("to", F32.into())]),
                node("Reshape", &["ids", "shape"], "reshaped", &[]),
                node("Gather", &["wide_table", "reshaped"], "y", &[]),
            ],
        ),
    ] {
        let mut nodes = nodes;
        if name == "exported" {
            nodes.insert(0, node("Shape", &["input_ids"], "shape", &[]));
        }
        let graph = lookup(ids, stored, opset, nodes).unwrap();
        assert_eq!(look_up(graph, dtype, &[4, 8, 0, 7]).unwrap(), expected, "{name}");
    }
}

/// A derived text encoder to which known words are added once more.
#[test]
fn an_added_word_is_encoded_as_the_word_with_its_vectors() {
    let config = clip::Config {
        vocab_size: 40,
        hidden_size: 32,
        intermediate_size: 64,
        projection_dim: 16,
        num_hidden_layers: 2,
        num_attention_heads: 4,
        max_position_embeddings: 16,
        eos_token_id: 1,
        ..clip::Config::default()
    };
    let weights = golden().weights("sdxl", "text_encoder_2", Dtype::F16);
    let words = numbers(&weights, "text_model.embeddings.token_embedding.weight");
    let rows = [&words[7 * 32..8 * 32], &words[9 * 32..10 * 32]].concat();
    let mut graph = config.graph(clip::States::Last, true).unwrap();
    graph.extend_embedding(40, &rows).unwrap();
    let options = SessionOptions::new(NonZeroUsize::MIN);
    let mut session = Session::open(graph.bind(Arc::new(weights)).unwrap(), &options).unwrap();
    let mut encode = |ids: [i64; 5]| {
        let (mut states, mut pooled) = (vec![f32::NAN; 5 * 32], vec![f32::NAN; 16]);
        session
            .run(
                &[("input_ids", TensorRef::new(&[1, 5], &ids[..]))],
                &mut [("last_hidden_state", &mut states), ("text_embeds", &mut pooled)],
            )
            .unwrap();
        (states, pooled)
    };
    let known = encode([0, 7, 9, 1, 1]);
    assert!(known.0.iter().chain(&known.1).all(|value| value.is_finite()));
    assert_eq!(encode([0, 40, 41, 1, 1]), known);
    assert_ne!(encode([0, 41, 40, 1, 1]), known);
}

/// Exporters find the end of a prompt as its largest id, which an added word's must not become.
#[test]
fn added_embeddings_do_not_move_the_end() {
    let graph = |ids: i32, to: Option<i32>| {
        let cast = to.map(|to| node("Cast", &["input_ids"], "as_int", &[("to", to.into())]));
        let largest = node(
            "ArgMax",
            &[if to.is_some() { "as_int" } else { "input_ids" }],
            "place",
            &[("axis", 1), ("keepdims", 0)],
        );
        let found = node("Gather", &[TABLE, "input_ids"], "found", &[]);
        // The found row of the first prompt, in every place.
        let picked = node("Gather", &["found", "place"], "picked", &[("axis", 1)]);
        let y = node("Mul", &["found", "picked"], "y", &[]);
        lookup(ids, F32, 18, cast.into_iter().chain([largest, found, picked, y]).collect()).unwrap()
    };
    for (ids, to) in [(I32, None), (I64, Some(I32)), (I64, Some(F32))] {
        // The largest id of the table is 4, in place 2, whose row is 12, 13, 14.
        let y = look_up(graph(ids, to), Dtype::F32, &[0, 8, 4, 7]).unwrap();
        let row = [12.0, 13.0, 14.0];
        let by_row = |values: [f32; WIDTH]| values.into_iter().zip(row).map(|(a, b)| a * b);
        let expected = [[0.0, 1.0, 2.0], [200.0; WIDTH], row, [100.0; WIDTH]].into_iter().flat_map(by_row);
        assert_eq!(y, expected.collect::<Vec<f32>>(), "{ids} {to:?}");
    }
}

/// What was computed is what ONNX Runtime reads.
#[test]
fn a_changed_weight_is_the_one_that_runs() {
    let ones = |shape: [usize; 2]| (shape.to_vec(), vec![1.0; shape[0] * shape[1]]);
    let tensors: Tensors = [
        ("unet.conv_in.lora_A.weight".to_owned(), ones([2, WIDTH])),
        ("unet.conv_in.lora_B.weight".to_owned(), ones([VOCABULARY, 2])),
    ]
    .into();
    let (_folder, path) = written(Dtype::F16, &tensors, &BTreeMap::new());
    let (lora, nodes) = (Lora::open(&path).unwrap(), vec![node("Gather", &[TABLE, "input_ids"], "y", &[])]);
    let (weights, _) = apply(Component::Unet, &table(Dtype::F32), &[(&lora, 0.5), (&lora, 0.25)]).unwrap();
    let graph = lookup(I64, F32, 18, nodes).unwrap().bind(Arc::new(weights)).unwrap();
    let mut session = Session::open(graph, &SessionOptions::new(NonZeroUsize::MIN)).unwrap();
    let mut y = [f32::NAN; 2 * WIDTH];
    session.run(&[("input_ids", TensorRef::new(&[1, 2], &[3i64, 0][..]))], &mut [("y", &mut y)]).unwrap();
    assert_eq!(y, [10.5, 11.5, 12.5, 1.5, 2.5, 3.5]);
}

#[test]
fn ids_outside_of_table_and_rows() {
    // Between the table's end and the first added row, behind the last one, and as before, from the table's end.
    for id in [5, 6, 9, i32::MAX, -6] {
        let graph = lookup(I64, F32, 18, vec![node("Gather", &[TABLE, "input_ids"], "y", &[])]).unwrap();
        let error = look_up(graph, Dtype::F32, &[0, id]).expect_err("there is no such row");
        assert_eq!(error.kind(), ErrorKind::Runtime, "{id}: {error}");
    }
}

#[test]
fn graphs_that_cannot_be_given_more_words() {
    let gather = |ids: &str| node("Gather", &[TABLE, ids], "y", &[]);
    let refusal = |opset: i64, table: i32, nodes: Vec<NodeProto>| {
        let error =
            look_up(lookup(I64, table, opset, nodes).unwrap(), Dtype::F32, &[0]).expect_err("it cannot");
        assert_eq!(error.kind(), ErrorKind::Model);
        error.to_string()
    };
    let one = "text_encoder: embeddings: expected one table that token ids are looked up in, got";
    assert_eq!(refusal(18, F32, vec![]), format!("{one} 0"));
    // By positions, not by ids.
    let positions = vec![node("Shape", &["input_ids"], "sizes", &[]), gather("sizes")];
    assert_eq!(refusal(18, F32, positions), format!("{one} 0"));
    let columns = vec![node("Gather", &[TABLE, "input_ids"], "y", &[("axis", 1)])];
    assert_eq!(refusal(18, F32, columns), format!("{one} 0"));
    let circle = vec![node("Cast", &["b"], "a", &[]), node("Cast", &["a"], "b", &[]), gather("a")];
    assert_eq!(refusal(18, F32, circle), format!("{one} 0"));
    let twice = vec![gather("input_ids"), node("Gather", &[TABLE, "input_ids"], "z", &[])];
    assert_eq!(refusal(18, F32, twice), format!("{one} 2"));
    assert_eq!(
        refusal(10, F32, vec![gather("input_ids")]),
        "text_encoder: embeddings: expected opset 11 or newer, got 10"
    );
    assert_eq!(
        refusal(18, I32, vec![gather("input_ids")]),
        "text_encoder: embeddings: conv_in.weight: expected a matrix of floats, got ONNX type 6, shape [5, 3]"
    );
}

#[test]
fn rows_that_are_not_whole() {
    for rows in [&[][..], &[1.0; WIDTH + 1]] {
        let mut graph = lookup(I64, F32, 18, vec![node("Gather", &[TABLE, "input_ids"], "y", &[])]).unwrap();
        let error = graph.extend_embedding(7, rows).expect_err("they are not");
        assert_eq!(
            error.to_string(),
            format!("text_encoder: embeddings: expected rows of 3 numbers, got {} numbers", rows.len())
        );
    }
}
