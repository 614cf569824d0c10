"""End a command with one line and an exit status, whatever happens."""

import errno
import os
import sys
import traceback
from collections.abc import Callable

from ..errors import InputError, StoppedError, first_line, is_out_of_memory, on_one_line
from .program import program


def run(main: Callable[[], None]) -> None:
    """Run a command's `main`; whatever happens, end the process with one line.

    The exit status is 2 after an `InputError`, that of a `StoppedError`, 130 after Ctrl-C, and 1 after a fault of the
    machine: no memory, no room on the disk, a place that cannot be read or written, a closed pipe. Any other error is a
    bug: status 1, and a traceback before a line that says what to report.
    """
    try:
        main()
    except InputError as error:
        _end("error", on_one_line(error), 2)
    except StoppedError as error:
        _end("stopped", on_one_line(error), error.status)
    except KeyboardInterrupt:
        _end("stopped", "interrupted; what was saved before is whole", 130)
    except BrokenPipeError:
        _drop_output()
        _end("stopped", "the reader of the output is gone (broken pipe)", 1)
    except Exception as error:
        fault = _fault_of_machine(error)
        if fault is None:
            traceback.print_exc()
            _end("bug", _what_to_report(error), 1)
        else:
            _end("error", fault, 1)


_WAYS_OUT = {
    errno.ENOSPC: "free some room, or name another place",
    errno.EDQUOT: "free some room, or name another place",
    errno.EROFS: "name another place",
    errno.EACCES: "name another place, or change its permissions",
    errno.EPERM: "name another place, or change its permissions",
    errno.EIO: "the disk or the network has a fault",
    errno.EMFILE: "allow more open files (ulimit -n), or use fewer workers",
    errno.ENFILE: "allow more open files, or use fewer workers",
}


def _fault_of_machine(error: Exception) -> str | None:
    """Return a line on a fault of the machine and the way out of it; None for any other error."""
    if is_out_of_memory(error):
        return (
            f"out of memory ({' '.join(first_line(error).split())}); use smaller batches or images, fewer workers, or "
            "a machine with more memory"
        )
    if isinstance(error, OSError) and error.errno in _WAYS_OUT:
        return f"{on_one_line(error)}: {_WAYS_OUT[error.errno]}"
    return None


def _what_to_report(error: Exception) -> str:
    from .bug_report import bug_report  # here, as help and typing mistakes must not wait for what it imports

    return (
        f"this {type(error).__name__} is a fault of the program, not yours; please report it with the traceback above "
        f"and with: {bug_report()}"
    )


def _drop_output() -> None:
    """Keep Python from writing, at its exit, into a pipe that nobody reads."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError):
        return


def _end(kind: str, message: str, status: int) -> None:
    name = " ".join(program()).removeprefix("python ")
    print(f"{name}: {kind}: {message}", file=sys.stderr)
    sys.exit(status)
