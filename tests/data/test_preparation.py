"""Preparation of batches, shards and whole data sets; restarts; training on the result; Ray."""

import copy
import io
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from random import Random

import datasets
import numpy as np
import pytest
import yaml
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from modeling_kamim.commands import prepare as script
from modeling_kamim.commands import pretrain as run_mim
from modeling_kamim.data import attach_density as map_steps
from modeling_kamim.data.attach_density import attach_keypoint_density, prepare_images
from modeling_kamim.data.decoding import BadImageError, decode_image, read_deep_pixels
from modeling_kamim.data.loading import keep_encoded, load_images
from modeling_kamim.data.preparation import Preparation, ShardJob, prepare_dataset
from modeling_kamim.data.stored_density import DensityDetector, density_label
from modeling_kamim.data.views import RandomView
from modeling_kamim.errors import InputError
from modeling_kamim.models.pixel_range import PixelRange
from modeling_kamim.objective.keypoints import KeypointDetector

ROOT = Path(__file__).parents[2]
SIZE, SHORT_SIDE = 48, 64
SHARDS = [f"train-0000{n}-of-00003.parquet" for n in range(3)] + [
    f"validation-0000{n}-of-00002.parquet" for n in (0, 1)
]


def densities(*names):
    return tuple(DensityDetector(KeypointDetector(name), SIZE) for name in names)


def preparation(*detectors, **settings):
    return Preparation("image", SIZE, densities(*detectors), **settings)


def encode(pixels, mode="RGB", file_format="PNG", **options):
    image = Image.fromarray(pixels).convert("L" if mode == "I;16" else mode)
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image, np.uint16) * 257)
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def write_class_folders(folder, photographs):
    """Six images to train on and three for validation, of two classes."""
    for split, images in {"train": photographs, "validation": [image[::-1] for image in photographs[:3]]}.items():
        for number, pixels in enumerate(images):
            file = folder / split / ("cat" if number % 2 else "astronaut") / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(file)
    return folder


@pytest.fixture
def source(tmp_path, photographs):
    return write_class_folders(tmp_path / "photos", photographs)


@pytest.fixture
def broken_source(source):
    """Class folders with three broken images: the whole first shard of two rows, and a half of the last."""
    for name in ("train/astronaut/0.png", "train/astronaut/2.png", "validation/cat/1.png"):
        (source / name).write_bytes(b"no image")
    return source


