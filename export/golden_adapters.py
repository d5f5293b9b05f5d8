"""Writes tests/golden/adapters/lora.json: what LoRA files make of a model's weights, for tests/adapter.rs.

Run: python export/golden_adapters.py > tests/golden/adapters/lora.json
The models are tiny, and their weights and the files' tensors are functions of their names (see `values`), so that only
names and shapes are kept, and of each weight that a file changes its norm and some of its elements. Each case says
where its reference is from: diffusers' `load_lora_weights` and `fuse_lora`, PEFT's layers, or, for what neither of the
two reads, LyCORIS's modules, or its formulas written out in double precision.
"""

from __future__ import annotations

import copy
import functools
import json
import logging
import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import peft
import torch
import transformers
from lycoris.modules.boft import ButterflyOFTModule
from lycoris.modules.diag_oft import DiagOFTModule
from lycoris.modules.glora import GLoRAModule
from lycoris.modules.ia3 import IA3Module
from peft import BOFTConfig, IA3Config, LoHaConfig, LoKrConfig, LoraConfig, OFTConfig, inject_adapter_in_model
from safetensors.torch import save_file

PERIOD = 65521
SAMPLES = 16
STRIDE = 7919

Tensors = dict[str, torch.Tensor]
Weights = dict[str, Tensors]


