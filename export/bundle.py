"""Writes the trained model as the bundle that calotype embeds, and as a diffusers folder to compare with.

    python bundle.py WORK BUNDLE DIFFUSERS

WORK is train.py's folder; weights are stored as f16. The diffusers folder is a StableDiffusionPipeline of the same
weights.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from pathlib import Path

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

import graph
import model

NAME = "calotype-emoji-1"
LICENCE = "MIT AND Apache-2.0"


def halves(module: nn.Module) -> dict[str, Tensor]:
    return {graph.stored_name(module, k): v.half().contiguous() for k, v in module.state_dict().items()}


def main() -> None:
    work, bundle, folder = (Path(argument) for argument in sys.argv[1:4])
    vae = model.vae()
    vae.load_state_dict(torch.load(work / "vae.pt"))
    trained = torch.load(work / "unet_ema.pt")
    scale = float(trained.pop("scale"))
    unet = model.unet()
    table = trained["text.embeddings.token_embedding.weight"]
    text = model.text_encoder(len(table))
    nn.ModuleDict({"unet": unet, "text": text}).load_state_dict({k: v.float() for k, v in trained.items()})

    shutil.rmtree(folder, ignore_errors=True)
    vae.register_to_config(scaling_factor=scale)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(work / "tokenizer.json"),
        bos_token="<|startoftext|>",
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        unk_token="[UNK]",
        model_max_length=model.CONTEXT_TOKENS,
    )
    scheduler = DDIMScheduler(
        **model.CURVE,
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=True,
        steps_offset=1,
    )
    pipeline = StableDiffusionPipeline(
        vae=vae.half(),
        text_encoder=text.half(),
        tokenizer=tokenizer,
        unet=unet.half(),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder, safe_serialization=True)
    # What ships is what the halves say.
    for module in (vae, text, unet):
        module.float()

    weights = bundle / "weights"
    shutil.rmtree(weights, ignore_errors=True)
    shutil.rmtree(bundle / "graphs", ignore_errors=True)
    weights.mkdir(parents=True)
    save_file(halves(text), weights / "text_encoder.safetensors")
    save_file(halves(unet), weights / "unet.safetensors")
    save_file(halves(vae), weights / "vae.safetensors")
    shutil.copy(work / "tokenizer.json", bundle / "tokenizer.json")
    components = {}
    for name, module, file in (
        ("text_encoder", text, "text_encoder"),
        ("unet", unet, "unet"),
        ("vae_encoder", vae, "vae"),
        ("vae_decoder", vae, "vae"),
    ):
        stored = f"graphs/{name}.onnx.gz"
        signature = graph.export(name, module, bundle / stored)
        components[name] = {"graph": stored, "weights": [f"weights/{file}.safetensors"], **signature}
    components["text_encoder"]["tokenizer"] = {
        "files": ["tokenizer.json"],
        "context": model.CONTEXT_TOKENS,
        "bos": 1,
        "eos": 0,
        "pad": 0,
    }
    files = sorted(p for p in bundle.rglob("*") if p.suffix in (".gz", ".safetensors") or p.name == "tokenizer.json")
    manifest = {
        "format": 1,
        "name": NAME,
        "licence": LICENCE,
        "components": components,
        "curve": {
            "betas": model.CURVE["beta_schedule"],
            "start": model.CURVE["beta_start"],
            "end": model.CURVE["beta_end"],
            "train_timesteps": model.CURVE["num_train_timesteps"],
            "spacing": "trailing",
            "steps_offset": 0,
        },
        "prediction": "v_prediction",
        "latents": {"channels": model.LATENT_CHANNELS, "factor_px": 16, "scale": scale, "shift": 0.0},
        "zero_negative": False,
        "defaults": {"size": [128, 128], "steps": 20, "guidance": 3.5, "sampler": "dpm++2m-karras"},
        "files": {
            str(p.relative_to(bundle)): {
                "len_bytes": p.stat().st_size,
                "sha256": hashlib.sha256(p.read_bytes()).hexdigest(),
            }
            for p in files
        },
    }
    (bundle / "calotype.json").write_text(json.dumps(manifest, indent=1) + "\n")
    print(f"{sum(p.stat().st_size for p in files) / 1e6:.1f} MB in {bundle}")


if __name__ == "__main__":
    main()
