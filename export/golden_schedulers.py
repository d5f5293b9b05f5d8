"""Writes tests/golden/schedulers.json.gz: scheduler configurations as diffusers writes them, and what its classes make
of them.

Run: python export/golden_schedulers.py tests/golden/schedulers.json.gz [SEED]
Every class that diffusers has is constructed with random settings of its own (seeded), and saved as `save_pretrained`
does, with Python's JSON. Of classes whose noise follows a curve of betas, a range of levels (EDM) or a flow there are
the levels of a run, of the latter two what the model is told of them, and, for
methods that add no noise, the latents that the run ends in on data of a known distribution: normal, each element with
its own mean and deviation, whose denoiser is `(mean sigma^2 + x deviation^2) / (sigma^2 + deviation^2)`. Left out are
settings in which calotype differs on purpose, all named on the manual's page of samplers: DDIM and DDPM on timesteps
that are not a whole stride apart."""

from __future__ import annotations

import ast
import gzip
import inspect
import json
import logging
import sys
from pathlib import Path
from typing import Any

import diffusers
import diffusers.schedulers
import numpy as np
import torch

from digits import short

DIGITS = 8
SEED = 20261127
CONFIGS = 16
STEPS = [4, 5, 10, 20]
MEANS = torch.tensor([0.5, -1.25, 3.0, 0.0], dtype=torch.float64)
DEVIATIONS = torch.tensor([0.2, 1.0, 0.5, 2.0], dtype=torch.float64)
NOISE = torch.tensor([1.5, 0.25, -2.0, -0.75], dtype=torch.float64)
# Classes whose steps draw noise.
STOCHASTIC = ["DDPM", "EulerAncestral", "KDPM2Ancestral", "DPMSolverSDE", "LCM", "TCD", "SASolver"]
# Run backwards, or between pictures: no methods of drawing one.
NOT_FOR_DRAWING = ["Inverse", "RePaint"]
# Starts of the names of classes that have betas, and noise of another kind.
OTHER_NOISE = ("CogVideoX", "UnCLIP", "CM", "SCM")
# Classes without a curve of betas that calotype has, and the settings of each that are drawn.
WITHOUT_CURVE: dict[str, dict[str, list[Any]]] = {
    "EDMEulerScheduler": {
        "prediction_type": ["epsilon", "v_prediction"],
        "sigma_schedule": ["karras", "exponential"],
        "sigma_min": [0.002, 0.05],
        "sigma_max": [80.0, 120.0],
        "sigma_data": [0.5, 1.0],
        "rho": [7.0, 7.0, 3.0],
        "final_sigmas_type": ["zero", "sigma_min"],
    },
    "FlowMatchEulerDiscreteScheduler": {
        "shift": [1.0, 3.0, 2.5, 0.5],
        "use_karras_sigmas": [False, False, False, True],
        "use_exponential_sigmas": [False, False, False, True],
        "use_beta_sigmas": [False, False, False, True],
        "stochastic_sampling": [*[False] * 9, True],
        "use_dynamic_shifting": [*[False] * 9, True],
        "shift_terminal": [*[None] * 9, 0.02],
        "invert_sigmas": [*[False] * 9, True],
    },
    "FlowMatchHeunDiscreteScheduler": {"shift": [1.0, 3.0, 2.5, 0.5]},
}
WITHOUT_CURVE["EDMDPMSolverMultistepScheduler"] = {
    **WITHOUT_CURVE["EDMEulerScheduler"],
    "solver_order": [1, 2, 3],
    "solver_type": ["midpoint", "heun", "bh1"],
    "algorithm_type": ["dpmsolver++", "dpmsolver++", "sde-dpmsolver++"],
    "lower_order_final": [True, False],
    "euler_at_final": [False, False, True],
}
# Models of velocities that are told `ln(sigma) / 4` (Stable Video Diffusion's is the last).
CONTINUOUS: list[dict[str, Any]] = [
    {},
    {"timestep_spacing": "leading", "steps_offset": 1},
    {"timestep_spacing": "trailing", "beta_schedule": "scaled_linear"},
    {"use_karras_sigmas": True},
    {"use_exponential_sigmas": True, "sigma_min": 0.002, "sigma_max": 120.0},
    {"use_beta_sigmas": True, "sigma_min": 0.01, "sigma_max": 80.0},
    {"use_karras_sigmas": True, "sigma_min": 0.002, "sigma_max": 700.0},
]
# What calotype refuses of them.
REFUSED = ["stochastic_sampling", "use_dynamic_shifting", "shift_terminal", "invert_sigmas"]
# Models trained down to noise alone (Lin et al. 2024, section 3), as published ones are run, a class each.
ZERO_TERMINAL_SNR = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
}

