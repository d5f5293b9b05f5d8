//! A run as a value: what is cancelled, saved and restored in the middle ends as a run that was let alone.

#![cfg(feature = "builtin")]

use std::fs;
use std::ops::ControlFlow;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use calotype::ErrorKind;
use calotype::adapter::embedding::Embedding;
use calotype::adapter::lora::Lora;
use calotype::deadline::Deadline;
use calotype::engine::{Residency, SessionOptions};
use calotype::model::Model;
use calotype::noise::Rng;
use calotype::pipeline::{Options, Pipeline, Progress};
use calotype::plan::Plan;
use calotype::prediction::Prediction;
use calotype::recipe::Recipe;
use calotype::request::Request;
use calotype::sampler::SamplerKind;
use calotype::tensor::PixelSize;
use image::{Rgb, RgbImage};
use sha2::{Digest, Sha256};

fn pipeline(change: impl FnOnce(&mut SessionOptions)) -> Pipeline {
    let mut options = Options::default();
    change(&mut options.session);
    Pipeline::open(&Model::built_in().unwrap(), &options).unwrap()
}

fn draft() -> Recipe {
    let size = PixelSize::new(64, 64).ok();
    Recipe { prompt: "a red apple".into(), seed: Some(1), steps: Some(4), size, ..Recipe::default() }
}

fn request(pipeline: &Pipeline, draft: Recipe) -> Request {
    pipeline.request(draft).unwrap()
}

/// The latents at the end of a run, and of one that was begun anew from its snapshot after `at` steps.
fn whole_and_restored(pipeline: &mut Pipeline, request: &Request, at: usize) -> [Vec<f32>; 2] {
    let mut run = pipeline.begin(request).unwrap();
    let mut snapshot = Vec::new();
    while !run.is_done() {
        if run.progress().done == at {
            snapshot = run.snapshot().unwrap();
        }
        run.step().unwrap();
    }
    let whole = run.latents().to_vec();
    drop(run);
    let mut run = pipeline.restore(request, &snapshot).unwrap();
    assert_eq!(run.progress(), Progress { done: at, steps: request.steps() });
    run.steps(|_| ControlFlow::Continue(())).unwrap();
    [whole, run.latents().to_vec()]
}

#[test]
fn every_sampler_goes_on_from_a_snapshot() {
    let mut pipeline = pipeline(|_| {});
    for kind in SamplerKind::ALL {
        let request = request(&pipeline, Recipe { sampler: Some(kind.into()), ..draft() });
        for at in [1, 3] {
            let [whole, restored] = whole_and_restored(&mut pipeline, &request, at);
            assert_eq!(whole, restored, "{kind}, after {at} steps");
        }
    }
}

#[test]
fn every_generator_guidance_and_source_goes_on_from_a_snapshot() {
    let mut pipeline = pipeline(|_| {});
    let init = image::RgbImage::from_fn(64, 64, |x, y| image::Rgb([4 * x as u8, 4 * y as u8, 90]));
    let mask = image::GrayImage::from_fn(64, 64, |x, _| image::Luma([if x < 32 { 255 } else { 0 }]));
    let ancestral = || Recipe { sampler: Some(SamplerKind::EulerAncestral.into()), ..draft() };
    let by = |method: &str| Recipe { guidance_method: Some(method.parse().unwrap()), ..ancestral() };
    let churned = "euler:s_churn=20,noise=stream".parse().ok();
    for draft in [
        Recipe { rng: Some(Rng::Philox), ..ancestral() },
        Recipe { rng: Some(Rng::Numpy), ..ancestral() },
        Recipe { sampler: churned, ..draft() },
        Recipe { sampler: "dpm++2m-sde:noise=tree".parse().ok(), ..draft() },
        by("projected:momentum=-0.5"),
        by("residual:from=first-negative"),
        Recipe { init: Some(init.clone().into()), strength: Some(0.9), ..ancestral() },
        Recipe { init: Some(init.clone().into()), mask: Some(mask.clone().into()), ..ancestral() },
        Recipe {
            init: Some(init.clone().into()),
            mask: Some(mask.clone().into()),
            mask_blur: Some(9.0),
            soft_mask: Some(true),
            ..ancestral()
        },
        Recipe { init: Some(init.into()), mask: Some(mask.into()), mask_only: Some(4), ..ancestral() },
    ] {
        let request = request(&pipeline, draft);
        let [whole, restored] = whole_and_restored(&mut pipeline, &request, 2);
        assert_eq!(whole, restored, "{request:?}");
    }
}

