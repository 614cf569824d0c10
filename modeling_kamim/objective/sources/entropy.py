"""Local entropy as a density source."""

import math
from dataclasses import dataclass

import numpy as np

from .strength import check_window, gray


@dataclass(frozen=True)
class Entropy:
    """Callable from an image to the entropy of the gray levels around each pixel, a share of the largest possible.

    The largest is log2 of the window's pixels, or of the 256 gray levels where there are fewer.

    Args:
        size: of the square window in pixels, odd, 3 to 31; at the border it is cut.

    Raises:
        InputError: for another size.
    """

    size: int = 9

    def __post_init__(self):
        check_window("entropy", self.size, least=3)

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Return the map `(height, width)`, float32 in [0, 1], of `(height, width, 3)`, uint8."""
        from skimage.filters.rank import entropy  # it takes half a second, which few runs need

        window = np.ones((self.size, self.size), np.uint8)
        most = math.log2(min(256, window.size))
        return (entropy(gray(image), window) / most).clip(0, 1).astype(np.float32)
