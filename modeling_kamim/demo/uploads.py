"""Take photographs from strangers: small enough, decodable, or refused in a sentence that tells nothing of here."""

from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from ..data.decoding import BadImageError, decode_image, open_image
from ..errors import InputError

MAX_BYTES = 10 * 2**20
MAX_PIXELS = 40_000_000
_MILLIONS = MAX_PIXELS // 10**6
LONGEST_SIDE = 768  # a larger photograph is shrunk: no model of the demo sees more


def read_photograph(file: Path) -> np.ndarray:
    """Return an uploaded photograph, `(height, width, 3)`, uint8 RGB, upright, of at most `LONGEST_SIDE` px.

    Of an animation it is the first frame; CMYK, palettes and gray become RGB, and transparency is dropped.

    Raises:
        InputError: if the file is too large, has too many pixels, or is no image that can be decoded.
    """
    size = file.stat().st_size
    if size > MAX_BYTES:
        raise InputError(f"the file has {size / 2**20:.1f} MB; give a photograph of at most {MAX_BYTES // 2**20} MB")
    data = file.read_bytes()
    try:
        with open_image(data) as image:
            width, height = image.size
    except Image.DecompressionBombError as error:
        raise InputError(f"the photograph has too many pixels; give one of at most {_MILLIONS} million") from error
    except Exception as error:  # Pillow raises nearly anything on broken files
        raise InputError("this file is no image that can be read; give a JPEG, PNG, WebP or TIFF") from error
    if width * height > MAX_PIXELS:
        raise InputError(f"the photograph has {width:,} x {height:,} pixels; give one of at most {_MILLIONS} million")
    try:
        pixels = decode_image({"bytes": data, "path": None})
    except BadImageError as error:
        raise InputError("the photograph is damaged and cannot be decoded; save it again as JPEG or PNG") from error
    return shrunk(pixels)


def shrunk(pixels: np.ndarray) -> np.ndarray:
    """Return an image of at most `LONGEST_SIDE` px, of the same proportions."""
    scale = LONGEST_SIDE / max(pixels.shape[:2])
    if scale >= 1:
        return pixels
    height, width = (max(1, round(side * scale)) for side in pixels.shape[:2])
    return cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)