#[test]
fn snapshots_of_another_run_are_refused() {
    let mut pipeline = pipeline(|_| {});
    let first = request(&pipeline, draft());
    let mut run = pipeline.begin(&first).unwrap();
    run.step().unwrap();
    let snapshot = run.snapshot().unwrap();
    drop(run);
    let mut refused = |draft: Recipe, snapshot: &[u8]| {
        let request = pipeline.request(draft).unwrap();
        let error = pipeline.restore(&request, snapshot).map(|_| ()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Input);
        error.to_string()
    };
    for other in [
        Recipe { prompt: "a green apple".into(), ..draft() },
        Recipe { seed: Some(2), ..draft() },
        Recipe { init: Some(image::RgbImage::new(64, 64).into()), strength: Some(1.0), ..draft() },
        Recipe { steps: Some(5), ..draft() },
        Recipe { guidance: Some(2.0.into()), ..draft() },
    ] {
        assert_eq!(
            refused(other, &snapshot),
            "snapshot: expected one made for this request and model, got one made for another"
        );
    }
    for at in (0..snapshot.len()).step_by(snapshot.len() / 50) {
        let mut damaged = snapshot.clone();
        damaged[at] ^= 1;
        assert!(refused(draft(), &damaged).contains("damaged or truncated"), "byte {at}");
        assert!(refused(draft(), &snapshot[..at]).contains("damaged or truncated"), "cut off at {at}");
    }
}

/// Files of tensors of 32-bit floats.
fn write(path: &Path, tensors: &[(&str, &[usize], f32)]) {
    let data = tensors.iter().map(|(name, shape, value)| {
        (*name, shape.to_vec(), value.to_le_bytes().repeat(shape.iter().product()))
    });
    let data: Vec<(&str, Vec<usize>, Vec<u8>)> = data.collect();
    let views = data.iter().map(|(name, shape, bytes)| {
        (*name, safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.clone(), bytes).unwrap())
    });
    fs::write(path, safetensors::serialize(views, &None).unwrap()).unwrap();
}

/// The latents of a run that goes on from a snapshot, or why it does not.
fn resumed(pipeline: &mut Pipeline, request: &Request, snapshot: &[u8]) -> Result<Vec<f32>, String> {
    let mut run = pipeline.restore(request, snapshot).map_err(|error| {
        assert_eq!(error.kind(), ErrorKind::Input);
        error.to_string()
    })?;
    run.steps(|_| ControlFlow::Continue(())).unwrap();
    Ok(run.latents().to_vec())
}

/// A seed that was random is known by its number when the run goes on.
#[test]
fn snapshots_of_a_random_seed_go_on_with_it_stated() {
    let mut pipeline = pipeline(|_| {});
    let random = pipeline.request(Recipe { seed: None, ..draft() }).unwrap();
    let mut run = pipeline.begin(&random).unwrap();
    run.step().unwrap();
    let snapshot = run.snapshot().unwrap();
    run.steps(|_| ControlFlow::Continue(())).unwrap();
    let whole = run.latents().to_vec();
    drop(run);
    let stated = pipeline.request(Recipe { seed: Some(random.seed()), ..draft() }).unwrap();
    assert_eq!(resumed(&mut pipeline, &stated, &snapshot).unwrap(), whole);
    let other = pipeline.request(Recipe { seed: Some(random.seed() ^ 1), ..draft() }).unwrap();
    resumed(&mut pipeline, &other, &snapshot).unwrap_err();
}

