"""The deterministic weights of tests: every value follows from a tensor's name and shape, here and in Rust alike."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

# A prime, so that the repeats of the noise never line up with the rows of a matrix.
PERIOD = 65521
EMBEDDINGS = ("token_embedding.weight", "position_embedding.weight", "class_embedding.weight")


def fnv1a(text: str) -> int:
    """The 32-bit FNV-1a hash of the UTF-8 bytes."""
    value = 0x811C9DC5
    for byte in text.encode():
        value = (value ^ byte) * 0x01000193 & 0xFFFFFFFF
    return value


def tensor(component: str, name: str, shape: Sequence[int]) -> Tensor:
    """The f32 tensor that `component` (unet, vae, text_encoder, text_encoder_2, extra) has under a diffusers name."""
    count = math.prod(shape)
    generator = torch.Generator("cpu").manual_seed(fnv1a(f"{component}/{name}"))
    noise = torch.randn(min(count, PERIOD), generator=generator, dtype=torch.float32).numpy()
    values = np.resize(noise, count)
    if len(shape) == 1 and name.endswith(".weight"):
        values = np.float32(1) + np.float32(0.1) * values
    elif name.endswith("bias"):
        values = np.float32(0.05) * values
    elif name.endswith(EMBEDDINGS):
        values = np.float32(0.5) * values
    else:
        values = np.float32(1 / math.sqrt(math.prod(shape[1:]))) * values
    assert values.dtype == np.float32
    return torch.from_numpy(values.reshape(tuple(shape)).copy())


def state(component: str, shapes: Iterable[tuple[str, Sequence[int]]]) -> dict[str, Tensor]:
    return {name: tensor(component, name, shape) for name, shape in shapes}


def randn(seed: int, shape: Sequence[int], scale: float = 1.0) -> Tensor:
    """A seeded input: torch.randn times `scale`."""
    noise = torch.randn(tuple(shape), generator=torch.Generator("cpu").manual_seed(seed), dtype=torch.float32)
    return noise * scale


def picture(seed: int, width: int, height: int) -> np.ndarray:
    """A seeded picture in bytes, (height, width, 3): 127.5 + 64 * noise, rounded half to even and clamped."""
    values = np.float32(127.5) + np.float32(64) * randn(seed, (height, width, 3)).numpy()
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)
