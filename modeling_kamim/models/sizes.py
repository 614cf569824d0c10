"""Configs of the models by size, and checks of the image size."""

from typing import Any

import psutil
from transformers import AutoConfig, PreTrainedConfig

from ..errors import InputError
from .families import encoder_stride, family_of


def build_config(
    model_type: str, model_size: str, image_size: int = 192, config_overrides: str | None = None, **kwargs: Any
) -> PreTrainedConfig:
    """Config of a model with random weights; of the paper's ViT and Swin, the sizes of the paper.

    Args:
        model_type: a key of `families.FAMILIES`.
        model_size: one of its sizes.
        image_size: side of the input in pixels; a multiple of what one token of the output covers.
        config_overrides: further config keys as "key=value,key=value", as transformers' run_mim.py reads them.
        **kwargs: further config keys, for example `patch_size=8` or `kamim={...}`; `encoder_stride` and the
            `window_size` of Swin (a last stage of one window) follow where they are not among them.

    Raises:
        InputError: for an unknown type, size or key, or an image size that the architecture cannot take.
    """
    family = family_of(model_type)
    if model_size not in family.sizes:
        raise InputError(f"model_size is {model_size!r}; allowed for {model_type}: {', '.join(family.sizes)}")
    given = {"patch_size": family.patch_size, **_overrides(model_type, config_overrides), **kwargs}
    if given["patch_size"] < 1:
        raise InputError(f"patch_size is {given['patch_size']}; it must be at least 1 pixel")
    settings = {"image_size": image_size, **family.settings, **family.sizes[model_size], **given}
    try:
        config = AutoConfig.for_model(model_type, **settings)
    except ValueError as error:
        raise InputError(f"no {model_type} can have these settings: {' '.join(str(error).split())}") from error
    if hasattr(config, "encoder_stride") and "encoder_stride" not in given:
        config.encoder_stride = encoder_stride(config)
    if hasattr(config, "window_size") and "window_size" not in given:
        config.window_size = max(1, image_size // encoder_stride(config))
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


def square_sides(config: PreTrainedConfig) -> None:
    """Make lists of equal sides numbers, as foreign configs have them; raise InputError for rectangles."""
    for key in ("image_size", "patch_size"):
        sides = getattr(config, key)
        if not isinstance(sides, int):
            if len(set(sides)) > 1:
                raise InputError(f"images and patches must be squares; {key} is {sides}")
            setattr(config, key, sides[0])


def check_image_size(config: PreTrainedConfig) -> None:
    """Raise InputError unless every patch, and for Swin every window of every stage, fits `config.image_size`.

    Also where a single image would take more than this machine's memory.
    """
    stride, image_size = encoder_stride(config), config.image_size
    if image_size <= 0 or image_size % stride:
        raise InputError(f"image_size is {image_size}; it must be a multiple of {stride} for {config.model_type}")
    window = getattr(config, "window_size", None)
    if window:
        tokens = [image_size // config.patch_size // 2**stage for stage in range(len(config.depths))]
        if any(side % window for side in tokens):
            raise InputError(
                f"image_size is {image_size}; stages of {tokens} tokens a side cannot be cut into windows of {window}: "
                f"use a multiple of {stride * window}"
            )
    needed, memory = least_memory(config), psutil.virtual_memory().total
    if needed > memory:
        raise InputError(
            f"image_size is {image_size}: training on one image takes at least {needed / 1e9:,.0f} GB, and "
            f"this machine has {memory / 1e9:,.0f} GB: give a smaller image_size"
        )


def least_memory(config: PreTrainedConfig) -> int:
    """Bytes that training on one image takes at the least, whatever the precision and the attention.

    Counted are the pixels, 16 values of 16 bits for each channel of a token in each block (with stages: of the first),
    and the attention map of one head.
    """
    tokens = (config.image_size // config.patch_size) ** 2
    has_stages = family_of(config).stages is not None
    channels, depth = (
        (config.embed_dim, config.depths[0]) if has_stages else (config.hidden_size, config.num_hidden_layers)
    )
    attended = getattr(config, "window_size", 1) ** 2 if has_stages else tokens
    pixels = config.num_channels * config.image_size**2
    return 4 * pixels + 2 * (16 * tokens * channels * depth + tokens * attended)