/// Only the same LoRA files in the same strength, and the same words, go on from a snapshot, wherever the files are.
#[test]
fn snapshots_of_a_model_with_other_additions_are_refused() {
    let folder = tempfile::TempDir::new().unwrap();
    let lora = |name: &str, value: f32| {
        let path = folder.path().join(name);
        let stem = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q";
        write(
            &path,
            &[
                (&format!("{stem}.lora_down.weight"), &[1, 96], value),
                (&format!("{stem}.lora_up.weight"), &[96, 1], 0.1),
            ],
        );
        Lora::open(&path).unwrap()
    };
    let word = |name: &str, value: f32| {
        let path = folder.path().join(name);
        write(&path, &[("emb_params", &[2, 192], value)]);
        Embedding::open(&path).unwrap()
    };
    let opened = |loras: Vec<(Lora, f32)>, words: &[Embedding]| {
        let mut model = Model::built_in().unwrap();
        if !loras.is_empty() {
            model.add_loras(loras).unwrap();
        }
        if !words.is_empty() {
            model.add_embeddings(words).unwrap();
        }
        Pipeline::open(&model, &Options::default()).unwrap()
    };
    let (one, same, other) = ("one.safetensors", "moved.safetensors", "other.safetensors");
    let mut first = opened(vec![(lora(one, 0.1), 0.5)], &word("ink.safetensors", 0.2));
    let request = first.request(draft()).unwrap();
    let mut run = first.begin(&request).unwrap();
    run.step().unwrap();
    let snapshot = run.snapshot().unwrap();
    run.steps(|_| ControlFlow::Continue(())).unwrap();
    let whole = run.latents().to_vec();
    let restored = |loras: Vec<(Lora, f32)>, words: &[Embedding]| {
        let mut pipeline = opened(loras, words);
        let request = pipeline.request(draft()).unwrap();
        resumed(&mut pipeline, &request, &snapshot)
    };
    let ink = || word("ink.safetensors", 0.2);
    assert_eq!(restored(vec![(lora(same, 0.1), 0.5)], &ink()), Ok(whole.clone()));
    // A share and a strength that multiply to the same.
    assert_eq!(restored(vec![(lora(same, 0.1).with_shares(1.0, 0.5), 1.0)], &ink()), Ok(whole));
    let refused = "snapshot: expected one made with this model's LoRA files, strengths, embeddings and clip skip, got one made with others";
    for (loras, words) in [
        (vec![], ink()),
        (vec![(lora(one, 0.1), 0.25)], ink()),
        (vec![(lora(other, 0.2), 0.5)], ink()),
        (vec![(lora(one, 0.1), 0.5), (lora(other, 0.2), 0.5)], ink()),
        (vec![(lora(one, 0.1).with_shares(1.0, 0.5), 0.5)], ink()),
        (vec![(lora(one, 0.1), 0.5)], vec![]),
        (vec![(lora(one, 0.1), 0.5)], word("ink.safetensors", 0.3)),
        (vec![(lora(one, 0.1), 0.5)], word("pen.safetensors", 0.2)),
    ] {
        assert_eq!(restored(loras, &words), Err(refused.to_owned()));
    }
}

/// Only the same weights go on from a snapshot, wherever they are.
#[test]
fn snapshots_of_other_weights_are_refused() {
    const UNET: &str = "weights/unet.safetensors";
    let source = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/models/builtin"));
    let folder = tempfile::TempDir::new().unwrap();
    // A copy of the model, with a byte of the U-Net's weights changed, and its hash.
    let bundle = |name: &str, change: u8| {
        let copy = folder.path().join(name);
        for part in ["graphs", "text_encoder", "weights"] {
            fs::create_dir_all(copy.join(part)).unwrap();
            for file in fs::read_dir(source.join(part)).unwrap().map(|file| file.unwrap().path()) {
                fs::copy(&file, copy.join(part).join(file.file_name().unwrap())).unwrap();
            }
        }
        let mut weights = fs::read(copy.join(UNET)).unwrap();
        let middle = weights.len() / 2;
        weights[middle] ^= change;
        fs::write(copy.join(UNET), &weights).unwrap();
        let manifest = fs::read_to_string(source.join("calotype.json")).unwrap();
        let mut manifest: serde_json::Value = serde_json::from_str(&manifest).unwrap();
        manifest["files"][UNET]["sha256"] = format!("{:x}", Sha256::digest(&weights)).into();
        fs::write(copy.join("calotype.json"), manifest.to_string()).unwrap();
        Pipeline::open(&Model::open(&copy).unwrap(), &Options::default()).unwrap()
    };
    let mut first = pipeline(|_| {});
    let request = request(&first, draft());
    let mut run = first.begin(&request).unwrap();
    run.step().unwrap();
    let snapshot = run.snapshot().unwrap();
    run.steps(|_| ControlFlow::Continue(())).unwrap();
    let whole = run.latents().to_vec();
    let restored = |mut pipeline: Pipeline| resumed(&mut pipeline, &request, &snapshot);
    assert_eq!(restored(bundle("same", 0)), Ok(whole));
    let refused = "snapshot: expected one made with this model's weights, got one made with other weights";
    assert_eq!(restored(bundle("other", 1)), Err(refused.to_owned()));
}

