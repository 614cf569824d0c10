"""List the pretrainings below folders: method, images seen, probe, speed, state, and how to go on with each.

kamim runs outputs
"""

from collections.abc import Sequence
from pathlib import Path

from ..errors import InputError
from ..training.overview import PretrainingRun, pretrainings
from .endings import run
from .program import plain_parser

COLUMNS = ("run", "method", "steps", "images seen", "probe", "k-NN", "images/s", "state")


def main() -> None:
    parser = plain_parser(__doc__)
    parser.add_argument("folders", type=Path, nargs="+", metavar="DIR", help="folders with runs, at any depth")
    folders = parser.parse_args().folders
    if missing := [str(folder) for folder in folders if not folder.is_dir()]:
        raise InputError(f"there is no folder {', '.join(missing)}; give the output_dir of a run, or one above it")
    found = [pretraining for folder in folders for pretraining in pretrainings(folder)]
    if not found:
        raise InputError(f"there is no pretraining of this package in {', '.join(map(str, folders))} or below")
    print("\n".join(table(found)))
    if commands := [command for pretraining in found if (command := pretraining.command)]:
        print("\nTo go on:", *commands, sep="\n  ")


def table(found: Sequence[PretrainingRun]) -> list[str]:
    """Return the lines of a table, a row for each run."""
    rows = [COLUMNS, *map(_cells, found)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _cells(pretraining: PretrainingRun) -> tuple[str, ...]:
    probe, neighbors = (pretraining.last(key) for key in ("probe_top1", "knn_top1"))
    speed = pretraining.images_per_second
    return (
        str(pretraining.output_dir),
        pretraining.method,
        f"{pretraining.step:,}/{pretraining.num_steps:,}" if pretraining.num_steps else "–",
        f"{pretraining.images_seen:,}" if pretraining.images_seen else "–",
        "–" if probe is None else f"{probe:.1%}",
        "–" if neighbors is None else f"{neighbors:.1%}",
        "–" if speed is None else f"{speed:,.0f}",
        pretraining.state,
    )


if __name__ == "__main__":
    run(main)
