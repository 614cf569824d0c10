"""The image processor that is saved with a checkpoint: mean, standard deviation, pixel range."""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import astuple
from typing import Any, TypeVar

import numpy as np
from transformers import AutoImageProcessor, BaseImageProcessor, ViTImageProcessor
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from ..errors import InputError
from ..limits import ImageSize, height_and_width
from .pixel_range import PixelRange, stored_range

logger = logging.getLogger(__name__)
Processor = TypeVar("Processor", bound=BaseImageProcessor)


def image_processor(
    image_size: ImageSize,
    checkpoint: str | None = None,
    num_channels: int | None = None,
    image_mean: Sequence[float] | None = None,
    image_std: Sequence[float] | None = None,
) -> ViTImageProcessor:
    """Processor that resizes to `image_size`, with mean and std, in units of [0, 1], and a pixel range.

    Mean and std are those that are given, or else the checkpoint's, or ImageNet's for 3 channels. Of other channels
    without a checkpoint that has them they are None, to be measured (`fit_processor`).

    Args:
        num_channels: that the model takes; None for those of the checkpoint's mean, or 3.
        image_mean, image_std: a number for each channel, or for all.

    Raises:
        InputError: if the checkpoint's are not finite numbers, one for all or for each channel, or one of its std is
            not above 0, or its pixel range is not two numbers for all or for each channel.
    """
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    pixel_range = None
    if num_channels in (None, 3):
        mean, std = IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
    if checkpoint is not None:
        try:
            saved = AutoImageProcessor.from_pretrained(checkpoint, trust_remote_code=False)
            found, saved_range = _normalization(saved), pixel_range_of(saved)
            _check_numbers(checkpoint, "image_mean", found[0], math.isfinite)
            _check_numbers(checkpoint, "image_std", found[1], lambda number: 0 < number < math.inf, found[0])
            if _fits(found[0], num_channels) and _fits(found[1], num_channels):
                mean, std = found
            if saved_range is not None and _fits(np.ravel(saved_range.low).tolist(), num_channels):
                pixel_range = saved_range
        except InputError:
            raise
        except (OSError, ValueError) as error:  # a ValueError: its code would have to run
            reason = str(error).strip().split("\n")[0]
            instead = "measuring" if mean is None else "using ImageNet's"
            logger.warning("No image processor of %s (%s): %s mean and std", checkpoint, reason, instead)
    mean, std = image_mean or mean, image_std or std
    size = dict(zip(("height", "width"), height_and_width(image_size), strict=True))
    processor = ViTImageProcessor(size=size, image_mean=mean and list(mean), image_std=std and list(std))
    if mean is None:
        processor.image_mean = processor.image_std = None
    return keep_pixel_range(processor, pixel_range)


def _fits(numbers: Sequence[float], num_channels: int | None) -> bool:
    return num_channels is None or len(numbers) in (1, num_channels)


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


def _check_numbers(
    checkpoint: str, name: str, values: Any, is_allowed: Callable[[float], bool], others: Sequence[float] = (0.0,)
) -> None:
    """Raise InputError unless they are allowed, and one for all channels or as many as the others."""
    try:
        is_good = 1 in (len(values), len(others)) or len(values) == len(others)
        is_good = is_good and len(values) > 0 and all(map(is_allowed, values))
    except TypeError:
        is_good = False
    if not is_good:
        kind = "finite numbers above 0" if name == "image_std" else "finite numbers"
        raise InputError(
            f"{name} in the image processor of {checkpoint} is {values}; it must be {kind}, one for each channel"
        )