/// Options are public and may be anything: what cannot be done is refused, and the rest draws what is drawn otherwise.
#[test]
fn odd_options_are_followed_or_refused() {
    let latents = |mut pipeline: Pipeline| {
        let request = pipeline.request(Recipe { steps: Some(1), ..draft() }).unwrap();
        pipeline.denoise(&request, |_| ControlFlow::Continue(()))
    };
    let plain = latents(pipeline(|_| {})).unwrap();
    type Change = fn(&mut SessionOptions);
    let odd: [(&str, Change, bool); 5] = [
        ("no segment", |o| o.residency = Residency::Streamed { segment_bytes: 0, resident_bytes: 0 }, true),
        (
            "all",
            |o| o.residency = Residency::Streamed { segment_bytes: usize::MAX, resident_bytes: usize::MAX },
            true,
        ),
        ("no pool", |o| o.pool_bytes = Some(0), true),
        ("no budget", |o| o.budget_bytes = Some(0), false),
        ("threads", |o| o.threads = std::num::NonZeroUsize::MAX, false),
    ];
    for (name, change, may_run) in odd {
        let mut options = Options::default();
        change(&mut options.session);
        match Pipeline::open(&Model::built_in().unwrap(), &options).and_then(latents) {
            Ok(drawn) => {
                assert!(may_run, "{name}");
                let off = drawn.iter().zip(&plain).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                assert!(off < 1e-3, "{name}: {off}");
            }
            Err(error) => {
                let kinds = [ErrorKind::Memory, ErrorKind::Runtime, ErrorKind::Usage];
                assert!(kinds.contains(&error.kind()), "{name}: {error}");
            }
        }
    }
}

/// Requests and plans of another model, which this one is once its prediction is changed, are refused and never run.
#[test]
fn requests_and_plans_of_another_model_are_refused() {
    let mut model = Model::built_in().unwrap();
    let request = Request::new(draft(), &model).unwrap();
    let session = Options::default().session;
    let budget = "2GiB".parse().unwrap();
    let plan = Plan::new(&model, &request, &session, budget).unwrap();
    model.predict(Prediction::Epsilon).unwrap();
    let refused = |error: calotype::Error, start: &str| {
        assert_eq!(error.kind(), ErrorKind::Usage);
        assert!(error.to_string().starts_with(start), "{error}");
    };
    let error = Plan::new(&model, &request, &session, budget).map(drop).expect_err("another model");
    refused(error, "request: expected one made for ");
    let options = Options { session, plan: Some(plan) };
    let error = Pipeline::open(&model, &options).map(drop).expect_err("another model");
    refused(error, "plan: expected one made for ");
    let mut pipeline = Pipeline::open(&model, &Options::default()).unwrap();
    refused(
        pipeline.begin(&request).map(drop).expect_err("another model"),
        "request: expected one made for ",
    );
}

/// Cancelled from another thread, while weights are in memory and while they are read from the disk: the step that runs
/// fails, what was held is given back, and once it is reset the same pipeline draws the same image.
#[test]
fn a_call_ends_when_it_is_cancelled() {
    for residency in [Residency::PerStage, Residency::Streamed { segment_bytes: 1 << 20, resident_bytes: 0 }]
    {
        let mut pipeline = pipeline(|session| session.residency = residency);
        let cancel = pipeline.cancel();
        let request = request(&pipeline, Recipe { steps: Some(1000), ..draft() });
        let short = pipeline.request(draft()).unwrap();
        let whole = pipeline.denoise(&short, |_| ControlFlow::Continue(())).unwrap();
        let mut run = pipeline.begin(&request).unwrap();
        run.step().unwrap();
        let error = thread::scope(|scope| {
            scope.spawn(|| {
                thread::sleep(Duration::from_millis(50));
                cancel.cancel();
            });
            run.steps(|_| ControlFlow::Continue(())).unwrap_err()
        });
        let done = run.progress().done;
        assert_eq!(error.kind(), ErrorKind::Cancelled);
        assert_eq!(error.to_string(), format!("stopped in step {} of 1000", done + 1));
        assert!(done < 1000);
        let refused = run.step().unwrap_err();
        assert!(
            refused.to_string().ends_with(&format!("got one whose step {} failed", done + 1)),
            "{refused}"
        );
        drop(run);
        let error = pipeline.begin(&short).map(|_| ()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Cancelled, "{error}");
        cancel.reset();
        assert_eq!(pipeline.denoise(&short, |_| ControlFlow::Continue(())).unwrap(), whole);
    }
}

