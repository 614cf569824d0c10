"""A run has its output directory for itself: what another one left there, or writes there now, is not its own."""

import errno
import json
import multiprocessing
import os
import re
import shlex
import shutil
import signal
import socket
import sys
import time
from pathlib import Path

import pytest
import torch
from background import QUIET, SMALL, VIT
from PIL import Image
from safetensors.torch import load_file
from tiny_models import tiny_vit
from trainers import build_trainer
from transformers import TrainerCallback, TrainingArguments

from modeling_kamim.api import pretraining
from modeling_kamim.commands import analyze as run_analysis
from modeling_kamim.commands import evaluate as run_classification
from modeling_kamim.commands import prepare as prepare_dataset
from modeling_kamim.commands import pretrain as run_mim
from modeling_kamim.errors import InputError, StoppedError
from modeling_kamim.evaluation.report.writing import Report, write_report
from modeling_kamim.evaluation.results import checkpoint_rows
from modeling_kamim.hub.publishing import published_files
from modeling_kamim.training import run_directory
from modeling_kamim.training.resume import find_checkpoint, whole_checkpoints
from modeling_kamim.training.run_directory import (
    LOCK_FILE,
    RUN_FILE,
    begin_run,
    claimed,
    identity,
    is_own,
    left_by_others,
)
from modeling_kamim.training.sources import MappedSource
from modeling_kamim.training.trainer import MaskedImageTrainer, PixelTrainer

BATCH = ["--per_device_train_batch_size", "4", "--precision", "fp32"]
SCRIPTS = {
    "pretraining": (run_mim, [*VIT, *SMALL]),
    "probe": (run_classification, ["--model_size", "tiny", "--image_size", "32", "--use_cpu"]),
    "cached": (run_classification, ["--model_size", "tiny", "--image_size", "32", "--use_cpu", "--protocol", "cached"]),
    "seeds": (run_classification, ["--model_size", "tiny", "--image_size", "32", "--use_cpu", "--seeds", "0", "1"]),
    "reconstruction": (run_classification, ["--mode", "reconstruction", "--model_name_or_path", "x", "--use_cpu"]),
}


@pytest.fixture
def call(monkeypatch):
    """Callable that runs a script in this process."""

    def call(script, *argv):
        monkeypatch.setattr(sys, "argv", [script.__name__, *map(str, argv)])
        script.main()

    return call


@pytest.fixture
def pretrain(monkeypatch, call):
    """Callable that pretrains some steps in a directory."""
    monkeypatch.setattr(pretraining, "draw_reconstructions", lambda *args: None)  # takes as long as all else

    def pretrain(output_dir, *argv):
        call(run_mim, *VIT, *SMALL, *QUIET, *BATCH, *argv, "--output_dir", output_dir)

    return pretrain


@pytest.fixture
def stop_at(monkeypatch):
    """Callable that has every pretraining stopped by SIGTERM at a step; at None no longer."""

    def stop_at(step):
        class Stop(TrainerCallback):
            def on_step_end(self, args, state, control, **kwargs):
                if state.global_step == step:
                    os.kill(os.getpid(), signal.SIGTERM)

        class Stopped(MaskedImageTrainer):
            def __init__(self, *args, **kwargs):
                super().__init__(*args, **kwargs)
                self.callback_handler.callbacks.insert(0, Stop())

        monkeypatch.setattr(MappedSource, "trainer_class", MaskedImageTrainer if step is None else Stopped)

    return stop_at


def advice(stopped):
    """The words behind the script of the command that a run prints at its end."""
    command = re.search(r"(?:go on|start it again) with: (.*)$", str(stopped.value))[1]
    kamim, name, *words = shlex.split(command)
    assert (kamim, name) == ("kamim", "pretrain")
    return words


def global_step(output_dir):
    return json.loads((output_dir / "trainer_state.json").read_text())["global_step"]


def same_weights(first, second):
    first, second = (load_file(folder / "model.safetensors") for folder in (first, second))
    return all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture
