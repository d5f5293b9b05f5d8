"""The memory contract, measured: every run inside a cgroup whose limit is the budget, so that a broken promise
kills the process.

    python benches/memory.py PART MODELS RESULTS [--calotype PROGRAM] [--optimum PYTHON] [--sdcpp PROGRAM]
        [--onnxstream PROGRAM] [--wheel OPEN_CLIP_WHEEL] [--steps N] [--only TEXT] [--drop-caches] [--warm]

PART is one of

    make        the models that MODELS lacks: real width, random weights (export/real_width.py), and packs of them
    contract    calotype within budgets, beside itself without one and optimum's U-Net
    prediction  `calotype plan` beside measured peaks
    peers       stable-diffusion.cpp and OnnxStream within the same budgets
    cold        from process start to the end of the first step, with the page cache warm and cold
    all         these in this order
    table       prints RESULTS as Markdown

Measurements are appended to RESULTS as JSON lines; the table takes the median of the times and the highest of the peaks
where a line stands there more than once. What has no program is left out. `make` and `optimum` need what
export/README.md names; the rest is the standard library.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import re
import signal
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cgroup

MIB = 1 << 20
EXPORT = Path(__file__).resolve().parent.parent / "export"
PROMPT = "a photograph of an astronaut riding a horse, 4k"
NEGATIVE = "blurry, low quality"
SEED = 33
SCALE = 7.5
REFUSED = 5
"""The exit code of what does not fit."""
AT_ONCE_S = 2.0
"""How long a refusal may take."""
OVER = 1.25
"""How far a prediction may be over the measurement."""

Record = dict[str, Any]
Command = list[str | Path]


@dataclass(frozen=True)
class Case:
    """A line of the contract."""

    model: str
    size: int
    budget_mib: int
    of_optimum: float | None = None
    """A U-Net call's time at most, in optimum's with f32 and no limit."""
    of_unlimited: float | None = None
    """The whole time at most, in calotype's own without a budget."""
    refused: bool = False
    repeats: int = 1


CONTRACT = [
    Case("builtin", 128, 96, of_unlimited=1.2, repeats=5),
    Case("sd15-f32", 512, 1024, of_optimum=2),
    Case("sd15-f16", 512, 1024, of_optimum=2),
    Case("sd15-f32", 512, 512, of_optimum=3),
    Case("sd15-f16", 512, 512, of_optimum=3),
    Case("sd15-int8", 512, 300, of_optimum=1.25),
    Case("sd15-int8", 512, 200, of_optimum=2),
    Case("sdxl-int8", 1024, 1024),
    Case("sdxl-int8", 1024, 512),
    Case("sd15-f16", 512, 64, refused=True),
]

# Beside the contract's own lines, which are compared with their plans too: other sizes.
PREDICTED: list[tuple[str, int, int | None]] = [
    ("builtin", 512, None),
    ("builtin", 512, 192),
    ("sd15-f16", 256, None),
    ("sd15-f16", 256, 512),
    ("sd15-f16", 768, 1024),
    ("sd15-f32", 256, 512),
    ("sd15-int8", 256, None),
    ("sd15-int8", 256, 300),
    ("sd15-int8", 768, 512),
    # What issue reports had: weights kept whole, and pictures whose activations are most of what is taken.
    ("sd15-mid-f16", 256, None),
    ("sd15-mid-f16", 256, 645),
    ("sd15-mid-f16", 256, 690),
    ("sd15-mid-f32", 256, 690),
    ("sd15-mid-f16", 2048, 725),
    ("builtin", 2048, 725),
    # With a LoRA of rank 16 on all attention, 128 layers: refused, refused, and the least that is not.
    ("sd15-mid-f16+lora", 256, 80),
    ("sd15-mid-f16+lora", 256, 110),
    ("sd15-mid-f16+lora", 256, 150),
    ("builtin", 64, 75),
]

# What the name of a model ends with that is run with a LoRA.
LORA = "+lora"

