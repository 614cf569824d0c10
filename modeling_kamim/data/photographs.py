"""The embedded data set: tiles of the photographs in the wheel of scikit-image. Nothing is downloaded."""

from collections.abc import Iterator
from pathlib import Path

import datasets
import numpy as np
import skimage.data
from PIL import Image

from .decoding import decode_image, encode_png

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
STRIDE = 32
_VERSION = 1


def load_photographs() -> datasets.DatasetDict:
    """Return tiles of 96 x 96 px of 15 photographs, with the columns `image` and `label`: the photograph.

    Training tiles come from the left 70% of a photograph, validation tiles from the rest: no pixel is in both. Tiles of
    one split overlap.
    """
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(PHOTOGRAPHS))})
    return datasets.DatasetDict(
        {
            split: datasets.Dataset.from_generator(
                _tiles, features=features, gen_kwargs={"split": split, "version": _VERSION}, split=split
            )
            for split in ("train", "validation")
        }
    )


def _tiles(split: str, version: int) -> Iterator[dict]:
    for label, file in PHOTOGRAPHS.items():
        photograph = _read(file)
        boundary = round(photograph.shape[1] * TRAIN_SHARE)
        region = photograph[:, :boundary] if split == "train" else photograph[:, boundary:]
        for top in range(0, region.shape[0] - TILE_SIZE + 1, STRIDE):
            for left in range(0, region.shape[1] - TILE_SIZE + 1, STRIDE):
                tile = encode_png(region[top : top + TILE_SIZE, left : left + TILE_SIZE])
                yield {"image": {"bytes": tile, "path": None}, "label": label}


def _read(file: str) -> np.ndarray:
    path = Path(skimage.data.__file__).with_name(file)
    photograph = Image.fromarray(decode_image({"bytes": None, "path": str(path)}))
    scale = SHORT_SIDE / min(photograph.size)
    return np.asarray(photograph.resize((round(photograph.width * scale), round(photograph.height * scale))))
