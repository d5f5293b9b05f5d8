//! `tokenizer.json`, against the crate that defines it: the same files are read, and words get the same ids.

use calotype::prompt::Text;
use calotype::tokenizer::{SpecialTokens, Tokenizer};
use serde::de::IgnoredAny;

const CONTEXT: usize = 77;
const SPECIAL: SpecialTokens = SpecialTokens { bos: 0, eos: 1, pad: 2 };

pub fn run(bytes: &[u8]) {
    let Ok(tokenizer) = Tokenizer::from_bytes(bytes, CONTEXT, SPECIAL) else { return };
    // Python's JSON is read as well (`calotype::json`); the reference takes standard JSON alone.
    if serde_json::from_slice::<IgnoredAny>(bytes).is_err() {
        return;
    }
    let reference = tokenizers::Tokenizer::from_bytes(bytes).expect("read, and refused by the reference");
    for words in ["a", "a red apple", "4k, 2:1 \u{1f34e} \u{e9}"] {
        let text = Text::literal(words).expect("a short text");
        let Ok(encoded) = tokenizer.encode(&text, 1) else { continue };
        let chunk = &encoded.chunks[0];
        assert_eq!(chunk.ids.len(), CONTEXT);
        assert_eq!(chunk.weights.len(), CONTEXT);
        let Ok(expected) = reference.encode(words, false) else { continue };
        let expected = expected.get_ids();
        if expected.len() > CONTEXT - 2 {
            continue;
        }
        let ids: Vec<i64> = std::iter::once(SPECIAL.bos)
            .chain(expected.iter().copied())
            .chain([SPECIAL.eos])
            .map(i64::from)
            .collect();
        assert_eq!(chunk.ids[..ids.len()], ids, "{words}");
        assert!(chunk.ids[ids.len()..].iter().all(|id| *id == i64::from(SPECIAL.pad)), "{words}");
    }
}
