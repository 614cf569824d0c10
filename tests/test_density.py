"""Densities of whole images, and how they are stored."""

import io
import json

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from modeling_kamim.density import (
    DENSITY_GRID,
    DensityDetector,
    decode_density,
    density_grid,
    density_label,
    detection_side,
    encode_density,
)
from modeling_kamim.keypoints import KEYPOINTS_VERSION, KeypointDetector
from modeling_kamim.weighting import cell_density, resample_density

grids = hnp.arrays(np.uint8, (64, 64))
lines = st.text(st.characters(min_codepoint=32, max_codepoint=126))

DETECTORS = {
    "fast": KeypointDetector(),
    "threshold": KeypointDetector(parameters={"threshold": 20}),
    "parameters": KeypointDetector(parameters={"threshold": 20, "nonmaxSuppression": False}),
    "point": KeypointDetector(footprint="point"),
    "orb": KeypointDetector("orb"),
    "sift": KeypointDetector("sift"),
}


@given(grids, lines)
def test_a_stored_density_keeps_grid_and_label(grid, label):
    stored = encode_density(grid, label)
    assert np.array_equal(decode_density(stored), grid) and decode_density(stored).dtype == np.uint8
    assert density_label(stored) == label


@given(grids)
def test_a_stored_density_is_a_picture(grid):
    stored = encode_density(grid, DensityDetector(KeypointDetector(), 70).label)
    with Image.open(io.BytesIO(stored)) as image:
        assert image.mode == "L" and image.size == (64, 64)
        assert np.array_equal(np.asarray(image), grid)
    assert np.array_equal(cv2.imdecode(np.frombuffer(stored, np.uint8), cv2.IMREAD_UNCHANGED), grid)


def test_a_decoded_density_is_its_own_array():
    stored = encode_density(np.zeros((64, 64), np.uint8), "")
    torch.from_numpy(decode_density(stored)).fill_(1)
    assert not decode_density(stored).any()


@pytest.mark.parametrize("detector", DETECTORS.values(), ids=DETECTORS)
def test_detector_stores_its_density_under_its_label(photographs, detector):
    densities = DensityDetector(detector, 70)
    stored = densities(photographs[0])
    assert np.array_equal(decode_density(stored), density_grid(photographs[0], detector, 70))
    assert density_label(stored) == densities.label


def test_label_says_what_was_detected():
    label = json.loads(DensityDetector(DETECTORS["parameters"], 70).label)
    assert label == {
        "detector": "fast",
        "footprint": "circle",
        "parameters": {"threshold": 20, "nonmaxSuppression": False},
        "short_side": 70,
        "version": KEYPOINTS_VERSION,
    }


def test_label_tells_densities_apart():
    labels = {DensityDetector(detector, side).label for detector in DETECTORS.values() for side in (70, 71)}
    labels.add(DensityDetector(KeypointDetector(), 70, version=-1).label)
    assert len(labels) == 2 * len(DETECTORS) + 1


def test_label_does_not_depend_on_the_order_of_parameters():
    swapped = KeypointDetector(parameters={"nonmaxSuppression": False, "threshold": 20})
    assert DensityDetector(swapped, 70).label == DensityDetector(DETECTORS["parameters"], 70).label


def test_column_is_named_after_the_detector():
    columns = [DensityDetector(KeypointDetector(name), 70).column for name in ("fast", "orb")]
    assert columns == ["keypoint_density_fast", "keypoint_density_orb"]


def test_detection_is_at_the_scale_of_an_average_crop():
    assert detection_side(192, 1.0) == 192
    assert detection_side(192, 0.67) == 210
    assert detection_side(100, 0.28) == 125  # crops have 0.64 of the area, 0.8 of each side


def test_density_grid_of_odd_shapes():
    generator = np.random.default_rng(0)
    for shape in [(1, 1), (1, 3000), (3000, 1), (64, 64), (40, 1000), (700, 300)]:
        grid = density_grid(generator.integers(0, 256, (*shape, 3), dtype=np.uint8), KeypointDetector(), 70)
        assert grid.shape == (DENSITY_GRID, DENSITY_GRID) and grid.dtype == np.uint8
    assert not density_grid(np.full((80, 90, 3), 128, np.uint8), KeypointDetector(), 70).any()


def test_density_grid_is_the_density_of_its_cells(astronaut):
    """At 4 px a cell: the same averages as Eq. 2's, to the rounding of 8 bits."""
    detector = KeypointDetector()
    resized = cv2.resize(astronaut, (256, 256), interpolation=cv2.INTER_LINEAR)
    grid = density_grid(astronaut, detector, 256)
    assert np.abs(grid / 255 - cell_density(detector(resized), 4)).max() <= 0.51 / 255


def test_density_grid_agrees_with_the_density_of_the_crop(astronaut):
    detector = KeypointDetector()
    grid = torch.from_numpy(density_grid(astronaut, detector, detection_side(192, 0.67)))
    mapped = resample_density(grid[None] / 255, torch.tensor([[0.0, 0.0, 1.0, 1.0]]), 24)[0].numpy()
    online = cell_density(detector(cv2.resize(astronaut, (192, 192), interpolation=cv2.INTER_LINEAR)), 8)
    assert np.corrcoef(mapped.ravel(), online.ravel())[0, 1] > 0.7
    assert abs(mapped.mean() - online.mean()) < 0.1
