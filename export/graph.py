"""Graphs without weights: a diffusers or transformers module becomes ONNX whose initializers are named as its state
dict and declared without data, for any safetensors file of those names to fill.

Attention, linear layers and SiLU are written as the operators that ONNX Runtime's CPU kernels are fastest
at; every graph is checked against PyTorch before it is kept.
"""

from __future__ import annotations

import copy
import gzip
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny, UNet2DConditionModel
from diffusers.models.activations import GEGLU
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn
from transformers import CLIPTextModel

OPSET = 20
# The place that calotype fills with the user's weights (src/graph.rs, OPEN_LOCATION).
OPEN_LOCATION = "weights"


class LinearOp(torch.autograd.Function):
    """x @ weight.T, with the weight as PyTorch stores it: no transposed copy is ever needed."""

    @staticmethod
    def forward(ctx: object, x: Tensor, weight: Tensor) -> Tensor:
        return F.linear(x, weight)

    @staticmethod
    def symbolic(g: Any, x: Any, weight: Any) -> torch.Value:
        y, sizes = g.op("com.microsoft::FusedMatMul", x, weight, transB_i=1), x.type().sizes()
        return y if sizes is None else y.setType(x.type().with_sizes([*sizes[:-1], weight.type().sizes()[0]]))


class AttentionOp(torch.autograd.Function):
    """Multi-head attention on (batch, tokens, width), flash attention on a CPU."""

    @staticmethod
    def forward(ctx: object, q: Tensor, k: Tensor, v: Tensor, heads: int, causal: bool) -> Tensor:
        q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal).transpose(1, 2).flatten(2)

    @staticmethod
    def symbolic(g: Any, q: torch.Value, k: torch.Value, v: torch.Value, heads: int, causal: bool) -> torch.Value:
        name = "com.microsoft::MultiHeadAttention"
        return g.op(name, q, k, v, num_heads_i=heads, unidirectional_i=int(causal)).setType(q.type())


class QuickGeluOp(torch.autograd.Function):
    """x * sigmoid(alpha * x): SiLU at alpha 1, CLIP's activation at 1.702."""

    @staticmethod
    def forward(ctx: object, x: Tensor, alpha: float) -> Tensor:
        return x * torch.sigmoid(alpha * x)

    @staticmethod
    def symbolic(g: Any, x: torch.Value, alpha: float) -> torch.Value:
        return g.op("com.microsoft::QuickGelu", x, alpha_f=alpha).setType(x.type())


class Linear(nn.Module):
    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias

    def forward(self, x: Tensor) -> Tensor:
        y = LinearOp.apply(x, self.weight)
        return y if self.bias is None else y + self.bias