def values(component: str, name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Normal values of a generator that is seeded with the name (FNV-1a), scaled by what the tensor is."""
    seed = 2166136261
    for byte in f"{component}/{name}".encode():
        seed = (seed ^ byte) * 16777619 % 2**32
    count = math.prod(shape)
    base = torch.randn(min(count, PERIOD), generator=torch.Generator("cpu").manual_seed(seed))
    normal = base.repeat(count // len(base) + 1)[:count].reshape(shape)
    if len(shape) == 1 and name.endswith(".weight"):
        return 1 + 0.1 * normal
    if name.endswith("bias"):
        return 0.05 * normal
    if name.endswith(("token_embedding.weight", "position_embedding.weight", "class_embedding.weight")):
        return 0.5 * normal
    fan_in = math.prod(shape[1:])
    return normal * torch.tensor(1.0 / math.sqrt(fan_in), dtype=torch.float32)


def canonical(component: str, name: str) -> str:
    """The name in the files that people have; transformers 5 has left `text_model.` away."""
    name = name.replace(".base_layer.", ".")
    flattened = component.startswith("text") and not name.startswith(("text_model.", "text_projection."))
    return f"text_model.{name}" if flattened else name


def fill(component: str, model: torch.nn.Module) -> torch.nn.Module:
    with torch.no_grad():
        for name, weight in model.state_dict().items():
            if weight.is_floating_point():
                weight.copy_(values(component, canonical(component, name), tuple(weight.shape)))
    return model.eval()


def unet(**config: Any) -> torch.nn.Module:
    model = diffusers.UNet2DConditionModel(
        sample_size=8, block_out_channels=(32, 64), norm_num_groups=8, attention_head_dim=8, **config
    )
    return fill("unet", model)


def text_encoder(component: str, kind: type) -> torch.nn.Module:
    config = transformers.CLIPTextConfig(
        vocab_size=40,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        projection_dim=16,
        max_position_embeddings=16,
        bos_token_id=0,
        eos_token_id=1,
    )
    return fill(component, kind(config))


def sd() -> Any:
    """As Stable Diffusion 1: projections by 1x1 convolutions."""
    return diffusers.StableDiffusionPipeline(
        vae=None,
        text_encoder=text_encoder("text_encoder", transformers.CLIPTextModel),
        tokenizer=None,
        unet=unet(
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=32,
        ),
        scheduler=diffusers.EulerDiscreteScheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def sdxl() -> Any:
    return diffusers.StableDiffusionXLPipeline(
        vae=None,
        text_encoder=text_encoder("text_encoder", transformers.CLIPTextModel),
        text_encoder_2=text_encoder("text_encoder_2", transformers.CLIPTextModelWithProjection),
        tokenizer=None,
        tokenizer_2=None,
        unet=unet(
            layers_per_block=2,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=64,
            transformer_layers_per_block=(1, 2),
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=64,
        ),
        scheduler=diffusers.EulerDiscreteScheduler(),
    )


MODELS: dict[str, Callable[[], Any]] = {"sd": sd, "sdxl": sdxl}


def weights_of(pipeline: Any) -> Weights:
    return {
        component: {
            canonical(component, name): weight.detach().clone()
            for name, weight in getattr(pipeline, component).state_dict().items()
            if weight.is_floating_point() and ".lora_" not in name and ".hada_" not in name and ".lokr_" not in name
        }
        for component in ("unet", "text_encoder", "text_encoder_2")
        if getattr(pipeline, component, None) is not None
    }


class File:
    """A LoRA file in the making: shapes, and the few tensors whose values are given."""

    def __init__(self, model: str) -> None:
        self.weights = weights_of(MODELS[model]())
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.alphas: dict[str, float] = {}
        self.metadata: dict[str, str] = {}
        self.touched: set[tuple[str, str]] = set()

    def shape(self, component: str, module: str) -> tuple[int, ...]:
        return tuple(self.weights[component][f"{module}.weight"].shape)

    def product(self, component: str, module: str, rank: int, down: str, up: str) -> None:
        """`down` and `up` are the two names in the file."""
        outputs, inputs, *kernel = self.shape(component, module)
        self.touched.add((component, f"{module}.weight"))
        self.shapes[down] = (rank, inputs, *kernel)
        self.shapes[up] = (outputs, rank, *[1] * len(kernel))

    def kohya(self, prefix: str, component: str, module: str, rank: int, alpha: float | None, name: str = "") -> None:
        stem = f"{prefix}_{name or module.replace('.', '_')}"
        self.product(component, module, rank, f"{stem}.lora_down.weight", f"{stem}.lora_up.weight")
        if alpha is not None:
            self.alphas[f"{stem}.alpha"] = alpha

    def tensors(self) -> Tensors:
        tensors = {key: values("lora", key, shape) for key, shape in self.shapes.items()}
        return tensors | {key: torch.tensor(alpha) for key, alpha in self.alphas.items()}

    def described(self) -> dict[str, Any]:
        described: dict[str, Any] = {"shapes": self.shapes}
        if self.alphas:
            described["alphas"] = self.alphas
        if self.metadata:
            described["metadata"] = self.metadata
        return described


BLOCK = "down_blocks.0.attentions.0.transformer_blocks.0"
ATTENTION = [f"{BLOCK}.attn1.to_{x}" for x in ("q", "k", "v", "out.0")]
CROSS = [f"{BLOCK}.attn2.to_k", f"{BLOCK}.attn2.to_out.0"]
MLP = [f"{BLOCK}.ff.net.0.proj", f"{BLOCK}.ff.net.2"]
PROJECTIONS = ["down_blocks.0.attentions.0.proj_in", "up_blocks.1.attentions.1.proj_out"]
CONVOLUTIONS = [
    "conv_in",
    "conv_out",
    "down_blocks.0.resnets.0.conv1",
    "down_blocks.1.resnets.0.conv_shortcut",
    "down_blocks.0.downsamplers.0.conv",
    "up_blocks.0.upsamplers.0.conv",
    "mid_block.resnets.1.conv2",
    "mid_block.resnets.0.time_emb_proj",
    "time_embedding.linear_1",
]
LAYER = "text_model.encoder.layers.1"
TEXT_ATTENTION = [f"{LAYER}.self_attn.{x}_proj" for x in ("q", "k", "v", "out")]
TEXT_MLP = [f"{LAYER}.mlp.fc1", f"{LAYER}.mlp.fc2"]

# Stable Diffusion XL's modules, and what the original implementation calls them.
ORIGINAL = {
    "conv_in": "input_blocks_0_0",
    "conv_out": "out_2",
    "time_embedding.linear_1": "time_embed_0",
    "time_embedding.linear_2": "time_embed_2",
    "add_embedding.linear_1": "label_emb_0_0",
    "add_embedding.linear_2": "label_emb_0_2",
    "down_blocks.0.resnets.1.conv1": "input_blocks_2_0_in_layers_2",
    "down_blocks.0.downsamplers.0.conv": "input_blocks_3_0_op",
    "down_blocks.1.resnets.0.conv_shortcut": "input_blocks_4_0_skip_connection",
    "down_blocks.1.resnets.1.time_emb_proj": "input_blocks_5_0_emb_layers_1",
    "down_blocks.1.attentions.0.proj_in": "input_blocks_4_1_proj_in",
    "down_blocks.1.attentions.1.transformer_blocks.1.attn2.to_k": "input_blocks_5_1_transformer_blocks_1_attn2_to_k",
    "mid_block.resnets.0.conv2": "middle_block_0_out_layers_3",
    "mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj": "middle_block_1_transformer_blocks_0_ff_net_0_proj",
    "mid_block.resnets.1.conv1": "middle_block_2_in_layers_2",
    "up_blocks.0.attentions.2.transformer_blocks.0.attn1.to_q": "output_blocks_2_1_transformer_blocks_0_attn1_to_q",
    "up_blocks.0.attentions.0.transformer_blocks.1.attn1.to_out.0": (
        "output_blocks_0_1_transformer_blocks_1_attn1_to_out_0"
    ),
    "up_blocks.0.upsamplers.0.conv": "output_blocks_2_2_conv",
    "up_blocks.1.resnets.2.conv_shortcut": "output_blocks_5_0_skip_connection",
}


def by_diffusers(model: str, files: list[tuple[File, float]]) -> Weights:
    pipeline = MODELS[model]()
    for index, (file, _) in enumerate(files):
        with tempfile.TemporaryDirectory() as folder:
            save_file(file.tensors(), Path(folder) / "lora.safetensors", metadata=file.metadata or None)
            pipeline.load_lora_weights(folder, weight_name="lora.safetensors", adapter_name=f"file{index}")
    if len(files) == 1:
        pipeline.fuse_lora(lora_scale=files[0][1], components=list(weights_of(pipeline)))
    else:
        names = [f"file{index}" for index in range(len(files))]
        pipeline.set_adapters(names, [weight for _, weight in files])
        pipeline.fuse_lora(adapter_names=names, components=list(weights_of(pipeline)))
    return weights_of(pipeline)


def by_peft(model: str, file: File, weight: float, rename: Callable[[str], str], **configs: Any) -> Weights:
    """`configs` is one PEFT configuration per component; `rename` gives PEFT's name of a tensor of the file."""
    pipeline = MODELS[model]()
    tensors = {rename(key): value for key, value in file.tensors().items() if not key.endswith(".alpha")}
    for component, config in configs.items():
        module = getattr(pipeline, component)
        inject_adapter_in_model(config, module)
        state = module.state_dict()
        with torch.no_grad():
            for name, value in tensors.items():
                assert state[name].numel() == value.numel(), name
                state[name].copy_(value.reshape(state[name].shape))
        for layer in module.modules():
            if isinstance(layer, peft.tuners.tuners_utils.BaseTunerLayer):
                tuned: Any = layer
                tuned.scale_layer(weight)
                tuned.merge()
    return weights_of(pipeline)


def by_formula(model: str, changes: dict[str, Callable[[torch.Tensor], torch.Tensor]]) -> Weights:
    """`changes` maps tensors of the U-Net to what becomes of them, in double precision."""
    weights = copy.deepcopy(weights_of(MODELS[model]()))
    for name, change in changes.items():
        weights["unet"][name] = change(weights["unet"][name].double())
    return weights


def kohya_attention() -> tuple[str, str, list[tuple[File, float]], Weights]:
    file = File("sd")
    for module in ATTENTION + CROSS + MLP + PROJECTIONS:
        file.kohya("lora_unet", "unet", module, 4, 2.0)
    for module in TEXT_ATTENTION + TEXT_MLP:
        file.kohya("lora_te", "text_encoder", module, 4, 2.0)
    return "sd", "diffusers", [(file, 0.7)], by_diffusers("sd", [(file, 0.7)])


def kohya_convolutions() -> tuple[str, str, list[tuple[File, float]], Weights]:
    file = File("sd")
    for module in CONVOLUTIONS:
        file.kohya("lora_unet", "unet", module, 4, 1.0)
    return "sd", "diffusers", [(file, 1.0)], by_diffusers("sd", [(file, 1.0)])


def kohya_original() -> tuple[str, str, list[tuple[File, float]], Weights]:
    file = File("sdxl")
    for module, name in ORIGINAL.items():
        file.kohya("lora_unet", "unet", module, 4, 2.0, name)
    for module in TEXT_ATTENTION[::3] + TEXT_MLP[:1]:
        file.kohya("lora_te1", "text_encoder", module, 4, 2.0)
    for module in TEXT_ATTENTION[3:] + TEXT_MLP[1:]:
        file.kohya("lora_te2", "text_encoder_2", module, 4, 2.0)
    return "sdxl", "diffusers", [(file, -0.5)], by_diffusers("sdxl", [(file, -0.5)])


def peft_names(prefix: str = "") -> File:
    file = File("sd")
    ranks = [4, 4, 4, 2]
    modules = [("unet", module) for module in ATTENTION + PROJECTIONS[:1] + CONVOLUTIONS[2:4]]
    modules += [("text_encoder", module) for module in TEXT_ATTENTION[:2] + TEXT_MLP]
    for index, (component, module) in enumerate(modules):
        stem = f"{component}.{prefix}{module}"
        file.product(component, module, ranks[index % 4], f"{stem}.lora_A.weight", f"{stem}.lora_B.weight")
    return file


def peft_without_alpha() -> tuple[str, str, list[tuple[File, float]], Weights]:
    file = peft_names()
    return "sd", "diffusers", [(file, 1.0)], by_diffusers("sd", [(file, 1.0)])


def peft_with_metadata() -> tuple[str, str, list[tuple[File, float]], Weights]:
    file = File("sd")
    modules = [*ATTENTION, PROJECTIONS[0]]
    for module in modules:
        file.product("unet", module, 4, f"unet.{module}.lora_A.weight", f"unet.{module}.lora_B.weight")
    for module in TEXT_ATTENTION[:1] + TEXT_MLP:
        stem = f"text_encoder.{module}"
        file.product("text_encoder", module, 4, f"{stem}.lora_A.weight", f"{stem}.lora_B.weight")
    settings = {
        "unet.r": 4,
        "unet.lora_alpha": 6,
        "unet.alpha_pattern": {"attn1.to_k": 1, "proj_in": 3},
        "unet.use_rslora": True,
        "unet.target_modules": modules,
        "text_encoder.r": 4,
        "text_encoder.lora_alpha": 2,
        "text_encoder.target_modules": ["q_proj", "fc1", "fc2"],
    }
    file.metadata = {"lora_adapter_metadata": json.dumps(settings)}
    return "sd", "diffusers", [(file, 0.5)], by_diffusers("sd", [(file, 0.5)])


def diffusers_names() -> tuple[str, str, list[tuple[File, float]], Weights]:
    file = File("sd")
    for module in ATTENTION + MLP:
        file.product("unet", module, 4, f"unet.{module}.lora.down.weight", f"unet.{module}.lora.up.weight")
    for module in TEXT_ATTENTION + TEXT_MLP:
        stem = f"text_encoder.{module}.lora_linear_layer"
        file.product("text_encoder", module, 4, f"{stem}.down.weight", f"{stem}.up.weight")
    return "sd", "diffusers", [(file, 1.25)], by_diffusers("sd", [(file, 1.25)])


def old_diffusers_names() -> tuple[str, str, list[tuple[File, float]], Weights]:
    file = File("sd")
    for module in ATTENTION:
        attention, name = module.removesuffix(".0").rsplit(".", 1)
        stem = f"unet.{attention}.processor.{name}_lora"
        file.product("unet", module, 4, f"{stem}.down.weight", f"{stem}.up.weight")
    for module in TEXT_ATTENTION:
        attention, name = module.removesuffix("_proj").rsplit(".", 1)
        stem = f"text_encoder.{attention}.to_{name}_lora"
        file.product("text_encoder", module, 4, f"{stem}.down.weight", f"{stem}.up.weight")
    return "sd", "diffusers", [(file, 1.0)], by_diffusers("sd", [(file, 1.0)])


def two_files() -> tuple[str, str, list[tuple[File, float]], Weights]:
    one, other = File("sd"), File("sd")
    for module in ATTENTION + PROJECTIONS:
        one.kohya("lora_unet", "unet", module, 4, 2.0)
    for module in ATTENTION[:2] + MLP:
        other.product("unet", module, 3, f"unet.{module}.lora_A.weight", f"unet.{module}.lora_B.weight")
    files = [(one, 0.8), (other, -0.3)]
    return "sd", "diffusers", files, by_diffusers("sd", files)


def dora() -> tuple[str, str, list[tuple[File, float]], Weights]:
    file = File("sd")
    modules = [*ATTENTION[:2], PROJECTIONS[0], CONVOLUTIONS[2]]
    for module in modules:
        stem = f"base_model.model.{module}"
        file.product("unet", module, 4, f"{stem}.lora_A.weight", f"{stem}.lora_B.weight")
        outputs, _, *kernel = file.shape("unet", module)
        shape = (1, outputs, 1, 1) if kernel else (outputs,)
        file.shapes[f"{stem}.lora_magnitude_vector"] = shape

    def rename(key: str) -> str:
        key = key.removeprefix("base_model.model.")
        if key.endswith("_vector"):
            return f"{key}.default.weight"
        return key.replace(".weight", ".default.weight")

    config = LoraConfig(r=4, lora_alpha=4, target_modules=modules, use_dora=True)
    return "sd", "peft", [(file, 1.0)], by_peft("sd", file, 1.0, rename, unet=config)


def dora_of_lycoris() -> tuple[str, str, list[tuple[File, float]], Weights]:
    """Magnitudes by outputs or by inputs, and a weight that goes part of the way."""
    file = File("sd")
    changes: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {}
    for index, module in enumerate([ATTENTION[0], MLP[0], CONVOLUTIONS[2], CONVOLUTIONS[3]]):
        file.kohya("lora_unet", "unet", module, 4, 2.0)
        stem = f"lora_unet_{module.replace('.', '_')}"
        shape = file.shape("unet", module)
        axis = index % 2
        magnitudes = tuple(size if place == axis else 1 for place, size in enumerate(shape))
        file.shapes[f"{stem}.dora_scale"] = magnitudes
        file.alphas[f"{stem}.alpha"] = 2.0

        def change(weight: torch.Tensor, stem: str = stem, axis: int = axis) -> torch.Tensor:
            tensors = {key: value.double() for key, value in file.tensors().items() if key.startswith(stem)}
            delta = tensors[f"{stem}.lora_up.weight"].flatten(1) @ tensors[f"{stem}.lora_down.weight"].flatten(1)
            tuned = weight + 2 / 4 * delta.reshape(weight.shape)
            others = [place for place in range(weight.dim()) if place != axis]
            tuned = tensors[f"{stem}.dora_scale"] * tuned / tuned.pow(2).sum(others, keepdim=True).sqrt()
            return weight + 0.6 * (tuned - weight)

        changes[f"{module}.weight"] = change
    return "sd", "formula", [(file, 0.6)], by_formula("sd", changes)


def loha() -> tuple[str, str, list[tuple[File, float]], Weights]:
    file = File("sd")
    modules = [ATTENTION[0], MLP[1], PROJECTIONS[0], CONVOLUTIONS[2], CONVOLUTIONS[4]]
    config = LoHaConfig(r=4, alpha=3, target_modules=modules, use_effective_conv2d=True)
    names = peft_shapes(file, config, ".hada_")
    return "sd", "peft", [(file, 0.9)], by_peft("sd", file, 0.9, names.__getitem__, unet=config)


def lokr() -> tuple[str, str, list[tuple[File, float]], Weights]:
    file = File("sd")
    modules = [ATTENTION[0], MLP[0], PROJECTIONS[0], CONVOLUTIONS[2], CONVOLUTIONS[6]]
    config = LoKrConfig(
        r=2, alpha=3, target_modules=modules, decompose_factor=4, use_effective_conv2d=True, decompose_both=False
    )
    names = peft_shapes(file, config, ".lokr_")
    # Two whole factors PEFT scales like others, but LyCORIS, which writes the files, does not: see `lycoris`.
    assert not any(name.endswith("lokr_w2.default") for name in names.values())
    return "sd", "peft", [(file, 0.9)], by_peft("sd", file, 0.9, names.__getitem__, unet=config)


def lokr_of_two_products() -> tuple[str, str, list[tuple[File, float]], Weights]:
    file = File("sd")
    modules = [MLP[0], MLP[1]]
    config = LoKrConfig(r=2, alpha=1, target_modules=modules, decompose_factor=8, decompose_both=True)
    names = peft_shapes(file, config, ".lokr_")
    return "sd", "peft", [(file, 1.0)], by_peft("sd", file, 1.0, names.__getitem__, unet=config)


def peft_shapes(file: File, config: Any, infix: str) -> dict[str, str]:
    """Takes a file's shapes from PEFT's layers; gives PEFT's names of its tensors."""
    model = MODELS["sd"]().unet
    inject_adapter_in_model(config, model)
    names = {}
    for name, parameter in model.named_parameters():
        if infix not in name:
            continue
        module, part, _ = name.rsplit(".", 2)
        stem = f"lora_unet_{module.replace('.', '_')}"
        file.shapes[f"{stem}.{part}"] = tuple(parameter.shape)
        file.alphas[f"{stem}.alpha"] = float(config.alpha)
        names[f"{stem}.{part}"] = name
    assert names
    return names


def lycoris() -> tuple[str, str, list[tuple[File, float]], Weights]:
    """What neither diffusers nor PEFT reads: a core in the middle, flat kernels, whole factors and differences."""
    file = File("sd")
    changes: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {}

    def tensor(key: str, *shape: int) -> torch.Tensor:
        file.shapes[key] = shape
        return values("lora", key, shape).double()

    # LoCon with a core.
    module = CONVOLUTIONS[4]
    stem = f"lora_unet_{module.replace('.', '_')}"
    up, mid, down = (
        tensor(f"{stem}.lora_up.weight", 32, 4, 1, 1),
        tensor(f"{stem}.lora_mid.weight", 4, 4, 3, 3),
        tensor(f"{stem}.lora_down.weight", 4, 32, 1, 1),
    )
    file.alphas[f"{stem}.alpha"] = 2.0
    locon = torch.einsum("oaxy,abkl,bixy->oikl", up, mid, down)
    changes[f"{module}.weight"] = lambda weight: weight + 0.7 * 2 / 4 * locon

    # LoHa whose kernels are flat.
    module = CONVOLUTIONS[2]
    stem = f"lora_unet_{module.replace('.', '_')}"
    one, two = (
        tensor(f"{stem}.hada_w{index}_a", 32, 4) @ tensor(f"{stem}.hada_w{index}_b", 4, 32 * 9) for index in (1, 2)
    )
    file.alphas[f"{stem}.alpha"] = 1.0
    changes[f"{module}.weight"] = lambda weight: weight + 0.7 * 1 / 4 * (one * two).reshape(weight.shape)

    # LoKr of two whole factors, which has no rank, so that alpha means nothing.
    module = MLP[1]
    stem = f"lora_unet_{module.replace('.', '_')}"
    whole = torch.kron(tensor(f"{stem}.lokr_w1", 4, 8), tensor(f"{stem}.lokr_w2", 8, 16))
    file.alphas[f"{stem}.alpha"] = 100000.0
    changes[f"{module}.weight"] = lambda weight: weight + 0.7 * whole

    # LoKr of a product and a whole kernel.
    module = CONVOLUTIONS[6]
    stem = f"lora_unet_{module.replace('.', '_')}"
    first = tensor(f"{stem}.lokr_w1_a", 8, 2) @ tensor(f"{stem}.lokr_w1_b", 2, 16)
    second = tensor(f"{stem}.lokr_w2", 8, 4, 3, 3)
    file.alphas[f"{stem}.alpha"] = 1.0
    kronecker = torch.kron(first[:, :, None, None], second)
    changes[f"{module}.weight"] = lambda weight: weight + 0.7 * 1 / 2 * kronecker

    # Whole differences, of weights, biases and normalisations.
    for module, key, name in [
        ("time_embedding.linear_2", "diff", "weight"),
        ("time_embedding.linear_2", "diff_b", "bias"),
        ("conv_norm_out", "w_norm", "weight"),
        ("conv_norm_out", "b_norm", "bias"),
    ]:
        shape = file.weights["unet"][f"{module}.{name}"].shape
        difference = tensor(f"lora_unet_{module.replace('.', '_')}.{key}", *shape)
        changes[f"{module}.{name}"] = functools.partial(torch.add, 0.7 * difference)
    return "sd", "formula", [(file, 0.7)], by_formula("sd", changes)


def layer_of(weight: torch.Tensor) -> torch.nn.Module:
    """A layer with a weight of the U-Net, as LyCORIS's modules want it."""
    if weight.dim() == 4:
        layer: torch.nn.Module = torch.nn.Conv2d(weight.shape[1], weight.shape[0], weight.shape[2], bias=False)
    else:
        layer = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight.data.copy_(weight)
    return layer


def multiplied() -> tuple[str, str, list[tuple[File, float]], Weights]:
    """Forms that multiply the weight, by LyCORIS's own modules: OFT, BOFT, GLoRA and IA3; and its scalar."""
    file, strength = File("sd"), 0.7
    changes: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {}

    def add(module: str, kind: Any, said: float | None, names: list[str], **settings: Any) -> None:
        stem = f"lora_unet_{module.replace('.', '_')}"
        weight = file.weights["unet"][f"{module}.weight"]
        tuned = kind("x", layer_of(weight), 1.0, **settings)
        named = {**dict(tuned.named_parameters()), **dict(tuned.named_buffers())}
        for name in names:
            shape = tuple(named[name].shape)
            file.shapes[f"{stem}.{name}"] = shape
            with torch.no_grad():
                named[name].copy_(values("lora", f"{stem}.{name}", shape))
        if said is not None:
            file.alphas[f"{stem}.alpha"] = said
        merged = tuned.get_merged_weight(strength)[0].detach().double().reshape(weight.shape)
        changes[f"{module}.weight"] = lambda _: merged

    add(ATTENTION[0], DiagOFTModule, 0.0, ["oft_blocks"], lora_dim=4)
    add(ATTENTION[1], DiagOFTModule, 0.01, ["oft_blocks", "rescale"], lora_dim=8, constraint=0.01, rescaled=True)
    add(CONVOLUTIONS[2], DiagOFTModule, 0.0, ["oft_blocks", "rescale"], lora_dim=4, rescaled=True)
    add(ATTENTION[2], ButterflyOFTModule, 0.0, ["oft_blocks"], lora_dim=4)
    add(CONVOLUTIONS[6], ButterflyOFTModule, 0.0, ["oft_blocks", "rescale"], lora_dim=4, rescaled=True)
    glora = ["a1.weight", "a2.weight", "b1.weight", "b2.weight"]
    add(ATTENTION[3], GLoRAModule, 2.0, glora, lora_dim=4, alpha=2.0)
    add(MLP[1], IA3Module, None, ["weight"])
    file.alphas[f"lora_unet_{MLP[1].replace('.', '_')}.on_input"] = 0.0
    add("down_blocks.0.downsamplers.0.conv", IA3Module, None, ["weight"], train_on_input=True)
    file.alphas["lora_unet_down_blocks_0_downsamplers_0_conv.on_input"] = 1.0

    # A product times a number.
    module = MLP[0]
    file.kohya("lora_unet", "unet", module, 4, 2.0)
    stem = f"lora_unet_{module.replace('.', '_')}"
    file.alphas[f"{stem}.scalar"] = 0.3
    tensors = file.tensors()
    product = tensors[f"{stem}.lora_up.weight"].double() @ tensors[f"{stem}.lora_down.weight"].double()
    changes[f"{module}.weight"] = lambda weight: weight + strength * 0.3 * 2 / 4 * product
    return "sd", "lycoris", [(file, strength)], by_formula("sd", changes)


def ia3() -> tuple[str, str, list[tuple[File, float]], Weights]:
    """IA3 as PEFT has it: of inputs for feed-forward layers, of outputs for others."""
    file, settings = File("sd"), {}
    modules = {ATTENTION[0]: (32, 1), MLP[1]: (1, 128)}
    for module, shape in modules.items():
        file.shapes[f"base_model.model.{module}.ia3_l"] = shape
    settings["unet"] = IA3Config(target_modules=list(modules), feedforward_modules=[MLP[1]])
    pipeline = MODELS["sd"]()
    inject_adapter_in_model(settings["unet"], pipeline.unet)
    state = pipeline.unet.state_dict()
    with torch.no_grad():
        for key, value in file.tensors().items():
            name = key.removeprefix("base_model.model.").removesuffix(".ia3_l")
            state[f"{name}.ia3_l.default"].copy_(value)
    for layer in pipeline.unet.modules():
        if isinstance(layer, peft.tuners.tuners_utils.BaseTunerLayer):
            tuned: Any = layer
            tuned.merge()
    weights = weights_of(pipeline)
    weights["unet"] = {name: weight for name, weight in weights["unet"].items() if ".ia3_l" not in name}
    return "sd", "peft", [(file, 1.0)], weights


def rotated_inputs() -> tuple[str, str, list[tuple[File, float]], Weights]:
    """OFT and BOFT as PEFT has them, of matrices and a convolution; one file each, for the one network has one kind."""
    linear, shared, convolution = ATTENTION[0], ATTENTION[1], CONVOLUTIONS[2]
    butterfly, scaled = ATTENTION[2], CONVOLUTIONS[6]
    file, pipeline = File("sd"), MODELS["sd"]()
    for adapter, config in {
        "one": OFTConfig(target_modules=[linear, convolution], r=0, oft_block_size=8),
        "two": OFTConfig(target_modules=[shared], r=0, oft_block_size=4, block_share=True),
        "three": BOFTConfig(target_modules=[butterfly, scaled], boft_block_size=4, boft_n_butterfly_factor=1),
    }.items():
        inject_adapter_in_model(config, pipeline.unet, adapter_name=adapter)
    layers = dict(pipeline.unet.named_modules())
    # PEFT makes more than one turn only where a CUDA compiler is at hand; its places need none.
    turned = layers[butterfly]
    turned.boft_R["three"] = torch.nn.Parameter(torch.zeros(3, 8, 4, 4))
    places = [turned.perm2mat(turned.block_butterfly_perm(32, 8 >> index, 2, 2)) for index in range(3)]
    with torch.no_grad():
        for module, names in {
            linear: ["oft_R.one.weight"],
            convolution: ["oft_R.one.weight"],
            shared: ["oft_R.two.weight"],
            butterfly: ["boft_R.three", "boft_s.three"],
            scaled: ["boft_R.three", "boft_s.three"],
        }.items():
            parameters = dict(layers[module].named_parameters())
            for name in names:
                shape = tuple(parameters[name].shape)
                kept = name.replace(".one", "").replace(".two", "").replace(".three", ".style")
                file.shapes[f"base_model.model.{module}.{kept}"] = shape
                parameters[name].copy_(values("lora", f"base_model.model.{module}.{kept}", shape))
    for layer in layers.values():
        if layer is not turned and isinstance(layer, peft.tuners.tuners_utils.BaseTunerLayer):
            tuned: Any = layer
            named = tuned._all_available_adapter_names()
            tuned.set_adapter([name for name in ("one", "two", "three") if name in named])
            tuned.merge()
    with torch.no_grad():
        matrix = torch.eye(32)
        for blocks, place in zip(turned.boft_R["three"], places, strict=True):
            matrix = place @ torch.block_diag(*turned.cayley_batch(blocks)) @ place.T @ matrix
        base = turned.get_base_layer().weight
        base.copy_((matrix @ base.T).T * turned.boft_s["three"])
    weights = weights_of(pipeline)
    weights["unet"] = {name: weight for name, weight in weights["unet"].items() if "oft_" not in name}
    return "sd", "peft", [(file, 1.0)], weights


def peft_bias() -> tuple[str, str, list[tuple[File, float]], Weights]:
    """The second layer with a bias, under an adapter's name."""
    file = File("sd")
    for module in [CONVOLUTIONS[2], MLP[1]]:
        stem = f"unet.{module}"
        file.product("unet", module, 4, f"{stem}.lora_A.my_style.weight", f"{stem}.lora_B.my_style.weight")
        file.shapes[f"{stem}.lora_B.my_style.bias"] = tuple(file.weights["unet"][f"{module}.bias"].shape)
    config = LoraConfig(r=4, lora_alpha=4, lora_bias=True, target_modules=[CONVOLUTIONS[2], MLP[1]])
    rename = lambda key: key.removeprefix("unet.").replace(".my_style.", ".default.")  # noqa: E731
    return "sd", "peft", [(file, 0.5)], by_peft("sd", file, 0.5, rename, unet=config)


CASES = {
    "kohya, attention": kohya_attention,
    "kohya, convolutions": kohya_convolutions,
    "kohya, original names": kohya_original,
    "peft": peft_without_alpha,
    "peft, metadata": peft_with_metadata,
    "diffusers": diffusers_names,
    "diffusers until 0.20": old_diffusers_names,
    "two files": two_files,
    "dora": dora,
    "dora of lycoris": dora_of_lycoris,
    "loha": loha,
    "lokr": lokr,
    "lokr of two products": lokr_of_two_products,
    "lycoris": lycoris,
    "multiplied": multiplied,
    "ia3": ia3,
    "peft, bias and adapter name": peft_bias,
    "peft, rotated inputs": rotated_inputs,
}


def summary(weight: torch.Tensor) -> list[float]:
    """The norm, then some of the elements."""
    flat = weight.double().flatten()
    samples = [flat[index * STRIDE % len(flat)] for index in range(SAMPLES)]
    return [float(f"{value:.9g}") for value in [flat.norm(), *samples]]


def main() -> None:
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    plain = {model: weights_of(make()) for model, make in MODELS.items()}
    cases = []
    for name, make in CASES.items():
        model, reference, files, fused = make()
        changed = {
            component: {
                tensor: summary(weight)
                for tensor, weight in tensors.items()
                if not torch.equal(weight.float(), plain[model][component][tensor])
            }
            for component, tensors in fused.items()
        }
        if reference == "diffusers":
            # It leaves away what it does not understand.
            touched = set().union(*(file.touched for file, _ in files))
            assert touched == {(component, tensor) for component in changed for tensor in changed[component]}, name
        cases.append(
            {
                "name": name,
                "model": model,
                "reference": reference,
                "files": [{"weight": weight, **file.described()} for file, weight in files],
                "changed": {component: tensors for component, tensors in changed.items() if tensors},
            }
        )
    shapes = {
        model: {
            component: {name: list(weight.shape) for name, weight in tensors.items()}
            for component, tensors in weights.items()
        }
        for model, weights in plain.items()
    }
    provenance = {
        "command": "python export/golden_adapters.py > tests/golden/adapters/lora.json",
        "diffusers": diffusers.__version__,
        "peft": peft.__version__,
        "torch": torch.__version__,
    }
    print('{"provenance": ' + json.dumps(provenance) + ',\n"models": ' + json.dumps(shapes, separators=(",", ":")))
    print(',\n"cases": [')
    print(",\n".join(json.dumps(case, separators=(",", ":")) for case in cases))
    print("]}")


if __name__ == "__main__":
    main()
