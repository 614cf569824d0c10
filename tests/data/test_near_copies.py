"""Pictures that look alike, beside OpenCV's own encoders and a comparison of every pair."""

from itertools import combinations

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modeling_kamim.data.near_copies import LOOK_BYTES, look_of, near_copies

CHANGES = {
    "quality 30": lambda image: cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 30])[1], 1),
    "half the size": lambda image: cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA),
    "twice the size": lambda image: cv2.resize(image, None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC),
    "a square": lambda image: cv2.resize(image, (224, 224), interpolation=cv2.INTER_AREA),
    "gray": lambda image: cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB),
}
TEXTURE = np.random.default_rng(0).integers(0, 256, LOOK_BYTES, dtype=np.uint8)


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_photograph_is_known_again(photographs, change):
    looks = [look_of(image) for image in [*photographs, *map(change, photographs)]]
    assert near_copies(looks) == {len(photographs) + number: number for number in range(len(photographs))}


def test_mirrored_and_different_ones_are_not_taken_for_copies(photographs):
    images = [*photographs, *(np.ascontiguousarray(image[:, ::-1]) for image in photographs)]
    assert near_copies([look_of(image) for image in images]) == {}
    assert near_copies([]) == {} and near_copies([look_of(images[0])]) == {}


@given(st.integers(0, 2**32), st.integers(1, 60))
def test_pairs_are_those_of_a_comparison_of_all(seed, number):
    """Pictures as alike as can be, so that the hashes alone decide."""
    rng = np.random.default_rng(seed)
    looks = []
    for _ in range(number):
        look = TEXTURE.copy()
        bits = rng.choice(64, rng.integers(0, 7), replace=False)
        look[:8] ^= np.packbits(np.isin(np.arange(64), bits))
        looks.append(look.tobytes())
    words = [int.from_bytes(look[:8], "little") for look in looks]
    expected = {}
    for earlier, later in combinations(range(number), 2):
        if (words[earlier] ^ words[later]).bit_count() <= 4:
            expected.setdefault(later, earlier)
    assert near_copies(looks) == expected


def test_an_alike_hash_of_another_picture_is_no_copy():
    other = TEXTURE.copy()
    other[8:] = other[8:][::-1]
    assert near_copies([TEXTURE.tobytes(), other.tobytes()]) == {}
    assert near_copies([bytes(LOOK_BYTES)] * 3) == {}  # of one color