/// Previews at the end are near the image's mean colour in each cell, nearer than the image's own mean colour is.
#[test]
fn previews_are_like_the_image() {
    let mut pipeline = pipeline(|_| {});
    for prompt in ["a red apple on a blue background", "a green frog on a white background", "a yellow star"]
    {
        let recipe = Recipe { prompt: prompt.into(), seed: Some(3), steps: Some(10), ..Recipe::default() };
        let request = pipeline.request(recipe).unwrap();
        let mut run = pipeline.begin(&request).unwrap();
        let mut previews = vec![run.preview().unwrap().unwrap()];
        while !run.is_done() {
            run.step().unwrap();
            previews.push(run.preview().unwrap().unwrap());
        }
        let image = run.finish().unwrap().image;
        let (width, height) = previews[0].dimensions();
        let small = image::imageops::thumbnail(&image, width, height);
        let off = |preview: &RgbImage| {
            let sum: f64 = preview.iter().zip(small.iter()).map(|(a, b)| f64::from(a.abs_diff(*b))).sum();
            sum / small.len() as f64
        };
        let mean = image::imageops::thumbnail(&image, 1, 1).get_pixel(0, 0).0;
        let flat = off(&RgbImage::from_pixel(width, height, Rgb(mean)));
        let (first, last) = (off(&previews[0]), off(&previews[10]));
        assert!(last < 0.8 * flat && last < 0.5 * first, "{prompt}: {first:.1}, {last:.1}, flat {flat:.1}");
        let mut mirrored = previews[10].clone();
        image::imageops::flip_vertical_in_place(&mut mirrored);
        assert!(off(&mirrored) > last, "{prompt}: places count");
    }
}

#[test]
fn a_run_is_finished_after_its_last_step() {
    let mut pipeline = pipeline(|_| {});
    let request = request(&pipeline, draft());
    let run = pipeline.begin(&request).unwrap();
    assert!(run.denoised().iter().all(|value| *value == 0.0));
    assert_eq!(run.finish().unwrap_err().to_string(), "run: expected all 4 steps done, got 0");
    let mut run = pipeline.begin(&request).unwrap();
    run.steps(|_| ControlFlow::Continue(())).unwrap();
    assert_eq!(run.step().unwrap_err().kind(), ErrorKind::Usage);
    // The last step of this sampler ends at the estimate itself.
    assert_eq!(run.latents(), run.denoised());
    let image = run.finish().unwrap().image;
    assert_eq!(image, pipeline.generate(&request, |_| ControlFlow::Continue(())).unwrap().image);
}

