//! LoRA and textual inversion on every form of a model: what they change is the same, whatever the weights came from.

use std::collections::BTreeMap;
use std::fs;
use std::ops::ControlFlow;
use std::path::Path;

use calotype::ErrorKind;
use calotype::adapter::embedding::Embedding;
use calotype::adapter::lora::Lora;
use calotype::model::Model;
use calotype::pipeline::Pipeline;
use calotype::prompt::Text;
use calotype::recipe::Recipe;

use super::golden::{Golden, Precision, safetensors, scratch, values};
use super::{distance, onnx, options};

const RANK: usize = 2;
/// Two graphs of the same arithmetic.
const TOLERANCE: f64 = 1e-4;

#[test]
fn folder_and_single_file_take_the_same_lora() {
    let (golden, scratch) = (Golden::open("sd15"), scratch());
    let (folder, file) = (scratch.path().join("folder"), scratch.path().join("model.safetensors"));
    golden.write_folder(&folder, Precision::F32, true, 1);
    golden.write_single_file(&file, Precision::F32);
    let lora = scratch.path().join("lora.safetensors");
    write_lora(&lora, &golden.shapes());

    let plain = draw(Model::open(&folder).unwrap(), "a red apple");
    let of_folder = draw(with_lora(&folder, &lora, 0.5), "a red apple");
    assert!(distance(&of_folder, &plain) > 0.01, "the file has no effect");
    assert!(distance(&draw(with_lora(&folder, &lora, 1.0), "a red apple"), &of_folder) > 0.01);
    assert_eq!(draw(with_lora(&folder, &lora, 0.0), "a red apple"), plain);

    // Both with the settings that a single file has.
    let scheduler = folder.join("scheduler/scheduler_config.json");
    let published = fs::read_to_string(&scheduler).unwrap();
    fs::write(scheduler, published.replacen('{', "{\"timestep_spacing\": \"leading\",", 1)).unwrap();
    assert_eq!(
        draw(with_lora(&file, &lora, 0.5), "a red apple"),
        draw(with_lora(&folder, &lora, 0.5), "a red apple")
    );
}

#[test]
fn optimum_folders_take_the_same_lora() {
    let (layout, onnx_folder) = onnx::open("optimum");
    let scratch = scratch();
    let (folder, lora) = (scratch.path().join("folder"), scratch.path().join("lora.safetensors"));
    layout.write_diffusers_folder(&folder);
    write_lora(&lora, &layout.tensors);

    let plain = draw(Model::open(&folder).unwrap(), "a red apple");
    assert!(distance(&draw(Model::open(onnx_folder.path()).unwrap(), "a red apple"), &plain) < TOLERANCE);
    let expected = draw(with_lora(&folder, &lora, 0.5), "a red apple");
    assert!(distance(&expected, &plain) > 0.01, "the file has no effect");
    let got = draw(with_lora(onnx_folder.path(), &lora, 0.5), "a red apple");
    let error = distance(&got, &expected);
    assert!(error < TOLERANCE, "relative error {error:.1e}");
}

#[test]
#[cfg(feature = "builtin")]
fn the_built_in_model_takes_a_lora() {
    use calotype::model::Adapted;

    let scratch = scratch();
    let lora = scratch.path().join("lora.safetensors");
    let model = Model::built_in().unwrap();
    let shapes = |name: &str, weights: &calotype::weights::Weights| {
        weights
            .iter()
            .map(|(tensor, view)| (format!("{name}/{tensor}"), view.shape().to_vec()))
            .collect::<Vec<_>>()
    };
    let mut tensors: BTreeMap<_, _> = shapes("unet", model.unet().weights()).into_iter().collect();
    tensors.extend(shapes("text_encoder", model.text_encoders()[0].weights()));
    write_lora(&lora, &tensors);
    let mut with = Model::built_in().unwrap();
    let adapted = with.add_loras(vec![(Lora::open(&lora).unwrap(), 0.5)]).unwrap();
    assert!(adapted.iter().all(|Adapted { tensors, .. }| *tensors > 0), "{adapted:?}");
    let whole: usize = with.unet().weights().iter().map(|(_, view)| view.len_bytes()).sum();
    let touched: usize = adapted.iter().map(|adapted| adapted.bytes).sum();
    assert!(touched * 2 < whole, "{touched} of {whole} bytes are copied");
    assert!(distance(&draw(with, "a red apple"), &draw(model, "a red apple")) > 0.01);
}

#[test]
fn a_lora_for_another_family_is_refused() {
    let scratch = scratch();
    let (sd21, folder) = (Golden::open("sd21"), scratch.path().join("folder"));
    sd21.write_folder(&folder, Precision::F16, false, 1);
    let lora = scratch.path().join("lora.safetensors");
    write_lora(&lora, &Golden::open("sd15").shapes());
    let mut model = Model::open(&folder).unwrap();
    let error = model.add_loras(vec![(Lora::open(&lora).unwrap(), 1.0)]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Model);
    assert!(error.to_string().contains("expected shape") || error.to_string().contains("not in"), "{error}");
}

