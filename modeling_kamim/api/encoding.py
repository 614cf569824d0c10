"""The steps before features: what the images of a data set are called, which classes they have, how they are scaled."""

import logging
from pathlib import Path

import datasets

from ..data.loading import find_label_column
from ..data.normalization import fit_processor
from ..data.row_ids import RowIds
from ..errors import InputError
from ..evaluation.embedding import Embedder

logger = logging.getLogger(__name__)


def scale_pixels(
    embedder: Embedder, images: datasets.DatasetDict, image_column: str, num_proc: int | None = None
) -> None:
    """Have an embedder scale and normalize images as its checkpoint was trained, or else as they themselves need it."""
    rows = _train_or_first(images)
    embedder.pixel_range = fit_processor(embedder.processor, rows, image_column, embedder.num_channels, num_proc)


def choose_labels(images: datasets.DatasetDict, label_column: str | None) -> str | None:
    """Return the column of the classes; None, with a line in the log, where there is none and none was named."""
    rows = _train_or_first(images)
    try:
        return find_label_column(rows, label_column)
    except InputError:
        if label_column is not None:
            raise
        logger.info("No labels are kept: none were found among the columns (%s)", ", ".join(rows.column_names))
        return None


def choose_ids(images: datasets.DatasetDict, image_column: str, dataset_name: str | None) -> dict[str, RowIds]:
    """Return the ids of the rows of each split, see `RowIds`."""
    folder = Path(dataset_name or "").expanduser()
    given = str(folder) if dataset_name and folder.is_dir() else None
    return {split: RowIds.choose(split, rows, image_column, given) for split, rows in images.items()}


def _train_or_first(images: datasets.DatasetDict) -> datasets.Dataset:
    return images["train"] if "train" in images else next(iter(images.values()))
