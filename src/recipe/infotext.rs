//! A1111's `parameters`: the text by which its web UI, and much that reads its images, draw an image again: two prompts
//! and named values. It knows how such a text is put together and taken apart, and nothing of what the values mean.
//!
//! Readers take the last line for the settings, `Negative prompt:` for the end of the prompt, and some of them `Steps: `
//! for the settings wherever it stands. There is no way to quote these in a prompt, but a backslash before a letter means
//! nothing in the language of prompts, and the words are no longer found.

use std::fmt::Write;

use serde_json::Value;

/// What ends the prompt for a reader, and how it is written within one.
const ENDS: [(&str, &str); 2] = [("Negative prompt:", r"Negative\ prompt:"), ("Steps: ", r"St\eps: ")];

/// What a line of settings begins with, in nearly all programs.
const FIRST: &str = "Steps: ";
/// How many values make a last line that begins otherwise one of settings; with fewer it is a part of the prompt.
const LEAST_VALUES: usize = 3;

/// A text that was taken apart.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Parts {
    pub(super) prompt: String,
    pub(super) negative: String,
    /// In order; without quotes.
    pub(super) values: Vec<(String, String)>,
}

/// Takes a text apart. Every text is one: of one without settings all is prompt.
pub(super) fn parts(text: &str) -> Parts {
    let text = text.replace("\r\n", "\n").replace('\r', "\n");
    // Writers end texts with line ends, and zeros in EXIF.
    let text = text.trim_end_matches(['\n', '\0', ' ']);
    let lines: Vec<&str> = text.split('\n').collect();
    let first = lines.iter().rposition(|line| line.trim_start().starts_with(FIRST));
    let (prompts, values) = match first {
        Some(first) => (&lines[..first], values(&lines[first..].join("\n"))),
        None => {
            let last = lines.len() - 1;
            let values = values(lines[last]);
            let are_settings = values.len() >= LEAST_VALUES && !lines[last].starts_with(ENDS[0].0);
            if are_settings { (&lines[..last], values) } else { (&lines[..], Vec::new()) }
        }
    };
    let (mut prompt, mut negative): (Vec<&str>, Option<Vec<&str>>) = (Vec::new(), None);
    for line in prompts {
        match (line.trim_start().strip_prefix(ENDS[0].0), &mut negative) {
            (Some(rest), negative @ None) => *negative = Some(vec![rest]),
            (_, Some(negative)) => negative.push(line),
            (None, None) => prompt.push(line),
        }
    }
    let joined = |lines: Vec<&str>| lines.join("\n").trim().to_owned();
    Parts { prompt: joined(prompt), negative: joined(negative.unwrap_or_default()), values }
}

/// `name: value` pairs separated by commas. A value may be quoted, or be JSON, and then have commas of its own.
fn values(text: &str) -> Vec<(String, String)> {
    let mut values = Vec::new();
    let mut rest = text;
    while let Some((name, behind)) = rest.split_once(':') {
        let behind = behind.trim_start();
        let value = match behind.chars().next() {
            Some('"' | '[' | '{') => json_prefix(behind),
            _ => None,
        };
        let (value, len) = value.unwrap_or_else(|| {
            let len = behind.find([',', '\n']).unwrap_or(behind.len());
            (behind[..len].trim().to_owned(), len)
        });
        // What stands between commas without a colon has no name, and belongs to nothing.
        let name = name.rsplit([',', '\n']).next().unwrap_or(name).trim();
        if !name.is_empty() {
            values.push((name.to_owned(), value));
        }
        rest = behind[len..].trim_start().trim_start_matches([',', '\n']);
    }
    values
}

/// The JSON that a text begins with, as it stands but for a text, which loses its quotes; and how long it is. What follows
/// must be the end of the value.
fn json_prefix(text: &str) -> Option<(String, usize)> {
    let mut stream = serde_json::Deserializer::from_str(text).into_iter::<Value>();
    let value = stream.next()?.ok()?;
    let len = stream.byte_offset();
    let rest = text[len..].trim_start_matches(' ');
    if !(rest.is_empty() || rest.starts_with([',', '\n'])) {
        return None;
    }
    Some((if let Value::String(text) = value { text } else { text[..len].to_owned() }, len))
}

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
    use super::*;
    use crate::prompt::Prompt;

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
            // Our own reader reads it as well as they do; they take the blanks of each line away.
            let read = parts(&text);
            let lines = |text: &str| text.trim().lines().map(str::trim).collect::<Vec<_>>().join("\n");
            let expected = (lines(string("read_prompt")), lines(string("read_negative")));
            assert_eq!((lines(&read.prompt), lines(&read.negative)), expected, "{text:?}");
            let given: Vec<(String, String)> = values
                .iter()
                .filter(|(_, value)| !value.is_empty())
                .map(|(name, value)| ((*name).to_owned(), value.clone()))
                .collect();
            assert_eq!(read.values, given, "{text:?}");
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
