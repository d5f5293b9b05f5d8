"""What a budget changes in the image: every line of the memory contract, beside the same image without a budget.

    python benches/fidelity.py MODELS [--calotype PROGRAM] [--only TEXT] [--steps N] [--images FOLDER]

MODELS is the folder that `memory.py make` filled. A model named `NAME-smooth` is NAME with a VAE whose kernels are
low-pass filters, made here when it is missing: random kernels decode to noise, in which a seam would not show.

Prints a Markdown table: peak signal-to-noise ratio in dB, the largest difference in levels of 255, and the seam in
levels: by how much the largest mean step of the difference image between two neighbouring columns (or rows) is above
the median over all columns (or rows). A border between tiles that shows is a column whose step stands out; half a
level of 255 is less than the rounding of a pixel.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from memory import CONTRACT, NEGATIVE, PROMPT, SCALE, SEED, Command, markdown

SMOOTH = "-smooth"
GAIN = 2.2
"""Keeps the variance of what goes through low-pass kernels near 1."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path)
    parser.add_argument("--calotype", type=Path, default=Path("target/release/calotype"))
    parser.add_argument("--only", default="", help="lines whose MODEL-SIZE-BUDGET contains this")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--images", type=Path, help="where images are kept; MODELS/fidelity when absent")
    flags = parser.parse_args()
    images: Path = flags.images or flags.models / "fidelity"
    images.mkdir(parents=True, exist_ok=True)
    rows = []
    for case in CONTRACT:
        smooth = [] if case.model == "builtin" else [f"{case.model}{SMOOTH}"]
        for model in [case.model, *smooth]:
            name = f"{model}-{case.size}-{case.budget_mib}"
            if case.refused or flags.only not in name:
                continue
            if model.endswith(SMOOTH):
                make_smooth(flags.models / case.model, flags.models / model)
            whole = images / f"{model}-{case.size}.png"
            limited = images / f"{name}.png"
            for file, budget_mib in ((whole, None), (limited, case.budget_mib)):
                if not file.exists():
                    draw(flags.calotype, flags.models, model, case.size, budget_mib, flags.steps, file)
            row = [
                model,
                f"{case.size}x{case.size}",
                f"{case.budget_mib} MiB",
                *compare(pixels(whole), pixels(limited)),
            ]
            rows.append(row)
            print(" | ".join(row), flush=True)
    print(markdown(["model", "size", "budget", "PSNR", "largest difference", "pixels that differ", "seam"], rows))


def draw(program: Path, models: Path, model: str, size: int, budget_mib: int | None, steps: int, out: Path) -> None:
    command: Command = [program, "generate", PROMPT, "-n", NEGATIVE, "--seed", str(SEED), "--sampler", "euler"]
    command += ["--steps", str(20 if model == "builtin" else steps), "--guidance", str(SCALE)]
    command += ["--size", f"{size}x{size}", "-o", out]
    command += [] if model == "builtin" else ["-m", models / model]
    command += [] if budget_mib is None else ["--memory", f"{budget_mib}MiB"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def make_smooth(source: Path, folder: Path) -> None:
    """The model with low-pass kernels in its VAE; all other files are links to the source's. Of diffusers folders
    alone: of a bundle, `pack` the smooth folder."""
    from safetensors.numpy import load_file, save_file

    if folder.exists():
        return
    weights = Path("vae/diffusion_pytorch_model.safetensors")
    if not (source / weights).exists():
        raise SystemExit(
            f"{source}: expected a diffusers folder, got none; pack {folder} from the f16 model's smooth one"
        )
    part = folder.with_suffix(".part")
    shutil.rmtree(part, ignore_errors=True)
    for file in source.rglob("*"):
        link = part / file.relative_to(source)
        if file.is_file() and file.relative_to(source) != weights:
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(file.resolve())
    low_pass = np.outer([1, 2, 1], [1, 2, 1]) / 16
    random = np.random.default_rng(SEED)
    tensors = load_file(source / weights)
    for name, tensor in tensors.items():
        if tensor.ndim == 4 and tensor.shape[-1] == 3:
            mix = random.standard_normal(tensor.shape[:2]) * GAIN / tensor.shape[1] ** 0.5
            tensors[name] = (mix[:, :, None, None] * low_pass).astype(tensor.dtype)
    (part / weights).parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, part / weights, metadata={"format": "pt"})
    part.rename(folder)


def pixels(file: Path) -> NDArray[np.float64]:
    return np.asarray(Image.open(file).convert("RGB"), dtype=np.float64)


def compare(whole: NDArray[np.float64], limited: NDArray[np.float64]) -> list[str]:
    difference = limited - whole
    error = float((difference**2).mean())
    psnr = f"{10 * np.log10(255**2 / error):.1f} dB" if error else "equal"
    seam = max(seam_levels(difference, axis) for axis in (0, 1))
    share = float((difference != 0).any(axis=2).mean())
    return [psnr, f"{np.abs(difference).max():.0f}", f"{share:.1%}", f"{seam:.2f}"]


def seam_levels(difference: NDArray[np.float64], axis: int) -> float:
    steps = np.abs(np.diff(difference, axis=axis)).mean(axis=(1 - axis, 2))
    return float(steps.max() - np.median(steps))


if __name__ == "__main__":
    main()
