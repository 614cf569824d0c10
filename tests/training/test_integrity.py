"""Checkpoints with files that are missing, empty, cut, or of another model: none is taken, and none ends a run."""

import json
import random
import shutil
import sys
from pathlib import Path

import pytest
import torch
from background import QUIET, SMALL, VIT
from hypothesis import given, settings
from hypothesis import strategies as st
from loaders import LOADERS, loaders
from safetensors.torch import load_file, save_file
from tiny_models import tiny_swin, tiny_vit
from torch import nn
from transformers import SwinForImageClassification, TrainingArguments

from modeling_kamim import KamimForMaskedImageModeling, KamimViTClassifierConfig, KamimViTForImageClassification
from modeling_kamim.api import pretraining
from modeling_kamim.commands import evaluate as run_classification
from modeling_kamim.commands import pretrain as run_mim
from modeling_kamim.errors import InputError
from modeling_kamim.training.integrity import faults
from modeling_kamim.training.resume import find_checkpoint, whole_checkpoints
from modeling_kamim.training.run_directory import RUN_FILE
from modeling_kamim.training.trainer import PixelTrainer

STEPS = ["--max_steps", "2", "--save_steps", "1", "--per_device_train_batch_size", "4"]
NOT_READ = {"classifier.py"}  # for resuming


class Arguments:
    save_only_model = False

    def __init__(self, output_dir, wanted):
        self.output_dir, self.resume_from_checkpoint = str(output_dir), wanted


def pretrain(monkeypatch, output_dir, *arguments):
    argv = [*VIT, *SMALL, *QUIET, *STEPS, "--output_dir", str(output_dir), *arguments]
    monkeypatch.setattr(sys, "argv", ["run_mim.py", *argv])
    monkeypatch.setattr(pretraining, "draw_reconstructions", lambda *args: None)
    run_mim.main()


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Output directories of a pretraining and of a fine-tuning with averaged weights, two checkpoints in each."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as monkeypatch:
        pretrain(monkeypatch, folder / "pretraining")
        argv = ["--mode", "finetune", "--model_size", "tiny", "--image_size", "32", "--ema_decay", "0.9", "--use_cpu"]
        argv += ["--max_train_samples", "8", "--max_eval_samples", "4", "--disable_tqdm", "true", *STEPS]
        argv += ["--output_dir", str(folder / "finetuning")]
        monkeypatch.setattr(sys, "argv", ["run_classification.py", *argv])
        run_classification.main()
    return [folder / "pretraining", folder / "finetuning"]


@pytest.fixture
def run(runs, tmp_path):
    """A copy of the pretraining's directory."""
    return shutil.copytree(runs[0], tmp_path / "run")


def read_files(checkpoint):
    return sorted(file.name for file in checkpoint.iterdir() if file.name not in NOT_READ)


def assert_passed_over(output_dir, what):
    """`auto` takes the whole checkpoint beside the last one, which is refused where it is named."""
    last = output_dir / "checkpoint-2"
    assert faults(last), what
    assert find_checkpoint(Arguments(output_dir, "auto")) == str(output_dir / "checkpoint-1"), what
    with pytest.raises(InputError, match=r"checkpoint-2'?, which \S+ .*; give a checkpoint-N") as refusal:
        find_checkpoint(Arguments(output_dir, str(last)))
    assert "\n" not in str(refusal.value)


def test_checkpoints_as_they_are_saved_are_whole(runs):
    for output_dir in runs:
        assert [path.name for path in whole_checkpoints(output_dir)] == ["checkpoint-1", "checkpoint-2"]
        names = set(read_files(output_dir / "checkpoint-2"))
        assert {"model.safetensors", "optimizer.pt", "rng_state.pth", RUN_FILE, "run_settings.json"} < names
    assert "ema.safetensors" in names


@settings(max_examples=50)
@given(st.data())
def test_no_file_of_a_checkpoint_may_be_cut(runs, data):
    checkpoint = data.draw(st.sampled_from(runs)) / "checkpoint-2"
    file = checkpoint / data.draw(st.sampled_from(read_files(checkpoint)))
    content = file.read_bytes()
    length = data.draw(st.integers(0, len(content.rstrip()) - 1))
    file.write_bytes(content[:length])
    try:
        assert_passed_over(checkpoint.parent, f"{length} of {len(content)} bytes of {file.name}")
    finally:
        file.write_bytes(content)


def test_no_file_of_a_checkpoint_may_be_empty_missing_or_zeros(runs):
    for output_dir in runs:
        checkpoint = output_dir / "checkpoint-2"
        for name in read_files(checkpoint):
            file = checkpoint / name
            content = file.read_bytes()
            for broken in (b"", bytes(len(content)), None):
                file.unlink() if broken is None else file.write_bytes(broken)
                if broken is not None or name != RUN_FILE:
                    assert_passed_over(output_dir, (name, broken))
            file.write_bytes(content)


def test_the_log_says_what_was_passed_over_and_why(run, caplog):
    (run / "checkpoint-2" / "optimizer.pt").write_bytes(b"")
    with caplog.at_level("INFO"):
        assert find_checkpoint(Arguments(run, "auto")) == str(run / "checkpoint-1")
    assert f"Passed over: {run / 'checkpoint-2'} has an empty optimizer.pt" in caplog.text
    assert f"Resuming from {run / 'checkpoint-1'}" in caplog.text


def test_auto_takes_the_last_whole_checkpoint(run, tmp_path, caplog):
    assert find_checkpoint(Arguments(tmp_path / "nothing", "auto")) is None
    shutil.copytree(run / "checkpoint-2", run / "checkpoint-10")
    shutil.copytree(run / "checkpoint-2", run / ".unfinished" / "checkpoint-16")
    shutil.copytree(run / "checkpoint-2", run / "checkpoint-best")
    assert find_checkpoint(Arguments(run, "auto")) == str(run / "checkpoint-10")
    assert find_checkpoint(Arguments(run, None)) is None and "overwrites" in caplog.text
    (run / "checkpoint-10" / "optimizer.pt").unlink()
    with pytest.raises(InputError, match="lacks optimizer.pt; give"):
        find_checkpoint(Arguments(run, str(run / "checkpoint-10")))
    with pytest.raises(InputError, match="is not a directory; give"):
        find_checkpoint(Arguments(run, str(run / "nowhere")))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("[]", "a list where an object is expected"),
        ("{}", "it lacks epoch, global_step, log_history, max_steps"),
        ('{"epoch": 0, "global_step": "a", "log_history": [], "max_steps": 2}', "global_step is 'a'"),
        ('{"epoch": 0, "global_step": 1, "log_history": [], "max_steps": 2, "x": 1}', "x: not of this version"),
    ],
)
def test_a_state_that_the_trainer_could_not_read(run, content, reason):
    (run / "checkpoint-2" / "trainer_state.json").write_text(content)
    (found,) = faults(run / "checkpoint-2")
    assert reason in found


def models():
    shape = {key: value for key, value in tiny_vit().to_dict().items() if key != "model_type"}
    return {
        "ViT": KamimForMaskedImageModeling.from_config(tiny_vit()),
        "Swin": KamimForMaskedImageModeling.from_config(tiny_swin()),
        "ViT classifier": KamimViTForImageClassification(KamimViTClassifierConfig(**shape)),
        "Swin classifier": SwinForImageClassification(tiny_swin()),
    }


def change(file, what, seed=0):
    """Leave a weight out, add one, or give one another shape."""
    weights = load_file(file)
    name = random.Random(seed).choice(sorted(weights))
    if what == "missing":
        del weights[name]
    elif what == "added":
        weights["another"] = torch.zeros(1)
    else:
        weights[name] = torch.zeros(*weights[name].shape, 2)
    save_file(weights, file, {"format": "pt"})
    return name


REASONS = {"missing": "lacks weights", "added": "weights of another model", "reshaped": "weights of other shapes"}


@pytest.mark.parametrize("what", REASONS)
@pytest.mark.parametrize("name", list(models()))
def test_weights_must_be_those_of_the_model(run, tmp_path, name, what):
    models()[name].save_pretrained(tmp_path / "model")
    for file in ("config.json", "model.safetensors"):
        shutil.copyfile(tmp_path / "model" / file, run / "checkpoint-2" / file)
    assert faults(run / "checkpoint-2") == []
    for seed in range(5):
        shutil.copyfile(tmp_path / "model" / "model.safetensors", run / "checkpoint-2" / "model.safetensors")
        change(run / "checkpoint-2" / "model.safetensors", what, seed)
        (reason,) = faults(run / "checkpoint-2")
        assert reason.startswith(f"{'' if what == 'missing' else 'has '}{REASONS[what]} (")


