"""How the colours of an image follow from latents in the built-in model, to first order: the `preview` of its manifest.

    python latent_rgb.py BUNDLE CALOTYPE

Draws images with CALOTYPE, encodes them with the bundle's VAE, and fits the mean colour of each cell to its latents by
least squares, with a constant. Prints the factors as JSON, and on standard error how far they are off on images of
other prompts.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

import model
from scenes import BACKGROUNDS, EMOJI, HUES

FITTED, HELD_OUT = 160, 40


def main() -> None:
    bundle, calotype = Path(sys.argv[1]), sys.argv[2]
    scale = json.loads((bundle / "calotype.json").read_text())["latents"]["scale"]
    vae = model.vae().eval()
    parts = (load_file(bundle / f"weights/{name}.safetensors") for name in ("vae_encoder", "vae_decoder"))
    vae.load_state_dict({name: value.float() for part in parts for name, value in part.items()})
    random = np.random.default_rng(0)
    objects = list(json.loads((EMOJI / "objects.json").read_text()))
    latents, colours = [], []
    with tempfile.TemporaryDirectory() as folder:
        for index in range(FITTED + HELD_OUT):
            words = random.choice(list(HUES)), random.choice(objects), random.choice(list(BACKGROUNDS))
            prompt = "a {} {} on a {} background".format(*words)
            file = Path(folder) / "image.png"
            command = [calotype, "generate", prompt, "--seed", str(index), "--steps", "12", "-o", str(file)]
            subprocess.run(command, check=True, capture_output=True)
            image = torch.from_numpy(np.array(Image.open(file).convert("RGB"))).permute(2, 0, 1).float() / 127.5 - 1
            with torch.no_grad():
                encoded = vae.encode(image[None]).latents[0] * scale
            factor = image.shape[1] // encoded.shape[1]
            mean = torch.nn.functional.avg_pool2d(image[None], factor)[0]
            latents.append(encoded.flatten(1).T.double().numpy())
            colours.append(mean.flatten(1).T.double().numpy())
    seen = np.concatenate(latents[:FITTED]), np.concatenate(colours[:FITTED])
    new = np.concatenate(latents[FITTED:]), np.concatenate(colours[FITTED:])
    with_one = lambda x: np.concatenate([x, np.ones((len(x), 1))], 1)  # noqa: E731
    factors, *_ = np.linalg.lstsq(with_one(seen[0]), seen[1], rcond=None)
    off = np.abs(np.clip(with_one(new[0]) @ factors, -1, 1) - new[1]).mean() * 127.5
    grey = np.abs(new[1] - seen[1].mean(0)).mean() * 127.5
    print(f"{off:.1f} levels of 255 off on other prompts; the mean colour would be {grey:.1f} off", file=sys.stderr)
    rows = [[round(float(value), 4) for value in row] for row in factors]
    print(json.dumps({"factors": rows[:-1], "base": rows[-1]}))


if __name__ == "__main__":
    main()
