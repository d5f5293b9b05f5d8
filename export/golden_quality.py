"""Writes tests/golden/quality.*: what a few captions should look like, for tests/quality.rs.

    python export/golden_quality.py PICTURES tests/golden

quality.png has a row per caption and a column per caption's object: each object on that row's background, drawn as the
training draws it, in grey, 16 x 16. On one background for all, it cannot be the background that tells them apart.
"""

from __future__ import annotations

import json
import random
import sys
from dataclasses import replace
from pathlib import Path

import torch.nn.functional as F
from PIL import Image

from judge import grey
from scenes import BACKGROUNDS, Plan, Scenes

SIDE_PX = 16
STYLE = "flat"
# Object, what it is called, background: different outlines, in natural colours, on what is lighter or darker.
CAPTIONS = [
    ("red heart", "a red heart", "white"),
    ("star", "a yellow star", "blue"),
    ("crescent moon", "a moon", "purple"),
    ("evergreen tree", "a fir tree", "pink"),
    ("rocket", "a rocket", "teal"),
    ("dog face", "a dog", "orange"),
    ("umbrella", "an umbrella", "yellow"),
    ("t-shirt", "a shirt", "black"),
]


def main() -> None:
    scenes, out = Scenes(Path(sys.argv[1])), Path(sys.argv[2])
    rng = random.Random(5)
    drawn = []
    for label, _, _ in CAPTIONS:
        picture = next(i for i, name in enumerate(scenes.label) if name == label and scenes.style[i] == STYLE)
        drawn.append(Plan(picture, label, STYLE, None, False, "white"))
    plans = [replace(plan, background=background) for _, _, background in CAPTIONS for plan in drawn]
    x = F.adaptive_avg_pool2d(grey(scenes.draw(plans, rng)[0] / 2 + 0.5), SIDE_PX)
    rows = (x * 255).round().byte().reshape(len(CAPTIONS), len(CAPTIONS), SIDE_PX, SIDE_PX).transpose(1, 2)
    side_px = SIDE_PX * len(CAPTIONS)
    Image.fromarray(rows.reshape(side_px, side_px).numpy()).save(out / "quality.png", optimize=True)
    golden = {
        "provenance": {"command": "python export/golden_quality.py PICTURES tests/golden"},
        "captions": [
            {"prompt": f"{said} on {ground}, {STYLE} style", "background": ground} for _, said, ground in CAPTIONS
        ],
        "backgrounds": BACKGROUNDS,
    }
    (out / "quality.json").write_text(json.dumps(golden, indent=1) + "\n")


if __name__ == "__main__":
    main()
