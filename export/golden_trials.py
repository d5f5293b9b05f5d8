"""Writes models/builtin/golden.json: what PyTorch makes of the seeded inputs on which calotype tries a provider.

    python export/golden_trials.py models/builtin

The inputs are those of src/stage/seeded.rs for seed 0, everything is computed in f32 on the f16 weights. Of each output
are kept its length, its norm, and elements from all over it; a component is named by the SHA-256 of its weights, as
src/weights.rs computes it.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
import transformers
from safetensors.torch import load_file
from torch import nn

import model
from bundle import read_tokenizer

PROMPT = "a photograph of a red fox that sits on a mossy stone in a forest, soft morning light"
SAMPLES = 64
GOLDEN_RATIO = 0x9E3779B97F4A7C15
DTYPES = {torch.float16: "F16", torch.float32: "F32"}


def noise(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator("cpu").manual_seed(seed))


def sha256(weights: dict[str, torch.Tensor]) -> str:
    """Of each tensor its name, type and shape, and its data."""
    digest = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        digest.update(f"{name} {DTYPES[tensor.dtype]}{list(tensor.shape)}".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def sampled(output: torch.Tensor) -> dict[str, Any]:
    values = output.numpy().ravel()
    assert values.dtype == np.float32 and bool(np.isfinite(values).all())
    places = [((index * GOLDEN_RATIO % 2**64) * len(values)) >> 64 for index in range(SAMPLES)]
    norm = math.sqrt(float((values.astype(np.float64) ** 2).sum()))
    return {"len": len(values), "norm": norm, "samples": [float(values[place]) for place in places]}


def load(module: nn.Module, weights: dict[str, torch.Tensor]) -> None:
    """All of the weights, by whichever of a text encoder's two names they go."""
    known = module.state_dict().keys()
    strip = "text_model."
    loaded = {name if name in known else name.removeprefix(strip): tensor.float() for name, tensor in weights.items()}
    assert loaded.keys() <= known, sorted(loaded.keys() - known)
    missing = module.load_state_dict(loaded, strict=False).missing_keys
    # The halves of a VAE are files of their own.
    halves = ("encoder.", "decoder.")
    assert all(name.startswith(halves) or name.endswith("position_ids") for name in missing), missing


@torch.no_grad()
def main() -> None:
    bundle = Path(sys.argv[1])
    torch.set_num_threads(1)
    manifest = json.loads((bundle / "calotype.json").read_text())
    names = ("text_encoder", "unet", "vae_encoder", "vae_decoder")
    weights = {name: load_file(bundle / f"weights/{name}.safetensors") for name in names}

    tokenizer = read_tokenizer(bundle / "text_encoder/tokenizer.json")
    ids = tokenizer(PROMPT, padding="max_length", truncation=True, return_tensors="pt").input_ids
    tables = [tensor for name, tensor in weights["text_encoder"].items() if name.endswith("token_embedding.weight")]
    text = model.text_encoder(len(tables[0])).eval()
    unet, vae = model.unet().eval(), model.vae().eval()
    for name, module in (("text_encoder", text), ("unet", unet), ("vae_encoder", vae), ("vae_decoder", vae)):
        load(module, weights[name])

    cells, channels = model.LATENT_CELLS, model.LATENT_CHANNELS
    latents = noise(0, 1, channels, cells, cells)
    timestep = torch.tensor([manifest["curve"]["train_timesteps"] // 2])
    states = noise(1, 1, model.CONTEXT_TOKENS, model.TEXT_WIDTH)
    side_px = manifest["defaults"]["size"][0]
    picture = (noise(0, 1, 3, side_px, side_px) / 2).clamp(-1, 1)
    scale, shift = manifest["latents"]["scale"], manifest["latents"].get("shift", 0.0)
    outputs = {
        "text_encoder": text(ids).last_hidden_state,
        "unet": unet(latents, timestep, states).sample,
        "vae_encoder": vae.encode(picture).latents,
        "vae_decoder": vae.decode(latents / scale + shift).sample,
    }
    golden = {
        "provenance": {
            "command": "python export/golden_trials.py models/builtin",
            "diffusers": diffusers.__version__,
            "transformers": transformers.__version__,
            "torch": torch.__version__,
        },
        "components": {sha256(weights[name]): [sampled(output)] for name, output in outputs.items()},
    }
    (bundle / "golden.json").write_text(json.dumps(golden, indent=1) + "\n")
    print(f"{len(outputs)} components in {bundle / 'golden.json'}")


if __name__ == "__main__":
    main()
