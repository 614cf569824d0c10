"""A pretraining that is tried for a few steps: what is told of its speed, duration and memory."""

import mmap
from concurrent.futures.process import BrokenProcessPool
from dataclasses import fields, replace
from types import SimpleNamespace

import datasets
import numpy as np
import pytest

from modeling_kamim.data.stored_density import DensityDetector
from modeling_kamim.errors import InputError
from modeling_kamim.objective.keypoints import KeypointDetector
from modeling_kamim.training import trial
from modeling_kamim.training.arguments import PretrainingArguments
from modeling_kamim.training.trial import Trial, TrialArguments, TriedModelArguments, check_memory, try_pretraining

SMALL = {"model_type": "vit", "model_size": "tiny", "image_size": 32, "config_overrides": "num_hidden_layers=1"}
TRIED = Trial("vit-tiny", 5_700_000, "cpu", "on the CPU", 16, 16, 2.0, 0.01, 0.004, 2 * 10**9, 8 * 10**9, 2, 2, 0)


@pytest.fixture(scope="module")
def rows():
    from awkward_images import photograph

    images = [np.asarray(photograph(seed)) for seed in range(4)]
    encoded = datasets.Dataset.from_dict({"image": images}, features=datasets.Features({"image": datasets.Image()}))
    return encoded.cast_column("image", datasets.Image(decode=False))


@pytest.fixture(autouse=True)
def one_timed_step(monkeypatch):
    monkeypatch.setattr(trial, "_TIMED_STEPS", 1)


def tried(rows, model=SMALL, **settings):
    arguments = TrialArguments(**{"use_cpu": True, "per_device_train_batch_size": 2, "precision": "fp32", **settings})
    return trial._try(TriedModelArguments(**model), arguments, rows.to_list(), "image", None)


def test_settings_are_those_of_a_pretraining():
    defaults = {field.name: field.default for field in fields(PretrainingArguments)}
    for field in fields(TrialArguments):
        assert (field.default or None) == (defaults[field.name] or None), field.name
    assert TrialArguments(use_cpu=True, precision="fp32").training_args().per_device_train_batch_size == 32
    with pytest.raises(InputError, match="fp16, which needs a GPU"):
        TrialArguments(use_cpu=True, precision="fp16").training_args()


def test_a_model_is_tried_only_where_one_is_named():
    assert not TriedModelArguments().is_model_given and not TriedModelArguments(image_size=96).is_model_given
    assert (
        TriedModelArguments(model_size="small").is_model_given and TriedModelArguments(model_type="vit").is_model_given
    )


@pytest.mark.parametrize(
    "model",
    [
        SMALL,
        {**SMALL, "keypoint_source": "online"},
        {**SMALL, "weighting": "shuffled"},
        {**SMALL, "weighting": "none", "model_type": "dinov2", "model_size": "small", "image_size": 28},
        {**SMALL, "model_type": "vit_mae", "config_overrides": "num_hidden_layers=1,decoder_num_hidden_layers=1"},
    ],
    ids=["map", "online", "shuffled", "simmim", "mae"],
)
def test_every_kind_of_run_can_be_tried(rows, model):
    found = tried(rows, model)
    assert found.device == "cpu" and found.batch_size == found.tried_batch_size == 2
    assert 0 < found.images_per_second < 1e5 and 1e8 < found.memory < found.available
    is_mapped = model.get("weighting") != "none" and model.get("keypoint_source") != "online"
    assert (found.keypoint_seconds > 0) == is_mapped
    assert "images/s" in found.report(1000, 100) and found.facts(1000, 2)["seconds"] > 0


