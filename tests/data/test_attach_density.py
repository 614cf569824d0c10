"""The cached map steps: densities and bad images."""

import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import datasets
import numpy as np
import pytest
from PIL import Image

from modeling_kamim.data import attach_density as map_steps
from modeling_kamim.data.attach_density import attach_keypoint_density, find_bad_densities, prepare_images
from modeling_kamim.data.decoding import BadImageError
from modeling_kamim.data.loading import keep_encoded, load_images
from modeling_kamim.data.stored_density import DensityDetector, OtherDensitiesError
from modeling_kamim.errors import InputError
from modeling_kamim.objective.keypoints import KeypointDetector

FAST = DensityDetector(KeypointDetector(), 70)
DAMAGED = [None, b"", b"not a density", bytes(5000)]


def png(array):
    return {"bytes": cv2.imencode(".png", array[..., ::-1])[1].tobytes(), "path": None}


def encoded(images, **columns):
    dataset = datasets.Dataset.from_dict({"image": images, **columns})
    return dataset.cast_column("image", datasets.Image(decode=False))


@pytest.fixture
def folder(tmp_path, astronaut, photographs):
    """Four photographs in a folder; a is the first, d the last."""
    path = tmp_path / "photos"
    path.mkdir()
    for name, image in zip("abcd", [astronaut[:256, 100:356], *photographs[:3]], strict=True):
        Image.fromarray(image).save(path / f"{name}.png")
    return path


def load(folder):
    return keep_encoded(load_images(str(folder))["train"], "image")


def has_densities(dataset, densities):
    try:
        return find_bad_densities(dataset, densities, "image") == {}
    except OtherDensitiesError:
        return False


def names(dataset):
    return [Path(image["path"]).stem for image in dataset["image"]]


def test_attaching_keeps_the_rows_and_adds_one_column(folder):
    dataset = load(folder)
    attached, bad = attach_keypoint_density(dataset, FAST, "image")
    assert bad == [] and set(attached.column_names) == {"image", FAST.column}
    assert attached.features[FAST.column] == datasets.Value("binary")
    assert names(attached) == list("abcd")
    for row, image in zip(attached, dataset, strict=True):
        with Image.open(image["image"]["path"]) as file:
            expected = FAST.density(np.asarray(file))
        assert np.array_equal(FAST.format.decode(row[FAST.column]), expected)


def test_densities_of_several_detectors_stand_side_by_side(folder):
    orb = DensityDetector(KeypointDetector("orb"), 70)
    one = prepare_images(load(folder), "image", FAST)[0]
    both = prepare_images(one, "image", orb)[0]
    assert has_densities(both, FAST) and has_densities(both, orb)
    assert both[FAST.column][:] == one[FAST.column][:]
    assert both[orb.column][:] == attach_keypoint_density(load(folder), orb, "image")[0][orb.column][:]


@pytest.mark.parametrize(
    "other",
    [
        DensityDetector(KeypointDetector("orb"), 70),
        DensityDetector(KeypointDetector(footprint="point"), 70),
        DensityDetector(KeypointDetector(parameters={"threshold": 20}), 70),
        DensityDetector(KeypointDetector(), 71),
        DensityDetector(KeypointDetector(), 70, 0.5),
        DensityDetector(KeypointDetector(), 70, version=-1),
    ],
    ids=["detector", "footprint", "parameters", "image_size", "scale", "version"],
)
def test_only_the_very_same_densities_are_taken_for_them(photographs, other):
    dataset = encoded([png(photographs[0])])
    for held, asked in [(FAST, other), (other, FAST)]:
        attached = attach_keypoint_density(dataset, held, "image")[0]
        assert has_densities(attached, held) and not has_densities(attached, asked)


def test_densities_that_are_not_there_are_not_found(photographs):
    dataset = encoded([png(photographs[0])])
    attached = attach_keypoint_density(dataset, FAST, "image")[0]
    assert not has_densities(dataset, FAST)
    assert not has_densities(attached.select([]), FAST)
    assert not has_densities(dataset.add_column(FAST.column, ["text"]), FAST)


@pytest.mark.parametrize("content", DAMAGED)
def test_a_foreign_column_of_the_same_name_is_not_taken_for_densities(photographs, content):
    dataset = encoded([png(photographs[0])], **{FAST.column: [content]})
    dataset = dataset.cast_column(FAST.column, datasets.Value("binary"))
    assert not has_densities(dataset, FAST)


def with_densities(dataset, values):
    """The data set with other values in the column of its densities."""
    dataset = dataset.remove_columns(FAST.column) if FAST.column in dataset.column_names else dataset
    return dataset.add_column(FAST.column, values).cast_column(FAST.column, datasets.Value("binary"))