#[test]
fn a_textual_inversion_stands_for_its_word() {
    let (golden, scratch) = (Golden::open("sdxl"), scratch());
    let folder = scratch.path().join("folder");
    golden.write_folder(&folder, Precision::F32, false, 1);
    // The vectors of "red" and "apple" under another name.
    let rows = |component: &str| {
        let shape = &golden.shapes()[&format!("{component}/text_model.embeddings.token_embedding.weight")];
        let table = values(component, "text_model.embeddings.token_embedding.weight", shape);
        let width = shape[1];
        let words = [736, 3055].map(|id: usize| table[id * width..][..width].to_vec()).concat();
        (vec![2, width], Precision::F32.bytes(&words))
    };
    let tokenizer = Model::open(&folder).unwrap().text_encoders()[0].tokenizer(77).unwrap();
    let encoded = tokenizer.encode(&Text::literal("red apple").unwrap(), 1).unwrap();
    assert_eq!(encoded.chunks[0].ids[1..3], [736, 3055]);
    let word = scratch.path().join("malus.safetensors");
    let tensors = [("clip_l", "text_encoder"), ("clip_g", "text_encoder_2")].map(|(name, component)| {
        let (shape, bytes) = rows(component);
        (name.to_owned(), "F32", shape, bytes)
    });
    fs::write(&word, safetensors(tensors.into())).unwrap();

    let plain = draw(Model::open(&folder).unwrap(), "a red apple, 4k");
    let mut model = Model::open(&folder).unwrap();
    model.add_embeddings(&Embedding::open(&word).unwrap()).unwrap();
    assert_eq!(draw(model, "a malus, 4k"), plain);
    assert!(distance(&draw(Model::open(&folder).unwrap(), "a malus, 4k"), &plain) > 0.01);
}

/// LoRA for some of the tensors "component/name", as kohya's trainers name them.
fn write_lora(path: &Path, tensors: &BTreeMap<String, Vec<usize>>) {
    let ends =
        ["attn1.to_q.weight", "attn2.to_k.weight", "self_attn.v_proj.weight", "resnets.0.conv1.weight"];
    let mut stored = Vec::new();
    for (full, shape) in tensors.iter().filter(|(name, _)| ends.iter().any(|end| name.ends_with(end))) {
        let (component, name) = full.split_once('/').unwrap();
        let prefix = match component {
            "unet" => "lora_unet",
            "text_encoder" => "lora_te",
            _ => continue,
        };
        let stem = format!("{prefix}_{}", name.strip_suffix(".weight").unwrap().replace('.', "_"));
        let (mut down, mut up) = (shape.clone(), vec![1; shape.len()]);
        (down[0], up[0], up[1]) = (RANK, shape[0], RANK);
        for (part, shape) in [("lora_down", down), ("lora_up", up)] {
            let name = format!("{stem}.{part}.weight");
            let bytes = Precision::F32.bytes(&values("lora", &name, &shape));
            stored.push((name, "F32", shape, bytes));
        }
        stored.push((format!("{stem}.alpha"), "F32", vec![], 1f32.to_le_bytes().to_vec()));
    }
    assert!(stored.len() > 9, "{}", stored.len());
    fs::write(path, safetensors(stored)).unwrap();
}

fn with_lora(path: &Path, lora: &Path, strength: f32) -> Model {
    let mut model = Model::open(path).unwrap();
    model.add_loras(vec![(Lora::open(lora).unwrap(), strength)]).unwrap();
    model
}

/// The latents after two steps.
fn draw(model: Model, prompt: &str) -> Vec<f32> {
    let mut pipeline = Pipeline::open(&model, &options()).unwrap();
    let draft = Recipe {
        prompt: prompt.into(),
        size: Some("64x64".parse().unwrap()),
        steps: Some(2),
        sampler: Some("euler".parse().unwrap()),
        seed: Some(1),
        ..Recipe::default()
    };
    let request = pipeline.request(draft).unwrap();
    pipeline.denoise(&request, |_| ControlFlow::Continue(())).unwrap()
}

/// A plan is of a model with its adapters: with larger ones the model is refused before anything is opened.
#[test]
fn adapters_behind_a_plan_are_refused() {
    use calotype::ErrorKind;
    use calotype::engine::SessionOptions;
    use calotype::pipeline::{Options, Pipeline};
    use calotype::plan::{Budget, Plan};
    use calotype::recipe::Recipe;
    use calotype::request::Request;

    let folder = super::golden::scratch();
    let golden = super::wide::sd15();
    let (place, file) = (folder.path().join("model"), folder.path().join("lora.safetensors"));
    golden.write_folder(&place, super::golden::Precision::F32, false, 1);
    super::wide::write_lora(&file, &golden.shapes(), 4);
    let adapted = || {
        let mut model = calotype::model::Model::open(&place).unwrap();
        model.add_loras(vec![(calotype::adapter::lora::Lora::open(&file).unwrap(), 1.0)]).unwrap();
        model
    };
    let (plain, adapted) = (calotype::model::Model::open(&place).unwrap(), adapted());
    let session = SessionOptions::new(std::num::NonZeroUsize::MIN);
    let plan = |model: &calotype::model::Model| {
        let request = Request::new(Recipe::default(), model).unwrap();
        Plan::new(model, &request, &session, Budget::of_bytes(u64::MAX)).unwrap()
    };
    let open = |model, plan| {
        Pipeline::open(model, &Options { session: session.clone(), plan: Some(plan) }).map(|_| ())
    };
    let error = open(&adapted, plan(&plain)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Memory);
    assert!(error.to_string().contains("expected adapters of at most 0 MiB"), "{error}");
    open(&adapted, plan(&adapted)).unwrap();
    open(&plain, plan(&adapted)).unwrap();
}
