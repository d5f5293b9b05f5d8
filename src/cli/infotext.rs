//! A1111's `parameters`: the text by which its web UI, and much that reads its pictures, draw a picture again.
//! It knows how such readers take a text apart, and nothing of where the values come from.
//!
//! Readers take the last line for the settings, `Negative prompt:` for the end of the prompt, and some of them `Steps: `
//! for the settings wherever it stands. There is no way to quote these in a prompt, but a backslash before a letter means
//! nothing in the language of prompts, and the words are no longer found.

use std::fmt::Write;

/// What ends the prompt for a reader, and how it is written within one.
const ENDS: [(&str, &str); 2] = [("Negative prompt:", r"Negative\ prompt:"), ("Steps: ", r"St\eps: ")];

/// The text of a prompt, a negative one, and named values, of which those that are empty are left out.
pub(super) fn text(prompt: &str, negative: &str, is_literal: bool, values: &[(&str, String)]) -> String {
    let mut text = format!("{}\n", within(prompt, is_literal));
    if !negative.is_empty() {
        writeln!(text, "Negative prompt: {}", within(negative, is_literal)).expect("a String takes all text");
    }
    let values = values.iter().filter(|(_, value)| !value.is_empty());
    let values: Vec<String> = values.map(|(name, value)| format!("{name}: {}", quoted(value))).collect();
    text + &values.join(", ")
}

/// A prompt as it can stand in the text; one that is literal becomes one in which everything is escaped.
fn within(prompt: &str, is_literal: bool) -> String {
    let mut text = String::from(prompt);
    if is_literal {
        text.clear();
        for character in prompt.chars() {
            if r"\()[]".contains(character) {
                text.push('\\');
            }
            text.push(character);
            // As in `<lora:name>`.
            if character == '<' {
                text.push('\\');
            }
        }
        text = text.replace("AND", r"A\ND").replace("BREAK", r"B\REAK");
    }
    ENDS.iter().fold(text, |text, (end, written)| text.replace(end, written))
}

/// A value as A1111's `quote` writes it: as JSON, where it would not be read back as it is.
fn quoted(value: &str) -> String {
    let is_plain = !value.contains([',', ':'])
        && !value.contains(char::is_control)
        && !value.starts_with('"')
        && value.trim() == value;
    if is_plain { value.to_owned() } else { serde_json::to_string(value).expect("text is JSON") }
}

#[cfg(test)]
mod tests {
    use calotype::prompt::Prompt;
    use serde_json::Value;

    use super::*;

    /// Texts that the generator has read back with A1111's own grammar (see export/golden_infotext.py).
    #[test]
    fn texts_are_those_that_others_read_back() {
        let golden: Value =
            serde_json::from_str(include_str!("../../tests/golden/infotext.json")).expect("a golden file");
        let cases = golden["cases"].as_array().expect("cases");
        assert!(cases.len() >= 150, "{}", cases.len());
        for case in cases {
            let string = |name: &str| case[name].as_str().expect(name);
            let values = case["values"].as_array().expect("values").iter();
            let values: Vec<(&str, String)> = values
                .map(|pair| {
                    (pair[0].as_str().expect("a name"), pair[1].as_str().expect("a value").to_owned())
                })
                .collect();
            let is_literal = case["literal"] == true;
            let text = text(string("prompt"), string("negative"), is_literal, &values);
            assert_eq!(text, string("text"));
            // What others read draws the same here, and so do the texts that encoders read.
            for (typed, read) in [("prompt", "read_prompt"), ("negative", "read_negative")] {
                assert_eq!(words(string(typed), is_literal), words(string(read), false), "{text}");
            }
        }
    }

    /// What an encoder reads of a prompt in each of three steps: words without the blanks between, and their weights.
    fn words(prompt: &str, is_literal: bool) -> Vec<(f64, Vec<(String, f64)>)> {
        let prompt = if is_literal { Prompt::literal(prompt) } else { Prompt::parse(prompt) };
        let parts = prompt.and_then(|prompt| prompt.parts(3)).expect("a prompt");
        let steps = parts.iter().flat_map(|part| (0..3).map(move |step| (part.weight, part.text(step))));
        steps
            .map(|(weight, text)| {
                let fragments = text.fragments().iter();
                let words = fragments.map(|fragment| {
                    (fragment.text().split_whitespace().collect::<Vec<_>>().join(" "), fragment.weight())
                });
                (weight, words.collect())
            })
            .collect()
    }
}