PEER_BUDGETS_MIB = [None, 1024, 512, 300, 200]


@dataclass(frozen=True)
class Setting:
    """Where everything is."""

    models: Path
    results: Path
    calotype: Path
    optimum: Path | None
    sdcpp: Path | None
    onnxstream: Path | None
    wheel: Path | None
    steps: int
    only: str
    drop_caches: bool
    warm: bool

    def wanted(self, name: str) -> bool:
        return self.only in name

    def files(self, model: str) -> list[Path]:
        """What a run with the model reads: the program, its library and the weights."""
        library = self.calotype.parent / "libonnxruntime.so"
        folder = self.models / model.removesuffix(LORA)
        return [f for f in (self.calotype, library, folder) if f.exists()]

    def picture(self) -> Path:
        return self.results.with_suffix(".png")

    def keep(self, record: Record) -> None:
        record["load"] = os.getloadavg()[0]
        with self.results.open("a") as file:
            file.write(json.dumps(record) + "\n")
        run = record.get("run", {})
        said = {key: value for key, value in record.items() if key not in ("run", "plan") and value is not None}
        if run:
            peak_mib = round(run["rss_peak_bytes"] / MIB)
            said |= {"exit_code": run["exit_code"], "wall_s": round(run["wall_s"], 2), "peak_mib": peak_mib}
        print(json.dumps(said), flush=True)


def main() -> None:
    parts = {"make": make, "contract": contract, "prediction": prediction, "peers": peers, "cold": cold}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=[*parts, "all", "table", "optimum"])
    parser.add_argument("models", type=Path)
    parser.add_argument("results", type=Path)
    parser.add_argument("--calotype", type=Path, default=Path("target/release/calotype"))
    parser.add_argument("--optimum", type=Path, help="a Python interpreter with optimum-onnx")
    parser.add_argument("--sdcpp", type=Path, help="stable-diffusion.cpp's command line")
    parser.add_argument("--onnxstream", type=Path, help="OnnxStream's `sd`")
    parser.add_argument("--wheel", type=Path, help="open_clip_torch, for CLIP's merges; needed to make models")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--only", default="", help="only what has this in its name, as in sd15-f16-512-1024")
    parser.add_argument("--drop-caches", action="store_true", help="cold is the whole machine, not the models alone")
    parser.add_argument("--warm", action="store_true", help="contract with the model's files in the page cache")
    flags = vars(parser.parse_args())
    part = flags.pop("part")
    if part == "optimum":
        return time_optimum(flags["models"])
    setting = Setting(**flags)
    if part == "table":
        return print(table([json.loads(line) for line in setting.results.read_text().splitlines()]))
    # Asked to stop, it must take the run and its group along.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    setting.keep(machine(setting))
    for name, measure in parts.items():
        if part in (name, "all"):
            measure(setting)


# Models


def make(setting: Setting) -> None:
    """What is missing of the models."""
    setting.models.mkdir(parents=True, exist_ok=True)
    for model in ("sd15-f16", "sd15-f32", "sdxl-f16", "sd15-mid-f16", "sd15-mid-f32"):
        if setting.wanted(model) and not (setting.models / model).exists():
            assert setting.wheel, f"--wheel: expected open_clip_torch's wheel to make {model}, got none"
            sys.path.insert(0, str(EXPORT))
            import real_width

            part = setting.models / f"{model}.part"
            part.mkdir()
            family, _, precision = model.rpartition("-")
            real_width.make(family, part, setting.wheel, precision)
            part.rename(setting.models / model)
            if family == "sd15-mid":
                write_lora(setting.models / model)
    for model in ("sd15-int8", "sdxl-int8"):
        folder, source = setting.models / model, setting.models / model.replace("int8", "f16")
        if setting.wanted(model) and not folder.exists():
            subprocess.run([setting.calotype, "pack", source, folder, "--weights", "int8"], check=True)
    source = setting.models / "sd15-f16"
    exported = setting.models / "sd15-onnx"
    if setting.optimum and setting.wanted("sd15-onnx") and not exported.exists():
        part = setting.models / "sd15-onnx.part"
        command: Command = [setting.optimum.parent / "optimum-cli", "export", "onnx", "--task", "text-to-image"]
        subprocess.run([*command, "--model", source, part], check=True)
        part.rename(exported)
    file = setting.models / "sd15-q8_0.gguf"
    if setting.sdcpp and setting.wanted(file.name) and not file.exists():
        subprocess.run([setting.sdcpp, "-M", "convert", "-m", source, "-o", file, "--type", "q8_0"], check=True)


def write_lora(folder: Path) -> None:
    """Beside a diffusers folder, a LoRA of rank 16 on every projection of the U-Net's attention, as PEFT names it."""
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file

    torch.manual_seed(16)
    tensors: dict[str, torch.Tensor] = {}
    with safe_open(folder / "unet" / "diffusion_pytorch_model.safetensors", "pt") as weights:
        layers = [k for k in weights.keys() if re.search(r"\.attn[12]\.to_.*\.weight$", k)]  # noqa: SIM118
        for name in layers:
            rows, columns = weights.get_slice(name).get_shape()
            module = "unet." + name.removesuffix(".weight")
            tensors[f"{module}.lora_A.weight"] = (torch.randn(16, columns) * 0.02).half()
            tensors[f"{module}.lora_B.weight"] = (torch.randn(rows, 16) * 0.02).half()
    assert len(layers) == 128, f"expected 128 layers, got {len(layers)}"
    save_file(tensors, folder.with_name(folder.name + LORA + ".safetensors"))


# calotype


def generate(setting: Setting, model: str, size: int, budget_mib: int | None, steps: int) -> Command:
    command: Command = [setting.calotype, "generate", PROMPT, "-n", NEGATIVE, "--json", "--seed", str(SEED)]
    command += ["--sampler", "euler", "--steps", str(steps), "--guidance", str(SCALE), "--size", f"{size}x{size}"]
    # One step of leading spacing, the models' own, begins where there is almost no noise, and is refused.
    command += [] if steps > 1 else ["--schedule", "trailing"]
    return [*command, "-o", setting.picture(), *model_and_budget(setting, model, budget_mib)]


def model_and_budget(setting: Setting, model: str, budget_mib: int | None) -> Command:
    folder = setting.models / model.removesuffix(LORA)
    flags: Command = [] if model == "builtin" else ["-m", folder]
    if model.endswith(LORA):
        flags += ["--lora", setting.models / f"{model}.safetensors"]
    return flags if budget_mib is None else [*flags, "--memory", f"{budget_mib}MiB"]


def draw(setting: Setting, model: str, size: int, budget_mib: int | None, steps: int) -> Record:
    """One picture within a budget, whose limit is also the kernel's. What it reads is charged to it, unless warm."""
    plan = planned(setting, model, size, budget_mib)
    stayed_bytes = None
    if setting.warm:
        cgroup.warm(setting.files(model))
    else:
        stayed_bytes = cgroup.evict(setting.files(model))
    limit_bytes = None if budget_mib is None else budget_mib * MIB
    run = cgroup.run(generate(setting, model, size, budget_mib, steps), limit_bytes)
    record = {"subject": "calotype", "model": model, "size": size, "budget_mib": budget_mib, "steps": steps}
    return record | {"plan": plan, "stayed_bytes": stayed_bytes, **kept(run), **seconds(run.out, steps)}


def seconds(out: str, steps: int) -> Record:
    """The times of calotype's report; nothing where there is none."""
    try:
        report = json.loads(out)
        parts = report["images"][0]["seconds"]
    except (ValueError, LookupError, TypeError):
        return {}
    first = report["seconds"]["open"] + parts["text_encoder"] + parts["denoising"]
    return {
        "open_s": report["seconds"]["open"],
        "unet_s": parts["unet"] / steps,
        "first_step_s": first if steps == 1 else None,
    }


