"""Magnitude of the Laplacian as a density source."""

from dataclasses import dataclass

import cv2
import numpy as np

from .strength import check_percentile, check_window, gray, scaled


@dataclass(frozen=True)
class Laplacian:
    """Callable from an image to the magnitude of its Laplacian, see `scaled`.

    Args:
        size: of the kernel in pixels, odd, 1 to 31.
        percentile: of the image that becomes 1, in (0, 100].

    Raises:
        InputError: for other parameters.
    """

    size: int = 3
    percentile: float = 95.0

    def __post_init__(self):
        check_window("laplacian", self.size)
        check_percentile("laplacian", self.percentile)

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Return the map `(height, width)`, float32 in [0, 1], of `(height, width, 3)`, uint8."""
        return scaled(np.abs(cv2.Laplacian(gray(image), cv2.CV_32F, ksize=self.size)), self.percentile)
