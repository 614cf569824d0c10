"""Draw reconstructions and curves of a pretraining; save figures."""

import contextlib
import logging
import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from ..errors import first_line
from ..objective.masking import upsample

logger = logging.getLogger(__name__)
# Distinct for the color-blind (Okabe and Ito), without the yellow that white paper swallows
LINE_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
WEIGHT_TICKS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 1000, 10000)
COLUMNS = ("original", "masked", "reconstruction", "weights")


def line_styles(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Return the style of each line: color and marker, dashed and dotted where the colors repeat."""
    dashes = ("-", "--", ":")
    return {
        name: {
            "color": LINE_COLORS[place % len(LINE_COLORS)],
            "marker": MARKERS[place % len(MARKERS)],
            "linestyle": dashes[place // len(LINE_COLORS) % len(dashes)],
        }
        for place, name in enumerate(names)
    }


def save_figure(draw: Callable[[], Figure], *files: Path, dpi: int = 100) -> bool:
    """Draw a figure, write it into files whose suffixes tell the formats, and return whether that succeeded.

    A picture that fails never ends a run: it is named in the log, and earlier files of its name are removed.
    """
    try:
        figure = draw()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing from")  # boxes stand for what the font lacks
            for file in files:
                figure.savefig(file, dpi=dpi)
    except Exception as error:  # whatever matplotlib, the images in it or the disk raise
        logger.warning("%s could not be drawn, and is left out: %s", files[0].name, first_line(error))
        with contextlib.suppress(OSError):
            for file in files:
                file.unlink(missing_ok=True)
        return False
    return True


def reconstruction_figure(
    pixel_values: torch.Tensor,
    mask: torch.Tensor,
    reconstruction: torch.Tensor,
    weights: torch.Tensor,
    mean: list[float],
    std: list[float],
) -> Figure:
    """Draw a row for each image: original, masked image, reconstruction (visible pixels kept), and weights.

    Args:
        pixel_values: `(num_images, channels, height, width)`, normalized; see `shown_in_rgb`.
        mask: `(num_images, rows, columns)`, bool, True where a patch is masked.
        reconstruction: like `pixel_values`.
        weights: `(num_images, weight_rows, weight_columns)`, above 0.
        mean, std: of the normalization, for each channel.
    """
    masked, original = pixels_of_mask(mask, pixel_values), to_rgb(pixel_values, mean, std)
    filled = np.where(masked, to_rgb(reconstruction, mean, std), original)
    panels = (original, np.where(masked, 0.5, original), filled, weights.numpy())

    num_images = len(pixel_values)
    figure = Figure(figsize=(9.2, 2.25 * num_images + 0.3), layout="constrained")
    axes = figure.subplots(num_images, len(COLUMNS), squeeze=False)
    for row in range(num_images):
        for column, (title, images) in enumerate(zip(COLUMNS, panels, strict=True)):
            axis = axes[row][column]
            axis.set_axis_off()
            if row == 0:
                axis.set_title(title + (channels_note(pixel_values.shape[1]) if title == "original" else ""))
            if title == "weights":
                shown = axis.imshow(images[row], cmap="magma", norm=weight_norm(images))
            else:
                axis.imshow(images[row])
    label_weights(figure.colorbar(shown, ax=axes[:, -1].tolist(), shrink=0.6, label="W").ax)
    return figure


def weight_norm(*weights: np.ndarray) -> LogNorm:
    """Return the scale of keypoint weights: logarithmic, from the least of some arrays (1 at most) to the largest."""
    low = min(1.0, *(float(part.min()) for part in weights))
    return LogNorm(low, max(1.01, *(float(part.max()) for part in weights)))


def label_weights(axis: Axes) -> None:
    """Set the ticks of a vertical logarithmic axis of weights, such as that of a color bar of `weight_norm`."""
    low, high = axis.get_ylim()
    ticks = [tick for tick in WEIGHT_TICKS if low * 0.999 <= tick <= high * 1.001]
    axis.set_yticks(ticks, [f"{tick:,}" for tick in ticks])
    axis.minorticks_off()


def pixels_of_mask(mask: torch.Tensor, pixel_values: torch.Tensor) -> np.ndarray:
    """Return the bool pixel mask `(num_images, height, width, 1)` of a patch mask `(num_images, rows, columns)`."""
    height, width = pixel_values.shape[2:]
    return upsample(mask, height, width).unsqueeze(-1).numpy()


def to_rgb(images: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """Return images in [0, 1], `(num_images, height, width, 3)`, of normalized `(num_images, channels, height, width)`.

    See `shown_in_rgb`.
    """
    channels_last = images.permute(0, 2, 3, 1).float().numpy()
    return shown_in_rgb((channels_last * np.asarray(std) + np.asarray(mean)).clip(0, 1))


def shown_in_rgb(pixels: np.ndarray) -> np.ndarray:
    """Return `(..., 3)` of `(..., channels)`: RGB as it is, the first three channels, or of fewer the first in gray."""
    return pixels[..., :3] if pixels.shape[-1] >= 3 else pixels[..., :1].repeat(3, axis=-1)


def channels_note(num_channels: int) -> str:
    """Return which channels a picture shows, to put behind its title; "" for gray and RGB."""
    if num_channels in (1, 3):
        return ""
    return " (channels 0 to 2)" if num_channels > 3 else " (channel 0)"


def curves_figure(log: Sequence[Mapping[str, float]]) -> Figure:
    """Draw curves of a training by step: panels for loss, masked L1, learning rate, and top-1 during the training.

    Args:
        log: `trainer.state.log_history`; a panel without entries is left out.
    """
    panels = {
        "loss": {"loss": "training", "eval_loss": "validation"},
        "masked L1, unweighted\n(units of the target)": {"masked_l1": "training", "eval_masked_l1": "validation"},
        "learning rate": {"learning_rate": "learning rate"},
        "temperature T": {"temperature": "temperature"},
        "top-1 accuracy (%)": {
            "probe_top1": "linear probe",
            "knn_top1": "k-NN",
            "eval_top1": "validation",
        },
    }
    series: dict[str, dict[str, list[tuple[float, float]]]] = {}  # from panel and label to points
    for title, keys in panels.items():
        for key, label in keys.items():
            if points := [(entry["step"], entry[key]) for entry in log if entry.get(key) is not None]:
                series.setdefault(title, {})[label] = points
    num_rows = 2 if len(series) > 3 else 1
    num_columns = max(1, math.ceil(len(series) / num_rows))
    figure = Figure(figsize=(4.6 * num_columns, 3.4 * num_rows), layout="constrained")
    axes: list[Axes] = list(figure.subplots(num_rows, num_columns, squeeze=False).flat)
    for axis, (title, curves) in zip(axes, series.items(), strict=False):
        for (label, points), color in zip(curves.items(), LINE_COLORS, strict=False):
            marker = "o" if len(points) < 15 else None
            axis.plot(*zip(*points, strict=True), color=color, marker=marker, markersize=4, label=label)
        axis.set(xlabel="optimizer step", ylabel=title)
        if title.endswith("(%)"):
            axis.yaxis.set_major_formatter(PercentFormatter(1, symbol=""))
        axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axis.grid(color="0.9")
        if len(curves) > 1:
            axis.legend(frameon=False)
    return figure