#[test]
fn a_run_that_is_stopped_gives_its_estimate() {
    let mut pipeline = pipeline(|_| {});
    let size = PixelSize::new(64, 64).unwrap();
    let plain = request(&pipeline, draft());
    let mut run = pipeline.begin(&plain).unwrap();
    assert_eq!(run.stop().unwrap_err().to_string(), "run: expected at least one step done, got none");
    run.step().unwrap();
    run.step().unwrap();
    let estimate = run.denoised().to_vec();
    run.stop().unwrap();
    assert!(run.is_done() && run.progress() == Progress { done: 2, steps: 2 });
    let made = run.request().recipe();
    let image = run.finish().unwrap().image;
    assert_eq!(made.stop_after, Some(2));
    assert_eq!(image, pipeline.decode_latents(&estimate, size).unwrap());
    // Its recipe makes it again, also from a snapshot.
    let again = request(&pipeline, made);
    let mut run = pipeline.begin(&again).unwrap();
    run.step().unwrap();
    let snapshot = run.snapshot().unwrap();
    drop(run);
    let mut run = pipeline.restore(&again, &snapshot).unwrap();
    run.steps(|_| ControlFlow::Continue(())).unwrap();
    assert_eq!(run.progress().done, 2);
    assert_eq!(run.finish().unwrap().image, image);
    // After the last step there is nothing to stop.
    let mut run = pipeline.begin(&plain).unwrap();
    run.steps(|_| ControlFlow::Continue(())).unwrap();
    run.stop().unwrap();
    assert_eq!(run.request().recipe().stop_after, None);
    drop(run);

    // Outside of a mask it is the init image.
    let init = RgbImage::from_fn(64, 64, |x, y| Rgb([3 * x as u8, 3 * y as u8, 99]));
    let mask = image::GrayImage::from_fn(64, 64, |x, _| image::Luma([if x < 32 { 255 } else { 0 }]));
    let [two, three] = [2, 3].map(|stop_after| {
        let masked = Recipe {
            init: Some(init.clone().into()),
            mask: Some(mask.clone().into()),
            strength: Some(1.0),
            stop_after: Some(stop_after),
            ..draft()
        };
        let masked = request(&pipeline, masked);
        pipeline.denoise(&masked, |_| ControlFlow::Continue(())).unwrap()
    });
    let columns = pipeline.manifest().latents.shape(size).unwrap().width_cells;
    let kept = |at: usize| at % columns >= columns / 2;
    assert!((0..two.len()).filter(|at| kept(*at)).all(|at| two[at] == three[at]));
    assert!((0..two.len()).filter(|at| !kept(*at)).all(|at| two[at] != three[at]));
}

#[test]
fn odd_ends_are_refused() {
    let pipeline = pipeline(|_| {});
    for (recipe, problem) in [
        (Recipe { stop_after: Some(0), ..draft() }, "stop after: expected 1 to 4 steps, got 0"),
        (Recipe { stop_after: Some(5), ..draft() }, "stop after: expected 1 to 4 steps, got 5"),
        (
            Recipe { stop_after: Some(2), hires: "2x".parse().ok(), ..draft() },
            "stop after: expected an image that is made in one pass, got one with several",
        ),
    ] {
        assert_eq!(pipeline.request(recipe).unwrap_err().to_string(), problem);
    }
    pipeline.request(Recipe { stop_after: Some(4), ..draft() }).unwrap();
}

/// What steps take is made up here: watching one takes longer than anything that is computed.
#[test]
fn as_many_steps_are_taken_as_there_is_time_for() {
    let mut pipeline = pipeline(|_| {});
    let asked = request(&pipeline, Recipe { steps: Some(30), ..draft() });
    let whole = pipeline.generate(&asked, |_| ControlFlow::Continue(())).unwrap().image;
    let mut within = |deadline: &mut Deadline, pause: fn(usize) -> u64| {
        let drawn = deadline.generate(&mut pipeline, &asked, Instant::now(), |run| {
            thread::sleep(Duration::from_millis(pause(run.progress().done)));
            ControlFlow::Continue(())
        });
        let (made, output) = drawn?;
        // It is the image that its recipe makes.
        let again = pipeline.request(made.recipe())?;
        assert_eq!(pipeline.generate(&again, |_| ControlFlow::Continue(()))?.image, output.image);
        Ok::<_, calotype::Error>((made.steps(), made.steps_taken(), output.image))
    };
    let plenty = within(&mut Deadline::new(Duration::from_secs(600)), |_| 0).unwrap();
    assert_eq!(plenty, (30, 30, whole));
    // Every step is too slow: it begins again with fewer, and the next image with fewer at once.
    let mut deadline = Deadline::new(Duration::from_secs(2));
    for image in 0..2 {
        let (steps, taken, _) = within(&mut deadline, |_| 150).unwrap();
        assert!(
            (2..15).contains(&steps) && 1 <= taken && taken <= steps,
            "image {image}: {taken} of {steps}"
        );
    }
    // Later ones are: the last are left out.
    let mut deadline = Deadline::new(Duration::from_secs(2));
    let (steps, taken, _) = within(&mut deadline, |done| if done < 4 { 0 } else { 250 }).unwrap();
    assert!(steps == 30 && (4..15).contains(&taken), "{taken} of {steps}");
    let error = within(&mut Deadline::new(Duration::from_millis(1)), |_| 0).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Usage);
    let text = error.to_string();
    assert!(
        text.starts_with("deadline: expected at least ")
            && text.ends_with(" got 0.001 s; a smaller image takes less time"),
        "{text}"
    );
}