CHOICES: dict[str, list[Any]] = {
    "beta_start": [0.0001, 0.00085],
    "beta_end": [0.012, 0.02],
    "beta_schedule": ["linear", "scaled_linear", "squaredcos_cap_v2"],
    "prediction_type": ["epsilon", "v_prediction", "sample"],
    "clip_sample": [False, False, True],
    "set_alpha_to_one": [True, False],
    "thresholding": [False, False, False, True],
    "timestep_spacing": ["leading", "linspace", "trailing"],
    "steps_offset": [0, 1],
    "rescale_betas_zero_snr": [False, True],
    "use_karras_sigmas": [False, False, True],
    "use_exponential_sigmas": [False, False, True],
    "use_beta_sigmas": [False, False, True],
    "use_lu_lambdas": [False, False, True],
    "use_flow_sigmas": [False, False, False, False, True],
    "final_sigmas_type": ["zero", "sigma_min"],
    "algorithm_type": ["dpmsolver++", "dpmsolver", "sde-dpmsolver++", "sde-dpmsolver"],
    "solver_order": [1, 2, 3],
    "solver_type": ["midpoint", "heun", "bh1", "bh2", "logrho"],
    "lower_order_final": [True, False],
    "euler_at_final": [False, False, True],
    "lambda_min_clipped": [-float("inf"), -5.1, -1.0],
    "variance_type": [None, "fixed_small", "fixed_large", "learned_range"],
    "interpolation_type": ["linear", "linear", "log_linear"],
    "timestep_type": ["discrete", "discrete", "discrete", "continuous"],
    "original_inference_steps": [50, 40, 100],
    "timestep_scaling": [10.0, 10.0, 5.0],
    "predict_x0": [True, True, False],
    "skip_prk_steps": [True, False],
    "sigma_min": [None, None, 0.05],
    "sigma_max": [None, None, 10.0],
    "disable_corrector": [[], [], [0, 2]],
}


def classes() -> list[str]:
    """Every scheduler of diffusers, by the files of its package."""
    names = []
    for file in sorted(Path(inspect.getfile(diffusers.schedulers)).parent.glob("scheduling_*.py")):
        tree = ast.parse(file.read_text())
        found = [node.name for node in tree.body if isinstance(node, ast.ClassDef) and node.name.endswith("Scheduler")]
        names += [name for name in found if "Flax" not in name]
    return names


def settings(cls: Any, rng: np.random.Generator) -> dict[str, Any]:
    """Some of a class's own settings, at random."""
    chosen: dict[str, Any] = {}
    for name in inspect.signature(cls.__init__).parameters:
        options = list(CHOICES.get(name, []))
        if name == "variance_type" and "DDPM" in cls.__name__:
            options = ["fixed_small", "fixed_small_log", "fixed_large"]
        if name == "solver_type" and "DEIS" in cls.__name__:
            options = ["logrho"]
        if name == "solver_type" and "UniPC" in cls.__name__:
            options = ["bh2"]
        if name == "algorithm_type":
            options = {"DEIS": ["deis"], "SASo": ["data_prediction"]}.get(cls.__name__[:4], options)
        if name == "timestep_spacing" and cls.__name__.startswith(("DDIM", "DDPM")):
            options = ["leading", "trailing"]
        if options and rng.random() < 0.6:
            chosen[name] = options[rng.integers(len(options))]
    chosen = {key: value for key, value in chosen.items() if value is not None}
    # Of these a class takes one at most.
    levels = [key for key in chosen if key in CHOICES and key.startswith("use_") and chosen[key]]
    for key in levels[1:]:
        del chosen[key]
    return chosen


def trajectory(scheduler: Any, steps: int) -> list[float]:
    """The latents that a run on known data ends in, in double precision: the levels are diffusers' own, and its
    formulas too, but not the rounding of its coefficients, which reaches 1e-3 of the latents where levels are high."""
    prediction = scheduler.config.prediction_type
    for name in ["sigmas", "alphas_cumprod", "final_alpha_cumprod"]:
        if isinstance(getattr(scheduler, name, None), torch.Tensor):
            setattr(scheduler, name, getattr(scheduler, name).double())
    # A batch of one, of four channels of one value: thresholding and UniPC count on axes.
    means, variances, noise = (values[None, :, None] for values in (MEANS, DEVIATIONS**2, NOISE))
    x = noise * float(scheduler.init_noise_sigma)
    is_exploding = hasattr(scheduler, "sigmas") and scheduler.init_noise_sigma != 1.0
    for step, t in enumerate(scheduler.timesteps):
        # Some classes count their steps from here.
        scheduler.scale_model_input(x, t)
        if hasattr(scheduler, "sigmas"):
            index = scheduler.step_index if scheduler.step_index is not None else step
            kept = 1 / (float(scheduler.sigmas[index]) ** 2 + 1)
        else:
            kept = float(scheduler.alphas_cumprod[int(t)])
        # Latents are `alpha * clean + sigma * noise`; alpha is 0 where noise is all there is.
        alpha, sigma = kept**0.5, (1 - kept) ** 0.5
        preserving = x * alpha if is_exploding else x
        clean = (means * sigma**2 + alpha * preserving * variances) / (sigma**2 + alpha**2 * variances)
        noise = (preserving - alpha * clean) / sigma
        output = {"epsilon": noise, "v_prediction": alpha * noise - sigma * clean, "sample": clean}[prediction]
        x = scheduler.step(output, t, x, return_dict=False)[0]
    return [short(value, DIGITS) for value in x.flatten().tolist()]


