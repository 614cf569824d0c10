"""Find pictures that look alike: one photograph, encoded or resized again.

A perceptual hash (64 low frequencies, above or below their median) proposes pairs, and small gray pictures decide.
Found are copies in another format, quality, size or shape, and in gray; not found are crops, mirrored and turned ones.
"""

from collections.abc import Iterator, Sequence

import cv2
import numpy as np

_SIDE, _LOW = 32, 8  # of the picture that is transformed, and of its low frequencies: pixels
_MOST_BITS = 4  # that differ; of pairs of different photographs 1 in 50 million has as few
_LEAST_CORRELATION = 0.95  # of the two small pictures
_BANDS = ((0, 13), (13, 13), (26, 13), (39, 13), (52, 12))  # (shift, bits): hashes with 4 different bits share one
_BLOCK = 2000  # hashes compared with all of a band at a time
LOOK_BYTES = 8 + _LOW**2


def look_of(image: np.ndarray) -> bytes:
    """Return how an image looks: its hash and a gray picture of 8 x 8 pixels, `LOOK_BYTES` bytes.

    Args:
        image: `(height, width, 3)`, uint8.
    """
    small = cv2.resize(image, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA)
    gray = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY)
    low = cv2.dct(gray.astype(np.float32))[:_LOW, :_LOW]
    picture = cv2.resize(gray, (_LOW, _LOW), interpolation=cv2.INTER_AREA)
    return np.packbits(low > np.median(low)).tobytes() + picture.tobytes()


def near_copies(looks: Sequence[bytes]) -> dict[int, int]:
    """Return the place of each picture that looks like an earlier one, with the place of the first such one.

    Args:
        looks: of `look_of`.
    """
    if not looks:
        return {}
    table = np.frombuffer(b"".join(looks), np.uint8).reshape(-1, LOOK_BYTES)
    hashes, first, group = np.unique(table[:, :8].copy().view(np.uint64), return_index=True, return_inverse=True)
    members = np.split(np.argsort(group.ravel(), kind="stable"), np.cumsum(np.bincount(group.ravel()))[:-1])
    pairs = [(place, first[number]) for number, places in enumerate(members) for place in places[1:]]
    for one, other in _similar(hashes):
        pairs += [(place, first[one]) for place in members[other]] + [(place, first[other]) for place in members[one]]
    found: dict[int, int] = {}
    for later, earlier in sorted(pair for pair in pairs if pair[1] < pair[0]):
        if later not in found and _correlation(table[later, 8:], table[earlier, 8:]) >= _LEAST_CORRELATION:
            found[int(later)] = int(earlier)
    return found


def _similar(hashes: np.ndarray) -> Iterator[tuple[int, int]]:
    """Yield each pair of different hashes, `(number,)` uint64, that have at most `_MOST_BITS` different bits."""
    pairs: set[tuple[int, int]] = set()
    for shift, bits in _BANDS:
        keys = (hashes >> np.uint64(shift)) & np.uint64(2**bits - 1)
        order = np.argsort(keys, kind="stable")
        for alike in np.split(order, np.flatnonzero(np.diff(keys[order])) + 1):
            for start in range(0, len(alike) if len(alike) > 1 else 0, _BLOCK):
                block = alike[start : start + _BLOCK]
                near = np.bitwise_count(hashes[block, None] ^ hashes[alike]) <= _MOST_BITS
                pairs |= {(block[i], alike[j]) for i, j in zip(*np.nonzero(near), strict=True) if block[i] < alike[j]}
    yield from pairs


def _correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Pearson's r of two pictures; 0 where one of them has a single value."""
    a, b = (picture - picture.mean(dtype=float) for picture in (one, other))
    return float(a @ b / (np.sqrt((a @ a) * (b @ b)) or np.inf))
