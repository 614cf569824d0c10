"""Evaluate a checkpoint, or random weights: linear probes, nearest neighbors, fine-tuning, reconstructions.

kamim evaluate --mode linear_probe --model_name_or_path outputs/mim
kamim evaluate --protocol cached --probe_layers all --model_name_or_path outputs/mim
accelerate launch -m modeling_kamim.commands.evaluate --mode finetune --model_name_or_path outputs/mim
kamim reconstruct --model_name_or_path outputs/mim
kamim report outputs --output_dir outputs/report
"""

import logging
from collections.abc import Sequence
from pathlib import Path

from ..api.groups import CLASSIFICATION_ARGUMENTS
from ..api.scoring import run_evaluation
from ..evaluation.report.writing import build_report, write_report
from .endings import run
from .parser import given_settings, parse
from .program import keep_freed_memory, show_log

logger = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None, description: str = __doc__) -> None:
    data_args, class_args, training_args = parse(CLASSIFICATION_ARGUMENTS, argv, description)
    show_log(training_args.process_index)
    if training_args.device.type == "cpu":
        keep_freed_memory()
    output_dir = Path(training_args.output_dir)
    if class_args.report:
        write_report(build_report([Path(folder) for folder in class_args.report]), output_dir)
        logger.info("report.md and report.tex are in %s", output_dir)
        return
    run_evaluation(data_args, class_args, training_args, given_settings(CLASSIFICATION_ARGUMENTS, argv))


if __name__ == "__main__":
    run(main)
