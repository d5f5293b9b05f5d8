"""What unmodified clients do with `calotype serve`: OpenAI's library for Python, and webuiapi for A1111's API. The
OpenAPI document is checked against its standard.

    python tests/clients/server.py CALOTYPE

Needs openai, openapi-spec-validator, webuiapi and Pillow, in the versions of export/requirements.txt.
"""

from __future__ import annotations

import base64
import io
import json
import subprocess
import sys
import threading
import time
import urllib.request
from typing import Any

import openai
import webuiapi
from openapi_spec_validator import validate
from PIL import Image, ImageDraw

PORT = 7861
PROMPT = "a red apple on a blue background"


def main() -> None:
    server = subprocess.Popen(
        [sys.argv[1], "serve", "--address", f"127.0.0.1:{PORT}"], stderr=subprocess.PIPE, text=True
    )
    try:
        assert server.stderr is not None
        line = server.stderr.readline()
        assert f"http://127.0.0.1:{PORT}" in line, line
        with urllib.request.urlopen(f"http://127.0.0.1:{PORT}/openapi.json", timeout=60) as reply:
            validate(json.load(reply))
        openai_client()
        a1111_client()
        recorded_calls()
    finally:
        server.terminate()
        code = server.wait(60)
    assert code == 0, f"the server ended with {code}"


def decoded(data: str | None) -> Image.Image:
    assert data, "expected an image"
    return Image.open(io.BytesIO(base64.b64decode(data)))


def openai_client() -> None:
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{PORT}/v1", api_key="none")
    assert [model.id for model in client.models.list()] == ["calotype-emoji-1"]
    # Home Assistant's integration sends neither size nor number.
    made = client.images.generate(prompt=PROMPT, model="gpt-image-1", response_format="b64_json")
    assert made.data and decoded(made.data[0].b64_json).size == (128, 128)
    image, mask = io.BytesIO(), io.BytesIO()
    decoded(made.data[0].b64_json).save(image, "PNG")
    transparent = Image.new("RGBA", (128, 128), "black")
    ImageDraw.Draw(transparent).rectangle((0, 0, 63, 127), fill=(0, 0, 0, 0))
    transparent.save(mask, "PNG")
    edited = client.images.edit(
        image=("image.png", image.getvalue()),
        mask=("mask.png", mask.getvalue()),
        prompt="a rocket on a black background",
        n=2,
        size="128x128",  # type: ignore[arg-type]
    )
    assert edited.data and len(edited.data) == 2
    after = decoded(edited.data[0].b64_json)
    box = (64, 0, 128, 128)
    before = decoded(made.data[0].b64_json)
    assert after.crop(box).tobytes() == before.crop(box).tobytes(), "outside of the mask"
    assert after.tobytes() != before.tobytes(), "inside"
    names = [
        event.type
        for event in client.images.generate(prompt=PROMPT, stream=True, partial_images=2, model="gpt-image-1")
    ]
    partial = "image_generation.partial_image"
    assert names == [partial, partial, "image_generation.completed"], names
    for wrong in ({"n": 0}, {"size": "large"}, {"output_format": "tiff"}):
        try:
            client.images.generate(prompt=PROMPT, **wrong)  # type: ignore[call-overload]
        except openai.BadRequestError as error:
            assert error.param in wrong, error.param
        else:
            raise AssertionError(f"{wrong} was accepted")


def a1111_client() -> None:
    client = webuiapi.WebUIApi(host="127.0.0.1", port=PORT, sampler="DPM++ 2M", steps=10)
    made = client.txt2img(prompt=PROMPT, negative_prompt="blurry", seed=1003, width=128, height=128, cfg_scale=4)
    assert made.image.size == (128, 128)
    assert made.info["seed"] == 1003 and made.info["infotexts"][0].startswith(PROMPT), made.info
    again = client.img2img(images=[made.image], prompt=PROMPT, seed=5, denoising_strength=0.4, width=128, height=128)
    assert again.image.size == (128, 128) and again.image.tobytes() != made.image.tobytes()
    read = client.png_info(made.image)
    assert "Seed: 1003" in read.info, read.info
    larger = client.extra_single_image(made.image, upscaler_1="Lanczos", upscaling_resize=2)
    assert larger.image.size == (256, 256)
    assert client.get_options()["sd_model_checkpoint"].startswith("calotype-emoji-1")
    assert "Euler a" in [sampler["name"] for sampler in client.get_samplers()]
    client.util_set_model(client.util_get_model_names()[0])
    interrupt(client)


def interrupt(client: Any) -> None:
    """A run of many steps ends when it is told to, with what there is."""
    found: list[Any] = []
    thread = threading.Thread(
        target=lambda: found.append(client.txt2img(prompt=PROMPT, steps=900, width=128, height=128))
    )
    thread.start()
    for _ in range(600):
        progress = client.get_progress()
        if progress["state"]["sampling_step"] > 1:
            break
        time.sleep(0.05)
    assert 0 < progress["progress"] < 1 and progress["eta_relative"] > 0, progress
    client.interrupt()
    thread.join(60)
    assert found and found[0].image.size == (128, 128)


def recorded_calls() -> None:
    """What programs send that have no library of their own, and how they read the reply."""
    # Open WebUI, engine "automatic1111": fails when `info` is missing.
    reply = post(
        "/sdapi/v1/txt2img",
        {"prompt": PROMPT, "negative_prompt": "", "batch_size": 1, "width": 128, "height": 128, "steps": 4},
    )
    assert decoded(reply["images"][0]).size == (128, 128) and isinstance(reply["info"], str)
    # LibreChat: parses `info`.
    body = {"prompt": PROMPT, "negative_prompt": "", "cfg_scale": 4.5, "steps": 4, "width": 128, "height": 128}
    info = json.loads(post("/sdapi/v1/txt2img", body)["info"])
    assert info["infotexts"][0] and info["seed"] and (info["width"], info["height"]) == (128, 128)
    # SillyTavern after a change of model: polls until both are 0.
    progress = get("/sdapi/v1/progress")
    assert progress["progress"] == 0 and progress["state"]["job_count"] == 0, progress
    for path, field in (("sd-models", "title"), ("samplers", "name"), ("schedulers", "name"), ("upscalers", "name")):
        assert get(f"/sdapi/v1/{path}")[0][field], path
    # Open WebUI, engine "openai".
    body = {"model": "dall-e-2", "prompt": PROMPT, "n": 1, "size": "128x128", "response_format": "b64_json"}
    assert decoded(post("/v1/images/generations", body)["data"][0]["b64_json"]).size == (128, 128)


def get(path: str) -> Any:
    with urllib.request.urlopen(f"http://127.0.0.1:{PORT}{path}") as reply:
        return json.load(reply)


def post(path: str, body: dict[str, Any]) -> Any:
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"http://127.0.0.1:{PORT}{path}", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request) as reply:
        return json.load(reply)


if __name__ == "__main__":
    main()
