"""Trainers of masked image modeling and of classifiers."""

import json
import logging
import math
import time
import traceback
from collections.abc import Callable, Mapping, Sequence, Sized
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, Dataset, Sampler
from transformers import TrainerCallback, TrainerState
from transformers.trainer_utils import TrainOutput

from ..data.decoding import BadImageError, UnreadImageError
from ..data.samples import SampleDataset
from ..errors import InputError, StoppedError
from ..files import json_values
from ..models.masked_image_modeling import KamimForMaskedImageModeling
from ..objective.weighting import CellWeighting
from .batches import OnlineDensity, normalize, weigh
from .checkpointing import StatefulCallback
from .compilation import CompilationCost, keep_compiled_code
from .hard_patches import HardPatches
from .launch import largest_of_processes
from .nonfinite import NonfiniteGuard
from .publishing_trainer import PublishingTrainer
from .recipe import check_steps
from .resume import CONTENT, check_settings, read_state
from .run_directory import begin_run
from .selection import SelectedSampler
from .signals import StopOnSignal
from .throughput import Throughput

logger = logging.getLogger(__name__)


class PixelTrainer(PublishingTrainer):
    """Trainer for batches of pixels from 0 to 255: normalizes on the device, restores every tensor, logs its speed.

    The log has `images_per_second` (over all devices), `data_wait` (share of the time spent waiting for the loader) and
    `clipped_steps` (share of steps whose gradient norm exceeded `max_grad_norm`), all since the last log. The time of
    evaluating and saving is left out.

    A loss or gradient that is not finite ends the training before the weights take it in; with `args.nonfinite` "skip"
    the step is left out instead. `nonfinite_step_N.json` names the images. Weights that are not finite are not saved
    and end the training. Logs and metrics hold None for a number that is not finite.

    SIGTERM and Ctrl-C save a checkpoint and end the training; in a run of one process, so do an image that cannot be
    decoded and a worker of the loader that dies. Evaluations read all images, whatever `dataloader_drop_last` says.

    Args:
        *args, **kwargs: of `Trainer`; `processing_class` is the image processor that holds mean and std.
        run_settings: of `resume.run_settings`, saved in every checkpoint and compared on resuming; None for no
            comparison.
    """

    def __init__(self, *args, run_settings: Mapping[str, Any] | None = None, **kwargs):
        super().__init__(*args, **kwargs)
        self.run_settings = run_settings and {**run_settings, CONTENT: self.train_dataset.content}
        self._guard = NonfiniteGuard()
        self._stop = StopOnSignal()
        self.add_callback(self._stop)
        # The losses here are means over a batch: have the Trainer divide them by the accumulation steps.
        self.model_accepts_loss_kwargs = False
        self._is_replanned = False
        if isinstance(self.train_dataset, SampleDataset):
            self.add_callback(_EpochCallback(self.train_dataset))
        if self.args.torch_compile:
            self.add_callback(CompilationCost(keep_compiled_code()))

    def train(self, resume_from_checkpoint: str | None = None, *args, **kwargs):
        """As `Trainer.train`; from a checkpoint that has all steps of the run nothing is trained.

        Raises:
            InputError: if the checkpoint was made with other settings or of another model, or there are too few images
                for a step.
            StoppedError: if it ended early (a signal, numbers that are not finite, a bad image, a worker that died), or
                took no step.
        """
        if isinstance(self.train_dataset, Sized):
            check_steps(self.args, len(self.train_dataset))
        if resume_from_checkpoint and self.run_settings is not None:
            check_settings(resume_from_checkpoint, self.run_settings, getattr(self.args, "force_resume", False))
        if self.args.should_save:
            begin_run(Path(self.args.output_dir), resume_from_checkpoint)
        self.args.resume_from_checkpoint = resume_from_checkpoint  # callbacks read it: a path, no longer "auto"
        if resume_from_checkpoint:
            reached = read_state(resume_from_checkpoint)
            planned = self.set_initial_training_values(self.args, self.get_train_dataloader())[-1]
            if reached.global_step >= planned:  # transformers' loop would train one step more
                return self._take_finished(resume_from_checkpoint, reached)
            self._is_replanned = reached.max_steps != planned
            if self._is_replanned:
                logger.warning(
                    "The run was planned for %d steps and is now for %d: from step %d on the schedule is that of a run "
                    "of %d steps",
                    *(reached.max_steps, planned, reached.global_step, planned),
                )
        self.throughput = Throughput()
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
        signal = self._stop.received
        if signal is not None:
            message = f"stopped by signal {signal} at step {self.state.global_step}. {self._how_to_go_on()}"
            raise StoppedError(message, status=128 + signal)
        if not self.state.global_step:
            raise StoppedError(
                "the training took no step, and nothing is trained; look at the number of images and steps"
            )
        self._check_weights()
        return result

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """As `Trainer`'s; where the run has another length than was planned, with the rates of its new schedule."""
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None or not self._is_replanned:
            return
        schedule = getattr(self.lr_scheduler, "scheduler", self.lr_scheduler)  # accelerate may have wrapped it
        if isinstance(schedule, LambdaLR):
            shares = zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)
            rates = [rate * share(schedule.last_epoch) for rate, share in shares]
            schedule._last_lr = rates
            for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
                group["lr"] = rate
            logger.warning("The learning rate goes on with %.3g", rates[0])

    def _take_finished(self, checkpoint: str, state: TrainerState) -> TrainOutput:
        """Load what a finished run trained, so that the model, scores or pages that it still lacks can be made."""
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

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        inputs = super()._prepare_inputs(inputs)
        self._sample_index = inputs.pop("sample_index", None)
        if "pixel_values" not in inputs:
            return inputs
        return {**inputs, "pixel_values": normalize(inputs["pixel_values"], self.processing_class)}

    def get_batch_samples(self, *args, **kwargs):
        start = time.perf_counter()
        batches = super().get_batch_samples(*args, **kwargs)
        self.throughput.data_wait += time.perf_counter() - start
        return batches

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args, **kwargs) -> torch.Tensor:
        self.throughput.images += len(next(iter(inputs.values()))) * self.args.world_size
        loss = super().training_step(model, inputs, *args, **kwargs)
        self._guard.remember(self._sample_index, loss)
        return loss

    def _get_grad_norm(self, model: nn.Module, grad_norm: torch.Tensor | None = None) -> torch.Tensor:
        norm = super()._get_grad_norm(model, grad_norm)
        self.throughput.steps += 1
        self.throughput.clipped += int(0 < self.args.max_grad_norm < norm)
        is_finite = self._guard.is_finite(float(norm), is_scaled=self.accelerator.scaler is not None)
        if largest_of_processes(int(not is_finite), self.args):
            self._meet_nonfinite(model, float(norm))
        self._guard.forget()
        return norm

    def _meet_nonfinite(self, model: nn.Module, norm: float) -> None:
        """Name the images of a step whose numbers are not finite; then end the training, or leave out the step."""
        step = self.state.global_step + 1
        rank = f"_process_{self.args.process_index}" if self.args.world_size > 1 else ""
        file = Path(self.args.output_dir) / f"nonfinite_step_{step}{rank}.json"
        what = self._guard.report(file, step, self.state.epoch, norm, self._sample_name)
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
        """As `Trainer`'s, with a generator of its own for the seeds of its workers.

        How many seeds it draws depends on evaluations and on workers that persist; the model's drop path must not.
        """
        loader = super()._get_dataloader(*args, **kwargs)
        getattr(loader, "base_dataloader", loader).generator = torch.Generator()  # accelerate may have wrapped it
        return loader

    def _init_training_state(self, max_steps: int, *args, **kwargs) -> tuple[int, int]:
        place = super()._init_training_state(max_steps, *args, **kwargs)
        self.state.compute_steps(self.args, max_steps)  # else it logs, evaluates and saves as the checkpoint's run did
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
        with self.throughput.paused():
            return super().evaluate(*args, **kwargs)

    def log(self, logs: dict[str, float], *args, **kwargs) -> None:
        if "loss" in logs:
            for scalars in self.throughput.means.values():
                scalars[:] = [self.accelerator.reduce(torch.stack(scalars).mean(), reduction="mean")]
            logs.update(self.throughput.summary())
            self.throughput = Throughput()
        super().log(json_values(logs), *args, **kwargs)

    def save_metrics(self, split: str, metrics: dict[str, float], combined: bool = True) -> None:
        super().save_metrics(split, json_values(metrics), combined)

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        is_new = super()._determine_best_metric(metrics, trial)
        self.state.best_metric = json_values(self.state.best_metric)  # which starts at infinity: JSON has none
        return is_new