def test_the_parts_of_a_model_in_parts_are_there(run):
    checkpoint = run / "checkpoint-2"
    model = KamimForMaskedImageModeling.from_pretrained(checkpoint)
    (checkpoint / "model.safetensors").unlink()
    model.save_pretrained(checkpoint, max_shard_size="5MB")
    index = json.loads((checkpoint / "model.safetensors.index.json").read_text())
    signed = json.loads((checkpoint / RUN_FILE).read_text())
    signed["files"] = sorted({*signed["files"], *index["weight_map"].values()} - {"model.safetensors"})
    (checkpoint / RUN_FILE).write_text(json.dumps(signed))
    assert faults(checkpoint) == []
    part = checkpoint / index["weight_map"]["decoder.0.bias"]
    part.rename(run / "away")
    assert faults(checkpoint) == [f"lacks {part.name}"]


def test_broken_checkpoints_end_no_run(monkeypatch, run, caplog):
    content = (run / "checkpoint-2" / "model.safetensors").read_bytes()
    (run / "checkpoint-2" / "model.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=r"checkpoint-2', which has a model.safetensors that is cut or damaged"):
        pretrain(monkeypatch, run, "--resume_from_checkpoint", str(run / "checkpoint-2"))
    with caplog.at_level("INFO"):
        pretrain(monkeypatch, run, "--resume_from_checkpoint", "auto")
    assert f"Resuming from {run / 'checkpoint-1'}" in caplog.text
    assert (run / "checkpoint-2" / "model.safetensors").read_bytes() == content


@pytest.mark.parametrize("what", ["missing", "reshaped", "cut"])
@pytest.mark.parametrize("name", LOADERS)
def test_no_loader_makes_up_weights(tmp_path, name, what):
    load, checkpoint = loaders(tmp_path)[name], tmp_path / "checkpoint"
    KamimForMaskedImageModeling.from_config(tiny_vit()).save_pretrained(checkpoint)
    file = checkpoint / "model.safetensors"
    weights = load_file(file)
    key = next(key for key in weights if "layer.1" in key and "weight" in key)
    if what == "cut":
        file.write_bytes(file.read_bytes()[:-100])
    else:
        changed = {"reshaped": {key: torch.zeros(3)}, "missing": {}}[what]
        save_file({k: v for k, v in weights.items() if k != key} | changed, file, {"format": "pt"})
    with pytest.raises(InputError, match=r"lacks weights \(|weights of other shapes \(|cannot load") as error:
        load(checkpoint)
    assert "\n" not in str(error.value)


def test_a_run_takes_no_weights_of_another_model(tmp_path):
    """Neither a model of transformers, nor one of plain torch."""

    def trainer(model):
        return PixelTrainer(model, TrainingArguments(str(tmp_path / "out"), use_cpu=True, report_to="none"))

    saved = {"model": models()["ViT"], "module": nn.Linear(2, 3)}
    other = {
        "model": KamimForMaskedImageModeling.from_config(tiny_vit(intermediate_size=32)),
        "module": nn.Linear(2, 4),
    }
    for kind in saved:
        trainer(saved[kind]).save_model(str(tmp_path / kind))
        with torch.no_grad():
            twin = {"model": lambda: models()["ViT"], "module": lambda: nn.Linear(2, 3)}[kind]()
        trainer(twin)._load_from_checkpoint(str(tmp_path / kind))
        expected = saved[kind].state_dict()
        assert all(torch.equal(value, expected[name]) for name, value in twin.state_dict().items())
        with pytest.raises(InputError, match="weights of other shapes|are of another model"):
            trainer(other[kind])._load_from_checkpoint(str(tmp_path / kind))


def test_a_probe_on_features_goes_on(monkeypatch, tmp_path):
    """Its checkpoints hold a linear layer alone, and no config.json."""
    argv = ["--model_size", "tiny", "--image_size", "32", "--augmentation", "none", "--use_cpu", "--precision", "fp32"]
    argv += ["--max_train_samples", "8", "--max_eval_samples", "4", "--disable_tqdm", "true", *STEPS]

    def probe(output_dir, *arguments):
        monkeypatch.setattr(sys, "argv", ["run_classification.py", *argv, "--output_dir", str(output_dir), *arguments])
        run_classification.main()

    probe(tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    (tmp_path / "cut" / "checkpoint-2" / "optimizer.pt").unlink()
    assert [path.name for path in whole_checkpoints(tmp_path / "cut")] == ["checkpoint-1"]
    probe(tmp_path / "cut", "--resume_from_checkpoint", "auto")
    whole, cut = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(cut[name], whole[name]) for name in whole)


def test_a_checkpoint_in_another_place_is_the_same(run, tmp_path):
    moved = Path(shutil.move(run, tmp_path / "moved"))
    assert find_checkpoint(Arguments(moved, "auto")) == str(moved / "checkpoint-2")
