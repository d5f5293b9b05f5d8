//! Prompts against the code of AUTOMATIC1111's web UI: `tests/golden/prompts.*`, written by `export/golden_prompts.py`.
//! What text encoders make of them is compared in `tests/families`, too, for models that are not built in.

#![cfg(feature = "builtin")]

use std::path::Path;
use std::time::{Duration, Instant};

use calotype::ErrorKind;
use calotype::model::Model;
use calotype::pipeline::{Options, Pipeline};
use calotype::prompt::{self, Part, Prompt, Text};
use calotype::tokenizer::{MAX_CHUNKS, SpecialTokens, Tokenizer};
use calotype::weights::Weights;
use serde_json::{Value, json};

/// Relative L2 distance: two libraries' ways to round in single precision stay below.
const STATES_TOLERANCE: f64 = 1e-5;

#[test]
fn parts_texts_and_weights_are_those_of_the_web_ui() {
    let golden = golden();
    let cases = golden["cases"].as_array().unwrap();
    let (mut changing, mut several, mut weighted, mut refused, mut unclear) = (0, 0, 0, 0, 0);
    for case in cases {
        let (source, steps) = (case["prompt"].as_str().unwrap(), case["steps"].as_u64().unwrap() as usize);
        let answers = case["answers"].as_array().unwrap();
        let parts = Prompt::parse(source).unwrap().parts(steps);
        if answers.iter().all(|answer| !answer["raises"].is_null()) {
            assert_eq!(parts.expect_err(source).kind(), ErrorKind::Usage);
            refused += 1;
            continue;
        }
        let parts = parts.unwrap();
        let negative = Prompt::parse_negative(source).unwrap().parts(steps).unwrap();
        let got =
            json!({ "parts": parts.iter().map(told).collect::<Vec<_>>(), "negative": told(&negative[0]) });
        let is_answer = answers.iter().any(|answer| {
            let mut answer = rounded(answer);
            // The parser of the web UI leaves names of LoRA files to others, who have taken them out before.
            let text = answer.to_string();
            if let Some((before, (_, after))) =
                text.split_once("<lora:").and_then(|(before, rest)| Some((before, rest.split_once('>')?)))
            {
                answer = serde_json::from_str(&format!("{before}{after}")).unwrap();
            }
            // A weight at the end of a prompt without AND is text for us, as in negative prompts.
            if parts.len() == 1 && answer["parts"][0]["weight"] != json!(1.0) {
                answer["parts"][0] = answer["negative"].clone();
            }
            answer == got
        });
        assert!(
            is_answer && negative.len() == 1,
            "{source:?} in {steps} steps: got {got}, expected {answers:?}"
        );
        changing += usize::from(parts.iter().any(|part| part.texts.len() > 1));
        several += usize::from(parts.len() > 1);
        let mut fragments = parts.iter().flat_map(|part| &part.texts).flat_map(Text::fragments);
        weighted += usize::from(fragments.any(|fragment| fragment.weight() != 1.0));
        unclear += usize::from(answers.len() > 1);
    }
    assert!(cases.len() > 300 && refused > 1, "{} cases, {refused} errors", cases.len());
    assert!(changing > 50 && several > 20 && weighted > 100, "{changing}, {several}, {weighted}");
    assert!(unclear < cases.len() / 10, "{unclear} cases with several answers");
}

#[test]
fn chunks_are_those_of_the_web_ui() {
    let tokenizer = clip(49407);
    for case in golden()["tokens"].as_array().unwrap() {
        let encoded = tokenizer.encode(&text(case["prompt"].as_str().unwrap()), usize::MAX).unwrap();
        let ids: Vec<_> = encoded.chunks.iter().map(|chunk| &chunk.ids).collect();
        assert_eq!(json!(ids), case["ids"], "{}", case["prompt"]);
        for (chunk, expected) in encoded.chunks.iter().zip(case["weights"].as_array().unwrap()) {
            let expected = expected.as_array().unwrap().iter().map(|weight| weight.as_f64().unwrap() as f32);
            assert!(expected.eq(chunk.weights.iter().copied()), "{}", case["prompt"]);
        }
        assert_eq!(encoded.cut, None);
    }
}