def planned(setting: Setting, model: str, size: int, budget_mib: int | None) -> Record | None:
    """What `calotype plan` says; none where it says nothing."""
    command: Command = [setting.calotype, "plan", "--size", f"{size}x{size}", "--json"]
    command += [] if model == "builtin" else [setting.models / model.removesuffix(LORA)]
    command += ["--lora", setting.models / f"{model}.safetensors"] if model.endswith(LORA) else []
    command += [] if budget_mib is None else ["--memory", f"{budget_mib}MiB"]
    done = subprocess.run(command, capture_output=True, text=True)
    try:
        plan = json.loads(done.stdout)
    except ValueError:
        return None
    return plan if done.returncode == 0 and isinstance(plan.get("peak_bytes"), int) else None


def kept(run: cgroup.Run) -> Record:
    """A run without its output, of which the end says why it failed."""
    return {"run": {**asdict(run), "out": run.out[-500:] if run.exit_code else "", "err": run.err[-500:]}}


def contract(setting: Setting) -> None:
    if setting.optimum and setting.wanted("optimum"):
        # optimum opens files of the cache's own pages, as calotype does without a limit.
        run = cgroup.run([setting.optimum, __file__, "optimum", setting.models / "sd15-onnx", "-"])
        assert run.exit_code == 0, run.err[-2000:]
        setting.keep({"kind": "optimum", "size": 512, **json.loads(run.out.splitlines()[-1]), **kept(run)})
    kind = "warm contract" if setting.warm else "contract"
    for case in CONTRACT:
        if not setting.wanted(f"{case.model}-{case.size}-{case.budget_mib}"):
            continue
        for _ in range(case.repeats):
            # The two in turn, so that a change of the machine's speed meets both.
            for budget_mib in [None, case.budget_mib] if case.of_unlimited else [case.budget_mib]:
                steps = 20 if case.model == "builtin" else setting.steps
                setting.keep({"kind": kind, **draw(setting, case.model, case.size, budget_mib, steps)})
    for model in dict.fromkeys(case.model for case in CONTRACT if case.model.startswith("sd15")):
        if setting.wanted(f"{model}-512-none"):
            setting.keep({"kind": kind, **draw(setting, model, 512, None, setting.steps)})


def time_optimum(folder: Path) -> None:
    """In optimum's interpreter: the median time of a U-Net call at 64x64 cells, for one and for two pictures."""
    import numpy as np
    from optimum.onnxruntime import ORTDiffusionPipeline

    pipeline: Any = ORTDiffusionPipeline.from_pretrained(folder)
    width = pipeline.unet.config.cross_attention_dim
    random = np.random.default_rng(SEED)
    medians = {}
    for batch in (1, 2):
        cells = random.standard_normal((batch, 4, 64, 64), dtype=np.float32)
        words = random.standard_normal((batch, 77, width), dtype=np.float32)
        times = []
        for _ in range(6):
            started = time.perf_counter()
            pipeline.unet(cells, np.array(500, dtype=np.int64), words)
            times.append(time.perf_counter() - started)
        medians[f"unet_batch{batch}_s"] = statistics.median(times[1:])  # the first also warms up
    print(json.dumps(medians))


def prediction(setting: Setting) -> None:
    for model, size, budget_mib in PREDICTED:
        if setting.wanted(f"{model}-{size}-{budget_mib or 'none'}"):
            setting.keep({"kind": "prediction", **draw(setting, model, size, budget_mib, 1)})


# Peers


@dataclass(frozen=True)
class Peer:
    name: str
    command: Command
    """Without the number of steps."""
    reads: list[Path]
    first_step: str
    """What it prints when the first step is done."""
    step: str
    """What it prints of a step's time; in one group."""
    unit_s: float
    per_run: bool
    """Whether that is the time of all steps."""
    least_steps: int


