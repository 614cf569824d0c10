"""The image processor that is saved beside a checkpoint and holds its mean and std."""

import logging

from transformers import AutoImageProcessor, ViTImageProcessor
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

logger = logging.getLogger(__name__)


def image_processor(image_size: int, checkpoint: str | None = None) -> ViTImageProcessor:
    """Processor with the checkpoint's mean and std, or ImageNet's, that resizes to `image_size`."""
    mean, std = IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
    if checkpoint is not None:
        try:
            saved = AutoImageProcessor.from_pretrained(checkpoint, trust_remote_code=False)
            mean, std = saved.image_mean, saved.image_std
        except (OSError, ValueError) as error:  # a ValueError: its code would have to run
            reason = str(error).strip().split("\n")[0]
            logger.warning("No image processor of %s (%s): using ImageNet's mean and std", checkpoint, reason)
    size = {"height": image_size, "width": image_size}
    return ViTImageProcessor(size=size, image_mean=list(mean), image_std=list(std))
