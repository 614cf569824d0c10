"""Images without keypoints train as in SimMIM: a run, a preparation and a check say so where they are many."""

import logging
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
from awkward_images import photograph
from PIL import Image

from modeling_kamim.api import pretraining
from modeling_kamim.commands import prepare as prepare_dataset
from modeling_kamim.commands import pretrain as run_mim
from modeling_kamim.data.attach_density import attach_keypoint_density
from modeling_kamim.data.check import check_dataset
from modeling_kamim.data.keypoint_share import TOLERATED, check_samples, sampled, warn_without_keypoints
from modeling_kamim.data.loading import keep_encoded, load_images
from modeling_kamim.data.samples import MaskedImageTransform, SampleDataset
from modeling_kamim.data.stored_density import DensityDetector
from modeling_kamim.objective.keypoints import KeypointDetector

TINY = ["--model_type", "vit", "--model_size", "tiny", "--image_size", "32", "--mask_patch_size", "16", "--use_cpu"]
QUICK = ["--disable_tqdm", "true", "--precision", "fp32", "--per_device_train_batch_size", "4", "--max_steps", "1"]
FAST = DensityDetector(KeypointDetector(), 32)


@pytest.fixture(autouse=True)
def settings(monkeypatch, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    yield
    datasets.enable_progress_bars()


def write_folder(folder, flat, detailed):
    """Images without a corner, and photographs."""
    folder.mkdir()
    for number in range(flat):
        Image.fromarray(np.full((40, 40, 3), 9 * number, np.uint8)).save(folder / f"flat{number}.png")
    for number in range(detailed):
        photograph(number, 200, 200).save(folder / f"photograph{number}.png")
    return folder


def rows_of(folder):
    return keep_encoded(load_images(str(folder))["train"], "image")


def transform(**source):
    return MaskedImageTransform("image", 32, 16, 16, 0.6, 8, random_view=None, **source)


@pytest.mark.parametrize("flat, detailed", [(3, 9), (1, 19), (0, 4)])
@pytest.mark.parametrize("source", ["map", "online"])
def test_the_share_is_told_above_a_bound(tmp_path, caplog, source, flat, detailed):
    rows = rows_of(write_folder(tmp_path / "images", flat, detailed))
    if source == "map":
        rows, _ = attach_keypoint_density(rows, FAST, "image")
        samples = SampleDataset(rows, transform(densities=FAST), seed=0)
    else:
        samples = SampleDataset(rows, transform(detector=KeypointDetector()), seed=0)
    check_samples(samples)
    warned = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(warned) == (flat / (flat + detailed) > TOLERATED)
    if warned:
        assert warned[0].startswith("25% of 12 training images") and "as in SimMIM" in warned[0]


def test_a_bad_image_or_density_is_left_to_whoever_reads_it(tmp_path, caplog):
    rows = rows_of(write_folder(tmp_path / "images", 0, 4))
    with_densities, _ = attach_keypoint_density(rows, FAST, "image")
    column = [None, *with_densities[FAST.column][1:]]
    broken = with_densities.remove_columns(FAST.column).add_column(FAST.column, column)
    check_samples(SampleDataset(broken, transform(densities=FAST), seed=0))
    (tmp_path / "images" / "photograph1.png").write_bytes(b"no")
    check_samples(SampleDataset(rows, transform(detector=KeypointDetector()), seed=0))
    assert "no keypoints" not in caplog.text


def test_the_sample_is_bounded_and_always_the_same():
    assert sampled(10**6, 256) == sampled(10**6, 256) and len(set(sampled(10**6, 256))) == 256
    assert sampled(3, 256) == [0, 1, 2] and sampled(0, 256) == []
    warn_without_keypoints([], "images")


@pytest.mark.parametrize("way", [["--keypoint_source", "map"], ["--streaming", "true"]], ids=["map", "stream"])
def test_a_run_says_so_before_it_trains(monkeypatch, tmp_path, caplog, way):
    monkeypatch.setattr(pretraining, "draw_reconstructions", lambda *arguments: None)
    source = write_folder(tmp_path / "images", 6, 6)
    if "--streaming" in way:
        images = [{"bytes": Path(image["path"]).read_bytes(), "path": None} for image in rows_of(source)["image"]]
        features = datasets.Features({"image": datasets.Image(decode=False)})
        source = tmp_path / "files"
        source.mkdir()
        datasets.Dataset.from_dict({"image": images}, features=features).to_parquet(source / "train.parquet")
    options = [*TINY, *QUICK, "--dataset_name", str(source), "--output_dir", str(tmp_path / "run"), *way]
    monkeypatch.setattr(sys, "argv", ["run_mim.py", *options])
    run_mim.main()
    assert "50% of 12 training images that were looked at have no keypoints" in caplog.text


def test_a_preparation_and_a_check_say_so(monkeypatch, tmp_path, caplog):
    source = write_folder(tmp_path / "images", 2, 6)
    settings = ["--image_size", "32", "--rows_per_shard", "3", "--keypoint_detector", "fast"]
    monkeypatch.setattr(sys, "argv", ["kamim prepare", str(source), str(tmp_path / "prepared"), *settings])
    prepare_dataset.main()
    assert "25% of 8 images (fast) have no keypoints" in caplog.text
    check = check_dataset(datasets.DatasetDict(train=rows_of(source)), "image")
    assert check.num_without_keypoints == 2 and "25% of 8 images have no keypoints" in check.report()
