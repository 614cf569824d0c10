"""Which part of an image, and of its density, a sample shows."""

import dataclasses
from random import Random

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.transforms import RandomResizedCrop

from modeling_kamim.data.views import RandomView, View, crop_ratios
from modeling_kamim.errors import InputError
from modeling_kamim.objective.density import resample_density

lengths = st.one_of(st.integers(1, 12), st.integers(1, 2000))
flips = st.booleans()
seeds = st.integers(0, 2**32 - 1)


def random_density(seed):
    return np.random.default_rng(seed).random((64, 64), np.float32)


def density_of(view, density, num_cells):
    return resample_density(torch.from_numpy(density)[None], torch.tensor([view.crop_box()]), num_cells)[0].numpy()


@given(lengths, lengths, st.floats(0.05, 1), seeds)
def test_random_views_stay_inside_any_image(height, width, min_scale, seed):
    view = RandomView(min_scale)(height, width, Random(seed))
    assert view.top >= 0 and view.left >= 0 and view.height >= 1 and view.width >= 1
    assert view.top + view.height <= height and view.left + view.width <= width
    assert (view.image_height, view.image_width) == (height, width)
    assert all(0 <= edge <= 1 for edge in view.crop_box())


@given(st.integers(60, 900), st.floats(0.76, 1.32), st.floats(0.1, 1), seeds)
def test_crops_keep_their_area_and_ratio_where_the_image_has_room(height, image_ratio, min_scale, seed):
    width = round(height * image_ratio)
    view = RandomView(min_scale)(height, width, Random(seed))
    slack = 2 / min(view.height, view.width)  # rounding to whole pixels
    assert (1 - slack) * min_scale <= view.height * view.width / (height * width) <= 1
    assert (1 - slack) * 3 / 4 <= view.width / view.height <= (1 + slack) * 4 / 3


@pytest.mark.parametrize("height, width", [(10, 1000), (1000, 10), (1, 50), (50, 1), (1, 1), (3, 2), (200, 900)])
def test_strips_get_torchvisions_central_crop(height, width):
    view = RandomView(0.67)(height, width, Random(0))
    if max(height, width) / min(height, width) > 2:  # no crop of 0.67 of the area fits the ratio
        top, left, crop_height, crop_width = RandomResizedCrop.get_params(
            torch.empty(3, height, width), scale=[0.67, 1.0], ratio=[3 / 4, 4 / 3]
        )
        assert (view.height, view.width) == (crop_height, crop_width)
        assert (view.top, view.left) == (top, left)
    assert 1 <= view.height <= height and 1 <= view.width <= width


def test_crops_are_distributed_as_torchvisions():
    draw, generator = RandomView(0.3), Random(0)
    ours = np.array([(v.top, v.left, v.height, v.width) for v in (draw(300, 400, generator) for _ in range(3000))])
    image = torch.empty(3, 300, 400)
    theirs = np.array(
        [RandomResizedCrop.get_params(image, scale=[0.3, 1.0], ratio=[3 / 4, 4 / 3]) for _ in range(3000)]
    )
    error = ours.std(axis=0) * (2 / 3000) ** 0.5
    assert (np.abs(ours.mean(axis=0) - theirs.mean(axis=0)) < 4.5 * error).all()
    assert np.allclose(ours.std(axis=0), theirs.std(axis=0), rtol=0.08)


def test_every_place_of_a_crop_is_equally_likely():
    views = [RandomView(0.5, (1, 1))(8, 8, Random(seed)) for seed in range(4000)]
    for place, room in [(lambda v: v.top, lambda v: 8 - v.height), (lambda v: v.left, lambda v: 8 - v.width)]:
        counts = np.bincount([place(view) for view in views if room(view) == 2], minlength=3)
        assert len(counts) == 3 and np.abs(counts / counts.sum() - 1 / 3).max() < 0.06


def test_flips_follow_their_probabilities():
    generator = Random(0)
    views = [RandomView(1.0, (1, 1), 0.5, 0.5)(32, 32, generator) for _ in range(2000)]
    both = np.array([(view.horizontal_flip, view.vertical_flip) for view in views])
    assert np.abs(both.mean(axis=0) - 0.5).max() < 0.06
    assert abs((both[:, 0] & both[:, 1]).mean() - 0.25) < 0.05  # independent
    only_horizontal = [RandomView(horizontal_flip=1.0, vertical_flip=0.0)(32, 32, generator) for _ in range(50)]
    assert all(view.horizontal_flip and not view.vertical_flip for view in only_horizontal)


@pytest.mark.parametrize(
    "settings, name",
    [
        ({"min_scale": 0.0}, "crop_min_scale"),
        ({"min_scale": 1.1}, "crop_min_scale"),
        ({"horizontal_flip": -0.1}, "horizontal_flip"),
        ({"vertical_flip": 1.5}, "vertical_flip"),
    ],
)
def test_impossible_views_are_refused(settings, name):
    with pytest.raises(InputError, match=name):
        RandomView(**settings)


def test_view_of_an_image_is_crop_resize_flip(photographs):
    image = photographs[0]
    view = View(10, 20, 60, 80, *image.shape[:2])
    crop = cv2.resize(image[10:70, 20:100], (32, 32), interpolation=cv2.INTER_LINEAR)
    assert np.array_equal(view.of_image(image, 32), crop)
    for horizontal, vertical in [(False, True), (True, False), (True, True)]:
        flipped = dataclasses.replace(view, horizontal_flip=horizontal, vertical_flip=vertical)
        expected = crop[:: -1 if vertical else 1, :: -1 if horizontal else 1]
        assert np.array_equal(flipped.of_image(image, 32), expected)
    whole = View.whole(*image.shape[:2]).of_image(image, 128)
    assert np.array_equal(whole, image)


def test_a_view_of_two_sides_is_height_and_width(photographs):
    image = photographs[0]
    crop = cv2.resize(image[10:70, 20:100], (48, 32), interpolation=cv2.INTER_LINEAR)
    assert np.array_equal(View(10, 20, 60, 80, *image.shape[:2]).of_image(image, [32, 48]), crop)


@given(st.sampled_from([64, (64, 96), (96, 64), (32, 128)]), seeds)
def test_a_crop_is_stretched_as_that_of_a_square(size, seed):
    """By 3/4 to 4/3 along its width, up to the rounding of its sides to pixels."""
    height, width = (size, size) if isinstance(size, int) else size
    view = RandomView(0.3, crop_ratios(size))(20 * height, 20 * width, Random(seed))
    assert 0.745 <= (view.width / width) / (view.height / height) <= 1.342


@given(lengths, lengths, seeds)
def test_crops_of_a_rectangle_are_torchvisions(height, width, seed):
    image = torch.empty(3, height, width)
    view = RandomView(0.3, crop_ratios((64, 96)))
    sizes = np.mean([(v.height, v.width) for v in (view(height, width, Random(seed + n)) for n in range(300))], axis=0)
    drawn = [RandomResizedCrop.get_params(image, [0.3, 1.0], list(view.ratio))[2:] for _ in range(300)]
    np.testing.assert_allclose(sizes, np.mean(drawn, axis=0), rtol=0.06, atol=1.5)


def test_crop_box_is_in_fractions_and_flips_swap_its_edges():
    assert View.whole(30, 50).crop_box() == (0, 0, 1, 1)
    view = View(10, 20, 60, 30, 100, 200)
    assert view.crop_box() == (0.1, 0.1, 0.7, 0.25)
    assert dataclasses.replace(view, vertical_flip=True).crop_box() == (0.7, 0.1, 0.1, 0.25)
    assert dataclasses.replace(view, horizontal_flip=True).crop_box() == (0.1, 0.25, 0.7, 0.1)
    assert dataclasses.replace(view, horizontal_flip=True, vertical_flip=True).crop_box() == (0.7, 0.25, 0.1, 0.1)


@given(st.data(), flips, flips)
def test_density_of_an_aligned_crop_is_the_cropped_and_flipped_density(data, horizontal, vertical):
    """An image of 128 x 192 px, so that a cell of the grid is 2 x 3 px."""
    side = data.draw(st.integers(1, 64))
    row, column = data.draw(st.integers(0, 64 - side)), data.draw(st.integers(0, 64 - side))
    density = random_density(side)
    view = View(2 * row, 3 * column, 2 * side, 3 * side, 128, 192, horizontal, vertical)
    expected = density[row : row + side, column : column + side]
    expected = expected[:, ::-1] if horizontal else expected
    expected = expected[::-1] if vertical else expected
    assert np.allclose(density_of(view, density, side), expected, atol=1e-4)


@given(st.data(), st.sampled_from([1, 3, 8]), flips, flips)
def test_density_of_any_crop_is_its_average_over_pixels(data, num_cells, horizontal, vertical):
    """Against the grid blown up to the pixels of a 320 x 448 image and averaged."""
    density = random_density(num_cells)
    pixels = np.kron(density.astype(np.float64), np.ones((5, 7)))
    height = num_cells * data.draw(st.integers(1, 320 // num_cells))
    width = num_cells * data.draw(st.integers(1, 448 // num_cells))
    top, left = data.draw(st.integers(0, 320 - height)), data.draw(st.integers(0, 448 - width))
    crop = pixels[top : top + height, left : left + width]
    crop = crop[:, ::-1] if horizontal else crop
    crop = crop[::-1] if vertical else crop
    expected = crop.reshape(num_cells, height // num_cells, num_cells, width // num_cells).mean(axis=(1, 3))
    view = View(top, left, height, width, 320, 448, horizontal, vertical)
    assert np.allclose(density_of(view, density, num_cells), expected, atol=1e-4)


@given(seeds)
def test_image_and_density_stay_together(seed):
    """The image is a picture of the density: so are all of their views."""
    density = np.random.default_rng(1).random((5, 5), np.float32)
    density = cv2.resize(density, (64, 64), interpolation=cv2.INTER_CUBIC).clip(0, 1)
    image = cv2.resize(density, (384, 256), interpolation=cv2.INTER_LINEAR)
    image = np.repeat((255 * image).round().astype(np.uint8)[..., None], 3, axis=2)
    view = RandomView(0.3)(256, 384, Random(seed))
    seen = view.of_image(image, 64)[..., 0].reshape(8, 8, 8, 8).mean(axis=(1, 3)) / 255
    assert np.abs(density_of(view, density, 8) - seen).max() < 0.03


@given(lengths, lengths, seeds)
def test_density_of_a_view_of_any_image_is_a_density(height, width, seed):
    view = RandomView(0.3)(height, width, Random(seed))
    density = density_of(view, random_density(0), 24)
    assert np.isfinite(density).all() and density.min() >= 0 and density.max() <= 1


@given(lengths, lengths, st.floats(0.05, 1), st.sampled_from([64, [64, 128], [200, 64]]), seeds)
def test_no_crop_is_below_the_smallest(height, width, min_scale, size, seed):
    random_view, rng = RandomView(min_scale, crop_ratios(size)), Random(seed)
    least_height, least_width = random_view.smallest(height, width)
    views = [random_view(height, width, rng) for _ in range(20)]
    assert all(view.height >= least_height and view.width >= least_width for view in views)
