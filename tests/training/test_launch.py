"""One process or two, accumulation or none: the same images in a step give the same losses and weights."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import DistributedType
from runs import MASKED, QUIET, ROOT, VIT, curve, log_of, processes_of
from safetensors.torch import load_file
from transformers import TrainingArguments

from modeling_kamim.commands import evaluate as run_classification
from modeling_kamim.commands import pretrain as run_mim
from modeling_kamim.errors import InputError
from modeling_kamim.evaluation.finetuning import check_sharding
from modeling_kamim.training import arguments as training_arguments
from modeling_kamim.training.launch import check_launch
from modeling_kamim.training.resume import whole_checkpoints

BIN = Path(sys.executable).parent
TORCHRUN = [str(BIN / "torchrun"), "--standalone", "--nproc_per_node", "2"]
ACCELERATE = [str(BIN / "accelerate"), "launch", "--num_machines", "1", "--mixed_precision", "no"]
ACCELERATE += ["--dynamo_backend", "no", "--main_process_port", "0"]
TWO = [*ACCELERATE, "--multi_gpu", "--num_processes", "2"]

SWIN = ["--model_type", "swin", "--model_size", "tiny", "--image_size", "96"]
# Plain gradient descent without clipping shows a gradient that is multiplied, which Adam would hide.
DESCENT = ["--optim", "sgd", "--learning_rate", "0.05", "--lr_scheduler_type", "constant", "--max_grad_norm", "0"]
STEPS = ["--max_train_samples", "24", "--max_eval_samples", "8", "--max_steps", "5"]  # an epoch is 3 steps of 8


def layout(at_a_time, accumulation, *more):
    return [
        *("--per_device_train_batch_size", str(at_a_time), "--gradient_accumulation_steps", str(accumulation)),
        *("--save_steps", "5", *more),
    ]


def launch(command, output_dir, *arguments, status=0, **environment):
    """Run a command in processes of its own; returns what it printed."""
    finished = subprocess.run(
        [*command, *arguments, "--output_dir", str(output_dir)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert finished.returncode == status, finished.stdout[-2000:] + finished.stderr[-6000:]
    return finished.stdout + finished.stderr


@pytest.fixture
def alone(monkeypatch):
    """Callable that runs a script in this process."""

    def alone(output_dir, script, *arguments):
        module = {"run_mim.py": run_mim, "run_classification.py": run_classification}[script]
        monkeypatch.setattr(sys, "argv", [script, *arguments, "--output_dir", str(output_dir)])
        module.main()

    return alone


def assert_equal_runs(found, expected, processes, step=5, tolerance=1e-6):
    """Losses to 1e-5, gradient norms to 10 and weights to 1 times the tolerance."""
    assert processes_of(found / f"checkpoint-{step}") == processes
    assert processes_of(expected / f"checkpoint-{step}") == 1
    assert curve(found) == pytest.approx(curve(expected), rel=1e-5)
    assert curve(found, "grad_norm") == pytest.approx(curve(expected, "grad_norm"), rel=10 * tolerance)
    weights, others = load_file(found / "model.safetensors"), load_file(expected / "model.safetensors")
    assert weights.keys() == others.keys()
    differences = {key: float((weights[key] - others[key]).abs().max()) for key in others if others[key].numel()}
    print(f"losses {largest_relative(found, expected):.1e}, weights {max(differences.values()):.1e}")
    assert max(differences.values()) < tolerance, differences


def largest_relative(found, expected):
    return max(abs(a / b - 1) for a, b in zip(curve(found), curve(expected), strict=True))


def test_two_processes_that_accumulate_train_like_one(tmp_path, alone):
    arguments = ["run_mim.py", *VIT, *MASKED, *QUIET, *DESCENT, *STEPS]
    alone(tmp_path / "one", *arguments, *layout(8, 1))
    output = launch(TORCHRUN, tmp_path / "two", *arguments, *layout(2, 2))
    assert "2 process(es)" in output
    assert_equal_runs(tmp_path / "two", tmp_path / "one", 2)


LAUNCHED = "tests/support/launched.py"
RUNS = {
    "kamim vit": ["run_mim.py", *VIT, *MASKED],
    "kamim vit online": ["run_mim.py", *VIT, *MASKED, "--keypoint_source", "online"],
    "simmim vit": ["run_mim.py", *VIT, *MASKED, "--weighting", "none"],
    "kamim swin": ["run_mim.py", *SWIN],
    "finetune vit": ["run_classification.py", "--mode", "finetune", *VIT, "--augmentation", "crop_flip"],
    "finetune swin": [
        *("run_classification.py", "--mode", "finetune", *SWIN, "--augmentation", "none", "--drop_path", "0"),
    ],
    "linear probe vit": ["run_classification.py", *VIT, "--augmentation", "crop_flip"],
    "linear probe vit, cached": ["run_classification.py", *VIT, "--augmentation", "none"],
}


@pytest.mark.slow
@pytest.mark.parametrize("run", RUNS)
def test_processes_and_accumulation_change_nothing(tmp_path, alone, monkeypatch, run):
    arguments, launcher = [*RUNS[run], *QUIET, *DESCENT, *STEPS], TORCHRUN
    if run == "kamim swin":
        build = partial(training_arguments.build_config, drop_path_rate=0.0)
        monkeypatch.setattr(training_arguments, "build_config", build)
        launcher = [*TORCHRUN, LAUNCHED, "without_stochastic_depth"]
    alone(tmp_path / "expected", *arguments, *layout(8, 1))
    alone(tmp_path / "accumulated", *arguments, *layout(2, 4))
    launch(launcher, tmp_path / "two", *arguments, *layout(1, 4, "--dataloader_num_workers", "2"))
    for folder, processes in (("accumulated", 1), ("two", 2)):
        print(f"{run}, {folder}: ", end="")
        assert_equal_runs(tmp_path / folder, tmp_path / "expected", processes)
        assert evaluation(tmp_path / folder) == pytest.approx(evaluation(tmp_path / "expected"), rel=1e-5)


@pytest.mark.slow
def test_accelerate_starts_two(tmp_path, alone):
    arguments = ["run_mim.py", *VIT, *MASKED, *QUIET, *DESCENT, *STEPS]
    alone(tmp_path / "one", *arguments, *layout(8, 1))
    output = launch(TWO, tmp_path / "two", *arguments, *layout(4, 1))
    assert "2 process(es)" in output
    assert_equal_runs(tmp_path / "two", tmp_path / "one", 2)


def evaluation(output_dir):
    return [entry["eval_loss"] for entry in log_of(output_dir) if "eval_loss" in entry]


@pytest.mark.slow
def test_adam_stays_near(tmp_path, alone):
    """Adam divides rounding errors by themselves where a gradient is zero, as that of the keys' biases is."""
    adam = ["--learning_rate", "1e-3", "--lr_scheduler_type", "constant"]
    arguments = ["run_mim.py", *VIT, *MASKED, *QUIET, *adam, *STEPS]
    alone(tmp_path / "one", *arguments, *layout(8, 1))
    launch(TORCHRUN, tmp_path / "two", *arguments, *layout(1, 4))
    assert curve(tmp_path / "two") == pytest.approx(curve(tmp_path / "one"), rel=1e-4)
    expected, found = (load_file(tmp_path / run / "model.safetensors") for run in ("one", "two"))
    keys = [key for key in expected if not re.search(r"key\.bias|k_proj\.bias", key)]
    apart = sum(float((found[key] - expected[key]).square().sum()) for key in keys) ** 0.5
    length = sum(float(expected[key].square().sum()) for key in keys) ** 0.5
    print(f"losses {largest_relative(tmp_path / 'two', tmp_path / 'one'):.1e}, weights {apart / length:.1e}")
    assert apart / length < 1e-4


