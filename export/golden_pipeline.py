"""Writes tests/golden/pipeline.*: what diffusers' StableDiffusionPipeline draws with the built-in model, for
tests/parity.rs.

    python export/golden_pipeline.py DIFFUSERS models/builtin tests/golden

DIFFUSERS is bundle.py's folder of the same weights, which is checked here tensor by tensor. Everything is computed in
f32 on the f16 weights. Each case is a prompt, a sampler and a guidance scale: its final latents are in
pipeline.safetensors, its picture in pipeline.png (a row per prompt, a column per sampler and scale), both in the order
of the cases in pipeline.json.
"""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
import transformers
from diffusers import StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import CLIPTextModel

# One seed for all, so that what tells the pictures apart is what they were asked for.
SEED = 7
# A divisor of 1000: with others diffusers' DDIM steps to timesteps between those of its own schedule.
STEPS = 10
PROMPTS = [
    "a red apple on a blue background",
    "a green cat on a pink background, 3d style",
    "ROCKET , black background",
    "two puppies & a naïve café: ½ price!",
    # Longer than the context: both must cut it at the same place.
    "a small yellow star and a big purple heart and a blue fish and a brown bear and a red balloon and a white ghost",
]
SAMPLERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "euler": (diffusers.EulerDiscreteScheduler, {}),
    "euler-a": (diffusers.EulerAncestralDiscreteScheduler, {}),
    "ddim": (diffusers.DDIMScheduler, {"clip_sample": False, "set_alpha_to_one": True}),
    "dpm++2m-karras": (diffusers.DPMSolverMultistepScheduler, {"use_karras_sigmas": True}),
}
NAMES = list(SAMPLERS)
SCALES = [1, 5]


def stored_name(module: nn.Module, name: str) -> str:
    """The name of a parameter in the files that people have: CLIP keeps a prefix that transformers 5 dropped."""
    return f"text_model.{name}" if isinstance(module, CLIPTextModel) else name


def check_weights(bundle: Path, files: dict[str, nn.Module]) -> None:
    """The bundle and the pipeline must hold the same numbers, or the golden files would accuse the innocent."""
    for names, module in files.items():
        stored = {k: v for file in names.split() for k, v in load_file(bundle / f"weights/{file}.safetensors").items()}
        loaded = {stored_name(module, name): value for name, value in module.state_dict().items()}
        assert stored.keys() == loaded.keys(), f"{names}: other names than the pipeline's"
        for name, value in stored.items():
            assert torch.equal(value.float(), loaded[name]), f"{names}: {name} is not the pipeline's"


@torch.no_grad()
def draw(pipeline: Any, prompt: str, sampler: str, scale: int) -> tuple[torch.Tensor, np.ndarray]:
    """Final latents (16, 8, 8) in f32 and the picture (128, 128, 3) in bytes."""
    scheduler, settings = SAMPLERS[sampler]
    config = {k: v for k, v in pipeline.model_scheduler.config.items() if not k.startswith("_")}
    keys = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "prediction_type", "timestep_spacing")
    pipeline.scheduler = scheduler(**{key: config[key] for key in keys}, **settings)
    # Without latents of ours the pipeline draws them, and the noise of its steps, from the one generator.
    latents = pipeline(
        prompt,
        num_inference_steps=STEPS,
        guidance_scale=float(scale),
        generator=torch.Generator("cpu").manual_seed(SEED),
        output_type="latent",
    ).images
    assert latents.dtype == torch.float32 and bool(latents.isfinite().all())
    decoded = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor).sample
    picture = pipeline.image_processor.postprocess(decoded, output_type="pil")[0]
    return latents[0], np.asarray(picture)


def main() -> None:
    folder, bundle, out = (Path(argument) for argument in sys.argv[1:4])
    torch.set_num_threads(1)
    diffusers.utils.logging.set_verbosity_error()
    transformers.logging.set_verbosity_error()
    pipeline: Any = StableDiffusionPipeline.from_pretrained(folder, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.model_scheduler = pipeline.scheduler
    modules = {"text_encoder": pipeline.text_encoder, "unet": pipeline.unet, "vae_encoder vae_decoder": pipeline.vae}
    check_weights(bundle, modules)
    manifest = json.loads((bundle / "calotype.json").read_text())

    latents, pictures, cases = [], [], []
    for prompt, sampler, scale in itertools.product(PROMPTS, NAMES, SCALES):
        z, picture = draw(pipeline, prompt, sampler, scale)
        latents.append(z)
        pictures.append(picture)
        cases.append({"prompt": prompt, "sampler": sampler, "guidance": scale})
    sheet = np.stack(pictures).reshape(len(PROMPTS), -1, *pictures[0].shape).transpose(0, 2, 1, 3, 4)
    height, width = sheet.shape[0] * sheet.shape[1], sheet.shape[2] * sheet.shape[3]
    Image.fromarray(sheet.reshape(height, width, 3)).save(out / "pipeline.png", optimize=True)
    save_file({"latents": torch.stack(latents)}, out / "pipeline.safetensors")
    golden = {
        "provenance": {
            "command": "python export/golden_pipeline.py DIFFUSERS models/builtin tests/golden",
            "diffusers": diffusers.__version__,
            "transformers": transformers.__version__,
            "torch": torch.__version__,
        },
        "model": {
            name: record["sha256"]
            for name, record in manifest["files"].items()
            if name.startswith("weights/") or name.endswith("tokenizer.json")
        },
        "seed": SEED,
        "steps": STEPS,
        "cases": cases,
    }
    (out / "pipeline.json").write_text(json.dumps(golden, indent=1, ensure_ascii=False) + "\n")
    print(f"{len(cases)} cases in {out}")


if __name__ == "__main__":
    main()
