"""Scale images of more than 8 bits: the range of values that becomes 0 to 255.

Pixels keep their precision: they become float32. Such an image says nowhere which values it uses: 12-bit images lie in
16-bit files, floats in [0, 1] or in any other unit. So the range comes from the pixels: of the training images
(`measure_pixel_range`), or of the image alone where no range is known.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageOps

from ..errors import InputError

_ENOUGH_PIXELS = 1_000_000  # for the range of one image
_MOST_SHOWN = 8  # channels in a text
PERCENTILES = (0.1, 99.9)  # dead and hot pixels do not set the range
_PNG_START = b"\x89PNG\r\n\x1a\n"
_DEEP_COLORS = re.compile(";16[BLN]")  # of Pillow's raw modes; "BGR;16" has 16 bits in a pixel
_SAMPLE_FORMAT = 339  # tag of TIFF; 1: integers without a sign


@dataclass(frozen=True)
class PixelRange:
    """Values that become 0 and 255; those outside are cut off.

    Args:
        low, high: finite, `low <= high`; numbers for all channels, or tuples of one for each.
    """

    low: float | tuple[float, ...]
    high: float | tuple[float, ...]

    def __post_init__(self):
        low, high = np.array(self.low), np.array(self.high)
        if low.shape != high.shape or not (np.isfinite([low, high]).all() and (low <= high).all()):
            raise InputError(
                f"a pixel range is {self.low} to {self.high}; it must be two finite numbers, the lower first, or as "
                "many for each channel"
            )

    @classmethod
    def of(cls, pixels: np.ndarray) -> "PixelRange":
        """The range that most of the pixels use; 0 to 255, so that nothing changes, for integers that fit in 8 bits.

        Args:
            pixels: `(height, width)` or `(height, width, channels)`; see `one_range`.
        """
        return EIGHT_BITS if fits_in_8_bits(pixels) else cls.of_sample(sample_pixels(pixels, _ENOUGH_PIXELS))

    @classmethod
    def of_sample(cls, sample: np.ndarray) -> "PixelRange":
        """The range of some pixels, `(number,)` or, with a range for each channel, `(number, channels)`."""
        low, high = np.percentile(sample, PERCENTILES, axis=0).tolist()
        return cls(low, high) if sample.ndim == 1 else cls(tuple(low), tuple(high))

    def scale(self, pixels: np.ndarray) -> np.ndarray:
        """Pixels of any type and shape in units of 0 to 255, float32 or more; channels are the last axis."""
        exact = np.result_type(pixels, np.float32)
        low, width = np.array(self.low), np.subtract(self.high, self.low)
        scaled = pixels.astype(exact)
        scaled -= low.astype(exact)
        scaled *= (255 / np.where(width == 0, 1.0, width)).astype(exact)
        return scaled.clip(0, 255, out=scaled)

    def to_8_bits(self, pixels: np.ndarray) -> np.ndarray:
        """Pixels of any type and shape as uint8."""
        return np.rint(self.scale(pixels)).astype(np.uint8)

    def overlap(self, other: "PixelRange") -> float:
        """The part that two ranges share, of the part that either covers, in [0, 1]; the least of the channels."""
        shared = np.minimum(self.high, other.high) - np.maximum(self.low, other.low)
        covered = np.maximum(self.high, other.high) - np.minimum(self.low, other.low)
        return float(np.min(np.where(covered > 0, shared.clip(0) / np.where(covered > 0, covered, 1), 1.0)))

    def __str__(self):
        pairs = list(zip(np.ravel(self.low).tolist(), np.ravel(self.high).tolist(), strict=True))
        more = f", ... ({len(pairs)} channels)" if len(pairs) > _MOST_SHOWN else ""
        return ", ".join(f"{low:,.6g} to {high:,.6g}" for low, high in pairs[:_MOST_SHOWN]) + more


EIGHT_BITS = PixelRange(0.0, 255.0)


def fits_in_8_bits(pixels: np.ndarray) -> bool:
    """Whether they are integers of 0 to 255: an 8-bit image in a deeper file."""
    return pixels.dtype.kind in "iu" and 0 <= pixels.min() and pixels.max() <= 255


def one_range(num_channels: int) -> bool:
    """Whether all channels share one range, so that gray stays gray and colors keep their hue; else each has its own.

    The channels of images that are neither gray nor RGB can be of any units.
    """
    return num_channels in (1, 3)


def sample_pixels(pixels: np.ndarray, count: int) -> np.ndarray:
    """`(count,)` of the pixels, drawn by their number alone; all of them where there are no more.

    Where channels do not share a range, `(count / channels, channels)`.
    """
    if pixels.ndim == 3 and not one_range(pixels.shape[2]):
        pixels = pixels.reshape(-1, pixels.shape[2])
        count //= pixels.shape[1]
        drawn = slice(None) if len(pixels) <= count else np.random.default_rng(0).integers(0, len(pixels), count)
        return pixels[drawn]
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
    return finite_pixels(pixels)


def finite_pixels(pixels: np.ndarray) -> np.ndarray:
    """The same pixels; raise ValueError if some are not finite."""
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
    """The range that a settings file holds as `[low, high]`, numbers or lists of one for each channel; None for None.

    Raises:
        InputError: if it is something else.
    """
    if value is None:
        return None
    try:
        low, high = (tuple(map(float, part)) if isinstance(part, list | tuple) else float(part) for part in value)
    except (TypeError, ValueError):
        raise InputError(
            f"pixel_range is {value!r}; it must be two numbers, the lower first, or two lists of one for each channel"
        ) from None
    return PixelRange(low, high)
