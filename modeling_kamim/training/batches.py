"""Prepare a batch for the model: normalized pixels, keypoint weights."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from ..objective.density import cell_density, resample_density
from ..objective.keypoints import KeypointDetector, keypoint_image
from ..objective.weighting import CellWeighting


class Normalization(Protocol):
    """The attributes of an image processor that are read here."""

    image_mean: Sequence[float]
    image_std: Sequence[float]


def normalize(pixels: torch.Tensor, processor: Normalization) -> torch.Tensor:
    """Return normalized pixels, float32, of the same shape.

    Args:
        pixels: `(batch_size, channels, height, width)`, values 0 to 255.
        processor: has mean and standard deviation of each channel, for pixels in [0, 1].
    """
    mean = torch.tensor(processor.image_mean, device=pixels.device).view(1, -1, 1, 1)
    std = torch.tensor(processor.image_std, device=pixels.device).view(1, -1, 1, 1)
    return (pixels.float() / 255 - mean) / std


@dataclass(frozen=True)
class OnlineDensity:
    """Callable that detects on the pixels of a batch, for sources that run on the device and not in the loader.

    Args:
        detector: of the keypoints.
        cell_size: side of a weight cell (w_ps) in pixels.
        channel: in which keypoints are detected; None as in `keypoint_image`.
    """

    detector: KeypointDetector
    cell_size: int
    channel: int | None = None

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Return the batch with `keypoint_density` `(batch_size, rows, columns)`, float32, on the device of its pixels.

        Args:
            batch: `pixel_values` `(batch_size, channels, height, width)`, values 0 to 255.
        """
        pixels = batch["pixel_values"]
        images = [keypoint_image(image, self.channel) for image in pixels.permute(0, 2, 3, 1).cpu().numpy()]
        densities = [cell_density(found, self.cell_size) for found in self.detector.maps(images)]
        return {**batch, "keypoint_density": torch.from_numpy(np.stack(densities)).to(pixels.device)}


def weigh(batch: Mapping[str, Any], weighting: CellWeighting, num_cells: int | Sequence[int]) -> dict[str, Any]:
    """Return the batch with `keypoint_weights` `(batch_size, rows, columns)` in place of keypoint densities.

    Args:
        batch: `keypoint_density` of the weight cells, float in [0, 1]; or, beside `crop_box`, of the whole images,
            uint8 (see `resample_density`). `cell_order` where weights are shuffled.
        weighting: turns densities into weights (Eq. 2 of arXiv:2407.13873).
        num_cells: weight cells on each side of an image, or their rows and columns.
    """
    batch = dict(batch)
    density = batch.pop("keypoint_density")
    if "crop_box" in batch:
        density = resample_density(density.float() / 255, batch.pop("crop_box"), num_cells)
    batch["keypoint_weights"] = weighting(density, batch.pop("cell_order", None))
    return batch


def prepare_batch(batch: Mapping[str, Any], processor: Normalization, device: torch.device | str) -> dict[str, Any]:
    """Return a batch on the device, with normalized pixels.

    Args:
        batch: collated samples of `data.samples` or `data.augmentation`.
        processor: see `normalize`.
        device: to move the batch to.
    """
    batch = {name: tensor.to(device) for name, tensor in batch.items() if name != "sample_index"}
    batch["pixel_values"] = normalize(batch["pixel_values"], processor)
    return batch
