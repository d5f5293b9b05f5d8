"""Writes tests/golden/shapes/values.json: types and shapes of every value of ready-made graphs, for the propagation of
shapes.

    python export/golden_shapes.py tests/golden/shapes

ONNX Runtime runs each graph of models/builtin and of tests/golden/onnx_folders unoptimised, with all that its nodes
give as outputs; weights are drawn at random, for no shape depends on them.

values.json:
    provenance   command and versions
    graphs       [{ graph   path in the repository
                    inputs  {name: shape}
                    types   ["F32 1 4 8 8", ..]: type and sizes, without repetition
                    values  indices into types: what the nodes give, in the order of the file }]
"""

from __future__ import annotations

import gzip
import importlib.metadata
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import ModelProto, numpy_helper

Shape = tuple[int, ...]

ROOT = Path(__file__).parent.parent
BUILTIN = "models/builtin/graphs"
FOLDERS = "tests/golden/onnx_folders"
DTYPES = {"float32": "F32", "float16": "F16", "int64": "I64", "int32": "I32", "bool": "BOOL", "float64": "F64"}
# Sizes differ, so that no two dimensions can be mistaken for each other.
SIZES = {
    "sample": (2, 4, 8, 12),
    "latent_sample": (1, 4, 6, 10),
    "encoder_hidden_states": (2, 77, 32),
    "input_ids": (2, 77),
    "timestep": (),
    "timestep_cond": (2, 32),
    "text_embeds": (2, 48),
    "time_ids": (2, 6),
    "return_dict": (),
}
CASES: list[tuple[str, dict[str, Shape]]] = [
    (f"{BUILTIN}/unet", {"sample": (2, 16, 8, 12), "encoder_hidden_states": (2, 20, 192)}),
    (f"{BUILTIN}/vae_decoder", {"latent_sample": (1, 16, 6, 10)}),
    (f"{BUILTIN}/vae_encoder", {"sample": (1, 3, 48, 80)}),
    (f"{BUILTIN}/text_encoder", {"input_ids": (2, 24)}),
    (f"{FOLDERS}/optimum/unet/model", {}),
    (f"{FOLDERS}/optimum/text_encoder/model", {}),
    (f"{FOLDERS}/optimum/vae_decoder/model", {}),
    (f"{FOLDERS}/optimum/vae_encoder/model", {"sample": (1, 3, 48, 80)}),
    (f"{FOLDERS}/optimum-xl/unet/model", {"encoder_hidden_states": (2, 77, 80)}),
    (f"{FOLDERS}/optimum-xl/text_encoder_2/model", {}),
    (f"{FOLDERS}/optimum-lcm/unet/model", {}),
    (f"{FOLDERS}/optimum-old/unet/model", {"timestep": (1,)}),
    (f"{FOLDERS}/optimum-old/vae_encoder/model", {"sample": (1, 3, 48, 80)}),
    (f"{FOLDERS}/diffusers-script/unet/model", {"timestep": (2,)}),
    (f"{FOLDERS}/olive-io16/vae_encoder/model", {"sample": (1, 3, 48, 80)}),
    (f"{FOLDERS}/amd-io32/unet/model", {"timestep": (2,)}),
    (f"{FOLDERS}/web/unet/model", {"timestep": (1,)}),
    (f"{FOLDERS}/static-1/unet/model", {}),
]


def with_weights(model: ModelProto) -> ModelProto:
    """Gives initializers without data small numbers, and declares every value an output."""
    draw = np.random.default_rng(0)
    for tensor in model.graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
            data = (draw.standard_normal(tuple(tensor.dims)) * 0.02).astype(dtype)
            tensor.CopyFrom(numpy_helper.from_array(data, tensor.name))
    known = {output.name for output in model.graph.output}
    for name in given(model):
        if name not in known:
            model.graph.output.append(onnx.ValueInfoProto(name=name))
    return model


def given(model: ModelProto) -> list[str]:
    return [name for node in model.graph.node for name in node.output if name]


def shapes(path: str, changes: dict[str, Shape]) -> dict[str, Any]:
    model = onnx.load_from_string(gzip.decompress((ROOT / path).read_bytes()))
    names = given(model)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(with_weights(model).SerializeToString(), options, ["CPUExecutionProvider"])
    inputs: dict[str, Shape] = {}
    feeds: dict[str, np.ndarray[Any, Any]] = {}
    for port in session.get_inputs():
        fixed = [size for size in port.shape if isinstance(size, int)]
        is_static = bool(port.shape) and len(fixed) == len(port.shape)
        inputs[port.name] = tuple(fixed) if is_static else {**SIZES, **changes}[port.name]
        kind = {"float": np.float32, "float16": np.float16, "int64": np.int64, "int32": np.int32, "bool": np.bool_}[
            port.type[7:-1]
        ]
        feeds[port.name] = np.ones(inputs[port.name], kind)
    results = session.run(names, feeds)
    types: dict[str, int] = {}
    values = []
    for result in results:
        described = " ".join([DTYPES[str(result.dtype)], *map(str, result.shape)])
        values.append(types.setdefault(described, len(types)))
    return {"graph": path, "inputs": inputs, "types": list(types), "values": values}


def main() -> None:
    folder = Path(sys.argv[1])
    versions = {name: importlib.metadata.version(name) for name in ["numpy", "onnx", "onnxruntime"]}
    provenance = {"command": "python export/golden_shapes.py tests/golden/shapes", "versions": versions}
    graphs = [json.dumps(shapes(f"{path}.onnx.gz", changes)) for path, changes in CASES]
    text = f'{{"provenance": {json.dumps(provenance)}, "graphs": [\n' + ",\n".join(graphs) + "\n]}\n"
    (folder / "values.json").write_text(text)


if __name__ == "__main__":
    main()
