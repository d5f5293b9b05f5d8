"""Writes tests/golden/canny: images, and the edges that OpenCV's `Canny` finds in them, for src/image_file/canny.rs.

    pip install opencv-python-headless==5.0.0.93
    python export/golden_canny.py tests/golden/canny

canny_N.png is an image, canny_N_LOW_HIGH.png its edges. Made with OpenCV 5.0.0.
"""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
import numpy as np

THRESHOLDS = [(100, 200), (30, 90), (0, 0), (200, 100)]


def images() -> list[np.ndarray]:
    """Shapes in soft noise, noise alone, and a row and a column of pixels."""
    random = np.random.default_rng(7)
    shapes = np.full((64, 80, 3), 90, np.uint8)
    cv2.circle(shapes, (30, 28), 19, (220, 60, 40), -1)
    cv2.rectangle(shapes, (44, 20), (72, 57), (40, 90, 230), 2)
    cv2.line(shapes, (0, 63), (79, 5), (120, 250, 130), 3)
    soft = cv2.GaussianBlur(random.normal(0, 60, shapes.shape), (0, 0), 2.0)
    shapes = np.clip(shapes + soft, 0, 255).astype(np.uint8)
    noise = random.integers(0, 256, (37, 41, 3), np.uint8)
    noise = cv2.GaussianBlur(noise, (0, 0), 1.5)
    lines = [random.integers(0, 256, shape, np.uint8) for shape in ((1, 40, 3), (40, 1, 3), (1, 1, 3))]
    return [shapes, noise, *lines]


def main() -> None:
    out = Path(sys.argv[1])
    print("OpenCV", cv2.__version__)
    for number, image in enumerate(images()):
        cv2.imwrite(str(out / f"canny_{number}.png"), image[..., ::-1])
        for low, high in THRESHOLDS:
            edges = cv2.Canny(image, low, high)
            print(number, low, high, int((edges > 0).sum()))
            cv2.imwrite(str(out / f"canny_{number}_{low}_{high}.png"), edges)


if __name__ == "__main__":
    main()
