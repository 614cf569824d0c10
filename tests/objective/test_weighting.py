"""Eq. 2, the controls, and the density grid."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from modeling_kamim.errors import InputError
from modeling_kamim.objective.density import cell_density, resample_density
from modeling_kamim.objective.weighting import (
    WEIGHTINGS,
    CellWeighting,
    constant_weights,
    inverse_weights,
    keypoint_weights,
    shuffled_weights,
)

sides = st.integers(1, 9)
densities = hnp.arrays(np.float32, st.tuples(sides, sides), elements=st.floats(0, 1, width=32)).map(torch.from_numpy)
seeds = st.integers(0, 2**32 - 1)
flips = st.booleans()


def rng(seed=0):
    return np.random.default_rng(seed)


def random_density(*shape, seed=0):
    return torch.from_numpy(rng(seed).random(shape, np.float32))


def order_of(*shape, seed=0):
    """A permutation of `shape[-1]` cells for each image."""
    return torch.from_numpy(rng(seed).permuted(np.broadcast_to(np.arange(shape[-1]), shape), axis=-1))


def resample_one(density, box, num_cells):
    return resample_density(density[None], torch.tensor([box], dtype=torch.float64), num_cells)[0]


def test_equation_2_by_hand():
    density = torch.tensor([[0.5, 0.0], [0.25, 1.0]])
    weights = keypoint_weights(density, 0.25)
    assert weights.dtype == torch.float32
    assert np.allclose(weights, [[math.e**2, 1.0], [math.e, math.e**4]], rtol=1e-6)
    # The denominator is the least exp(Omega / T) of the image, not exp(0).
    assert np.allclose(keypoint_weights(torch.tensor([[0.5, 0.75]]), 0.5), [[1.0, math.exp(0.5)]], rtol=1e-6)


@given(densities, st.floats(0.05, 10))
def test_weights_are_at_least_one_and_bounded(density, temperature):
    weights = keypoint_weights(density, temperature)
    assert weights.shape == density.shape and weights.dtype == torch.float32
    assert weights.min() == 1.0
    assert weights.max() <= math.exp(1 / temperature) * (1 + 1e-5)
    assert torch.equal(weights.ravel()[density.ravel().argsort()], weights.ravel().sort().values)


def test_no_keypoints_means_no_weighting():
    assert torch.equal(keypoint_weights(torch.zeros(4, 4), 0.25), torch.ones(4, 4))
    assert torch.equal(keypoint_weights(torch.full((4, 4), 0.7), 0.25), torch.ones(4, 4))


@given(densities)
def test_high_temperature_means_no_weighting(density):
    assert np.allclose(keypoint_weights(density, 1e6), 1.0, atol=2e-6)


@pytest.mark.parametrize("temperature", [0.04, 1e-3, 1e-30, 1e-300])
def test_exponent_is_clipped_at_20(temperature):
    density = torch.tensor([[0.0, 0.9], [1.0, 0.0]])
    weights = keypoint_weights(density, temperature)
    assert weights.isfinite().all()
    assert np.allclose(weights, np.where(density > 0, math.exp(20), 1.0), rtol=1e-5)


def test_clip_comes_before_the_minimum_is_taken_out():
    """Omega / T of 30 and 40 are both 20 after the clip, as in the released code: equal weights."""
    assert keypoint_weights(torch.tensor([[0.3, 0.4]]), 0.01).tolist() == [[1.0, 1.0]]


@given(st.integers(1, 5), st.integers(1, 5), st.integers(1, 8), seeds)
def test_cell_density_is_the_mean_of_every_cell(rows, columns, cell, seed):
    keypoint_map = rng(seed).integers(0, 2, (rows * cell, columns * cell), dtype=np.uint8)
    density = cell_density(keypoint_map, cell)
    assert density.shape == (rows, columns) and density.dtype == np.float32
    for i in range(rows):
        for j in range(columns):
            pixels = [keypoint_map[i * cell + y, j * cell + x] for y in range(cell) for x in range(cell)]
            assert density[i, j] == pytest.approx(sum(map(int, pixels)) / cell**2, abs=1e-6)


@pytest.mark.parametrize("cell", [256, 300, 1024])
def test_density_of_a_large_full_cell_is_one(cell):
    assert (cell_density(np.ones((cell, 2 * cell), np.uint8), cell) == 1.0).all()


@pytest.mark.parametrize("shape, cell", [((10, 8), 4), ((8, 10), 4), ((8, 8), 16)])
def test_cells_that_do_not_divide_are_refused(shape, cell):
    with pytest.raises(ValueError, match=f"{cell}.*{shape[0]}x{shape[1]}"):
        cell_density(np.zeros(shape, np.uint8), cell)


@pytest.mark.parametrize("side", [1, 7, 24, 64])
def test_resampling_to_the_same_grid_is_the_identity(side):
    density = random_density(side, side)
    assert np.allclose(resample_one(density, (0, 0, 1, 1), side), density, atol=1e-6)


@given(st.data())
def test_aligned_crop_is_a_slice(data):
    rows, columns = data.draw(st.integers(1, 16)), data.draw(st.integers(1, 16))
    side = data.draw(st.integers(1, min(rows, columns)))
    top, left = data.draw(st.integers(0, rows - side)), data.draw(st.integers(0, columns - side))
    density = random_density(rows, columns, seed=data.draw(seeds))
    box = (top / rows, left / columns, (top + side) / rows, (left + side) / columns)
    resampled = resample_one(density, box, side)
    assert np.allclose(resampled, density[top : top + side, left : left + side], atol=1e-5)


@given(densities, st.integers(1, 24))
def test_resampling_the_whole_image_keeps_the_mean(density, num_cells):
    resampled = resample_one(density, (0.0, 0.0, 1.0, 1.0), num_cells)
    assert resampled.shape == (num_cells, num_cells) and resampled.dtype == torch.float32
    assert resampled.mean().item() == pytest.approx(density.mean().item(), abs=1e-5)


fractions = st.tuples(st.integers(0, 999), st.integers(1, 1000)).map(lambda p: (p[0] / 1000, min(1.0, sum(p) / 1000)))


@given(densities, fractions, fractions, flips, flips, st.integers(1, 24))
def test_resampled_values_stay_in_the_range_of_the_density(density, vertical, horizontal, flip_y, flip_x, num_cells):
    (top, bottom), (left, right) = vertical[:: -1 if flip_y else 1], horizontal[:: -1 if flip_x else 1]
    resampled = resample_one(density, (top, left, bottom, right), num_cells)
    assert resampled.isfinite().all()
    assert resampled.min() >= 0.0 and resampled.max() <= 1.0
    assert density.min() - 1e-5 <= resampled.min() and resampled.max() <= density.max() + 1e-5


def test_resampling_rows_are_vertical():
    density = torch.zeros(8, 8)
    density[:2] = 1.0  # the top quarter
    assert np.allclose(resample_one(density, (0, 0, 0.5, 1), 2), [[1, 1], [0, 0]], atol=1e-6)
    assert np.allclose(resample_one(density, (0, 0.5, 0.375, 1), 1), [[2 / 3]], atol=1e-6)


@given(densities, fractions, fractions, st.integers(1, 24))
def test_swapped_edges_mirror_the_crop(density, vertical, horizontal, num_cells):
    (top, bottom), (left, right) = vertical, horizontal
    upright = resample_one(density, (top, left, bottom, right), num_cells)
    for box, axes in {
        (bottom, left, top, right): [0],
        (top, right, bottom, left): [1],
        (bottom, right, top, left): [0, 1],
    }.items():
        assert np.allclose(resample_one(density, box, num_cells), upright.flip(axes), atol=1e-4)


PIXELS = 4  # a side of a density cell


def averages_over_pixels(density, box, num_cells):
    """Area averages in float64 of a density blown up to pixels that divide into the cells of the crop."""
    rows, columns = num_cells
    pixels = np.kron(density.numpy().astype(np.float64), np.ones((PIXELS * rows, PIXELS * columns)))
    top, left, bottom, right = (cells * edge for cells, edge in zip((rows, columns) * 2, box, strict=True))
    crop = pixels[min(top, bottom) : max(top, bottom), min(left, right) : max(left, right)]
    crop = crop[:: 1 if top < bottom else -1, :: 1 if left < right else -1]
    height, width = crop.shape
    return crop.reshape(rows, height // rows, columns, width // columns).mean(axis=(1, 3))


@st.composite
def crops(draw):
    """A batch of densities, and a box for each in pixels: swapped edges mirror it."""
    batch_size, rows, columns = draw(st.integers(1, 4)), draw(sides), draw(sides)
    boxes = []
    for _ in range(batch_size):
        top, bottom = draw(st.lists(st.integers(0, rows * PIXELS), min_size=2, max_size=2, unique=True))
        left, right = draw(st.lists(st.integers(0, columns * PIXELS), min_size=2, max_size=2, unique=True))
        boxes.append((top, left, bottom, right))
    return random_density(batch_size, rows, columns, seed=draw(seeds)), boxes


def as_fractions(boxes, density):
    rows, columns = density.shape[1:]
    return torch.tensor(boxes) / (PIXELS * torch.tensor([rows, columns, rows, columns]))


@given(crops(), st.tuples(st.integers(1, 8), st.integers(1, 8)))
def test_resampling_averages_over_the_pixels_of_any_crop(crops, num_cells):
    density, boxes = crops
    resampled = resample_density(density, as_fractions(boxes, density), num_cells)
    expected = [averages_over_pixels(*pair, num_cells) for pair in zip(density, boxes, strict=True)]
    assert resampled.dtype == torch.float32
    assert np.allclose(resampled, np.stack(expected), atol=1e-4)


@given(crops(), st.integers(1, 24))
def test_resampling_a_batch_is_resampling_one_by_one(crops, num_cells):
    density, boxes = crops[0], as_fractions(crops[1], crops[0])
    alone = [resample_density(density[i : i + 1], boxes[i : i + 1], num_cells) for i in range(len(density))]
    torch.testing.assert_close(resample_density(density, boxes, num_cells), torch.cat(alone), rtol=0, atol=1e-6)


@given(densities, st.floats(0.05, 2), seeds)
def test_controls(density, temperature, seed):
    weights = keypoint_weights(density, temperature)
    shuffled = shuffled_weights(density, temperature, order_of(density.numel(), seed=seed))
    inverse = inverse_weights(density, temperature)
    constant = constant_weights(density, temperature)
    assert shuffled.shape == inverse.shape == constant.shape == density.shape
    assert torch.equal(shuffled.ravel().sort().values, weights.ravel().sort().values)
    assert inverse.min() == 1.0 and inverse.max().item() == pytest.approx(weights.max().item(), rel=1e-5)
    order = weights.ravel().argsort()
    assert (inverse.ravel()[order].diff() <= 0).all()
    assert np.allclose(inverse * weights, weights.max(), rtol=1e-5)
    assert torch.equal(constant, weights.mean().expand(density.shape))


def test_shuffled_weights_are_the_permuted_weights():
    density, order = random_density(3, 4, 5), order_of(3, 20)
    weights, shuffled = keypoint_weights(density, 0.25), shuffled_weights(density, 0.25, order)
    for i in range(3):
        assert shuffled[i].ravel().tolist() == [weights[i].ravel()[cell].item() for cell in order[i]]
    assert not torch.equal(shuffled, weights)
    assert torch.equal(shuffled_weights(density, 0.25, torch.arange(20).expand(3, 20)), weights)


@pytest.mark.parametrize("norm", ["none", "mean"])
def test_shuffling_needs_a_cell_order(norm):
    with pytest.raises(ValueError, match="cell_order"):
        CellWeighting("shuffled", norm=norm)(random_density(2, 4, 4))


@pytest.mark.parametrize("name", WEIGHTINGS)
@pytest.mark.parametrize("norm", ["none", "mean"])
@given(st.lists(st.integers(1, 4), max_size=2), sides, sides, seeds)
def test_weights_of_a_batch_are_those_of_its_images(name, norm, batch, rows, columns, seed):
    density, order = random_density(*batch, rows, columns, seed=seed), order_of(*batch, rows * columns, seed=seed)
    weighting = CellWeighting(name, 0.25, norm)
    weights = weighting(density, order)
    assert weights.shape == density.shape and weights.dtype == torch.float32
    for index in np.ndindex(*batch):
        torch.testing.assert_close(weights[index], weighting(density[index], order[index]), rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_mean_norm_gives_mean_one_and_the_same_shape(name):
    density, order = random_density(3, 6, 6), order_of(3, 36)
    plain = CellWeighting(name, 0.25)(density, order)
    normed = CellWeighting(name, 0.25, "mean")(density, order)
    assert np.allclose(normed.mean(dim=(1, 2)), 1.0, atol=1e-5)
    assert np.allclose(normed * plain.mean(dim=(1, 2), keepdim=True), plain, rtol=1e-5)
    assert plain.dtype == normed.dtype == torch.float32
    if name == "keypoint":
        assert torch.equal(plain, keypoint_weights(density, 0.25))


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
    def squared(density, temperature, cell_order):
        return (1 + density / temperature) ** 2

    monkeypatch.setitem(WEIGHTINGS, "squared", squared)
    density = torch.tensor([[0.0, 0.5]])
    assert np.allclose(CellWeighting("squared", 0.5)(density), [[1.0, 4.0]])
    assert CellWeighting("squared", 0.5, "mean")(density).mean().item() == pytest.approx(1.0)


@given(
    start=st.floats(0.01, 10),
    end=st.floats(0.01, 10),
    done=st.floats(0, 1),
    schedule=st.sampled_from(["linear", "cosine"]),
)
def test_a_schedule_goes_from_the_first_temperature_to_the_last(start, end, done, schedule):
    weighting = CellWeighting(temperature=start, schedule=schedule, last_temperature=end)
    assert weighting.at(0.0).temperature == pytest.approx(start) and weighting.at(1.0).temperature == pytest.approx(end)
    assert weighting.at(0.5).temperature == pytest.approx((start + end) / 2)
    low, high = sorted([start, end])
    assert low - 1e-9 <= weighting.at(done).temperature <= high + 1e-9
    share = {"linear": done, "cosine": math.sin(math.pi * done / 2) ** 2}[schedule]
    assert weighting.at(done).temperature == pytest.approx(start * (1 - share) + end * share)
    assert torch.equal(weighting.at(0.0)(torch.eye(2)), CellWeighting(temperature=start)(torch.eye(2)))


def test_a_constant_temperature_stays():
    weighting = CellWeighting(temperature=0.3)
    assert weighting.at(0.7) is weighting


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"schedule": "linear"}, "needs temperature_end"),
        ({"last_temperature": 0.5}, "a constant temperature has none"),
        ({"schedule": "cosine", "last_temperature": 0.0}, "temperature_end is 0.0; it must be greater than 0"),
        ({"schedule": "step", "last_temperature": 1.0}, "temperature_schedule"),
    ],
)
def test_schedules_that_make_no_sense_are_refused(settings, words):
    with pytest.raises(InputError, match=words):
        CellWeighting(**settings)
