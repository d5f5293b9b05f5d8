//! calotype generates images from prompts with latent diffusion on the local device.
//!
//! ONNX graphs (text encoder, U-Net, VAE) run in ONNX Runtime; everything between them is Rust.

pub mod adapter;
pub mod architecture;
pub mod certify;
pub mod checkpoint;
pub mod engine;
pub mod error;
pub mod family;
pub mod graph;
pub mod guidance;
pub mod json;
pub mod manifest;
pub mod manual;
pub mod memory;
pub mod model;
mod name;
pub mod noise;
pub mod noise_model;
pub mod pack;
pub mod picture;
pub mod pipeline;
pub mod plan;
pub mod prediction;
pub mod prompt;
pub mod recipe;
pub mod request;
pub mod run;
pub mod sampler;
pub mod schedule;
pub mod scheduler;
pub mod signature;
mod stage;
pub mod state;
pub mod tensor;
pub mod tile;
pub mod tokenizer;
pub mod weights;

pub use error::{Error, ErrorKind};
