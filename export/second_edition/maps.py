"""Control pictures of drawn scenes: masks and depth-like maps, from what each layer covers."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

BACKGROUND_DEPTH = 0.1


def mask_map(covers: Tensor) -> Tensor:
    """(B, LAYERS, H, W) in 0..1 -> white where any object is, (B, 3, H, W) in 0..1."""
    return (covers.sum(1, keepdim=True) > 0.5).float().expand(-1, 3, -1, -1)


def depth_map(covers: Tensor) -> Tensor:
    """(B, LAYERS, H, W) in 0..1 -> (B, 3, H, W), near is bright: each object is a cushion, highest in its middle."""
    height = sum(F.avg_pool2d(covers, k, 1, k // 2) for k in (9, 17, 33)) / 3 * covers
    return (BACKGROUND_DEPTH + (1 - BACKGROUND_DEPTH) * height.amax(1, keepdim=True)).clamp(0, 1).expand(-1, 3, -1, -1)
