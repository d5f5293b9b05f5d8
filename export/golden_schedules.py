"""Writes tests/golden/schedules.json.gz: noise curves and the levels of every kind of schedule, for tests/schedule.rs.

Run: python export/golden_schedules.py K_DIFFUSION_SAMPLING.py tests/golden/schedules.json.gz
K_DIFFUSION_SAMPLING.py is k-diffusion's `k_diffusion/sampling.py`, of which the `get_sigmas_*` functions are run. Noise
curves, even spacings, flow matching, EDM and consistency models come from diffusers' schedulers. What ComfyUI alone has
(sgm_uniform, normal, simple, laplace, kl_optimal, and how its lists of levels are resampled) is computed here in double
precision from its definition, named at each function. Timesteps that belong to levels are those of diffusers'
`_sigma_to_t`, before rounding.
"""

from __future__ import annotations

import ast
import gzip
import hashlib
import json
import logging
import math
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import diffusers
import numpy as np
import scipy.stats
import torch
from diffusers.schedulers.scheduling_utils import AysSchedules
from numpy.typing import NDArray

from digits import short

# A hundred times finer than single precision.
DIGITS = 10

Floats: TypeAlias = NDArray[np.float64]

STEPS = [1, 2, 4, 10, 20, 50]
# Where timesteps fall on halves, so that the order of operations decides how they are rounded.
SPACED_STEPS = [*STEPS, 30, 31, 48]
TRAIN_TIMESTEPS = 1000
# The curve with more numbers of steps.
MAIN_CURVE = "stable-diffusion"

