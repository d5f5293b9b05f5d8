"""Captioned pictures for the built-in model, drawn on the fly: one object on one background.

A scene is planned first (object, style, object colour, background colour), then drawn and captioned from the same plan,
so that a caption says only what is true. A colour that an object does not have by nature is made by turning its hues;
one object-colour pair in eight is never drawn, so that new combinations can be tested (`held_out`).
"""

from __future__ import annotations

import json
import random
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

SIZE_PX = 128
EMOJI = Path(__file__).parent / "emoji"

# Hue in degrees of each colour an object can be turned to.
HUES = {"red": 2, "orange": 27, "yellow": 50, "green": 120, "teal": 178, "blue": 218, "purple": 272, "pink": 326}
BACKGROUNDS = {
    "white": (255, 255, 255),
    "black": (18, 18, 20),
    "grey": (150, 150, 152),
    "red": (222, 52, 52),
    "orange": (246, 150, 46),
    "yellow": (250, 220, 80),
    "green": (78, 180, 88),
    "teal": (50, 178, 178),
    "blue": (62, 124, 230),
    "purple": (138, 86, 200),
    "pink": (250, 150, 195),
    "brown": (128, 88, 58),
}
COLOURS = ["black", "white", "grey", "brown", "red", "orange", "yellow", "green", "teal", "blue", "purple", "pink"]


def held_out(label: str, colour: str) -> bool:
    """Whether this object-colour pair is kept out of training."""
    return zlib.crc32(f"{label}|{colour}".encode()) % 8 == 0


@dataclass
class Plan:
    """What will be drawn, and so everything that a caption may say."""

    picture: int
    label: str
    style: str
    colour: str | None
    turned: bool
    background: str