def images(tmp_path, photographs):
    """A folder of photographs."""
    (tmp_path / "images").mkdir()
    for number in range(8):
        Image.fromarray(photographs[number % 6][number:]).save(tmp_path / "images" / f"{number}.png")
    return tmp_path / "images"


def test_a_stopped_run_goes_on_with_its_own_checkpoint(call, pretrain, stop_at, images, tmp_path, caplog):
    """Beside the later checkpoint of a run on other data, in the same directory."""
    out, whole = tmp_path / "out", tmp_path / "whole"
    pretrain(out, "--max_steps", "12", "--save_steps", "12")
    second = ["--dataset_name", images, "--max_steps", "6", "--save_steps", "100"]
    pretrain(whole, *second)
    stop_at(3)
    with pytest.raises(
        StoppedError, match="checkpoint-3 is saved; go on with: .* --resume_from_checkpoint auto"
    ) as stop:
        pretrain(out, *second)
    assert identity(out / "checkpoint-3") != identity(out / "checkpoint-12")
    stop_at(None)
    with caplog.at_level("INFO"):
        call(run_mim, *advice(stop))
    assert f"Passed over: {out / 'checkpoint-12'} is of another run" in caplog.text
    assert f"Resuming from {out / 'checkpoint-3'}" in caplog.text
    assert global_step(out) == 6 and same_weights(out, whole)
    assert same_weights(out, out / "checkpoint-6") and (out / "checkpoint-12").is_dir()


def test_a_run_that_saved_nothing_is_begun_again(call, pretrain, stop_at, tmp_path, monkeypatch):
    out = tmp_path / "out"
    pretrain(out, "--max_steps", "4", "--save_steps", "4")
    stop_at(2)
    with monkeypatch.context() as patched:
        patched.setattr(MaskedImageTrainer, "_save_checkpoint", lambda *args, **kwargs: None)  # as on a full disk
        with pytest.raises(StoppedError, match="This run has saved no checkpoint yet; start it again with") as stop:
            pretrain(out, "--max_steps", "3", "--learning_rate", "1e-4")
    assert "--resume_from_checkpoint" not in advice(stop)
    assert find_checkpoint(TrainingArguments(str(out), resume_from_checkpoint="auto", use_cpu=True)) is None
    stop_at(None)
    call(run_mim, *advice(stop))
    assert global_step(out) == 3


def test_a_named_checkpoint_takes_its_run_back(pretrain, stop_at, tmp_path, caplog):
    out, whole = tmp_path / "out", tmp_path / "whole"
    pretrain(whole, "--max_steps", "6", "--save_steps", "3")
    shutil.copytree(whole, out)
    first = identity(out / "checkpoint-3")
    stop_at(1)
    with pytest.raises(StoppedError):
        pretrain(out, "--max_steps", "2", "--seed", "1")
    stop_at(None)
    assert [path.name for path in whole_checkpoints(out)] == ["checkpoint-1"]
    pretrain(out, "--max_steps", "6", "--save_steps", "3", "--resume_from_checkpoint", out / "checkpoint-3")
    assert identity(out) == identity(out / "checkpoint-6") == first and same_weights(out, whole)
    assert [path.name for path in whole_checkpoints(out)] == ["checkpoint-3", "checkpoint-6"]


def test_a_run_that_went_back_names_what_it_saved_since(pretrain, stop_at, tmp_path):
    """Not the later checkpoint of its earlier end, which `auto` would take."""
    out = tmp_path / "out"
    pretrain(out, "--max_steps", "6", "--save_steps", "2", "--save_total_limit", "3")
    stop_at(3)
    resume = ["--resume_from_checkpoint", out / "checkpoint-2", "--max_steps", "6", "--save_steps", "100"]
    with pytest.raises(StoppedError) as stop:
        pretrain(out, *resume, "--save_total_limit", "3")
    assert advice(stop)[-1] == str(out / "checkpoint-3")
    assert {path.name for path in out.glob("checkpoint-*")} == {"checkpoint-2", "checkpoint-3", "checkpoint-6"}


