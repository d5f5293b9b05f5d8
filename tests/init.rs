//! Drawing from a picture with the built-in model: what strength and mask do to it, step for step.

#![cfg(feature = "builtin")]

use std::num::NonZeroUsize;
use std::ops::ControlFlow;

use calotype::ErrorKind;
use calotype::engine::{Session, SessionOptions, TensorRef};
use calotype::model::Model;
use calotype::pipeline::{Options, Pipeline};
use calotype::recipe::Recipe;
use calotype::sampler::SamplerKind;
use image::{GrayImage, Luma, RgbImage};

const SIDE_PX: u32 = 128;
/// Of the built-in model's latents.
const CHANNELS: usize = 16;
const CELLS: usize = 8;

fn pipeline() -> Pipeline {
    Pipeline::open(&Model::built_in().unwrap(), &Options::default()).unwrap()
}

fn draft(prompt: &str) -> Recipe {
    Recipe { prompt: prompt.into(), steps: Some(8), seed: Some(5), ..Recipe::default() }
}

fn latents(pipeline: &mut Pipeline, draft: &Recipe) -> Vec<f32> {
    let request = pipeline.request(draft.clone()).unwrap();
    pipeline.denoise(&request, |_| ControlFlow::Continue(())).unwrap()
}

fn drawn(pipeline: &mut Pipeline, draft: &Recipe) -> RgbImage {
    let request = pipeline.request(draft.clone()).unwrap();
    pipeline.generate(&request, |_| ControlFlow::Continue(())).unwrap().image
}

/// A picture that the model knows how to draw.
fn apple(pipeline: &mut Pipeline) -> RgbImage {
    drawn(pipeline, &draft("a red apple on a blue background"))
}

/// White from this row on, black above.
fn mask(from: u32) -> GrayImage {
    GrayImage::from_fn(SIDE_PX, SIDE_PX, |_, y| Luma([if y < from { 0 } else { 255 }]))
}

/// What the encoder makes of a picture, by its session alone.
fn encoded(picture: &RgbImage) -> Vec<f32> {
    let model = Model::built_in().unwrap();
    let options = SessionOptions::new(NonZeroUsize::MIN);
    let mut session = Session::open(model.vae_encoder().unwrap().bind().unwrap(), &options).unwrap();
    let planes: Vec<f32> = (0..3)
        .flat_map(|channel| picture.pixels().map(move |pixel| f32::from(pixel.0[channel]) / 127.5 - 1.0))
        .collect();
    let shape = [1, 3, SIDE_PX as usize, SIDE_PX as usize];
    let input = [("sample", TensorRef::new(&shape, &planes[..]))];
    let found = session.compute(&input, &["latent_sample"]).unwrap().remove(0).data;
    found.into_iter().map(|x| (f64::from(x) * model.manifest().latents.scale) as f32).collect()
}

#[track_caller]
fn near(got: &[f32], expected: &[f32]) {
    assert_eq!(got.len(), expected.len());
    let far = got.iter().zip(expected).find(|(a, b)| (*a - *b).abs() > 1e-4);
    assert_eq!(far, None);
}

/// Mean difference in levels of 255.
fn distance(one: &RgbImage, other: &RgbImage) -> f64 {
    assert_eq!(one.dimensions(), other.dimensions());
    let differences = one.as_raw().iter().zip(other.as_raw()).map(|(a, b)| f64::from(a.abs_diff(*b)));
    differences.sum::<f64>() / one.as_raw().len() as f64
}

#[test]
fn a_black_mask_leaves_the_picture() {
    let mut pipeline = pipeline();
    let apple = apple(&mut pipeline);
    let expected = encoded(&apple);
    for (sampler, strength) in SamplerKind::ALL.into_iter().zip([1.0, 0.5].into_iter().cycle()) {
        let draft = Recipe {
            init: Some(apple.clone().into()),
            mask: Some(mask(SIDE_PX).into()),
            strength: Some(strength),
            sampler: Some(sampler.into()),
            ..draft("a green cat")
        };
        near(&latents(&mut pipeline, &draft), &expected);
    }
    let mut draft =
        Recipe { init: Some(apple.clone().into()), mask: Some(mask(SIDE_PX).into()), ..draft("a green cat") };
    assert!(drawn(&mut pipeline, &draft) == apple);
    draft.keep_outside = Some(false);
    let drawn = drawn(&mut pipeline, &draft);
    let levels = distance(&drawn, &apple);
    assert!(levels > 0.0 && levels < 6.0, "{levels} levels from what was encoded");
}

