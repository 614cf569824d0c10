"""The card and pictures of a training in its trackers: TensorBoard, Trackio or Weights & Biases."""

import html
import io
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from transformers import PreTrainedModel, TrainerCallback
from transformers.integrations import TensorBoardCallback, TrackioCallback, WandbCallback

from ..errors import InputError
from .interlude import Interlude
from .trainer import PixelTrainer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PICTURES, CARD = "reconstructions", "card"
_DPI = 80


class ImageLog(Interlude):
    """Draws a figure every so many steps, and hands it to the run's trackers under `PICTURES`.

    Only the first process draws.

    Args:
        trainer: of the pretraining.
        draw: from the model to the figure.
        steps: optimizer steps from one picture to the next.

    Raises:
        InputError: if `steps` is less than 1, or the model is in shards.
    """

    def __init__(self, trainer: PixelTrainer, draw: Callable[[PreTrainedModel], "Figure"], steps: int):
        super().__init__(trainer, steps, "log_images_every")
        if trainer.is_fsdp_enabled:
            raise InputError("log_images_every draws in one process, which has no whole model under FSDP; leave it out")
        self.draw = draw

    def act(self, model: PreTrainedModel, step: int) -> None:
        if not self.trainer.args.should_save:
            return
        picture = as_image(self.draw(model))
        for callback in self.trainer.callback_handler.callbacks:
            send_image(callback, picture, step)


class CardLog(TrainerCallback):
    """Hands the card of a run to its trackers under `CARD` when the training begins.

    Args:
        trainer: of the training.
        card: in Markdown.
    """

    def __init__(self, trainer: PixelTrainer, card: str):
        self.trainer, self.card = trainer, card

    def on_train_begin(self, args, state, control, **kwargs):
        if args.should_save:
            for callback in self.trainer.callback_handler.callbacks:
                send_card(callback, self.card, state.global_step)


def send_image(callback: TrainerCallback, picture: Image.Image, step: int) -> None:
    """Hand a picture to the tracker behind a callback of transformers; other callbacks are left alone."""
    if isinstance(callback, TensorBoardCallback) and callback.tb_writer is not None:
        callback.tb_writer.add_image(PICTURES, np.asarray(picture), step, dataformats="HWC")
    elif tracker := _tracker(callback):
        _log(tracker, PICTURES, tracker.Image(picture), step)


def send_card(callback: TrainerCallback, card: str, step: int) -> None:
    """Hand Markdown to the tracker behind a callback of transformers; other callbacks are left alone."""
    if isinstance(callback, TensorBoardCallback) and callback.tb_writer is not None:
        callback.tb_writer.add_text(CARD, card, step)
    elif tracker := _tracker(callback):
        markdown = getattr(tracker, "Markdown", None)  # Weights & Biases has HTML alone
        shown = markdown(card) if markdown else tracker.Html(f"<pre>{html.escape(card)}</pre>")
        _log(tracker, CARD, shown, step)


def _tracker(callback: TrainerCallback) -> Any:
    """Return the module of Trackio or Weights & Biases behind a callback; None for others, and where it is off."""
    if isinstance(callback, TrackioCallback):
        return callback._trackio
    return callback._wandb if isinstance(callback, WandbCallback) else None


def _log(tracker: Any, name: str, value: Any, step: int) -> None:
    tracker.log({name: value, "train/global_step": step})


def as_image(figure: "Figure") -> Image.Image:
    """Return a figure as an RGB image."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=_DPI)
    file.seek(0)
    return Image.open(file).convert("RGB")
