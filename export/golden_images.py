"""Writes tests/golden/images.safetensors: random images of every kind that is read, each as its file and as its pixels.

    python export/golden_images.py tests/golden/images.safetensors

NAME.file    the file, written by Pillow or tifffile, or here (PNG, interlaced or not, of every colour type and depth)
NAME.rgba    what is in it, `[height, width, 4]` of 8 bits: what was written where that loses nothing, else what Pillow
             reads (libjpeg, libwebp). Large files have none: they are there for the memory that decoding takes.
"""

from __future__ import annotations

import importlib.metadata
import io
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image
from safetensors.numpy import save_file

ADAM7 = [(0, 8, 0, 8), (4, 8, 0, 8), (0, 4, 4, 8), (2, 4, 0, 4), (0, 2, 2, 4), (1, 2, 0, 2), (0, 1, 1, 2)]
SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
DEPTHS = {0: [1, 2, 4, 8, 16], 2: [8, 16], 3: [1, 2, 4, 8], 4: [8, 16], 6: [8, 16]}

random = np.random.default_rng(14)
tensors: dict[str, np.ndarray] = {}


def put(name: str, file: bytes, pixels: np.ndarray | None) -> None:
    """Adds a file, and its pixels in shades of grey or colours, with or without alpha."""
    tensors[f"{name}.file"] = np.frombuffer(file, np.uint8)
    if pixels is not None:
        tensors[f"{name}.rgba"] = rgba(pixels)


def rgba(pixels: np.ndarray) -> np.ndarray:
    if pixels.dtype == np.uint16:
        pixels = np.round(pixels / 257).astype(np.uint8)
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    color, alpha = (pixels[..., :-1], pixels[..., -1:]) if pixels.shape[-1] in (2, 4) else (pixels, None)
    color = np.broadcast_to(color, (*pixels.shape[:2], 3))
    alpha = np.full((*pixels.shape[:2], 1), 255, np.uint8) if alpha is None else alpha
    return np.ascontiguousarray(np.concatenate([color, alpha], -1).astype(np.uint8))


def size() -> tuple[int, int]:
    """Height and width, often of one pixel."""
    sides = [1 if random.random() < 0.1 else int(random.integers(2, 26)) for _ in range(2)]
    return sides[0], sides[1]


def noise(shape: tuple[int, ...], dtype: type = np.uint8) -> np.ndarray:
    return random.integers(0, np.iinfo(dtype).max + 1, shape).astype(dtype)


