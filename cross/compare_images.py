"""Compares two PNG files pixel by pixel, and fails when they differ by more than a bound.

python3 cross/compare_images.py ONE.png OTHER.png LARGEST MEAN     (in levels of 255)
"""

import struct
import sys
import zlib
from pathlib import Path


def pixels(file: str) -> tuple[tuple[int, int], bytes]:
    """Width and height, and the RGB bytes in rows; of the PNGs that calotype writes, which are 8-bit RGB."""
    png = Path(file).read_bytes()
    if png[:8] != b"\x89PNG\r\n\x1a\n":
        raise SystemExit(f"{file}: expected a PNG file")
    at = 8
    chunks: dict[bytes, bytes] = {}
    while at < len(png):
        length, kind = struct.unpack_from(">I4s", png, at)
        chunks[kind] = chunks.get(kind, b"") + png[at + 8 : at + 8 + length]
        at += 12 + length
    width, height, *form = struct.unpack(">IIBBBBB", chunks[b"IHDR"])
    if form != [8, 2, 0, 0, 0]:
        raise SystemExit(f"{file}: expected 8-bit RGB, got {form}")
    return (width, height), unfiltered(zlib.decompress(chunks[b"IDAT"]), width * 3)


def unfiltered(data: bytes, row_len: int) -> bytes:
    """The rows without their filters (PNG specification, section 9)."""
    out, above = bytearray(), bytearray(row_len)
    for start in range(0, len(data), row_len + 1):
        kind, row = data[start], bytearray(data[start + 1 : start + 1 + row_len])
        for i in range(row_len):
            left = row[i - 3] if i >= 3 else 0
            corner = above[i - 3] if i >= 3 else 0
            row[i] = (row[i] + predicted(kind, left, above[i], corner)) & 255
        out += row
        above = row
    return bytes(out)


def predicted(kind: int, left: int, up: int, corner: int) -> int:
    if kind == 4:
        estimate = left + up - corner
        return min((left, up, corner), key=lambda value: abs(estimate - value))
    return (0, left, up, (left + up) // 2)[kind]


def main(one: str, other: str, largest: float, mean: float) -> None:
    (size, first), (other_size, second) = pixels(one), pixels(other)
    if size != other_size:
        raise SystemExit(f"{other}: expected {size[0]}x{size[1]} pixels, got {other_size[0]}x{other_size[1]}")
    differences = [abs(a - b) for a, b in zip(first, second, strict=True)]
    got_largest, got_mean = max(differences), sum(differences) / len(differences)
    unequal = sum(difference > 0 for difference in differences)
    print(
        f"{other}: {unequal} of {len(differences)} values differ, by {got_largest} at most, {got_mean:.5f} in the mean"
    )
    if got_largest > largest or got_mean > mean:
        raise SystemExit(f"{other}: expected differences of {largest} at most and {mean} in the mean")


if __name__ == "__main__":
    if len(sys.argv) != 5:
        raise SystemExit("expected two PNG files and two bounds")
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]), float(sys.argv[4]))
