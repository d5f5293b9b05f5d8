"""Time and memory of images on the CPU provider and on OpenVINO, by turns, and how far they are from 32-bit floats.

    python3 benches/providers.py target/release/calotype LIBRARY [--model MODEL] [--size WxH] [--steps N] [--rounds N]

LIBRARY is the libonnxruntime of PyPI's onnxruntime-openvino; all rows use it. Bundles of `--compute int8` and `qdq` are
packed beside it first. A row is the least of the rounds; each run is a process of its own.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import subprocess
import tempfile
import time
from pathlib import Path

from PIL import Image, ImageChops, ImageStat

PROMPT = "a red apple on a table"


def openvino(hint: str) -> str:
    """The provider that computes so exactly."""
    return f'openvino:load_config={{"CPU":{{"INFERENCE_PRECISION_HINT":"{hint}"}}}}'


def decibels(expected: Path, got: Path) -> float:
    """The ratio of peak to noise of one image to another."""
    with Image.open(expected) as first, Image.open(got) as second:
        difference = ImageChops.difference(first.convert("RGB"), second.convert("RGB"))
    square = sum(mean * mean for mean in ImageStat.Stat(difference).rms) / 3
    return 10 * math.log10(255 * 255 / square) if square else math.inf


def run(command: list[str]) -> tuple[str, float, float]:
    """What a command writes, and its wall and CPU seconds."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wall, after = time.monotonic() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: {done.stderr[-500:]}")
    return done.stdout, wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Runs all rows by turns and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("calotype")
    parser.add_argument("library")
    parser.add_argument("--model")
    parser.add_argument("--size")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    flags = parser.parse_args()
    source = [flags.model] if flags.model else []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for form in ("int8", "qdq"):
            run([flags.calotype, "pack", *source, str(folder / form), "--compute", form])
        own = ["-m", flags.model] if flags.model else []
        rows = {
            "cpu, f32": ("cpu", own),
            "cpu, int8": ("cpu", ["-m", str(folder / "int8")]),
            "openvino, f32": (openvino("f32"), own),
            "openvino, bf16": (openvino("bf16"), own),
            "openvino, qdq, rest bf16": (openvino("bf16"), ["-m", str(folder / "qdq")]),
        }
        found: dict[str, list[list[float]]] = {row: [] for row in rows}
        for _ in range(flags.rounds):
            for index, (row, (provider, model)) in enumerate(rows.items()):
                image = folder / f"{index}.png"
                command = [flags.calotype, "generate", PROMPT, "--seed", "1", "--steps", str(flags.steps), "--json"]
                command += ["--provider", provider, "--ort", flags.library, "-o", str(image), *model]
                # What trials compare with is found once, in the first round.
                command += ["--provider-cache", str(folder / "cache")]
                command += ["--size", flags.size] if flags.size else []
                said, wall, cpu = run(command)
                told = json.loads(said)
                seconds = told["images"][0]["seconds"]
                step = seconds["unet"] / flags.steps
                peak = told["memory"]["peak_bytes"] / 2**20
                found[row].append([step, seconds["vae_decoder"], told["seconds"]["open"], wall, cpu, peak])
        print("| | U-Net step, s | ratio | VAE, s | open, s | all, s | CPU, s | peak, MiB | dB |\n" + "|---" * 9 + "|")
        least = {row: [min(column) for column in zip(*runs, strict=True)] for row, runs in found.items()}
        for index, (row, (step, vae, opened, wall, cpu, peak)) in enumerate(least.items()):
            ratio, exact = step / least["cpu, f32"][0], decibels(folder / "0.png", folder / f"{index}.png")
            numbers = f"{step:.4f} | {ratio:.2f} | {vae:.3f} | {opened:.2f} | {wall:.2f} | {cpu:.2f} | {peak:.0f}"
            print(f"| {row} | {numbers} | {exact:.1f} |")


if __name__ == "__main__":
    main()
