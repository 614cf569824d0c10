"""Estimate before it starts how long a training will take on a CPU."""

import logging
import math
import statistics
import time
from collections.abc import Callable

import torch

from ..models.masked_image_modeling import KamimForMaskedImageModeling
from ..models.sizes import image_sides, patch_grid
from .arguments import PretrainingArguments
from .hard_patches import predicted_losses
from .recipe import num_steps

logger = logging.getLogger(__name__)
TRIAL = "kamim pretrain configs/quickstart/pretrain.yaml"
LONG = 30 * 60  # seconds from which on a smaller trial is proposed
_NUM_IMAGES = 2  # in a timed step: few, so that the largest model takes a second


def tell_duration(
    model: KamimForMaskedImageModeling,
    args: PretrainingArguments,
    num_images: int | None,
    first_step: int = 0,
    looks_ahead: bool = False,
) -> None:
    """Log how long a training on a CPU will take, and where that is long the command of a small one.

    Args:
        model: the model to train; it stays as it is.
        args: of the training.
        num_images: in the training set; None for a stream, whose steps are `args.max_steps`.
        first_step: steps that are done already.
        looks_ahead: whether the loss predictor chooses weights or masks, see `HardPatches`.
    """
    if args.device.type != "cpu" or args.process_index > 0:
        return
    steps = max(0, num_steps(args, num_images or 0) - first_step)
    per_image = seconds_per_image(model, args.bf16, looks_ahead)
    seconds = steps * args.total_batch_size / args.world_size * per_image
    told = f"{steps:,} steps of {args.total_batch_size:,} images take about {in_words(seconds)} on this CPU"
    if seconds < LONG:
        logger.info("%s, without data and evaluations", told)
    else:
        logger.warning("%s. To try everything out in minutes: %s", told, TRIAL)


@torch.enable_grad()
def seconds_per_image(
    model: KamimForMaskedImageModeling,
    bf16: bool,
    looks_ahead: bool = False,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Return the seconds that a forward and a backward pass take for each image; measured on noise.

    The model, its gradients and the random numbers of torch stay as they are.

    Args:
        looks_ahead: whether the loss predictor looks at the whole images before each step.
    """
    config = model.config
    num_patches = math.prod(patch_grid(config))
    with torch.random.fork_rng(devices=[]):
        pixels = torch.randn(_NUM_IMAGES, config.num_channels, *image_sides(config))
        mask = torch.arange(num_patches).expand(_NUM_IMAGES, -1) % 2 == 0

        def step() -> None:
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                if looks_ahead:
                    predicted_losses(model, pixels)
                loss = model(pixel_values=pixels, bool_masked_pos=mask).loss
            loss.backward()
            model.zero_grad()

        return time_steps(step, 1, clock) / _NUM_IMAGES


def time_steps(step: Callable[[], object], count: int, clock: Callable[[], float] = time.perf_counter) -> float:
    """Return the median of the seconds that a step takes, of so many; one more, the first, is slower and left out."""
    step()
    seconds = []
    for _ in range(count):
        start = clock()
        step()
        seconds.append(clock() - start)
    return statistics.median(seconds)


def in_words(seconds: float) -> str:
    """Return a duration with one or two digits: "40 seconds", "3 minutes", "14 hours", "2.5 days"."""
    units = (("day", 86400), ("hour", 3600), ("minute", 60), ("second", 1))
    name, size = next((unit for unit in units if seconds >= 1.5 * unit[1]), units[-1])
    number = f"{seconds / size:.2g}" if seconds < 10 * size else f"{seconds / size:,.0f}"
    return f"{number} {name}{'' if number == '1' else 's'}"
