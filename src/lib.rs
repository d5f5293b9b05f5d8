//! calotype generates images from prompts with latent diffusion on the local device.
//!
//! ONNX graphs (text encoder, U-Net, VAE) run in ONNX Runtime; everything between them is Rust. The [manual](manual) has a page for each
//! subject; [its page on the architecture](manual::architecture) lists the features and the layers.
//!
//! # Text to image
//! A [`Model`] is opened once; its [`Pipeline`] turns one [`Request`] after another into images. A [`Recipe`] has the settings; those that are
//! not set get the model's defaults.
//!
#![cfg_attr(all(feature = "builtin", feature = "cli"), doc = "```")]
#![cfg_attr(not(all(feature = "builtin", feature = "cli")), doc = "```ignore")]
//! use std::ops::ControlFlow;
//! use calotype::{Model, Options, Pipeline, PixelSize, Recipe};
//!
//! let mut pipeline = Pipeline::open(&Model::built_in()?, &Options::default())?;
//! let recipe = Recipe {
//!     prompt: "a red apple on a blue background".into(),
//!     seed: Some(1),
//!     steps: Some(2),
//!     size: Some(PixelSize::new(64, 64)?),
//!     ..Recipe::default()
//! };
//! let request = pipeline.request(recipe)?;
//! let output = pipeline.generate(&request, |_| ControlFlow::Continue(()))?;
//! assert_eq!(output.image.dimensions(), (64, 64));
//! # Ok::<(), calotype::Error>(())
//! ```
//!
//! # Previews, cancelling and snapshots
//! A [`Run`] does the same step by step. Between two steps it can be previewed, saved to a snapshot, restored later, or dropped; any
//! thread can cancel it within a step.
//!
#![cfg_attr(all(feature = "builtin", feature = "cli"), doc = "```")]
#![cfg_attr(not(all(feature = "builtin", feature = "cli")), doc = "```ignore")]
//! use calotype::{ErrorKind, Model, Options, Pipeline, PixelSize, Recipe};
//!
//! let mut pipeline = Pipeline::open(&Model::built_in()?, &Options::default())?;
//! let cancel = pipeline.cancel();
//! let size = Some(PixelSize::new(64, 64)?);
//! let request = pipeline.request(Recipe { prompt: "a puppy".into(), steps: Some(3), size, ..Recipe::default() })?;
//!
//! let mut run = pipeline.begin(&request)?;
//! let progress = run.step()?;
//! assert_eq!((progress.done, progress.steps), (1, 3));
//! let preview = run.preview()?.expect("a model with preview factors");
//! assert_eq!(preview.dimensions(), (4, 4)); // one pixel per latent cell
//! let snapshot = run.snapshot()?;
//! cancel.cancel(); // from any thread
//! assert_eq!(run.step().unwrap_err().kind(), ErrorKind::Cancelled);
//! drop(run);
//!
//! cancel.reset();
//! let mut run = pipeline.restore(&request, &snapshot)?;
//! while !run.is_done() {
//!     run.step()?;
//! }
//! assert_eq!(run.finish()?.image.dimensions(), (64, 64));
//! # Ok::<(), calotype::Error>(())
//! ```
//!
//! # Receipts
//! A [`Receipt`] is a recipe plus what made the image: versions, hashes, provider. Image files that calotype writes carry one, and the
//! image can be made again from it.
//!
#![cfg_attr(feature = "engine", doc = "```")]
#![cfg_attr(not(feature = "engine"), doc = "```ignore")]
//! use std::io::Cursor;
//! use calotype::image_file::{OutputFormat, RecipeText, Texts, encode};
//! use calotype::{Receipt, Recipe};
//!
//! let recipe = Recipe { prompt: "a red apple".into(), seed: Some(7), ..Recipe::default() };
//! let receipt = Receipt { recipe, provenance: None };
//! let text = RecipeText { parameters: "a red apple", json: &receipt.to_json() };
//! let mut file = Vec::new();
//! encode(&image::RgbImage::new(64, 64), OutputFormat::Png, Some(text), &mut file)?;
//!
//! let texts = Texts::read("apple.png", &mut Cursor::new(&file))?.expect("PNG, JPEG or WebP");
//! let json = texts.json.expect("an image with a receipt");
//! let receipt = Receipt::parse("apple.png", json.as_bytes())?;
//! assert_eq!((receipt.recipe.prompt.as_str(), receipt.recipe.seed), ("a red apple", Some(7)));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Models and plans
//! [`Model::open`](Model) takes a bundle, a diffusers folder, an ONNX folder or a single-file checkpoint. Only headers are read; weights are
//! mapped. [`Plan`] predicts the memory of a request within a budget before anything is loaded.
//!
#![cfg_attr(feature = "builtin", doc = "```")]
#![cfg_attr(not(feature = "builtin"), doc = "```ignore")]
//! use calotype::{Model, Options, Plan, Recipe, Request};
//!
//! let model = Model::built_in()?; // or Model::open("stable-diffusion-v1-5".as_ref())?
//! let manifest = model.manifest();
//! assert_eq!((manifest.latents.channels, manifest.latents.factor_px), (16, 16));
//! for part in model.parts() {
//!     println!("{}: {} from {}", part.name(), part.family(), part.weights_origin());
//! }
//! let request = Request::new(Recipe { prompt: "a puppy".into(), ..Recipe::default() }, &model)?;
//! let plan = Plan::new(&model, &request, &Options::default().session, "2GiB".parse()?)?;
//! assert!(plan.peak_bytes() <= 2 << 30);
//! # Ok::<(), calotype::Error>(())
//! ```
//!
//! # Sampling alone
//! Schedules, samplers and noise need no model, no engine and no feature: a denoiser is any function of `x` and sigma.
//!
//! ```
//! use calotype::sampler::Method;
//! use calotype::{Denoise, Error, Rng, Schedule};
//!
//! /// The ideal denoiser of data that is 0.5 everywhere.
//! struct Half;
//! impl Denoise for Half {
//!     fn denoise(&mut self, _x: &[f32], _sigma: f64, out: &mut [f32]) -> Result<(), Error> {
//!         out.fill(0.5);
//!         Ok(())
//!     }
//! }
//!
//! let schedule = Schedule::edm(&"karras".parse()?, 0.03, 14.6, 10)?;
//! let mut noise = Rng::Torch.source(1)?;
//! let mut x = vec![0.0; 64];
//! noise.fill_normal(&mut x);
//! x.iter_mut().for_each(|value| *value *= schedule.initial_scale() as f32);
//! let mut sampler = "dpm++2m".parse::<Method>()?.build(&schedule, x.len());
//! for step in schedule.steps() {
//!     sampler.step(&mut x, step, &mut Half, &mut noise)?;
//! }
//! assert!(x.iter().all(|value| (value - 0.5).abs() < 1e-5));
//! # Ok::<(), calotype::Error>(())
//! ```

