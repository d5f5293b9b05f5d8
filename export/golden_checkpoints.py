"""Writes tests/golden/checkpoints: what diffusers and transformers compute with narrow models of every family, for the
parity tests of whole folders and single files.

    pip download --no-deps -d WORK open_clip_torch==3.3.0
    python export/golden_checkpoints.py WORK/open_clip_torch-*.whl tests/golden/checkpoints [FAMILY ...]

The wheel holds CLIP's merges. No weights are committed: every value follows from a tensor's name and shape
(checkpoints/values.py), so the tests write the files themselves. Everything runs in f32 on one CPU thread. Each folder
is loaded by the family's own pipeline, each single file by its from_single_file, and the weights of both must be equal
bit for bit.

FAMILY.json.gz:
    provenance   command and versions
    family       its name
    model_index  model_index.json, as published
    components   NAME (unet, vae, text_encoder, text_encoder_2) -> {
                     config       config.json, as published
                     file         the weight file, relative to the folder
                     tensors      [[name, shape], ..] of that file; values by the rule on "NAME/name"
                     extra        [[name, shape, dtype, fill], ..]: what published files hold beside them
                     also_named   {name: another name that the tensor has in other people's folders} }
    tokenizers   NAME (tokenizer, tokenizer_2) -> {file name: its contents}; vocab.json and merges.txt are CLIP's
    schedulers   NAME (scheduler, low_res_scheduler) -> scheduler_config.json
    single_file  null, or [[name, shape, how, of], ..]: the original checkpoint (checkpoints/original.py says how)
    text         {rows, cases: [{text, ids: {tokenizer: [77]}, arrays: {port: array}}, ..]}: only those `rows` (tokens)
                 of the token-wise outputs are kept. `port` is "text_encoder.last_hidden_state",
                 "text_encoder.hidden_states" (the last layer's input) or "text_encoder_2.text_embeds"
    unet         {inputs: {port: input}, outputs: {"out_sample": array}}
    vae          {encode: {inputs, outputs}, decode: {inputs, outputs}}
    pictures     [{name, pipeline, scheduler: {class, config}, seed, arguments, timesteps, sigmas, draws, latents,
                 picture}, ..]: `arguments` are the pipeline's own; `timesteps` and `sigmas` (or null) are what the
                 scheduler made of them, before any strength; `draws` are the shapes that were drawn, in order, from
                 torch.Generator("cpu").manual_seed(seed); `latents` names the final latents, f32, before the division
                 by the scaling factor; `picture` the u8 picture (height, width, 3), or is null
An `input` is {shape, seed, scale}: scale * torch.randn(shape) of a generator of that seed; or {values, dtype}:
outright. An init image is {seed, width, height} (checkpoints/values.py, `picture`), a mask {width, height, box}: white
(255) within box = [left, top, right, bottom], right and bottom exclusive, black elsewhere. An array is a name in
FAMILY.safetensors.
"""

from __future__ import annotations

import contextlib
import gzip
import importlib.metadata
import json
import re
import sys
import tempfile
import unittest.mock
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
import transformers
from diffusers.loaders.single_file_utils import DIFFUSERS_TO_LDM_MAPPING
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from checkpoints import original, values
from checkpoints.families import CLIP, DDIM, NEGATIVE, PROMPT, Ask, Family, families

Json = dict[str, Any]
Arrays = dict[str, Tensor]

# Causal attention makes every token depend on all before it, so a few tell about all.
ROWS = [0, 1, 2, 7, 20, 76]
STEPS = 4
SEED = 33
SIZE = 64
LCM_ONLY = "time_embedding.cond_proj.weight"
OLD_ATTENTION = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def write_tokenizer_files(wheel: Path, folder: Path) -> None:
    """vocab.json and merges.txt, from OpenCLIP's list of merges."""
    with zipfile.ZipFile(wheel) as archive:
        packed = archive.read("open_clip/bpe_simple_vocab_16e6.txt.gz")
    merges = gzip.decompress(packed).decode().split("\n")[1 : 49152 - 256 - 2 + 1]
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    other = [byte for byte in range(256) if byte not in printable]
    letters = [chr(byte) for byte in printable] + [chr(256 + n) for n in range(len(other))]
    words = letters + [f"{x}</w>" for x in letters] + ["".join(m.split()) for m in merges]
    words += ["<|startoftext|>", "<|endoftext|>"]
    assert len(words) == 49408
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({w: i for i, w in enumerate(words)}, ensure_ascii=False))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")


