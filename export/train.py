"""Trains the built-in model on two CPU cores, in phases that each resume from what is in the work folder.

    python train.py vae64 PICTURES WORK MINUTES     autoencoder on drawn scenes at half size: many cheap steps
    python train.py vae PICTURES WORK MINUTES       the same grown by one stage to full size
    python train.py latents PICTURES WORK SCENES    scenes per picture -> latents and token ids
    python train.py unet PICTURES WORK MINUTES      U-Net and text encoder on those latents
    python train.py decoder PICTURES WORK MINUTES   decoder alone, the latents' meaning fixed
    python train.py resume BUNDLE WORK 0            work folder from a committed model, to go on with `latents`

The learning rate rises over the first steps and falls to zero over the second half of MINUTES: most of the
quality comes with that fall, so a run is worth judging only at its end.
"""

from __future__ import annotations

import copy
import math
import os
import random
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny, DDIMScheduler
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor, nn

import model
from scenes import COLOURS, Scenes

CAPTIONS_PER_SCENE = 4
NULL_CAPTION_SHARE = 0.1


class Clock:
    """The share of the allotted minutes that is over, and the learning rate that goes with it."""

    def __init__(self, minutes: float, peak_rate: float) -> None:
        self.start, self.seconds, self.peak_rate = time.time(), minutes * 60, peak_rate

    def share(self) -> float:
        return (time.time() - self.start) / self.seconds

    def rate(self, step: int) -> float:
        fall = min(1.0, (1 - self.share()) / 0.5)
        return self.peak_rate * min(1.0, (step + 1) / 100) * max(0.0, fall)


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


def share_cores() -> None:
    """Two threads that wait for each other are slower than one where something else runs: take two only of two.

    A process with a raised priority does not ask.
    """
    busy = os.getloadavg()[0] > torch.get_num_threads() + 0.4 and os.nice(0) >= 0
    torch.set_num_threads(1 if busy else 2)


def save(state: object, file: Path) -> None:
    part = file.with_suffix(".part")
    torch.save(state, part)
    os.replace(part, file)


def step_optimizer(optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor], loss: Tensor, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()


