"""Local variance as a density source."""

from dataclasses import dataclass

import cv2
import numpy as np

from .strength import Strength


@dataclass(frozen=True)
class Variance(Strength):
    """`Strength` of the variance in a square window of `size` pixels, 3 or more."""

    size: int = 9
    name = "variance"
    least_size = 3

    def strength(self, luminance: np.ndarray) -> np.ndarray:
        window = (self.size, self.size)
        # Whole numbers: rounding would be all that a flat image has, and be scaled to 1.
        sums = cv2.boxFilter(luminance, cv2.CV_64F, window, normalize=False)
        squares = cv2.sqrBoxFilter(luminance, cv2.CV_64F, window, normalize=False)
        return self.size**2 * squares - sums**2
