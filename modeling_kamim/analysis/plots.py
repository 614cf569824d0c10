"""Draw the figures of the analyses; the numbers come from `measures` and `pictures`.

Colors are those of Okabe and Ito, and color maps whose lightness only rises: color-blind readers can tell them apart,
and so can readers of a gray print. Lines and classes differ in their markers too.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import cycle
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator, PercentFormatter

from ..hub.markup import plot_text
from ..limits import size_in_words
from ..training.figures import LINE_COLORS, MARKERS, label_weights, weight_norm
from .attention import COLLAPSED_NMI
from .pictures import AttentionMaps, Reconstructions, TokenPlane

Row = dict[str, Any]
REFERENCE: dict[str, Any] = {"color": "0.45", "linestyle": ":", "marker": "x", "markersize": 4, "linewidth": 1.3}
UNIFORM: dict[str, Any] = {"color": "black", "linestyle": "--", "linewidth": 1.0}
_CENTERED: dict[str, Any] = {"linestyle": (0, (1, 1.2)), "linewidth": 1.0}
# for points: without the black that stands for centroids
POINT_COLORS = LINE_COLORS[:6]
NO_REFERENCES: Mapping[str, str] = {}
BEFORE, AFTER = "#0072B2", "#E69F00"
_MAX_COLUMNS = 4


def _styles(rows: Sequence[Row], references: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Return how each model's line is drawn: references are dotted and gray, and differ in their markers."""
    models = zip(cycle(LINE_COLORS), cycle(MARKERS), strict=False)
    lines = ({"color": color, "marker": marker, "markersize": 4.5} for color, marker in models)
    dotted = (REFERENCE | {"marker": marker} for marker in cycle("x+12"))
    styles: dict[str, dict[str, Any]] = {}
    for name in _models(rows):
        if name in references.values():
            alike = ", ".join(model for model, reference in references.items() if reference == name)
            models_of = f" ({_short(alike, 30)})" if len(set(references.values())) > 1 else ""
            styles[name] = {**next(dotted), "label": f"random weights{models_of}"}
        else:
            styles[name] = {**next(lines), "label": _short(name)}
    return styles


def _models(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row["model"] for row in rows))


def _series(rows: Sequence[Row], x: str, *y: str, **where: Any) -> list:
    """Return the values of `x` and an array of each `y`, of the rows that have the values of `where`."""
    chosen = [row for row in rows if all(row[key] == value for key, value in where.items())]
    return [[row[x] for row in chosen], *(np.array([row[name] for row in chosen], float) for name in y)]


def _by_layer(*axes: Axes) -> None:
    for axis in axes:
        axis.set_xlabel("layer")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.grid(color="0.92")


def _short(name: str, width: int = 22) -> str:
    return plot_text(name, width)


def _panels(count: int, width: float, height: float, **kwargs: Any) -> tuple[Figure, list[Axes]]:
    """Return a figure of `count` panels of that many inches, and their axes; the rest of the grid is empty."""
    rows = math.ceil(count / _MAX_COLUMNS)
    columns = math.ceil(count / rows)
    figure = Figure(figsize=(width * columns + 0.4, height * rows + 0.4), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False, **kwargs).flat)
    for axis in axes[count:]:
        axis.set_axis_off()
    return figure, axes[:count]


