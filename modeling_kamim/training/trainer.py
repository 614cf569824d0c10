"""What transformers' Trainer cannot do by argument."""

import json
import logging
import math
import os
import shutil
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sized
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainerState
from transformers.trainer_utils import HubStrategy, TrainOutput

from .. import files as durability
from ..data.decoding import BadImageError, UnreadImageError
from ..data.samples import SampleDataset
from ..errors import InputError, StoppedError, on_one_line
from ..files import json_values
from ..hub.publishing import Publisher, PublishError, checkpoint_files, published_files
from ..models.finite import model_tensors, nonfinite_names
from ..models.loading import load_whole
from ..objective.density import resample_density
from ..objective.weighting import CellWeighting
from .integrity import faults
from .launch import largest_of_processes
from .recipe import check_steps
from .resume import CONTENT, SETTINGS_FILE, check_settings, read_state, whole_checkpoints
from .run_directory import PAGE_FILES, begin_run, checkpoints, is_own, left_by_others, sign, step_of
from .signals import StopOnSignal, resume_command

logger = logging.getLogger(__name__)
UNFINISHED = ".unfinished"  # folder in the output directory where checkpoints are written, before they are moved
SAVE_ERRORS = (OSError, RuntimeError, SafetensorError)  # what a full disk raises


class StatefulCallback(TrainerCallback):
    """A callback with files of its own in every checkpoint of a `PixelTrainer`."""

    def save(self, checkpoint: Path) -> None:
        """Write them into a checkpoint directory; called in the process that saves."""
        raise NotImplementedError


