"""Keypoint maps: where a detector finds keypoints in an image (arXiv:2407.13873, section 3.3.1).

A map is the paper's F: one value in {0, 1} for each pixel. To weight by something other than keypoints, add a
factory to `DETECTORS`, or any callable with the signature of `KeypointDetector`: image in, map out.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import cv2
import numpy as np

from ..errors import InputError
from ..limits import check_choice

# Part of every cache key. Raise it with every change, here or in density.py, that alters a map or a stored density:
# otherwise old caches stay in use.
KEYPOINTS_VERSION = 2
DETECTORS: dict[str, Callable[..., cv2.Feature2D]] = {
    "fast": cv2.FastFeatureDetector.create,
    "sift": cv2.SIFT.create,
    "orb": cv2.ORB.create,
}
FOOTPRINTS = ("circle", "point")


@dataclass(frozen=True)
class KeypointDetector:
    """Callable from an image to its keypoint map.

    Args:
        name: a key of `DETECTORS`.
        footprint: "circle" draws the ring of radius 3 px of `cv2.drawKeypoints`, each of its pixels 1 (as for the
            published numbers); "point" sets the nearest pixel only (the equation read literally).
        parameters: keyword arguments of the OpenCV factory, for example `{"threshold": 20}`; OpenCV's defaults
            where absent.

    Raises:
        InputError: for an unknown detector or footprint, or a parameter that OpenCV does not take.
    """

    name: str = "fast"
    footprint: str = "circle"
    parameters: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        check_choice("keypoint_detector", self.name, DETECTORS)
        check_choice("keypoint_footprint", self.footprint, FOOTPRINTS)
        try:
            self._opencv()
        except (TypeError, cv2.error) as error:
            reason = str(error).strip().splitlines()[-1]
            raise InputError(f"OpenCV's {self.name} detector refuses {dict(self.parameters)}: {reason}") from error

    def _opencv(self) -> cv2.Feature2D:
        return _opencv_detector(self.name, tuple(sorted(self.parameters.items())))

    def detect(self, image: np.ndarray) -> Sequence[cv2.KeyPoint]:
        """Return the keypoints of an RGB image.

        OpenCV gets the RGB array as it is, as in the released code. OpenCV expects BGR, so its own gray conversion
        swaps the weights of red and blue.

        Args:
            image: `(height, width, 3)`, uint8.

        Raises:
            InputError: for anything else; gray images, floats and tensors are not taken.
        """
        _check_image(image)
        return self._opencv().detect(image, None)

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Return the keypoint map of an RGB image.

        Args:
            image: `(height, width, 3)`, uint8.

        Returns:
            `(height, width)`, uint8, values {0, 1}.
        """
        return self.draw(self.detect(image), image.shape[:2])

    def draw(self, keypoints: Sequence[cv2.KeyPoint], shape: tuple[int, int]) -> np.ndarray:
        """Return the keypoint map of keypoints in an image of a height and width, as of a call."""
        if self.footprint == "circle" and self.name != "fast":
            return draw_rings(keypoints, shape)
        points = _point_map(keypoints, shape)
        return points if self.footprint == "point" else cv2.dilate(points, _ring_stamp())


def _check_image(image: Any) -> None:
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3:
        return
    given = f"{image.dtype} {tuple(image.shape)}" if hasattr(image, "dtype") else type(image).__name__
    raise InputError(
        f"keypoints are detected on NumPy arrays of RGB pixels, uint8 (height, width, 3), and this is {given}; turn "
        "floats in [0, 1] into `(255 * image).round().astype(np.uint8)`, gray images into "
        "`cv2.cvtColor(image, cv2.COLOR_GRAY2RGB)`"
    )


def keypoint_image(pixels: np.ndarray, channel: int | None = None) -> np.ndarray:
    """Return what a `KeypointDetector` sees of an image of any channels and depth.

    Args:
        pixels: `(height, width, channels)`, uint8, or float in [0, 255], which is rounded.
        channel: its number, from 0; None for RGB and gray as they are, and of other images the mean over the channels.

    Returns:
        `(height, width, 3)`, uint8; RGB, or three equal channels.
    """
    if channel is not None:
        pixels = pixels[..., channel : channel + 1]
    elif pixels.shape[2] not in (1, 3):
        pixels = pixels.mean(axis=2, keepdims=True, dtype=np.float32)
    if pixels.dtype != np.uint8:
        pixels = np.rint(pixels).clip(0, 255).astype(np.uint8)
    return pixels if pixels.shape[2] == 3 else cv2.cvtColor(np.ascontiguousarray(pixels), cv2.COLOR_GRAY2RGB)


def draw_rings(keypoints: Sequence[cv2.KeyPoint], shape: tuple[int, int]) -> np.ndarray:
    """Draw a ring of radius 3 px around every keypoint with `cv2.drawKeypoints`.

    Where keypoints lie at whole pixels (FAST), dilating the point map with one ring gives the same, 20 times faster.

    Returns:
        `(height, width)`, uint8, values {0, 1}.
    """
    canvas = np.zeros((*shape, 3), np.uint8)
    drawn = cv2.drawKeypoints(canvas, keypoints, None, color=(255, 255, 255))
    return (drawn[..., 0] > 0).astype(np.uint8)


def _point_map(keypoints: Sequence[cv2.KeyPoint], shape: tuple[int, int]) -> np.ndarray:
    height, width = shape
    points = np.zeros(height * width, np.uint8)
    if keypoints:
        columns, rows = np.rint(cv2.KeyPoint.convert(keypoints)).astype(np.intp).T
        points[rows.clip(0, height - 1) * width + columns.clip(0, width - 1)] = 1
    return points.reshape(shape)


@lru_cache(maxsize=1)
def _ring_stamp() -> np.ndarray:
    return draw_rings([cv2.KeyPoint(4.0, 4.0, 1.0)], (9, 9))


@lru_cache(maxsize=16)
def _opencv_detector(name: str, parameters: tuple[tuple[str, Any], ...]) -> cv2.Feature2D:
    return DETECTORS[name](**dict(parameters))
