//! What of a prompt names a file and is no text: `<lora:NAME:1>`, as AUTOMATIC1111's web UI has it, and `embedding:NAME`, as
//! ComfyUI has it. It knows nothing of files.

use std::ops::Range;

/// What stands in the place of bytes that are no text. No prompt has it otherwise.
pub(super) const NO_TEXT: char = '\0';

const EMBEDDING: &str = "embedding:";
/// What may follow an embedding's name that is no part of it.
const ENDINGS: [&str; 3] = [".safetensors", ".pt", ".bin"];

/// A file that a prompt names.
#[derive(Clone, Debug, PartialEq)]
pub enum Mention {
    /// `<lora:NAME:W>`, `<lora:NAME:TE:UNET>`, `<lora:NAME:te=TE:unet=UNET>`, or the same with `lyco`.
    Lora {
        /// The file's name without its ending.
        name: String,
        /// How much of it the text encoders get.
        text_encoder: f32,
        /// How much of it the U-Net gets.
        unet: f32,
    },
    /// `embedding:NAME`, whose name then is a word.
    Embedding {
        /// The file's name without its folder and ending.
        name: String,
    },
    /// Another `<kind:...>`, or one with weights that are none; as it was typed.
    Unknown(String),
}

/// The files that a prompt names, in order.
pub fn mentions(prompt: &str) -> Vec<Mention> {
    found(prompt).into_iter().map(|(_, mention)| mention).collect()
}

/// The same prompt with [`NO_TEXT`] in the place of what names files, but for the names of embeddings, which are words.
pub(super) fn masked(prompt: &str) -> String {
    let mut bytes = prompt.as_bytes().to_vec();
    for (ranges, _) in found(prompt) {
        ranges.into_iter().for_each(|range| bytes[range].fill(NO_TEXT as u8));
    }
    String::from_utf8(bytes).expect("whole characters were replaced")
}

/// Every mention, and the bytes of it that are no text.
fn found(prompt: &str) -> Vec<(Vec<Range<usize>>, Mention)> {
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(next) = prompt[at..].find(['<', 'e', 'E']) {
        let start = at + next;
        let rest = &prompt[start..];
        let mention = if rest.starts_with('<') { tag(rest) } else { embedding(prompt, start) };
        match mention {
            Some((len, ranges, mention)) => {
                found.push((
                    ranges.into_iter().map(|range| start + range.start..start + range.end).collect(),
                    mention,
                ));
                at = start + len;
            }
            None => at = start + 1,
        }
    }
    found
}

type Found = Option<(usize, Vec<Range<usize>>, Mention)>;

/// `<(\w+):([^>]+)>`
fn tag(rest: &str) -> Found {
    let end = rest.find('>')?;
    let (kind, arguments) = rest[1..end].split_once(':')?;
    if kind.is_empty() || arguments.is_empty() || !kind.chars().all(super::is_of_a_word) {
        return None;
    }
    let is_lora = kind.eq_ignore_ascii_case("lora") || kind.eq_ignore_ascii_case("lyco");
    let mention =
        lora(arguments).filter(|_| is_lora).unwrap_or_else(|| Mention::Unknown(rest[..=end].to_owned()));
    Some((end + 1, std::iter::once(0..end + 1).collect(), mention))
}

/// A name, and weights by place or by name; those of the U-Net are the text encoder's where they are not said.
fn lora(arguments: &str) -> Option<Mention> {
    let mut parts = arguments.split(':');
    let name = parts.next()?.trim();
    let (mut placed, mut text_encoder, mut unet) = (Vec::new(), None, None);
    for part in parts {
        let number = |typed: &str| typed.trim().parse::<f32>().ok().filter(|number| number.is_finite());
        match part.split_once('=') {
            Some((key, value)) if key.trim() == "te" => text_encoder = Some(number(value)?),
            Some((key, value)) if key.trim() == "unet" => unet = Some(number(value)?),
            // `dyn` and what other programs add, which is not done.
            Some(_) => return None,
            None => placed.push(number(part)?),
        }
    }
    if name.is_empty() || placed.len() > 2 {
        return None;
    }
    let text_encoder = text_encoder.or(placed.first().copied()).unwrap_or(1.0);
    let unet = unet.or(placed.get(1).copied()).unwrap_or(text_encoder);
    Some(Mention::Lora { name: name.to_owned(), text_encoder, unet })
}

