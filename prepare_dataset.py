"""Prepare a data set for fast training: smaller images and keypoint densities in Parquet, detected once.

python prepare_dataset.py path/to/images path/to/prepared --image_size 192 --num_proc 8
python prepare_dataset.py ILSVRC/imagenet-1k path/to/prepared --keypoint_detector fast sift orb --num_proc 16
python run_mim.py --dataset_name path/to/prepared --model_type vit

The same command, run again after an interruption, goes on where it stopped.
"""

import logging
from pathlib import Path

import datasets

from modeling_kamim.arguments import PreparationArguments, parse
from modeling_kamim.data import find_image_column, keep_encoded, load_images, report_bad_images
from modeling_kamim.errors import run
from modeling_kamim.prepared_dataset import Preparation, prepare_dataset

logger = logging.getLogger("prepare_dataset")


def main() -> None:
    (args,) = parse((PreparationArguments,), None, __doc__, positional=("dataset_name", "output_dir"))
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
    output_dir = Path(args.output_dir)

    images = load_images(args.dataset_name, args.dataset_config_name)
    image_column = find_image_column(next(iter(images.values())), args.image_column)
    images = datasets.DatasetDict({split: keep_encoded(rows, image_column) for split, rows in images.items()})
    preparation = Preparation(
        image_column, args.image_size, args.densities(), args.quality, skip_bad_images=args.bad_images == "skip"
    )
    datasets.disable_progress_bars()  # one bar for everything
    bad_images = prepare_dataset(
        images, output_dir, preparation, args.dataset_name, args.rows_per_shard, args.num_proc or 1, args.engine
    )
    report_bad_images(bad_images, output_dir, should_save=True)

    logger.info("The prepared data set and its card are in %s", output_dir)
    logger.info("Next: python run_mim.py --dataset_name %s --image_size %d", output_dir, args.image_size)
    logger.info(
        'Publish: hf upload-large-folder USER/NAME %s --repo-type dataset --exclude "*bad_images.txt"', output_dir
    )


if __name__ == "__main__":
    run(main)
