"""A study runs what is missing, stops in order, and goes on."""

import io
import json
import os
import signal
import sys
import threading
import time
from contextlib import suppress

import pytest

from modeling_kamim.errors import InputError, StoppedError
from modeling_kamim.evaluation.metrics import pack_hits
from modeling_kamim.study.execution import Execution, Limits
from modeling_kamim.study.plan import Study
from modeling_kamim.study.progress import Board
from modeling_kamim.study.records import Record

# A command that writes what its namesake writes, counts its calls, and can be told to last or to fail
COMMAND = """
import json, signal, sys, time
from pathlib import Path
name, out, lasts, fails = sys.argv[1], Path(sys.argv[2]), float(sys.argv[3]), sys.argv[4] == "fail"
out.mkdir(parents=True, exist_ok=True)
calls = out / "calls.txt"
calls.write_text((calls.read_text() if calls.exists() else "") + "x")
if fails:
    sys.exit("kamim: error: on purpose")
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
until = time.monotonic() + (lasts if calls.read_text() == "x" and name in ("pretrain", "prepare") else 0)
while time.monotonic() < until:
    print(f"50% 5/10 [00:01<00:01]", flush=True)
    time.sleep(0.05)
if name == "pretrain":
    log = [{"step": 0, "probe_top1": 0.1}, {"step": 5, "masked_l1": 0.9, "images_per_second": 1, "clipped_steps": 0.5}]
    log += [{"step": 10, "masked_l1": 0.8, "images_per_second": 20, "clipped_steps": 0.0}]
    (out / "trainer_state.json").write_text(json.dumps({"global_step": 10, "log_history": log}))
    (out / "run_settings.json").write_text(json.dumps({"images_per_step": 8, "bf16": True, "num_train_images": 80}))
    (out / "eval_results.json").write_text(json.dumps({"eval_masked_l1": 0.75}))
else:
    row = {"protocol": "cached", "layer": "6", "top1": 0.5, "hits": HITS, "num_validation_images": 4, "provenance": {}}
    (out / "results.json").write_text(json.dumps({**row, "loss": 1.0, "top5": 1.0, "held_out_top1": 0.5}))
""".replace("HITS", repr(pack_hits([True, False, True, False])))


@pytest.fixture
def plan(tmp_path):
    def make(**changes):
        keys = {
            "pretrain": {"max_steps": 10},
            "arms": {"a": {}, "b": {"weighting": "none"}},
            "protocols": {"linear": {"protocol": "cached"}},
            "output_dir": str(tmp_path / "out"),
        }
        return Study.read("mine", {**keys, **changes})

    return make


@pytest.fixture
def execute(monkeypatch):
    monkeypatch.setattr("modeling_kamim.study.execution._POLL_SECONDS", 0.05)

    def run(study, lasts=0.0, failing=(), **limits):
        def command(self, run):
            fails = "fail" if any(f"/{arm}/" in f"{run.output_dir}/" for arm in failing) else "run"
            return [sys.executable, "-c", COMMAND, run.command, str(run.output_dir), str(lasts), fails]

        monkeypatch.setattr(Execution, "command", command)
        Execution(study, study.replicates(), Limits(**limits)).run()

    return run


def calls(study, arm, part="."):
    file = study.output_dir / arm / "seed-0" / part / "calls.txt"
    return len(file.read_text()) if file.exists() else 0


@pytest.mark.parametrize("jobs", [1, 2])
def test_what_is_missing_runs_and_nothing_twice(plan, execute, jobs):
    study = plan()
    execute(study, jobs=jobs)
    execute(study, jobs=jobs)
    for arm in ("a", "b"):
        assert (calls(study, arm), calls(study, arm, "linear")) == (1, 1)
    found = Record(study.results_dir, study.replicates()[0])
    assert found.missing == []
    known = {
        "steps": 10,
        "images_seen": 80,
        "validation_masked_l1": 0.75,
        "images_per_second": 20,
        "clipped_steps": 0.25,
    }
    assert {key: found.found["pretraining"][key] for key in known} == known
    assert found.found["pretraining"]["curves"] == {"probe_top1": [[0, 0.1]], "masked_l1": [[40, 0.9], [80, 0.8]]}
    assert found.found["pretraining"]["precision"] == "bf16"


