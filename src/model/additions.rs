//! What was added to a model that its manifest does not say: LoRA files, embeddings and a skipped layer. It knows what makes
//! two models of the same files different, and nothing of how things are added.

use std::sync::{Arc, OnceLock};

use sha2::{Digest, Sha256};

use crate::adapter::embedding::Embedding;
use crate::adapter::lora::Lora;

/// What was added to a model.
#[derive(Clone, Debug, Default)]
pub(crate) struct Additions {
    /// Where a layer was chosen.
    pub(super) clip_skip: Option<usize>,
    /// With their strengths.
    pub(super) loras: Arc<Vec<(Lora, f32)>>,
    pub(super) embeddings: Vec<Embedding>,
    pub(super) sha256: Arc<OnceLock<[u8; 32]>>,
}

impl Additions {
    /// The same, to be changed: its hash is not known.
    pub(super) fn renewed(&self) -> Self {
        Self { sha256: Arc::default(), ..self.clone() }
    }

    /// The SHA-256 of all that changes what is drawn: the files' contents, not their names. Computed once, when it is
    /// first asked for: it reads all files.
    pub(crate) fn sha256(&self) -> [u8; 32] {
        // All fields, so that a new one is not forgotten.
        let Self { clip_skip, loras, embeddings, sha256 } = self;
        *sha256.get_or_init(|| {
            let mut hash = Sha256::new_with_prefix(format!("{clip_skip:?} {}", loras.len()));
            loras.iter().for_each(|(lora, strength)| hash.update(lora.sha256(*strength)));
            embeddings.iter().for_each(|embedding| hash.update(embedding.sha256()));
            hash.finalize().into()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_skipped_layer_is_an_addition() {
        let none = Additions::default();
        let hashes = [None, Some(1), Some(2)]
            .map(|clip_skip| Additions { clip_skip, ..none.renewed() })
            .map(|additions| additions.sha256());
        assert_eq!(hashes[0], none.sha256());
        assert!(hashes[0] != hashes[1] && hashes[1] != hashes[2]);
        // A hash that was computed before is not that of what is changed after.
        let changed = Additions { clip_skip: Some(2), ..none.renewed() };
        assert_eq!(changed.sha256(), hashes[2]);
    }
}