def published_name(module: nn.Module, name: str) -> str:
    """What published folders call a parameter: CLIP keeps a prefix that transformers 5 dropped."""
    return f"text_model.{name.removeprefix('text_model.')}" if type(module).__name__ == CLIP else name


def shapes_of(module: nn.Module) -> dict[str, list[int]]:
    return {published_name(module, name): list(value.shape) for name, value in module.state_dict().items()}


def other_names(component: str, family: Family, shapes: Mapping[str, object]) -> dict[str, str]:
    if component == "vae" and family.old_vae_names:
        renamed = {}
        for name in shapes:
            if m := re.fullmatch(r"(.+\.attentions\.0\.)(to_q|to_k|to_v|to_out\.0)\.(\w+)", name):
                renamed[name] = f"{m[1]}{OLD_ATTENTION[m[2]]}.{m[3]}"
        return renamed
    if component.startswith("text_encoder") and family.text[component]["architectures"] == [CLIP]:
        return {name: name.removeprefix("text_model.") for name in shapes}
    return {}


def module_of(component: str, config: Json) -> nn.Module:
    """The network of a config, without values worth keeping."""
    with torch.device("meta"):
        if component.startswith("text_encoder"):
            module = getattr(transformers, config["architectures"][0])(transformers.CLIPTextConfig(**config))
        else:
            module = getattr(diffusers, config["_class_name"]).from_config(config)
    assert isinstance(module, nn.Module)
    return module


def write_folder(family: Family, vocabulary: Path, folder: Path) -> tuple[Json, dict[str, dict[str, list[int]]]]:
    """The published folder; returns the records of its components, and their shapes."""

    def write(path: str, contents: Json) -> None:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(json.dumps(contents))

    write("model_index.json", family.model_index)
    write("scheduler/scheduler_config.json", family.scheduler)
    if family.low_res_scheduler is not None:
        write("low_res_scheduler/scheduler_config.json", family.low_res_scheduler)
    write_folder_tokenizers(family, vocabulary, folder)
    records: dict[str, Json] = {}
    shapes: dict[str, dict[str, list[int]]] = {}
    for component, config in {"unet": family.unet, "vae": family.vae, **family.text}.items():
        text = component in family.text
        file = f"{component}/{'model' if text else 'diffusion_pytorch_model'}.safetensors"
        shapes[component] = shapes_of(module_of(component, config))
        extra = [["text_model.embeddings.position_ids", [1, 77], "I64", "arange"]] if text else []
        records[component] = {
            "config": config,
            "file": file,
            "tensors": list(shapes[component].items()),
            "extra": extra,
            "also_named": other_names(component, family, shapes[component]),
        }
        write(f"{component}/config.json", config)
        tensors = values.state(component, shapes[component].items())
        if text:
            tensors["text_model.embeddings.position_ids"] = torch.arange(77)[None]
        elif component == "vae":
            # Written under the older names where the record tells of them: diffusers must read both alike.
            tensors = {records[component]["also_named"].get(name, name): value for name, value in tensors.items()}
        save_file(tensors, folder / file)
    return records, shapes


def write_folder_tokenizers(family: Family, vocabulary: Path, folder: Path) -> None:
    for name, files in family.tokenizer.items():
        (folder / name).mkdir(parents=True)
        for file, contents in files.items():
            (folder / name / file).write_text(json.dumps(contents))
        for file in ("vocab.json", "merges.txt"):
            (folder / name / file).symlink_to(vocabulary / file)


def check_weights(pipeline: Any, state: Mapping[str, Tensor], components: Iterator[str], what: str) -> None:
    """The pipeline must hold exactly these values, bit for bit."""
    for component in components:
        module = getattr(pipeline, component)
        loaded = {f"{component}/{published_name(module, n)}": v for n, v in module.state_dict().items()}
        want = {name: value for name, value in state.items() if name.startswith(f"{component}/")}
        assert loaded.keys() == want.keys(), f"{what}: {component}: {loaded.keys() ^ want.keys()}"
        for name, value in loaded.items():
            assert value.dtype == torch.float32 and torch.equal(value, want[name]), f"{what}: {name} differs"


def load(family: Family, folder: Path) -> Any:
    pipeline = getattr(diffusers, family.pipeline).from_pretrained(folder, dtype=torch.float32, **absent(family))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def absent(family: Family) -> Json:
    """What published folders hold and ours does not."""
    return {name: None for name in ("safety_checker", "feature_extractor", "watermarker") if name in family.index}


