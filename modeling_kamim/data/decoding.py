"""Decode images of any format to pixels of the channels that a model takes, and encode pixels as PNG."""

import errno
import io
import math
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import simplejpeg
from PIL import Image, ImageOps, UnidentifiedImageError

from ..errors import InputError, first_line, is_out_of_memory, printable
from ..models.pixel_range import PixelRange, deep_pixels, finite_pixels, is_deep
from .arrays import is_npy, is_tiff, npy_header, opened, read_npy, read_tiff, tiff_dtype

# Part of every cache key of decoded images. Raise it with every change that alters pixels or what counts as bad.
DECODER_VERSION = 4
MAX_FILE_SIZE = 2**31  # bytes; Pillow refuses to decode images that need more
UNNAMED = "an image without a name"
_ADVICE = "; pass --bad_images skip to leave such images out"
_LONGEST_REASON = 200  # characters
_JPEG_START = b"\xff\xd8\xff"
_JPEG_SCAN = 0xDA
_LEAST_REDUCTION = 2  # of a JPEG's sides; for less, libjpeg-turbo has no fast code
_ORIENTATION_MARKS = (b"Exif\0\0", b"tiff:Orientation")  # Pillow looks for an orientation there
_SYSTEM_FAULTS = {
    getattr(errno, name, None)
    for name in ("EIO", "EMFILE", "ENFILE", "ENOMEM", "ESTALE", "ETIMEDOUT", "ENOTCONN", "EHOSTDOWN", "ENETDOWN")
}
_GRAY_MODES = ("1", "L", "LA", "La")
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


class OtherChannelsError(BadImageError):
    """An image that has other channels than the model takes."""


class UnreadImageError(InputError):
    """An image that the system could not read: no memory, too many open files, a failing disk."""


def decode_image(
    source: dict[str, Any] | None,
    name: str = "",
    pixel_range: PixelRange | None = None,
    num_channels: int = 3,
    least_size: Callable[[int, int], tuple[int, int]] | None = None,
) -> np.ndarray:
    """Decode an image, upright by its EXIF orientation.

    Of an image file, palette and CMYK become RGB, transparency is dropped, and the first frame of an animation is
    taken. NumPy files, and TIFF files where the model takes neither gray nor RGB, are read as they are stored. Gray
    images become RGB, and RGB becomes gray (0.299 R + 0.587 G + 0.114 B), where the model takes that.

    Args:
        source: `{"bytes": bytes | None, "path": str | None}`, as `datasets.Image(decode=False)` gives it.
        name: what to call the image in an error where it has no path.
        pixel_range: that becomes 0 to 255 in images of more than 8 bits (integers of 16 or 32 bits, floats); None for
            the range of this image alone.
        num_channels: that the model takes.
        least_size: from the height and width of an image to the least that will do. A plain JPEG that is at least twice
            as large is decoded at 1/2, 3/8, 1/4 or 1/8 of its size then, which is faster; None for all images as they
            are.

    Returns:
        `(height, width, num_channels)`, uint8; with a `pixel_range`, float32 in [0, 255], not rounded, of images of 8
        bits too.

    Raises:
        BadImageError: if it cannot be read in full, or has pixels that are not finite.
        OtherChannelsError: a bad image, too.
        UnreadImageError: if the system fails, which is no fault of the image.
    """
    data = read_image(source, name)
    with _errors_of(source, name):
        pixels = _decode_plain_jpeg(data, num_channels, least_size)
        if pixels is None:
            pixels = _stored_pixels(data, num_channels)
    _check_channels(pixels, num_channels, source, name)
    with _errors_of(source, name):
        if pixels.dtype != np.uint8:
            own_range = pixel_range or PixelRange.of(pixels)
            pixels = own_range.to_8_bits(pixels) if pixel_range is None else own_range.scale(pixels)
        if pixel_range is not None:
            pixels = pixels.astype(np.float32, copy=False)
        return _converted(pixels, num_channels)


def read_deep_pixels(source: dict[str, Any] | None, name: str = "", num_channels: int = 3) -> np.ndarray | None:
    """Return the pixels of an image of more than 8 bits as they are stored, upright; None for any other image.

    Returns:
        `(height, width, channels)`; one channel where it is gray.

    Raises:
        BadImageError, UnreadImageError: as `decode_image`.
    """
    data = read_image(source, name)
    with _errors_of(source, name):
        pixels = _stored_pixels(data, num_channels)
    _check_channels(pixels, num_channels, source, name)
    return None if pixels.dtype == np.uint8 else pixels


def own_channels(source: dict[str, Any] | None, name: str = "") -> int:
    """Return how many channels an image has; 3 where it is gray, too.

    Raises:
        BadImageError, UnreadImageError: as `decode_image`.
    """
    data = read_image(source, name)
    with _errors_of(source, name):
        found = _stored_pixels(data, 3).shape[2]
    return 3 if found == 1 else found


