//! Text to token ids, as CLIP-style text encoders want them: a fixed length, with known ends and padding.
//! It knows nothing of where a tokenizer is stored, nor of what encodes the ids.

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
}

impl Tokenizer {
    /// Reads the contents of a `tokenizer.json`, for contexts of `context` tokens, both ends included.
    ///
    /// The file's own truncation, padding and special tokens are left unused, because they may differ from
    /// what the model was trained with. [`ErrorKind::Model`] for anything that is not a tokenizer, for a context
    /// too short or absurdly long, and for a special token that the tokenizer does not have.
    pub fn from_bytes(bytes: &[u8], context: usize, special: SpecialTokens) -> Result<Self, Error> {
        let mut inner = tokenizers::Tokenizer::from_bytes(bytes)
            .map_err(|error| Error::new(ErrorKind::Model, "tokenizer: not a tokenizer.json").source(error))?;
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
        Ok(Self { inner, context, special })
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
        let room = self.context - 2;
        let cut = tokens.get_offsets().get(room).map(|&(start_chars, _)| {
            let rest: String = prompt.chars().skip(start_chars).collect();
            rest.trim().to_owned()
        });
        let kept = tokens.get_ids().iter().take(room).copied();
        let ends = std::iter::once(self.special.eos).chain(std::iter::repeat(self.special.pad));
        let ids = std::iter::once(self.special.bos).chain(kept).chain(ends).take(self.context);
        Ok(Encoded { ids: ids.map(i64::from).collect(), cut })
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
