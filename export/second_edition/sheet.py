"""Draws every line of prompts.txt once, to look at: python -m second_edition.sheet CALOTYPE BUNDLE OUT.png"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

SIDE_PX, COLUMNS = 128, 12
PROMPTS = Path(__file__).parent / "prompts.txt"
SETTINGS = ["--size", "128x128", "--steps", "20", "--guidance", "3.5", "--sampler", "dpm++2m-karras"]


def main() -> None:
    program, bundle, out = (Path(argument) for argument in sys.argv[1:4])
    prompts = PROMPTS.read_text().splitlines()
    sheet = Image.new("RGB", (COLUMNS * SIDE_PX, -(-len(prompts) // COLUMNS) * SIDE_PX), "white")
    with tempfile.TemporaryDirectory() as folder:
        for k, prompt in enumerate(prompts):
            file = Path(folder) / "picture.png"
            command: list[str | Path] = [program, "generate", prompt, "-m", bundle, "-o", file, "--seed", str(k + 1)]
            subprocess.run([*command, *SETTINGS], check=True, capture_output=True)
            sheet.paste(Image.open(file).convert("RGB"), (k % COLUMNS * SIDE_PX, k // COLUMNS * SIDE_PX))
            file.unlink()
    sheet.save(out)


if __name__ == "__main__":
    main()
