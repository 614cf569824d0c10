"""Schedules, predicted losses and selections: each trains, says so in log and card, and resumes to the bit."""

import json
import sys

import pytest
import torch
from background import QUIET, VIT
from safetensors.torch import load_file

from modeling_kamim import KamimForMaskedImageModeling
from modeling_kamim.commands import pretrain as run_mim
from modeling_kamim.errors import InputError
from modeling_kamim.models.sizes import build_config
from modeling_kamim.training.arguments import KamimArguments
from modeling_kamim.training.hard_patches import HardPatches, predicted_losses
from modeling_kamim.training.trainer import MaskedImageTrainer

FEW = ["--max_train_samples", "24", "--use_cpu", "--precision", "fp32", "--per_device_train_batch_size", "4"]
FEW += ["--max_eval_samples", "4", "--max_steps", "8", "--save_steps", "3"]
MAE = ["--model_type", "vit_mae", "--model_size", "base", "--image_size", "32", "--patch_size", "8"]
MAE += ["--config_overrides", "hidden_size=32,num_hidden_layers=1,num_attention_heads=2,intermediate_size=64,"]
MAE[-1] += (
    "decoder_hidden_size=32,decoder_num_hidden_layers=1,decoder_num_attention_heads=2,decoder_intermediate_size=64"
)
TINY = [*VIT, "--patch_size", "8", "--weight_patch_size", "8"]
CASES = {
    "cosine temperature": [*TINY, "--temperature_schedule", "cosine", "--temperature_end", "1"],
    "loss predictor": [*TINY, "--weighting", "none", "--loss_predictor", "true"],
    "loss predictor, MAE": [*MAE, "--weighting", "none", "--loss_predictor", "true"],
    "predicted weights": [*TINY, "--weighting", "predicted_loss"],
    "easy to hard": [*MAE, "--weighting", "none", "--masking", "easy_to_hard"],
    "selection": [*TINY, "--weighting", "none", "--selection_ratio", "0.5"],
    "selection, keypoints, 2 workers": [*TINY, "--selection_ratio", "0.5", "--dataloader_num_workers", "2"],
    "random selection": [*TINY, "--selection_ratio", "0.5", "--selection", "random", "--selection_every", "2"],
    "reversed selection": [*MAE, "--selection_ratio", "0.5", "--selection", "reversed"],
}
CARD = {
    "cosine temperature": "by a cosine schedule to 1.0",
    "loss predictor": "A small head learned which patches have large errors",
    "loss predictor, MAE": "A small head learned which patches have large errors",
    "predicted weights": "by the error that the head expects",
    "easy to hard": "more and more of the blocks with the largest expected errors were masked, half of them",
    "selection": "50% of the images, those with the hardest patches",
    "selection, keypoints, 2 workers": "50% of the images, those with the hardest patches",
    "random selection": "50% of the images, drawn at random every 2 epochs",
    "reversed selection": "50% of the images, those with the easiest patches",
}


def run(monkeypatch, output_dir, *argv):
    monkeypatch.setattr(sys, "argv", ["kamim pretrain", *QUIET, *FEW, *argv, "--output_dir", str(output_dir)])
    run_mim.main()
    state = json.loads((output_dir / "trainer_state.json").read_text())
    return [entry for entry in state["log_history"] if "loss" in entry]


@pytest.mark.parametrize("case", CASES)
def test_it_trains_resumes_to_the_bit_and_is_told_in_the_card(monkeypatch, tmp_path, case):
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    log = run(monkeypatch, whole, *CASES[case], "--save_total_limit", "0")
    again = run(monkeypatch, resumed, *CASES[case], "--resume_from_checkpoint", str(whole / "checkpoint-3"))
    for name in ("model.safetensors", "loss_predictor.safetensors"):
        assert (whole / name).is_file() == (name == "model.safetensors" or "ranking_accuracy" in log[0])
        if (whole / name).is_file():
            expected, found = load_file(whole / name), load_file(resumed / name)
            assert expected.keys() == found.keys()
            assert all(torch.equal(expected[key], found[key]) for key in expected)
    assert [entry["loss"] for entry in log] == [entry["loss"] for entry in again]
    assert CARD[case] in " ".join((whole / "README.md").read_text().split())
    assert not any("loss_predictor" in name for name in load_file(whole / "model.safetensors"))


def test_the_temperature_of_each_step_is_in_the_log(monkeypatch, tmp_path):
    settings = ["--temperature", "0.2", "--temperature_schedule", "linear", "--temperature_end", "1"]
    log = run(monkeypatch, tmp_path / "run", *TINY, *settings, "--save_strategy", "no")
    # a log is written behind its step, and shows the temperature of the next one
    assert [entry["temperature"] for entry in log] == pytest.approx([0.2 + 0.8 * step / 8 for step in range(1, 9)])


def model_of(argv):
    words = dict(zip(argv[::2], argv[1::2], strict=True))
    size, overrides = words["--model_size"], words.get("--config_overrides")
    model = KamimForMaskedImageModeling.from_config(
        build_config(words["--model_type"], size, 32, overrides, patch_size=8)
    )
    model.add_loss_predictor()
    return model


