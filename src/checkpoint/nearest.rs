//! The known family that an unknown file is nearest to, by telling tensors and their shapes, and where it first differs.
//! It knows a few tensors of each family, the ones in which families differ.

use super::Family;
use super::UNET_PREFIXES;
use crate::weights::Weights;

/// Tensors of a family's U-Net, and their shapes; the most telling first.
type Tells = &'static [(&'static str, &'static [usize])];

const KEYS_1: &str = "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight";
const KEYS_4: &str = "input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight";

const FAMILIES: [(Family, Tells); 5] = [
    (
        Family::Sd1,
        &[
            ("input_blocks.0.0.weight", &[320, 4, 3, 3]),
            (KEYS_1, &[320, 768]),
            ("input_blocks.1.1.proj_in.weight", &[320, 320, 1, 1]),
            (KEYS_4, &[640, 768]),
            ("input_blocks.11.0.out_layers.3.weight", &[1280, 1280, 3, 3]),
            ("middle_block.1.transformer_blocks.0.attn2.to_k.weight", &[1280, 768]),
            ("output_blocks.11.1.proj_out.weight", &[320, 320, 1, 1]),
            ("out.2.weight", &[4, 320, 3, 3]),
        ],
    ),
    (
        Family::Sd2,
        &[
            ("input_blocks.0.0.weight", &[320, 4, 3, 3]),
            (KEYS_1, &[320, 1024]),
            ("input_blocks.1.1.proj_in.weight", &[320, 320]),
            (KEYS_4, &[640, 1024]),
            ("input_blocks.11.0.out_layers.3.weight", &[1280, 1280, 3, 3]),
            ("middle_block.1.transformer_blocks.0.attn2.to_k.weight", &[1280, 1024]),
            ("output_blocks.11.1.proj_out.weight", &[320, 320]),
            ("out.2.weight", &[4, 320, 3, 3]),
        ],
    ),
    (
        Family::Sdxl,
        &[
            ("input_blocks.0.0.weight", &[320, 4, 3, 3]),
            ("label_emb.0.0.weight", &[1280, 2816]),
            (KEYS_4, &[640, 2048]),
            ("input_blocks.7.1.transformer_blocks.9.attn2.to_k.weight", &[1280, 2048]),
            ("middle_block.1.transformer_blocks.9.attn2.to_k.weight", &[1280, 2048]),
            ("output_blocks.8.0.out_layers.3.weight", &[320, 320, 3, 3]),
            ("out.2.weight", &[4, 320, 3, 3]),
        ],
    ),
    (
        Family::SdxlRefiner,
        &[
            ("input_blocks.0.0.weight", &[384, 4, 3, 3]),
            ("label_emb.0.0.weight", &[1536, 2560]),
            (KEYS_4, &[768, 1280]),
            ("middle_block.1.transformer_blocks.3.attn2.to_k.weight", &[1536, 1280]),
            ("out.2.weight", &[4, 384, 3, 3]),
        ],
    ),
    (
        Family::Upscaler,
        &[
            ("input_blocks.0.0.weight", &[256, 7, 3, 3]),
            ("label_emb.weight", &[1000, 1024]),
            (KEYS_4, &[512, 1024]),
            ("out.2.weight", &[4, 256, 3, 3]),
        ],
    ),
];

/// The family with most of its telling tensors there, of these names at least, and the first that is not; nothing for a file
/// without any. A name counts half of what name and shape do.
pub(super) fn nearest(weights: &Weights) -> Option<String> {
    let shape = |name: &str| {
        let found = UNET_PREFIXES.iter().find_map(|prefix| weights.get(&format!("{prefix}{name}")));
        found.map(|tensor| tensor.shape().to_vec())
    };
    let score = |tells: Tells| {
        let points = tells.iter().map(|(name, wanted)| match shape(name) {
            Some(got) if got == *wanted => 2,
            Some(_) => 1,
            None => 0,
        });
        // Of equals the one with less that is missing.
        let points: usize = points.sum();
        points * 1000 / (2 * tells.len())
    };
    let scored = FAMILIES.iter().map(|(family, tells)| (score(tells), family, tells));
    // The first of equals.
    let (best, family, tells) = scored.rev().max_by_key(|(score, ..)| *score)?;
    if best == 0 {
        return None;
    }
    let (name, wanted) = tells.iter().find(|(name, wanted)| shape(name).as_deref() != Some(*wanted))?;
    let got = shape(name).map_or_else(|| "none".to_owned(), |shape| format!("shape {shape:?}"));
    Some(format!("nearest is {family}, whose {name} has shape {wanted:?}: got {got}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::Dtype;

    fn file(tensors: &[(&str, &[usize])]) -> Weights {
        let mut weights = Weights::default();
        for (name, shape) in tensors {
            weights.replace(*name, Dtype::U8, shape, &vec![0; shape.iter().product()]).unwrap();
        }
        weights
    }

    #[test]
    fn the_nearest_family_is_named_with_the_first_difference() {
        for (family, tells) in FAMILIES {
            let all: Vec<(&str, &[usize])> = tells.iter().map(|(name, shape)| (*name, *shape)).collect();
            assert_eq!(nearest(&file(&all)), None, "{family}: nothing differs");
            for missing in 0..all.len() {
                let mut some = all.clone();
                let (name, shape) = some.remove(missing);
                let text = nearest(&file(&some)).unwrap();
                assert_eq!(text, format!("nearest is {family}, whose {name} has shape {shape:?}: got none"));
            }
            let mut changed = all.clone();
            changed[0].1 = &[1, 2];
            assert!(nearest(&file(&changed)).unwrap().ends_with("got shape [1, 2]"), "{family}");
        }
        assert_eq!(nearest(&file(&[("a", &[1])])), None);
    }
}
