//! Texts that change from step to step: `[from:to:when]` and `[a|b]`, found without recursion.
//! It knows nothing of weights: brackets that are no switch stay in the text.
//!
//! The language is that of AUTOMATIC1111's grammar: within a switch brackets are in pairs, `(…)` has at most one colon
//! of its own, and `|` stands between turns only. A bracket that opens no such thing means itself; but where a `|` or
//! the last `\` of a prompt fits nothing, the whole text means itself.

use std::ops::Range;

use super::{MAX_NESTING, MAX_SWITCHES, is_blank, refusal};
use crate::Error;

/// A text, with what changes in it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Schedule {
    items: Vec<Item>,
}

#[derive(Clone, Debug, PartialEq)]
enum Item {
    /// Bytes of the prompt.
    Text(Range<usize>),
    /// One text up to a step, another from then on.
    Change { before: Vec<Item>, after: Vec<Item>, when: When },
    /// One text after the other, a step each.
    Turns(Vec<Vec<Item>>),
}

/// The last step of what goes before: of all steps this share, or this one.
#[derive(Clone, Copy, Debug, PartialEq)]
enum When {
    Share(f64),
    Step(f64),
}

/// A bracket whose end was not seen yet.
struct Frame {
    open: usize,
    is_square: bool,
    /// What lies between its own separators.
    segments: Vec<Vec<Item>>,
    /// `:` or `|`, and where.
    separators: Vec<(char, usize)>,
    /// How deep switches lie in it.
    depth: usize,
}

/// A text that the grammar does not have.
struct Unfit;

impl Schedule {
    pub(super) fn literal(text: Range<usize>) -> Self {
        Self { items: vec![Item::Text(text)] }
    }

    /// Reads these bytes of a prompt; `switches` counts those of all its parts.
    pub(super) fn parse(source: &str, text: Range<usize>, switches: &mut usize) -> Result<Self, Error> {
        match parse(source, text.clone(), switches)? {
            Ok(items) => Ok(Self { items }),
            Err(Unfit) => Ok(Self::literal(text)),
        }
    }

    /// Per span in which one text is read: the step that ends it, as the syntax counts, and its steps.
    ///
    /// The syntax counts steps from 1, the steps here are counted from 0, and yet AUTOMATIC1111 compares them as they are:
    /// the first text is read for a step longer than it says.
    pub(super) fn spans(&self, steps: usize) -> Vec<(usize, Range<usize>)> {
        let mut ends = vec![steps];
        collect_ends(&self.items, steps, &mut ends);
        ends.sort_unstable();
        ends.dedup();
        let mut spans = Vec::new();
        let mut from = 0;
        for end in ends {
            let to = (end + 1).clamp(from, steps);
            spans.push((end, from..to));
            from = to;
        }
        spans.retain(|(_, from)| !from.is_empty());
        spans
    }

    /// What is read in a step, counted from 1.
    pub(super) fn at(&self, step: usize, steps: usize) -> Vec<Range<usize>> {
        let mut ranges = Vec::new();
        collect(&self.items, step, steps, &mut ranges);
        ranges
    }
}

impl When {
    /// `"[" … ":" WHITESPACE? NUMBER WHITESPACE? "]"`
    fn parse(text: &str) -> Option<Self> {
        let number = text.trim_matches(is_blank);
        if !number.bytes().all(|byte| byte.is_ascii_digit() || b".eE+-".contains(&byte)) {
            return None;
        }
        let value = number.parse().ok()?;
        Some(if number.contains('.') { Self::Share(value) } else { Self::Step(value) })
    }

    /// A whole number, below 1 for what comes before the first step.
    fn last_step(self, steps: usize) -> f64 {
        let step = match self {
            Self::Share(share) => share * steps as f64,
            Self::Step(step) => step,
        };
        step.trunc().min(steps as f64)
    }
}

impl Frame {
    fn new(open: usize, is_square: bool) -> Self {
        Self { open, is_square, segments: vec![Vec::new()], separators: Vec::new(), depth: 0 }
    }

    fn count(&self, separator: char) -> usize {
        self.separators.iter().filter(|(own, _)| *own == separator).count()
    }

    /// Everything that was typed in it, as items of what it lies in.
    fn unfold(self, into: &mut Vec<Item>) {
        push(into, self.open..self.open + 1);
        let separators = self.separators.into_iter().map(Some).chain([None]);
        for (segment, separator) in self.segments.into_iter().zip(separators) {
            append(into, segment);
            if let Some((_, place)) = separator {
                push(into, place..place + 1);
            }
        }
    }
}

