//! Text to token ids, as CLIP-style text encoders want them: chunks of a fixed length, with known ends and padding.
//! It knows nothing of where a tokenizer is stored, nor of what encodes the ids.

mod clip;

use std::collections::HashMap;
use std::ops::{Range, RangeInclusive};
use std::panic;

use tokenizers::{AddedToken, ModelWrapper};

use crate::prompt::{Fragment, Text};
use crate::{Error, ErrorKind, json};

/// The longest context that is believed, in tokens; CLIP's is 77.
pub const MAX_CONTEXT: usize = 1 << 16;
/// The most chunks that are made of a text: each costs a run of the text encoder, and time in every step.
pub const MAX_CHUNKS: usize = 32;
/// The special tokens of a chunk.
const ENDS: usize = 2;
/// Tokens of a context: there is room for a word between the special tokens.
pub(crate) const CONTEXTS: RangeInclusive<usize> = ENDS + 1..=MAX_CONTEXT;
/// How many tokens may follow a comma at the end of a chunk and still go to the next chunk with what they belong to.
const COMMA_REACH: usize = 20;
/// A word that falls into so many single letters, and nothing else, is one that a vocabulary of pieces lacks.
const LEAST_SPELLED: usize = 3;
/// A comma as CLIP's vocabulary has it, and as others do.
const COMMAS: [&str; 2] = [",</w>", ","];

/// The ids that a model puts around and behind a prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpecialTokens {
    /// Before the first token.
    pub bos: u32,
    /// After the last token.
    pub eos: u32,
    /// After `eos`, up to the end of the context; often `eos` again.
    pub pad: u32,
}

/// A text in tokens.
#[derive(Clone, Debug, PartialEq)]
pub struct Encoded {
    /// What an encoder reads one after another; at least one.
    pub chunks: Vec<Chunk>,
    /// The end of the text that there was no room for.
    pub cut: Option<Cut>,
}

/// As many tokens as the context has: `bos`, a part of the text, `eos`, then `pad`.
#[derive(Clone, Debug, PartialEq)]
pub struct Chunk {
    /// Their ids.
    pub ids: Vec<i64>,
    /// How much each of them counts; 1 for what is not of the text.
    pub weights: Vec<f32>,
}

/// What of a text is not read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cut {
    /// The byte of the prompt where it starts.
    pub place_bytes: usize,
    /// Its words, without what weighs them.
    pub text: String,
}

/// A tokenizer with the context it fills.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    context: usize,
    special: SpecialTokens,
    comma: Option<u32>,
    /// Per added word its first id, and its last.
    added: HashMap<u32, u32>,
    /// Tokens of words that the vocabulary has, and the first of those that were added in their place.
    replaced: Vec<(Vec<u32>, u32)>,
}

impl Tokenizer {
    /// CLIP's tokenizer, which is part of the program: 49,408 tokens, of which the last two, 49406 and 49407, start and
    /// end a prompt.
    ///
    /// It is transformers' `CLIPTokenizer`, but for one thing: where that pads with `!`, it takes every `!` in a prompt
    /// for padding. The models were trained with a tokenizer that does not.
    ///
    /// # Errors
    /// As [`Tokenizer::from_bytes`].
    pub fn clip(context: usize, special: SpecialTokens) -> Result<Self, Error> {
        Self::new(clip::embedded()?, context, special)
    }

    /// Reads the contents of the `vocab.json` and `merges.txt` of a CLIP tokenizer, as diffusers folders have them.
    ///
    /// # Errors
    /// As [`Tokenizer::from_bytes`]; also for merges of tokens that the vocabulary lacks.
    pub fn from_vocabulary(
        vocab_json: &[u8],
        merges_txt: &[u8],
        context: usize,
        special: SpecialTokens,
    ) -> Result<Self, Error> {
        Self::new(clip::from_files(vocab_json, merges_txt)?, context, special)
    }

    /// Reads the contents of a `tokenizer.json`, for contexts of `context` tokens, both ends included.
    ///
    /// The file's own truncation, padding and special tokens are left unused, because they may differ from
    /// what the model was trained with. [`ErrorKind::Model`] for anything that is not a tokenizer, for a context
    /// too short or absurdly long, and for a special token that the tokenizer does not have.
    pub fn from_bytes(bytes: &[u8], context: usize, special: SpecialTokens) -> Result<Self, Error> {
        let bytes = json::standard("tokenizer.json", bytes)?;
        let refuse = || Error::new(ErrorKind::Model, "tokenizer: not a tokenizer.json");
        // The crate panics on a decoder or a precompiled normalizer that it does not know; nothing outlives that.
        let inner = panic::catch_unwind(|| tokenizers::Tokenizer::from_bytes(&bytes))
            .map_err(|_| {
                refuse().help("its decoder or normalizer has a form that the tokenizers crate cannot read")
            })?
            .map_err(|error| refuse().source(error))?;
        Self::new(inner, context, special)
    }

