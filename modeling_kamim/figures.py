"""Pictures of what a model does."""

import contextlib
import io
import logging
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from itertools import cycle
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from .errors import first_line
from .markup import plot_text

matplotlib.use("agg")

logger = logging.getLogger(__name__)

NAMED_CLASSES = 30
# Distinct for the colour-blind (Okabe and Ito), without the yellow that white paper swallows
LINE_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
WEIGHT_TICKS = (1, 2, 5, 10, 20, 50, 100, 1000, 10000)
COLUMNS = ("original", "masked", "reconstruction", "weights")


def save_figure(draw: Callable[[], Figure], *files: Path, dpi: int = 100) -> bool:
    """Draw a figure and write it into files, whose suffixes tell the formats.

    No picture is worth the results of a run: one that fails is named in the log, and an earlier one is removed.

    Returns:
        Whether it was written.
    """
    try:
        figure = draw()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing from")  # boxes stand for what the font lacks
            for file in files:
                picture = io.BytesIO()
                figure.savefig(picture, format=file.suffix[1:], dpi=dpi)
                file.write_bytes(picture.getvalue())
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
    """Rows of original, masked image, reconstruction (visible pixels kept), and weights.

    Args:
        pixel_values: `(num_images, 3, height, width)`, normalised.
        mask: `(num_images, rows, columns)`, bool, True where masked.
        reconstruction: like `pixel_values`.
        weights: `(num_images, weight_rows, weight_columns)`.
        mean, std: of the normalisation, for each channel.
    """
    masked, original = _pixel_mask(mask, pixel_values), _to_rgb(pixel_values, mean, std)
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
                shown = axis.imshow(images[row], cmap="magma", norm=weight_norm(images))
            else:
                axis.imshow(images[row])
    label_weights(figure.colorbar(shown, ax=axes[:, -1].tolist(), shrink=0.6, label="W").ax)
    return figure


def weight_norm(*weights: np.ndarray) -> LogNorm:
    """The scale of keypoint weights, logarithmic from 1 to the largest of some."""
    return LogNorm(1.0, max(1.01, *(float(part.max()) for part in weights)))


def label_weights(axis: Axes) -> None:
    """Ticks of a vertical logarithmic axis of weights, such as that of a colour bar of `weight_norm`."""
    low, high = axis.get_ylim()
    ticks = [tick for tick in WEIGHT_TICKS if low * 0.999 <= tick <= high * 1.001]
    axis.set_yticks(ticks, [f"{tick:,}" for tick in ticks])
    axis.minorticks_off()


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
    masked, original = _pixel_mask(mask, pixel_values), _to_rgb(pixel_values, mean, std)
    rows = [("original", original), ("masked", np.where(masked, 0.5, original))]
    for name, reconstruction in reconstructions.items():
        rows.append((plot_text(name, 16), np.where(masked, _to_rgb(reconstruction, mean, std), original)))

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


