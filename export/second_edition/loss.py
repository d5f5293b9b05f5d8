"""The U-Net's loss on fixed scenes with fixed noise: python -m second_edition.loss PACK SCENES STATE...

SCENES holds the plans and latents of scenes that were not trained on (SEED far from the others'); every STATE is a
folder with a model. Captions, timesteps and noise are the same for each, so that small differences count.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.nn.functional as F

from second_edition.train import Curve, load, mixed, read_pair

BATCH, LOOKS = 64, 2


@torch.no_grad()
def losses(pack: Path, scenes: Path, state: Path) -> torch.Tensor:
    """One for each scene and look, the looks one after the other."""
    pool, curve = torch.load(scenes / "latents.pt"), Curve()
    both = read_pair(pack, state).eval()
    scale = (load(state, "model") or {})["scale"]
    chance = torch.Generator().manual_seed(0)
    out = []
    for look in range(LOOKS):
        for z, ids in zip(pool["z"].split(BATCH), pool["ids"].split(BATCH), strict=True):
            n = len(z)
            x0, noise = z.float() * scale, torch.randn(z.shape, generator=chance)
            t = torch.sigmoid(torch.randn(n, generator=chance) * 1.1 + 0.2) * 1000
            t = torch.where(torch.rand(n, generator=chance) < 0.3, torch.rand(n, generator=chance) * 1000, t)
            t = t.long().clamp(0, 999)
            signal, sigma = curve.of(t)
            with mixed():
                context = both["text"](ids[:, look].long()).last_hidden_state
                v = both["unet"](signal * x0 + sigma * noise, t, context).sample.float()
            out.append(F.mse_loss(v, signal * noise - sigma * x0, reduction="none").mean((1, 2, 3)))
    return torch.cat(out)


def main() -> None:
    pack, scenes, *states = (Path(argument) for argument in sys.argv[1:])
    first = None
    for state in states:
        found = losses(pack, scenes, state)
        first = found if first is None else first
        change = found - first
        spread = float(change.std()) / len(change) ** 0.5
        print(
            f"{state}: loss {float(found.mean()):.5f}, change {float(change.mean()):+.5f} +- {spread:.5f}", flush=True
        )


if __name__ == "__main__":
    main()
