//! Prompts, against their own printer: every text of every step, written with its weights spelled out, is read as the
//! same words with the same weights.

use calotype::prompt::{Fragment, Prompt, Text};

const STEPS: usize = 7;

pub fn run(bytes: &[u8]) {
    let Ok(source) = std::str::from_utf8(bytes) else { return };
    if let Ok(literal) = Prompt::literal(source) {
        let parts = literal.parts(STEPS).expect("nothing in it has a meaning");
        let words: String = parts[0].text(0).fragments().iter().map(Fragment::text).collect();
        assert_eq!(words, source);
    }
    for prompt in [Prompt::parse(source), Prompt::parse_negative(source)].into_iter().flatten() {
        assert_eq!(prompt.typed(), source);
        let Ok(parts) = prompt.parts(STEPS) else { continue };
        assert!(!parts.is_empty());
        for part in &parts {
            assert_eq!(part.of_step.len(), STEPS);
            part.texts.iter().for_each(check);
        }
    }
}

fn check(text: &Text) {
    let expected = fragments(text);
    let printed = print(&expected);
    let Ok(prompt) = Prompt::parse_negative(&printed) else {
        assert!(printed.len() > calotype::prompt::MAX_BYTES, "printed as {printed:?}, then refused");
        return;
    };
    let parts = prompt.parts(1).unwrap_or_else(|error| panic!("{printed:?}: {error}"));
    assert_eq!(fragments(parts[0].text(0)), expected, "printed as {printed:?}");
}

/// Words and weights, neighbours of one weight in one; those of no words cannot be written.
fn fragments(text: &Text) -> Vec<(String, f64)> {
    let mut fragments: Vec<(String, f64)> = Vec::new();
    for fragment in text.fragments().iter().filter(|fragment| !fragment.text().is_empty()) {
        match fragments.last_mut() {
            Some((text, weight)) if *weight == fragment.weight() && !is_break(text, *weight) => {
                text.push_str(fragment.text());
            }
            _ => fragments.push((fragment.text().to_owned(), fragment.weight())),
        }
    }
    fragments
}

/// Every character behind a backslash, so that none has a meaning; then the weight.
fn print(fragments: &[(String, f64)]) -> String {
    let mut printed = String::new();
    for (text, weight) in fragments {
        if is_break(text, *weight) {
            printed.push_str(" BREAK ");
            continue;
        }
        printed.push('(');
        text.chars().for_each(|character| printed.extend(['\\', character]));
        printed.push_str(&format!(":{weight})"));
    }
    printed
}

/// Whether a fragment is the word that fills a chunk up.
fn is_break(text: &str, weight: f64) -> bool {
    text == "BREAK" && weight == -1.0
}
