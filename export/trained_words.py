"""The words that the built-in model's training captions can hold: `trained_words` of its manifest.

    python trained_words.py MANIFEST

MANIFEST is a `calotype.json`, in which the list is replaced. Nothing but the standard library is needed, so that
the list can be checked wherever the repository is.
"""

from __future__ import annotations

import ast
import json
import re
import sys
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
# `emoji/render.mjs` draws each object in these styles.
STYLES = ["flat", "3d"]


def constant(name: str) -> Any:
    """A table of scenes.py, which needs PyTorch when it is imported."""
    for node in ast.parse((FOLDER / "scenes.py").read_text()).body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == name for t in node.targets):
            return ast.literal_eval(node.value)
    raise LookupError(f"scenes.py: expected {name}, got none")


def trained_words() -> list[str]:
    """The words of captions, in alphabetical order, and the emoji that stand for some of them (`emoji_words.py`)."""
    emoji: dict[str, str] = json.loads((FOLDER / "emoji" / "words.json").read_text())
    return [*caption_words(), *sorted(emoji)]


def caption_words() -> list[str]:
    """In alphabetical order; `Scenes.caption` puts captions together from these."""
    objects: dict[str, list[str]] = json.loads((FOLDER / "emoji" / "objects.json").read_text())
    said = [noun for nouns in objects.values() for noun in nouns]
    said += [*constant("COLOURS"), *constant("HUES"), *constant("BACKGROUNDS"), *STYLES, "a an on background style"]
    return sorted({word for text in said for word in re.findall(r"\w+", text.lower())})


def main() -> None:
    file = Path(sys.argv[1])
    text = file.read_text()
    # One line, and nothing else of a file that is partly laid out by hand changes.
    line = f' "trained_words": {json.dumps(trained_words(), ensure_ascii=False)},\n'
    text = re.sub(r'^ "trained_words": .*\n', "", text, flags=re.MULTILINE)
    file.write_text(text.replace(' "zero_negative"', f'{line} "zero_negative"', 1))


if __name__ == "__main__":
    main()
