"""Writes what was trained as a diffusers folder: python -m second_edition.bundle PACK WORK DIFFUSERS

`calotype pack DIFFUSERS BUNDLE` makes a bundle of it. Beside it, as far as WORK has them: DIFFUSERS-lcm.safetensors and
the ControlNets' folders.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from safetensors.torch import save_file
from transformers import PreTrainedTokenizerFast

from second_edition import model
from second_edition.lora import Lora
from second_edition.train import load, read_pair, read_vae


def read_tokenizer(file: Path) -> PreTrainedTokenizerFast:
    """With the marks around a text that the model was trained with."""
    return PreTrainedTokenizerFast(
        tokenizer_file=str(file),
        bos_token="<|startoftext|>",
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        unk_token="[UNK]",
        model_max_length=model.CONTEXT_TOKENS,
    )


def main() -> None:
    pack, work, folder = (Path(argument) for argument in sys.argv[1:4])
    both, vae = read_pair(pack, work), read_vae(work)
    scale = (load(work, "model") or {})["scale"]
    vae.register_to_config(scaling_factor=float(scale))
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
        text_encoder=both["text"].half(),
        tokenizer=read_tokenizer(pack / "tokenizer.json"),
        unet=both["unet"].half(),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    shutil.rmtree(folder, ignore_errors=True)
    pipeline.save_pretrained(folder, safe_serialization=True)
    # As it was made; transformers writes it anew.
    shutil.copy(pack / "tokenizer.json", folder / "tokenizer" / "tokenizer.json")
    if (state := load(work, "lcm")) is not None:
        lora = Lora(both["unet"].float())
        lora.load_state_dict(state)
        named = {name: value.half().contiguous() for name, value in lora.published().items()}
        save_file(named, folder.with_name(f"{folder.name}-lcm.safetensors"))
    for kind in ("masks", "depth"):
        if (state := load(work, kind)) is not None:
            control = model.control_net(both["unet"].float())
            control.load_state_dict(state)
            control.to(torch.half).save_pretrained(folder.with_name(f"{folder.name}-{kind}"))


if __name__ == "__main__":
    main()
