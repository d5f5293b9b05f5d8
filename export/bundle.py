"""Writes the trained model as a diffusers folder, and has calotype pack that as the bundle that it embeds.

    python bundle.py WORK BUNDLE DIFFUSERS CALOTYPE

WORK is train.py's folder; weights are stored as f16. DIFFUSERS is written: a StableDiffusionPipeline. CALOTYPE is the
program, of any older build.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from torch import nn
from transformers import PreTrainedTokenizerFast

import model
from trained_words import trained_words

NAME = "calotype-emoji-1"
LICENCE = "MIT AND Apache-2.0"


# What a request gets where it does not say; a diffusers folder has no place for it.
DEFAULTS = {"size": [128, 128], "steps": 20, "guidance": 3.5, "sampler": "dpm++2m", "schedule": "karras"}


def read_tokenizer(file: Path) -> PreTrainedTokenizerFast:
    """The built-in model's, with the marks around a text that it was trained with."""
    return PreTrainedTokenizerFast(
        tokenizer_file=str(file),
        bos_token="<|startoftext|>",
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        unk_token="[UNK]",
        model_max_length=model.CONTEXT_TOKENS,
    )


def main() -> None:
    work, bundle, folder, calotype = (Path(argument) for argument in sys.argv[1:5])
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
    tokenizer = read_tokenizer(work / "tokenizer.json")
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
    # As it was made; transformers writes it anew.
    shutil.copy(work / "tokenizer.json", folder / "tokenizer" / "tokenizer.json")
    packed = work / "bundle"
    shutil.rmtree(packed, ignore_errors=True)
    subprocess.run([calotype, "pack", folder, packed, "--name", NAME, "--licence", LICENCE], check=True)
    manifest = json.loads((packed / "calotype.json").read_text())
    manifest["defaults"] = DEFAULTS
    manifest["trained_words"] = trained_words()
    (packed / "calotype.json").write_text(json.dumps(manifest, indent=1) + "\n")
    shutil.copytree(packed, bundle, dirs_exist_ok=True)


if __name__ == "__main__":
    main()
