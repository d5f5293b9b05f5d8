//! What made an image, for its receipt. It knows nothing of files.

use std::collections::BTreeMap;

use sha2::{Digest, Sha256};

use crate::engine::{Library, Placement, Provider, Providers, Share, cpu_kind};
use crate::model::Model;
use crate::pipeline::Output;
use crate::recipe::{Provenance, Ran};
use crate::request::Request;

/// What made the image of a run; `provider` as [`providers`] tells it, `shares` as [`shares`] does.
pub fn provenance(
    output: &Output,
    request: &Request,
    model: &Model,
    model_sha256: Option<String>,
    library: &Library,
    provider: String,
    shares: BTreeMap<String, BTreeMap<String, Ran>>,
) -> Provenance {
    let image = &output.image;
    let files = model.contents().map(|contents| contents.files.iter());
    Provenance {
        calotype: env!("CARGO_PKG_VERSION").into(),
        model_name: model.manifest().name.clone(),
        model_sha256,
        model_files: files
            .map(|files| files.map(|(name, record)| (name.clone(), record.sha256.clone())).collect()),
        pixels_sha256: Some(pixels_sha256(image.width(), image.height(), image.as_raw())),
        sigmas: request.sigmas(),
        provider,
        shares,
        onnxruntime: library.version().to_owned(),
        cpu: Some(cpu_kind()),
        retries: output.retries.clone(),
    }
}

/// The SHA-256 by which a receipt knows its image: of `WIDTHxHEIGHT`, a line end, and 3 bytes a pixel in rows.
pub fn pixels_sha256(width_px: u32, height_px: u32, rgb: &[u8]) -> String {
    let mut hash = Sha256::new();
    hash.update(format!("{width_px}x{height_px}\n"));
    hash.update(rgb);
    format!("{:x}", hash.finalize())
}

/// What each provider ran of each component's graph, where that is known: [`Placement::shares`].
pub fn shares<'a>(
    placements: impl Iterator<Item = &'a Placement>,
) -> BTreeMap<String, BTreeMap<String, Ran>> {
    let ran =
        |share: &Share| (share.provider.clone(), Ran { nodes: share.nodes, partitions: share.partitions });
    let known = placements.filter_map(|placement| Some((placement, placement.shares.as_ref()?)));
    known.map(|(placement, shares)| (placement.component.clone(), shares.iter().map(ran).collect())).collect()
}

/// Where each component runs: `cpu`, or `text_encoder=cpu,unet=cuda,unet=cpu`.
pub fn providers<'a>(placements: impl Iterator<Item = &'a Placement>) -> String {
    let mut lists: Vec<(&str, &Vec<Provider>)> = Vec::new();
    for placement in placements {
        // Several components are chosen for together.
        let group = Providers::group_of(&placement.component);
        if lists.iter().all(|(known, _)| *known != group) {
            lists.push((group, &placement.providers));
        }
    }
    let (prefixes, lists) = match lists.windows(2).all(|pair| pair[0].1 == pair[1].1) {
        true => (false, &lists[..1]),
        false => (true, &lists[..]),
    };
    let entries = lists.iter().flat_map(|(component, list)| {
        list.iter().map(move |provider| match prefixes {
            true => format!("{component}={provider}"),
            false => provider.to_string(),
        })
    });
    entries.collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pixels_are_known_by_their_shape_too() {
        assert_ne!(pixels_sha256(2, 1, &[0; 6]), pixels_sha256(1, 2, &[0; 6]));
        // printf '2x1\n\0\0\0\0\0\0' | sha256sum
        assert_eq!(
            pixels_sha256(2, 1, &[0; 6]),
            "7fea82c78698410c5065f48be3cc9c73ef1fb32994a6f475736daa15895ac5c8"
        );
    }
}
