//! Single-file checkpoints against the originals that diffusers reads: `tests/golden/checkpoints`, written by
//! `export/golden_checkpoints.py`.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;

use calotype::architecture::unet;
use calotype::checkpoint::{self, Checkpoint, Family, Names, Part, Purpose};
use calotype::weights::{Stored, Weights};
use flate2::read::GzDecoder;
use serde_json::{Value, json};

#[test]
fn every_original_is_recognised_down_to_the_last_tensor() {
    let mut seen = BTreeMap::new();
    for golden in golden().iter().filter(|golden| golden["single_file"].is_array()) {
        let name = golden["family"].as_str().unwrap();
        let weights = weights(&original(golden));
        let checkpoint = checkpoint::recognise(&weights, name).unwrap();
        let parts = parts(&checkpoint);
        let published = golden["components"].as_object().unwrap();
        assert!(parts.keys().eq(published.keys()), "{name}: {:?}", parts.keys());
        for (component, part) in parts {
            let published = &published[component];
            assert_eq!(part.names, expected_names(golden, component), "{name}: {component}");
            assert_same_network(component, &part.config, &published["config"]);
            // Which also says that the file has every row that the table speaks of.
            let selected = weights.select(part.names.clone()).unwrap();
            for tensor in published["tensors"].as_array().unwrap() {
                let (tensor, shape) = (tensor[0].as_str().unwrap(), sizes(&tensor[1]));
                let got = selected.get(tensor).unwrap();
                let mut got_shape = got.shape().to_vec();
                got_shape[shape.len()..].iter().for_each(|size| assert_eq!(*size, 1, "{name}: {tensor}"));
                got_shape.truncate(shape.len());
                if got.is_transposed() {
                    got_shape.reverse();
                }
                assert_eq!(got_shape, shape, "{name}: {tensor}");
            }
        }
        seen.insert(name.to_owned(), (checkpoint.family, checkpoint.purpose));
    }
    let families = BTreeMap::from(
        [
            ("inpaint", Family::Sd1, Purpose::Inpaint),
            ("instruct-pix2pix", Family::Sd1, Purpose::Edit),
            ("lcm", Family::Sd1, Purpose::Generate),
            ("sd-turbo", Family::Sd2, Purpose::Generate),
            ("sd15", Family::Sd1, Purpose::Generate),
            ("sd21", Family::Sd2, Purpose::Generate),
            ("sd21-base", Family::Sd2, Purpose::Generate),
            ("sdxl", Family::Sdxl, Purpose::Generate),
            ("sdxl-refiner", Family::SdxlRefiner, Purpose::Generate),
            ("sdxl-turbo", Family::Sdxl, Purpose::Generate),
            ("ssd-1b", Family::Sdxl, Purpose::Generate),
            ("x4-upscaler", Family::Upscaler, Purpose::Upscale),
        ]
        .map(|(name, family, purpose)| (name.to_owned(), (family, purpose))),
    );
    assert_eq!(seen, families);
}

type Tensors = BTreeMap<String, Vec<usize>>;

/// Every family's golden record.
fn golden() -> Vec<Value> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/checkpoints");
    let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let records = files.filter(|path| path.extension().is_some_and(|extension| extension == "gz"));
    let records =
        records.map(|path| serde_json::from_reader(GzDecoder::new(File::open(path).unwrap())).unwrap());
    records.filter(|record: &Value| record["family"].is_string()).collect()
}

/// The tensors of a family's original file.
fn original(golden: &Value) -> Tensors {
    let rows = golden["single_file"].as_array().unwrap().iter();
    rows.map(|row| (row[0].as_str().unwrap().to_owned(), sizes(&row[1]))).collect()
}

/// Where a family's record says that a component's tensors are.
fn expected_names(golden: &Value, component: &str) -> Names {
    let mut names = Names::new();
    for row in golden["single_file"].as_array().unwrap() {
        let (original, how) = (row[0].as_str().unwrap(), row[2].as_str().unwrap());
        let of = row[3].as_array().unwrap();
        if how == "extra" {
            continue;
        }
        let rows = sizes(&row[1]).first().map_or(0, |rows| rows / of.len());
        for (part, of) in of.iter().enumerate() {
            let Some((owner, name)) = of.as_str().unwrap().split_once('/') else { panic!("{of}") };
            let mut stored = Stored::whole(original);
            stored.transposed = how == "transpose";
            stored.rows = (how == "concat").then(|| part * rows..(part + 1) * rows);
            if owner == component {
                names.insert(name.to_owned(), stored);
            }
        }
    }
    names
}

/// Whether a configuration means the same network as the published one.
fn assert_same_network(component: &str, got: &Value, published: &Value) {
    if component == "unet" {
        let read = |config: &Value| {
            let config = unet::Config::parse("unet", &serde_json::to_vec(config).unwrap()).unwrap();
            unet::Config { sample_size: None, ..config }
        };
        return assert_eq!(read(got), read(published));
    }
    for (key, value) in got.as_object().unwrap() {
        assert!(published.get(key).is_none_or(|published| published == value), "{component}: {key}: {value}");
    }
    // What follows from nothing but the file.
    let keys = match component {
        "vae" => {
            "in_channels out_channels block_out_channels layers_per_block latent_channels down_block_types"
        }
        _ => {
            "architectures hidden_size hidden_act intermediate_size max_position_embeddings num_attention_heads \
             num_hidden_layers vocab_size"
        }
    };
    keys.split_whitespace().for_each(|key| assert_eq!(got[key], published[key], "{component}: {key}"));
}

fn parts(checkpoint: &Checkpoint) -> BTreeMap<&str, &Part> {
    let parts = [
        ("unet", Some(&checkpoint.unet)),
        ("vae", checkpoint.vae.as_ref()),
        ("text_encoder", checkpoint.text_encoder.as_ref()),
        ("text_encoder_2", checkpoint.text_encoder_2.as_ref()),
    ];
    parts.into_iter().filter_map(|(name, part)| Some((name, part?))).collect()
}

/// A file of such tensors, all zeros; the file has a hole where they are.
fn weights(tensors: &Tensors) -> Weights {
    let mut end = 0;
    let mut header = serde_json::Map::new();
    for (name, shape) in tensors {
        let start = end;
        end += 4 * shape.iter().product::<usize>();
        header.insert(name.clone(), json!({"dtype": "F32", "shape": shape, "data_offsets": [start, end]}));
    }
    let mut header = serde_json::to_string(&header).unwrap();
    header.extend(std::iter::repeat_n(' ', header.len().next_multiple_of(8) - header.len()));
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(header.as_bytes()).unwrap();
    file.as_file().set_len((8 + header.len() + end) as u64).unwrap();
    Weights::open(&[file.path()]).unwrap()
}

fn sizes(value: &Value) -> Vec<usize> {
    value.as_array().unwrap().iter().map(|size| size.as_u64().unwrap() as usize).collect()
}
