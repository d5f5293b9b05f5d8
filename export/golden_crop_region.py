"""Regions that diffusers cuts out around masks (`padding_mask_crop`), for `src/image_file/mask.rs`.

Needs diffusers, numpy and Pillow (`requirements.txt`). Writes `tests/golden/crop_regions.json`: rows of width and
height of the mask, left, top, right and bottom of its white area, width and height of the result, padding, and the
region's corners.

    python golden_crop_region.py
"""

import json
import random
from pathlib import Path

import numpy as np
from diffusers.image_processor import VaeImageProcessor
from PIL import Image

ROWS = 400
OUT = Path(__file__).parent.parent / "tests/golden/crop_regions.json"


def main() -> None:
    """Write the rows, of random sizes."""
    draw = random.Random(18)
    rows: list[list[int]] = []
    while len(rows) < ROWS:
        width, height = draw.randint(1, 60), draw.randint(1, 60)
        left, top = draw.randrange(width), draw.randrange(height)
        right, bottom = draw.randint(left + 1, width), draw.randint(top + 1, height)
        to_width, to_height = draw.randint(1, 8) * 8, draw.randint(1, 8) * 8
        padding = draw.choice([0, 0, 1, 5, 32])
        mask = np.zeros((height, width), np.uint8)
        mask[top:bottom, left:right] = 255
        region = VaeImageProcessor.get_crop_region(Image.fromarray(mask), to_width, to_height, padding)
        rows.append([width, height, left, top, right, bottom, to_width, to_height, padding, *map(int, region)])
    OUT.write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")


if __name__ == "__main__":
    main()
