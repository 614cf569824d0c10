"""Configs of the models by size; the image size, the patches and the tokens of a config."""

import math
from collections.abc import Sequence
from typing import Any

import psutil
from transformers import AutoConfig, PreTrainedConfig

from ..errors import InputError
from ..limits import ImageSize, height_and_width, size_in_words, written_size
from .families import FAMILIES, encoder_stride, family_of

INPUT_SIZE = "kamim_image_size"  # key of a config, beside an `image_size` that is a square


def build_config(
    model_type: str,
    model_size: str,
    image_size: int | Sequence[int] = 192,
    config_overrides: str | None = None,
    **kwargs: Any,
) -> PreTrainedConfig:
    """Config of a model with random weights; of the paper's ViT and Swin, the sizes of the paper.

    Args:
        model_type: a key of `families.FAMILIES`.
        model_size: one of its sizes.
        image_size: side of the input in pixels, or its height and width; multiples of what one token of the output
            covers.
        config_overrides: further config keys as "key=value,key=value", as transformers' run_mim.py reads them.
        **kwargs: further config keys, for example `patch_size=8` or `kamim={...}`; `encoder_stride` and the
            `window_size` of Swin (a last stage of one window, or of as few as fit) follow where they are not among
            them.

    Raises:
        InputError: for an unknown type, size or key, or an image size that the architecture cannot take.
    """
    family = family_of(model_type)
    if model_size not in family.sizes:
        raise InputError(f"model_size is {model_size!r}; allowed for {model_type}: {', '.join(family.sizes)}")
    given = {"patch_size": family.patch_size, **_overrides(model_type, config_overrides), **kwargs}
    if given["patch_size"] < 1:
        raise InputError(f"patch_size is {given['patch_size']}; it must be at least 1 pixel")
    settings = {"image_size": written_size(image_size), **family.settings, **family.sizes[model_size], **given}
    try:
        config = AutoConfig.for_model(model_type, **settings)
    except ValueError as error:
        raise InputError(f"no {model_type} can have these settings: {' '.join(str(error).split())}") from error
    if hasattr(config, "encoder_stride") and "encoder_stride" not in given:
        config.encoder_stride = encoder_stride(config)
    if hasattr(config, "window_size") and "window_size" not in given:
        config.window_size = largest_window(config)
    set_image_size(config, config.image_size)
    check_image_size(config)
    return config


def _overrides(model_type: str, text: str | None) -> dict[str, Any]:
    """The config keys in a text, in the types of the config."""
    if not text:
        return {}
    config = AutoConfig.for_model(model_type)
    try:
        config.update_from_string(text)
        return {key: getattr(config, key) for key in (item.partition("=")[0] for item in text.split(","))}
    except (ValueError, TypeError) as error:
        raise InputError(
            f"config_overrides is {text!r}: {error}; give numbers, words or true and false as key=value,key=value"
        ) from error


def image_size_of(config: PreTrainedConfig) -> ImageSize:
    """The size of the input in pixels: one number for a square, else [height, width]."""
    return written_size(getattr(config, INPUT_SIZE, None) or config.image_size)


def image_sides(config: PreTrainedConfig) -> tuple[int, int]:
    """Height and width of the input in pixels."""
    return height_and_width(image_size_of(config))


def patch_grid(config: PreTrainedConfig) -> tuple[int, int]:
    """Rows and columns of the patches of the input."""
    height, width = image_sides(config)
    return height // config.patch_size, width // config.patch_size


def token_grid(sides: Sequence[int], num_tokens: int) -> tuple[int, int]:
    """Rows and columns of the largest grid of square tokens over an image that has no more than `num_tokens` tokens.

    Args:
        sides: height and width of the image in pixels.
    """
    shared = math.gcd(*sides)
    rows, columns = (side // shared for side in sides)
    scale = math.isqrt(num_tokens // (rows * columns))
    return scale * rows, scale * columns


def set_image_size(config: PreTrainedConfig, image_size: int | Sequence[int]) -> None:
    """Set the size of the input.

    Of an encoder that takes any input (`Family.any_input`) `image_size` stays a square, for a config that has none that
    of the longer side, and a rectangle stands beside it.
    """
    size, has_square = written_size(image_size), isinstance(config.image_size, int)
    if isinstance(size, int) or not family_of(config).any_input:
        config.image_size = size
        if hasattr(config, INPUT_SIZE):
            delattr(config, INPUT_SIZE)
        return
    if not has_square:
        config.image_size = max(size)
    setattr(config, INPUT_SIZE, size)


def largest_window(config: PreTrainedConfig) -> int:
    """Tokens on a side of the largest window that cuts every stage of a Swin evenly; of a square, all of the last."""
    return max(1, math.gcd(*image_sides(config)) // encoder_stride(config))


def plain_sizes(config: PreTrainedConfig) -> None:
    """Make lists of equal sides numbers, as foreign configs have them; raise InputError unless patches are squares."""
    set_image_size(config, image_size_of(config))
    patch_size = written_size(config.patch_size)
    if not isinstance(patch_size, int):
        raise InputError(f"patches must be squares; patch_size is {patch_size}")
    config.patch_size = patch_size


def check_image_size(config: PreTrainedConfig) -> None:
    """Raise InputError unless every patch, and for Swin every window of every stage, fits the image size.

    Also where the family takes squares alone, and where a single image would take more than this machine's memory.
    """
    stride, sides, words = encoder_stride(config), image_sides(config), size_in_words(image_size_of(config))
    if sides[0] != sides[1] and not family_of(config).rectangles:
        able = ", ".join(name for name, family in FAMILIES.items() if family.rectangles)
        raise InputError(
            f"image_size is {words}, and {config.model_type} takes squares alone; give one number, or one of {able}"
        )
    if any(side <= 0 or side % stride for side in sides):
        raise InputError(f"image_size is {words}; it must be a multiple of {stride} for {config.model_type}")
    window = getattr(config, "window_size", None)
    if window:
        tokens = [[side // config.patch_size // 2**stage for stage in range(len(config.depths))] for side in sides]
        if any(count % window for counts in tokens for count in counts):
            counts = " and ".join(map(str, tokens[: len(set(sides))]))
            raise InputError(
                f"image_size is {words}; stages of {counts} tokens a side cannot be cut into windows of {window}: "
                f"use a multiple of {stride * window}"
            )
        if window == 1 and sides[0] != sides[1]:
            raise InputError(
                f"image_size is {words}, which {config.model_type} can only cut into windows of one token, without "
                f"attention; give sides that {2 * stride} divides"
            )
    needed, memory = least_memory(config), psutil.virtual_memory().total
    if needed > memory:
        raise InputError(
            f"image_size is {words}: training on one image takes at least {needed / 1e9:,.0f} GB, and "
            f"this machine has {memory / 1e9:,.0f} GB: give a smaller image_size"
        )


def least_memory(config: PreTrainedConfig) -> int:
    """Bytes that training on one image takes at the least, whatever the precision and the attention.

    Counted are the pixels, 16 values of 16 bits for each channel of a token in each block (with stages: of the first),
    and the attention map of one head.
    """
    tokens = math.prod(patch_grid(config))
    has_stages = family_of(config).stages is not None
    channels, depth = (
        (config.embed_dim, config.depths[0]) if has_stages else (config.hidden_size, config.num_hidden_layers)
    )
    attended = getattr(config, "window_size", 1) ** 2 if has_stages else tokens
    pixels = config.num_channels * math.prod(image_sides(config))
    return 4 * pixels + 2 * (16 * tokens * channels * depth + tokens * attended)
