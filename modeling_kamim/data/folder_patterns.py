"""Find the splits of a folder in one walk: `datasets` walks through all of it for each of 66 patterns."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from datasets import data_files

_SPECIAL = re.compile(r"(\[[^]]*\]|\*)")  # of a pattern: a set of characters, or any


@contextmanager
def one_walk(folder: Path) -> Iterator[None]:
    """Have `datasets` look for those of its patterns alone of which some name in a folder matches each part.

    What it finds is the same: a pattern without such names has no files.

    Args:
        folder: of the data set; other folders are not affected.
    """
    base, resolve = str(folder.resolve()), data_files.resolve_pattern

    @cache
    def names() -> str:
        walk = os.walk(base, followlinks=True)
        return "\n".join({name for _, folders, files in walk for name in (*folders, *files)})

    def resolve_if_named(pattern: str, base_path: str, *args: Any, **kwargs: Any) -> list[str]:
        if os.path.realpath(base_path) == base and not all(map(is_named, _parts(pattern))):
            raise FileNotFoundError(f"no name in {base_path} fits {pattern}")
        return resolve(pattern, base_path, *args, **kwargs)

    def is_named(part: str) -> bool:
        return re.search(_as_regex(part), names(), re.MULTILINE) is not None

    data_files.resolve_pattern = resolve_if_named
    try:
        yield
    finally:
        data_files.resolve_pattern = resolve


def _parts(pattern: str) -> list[str]:
    """Return the parts of a pattern inside of a folder that names must fit; none of a path or address."""
    if os.path.isabs(pattern) or "://" in pattern or ".." in pattern:
        return []
    return [part for part in pattern.split("/") if part not in ("**", "*", ".", "")]


def _as_regex(part: str) -> str:
    """Return the regular expression of a line that fits a part of a pattern, such as `train[-._ 0-9]*`."""
    pieces = ("[^\n]*" if piece == "*" else piece if _SPECIAL.fullmatch(piece) else re.escape(piece) for piece in
              _SPECIAL.split(part))  # fmt: skip
    return f"^{''.join(pieces)}$"
