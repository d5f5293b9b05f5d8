//! CLIP's byte pair encoding, built from its merges alone or from a vocabulary and merges as folders have them.
//! It knows nothing of contexts and padding.

use std::collections::{HashMap, HashSet};
use std::fmt;

use flate2::{Decompress, FlushDecompress};
use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, Visitor};
use tokenizers::models::bpe::{BPE, Merges, Vocab};
use tokenizers::normalizers::replace::{Replace, ReplacePattern};
use tokenizers::normalizers::{Lowercase, NFC, Sequence as Normalizers};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence as PreTokenizers;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, NormalizerWrapper, PreTokenizerWrapper, SplitDelimiterBehavior};

use crate::{Error, ErrorKind, json};

const START: &str = "<|startoftext|>";
const END: &str = "<|endoftext|>";

/// What marks the last piece of a word.
const END_OF_WORD: &str = "</w>";

/// Where words part: contractions, runs of letters, single digits, runs of anything else but blanks.
const WORDS: &str = concat!(
    r"<\|startoftext\|>|<\|endoftext\|>",
    r"|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
);

/// See models/tokenizer/README.md.
const MERGES: &[u8] = include_bytes!("../../models/tokenizer/clip_merges.txt.gz");
/// The size of gzip's header when it names no file, as here.
const GZIP_HEADER_BYTES: usize = 10;
/// As many as the merges have when unpacked.
const MERGES_BYTES: usize = 524_605;

/// The longest part of a hostile file that is shown.
const SHOWN_CHARS: usize = 40;

/// CLIP's own tokenizer.
pub(super) fn embedded() -> Result<tokenizers::Tokenizer, Error> {
    let mut text = Vec::with_capacity(MERGES_BYTES + 1);
    Decompress::new(false)
        .decompress_vec(&MERGES[GZIP_HEADER_BYTES..], &mut text, FlushDecompress::Finish)
        .map_err(|error| Error::new(ErrorKind::Internal, "the built-in tokenizer").source(error))?;
    let merges = parse_merges(&text)?;
    let bytes = byte_letters().map(String::from);
    let ends = byte_letters().map(|letter| format!("{letter}{END_OF_WORD}"));
    let merged = merges.iter().map(|(left, right)| format!("{left}{right}"));
    let tokens = bytes.chain(ends).chain(merged).chain([START.into(), END.into()]);
    build(tokens.zip(0..).collect(), merges)
}

/// The tokenizer of a `vocab.json` (token to id) and a `merges.txt`.
pub(super) fn from_files(vocab_json: &[u8], merges_txt: &[u8]) -> Result<tokenizers::Tokenizer, Error> {
    let vocab_json = json::standard("vocab.json", vocab_json)?;
    let Ids(vocabulary) = serde_json::from_slice(&vocab_json)
        .map_err(|error| Error::new(ErrorKind::Model, "vocab.json").source(error))?;
    for token in [START, END] {
        if !vocabulary.contains_key(token) {
            return Err(Error::new(
                ErrorKind::Model,
                format!("vocab.json: expected the token {token}, got {} others", vocabulary.len()),
            ));
        }
    }
    build(vocabulary.into_iter().collect(), parse_merges(merges_txt)?)
}

/// Everything as transformers' `CLIPTokenizer` sets it.
fn build(vocabulary: Vocab, merges: Merges) -> Result<tokenizers::Tokenizer, Error> {
    let model = BPE::builder()
        .vocab_and_merges(vocabulary, merges)
        .unk_token(END.into())
        .end_of_word_suffix(END_OF_WORD.into())
        .build()
        .map_err(|error| {
            Error::new(ErrorKind::Model, "merges.txt: expected merges of the tokens of vocab.json")
                .source(shortened(&error.to_string()))
        })?;
    let unfit = |error| Error::new(ErrorKind::Internal, "tokenizer: CLIP's patterns").source(error);
    let blanks = Replace::new(ReplacePattern::Regex(r"\s+".into()), " ").map_err(unfit)?;
    let words = Split::new(SplitPattern::Regex(WORDS.into()), SplitDelimiterBehavior::Removed, true)
        .map_err(unfit)?;
    let normalizers: [NormalizerWrapper; 3] = [NFC.into(), blanks.into(), Lowercase.into()];
    let pre_tokenizers: [PreTokenizerWrapper; 2] =
        [words.into(), ByteLevel::default().add_prefix_space(false).into()];

    let mut tokenizer = tokenizers::Tokenizer::new(model);
    tokenizer
        .with_normalizer(Some(Normalizers::new(normalizers.into())))
        .with_pre_tokenizer(Some(PreTokenizers::new(pre_tokenizers.into())));
    // Typed in a prompt they mean themselves.
    tokenizer.add_special_tokens(&[START, END].map(|token| AddedToken::from(token, true)));
    Ok(tokenizer)
}

/// Two tokens a line; the first line may name a version.
fn parse_merges(text: &[u8]) -> Result<Merges, Error> {
    let text = std::str::from_utf8(text)
        .map_err(|error| Error::new(ErrorKind::Model, "merges.txt: expected text").source(error))?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let lines = text.lines().zip(1..).filter(|(line, _)| !line.starts_with("#version") && !line.is_empty());
    lines
        .map(|(line, number)| match line.split_once(' ') {
            Some((left, right)) if !left.is_empty() && !right.is_empty() && !right.contains(' ') => {
                Ok((left.to_owned(), right.to_owned()))
            }
            _ => Err(Error::new(
                ErrorKind::Model,
                format!("merges.txt: line {number}: expected two tokens, got {}", shortened(line)),
            )),
        })
        .collect()
}

fn shortened(text: &str) -> String {
    match text.char_indices().nth(SHOWN_CHARS) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// The visible character that stands for each byte in a token, in the order of the tokens' ids: bytes that are visible
/// in Latin-1 stand for themselves, the others for what follows Latin-1.
fn byte_letters() -> impl Iterator<Item = char> {
    let visible = ('!'..='~').chain('¡'..='¬').chain('®'..='ÿ');
    let count = visible.clone().count() as u32;
    visible.chain((0x100..0x200 - count).filter_map(char::from_u32))
}

/// The object of a `vocab.json`, with each token and each id at most once: a map type would keep the last of two tokens.
struct Ids(HashMap<String, u32>);

impl<'de> Deserialize<'de> for Ids {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(IdsVisitor)
    }
}

struct IdsVisitor;

impl<'de> Visitor<'de> for IdsVisitor {
    type Value = Ids;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tokens and their ids")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Ids, A::Error> {
        let mut ids = HashMap::new();
        let mut taken = HashSet::new();
        while let Some((token, id)) = map.next_entry::<String, u32>()? {
            if !taken.insert(id) {
                return Err(A::Error::custom(format!(
                    "id {id}: got two tokens, one is {}",
                    shortened(&token)
                )));
            }
            if let Some(first) = ids.insert(token, id) {
                return Err(A::Error::custom(format!("ids {first} and {id}: got the same token")));
            }
        }
        Ok(Ids(ids))
    }
}
