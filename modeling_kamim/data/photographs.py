"""The embedded data set: tiles of the photographs in scikit-image's wheel. Nothing is downloaded."""

import io
from collections.abc import Iterator
from pathlib import Path

import datasets
import numpy as np
import skimage.data
from PIL import Image

from .decoding import decode_image

PHOTOGRAPHS = {
    "astronaut": "astronaut.png",
    "brick": "brick.png",
    "camera": "camera.png",
    "cat": "chelsea.png",
    "clock": "clock_motion.png",
    "coffee": "coffee.png",
    "coins": "coins.png",
    "grass": "grass.png",
    "gravel": "gravel.png",
    "hubble": "hubble_deep_field.jpg",
    "moon": "moon.png",
    "motorcycle": "motorcycle_left.png",
    "retina": "retina.jpg",
    "rocket": "rocket.jpg",
    "tissue": "ihc.png",
}
TILE_SIZE = 96
TRAIN_SHARE = 0.7
SHORT_SIDE = 384
STRIDES = {"train": 32, "validation": 32}
_VERSION = 1


def load_photographs() -> datasets.DatasetDict:
    """Tiles of 96 x 96 px of 15 photographs; the label is the photograph.

    Training tiles come from the left 70% of a photograph and validation tiles from the rest, so that no pixel is in
    both. Tiles of one split overlap. Columns: `image` and `label`, as in any image classification data set.
    """
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(PHOTOGRAPHS))})
    return datasets.DatasetDict(
        {
            split: datasets.Dataset.from_generator(
                _tiles, features=features, gen_kwargs={"split": split, "version": _VERSION}, split=split
            )
            for split in STRIDES
        }
    )


def _tiles(split: str, version: int) -> Iterator[dict]:
    for label, file in PHOTOGRAPHS.items():
        photograph = _read(file)
        boundary = round(photograph.shape[1] * TRAIN_SHARE)
        region = photograph[:, :boundary] if split == "train" else photograph[:, boundary:]
        for top in range(0, region.shape[0] - TILE_SIZE + 1, STRIDES[split]):
            for left in range(0, region.shape[1] - TILE_SIZE + 1, STRIDES[split]):
                yield {"image": _png(region[top : top + TILE_SIZE, left : left + TILE_SIZE]), "label": label}


def _read(file: str) -> np.ndarray:
    path = Path(skimage.data.__file__).with_name(file)
    photograph = Image.fromarray(decode_image({"bytes": None, "path": str(path)}))
    scale = SHORT_SIDE / min(photograph.size)
    return np.asarray(photograph.resize((round(photograph.width * scale), round(photograph.height * scale))))


def _png(tile: np.ndarray) -> dict:
    buffer = io.BytesIO()
    Image.fromarray(tile).save(buffer, "png")
    return {"bytes": buffer.getvalue(), "path": None}
