"""The card and reconstructions of a run in its trackers."""

import sys
from types import SimpleNamespace

import pytest
import torch
from background import QUIET, SMALL, VIT
from PIL import Image
from safetensors.torch import load_file
from transformers.integrations import WandbCallback

from modeling_kamim.commands import pretrain as run_mim
from modeling_kamim.errors import InputError
from modeling_kamim.training.trackers import CARD, PICTURES, send_card, send_image

RUN = ["--per_device_train_batch_size", "4", "--precision", "fp32", "--max_steps", "4", "--save_strategy", "no"]


@pytest.fixture
def pretrain(monkeypatch, tmp_path):
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "events"))
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))

    def pretrain(name, *argv):
        words = [*VIT, *SMALL, *QUIET, *RUN, *argv, "--output_dir", str(tmp_path / name)]
        monkeypatch.setattr(sys, "argv", ["kamim pretrain", *words])
        run_mim.main()
        return load_file(tmp_path / name / "model.safetensors")

    return pretrain


def test_tensorboard_gets_pictures_and_the_probe_and_the_training_is_the_same(pretrain, tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    plain = pretrain("plain")
    watched = pretrain("watched", "--report_to", "tensorboard", "--log_images_every", "3", "--probe_every", "2")
    for name, tensor in plain.items():
        torch.testing.assert_close(watched[name], tensor, rtol=0, atol=0)
    (folder,) = {file.parent for file in (tmp_path / "events").rglob("events*")}
    events = accumulator.EventAccumulator(str(folder))
    events.Reload()
    pictures = events.Images(PICTURES)
    assert [picture.step for picture in pictures] == [0, 3, 4]
    assert pictures[0].width > 300 and pictures[0].encoded_image_string != pictures[2].encoded_image_string
    (card,) = events.Tensors(f"{CARD}/text_summary")
    assert b"KAMIM" in card.tensor_proto.string_val[0] and b"base_model" not in card.tensor_proto.string_val[0][:20]
    assert {"train/loss", "train/masked_l1", "train/probe_top1"} <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Scalars("train/probe_top1")] == [0, 2, 4]


def test_trackio_gets_pictures_without_a_network(pretrain, tmp_path):
    pytest.importorskip("trackio")
    pretrain("run", "--report_to", "trackio", "--log_images_every", "4", "--project", "mine")
    pictures = sorted((tmp_path / "trackio").rglob("*.png"))
    assert len(pictures) == 2
    with Image.open(pictures[0]) as picture:
        assert picture.width > 300
    (database,) = (tmp_path / "trackio").rglob("*.db")
    assert b"masked image modeling" in database.read_bytes()


def test_weights_and_biases_gets_the_card_and_pictures():
    logged, tracker = [], WandbCallback.__new__(WandbCallback)
    tracker._wandb = SimpleNamespace(log=logged.append, Image=lambda picture: picture.size, Html=str)
    send_card(tracker, "A <card>", 0)
    send_image(tracker, Image.new("RGB", (30, 20)), 7)
    assert logged[0] == {CARD: "<pre>A &lt;card&gt;</pre>", "train/global_step": 0}
    assert logged[1] == {PICTURES: (30, 20), "train/global_step": 7}


def test_pictures_need_a_tracker(pretrain):
    with pytest.raises(InputError, match="log_images_every needs a tracker .*report_to is none; give --report_to"):
        pretrain("run", "--log_images_every", "5")
    with pytest.raises(InputError, match="log_images_every is 0; it must be 1 or more"):
        pretrain("run", "--log_images_every", "0", "--report_to", "tensorboard")
