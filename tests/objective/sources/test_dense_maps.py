"""Dense maps against computations by hand."""

import math
from collections import Counter

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modeling_kamim.objective.keypoints import KeypointDetector
from modeling_kamim.objective.sources.strength import gray, scaled

SOBEL = np.array([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]])
LAPLACE = np.array([[2, 0, 2], [0, -8, 0], [2, 0, 2]])


def noise(height=23, width=31, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def windows(image, size):
    """The gray pixels around each, mirrored at the border: `(height, width, size, size)`, float64."""
    luminance = np.rint(image @ [0.299, 0.587, 0.114])
    assert np.abs(luminance - gray(image)).max() <= 1
    padded = np.pad(gray(image).astype(np.float64), size // 2, mode="reflect")
    return np.lib.stride_tricks.sliding_window_view(padded, (size, size))


def divided(strength, percentile=95):
    return np.minimum(strength / np.percentile(strength, percentile), 1)


@pytest.mark.parametrize("seed", range(3))
def test_sobel_is_the_length_of_the_gradient(seed):
    around = windows(noise(seed=seed), 3)
    across, down = (around * SOBEL).sum((2, 3)), (around * SOBEL.T).sum((2, 3))
    assert np.allclose(KeypointDetector("sobel")(noise(seed=seed)), divided(np.sqrt(across**2 + down**2)), atol=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_laplacian_is_the_size_of_the_second_derivative(seed):
    expected = divided(np.abs((windows(noise(seed=seed), 3) * LAPLACE).sum((2, 3))))
    assert np.allclose(KeypointDetector("laplacian")(noise(seed=seed)), expected, atol=1e-5)


@pytest.mark.parametrize("size", [3, 9])
@pytest.mark.parametrize("percentile", [50, 99.5])
def test_variance_is_that_of_the_window(size, percentile):
    expected = divided(windows(noise(), size).var((2, 3)), percentile)
    found = KeypointDetector("variance", parameters={"size": size, "percentile": percentile})(noise())
    assert np.allclose(found, expected, atol=1e-5)
    assert (found == 1).mean() == pytest.approx(1 - percentile / 100, abs=0.01)


@pytest.mark.parametrize(("size", "most"), [(3, math.log2(9)), (9, math.log2(81)), (17, 8)])
def test_entropy_is_that_of_the_window_as_a_share(size, most):
    image = noise() // 16 * 16
    luminance, half = gray(image), size // 2
    found = KeypointDetector("entropy", parameters={"size": size})(image)
    for row, column in [(0, 0), (5, 30), (11, 15), (22, 3)]:
        part = luminance[max(0, row - half) : row + half + 1, max(0, column - half) : column + half + 1]
        shares = [count / part.size for count in Counter(part.ravel().tolist()).values()]
        assert found[row, column] == pytest.approx(-sum(s * math.log2(s) for s in shares) / most, abs=1e-5)


@pytest.mark.parametrize("name", ["sobel", "laplacian", "variance", "entropy"])
@given(turns=st.integers(0, 3), is_mirrored=st.booleans(), seed=st.integers(0, 5))
def test_a_turned_or_mirrored_image_has_a_turned_or_mirrored_map(name, turns, is_mirrored, seed):
    def moved(array):
        return np.ascontiguousarray(np.rot90(array[:, ::-1] if is_mirrored else array, turns))

    detector, image = KeypointDetector(name), noise(19, 27, seed)
    assert np.allclose(detector(moved(image)), moved(detector(image)), atol=1e-5)


@pytest.mark.parametrize("name", ["sobel", "laplacian", "variance"])
def test_contrast_does_not_matter_and_detail_does(name, photographs):
    image = photographs[0]
    soft = cv2.GaussianBlur(image, None, 4)
    detector = KeypointDetector(name)
    assert np.abs(detector(image) - detector(image // 2)).mean() < 0.03
    half = np.concatenate([image[:, :64], soft[:, 64:]], axis=1)
    assert detector(half)[:, :60].mean() > 2 * detector(half)[:, 70:].mean()


def test_a_map_with_few_strong_pixels_is_divided_by_the_strongest():
    strength = np.zeros((10, 10))
    strength[2, 3], strength[4, 4] = 8, 2
    found = scaled(strength, 95)
    assert found.dtype == np.float32 and found[2, 3] == 1 and found[4, 4] == 0.25 and found.sum() == 1.25
    assert not scaled(np.zeros((3, 3)), 95).any()
