"""The errors that the command line turns into a single line instead of a traceback."""

import sys
from collections.abc import Callable
from pathlib import Path


class InputError(ValueError):
    """A setting, file or data set that the user can correct; the message says how."""


class StoppedError(RuntimeError):
    """A training that ended early, for a reason that the message tells and that is no fault of the program.

    Args:
        message: what happened, what is saved, how to go on.
        status: exit status of the process.
    """

    def __init__(self, message: str, status: int = 1):
        super().__init__(message)
        self.status = status


def first_line(error: BaseException) -> str:
    """The first line of its message, or its type where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def on_one_line(error: BaseException) -> str:
    """Its whole message on one line, or its type where it has none."""
    return " ".join(str(error).split()) or type(error).__name__


def run(main: Callable[[], None]) -> None:
    """Run a script's `main`; an `InputError` (exit status 2) or `StoppedError` ends it with one line."""
    try:
        main()
    except InputError as error:
        _end("error", error, 2)
    except StoppedError as error:
        _end("stopped", error, error.status)


def _end(kind: str, error: Exception, status: int) -> None:
    print(f"{Path(sys.argv[0]).name}: {kind}: {on_one_line(error)}", file=sys.stderr)
    sys.exit(status)
