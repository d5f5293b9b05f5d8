//! How much of a prompt there is: the real chunks of a request's texts, and which calls of the U-Net they make. It knows
//! lengths, and nothing of what is encoded.

use std::collections::BTreeSet;

use crate::Error;
use crate::graph::Dim;
use crate::model::{Model, TextEncoderPart};
use crate::prompt::Text;
use crate::request::{Request, Texts};
use crate::signature::Role;
use crate::stage::text_encoder;

/// The width of states where no graph says it.
const USUAL_WIDTH: usize = 2048;
/// Marks around a chunk.
const ENDS: usize = 2;

/// The lengths of a run's texts.
pub(super) struct Reading {
    /// Of all texts together.
    pub(super) chunks: usize,
    /// Per step, and per view of its guidance, the number of tokens.
    tokens: Vec<Vec<usize>>,
    /// How many of the views are needed in every step.
    prompts: usize,
    /// Of all texts together.
    pub(super) all_tokens: usize,
    /// How many numbers a token's state has.
    width: usize,
}

/// One call of the U-Net: so many images at once, each told of so many tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Call {
    pub(super) batch: usize,
    pub(super) tokens: usize,
}

impl Reading {
    pub(super) fn of(model: &Model, request: &Request) -> Result<Self, Error> {
        let Texts { texts, of_step, prompts } = request.texts(model.manifest().zero_negative)?;
        let context = model.text_encoders().first().map_or(0, text_encoder::context);
        let chunks = match model.text_encoders().first() {
            Some(part) => chunks(part, &texts, context, text_encoder::max_chunks(model, context))?,
            None => vec![1; texts.len()],
        };
        let longest = chunks.iter().max().copied().unwrap_or(1);
        // Zeros are as many as the longest text has.
        let tokens_of = |text: usize| context * if texts[text].is_some() { chunks[text] } else { longest };
        let tokens = of_step.iter().map(|read| read.iter().map(|&text| tokens_of(text)).collect()).collect();
        let all_tokens = (0..texts.len()).map(tokens_of).sum();
        let states = model.unet().signature().input(Role::States).and_then(|port| port.dims.get(2));
        let width = match states {
            Some(Dim::Fixed(width)) => *width,
            _ => USUAL_WIDTH,
        };
        Ok(Self { chunks: chunks.iter().sum(), tokens, prompts, all_tokens, width })
    }

    /// The largest calls that are made when at most `max_batch` predictions are made at once: those of which no other has
    /// as many images and tokens.
    pub(super) fn calls(&self, max_batch: usize) -> Vec<Call> {
        let mut calls = BTreeSet::new();
        for tokens in &self.tokens {
            let lengths: BTreeSet<usize> = tokens.iter().copied().collect();
            for length in lengths {
                let alike = tokens.iter().filter(|&&tokens| tokens == length).count();
                calls.insert(Call { batch: alike.min(max_batch), tokens: length });
            }
        }
        let within = |a: &Call, b: &Call| a != b && a.batch <= b.batch && a.tokens <= b.tokens;
        calls.iter().filter(|call| !calls.iter().any(|other| within(call, other))).copied().collect()
    }

    /// How many calls of so many predictions all steps make.
    pub(super) fn count(&self, max_batch: usize) -> usize {
        let of_step = |tokens: &Vec<usize>| {
            let lengths: BTreeSet<usize> = tokens.iter().copied().collect();
            let alike = |length: &usize| tokens.iter().filter(|tokens| *tokens == length).count();
            lengths.iter().map(|length| alike(length).div_ceil(max_batch)).sum::<usize>()
        };
        self.tokens.iter().map(of_step).sum()
    }

    /// The states of all texts.
    pub(super) fn states_bytes(&self) -> usize {
        self.all_tokens * self.width * size_of::<f32>()
    }

    /// How many predictions a step needs at most.
    pub(super) fn predictions(&self) -> usize {
        self.tokens.iter().map(Vec::len).max().unwrap_or(0)
    }

    /// For every layout of a step's calls, and every prediction of it, the states again and so many numbers more.
    pub(super) fn calls_bytes(&self, numbers: usize) -> usize {
        let mut layouts: BTreeSet<&[usize]> = BTreeSet::new();
        for tokens in &self.tokens {
            layouts.extend((self.prompts..=tokens.len()).map(|count| &tokens[tokens.len() - count..]));
        }
        let each =
            |tokens: &&[usize]| tokens.iter().map(|tokens| tokens * self.width + numbers).sum::<usize>();
        layouts.iter().map(each).sum::<usize>() * size_of::<f32>()
    }
}

/// How many chunks each of these texts has.
fn chunks(
    part: &TextEncoderPart,
    texts: &[Option<Text>],
    context: usize,
    max_chunks: usize,
) -> Result<Vec<usize>, Error> {
    // A token is at least a byte of ASCII; making a tokenizer takes longer than all else here.
    let is_short = |text: &Text| {
        let fragments = text.fragments();
        let is_plain = fragments.iter().all(|part| part.text().is_ascii() && !part.is_break());
        is_plain && fragments.iter().map(|part| part.text().len()).sum::<usize>() + ENDS <= context
    };
    if !part.has_words() && texts.iter().flatten().all(is_short) {
        return Ok(vec![1; texts.len()]);
    }
    let tokenizer = part.tokenizer(context)?;
    let count = |text: &Option<Text>| match text {
        Some(text) => Ok(tokenizer.encode(text, max_chunks)?.chunks.len()),
        None => Ok(1),
    };
    texts.iter().map(count).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(tokens: &[&[usize]], prompts: usize) -> Reading {
        let tokens: Vec<Vec<usize>> = tokens.iter().map(|tokens| tokens.to_vec()).collect();
        Reading { chunks: 0, tokens, prompts, all_tokens: 0, width: 10 }
    }

    #[test]
    fn calls_are_of_texts_of_one_length() {
        let one = reading(&[&[77, 154, 154, 77], &[77, 77, 77, 77]], 3);
        let call = |batch, tokens| Call { batch, tokens };
        assert_eq!(one.calls(usize::MAX), [call(2, 154), call(4, 77)]);
        assert_eq!(one.calls(1), [call(1, 154)]);
        assert_eq!((one.count(usize::MAX), one.count(1)), (3, 8));
    }

    #[test]
    fn feeds_are_of_every_layout_once() {
        // In both steps all four views, or the prompts' three alone.
        let one = reading(&[&[7, 7, 7, 7], &[7, 7, 7, 7]], 3);
        assert_eq!(one.calls_bytes(10), (4 + 3) * (7 * 10 + 10) * 4);
        assert_eq!(one.predictions(), 4);
    }
}
