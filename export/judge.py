"""Names the object in a picture: nearest neighbour, in a fixed feature space, among drawn scenes of every object.

    python judge.py PICTURES        how well it names scenes that it has not seen

Nothing is learned, so nothing can be learned from the model that is judged. Three judges see less and less: `colour`
all of a picture, `grey` its brightness, `edges` nothing but where and in which direction brightness changes. All of
them see a picture less its background; the gallery holds every object on the same backgrounds and, where its hues can
be turned, in the same colours, so that neither can do the naming.
"""

from __future__ import annotations

import random
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from scenes import HUES, SIZE_PX, Plan, Scenes, hsv, rgb_of

JUDGES = ("colour", "grey", "edges")
GALLERY_BACKGROUNDS = ("white", "black", "grey", "yellow", "blue", "pink")
BORDER_PX = 6
ORIENTATIONS = 9
LUMA = (0.299, 0.587, 0.114)


def border_colour(x: Tensor) -> Tensor:
    """The median colour of the outermost pixels, (B, C, H, W) -> (B, C)."""
    inside = torch.zeros(x.shape[-2:], dtype=torch.bool)
    inside[BORDER_PX:-BORDER_PX, BORDER_PX:-BORDER_PX] = True
    return x[..., ~inside].median(-1).values


def unit(features: Tensor) -> Tensor:
    """Each row centred and of length 1, so that a product of two rows is their correlation."""
    rows = features.flatten(1)
    return F.normalize(rows - rows.mean(1, keepdim=True), dim=1)


def pixels(x: Tensor) -> Tensor:
    """What differs from the background, at 16 x 16, (B, C, H, W) -> (B, C * 256)."""
    return unit(F.adaptive_avg_pool2d(x - border_colour(x)[..., None, None], 16))


def edges(x: Tensor) -> Tensor:
    """Histograms of oriented gradients (Dalal & Triggs 2005), (B, C, H, W) -> (B, 81 * 64).

    At 64 x 64, of the channel that changes most, direction without sign, so that light on dark is dark on light;
    8 x 8 cells, each weighed by its own strength and its neighbours' only.
    """
    x = F.adaptive_avg_pool2d(x, 64)
    padded = F.pad(x, (1, 1, 1, 1), mode="replicate")
    dx, dy = padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2], padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]
    strength, channel = (dx.square() + dy.square()).sqrt().max(1, keepdim=True)
    angle = torch.atan2(dy.gather(1, channel), dx.gather(1, channel)) / torch.pi % 1 * ORIENTATIONS
    low = angle.floor()
    share = angle - low
    bins = torch.zeros(len(x), ORIENTATIONS, 64, 64)
    bins.scatter_add_(1, low.long() % ORIENTATIONS, strength * (1 - share))
    bins.scatter_add_(1, (low.long() + 1) % ORIENTATIONS, strength * share)
    cells = F.avg_pool2d(bins, 8)
    # The floor keeps flat cells from shouting their noise.
    around = F.avg_pool2d(cells.square().sum(1, keepdim=True), 3, 1, 1, count_include_pad=False).sqrt()
    return unit(cells / (around + 0.02))


def grey(x: Tensor) -> Tensor:
    """Brightness, (B, 3, H, W) -> (B, 1, H, W)."""
    return (x * torch.tensor(LUMA)[:, None, None]).sum(1, keepdim=True)


def features(x: Tensor, judge: str) -> Tensor:
    """Pictures (B, 3, H, W) in 0..1 -> one row each, as this judge sees them."""
    if judge != "colour":
        x = grey(x)
    return edges(x) if judge == "edges" else torch.cat([edges(x), pixels(x)], 1)


@dataclass
class Verdicts:
    """What a judge makes of pictures that were asked for by the object in `asked`."""

    asked: Tensor
    """Numbers of objects, (B,)."""
    ranks: Tensor
    """Of every object for every picture, (B, objects); 1 is the best, and a tie is lost."""

    def rank(self) -> Tensor:
        """Of the object that was asked for, (B,)."""
        return self.ranks.gather(1, self.asked[:, None])[:, 0]

    def within(self, best: int) -> float:
        """The share of pictures whose object is among the `best` that come to the judge's mind."""
        return float((self.rank() <= best).float().mean())

    def within_exchanged(self, best: int) -> float:
        """The same when each picture is held against what the others were asked for: what chance gives here."""
        other = self.asked[:, None] != self.asked
        return float((self.ranks[:, self.asked] <= best)[other].float().mean())

    def reciprocal(self) -> float:
        """The mean reciprocal rank: 1 where the right object always comes first."""
        return float((1 / self.rank()).mean())


