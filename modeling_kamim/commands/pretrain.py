"""Pretrain a vision transformer by masked image modeling, with keypoint weights (KAMIM) or without (SimMIM, MAE).

accelerate launch -m modeling_kamim.commands.pretrain --model_type vit
kamim pretrain configs/quickstart/pretrain.yaml --temperature 0.5
kamim pretrain --model_type swin --model_size tiny --dataset_name path/to/images --weighting none
kamim pretrain --model_name_or_path facebook/dinov2-small --image_size 224 --dataset_name path/to/images
"""

import logging

from ..api.groups import PRETRAINING_ARGUMENTS
from ..api.pretraining import run_pretraining
from .endings import run
from .parser import changed, command, given_settings, parse
from .program import keep_freed_memory, show_log

logger = logging.getLogger(__name__)
SOURCE = ("dataset_name", "dataset_config_name", "train_split", "validation_split", "image_column", "trust_data_files")


def main() -> None:
    data_args, kamim_args, stream_args, probe_args, training_args = parse(PRETRAINING_ARGUMENTS, None, __doc__)
    show_log(training_args.process_index)
    if training_args.device.type == "cpu":
        keep_freed_memory()
    settings = given_settings(PRETRAINING_ARGUMENTS)
    run_pretraining(data_args, kamim_args, stream_args, probe_args, training_args, settings)
    if training_args.should_save:
        source = changed(data_args, *SOURCE)
        logger.info("Next: %s", command("kamim", "evaluate", model_name_or_path=training_args.output_dir, **source))


if __name__ == "__main__":
    run(main)
