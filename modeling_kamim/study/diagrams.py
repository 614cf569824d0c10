"""Pictures of a study: accuracy over images seen, accuracy of each arm, error by keypoint density."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator, PercentFormatter

from ..evaluation.density_error import NUM_PARTS
from ..hub.markup import plot_text
from ..objective.targets import TARGETS
from ..training.figures import LINE_COLORS, line_styles
from .summary import Arm, mean_and_deviation

CURVES = {"probe_top1": "linear probe during the training", "knn_top1": "k-NN during the training"}
NUM_NAMED = 8  # curves of a panel that have a color and a name
OTHERS = "other arms"
Curve = tuple[Sequence[Any], Sequence[float]]
QUARTERS = ("fewest", *(f"{place}" for place in range(2, NUM_PARTS)), "most")


def learning_figure(arms: Mapping[str, Arm]) -> Figure:
    """Draw accuracy over images seen, means over seeds; a panel for the online probe and one for nearest neighbors."""
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    axes = figure.subplots(1, len(CURVES), sharex=True)
    panels = [(axis, _learning_curves(arms, key)) for axis, key in zip(axes, CURVES, strict=True)]
    _draw_curves(figure, panels, arms)
    for axis, title in zip(axes, CURVES.values(), strict=True):
        axis.set(title=title, xlabel="images seen")
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))
        axis.yaxis.set_major_formatter(PercentFormatter(1.0))
        axis.grid(color="0.9")
    axes[0].set_ylabel("top-1 accuracy")
    return figure


def _draw_curves(figure: Figure, panels: Sequence[tuple[Axes, Mapping[str, Curve]]], names: Iterable[str]) -> None:
    """Draw the curves of arms into panels: the first of each in colors and with names, all others thin and gray.

    Args:
        names: of all arms, in the order of the legend.
    """
    named = {name for _, curves in panels for name in list(curves)[:NUM_NAMED]}
    styles = line_styles(name for name in names if name in named)
    handles: dict[str, Artist] = {}
    for axis, curves in panels:
        for name, curve in curves.items():
            if name in styles:
                (handles[plot_text(name)],) = axis.plot(*curve, markersize=4, **styles[name])
            else:
                (handles[OTHERS],) = axis.plot(*curve, color="0.8", linewidth=1, zorder=1)
    shown = [plot_text(name) for name in styles] + [OTHERS] * (OTHERS in handles)
    figure.legend([handles[name] for name in shown], shown, loc="outside right upper", frameon=False)


def _learning_curves(arms: Mapping[str, Arm], key: str) -> dict[str, Curve]:
    found = {name: [curves[key] for curves in arm.pretraining("curves") if key in curves] for name, arm in arms.items()}
    return {name: _mean_curve(curves) for name, curves in found.items() if curves}


def _mean_curve(curves: Sequence[Sequence[Sequence[float]]]) -> Curve:
    """Return images seen and the mean over seeds, at the points that all seeds have."""
    points: list[dict[float, float]] = [{images: value for images, value in curve} for curve in curves]
    shared = sorted(set.intersection(*(set(curve) for curve in points)))
    return shared, [float(np.mean([curve[images] for curve in points])) for images in shared]


def scores_figure(arms: Mapping[str, Arm], names: Sequence[str]) -> Figure:
    """Draw the accuracies of each arm: a panel for each score, a point for each seed, a bar for their mean."""
    rows = 2 if len(names) > 3 else 1
    columns = math.ceil(len(names) / rows)
    figure = Figure(figsize=(2.2 + 3.4 * columns, rows * (1.2 + 0.3 * len(arms))), layout="constrained")
    grid = figure.subplots(rows, columns, sharey=True, squeeze=False)
    axes = list(grid.flat)
    for axis in axes[len(names) :]:
        axis.set_axis_off()
    for axis, name in zip(axes, names, strict=False):
        for place, arm in enumerate(arms.values()):
            values = arm.scores.get(name, [])
            axis.plot(values, [place] * len(values), "o", color=LINE_COLORS[0], markersize=5)
            mean, _ = mean_and_deviation(values)
            if mean is not None:
                axis.plot([mean], [place], "|", color="black", markersize=14)
        _draw_random(axis, arms, name)
        axis.set(title=plot_text(name), xlabel="top-1 accuracy")
        axis.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
        axis.xaxis.set_major_formatter(PercentFormatter(1.0))
        axis.grid(color="0.9")
    axes[0].invert_yaxis()
    for axis in grid[:, 0]:
        axis.set_yticks(range(len(arms)), [plot_text(name) for name in arms])
    return figure


def _draw_random(axis: Axes, arms: Mapping[str, Arm], name: str) -> None:
    """Draw where random weights are: the arms without a training step."""
    values = [value for arm in arms.values() if arm.is_random for value in arm.scores.get(name, [])]
    if values:
        axis.axvline(float(np.mean(values)), color="0.35", linestyle="--", linewidth=1)


def density_figure(arms: Mapping[str, Arm]) -> Figure:
    """Draw the error of the masked patches by quarters of keypoint density; a panel for each target."""
    errors = {name: [found["l1"] for found in arm.reconstruction("masked_l1_by_density")] for name, arm in arms.items()}
    shown = {name: arm for name, arm in arms.items() if errors[name] and not arm.is_random}
    targets = [target for target in TARGETS if any(arm.target == target for arm in shown.values())]
    figure = Figure(figsize=(3.5 + 4.5 * max(1, len(targets)), 4.6), layout="constrained")
    axes = np.atleast_1d(figure.subplots(1, max(1, len(targets))))
    panels = []
    for axis, target in zip(axes, targets, strict=False):
        curves = {
            name: (QUARTERS, np.mean(errors[name], axis=0)) for name, arm in shown.items() if arm.target == target
        }
        panels.append((axis, curves))
        axis.set(title=f"target: {TARGETS[target].words}", xlabel="keypoints in the patch, by quarters")
        axis.grid(axis="y", color="0.9")
        axis.set_ylabel("mean absolute error of masked patches")
    _draw_curves(figure, panels, arms)
    return figure
