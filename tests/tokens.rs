//! The built-in CLIP tokenizer against transformers: `tests/golden/tokens.json`, written by `export/golden_tokens.py`.

#![cfg(feature = "engine")]

use std::fs;

use calotype::prompt::Text;
use calotype::tokenizer::{SpecialTokens, Tokenizer};
use serde_json::Value;

const CONTEXT: usize = 77;
const BOS: u32 = 49406;
const EOS: u32 = 49407;

#[test]
fn ids_are_those_of_transformers() {
    let cases = golden("cases");
    assert!(cases.len() > 150, "only {} prompts", cases.len());
    // One context that all of them fit into.
    let longest = cases.iter().map(|case| ids(&case["ids"]).len()).max().unwrap();
    let tokenizer = clip(longest, EOS);
    for case in &cases {
        let prompt = case["prompt"].as_str().unwrap();
        let mut expected = ids(&case["ids"]);
        expected.resize(longest, i64::from(EOS));
        assert_eq!(encode(&tokenizer, prompt), (expected, None), "{prompt:?}");
    }
}

#[test]
fn what_is_cut_is_what_transformers_does_not_encode() {
    let tokenizer = clip(CONTEXT, EOS);
    let mut cuts = 0;
    for case in golden("cases") {
        let prompt = case["prompt"].as_str().unwrap();
        let (_, cut) = encode(&tokenizer, prompt);
        assert_eq!(cut.as_deref(), case["cut"].as_str(), "{prompt:?}");
        cuts += usize::from(cut.is_some());
    }
    assert!(cuts > 5, "only {cuts} prompts are too long");
}

#[test]
fn padding_is_that_of_transformers() {
    for case in golden("padded") {
        let prompt = case["prompt"].as_str().unwrap();
        assert_eq!(encode(&clip(CONTEXT, EOS), prompt).0, ids(&case["eos"]), "{prompt:?}");
        assert_eq!(encode(&clip(CONTEXT, 0), prompt).0, ids(&case["zero"]), "{prompt:?}");
    }
}

/// Every emoji in `export/emoji/words.json` is to the built-in model what its words are, alone, beside others, and within a
/// word; all other texts have the tokens that they had.
#[test]
#[cfg(feature = "builtin")]
fn emoji_are_words_of_the_built_in_model() {
    let model = calotype::model::Model::built_in().unwrap();
    let encoder = &model.text_encoders()[0];
    let tokenizer = encoder.tokenizer(CONTEXT).unwrap();
    let trained = &model.manifest().trained_words;
    let words: std::collections::BTreeMap<String, String> =
        serde_json::from_str(include_str!("../export/emoji/words.json")).unwrap();
    assert!(words.len() > 140, "{} emoji", words.len());
    for (emoji, words) in &words {
        for (prompt, meant) in [
            (emoji.clone(), words.clone()),
            (format!("a{emoji}{emoji} on blue"), format!("a {words} {words} on blue")),
            (format!("{emoji}\u{fe0f}, red"), format!("{words}, red")),
        ] {
            let [got, expected] = [&prompt, &meant].map(|text| encode(&tokenizer, text));
            assert_eq!(got, expected, "{prompt:?}");
            let text = Text::literal(&prompt).unwrap();
            assert_eq!(tokenizer.unknown_words(&text).unwrap(), [""; 0], "{prompt:?}");
            assert_eq!(tokenizer.words_beside(&text, trained).unwrap(), [""; 0], "{prompt:?}");
        }
    }
    let [apple, rocket] = ["🍎", "🚀"].map(|emoji| &words[emoji][..]);
    assert_eq!([apple, rocket], ["red apple", "rocket"]);
    let unknown = encode(&tokenizer, "🦖");
    assert_eq!(unknown, encode(&tokenizer, "\u{1f9ff}"));
    // As PyPI's tokenizers 0.23.3 has it with the file before it had emoji.
    let mut before =
        vec![1, 18, 96, 3571, 21, 3385, 2123, 109, 3, 2, 2, 2, 2472, 410, 2, 34, 1180, 3643, 325, 2];
    before.resize(CONTEXT, 0);
    assert_eq!(encode(&tokenizer, "Café façade, ﬁ 日本 snowman's ladybug!").0, before);
}

/// The ids of a prompt's first chunk, and what of the prompt is not in it.
fn encode(tokenizer: &Tokenizer, prompt: &str) -> (Vec<i64>, Option<String>) {
    let mut encoded = tokenizer.encode(&Text::literal(prompt).unwrap(), 1).unwrap();
    (encoded.chunks.remove(0).ids, encoded.cut.map(|cut| cut.text))
}

fn clip(context: usize, pad: u32) -> Tokenizer {
    Tokenizer::clip(context, SpecialTokens { bos: BOS, eos: EOS, pad }).unwrap()
}

fn golden(part: &str) -> Vec<Value> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/tokens.json");
    let golden: Value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    golden[part].as_array().unwrap().clone()
}

fn ids(value: &Value) -> Vec<i64> {
    value.as_array().unwrap().iter().map(|id| id.as_i64().unwrap()).collect()
}
