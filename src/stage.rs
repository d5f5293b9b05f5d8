//! The stages of a run: each wraps one session and speaks in prompts, latents and images.
//! They know their own inputs and outputs by name, and of each other only what is handed on.

pub(crate) mod blend;
pub(crate) mod component;
pub(crate) mod conditioning;
pub(crate) mod control;
pub(crate) mod denoiser;
pub(crate) mod enlarge;
pub(crate) mod feed;
pub(crate) mod predictor;
pub(crate) mod seeded;
pub(crate) mod start;
pub(crate) mod text_encoder;
pub(crate) mod text_states;
pub(crate) mod tile;
pub(crate) mod trial;
pub(crate) mod vae;
