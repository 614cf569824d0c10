"""Errors of single patches, and how well predictions rank them (Hard Patches Mining, arXiv:2304.05919)."""

import torch
from torch.nn import functional

from .masking import upsample


def patch_losses(
    reconstruction: torch.Tensor, target: torch.Tensor, grid: tuple[int, int], loss: str = "l1"
) -> torch.Tensor:
    """Return the mean error of every patch, masked or not: `(batch_size, rows * columns)`, float32.

    Args:
        reconstruction, target: `(batch_size, channels, height, width)`.
        grid: rows and columns of patches.
        loss: "l1" or "mse".
    """
    difference = reconstruction.float() - target
    error = difference.abs() if loss == "l1" else difference.square()
    rows, columns = grid
    return error.unflatten(3, (columns, -1)).unflatten(2, (rows, -1)).mean(dim=(1, 3, 5)).flatten(1)


def ranking_loss(scores: torch.Tensor, losses: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return how badly scores rank the losses of the masked patches, and the share of pairs in the right order.

    The mean of `-log sigmoid(score_i - score_j)` over the pairs of masked patches of an image with loss_i > loss_j
    (arXiv:2304.05919, section 3.2: the predictor learns which of two patches is harder, not by how much).

    Args:
        scores: `(batch_size, num_patches)`; gradients flow into them alone.
        losses: like `scores`.
        mask: like `scores`, bool, True where masked.

    Returns:
        Two scalars, float32; both 0 where there is no such pair.
    """
    scores, losses = scores.float(), losses.detach()
    is_harder = (losses[:, :, None] > losses[:, None, :]) & mask[:, :, None] & mask[:, None, :]
    margin = scores[:, :, None] - scores[:, None, :]
    num_pairs = is_harder.sum().clamp(min=1)
    error = torch.where(is_harder, functional.softplus(-margin), 0.0).sum() / num_pairs
    return error, ((margin > 0) & is_harder).sum() / num_pairs


def ranks(scores: torch.Tensor) -> torch.Tensor:
    """Return the share of the other patches of an image with a lower score: like `scores`, float32 in [0, 1].

    Args:
        scores: `(batch_size, num_patches)`; of equal ones the earlier has the lower rank.
    """
    order = scores.argsort(dim=1, stable=True).argsort(dim=1)
    return order.float() / max(1, scores.shape[1] - 1)


def hard_mask(scores: torch.Tensor, order: torch.Tensor, num_masked: int, share: float) -> torch.Tensor:
    """Return masks of which a share are the blocks with the highest scores, and the others are random.

    Easy to hard (arXiv:2304.05919, section 3.3): the share grows during the training.

    Args:
        scores: `(batch_size, num_blocks)`.
        order: `(batch_size, num_blocks)`, int64, a random permutation of the blocks for each image.
        num_masked: blocks to mask in each image.
        share: of them by score, in [0, 1]; rounded down.

    Returns:
        `(batch_size, num_blocks)`, bool, True where masked.
    """
    hard = scores.topk(int(share * num_masked), dim=1).indices
    place = order.argsort(dim=1).scatter(1, hard, -1)  # the hard ones come first, then the random order
    masked = place.argsort(dim=1)[:, :num_masked]
    return torch.zeros_like(scores, dtype=torch.bool).scatter(1, masked, True)


def on_grid(patches: torch.Tensor, grid: tuple[int, int], wanted: tuple[int, int]) -> torch.Tensor:
    """Return values of patches on another grid, by area averages: `(batch_size, rows, columns)`, float32.

    Args:
        patches: `(batch_size, rows * columns)` of `grid`, float.
        wanted: rows and columns of the result.
    """
    cells = patches.float().unflatten(1, grid)
    if all(new % old == 0 for new, old in zip(wanted, grid, strict=True)):
        return upsample(cells, *wanted)
    return functional.interpolate(cells[:, None], size=wanted, mode="area")[:, 0]
