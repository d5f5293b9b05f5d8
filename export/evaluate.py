"""Measures the built-in model on pictures that calotype itself draws, with fixed captions and seeds.

    python evaluate.py CALOTYPE PICTURES OUT.json

CALOTYPE is the program, PICTURES the folder that render.mjs writes. Prints the table of the model card; OUT.json has
that table and the verdict on every picture. The same measures are taken of scenes drawn from the same plans, which is
as good as a model can get.
"""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from judge import JUDGES, Judge, Verdicts, border_colour, ceiling
from scenes import BACKGROUNDS, COLOURS, HUES, Plan, Scenes, colour_shares, held_out, hsv

TRAINED, NEW, SEEDS_OF, SEEDS, GUIDED = 100, 50, 20, 4, 50
FIRST_SEED = 1000
TARGETS = {
    ("trained", "colour"): 0.8,
    ("new", "colour"): 0.5,
    ("trained", "shape"): 0.6,
    ("new", "shape"): 0.4,
    "background": 0.95,
    "object colour": 0.7,
}


@dataclass
class Caption:
    """What calotype is asked for, and the plan of a scene that it is true of."""

    text: str
    plan: Plan
    seed: int

    @property
    def names_background(self) -> bool:
        return re.search(rf"(on|on an?|,) {self.plan.background}( background)?(,|$)", self.text) is not None

    @property
    def names_colour(self) -> bool:
        return self.plan.colour is not None and re.match(rf"(an? )?{self.plan.colour} ", self.text) is not None


def true_to_colour(scenes: Scenes, plan: Plan) -> bool:
    """Whether turning the hues gives the colour that the caption names; training drops the scenes where it does not."""
    _, shares = scenes.draw([plan], random.Random(0))
    return not plan.turned or COLOURS[int(shares.argmax())] == plan.colour


def trained_captions(scenes: Scenes) -> list[Caption]:
    """One caption per object, made as those of the training are."""
    rng = random.Random(1)
    labels = rng.sample(scenes.labels, TRAINED)
    captions = []
    for k, label in enumerate(labels):
        pictures = [i for i, name in enumerate(scenes.label) if name == label]
        plan = scenes.plan(rng.choice(pictures), rng)
        while not true_to_colour(scenes, plan):
            plan = scenes.plan(rng.choice(pictures), rng)
        captions.append(Caption(scenes.caption(plan, rng), plan, FIRST_SEED + k))
    return captions


def new_captions(scenes: Scenes) -> list[Caption]:
    """Objects in colours that they never had in training; where those run out, again on another background."""
    rng = random.Random(2)
    plans = []
    for label in filter(scenes.turnable, scenes.labels):
        pictures = [i for i, name in enumerate(scenes.label) if name == label]
        natural = {scenes.natural[i] for i in pictures}
        for colour in HUES:
            picture = rng.choice(pictures)
            plan = Plan(picture, label, scenes.style[picture], colour, True, "white")
            if held_out(label, colour) and colour not in natural and true_to_colour(scenes, plan):
                plans.append(plan)
    rng.shuffle(plans)
    captions: list[Caption] = []
    while len(captions) < NEW:
        plan = Plan(**vars(plans[len(captions) % len(plans)]))
        plan.background = rng.choice([b for b in BACKGROUNDS if b != plan.colour])
        captions.append(Caption(scenes.caption(plan, rng), plan, FIRST_SEED + TRAINED + len(captions)))
    return captions


class Calotype:
    """The program under test."""

    def __init__(self, program: Path, folder: Path) -> None:
        self.program, self.folder = program.resolve(), folder
        self.receipt: dict[str, Any] = {}

    def draw(self, prompt: str, seed: int, count: int = 1, guidance: float | None = None) -> Tensor:
        """Pictures of `count` consecutive seeds, (count, 3, H, W) in 0..1."""
        command: list[str | Path] = [self.program, "generate", prompt, "-o", self.folder / "picture.png", "--json"]
        command += ["--seed", str(seed), "--count", str(count)]
        command += [] if guidance is None else ["--guidance", str(guidance)]
        done = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        self.receipt = done["images"][0]["receipt"]
        files = [picture["file"] for picture in done["images"]]
        stack = np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files])
        return torch.from_numpy(stack).permute(0, 3, 1, 2).float() / 255


def background_of(x: Tensor) -> str:
    """The palette's colour nearest to the border's, of one picture (3, H, W)."""
    palette = torch.tensor(list(BACKGROUNDS.values())) / 255
    return list(BACKGROUNDS)[int((palette - border_colour(x[None])).norm(dim=1).argmin())]


