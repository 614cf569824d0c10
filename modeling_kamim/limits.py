"""Allowed ranges of all numeric settings, in one table, and checks of settings."""

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, fields
from typing import Any

from .errors import InputError


@dataclass(frozen=True)
class Range:
    """Allowed values of a number.

    Args:
        words: what follows "it must be" in the error.
        holds: whether a value is allowed; comparisons are False for NaN.
    """

    words: str
    holds: Callable[[float], bool]


_COUNT = Range("from 1 to 1,000,000,000", lambda n: 1 <= n <= 1_000_000_000)
_SHARE = Range("between 0 and 1, both excluded", lambda x: 0 < x < 1)
_BELOW_1 = Range("in [0, 1)", lambda x: 0 <= x < 1)
_INTERVAL = Range("a finite number above 0: steps, or below 1 a share of them", lambda n: 0 < n < math.inf)
_SEED = Range("at least 0 and below 2**32", lambda n: 0 <= n < 2**32)
LEARNING_RATE = Range("from 0 to 100", lambda x: 0 <= x <= 100)
RANGES: dict[str, Range] = {
    # data
    "max_train_samples": _COUNT,
    "max_eval_samples": _COUNT,
    "shuffle_buffer": _COUNT,
    "rows_per_shard": _COUNT,
    "probe_images": _COUNT,
    "num_images": _COUNT,
    "num_proc": Range("from 1 to 1,024", lambda n: 1 <= n <= 1024),
    "quality": Range("between 1 and 100", lambda n: 1 <= n <= 100),
    "validation_fraction": _SHARE,
    "low_shot": Range("a share of the training images, in (0, 1]", lambda x: 0 < x <= 1),
    # model and objective
    "image_size": _COUNT,
    "patch_size": _COUNT,
    "num_channels": Range("from 1 to 511: OpenCV resizes no more channels", lambda n: 1 <= n <= 511),
    "keypoint_image_size": Range("at least 1 pixel", lambda n: n >= 1),
    "keypoint_channel": Range("at least 0: channels are counted from 0", lambda n: n >= 0),
    "image_mean": Range("a finite number, in units of [0, 1]", math.isfinite),
    "image_std": Range("a finite number above 0, in units of [0, 1]", lambda x: 0 < x < math.inf),
    "mask_patch_size": _COUNT,
    "weight_patch_size": _COUNT,
    "mask_ratio": _SHARE,
    "temperature_end": Range("greater than 0 and finite", lambda x: 0 < x < math.inf),
    "temperature": Range("greater than 0 and finite (the paper uses 0.25)", lambda x: 0 < x < math.inf),
    "selection_ratio": Range("a share of the images, in (0, 1]", lambda x: 0 < x <= 1),
    "selection_every": _COUNT,
    "crop_min_scale": Range("in (0, 1]", lambda x: 0 < x <= 1),
    "horizontal_flip": Range("a probability, in [0, 1]", lambda x: 0 <= x <= 1),
    "vertical_flip": Range("a probability, in [0, 1]", lambda x: 0 <= x <= 1),
    "layer": Range("at least 1: blocks are counted from 1", lambda n: n >= 1),
    "layer_decay": Range("in (0, 1], where 1 is no decay", lambda x: 0 < x <= 1),
    "drop_path": _BELOW_1,
    "ema_decay": _BELOW_1,
    # batches and steps
    "per_device_train_batch_size": _COUNT,
    "per_device_eval_batch_size": _COUNT,
    "global_batch_size": _COUNT,
    "batch_size": _COUNT,
    "gradient_accumulation_steps": _COUNT,
    "eval_accumulation_steps": _COUNT,
    "num_train_epochs": Range("above 0 and at most 1,000,000", lambda x: 0 < x <= 1_000_000),
    "max_steps": Range("from 0 to 1,000,000,000, or -1 for num_train_epochs", lambda n: -1 <= n <= 1_000_000_000),
    "logging_steps": _INTERVAL,
    "eval_steps": _INTERVAL,
    "save_steps": _INTERVAL,
    "eval_delay": Range("a finite number from 0", lambda n: 0 <= n < math.inf),
    "save_total_limit": Range("at least 0, where 0 keeps all checkpoints", lambda n: n >= 0),
    # optimizer
    "learning_rate": LEARNING_RATE,
    "warmup_steps": Range("a finite number from 0: steps, or below 1 a share of them", lambda n: 0 <= n < math.inf),
    "weight_decay": Range("from 0 to 10", lambda x: 0 <= x <= 10),
    "adam_beta1": _BELOW_1,
    "adam_beta2": _BELOW_1,
    "adam_epsilon": Range("above 0 and at most 1", lambda x: 0 < x <= 1),
    "max_grad_norm": Range("a finite number from 0, where 0 is no clipping", lambda x: 0 <= x < math.inf),
    "label_smoothing_factor": _BELOW_1,
    "neftune_noise_alpha": Range("a finite number from 0", lambda x: 0 <= x < math.inf),
    # machine
    "seed": _SEED,
    "seeds": _SEED,
    "data_seed": _SEED,
    "dataloader_num_workers": Range("from 0 to 1,024", lambda n: 0 <= n <= 1024),
    "dataloader_prefetch_factor": Range("from 1 to 1,024", lambda n: 1 <= n <= 1024),
    "ddp_timeout": _COUNT,
    "dpi": Range("from 1 to 2,400", lambda n: 1 <= n <= 2400),
}


def check_range(name: str, number: float) -> None:
    """Raise InputError unless the number is in the range of the setting `name` in `RANGES`."""
    if not RANGES[name].holds(number):
        raise InputError(f"{name} is {number}; it must be {RANGES[name].words}")


ImageSize = int | list[int]  # pixels: the side of a square, or height and width


def height_and_width(size: int | Sequence[int]) -> tuple[int, int]:
    """Return height and width of a size that is given as one number for a square, or as both.

    Raises:
        InputError: for another count of numbers.
    """
    sides = (size,) if isinstance(size, int) else tuple(size)
    if len(sides) not in (1, 2):
        raise InputError(f"image_size is {list(sides)}; give one number for a square, or height and width")
    return sides[0], sides[-1]


def written_size(size: int | Sequence[int]) -> ImageSize:
    """Return a size as configs and results hold it: one number for a square, else [height, width]."""
    height, width = height_and_width(size)
    return height if height == width else [height, width]


def scaled_size(size: int | Sequence[int], longer_side: int | None) -> ImageSize:
    """Return a size of the same shape with this longer side; the size itself for None."""
    sides = height_and_width(size)
    return written_size(sides if longer_side is None else [round(side * longer_side / max(sides)) for side in sides])


def size_in_words(size: int | Sequence[int]) -> str:
    """Return "192" for a square, "192 x 256" for a height of 192 and a width of 256 pixels."""
    return " x ".join(map(str, dict.fromkeys(height_and_width(size))))


def check_choice(name: str, value: str, allowed: Collection[str]) -> None:
    """Raise InputError unless the value of the setting `name` is one of the allowed ones."""
    if value not in allowed:
        raise InputError(f"{name} is {value!r}; allowed: {', '.join(allowed)}")


def check_ranges(settings: Any) -> None:
    """Raise InputError for the first number of a dataclass, or of its lists, that is out of range.

    None and words are allowed.
    """
    for name in (field.name for field in fields(settings) if field.name in RANGES):
        value = getattr(settings, name)
        for number in value if isinstance(value, list) else [value]:
            if number is not None and not isinstance(number, str):
                check_range(name, number)
