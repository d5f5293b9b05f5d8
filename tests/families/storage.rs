//! Weights that are not stored as they are used: at odd offsets, in 8 bits, in blocks of GGUF. The networks are those of the
//! same numbers stored plainly, whole and in segments.

use std::collections::BTreeMap;
use std::fs;
use std::num::NonZeroUsize;
use std::path::Path;

use calotype::engine::{Residency, Session, SessionOptions, TensorRef};
use calotype::model::{Model, Overrides, Part};
use calotype::weights::{Dtype, Weights};
use half::f16;

use super::golden::{Golden, Precision, safetensors, scratch};

type Tensors = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

fn tensors(path: &Path) -> Tensors {
    let weights = Weights::open(&[path]).unwrap();
    let own = |(name, tensor): (&str, calotype::weights::TensorView<'_>)| {
        (name.to_owned(), (tensor.dtype(), tensor.shape().to_vec(), tensor.to_bytes()))
    };
    weights.iter().map(own).collect()
}

/// A safetensors file whose data begins at this remainder of eight.
fn write_at(path: &Path, tensors: &Tensors, remainder: usize) {
    let rows = tensors
        .iter()
        .map(|(name, (dtype, shape, bytes))| (name.clone(), dtype.name(), shape.clone(), bytes.clone()));
    let whole = safetensors(rows.collect());
    let (len, rest) = whole.split_at(8);
    let len = u64::from_le_bytes(len.try_into().unwrap()) as usize;
    let json = std::str::from_utf8(&rest[..len]).unwrap().trim_end();
    let header = format!("{json}{:pad$}", "", pad = (16 + remainder - json.len() % 8) % 8);
    assert_eq!(header.len() % 8, remainder);
    fs::write(path, [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &rest[len..]].concat())
        .unwrap();
}