class MaskedImageTrainer(PixelTrainer):
    """Trainer of masked image modeling: weights the loss, and logs `masked_l1`, the loss without weights.

    Args:
        *args, **kwargs: of `PixelTrainer`.
        weighting: turns the keypoint densities of a batch into weights, by the temperature of the step; None for
            SimMIM.
        num_cells: weight cells on each side of an image, or their rows and columns.
        hard_patches: puts weights or masks where the model's loss predictor expects large errors.
        sampler: of the training images, in place of all of them in a random order.
        online: detects on the pixels of a batch; None where its samples have densities.
    """

    def __init__(
        self,
        *args,
        weighting: CellWeighting | None = None,
        num_cells: int | Sequence[int] = 24,
        hard_patches: HardPatches | None = None,
        sampler: SelectedSampler | None = None,
        online: OnlineDensity | None = None,
        **kwargs,
    ):
        super().__init__(*args, **kwargs)
        self.online = online
        self.weighting = weighting
        self.num_cells = num_cells
        self.hard_patches = hard_patches
        self.sampler = sampler
        if self.is_fsdp_enabled and (hard_patches is not None or sampler is not None):
            raise InputError(
                "predicted_loss, easy_to_hard and selection_ratio ask a whole model, which no process has under FSDP; "
                "leave them out, or train without FSDP"
            )

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler | None:
        return self.sampler or super()._get_train_sampler(train_dataset)

    @property
    def done(self) -> float:
        """Share of the training's steps that are done, in [0, 1]."""
        return min(1.0, self.state.global_step / max(1, self.state.max_steps))

    @property
    def current_weighting(self) -> CellWeighting | None:
        """The weighting with the temperature of the step."""
        if self.weighting is None:
            return None
        return self.weighting.at(self.done)

    def log(self, logs: dict[str, float], *args, **kwargs) -> None:
        weighting = self.current_weighting
        if "loss" in logs and weighting is not None and weighting is not self.weighting:  # it has a schedule
            logs["temperature"] = weighting.temperature
        super().log(logs, *args, **kwargs)

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        inputs = super()._prepare_inputs(self.online(inputs) if self.online else inputs)
        weighting = self.current_weighting
        if self.hard_patches is not None:
            with self.accelerator.autocast():
                inputs = self.hard_patches(inputs, self._whole_model, self.done)
        return inputs if weighting is None else weigh(inputs, weighting, self.num_cells)

    def model_inputs(self, samples: Mapping[str, Any]) -> dict[str, Any]:
        """Return what the model is given of collated samples, on the device."""
        return self._prepare_inputs(dict(samples))

    @property
    def _whole_model(self) -> KamimForMaskedImageModeling:
        return self.accelerator.unwrap_model(self.model, keep_torch_compile=False)

    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        outputs = model(**inputs)
        if model.training:
            self.throughput.add("masked_l1", outputs.masked_l1.detach())
            if outputs.ranking_accuracy is not None:
                self.throughput.add("ranking_accuracy", outputs.ranking_accuracy)
        return (outputs.loss, outputs) if return_outputs else outputs.loss

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """Return the loss, and `masked_l1` for each image in place of predictions and labels."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad():
            outputs = model(**inputs)
        masked_l1 = outputs.masked_l1.detach().repeat(len(inputs["pixel_values"]))
        return outputs.loss.detach(), masked_l1, masked_l1


class ClassificationTrainer(PixelTrainer):
    """Trainer of classifiers: cross-entropy with class indices or, after CutMix and MixUp, with probabilities.

    Args:
        *args, **kwargs: of `PixelTrainer`; `args.label_smoothing_factor` smooths both kinds of labels in training.
        parameter_groups: makes the optimizer's groups of the model, which may have their own learning rates.
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
    """Return whether an error of the data loader says that a worker died."""
    is_waiting = any(frame.f_code.co_name == "_try_get_data" for frame, _ in traceback.walk_tb(error.__traceback__))
    return is_waiting and (not isinstance(error, RuntimeError) or "DataLoader worker" in str(error))


class _EpochCallback(TrainerCallback):
    """Tell the training samples which epoch it is."""

    def __init__(self, dataset: SampleDataset):
        self.dataset = dataset

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.dataset.draw_for_epoch(int(state.epoch + 1e-6))
