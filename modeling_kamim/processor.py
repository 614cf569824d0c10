"""The image processor that is saved beside a checkpoint and holds its mean and std."""

import logging
import math
from collections.abc import Callable
from typing import Any

from transformers import AutoImageProcessor, ViTImageProcessor
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from .errors import InputError

logger = logging.getLogger(__name__)


def image_processor(image_size: int, checkpoint: str | None = None) -> ViTImageProcessor:
    """Processor with the checkpoint's mean and std, or ImageNet's, that resizes to `image_size`.

    Raises:
        InputError: if the checkpoint's are not 1 or 3 finite numbers each, or one of its std is not above 0.
    """
    mean, std = IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
    if checkpoint is not None:
        try:
            saved = AutoImageProcessor.from_pretrained(checkpoint, trust_remote_code=False)
            mean, std = saved.image_mean, saved.image_std
        except (OSError, ValueError) as error:  # a ValueError: its code would have to run
            reason = str(error).strip().split("\n")[0]
            logger.warning("No image processor of %s (%s): using ImageNet's mean and std", checkpoint, reason)
        _check_numbers(checkpoint, "image_mean", mean, math.isfinite)
        _check_numbers(checkpoint, "image_std", std, lambda number: 0 < number < math.inf)
    size = {"height": image_size, "width": image_size}
    return ViTImageProcessor(size=size, image_mean=list(mean), image_std=list(std))


def _check_numbers(checkpoint: str, name: str, values: Any, is_allowed: Callable[[float], bool]) -> None:
    try:
        is_good = len(values) in (1, 3) and all(map(is_allowed, values))
    except TypeError:
        is_good = False
    if not is_good:
        kind = "finite numbers above 0" if name == "image_std" else "finite numbers"
        raise InputError(f"{name} in the image processor of {checkpoint} is {values}; it must be 1 or 3 {kind}")
