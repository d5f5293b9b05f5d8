"""The emoji that are words of the built-in model: `emoji/words.json`, and the table in its tokenizer made of it.

    python emoji_words.py                         writes emoji/words.json
    python emoji_words.py TOKENIZER [MANIFEST]    puts the table into a tokenizer.json, and its hash into a manifest

Names are CLDR's English short names, as PyPI's `emoji` 2.16.0 has them (BSD-3-Clause; the names are Unicode's, Unicode
licence). An emoji stands for its name where the captions that the model was trained on have every word of that, and the
last of them are an object's; else, if it is one of the 108 emoji whose drawings the model was trained on, for the first
noun of its captions. All others have no words, and stay unknown to the model.

The table is a normalizer of kind `Precompiled`, as SentencePiece (0.2.3, Apache-2.0) builds it: single code points and
what they are replaced by, before the text is divided. The normalizer after it drops variation selectors and joiners.
"""

from __future__ import annotations

import base64
import hashlib
import importlib
import json
import re
import sys
import tempfile
from pathlib import Path

from trained_words import FOLDER, caption_words

WORDS = FOLDER / "emoji" / "words.json"


def nouns() -> dict[str, list[str]]:
    """Per object, which goes by its emoji's label, what captions call it."""
    objects: dict[str, list[str]] = json.loads((FOLDER / "emoji" / "objects.json").read_text())
    return objects


def emoji_words() -> dict[str, str]:
    """Of single code points; the variation selector behind some of them is no matter."""
    # By name, because a folder here is called so too.
    emoji = importlib.import_module("emoji")
    objects = {spelled(label): several for label, several in nouns().items()}
    trained, called = set(caption_words()), {noun for several in objects.values() for noun in several}
    found: dict[str, str] = {}
    for symbol, data in emoji.EMOJI_DATA.items():
        symbol = symbol.rstrip("\N{VARIATION SELECTOR-16}")
        if len(symbol) != 1:
            continue
        label = spelled(data["en"])
        words = label.split()
        names_object = any(" ".join(words[start:]) in called for start in range(len(words)))
        if names_object and all(word in trained for word in words):
            found[symbol] = label
        elif label in objects:
            found[symbol] = objects[label][0]
    drawn = {spelled(emoji.EMOJI_DATA[symbol]["en"]) for symbol in emoji.EMOJI_DATA if symbol[0] in found}
    for label in sorted(set(objects) - drawn):
        print(f"{label}: expected an emoji of one code point, got none", file=sys.stderr)
    return dict(sorted(found.items()))


def spelled(label: str) -> str:
    """A label in words alone: lower case, without marks."""
    return " ".join(re.findall(r"[a-z0-9]+", label.lower()))


def charsmap(words: dict[str, str]) -> bytes:
    """SentencePiece's own form of a table of replacements."""
    import sentencepiece
    from sentencepiece import sentencepiece_model_pb2

    def codes(text: str) -> str:
        return " ".join(f"{ord(character):04X}" for character in text)

    with tempfile.TemporaryDirectory() as folder:
        rules, corpus, name = (Path(folder) / name for name in ("rules.tsv", "corpus.txt", "model"))
        # Blanks around it: emoji are written without any between them.
        rules.write_text("".join(f"{codes(symbol)}\t{codes(f' {text} ')}\n" for symbol, text in words.items()))
        corpus.write_text("a b c d e f g\n" * 10)
        sentencepiece.SentencePieceTrainer.train(
            input=str(corpus),
            model_prefix=str(name),
            vocab_size=12,
            hard_vocab_limit=False,
            normalization_rule_tsv=str(rules),
            minloglevel=2,
        )
        model = sentencepiece_model_pb2.ModelProto.FromString(name.with_suffix(".model").read_bytes())
        table: bytes = model.normalizer_spec.precompiled_charsmap
        return table


def with_emoji(tokenizer: str) -> str:
    """A tokenizer.json whose first normalizer is the table."""
    content = json.loads(tokenizer)
    normalizer = content["normalizer"]
    others = normalizer["normalizers"] if normalizer["type"] == "Sequence" else [normalizer]
    others = [other for other in others if other["type"] != "Precompiled"]
    table = base64.b64encode(charsmap(json.loads(WORDS.read_text()))).decode()
    precompiled = {"type": "Precompiled", "precompiled_charsmap": table}
    content["normalizer"] = {"type": "Sequence", "normalizers": [precompiled, *others]}
    return json.dumps(content, ensure_ascii=False, separators=(",", ":"))


def main() -> None:
    if len(sys.argv) == 1:
        words = emoji_words()
        lines = ",\n".join(f"  {json.dumps(k, ensure_ascii=False)}: {json.dumps(v)}" for k, v in words.items())
        WORDS.write_text(f"{{\n{lines}\n}}\n")
        print(f"{len(words)} emoji")
        return
    file = Path(sys.argv[1])
    file.write_text(with_emoji(file.read_text()))
    if len(sys.argv) > 2:
        manifest, content = Path(sys.argv[2]), file.read_bytes()
        record = f'"len_bytes": {len(content)},\n   "sha256": "{hashlib.sha256(content).hexdigest()}"'
        pattern = r'("text_encoder/tokenizer.json": \{\s*)"len_bytes": \d+,\s*"sha256": "[0-9a-f]+"'
        text, count = re.subn(pattern, lambda found: found[1] + record, manifest.read_text())
        if count != 1:
            raise LookupError(f"{manifest}: expected a record of text_encoder/tokenizer.json")
        manifest.write_text(text)


if __name__ == "__main__":
    main()
