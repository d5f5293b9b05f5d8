//! Components from files of their own: the same networks as those of the whole checkpoint, whatever names a file has.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use calotype::ErrorKind;
use calotype::model::{Model, Overrides, Part};
use calotype::pipeline::{Options, Pipeline};
use calotype::plan::{Budget, Plan};
use calotype::recipe::Recipe;
use calotype::request::Request;
use calotype::sampler::SamplerKind;
use calotype::tensor::PixelSize;
use calotype::weights::{Dtype, TensorView, Weights};

use super::golden::{Golden, Precision, safetensors, scratch};

/// Each component in a separate file, under the names of diffusers and under the original ones.
struct Files {
    whole: PathBuf,
    folder: PathBuf,
    diffusers: BTreeMap<&'static str, PathBuf>,
    original: BTreeMap<&'static str, PathBuf>,
}

const COMPONENTS: [&str; 4] = ["unet", "vae", "text_encoder", "text_encoder_2"];

impl Files {
    fn write(golden: &Golden, scratch: &Path, precision: Precision) -> Self {
        let (whole, folder) = (scratch.join("whole.safetensors"), scratch.join("folder"));
        golden.write_single_file(&whole, precision);
        golden.write_folder(&folder, precision, false, 1);
        let (mut diffusers, mut original) = (BTreeMap::new(), BTreeMap::new());
        let weights = Weights::open(&[&whole]).unwrap();
        for component in COMPONENTS {
            let Some(file) = fs::read_dir(folder.join(component)).into_iter().flatten().find_map(|entry| {
                let path = entry.unwrap().path();
                path.extension().is_some_and(|e| e == "safetensors").then_some(path)
            }) else {
                continue;
            };
            let copy = scratch.join(format!("{component}_diffusers.safetensors"));
            fs::copy(file, &copy).unwrap();
            diffusers.insert(component, copy);
            let prefixes: &[&str] = match component {
                "unet" => &["model.diffusion_model."],
                "vae" => &["first_stage_model."],
                "text_encoder" => &[
                    "cond_stage_model.transformer.",
                    "cond_stage_model.",
                    "conditioner.embedders.0.transformer.",
                ],
                _ => &["conditioner.embedders.1."],
            };
            let prefix = prefixes
                .iter()
                .find(|prefix| weights.iter().any(|(name, _)| name.starts_with(**prefix)))
                .unwrap();
            let alone = scratch.join(format!("{component}_original.safetensors"));
            write(&alone, &weights, |name| name.strip_prefix(*prefix).map(str::to_owned));
            original.insert(component, alone);
        }
        Self { whole, folder, diffusers, original }
    }
}

/// A file of the tensors that `rename` gives a name.
fn write(path: &Path, weights: &Weights, rename: impl Fn(&str) -> Option<String>) {
    let tensors = weights.iter().filter_map(|(name, tensor)| {
        Some((rename(name)?, tensor.dtype().name(), tensor.shape().to_vec(), tensor.to_bytes()))
    });
    fs::write(path, safetensors(tensors.collect())).unwrap();
}

fn overrides(files: &BTreeMap<&str, PathBuf>, components: &[&str]) -> Overrides {
    let file = |component: &str| files.get(component).filter(|_| components.contains(&component)).cloned();
    Overrides {
        unet: file("unet"),
        vae: file("vae"),
        text_encoders: ["text_encoder", "text_encoder_2"].into_iter().filter_map(file).collect(),
        variant: None,
    }
}

/// The data of a tensor, a matrix as `[out, in]`.
fn upright(tensor: &TensorView<'_>) -> Vec<u8> {
    let bytes = tensor.to_bytes();
    if !tensor.is_transposed() {
        return bytes;
    }
    let [rows, columns] = *tensor.shape() else { panic!("{:?}: not a matrix", tensor.shape()) };
    let size = tensor.dtype().size_bytes();
    let element = |at: usize| &bytes[(at % rows * columns + at / rows) * size..][..size];
    (0..rows * columns).flat_map(element).copied().collect()
}

#[track_caller]
fn same(what: &str, got: &Part, expected: &Part) {
    assert_eq!(got.name(), expected.name(), "{what}");
    assert!(got.graph().encode() == expected.graph().encode(), "{what}: {}: another graph", got.name());
    for parameter in expected.graph().parameters() {
        let [got, expected] = [got, expected].map(|part| part.weights().get(&parameter.name).unwrap());
        assert!(upright(&got) == upright(&expected), "{what}: {}", parameter.name);
    }
    got.bind().unwrap();
}

