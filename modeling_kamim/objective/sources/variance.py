"""Local variance as a density source."""

from dataclasses import dataclass

import cv2
import numpy as np

from .strength import check_percentile, check_window, gray, scaled


@dataclass(frozen=True)
class Variance:
    """Callable from an image to the variance of the pixels around each pixel, see `scaled`.

    Args:
        size: of the square window in pixels, odd, 3 to 31.
        percentile: of the image that becomes 1, in (0, 100].

    Raises:
        InputError: for other parameters.
    """

    size: int = 9
    percentile: float = 95.0

    def __post_init__(self):
        check_window("variance", self.size, least=3)
        check_percentile("variance", self.percentile)

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Return the map `(height, width)`, float32 in [0, 1], of `(height, width, 3)`, uint8."""
        luminance, window = gray(image), (self.size, self.size)
        # Whole numbers: rounding would be all that a flat image has, and be scaled to 1.
        sums = cv2.boxFilter(luminance, cv2.CV_64F, window, normalize=False)
        squares = cv2.sqrBoxFilter(luminance, cv2.CV_64F, window, normalize=False)
        return scaled(self.size**2 * squares - sums**2, self.percentile)
