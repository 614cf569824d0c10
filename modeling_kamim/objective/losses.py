"""The weighted masked L1 loss (arXiv:2407.13873, Eq. 3)."""

import math

import torch

from .masking import upsample


def masked_l1(
    reconstruction: torch.Tensor, target: torch.Tensor, mask: torch.Tensor, weights: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the mean of `W * |reconstruction - target|` over the masked pixels and channels (Eq. 3).

    Without weights it is SimMIM's loss (Eq. 1), as transformers' models have it. The error is first summed over the
    largest cells that divide both a mask token and a weight cell: no mask or weight is enlarged to pixels.

    Args:
        reconstruction: `(batch_size, channels, height, width)`.
        target: `(batch_size, channels, height, width)`, normalized pixels.
        mask: `(batch_size, rows, columns)`, bool, True where masked; the grid divides the image.
        weights: `(batch_size, weight_rows, weight_columns)`, one for each weight cell; the grid divides the image.
            No gradient flows into them.

    Returns:
        Two scalars, float32 or wider: the weighted loss, and the same mean without weights.

    Raises:
        ValueError: if the mask or the weights do not divide the image.
    """
    batch_size, channels, height, width = target.shape
    grids = [mask.shape[1:]] if weights is None else [mask.shape[1:], weights.shape[1:]]
    for rows, columns in grids:
        if height % rows or width % columns:
            raise ValueError(f"a {rows}x{columns} grid of masks or weights does not divide a {height}x{width} image")
    rows = math.lcm(*(grid[0] for grid in grids))
    columns = math.lcm(*(grid[1] for grid in grids))

    difference = reconstruction.to(torch.promote_types(reconstruction.dtype, torch.float32)) - target
    cells = difference.abs().reshape(batch_size, channels, rows, height // rows, columns, width // columns)
    masked_error = cells.sum(dim=(1, 3, 5)) * upsample(mask, rows, columns)  # (batch_size, rows, columns)

    masked_pixels = mask.sum() * (height // mask.shape[1]) * (width // mask.shape[2])
    scale = 1.0 / (channels * masked_pixels.clamp(min=1)).to(masked_error.dtype)
    unweighted = masked_error.sum() * scale
    if weights is None:
        return unweighted, unweighted
    weights = weights.detach().to(masked_error.dtype)
    return (masked_error * upsample(weights, rows, columns)).sum() * scale, unweighted