class PixelTrainer(Trainer):
    """Trainer for batches of pixels in 0 to 255: normalizes on the device, restores every tensor, measures its speed.

    Checkpoints appear whole or not at all: they are written aside, to the disk, and then renamed. One that cannot be
    written, or cannot be published, is reported and does not end the training; a final model that cannot be written
    does. Of the checkpoints in its directory a run deletes, names and loads its own alone (see `run_directory`).
    `push_to_hub` publishes what `publishing.published_files` names, never pickles or the access token.

    It logs `images_per_second` (over all devices), `data_wait` (share of the time spent waiting for the loader) and
    `clipped_steps` (share of steps whose gradient norm exceeded `max_grad_norm`) since the last log. The time of
    evaluation and saving is left out.

    A loss or gradient that is not finite ends the training before the weights take it in; with `args.nonfinite` "skip"
    the step is left out. `nonfinite_step_N.json` names the images. Weights that are not finite end it before they are
    saved; so does a training without a step. In what is logged and saved as metrics None stands for such numbers.
    Evaluations read all images, whatever `dataloader_drop_last` says.

    SIGTERM and Ctrl-C save a checkpoint and end it; so
    do, in a run of one process, an image that cannot be decoded and a worker of the loader that dies.

    Args:
        *args, **kwargs: of `Trainer`; `processing_class` is the image processor that holds mean and std.
        run_settings: of `resume.run_settings`, saved in every checkpoint and compared on resuming; None for no
            comparison.
    """

    def __init__(self, *args, run_settings: Mapping[str, Any] | None = None, **kwargs):
        super().__init__(*args, **kwargs)
        self.run_settings = run_settings and {**run_settings, CONTENT: self.train_dataset.content}
        self._batches: list[_Batch] = []  # of the running optimizer step
        self._stop = StopOnSignal()
        self.add_callback(self._stop)
        # The losses here are means over a batch: have the Trainer divide them by the accumulation steps.
        self.model_accepts_loss_kwargs = False
        self._window = _Window()
        self._is_saving_aside = self._is_replanned = False
        if isinstance(self.train_dataset, SampleDataset):
            self.add_callback(_EpochCallback(self.train_dataset))

    def train(self, resume_from_checkpoint: str | None = None, *args, **kwargs):
        """As `Trainer.train`; a checkpoint that has all steps of the run is taken as it is.

        Raises:
            InputError: if the checkpoint was made with other settings or of another model, or there are too few images
                for a step.
            StoppedError: if it ended early: a signal, numbers that are not finite, a bad image, a worker that died; or
                if it took no step.
        """
        if isinstance(self.train_dataset, Sized):
            check_steps(self.args, len(self.train_dataset))
        if resume_from_checkpoint and self.run_settings is not None:
            check_settings(resume_from_checkpoint, self.run_settings, getattr(self.args, "force_resume", False))
        if self.args.should_save:
            begin_run(Path(self.args.output_dir), resume_from_checkpoint)
        self.args.resume_from_checkpoint = resume_from_checkpoint  # callbacks read it, and find no "auto" there
        if resume_from_checkpoint:
            reached = read_state(resume_from_checkpoint)
            planned = self.set_initial_training_values(self.args, self.get_train_dataloader())[-1]
            if reached.global_step >= planned:  # the stock loop would train one more
                return self._take_finished(resume_from_checkpoint, reached)
            self._is_replanned = reached.max_steps != planned
            if self._is_replanned:
                logger.warning(
                    "The run was planned for %d steps and is now for %d: from step %d on the schedule is that of a run "
                    "of %d steps",
                    *(reached.max_steps, planned, reached.global_step, planned),
                )
        self._window = _Window()
        with self._stop.listening():
            try:
                result = super().train(resume_from_checkpoint, *args, **kwargs)
            except (BadImageError, UnreadImageError) as error:
                if not self.state.global_step:
                    raise
                self._save_before_the_end()
                raise StoppedError(f"{error}. {self._how_to_go_on()}") from error
            except (RuntimeError, OSError, EOFError) as error:
                if not _is_of_a_worker(error):
                    raise
                self._save_before_the_end()
                raise StoppedError(f"a process that loads data died ({error}). {self._how_to_go_on()}") from error
        if self._stop.received is not None:
            message = (
                f"stopped by signal {self._stop.received} at step {self.state.global_step}. {self._how_to_go_on()}"
            )
            raise StoppedError(message, status=128 + self._stop.received)
        if not self.state.global_step:
            raise StoppedError(
                "the training took no step, and nothing is trained; look at the number of images and steps"
            )
        self._check_weights()
        return result

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """As the stock one; where the run has another length than was planned, with the rates of its own schedule."""
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None or not self._is_replanned:
            return
        schedule = getattr(self.lr_scheduler, "scheduler", self.lr_scheduler)  # accelerate may have wrapped it
        if isinstance(schedule, LambdaLR):
            factors = [factor(schedule.last_epoch) for factor in schedule.lr_lambdas]
            rates = [rate * factor for rate, factor in zip(schedule.base_lrs, factors, strict=True)]
            schedule._last_lr = rates
            for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
                group["lr"] = rate
            logger.warning("The learning rate goes on with %.3g", rates[0])

    def _take_finished(self, checkpoint: str, state: TrainerState) -> TrainOutput:
        """Take over what a finished run trained, so that what may be missing behind the training can be made."""
        self._load_from_checkpoint(checkpoint)
        self.model.to(self.args.device)
        self.state = state
        self.state.is_local_process_zero = self.is_local_process_zero()
        self.state.is_world_process_zero = self.is_world_process_zero()
        step = self.state.global_step
        logger.info("The run is finished: %s has all of its %d steps, nothing is trained", checkpoint, step)
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, StatefulCallback):
                callback.on_train_begin(self.args, self.state, self.control, model=self.model)
        if self.args.load_best_model_at_end and self.state.best_model_checkpoint:
            self._load_best_model()
        measured = Path(self.args.output_dir) / "train_results.json"
        metrics = json.loads(measured.read_text(encoding="utf-8")) if measured.is_file() else {}
        return TrainOutput(step, metrics.get("train_loss", math.nan), metrics)

    def _check_weights(self) -> None:
        """Raise StoppedError, in every process, where a weight is not finite: it must not be saved."""
        names = nonfinite_names(model_tensors(self.model))
        if largest_of_processes(len(names), self.args):
            raise StoppedError(
                f"step {self.state.global_step}: the weights are NaN or infinite ({', '.join(names[:3])}), and are not "
                f"saved; try a smaller --learning_rate, --max_grad_norm 1 or --precision fp32. {self._how_to_go_on()}"
            )

    def _save_before_the_end(self) -> None:
        """Save what is trained, after an error of the loader, which comes between steps; other processes may not."""
        saved = [step_of(checkpoint) for checkpoint in whole_checkpoints(Path(self.args.output_dir))]
        if self.state.global_step and self.args.world_size == 1 and self.state.global_step not in saved:
            self._save_checkpoint(self.model, trial=None)

    def _how_to_go_on(self) -> str:
        """The last checkpoint of this run, and the command that goes on with it; where there is none, this command."""
        command = getattr(self.args, "_command", ())
        whole = whole_checkpoints(Path(self.args.output_dir))
        reached = [checkpoint for checkpoint in whole if step_of(checkpoint) <= self.state.global_step]
        if self.args.save_only_model and not reached:
            return "Its checkpoints hold the weights alone (--save_only_model): no run can go on from them"
        if not reached:
            return f"This run has saved no checkpoint yet; start it again with: {resume_command(command, None)}"
        last = reached[-1]  # `auto` would take a later one, from before the run went back to an earlier one
        return f"{last} is saved; go on with: {resume_command(command, 'auto' if last == whole[-1] else str(last))}"

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        inputs = super()._prepare_inputs(inputs)
        self._sample_index = inputs.pop("sample_index", None)
        if "pixel_values" not in inputs:
            return inputs
        pixels = inputs["pixel_values"].float() / 255
        mean = torch.tensor(self.processing_class.image_mean, device=pixels.device).view(1, -1, 1, 1)
        std = torch.tensor(self.processing_class.image_std, device=pixels.device).view(1, -1, 1, 1)
        return {**inputs, "pixel_values": (pixels - mean) / std}

    def get_batch_samples(self, *args, **kwargs):
        start = time.perf_counter()
        batches = super().get_batch_samples(*args, **kwargs)
        self._window.data_wait += time.perf_counter() - start
        return batches

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args, **kwargs) -> torch.Tensor:
        self._window.images += len(next(iter(inputs.values()))) * self.args.world_size
        loss = super().training_step(model, inputs, *args, **kwargs)
        self._batches.append(_Batch(self._sample_index, loss))
        return loss

    def _get_grad_norm(self, model: nn.Module, grad_norm: torch.Tensor | None = None) -> torch.Tensor:
        norm = super()._get_grad_norm(model, grad_norm)
        self._window.steps += 1
        self._window.clipped += int(0 < self.args.max_grad_norm < norm)
        losses = [float(batch.loss) for batch in self._batches]
        is_scaled = self.accelerator.scaler is not None  # then infinite gradients only say that the scale is too large
        is_finite = all(map(math.isfinite, losses)) and (is_scaled or math.isfinite(norm))
        if largest_of_processes(int(not is_finite), self.args):
            self._meet_nonfinite(model, losses, float(norm))
        self._batches.clear()
        return norm

    def _meet_nonfinite(self, model: nn.Module, losses: list[float], norm: float) -> None:
        """Name the images of a step whose numbers are not finite; then end the training, or leave out the step."""
        step = self.state.global_step + 1
        rank = f"_process_{self.args.process_index}" if self.args.world_size > 1 else ""
        file = Path(self.args.output_dir) / f"nonfinite_step_{step}{rank}.json"
        samples = [[self._sample_name(index) for index in batch.samples] for batch in self._batches]
        numbers = {"losses": [f"{loss:g}" for loss in losses], "gradient_norm": f"{norm:g}"}  # JSON has no NaN
        report = {"step": step, "epoch": self.state.epoch, **numbers, "samples": samples}
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(report, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        what = f"step {step}: the loss is {losses} and the gradient's norm {norm:g}; {file} names the images"
        if getattr(self.args, "nonfinite", "raise") == "skip":
            logger.error("%s. The step is left out", what)
            model.zero_grad(set_to_none=True)  # the optimizer passes over parameters without a gradient
            return
        raise StoppedError(
            f"{what}. The weights have not taken it in. --nonfinite skip leaves such steps out. {self._how_to_go_on()}"
        )

    def _sample_name(self, index: int) -> dict[str, Any]:
        rows = getattr(self.train_dataset, "rows", None)
        images = [value for value in (rows[index] if rows is not None else {}).values() if isinstance(value, dict)]
        return {"index": index, "path": next((image["path"] for image in images if image.get("path")), None)}

    def _get_dataloader(self, *args, **kwargs) -> DataLoader:
        """As the stock one; it draws the seeds of its workers from a generator of its own.

        How often it does depends on evaluations and on workers that persist, and the model's drop path must not.
        """
        loader = super()._get_dataloader(*args, **kwargs)
        getattr(loader, "base_dataloader", loader).generator = torch.Generator()  # within accelerate's
        return loader

    def _init_training_state(self, max_steps: int, *args, **kwargs) -> tuple[int, int]:
        place = super()._init_training_state(max_steps, *args, **kwargs)
        self.state.compute_steps(self.args, max_steps)  # the stock one logs, evaluates and saves as the checkpoint did
        if self.args.resume_from_checkpoint:
            self.state.best_model_checkpoint = read_state(self.args.resume_from_checkpoint).best_model_checkpoint
        return place

    def get_eval_dataloader(self, *args, **kwargs) -> DataLoader:
        drop_last, self.args.dataloader_drop_last = self.args.dataloader_drop_last, False
        try:
            return super().get_eval_dataloader(*args, **kwargs)
        finally:
            self.args.dataloader_drop_last = drop_last

    def evaluate(self, *args, **kwargs) -> dict[str, float]:
        with self._window.paused():
            return super().evaluate(*args, **kwargs)

    def _get_output_dir(self, trial: Any) -> str:
        folder = super()._get_output_dir(trial)
        return os.path.join(folder, UNFINISHED) if self._is_saving_aside else folder

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        with self._window.paused():
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
        """Where the best checkpoint is going to be, in every process; not where it is written."""
        best = self.state.best_global_step
        if best and (best == self.state.global_step or is_own(output_dir, output_dir / f"checkpoint-{best}")):
            self.state.best_model_checkpoint = str(output_dir / f"checkpoint-{best}")

    def _finalize_training(self, *args, **kwargs):
        limit, self.args.save_total_limit = self.args.save_total_limit, None  # the stock one deletes other runs' too
        try:
            return super()._finalize_training(*args, **kwargs)
        finally:
            self.args.save_total_limit = limit

    def _rotate_checkpoints(self, output_dir: Path) -> None:
        """Delete the oldest checkpoints of this run over `save_total_limit`; not the last one, and not the best."""
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
            text = json.dumps(self.run_settings, indent=2) + "\n"
            (unfinished / SETTINGS_FILE).write_text(text, encoding="utf-8")
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, StatefulCallback):
                callback.save(unfinished)
        if self.state.best_model_checkpoint:
            self.state.save_to_json(str(unfinished / "trainer_state.json"))
        sign(Path(self.args.output_dir), unfinished)

    def _move_checkpoint(self, unfinished: Path, checkpoint: Path) -> None:
        durability.sync(unfinished)
        if checkpoint.exists():  # of an earlier run in this directory, or saved before this one went back
            checkpoint.rename(unfinished.with_name("replaced"))
        durability.replace(unfinished, checkpoint)
        shutil.rmtree(unfinished.parent)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """Write the model aside and move its files, so that a full disk leaves the earlier ones whole.

        training_args.bin is left out: it is a pickle with local paths and the access token in it.
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

    def init_hf_repo(self, *args, **kwargs) -> None:
        """Make the repository; where that fails, it is tried again when there is something to publish."""
        if not self.is_world_process_zero():
            return
        settings = self.args
        name = settings.hub_model_id or Path(settings.output_dir).absolute().name
        self.publisher = Publisher(name, settings.hub_token, settings.hub_private_repo, settings.hub_revision)
        try:
            self.publisher.prepare()
        except PublishError as error:
            logger.error("Nothing can be published now, the training goes on: %s", error)
        self.hub_model_id = self.publisher.repo_id
        self.push_in_progress = None

    def push_to_hub(self, commit_message: str | None = "End of training", *args, **kwargs) -> str | None:
        """Publish the output directory as it is; a failure is reported with the command that repeats it.

        Returns:
            Address of the commit; None if there is none.
        """
        if not self.is_world_process_zero():
            return None
        if self.hub_model_id is None:
            self.init_hf_repo()
        output_dir = Path(self.args.output_dir)
        try:
            address = self.publisher.push(
                published_files(output_dir, left_by_others(output_dir)), commit_message or "End of training"
            )
        except PublishError as error:
            command = self.publisher.command(output_dir)
            logger.error("NOT published: %s\nThe checkpoint is whole in %s. Publish it: %s", error, output_dir, command)
            return None
        logger.info("Published: %s", address)
        return address

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As `Trainer.save_model`.

        Raises:
            StoppedError: if the files cannot be written.
        """
        if _internal_call:
            super().save_model(output_dir, _internal_call=True)
            return
        try:
            super().save_model(output_dir, _internal_call=True)  # publishing waits for results and card
        except SAVE_ERRORS as error:
            folder = output_dir or self.args.output_dir
            raise StoppedError(
                f"the trained model cannot be written into {folder}: {error}. {self._how_to_go_on()}"
            ) from error

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        pass  # its files are still aside: see _publish_checkpoint

    def _publish_checkpoint(self, checkpoint: Path) -> None:
        strategy, page = self.args.hub_strategy, Path(self.args.output_dir)
        if not self.is_world_process_zero() or strategy == HubStrategy.END:
            return
        files = published_files(checkpoint)
        files |= {name: (page / name).read_bytes() for name in PAGE_FILES if (page / name).is_file()}
        if strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
            files |= checkpoint_files(
                checkpoint, "last-checkpoint" if strategy == HubStrategy.CHECKPOINT else checkpoint.name
            )
        try:
            self.publisher.push_in_background(files, f"Training in progress, step {self.state.global_step}")
        except OSError as error:
            logger.warning("%s is saved, but not published: %s", checkpoint, error)

    def log(self, logs: dict[str, float], *args, **kwargs) -> None:
        if "loss" in logs:
            if self._window.masked_l1:
                mean = torch.stack(self._window.masked_l1).mean()
                self._window.masked_l1 = [self.accelerator.reduce(mean, reduction="mean")]
            logs.update(self._window.summary())
            self._window = _Window()
        super().log(json_values(logs), *args, **kwargs)

    def save_metrics(self, split: str, metrics: dict[str, float], combined: bool = True) -> None:
        super().save_metrics(split, json_values(metrics), combined)

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        is_new = super()._determine_best_metric(metrics, trial)
        self.state.best_metric = json_values(self.state.best_metric)  # the stock one starts at infinity
        return is_new

    # The stock methods load the file's key names into a model that has others, and drop the encoders of ViT and Swin.
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
        else:
            state = load_file(Path(checkpoint) / "model.safetensors")
        try:
            restored.load_state_dict(state)
        except RuntimeError as error:
            raise InputError(f"the weights of {checkpoint} are of another model: {on_one_line(error)}") from error


