"""The functions do what the commands do, and leave the process as it was."""

import json
import logging
import os
import random
import signal
import sys
import threading

import cv2
import datasets
import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image
from runs import log_of
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModel

import modeling_kamim
from modeling_kamim.commands import embed as embed_command
from modeling_kamim.commands import evaluate as evaluate_command
from modeling_kamim.commands import pretrain as pretrain_command
from modeling_kamim.errors import InputError

QUIET = {"use_cpu": True, "disable_tqdm": True, "precision": "fp32", "per_device_train_batch_size": 4}
SMALL = {"image_size": 32, "patch_size": 8, "max_steps": 3, "logging_steps": 1, **QUIET}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two classes of 8 images each, for training and for validation."""
    rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp("images")
    for split in ("train", "validation"):
        for name in ("cat", "dog"):
            (folder / split / name).mkdir(parents=True)
            for number in range(8):
                pixels = rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{number}.png")
    return folder


def call(command, monkeypatch, **settings):
    words = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    monkeypatch.setattr(sys, "argv", [command.__name__, *words])
    command.main()


def same_weights(one, two):
    one, two = (load_file(f"{os.fspath(path)}/model.safetensors") for path in (one, two))
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def results(folder):
    """results.json without what differs from run to run."""
    found = json.loads((folder / "results.json").read_text())
    for row in found.get("rows", [found]):
        row.pop("wall_time")
    found["provenance"].pop("time")
    return found


@pytest.mark.parametrize("kind", ["path", "dictionary of splits", "list of pictures"])
def test_pretrain_is_the_command(monkeypatch, tmp_path, folder, kind):
    images = datasets.load_dataset(str(folder))
    given = {"path": str(folder), "dictionary of splits": images, "list of pictures": list(images["train"]["image"])}
    found = modeling_kamim.pretrain(given[kind], "vit-tiny", tmp_path / "one", temperature=0.5, **SMALL)
    model = {"model_type": "vit", "model_size": "tiny", "temperature": 0.5}
    call(pretrain_command, monkeypatch, dataset_name=folder, output_dir=tmp_path / "two", **model, **SMALL)

    assert same_weights(found, tmp_path / "two")
    losses = [[entry["loss"] for entry in log_of(tmp_path / run) if "loss" in entry] for run in ("one", "two")]
    assert losses[0] == losses[1]
    assert [entry["loss"] for entry in found.log if "loss" in entry] == losses[0]
    texts = [(tmp_path / run / "settings.yaml").read_text().splitlines() for run in ("one", "two")]
    keys = [{line for line in text if not line.startswith("#")} for text in texts]
    assert keys[0] == keys[1]


@pytest.mark.parametrize("protocol", ["cached", "paper"])
def test_evaluate_is_the_command(monkeypatch, tmp_path, folder, protocol):
    settings = {"model_size": "tiny", "image_size": 32, "protocol": protocol, "num_train_epochs": 2, **QUIET}
    found = modeling_kamim.evaluate(None, folder, output_dir=tmp_path / "one", **settings)
    call(evaluate_command, monkeypatch, dataset_name=folder, output_dir=tmp_path / "two", **settings)
    assert results(tmp_path / "one") == results(tmp_path / "two")
    assert found.best["top1"] == max(row["top1"] for row in found.rows)


def test_images_in_memory_with_labels_have_the_results_of_their_folder(tmp_path, folder):
    splits = datasets.load_dataset(str(folder))
    settings = {"protocol": "cached", "model_size": "tiny", "image_size": 32, **QUIET}
    by_path = modeling_kamim.evaluate(None, folder, output_dir=tmp_path / "path", **settings)
    in_memory = modeling_kamim.evaluate(None, splits, output_dir=tmp_path / "memory", **settings)
    listed = {"image": [image.copy() for image in splits["train"]["image"]], "label": splits["train"]["label"]}
    modeling_kamim.evaluate(None, listed, output_dir=tmp_path / "list", **settings)

    assert [row["top1"] for row in by_path.rows] == [row["top1"] for row in in_memory.rows]
    assert [row["confusion"] for row in by_path.rows] == [row["confusion"] for row in in_memory.rows]
    assert "memory" in in_memory.rows[0]["provenance"]["dataset"]


def test_three_lines(tmp_path, folder):
    checkpoint = modeling_kamim.pretrain(folder, "vit_mae-tiny", tmp_path / "mim", **SMALL)
    scores = modeling_kamim.evaluate(checkpoint, folder, "knn", output_dir=tmp_path / "knn", **QUIET)
    drawn = modeling_kamim.evaluate(checkpoint, folder, "reconstruction", output_dir=tmp_path / "drawn", **QUIET)

    assert AutoModel.from_pretrained(checkpoint).config.model_type == "vit_mae"
    assert "steps 3" in repr(checkpoint)
    assert "knn, layer" in repr(scores)
    assert "chance 50.0%" in repr(scores)
    assert "PSNR" in repr(drawn)
    pictures = [outcome._repr_html_().count("data:image/png;base64,") for outcome in (checkpoint, scores, drawn)]
    assert pictures == [2, 1, 1]
    more = modeling_kamim.pretrain(folder, checkpoint, tmp_path / "more", **QUIET, max_steps=1)  # a warm start
    assert json.loads((tmp_path / "more" / "config.json").read_text())["kamim"]["base_model"] == "local:mim"
    assert more.metrics["train_loss"] > 0


def test_a_stopped_run_goes_on(tmp_path, folder):
    whole = modeling_kamim.pretrain(folder, "vit-tiny", tmp_path / "whole", **SMALL)
    parts = {**SMALL, "save_steps": 1, "lr_scheduler_type": "constant", "warmup_steps": 0}
    constant = modeling_kamim.pretrain(folder, "vit-tiny", tmp_path / "constant", **parts)
    modeling_kamim.pretrain(folder, "vit-tiny", tmp_path / "parts", **{**parts, "max_steps": 2})
    resumed = modeling_kamim.pretrain(folder, "vit-tiny", tmp_path / "parts", resume_from_checkpoint="auto", **parts)
    assert same_weights(constant, resumed)
    assert not same_weights(whole, resumed)


def state_of_process():
    return {
        "signals": [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)],
        "random numbers": random.getstate(),
        "numpy": np.random.get_state()[1].tolist(),
        "torch": torch.get_rng_state().tolist(),
        "environment": dict(os.environ),
        "handlers": {name: list(logging.getLogger(name).handlers) for name in (None, "modeling_kamim", "datasets")},
        "levels": {name: logging.getLogger(name).level for name in (None, "modeling_kamim", "datasets")},
        "threads": (cv2.getNumThreads(), torch.get_num_threads()),
        "gradients": torch.is_grad_enabled(),
        "progress bars": datasets.are_progress_bars_disabled(),
        "directory": os.getcwd(),
        "matplotlib": dict(matplotlib.rcParams),
    }


def test_a_process_is_left_as_it_was(tmp_path, folder):
    cv2.setNumThreads(2)
    try:
        before = state_of_process()
        checkpoint = modeling_kamim.pretrain(folder, "vit-tiny", tmp_path / "mim", **SMALL)
        modeling_kamim.evaluate(checkpoint, folder, "cached", output_dir=tmp_path / "scores", **QUIET)
        with pytest.raises(InputError):
            modeling_kamim.pretrain(tmp_path / "nowhere", "vit-tiny", tmp_path / "none", **SMALL)
        after = state_of_process()
    finally:
        cv2.setNumThreads(1)
    assert [name for name in before if before[name] != after[name]] == []


def test_runs_in_one_process_and_in_a_thread_agree(tmp_path, folder):
    runs = {}

    def run(name, **settings):
        runs[name] = modeling_kamim.pretrain(folder, "vit-tiny", tmp_path / name, **{**SMALL, **settings})

    run("first")
    run("bf16", precision="bf16")
    run("second")
    thread = threading.Thread(target=run, args=("thread",))
    thread.start()
    thread.join()
    assert same_weights(runs["first"], runs["second"])
    assert same_weights(runs["first"], runs["thread"])
    assert not same_weights(runs["first"], runs["bf16"])


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": -1.0},
        {"mask_ratio": 1.5},
        {"image_size": 33},
        {"weighting": "strong"},
        {"keypoint_detector_args": "{"},
        {"global_batch_size": 7},
        {"lr_scheduler_type": "sine"},
        {"max_steps": -2},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_errors_are_those_of_the_command(monkeypatch, tmp_path, settings):
    given = {**SMALL, "model_type": "vit", "model_size": "tiny", **settings}
    with pytest.raises(InputError) as by_command:
        call(pretrain_command, monkeypatch, output_dir=tmp_path / "run", **given)
    with pytest.raises(InputError) as by_function:
        modeling_kamim.pretrain(None, output_dir=tmp_path / "run", **given)
    words = str(by_function.value)
    assert "\n" not in words
    if "invalid choice" not in str(by_command.value):  # argparse's words for a choice
        assert str(by_command.value).removesuffix(" (see --help)") == words


def test_a_model_is_a_name_or_a_checkpoint(tmp_path):
    with pytest.raises(InputError, match="model_size is 'smal'; allowed for vit: tiny"):
        modeling_kamim.pretrain(None, "vit-smal", tmp_path / "run")
    with pytest.raises(InputError, match="facebook/none"):
        modeling_kamim.pretrain(None, "facebook/none", tmp_path / "run")


def test_embed_is_the_command_and_automodel(monkeypatch, tmp_path, folder):
    checkpoint = modeling_kamim.pretrain(folder, "vit-tiny", tmp_path / "mim", **SMALL)
    found = modeling_kamim.embed(checkpoint, folder, use_cpu=True)
    settings = {"model_name_or_path": checkpoint, "dataset_name": folder, "use_cpu": True}
    call(embed_command, monkeypatch, output_dir=tmp_path / "features", **settings)

    written = datasets.load_dataset(str(tmp_path / "features"))
    both = datasets.concatenate_datasets([written["train"], written["validation"]])
    np.testing.assert_allclose(found.features, np.array(both["features"]), atol=1e-6)
    assert found.ids == both["id"][:]
    assert found.labels == ["cat" if "/cat/" in name else "dog" for name in found.ids]

    pixels = [Image.open(folder / name).resize((32, 32), Image.Resampling.NEAREST) for name in found.ids]
    same_size = modeling_kamim.embed(checkpoint, pixels, use_cpu=True)
    processor, model = AutoImageProcessor.from_pretrained(checkpoint), AutoModel.from_pretrained(checkpoint)
    with torch.no_grad():
        tokens = model(**processor(pixels, return_tensors="pt")).last_hidden_state
    np.testing.assert_allclose(same_size.features, tokens[:, 1:].mean(1).numpy(), atol=1e-5)
    every = modeling_kamim.embed(checkpoint, pixels, layer="all", pooling="patches", use_cpu=True)
    np.testing.assert_allclose(every.features["final"], tokens[:, 1:].numpy(), atol=1e-5)
    assert every.labels is None
    assert "32 images" in repr(found)


def test_the_nearest_image_of_a_copy_is_its_original(tmp_path, folder):
    checkpoint = modeling_kamim.pretrain(folder, "vit-tiny", tmp_path / "mim", **SMALL)
    pictures = [Image.open(file).convert("RGB") for file in sorted(folder.rglob("*.png"))]
    found = modeling_kamim.embed(checkpoint, [*pictures, pictures[3]], use_cpu=True)
    (place, similarity), *others = found.nearest(len(pictures), count=4)
    assert (place, len(others)) == (3, 3)
    assert similarity == pytest.approx(1.0, abs=1e-5)
    assert found.nearest(found.features[3], count=1)[0][0] in (3, len(pictures))
    with pytest.raises(InputError, match="one feature for each image"):
        modeling_kamim.embed(checkpoint, pictures[:2], layer="all", use_cpu=True).nearest(0)
