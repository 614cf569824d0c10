"""Training on Parquet files while they are read, from disk or from the Hub: no copy, no first pass over the images.

Crop, flips and mask of a sample depend on (seed, pass, file, row): on no reader and on no order. What is read when is
told in `stream_reader.py`.
"""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader, IterableDataset, default_collate, get_worker_info

from .arguments import STREAM_EVAL_SAMPLES, DataArguments, KamimArguments, OnlineProbeArguments
from .data import choose_splits, settle_worker
from .density import OtherDensitiesError, stored_columns
from .errors import InputError
from .images import BadImageError
from .parquet_files import ParquetFiles, load_parquet
from .stream_reader import Position, Row, StreamReader
from .trainer import MaskedImageTrainer
from .training_arguments import PretrainingArguments
from .transforms import MaskedImageTransform

logger = logging.getLogger(__name__)

BAD_IMAGES_FILE = "bad_images.txt"
_ROW_BITS = 40  # of a sample's number; the others are its file's


def open_stream(
    data_args: DataArguments,
    kamim_args: KamimArguments,
    probe_args: OnlineProbeArguments,
    training_args: PretrainingArguments,
) -> dict[str, ParquetFiles]:
    """The splits of the data set that a run streams.

    Sets `keypoint_source` to online where the files do not hold the densities that the run needs, and
    `max_eval_samples` where it is not given. A run that does not resume begins its list of bad images anew.

    Raises:
        InputError: if a setting has no meaning for a stream, or the data set cannot be streamed.
    """
    _check_settings(data_args, probe_args, training_args)
    splits = load_parquet(data_args.dataset_name, data_args.dataset_config_name, data_args.trust_data_files)
    train, _ = choose_splits(splits, data_args.train_split, data_args.validation_split)
    needs_densities = kamim_args.weighting != "none" and kamim_args.keypoint_source == "map"
    if needs_densities:
        _choose_source(kamim_args, train)
    data_args.max_eval_samples = data_args.max_eval_samples or STREAM_EVAL_SAMPLES
    if training_args.should_save and training_args.resume_from_checkpoint is None:
        (Path(training_args.output_dir) / BAD_IMAGES_FILE).unlink(missing_ok=True)
    return splits


def _choose_source(kamim_args: KamimArguments, files: ParquetFiles) -> None:
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


def _check_settings(
    data_args: DataArguments, probe_args: OnlineProbeArguments, training_args: PretrainingArguments
) -> None:
    if training_args.max_steps < 1:
        raise InputError(
            f"max_steps is {training_args.max_steps}; --streaming needs --max_steps, the number of optimiser steps, as "
            "a stream does not know its length: passes times images divided by "
            f"{training_args.total_batch_size}, the images of a step"
        )
    if data_args.max_train_samples is not None:
        raise InputError(
            f"max_train_samples is {data_args.max_train_samples}, and a stream has no random subset; name fewer files "
            "with --dataset_name, or leave out --streaming"
        )
    if probe_args.probe_every is not None:
        raise InputError(
            f"probe_every is {probe_args.probe_every}, and the probe needs a data set that is there as a whole; leave "
            "it out, or leave out --streaming"
        )
    for name in ("eval_strategy", "save_strategy", "logging_strategy"):
        if getattr(training_args, name) == "epoch":
            raise InputError(f'{name} is "epoch", which a stream does not know; give "steps" with a number of them')


class Progress(NamedTuple):
    """What a sample, or a batch, tells of the stream: its reader within the process, and where that is behind it.

    `bad_images` are lines on those that were left out on the way.
    """

    reader: int
    position: Position
    bad_images: tuple[str, ...] = ()


class SampleStream(IterableDataset):
    """Samples of a stream without an end: pass after pass over the files.

    It keeps the positions behind the samples that were trained on (`advance`), whatever a loader reads ahead.

    Args:
        readers: of this process, one for each worker of its loader, or the only one.
        transform: from a row and a `random.Random` to a sample.
        skip_bad_images: leave out and report images that cannot be decoded.
    """

    def __init__(self, readers: Sequence[StreamReader], transform: MaskedImageTransform, skip_bad_images: bool = False):
        self.readers = list(readers)
        self.transform = transform
        self.skip_bad_images = skip_bad_images
        self.positions = [Position()] * len(self.readers)
        self.next_reader = 0

    @classmethod
    def of_process(
        cls,
        files: ParquetFiles,
        transform: MaskedImageTransform,
        args: PretrainingArguments,
        shuffle_buffer: int,
        skip_bad_images: bool,
    ) -> "SampleStream":
        """The part of a stream that this process trains on."""
        num_workers = max(1, args.dataloader_num_workers)
        first, total = args.process_index * num_workers, args.world_size * num_workers
        readers = [
            StreamReader(files, transform.columns, args.seed, shuffle_buffer, first + worker, total)
            for worker in range(num_workers)
        ]
        return cls(readers, transform, skip_bad_images)

    @property
    def content(self) -> str:
        """What tells these files from others, see `ParquetFiles.fingerprint`."""
        return self.readers[0].files.fingerprint

    @property
    def epoch(self) -> int:
        """Passes over the data that all readers of this process have completed."""
        return min(position.epoch for position in self.positions)

    def __iter__(self) -> Iterator[tuple[dict[str, Any], Progress]]:
        worker = get_worker_info()
        settle_worker()
        if (worker.num_workers if worker else 1) != len(self.readers):
            raise ValueError(f"a stream of {len(self.readers)} reader(s) needs a loader with as many workers")
        # A loader takes its batches from worker 0 first: give it the reader whose turn it is.
        reader = (self.next_reader + (worker.id if worker else 0)) % len(self.readers)
        return self._samples(reader)

    def _samples(self, reader: int) -> Iterator[tuple[dict[str, Any], Progress]]:
        start = self.positions[reader]
        bad_images: list[str] = []
        while True:
            is_empty = start == Position(start.epoch)
            for row in self.readers[reader].rows(start):
                try:
                    sample = self._sample(row)
                except BadImageError as error:
                    place = f"row {row.number} of {self.readers[reader].files.files[row.file]}"
                    if not self.skip_bad_images:
                        raise BadImageError(f"{place}: {error}", error.reason) from None
                    bad_images.append(f"{place}: {error.finding}")
                    continue
                yield sample, Progress(reader, row.after, tuple(bad_images))
                bad_images.clear()
                is_empty = False
            if is_empty:
                first = f"; the first: {bad_images[0]}" if bad_images else ""
                raise InputError(f"a pass over the stream had no image that can be decoded{first}")
            start = Position(start.epoch + 1)

    def _sample(self, row: Row) -> dict[str, Any]:
        number = row.file << _ROW_BITS | row.number
        image = row.columns[self.transform.image_column]
        columns = {**row.columns, self.transform.image_column: _as_source(image)}
        rng = Random(self.readers[0].seed << 128 | row.after.epoch << 64 | number)
        return {**self.transform(columns, rng), "sample_index": number}

    def name_of(self, sample_index: int) -> str:
        """Row and file of a sample."""
        file = self.readers[0].files.files[sample_index >> _ROW_BITS]
        return f"row {sample_index & ((1 << _ROW_BITS) - 1)} of {file}"

    def advance(self, progress: Progress) -> None:
        """Note that a batch was trained on."""
        self.positions[progress.reader] = progress.position
        self.next_reader = (progress.reader + 1) % len(self.readers)

    def save(self, folder: Path, process_index: int) -> None:
        """Write the positions into a checkpoint."""
        state = {**self._identity(), "next_reader": self.next_reader, "positions": self.positions}
        _state_file(folder, process_index).write_text(json.dumps(state) + "\n", encoding="utf-8")

    def restore(self, folder: Path, process_index: int, force: bool = False) -> None:
        """Go on where a checkpoint was written.

        Args:
            force: where the checkpoint is not of this stream and these readers, begin the pass after its last one.

        Raises:
            InputError: if the checkpoint is not of this stream and these readers, unless forced.
        """
        file = _state_file(folder, process_index)
        state = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        identity = self._identity()
        if not state:
            differing = [f"{file.name} is missing: it was saved without --streaming, or by fewer processes"]
        else:
            differing = [
                f"{key}: {state[key]} then, {value} now" for key, value in identity.items() if state[key] != value
            ]
        if not differing:
            self.positions = [Position(*position) for position in state["positions"]]
            self.next_reader = state["next_reader"]
            return
        if not force:
            raise InputError(
                f"the place in the stream cannot be found again from {folder} ({'; '.join(differing)}). Resume with "
                "the same files, seed, --shuffle_buffer, processes and --dataloader_num_workers, or begin another pass "
                "over the data with --force_resume true"
            )
        states = [json.loads(other.read_text(encoding="utf-8")) for other in folder.glob(_state_file(folder, "*").name)]
        begun = [position[0] + 1 for other in states for position in other["positions"]]
        self.positions = [Position(max(begun, default=0))] * len(self.readers)
        logger.warning("Going on at the start of pass %d over the data", self.epoch)

    def _identity(self) -> dict[str, Any]:
        reader = self.readers[0]
        return {
            "files": reader.files.fingerprint,
            "seed": reader.seed,
            "shuffle_buffer": reader.window_rows,
            "readers": reader.num_readers,
            "readers_of_a_process": len(self.readers),
        }