class Judge:
    def __init__(self, scenes: Scenes) -> None:
        self.labels = scenes.labels
        rng = random.Random(11)
        plans = []
        for picture, label in enumerate(scenes.label):
            for background in GALLERY_BACKGROUNDS:
                for colour in (None, *HUES):
                    turned = colour is not None
                    if not turned or scenes.hue[picture] is not None:
                        plans.append(Plan(picture, label, scenes.style[picture], colour, turned, background))
        self.owner = torch.tensor([self.labels.index(plan.label) for plan in plans])
        rows: dict[str, list[Tensor]] = {judge: [] for judge in JUDGES}
        for start in range(0, len(plans), 64):
            x = scenes.draw(plans[start : start + 64], rng)[0] / 2 + 0.5
            for judge in JUDGES:
                rows[judge].append(features(x, judge).half())
        self.gallery = {judge: torch.cat(rows[judge]) for judge in JUDGES}

    def scores(self, x: Tensor, judge: str) -> Tensor:
        """Pictures (B, 3, H, W) in 0..1 -> likeness to the nearest drawing of each object (B, objects)."""
        likeness = features(x, judge) @ self.gallery[judge].float().T
        best = torch.full((len(x), len(self.labels)), -torch.inf)
        return best.scatter_reduce(1, self.owner.expand(len(x), -1), likeness, "amax")

    def judge(self, x: Tensor, labels: list[str], judge: str) -> Verdicts:
        scores = self.scores(x, judge)
        ranks = (scores[:, :, None] <= scores[:, None]).sum(2)
        return Verdicts(torch.tensor([self.labels.index(label) for label in labels]), ranks)


def unseen(scenes: Scenes, picture: int, rng: random.Random) -> Tensor:
    """One picture on a background of any colour, its hues turned by any angle, as no gallery or palette holds it."""
    x = scenes.image[picture][None].float() / 255
    hue, saturation, value = hsv(x[:, :3])
    rgb, alpha = rgb_of((hue + rng.uniform(0, 360)) % 360, saturation, value), x[:, 3:]
    edge_px, right_px, down_px = rng.randint(10, 18), rng.randint(-1, 1), rng.randint(-1, 1)
    margins = [edge_px + right_px, edge_px - right_px, edge_px + down_px, edge_px - down_px]
    layer = F.pad(torch.cat([rgb * alpha, alpha], 1), margins)
    layer = F.interpolate(layer, SIZE_PX, mode="bilinear", antialias=True)
    ground = torch.tensor([rng.random() for _ in range(3)])[:, None, None]
    return layer[:, :3] + (1 - layer[:, 3:]) * ground


def blurred(x: Tensor) -> Tensor:
    """As soft as a small autoencoder draws: a quarter of the resolution."""
    return F.interpolate(F.avg_pool2d(x, 4), SIZE_PX, mode="bilinear")


def disc(x: Tensor) -> Tensor:
    """A disc of the object's mean colour where the object was: all that colours alone can say."""
    ground = border_colour(x)[..., None, None]
    object_part = ((x - ground).abs().amax(1, keepdim=True) > 0.12).float()
    mean = (x * object_part).sum((2, 3), keepdim=True) / object_part.sum((2, 3), keepdim=True).clamp_min(1)
    line = torch.linspace(-1, 1, SIZE_PX)
    inside = (line[:, None] ** 2 + line**2 < 0.8**2).float()
    return inside * mean + (1 - inside) * ground


def ceiling(scenes: Scenes, judge: Judge) -> dict[str, dict[str, list[float]]]:
    """Top-1 and top-5 shares of each judge on pictures whose object is known for certain."""
    rng = random.Random(12)
    plans = [scenes.plan(picture, rng) for picture in list(range(len(scenes))) * 2]
    drawn = torch.cat([scenes.draw(plans[k : k + 72], rng)[0] / 2 + 0.5 for k in range(0, len(plans), 72)])
    strange = torch.cat([unseen(scenes, plan.picture, rng) for plan in plans])
    sets = {
        "repainted": drawn,
        "repainted, soft": blurred(drawn),
        "any background and hue": strange,
        "any background and hue, soft": blurred(strange),
        "a disc of the object's colour": disc(drawn),
    }
    labels = [plan.label for plan in plans]
    measured: dict[str, dict[str, list[float]]] = {}
    for name, x in sets.items():
        measured[name] = {}
        for which in JUDGES:
            verdicts = judge.judge(x, labels, which)
            measured[name][which] = [verdicts.within(best) for best in (1, 5)]
    chance = [best / len(scenes.labels) for best in (1, 5)]
    return measured | {"chance": dict.fromkeys(JUDGES, chance)}


def main() -> None:
    scenes = Scenes(Path(sys.argv[1]))
    print("| top-1 / top-5 | " + " | ".join(JUDGES) + " |\n|---|" + "---|" * len(JUDGES))
    for name, by_judge in ceiling(scenes, Judge(scenes)).items():
        print(f"| {name} | " + " | ".join(f"{one:.1%} / {five:.1%}" for one, five in by_judge.values()) + " |")


if __name__ == "__main__":
    main()
