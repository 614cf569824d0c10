"""Make samples of masked image modeling from the rows of a data set.

Crop, flips, mask and density of a sample depend on its random generator alone, and image and density always share one
`View`.
"""

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from random import Random
from typing import Any

import cv2
import datasets
import numpy as np
import torch

from ..limits import ImageSize, height_and_width
from ..models.pixel_range import PixelRange
from ..objective.density import cell_density
from ..objective.keypoints import KeypointDetector, keypoint_image
from ..objective.masking import block_mask, random_order
from .decoding import UNNAMED, BadImageError, bad_density, decode_image
from .fingerprint import content_fingerprint
from .stored_density import DensityDetector, DensityFormat
from .views import RandomView, View


@dataclass(frozen=True)
class MaskedImageTransform:
    """Callable from a row and a random generator to a sample.

    Pixels stay as they are decoded and stored densities whole: the device normalizes, crops and weights a batch at once
    (`MaskedImageTrainer`). Without `detector` and `densities` there are no densities, as in SimMIM.

    Args:
        image_column: column of the image, as `datasets.Image(decode=False)`.
        image_size: of the result in pixels.
        patch_size: side of a token of the model in pixels.
        mask_patch_size, mask_ratio: of `block_mask`.
        weight_patch_size: side of a weight cell (w_ps) in pixels.
        random_view: crop and flips; None shows the whole image.
        detector: run on the finished crop ("online").
        densities: whose stored densities of the whole images are read ("map").
        shuffle_cells: draw a permutation of the weight cells, for the weighting "shuffled".
        order_blocks: draw a permutation of the masked blocks, for masks that are hard to fill in.
        pixel_range: by which images of more than 8 bits are scaled; None for each image's own.
        num_channels: that the model takes.
        keypoint_channel: in which the `detector` looks; None as in `keypoint_image`.
        jpeg_draft: decode JPEGs at a part of their size where every crop of them stays as large as `image_size`.
    """

    image_column: str
    image_size: ImageSize
    patch_size: int
    mask_patch_size: int
    mask_ratio: float
    weight_patch_size: int
    random_view: RandomView | None
    detector: KeypointDetector | None = None
    densities: DensityDetector | None = None
    shuffle_cells: bool = False
    order_blocks: bool = False
    pixel_range: PixelRange | None = None
    num_channels: int = 3
    keypoint_channel: int | None = None
    jpeg_draft: bool = False

    def whole_image(self) -> "MaskedImageTransform":
        """Return the transform to the pixels of the whole image, without densities."""
        return replace(self, random_view=None, detector=None, densities=None, shuffle_cells=False, order_blocks=False)

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of a row that are read."""
        return (self.image_column, self.densities.column) if self.densities else (self.image_column,)

    def __call__(self, row: dict[str, Any], rng: Random) -> dict[str, torch.Tensor]:
        """Draw one sample.

        Returns:
            pixel_values `(num_channels, height, width)`, uint8, or float32 in [0, 255] with a pixel range;
            bool_masked_pos `(num_patches,)` bool. With a detector also keypoint_density `(rows, columns)` float32, of
            the weight cells of the crop. With stored densities keypoint_density `(grid, grid)` uint8, of the whole
            image, and crop_box `(4,)` float32 (see `resample_density`). With shuffled cells cell_order
            `(number of cells,)` int64, with ordered blocks block_order `(number of blocks,)` int64.

        Raises:
            BadImageError: if the image cannot be decoded, or its stored density cannot be used.
        """
        image = self.decode(row[self.image_column])
        view = self.draw_view(image, rng)
        pixels = view.of_image(image, self.image_size)
        mask = block_mask(self.image_size, self.mask_patch_size, self.patch_size, self.mask_ratio, rng)
        sample = {"pixel_values": channels_first(pixels), "bool_masked_pos": torch.from_numpy(mask)}
        if self.detector is not None:
            keypoints = self.detector(keypoint_image(pixels, self.keypoint_channel))
            sample["keypoint_density"] = torch.from_numpy(cell_density(keypoints, self.weight_patch_size))
        elif self._stored is not None:
            sample["keypoint_density"] = torch.from_numpy(self._density(self._stored, row))
            sample["crop_box"] = torch.from_numpy(np.array(view.crop_box(), np.float32))
        if self.shuffle_cells:
            sample["cell_order"] = self._order(self.weight_patch_size, rng)
        if self.order_blocks:
            sample["block_order"] = self._order(self.mask_patch_size, rng)
        return sample

    def decode(self, source: dict[str, Any] | None, name: str = "") -> np.ndarray:
        """Return the pixels from which a crop is taken, see `decode_image`."""
        return decode_image(
            source, name, self.pixel_range, self.num_channels, self._least_size if self.jpeg_draft else None
        )

    def _least_size(self, height: int, width: int) -> tuple[int, int]:
        """The size of an image at which its smallest crop has `image_size` pixels."""
        smallest = self.random_view.smallest(height, width) if self.random_view else (height, width)
        zooms = [side / least for side, least in zip(height_and_width(self.image_size), smallest, strict=True)]
        return math.ceil(height * zooms[0]), math.ceil(width * zooms[1])

    def _order(self, side: int, rng: Random) -> torch.Tensor:
        """Return a permutation of the squares of a side in pixels."""
        grid = (length // side for length in height_and_width(self.image_size))
        return torch.from_numpy(random_order(math.prod(grid), rng))

    @property
    def detection_size(self) -> ImageSize:
        """Size of the crops, in pixels, at which keypoints are detected."""
        return self.densities.image_size if self.densities else self.image_size

    def draw_view(self, image: np.ndarray, rng: Random) -> View:
        """Return a crop of an image, with its flips."""
        height, width = image.shape[:2]
        return self.random_view(height, width, rng) if self.random_view else View.whole(height, width)

    def _density(self, stored: DensityFormat, row: dict[str, Any]) -> np.ndarray:
        try:
            return stored.decode(row.get(stored.column))
        except ValueError as error:
            raise bad_density(row[self.image_column], "", str(error)) from None

    @cached_property
    def _stored(self) -> DensityFormat | None:
        return self.densities.format if self.densities else None


def channels_first(pixels: np.ndarray) -> torch.Tensor:
    """Turn a `(height, width, channels)` array into a contiguous `(channels, height, width)` tensor of its type."""
    planes = np.empty((pixels.shape[2], *pixels.shape[:2]), pixels.dtype)
    cv2.split(pixels, list(planes))
    return torch.from_numpy(planes)


def settle_worker() -> None:
    """Give a worker of a loader one thread and a process group of its own; outside of workers do nothing.

    A signal to the group of the run (Ctrl-C, `timeout`, Slurm) must reach the run alone: it saves and ends its workers.
    """
    if torch.utils.data.get_worker_info() is None:
        return
    cv2.setNumThreads(1)
    if hasattr(os, "setpgid"):  # not on Windows
        os.setpgid(0, 0)


class SampleDataset(torch.utils.data.Dataset):
    """Samples of the rows of a data set, each with its number as "sample_index".

    (seed, epoch, index) seed the generator of a sample. Crops, flips and masks do not depend on workers, processes or
    how far a loader reads ahead, so a resumed run sees the same samples.

    Args:
        rows: of the data set.
        transform: from a row and a `random.Random` to a sample.
        seed: of the run.
    """

    def __init__(self, rows: datasets.Dataset, transform: Callable[[dict[str, Any], Random], Any], seed: int):
        self.rows = rows
        self.transform = transform
        self.seed = seed
        self._epoch = torch.zeros(1, dtype=torch.int64).share_memory_()  # shared with the loader's workers

    def draw_for_epoch(self, epoch: int) -> None:
        """Draw new crops, flips and masks, also in workers that run already.

        It is not named `set_epoch`: accelerate's loaders call that with a count of their own, in evaluation too.
        """
        self._epoch.fill_(epoch)

    @property
    def epoch(self) -> int:
        """The epoch that samples are drawn for."""
        return int(self._epoch)

    @cached_property
    def content(self) -> str:
        """Fingerprint of the rows, see `content_fingerprint`."""
        return content_fingerprint(self.rows, getattr(self.transform, "num_channels", 3))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[Any]:
        """Return a batch of samples; reading its rows at once makes it fast."""
        settle_worker()
        epoch = self.epoch
        indices = [range(len(self))[index] for index in indices]
        return [
            {**self._sample(row, epoch, index), "sample_index": index}
            for row, index in zip(self.rows.__getitems__(indices), indices, strict=True)
        ]

    def _sample(self, row: dict[str, Any], epoch: int, index: int) -> Any:
        try:
            return self.transform(row, Random(self.seed << 128 | epoch << 64 | index))
        except BadImageError as error:
            chosen = self.rows._indices
            place = index if chosen is None else chosen.column(0)[index].as_py()
            message = str(error).replace(UNNAMED, f"the image in row {place}")
            raise BadImageError(message, error.reason) from None