def attention_distance_figure(rows: Sequence[Row], references: Mapping[str, str] = NO_REFERENCES) -> Figure:
    """Draw attention distance by layer; a panel has a model's heads, their mean, uniform attention, random weights.

    Args:
        rows: of `AttentionMeasure.distance_rows`, of all models.
        references: from a model's name to that of the random weights of its architecture, drawn in its panel.
    """
    shown = [name for name in _models(rows) if name not in references.values()]
    figure, axes = _panels(len(shown), 3.1, 3.2, sharey=True)
    for axis, name in zip(axes, shown, strict=True):
        heads = [row for row in rows if row["model"] == name and row["head"] != "mean"]
        layers, distances = _series(heads, "layer", "distance")
        axis.scatter(layers, distances, s=14, color="#56B4E9", label="head")
        layers, mean, std, uniform = _series(
            rows, "layer", "distance", "std", "uniform_distance", model=name, head="mean"
        )
        axis.fill_between(layers, mean - std, mean + std, color=LINE_COLORS[0], alpha=0.2, linewidth=0)
        axis.plot(layers, mean, color=LINE_COLORS[0], marker="o", markersize=4, label="mean of heads ± SD over images")
        axis.plot(layers, uniform, **UNIFORM, label="uniform")
        random = _series(rows, "layer", "distance", model=references.get(name), head="mean")
        if random[0]:
            axis.plot(*random, **REFERENCE, label="random weights")
        axis.set_title(f"{_short(name)}\n({heads[0]['image_size']} px)")
    _by_layer(*axes)
    axes[0].set_ylabel("attention distance (px)")
    axes[0].set_ylim(bottom=0)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    return figure


def nmi_figure(rows: Sequence[Row], references: Mapping[str, str] = NO_REFERENCES) -> Figure:
    """Draw normalized mutual information by layer, a line for each model with its deviation over images.

    Args:
        rows: of `AttentionMeasure.nmi_rows`, of all models.
        references: from a model's name to that of the random weights of its architecture, drawn as a reference line.
    """
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axis = figure.subplots()
    for name, style in _styles(rows, references).items():
        layers, mean, std = _series(rows, "layer", "nmi", "std", model=name, head="mean")
        axis.fill_between(layers, (mean - std).clip(0), mean + std, color=style["color"], alpha=0.18, linewidth=0)
        axis.plot(layers, mean, **style)
    axis.axhline(0.0, **UNIFORM, label="uniform attention (0)")
    axis.axhline(COLLAPSED_NMI, color="0.6", linestyle="-.", linewidth=0.9, label=f"collapse, below {COLLAPSED_NMI:g}")
    axis.set_yscale("symlog", linthresh=1e-3, linscale=0.6)
    _by_layer(axis)
    axis.set(ylabel="normalized mutual information", ylim=(-2e-4, max(1.0, 1.1 * max(row["nmi"] for row in rows))))
    axis.set_yticks([0, 1e-3, 1e-2, 1e-1, 1], ["0", "0.001", "0.01", "0.1", "1"])
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    return figure


def fourier_figure(rows: Sequence[Row], references: Mapping[str, str] = NO_REFERENCES) -> Figure:
    """Draw the relative log amplitude: at the highest frequency by layer, and by frequency with a line for each layer.

    Args:
        rows: of `FourierMeasure.rows`, of all models.
        references: from a model's name to that of the random weights of its architecture, drawn as a reference line.
    """
    names = _models(rows)
    figure, axes = _panels(1 + len(names), 3.2, 3.3)
    for name, style in _styles(rows, references).items():
        # the last row of a layer is that of its highest frequency
        highest = {row["layer"]: row["relative_log_amplitude"] for row in rows if row["model"] == name}
        axes[0].plot(list(highest), list(highest.values()), **style)
    _by_layer(axes[0])
    axes[0].set(title="highest frequency", ylabel="Δ log amplitude")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    deepest = max(row["layer"] for row in rows)
    lowest = min(-0.5, *(row["relative_log_amplitude"] for row in rows))
    colors = matplotlib.colormaps["viridis"].resampled(deepest + 1)
    for axis, name in zip(axes[1:], names, strict=True):
        for layer in dict.fromkeys(row["layer"] for row in rows if row["model"] == name):
            curve = _series(rows, "frequency_pi", "relative_log_amplitude", model=name, layer=layer)
            axis.plot(*curve, color=colors(layer), linewidth=1.2)
        axis.set(title=_short(name), xlabel="frequency (π per token)", xlim=(0, 1.02), ylim=(1.05 * lowest, 0.1))
        axis.grid(color="0.92")
    axes[1].set_ylabel("Δ log amplitude")
    norm = matplotlib.colors.BoundaryNorm(np.arange(deepest + 2) - 0.5, deepest + 1)
    scale = matplotlib.cm.ScalarMappable(norm, colors)
    figure.colorbar(scale, ax=axes, label="layer", ticks=range(0, deepest + 1, math.ceil((deepest + 1) / 8)))
    return figure


