//! Architectures: the configuration of a network, as diffusers and transformers write it, and the graph that it means.
//! It knows the published networks, and nothing of files, weights' values or sessions.

pub mod autoencoder_kl;
pub mod autoencoder_tiny;
mod builder;
pub mod clip;
pub mod controlnet;
pub(crate) mod product;
pub mod t2i_adapter;
pub mod unet;

use std::fmt::Display;
use std::ops::RangeInclusive;

use serde::de::DeserializeOwned;
use serde_json::{Map, Value as Json};

use crate::{Error, ErrorKind, json};

/// The most channels that a layer is believed to have.
const MAX_CHANNELS: usize = 65536;
/// The most resolutions that a network is believed to work at.
const MAX_BLOCKS: usize = 16;
/// The most layers that are believed to follow each other at one resolution.
const MAX_LAYERS: usize = 256;

/// Reads a `config.json`, which `place` names in messages.
fn read<T: DeserializeOwned>(place: &str, json: &[u8]) -> Result<T, Error> {
    let refuse = |problem: &dyn Display| Error::new(ErrorKind::Model, format!("{place}: {problem}"));
    let json = json::standard(place, json)?;
    let object: Map<String, Json> = serde_json::from_slice(&json)
        .map_err(|error| refuse(&"expected a configuration as a JSON object").source(error))?;
    serde_path_to_error::deserialize(Json::Object(object))
        .map_err(|error| refuse(error.path()).source(error.into_inner()))
}

/// The error for a key whose value means a network that cannot be, or that is not built here.
fn unfit(place: &str, key: &str, expected: impl Display, got: impl Display) -> Error {
    Error::new(ErrorKind::Model, format!("{place}: {key}: expected {expected}, got {got}"))
}

fn check_range(place: &str, key: &str, range: RangeInclusive<usize>, got: usize) -> Result<(), Error> {
    if range.contains(&got) {
        return Ok(());
    }
    Err(unfit(place, key, format_args!("{} to {}", range.start(), range.end()), got))
}

/// Checks a kind of layer, or of network, of which only some are built.
fn check_kind(place: &str, key: &str, built: &[&str], got: &str) -> Result<(), Error> {
    if built.contains(&got) {
        return Ok(());
    }
    Err(unfit(place, key, built.join(" or "), got).help("unsupported architecture"))
}
