"""Keypoint maps against OpenCV's own drawing."""

import pickle
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from datasets.fingerprint import Hasher
from hypothesis import given
from hypothesis import strategies as st

from modeling_kamim.errors import InputError
from modeling_kamim.objective.keypoints import FOOTPRINTS, KeypointDetector, draw_rings
from modeling_kamim.objective.sources.table import PAPER_DETECTORS

OPENCV = {"fast": cv2.FastFeatureDetector_create, "sift": cv2.SIFT_create, "orb": cv2.ORB_create}


def opencv_rings(keypoints, shape):
    """OpenCV's drawing in one color on black, binarised."""
    canvas = np.zeros((*shape[:2], 3), np.uint8)
    return cv2.drawKeypoints(canvas, keypoints, None, color=(0, 255, 0)).any(axis=2).astype(np.uint8)


def noise(shape=(70, 53), seed=0):
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8)


@pytest.mark.parametrize("name", PAPER_DETECTORS)
def test_circle_map_is_opencvs_drawing_on_photographs(name, photographs):
    detector = KeypointDetector(name)
    for image in photographs:
        keypoints = OPENCV[name]().detect(image, None)
        assert len(keypoints) > 2
        drawn = detector(image)
        assert drawn.dtype == np.uint8 and drawn.shape == image.shape[:2]
        assert np.array_equal(drawn, opencv_rings(keypoints, image.shape))
        assert np.array_equal(drawn, draw_rings(keypoints, image.shape[:2]))


@pytest.mark.parametrize("name", PAPER_DETECTORS)
@pytest.mark.parametrize("shape", [(70, 53), (16, 90), (33, 33)])
def test_circle_map_is_opencvs_drawing_on_noise(name, shape):
    for seed in range(5):
        image = noise(shape, seed)
        keypoints = OPENCV[name]().detect(image, None)
        assert np.array_equal(KeypointDetector(name)(image), opencv_rings(keypoints, shape))
    if name == "fast":  # noise fires right up to the border that FAST leaves
        columns = [keypoint.pt[0] for keypoint in keypoints]
        assert min(columns) <= 4 and max(columns) >= shape[1] - 5


@given(st.lists(st.tuples(st.integers(3, 17), st.integers(3, 26)), max_size=12))
def test_fast_dilation_equals_drawing_anywhere(places):
    """Whole-pixel keypoints anywhere that FAST can find them: at least 3 px from the border."""
    keypoints = [cv2.KeyPoint(float(column), float(row), 7.0) for row, column in places]
    drawn = KeypointDetector("fast").draw(keypoints, (21, 30))
    assert np.array_equal(drawn, opencv_rings(keypoints, (21, 30)))


def test_ring_is_a_ring_of_radius_three():
    drawn = KeypointDetector("fast").draw([cv2.KeyPoint(10.0, 12.0, 7.0)], (25, 25))
    rows, columns = np.nonzero(drawn)
    distance = np.hypot(rows - 12, columns - 10)
    assert drawn.sum() == 48
    assert drawn[12, 10] == 0 and 1.5 < distance.min() and distance.max() < 4.5
    assert drawn[12, 13] == drawn[9, 10] == 1


@pytest.mark.parametrize("name", PAPER_DETECTORS)
def test_point_map_sets_exactly_the_rounded_keypoints(name, photographs):
    for image in photographs[:3]:
        expected = np.zeros(image.shape[:2], np.uint8)
        for keypoint in OPENCV[name]().detect(image, None):
            column, row = keypoint.pt
            expected[round(row), round(column)] = 1
        assert np.array_equal(KeypointDetector(name, "point")(image), expected)


def test_point_map_keeps_keypoints_that_round_past_the_border():
    keypoints = [cv2.KeyPoint(29.7, 20.6, 3.0), cv2.KeyPoint(-0.4, -0.2, 3.0)]
    points = KeypointDetector("sift", "point").draw(keypoints, (21, 30))
    assert sorted(zip(*np.nonzero(points), strict=True)) == [(0, 0), (20, 29)]