def smooth(height: int, width: int, channels: int, rate: float = 0.3) -> np.ndarray:
    """Waves, which lossy formats keep."""
    y, x = np.mgrid[0:height, 0:width]
    waves = [
        127.5
        + 127 * np.sin(rate * random.uniform(0.1, 1) * x + rate * random.uniform(0.1, 1) * y + random.uniform(0, 6))
        for _ in range(channels)
    ]
    return np.stack(waves, -1).round().astype(np.uint8)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(
    color: int, depth: int, interlaced: bool, transparent: bool, height: int, width: int
) -> tuple[bytes, np.ndarray]:
    """A PNG and its pixels (PNG, third edition, sections 7 to 11)."""
    samples = noise((height, width, SAMPLES[color]), np.uint16) >> (16 - depth)
    palette = noise((1 << depth if color == 3 else 0, 3))
    alphas = noise((len(palette) // 2,)) if transparent else noise((0,))
    body = b""
    for x, across, y, down in ADAM7 if interlaced else [(0, 1, 0, 1)]:
        part = samples[y::down, x::across].astype(np.uint16)
        if 0 in part.shape:
            continue
        bits = part[..., None] >> np.arange(depth - 1, -1, -1, dtype=np.uint16) & 1
        rows = np.packbits(bits.reshape(part.shape[0], -1).astype(np.uint8), axis=1)
        body += filtered(rows, max(1, SAMPLES[color] * depth // 8))
    between = b""
    pixels = samples.astype(np.float64) / ((1 << depth) - 1)
    if color == 3:
        between += chunk(b"PLTE", palette.tobytes())
        table = np.concatenate([palette, np.full((len(palette), 1), 255, np.uint8)], 1)
        if transparent:
            between += chunk(b"tRNS", alphas.tobytes())
            table[: len(alphas), 3] = alphas
        pixels = table[samples[..., 0]].astype(np.float64) / 255
    elif transparent and color in (0, 2):
        # The colour of one pixel is transparent, wherever it is.
        key = samples[height // 2, width // 2]
        between += chunk(b"tRNS", key.astype(">u2").tobytes())
        is_opaque = (samples != key).any(-1, keepdims=True)
        pixels = np.concatenate([pixels, is_opaque.astype(np.float64)], -1)
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, interlaced)
    parts = chunk(b"IHDR", header) + between + chunk(b"IDAT", zlib.compress(body, 9)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts, np.round(pixels * 255).astype(np.uint8)


def filtered(rows: np.ndarray, step: int) -> bytes:
    """Rows with random filters of the five."""
    out, above = b"", np.zeros(rows.shape[1], np.int64)
    for row in rows.astype(np.int64):
        left = np.concatenate([np.zeros(step, np.int64), row[:-step]])[: len(row)]
        corner = np.concatenate([np.zeros(step, np.int64), above[:-step]])[: len(row)]
        guess = left + above - corner
        away = [np.abs(guess - other) for other in (left, above, corner)]
        paeth = np.where((away[0] <= away[1]) & (away[0] <= away[2]), left, np.where(away[1] <= away[2], above, corner))
        kind = int(random.integers(0, 5))
        predicted = [np.zeros_like(row), left, above, (left + above) // 2, paeth][kind]
        out += bytes([kind]) + ((row - predicted) % 256).astype(np.uint8).tobytes()
        above = row
    return out


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def read(file: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(file)).convert("RGBA"))


def tiff(pixels: np.ndarray, **options: object) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, pixels, metadata=None, **options)
    return file.getvalue()


def tiff_of_palette(indices: np.ndarray, table: np.ndarray, bits: int) -> bytes:
    """A big-endian TIFF of one strip (TIFF 6.0, section 5)."""
    height, width = indices.shape
    planes = indices[..., None] >> np.arange(bits - 1, -1, -1) & 1
    data = np.packbits(planes.reshape(height, -1).astype(np.uint8), axis=1).tobytes()
    entries = 9
    end = 8 + 2 + 12 * entries + 4
    short, long = 3, 4
    fields = [
        (256, short, 1, width), (257, short, 1, height), (258, short, 1, bits), (259, short, 1, 1), (262, short, 1, 3),
        (273, long, 1, end + 2 * table.size), (278, short, 1, height), (279, long, 1, len(data)),
        (320, short, table.size, end),
    ]  # fmt: skip
    out = b"MM\0*" + struct.pack(">IH", 8, entries)
    for tag, kind, count, value in fields:
        is_short = kind == short and count == 1
        out += struct.pack(">HHI", tag, kind, count) + struct.pack(
            ">HH" if is_short else ">I", *([value, 0] if is_short else [value])
        )
    return out + bytes(4) + table.astype(">u2").tobytes() + data


def small() -> None:
    for color, depths in DEPTHS.items():
        for depth in depths:
            for interlaced in (False, True):
                transparent = bool(random.integers(0, 2)) and color in (0, 2, 3)
                file, pixels = png(color, depth, interlaced, transparent, *size())
                name = f"png.{color}.{depth}{'.interlaced' * interlaced}{'.trns' * transparent}"
                put(name, file, pixels)
    for number in range(4):
        height, width = size()
        image = Image.fromarray(noise((height, width, 3))).quantize(2 << number)
        interlaced, key = bool(number % 2), 1 if number > 1 else None
        options = {} if key is None else {"transparency": key}
        file = saved(image, "GIF", interlace=interlaced, optimize=False, **options)
        put(f"gif.{number}", file, read(file))
    frames = [Image.fromarray(noise((9, 12, 3))).quantize(16) for _ in range(3)]
    file = saved(frames[0], "GIF", save_all=True, append_images=frames[1:], duration=50)
    put("gif.animated", file, read(file))
    for number in range(6):
        height, width = 8 + size()[0], 8 + size()[1]
        grey, cmyk, progressive = number == 1, number in (2, 3), number % 2 == 1
        pixels = smooth(height, width, 4 if cmyk else 3)
        image = Image.fromarray(pixels, "CMYK") if cmyk else Image.fromarray(pixels)
        image = image.convert("L") if grey else image
        file = saved(image, "JPEG", quality=90, progressive=progressive, subsampling=[0, 2, 0, 0, 1, 2][number])
        kind = "grey" if grey else "cmyk" if cmyk else "colour"
        put(f"jpeg.{kind}.{number}", file, read(file))
    for number in range(6):
        height, width = 8 + size()[0], 8 + size()[1]
        lossless, alpha = number < 2, number % 2 == 1
        image = Image.fromarray(smooth(height, width, 4 if alpha else 3))
        file = saved(image, "WEBP", lossless=lossless, quality=85, exact=True)
        put(f"webp.{'lossless' if lossless else 'lossy'}{'.alpha' * alpha}.{number}", file, read(file))
    frames = [Image.fromarray(smooth(20, 28, 4 if alpha else 3)) for alpha in (True, True)]
    for lossless in (False, True):
        options = {"lossless": lossless, "exact": True, "quality": 85}
        file = saved(frames[0], "WEBP", save_all=True, append_images=frames[1:], **options)
        put(f"webp.{'lossless' if lossless else 'lossy'}.animated", file, read(file))
    for name, image in [
        ("rgb", Image.fromarray(noise((7, 5, 3)))),
        ("rgba", Image.fromarray(noise((6, 9, 4)))),
        ("palette", Image.fromarray(noise((9, 6, 3))).quantize(20)),
        ("grey", Image.fromarray(noise((5, 5)))),
        ("one", Image.fromarray(noise((9, 11))).convert("1")),
    ]:
        file = saved(image, "BMP")
        put(f"bmp.{name}", file, read(file))
    for compression in ("raw", "tiff_lzw", "tiff_deflate", "packbits"):
        for mode in ("L", "LA", "RGB", "RGBA", "CMYK", "P", "1"):
            height, width = size()
            image = Image.fromarray(noise((height, width, 4)))
            image = Image.fromarray(noise((height, width, 4)), "CMYK") if mode == "CMYK" else image.convert(mode)
            file = saved(image, "TIFF", compression=compression)
            put(f"tiff.{mode}.{compression}", file, read(file))
    file = saved(Image.fromarray(smooth(17, 33, 3)).convert("1"), "TIFF", compression="group4")
    put("tiff.1.group4", file, read(file))
    for bits in (1, 2, 4):
        # Packed by hand: tifffile writes no bits of palettes.
        height, width = size()
        indices, table = noise((height, width)) >> (8 - bits), noise((3, 1 << bits), np.uint16)
        put(f"tiff.palette.{bits}", tiff_of_palette(indices, table, bits), table.T[indices])
    for planar in ("contig", "separate"):
        for tile in (None, (16, 16), (32, 16)):
            for channels, dtype in ((3, np.uint8), (4, np.uint8), (3, np.uint16)):
                height, width = size()
                pixels = noise((height, width, channels), dtype)
                stored = pixels if planar == "contig" else np.moveaxis(pixels, -1, 0)
                big = bool(random.integers(0, 2))
                file = tiff(
                    np.ascontiguousarray(stored),
                    photometric="rgb",
                    planarconfig=planar,
                    tile=tile,
                    rowsperstrip=None if tile else 5,
                    extrasamples=["unassalpha"] if channels == 4 else None,
                    byteorder=">" if random.integers(0, 2) else "<",
                    bigtiff=big,
                )
                name = f"tiff.{planar}.{'tiles' + str(tile[0]) if tile else 'strips'}.{channels}x{8 * pixels.itemsize}"
                put(name, file, pixels)
    for name, pixels, photometric in [
        ("white", noise((9, 14)), "miniswhite"),
        ("white16", noise((9, 14), np.uint16), "miniswhite"),
        ("grey16", noise((9, 14), np.uint16), "minisblack"),
    ]:
        largest = np.iinfo(pixels.dtype).max
        put(f"tiff.{name}", tiff(pixels, photometric=photometric), largest - pixels if "white" in name else pixels)
    pixels = noise((8, 11, 4))
    put("tiff.unspecified", tiff(pixels, photometric="rgb", extrasamples=["unspecified"]), pixels[..., :3])
    # Colours that were multiplied by alpha (associated alpha): composited onto white they are summed with what is left
    # of it.
    pixels = noise((8, 11, 4))
    pixels[..., 3] |= 1
    multiplied = pixels.copy()
    multiplied[..., :3] = np.round(pixels[..., :3] / 255.0 * pixels[..., 3:])
    put("tiff.associated", tiff(multiplied, photometric="rgb", extrasamples=["assocalpha"]), pixels)


def large() -> None:
    """What the memory of decoding shows; waves take few bytes."""
    flat = np.zeros((700, 900, 3), np.uint8)
    flat[200:400] = 90
    wave = Image.fromarray(smooth(600, 800, 3, 0.02))
    put("large.jpeg", saved(wave, "JPEG", quality=30), None)
    put("large.jpeg.progressive", saved(wave, "JPEG", quality=30, progressive=True, subsampling=0), None)
    put("large.jpeg.cmyk", saved(Image.fromarray(smooth(600, 800, 4, 0.02), "CMYK"), "JPEG", quality=20), None)
    put("large.webp.lossy", saved(wave, "WEBP", quality=20), None)
    alpha = Image.fromarray(np.concatenate([smooth(600, 800, 3, 0.02), np.full((600, 800, 1), 100, np.uint8)], -1))
    put("large.webp.alpha", saved(alpha, "WEBP", quality=20), None)
    frames = [Image.fromarray(flat), Image.fromarray(flat[::-1])]
    put("large.webp.animated", saved(frames[0], "WEBP", save_all=True, append_images=frames[1:], quality=20), None)
    put("large.webp.lossless", saved(Image.fromarray(flat), "WEBP", lossless=True), None)
    still, moved = Image.fromarray(flat).quantize(4), frames[1].quantize(4)
    put("large.gif", saved(still, "GIF", save_all=True, append_images=[moved]), None)
    put("large.tiff.deflate", saved(Image.fromarray(flat), "TIFF", compression="tiff_deflate"), None)
    put("large.tiff.group4", saved(Image.fromarray(flat).convert("1"), "TIFF", compression="group4"), None)
    for planar in ("contig", "separate"):
        stored = flat if planar == "contig" else np.ascontiguousarray(np.moveaxis(flat, -1, 0))
        options = {"photometric": "rgb", "planarconfig": planar, "tile": (256, 256), "compression": "zlib"}
        put(f"large.tiff.{planar}.tiles", tiff(stored, **options), None)
    put("large.png", png_flat(900, 700, [(0, 1, 0, 1)]), None)
    put("large.png.interlaced", png_flat(900, 700, ADAM7), None)


def png_flat(width: int, height: int, passes: list[tuple[int, int, int, int]]) -> bytes:
    """A PNG of zeros, of 16 bits with alpha."""
    body = b""
    for x, across, y, down in passes:
        columns, rows = -(-(width - x) // across), -(-(height - y) // down)
        body += bytes((columns * 8 + 1) * rows)
    header = struct.pack(">IIBBBBB", width, height, 16, 6, 0, 0, len(passes) > 1)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(body, 9)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def main() -> None:
    small()
    large()
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("pillow", "tifffile", "numpy"))
    save_file(tensors, Path(sys.argv[1]), {"provenance": f"export/golden_images.py; {versions}"})


if __name__ == "__main__":
    main()
