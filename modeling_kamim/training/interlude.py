"""Something else between two training steps, that leaves the training as it was."""

import random
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, TrainerCallback

from ..errors import InputError
from .hard_patches import in_evaluation
from .trainer import PixelTrainer


class Interlude(TrainerCallback):
    """Calls `act` before the first step of a training, every so many optimizer steps, and after the last one.

    The training is the same without it: random generators, weights and modes of modules stay as they are, and
    `images_per_second` leaves out the time.

    Args:
        trainer: of the training; add this with `trainer.add_callback`.
        steps: optimizer steps from one call to the next, 1 or more.
        name: of the setting that gives `steps`, for errors.
    """

    def __init__(self, trainer: PixelTrainer, steps: int, name: str):
        if steps < 1:
            raise InputError(f"{name} is {steps}; it must be 1 or more")
        self.trainer, self.steps = trainer, steps
        self._last_step = -1

    @abstractmethod
    def act(self, model: PreTrainedModel, step: int) -> None:
        """Do it, with the weights of a step; the model may be in any mode and on the trainer's device."""

    def on_train_begin(self, args, state, control, **kwargs):
        self._last_step = -1
        if state.global_step == 0:
            self._interrupt(state, control)

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step % self.steps == 0 or control.should_training_stop:
            self._interrupt(state, control)

    def on_epoch_end(self, args, state, control, **kwargs):
        # the last step of a run that another callback stops
        if control.should_training_stop:
            self._interrupt(state, control)

    def _interrupt(self, state: Any, control: Any) -> None:
        if state.global_step == self._last_step:
            return
        self._last_step = state.global_step
        should_log = control.should_log
        model = self.trainer.accelerator.unwrap_model(self.trainer.model, keep_torch_compile=False)
        with self.trainer.throughput.paused(), _undisturbed(model, self.trainer.args.device):
            self.act(model, state.global_step)
        control.should_log = should_log  # `log` takes the wish back, and the loss of this step would go missing


@contextmanager
def _undisturbed(model: PreTrainedModel, device: torch.device) -> Iterator[None]:
    """Put back the random generators of Python, NumPy and torch, and the mode of every module."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    try:
        with in_evaluation(model), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
