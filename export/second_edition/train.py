"""Trains the built-in model and its companions, on a GPU where there is one, in phases with a time each.

    python train.py PACK WORK PHASE=AMOUNT ...

    plans=COUNT        scenes planned and captioned, on all cores
    vae=SECONDS        autoencoder on scenes drawn as it goes
    latents=COUNT      scenes -> latents
    unet=SECONDS       U-Net and text encoder on those latents
    more=SECONDS       the same at a constant low rate; what it was at is kept every ten minutes, to go on from there
    decoder=SECONDS    decoder alone, the latents' meaning fixed
    lcm=SECONDS        a LoRA with which few steps suffice (Luo et al. 2023, arXiv:2311.05556)
    masks=SECONDS      ControlNet for segmentation masks (Zhang et al. 2023, arXiv:2302.05543)
    depth=SECONDS      ControlNet for depth maps
    judge=SECONDS      the classifier of objects and styles that `judge.py` looks with

PACK is what `scenes.py pack` and `tokenizer.py` wrote. A phase that finds its own result in WORK goes on from there.
The learning rate rises over the first steps and falls to zero over the second half of SECONDS: most of the quality
comes with that fall, so a run is worth judging only at its end. SECONDS may be @T: until T seconds after the start.
What is worth keeping is also copied to OUT, a folder in the environment; BATCH there is the batch, BF16=1 lets a
processor compute in bf16, SEED makes other plans.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import random
import shutil
import sys
import time
import traceback
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.func import functional_call

from second_edition import model
from second_edition.judge import Classifier
from second_edition.lora import Lora
from second_edition.maps import depth_map, mask_map
from second_edition.scenes import STYLES, Painter, Scenes

CAPTIONS_PER_SCENE = 3
NULL_CAPTION_SHARE = 0.1
GUIDANCE = 3.0
"""What the few-step LoRA has built in."""
PART_BYTES = 15 << 20
REPORT_SECONDS = 20
MORE_AVERAGES = (0.99, 0.998)

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
HELD_OUT_SCENES = 512 if CUDA else 16
# Compiled code for a processor is a tenth slower with channels last.
UNET_LAYOUT = torch.channels_last if CUDA else torch.contiguous_format
START = time.time()


def say(*what: object) -> None:
    print(f"[{time.time() - START:6.1f}]", *what, flush=True)


def mixed() -> torch.autocast:
    return torch.autocast(DEVICE.type, torch.bfloat16, enabled=CUDA or os.environ.get("BF16") == "1")


def batch_of(gpu: int) -> int:
    """A batch for the GPU, or a tiny one to try the code on a processor; BATCH where that is said."""
    return int(os.environ.get("BATCH", gpu if CUDA else 4))


class Clock:
    """The share of the allotted seconds that is over, and the learning rate that goes with it."""

    def __init__(self, seconds: float, peak_rate: float, warm_up: int = 150) -> None:
        self.start, self.seconds, self.peak_rate, self.warm_up = time.time(), seconds, peak_rate, warm_up

    def share(self) -> float:
        return (time.time() - self.start) / self.seconds

    def rate(self, step: int) -> float:
        fall = min(1.0, (1 - self.share()) / 0.55)
        return self.peak_rate * min(1.0, (step + 1) / self.warm_up) * max(0.0, fall)


class Ema:
    """Exponential moving average of parameters; the average is what ships."""

    def __init__(self, parameters: Iterable[Tensor], decay: float) -> None:
        self.live = list(parameters)
        self.mean = [p.detach().clone() for p in self.live]
        self.decay, self.steps = decay, 0

    @torch.no_grad()
    def update(self) -> None:
        self.steps += 1
        weight = 1 - min(self.decay, self.steps / (self.steps + 20))
        torch._foreach_lerp_(self.mean, [p.detach() for p in self.live], weight)

    @torch.no_grad()
    def swap(self) -> None:
        held = [p.detach().clone() for p in self.live]
        torch._foreach_copy_(self.live, self.mean)
        torch._foreach_copy_(self.mean, held)


class Steps:
    """An optimizer whose rate follows the clock."""

    def __init__(
        self, parameters: Sequence[Tensor], seconds: float, rate: float, decay: float = 0.01, ema: float = 0.999
    ):
        self.parameters, self.clock, self.ema = list(parameters), Clock(seconds, rate), Ema(parameters, ema)
        self.optimizer = torch.optim.AdamW(self.parameters, betas=(0.9, 0.99), weight_decay=decay, fused=True)
        self.count, self.reported, self.since = 0, 0, time.time()
        self.total = torch.zeros((), device=DEVICE)

    def running(self) -> bool:
        return self.clock.share() < 1

    def take(self, loss: Tensor) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.clock.rate(self.count)
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.ema.update()
        self.count += 1
        self.total += loss.detach()

    def report(self, name: str, samples: int) -> bool:
        """Prints the mean loss since the last report, if that was REPORT_SECONDS ago."""
        now = time.time()
        if now - self.since < REPORT_SECONDS:
            return False
        steps = self.count - self.reported
        say(
            f"{name} {self.count} share {self.clock.share():.2f} loss {float(self.total) / steps:.4f}, "
            f"{steps * samples / (now - self.since):.0f} samples/s"
        )
        self.total.zero_()
        self.since, self.reported = now, self.count
        return True


def save(state: dict[str, Tensor], work: Path, name: str) -> None:
    """As f16 in parts of less than PART_BYTES, NAME_0.pt and so on."""
    parts: list[dict[str, Tensor]] = [{}]
    size = 0
    for key, value in state.items():
        value = value.detach().half().cpu() if value.is_floating_point() else value.detach().cpu()
        if size + value.nbytes > PART_BYTES:
            parts.append({})
            size = 0
        parts[-1][key] = value.contiguous().clone()
        size += value.nbytes
    for k, part in enumerate(parts):
        file = work / f"{name}_{k}.pt"
        torch.save(part, file.with_suffix(".part"))
        os.replace(file.with_suffix(".part"), file)
        if out := os.environ.get("OUT"):
            shutil.copy(file, out)


def load(work: Path, name: str) -> dict[str, Tensor] | None:
    files = sorted(work.glob(f"{name}_[0-9].pt"))
    if not files:
        return None
    state = {key: value for file in files for key, value in torch.load(file, map_location=DEVICE).items()}
    return {key: value.float() if value.is_floating_point() else value for key, value in state.items()}


def plan_some(job: tuple[Path, int, int]) -> tuple[Tensor, Tensor]:
    pack, seed, count = job
    torch.set_num_threads(1)
    rng, tokenizer = random.Random(seed), Tokenizer.from_file(str(pack / "tokenizer.json"))
    rows, ids = [], []
    assert PLANNER is not None
    for _ in range(count):
        plan = PLANNER.plan(rng)
        rows.append(PLANNER.row(plan))
        captions = [PLANNER.caption(plan, rng) for _ in range(CAPTIONS_PER_SCENE)]
        ids.append([e.ids for e in tokenizer.encode_batch(captions)])
    return torch.tensor(rows, dtype=torch.float32), torch.tensor(ids, dtype=torch.int16)


PLANNER: Scenes | None = None


def plans(pack: Path, work: Path, count: int) -> None:
    global PLANNER
    PLANNER = Scenes(pack)
    each = 2000 if CUDA else 100
    first = int(os.environ.get("SEED", 0))
    jobs = [(pack, first + k, min(each, count)) for k in range(math.ceil(count / each))]
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    with multiprocessing.get_context("fork").Pool(os.cpu_count()) as pool:
        done = pool.map(plan_some, jobs, chunksize=1)
    rows, ids = (torch.cat(parts) for parts in zip(*done, strict=True))
    null = torch.tensor(Tokenizer.from_file(str(pack / "tokenizer.json")).encode("").ids)
    owner = torch.tensor([PLANNER.labels.index(label) for label in PLANNER.label])
    whose = {"owner": owner, "style": torch.tensor([STYLES.index(style) for style in PLANNER.style])}
    torch.save({"rows": rows, "ids": ids, "null": null, "image": PLANNER.image} | whose, work / "plans.pt")
    say(f"plans: {len(rows)} scenes")


def read_plans(work: Path) -> tuple[dict[str, Tensor], Painter]:
    found = torch.load(work / "plans.pt", map_location=DEVICE)
    return found, Painter(found.pop("image"))


def pick(rows: Tensor, batch: int) -> Tensor:
    """Some rows, never those held out."""
    return rows[torch.randint(HELD_OUT_SCENES, len(rows), (batch,), device=rows.device)]


def edges(x: Tensor) -> Tensor:
    return (x[..., 1:] - x[..., :-1]).abs().mean() + (x[..., 1:, :] - x[..., :-1, :]).abs().mean()


def read_vae(work: Path) -> Any:
    vae = model.vae().to(DEVICE, memory_format=torch.channels_last)
    if (state := load(work, "vae")) is not None:
        state.pop("scale", None)
        vae.load_state_dict(state)
    return vae


def compiled(module: Any) -> Any:
    wanted = os.environ.get("COMPILE", "1" if CUDA else "0") == "1"
    return torch.compile(module, dynamic=False) if wanted else module


def train_vae(work: Path, seconds: float, decoder_only: bool) -> None:
    found, painter = read_plans(work)
    rows, vae = found["rows"], read_vae(work)
    if decoder_only:
        vae.encoder.requires_grad_(False)
    steps = Steps([p for p in vae.parameters() if p.requires_grad], seconds, 1.2e-3, 1e-4, 0.998)
    encode, decode = compiled(lambda x: vae.encode(x).latents), compiled(lambda z: vae.decode(z).sample)
    batch = batch_of(96)
    while steps.running():
        with torch.no_grad():
            x = painter.paint(pick(rows, batch))[0].contiguous(memory_format=torch.channels_last)
        with mixed():
            z = encode(x)
            # The U-Net's latents are a little wrong: the decoder learns to draw the nearest clean picture.
            noisy = z + torch.randn_like(z) * (
                torch.rand(len(x), 1, 1, 1, device=DEVICE) * (0.25 if decoder_only else 0.1)
            )
            error = decode(noisy).float() - x
        squared = error.square().mean()
        loss = error.abs().mean() + 2 * squared + 0.5 * edges(error)
        if not decoder_only:
            z = z.float()
            spread = (z.std((0, 2, 3)) - 1).square().mean() + z.mean((0, 2, 3)).square().mean()
            loss = loss + 0.1 * spread + 0.01 * F.relu(z.abs() - 2.5).square().mean()
            if steps.count % 4 == 0:
                # Halved latents are those of the halved picture: keeps fine detail out of what the U-Net must learn
                # (Skorokhodov et al. 2025, arXiv:2502.14831).
                with mixed():
                    half = vae.decode(F.avg_pool2d(z[: batch // 2], 2)).sample.float()
                loss = loss + 0.25 * (half - F.avg_pool2d(x[: batch // 2], 2)).abs().mean()
        steps.take(loss)
        if steps.report("vae", batch):
            say(f"vae psnr of the last batch {-10 * math.log10(float(squared.detach()) / 4):.2f}")
    steps.ema.swap()
    with torch.no_grad():
        x = painter.paint(rows[:HELD_OUT_SCENES])[0].contiguous(memory_format=torch.channels_last)
        z = torch.cat([vae.encode(part).latents for part in x.split(64)])
        back = torch.cat([vae.decode(part).sample for part in z.split(64)]).clamp(-1, 1)
        psnr = -10 * torch.log10((back - x).square().mean((1, 2, 3)) / 4)
    say(f"vae held-out psnr {float(psnr.mean()):.2f}, worst {float(psnr.min()):.2f}; latents' std {float(z.std()):.3f}")
    save(vae.state_dict() | {"scale": 1 / z.std()}, work, "vae")


@torch.no_grad()
def make_latents(work: Path, count: int) -> None:
    found, painter = read_plans(work)
    vae, rows = read_vae(work), found["rows"][:count]
    size = batch_of(512)
    z = torch.empty(
        len(rows), model.LATENT_CHANNELS, model.LATENT_CELLS, model.LATENT_CELLS, dtype=torch.half, device=DEVICE
    )
    encode = compiled(lambda x: vae.encode(x).latents)
    for start in range(0, len(rows) - size + 1, size):
        x = painter.paint(rows[start : start + size])[0].contiguous(memory_format=torch.channels_last)
        with mixed():
            z[start : start + size] = encode(x).half()
    z = z[: len(rows) // size * size]
    scale = 1 / z[: 1 << 15].float().std()
    torch.save({"z": z, "ids": found["ids"][: len(z)], "scale": scale, "null": found["null"]}, work / "latents.pt")
    say(f"latents: {len(z)} scenes, scale {float(scale):.4f}")


class Curve:
    """The noise curve on the device."""

    def __init__(self) -> None:
        self.alphas = DDIMScheduler(**model.CURVE).alphas_cumprod.to(DEVICE)

    def of(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """What timesteps (B,) leave of the picture and give of noise, each (B, 1, 1, 1)."""
        a = self.alphas[t][:, None, None, None]
        return a.sqrt(), (1 - a).sqrt()

    @staticmethod
    def draw(batch: int) -> Tensor:
        """Timesteps, more where the shape is decided than at either end (logit-normal, Esser et al. 2024)."""
        t = (torch.sigmoid(torch.randn(batch, device=DEVICE) * 1.1 + 0.2) * 1000).long().clamp(0, 999)
        anywhere = torch.rand(batch, device=DEVICE) < 0.3
        return torch.where(anywhere, torch.randint(0, 1000, (batch,), device=DEVICE), t)


def read_pair(pack: Path, work: Path) -> nn.ModuleDict:
    """U-Net and text encoder, trained if they are."""
    table = torch.load(pack / "token_table.pt")
    text = model.text_encoder(len(table))
    text.embeddings.token_embedding.weight.data.copy_(table)
    text.embeddings.token_embedding.requires_grad_(False)
    unet = model.unet().to(memory_format=UNET_LAYOUT)
    both = nn.ModuleDict({"unet": unet, "text": text}).to(DEVICE)
    if (state := load(work, "model")) is not None:
        state.pop("scale")
        both.load_state_dict(state)
    return both


def captions(pool: dict[str, Tensor], chosen: Tensor) -> Tensor:
    """Token ids of some scenes, now and then none."""
    which = torch.randint(0, CAPTIONS_PER_SCENE, (len(chosen),), device=DEVICE)
    nothing = torch.rand(len(chosen), 1, device=DEVICE) < NULL_CAPTION_SHARE
    return torch.where(nothing, pool["null"][None], pool["ids"][chosen, which].long())


def train_unet(pack: Path, work: Path, seconds: float) -> None:
    # The clock runs while things load and compile: what is asked for is when to end.
    start = time.time()
    pool = torch.load(work / "latents.pt", map_location=DEVICE)
    z, curve, both = pool["z"], Curve(), read_pair(pack, work)
    rate = 1.0e-3
    if (before := load(work, "model")) is not None:
        pool["scale"], rate = before["scale"], 4.0e-4
    parameters = [p for p in both.parameters() if p.requires_grad]
    steps = Steps(parameters, seconds, rate)
    steps.clock.start = start
    # Many small steps: 4,475 of 512 taught it less than their number of samples promised.
    batch = batch_of(128)
    denoise = compiled(lambda x, t, c: both["unet"](x, t, c).sample)

    def keep() -> None:
        steps.ema.swap()
        save(both.state_dict() | {"scale": pool["scale"]}, work, "model")
        steps.ema.swap()

    last_save = time.time()
    while steps.running():
        chosen = torch.randint(HELD_OUT_SCENES, len(z), (batch,), device=DEVICE)
        ids = captions(pool, chosen)
        x0 = (z[chosen].float() * pool["scale"]).contiguous(memory_format=UNET_LAYOUT)
        t = curve.draw(batch)
        signal, sigma = curve.of(t)
        noise = torch.randn_like(x0)
        with mixed():
            v = denoise(signal * x0 + sigma * noise, t, both["text"](ids).last_hidden_state)
        steps.take(F.mse_loss(v.float(), signal * noise - sigma * x0))
        steps.report("unet", batch)
        if time.time() - last_save > 60:
            keep()
            last_save = time.time()
    keep()
    say(f"unet: {steps.count} steps of {batch} = {steps.count * batch} samples, save included")


class Threads:
    """One thread on a busy machine, where threads would wait for each other; all processors where they are free."""

    def __init__(self) -> None:
        self.wall, self.used, self.count = time.time(), time.process_time(), 1
        torch.set_num_threads(1)

    def after(self, steps: int) -> None:
        """Every few steps: what share of its threads' time the process was given."""
        if CUDA or steps % 4:
            return
        wall, used = time.time(), time.process_time()
        given = (used - self.used) / (wall - self.wall) / self.count
        self.wall, self.used = wall, used
        count = (os.cpu_count() or 1) if given > (0.9 if self.count == 1 else 0.7) else 1
        if count != self.count:
            self.count = count
            torch.set_num_threads(count)


