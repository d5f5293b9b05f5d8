//! The narrow models of `tests/golden/checkpoints` (`export/golden_checkpoints.py`): their files, made anew from names
//! and shapes, and what diffusers and transformers computed with them.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read as _;
use std::path::Path;

use calotype::noise::{NoiseSource, TorchCpu};
use calotype::weights::{Dtype, Weights};
use flate2::read::GzDecoder;
use half::{bf16, f16};
use image::{GrayImage, RgbImage};
use serde::Deserialize;
use serde_json::{Value, json};
use tempfile::TempDir;

/// The noise that fills a tensor repeats after as many values (`export/checkpoints/values.py`).
const PERIOD: usize = 65521;

#[derive(Deserialize)]
pub struct Golden {
    pub family: String,
    pub model_index: Value,
    pub components: BTreeMap<String, Component>,
    pub tokenizers: BTreeMap<String, BTreeMap<String, Value>>,
    pub schedulers: BTreeMap<String, Value>,
    pub single_file: Option<Vec<OriginalTensor>>,
    pub text: Text,
    pub unet: Call,
    pub vae: Vae,
    pub pictures: Vec<Picture>,
    #[serde(skip)]
    arrays: BTreeMap<String, Vec<f32>>,
    #[serde(skip)]
    bytes: BTreeMap<String, Vec<u8>>,
}

/// Its name and shape in the single file, how it is made, and of what.
pub type OriginalTensor = (String, Vec<usize>, String, Vec<String>);

#[derive(Deserialize)]
pub struct Component {
    pub config: Value,
    file: String,
    pub tensors: Vec<(String, Vec<usize>)>,
    extra: Vec<(String, Vec<usize>, String, String)>,
    also_named: BTreeMap<String, String>,
}

#[derive(Deserialize)]
pub struct Text {
    pub rows: Vec<usize>,
    pub cases: Vec<TextCase>,
}

#[derive(Deserialize)]
pub struct TextCase {
    pub text: String,
    pub ids: BTreeMap<String, Vec<i64>>,
    pub arrays: BTreeMap<String, String>,
}

#[derive(Deserialize)]
pub struct Call {
    pub inputs: BTreeMap<String, Input>,
    pub outputs: BTreeMap<String, String>,
}

#[derive(Deserialize)]
pub struct Vae {
    pub encode: Call,
    pub decode: Call,
}

#[derive(Deserialize)]
#[serde(untagged)]
pub enum Input {
    Seeded { shape: Vec<usize>, seed: u64, scale: f32 },
    Outright { values: Value, dtype: String },
}

#[derive(Deserialize)]
pub struct Picture {
    pub name: String,
    pub scheduler: PictureScheduler,
    pub seed: u64,
    pub arguments: BTreeMap<String, Value>,
    pub latents: String,
    pub picture: Option<String>,
}

#[derive(Deserialize)]
pub struct PictureScheduler {
    pub class: String,
    pub config: Value,
}

/// How tensors are stored.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Precision {
    F32,
    F16,
    Bf16,
}

impl Golden {
    pub fn open(family: &str) -> Self {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/checkpoints");
        let packed = fs::read(folder.join(format!("{family}.json.gz"))).unwrap();
        let mut json = Vec::new();
        GzDecoder::new(&packed[..]).read_to_end(&mut json).unwrap();
        let mut golden: Self = serde_json::from_slice(&json).unwrap();
        let arrays = Weights::open(&[folder.join(format!("{family}.safetensors"))]).unwrap();
        for (name, array) in arrays.iter() {
            let bytes = array.to_bytes();
            if array.dtype() == Dtype::F32 {
                golden.arrays.insert(name.to_owned(), floats(&bytes));
            } else {
                golden.bytes.insert(name.to_owned(), bytes);
            }
        }
        assert_eq!(golden.family, family);
        golden
    }

    pub fn array(&self, name: &str) -> &[f32] {
        &self.arrays[name]
    }

