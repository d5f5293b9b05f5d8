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