@pytest.mark.parametrize("damaged", [*DAMAGED, "cut"])
def test_a_damaged_density_is_named_or_left_out(folder, damaged):
    """Wherever it lies; beside an image that cannot be decoded both are listed once."""
    dataset = attach_keypoint_density(load(folder), FAST, "image")[0]
    stored = dataset[FAST.column][:]
    stored[2] = stored[2][:-1] if damaged == "cut" else damaged
    dataset = with_densities(dataset, stored)
    with pytest.raises(BadImageError, match=r"^row 2: .*density of .*c\.png \((there is none|it is damaged)"):
        prepare_images(dataset, "image", FAST)
    (folder / "b.png").write_bytes(b"broken")
    kept, bad = prepare_images(dataset, "image", FAST, skip_bad_images=True)
    assert names(kept) == ["a", "d"] and ["b.png" in bad[0], "row 2: " in bad[1], len(bad)] == [True, True, 2]
    assert kept[FAST.column][:] == [stored[0], stored[3]]
    shuffled = dataset.select([3, 2])  # as --max_train_samples does
    with pytest.raises(BadImageError, match="^row 2: "):
        prepare_images(shuffled, "image", FAST)


@pytest.mark.parametrize("other", [DensityDetector(KeypointDetector(), 71), DensityDetector(KeypointDetector(), 70, 1)])
@pytest.mark.parametrize("row", [0, 3])
def test_one_density_of_other_settings_anywhere_is_found(folder, caplog, row, other):
    dataset = attach_keypoint_density(load(folder), FAST, "image")[0]
    expected = dataset[FAST.column][:]
    stored = [*expected]
    stored[row] = attach_keypoint_density(load(folder), other, "image")[0][FAST.column][row]
    prepared, bad = prepare_images(with_densities(dataset, stored), "image", FAST)
    assert prepared[FAST.column][:] == expected and bad == []
    [warning] = [record for record in caplog.records if record.levelname == "WARNING"]
    message = warning.getMessage()
    assert f"row {row}: it is of {other.label}, and not of {FAST.label}" in message
    assert "detected anew on all 4 images" in message


def test_detecting_again_is_said_where_densities_were_stored_alone(folder, caplog):
    stored = prepare_images(load(folder), "image", FAST)[0]
    assert caplog.records == []
    prepare_images(stored, "image", DensityDetector(KeypointDetector("orb"), 70))
    assert "holds keypoint_density_fast, and this run needs keypoint_density_orb" in caplog.text


@pytest.mark.parametrize("suffix", ["", ".parquet"])
def test_densities_survive_being_saved(folder, tmp_path, suffix):
    attached = attach_keypoint_density(load(folder), FAST, "image")[0]
    path = tmp_path / f"saved{suffix}"
    attached.to_parquet(path) if suffix else attached.save_to_disk(path)
    loaded = load_images(str(path))["train"]
    assert has_densities(loaded, FAST)
    assert loaded[FAST.column][:] == attached[FAST.column][:]


def test_densities_that_are_there_are_not_detected_again(folder):
    attached = attach_keypoint_density(load(folder), FAST, "image")[0].select([2, 0])
    before = cache_files()
    prepared, bad = prepare_images(attached, "image", FAST)
    assert prepared is attached and bad == [] and cache_files() == before


def test_other_densities_of_the_same_detector_are_replaced(folder):
    other = DensityDetector(KeypointDetector(parameters={"threshold": 60}), 70)
    attached = prepare_images(load(folder), "image", FAST)[0]
    replaced = prepare_images(attached, "image", other)[0]
    assert replaced.column_names == attached.column_names and has_densities(replaced, other)
    assert replaced[FAST.column][:] == attach_keypoint_density(load(folder), other, "image")[0][FAST.column][:]


def test_two_processes_give_the_same(folder):
    (folder / "bb.png").write_bytes(b"broken")
    one, bad_of_one = attach_keypoint_density(load(folder), FAST, "image", skip_bad_images=True)
    two, bad_of_two = attach_keypoint_density(load(folder), FAST, "image", skip_bad_images=True, num_proc=2)
    assert names(one) == names(two) == list("abcd")
    assert one[FAST.column][:] == two[FAST.column][:]
    assert bad_of_one == bad_of_two and len(bad_of_one) == 1


