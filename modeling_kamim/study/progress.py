"""The table of a study while it runs: what is done, what runs, what waits, and how long the trainings will take."""

import sys
import threading
import time
from collections.abc import Mapping
from statistics import fmean
from typing import TextIO

from ..training.forecast import in_words
from .records import Record

_EVERY_SECONDS = 60  # between two lines where the output is no terminal


class Board:
    """States of replicates, drawn into a stream; its methods may be called from several threads.

    In a terminal the table is redrawn in place. Elsewhere a line is written for each change and every minute.

    Args:
        records: of the replicates, by name.
        stream: to draw into.
    """

    def __init__(self, records: Mapping[str, Record], stream: TextIO = sys.stderr):
        self.records, self.stream = records, stream
        self._states: dict[str, str] = {}
        self._steps: dict[str, tuple[int, int]] = {}  # done and planned
        self._begun: dict[str, tuple[float, int]] = {}  # time and step
        self._seconds: dict[str, float] = {}  # per step of a pretraining
        self._lock = threading.Lock()
        self._height = 0
        self._next_line = 0.0

    def start(self, name: str, part: str) -> None:
        """Say that a part of a replicate, "pretraining" or a protocol, runs from now on."""
        with self._lock:
            self._states[name] = part
            self._steps.pop(name, None)
            self._begun.pop(name, None)
            self._say(f"{name}: {part} starts")

    def advance(self, name: str, done: int, planned: int) -> None:
        """Note how many of a part's steps are done."""
        with self._lock:
            now = time.monotonic()
            if self._steps.get(name, (0, planned))[1] != planned:  # another bar than the training's
                self._begun.pop(name, None)
            self._steps[name] = (done, planned)
            begun, first = self._begun.setdefault(name, (now, done))
            if self._states.get(name) == "pretraining" and done > first and planned == (self._planned(name) or planned):
                self._seconds[name] = (now - begun) / (done - first)

    def finish(self, name: str, how: str = "done") -> None:
        """Say that the running part of a replicate is "done", "stopped" or "FAILED"."""
        with self._lock:
            self._say(f"{name}: {self._states[name]} {how}")
            if how == "done":
                del self._states[name]
            else:
                self._states[name] += f" {how}"

    def lines(self) -> list[str]:
        """Return the table, and below it how long the trainings will take."""
        width = max(map(len, self.records), default=0)
        table = [f"  {name:<{width}}  {self._state(name)}" for name in self.records]
        return [*table, *([f"  trainings: {rest}"] if (rest := self._rest()) else [])]

    def _state(self, name: str) -> str:
        if name not in self._states:
            return f"waits ({', '.join(missing)})" if (missing := self.records[name].missing) else "done"
        done, planned = self._steps.get(name, (0, 0))
        share = f", {done:,} of {planned:,} ({done / planned:.0%})" if planned else ""
        return f"{self._states[name]}{share}"

    def _rest(self) -> str | None:
        """Return how long the trainings will take at the mean speed so far, one after the other."""
        steps = 0
        for name, record in self.records.items():
            run = record.replicate.pretraining
            if run is not None and "pretraining" in record.missing:
                steps += max(0, self._planned(name) - self._steps.get(name, (0, 0))[0])
        if not steps or not self._seconds:
            return None
        return f"about {in_words(steps * fmean(self._seconds.values()))} of one job left"

    def _planned(self, name: str) -> int:
        """Return the steps of a training; 0 where its epochs are given."""
        run = self.records[name].replicate.pretraining
        return int(run.settings.get("max_steps") or 0) if run else 0

    def show(self, at_the_end: bool = False) -> None:
        """Draw the table again."""
        with self._lock:
            if self.stream.isatty():
                back = f"\x1b[{self._height}A\x1b[J" if self._height else ""
                lines = self.lines()
                self._height = len(lines)
                self.stream.write(back + "".join(f"{line}\n" for line in lines))
            elif at_the_end:
                self.stream.write("".join(f"{line}\n" for line in self.lines()))
            elif self._states and time.monotonic() > self._next_line:
                self._next_line = time.monotonic() + _EVERY_SECONDS
                self._say("; ".join([f"{name}: {self._state(name)}" for name in self._states] + [self._rest() or ""]))
            self.stream.flush()

    def _say(self, line: str) -> None:
        if not self.stream.isatty():
            self.stream.write(f"{time.strftime('%H:%M')} {line.removesuffix('; ')}\n")
