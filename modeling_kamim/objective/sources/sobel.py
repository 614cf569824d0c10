"""Gradient magnitude as a density source."""

from dataclasses import dataclass

import cv2
import numpy as np

from .strength import Strength


@dataclass(frozen=True)
class Sobel(Strength):
    """`Strength` of the gradient, by Sobel's kernel of `size` pixels."""

    name = "sobel"

    def strength(self, luminance: np.ndarray) -> np.ndarray:
        across, down = (cv2.Sobel(luminance, cv2.CV_32F, *order, ksize=self.size) for order in ((1, 0), (0, 1)))
        return np.hypot(across, down)