    /// Adds a word that stands for `count` tokens, and gives their ids, which follow those that there were.
    ///
    /// The word is found as the tokenizer finds its own: in whatever case, if it ignores that. It is not found within
    /// longer words, where diffusers finds it. As in diffusers, `word_1` and so on mean the tokens after the first; of a word
    /// that the tokenizer has, as a file named after a thing gives it, its tokens are replaced instead, as A1111 does.
    /// [`ErrorKind::Usage`] for a word that was added before, that cannot be one, or that no chunk has room for.
    pub fn add_word(&mut self, word: &str, count: u32) -> Result<Range<u32>, Error> {
        if word.trim() != word || word.is_empty() || word.contains('\0') || count == 0 {
            return Err(Error::new(
                ErrorKind::Usage,
                format!("embedding: expected a word for tokens, got {word:?} for {count}"),
            ));
        }
        let room = self.context - ENDS;
        if count as usize > room {
            return Err(Error::new(
                ErrorKind::Usage,
                format!(
                    "embedding: {word}: expected at most {room} tokens, the size of one chunk, got {count}"
                ),
            ));
        }
        let mut names: Vec<String> = std::iter::once(word.to_owned())
            .chain((1..count).map(|index| format!("{word}_{index}")))
            .collect();
        let mut replaced = Vec::new();
        if names.iter().any(|name| self.inner.token_to_id(name).is_some()) && !self.is_added(word)? {
            replaced = self.ids(word)?;
            // Nobody types these: they are for the ids alone.
            names.iter_mut().for_each(|name| name.push('\u{1}'));
        }
        if let Some(known) = names.iter().find(|name| self.inner.token_to_id(name).is_some()) {
            return Err(Error::new(
                ErrorKind::Usage,
                format!("embedding: expected a word that the tokenizer does not have, got {known:?}"),
            )
            .help("rename the file: its name is the trigger word"));
        }
        let token =
            |name: &String| AddedToken::from(name, false).single_word(true).normalized(replaced.is_empty());
        let tokens: Vec<_> = names.iter().map(token).collect();
        self.inner.add_tokens(&tokens);
        let ids: Option<Vec<u32>> = names.iter().map(|name| self.inner.token_to_id(name)).collect();
        let (first, last) = match ids.as_deref() {
            Some(&[first, .., last]) if last - first + 1 == count => (first, last),
            Some(&[only]) => (only, only),
            _ => return Err(Error::new(ErrorKind::Internal, format!("tokenizer: {word:?} cannot be added"))),
        };
        self.added.insert(first, last);
        if !replaced.is_empty() {
            self.replaced.push((replaced, first));
        }
        Ok(first..last + 1)
    }

    /// Whether a word was added under its own name.
    fn is_added(&self, word: &str) -> Result<bool, Error> {
        let is_added = |id: u32| self.added.iter().any(|(first, last)| (*first..=*last).contains(&id));
        Ok(matches!(self.ids(word)?[..], [id] if is_added(id)))
    }

    /// The tokens of a text, without those around it.
    fn ids(&self, text: &str) -> Result<Vec<u32>, Error> {
        let tokens = self.inner.encode(text, false).map_err(|error| {
            Error::new(ErrorKind::Model, format!("tokenizer: {text:?} cannot be encoded")).source(error)
        })?;
        Ok(tokens.get_ids().to_vec())
    }

