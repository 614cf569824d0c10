"""Pictures of the training in the tracker of the run: TensorBoard, Trackio or Weights & Biases."""

import io
from collections.abc import Callable
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from transformers import PreTrainedModel, TrainerCallback
from transformers.integrations import TensorBoardCallback, TrackioCallback, WandbCallback

from ..errors import InputError
from .interlude import Interlude
from .trainer import PixelTrainer

TAG = "reconstructions"
_DPI = 80


class ImageLog(Interlude):
    """Draws a figure every so many steps, and hands it to the run's trackers under `TAG`.

    Only the first process draws.

    Args:
        trainer: of the pretraining.
        draw: from the model to the figure.
        steps: optimizer steps from one picture to the next.

    Raises:
        InputError: if `steps` is less than 1, or the model is in shards.
    """

    def __init__(self, trainer: PixelTrainer, draw: Callable[[PreTrainedModel], Figure], steps: int):
        super().__init__(trainer, steps, "log_images_every")
        if trainer.is_fsdp_enabled:
            raise InputError("log_images_every draws in one process, which has no whole model under FSDP; leave it out")
        self.draw = draw

    def act(self, model: PreTrainedModel, step: int) -> None:
        if not self.trainer.args.should_save:
            return
        picture = as_image(self.draw(model))
        for callback in self.trainer.callback_handler.callbacks:
            send(callback, picture, step)


def send(callback: TrainerCallback, picture: Image.Image, step: int) -> None:
    """Hand a picture to the tracker behind a callback of transformers; other callbacks are left alone."""
    if isinstance(callback, TensorBoardCallback) and callback.tb_writer is not None:
        callback.tb_writer.add_image(TAG, np.asarray(picture), step, dataformats="HWC")
    elif isinstance(callback, TrackioCallback):
        _log(callback._trackio, picture, step)
    elif isinstance(callback, WandbCallback):
        _log(callback._wandb, picture, step)


def _log(tracker: Any, picture: Image.Image, step: int) -> None:
    if tracker is not None:
        tracker.log({TAG: tracker.Image(picture), "train/global_step": step})


def as_image(figure: Figure) -> Image.Image:
    """Return a figure as an RGB image."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=_DPI)
    file.seek(0)
    return Image.open(file).convert("RGB")
