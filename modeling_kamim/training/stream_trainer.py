"""Train on a stream: open the files, check the settings, resume within the stream."""

import logging
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from ..data.bad_images import BAD_IMAGES_FILE, add_bad_images
from ..data.loading import DataArguments, choose_splits
from ..data.stored_density import OtherDensitiesError, stored_columns
from ..data.streaming.parquet import ParquetFiles, load_parquet
from ..data.streaming.stream import STREAM_EVAL_SAMPLES, SampleStream, collate_stream
from ..errors import InputError
from .arguments import KamimArguments, PretrainingArguments
from .trainer import MaskedImageTrainer

logger = logging.getLogger(__name__)


def open_stream(
    data_args: DataArguments, kamim_args: KamimArguments, probe_every: str | None, training_args: PretrainingArguments
) -> dict[str, ParquetFiles]:
    """Return the splits of the data set that a run streams.

    Set `keypoint_source` to online where the files do not hold the densities that the run needs, and
    `max_eval_samples` where it is not given. Empty the list of bad images, unless the run resumes.

    Raises:
        InputError: if a setting has no meaning for a stream, or the data set cannot be streamed.
    """
    _check_settings(data_args, probe_every, training_args)
    if kamim_args.selection_rule() is not None:
        raise InputError(
            f"selection_ratio is {kamim_args.selection_ratio}, and a stream cannot select; leave out --streaming"
        )
    splits = load_parquet(data_args.dataset_name, data_args.dataset_config_name, data_args.trust_data_files)
    train, _ = choose_splits(splits, data_args.train_split, data_args.validation_split)
    if kamim_args.needs_keypoints and kamim_args.keypoint_source == "map":
        _choose_source(kamim_args, train, training_args.device.type)
    data_args.max_eval_samples = data_args.max_eval_samples or STREAM_EVAL_SAMPLES
    if training_args.should_save and training_args.resume_from_checkpoint is None:
        (Path(training_args.output_dir) / BAD_IMAGES_FILE).unlink(missing_ok=True)
    return splits


def _choose_source(kamim_args: KamimArguments, files: ParquetFiles, device: str) -> None:
    """Detect keypoints online unless the files hold densities that serve the run; a warning where they hold others."""
    try:
        files.check_densities(kamim_args.densities())
    except OtherDensitiesError as difference:
        logger.log(
            logging.WARNING if stored_columns(files.features) else logging.INFO,
            "A stream has no map step, and no stored keypoint densities serve this run: %s. Keypoints are detected on "
            "every crop (--keypoint_source online), which takes more of the loader's time (docs/performance.md)",
            difference,
        )
        kamim_args.keypoint_source = "online"
        kamim_args.check_device(device)


def _check_settings(data_args: DataArguments, probe_every: str | None, training_args: PretrainingArguments) -> None:
    if training_args.max_steps < 1:
        raise InputError(
            f"max_steps is {training_args.max_steps}; --streaming needs --max_steps, the number of optimizer steps, as "
            "a stream does not know its length: passes times images divided by "
            f"{training_args.total_batch_size}, the images of a step"
        )
    if data_args.max_train_samples is not None:
        raise InputError(
            f"max_train_samples is {data_args.max_train_samples}, and a stream has no random subset; name fewer files "
            "with --dataset_name, or leave out --streaming"
        )
    if probe_every is not None:
        raise InputError(
            f"probe_every is {probe_every}, and the probe cannot read a stream; leave it out, or leave out --streaming"
        )
    for name in ("eval_strategy", "save_strategy", "logging_strategy"):
        if getattr(training_args, name) == "epoch":
            raise InputError(f'{name} is "epoch", which a stream does not know; give "steps" with a number of them')


class StreamTrainer(MaskedImageTrainer):
    """Trainer of masked image modeling on a `SampleStream`; a resumed run goes on at its place in the stream.

    Each process reads its own part of the data. The log has `data_epoch`, the number of complete passes over the data;
    `epoch` is the share of `max_steps` that is done.
    """

    train_dataset: SampleStream

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.args.ignore_data_skip = True

    def train(self, resume_from_checkpoint: str | None = None, *args, **kwargs):
        if resume_from_checkpoint:
            force = getattr(self.args, "force_resume", False)
            self.train_dataset.restore(Path(resume_from_checkpoint), self.args.process_index, force)
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def get_train_dataloader(self) -> DataLoader:
        """Return a loader of this process alone: accelerate's would share the samples out again, and read ahead."""
        return DataLoader(
            self.train_dataset,
            batch_size=self._train_batch_size,
            collate_fn=collate_stream,
            num_workers=self.args.dataloader_num_workers,
            prefetch_factor=self.args.dataloader_prefetch_factor,
            pin_memory=self.args.dataloader_pin_memory,
            multiprocessing_context=self.args.dataloader_multiprocessing_context,
            generator=torch.Generator(),  # or the loader would draw from the model's
        )

    def get_batch_samples(self, *args, **kwargs):
        batches, num_items = super().get_batch_samples(*args, **kwargs)
        for batch in batches:
            progress = batch.pop("progress")
            self.train_dataset.advance(progress)
            add_bad_images(progress.bad_images, Path(self.args.output_dir))
        return batches, num_items

    def _maybe_log_save_evaluate(self, *args, **kwargs) -> None:
        self.state.epoch = self.state.global_step / self.state.max_steps  # transformers' starts at 0 on resuming
        super()._maybe_log_save_evaluate(*args, **kwargs)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        self.train_dataset.save(Path(output_dir), self.args.process_index)

    def log(self, logs: dict[str, float], *args, **kwargs) -> None:
        if "loss" in logs:
            logs["data_epoch"] = self.train_dataset.epoch
        super().log(logs, *args, **kwargs)

    def _sample_name(self, index: int) -> dict[str, Any]:
        return {"index": index, "path": self.train_dataset.name_of(index)}
