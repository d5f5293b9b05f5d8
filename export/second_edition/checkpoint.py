"""Keeps what was trained so far in few bytes, to go on from in another session.

    python -m second_edition.checkpoint write WORK FOLDER
    python -m second_edition.checkpoint read FOLDER WORK

Matrices and convolutions are int8 with a scale for each output channel, the autoencoder and everything else f16. That
is a start for more training, not a model to ship.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from second_edition.train import load, save

SCALE = "|scale"
TABLE = "text.embeddings.token_embedding.weight"


def narrowed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    out: dict[str, Tensor] = {}
    for name, value in state.items():
        if value.ndim < 2 or name == TABLE:
            out[name] = value.half()
            continue
        scale = value.flatten(1).abs().amax(1).clamp_min(1e-8) / 127
        out[name] = (value / scale.view(-1, *(1 for _ in value.shape[1:]))).round().to(torch.int8)
        out[name + SCALE] = scale.half()
    return out


def widened(state: dict[str, Tensor]) -> dict[str, Tensor]:
    out: dict[str, Tensor] = {}
    for name, value in state.items():
        if name.endswith(SCALE):
            continue
        scale = state.get(name + SCALE)
        wide = value.float()
        out[name] = wide if scale is None else wide * scale.float().view(-1, *(1 for _ in value.shape[1:]))
    return out


def main() -> None:
    way, source, target = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    target.mkdir(parents=True, exist_ok=True)
    if way == "write":
        for name in ("vae", "model"):
            state = load(source, name)
            assert state is not None, f"{source}: no {name}"
            kept = {key: value.half() for key, value in state.items()} if name == "vae" else narrowed(state)
            save_file({key: value.contiguous() for key, value in kept.items()}, target / f"{name}.safetensors")
            if name == "model":
                back = widened(kept)
                worst = max(float((back[key] - state[key]).norm() / state[key].norm().clamp_min(1e-8)) for key in state)
                print(f"{name}: the worst tensor is off by {worst:.3%}")
    elif way == "read":
        for name in ("vae", "model"):
            save(widened(load_file(source / f"{name}.safetensors")), target, name)
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main()
