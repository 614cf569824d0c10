"""Every row of the table of density sources: maps, densities, settings, messages."""

import pickle

import cv2
import numpy as np
import pytest
from datasets.fingerprint import Hasher
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from modeling_kamim.api.groups import PREPARATION_ARGUMENTS, PRETRAINING_ARGUMENTS
from modeling_kamim.commands.parser import parse
from modeling_kamim.data.stored_density import DensityDetector
from modeling_kamim.errors import InputError
from modeling_kamim.objective.density import cell_density, grid_density
from modeling_kamim.objective.keypoints import KeypointDetector
from modeling_kamim.objective.sources.table import SOURCES
from modeling_kamim.training.arguments import KamimArguments

MISSING = {"agast"} if not hasattr(cv2, "AgastFeatureDetector") else set()
HERE = [name for name, row in SOURCES.items() if not row.weights and name not in MISSING]
DENSE = [name for name, row in SOURCES.items() if row.gives == "map" and not row.weights]
CORNERS = {"harris": True, "gftt": False}


@pytest.mark.parametrize("name", HERE)
@given(image=hnp.arrays(np.uint8, st.tuples(st.integers(8, 40), st.integers(8, 40), st.just(3))))
def test_a_map_has_the_size_of_any_image_and_values_from_0_to_1(name, image):
    found = KeypointDetector(name)(image)
    assert found.shape == image.shape[:2] and np.isfinite(found).all() and found.min() >= 0 and found.max() <= 1
    assert found.dtype == (np.float32 if name in DENSE else np.uint8)
    if name not in DENSE:
        assert set(np.unique(found)) <= {0, 1}


@pytest.mark.parametrize("name", HERE)
def test_maps_of_many_images_are_those_of_each(name, photographs):
    detector = KeypointDetector(name)
    together = detector.maps(photographs)
    assert all(np.array_equal(one, detector(image)) for one, image in zip(together, photographs, strict=True))
    assert detector.maps([]) == []


@pytest.mark.parametrize("name", HERE)
def test_a_flat_image_has_an_empty_map(name):
    assert not KeypointDetector(name)(np.full((50, 40, 3), (90, 12, 200), np.uint8)).any()


@pytest.mark.parametrize("name", CORNERS)
@pytest.mark.parametrize("footprint", ["circle", "point"])
def test_corners_are_those_of_opencv_drawn(name, footprint, photographs):
    detector = cv2.GFTTDetector.create(qualityLevel=0.05, useHarrisDetector=CORNERS[name])
    for image in photographs[:3]:
        keypoints = detector.detect(image, None)
        expected = np.zeros(image.shape, np.uint8)
        if footprint == "circle":
            expected = cv2.drawKeypoints(expected, keypoints, None, color=(255, 255, 255))
        for keypoint in keypoints if footprint == "point" else []:
            expected[round(keypoint.pt[1]), round(keypoint.pt[0])] = 255
        found = KeypointDetector(name, footprint, {"qualityLevel": 0.05})(image)
        assert len(keypoints) > 3 and np.array_equal(found, expected[..., 0] > 0)


@pytest.mark.parametrize("name", DENSE)
@given(shape=st.tuples(st.integers(1, 5), st.integers(1, 5)), cell=st.integers(1, 8), seed=st.integers(0, 9))
def test_densities_of_cells_are_the_means_of_the_map(name, shape, cell, seed):
    sides = (shape[0] * cell, shape[1] * cell)
    found = KeypointDetector(name)(np.random.default_rng(seed).integers(0, 256, (*sides, 3), np.uint8))
    means = [[found[i * cell :][:cell, j * cell :][:, :cell].mean() for j in range(shape[1])] for i in range(shape[0])]
    for density in (cell_density(found, cell), grid_density(found, *shape)):
        assert density.dtype == np.float32 and density.max() <= 1 + 1e-6
        assert np.allclose(density, means, atol=1e-5)


@pytest.mark.parametrize("name", DENSE)
def test_a_stored_density_is_the_map_at_the_size_of_detection(name, photographs):
    densities = DensityDetector(KeypointDetector(name), 70)
    stored = densities.finish([densities.begin(image) for image in photographs])
    assert densities.column == f"keypoint_density_{name}" and f'"detector": "{name}"' in densities.label
    for image, pgm in zip(photographs, stored, strict=True):
        small = cv2.resize(image, densities.detection_size(*image.shape[:2]))
        expected = grid_density(KeypointDetector(name)(small), 70, 70)
        assert np.abs(densities.format.decode(pgm) / 255 - expected).max() <= 0.501 / 255
        assert pgm == densities(image)
        assert densities.density(image).std() > 1