def peer_list(setting: Setting) -> list[Peer]:
    """What can be run here of the peers: as they come, and with every setting of theirs that saves memory."""
    found: list[Peer] = []
    words: Command = ["--prompt", PROMPT, "--seed", str(SEED), "--threads", "2", "--output", setting.picture()]
    for form, file in (("f16", setting.models / "sd15-f16"), ("q8_0", setting.models / "sd15-q8_0.gguf")):
        for name, extra in (("", ""), (", least memory", "--mmap --vae-tiling --diffusion-fa")):
            if setting.sdcpp and file.exists():
                command: Command = [setting.sdcpp, "--model", file, *words, "--negative-prompt", NEGATIVE]
                command += [
                    "--cfg-scale",
                    str(SCALE),
                    "--sampling-method",
                    "euler",
                    "--width",
                    "512",
                    "--height",
                    "512",
                ]
                what = f"stable-diffusion.cpp {form}{name}"
                step = r"sampling completed, taking ([\d.]+)s"
                command += [*extra.split(), "--steps"]
                found.append(Peer(what, command, [setting.sdcpp, file], r"\| 1/\d+", step, 1, True, 1))
    folder = setting.models / "sd15-onnxstream"
    for name, extra in (("", ""), (", least memory", "--rpi-lowmem")):
        if setting.onnxstream and folder.exists():
            # Without a terminal it keeps its output back until there is more of it.
            command = ["stdbuf", "-oL", setting.onnxstream, "--models-path", folder, "--download", "never", *words]
            command += ["--neg-prompt", NEGATIVE, "--sampler", "euler", *extra.split(), "--steps"]
            step = r"step:\d+\s+(\d+)ms"
            found.append(Peer(f"OnnxStream{name}", command, [setting.onnxstream, folder], step, step, 1e-3, False, 3))
    return found


def peers(setting: Setting) -> None:
    for peer in peer_list(setting):
        for budget_mib in PEER_BUDGETS_MIB:
            if setting.wanted(f"{peer.name}-{budget_mib or 'none'}"):
                cgroup.evict(peer.reads)
                limit_bytes = None if budget_mib is None else budget_mib * MIB
                steps = max(setting.steps, peer.least_steps)
                run = cgroup.run([*peer.command, str(steps)], limit_bytes)
                record = {"kind": "peer", "subject": peer.name, "size": 512, "budget_mib": budget_mib, "steps": steps}
                setting.keep(record | {"step_s": step_s(peer, run, steps), **kept(run)})


def step_s(peer: Peer, run: cgroup.Run, steps: int) -> float | None:
    times = [float(time) * peer.unit_s for time in re.findall(peer.step, run.out + run.err)]
    if not times:
        return None
    return sum(times) / steps if peer.per_run else statistics.median(times)


# Cold start


def cold(setting: Setting) -> None:
    """Every program from its own files to the end of the first step at 512x512 with guidance."""
    for cache in ("warm", "cold"):
        for model in ("sd15-f16", "sd15-f32", "sd15-int8"):
            if setting.wanted(f"calotype-{model}-{cache}") and (setting.models / model).exists():
                stayed_bytes = prepare(setting, cache, setting.files(model))
                run = cgroup.run(generate(setting, model, 512, None, 1))
                times = seconds(run.out, 1)
                start(setting, f"calotype, {model}", cache, times.get("first_step_s"), stayed_bytes, run)
        if setting.optimum and setting.wanted(f"optimum-{cache}"):
            folder = setting.models / "sd15-onnx"
            stayed_bytes = prepare(setting, cache, [folder])
            command: Command = [setting.optimum, EXPORT / "real_width.py", "draw", "optimum", folder, "512", "2"]
            run = cgroup.run([*command, setting.picture()])
            found = re.search(r'"first_step_s": ([\d.]+)', run.out)
            start(setting, "optimum, its ONNX folder", cache, found and float(found[1]), stayed_bytes, run)
        for peer in peer_list(setting):
            if setting.wanted(f"{peer.name}-{cache}"):
                stayed_bytes = prepare(setting, cache, peer.reads)
                run = cgroup.run([*peer.command, str(peer.least_steps)], marks={"first_step": peer.first_step})
                start(setting, peer.name, cache, run.marks.get("first_step"), stayed_bytes, run)