def train_more(pack: Path, work: Path, seconds: float, rate: float = 2e-4) -> None:
    """U-Net and text encoder from where they are, for as many sittings as one likes: constant rate, average kept."""
    pool = torch.load(work / "latents.pt", map_location=DEVICE)
    z, curve, both = pool["z"], Curve(), read_pair(pack, work)
    scale = (load(work, "model") or {})["scale"]
    parameters = [p for p in both.parameters() if p.requires_grad]
    emas = [Ema(parameters, decay) for decay in MORE_AVERAGES]
    optimizer = torch.optim.AdamW(parameters, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    count = samples = 0
    file = work / "more.pt"
    if file.exists():
        held = torch.load(file, map_location=DEVICE)
        both.load_state_dict(held["live"])
        optimizer.load_state_dict(held["optimizer"])
        count, samples = held["count"], held["samples"]
        for ema, mean in zip(emas, held["means"], strict=True):
            torch._foreach_copy_(ema.mean, mean)
            ema.steps = count

    def keep() -> None:
        held = {"live": both.state_dict(), "optimizer": optimizer.state_dict(), "count": count, "samples": samples}
        torch.save(held | {"means": [ema.mean for ema in emas]}, file.with_suffix(".part"))
        os.replace(file.with_suffix(".part"), file)
        for ema, decay in zip(emas, MORE_AVERAGES, strict=True):
            ema.swap()
            folder = work / f"average_{decay}"
            folder.mkdir(exist_ok=True)
            save(both.state_dict() | {"scale": scale}, folder, "model")
            ema.swap()
        say(f"more: kept after {count} steps, {samples} samples")

    batch, threads = batch_of(128), Threads()
    start = last_save = last_said = time.time()
    used, since, losses = time.process_time(), samples, []
    while time.time() - start < seconds:
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (count + 1) / 50)
        chosen = torch.randint(0, len(z), (batch,), device=DEVICE)
        x0 = z[chosen].float() * scale
        t = curve.draw(batch)
        signal, sigma = curve.of(t)
        noise = torch.randn_like(x0)
        with mixed():
            v = both["unet"](signal * x0 + sigma * noise, t, both["text"](captions(pool, chosen)).last_hidden_state)
        loss = F.mse_loss(v.sample.float(), signal * noise - sigma * x0)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        for ema in emas:
            ema.update()
        count, samples = count + 1, samples + batch
        losses.append(loss.detach())
        threads.after(count)
        now = time.time()
        if now - last_said > 60:
            wall, spent = now - last_said, time.process_time() - used
            say(
                f"more {count} steps, {samples} samples, loss {float(torch.stack(losses).mean()):.4f}, "
                f"{(samples - since) / wall:.1f} samples/s, {spent / wall:.2f} processors, {threads.count} threads"
            )
            last_said, used, since, losses = now, time.process_time(), samples, []
        if now - last_save > 600 or (work / "keep").exists():
            (work / "keep").unlink(missing_ok=True)
            keep()
            last_save = time.time()
    keep()


