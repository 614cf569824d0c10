"""Keypoint densities of whole images: detected once, stored beside the image, read for every crop.

A stored density is a binary PGM picture of `grid` x `grid` gray levels: 255 times the density in each of as many equal
parts of the image. Its comment line, the label, says what was detected. Any image viewer opens it.
"""

import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import cv2
import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..errors import InputError
from ..limits import ImageSize, height_and_width
from ..objective.keypoints import KEYPOINTS_VERSION, KeypointDetector, keypoint_image
from .views import RandomView, crop_ratios

FINE_GRID, MAX_GRID = 128, 256  # 16 and 64 kB a density
COLUMN_PREFIX = "keypoint_density_"
_FINEST_CELL = 1.5  # least parts of the grid on each side of a weight cell, in the smallest crops
_LARGEST_ZOOM = 8  # of a long strip to its detection size: it bounds the detector's work
_PGM = re.compile(rb"P5\n# ([ -~]*)\n(\d{1,4}) (\d{1,4})\n255\n")


@dataclass(frozen=True)
class DensityFormat:
    """Format of the densities of one kind: each a binary PGM of one size, with a label as its comment.

    Args:
        column: of the data set.
        label: one line of ASCII.
        grid: rows and columns.
    """

    column: str
    label: str
    grid: int

    @cached_property
    def header(self) -> bytes:
        """The bytes that each of them begins with."""
        return f"P5\n# {self.label}\n{self.grid} {self.grid}\n255\n".encode("ascii")

    @property
    def num_bytes(self) -> int:
        """Length of each of them, in bytes."""
        return len(self.header) + self.grid**2

    def encode(self, density: np.ndarray) -> bytes:
        """Return the PGM of a `(grid, grid)` uint8 array."""
        return self.header + density.tobytes()

    def decode(self, stored: Any) -> np.ndarray:
        """Return the `(grid, grid)` uint8 array of a stored density.

        Raises:
            ValueError: if it is not of this format; the message says what it is.
        """
        if not isinstance(stored, bytes) or len(stored) != self.num_bytes or not stored.startswith(self.header):
            raise ValueError(self.difference(stored))
        values = np.frombuffer(stored, np.uint8, offset=len(self.header)).copy()
        return values.reshape(self.grid, self.grid)

    def difference(self, stored: Any) -> str:
        """Return why something is not a stored density of this format."""
        if stored is None:
            return "there is none"
        label = density_label(stored)
        return f"it is of {label}, and not of {self.label}" if label else "it is damaged, or no density at all"

    def is_in(self, column: pa.ChunkedArray) -> np.ndarray:
        """Return which values of a binary column are of this format, by header and length: `(rows,)`, bool."""
        is_whole = pc.equal(pc.binary_length(column), self.num_bytes)
        return pc.fill_null(pc.and_(pc.starts_with(column, pattern=self.header), is_whole), False).to_numpy()


