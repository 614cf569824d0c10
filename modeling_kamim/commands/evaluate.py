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

import cv2
from transformers import set_seed

from ..data.loading import DataArguments
from ..evaluation.classification import Evaluation
from ..evaluation.comparison import compare_reconstructions
from ..evaluation.report.writing import build_report, write_report
from ..evaluation.settings import ClassificationArguments, ProbingArguments
from ..training.launch import check_launch
from ..training.run_directory import claimed
from .endings import run
from .parser import given_settings, parse
from .program import show_log
from .tables import CLASSIFICATION_ARGUMENTS

logger = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None, description: str = __doc__) -> None:
    data_args, class_args, training_args = parse(CLASSIFICATION_ARGUMENTS, argv, description)
    show_log(training_args.process_index)
    output_dir = Path(training_args.output_dir)
    if class_args.report:
        write_report(build_report([Path(folder) for folder in class_args.report]), output_dir)
        logger.info("report.md and report.tex are in %s", output_dir)
        return
    check_launch(training_args)
    cv2.setNumThreads(1)
    with claimed(training_args):
        evaluate(data_args, class_args, training_args)


def evaluate(data_args: DataArguments, class_args: ClassificationArguments, training_args: ProbingArguments) -> None:
    """Score a checkpoint, or random weights, and write the results into the output directory."""
    set_seed(training_args.seed)
    if class_args.mode == "reconstruction":
        compare_reconstructions(data_args, class_args, training_args)
        return
    evaluation = Evaluation(data_args, class_args, training_args, given_settings(CLASSIFICATION_ARGUMENTS))
    rows = [row for seed in class_args.seeds or [training_args.seed] for row in evaluation.run(seed)]
    if training_args.should_save:
        evaluation.save(rows)
    if training_args.push_to_hub and evaluation.trainer is not None:
        evaluation.trainer.push_to_hub()


if __name__ == "__main__":
    run(main)
