"""What the dense sources share: gray pixels, maps in [0, 1], checks of parameters."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import cv2
import numpy as np

from ...errors import InputError


@dataclass(frozen=True)
class Strength:
    """Callable from an image to a map of the strength of something around each pixel, see `scaled`.

    Args:
        size: of the window in pixels, odd, up to 31.
        percentile: of the image that becomes 1, in (0, 100].

    Raises:
        InputError: for other parameters.
    """

    size: int = 3
    percentile: float = 95.0
    name: ClassVar[str]
    least_size: ClassVar[int] = 1

    def __post_init__(self):
        check_window(self.name, self.size, self.least_size)
        check_percentile(self.name, self.percentile)

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Return the map `(height, width)`, float32 in [0, 1], of `(height, width, 3)`, uint8."""
        return scaled(self.strength(gray(image)), self.percentile)

    @abstractmethod
    def strength(self, luminance: np.ndarray) -> np.ndarray:
        """Return the strength, `(height, width)`, float, at least 0, of `(height, width)`, uint8."""


def gray(image: np.ndarray) -> np.ndarray:
    """Return the luminance of an RGB image `(height, width, 3)`, uint8: `(height, width)`, uint8."""
    return cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)


def scaled(strength: np.ndarray, percentile: float) -> np.ndarray:
    """Return a map divided by its percentile and clipped: `(height, width)`, float32 in [0, 1].

    A map that is zero up to that percentile is divided by its maximum instead; one without any strength stays zero.

    Args:
        strength: `(height, width)`, float, at least 0.
        percentile: in (0, 100]; the share of the pixels above it is 1 in the result.
    """
    unit = np.percentile(strength, percentile) or strength.max()
    return (strength / (unit or 1)).clip(0, 1).astype(np.float32)


def check_window(source: str, size: Any, least: int = 1) -> None:
    """Raise InputError unless the side of a source's window, in pixels, is an odd number up to 31."""
    if not isinstance(size, int) or isinstance(size, bool) or size not in range(least, 32, 2):
        raise InputError(f"size of {source} is {size!r}; give an odd number of pixels from {least} to 31")


def check_percentile(source: str, percentile: Any) -> None:
    """Raise InputError unless a source's percentile is a number in (0, 100]."""
    if not isinstance(percentile, int | float) or isinstance(percentile, bool) or not 0 < percentile <= 100:
        raise InputError(f"percentile of {source} is {percentile!r}; give a number above 0 and up to 100")
