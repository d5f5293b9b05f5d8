//! The weights of words: `(word)`, `(word:1.2)`, `[word]`, and `BREAK`. It knows nothing of steps.

use std::ops::Range;

use super::{Fragment, MAX_NESTING, characters, is_blank, is_of_a_word, refusal};
use crate::Error;

/// What `BREAK` weighs, to be told from the word.
pub(super) const BREAK_WEIGHT: f64 = -1.0;

const ROUND: f64 = 1.1;
const SQUARE: f64 = 1.0 / 1.1;
const BREAK: [char; 5] = ['B', 'R', 'E', 'A', 'K'];

/// What a bracket multiplies: these characters.
struct Piece {
    characters: Range<usize>,
    weight: f64,
}

/// The fragments of a text that was typed in these ranges, neighbours of one weight in one.
pub(super) fn fragments(source: &str, ranges: &[Range<usize>]) -> Result<Vec<Fragment>, Error> {
    let characters = characters(source, ranges);
    let mut pieces: Vec<Piece> = Vec::new();
    // Per open bracket, how many pieces lie before it.
    let (mut round, mut square) = (Vec::new(), Vec::new());
    let mut at = 0;
    while let Some(&(place, character)) = characters.get(at) {
        let next = characters.get(at + 1).map(|(_, next)| *next);
        let mut literal = at..at + 1;
        match character {
            '\\' if next.is_some_and(|next| r"()[]\".contains(next)) => literal = at + 1..at + 2,
            // It vanishes, and what follows keeps its meaning.
            '\\' => literal = at + 1..at + 1,
            '(' | '[' => {
                if round.len() + square.len() == MAX_NESTING {
                    return Err(refusal(
                        place,
                        &format!("expected at most {MAX_NESTING} open brackets, got another"),
                    )
                    .help(r"close them, or write \( and \[ for brackets that mean themselves"));
                }
                if character == '(' { &mut round } else { &mut square }.push(pieces.len());
                at += 1;
                continue;
            }
            ')' | ']' | ':' => {
                let weight = if character == ':' { weight(&characters, at) } else { None };
                if let Some((_, end)) = weight {
                    literal.end = end;
                }
                let open = match character {
                    ':' if weight.is_none() => None,
                    ']' => square.pop(),
                    _ => round.pop(),
                };
                if let Some(open) = open {
                    let factor = match (weight, character) {
                        (Some((digits, _)), _) => parse_weight(&characters[digits.0..digits.1])?,
                        (None, ']') => SQUARE,
                        (None, _) => ROUND,
                    };
                    multiply(&mut pieces[open..], factor);
                    at = literal.end;
                    continue;
                }
            }
            _ => {
                let is_special = |(_, character): &(usize, char)| r"\()[]:".contains(*character);
                let run = characters[at..].iter().position(is_special).unwrap_or(characters.len() - at);
                split_at_break(&characters, at..at + run, &mut pieces);
                at += run;
                continue;
            }
        }
        at = literal.end;
        pieces.push(Piece { characters: literal, weight: 1.0 });
    }
    round.iter().for_each(|open| multiply(&mut pieces[*open..], ROUND));
    square.iter().for_each(|open| multiply(&mut pieces[*open..], SQUARE));
    merge(&characters, &pieces)
}

/// Where the number of `:1.2)` is and where the bracket ends, if that is what starts here.
fn weight(characters: &[(usize, char)], colon: usize) -> Option<((usize, usize), usize)> {
    let is = |at: usize, wanted: fn(char) -> bool| {
        characters.get(at).is_some_and(|(_, character)| wanted(*character))
    };
    let skip = |mut at: usize, wanted: fn(char) -> bool| {
        while is(at, wanted) {
            at += 1;
        }
        at
    };
    let start = skip(colon + 1, is_blank);
    let digits = if is(start, |sign| sign == '+' || sign == '-') { start + 1 } else { start };
    let end = skip(digits, |digit| digit.is_ascii_digit() || digit == '.');
    let bracket = skip(end, is_blank);
    (end > digits && is(bracket, |bracket| bracket == ')')).then_some(((start, end), bracket + 1))
}

fn parse_weight(digits: &[(usize, char)]) -> Result<f64, Error> {
    let number: String = digits.iter().map(|(_, digit)| digit).collect();
    number.parse().map_err(|_| {
        refusal(digits[0].0, &format!("expected a weight, got {number}"))
            .help(r"write \( and \) for brackets that mean themselves")
    })
}

fn multiply(pieces: &mut [Piece], factor: f64) {
    pieces.iter_mut().for_each(|piece| piece.weight *= factor);
}

/// Adds what lies before, between and behind the words `BREAK` of a run, and these.
fn split_at_break(characters: &[(usize, char)], run: Range<usize>, pieces: &mut Vec<Piece>) {
    let is = |at: usize, wanted: fn(char) -> bool| run.contains(&at) && wanted(characters[at].1);
    let mut start = run.start;
    let mut at = run.start;
    while at + BREAK.len() <= run.end {
        let end = at + BREAK.len();
        let is_break = characters[at..end].iter().map(|(_, character)| character).eq(&BREAK)
            && !at.checked_sub(1).is_some_and(|before| is(before, is_of_a_word))
            && !is(end, is_of_a_word);
        if !is_break {
            at += 1;
            continue;
        }
        let mut before = at;
        while before > start && is(before - 1, is_blank) {
            before -= 1;
        }
        pieces.push(Piece { characters: start..before, weight: 1.0 });
        pieces.push(Piece { characters: at..end, weight: BREAK_WEIGHT });
        start = end;
        while is(start, is_blank) {
            start += 1;
        }
        at = start;
    }
    pieces.push(Piece { characters: start..run.end, weight: 1.0 });
}

fn merge(characters: &[(usize, char)], pieces: &[Piece]) -> Result<Vec<Fragment>, Error> {
    if pieces.is_empty() {
        return Ok(vec![Fragment::new(&[], 1.0)]);
    }
    let fragments = pieces.chunk_by(|one, next| one.weight == next.weight).map(|pieces| {
        let weight = pieces[0].weight;
        let of_all = pieces.iter().flat_map(|piece| &characters[piece.characters.clone()]).copied();
        let of_all: Vec<(usize, char)> = of_all.collect();
        // What an encoder's states are multiplied by.
        if !(weight as f32).is_finite() {
            let place = of_all.first().map_or(0, |(place, _)| *place);
            return Err(refusal(place, "expected a finite weight, got a product that is too large"));
        }
        Ok(Fragment::new(&of_all, weight))
    });
    fragments.collect()
}
