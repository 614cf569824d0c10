"""Samples and batches of linear probing and fine-tuning (arXiv:2407.13873, section 4.1.1)."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import default_collate
from torchvision.transforms import v2
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from ..errors import InputError
from ..limits import ImageSize, check_choice
from ..models.pixel_range import PixelRange
from .decoding import decode_image
from .samples import channels_first
from .views import RandomView, View, crop_ratios

AUGMENTATIONS = ("none", "paper", "strong", "crop_flip")


class _NoiseErasing(v2.RandomErasing):
    """`RandomErasing` that fills with noise of ImageNet's mean and std, clipped to 0 to 255; timm's mode "pixel"."""

    def __init__(self, p: float):
        super().__init__(p, value="random")

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        params = super().make_params(flat_inputs)
        if params["v"] is not None:
            mean, std = torch.tensor([IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD])[..., None, None]
            params["v"] = (255 * (mean + std * params["v"])).clamp(0, 255)
        return params


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


@dataclass(frozen=True)
class ClassificationTransform:
    """Callable from a row of a data set and a random generator to a sample with one of four augmentations.

    - "none": the whole image, resized to the model's size.
    - "paper": the same, then TrivialAugmentWide and RandomErasing.
    - "strong": as SimMIM's fine-tuning (arXiv:2111.09886, the authors' `config.py`): random crop of 8% to 100%,
      horizontal flip, RandAugment, RandomErasing with noise. torchvision lacks their RandAugment, timm's
      rand-m9-mstd0.5-inc1: each of its two operations has a chance of one half, at level 9 (with noise) of 10. Here
      `RandAugment(num_ops=2, magnitude=9)` always applies both, at level 9 of 30.
    - "crop_flip": that crop and flip alone, as MAE's linear probe (arXiv:2111.06377, the authors' `main_linprobe.py`).

    Every resize is bilinear without antialias, as in the paper's released code (SimMIM and MAE crop bicubically).

    Args:
        image_column, label_column: columns of the row; no labels where the latter is None.
        image_size: of the result in pixels.
        augmentation: one of the four; validation takes "none".
        pixel_range: by which images of more than 8 bits are scaled; None for each image's own.
        num_channels: that the model takes.

    Raises:
        InputError: for an unknown augmentation, or one that these channels do not have.
    """

    image_column: str
    label_column: str | None
    image_size: ImageSize
    augmentation: str
    pixel_range: PixelRange | None = None
    num_channels: int = 3

    def __post_init__(self):
        check_augmentation(self.augmentation, self.num_channels)

    def __call__(self, row: dict[str, Any], rng: Random) -> dict[str, Any]:
        """Draw one sample.

        Returns:
            pixel_values `(num_channels, height, width)`, uint8, or float32 in [0, 255] with a pixel range where colors
            are not distorted; labels int; for "paper" and "strong" also mixing_seed int,
            by which `MixingCollator` mixes the batch.
        """
        image = decode_image(row[self.image_column], pixel_range=self.pixel_range, num_channels=self.num_channels)
        height, width = image.shape[:2]
        crops = self.augmentation in ("strong", "crop_flip")
        view = self._random_view(height, width, rng) if crops else View.whole(height, width)
        pixels = view.of_image(image, self.image_size)
        sample = {} if self.label_column is None else {"labels": row[self.label_column]}
        if self.augmentation not in _DISTORTIONS:
            return {**sample, "pixel_values": channels_first(pixels)}
        augment_seed, mixing_seed = rng.getrandbits(62), rng.getrandbits(62)
        if pixels.dtype != np.uint8:
            pixels = np.rint(pixels).astype(np.uint8)  # torchvision distorts images of 8 bits
        with _seeded(augment_seed):
            pixel_values = _DISTORTIONS[self.augmentation](Image.fromarray(pixels))
        return {**sample, "pixel_values": pixel_values, "mixing_seed": mixing_seed}

    @property
    def _random_view(self) -> RandomView:
        return RandomView(0.08, crop_ratios(self.image_size), horizontal_flip=0.5, vertical_flip=0.0)


def check_augmentation(augmentation: str, num_channels: int) -> None:
    """Raise InputError for an unknown augmentation, or one that distorts colors where there is no RGB."""
    check_choice("augmentation", augmentation, AUGMENTATIONS)
    if augmentation in _DISTORTIONS and num_channels != 3:
        raise InputError(
            f"augmentation is {augmentation}, which distorts RGB, and the model takes {num_channels} channel(s): give "
            "--augmentation none or crop_flip, or --protocol cached, knn or mae"
        )


class MixingCollator:
    """Callable from samples to a batch; samples of "paper" and "strong" pass CutMix or MixUp with equal chance.

    The first sample's seed decides, so a batch does not depend on workers, processes or resuming.

    Args:
        num_labels: number of classes.
        augmentation: of the samples; MixUp draws from Beta(0.8, 0.8) for "strong", as SimMIM, and from Beta(1, 1) for
            "paper".
    """

    def __init__(self, num_labels: int, augmentation: str = "paper"):
        check_choice("augmentation", augmentation, AUGMENTATIONS)
        alpha = 0.8 if augmentation == "strong" else 1.0
        self.mix = v2.RandomChoice([v2.CutMix(num_classes=num_labels), v2.MixUp(alpha=alpha, num_classes=num_labels)])

    def __call__(self, samples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Return the batch of some samples.

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


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed the global CPU generator, which torchvision's transforms use; restore it in the end."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield
