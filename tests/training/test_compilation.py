"""Whether a model is compiled, where its code is kept, and what is said of the time that took."""

import importlib.util
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from modeling_kamim.api.groups import CLASSIFICATION_ARGUMENTS, PRETRAINING_ARGUMENTS
from modeling_kamim.api.keywords import checked_settings, make_settings
from modeling_kamim.commands.parser import parse
from modeling_kamim.training import compilation
from modeling_kamim.training.compilation import CompilationCost, compiling_pays, keep_compiled_code, settle_compilation


@pytest.fixture
def compilers(monkeypatch):
    """Both are there."""
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)


@pytest.mark.parametrize(
    ("steps", "device", "bf16", "expected"),
    [
        (2000, "cuda", True, True),
        (2000, "cuda", False, True),
        (1999, "cuda", True, False),
        (2000, "cpu", True, True),
        (1999, "cpu", True, False),
        (10**6, "cpu", False, False),
        (10**6, "mps", False, False),
    ],
)
def test_compiling_pays_in_long_trainings(compilers, steps, device, bf16, expected):
    assert compiling_pays(steps, device, bf16) == expected


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_nothing_is_compiled_without_a_compiler(monkeypatch, device):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert not compiling_pays(10**6, device, True)


@pytest.mark.parametrize(
    ("words", "compiles", "is_open"),
    [
        ([], False, False),
        (["--torch_compile"], True, False),
        (["--torch_compile", "true"], True, False),
        (["--torch_compile", "True"], True, False),
        (["--torch_compile", "false"], False, False),
        (["--torch_compile", "auto"], False, True),
    ],
)
@pytest.mark.parametrize("kinds", [PRETRAINING_ARGUMENTS, CLASSIFICATION_ARGUMENTS], ids=["pretrain", "evaluate"])
def test_words(kinds, words, compiles, is_open):
    args = parse(kinds, words)[-1]
    assert (args.torch_compile, args.compilation_is_open) == (compiles, is_open)
    assert ("torch.compile" in args.describe_speed().split(", ")) == compiles
    assert args.describe_speed().endswith("where it pays") == is_open


@pytest.mark.parametrize("given", [True, False, "auto"])
def test_keywords(given):
    args = make_settings(PRETRAINING_ARGUMENTS, checked_settings(PRETRAINING_ARGUMENTS, {"torch_compile": given}))[-1]
    assert (args.torch_compile, args.compilation_is_open) == (given is True, given == "auto")


def test_a_yaml_file(tmp_path):
    file = tmp_path / "settings.yaml"
    for written, compiles in (("true", True), ("false", False), ("auto", False)):
        file.write_text(f"torch_compile: {written}\n")
        args = parse(PRETRAINING_ARGUMENTS, [str(file)])[-1]
        assert (args.torch_compile, args.compilation_is_open) == (compiles, written == "auto")


@pytest.mark.parametrize(("epochs", "compiles"), [("3", False), ("100", True)])
def test_auto_decides_by_the_planned_steps(compilers, epochs, compiles):
    words = ["--num_train_epochs", epochs, "--per_device_train_batch_size", "32", "--precision", "bf16"]
    words += ["--torch_compile", "auto", "--use_cpu"]
    args = parse(PRETRAINING_ARGUMENTS, words)[-1]
    settle_compilation(args, 1000)  # 32 steps an epoch
    assert args.torch_compile == compiles and args.torch_compile_backend == ("inductor" if compiles else None)
    assert not args.compilation_is_open


@pytest.mark.parametrize("word", ["true", "false"])
def test_what_was_asked_for_stays(compilers, word):
    args = parse(PRETRAINING_ARGUMENTS, ["--torch_compile", word, "--max_steps", "5000", "--precision", "bf16"])[-1]
    settle_compilation(args, 1000)
    assert args.torch_compile == (word == "true")


def test_code_is_kept_where_a_restart_leaves_it(monkeypatch, tmp_path):
    monkeypatch.setattr(compilation, "HF_HOME", str(tmp_path))
    for given in (None, str(Path(tempfile.gettempdir()) / "torchinductor_someone")):
        if given is None:
            monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
        else:
            monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", given)
        assert keep_compiled_code() == tmp_path / "kamim_torch_compile"
        assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "kamim_torch_compile")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/scratch/code")
    assert keep_compiled_code() == Path("/scratch/code") and os.environ["TORCHINDUCTOR_CACHE_DIR"] == "/scratch/code"


def test_the_cost_is_what_the_first_step_took_longer(caplog):
    caplog.set_level(logging.INFO)
    times = iter([100.0, 142.0, 150.0, 152.0, 160.0, 162.0])
    callback = CompilationCost(Path("/scratch/code"), clock=lambda: next(times))
    for _ in range(3):
        callback.on_step_begin()
        callback.on_step_end()
    assert [record.message for record in caplog.records] == [
        "torch.compile took 40 seconds; its code is kept in /scratch/code"
    ]


@pytest.mark.slow
def test_a_second_run_finds_the_code(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "TORCHINDUCTOR_CACHE_DIR"}
    words = ["--model_size", "tiny", "--image_size", "32", "--max_train_samples", "16", "--max_steps", "2"]
    words += ["--per_device_train_batch_size", "4", "--torch_compile", "true", "--disable_tqdm", "true"]

    def compiled_code(output_dir):
        command = [sys.executable, "-m", "modeling_kamim", "pretrain", *words, "--output_dir", str(output_dir)]
        done = subprocess.run(
            command, env={**environment, "HF_HOME": str(tmp_path)}, capture_output=True, text=True, check=True
        )
        assert f"its code is kept in {tmp_path / 'kamim_torch_compile'}" in done.stdout + done.stderr
        return set((tmp_path / "kamim_torch_compile").rglob("*.so"))

    first = compiled_code(tmp_path / "first")
    assert first and compiled_code(tmp_path / "second") == first
