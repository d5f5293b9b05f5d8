"""Prints what steps cost diffusers besides the U-Net, for benches/record.

    python host_time.py

It is the counterpart of `cargo bench --bench host`: schedulers and guidance on 1x4x128x128 latents, in runs of 20 steps
under a model that costs nothing, on one thread; medians per step.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import diffusers
import torch

SHAPE = (1, 4, 128, 128)
STEPS = 20
RUNS = 20
SCALE = 7.5
SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "euler": ("EulerDiscreteScheduler", {}),
    "euler-a": ("EulerAncestralDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "dpm2": ("KDPM2DiscreteScheduler", {}),
    "dpm2-a": ("KDPM2AncestralDiscreteScheduler", {}),
    "lms": ("LMSDiscreteScheduler", {}),
    "ddim": ("DDIMScheduler", {"clip_sample": False}),
    "ddpm": ("DDPMScheduler", {"clip_sample": False}),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True}),
    "dpm++2m": ("DPMSolverMultistepScheduler", {}),
    "dpm++3m": ("DPMSolverMultistepScheduler", {"solver_order": 3}),
    "dpm++2m-sde:noise=stream": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "dpm++2s": ("DPMSolverSinglestepScheduler", {}),
    "dpm++sde": ("DPMSolverSDEScheduler", {}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "deis": ("DEISMultistepScheduler", {}),
    "lcm": ("LCMScheduler", {}),
    "tcd": ("TCDScheduler", {}),
}


def run(name: str, settings: dict[str, Any], noise: torch.Tensor, output: torch.Tensor) -> float:
    """Seconds per step."""
    scheduler: Any = getattr(diffusers, name)(**settings)
    scheduler.set_timesteps(STEPS)
    x = noise * scheduler.init_noise_sigma
    started = time.perf_counter()
    for timestep in scheduler.timesteps:
        scheduler.scale_model_input(torch.cat([x] * 2), timestep)
        uncond, cond = output.chunk(2)
        guided = uncond + SCALE * (cond - uncond)
        x = scheduler.step(guided, timestep, x).prev_sample
    return (time.perf_counter() - started) / STEPS


@torch.no_grad()
def main() -> None:
    torch.set_num_threads(1)
    diffusers.utils.logging.set_verbosity_error()
    noise, output = torch.randn(SHAPE), torch.randn(2, *SHAPE[1:])
    print(f"diffusers {diffusers.__version__}, torch {torch.__version__}, {SHAPE}, one thread")
    for sampler, (name, settings) in SCHEDULERS.items():
        run(name, settings, noise, output)
        median = statistics.median(run(name, settings, noise, output) for _ in range(RUNS))
        print(f"{sampler:26} {1000 * median:7.3f} ms a step")


if __name__ == "__main__":
    main()
