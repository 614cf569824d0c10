"""Name the rows of a data set, so that what is computed of them can be joined with it."""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePath

import datasets
import pyarrow as pa
import pyarrow.compute as pc

ID_COLUMNS = ("id", "image_id", "file_name", "filename", "__key__")
_BATCH = 1000


@dataclass(frozen=True)
class RowIds:
    """Callable from the rows of a split to their ids; no id holds a path of this machine.

    Args:
        split: its name.
        column: that the ids are taken from: of text or numbers, or of images for their paths; None for "SPLIT/NUMBER".
        folders: of the data set; paths are relative to the first of them that they lie in, others lose their folders.
    """

    split: str
    column: str | None = None
    folders: tuple[str, ...] = ()

    @classmethod
    def choose(cls, split: str, rows: datasets.Dataset, image_column: str, folder: str | None = None) -> "RowIds":
        """Return the ids of a split: paths in the data set's folder, a column of ids, file names, or numbers.

        The first of them is taken that every row has, and no two rows share.

        Args:
            image_column: of images as `datasets.Image(decode=False)`.
            folder: of the data set, if it is local.
        """
        folders = () if folder is None else tuple(dict.fromkeys((os.path.abspath(folder), os.path.realpath(folder))))
        columns = [name for name in ID_COLUMNS if name in rows.column_names and name != image_column]
        for column in [image_column, *columns] if _is_of_files(rows, image_column) else [*columns, image_column]:
            ids = cls(split, column, folders)
            if ids._are_unique(rows):
                return ids
        return cls(split)

    def __call__(self, rows: datasets.Dataset, start: int, stop: int) -> list[str]:
        """Return the ids of the rows from `start` to `stop`."""
        if self.column is None:
            return [f"{self.split}/{number}" for number in range(start, stop)]
        values = _values(rows, self.column)
        return [self._public(value) for value in values(start, stop).to_pylist()]

    def _are_unique(self, rows: datasets.Dataset) -> bool:
        seen: set[str] = set()
        values = _values(rows, self.column or "")
        for start in range(0, len(rows), _BATCH):
            found = values(start, min(start + _BATCH, len(rows)))
            if found.null_count or not (pa.types.is_string(found.type) or pa.types.is_integer(found.type)):
                return False
            ids = set(map(self._public, found.to_pylist()))
            if len(ids) < len(found) or not seen.isdisjoint(ids):
                return False
            seen |= ids
        return True

    def _public(self, value: object) -> str:
        if not isinstance(value, str):
            return str(value)
        path = re.sub(
            r"^\w+://", "", value.split("::")[0]
        )  # of a file in an archive: zip://cat/1.png::/home/me/all.zip
        for folder in self.folders:
            if path.startswith(folder + os.sep):
                return PurePath(os.path.relpath(path, folder)).as_posix()
        is_inside = not os.path.isabs(path) and ".." not in PurePath(path).parts
        return path if is_inside else PurePath(path).name


def _is_of_files(rows: datasets.Dataset, image_column: str) -> bool:
    first = rows[0][image_column] if len(rows) else None
    return first is not None and first["bytes"] is None


def _values(rows: datasets.Dataset, column: str) -> Callable[[int, int], pa.ChunkedArray]:
    """Return a callable from a range of rows to their values in a column, or to the paths of a column of images."""
    table = rows.select_columns([column]).with_format("arrow")

    def values(start: int, stop: int) -> pa.ChunkedArray:
        found = table[start:stop][column]
        return pc.struct_field(found, "path") if pa.types.is_struct(found.type) else found

    return values
