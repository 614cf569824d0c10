"""Facts of one image of a data set: whether it can be decoded, what it holds, what is unusual in it."""

import hashlib
from typing import Any

import cv2
import datasets
from PIL import Image

from ..errors import printable
from ..models.pixel_range import PixelRange, is_deep
from ..objective.keypoints import KeypointDetector, keypoint_image
from .decoding import BadImageError, decode_image, open_image, read_array, read_image
from .near_copies import look_of
from .stored_density import DensityDetector

TINY = 32  # pixels: an image with a shorter side is tiny
STRIP = 8  # an image with a greater ratio of its sides is a strip
PLAIN = 2  # gray levels: an image with a smaller standard deviation in each channel is of one color
DEEP = "more than 8 bits"
FACTS = {
    **dict.fromkeys(("name", "error", "reason", "traits"), datasets.Value("string")),
    **dict.fromkeys(("height", "width", "channels", "bits", "num_bytes"), datasets.Value("int64")),
    **dict.fromkeys(("digest", "look"), datasets.Value("binary")),
    "has_keypoints": datasets.Value("bool"),
}
_ORIENTATION = 0x0112
_PNG_START = b"\x89PNG"
_DEFAULT = DensityDetector(KeypointDetector(), image_size=192)


def inspect_image(
    source: dict[str, Any] | None, row: int, pixel_range: PixelRange | None = None, num_channels: int = 3
) -> dict[str, Any]:
    """Return the facts of one image, as `FACTS` lists them; `error` and `reason` are None where it is good.

    Args:
        source: `{"bytes": bytes | None, "path": str | None}`.
        row: of the split, to name an image that has no name.
        pixel_range: by which it is scaled if it has more than 8 bits.
        num_channels: that it should have.
    """
    name = printable((source or {}).get("path") or f"the image in row {row}")
    facts: dict[str, Any] = {**dict.fromkeys(FACTS), "name": name}
    try:
        data = read_image(source, name)
        image = decode_image({"bytes": data, "path": (source or {}).get("path")}, name, pixel_range, num_channels)
    except BadImageError as error:
        return facts | {"error": error.finding, "reason": error.reason}
    height, width = image.shape[:2]
    shown = keypoint_image(image)
    small = cv2.resize(shown, _DEFAULT.detection_size(height, width))  # what follows takes as long for any image
    is_plain = bool(cv2.meanStdDev(small)[1].max() < PLAIN)
    traits = {f"of one color (deviation below {PLAIN} gray levels)": is_plain, **_traits_of_shape(height, width)}
    array = read_array(data, num_channels)
    if array is not None:
        channels, bits = array.shape[2], 8 * array.dtype.itemsize
        traits[DEEP] = bits > 8
    else:
        with open_image(data) as opened:
            channels, bits = channels_and_bits(opened)
            traits = _traits_of_file(opened, data) | traits
    return facts | {
        "height": height,
        "width": width,
        "channels": channels,
        "bits": bits,
        "num_bytes": len(data),
        "traits": ",".join(trait for trait, holds in traits.items() if holds),
        "digest": hashlib.blake2b(data, digest_size=16).digest(),
        "look": None if is_plain else look_of(small),
        "has_keypoints": len(_DEFAULT.detector.detect(small)) > 0,
    }


def channels_and_bits(image: Image.Image) -> tuple[int, int]:
    """Return the channels of an opened image as it is stored, and the bits of each; the colors of a palette are 3."""
    channels = 3 if image.mode in ("P", "PA") else len(image.getbands())
    if image.mode == "1":
        return channels, 1
    if not is_deep(image):
        return channels, 8
    return channels, 32 if image.mode in ("I", "F") else 16


def _traits_of_file(image: Image.Image, data: bytes) -> dict[str, bool]:
    return {
        "gray": image.mode in ("1", "L", "LA", "La") or image.mode[0] in "IF",
        "CMYK": image.mode == "CMYK",
        "palette": image.mode in ("P", "PA"),
        DEEP: is_deep(image),
        "transparency (dropped)": "A" in image.getbands() or "transparency" in image.info,
        "animated (its first frame is used)": image.format != "MPO" and _is_animated(image),
        "turned by EXIF": image.getexif().get(_ORIENTATION, 1) in range(2, 9),
        "wrong checksums though it decodes": data.startswith(_PNG_START) and not _has_right_checksums(data),
    }


def _traits_of_shape(height: int, width: int) -> dict[str, bool]:
    short, long = sorted((height, width))
    return {
        f"tiny (a side below {TINY} px)": short < TINY,
        f"strip (one side over {STRIP} times the other)": long > STRIP * short,
    }


def _has_right_checksums(png: bytes) -> bool:
    try:
        open_image(png).verify()
    except SyntaxError:
        return False
    return True


def _is_animated(image: Image.Image) -> bool:
    try:
        return bool(getattr(image, "is_animated", False))
    except Exception:  # a later frame is broken; only the first is used
        return True