    /// A text in at most `max_chunks` chunks, or [`MAX_CHUNKS`], and what of it did not fit.
    ///
    /// Chunks are made as AUTOMATIC1111 makes them: each fragment is tokenised by itself; `BREAK` fills a chunk up with
    /// padding; a chunk that ends shortly after a comma ends with the comma, if there is another; added words stay
    /// together.
    ///
    /// # Errors
    /// [`ErrorKind::Model`] for a text that the tokenizer cannot encode.
    pub fn encode(&self, text: &Text, max_chunks: usize) -> Result<Encoded, Error> {
        let (room, max_chunks) = (self.context - ENDS, max_chunks.clamp(1, MAX_CHUNKS));
        let mut chunks: Vec<Vec<(u32, f32)>> = Vec::new();
        let (mut chunk, mut last_comma, mut cut) = (Vec::new(), None, None);
        'text: for (index, fragment) in text.fragments().iter().enumerate() {
            if fragment.is_break() {
                if chunks.len() + 1 == max_chunks {
                    cut = cut_at(&text.fragments()[index + 1..], 0);
                    break;
                }
                chunks.push(std::mem::take(&mut chunk));
                last_comma = None;
                continue;
            }
            for (word, start_chars) in self.words(fragment)? {
                let is_comma = Some(word.start) == self.comma;
                if is_comma {
                    last_comma = Some(chunk.len());
                }
                let near = last_comma.take_if(|comma| chunk.len() == room && room - *comma <= COMMA_REACH);
                if let Some(comma) = near.filter(|_| !is_comma && chunks.len() + 1 < max_chunks) {
                    let moved = chunk.split_off(comma + 1);
                    chunks.push(std::mem::replace(&mut chunk, moved));
                }
                if chunk.len() + word.len() > room {
                    if chunks.len() + 1 == max_chunks {
                        cut = cut_at(&text.fragments()[index..], start_chars);
                        break 'text;
                    }
                    chunks.push(std::mem::take(&mut chunk));
                    last_comma = None;
                }
                chunk.extend(word.map(|id| (id, fragment.weight() as f32)));
            }
        }
        if chunks.is_empty() || !chunk.is_empty() {
            chunks.push(chunk);
        }
        Ok(Encoded { chunks: chunks.into_iter().map(|tokens| self.chunk(tokens)).collect(), cut })
    }

    /// The words of a text that the vocabulary lacks, as they were typed: those that become its token for the unknown,
    /// and of a vocabulary of pieces those that fall into single letters.
    ///
    /// # Errors
    /// [`ErrorKind::Model`] for a text that the tokenizer cannot encode.
    pub fn unknown_words(&self, text: &Text) -> Result<Vec<String>, Error> {
        let (unknown, has_pieces) = match self.inner.get_model() {
            ModelWrapper::WordPiece(model) => (Some(model.unk_token.as_str()), true),
            ModelWrapper::WordLevel(model) => (Some(model.unk_token.as_str()), false),
            ModelWrapper::BPE(model) => (model.unk_token.as_deref(), false),
            ModelWrapper::Unigram(_) => (Some("<unk>"), false),
        };
        let special = [self.special.bos, self.special.eos, self.special.pad];
        let unknown =
            unknown.and_then(|token| self.inner.token_to_id(token)).filter(|id| !special.contains(id));
        let mut found = Vec::new();
        for fragment in text.fragments().iter().filter(|fragment| !fragment.is_break()) {
            let words = self.typed_words(fragment)?;
            let is_lacking = |word: &TypedWord| {
                word.ids.iter().any(|id| Some(*id) == unknown) || has_pieces && word.is_spelled
            };
            found.extend(words.into_iter().filter(is_lacking).map(|word| word.typed));
        }
        Ok(found)
    }

    /// The words of a text that are not among these, which are in lower case, as they were typed. Punctuation is no word, and
    /// words that were added are left out.
    ///
    /// # Errors
    /// [`ErrorKind::Model`] for a text that the tokenizer cannot encode.
    pub fn words_beside(&self, text: &Text, words: &[String]) -> Result<Vec<String>, Error> {
        let mut found = Vec::new();
        for fragment in text.fragments().iter().filter(|fragment| !fragment.is_break()) {
            for word in self.typed_words(fragment)? {
                let is_word = word.typed.chars().any(|c| c.is_alphanumeric() || !c.is_ascii());
                let is_added = self.added.iter().any(|(first, last)| (first..=last).contains(&&word.ids[0]));
                if is_word && !is_added && !words.contains(&word.typed.to_lowercase()) {
                    found.push(word.typed);
                }
            }
        }
        Ok(found)
    }

    /// The words of a fragment as the tokenizer divides it, with their tokens.
    fn typed_words(&self, fragment: &Fragment) -> Result<Vec<TypedWord>, Error> {
        let tokens = self.inner.encode_char_offsets(fragment.text(), false).map_err(|error| {
            Error::new(ErrorKind::Model, "tokenizer: the prompt cannot be encoded").source(error)
        })?;
        let typed = |start: usize, end: usize| -> String {
            fragment.text().chars().skip(start).take(end.saturating_sub(start)).collect()
        };
        let ids = tokens.get_word_ids().iter().zip(tokens.get_ids()).zip(tokens.get_offsets());
        let pieces: Vec<_> = ids.map(|((word, id), offsets)| (*word, *id, *offsets)).collect();
        let words = pieces.chunk_by(|one, next| one.0.is_some() && one.0 == next.0);
        Ok(words
            .map(|word| TypedWord {
                typed: typed(word[0].2.0, word[word.len() - 1].2.1),
                ids: word.iter().map(|(_, id, _)| *id).collect(),
                // Each of another letter: pieces of a word that one character was replaced by all have its place.
                is_spelled: word.len() >= LEAST_SPELLED
                    && word.iter().all(|(.., (start, end))| end - start == 1)
                    && word.windows(2).all(|pair| pair[0].2.1 <= pair[1].2.0),
            })
            .collect())
    }

    /// The tokens of a fragment, those of an added word together, and per word the character where it starts.
    fn words(&self, fragment: &Fragment) -> Result<Vec<(Range<u32>, usize)>, Error> {
        let tokens = self.inner.encode_char_offsets(fragment.text(), false).map_err(|error| {
            Error::new(ErrorKind::Model, "tokenizer: the prompt cannot be encoded").source(error)
        })?;
        let (ids, starts, of) = (tokens.get_ids(), tokens.get_offsets(), tokens.get_word_ids());
        let mut words = Vec::with_capacity(ids.len());
        let mut at = 0;
        while at < ids.len() {
            let starts_word = at == 0 || of[at].is_none() || of[at] != of[at - 1];
            let replaced =
                self.replaced.iter().filter(|(word, _)| starts_word && ids[at..].starts_with(word));
            let (len, id) = replaced.map(|(word, id)| (word.len(), *id)).max().unwrap_or((1, ids[at]));
            let last = self.added.get(&id).copied().unwrap_or(id);
            words.push((id..last + 1, starts[at].0));
            at += len;
        }
        Ok(words)
    }

    fn chunk(&self, tokens: Vec<(u32, f32)>) -> Chunk {
        let ends = std::iter::once(self.special.eos).chain(std::iter::repeat(self.special.pad));
        let tokens = std::iter::once((self.special.bos, 1.0)).chain(tokens).chain(ends.map(|id| (id, 1.0)));
        let (ids, weights) = tokens.take(self.context).map(|(id, weight)| (i64::from(id), weight)).unzip();
        Chunk { ids, weights }
    }

    fn new(mut inner: tokenizers::Tokenizer, context: usize, special: SpecialTokens) -> Result<Self, Error> {
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|error| {
            Error::new(ErrorKind::Internal, "tokenizer: truncation cannot be switched off").source(error)
        })?;
        if !CONTEXTS.contains(&context) {
            let (least, most) = CONTEXTS.into_inner();
            let problem = format!("tokenizer: expected a context of {least} to {most} tokens, got {context}");
            return Err(Error::new(ErrorKind::Model, problem));
        }
        for (name, id) in [("bos", special.bos), ("eos", special.eos), ("pad", special.pad)] {
            if inner.id_to_token(id).is_none() {
                return Err(Error::new(
                    ErrorKind::Model,
                    format!("tokenizer: {name}: expected a token with id {id}, got none"),
                ));
            }
        }
        let comma = COMMAS.into_iter().find_map(|comma| inner.token_to_id(comma));
        Ok(Self { inner, context, special, comma, added: HashMap::new(), replaced: Vec::new() })
    }
}

