"""The images of a pretraining behind one interface: a data set that is there as a whole, or a stream."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import datasets

from ..data.attach_density import prepare_images
from ..data.bad_images import add_bad_images, list_bad_images
from ..data.keypoint_share import NUM_DETECTED
from ..data.loading import DataArguments, choose_splits, find_image_column, keep_encoded, subsample
from ..data.samples import MaskedImageTransform, SampleDataset
from ..data.streaming.reader import take_rows
from ..data.streaming.stream import STREAM_EVAL_SAMPLES, SampleStream
from .arguments import KamimArguments, PretrainingArguments
from .recipe import check_evaluation, check_steps
from .stream_trainer import StreamTrainer, open_stream
from .trainer import MaskedImageTrainer


class Source(ABC):
    """The images of a run, and the samples that a transform makes of them.

    Args:
        splits: the splits of the data set by their names.
        data_args, args: of the run.

    Raises:
        InputError: if a split or the column of the images cannot be told, or evaluations are asked for and there are
            no images for them.
    """

    trainer_class: ClassVar[type[MaskedImageTrainer]]
    num_images: int | None = None  # in training; None for a stream
    train_samples: Any  # after `make_samples`

    def __init__(self, splits: Any, data_args: DataArguments, args: PretrainingArguments):
        self.data_args, self.args = data_args, args
        self.train, self.validation = choose_splits(splits, data_args.train_split, data_args.validation_split)
        self.image_column = find_image_column(self.train, data_args.image_column)
        self.skips_bad_images = data_args.bad_images == "skip"
        self.bad_images: list[str] = []
        check_evaluation(args, self.validation is not None)

    def make_samples(self, transform: MaskedImageTransform) -> None:
        """Make the samples of training, as `train_samples`, and of validation, as `eval_samples` (or None)."""
        self.train_samples = self._train_samples(transform)
        self.eval_samples: SampleDataset | None = None
        if self.validation is not None:
            whole = replace(transform, random_view=None, order_blocks=False)
            self.eval_samples = self._prepared(self.validation, self.data_args.max_eval_samples, whole)

    @abstractmethod
    def known(self, columns: Sequence[str]) -> datasets.Dataset:
        """Return training images that can be looked at before the training, encoded."""

    @abstractmethod
    def known_samples(self, transform: MaskedImageTransform) -> SampleDataset:
        """Return samples of the training that can be looked at before it."""

    @abstractmethod
    def shown(self, transform: MaskedImageTransform) -> SampleDataset:
        """Return samples for the picture of reconstructions: of validation where there are some."""

    @abstractmethod
    def list_bad_images(self) -> None:
        """Write a list of the images that were left out, and say so."""

    @abstractmethod
    def _train_samples(self, transform: MaskedImageTransform) -> SampleDataset | SampleStream: ...

    @abstractmethod
    def _rows(self, split: Any, count: int | None, columns: Sequence[str]) -> datasets.Dataset: ...

    def _prepared(self, split: Any, count: int | None, transform: MaskedImageTransform) -> SampleDataset:
        rows = keep_encoded(self._rows(split, count, transform.columns), self.image_column)
        with self.args.main_process_first(desc="preparing the images"):
            num_proc, pixel_range = self.data_args.num_proc, transform.pixel_range
            rows, bad = prepare_images(
                rows,
                self.image_column,
                transform.densities,
                self.skips_bad_images,
                num_proc,
                pixel_range,
                transform.num_channels,
            )
        self.bad_images += bad
        return SampleDataset(rows.select_columns(list(transform.columns)), transform, self.args.seed)


class MappedSource(Source):
    """A data set that is there as a whole: its images are prepared once, by `datasets.map`.

    Raises:
        InputError: as `Source`, and if there are fewer images than a step needs.
    """

    trainer_class = MaskedImageTrainer

    def __init__(self, splits: datasets.DatasetDict, data_args: DataArguments, args: PretrainingArguments):
        super().__init__(splits, data_args, args)
        check_steps(args, min(len(self.train), data_args.max_train_samples or len(self.train)))

    def known(self, columns: Sequence[str]) -> datasets.Dataset:
        return keep_encoded(self.train, self.image_column)

    def known_samples(self, transform: MaskedImageTransform) -> SampleDataset:
        return self.train_samples

    def shown(self, transform: MaskedImageTransform) -> SampleDataset:
        return self.eval_samples or self.train_samples

    def list_bad_images(self) -> None:
        list_bad_images(self.bad_images, Path(self.args.output_dir), self.args.should_save)

    def _train_samples(self, transform: MaskedImageTransform) -> SampleDataset:
        samples = self._prepared(self.train, self.data_args.max_train_samples, transform)
        self.num_images = len(samples)
        return samples

    def _rows(self, split: datasets.Dataset, count: int | None, columns: Sequence[str]) -> datasets.Dataset:
        return subsample(split, count, self.args.seed)


class StreamSource(Source):
    """Parquet files that are read while the model trains.

    Args:
        splits: of `open_stream`.
        data_args, args: of the run.
        shuffle_buffer: number of rows that a reader shuffles together.
    """

    trainer_class = StreamTrainer

    def __init__(self, splits: Any, data_args: DataArguments, args: PretrainingArguments, shuffle_buffer: int):
        super().__init__(splits, data_args, args)
        self.shuffle_buffer = shuffle_buffer
        self._known: datasets.Dataset | None = None  # read once

    def known(self, columns: Sequence[str]) -> datasets.Dataset:
        if self._known is None:
            self._known = keep_encoded(take_rows(self.train, NUM_DETECTED, columns, seed=0), self.image_column)
        return self._known

    def known_samples(self, transform: MaskedImageTransform) -> SampleDataset:
        return SampleDataset(self.known(transform.columns), transform, self.args.seed)

    def shown(self, transform: MaskedImageTransform) -> SampleDataset:
        return self.eval_samples or self._prepared(self.train, 4, transform)

    def list_bad_images(self) -> None:
        add_bad_images(self.bad_images, Path(self.args.output_dir), self.args.should_save)

    def _train_samples(self, transform: MaskedImageTransform) -> SampleStream:
        return SampleStream.of_process(self.train, transform, self.args, self.shuffle_buffer, self.skips_bad_images)

    def _rows(self, split: Any, count: int | None, columns: Sequence[str]) -> datasets.Dataset:
        return take_rows(split, count or STREAM_EVAL_SAMPLES, columns, self.args.seed)


def open_source(
    data_args: DataArguments,
    kamim_args: KamimArguments,
    args: PretrainingArguments,
    shuffle_buffer: int | None = None,
    probe_every: str | None = None,
) -> Source:
    """Open the images of a run.

    Args:
        data_args, kamim_args, args: of the run; a stream may change `keypoint_source` and `max_eval_samples`.
        shuffle_buffer: number of rows that a stream shuffles together; None for a data set that is there as a whole.
        probe_every: of the online probe, which cannot read a stream.

    Raises:
        InputError: if the data set cannot be read, or a setting does not fit it.
    """
    if shuffle_buffer is not None:
        return StreamSource(open_stream(data_args, kamim_args, probe_every, args), data_args, args, shuffle_buffer)
    return MappedSource(data_args.load(), data_args, args)
