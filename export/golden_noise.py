"""Writes tests/golden/noise.json: what torch.randn gives on the CPU, for tests/noise.rs.

Run: python export/golden_noise.py > tests/golden/noise.json
Each case is one generator and a list of successive torch.randn calls on it. A call keeps its first and last
values in full and the SHA-256 of all of its little-endian f32 bytes.
"""

from __future__ import annotations

import hashlib
import json
import math

import torch

SEEDS = [0, 1, 42, 2**31, 2**32 - 1, 2**32 + 5, 2**63 - 1]
STREAMS: list[list[list[int]]] = [
    *([[n]] for n in (1, 2, 15, 16, 17, 31, 64, 1000)),
    [[1, 16, 8, 8]],
    [[1, 4, 64, 64]],
    [[2, 4, 32, 32]],
    # An odd scalar call leaves half a Box-Muller pair behind, which the next scalar call takes up,
    # whatever the vectorised calls between them have drawn.
    [[3], [17], [1], [16], [2], [1000], [5], [5]],
    [[640], [1], [609], [1], [624]],
]


def call(shape: list[int], generator: torch.Generator) -> dict[str, object]:
    values = torch.randn(shape, generator=generator, dtype=torch.float32).flatten().numpy()
    return {
        "len": math.prod(shape),
        "first": [float(v) for v in values[:4]],
        "last": [float(v) for v in values[-4:]],
        "sha256": hashlib.sha256(values.astype("<f4").tobytes()).hexdigest(),
    }


def main() -> None:
    cases = []
    for seed in SEEDS:
        for stream in STREAMS:
            generator = torch.Generator("cpu").manual_seed(seed)
            cases.append({"seed": seed, "calls": [call(shape, generator) for shape in stream]})
    provenance = {
        "command": "python export/golden_noise.py > tests/golden/noise.json",
        "torch": torch.__version__,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
    }
    print('{"provenance": ' + json.dumps(provenance) + ', "cases": [')
    print(",\n".join(json.dumps(case) for case in cases))
    print("]}")


if __name__ == "__main__":
    main()