def test_directories_of_earlier_versions_resume(pretrain, stop_at, tmp_path):
    out, whole = tmp_path / "out", tmp_path / "whole"
    arguments = ["--max_steps", "4", "--save_steps", "1"]
    pretrain(whole, *arguments)
    stop_at(2)
    with pytest.raises(StoppedError):
        pretrain(out, *arguments)
    for file in out.rglob(RUN_FILE):
        file.unlink()
    stop_at(3)
    with pytest.raises(StoppedError, match="checkpoint-3 is saved"):
        pretrain(out, *arguments, "--resume_from_checkpoint", "auto")
    assert [path.name for path in whole_checkpoints(out)] == ["checkpoint-2", "checkpoint-3"]
    stop_at(None)
    pretrain(out, *arguments, "--resume_from_checkpoint", "auto")
    assert same_weights(out, whole) and identity(out) is None
    pretrain(out, *arguments)
    assert identity(out) is not None


def vit(**settings):
    return tiny_vit(patch_size=16, encoder_stride=16, **settings)


def checkpoint_names(folder):
    return sorted(path.name for path in folder.glob("checkpoint-*"))


def test_only_own_checkpoints_are_deleted(tmp_path):
    build_trainer(vit(), tmp_path, max_steps=7, save_steps=7).train()
    others = build_trainer(vit(), tmp_path, max_steps=4, save_steps=1, save_total_limit=2)
    others.train()
    assert checkpoint_names(tmp_path) == ["checkpoint-3", "checkpoint-4", "checkpoint-7"]
    assert not is_own(tmp_path, tmp_path / "checkpoint-7")


def test_the_last_steps_are_saved_beside_a_checkpoint_of_another_run(tmp_path):
    build_trainer(vit(), tmp_path, max_steps=2, save_steps=2).train()
    trainer = build_trainer(vit(intermediate_size=48), tmp_path, max_steps=2, save_strategy="no")
    trainer.train()
    trainer._save_before_the_end()
    assert is_own(tmp_path, tmp_path / "checkpoint-2")
    assert f"{tmp_path / 'checkpoint-2'} is saved; go on with" in trainer._how_to_go_on()


BEST = {
    "eval_strategy": "steps",
    "eval_steps": 1,
    "save_steps": 1,
    "load_best_model_at_end": True,
    "metric_for_best_model": "eval_masked_l1",
    "greater_is_better": False,
    "learning_rate": 1e-2,
}


@pytest.mark.parametrize("limit", [1, 2])
def test_the_best_model_is_never_that_of_another_run(tmp_path, monkeypatch, limit):
    """Where the best checkpoint of a run could not be saved and an earlier run has left one of the same step."""
    build_trainer(vit(intermediate_size=48), tmp_path, save_steps=1).train()
    left = {path.name: (path / "model.safetensors").read_bytes() for path in tmp_path.glob("checkpoint-*")}
    trainer = build_trainer(vit(), tmp_path, save_total_limit=limit, **BEST)
    save = PixelTrainer._save_aside

    def full(trainer, *args):
        if trainer.state.global_step < 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        save(trainer, *args)

    monkeypatch.setattr(PixelTrainer, "_save_aside", full)
    monkeypatch.setattr(trainer, "_determine_best_metric", lambda *args, **kwargs: best_at(trainer, 2))
    trainer.train()
    trainer.save_model(str(tmp_path / "end"))
    assert same_weights(tmp_path / "end", tmp_path / "checkpoint-4")
    kept = {name: (tmp_path / name / "model.safetensors").read_bytes() for name in left if name != "checkpoint-4"}
    assert kept == {name: content for name, content in left.items() if name != "checkpoint-4"}


def best_at(trainer, step):
    is_best = trainer.state.global_step == step
    if is_best:
        trainer.state.best_metric, trainer.state.best_global_step = 0.0, step
    return is_best


def test_the_best_model_of_a_directory_that_changed_hands_is_not_loaded(tmp_path, caplog):
    trainer = build_trainer(vit(), tmp_path, **BEST)
    trainer.train()
    last = {name: weight.clone() for name, weight in trainer.model.state_dict().items()}
    trainer.state.best_model_checkpoint = str(tmp_path / "checkpoint-1")
    begin_run(tmp_path)
    trainer._load_best_model()
    assert "checkpoint-1 is of another run; the model stays" in caplog.text
    assert all(torch.equal(weight, last[name]) for name, weight in trainer.model.state_dict().items())


