"""Writes tests/golden/sampling.json: what diffusers' schedulers do, for tests/sampling.rs.

Run: python export/golden_sampling.py > tests/golden/sampling.json
Each case is a sampler, a noise curve, a spacing and a number of steps, with diffusers' timesteps, noise levels and
initial scale. Each of its runs is a prediction type, with the final latents under `fake_model` and the next normal
value of the generator, which tells how much noise was drawn.
"""

from __future__ import annotations

import itertools
import json
import logging
from typing import Any

import diffusers
import numpy as np
import torch

SHAPE = (1, 2, 4, 4)
SEED = 20
TRAIN_TIMESTEPS = 1000
BETA_START = 0.00085
BETA_ENDS = [0.012, 0.02]
SPACINGS = ["leading", "linspace", "trailing"]
STEPS = [1, 2, 5, 20]
# Where timesteps fall on halves, so that the order of operations decides how they are rounded.
STEPS_WITHOUT_RUNS = [30, 31, 48]
PREDICTIONS = {"epsilon": "epsilon", "v": "v_prediction", "sample": "sample"}
SAMPLERS: dict[str, tuple[type, dict[str, Any]]] = {
    "euler": (diffusers.EulerDiscreteScheduler, {}),
    "euler-a": (diffusers.EulerAncestralDiscreteScheduler, {}),
    "ddim": (diffusers.DDIMScheduler, {"clip_sample": False, "set_alpha_to_one": True}),
    "dpm++2m": (diffusers.DPMSolverMultistepScheduler, {}),
    "dpm++2m-karras": (diffusers.DPMSolverMultistepScheduler, {"use_karras_sigmas": True}),
    "lcm": (diffusers.LCMScheduler, {}),
}


def fake_model(z: torch.Tensor, timestep: float) -> torch.Tensor:
    """u / (1 + |u|) with u = (0.6 + 0.0004 t) z + 0.3 (i mod 5 - 2), in double precision."""
    index = torch.arange(z.numel(), dtype=torch.float64).reshape(z.shape)
    u = (0.6 + 0.0004 * timestep) * z.double() + 0.3 * (index % 5 - 2)
    return (u / (1 + u.abs())).float()


def reason_to_skip(sampler: str, spacing: str, steps: int, prediction: str) -> str | None:
    if sampler == "euler-a" and prediction == "sample":
        return "EulerAncestralDiscreteScheduler does not implement it"
    if sampler == "ddim" and spacing == "linspace" and steps > 1:
        return "DDIMScheduler steps to timestep - 1000 // steps, which is not its next timestep in this spacing"
    return None


def make(sampler: str, beta_end: float, spacing: str, prediction: str) -> Any:
    scheduler, settings = SAMPLERS[sampler]
    return scheduler(
        num_train_timesteps=TRAIN_TIMESTEPS,
        beta_start=BETA_START,
        beta_end=beta_end,
        beta_schedule="scaled_linear",
        timestep_spacing=spacing,
        steps_offset=1,
        prediction_type=PREDICTIONS[prediction],
        **settings,
    )


def levels(scheduler: Any) -> list[float]:
    if hasattr(scheduler, "sigmas"):
        return [float(sigma) for sigma in scheduler.sigmas]
    kept = scheduler.alphas_cumprod[scheduler.timesteps]
    return [float(sigma) for sigma in ((1 - kept) / kept) ** 0.5] + [0.0]


def initial_scale(scheduler: Any) -> float:
    """The scale of the first latents in sigma space; diffusers keeps some in alpha space, where it is 1."""
    if isinstance(scheduler, (diffusers.EulerDiscreteScheduler, diffusers.EulerAncestralDiscreteScheduler)):
        return float(scheduler.init_noise_sigma)
    assert float(scheduler.init_noise_sigma) == 1.0
    return float((levels(scheduler)[0] ** 2 + 1) ** 0.5)


def run(scheduler: Any, steps: int) -> dict[str, Any]:
    scheduler.set_timesteps(steps)
    generator = torch.Generator("cpu").manual_seed(SEED)
    x = torch.randn(SHAPE, generator=generator) * scheduler.init_noise_sigma
    for timestep in scheduler.timesteps:
        output = fake_model(scheduler.scale_model_input(x, timestep), float(timestep))
        x = scheduler.step(output, timestep, x, generator=generator).prev_sample
    assert x.dtype == torch.float32 and bool(x.isfinite().all())
    return {
        "latents": [float(value) for value in x.flatten()],
        "next_normal": float(torch.randn(1, generator=generator)),
    }


def short(value: Any) -> Any:
    """Nine significant digits tell every float32 from its neighbours."""
    if isinstance(value, float):
        return float(f"{value:.9g}")
    if isinstance(value, list):
        return [short(item) for item in value]
    if isinstance(value, dict):
        return {key: short(item) for key, item in value.items()}
    return value


def main() -> None:
    logging.disable(logging.WARNING)
    cases, skipped = [], []
    for sampler, beta_end, spacing, steps in itertools.product(
        SAMPLERS, BETA_ENDS, SPACINGS, STEPS + STEPS_WITHOUT_RUNS
    ):
        if steps in STEPS_WITHOUT_RUNS and beta_end != BETA_ENDS[0]:
            continue
        scheduler = make(sampler, beta_end, spacing, "epsilon")
        scheduler.set_timesteps(steps)
        runs = []
        for prediction in PREDICTIONS if steps in STEPS else []:
            reason = reason_to_skip(sampler, spacing, steps, prediction)
            if reason:
                skipped.append(f"{sampler}, beta_end {beta_end}, {spacing}, {steps} steps, {prediction}: {reason}")
            else:
                runs.append({"prediction": prediction, **run(make(sampler, beta_end, spacing, prediction), steps)})
        cases.append(
            {
                "sampler": sampler,
                "beta_end": beta_end,
                "spacing": spacing,
                "steps": steps,
                "timesteps": [float(timestep) for timestep in scheduler.timesteps],
                "sigmas": levels(scheduler),
                "initial_scale": initial_scale(scheduler),
                "runs": runs,
            }
        )
    provenance = {
        "command": "python export/golden_sampling.py > tests/golden/sampling.json",
        "diffusers": diffusers.__version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "skipped": skipped,
    }
    print('{"provenance": ' + json.dumps(provenance, indent=1) + ', "cases": [')
    print(",\n".join(json.dumps(short(case), separators=(",", ":")) for case in cases))
    print("]}")


if __name__ == "__main__":
    main()
