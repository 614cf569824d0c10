"""The weighted error of the masked pixels (arXiv:2407.13873, Eq. 3)."""

import math

import torch

from .masking import upsample


def masked_loss(
    reconstruction: torch.Tensor,
    target: torch.Tensor,
    mask: torch.Tensor,
    weights: torch.Tensor | None = None,
    loss: str = "l1",
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the mean over masked pixels and channels of `W * |reconstruction - target|` (Eq. 3), or `W * (...)^2`.

    Without weights "l1" is SimMIM's loss (Eq. 1) and "mse" MAE's (arXiv:2111.06377), both equal to those of
    transformers' models. The error is summed once over the largest cells that divide both a mask token and a weight
    cell, so no mask or weight is blown up to pixels.

    Args:
        reconstruction: `(batch_size, channels, height, width)`.
        target: `(batch_size, channels, height, width)`, normalized pixels.
        mask: `(batch_size, rows, columns)`, bool, True where masked; the tokens divide the image.
        weights: `(batch_size, weight_rows, weight_columns)`, constant within a cell; cells of any size that divides
            the image. Held constant: no gradient flows into them.
        loss: "l1" or "mse".

    Returns:
        Two scalars, float32 or wider: the weighted loss, and the mean absolute error without weights.

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
    cells = difference.reshape(batch_size, channels, rows, height // rows, columns, width // columns)
    masked_pixels = mask.sum() * (height // mask.shape[1]) * (width // mask.shape[2])

    def masked_sums(error: torch.Tensor) -> torch.Tensor:
        return error.sum(dim=(1, 3, 5)) * upsample(mask, rows, columns)  # (batch_size, rows, columns)

    if loss == "l1":
        error = absolute = masked_sums(cells.abs())
    else:
        error = masked_sums(cells.square())
        with torch.no_grad():
            absolute = masked_sums(cells.abs())
    scale = 1.0 / (channels * masked_pixels.clamp(min=1)).to(error.dtype)
    if weights is not None:
        error = error * upsample(weights.detach().to(error.dtype), rows, columns)
    return error.sum() * scale, absolute.sum() * scale