def object_colour_of(x: Tensor, word: str) -> str | None:
    """The colour that most of the object has, of one picture (3, H, W); None where nothing differs from the background.

    For the word of a hue only what has a hue is looked at: outlines, eyes and highlights keep theirs when an object is
    turned.
    """
    x = x[None]
    mask = (x - border_colour(x)[..., None, None]).abs().amax(1) > 0.12
    if word in HUES:
        _, saturation, value = hsv(x)
        mask &= (saturation > 0.2) & (value > 0.2)
    return COLOURS[int(colour_shares(x, mask).argmax())] if bool(mask.any()) else None


@dataclass
class Judged:
    """Captions, a picture of each, and what is to be seen on them."""

    captions: list[Caption]
    verdicts: dict[str, Verdicts]
    backgrounds: list[str]
    colours: list[str | None]

    def background_obeyed(self) -> list[bool]:
        pairs = zip(self.captions, self.backgrounds, strict=True)
        return [c.plan.background == seen for c, seen in pairs if c.names_background]

    def colour_obeyed(self) -> list[bool]:
        pairs = zip(self.captions, self.colours, strict=True)
        return [c.plan.colour == seen for c, seen in pairs if c.names_colour]

    def details(self, labels: list[str]) -> list[dict[str, Any]]:
        return [
            {
                "caption": c.text,
                "seed": c.seed,
                "object": c.plan.label,
                "named": {judge: labels[int(self.verdicts[judge].ranks[k].argmin())] for judge in JUDGES},
                "rank": {judge: int(self.verdicts[judge].rank()[k]) for judge in JUDGES},
                "background": [c.plan.background if c.names_background else None, self.backgrounds[k]],
                "colour": [c.plan.colour if c.names_colour else None, self.colours[k]],
            }
            for k, c in enumerate(self.captions)
        ]


def look(judge: Judge, captions: list[Caption], x: Tensor) -> Judged:
    labels = [c.plan.label for c in captions]
    return Judged(
        captions,
        {which: judge.judge(x, labels, which) for which in JUDGES},
        [background_of(picture) for picture in x],
        [object_colour_of(picture, c.plan.colour or "") for c, picture in zip(captions, x, strict=True)],
    )


def distances(a: Tensor, b: Tensor) -> Tensor:
    """Root mean square differences of pictures at a quarter of their size, in levels of 255: (A, B)."""
    a, b = (F.avg_pool2d(x, 4).flatten(1) * 255 for x in (a, b))
    return torch.cdist(a, b) / a.shape[1] ** 0.5


def seeds_and_prompts(by_prompt: list[Tensor]) -> dict[str, float]:
    """How far apart pictures of one prompt are, and of different prompts."""
    upper = torch.triu_indices(SEEDS, SEEDS, 1)
    between_seeds = torch.cat([distances(x, x)[upper[0], upper[1]] for x in by_prompt])
    first = torch.cat([x[:1] for x in by_prompt])
    upper = torch.triu_indices(len(first), len(first), 1)
    between_prompts = distances(first, first)[upper[0], upper[1]]
    return {
        "between_seeds": float(between_seeds.mean()),
        "least_between_seeds": float(between_seeds.min()),
        "between_prompts": float(between_prompts.mean()),
    }


def memory(scenes: Scenes, captions: list[Caption], x: Tensor) -> dict[str, float]:
    """How near each picture is to the nearest training scene of its object, and how near another such scene is."""
    rng = random.Random(3)
    from_model, from_scene = [], []
    for caption, picture in zip(captions, x, strict=True):
        others = [
            Plan(**vars(caption.plan) | {"picture": i, "style": scenes.style[i]})
            for i, label in enumerate(scenes.label)
            if label == caption.plan.label
        ]
        others = [plan for plan in others if not plan.turned or scenes.hue[plan.picture] is not None]
        trained = scenes.draw(others * 8, rng)[0] / 2 + 0.5
        another = scenes.draw([caption.plan], rng)[0] / 2 + 0.5
        from_model.append(distances(picture[None], trained).min())
        from_scene.append(distances(another, trained).min())
    model, scene = torch.stack(from_model), torch.stack(from_scene)
    return {
        "nearest_training_scene": float(model.median()),
        "nearest_of_all": float(model.min()),
        "nearest_of_another_scene": float(scene.median()),
        "share_as_near_as_another_scene": float((model <= scene.median()).float().mean()),
    }


def percent(value: float) -> str:
    return f"{value:.0%}"


@dataclass
class Row:
    """A line of the model card's table; `drawn` is the same measure of drawn scenes."""

    measure: str
    target: str
    measured: str
    drawn: str
    chance: str
    pictures: str


def table(judged: dict[str, Judged], drawn: dict[str, Judged]) -> list[Row]:
    sets = (("trained", "training captions"), ("new", "new combinations"))
    rows = []
    for which, seen in (("colour", "in colour"), ("grey", "in grey"), ("edges", "from edges alone")):
        for name, said in sets:
            target = TARGETS[name, "colour" if which == "colour" else "shape"]
            model, scenes = (side[name].verdicts[which] for side in (judged, drawn))
            measured, best_possible, chance = (
                " / ".join(percent(within(best)) for best in (1, 5))
                for within in (model.within, scenes.within, model.within_exchanged)
            )
            measure, count = f"object, {said}, {seen}: top-1 / top-5", str(len(judged[name].captions))
            rows.append(Row(measure, f"top-5 ≥ {percent(target)}", measured, best_possible, chance, count))
    both = [[obeyed for seen in side.values() for obeyed in seen.background_obeyed()] for side in (judged, drawn)]
    rows.append(obedience("background colour obeyed", TARGETS["background"], both, len(BACKGROUNDS)))
    for name, said in sets:
        sides = [side[name].colour_obeyed() for side in (judged, drawn)]
        rows.append(obedience(f"object colour obeyed, {said}", TARGETS["object colour"], sides, len(COLOURS)))
    return rows


def obedience(measure: str, target: float, sides: list[list[bool]], choices: int) -> Row:
    model, scenes = (percent(sum(obeyed) / len(obeyed)) for obeyed in sides)
    return Row(measure, f"≥ {percent(target)}", model, scenes, percent(1 / choices), str(len(sides[0])))


def main() -> None:
    program, pictures, out = (Path(argument) for argument in sys.argv[1:4])
    torch.set_num_threads(1)
    scenes = Scenes(pictures)
    judge = Judge(scenes)
    asked = {"trained": trained_captions(scenes), "new": new_captions(scenes)}
    with tempfile.TemporaryDirectory() as folder:
        calotype = Calotype(program, Path(folder))
        made = {name: torch.cat([calotype.draw(c.text, c.seed) for c in asked[name]]) for name in asked}
        receipt = calotype.receipt
        by_prompt = [calotype.draw(c.text, c.seed, SEEDS) for c in asked["trained"][:SEEDS_OF]]
        guided = asked["trained"][:GUIDED]
        weak, strong = (torch.cat([calotype.draw(c.text, c.seed, guidance=g) for c in guided]) for g in (1.0, 5.0))

    rng = random.Random(4)
    real = {name: scenes.draw([c.plan for c in asked[name]], rng)[0] / 2 + 0.5 for name in asked}
    judged = {name: look(judge, asked[name], made[name]) for name in asked}
    drawn = {name: look(judge, asked[name], real[name]) for name in asked}
    rows = table(judged, drawn)

    apart = seeds_and_prompts(by_prompt)
    means = f"{apart['between_seeds']:.1f} / {apart['between_prompts']:.1f}"
    least = f"least between seeds {apart['least_between_seeds']:.1f}"
    measure = "distance between seeds / between prompts, levels of 255"
    rows.append(Row(measure, "seeds differ", f"{means}; {least}", "", "", f"{SEEDS_OF} × {SEEDS}"))
    labels = [c.plan.label for c in guided]
    scores = {which: [judge.judge(x, labels, which).reciprocal() for x in (weak, strong)] for which in JUDGES}
    for which in JUDGES:
        measure = f"object score (mean reciprocal rank, {which}), guidance 1 → 5"
        rows.append(Row(measure, "rises", " → ".join(f"{value:.2f}" for value in scores[which]), "", "", str(GUIDED)))
    change = float((weak - strong).abs().mean((1, 2, 3)).min()) * 255
    rows.append(Row("least difference of guidance 1 and 5, levels of 255", "> 0", f"{change:.1f}", "", "", str(GUIDED)))
    near = memory(scenes, asked["trained"], made["trained"])
    own, another = (f"{near[key]:.1f}" for key in ("nearest_training_scene", "nearest_of_another_scene"))
    rows.append(Row("distance to the nearest training scene, levels of 255", "", own, another, "", str(TRAINED)))

    print("| measure | target | measured | drawn scenes | chance | n |\n|---|---|---|---|---|---|")
    for row in rows:
        print("| " + " | ".join(vars(row).values()) + " |")
    report = {
        "model": {"name": receipt["model_name"], "files": receipt["model_files"]},
        "settings": {key: receipt[key] for key in ("sampler", "guidance", "size", "onnxruntime", "calotype")}
        | {"steps": len(receipt["sigmas"]) - 1},
        "table": [vars(row) for row in rows],
        "judge": ceiling(scenes, judge),
        "seeds": apart,
        "guidance": {"score": scores, "least_change": change},
        "memory": near,
        "pictures": {name: judged[name].details(judge.labels) for name in judged},
    }
    out.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
