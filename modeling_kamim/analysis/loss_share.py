"""Share of the masked loss by quantile of the keypoint weights."""

import math

import numpy as np
import torch

from ..objective.masking import upsample

NUM_QUANTILES = 10


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


def loss_shares(loss: np.ndarray, weights: np.ndarray, num_quantiles: int = NUM_QUANTILES) -> np.ndarray:
    """Return the share of an image's loss in each quantile of its cells, ordered by weight.

    Cells of equal weight cannot be ordered: each gets the mean loss of them all, so equal weights give equal shares.

    Args:
        loss: `(num_cells,)`, >= 0, not all 0: of the masked cells.
        weights: `(num_cells,)`.
        num_quantiles: equal parts of the cells; they may cut through a cell.

    Returns:
        `(num_quantiles,)`, float64, sums to 1; the cells of least weight first.
    """
    loss = np.asarray(loss, np.float64)
    _, group, counts = np.unique(weights, return_inverse=True, return_counts=True)
    ends = np.concatenate([[0.0], np.cumsum(counts)])
    totals = np.concatenate([[0.0], np.cumsum(np.bincount(group.ravel(), weights=loss))])
    edges = np.linspace(0, len(loss), num_quantiles + 1)
    return np.diff(np.interp(edges, ends, totals)) / totals[-1]