def cka_figure(rows: Sequence[Row]) -> Figure:
    """Draw heat maps of CKA: each model's layers against its own and every other model's.

    Args:
        rows: of `CkaMeasure.rows`.
    """
    names = _models(rows)
    layers = {name: list(dict.fromkeys(row["layer"] for row in rows if row["model"] == name)) for name in names}
    pairs = [(a, b) for place, a in enumerate(names) for b in names[place:]]
    values = {(row["model"], row["layer"], row["other_model"], row["other_layer"]): row["cka"] for row in rows}
    figure, axes = _panels(len(pairs), 3.0, 3.1)
    for axis, (a, b) in zip(axes, pairs, strict=True):
        matrix = np.array([[values[a, i, b, j] for j in layers[b]] for i in layers[a]], float)
        shown = axis.imshow(np.ma.masked_invalid(matrix), vmin=0, vmax=1, cmap="viridis", origin="lower")
        for ticks, name in ((axis.set_yticks, a), (axis.set_xticks, b)):
            _mark_layers(ticks, layers[name])
        axis.set(xlabel=_short(f"layer of {b}"), ylabel=_short(f"layer of {a}"))
    figure.colorbar(shown, ax=axes, label="linear CKA (unbiased)", shrink=0.7)
    return figure


def _mark_layers(set_ticks: Callable[[list[int], list[str]], Any], layers: Sequence[int | str]) -> None:
    """Mark about six of many layers on an axis, the first and the last among them."""
    step = round(len(layers) / 6) if len(layers) > 8 else 1
    places = [*range(0, len(layers) - step, step), len(layers) - 1]
    set_ticks(places, ["LN" if layers[place] == "final" else str(layers[place]) for place in places])


def rank_figure(rows: Sequence[Row], references: Mapping[str, str] = NO_REFERENCES) -> Figure:
    """Draw RankMe by layer, of the images' mean tokens and of all tokens.

    Args:
        rows: of `RankMeasure.rows`, of all models.
        references: from a model's name to that of the random weights of its architecture, drawn as a reference line.
    """
    layers: list[Any] = [*sorted({row["layer"] for row in rows} - {"final"}), "final"]
    figure, axes = _panels(2, 4.2, 3.4)
    titles = {"images": "mean patch token of an image", "tokens": "patch tokens"}
    for axis, (features, title) in zip(axes, titles.items(), strict=True):
        for name, style in _styles(rows, references).items():
            found, values, centered = _series(rows, "layer", "rankme", "rankme_centered", model=name, features=features)
            places = [layers.index(layer) for layer in found]
            axis.plot(places, values, **style)
            axis.plot(places, centered, color=style["color"], **_CENTERED)
        _mark_layers(axis.set_xticks, layers)
        axis.set(title=title, xlabel="layer (LN: behind the last LayerNorm)")
        axis.set_ylim(bottom=0)
        axis.grid(color="0.92")
    axes[0].set_ylabel("effective rank (RankMe)")
    axes[0].plot([], [], color="0.3", **_CENTERED, label="with the mean taken off")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    return figure


def loss_share_figure(rows: Sequence[Row]) -> Figure:
    """Draw the share of the masked loss by decile of the weights, without and with them, and the deciles' weights.

    A bar for each model; weights are on a logarithmic scale.

    Args:
        rows: of `LossShareMeasure.rows`, of all models.
    """
    names = _models(rows)
    figure, axes = _panels(3, 4.0, 3.4)
    width = 0.8 / len(names)
    titles = {"none": "loss without weights (SimMIM)", "keypoint": "loss with keypoint weights (KAMIM)"}
    hatches = ("", "//", "..", "xx", "\\\\")
    for axis, (weighting, title) in zip(axes[:2], titles.items(), strict=True):
        styles = zip(names, cycle(LINE_COLORS), cycle(hatches), strict=False)
        for place, (name, color, hatch) in enumerate(styles):
            where = {"model": name, "loss_weighting": weighting}
            quantiles, shares, std = _series(rows, "quantile", "share", "std", **where)
            left = np.array(quantiles) - 0.4 + (place + 0.5) * width
            style: dict[str, Any] = {"color": color, "hatch": hatch, "edgecolor": "white"}
            axis.bar(left, shares, width, yerr=std, error_kw={"linewidth": 0.7}, **style, label=_short(name))
        axis.axhline(1 / len(quantiles), **UNIFORM)
        axis.set_title(title)
        axis.set_ylim(bottom=0)
        axis.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes[0].set_ylabel("share of the masked loss (± SD)")
    for name, line in _styles(rows, NO_REFERENCES).items():
        axes[2].plot(*_series(rows, "quantile", "mean_weight", model=name, loss_weighting="keypoint"), **line)
    axes[2].set(title="weights", ylabel="mean W", yscale="log")
    for axis in axes:
        axis.set(xticks=quantiles, xlabel="decile of the masked cells by weight")
    label_weights(axes[2])
    axes[2].grid(color="0.92")
    handles, labels = axes[0].get_legend_handles_labels()
    equal = Line2D([], [], **UNIFORM)
    figure.legend([*handles, equal], [*labels, "equal shares"], loc="outside lower center", ncols=4, frameon=False)
    return figure


def classes_figure(planes: Sequence[TokenPlane]) -> Figure:
    """Draw tokens colored by class, a panel for each model (t-SNE, and Figure 10's principal components).

    Args:
        planes: of the same images.
    """
    figure, axes = _panels(len(planes), 3.3, 3.4)
    names = list(dict.fromkeys(planes[0].classes))
    for axis, plane in zip(axes, planes, strict=True):
        owner = np.array(plane.classes)
        for name, color, marker in zip(names, cycle(POINT_COLORS), cycle("osD^vP"), strict=False):
            style: dict[str, Any] = {"color": color, "marker": marker, "s": 9, "alpha": 0.75, "linewidths": 0}
            x, y = plane.points[owner == name].T
            axis.scatter(x, y, **style, label=_short(name, 30))
        _finish_plane(axis, plane)
    _points_legend(figure, axes[0], ncols=5 if len(planes) > 1 else 2)
    return figure


def before_after_figure(planes: Sequence[TokenPlane]) -> Figure:
    """Draw tokens before (filled) and after (hollow) self-attention, as in Figures 8 and 9; centroids are crosses.

    Args:
        planes: of one image or several, with both stages.
    """
    figure, axes = _panels(len(planes), 3.3, 3.4)
    numbers = list(dict.fromkeys(planes[0].images))
    colors = ({"before": BEFORE, "after": AFTER}, {"before": "#009E73", "after": "#D55E00"})
    for axis, plane in zip(axes, planes, strict=True):
        owner, stage = np.array(plane.images), np.array(plane.stages)
        for number, marker, color_of in zip(numbers, "os", colors, strict=False):
            name = plane.classes[plane.images.index(number)]
            for when, color in color_of.items():
                x, y = plane.points[(owner == number) & (stage == when)].T
                face = color if when == "before" else "none"
                style: dict[str, Any] = {"facecolors": face, "edgecolors": color, "linewidths": 0.8, "s": 13}
                axis.scatter(x, y, **style, marker=marker, label=_short(f"{name}, {when}", 30))
                if len(numbers) > 1:
                    dark = "black" if when == "before" else "0.5"
                    axis.scatter(x.mean(), y.mean(), s=42, zorder=5, color=dark, marker="x", label=f"centroid {when}")
        _finish_plane(axis, plane)
    _points_legend(figure, axes[0], ncols=4 if len(planes) > 1 else 2)
    return figure


