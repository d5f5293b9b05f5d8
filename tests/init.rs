//! Drawing from an image with the built-in model: what strength and mask do to it, step for step.

#![cfg(feature = "builtin")]

use std::num::NonZeroUsize;
use std::ops::ControlFlow;

use calotype::ErrorKind;
use calotype::engine::{Session, SessionOptions, TensorRef};
use calotype::image_file::{Extend, Resize};
use calotype::model::Model;
use calotype::noise::Rng;
use calotype::pipeline::{Options, Pipeline};
use calotype::recipe::Recipe;
use calotype::request::Request;
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

/// The image of a run that goes on from its snapshot after the first step.
fn resumed(pipeline: &mut Pipeline, request: &Request) -> RgbImage {
    let mut run = pipeline.begin(request).unwrap();
    run.step().unwrap();
    let snapshot = run.snapshot().unwrap();
    drop(run);
    let mut run = pipeline.restore(request, &snapshot).unwrap();
    run.steps(|_| ControlFlow::Continue(())).unwrap();
    run.finish().unwrap().image
}

/// An image that the model knows how to draw.
fn apple(pipeline: &mut Pipeline) -> RgbImage {
    drawn(pipeline, &draft("a red apple on a blue background"))
}

/// White from this row on, black above.
fn mask(from: u32) -> GrayImage {
    GrayImage::from_fn(SIDE_PX, SIDE_PX, |_, y| Luma([if y < from { 0 } else { 255 }]))
}