    pub fn bytes(&self, name: &str) -> &[u8] {
        &self.bytes[name]
    }

    /// The shape of every tensor "component/name".
    pub fn shapes(&self) -> BTreeMap<String, Vec<usize>> {
        let tensors = self.components.iter().flat_map(|(component, parts)| {
            parts.tensors.iter().map(move |(name, shape)| (format!("{component}/{name}"), shape.clone()))
        });
        tensors.collect()
    }

    /// Writes the model as `save_pretrained` does; with other people's names for the same tensors where `renamed`, and
    /// in `shards` files a component.
    pub fn write_folder(&self, folder: &Path, precision: Precision, renamed: bool, shards: usize) {
        write_json(&folder.join("model_index.json"), &self.model_index);
        for (name, component) in &self.components {
            let place = folder.join(name);
            write_json(&place.join("config.json"), &component.config);
            let mut tensors = Vec::new();
            for (tensor, shape) in &component.tensors {
                let other = component.also_named.get(tensor).filter(|_| renamed);
                let bytes = precision.bytes(&values(name, tensor, shape));
                tensors.push((other.unwrap_or(tensor).clone(), precision.name(), shape.clone(), bytes));
            }
            for (tensor, shape, dtype, fill) in &component.extra {
                let (dtype, bytes) = extra(tensor, shape, dtype, fill);
                tensors.push((tensor.clone(), dtype, shape.clone(), bytes));
            }
            write_shards(&folder.join(&component.file), tensors, shards);
        }
        for (name, files) in &self.tokenizers {
            for (file, contents) in files {
                write_json(&folder.join(name).join(file), contents);
            }
            let (vocabulary, merges) = clip();
            fs::write(folder.join(name).join("vocab.json"), vocabulary).unwrap();
            fs::write(folder.join(name).join("merges.txt"), merges).unwrap();
        }
        for (name, config) in &self.schedulers {
            write_json(&folder.join(name).join("scheduler_config.json"), config);
        }
    }

    /// Replaces the scheduler of a folder by a picture's.
    pub fn write_scheduler(folder: &Path, scheduler: &PictureScheduler) {
        let mut config = scheduler.config.clone();
        config["_class_name"] = json!(scheduler.class);
        write_json(&folder.join("scheduler/scheduler_config.json"), &config);
    }

    /// Writes the model as the original checkpoint, in one file.
    pub fn write_single_file(&self, path: &Path, precision: Precision) {
        let shapes = self.shapes();
        let of = |full: &String| {
            let (component, name) = full.split_once('/').unwrap();
            values(component, name, &shapes[full])
        };
        let rows = self.single_file.as_ref().expect("a family with single files");
        let tensors = rows.iter().map(|(name, shape, how, from)| {
            let (dtype, bytes) = match how.as_str() {
                "same" | "reshape" => (precision.name(), precision.bytes(&of(&from[0]))),
                "concat" => {
                    (precision.name(), precision.bytes(&from.iter().flat_map(of).collect::<Vec<_>>()))
                }
                "transpose" => {
                    let (rows, columns) = (shape[0], shape[1]);
                    let matrix = of(&from[0]);
                    let turned = (0..rows * columns).map(|at| matrix[at % columns * rows + at / columns]);
                    (precision.name(), precision.bytes(&turned.collect::<Vec<_>>()))
                }
                "extra" => extra(name, shape, &from[0], &from[1]),
                other => panic!("{name}: made by {other}"),
            };
            (name.clone(), dtype, shape.clone(), bytes)
        });
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, safetensors(tensors.collect())).unwrap();
    }
}