// What only the layers above use of the pure one.
#![cfg_attr(not(feature = "engine"), allow(dead_code))]

#[cfg(feature = "engine")]
pub mod adapter;
#[cfg(feature = "engine")]
pub mod architecture;
#[cfg(any(feature = "capi", feature = "python"))]
mod binding;
#[cfg(feature = "capi")]
pub mod capi;
#[cfg(feature = "engine")]
pub mod certify;
#[cfg(feature = "engine")]
pub mod checkpoint;
pub mod control;
#[cfg(feature = "engine")]
pub mod deadline;
#[cfg(feature = "engine")]
pub mod engine;
pub mod error;
#[cfg(feature = "engine")]
pub mod family;
#[cfg(feature = "engine")]
pub mod graph;
pub mod guidance;
#[cfg(feature = "engine")]
pub mod image_file;
#[cfg(feature = "engine")]
pub mod journal;
pub mod json;
#[cfg(feature = "engine")]
pub mod manifest;
pub mod manual;
#[cfg(feature = "engine")]
pub mod memory;
#[cfg(feature = "engine")]
pub mod model;
mod name;
pub mod noise;
pub mod noise_model;
#[cfg(feature = "engine")]
pub mod pack;
#[cfg(feature = "engine")]
pub mod pipeline;
#[cfg(feature = "engine")]
pub mod plan;
pub mod prediction;
pub mod prompt;
#[cfg(feature = "engine")]
pub mod provenance;
#[cfg(feature = "python")]
pub mod python;
#[cfg(feature = "engine")]
pub mod recipe;
#[cfg(feature = "engine")]
pub mod recipe_file;
#[cfg(feature = "engine")]
pub mod request;
#[cfg(feature = "engine")]
pub mod run;
pub mod sampler;
pub mod schedule;
pub mod scheduler;
#[cfg(feature = "server")]
pub mod server;
#[cfg(feature = "engine")]
pub mod signature;
#[cfg(feature = "engine")]
pub mod slots;
#[cfg(feature = "engine")]
mod stage;
pub mod state;
pub mod tensor;
#[cfg(feature = "engine")]
pub mod tile;
#[cfg(feature = "engine")]
pub mod tokenizer;
#[cfg(feature = "engine")]
pub mod upscaler;
#[cfg(feature = "engine")]
pub mod weights;
#[cfg(feature = "engine")]
pub mod whole_file;

pub use error::{Error, ErrorKind};
pub use noise::Rng;
pub use noise_model::NoiseModel;
pub use prediction::Prediction;
pub use sampler::{Denoise, Sampler, SamplerKind};
pub use schedule::{Schedule, ScheduleKind};
pub use scheduler::Scheduler;
pub use tensor::PixelSize;
#[cfg(feature = "engine")]
pub use upscaler::Upscaler;
#[cfg(feature = "engine")]
pub use {
    deadline::Deadline,
    engine::{Cancel, SessionOptions},
    image_file::ImageFile,
    manifest::Manifest,
    model::Model,
    pipeline::{Options, Output, Pipeline, Progress, Run, Times},
    plan::{Budget, Plan},
    recipe::{Receipt, Recipe},
    request::Request,
};