def _pixel_mask(mask: torch.Tensor, pixel_values: torch.Tensor) -> np.ndarray:
    """(num_images, height, width, 1) bool mask of pixels for a mask of patches."""
    height, width = pixel_values.shape[2:]
    pixels = mask.repeat_interleave(height // mask.shape[1], 1).repeat_interleave(width // mask.shape[2], 2)
    return pixels.unsqueeze(-1).numpy()


def _to_rgb(images: torch.Tensor, mean: list[float], std: list[float]) -> np.ndarray:
    channels_last = images.permute(0, 2, 3, 1).float().numpy()
    return (channels_last * np.asarray(std) + np.asarray(mean)).clip(0, 1)


def confusion_figure(
    confusion: Sequence[Sequence[int]] | np.ndarray, class_names: Sequence[str], title: str = ""
) -> Figure:
    """Heat map of where the images of each class go.

    Every row sums to 1; the colours follow the square root, so that rare confusions show; the rows of classes without
    images are sand-coloured.

    Args:
        confusion: `(num_classes, num_classes)`, images of the row's class that were taken for the column's.
        class_names: written at the axes for at most 30 classes, else the axes show class numbers.
        title: which classifier it is of.
    """
    counts = np.asarray(confusion, float)
    with np.errstate(invalid="ignore"):
        shares = counts / counts.sum(axis=1, keepdims=True)
    num_classes = len(shares)
    is_named = num_classes <= NAMED_CLASSES
    names = [plot_text(name if len(name) <= 24 else f"{name[:23]}…") for name in class_names]
    side = 2.0 + 0.24 * num_classes if is_named else min(12.0, max(7.0, num_classes / 90))  # inches
    names_width = 0.08 * max(map(len, names)) if is_named else 0.5
    figure = Figure(figsize=(side + names_width + 1.2, side + names_width), layout="constrained")
    axis = figure.subplots()
    colours = matplotlib.colormaps["Blues"].with_extremes(bad="#F5D9A8")
    shown = axis.imshow(np.ma.masked_invalid(shares), cmap=colours, norm=PowerNorm(0.5, 0.0, 1.0))
    if is_named:
        axis.set_xticks(range(num_classes), names, rotation=90)
        axis.set_yticks(range(num_classes), names)
    else:
        for ticks in (axis.xaxis, axis.yaxis):
            ticks.set_major_locator(MaxNLocator(8, integer=True))
    axis.set(xlabel="predicted class", ylabel="class", title=plot_text(title))
    figure.colorbar(shown, ax=axis, shrink=0.8, label="share of the class's images", format=PercentFormatter(1.0))
    return figure


def depth_figure(series: Mapping[str, tuple[Sequence[str], Sequence[float]]], chance: float) -> Figure:
    """Accuracy by layer, a line for each model or protocol, and chance.

    Args:
        series: from a name to layers and their accuracies in [0, 1]; layers of equal name share a place.
        chance: accuracy of guessing, in [0, 1].
    """
    names = list(dict.fromkeys(str(layer) for layers, _ in series.values() for layer in layers))
    # Numbers in order, then names as they come: encoders of different depth end in the same "final".
    names.sort(key=lambda name: (0, int(name)) if name.isdecimal() else (1, 0))
    place = {name: index for index, name in enumerate(names)}
    figure = Figure(figsize=(3.5 + 0.36 * len(names), 4.0), layout="constrained")
    axis = figure.subplots()
    styles = zip(cycle(LINE_COLOURS), cycle(MARKERS), strict=False)
    for (name, (layers, accuracies)), (colour, marker) in zip(series.items(), styles, strict=False):
        places = [place[str(layer)] for layer in layers]
        axis.plot(places, accuracies, color=colour, marker=marker, markersize=5, label=plot_text(name, 28))
    axis.axhline(chance, color="0.35", linestyle="--", linewidth=1, label="chance")
    axis.set_xticks(
        range(len(names)), list(map(plot_text, names)), rotation=90 if max(map(len, names), default=0) > 5 else 0
    )
    axis.set(xlabel="layer", ylabel="top-1 accuracy")
    axis.set_ylim(bottom=0)
    axis.yaxis.set_major_formatter(PercentFormatter(1.0))
    axis.grid(axis="y", color="0.9")
    figure.legend(loc="outside right upper", frameon=False)
    return figure


def curves_figure(log: Sequence[Mapping[str, float]]) -> Figure:
    """Curves of a training by step: a panel each for loss, masked L1, learning rate, and top-1 while it trains.

    Args:
        log: `trainer.state.log_history`; a panel without entries is left out.
    """
    panels = {
        "loss": {"loss": "training", "eval_loss": "validation"},
        "masked L1, unweighted": {"masked_l1": "training", "eval_masked_l1": "validation"},
        "learning rate": {"learning_rate": "learning rate"},
        "top-1 accuracy": {"probe_top1": "linear probe", "knn_top1": "nearest neighbours", "eval_top1": "validation"},
    }
    series = {
        title: {
            label: found
            for key, label in keys.items()
            if (found := [(e["step"], e[key]) for e in log if e.get(key) is not None])
        }
        for title, keys in panels.items()
    }
    series = {title: curves for title, curves in series.items() if curves}
    num_rows = 2 if len(series) > 3 else 1
    num_columns = max(1, math.ceil(len(series) / num_rows))
    figure = Figure(figsize=(4.6 * num_columns, 3.4 * num_rows), layout="constrained")
    axes: list[Axes] = list(figure.subplots(num_rows, num_columns, squeeze=False).flat)
    for axis, (title, curves) in zip(axes, series.items(), strict=False):
        for (label, points), colour in zip(curves.items(), LINE_COLOURS, strict=False):
            marker = "o" if len(points) < 15 else None
            axis.plot(*zip(*points, strict=True), color=colour, marker=marker, markersize=4, label=label)
        axis.set(xlabel="step", ylabel=title)
        axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axis.grid(color="0.9")
        if len(curves) > 1:
            axis.legend(frameon=False)
    return figure
