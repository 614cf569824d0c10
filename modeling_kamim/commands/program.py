"""Name the running command, for the commands that it prints."""

import sys
from collections.abc import Sequence
from pathlib import Path


def program(argv: Sequence[str] | None = None) -> list[str]:
    """The words that start the running command in a shell: `kamim pretrain`, or `python run_mim.py` for a script.

    Args:
        argv: the command line with its program; `sys.argv` where None.
    """
    name = Path((sys.argv if argv is None else argv)[0]).name
    if name.split()[0] == "kamim":
        return name.split()
    stem = name.removesuffix(".py").rpartition(".")[2]
    is_command = (Path(__file__).parent / f"{stem}.py").is_file()
    return ["kamim", stem] if is_command else ["python", name]