def test_stored_densities_are_used_and_bad_images_left_out(rows):
    densities = DensityDetector(KeypointDetector(), 32)
    stored = densities(np.zeros((40, 50, 3), np.uint8))
    assert tried(rows.add_column(densities.column, [stored] * len(rows))).keypoint_seconds == 0
    features = datasets.Features({"image": datasets.Image(decode=False)})
    bad = datasets.Dataset.from_dict({"image": [{"bytes": b"no", "path": None}]}, features=features)
    assert tried(datasets.concatenate_datasets([rows, bad])).images_per_second > 0
    with pytest.raises(InputError, match="none of the 1 images"):
        tried(bad)


def test_a_large_batch_is_worked_out_from_two_small_ones(monkeypatch, rows):
    monkeypatch.setattr(trial._Steps, "measure", lambda self, number: (1.0 + 0.5 * number, 10**9 + 10**7 * number))
    found = tried(rows, per_device_train_batch_size=1000)
    assert found.tried_batch_size == 2
    assert found.step_seconds == pytest.approx(501) and found.memory == 10**9 + 10**10
    assert "in steps of 1,000 (tried with 2)" in found.report(10, 1)


def test_a_batch_that_does_not_fit_is_halved(monkeypatch, rows):
    def measure(self, number):
        if number > 9:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")
        return 0.001 * number, 10**9 * number

    monkeypatch.setattr(trial._Steps, "measure", measure)
    found = tried(rows, per_device_train_batch_size=64)
    assert found.tried_batch_size == 8 and found.memory == 64 * 10**9
    small = replace(found, available=40 * 10**9)
    assert "about 64.0 of 40.0 GB: too much; give a smaller --per_device_train_batch_size" in small.report(10, 1)


@pytest.mark.parametrize(
    ("workers", "device", "expected"),
    [
        (0, "cpu", 1 / (0.125 + 0.01)),  # one after the other
        (4, "cpu", 1 / 0.13),  # the cores are shared
        (4, "cuda", 1 / 0.125),  # the model binds
    ],
)
def test_what_binds_a_run(workers, device, expected):
    assert replace(TRIED, num_workers=workers, device=device).images_per_second == pytest.approx(expected)
    slow = replace(TRIED, num_workers=2, device="cuda", sample_seconds=1.0)
    assert slow.images_per_second == pytest.approx(2)  # the loader binds


def test_duration_counts_all_epochs_and_keypoints_once():
    assert TRIED.seconds(1000, 100) == pytest.approx(1000 * (100 * 0.135 + 0.004))
    assert "100 epoch(s) of 1,000 images: about 3.8 hours, 2.3 minutes each" in TRIED.report(1000, 100)


def test_memory_is_the_peak_and_not_what_stays():
    with trial._peak_memory(is_cuda=False) as peak:
        before = trial.psutil.Process().memory_info().rss
        with mmap.mmap(-1, 400_000_000) as block:  # new pages, whatever the allocator keeps
            for place in range(0, len(block), mmap.PAGESIZE):
                block[place] = 1
            trial.time.sleep(0.05)
    assert peak[0] - before == pytest.approx(400e6, rel=0.2)


def test_a_process_that_dies_is_told_in_a_line(monkeypatch, rows):
    class Pool:
        def __init__(self, *arguments): ...
        def __enter__(self):
            return self

        def __exit__(self, *error): ...
        def submit(self, *arguments):
            raise BrokenProcessPool

    monkeypatch.setattr(trial, "ProcessPoolExecutor", Pool)
    with pytest.raises(InputError, match="most likely for lack of memory; give a smaller model"):
        try_pretraining(TriedModelArguments(**SMALL), TrialArguments(use_cpu=True), rows, "image")


def test_a_model_beyond_the_memory_is_refused_before_any_work(monkeypatch):
    check_memory(TriedModelArguments(**SMALL))
    monkeypatch.setattr(trial, "psutil", SimpleNamespace(virtual_memory=lambda: SimpleNamespace(total=10**9)))
    with pytest.raises(InputError, match="a model of 86M parameters needs 1 GB .* this machine has 1 GB"):
        check_memory(TriedModelArguments(model_size="base"))
