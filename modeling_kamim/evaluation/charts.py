"""Charts of evaluations: confusion matrix, accuracy by depth, reconstructions of several models."""

from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
import torch
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from ..hub.markup import plot_text
from ..training.figures import channels_note, line_styles, pixels_of_mask, to_rgb

NAMED_CLASSES = 30


def comparison_figure(
    pixel_values: torch.Tensor,
    mask: torch.Tensor,
    reconstructions: Mapping[str, torch.Tensor],
    mean: list[float],
    std: list[float],
) -> Figure:
    """Draw reconstructions of the same images by several models, as in Figure 2 of arXiv:2407.13873.

    A column for each image; rows of originals, of masked images, and of each model's reconstructions (visible pixels
    kept), with their names on the left.

    Args:
        pixel_values: `(num_images, channels, height, width)`, normalized; see `shown_in_rgb`.
        mask: `(num_images, rows, columns)`, bool, True where masked.
        reconstructions: from a model's name to its output, like `pixel_values`.
        mean, std: of the normalization, for each channel.
    """
    masked, original = pixels_of_mask(mask, pixel_values), to_rgb(pixel_values, mean, std)
    note = channels_note(pixel_values.shape[1]).replace(" (", "\n(")
    rows = [(f"original{note}", original), ("masked", np.where(masked, 0.5, original))]
    for name, reconstruction in reconstructions.items():
        rows.append((plot_text(name, 16), np.where(masked, to_rgb(reconstruction, mean, std), original)))

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


def confusion_figure(
    confusion: Sequence[Sequence[int]] | np.ndarray, class_names: Sequence[str], title: str = ""
) -> Figure:
    """Draw a heat map of where the images of each class go.

    Every row sums to 1; the colors follow the square root, so that rare confusions show; the rows of classes without
    images are sand-colored.

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
    colors = matplotlib.colormaps["Blues"].with_extremes(bad="#F5D9A8")
    shown = axis.imshow(np.ma.masked_invalid(shares), cmap=colors, norm=PowerNorm(0.5, 0.0, 1.0))
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
    """Draw accuracy by layer, a line for each model or protocol, and chance.

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
    styles = line_styles(series)
    for name, (layers, accuracies) in series.items():
        places = [place[str(layer)] for layer in layers]
        axis.plot(places, accuracies, markersize=5, label=plot_text(name, 28), **styles[name])
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
