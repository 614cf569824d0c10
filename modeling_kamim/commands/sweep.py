"""Expand a sweep file into shell command lines, one for each point of the sweep.

kamim sweep configs/sweeps/table4_detectors.yaml | bash
kamim sweep configs/sweeps/table4_detectors.yaml --launcher "accelerate launch" | bash
kamim sweep configs/sweeps/table4_detectors.yaml | xargs -d '\\n' -n 1 -P 3 bash -c

A line has all runs of its point, in order and joined by `&&`. Lines do not depend on each other, so a queue may run
them at once or anywhere. Every run is parsed before anything is printed.
"""

import itertools
import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from transformers.hf_argparser import HfArg

from ..api.groups import COMMAND_ARGUMENTS
from ..errors import InputError
from ..files import check_output_dir
from .endings import run
from .parser import parse


@dataclass
class SweepArguments:
    """The keys of a sweep file; the command line can override each of them."""

    _argument_group_name = "sweep"

    command: Literal["pretrain", "evaluate"] = HfArg(help="Command that is swept.")
    base: str = HfArg(help="YAML file that every point starts from.")
    sweep: str = HfArg(help="Arguments of the command and their values (a mapping, or JSON); all combinations run.")
    output_dir: str = HfArg(help="Every point writes to a folder in it that is named after its values.")
    then: list[str] = HfArg(
        default_factory=list,
        help="YAML files of `kamim evaluate`, run one after the other on every point's checkpoint.",
    )
    launcher: str = HfArg(default="", help='What starts a run, for example "accelerate launch".')

    def __post_init__(self):
        self.points()
        check_output_dir(self.output_dir)
        if self.then and self.command != "pretrain":
            raise InputError(f"'then' is for the checkpoints of pretrain; command is {self.command}")

    def points(self) -> list[dict[str, str]]:
        """Return for every point its values by their arguments; the last argument varies fastest.

        Raises:
            InputError: unless `sweep` maps arguments to lists of values.
        """
        try:
            grid = json.loads(self.sweep)
        except json.JSONDecodeError:
            grid = None
        if not isinstance(grid, dict) or not grid or not all(isinstance(v, list) and v for v in grid.values()):
            raise InputError(f"sweep is {self.sweep}; give lines of 'argument: [value, value]'")
        texts = ([v if isinstance(v, str) else json.dumps(v) for v in values] for values in grid.values())
        return [dict(zip(grid, point, strict=True)) for point in itertools.product(*texts)]


def point_name(point: dict[str, str]) -> str:
    """Return the name of a point's folder, as weight_patch_size-8__temperature-0.1; of a path the last part counts."""
    return "__".join(f"{key}-{Path(value).name}" for key, value in point.items())


def point_runs(sweep: SweepArguments, point: dict[str, str]) -> list[tuple[str, list[str]]]:
    """Return (command, its arguments) of every run at a point, in running order."""
    output_dir = f"{sweep.output_dir}/{point_name(point)}"
    flags = [word for key, value in point.items() for word in (f"--{key}", value)]
    runs: list[tuple[str, list[str]]] = [(sweep.command, [sweep.base, *flags, "--output_dir", output_dir])]
    for base in sweep.then:
        results = f"{output_dir}/{Path(base).parent.name}"
        runs.append(("evaluate", [base, "--model_name_or_path", output_dir, "--output_dir", results]))
    return runs


def command_lines(sweep: SweepArguments) -> list[str]:
    """Return a shell command line for each point.

    Raises:
        InputError: for an argument or value that its command refuses, or two runs that would write to one folder.
    """
    points = [point_runs(sweep, point) for point in sweep.points()]
    output_dirs = [argv[-1] for runs in points for _, argv in runs]
    for output_dir in output_dirs:
        if output_dirs.count(output_dir) > 1:
            raise InputError(f"two runs of the sweep would write to {output_dir}; make values or folder names differ")
    for command, argv in itertools.chain(*points):
        check_run(command, argv)
    return [" && ".join(_line(sweep.launcher, command, argv) for command, argv in runs) for runs in points]


def _line(launcher: str, command: str, argv: Sequence[str]) -> str:
    start = [*shlex.split(launcher), "-m", f"{__package__}.{command}"] if launcher else ["kamim", command]
    return shlex.join([*start, *argv])


_OF_THE_MACHINE = re.compile(r"Ampere|GPU|CUDA|\binstall", re.IGNORECASE)  # words of messages about the machine


def check_run(command: str, argv: Sequence[str]) -> None:
    """Parse the command line of a run as its command will.

    Raises:
        InputError: as `parse`, except for what only this machine lacks, such as a GPU.
    """
    try:
        parse(COMMAND_ARGUMENTS[command], [*argv, "--use_cpu"])
    except InputError as error:
        if not _OF_THE_MACHINE.search(str(error)):
            raise


def main() -> None:
    (sweep,) = parse((SweepArguments,), None, __doc__ or "")
    print("\n".join(command_lines(sweep)))


if __name__ == "__main__":
    run(main)