#[test]
fn states_are_those_of_the_web_ui() {
    let mut pipeline = Pipeline::open(&Model::built_in().unwrap(), &Options::default()).unwrap();
    let golden = golden();
    let arrays = Weights::open(&[folder().join("prompts.safetensors")]).unwrap();
    let array = |name: &Value| -> Vec<f32> {
        let bytes = arrays.get(name.as_str().unwrap()).unwrap().to_bytes();
        bytes.as_chunks().0.iter().map(|value| f32::from_le_bytes(*value)).collect()
    };
    let mut most_chunks = 0;
    for case in golden["states"]["builtin"].as_array().unwrap() {
        let prompt = case["prompt"].as_str().unwrap();
        let encoded = pipeline.encode(&text(prompt)).unwrap();
        let (chunks, width) =
            (case["chunks"].as_u64().unwrap() as usize, encoded.states.len() / encoded.tokens);
        assert_eq!((encoded.tokens, encoded.cut), (24 * chunks, None), "{prompt}");
        most_chunks = most_chunks.max(chunks);
        let kept = |states: &[f32]| {
            let rows: Vec<usize> = golden["rows"]["24"]
                .as_array()
                .unwrap()
                .iter()
                .map(|row| row.as_u64().unwrap() as usize)
                .collect();
            let rows = (0..chunks).flat_map(|chunk| rows.iter().map(move |row| 24 * chunk + row));
            rows.flat_map(|row| states[row * width..][..width].to_vec()).collect::<Vec<f32>>()
        };
        let (expected, got) = (array(&case["states"]), kept(&encoded.states));
        let error = distance(&got, &expected);
        assert!(error <= STATES_TOLERANCE, "{prompt}: relative error {error:.1e}");
        let mut shifted = encoded.states.clone();
        shifted.rotate_right(width);
        for (wrong, what) in [(vec![0.0; got.len()], "zeros"), (kept(&shifted), "a token's shift")] {
            assert!(distance(&wrong, &expected) > 100.0 * STATES_TOLERANCE, "{prompt}: {what} would pass");
        }
        if prompt.contains(['(', '[']) {
            let error = distance(&array(&case["plain"]), &expected);
            assert!(error > 100.0 * STATES_TOLERANCE, "{prompt}: without weights it would pass");
        }
    }
    assert!(most_chunks > 3, "the longest has {most_chunks} chunks");
}

/// Of chunks, only the place in the whole tells them apart.
#[test]
fn what_a_place_in_the_prompt_means_is_kept() {
    let prompt = Prompt::parse("[x|Café (red\\) fox:1.2)] AND the [end:2] \\(").unwrap();
    let parts = prompt.parts(4).unwrap();
    let tokenizer = Tokenizer::clip(3, SpecialTokens { bos: 49406, eos: 49407, pad: 49407 }).unwrap();
    let cut = |part: usize, text: usize| {
        let cut = tokenizer.encode(&parts[part].texts[text], 1).unwrap().cut.unwrap();
        (cut.text, &prompt.typed()[cut.place_bytes..])
    };
    assert_eq!(cut(0, 1), ("red) fox".into(), "red\\) fox:1.2)] AND the [end:2] \\("));
    assert_eq!(cut(1, 0), ("(".into(), "("));
    assert_eq!(cut(1, 1), ("end (".into(), "end:2] \\("));
}

#[test]
fn a_literal_prompt_means_itself() {
    let source = "(a:1.2) [b|c] BREAK AND \\( d:0.5";
    let parts = Prompt::literal(source).unwrap().parts(3).unwrap();
    assert_eq!(
        told(&parts[0]),
        rounded(&json!({ "weight": 1, "texts": [[[source, 1]]], "of_step": [0, 0, 0] }))
    );
    assert_eq!((parts.len(), &parts[0].texts[0]), (1, &Text::literal(source).unwrap()));
}

mod hostile {
    use super::*;

    #[track_caller]
    fn refused(source: &str, message: &str) {
        let started = Instant::now();
        let error = Prompt::parse(source).and_then(|prompt| prompt.parts(1000)).expect_err(message);
        assert_eq!((error.kind(), error.to_string().as_str()), (ErrorKind::Usage, message));
        assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
    }

    #[test]
    fn nul() {
        refused("a red\0apple", "prompt: expected text, got NUL at byte 5");
        assert!(
            Prompt::literal("\0").is_err()
                && Prompt::parse_negative("\0").is_err()
                && Text::literal("\0").is_err()
        );
    }

    #[test]
    fn mebibyte_of_brackets() {
        for bracket in ["(", "["] {
            refused(&bracket.repeat(1 << 20), "prompt: expected at most 65536 bytes, got 1048576");
            refused(
                &bracket.repeat(prompt::MAX_BYTES),
                r"prompt: byte 64: expected at most 64 open brackets, got another; close them, or write \( and \[ for brackets that mean themselves",
            );
        }
        for brackets in ["(a)", "[a]", ")", "]", "(a]", "[a)", "(:", "::", "\\("] {
            let source = brackets.repeat(prompt::MAX_BYTES / brackets.len());
            let _ = Prompt::parse(&source).and_then(|prompt| prompt.parts(1000));
        }
        let pairs = prompt::MAX_BYTES / 2;
        refused(
            &format!("{}{}", "[".repeat(pairs), "]".repeat(pairs)),
            r"prompt: byte 64: expected at most 64 open brackets, got another; close them, or write \( and \[ for brackets that mean themselves",
        );
    }