@dataclass(frozen=True)
class DensityDetector:
    """Callable from an image to its stored keypoint density, detected at the scale of an average crop.

    Args:
        detector: of the keypoints.
        image_size: of the crops at detection, in pixels.
        min_scale: least area of the crops as a share of the image, in (0, 1]; see `RandomView`.
        version: of the densities; part of the cache key.
        channel: in which keypoints are detected; None as in `keypoint_image`.
        num_channels: of the images.
    """

    detector: KeypointDetector
    image_size: ImageSize
    min_scale: float = RandomView.min_scale
    version: int = KEYPOINTS_VERSION
    channel: int | None = None
    num_channels: int = 3

    @property
    def column(self) -> str:
        """Column of a data set that holds these densities."""
        return f"{COLUMN_PREFIX}{self.detector.name}"

    @property
    def grid(self) -> int:
        """Rows and columns of a density: the longer side up to 128, above that half of it, in 128 to 256."""
        side = max(height_and_width(self.image_size))
        return min(side, max(FINE_GRID, side // 2), MAX_GRID)

    @property
    def label(self) -> str:
        """The settings that distinguish these densities from others, as a line of JSON in ASCII."""
        settings: dict[str, Any] = {"detector": self.detector.name, "footprint": self.detector.footprint}
        if self.detector.identity:
            settings["parameters"] = self.detector.identity
        if self.num_channels != 3:
            settings["num_channels"] = self.num_channels
        if self.channel is not None:
            settings["channel"] = self.channel
        settings |= {"image_size": self.image_size, "crop_min_scale": self.min_scale, "version": self.version}
        return json.dumps(settings, sort_keys=True)

    @property
    def format(self) -> DensityFormat:
        """How these densities are stored."""
        return DensityFormat(self.column, self.label, self.grid)

    def __call__(self, image: np.ndarray) -> bytes:
        """Return the PGM of the density of an image, see `density`."""
        return self.format.encode(self.density(image))

    def density(self, image: np.ndarray) -> np.ndarray:
        """Return the keypoint density of a whole image.

        Args:
            image: `(height, width, num_channels)`, uint8, or float in [0, 255].

        Returns:
            `(grid, grid)`, uint8: 255 times the density in each of as many equal parts of the image.
        """
        return self._grid_of(self.detector(self._shown(image)))

    def begin(self, image: np.ndarray) -> Any:
        """Return what `finish` takes of an image, see `density`: all is done, but that learned sources take batches."""
        return self._shown(image) if self.detector.is_learned else self(image)

    def finish(self, begun: list[Any]) -> list[bytes]:
        """Return the PGMs of the densities of images with which `begin` began."""
        if not self.detector.is_learned:
            return begun
        return [self.format.encode(self._grid_of(found)) for found in self.detector.maps(begun)]

    def _shown(self, image: np.ndarray) -> np.ndarray:
        return cv2.resize(keypoint_image(image, self.channel), self.detection_size(*image.shape[:2]))

    def _grid_of(self, found: np.ndarray) -> np.ndarray:
        levels = found * found.dtype.type(255)
        grid = cv2.resize(levels, (self.grid, self.grid), interpolation=cv2.INTER_AREA)
        return grid if grid.dtype == np.uint8 else np.rint(grid).astype(np.uint8)

    def detection_size(self, height: int, width: int) -> tuple[int, int]:
        """Return the (width, height) of an image at which its average crop has `image_size` pixels.

        Crops get one shape whatever their own, so the image is squeezed along its longer side as its crops are.
        """
        view = RandomView(self.min_scale, crop_ratios(self.image_size))
        crop_height, crop_width = view.mean_size(height, width)
        across, down = (min(zoom, _LARGEST_ZOOM) for zoom in (width / crop_width, height / crop_height))
        down_size, across_size = height_and_width(self.image_size)
        return round(across * across_size), round(down * down_size)

    def check_cells(self, weight_patch_size: int, image_size: ImageSize) -> None:
        """Raise InputError if weight cells, in pixels of the model's input, are too small for the grid."""
        side = max(height_and_width(image_size))
        smallest = math.ceil(_FINEST_CELL * side / (self.grid * self.min_scale**0.5))
        if weight_patch_size < smallest:
            raise InputError(
                f"weight_patch_size is {weight_patch_size}, but stored densities of whole images, of {self.grid} x "
                f"{self.grid} values, allow cells of {smallest} px and more at this image_size and crop_min_scale; "
                "take such cells, or --keypoint_source online"
            )


class OtherDensitiesError(ValueError):
    """The densities of a data set are not those that a run needs; the message says how they differ."""


def stored_columns(columns: Iterable[str]) -> list[str]:
    """Return those of the columns that hold densities, by their names."""
    return [column for column in columns if column.startswith(COLUMN_PREFIX)]


def check_column(features: datasets.Features, densities: DensityDetector) -> None:
    """Raise OtherDensitiesError if rows of these features cannot hold the densities."""
    if features.get(densities.column) != datasets.Value("binary"):
        held = " and ".join(stored_columns(features)) or "no keypoint densities"
        raise OtherDensitiesError(f"the data set holds {held}, and this run needs {densities.column}")


def density_label(stored: Any) -> str:
    """Return the label of a stored density of any format; "" for what is damaged or no density."""
    header = _PGM.match(stored) if isinstance(stored, bytes) else None
    if header is None or len(stored) != header.end() + int(header[2]) * int(header[3]):
        return ""
    return header[1].decode("ascii")
