"""Samples of a stream of Parquet files, read while the model trains.

Crop, flips and mask of a sample depend on (seed, pass, file, row) alone, not on readers or orders. See `reader.py` for
the order of the rows.
"""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from torch.utils.data import IterableDataset, default_collate, get_worker_info
from transformers import TrainingArguments

from ...errors import InputError
from ...limits import check_ranges
from ..arrays import array_dtype, encoded_array
from ..decoding import BadImageError
from ..samples import MaskedImageTransform, settle_worker
from .parquet import ParquetFiles
from .reader import Position, Row, StreamReader

STREAM_EVAL_SAMPLES = 1000


@dataclass
class StreamingArguments:
    """How the data are streamed."""

    _argument_group_name = "streaming"

    streaming: bool = field(
        default=False,
        metadata={
            "help": "Read Parquet files (a file, a folder, a Hub id) while training, without a copy or a first pass; "
            f"needs --max_steps, detects keypoints online, evaluates {STREAM_EVAL_SAMPLES} images where "
            "max_eval_samples is not given."
        },
    )
    shuffle_buffer: int = field(
        default=1000,
        metadata={
            "help": "Streaming: rows that a reader (a worker of a process) shuffles together; at least a row group. It "
            "holds up to twice as many in memory, encoded. Files and row groups are shuffled too."
        },
    )

    def __post_init__(self):
        check_ranges(self)


logger = logging.getLogger(__name__)
_ROW_BITS = 40  # of a sample's number; the higher bits are its file's number


class Progress(NamedTuple):
    """Where the stream is after a sample or batch: its reader, by number within the process, and position.

    `bad_images` has a line for each image that was left out on the way.
    """

    reader: int
    position: Position
    bad_images: tuple[str, ...] = ()


class SampleStream(IterableDataset):
    """Samples of an endless stream: pass after pass over the files.

    It keeps the positions after the samples that were trained on (`advance`), however far a loader reads ahead.

    Args:
        readers: of this process, one for each worker of its loader; one if there is no worker.
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
        args: TrainingArguments,
        shuffle_buffer: int,
        skip_bad_images: bool,
    ) -> "SampleStream":
        """Return the part of a stream that this process trains on."""
        num_workers = max(1, args.dataloader_num_workers)
        first, total = args.process_index * num_workers, args.world_size * num_workers
        readers = [
            StreamReader(files, transform.columns, args.seed, shuffle_buffer, first + worker, total)
            for worker in range(num_workers)
        ]
        return cls(readers, transform, skip_bad_images)

    @property
    def content(self) -> str:
        """Fingerprint of the files, see `ParquetFiles.fingerprint`."""
        return self.readers[0].files.fingerprint

    @property
    def epoch(self) -> int:
        """Number of passes over the data that all readers of this process have completed."""
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
        columns = {**row.columns, self.transform.image_column: self._as_source(image)}
        rng = Random(self.readers[0].seed << 128 | row.after.epoch << 64 | number)
        return {**self.transform(columns, rng), "sample_index": number}

    def _as_source(self, image: Any) -> dict[str, Any] | None:
        """Return an image of a Parquet file (a struct, plain bytes, a path, an array) as `decode_image` takes it."""
        if isinstance(image, Mapping):
            return {"bytes": image.get("bytes"), "path": image.get("path")}
        if isinstance(image, list):
            dtype = array_dtype(self.readers[0].files.features[self.transform.image_column])
            return encoded_array(image, dtype or "float32")
        return {"bytes": image if isinstance(image, bytes) else None, "path": image if isinstance(image, str) else None}

    def name_of(self, sample_index: int) -> str:
        """Return the row and file of a sample, in words."""
        file = self.readers[0].files.files[sample_index >> _ROW_BITS]
        return f"row {sample_index & ((1 << _ROW_BITS) - 1)} of {file}"

    def advance(self, progress: Progress) -> None:
        """Record that a batch was trained on."""
        self.positions[progress.reader] = progress.position
        self.next_reader = (progress.reader + 1) % len(self.readers)

    def save(self, folder: Path, process_index: int) -> None:
        """Write the positions into a checkpoint."""
        state = {**self._identity(), "next_reader": self.next_reader, "positions": self.positions}
        _state_file(folder, process_index).write_text(json.dumps(state) + "\n", encoding="utf-8")

    def restore(self, folder: Path, process_index: int, force: bool = False) -> None:
        """Go on at the position that a checkpoint holds.

        Args:
            force: if the checkpoint is not of this stream and these readers, begin the pass after its last one.

        Raises:
            InputError: if the checkpoint is not of this stream and these readers, unless forced.
        """
        file = _state_file(folder, process_index)
        state = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        identity = self._identity().items() if state else ()
        differing = [f"{key}: {state[key]} then, {value} now" for key, value in identity if state[key] != value]
        if not state:
            differing = [f"{file.name} is missing: it was saved without --streaming, or by fewer processes"]
        if not differing:
            self.positions = [Position(*position) for position in state["positions"]]
            self.next_reader = state["next_reader"]
            return
        if not force:
            raise InputError(
                f"cannot find the place in the stream again from {folder} ({'; '.join(differing)}). Resume with the "
                "same files, seed, --shuffle_buffer, processes and --dataloader_num_workers, or begin another pass "
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


def collate_stream(items: Sequence[tuple[dict[str, Any], Progress]]) -> dict[str, Any]:
    """Return a batch of samples; its "progress" is that of its last sample, with the bad images before them all."""
    samples, steps = zip(*items, strict=True)
    bad_images = tuple(line for step in steps for line in step.bad_images)
    return {**default_collate(list(samples)), "progress": steps[-1]._replace(bad_images=bad_images)}