/// Where a mask is black every bit stays; where it is white pixels are the VAE's; greys mix the two.
#[test]
fn pixels_outside_of_the_mask_stay() {
    let mut pipeline = pipeline();
    let apple = apple(&mut pipeline);
    // Black, a slope of 64 rows, white.
    let slope = |y: u32| (4 * y).saturating_sub(128).min(255) as u8;
    let soft = GrayImage::from_fn(SIDE_PX, SIDE_PX, |_, y| Luma([slope(y)]));
    for strength in [1.0, 0.5] {
        let draft = Recipe {
            init: Some(apple.clone().into()),
            mask: Some(soft.clone().into()),
            strength: Some(strength),
            ..draft("a green cat")
        };
        let kept = drawn(&mut pipeline, &draft);
        let decoded = drawn(&mut pipeline, &Recipe { keep_outside: Some(false), ..draft });
        let mut changed = 0;
        for (x, y, pixel) in kept.enumerate_pixels() {
            let share = f64::from(slope(y)) / 255.0;
            for channel in 0..3 {
                let [got, init, new] = [pixel, apple.get_pixel(x, y), decoded.get_pixel(x, y)]
                    .map(|pixel| f64::from(pixel.0[channel]));
                assert!((got - (init + share * (new - init))).abs() <= 0.5 + 1e-9, "({x}, {y})");
                changed += usize::from(slope(y) == 0 && init != new);
            }
        }
        assert!(changed > 1000, "only {changed} values would have changed");
    }
}

/// Also that the encoder of a model without a distribution draws no noise.
#[test]
fn a_white_mask_leaves_nothing_of_the_picture() {
    let mut pipeline = pipeline();
    let apple = apple(&mut pipeline);
    for sampler in SamplerKind::ALL {
        let plain = Recipe { sampler: Some(sampler.into()), ..draft("a green cat") };
        let masked = Recipe { init: Some(apple.clone().into()), mask: Some(mask(0).into()), ..plain.clone() };
        assert_eq!(latents(&mut pipeline, &masked), latents(&mut pipeline, &plain), "{sampler}");
    }
}

#[test]
fn only_what_is_white_is_drawn_anew() {
    let mut pipeline = pipeline();
    let apple = apple(&mut pipeline);
    let expected = encoded(&apple);
    // One row of pixels below the middle: cells go by their first pixel, so that the fifth row of them is kept, too.
    for (from, kept_rows) in [(SIDE_PX / 2, 4), (SIDE_PX / 2 + 1, 5)] {
        let draft = Recipe {
            init: Some(apple.clone().into()),
            mask: Some(mask(from).into()),
            ..draft("a green cat")
        };
        let got = latents(&mut pipeline, &draft);
        for channel in 0..CHANNELS {
            let (start, kept) = (channel * CELLS * CELLS, kept_rows * CELLS);
            near(&got[start..start + kept], &expected[start..start + kept]);
            let anew = start + kept..start + CELLS * CELLS;
            assert!(got[anew.clone()].iter().zip(&expected[anew]).all(|(a, b)| (a - b).abs() > 1e-6));
        }
    }
}

#[test]
fn the_stronger_the_farther() {
    let mut pipeline = pipeline();
    let apple = apple(&mut pipeline);
    let distances = [0.125, 0.5, 1.0].map(|strength| {
        let draft = Recipe {
            init: Some(apple.clone().into()),
            strength: Some(strength),
            ..draft("a green cat on a pink background")
        };
        distance(&drawn(&mut pipeline, &draft), &apple)
    });
    assert!(distances.is_sorted(), "{distances:?}");
    assert!(distances[0] < 8.0 && distances[2] > 40.0, "{distances:?}");
}

#[test]
fn a_picture_of_another_size_is_resized() {
    let mut pipeline = pipeline();
    let flat = RgbImage::from_pixel(300, 50, image::Rgb([200, 30, 30]));
    let size = Some("64x96".parse().unwrap());
    let draft = Recipe { init: Some(flat.into()), strength: Some(0.125), size, ..draft("") };
    let drawn = drawn(&mut pipeline, &draft);
    assert_eq!(drawn.dimensions(), (64, 96));
    let flat = RgbImage::from_pixel(64, 96, image::Rgb([200, 30, 30]));
    assert!(distance(&drawn, &flat) < 30.0, "{}", distance(&drawn, &flat));
}

#[test]
fn a_run_that_starts_from_a_picture_can_be_stopped() {
    let mut pipeline = pipeline();
    let init = Some(RgbImage::new(SIDE_PX, SIDE_PX).into());
    let request = pipeline.request(Recipe { init, strength: Some(0.5), ..draft("") }).unwrap();
    let error = pipeline.generate(&request, |_| ControlFlow::Break(())).expect_err("stopped");
    assert_eq!((error.kind(), error.to_string()), (ErrorKind::Cancelled, "stopped after step 1 of 4".into()));
}
