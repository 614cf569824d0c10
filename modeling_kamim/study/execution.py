"""Run what a study lacks: some replicates at a time, each in processes of its own, until all is done or time is up."""

import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ..errors import InputError, StoppedError
from ..training.signals import handling
from .energy import EnergyMeter
from .plan import Replicate, Run, Study
from .progress import Board
from .records import Record

logger = logging.getLogger(__name__)
_POLL_SECONDS = 1.0
_PROGRESS = re.compile(rb"(\d+)/(\d+) \[")  # of tqdm
_TAIL_BYTES = 4096
_SIGNALS = (signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else []))
_STOPPED = -1  # in place of an exit status: the study was stopped


@dataclass(frozen=True)
class Limits:
    """How a study runs.

    Args:
        jobs: replicates at a time.
        launcher: words that start a training in place of Python, as `accelerate launch`.
        seconds: after which running trainings are saved and the study ends; None for no limit.
    """

    jobs: int = 1
    launcher: Sequence[str] = ()
    seconds: float | None = None


class Execution:
    """Runs the replicates of a study whose records lack something.

    A training that is stopped, by the time limit or a signal, saves a checkpoint; the next call goes on with it.

    Args:
        study: whose runs these are.
        replicates: to run, in this order.
        limits: see there.
    """

    def __init__(self, study: Study, replicates: Sequence[Replicate], limits: Limits):
        self.study, self.limits = study, limits
        self.records = {replicate.name: Record(study.results_dir, replicate) for replicate in replicates}
        self.board = Board(self.records)
        self._stop = threading.Event()
        self._received: int | None = None  # a signal
        self._deadline = None if limits.seconds is None else time.monotonic() + limits.seconds
        self._meter = EnergyMeter() if limits.jobs == 1 else None  # of several at a time nobody could tell the shares

    def run(self) -> None:
        """Run what is missing, and save each result as soon as it is there.

        Raises:
            StoppedError: if the time is up or a signal came, and something is missing.
            InputError: if runs failed.
        """
        open_ones = [record for record in self.records.values() if record.missing]
        # Unheard, a signal leaves what runs behind. Where SIGHUP is ignored, as by nohup, it stays so.
        heard = [number for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
        with handling(heard, self._receive):
            if open_ones and self.study.preparation is not None:
                self._work([partial(self._prepare, self.study.preparation)])
            self._work([partial(self._complete, record) for record in open_ones])
        if any(record.missing for record in open_ones):
            if self._received is not None:
                name = signal.Signals(self._received).name
                raise StoppedError(f"stopped by {name}; the same command goes on", status=128 + self._received)
            raise StoppedError("the time is up; the same command goes on", status=0)

    def _receive(self, number: int, frame: object) -> None:
        self._received = number
        self._stop.set()

    def _work(self, tasks: Sequence[Callable[[], None]]) -> None:
        """Call the tasks, `jobs` at a time, and watch the clock; raise InputError if some fail."""
        with ThreadPoolExecutor(self.limits.jobs) as pool:
            waiting = [pool.submit(task) for task in tasks]
            try:
                while not all(future.done() for future in waiting):
                    self.board.show()
                    self._look_at_the_clock()
                    time.sleep(_POLL_SECONDS)
            except BaseException:
                self._stop.set()
                raise
            finally:
                self.board.show(at_the_end=True)
        failed = [future.exception() for future in waiting if future.exception() is not None]
        if failed:
            raise InputError(f"{len(failed)} of {len(waiting)} runs failed; the first: {failed[0]}")

    def _look_at_the_clock(self) -> None:
        if self._deadline is not None and time.monotonic() > self._deadline:
            self._stop.set()

    def _prepare(self, run: Run) -> None:
        """Prepare the data set, if it is not; what an earlier call prepared is kept."""
        logger.info("Preparing the data set")
        log = self.study.output_dir / "logs" / "prepare.log"
        status = self._wait_for(run, log, lambda done, total: None)
        if status not in (0, _STOPPED):
            raise InputError(_failure(run, status, log))

    def _complete(self, record: Record) -> None:
        replicate = record.replicate
        for name in record.missing:
            if self._stop.is_set():
                return
            run = replicate.pretraining if name == "pretraining" else replicate.evaluations[name]
            assert run is not None  # what is missing was planned
            self._run_and_keep(record, name, run)

    def _run_and_keep(self, record: Record, name: str, run: Run) -> None:
        log = self.study.output_dir / "logs" / f"{record.replicate.arm}__seed-{record.replicate.seed}__{name}.log"
        before = self._kilowatt_hours()
        label = record.replicate.name
        self.board.start(label, name)
        status = self._wait_for(run, log, lambda done, total: self.board.advance(label, done, total))
        if status == _STOPPED:
            self.board.finish(label, "stopped")
            return
        if status:
            self.board.finish(label, "FAILED")
            raise InputError(_failure(run, status, log))
        if name == "pretraining":
            after = self._kilowatt_hours()
            record.keep_pretraining(run, None if before is None or after is None else after - before)
        else:
            record.keep_evaluation(name, run)
        self.board.finish(label)

    def _kilowatt_hours(self) -> float | None:
        return self._meter.kilowatt_hours() if self._meter else None

    def _wait_for(self, run: Run, log: Path, report: Callable[[int, int], object]) -> int:
        """Run a command, with its output in a log; return its exit status, or `_STOPPED`."""
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as stream:
            process = subprocess.Popen(
                self.command(run),
                stdout=stream,
                stderr=subprocess.STDOUT,
                env=self._environment(),
                start_new_session=True,  # Ctrl-C reaches this process alone, which ends them in order
            )
            is_told = False
            while process.poll() is None:
                if self._stop.is_set() and not is_told:
                    process.terminate()
                    is_told = True
                if progress := _progress(log):
                    report(*progress)
                self._kilowatt_hours()  # before counters of packages start again
                self._stop.wait(_POLL_SECONDS) if not is_told else time.sleep(_POLL_SECONDS)
        return _STOPPED if is_told else process.returncode

    def command(self, run: Run) -> list[str]:
        """Return the words of a command line that starts a run."""
        is_launched = self.limits.launcher and run.command != "prepare"
        start = list(self.limits.launcher) if is_launched else [sys.executable]
        resume = ["--resume_from_checkpoint", "auto"] if run.command == "pretrain" else []
        return [*start, "-m", f"{__package__.partition('.')[0]}.commands.{run.command}", *run.words, *resume]

    def _environment(self) -> dict[str, str]:
        threads = max(1, (os.cpu_count() or 1) // self.limits.jobs)
        shared = {} if self.limits.jobs == 1 else {"OMP_NUM_THREADS": str(threads)}
        return {**shared, **os.environ}


def _progress(log: Path) -> tuple[int, int] | None:
    """Return steps that are done and planned, by the last progress bar in a log."""
    with log.open("rb") as stream:
        stream.seek(max(0, log.stat().st_size - _TAIL_BYTES))
        found = _PROGRESS.findall(stream.read())
    return (int(found[-1][0]), int(found[-1][1])) if found else None


def _failure(run: Run, status: int, log: Path) -> str:
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    last = lines[-1] if lines else "without a word"
    return f"kamim {run.command} ended with status {status} ({last}); its log is {log}"