def prepare(setting: Setting, cache: str, files: list[Path]) -> int | None:
    """Brings the page cache into the state; in the cold one, how many bytes of the files stayed."""
    if cache == "warm":
        cgroup.warm(files)
        return None
    if setting.drop_caches:
        assert cgroup.drop_caches(), "drop_caches: expected the right to, got none; leave out --drop-caches"
    return cgroup.evict(files)


def start(
    setting: Setting, subject: str, cache: str, first_step_s: float | None, stayed_bytes: int | None, run: cgroup.Run
) -> None:
    record: Record = {"kind": "start", "subject": subject, "cache": cache, "first_step_s": first_step_s}
    setting.keep(record | {"whole_machine": setting.drop_caches, "stayed_bytes": stayed_bytes, **kept(run)})


# The record


def machine(setting: Setting) -> Record:
    """What the measurements were made on."""

    def said(*command: str | Path) -> str:
        try:
            return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
        except (OSError, subprocess.CalledProcessError):
            return ""

    cpu = Path("/proc/cpuinfo").read_text()
    model = re.search(r"model name\s*: (.*)", cpu)
    memory = re.search(r"MemTotal:\s+(\d+)", Path("/proc/meminfo").read_text())
    system = re.search(r'PRETTY_NAME="(.*)"', Path("/etc/os-release").read_text())
    doctor = json.loads(said(setting.calotype, "doctor", "--json") or "{}")
    names = [model[1] if model else platform.machine(), *doctor.get("cpu_features", [])]
    packages = "import importlib.metadata as m; print(*(f'{p} {m.version(p)}' for p in "
    packages += "('optimum-onnx', 'onnxruntime', 'torch', 'diffusers')), sep=', ')"
    place = cgroup.hierarchy()
    repository = Path(__file__).resolve().parent
    return {
        "kind": "machine",
        "processor, cores used": f"{', '.join(names)}; {len(os.sched_getaffinity(0))}",
        "memory": f"{int(memory[1]) / MIB:.1f} GiB" if memory else "",
        "system, kernel": f"{system[1] if system else ''}, {platform.release()}",
        "calotype (commit)": said("git", "-C", repository, "rev-parse", "--short", "HEAD"),
        "rustc": said("rustc", "--version"),
        "ONNX Runtime, provider": f"{doctor.get('onnxruntime', {}).get('version')}, CPU",
        "optimum": said(setting.optimum, "-c", packages) if setting.optimum else "",
        "stable-diffusion.cpp": said(setting.sdcpp, "--version").partition("\n")[0] if setting.sdcpp else "",
        "the limit is enforced by": f"cgroup v{place[1]}" if place else "see the runs",
        "date": time.strftime("%Y-%m-%d"),
    }


def table(records: list[Record]) -> str:
    """The results as Markdown."""
    by_kind: dict[str, list[Record]] = {}
    for record in records:
        by_kind.setdefault(record["kind"], []).append(record)
    loads = [record["load"] for record in records]
    about = by_kind["machine"][-1]
    rows = [[key, str(value)] for key, value in about.items() if key not in ("kind", "load") and value]
    parts = [markdown(["", ""], [*rows, ["load before the runs", f"{min(loads):.1f} to {max(loads):.1f}"]])]
    optimum = by_kind.get("optimum", [])
    base_s = median(optimum, "unet_batch2_s")
    if optimum:
        one_s = median(optimum, "unet_batch1_s")
        peak = mib(highest(optimum, "rss_peak_bytes"))
        parts.append(
            f"optimum's U-Net call at 64x64 cells, f32, no limit: {base_s:.2f} s for the two halves of guidance in one "
            f"batch, which all ratios below refer to; {one_s:.2f} s for a batch of one; peak {peak} MiB."
        )
    writers = {
        "contract": ("Within the budget, weights read from the disk", lambda found: contract_rows(found, base_s)),
        "warm contract": (
            "The same with the model's files in the page cache",
            lambda found: contract_rows(found, base_s),
        ),
        "prediction": ("Predicted and measured", lambda _: prediction_rows(records)),
        "peer": ("The same of others", lambda found: peer_rows(found, by_kind.get("contract", []))),
        "start": ("To the end of the first step", start_rows),
    }
    for kind, (title, rows_of) in writers.items():
        if kind in by_kind:
            head, *body = rows_of(by_kind[kind])
            parts.append(f"## {title}\n{markdown(head, body)}")
    return "\n\n".join(parts)