fn parse(source: &str, text: Range<usize>, switches: &mut usize) -> Result<Result<Vec<Item>, Unfit>, Error> {
    let mut root = Vec::new();
    let mut frames: Vec<Frame> = Vec::new();
    let mut characters = source[text.clone()].char_indices();
    while let Some((place, character)) = characters.next() {
        let place = text.start + place;
        let here = place..place + character.len_utf8();
        match character {
            '\\' => match characters.next() {
                Some((_, escaped)) if escaped != '\n' => {
                    push(innermost(&mut root, &mut frames), place..here.end + escaped.len_utf8());
                }
                _ => return Ok(Err(Unfit)),
            },
            '(' | '[' => frames.push(Frame::new(place, character == '[')),
            ':' | '|' => match frames.last_mut() {
                Some(frame) if character == ':' || frame.is_square => {
                    frame.separators.push((character, place));
                    frame.segments.push(Vec::new());
                }
                None if character == ':' => push(&mut root, here),
                _ => return Ok(Err(Unfit)),
            },
            ')' | ']' => {
                let fits = frames.last().is_some_and(|frame| frame.is_square == (character == ']'));
                let closed = match frames.pop() {
                    None => None,
                    Some(frame) if !fits => Some(Err(frame)),
                    Some(frame) => Some(close(source, frame, place, switches)?),
                };
                match closed {
                    Some(Ok((items, depth))) => {
                        if let Some(frame) = frames.last_mut() {
                            frame.depth = frame.depth.max(depth);
                        }
                        append(innermost(&mut root, &mut frames), items);
                    }
                    // What lies around it has a bracket in it that is not one of a pair, and is no switch either.
                    Some(Err(frame)) => {
                        frames.push(frame);
                        if unfold_all(&mut root, &mut frames).is_err() {
                            return Ok(Err(Unfit));
                        }
                        push(&mut root, here);
                    }
                    None => push(&mut root, here),
                }
            }
            _ => push(innermost(&mut root, &mut frames), here),
        }
    }
    Ok(unfold_all(&mut root, &mut frames).map(|()| root))
}

/// What a bracket with its end is, and how deep switches lie in it; or the bracket, if it is nothing.
fn close(
    source: &str,
    mut frame: Frame,
    end: usize,
    switches: &mut usize,
) -> Result<Result<(Vec<Item>, usize), Frame>, Error> {
    let (colons, pipes) = (frame.count(':'), frame.count('|'));
    let when = match frame.segments.last().map(Vec::as_slice) {
        Some([Item::Text(text)]) => When::parse(&source[text.clone()]),
        _ => None,
    };
    let item = match (frame.is_square, colons, pipes, when) {
        (false, 0 | 1, 0, _) | (true, 0, 0, _) => {
            let depth = frame.depth;
            let mut items = Vec::new();
            frame.unfold(&mut items);
            push(&mut items, end..end + 1);
            return Ok(Ok((items, depth)));
        }
        (true, 1 | 2, 0, Some(when)) => {
            let mut segments = std::mem::take(&mut frame.segments).into_iter();
            let before = if colons == 2 { segments.next().unwrap_or_default() } else { Vec::new() };
            Item::Change { before, after: segments.next().unwrap_or_default(), when }
        }
        (true, 0, 1.., _) => Item::Turns(std::mem::take(&mut frame.segments)),
        _ => return Ok(Err(frame)),
    };
    *switches += 1;
    if *switches > MAX_SWITCHES {
        return Err(refusal(
            frame.open,
            &format!("expected at most {MAX_SWITCHES} of [from:to:when] and [a|b], got more"),
        ));
    }
    if frame.depth == MAX_NESTING {
        return Err(refusal(
            frame.open,
            &format!(
                "expected at most {MAX_NESTING} of [from:to:when] and [a|b] within one another, got more"
            ),
        ));
    }
    Ok(Ok((vec![item], frame.depth + 1)))
}

/// The brackets that are open mean themselves; [`Unfit`] if one has a `|`, which never does.
fn unfold_all(root: &mut Vec<Item>, frames: &mut Vec<Frame>) -> Result<(), Unfit> {
    for frame in frames.drain(..) {
        if frame.count('|') > 0 {
            return Err(Unfit);
        }
        frame.unfold(root);
    }
    Ok(())
}

fn innermost<'a>(root: &'a mut Vec<Item>, frames: &'a mut [Frame]) -> &'a mut Vec<Item> {
    match frames.last_mut().and_then(|frame| frame.segments.last_mut()) {
        Some(segment) => segment,
        None => root,
    }
}

/// Adds a text, to the text before it if it goes on there.
fn push(items: &mut Vec<Item>, text: Range<usize>) {
    match items.last_mut() {
        Some(Item::Text(last)) if last.end == text.start => last.end = text.end,
        _ => items.push(Item::Text(text)),
    }
}

fn append(items: &mut Vec<Item>, more: Vec<Item>) {
    for item in more {
        match item {
            Item::Text(text) => push(items, text),
            switch => items.push(switch),
        }
    }
}

/// The steps after which the text may be another. Recursive, but no deeper than [`MAX_NESTING`].
fn collect_ends(items: &[Item], steps: usize, into: &mut Vec<usize>) {
    for item in items {
        match item {
            Item::Text(_) => {}
            Item::Change { before, after, when } => {
                let end = when.last_step(steps);
                if end >= 1.0 {
                    into.push(end as usize);
                }
                collect_ends(before, steps, into);
                collect_ends(after, steps, into);
            }
            Item::Turns(turns) => {
                into.extend(1..=steps);
                turns.iter().for_each(|turn| collect_ends(turn, steps, into));
            }
        }
    }
}

/// As [`collect_ends`].
fn collect(items: &[Item], step: usize, steps: usize, into: &mut Vec<Range<usize>>) {
    for item in items {
        match item {
            Item::Text(text) => into.push(text.clone()),
            Item::Change { before, after, when } => {
                let is_before = step as f64 <= when.last_step(steps);
                collect(if is_before { before } else { after }, step, steps, into);
            }
            Item::Turns(turns) => collect(&turns[(step - 1) % turns.len()], step, steps, into),
        }
    }
}