fn embedding(prompt: &str, start: usize) -> Found {
    let rest = &prompt[start..];
    let is_marked = rest.get(..EMBEDDING.len()).is_some_and(|mark| mark.eq_ignore_ascii_case(EMBEDDING));
    if !is_marked || prompt[..start].chars().next_back().is_some_and(super::is_of_a_word) {
        return None;
    }
    let typed = &rest[EMBEDDING.len()..];
    let is_end = |character: char| super::is_blank(character) || ",:()[]<>|".contains(character);
    let typed = &typed[..typed.find(is_end).unwrap_or(typed.len())];
    let folder = typed.rfind(['/', '\\']).map_or(0, |slash| slash + 1);
    let name = &typed[folder..];
    let ending = ENDINGS.iter().find(|ending| name.len() > ending.len() && name.ends_with(*ending));
    let name = &name[..name.len() - ending.map_or(0, |ending| ending.len())];
    if name.is_empty() {
        return None;
    }
    let begin = EMBEDDING.len() + folder;
    let (word_end, end) = (begin + name.len(), EMBEDDING.len() + typed.len());
    let ranges = [0..begin, word_end..end].into_iter().filter(|range| !range.is_empty()).collect();
    Some((end, ranges, Mention::Embedding { name: name.to_owned() }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_lora(name: &str, text_encoder: f32, unet: f32) -> Mention {
        Mention::Lora { name: name.into(), text_encoder, unet }
    }

    fn text(prompt: &str) -> String {
        masked(prompt).replace(NO_TEXT, "")
    }

    #[test]
    fn loras_with_their_weights() {
        for (typed, mention) in [
            ("<lora:cat:0.5>", of_lora("cat", 0.5, 0.5)),
            ("<lora:cat>", of_lora("cat", 1.0, 1.0)),
            ("<lyco:a b-c.d:-1>", of_lora("a b-c.d", -1.0, -1.0)),
            ("<lora:cat:0.5:0.25>", of_lora("cat", 0.5, 0.25)),
            ("<lora:cat:te=0:unet=2>", of_lora("cat", 0.0, 2.0)),
            ("<LoRA:cat:unet=2>", of_lora("cat", 1.0, 2.0)),
        ] {
            assert_eq!(mentions(&format!("a {typed} b")), [mention], "{typed}");
            assert_eq!(text(&format!("a{typed}b")), "ab", "{typed}");
        }
    }

    #[test]
    fn what_is_not_understood_is_no_text_either() {
        for typed in [
            "<hypernet:x:1>",
            "<lora:x:abc>",
            "<lora::1>",
            "<lora:x:1:2:3>",
            "<lora:x:inf>",
            "<lora:x:dyn=4>",
        ] {
            assert_eq!(mentions(typed), [Mention::Unknown(typed.into())], "{typed}");
            assert_eq!(text(&format!("cat {typed}")), "cat ");
        }
    }

    #[test]
    fn brackets_that_name_nothing_are_text() {
        for prompt in [
            "a < b > c",
            "<cat-toy>",
            "<lora:",
            "<:x>",
            "<a b:c>",
            "i <3 you: yes",
            "embedding",
            "embedding: x",
            "myembedding:x",
        ] {
            assert_eq!((mentions(prompt), masked(prompt)), (Vec::new(), prompt.to_owned()), "{prompt}");
        }
    }

    #[test]
    fn embeddings_become_their_words() {
        for (typed, name, rest) in [
            ("embedding:bad-hands", "bad-hands", "bad-hands"),
            ("(embedding:easy_neg:1.2)", "easy_neg", "(easy_neg:1.2)"),
            ("embedding:sub/x.safetensors, blurry", "x", "x, blurry"),
            ("Embedding:x.pt", "x", "x"),
        ] {
            assert_eq!(mentions(typed), [Mention::Embedding { name: name.into() }], "{typed}");
            assert_eq!(text(typed), rest);
        }
    }

    #[test]
    fn places_stay_what_they_were() {
        let prompt = "é<lora:ü:1>é";
        assert_eq!(masked(prompt).len(), prompt.len());
        assert!(masked(prompt).ends_with('é'));
    }
}
