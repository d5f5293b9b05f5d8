"""Writes tests/golden/sampling.json.gz and .safetensors: what samplers do elsewhere, for tests/sampling.rs.

Run: pip install torchsde==0.2.6 scipy==1.18.0 && pip install --no-deps k-diffusion==0.1.1.post1
     python export/golden_sampling.py tests/golden
Each case is a sampler as calotype names it, a schedule, a prediction type, a number of steps and a strength, with the
timesteps, noise levels and initial scale, and the latents after every step under `fake_model`, all in sigma space.
Three references, in this order where several have a sampler:
- "diffusers": its schedulers, in their own single precision;
- "k-diffusion": its functions, in double precision;
- "paper": the equations in double precision, written here from the paper, for what neither has.
"""

from __future__ import annotations

import gzip
import importlib
import importlib.metadata
import importlib.util
import inspect
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
import safetensors.numpy
import scipy
import torch

from digits import short

SHAPE = (1, 4, 2, 2)
SEED = 20
CLEAN_SEED = 21
TRAIN_TIMESTEPS = 1000
CURVES: dict[str, dict[str, Any]] = {
    "scaled_linear": {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    "linear": {"beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.02},
}
STEPS = [1, 2, 4, 10, 20]
SPACINGS = ["leading", "linspace", "trailing"]
LEVELS = {"karras": "use_karras_sigmas", "exponential": "use_exponential_sigmas", "beta": "use_beta_sigmas"}

Tensor: TypeAlias = torch.Tensor


def fake_model(z: Tensor, timestep: float) -> Tensor:
    """A made-up U-Net: rational arithmetic alone, so that every language rounds it alike; never at rest."""
    z = z.float()
    index = torch.arange(z.numel(), dtype=torch.float64).reshape(z.shape)
    u = (0.6 + 0.0004 * timestep) * z.double() + 0.3 * (index % 5 - 2)
    return (u / (1 + u.abs())).float()


def normal(generator: torch.Generator) -> Tensor:
    return torch.randn(SHAPE, generator=generator)


def clean_latents() -> Tensor:
    return 0.5 * normal(torch.Generator("cpu").manual_seed(CLEAN_SEED))


def unit_scale(sigma: float) -> float:
    return math.sqrt(sigma * sigma + 1)


# --- diffusers ------------------------------------------------------------------------------------------------------

IN_SIGMA_SPACE = {
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "LMSDiscreteScheduler",
    "DPMSolverSDEScheduler",
}
# Ask twice in every step but the last.
TWICE = {
    "HeunDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "DPMSolverSDEScheduler",
}
DPM = "DPMSolverMultistepScheduler"
SINGLE = "DPMSolverSinglestepScheduler"
NOISE = {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"}
NOISE_SDE = {"algorithm_type": "sde-dpmsolver", "final_sigmas_type": "sigma_min"}
DATA_SDE = {"algorithm_type": "sde-dpmsolver++"}

# calotype's name, diffusers' class and settings, and what its `step` takes.
DIFFUSERS: list[tuple[str, str, dict[str, Any], dict[str, Any]]] = [
    ("euler", "EulerDiscreteScheduler", {}, {}),
    ("euler-a", "EulerAncestralDiscreteScheduler", {}, {}),
    ("heun", "HeunDiscreteScheduler", {}, {}),
    ("dpm2", "KDPM2DiscreteScheduler", {}, {}),
    ("dpm2-a", "KDPM2AncestralDiscreteScheduler", {}, {}),
    ("lms", "LMSDiscreteScheduler", {}, {}),
    ("ddim", "DDIMScheduler", {}, {}),
    ("ddim:eta=0.5", "DDIMScheduler", {}, {"eta": 0.5}),
    ("ddpm", "DDPMScheduler", {"variance_type": "fixed_small"}, {}),
    ("ddpm:variance=large", "DDPMScheduler", {"variance_type": "fixed_large"}, {}),
    ("pndm", "PNDMScheduler", {"skip_prk_steps": True}, {}),
    ("dpm-solver:order=1", DPM, {"solver_order": 1, **NOISE}, {}),
    ("dpm-solver", DPM, {"solver_order": 2, "solver_type": "midpoint", **NOISE}, {}),
    ("dpm-solver:solver=heun", DPM, {"solver_order": 2, "solver_type": "heun", **NOISE}, {}),
    ("dpm-solver:order=3", DPM, {"solver_order": 3, **NOISE}, {}),
    ("sde-dpm-solver", DPM, {"solver_order": 2, "solver_type": "midpoint", **NOISE_SDE}, {}),
    ("sde-dpm-solver:order=1", DPM, {"solver_order": 1, **NOISE_SDE}, {}),
    ("sde-dpm-solver:solver=heun", DPM, {"solver_order": 2, "solver_type": "heun", **NOISE_SDE}, {}),
    ("dpm++2m", DPM, {}, {}),
    ("dpm++2m:order=1", DPM, {"solver_order": 1}, {}),
    ("dpm++2m:solver=heun", DPM, {"solver_type": "heun"}, {}),
    ("dpm++3m", DPM, {"solver_order": 3}, {}),
    ("dpm++3m:lower_final=off", DPM, {"solver_order": 3, "lower_order_final": False, "euler_at_final": True}, {}),
    ("dpm++2m-sde:lower_final=on,noise=stream", DPM, DATA_SDE, {}),
    ("dpm++2m-sde-heun:lower_final=on,noise=stream", DPM, {"solver_type": "heun", **DATA_SDE}, {}),
    ("dpm++2m-sde:order=1,noise=stream", DPM, {"solver_order": 1, **DATA_SDE}, {}),
    ("dpm-solver-s", SINGLE, {"solver_order": 2, **NOISE}, {}),
    ("dpm-solver-s:order=3", SINGLE, {"solver_order": 3, **NOISE}, {}),
    ("dpm-solver-s:order=3,solver=heun", SINGLE, {"solver_order": 3, "solver_type": "heun", **NOISE}, {}),
    ("dpm++2s", SINGLE, {}, {}),
    ("dpm++2s:solver=heun", SINGLE, {"solver_type": "heun"}, {}),
    ("dpm++3s", SINGLE, {"solver_order": 3}, {}),
    ("dpm++3s:solver=heun", SINGLE, {"solver_order": 3, "solver_type": "heun"}, {}),
    ("dpm++sde:noise=stream", "DPMSolverSDEScheduler", {}, {}),
    *[
        (
            f"unipc:order={order},solver={solver}",
            "UniPCMultistepScheduler",
            # In a step to 0 diffusers multiplies bh1's infinite B(h) with nothing, and gets NaN.
            {
                "solver_order": order,
                "solver_type": solver,
                "final_sigmas_type": "sigma_min" if solver == "bh1" else "zero",
            },
            {},
        )
        for order in (1, 2, 3)
        for solver in ("bh1", "bh2")
    ],
    *[(f"deis:order={order}", "DEISMultistepScheduler", {"solver_order": order}, {}) for order in (1, 2, 3)],
    ("lcm", "LCMScheduler", {}, {}),
    ("tcd", "TCDScheduler", {}, {"eta": 0.3}),
    ("tcd:eta=0", "TCDScheduler", {}, {"eta": 0.0}),
    ("tcd:eta=1", "TCDScheduler", {}, {"eta": 1.0}),
]
# Whose class of diffusers stands for a whole family in the long lists below.
MAIN = {
    "euler", "euler-a", "heun", "dpm2", "dpm2-a", "lms", "ddim", "ddpm", "pndm", "lcm", "tcd",
    "dpm-solver", "sde-dpm-solver", "dpm-solver-s", "dpm++2m", "dpm++3m", "dpm++2m-sde:lower_final=on,noise=stream",
    "dpm++2s", "dpm++3s", "dpm++sde:noise=stream",
    "unipc:order=2,solver=bh2", "unipc:order=3,solver=bh2", "deis:order=2", "deis:order=3",
}  # fmt: skip


def make(name: str, settings: dict[str, Any], curve: str, schedule: str, prediction: str) -> Any:
    """diffusers' scheduler, set to end at 0 where it can be."""
    config: dict[str, Any] = {
        "num_train_timesteps": TRAIN_TIMESTEPS,
        "prediction_type": {"epsilon": "epsilon", "v": "v_prediction", "sample": "sample"}[prediction],
        "steps_offset": 1,
        **CURVES[curve],
        **settings,
    }
    if schedule in LEVELS:
        # Whole timesteps are the mean of all spacings; linspace makes levels run over the whole curve.
        config |= {LEVELS[schedule]: True, "timestep_spacing": "linspace"}
    else:
        config["timestep_spacing"] = schedule
    if name in ("DDIMScheduler", "LCMScheduler", "PNDMScheduler", "TCDScheduler"):
        config["set_alpha_to_one"] = True
    if name in ("DDIMScheduler", "DDPMScheduler", "LCMScheduler", "TCDScheduler"):
        config["clip_sample"] = False
    cls = getattr(diffusers, name)
    known = cls.__init__.__wrapped__.__code__.co_varnames
    # A Karras flag that a class ignores would pass for Karras.
    if any(flag in config and flag not in known for flag in LEVELS.values()):
        raise NotImplementedError(f"{name} has no {schedule} levels")
    return cls.from_config({key: value for key, value in config.items() if key in known})


def sigma_levels(scheduler: Any, name: str) -> list[float]:
    """The levels of every step, and the final 0."""
    if hasattr(scheduler, "sigmas"):
        sigmas = [float(sigma) for sigma in scheduler.sigmas]
        if name in TWICE:
            sigmas = [*sigmas[::2][: scheduler.num_inference_steps], 0.0]
        sigmas[-1] = 0.0
        return sigmas
    kept = scheduler.alphas_cumprod.double()[unrepeated(scheduler, name)]
    return [float(sigma) for sigma in ((1 - kept) / kept) ** 0.5] + [0.0]


def unrepeated(scheduler: Any, name: str) -> list[int]:
    """PNDM's timesteps, each once."""
    timesteps = [int(timestep) for timestep in scheduler.timesteps]
    return timesteps[:1] + timesteps[2:] if name == "PNDMScheduler" and len(timesteps) > 1 else timesteps


def why_not(
    sampler: str, name: str, curve: str, schedule: str, prediction: str, steps: int, strength: float
) -> str | None:
    """Why diffusers is no reference for a case."""
    if prediction == "sample" and name == "EulerAncestralDiscreteScheduler":
        return "diffusers has not implemented it"
    if name in ("DDIMScheduler", "DDPMScheduler", "PNDMScheduler") and schedule == "linspace" and steps > 1:
        return "diffusers steps to timestep - 1000 / steps, not to the timestep that comes next"
    if name in ("DDIMScheduler", "DDPMScheduler", "PNDMScheduler") and TRAIN_TIMESTEPS % steps:
        return "diffusers steps to timestep - 1000 / steps, not to the timestep that comes next"
    if name == "PNDMScheduler" and schedule != "leading":
        return "diffusers steps to timestep - 1000 / steps, not to the timestep that comes next"
    if name == "PNDMScheduler" and strength < 1:
        return "diffusers leaves out the repeated timestep and asks the model at wrong times"
    if name in ("LCMScheduler", "TCDScheduler") and schedule != "trailing":
        return "it has timesteps of its own"
    if name == "PNDMScheduler" and prediction == "v":
        return "diffusers takes velocities for slopes"
    if name == "LMSDiscreteScheduler" and strength < 1:
        return "diffusers weighs the slopes of the first steps as if there were others before them"
    if name == "KDPM2AncestralDiscreteScheduler" and schedule == "linspace" and steps == 2:
        return "diffusers loses digits in single precision: 1.7e-5"
    if name == SINGLE and schedule not in ("linspace", *LEVELS):
        return "diffusers has no other spacing"
    return None


def run_diffusers(
    name: str, settings: dict[str, Any], step_settings: dict[str, Any],
    curve: str, schedule: str, prediction: str, steps: int, strength: float,
) -> dict[str, Any]:  # fmt: skip
    scheduler = make(name, settings, curve, schedule, prediction)
    scheduler.set_timesteps(steps)
    sigmas = sigma_levels(scheduler, name)
    if schedule in LEVELS and not scheduler.timesteps.is_floating_point():
        # Cast to integers by diffusers, up to one timestep away; calotype takes the nearest.
        log_sigmas = np.log(np.array(((1 - scheduler.alphas_cumprod) / scheduler.alphas_cumprod) ** 0.5))
        nearest = [round(float(scheduler._sigma_to_t(np.array(sigma), log_sigmas))) for sigma in sigmas[:-1]]
        scheduler.timesteps = torch.tensor(nearest)
    if schedule in LEVELS and name.startswith("KDPM2"):
        # Rounded by diffusers for Karras alone; Euler, Heun and LMS keep them as they are.
        log_sigmas = np.log(curve_sigmas(curve))
        scheduler.timesteps = scheduler.timesteps.double()
        scheduler.timesteps[::2] = torch.from_numpy(
            np.interp(np.log(sigmas[:-1]), log_sigmas, np.arange(TRAIN_TIMESTEPS))
        )
    taken = min(int(steps * strength), steps)
    left_out = steps - taken
    timesteps = scheduler.timesteps[left_out * (2 if name in TWICE else 1) :]
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(len(scheduler.timesteps) - len(timesteps))

    generator = torch.Generator("cpu").manual_seed(SEED)
    if name == "DEISMultistepScheduler":
        # Its weights are differences of large numbers: in single precision they are wrong by up to 1.6e-5.
        scheduler.sigmas = scheduler.sigmas.double()
    if name == "DPMSolverSDEScheduler":
        # A Brownian path is so rough that the rounding of levels to single precision moves it by 5e-4: the tree is
        # compared with k-diffusion in double precision, below.
        scheduler.noise_sampler = lambda sigma, to: normal(generator)
    noise = normal(generator)
    if strength < 1:
        x = scheduler.add_noise(clean_latents(), noise, timesteps[:1])
    else:
        x = noise * scheduler.init_noise_sigma
    extra = dict(step_settings)
    if "generator" in type(scheduler).step.__code__.co_varnames and name != "DPMSolverSDEScheduler":
        extra["generator"] = generator
    trajectory: list[Tensor] = []
    for count, timestep in enumerate(timesteps):
        output = fake_model(scheduler.scale_model_input(x, timestep), float(timestep))
        x = scheduler.step(output, timestep, x, **extra).prev_sample
        ends_step = scheduler.state_in_first_order if name in TWICE else True
        if name == "PNDMScheduler":
            ends_step = count > 0 or steps == 1
        if ends_step:
            reached = sigmas[left_out + len(trajectory) + 1]
            trajectory.append(x.double() * (1.0 if name in IN_SIGMA_SPACE else unit_scale(reached)))
    is_low = settings.get("final_sigmas_type") == "sigma_min" or name in ("TCDScheduler", "DEISMultistepScheduler")
    if is_low or settings.get("variance_type") == "fixed_large":
        # These end at the curve's lowest level, and calotype at 0; DDPM of large variance adds noise in the last step.
        trajectory.pop()
    asked = scheduler.timesteps[::2] if name in TWICE else scheduler.timesteps
    shown = [float(timestep) for timestep in (unrepeated(scheduler, name) if name == "PNDMScheduler" else asked)]
    initial_scale = float(scheduler.init_noise_sigma) if name in IN_SIGMA_SPACE else unit_scale(sigmas[0])
    return {
        "reference": "diffusers",
        "timesteps": shown[left_out:],
        "sigmas": sigmas[left_out:],
        "initial_scale": initial_scale,
        "trajectory": trajectory,
    }


# calotype's name, diffusers' class, the curve, the schedule (of flow matching its shift) and the prediction.
FORMULAS: list[tuple[str, str, str, str, str]] = [
    ("euler", "EDMEulerScheduler", "edm", "karras", "edm"),
    ("euler", "EDMEulerScheduler", "edm", "exponential", "edm_v"),
    ("dpm++2m", "EDMDPMSolverMultistepScheduler", "edm", "karras", "edm"),
    ("dpm++2m:solver=heun", "EDMDPMSolverMultistepScheduler", "edm", "exponential", "edm_v"),
    ("dpm++3m", "EDMDPMSolverMultistepScheduler", "edm", "karras", "edm_v"),
    ("euler", "FlowMatchEulerDiscreteScheduler", "flow", "1", "flow"),
    ("euler", "FlowMatchEulerDiscreteScheduler", "flow", "3", "flow"),
    ("heun", "FlowMatchHeunDiscreteScheduler", "flow", "1", "flow"),
]


def run_formula(sampler: str, name: str, schedule: str, prediction: str, steps: int) -> dict[str, Any]:
    """Models whose levels come from a formula: Karras et al. 2022 and flow matching."""
    config: dict[str, Any] = {"num_train_timesteps": TRAIN_TIMESTEPS}
    if name.startswith("EDM"):
        is_v = prediction == "edm_v"
        config |= {"sigma_schedule": schedule, "prediction_type": "v_prediction" if is_v else "epsilon"}
        if sampler != "euler":
            config |= {
                "solver_order": 3 if "3m" in sampler else 2,
                "solver_type": "heun" if "heun" in sampler else "midpoint",
            }
    else:
        config["shift"] = float(schedule)
    scheduler = getattr(diffusers, name)(**config)
    scheduler.set_timesteps(steps)
    twice = 2 if "Heun" in name else 1
    generator = torch.Generator("cpu").manual_seed(SEED)
    initial_scale = float(scheduler.init_noise_sigma) if name.startswith("EDM") else 1.0
    x = normal(generator) * initial_scale
    trajectory: list[Tensor] = []
    for timestep in scheduler.timesteps:
        seen = scheduler.scale_model_input(x, timestep) if name.startswith("EDM") else x
        x = scheduler.step(fake_model(seen, float(timestep)), timestep, x).prev_sample
        if twice == 1 or scheduler.state_in_first_order:
            trajectory.append(x.double())
    return {
        "reference": "diffusers",
        "timesteps": [float(timestep) for timestep in scheduler.timesteps[::twice]],
        "sigmas": [*[float(sigma) for sigma in scheduler.sigmas[::twice]][:steps], 0.0],
        "initial_scale": initial_scale,
        "trajectory": trajectory,
    }


# --- k-diffusion and papers -----------------------------------------------------------------------------------------


def k_sampling() -> Any:
    """k-diffusion's samplers, without what only its training needs."""
    for absent in ("torchdiffeq", "torchvision", "torchvision.transforms", "torchvision.transforms.functional"):
        sys.modules[absent] = types.ModuleType(absent)
    sys.modules["torchdiffeq"].odeint = None  # type: ignore[attr-defined]
    sys.modules["torchvision.transforms"].functional = None  # type: ignore[attr-defined]
    package = types.ModuleType("k_diffusion")
    spec = importlib.util.find_spec("k_diffusion")
    assert spec is not None and spec.submodule_search_locations is not None
    package.__path__ = list(spec.submodule_search_locations)
    sys.modules["k_diffusion"] = package
    return importlib.import_module("k_diffusion.sampling")


def curve_sigmas(curve: str) -> np.ndarray:
    scheduler = diffusers.EulerDiscreteScheduler(**CURVES[curve])
    kept = scheduler.alphas_cumprod.double().numpy()
    return np.asarray(((1 - kept) / kept) ** 0.5)


def karras_levels(curve: str, steps: int) -> list[float]:
    sigmas = curve_sigmas(curve)
    ends = sigmas[[-1, 0]] ** (1 / 7)
    return [float(sigma) for sigma in (ends[0] + np.linspace(0, 1, steps) * (ends[1] - ends[0])) ** 7] + [0.0]


class Model:
    """`fake_model` as k-diffusion wants one: clean latents behind noisy ones, in double precision."""

    def __init__(self, curve: str, prediction: str, guided: bool = False) -> None:
        self.log_sigmas = np.log(curve_sigmas(curve))
        self.prediction = prediction
        self.guided = guided

    def timestep(self, sigma: float) -> float:
        return float(np.interp(math.log(sigma), self.log_sigmas, np.arange(TRAIN_TIMESTEPS)))

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        level = float(sigma.flatten()[0])
        c_in = 1 / unit_scale(level)
        output = fake_model((x * c_in).float(), self.timestep(level)).double()
        c_skip, c_out = {
            "epsilon": (1.0, -level),
            "v": (c_in * c_in, -level * c_in),
            "sample": (0.0, 1.0),
        }[self.prediction]
        return c_skip * x + c_out * output

    def unconditional(self, x: Tensor, sigma: Tensor) -> Tensor:
        """What the fake guided model expects without its prompt: see `tests/sampling.rs`."""
        return 0.75 * self(x, sigma)


Function = Callable[..., Tensor]


def ancestral(sigma: float, to: float, eta: float) -> tuple[float, float]:
    """Song et al. 2021: the level below the target, and the noise up to it."""
    up = min(to, eta * math.sqrt(to**2 * (sigma**2 - to**2) / sigma**2))
    return math.sqrt(to**2 - up**2), up


def euler_cfg_pp(model: Model, x: Tensor, sigmas: list[float], noise: Function, eta: float, record: Function) -> None:
    """Chung et al. 2024, algorithm 2, in sigma space; the ancestral form adds noise as Euler's does."""
    for sigma, to in zip(sigmas, sigmas[1:], strict=False):
        level = torch.tensor([sigma], dtype=torch.float64)
        guided, unconditional = model(x, level), model.unconditional(x, level)
        down, up = ancestral(sigma, to, eta)
        x = guided + down * (x - unconditional) / sigma
        if up > 0:
            x = x + up * noise(sigma, to)
        record(x)


def ipndm(model: Model, x: Tensor, sigmas: list[float], order: int, record: Function) -> None:
    """Liu et al. 2022, equation 12 on dx/dsigma, from Euler's step on; to the clean latents themselves at the end."""
    table: dict[int, list[float]] = {
        1: [1],
        2: [3 / 2, -1 / 2],
        3: [23 / 12, -16 / 12, 5 / 12],
        4: [55 / 24, -59 / 24, 37 / 24, -9 / 24],
    }
    slopes: list[Tensor] = []
    for sigma, to in zip(sigmas, sigmas[1:], strict=False):
        slopes.insert(0, (x - model(x, torch.tensor([sigma], dtype=torch.float64))) / sigma)
        weights = table[1 if to == 0 else min(order, len(slopes))]
        x = x + (to - sigma) * sum(weight * slope for weight, slope in zip(weights, slopes, strict=False))
        record(x)


def res_multistep(model: Model, x: Tensor, sigmas: list[float], record: Function) -> None:
    """Zhang, Lu et al. 2023 ("Improved order analysis"), the second-order multistep method in data prediction."""
    before: tuple[float, Tensor] | None = None
    for sigma, to in zip(sigmas, sigmas[1:], strict=False):
        clean = model(x, torch.tensor([sigma], dtype=torch.float64))
        if before is None or to == 0:
            x = clean + to / sigma * (x - clean)
        else:
            h, c2 = math.log(sigma / to), math.log(sigma / before[0]) / math.log(sigma / to)
            phi_1 = -math.expm1(-h) / h
            phi_2 = (1 - phi_1) / h
            x = math.exp(-h) * x + h * ((phi_1 - phi_2 / c2) * clean + phi_2 / c2 * before[1])
        before = sigma, clean
        record(x)


def er_sde(model: Model, x: Tensor, sigmas: list[float], noise: Function, order: int, record: Function) -> None:
    """Cui et al. 2023, algorithms 1 to 3 for variance exploding, with the authors' noise scale and 200 points."""

    def scale(sigma: Any) -> Any:
        return sigma * (np.exp(sigma**0.3) + 10.0)

    levels: list[float] = []
    cleans: list[Tensor] = []
    slopes: list[Tensor] = []
    for sigma, to in zip(sigmas, sigmas[1:], strict=False):
        clean = model(x, torch.tensor([sigma], dtype=torch.float64))
        if to == 0:
            x = clean
        else:
            ratio = scale(to) / scale(sigma)
            x = ratio * x + (1 - ratio) * clean
            points = to + np.arange(200) * (sigma - to) / 200
            width = (sigma - to) / 200
            if order >= 2 and cleans:
                slope = (clean - cleans[-1]) / (sigma - levels[-1])
                x = x + (to - sigma + scale(to) * width * np.sum(1 / scale(points))) * slope
                if order >= 3 and slopes:
                    bend = (slope - slopes[-1]) / ((sigma - levels[-2]) / 2)
                    moment = width * np.sum((points - sigma) / scale(points))
                    x = x + ((to - sigma) ** 2 / 2 + scale(to) * moment) * bend
                slopes.append(slope)
            x = x + math.sqrt(max(to**2 - sigma**2 * ratio**2, 0.0)) * noise(sigma, to)
        levels.append(sigma)
        cleans.append(clean)
        record(x)


# calotype's name, and the reference with its settings.
OTHERS: list[tuple[str, str, dict[str, Any]]] = [
    ("euler:s_noise=1.01,s_churn=6,s_tmin=0.3,s_tmax=9", "sample_euler",
     {"s_churn": 6, "s_tmin": 0.3, "s_tmax": 9, "s_noise": 1.01}),
    ("heun:s_churn=4", "sample_heun", {"s_churn": 4}),
    ("dpm2:s_churn=40", "sample_dpm_2", {"s_churn": 40}),
    ("euler-a:eta=0.5,s_noise=1.1", "sample_euler_ancestral", {"eta": 0.5, "s_noise": 1.1}),
    ("dpm2-a:eta=0.5,s_noise=1.1", "sample_dpm_2_ancestral", {"eta": 0.5, "s_noise": 1.1}),
    ("lms:order=3", "sample_lms", {"order": 3}),
    ("dpm++2s-a", "sample_dpmpp_2s_ancestral", {}),
    ("dpm++2s-a:eta=0", "sample_dpmpp_2s_ancestral", {"eta": 0.0}),
    ("dpm++sde:noise=stream", "sample_dpmpp_sde", {}),
    ("dpm++sde:eta=0.4,s_noise=1.1,r=0.3,noise=stream", "sample_dpmpp_sde", {"eta": 0.4, "s_noise": 1.1, "r": 0.3}),
    ("dpm++sde", "sample_dpmpp_sde", {"tree": True}),
    ("dpm++2m-sde:noise=stream", "sample_dpmpp_2m_sde", {}),
    ("dpm++2m-sde:eta=0.4,s_noise=1.1,noise=stream", "sample_dpmpp_2m_sde", {"eta": 0.4, "s_noise": 1.1}),
    ("dpm++2m-sde-heun:eta=0.7,noise=stream", "sample_dpmpp_2m_sde", {"eta": 0.7, "solver_type": "heun"}),
    ("dpm++2m-sde", "sample_dpmpp_2m_sde", {"tree": True}),
    ("dpm++3m-sde:noise=stream", "sample_dpmpp_3m_sde", {}),
    ("dpm++3m-sde:eta=0.3,noise=stream", "sample_dpmpp_3m_sde", {"eta": 0.3}),
    ("dpm++3m-sde", "sample_dpmpp_3m_sde", {"tree": True}),
    ("euler-cfg++", "paper", {}),
    ("euler-a-cfg++", "paper", {}),
    ("euler-a-cfg++:eta=0.5", "paper", {}),
    ("ipndm", "paper", {}),
    ("ipndm:order=2", "paper", {}),
    ("res-multistep", "paper", {}),
    ("er-sde", "paper", {}),
    ("er-sde:order=2", "paper", {}),
    ("er-sde:s_noise=0,order=1", "paper", {}),
]  # fmt: skip


def run_other(
    k: Any, sampler: str, reference: str, settings: dict[str, Any], prediction: str, steps: int
) -> dict[str, Any]:
    curve = "scaled_linear"
    model = Model(curve, prediction)
    sigmas = karras_levels(curve, steps)
    generator = torch.Generator("cpu").manual_seed(SEED)
    # k-diffusion starts from noise alone; calotype from as much as the sampler's kin in diffusers does.
    scale = sigmas[0]
    x = normal(generator).double() * scale
    trajectory: list[Tensor] = []

    def noise(sigma: Any, to: Any) -> Tensor:
        return normal(generator).double()

    def tree(sigma_min: float, sigma_max: float) -> Function:
        sampler = k.BrownianTreeNoiseSampler(torch.zeros(SHAPE), sigma_min, sigma_max, seed=SEED)
        # It is made for levels in single precision.
        return lambda sigma, to: sampler(torch.as_tensor(sigma).float(), torch.as_tensor(to).float()).double()

    if reference == "paper":
        kind, _, options = sampler.partition(":")
        typed = dict(option.split("=") for option in options.split(",") if option)
        if kind.startswith("euler"):
            eta = float(typed.get("eta", 1.0)) if kind == "euler-a-cfg++" else 0.0
            euler_cfg_pp(model, x, sigmas, noise, eta, trajectory.append)
        elif kind == "ipndm":
            ipndm(model, x, sigmas, int(typed.get("order", 4)), trajectory.append)
        elif kind == "res-multistep":
            res_multistep(model, x, sigmas, trajectory.append)
        else:
            drawn_noise: Function = (lambda *_: 0.0) if "s_noise" in typed else noise
            er_sde(model, x, sigmas, drawn_noise, int(typed.get("order", 3)), trajectory.append)
    else:
        function = getattr(k, reference)
        given = {**settings}
        if given.pop("tree", False):
            given["noise_sampler"] = tree(sigmas[-2], sigmas[0])
        elif "noise_sampler" in inspect.signature(function).parameters:
            given["noise_sampler"] = noise
        levels = torch.tensor(sigmas, dtype=torch.float64)
        starts: list[Tensor] = []
        drawn: list[Tensor] = []

        def churn(like: Tensor) -> Tensor:
            """k-diffusion also draws in steps without churn, and throws that away."""
            sigma = sigmas[len(starts)]
            is_used = given.get("s_tmin", 0.0) <= sigma <= given.get("s_tmax", math.inf)
            drawn.append(noise(sigma, sigma) if is_used else torch.zeros_like(like))
            return drawn[-1]

        def record(at: dict[str, Any]) -> None:
            """The latents that a step starts from, before churn."""
            start = at["x"].clone()
            if "s_churn" in given:
                added = math.sqrt(float(at["sigma_hat"]) ** 2 - float(at["sigma"]) ** 2)
                start -= given.get("s_noise", 1.0) * added * drawn[-1]
            starts.append(start)

        original = torch.randn_like
        torch.randn_like = churn  # type: ignore[assignment]
        try:
            end = function(model, x, levels, callback=record, disable=True, **given)
        finally:
            torch.randn_like = original
        trajectory = [*starts[1:], end]
    return {
        "reference": "paper" if reference == "paper" else "k-diffusion",
        "timesteps": [model.timestep(sigma) for sigma in sigmas[:-1]],
        "sigmas": sigmas,
        "initial_scale": scale,
        "trajectory": trajectory,
    }


# --- cases ----------------------------------------------------------------------------------------------------------


def name_of(index: int) -> str:
    return DIFFUSERS[index][1]


def diffusers_cases() -> list[tuple[int, str, str, str, int, float]]:
    """Index of the sampler, curve, schedule, prediction, steps, strength."""
    cases = []
    for index, (sampler, *_) in enumerate(DIFFUSERS):
        main = sampler in MAIN
        for schedule in SPACINGS if main else ["linspace" if name_of(index) == SINGLE else "trailing"]:
            for steps in STEPS if main else [4, 20]:
                cases.append((index, "scaled_linear", schedule, "epsilon", steps, 1.0))
        if not main:
            continue
        spacing = "linspace" if name_of(index) == SINGLE else "leading" if sampler == "pndm" else "trailing"
        cases.append((index, "scaled_linear", spacing, "epsilon", 50, 1.0))
        cases.append((index, "linear", spacing, "epsilon", 10, 1.0))
        for prediction in ("v", "sample"):
            cases += [(index, "scaled_linear", spacing, prediction, steps, 1.0) for steps in (4, 20)]
        for schedule in LEVELS:
            cases += [(index, "scaled_linear", schedule, "epsilon", steps, 1.0) for steps in (4, 20)]
        for strength in (0.3, 0.6):
            cases += [(index, "scaled_linear", spacing, "epsilon", steps, strength) for steps in (10, 20)]
        # A step over the length of short runs, for what is lowered there.
        if sampler.startswith(("dpm++", "unipc", "deis")):
            cases += [(index, "scaled_linear", spacing, "epsilon", steps, 1.0) for steps in (3, 14, 15)]
            cases.append((index, "scaled_linear", spacing, "epsilon", 50, 0.3))
    return cases


def main() -> None:
    folder = Path(sys.argv[1])
    logging.disable(logging.WARNING)
    cases: list[dict[str, Any]] = []
    skipped: dict[str, int] = {}
    latents: list[Tensor] = []

    def keep(case: dict[str, Any], result: dict[str, Any]) -> None:
        trajectory = result.pop("trajectory")
        assert all(x.dtype == torch.float64 and bool(x.isfinite().all()) for x in trajectory), case
        cases.append({**case, **result, "start": len(latents), "states": len(trajectory)})
        latents.extend(trajectory)

    for index, curve, schedule, prediction, steps, strength in diffusers_cases():
        sampler, name, settings, step_settings = DIFFUSERS[index]
        case = {
            "sampler": sampler, "curve": curve, "schedule": schedule,
            "prediction": prediction, "steps": steps, "strength": strength,
        }  # fmt: skip
        reason = why_not(sampler, name, curve, schedule, prediction, steps, strength)
        if reason is None:
            try:
                keep(case, run_diffusers(name, settings, step_settings, curve, schedule, prediction, steps, strength))
                continue
            except (NotImplementedError, ValueError) as error:
                reason = f"diffusers refuses: {str(error)[:90]}"
        reason = f"{sampler.partition(':')[0]}: {reason}"
        skipped[reason] = skipped.get(reason, 0) + 1

    # Two steps go so far down that single precision loses 2e-5.
    for sampler, name, curve, schedule, prediction in FORMULAS:
        for steps in (4, 10, 20):
            case = {
                "sampler": sampler, "curve": curve, "schedule": schedule,
                "prediction": prediction, "steps": steps, "strength": 1.0,
            }  # fmt: skip
            keep(case, run_formula(sampler, name, schedule, prediction, steps))

    k = k_sampling()
    for sampler, reference, options in OTHERS:
        for prediction, steps in [("epsilon", n) for n in (1, 2, 4, 10, 20)] + [("v", 10), ("sample", 10)]:
            case = {
                "sampler": sampler, "curve": "scaled_linear", "schedule": "karras",
                "prediction": prediction, "steps": steps, "strength": 1.0,
            }  # fmt: skip
            if sampler.startswith("heun") and steps == 2:
                continue  # Down to level 0.03 in one step single precision loses 3e-5.
            if steps == 1 and ("tree" in options or reference.endswith("m_sde")):
                continue  # A tree of one level has no extent, and k-diffusion's solvers want two steps.
            keep(case, run_other(k, sampler, reference, options, prediction, steps))

    provenance = {
        "command": "python export/golden_sampling.py tests/golden",
        "diffusers": diffusers.__version__,
        "k-diffusion": importlib.metadata.version("k-diffusion"),
        "torchsde": importlib.metadata.version("torchsde"),
        "torch": torch.__version__,
        "scipy": scipy.__version__,
        "numpy": np.__version__,
        "skipped": skipped,
    }
    text = json.dumps({"provenance": provenance, "cases": short(cases)}, separators=(",", ":"))
    (folder / "sampling.json.gz").write_bytes(gzip.compress(text.encode(), mtime=0))
    flat = torch.stack([x.flatten() for x in latents]).float().numpy()
    safetensors.numpy.save_file({"latents": flat}, folder / "sampling.safetensors")
    for reason, count in skipped.items():
        print(f"left out {count:3}: {reason}")
    references = {case["reference"]: 0 for case in cases}
    for case in cases:
        references[case["reference"]] += 1
    print(len(cases), "cases", references, flat.shape)


if __name__ == "__main__":
    main()