/// What the encoder makes of an image, by its session alone.
fn encoded(image: &RgbImage) -> Vec<f32> {
    let model = Model::built_in().unwrap();
    let options = SessionOptions::new(NonZeroUsize::MIN);
    let mut session = Session::open(model.vae_encoder().unwrap().bind().unwrap(), &options).unwrap();
    let planes: Vec<f32> = (0..3)
        .flat_map(|channel| image.pixels().map(move |pixel| f32::from(pixel.0[channel]) / 127.5 - 1.0))
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
fn a_black_mask_leaves_the_image() {
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
fn a_white_mask_leaves_nothing_of_the_image() {
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
fn an_image_of_another_size_is_resized() {
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
fn a_run_that_starts_from_a_image_can_be_stopped() {
    let mut pipeline = pipeline();
    let init = Some(RgbImage::new(SIDE_PX, SIDE_PX).into());
    let request = pipeline.request(Recipe { init, strength: Some(0.5), ..draft("") }).unwrap();
    let error = pipeline.generate(&request, |_| ControlFlow::Break(())).expect_err("stopped");
    assert_eq!((error.kind(), error.to_string()), (ErrorKind::Cancelled, "stopped after step 1 of 4".into()));
}

/// The image as a run resizes it: what comes back where nothing is repainted.
fn resized(pipeline: &mut Pipeline, init: &RgbImage, resize: Option<Resize>) -> RgbImage {
    let black = GrayImage::new(init.width(), init.height());
    let size = Some("128x64".parse().unwrap());
    let draft = Recipe {
        init: Some(init.clone().into()),
        mask: Some(black.into()),
        size,
        resize,
        steps: Some(1),
        ..draft("x")
    };
    drawn(pipeline, &draft)
}

#[test]
fn images_of_other_proportions_are_stretched_cropped_or_padded() {
    let mut pipeline = pipeline();
    let init =
        RgbImage::from_fn(100, 100, |x, y| image::Rgb([(2 * x) as u8, (2 * y) as u8, (x * y / 50) as u8]));
    let scaled = |image: &RgbImage, width, height| {
        image::imageops::resize(image, width, height, image::imageops::FilterType::Lanczos3)
    };
    let worst = |a: &RgbImage, b: &RgbImage| {
        assert_eq!(a.dimensions(), b.dimensions());
        a.iter().zip(b.iter()).map(|(a, b)| a.abs_diff(*b)).max().unwrap()
    };
    let stretched = resized(&mut pipeline, &init, None);
    assert!(worst(&stretched, &scaled(&init, 128, 64)) <= 1);
    assert_eq!(resized(&mut pipeline, &init, Some(Resize::Stretch)), stretched);

    // The middle half, scaled to both sides; at its own edges the filter also sees what is cut off.
    let cropped = resized(&mut pipeline, &init, Some(Resize::Crop));
    let whole = scaled(&init, 128, 128);
    let middle = image::imageops::crop_imm(&whole, 0, 32, 128, 64).to_image();
    assert!(worst(&cropped, &middle) <= 1, "{}", worst(&cropped, &middle));

    let padded = resized(&mut pipeline, &init, Some(Resize::Pad));
    let inner = scaled(&init, 64, 64);
    for (x, y, pixel) in padded.enumerate_pixels() {
        let expected = inner.get_pixel(x.clamp(32, 95) - 32, y);
        assert!((0..3).all(|at| pixel.0[at].abs_diff(expected.0[at]) <= 1), "({x}, {y})");
    }
}

/// Before which step the middle of an area is repainted that has this grey: `number / steps >= 1 - grey`.
fn first_repainted(grey: u8, steps: u32) -> u32 {
    (0..=steps).find(|number| number * 255 >= steps * u32::from(255 - grey)).unwrap()
}

/// Levin & Fried 2023, algorithm 1: cells are the init image with noise until their step, and denoised from then on. A run with a
/// black mask has that image with that noise at every level.
#[test]
fn greys_of_a_soft_mask_are_denoising_strengths() {
    let mut pipeline = pipeline();
    let apple = apple(&mut pipeline);
    let grey = |x: u32, y: u32| [0, 16, 40, 100, 128, 191, 230, 255][((x + 3 * y) % 8) as usize];
    let cell_px = SIDE_PX / CELLS as u32;
    let greys = GrayImage::from_fn(SIDE_PX, SIDE_PX, |x, y| Luma([grey(x / cell_px, y / cell_px)]));
    for (steps, strength) in [(8, 1.0), (10, 0.6)] {
        let recipe = |mask: GrayImage, soft_mask| Recipe {
            init: Some(apple.clone().into()),
            mask: Some(mask.into()),
            strength: Some(strength),
            steps: Some(steps as usize),
            soft_mask,
            ..draft("a green cat")
        };
        let trajectory = |pipeline: &mut Pipeline, recipe: Recipe| -> Vec<Vec<f32>> {
            let request = pipeline.request(recipe).unwrap();
            let mut run = pipeline.begin(&request).unwrap();
            let mut all = Vec::new();
            while !run.is_done() {
                run.step().unwrap();
                all.push(run.latents().to_vec());
            }
            all
        };
        let kept = trajectory(&mut pipeline, recipe(mask(SIDE_PX), None));
        let soft = trajectory(&mut pipeline, recipe(greys.clone(), Some(true)));
        for (done, (kept, soft)) in (1..).zip(kept.iter().zip(&soft)) {
            for (x, y) in (0..CELLS).flat_map(|x| (0..CELLS).map(move |y| (x, y))) {
                let of_cell = |latents: &[f32]| -> Vec<f32> {
                    (0..CHANNELS).map(|channel| latents[(channel * CELLS + y) * CELLS + x]).collect()
                };
                let grey = grey(x as u32, y as u32);
                let is_kept = done < first_repainted(grey, steps);
                assert_eq!(
                    of_cell(kept) == of_cell(soft),
                    is_kept,
                    "({x}, {y}) of {grey} after {done} of {steps} steps"
                );
            }
        }
        // Of a white mask nothing is left but the start.
        let white = latents(&mut pipeline, &recipe(mask(0), Some(true)));
        let plain = Recipe { mask: None, ..recipe(mask(0), None) };
        assert_eq!(white, latents(&mut pipeline, &plain));
        // What is never repainted keeps its pixels, and all else is the VAE's.
        let finished = drawn(&mut pipeline, &recipe(greys.clone(), Some(true)));
        let all = Recipe { keep_outside: Some(false), ..recipe(greys.clone(), Some(true)) };
        let decoded = drawn(&mut pipeline, &all);
        let taken = (f64::from(steps) * strength) as u32;
        for (x, y, pixel) in finished.enumerate_pixels() {
            let mask = greys.get_pixel(x, y).0[0];
            let share = f64::from(steps) * f64::from(mask) / 255.0 - f64::from(steps - taken);
            let share = share.clamp(0.0, 1.0);
            for channel in 0..3 {
                let [got, init, new] = [pixel, apple.get_pixel(x, y), decoded.get_pixel(x, y)]
                    .map(|pixel| f64::from(pixel.0[channel]));
                let expected = init + share * (new - init);
                assert!((got - expected).abs() <= 1.5, "({x}, {y}): {got} of {init} and {new} by {share}");
                assert!(mask > 0 || got == init, "({x}, {y})");
            }
        }
    }
}

/// The surroundings of the mask are worked at in the model's own size; the image around keeps every bit.
#[test]
fn only_the_surroundings_of_a_mask_are_worked_at() {
    let mut pipeline = pipeline();
    let init =
        RgbImage::from_fn(301, 203, |x, y| image::Rgb([(x / 2) as u8, y as u8, ((x + y) % 256) as u8]));
    let hole = GrayImage::from_fn(301, 203, |x, y| {
        Luma([if x.abs_diff(200) < 20 && y.abs_diff(80) < 25 { 255 } else { 0 }])
    });
    let recipe = |mask: &GrayImage| Recipe {
        init: Some(init.clone().into()),
        mask: Some(mask.clone().into()),
        mask_only: Some(8),
        ..draft("a red apple on a blue background")
    };
    let request = pipeline.request(recipe(&hole)).unwrap();
    assert_eq!(request.size().to_string(), "128x128");
    assert_eq!(request.recipe().mask_blur, Some(4.0));
    let image = pipeline.generate(&request, |_| ControlFlow::Continue(())).unwrap().image;
    assert_eq!(image.dimensions(), init.dimensions());
    let mut changed = 0;
    for (x, y, pixel) in image.enumerate_pixels() {
        // A blur of 4 reaches 10 pixels.
        let is_near = x.abs_diff(200) < 30 && y.abs_diff(80) < 35;
        assert!(is_near || pixel == init.get_pixel(x, y), "({x}, {y}) changed");
        changed += usize::from(pixel != init.get_pixel(x, y));
    }
    assert!(changed > 1500, "only {changed} pixels were repainted");
    // The edge is soft: right at it half of what is far inside changes.
    let sharp = Recipe { mask_blur: Some(0.0), ..recipe(&hole) };
    let sharp = drawn(&mut pipeline, &sharp);
    assert!(sharp != image);
    assert!((0..301).all(|x| {
        (0..203).all(|y| hole.get_pixel(x, y).0[0] > 0 || sharp.get_pixel(x, y) == init.get_pixel(x, y))
    }));
    // All pixels of the region, and none around it.
    let all = Recipe { keep_outside: Some(false), ..recipe(&hole) };
    let all = drawn(&mut pipeline, &all);
    assert!(
        all.get_pixel(161, 42) != init.get_pixel(161, 42) && all.get_pixel(20, 20) == init.get_pixel(20, 20)
    );
    // Nothing to cut out.
    let error = pipeline.request(recipe(&GrayImage::new(301, 203))).unwrap();
    let error = pipeline.generate(&error, |_| ControlFlow::Continue(())).map(drop).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Usage);
    assert!(error.to_string().contains("mask only: expected a mask with white areas"), "{error}");
}

/// Black and white change places; white grows; a mask of another size is stretched or cropped.
#[test]
fn masks_are_inverted_grown_and_fitted() {
    let mut pipeline = pipeline();
    let apple = apple(&mut pipeline);
    let plain =
        Recipe { init: Some(apple.clone().into()), mask: Some(mask(64).into()), ..draft("a green cat") };
    let expected = drawn(&mut pipeline, &plain);
    let inverted = GrayImage::from_fn(SIDE_PX, SIDE_PX, |_, y| Luma([if y < 64 { 255 } else { 0 }]));
    let half = GrayImage::from_fn(32, 32, |_, y| Luma([if y < 16 { 0 } else { 255 }]));
    let wide =
        GrayImage::from_fn(64, 32, |x, y| Luma([if y < 16 || !(12..52).contains(&x) { 0 } else { 255 }]));
    let fitted = |mask: &GrayImage, resize| Recipe {
        mask: Some(mask.clone().into()),
        mask_fit: Some(resize),
        // A scaled edge is not quite sharp.
        keep_outside: Some(false),
        ..plain.clone()
    };
    let unkept = drawn(&mut pipeline, &Recipe { keep_outside: Some(false), ..plain.clone() });
    assert_ne!(unkept, expected);
    for (recipe, expected) in [
        (Recipe { mask: Some(inverted.into()), mask_invert: Some(true), ..plain.clone() }, &expected),
        (Recipe { mask: Some(mask(80).into()), mask_grow: Some(16), ..plain.clone() }, &expected),
        (Recipe { mask: Some(mask(48).into()), mask_grow: Some(-16), ..plain.clone() }, &expected),
        (fitted(&half, Resize::Stretch), &unkept),
        (fitted(&wide, Resize::Crop), &unkept),
    ] {
        assert!(drawn(&mut pipeline, &recipe) == *expected, "{recipe:?}");
    }
    // Without a fit that is an error, and stretching the wide one leaves both sides as they are.
    let other = Recipe { mask: Some(half.into()), ..plain.clone() };
    let error = pipeline.request(other).unwrap_err().to_string();
    assert!(error.starts_with("mask: expected the size of the init image, 128x128, got 32x32"), "{error}");
    assert!(drawn(&mut pipeline, &fitted(&wide, Resize::Stretch)) != unkept);
}

/// How much brighter or darker neighbours are across a vertical line, on average of a column of pixels, in levels.
fn step_at(image: &RgbImage, x: u32) -> f64 {
    let steps = (0..image.height()).flat_map(|y| {
        let (left, right) = (image.get_pixel(x - 1, y), image.get_pixel(x, y));
        (0..3).map(move |at| f64::from(left.0[at].abs_diff(right.0[at])))
    });
    steps.sum::<f64>() / f64::from(3 * image.height())
}

/// What is added has no edge where it meets the image: neighbours differ there as elsewhere in the image. All but the seam keeps
/// its bits.
#[test]
fn extended_images_have_no_seam() {
    let mut pipeline = pipeline();
    let apple = apple(&mut pipeline);
    let extend: Extend = "left=64,right=64,feather=32".parse().unwrap();
    for seed in [1, 2, 3] {
        let recipe = Recipe {
            init: Some(apple.clone().into()),
            extend: Some(extend),
            seed: Some(seed),
            ..draft("a red apple on a blue background")
        };
        let image = drawn(&mut pipeline, &recipe);
        assert_eq!(image.dimensions(), (256, 128));
        for (x, y, pixel) in image.enumerate_pixels().filter(|(x, _, _)| (96..160).contains(x)) {
            assert_eq!(pixel, apple.get_pixel(x - 64, y), "({x}, {y})");
        }
        let mut steps: Vec<f64> = (1..256).map(|x| step_at(&image, x)).collect();
        let seams: Vec<f64> = [64, 96, 160, 192].into_iter().map(|x| steps[x - 1]).collect();
        steps.sort_by(f64::total_cmp);
        let most = steps[steps.len() * 98 / 100];
        assert!(seams.iter().all(|seam| *seam <= most), "seed {seed}: {seams:.1?} of at most {most:.1}");
        // An edge would be seen: the image beside a flat colour.
        let mut flat = image.clone();
        for (x, y) in (0..64).flat_map(|x| (0..128).map(move |y| (x, y))) {
            flat.put_pixel(x, y, image::Rgb([128; 3]));
        }
        assert!(step_at(&flat, 64) > most, "{:.1} of {most:.1}", step_at(&flat, 64));
    }
}

/// A side that adds more than half of the image is painted round by round, each from what the last one made.
#[test]
fn large_extensions_are_several_rounds() {
    let mut pipeline = pipeline();
    let apple = apple(&mut pipeline);
    let recipe = |init: &RgbImage, extend: &str| Recipe {
        init: Some(init.clone().into()),
        extend: Some(extend.parse().unwrap()),
        ..draft("a red apple on a blue background")
    };
    let whole = drawn(&mut pipeline, &recipe(&apple, "right=176,bottom=16"));
    let mut now = apple.clone();
    for round in ["right=64,bottom=16", "right=96", "right=16"] {
        now = drawn(&mut pipeline, &recipe(&now, round));
    }
    assert_eq!((whole.dimensions(), &whole), ((304, 144), &now));
    // A seam in the middle of a run goes on from a snapshot, earlier rounds included.
    let request = pipeline.request(recipe(&apple, "right=96")).unwrap();
    let expected = pipeline.generate(&request, |_| ControlFlow::Continue(())).unwrap().image;
    assert_eq!(resumed(&mut pipeline, &request), expected);
}

#[test]
fn extensions_that_cannot_be_are_refused() {
    let pipeline = pipeline();
    let apple = RgbImage::new(128, 128);
    let of = |extend: Extend| Recipe { init: Some(apple.clone().into()), extend: Some(extend), ..draft("x") };
    let sides = |text: &str| of(text.parse().unwrap());
    for (recipe, message) in [
        (sides("left=0,feather=3"), "extend: expected a side of more than 0 pixels, got none"),
        (sides("left=10"), "extend: the extended image: size: expected multiples of 16 pixels, got 138x128"),
        (sides("left=9000"), "extend: the extended image: size: expected sides of 1 to 8192 pixels"),
        (
            sides("left=4294967295,right=9"),
            "extend: the extended image: size: expected sides of 1 to 8192 pixels",
        ),
        (Recipe { init: None, ..sides("left=16") }, "extend: expected an init image, got none"),
        (Recipe { mask: Some(mask(9).into()), ..sides("left=16") }, "extend: expected no mask"),
        (
            Recipe { resize: Some(Resize::Crop), ..sides("left=16") },
            "resize: expected none with an extended image",
        ),
        (
            Recipe { size: Some("128x128".parse().unwrap()), ..sides("left=16") },
            "size: expected 144x128, that of the extended image, got 128x128",
        ),
        (Recipe { mask_blur: Some(3.0), ..sides("left=16") }, "mask blur: expected a mask, got none"),
    ] {
        let error = pipeline.request(recipe).map(drop).expect_err(message);
        assert_eq!(error.kind(), ErrorKind::Usage);
        assert!(error.to_string().starts_with(message), "{error}");
    }
}

/// The fields of a second pass are public, and checked once more.
#[test]
fn second_passes_out_of_range() {
    let pipeline = pipeline();
    for (scale, strength, message) in [
        (2.0, 7.0, "hires: expected a strength from 0 to 1, got 7"),
        (2.0, f64::NAN, "hires: expected a strength from 0 to 1, got NaN"),
        (0.5, 0.5, "hires: expected a scale above 1"),
        (f64::INFINITY, 0.5, "hires: expected a scale above 1"),
    ] {
        let mut recipe = in_two_passes("2x");
        let hires = recipe.hires.as_mut().unwrap();
        (hires.scale, hires.strength) = (scale, strength);
        let error = pipeline.request(recipe).map(drop).expect_err(message);
        assert_eq!(error.kind(), ErrorKind::Usage);
        assert!(error.to_string().starts_with(message), "{error}");
    }
}

/// A draft with a second pass, from 64x64 pixels.
fn in_two_passes(hires: &str) -> Recipe {
    let size = Some("64x64".parse().unwrap());
    Recipe { size, hires: Some(hires.parse().unwrap()), ..draft("a red apple on a blue background") }
}

/// The second pass on pixels is an init image of the first pass, resized.
#[test]
fn a_second_pass_starts_from_the_image_of_the_first() {
    let mut pipeline = pipeline();
    let recipe = in_two_passes("2x:0.5:pixel");
    let got = drawn(&mut pipeline, &recipe);
    let first = drawn(&mut pipeline, &Recipe { hires: None, ..recipe.clone() });
    assert_eq!(first.dimensions(), (64, 64));
    let second = Recipe {
        hires: None,
        init: Some(first.into()),
        resize: Some(Resize::Stretch),
        strength: Some(0.5),
        size: Some("128x128".parse().unwrap()),
        ..recipe.clone()
    };
    assert_eq!(got, drawn(&mut pipeline, &second));
    // What it was made by makes it again, and a run in its middle goes on.
    let request = pipeline.request(recipe).unwrap();
    assert_eq!((request.size().to_string().as_str(), request.steps()), ("128x128", 4));
    assert_eq!(got, drawn(&mut pipeline, &request.recipe()));
    for hires in ["2x:0.5:pixel", "2x:0.5:latent"] {
        let request = pipeline.request(in_two_passes(hires)).unwrap();
        let whole = pipeline.generate(&request, |_| ControlFlow::Continue(())).unwrap().image;
        assert_eq!(resumed(&mut pipeline, &request), whole, "{hires}");
    }
}

/// The second pass on latents begins with those of the first, interpolated, and noise of its first level.
#[test]
fn a_second_pass_starts_from_the_latents_of_the_first() {
    let mut pipeline = pipeline();
    let recipe = in_two_passes("2x:0.5");
    let first = latents(&mut pipeline, &Recipe { hires: None, ..recipe.clone() });
    let cell = |channel: usize, x: i64, y: i64| {
        first[channel * 16 + y.clamp(0, 3) as usize * 4 + x.clamp(0, 3) as usize]
    };
    // Cells of half the size lie a quarter before and behind the middle of a cell.
    let enlarged = (0..CHANNELS * 64).map(|index| {
        let (channel, y, x) = (index / 64, index as i64 / 8 % 8, index as i64 % 8);
        let sides = |at: i64| [(at / 2, 0.75), (at / 2 + if at % 2 == 0 { -1 } else { 1 }, 0.25)];
        let parts =
            sides(y).into_iter().flat_map(|row| sides(x).into_iter().map(move |column| (row, column)));
        parts.map(|((y, down), (x, across))| cell(channel, x, y) * down * across).sum::<f32>()
    });
    let mut noise = vec![0.0; CHANNELS * 64];
    Rng::Torch.source(5).unwrap().fill_normal(&mut noise);
    let request = pipeline.request(recipe).unwrap();
    let sigma = request.sigmas()[0] as f32;
    let run = pipeline.begin(&request).unwrap();
    let expected: Vec<f32> = enlarged.zip(&noise).map(|(clean, noise)| clean + sigma * noise).collect();
    near(run.latents(), &expected);
}

#[test]
fn second_passes_that_cannot_be_are_refused() {
    let pipeline = pipeline();
    for (recipe, message) in [
        (
            Recipe { init: Some(RgbImage::new(64, 64).into()), ..in_two_passes("2x") },
            "hires: expected no init image, because the first pass starts from noise, got one",
        ),
        (Recipe { strength: Some(0.5), ..in_two_passes("2x") }, "strength: expected an init image"),
        (in_two_passes("1.3x"), "hires: expected a scale that gives whole pixels of 64x64, got 1.3x"),
        (in_two_passes("1.125x"), "size: expected multiples of 16 pixels, got 72x72"),
        (in_two_passes("2x:0.1"), "strength: expected enough for a step of 8, got 0.1"),
        (
            Recipe { size: Some("8192x64".parse().unwrap()), ..in_two_passes("2x") },
            "size: expected sides of 1 to 8192 pixels",
        ),
    ] {
        let error = pipeline.request(recipe).map(drop).expect_err(message);
        assert_eq!(error.kind(), ErrorKind::Usage);
        assert!(error.to_string().starts_with(message), "{error}");
    }
}