def is_deep_image(source: dict[str, Any] | None) -> bool:
    """Return whether an image has more than 8 bits in a channel by its header; False if it cannot be opened."""
    try:
        data = _opened(source or {})
        with opened(data) as file:
            start = file.read(8)
            file.seek(0)
            if is_npy(start):
                return npy_header(file)[1] != np.uint8
        try:
            with open_image(data) as image:
                return is_deep(image)
        except UnidentifiedImageError:
            return is_tiff(start) and tiff_dtype(data) != np.uint8
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


def _decode_plain_jpeg(
    data: bytes, num_channels: int, least_size: Callable[[int, int], tuple[int, int]] | None
) -> np.ndarray | None:
    """Return the pixels that Pillow would give, faster; None unless it is a plain, undamaged, upright JPEG."""
    if not data.startswith(_JPEG_START) or num_channels not in (1, 3):
        return None
    try:
        height, width, color_space, _ = simplejpeg.decode_jpeg_header(data)
        is_plain = color_space in ("YCbCr", "Gray") and height * width <= (Image.MAX_IMAGE_PIXELS or math.inf)
        header = _jpeg_header(data)
        if is_plain and not any(mark in header for mark in _ORIENTATION_MARKS):
            colors = "Gray" if color_space == "Gray" and num_channels == 1 else "RGB"
            if least_size is None:
                return simplejpeg.decode_jpeg(data, colors)
            least_height, least_width = least_size(height, width)
            return simplejpeg.decode_jpeg(
                data, colors, min_height=least_height, min_width=least_width, min_factor=_LEAST_REDUCTION
            )
    except ValueError:  # damaged: Pillow decides whether it can be read
        pass
    return None


def _jpeg_header(data: bytes) -> bytes:
    """Return the segments before the first scan."""
    position = 2
    while position + 4 <= len(data) and data[position] == 0xFF and data[position + 1] != _JPEG_SCAN:
        position += 2 + int.from_bytes(data[position + 2 : position + 4])
    return data[:position]


def _stored_pixels(data: bytes, num_channels: int) -> np.ndarray:
    """Return the pixels of an image, `(height, width, channels)`: uint8, or as they are stored if they are deeper."""
    array = read_array(data, num_channels)
    pixels = _decode_with_pillow(data, num_channels) if array is None else finite_pixels(array)
    return np.ascontiguousarray(pixels)


def read_array(data: bytes, num_channels: int) -> np.ndarray | None:
    """Return the pixels of a NumPy file, or of a TIFF that Pillow does not read or the model takes no colors of.

    Returns:
        `(height, width, channels)` of its own type; None for any other image.

    Raises:
        ValueError: as `read_npy` and `read_tiff`.
    """
    if is_npy(data):
        return read_npy(data, num_channels)
    return read_tiff(data) if is_tiff(data) and (num_channels not in (1, 3) or not _opens(data)) else None


def _check_channels(pixels: np.ndarray, num_channels: int, source: dict[str, Any] | None, name: str) -> None:
    found = pixels.shape[2]
    if found != num_channels and not {found, num_channels} <= {1, 3}:
        reason = f"has {found} channels, the model takes {num_channels}"
        raise OtherChannelsError(f"{_label(source, name)} {reason}: give --num_channels {found}{_ADVICE}", reason)


def _opens(data: bytes) -> bool:
    try:
        open_image(data).close()
    except UnidentifiedImageError:
        return False
    return True


def _decode_with_pillow(data: bytes, num_channels: int) -> np.ndarray:
    with open_image(data) as image:
        pixels = deep_pixels(image, data) if is_deep(image) else None
        if pixels is None:
            is_gray = num_channels == 1 and image.mode in _GRAY_MODES
            pixels = np.asarray(ImageOps.exif_transpose(image).convert("L" if is_gray else "RGB"))
    return pixels if pixels.ndim == 3 else pixels[..., None]


def _converted(pixels: np.ndarray, num_channels: int) -> np.ndarray:
    """Return gray as RGB, or RGB as gray, where the model takes that."""
    if pixels.shape[2] == num_channels:
        return pixels
    if num_channels == 3:
        return cv2.cvtColor(pixels, cv2.COLOR_GRAY2RGB)
    return cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)[..., None]


def encode_png(image: np.ndarray) -> bytes:
    """Return the PNG of an image `(height, width, channels)`, uint8, gray or RGB."""
    file = io.BytesIO()
    # OpenCV writes at most a million pixels a side
    Image.fromarray(image if image.shape[2] == 3 else image[..., 0]).save(file, "png")
    return file.getvalue()