@pytest.fixture(autouse=True)
def datasets_settings(monkeypatch, tmp_path):
    """A cache for each test, and the progress bars that the script turns off."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    yield
    datasets.enable_progress_bars()


def encoded(folder):
    images = load_images(str(folder))
    return DatasetDict({split: keep_encoded(rows, "image") for split, rows in images.items()})


def prepare(monkeypatch, source, output_dir, *arguments):
    """Run the script, with two rows in a shard."""
    settings = ["--image_size", str(SIZE), "--rows_per_shard", "2", *arguments]
    monkeypatch.setattr(sys, "argv", ["kamim prepare", str(source), str(output_dir), *settings])
    script.main()
    return output_dir


def shards(output_dir):
    """{name: content} of the shards, and of anything else that is not a list of bad images."""
    files = sorted((output_dir / "data").iterdir())
    return {file.name: file.read_bytes() for file in files if not file.name.endswith("bad_images.txt")}


def written_at(output_dir):
    return {file.name: file.stat().st_mtime_ns for file in (output_dir / "data").iterdir()}


# Batches


@pytest.fixture
def batch(tmp_path, photographs):
    """Images by bytes, one of them by path alone and one without a name; the third is not larger than needed."""
    file = tmp_path / "on_disk.png"
    Image.fromarray(photographs[0]).save(file)
    images = [{"bytes": encode(pixels), "path": f"/photos/of/someone/{n}.png"} for n, pixels in enumerate(photographs)]
    images[0] = {"bytes": None, "path": str(file)}
    images[5]["path"] = None
    return {"image": images, "label": [3, 1, 4, 1, 5, 9], "notes": [[{"word": str(n)}] * n for n in range(6)]}


INDICES = list(range(10, 16))


def test_preparation_is_pure(batch):
    before = copy.deepcopy(batch)
    prepared = preparation("fast", "orb")
    assert prepared(batch, INDICES) == prepared(batch, INDICES)
    assert batch == before


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "I;16"])
def test_large_images_shrink_to_area_averages(photographs, mode):
    for pixels in photographs:
        original = {"bytes": encode(pixels, mode), "path": None}
        columns, bad = preparation()({"image": [original]}, [0])
        deep = read_deep_pixels(original)
        pixel_range = None if deep is None else PixelRange.of(deep)  # a smaller image alone uses less of it
        image, smaller = (decode_image(source, "", pixel_range) for source in (original, columns["image"][0]))
        height, width = smaller.shape[:2]
        assert bad == [] and min(height, width) == SHORT_SIDE
        assert abs(width / height - image.shape[1] / image.shape[0]) < 1 / SHORT_SIDE
        rounded = Image.fromarray(np.rint(image).astype(np.uint8))
        expected = np.asarray(rounded.resize((width, height), Image.Resampling.BOX))
        assert np.abs(smaller.astype(float) - expected).mean() < 5  # of JPEG and its coarser colors


def test_quality_decides_the_size(batch):
    sizes = [len(preparation(quality=quality)(batch, INDICES)[0]["image"][0]["bytes"]) for quality in (30, 90, 100)]
    assert sizes[0] < sizes[1] / 2 < sizes[2] / 2


@given(st.integers(1, 200), st.integers(1, 200))
@example(SHORT_SIDE, SHORT_SIDE)
@example(SHORT_SIDE + 1, SHORT_SIDE + 1)
@example(SHORT_SIDE, 200)
def test_small_images_keep_their_bytes(height, width):
    original = {"bytes": encode(np.full((height, width, 3), 90, np.uint8)), "path": "gray.png"}
    prepared = preparation()({"image": [original]}, [0])[0]["image"][0]
    assert (prepared == original) == (min(height, width) <= SHORT_SIDE)
    assert min(decode_image(prepared).shape[:2]) == min(height, width, SHORT_SIDE)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((300, 300), (128, 128)), ((300, 150), (256, 128)), ((64, 400), (64, 400)), ((90, 90), (90, 90))],
)
def test_images_for_rectangles_are_shrunk_until_one_side_is_the_least(shape, expected):
    """That is 64 x 128 px for an input of 48 x 96."""
    original = {"bytes": encode(np.full((*shape, 3), 90, np.uint8)), "path": "gray.png"}
    prepared = Preparation("image", [48, 96], ())({"image": [original]}, [0])[0]["image"][0]
    assert decode_image(prepared).shape[:2] == expected


def strip(length, width, upright=False):
    """A PNG with a gradient along it."""
    pixels = np.linspace(0, 255, length).astype(np.uint8)[None].repeat(width, 0)
    return {"bytes": encode(np.dstack([pixels.T if upright else pixels] * 3)), "path": "strip.png"}


@pytest.mark.parametrize("upright", [False, True])
@pytest.mark.parametrize("length, width", [(70_000, 66), (70_000, 44), (70_000, 1), (65_500, 70)])
def test_strips_too_long_for_jpeg(length, width, upright):
    """They keep their shape and their pixels."""
    columns, bad = preparation("fast")({"image": [strip(length, width, upright)]}, [0])
    pixels = decode_image(columns["image"][0])
    along = pixels[:, 0, 0] if upright else pixels[0, :, 0]
    short_side = min(width, SHORT_SIDE)
    assert bad == [] and min(pixels.shape[:2]) == short_side
    assert len(along) == round(length * short_side / width)
    assert np.abs(along - np.linspace(0, 255, len(along))).max() <= 2 + 4 * (len(along) <= 65_500)  # of JPEG
    crop = RandomView()(*pixels.shape[:2], Random(0)).of_image(pixels, SIZE)
    assert crop.shape == (SIZE, SIZE, 3) and np.ptp(crop) <= 6


def test_a_strip_does_not_stop_a_preparation(monkeypatch, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "strip.png").write_bytes(strip(70_000, 66)["bytes"])
    Image.fromarray(np.full((60, 60, 3), 90, np.uint8)).save(folder / "plain.png")
    prepare(monkeypatch, folder, tmp_path / "prepared", "--bad_images", "skip")
    assert len(load_images(str(tmp_path / "prepared"))["train"]) == 2


@pytest.mark.parametrize("side", [60, 120])
def test_orientation_survives(astronaut, side):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn right
    pixels = np.ascontiguousarray(astronaut[:side, : side + 40])
    original = {"bytes": encode(pixels, file_format="JPEG", exif=exif), "path": "turned.jpg"}
    prepared = decode_image(preparation()({"image": [original]}, [0])[0]["image"][0])
    height, width = prepared.shape[:2]
    expected = np.asarray(Image.fromarray(decode_image(original)).resize((width, height), Image.Resampling.BOX))
    assert height > width
    assert np.abs(prepared.astype(float) - expected).mean() < 4


def test_other_columns_pass_through(batch):
    columns, _ = preparation("fast")(batch, INDICES)
    assert list(columns) == ["image", "label", "notes", "keypoint_density_fast"]
    assert columns["label"] == batch["label"] and columns["notes"] == batch["notes"]


def test_no_directories_are_published(batch):
    columns, _ = preparation()(batch, INDICES)
    assert [image["path"] for image in columns["image"]] == ["on_disk.jpg", "1.jpg", "2.png", "3.jpg", "4.jpg", None]


def test_densities_are_those_of_the_map_step(batch):
    features = Features({"image": datasets.Image(decode=False)})
    originals = Dataset.from_dict({"image": batch["image"]}, features=features)
    columns, _ = preparation("fast", "sift", "orb")(batch, INDICES)
    for density in densities("fast", "sift", "orb"):
        attached, _ = attach_keypoint_density(originals, density, "image")
        assert columns[density.column] == attached[density.column][:]
    assert len({columns[density.column][0] for density in densities("fast", "sift", "orb")}) == 3


def test_a_bad_image_is_named_or_left_out(batch):
    batch["image"][1]["bytes"] = batch["image"][1]["bytes"][:500]
    batch["image"][5]["bytes"] = b"no image"
    with pytest.raises(BadImageError, match=r"someone/1\.png"):
        preparation()(batch, INDICES)
    columns, bad = preparation("fast", skip_bad_images=True)(batch, INDICES)
    assert ["1.png" in bad[0], "row 15" in bad[1], len(bad)] == [True, True, 2]
    assert columns["label"] == [3, 4, 1, 5]
    assert {len(values) for values in columns.values()} == {4}


def test_densities_of_other_detectors_are_dropped(batch):
    prepared, _ = preparation("fast", "sift")(batch, INDICES)
    again, _ = preparation("fast", "orb")(prepared, INDICES)
    features = preparation("fast", "orb").features(Features(dict.fromkeys(prepared, Value("binary"))))
    assert set(again) == set(features) == {"image", "label", "notes", "keypoint_density_fast", "keypoint_density_orb"}


# Data sets


def test_class_folders_become_parquet(monkeypatch, tmp_path, source):
    output = prepare(monkeypatch, source, tmp_path / "out", "--keypoint_detector", "fast", "sift", "orb")
    prepared, original = datasets.load_dataset(str(output)), datasets.load_dataset(str(source))
    assert list(shards(output)) == SHARDS
    assert {split: len(rows) for split, rows in prepared.items()} == {"train": 6, "validation": 3}
    for split, rows in prepared.items():
        assert rows.features["label"] == original[split].features["label"] == ClassLabel(names=["astronaut", "cat"])
        assert rows["label"][:] == original[split]["label"][:]
        assert [min(image.size) for image in rows["image"]] == [SHORT_SIDE] * len(rows)
        for density in densities("fast", "sift", "orb"):
            attached, _ = attach_keypoint_density(keep_encoded(original[split], "image"), density, "image")
            assert rows[density.column][:] == attached[density.column][:]


def test_the_card_is_valid_and_publishes_no_path(monkeypatch, tmp_path, source):
    output = prepare(monkeypatch, source, tmp_path / "photos_48", "--keypoint_detector", "fast", "orb")
    card, settings = (output / "README.md").read_text(), (output / "preparation.json").read_text()
    _, front, text = card.split("---\n", 2)
    assert "kamim" in yaml.safe_load(front)["tags"]
    assert set(datasets.get_dataset_split_names(str(output))) == {"train", "validation"}
    assert r"# photos\_48" in text and "9 images" in text and f"{SHORT_SIDE} px" in text
    for density in densities("fast", "orb"):
        assert density.label in text and density.label in json.loads(settings)["densities"]
    assert str(tmp_path) not in card + settings


@pytest.mark.parametrize("detectors", [["sift"], ["fast", "sift"]])
def test_a_prepared_data_set_can_be_prepared_again(monkeypatch, tmp_path, source, detectors):
    first = prepare(monkeypatch, source, tmp_path / "first", "--keypoint_detector", "fast", "orb")
    second = prepare(monkeypatch, first, tmp_path / "second", "--keypoint_detector", *detectors)
    before, after = encoded(first)["train"], encoded(second)["train"]
    assert after["image"][:] == before["image"][:]
    assert after.column_names == ["image", "label", *(f"keypoint_density_{name}" for name in detectors)]


def test_data_sets_in_folders_of_one_name_are_told_apart(monkeypatch, tmp_path, source):
    for detector in ("fast", "sift"):
        output = prepare(monkeypatch, source, tmp_path / detector / "out", "--keypoint_detector", detector)
        assert load_images(str(output))["train"].column_names[2:] == [f"keypoint_density_{detector}"]


def test_a_folder_with_other_files_is_refused(monkeypatch, tmp_path, source):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "README.md").write_text("mine")
    with pytest.raises(InputError, match="holds other files"):
        prepare(monkeypatch, source, tmp_path / "out")
    assert (tmp_path / "out" / "README.md").read_text() == "mine"


def test_a_bad_image_stops_the_preparation(monkeypatch, tmp_path, broken_source):
    with pytest.raises(InputError, match=r"astronaut/0\.png"):
        prepare(monkeypatch, broken_source, tmp_path / "out")


def test_bad_images_are_left_out_and_listed(tmp_path, broken_source):
    images = encoded(broken_source)
    for _ in range(2):  # the second time, every shard is there
        bad = prepare_dataset(images, tmp_path / "out", preparation("fast", skip_bad_images=True), "photos", 2)
        assert [line.split(" (")[0][-5:] for line in bad] == ["0.png", "2.png", "1.png"]
    prepared = encoded(tmp_path / "out")
    assert [image["path"] for image in prepared["train"]["image"]] == ["4.jpg", "1.jpg", "3.jpg", "5.jpg"]
    assert prepared["validation"]["label"][:] == [0, 0]
    assert "3 images could not be decoded" in (tmp_path / "out" / "README.md").read_text()


def test_the_script_lists_bad_images(monkeypatch, tmp_path, broken_source):
    output = prepare(monkeypatch, broken_source, tmp_path / "out", "--bad_images", "skip")
    (output / "bad_images.txt").unlink()
    (output / "data" / SHARDS[-1]).unlink()
    prepare(monkeypatch, broken_source, output, "--bad_images", "skip")
    assert len((output / "bad_images.txt").read_text().splitlines()) == 3


def test_an_empty_split_does_not_spoil_the_others(tmp_path, source):
    images = encoded(source)
    images["test"] = images["train"].select([])
    prepare_dataset(images, tmp_path / "out", preparation(), "photos", 2)
    assert {split: len(rows) for split, rows in encoded(tmp_path / "out").items()} == {"train": 6, "validation": 3}


def test_nothing_but_bad_images_is_an_error(tmp_path):
    (tmp_path / "photos").mkdir()
    for number in range(3):
        (tmp_path / "photos" / f"{number}.png").write_bytes(b"no image")
    images = encoded(tmp_path / "photos")
    with pytest.raises(InputError, match=r"none of the 3 images can be decoded.*0\.png"):
        prepare_dataset(images, tmp_path / "out", preparation(skip_bad_images=True), "photos", 2)


def test_two_processes_write_the_same_bytes_as_one(monkeypatch, tmp_path, broken_source):
    one = prepare(monkeypatch, broken_source, tmp_path / "one", "--bad_images", "skip")
    two = prepare(monkeypatch, broken_source, tmp_path / "two", "--bad_images", "skip", "--num_proc", "2")
    assert shards(one) == shards(two)


@pytest.mark.slow
def test_a_bad_image_stops_all_processes(monkeypatch, tmp_path, broken_source):
    with pytest.raises(InputError, match=r"cannot decode .*\.png"):
        prepare(monkeypatch, broken_source, tmp_path / "out", "--num_proc", "2")


# Restarts


def test_only_missing_shards_are_written_again(monkeypatch, tmp_path, source):
    output = prepare(monkeypatch, source, tmp_path / "out")
    before, times = shards(output), written_at(output)
    (output / "data" / SHARDS[1]).unlink()
    prepare(monkeypatch, source, output)
    assert shards(output) == before
    assert {name for name, at in written_at(output).items() if at != times[name]} == {SHARDS[1]}


def test_an_interrupted_write_leaves_no_half_shard(monkeypatch, tmp_path, source):
    expected = shards(prepare(monkeypatch, source, tmp_path / "whole"))
    write, written = Dataset.to_parquet, []

    def interrupted(self, file):
        if len(written) == 2:
            Path(file).write_bytes(b"PAR1 and no more")
            raise KeyboardInterrupt
        written.append(write(self, file))

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Dataset, "to_parquet", interrupted)
        prepare(patch, source, tmp_path / "out")
    assert [name for name in shards(tmp_path / "out") if name in SHARDS] == SHARDS[:2]
    assert not (tmp_path / "out" / "README.md").exists()

    prepare(monkeypatch, source, tmp_path / "out")
    assert shards(tmp_path / "out") == expected


def test_a_shard_may_be_written_twice_at_once(monkeypatch, tmp_path, source):
    """As by a node that Ray has given up, but that still runs, and the one that took over."""
    job = ShardJob(encoded(source)["train"], 0, 6, preparation("fast"), tmp_path / "shard.parquet")
    write = Dataset.to_parquet

    def overtaken(self, file):
        write(self, file)
        monkeypatch.setattr(Dataset, "to_parquet", write)
        job()

    monkeypatch.setattr(Dataset, "to_parquet", overtaken)
    job()
    assert len(Dataset.from_parquet(str(job.file))) == 6


@pytest.mark.parametrize(
    ("arguments", "differing"),
    [
        (["--quality", "80"], "quality"),
        (["--image_size", "32"], "image_size, densities"),
        (["--keypoint_detector", "sift"], "densities"),
        (["--keypoint_detector", "fast", "sift"], "densities"),
        (["--keypoint_footprint", "point"], "densities"),
        (["--bad_images", "skip"], "skip_bad_images"),
        (["--rows_per_shard", "3"], "rows_per_shard"),
    ],
)
def test_other_settings_are_refused(monkeypatch, tmp_path, source, arguments, differing):
    output = prepare(monkeypatch, source, tmp_path / "out")
    settings, before = (output / "preparation.json").read_text(), shards(output)
    with pytest.raises(InputError, match=rf"different: {differing};.*another folder"):
        prepare(monkeypatch, source, output, *arguments)
    assert (output / "preparation.json").read_text() == settings and shards(output) == before


def test_other_images_are_refused(monkeypatch, tmp_path, source, astronaut):
    output = prepare(monkeypatch, source, tmp_path / "out")
    Image.fromarray(astronaut).save(source / "train" / "cat" / "9.png")
    with pytest.raises(InputError, match="different: splits;"):
        prepare(monkeypatch, source, output)


def test_the_script_goes_on_in_another_process_with_another_cache(monkeypatch, tmp_path, source):
    output = prepare(monkeypatch, source, tmp_path / "out")
    before, times = shards(output), written_at(output)
    (output / "data" / SHARDS[0]).unlink()
    command = [
        sys.executable,
        "-m",
        "modeling_kamim",
        "prepare",
        source,
        output,
        "--image_size",
        str(SIZE),
        "--rows_per_shard",
    ]
    environment = os.environ | {"HF_DATASETS_CACHE": str(tmp_path / "another_cache")}
    finished = subprocess.run([*command, "2"], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    assert shards(output) == before
    assert {name for name, at in written_at(output).items() if at != times[name]} == {SHARDS[0]}


# Training


def pretrain(monkeypatch, dataset, output_dir, *arguments):
    """Losses of two steps."""
    model = ["--model_size", "tiny", "--image_size", str(SIZE), "--mask_patch_size", "16"]
    steps = ["--max_steps", "2", "--per_device_train_batch_size", "3", "--logging_steps", "1"]
    quiet = ["--use_cpu", "--disable_tqdm", "true", "--dataset_name", str(dataset), "--output_dir", str(output_dir)]
    monkeypatch.setattr(sys, "argv", ["run_mim.py", *model, *steps, *quiet, *arguments])
    run_mim.main()
    log = json.loads((output_dir / "trainer_state.json").read_text())["log_history"]
    return [entry["loss"] / entry["masked_l1"] for entry in log if "loss" in entry]


class MapStepCalled(Exception):
    pass


@pytest.fixture
def forbid_map_step(monkeypatch):
    def called(*arguments):
        raise MapStepCalled

    monkeypatch.setattr(map_steps, "attach_keypoint_density", called)


def test_training_on_a_prepared_data_set_detects_nothing(monkeypatch, tmp_path, source, forbid_map_step):
    prepared = prepare(monkeypatch, source, tmp_path / "prepared", "--keypoint_detector", "fast", "sift")
    ratios = pretrain(monkeypatch, prepared, tmp_path / "kamim")
    assert len(ratios) == 2 and min(ratios) > 1.01  # the keypoints do weight
    assert pretrain(monkeypatch, prepared, tmp_path / "simmim", "--weighting", "none") == pytest.approx([1, 1])
    images = encoded(prepared)["train"]
    assert prepare_images(images, "image", densities("sift")[0])[0] is images


@pytest.mark.parametrize("other", ["keypoint_detector orb", "image_size 32", "keypoint_footprint point"])
def test_training_on_what_was_not_prepared_detects_again(monkeypatch, tmp_path, source, forbid_map_step, other):
    prepared = prepare(monkeypatch, source, tmp_path / "prepared")
    with pytest.raises(MapStepCalled):
        pretrain(monkeypatch, prepared, tmp_path / "run", *f"--{other}".split())


def test_densities_of_another_size_are_replaced(monkeypatch, tmp_path, source):
    images = encoded(prepare(monkeypatch, source, tmp_path / "prepared"))["train"]
    other = DensityDetector(KeypointDetector("fast"), 2 * SIZE)
    replaced, _ = prepare_images(images, "image", other)
    assert replaced.column_names == images.column_names
    assert {density_label(pgm) for pgm in replaced[other.column]} == {other.label}


# Errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--quality", "0"], "quality is 0; it must be between 1 and 100"),
        (["--quality", "101"], "quality is 101"),
        (["--keypoint_detector", "fast", "surf"], "keypoint_detector is 'surf'; allowed: fast, sift, orb"),
        (["--rows_per_shard", "0"], "rows_per_shard is 0"),
        (["--num_proc", "0"], "num_proc is 0"),
        (["--crop_min_scale", "2"], "2"),
        (["--image_column", "photo"], "no column 'photo'"),
        (["--qualty", "80"], "did you mean 'quality'"),
    ],
)
def test_bad_settings_stop_before_any_work(monkeypatch, tmp_path, source, arguments, message):
    with pytest.raises(InputError, match=message):
        prepare(monkeypatch, source, tmp_path / "out", *arguments)
    assert not (tmp_path / "out").exists()


def test_a_missing_data_set_is_named(monkeypatch, tmp_path):
    with pytest.raises(InputError, match=r"'\./nowhere': there is no such file or folder"):
        prepare(monkeypatch, "./nowhere", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_data_set_and_the_folder_must_be_given(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["kamim prepare"])
    with pytest.raises(InputError, match="dataset_name"):
        script.main()


def test_ray_must_be_installed(monkeypatch, tmp_path, source):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match="--engine ray needs Ray: pip install"):
        prepare(monkeypatch, source, tmp_path / "out", "--engine", "ray")


# Ray


NODE = {"object_store_memory": 100 * 2**20, "include_dashboard": False}


@pytest.mark.slow
def test_ray_writes_what_one_process_writes(monkeypatch, tmp_path, broken_source, ray):
    local = prepare(monkeypatch, broken_source, tmp_path / "local", "--bad_images", "skip")
    ray.init(num_cpus=2, **NODE)
    try:
        cluster = prepare(monkeypatch, broken_source, tmp_path / "ray", "--bad_images", "skip", "--engine", "ray")
        with pytest.raises(InputError, match=r"cannot decode .*\.png"):
            prepare(monkeypatch, broken_source, tmp_path / "bad", "--engine", "ray")
    finally:
        ray.shutdown()
    assert shards(cluster) == shards(local)
    lists = [(folder / "bad_images.txt").read_text().splitlines() for folder in (local, cluster)]
    assert [line.split(" (")[0] for line in lists[0]] == [line.split(" (")[0] for line in lists[1]]


@pytest.fixture(scope="module")
def long_source(tmp_path_factory, astronaut):
    """Twelve shards of ten images, each of which takes seconds."""
    folder = tmp_path_factory.mktemp("long") / "photos"
    folder.mkdir()
    for number in range(120):
        Image.fromarray(np.roll(astronaut, 4 * number, axis=number % 2)).save(folder / f"{number:03d}.jpg")
    return folder


LONG = ["--image_size", "448", "--rows_per_shard", "10", "--keypoint_detector", "fast", "sift", "orb"]


@pytest.fixture(scope="module")
def prepared_locally(tmp_path_factory, long_source):
    with pytest.MonkeyPatch.context() as patch:
        return shards(prepare(patch, long_source, tmp_path_factory.mktemp("long") / "local", *LONG))


@pytest.mark.slow
@pytest.mark.parametrize("head_cpus", [1, 0], ids=["the head goes on", "a new node goes on"])
def test_a_node_of_the_cluster_may_die(monkeypatch, tmp_path, long_source, prepared_locally, ray, head_cpus):
    cluster_utils = pytest.importorskip("ray.cluster_utils")
    cluster = cluster_utils.Cluster(
        initialize_head=True, connect=True, head_node_args={"num_cpus": head_cpus, **NODE}, shutdown_at_exit=False
    )
    output, finished, done_at_death = tmp_path / "out", threading.Event(), []

    def num_shards():
        return len(list((output / "data").glob("*.parquet")))

    def kill_node():
        while not finished.is_set() and (num_shards() < 3 or ray.available_resources().get("CPU", 0)):
            time.sleep(0.05)
        cluster.remove_node(node, allow_graceful=False)  # all nodes were at work
        done_at_death.append(num_shards())
        if head_cpus == 0:
            cluster.add_node(num_cpus=1, **NODE)

    try:
        node = cluster.add_node(num_cpus=1, **NODE)
        killer = threading.Thread(target=kill_node)
        killer.start()
        try:
            prepare(monkeypatch, long_source, output, *LONG, "--engine", "ray")
        finally:
            finished.set()
            killer.join()
    finally:
        ray.shutdown()
        cluster.shutdown()
    assert 3 <= done_at_death[0] < 12
    assert shards(output) == prepared_locally
    rows = encoded(output)["train"]
    assert [Path(image["path"]).stem for image in rows["image"]] == [f"{number:03d}" for number in range(120)]
