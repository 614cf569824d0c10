"""Going on with a run that is finished, or with one of several seeds: nothing is trained twice."""

import hashlib
import json
import shutil
import sys

import pytest
from safetensors.torch import load_file

from modeling_kamim.commands import evaluate as run_classification
from modeling_kamim.commands import pretrain as run_mim
from modeling_kamim.errors import InputError
from modeling_kamim.training.trainer import PixelTrainer

STEPS = [
    "--max_train_samples",
    "20",
    "--max_eval_samples",
    "15",
    "--per_device_train_batch_size",
    "8",
    "--max_steps",
    "4",
]
QUIET = ["--use_cpu", "--precision", "fp32", "--disable_tqdm", "true", "--logging_steps", "1", "--save_steps", "2"]
VIT = ["--model_type", "vit", "--model_size", "tiny", "--image_size", "32"]
MASKED = [*VIT, "--mask_patch_size", "16"]
FINETUNE = ["--mode", "finetune", *VIT, "--ema_decay", "0.9"]
PROBE = [*VIT, "--layer", "2", "--augmentation", "none"]
AUTO = ["--resume_from_checkpoint", "auto"]


def run(script, monkeypatch, output_dir, *arguments):
    monkeypatch.setattr(sys, "argv", [script.__name__, *QUIET, *arguments, "--output_dir", str(output_dir)])
    script.main()


def digest(output_dir):
    return hashlib.sha256((output_dir / "model.safetensors").read_bytes()).hexdigest()


def checkpoints(output_dir):
    return sorted(path.name for path in output_dir.glob("checkpoint-*"))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """The embedded photographs as Parquet, for streams."""
    from modeling_kamim.data.photographs import load_photographs

    folder = tmp_path_factory.mktemp("parquet")
    for split, rows in load_photographs().items():
        rows.select(range(40)).to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return folder


CASES = {
    "pretraining": (run_mim, [*MASKED, *STEPS]),
    "stream": (run_mim, [*MASKED, "--streaming", "true", *STEPS[2:]]),
    "fine-tuning, averaged": (run_classification, [*FINETUNE, *STEPS]),
    "probe on features": (run_classification, [*PROBE, *STEPS]),
}


@pytest.fixture(params=CASES)
def case(request, prepared):
    """A script and its arguments; 4 steps end in the midst of an epoch."""
    script, arguments = CASES[request.param]
    return script, [*arguments, *(["--dataset_name", str(prepared)] if "--streaming" in arguments else [])]


@pytest.mark.parametrize("lost", [None, "model.safetensors"], ids=["whole", "killed while the model was written"])
def test_a_finished_run_is_not_trained_again(monkeypatch, tmp_path, caplog, case, lost):
    script, arguments = case
    run(script, monkeypatch, tmp_path, *arguments)
    expected, names = digest(tmp_path), checkpoints(tmp_path)
    measured = json.loads((tmp_path / "train_results.json").read_text())
    if lost:
        (tmp_path / lost).unlink()
        (tmp_path / "README.md").unlink()
    monkeypatch.setattr(PixelTrainer, "training_step", lambda *args, **kwargs: pytest.fail("it trains"))
    caplog.set_level("INFO")
    run(script, monkeypatch, tmp_path, *arguments, *AUTO)
    assert "The run is finished" in caplog.text and "all of its 4 steps" in caplog.text
    assert (digest(tmp_path), checkpoints(tmp_path)) == (expected, names)
    assert json.loads((tmp_path / "train_results.json").read_text()) == measured
    assert (tmp_path / "README.md").is_file()


def test_a_run_killed_before_its_last_checkpoint_trains_the_planned_steps(monkeypatch, tmp_path, case):
    script, arguments = case
    run(script, monkeypatch, tmp_path, *arguments)
    expected = load_file(tmp_path / "model.safetensors")
    shutil.rmtree(tmp_path / "checkpoint-4")
    run(script, monkeypatch, tmp_path, *arguments, *AUTO)
    assert checkpoints(tmp_path) == ["checkpoint-2", "checkpoint-4"]
    found = load_file(tmp_path / "model.safetensors")
    assert all((expected[name] == found[name]).all() for name in expected)


