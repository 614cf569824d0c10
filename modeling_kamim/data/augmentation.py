"""Samples and batches of linear probing and fine-tuning (arXiv:2407.13873, section 4.1.1)."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from random import Random
from typing import Any

import torch
from PIL import Image
from torch.utils.data import default_collate
from torchvision.transforms import v2
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from ..errors import InputError
from ..models.pixel_range import PixelRange
from .decoding import decode_image
from .samples import channels_first
from .views import RandomView, View

AUGMENTATIONS = ("none", "paper", "strong", "crop_flip")


class _NoiseErasing(v2.RandomErasing):
    """`RandomErasing` that leaves noise of ImageNet's mean and std, cut off at 0 and 255; timm's mode "pixel"."""

    def __init__(self, p: float):
        super().__init__(p, value="random")

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        params = super().make_params(flat_inputs)
        if params["v"] is not None:
            mean, std = (
                torch.tensor(values)[:, None, None] for values in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
            )
            params["v"] = (255 * (mean + std * params["v"])).clamp(0, 255)
        return params


_CROP = RandomView(min_scale=0.08, horizontal_flip=0.5, vertical_flip=0.0)
_DISTORTIONS = {
    "paper": v2.Compose(
        [
            v2.TrivialAugmentWide(num_magnitude_bins=31),
            v2.PILToTensor(),
            v2.RandomErasing(p=0.5, scale=(0.02, 0.33), ratio=(0.3, 3.3)),
        ]
    ),
    "strong": v2.Compose([v2.RandAugment(num_ops=2, magnitude=9), v2.PILToTensor(), _NoiseErasing(p=0.25)]),
}
_MIXUP_ALPHA = {"paper": 1.0, "strong": 0.8}


@dataclass(frozen=True)
class ClassificationTransform:
    """From a row of a data set to a sample of one of four augmentations.

    - "none": resize of the whole image to a square.
    - "paper": the same resize, then TrivialAugmentWide and RandomErasing.
    - "strong": after SimMIM's fine-tuning (arXiv:2111.09886, the authors' `config.py`): random crop of 8% to 100% and
      horizontal flip, RandAugment, RandomErasing with noise. Their RandAugment, timm's rand-m9-mstd0.5-inc1, has no
      twin in torchvision: there each of two operations happens by half a chance, at level 9 (with noise) of 10; with
      `RandAugment(num_ops=2, magnitude=9)` here both happen, at level 9 of 30.
    - "crop_flip": that crop and flip alone, as in MAE's linear probe (arXiv:2111.06377, the authors'
      `main_linprobe.py`).

    Every resize is bilinear without antialias, as in the paper's released code (SimMIM and MAE crop bicubically).

    Args:
        image_column, label_column: columns of the row.
        image_size: side of the result in pixels.
        augmentation: one of the four; validation takes "none".
        pixel_range: by which images of more than 8 bits are scaled; None for each image's own.
    """

    image_column: str
    label_column: str
    image_size: int
    augmentation: str
    pixel_range: PixelRange | None = None

    def __post_init__(self):
        _check_augmentation(self.augmentation)

    def __call__(self, row: dict[str, Any], rng: Random) -> dict[str, Any]:
        """Draw one sample.

        Returns:
            pixel_values `(3, image_size, image_size)` uint8, labels int; for "paper" and "strong" also mixing_seed int,
            which asks `MixingCollator` to mix the batch.
        """
        image = decode_image(row[self.image_column], pixel_range=self.pixel_range)
        height, width = image.shape[:2]
        crops = self.augmentation in ("strong", "crop_flip")
        view = _CROP(height, width, rng) if crops else View.whole(height, width)
        pixels = view.of_image(image, self.image_size)
        sample = {"labels": row[self.label_column]}
        if self.augmentation not in _DISTORTIONS:
            return {**sample, "pixel_values": channels_first(pixels)}
        augment_seed, mixing_seed = rng.getrandbits(62), rng.getrandbits(62)
        with _seeded(augment_seed):
            pixel_values = _DISTORTIONS[self.augmentation](Image.fromarray(pixels))
        return {**sample, "pixel_values": pixel_values, "mixing_seed": mixing_seed}


class MixingCollator:
    """Batch of samples; those of "paper" and "strong" pass CutMix or MixUp with equal chance.

    Its randomness comes from the first sample's seed, so it does not depend on workers, processes or resumption.

    Args:
        num_labels: number of classes.
        augmentation: of the samples; "strong" mixes up by Beta(0.8, 0.8) as SimMIM does, "paper" by Beta(1, 1).
    """

    def __init__(self, num_labels: int, augmentation: str = "paper"):
        _check_augmentation(augmentation)
        alpha = _MIXUP_ALPHA.get(augmentation, 1.0)
        self.mix = v2.RandomChoice([v2.CutMix(num_classes=num_labels), v2.MixUp(alpha=alpha, num_classes=num_labels)])

    def __call__(self, samples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Collate.

        Returns:
            pixel_values `(batch_size, 3, height, width)`, in 0 to 255, uint8 or mixed float32; labels
            `(batch_size,)` int64 or mixed `(batch_size, num_labels)` float32.
        """
        batch = default_collate(samples)
        if "mixing_seed" not in batch:
            return batch
        with _seeded(int(batch.pop("mixing_seed")[0])):
            pixel_values, labels = self.mix(batch["pixel_values"].float(), batch["labels"])
        return {**batch, "pixel_values": pixel_values, "labels": labels}


def _check_augmentation(augmentation: str) -> None:
    if augmentation not in AUGMENTATIONS:
        raise InputError(f"augmentation is {augmentation!r}; allowed: {', '.join(AUGMENTATIONS)}")


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Run torchvision's transforms, which know only the global CPU generator, from a seed; put the generator back."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield
