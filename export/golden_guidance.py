"""Writes tests/golden/guidance.json: guided clean latents, for tests/guidance.rs.

Run: python export/golden_guidance.py > tests/golden/guidance.json
Each case is a method with its settings, a prediction type, and steps with their clean latents; step k works on the
inputs rolled by 7 k values. Where diffusers has a guider, it gave the numbers, in double precision; its schedulers
turned outputs into clean latents and thresholded them. For the methods that diffusers does not have, the functions
below are written in double precision from the equations that they name, and from nothing of calotype's.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeAlias

import diffusers
import numpy as np
import torch
from diffusers import guiders
from diffusers.guiders.adaptive_projected_guidance import MomentumBuffer
from diffusers.guiders.guider_utils import rescale_noise_cfg

from digits import short

Array: TypeAlias = np.ndarray[Any, np.dtype[np.float64]]
Inputs: TypeAlias = dict[str, Array]

SHAPE = (1, 4, 5, 5)
SEED = 11
ROLL = 7
# Exact in single precision, which diffusers' schedulers keep them in.
SIGMAS = [10.0, 2.5, 0.375]
FLOW_SIGMAS = [0.875, 0.5, 0.125]
SIGMA_DATA = 0.5
PREDICTIONS = ["epsilon", "v", "sample", "flow", "edm", "edm_v"]
INTERVALS = [(10, 0.2, 0.7), (20, 0.0, 0.33), (7, 0.4, 1.0), (4, 0.3, 0.6), (25, 0.04, 0.96)]


def make_inputs() -> Inputs:
    """Predictions that agree for the most part, as those of a model do."""
    generator = torch.Generator("cpu").manual_seed(SEED)
    shared = torch.randn(SHAPE, generator=generator) + 0.1
    inputs = {"x": 3 * torch.randn(SHAPE, generator=generator)}
    for name in ["negative_without_picture", "negative", "empty", "positive_0", "positive_1", "source"]:
        inputs[name] = shared + 0.4 * torch.randn(SHAPE, generator=generator)
    return {name: value.double().numpy() for name, value in inputs.items()}


def rolled(inputs: Inputs, step: int) -> Inputs:
    return {name: np.roll(value.reshape(-1), ROLL * step).reshape(SHAPE) for name, value in inputs.items()}


def tensor(array: Array) -> torch.Tensor:
    return torch.from_numpy(array)


def sigmas_of(prediction: str) -> list[float]:
    return FLOW_SIGMAS if prediction == "flow" else SIGMAS


def euler(prediction: str, sigma: float) -> Any:
    names = {"epsilon": "epsilon", "v": "v_prediction", "sample": "sample"}
    scheduler = diffusers.EulerDiscreteScheduler(prediction_type=names[prediction])
    scheduler.set_timesteps(2)
    scheduler.sigmas = torch.tensor([sigma, 0.0])
    scheduler.timesteps = torch.tensor([500.0, 0.0])
    return scheduler


def edm(prediction: str) -> Any:
    names = {"edm": "epsilon", "edm_v": "v_prediction"}
    return diffusers.EDMEulerScheduler(prediction_type=names[prediction], sigma_data=SIGMA_DATA)


def clean(prediction: str, x: Array, output: Array, sigma: float) -> Array:
    """The clean latents by diffusers' schedulers."""
    if prediction == "flow":
        scheduler = diffusers.DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
        scheduler.sigmas = torch.tensor([sigma], dtype=torch.float64)
        scheduler._step_index = 0
        denoised = scheduler.convert_model_output(tensor(output), sample=tensor(x))
    elif prediction in ("edm", "edm_v"):
        denoised = edm(prediction).precondition_outputs(tensor(x), tensor(output), sigma)
    else:
        scheduler = euler(prediction, sigma)
        denoised = scheduler.step(tensor(output), scheduler.timesteps[0], tensor(x)).pred_original_sample
    return np.asarray(denoised.double().numpy())


def input_scale(prediction: str, sigma: float) -> float:
    one = torch.ones(1, dtype=torch.float64)
    if prediction == "flow":
        return 1.0  # diffusers' pipelines of flow models scale nothing.
    if prediction in ("edm", "edm_v"):
        return float(edm(prediction).precondition_inputs(one, sigma))
    scheduler = euler(prediction, sigma)
    return float(scheduler.scale_model_input(one, scheduler.timesteps[0]))


def together(base: Array, prompts: list[Array], weights: Iterable[float]) -> Array:
    """Liu et al. 2022, algorithm 1, at a scale of 1."""
    pulls = [weight * (prompt - base) for weight, prompt in zip(weights, prompts, strict=True)]
    return base + np.sum(pulls, axis=0)


def perpendicular(empty: Array, cond: Array, negative: Array, scale: float, negative_scale: float) -> Array:
    """Armandpour et al. 2023, with one negative prompt."""
    main, against = cond - empty, negative - empty
    parallel = np.vdot(against, main) / np.vdot(main, main) * main
    return empty + scale * (main - negative_scale * (against - parallel))


def edited(bare: Array, image: Array, cond: Array, scale: float, image_scale: float) -> Array:
    """Brooks et al. 2023, equation 3."""
    return bare + image_scale * (image - bare) + scale * (cond - image)


def dynamic_threshold(base: Array, cond: Array, scale: float, mimic: dict[str, Any]) -> Array:
    """sd-dynamic-thresholding's description of itself: two guided results, each around the mean of its channels; the
    high one is clipped to the larger of the two ranges, and that is scaled to the range of the low one."""
    high, low = base + scale * (cond - base), base + mimic["scale"] * (cond - base)
    means = high.mean(axis=(2, 3), keepdims=True)
    centred_high, centred_low = high - means, low - low.mean(axis=(2, 3), keepdims=True)
    axis = (2, 3) if mimic["per_channel"] else None
    if mimic["measure"] == "largest":
        range_low = np.abs(centred_low).max(axis=axis, keepdims=True)
        range_high = np.quantile(np.abs(centred_high), mimic["percentile"], axis=axis, keepdims=True)
    else:
        range_low = centred_low.std(axis=axis, keepdims=True, ddof=1)
        range_high = centred_high.std(axis=axis, keepdims=True, ddof=1)
    if mimic["origin"] == "zero":
        result = high * range_low / range_high
    elif mimic["measure"] == "largest":
        larger = np.maximum(range_low, range_high)
        result = means + np.clip(centred_high, -larger, larger) / larger * range_low
    else:
        result = means + centred_high / range_high * range_low
    return np.asarray(mimic["share"] * result + (1 - mimic["share"]) * high)


class Residual:
    """Kodaira et al. 2023, section 3.2, in the paper's terms: z = sqrt(a) x0 + sqrt(b) noise with a + b = 1."""

    def __init__(self, delta: float, source: Array | None) -> None:
        self.delta = delta
        self.clean = source

    def step(self, x: Array, negative: Array, cond: Array, sigma: float, scale: float) -> Array:
        a = 1 / (1 + sigma**2)
        b = 1 - a
        z = np.sqrt(a) * x
        if self.clean is None:
            self.clean = (z - np.sqrt(b) * negative) / np.sqrt(a)
        virtual = self.delta * (z - np.sqrt(a) * self.clean) / np.sqrt(b)
        noise = virtual + scale * (cond - virtual)
        return np.asarray((z - np.sqrt(b) * noise) / np.sqrt(a))


def cond_of(here: Inputs, base: str, weights: Iterable[float]) -> Array:
    weights = list(weights)
    return together(here[base], [here[f"positive_{index}"] for index in range(len(weights))], weights)


def forward(guider: Any, cond: Array, uncond: Array, step: int) -> Array:
    guider.set_state(step=step, num_inference_steps=len(SIGMAS), timestep=torch.tensor(0))
    return np.asarray(guider.forward(tensor(cond), tensor(uncond)).pred.double().numpy())


class Case:
    """What a case is called in the golden file, and its inputs."""

    def __init__(
        self,
        inputs: Inputs,
        method: dict[str, Any],
        scale: float,
        prediction: str = "epsilon",
        weights: tuple[float, ...] = (1.0,),
        steps: int = 1,
    ) -> None:
        self.inputs, self.prediction, self.weights, self.steps = inputs, prediction, weights, steps
        self.record = {"method": method, "scale": scale, "weights": list(weights), "prediction": prediction}

    def cleaned(self, here: Inputs, output: Array, sigma: float) -> Array:
        return clean(self.prediction, here["x"], output, sigma)

    def of_outputs(self, source: str, guided: Callable[[Inputs, int], Array]) -> dict[str, Any]:
        """The case of a method that works on what the model puts out."""
        return self.of_clean(source, lambda here, step, sigma: self.cleaned(here, guided(here, step), sigma))

    def of_clean(self, source: str, guided: Callable[[Inputs, int, float], Array]) -> dict[str, Any]:
        """The case of a method that works on clean latents."""
        steps = []
        for step, sigma in enumerate(sigmas_of(self.prediction)[: self.steps]):
            denoised = guided(rolled(self.inputs, step), step, sigma)
            assert np.isfinite(denoised).all()
            steps.append({"sigma": sigma, "denoised": [float(value) for value in denoised.reshape(-1)]})
        return {"source": source, **self.record, "steps": steps}

    def of_guider(self, guider: Any) -> dict[str, Any]:
        """The case of one of diffusers' guiders."""
        return self.of_outputs(
            f"diffusers.guiders.{type(guider).__name__}",
            lambda here, step: forward(guider, cond_of(here, "negative", self.weights), here["negative"], step),
        )


def cfg_cases(inputs: Inputs) -> Iterator[dict[str, Any]]:
    for prediction in PREDICTIONS:
        for scale in [7.5, 1.0]:
            case = Case(inputs, {"cfg": {"rescale": 0.0}}, scale, prediction, steps=3)
            yield case.of_guider(guiders.ClassifierFreeGuidance(scale))
    settings: list[tuple[float, float, tuple[float, ...]]] = [
        (0.0, 0.0, (1.0,)),
        (3.0, 1.0, (1.0,)),
        (7.5, 0.7, (1.0,)),
        (5.0, 0.0, (0.7, 0.8)),
        (5.0, 0.5, (1.0, -0.4)),
    ]
    for scale, rescale, weights in settings:
        case = Case(inputs, {"cfg": {"rescale": rescale}}, scale, "v", weights)
        yield case.of_guider(guiders.ClassifierFreeGuidance(scale, rescale))


def zero_star_cases(inputs: Inputs) -> Iterator[dict[str, Any]]:
    for prediction, zero_steps, rescale in [("flow", 1, 0.0), ("flow", 0, 0.6), ("v", 0, 0.0), ("epsilon", 2, 0.0)]:
        method = {"zero_star": {"zero_steps": zero_steps, "rescale": rescale}}
        case = Case(inputs, method, 4.0, prediction, steps=3)
        yield case.of_guider(guiders.ClassifierFreeZeroStarGuidance(4.0, zero_steps, rescale))


def projected_cases(inputs: Inputs) -> Iterator[dict[str, Any]]:
    scale = 10.0
    settings: list[tuple[str, float, float, float | None, tuple[float, ...]]] = [
        ("epsilon", 0.0, -0.5, 2.5, (1.0,)),
        ("epsilon", 0.0, -0.75, None, (1.0,)),
        ("v", 0.3, 0.0, 2.5, (1.0,)),
        ("flow", 0.0, 0.0, None, (1.0,)),
        ("edm", 1.0, 0.5, 1.0, (0.6, 0.5)),
    ]
    for prediction, eta, momentum, threshold, weights in settings:
        method = {"projected": {"eta": eta, "momentum": momentum, "norm_threshold": threshold}}
        case = Case(inputs, method, scale, prediction, weights, steps=3)
        # The original formulation is `cond + (scale - 1) * update`.
        guider = guiders.AdaptiveProjectedGuidance(
            guidance_scale=scale - 1.0,
            adaptive_projected_guidance_rescale=threshold or 0.0,
            eta=eta,
            use_original_formulation=True,
        )
        guider.momentum_buffer = MomentumBuffer(momentum)

        def guided(here: Inputs, step: int, sigma: float, case: Case = case, guider: Any = guider) -> Array:
            outputs = [cond_of(here, "negative", case.weights), here["negative"]]
            cond, uncond = (case.cleaned(here, output, sigma) for output in outputs)
            return forward(guider, cond, uncond, step)

        yield case.of_clean("diffusers.guiders.AdaptiveProjectedGuidance, original formulation, clean latents", guided)


def perpendicular_cases(inputs: Inputs) -> Iterator[dict[str, Any]]:
    settings: list[tuple[float, float, float, tuple[float, ...]]] = [
        (8.0, 1.0, 0.0, (1.0,)),
        (1.0, 2.0, 0.0, (1.0,)),
        (8.0, 0.0, 0.0, (1.0,)),
        (6.0, 1.5, 0.7, (0.8, 0.5)),
    ]
    for scale, negative_scale, rescale, weights in settings:
        method = {"perpendicular": {"negative_scale": negative_scale, "rescale": rescale}}
        case = Case(inputs, method, scale, weights=weights)

        def guided(
            here: Inputs, step: int, case: Case = case, settings: Any = (scale, negative_scale, rescale)
        ) -> Array:
            scale, negative_scale, rescale = settings
            cond = cond_of(here, "empty", case.weights)
            output = perpendicular(here["empty"], cond, here["negative"], scale, negative_scale)
            return np.asarray(rescale_noise_cfg(tensor(output), tensor(cond), rescale).numpy())

        yield case.of_outputs("perpendicular, in the script, and diffusers' rescale_noise_cfg", guided)


def edit_cases(inputs: Inputs) -> Iterator[dict[str, Any]]:
    for scale, image_scale in [(7.5, 1.5), (0.5, 1.0), (3.0, 2.0)]:

        def guided(here: Inputs, step: int, scales: tuple[float, float] = (scale, image_scale)) -> Array:
            return edited(here["negative_without_picture"], here["negative"], here["positive_0"], *scales)

        case = Case(inputs, {"edit": {"image_scale": image_scale}}, scale)
        yield case.of_outputs("edited, in the script", guided)


def dynamic_threshold_cases(inputs: Inputs) -> Iterator[dict[str, Any]]:
    scale = 15.0
    usual = {
        "scale": 4.0,
        "percentile": 1.0,
        "share": 1.0,
        "per_channel": True,
        "origin": "mean",
        "measure": "largest",
    }
    changes: list[tuple[dict[str, Any], tuple[float, ...]]] = [
        ({}, (1.0,)),
        ({"percentile": 0.9}, (1.0,)),
        ({"percentile": 0.9, "per_channel": False}, (1.0,)),
        ({"measure": "deviation"}, (1.0,)),
        ({"measure": "deviation", "per_channel": False, "origin": "zero"}, (1.0,)),
        ({"percentile": 0.95, "origin": "zero", "share": 0.6}, (1.0,)),
        ({"percentile": 0.9, "share": 0.7}, (0.7, 0.6)),
    ]
    for change, weights in changes:
        mimic = {**usual, **change}
        case = Case(inputs, {"dynamic_threshold": mimic}, scale, weights=weights)

        def guided(here: Inputs, step: int, sigma: float, case: Case = case, mimic: Any = mimic) -> Array:
            outputs = [here["negative"], cond_of(here, "negative", case.weights)]
            base, cond = (case.cleaned(here, output, sigma) for output in outputs)
            return dynamic_threshold(base, cond, scale, mimic)

        yield case.of_clean("dynamic_threshold, in the script", guided)


def residual_cases(inputs: Inputs) -> Iterator[dict[str, Any]]:
    scale = 1.6
    for residue, delta in [("source", 1.0), ("source", 0.8), ("first_negative", 1.0), ("first_negative", 0.6)]:
        residual = Residual(delta, inputs["source"] if residue == "source" else None)

        def guided(here: Inputs, step: int, sigma: float, residual: Residual = residual) -> Array:
            return residual.step(here["x"], here["negative"], here["positive_0"], sigma, scale)

        case = Case(inputs, {"residual": {"residue": residue, "delta": delta}}, scale, steps=3)
        yield case.of_clean("Residual, in the script", guided)


def make_cases(inputs: Inputs) -> list[dict[str, Any]]:
    families = [
        cfg_cases,
        zero_star_cases,
        projected_cases,
        perpendicular_cases,
        edit_cases,
        dynamic_threshold_cases,
        residual_cases,
    ]
    return [case for family in families for case in family(inputs)]


def make_intervals() -> list[dict[str, Any]]:
    intervals = []
    for steps, start, stop in INTERVALS:
        guider = guiders.ClassifierFreeGuidance(start=start, stop=stop)
        guided = []
        for step in range(steps):
            guider.set_state(step=step, num_inference_steps=steps, timestep=torch.tensor(0))
            guided.append(guider.num_conditions == 2)
        intervals.append({"steps": steps, "start": start, "stop": stop, "guided": guided})
    return intervals


def make_thresholds(inputs: Inputs) -> list[dict[str, Any]]:
    """By DDIMScheduler, whose model predicts the sample itself."""
    settings: list[dict[str, float]] = [
        {"range": 1.0},
        {"range": 2.5},
        {"ratio": 0.9, "max": 100.0},
        {"ratio": 0.995, "max": 100.0},
        {"ratio": 0.995, "max": 1.5},
        {"ratio": 0.1, "max": 2.0},
    ]
    thresholds = []
    sample = tensor(inputs["x"])
    for setting in settings:
        if "range" in setting:
            scheduler = diffusers.DDIMScheduler(clip_sample_range=setting["range"], prediction_type="sample")
        else:
            scheduler = diffusers.DDIMScheduler(
                clip_sample=False,
                thresholding=True,
                dynamic_thresholding_ratio=setting["ratio"],
                sample_max_value=setting["max"],
                prediction_type="sample",
            )
        scheduler.set_timesteps(10)
        kept = scheduler.step(sample, scheduler.timesteps[5], sample).pred_original_sample
        thresholds.append({**setting, "denoised": [float(value) for value in kept.reshape(-1)]})
    return thresholds


def make_embeddings() -> list[dict[str, Any]]:
    embed = diffusers.LatentConsistencyModelPipeline.get_guidance_scale_embedding
    embeddings = []
    for scale, width in [(1.0, 8), (8.5, 8), (3.0, 9), (7.5, 256)]:
        row = embed(None, torch.tensor([scale - 1.0], dtype=torch.float64), width, torch.float64)[0]
        embeddings.append({"scale": scale, "embedding": [float(value) for value in row]})
    return embeddings


def main() -> None:
    logging.disable(logging.WARNING)
    inputs = make_inputs()
    golden = {
        "provenance": {
            "command": "python export/golden_guidance.py > tests/golden/guidance.json",
            "diffusers": diffusers.__version__,
            "torch": torch.__version__,
            "numpy": np.__version__,
        },
        "inputs": {name: [float(number) for number in value.reshape(-1)] for name, value in inputs.items()},
        "input_scales": [
            {"prediction": prediction, "sigma": sigma, "scale": input_scale(prediction, sigma)}
            for prediction in PREDICTIONS
            for sigma in sigmas_of(prediction)
        ],
        "intervals": make_intervals(),
        "thresholds": make_thresholds(inputs),
        "embeddings": make_embeddings(),
    }
    lines = [f"{json.dumps(key)}: {json.dumps(short(value), separators=(',', ':'))}" for key, value in golden.items()]
    cases = [json.dumps(short(case), separators=(",", ":")) for case in make_cases(inputs)]
    print("{" + ",\n".join(lines) + ',\n"cases": [\n' + ",\n".join(cases) + "\n]}")


if __name__ == "__main__":
    main()