def test_parameters_reach_opencv(photographs):
    image = photographs[0]
    few, many = (len(KeypointDetector("fast", parameters={"threshold": t}).detect(image)) for t in (60, 10))
    assert few == len(cv2.FastFeatureDetector_create(threshold=60).detect(image, None))
    assert many == len(KeypointDetector("fast").detect(image))
    assert 0 < few < many
    assert len(KeypointDetector("orb", parameters={"nfeatures": 20}).detect(image)) <= 20
    without_suppression = KeypointDetector("fast", parameters={"nonmaxSuppression": False}).detect(image)
    assert len(without_suppression) > many


@pytest.mark.parametrize("footprint", FOOTPRINTS)
@pytest.mark.parametrize("name", PAPER_DETECTORS)
def test_flat_image_has_an_empty_map(name, footprint):
    drawn = KeypointDetector(name, footprint)(np.full((64, 48, 3), 90, np.uint8))
    assert drawn.shape == (64, 48) and not drawn.any()


@pytest.mark.parametrize(
    "settings, expected",
    [
        ({"name": "surf"}, ["surf", "fast", "sift", "orb"]),
        ({"footprint": "square"}, ["square", "circle", "point"]),
        ({"parameters": {"treshold": 3}}, ["fast", "treshold"]),
        ({"parameters": {"threshold": "high"}}, ["fast", "threshold"]),
        ({"parameters": {"threshold": [3]}}, ["fast", "threshold"]),
        ({"name": "orb", "parameters": {"threshold": 3}}, ["orb", "threshold"]),
    ],
)
def test_wrong_settings_raise_and_say_what_is_wrong(settings, expected):
    with pytest.raises(InputError) as error:
        KeypointDetector(**settings)
    assert all(word in str(error.value) for word in expected)


def test_pickle_keeps_the_settings(photographs):
    detector = KeypointDetector("fast", "point", {"threshold": 60})
    detector(photographs[0])  # OpenCV's object exists by now
    copy = pickle.loads(pickle.dumps(detector))
    assert copy == detector
    assert np.array_equal(copy(photographs[0]), detector(photographs[0]))


def test_every_setting_changes_the_hash_and_use_does_not(photographs):
    settings = [("fast",), ("sift",), ("fast", "point"), ("fast", "circle", {"threshold": 20})]
    hashes = [Hasher.hash(KeypointDetector(*setting)) for setting in settings]
    assert len(set(hashes)) == len(settings)
    detector = KeypointDetector()
    detector(photographs[0])
    assert Hasher.hash(detector) == hashes[0]


def test_hash_is_equal_in_another_process():
    detector = KeypointDetector("fast", "circle", {"threshold": 20, "nonmaxSuppression": True})
    script = (
        "import sys, numpy as np; from datasets.fingerprint import Hasher\n"
        "from modeling_kamim.objective.keypoints import KeypointDetector\n"
        "d = KeypointDetector('fast', 'circle', {'threshold': 20, 'nonmaxSuppression': True})\n"
        "d(np.zeros((32, 32, 3), np.uint8)); print(Hasher.hash(d))"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1] == Hasher.hash(detector)


@pytest.mark.parametrize("name", ["fast", "sift", "orb"])
@pytest.mark.parametrize(
    "image, told",
    [
        (np.random.default_rng(0).random((32, 32, 3), dtype=np.float32), r"float32 \(32, 32, 3\)"),
        (np.zeros((32, 32), np.uint8), r"uint8 \(32, 32\)"),
        (np.zeros((32, 32, 4), np.uint8), r"uint8 \(32, 32, 4\)"),
        (np.zeros((3, 32, 32), np.uint8), r"uint8 \(3, 32, 32\)"),
        (np.zeros((32, 32, 3), np.uint16), r"uint16 \(32, 32, 3\)"),
        (torch.zeros(32, 32, 3, dtype=torch.uint8), r"torch.uint8 \(32, 32, 3\)"),
        ([[0]], "list"),
    ],
    ids=["floats", "gray", "alpha", "channels first", "16 bits", "tensor", "list"],
)
def test_what_is_no_8_bit_rgb_image_is_refused(name, image, told):
    """Floats in [0, 1] would have no keypoints, without a word."""
    detector = KeypointDetector(name)
    for detect in (detector, detector.detect):
        with pytest.raises(InputError, match=f"{told}; turn floats") as error:
            detect(image)
        assert "\n" not in str(error.value)