def train_lcm(pack: Path, work: Path, seconds: float) -> None:
    """Latent consistency distillation into a LoRA, with guidance GUIDANCE built in."""
    pool = torch.load(work / "latents.pt", map_location=DEVICE)
    z, curve, both = pool["z"], Curve(), read_pair(pack, work).requires_grad_(False)
    unet, text = both["unet"], both["text"]
    base = dict(unet.named_parameters())
    lora = Lora(unet).to(DEVICE)
    if (state := load(work, "lcm")) is not None:
        lora.read(state)
    steps = Steps(list(lora.parameters()), seconds, 1e-3, 0.0, 0.99)
    batch, hop = batch_of(256), 20

    def student(x: Tensor, t: Tensor, context: Tensor) -> Tensor:
        with mixed():
            v = functional_call(unet, base | lora.weights(base), (x, t, context)).sample.float()
        signal, sigma = curve.of(t)
        return signal * x - sigma * v

    while steps.running():
        chosen = torch.randint(0, len(z), (batch,), device=DEVICE)
        x0 = z[chosen].float() * pool["scale"]
        t = torch.randint(1, 51, (batch,), device=DEVICE) * hop - 1
        before = t - hop
        signal, sigma = curve.of(t)
        noise = torch.randn_like(x0)
        x = signal * x0 + sigma * noise
        with torch.no_grad(), mixed():
            context = text(captions(pool, chosen)).last_hidden_state
            nothing = text(pool["null"][None]).last_hidden_state.expand(batch, -1, -1)
            v = unet(torch.cat([x, x]), torch.cat([t, t]), torch.cat([context, nothing])).sample.float()
        with torch.no_grad():
            with_text, without = v.chunk(2)
            v = without + GUIDANCE * (with_text - without)
            clean, eps = signal * x - sigma * v, sigma * x + signal * v
            end = (before < 0)[:, None, None, None]
            signal_, sigma_ = curve.of(before.clamp_min(0))
            target = torch.where(end, clean, student(signal_ * clean + sigma_ * eps, before.clamp_min(0), context))
        error = student(x, t, context) - target
        steps.take((error.square().mean((1, 2, 3)) + 1e-3).sqrt().mean())
        steps.report("lcm", batch)
    steps.ema.swap()
    save(lora.state_dict(), work, "lcm")
    say(f"lcm: {steps.count} steps of {batch}, {sum(p.numel() for p in lora.parameters())} parameters")


