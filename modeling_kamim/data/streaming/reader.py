"""Readers that share the Parquet files of a stream.

Each worker of each process has a reader. Every pass over the data deals the files out anew to the readers; if there are
fewer files than readers, it deals out their row groups. A reader takes its files, and the row groups of a file, in a
random order. It gathers row groups into windows, and serves the rows of a window in a random order. All orders depend
on (seed, pass, reader) alone. So four numbers say how far a reader is, and going on reads at most one window again.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from random import Random
from typing import Any, NamedTuple

import datasets
import pyarrow as pa

from ...errors import InputError
from ..attach_density import PLACE_COLUMN
from .parquet import ParquetFiles


class Position(NamedTuple):
    """How far a reader is: all rows before it were served.

    Args:
        epoch: number of the pass, from 0.
        unit, group: where the window begins, in the pass's order of units and in the unit's order of row groups.
        offset: number of rows of the window that were served.
    """

    epoch: int = 0
    unit: int = 0
    group: int = 0
    offset: int = 0


class Row(NamedTuple):
    """A row of a file, and the position after it."""

    columns: dict[str, Any]
    file: int
    number: int
    after: Position


class _Unit(NamedTuple):
    """What a reader gets: a file, or one of its row groups."""

    file: int
    group: int | None = None


class _Window(NamedTuple):
    """Row groups whose rows are served in one random order, and where they begin."""

    unit: int
    group: int
    rows: list[tuple[int, int, pa.Table, int]]  # file, number in the file, row group, number in the row group


@dataclass(frozen=True)
class StreamReader:
    """One of the readers that share a stream: in every pass, one of them serves each row.

    Args:
        files: of the split.
        columns: to read.
        seed: of the random orders.
        window_rows: a window ends with the row group that reaches this number of rows.
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
        """Yield the rows of pass `start.epoch` from there on; read the next window while one is served.

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
        order = self._order(len(window.rows), "rows", epoch, self.index, window.unit, window.group)
        for served, place in enumerate(order[offset:], start=offset + 1):
            file, number, table, row = window.rows[place]
            columns = table.slice(row, 1).to_pylist()[0]
            yield Row(columns, file, number, Position(epoch, window.unit, window.group, served))

    def _windows(self, start: Position) -> Iterator[_Window]:
        units = self._units(start.epoch)
        opened = lru_cache(maxsize=4)(self.files.open)
        window = _Window(start.unit, start.group, [])
        for place, unit in enumerate(units[start.unit :], start.unit):
            file = opened(unit.file)
            order = self._order(file.num_groups, "groups", start.epoch, unit.file)
            groups = order if unit.group is None else [unit.group]
            first = start.group if place == start.unit else 0
            for position, group in enumerate(groups[first:], first):
                if not window.rows:
                    window = _Window(place, position, [])
                table = file.read(group, self.columns)
                numbered = enumerate(range(file.starts[group], file.starts[group + 1]))
                window.rows.extend((unit.file, number, table, row) for row, number in numbered)
                if len(window.rows) >= self.window_rows:
                    yield window
                    window = _Window(place, position, [])
        if window.rows:
            yield window

    def _units(self, epoch: int) -> list[_Unit]:
        """Return this reader's share of the files, or of their row groups, in the order of a pass."""
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

    def _order(self, count: int, *what: str | int) -> list[int]:
        order = list(range(count))
        Random(f"{self.seed} {what}").shuffle(order)
        return order


def take_rows(files: ParquetFiles, count: int, columns: Sequence[str], seed: int) -> datasets.Dataset:
    """Return at most `count` rows, in memory, of row groups in a random order; images stay encoded.

    The column "place" names the file and the row that each comes from.
    """
    reader = StreamReader(files, tuple(columns), seed, count)
    rows = [
        {**row.columns, PLACE_COLUMN: f"row {row.number} of {files.files[row.file]}"}
        for row in islice(reader.rows(Position()), count)
    ]
    features = datasets.Features({column: files.features[column] for column in columns})
    encoded = {name: datasets.Image(decode=False) for name in columns if isinstance(features[name], datasets.Image)}
    features.update(encoded)
    features[PLACE_COLUMN] = datasets.Value("string")
    return datasets.Dataset.from_list(rows, features=features)