def _finish_plane(axis: Axes, plane: TokenPlane) -> None:
    layer = "final output" if plane.layer == "final" else f"layer {plane.layer}"
    axis.set(title=f"{_short(plane.model)}\n{layer}", xticks=[], yticks=[])
    if plane.explained is not None:
        axis.set_xlabel(f"PC 1 ({plane.explained[0]:.0%} of variance)")
        axis.set_ylabel(f"PC 2 ({plane.explained[1]:.0%})")
    axis.margins(0.06)


def _points_legend(figure: Figure, axis: Axes, ncols: int) -> None:
    handles, labels = axis.get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    figure.legend(unique.values(), unique, loc="outside lower center", ncols=ncols, frameon=False, markerscale=1.4)


def _image_grid(row_names: Sequence[str], columns: int, titles: bool = False) -> tuple[Figure, np.ndarray]:
    """Return axes of square images almost without gaps: row names on the left, room for a color bar on the right."""
    side, left, right, bottom, top = 1.55, 1.35, 0.95, 0.1, 0.3 if titles else 0.1  # inches
    width, height = left + side * columns + right, bottom + side * len(row_names) + top
    figure = Figure(figsize=(width, height))
    box = {"left": left / width, "right": 1 - right / width, "bottom": bottom / height, "top": 1 - top / height}
    axes = figure.subplots(len(row_names), columns, squeeze=False, gridspec_kw=box | {"wspace": 0.05, "hspace": 0.05})
    for row, name in zip(axes, row_names, strict=True):
        for axis in row:
            axis.set(xticks=[], yticks=[], frame_on=False)
        lines = "\n".join(plot_text(line, 16) for line in name.split("\n"))
        row[0].set_ylabel(lines, rotation=0, ha="right", va="center", labelpad=6)
    return figure, axes


def _bar_beside(figure: Figure, shown: Any, first: Axes, last: Axes, label: str) -> Axes:
    """Return the axis of a color bar right of the axes from `first` (top) to `last` (bottom)."""
    top, bottom = first.get_position(), last.get_position()
    width = figure.get_figwidth()
    height = top.y1 - bottom.y0
    box = (top.x1 + 0.1 / width, bottom.y0 + 0.05 * height, 0.12 / width, 0.9 * height)
    return figure.colorbar(shown, cax=figure.add_axes(box), label=label).ax


def attention_maps_figure(images: Sequence[np.ndarray], maps: Sequence[AttentionMaps]) -> Figure:
    """Draw the attention of a marked token: images in the first row, then a row for each model; one scale for all.

    Args:
        images: `(height, width, 3)`, uint8.
        maps: of each model.
    """
    figure, axes = _image_grid(["image", *(f"{part.model}\nlayer {part.layer}" for part in maps)], len(images))
    most = max(float(part.maps.max()) * part.maps[0].size for part in maps)
    norm = PowerNorm(0.5, 0.0, max(most, 2.0))
    for axis, image in zip(axes[0], images, strict=True):
        axis.imshow(image)
        _mark_token(axis, maps[0].query, image.shape[0] / maps[0].maps.shape[1])
    for row, part in zip(axes[1:], maps, strict=True):
        for axis, values in zip(row, part.maps, strict=True):
            shown = axis.imshow(values * values.size, cmap="magma", norm=norm)
            _mark_token(axis, part.query, 1.0)
    _bar_beside(figure, shown, axes[1][-1], axes[-1][-1], "attention / uniform")
    return figure


def _mark_token(axis: Axes, query: tuple[int, int], side: float) -> None:
    corner = (query[1] * side - 0.5, query[0] * side - 0.5)
    axis.add_patch(Rectangle(corner, side, side, fill=False, edgecolor="white", linewidth=3.0))
    axis.add_patch(Rectangle(corner, side, side, fill=False, edgecolor="red", linewidth=1.6))