    #[test]
    fn too_deep() {
        let nested = |depth: usize| format!("{}b{}", "[a|".repeat(depth), "]".repeat(depth));
        assert!(Prompt::parse(&nested(prompt::MAX_NESTING)).unwrap().parts(1000).is_ok());
        refused(
            &nested(prompt::MAX_NESTING + 1),
            "prompt: byte 0: expected at most 64 of [from:to:when] and [a|b] within one another, got more",
        );
        refused(
            &nested(10_000),
            "prompt: byte 29805: expected at most 64 of [from:to:when] and [a|b] within one another, got more",
        );
    }

    #[test]
    fn too_many_switches() {
        let of = |count: usize| "[a|b]".repeat(count);
        assert!(Prompt::parse(&of(prompt::MAX_SWITCHES)).unwrap().parts(1000).is_ok());
        let message = "prompt: byte 1280: expected at most 256 of [from:to:when] and [a|b], got more";
        refused(&of(prompt::MAX_SWITCHES + 1), message);
        // In all parts together.
        refused(&format!("{} AND [a|b]", of(prompt::MAX_SWITCHES)), &message.replace("1280", "1285"));
    }

    #[test]
    fn too_many_parts() {
        let of = |count: usize| vec!["a"; count].join(" AND ");
        assert_eq!(Prompt::parse(&of(prompt::MAX_PARTS)).unwrap().parts(1).unwrap().len(), prompt::MAX_PARTS);
        refused(&of(prompt::MAX_PARTS + 1), "prompt: byte 95: expected at most 16 parts, got 17");
    }

    #[test]
    fn weights_that_are_none() {
        let way_out = r"write \( and \) for brackets that mean themselves";
        refused("a (b:1.2.3)", &format!("prompt: byte 5: expected a weight, got 1.2.3; {way_out}"));
        refused("é (b: .)", &format!("prompt: byte 7: expected a weight, got .; {way_out}"));
        let digits = "9".repeat(400);
        refused(
            &format!("(b:{digits})"),
            "prompt: byte 1: expected a finite weight, got a product that is too large",
        );
        refused(
            &format!("((a:{0}) b:{0})", "9".repeat(30)),
            "prompt: byte 2: expected a finite weight, got a product that is too large",
        );
        refused(
            &format!("a AND b:{digits}"),
            "prompt: byte 8: expected a finite weight, got one with too many digits",
        );
    }

    #[test]
    fn steps_beyond_numbers() {
        for when in ["1e999", "-1e999", "99999999999999999999999", "1.0e999"] {
            let parts = Prompt::parse(&format!("[a:b:{when}]")).unwrap().parts(5).unwrap();
            assert_eq!(parts[0].of_step, [0; 5], "{when}");
        }
    }

    /// What is too long to be read is told, not dropped.
    #[test]
    fn longest_prompt() {
        for unit in ["a,", "fox ", "é", "(a)[b]", "BREAK a "] {
            let source = unit.repeat(prompt::MAX_BYTES / unit.len());
            let encoded = clip(0).encode(&text(&source), usize::MAX).unwrap();
            assert_eq!((encoded.chunks.len(), encoded.cut.is_some()), (MAX_CHUNKS, true), "{unit}");
        }
    }
}

/// A part as the golden file tells it.
fn told(part: &Part) -> Value {
    let fragments = |text: &Text| {
        let told = text.fragments().iter().map(|fragment| {
            assert_eq!(fragment.is_break(), fragment.text() == "BREAK" && fragment.weight() == -1.0);
            json!([fragment.text(), fragment.weight()])
        });
        told.collect::<Vec<_>>()
    };
    let texts: Vec<_> = part.texts.iter().map(fragments).collect();
    rounded(&json!({ "weight": part.weight, "texts": texts, "of_step": part.of_step }))
}

/// To 12 digits behind the point: serde_json reads numbers to the last bit but one.
fn rounded(value: &Value) -> Value {
    match value {
        Value::Number(number) => json!((number.as_f64().unwrap() * 1e12).round()),
        Value::Array(values) => values.iter().map(rounded).collect(),
        Value::Object(entries) => entries.iter().map(|(key, value)| (key.clone(), rounded(value))).collect(),
        other => other.clone(),
    }
}

fn text(source: &str) -> Text {
    Prompt::parse(source).unwrap().parts(1).unwrap().remove(0).texts.remove(0)
}

fn clip(pad: u32) -> Tokenizer {
    Tokenizer::clip(77, SpecialTokens { bos: 49406, eos: 49407, pad }).unwrap()
}

fn folder() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden"))
}

fn golden() -> Value {
    serde_json::from_slice(&std::fs::read(folder().join("prompts.json")).unwrap()).unwrap()
}

fn distance(got: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(got.len(), expected.len());
    let square = |(a, b): (&f32, &f32)| (f64::from(*a) - f64::from(*b)).powi(2);
    let difference: f64 = got.iter().zip(expected).map(square).sum();
    let norm: f64 = expected.iter().map(|x| f64::from(*x).powi(2)).sum();
    (difference / norm).sqrt()
}