def _state_file(folder: Path, process_index: int | str) -> Path:
    return folder / f"stream_state_{process_index}.json"


def _as_source(image: Any) -> dict[str, Any]:
    """An image of a Parquet file, which may be a struct, plain bytes or a path, as `decode_image` takes it."""
    if isinstance(image, Mapping):
        return {"bytes": image.get("bytes"), "path": image.get("path")}
    return {"bytes": image if isinstance(image, bytes) else None, "path": image if isinstance(image, str) else None}


def collate_stream(items: Sequence[tuple[dict[str, Any], Progress]]) -> dict[str, Any]:
    """A batch of samples; its "progress" is that of its last sample, with the bad images before each of them."""
    samples, steps = zip(*items, strict=True)
    bad_images = tuple(line for step in steps for line in step.bad_images)
    return {**default_collate(list(samples)), "progress": steps[-1]._replace(bad_images=bad_images)}


def list_bad_images(lines: Sequence[str], output_dir: Path, should_save: bool = True) -> None:
    """Add images that were left out to `output_dir/bad_images.txt`, those that are not there yet, and say so."""
    if not (lines and should_save):
        return
    file = output_dir / BAD_IMAGES_FILE
    listed = set(file.read_text(encoding="utf-8").splitlines()) if file.is_file() else set()
    new = [line for line in lines if line not in listed]
    if new:
        output_dir.mkdir(parents=True, exist_ok=True)
        with file.open("a", encoding="utf-8") as out:
            out.write("".join(f"{line}\n" for line in new))
        logger.warning("Left out %d image(s) that cannot be decoded; they are listed in %s", len(new), file)


class StreamTrainer(MaskedImageTrainer):
    """Trainer of masked image modelling on a `SampleStream`: goes on in it on resuming, without reading it again.

    Each process reads its own part; nothing else deals the samples out. The log has `data_epoch`, the passes over the
    data that are complete; `epoch` is the share of `max_steps`.
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
        """A loader of this process alone: accelerate's would deal the samples out once more, and read ahead."""
        return DataLoader(
            self.train_dataset,
            batch_size=self._train_batch_size,
            collate_fn=collate_stream,
            num_workers=self.args.dataloader_num_workers,
            prefetch_factor=self.args.dataloader_prefetch_factor,
            pin_memory=self.args.dataloader_pin_memory,
            multiprocessing_context=self.args.dataloader_multiprocessing_context,
            generator=torch.Generator(),  # the loader draws from it, and must not from the model's
        )

    def get_batch_samples(self, *args, **kwargs):
        batches, num_items = super().get_batch_samples(*args, **kwargs)
        for batch in batches:
            progress = batch.pop("progress")
            self.train_dataset.advance(progress)
            list_bad_images(progress.bad_images, Path(self.args.output_dir))
        return batches, num_items

    def _maybe_log_save_evaluate(self, *args, **kwargs) -> None:
        self.state.epoch = self.state.global_step / self.state.max_steps  # the stock one starts anew on resuming
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
