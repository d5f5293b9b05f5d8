"""Writes tests/golden/noise*.json: what other programs draw on the CPU, for tests/noise.rs.

Run: python export/golden_noise.py WEBUI tests/golden
WEBUI is a checkout of AUTOMATIC1111's stable-diffusion-webui; of it, modules/rng.py and modules/rng_philox.py are run.

A draw keeps its first and last values in full and the SHA-256 of all of its little-endian f32 bytes.
- noise.json: generators, each with a list of successive randn calls on it.
- noise_brownian.json: trees of noise levels, each with a list of intervals asked for in turn.
- noise_variation.json: A1111's noise of batches with variation seeds, and its interpolation by itself.
"""

from __future__ import annotations

import hashlib
import importlib
import itertools
import json
import sys
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

import diffusers
import numpy as np
import torch
from diffusers.schedulers.scheduling_dpmsolver_sde import BrownianTreeNoiseSampler
from torchsde._brownian import brownian_interval  # type: ignore[import-untyped]

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
# The other generators treat all lengths alike.
FEWER_STREAMS: list[list[list[int]]] = [[[1]], [[4, 128, 128]], [[3], [17], [1], [16], [2], [1000], [5], [5]]]
PHILOX_SEEDS = [*SEEDS, 2**64 - 1]
NUMPY_SEEDS = [seed for seed in SEEDS if seed < 2**32]

# Levels of Stable Diffusion (whose ends have no exact decimals), of the built-in model, few levels, and one.
RANGES = [(0.029167, 14.614642), (0.03, 66.0), (0.002, 80.0), (0.5, 0.50003), (0.0, 4096.0), (14.6, 14.6)]
TREE_SEEDS = [0, 1, 2**32 - 1, 2**32 + 5, 2**64 - 1]
TREE_LENGTHS = [1, 15, 64]

BATCH_SHAPE = (4, 8, 6)
BATCH_SEED = 1000
STRENGTHS = [0.0, 0.1, 0.5, 0.9, 1.0]


def draw(values: np.ndarray[Any, np.dtype[np.float32]]) -> dict[str, object]:
    values = values.flatten().astype("<f4")
    return {
        "len": values.size,
        "first": [float(v) for v in values[:4]],
        "last": [float(v) for v in values[-4:]],
        "sha256": hashlib.sha256(values.tobytes()).hexdigest(),
    }


def stub_of_webui(checkout: Path) -> tuple[Any, Any, SimpleNamespace]:
    """A1111's `rng` and `rng_philox`, with as much of the program around them as they ask for, and its options."""
    options = SimpleNamespace(randn_source="CPU", eta_noise_seed_delta=0)
    package, shared, devices = ModuleType("modules"), ModuleType("modules.shared"), ModuleType("modules.devices")
    cpu = torch.device("cpu")
    vars(shared).update(opts=options, device=cpu)
    vars(devices).update(device=cpu, cpu=cpu)
    vars(package).update(__path__=[str(checkout / "modules")], shared=shared, devices=devices)
    sys.modules.update({"modules": package, "modules.shared": shared, "modules.devices": devices})
    return importlib.import_module("modules.rng"), importlib.import_module("modules.rng_philox"), options


def streams(philox: Any) -> list[dict[str, object]]:
    def torch_randn(seed: int) -> Callable[[list[int]], Any]:
        generator = torch.Generator("cpu").manual_seed(seed)
        return lambda shape: torch.randn(shape, generator=generator, dtype=torch.float32).numpy()

    def philox_randn(seed: int) -> Callable[[list[int]], Any]:
        return philox.Generator(seed).randn

    def numpy_randn(seed: int) -> Callable[[list[int]], Any]:
        generator = np.random.RandomState(seed)
        return lambda shape: generator.randn(*shape).astype(np.float32)

    cases: list[dict[str, object]] = []
    for rng, make, seeds, shapes in (
        ("torch", torch_randn, SEEDS, STREAMS),
        ("philox", philox_randn, PHILOX_SEEDS, FEWER_STREAMS),
        ("numpy", numpy_randn, NUMPY_SEEDS, FEWER_STREAMS),
    ):
        for seed in seeds:
            for stream in shapes:
                randn = make(seed)
                cases.append({"rng": rng, "seed": seed, "calls": [draw(randn(shape)) for shape in stream]})
    return cases


def intervals(low: float, high: float) -> list[list[tuple[float, float]]]:
    """Lists of intervals, each from a higher level to a lower one."""
    at = [low + (high - low) * part for part in (0.0, 0.01, 0.04, 0.13, 0.5, 0.77, 1.0)]
    falling = list(zip(at[:0:-1], at[-2::-1], strict=True))
    odd = [
        (high, low),  # the whole
        (at[3], at[3] - 2e-6),  # no wider than two of the parts that levels are told apart to
        (at[5], at[2]),
        (at[5], at[2]),  # again
        (at[4] + (high - low) / 3, at[1] / 2),  # bounds that no other list has, one of them outside
        (high + 1.0, at[4]),
    ]
    return [falling, falling[::-1], odd]


