"""Fingerprint of the content of a data set: a resumed run compares its data by it."""

import hashlib
from random import Random
from typing import Any

import datasets

from .decoding import BadImageError, decode_image, read_image
from .loading import FINGERPRINT_ROWS


def sampled(total: int, count: int) -> list[int]:
    """Draw at most `count` of the numbers below `total`, in order; the draw depends on these two alone."""
    return sorted(Random(0).sample(range(total), min(count, total)))


def content_fingerprint(rows: datasets.Dataset, num_channels: int = 3) -> str:
    """Return a fingerprint of a data set, wherever it lies: of its length, its columns and the content of 64 rows.

    Args:
        rows: with images as `datasets.Image(decode=False)`.
        num_channels: that the model takes.

    Returns:
        Words that `resume.check_settings` compares: one for length and columns, one for each of the rows ("bad" where
        an image cannot be decoded).
    """
    contents = [_content(row, num_channels) for row in rows.__getitems__(sampled(len(rows), FINGERPRINT_ROWS))]
    return " ".join([_digest(f"{len(rows)} {sorted(rows.column_names)}".encode()), *contents])


def _content(row: dict[str, Any], num_channels: int) -> str:
    try:
        return _digest(b"".join(_bytes_of(row[name], num_channels) for name in sorted(row)))
    except BadImageError:
        return "bad"


def _bytes_of(value: Any, num_channels: int) -> bytes:
    if not isinstance(value, dict):
        return repr(value).encode()
    data = read_image(value)
    decode_image({"bytes": data, "path": value.get("path")}, num_channels=num_channels)
    return data


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:8]
