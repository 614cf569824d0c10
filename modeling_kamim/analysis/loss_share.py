"""Share of the masked loss by quantile of the keypoint weights."""

import numpy as np

NUM_QUANTILES = 10


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
