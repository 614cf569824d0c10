"""Samples and batches of linear probing and fine-tuning (arXiv:2407.13873, section 4.1.1)."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from random import Random
from typing import Any

import cv2
import torch
from PIL import Image
from torch.utils.data import default_collate
from torchvision.transforms import v2

from .images import decode_image
from .transforms import channels_first

_AUGMENT = v2.Compose(
    [
        v2.TrivialAugmentWide(num_magnitude_bins=31),
        v2.PILToTensor(),
        v2.RandomErasing(p=0.5, scale=(0.02, 0.33), ratio=(0.3, 3.3)),
    ]
)


@dataclass(frozen=True)
class ClassificationTransform:
    """From a row of a data set to a sample: resize to a square, and in training TrivialAugmentWide and RandomErasing.

    The resize is bilinear without antialias, as in the released code.

    Args:
        image_column, label_column: columns of the row.
        image_size: side of the result in pixels.
        augment: whether to augment; validation images are only resized.
    """

    image_column: str
    label_column: str
    image_size: int
    augment: bool

    def __call__(self, row: dict[str, Any], rng: Random) -> dict[str, Any]:
        """Draw one sample.

        Returns:
            pixel_values `(3, image_size, image_size)` uint8, labels int; with augmentation also mixing_seed int, which
            asks `MixingCollator` to mix the batch.
        """
        image = decode_image(row[self.image_column])
        pixels = cv2.resize(image, (self.image_size, self.image_size), interpolation=cv2.INTER_LINEAR)
        sample = {"labels": row[self.label_column]}
        if not self.augment:
            return {**sample, "pixel_values": channels_first(pixels)}
        augment_seed, mixing_seed = rng.getrandbits(62), rng.getrandbits(62)
        with _seeded(augment_seed):
            pixel_values = _AUGMENT(Image.fromarray(pixels))
        return {**sample, "pixel_values": pixel_values, "mixing_seed": mixing_seed}


class MixingCollator:
    """Batch of samples; samples that were augmented pass CutMix or MixUp with equal chance.

    Its randomness comes from the first sample's seed, so it does not depend on workers, processes or resumption.

    Args:
        num_labels: number of classes.
    """

    def __init__(self, num_labels: int):
        self.mix = v2.RandomChoice([v2.CutMix(num_classes=num_labels), v2.MixUp(num_classes=num_labels)])

    def __call__(self, samples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Collate.

        Returns:
            pixel_values `(batch_size, 3, height, width)`, in 0 to 255, uint8 or mixed float32; labels
            `(batch_size,)` int64 or mixed `(batch_size, num_labels)` float32.
        """
        batch = default_collate(samples)
        if "mixing_seed" not in batch:
            return batch
        with _seeded(int(batch["mixing_seed"][0])):
            pixel_values, labels = self.mix(batch["pixel_values"].float(), batch["labels"])
        return {"pixel_values": pixel_values, "labels": labels}


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Run torchvision's transforms, which know only the global CPU generator, from a seed; put the generator back."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield
