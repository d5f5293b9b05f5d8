"""Captioned pictures for the built-in model: one to three emoji on a background, drawn in batches on any device.

A scene is planned first (objects, style, colours, places, background), then drawn and captioned from the same plan, so
that a caption says only what is true. A colour that an object does not have by nature is made by turning its hues; one
object-colour pair in eight is never drawn, so that new combinations can be tested (`held_out`).
"""

from __future__ import annotations

import io
import json
import random
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

SIZE_PX = 128
LAYERS = 3
EMOJI = Path(__file__).parent / "emoji"
STYLES = ("flat", "3d", "cartoon", "classic", "simple")
# Little variety for a start: every picture comes back more often.
TRAINED_STYLES = ("flat", "3d", "cartoon")
TURNED_SHARE, MIRRORED_SHARE, TILT_DEGREES = 0.2, 0.15, 6

# Of each colour an object can be given: hue in degrees (None: kept), then slope and offset of saturation and of value.
TURNS: dict[str, tuple[float | None, float, float, float, float]] = {
    "red": (2, 1, 0, 1, 0),
    "orange": (27, 1, 0, 1, 0),
    "yellow": (50, 1, 0, 1, 0),
    "green": (120, 1, 0, 1, 0),
    "teal": (178, 1, 0, 1, 0),
    "blue": (218, 1, 0, 1, 0),
    "purple": (272, 1, 0, 1, 0),
    "pink": (326, 1, 0, 1, 0),
    "brown": (24, 0.5, 0.25, 0.45, 0.12),
    "black": (None, 0.25, 0, 0.2, 0),
    "white": (None, 0.1, 0, 0.22, 0.77),
    "grey": (None, 0.06, 0, 0.4, 0.3),
}
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
SCENERY = ("grass", "sky", "sea", "night")
KINDS = ("plain", "gradient", *SCENERY)
PLACES = {
    "left": (-0.24, 0.0),
    "right": (0.24, 0.0),
    "top": (0.0, -0.24),
    "bottom": (0.0, 0.24),
    "center": (0.0, 0.0),
    "top left": (-0.24, -0.24),
    "top right": (0.24, -0.24),
    "bottom left": (-0.24, 0.24),
    "bottom right": (0.24, 0.24),
}
SIZES = {"small": (0.26, 0.36), "big": (0.96, 1.06)}
SIZE_WORDS = {"small": ["small", "tiny", "little"], "big": ["big", "large", "huge"]}
NUMBERS = {2: "two", 3: "three"}
# What a mirror would make wrong.
NOT_MIRRORED = {
    "question mark", "right arrow", "8 ball", "map", "earth", "calendar", "dice", "stop sign", "music note",
    "floppy disk", "yin yang", "thumbs up", "thumbs down", "alarm clock", "watch", "check mark",
}  # fmt: skip
PLURAL_NOUNS = {
    "thumbs up", "thumbs down", "heart eyes", "star eyes", "grapes", "glasses", "sunglasses", "socks", "eyes",
    "cherries", "peanuts", "scissors", "headphones", "fries", "french fries", "blueberries", "pancakes", "fireworks",
    "skis", "noodles", "tennis", "ping pong", "table tennis", "badminton", "golf", "bowling", "lips", "leaves",
    "money", "rain",
}  # fmt: skip
IRREGULAR = {
    "mouse": "mice", "tooth": "teeth", "man": "men", "woman": "women", "wolf": "wolves", "leaf": "leaves",
    "knife": "knives", "fish": "fish", "sheep": "sheep", "deer": "deer", "puppy": "puppies", "lady": "ladies",
    "spaceman": "spacemen",
}  # fmt: skip


def held_out(label: str, colour: str) -> bool:
    """Whether this object-colour pair is kept out of training."""
    return zlib.crc32(f"{label}|{colour}".encode()) % 8 == 0


