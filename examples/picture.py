"""Draw the picture of the README: photographs, keypoints, weights, what a model sees, and what it fills in.

python examples/picture.py --checkpoint outputs/studies/imagenette_64px_laptop/kamim_mae/seed-0
"""

import argparse
from pathlib import Path

import cv2
import numpy as np
import torch
from matplotlib.figure import Figure

from modeling_kamim.commands.endings import run
from modeling_kamim.demo.app import EXAMPLES
from modeling_kamim.demo.checkpoints import load_models
from modeling_kamim.demo.focus_view import Focus, FocusSettings, focus
from modeling_kamim.demo.masked_view import fill
from modeling_kamim.demo.neighbor_view import middle_square
from modeling_kamim.training.figures import label_weights, save_figure, weight_norm

TITLES = ("photograph", "keypoints (FAST)", "weight of the loss", "what the model sees", "what it fills in")
PHOTOGRAPHS = ("cat", "coffee", "rocket")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, help="directory of a model that reconstructs")
    parser.add_argument("--output", type=Path, default=Path("docs/kamim.png"))
    args = parser.parse_args()
    save_figure(lambda: draw(args.checkpoint), args.output, dpi=60)


def draw(checkpoint: str) -> Figure:
    """Return a row for each photograph, seen as a square, and a column for each of `TITLES`."""
    (model,) = load_models([checkpoint], torch.device("cpu"))
    squares = [middle_square(EXAMPLES[name](), 1.0) for name in PHOTOGRAPHS]
    found = [focus(square, FocusSettings(image_size=192, cell_size=12)) for square in squares]
    filled = [fill(model, square, 0.5, 8, seed) for seed, square in enumerate(squares)]
    size = 2.1 * len(TITLES) + 0.7, 2.1 * len(squares) + 0.3
    figure = Figure(figsize=size, layout="constrained", facecolor="white")
    axes = figure.subplots(len(squares), len(TITLES), squeeze=False)
    norm = weight_norm(*(part.weights for part in found))
    for row, (part, filling) in enumerate(zip(found, filled, strict=True)):
        pictures = (part.view, with_points(part), part.weights, filling.masked, filling.filled)
        for axis, title, picture in zip(axes[row], TITLES, pictures, strict=True):
            shown = axis.imshow(picture, cmap="magma", norm=norm if picture.ndim == 2 else None)
            axis.set_axis_off()
            if row == 0:
                axis.set_title(title, fontsize=13)
            if picture.ndim == 2:
                weights = shown
    bar = figure.colorbar(weights, ax=axes.ravel().tolist(), shrink=0.5, label="W")
    label_weights(bar.ax)
    return figure


def with_points(found: Focus) -> np.ndarray:
    """Return the view with a dot on each keypoint."""
    picture = cv2.resize(found.view, None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC)
    for x, y in found.points * 2 + 1:
        cv2.circle(picture, (round(x), round(y)), 3, (0, 255, 200), -1, cv2.LINE_AA)
    return picture


if __name__ == "__main__":
    run(main)
