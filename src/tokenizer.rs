//! Text to token ids, as CLIP-style text encoders want them: a fixed length, with known ends and padding.
//! It knows nothing of where a tokenizer is stored, nor of what encodes the ids.

mod clip;

use std::collections::HashMap;
use std::ops::Range;

use tokenizers::AddedToken;

use crate::{Error, ErrorKind};

/// The longest context that is believed, in tokens; CLIP's is 77.
pub const MAX_CONTEXT: usize = 1 << 16;

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

/// A prompt in tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encoded {
    /// As many ids as the context has: `bos`, the prompt, `eos`, then `pad`.
    pub ids: Vec<i64>,
    /// The end of the prompt that the context had no room for, as it was typed.
    pub cut: Option<String>,
}

/// A tokenizer with the context it fills.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    context: usize,
    special: SpecialTokens,
    /// Per added word its first id, and its last.
    added: HashMap<u32, u32>,
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
        let inner = tokenizers::Tokenizer::from_bytes(bytes)
            .map_err(|error| Error::new(ErrorKind::Model, "tokenizer: not a tokenizer.json").source(error))?;
        Self::new(inner, context, special)
    }

    /// Adds a word that stands for `count` tokens, and gives their ids, which follow those that there were.
    ///
    /// The word is found as the tokenizer finds its own: in whatever case, if it ignores that. It is not found within
    /// longer words, where diffusers finds it. As in diffusers, `word_1` and so on mean the tokens after the first.
    /// [`ErrorKind::Usage`] for a word that the tokenizer has, or that cannot be one.
    pub fn add_word(&mut self, word: &str, count: u32) -> Result<Range<u32>, Error> {
        if word.trim() != word || word.is_empty() || word.contains('\0') || count == 0 {
            return Err(Error::new(
                ErrorKind::Usage,
                format!("embedding: expected a word for tokens, got {word:?} for {count}"),
            ));
        }
        let names: Vec<String> = std::iter::once(word.to_owned())
            .chain((1..count).map(|index| format!("{word}_{index}")))
            .collect();
        if let Some(known) = names.iter().find(|name| self.inner.token_to_id(name).is_some()) {
            return Err(Error::new(
                ErrorKind::Usage,
                format!("embedding: expected a word that the tokenizer does not have, got {known:?}"),
            )
            .help("give the file another name, which is the word"));
        }
        let tokens: Vec<_> =
            names.iter().map(|name| AddedToken::from(name, false).single_word(true)).collect();
        self.inner.add_tokens(&tokens);
        let ids: Option<Vec<u32>> = names.iter().map(|name| self.inner.token_to_id(name)).collect();
        match ids.as_deref() {
            Some(&[first, .., last]) if last - first + 1 == count => {
                self.added.insert(first, last);
                Ok(first..last + 1)
            }
            Some(&[only]) => Ok(only..only + 1),
            _ => Err(Error::new(ErrorKind::Internal, format!("tokenizer: {word:?} cannot be added"))),
        }
    }

    /// The ids of a prompt, and what of it did not fit; [`ErrorKind::Usage`] for a prompt with NUL.
    pub fn encode(&self, prompt: &str) -> Result<Encoded, Error> {
        if let Some(place) = prompt.find('\0') {
            return Err(Error::new(
                ErrorKind::Usage,
                format!("prompt: expected text, got NUL at byte {place}"),
            ));
        }
        let tokens = self.inner.encode_char_offsets(prompt, false).map_err(|error| {
            Error::new(ErrorKind::Model, "tokenizer: the prompt cannot be encoded").source(error)
        })?;
        let starts = tokens.get_offsets().iter().map(|&(start_chars, _)| start_chars);
        let tokens = tokens.get_ids().iter().zip(starts).flat_map(|(&id, start_chars)| {
            let last = self.added.get(&id).copied().unwrap_or(id);
            (id..=last).map(move |id| (id, start_chars))
        });
        let tokens: Vec<(u32, usize)> = tokens.collect();
        let room = self.context - 2;
        let cut = tokens.get(room).map(|&(_, start_chars)| {
            let rest: String = prompt.chars().skip(start_chars).collect();
            rest.trim().to_owned()
        });
        let kept = tokens.iter().take(room).map(|&(id, _)| id);
        let ends = std::iter::once(self.special.eos).chain(std::iter::repeat(self.special.pad));
        let ids = std::iter::once(self.special.bos).chain(kept).chain(ends).take(self.context);
        Ok(Encoded { ids: ids.map(i64::from).collect(), cut })
    }

    fn new(mut inner: tokenizers::Tokenizer, context: usize, special: SpecialTokens) -> Result<Self, Error> {
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|error| {
            Error::new(ErrorKind::Internal, "tokenizer: truncation cannot be switched off").source(error)
        })?;
        if !(2..=MAX_CONTEXT).contains(&context) {
            return Err(Error::new(
                ErrorKind::Model,
                format!("tokenizer: expected a context of 2 to {MAX_CONTEXT} tokens, got {context}"),
            ));
        }
        for (name, id) in [("bos", special.bos), ("eos", special.eos), ("pad", special.pad)] {
            if inner.id_to_token(id).is_none() {
                return Err(Error::new(
                    ErrorKind::Model,
                    format!("tokenizer: {name}: expected a token with id {id}, got none"),
                ));
            }
        }
        Ok(Self { inner, context, special, added: HashMap::new() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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

    fn encode(prompt: &str, context: usize) -> (Vec<i64>, Option<String>) {
        let encoded = Tokenizer::from_bytes(&file(), context, SPECIAL).unwrap().encode(prompt).unwrap();
        (encoded.ids, encoded.cut)
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
        assert_eq!(encode("red", 2), (vec![0, 1], Some("red".into())));
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
        let encoded = tokenizer.encode("aéa").unwrap();
        assert_eq!(encoded, Encoded { ids: vec![0, 3, 4, 1], cut: Some("éa".into()) });
    }

    /// CLIP with the padding of SD 1 (`eos`) or that of OpenCLIP (`!`, whose id is 0).
    fn clip(context: usize, pad: u32) -> Tokenizer {
        Tokenizer::clip(context, SpecialTokens { bos: 49406, eos: 49407, pad }).unwrap()
    }

    #[test]
    fn clip_cuts_at_characters_as_they_were_typed() {
        let mut tokenizer = clip(2, 49407);
        let mut cut = |prompt, room: usize| {
            tokenizer.context = room + 2;
            tokenizer.encode(prompt).unwrap().cut
        };
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
            let prompt = unit.repeat(10_000);
            let encoded = tokenizer.encode(&prompt).unwrap();
            assert_eq!((encoded.ids.len(), encoded.ids[76]), (77, 49407));
            assert!(encoded.cut.is_some_and(|cut| cut.len() > prompt.len() / 2), "{unit}");
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
            assert_eq!(tokenizer.encode("AB abc x").unwrap().ids, [7, 5, 6, 8, 8, 8]);
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
            ("one_token_of_two_ids", &replaced("\"a\": 0", "\"a\": 0, \"a\": 9"), merges, "ids 0 and 9"),
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

    #[test]
    fn an_added_word_stands_for_its_tokens() {
        let mut tokenizer = Tokenizer::from_bytes(&file(), 9, SPECIAL).unwrap();
        assert_eq!(tokenizer.add_word("<Cat-Toy>", 3).unwrap(), 12..15);
        assert_eq!(tokenizer.add_word("style", 1).unwrap(), 15..16);
        let ids = |prompt| tokenizer.encode(prompt).unwrap().ids;
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
        let encoded = tokenizer.encode("A red style on blue").unwrap();
        assert_eq!(encoded, Encoded { ids: vec![0, 4, 5, 12, 1], cut: Some("style on blue".into()) });
    }

    #[test]
    fn words_that_cannot_be_added() {
        let mut tokenizer = Tokenizer::from_bytes(&file(), 9, SPECIAL).unwrap();
        tokenizer.add_word("style", 2).unwrap();
        for (word, count) in
            [("", 1), (" a", 1), ("a\0b", 1), ("new", 0), ("red", 1), ("style", 1), ("style_1", 1)]
        {
            let error = tokenizer.add_word(word, count).expect_err(word);
            assert_eq!(error.kind(), ErrorKind::Usage, "{word}");
        }
        assert_eq!(tokenizer.add_word("new", 1).unwrap(), 14..15);
    }

    #[test]
    fn prompt_with_nul() {
        let tokenizer = Tokenizer::from_bytes(&file(), 7, SPECIAL).unwrap();
        let error = tokenizer.encode("a red\0apple").expect_err("NUL");
        assert_eq!(error.kind(), ErrorKind::Usage);
        assert!(error.to_string().contains("byte 5"), "{error}");
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
