"""Images that are given as Python objects, in place of the name of a data set."""

import dataclasses
import io
import os
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import datasets
import numpy as np
from PIL import Image

from ..data.loading import DataArguments
from ..errors import InputError, printable

Images: TypeAlias = (
    str
    | os.PathLike
    | datasets.Dataset
    | datasets.DatasetDict
    | Mapping[str, Sequence]
    | Sequence[Image.Image | np.ndarray]
)
NAME = "images in memory"
_KINDS = (
    "a path, the id of a data set on the Hub, a datasets.Dataset or DatasetDict, a list of PIL images or arrays, or "
    'such a list with labels: {"image": [...], "label": [...]}'
)
_FORMATS = dict.fromkeys(("1", "L", "LA", "P", "RGB", "RGBA", "I;16"), "PNG")
_FORMATS |= dict.fromkeys(("I", "F", "CMYK"), "TIFF")


@dataclasses.dataclass
class GivenImages(DataArguments):
    """`DataArguments` whose data set is in memory."""

    splits: dataclasses.InitVar[datasets.DatasetDict | None] = None

    def __post_init__(self, splits: datasets.DatasetDict | None):
        super().__post_init__()
        self._splits = splits
        self.dataset_name = NAME

    def load(self) -> datasets.DatasetDict:
        return self._splits


def take_images(images: Images | None, data_args: DataArguments) -> DataArguments:
    """Return settings of the data that load these images.

    Args:
        images: see `splits_of`.
        data_args: the other settings.
    """
    if images is None or isinstance(images, str | os.PathLike):
        name = None if images is None else os.fspath(images)
        return dataclasses.replace(data_args, dataset_name=name)
    settings = {field.name: getattr(data_args, field.name) for field in dataclasses.fields(data_args)}
    return GivenImages(**settings, splits=splits_of(images))


def splits_of(images: Any) -> datasets.DatasetDict:
    """Return images that are in memory as splits; what has no splits is the split "train".

    Args:
        images: `Dataset`, `DatasetDict`, a list of PIL images or arrays, or a dictionary of columns, one of them such
            a list.

    Raises:
        InputError: if they are of another kind, or one of them is no image.
    """
    if isinstance(images, datasets.DatasetDict):
        return datasets.DatasetDict({split: rows.with_format(None) for split, rows in images.items()})
    if isinstance(images, datasets.Dataset):
        return datasets.DatasetDict({"train": images.with_format(None)})
    columns = images if isinstance(images, Mapping) else {"image": images}
    pictures = columns.get("image")
    if not isinstance(pictures, Sequence | np.ndarray) or isinstance(pictures, bytes) or not len(pictures):
        raise InputError(f"images is {_shown(images)}; give {_KINDS}")
    encoded = [_encode(image, place) for place, image in enumerate(pictures)]
    try:
        rows = datasets.Dataset.from_dict({**columns, "image": encoded})
    except (ValueError, TypeError) as error:
        raise InputError(f"the columns of images make no table: {error}") from error
    return datasets.DatasetDict({"train": rows.cast_column("image", datasets.Image(decode=False))})


def _encode(image: Any, place: int) -> dict[str, Any]:
    file = io.BytesIO()
    if isinstance(image, Image.Image):
        image = image if image.mode in _FORMATS else image.convert("RGB")
        image.save(file, _FORMATS[image.mode])
    else:
        try:
            np.save(file, np.asarray(image), allow_pickle=False)
        except ValueError:
            raise InputError(f"image {place} is {_shown(image)}; give {_KINDS}") from None
    return {"bytes": file.getvalue(), "path": None}


def _shown(value: Any) -> str:
    return f"{type(value).__name__} {printable(repr(value))[:80]}"