def train_control(pack: Path, work: Path, seconds: float, kind: str) -> None:
    found, painter = read_plans(work)
    curve, both, vae = Curve(), read_pair(pack, work).requires_grad_(False), read_vae(work).requires_grad_(False)
    unet, text = both["unet"], both["text"]
    scale = (load(work, "model") or {})["scale"]
    control = model.control_net(unet).to(DEVICE, memory_format=torch.channels_last)
    if (state := load(work, kind)) is not None:
        control.load_state_dict(state)
    steps = Steps(list(control.parameters()), seconds, 1e-3, 0.01, 0.995)
    batch = batch_of(256)

    def denoise(x: Tensor, t: Tensor, context: Tensor, hint: Tensor) -> Tensor:
        down, mid = control(x, t, context, hint, return_dict=False)
        more = {"down_block_additional_residuals": down, "mid_block_additional_residual": mid}
        out: Tensor = unet(x, t, context, **more).sample
        return out

    while steps.running():
        chosen = torch.randint(HELD_OUT_SCENES, len(found["rows"]), (batch,), device=DEVICE)
        with torch.no_grad():
            scene, covers = painter.paint(found["rows"][chosen])
            hint = mask_map(covers) if kind == "masks" else depth_map(covers)
            with mixed():
                x0 = vae.encode(scene.contiguous(memory_format=torch.channels_last)).latents.float() * scale
                context = text(captions(found, chosen)).last_hidden_state
        t = curve.draw(batch)
        signal, sigma = curve.of(t)
        noise = torch.randn_like(x0)
        with mixed():
            v = denoise(signal * x0 + sigma * noise, t, context, hint)
        steps.take(F.mse_loss(v.float(), signal * noise - sigma * x0))
        steps.report(kind, batch)
    steps.ema.swap()
    save(control.state_dict(), work, kind)
    say(f"{kind}: {steps.count} steps of {batch}, {sum(p.numel() for p in control.parameters())} parameters")


