"""Embed a data set: write the features that an encoder has of its images as Parquet files.

kamim embed outputs/mine path/to/images path/to/features
kamim embed facebook/dinov2-small ILSVRC/imagenet-1k path/to/features --pooling cls --precision auto
kamim embed outputs/mine path/to/images path/to/features --layer 8 --pooling patches --dtype float16
accelerate launch -m modeling_kamim.commands.embed outputs/mine path/to/images path/to/features

The same command, run again after an interruption, goes on where it stopped.
"""

import logging
import os
from datetime import timedelta
from pathlib import Path

import cv2
import datasets
from accelerate import PartialState

from ..api.encoding import choose_ids, choose_labels, scale_pixels
from ..api.groups import EMBEDDING_ARGUMENTS
from ..data.bad_images import list_bad_images
from ..data.loading import SourceArguments, load_source
from ..errors import InputError
from ..evaluation.embedding import Embedder, load_embedder
from ..evaluation.embedding_shards import PUBLISHED, EmbeddingArguments, EmbeddingWriter, embed_dataset, num_workers
from ..hub.publishing import Publisher
from ..training.launch import check_processes
from .endings import run
from .parser import parse
from .prepare import publish
from .program import show_log

logger = logging.getLogger(__name__)
LONGEST_WAIT = timedelta(days=1)  # of a process for the others, whose last shards may take longer


def main() -> None:
    places = ("model_name_or_path", "dataset_name", "output_dir")
    source, args, hub = parse(EMBEDDING_ARGUMENTS, None, __doc__, positional=places)
    state = PartialState(cpu=args.use_cpu, timeout=LONGEST_WAIT)
    show_log(state.process_index)
    check_processes(state.num_processes)
    if args.engine == "ray" and state.num_processes > 1:
        raise InputError("--engine ray starts its own processes; run the command without a launcher")
    cv2.setNumThreads(1)
    publisher = Publisher(args.repo, hub.token, hub.private, hub.revision, "dataset") if args.push_to_hub else None

    embedder = load_encoder(source, args, state)
    with state.local_main_process_first():
        images, image_column = load_source(source)
        scale_pixels(embedder, images, image_column, source.num_proc)
    label_column = choose_labels(images, args.label_column)
    ids = choose_ids(images, image_column, source.dataset_name)
    writer = EmbeddingWriter(image_column, label_column, ids, args.dtype, args.bad_images == "skip")
    datasets.disable_progress_bars()  # one bar for everything
    bad_images = embed_dataset(images, writer, embedder, args, source.dataset_name, state, hub.license)

    if state.is_main_process:
        output_dir = Path(args.output_dir)
        list_bad_images(bad_images, output_dir)
        logger.info("The features and their card are in %s", output_dir)
        if publisher is not None:
            publish(publisher, output_dir, PUBLISHED, "embedded")
    state.destroy_process_group()


def load_encoder(source: SourceArguments, args: EmbeddingArguments, state: PartialState) -> Embedder:
    """Load the encoder of a process, and choose how many others decode images for it."""
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", state.num_processes))
    workers = num_workers(state.device, processes, source.num_proc)
    with state.local_main_process_first():  # one process downloads
        return load_embedder(**args.encoder(), device=state.device, num_workers=workers)


if __name__ == "__main__":
    run(main)
