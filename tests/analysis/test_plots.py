"""Pictures say what is in them: names of every layer, references of the same architecture, scales and titles."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.colors import LogNorm

from modeling_kamim.analysis import plots as analysis_figures
from modeling_kamim.evaluation.charts import confusion_figure
from modeling_kamim.training.figures import curves_figure, line_styles, reconstruction_figure


def drawn(figure):
    figure.canvas.draw()
    return figure


def labels(ticks):
    return [label.get_text() for label in ticks]


def lines(axis):
    return {line.get_label(): line for line in axis.get_lines()}


@given(st.integers(1, 40))
def test_the_layers_of_cka_are_named_from_the_first_to_the_last(depth):
    layers = [*range(depth), "final"]
    rows = [
        {"model": "a", "layer": i, "other_model": "a", "other_layer": j, "cka": 0.5} for i in layers for j in layers
    ]
    axis = analysis_figures.cka_figure(rows).axes[0]
    for ticks, names in ((axis.get_xticks(), axis.get_xticklabels()), (axis.get_yticks(), axis.get_yticklabels())):
        assert labels(names)[0] == "0" and labels(names)[-1] == "LN" and ticks[-1] == depth
        assert len(names) <= 10 and (np.diff(ticks) >= max(1, np.diff(ticks)[0])).all()


def attention_rows(model, size, distance):
    common = {"model": model, "layer": 1, "std": 0.1, "uniform_distance": size / 3, "image_size": size, "nmi": 0.1}
    return [common | {"head": head, "distance": distance} for head in (1, "mean")]


def test_each_model_is_beside_random_weights_of_its_own_architecture():
    models = {"small": (32, 1.0), "large": (64, 2.0), "other": (64, 3.0)}
    models |= {"random": (32, 4.0), "random (large)": (64, 5.0)}
    rows = [row for name, values in models.items() for row in attention_rows(name, *values)]
    references = {"small": "random", "large": "random (large)", "other": "random (large)"}
    figure = drawn(analysis_figures.attention_distance_figure(rows, references))
    beside = {axis.get_title().split("\n")[0]: lines(axis)["random weights"].get_ydata()[0] for axis in figure.axes}
    assert beside == {"small": 4.0, "large": 5.0, "other": 5.0}
    figure = drawn(analysis_figures.nmi_figure(rows, references))
    named = [name for name in lines(figure.axes[0]) if name.startswith("random weights")]
    assert named == ["random weights (small)", "random weights (large, other)"]
    without = drawn(analysis_figures.attention_distance_figure(rows))
    assert all("random weights" not in lines(axis) for axis in without.axes)


@given(st.floats(1.0, 5e4))
def test_weights_are_on_a_logarithmic_scale(largest):
    images, mask = torch.zeros(1, 3, 8, 8), torch.zeros(1, 2, 2, dtype=torch.bool)
    weights = torch.tensor([[[1.0, largest]]], dtype=torch.float64)
    figure = drawn(reconstruction_figure(images, mask, images, weights, [0.5] * 3, [0.5] * 3))
    (panel,) = [axis for axis in figure.axes if axis.get_title() == "weights"]
    norm = panel.images[0].norm
    assert isinstance(norm, LogNorm) and norm.vmin == 1 and norm.vmax == pytest.approx(max(1.01, largest))
    ticks = [int(text.replace(",", "")) for text in labels(figure.axes[-1].get_yticklabels())]
    assert ticks[0] == 1 and ticks[-1] <= norm.vmax * 1.001 and (ticks[-1] >= norm.vmax / 10 or norm.vmax > 1e4)


def test_the_picture_of_the_loss_share_shows_the_weights():
    row = {"model": "a", "share": 0.1, "std": 0.0}
    rows = [
        row | {"loss_weighting": weighting, "quantile": quantile, "mean_weight": 2.0**quantile}
        for weighting in ("none", "keypoint")
        for quantile in range(1, 11)
    ]
    axis = drawn(analysis_figures.loss_share_figure(rows)).axes[2]
    assert axis.get_yscale() == "log"
    assert axis.get_lines()[0].get_ydata().tolist() == [2.0**quantile for quantile in range(1, 11)]


def test_a_confusion_matrix_says_whose_it_is():
    assert confusion_figure(np.eye(2), ["a", "b"], "knn, layer 8").axes[0].get_title() == "knn, layer 8"


def test_quantities_of_other_scales_have_axes_of_their_own():
    entry = {"loss": 9.0, "masked_l1": 0.8, "learning_rate": 1e-3, "eval_masked_l1": 0.7, "knn_top1": 0.1}
    log = [{"step": step, **entry} for step in (1, 2)]
    figure = drawn(curves_figure(log))
    shown = {axis.get_ylabel(): sorted(lines(axis)) for axis in figure.axes if axis.get_ylabel()}
    assert shown == {
        "loss": ["training"],
        "masked L1, unweighted\n(units of the target)": ["training", "validation"],
        "learning rate": ["learning rate"],
        "top-1 accuracy (%)": ["k-NN"],
    }
    accuracy = figure.axes[-1]
    assert accuracy.yaxis.get_major_formatter()(0.125).startswith("12.5")


def test_lines_have_styles_of_their_own():
    names = [f"arm {place}" for place in range(21)]
    styles = [(style["color"], style["linestyle"]) for style in line_styles(names).values()]
    assert len(set(styles)) == 21 and line_styles(names[:7]).items() <= line_styles(names[:9]).items()
