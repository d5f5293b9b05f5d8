//! The built-in CLIP tokenizer against transformers: `tests/golden/tokens.json`, written by `export/golden_tokens.py`.

use std::fs;

use calotype::tokenizer::{Encoded, SpecialTokens, Tokenizer};
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
        assert_eq!(tokenizer.encode(prompt).unwrap(), Encoded { ids: expected, cut: None }, "{prompt:?}");
    }
}

#[test]
fn what_is_cut_is_what_transformers_does_not_encode() {
    let tokenizer = clip(CONTEXT, EOS);
    let mut cuts = 0;
    for case in golden("cases") {
        let prompt = case["prompt"].as_str().unwrap();
        let encoded = tokenizer.encode(prompt).unwrap();
        assert_eq!(encoded.cut.as_deref(), case["cut"].as_str(), "{prompt:?}");
        cuts += usize::from(encoded.cut.is_some());
    }
    assert!(cuts > 5, "only {cuts} prompts are too long");
}

#[test]
fn padding_is_that_of_transformers() {
    for case in golden("padded") {
        let prompt = case["prompt"].as_str().unwrap();
        assert_eq!(clip(CONTEXT, EOS).encode(prompt).unwrap().ids, ids(&case["eos"]), "{prompt:?}");
        assert_eq!(clip(CONTEXT, 0).encode(prompt).unwrap().ids, ids(&case["zero"]), "{prompt:?}");
    }
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