def contract_rows(records: list[Record], base_s: float | None) -> list[list[str]]:
    head = ["model", "size", "budget", "must", "kept", "U-Net call", "of optimum's", "whole", "of unlimited"]
    rows = [[*head, "peak resident", "of it private", "charged", "ended"]]
    cases = {(case.model, case.size, case.budget_mib): case for case in CONTRACT}
    order = list(dict.fromkeys((model, size) for model, size, _ in cases))
    groups = grouped(records, "model", "size", "budget_mib")
    for key in sorted(groups, key=lambda key: (order.index(key[:2]), -(key[2] or math.inf))):
        (model, size, budget_mib), found = key, groups[key]
        case = cases.get(key)
        done, own = finished(found), finished(groups.get((model, size, None), []))
        call_s, wall_s = median(done, "unet_s"), median(done, "wall_s")
        of_optimum = ratio(call_s, base_s) if size == 512 else None
        # Of the whole: what is opened stage by stage within a budget is opened before the drawing without one.
        of_unlimited = ratio(median(done, "wall_s"), median(own, "wall_s"))
        rows.append(
            [
                model,
                f"{size}x{size}",
                f"{budget_mib} MiB" if budget_mib else "none",
                must(case) if case else "",
                verdict(case, found, of_optimum, of_unlimited) if case else "",
                number(call_s, "s"),
                number(of_optimum),
                number(wall_s, "s"),
                number(of_unlimited),
                f"{mib(highest(found, 'rss_peak_bytes'))} MiB",
                f"{mib(highest(found, 'anon_peak_bytes'))} MiB",
                f"{mib(highest(found, 'group_peak_bytes'))} MiB",
                ended(found),
            ]
        )
    return rows


def must(case: Case) -> str:
    if case.refused:
        return f"refuse at once, exit code {REFUSED}"
    if case.of_optimum:
        return f"finish; call at most {case.of_optimum}x optimum's"
    return f"finish; at most {case.of_unlimited}x unlimited" if case.of_unlimited else "finish"


def verdict(case: Case, found: list[Record], of_optimum: float | None, of_unlimited: float | None) -> str:
    """Whether a line of the contract was kept; a question mark where something needed was not measured."""
    runs = [record["run"] for record in found]
    if case.refused:
        refused = all(run["exit_code"] == REFUSED and run["wall_s"] <= AT_ONCE_S for run in runs)
        named = [re.findall(r"(\d+) ?MiB", run["err"] + run["out"]) for run in runs]
        enough = all(any(int(mib) > case.budget_mib for mib in budgets) for budgets in named)
        return "yes" if refused and enough else "NO"
    if any(run["exit_code"] for run in runs):
        return "NO"
    for limit, measured in ((case.of_optimum, of_optimum), (case.of_unlimited, of_unlimited)):
        if limit is not None and measured is None:
            return "?"
        if limit is not None and measured is not None and measured > limit:
            return "NO"
    if not all(run["enforced_by"] for run in runs):
        return "finished, under no limit"
    stayed = highest(found, "stayed_bytes")
    return "yes" if not stayed else f"yes, but {mib(stayed)} MiB of files were not charged"