CURVES: dict[str, dict[str, Any]] = {
    "stable-diffusion": {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"},
    "linear": {"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear"},
    "cosine": {"beta_schedule": "squaredcos_cap_v2"},
    "sigmoid": {"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "sigmoid"},
    "trained": {"trained_betas": [round(0.001 + 0.02 * math.sin(0.0015 * t) ** 2, 6) for t in range(TRAIN_TIMESTEPS)]},
    "zero-snr": {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "rescale_betas_zero_snr": True,
    },
}
SPACINGS: dict[str, dict[str, Any]] = {
    "leading:offset=0": {"timestep_spacing": "leading", "steps_offset": 0},
    "leading": {"timestep_spacing": "leading", "steps_offset": 1},
    "linspace": {"timestep_spacing": "linspace"},
    "trailing": {"timestep_spacing": "trailing"},
}


class Curve:
    """A noise curve as diffusers has it, and what its schedulers compute from it."""

    def __init__(self, name: str) -> None:
        self.config = CURVES[name]
        # DDPMScheduler alone knows sigmoid betas; the others take its betas as trained ones.
        if self.config.get("beta_schedule") == "sigmoid":
            betas = diffusers.DDPMScheduler(num_train_timesteps=TRAIN_TIMESTEPS, **self.config).betas
            self.config = {"trained_betas": betas.tolist()}
        euler = self.make(diffusers.EulerDiscreteScheduler)
        kept = euler.alphas_cumprod.double()
        self.sigmas: Floats = (((1 - kept) / kept) ** 0.5).numpy()
        self.euler = euler

    def make(self, scheduler: type, **settings: Any) -> Any:
        return scheduler(num_train_timesteps=TRAIN_TIMESTEPS, **self.config, **settings)

    @property
    def range(self) -> tuple[float, float]:
        return float(self.sigmas[0]), float(self.sigmas[-1])

    def timesteps(self, sigmas: Floats) -> list[float]:
        return [float(self.euler._sigma_to_t(sigma, np.log(self.sigmas))) for sigma in sigmas]

    def log_sigma(self, timesteps: Floats) -> Floats:
        """k-diffusion's `DiscreteSchedule.t_to_sigma` and ComfyUI's `ModelSamplingDiscrete.sigma`."""
        return np.exp(np.interp(timesteps, np.arange(len(self.sigmas)), np.log(self.sigmas)))


def get_sigmas(path: Path) -> dict[str, Callable[..., torch.Tensor]]:
    """k-diffusion's `get_sigmas_*`, without what its module imports for samplers."""
    tree = ast.parse(path.read_text())
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    functions = [node for node in functions if node.name.startswith(("get_sigmas", "append_zero"))]
    module = types.ModuleType("k_diffusion_sampling")
    module.__dict__.update({"torch": torch, "math": math})
    exec(compile(ast.Module(body=list(functions), type_ignores=[]), str(path), "exec"), module.__dict__)
    return {node.name: module.__dict__[node.name] for node in functions}


def in_double(function: Callable[..., torch.Tensor], *args: float, **kwargs: float) -> Floats:
    """The levels without the final 0, with torch's numbers in double precision."""
    torch.set_default_dtype(torch.float64)
    try:
        levels = function(*args, **kwargs).numpy()
    finally:
        torch.set_default_dtype(torch.float32)
    assert levels[-1] == 0 and levels.dtype == np.float64
    return levels[:-1]


def beta(steps: int, low: float, high: float, alpha: float, beta: float) -> Floats:
    """diffusers' `_convert_to_beta` (Lee et al. 2024), whose parameters no config reaches."""
    return low + scipy.stats.beta.ppf(1 - np.linspace(0, 1, steps), alpha, beta) * (high - low)


def laplace(steps: int, low: float, high: float, mu: float, beta: float) -> Floats:
    """ComfyUI's `get_sigmas_laplace` (comfy/k_diffusion/sampling.py)."""
    distance = 0.5 - np.linspace(0, 1, steps)
    log = mu - beta * np.sign(distance) * np.log(1 - 2 * np.abs(distance) + 1e-5)
    return np.clip(np.exp(log), low, high)


def kl_optimal(steps: int, low: float, high: float) -> Floats:
    """ComfyUI's `kl_optimal_scheduler` (comfy/samplers.py), which divides by 0 for a single step."""
    part = np.arange(steps) / max(steps - 1, 1)
    return np.tan(part * math.atan(low) + (1 - part) * math.atan(high))


def resampled(levels: list[float], steps: int) -> Floats:
    """The `loglinear_interp` of NVIDIA's page on Align Your Steps, the last left to 0 as by ComfyUI's nodes."""
    ends = np.linspace(0, 1, len(levels))
    return np.exp(np.interp(np.linspace(0, 1, steps + 1), ends, np.log(levels[::-1])))[::-1][:-1]


# Two rows of GITS's table (stable-diffusion.cpp's `gits_noise.inl`, MIT): those of 4 and of 20 steps.
GITS_4 = [14.61464119, 2.36326075, 0.92192322, 0.36617002, 0.02916753]
GITS_20 = [
    14.61464119, 7.49001646, 4.65472794, 3.07277966, 2.19988537, 1.61558151, 1.24153244, 0.95350921, 0.74807048,
    0.59516323, 0.50118381, 0.41087446, 0.34370604, 0.29807833, 0.25053367, 0.22545385, 0.19894916, 0.17026083,
    0.13792117, 0.09824532, 0.02916753,
]  # fmt: skip
AYS = {
    "ays": (AysSchedules["StableDiffusionSigmas"], 0.029),
    "ays-xl": (AysSchedules["StableDiffusionXLSigmas"], 0.029),
    "ays-svd": (AysSchedules["StableDiffusionVideoSigmas"], 0.002),
}


def ays(name: str, steps: int) -> Floats:
    """diffusers has 0 where NVIDIA's page has the lowest level."""
    levels, lowest = AYS[name]
    return resampled([*levels[:-1], lowest], steps)


def spaced(curve: Curve) -> list[dict[str, Any]]:
    """Evenly spaced timesteps on each grid, and those of consistency models."""
    grids: dict[str, type] = {
        "fractional": diffusers.EulerDiscreteScheduler,
        "whole": diffusers.DDIMScheduler,
        "whole-above-last": diffusers.DPMSolverMultistepScheduler,
    }
    cases = []
    for grid, scheduler_class in grids.items():
        for kind, settings in SPACINGS.items():
            for steps in SPACED_STEPS:
                scheduler = curve.make(scheduler_class, **settings)
                scheduler.set_timesteps(steps)
                timesteps = scheduler.timesteps.double().numpy()
                levels = np.interp(timesteps, np.arange(len(curve.sigmas)), curve.sigmas)
                scale = float(scheduler.init_noise_sigma)
                if hasattr(scheduler, "sigmas"):
                    # The levels are read from the curve again, because diffusers keeps them in single precision.
                    assert np.allclose(scheduler.sigmas[:-1].double().numpy(), levels, rtol=1e-6)
                if grid != "fractional":
                    assert scale == 1.0  # in units of sqrt(sigma^2 + 1)
                    scale = math.hypot(levels[0], 1)
                cases.append(case(kind, grid, steps, levels, list(timesteps), scale))
    return cases


def lcm(curve: Curve) -> list[dict[str, Any]]:
    cases = []
    for trained, counts in ((50, [*range(1, 51)]), (100, [1, 4, 7, 64]), (24, [1, 5, 24])):
        for steps in counts:
            scheduler = curve.make(diffusers.LCMScheduler, original_inference_steps=trained)
            scheduler.set_timesteps(steps)
            timesteps = scheduler.timesteps.numpy()
            levels = curve.sigmas[timesteps]
            kind = "lcm" if trained == 50 else f"lcm:trained-steps={trained}"
            cases.append(case(kind, "whole", steps, levels, [float(t) for t in timesteps], math.hypot(levels[0], 1)))
    return cases


def of_levels(curve: Curve, functions: dict[str, Callable[..., torch.Tensor]]) -> list[dict[str, Any]]:
    low, high = curve.range
    karras, exponential = functions["get_sigmas_karras"], functions["get_sigmas_exponential"]
    polyexponential = functions["get_sigmas_polyexponential"]
    kinds: dict[str, Callable[[int], Floats]] = {
        "karras": lambda steps: in_double(karras, steps, low, high),
        "karras:rho=3": lambda steps: in_double(karras, steps, low, high, rho=3.0),
        "exponential": lambda steps: in_double(exponential, steps, low, high),
        "polyexponential": lambda steps: in_double(polyexponential, steps, low, high),
        "polyexponential:rho=0.5": lambda steps: in_double(polyexponential, steps, low, high, rho=0.5),
        "beta": lambda steps: beta(steps, low, high, 0.6, 0.6),
        "beta:alpha=2,beta=1.5": lambda steps: beta(steps, low, high, 2.0, 1.5),
        "laplace": lambda steps: laplace(steps, low, high, 0.0, 0.5),
        "laplace:mu=0.5,beta=0.3": lambda steps: laplace(steps, low, high, 0.5, 0.3),
        "kl-optimal": lambda steps: kl_optimal(steps, low, high),
        "ays": lambda steps: ays("ays", steps),
        "ays-xl": lambda steps: ays("ays-xl", steps),
        "gits": lambda steps: resampled(GITS_4 if steps == 4 else GITS_20, steps),
    }
    cases = []
    for kind, function in kinds.items():
        for steps in STEPS:
            if kind == "gits" and steps not in (4, 20, 50):
                continue
            levels = function(steps)
            if levels[0] <= 1.01 * high:
                cases.append(case(kind, "fractional", steps, levels, curve.timesteps(levels), float(levels[0])))
    cases += of_diffusers(curve)
    for kind, timesteps_of in (
        ("sgm-uniform", lambda steps: np.linspace(TRAIN_TIMESTEPS - 1, 0, steps + 1)[:-1]),
        ("normal", lambda steps: np.linspace(TRAIN_TIMESTEPS - 1, 0, steps)),
    ):
        for steps in STEPS:
            timesteps = timesteps_of(steps)
            levels = curve.log_sigma(timesteps)
            cases.append(case(kind, "fractional", steps, levels, list(timesteps), float(levels[0])))
    for steps in SPACED_STEPS:
        # ComfyUI's `simple_scheduler`.
        index = [len(curve.sigmas) - 1 - int(i * (len(curve.sigmas) / steps)) for i in range(steps)]
        levels = curve.sigmas[index]
        cases.append(case("simple", "fractional", steps, levels, [float(i) for i in index], float(levels[0])))
    return cases


def of_diffusers(curve: Curve) -> list[dict[str, Any]]:
    """Diffusers' solvers on levels, with the timesteps that they round."""
    cases = []
    for kind, setting in (
        ("karras", "use_karras_sigmas"),
        ("exponential", "use_exponential_sigmas"),
        ("beta", "use_beta_sigmas"),
    ):
        for steps in STEPS:
            scheduler = curve.make(diffusers.DPMSolverMultistepScheduler, **{setting: True})
            scheduler.set_timesteps(steps)
            levels = scheduler.sigmas[:-1].double().numpy()
            if kind == "karras" and curve.config.get("beta_schedule") != "squaredcos_cap_v2":
                timesteps = [float(t) for t in scheduler.timesteps]
            else:
                # Diffusers cuts fractions off here. The nearest are expected; the two are less than one apart.
                timesteps = [float(np.round(t)) for t in curve.timesteps(levels)]
                assert all(abs(t - float(cut)) <= 1 for t, cut in zip(timesteps, scheduler.timesteps, strict=True))
            cases.append(case(kind, "whole-above-last", steps, levels, timesteps, math.hypot(levels[0], 1)))
    return cases


def flows() -> list[dict[str, Any]]:
    cases = []
    for steps in STEPS:
        for factor in (1.0, 3.0, 0.5):
            scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=factor)
            scheduler.set_timesteps(steps)
            cases.append({"shift": {"static": factor}, **flow(scheduler, steps)})
        for tokens, time_shift, terminal in (
            (256, "exponential", None),
            (1024, "exponential", None),
            (4096, "exponential", 0.1),
            (2000, "linear", None),
            (3000, "linear", 0.02),
        ):
            if terminal is not None and steps == 1:
                continue  # diffusers divides by 0
            mu = calculate_shift(tokens)
            scheduler = diffusers.FlowMatchEulerDiscreteScheduler(
                use_dynamic_shifting=True, time_shift_type=time_shift, shift_terminal=terminal
            )
            scheduler.set_timesteps(sigmas=list(np.linspace(1.0, 1 / steps, steps)), mu=mu)
            shift = {"tokens": tokens, "mu": mu, "time_shift": time_shift, "terminal": terminal}
            cases.append({"shift": shift, **flow(scheduler, steps)})
    return cases


def calculate_shift(tokens: int) -> float:
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift as of_flux

    return float(of_flux(tokens))


def flow(scheduler: Any, steps: int) -> dict[str, Any]:
    return {
        "steps": steps,
        "sigmas": [float(sigma) for sigma in scheduler.sigmas[:-1]],
        "timesteps": [float(timestep) for timestep in scheduler.timesteps],
    }


def edms() -> list[dict[str, Any]]:
    cases = []
    for low, high in ((0.002, 80.0), (0.002, 700.0)):
        for kind, settings in (
            ("karras", {"sigma_schedule": "karras"}),
            ("karras:rho=5", {"sigma_schedule": "karras", "rho": 5.0}),
            ("exponential", {"sigma_schedule": "exponential"}),
        ):
            for steps in STEPS:
                scheduler = diffusers.EDMEulerScheduler(sigma_min=low, sigma_max=high, **settings)
                scheduler.set_timesteps(steps)
                levels = scheduler.sigmas[:-1].double().numpy()
                if levels[0] < 0.5 * high:
                    continue  # A single exponential step of diffusers takes the lowest level.
                scale = float(scheduler.init_noise_sigma)
                cases.append(edm_case(kind, low, high, steps, levels, [float(t) for t in scheduler.timesteps], scale))
    for steps in STEPS:
        levels = ays("ays-svd", steps)
        scale = math.hypot(levels[0], 1)
        cases.append(edm_case("ays-svd", 0.002, 700.0, steps, levels, [0.25 * math.log(s) for s in levels], scale))
    return cases


def edm_case(
    kind: str, low: float, high: float, steps: int, levels: Floats, timesteps: list[float], scale: float
) -> dict[str, Any]:
    return {"range": [low, high], **case(kind, "fractional", steps, levels, timesteps, scale)}


def case(kind: str, grid: str, steps: int, levels: Floats, timesteps: list[float], scale: float) -> dict[str, Any]:
    assert len(levels) == len(timesteps) == steps and bool(np.all(np.isfinite(levels)))
    return {
        "kind": kind,
        "grid": grid,
        "steps": steps,
        "sigmas": [float(sigma) for sigma in levels],
        "timesteps": [float(timestep) for timestep in timesteps],
        "initial_scale": scale,
    }


def main() -> None:
    logging.disable(logging.WARNING)
    sampling, target = Path(sys.argv[1]), Path(sys.argv[2])
    functions = get_sigmas(sampling)
    curves: list[dict[str, Any]] = []
    for name in CURVES:
        curve = Curve(name)
        schedules = spaced(curve) + lcm(curve) + of_levels(curve, functions)
        curves.append(
            {
                "name": name,
                "trained_betas": CURVES[name].get("trained_betas"),
                "range": list(curve.range),
                "sigmas": [float(sigma) for sigma in curve.sigmas],
                "schedules": [one for one in schedules if name == MAIN_CURVE or one["steps"] in STEPS],
            }
        )
    golden = {
        "provenance": {
            "command": "python export/golden_schedules.py sampling.py tests/golden/schedules.json.gz",
            "diffusers": diffusers.__version__,
            "torch": torch.__version__,
            "numpy": np.__version__,
            "scipy": scipy.__version__,
            "k_diffusion_sampling_sha256": hashlib.sha256(sampling.read_bytes()).hexdigest(),
        },
        "curves": short(curves, DIGITS),
        "flows": short(flows(), DIGITS),
        "edms": short(edms(), DIGITS),
    }
    text = json.dumps(golden, separators=(",", ":")) + "\n"
    with open(target, "wb") as raw, gzip.GzipFile(filename="", fileobj=raw, mode="wb", mtime=0) as file:
        file.write(text.encode())
    print(f"{target}: {target.stat().st_size} bytes, {sum(len(one['schedules']) for one in curves)} schedules")


if __name__ == "__main__":
    main()
