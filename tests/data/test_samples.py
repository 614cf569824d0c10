"""Samples of masked image modeling."""

import dataclasses
import random
from random import Random

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from modeling_kamim.data.decoding import BadImageError
from modeling_kamim.data.samples import MaskedImageTransform, channels_first
from modeling_kamim.data.stored_density import DensityDetector
from modeling_kamim.data.views import RandomView
from modeling_kamim.objective.density import cell_density, resample_density
from modeling_kamim.objective.keypoints import KeypointDetector
from modeling_kamim.objective.weighting import CellWeighting

FAST = KeypointDetector()
ONLINE = MaskedImageTransform("image", 64, 8, 16, 0.6, 8, RandomView(), detector=FAST)
DENSITIES = DensityDetector(FAST, 64)
MAP = dataclasses.replace(ONLINE, detector=None, densities=DENSITIES)
SIMMIM = dataclasses.replace(ONLINE, detector=None)


def row(image, grid=None):
    data = cv2.imencode(".png", image[..., ::-1])[1].tobytes()
    grid = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8) if grid is None else grid
    return {"image": {"bytes": data, "path": None}, DENSITIES.column: DENSITIES.format.encode(grid)}


def channels_last(sample):
    return sample["pixel_values"].permute(1, 2, 0).contiguous().numpy()


def test_sample_has_pixels_mask_and_density(photographs):
    sample = ONLINE(row(photographs[0]), Random(0))
    assert sample.keys() == {"pixel_values", "bool_masked_pos", "keypoint_density"}
    pixels, mask, density = sample["pixel_values"], sample["bool_masked_pos"], sample["keypoint_density"]
    assert pixels.shape == (3, 64, 64) and pixels.dtype == torch.uint8 and pixels.is_contiguous()
    assert mask.shape == (64,) and mask.dtype == torch.bool and mask.sum() == 4 * 10
    assert density.shape == (8, 8) and density.dtype == torch.float32 and 0 <= density.min() < density.max() <= 1


def test_samples_of_rectangles(photographs):
    online = dataclasses.replace(ONLINE, image_size=[32, 64], shuffle_cells=True)
    sample = online(row(photographs[0]), Random(0))
    assert sample["pixel_values"].shape == (3, 32, 64) and sample["bool_masked_pos"].shape == (4 * 8,)
    assert np.array_equal(sample["keypoint_density"], cell_density(FAST(channels_last(sample)), 8))
    assert sorted(sample["cell_order"].tolist()) == list(range(4 * 8))
    detector = DensityDetector(FAST, [32, 64])
    stored = dataclasses.replace(online, detector=None, densities=detector)
    whole = {**row(photographs[0]), detector.column: detector(photographs[0])}
    sample = stored(whole, Random(0))
    assert sample["keypoint_density"].shape == (64, 64)
    density = resample_density(sample["keypoint_density"][None] / 255, sample["crop_box"][None], (4, 8))
    assert density.shape == (1, 4, 8)


def test_map_sample_has_the_whole_density_and_the_place_of_the_crop(photographs):
    grid = np.random.default_rng(1).integers(0, 256, (64, 64), dtype=np.uint8)
    sample = MAP(row(photographs[0], grid), Random(5))
    view = MAP.random_view(*photographs[0].shape[:2], Random(5))
    assert sample.keys() == {"pixel_values", "bool_masked_pos", "keypoint_density", "crop_box"}
    assert sample["keypoint_density"].dtype == torch.uint8
    assert np.array_equal(sample["keypoint_density"].numpy(), grid)
    assert torch.equal(sample["crop_box"], torch.tensor(view.crop_box())) and sample["crop_box"].dtype == torch.float32
    assert np.array_equal(channels_last(sample), view.of_image(photographs[0], 64))


@pytest.mark.parametrize(
    ("stored", "reason"),
    [
        (None, "there is none"),
        (b"", "damaged"),
        (DENSITIES.format.encode(np.zeros((64, 64), np.uint8))[:-1], "damaged"),
        (bytes(5000), "damaged"),
        (DensityDetector(FAST, 96).format.encode(np.zeros((96, 96), np.uint8)), '"image_size": 96.* and not of'),
        (DensityDetector(FAST, 64, 0.5).format.encode(np.zeros((64, 64), np.uint8)), "and not of"),
    ],
    ids=["none", "empty", "short", "foreign", "another size", "another scale"],
)
def test_a_density_of_no_use_is_a_bad_image(photographs, stored, reason):
    damaged = {**row(photographs[0]), DENSITIES.column: stored}
    damaged["image"]["path"] = "one.png"
    with pytest.raises(BadImageError, match=f"keypoint density of one.png .*{reason}.*--bad_images skip"):
        MAP(damaged, Random(0))
    ONLINE(damaged, Random(0))


def test_shuffled_sample_has_an_order_of_its_cells(photographs):
    for transform in (ONLINE, MAP):
        transform = dataclasses.replace(transform, shuffle_cells=True, weight_patch_size=16)
        orders = [transform(row(photographs[0]), Random(seed))["cell_order"] for seed in range(200)]
        assert all(order.dtype == torch.int64 and order.sort().values.tolist() == list(range(16)) for order in orders)
        assert (torch.stack(orders).float().mean(dim=0) - 7.5).abs().max() < 1.6  # no cell has a place of its own


def test_every_source_has_the_same_views_and_masks(photographs):
    simmim = SIMMIM(row(photographs[0]), Random(4))
    assert simmim.keys() == {"pixel_values", "bool_masked_pos"}
    for transform in (ONLINE, MAP):
        for shuffle_cells in (False, True):
            kamim = dataclasses.replace(transform, shuffle_cells=shuffle_cells)(row(photographs[0]), Random(4))
            assert all(torch.equal(simmim[key], kamim[key]) for key in simmim)


def test_without_a_random_view_the_whole_image_is_shown(photographs):
    sample = dataclasses.replace(MAP, random_view=None)(row(photographs[1]), Random(0))
    expected = cv2.resize(photographs[1], (64, 64), interpolation=cv2.INTER_LINEAR)
    assert np.array_equal(channels_last(sample), expected)
    assert sample["crop_box"].tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("shuffle_cells", [False, True])
@pytest.mark.parametrize("transform, constant", [(ONLINE, set()), (MAP, {"keypoint_density"})], ids=["online", "map"])
def test_sample_depends_on_its_generator_alone(photographs, transform, constant, shuffle_cells):
    transform = dataclasses.replace(transform, shuffle_cells=shuffle_cells)
    first = transform(row(photographs[0]), Random(7))
    torch.manual_seed(1)
    np.random.seed(1)
    random.seed(1)
    before = torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()
    again, other = transform(row(photographs[0]), Random(7)), transform(row(photographs[0]), Random(8))
    assert before == (torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate())
    for key in first:
        assert torch.equal(first[key], again[key])
        assert torch.equal(first[key], other[key]) == (key in constant)


@pytest.mark.parametrize("cell", [4, 8, 32])
@pytest.mark.parametrize("name", ["fast", "orb"])
def test_online_density_is_that_of_the_finished_crop(photographs, name, cell):
    detector = KeypointDetector(name)
    transform = dataclasses.replace(ONLINE, detector=detector, weight_patch_size=cell, image_size=96)
    sample = transform(row(photographs[0]), Random(3))
    expected = cell_density(detector(channels_last(sample)), cell)
    assert expected.any() and np.array_equal(sample["keypoint_density"].numpy(), expected)


def test_map_weights_follow_the_flips_of_the_pixels():
    """White pixels and keypoints share one corner, wherever it goes."""
    corner = np.zeros((64, 64), np.uint8)
    corner[:32, :32] = 255
    transform = dataclasses.replace(MAP, random_view=RandomView(1.0, (1.0, 1.0)))
    seen = set()
    for seed in range(40):
        sample = transform(row(np.repeat(corner[..., None], 3, axis=2), corner), Random(seed))
        density = resample_density(sample["keypoint_density"][None] / 255, sample["crop_box"][None], 8)
        weights = CellWeighting()(density)[0]
        bright = sample["pixel_values"][0, ::8, ::8] > 0
        assert torch.equal(weights > 1.0, bright)
        assert weights.max().item() == pytest.approx(np.exp(4), rel=1e-5)
        seen.add(tuple(map(int, bright.nonzero()[0])))
    assert seen == {(0, 0), (0, 4), (4, 0), (4, 4)}


@given(st.integers(1, 40), st.integers(1, 40), st.booleans(), st.booleans())
def test_channels_first_moves_the_channels(height, width, flip, transpose):
    pixels = np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    pixels = pixels[:, ::-1] if flip else pixels
    pixels = pixels.transpose(1, 0, 2) if transpose else pixels
    planes = channels_first(pixels)
    assert planes.is_contiguous() and planes.dtype == torch.uint8
    assert np.array_equal(planes.numpy(), pixels.transpose(2, 0, 1))


def jpeg_row(image, zoom):
    image = cv2.resize(image, None, fx=zoom, fy=zoom, interpolation=cv2.INTER_CUBIC)
    return {"image": {"bytes": cv2.imencode(".jpg", image[..., ::-1])[1].tobytes(), "path": None}}


@pytest.mark.parametrize("image_size", [32, [32, 64]])
@pytest.mark.parametrize("zoom", [0.5, 2, 6])
def test_crops_of_reduced_jpegs_are_as_large_as_the_model(photographs, image_size, zoom):
    views = RandomView(horizontal_flip=0, vertical_flip=0)
    draft = dataclasses.replace(SIMMIM, image_size=image_size, random_view=views, jpeg_draft=True)
    stored = jpeg_row(photographs[0], zoom)
    image, whole = draft.decode(stored["image"]), SIMMIM.decode(stored["image"])
    reduction = whole.shape[0] / image.shape[0]
    assert reduction == 1 or reduction >= 1.9
    for seed in range(20):
        view = draft.draw_view(image, Random(seed))
        assert reduction == 1 or (view.height >= 31 and view.width >= (31 if image_size == 32 else 63))
    if zoom == 6:
        assert reduction > 3
    if zoom == 0.5:
        assert np.array_equal(image, whole)


def test_the_whole_of_a_reduced_jpeg_is_as_large_as_the_model(photographs):
    draft = dataclasses.replace(SIMMIM, image_size=32, random_view=None, jpeg_draft=True)
    stored = jpeg_row(photographs[0], 2)
    height, width = draft.decode(stored["image"]).shape[:2]
    assert 32 <= min(height, width) <= 40
    whole = dataclasses.replace(draft, jpeg_draft=False)(stored, Random(0))["pixel_values"]
    assert (draft(stored, Random(0))["pixel_values"].float() - whole.float()).abs().mean() < 12