def test_a_new_protocol_runs_without_a_new_training(plan, execute):
    execute(plan())
    study = plan(protocols={"linear": {"protocol": "cached"}, "neighbors": {"protocol": "knn"}})
    execute(study)
    assert (calls(study, "a"), calls(study, "a", "linear"), calls(study, "a", "neighbors")) == (1, 1, 1)


def test_records_without_checkpoints_are_enough(plan, execute, tmp_path):
    study = plan(results_dir=str(tmp_path / "kept"))
    execute(study)
    moved = plan(results_dir=str(tmp_path / "kept"), output_dir=str(tmp_path / "elsewhere"))
    execute(moved)
    assert not (tmp_path / "elsewhere" / "a").exists()


def test_other_settings_than_recorded_are_refused(plan, execute):
    execute(plan())
    changed = plan(pretrain={"max_steps": 10, "temperature": 0.5})
    with pytest.raises(InputError, match="recorded with other settings .*temperature None, now 0.5.*give the arm"):
        execute(changed)
    protocol = plan(protocols={"linear": {"protocol": "cached", "pooling": "cls"}})
    with pytest.raises(InputError, match="other settings of linear"):
        execute(protocol)


def test_a_damaged_record_is_named(plan, execute):
    study = plan()
    execute(study)
    record = study.results_dir / "runs" / "a__seed-0.json"
    record.write_text(record.read_text()[:40])
    with pytest.raises(InputError, match="a__seed-0.json is no record of a study"):
        execute(study)


@pytest.mark.parametrize("jobs", [1, 2])
def test_the_time_limit_stops_in_order_and_the_next_call_goes_on(plan, execute, jobs):
    study = plan()
    start = time.monotonic()
    with pytest.raises(StoppedError, match="the time is up; the same command goes on") as error:
        execute(study, lasts=60, seconds=1.0, jobs=jobs)
    assert error.value.status == 0 and time.monotonic() - start < 20
    assert "pretraining" in Record(study.results_dir, study.replicates()[0]).missing
    execute(study, jobs=jobs)
    assert calls(study, "a") == 2 and Record(study.results_dir, study.replicates()[1]).missing == []


@pytest.fixture
def handled():
    """Give a signal a handler for the test, whatever the tests were started with (nohup ignores SIGHUP)."""
    before = {}

    def give(number, handler):
        before[number] = signal.signal(number, handler)
        return handler

    yield give
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("jobs", [1, 2])
def test_a_signal_leaves_no_training_behind(plan, execute, handled, number, jobs):
    study = plan()
    handler = handled(number, signal.SIG_DFL)
    timer = threading.Timer(1.0, os.kill, (os.getpid(), number))
    timer.start()
    with pytest.raises(StoppedError, match=f"stopped by {number.name}; the same command goes on") as error:
        execute(study, lasts=60, jobs=jobs)
    assert error.value.status == 128 + number and signal.getsignal(number) is handler
    assert calls(study, "a") == 1 and calls(study, "b") == jobs - 1
    execute(study, jobs=jobs)
    assert not any(Record(study.results_dir, replicate).missing for replicate in study.replicates())


def test_an_ignored_signal_stays_ignored(plan, execute, handled):
    handled(signal.SIGHUP, signal.SIG_IGN)
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGHUP)).start()
    execute(plan(), lasts=1.0)


def test_a_run_that_fails_does_not_keep_the_others_from_running(plan, execute):
    study = plan()
    with pytest.raises(
        InputError, match=r"1 of 2 runs failed; the first: kamim pretrain .*\(kamim: error: on purpose\)"
    ):
        execute(study, failing=["a"])
    assert Record(study.results_dir, study.replicates()[1]).missing == []
    assert "pretraining" in Record(study.results_dir, study.replicates()[0]).missing
    assert "on purpose" in (study.output_dir / "logs" / "a__seed-0__pretraining.log").read_text()


