//! What the built-in model's images must show, in small (`export/evaluate.py` is the whole): the background that was
//! asked for, the object that was asked for, and other images for other seeds and other guidance.

#![cfg(feature = "builtin")]

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use calotype::model::Model;
use calotype::pipeline::{Options, Pipeline};
use calotype::recipe::Recipe;
use image::imageops::{self, FilterType};
use image::{GrayImage, RgbImage};
use serde::Deserialize;

const SEED: u64 = 1;
/// Of the grey drawings in `golden/quality.png`.
const SIDE_PX: u32 = 16;
/// Among so many of the eight drawings the right one must be; by chance it is in 3 of 8 images.
const NEAREST: usize = 3;
/// How many of the eight images may show something else. Chance leaves so few in 1 of 200 models.
const ALLOWED_MISSES: usize = 1;
/// Two images differ when their mean difference is more than that of an image saved in poor quality.
const DIFFERENT: f64 = 2.0;

/// Made by `export/golden_quality.py`.
#[derive(Deserialize)]
struct Golden {
    captions: Vec<Caption>,
    backgrounds: BTreeMap<String, [u8; 3]>,
}

#[derive(Deserialize)]
struct Caption {
    prompt: String,
    background: String,
}

impl Golden {
    fn open() -> Self {
        let golden: Self = serde_json::from_str(include_str!("golden/quality.json")).unwrap();
        assert_eq!(golden.captions.len(), 8);
        golden
    }

    /// The background that the border of an image is nearest to.
    fn background_of(&self, image: &RgbImage) -> &str {
        let border = border_colour(image);
        let distance = |colour: &[u8; 3]| -> i32 {
            colour.iter().zip(border).map(|(a, b)| (i32::from(*a) - i32::from(b)).pow(2)).sum()
        };
        self.backgrounds.iter().min_by_key(|(_, colour)| distance(colour)).expect("there are backgrounds").0
    }
}

#[test]
fn backgrounds_are_those_of_the_prompt() {
    let (golden, mut pipeline) = (Golden::open(), open());
    for Caption { prompt, background } in &golden.captions {
        assert_eq!(golden.background_of(&draw(&mut pipeline, prompt, SEED, None)), background, "{prompt}");
    }
}

#[test]
fn objects_are_those_of_the_prompt() {
    let (golden, mut pipeline) = (Golden::open(), open());
    let sheet = image::load_from_memory(include_bytes!("golden/quality.png")).unwrap().into_luma8();
    let mut misses = Vec::new();
    for (row, Caption { prompt, .. }) in golden.captions.iter().enumerate() {
        let drawings: Vec<GrayImage> = (0..golden.captions.len())
            .map(|column| {
                let (x, y) = (column as u32 * SIDE_PX, row as u32 * SIDE_PX);
                imageops::crop_imm(&sheet, x, y, SIDE_PX, SIDE_PX).to_image()
            })
            .collect();
        let rank = |image: &GrayImage| rank(image, &drawings, row);
        assert_eq!(rank(&drawings[row]), 1, "{prompt}: its own drawing");
        assert_eq!(rank(&GrayImage::new(SIDE_PX, SIDE_PX)), drawings.len(), "{prompt}: nothing at all");

        let image = draw(&mut pipeline, prompt, SEED, None);
        let small = imageops::resize(&imageops::grayscale(&image), SIDE_PX, SIDE_PX, FilterType::Triangle);
        if rank(&small) > NEAREST {
            misses.push(format!("{prompt}: rank {}", rank(&small)));
        }
    }
    assert!(misses.len() <= ALLOWED_MISSES, "{misses:?}");
}

#[test]
fn seeds_and_guidance_change_the_image() {
    let (golden, mut pipeline) = (Golden::open(), open());
    for Caption { prompt, .. } in &golden.captions[..4] {
        let plain = draw(&mut pipeline, prompt, SEED, Some(1.0));
        let guided = draw(&mut pipeline, prompt, SEED, Some(5.0));
        let other_seed = draw(&mut pipeline, prompt, SEED + 1, Some(5.0));
        assert!(mean_difference(&plain, &guided) > DIFFERENT, "{prompt}: guidance 1 and 5");
        assert!(mean_difference(&guided, &other_seed) > DIFFERENT, "{prompt}: seeds");
    }
}

fn open() -> Pipeline {
    Pipeline::open(&Model::built_in().unwrap(), &Options::default()).unwrap()
}

fn draw(pipeline: &mut Pipeline, prompt: &str, seed: u64, guidance: Option<f64>) -> RgbImage {
    let draft = Recipe {
        prompt: prompt.into(),
        seed: Some(seed),
        guidance: guidance.map(Into::into),
        ..Recipe::default()
    };
    let request = pipeline.request(draft).unwrap();
    pipeline.generate(&request, |_| ControlFlow::Continue(())).unwrap().image
}

/// The median of the outermost pixels, per channel.
fn border_colour(image: &RgbImage) -> [u8; 3] {
    const BORDER_PX: u32 = 6;
    let near = |at: u32, side: u32| at < BORDER_PX || at >= side - BORDER_PX;
    let border = image
        .enumerate_pixels()
        .filter(|(x, y, _)| near(*x, image.width()) || near(*y, image.height()))
        .map(|(_, _, pixel)| pixel.0);
    let border: Vec<[u8; 3]> = border.collect();
    [0, 1, 2].map(|channel| {
        let mut values: Vec<u8> = border.iter().map(|pixel| pixel[channel]).collect();
        values.sort_unstable();
        values[values.len() / 2]
    })
}

/// How many drawings an image resembles at least as much as the right one: 1 is best, and a tie is lost.
fn rank(image: &GrayImage, drawings: &[GrayImage], right: usize) -> usize {
    let likeness: Vec<f64> = drawings.iter().map(|drawing| correlation(image, drawing)).collect();
    likeness.iter().filter(|value| **value >= likeness[right]).count()
}

/// Pearson's correlation; 0 where one of the two is flat.
fn correlation(one: &GrayImage, other: &GrayImage) -> f64 {
    let centred = |image: &GrayImage| {
        let mean = image.iter().map(|value| f64::from(*value)).sum::<f64>() / image.len() as f64;
        image.iter().map(|value| f64::from(*value) - mean).collect::<Vec<f64>>()
    };
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let (a, b) = (centred(one), centred(other));
    let lengths = (dot(&a, &a) * dot(&b, &b)).sqrt();
    if lengths == 0.0 { 0.0 } else { dot(&a, &b) / lengths }
}

/// The mean absolute difference of two images, in levels of 255.
fn mean_difference(one: &RgbImage, other: &RgbImage) -> f64 {
    let sum: u64 = one.iter().zip(other.iter()).map(|(a, b)| u64::from(a.abs_diff(*b))).sum();
    sum as f64 / one.len() as f64
}
