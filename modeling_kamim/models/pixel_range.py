"""Scale images of more than 8 bits: the range of values that becomes 0 to 255.

Such an image says nowhere which values it uses: 12-bit images lie in 16-bit files, floats in [0, 1] or in any other
unit. So the range comes from the pixels: of the training images (`map_steps.measure_pixel_range`), or of the image
alone where no range is known.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageOps

from ..errors import InputError

_ENOUGH_PIXELS = 1_000_000  # for the range of one image
PERCENTILES = (0.1, 99.9)  # dead and hot pixels do not set the range
_PNG_START = b"\x89PNG\r\n\x1a\n"
_DEEP_COLORS = re.compile(";16[BLN]")  # of Pillow's raw modes; "BGR;16" has 16 bits in a pixel
_SAMPLE_FORMAT = 339  # tag of TIFF; 1: integers without a sign


@dataclass(frozen=True)
class PixelRange:
    """Values that become 0 and 255; those outside are cut off.

    Args:
        low, high: finite, `low <= high`.
    """

    low: float
    high: float

    def __post_init__(self):
        if not (np.isfinite(astuple(self)).all() and self.low <= self.high):
            raise InputError(
                f"a pixel range is {self.low} to {self.high}; it must be two finite numbers, the lower first"
            )

    @classmethod
    def of(cls, pixels: np.ndarray) -> "PixelRange":
        """The range that most of the pixels use; 0 to 255, so that nothing changes, for integers that fit in 8 bits."""
        if fits_in_8_bits(pixels):
            return EIGHT_BITS
        low, high = np.percentile(sample_pixels(pixels, _ENOUGH_PIXELS), PERCENTILES)
        return cls(float(low), float(high))

    def to_8_bits(self, pixels: np.ndarray) -> np.ndarray:
        """Pixels of any type and shape as uint8."""
        exact = np.result_type(pixels, np.float32)
        scaled = pixels.astype(exact)
        scaled -= exact.type(self.low)
        scaled *= exact.type(255 / (self.high - self.low or 1.0))
        np.rint(scaled.clip(0, 255, out=scaled), out=scaled)
        return scaled.astype(np.uint8)

    def overlap(self, other: "PixelRange") -> float:
        """The part that two ranges share, of the part that either covers, in [0, 1]."""
        shared = min(self.high, other.high) - max(self.low, other.low)
        covered = max(self.high, other.high) - min(self.low, other.low)
        return max(shared, 0.0) / covered if covered else 1.0

    def __str__(self):
        return f"{self.low:,.6g} to {self.high:,.6g}"


EIGHT_BITS = PixelRange(0.0, 255.0)


def fits_in_8_bits(pixels: np.ndarray) -> bool:
    """Whether they are integers of 0 to 255: an 8-bit image in a deeper file."""
    return pixels.dtype.kind in "iu" and 0 <= pixels.min() and pixels.max() <= 255


def sample_pixels(pixels: np.ndarray, count: int) -> np.ndarray:
    """`(count,)` of the pixels, drawn by their number alone; all of them where there are no more."""
    if pixels.size <= count:
        return pixels.ravel()
    return pixels.flat[np.random.default_rng(0).integers(0, pixels.size, count)]


def is_deep(image: Image.Image) -> bool:
    """Whether an opened image that is not decoded yet has more than 8 bits in a channel."""
    return image.mode[0] in "IF" or any(_DEEP_COLORS.search(str(tile[3])) for tile in getattr(image, "tile", ()))


def deep_pixels(image: Image.Image, data: bytes) -> np.ndarray | None:
    """The pixels of a deep image, upright.

    Args:
        image: opened from `data`.

    Returns:
        `(height, width)`, or `(height, width, 3)` RGB, uint16, uint32, int32 or float32; None where nothing here can
        read its colors in more than 8 bits.

    Raises:
        ValueError: if some are not finite.
    """
    pixels = np.asarray(ImageOps.exif_transpose(image))  # Pillow finds damage that OpenCV passes over
    if pixels.ndim == 3:
        return _deep_colors(data, pixels.shape)
    if pixels.dtype == np.int32 and getattr(image, "tag_v2", {}).get(_SAMPLE_FORMAT, (0,))[0] == 1:
        pixels = pixels.astype(np.uint32)
    num_bad = pixels.size - np.count_nonzero(np.isfinite(pixels)) if pixels.dtype.kind == "f" else 0
    if num_bad:
        raise ValueError(f"{num_bad} of its {pixels.size} pixels are not finite (NaN or infinite)")
    return pixels


def _deep_colors(data: bytes, shape: tuple[int, ...]) -> np.ndarray | None:
    """Pillow drops the low byte of colors, OpenCV does not; it turns an image upright by itself."""
    if data.startswith(_PNG_START) and not _holds_its_chunks(data):
        return None
    with _quiet_opencv():
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)
    if pixels is None or pixels.dtype != np.uint16 or pixels.shape[:2] != shape[:2]:
        return None
    return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)


def _holds_its_chunks(png: bytes) -> bool:
    """Whether no chunk is longer than the file: OpenCV takes up to 2 GB for what one declares."""
    position = len(_PNG_START)
    while position < len(png) and png[position + 4 : position + 8] != b"IEND":
        position += 12 + int.from_bytes(png[position : position + 4])
    return position < len(png)


@contextmanager
def _quiet_opencv() -> Iterator[None]:
    level = cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # it warns of every tag it does not know
    try:
        yield
    finally:
        cv2.utils.logging.setLogLevel(level)


def stored_range(value: Any) -> PixelRange | None:
    """The range that a settings file holds as `[low, high]`; None for None.

    Raises:
        InputError: if it is something else.
    """
    if value is None:
        return None
    try:
        low, high = map(float, value)
    except (TypeError, ValueError):
        raise InputError(f"pixel_range is {value!r}; it must be two numbers, the lower first") from None
    return PixelRange(low, high)
