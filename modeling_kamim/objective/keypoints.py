"""Maps of an image from a density source (arXiv:2407.13873, section 3.3.1).

The paper's F is the map of a keypoint detector: one value in {0, 1} for each pixel. Other sources give any values in
[0, 1]. To add one, write a row of `sources.table.SOURCES`; or pass any callable with the signature of
`KeypointDetector`: image in, map out.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import cv2
import numpy as np

from ..errors import InputError
from ..limits import check_choice
from .sources.table import SOURCES, Source
from .sources.weights import device

# Part of every cache key. Raise it with every change, here, in sources/ or in density.py, that alters a map or a stored
# density: otherwise old caches stay in use.
KEYPOINTS_VERSION = 2
FOOTPRINTS = ("circle", "point")
_BATCH_SIZE = 32  # images of a learned source


@dataclass(frozen=True)
class KeypointDetector:
    """Callable from an image to its map.

    Args:
        name: a key of `SOURCES`.
        footprint: "circle" draws the ring of radius 3 px of `cv2.drawKeypoints`, each of its pixels 1 (as for the
            published numbers); "point" sets the nearest pixel only (the equation read literally). Maps of sources
            without keypoints are not drawn.
        parameters: of the source, for example `{"threshold": 20}`; its defaults (OpenCV's) where absent.

    Raises:
        InputError: for an unknown source or footprint, or a parameter that the source does not take.
    """

    name: str = "fast"
    footprint: str = "circle"
    parameters: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        check_choice("keypoint_detector", self.name, SOURCES)
        check_choice("keypoint_footprint", self.footprint, FOOTPRINTS)
        if self.source.gives == "map" and self.footprint != KeypointDetector.footprint:
            raise InputError(
                f"keypoint_footprint is {self.footprint!r}, and keypoint_detector {self.name} draws no keypoints; "
                "leave keypoint_footprint out"
            )
        try:
            finder = self._finder()
        except (TypeError, cv2.error) as error:
            reason = str(error).strip().splitlines()[-1]
            raise InputError(f"keypoint_detector {self.name} refuses {dict(self.parameters)}: {reason}") from error
        if self.is_learned:
            # Pickled, so that other weights make another fingerprint of a map step.
            object.__setattr__(self, "_digest", finder.digest)

    @property
    def source(self) -> Source:
        """Its row of the table."""
        return SOURCES[self.name]

    @property
    def is_learned(self) -> bool:
        """Whether it is a model, which takes batches and runs on the device."""
        return bool(self.source.weights)

    @property
    def digest(self) -> str:
        """Of the weights of a learned source; else empty."""
        return getattr(self, "_digest", "")

    @property
    def identity(self) -> dict[str, Any]:
        """What tells its maps from those of other parameters: the digest of weights, and not their place."""
        parameters = {name: value for name, value in self.parameters.items() if name != self.source.weights}
        return {**parameters, "weights": self.digest} if self.is_learned else parameters

    def processes(self, num_proc: int | None) -> int | None:
        """Return in how many processes it may run: those that are given, but a learned one stays in this process."""
        return None if self.is_learned else num_proc  # a fork cannot use the GPU of its parent, and cores are shared

    @property
    def notice(self) -> str:
        """What a log says of a learned source; empty for others."""
        if not self.is_learned:
            return ""
        license = f"; its license: {self.source.license}" if self.source.license else ""
        return f"Density source {self.name}: a model ({self.digest}) on {device()}{license}"

    def _finder(self) -> Any:
        return _made(self.name, tuple(sorted(self.parameters.items())))

    def detect(self, image: np.ndarray) -> Sequence[cv2.KeyPoint]:
        """Return the keypoints of an RGB image.

        Args:
            image: `(height, width, 3)`, uint8.

        Raises:
            InputError: for anything else; gray images, floats and tensors are not taken. And if the source gives no
                keypoints.
        """
        if self.source.gives == "map":
            raise InputError(f"keypoint_detector {self.name} gives a map without keypoints; take the map")
        return self._find([image])[0]

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Return the map of an RGB image `(height, width, 3)`, uint8, as `maps`."""
        return self.maps([image])[0]

    def maps(self, images: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Return the maps of RGB images.

        Args:
            images: each `(height, width, 3)`, uint8, of any sizes.

        Returns:
            For each `(height, width)`: of keypoints uint8, values {0, 1}; of other sources float32 in [0, 1].
        """
        found = self._find(images)
        if self.source.gives == "map":
            return found
        return [self.draw(points, image.shape[:2]) for points, image in zip(found, images, strict=True)]

    def _find(self, images: Sequence[np.ndarray]) -> list[Any]:
        for image in images:
            _check_image(image)
        find = self._finder()
        return _in_batches(find, images) if self.is_learned else [find(image) for image in images]

    def draw(self, keypoints: Sequence[cv2.KeyPoint], shape: tuple[int, int]) -> np.ndarray:
        """Return the keypoint map of keypoints in an image of a height and width, as of a call."""
        if self.footprint == "circle" and self.name != "fast":
            return draw_rings(keypoints, shape)
        points = _point_map(keypoints, shape)
        return points if self.footprint == "point" else cv2.dilate(points, _ring_stamp())


def detector_parameters(text: str | None) -> dict[str, Any]:
    """Return the parameters of a `KeypointDetector` from JSON, as `--keypoint_detector_args` has them.

    Raises:
        InputError: if the text is no JSON object.
    """
    try:
        parameters = json.loads(text or "{}", parse_constant=_refuse_constant)
    except ValueError as error:
        raise InputError(f"keypoint_detector_args is {text!r}, not JSON: {error}") from None
    if not isinstance(parameters, dict):
        raise InputError(f"keypoint_detector_args is {text!r}; give a JSON object")
    return parameters


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number of JSON")


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


def _in_batches(find: Callable[[Any], Any], images: Sequence[np.ndarray]) -> list[Any]:
    """Return what is found in each image, by batches of images of one size."""
    found: list[Any] = [None] * len(images)
    places: dict[tuple[int, ...], list[int]] = {}
    for place, image in enumerate(images):
        places.setdefault(image.shape, []).append(place)
    for of_size in places.values():
        for batch in (of_size[start : start + _BATCH_SIZE] for start in range(0, len(of_size), _BATCH_SIZE)):
            for place, one in zip(batch, find([images[place] for place in batch]), strict=True):
                found[place] = one
    return found


@lru_cache(maxsize=16)
def _made(name: str, parameters: tuple[tuple[str, Any], ...]) -> Callable[[Any], Any]:
    return SOURCES[name].make(**dict(parameters))
