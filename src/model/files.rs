//! What a snapshot compares of a model's files, so that a run goes on with the weights that it began with. It knows bytes, and
//! nothing of what they are for.

use std::sync::{Arc, OnceLock};

use sha2::{Digest, Sha256};

use super::{Model, Part};
use crate::signature::CONTROL_NAMES;
use crate::weights::Weights;

/// The files of a model, without what was added to it.
#[derive(Clone, Debug)]
pub(crate) struct ModelFiles {
    /// The hashes that a bundle's manifest has of them.
    recorded: Option<String>,
    /// Of the components, by their names.
    weights: Vec<(&'static str, Arc<Weights>)>,
    sha256: Arc<OnceLock<[u8; 32]>>,
}

impl ModelFiles {
    pub(super) fn of(model: &Model) -> Self {
        let hashes = model.contents.as_ref().map(|contents| {
            contents.files.iter().map(|(name, record)| format!("{name} {}\n", record.sha256)).collect()
        });
        // Of a bundle only what was put beside it.
        let is_listed = |part: &&Part| hashes.is_none() || CONTROL_NAMES.contains(&part.name);
        let weights = model.parts().filter(is_listed).map(|part| (part.name, Arc::clone(&part.weights)));
        let weights = weights.collect();
        Self { recorded: hashes, weights, sha256: Arc::default() }
    }

    /// Of a bundle the SHA-256 of the hashes in its manifest, of other models that of their tensors' names, types and shapes,
    /// and of samples of their data: reading all takes as long as a run. Computed once, when it is first asked for.
    pub(crate) fn sha256(&self) -> [u8; 32] {
        *self.sha256.get_or_init(|| {
            let mut hash = Sha256::new_with_prefix(self.recorded.as_deref().unwrap_or_default());
            for (component, weights) in &self.weights {
                hash.update(component);
                hash.update(weights.sampled_sha256());
            }
            hash.finalize().into()
        })
    }
}

#[cfg(test)]
#[cfg(feature = "builtin")]
mod tests {
    use super::*;
    use crate::model::Part;

    /// Bundles are told apart by their manifests, other models by the data of any tensor.
    #[test]
    fn other_weights_are_other_files() {
        let bundle = Model::built_in().unwrap();
        let changed = |component: &str| {
            let mut model = Model { contents: None, ..Model::built_in().unwrap() };
            if let Some(part) = model.parts_mut().find(|part| part.name == component) {
                let (name, tensor) =
                    part.weights.iter().max_by_key(|(_, tensor)| tensor.len_bytes()).unwrap();
                let (dtype, shape, mut bytes) = (tensor.dtype(), tensor.shape(), tensor.to_bytes());
                bytes.iter_mut().for_each(|byte| *byte = byte.wrapping_add(1));
                let mut weights = Weights::clone(&part.weights);
                weights.replace(name, dtype, shape, &bytes).unwrap();
                *part = Part { weights: Arc::new(weights), ..part.clone() };
            }
            ModelFiles::of(&model).sha256()
        };
        let same = changed("none");
        assert_eq!(same, changed("none"));
        let parts: Vec<&str> = bundle.parts().map(|part| part.name).collect();
        assert_eq!(parts.len(), 4);
        for part in parts {
            assert_ne!(changed(part), same, "{part}");
        }
        let mut other = Model::built_in().unwrap();
        let files = &mut other.contents.as_mut().unwrap().files;
        files.get_mut("weights/unet.safetensors").unwrap().sha256.replace_range(..1, "x");
        assert_ne!(ModelFiles::of(&other).sha256(), ModelFiles::of(&bundle).sha256());
        assert_ne!(ModelFiles::of(&bundle).sha256(), same, "a bundle goes by its manifest");
    }
}