@pytest.mark.parametrize("argv", [TINY[:-2], MAE], ids=["ViT", "MAE"])
def test_masks_turn_from_random_to_half_by_score(argv):
    torch.manual_seed(0)
    model = model_of([word for word in argv if word not in ("--mask_patch_size", "16")])
    batch = {"pixel_values": torch.randn(6, 3, 32, 32), "bool_masked_pos": torch.zeros(6, 16, dtype=torch.bool)}
    batch["block_order"] = torch.stack([torch.randperm(16) for _ in range(6)])
    hard = HardPatches(None, (4, 4), 0.75)
    model.train()
    masks = {done: hard(batch, model, done)["bool_masked_pos"] for done in (0.0, 0.5, 1.0)}
    assert model.training and all(mask.sum(dim=1).tolist() == [12] * 6 for mask in masks.values())
    scores = predicted_losses(model, batch["pixel_values"])
    for image in range(6):
        order = batch["block_order"][image].tolist()
        assert set(masks[0.0][image].nonzero().flatten().tolist()) == set(order[:12])
        for done in (0.5, 1.0):
            count = int(0.5 * done * 12)
            hardest = scores[image].topk(count).indices.tolist()
            others = [block for block in order if block not in hardest][: 12 - count]
            assert set(masks[done][image].nonzero().flatten().tolist()) == {*hardest, *others}
    without_order = {key: batch[key] for key in ("pixel_values", "bool_masked_pos")}
    assert hard(without_order, model, 1.0)["bool_masked_pos"] is batch["bool_masked_pos"]


def test_weights_follow_the_ranks_of_the_scores():
    torch.manual_seed(0)
    model = model_of(MAE)
    batch = {"pixel_values": torch.randn(2, 3, 32, 32), "bool_masked_pos": torch.zeros(2, 16, dtype=torch.bool)}
    density = HardPatches((8, 8), None, 0.75)(batch, model, 0.0)["keypoint_density"]
    scores = predicted_losses(model, batch["pixel_values"])
    for image in range(2):
        expected = [(scores[image] < score).sum().item() / 15 for score in scores[image]]
        found = density[image].unflatten(0, (4, 2)).unflatten(2, (4, 2))  # each patch is 2 x 2 cells
        assert (found == found[:, :1, :, :1]).all()
        assert found[:, 0, :, 0].flatten().tolist() == pytest.approx(expected)


@pytest.mark.parametrize("argv", [TINY[:-2], MAE], ids=["ViT", "MAE"])
def test_the_head_learns_the_ranking_and_leaves_the_reconstruction_alone(argv):
    torch.manual_seed(0)
    model = model_of([word for word in argv if word not in ("--mask_patch_size", "16")]).eval()
    pixels, mask = torch.randn(4, 3, 32, 32), torch.zeros(4, 16, dtype=torch.bool)
    pixels[:, :, :16] *= 0.05  # the upper half is flat, and easy to fill in with its mean
    mask[:, ::2] = True
    head, model.loss_predictor = model.loss_predictor, None
    plain = model(pixel_values=pixels, bool_masked_pos=mask)
    model.loss_predictor = head
    found = model(pixel_values=pixels, bool_masked_pos=mask)
    torch.testing.assert_close(found.reconstruction, plain.reconstruction)
    assert plain.predicted_losses is None and torch.equal(found.masked_l1, plain.masked_l1)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for _ in range(120):
        found = model(pixel_values=pixels, bool_masked_pos=mask)
        optimizer.zero_grad()
        found.loss.backward()
        optimizer.step()
    assert found.ranking_accuracy > 0.75  # guessing: 0.5


def test_settings_that_contradict_each_other_are_refused():
    with pytest.raises(InputError, match="mask_patch_size is 16, and the loss predictor tells patches of 32 px apart"):
        KamimArguments(
            model_type="swin", model_size="tiny", image_size=64, mask_patch_size=16, loss_predictor=True,
            config_overrides="window_size=2",
        )  # fmt: skip
    with pytest.raises(InputError, match="selection_ratio is 0.0; it must be a share of the images"):
        KamimArguments(model_size="tiny", selection_ratio=0.0)
    assert KamimArguments(model_size="tiny", selection_ratio=0.5).loss_predictor
    assert not KamimArguments(model_size="tiny", selection_ratio=0.5, selection="random").loss_predictor


def test_a_checkpoint_without_the_head_is_refused(monkeypatch, tmp_path):
    run(monkeypatch, tmp_path / "run", *CASES["loss predictor"])
    (tmp_path / "run/checkpoint-6/loss_predictor.safetensors").unlink()
    with pytest.raises(InputError, match="lacks loss_predictor.safetensors"):
        checkpoint = str(tmp_path / "run/checkpoint-6")
        run(monkeypatch, tmp_path / "on", *CASES["loss predictor"], "--resume_from_checkpoint", checkpoint)


def test_shards_are_refused(monkeypatch, tmp_path):
    # transformers' own set-up must not see it, which needs a launcher
    is_sharded = property(lambda self: "sampler" in vars(self), lambda self, value: None)
    monkeypatch.setattr(MaskedImageTrainer, "is_fsdp_enabled", is_sharded, raising=False)
    with pytest.raises(InputError, match="no process has under FSDP"):
        run(monkeypatch, tmp_path / "run", *CASES["predicted weights"])
