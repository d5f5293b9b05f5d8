"""Writes tests/golden/control.*: what diffusers draws with narrow control networks beside the narrow models of
tests/golden/checkpoints, for the parity tests of control.

    pip download --no-deps -d WORK open_clip_torch==3.3.0
    python export/golden_control.py WORK/open_clip_torch-*.whl tests/golden

No weights are committed: every value follows from a tensor's name and shape (checkpoints/values.py), the component
being the network's name below. Everything runs in f32 on one CPU thread.

control.json.gz:
    provenance   command and versions
    networks     NAME -> {family, config: config.json, tensors: [[name, shape], ..],
                 original: [[name in the original checkpoint, name, shape there], ..] or null}
    pictures     [{name, family, scheduler: {class, config}, seed, size: [width, height], networks: [NAME, ..],
                 images: [{seed, width, height}, ..], arguments, latents}, ..]: `arguments` are the pipeline's own, of
                 which those of several networks are lists; an init image is {seed, width, height}; `latents` names
                 the final latents, f32, in control.safetensors
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import ControlNetModel
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from checkpoints import original, values
from checkpoints.families import DDIM, EULER, NEGATIVE, PROMPT, families
from golden_checkpoints import Json, keep, load, plain, provenance, shapes_of, write_folder, write_json
from golden_checkpoints import write_tokenizer_files as write_vocabulary

SEED = 33
STEPS = 3
SIZE = (64, 64)
HEUN = "HeunDiscreteScheduler"
# The fields of a U-Net's config that a control network has, too.
SHARED = [
    "act_fn",
    "addition_embed_type",
    "addition_time_embed_dim",
    "attention_head_dim",
    "block_out_channels",
    "cross_attention_dim",
    "down_block_types",
    "flip_sin_to_cos",
    "freq_shift",
    "in_channels",
    "layers_per_block",
    "norm_eps",
    "norm_num_groups",
    "projection_class_embeddings_input_dim",
    "transformer_layers_per_block",
    "use_linear_projection",
]
PLAIN = ["DownBlock2D"] * 3
# Per network its family, and what sets it apart.
NETWORKS: dict[str, tuple[str, Json]] = {
    "controlnet": ("sd15", {"conditioning_embedding_out_channels": [8, 16, 24, 32]}),
    "controlnet_2": (
        "sd15",
        {"conditioning_embedding_out_channels": [8, 8, 8, 8], "controlnet_conditioning_channel_order": "bgr"},
    ),
    "controlnet_pooled": ("sd15", {"global_pool_conditions": True}),
    "controlnet_xl": ("sdxl", {}),
    "controlnet_xl_mid": ("sdxl", {"transformer_layers_per_block": [0, 0, 1]}),
    "controlnet_xl_small": ("sdxl", {"down_block_types": PLAIN, "mid_block_type": "UNetMidBlock2D"}),
}
GUIDED: Json = {"guidance_scale": 5.0, "negative_prompt": NEGATIVE}
UNGUIDED: Json = {"guidance_scale": 1.0}
SCALE, START, END = "controlnet_conditioning_scale", "control_guidance_start", "control_guidance_end"
# Name, sampler, networks and arguments of each picture.
PICTURES: list[tuple[str, str, list[str], Json]] = [
    ("normal", EULER, ["controlnet"], GUIDED | {SCALE: 0.8}),
    ("unguided", EULER, ["controlnet"], UNGUIDED | {SCALE: 0.8}),
    ("guess", EULER, ["controlnet"], GUIDED | {SCALE: 1.5, "guess_mode": True}),
    ("guess-unguided", DDIM, ["controlnet"], UNGUIDED | {SCALE: 1.0, "guess_mode": True}),
    ("window", EULER, ["controlnet"], GUIDED | {SCALE: 1.0, START: 0.3, END: 0.7}),
    ("heun", HEUN, ["controlnet"], GUIDED | {SCALE: 0.8}),
    ("bgr", EULER, ["controlnet_2"], GUIDED | {SCALE: 1.0}),
    ("pooled", EULER, ["controlnet_pooled"], GUIDED | {SCALE: 1.0}),
    ("two", EULER, ["controlnet", "controlnet_2"], GUIDED | {SCALE: [0.7, 0.4], START: [0.0, 0.3], END: [0.7, 1.0]}),
    ("img2img", EULER, ["controlnet"], GUIDED | {SCALE: 0.8, "strength": 0.7}),
    ("xl", EULER, ["controlnet_xl"], GUIDED | {SCALE: 0.8}),
    ("xl-mid", EULER, ["controlnet_xl_mid"], UNGUIDED | {SCALE: 0.8}),
    ("xl-small", EULER, ["controlnet_xl_small"], GUIDED | {SCALE: 0.8, "guess_mode": True}),
]


def network_of(name: str) -> tuple[ControlNetModel, Json]:
    """The network with the values of its name, and its record."""
    family_name, changes = NETWORKS[name]
    family = next(family for family in families() if family.name == family_name)
    shared = {key: family.unet[key] for key in SHARED if key in family.unet}
    config = {"_class_name": "ControlNetModel", "_diffusers_version": "0.24.0.dev0", **shared, **changes}
    with torch.device("meta"):
        module = ControlNetModel.from_config(config)
    assert isinstance(module, ControlNetModel)
    shapes = shapes_of(module)
    module.load_state_dict(values.state(name, shapes.items()), assign=True)
    rows = original_rows(shapes, family.unet) if family_name == "sd15" else None
    if rows is not None:
        check_single_file(module, rows)
    return module, {"family": family_name, "config": config, "tensors": list(shapes.items()), "original": rows}


def original_rows(shapes: dict[str, list[int]], unet: Json) -> list[list[Any]]:
    """The names of the original checkpoint, which stand behind `control_model.`, and the shapes there."""
    own = {name: shape for name, shape in shapes.items() if not name.startswith("controlnet_")}
    rows = []
    for name, shape, how, of in original.unet_rows(own, unet):
        assert how in ("same", "reshape") and len(of) == 1
        rows.append([name.replace("model.diffusion_model.", "control_model."), of[0].removeprefix("unet/"), shape])
    blocks = max(int(name.split(".")[2]) for name in shapes if name.startswith("controlnet_cond_embedding.blocks.")) + 1
    hints = ["conv_in", *(f"blocks.{number}" for number in range(blocks)), "conv_out"]
    layers = {f"controlnet_cond_embedding.{name}": f"input_hint_block.{2 * at}" for at, name in enumerate(hints)}
    layers["controlnet_mid_block"] = "middle_block_out.0"
    for name, shape in shapes.items():
        if name.startswith("controlnet_"):
            layer, kind = name.rsplit(".", 1)
            known = layers.get(layer) or f"zero_convs.{layer.removeprefix('controlnet_down_blocks.')}.0"
            rows.append([f"control_model.{known}.{kind}", name, shape])
    return rows


def check_single_file(module: ControlNetModel, rows: list[list[Any]]) -> None:
    """diffusers must read the original names as these very weights."""
    state = module.state_dict()
    with tempfile.TemporaryDirectory() as folder:
        module.save_config(folder)
        file = Path(folder) / "control.safetensors"
        save_file({name: state[of].reshape(shape).contiguous() for name, of, shape in rows}, file)
        read: Any = ControlNetModel.from_single_file(str(file), config=folder, local_files_only=True)
    loaded = read.state_dict()
    assert loaded.keys() == state.keys(), loaded.keys() ^ state.keys()
    assert all(torch.equal(value, state[name]) for name, value in loaded.items())


def draw(pipeline: Any, networks: dict[str, ControlNetModel], number: int, arrays: dict[str, Tensor]) -> Json:
    name, sampler, names, arguments = PICTURES[number]
    family = NETWORKS[names[0]][0]
    is_xl, is_img2img = family == "sdxl", "strength" in arguments
    kind = "XL" if is_xl else ""
    cls = getattr(diffusers, f"StableDiffusion{kind}ControlNet{'Img2Img' if is_img2img else ''}Pipeline")
    own = [networks[network] for network in names]
    controlled = cls.from_pipe(pipeline, controlnet=own if len(own) > 1 else own[0])
    controlled.set_progress_bar_config(disable=True)
    last = {"set_alpha_to_one": True} if sampler == DDIM else {}
    scheduler = getattr(diffusers, sampler).from_config(pipeline.published.config, **last)
    controlled.scheduler = scheduler
    width, height = SIZE
    images = [{"seed": 900 + at, "width": width, "height": height} for at in range(len(names))]
    pictures = [Image.fromarray(values.picture(**image)) for image in images]
    control = pictures if len(pictures) > 1 else pictures[0]
    given: Json = {"prompt": PROMPT, "num_inference_steps": STEPS, "width": width, "height": height, **arguments}
    recorded = dict(given)
    if is_img2img:
        recorded["image"] = {"seed": 950, "width": width, "height": height}
        given |= {"image": Image.fromarray(values.picture(**recorded["image"])), "control_image": control}
    else:
        given["image"] = control
    latents = controlled(**given, generator=torch.Generator("cpu").manual_seed(SEED), output_type="latent").images
    return {
        "name": name,
        "family": family,
        "scheduler": {"class": sampler, "config": plain(scheduler.config)},
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
    made = {name: network_of(name) for name in NETWORKS}
    networks = {name: module for name, (module, _) in made.items()}
    pictures = []
    with tempfile.TemporaryDirectory() as temporary:
        write_vocabulary(Path(wheel), Path(temporary) / "vocabulary")
        for family in families():
            if family.name not in ("sd15", "sdxl"):
                continue
            folder = Path(temporary) / family.name
            write_folder(family, Path(temporary) / "vocabulary", folder)
            pipeline = load(family, folder)
            pipeline.published = pipeline.scheduler
            for number, (_, _, names, _) in enumerate(PICTURES):
                if NETWORKS[names[0]][0] == family.name:
                    pictures.append(draw(pipeline, networks, number, arrays))
    versions = provenance("")
    versions["command"] = "python export/golden_control.py OPEN_CLIP_WHEEL tests/golden"
    record = {
        "provenance": versions,
        "networks": {name: record for name, (_, record) in made.items()},
        "pictures": pictures,
    }
    save_file(arrays, Path(out) / "control.safetensors")
    write_json(Path(out) / "control.json.gz", record)
    print(f"{len(pictures)} pictures")


if __name__ == "__main__":
    main()
