"""Errors that a command ends with in one line, without a traceback."""

import errno
import re
from collections.abc import Iterable
from difflib import get_close_matches


class InputError(ValueError):
    """A setting, file or data set that the user can correct; the message says how."""

    def __init__(self, message: str = ""):
        super().__init__(_own_message(message, type(self)))


class StoppedError(RuntimeError):
    """A training that ended early, for a reason that the message tells and that is no fault of the program.

    Args:
        message: what happened, what is saved, how to go on.
        status: exit status of the process.
    """

    def __init__(self, message: str, status: int = 1):
        super().__init__(_own_message(message, type(self)))
        self.status = status


def _own_message(message: str, kind: type) -> str:
    """The message itself, where a loader's worker hands an error on as the text of its traceback."""
    if not message.startswith(f"Caught {kind.__name__} in "):
        return message
    return message.rpartition(f"\n{kind.__module__}.{kind.__qualname__}: ")[2].strip()


def first_line(error: BaseException) -> str:
    """The first line of its message, or its type where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def on_one_line(error: BaseException) -> str:
    """Its whole message on one line, or its type where it has none."""
    return " ".join(str(error).split()) or type(error).__name__


_NO_MEMORY = re.compile(r"out of memory|not enough memory|can.?t allocate memory|insufficient memory", re.IGNORECASE)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether Python, torch, OpenCV, a codec or the system found too little memory."""
    if isinstance(error, OSError) and error.errno is not None:  # its text may hold the name of a file
        return error.errno == errno.ENOMEM
    return isinstance(error, MemoryError) or bool(_NO_MEMORY.search(str(error)))


def printable(text: str) -> str:
    """The text in one line: line ends, control characters and bytes that are no UTF-8 become escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in str(text))


def did_you_mean(name: str, names: Iterable[str], cutoff: float = 0.6) -> str:
    """Return "; did you mean 'x'?" with the nearest of some names, for the end of a message; empty where none is near.

    Args:
        name: that is none of them.
        cutoff: least similarity, in [0, 1].
    """
    nearest = get_close_matches(name, list(names), n=1, cutoff=cutoff)
    return f"; did you mean {nearest[0]!r}?" if nearest else ""
