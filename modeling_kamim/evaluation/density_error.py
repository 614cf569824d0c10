"""Error of the masked patches where keypoints are few, and where they are many."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch

from ..errors import InputError
from ..models.masked_image_modeling import KamimForMaskedImageModeling
from ..models.sizes import patch_grid
from ..objective.density import resample_density
from ..objective.masking import upsample

NUM_PARTS = 4


@torch.no_grad()
def density_error(
    model: KamimForMaskedImageModeling,
    batches: Iterable[dict[str, Any]],
    gather: Callable[[torch.Tensor], torch.Tensor] = lambda patches: patches,
) -> dict[str, list[float]]:
    """Return the mean absolute error of the masked patches, for each quarter of them in the order of their density.

    Args:
        model: put into evaluation mode; the error is in the units of its target.
        batches: pixel_values, normalized, bool_masked_pos, and keypoint_density and crop_box of `resample_density`.
        gather: from the patches of this process, with images first, to those of all.

    Returns:
        `l1`, four numbers from the fewest keypoints to the most, and `density`, the mean density of these patches.

    Raises:
        InputError: if there are no images.
    """
    model.eval()
    parts = [gather(_patches(model, batch)).cpu().numpy() for batch in batches]
    if not parts:
        raise InputError("there are no images to score reconstructions on")
    error, density, is_masked = np.concatenate(parts).reshape(-1, 3).T
    error, density = error[is_masked > 0], density[is_masked > 0]
    quarters = np.array_split(np.argsort(density, kind="stable"), NUM_PARTS)
    return {
        "l1": [float(error[quarter].mean()) for quarter in quarters],
        "density": [float(density[quarter].mean()) for quarter in quarters],
    }


def _patches(model: KamimForMaskedImageModeling, batch: dict[str, Any]) -> torch.Tensor:
    """Return error, density and mask of the patches, `(batch_size, num_patches, 3)`."""
    pixels, mask, grid = batch["pixel_values"], batch["bool_masked_pos"], patch_grid(model.config)
    reconstruction = model(pixel_values=pixels, bool_masked_pos=mask).reconstruction
    target, statistics = model.target(pixels)
    if statistics is not None:
        reconstruction = (reconstruction - statistics[0]) / statistics[1]
    density = resample_density(batch["keypoint_density"].float() / 255, batch["crop_box"], grid)
    errors, is_masked, density = cell_errors(reconstruction, target, mask.unflatten(1, grid), density)
    return torch.stack([errors, density, is_masked.float()], dim=2)


def cell_errors(
    reconstruction: torch.Tensor, target: torch.Tensor, mask: torch.Tensor, weights: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return error, mask and weights on the largest cells that divide both a mask token and a weight cell.

    Args:
        reconstruction, target: `(batch_size, channels, height, width)`.
        mask: `(batch_size, rows, columns)`, bool, True where masked.
        weights: `(batch_size, weight_rows, weight_columns)`.

    Returns:
        Mean absolute error of each cell, mask and weights, each `(batch_size, number of cells)`.
    """
    rows, columns = (math.lcm(mask.shape[axis], weights.shape[axis]) for axis in (1, 2))
    difference = (reconstruction.float() - target.float()).abs()
    errors = difference.unflatten(3, (columns, -1)).unflatten(2, (rows, -1)).mean(dim=(1, 3, 5))
    return errors.flatten(1), upsample(mask, rows, columns).flatten(1), upsample(weights, rows, columns).flatten(1)