class MaskedImageTrainer(PixelTrainer):
    """Trainer of masked image modeling: weights the loss, and logs `masked_l1`, the loss without weights.

    Args:
        *args, **kwargs: of `PixelTrainer`.
        weighting: from the densities of a batch to weights; None for SimMIM.
        num_cells: weight cells on each side of an image.
    """

    def __init__(self, *args, weighting: CellWeighting | None = None, num_cells: int = 24, **kwargs):
        super().__init__(*args, **kwargs)
        self.weighting = weighting
        self.num_cells = num_cells

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        inputs = super()._prepare_inputs(inputs)
        if self.weighting is None:
            return inputs
        density = inputs.pop("keypoint_density")
        if "crop_box" in inputs:
            density = resample_density(density.float() / 255, inputs.pop("crop_box"), self.num_cells)
        inputs["keypoint_weights"] = self.weighting(density, inputs.pop("cell_order", None))
        return inputs

    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        outputs = model(**inputs)
        if model.training:
            self._window.masked_l1.append(outputs.masked_l1.detach())
        return (outputs.loss, outputs) if return_outputs else outputs.loss

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """Loss, and the unweighted loss in the place of predictions; the reconstructions are not kept."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad():
            outputs = model(**inputs)
        masked_l1 = outputs.masked_l1.detach().repeat(len(inputs["pixel_values"]))
        return outputs.loss.detach(), masked_l1, masked_l1


class ClassificationTrainer(PixelTrainer):
    """Trainer of classifiers: cross-entropy with class indices or, after CutMix and MixUp, with probabilities.

    Args:
        *args, **kwargs: of `PixelTrainer`; `label_smoothing_factor` of its arguments smooths both kinds of labels in
            training.
        parameter_groups: from the model to the groups of its optimizer, with their own learning rates.
    """

    def __init__(self, *args, parameter_groups: Callable[[nn.Module], list[dict]] | None = None, **kwargs):
        super().__init__(*args, **kwargs)
        self.parameter_groups = parameter_groups
        self.label_smoother = None

    def create_optimizer(self, *args, **kwargs) -> torch.optim.Optimizer:
        if self.parameter_groups is not None and self.optimizer is None:
            chosen = self.optimizer_cls_and_kwargs or self.get_optimizer_cls_and_kwargs(self.args, self.model)
            optimizer_class, settings = chosen
            self.optimizer: torch.optim.Optimizer = optimizer_class(self.parameter_groups(self.model), **settings)
        return super().create_optimizer(*args, **kwargs)

    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        outputs = model(**{name: tensor for name, tensor in inputs.items() if name != "labels"})
        smoothing = self.args.label_smoothing_factor if model.training else 0.0
        loss = nn.functional.cross_entropy(outputs["logits"], inputs["labels"], label_smoothing=smoothing)
        return (loss, {"loss": loss, "logits": outputs["logits"]}) if return_outputs else loss


def _is_of_a_worker(error: Exception) -> bool:
    """Whether it tells, where a loader waits for a batch, that a worker died."""
    is_waiting = any(frame.f_code.co_name == "_try_get_data" for frame, _ in traceback.walk_tb(error.__traceback__))
    return is_waiting and (not isinstance(error, RuntimeError) or "DataLoader worker" in str(error))


class _Batch(NamedTuple):
    """What is remembered of a batch until the optimizer's step."""

    sample_index: torch.Tensor | None
    loss: torch.Tensor

    @property
    def samples(self) -> list[int]:
        return [] if self.sample_index is None else self.sample_index.flatten().tolist()


class _EpochCallback(TrainerCallback):
    """Tells the training samples which epoch it is."""

    def __init__(self, dataset: SampleDataset):
        self.dataset = dataset

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.dataset.draw_for_epoch(int(state.epoch + 1e-6))


class _Window:
    """What happened since the last log."""

    def __init__(self):
        self.start = time.perf_counter()
        self.images = self.steps = self.clipped = 0
        self.data_wait = 0.0
        self.masked_l1: list[torch.Tensor] = []

    @contextmanager
    def paused(self) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.start += time.perf_counter() - start

    def summary(self) -> dict[str, float]:
        elapsed = time.perf_counter() - self.start
        summary = {"images_per_second": self.images / elapsed, "data_wait": self.data_wait / elapsed}
        if self.steps:
            summary["clipped_steps"] = self.clipped / self.steps
        if self.masked_l1:
            summary["masked_l1"] = torch.stack(self.masked_l1).mean().item()
        return summary
