"""The steps of an evaluation, from its settings to its results."""

import cv2
from transformers import set_seed

from ..data.loading import DataArguments
from ..evaluation.classification import Evaluation
from ..evaluation.comparison import compare_reconstructions
from ..evaluation.settings import ClassificationArguments, ProbingArguments
from ..training.launch import check_launch
from ..training.run_directory import claimed


def run_evaluation(
    data_args: DataArguments, class_args: ClassificationArguments, training_args: ProbingArguments, settings: str
) -> None:
    """Score a checkpoint, or random weights, and write the results into the output directory.

    Args:
        settings: text of settings.yaml, see `settings_text`.

    Raises:
        InputError: if a setting, the data or the checkpoint cannot be used.
        StoppedError: if a training ended early.
    """
    cv2.setNumThreads(1)
    check_launch(training_args)
    with claimed(training_args):
        set_seed(training_args.seed)
        if class_args.mode == "reconstruction":
            compare_reconstructions(data_args, class_args, training_args)
            return
        evaluation = Evaluation(data_args, class_args, training_args, settings)
        rows = [row for seed in class_args.seeds or [training_args.seed] for row in evaluation.run(seed)]
        if training_args.should_save:
            evaluation.save(rows)
        if training_args.push_to_hub and evaluation.trainer is not None:
            evaluation.trainer.push_to_hub()
