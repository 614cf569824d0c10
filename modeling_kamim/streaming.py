"""Training on Parquet files while they are read, from disk or from the Hub: no copy, no first pass over the images.

Every pass over the data deals the files out anew over the readers, one for each worker of each process; where there are
fewer files than readers, their row groups. A reader takes its files, and the row groups of a file, in a random order,
gathers row groups into windows and serves the rows of a window in a random order. All of these orders depend on (seed,
pass, reader) alone, so that four numbers say how far a reader is, and going on from there reads one window again at
most. Crop, flips and mask of a sample depend on (seed, pass, file, row): on no reader and on no order.
"""

import hashlib
import json
import logging
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import accumulate, islice
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from datasets.utils.file_utils import xopen
from torch.utils.data import DataLoader, IterableDataset, default_collate, get_worker_info

from .arguments import (
    STREAM_EVAL_SAMPLES,
    DataArguments,
    KamimArguments,
    OnlineProbeArguments,
    PretrainingArguments,
)
from .data import choose_splits, settle_worker
from .density import DensityDetector, density_label
from .errors import InputError
from .images import BadImageError
from .trainer import MaskedImageTrainer
from .transforms import MaskedImageTransform

logger = logging.getLogger(__name__)

BAD_IMAGES_FILE = "bad_images.txt"
_ROW_BITS = 40  # of a sample's number; the others are its file's


class _OpenFile:
    """A Parquet file: its schema, its row groups."""

    def __init__(self, file: str):
        self.file = file
        with _reading(file):
            self._parquet = pq.ParquetFile(xopen(file, "rb"), pre_buffer=False)
            metadata = self._parquet.metadata
            sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        self.starts = [0, *accumulate(sizes)]

    @property
    def num_groups(self) -> int:
        return len(self.starts) - 1

    @property
    def schema(self) -> pa.Schema:
        return self._parquet.schema_arrow

    def read(self, group: int, columns: Sequence[str]) -> pa.Table:
        with _reading(self.file):
            return self._parquet.read_row_group(group, columns=list(columns), use_threads=False)


@contextmanager
def _reading(file: str) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(
            f"cannot read {file}: {reason}. If the file is whole, go on from the last checkpoint with "
            "--resume_from_checkpoint"
        ) from error


@dataclass(frozen=True)
class ParquetFiles:
    """The Parquet files of a split; their number is its length.

    Args:
        files: paths, or addresses `hf://datasets/...` of the Hub, sorted.
        features: of their rows.
    """

    files: tuple[str, ...]
    features: datasets.Features

    def __len__(self) -> int:
        return len(self.files)

    def open(self, number: int) -> _OpenFile:
        """One of the files.

        Raises:
            InputError: if it cannot be read.
        """
        return _OpenFile(self.files[number])

    @property
    def fingerprint(self) -> str:
        """What the names of the files, without their folders, and their order come to."""
        names = "\n".join(file.rsplit("/", 1)[-1] for file in self.files)
        return hashlib.sha256(names.encode()).hexdigest()[:16]

    def has_densities(self, densities: DensityDetector) -> bool:
        """Whether the files hold these very densities, as those that `prepare_dataset.py` wrote may."""
        if self.features.get(densities.column) != datasets.Value("binary"):
            return False
        values = self.open(0).read(0, [densities.column])[densities.column]
        found = density_label(values[0].as_py() if len(values) else None)
        if found != densities.label:
            logger.info("The data set holds keypoint densities of %s; this run needs %s", found, densities.label)
        return found == densities.label

    def take(self, count: int, columns: Sequence[str], seed: int) -> datasets.Dataset:
        """At most `count` rows in memory, drawn from row groups in a random order; images stay encoded."""
        reader = StreamReader(self, tuple(columns), seed, count)
        rows = [row.columns for row in islice(reader.rows(Position()), count)]
        features = datasets.Features({column: self.features[column] for column in columns})
        return datasets.Dataset.from_list(rows, features=_encoded(features))


def _encoded(features: datasets.Features) -> datasets.Features:
    images = {name: datasets.Image(decode=False) for name, kind in features.items() if isinstance(kind, datasets.Image)}
    return datasets.Features({**features, **images})


def load_parquet(name: str | None, config_name: str | None = None) -> dict[str, ParquetFiles]:
    """The splits of a data set of Parquet files.

    Args:
        name: a Parquet file, a folder of them, or a Hub id.
        config_name: configuration of a Hub data set.

    Raises:
        InputError: if there is no such data set, or it is not made of Parquet files.
    """
    if name is None:
        raise InputError("--streaming needs --dataset_name: a Parquet file, a folder of them, or the id of a data set")
    try:
        builder = _builder(name, config_name)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(
            f"cannot stream data set {name!r}: {reason}. Give a Parquet file, a folder of Parquet files, or the id of "
            "a data set on the Hub"
        ) from error
    splits = {str(split): tuple(sorted(map(str, files))) for split, files in (builder.config.data_files or {}).items()}
    others = [file for files in splits.values() for file in files if not file.endswith(".parquet")]
    if others or not splits:
        raise InputError(
            f"--streaming reads Parquet files, and data set {name!r} holds {others[0] if others else 'none'}. Write it "
            "as Parquet with prepare_dataset.py, or leave out --streaming"
        )
    features = builder.info.features or datasets.Features.from_arrow_schema(_OpenFile(_any(splits)).schema)
    return {split: ParquetFiles(files, features) for split, files in splits.items()}


def _any(splits: Mapping[str, tuple[str, ...]]) -> str:
    return next(file for files in splits.values() for file in files)


def _builder(name: str, config_name: str | None) -> datasets.DatasetBuilder:
    path = Path(name).expanduser()
    if path.suffix == ".parquet" and path.is_file():
        return datasets.load_dataset_builder("parquet", data_files=str(path))
    if path.is_dir():
        return datasets.load_dataset_builder(str(path))
    if path.is_absolute() or name.startswith(("./", "../", "~")):
        raise InputError("there is no such file or folder")
    return datasets.load_dataset_builder(name, config_name)


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
    splits = load_parquet(data_args.dataset_name, data_args.dataset_config_name)
    train, _ = choose_splits(splits, data_args.train_split, data_args.validation_split)
    needs_densities = kamim_args.weighting != "none" and kamim_args.keypoint_source == "map"
    if needs_densities and not train.has_densities(kamim_args.densities()):
        logger.info("A stream has no map step: keypoints are detected on every crop (--keypoint_source online)")
        kamim_args.keypoint_source = "online"
    data_args.max_eval_samples = data_args.max_eval_samples or STREAM_EVAL_SAMPLES
    if training_args.should_save and training_args.resume_from_checkpoint is None:
        (Path(training_args.output_dir) / BAD_IMAGES_FILE).unlink(missing_ok=True)
    return splits


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


class Position(NamedTuple):
    """How far a reader is; what lies before it was served.

    Args:
        epoch: number of its pass, from 0.
        unit, group: where the window begins: place in the pass's order of units, and in the unit's order of row groups.
        offset: rows of the window that were served.
    """

    epoch: int = 0
    unit: int = 0
    group: int = 0
    offset: int = 0


class Row(NamedTuple):
    """A row of a file, and the position behind it."""

    columns: dict[str, Any]
    file: int
    number: int
    after: Position


class _Unit(NamedTuple):
    """What is dealt out to the readers: a file, or one of its row groups."""

    file: int
    group: int | None = None


@dataclass
class _Window:
    """Row groups whose rows are served in one random order."""

    unit: int
    group: int
    parts: list[tuple[int, int, pa.Table]] = field(default_factory=list)  # file, number of the first row, rows

    def add(self, file: int, first_row: int, rows: pa.Table) -> None:
        self.parts.append((file, first_row, rows))

    @property
    def ends(self) -> list[int]:
        return list(accumulate(len(rows) for _, _, rows in self.parts))

    def __len__(self) -> int:
        return sum(len(rows) for _, _, rows in self.parts)


@dataclass(frozen=True)
class StreamReader:
    """One of the readers that share a stream: each row of the files is served by one of them in every pass.

    Args:
        files: of the split.
        columns: to read.
        seed: of the orders.
        window_rows: rows of a window; the row group that reaches this number ends it.
        index: of the reader, from 0.
        num_readers: that share the stream.
    """

    files: ParquetFiles
    columns: tuple[str, ...]
    seed: int
    window_rows: int
    index: int = 0
    num_readers: int = 1

    def rows(self, start: Position) -> Iterator[Row]:
        """The rows of pass `start.epoch` from there on; the next window is read while one is served.

        Raises:
            InputError: if there are more readers than row groups, or a file cannot be read.
        """
        windows = self._windows(start)
        offset = start.offset
        with ThreadPoolExecutor(1) as background:
            window = next(windows, None)
            while window is not None:
                following = background.submit(next, windows, None)
                yield from self._shuffled(window, start.epoch, offset)
                window, offset = following.result(), 0

    def _shuffled(self, window: _Window, epoch: int, offset: int) -> Iterator[Row]:
        order, ends = self._order(len(window), "rows", epoch, self.index, window.unit, window.group), window.ends
        for served, place in enumerate(order[offset:], start=offset + 1):
            part = bisect_right(ends, place)
            file, first_row, table = window.parts[part]
            row = place - (ends[part] - len(table))
            columns = table.slice(row, 1).to_pylist()[0]
            yield Row(columns, file, first_row + row, Position(epoch, window.unit, window.group, served))

    def _windows(self, start: Position) -> Iterator[_Window]:
        units = self._units(start.epoch)
        opened = lru_cache(maxsize=4)(self.files.open)
        window = None
        for unit in range(start.unit, len(units)):
            file = opened(units[unit].file)
            groups = self._groups(units[unit], file.num_groups, start.epoch)
            for place in range(start.group if unit == start.unit else 0, len(groups)):
                window = window or _Window(unit, place)
                window.add(units[unit].file, file.starts[groups[place]], file.read(groups[place], self.columns))
                if len(window) >= self.window_rows:
                    yield window
                    window = None
        if window is not None:
            yield window

    def _units(self, epoch: int) -> list[_Unit]:
        """This reader's share of the files, or of their row groups, in the order of a pass."""
        units = [_Unit(file) for file in range(len(self.files))]
        if len(units) < self.num_readers:
            groups = [range(self.files.open(unit.file).num_groups) for unit in units]
            units = [_Unit(unit.file, group) for unit in units for group in groups[unit.file]]
        if len(units) < self.num_readers:
            raise InputError(
                f"{self.num_readers} readers (processes times --dataloader_num_workers) share {len(self.files)} "
                f"Parquet file(s) of {len(units)} row group(s) in all, and each needs one. Use fewer, or write the "
                "data set as more files (prepare_dataset.py --rows_per_shard)"
            )
        order = self._order(len(units), "units", epoch)
        return [units[number] for number in order[self.index :: self.num_readers]]

    def _groups(self, unit: _Unit, num_groups: int, epoch: int) -> list[int]:
        return self._order(num_groups, "groups", epoch, unit.file) if unit.group is None else [unit.group]

    def _order(self, count: int, *what: str | int) -> list[int]:
        order = list(range(count))
        Random(f"{self.seed} {what}").shuffle(order)
        return order


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
