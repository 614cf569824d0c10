"""Load an image data set, find its splits and columns, and encode its labels."""

import logging
import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import datasets
import numpy as np
from datasets.packaged_modules.folder_based_builder.folder_based_builder import FolderBasedBuilder
from huggingface_hub.constants import HF_HUB_CACHE

from ..errors import InputError, first_line, printable
from ..limits import check_ranges
from ..privacy import public_text
from .array_folder import array_folder, holds_npy
from .arrays import array_dtype, encode_arrays
from .folder_patterns import one_walk
from .labels import check_class_folders, check_labels, describe, uneven_folders
from .photographs import load_photographs
from .trust import OutsideError, file_findings, folders_of, refuse, row_findings, settings_findings

TRUST_HELP = (
    "Read files outside of the data set's folder, too, and addresses, where its README.md or its rows name them; only "
    "if you trust whoever wrote these. Without it such a data set is refused."
)


@dataclass
class DataArguments:
    """Which images."""

    _argument_group_name = "data"

    dataset_name: str | None = field(
        default=None,
        metadata={
            "help": "Hub id, folder of images, folder or file of Parquet, or directory saved by `datasets`; "
            "without it the embedded photographs are used."
        },
    )
    dataset_config_name: str | None = field(default=None, metadata={"help": "Configuration of a Hub data set."})
    train_split: str = field(default="train", metadata={"help": "Split to train on."})
    validation_split: str | None = field(
        default=None, metadata={"help": "Split to evaluate on; found by its usual names where not given."}
    )
    image_column: str | None = field(default=None, metadata={"help": "Column of the images; found where not given."})
    max_train_samples: int | None = field(
        default=None, metadata={"help": "Use only N training images, drawn at random."}
    )
    max_eval_samples: int | None = field(
        default=None, metadata={"help": "Use only N validation images, drawn at random."}
    )
    bad_images: Literal["raise", "skip"] = field(
        default="raise",
        metadata={
            "help": "An image that cannot be decoded: stop and name it (raise), or check all images before training, "
            "leave the bad ones out and list them (skip)."
        },
    )
    num_proc: int | None = field(default=None, metadata={"help": "Processes of the cached steps before training."})
    trust_data_files: bool = field(default=False, metadata={"help": TRUST_HELP})

    def __post_init__(self):
        check_ranges(self)

    def load(self) -> datasets.DatasetDict:
        """Return all splits, see `load_images`."""
        return load_images(self.dataset_name, self.dataset_config_name, self.image_column, self.trust_data_files)


@dataclass
class SourceArguments:
    """Which images are read; all splits are."""

    _argument_group_name = "source"

    dataset_name: str = field(
        metadata={"help": "Hub id, folder of images, folder or file of Parquet, or directory saved by `datasets`."}
    )
    dataset_config_name: str | None = field(default=None, metadata={"help": "Configuration of a Hub data set."})
    image_column: str | None = field(default=None, metadata={"help": "Column of the images; found where not given."})
    num_proc: int | None = field(default=None, metadata={"help": "Processes of this machine."})
    trust_data_files: bool = field(default=False, metadata={"help": TRUST_HELP})

    def __post_init__(self):
        check_ranges(self)


logger = logging.getLogger(__name__)
IMAGE_COLUMNS = ("image", "img", "images", "picture", "photo", "pixel_values", "jpg", "png")
LABEL_COLUMNS = ("label", "labels", "fine_label", "class", "category", "target", "cls")
VALIDATION_SPLITS = ("validation", "valid", "val", "test")
FINGERPRINT_ROWS = 64
_WILDCARDS = re.compile(r"[*?[]|::")


def load_images(
    name: str | None, config_name: str | None = None, image_column: str | None = None, trust_data_files: bool = False
) -> datasets.DatasetDict:
    """Load a data set: from a folder, from a file, or from the Hub.

    Args:
        name: a directory saved by `datasets` (`save_to_disk`), a folder of images or NumPy files (flat, or a folder
            for each class, or `train/` and `validation/` of those), a folder of Parquet files or one such file, or a
            Hub id; None for the embedded photographs.
        config_name: configuration of a Hub data set.
        image_column: column of the images; found where not given.
        trust_data_files: read files outside of the data set's folder, too, where its texts name them.

    Raises:
        OutsideError: if it names files outside of its folder, and is not trusted.
        InputError: if nothing can be loaded from there.
    """
    if name is None:
        logger.warning(
            "No data set is named: using the embedded photographs of scikit-image, a toy set for first tries "
            "(`make quickstart` takes minutes). Name one with --dataset_name: a Hub id, a folder of images, or a "
            "folder of Parquet or Arrow files."
        )
        return load_photographs()
    kinds = "a folder of images, a folder of Parquet files, a directory saved by `datasets`"
    with loading_errors(f"load data set {name!r}", kinds):
        return _load(name, config_name, image_column, trust_data_files)