impl Input {
    /// Its shape and elements, integers too as floats.
    pub fn elements(&self) -> (Vec<usize>, Vec<f32>, &str) {
        match self {
            Self::Seeded { shape, seed, scale } => {
                let mut data = vec![0.0; shape.iter().product()];
                TorchCpu::new(*seed).fill_normal(&mut data);
                data.iter_mut().for_each(|x| *x *= scale);
                (shape.clone(), data, "F32")
            }
            Self::Outright { values, dtype } => {
                let (mut shape, mut level) = (Vec::new(), values);
                while let Value::Array(items) = level {
                    shape.push(items.len());
                    level = &items[0];
                }
                let mut data = Vec::new();
                flatten(values, &mut data);
                (shape, data, dtype)
            }
        }
    }
}

/// A picture to draw from, as `export/checkpoints/values.py` makes it of a seed.
pub fn init(record: &Value) -> RgbImage {
    let number = |key: &str| record[key].as_u64().unwrap();
    let (width, height) = (number("width") as u32, number("height") as u32);
    let mut noise = vec![0.0; 3 * (width * height) as usize];
    TorchCpu::new(number("seed")).fill_normal(&mut noise);
    let bytes = noise.iter().map(|x| (127.5 + 64.0 * x).round_ties_even().clamp(0.0, 255.0) as u8);
    RgbImage::from_vec(width, height, bytes.collect()).unwrap()
}

/// A mask that is white in a box.
pub fn mask(record: &Value) -> GrayImage {
    let number = |value: &Value| value.as_u64().unwrap() as u32;
    let [left, top, right, bottom] = [0, 1, 2, 3].map(|side| number(&record["box"][side]));
    GrayImage::from_fn(number(&record["width"]), number(&record["height"]), |x, y| {
        let is_inside = (left..right).contains(&x) && (top..bottom).contains(&y);
        image::Luma([if is_inside { 255 } else { 0 }])
    })
}

fn flatten(value: &Value, into: &mut Vec<f32>) {
    match value {
        Value::Array(items) => items.iter().for_each(|item| flatten(item, into)),
        number => into.push(number.as_f64().unwrap() as f32),
    }
}

impl Precision {
    fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::Bf16 => "BF16",
        }
    }

    pub fn bytes(self, values: &[f32]) -> Vec<u8> {
        match self {
            Self::F32 => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
            Self::F16 => values.iter().flat_map(|x| f16::from_f32(*x).to_le_bytes()).collect(),
            Self::Bf16 => values.iter().flat_map(|x| bf16::from_f32(*x).to_le_bytes()).collect(),
        }
    }
}

/// The values of a tensor, as `export/checkpoints/values.py` makes them.
pub fn values(component: &str, name: &str, shape: &[usize]) -> Vec<f32> {
    let count: usize = shape.iter().product();
    let hash = format!("{component}/{name}")
        .bytes()
        .fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    let mut noise = vec![0.0; count.min(PERIOD)];
    TorchCpu::new(hash.into()).fill_normal(&mut noise);
    let embeddings = ["token_embedding.weight", "position_embedding.weight", "class_embedding.weight"];
    let (offset, scale) = if shape.len() == 1 && name.ends_with(".weight") {
        (1.0, 0.1)
    } else if name.ends_with("bias") {
        (0.0, 0.05)
    } else if embeddings.iter().any(|end| name.ends_with(end)) {
        (0.0, 0.5)
    } else {
        (0.0, (1.0 / (shape.iter().skip(1).product::<usize>() as f64).sqrt()) as f32)
    };
    noise.iter_mut().for_each(|x| *x = offset + scale * *x);
    noise.into_iter().cycle().take(count).collect()
}

fn extra(name: &str, shape: &[usize], dtype: &str, fill: &str) -> (&'static str, Vec<u8>) {
    let count: usize = shape.iter().product();
    match (dtype, fill) {
        ("I64", "arange") => ("I64", (0..count as i64).flat_map(i64::to_le_bytes).collect()),
        ("F32", "weights") => ("F32", Precision::F32.bytes(&values("extra", name, shape))),
        ("I32", "zeros") => ("I32", vec![0; 4 * count]),
        ("F32", "zeros") => ("F32", vec![0; 4 * count]),
        other => panic!("{name}: filled with {other:?}"),
    }
}