def plural(noun: str) -> str:
    """More than one of what the noun names."""
    head, _, last = noun.rpartition(" ")
    if last in IRREGULAR:
        last = IRREGULAR[last]
    elif last.endswith(("s", "x", "ch", "sh")):
        last += "es"
    elif last.endswith("y") and last[-2:-1] not in "aeiou":
        last = last[:-1] + "ies"
    else:
        last += "s"
    return f"{head} {last}".strip()


def article(text: str) -> str:
    return ("an " if text[0] in "aeiou8" else "a ") + text


@dataclass
class Placed:
    """One picture in a scene. Lengths are shares of the scene's side, from its middle; the angle in degrees."""

    picture: int
    x: float
    y: float
    scale: float
    angle: float = 0.0
    mirrored: bool = False
    colour: str | None = None
    """The colour that it has, by nature or turned."""
    turned: bool = False
    hue_jitter: float = 0.0


@dataclass
class Plan:
    """What will be drawn, and so everything that a caption may say."""

    label: str
    style: str
    placed: list[Placed]
    kind: str = "plain"
    background: str = "white"
    tone: str = ""
    second: str = ""
    """The other colour of a gradient."""
    says_background: bool = True
    place: str | None = None
    size: str | None = None
    other: str | None = None
    """The object on the right where there are two different ones."""
    ground: list[float] = field(default_factory=list)
    """The background as `rows` has it."""

    @property
    def count(self) -> int:
        return 1 if self.other else len(self.placed)


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


def square(file: Path) -> Image.Image:
    """A picture cut to its opaque part, centred in a square of SIZE_PX, RGBA."""
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
    return out


def pack(pictures: Path, out: Path) -> None:
    """Writes every picture of render.mjs as WebP into one small folder: pictures.json, pictures.webp (end to end)."""
    meta = json.loads((pictures / "pictures.json").read_text())
    out.mkdir(parents=True, exist_ok=True)
    parts = []
    for entry in meta:
        part = io.BytesIO()
        square(pictures / entry.pop("file")).save(part, "WEBP", quality=92, method=4)
        entry["bytes"] = part.tell()
        parts.append(part.getvalue())
    (out / "pictures.json").write_text(json.dumps(meta, ensure_ascii=False))
    (out / "pictures.webp").write_bytes(b"".join(parts))
    print(f"{len(parts)} pictures, {sum(map(len, parts)) / 1e6:.1f} MB")