#[track_caller]
fn check(what: &str, got: &Model, expected: &Model) {
    assert_eq!(got.parts().count(), expected.parts().count(), "{what}");
    got.parts().zip(expected.parts()).for_each(|(got, expected)| same(what, got, expected));
    assert_eq!(got.manifest().latents.scale, expected.manifest().latents.scale, "{what}");
    assert_eq!(got.manifest().prediction, expected.manifest().prediction, "{what}");
}

#[test]
fn models_are_put_together_from_files_of_one_component_each() {
    for family in ["sd15", "lcm", "sd21-base", "sdxl"] {
        let (golden, scratch) = (Golden::open(family), scratch());
        let files = Files::write(&golden, scratch.path(), Precision::F32);
        let whole = Model::open(&files.whole).unwrap();
        let others = ["vae", "text_encoder", "text_encoder_2"];
        for (names, mut set) in [("diffusers", files.diffusers.clone()), ("original", files.original.clone())]
        {
            // The names of transformers do not tell OpenCLIP's activation: its width does, which is that of no narrow model.
            if family == "sd21-base" {
                set.insert("text_encoder", files.original["text_encoder"].clone());
            }
            let set = &set;
            let what = format!("{family}: {names}");
            // The U-Net as the model, and all else beside it.
            check(&what, &Model::open_with(Some(&set["unet"]), &overrides(set, &others)).unwrap(), &whole);
            // One after another in the place of those of other forms of the model.
            for component in COMPONENTS {
                let overrides = overrides(set, &[component]);
                check(&what, &Model::open_with(Some(&files.whole), &overrides).unwrap(), &whole);
                check(
                    &what,
                    &Model::open_with(Some(&files.folder), &overrides).unwrap(),
                    &Model::open(&files.folder).unwrap(),
                );
            }
            // A folder that lacks what is given.
            let bare = scratch.path().join(format!("bare_{names}"));
            for name in ["scheduler", "tokenizer", "tokenizer_2"] {
                for entry in fs::read_dir(files.folder.join(name)).into_iter().flatten() {
                    fs::create_dir_all(bare.join(name)).unwrap();
                    let entry = entry.unwrap();
                    fs::copy(entry.path(), bare.join(name).join(entry.file_name())).unwrap();
                }
            }
            fs::copy(files.folder.join("model_index.json"), bare.join("model_index.json")).unwrap();
            check(&what, &Model::open_with(Some(&bare), &overrides(set, &COMPONENTS)).unwrap(), &whole);
        }
    }
}

/// The file is used, not the model's own.
#[test]
fn what_is_given_replaces_what_is_there() {
    let (golden, scratch) = (Golden::open("sd15"), scratch());
    let (half, full) = (scratch.path().join("half"), scratch.path().join("full"));
    [&half, &full].iter().for_each(|folder| fs::create_dir(folder).unwrap());
    let (half, full) =
        (Files::write(&golden, &half, Precision::F16), Files::write(&golden, &full, Precision::F32));
    for model in [&full.whole, &full.folder] {
        for component in &COMPONENTS[..3] {
            let model = Model::open_with(Some(model), &overrides(&half.original, &[component])).unwrap();
            for part in model.parts() {
                let is_given = part.name().starts_with(component);
                let expected = if is_given { Dtype::F16 } else { Dtype::F32 };
                assert_eq!(part.weights().iter().next().unwrap().1.dtype(), expected, "{}", part.name());
            }
        }
    }
}

