"""Write files that a power failure leaves whole: they are on the disk before they get their name, and it is after.

Without it a file system may keep the new name and lose the contents, which leaves a file that is empty or cut.
"""

import errno
import os
from pathlib import Path

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