@contextmanager
def loading_errors(what: str, kinds: str) -> Iterator[None]:
    """Raise InputError where `datasets` cannot do `what`; the message names the `kinds` of data that can be given."""
    try:
        yield
    except OutsideError:
        raise
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        reason = _reason(error)
        raise InputError(f"cannot {what}: {reason}. Give {kinds}, or the id of a data set on the Hub") from error


def _reason(error: BaseException) -> str:
    """Return why `datasets` could not load, in one line."""
    while isinstance(error, datasets.exceptions.DatasetGenerationError) and error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, UnicodeEncodeError):
        return f"the name {printable(error.object)} is not UTF-8; rename it (convmv does so for whole folders)"
    if isinstance(error, ConnectionError):
        return f"{first_line(error)} ({public_text(datasets.config.HF_ENDPOINT)})"
    return first_line(error)


def _load(name: str, config_name: str | None, image_column: str | None, trust: bool) -> datasets.DatasetDict:
    path = Path(name).expanduser()
    is_saved = (path / "dataset_dict.json").is_file() or (path / "state.json").is_file()
    if is_saved:
        loaded, folders = datasets.load_from_disk(str(path)), folders_of(path)
    else:
        builder = open_builder(name, config_name, trust)
        builder.download_and_prepare()
        loaded, folders = builder.as_dataset(), readable_folders(builder, path)
    splits = loaded if isinstance(loaded, datasets.DatasetDict) else datasets.DatasetDict({"train": loaded})
    if is_saved:
        files = [file["filename"] for rows in splits.values() for file in rows.cache_files]
        refuse(name, file_findings(files, folders), trust)
    columns = []
    with suppress(InputError):  # the caller raises it
        columns = [find_image_column(next(iter(splits.values())), image_column)]
    rows = [finding for split in splits for finding in row_findings(splits[split].data.table, folders, columns, split)]
    refuse(name, rows, trust)
    return splits


def open_builder(name: str, config_name: str | None, trust_data_files: bool) -> datasets.DatasetBuilder:
    """Return the builder of a Parquet file, a folder, or a Hub id.

    Raises:
        OutsideError: if it would read data files that lie elsewhere, and is not trusted.
        InputError: for a path where there is nothing, or a folder whose name `datasets` takes for a pattern.
    """
    path = Path(name).expanduser()
    allowed = folders_of(path)
    if path.suffix == ".parquet" and path.is_file():
        builder = datasets.load_dataset_builder("parquet", data_files=str(path))
    elif path.is_dir():
        if _WILDCARDS.search(str(path.resolve())):
            raise InputError(f"`datasets` takes * ? [ and :: in a path for patterns; rename {path.resolve()}")
        refuse(name, settings_findings(path), trust_data_files)
        with one_walk(path):
            builder = array_folder(str(path)) if holds_npy(str(path)) else datasets.load_dataset_builder(str(path))
    elif path.is_absolute() or name.startswith(("./", "../", "~")):
        raise InputError("there is no such file or folder")
    else:
        builder = datasets.load_dataset_builder(name, config_name)
        allowed = (f"hf://datasets/{name}@",)
    files = (str(file) for files in (builder.config.data_files or {}).values() for file in files)
    refuse(name, file_findings(files, allowed), trust_data_files)
    return builder


def readable_folders(builder: datasets.DatasetBuilder, path: Path) -> tuple[str, ...]:
    """Return the folders of the files that rows may name: the data set's own or, for images of the Hub, the caches.

    Args:
        builder: of `open_builder`.
        path: of the data set, if it is local.
    """
    if path.exists():
        return folders_of(path)
    caches = (HF_HUB_CACHE, datasets.config.DOWNLOADED_DATASETS_PATH)
    return tuple(map(os.path.abspath, caches)) if isinstance(builder, FolderBasedBuilder) else ()