# Golden arrays.


def golden_input(entry: Json) -> Tensor:
    if "values" in entry:
        types = {"F32": torch.float32, "I64": torch.int64}
        return torch.tensor(entry["values"], dtype=types[entry["dtype"]])
    return values.randn(entry["seed"], entry["shape"], entry["scale"])


def noise_input(seed: int, *shape: int, scale: float = 1.0) -> Json:
    return {"shape": list(shape), "seed": seed, "scale": scale}


def keep(arrays: Arrays, name: str, value: Tensor) -> str:
    assert name not in arrays and (value.dtype == torch.uint8 or bool(value.isfinite().all())), name
    arrays[name] = value.contiguous().clone()
    return name


def text_golden(family: Family, pipeline: Any, arrays: Arrays) -> Json:
    cases = []
    for number, text in enumerate((PROMPT, NEGATIVE)):
        ids, kept = {}, {}
        for position, component in enumerate(family.text):
            tokenizer = list(family.tokenizer)[position]
            tokens = getattr(pipeline, tokenizer)(
                text, padding="max_length", max_length=77, truncation=True, return_tensors="pt"
            ).input_ids
            ids[tokenizer] = tokens[0].tolist()
            output = getattr(pipeline, component)(tokens, output_hidden_states=True)
            if family.penultimate:
                port, states = "hidden_states", output.hidden_states[-2]
            else:
                port, states = "last_hidden_state", output.last_hidden_state
            kept[f"{component}.{port}"] = keep(arrays, f"text.{number}.{component}.{port}", states[0, ROWS])
            if hasattr(output, "text_embeds"):
                name = f"{component}.text_embeds"
                kept[name] = keep(arrays, f"text.{number}.{name}", output.text_embeds[0])
        cases.append({"text": text, "ids": ids, "arrays": kept})
    return {"rows": ROWS, "cases": cases}


def unet_golden(family: Family, pipeline: Any, arrays: Arrays, size: tuple[int, int] | None = None) -> Json:
    """One call; `size` is that of the sample in latent cells."""
    config = family.unet
    least = 2 ** (len(config["block_out_channels"]) - 1)
    inputs = {
        # A sample that is wider than tall, of two images, tells the axes apart.
        "sample": noise_input(101, 2, config["in_channels"], *(size or (least, 2 * least))),
        "timestep": {"values": 501.0, "dtype": "F32"},
        "encoder_hidden_states": noise_input(102, 2, 77, config["cross_attention_dim"]),
    }
    extra: Json = {}
    if config.get("addition_embed_type") == "text_time":
        sizes = 5 if family.index.get("requires_aesthetics_score") else 6
        pooled = config["projection_class_embeddings_input_dim"] - sizes * config["addition_time_embed_dim"]
        times = [[64.0, 96.0, 0.0, 8.0, 64.0, 96.0], [1024.0, 768.0, 16.0, 0.0, 512.0, 640.0]]
        if sizes == 5:
            times = [[64.0, 96.0, 0.0, 8.0, 6.0], [1024.0, 768.0, 16.0, 0.0, 2.5]]
        inputs["text_embeds"] = noise_input(103, 2, pooled)
        inputs["time_ids"] = {"values": times, "dtype": "F32"}
        names = ("text_embeds", "time_ids")
        extra["added_cond_kwargs"] = {name: golden_input(inputs[name]) for name in names}
    if config.get("time_cond_proj_dim"):
        inputs["timestep_cond"] = noise_input(104, 2, config["time_cond_proj_dim"])
        extra["timestep_cond"] = golden_input(inputs["timestep_cond"])
    if config.get("num_class_embeds"):
        inputs["class_labels"] = {"values": [20, 350], "dtype": "I64"}
        extra["class_labels"] = golden_input(inputs["class_labels"])
    main = [golden_input(inputs[name]) for name in ("sample", "timestep", "encoder_hidden_states")]
    out = pipeline.unet(*main, **extra, return_dict=False)[0]
    return {"inputs": inputs, "outputs": {"out_sample": keep(arrays, "unet.out_sample", out)}}


def vae_golden(
    family: Family,
    pipeline: Any,
    arrays: Arrays,
    encoded_size: tuple[int, int] = (32, 64),
    decoded_size: tuple[int, int] = (2, 4),
) -> Json:
    """Encode, of an image of so many pixels, and decode, of latents of so many cells."""
    channels, tiny = family.vae["latent_channels"], family.vae_class == "AutoencoderTiny"
    picture = {"sample": noise_input(111, 1, 3, *encoded_size, scale=0.5)}
    latents = {"latent_sample": noise_input(112, 1, channels, *decoded_size)}
    encoded = pipeline.vae.encode(golden_input(picture["sample"]))
    port, value = ("latent_sample", encoded.latents) if tiny else ("latent_parameters", encoded.latent_dist.parameters)
    decoded = pipeline.vae.decode(golden_input(latents["latent_sample"])).sample
    return {
        "encode": {"inputs": picture, "outputs": {port: keep(arrays, f"vae.{port}", value)}},
        "decode": {"inputs": latents, "outputs": {"sample": keep(arrays, "vae.sample", decoded)}},
    }


def plain(config: Mapping[str, Any]) -> Json:
    """A scheduler's config without diffusers' own notes."""
    return {key: value for key, value in config.items() if not key.startswith("_")}


@contextlib.contextmanager
def recorded_draws() -> Iterator[list[list[int]]]:
    """The shapes of what is drawn from a generator meanwhile, in order."""
    drawn: list[list[int]] = []
    randn = torch.randn

    def recording(*shape: Any, generator: torch.Generator | None = None, **options: Any) -> Tensor:
        noise = randn(*shape, generator=generator, **options)
        if generator is not None:
            drawn.append(list(noise.shape))
        return noise

    with unittest.mock.patch.object(torch, "randn", recording):
        yield drawn