class Scenes:
    """The pictures of a pack and everything needed to plan scenes of them."""

    def __init__(self, folder: Path) -> None:
        meta = json.loads((folder / "pictures.json").read_text())
        objects = json.loads((EMOJI / "objects.json").read_text())
        self.words: dict[str, list[str]] = {name: entry["words"] for name, entry in objects.items()}
        self.labels = list(self.words)
        self.label = [m["object"] for m in meta]
        self.emoji = [m["emoji"] for m in meta]
        self.style = [m["style"] for m in meta]
        data, stack, at = (folder / "pictures.webp").read_bytes(), [], 0
        for m in meta:
            stack.append(np.asarray(Image.open(io.BytesIO(data[at : at + m["bytes"]])).convert("RGBA")))
            at += m["bytes"]
        self.image = torch.from_numpy(np.stack(stack)).permute(0, 3, 1, 2).contiguous()
        self.of: dict[str, dict[str, list[int]]] = {}
        for i, (label, style) in enumerate(zip(self.label, self.style, strict=True)):
            self.of.setdefault(label, {}).setdefault(style, []).append(i)
        self._measure_colours()

    def __len__(self) -> int:
        return len(self.label)

    def _measure_colours(self) -> None:
        x = F.avg_pool2d(self.image.float() / 255, 4)
        rgb, opaque = x[:, :3] / x[:, 3:].clamp_min(1e-3), x[:, 3] > 0.5
        rgb = torch.where(opaque[:, None], F.avg_pool2d(self.image[:, :3].float() / 255, 4), rgb.clamp(0, 1))
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
        # The colours that turning really gives.
        self.turns: list[list[str]] = [[] for _ in self.label]
        candidates = [i for i, h in enumerate(self.hue) if h is not None]
        for colour in TURNS:
            for start in range(0, len(candidates), 256):
                some = candidates[start : start + 256]
                values = torch.tensor([self.turn_values(i, colour, 0.0) for i in some])
                turned = colour_shares(turn(rgb[some], values), opaque[some])
                for i, s in zip(some, turned, strict=True):
                    if COLOURS[int(s.argmax())] == colour and float(s.max()) > 0.45:
                        self.turns[i].append(colour)

    def turn_values(self, picture: int, colour: str, jitter: float) -> list[float]:
        """Hue to add, then slope and offset of saturation and value, that give a picture this colour."""
        hue, *rest = TURNS[colour]
        return [0.0 if hue is None else hue - (self.hue[picture] or 0.0) + jitter, *rest]

    def turnable(self, label: str) -> bool:
        """Whether every picture of this object can be given most colours."""
        return all(len(self.turns[i]) >= 6 for some in self.of[label].values() for i in some)

    def place(self, picture: int, rng: random.Random, x: float, y: float, scale: float, turns: bool) -> Placed:
        """A picture with a little chance in its place, angle and colour."""
        label, colour, turned = self.label[picture], self.natural[picture], False
        if turns and self.turns[picture] and rng.random() < TURNED_SHARE:
            choice = rng.choice(self.turns[picture])
            if choice != colour and not held_out(label, choice):
                colour, turned = choice, True
        mirrored = label not in NOT_MIRRORED and rng.random() < MIRRORED_SHARE
        angle = rng.uniform(-TILT_DEGREES, TILT_DEGREES)
        return Placed(picture, x, y, scale, angle, mirrored, colour, turned, rng.uniform(-5, 5) if turned else 0.0)

    def plan(self, rng: random.Random, label: str | None = None, layout: str | None = None) -> Plan:
        """A training scene of this object, or of any."""
        label = label or rng.choice(self.labels)
        style = rng.choice([style for style in TRAINED_STYLES if style in self.of[label]])
        layout = layout or rng.choices(["one", "placed", "sized", "count", "pair"], [42, 16, 12, 14, 16])[0]
        plan = Plan(label, style, [])
        near = rng.uniform(-0.03, 0.03), rng.uniform(-0.03, 0.03)
        picture = rng.choice(self.of[label][style])
        if layout == "count" and label in PLURAL_NOUNS:
            layout = "one"
        if layout == "one":
            plan.placed = [self.place(picture, rng, *near, rng.uniform(0.68, 0.86), True)]
        elif layout == "placed":
            plan.place = rng.choice(list(PLACES))
            plan.size = "small" if rng.random() < 0.3 else None
            low, high = SIZES["small"] if plan.size else (0.4, 0.5)
            x, y = PLACES[plan.place]
            plan.placed = [self.place(picture, rng, x + near[0], y + near[1], rng.uniform(low, high), True)]
        elif layout == "sized":
            plan.size = rng.choice(list(SIZES))
            plan.placed = [self.place(picture, rng, *near, rng.uniform(*SIZES[plan.size]), True)]
        elif layout == "count":
            self._several(plan, picture, rng)
        else:
            others = [name for name in rng.sample(self.labels, 8) if style in self.of[name] and name != label]
            plan.other = others[0] if others else None
            scale = rng.uniform(0.4, 0.48)
            plan.placed = [self.place(picture, rng, -0.245 + near[0], near[1], scale, True)]
            if plan.other:
                second, scale = rng.choice(self.of[plan.other][style]), rng.uniform(0.4, 0.48)
                plan.placed.append(self.place(second, rng, 0.245 + near[0], rng.uniform(-0.03, 0.03), scale, True))
            else:
                plan.place = "left"
        self._background(plan, rng)
        return plan

    def _several(self, plan: Plan, picture: int, rng: random.Random) -> None:
        count = rng.choice([2, 3])
        if count == 2:
            spots = rng.choice(
                [[(-0.24, 0.0), (0.24, 0.0)], [(-0.22, -0.2), (0.22, 0.2)], [(-0.22, 0.2), (0.22, -0.2)]]
            )
            scale = rng.uniform(0.4, 0.47)
        else:
            row, above = [(-0.32, 0.0), (0.0, 0.0), (0.32, 0.0)], [(0.0, -0.22), (-0.24, 0.22), (0.24, 0.22)]
            below = [(-0.24, -0.22), (0.24, -0.22), (0.0, 0.22)]
            spots = rng.choice([row, above, above, below])
            scale = rng.uniform(0.27, 0.31) if spots is row else rng.uniform(0.36, 0.42)
        first = self.place(picture, rng, 0, 0, scale, True)
        for x, y in spots:
            one = Placed(**vars(first))
            one.x, one.y = x + rng.uniform(-0.02, 0.02), y + rng.uniform(-0.02, 0.02)
            one.angle, one.scale = rng.uniform(-TILT_DEGREES, TILT_DEGREES), scale * rng.uniform(0.95, 1.05)
            plan.placed.append(one)

    def _background(self, plan: Plan, rng: random.Random) -> None:
        taken = {p.colour for p in plan.placed}
        plan.says_background = rng.random() < 0.75
        if not plan.says_background:
            # Where nothing is said: mostly white, else any soft ground.
            plan.kind = rng.choices(["plain", "gradient"], [85, 15])[0]
            if rng.random() < 0.6 and "white" not in taken:
                plan.kind, plan.background = "plain", "white"
            else:
                plan.background = rng.choice([b for b in BACKGROUNDS if b not in taken])
                plan.tone = rng.choice(["light", ""]) if plan.background not in ("white", "black") else ""
        else:
            plan.kind = rng.choices(KINDS, [66, 8, 7, 7, 6, 6])[0]
            plan.background = rng.choice([b for b in BACKGROUNDS if b not in taken])
            if plan.kind == "plain" and plan.background not in ("white", "black") and rng.random() < 0.16:
                plan.tone = rng.choice(["light", "dark"])
        if plan.kind == "gradient":
            plan.second = rng.choice([b for b in BACKGROUNDS if b not in taken and b != plan.background] or ["white"])
        self.ground(plan, rng)

    def ground(self, plan: Plan, rng: random.Random) -> None:
        """The background's numbers: kind, two colours, and four numbers of chance."""
        colours = []
        for name in (plan.background, plan.second or plan.background):
            rgb = [c / 255 for c in BACKGROUNDS[name]]
            if plan.tone == "light":
                rgb = [c * 0.5 + 0.5 for c in rgb]
            if plan.tone == "dark":
                rgb = [c * 0.5 for c in rgb]
            jitter = 0.0 if name == "white" else 0.03
            colours += [min(1.0, max(0.0, c + rng.uniform(-jitter, jitter))) for c in rgb]
        plan.ground = [KINDS.index(plan.kind), *colours, *(rng.random() for _ in range(4))]

    def row(self, plan: Plan) -> list[float]:
        """The plan as numbers, ROW of them: LAYERS of 11 (an absent one has no scale), then the background's 11."""
        out: list[float] = []
        for p in plan.placed:
            turn_by = (
                self.turn_values(p.picture, p.colour or "", p.hue_jitter) if p.turned else [0.0, 1.0, 0.0, 1.0, 0.0]
            )
            out += [p.picture, p.x, p.y, p.scale, p.angle, float(p.mirrored), *turn_by]
        out += [0.0] * (11 * (LAYERS - len(plan.placed)))
        return out + plan.ground

    def draw(self, plans: list[Plan]) -> Tensor:
        """Scenes (B, 3, SIZE_PX, SIZE_PX) in -1..1, on the CPU."""
        return Painter(self.image).paint(torch.tensor([self.row(plan) for plan in plans]))[0]

    def noun(self, picture: int, rng: random.Random) -> str:
        """What a picture shows, in a word: mostly the plainest."""
        roll, words = rng.random(), self.words[self.label[picture]]
        if roll < 0.06:
            return self.emoji[picture]
        return words[0] if roll < 0.66 else rng.choice(words)

    def phrase(self, placed: Placed, rng: random.Random, size: str | None, count: int = 1) -> str:
        """A noun with what is said about it."""
        noun = self.noun(placed.picture, rng)
        said = placed.colour if placed.turned or (placed.colour and rng.random() < 0.4) else None
        if count > 1:
            noun = plural(noun) if noun.isascii() else noun
        text = " ".join(word for word in (rng.choice(SIZE_WORDS[size]) if size else "", said or "", noun) if word)
        if count > 1:
            return f"{NUMBERS[count]} {text}"
        if noun.isascii() and noun not in PLURAL_NOUNS and rng.random() < 0.8:
            text = article(text)
        return text

    def caption(self, plan: Plan, rng: random.Random) -> str:
        """One of the ways to say what the plan draws."""
        text = self.phrase(plan.placed[0], rng, plan.size, plan.count)
        if plan.other:
            other = self.phrase(plan.placed[1], rng, None)
            forms = [f"{text} and {other}"] * 3 + [
                f"{text} on the left and {other} on the right",
                f"{text} next to {other}",
            ]
            text = rng.choice([*forms, f"{text} and {other} side by side", f"{text} beside {other}"])
        elif plan.place == "center":
            text += rng.choice([" in the center", " in the middle", " at the center", ", centered"])
        elif plan.place:
            place = plan.place
            if " " in place:
                forms = [f" in the {place} corner", f" at the {place}", f" in the {place}", f", {place}"]
            elif place in ("left", "right"):
                forms = [f" on the {place}", f" at the {place}", f" on the {place} side", f", {place}"]
            else:
                forms = [f" at the {place}", f" at the {place} of the picture", f" on the {place}", f", {place}"]
            text += rng.choice(forms)
        if plan.says_background:
            text += rng.choice(self._background_forms(plan))
        if rng.random() < 0.5:
            style = plan.style
            text += rng.choice([f", {style} style"] * 3 + [f", {style}", f" in {style} style", f", {style} emoji"])
        return text

    @staticmethod
    def _background_forms(plan: Plan) -> list[str]:
        name = f"{plan.tone} {plan.background}".strip()
        match plan.kind:
            case "gradient":
                return [
                    " on a gradient background",
                    f" on a {plan.background} and {plan.second} gradient",
                    f" on a gradient from {plan.background} to {plan.second}",
                ]
            case "grass":
                return [" on grass", " on the grass", " in a meadow", " on green grass", ", grass background"]
            case "sky":
                return [" in the sky", " in front of the sky", " in a blue sky with clouds", ", sky background"]
            case "sea":
                return [" at sea", " on the sea", " in the sea", " on the ocean", ", sea background"]
            case "night":
                return [" at night", " in the night sky", " under the stars", ", night background"]
        return [f" on {article(name)} background"] * 3 + [f" on {name}", f", {name} background"]


