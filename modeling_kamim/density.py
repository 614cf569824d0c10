"""Keypoint density of whole images: detected once, stored beside the image, read for every crop.

A stored density is a binary PGM of 64 x 64 gray levels, 255 times the density in each of 64 x 64 equal parts of the
image. Its comment line says what was detected; any image viewer opens it, and the loader reads its last 4096 bytes.
"""

import json
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from .keypoints import KEYPOINTS_VERSION, KeypointDetector

DENSITY_GRID = 64
_NUM_BYTES = DENSITY_GRID**2
_PGM_START = b"P5\n# "


@dataclass(frozen=True)
class DensityDetector:
    """Callable from an image to its stored keypoint density.

    Args:
        detector: what is detected.
        short_side: pixels of the image's short side at detection, see `detection_side`.
        version: of the keypoint maps; part of the cache key.
    """

    detector: KeypointDetector
    short_side: int
    version: int = KEYPOINTS_VERSION

    @property
    def column(self) -> str:
        """Column of a data set that holds these densities."""
        return f"keypoint_density_{self.detector.name}"

    @property
    def label(self) -> str:
        """What distinguishes these densities from others, in one line of ASCII; written into each of them."""
        settings: dict[str, Any] = {"detector": self.detector.name, "footprint": self.detector.footprint}
        if self.detector.parameters:
            settings["parameters"] = dict(self.detector.parameters)
        return json.dumps(settings | {"short_side": self.short_side, "version": self.version}, sort_keys=True)

    def __call__(self, image: np.ndarray) -> bytes:
        """PGM of the density of an image `(height, width, 3)`, uint8."""
        return encode_density(density_grid(image, self.detector, self.short_side), self.label)


def density_grid(image: np.ndarray, detector: KeypointDetector, short_side: int) -> np.ndarray:
    """Keypoint density of a whole image, detected at about the scale of the crops.

    Args:
        image: `(height, width, 3)`, uint8.
        short_side: pixels of the short side at detection.

    Returns:
        `(64, 64)`, uint8: 255 times the density in each of 64 x 64 equal parts of the image.
    """
    height, width = image.shape[:2]
    scale = short_side / min(height, width)
    long_side = max(height, width)
    if long_side * scale > 8 * short_side:  # a strip: keep the detector's work bounded
        scale = 8 * short_side / long_side
    size = (max(DENSITY_GRID, round(width * scale)), max(DENSITY_GRID, round(height * scale)))
    keypoints = detector(cv2.resize(image, size, interpolation=cv2.INTER_LINEAR))
    return cv2.resize(keypoints * np.uint8(255), (DENSITY_GRID, DENSITY_GRID), interpolation=cv2.INTER_AREA)


def detection_side(image_size: int, min_scale: float) -> int:
    """Short side at which an average crop, of `min_scale` to all of the area, has `image_size` pixels a side."""
    return round(image_size / ((min_scale + 1) / 2) ** 0.5)


def encode_density(grid: np.ndarray, label: str) -> bytes:
    """Binary PGM of a `(64, 64)` uint8 grid, with a label of one ASCII line as its comment."""
    return _PGM_START + f"{label}\n{DENSITY_GRID} {DENSITY_GRID}\n255\n".encode("ascii") + grid.tobytes()


def decode_density(pgm: bytes) -> np.ndarray:
    """`(64, 64)` uint8 grid of a stored density."""
    return np.frombuffer(bytearray(pgm[-_NUM_BYTES:]), np.uint8).reshape(DENSITY_GRID, DENSITY_GRID)


def density_label(pgm: bytes | None) -> str:
    """The label that a stored density carries; "" for anything else."""
    if pgm is None or not pgm.startswith(_PGM_START):
        return ""
    return pgm[len(_PGM_START) :].split(b"\n", 1)[0].decode("ascii", "replace")
