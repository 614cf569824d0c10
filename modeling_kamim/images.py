"""From image bytes or a path to RGB pixels, whatever the file is."""

import errno
import io
import math
import stat
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
from PIL import Image, ImageOps

from .errors import InputError

# Part of every cache key of decoded images: raise it whenever a change here alters pixels or what counts as bad.
DECODER_VERSION = 2

MAX_FILE_SIZE = 2**31  # bytes; more than any image that Pillow agrees to decode
UNNAMED = "an image without a name"
_ADVICE = "; pass --bad_images skip to leave such images out"
_LONGEST_REASON = 200  # characters
_JPEG_START = b"\xff\xd8\xff"
_JPEG_SCAN = 0xDA
_ORIENTATION_MARKS = (b"Exif\0\0", b"tiff:Orientation")  # where Pillow looks for an orientation
_SYSTEM_FAULTS = {
    getattr(errno, name, None)
    for name in ("EIO", "EMFILE", "ENFILE", "ENOMEM", "ESTALE", "ETIMEDOUT", "ENOTCONN", "EHOSTDOWN", "ENETDOWN")
}
# Formats that Pillow reads by itself: for EPS, as an example, it would start Ghostscript, which runs the file.
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


def decode_image(source: dict[str, Any] | None, name: str = "") -> np.ndarray:
    """Decode an image, upright by its EXIF orientation.

    Gray, palette, CMYK and 16-bit images become 8-bit RGB (16-bit by dropping the low byte, unless all values fit in 8
    bits), transparency is dropped and of an animation the first frame is taken.

    Args:
        source: `{"bytes": bytes | None, "path": str | None}`, as `datasets.Image(decode=False)` gives it.
        name: what to call the image in an error where it has no path.

    Returns:
        `(height, width, 3)`, uint8.

    Raises:
        BadImageError: if it cannot be read in full.
        InputError: if the system fails to read the file, for a reason that is not in the image.
    """
    data = read_image(source, name)
    try:
        pixels = _decode_plain_jpeg(data)
        return pixels if pixels is not None else _decode_with_pillow(data)
    except Exception as error:  # decoders raise nearly anything on broken files
        raise _bad_image(source, name, error) from None


def read_image(source: dict[str, Any] | None, name: str = "") -> bytes:
    """The encoded bytes of an image.

    Args:
        source: `{"bytes": bytes | None, "path": str | None}`.
        name: what to call the image in an error where it has no path.

    Raises:
        BadImageError: if there are none.
        InputError: if the system fails to read the file, for a reason that is not in the image.
    """
    try:
        return _read(source or {})
    except OSError as error:
        if error.errno in _SYSTEM_FAULTS:
            raise InputError(
                f"cannot read {_label(source, name)}: {error.strerror}. The image may be good, so it is not left out; "
                "try again when the disk or the network is well"
            ) from error
        raise _bad_image(source, name, error) from None
    except (TypeError, ValueError) as error:
        raise _bad_image(source, name, error) from None


def _read(source: dict[str, Any]) -> bytes:
    data, path = source.get("bytes"), source.get("path")
    if data is None:
        if path is None:
            raise ValueError("there is neither an image nor a path")
        file = Path(path).stat()
        if not stat.S_ISREG(file.st_mode):  # reading a pipe or a device might never end
            raise ValueError("not a regular file")
        if file.st_size > MAX_FILE_SIZE:
            raise ValueError(f"a file of {file.st_size} bytes is too large for an image")
        data = Path(path).read_bytes()
    if not data:
        raise ValueError("the file is empty")
    return data


def _bad_image(source: dict[str, Any] | None, name: str, error: Exception) -> BadImageError:
    reason = f"{type(error).__name__}: {error}".splitlines()[0].split(" <_io")[0]
    reason = printable(reason)[:_LONGEST_REASON]
    return BadImageError(f"cannot decode {_label(source, name)} ({reason}){_ADVICE}", reason)


def bad_density(source: dict[str, Any] | None, name: str, error: ValueError) -> BadImageError:
    """The error of an image whose stored keypoint density cannot be used."""
    reason = printable(str(error))
    return BadImageError(f"cannot use the keypoint density of {_label(source, name)} ({reason}){_ADVICE}", reason)


def _label(source: dict[str, Any] | None, name: str) -> str:
    return printable((source or {}).get("path") or name or UNNAMED)


def printable(text: str) -> str:
    """The text in one line: line ends, control characters and bytes that are no UTF-8 become escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in str(text))


def open_image(data: bytes) -> Image.Image:
    """Open encoded bytes with Pillow, without decoding, if they are of a format that it reads by itself."""
    return Image.open(io.BytesIO(data), formats=_formats())


@cache
def _formats() -> list[str]:
    Image.init()
    return [name for name in Image.ID if name in _FORMATS]


def _decode_plain_jpeg(data: bytes) -> np.ndarray | None:
    """The pixels that Pillow would give, sooner; None for what is not a plain, undamaged, upright JPEG."""
    if not data.startswith(_JPEG_START):
        return None
    try:
        height, width, colour_space, _ = simplejpeg.decode_jpeg_header(data)
        is_plain = colour_space in ("YCbCr", "Gray") and height * width <= (Image.MAX_IMAGE_PIXELS or math.inf)
        header = _jpeg_header(data)
        if is_plain and not any(mark in header for mark in _ORIENTATION_MARKS):
            return simplejpeg.decode_jpeg(data)
    except ValueError:  # damaged: Pillow decides whether it can be read
        pass
    return None


def _jpeg_header(data: bytes) -> bytes:
    """The segments before the first scan."""
    position = 2
    while position + 4 <= len(data) and data[position] == 0xFF and data[position + 1] != _JPEG_SCAN:
        position += 2 + int.from_bytes(data[position + 2 : position + 4])
    return data[:position]


def _decode_with_pillow(data: bytes) -> np.ndarray:
    with open_image(data) as image:
        upright = ImageOps.exif_transpose(image)
        if upright.mode in ("F", "I") or upright.mode.startswith("I;16"):
            upright = _to_8_bit(upright)
        return np.asarray(upright.convert("RGB"))


def _to_8_bit(image: Image.Image) -> Image.Image:
    pixels = np.asarray(image)
    if pixels.dtype.kind == "f":
        pixels = np.nan_to_num(pixels) * (255.0 if pixels.max(initial=0.0) <= 1.0 else 1.0)
    elif pixels.max(initial=0) > 255:
        pixels = pixels >> 8
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