def noise_between(sampler: BrownianTreeNoiseSampler, high: float, low: float) -> np.ndarray[Any, np.dtype[np.float32]]:
    """The noise, divided by the root that IEEE 754 asks for.

    Torch's own, with MKL on x86-64, misses the last bit in a fifth of the cases.
    """
    length = torch.as_tensor(high) - torch.as_tensor(low)
    values = (
        sampler.tree(torch.as_tensor(high), torch.as_tensor(low)) / torch.as_tensor(np.sqrt(length.numpy()))
    ).numpy()
    np.testing.assert_allclose(sampler(high, low).numpy(), values, rtol=2**-22)
    return values


def trees(rng: Any, options: SimpleNamespace) -> list[dict[str, object]]:
    cases: list[dict[str, object]] = []

    def ask(name: str, low: float, high: float, seed: int, length: int, asked: list[tuple[float, float]]) -> None:
        sampler = BrownianTreeNoiseSampler(torch.zeros(1, length), low, high, seed)
        draws = [
            {"from": a, "to": b, **draw(noise_between(sampler, a, b))}
            for a, b in asked
            # torchsde recurses for ever between levels that it rounds to one.
            if round(float(np.float32(a)), 6) > round(float(np.float32(b)), 6)
        ]
        cases.append({"rng": name, "sigma_min": low, "sigma_max": high, "seed": seed, "len": length, "draws": draws})

    for low, high in RANGES:
        for seed, length in zip(TREE_SEEDS, itertools.cycle(TREE_LENGTHS), strict=False):
            for asked in intervals(low, high) if low < high else [[(high + 1.0, low - 1.0)]]:
                ask("torch", low, high, seed, length, asked)
    # Twenty real steps of latents.
    curve = diffusers.EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    curve.set_timesteps(20)
    levels = [float(sigma) for sigma in curve.sigmas[:-1]]
    steps = list(zip(levels[:-1], levels[1:], strict=True))
    ask("torch", levels[-1], levels[0], 42, 4 * 64 * 64, steps)

    # A1111 makes trees draw from its own generators (`torchsde_randn` of modules/sd_samplers_common.py).
    def randn(size: tuple[int, ...], dtype: torch.dtype, device: torch.device, seed: int) -> Any:
        return rng.randn_local(seed, size).to(device=device, dtype=dtype)

    options.randn_source = "NV"
    with mock.patch.object(brownian_interval, "_randn", randn):
        for seed in TREE_SEEDS:
            ask("philox", levels[-1], levels[0], seed, 64, steps)
    return cases


def batches(rng: Any, options: SimpleNamespace) -> list[dict[str, object]]:
    cases: list[dict[str, object]] = []
    for name, source in (("torch", "CPU"), ("philox", "NV")):
        options.randn_source = source
        for strength in STRENGTHS:
            seeds, variations = [BATCH_SEED, BATCH_SEED + 1], [7, 8]
            batch = rng.ImageRNG(BATCH_SHAPE, seeds, variations, strength)
            first, following = batch.next(), batch.next()
            for picture, (seed, variation) in enumerate(zip(seeds, variations, strict=True)):
                cases.append(
                    {
                        "rng": name,
                        "seed": seed,
                        "variation_seed": variation,
                        "strength": strength,
                        "first": [float(v) for v in first[picture].flatten()],
                        "following": draw(following[picture].numpy()),
                    }
                )
    return cases


def interpolations(rng: Any) -> list[dict[str, object]]:
    """Of a noise and the same noise plus `distance` times another: A1111 treats what is nearly parallel apart."""
    cases: list[dict[str, object]] = []
    for distance in (0.0, 0.02, 0.5):
        for strength in (0.25, 1.0):
            noise, other = (
                torch.randn(BATCH_SHAPE, generator=torch.Generator("cpu").manual_seed(seed)) for seed in (3, 4)
            )
            result = rng.slerp(strength, noise, noise + distance * other)
            cases.append({"distance": distance, "strength": strength, "result": [float(v) for v in result.flatten()]})
    return cases


def write(path: Path, provenance: dict[str, object], lists: dict[str, list[dict[str, object]]]) -> None:
    def block(name: str, cases: list[dict[str, object]]) -> str:
        return f'"{name}": [\n' + ",\n".join(json.dumps(case) for case in cases) + "\n]"

    blocks = ['"provenance": ' + json.dumps(provenance), *(block(*item) for item in lists.items())]
    path.write_text("{" + ", ".join(blocks) + "}\n")


def main() -> None:
    checkout, out = map(Path, sys.argv[1:])
    rng, philox, options = stub_of_webui(checkout)
    # torchsde warns of every level outside the range.
    warnings.simplefilter("ignore")
    provenance: dict[str, object] = {
        "command": "python export/golden_noise.py WEBUI tests/golden",
        "torch": torch.__version__,
        "numpy": np.__version__,
        "diffusers": diffusers.__version__,
        "torchsde": version("torchsde"),
        "webui": {
            name: hashlib.sha256((checkout / "modules" / name).read_bytes()).hexdigest()
            for name in ("rng.py", "rng_philox.py")
        },
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
    }
    write(out / "noise.json", provenance, {"cases": streams(philox)})
    write(out / "noise_brownian.json", provenance, {"cases": trees(rng, options)})
    write(
        out / "noise_variation.json",
        provenance,
        {"batches": batches(rng, options), "interpolations": interpolations(rng)},
    )


if __name__ == "__main__":
    main()
