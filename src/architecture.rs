//! Architectures: the configuration of a network, as diffusers and transformers write it, and the graph that it means.
//! It knows the published networks, and nothing of files, weights' values or sessions.

mod builder;
pub mod unet;
