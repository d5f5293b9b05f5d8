//! Checkpoints in single files: real tables with made-up changes. What is recognised has every weight of the graphs that
//! are derived from it, and is bound to them unless a shape was changed.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::sync::{Arc, OnceLock};

use calotype::Error;
use calotype::architecture::clip::States;
use calotype::checkpoint::{self, Names};
use calotype::graph::Graph;
use calotype::weights::Weights;
use flate2::read::GzDecoder;

use super::file::{self, Choices};

/// Per tensor its name and shape.
type Table = Vec<(String, Vec<usize>)>;

const CHECKPOINTS: [&[u8]; 5] = [
    include_bytes!("../../golden/checkpoints/sd15.json.gz"),
    include_bytes!("../../golden/checkpoints/sd21.json.gz"),
    include_bytes!("../../golden/checkpoints/sdxl.json.gz"),
    include_bytes!("../../golden/checkpoints/sdxl-refiner.json.gz"),
    include_bytes!("../../golden/checkpoints/inpaint.json.gz"),
];

pub fn run(bytes: &[u8]) {
    let mut choices = Choices(bytes);
    let mut table = tables()[choices.below(CHECKPOINTS.len())].clone();
    let dtype = ["F16", "F32", "BF16"][choices.below(3)];
    let is_whole = choices.0.is_empty();
    while !choices.0.is_empty() && !table.is_empty() {
        change(&mut table, &mut choices);
    }
    let Some(weights) = written(&table, dtype) else { return };
    let found = match checkpoint::recognise(&weights, "file") {
        Ok(found) => found,
        Err(error) if is_whole => panic!("a published table: {error}"),
        Err(_) => return,
    };
    let bind = |graph: Result<Graph, Error>, names: &Names| {
        let selected = weights.select(names.clone()).expect("names of tensors that are there");
        // A graph checks the sizes that its configuration took from the shapes.
        let bound = graph.and_then(|graph| graph.bind(Arc::new(selected)));
        if let Err(error) = bound {
            let is_size =
                ["expected shape", "expected 1 to ", "expected an odd number", "expected more than"]
                    .iter()
                    .any(|what| error.to_string().contains(what));
            assert!(!is_whole && is_size, "{error}");
        }
    };
    bind(found.unet.config.graph(), &found.unet.names);
    if let Some(vae) = &found.vae {
        bind(vae.config.encoder(), &vae.names);
        bind(vae.config.decoder(), &vae.names);
    }
    for text in [&found.text_encoder, &found.text_encoder_2].into_iter().flatten() {
        bind(text.config.graph(States::Last, false), &text.names);
    }
}

fn change(table: &mut Table, choices: &mut Choices<'_>) {
    let at = choices.below(table.len());
    match choices.byte() % 8 {
        0 => {
            table.remove(at);
        }
        1 => {
            let (name, shape) = table[at].clone();
            table.push((format!("{name}x"), shape));
        }
        2 => {
            let other = choices.below(table.len());
            let shape = table[other].1.clone();
            table[at].1 = shape;
        }
        3 if !table[at].1.is_empty() => {
            let axis = choices.below(table[at].1.len());
            table[at].1[axis] = choices.below(4096);
        }
        4 => table[at].1.push(1),
        5 => {
            table[at].1.pop();
        }
        6 => {
            // A whole block, or a layer of it.
            let depth = 1 + choices.below(6);
            let prefix: String = table[at].0.split_inclusive('.').take(depth).collect();
            table.retain(|(name, _)| !name.starts_with(&prefix));
        }
        _ => {
            let (old, new) =
                [("in_layers", "out_layers"), ("0", "1"), ("1", "2"), ("2", "10"), ("attn1", "attn2")]
                    [choices.below(5)];
            table[at].0 = table[at].0.replacen(old, new, 1);
        }
    }
}

/// A file whose data is a hole.
fn written(table: &Table, dtype: &str) -> Option<Weights> {
    let size_bytes = if dtype == "F32" { 4 } else { 2 };
    let (mut header, mut end) = (serde_json::Map::new(), 0_usize);
    for (name, shape) in table {
        let begin = end;
        end += shape.iter().try_fold(size_bytes, |bytes: usize, size| bytes.checked_mul(*size))?;
        let entry = serde_json::json!({ "dtype": dtype, "shape": shape, "data_offsets": [begin, end] });
        header.insert(name.clone(), entry);
    }
    // Names that are there twice would leave a hole.
    if header.len() != table.len() || end > 1 << 36 {
        return None;
    }
    let mut json = serde_json::to_vec(&header).ok()?;
    json.resize(json.len().next_multiple_of(8), b' ');
    let mut file = file::holding(&(json.len() as u64).to_le_bytes());
    file.write_all(&json).ok()?;
    file.as_file().set_len((8 + json.len() + end) as u64).ok()?;
    Some(Weights::open(&[file.path()]).expect("a whole table"))
}

fn tables() -> &'static [Table] {
    static TABLES: OnceLock<Vec<Table>> = OnceLock::new();
    TABLES.get_or_init(|| {
        let read = |packed: &&[u8]| {
            let mut json = Vec::new();
            GzDecoder::new(*packed).read_to_end(&mut json).expect("a golden file");
            let golden: serde_json::Value = serde_json::from_slice(&json).expect("a golden file");
            let rows = golden["single_file"].as_array().expect("a family with single files");
            let row = |row: &serde_json::Value| -> (String, Vec<usize>) {
                let shape = row[1].as_array().expect("a shape").iter();
                let shape = shape.map(|size| size.as_u64().expect("a size") as usize);
                (row[0].as_str().expect("a name").to_owned(), shape.collect())
            };
            rows.iter().map(row).collect::<BTreeMap<_, _>>().into_iter().collect()
        };
        CHECKPOINTS.iter().map(read).collect()
    })
}
