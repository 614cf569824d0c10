"""Folders of NumPy files, as `datasets` reads folders of images.

The builder has a module of its own: `datasets` replaces `Path`, `open` and `os.path` in the module of a builder.
"""

import os

import datasets
from datasets.data_files import DataFilesDict, get_data_patterns
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder

from .arrays import NPY


class ArrayFolder(ImageFolder):
    """The image folder of `datasets` (classes, splits, metadata files), which reads NumPy files too."""

    EXTENSIONS = [*ImageFolder.EXTENSIONS, NPY]


def holds_npy(folder: str) -> bool:
    """Return whether a NumPy file lies in a folder, at any depth."""
    return any(name.lower().endswith(NPY) for *_, names in os.walk(folder) for name in names)


def array_folder(folder: str) -> datasets.DatasetBuilder:
    """Return the builder of a folder of NumPy files, images, or both."""
    base = os.path.realpath(folder)
    files = DataFilesDict.from_patterns(get_data_patterns(base), base_path=base)
    return ArrayFolder(dataset_name=os.path.basename(base), base_path=base, data_files=files)
