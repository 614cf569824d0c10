"""Where the loss looks: keypoints or another map, its density, and the weights of Eq. 2 for one photograph."""

from dataclasses import dataclass

import cv2
import numpy as np
import torch

from ..analysis.keypoint_view import positions
from ..analysis.loss_share import loss_shares
from ..data.views import View
from ..objective.density import cell_density
from ..objective.keypoints import KeypointDetector
from ..objective.sources.table import SOURCES
from ..objective.weighting import CellWeighting
from .panels import Panel, enlarged, heat, histogram, over, section

# The parameter by which each source finds fewer or more: name, least, largest, step, its own value
THRESHOLDS: dict[str, tuple[str, float, float, float, float]] = {
    "fast": ("threshold", 1, 100, 1, 10),
    "sift": ("contrastThreshold", 0.005, 0.2, 0.005, 0.04),
    "orb": ("fastThreshold", 1, 100, 1, 20),
    "harris": ("qualityLevel", 0.001, 0.2, 0.001, 0.01),
    "gftt": ("qualityLevel", 0.001, 0.2, 0.001, 0.01),
    "sobel": ("percentile", 50, 100, 1, 95),
    "laplacian": ("percentile", 50, 100, 1, 95),
    "variance": ("percentile", 50, 100, 1, 95),
    "entropy": ("size", 3, 31, 2, 9),
}
KNOBS = {"percentile": "more: less of the image is at 1", "size": "of the window, in pixels"}  # of `THRESHOLDS`
IMAGE_SIZES, CELL_SIZES = (64, 128, 192, 256), (4, 8, 16, 32)
_NUM_BINS = 24


@dataclass(frozen=True)
class FocusSettings:
    """How an image becomes weights.

    Args:
        detector: a key of `THRESHOLDS`.
        threshold: of the detector, see `THRESHOLDS`.
        footprint: "circle" or "point", of keypoints.
        image_size: side in pixels at which the model sees the photograph.
        cell_size: w_ps in pixels; divides `image_size`.
        temperature: T > 0.
        norm: "none" or "mean".
    """

    detector: str = "fast"
    threshold: float = 10
    footprint: str = "circle"
    image_size: int = 192
    cell_size: int = 8
    temperature: float = 0.25
    norm: str = "none"


@dataclass(frozen=True)
class Focus:
    """What the loss looks at in one photograph.

    Args:
        view: `(image_size, image_size, 3)`, uint8: what the model sees.
        points: `(num_keypoints, 2)`, x and y in its pixels; None for a source without keypoints.
        map: `(image_size, image_size)`, in [0, 1].
        density: `(rows, columns)`, float32, in [0, 1].
        weights: `(rows, columns)`, float32.
    """

    view: np.ndarray
    points: np.ndarray | None
    map: np.ndarray
    density: np.ndarray
    weights: np.ndarray

    @property
    def top_share(self) -> float:
        """Share of the loss on the tenth of the cells with the largest weights, if all cells have the same error."""
        weights = self.weights.ravel()
        return float(loss_shares(weights, weights)[-1])


def focus(photograph: np.ndarray, settings: FocusSettings) -> Focus:
    """Return keypoints, map, density and weights of a photograph `(height, width, 3)`, uint8.

    Raises:
        InputError: if a setting is out of its range.
    """
    view = View.whole(*photograph.shape[:2]).of_image(photograph, settings.image_size)
    name, *_, usual = THRESHOLDS[settings.detector]
    value = settings.threshold if isinstance(usual, float) else int(settings.threshold)
    points = None
    if SOURCES[settings.detector].gives == "map":
        found = KeypointDetector(settings.detector, parameters={name: value})(view)
    else:
        detector = KeypointDetector(settings.detector, settings.footprint, {name: value})
        keypoints = detector.detect(view)
        points, found = positions(keypoints), detector.draw(keypoints, view.shape[:2])
    density = cell_density(found, settings.cell_size)
    weights = CellWeighting("keypoint", settings.temperature, settings.norm)(torch.from_numpy(density)).numpy()
    return Focus(view, points, found, density, weights)


def focus_page(photograph: np.ndarray, settings: FocusSettings) -> str:
    """Return the tab's page: what the model sees with its keypoints, density, weights, and their histogram."""
    found = focus(photograph, settings)
    low, high = float(found.weights.min()), float(found.weights.max())
    log_weights = np.log(found.weights)
    panels = [
        _source_panel(found, settings.detector),
        Panel(
            "Density",
            enlarged(heat(found.density, 0, 1), smooth=False),
            f"{found.density.shape[0]} x {found.density.shape[1]} cells of {settings.cell_size} px",
            ("0", "1"),
        ),
        Panel(
            "Weights",
            over(found.view, heat(log_weights, log_weights.min(), log_weights.max())),
            f"mean {found.weights.mean():.3g}, largest {high:.3g}",
            (f"{low:.3g}", f"{high:.3g} (logarithmic)"),
        ),
    ]
    said = (
        f"The tenth of the cells with the largest weights carries {found.top_share:.0%} of the loss, if all are filled "
        "in equally well; without weights it is 10%."
    )
    return section(panels, said=said) + _weights_histogram(found.weights)


def _source_panel(found: Focus, source: str) -> Panel:
    if found.points is None:
        return Panel("Map", enlarged(heat(found.map, 0, 1)), SOURCES[source].words, ("0", "1"))
    return Panel(
        "Keypoints", _with_points(found.view, found.points), f"{len(found.points):,} found by {source.upper()}"
    )


def _with_points(view: np.ndarray, points: np.ndarray) -> np.ndarray:
    picture = enlarged(view)
    scale = picture.shape[0] / view.shape[0]
    for x, y in (points + 0.5) * scale:
        cv2.circle(picture, (round(x), round(y)), 2, (0, 255, 200), -1, cv2.LINE_AA)
    return picture


def _weights_histogram(weights: np.ndarray) -> str:
    low, high = float(weights.min()), float(weights.max())
    edges = np.geomspace(low, max(high, low * 1.01), _NUM_BINS + 1)
    edges[-1] = max(high, low * 1.01)  # rounding must not leave the largest out
    counts, _ = np.histogram(weights, edges)
    return histogram("Cells by weight W (logarithmic)", edges.tolist(), counts.tolist(), "cells")
