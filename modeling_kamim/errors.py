"""Errors after which a command ends with one line and no traceback, and the texts of messages."""

import errno
import re
from collections.abc import Iterable
from difflib import get_close_matches


class InputError(ValueError):
    """A setting, file or data set that the user can correct; the message says how."""

    def __init__(self, message: str = ""):
        super().__init__(_own_message(message, type(self)))


class StoppedError(RuntimeError):
    """A training that ended early for a reason outside of the program.

    Args:
        message: what happened, what is saved, how to go on; one line.
        status: exit status of the process.
    """

    def __init__(self, message: str, status: int = 1):
        super().__init__(_own_message(message, type(self)))
        self.status = status


def _own_message(message: str, kind: type) -> str:
    """Return the message itself; torch hands on the error of a loader's worker as the text of its traceback."""
    if not message.startswith(f"Caught {kind.__name__} in "):
        return message
    return message.rpartition(f"\n{kind.__module__}.{kind.__qualname__}: ")[2].strip()


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or the error's type where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def on_one_line(error: BaseException) -> str:
    """Return an error's whole message on one line, or the error's type where it has none."""
    return " ".join(str(error).split()) or type(error).__name__


_NO_MEMORY = re.compile(r"out of memory|not enough memory|can.?t allocate memory|insufficient memory", re.IGNORECASE)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether Python, torch, OpenCV, a codec or the system found too little memory."""
    if isinstance(error, OSError) and error.errno is not None:  # its text may hold a file name that matches
        return error.errno == errno.ENOMEM
    return isinstance(error, MemoryError) or bool(_NO_MEMORY.search(str(error)))


def printable(text: str) -> str:
    """Return the text in one line: line ends, control characters and bytes that are not UTF-8 become escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in str(text))


def did_you_mean(name: str, names: Iterable[str], cutoff: float = 0.6) -> str:
    """Return "; did you mean 'x'?" with the nearest of some names, for the end of a message; empty where none is near.

    Args:
        name: what was given instead.
        cutoff: least similarity of the two, in [0, 1].
    """
    nearest = get_close_matches(name, list(names), n=1, cutoff=cutoff)
    return f"; did you mean {nearest[0]!r}?" if nearest else ""
