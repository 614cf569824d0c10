"""Write files atomically, and sync them to the disk."""

import errno
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import torch

from .errors import InputError

_NOT_FOR_FOLDERS = (errno.EINVAL, errno.ENOTSUP, errno.EBADF)  # on file systems that cannot sync folders


def sync(path: Path) -> None:
    """Wait until a file, or a folder with all that is in it, is on the disk.

    Raises:
        OSError: if it cannot be written, as on a full disk.
    """
    if path.is_dir():
        for child in path.iterdir():
            sync(child)
        _sync_folder(path)
    else:
        _sync(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)


def replace(source: Path, target: Path) -> None:
    """Sync a file or folder to the disk and rename it to `target`, replacing a file of that name.

    Raises:
        OSError: if it cannot be written; `source` then stays as it is.
    """
    sync(source)
    os.replace(source, target)
    _sync_folder(target.parent)


def write_text(file: Path, text: str) -> None:
    """Write a text file, whole or not at all; replace one of that name.

    Raises:
        OSError: if it cannot be written.
    """
    write(file, lambda unfinished: unfinished.write_text(text, encoding="utf-8"))


def write(file: Path, write_to: Callable[[Path], object]) -> None:
    """Write a file, whole or not at all, with a function of its path; replace one of that name.

    Raises:
        OSError: if it cannot be written.
    """
    # The name is unique: a node that a cluster has given up may still write the same file.
    unfinished = file.with_name(f".{file.name}.{uuid4().hex}.unfinished")
    try:
        write_to(unfinished)
        replace(unfinished, file)
    finally:
        unfinished.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":  # Windows cannot open folders
        return
    try:
        _sync(folder, os.O_RDONLY)
    except OSError as error:
        if error.errno not in _NOT_FOR_FOLDERS:
            raise


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def json_values(value: Any) -> Any:
    """Return a value for JSON: lists for arrays and tensors, None for numbers that are not finite."""
    if isinstance(value, Mapping):
        return {str(key): json_values(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic | torch.Tensor):
        return json_values(value.tolist())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [json_values(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def check_output_dir(output_dir: str | None) -> None:
    """Raise InputError unless `output_dir` names a directory."""
    if not (output_dir or "").strip():
        raise InputError(f"output_dir is {output_dir!r}; give the directory that results are written into")