def trajectory_without_curve(scheduler: Any, name: str) -> list[float]:
    """The same of classes without a curve."""
    scheduler.sigmas = scheduler.sigmas.double()
    means, variances, noise = (values[None, :, None] for values in (MEANS, DEVIATIONS**2, NOISE))
    is_flow = name.startswith("Flow")
    x = noise * float(1.0 if is_flow else scheduler.init_noise_sigma)
    for t in scheduler.timesteps:
        # `scale_model_input` finds the step; flows have none.
        if not is_flow:
            scheduler.scale_model_input(x, t)
        index = scheduler.step_index if scheduler.step_index is not None else 0
        sigma = float(scheduler.sigmas[index])
        signal = 1.0 - sigma if is_flow else 1.0
        clean = (means * sigma**2 + signal * x * variances) / (sigma**2 + signal**2 * variances)
        if is_flow:
            output = (x - clean) / sigma
        else:
            data = scheduler.config.sigma_data
            output = (clean - data**2 / (sigma**2 + data**2) * x) / (sigma * data / (sigma**2 + data**2) ** 0.5)
            output = -output if scheduler.config.prediction_type == "v_prediction" else output
        # FlowMatchEuler and EDM's classes cast to single precision: the sample is kept in double here.
        x = scheduler.step(output, t, x, return_dict=False)[0].double()
    return [short(value, DIGITS) for value in x.flatten().tolist()]


def levels_of(scheduler: Any) -> list[float]:
    """The levels of a run, each once: methods of two evaluations have levels twice, and runs down to the lowest may
    reach it twice."""
    sigmas = [float(sigma) for sigma in scheduler.sigmas]
    is_new = [abs(before - sigma) > 1e-6 * before for before, sigma in zip([-1.0, *sigmas], sigmas, strict=False)]
    return [short(sigma, DIGITS) for sigma, new in zip(sigmas, is_new, strict=True) if new]


def case_without_curve(name: str, steps: int, chosen: dict[str, Any]) -> dict[str, Any]:
    """A configuration of a class without a curve, and what the class makes of it."""
    scheduler = getattr(diffusers.schedulers, name)(**chosen)
    row: dict[str, Any] = {"config": json.dumps(json.loads(scheduler.to_json_string())), "steps": steps}
    row["runs"] = not any(chosen.get(key) for key in REFUSED)
    if not row["runs"]:
        return row
    scheduler.set_timesteps(steps)
    is_v = chosen.get("prediction_type") == "v_prediction"
    row["prediction"] = "flow" if name.startswith("Flow") else "edm_v" if is_v else "edm"
    row["sigmas"] = levels_of(scheduler)
    timesteps = [float(t) for t in scheduler.timesteps]
    row["timesteps"] = [short(t, DIGITS) for t in dict.fromkeys(timesteps)]
    if "Heun" not in name and "sde" not in chosen.get("algorithm_type", ""):
        row["latents"] = trajectory_without_curve(scheduler, name)
    return row


def cases_without_curve() -> list[dict[str, Any]]:
    """Every class without a curve with random settings, of which the kinds of levels exclude each other."""
    rng = np.random.default_rng(SEED)
    always = {"timestep_type": "continuous", "prediction_type": "v_prediction"}
    continuous = [case("EulerDiscreteScheduler", 10, always | settings) for settings in CONTINUOUS]
    rows = [row for row in continuous if row is not None]
    for name, choices in WITHOUT_CURVE.items():
        for number in range(CONFIGS):
            steps = STEPS[number % len(STEPS)]
            chosen = {key: options[rng.integers(len(options))] for key, options in choices.items()}
            chosen = {key: value for key, value in chosen.items() if value is not None}
            for key in [key for key in chosen if key.endswith("_sigmas") and "use" in key and chosen[key]][1:]:
                chosen[key] = False
            rows.append(case_without_curve(name, steps, chosen))
    return rows


