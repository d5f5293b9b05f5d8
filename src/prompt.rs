//! A prompt: what was typed, read as AUTOMATIC1111's web UI reads it: parts, texts that change from step to step, weights.
//! It knows nothing of tokens, of encoders, nor of what a part's prediction is used for.
//!
//! The syntax is described in [the manual](crate::manual::prompts).

mod attention;
mod mention;
mod schedule;

use std::collections::HashMap;
use std::ops::Range;

pub use self::mention::{Mention, mentions};
use self::schedule::Schedule;
use crate::{Error, ErrorKind};

/// The longest prompt that is read.
pub const MAX_BYTES: usize = 1 << 16;
/// The most parts that `AND` makes: each costs a prediction in every step. As many as guidance combines.
pub const MAX_PARTS: usize = 16;
/// The most `[from:to:when]` and `[a|b]` of a prompt.
pub const MAX_SWITCHES: usize = 256;
/// How deep brackets may lie within one another where that costs time: `[from:to:when]` and `[a|b]`, and brackets that
/// weigh.
pub const MAX_NESTING: usize = 64;

/// What separates the parts of a prompt.
const AND: &str = "AND";

/// A prompt that was read.
#[derive(Clone, Debug, PartialEq)]
pub struct Prompt {
    typed: String,
    /// What was typed, without what names files.
    source: String,
    branches: Vec<Branch>,
    /// Whether brackets, too, mean themselves.
    is_literal: bool,
}

#[derive(Clone, Debug, PartialEq)]
struct Branch {
    weight: f64,
    schedule: Schedule,
}

/// One of the texts that `AND` joins, for a run of so many steps.
#[derive(Clone, Debug, PartialEq)]
pub struct Part {
    /// How much it counts; 1 if it does not say.
    pub weight: f64,
    /// Its texts, none of them twice.
    pub texts: Vec<Text>,
    /// Per step, which of the texts is read.
    pub of_step: Vec<usize>,
}

/// What an encoder reads at once.
#[derive(Clone, Debug, PartialEq)]
pub struct Text {
    fragments: Vec<Fragment>,
}

/// Neighbouring words of one weight.
#[derive(Clone, Debug, PartialEq)]
pub struct Fragment {
    text: String,
    weight: f64,
    /// Per character of the text, the byte of the prompt where it was typed.
    places_bytes: Vec<u32>,
}

impl Prompt {
    /// Reads a prompt with everything that has a meaning in it.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] for NUL, and beyond [`MAX_BYTES`], [`MAX_PARTS`], [`MAX_SWITCHES`] or [`MAX_NESTING`].
    pub fn parse(typed: &str) -> Result<Self, Error> {
        check(typed)?;
        let source = mention::masked(typed);
        let source = source.as_str();
        let parts = split_at_and(source);
        if parts.len() > MAX_PARTS {
            let start_byte = parts[MAX_PARTS].start;
            return Err(refusal(
                start_byte,
                &format!("expected at most {MAX_PARTS} parts, got {}", parts.len()),
            ));
        }
        let mut switches = 0;
        // Of a prompt without `AND` a number at the end is part of the text, `widescreen 16:9`; the web UI makes it 9 times as
        // strong.
        let has_weights = parts.len() > 1;
        let branches = parts.into_iter().map(|part| {
            let (text, weight) = if has_weights { split_weight(source, part)? } else { (part, 1.0) };
            Ok(Branch { weight, schedule: Schedule::parse(source, text, &mut switches)? })
        });
        let branches = branches.collect::<Result<_, Error>>()?;
        Ok(Self { typed: typed.to_owned(), source: source.to_owned(), branches, is_literal: false })
    }

    /// Reads a negative prompt: it has one part, because `AND` and a weight at the end mean themselves in it.
    ///
    /// # Errors
    /// As [`Prompt::parse`].
    pub fn parse_negative(typed: &str) -> Result<Self, Error> {
        check(typed)?;
        let source = mention::masked(typed);
        let source = source.as_str();
        let schedule = Schedule::parse(source, 0..source.len(), &mut 0)?;
        let branches = vec![Branch { weight: 1.0, schedule }];
        Ok(Self { typed: typed.to_owned(), source: source.to_owned(), branches, is_literal: false })
    }

    /// A prompt in which every character means itself.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] for NUL, and beyond [`MAX_BYTES`].
    pub fn literal(source: &str) -> Result<Self, Error> {
        check(source)?;
        let branches = vec![Branch { weight: 1.0, schedule: Schedule::literal(0..source.len()) }];
        Ok(Self { typed: source.to_owned(), source: source.to_owned(), branches, is_literal: true })
    }

    /// What was typed.
    pub fn typed(&self) -> &str {
        &self.typed
    }

    /// Its parts in a run of `steps` steps; there is at least one.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] for a weight that is no number or not finite, and for brackets that weigh beyond
    /// [`MAX_NESTING`].
    pub fn parts(&self, steps: usize) -> Result<Vec<Part>, Error> {
        self.branches.iter().map(|branch| self.part(branch, steps)).collect()
    }

    fn part(&self, branch: &Branch, steps: usize) -> Result<Part, Error> {
        let mut part = Part { weight: branch.weight, texts: Vec::new(), of_step: Vec::new() };
        let mut known = HashMap::new();
        for (end, from) in branch.schedule.spans(steps) {
            let ranges = branch.schedule.at(end, steps);
            let text: String = ranges.iter().map(|range| &self.source[range.clone()]).collect();
            let index = match known.get(&text) {
                Some(index) => *index,
                None => {
                    part.texts.push(if self.is_literal {
                        Text::of(&self.source, &ranges)
                    } else {
                        Text { fragments: attention::fragments(&self.source, &ranges)? }
                    });
                    known.insert(text, part.texts.len() - 1);
                    part.texts.len() - 1
                }
            };
            part.of_step.extend(from.map(|_| index));
        }
        Ok(part)
    }
}

