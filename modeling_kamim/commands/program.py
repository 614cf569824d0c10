"""What all commands have in common: their name in a shell, their log, and a plain parser."""

import argparse
import ctypes
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h
_MOST_BYTES = 2**30  # thresholds are C's int


def program(argv: Sequence[str] | None = None) -> list[str]:
    """Return the words that start the running command in a shell: `kamim pretrain`, or `python run_mim.py`.

    Args:
        argv: the command line with its program; `sys.argv` where None.
    """
    name = Path((sys.argv if argv is None else argv)[0]).name
    if name.split()[0] == "kamim":
        return name.split()
    stem = name.removesuffix(".py").rpartition(".")[2]
    is_command = (Path(__file__).parent / f"{stem}.py").is_file()
    return ["kamim", stem] if is_command else ["python", name]


def plain_parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser for a command that has few options and reads no YAML."""
    formatter = argparse.RawDescriptionHelpFormatter
    return argparse.ArgumentParser(prog=" ".join(program()), description=description, formatter_class=formatter)


def show_log(process_index: int = 0) -> None:
    """Show the log on stderr; of other processes than the first only errors."""
    level = logging.INFO if process_index == 0 else logging.ERROR
    logging.basicConfig(level=level, format="%(name)s: %(message)s")


def keep_freed_memory() -> None:
    """Let this process keep the memory that tensors free for those of the next step (glibc alone; others do nothing).

    By default glibc gives it back to the system, and every step takes and clears it anew, page by page: a tenth of a
    step of small models, on virtual machines above all. What the environment says (MALLOC_TRIM_THRESHOLD_) stays.
    """
    if sys.platform == "linux" and "MALLOC_TRIM_THRESHOLD_" not in os.environ:
        set_option = getattr(ctypes.CDLL(None), "mallopt", lambda option, value: 0)
        set_option(_M_TRIM_THRESHOLD, _MOST_BYTES)
        set_option(_M_MMAP_THRESHOLD, _MOST_BYTES)
