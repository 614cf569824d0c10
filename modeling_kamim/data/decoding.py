"""Decode images of any format to RGB pixels, and encode pixels as PNG."""

import errno
import io
import math
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import simplejpeg
from PIL import Image, ImageOps

from ..errors import InputError, first_line, is_out_of_memory, printable
from ..models.pixel_range import PixelRange, deep_pixels, is_deep

# Part of every cache key of decoded images. Raise it with every change that alters pixels or what counts as bad.
DECODER_VERSION = 3
MAX_FILE_SIZE = 2**31  # bytes; Pillow refuses to decode images that need more
UNNAMED = "an image without a name"
_ADVICE = "; pass --bad_images skip to leave such images out"
_LONGEST_REASON = 200  # characters
_JPEG_START = b"\xff\xd8\xff"
_JPEG_SCAN = 0xDA
_ORIENTATION_MARKS = (b"Exif\0\0", b"tiff:Orientation")  # Pillow looks for an orientation there
_SYSTEM_FAULTS = {
    getattr(errno, name, None)
    for name in ("EIO", "EMFILE", "ENFILE", "ENOMEM", "ESTALE", "ETIMEDOUT", "ENOTCONN", "EHOSTDOWN", "ENETDOWN")
}
# Formats that Pillow reads by itself. For EPS, as an example, it would start Ghostscript, which runs the file.
_FORMATS = (
    *("AVIF", "BMP", "DDS", "DIB", "GIF", "ICNS", "ICO", "JPEG", "JPEG2000", "MPO"),
    *("PCX", "PNG", "PPM", "PSD", "QOI", "SGI", "SUN", "TGA", "TIFF", "WEBP"),
)


class BadImageError(InputError):
    """An image that cannot be decoded; the message names it.

    Args:
        message: one line.
        reason: what is wrong, without the name of the image.
    """

    def __init__(self, message: str, reason: str = ""):
        super().__init__(message)
        self.reason = reason

    @property
    def finding(self) -> str:
        """The message without advice."""
        return str(self).removesuffix(_ADVICE)


class UnreadImageError(InputError):
    """An image that the system could not read: no memory, too many open files, a failing disk."""


def decode_image(source: dict[str, Any] | None, name: str = "", pixel_range: PixelRange | None = None) -> np.ndarray:
    """Decode an image, upright by its EXIF orientation.

    Gray, palette, CMYK and deeper images become 8-bit RGB. Transparency is dropped. The first frame of an animation is
    taken.

    Args:
        source: `{"bytes": bytes | None, "path": str | None}`, as `datasets.Image(decode=False)` gives it.
        name: what to call the image in an error where it has no path.
        pixel_range: that becomes 0 to 255 in images of more than 8 bits (integers of 16 or 32 bits, floats); None for
            the range of this image alone.

    Returns:
        `(height, width, 3)`, uint8.

    Raises:
        BadImageError: if it cannot be read in full, or has pixels that are not finite.
        UnreadImageError: if the system fails, which is no fault of the image.
    """
    data = read_image(source, name)
    with _errors_of(source, name):
        pixels = _decode_plain_jpeg(data)
        return pixels if pixels is not None else _decode_with_pillow(data, pixel_range)


def read_deep_pixels(source: dict[str, Any] | None, name: str = "") -> np.ndarray | None:
    """Return the pixels of an image of more than 8 bits as they are stored, upright; None for any other image.

    Raises:
        BadImageError, UnreadImageError: as `decode_image`.
    """
    data = read_image(source, name)
    with _errors_of(source, name), open_image(data) as image:
        return deep_pixels(image, data) if is_deep(image) else None


def is_deep_image(source: dict[str, Any] | None) -> bool:
    """Return whether an image has more than 8 bits in a channel by its header; False if it cannot be opened."""
    try:
        with open_image(_opened(source or {})) as image:
            return is_deep(image)
    except Exception:  # the error comes when the image is decoded
        return False


def read_image(source: dict[str, Any] | None, name: str = "") -> bytes:
    """Return the encoded bytes of an image.

    Args:
        source: `{"bytes": bytes | None, "path": str | None}`.
        name: what to call the image in an error where it has no path.

    Raises:
        BadImageError: if there are none.
        UnreadImageError: if the system fails, which is no fault of the image.
    """
    with _errors_of(source, name):
        data = _opened(source or {})
        if isinstance(data, Path):
            data = data.read_bytes()
        if not data:
            raise ValueError("the file is empty")
        return data