def for_pipelines(scheduler: Any) -> Any:
    """A class of schedulers with what Stable Diffusion's pipelines ask of one: those of flow matching are written for
    other pipelines, which mix latents by `scale_noise` and do not scale what the network sees."""
    if not scheduler.__name__.startswith("Flow"):
        return scheduler

    class Adapted(scheduler):
        init_noise_sigma = 1.0

        def scale_model_input(self, sample: Tensor, _: Any) -> Tensor:
            return sample

        def add_noise(self, sample: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
            return self.scale_noise(sample, timesteps, noise)

    return Adapted


def draw(family: Family, folder_pipeline: Any, arrays: Arrays, ask: Ask) -> Json:
    """One whole picture."""
    pipeline = folder_pipeline
    if ask.pipeline is not None:
        pipeline = getattr(diffusers, ask.pipeline).from_pipe(folder_pipeline)
        pipeline.set_progress_bar_config(disable=True)
    # Published DDIM settings end at the first training timestep; calotype's schedules end where there is no noise.
    last = {"set_alpha_to_one": True} if ask.sampler == DDIM else {}
    cls = for_pipelines(getattr(diffusers, ask.sampler))
    scheduler = cls.from_config(folder_pipeline.published.config, **last, **ask.settings)
    pipeline.scheduler = scheduler
    arguments = {"prompt": PROMPT, "num_inference_steps": STEPS, **ask.arguments}
    if "image" not in arguments or "mask_image" in arguments:
        arguments |= {"width": SIZE, "height": SIZE}
    generator = torch.Generator("cpu").manual_seed(SEED)
    given = {key: pixels(value) for key, value in arguments.items()}
    with recorded_draws() as draws:
        latents = pipeline(**given, generator=generator, output_type="latent").images
    assert latents.dtype == torch.float32
    record: Json = {
        "name": ask.name,
        "pipeline": type(pipeline).__name__,
        "scheduler": {"class": ask.sampler, "config": plain(scheduler.config)},
        "seed": SEED,
        "arguments": arguments,
        "timesteps": scheduler.timesteps.tolist(),
        "sigmas": scheduler.sigmas.tolist() if hasattr(scheduler, "sigmas") else None,
        "draws": draws,
        "latents": keep(arrays, f"{ask.name}.latents", latents[0]),
        "picture": None,
    }
    if ask.picture:
        unscaled = latents / pipeline.vae.config.scaling_factor
        if pipeline.vae.config.latents_mean is not None:
            mean, std = (
                torch.tensor(numbers)[None, :, None, None]
                for numbers in (pipeline.vae.config.latents_mean, pipeline.vae.config.latents_std)
            )
            unscaled = unscaled * std + mean
        decoded = pipeline.vae.decode(unscaled).sample
        drawn = np.asarray(pipeline.image_processor.postprocess(decoded, output_type="pil")[0])
        assert drawn.shape == (SIZE, SIZE, 3) and drawn.std() > 20, f"{family.name}: {ask.name} shows nothing"
        record["picture"] = keep(arrays, f"{ask.name}.picture", torch.from_numpy(drawn.copy()))
    return record


def pixels(argument: Any) -> Any:
    """Arguments as the pipeline takes them: recorded init images and masks become pictures."""
    match argument:
        case {"seed": seed, "width": width, "height": height}:
            return Image.fromarray(values.picture(seed, width, height))
        case {"width": width, "height": height, "box": [left, top, right, bottom]}:
            mask = np.zeros((height, width), np.uint8)
            mask[top:bottom, left:right] = 255
            return Image.fromarray(mask)
    return argument


@torch.no_grad()
def golden(family: Family, vocabulary: Path, out: Path) -> None:
    arrays: Arrays = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "folder"
        components, shapes = write_folder(family, vocabulary, folder)
        state = {f"{c}/{n}": v for c, s in shapes.items() for n, v in values.state(c, s.items()).items()}
        pipeline = load(family, folder)
        check_weights(pipeline, state, iter(components), f"{family.name}: the folder")
        rows = family.original_rows(shapes)
        if rows is not None:
            check_single_file(family, rows, state, folder, Path(temporary) / "single.safetensors")
    pipeline.published = pipeline.scheduler
    record = {
        "provenance": provenance(family.name),
        "family": family.name,
        "model_index": family.model_index,
        "components": components,
        "tokenizers": family.tokenizer,
        "schedulers": {"scheduler": family.scheduler}
        | ({"low_res_scheduler": family.low_res_scheduler} if family.low_res_scheduler else {}),
        "single_file": rows,
        "text": text_golden(family, pipeline, arrays),
        "unet": unet_golden(family, pipeline, arrays),
        "vae": vae_golden(family, pipeline, arrays),
        "pictures": [draw(family, pipeline, arrays, ask) for ask in family.asks],
    }
    save_file(arrays, out / f"{family.name}.safetensors")
    write_json(out / f"{family.name}.json.gz", record)
    parameters = sum(value.numel() for value in state.values())
    size = sum((out / f"{family.name}.{end}").stat().st_size for end in ("safetensors", "json.gz"))
    print(f"{family.name}: {parameters / 1e6:.1f} M parameters, {len(state)} tensors, {size / 1e3:.0f} kB")


def check_single_file(
    family: Family, rows: list[original.Row], state: Mapping[str, Tensor], folder: Path, file: Path
) -> None:
    """diffusers must read the original names as the very weights of the folder."""
    save_file(original.build(rows, state), file)
    assert load_file(file).keys() == {row[0] for row in rows}
    known = DIFFUSERS_TO_LDM_MAPPING["unet"]["layers"]
    # diffusers cannot read LCM's one tensor of its own back from the files that its script wrote.
    missing = {} if LCM_ONLY in known else {LCM_ONLY: LCM_ONLY}
    with unittest.mock.patch.dict(known, missing):
        pipeline = getattr(diffusers, family.pipeline).from_single_file(
            str(file), config=str(folder), dtype=torch.float32, local_files_only=True, **absent(family)
        )
    components = ["unet", "vae", *family.text]
    check_weights(pipeline, state, iter(components), f"{family.name}: the single file")


def provenance(name: str) -> dict[str, str]:
    versions = {name: importlib.metadata.version(name) for name in ("diffusers", "transformers", "tokenizers", "torch")}
    command = f"python export/golden_checkpoints.py OPEN_CLIP_WHEEL tests/golden/checkpoints {name}"
    return {"command": command, **versions}


def write_json(file: Path, contents: Json) -> None:
    text = json.dumps(contents, ensure_ascii=False, separators=(",", ":"))
    file.write_bytes(gzip.compress(text.encode(), 9, mtime=0))


def main() -> None:
    wheel, out, *names = sys.argv[1:]
    torch.set_num_threads(1)
    diffusers.utils.logging.set_verbosity_error()
    transformers.logging.set_verbosity_error()
    Path(out).mkdir(parents=True, exist_ok=True)
    known = {family.name: family for family in families()}
    assert set(names) <= set(known), f"expected some of {list(known)}, got {names}"
    with tempfile.TemporaryDirectory() as vocabulary:
        write_tokenizer_files(Path(wheel), Path(vocabulary))
        for name in names or known:
            golden(known[name], Path(vocabulary), Path(out))


if __name__ == "__main__":
    main()
