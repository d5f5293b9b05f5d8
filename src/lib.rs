//! calotype generates images from prompts with latent diffusion on the local device.
//!
//! ONNX graphs (text encoder, U-Net, VAE) run in ONNX Runtime; everything between them is Rust.

// What only the layers above use of the pure one.
#![cfg_attr(not(feature = "engine"), allow(dead_code))]

#[cfg(feature = "engine")]
pub mod adapter;
#[cfg(feature = "engine")]
pub mod architecture;
#[cfg(feature = "engine")]
pub mod certify;
#[cfg(feature = "engine")]
pub mod checkpoint;
#[cfg(feature = "engine")]
pub mod engine;
pub mod error;
#[cfg(feature = "engine")]
pub mod family;
#[cfg(feature = "engine")]
pub mod graph;
pub mod guidance;
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
pub mod picture;
#[cfg(feature = "engine")]
pub mod pipeline;
#[cfg(feature = "engine")]
pub mod plan;
pub mod prediction;
pub mod prompt;
#[cfg(feature = "engine")]
pub mod provenance;
#[cfg(feature = "engine")]
pub mod recipe;
#[cfg(feature = "engine")]
pub mod request;
#[cfg(feature = "engine")]
pub mod run;
pub mod sampler;
pub mod schedule;
pub mod scheduler;
#[cfg(feature = "engine")]
pub mod signature;
#[cfg(feature = "engine")]
mod stage;
pub mod state;
pub mod tensor;
#[cfg(feature = "engine")]
pub mod tile;
#[cfg(feature = "engine")]
pub mod tokenizer;
#[cfg(feature = "engine")]
pub mod weights;

pub use error::{Error, ErrorKind};
