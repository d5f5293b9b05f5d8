"""The names of the original files: what latent diffusion, SGM and OpenCLIP call the tensors of diffusers folders.

A row is [name, shape, how, of]: `how` the tensor is made and what it is made `of`, "component/diffusers name" each.
    same       the one tensor
    reshape    the one tensor, with the row's shape (1 x 1 convolutions that diffusers holds as matrices)
    transpose  the one matrix, transposed
    concat     several, one after the other in the first axis
    extra      nothing that diffusers knows: `of` is [dtype, fill], with fill "weights" (the value rule on component
               "extra" and the row's name), "arange" (0, 1, 2, ..) or "zeros"
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from checkpoints import values

Row = tuple[str, list[int], str, list[str]]
Shapes = Mapping[str, Sequence[int]]

TOKENS = 77

# What LatentDiffusion and its low scale model keep as buffers, each of one number per training timestep.
SCHEDULE_BUFFERS = [
    "alphas_cumprod",
    "alphas_cumprod_prev",
    "betas",
    "log_one_minus_alphas_cumprod",
    "posterior_log_variance_clipped",
    "posterior_mean_coef1",
    "posterior_mean_coef2",
    "posterior_variance",
    "sqrt_alphas_cumprod",
    "sqrt_one_minus_alphas_cumprod",
    "sqrt_recip_alphas_cumprod",
    "sqrt_recipm1_alphas_cumprod",
]

UNET_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
UNET_ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    # The converters that wrote the published LCM files do not know it and leave it as it is.
    "time_embedding.cond_proj": "time_embedding.cond_proj",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "class_embedding": "label_emb",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
VAE_PARTS = {"conv_shortcut": "nin_shortcut", "conv_norm_out": "norm_out"}
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
OPEN_CLIP_LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
OPEN_CLIP_ENDS = {
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm.weight": "ln_final.weight",
    "text_model.final_layer_norm.bias": "ln_final.bias",
}


def unet_name(name: str, config: Mapping[str, Any]) -> str:
    part, kind = name.rsplit(".", 1)
    if part in UNET_ENDS:
        return f"{UNET_ENDS[part]}.{kind}"
    layers = config["layers_per_block"]
    if m := re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d)\.(.+)", part):
        inner = UNET_RESNET[m[3]] if m[1] == "resnets" else m[3]
        index = 2 * int(m[2]) if m[1] == "resnets" else 2 * int(m[2]) + 1
        return f"middle_block.{index}.{inner}.{kind}"
    m = re.fullmatch(r"(down|up)_blocks\.(\d)\.(\w+)\.(\d)\.(.+)", part)
    assert m, f"U-Net: {name} has no original name"
    side, block, group, layer = m[1], int(m[2]), m[3], int(m[4])
    if side == "down":
        first = 1 + block * (layers + 1)
        place = f"input_blocks.{first + layer}"
        sampler = f"input_blocks.{first + layers}.0.op"
    else:
        first = block * (layers + 1)
        place = f"output_blocks.{first + layer}"
        attends = config["up_block_types"][block].startswith("CrossAttn")
        sampler = f"output_blocks.{first + layers}.{2 if attends else 1}.conv"
    match group:
        case "resnets":
            return f"{place}.0.{UNET_RESNET[m[5]]}.{kind}"
        case "attentions":
            return f"{place}.1.{m[5]}.{kind}"
        case "downsamplers" | "upsamplers":
            return f"{sampler}.{kind}"
    raise AssertionError(f"U-Net: {name} has no original name")


def vae_name(name: str, blocks: int) -> str:
    part, kind = name.rsplit(".", 1)
    part = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", part)
    part = re.sub(r"mid_block\.attentions\.0\.(.+)", lambda m: f"mid.attn_1.{VAE_ATTENTION[m[1]]}", part)
    part = re.sub(r"down_blocks\.(\d)", r"down.\1", part)
    part = re.sub(r"up_blocks\.(\d)", lambda m: f"up.{blocks - 1 - int(m[1])}", part)
    part = part.replace("resnets.", "block.").replace("samplers.0.conv", "sample.conv")
    side, _, last = part.rpartition(".")
    return ".".join(filter(None, (side, VAE_PARTS.get(last, last), kind)))


def unet_rows(shapes: Shapes, config: Mapping[str, Any]) -> list[Row]:
    prefix = "model.diffusion_model."
    return [(prefix + unet_name(n, config), list(s), "same", [f"unet/{n}"]) for n, s in shapes.items()]


def vae_rows(shapes: Shapes, blocks: int) -> list[Row]:
    rows: list[Row] = []
    for name, shape in shapes.items():
        matrix = ".attentions." in name and len(shape) == 2
        original = "first_stage_model." + vae_name(name, blocks)
        how = "reshape" if matrix else "same"
        rows.append((original, [*shape, 1, 1] if matrix else list(shape), how, [f"vae/{name}"]))
    return rows


def clip_rows(shapes: Shapes, component: str, prefix: str) -> list[Row]:
    rows: list[Row] = [(prefix + n, list(s), "same", [f"{component}/{n}"]) for n, s in shapes.items()]
    rows.append((f"{prefix}text_model.embeddings.position_ids", [1, TOKENS], "extra", ["I64", "arange"]))
    return rows


def open_clip_rows(shapes: Shapes, component: str, prefix: str, *, last_layer_unused: bool) -> list[Row]:
    """`last_layer_unused`: the file has one layer more than diffusers, and a projection that nothing reads."""
    rows: list[Row] = []
    layer_shapes: dict[str, list[int]] = {}
    layers = 0
    for name, shape in shapes.items():
        if name in OPEN_CLIP_ENDS:
            rows.append((prefix + OPEN_CLIP_ENDS[name], list(shape), "same", [f"{component}/{name}"]))
        elif name == "text_projection.weight":
            rows.append((f"{prefix}text_projection", list(shape)[::-1], "transpose", [f"{component}/{name}"]))
        elif m := re.fullmatch(r"text_model\.encoder\.layers\.(\d+)\.(.+)\.(weight|bias)", name):
            layer, part, kind = int(m[1]), m[2], m[3]
            layers = max(layers, layer + 1)
            if part in ("self_attn.k_proj", "self_attn.v_proj"):
                continue
            size, how, of = list(shape), "same", [f"{component}/{name}"]
            if part == "self_attn.q_proj":
                original = f"attn.in_proj_{kind}"
                size[0] *= 3
                how, of = "concat", [f"{component}/{name.replace('q_proj', x)}" for x in ("q_proj", "k_proj", "v_proj")]
            else:
                original = f"{OPEN_CLIP_LAYER[part]}.{kind}"
            layer_shapes[original] = size
            rows.append((f"{prefix}transformer.resblocks.{layer}.{original}", size, how, of))
        else:
            raise AssertionError(f"{component}: {name} has no OpenCLIP name")
    rows.append((f"{prefix}logit_scale", [], "extra", ["F32", "weights"]))
    if last_layer_unused:
        for original, size in layer_shapes.items():
            rows.append((f"{prefix}transformer.resblocks.{layers}.{original}", size, "extra", ["F32", "weights"]))
        width = layer_shapes["ln_1.weight"][0]
        rows.append((f"{prefix}text_projection", [width, width], "extra", ["F32", "weights"]))
    return rows


def schedule_rows(prefix: str = "") -> list[Row]:
    return [(prefix + name, [1000], "extra", ["F32", "weights"]) for name in SCHEDULE_BUFFERS]


def build(rows: Sequence[Row], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The file of these rows; `state` is keyed "component/diffusers name"."""
    tensors: dict[str, Tensor] = {}
    for name, shape, how, of in rows:
        match how:
            case "same":
                value = state[of[0]]
            case "reshape":
                value = state[of[0]].reshape(shape)
            case "transpose":
                value = state[of[0]].T
            case "concat":
                value = torch.cat([state[source] for source in of])
            case "extra":
                match of:
                    case ["F32", "weights"]:
                        value = values.tensor("extra", name, shape)
                    case ["I64", "arange"]:
                        value = torch.arange(math.prod(shape)).reshape(shape)
                    case ["I32", "zeros"]:
                        value = torch.zeros(shape, dtype=torch.int32)
        assert list(value.shape) == shape and name not in tensors, name
        tensors[name] = value.contiguous().clone()
    return tensors
