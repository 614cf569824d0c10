"""Densities of whole images, and how they are stored."""

import io
import json
from random import Random

import cv2
import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from modeling_kamim.data.stored_density import DensityDetector, DensityFormat, density_label
from modeling_kamim.data.views import RandomView, crop_ratios
from modeling_kamim.errors import InputError
from modeling_kamim.limits import height_and_width, written_size
from modeling_kamim.objective.density import cell_density, grid_density, resample_density
from modeling_kamim.objective.keypoints import KEYPOINTS_VERSION, KeypointDetector
from modeling_kamim.objective.weighting import CellWeighting
from modeling_kamim.training.arguments import KamimArguments

grids = hnp.arrays(np.uint8, st.sampled_from([(1, 1), (64, 64), (256, 256)]))
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
    form = DensityFormat("density", label, len(grid))
    stored = form.encode(grid)
    assert len(stored) == form.num_bytes and stored.startswith(form.header)
    assert np.array_equal(form.decode(stored), grid) and form.decode(stored).dtype == np.uint8
    assert density_label(stored) == label


@given(grids)
def test_a_stored_density_is_a_picture(grid):
    stored = DensityFormat("density", DensityDetector(KeypointDetector(), 70).label, len(grid)).encode(grid)
    with Image.open(io.BytesIO(stored)) as image:
        assert image.mode == "L" and image.size == grid.shape
        assert np.array_equal(np.asarray(image), grid)
    assert np.array_equal(cv2.imdecode(np.frombuffer(stored, np.uint8), cv2.IMREAD_UNCHANGED), grid)


FORM = DensityFormat("density", "mine", 8)
STORED = FORM.encode(np.zeros((8, 8), np.uint8))


def test_a_decoded_density_is_its_own_array():
    torch.from_numpy(FORM.decode(STORED)).fill_(1)
    assert not FORM.decode(STORED).any()


@given(
    st.none()
    | st.binary(max_size=200)
    | st.text(max_size=9)
    | st.integers(0, len(STORED) - 1).map(lambda end: STORED[:end])
    | st.binary(min_size=1, max_size=3).map(lambda more: STORED + more)
    | st.integers(0, len(FORM.header) - 1).map(lambda at: STORED[:at] + bytes([STORED[at] ^ 1]) + STORED[at + 1 :])
)
def test_nothing_else_is_taken_for_a_density(stored):
    with pytest.raises(ValueError, match=r"there is none|damaged|and not of mine"):
        FORM.decode(stored)
    if not isinstance(stored, str):
        column = pa.chunked_array([pa.array([stored, STORED], pa.binary()), pa.array([STORED, None], pa.binary())])
        assert FORM.is_in(column).tolist() == [False, True, True, False]


@pytest.mark.parametrize(("label", "grid"), [("yours", 8), ("mine", 9)])
def test_another_density_is_told_from_a_damaged_one(label, grid):
    other = DensityFormat("density", label, grid).encode(np.zeros((grid, grid), np.uint8))
    assert density_label(other) == label
    with pytest.raises(ValueError, match=f"it is of {label}, and not of mine"):
        FORM.decode(other)
    assert density_label(other[:-1]) == "" and not FORM.is_in(pa.chunked_array([[other]])).any()


@pytest.mark.parametrize("detector", DETECTORS.values(), ids=DETECTORS)
def test_detector_stores_its_density_under_its_label(photographs, detector):
    densities = DensityDetector(detector, 70)
    stored = densities(photographs[0])
    assert np.array_equal(densities.format.decode(stored), densities.density(photographs[0]))
    assert density_label(stored) == densities.label


def test_label_says_what_was_detected():
    label = json.loads(DensityDetector(DETECTORS["parameters"], 70).label)
    assert label == {
        "detector": "fast",
        "footprint": "circle",
        "parameters": {"threshold": 20, "nonmaxSuppression": False},
        "image_size": 70,
        "crop_min_scale": 0.67,
        "version": KEYPOINTS_VERSION,
    }


def test_label_tells_densities_apart():
    labels = {DensityDetector(detector, side).label for detector in DETECTORS.values() for side in (70, 71)}
    labels.add(DensityDetector(KeypointDetector(), 70, 0.5).label)
    labels.add(DensityDetector(KeypointDetector(), 70, version=-1).label)
    assert len(labels) == 2 * len(DETECTORS) + 2