def test_a_data_set_is_prepared_before_the_first_run(plan, execute):
    study = plan(prepare={"image_size": 32}, dataset_name="path/to/images")
    execute(study)
    execute(study)
    assert (study.output_dir / "prepared" / "calls.txt").read_text() == "x"


def test_the_time_limit_stops_the_preparation_too(plan, execute):
    study = plan(prepare={"image_size": 32}, dataset_name="path/to/images")
    start = time.monotonic()
    with pytest.raises(StoppedError, match="the time is up; the same command goes on"):
        execute(study, lasts=60, seconds=1.0)
    assert time.monotonic() - start < 20 and calls(study, "a") == 0
    execute(study)
    assert (study.output_dir / "prepared" / "calls.txt").read_text() == "xx" and calls(study, "a") == 1


def test_records_hold_nothing_of_the_place(plan, execute, tmp_path):
    study = plan(dataset_name=str(tmp_path / "images"))
    execute(study)
    for file in (study.results_dir / "runs").glob("*.json"):
        assert str(tmp_path) not in file.read_text()
        assert json.loads(file.read_text())["settings"]["max_steps"] == 10


def test_the_words_that_start_a_run(plan):
    study = plan(prepare={}, dataset_name="images")
    replicate = study.replicates()[0]
    plain, launched = Execution(study, [], Limits()), Execution(study, [], Limits(launcher=["accelerate", "launch"]))
    words = plain.command(replicate.pretraining)
    assert words[:3] == [sys.executable, "-m", "modeling_kamim.commands.pretrain"]
    assert words[-2:] == ["--resume_from_checkpoint", "auto"]
    words = launched.command(replicate.evaluations["linear"])
    assert words[:4] == ["accelerate", "launch", "-m", "modeling_kamim.commands.evaluate"] and "auto" not in words
    assert launched.command(study.preparation)[0] == sys.executable


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()])
def test_the_board_tells_states_and_time(plan, stream, monkeypatch):
    study = plan()
    records = {r.name: Record(study.results_dir, r) for r in study.replicates()}
    board, clock = Board(records, stream), [100.0]
    monkeypatch.setattr("modeling_kamim.study.progress.time.monotonic", lambda: clock[0])
    board.start("a/seed-0", "pretraining")
    board.advance("a/seed-0", 1, 10)
    clock[0] += 400
    board.advance("a/seed-0", 5, 10)
    table = board.lines()
    assert table[0].split() == ["a/seed-0", "pretraining,", "5", "of", "10", "(50%)"]
    assert table[1].split(maxsplit=1) == ["b/seed-0", "waits (pretraining, linear)"]
    assert table[2].strip() == "trainings: about 25 minutes of one job left"  # 15 steps of 100 s
    board.advance("a/seed-0", 1, 20)  # another bar of the same process says nothing of the steps
    clock[0] += 10
    board.advance("a/seed-0", 20, 20)
    assert "about 17 minutes" in board.lines()[2]  # the 10 steps of b
    board.show()
    board.finish("a/seed-0", "FAILED")
    board.show(at_the_end=True)
    shown = stream.getvalue()
    assert "pretraining FAILED" in shown and ("\x1b[" in shown) is stream.isatty()


def test_an_interrupted_study_ends_its_runs(plan, execute, monkeypatch):
    study = plan()

    def interrupt(self, at_the_end=False):
        if (study.output_dir / "a" / "seed-0" / "calls.txt").exists() and not at_the_end:
            raise KeyboardInterrupt

    monkeypatch.setattr(Board, "show", interrupt)
    start = time.monotonic()
    with suppress(KeyboardInterrupt):
        execute(study, lasts=60)
    assert time.monotonic() - start < 20 and calls(study, "b") == 0