def choose_splits(
    dataset: datasets.DatasetDict, train_split: str = "train", validation_split: str | None = None
) -> tuple[datasets.Dataset, datasets.Dataset | None]:
    """Return the training split and, where there is one, the validation split.

    Raises:
        InputError: if a named split is absent, or the training split is empty.
    """
    for split in filter(None, (train_split, validation_split)):
        if split not in dataset:
            raise InputError(f"there is no split {split!r}; the data set has: {', '.join(dataset)}")
    if validation_split is None:
        validation_split = next((s for s in VALIDATION_SPLITS if s in dataset and s != train_split), None)
    validation = dataset[validation_split] if validation_split else None
    if len(dataset[train_split]) == 0:
        raise InputError(f"split {train_split!r} has no images")
    return dataset[train_split], validation if validation is not None and len(validation) else None


def find_image_column(dataset: datasets.Dataset, column: str | None = None) -> str:
    """Return the column of the images: the one named, the only image column, or one with a usual name.

    Raises:
        InputError: if it cannot be told; the message lists the columns.
    """
    return _find_column(dataset, column, "image_column", datasets.Image, IMAGE_COLUMNS)


def find_label_column(dataset: datasets.Dataset, column: str | None = None) -> str:
    """Return the column of the classes: the one named, the only `ClassLabel`, or one with a usual name.

    Raises:
        InputError: if there are no labels, or it cannot be told which they are; the message lists the columns.
    """
    if column is None and all(isinstance(feature, datasets.Image) for feature in dataset.features.values()):
        raise InputError(
            f"the images have no labels (columns: {', '.join(dataset.features)}), which probes, k-NN and fine-tuning "
            "need: put the images of each class into a folder of its own (train/cat/1.png); "
            "kamim reconstruct needs no labels"
        )
    return _find_column(dataset, column, "label_column", datasets.ClassLabel, LABEL_COLUMNS)


def _find_column(
    dataset: datasets.Dataset, column: str | None, argument: str, feature_type: type, usual_names: tuple[str, ...]
) -> str:
    columns = ", ".join(f"{key} ({describe(feature)})" for key, feature in dataset.features.items())
    if column is not None:
        if column not in dataset.features:
            raise InputError(f"there is no column {column!r} for --{argument}; the data set has: {columns}")
        return column
    typed = [key for key, feature in dataset.features.items() if isinstance(feature, feature_type)]
    if len(typed) == 1:
        return typed[0]
    named = [key for key in usual_names if key in (typed or dataset.features)]
    if named:
        return named[0]
    raise InputError(f"cannot tell which column is the {argument}; name it with --{argument}. Columns: {columns}")


def keep_encoded(dataset: datasets.Dataset, image_column: str) -> datasets.Dataset:
    """Return the data set with images as bytes or paths: this package decodes them, once. Arrays become NumPy files.

    Raises:
        InputError: if the column cannot hold images.
    """
    if array_dtype(dataset.features.get(image_column)):
        return encode_arrays(dataset, image_column)
    try:
        return dataset.cast_column(image_column, datasets.Image(decode=False))
    except (TypeError, ValueError, NotImplementedError, datasets.exceptions.DatasetsError) as error:
        kind = describe(dataset.features[image_column])
        raise InputError(
            f"column {image_column!r} holds {kind}, not images; name another with --image_column"
        ) from error


def load_source(source: SourceArguments) -> tuple[datasets.DatasetDict, str]:
    """Return all splits, with their images as bytes or paths, and the column of the images.

    Raises:
        InputError: if nothing can be loaded, or there are no images in it.
    """
    images = load_images(source.dataset_name, source.dataset_config_name, source.image_column, source.trust_data_files)
    return keep_splits_encoded(images, source.image_column)


def keep_splits_encoded(
    images: datasets.DatasetDict, image_column: str | None = None
) -> tuple[datasets.DatasetDict, str]:
    """Return all splits, with their images as bytes or paths, and the column of the images.

    Raises:
        InputError: if it cannot be told where the images are.
    """
    column = find_image_column(next(iter(images.values())), image_column)
    return datasets.DatasetDict({split: keep_encoded(rows, column) for split, rows in images.items()}), column


