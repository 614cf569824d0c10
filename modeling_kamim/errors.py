"""The one error that the command line turns into a single line instead of a traceback."""

import sys
from collections.abc import Callable
from pathlib import Path


class InputError(ValueError):
    """A setting, file or data set that the user can correct; the message says how."""


def run(main: Callable[[], None]) -> None:
    """Run a script's `main`; an `InputError` ends it with one line and exit status 2."""
    try:
        main()
    except InputError as error:
        print(f"{Path(sys.argv[0]).name}: error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
