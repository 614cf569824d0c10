"""Readers that share the Parquet files of a stream.

Every pass over the data deals the files out anew over the readers, one for each worker of each process; where there are
fewer files than readers, their row groups. A reader takes its files, and the row groups of a file, in a random order,
gathers row groups into windows and serves the rows of a window in a random order. All of these orders depend on (seed,
pass, reader) alone, so that four numbers say how far a reader is, and going on from there reads one window again at
most.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import accumulate, islice
from random import Random
from typing import Any, NamedTuple

import datasets
import pyarrow as pa

from ...errors import InputError
from ..attach_density import PLACE_COLUMN
from .parquet import ParquetFiles


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
                "data set as more files (kamim prepare --rows_per_shard)"
            )
        order = self._order(len(units), "units", epoch)
        return [units[number] for number in order[self.index :: self.num_readers]]

    def _groups(self, unit: _Unit, num_groups: int, epoch: int) -> list[int]:
        return self._order(num_groups, "groups", epoch, unit.file) if unit.group is None else [unit.group]

    def _order(self, count: int, *what: str | int) -> list[int]:
        order = list(range(count))
        Random(f"{self.seed} {what}").shuffle(order)
        return order


def take_rows(files: ParquetFiles, count: int, columns: Sequence[str], seed: int) -> datasets.Dataset:
    """At most `count` rows in memory, drawn from row groups in a random order; images stay encoded.

    The column "place" tells the row and the file that each comes from.
    """
    reader = StreamReader(files, tuple(columns), seed, count)
    rows = [
        {**row.columns, PLACE_COLUMN: f"row {row.number} of {files.files[row.file]}"}
        for row in islice(reader.rows(Position()), count)
    ]
    features = datasets.Features({column: files.features[column] for column in columns})
    features[PLACE_COLUMN] = datasets.Value("string")
    return datasets.Dataset.from_list(rows, features=_encoded(features))


def _encoded(features: datasets.Features) -> datasets.Features:
    images = {name: datasets.Image(decode=False) for name, kind in features.items() if isinstance(kind, datasets.Image)}
    return datasets.Features({**features, **images})
