"""From a row of a data set to a sample of masked image modelling.

Crop, flips, mask and density of a sample depend on its random generator alone, and image and density always share one
`View`.
"""

from dataclasses import dataclass
from functools import cached_property
from random import Random
from typing import Any

import cv2
import numpy as np
import torch

from .density import DensityDetector, DensityFormat
from .images import bad_density, decode_image
from .keypoints import KeypointDetector
from .masking import block_mask, random_order
from .pixel_range import PixelRange
from .views import RandomView, View
from .weighting import cell_density


@dataclass(frozen=True)
class MaskedImageTransform:
    """Callable from a row and a random generator to a sample.

    What the device can do for a whole batch is left to it (`MaskedImageTrainer`): pixels stay uint8, and densities are
    cut to the crop and turned into weights there. Without `detector` and `densities` there are no densities, as in
    SimMIM.

    Args:
        image_column: column of the image, as `datasets.Image(decode=False)`.
        image_size: side of the result in pixels.
        patch_size: side of a token of the model in pixels.
        mask_patch_size, mask_ratio: of the block mask.
        weight_patch_size: side of a weight cell (w_ps) in pixels.
        random_view: crop and flips; None shows the whole image.
        detector: run on the finished crop ("online").
        densities: whose stored densities of the whole images are read ("map").
        shuffle_cells: draw a permutation of the weight cells, for the weighting "shuffled".
        pixel_range: by which images of more than 8 bits are scaled; None for each image's own.
    """

    image_column: str
    image_size: int
    patch_size: int
    mask_patch_size: int
    mask_ratio: float
    weight_patch_size: int
    random_view: RandomView | None
    detector: KeypointDetector | None = None
    densities: DensityDetector | None = None
    shuffle_cells: bool = False
    pixel_range: PixelRange | None = None

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of a row that are read."""
        return (self.image_column, self.densities.column) if self.densities else (self.image_column,)

    def __call__(self, row: dict[str, Any], rng: Random) -> dict[str, torch.Tensor]:
        """Draw one sample.

        Returns:
            pixel_values `(3, image_size, image_size)` uint8; bool_masked_pos `(num_patches,)` bool. With a detector
            also keypoint_density, float32, of the `(image_size / weight_patch_size,) * 2` cells of the crop; with a
            stored densities keypoint_density `(grid, grid)` uint8 of the whole image, and crop_box `(4,)` float32 (see
            `resample_density`); with shuffled cells cell_order `(number of cells,)` int64.

        Raises:
            BadImageError: if the image cannot be decoded, or its stored density is not the one that is read.
        """
        image = decode_image(row[self.image_column], pixel_range=self.pixel_range)
        height, width = image.shape[:2]
        view = self.random_view(height, width, rng) if self.random_view else View.whole(height, width)
        pixels = view.of_image(image, self.image_size)
        mask = block_mask(self.image_size, self.mask_patch_size, self.patch_size, self.mask_ratio, rng)
        sample = {"pixel_values": channels_first(pixels), "bool_masked_pos": torch.from_numpy(mask)}
        if self.detector is not None:
            sample["keypoint_density"] = torch.from_numpy(cell_density(self.detector(pixels), self.weight_patch_size))
        elif self._stored is not None:
            sample["keypoint_density"] = torch.from_numpy(self._density(self._stored, row))
            sample["crop_box"] = torch.from_numpy(np.array(view.crop_box(), np.float32))
        if self.shuffle_cells:
            num_cells = (self.image_size // self.weight_patch_size) ** 2
            sample["cell_order"] = torch.from_numpy(random_order(num_cells, rng))
        return sample

    def _density(self, stored: DensityFormat, row: dict[str, Any]) -> np.ndarray:
        try:
            return stored.decode(row.get(stored.column))
        except ValueError as error:
            raise bad_density(row[self.image_column], "", error) from None

    @cached_property
    def _stored(self) -> DensityFormat | None:
        return self.densities.format if self.densities else None


def channels_first(pixels: np.ndarray) -> torch.Tensor:
    """`(height, width, 3)` uint8 array to a `(3, height, width)` contiguous tensor."""
    planes = np.empty((3, *pixels.shape[:2]), np.uint8)
    cv2.split(pixels, list(planes))
    return torch.from_numpy(planes)
