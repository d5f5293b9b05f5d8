"""CLIP's byte pair merges from open_clip's wheel: the file that calotype embeds, and transformers' tokenizer of it.

    python clip_tokenizer.py WHEEL        WHEEL: open_clip_torch-3.3.0-py3-none-any.whl (MIT)

Writes models/tokenizer/clip_merges.txt.gz. The wheel's file has 262,144 merges, of which CLIP uses the first 48,894.
"""

from __future__ import annotations

import gzip
import sys
import zipfile
from pathlib import Path

from transformers import CLIPTokenizer

MERGES = 49152 - 256 - 2
START, END = "<|startoftext|>", "<|endoftext|>"
DESTINATION = Path(__file__).parent.parent / "models/tokenizer/clip_merges.txt.gz"


def merges(wheel: Path) -> list[str]:
    packed = zipfile.ZipFile(wheel).read("open_clip/bpe_simple_vocab_16e6.txt.gz")
    return gzip.decompress(packed).decode().split("\n")[1 : 1 + MERGES]


def letters() -> list[str]:
    """The character that stands for each byte, in the order of their token ids."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    return [chr(byte) for byte in plain] + [chr(256 + i) for i in range(256 - len(plain))]


def tokenizer(wheel: Path, pad: str) -> CLIPTokenizer:
    pairs = merges(wheel)
    tokens = letters() + [f"{letter}</w>" for letter in letters()]
    tokens += ["".join(pair.split()) for pair in pairs] + [START, END]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    return CLIPTokenizer(vocabulary, [tuple(pair.split()) for pair in pairs], pad_token=pad)


def main() -> None:
    text = "".join(f"{pair}\n" for pair in merges(Path(sys.argv[1])))
    DESTINATION.write_bytes(gzip.compress(text.encode(), compresslevel=9, mtime=0))
    print(f"{DESTINATION}: {MERGES} merges in {DESTINATION.stat().st_size} bytes")


if __name__ == "__main__":
    main()