/// What is left of these fragments from a character of the first on, if it is more than blanks.
fn cut_at(fragments: &[Fragment], start_chars: usize) -> Option<Cut> {
    let mut skipped = start_chars;
    let mut place_bytes = None;
    let mut text = String::new();
    for fragment in fragments {
        text.push_str(if fragment.is_break() { " " } else { "" });
        for (index, character) in fragment.text().chars().enumerate().skip(std::mem::take(&mut skipped)) {
            if place_bytes.is_none() && !character.is_whitespace() {
                place_bytes = Some(fragment.place_bytes(index));
            }
            text.push(character);
        }
        text.push_str(if fragment.is_break() { " " } else { "" });
    }
    place_bytes.map(|place_bytes| Cut { place_bytes, text: text.trim().to_owned() })
}

/// A word of a text as the tokenizer divides it.
struct TypedWord {
    typed: String,
    ids: Vec<u32>,
    /// Whether its tokens are single letters.
    is_spelled: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prompt::Prompt;

    const SPECIAL: SpecialTokens = SpecialTokens { bos: 0, eos: 1, pad: 2 };

    /// A WordPiece tokenizer whose own settings are all wrong for us: truncation to 2, padding to 9 and a template.
    fn file() -> Vec<u8> {
        let words =
            ["<s>", "</s>", "<pad>", "[UNK]", "a", "red", "apple", "on", "blue", "##ish", "cafe", ","];
        let vocabulary: serde_json::Map<_, _> =
            words.iter().zip(0..).map(|(word, id): (_, u32)| (word.to_string(), id.into())).collect();
        serde_json::to_vec(&serde_json::json!({
            "version": "1.0",
            "truncation": {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0},
            "padding": {
                "strategy": {"Fixed": 9}, "direction": "Left", "pad_to_multiple_of": null,
                "pad_id": 3, "pad_type_id": 0, "pad_token": "[UNK]",
            },
            "added_tokens": [],
            "normalizer": {
                "type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true,
                "strip_accents": true, "lowercase": true,
            },
            "pre_tokenizer": {"type": "BertPreTokenizer"},
            "post_processor": {
                "type": "TemplateProcessing",
                "single": [{"SpecialToken": {"id": "</s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
                "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
                "special_tokens": {"</s>": {"id": "</s>", "ids": [1], "tokens": ["</s>"]}},
            },
            "decoder": null,
            "model": {
                "type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
                "max_input_chars_per_word": 100, "vocab": vocabulary,
            },
        }))
        .unwrap()
    }

    fn text(prompt: &str) -> Text {
        Prompt::parse(prompt).unwrap().parts(1).unwrap().remove(0).texts.remove(0)
    }

    /// The ids of the only chunk, and what was cut.
    fn encode(prompt: &str, context: usize) -> (Vec<i64>, Option<String>) {
        only(&Tokenizer::from_bytes(&file(), context, SPECIAL).unwrap(), prompt)
    }

    fn only(tokenizer: &Tokenizer, prompt: &str) -> (Vec<i64>, Option<String>) {
        let mut encoded = tokenizer.encode(&Text::literal(prompt).unwrap(), 1).unwrap();
        (encoded.chunks.remove(0).ids, encoded.cut.map(|cut| cut.text))
    }

    /// The ids of all chunks.
    fn chunks(tokenizer: &Tokenizer, prompt: &str, max_chunks: usize) -> Vec<Vec<i64>> {
        let encoded = tokenizer.encode(&text(prompt), max_chunks).unwrap();
        encoded.chunks.into_iter().map(|chunk| chunk.ids).collect()
    }

    #[test]
    fn a_short_prompt_is_padded_behind_its_end() {
        assert_eq!(encode("A red apple", 7), (vec![0, 4, 5, 6, 1, 2, 2], None));
    }

    #[test]
    fn an_empty_prompt_is_its_two_ends() {
        assert_eq!(encode("", 4), (vec![0, 1, 2, 2], None));
        assert_eq!(encode("  \n", 4), (vec![0, 1, 2, 2], None));
    }

    #[test]
    fn a_prompt_that_just_fits_is_not_cut() {
        assert_eq!(encode("a red apple", 5), (vec![0, 4, 5, 6, 1], None));
    }

    #[test]
    fn a_long_prompt_keeps_both_ends_and_names_what_was_cut() {
        assert_eq!(encode("a red apple", 4), (vec![0, 4, 5, 1], Some("apple".into())));
        // As typed: with its capitals, accents and double space.
        assert_eq!(encode("A red  Café, on Blue ", 4), (vec![0, 4, 5, 1], Some("Café, on Blue".into())));
        assert_eq!(encode("a Café on blue", 5), (vec![0, 4, 10, 7, 1], Some("blue".into())));
        // Within a word: what is left of it.
        assert_eq!(encode("blueish apple", 3), (vec![0, 8, 1], Some("ish apple".into())));
    }

    /// A byte-level vocabulary makes two tokens of "é", and the cut falls between them.
    #[test]
    fn a_cut_within_a_character_keeps_the_character() {
        let file = serde_json::to_vec(&serde_json::json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
            "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true},
            "post_processor": null, "decoder": null,
            "model": {
                "type": "BPE", "merges": [],
                "vocab": {"<s>": 0, "</s>": 1, "<pad>": 2, "a": 3, "\u{c3}": 4, "\u{a9}": 5},
            },
        }))
        .unwrap();
        let tokenizer = Tokenizer::from_bytes(&file, 4, SPECIAL).unwrap();
        assert_eq!(only(&tokenizer, "aéa"), (vec![0, 3, 4, 1], Some("éa".into())));
    }

    /// CLIP with the padding of SD 1 (`eos`) or that of OpenCLIP (`!`, whose id is 0).
    fn clip(context: usize, pad: u32) -> Tokenizer {
        Tokenizer::clip(context, SpecialTokens { bos: 49406, eos: 49407, pad }).unwrap()
    }

    #[test]
    fn clip_cuts_at_characters_as_they_were_typed() {
        let cut = |prompt, room: usize| only(&clip(room + ENDS, 49407), prompt).1;
        assert_eq!(cut("A Red \t Fox, PAINTED", 2), Some("Fox, PAINTED".into()));
        // Composed by the tokenizer, and as typed again afterwards.
        assert_eq!(cut("cafe\u{301} cre\u{300}me", 1), Some("cre\u{300}me".into()));
        // One character of three tokens, of which two had room.
        assert_eq!(cut("龘 a", 3), Some("a".into()));
        assert_eq!(cut("龘 a", 2), Some("龘 a".into()));
        assert_eq!(cut("don't stop", 2), Some("stop".into()));
        assert_eq!(cut("a<|endoftext|>b c", 2), Some("b c".into()));
        assert_eq!(cut("a red fox", 3), None);
    }

    #[test]
    fn a_very_long_prompt_is_cut_too() {
        let tokenizer = clip(77, 0);
        for unit in ["a", "fox ", "!", "7", "é"] {
            let prompt = unit.repeat(crate::prompt::MAX_BYTES / unit.len());
            let encoded = tokenizer.encode(&Text::literal(&prompt).unwrap(), usize::MAX).unwrap();
            assert_eq!(encoded.chunks.len(), MAX_CHUNKS, "{unit}");
            assert!(encoded.chunks.iter().all(|chunk| chunk.ids.len() == 77 && chunk.ids[76] == 49407));
            let cut = encoded.cut.expect(unit);
            assert_eq!(prompt[cut.place_bytes..].trim(), cut.text, "{unit}");
        }
    }

    /// A vocabulary that can only spell "ab" and "abc".
    const VOCABULARY: &str = r#"{"a": 0, "b": 1, "b</w>": 2, "c</w>": 3, "ab": 4, "ab</w>": 5, "abc</w>": 6, "<|startoftext|>": 7, "<|endoftext|>": 8}"#;
    const MERGES: &str = "#version: 0.2\na b\na b</w>\nab c</w>\n";

    fn vocabulary(vocab_json: &[u8], merges_txt: &[u8]) -> Result<Tokenizer, Error> {
        Tokenizer::from_vocabulary(vocab_json, merges_txt, 6, SpecialTokens { bos: 7, eos: 8, pad: 8 })
    }

    #[test]
    fn a_folders_vocabulary_and_merges_are_a_tokenizer() {
        for merges in [MERGES, &MERGES.replace('\n', "\r\n")] {
            let tokenizer = vocabulary(VOCABULARY.as_bytes(), merges.as_bytes()).unwrap();
            // What cannot be spelt is the end of the text, as in transformers.
            assert_eq!(only(&tokenizer, "AB abc x").0, [7, 5, 6, 8, 8, 8]);
        }
    }

    #[test]
    fn hostile_vocabularies_and_merges_are_model_errors() {
        let (vocab, merges) = (VOCABULARY.as_bytes(), MERGES.as_bytes());
        let replaced = |from: &str, to: &str| {
            assert!(VOCABULARY.contains(from));
            VOCABULARY.replace(from, to).into_bytes()
        };
        let long = ["x"; 100_000].concat();
        let hostile: [(&str, &[u8], &[u8], &str); 14] = [
            ("empty_vocabulary_file", b"", merges, "vocab.json: EOF"),
            ("vocabulary_of_another_kind", b"[1, 2]", merges, "expected an object of tokens"),
            ("truncated_vocabulary", &vocab[..40], merges, "vocab.json: EOF"),
            ("vocabulary_not_text", b"{\"\xff\": 1}", merges, "vocab.json: invalid unicode"),
            ("negative_id", &replaced("\"a\": 0", "\"a\": -1"), merges, "integer `-1`"),
            ("absurd_id", &replaced("\"a\": 0", "\"a\": 4294967296"), merges, "integer `4294967296`"),
            ("two_tokens_of_one_id", &replaced("\"a\": 0", "\"a\": 1"), merges, "id 1: got two tokens"),
            ("one_token_of_two_ids", &replaced("\"a\": 0", "\"a\": 0, \"a\": 9"), merges, "got \"a\" twice"),
            ("no_start", &replaced("<|startoftext|>", "x"), merges, "expected the token <|startoftext|>"),
            ("no_end", &replaced("<|endoftext|>", "x"), merges, "expected the token <|endoftext|>"),
            ("merges_not_text", vocab, b"a \xff", "merges.txt: expected text"),
            (
                "merge_of_three",
                vocab,
                b"#version\na b\na b c\n",
                "merges.txt: line 3: expected two tokens, got a b c",
            ),
            ("merge_of_one", vocab, long.as_bytes(), "merges.txt: line 1: expected two tokens, got xxx"),
            ("merge_of_unknown_tokens", vocab, b"b a\n", "`ba` out of vocabulary"),
        ];
        for (name, vocab_json, merges_txt, message) in hostile {
            let error = vocabulary(vocab_json, merges_txt).err().expect(name);
            assert_eq!(error.kind(), ErrorKind::Model, "{name}");
            let text = error.to_string();
            assert!(text.contains(message) && text.len() < 200, "{name}: {text}");
        }
    }

    /// As with a file that is named after a thing.
    #[test]
    fn words_of_the_vocabulary_can_be_given_other_tokens() {
        let mut tokenizer = Tokenizer::from_bytes(&file(), 9, SPECIAL).unwrap();
        let ids = |tokenizer: &Tokenizer, prompt| only(tokenizer, prompt).0;
        let before = ids(&tokenizer, "a red apple");
        let added = tokenizer.add_word("red", 2).unwrap();
        let after = ids(&tokenizer, "a red apple");
        let at = before.iter().position(|id| !after.contains(id)).unwrap();
        let [first, last] = [added.start, added.end - 1].map(i64::from);
        let expected = [&before[..at], &[first, last], &before[at + 1..]].concat();
        assert_eq!(after, expected[..before.len()]);
        assert_eq!(
            ids(&tokenizer, "a blue apple"),
            ids(&Tokenizer::from_bytes(&file(), 9, SPECIAL).unwrap(), "a blue apple")
        );
        let mut tokenizer = clip(77, 49407);
        let dog = i64::from(tokenizer.add_word("dog", 1).unwrap().start);
        let ids = ids(&tokenizer, "a Dog, dogs and a hotdog");
        assert_eq!(ids.iter().filter(|id| **id == dog).count(), 1, "{ids:?}");
        assert_eq!(ids[2], dog);
        // Once.
        assert_eq!(tokenizer.add_word("dog", 1).unwrap_err().kind(), ErrorKind::Usage);
    }

    #[test]
    fn an_added_word_stands_for_its_tokens() {
        let mut tokenizer = Tokenizer::from_bytes(&file(), 9, SPECIAL).unwrap();
        assert_eq!(tokenizer.add_word("<Cat-Toy>", 3).unwrap(), 12..15);
        assert_eq!(tokenizer.add_word("style", 1).unwrap(), 15..16);
        let ids = |prompt| only(&tokenizer, prompt).0;
        assert_eq!(ids("a <cat-toy>, red"), [0, 4, 12, 13, 14, 11, 5, 1, 2]);
        assert_eq!(ids("STYLE on style"), [0, 15, 7, 15, 1, 2, 2, 2, 2]);
        assert_eq!(ids("<cat-toy>_2 red"), [0, 14, 5, 1, 2, 2, 2, 2, 2]);
        // Within a longer word it is not meant.
        assert_eq!(ids("styles"), [0, 3, 1, 2, 2, 2, 2, 2, 2]);
        assert_eq!(ids("A red  Café"), [0, 4, 5, 10, 1, 2, 2, 2, 2]);
    }

    #[test]
    fn an_added_word_that_does_not_fit_is_cut() {
        let mut tokenizer = Tokenizer::from_bytes(&file(), 5, SPECIAL).unwrap();
        tokenizer.add_word("style", 3).unwrap();
        // None of it is read, as there is no telling what a part of it would mean.
        let cut = Some("style on blue".into());
        assert_eq!(only(&tokenizer, "A red style on blue"), (vec![0, 4, 5, 1, 2], cut));
        assert_eq!(
            chunks(&tokenizer, "a red style on", 3),
            [[0, 4, 5, 1, 2], [0, 12, 13, 14, 1], [0, 7, 1, 2, 2]]
        );
    }

    #[test]
    fn words_that_cannot_be_added() {
        let mut tokenizer = Tokenizer::from_bytes(&file(), 9, SPECIAL).unwrap();
        tokenizer.add_word("style", 2).unwrap();
        for (word, count) in
            [("", 1), (" a", 1), ("a\0b", 1), ("new", 0), ("new", 8), ("style", 1), ("style_1", 1)]
        {
            let error = tokenizer.add_word(word, count).expect_err(word);
            assert_eq!(error.kind(), ErrorKind::Usage, "{word}");
        }
        assert_eq!(tokenizer.add_word("new", 1).unwrap(), 14..15);
    }

    #[test]
    fn a_long_prompt_goes_on_in_the_next_chunk() {
        let tokenizer = Tokenizer::from_bytes(&file(), 5, SPECIAL).unwrap();
        assert_eq!(chunks(&tokenizer, "a red apple", 9), [[0, 4, 5, 6, 1]]);
        assert_eq!(chunks(&tokenizer, "a red apple on", 9), [[0, 4, 5, 6, 1], [0, 7, 1, 2, 2]]);
        assert_eq!(chunks(&tokenizer, "a, red apple", 9), [[0, 4, 11, 1, 2], [0, 5, 6, 1, 2]]);
        // No chunk is left to move it to.
        assert_eq!(chunks(&tokenizer, "a, red apple", 1), [[0, 4, 11, 5, 1]]);
        // A comma is no reason to move what stands before it.
        assert_eq!(chunks(&tokenizer, "a red apple, on", 9), [[0, 4, 5, 6, 1], [0, 11, 7, 1, 2]]);
    }

    #[test]
    fn break_ends_a_chunk() {
        let tokenizer = Tokenizer::from_bytes(&file(), 5, SPECIAL).unwrap();
        assert_eq!(chunks(&tokenizer, "a BREAK red", 9), [[0, 4, 1, 2, 2], [0, 5, 1, 2, 2]]);
        assert_eq!(
            chunks(&tokenizer, "BREAK BREAK a BREAK", 9),
            [[0, 1, 2, 2, 2], [0, 1, 2, 2, 2], [0, 4, 1, 2, 2]]
        );
        let encoded = tokenizer.encode(&text("a BREAK  (red: 1.5) BREAK on"), 1).unwrap();
        assert_eq!(encoded.cut, Some(Cut { place_bytes: 10, text: "red BREAK on".into() }));
        assert_eq!(tokenizer.encode(&text("a BREAK "), 1).unwrap().cut, None);
    }

    #[test]
    fn weights_are_those_of_the_tokens() {
        let tokenizer = Tokenizer::from_bytes(&file(), 6, SPECIAL).unwrap();
        let encoded = tokenizer.encode(&text("a (blueish:1.5), [red] on"), 9).unwrap();
        let weights: Vec<_> = encoded.chunks.iter().map(|chunk| &chunk.weights[..]).collect();
        assert_eq!(
            weights,
            [[1.0, 1.0, 1.5, 1.5, 1.0, 1.0], [1.0, (1.0 / 1.1_f64) as f32, 1.0, 1.0, 1.0, 1.0]]
        );
    }

    #[test]
    fn what_is_cut_is_told_with_its_place() {
        let tokenizer = Tokenizer::from_bytes(&file(), 5, SPECIAL).unwrap();
        let cut = |prompt| tokenizer.encode(&text(prompt), 1).unwrap().cut;
        assert_eq!(
            cut("Café (red: 1.2) on [BLUEISH:9] Apple"),
            Some(Cut { place_bytes: 32, text: "Apple".into() })
        );
        assert_eq!(cut(r"Café (red\) blue:1.2)"), Some(Cut { place_bytes: 13, text: "blue".into() }));
    }

    #[test]
    fn unknown_words_are_told_as_typed() {
        let tokenizer = Tokenizer::from_bytes(&file(), 9, SPECIAL).unwrap();
        let unknown = |prompt| tokenizer.unknown_words(&text(prompt)).unwrap();
        assert_eq!(unknown("a red (apple:1.2) on [blueish]"), [""; 0]);
        assert_eq!(unknown("a Rocket 🚀, (zebra:1.2) BREAK red 🍎"), ["Rocket", "🚀", "zebra", "🍎"]);
        let words = ["a", "red", "apple"].map(str::to_owned);
        let beside = |prompt| tokenizer.words_beside(&text(prompt), &words).unwrap();
        assert_eq!(beside("A Red, (apple:1.2)! a red [apple]..."), [""; 0]);
        assert_eq!(
            beside("a Rocket on blueish 🚀, (zebra2:1.2) BREAK red 🍎"),
            ["Rocket", "on", "blueish", "🚀", "zebra2", "🍎"]
        );
        let clip = Tokenizer::clip(77, SpecialTokens { bos: 49406, eos: 49407, pad: 49407 }).unwrap();
        assert_eq!(clip.unknown_words(&text("a 🚀 zebra <|endoftext|> \u{10ffff}")).unwrap(), [""; 0]);
    }

    #[test]
    fn hostile_files_and_settings_are_model_errors() {
        let good = file();
        let truncated = &good[..good.len() / 2];
        let absent = |special| (good.as_slice(), 7, special);
        let hostile = [
            ("empty_file", (&b""[..], 7, SPECIAL)),
            ("not_json", (&b"\xff\xfe"[..], 7, SPECIAL)),
            ("other_json", (&b"{\"version\": \"1.0\"}"[..], 7, SPECIAL)),
            ("truncated_file", (truncated, 7, SPECIAL)),
            ("context_without_room_for_the_ends", (&good, 1, SPECIAL)),
            ("context_without_room_for_words", (&good, ENDS, SPECIAL)),
            ("no_context", (&good, 0, SPECIAL)),
            ("absurd_context", (&good, usize::MAX, SPECIAL)),
            ("absent_bos", absent(SpecialTokens { bos: 12, ..SPECIAL })),
            ("absent_eos", absent(SpecialTokens { eos: 12, ..SPECIAL })),
            ("absent_pad", absent(SpecialTokens { pad: u32::MAX, ..SPECIAL })),
        ];
        for (name, (bytes, context, special)) in hostile {
            let error = Tokenizer::from_bytes(bytes, context, special).err().expect(name);
            assert_eq!(error.kind(), ErrorKind::Model, "{name}");
        }
    }
}
