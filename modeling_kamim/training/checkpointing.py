"""Save checkpoints atomically, restore every tensor, and delete only the checkpoints of this run."""

import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedModel, Trainer, TrainerCallback

from .. import files as durability
from ..errors import InputError, StoppedError, on_one_line
from ..models.finite import model_tensors, nonfinite_names
from ..models.loading import load_whole
from ..models.loss_predictor import load_loss_predictor
from .integrity import faults
from .launch import largest_of_processes
from .resume import save_settings, whole_checkpoints
from .run_directory import checkpoints, is_own, sign, step_of
from .signals import resume_command
from .throughput import Throughput

logger = logging.getLogger(__name__)
UNFINISHED = ".unfinished"  # folder in the output directory where checkpoints are written, before they are moved
SAVE_ERRORS = (OSError, RuntimeError, SafetensorError)  # what a full disk raises


class StatefulCallback(TrainerCallback):
    """A callback that writes files of its own into every checkpoint of a `PixelTrainer`."""

    def save(self, checkpoint: Path) -> None:
        """Write the files into a checkpoint directory; called in the process that saves."""
        raise NotImplementedError


class CheckpointingTrainer(Trainer):
    """Trainer whose checkpoints are written aside, synced to the disk, and then renamed.

    A checkpoint that cannot be written is reported, and the training goes on; a final model that cannot be written ends
    it. A run deletes, names and loads only its own checkpoints (see `run_directory`). Weights that are not finite are
    not saved.
    """

    run_settings: Mapping[str, Any] | None = None

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.throughput = Throughput()
        self._is_saving_aside = False

    def _check_weights(self) -> None:
        """Raise StoppedError, in every process, if a weight is not finite: it must not be saved."""
        names = nonfinite_names(model_tensors(self.model))
        if largest_of_processes(len(names), self.args):
            raise StoppedError(
                f"step {self.state.global_step}: the weights are NaN or infinite ({', '.join(names[:3])}), and are not "
                f"saved; try a smaller --learning_rate, --max_grad_norm 1 or --precision fp32. {self._how_to_go_on()}"
            )

    def _save_before_the_end(self) -> None:
        """Save what is trained after an error of the loader, in a run of one process: others would not take part."""
        saved = [step_of(checkpoint) for checkpoint in whole_checkpoints(Path(self.args.output_dir))]
        if self.state.global_step and self.args.world_size == 1 and self.state.global_step not in saved:
            self._save_checkpoint(self.model, trial=None)

    def _how_to_go_on(self) -> str:
        """Name the last checkpoint of this run, and the command that goes on with it, or else that starts it again."""
        command = getattr(self.args, "_command", ())
        whole = whole_checkpoints(Path(self.args.output_dir))
        reached = [checkpoint for checkpoint in whole if step_of(checkpoint) <= self.state.global_step]
        if self.args.save_only_model and not reached:
            return "Its checkpoints hold the weights alone (--save_only_model): no run can go on from them"
        if not reached:
            return f"This run has saved no checkpoint yet; start it again with: {resume_command(command, None)}"
        last = reached[-1]  # `auto` would take a later one, from before the run went back to an earlier one
        return f"{last} is saved; go on with: {resume_command(command, 'auto' if last == whole[-1] else str(last))}"

    def _get_output_dir(self, trial: Any) -> str:
        folder = super()._get_output_dir(trial)
        return os.path.join(folder, UNFINISHED) if self._is_saving_aside else folder

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        with self.throughput.paused():
            self._check_weights()
            try:
                self._save_aside(model, trial)
            except SAVE_ERRORS as error:
                if self.args.world_size > 1:  # the other processes wait for this one
                    raise
                shutil.rmtree(Path(self.args.output_dir) / UNFINISHED, ignore_errors=True)
                logger.error("Checkpoint of step %d NOT saved, training on: %s", self.state.global_step, error)

    def _save_aside(self, model: nn.Module, trial: Any) -> None:
        """Write a checkpoint aside and rename it; then publish it, and delete older ones."""
        output_dir = Path(self._get_output_dir(trial))
        name = f"checkpoint-{self.state.global_step}"
        if self.args.should_save:
            shutil.rmtree(output_dir / UNFINISHED, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self._is_saving_aside = True
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._is_saving_aside = False
        self.accelerator.wait_for_everyone()
        self._name_best(output_dir)
        if self.args.should_save:
            self._complete_checkpoint(output_dir / UNFINISHED / name)
            self._move_checkpoint(output_dir / UNFINISHED / name, output_dir / name)
            if self.args.push_to_hub:
                self._publish_checkpoint(output_dir / name)
            self._rotate_checkpoints(output_dir)
        self.accelerator.wait_for_everyone()

    def _name_best(self, output_dir: Path) -> None:
        """Note, in every process, the place that the best checkpoint gets, not the one where it is written aside."""
        best = self.state.best_global_step
        if best and (best == self.state.global_step or is_own(output_dir, output_dir / f"checkpoint-{best}")):
            self.state.best_model_checkpoint = str(output_dir / f"checkpoint-{best}")

    def _finalize_training(self, *args, **kwargs):
        limit, self.args.save_total_limit = self.args.save_total_limit, None  # else it deletes those of other runs
        try:
            return super()._finalize_training(*args, **kwargs)
        finally:
            self.args.save_total_limit = limit

    def _rotate_checkpoints(self, output_dir: Path) -> None:
        """Delete the oldest checkpoints of this run above `save_total_limit`, but not the last one and the best."""
        limit, best = self.args.save_total_limit, self.state.best_model_checkpoint
        if not limit or limit < 0:
            return
        step = self.state.global_step
        own = [checkpoint for checkpoint in checkpoints(output_dir) if is_own(output_dir, checkpoint)]
        own.sort(key=lambda checkpoint: (step_of(checkpoint) <= step, step_of(checkpoint)))  # the last one at the end
        kept = {own[-1], *([Path(best)] if best else [])}
        surplus = len(own) - max(limit, len(kept & set(own)))
        for checkpoint in [checkpoint for checkpoint in own if checkpoint not in kept][: max(0, surplus)]:
            shutil.rmtree(checkpoint, ignore_errors=True)

    def _complete_checkpoint(self, unfinished: Path) -> None:
        if self.run_settings is not None:
            save_settings(unfinished, self.run_settings)
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, StatefulCallback):
                callback.save(unfinished)
        if self.state.best_model_checkpoint:
            self.state.save_to_json(str(unfinished / "trainer_state.json"))
        sign(Path(self.args.output_dir), unfinished)

    def _move_checkpoint(self, unfinished: Path, checkpoint: Path) -> None:
        durability.sync(unfinished)
        if checkpoint.exists():  # of an earlier run here, or of this one before it went back to an earlier step
            checkpoint.rename(unfinished.with_name("replaced"))
        durability.replace(unfinished, checkpoint)
        shutil.rmtree(unfinished.parent)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """Write the model aside and move its files, so that a full disk leaves the earlier ones whole.

        training_args.bin is left out: it is a pickle that holds local paths and the access token.
        """
        folder = Path(output_dir or self.args.output_dir)
        unfinished = folder / UNFINISHED
        super()._save(str(unfinished), state_dict)
        if self.args.should_save:
            (unfinished / "training_args.bin").unlink()
            durability.sync(unfinished)
            for file in unfinished.iterdir():
                durability.replace(file, folder / file.name)
            unfinished.rmdir()

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As `Trainer.save_model`; raise StoppedError if the files cannot be written."""
        try:
            super().save_model(output_dir, _internal_call=True)  # else it publishes, before results and card are there
        except SAVE_ERRORS as error:
            if _internal_call:
                raise
            folder = output_dir or self.args.output_dir
            raise StoppedError(
                f"the trained model cannot be written into {folder}: {error}. {self._how_to_go_on()}"
            ) from error

    # transformers' own methods drop the encoders of ViT and Swin, whose names differ between file and model.
    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if self._is_sharded:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            self._restore(model if model is not None else self.model, resume_from_checkpoint)

    def _load_best_model(self) -> None:
        best = Path(self.state.best_model_checkpoint)
        reasons = faults(best) if is_own(Path(self.args.output_dir), best) else ["is of another run"]
        if reasons:
            logger.error("The best checkpoint %s %s; the model stays that of the last step", best, ", ".join(reasons))
        elif self._is_sharded:
            super()._load_best_model()
        else:
            self._restore(self.model, str(best))

    @property
    def _is_sharded(self) -> bool:
        return self.is_fsdp_enabled or self.is_deepspeed_enabled

    def _restore(self, model: nn.Module, checkpoint: str) -> None:
        restored = self.accelerator.unwrap_model(model, keep_torch_compile=False)
        if isinstance(restored, PreTrainedModel):
            state = load_whole(type(restored), checkpoint, config=restored.config)[0].state_dict()
            if getattr(restored, "loss_predictor", None) is not None:
                state |= load_loss_predictor(checkpoint)
        else:
            state = load_file(Path(checkpoint) / "model.safetensors")
        try:
            restored.load_state_dict(state)
        except RuntimeError as error:
            raise InputError(f"the weights of {checkpoint} are of another model: {on_one_line(error)}") from error
