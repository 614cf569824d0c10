"""Cards tell what was done, as docs/card.md shows; the commands that a run ends with can be typed as they are."""

import dataclasses
import logging
import re
import shlex
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tiny_models import tiny_vit

from modeling_kamim.api.groups import CLASSIFICATION_ARGUMENTS, PRETRAINING_ARGUMENTS
from modeling_kamim.commands import prepare as prepare_dataset
from modeling_kamim.commands import pretrain as run_mim
from modeling_kamim.commands import push as push_checkpoint
from modeling_kamim.commands.parser import parse
from modeling_kamim.data.loading import DataArguments
from modeling_kamim.errors import InputError
from modeling_kamim.hub.cards import Run, pretraining_card
from modeling_kamim.hub.publishing import Publisher, PublishError
from modeling_kamim.objective.masking import block_mask
from modeling_kamim.training.arguments import KamimArguments

ROOT = Path(__file__).parents[2]


def script(monkeypatch, module, *arguments):
    monkeypatch.setattr(sys, "argv", [module.__name__, *map(str, arguments)])
    module.main()


def without_numbers(card):
    return re.sub(r"-?\d+\.\d{2,}|value: [\d.]+", "NUMBER", card).strip()


def next_command(caplog):
    (line,) = [message for message in caplog.messages if message.startswith("Next: ")]
    return shlex.split(line.removeprefix("Next: "))


@pytest.fixture
def folder(tmp_path, photographs):
    """Two classes, in a folder whose name a shell would split."""
    root = tmp_path / "my images; new"
    for split in ("train", "validation"):
        for number, pixels in enumerate(photographs[:4]):
            (root / split / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).resize((48, 48)).save(root / split / "ab"[number % 2] / f"{number}.png")
    return root


def test_the_example_in_the_docs_is_what_the_command_in_it_publishes(hub, tmp_path, monkeypatch):
    text = (ROOT / "docs" / "card.md").read_text()
    expected = re.search(r"````markdown\n(.*?)\n````", text, re.DOTALL)[1]
    command = shlex.split(re.search(r"^# kamim pretrain (.*)$", expected, re.MULTILINE)[1])
    push = ["--push_to_hub", "--hub_model_id", "user/kamim-vit-t", "--hub_token", hub.token]
    script(monkeypatch, run_mim, *command, *push, "--output_dir", tmp_path / "mim", "--disable_tqdm", "true")
    card = hub.files("user/kamim-vit-t")["README.md"].decode()
    assert without_numbers(card) == without_numbers(expected)


@given(st.integers(1, 12), st.sampled_from([1, 2, 4]), st.floats(0.05, 0.95), st.randoms(use_true_random=False))
def test_the_card_says_how_many_blocks_were_masked(blocks_per_side, tokens_per_side, mask_ratio, rng):
    block = 4 * tokens_per_side
    kamim = dataclasses.asdict(KamimArguments()) | {"mask_patch_size": block, "mask_ratio": mask_ratio}
    config = tiny_vit(image_size=block * blocks_per_side, patch_size=4, encoder_stride=4, kamim=kamim)
    num_masked = block_mask(config.image_size, block, 4, mask_ratio, rng).sum() // tokens_per_side**2
    text = " ".join(pretraining_card(Run("mine", "mine", ""), config).text.split())
    assert f"{num_masked} of the {blocks_per_side**2} blocks ({block} px)" in text


def test_the_length_is_the_last_step_and_not_the_last_that_was_logged():
    log = [{"loss": 1.0, "step": 1}, {"loss": 0.9, "step": 20}, {"train_loss": 0.9, "step": 24}]
    config = tiny_vit(kamim=dataclasses.asdict(KamimArguments()))
    assert "for 24 steps of 8 images" in pretraining_card(Run("mine", "mine", ""), config, log, 8).text


def test_the_probe_that_a_run_proposes_reads_its_images(monkeypatch, tmp_path, folder, caplog):
    settings = ["--model_size", "tiny", "--image_size", "32", "--mask_patch_size", "16", "--dataset_name", folder]
    settings += ["--validation_split", "validation", "--max_steps", "1", "--per_device_train_batch_size", "2"]
    with caplog.at_level(logging.INFO):
        script(monkeypatch, run_mim, *settings, "--use_cpu", "--output_dir", tmp_path / "a run")
    kamim, name, *words = next_command(caplog)
    data_args, class_args, _ = parse(CLASSIFICATION_ARGUMENTS, [*words, "--use_cpu"])
    assert (kamim, name) == ("kamim", "evaluate")
    assert data_args == DataArguments(dataset_name=str(folder), validation_split="validation")
    assert class_args.model_name_or_path == str(tmp_path / "a run")


def test_the_run_that_a_preparation_proposes_reads_its_keypoints(monkeypatch, tmp_path, folder, caplog):
    settings = ["--image_size", "32", "--keypoint_detector", "orb", "--crop_min_scale", "0.5"]
    with caplog.at_level(logging.INFO):
        script(monkeypatch, prepare_dataset, folder, tmp_path / "made ready", *settings)
    kamim, name, *words = next_command(caplog)
    data_args, kamim_args, *_ = parse(PRETRAINING_ARGUMENTS, [*words, "--mask_patch_size", "16", "--use_cpu"])
    assert (kamim, name, data_args.dataset_name) == ("kamim", "pretrain", str(tmp_path / "made ready"))
    assert (kamim_args.keypoint_detector, kamim_args.crop_min_scale, kamim_args.image_size) == ("orb", 0.5, 32)


def test_a_failed_push_is_repeated_with_everything_it_was_given(hub, tmp_path, monkeypatch):
    directory = tmp_path / "my run"
    settings = ["--model_size", "tiny", "--image_size", "32", "--mask_patch_size", "16", "--max_steps", "1"]
    settings += ["--max_train_samples", "8", "--max_eval_samples", "8", "--per_device_train_batch_size", "8"]
    script(monkeypatch, run_mim, *settings, "--use_cpu", "--disable_tqdm", "true", "--output_dir", directory)
    hub.fail("POST .*/commit/", 401, times=None)
    given = [str(directory), "--repo", "user/mim", "--results", str(tmp_path), "--private", "true", "--license", "mit"]
    with pytest.raises(InputError) as error:
        script(monkeypatch, push_checkpoint, *given, "--token", hub.token)
    repeat = shlex.split(str(error.value).split("Repeat it: ")[1])
    assert repeat[:10] == ["kamim", "push", *given[:8]]
    assert hub.token not in str(error.value)


def test_a_hub_that_cannot_be_reached_is_named(monkeypatch, tmp_path):
    publisher = Publisher("user/mim", token="none", waits=())
    publisher.api.endpoint = "http://127.0.0.1:9"  # where nothing listens
    with pytest.raises(PublishError, match=r"\(http://127\.0\.0\.1:9\)$"):
        publisher.prepare()
