//! The decoder of previews, from a file of its own: that of a tiny autoencoder (TAESD), as a diffusers folder, as diffusers' file
//! alone, or under the names of its authors. It knows what such files leave out.

use std::path::Path;
use std::sync::Arc;

use super::{Part, folder, read};
use crate::architecture::autoencoder_tiny::Config;
use crate::checkpoint::Names;
use crate::manifest::LatentSpace;
use crate::weights::{Stored, Weights};
use crate::{Error, ErrorKind};

/// The name of the component.
pub(crate) const NAME: &str = "preview_decoder";
/// What names begin with in diffusers' files.
const DIFFUSERS: &str = "decoder.layers.";
/// What they begin with in those of TAESD's authors: nothing in `taesd_decoder.safetensors`, a word where encoder and decoder, or
/// a whole VAE, are in one file.
const ORIGINAL: [&str; 3] = ["", "decoder.", "taesd_decoder."];

/// A tiny decoder and how its latents relate to images.
#[derive(Clone, Debug)]
pub(crate) struct PreviewDecoder {
    pub(crate) part: Part,
    pub(crate) latents: LatentSpace,
}

impl PreviewDecoder {
    /// The decoder at a path, for a model whose VAE has latents like `own`.
    ///
    /// # Errors
    /// [`ErrorKind::Model`] for a file that is not of a tiny autoencoder, and one of other latents.
    pub(super) fn open(path: &Path, own: &LatentSpace) -> Result<Self, Error> {
        let (config, part) = if path.is_dir() { of_folder(path)? } else { of_file(path)? };
        // Weights that do not fit are found now, and not at the first preview.
        part.bind()?;
        let latents = LatentSpace {
            channels: config.latent_channels,
            factor_px: config.factor_px(),
            scale: config.scaling_factor,
            shift: config.shift_factor,
            normalised: Vec::new(),
        };
        if (latents.channels, latents.factor_px) != (own.channels, own.factor_px) {
            let message = format!(
                "{}: expected a decoder of {} latent channels and {} pixels per cell, as the model's VAE, got {} and {}",
                part.weights_origin, own.channels, own.factor_px, latents.channels, latents.factor_px
            );
            return Err(
                Error::new(ErrorKind::Model, message).help("each family has a tiny decoder of its own")
            );
        }
        Ok(Self { part, latents })
    }
}

fn of_folder(path: &Path) -> Result<(Config, Part), Error> {
    let place = path.join("config.json");
    let config = Config::parse(&place.display().to_string(), &read(&place)?)?;
    let part = folder::part(NAME, path, None, config.decoder()?, Ok)?;
    Ok((config, part))
}

fn of_file(path: &Path) -> Result<(Config, Part), Error> {
    let place = path.display().to_string();
    let weights = Weights::open(&[path])?;
    let is_diffusers = weights.iter().any(|(name, _)| name.starts_with(DIFFUSERS));
    let prefix = ORIGINAL.iter().rev().find(|prefix| weights.get(&format!("{prefix}1.weight")).is_some());
    let names: Names = match (is_diffusers, prefix) {
        (true, _) => {
            let own = weights.iter().filter(|(name, _)| name.starts_with(DIFFUSERS));
            own.map(|(name, _)| (name.to_owned(), Stored::whole(name))).collect()
        }
        (false, Some(prefix)) => {
            let own = weights.iter().filter_map(|(name, _)| Some((name, name.strip_prefix(prefix)?)));
            own.filter_map(|(name, own)| Some((diffusers_name(own)?, Stored::whole(name)))).collect()
        }
        (false, None) => {
            let message =
                format!("{place}: expected the decoder of a tiny autoencoder (TAESD), got other weights");
            return Err(Error::new(ErrorKind::Model, message)
                .help("published as diffusion_pytorch_model.safetensors or taesd_decoder.safetensors")
                .in_file(path));
        }
    };
    let weights = weights.select(names)?;
    // All published ones have the blocks and factors of the first.
    let mut config = Config::default();
    if let Some([width, channels, ..]) = weights.get("decoder.layers.0.weight").map(|tensor| tensor.shape()) {
        config.latent_channels = *channels;
        config.decoder_block_out_channels = vec![*width; config.num_decoder_blocks.len()];
    }
    let part = Part::new(NAME, "derived for TAESD".into(), place, config.decoder()?, Arc::new(weights))?;
    Ok((config, part))
}

/// What diffusers calls a tensor of the authors' decoder, whose first layer bounds the latents and has no weights.
fn diffusers_name(name: &str) -> Option<String> {
    let (layer, rest) = name.split_once('.')?;
    let layer = layer.parse::<usize>().ok()?.checked_sub(1)?;
    Some(format!("{DIFFUSERS}{layer}.{rest}"))
}
