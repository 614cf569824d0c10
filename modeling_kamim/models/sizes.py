"""Configs of the models in the paper's sizes, and checks of the image size."""

from typing import Any

import psutil
from transformers import SwinConfig, ViTConfig

from ..errors import InputError

MODEL_SIZES: dict[str, dict[str, dict[str, Any]]] = {
    # DeiT's T, S and B (arXiv:2012.12877)
    "vit": {
        "tiny": {"hidden_size": 192, "num_attention_heads": 3, "intermediate_size": 768},
        "small": {"hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1536},
        "base": {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072},
    },
    "swin": {
        "tiny": {"embed_dim": 96, "depths": [2, 2, 6, 2], "num_heads": [3, 6, 12, 24]},
        "base": {"embed_dim": 128, "depths": [2, 2, 18, 2], "num_heads": [4, 8, 16, 32]},
    },
}


def build_config(model_type: str, model_size: str, image_size: int = 192, **kwargs) -> ViTConfig | SwinConfig:
    """Config of the paper's models: ViT with 16 px patches; Swin with a last stage of one window, 6 tokens at 192 px.

    Args:
        model_type: "vit" or "swin".
        model_size: "tiny", "small" or "base"; Swin has no "small" here.
        image_size: side of the input in pixels; a multiple of 16 (ViT) or 32 (Swin), or of what the patches make of it.
        **kwargs: further config keys, for example `patch_size=8` or `kamim={...}`; `encoder_stride` and Swin's
            `window_size` follow from patches and depths where they are not among them.

    Raises:
        InputError: for an unknown type or size, or an image size that the architecture cannot take.
    """
    if model_type not in MODEL_SIZES:
        raise InputError(f"model_type is {model_type!r}; allowed: {', '.join(MODEL_SIZES)}")
    if model_size not in MODEL_SIZES[model_type]:
        raise InputError(
            f"model_size is {model_size!r}; allowed for {model_type}: {', '.join(MODEL_SIZES[model_type])}"
        )
    patch_size = kwargs.get("patch_size", {"vit": 16, "swin": 4}[model_type])
    if patch_size < 1:
        raise InputError(f"patch_size is {patch_size}; it must be at least 1 pixel")
    settings = {"image_size": image_size, "patch_size": patch_size, **MODEL_SIZES[model_type][model_size], **kwargs}
    if model_type == "vit":
        config = ViTConfig(**{"encoder_stride": patch_size, "num_hidden_layers": 12, **settings})
    else:
        stride = settings.setdefault("encoder_stride", patch_size * 2 ** (len(settings["depths"]) - 1))
        config = SwinConfig(**{"window_size": max(1, image_size // stride), **settings})
    check_image_size(config)
    return config


def check_image_size(config: ViTConfig | SwinConfig) -> None:
    """Raise InputError unless every patch, and for Swin every window of every stage, fits `config.image_size`.

    Also where a single image would take more than this machine's memory.
    """
    stride = config.encoder_stride if config.model_type == "swin" else config.patch_size
    if config.image_size <= 0 or config.image_size % stride:
        raise InputError(
            f"image_size is {config.image_size}; it must be a multiple of {stride} for {config.model_type}"
        )
    if config.model_type == "swin":
        sides = [config.image_size // config.patch_size // 2**stage for stage in range(len(config.depths))]
        if any(side % config.window_size for side in sides):
            unit = config.encoder_stride * config.window_size
            raise InputError(
                f"image_size is {config.image_size}; stages of {sides} tokens a side cannot be cut into windows of "
                f"{config.window_size}: use a multiple of {unit}"
            )
    needed, memory = least_memory(config), psutil.virtual_memory().total
    if needed > memory:
        raise InputError(
            f"image_size is {config.image_size}: training on one image takes at least {needed / 1e9:,.0f} GB, and "
            f"this machine has {memory / 1e9:,.0f} GB: give a smaller image_size"
        )


def least_memory(config: ViTConfig | SwinConfig) -> int:
    """Bytes that training on one image takes at the least, whatever the precision and the attention.

    Counted are the pixels, 16 values of 16 bits for each channel of a token in each block (of Swin: of the first
    stage), and the attention map of one head.
    """
    tokens = (config.image_size // config.patch_size) ** 2
    is_swin = config.model_type == "swin"
    channels, depth = (
        (config.embed_dim, config.depths[0]) if is_swin else (config.hidden_size, config.num_hidden_layers)
    )
    attended = config.window_size**2 if is_swin else tokens
    pixels = config.num_channels * config.image_size**2
    return 4 * pixels + 2 * (16 * tokens * channels * depth + tokens * attended)
