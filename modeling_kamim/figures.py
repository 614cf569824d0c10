"""Pictures of what a model does."""

from collections.abc import Mapping
from textwrap import fill

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


def comparison_figure(
    pixel_values: torch.Tensor,
    mask: torch.Tensor,
    reconstructions: Mapping[str, torch.Tensor],
    mean: list[float],
    std: list[float],
) -> Figure:
    """Reconstructions of the same images by several models, as in Figure 2 of arXiv:2407.13873.

    A column for each image; rows of originals, of masked images, and of each model's reconstructions (visible pixels
    kept), with their names on the left.

    Args:
        pixel_values: `(num_images, 3, height, width)`, normalised.
        mask: `(num_images, rows, columns)`, bool, True where masked.
        reconstructions: from a model's name to its output, like `pixel_values`.
        mean, std: of the normalisation, for each channel.
    """
    height, width = pixel_values.shape[2:]
    pixel_mask = mask.repeat_interleave(height // mask.shape[1], 1).repeat_interleave(width // mask.shape[2], 2)
    masked = pixel_mask.unsqueeze(-1).numpy()
    original = _to_rgb(pixel_values, mean, std)
    rows = [("original", original), ("masked", np.where(masked, 0.5, original))]
    for name, reconstruction in reconstructions.items():
        rows.append((fill(name, 16), np.where(masked, _to_rgb(reconstruction, mean, std), original)))

    num_images = len(pixel_values)
    names_width, side = 1.6, 1.6  # inches
    figure = Figure(figsize=(names_width + side * num_images, side * len(rows)))
    margins = {"left": names_width / figure.get_figwidth(), "right": 1, "bottom": 0, "top": 1}
    axes = figure.subplots(len(rows), num_images, squeeze=False, gridspec_kw=margins | {"wspace": 0.05, "hspace": 0.05})
    for row_of_axes, (name, images) in zip(axes, rows, strict=True):
        for axis, image in zip(row_of_axes, images, strict=True):
            axis.imshow(image)
            axis.set(xticks=[], yticks=[], frame_on=False)
        row_of_axes[0].set_ylabel(name, rotation=0, ha="right", va="center", labelpad=8)
    return figure


def _to_rgb(images: torch.Tensor, mean: list[float], std: list[float]) -> np.ndarray:
    channels_last = images.permute(0, 2, 3, 1).float().numpy()
    return (channels_last * np.asarray(std) + np.asarray(mean)).clip(0, 1)