#[test]
fn prefixes_of_other_programs_are_understood() {
    let (golden, scratch) = (Golden::open("sdxl"), scratch());
    let files = Files::write(&golden, scratch.path(), Precision::F32);
    let whole = Model::open(&files.whole).unwrap();
    let open = |component: &str| Weights::open(&[&files.diffusers[component]]).unwrap();
    let renamed = scratch.path().join("renamed.safetensors");
    let wrapped = Weights::open(&[&files.whole]).unwrap();
    write(&renamed, &wrapped, |name| Some(format!("state_dict.{name}")));
    check("state_dict.", &Model::open(&renamed).unwrap(), &whole);
    write(&renamed, &wrapped, |name| {
        Some(
            name.replace(".mid.attn_1.q.", ".mid.attn_1.to_q.")
                .replace(".mid.attn_1.k.", ".mid.attn_1.to_k.")
                .replace(".mid.attn_1.v.", ".mid.attn_1.to_v.")
                .replace(".mid.attn_1.proj_out.", ".mid.attn_1.to_out.0."),
        )
    });
    check("to_q", &Model::open(&renamed).unwrap(), &whole);
    for prefix in ["clip_g.", "clip_g.transformer.", "text_encoders.clip_g.transformer.", "text_encoder_2."] {
        write(&renamed, &open("text_encoder_2"), |name| Some(format!("{prefix}{name}")));
        let overrides = Overrides { text_encoders: vec![renamed.clone()], ..Overrides::default() };
        check(prefix, &Model::open_with(Some(&files.whole), &overrides).unwrap(), &whole);
    }
    for prefix in ["diffusion_model.", "net."] {
        let original = Weights::open(&[&files.original["unet"]]).unwrap();
        write(&renamed, &original, |name| {
            Some(format!("{prefix}{}", name.strip_prefix("model.diffusion_model.").unwrap_or(name)))
        });
        let overrides = Overrides { unet: Some(renamed.clone()), ..Overrides::default() };
        check(prefix, &Model::open_with(Some(&files.whole), &overrides).unwrap(), &whole);
    }
    write(&renamed, &open("text_encoder"), |name| Some(format!("transformer.{name}")));
    let overrides = Overrides { text_encoders: vec![renamed.clone()], ..Overrides::default() };
    check("transformer.", &Model::open_with(Some(&files.whole), &overrides).unwrap(), &whole);
    // CLIP's other half is left aside, and an encoder of the other kind takes its own place.
    let mut tensors: Vec<_> = open("text_encoder")
        .iter()
        .map(|(name, tensor)| {
            (name.to_owned(), tensor.dtype().name(), tensor.shape().to_vec(), tensor.to_bytes())
        })
        .collect();
    for name in ["vision_model.encoder.layers.0.mlp.fc1.weight", "visual_projection.weight", "logit_scale"] {
        tensors.push((name.into(), "F32", vec![1], vec![0; 4]));
    }
    fs::write(&renamed, safetensors(tensors)).unwrap();
    let overrides = Overrides {
        text_encoders: vec![files.diffusers["text_encoder_2"].clone(), renamed],
        ..Overrides::default()
    };
    check("vision_model.", &Model::open_with(Some(&files.whole), &overrides).unwrap(), &whole);
}

#[test]
fn what_does_not_fit_is_refused() {
    let scratch = scratch();
    let files = |family: &str| {
        let folder = scratch.path().join(family);
        fs::create_dir(&folder).unwrap();
        Files::write(&Golden::open(family), &folder, Precision::F16)
    };
    let (sd15, sdxl) = (files("sd15"), files("sdxl"));
    let refused = |model: &Path, overrides: Overrides, message: &str| {
        let error = Model::open_with(Some(model), &overrides).expect_err(message);
        assert_eq!(error.kind(), ErrorKind::Model, "{error}");
        assert!(error.to_string().contains(message), "expected {message:?} in: {error}");
    };
    refused(&sd15.whole, overrides(&sdxl.original, &["unet"]), "expected text encoders whose states are");
    refused(&sd15.folder, overrides(&sdxl.original, &["unet"]), "expected text encoders whose states are");
    refused(
        &sd15.original["unet"],
        Overrides::default(),
        "got a Stable Diffusion 1 without its text encoder and VAE; add what is missing with `text_encoder` and `vae`",
    );
    refused(&sd15.original["unet"], overrides(&sd15.original, &["vae"]), "without its text encoder; ");
    refused(
        &sdxl.diffusers["unet"],
        overrides(&sdxl.original, &["vae", "text_encoder"]),
        "without its other text encoder",
    );
    refused(
        &sd15.whole,
        overrides(&BTreeMap::from([("unet", sd15.original["vae"].clone())]), &["unet"]),
        "a VAE alone",
    );
    refused(
        &sd15.whole,
        overrides(&BTreeMap::from([("vae", sd15.original["unet"].clone())]), &["vae"]),
        "expected a VAE, got",
    );
    refused(
        &sd15.whole,
        overrides(&BTreeMap::from([("text_encoder", sd15.original["vae"].clone())]), &["text_encoder"]),
        "expected a CLIP text encoder, got",
    );
}