def _opened(source: dict[str, Any]) -> bytes | Path:
    """Return the bytes of an image if given, or else the path of its file, if that may be read."""
    data, path = source.get("bytes"), source.get("path")
    if data is not None:
        return data
    if path is None:
        raise ValueError("there is neither an image nor a path")
    file = Path(path).stat()
    if not stat.S_ISREG(file.st_mode):  # reading a pipe or a device might never end
        raise ValueError("not a regular file")
    if file.st_size > MAX_FILE_SIZE:
        raise ValueError(f"a file of {file.st_size} bytes is too large for an image")
    return Path(path)


@contextmanager
def _errors_of(source: dict[str, Any] | None, name: str) -> Iterator[None]:
    """Raise UnreadImageError for faults of the system, and BadImageError for those of the image."""
    try:
        yield
    except Exception as error:  # decoders raise nearly anything on broken files
        fault = system_fault(error, source, name)
        raise fault or _bad_image(source, name, error) from (error if fault else None)


def system_fault(error: Exception, source: dict[str, Any] | None, name: str = "") -> UnreadImageError | None:
    """Return what to raise if the system, not the image, is at fault; None for any other error."""
    label = _label(source, name)
    if is_out_of_memory(error):
        fault = f"memory ran out at {label} ({first_line(error)[:_LONGEST_REASON]})"
        advice = "free memory, or use fewer processes (--num_proc, --dataloader_num_workers), and try again"
    elif isinstance(error, RecursionError):
        fault = f"the call stack is full at {label}"
        advice = "call from fewer nested functions"
    elif isinstance(error, OSError) and error.errno in _SYSTEM_FAULTS:
        fault = f"cannot read {label}: {error.strerror}"
        advice = "try again when the disk or the network works"
        if error.errno in (errno.EMFILE, errno.ENFILE):
            advice = "raise the limit of open files (`ulimit -n`), or use fewer processes"
    else:
        return None
    return UnreadImageError(f"{fault}. The image may be good, so it is not left out; {advice}")


def _bad_image(source: dict[str, Any] | None, name: str, error: Exception) -> BadImageError:
    reason = printable(f"{type(error).__name__}: {error}".splitlines()[0].split(" <_io")[0])[:_LONGEST_REASON]
    return BadImageError(f"cannot decode {_label(source, name)} ({reason}){_ADVICE}", reason)


def bad_density(source: dict[str, Any] | None, name: str, reason: str) -> BadImageError:
    """Return the error of an image whose stored keypoint density cannot be used."""
    reason = printable(reason)
    return BadImageError(f"cannot use the keypoint density of {_label(source, name)} ({reason}){_ADVICE}", reason)


def _label(source: dict[str, Any] | None, name: str) -> str:
    return printable((source or {}).get("path") or name or UNNAMED)


def open_image(data: bytes | Path) -> Image.Image:
    """Open encoded bytes or a file with Pillow, without decoding; only formats that Pillow reads by itself."""
    return Image.open(data if isinstance(data, Path) else io.BytesIO(data), formats=_formats())


@cache
def _formats() -> list[str]:
    Image.init()
    return [name for name in Image.ID if name in _FORMATS]


def _decode_plain_jpeg(data: bytes) -> np.ndarray | None:
    """Return the pixels that Pillow would give, faster; None unless it is a plain, undamaged, upright JPEG."""
    if not data.startswith(_JPEG_START):
        return None
    try:
        height, width, color_space, _ = simplejpeg.decode_jpeg_header(data)
        is_plain = color_space in ("YCbCr", "Gray") and height * width <= (Image.MAX_IMAGE_PIXELS or math.inf)
        header = _jpeg_header(data)
        if is_plain and not any(mark in header for mark in _ORIENTATION_MARKS):
            return simplejpeg.decode_jpeg(data)
    except ValueError:  # damaged: Pillow decides whether it can be read
        pass
    return None


def _jpeg_header(data: bytes) -> bytes:
    """Return the segments before the first scan."""
    position = 2
    while position + 4 <= len(data) and data[position] == 0xFF and data[position + 1] != _JPEG_SCAN:
        position += 2 + int.from_bytes(data[position + 2 : position + 4])
    return data[:position]


def _decode_with_pillow(data: bytes, pixel_range: PixelRange | None) -> np.ndarray:
    with open_image(data) as image:
        deep = deep_pixels(image, data) if is_deep(image) else None
        if deep is None:
            return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    pixels = (pixel_range or PixelRange.of(deep)).to_8_bits(deep)
    return pixels if pixels.ndim == 3 else cv2.cvtColor(pixels, cv2.COLOR_GRAY2RGB)


def encode_png(image: np.ndarray) -> bytes:
    """Return the PNG of an image `(height, width, 3)`, uint8."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "png")  # OpenCV writes at most a million pixels a side
    return file.getvalue()