@pytest.mark.parametrize("densities", [FAST, None])
def test_bad_images_are_named_or_left_out(folder, densities):
    good = prepare_images(load(folder), "image", densities, skip_bad_images=True)[0]
    half = (folder / "c.png").read_bytes()
    broken = {"aa_text": b"not an image", "b_empty": b"", "c_half": half[: len(half) // 2]}
    for name, data in broken.items():
        (folder / f"{name}.png").write_bytes(data)
    if densities is not None:
        with pytest.raises(BadImageError, match="aa_text.png"):
            prepare_images(load(folder), "image", densities)
    kept, bad = prepare_images(load(folder), "image", densities, skip_bad_images=True)
    assert names(kept) == names(good) == list("abcd")
    if densities is not None:
        assert kept[densities.column][:] == good[densities.column][:]
    assert [next(name for name in broken if name in line) for line in bad] == list(broken)


def test_bad_images_without_a_path_are_named_by_their_row(photographs):
    broken = {"bytes": b"broken", "path": None}
    dataset = encoded([png(photographs[0]), broken, png(photographs[1])], label=[0, 1, 2])
    with pytest.raises(BadImageError, match="row 1"):
        prepare_images(dataset, "image", FAST)
    kept, bad = prepare_images(dataset, "image", FAST, skip_bad_images=True)
    assert kept["label"][:] == [0, 2] and len(bad) == 1 and "row 1" in bad[0]


@pytest.mark.parametrize("densities", [FAST, None])
def test_nothing_left_is_an_error(densities):
    dataset = encoded([{"bytes": b"x", "path": None}] * 2)
    with pytest.raises(InputError, match="none of the 2 images"):
        prepare_images(dataset, "image", densities, skip_bad_images=True)


def test_nothing_is_done_that_is_not_asked_for(photographs):
    dataset = encoded([png(photographs[0])])
    before = cache_files()
    assert prepare_images(dataset, "image") == (dataset, []) and cache_files() == before


def cache_files():
    return {str(path) for path in Path(datasets.config.HF_DATASETS_CACHE).rglob("cache-*.arrow")}


def test_what_changes_the_density_changes_the_cache(folder, monkeypatch):
    dataset = load(folder)

    def new_files(densities):
        before = cache_files()
        attach_keypoint_density(dataset, densities, "image")
        return len(cache_files() - before)

    assert new_files(FAST) == 1
    assert new_files(DensityDetector(KeypointDetector(), 70)) == 0
    assert new_files(DensityDetector(KeypointDetector(parameters={"threshold": 20}), 70)) == 1
    assert new_files(DensityDetector(KeypointDetector(footprint="point"), 70)) == 1
    assert new_files(DensityDetector(KeypointDetector("orb"), 70)) == 1
    assert new_files(DensityDetector(KeypointDetector(), 105)) == 1
    assert new_files(DensityDetector(KeypointDetector(), 70, 0.5)) == 1
    assert new_files(FAST) == 0
    assert new_files(DensityDetector(KeypointDetector(), 70, version=-1)) == 1
    monkeypatch.setattr(map_steps, "DECODER_VERSION", -1)
    assert new_files(FAST) == 1


RUN = """
import json, sys
from pathlib import Path
from random import Random
from modeling_kamim.data.loading import keep_encoded, load_images
from modeling_kamim.data.stored_density import DensityDetector
from modeling_kamim.objective.keypoints import KeypointDetector
from modeling_kamim.data.attach_density import attach_keypoint_density
from modeling_kamim.data.samples import MaskedImageTransform
from modeling_kamim.data.views import RandomView
from modeling_kamim.objective.density import resample_density
from modeling_kamim.objective.weighting import CellWeighting

folder, cache, may_detect = sys.argv[1:]
if may_detect == "no":
    def refuse(self, image):
        raise SystemExit("detected again")
    detect, KeypointDetector.__call__ = KeypointDetector.__call__, refuse

def files():
    return {path.name: path.stat().st_mtime_ns for path in Path(cache).rglob("cache-*.arrow")}

def attach(name):
    dataset = keep_encoded(load_images(folder)["train"], "image")
    return attach_keypoint_density(dataset, DensityDetector(KeypointDetector(name), 70), "image")[0]

states = []
dataset = attach("fast")
states.append(files())
weights = set()
for temperature in (0.1, 0.5):
    for cell in (8, 16):
        transform = MaskedImageTransform(
            "image", 64, 8, 16, 0.6, cell, RandomView(), densities=DensityDetector(KeypointDetector("fast"), 70)
        )
        sample = transform(attach("fast")[0], Random(0))
        density = resample_density(sample["keypoint_density"][None] / 255, sample["crop_box"][None], 64 // cell)
        weights.add(float(CellWeighting("keypoint", temperature)(density).max()))
assert len(weights) == 4
states.append(files())
if may_detect == "no":
    KeypointDetector.__call__ = detect
attach("orb")
states.append(files())
print(json.dumps(states))
"""


def test_another_process_finds_the_cache(folder, tmp_path):
    cache = tmp_path / "cache"
    env = {**os.environ, "HF_DATASETS_CACHE": str(cache)}

    def run(may_detect):
        command = [sys.executable, "-c", RUN, str(folder), str(cache), may_detect]
        root = Path(__file__).parents[2]
        done = subprocess.run(command, cwd=root, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    fast, swept, orb = run("yes")
    assert len(fast) == 1
    assert swept == fast  # temperature and weight_patch_size are applied later
    assert len(orb) == 2
    assert run("no") == [orb, orb, orb]