def hsv(rgb: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(B, 3, H, W) in 0..1 -> hue in degrees, saturation, value, each (B, H, W)."""
    high, low = rgb.amax(1), rgb.amin(1)
    spread = high - low
    r, g, b = rgb.unbind(1)
    e = spread.clamp_min(1e-6)
    hue = torch.where(high == r, ((g - b) / e) % 6, torch.where(high == g, (b - r) / e + 2, (r - g) / e + 4)) * 60
    return torch.where(spread < 1e-6, 0.0, hue), spread / high.clamp_min(1e-6), high


def rgb_of(hue: Tensor, saturation: Tensor, value: Tensor) -> Tensor:
    """The inverse of `hsv`."""

    def channel(n: int) -> Tensor:
        k = (n + hue / 60) % 6
        return value - value * saturation * torch.minimum(k, 4 - k).clamp(0, 1)

    return torch.stack([channel(5), channel(3), channel(1)], 1)


def colour_shares(rgb: Tensor, mask: Tensor) -> Tensor:
    """(B, 3, H, W) and a 0/1 mask (B, H, W) -> share of each of COLOURS among the masked pixels, (B, 12)."""
    hue, saturation, value = hsv(rgb)
    index = torch.full_like(hue, COLOURS.index("red"))
    for name, low, high in (
        ("orange", 15, 40),
        ("yellow", 40, 68),
        ("green", 68, 165),
        ("teal", 165, 197),
        ("blue", 197, 250),
        ("purple", 250, 296),
        ("pink", 296, 345),
    ):
        index[(hue >= low) & (hue < high)] = COLOURS.index(name)
    index[(hue >= 8) & (hue < 45) & (value < 0.66)] = COLOURS.index("brown")
    index[((hue >= 345) | (hue < 12)) & (saturation < 0.55) & (value > 0.75)] = COLOURS.index("pink")
    grey = saturation < 0.14
    index[grey & (value >= 0.86)] = COLOURS.index("white")
    index[grey & (value < 0.86)] = COLOURS.index("grey")
    index[value < 0.24] = COLOURS.index("black")
    weight = F.one_hot(index.long(), len(COLOURS)).float() * mask.float()[..., None]
    return weight.sum((1, 2)) / mask.float().sum((1, 2)).clamp_min(1)[:, None]


def square(file: Path) -> np.ndarray:
    """A picture cut to its opaque part, centred in a square of SIZE_PX, (SIZE_PX, SIZE_PX, 4) uint8."""
    image = Image.open(file).convert("RGBA")
    box = image.getchannel("A").point(lambda a: 255 if a > 24 else 0).getbbox()
    assert box, f"{file} is empty"
    image = image.crop(box)
    scale = SIZE_PX / max(image.size)
    # Premultiplied, so that transparent pixels do not bleed their colour into the edge.
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    small = image.convert("RGBa").resize(size, Image.Resampling.LANCZOS).convert("RGBA")
    out = Image.new("RGBA", (SIZE_PX, SIZE_PX))
    out.paste(small, ((SIZE_PX - size[0]) // 2, (SIZE_PX - size[1]) // 2))
    return np.asarray(out)


class Scenes:
    """The pictures of objects.json and everything needed to draw scenes of them."""

    def __init__(self, pictures: Path) -> None:
        meta = json.loads((pictures / "pictures.json").read_text())
        self.words: dict[str, list[str]] = json.loads((EMOJI / "objects.json").read_text())
        self.labels = list(self.words)
        self.label = [m["label"] for m in meta]
        self.style = [m["style"] for m in meta]
        stack = np.stack([square(pictures / m["file"]) for m in meta])
        self.image = torch.from_numpy(stack).permute(0, 3, 1, 2).contiguous()
        self._measure_colours()

    def __len__(self) -> int:
        return len(self.label)

    def _measure_colours(self) -> None:
        x = self.image.float() / 255
        rgb, opaque = x[:, :3], x[:, 3] > 0.5
        shares = colour_shares(rgb, opaque)
        hue, saturation, value = hsv(rgb)
        coloured = (opaque & (saturation > 0.2) & (value > 0.2)).float()
        n = coloured.sum((1, 2)).clamp_min(1)
        angle = hue * torch.pi / 180
        cos, sin = (coloured * angle.cos()).sum((1, 2)) / n, (coloured * angle.sin()).sum((1, 2)) / n
        mean = torch.atan2(sin, cos) * 180 / torch.pi % 360
        one_hue = ((cos**2 + sin**2).sqrt() > 0.8) & (n / opaque.float().sum((1, 2)) > 0.4)
        share, top = shares.max(1)
        # The colour by nature where one dominates; the hue to turn where one hue carries the picture.
        self.natural = [COLOURS[int(t)] if s > 0.5 else None for s, t in zip(share, top, strict=True)]
        self.hue = [float(m) if ok else None for m, ok in zip(mean, one_hue, strict=True)]

    def turnable(self, label: str) -> bool:
        """Whether every picture of this object can be given another colour."""
        return all(h is not None for h, name in zip(self.hue, self.label, strict=True) if name == label)

    def plan(self, picture: int, rng: random.Random) -> Plan:
        """A training scene of one picture."""
        label, colour, turned = self.label[picture], self.natural[picture], False
        if self.hue[picture] is not None and rng.random() < 0.4:
            choice = rng.choice(list(HUES))
            if choice != colour and not held_out(label, choice):
                colour, turned = choice, True
        choices = [b for b in BACKGROUNDS if b != colour]
        background = "white" if rng.random() < 0.2 and colour != "white" else rng.choice(choices)
        return Plan(picture, label, self.style[picture], colour, turned, background)

    def draw(self, plans: list[Plan], rng: random.Random) -> tuple[Tensor, Tensor]:
        """Scenes (B, 3, SIZE_PX, SIZE_PX) in -1..1, and the colour shares of their objects (B, 12)."""
        x = self.image[[p.picture for p in plans]].float() / 255
        rgb, alpha = x[:, :3], x[:, 3:]
        turned = [k for k, p in enumerate(plans) if p.turned]
        if turned:
            by = [HUES[plans[k].colour or ""] - (self.hue[plans[k].picture] or 0) + rng.uniform(-5, 5) for k in turned]
            hue, saturation, value = hsv(rgb[turned])
            rgb = rgb.clone()
            rgb[turned] = rgb_of((hue + torch.tensor(by)[:, None, None]) % 360, saturation, value).clamp(0, 1)
        shares = colour_shares(rgb[..., ::4, ::4], alpha[:, 0, ::4, ::4] > 0.5)
        place, ground = [], []
        for p in plans:
            place.append([rng.uniform(0.78, 0.86), rng.uniform(-0.02, 0.02), rng.uniform(-0.02, 0.02)])
            jitter = 0.0 if p.background == "white" else 0.035
            ground.append(
                [min(1.0, max(0.0, c / 255 + rng.uniform(-jitter, jitter))) for c in BACKGROUNDS[p.background]]
            )
        scale, dx, dy = torch.tensor(place).unbind(1)
        zero = torch.zeros_like(scale)
        theta = torch.stack(
            [torch.stack([1 / scale, zero, -2 * dx / scale], 1), torch.stack([zero, 1 / scale, -2 * dy / scale], 1)], 1
        )
        grid = F.affine_grid(theta, [len(plans), 4, SIZE_PX, SIZE_PX], align_corners=False)
        layer = F.grid_sample(torch.cat([rgb * alpha, alpha], 1), grid, align_corners=False)
        scene = layer[:, :3] + (1 - layer[:, 3:]) * torch.tensor(ground)[:, :, None, None]
        return scene.clamp(0, 1) * 2 - 1, shares

    def caption(self, plan: Plan, rng: random.Random) -> str:
        """One of the ways to say what the plan draws."""
        noun = self.words[plan.label][0] if rng.random() < 0.7 else rng.choice(self.words[plan.label])
        said = plan.colour if plan.turned or (plan.colour and rng.random() < 0.5) else None
        text = f"{said} {noun}" if said else noun
        if rng.random() < 0.8 and not noun.endswith("s"):
            text = ("an " if text[0] in "aeiou" else "a ") + text
        # White is what a scene has when nothing is said, so it may be left out.
        if plan.background != "white" or rng.random() < 0.5:
            ground = plan.background
            article = "an" if ground[0] in "aeiou" else "a"
            form = rng.choice([f"on {article} {ground} background"] * 3 + [f"on {ground}", f", {ground} background"])
            text = f"{text} {form}".replace(" ,", ",")
        if rng.random() < 0.5:
            text += f", {plan.style} style"
        return text


def main() -> None:
    """Draws a sheet of scenes to look at: python scenes.py PICTURES OUT.png"""
    import sys

    scenes = Scenes(Path(sys.argv[1]))
    rng = random.Random(0)
    plans = [scenes.plan(rng.randrange(len(scenes)), rng) for _ in range(96)]
    x, _ = scenes.draw(plans, rng)
    rows = ((x + 1) * 127.5).byte().permute(0, 2, 3, 1).numpy().reshape(8, 12, SIZE_PX, SIZE_PX, 3)
    Image.fromarray(rows.transpose(0, 2, 1, 3, 4).reshape(8 * SIZE_PX, 12 * SIZE_PX, 3)).save(sys.argv[2])
    for plan in plans[:24]:
        print(scenes.caption(plan, rng))
    print(
        len(scenes), "pictures;", sum(map(scenes.turnable, scenes.labels)), "of", len(scenes.labels), "objects turnable"
    )


if __name__ == "__main__":
    main()