def test_each_seed_goes_on_by_itself(monkeypatch, tmp_path):
    arguments = [*PROBE, *STEPS, "--seeds", "1", "2"]
    run(run_classification, monkeypatch, tmp_path, *arguments)
    expected = json.loads((tmp_path / "results.json").read_text())["rows"]
    digests = [digest(tmp_path / f"seed-{seed}") for seed in (1, 2)]
    shutil.rmtree(tmp_path / "seed-2" / "checkpoint-4")
    (tmp_path / "seed-2" / "model.safetensors").unlink()
    steps = []
    step = PixelTrainer.training_step
    monkeypatch.setattr(
        PixelTrainer, "training_step", lambda self, *a, **k: (steps.append(self.args.seed), step(self, *a, **k))[1]
    )
    run(run_classification, monkeypatch, tmp_path, *arguments, *AUTO)
    assert steps == [2, 2]
    assert [digest(tmp_path / f"seed-{seed}") for seed in (1, 2)] == digests
    found = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert [row["top1"] for row in found] == [row["top1"] for row in expected]


def test_one_checkpoint_for_several_seeds_is_refused(monkeypatch, tmp_path):
    with pytest.raises(InputError, match="each of the --seeds has checkpoints of its own; give auto"):
        run(run_classification, monkeypatch, tmp_path, *PROBE, "--seeds", "1", "2", "--resume_from_checkpoint", "x")


@pytest.mark.parametrize(
    "workers", [["0"], ["1", "--dataloader_persistent_workers", "true"]], ids=["none", "persistent"]
)
def test_every_evaluation_masks_alike(monkeypatch, tmp_path, workers):
    """At learning rate 0 all scores of a run are one number."""
    still = ["--learning_rate", "0", "--lr_scheduler_type", "constant", "--eval_strategy", "steps", "--eval_steps", "1"]
    still += ["--load_best_model_at_end", "true", "--metric_for_best_model", "masked_l1", "--save_steps", "1"]
    still += ["--warmup_steps", "0", "--dataloader_num_workers", *workers]
    run(run_mim, monkeypatch, tmp_path, *MASKED, *STEPS, *still)
    log = json.loads((tmp_path / "trainer_state.json").read_text())["log_history"]
    scores = [entry["eval_masked_l1"] for entry in log if "eval_masked_l1" in entry]
    assert len(scores) >= 4 and len(set(scores)) == 1


TUNE = ["--mode", "finetune", *VIT, "--drop_path", "0.5", "--augmentation", "none", *STEPS, "--max_steps", "7"]
SCORES = ["--eval_strategy", "steps", "--eval_steps", "1"]
LASTING = [*SCORES, "--dataloader_num_workers", "1", "--dataloader_persistent_workers", "true"]


@pytest.mark.parametrize(("first", "then"), [([], SCORES), (LASTING, LASTING)], ids=["evaluations", "lasting workers"])
def test_drop_path_is_drawn_alike_whatever_evaluations_and_workers(monkeypatch, tmp_path, first, then):
    run(run_classification, monkeypatch, tmp_path, *TUNE, *first, "--save_total_limit", "9")
    expected = load_file(tmp_path / "model.safetensors")
    for step in (4, 6, 7):
        shutil.rmtree(tmp_path / f"checkpoint-{step}")
    run(run_classification, monkeypatch, tmp_path, *TUNE, *then, "--save_total_limit", "9", *AUTO)
    found = load_file(tmp_path / "model.safetensors")
    assert all((expected[name] == found[name]).all() for name in expected)


def test_a_moved_run_keeps_its_best_weights(monkeypatch, tmp_path):
    best = [*SCORES, "--load_best_model_at_end", "true", "--save_steps", "1", "--learning_rate", "0.1"]
    arguments = [*TUNE, *best, "--metric_for_best_model", "loss", "--save_total_limit", "9"]
    run(run_classification, monkeypatch, tmp_path / "run", *arguments)
    expected = digest(tmp_path / "run")
    (tmp_path / "run").rename(tmp_path / "moved")
    run(run_classification, monkeypatch, tmp_path / "moved", *arguments, *AUTO)
    assert digest(tmp_path / "moved") == expected


def test_log_and_save_settings_of_the_resumed_run_count(monkeypatch, tmp_path):
    run(run_mim, monkeypatch, tmp_path, *MASKED, *STEPS)
    shutil.rmtree(tmp_path / "checkpoint-4")
    run(run_mim, monkeypatch, tmp_path, *MASKED, *STEPS, *AUTO, "--save_steps", "3", "--logging_steps", "4")
    log = json.loads((tmp_path / "trainer_state.json").read_text())["log_history"]
    assert [entry["step"] for entry in log if "loss" in entry] == [1, 2, 4]
    assert (tmp_path / "checkpoint-3").is_dir()


def test_weights_alone_are_nothing_to_go_on_with(monkeypatch, tmp_path, caplog):
    run(run_mim, monkeypatch, tmp_path, *MASKED, *STEPS, "--save_only_model", "true")
    assert "hold the weights alone (--save_only_model): it cannot be resumed" in caplog.text
