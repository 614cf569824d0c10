"""Random resized crop and flips (arXiv:2407.13873, section 4.1.1)."""

import math
from dataclasses import dataclass
from random import Random

import cv2
import numpy as np

from ..limits import ImageSize, check_range, height_and_width

STRETCH = 3 / 4, 4 / 3  # of a crop along its width as it gets the model's size
_TRIES = 10  # to draw a crop that fits; after them the largest central one is taken
_MEAN_STEPS = 32  # of area and of ratio, to average the sizes of crops


@dataclass(frozen=True)
class View:
    """A crop of an image and its flips.

    Args:
        top, left, height, width: the crop in pixels of the image.
        image_height, image_width: size of the image in pixels.
        horizontal_flip, vertical_flip: applied after the crop.
    """

    top: int
    left: int
    height: int
    width: int
    image_height: int
    image_width: int
    horizontal_flip: bool = False
    vertical_flip: bool = False

    @classmethod
    def whole(cls, height: int, width: int) -> "View":
        """Return the view that shows all of an image."""
        return cls(0, 0, height, width, height, width)

    def of_image(self, image: np.ndarray, size: ImageSize) -> np.ndarray:
        """Return the pixels of the view at a size, `(height, width, channels)`, of the image's type.

        Bilinear without antialias, as in the released code.
        """
        crop = image[self.top : self.top + self.height, self.left : self.left + self.width]
        height, width = height_and_width(size)
        pixels = cv2.resize(crop, (width, height), interpolation=cv2.INTER_LINEAR)
        if self.horizontal_flip or self.vertical_flip:
            code = -1 if self.horizontal_flip and self.vertical_flip else int(self.horizontal_flip)
            pixels = cv2.flip(pixels, code)
        return pixels if pixels.ndim == 3 else pixels[..., None]  # OpenCV drops a single channel

    def crop_box(self) -> tuple[float, float, float, float]:
        """Return (top, left, bottom, right) as fractions of the image; a flip swaps two (see `resample_density`)."""
        top, bottom = self.top / self.image_height, (self.top + self.height) / self.image_height
        left, right = self.left / self.image_width, (self.left + self.width) / self.image_width
        if self.vertical_flip:
            top, bottom = bottom, top
        if self.horizontal_flip:
            left, right = right, left
        return top, left, bottom, right


def crop_ratios(size: ImageSize) -> tuple[float, float]:
    """Return the range of width / height of crops that get a size: `STRETCH` times that of the size."""
    height, width = height_and_width(size)
    return STRETCH[0] * (width / height), STRETCH[1] * (width / height)


@dataclass(frozen=True)
class RandomView:
    """Random resized crop and flips; the crop follows torchvision's `RandomResizedCrop`.

    Args:
        min_scale: least area of the crop as a share of the image, in (0, 1]; the largest is all of it.
        ratio: range of the crop's width / height, see `crop_ratios`.
        horizontal_flip, vertical_flip: probabilities, in [0, 1].

    Raises:
        InputError: for a share or probability that is out of range.
    """

    min_scale: float = 0.67
    ratio: tuple[float, float] = STRETCH
    horizontal_flip: float = 0.5
    vertical_flip: float = 0.5

    def __post_init__(self):
        check_range("crop_min_scale", self.min_scale)
        check_range("horizontal_flip", self.horizontal_flip)
        check_range("vertical_flip", self.vertical_flip)

    def __call__(self, height: int, width: int, rng: Random) -> View:
        """Draw a view of an image of `height` x `width` pixels."""
        box = self._draw_box(height, width, rng)
        return View(*box, height, width, rng.random() < self.horizontal_flip, rng.random() < self.vertical_flip)

    def _draw_box(self, height: int, width: int, rng: Random) -> tuple[int, int, int, int]:
        for _ in range(_TRIES):
            area = height * width * rng.uniform(self.min_scale, 1.0)
            ratio = math.exp(rng.uniform(math.log(self.ratio[0]), math.log(self.ratio[1])))
            crop_width, crop_height = round((area * ratio) ** 0.5), round((area / ratio) ** 0.5)
            if 0 < crop_width <= width and 0 < crop_height <= height:
                top = rng.randrange(height - crop_height + 1)
                left = rng.randrange(width - crop_width + 1)
                return top, left, crop_height, crop_width
        crop_height, crop_width = self._central_size(height, width)
        return (height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width

    def _central_size(self, height: int, width: int) -> tuple[int, int]:
        return min(height, round(width / self.ratio[0])), min(width, round(height * self.ratio[1]))

    def smallest(self, height: int, width: int) -> tuple[int, int]:
        """Return a height and a width, in pixels, that no crop of an image of `height` x `width` pixels is below."""
        area = height * width * self.min_scale
        central_height, central_width = self._central_size(height, width)
        least_height = min(round((area / self.ratio[1]) ** 0.5), central_height)
        return least_height, min(round((area * self.ratio[0]) ** 0.5), central_width)

    def mean_size(self, height: int, width: int) -> tuple[float, float]:
        """Return the mean height and width, in pixels, of the crops of an image of `height` x `width` pixels."""
        steps = (np.arange(_MEAN_STEPS) + 0.5) / _MEAN_STEPS
        area = height * width * (self.min_scale + (1 - self.min_scale) * steps)[:, None]
        ratio = self.ratio[0] * (self.ratio[1] / self.ratio[0]) ** steps
        heights, widths = np.sqrt(area / ratio), np.sqrt(area * ratio)
        fits = (heights <= height) & (widths <= width)
        missed = (1 - fits.mean()) ** _TRIES
        means = [sides[fits].mean() if fits.any() else 0.0 for sides in (heights, widths)]
        central = self._central_size(height, width)
        return tuple((1 - missed) * mean + missed * side for mean, side in zip(means, central, strict=True))
