"""Runs that are killed, and go on as if they had not been: the same weights to the last bit."""

import json
import os
import random
import re
import shutil
import signal
import sys
import time
from contextlib import nullcontext
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from background import QUIET, RUN, SMALL, SWIN, VIT, count_steps, finish, kill, wait_for
from PIL import Image
from safetensors.torch import load_file

from modeling_kamim.api.groups import CLASSIFICATION_ARGUMENTS, PRETRAINING_ARGUMENTS
from modeling_kamim.commands import prepare as prepare_dataset
from modeling_kamim.commands import pretrain as run_mim
from modeling_kamim.commands.parser import parse
from modeling_kamim.errors import InputError
from modeling_kamim.training.resume import _MAY_DIFFER, check_settings, run_settings, whole_checkpoints
from modeling_kamim.training.signals import resume_command


def weights(output_dir):
    return load_file(output_dir / "model.safetensors")


def assert_same_weights(first, second):
    first, second = weights(first), weights(second)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def kill_and_resume(start, tmp_path, arguments, kills, seed):
    """The uninterrupted run, and one that is killed at random moments: in steps, and while checkpoints are written."""
    arguments = [*arguments, *SMALL, *RUN, *QUIET]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    finish(start(whole, *arguments), whole)
    rng = random.Random(seed)
    log = Path(f"{killed}.log")
    for _ in range(kills):
        steps = rng.randrange(2, 6) + count_steps(log)
        process = start(killed, *arguments, "--resume_from_checkpoint", "auto")
        wait_for(lambda steps=steps: count_steps(log) >= steps, process)
        time.sleep(rng.uniform(0, 0.3))
        kill(process)
        assert process.exitcode == -signal.SIGKILL
    finish(start(killed, *arguments, "--resume_from_checkpoint", "auto"), killed)
    assert_same_weights(whole, killed)
    return log.read_text()


QUICK_CASES = {
    "ViT, map, in an epoch, accumulation": (2, [*VIT, "--gradient_accumulation_steps", "2"]),
    "ViT, online, a worker": (1, [*VIT, "--keypoint_source", "online", "--dataloader_num_workers", "1"]),
}


@pytest.mark.parametrize("case", QUICK_CASES)
def test_a_killed_run_ends_with_the_same_weights(start, tmp_path, case):
    kills, arguments = QUICK_CASES[case]
    log = kill_and_resume(start, tmp_path, arguments, kills, seed=len(case))
    assert "Resuming from" in log


SLOW_CASES = [
    [*model, "--keypoint_source", source, "--dataloader_num_workers", workers, "--gradient_accumulation_steps", steps]
    for model in (VIT, SWIN)
    for source in ("map", "online")
    for workers in ("0", "2")
    for steps in ("1", "2")
]


@pytest.mark.slow
@pytest.mark.parametrize("case", SLOW_CASES, ids=lambda case: "-".join(case[1::2]))
def test_killed_runs_of_all_kinds_end_with_the_same_weights(start, tmp_path, case):
    kill_and_resume(start, tmp_path, case, kills=2, seed=SLOW_CASES.index(case))


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["0", "2"])
def test_killed_runs_on_prepared_data_end_with_the_same_weights(start, tmp_path, monkeypatch, photographs, workers):
    from PIL import Image

    (tmp_path / "images").mkdir()
    for number in range(40):
        Image.fromarray(photographs[number % 6][number : number + 60]).save(tmp_path / "images" / f"{number}.png")
    prepared = tmp_path / "prepared"
    monkeypatch.setattr(sys, "argv", ["kamim prepare", str(tmp_path / "images"), str(prepared), "--image_size", "32"])
    prepare_dataset.main()
    arguments = [*VIT, "--dataset_name", str(prepared), "--dataloader_num_workers", workers]
    kill_and_resume(start, tmp_path, arguments, kills=2, seed=int(workers))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "Ctrl-C"])
def test_a_signal_saves_and_tells_how_to_go_on(start, tmp_path, number):
    arguments = [*VIT, *SMALL, *RUN, *QUIET, "--save_steps", "100"]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    finish(start(whole, *arguments), whole)
    process = start(stopped, *arguments, "--dataloader_num_workers", "1")
    log = Path(f"{stopped}.log")
    wait_for(lambda: count_steps(log) > 0, process)
    kill(process, number)
    assert process.exitcode == 128 + number
    text = log.read_text()
    assert f"stopped by signal {int(number)} at step" in text and "Traceback" not in text
    assert "--resume_from_checkpoint auto" in text
    finish(start(stopped, *arguments, "--resume_from_checkpoint", "auto"), stopped)
    assert_same_weights(whole, stopped)


def test_a_worker_that_dies_is_named_and_no_step_lost(start, tmp_path):
    output_dir = tmp_path / "run"
    endless = ["--max_steps", "10000", "--save_steps", "10000", "--dataloader_num_workers", "1"]
    process = start(output_dir, *VIT, *SMALL, *RUN, *QUIET, *endless)
    log = Path(f"{output_dir}.log")
    wait_for(lambda: count_steps(log) > 2, process)
    wait_for(lambda: kill_a_child(process.pid), process)
    process.join(60)
    assert process.exitcode == 1
    (checkpoint,) = whole_checkpoints(output_dir)
    message = log.read_text()
    assert "a process that loads data died" in message and f"{checkpoint} is saved; go on with" in message
    assert int(checkpoint.name.removeprefix("checkpoint-")) == count_steps(log)


