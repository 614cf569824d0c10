"""Gradient magnitude as a density source."""

from dataclasses import dataclass

import cv2
import numpy as np

from .strength import check_percentile, check_window, gray, scaled


@dataclass(frozen=True)
class Sobel:
    """Callable from an image to its gradient magnitude, see `scaled`.

    Args:
        size: of Sobel's kernel in pixels, odd, 1 to 31.
        percentile: of the image that becomes 1, in (0, 100].

    Raises:
        InputError: for other parameters.
    """

    size: int = 3
    percentile: float = 95.0

    def __post_init__(self):
        check_window("sobel", self.size)
        check_percentile("sobel", self.percentile)

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Return the map `(height, width)`, float32 in [0, 1], of `(height, width, 3)`, uint8."""
        luminance = gray(image)
        across, down = (cv2.Sobel(luminance, cv2.CV_32F, *order, ksize=self.size) for order in ((1, 0), (0, 1)))
        return scaled(np.hypot(across, down), self.percentile)
