"""Writes tests/golden/clip_skip.safetensors: the states of a small text encoder with random weights, as diffusers reads
them with `clip_skip`.

Run: python export/golden_clip_skip.py tests/golden/clip_skip.safetensors
The file has the encoder's weights under their names in transformers, token ids, and per number N of A1111's the states
that diffusers gives to a U-Net: `skip.N` as Stable Diffusion's pipeline does, where `clip_skip` is N - 1, and
`xl_skip.N` as Stable Diffusion XL's does, where it is N - 2; `None` for N = 2."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

LAYERS = 4
CONFIG: dict[str, Any] = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 32,
    "projection_dim": 16,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "max_position_embeddings": 8,
    "bos_token_id": 0,
    "eos_token_id": 31,
    "pad_token_id": 31,
}
IDS = [0, 5, 17, 3, 31, 31, 31, 31]


class Tokenizer:
    """Gives the same ids, whatever the text."""

    model_max_length = len(IDS)
    added_tokens_encoder: dict[str, int] = {}

    def tokenize(self, text: str) -> list[str]:
        """The words, among which textual inversion looks for its own."""
        return text.split()

    def __call__(self, *_: Any, **__: Any) -> Any:
        return SimpleNamespace(input_ids=torch.tensor([IDS]))


def states(pipeline: Any, encoder: Any, clip_skip: int | None, others: dict[str, Any]) -> torch.Tensor:
    """What `encode_prompt` of a class of pipelines gives with this encoder."""
    stub = object.__new__(pipeline)
    object.__setattr__(stub, "tokenizer", Tokenizer())
    object.__setattr__(stub, "text_encoder", encoder)
    object.__setattr__(stub, "_internal_dict", SimpleNamespace(force_zeros_for_empty_prompt=False))
    for name, value in others.items():
        object.__setattr__(stub, name, value)
    given = pipeline.encode_prompt(
        stub, "", device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False, clip_skip=clip_skip
    )
    return given[0][0].contiguous()


def main() -> None:
    torch.manual_seed(14)
    encoder = CLIPTextModelWithProjection(CLIPTextConfig(**CONFIG)).eval()
    for name, weight in encoder.named_parameters():
        # Larger than they are initialised, so that layers differ.
        scale = 1.0 if "norm" in name and name.endswith("weight") else 0.3
        weight.data = torch.randn_like(weight) * scale
    tensors = {name: weight.detach().contiguous() for name, weight in encoder.state_dict().items()}
    tensors["ids"] = torch.tensor([IDS])
    with torch.no_grad():
        for skip in range(1, LAYERS + 1):
            tensors[f"skip.{skip}"] = states(StableDiffusionPipeline, encoder, skip - 1, {})
        others = {"tokenizer": None, "tokenizer_2": Tokenizer(), "text_encoder": None, "text_encoder_2": encoder}
        for skip in range(2, LAYERS + 1):
            number = None if skip == 2 else skip - 2
            tensors[f"xl_skip.{skip}"] = states(StableDiffusionXLPipeline, encoder, number, others)
    tensors = {name: tensor for name, tensor in tensors.items() if "position_ids" not in name}
    save_file(tensors, sys.argv[1])


if __name__ == "__main__":
    main()