def kill_a_child(pid):
    """Kill the newest child of a process that is a copy of it; whether there was one."""
    children = [
        int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()
    ]
    for child in children:
        os.kill(child, signal.SIGKILL)
    return bool(children)


def checkpoint(folder, leave_out=()):
    folder.mkdir(parents=True)
    names = ["config.json", "optimizer.pt", "scheduler.pt", "trainer_state.json", "model.safetensors", "rng_state.pth"]
    for name in set(names) - set(leave_out):
        (folder / name).write_text("{}")
    return folder


def test_settings_that_change_the_result_are_refused(monkeypatch, tmp_path, caplog):
    def pretrain(*arguments):
        argv = [*VIT, *SMALL, *QUIET, "--max_steps", "2", "--save_steps", "1", "--per_device_train_batch_size", "4"]
        monkeypatch.setattr(sys, "argv", ["run_mim.py", *argv, "--output_dir", str(tmp_path), *arguments])
        run_mim.main()

    pretrain()
    resume = ["--resume_from_checkpoint", str(tmp_path / "checkpoint-1")]
    for arguments in (["--temperature", "0.5"], ["--learning_rate", "0.1"], ["--seed", "1"], ["--max_steps", "1"]):
        name, value = arguments[0].strip("-"), arguments[1]
        with pytest.raises(InputError, match=rf"{name}: .* in the checkpoint, {value}.* now.*--force_resume"):
            pretrain(*resume, *arguments)
    with pytest.raises(InputError, match="num_train_images: 40 in the checkpoint, 20 now"):
        pretrain(*resume, "--max_train_samples", "20", "--force_resume", "false")
    caplog.clear()
    pretrain(*resume, "--logging_steps", "2", "--dataloader_num_workers", "1")
    assert "Differs from the checkpoint: logging_steps" in caplog.text
    pretrain(*resume, "--temperature", "0.5", "--force_resume", "true")


@pytest.mark.parametrize(
    "arguments",
    [
        "--ignore_data_skip true",
        "--dataloader_drop_last true",
        "--train_sampling_strategy sequential",
        "--data_seed 7",
        '--accelerator_config {"even_batches":false}',
        "--dataloader_in_order false",
        "--max_grad_norm 2",
        "--bf16 true --precision auto",
    ],
)
def test_settings_of_the_sampler_and_the_numbers_are_refused(tmp_path, arguments):
    def settings(*more):
        return run_settings(*parse(PRETRAINING_ARGUMENTS, ["--use_cpu", "--precision", "fp32", *more]))

    (tmp_path / "run_settings.json").write_text(json.dumps(settings()))
    check_settings(str(tmp_path), settings("--run_name", "other", "--use_cpu", "true"), force=False)
    name = arguments.split()[0].removeprefix("--")
    with pytest.raises(InputError, match=rf"would change the result: .*{name}: "):
        check_settings(str(tmp_path), settings(*arguments.split()), force=False)


def test_a_setting_that_nobody_thought_of_is_refused(tmp_path):
    (tmp_path / "run_settings.json").write_text(json.dumps({"brand_new": 1}))
    with pytest.raises(InputError, match="brand_new: 1 in the checkpoint, 2 now"):
        check_settings(str(tmp_path), {"brand_new": 2}, force=False)


def test_what_may_differ_are_settings_that_there_are():
    known = {field.name for kind in (*PRETRAINING_ARGUMENTS, *CLASSIFICATION_ARGUMENTS) for field in fields(kind)}
    for reason, pattern in _MAY_DIFFER.items():
        for part in re.split(r"\|(?![^(]*\))", pattern):
            assert any(re.fullmatch(part, name) for name in known), (reason, part)


def test_data_are_compared_by_their_content(monkeypatch, tmp_path, astronaut):
    """A folder that was moved is the same data; one with another image of the same name is not."""

    def pretrain(folder, *arguments):
        argv = [
            *VIT,
            *QUIET,
            "--use_cpu",
            "--max_steps",
            "2",
            "--save_steps",
            "1",
            "--per_device_train_batch_size",
            "4",
        ]
        argv += ["--dataset_name", str(folder), "--output_dir", str(tmp_path / "run"), *arguments]
        monkeypatch.setattr(sys, "argv", ["run_mim.py", *argv])
        run_mim.main()

    images = tmp_path / "images"
    images.mkdir()
    for number in range(6):
        Image.fromarray(astronaut[64 * number : 64 * number + 64, :64]).save(images / f"{number}.png")
    pretrain(images)
    resume = ["--resume_from_checkpoint", str(tmp_path / "run" / "checkpoint-1")]
    pretrain(images.rename(tmp_path / "moved"), *resume)
    Image.fromarray(astronaut[:64, 64:128]).save(tmp_path / "moved" / "3.png")
    with pytest.raises(InputError, match="the training images are not those that the checkpoint was trained on"):
        pretrain(tmp_path / "moved", *resume)