@pytest.mark.parametrize("name", HERE)
def test_settings_survive_a_pickle_and_decide_the_hash(name, photographs):
    detector = KeypointDetector(name)
    before = Hasher.hash(detector)
    drawn = detector(photographs[0])
    copy = pickle.loads(pickle.dumps(detector))
    assert copy == detector and Hasher.hash(detector) == Hasher.hash(copy) == before
    assert np.array_equal(copy(photographs[0]), drawn)
    assert len({Hasher.hash(KeypointDetector(other)) for other in HERE}) == len(HERE)


@pytest.mark.parametrize(
    ("name", "parameters", "told"),
    [
        ("sobel", {"size": 4}, "size of sobel is 4; give an odd number"),
        ("sobel", {"size": "3"}, "size of sobel is '3'"),
        ("sobel", {"size": 3.0}, "size of sobel is 3.0"),
        ("laplacian", {"size": 33}, "size of laplacian is 33"),
        ("variance", {"size": 1}, "size of variance is 1; give an odd number of pixels from 3 to 31"),
        ("entropy", {"size": True}, "size of entropy is True"),
        ("variance", {"percentile": 0}, "percentile of variance is 0"),
        ("sobel", {"percentile": "95"}, "percentile of sobel is '95'"),
        ("sobel", {"percentile": float("nan")}, "percentile of sobel is nan"),
        ("entropy", {"percentile": 95}, "entropy refuses .*percentile"),
        ("harris", {"qualityLevel": "x"}, "harris refuses .*qualityLevel"),
        ("harris", {"useHarrisDetector": False}, "harris refuses .*useHarrisDetector"),
        ("sobel", {"threshold": 3}, "sobel refuses .*threshold"),
    ],
)
def test_wrong_parameters_are_refused_in_a_line(name, parameters, told):
    with pytest.raises(InputError, match=told) as error:
        KeypointDetector(name, parameters=parameters)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", DENSE)
def test_a_map_has_neither_footprint_nor_keypoints(name, photographs):
    with pytest.raises(InputError, match=f"keypoint_footprint is 'point', and keypoint_detector {name} draws no"):
        KeypointDetector(name, "point")
    with pytest.raises(InputError, match=f"{name} gives a map without keypoints"):
        KeypointDetector(name).detect(photographs[0])
    with pytest.raises(InputError, match=r"float32 \(9, 9, 3\); turn floats"):
        KeypointDetector(name)(np.zeros((9, 9, 3), np.float32))


def test_agast_says_what_to_do_where_opencv_lacks_it(monkeypatch):
    monkeypatch.delattr(cv2, "AgastFeatureDetector", raising=False)
    with pytest.raises(InputError, match='has no AgastFeatureDetector; .*: pip install "opencv-python<5"'):
        KeypointDetector("agast", parameters={"threshold": 11})


def test_agast_is_opencvs_where_it_is_there(monkeypatch, photographs):
    class Agast:
        create = staticmethod(cv2.FastFeatureDetector.create)

    monkeypatch.setattr(cv2, "AgastFeatureDetector", Agast, raising=False)
    found = KeypointDetector("agast", "point", {"threshold": 12}).detect(photographs[0])
    assert len(found) == len(cv2.FastFeatureDetector.create(threshold=12).detect(photographs[0], None)) > 0


@pytest.mark.parametrize("name", HERE)
def test_the_commands_take_it(monkeypatch, tmp_path, name):
    monkeypatch.setattr("sys.argv", ["kamim"])
    words = ["--keypoint_detector", name, "--use_cpu", "--output_dir", str(tmp_path / "run")]
    groups = parse(PRETRAINING_ARGUMENTS, words)
    (kamim,) = (group for group in groups if isinstance(group, KamimArguments))
    assert kamim.detector() == KeypointDetector(name)
    _, prepared, _ = parse(
        PREPARATION_ARGUMENTS, ["--dataset_name", "x", "--output_dir", str(tmp_path / "p"), "--keypoint_detector", name]
    )
    assert [density.detector for density in prepared.densities()] == [KeypointDetector(name)]


def test_an_unknown_source_is_refused_with_all_names():
    with pytest.raises(InputError, match="surf.*fast.*sift.*orb.*harris.*sobel"):
        parse(PRETRAINING_ARGUMENTS, ["--keypoint_detector", "surf", "--use_cpu"])


def test_parameters_of_a_preparation_belong_to_one_source(tmp_path):
    def densities(*names):
        words = ["--dataset_name", "x", "--output_dir", str(tmp_path / "p"), "--keypoint_detector", *names]
        return parse(PREPARATION_ARGUMENTS, [*words, "--keypoint_detector_args", '{"size": 5}'])[1].densities()

    assert densities("sobel")[0].detector.parameters == {"size": 5}
    with pytest.raises(InputError, match="has 2 sources; give one source"):
        densities("sobel", "variance")
