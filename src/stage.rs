//! The stages of a run: each wraps one session and speaks in prompts, latents and pictures.
//! They know their own inputs and outputs by name, and nothing of each other.

pub(crate) mod denoiser;
pub(crate) mod text_encoder;
pub(crate) mod vae;