def test_a_longer_run_says_what_becomes_of_the_schedule(monkeypatch, tmp_path, caplog):
    def pretrain(*arguments):
        argv = [*VIT, *SMALL, *QUIET, "--save_steps", "2", "--per_device_train_batch_size", "8"]
        monkeypatch.setattr(sys, "argv", ["run_mim.py", *argv, "--output_dir", str(tmp_path), *arguments])
        run_mim.main()

    pretrain("--max_steps", "4", "--learning_rate", "1e-3")
    pretrain("--max_steps", "6", "--learning_rate", "1e-3", "--resume_from_checkpoint", "auto")
    assert "planned for 4 steps and is now for 6: from step 4 on" in caplog.text
    state = json.loads((tmp_path / "trainer_state.json").read_text())
    assert state["global_step"] == 6
    rates = [entry["learning_rate"] for entry in state["log_history"] if "loss" in entry]
    assert f"The learning rate goes on with {rates[4]:.3g}" in caplog.text
    assert rates[4] > rates[5]  # a cosine of 6 steps; that of 4 climbs behind its end


@pytest.mark.parametrize(
    ("model", "allowed"),
    [
        ({"mask_ratio": 0.6, "model_type": "vit"}, True),
        ({"mask_ratio": 0.6, "model_type": "swin"}, False),  # drop path is drawn for a batch
        ({"mode": "finetune", "model_type": "vit"}, False),  # so are CutMix and MixUp
    ],
)
def test_equal_images_per_step_may_come_in_other_batches(tmp_path, model, allowed):
    then = {**model, "images_per_step": 64, "per_device_train_batch_size": 64}
    (tmp_path / "run_settings.json").write_text(json.dumps(then))
    with nullcontext() if allowed else pytest.raises(InputError, match="per_device_train_batch_size: 64 in the check"):
        check_settings(str(tmp_path), {**then, "per_device_train_batch_size": 16}, force=False)
    with pytest.raises(InputError, match="images_per_step: 64 in the checkpoint, 32 now"):
        check_settings(str(tmp_path), {**then, "images_per_step": 32}, force=False)


SCORING = ["eval_steps", "max_eval_samples", "per_device_eval_batch_size", "metric_for_best_model", "save_steps"]


@pytest.mark.parametrize("name", [*SCORING, "load_best_model_at_end"])
def test_scores_that_choose_the_weights_must_be_made_alike(tmp_path, name):
    (tmp_path / "run_settings.json").write_text(json.dumps({"load_best_model_at_end": True, name: "then"}))
    with pytest.raises(InputError, match=f"{name}: 'then' in the checkpoint, 'now' now"):
        check_settings(str(tmp_path), {"load_best_model_at_end": True, name: "now"}, force=False)
    (tmp_path / "run_settings.json").write_text(json.dumps({name: "then"}))
    with nullcontext() if name in SCORING else pytest.raises(InputError):
        check_settings(str(tmp_path), {name: "now"}, force=False)


def test_the_command_that_goes_on_holds_no_token():
    token = "hf_" + "0123456789abcdef"
    command = [
        "kamim",
        "pretrain",
        "a config.yaml",
        "--resume_from_checkpoint",
        "out/checkpoint-1",
        "--hub_token",
        token,
    ]
    expected = "kamim pretrain 'a config.yaml' --hub_token hf_*** --resume_from_checkpoint auto"
    assert resume_command(command) == expected
    assert resume_command([]) == "the same call, with resume_from_checkpoint='auto'"


def test_a_checkpoint_that_was_cut_short_is_not_taken(start, tmp_path):
    """As a kill would leave it between two files: what is not renamed yet is not seen, and is cleared away."""
    arguments = [*VIT, *SMALL, *RUN, *QUIET]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    finish(start(whole, *arguments), whole)
    finish(start(cut, *arguments), cut)
    for path in cut.glob("model*"):
        path.unlink()
    shutil.rmtree(cut / "checkpoint-16")
    half = checkpoint(cut / ".unfinished" / "checkpoint-16", leave_out=["model.safetensors"])
    finish(start(cut, *arguments, "--resume_from_checkpoint", "auto"), cut)
    assert not half.exists()
    assert_same_weights(whole, cut)


@pytest.mark.parametrize(("then", "now"), [("auto", "fp32"), ("fp32", "auto")])
def test_precision_and_attention_are_compared_by_what_they_come_to(tmp_path, then, now):
    came_to = {"bf16": False, "fp16": False, "attn_implementation": "sdpa"}
    (tmp_path / "run_settings.json").write_text(json.dumps({"precision": then, "attention": then, **came_to}))
    check_settings(str(tmp_path), {"precision": now, "attention": now, **came_to}, force=False)
    for name, value in (("bf16", True), ("attn_implementation", "eager")):
        with pytest.raises(InputError, match=f"{name}: .* in the checkpoint, {value!r} now"):
            check_settings(str(tmp_path), {"precision": then, **came_to, name: value}, force=False)
