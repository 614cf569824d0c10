"""Evaluation of a checkpoint, or of random weights: linear probes, nearest neighbours, fine-tuning, reconstructions.

python run_classification.py --mode linear_probe --model_name_or_path outputs/mim
python run_classification.py --protocol cached --probe_layers all --model_name_or_path outputs/mim
accelerate launch run_classification.py --mode finetune --model_name_or_path outputs/mim --dataset_name uoft-cs/cifar10
python run_classification.py --mode reconstruction --model_name_or_path outputs/mim
python run_classification.py --report outputs --output_dir outputs/report
"""

import logging
from pathlib import Path

import cv2
from transformers import set_seed

from modeling_kamim.arguments import CLASSIFICATION_ARGUMENTS, ClassificationArguments, DataArguments
from modeling_kamim.command_line import parse
from modeling_kamim.errors import run
from modeling_kamim.evaluation.classification import Evaluation
from modeling_kamim.evaluation.comparison import compare_reconstructions
from modeling_kamim.evaluation.report import build_report, write_report
from modeling_kamim.processes import check_launch
from modeling_kamim.run_directory import claimed
from modeling_kamim.training_arguments import ProbingArguments

logger = logging.getLogger("run_classification")


def main() -> None:
    data_args, class_args, training_args = parse(CLASSIFICATION_ARGUMENTS, None, __doc__)
    logging.basicConfig(
        level=logging.INFO if training_args.process_index == 0 else logging.ERROR, format="%(name)s: %(message)s"
    )
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
    set_seed(training_args.seed)
    if class_args.mode == "reconstruction":
        compare_reconstructions(data_args, class_args, training_args)
        return
    evaluation = Evaluation(data_args, class_args, training_args)
    rows = [row for seed in class_args.seeds or [training_args.seed] for row in evaluation.run(seed)]
    if training_args.should_save:
        evaluation.save(rows)
    if training_args.push_to_hub:
        evaluation.trainer.push_to_hub()


if __name__ == "__main__":
    run(main)