def test_label_does_not_depend_on_the_order_of_parameters():
    swapped = KeypointDetector(parameters={"nonmaxSuppression": False, "threshold": 20})
    assert DensityDetector(swapped, 70).label == DensityDetector(DETECTORS["parameters"], 70).label


def test_column_is_named_after_the_detector():
    columns = [DensityDetector(KeypointDetector(name), 70).column for name in ("fast", "orb")]
    assert columns == ["keypoint_density_fast", "keypoint_density_orb"]


@pytest.mark.parametrize("min_scale", [0.2, 0.67, 1.0])
@pytest.mark.parametrize("shape", [(300, 300), (300, 400), (500, 300), (100, 700)])
def test_detection_is_at_the_scale_of_an_average_crop(shape, min_scale):
    """Each side by itself: crops of most shapes are squeezed to squares."""
    height, width = shape
    detected_width, detected_height = DensityDetector(KeypointDetector(), 96, min_scale).detection_size(height, width)
    rng = Random(0)
    crops = [RandomView(min_scale)(height, width, rng) for _ in range(2000)]
    assert detected_height / height == pytest.approx(96 / np.mean([crop.height for crop in crops]), rel=0.01)
    assert detected_width / width == pytest.approx(96 / np.mean([crop.width for crop in crops]), rel=0.01)


@pytest.mark.parametrize("shape", [(300, 300), (300, 400), (500, 300)])
def test_detection_for_rectangles_is_at_the_scale_of_an_average_crop(shape):
    height, width = shape
    detector = DensityDetector(KeypointDetector(), [64, 96])
    rng, view = Random(0), RandomView(ratio=crop_ratios((64, 96)))
    crops = [view(height, width, rng) for _ in range(2000)]
    detected_width, detected_height = detector.detection_size(height, width)
    assert detected_height / height == pytest.approx(64 / np.mean([crop.height for crop in crops]), rel=0.01)
    assert detected_width / width == pytest.approx(96 / np.mean([crop.width for crop in crops]), rel=0.01)
    assert detector.grid == 96 and json.loads(detector.label)["image_size"] == [64, 96]


@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(1, 600), st.floats(0.01, 1.0))
def test_detection_size_is_bounded_by_that_of_the_crops(height, width, image_size, min_scale):
    densities = DensityDetector(KeypointDetector(), image_size, min_scale)
    for side in densities.detection_size(height, width):
        assert densities.grid <= image_size <= side <= 8 * image_size  # the grid never enlarges a map


def test_densities_of_odd_shapes():
    generator = np.random.default_rng(0)
    densities = DensityDetector(KeypointDetector(), 70)
    for shape in [(1, 1), (1, 3000), (3000, 1), (64, 64), (40, 1000), (700, 300)]:
        grid = densities.density(generator.integers(0, 256, (*shape, 3), dtype=np.uint8))
        assert grid.shape == (70, 70) and grid.dtype == np.uint8
    assert not densities.density(np.full((80, 90, 3), 128, np.uint8)).any()


def test_a_density_is_that_of_its_parts(astronaut):
    """At 2 px a part: the same averages as Eq. 2's, to the rounding of 8 bits."""
    detector = KeypointDetector()
    resized = cv2.resize(astronaut, (512, 512), interpolation=cv2.INTER_LINEAR)
    grid = DensityDetector(detector, 512, min_scale=1.0).density(astronaut)
    assert np.abs(grid / 255 - cell_density(detector(resized), 2)).max() <= 0.51 / 255


@pytest.mark.parametrize(("image_size", "grid", "num_bytes"), [(96, 96, 2**14), (192, 128, 2**15), (512, 256, 2**17)])
def test_a_grid_is_fine_and_small(image_size, grid, num_bytes):
    densities = DensityDetector(KeypointDetector(), image_size)
    assert densities.grid == grid and densities.format.num_bytes <= num_bytes
    assert grid >= 2 * image_size // 8  # two parts and more for a cell of the paper's size


