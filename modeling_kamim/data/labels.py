"""Check that a label column holds classes, and which folders these come from."""

import logging
import os
import re
from collections.abc import Iterable
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.compute as pc

from ..errors import InputError, printable

logger = logging.getLogger(__name__)
_CLASS_TYPES = re.compile(r"(large_)?string|bool|u?int\d+")
_MOST_SHOWN = 80  # characters of a value
_LISTED = 3  # names in a message


def describe(feature: Any) -> str:
    """Return the type of a column in one word."""
    return feature.dtype if isinstance(feature, datasets.Value) else type(feature).__name__


def check_labels(dataset: datasets.Dataset, label_column: str) -> None:
    """Raise InputError unless every image has one class: a string, a whole number, or a code of a `ClassLabel`."""
    feature = dataset.features[label_column]
    labels = dataset.select_columns([label_column]).with_format("arrow")[:][label_column]
    if not isinstance(feature, datasets.ClassLabel) and not _CLASS_TYPES.fullmatch(describe(feature)):
        found = printable(repr(next(iter(labels.drop_null().slice(0, 1).to_pylist()), None)))[:_MOST_SHOWN]
        hint = " (whole numbers become floats where some are missing)" if "float" in describe(feature) else ""
        raise InputError(
            f"column {label_column!r} holds {describe(feature)}, such as {found}{hint}; the class of an image is a "
            "string or a whole number. Name another column with --label_column, or write classes into this one"
        )
    missing = pc.is_null(labels)
    if isinstance(feature, datasets.ClassLabel):
        missing = pc.or_(missing, pc.fill_null(pc.equal(labels, -1), False))
    if pc.any(missing).as_py():
        raise InputError(
            f"{pc.sum(missing).as_py():,} of {len(dataset):,} images have no label in column {label_column!r} (None or "
            f"-1), the first in row {pc.index(missing, True).as_py()}. Leave them out, or name another column with "
            "--label_column, or another split with --train_split or --validation_split"
        )
    if isinstance(feature, datasets.ClassLabel):
        _check_codes(labels, feature, label_column)


def _check_codes(labels: pa.ChunkedArray, feature: datasets.ClassLabel, label_column: str) -> None:
    row = pc.index(pc.or_(pc.less(labels, 0), pc.greater_equal(labels, feature.num_classes)), True).as_py()
    if row >= 0:
        raise InputError(
            f"column {label_column!r} has the label {labels[row].as_py()} in row {row}, and the codes of its "
            f"{feature.num_classes} classes are 0 to {feature.num_classes - 1}. Correct the labels, or the names of "
            "the classes"
        )


def check_class_folders(dataset: datasets.Dataset, image_column: str, label_column: str) -> None:
    """Log which folders are the classes if folders lie in folders: `datasets` takes the innermost.

    Raises:
        InputError: if the innermost are numbers, such as years, and the outer ones are not.
    """
    feature = dataset.features[label_column]
    folders = image_folders([dataset], image_column)
    if not isinstance(feature, datasets.ClassLabel) or not folders:
        return
    top = os.path.commonpath(folders)
    parts = [os.path.relpath(folder, top).split(os.sep) for folder in folders]
    outer, inner = {names[0] for names in parts}, {names[-1] for names in parts}
    if max(map(len, parts)) == 1 or not inner <= set(feature.names):
        return
    deepest = max(folders, key=lambda folder: folder.count(os.sep))
    example = printable(os.path.relpath(deepest, top) + "/...")
    if all(map(str.isdigit, inner)) and not all(map(str.isdigit, outer)):
        raise InputError(
            f"the images lie in folders of folders ({example}), and `datasets` takes the innermost for the classes: "
            f"{_some(inner)}. If the classes are {_some(outer)}, move the images up into these; else give the classes "
            "in a metadata.csv with the columns file_name and label"
        )
    logger.warning("The classes are the innermost folders: %s of %s", _some(inner), example)


def uneven_folders(splits: Iterable[datasets.Dataset], image_column: str) -> str:
    """Return why folders of unequal depths give no labels, for the end of a message; "" if the depths are equal."""
    folders = image_folders(splits, image_column)
    depths = {folder.count(os.sep): folder for folder in folders}
    if len(depths) < 2 or len(set(map(os.path.basename, folders))) < 2:
        return ""
    top = os.path.commonpath(folders)
    examples = " and ".join(os.path.relpath(depths[depth], top) + "/" for depth in (min(depths), max(depths)))
    return (
        f". The folders of the images lie at different depths ({printable(examples)}), and `datasets` takes folders "
        "for classes only where all images lie equally deep: move them"
    )


def image_folders(splits: Iterable[datasets.Dataset], image_column: str) -> list[str]:
    """Return the folders of all images that are files; images whose bytes are in the data set have none."""
    folders: set[str] = set()
    for rows in splits:
        for chunk in rows.data.column(image_column).chunks:
            if pa.types.is_struct(chunk.type) and {"bytes", "path"} <= {field.name for field in chunk.type}:
                paths = pc.struct_field(chunk, "path").filter(pc.is_null(pc.struct_field(chunk, "bytes"))).drop_null()
                folders |= set(map(os.path.dirname, paths.to_pylist()))
    return sorted(folder for folder in folders if os.path.isabs(folder))


def _some(names: Iterable[str]) -> str:
    listed = sorted(names)
    return printable(", ".join(listed[:_LISTED])) + (", ..." if len(listed) > _LISTED else "")
