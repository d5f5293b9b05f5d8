"""Writes tests/golden/t2i_adapter.*: what diffusers draws with narrow T2I-Adapters beside the narrow models of
tests/golden/checkpoints, for the parity tests of control.

    pip download --no-deps -d WORK open_clip_torch==3.3.0
    python export/golden_t2i_adapter.py WORK/open_clip_torch-*.whl tests/golden

The files are laid out as those of golden_control.py, whose control networks some pictures have beside an adapter: no
pipeline of diffusers takes both, so that there its ControlNet pipeline is given a U-Net that adds an adapter's features
too. The image of an adapter of one channel is `convert("L")` of the one that is recorded.
"""

from __future__ import annotations

import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import ControlNetModel, T2IAdapter
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from checkpoints import values
from checkpoints.families import EULER, PROMPT, families
from golden_checkpoints import Json, keep, load, plain, provenance, shapes_of, write_folder, write_json
from golden_checkpoints import write_tokenizer_files as write_vocabulary
from golden_control import GUIDED, SEED, SIZE, STEPS, UNGUIDED, network_of

LIGHT: Json = {"adapter_type": "light_adapter", "channels": [32, 64, 96], "num_res_blocks": 4}
FULL: Json = {"adapter_type": "full_adapter", "channels": [32, 64, 96, 96], "num_res_blocks": 2}
# Per adapter its family, and its configuration.
ADAPTERS: dict[str, tuple[str, Json]] = {
    "t2i_full": ("sd15", FULL),
    "t2i_light": ("sd15", LIGHT),
    "t2i_light_grey": ("sd15", LIGHT | {"in_channels": 1}),
    "t2i_sd2": ("sd21-base", FULL | {"channels": [64, 64, 128, 128]}),
    "t2i_xl": (
        "sdxl",
        FULL | {"adapter_type": "full_adapter_xl", "channels": [64, 64, 128, 128], "downscale_factor": 16},
    ),
}
SCALE, END = "adapter_conditioning_scale", "adapter_conditioning_factor"
# Latents of 9 x 5 cells, whose sides are halved to 5 x 3, 3 x 2 and 2 x 1.
ODD: Json = {"width": 72, "height": 40}
# Name, networks and arguments of each picture; a ControlNet stands first.
PICTURES: list[tuple[str, list[str], Json]] = [
    ("full", ["t2i_full"], GUIDED | {SCALE: 0.8}),
    ("light", ["t2i_light"], GUIDED | {SCALE: 0.9}),
    ("odd", ["t2i_full"], GUIDED | {SCALE: 1.0} | ODD),
    ("odd-light", ["t2i_light_grey"], UNGUIDED | {SCALE: 1.0} | ODD),
    ("two", ["t2i_full", "t2i_light"], GUIDED | {SCALE: [0.7, 0.4]}),
    ("beside", ["controlnet", "t2i_full"], GUIDED | {SCALE: [0.8, 0.6]}),
    ("sd2", ["t2i_sd2"], GUIDED | {SCALE: 1.0}),
    ("xl", ["t2i_xl"], GUIDED | {SCALE: 0.8}),
    ("xl-window", ["t2i_xl"], UNGUIDED | {SCALE: 1.0, END: 0.7}),
    ("xl-beside", ["controlnet_xl", "t2i_xl"], GUIDED | {SCALE: [0.8, 0.6]}),
]


def adapter_of(name: str) -> tuple[T2IAdapter, Json]:
    """The adapter with the values of its name, and its record."""
    family, changes = ADAPTERS[name]
    config: Json = {"_class_name": "T2IAdapter", "_diffusers_version": "0.17.0.dev0"}
    config |= {"downscale_factor": 8, "in_channels": 3}
    config |= changes
    with torch.device("meta"):
        module = T2IAdapter.from_config(config)
    assert isinstance(module, T2IAdapter)
    shapes = shapes_of(module)
    module.load_state_dict(values.state(name, shapes.items()), assign=True)
    rows = original_rows(shapes, config["num_res_blocks"], is_light=config["adapter_type"] == "light_adapter")
    return module, {"family": family, "config": config, "tensors": list(shapes.items()), "original": rows}


def original_rows(shapes: dict[str, list[int]], units: int, *, is_light: bool) -> list[list[Any]]:
    """The names of the files that were published first, as diffusers' convert_original_t2i_adapter.py reads them."""
    rows = []
    for name, shape in shapes.items():
        known = name.removeprefix("adapter.")
        if is_light:
            known = known.replace(".resnets.", ".body.")
        elif known.startswith("body."):
            _, stage, *rest = known.split(".")
            unit = int(rest.pop(1)) if rest[0] == "resnets" else 0
            inner = [part for part in rest if part != "resnets"]
            known = ".".join(["body", str(units * int(stage) + unit), *inner])
        rows.append([known, name, shape])
    return rows


def prepared(name: str, picture: Image.Image) -> Image.Image:
    return picture.convert("L") if ADAPTERS[name][1].get("in_channels") == 1 else picture


def unit_tensor(picture: Image.Image) -> Tensor:
    pipelines: Any = diffusers.pipelines.t2i_adapter.pipeline_stable_diffusion_adapter
    return pipelines._preprocess_adapter_image(picture, picture.height, picture.width)


def adding_features(forward: Any, features: list[Tensor], sample: Tensor, *arguments: Any, **named: Any) -> Any:
    """A U-Net's call with features for each of its images."""
    each = [feature.repeat(len(sample), 1, 1, 1) for feature in features]
    return forward(sample, *arguments, **named, down_intrablock_additional_residuals=each)


def draw(pipeline: Any, networks: dict[str, Any], number: int, arrays: dict[str, Tensor]) -> Json:
    name, names, arguments = PICTURES[number]
    own = [networks[network] for network in names]
    family = ADAPTERS[names[-1]][0]
    kind = "XL" if family == "sdxl" else ""
    size = {key: arguments.get(key, side) for key, side in zip(("width", "height"), SIZE, strict=True)}
    images = [{"seed": 940 + at, **size} for at in range(len(names))]
    pictures = [Image.fromarray(values.picture(**image)) for image in images]
    recorded: Json = {"prompt": PROMPT, "num_inference_steps": STEPS, **arguments, **size}
    given = dict(recorded)
    if isinstance(own[0], ControlNetModel):
        cls = getattr(diffusers, f"StableDiffusion{kind}ControlNetPipeline")
        drawn = cls.from_pipe(pipeline, controlnet=own[0])
        of_control, of_adapter = given.pop(SCALE)
        given |= {"image": pictures[0], "controlnet_conditioning_scale": of_control}
        features = [of_adapter * feature for feature in own[1](unit_tensor(prepared(names[1], pictures[1])))]
        forward = drawn.unet.forward
        drawn.unet.forward = partial(adding_features, forward, features)
    else:
        cls = getattr(diffusers, f"StableDiffusion{kind}AdapterPipeline")
        drawn = cls.from_pipe(pipeline, adapter=own if len(own) > 1 else own[0])
        shown = [prepared(network, picture) for network, picture in zip(names, pictures, strict=True)]
        given["image"] = shown if len(shown) > 1 else shown[0]
    drawn.set_progress_bar_config(disable=True)
    drawn.scheduler = getattr(diffusers, EULER).from_config(pipeline.published.config)
    latents = drawn(**given, generator=torch.Generator("cpu").manual_seed(SEED), output_type="latent").images
    if isinstance(own[0], ControlNetModel):
        drawn.unet.forward = forward
    return {
        "name": name,
        "family": family,
        "scheduler": {"class": EULER, "config": plain(drawn.scheduler.config)},
        "seed": SEED,
        "networks": names,
        "images": images,
        "arguments": recorded,
        "latents": keep(arrays, f"{name}.latents", latents[0]),
    }


@torch.no_grad()
def main() -> None:
    wheel, out = sys.argv[1:]
    torch.set_num_threads(1)
    diffusers.utils.logging.set_verbosity_error()
    transformers.logging.set_verbosity_error()
    arrays: dict[str, Tensor] = {}
    made: dict[str, tuple[Any, Json]] = {name: adapter_of(name) for name in ADAPTERS}
    made |= {name: network_of(name) for name in ("controlnet", "controlnet_xl")}
    networks = {name: module for name, (module, _) in made.items()}
    pictures = []
    with tempfile.TemporaryDirectory() as temporary:
        write_vocabulary(Path(wheel), Path(temporary) / "vocabulary")
        for family in families():
            own = [number for number, (_, names, _) in enumerate(PICTURES) if ADAPTERS[names[-1]][0] == family.name]
            if own:
                folder = Path(temporary) / family.name
                write_folder(family, Path(temporary) / "vocabulary", folder)
                pipeline = load(family, folder)
                pipeline.published = pipeline.scheduler
                pictures += [draw(pipeline, networks, number, arrays) for number in own]
    versions = provenance("")
    versions["command"] = "python export/golden_t2i_adapter.py OPEN_CLIP_WHEEL tests/golden"
    record = {
        "provenance": versions,
        "networks": {name: record for name, (_, record) in made.items()},
        "pictures": pictures,
    }
    save_file(arrays, Path(out) / "t2i_adapter.safetensors")
    write_json(Path(out) / "t2i_adapter.json.gz", record)
    print(f"{len(pictures)} pictures")


if __name__ == "__main__":
    main()
