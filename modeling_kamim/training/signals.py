"""Stop a run early and save it on SIGTERM or Ctrl-C; print the command that resumes it."""

import os
import shlex
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from transformers import TrainerCallback

from ..privacy import without_tokens
from .launch import largest_of_processes

SIGNALS = (signal.SIGTERM, signal.SIGINT)


def resume_command(command: Sequence[str], checkpoint: str | None = "auto") -> str:
    """Return the command line that goes on with a checkpoint, without access tokens.

    Args:
        command: words of the first command, the program first; empty where the run was started from Python.
        checkpoint: value of --resume_from_checkpoint; None to leave the command as it was given.
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


@contextmanager
def handling(numbers: Iterable[int], handler: Callable[[int, Any], object]) -> Iterator[dict[int, Any]]:
    """Handle signals this way inside the block, and as before behind it; Python allows it in the main thread alone.

    Gives the handlers to put back; empty in other threads. What is added to it is put back too.
    """
    if threading.current_thread() is not threading.main_thread():
        yield {}
        return
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield before
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier or signal.SIG_DFL)


class StopOnSignal(TrainerCallback):
    """On SIGTERM or Ctrl-C, save a checkpoint after the running step and end the training; a second ends it at once.

    All processes of a job stop after the same step, whichever of them got the signal. While steps run, torch's handler
    of SIGCHLD is off: it would raise the death of a loader's worker in the midst of a step. The loader raises it when
    it is asked for the next batch.
    """

    def __init__(self):
        self.received: int | None = None
        self._before: dict[int, Any] = {}  # handlers to put back; empty while it does not listen

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Handle signals this way inside the block; in other threads than the main one Python does not allow it."""
        try:
            with handling(SIGNALS, self._handle) as self._before:
                yield
        finally:
            self._before = {}

    def _handle(self, number: int, frame: object) -> None:
        if self.received is not None:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self.received = number  # the loader's workers inherit this handler: they too go on after the first signal

    def on_step_begin(self, args, state, control, **kwargs):
        if self._before and hasattr(signal, "SIGCHLD") and signal.SIGCHLD not in self._before:
            self._before[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, signal.SIG_DFL)

    def on_step_end(self, args, state, control, **kwargs):
        received = largest_of_processes(self.received or 0, args)
        if received:
            self.received = received
            control.should_save = control.should_training_stop = True
