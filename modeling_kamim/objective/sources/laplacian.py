"""Magnitude of the Laplacian as a density source."""

from dataclasses import dataclass

import cv2
import numpy as np

from .strength import Strength


@dataclass(frozen=True)
class Laplacian(Strength):
    """`Strength` of the Laplacian, its magnitude, by a kernel of `size` pixels."""

    name = "laplacian"

    def strength(self, luminance: np.ndarray) -> np.ndarray:
        return np.abs(cv2.Laplacian(luminance, cv2.CV_32F, ksize=self.size))