# Which commands start two


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        [*ACCELERATE, "--cpu", "--num_processes", "2"],
        [*ACCELERATE, "--num_processes", "2"],
        [*ACCELERATE, "--config_file", "multi_cpu.yaml"],
    ],
    ids=["--cpu", "no GPUs", "MULTI_CPU"],
)
def test_a_launch_that_starts_one_process_instead_of_two_is_refused(tmp_path, command):
    file = tmp_path / "multi_cpu.yaml"
    file.write_text("distributed_type: MULTI_CPU\nnum_processes: 2\nnum_machines: 1\nuse_cpu: true\n")
    command = [str(file) if word == file.name else word for word in command]
    output = launch(command, tmp_path / "out", "run_mim.py", *VIT, *MASKED, *QUIET, status=1)
    assert "run_mim.py: error: accelerate launch was asked for several processes and started one" in output
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
@pytest.mark.parametrize("launcher", [TORCHRUN, TWO], ids=["torchrun", "accelerate"])
def test_processes_on_a_machine_without_a_gpu_train_together(tmp_path, launcher):
    quiet = [word for word in QUIET if word != "--use_cpu"]
    output = launch(launcher, tmp_path / "out", "run_mim.py", *VIT, *MASKED, *quiet, *STEPS, *layout(2, 2))
    assert "2 process(es)" in output and "on the CPU (no accelerator found)" in output


