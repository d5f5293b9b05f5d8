"""Images by a deadline, while other programs take the CPU's time.

    python benches/deadline.py [--calotype PROGRAM] [--runs N] [--seed N] [--steps N] [--most SECONDS]

Each run asks the built-in model for more steps than there is time for, with a random deadline up to `--most`. Meanwhile
up to twice as many processes as there are cores compute for nothing, and are suspended and continued at random moments.
A run is late when the program ends after its deadline; a step's time is that of the run's denoising by its steps.
Refusals, which name a longer time than the deadline, are counted apart.

Prints a Markdown table; exits with 1 where more than one run in a hundred was late, or one by more than a step.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Result:
    limits: list[float] = field(default_factory=list)
    refused: int = 0
    whole: int = 0
    fewer: int = 0
    stopped: int = 0
    late: list[tuple[float, float]] = field(default_factory=list)
    """By how many seconds, and how many a step took."""
    left: list[float] = field(default_factory=list)
    """The part of the time that was not used."""


class Stress:
    """Processes that compute for nothing, some of them suspended, others from moment to moment."""

    def __init__(self, chance: random.Random) -> None:
        burn = [sys.executable, "-c", "while True: pass"]
        self.processes = [subprocess.Popen(burn) for _ in range(2 * (os.cpu_count() or 1))]
        self.chance = chance
        self.is_over = threading.Event()
        self.thread = threading.Thread(target=self.shuffle)
        self.thread.start()

    def shuffle(self) -> None:
        while not self.is_over.wait(self.chance.uniform(0.05, 0.8)):
            for process in self.processes:
                process.send_signal(self.chance.choice([signal.SIGSTOP, signal.SIGCONT]))

    def end(self) -> None:
        self.is_over.set()
        self.thread.join()
        for process in self.processes:
            process.kill()
            process.wait()


def draw(program: Path, out: Path, steps: int, limit: float, seed: int, result: Result) -> None:
    command: list[str | Path] = [program, "generate", "a red apple on a blue background"]
    command += ["--seed", str(seed), "--steps", str(steps), "--deadline", f"{limit:.3f}s", "-o", out, "--json"]
    started = time.monotonic()
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    took = time.monotonic() - started
    if ended.returncode == 2 and "deadline: expected at least " in ended.stderr:
        result.refused += 1
        return
    if ended.returncode != 0:
        sys.exit(f"expected an image, got exit code {ended.returncode}: {ended.stderr}")
    image = json.loads(ended.stdout)["images"][0]
    all_steps = image["receipt"]["steps"]
    taken = image["receipt"].get("stop_after", all_steps)
    result.limits.append(limit)
    result.left.append(max(0.0, 1 - took / limit))
    result.whole += taken == steps
    result.fewer += all_steps < steps
    result.stopped += taken < all_steps
    if took > limit:
        result.late.append((took - limit, image["seconds"]["denoising"] / taken))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calotype", type=Path, default=Path("target/release/calotype"))
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--most", type=float, default=4.0)
    args = parser.parse_args()
    program = args.calotype.resolve()
    chance = random.Random(args.seed)
    result = Result()
    with tempfile.TemporaryDirectory() as folder:
        stress = Stress(random.Random(args.seed + 1))
        try:
            for run in range(args.runs):
                limit = chance.uniform(0.2 * args.most, args.most)
                draw(program, Path(folder) / "out.png", args.steps, limit, run, result)
        finally:
            stress.end()
    drawn = len(result.limits)
    late = ", ".join(f"{by:.2f} s (a step took {step:.2f} s)" for by, step in result.late) or "none"
    unused = sorted(result.left)[drawn // 2] if drawn else 0.0
    print("| runs | refused | all steps | fewer steps | last steps left out | late | time not used (median) |")
    print("|---|---|---|---|---|---|---|")
    counts = f"{args.runs} | {result.refused} | {result.whole} | {result.fewer} | {result.stopped}"
    print(f"| {counts} | {late} | {unused:.0%} |")
    if 100 * len(result.late) > args.runs or any(by > step for by, step in result.late):
        sys.exit(1)


if __name__ == "__main__":
    main()
