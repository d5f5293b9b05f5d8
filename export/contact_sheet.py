"""Draws the contact sheet of the model card: fixed prompts, each with the same four seeds, none chosen by eye.

    python contact_sheet.py CALOTYPE OUT.png

CALOTYPE is the program.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from evaluate import Calotype

SEEDS = 4
FIRST_SEED = 1
BLOCKS_PER_ROW = 6
LABEL_PX = 22
GAP_PX = 6
# Plain objects, then styles, then combinations that were never drawn, then words that no caption had.
PROMPTS = [
    "a red apple on a blue background",
    "a dog on a white background",
    "a cat on a yellow background, 3d style",
    "a rocket on a black background",
    "a red heart on a white background",
    "a pink heart on a green background",
    "an owl on a teal background",
    "a fish on an orange background",
    "a puppy on a brown background",
    "a car on a yellow background",
    "pizza on a purple background",
    "a mushroom, flat style",
    "a mushroom, 3d style",
    "a cactus on a grey background",
    "a smiley on blue",
    "a crown on a red background",
    "a yellow apple on a purple background",
    "a blue cat on a pink background",
    "a green pig on a white background",
    "a teal octopus on a yellow background",
    "a blue umbrella on an orange background",
    "a kitty on blue",
    "a truck on yellow",
    "a castle on a green background",
]


def block(prompt: str, pictures: np.ndarray) -> Image.Image:
    """One prompt's pictures (SEEDS, H, W, 3) as a square under their prompt."""
    _, height, width, _ = pictures.shape
    out = Image.new("RGB", (2 * width + GAP_PX, 2 * height + LABEL_PX + GAP_PX), "white")
    ImageDraw.Draw(out).text((1, LABEL_PX // 2), prompt, "black", ImageFont.load_default(12.5), anchor="lm")
    for k, picture in enumerate(pictures):
        out.paste(Image.fromarray(picture), (k % 2 * width, LABEL_PX + k // 2 * height))
    return out


def main() -> None:
    program, out = Path(sys.argv[1]), Path(sys.argv[2])
    blocks = []
    with tempfile.TemporaryDirectory() as folder:
        calotype = Calotype(program, Path(folder))
        for prompt in PROMPTS:
            pictures = calotype.draw(prompt, FIRST_SEED, SEEDS)
            blocks.append(block(prompt, (pictures * 255).round().byte().permute(0, 2, 3, 1).numpy()))
    width, height = blocks[0].size
    sheet = Image.new("RGB", (width * BLOCKS_PER_ROW, height * -(-len(blocks) // BLOCKS_PER_ROW)), "white")
    for k, image in enumerate(blocks):
        sheet.paste(image, (k % BLOCKS_PER_ROW * width, k // BLOCKS_PER_ROW * height))
    sheet.save(out, optimize=True)


if __name__ == "__main__":
    main()
