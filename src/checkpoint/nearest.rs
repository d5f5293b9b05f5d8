//! The known family that an unknown file is nearest to, by telling tensors and their shapes, and where it first differs.
//! It knows no family; each says which tensors tell it.

use super::UNET_PREFIXES;
use crate::family::{Family, Tells};
use crate::weights::Weights;

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
    let scored = Family::ALL.iter().map(|family| (score(family.tells()), family, family.tells()));
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
        for family in Family::ALL {
            let all: Vec<(&str, &[usize])> =
                family.tells().iter().map(|(name, shape)| (*name, *shape)).collect();
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