ROW = 11 * LAYERS + 11


def turn(rgb: Tensor, values: Tensor) -> Tensor:
    """Pictures (B, 3, H, W) in 0..1 with hues, saturations and values changed by (B, 5): see TURNS."""
    hue, saturation, value = hsv(rgb)
    add, s1, s0, v1, v0 = (v[:, None, None] for v in values.unbind(1))
    coloured = (saturation * s1 + s0 * (saturation > 0.1)).clamp(0, 1)
    return rgb_of((hue + add) % 360, coloured, (value * v1 + v0).clamp(0, 1)).clamp(0, 1)


class Painter:
    """Paints rows of numbers (`Scenes.row`) as pictures, on the device of its images."""

    def __init__(self, image: Tensor) -> None:
        self.image = image
        half = image.float()
        weighted = torch.cat([half[:, :3] * half[:, 3:] / 255, half[:, 3:]], 1)
        small = F.avg_pool2d(weighted, 2)
        rgb = small[:, :3] * 255 / small[:, 3:].clamp_min(1)
        # The same at half the size, for scenes in which an object is small: bilinear sampling alone would alias.
        self.half = torch.cat([rgb, small[:, 3:]], 1).round().clamp(0, 255).byte()
        line = (torch.arange(SIZE_PX, device=image.device) + 0.5) / SIZE_PX - 0.5
        self.x, self.y = line[None, :].expand(SIZE_PX, SIZE_PX), line[:, None].expand(SIZE_PX, SIZE_PX)

    def paint(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """(B, ROW) -> scenes (B, 3, SIZE_PX, SIZE_PX) in -1..1; what each layer covers (B, LAYERS, ...) in 0..1."""
        scene = self.backdrop(rows[:, 11 * LAYERS :])
        covers = []
        for k in range(LAYERS):
            layer = rows[:, 11 * k : 11 * (k + 1)]
            covers.append(torch.zeros_like(scene[:, 0]))
            there = (layer[:, 3] > 0).nonzero()[:, 0]
            if not len(there):
                continue
            rgb, alpha = self.sprite(layer[there])
            scene[there] = rgb + (1 - alpha) * scene[there]
            for covered in covers[:-1]:
                covered[there] *= 1 - alpha[:, 0]
            covers[-1][there] = alpha[:, 0]
        return scene.clamp(0, 1) * 2 - 1, torch.stack(covers, 1)

    def sprite(self, layer: Tensor) -> tuple[Tensor, Tensor]:
        """Layers (B, 11) -> their colours times their alpha (B, 3, ...), and alpha (B, 1, ...), in scene pixels."""
        index, scale = layer[:, 0].long(), layer[:, 3]
        small = scale < 0.56
        x = self.image[index].float() / 255
        low = F.interpolate(self.half[index].float() / 255, SIZE_PX, mode="bilinear")
        x = torch.where(small[:, None, None, None], low, x)
        rgb, alpha = turn(x[:, :3], layer[:, 6:11]), x[:, 3:]
        unturned = (layer[:, 6:11] == torch.tensor([0.0, 1, 0, 1, 0], device=layer.device)).all(1)
        rgb = torch.where(unturned[:, None, None, None], x[:, :3], rgb)
        angle = layer[:, 4] * torch.pi / 180
        cos, sin = angle.cos() / scale, angle.sin() / scale
        side = 1 - 2 * layer[:, 5]
        dx, dy = 2 * layer[:, 1], 2 * layer[:, 2]
        theta = torch.stack(
            [
                torch.stack([side * cos, side * sin, -side * (cos * dx + sin * dy)], 1),
                torch.stack([-sin, cos, sin * dx - cos * dy], 1),
            ],
            1,
        )
        grid = F.affine_grid(theta, [len(layer), 4, SIZE_PX, SIZE_PX], align_corners=False)
        out = F.grid_sample(torch.cat([rgb * alpha, alpha], 1), grid, align_corners=False)
        return out[:, :3], out[:, 3:]

    def backdrop(self, ground: Tensor) -> Tensor:
        """Backgrounds (B, 11) -> (B, 3, SIZE_PX, SIZE_PX) in 0..1."""
        kind = ground[:, 0].long()
        first, second, chance = ground[:, 1:4], ground[:, 4:7], ground[:, 7:11]
        out = first[:, :, None, None].expand(-1, -1, SIZE_PX, SIZE_PX).clone()
        for number, name in enumerate(KINDS):
            some = (kind == number).nonzero()[:, 0]
            if len(some) and name == "gradient":
                angle = (chance[some, 0] - 0.5) * torch.pi / 2 + torch.pi / 2
                along = angle.cos()[:, None, None] * self.x + angle.sin()[:, None, None] * self.y
                share = (along / 0.9 + 0.5).clamp(0, 1)[:, None]
                out[some] = first[some][:, :, None, None] * (1 - share) + second[some][:, :, None, None] * share
            elif len(some) and name in SCENERY:
                out[some] = self.scenery(name, chance[some])
        return out

    def scenery(self, name: str, chance: Tensor) -> Tensor:
        """Simple landscapes, (B, 4) numbers of chance -> (B, 3, SIZE_PX, SIZE_PX)."""
        a, b, c, d = (v[:, None, None] for v in chance.unbind(1))
        x, y = self.x[None], self.y[None]

        def blend(share: Tensor, low: tuple[int, ...], high: tuple[int, ...]) -> Tensor:
            low_, high_ = (torch.tensor(v, device=share.device)[None, :, None, None] / 255 for v in (low, high))
            return low_ + (high_ - low_) * share[:, None]

        sky = blend((y + 0.5 + 0.0 * a).expand(len(chance), -1, -1), (88, 168, 240), (190, 226, 252))
        if name == "night":
            out = blend((y + 0.5 + 0.0 * a).expand(len(chance), -1, -1), (12, 16, 48), (40, 48, 104))
            for k in range(24):
                at_x, at_y = (a * (k * 7.31 + 3) + k * 0.618) % 1 - 0.5, (b * (k * 5.17 + 2) + k * 0.414) % 1 - 0.5
                star = (
                    1.6 - ((x - at_x).square() + (y - at_y).square()).sqrt() * SIZE_PX / (0.7 + (k % 3) * 0.35)
                ).clamp(0, 1)
                out = out + (1 - out) * star[:, None]
            return out
        clouds = torch.zeros_like(sky[:, 0])
        for k in range(3):
            at_x, at_y = (a * (k + 1.7) + k * 0.37) % 1 - 0.5, -0.42 + 0.3 * ((b * (k + 2.3) + k * 0.29) % 1)
            for part in (-1, 0, 1):
                wide = 0.075 + 0.02 * (1 - abs(part))
                away = (
                    (x - at_x - part * 0.075).square() + ((y - at_y + 0.018 * (1 - abs(part))) * 1.5).square()
                ).sqrt()
                clouds = torch.maximum(clouds, ((wide - away) * SIZE_PX / 2).clamp(0, 1))
        sky = sky + (1 - sky) * clouds[:, None] * 0.9
        if name == "sky":
            return sky
        low = 0.08 + 0.12 * c
        if name == "grass":
            horizon = low + 0.03 * torch.sin(x * 7 + d * 6.28)
            field_ = blend(((y - low) / 0.5).clamp(0, 1), (132, 200, 84), (74, 156, 60))
        else:
            horizon = low + 0 * x
            waves = (
                torch.sin(x * 40 + d * 6.28 + torch.sin(y * 60) * 1.5) * torch.sin(y * 75 + a * 6.28) > 0.75
            ).float()
            field_ = blend(((y - low) / 0.5).clamp(0, 1), (58, 150, 214), (20, 92, 170))
            field_ = field_ + (1 - field_) * waves[:, None] * 0.35
        share = ((y - horizon) * SIZE_PX / 2).clamp(0, 1)[:, None]
        return sky * (1 - share) + field_ * share


def main() -> None:
    """python scenes.py pack PICTURES PACK; python scenes.py sheet PACK OUT.png: scenes to look at."""
    import sys

    if sys.argv[1] == "pack":
        pack(Path(sys.argv[2]), Path(sys.argv[3]))
        return
    scenes = Scenes(Path(sys.argv[2]))
    rng = random.Random(0)
    plans = [scenes.plan(rng) for _ in range(96)]
    x = scenes.draw(plans)
    rows = ((x + 1) * 127.5).byte().permute(0, 2, 3, 1).numpy().reshape(8, 12, SIZE_PX, SIZE_PX, 3)
    Image.fromarray(rows.transpose(0, 2, 1, 3, 4).reshape(8 * SIZE_PX, 12 * SIZE_PX, 3)).save(sys.argv[3])
    for k, plan in enumerate(plans):
        print(k // 12, k % 12, scenes.caption(plan, rng))
    print(
        len(scenes), "pictures;", sum(map(scenes.turnable, scenes.labels)), "of", len(scenes.labels), "objects turnable"
    )


if __name__ == "__main__":
    main()
