"""The image processor that is saved with a checkpoint: mean, standard deviation, pixel range."""

import logging
import math
from collections.abc import Callable
from dataclasses import astuple
from typing import Any, TypeVar

from transformers import AutoImageProcessor, BaseImageProcessor, ViTImageProcessor
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from ..errors import InputError
from ..limits import ImageSize, height_and_width
from .pixel_range import PixelRange, stored_range

logger = logging.getLogger(__name__)
Processor = TypeVar("Processor", bound=BaseImageProcessor)


def image_processor(image_size: ImageSize, checkpoint: str | None = None) -> ViTImageProcessor:
    """Processor with the checkpoint's mean, std and pixel range, or ImageNet's, that resizes to `image_size`.

    Raises:
        InputError: if the checkpoint's are not 1 or 3 finite numbers each, or one of its std is not above 0, or its
            pixel range is not two numbers.
    """
    mean, std, pixel_range = IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, None
    if checkpoint is not None:
        try:
            saved = AutoImageProcessor.from_pretrained(checkpoint, trust_remote_code=False)
            mean, std = _normalization(saved)
            pixel_range = pixel_range_of(saved)
        except InputError:
            raise
        except (OSError, ValueError) as error:  # a ValueError: its code would have to run
            reason = str(error).strip().split("\n")[0]
            logger.warning("No image processor of %s (%s): using ImageNet's mean and std", checkpoint, reason)
        _check_numbers(checkpoint, "image_mean", mean, math.isfinite)
        _check_numbers(checkpoint, "image_std", std, lambda number: 0 < number < math.inf)
    size = dict(zip(("height", "width"), height_and_width(image_size), strict=True))
    return keep_pixel_range(ViTImageProcessor(size=size, image_mean=list(mean), image_std=list(std)), pixel_range)


def _normalization(saved: Any) -> tuple[Any, Any]:
    """Return mean and std of a processor of transformers, or of timm's, which keeps them in settings of its own."""
    if hasattr(saved, "data_config"):
        return saved.data_config["mean"], saved.data_config["std"]
    if not getattr(saved, "do_normalize", True):
        return (0.0,), (1.0,)
    return saved.image_mean, saved.image_std


def pixel_range_of(processor: BaseImageProcessor) -> PixelRange | None:
    """The range by which images of more than 8 bits become 8-bit ones, before all else; None where it holds none.

    It is a key of this package: transformers saves and loads it, and does not scale by it.
    """
    return stored_range(getattr(processor, "pixel_range", None))


def keep_pixel_range(processor: Processor, pixel_range: PixelRange | None) -> Processor:
    """Have a processor hold a pixel range, where there is one; returns it."""
    if pixel_range is not None:
        processor.pixel_range = list(astuple(pixel_range))  # type: ignore[attr-defined]
    return processor


def _check_numbers(checkpoint: str, name: str, values: Any, is_allowed: Callable[[float], bool]) -> None:
    try:
        is_good = len(values) in (1, 3) and all(map(is_allowed, values))
    except TypeError:
        is_good = False
    if not is_good:
        kind = "finite numbers above 0" if name == "image_std" else "finite numbers"
        raise InputError(f"{name} in the image processor of {checkpoint} is {values}; it must be 1 or 3 {kind}")
