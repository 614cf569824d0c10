"""Prepare a data set for fast training: write smaller images and their keypoint densities as Parquet files, once.

kamim prepare path/to/images path/to/prepared --image_size 192 --num_proc 8
kamim prepare ILSVRC/imagenet-1k path/to/prepared --keypoint_detector fast sift orb --num_proc 16
kamim pretrain --dataset_name path/to/prepared --model_type vit

kamim prepare path/to/images path/to/prepared --push_to_hub --repo user/prepared --private true

The same command, run again after an interruption, goes on where it stopped.
"""

import logging
from collections.abc import Sequence
from pathlib import Path

import datasets
from huggingface_hub import DatasetCard

from ..api.groups import PREPARATION_ARGUMENTS
from ..data.attach_density import choose_pixel_range
from ..data.bad_images import list_bad_images
from ..data.loading import load_source
from ..data.preparation import PUBLISHED, Preparation, prepare_dataset
from ..data.trust import link_findings, refuse
from ..errors import InputError
from ..hub.cards import ask_about_card, prepared_dataset_card, published_dataset_card
from ..hub.publishing import Publisher, PublishError
from .endings import run
from .parser import changed, command, parse
from .program import show_log

logger = logging.getLogger(__name__)


def main() -> None:
    source, args, hub = parse(PREPARATION_ARGUMENTS, None, __doc__, positional=("dataset_name", "output_dir"))
    show_log()
    output_dir = Path(args.output_dir)

    images, image_column = load_source(source)
    publisher = None
    if args.push_to_hub:
        # a folder that was unpacked may hold links to private images
        links = link_findings(images, image_column, source.dataset_name)
        refuse(source.dataset_name, links, source.trust_data_files)
        publisher = Publisher(args.repo, hub.token, hub.private, hub.revision, repo_type="dataset")
    train = images["train"] if "train" in images else next(iter(images.values()))
    preparation = Preparation(
        image_column,
        args.image_size,
        args.densities(),
        args.quality,
        skip_bad_images=args.bad_images == "skip",
        pixel_range=choose_pixel_range(train, image_column, None, source.num_proc, args.num_channels),
        num_channels=args.num_channels,
    )
    for density in preparation.densities:
        if density.detector.notice:
            logger.info("%s", density.detector.notice)
    datasets.disable_progress_bars()  # one bar for everything
    if publisher is not None:
        nothing_yet = {"num_rows": 0, "num_bytes": 0, "num_bad": 0}
        ask_about_card(prepared_dataset_card(output_dir, source.dataset_name, preparation, nothing_yet, hub.license))
    bad_images = prepare_dataset(
        images,
        output_dir,
        preparation,
        source.dataset_name,
        args.rows_per_shard,
        _processes(preparation, source.num_proc),
        args.engine,
        hub.license,
    )
    list_bad_images(bad_images, output_dir, should_save=True)

    logger.info("The prepared data set and its card are in %s", output_dir)
    names = ("image_size", "num_channels", "keypoint_footprint", "keypoint_channel", "keypoint_image_size")
    run_settings = changed(args, *names, "crop_min_scale")
    if args.keypoint_detector_args is not None:
        run_settings["keypoint_detector_args"] = args.keypoint_detector_args
    if args.keypoint_detector[0] not in ("fast", "none"):
        run_settings["keypoint_detector"] = args.keypoint_detector[0]
    logger.info("Next: %s", command("kamim", "pretrain", dataset_name=output_dir, **run_settings))
    if publisher is None:
        logger.info("Publish: the same command with --push_to_hub --repo USER/NAME")
    else:
        publish(publisher, output_dir, PUBLISHED, "prepared")


def _processes(preparation: Preparation, num_proc: int | None) -> int:
    """Return the number of processes: one where any source is learned, since all would share its device."""
    counts = [density.detector.processes(num_proc) for density in preparation.densities]
    return min([num_proc or 1, *(count or 1 for count in counts)])


def publish(publisher: Publisher, output_dir: Path, patterns: Sequence[str], done: str) -> None:
    """Upload a data set that was `done` ("prepared"), and its card; raise InputError where that fails.

    Args:
        patterns: of its files.
    """
    try:
        publisher.prepare()
        card = published_dataset_card(DatasetCard.load(output_dir / "README.md"), publisher.repo_id)
        publisher.push_folder(output_dir, patterns, f"Upload the {done} data set")
        address = publisher.push({"README.md": str(card).encode()}, "Card with the name of the repository")
    except PublishError as error:
        raise InputError(
            f"{done}, but not published: {error}. The same command again does nothing twice and publishes"
        ) from error
    logger.info("Published: %s", address)


if __name__ == "__main__":
    run(main)