def case(name: str, steps: int, chosen: dict[str, Any]) -> dict[str, Any] | None:
    """A configuration, and what its class makes of it; nothing where diffusers itself refuses."""
    cls = getattr(diffusers.schedulers, name)
    try:
        scheduler = cls(**chosen)
    except (ValueError, NotImplementedError, AssertionError):
        return None
    except TypeError:
        return {"config": json.dumps({"_class_name": name}), "steps": steps, "runs": False}
    config = json.loads(scheduler.to_json_string())
    row: dict[str, Any] = {"config": json.dumps(config), "steps": steps}
    config.setdefault("_class_name", name)
    is_of_betas = "beta_start" in config and not name.startswith(OTHER_NOISE)
    row["runs"] = bool(
        is_of_betas and not config.get("use_flow_sigmas") and not any(part in name for part in NOT_FOR_DRAWING)
    )
    if not row["runs"]:
        return row
    row["prediction"] = config["prediction_type"]
    try:
        scheduler.set_timesteps(steps)
    except (ValueError, IndexError, AssertionError):
        return None
    # Models that predict a variance answer with twice as many channels.
    is_learned = "learned" in (config.get("variance_type") or "")
    is_stochastic = is_learned or any(part in name for part in STOCHASTIC) or "sde" in config.get("algorithm_type", "")
    if name == "PNDMScheduler" or (name.startswith("DDIM") and steps not in (4, 5, 10, 20)):
        return row
    if hasattr(scheduler, "sigmas"):
        row["sigmas"] = levels_of(scheduler)
        if config.get("timestep_type") == "continuous":
            row["timesteps"] = [short(float(t), DIGITS) for t in scheduler.timesteps]
    elif "LCM" in name or "TCD" in name or "DDPM" in name:
        kept = scheduler.alphas_cumprod[scheduler.timesteps].double()
        sigmas = (((1 - kept) / kept) ** 0.5).tolist()
        # Noise alone has no level here; in classes that keep levels, and in calotype, it has 4096.
        row["sigmas"] = [short(sigma if np.isfinite(sigma) else 4096.0, DIGITS) for sigma in sigmas] + [0.0]
    # Methods of two evaluations have every level twice, and read nothing that others do not.
    if not is_stochastic and "Heun" not in name and "KDPM2" not in name:
        try:
            row["latents"] = trajectory(scheduler, steps)
        except (ValueError, IndexError, ZeroDivisionError, AssertionError):
            return None
        if not all(np.isfinite(row["latents"])):
            return None
    return row


def main() -> None:
    logging.disable(logging.WARNING)
    rng = np.random.default_rng(int(sys.argv[2]) if len(sys.argv) > 2 else SEED)
    rows = []
    parameters: dict[str, list[str]] = {}
    for name in classes():
        try:
            getattr(diffusers.schedulers, name)
        except (AttributeError, ImportError):
            print("not importable:", name)
            rows.append({"config": json.dumps({"_class_name": name}), "steps": 4, "runs": False})
            continue
        found = 0
        for _ in range(20 * CONFIGS):
            steps = STEPS[rng.integers(len(STEPS))]
            row = case(name, steps, settings(getattr(diffusers.schedulers, name), rng))
            if row is not None and name in WITHOUT_CURVE:
                row = {**row, "runs": None}
            found += row is not None
            rows += [row] if row is not None else []
            few = row is not None and not row["runs"] and "betas" not in row["config"]
            if found == (2 if few or (row and not row["runs"] and "beta_start" not in row["config"]) else CONFIGS):
                break
        known = list(inspect.signature(getattr(diffusers.schedulers, name).__init__).parameters)[1:]
        parameters[name] = known
        if all(key in known for key in ZERO_TERMINAL_SNR) and not any(part in name for part in NOT_FOR_DRAWING):
            chosen = ZERO_TERMINAL_SNR | ({"clip_sample": False} if "clip_sample" in known else {})
            rows += [row for steps in STEPS if (row := case(name, steps, chosen)) is not None]
        print(name, found)
    rows = [row for row in rows if row["runs"] is not None] + cases_without_curve()
    data = {
        "diffusers": diffusers.__version__,
        "means": MEANS.tolist(),
        "deviations": DEVIATIONS.tolist(),
        "noise": NOISE.tolist(),
        "parameters": parameters,
        "cases": rows,
    }
    text = json.dumps(data, indent=0).encode()
    Path(sys.argv[1]).write_bytes(gzip.compress(text, mtime=0))


if __name__ == "__main__":
    main()
