"""Pictures of what a model does."""

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure

matplotlib.use("agg")

COLUMNS = ("original", "masked", "reconstruction", "weights")


def reconstruction_figure(
    pixel_values: torch.Tensor,
    mask: torch.Tensor,
    reconstruction: torch.Tensor,
    weights: torch.Tensor,
    mean: list[float],
    std: list[float],
) -> Figure:
    """Rows of original, masked image, reconstruction (visible pixels kept), and weights.

    Args:
        pixel_values: `(num_images, 3, height, width)`, normalised.
        mask: `(num_images, rows, columns)`, bool, True where masked.
        reconstruction: like `pixel_values`.
        weights: `(num_images, weight_rows, weight_columns)`.
        mean, std: of the normalisation, for each channel.
    """
    height, width = pixel_values.shape[2:]
    pixel_mask = mask.repeat_interleave(height // mask.shape[1], 1).repeat_interleave(width // mask.shape[2], 2)
    masked = pixel_mask.unsqueeze(-1).numpy()
    original = _to_rgb(pixel_values, mean, std)
    filled = np.where(masked, _to_rgb(reconstruction, mean, std), original)
    panels = (original, np.where(masked, 0.5, original), filled, weights.numpy())

    num_images = len(pixel_values)
    figure = Figure(figsize=(9.2, 2.25 * num_images + 0.3), layout="constrained")
    axes = figure.subplots(num_images, len(COLUMNS), squeeze=False)
    for row in range(num_images):
        for column, (title, images) in enumerate(zip(COLUMNS, panels, strict=True)):
            axis = axes[row][column]
            axis.set_axis_off()
            if row == 0:
                axis.set_title(title)
            if title == "weights":
                shown = axis.imshow(images[row], cmap="magma", vmin=1.0, vmax=max(1.01, float(images.max())))
            else:
                axis.imshow(images[row])
    figure.colorbar(shown, ax=axes[:, -1].tolist(), shrink=0.6, label="W")
    return figure


def _to_rgb(images: torch.Tensor, mean: list[float], std: list[float]) -> np.ndarray:
    channels_last = images.permute(0, 2, 3, 1).float().numpy()
    return (channels_last * np.asarray(std) + np.asarray(mean)).clip(0, 1)
