"""What a run chooses on each kind of machine, and that it trains there: torch's answers are faked, the CPU is real."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hardware import CPUS, MACHINES, forget_answers, pretend
from transformers import AutoModel

from modeling_kamim.api.groups import CLASSIFICATION_ARGUMENTS, PRETRAINING_ARGUMENTS
from modeling_kamim.commands import analyze as run_analysis
from modeling_kamim.commands import evaluate as run_classification
from modeling_kamim.commands import pretrain as run_mim
from modeling_kamim.commands.parser import parse, read_yaml
from modeling_kamim.commands.study import check_runs
from modeling_kamim.errors import InputError
from modeling_kamim.study.plan import Study
from modeling_kamim.training import hardware
from modeling_kamim.training.matrix_speed import measured_bf16_speedup

ROOT = Path(__file__).parents[2]
CONFIGS = sorted(
    file for file in (ROOT / "configs").rglob("*.yaml") if file.parent.name not in ("accelerate", "studies")
)
SMALL = ["--disable_tqdm", "true", "--max_train_samples", "16", "--max_eval_samples", "15", "--max_steps", "2"]
SMALL += ["--per_device_train_batch_size", "4", "--logging_steps", "1"]
VIT = ["--model_type", "vit", "--model_size", "tiny", "--image_size", "32"]
SWIN = ["--model_type", "swin", "--model_size", "tiny", "--image_size", "64"]


@pytest.fixture(params=MACHINES)
def machine(request, monkeypatch):
    """One of the machines, pretended."""
    pretend(monkeypatch, MACHINES[request.param])
    yield MACHINES[request.param]
    monkeypatch.undo()
    forget_answers()


only_cpus = pytest.mark.parametrize("machine", CPUS, indirect=True)


def assert_chosen(training_args, machine):
    assert training_args.device.type == (machine.accelerator or "cpu")
    assert training_args.use_cpu == (machine.accelerator is None)
    assert (training_args.bf16, training_args.fp16) == (machine.precision == "bf16", machine.precision == "fp16")
    assert training_args.attn_implementation == machine.attention
    assert machine.precision in training_args.describe_speed()


# Choices


def test_what_is_found(machine):
    found = hardware.find_hardware()
    assert found.device == (machine.accelerator or "cpu")
    assert found.precision == machine.precision


def test_a_cpu_that_is_asked_for_is_used(machine):
    assert hardware.find_hardware(use_cpu=True) == hardware.Hardware("cpu", machine.bf16_speedup > 1)
    training_args = parse(PRETRAINING_ARGUMENTS, ["--use_cpu"])[-1]
    assert training_args.device.type == "cpu"
    assert "on the CPU (as asked for)" in training_args.describe_speed()


@pytest.mark.parametrize(
    "kinds", [PRETRAINING_ARGUMENTS, CLASSIFICATION_ARGUMENTS], ids=["run_mim", "run_classification"]
)
def test_arguments_alone_choose_what_the_machine_can(machine, kinds):
    assert_chosen(parse(kinds, [])[-1], machine)


def test_every_config_parses(machine):
    """Their own precision is kept, by emulation where the machine has no units for it."""
    for file in CONFIGS:
        keys = read_yaml(file)
        training_args = parse(CLASSIFICATION_ARGUMENTS if "mode" in keys else PRETRAINING_ARGUMENTS, [str(file)])[-1]
        asked_for = keys.get("precision", "bf16" if keys.get("bf16") else "auto")
        chosen = "bf16" if training_args.bf16 else "fp16" if training_args.fp16 else "fp32"
        assert chosen == (machine.precision if asked_for == "auto" else asked_for), file


def test_every_run_of_every_study_parses(machine, monkeypatch):
    monkeypatch.chdir(ROOT)
    for file in (ROOT / "configs" / "studies").glob("*.yaml"):
        study = Study.read(file.stem, {"dataset_name": "path/to/images", **read_yaml(file)})
        check_runs(study, study.replicates())


@pytest.mark.parametrize(
    "words",
    [
        "--precision fp32 --bf16 true",
        "--precision bf16 --fp16 true",
        "--precision fp16 --bf16 true",
        "--bf16 true --fp16 true",
        "--precision fp32 --fp16 true",
    ],
)
def test_precisions_that_contradict_each_other_are_refused(machine, words):
    with pytest.raises(InputError, match="contradict each other; give --precision alone"):
        parse(PRETRAINING_ARGUMENTS, words.split())


@pytest.mark.parametrize("words", ["--bf16 true", "--precision bf16", "--precision bf16 --bf16 true"])
def test_bf16_is_taken_wherever_it_can_be_emulated(machine, words):
    training_args = parse(PRETRAINING_ARGUMENTS, words.split())[-1]
    assert training_args.bf16 and not training_args.fp16
    assert "bf16 (as asked for)" in training_args.describe_speed()


@pytest.mark.parametrize("words", ["--fp16 true", "--precision fp16"])
def test_fp16_needs_a_gpu(machine, words):
    if machine.accelerator is None:
        with pytest.raises(
            InputError, match="precision is fp16, which needs a GPU; on the CPU give bf16, fp32 or auto"
        ):
            parse(PRETRAINING_ARGUMENTS, words.split())
    else:
        assert parse(PRETRAINING_ARGUMENTS, words.split())[-1].fp16


def test_analysis_device(machine, monkeypatch):
    assert run_analysis.choose_device("auto").type == ("cuda" if machine.accelerator == "cuda" else "cpu")
    assert run_analysis.choose_device("cpu").type == "cpu"


# Real steps on the CPU


def run(script, monkeypatch, output_dir, *arguments):
    monkeypatch.setattr(sys, "argv", [script.__name__, *arguments, *SMALL, "--output_dir", str(output_dir)])
    script.main()
    return output_dir


@pytest.fixture
def autocast_types(monkeypatch):
    """The types that matrix products of a linear layer gave."""
    seen = set()
    linear = torch.nn.functional.linear

    def remember(*args, **kwargs):
        product = linear(*args, **kwargs)
        seen.add(product.dtype)
        return product

    monkeypatch.setattr(torch.nn.functional, "linear", remember)
    return seen


@only_cpus
@pytest.mark.parametrize("model", [VIT, SWIN], ids=["vit", "swin"])
def test_pretraining_probing_and_fine_tuning(machine, monkeypatch, tmp_path, caplog, autocast_types, model):
    caplog.set_level("INFO")
    masks = ["--mask_patch_size", "16" if model is VIT else "32"]
    pretrained = run(run_mim, monkeypatch, tmp_path / "mim", *model, *masks)
    assert f"Speed: on the CPU (no accelerator found): {machine.precision} (chosen for" in caplog.text
    assert (torch.bfloat16 in autocast_types) == (machine.precision == "bf16")
    state = json.loads((pretrained / "trainer_state.json").read_text())
    assert state["global_step"] == 2
    assert all(math.isfinite(entry["loss"]) for entry in state["log_history"] if "loss" in entry)
    assert AutoModel.from_pretrained(pretrained).dtype == torch.float32

    for mode, protocol in (("linear_probe", "paper"), ("linear_probe", "cached"), ("finetune", "paper")):
        autocast_types.clear()
        arguments = ["--mode", mode, "--protocol", protocol, "--model_name_or_path", str(pretrained)]
        output = run(run_classification, monkeypatch, tmp_path / f"{mode}-{protocol}", *arguments)
        assert (torch.bfloat16 in autocast_types) == (machine.precision == "bf16"), (mode, protocol)
        assert (output / "results.json").is_file()


@only_cpus
@pytest.mark.slow
def test_compiled_pretraining(machine, monkeypatch, tmp_path):
    pretrained = run(run_mim, monkeypatch, tmp_path, *VIT, "--mask_patch_size", "16", "--torch_compile", "true")
    assert torch.isfinite(AutoModel.from_pretrained(pretrained).embeddings.cls_token).all()


@only_cpus
def test_the_benchmark_of_a_step(machine, monkeypatch, capsys):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import train_step

    monkeypatch.setattr(sys, "argv", ["train_step.py", "--image_size", "32", "--batch_size", "2", "--rounds", "1"])
    train_step.main()
    assert machine.precision in capsys.readouterr().out


def test_the_speedup_is_that_of_matrix_products(monkeypatch):
    """A clock that goes on 3 s for a product in bfloat16 and 1 s for one in float32."""
    now, multiply = [0.0], torch.Tensor.__matmul__

    def product(left, right):
        now[0] += 3.0 if left.dtype == torch.bfloat16 else 1.0
        return multiply(left, right)

    monkeypatch.setattr(torch.Tensor, "__matmul__", product)
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    assert measured_bf16_speedup() == pytest.approx(1 / 3)


# What is printed for a report


def test_the_answers_are_printed():
    printed = subprocess.run(
        [sys.executable, "-m", "modeling_kamim.training.hardware"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert f"so --precision auto is {hardware.find_hardware().precision}" in printed
