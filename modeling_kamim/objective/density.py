"""Density of the cells of an image: averaged over a map, or resampled from a stored grid."""

from collections.abc import Sequence

import cv2
import numpy as np
import torch

from ..limits import height_and_width
from .weighting import _TINY


def cell_density(keypoint_map: np.ndarray, cell_size: int) -> np.ndarray:
    """Return Omega of Eq. 2: the mean of a map in every `cell_size` x `cell_size` cell.

    Args:
        keypoint_map: `(height, width)`, uint8, values {0, 1}; or float32 in [0, 1].
        cell_size: side of a cell (w_ps) in pixels; must divide height and width.

    Returns:
        `(height / cell_size, width / cell_size)`, float32 in [0, 1].

    Raises:
        ValueError: if `cell_size` does not divide the map.
    """
    height, width = keypoint_map.shape
    if height % cell_size or width % cell_size:
        raise ValueError(f"cell_size {cell_size} does not divide a {height}x{width} map")
    types = (np.uint16, np.uint32) if keypoint_map.dtype == np.uint8 else (np.float64, np.float64)
    columns = keypoint_map.reshape(height // cell_size, cell_size, width).sum(axis=1, dtype=types[0])
    sums = columns.reshape(height // cell_size, width // cell_size, cell_size).sum(axis=2, dtype=types[1])
    return sums.astype(np.float32) / np.float32(cell_size**2)


def grid_density(keypoint_map: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Return Omega of Eq. 2 in as many equal cells, whole pixels or not, by area averages.

    Args:
        keypoint_map: `(height, width)`, uint8, values {0, 1}, or float32 in [0, 1]; at least a pixel for each cell.

    Returns:
        `(rows, columns)`, float32 in [0, 1].
    """
    return cv2.resize(keypoint_map.astype(np.float32), (columns, rows), interpolation=cv2.INTER_AREA)


def resample_density(density: torch.Tensor, crop_box: torch.Tensor, num_cells: int | Sequence[int]) -> torch.Tensor:
    """Return the density in the cells of crops, by exact area averages of density grids of the whole images.

    Args:
        density: `(batch_size, rows, columns)`, float, in [0, 1], over the whole images.
        crop_box: `(batch_size, 4)`: top, left, bottom and right of the crops as fractions of the images, in [0, 1].
            A box with its bottom above its top, or its right before its left, mirrors the crop.
        num_cells: cells of the result on each side, or its rows and columns.

    Returns:
        `(batch_size, rows, columns)`, float32 in [0, 1].
    """
    num_rows, num_columns = height_and_width(num_cells)
    top, left, bottom, right = crop_box.float().unbind(1)
    rows = _overlaps(density.shape[1], top, bottom, num_rows)
    columns = _overlaps(density.shape[2], left, right, num_columns)
    # Autocast would round to 8 or 11 bits: at T = 0.1 an error of up to 3% of a weight.
    with torch.autocast(density.device.type, enabled=False):
        return (rows @ density.float() @ columns.transpose(1, 2)).clamp(0.0, 1.0)


def _overlaps(num_source: int, start: torch.Tensor, stop: torch.Tensor, num_target: int) -> torch.Tensor:
    """Return the share of each target interval that each source interval covers: `(batch, num_target, num_source)`."""
    steps = torch.linspace(0, 1, num_target + 1, device=start.device)
    edges = torch.lerp(start[:, None], stop[:, None], steps) * num_source
    lower, upper = torch.aminmax(torch.stack([edges[:, :-1], edges[:, 1:]]), dim=0)
    source = torch.arange(num_source, device=start.device)
    lengths = (torch.minimum(upper[..., None], source + 1) - torch.maximum(lower[..., None], source)).clamp(min=0.0)
    return lengths / lengths.sum(dim=2, keepdim=True).clamp(min=_TINY)
