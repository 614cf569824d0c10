"""Eq. 2, the controls, and the density grid."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from modeling_kamim.errors import InputError
from modeling_kamim.weighting import (
    WEIGHTINGS,
    CellWeighting,
    cell_density,
    constant_weights,
    inverse_weights,
    keypoint_weights,
    resample_density,
    shuffled_weights,
)

sides = st.integers(1, 9)
densities = hnp.arrays(np.float32, st.tuples(sides, sides), elements=st.floats(0, 1, width=32))


def rng(seed=0):
    return np.random.default_rng(seed)


def test_equation_2_by_hand():
    density = np.array([[0.5, 0.0], [0.25, 1.0]], np.float32)
    weights = keypoint_weights(density, 0.25)
    assert weights.dtype == np.float32
    assert np.allclose(weights, [[math.e**2, 1.0], [math.e, math.e**4]], rtol=1e-6)
    # The denominator is the least exp(Omega / T) of the image, not exp(0).
    assert np.allclose(keypoint_weights(np.array([[0.5, 0.75]]), 0.5), [[1.0, math.exp(0.5)]], rtol=1e-6)


@given(densities, st.floats(0.05, 10))
def test_weights_are_at_least_one_and_bounded(density, temperature):
    weights = keypoint_weights(density, temperature)
    assert weights.shape == density.shape and weights.dtype == np.float32
    assert weights.min() == 1.0
    assert weights.max() <= math.exp(1 / temperature) * (1 + 1e-5)
    assert np.array_equal(weights.ravel()[np.argsort(density, axis=None)], np.sort(weights, axis=None))


def test_no_keypoints_means_no_weighting():
    assert np.array_equal(keypoint_weights(np.zeros((4, 4), np.float32), 0.25), np.ones((4, 4)))
    assert np.array_equal(keypoint_weights(np.full((4, 4), 0.7, np.float32), 0.25), np.ones((4, 4)))


@given(densities)
def test_high_temperature_means_no_weighting(density):
    assert np.allclose(keypoint_weights(density, 1e6), 1.0, atol=2e-6)


@pytest.mark.parametrize("temperature", [0.04, 1e-3, 1e-30, 1e-300])
def test_exponent_is_clipped_at_20(temperature):
    density = np.array([[0.0, 0.9], [1.0, 0.0]], np.float32)
    weights = keypoint_weights(density, temperature)
    assert np.isfinite(weights).all()
    assert np.allclose(weights, np.where(density > 0, math.exp(20), 1.0), rtol=1e-5)


def test_clip_comes_before_the_minimum_is_taken_out():
    """Omega / T of 30 and 40 are both 20 after the clip, as in the released code: equal weights."""
    assert np.array_equal(keypoint_weights(np.array([[0.3, 0.4]], np.float32), 0.01), [[1.0, 1.0]])


@given(st.integers(1, 5), st.integers(1, 5), st.integers(1, 8), st.integers(0, 2**16))
def test_cell_density_is_the_mean_of_every_cell(rows, columns, cell, seed):
    keypoint_map = rng(seed).integers(0, 2, (rows * cell, columns * cell), dtype=np.uint8)
    density = cell_density(keypoint_map, cell)
    assert density.shape == (rows, columns) and density.dtype == np.float32
    for i in range(rows):
        for j in range(columns):
            pixels = [keypoint_map[i * cell + y, j * cell + x] for y in range(cell) for x in range(cell)]
            assert density[i, j] == pytest.approx(sum(map(int, pixels)) / cell**2, abs=1e-6)


@pytest.mark.parametrize("shape, cell", [((10, 8), 4), ((8, 10), 4), ((8, 8), 16)])
def test_cells_that_do_not_divide_are_refused(shape, cell):
    with pytest.raises(ValueError, match=f"{cell}.*{shape[0]}x{shape[1]}"):
        cell_density(np.zeros(shape, np.uint8), cell)


@pytest.mark.parametrize("side", [1, 7, 24, 64])
def test_resampling_to_the_same_grid_is_the_identity(side):
    density = rng().random((side, side), np.float32)
    assert np.allclose(resample_density(density, (0, 0, 1, 1), side), density, atol=1e-6)


@given(st.data())
def test_aligned_crop_is_a_slice(data):
    rows, columns = data.draw(st.integers(1, 16)), data.draw(st.integers(1, 16))
    side = data.draw(st.integers(1, min(rows, columns)))
    top, left = data.draw(st.integers(0, rows - side)), data.draw(st.integers(0, columns - side))
    density = rng(data.draw(st.integers(0, 99))).random((rows, columns), np.float32)
    box = (top / rows, left / columns, (top + side) / rows, (left + side) / columns)
    resampled = resample_density(density, box, side)
    assert np.allclose(resampled, density[top : top + side, left : left + side], atol=1e-5)


@given(densities, st.integers(1, 24))
def test_resampling_the_whole_image_keeps_the_mean(density, num_cells):
    resampled = resample_density(density, (0.0, 0.0, 1.0, 1.0), num_cells)
    assert resampled.shape == (num_cells, num_cells) and resampled.dtype == np.float32
    assert resampled.mean() == pytest.approx(density.mean(), abs=1e-5)


fractions = st.tuples(st.integers(0, 999), st.integers(1, 1000)).map(lambda p: (p[0] / 1000, min(1.0, sum(p) / 1000)))


@given(densities, fractions, fractions, st.integers(1, 24))
def test_resampled_values_stay_in_the_range_of_the_density(density, vertical, horizontal, num_cells):
    box = (vertical[0], horizontal[0], vertical[1], horizontal[1])
    resampled = resample_density(density, box, num_cells)
    assert np.isfinite(resampled).all()
    assert resampled.min() >= 0.0 and resampled.max() <= 1.0
    assert density.min() - 1e-5 <= resampled.min() and resampled.max() <= density.max() + 1e-5


def test_resampling_rows_are_vertical():
    density = np.zeros((8, 8), np.float32)
    density[:2] = 1.0  # the top quarter
    assert np.allclose(resample_density(density, (0, 0, 0.5, 1), 2), [[1, 1], [0, 0]], atol=1e-6)
    assert np.allclose(resample_density(density, (0, 0.5, 0.375, 1), 1), [[2 / 3]], atol=1e-6)


@given(densities, st.floats(0.05, 2), st.integers(0, 99))
def test_controls(density, temperature, seed):
    weights = keypoint_weights(density, temperature)
    shuffled = shuffled_weights(density, temperature, rng(seed))
    inverse = inverse_weights(density, temperature, rng(seed))
    constant = constant_weights(density, temperature, rng(seed))
    assert shuffled.shape == inverse.shape == constant.shape == density.shape
    assert np.array_equal(np.sort(shuffled, axis=None), np.sort(weights, axis=None))
    assert inverse.min() == 1.0 and inverse.max() == pytest.approx(weights.max(), rel=1e-5)
    order = np.argsort(weights, axis=None)
    assert (np.diff(inverse.ravel()[order]) <= 0).all()
    assert np.allclose(inverse * weights, weights.max(), rtol=1e-5)
    assert np.array_equal(constant, np.full_like(density, weights.mean()))


def test_shuffled_moves_the_cells_and_follows_its_generator():
    density = rng().random((8, 8), np.float32)
    one, same, other = (shuffled_weights(density, 0.25, rng(seed)) for seed in (1, 1, 2))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)
    assert not np.array_equal(one, keypoint_weights(density, 0.25))


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_mean_norm_gives_mean_one_and_the_same_shape(name):
    density = rng().random((6, 6), np.float32)
    plain = CellWeighting(name, 0.25)(density, rng(3))
    normed = CellWeighting(name, 0.25, "mean")(density, rng(3))
    assert normed.mean() == pytest.approx(1.0, abs=1e-5)
    assert np.allclose(normed * plain.mean(), plain, rtol=1e-5)
    assert plain.dtype == normed.dtype == np.float32
    if name == "keypoint":
        assert np.array_equal(plain, keypoint_weights(density, 0.25))


@pytest.mark.parametrize(
    "settings, expected",
    [
        ({"name": "uniform"}, ["uniform", *WEIGHTINGS]),
        ({"norm": "max"}, ["max", "none", "mean"]),
        ({"temperature": 0.0}, ["0.0", "greater than 0"]),
        ({"temperature": -1.0}, ["-1.0"]),
        ({"temperature": float("nan")}, ["nan"]),
    ],
)
def test_wrong_settings_raise_and_say_what_is_allowed(settings, expected):
    with pytest.raises(InputError) as error:
        CellWeighting(**settings)
    assert all(word in str(error.value) for word in expected)


def test_a_new_weighting_needs_one_entry(monkeypatch):
    def squared(density, temperature, rng):
        return (1 + density / temperature) ** 2

    monkeypatch.setitem(WEIGHTINGS, "squared", squared)
    density = np.array([[0.0, 0.5]], np.float32)
    assert np.allclose(CellWeighting("squared", 0.5)(density, rng()), [[1.0, 4.0]])
    assert CellWeighting("squared", 0.5, "mean")(density, rng()).mean() == pytest.approx(1.0)