def encode_labels(
    dataset: datasets.Dataset, label_column: str, classes: datasets.ClassLabel | None = None
) -> datasets.Dataset:
    """Make the labels a `ClassLabel`: strings and whole numbers become classes from 0.

    Args:
        classes: of the training split, for another split of the same data.

    Raises:
        InputError: if a label is missing or no class, or `classes` lacks it.
    """
    check_labels(dataset, label_column)
    feature = dataset.features[label_column]
    if isinstance(feature, datasets.ClassLabel) and (classes is None or classes.names == feature.names):
        return dataset
    if classes is None:
        return dataset.class_encode_column(label_column)
    name_of = feature.int2str if isinstance(feature, datasets.ClassLabel) else str
    names = [name_of(value) for value in dataset[label_column]]
    unknown = sorted(set(names) - set(classes.names))
    if unknown:
        raise InputError(f"the validation split has labels that training lacks: {', '.join(unknown[:5])}")
    codes = [classes.str2int(name) for name in names]
    return dataset.remove_columns(label_column).add_column(label_column, codes).cast_column(label_column, classes)


def hold_out(
    dataset: datasets.Dataset, label_column: str, fraction: float, seed: int
) -> tuple[datasets.Dataset, datasets.Dataset]:
    """Split off a share of the images, in proportion to the classes if these are large enough."""
    counts = np.bincount(dataset[label_column], minlength=dataset.features[label_column].num_classes)
    held_out = math.ceil(fraction * len(dataset))
    can_stratify = counts[counts > 0].min() > 1 and min(held_out, len(dataset) - held_out) >= (counts > 0).sum()
    parts = dataset.train_test_split(fraction, seed=seed, stratify_by_column=label_column if can_stratify else None)
    return parts["train"], parts["test"]


@dataclass(frozen=True)
class LabelledImages:
    """Training and validation images with classes.

    Args:
        train, validation: the rows; their `label_column` is a `ClassLabel`.
        image_column, label_column: their columns.
        classes: of the labels.
    """

    train: datasets.Dataset
    validation: datasets.Dataset
    image_column: str
    label_column: str
    classes: datasets.ClassLabel


def load_labelled_images(
    args: DataArguments, label_column: str | None, validation_fraction: float, seed: int
) -> LabelledImages:
    """Load a data set for classification; without a validation split, a part of the training images is held out.

    Raises:
        InputError: if it cannot be loaded, has no labels, or fewer than 2 classes.
    """
    images = args.load()
    train, validation = choose_splits(images, args.train_split, args.validation_split)
    image_column = find_image_column(train, args.image_column)
    try:
        label_column = find_label_column(train, label_column)
    except InputError as error:
        raise InputError(f"{error}{uneven_folders(images.values(), image_column)}") from None
    check_class_folders(train, image_column, label_column)
    train = encode_labels(train, label_column)
    classes = train.features[label_column]
    if classes.num_classes < 2:
        raise InputError(f"column {label_column!r} has {classes.num_classes} class; classification needs 2 or more")
    if validation is None:
        logger.warning("No validation split: holding out %.0f%% of train", 100 * validation_fraction)
        train, validation = hold_out(train, label_column, validation_fraction, seed)
    else:
        validation = encode_labels(validation, label_column, classes)
    return LabelledImages(train, validation, image_column, label_column, classes)


def low_shot(dataset: datasets.Dataset, label_column: str, fraction: float, seed: int) -> datasets.Dataset:
    """Return a share of the images with equally many of every class: at least one, at most all of the class."""
    labels = np.asarray(dataset[label_column])
    classes = np.unique(labels)
    per_class = max(1, round(fraction * len(labels) / len(classes)))
    rng = np.random.default_rng(seed)
    rows = [rng.permutation(np.flatnonzero(labels == label))[:per_class] for label in classes]
    return dataset.select(np.sort(np.concatenate(rows)))


def subsample(dataset: datasets.Dataset, max_samples: int | None, seed: int) -> datasets.Dataset:
    """Return at most `max_samples` rows, drawn at random: files are often sorted by class."""
    if max_samples is None or max_samples >= len(dataset):
        return dataset
    return dataset.shuffle(seed=seed).take(max_samples)