@pytest.fixture
def bare(monkeypatch):
    """An environment without a launcher."""
    for name in [*os.environ]:
        if name.startswith(("ACCELERATE_", "FSDP_", "MASTER_")) or name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
            monkeypatch.delenv(name)
    return monkeypatch


def arguments_of(tmp_path, **settings):
    return TrainingArguments(str(tmp_path), use_cpu=True, report_to=[], **settings)


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"ACCELERATE_MIXED_PRECISION": "no", "MASTER_ADDR": "127.0.0.1"}, "started one; launch with `accelerate"),
        ({"LOCAL_RANK": "0", "RANK": "0", "WORLD_SIZE": "2"}, "2 processes were started"),
        ({"ACCELERATE_USE_FSDP": "true"}, "need GPUs"),
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "need GPUs"),
    ],
)
def test_launches_that_do_less_than_asked_for(tmp_path, bare, environment, message):
    args = arguments_of(tmp_path)
    for name, value in environment.items():
        bare.setenv(name, value)
    with pytest.raises(InputError, match=message):
        check_launch(args)


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"ACCELERATE_MIXED_PRECISION": "no"},
        {"MASTER_ADDR": "node-1", "WORLD_SIZE": "1"},
        {"WORLD_SIZE": "4"},
        {"LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "node-1", "ACCELERATE_MIXED_PRECISION": "bf16"},
    ],
    ids=["python", "accelerate", "exported", "a platform's", "torchrun"],
)
def test_one_process_is_fine_where_one_was_asked_for(tmp_path, bare, environment):
    args = arguments_of(tmp_path)
    for name, value in environment.items():
        bare.setenv(name, value)
    check_launch(args)


# Checkpoints of several processes


