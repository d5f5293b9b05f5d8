"""What sd-parsers, which many galleries and tools read pictures with, finds in those that calotype writes.

python tests/clients/images.py CALOTYPE        needs sd-parsers and Pillow, in the versions of export/requirements.txt
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image
from sd_parsers import ParserManager

CASES = [
    ("a red apple on a blue background", "blurry", 7),
    ("a (red:1.2) apple, 'quoted' \"twice\": \\(literal\\)", "text, words: none", 4294967295),
    ("a red apple\nin two lines: and a half", "", 0),
    ("ein Apfel, pomme, 苹果 🍎", "grün", 1),
]


def main() -> None:
    calotype = sys.argv[1]
    parsers = ParserManager()
    # sd-parsers knows the last image by its address, which another may get when it is gone.
    kept = []
    with tempfile.TemporaryDirectory() as folder:
        for extension in ("png", "jpg", "webp"):
            for index, (prompt, negative, seed) in enumerate(CASES):
                picture = Path(folder) / f"{index}.{extension}"
                command = [calotype, "generate", prompt, "--seed", str(seed), "--steps", "2", "--sampler", "euler_a"]
                command += ["-n", negative] if negative else []
                subprocess.run([*command, "--guidance", "5.5", "-o", picture], check=True, capture_output=True)
                kept.append(Image.open(picture))
                found = parsers.parse(kept[-1])
                assert found is not None, f"{picture.name}: nothing was found"
                check(f"{picture.name}: prompt", [text.value for text in found.prompts], [prompt])
                check(
                    f"{picture.name}: negative prompt",
                    [text.value for text in found.negative_prompts],
                    [negative] if negative else [],
                )
                sampler = found.samplers[0]
                check(f"{picture.name}: sampler", sampler.name, "Euler a")
                values = {name: str(value) for name, value in sampler.parameters.items()}
                check(f"{picture.name}: steps", values["steps"], "2")
                check(f"{picture.name}: seed", values["seed"], str(seed))
                check(f"{picture.name}: scale", values["cfg_scale"], "5.5")
                check(f"{picture.name}: size", str(found.metadata.get("Size")), "128x128")
    print(f"sd-parsers reads {3 * len(CASES)} pictures of three formats")


def check(what: str, got: object, expected: object) -> None:
    assert got == expected, f"{what}: expected {expected!r}, got {got!r}"


if __name__ == "__main__":
    main()
