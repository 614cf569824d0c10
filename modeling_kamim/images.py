"""From image bytes or a path to RGB pixels, whatever the file is."""

import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
from PIL import Image, ImageOps

from .errors import InputError

# Part of every cache key of decoded images: raise it whenever a change here alters pixels or what counts as bad.
DECODER_VERSION = 1

_JPEG_START = b"\xff\xd8\xff"
_JPEG_SCAN = 0xDA
_ORIENTATION_MARKS = (b"Exif\0\0", b"tiff:Orientation")  # where Pillow looks for an orientation


class BadImageError(InputError):
    """An image that cannot be decoded; the message names it."""


def decode_image(source: dict[str, Any], name: str = "") -> np.ndarray:
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
    """
    try:
        data = source["bytes"] if source.get("bytes") is not None else Path(source["path"]).read_bytes()
        pixels = _decode_plain_jpeg(data)
        return pixels if pixels is not None else _decode_with_pillow(data)
    except Exception as error:  # decoders raise nearly anything on broken files
        label = source.get("path") or name or "an image without a name"
        reason = f"{type(error).__name__}: {error}".splitlines()[0].split(" <_io")[0]
        raise BadImageError(
            f"cannot decode {label} ({reason}); pass --bad_images skip to leave such images out"
        ) from None


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
    with Image.open(io.BytesIO(data)) as image:
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