def test_what_another_run_left_is_not_published(pretrain, stop_at, tmp_path):
    out = tmp_path / "out"
    pretrain(out, "--max_steps", "1")
    row = {"protocol": "paper", "top1": 0.5, "top5": 0.9, "provenance": {"dataset": "x"}}
    (out / "results.json").write_text(json.dumps(row))
    (out / "confusion.png").write_bytes(b"")
    assert {"results.json", "confusion.png", "eval_results.json"} < published_files(out, left_by_others(out)).keys()
    assert len(checkpoint_rows([out], out)) == 2
    stop_at(1)
    with pytest.raises(StoppedError):
        pretrain(out, "--max_steps", "2", "--seed", "1")
    with pytest.raises(InputError, match=r"holds no model\.safetensors"):
        published_files(out, left_by_others(out))  # the card is this run's, and the weights are the other's
    assert checkpoint_rows([out], out) == []
    stop_at(None)
    pretrain(out, "--max_steps", "2", "--seed", "1", "--resume_from_checkpoint", "auto")
    published = published_files(out, left_by_others(out)).keys()
    assert {"model.safetensors", "config.json", "README.md", "eval_results.json"} < published
    assert not {"results.json", "confusion.png", RUN_FILE, LOCK_FILE} & published
    assert [row["masked_l1"] for row in checkpoint_rows([out], out)]


# Two runs at the same time


def hold(output_dir, ready):
    """Have a directory for ever, with a worker that outlives a kill."""
    with claimed(TrainingArguments(str(output_dir), use_cpu=True)):
        worker = multiprocessing.get_context("fork").Process(target=time.sleep, args=(120,))
        worker.start()
        ready.put(worker.pid)
        time.sleep(120)


@pytest.fixture
def holder(tmp_path):
    """Another process, whose run has `tmp_path/out`; its worker is left where it is killed."""
    context = multiprocessing.get_context("fork")
    ready = context.SimpleQueue()
    process = context.Process(target=hold, args=(tmp_path / "out", ready))
    process.start()
    worker = ready.get()
    yield process
    process.kill()
    process.join()
    os.kill(worker, signal.SIGKILL)


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_second_run_is_refused(holder, call, tmp_path, name):
    script, argv = SCRIPTS[name]
    before = sorted((tmp_path / "out").iterdir())
    place = f"process {holder.pid} on {re.escape(socket.gethostname())} is writing"
    with pytest.raises(InputError, match=f"output_dir is {tmp_path / 'out'}, where {place}"):
        call(script, *argv, "--output_dir", tmp_path / "out")
    assert sorted((tmp_path / "out").iterdir()) == before


def test_the_lock_of_a_killed_run_is_free_at_once(holder, pretrain, tmp_path):
    holder.kill()
    holder.join()
    assert (tmp_path / "out" / LOCK_FILE).exists()
    pretrain(tmp_path / "out", "--max_steps", "1")
    assert not (tmp_path / "out" / LOCK_FILE).exists()


def test_a_run_that_fails_leaves_no_lock_and_no_directory(call, tmp_path):
    output_dir = tmp_path / "new" / "out"
    for _ in range(2):
        with pytest.raises(InputError, match="nowhere"):
            call(run_mim, *VIT, *SMALL, "--dataset_name", tmp_path / "nowhere", "--output_dir", output_dir)
    assert not (tmp_path / "new").exists()


def test_two_runs_of_one_process_do_not_share_a_directory(tmp_path):
    args = TrainingArguments(str(tmp_path / "out"), use_cpu=True)
    with claimed(args):
        same = TrainingArguments(str(tmp_path / "out" / ".." / "out"), use_cpu=True)
        with pytest.raises(InputError, match="where this process is writing"), claimed(same):
            pass
        with claimed(TrainingArguments(str(tmp_path / "other"), use_cpu=True)):
            pass
    with claimed(args):
        pass


