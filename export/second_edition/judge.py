"""Names the objects and the style of a picture: a small classifier trained on drawn scenes, apart from the model."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from second_edition.scenes import STYLES

SIDE_PX = 64
WIDTHS = (32, 64, 96, 128)


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.norm, self.again = nn.BatchNorm2d(width), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.again(self.two(F.relu(self.norm(self.one(x))))))


class Classifier(nn.Module):
    """(B, 3, 64, 64) in -1..1 -> a logit for each object (B, objects) and each style (B, styles)."""

    def __init__(self, objects: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 3
        for width in WIDTHS:
            layers += [
                nn.Conv2d(before, width, 3, 1 if before == 3 else 2, 1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(),
            ]
            layers += [Residual(width)]
            before = width
        self.body = nn.Sequential(*layers)
        self.objects = nn.Linear(2 * before, objects)
        self.styles = nn.Linear(2 * before, len(STYLES))
        nn.init.constant_(self.objects.bias, -6.0)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.body(x)
        x = torch.cat([x.mean((2, 3)), x.amax((2, 3))], 1)
        return self.objects(x), self.styles(x)

    @staticmethod
    def small(x: Tensor) -> Tensor:
        """Pictures of any size in -1..1 at the size that is looked at."""
        return F.interpolate(x, (SIDE_PX, SIDE_PX), mode="bilinear", antialias=True)

    @staticmethod
    def spoil(x: Tensor) -> Tensor:
        """A third of pictures grey, a third soft, all with other brightness and contrast: shape must do the naming."""
        n = len(x)
        chance = torch.rand(n, 4, 1, 1, 1, device=x.device)
        grey = (
            (x * torch.tensor([0.299, 0.587, 0.114], device=x.device)[:, None, None]).sum(1, keepdim=True).expand_as(x)
        )
        x = torch.where(chance[:, 0] < 0.33, grey, x)
        soft = F.interpolate(F.avg_pool2d(x, 2), x.shape[-2:], mode="bilinear")
        x = torch.where(chance[:, 1] < 0.33, soft, x)
        return x * (0.75 + 0.5 * chance[:, 2]) + (chance[:, 3] - 0.5) * 0.3
