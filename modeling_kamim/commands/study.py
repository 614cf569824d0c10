"""Run a study: named arms with several seeds, the same probes for all, and a report with paired differences.

kamim study configs/studies/imagenette_64px_laptop.yaml --dataset_name path/to/imagenette224
kamim study configs/studies/imagenette_64px_laptop.yaml --dataset_name path/to/imagenette224 --time_limit 60
kamim study configs/studies/imagenette_64px_laptop.yaml --report
kamim study configs/studies/imagenette_vit_small.yaml --dataset_name path/to/imagenette224 --trial 20
kamim study configs/studies/paper_table4.yaml --arms fast sift --launcher "accelerate launch"

It runs what is missing, and goes on where it was stopped: Ctrl-C, SIGTERM and --time_limit save the running trainings.
"""

import argparse
import logging
import re
import shlex
from pathlib import Path
from typing import Any

from ..api.groups import COMMAND_ARGUMENTS
from ..errors import InputError
from ..study.execution import Execution, Limits
from ..study.plan import Replicate, Run, Study
from ..study.records import Record
from ..study.writeup import write_report
from .endings import run
from .parser import parse, read_yaml
from .program import plain_parser, show_log

logger = logging.getLogger(__name__)
_OF_THE_MACHINE = re.compile(r"Ampere|GPU|CUDA|\binstall", re.IGNORECASE)  # words of messages about the machine


def main() -> None:
    args = _parser().parse_args()
    show_log()
    study = Study.read(
        args.file.stem,
        read_yaml(args.file),
        dataset_name=args.dataset_name,
        output_dir=args.output_dir,
        results_dir=args.results_dir,
    )
    if args.trial:
        study = study.shortened(args.trial)
    replicates = study.replicates(args.arms)
    if args.report:
        report(study)
        return
    check_runs(study, replicates)
    if args.plan:
        print("\n".join(plan_lines(study, replicates)))
        return
    seconds = None if args.time_limit is None else 60 * args.time_limit
    try:
        Execution(study, replicates, Limits(args.jobs, shlex.split(args.launcher), seconds)).run()
    finally:
        report(study)


def report(study: Study) -> None:
    """Write the report of all that is recorded, and print its table."""
    records = [Record(study.results_dir, replicate) for replicate in study.replicates()]
    file = write_report(study, records)
    print(file.read_text(encoding="utf-8"))
    logger.info("The report, its numbers and its pictures are in %s", study.results_dir)


def plan_lines(study: Study, replicates: list[Replicate]) -> list[str]:
    """Return the command lines of what is missing."""
    runs = []
    for replicate in replicates:
        missing = Record(study.results_dir, replicate).missing
        runs += [replicate.pretraining if name == "pretraining" else replicate.evaluations[name] for name in missing]
    if runs and study.preparation:
        runs.insert(0, study.preparation)
    return [shlex.join(["kamim", found.command, *found.words]) for found in runs if found is not None]


def check_runs(study: Study, replicates: list[Replicate]) -> None:
    """Parse the command lines of all runs as their commands will, before the first one starts.

    Raises:
        InputError: as `parse`, and the run before it; not for what only this machine lacks, such as a GPU.
    """
    runs = [study.preparation] if study.preparation else []
    for replicate in replicates:
        runs += [replicate.pretraining] if replicate.pretraining else []
        runs += replicate.evaluations.values()
    for found in runs:
        _check(found)


def _check(found: Run) -> None:
    words = found.words if found.command == "prepare" else [*found.words, "--use_cpu"]
    if found.command == "prepare" and "--dataset_name" not in words:
        raise InputError("the study prepares a data set: give --dataset_name path/to/images")
    try:
        parse(COMMAND_ARGUMENTS[found.command], words)
    except InputError as error:
        if not _OF_THE_MACHINE.search(str(error)):
            raise InputError(f"{found.output_dir}: kamim {found.command}: {error}") from error


def _parser() -> argparse.ArgumentParser:
    parser = plain_parser(__doc__)
    parser.add_argument("file", type=Path, metavar="FILE.yaml", help="study file; docs/studies.md has its keys")
    parser.add_argument("--dataset_name", help="labeled images: a folder, Parquet files, or a data set of the Hub")
    parser.add_argument("--arms", nargs="+", default=[], metavar="ARM", help="run these arms alone, in this order")
    parser.add_argument("--jobs", type=_positive(int), default=1, metavar="N", help="trainings at a time (1)")
    parser.add_argument(
        "--time_limit", type=_positive(float), metavar="MINUTES", help="save what runs and end after so many minutes"
    )
    parser.add_argument("--launcher", default="", metavar="WORDS", help='starts a run, as "accelerate launch"')
    parser.add_argument("--output_dir", metavar="DIR", help="checkpoints and logs; in place of the file's")
    parser.add_argument("--results_dir", metavar="DIR", help="records and report; in place of the file's")
    parser.add_argument(
        "--trial", type=_positive(int), metavar="STEPS", help="trainings of so many steps, in output_dir/trial"
    )
    parser.add_argument("--report", action="store_true", help="run nothing; write the report of what is recorded")
    parser.add_argument("--plan", action="store_true", help="run nothing; print the commands of what is missing")
    return parser


def _positive(kind: type) -> Any:
    def number(text: str) -> Any:
        value = kind(text)
        if not value > 0:
            raise argparse.ArgumentTypeError(f"{text} is not above 0")
        return value

    number.__name__ = kind.__name__
    return number


if __name__ == "__main__":
    run(main)