class Silu(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return QuickGeluOp.apply(x, 1.0)


class AttentionProcessor:
    """diffusers' attention, on (batch, tokens, width) only: what U-Nets' transformer blocks call."""

    def __call__(self, attn: Attention, x: Tensor, encoder_hidden_states: Tensor | None = None, **_: object) -> Tensor:
        assert x.ndim == 3 and attn.group_norm is None and not attn.residual_connection
        context = x if encoder_hidden_states is None else encoder_hidden_states
        q, k, v = attn.to_q(x), attn.to_k(context), attn.to_v(context)
        return attn.to_out[0](AttentionOp.apply(q, k, v, attn.heads, False))


def rewrite(module: nn.Module) -> None:
    """Replaces layers by the forms above, in place; parameters and their names stay."""
    for name, child in list(module.named_children()):
        match child:
            case nn.Linear():
                setattr(module, name, Linear(child))
            case nn.SiLU():
                setattr(module, name, Silu())
            case Attention():
                rewrite(child)
                child.set_processor(AttentionProcessor())
            case GEGLU():
                rewrite(child)
            case _:
                rewrite(child)


class UnetForward(nn.Module):
    inputs = {
        "sample": {0: "batch", 2: "height", 3: "width"},
        "timestep": {},
        "encoder_hidden_states": {0: "batch", 1: "tokens"},
    }
    outputs = {"out_sample": {0: "batch", 2: "height", 3: "width"}}

    def __init__(self, unet: UNet2DConditionModel) -> None:
        super().__init__()
        self.module = unet

    def forward(self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor) -> Tensor:
        return self.module(sample, timestep, encoder_hidden_states, return_dict=False)[0]

    def examples(self) -> Sequence[Tensor]:
        c = self.module.config
        cells = c.sample_size
        states = torch.randn(2, 7, c.cross_attention_dim)
        return torch.randn(2, c.in_channels, cells, cells), torch.tensor(501.0), states


class EncoderForward(nn.Module):
    inputs = {"sample": {0: "batch", 2: "height_px", 3: "width_px"}}
    outputs = {"latent_sample": {0: "batch", 2: "height", 3: "width"}}

    def __init__(self, vae: AutoencoderTiny) -> None:
        super().__init__()
        self.module = vae

    def forward(self, sample: Tensor) -> Tensor:
        return self.module.encoder(sample)

    def examples(self) -> Sequence[Tensor]:
        return (torch.rand(2, 3, 128, 128) * 2 - 1,)


class DecoderForward(nn.Module):
    inputs = {"latent_sample": {0: "batch", 2: "height", 3: "width"}}
    outputs = {"sample": {0: "batch", 2: "height_px", 3: "width_px"}}

    def __init__(self, vae: AutoencoderTiny) -> None:
        super().__init__()
        self.module = vae

    def forward(self, latent_sample: Tensor) -> Tensor:
        return self.module.decoder(latent_sample)

    def examples(self) -> Sequence[Tensor]:
        return (torch.randn(2, self.module.config.latent_channels, 8, 8),)


class TextForward(nn.Module):
    inputs = {"input_ids": {0: "batch"}}
    outputs = {"last_hidden_state": {0: "batch"}}

    def __init__(self, text: CLIPTextModel) -> None:
        super().__init__()
        self.module = text

    def forward(self, input_ids: Tensor) -> Tensor:
        text = self.module
        x = text.embeddings.token_embedding(input_ids) + text.embeddings.position_embedding.weight
        for layer in text.encoder.layers:
            attention, y = layer.self_attn, layer.layer_norm1(x)
            q, k, v = attention.q_proj(y), attention.k_proj(y), attention.v_proj(y)
            x = x + attention.out_proj(AttentionOp.apply(q, k, v, attention.num_heads, True))
            x = x + layer.mlp.fc2(QuickGeluOp.apply(layer.mlp.fc1(layer.layer_norm2(x)), 1.702))
        return text.final_layer_norm(x)

    def examples(self) -> Sequence[Tensor]:
        c = self.module.config
        return (torch.randint(0, c.vocab_size, (2, c.max_position_embeddings)),)


FORWARDS: dict[str, type[UnetForward | EncoderForward | DecoderForward | TextForward]] = {
    "text_encoder": TextForward,
    "unet": UnetForward,
    "vae_encoder": EncoderForward,
    "vae_decoder": DecoderForward,
}


def stored_name(module: nn.Module, name: str) -> str:
    """The name of a parameter in the files that people have: CLIP keeps a prefix that transformers 5 dropped."""
    return f"text_model.{name}" if isinstance(module, CLIPTextModel) else name


@torch.no_grad()
def export(component: str, module: nn.Module, file: Path) -> dict[str, dict[str, dict[str, object]]]:
    """Writes the gzipped graph of a component of a model and returns its signature, as manifests hold it.

    The graph does not depend on the module's values.
    """
    wrapped = FORWARDS[component](copy.deepcopy(module).eval())
    for parameter in wrapped.parameters():
        # The exporter keeps one of several parameters that are equal, as ones, zeros and twins are.
        parameter.add_(torch.randn_like(parameter) * 1e-3)
    examples = wrapped.examples()
    want = wrapped(*examples)
    rewrite(wrapped)
    buffer: Any = io.BytesIO()
    torch.onnx.export(
        wrapped,
        tuple(examples),
        buffer,
        input_names=list(wrapped.inputs),
        output_names=list(wrapped.outputs),
        dynamic_axes={**wrapped.inputs, **wrapped.outputs},
        opset_version=OPSET,
        do_constant_folding=False,
        dynamo=False,
        custom_opsets={"com.microsoft": 1},
    )
    model = onnx.load_from_string(buffer.getvalue())
    # The exporter loses track of some fixed sizes: state the output's signature outright.
    for value, axes in zip(model.graph.output, wrapped.outputs.values(), strict=True):
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            if axis in axes:
                dim.dim_param = axes[axis]
            else:
                dim.dim_value = want.shape[axis]

    got = onnxruntime.InferenceSession(model.SerializeToString()).run(
        None, {name: np.asarray(x) for name, x in zip(wrapped.inputs, examples, strict=True)}
    )[0]
    error = float(np.linalg.norm(got - want.numpy()) / np.linalg.norm(want.numpy()))
    assert error < 1e-5, f"{file}: the graph differs from PyTorch by {error:.1e}"

    # Constants are initializers to ONNX Runtime anyway; as nodes they cost it a third of the time to open a graph.
    for node in [node for node in model.graph.node if node.op_type == "Constant"]:
        tensor = model.graph.initializer.add()
        tensor.CopyFrom(node.attribute[0].t)
        tensor.name = node.output[0]
        model.graph.node.remove(node)

    state = {f"module.{name}": stored_name(module, name) for name in module.state_dict()}
    renamed = {}
    for tensor in model.graph.initializer:
        if tensor.name in state:
            renamed[tensor.name] = state[tensor.name]
            tensor.name = state[tensor.name]
            for field in ("raw_data", "float_data"):
                tensor.ClearField(field)
            tensor.data_location = onnx.TensorProto.EXTERNAL
            tensor.external_data.add(key="location", value=OPEN_LOCATION)
    for node in model.graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
        node.doc_string = ""
    for node in model.graph.node:
        merged = node.op_type == "Identity" and node.input[0] in renamed.values()
        assert not merged, f"{file}: {node.input[0]} would stand for another parameter too"
    largest = max(model.graph.initializer, key=lambda t: len(t.raw_data))
    assert len(largest.raw_data) < 1024, f"{file}: the weights of {largest.name} would stay in the graph"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(gzip.compress(model.SerializeToString(deterministic=True), 9, mtime=0))
    print(f"{file.name}: {len(model.graph.node)} nodes, {len(renamed)} parameters, error {error:.1e}")

    def ports(values: Sequence[onnx.ValueInfoProto]) -> dict[str, dict[str, object]]:
        types = {onnx.TensorProto.FLOAT: "F32", onnx.TensorProto.INT64: "I64"}
        return {
            v.name: {
                "dtype": types[v.type.tensor_type.elem_type],
                "dims": [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim],
            }
            for v in values
        }

    return {"inputs": ports(model.graph.input), "outputs": ports(model.graph.output)}