/// A GGUF file, matrices of whole blocks as Q8_0 and all else as it is; gives the numbers that it means.
fn write_gguf(path: &Path, tensors: &Tensors) -> Tensors {
    let mut meant = Tensors::new();
    let (mut header, mut data) = (b"GGUF\x03\0\0\0".to_vec(), Vec::new());
    let text = |text: &str| [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat();
    header.extend((tensors.len() as u64).to_le_bytes());
    header.extend(1u64.to_le_bytes());
    header.extend([text("general.architecture"), 8u32.to_le_bytes().to_vec(), text("sd1")].concat());
    for (name, (dtype, shape, bytes)) in tensors {
        let is_blocks = *dtype == Dtype::F16 && shape.len() == 2 && shape[1] % 32 == 0;
        let (code, stored, value) = if is_blocks {
            let numbers: Vec<f32> =
                bytes.as_chunks().0.iter().map(|b| f16::from_le_bytes(*b).to_f32()).collect();
            let (mut stored, mut value) = (Vec::new(), Vec::new());
            for block in numbers.chunks(32) {
                let scale = f16::from_f32(block.iter().fold(0f32, |most, x| most.max(x.abs())) / 127.0);
                stored.extend(scale.to_le_bytes());
                for x in block {
                    let code = (x / scale.to_f32().max(1e-7)).round().clamp(-127.0, 127.0) as i8;
                    stored.push(code as u8);
                    value.extend(f16::from_f32(f32::from(code) * scale.to_f32()).to_le_bytes());
                }
            }
            (8u32, stored, value)
        } else {
            let code = match dtype {
                Dtype::F32 => 0,
                Dtype::F16 => 1,
                Dtype::I64 => 27,
                Dtype::I32 => 26,
                other => panic!("{other}"),
            };
            (code, bytes.clone(), bytes.clone())
        };
        header.extend(text(name));
        header.extend((shape.len() as u32).to_le_bytes());
        shape.iter().rev().for_each(|&dim| header.extend((dim as u64).to_le_bytes()));
        header.extend(code.to_le_bytes());
        header.extend((data.len() as u64).to_le_bytes());
        data.extend(stored);
        data.resize(data.len().next_multiple_of(32), 0);
        meant.insert(name.clone(), (*dtype, shape.clone(), value));
    }
    header.resize(header.len().next_multiple_of(32), 0);
    header.extend(data);
    fs::write(path, header).unwrap();
    meant
}

/// What a network computes of small inputs, whole or in segments.
fn computed(part: &Part, residency: Residency) -> Vec<Vec<f32>> {
    let options = SessionOptions { residency, ..SessionOptions::new(NonZeroUsize::MIN) };
    let mut session = Session::open(part.bind().unwrap(), &options).unwrap();
    let inputs: Vec<_> = session
        .inputs()
        .iter()
        .map(|port| {
            let shape: Vec<usize> = port
                .dims
                .iter()
                .enumerate()
                .map(|(axis, dim)| match dim {
                    calotype::graph::Dim::Fixed(size) => *size,
                    calotype::graph::Dim::Free(_) => [1, 4, 8, 8][axis.min(3)],
                })
                .collect();
            let count: usize = shape.iter().product();
            let floats: Vec<f32> = (0..count).map(|at| (at % 13) as f32 / 13.0 - 0.4).collect();
            let integers: Vec<i64> = (0..count as i64).map(|at| 49405 - at % 7).collect();
            (port.name.clone(), port.dtype, shape, floats, integers)
        })
        .collect();
    let feeds: Vec<_> = inputs
        .iter()
        .map(|(name, dtype, shape, floats, integers)| {
            let tensor = match dtype {
                Dtype::I64 => TensorRef::new(shape, &integers[..]),
                _ => TensorRef::new(shape, &floats[..]),
            };
            (name.as_str(), tensor)
        })
        .collect();
    let outputs: Vec<String> = session.outputs().iter().map(|port| port.name.clone()).collect();
    let names: Vec<&str> = outputs.iter().map(String::as_str).collect();
    session.compute(&feeds, &names).unwrap().into_iter().map(|output| output.data).collect()
}

const STREAMED: Residency = Residency::Streamed { segment_bytes: 64 << 10, resident_bytes: 128 << 10 };

#[track_caller]
fn same(what: &str, got: &Model, expected: &Model) {
    for (got, expected) in got.parts().zip(expected.parts()) {
        for residency in [Residency::Keep, Residency::PerStage, STREAMED] {
            let wanted = computed(expected, residency);
            assert!(wanted.iter().flatten().any(|x| *x != 0.0), "{what}: {}: zeros", got.name());
            assert!(computed(got, residency) == wanted, "{what}: {}: {residency:?}", got.name());
        }
    }
}

#[test]
fn headers_of_any_length() {
    let (golden, scratch) = (Golden::open("sd15"), scratch());
    let (whole, odd) = (scratch.path().join("whole.safetensors"), scratch.path().join("odd.safetensors"));
    for precision in [Precision::F32, Precision::F16] {
        golden.write_single_file(&whole, precision);
        let (tensors, expected) = (tensors(&whole), Model::open(&whole).unwrap());
        for remainder in 1..8 {
            write_at(&odd, &tensors, remainder);
            let got = Model::open(&odd).unwrap();
            let size = if precision == Precision::F32 { 4 } else { 2 };
            let copied: usize = got.parts().map(|part| part.weights().copied_bytes()).sum();
            assert_eq!(copied > 0, remainder % size != 0, "{remainder}");
            if [1, 2].contains(&remainder) {
                same(&format!("{precision:?} at {remainder}"), &got, &expected);
            } else {
                for part in got.parts() {
                    part.bind().unwrap();
                }
            }
        }
    }
}

#[test]
fn gguf_files_whole_and_of_one_network() {
    let scratch = scratch();
    for family in ["sd15", "sdxl"] {
        let golden = Golden::open(family);
        let path = |name: &str| scratch.path().join(name);
        golden.write_single_file(&path("plain.safetensors"), Precision::F16);
        let meant = write_gguf(&path("whole.gguf"), &tensors(&path("plain.safetensors")));
        write_at(&path("meant.safetensors"), &meant, 0);
        let expected = Model::open(&path("meant.safetensors")).unwrap();
        same(&format!("{family}: whole"), &Model::open(&path("whole.gguf")).unwrap(), &expected);

        // As converters of U-Nets write it.
        let start = "model.diffusion_model.";
        let unet: Tensors = tensors(&path("plain.safetensors"))
            .into_iter()
            .filter_map(|(name, tensor)| Some((name.strip_prefix(start)?.to_owned(), tensor)))
            .collect();
        write_gguf(&path("unet.gguf"), &unet);
        let overrides = Overrides { unet: Some(path("unet.gguf")), ..Overrides::default() };
        let got = Model::open_with(Some(&path("plain.safetensors")), &overrides).unwrap();
        let blocks = got.unet().weights().copied_bytes();
        assert!(blocks > 0);
        assert!(
            computed(got.unet(), STREAMED) == computed(expected.unet(), Residency::PerStage),
            "{family}: U-Net"
        );
    }
}

/// Floats of 8 bits with a scale for each layer, as ComfyUI writes them.
#[test]
fn scaled_floats_of_eight_bits() {
    let (golden, scratch) = (Golden::open("sd15"), scratch());
    let path = |name: &str| scratch.path().join(name);
    golden.write_single_file(&path("plain.safetensors"), Precision::F16);
    let (mut scaled, mut meant) = (Vec::new(), Tensors::new());
    scaled.push(("scaled_fp8".to_owned(), "F8_E4M3", vec![0], Vec::new()));
    for (name, (dtype, shape, bytes)) in tensors(&path("plain.safetensors")) {
        let module = name
            .strip_suffix(".weight")
            .filter(|_| shape.len() == 2 && name.starts_with("model.diffusion_model."));
        let Some(module) = module else {
            scaled.push((name.clone(), dtype.name(), shape.clone(), bytes.clone()));
            meant.insert(name, (dtype, shape, bytes));
            continue;
        };
        // Powers of two alone, so that the numbers are known without a second rounding.
        let codes: Vec<u8> = bytes
            .as_chunks()
            .0
            .iter()
            .map(|b| {
                let x = f16::from_le_bytes(*b).to_f32();
                let exponent = (x.abs().max(1e-4).log2().round() as i32 + 10).clamp(1, 14);
                (exponent as u8) << 3 | u8::from(x < 0.0) << 7
            })
            .collect();
        let scale = 2f32.powi(-3);
        let values = codes.iter().flat_map(|code| {
            let size = 2f32.powi(i32::from(code >> 3 & 15) - 7) * scale;
            f16::from_f32(if code & 0x80 == 0 { size } else { -size }).to_le_bytes()
        });
        meant.insert(name.clone(), (Dtype::F16, shape.clone(), values.collect()));
        scaled.push((format!("{module}.scale_weight"), "F32", vec![1], scale.to_le_bytes().to_vec()));
        scaled.push((format!("{module}.scale_input"), "F32", vec![], 1f32.to_le_bytes().to_vec()));
        scaled.push((name, "F8_E4M3", shape, codes));
    }
    fs::write(path("scaled.safetensors"), safetensors(scaled)).unwrap();
    write_at(&path("meant.safetensors"), &meant, 0);
    let [got, expected] =
        ["scaled", "meant"].map(|name| Model::open(&path(&format!("{name}.safetensors"))).unwrap());
    assert!(computed(got.unet(), STREAMED) == computed(expected.unet(), STREAMED));
    assert!(got.unet().weights().copied_bytes() > 0 && got.vae_decoder().weights().copied_bytes() == 0);
}

/// Latents of other numbers of channels: how they relate to images no file of weights says, but a folder's VAE does.
#[test]
fn latents_of_other_channels_need_a_configuration() {
    let (golden, scratch) = (Golden::open("sd15"), scratch());
    let path = scratch.path().join("model.safetensors");
    golden.write_single_file(&path, Precision::F16);
    let plain = tensors(&path);
    for channels in [3, 8, 16, 32] {
        let mut changed = plain.clone();
        let mut reshape = |name: &str, axes: &[(usize, usize)]| {
            let (_, shape, bytes) = changed.get_mut(name).unwrap_or_else(|| panic!("{name}"));
            axes.iter().for_each(|(axis, size)| shape[*axis] = *size);
            *bytes = vec![0; 2 * shape.iter().product::<usize>()];
        };
        reshape("model.diffusion_model.input_blocks.0.0.weight", &[(1, channels)]);
        reshape("model.diffusion_model.out.2.weight", &[(0, channels)]);
        reshape("model.diffusion_model.out.2.bias", &[(0, channels)]);
        for kind in ["weight", "bias"] {
            reshape(&format!("first_stage_model.encoder.conv_out.{kind}"), &[(0, 2 * channels)]);
            reshape(&format!("first_stage_model.quant_conv.{kind}"), &[(0, 2 * channels)]);
            reshape(&format!("first_stage_model.post_quant_conv.{kind}"), &[(0, channels)]);
        }
        reshape("first_stage_model.quant_conv.weight", &[(1, 2 * channels)]);
        reshape("first_stage_model.post_quant_conv.weight", &[(1, channels)]);
        reshape("first_stage_model.decoder.conv_in.weight", &[(1, channels)]);
        write_at(&path, &changed, 0);
        let error = Model::open(&path).expect_err("nothing tells the scale").to_string();
        let expected = format!(
            "expected latents of 4 channels, got {channels}, whose scale and shift a single file does not contain"
        );
        assert!(error.contains(&expected), "{error}");
        // The model's own VAE is of other latents than its U-Net.
        let mut mixed = plain.clone();
        mixed.extend(changed.into_iter().filter(|(name, _)| name.starts_with("model.diffusion_model.")));
        write_at(&path, &mixed, 0);
        assert!(Model::open(&path).unwrap_err().to_string().contains("expected a VAE of"), "{channels}");
    }
}

/// Types, sizes and names changed at random: a model or a message, never more.
#[test]
fn mutated_checkpoints_are_survived() {
    let (golden, scratch) = (Golden::open("sd15"), scratch());
    let path = scratch.path().join("model.safetensors");
    golden.write_single_file(&path, Precision::F16);
    // Without data: what is compared is names, shapes and types.
    let plain: Vec<(String, Vec<usize>)> =
        tensors(&path).into_iter().map(|(name, (_, shape, _))| (name, shape)).collect();
    let mut seed = 11u64;
    let mut random = move |below: usize| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        (seed % below as u64) as usize
    };
    let types = [
        ("F32", 4),
        ("F16", 2),
        ("BF16", 2),
        ("F8_E4M3", 1),
        ("F8_E5M2", 1),
        ("F64", 8),
        ("I8", 1),
        ("U8", 1),
        ("F8_E8M0", 1),
    ];
    let (mut opened, mut refused) = (0, 0);
    for round in 0..40 {
        let mut rows: Vec<(String, &str, Vec<usize>, usize)> =
            plain.iter().map(|(name, shape)| (name.clone(), "F16", shape.clone(), 2)).collect();
        let is_mixed = random(2) == 0;
        for row in &mut rows {
            if is_mixed {
                (row.1, row.3) = types[random(if round % 2 == 0 { 5 } else { types.len() })];
            }
        }
        for _ in 0..random(3) {
            let at = random(rows.len());
            match random(5) {
                0 => drop(rows.remove(at)),
                1 => rows[at].0 = rows[at].0.replace("weight", "weights"),
                2 => rows[at].2 = vec![0],
                3 => rows[at].0 = rows[at].0.replacen('1', "7", 1),
                _ => {
                    let name = rows[random(rows.len())].0.clone();
                    if rows.iter().all(|row| row.0 != format!("{name}.weight_scale")) {
                        rows[at].0 = format!("{name}.weight_scale");
                    }
                }
            }
        }
        rows.sort();
        rows.dedup_by(|a, b| a.0 == b.0);
        let rows = rows.into_iter().map(|(name, dtype, shape, size)| {
            let bytes = vec![0; size * shape.iter().product::<usize>()];
            (name, dtype, shape, bytes)
        });
        fs::write(&path, safetensors(rows.collect())).unwrap();
        match Model::open(&path).and_then(|model| model.parts().try_for_each(|part| part.bind().map(drop))) {
            Ok(()) => opened += 1,
            Err(error) => {
                assert_eq!(error.kind(), calotype::ErrorKind::Model, "{error}");
                refused += 1;
            }
        }
    }
    assert!(opened > 4 && refused > 10, "{opened} and {refused}");
}
