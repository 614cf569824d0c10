"""Prepare a batch for the model: normalized pixels, keypoint weights."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch

from ..objective.density import resample_density
from ..objective.weighting import CellWeighting


class Normalization(Protocol):
    """What is read of an image processor."""

    image_mean: Sequence[float]
    image_std: Sequence[float]


def normalize(pixels: torch.Tensor, processor: Normalization) -> torch.Tensor:
    """Normalized pixels, float32.

    Args:
        pixels: `(batch_size, channels, height, width)`, values 0 to 255.
        processor: mean and deviation of each channel, for pixels in [0, 1].
    """
    mean = torch.tensor(processor.image_mean, device=pixels.device).view(1, -1, 1, 1)
    std = torch.tensor(processor.image_std, device=pixels.device).view(1, -1, 1, 1)
    return (pixels.float() / 255 - mean) / std


def weigh(batch: Mapping[str, Any], weighting: CellWeighting, num_cells: int) -> dict[str, Any]:
    """The batch with `keypoint_weights` in place of keypoint densities.

    Args:
        batch: keypoint_density of the cells, float; or, with crop_box, of the whole images, uint8 (see
            `resample_density`); cell_order for shuffled weights.
        weighting: from densities to weights (Eq. 2 of arXiv:2407.13873).
        num_cells: weight cells on each side of an image.
    """
    batch = dict(batch)
    density = batch.pop("keypoint_density")
    if "crop_box" in batch:
        density = resample_density(density.float() / 255, batch.pop("crop_box"), num_cells)
    batch["keypoint_weights"] = weighting(density, batch.pop("cell_order", None))
    return batch


def prepare_batch(
    batch: Mapping[str, Any],
    processor: Normalization,
    device: torch.device | str,
    weighting: CellWeighting | None = None,
    num_cells: int = 24,
) -> dict[str, Any]:
    """A batch of samples on the device, normalized and weighted.

    Args:
        batch: of the transforms of `data.samples` or `data.augmentation`, collated.
        processor: see `normalize`.
        device: that the batch is moved to.
        weighting, num_cells: see `weigh`; no weights where None.
    """
    batch = {name: tensor.to(device) for name, tensor in batch.items() if name != "sample_index"}
    batch["pixel_values"] = normalize(batch["pixel_values"], processor)
    return batch if weighting is None else weigh(batch, weighting, num_cells)