@pytest.mark.parametrize(("image_size", "refused", "served"), [(96, 1, 2), (192, 2, 3), (512, 2, 4), (2048, 8, 16)])
def test_cells_that_the_grid_cannot_serve_are_refused(image_size, refused, served):
    densities = DensityDetector(KeypointDetector(), image_size)
    densities.check_cells(served, image_size)
    with pytest.raises(InputError, match=f"weight_patch_size is {refused}, .* or --keypoint_source online"):
        densities.check_cells(refused, image_size)


def test_the_smaller_the_crops_the_larger_the_cells_must_be():
    with pytest.raises(InputError, match="cells of 8 px and more"):
        DensityDetector(KeypointDetector(), 192, 0.1).check_cells(4, 192)


def views_of(image, seed):
    """Random crops of photographs of 2:3, 1:1 and 3:2."""
    height, width = image.shape[:2]
    shapes = [(height, width), (height, 2 * width // 3), (2 * height // 3, width)]
    rng = Random(seed)
    for shape in shapes:
        part = np.ascontiguousarray(image[: shape[0], : shape[1]])
        yield part, RandomView()(*shape, rng)


@pytest.mark.parametrize(("image_size", "cell"), [(192, 4), (192, 8), (384, 8)])
def test_stored_weights_agree_with_those_of_the_crop(astronaut, image_size, cell):
    """In place, and on average: the grid does not smooth the peaks away, and the scale is that of the crops."""
    densities = DensityDetector(KeypointDetector(), image_size)
    online, stored = [], []
    for seed in range(4):
        for image, view in views_of(astronaut, seed):
            online.append(cell_density(densities.detector(view.of_image(image, image_size)), cell))
            grid = torch.from_numpy(densities.density(image))[None] / 255
            stored.append(resample_density(grid, torch.tensor([view.crop_box()]), image_size // cell)[0].numpy())
    online, stored = (CellWeighting()(torch.from_numpy(np.stack(d))).numpy() for d in (online, stored))
    assert np.corrcoef(online.ravel(), stored.ravel())[0, 1] > 0.75
    assert stored.mean() / online.mean() == pytest.approx(1, abs=0.06)


@given(cell=st.integers(1, 9), rows=st.integers(1, 6), columns=st.integers(1, 6), seed=st.integers(0, 9))
def test_a_density_of_whole_cells_is_that_of_any_cells(cell, rows, columns, seed):
    keypoints = np.random.default_rng(seed).integers(0, 2, (rows * cell, columns * cell), np.uint8)
    assert np.allclose(grid_density(keypoints, rows, columns), cell_density(keypoints, cell), atol=1e-6)


def test_cells_that_cut_pixels_share_them():
    keypoints = np.array([[1, 0, 0], [1, 0, 0], [1, 1, 1]], np.uint8)
    whole = cell_density(keypoints.repeat(2, 0).repeat(2, 1), 3)  # the same picture with pixels of half the side
    assert np.allclose(grid_density(keypoints, 2, 2), whole, atol=1e-6)


@pytest.mark.parametrize("image_size", [64, [64, 96]])
def test_keypoints_are_detected_at_a_size_of_their_own(astronaut, image_size):
    settings = {"image_size": image_size, "keypoint_image_size": 192, "model_size": "tiny"}
    args = KamimArguments(**settings)
    sides = [192, 192] if image_size == 64 else [128, 192]
    assert height_and_width(args.densities().image_size) == tuple(sides)
    large = DensityDetector(KeypointDetector(), written_size(sides)).density(astronaut)
    assert (args.densities().density(astronaut) == large).all()
    assert (
        args.densities().density(astronaut).mean() < KamimArguments(image_size=64).densities().density(astronaut).mean()
    )


def test_a_size_of_detection_is_for_the_map_step():
    with pytest.raises(InputError, match="keypoint_image_size is 192, and keypoint_source is online"):
        KamimArguments(image_size=64, keypoint_image_size=192, keypoint_source="online")


def test_reduced_jpegs_are_for_the_map_step():
    with pytest.raises(InputError, match="jpeg_draft is true, and keypoint_source is online"):
        KamimArguments(jpeg_draft=True, keypoint_source="online")
    assert KamimArguments(jpeg_draft=True, keypoint_source="online", weighting="none").jpeg_draft
    assert KamimArguments(jpeg_draft=True).transform("image", 16).jpeg_draft