/// CLIP's `vocab.json` and `merges.txt`, from the merges that calotype carries.
pub fn clip() -> (Vec<u8>, Vec<u8>) {
    let packed: &[u8] = include_bytes!("../../models/tokenizer/clip_merges.txt.gz");
    let mut merges = String::new();
    GzDecoder::new(packed).read_to_string(&mut merges).unwrap();
    let lines: Vec<&str> = merges.lines().collect();
    assert_eq!(lines.len(), 48_894);
    // The bytes as GPT-2 writes them: printable ones as themselves, the others from U+0100 on.
    let printable: Vec<u8> = (b'!'..=b'~').chain(0xa1..=0xac).chain(0xae..=0xff).collect();
    let mut words: Vec<String> = printable.iter().map(|&byte| char::from(byte).to_string()).collect();
    let others = (0..=255u8).filter(|byte| !printable.contains(byte)).count() as u32;
    words.extend((0..others).map(|n| char::from_u32(256 + n).unwrap().to_string()));
    let ends: Vec<String> = words.iter().map(|word| format!("{word}</w>")).collect();
    words.extend(ends);
    words.extend(lines.iter().map(|line| line.split_whitespace().collect::<String>()));
    words.extend(["<|startoftext|>".into(), "<|endoftext|>".into()]);
    let table: serde_json::Map<String, Value> =
        words.into_iter().enumerate().map(|(id, word)| (word, id.into())).collect();
    let merges = format!("#version: 0.2\n{}\n", lines.join("\n"));
    (serde_json::to_vec(&table).unwrap(), merges.into_bytes())
}

type Stored = (String, &'static str, Vec<usize>, Vec<u8>);

/// One file, or several with an index.
fn write_shards(path: &Path, mut tensors: Vec<Stored>, shards: usize) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    if shards == 1 {
        return fs::write(path, safetensors(tensors)).unwrap();
    }
    let stem = path.file_name().unwrap().to_str().unwrap().strip_suffix(".safetensors").unwrap().to_owned();
    let (mut map, each) = (serde_json::Map::new(), tensors.len().div_ceil(shards));
    for shard in 1..=shards {
        let rest = tensors.split_off(each.min(tensors.len()));
        let name = format!("{stem}-{shard:05}-of-{shards:05}.safetensors");
        map.extend(tensors.iter().map(|(tensor, ..)| (tensor.clone(), json!(name))));
        fs::write(path.with_file_name(name), safetensors(tensors)).unwrap();
        tensors = rest;
    }
    write_json(&path.with_file_name(format!("{stem}.safetensors.index.json")), &json!({ "weight_map": map }));
}

/// The bytes of a safetensors file. Wide elements come first, so that all are aligned.
pub fn safetensors(mut tensors: Vec<Stored>) -> Vec<u8> {
    tensors.sort_by_key(|(_, dtype, ..)| match *dtype {
        "I64" => 0,
        "F32" | "I32" => 1,
        _ => 2,
    });
    let (mut header, mut end) = (serde_json::Map::new(), 0);
    for (name, dtype, shape, bytes) in &tensors {
        let begin = end;
        end += bytes.len();
        header.insert(name.clone(), json!({ "dtype": dtype, "shape": shape, "data_offsets": [begin, end] }));
    }
    let mut json = serde_json::to_vec(&header).unwrap();
    json.resize(json.len().next_multiple_of(8), b' ');
    let mut file = (json.len() as u64).to_le_bytes().to_vec();
    file.extend(json);
    tensors.iter().for_each(|(.., bytes)| file.extend(bytes));
    file
}

pub fn write_json(path: &Path, value: &Value) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, serde_json::to_vec(value).unwrap()).unwrap();
}

pub fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

/// A folder of a test's own that is gone with it.
pub fn scratch() -> TempDir {
    tempfile::tempdir().unwrap()
}
