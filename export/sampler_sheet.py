"""Draws the sheet of the manual's page on samplers: every sampler by numbers of steps, one prompt and one seed.

    python sampler_sheet.py CALOTYPE OUT.png

CALOTYPE is the program. Rows are in the order of `calotype generate --sampler help`.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

PROMPT = "a red apple on a blue background"
SEED = 7
STEPS = [1, 2, 4, 6, 10, 20, 50]
SIDE_PX = 64
LABEL_PX = 130
HEAD_PX = 16
GAP_PX = 2
# Guidance as the model wants it, but for CFG++, whose scales are others.
CFG_PP_GUIDANCE = "1.2"


def samplers(program: Path) -> list[str]:
    table = subprocess.run([program, "generate", "--sampler", "help", "--json"], check=True, capture_output=True)
    return [row["name"] for row in json.loads(table.stdout)["samplers"]]


def draw(program: Path, sampler: str, steps: int, out: Path) -> Image.Image:
    command = [str(program), "generate", PROMPT, "--sampler", sampler, "--steps", str(steps), "--seed", str(SEED)]
    command += ["-o", str(out)]
    if sampler.endswith("cfg++"):
        command += ["--guidance", CFG_PP_GUIDANCE]
    subprocess.run(command, check=True, capture_output=True)
    return Image.open(out).convert("RGB").resize((SIDE_PX, SIDE_PX), Image.Resampling.LANCZOS)


def main() -> None:
    program, out = Path(sys.argv[1]).resolve(), Path(sys.argv[2])
    names = samplers(program)
    # Two columns of rows, so that the sheet is not a tower.
    rows = -(-len(names) // 2)
    width = LABEL_PX + len(STEPS) * (SIDE_PX + GAP_PX)
    sheet = Image.new("RGB", (2 * width, HEAD_PX + rows * (SIDE_PX + GAP_PX)), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for half in range(2):
        for column, steps in enumerate(STEPS):
            x = half * width + LABEL_PX + column * (SIDE_PX + GAP_PX) + SIDE_PX // 2
            pen.text((x, HEAD_PX // 2), str(steps), "black", font, anchor="mm")
    with tempfile.TemporaryDirectory() as folder:
        for index, sampler in enumerate(names):
            x, y = index // rows * width, HEAD_PX + index % rows * (SIDE_PX + GAP_PX)
            pen.text((x + LABEL_PX - 6, y + SIDE_PX // 2), sampler, "black", font, anchor="rm")
            for column, steps in enumerate(STEPS):
                picture = draw(program, sampler, steps, Path(folder) / "picture.png")
                sheet.paste(picture, (x + LABEL_PX + column * (SIDE_PX + GAP_PX), y))
    # A palette is as good to choose by, at a third of the size.
    sheet.quantize(256, dither=Image.Dither.NONE).save(out, optimize=True)


if __name__ == "__main__":
    main()