/// A tiny decoder, as a folder and as files of both layouts, draws at the end of a run what the same decoder makes of the image,
/// which `folder` compares with diffusers' AutoencoderTiny. A plan counts it; one of other latents is refused by name.
#[test]
fn previews_are_decoded_by_a_tiny_autoencoder() {
    let golden = Golden::open("sd15-taesd");
    let scratch = scratch();
    let folder = scratch.path().join("folder");
    golden.write_folder(&folder, Precision::F32, false, 1);
    let alone = folder.join("vae/diffusion_pytorch_model.safetensors");
    let weights = Weights::open(&[&alone]).unwrap();
    let original = |prefix: &'static str| {
        move |name: &str| {
            let (layer, rest) = name.strip_prefix("decoder.layers.")?.split_once('.')?;
            Some(format!("{prefix}{}.{rest}", layer.parse::<usize>().unwrap() + 1))
        }
    };
    let (bare, prefixed) =
        (scratch.path().join("taesd_decoder.safetensors"), scratch.path().join("vae.safetensors"));
    write(&bare, &weights, original(""));
    write(&prefixed, &weights, original("taesd_decoder."));

    let open = |decoder: &Path| {
        let mut model = Model::open(&folder).unwrap();
        model.decode_previews_by(decoder).map(|()| model)
    };
    let recipe = Recipe {
        prompt: "a red apple".into(),
        size: Some(PixelSize::new(64, 64).unwrap()),
        steps: Some(2),
        seed: Some(1),
        sampler: Some(SamplerKind::Euler.into()),
        ..Recipe::default()
    };
    let session = Options::default().session;
    for decoder in [&folder.join("vae"), &alone, &bare, &prefixed] {
        let model = open(decoder).unwrap();
        let request = Request::new(recipe.clone(), &model).unwrap();
        let mut pipeline = Pipeline::open(&model, &Options::default()).unwrap();
        let mut run = pipeline.begin(&request).unwrap();
        run.step().unwrap();
        let first = run.preview().unwrap().unwrap();
        run.step().unwrap();
        let last = run.preview().unwrap().unwrap();
        let image = run.finish().unwrap().image;
        assert_eq!(last.dimensions(), (64, 64));
        let worst = |preview: &image::RgbImage| {
            preview.iter().zip(image.iter()).map(|(a, b)| a.abs_diff(*b)).max().unwrap()
        };
        assert!(worst(&last) <= 1, "{}: {} levels off", decoder.display(), worst(&last));
        assert!(worst(&first) > 1, "a step changes nothing");
    }

    let (model, without) = (open(&bare).unwrap(), Model::open(&folder).unwrap());
    let request = Request::new(recipe, &model).unwrap();
    let plan = |model, bytes| Plan::new(model, &request, &session, Budget::of_bytes(bytes));
    let planned = plan(&model, 1 << 40).unwrap();
    let decoder = planned.stages().last().unwrap();
    assert_eq!(decoder.stage, "preview_decoder");
    let unplanned = plan(&without, 1 << 40).unwrap();
    assert!(decoder.weights_bytes > 0 && decoder.activations_bytes > 0);
    let options = |plan| Options { session: session.clone(), plan: Some(plan) };
    let error = Pipeline::open(&model, &options(unplanned)).err().unwrap();
    assert!(
        error.to_string().starts_with("plan: expected one with the model's decoder of previews"),
        "{error}"
    );
    let least = plan(&model, planned.least_bytes() + (96 << 20)).unwrap();
    let mut pipeline = Pipeline::open(&model, &options(least)).unwrap();
    let mut run = pipeline.begin(&request).unwrap();
    run.step().unwrap();
    assert!(run.preview().unwrap().is_some());

    let other = scratch.path().join("other");
    Golden::open("sd15-flow16").write_folder(&other, Precision::F32, false, 1);
    let refusal = |decoder: &Path, model: &Path| {
        Model::open(model).unwrap().decode_previews_by(decoder).unwrap_err().to_string()
    };
    let error = refusal(&bare, &other);
    assert!(
        error.contains("taesd_decoder.safetensors: expected a decoder of 16 latent channels and "),
        "{error}"
    );
    let error = refusal(&folder.join("unet/diffusion_pytorch_model.safetensors"), &folder);
    assert!(
        error.contains(": expected the decoder of a tiny autoencoder (TAESD), got other weights"),
        "{error}"
    );
    assert!(
        refusal(&other.join("vae"), &folder).contains("_class_name: expected AutoencoderTiny"),
        "{error}"
    );
    let cut = scratch.path().join("cut.safetensors");
    write(&cut, &weights, |name| original("")(name).filter(|name| !name.starts_with("12.")));
    assert!(refusal(&cut, &folder).contains("decoder.layers.11."), "{}", refusal(&cut, &folder));
}