def test_two_processes_leave_whole_checkpoints(tmp_path):
    """Rotation, and the best one back in every process; the first process comes late."""
    arguments = [*VIT, *MASKED, *QUIET, *STEPS, *layout(4, 1, "--save_total_limit", "2"), "--learning_rate", "0.1"]
    arguments += ["--lr_scheduler_type", "constant", "--save_steps", "1", "--eval_strategy", "steps"]
    arguments += ["--eval_steps", "1", "--load_best_model_at_end", "true", "--metric_for_best_model", "masked_l1"]
    launch([*TORCHRUN, LAUNCHED, "with_a_late_first_process"], tmp_path, "run_mim.py", *arguments)
    scores = [entry["eval_masked_l1"] for entry in log_of(tmp_path) if "eval_masked_l1" in entry]
    best = scores.index(min(scores[:5])) + 1
    assert best < 5
    checkpoints = {file.name for file in tmp_path.glob("checkpoint-*")}
    assert checkpoints == {f"checkpoint-{best}", "checkpoint-5"}
    for checkpoint in checkpoints:
        files = {file.name for file in (tmp_path / checkpoint).iterdir()}
        assert {"rng_state_0.pth", "rng_state_1.pth", "optimizer.pt", "model.safetensors"} <= files
    assert not (tmp_path / ".unfinished").exists()
    expected = load_file(tmp_path / f"checkpoint-{best}" / "model.safetensors")
    found = load_file(tmp_path / "model.safetensors")
    assert [key for key in expected if not torch.equal(expected[key], found[key])] == []
    assert scores[5] == pytest.approx(min(scores[:5]), rel=1e-6)  # every process scored the best model
    state = json.loads((tmp_path / "checkpoint-5" / "trainer_state.json").read_text())
    assert state["best_model_checkpoint"] == str(tmp_path / f"checkpoint-{best}")


