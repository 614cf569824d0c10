"""Keypoints, density and weights of one image, by temperature and cell size."""

from collections.abc import Sequence

import cv2
import numpy as np
import torch

from ..objective.density import cell_density
from ..objective.keypoints import KeypointDetector
from ..objective.weighting import keypoint_weights

TEMPERATURES = (0.1, 0.25, 0.5, 1.0)  # Table 2 of arXiv:2407.13873
CELL_SIZES = (8, 16, 32)


def keypoint_positions(detector: KeypointDetector, image: np.ndarray) -> np.ndarray:
    """Return x and y of keypoints, `(num_keypoints, 2)`, float64, pixels; the image is `(height, width, 3)`, uint8."""
    return positions(detector.detect(image))


def amount(detector: KeypointDetector, image: np.ndarray) -> float:
    """Return how much a source finds in an image: its keypoints, or the mean of its map."""
    return len(detector.detect(image)) if detector.source.gives == "keypoints" else float(detector(image).mean())


def positions(keypoints: Sequence[cv2.KeyPoint]) -> np.ndarray:
    """Return x and y of keypoints, `(num_keypoints, 2)`, float64, pixels."""
    return np.array([keypoint.pt for keypoint in keypoints], np.float64).reshape(-1, 2)


def weight_grid(
    detector: KeypointDetector, image: np.ndarray, temperatures: Sequence[float], cell_sizes: Sequence[int]
) -> dict[tuple[int, float], np.ndarray]:
    """Return the weights of an image by cell size and temperature (arXiv:2407.13873, Eq. 2).

    Args:
        detector: from an image to its keypoint map.
        image: `(height, width, 3)`, uint8.
        temperatures: T > 0.
        cell_sizes: w_ps in pixels; those that do not divide the image are left out.

    Returns:
        From `(cell_size, temperature)` to `(height / cell_size, width / cell_size)` float32, >= 1.
    """
    keypoint_map = detector(image)
    grid = {}
    for cell_size in cell_sizes:
        if image.shape[0] % cell_size == 0 == image.shape[1] % cell_size:
            density = torch.from_numpy(cell_density(keypoint_map, cell_size))
            for temperature in temperatures:
                grid[cell_size, temperature] = keypoint_weights(density, temperature).numpy()
    return grid