def reconstructions_figure(parts: Sequence[Reconstructions]) -> Figure:
    """Draw a column for each image: original, masked, every model's reconstruction, and the weights as a heat map.

    Args:
        parts: of each model; originals, masks and weights are drawn for the first, and again where the size differs.
    """
    rows: list[tuple[str, np.ndarray]] = []
    sides: tuple[int, ...] = ()
    for part in parts:
        if part.originals.shape[1:3] != sides:
            sides = part.originals.shape[1:3]
            rows += [(f"original\n{size_in_words(sides)} px", part.originals), ("masked", part.masked)]
        rows.append((part.model, part.filled))
    rows.append(("weights W", parts[0].weights))
    figure, axes = _image_grid([name for name, _ in rows], len(parts[0].originals))
    norm = weight_norm(parts[0].weights)
    for row, (_, images) in zip(axes, rows, strict=True):
        for axis, image in zip(row, images, strict=True):
            shown = axis.imshow(image, cmap="magma", norm=norm) if image.ndim == 2 else axis.imshow(image)
    label_weights(_bar_beside(figure, shown, axes[-1][-1], axes[-1][-1], "W"))
    return figure


def keypoints_figure(
    image: np.ndarray,
    positions: Mapping[str, np.ndarray],
    maps: Mapping[str, np.ndarray],
    densities: Mapping[str, np.ndarray],
) -> Figure:
    """Draw a column for each detector: the image, keypoints on it, keypoint map F, and keypoint density.

    Args:
        image: `(height, width, 3)`, uint8.
        positions: from a detector's name to `(num_keypoints, 2)`, x and y in pixels.
        maps: `(height, width)`, values {0, 1}.
        densities: `(rows, columns)`, in [0, 1].
    """
    figure, axes = _image_grid(["image", "keypoints", "map F", "density Ω"], len(positions), titles=True)
    for column, name in enumerate(positions):
        plain, keypoints, points, density = axes[:, column]
        plain.imshow(image)
        keypoints.imshow(image)
        keypoints.scatter(positions[name][:, 0], positions[name][:, 1], s=3, color="#E69F00", linewidths=0)
        keypoints.set(xlim=(-0.5, image.shape[1] - 0.5), ylim=(image.shape[0] - 0.5, -0.5))
        points.imshow(maps[name], cmap="gray_r", vmin=0, vmax=1)
        shown = density.imshow(densities[name], cmap="magma", vmin=0, vmax=1)
        plain.set_title(f"{name.upper()}: {len(positions[name])}", fontsize="medium")
    _bar_beside(figure, shown, axes[-1][-1], axes[-1][-1], "density")
    return figure


def weight_grid_figure(image: np.ndarray, grid: Mapping[tuple[int, float], np.ndarray]) -> Figure:
    """Draw the weights of an image: a row for each cell size, a column for each temperature; all share one scale.

    Args:
        image: `(height, width, 3)`, uint8, shown in the first column.
        grid: of `weight_grid`.
    """
    cell_sizes = list(dict.fromkeys(cell_size for cell_size, _ in grid))
    temperatures = list(dict.fromkeys(temperature for _, temperature in grid))
    names = [f"cells of {cell_size} px" for cell_size in cell_sizes]
    figure, axes = _image_grid(names, len(temperatures) + 1, titles=True)
    norm = weight_norm(*grid.values())
    for row, cell_size in zip(axes, cell_sizes, strict=True):
        row[0].imshow(image)
        for axis, temperature in zip(row[1:], temperatures, strict=True):
            shown = axis.imshow(grid[cell_size, temperature], cmap="magma", norm=norm)
    for axis, temperature in zip(axes[0][1:], temperatures, strict=True):
        axis.set_title(f"T = {temperature:g}", fontsize="medium")
    label_weights(_bar_beside(figure, shown, axes[0][-1], axes[-1][-1], "W"))
    return figure
