"""Write files atomically, and sync them to the disk."""

import errno
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .errors import InputError

_NOT_FOR_FOLDERS = (errno.EINVAL, errno.ENOTSUP, errno.EBADF)  # of file systems that sync no folders


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
    """Give a file or folder its name, in the place of a file that has it; whole on the disk, or not at all.

    Raises:
        OSError: if it cannot be written; `source` is then left.
    """
    sync(source)
    os.replace(source, target)
    _sync_folder(target.parent)


def write_text(file: Path, text: str) -> None:
    """Write a text file, whole or not at all; in the place of another one.

    Raises:
        OSError: if it cannot be written.
    """
    unfinished = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        unfinished.write_text(text, encoding="utf-8")
        replace(unfinished, file)
    finally:
        unfinished.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":  # Windows opens no folders
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
    """The value with lists for arrays and tensors, and None for every number that is not finite: JSON has no NaN."""
    if isinstance(value, Mapping):
        return {str(key): json_values(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic | torch.Tensor):
        return json_values(value.tolist())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [json_values(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def check_output_dir(output_dir: str | None) -> None:
    """Raise InputError unless an argument names an output directory."""
    if not (output_dir or "").strip():
        raise InputError(f"output_dir is {output_dir!r}; give the directory that results are written into")