def drawn(scenes: Scenes, rng: random.Random, count: int) -> Tensor:
    """Scenes as bytes, drawn once so that the training loop touches nothing else."""
    out = []
    for _ in range(count // 50):
        x, _ = scenes.draw([scenes.plan(rng.randrange(len(scenes)), rng) for _ in range(50)], rng)
        out.append(((x + 1) * 127.5).round().byte())
    return torch.cat(out)


def grow(small: AutoencoderTiny, pool: Tensor) -> AutoencoderTiny:
    """The autoencoder for 128 px that starts where the one for 64 px stopped."""
    large = model.vae()
    encoder, decoder = large.encoder.layers, large.decoder.layers
    for k in range(1, len(small.encoder.layers)):
        encoder[k + 1].load_state_dict(small.encoder.layers[k].state_dict())
    for k in range(len(small.decoder.layers) - 1):
        decoder[k].load_state_dict(small.decoder.layers[k].state_dict())
    decoder[-1].load_state_dict(small.decoder.layers[-1].state_dict())
    nn.init.dirac_(decoder[-2].weight)
    decoder[-2].weight.data.add_(torch.randn_like(decoder[-2].weight) * 0.01)
    # The two new convolutions learn to see what the old one saw of the halved picture.
    stem = list(encoder[0].parameters()) + list(encoder[1].parameters())
    optimizer = torch.optim.Adam(stem, lr=3e-3)
    for step in range(300):
        x = pool[torch.randint(0, len(pool), (4,))].float() / 255
        with torch.no_grad():
            want = small.encoder.layers[0](F.avg_pool2d(x, 2))
        loss = F.mse_loss(encoder[1](encoder[0](x)), want)
        step_optimizer(optimizer, stem, loss, 3e-3 * (1 - step / 300))
    print(
        f"grown: the new stem explains {1 - float(loss.detach() / want.var()):.3f} of the old one's variance",
        flush=True,
    )
    return large


def train_vae(phase: str, pictures: Path, work: Path, minutes: float) -> None:
    pool = drawn(Scenes(pictures), random.Random(int(time.time())), 3000)
    small, decoder_only = phase == "vae64", phase == "decoder"
    file = work / ("vae64.pt" if small else "vae.pt")
    vae = model.vae(grown=not small)
    if file.exists():
        vae.load_state_dict(torch.load(file))
    elif not small:
        half = model.vae(grown=False)
        half.load_state_dict(torch.load(work / "vae64.pt"))
        vae = grow(half, pool)
    if decoder_only:
        vae.encoder.requires_grad_(False)
    vae.to(memory_format=torch.channels_last)
    parameters = [p for p in vae.parameters() if p.requires_grad]
    ema, clock = Ema(parameters, 0.995), Clock(minutes, 1.2e-3 if small else 6e-4)
    optimizer = torch.optim.AdamW(parameters, betas=(0.9, 0.99), weight_decay=1e-4, fused=True)
    step, total, last_save = 0, 0.0, time.time()
    while clock.share() < 1:
        x = pool[torch.randint(0, len(pool), (8 if small else 4,))].float() / 127.5 - 1
        x = (F.avg_pool2d(x, 2) if small else x).contiguous(memory_format=torch.channels_last)
        z = vae.encode(x).latents
        # The U-Net's latents are a little wrong: the decoder learns to draw the nearest clean picture.
        noise = torch.randn_like(z) * (torch.rand(len(x), 1, 1, 1) * 0.3 if decoder_only else 0.06)
        error = vae.decode(z + noise).sample - x
        edges = (error[..., 1:] - error[..., :-1]).abs().mean() + (error[..., 1:, :] - error[..., :-1, :]).abs().mean()
        squared = error.square().mean()
        loss = error.abs().mean() + 2 * squared + 0.5 * edges
        if not decoder_only:
            spread = (z.std((0, 2, 3)) - 1).square().mean() + z.mean((0, 2, 3)).square().mean()
            loss = loss + 0.1 * spread + 0.01 * F.relu(z.abs() - 2.5).square().mean()
        step_optimizer(optimizer, parameters, loss, clock.rate(step))
        ema.update()
        step, total = step + 1, total + float(squared.detach()) / 4
        if step % 20 == 0:
            share_cores()
        if step % 100 == 0:
            psnr = -10 * math.log10(total / 100)
            print(f"{phase} {step} minutes {clock.share() * minutes:.1f} psnr {psnr:.2f}", flush=True)
            total = 0.0
        if time.time() - last_save > 60 or clock.share() >= 1:
            ema.swap()
            save(vae.state_dict(), file)
            ema.swap()
            last_save = time.time()


@torch.no_grad()
def make_latents(pictures: Path, work: Path, per_picture: int) -> None:
    scenes, rng = Scenes(pictures), random.Random(1)
    tokenizer = Tokenizer.from_file(str(work / "tokenizer.json"))
    vae = model.vae().to(memory_format=torch.channels_last)
    vae.load_state_dict(torch.load(work / "vae.pt"))
    order = [i for i in range(len(scenes)) for _ in range(per_picture)]
    rng.shuffle(order)
    latents, ids = [], []
    for start in range(0, len(order), 64):
        plans = [scenes.plan(i, rng) for i in order[start : start + 64]]
        x, shares = scenes.draw(plans, rng)
        top = shares.argmax(1).tolist()
        # A turned object whose main colour came out as another one would make the caption a lie.
        true = [k for k, p in enumerate(plans) if not p.turned or COLOURS[top[k]] == p.colour]
        z = vae.encode(x[true].contiguous(memory_format=torch.channels_last)).latents
        latents.append(z.half())
        for k in true:
            captions = [scenes.caption(plans[k], rng) for _ in range(CAPTIONS_PER_SCENE)]
            ids.append([e.ids for e in tokenizer.encode_batch(captions)])
        if start % 6400 == 0:
            print("latents", start, "of", len(order), flush=True)
    z = torch.cat(latents)
    scale = 1 / float(z.float().std())
    null = torch.tensor(tokenizer.encode("").ids)
    save({"z": z, "ids": torch.tensor(ids, dtype=torch.int16), "scale": scale, "null": null}, work / "latents.pt")
    print("latents", len(z), "scale", scale, "channel std", [round(s, 2) for s in z.float().std((0, 2, 3)).tolist()])


def train_unet(work: Path, minutes: float) -> None:
    torch.manual_seed(int(time.time()))
    pool = torch.load(work / "latents.pt")
    z = (pool["z"].float() * pool["scale"]).contiguous(memory_format=torch.channels_last)
    alphas = DDIMScheduler(**model.CURVE).alphas_cumprod
    table = torch.load(work / "token_table.pt")
    text = model.text_encoder(len(table))
    text.embeddings.token_embedding.weight.data.copy_(table)
    text.embeddings.token_embedding.requires_grad_(False)
    unet = model.unet()
    for name, parameter in unet.named_parameters():
        # Residual branches and the output start at zero (the usual start of diffusion U-Nets).
        if name.endswith(("conv2.weight", "proj_out.weight")) or name == "conv_out.weight":
            nn.init.zeros_(parameter)
    unet.to(memory_format=torch.channels_last)
    both = nn.ModuleDict({"unet": unet, "text": text})
    parameters = [p for p in both.parameters() if p.requires_grad]
    ema = Ema(parameters, 0.999)
    optimizer = torch.optim.AdamW(parameters, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    step, done_minutes = 0, 0.0
    if (work / "unet.pt").exists():
        kept = torch.load(work / "unet.pt")
        both.load_state_dict(kept["live"])
        for mean, value in zip(ema.mean, kept["mean"], strict=True):
            mean.copy_(value)
        if kept["optimizer"]:
            optimizer.load_state_dict(kept["optimizer"])
        ema.steps, step, done_minutes = kept["step"], kept["step"], kept["minutes"]

    def keep(share: float) -> None:
        state = {"live": both.state_dict(), "mean": ema.mean, "optimizer": optimizer.state_dict(), "step": step}
        save(state | {"minutes": done_minutes + share * minutes}, work / "unet.pt")
        ema.swap()
        averaged = {k: v.half() for k, v in copy.deepcopy(both.state_dict()).items()}
        ema.swap()
        save(averaged | {"scale": pool["scale"]}, work / "unet_ema.pt")

    batch = int(os.environ.get("BATCH", "32"))
    clock, total, last_save = Clock(minutes, 1e-3), 0.0, time.time()
    while clock.share() < 1:
        pick = torch.randint(0, len(z), (batch,))
        ids = pool["ids"][pick, torch.randint(0, CAPTIONS_PER_SCENE, (batch,))].long()
        ids = torch.where(torch.rand(batch, 1) < NULL_CAPTION_SHARE, pool["null"][None], ids)
        x0 = z[pick]
        # More samples where the shape is decided than at either end (logit-normal, Esser et al. 2024).
        t = (torch.sigmoid(torch.randn(batch) * 1.1) * 1000).long().clamp(0, 999)
        t = torch.where(torch.rand(batch) < 0.3, torch.randint(0, 1000, (batch,)), t)
        a = alphas[t][:, None, None, None]
        noise = torch.randn_like(x0)
        noisy = a.sqrt() * x0 + (1 - a).sqrt() * noise
        v = a.sqrt() * noise - (1 - a).sqrt() * x0
        loss = F.mse_loss(unet(noisy, t, text(ids).last_hidden_state).sample, v)
        step_optimizer(optimizer, parameters, loss, clock.rate(step))
        ema.update()
        step, total = step + 1, total + float(loss.detach())
        if step % 20 == 0:
            share_cores()
        if step % 100 == 0:
            elapsed = done_minutes + clock.share() * minutes
            print(f"unet {step} samples {step * batch} minutes {elapsed:.1f} loss {total / 100:.4f}", flush=True)
            total = 0.0
        if time.time() - last_save > 120 or clock.share() >= 1:
            keep(clock.share())
            last_save = time.time()


def resume(bundle: Path, work: Path) -> None:
    """Lays out a work folder from a bundle; what a bundle lacks (the optimizer's state) is learned again in minutes."""
    work.mkdir(parents=True, exist_ok=True)
    encoder, decoder, unet, text = (
        load_file(bundle / f"weights/{name}.safetensors")
        for name in ("vae_encoder", "vae_decoder", "unet", "text_encoder")
    )
    save({name: value.float() for name, value in {**encoder, **decoder}.items()}, work / "vae.pt")
    state = {f"unet.{name}": value.float() for name, value in unet.items()}
    state |= {name.replace("text_model.", "text.", 1): value.float() for name, value in text.items()}
    table = state["text.embeddings.token_embedding.weight"]
    save(table, work / "token_table.pt")
    (work / "tokenizer.json").write_bytes((bundle / "text_encoder" / "tokenizer.json").read_bytes())
    both = nn.ModuleDict({"unet": model.unet(), "text": model.text_encoder(len(table))})
    both.load_state_dict(state)
    both["text"].embeddings.token_embedding.requires_grad_(False)
    mean = [p.detach() for p in both.parameters() if p.requires_grad]
    kept = {"live": both.state_dict(), "mean": mean, "optimizer": None, "step": 0, "minutes": 0.0}
    save(kept, work / "unet.pt")


def main() -> None:
    phase, pictures, work, amount = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), float(sys.argv[4])
    torch.set_num_threads(2)
    match phase:
        case "vae64" | "vae" | "decoder":
            train_vae(phase, pictures, work, amount)
        case "latents":
            make_latents(pictures, work, int(amount))
        case "unet":
            train_unet(work, amount)
        case "resume":
            resume(pictures, work)
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()
