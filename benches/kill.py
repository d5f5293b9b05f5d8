"""Nothing lost: runs that are killed at random moments, or in the middle of a write, and then continue.

    python benches/kill.py [--calotype PROGRAM] [--kills N] [--torn N] [--seed N] [--work generate|batch]

Each row begins a work, kills its process (SIGKILL) after a random time, and runs the same command, or `calotype resume`
where there is a journal, until it ends; half of these runs are killed as well. The work's images must then be, byte for
byte, those of a run that nobody killed, and no journal or unfinished file may be left. `--torn` rows kill in the
middle of a write to a file instead, of which only half reaches the file: a library that is loaded before the C library
(LD_PRELOAD, compiled by `cc`) does that. What the kernel had not written to the disk when the power fails is not tried.

Prints a Markdown table; exits with 1 where anything was lost.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

PROMPT = "a red apple on a blue background"
STEPS = 30
TORN = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

/* The write to a file that is cut in half, counted from 1; the process ends there. */
static long left = -1;

ssize_t write(int file, const void *bytes, size_t count) {
    static ssize_t (*next)(int, const void *, size_t);
    if (!next) next = (ssize_t (*)(int, const void *, size_t))dlsym(RTLD_NEXT, "write");
    if (left < 0) {
        const char *at = getenv("TORN_AT");
        left = at ? atol(at) : 0;
    }
    struct stat found;
    if (left > 0 && count > 1 && fstat(file, &found) == 0 && S_ISREG(found.st_mode) && --left == 0) {
        next(file, bytes, count / 2);
        kill(getpid(), SIGKILL);
    }
    return next(file, bytes, count);
}
"""
"""More writes than a work of one image makes to its files."""
MOST_WRITES = 12


@dataclass
class Tally:
    """What became of the rows of a work."""

    rows: int = 0
    kills: int = 0
    resumed: int = 0
    problems: list[str] = field(default_factory=list)


class Work:
    """A command whose images are known."""

    def __init__(self, name: str, program: Path, folder: Path) -> None:
        self.name, self.program, self.folder = name, program, folder
        started = time.monotonic()
        self.run(folder / "whole", None, {})
        self.seconds = time.monotonic() - started
        self.whole = self.images(folder / "whole")

    def command(self, desk: Path) -> list[str | Path]:
        """The command that begins the work, or continues it."""
        if self.name == "batch":
            return [self.program, "batch", desk / "lines.jsonl", "-o", desk / "images"]
        if (desk / "journal" / "job").exists():
            return [self.program, "resume", desk / "journal"]
        command: list[str | Path] = [self.program, "generate", PROMPT, "--steps", str(STEPS), "--seed", "5"]
        return [*command, "--count", "2", "--journal", desk / "journal", "-o", desk / "images" / "image.png"]

    def run(self, desk: Path, kill_after: float | None, environment: dict[str, str]) -> tuple[bool, str]:
        """Runs it once: whether it ended by itself, and what it said."""
        (desk / "images").mkdir(parents=True, exist_ok=True)
        lines = [{"prompt": PROMPT, "steps": STEPS, "seed": seed} for seed in (5, 6)]
        (desk / "lines.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        process = subprocess.Popen(
            self.command(desk),
            env={**os.environ, **environment},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            said = process.communicate(timeout=kill_after)[1]
        except subprocess.TimeoutExpired:
            process.kill()
            said = process.communicate()[1]
        if process.returncode not in (0, -9):
            raise SystemExit(f"{self.name}: ended with {process.returncode}: {said}")
        return process.returncode == 0, said

    def images(self, desk: Path) -> dict[str, str]:
        """The hashes of its images by their names."""
        files = sorted((desk / "images").glob("*.png"))
        return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}

    def left(self, desk: Path) -> list[str]:
        """What is left beside the images and the results."""
        names = {file.relative_to(desk).as_posix() for file in desk.rglob("*") if file.is_file()}
        return sorted(names - {"lines.jsonl", "images/results.jsonl"} - {f"images/{name}" for name in self.whole})


def row(work: Work, dice: random.Random, tally: Tally, shim: Path | None) -> None:
    """Kills a work until it has ended, and compares its images."""
    desk = work.folder / "desk"
    shutil.rmtree(desk, ignore_errors=True)
    is_first = True
    for _ in range(20):
        environment, after = {}, None
        if is_first or dice.random() < 0.5:
            if shim:
                environment = {"LD_PRELOAD": str(shim), "TORN_AT": str(dice.randint(1, MOST_WRITES))}
            else:
                after = dice.uniform(0, work.seconds)
        is_first = False
        has_ended, said = work.run(desk, after, environment)
        tally.resumed += "resumed after step" in said
        if has_ended:
            break
        tally.kills += 1
    else:
        tally.problems.append("did not end in 20 runs")
    tally.rows += 1
    if work.images(desk) != work.whole:
        tally.problems.append("other images")
    if left := work.left(desk):
        tally.problems.append(f"left {left}")


def torn_library(folder: Path) -> Path:
    """The library that cuts a write in half."""
    source, library = folder / "torn.c", folder / "torn.so"
    source.write_text(TORN)
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True)
    return library


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calotype", type=Path, default=Path("target/release/calotype"))
    parser.add_argument("--kills", type=int, default=100, help="rows of each work that are killed after a time")
    parser.add_argument("--torn", type=int, default=25, help="rows of each work that are killed in a write")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--work", choices=["generate", "batch"])
    flags = parser.parse_args()
    program = flags.calotype.resolve()
    dice = random.Random(flags.seed)
    problems = 0
    print("| work | killed | rows | kills | resumed from a snapshot | problems |\n|---|---|---|---|---|---|")
    for name in [flags.work] if flags.work else ["generate", "batch"]:
        with tempfile.TemporaryDirectory() as folder:
            work = Work(name, program, Path(folder))
            shim = torn_library(Path(folder)) if flags.torn else None
            for how, count, library in [("at a moment", flags.kills, None), ("in a write", flags.torn, shim)]:
                tally = Tally()
                for _ in range(count):
                    row(work, dice, tally, library)
                print(
                    f"| `{name}` | {how} | {tally.rows} | {tally.kills} | {tally.resumed} "
                    f"| {'; '.join(tally.problems) or 'none'} |",
                    flush=True,
                )
                problems += len(tally.problems)
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
