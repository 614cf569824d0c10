"""Open the Parquet files of a data set, on disk or on the Hub, one by one."""

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from datasets.utils.file_utils import xopen

from ...errors import InputError, first_line
from ..fingerprint import sampled
from ..loading import loading_errors, open_builder, readable_folders
from ..stored_density import DensityDetector, OtherDensitiesError, check_column, density_label
from ..trust import refuse, row_findings

_OPEN_FILES = 8  # at once
_FINGERPRINT_FILES = 16


class _OpenFile:
    """An open Parquet file: its schema, its row groups."""

    def __init__(self, file: str, folders: Sequence[str] | None = None):
        self.file = file
        self.folders = folders
        with _reading(file):
            self._parquet = pq.ParquetFile(xopen(file, "rb"), pre_buffer=False)
            metadata = self._parquet.metadata
            sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        self.starts = [0, *accumulate(sizes)]
        self.num_groups = len(sizes)
        self.schema: pa.Schema = self._parquet.schema_arrow

    @property
    def summary(self) -> str:
        """Facts of the first row group, and the first row of every group."""
        metadata = self._parquet.metadata
        return str(metadata.row_group(0).to_dict() if metadata.num_row_groups else {}) + str(self.starts)

    def read(self, group: int, columns: Sequence[str]) -> pa.Table:
        with _reading(self.file):
            table = self._parquet.read_row_group(group, columns=list(columns), use_threads=False)
        if self.folders is not None:
            place = f"row group {group} of {self.file}"
            refuse(self.file, row_findings(table, self.folders, columns, place), trust_data_files=False)
        return table


@contextmanager
def _reading(file: str) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise InputError(
            f"cannot read {file}: {first_line(error)}. Replace it if it is damaged; else go on from the last "
            "checkpoint with --resume_from_checkpoint"
        ) from error


@dataclass(frozen=True)
class ParquetFiles:
    """The Parquet files of a split; their number is its length.

    Args:
        files: paths, or addresses `hf://datasets/...` of the Hub, sorted.
        features: of their rows.
        folders: in which images may lie whose paths the rows give; None for anywhere.
    """

    files: tuple[str, ...]
    features: datasets.Features
    folders: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.files)

    def open(self, number: int) -> _OpenFile:
        """Open one of the files.

        Raises:
            InputError: if it cannot be read.
            OutsideError: on reading rows that name files outside of `folders`.
        """
        return _OpenFile(self.files[number], self.folders)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the names of the files (without folders), their order, and the footers of 16 of them."""
        digest = hashlib.sha256("\n".join(file.rsplit("/", 1)[-1] for file in self.files).encode())
        for number in sampled(len(self), _FINGERPRINT_FILES):
            digest.update(self.open(number).summary.encode())
        return digest.hexdigest()[:16]

    def check_densities(self, densities: DensityDetector) -> None:
        """Check the first stored density of every file, such as `kamim prepare` writes.

        Raises:
            OtherDensitiesError: unless every file holds these very densities.
            InputError: if a file cannot be read.
        """
        check_column(self.features, densities)
        pool = ThreadPoolExecutor(_OPEN_FILES)
        try:
            labels = pool.map(lambda number: self._density_label(number, densities.column), range(len(self)))
            for file, label in zip(self.files, labels, strict=True):
                if label not in (densities.label, None):
                    held = f"is of {label}" if label else "is damaged or missing"
                    raise OtherDensitiesError(f"the first in {file} {held}, and this run needs {densities.label}")
        finally:
            pool.shutdown(cancel_futures=True)

    def _density_label(self, number: int, column: str) -> str | None:
        """Return the label of the first whole density in the first row group; None for a file without rows."""
        file = self.open(number)
        group = next((group for group, end in enumerate(file.starts[1:]) if end), None)
        if group is None:
            return None
        rows = file.read(group, [column])
        stored = rows[column] if column in rows.column_names else []
        return next(filter(None, (density_label(value.as_py()) for value in stored)), "")


def load_parquet(
    name: str | None, config_name: str | None = None, trust_data_files: bool = False
) -> dict[str, ParquetFiles]:
    """Return the splits of a data set of Parquet files.

    Args:
        name: a Parquet file, a folder of them, or a Hub id.
        config_name: configuration of a Hub data set.
        trust_data_files: read files outside of the data set's folder, too, where its texts name them.

    Raises:
        OutsideError: if it names data files outside of its folder, and is not trusted.
        InputError: if there is no such data set, or it is not made of Parquet files.
    """
    if name is None:
        raise InputError("--streaming needs --dataset_name: a Parquet file, a folder of them, or the id of a data set")
    with loading_errors(f"stream data set {name!r}", "a Parquet file, a folder of Parquet files"):
        builder = open_builder(name, config_name, trust_data_files)
    splits = {str(split): tuple(sorted(map(str, files))) for split, files in (builder.config.data_files or {}).items()}
    all_files = [file for files in splits.values() for file in files]
    others = [file for file in all_files if not file.endswith(".parquet")]
    if others or not all_files:
        raise InputError(
            f"--streaming reads Parquet files, and data set {name!r} holds {others[0] if others else 'none'}. Write it "
            "as Parquet with kamim prepare, or leave out --streaming"
        )
    features = builder.info.features or datasets.Features.from_arrow_schema(_OpenFile(all_files[0]).schema)
    folders = None if trust_data_files else readable_folders(builder, Path(name).expanduser())
    return {split: ParquetFiles(files, features, folders) for split, files in splits.items()}
