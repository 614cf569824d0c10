"""Stop a run early and save it on SIGTERM or Ctrl-C; print the command that resumes it."""

import os
import shlex
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from transformers import TrainerCallback

from ..privacy import without_tokens
from .launch import largest_of_processes

SIGNALS = (signal.SIGTERM, signal.SIGINT)


def resume_command(command: Sequence[str], checkpoint: str | None = "auto") -> str:
    """A command line, made to go on with a checkpoint; without access tokens.

    Args:
        command: words, the program first; none where the run was started from Python.
        checkpoint: value of resume_from_checkpoint; None to leave the command as it was given.
    """
    if not command:
        return "the same call" + (f", with resume_from_checkpoint={checkpoint!r}" if checkpoint else "")
    if checkpoint is None:
        return without_tokens(shlex.join(command))
    kept, skips = [], False
    for word in command:
        if not skips and not word.startswith("--resume_from_checkpoint"):
            kept.append(word)
        skips = not skips and word == "--resume_from_checkpoint"
    return without_tokens(shlex.join([*kept, "--resume_from_checkpoint", checkpoint]))


class StopOnSignal(TrainerCallback):
    """On SIGTERM or Ctrl-C, save a checkpoint after the running step and end the training; a second ends it at once.

    Every process of a job stops after the same step, whichever of them got the signal. The death of a loader's worker,
    which torch raises from a signal handler, in the midst of a step, is left to the loader, which raises it when it is
    asked for the next batch.
    """

    def __init__(self):
        self.received: int | None = None
        self._before: dict[int, Any] = {}  # handlers to put back; none where it does not listen

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Within it signals are handled this way; only in the main thread, elsewhere Python does not allow it."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        self._before = {number: signal.signal(number, self._handle) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in self._before.items():
                signal.signal(number, handler or signal.SIG_DFL)
            self._before = {}

    def _handle(self, number: int, frame: object) -> None:
        if self.received is not None:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self.received = number  # workers of the loader have a copy of this: they too go on at the first

    def on_step_begin(self, args, state, control, **kwargs):
        if self._before and hasattr(signal, "SIGCHLD") and signal.SIGCHLD not in self._before:
            self._before[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, signal.SIG_DFL)

    def on_step_end(self, args, state, control, **kwargs):
        received = largest_of_processes(self.received or 0, args)
        if received:
            self.received = received
            control.should_save = control.should_training_stop = True