def prediction_rows(records: list[Record]) -> list[list[str]]:
    rows = [["model", "size", "budget", "predicted", "measured", "over by", "kept"]]
    foretold = [record for record in records if record.get("plan")]
    for (model, size, budget_mib), found in grouped(foretold, "model", "size", "budget_mib").items():
        predicted = found[-1]["plan"]["peak_bytes"]
        measured = highest(found, "rss_peak_bytes")
        over = predicted / measured if measured and len(finished(found)) == len(found) else None
        rows.append(
            [
                model,
                f"{size}x{size}",
                f"{budget_mib} MiB" if budget_mib else "none",
                f"{mib(predicted)} MiB",
                f"{mib(measured)} MiB",
                "" if over is None else f"{(over - 1) * 100:+.1f} %",
                "NO" if over is None or not 1 <= over <= OVER else "yes",
            ]
        )
    return rows


def peer_rows(records: list[Record], contract_records: list[Record]) -> list[list[str]]:
    head = ["program", "limit", "ended", "a step", "peak resident", "of it private"]
    rows = [[*head, "calotype's step, f16 / int8", "calotype's peak, f16 / int8"]]
    ours = grouped(contract_records, "model", "size", "budget_mib")
    for (subject, budget_mib), found in grouped(records, "subject", "budget_mib").items():
        steps, peaks = [], []
        for model in ("sd15-f16", "sd15-int8"):
            own, done = finished(ours.get((model, 512, budget_mib), [])), finished(found)
            steps.append(number(ratio(median(own, "unet_s"), median(done, "step_s"))) or "-")
            peaks.append(number(ratio(highest(own, "rss_peak_bytes"), highest(done, "rss_peak_bytes"))) or "-")
        rows.append(
            [
                subject,
                f"{budget_mib} MiB" if budget_mib else "none",
                ended(found),
                number(median(found, "step_s"), "s"),
                f"{mib(highest(found, 'rss_peak_bytes'))} MiB",
                f"{mib(highest(found, 'anon_peak_bytes'))} MiB",
                " / ".join(steps),
                " / ".join(peaks),
            ]
        )
    return rows


def start_rows(records: list[Record]) -> list[list[str]]:
    rows = [["program", "warm", "cold", "peak resident"]]
    for (subject,), found in grouped(records, "subject").items():
        times = [median([r for r in found if r["cache"] == cache], "first_step_s") for cache in ("warm", "cold")]
        peak = f"{mib(highest(found, 'rss_peak_bytes'))} MiB"
        rows.append([subject, *(number(time, "s") for time in times), peak])
    return rows


def ended(found: list[Record]) -> str:
    """How the runs ended; the worst, where they differ."""
    run = next((record["run"] for record in found if record["run"]["exit_code"]), found[-1]["run"])
    if run["exit_code"] == -signal.SIGKILL or run["oom_kills"]:
        return "killed"
    return "picture" if run["exit_code"] == 0 else f"exit code {run['exit_code']}"


def finished(records: list[Record]) -> list[Record]:
    return [record for record in records if record["run"]["exit_code"] == 0]


def grouped(records: list[Record], *keys: str) -> dict[tuple[Any, ...], list[Record]]:
    groups: dict[tuple[Any, ...], list[Record]] = {}
    for record in records:
        groups.setdefault(tuple(record[key] for key in keys), []).append(record)
    return groups


def values(records: list[Record], key: str) -> list[float]:
    found = (record.get(key, record.get("run", {}).get(key)) for record in records)
    return [value for value in found if value is not None]


def median(records: list[Record], key: str) -> float | None:
    found = values(records, key)
    return statistics.median(found) if found else None


def highest(records: list[Record], key: str) -> float | None:
    return max(values(records, key), default=None)


def ratio(one: float | None, other: float | None) -> float | None:
    return one / other if one is not None and other else None


def mib(count_bytes: float | None) -> str:
    return "" if count_bytes is None else f"{count_bytes / MIB:,.0f}"


def number(value: float | None, unit: str = "") -> str:
    return "" if value is None else f"{value:.2f} {unit}".strip()


def markdown(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


if __name__ == "__main__":
    main()