def train_judge(work: Path, seconds: float) -> None:
    """On scenes of its own seeds; the labels of what each scene shows, and its style."""
    found, painter = read_plans(work)
    owner, style_of = found["owner"], found["style"]
    objects_known = int(owner.max()) + 1
    judge = Classifier(objects_known).to(DEVICE)
    if (state := load(work, "judge")) is not None:
        judge.load_state_dict(state)
    steps = Steps(list(judge.parameters()), seconds, 2e-3, 0.02, 0.99)
    batch = batch_of(384)
    rows = found["rows"]

    def look(some: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        with torch.no_grad():
            x = judge.spoil(judge.small(painter.paint(some)[0]))
        there = some[:, 3:33:11] > 0
        pictures = some[:, 0:33:11].long()
        wanted = torch.zeros(len(some), objects_known, device=DEVICE)
        wanted.scatter_reduce_(1, owner[pictures], there.float(), "amax")
        return x, wanted, style_of[pictures[:, 0]]

    while steps.running():
        x, wanted, style = look(pick(rows, batch))
        with mixed():
            objects, styles = judge(x.contiguous(memory_format=torch.channels_last))
        each = F.binary_cross_entropy_with_logits(objects.float(), wanted, reduction="none").sum(1).mean()
        steps.take(each + F.cross_entropy(styles.float(), style))
        steps.report("judge", batch)
    steps.ema.swap()
    judge.eval()
    with torch.no_grad():
        x, wanted, style = look(rows[:HELD_OUT_SCENES])
        objects, styles = judge(x)
        right = wanted.gather(1, objects.argmax(1, keepdim=True)).mean()
        say(f"judge: top-1 {float(right):.3f}, style {float((styles.argmax(1) == style).float().mean()):.3f}")
    save(judge.state_dict(), work, "judge")


def run(phase: str, pack: Path, work: Path, amount: float) -> None:
    match phase:
        case "plans":
            plans(pack, work, int(amount))
        case "vae" | "decoder":
            train_vae(work, amount, phase == "decoder")
        case "latents":
            make_latents(work, int(amount))
        case "unet":
            train_unet(pack, work, amount)
        case "more":
            train_more(pack, work, amount)
        case "lcm":
            train_lcm(pack, work, amount)
        case "masks" | "depth":
            train_control(pack, work, amount, phase)
        case "judge":
            train_judge(work, amount)
        case _:
            sys.exit(__doc__)


def main() -> None:
    pack, work = Path(sys.argv[1]), Path(sys.argv[2])
    work.mkdir(parents=True, exist_ok=True)
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")
    torch._dynamo.config.suppress_errors = True
    torch.manual_seed(int(time.time()))
    if not CUDA:
        # A processor takes four times as long for the gradient of fused attention as for that of its parts.
        torch.backends.cuda.enable_flash_sdp(False)
    for argument in sys.argv[3:]:
        phase, _, amount = argument.partition("=")
        seconds = float(amount[1:]) - (time.time() - START) if amount.startswith("@") else float(amount)
        say(f"{phase}: {seconds:.0f}")
        try:
            run(phase, pack, work, seconds)
        except Exception:  # the phases after it may do without
            traceback.print_exc()
        if CUDA:
            say(f"{torch.cuda.max_memory_allocated() / 2**30:.1f} GiB at most")
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
