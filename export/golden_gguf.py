"""Writes tests/golden/gguf: a file with a tensor of every type that is read, and the same numbers as 32-bit floats.

    python export/golden_gguf.py tests/golden/gguf

blocks.gguf          random blocks under the name of their type, some of them written by the package's own quantisation
                     (`quantised.TYPE`); plain numbers; a tensor whose shape is in a key, as ComfyUI-GGUF writes it
blocks.safetensors   what the package dequantises them to
"""

from __future__ import annotations

import importlib.metadata
import sys
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type
from safetensors.numpy import save_file

BLOCKS = [Type.Q4_0, Type.Q4_1, Type.Q5_0, Type.Q5_1, Type.Q8_0, Type.Q2_K, Type.Q3_K, Type.Q4_K, Type.Q5_K, Type.Q6_K]
QUANTISED = [Type.Q4_0, Type.Q4_1, Type.Q5_0, Type.Q5_1, Type.Q8_0]
# Where 16-bit scales lie in a block.
SCALES = {
    Type.Q4_0: [0], Type.Q4_1: [0, 2], Type.Q5_0: [0], Type.Q5_1: [0, 2], Type.Q8_0: [0],
    Type.Q2_K: [80, 82], Type.Q3_K: [108], Type.Q4_K: [0, 2], Type.Q5_K: [0, 2], Type.Q6_K: [208],
}  # fmt: skip
ROWS, COLUMNS = 3, 512


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(7)
    writer = gguf.GGUFWriter(folder / "blocks.gguf", arch="sdxl")
    expected: dict[str, np.ndarray] = {}
    for kind in BLOCKS:
        elements, size = gguf.GGML_QUANT_SIZES[kind]
        blocks = random.integers(0, 256, (ROWS * COLUMNS // elements, size), dtype=np.uint8)
        for at in SCALES[kind]:
            scales = random.uniform(-0.1, 0.1, len(blocks)).astype(np.float16)
            blocks[:, at : at + 2] = scales.view(np.uint8).reshape(-1, 2)
        rows = blocks.reshape(ROWS, -1)
        writer.add_tensor(kind.name, rows, raw_dtype=kind)
        expected[kind.name] = gguf.quants.dequantize(rows, kind).astype(np.float32)
    numbers = random.normal(0, 0.3, (ROWS, COLUMNS)).astype(np.float32)
    for kind in QUANTISED:
        rows = gguf.quants.quantize(numbers, kind)
        writer.add_tensor(f"quantised.{kind.name}", rows, raw_dtype=kind)
        expected[f"quantised.{kind.name}"] = gguf.quants.dequantize(rows, kind).astype(np.float32)
    writer.add_tensor("F32", numbers[:, :7].copy())
    expected["F32"] = numbers[:, :7].copy()
    writer.add_tensor("F16", numbers[:, :7].astype(np.float16))
    expected["F16"] = numbers[:, :7].astype(np.float16).astype(np.float32)
    rows = gguf.quants.quantize(numbers, Type.BF16)
    writer.add_tensor("BF16", rows, raw_dtype=Type.BF16)
    expected["BF16"] = gguf.quants.dequantize(rows, Type.BF16).astype(np.float32)
    # 3x3 kernels fill no blocks until they are flattened.
    kernels = random.normal(0, 0.3, (8, 32, 3, 3)).astype(np.float32)
    rows = gguf.quants.quantize(kernels.reshape(-1, 256), Type.Q8_0)
    writer.add_array("comfy.gguf.orig_shape.kernels", kernels.shape)
    writer.add_tensor("kernels", rows, raw_dtype=Type.Q8_0)
    expected["kernels"] = gguf.quants.dequantize(rows, Type.Q8_0).astype(np.float32).reshape(kernels.shape)

    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("gguf", "numpy"))
    save_file(expected, folder / "blocks.safetensors", {"provenance": f"export/golden_gguf.py; {versions}"})


if __name__ == "__main__":
    main()