@pytest.mark.slow
def test_a_signal_to_one_of_two_processes_saves_what_both_trained(tmp_path):
    arguments = ["run_mim.py", *VIT, *MASKED, *QUIET, *STEPS, *layout(2, 2), "--max_steps", "10000"]
    arguments += ["--save_steps", "10000", "--dataloader_num_workers", "1", "--output_dir", str(tmp_path / "run")]
    with (tmp_path / "log").open("w") as log:
        launcher = subprocess.Popen([*TORCHRUN, *arguments], cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
        wait_for(lambda: (tmp_path / "log").read_text().count("'loss'") > 2, launcher)
        second = next(pid for pid in children(launcher.pid) if b"\0LOCAL_RANK=1\0" in environment_of(pid))
        os.kill(second, signal.SIGTERM)
        assert launcher.wait(120) == 1
    (checkpoint,) = whole_checkpoints(tmp_path / "run")
    assert processes_of(checkpoint) == 2
    assert (tmp_path / "log").read_text().count(f"stopped by signal 15 at step {checkpoint.name[11:]}.") == 2


def wait_for(condition, launcher):
    end = time.monotonic() + 120
    while not condition():
        assert launcher.poll() is None and time.monotonic() < end
        time.sleep(0.05)


def children(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def environment_of(pid):
    return b"\0" + Path(f"/proc/{pid}/environ").read_bytes()


@pytest.mark.slow
def test_two_processes_resume_bit_by_bit(tmp_path):
    adam = ["--learning_rate", "1e-3", "--save_total_limit", "9"]
    arguments = ["run_mim.py", *VIT, *MASKED, *QUIET, *STEPS, *adam, *layout(2, 2), "--save_steps", "2"]
    launch(TORCHRUN, tmp_path / "whole", *arguments)
    checkpoint = tmp_path / "whole" / "checkpoint-2"
    launch(TORCHRUN, tmp_path / "resumed", *arguments, "--resume_from_checkpoint", str(checkpoint))
    expected, found = (load_file(tmp_path / run / "model.safetensors") for run in ("whole", "resumed"))
    assert [key for key in expected if not torch.equal(expected[key], found[key])] == []


# FSDP and DeepSpeed


CONFIGS = sorted((ROOT / "configs" / "accelerate").glob("*.yaml"))
TYPES = {
    "one_gpu": DistributedType.NO,
    "several_gpus": DistributedType.MULTI_GPU,
    "two_machines": DistributedType.MULTI_GPU,
    "fsdp": DistributedType.FSDP,
    "deepspeed_zero2": DistributedType.DEEPSPEED,
}


def test_every_accelerate_config_is_tested():
    assert {file.stem for file in CONFIGS} == TYPES.keys()


@pytest.mark.parametrize("file", CONFIGS, ids=[file.stem for file in CONFIGS])
def test_accelerate_reads_its_configs(file):
    config = load_config_from_file(str(file))
    assert config.distributed_type == TYPES[file.stem]
    assert config.num_machines == (2 if file.stem == "two_machines" else 1)
    header = file.read_text().split("compute_environment")[0]
    assert f"accelerate launch --config_file configs/accelerate/{file.name}" in header
    for line in header.splitlines():
        if ".pretrain configs/" in line:
            assert (ROOT / line.split()[-1]).is_file()


SHARDED = [{"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}, {"ACCELERATE_USE_DEEPSPEED": "true"}]


@pytest.mark.parametrize("environment", SHARDED, ids=["fsdp", "deepspeed"])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ema_decay": 0.9}, "ema_decay is 0.9"),
        ({"is_linear_probe": True}, "trains one linear layer"),
    ],
)
def test_what_shards_cannot_do_is_refused(tmp_path, bare, environment, options, message):
    args = arguments_of(tmp_path)
    check_sharding(args, **options)
    for name, value in environment.items():
        bare.setenv(name, value)
    with pytest.raises(InputError, match=message):
        check_sharding(args, **options)


def test_flat_parameters_have_no_layers(tmp_path, bare):
    args = arguments_of(tmp_path)
    bare.setenv("ACCELERATE_USE_FSDP", "true")
    bare.setenv("FSDP_VERSION", "2")
    check_sharding(args, layer_decay=0.5)
    bare.setenv("FSDP_VERSION", "1")
    with pytest.raises(InputError, match="fsdp_version: 2"):
        check_sharding(args, layer_decay=0.5)


@pytest.mark.parametrize("kind", [None, "SHARDED_STATE_DICT"])
def test_shards_that_leave_no_model_file_are_refused(tmp_path, bare, kind):
    bare.setenv("ACCELERATE_USE_FSDP", "true")
    bare.setenv("FSDP_VERSION", "2")
    if kind:
        bare.setenv("FSDP_STATE_DICT_TYPE", kind)
    with pytest.raises(InputError, match="FULL_STATE_DICT"):
        check_launch(arguments_of(tmp_path))


FSDP2 = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT"}
FSDP2 |= {"FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "block"), [([*VIT, *MASKED], "ViTLayer"), ([*SWIN], "SwinLayer")], ids=["vit", "swin"]
)
def test_shards_train_save_and_resume_like_copies(tmp_path, model, block):
    """On CPUs, for which `with_shards_on_cpus` turns on what accelerate keeps for GPUs."""
    arguments = ["run_mim.py", *model, *QUIET, *STEPS, *layout(4, 1, "--save_total_limit", "9")]
    arguments += ["--save_steps", "2", "--learning_rate", "1e-3"]
    whole = "without_stochastic_depth"
    launch([*TORCHRUN, LAUNCHED, whole], tmp_path / "copies", *arguments)
    sharded = [*TORCHRUN, LAUNCHED, f"{whole},with_shards_on_cpus"]
    environment = {**FSDP2, "FSDP_TRANSFORMER_CLS_TO_WRAP": block}
    launch(sharded, tmp_path / "shards", *arguments, **environment)
    resume = ["--resume_from_checkpoint", str(tmp_path / "shards" / "checkpoint-2")]
    launch(sharded, tmp_path / "resumed", *arguments, *resume, **environment)

    assert curve(tmp_path / "shards") == pytest.approx(curve(tmp_path / "copies"), rel=1e-5)
    copies, shards, resumed = (
        load_file(tmp_path / run / "model.safetensors") for run in ("copies", "shards", "resumed")
    )
    assert copies.keys() == shards.keys()
    difference = max(float((shards[key] - copies[key]).abs().max()) for key in copies)
    print(f"weights of shards and copies: {difference:.1e}")
    assert difference < 1e-5
    assert [key for key in shards if not torch.equal(shards[key], resumed[key])] == []
    optimizer_of_shards = (tmp_path / "shards" / "checkpoint-5" / "optimizer.bin").is_file()
    assert optimizer_of_shards  # DDP would have left optimizer.pt