@pytest.mark.parametrize("error", [OSError(errno.ENOLCK, "No locks available"), None], ids=["no locks", "Windows"])
def test_without_locks_a_run_goes_on_with_a_warning(monkeypatch, tmp_path, caplog, error):
    def refuse(*args):
        raise error

    if error is None:
        monkeypatch.setattr(run_directory, "fcntl", None)
    else:
        monkeypatch.setattr(run_directory.fcntl, "lockf", refuse)
    with claimed(TrainingArguments(str(tmp_path / "out"), use_cpu=True)):
        assert "cannot be locked" in caplog.text and "start no second run" in caplog.text


# Files of the user


@pytest.mark.parametrize("name", SCRIPTS)
@pytest.mark.parametrize("file", ["README.md", "settings.yaml"])
def test_a_page_of_the_user_is_never_overwritten(monkeypatch, call, tmp_path, name, file):
    script, argv = SCRIPTS[name]
    (tmp_path / file).write_text("# Mine\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=f"has not written the {file} in it.*give another directory, or move") as error:
        call(script, *argv, "--output_dir", ".")
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == [file] and (tmp_path / file).read_text() == "# Mine\n"


def test_the_repository_is_no_output_directory(monkeypatch, call):
    repository = Path(__file__).parents[2]
    before = (repository / "README.md").read_bytes(), sorted(repository.iterdir())
    monkeypatch.chdir(repository)
    with pytest.raises(InputError, match=r"README\.md"):
        call(run_mim, *VIT, *SMALL, "--output_dir", ".")
    assert ((repository / "README.md").read_bytes(), sorted(repository.iterdir())) == before


def test_pages_that_a_run_wrote_are_written_again(pretrain, tmp_path):
    pretrain(tmp_path / "out", "--max_steps", "1", "--temperature", "0.5")
    (tmp_path / "out" / RUN_FILE).unlink()  # as an earlier version left it
    pretrain(tmp_path / "out", "--max_steps", "1", "--temperature", "0.7")
    assert "temperature: 0.7" in (tmp_path / "out" / "settings.yaml").read_text()
    assert "temperature: 0.7" in (tmp_path / "out" / "README.md").read_text()


def test_a_run_that_does_not_begin_leaves_the_page_of_the_one_before(pretrain, tmp_path):
    pretrain(tmp_path / "out", "--max_steps", "1")
    files = [tmp_path / "out" / name for name in ("README.md", "settings.yaml", RUN_FILE)]
    before = [file.read_bytes() for file in files]
    with pytest.raises(InputError, match="image_column"):
        pretrain(tmp_path / "out", "--max_steps", "2", "--image_column", "nothing")
    assert [file.read_bytes() for file in files] == before


@pytest.mark.parametrize("file", ["report.md", "report.tex"])
def test_a_report_of_the_user_is_never_overwritten(tmp_path, file):
    report = Report([], [], [], {})
    write_report(report, tmp_path)
    write_report(report, tmp_path)
    (tmp_path / file).write_text("# Results\nMine.\n")
    with pytest.raises(InputError, match=f"has not written the {file}"):
        write_report(report, tmp_path)
    assert (tmp_path / file).read_text() == "# Results\nMine.\n"


def test_the_report_of_an_analysis_overwrites_none_of_the_user(call, tmp_path):
    (tmp_path / "report.md").write_text("# What was learned\nMine.\n")
    with pytest.raises(InputError, match=r"has not written the report\.md"):
        call(run_analysis, "--models", f"a={tmp_path / 'nowhere'}", "--output_dir", tmp_path)


@pytest.mark.parametrize("given", ["", "  "])
@pytest.mark.parametrize("script", [run_mim, run_classification, run_analysis, prepare_dataset])
def test_an_output_directory_needs_a_name(monkeypatch, call, tmp_path, script, given):
    monkeypatch.chdir(tmp_path)
    needed = {run_analysis: ["--models", "a=b"], prepare_dataset: ["--dataset_name", "x"]}.get(script, [])
    with pytest.raises(InputError, match=f"output_dir is '{given}'; give the directory"):
        call(script, *needed, "--output_dir", given)
    assert not list(tmp_path.iterdir())