impl Part {
    /// A text that is read in all of so many steps.
    pub fn unchanging(text: Text, steps: usize) -> Self {
        Self { weight: 1.0, texts: vec![text], of_step: vec![0; steps] }
    }

    /// What is read in a step, counted from 0.
    ///
    /// # Panics
    /// Beyond the steps that it was made for.
    pub fn text(&self, step: usize) -> &Text {
        &self.texts[self.of_step[step]]
    }
}

impl Text {
    /// A text in which every character means itself.
    ///
    /// # Errors
    /// As [`Prompt::literal`].
    pub fn literal(source: &str) -> Result<Self, Error> {
        check(source)?;
        Ok(Self::of(source, std::slice::from_ref(&(0..source.len()))))
    }

    /// Its fragments, in the order in which they are read.
    pub fn fragments(&self) -> &[Fragment] {
        &self.fragments
    }

    fn of(source: &str, ranges: &[Range<usize>]) -> Self {
        Self { fragments: vec![Fragment::new(&characters(source, ranges), 1.0)] }
    }
}

impl Fragment {
    fn new(characters: &[(usize, char)], weight: f64) -> Self {
        Self {
            text: characters.iter().map(|(_, character)| character).collect(),
            weight,
            places_bytes: characters.iter().map(|(place, _)| *place as u32).collect(),
        }
    }

    /// Its words, without what weighed them.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// How much they count.
    pub fn weight(&self) -> f64 {
        self.weight
    }

    /// Whether it stands for the end of a chunk: `BREAK` outside of all brackets. Within them it has another weight, and
    /// is a word, as it is for AUTOMATIC1111.
    pub fn is_break(&self) -> bool {
        self.text == "BREAK" && self.weight == attention::BREAK_WEIGHT
    }

    /// The byte of the prompt where a character of the text was typed.
    pub(crate) fn place_bytes(&self, character: usize) -> usize {
        self.places_bytes.get(character).map_or(0, |place| *place as usize)
    }
}

fn check(source: &str) -> Result<(), Error> {
    if source.len() > MAX_BYTES {
        return Err(Error::new(
            ErrorKind::Usage,
            format!("prompt: expected at most {MAX_BYTES} bytes, got {}", source.len()),
        ));
    }
    match source.find('\0') {
        Some(place) => {
            Err(Error::new(ErrorKind::Usage, format!("prompt: expected text, got NUL at byte {place}")))
        }
        None => Ok(()),
    }
}

/// The parts between the words `AND`.
fn split_at_and(source: &str) -> Vec<Range<usize>> {
    let (mut parts, mut start) = (Vec::new(), 0);
    for (place, _) in source.match_indices(AND) {
        let end = place + AND.len();
        let is_joined = |character: Option<char>| character.is_some_and(is_of_a_word);
        if !is_joined(source[..place].chars().next_back()) && !is_joined(source[end..].chars().next()) {
            parts.push(start..place);
            start = end;
        }
    }
    parts.push(start..source.len());
    parts
}

/// A part without the blanks behind it, and the weight at its end: `a red fox :0.7`.
fn split_weight(source: &str, part: Range<usize>) -> Result<(Range<usize>, f64), Error> {
    let text = source[part.clone()].trim_end_matches(is_blank);
    let unweighted = (part.start..part.start + text.len(), 1.0);
    let Some((before, number)) = text.rsplit_once(':') else { return Ok(unweighted) };
    let number = number.trim_start_matches(is_blank);
    let digits = number.strip_prefix(['+', '-']).unwrap_or(number);
    let is_number = digits.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.')
        && digits.bytes().filter(|byte| *byte == b'.').count() <= 1
        && digits.bytes().any(|byte| byte.is_ascii_digit());
    if !is_number {
        return Ok(unweighted);
    }
    let place = part.start + before.len() + 1;
    match number.parse::<f64>() {
        Ok(weight) if weight.is_finite() => {
            let before = before.trim_end_matches(is_blank);
            Ok((part.start..part.start + before.len(), weight))
        }
        _ => Err(refusal(place, "expected a finite weight, got one with too many digits")),
    }
}

/// What was typed in these ranges, each character with its place.
fn characters(source: &str, ranges: &[Range<usize>]) -> Vec<(usize, char)> {
    let of_range = |range: &Range<usize>| {
        let start = range.start;
        let characters =
            source[range.clone()].char_indices().filter(|(_, character)| *character != mention::NO_TEXT);
        characters.map(move |(place, character)| (start + place, character))
    };
    ranges.iter().flat_map(of_range).collect()
}

/// Blanks as Python's `\s` has them: Unicode's, and four control characters.
fn is_blank(character: char) -> bool {
    character.is_whitespace() || ('\x1c'..='\x1f').contains(&character) || character == mention::NO_TEXT
}

/// What Python's `\b` takes for part of a word.
fn is_of_a_word(character: char) -> bool {
    character.is_alphanumeric() || character == '_'
}

fn refusal(place_bytes: usize, problem: &str) -> Error {
    Error::new(ErrorKind::Usage, format!("prompt: byte {place_bytes}: {problem}"))
}
