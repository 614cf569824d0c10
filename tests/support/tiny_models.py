"""Configs of models that take a moment."""

from transformers import SwinConfig, ViTConfig

from modeling_kamim import build_config
from modeling_kamim.models.families import FAMILIES

_BLOCKS = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
_STAGES = {"embed_dim": 16, "depths": [2, 2]}
_WIDTHS = {
    "dinov2": {"mlp_ratio": 2},
    "dinov2_with_registers": {"mlp_ratio": 2, "num_register_tokens": 3},
    "swin": {"num_heads": [2, 2]},
    "swinv2": {"num_heads": [2, 2]},
    "focalnet": {"focal_levels": [2, 2], "focal_windows": [3, 3]},
    "vit_mae": {
        "intermediate_size": 64,
        "decoder_hidden_size": 16,
        "decoder_num_hidden_layers": 1,
        "decoder_num_attention_heads": 2,
        "decoder_intermediate_size": 32,
    },
}


def tiny_vit(**settings):
    """2 blocks of 32 channels, 4 x 4 patches of 8 px; anything else by argument."""
    patches = {"image_size": 32, "patch_size": 8, "encoder_stride": 8}
    return ViTConfig(**{**patches, **_BLOCKS, "intermediate_size": 64, **settings})


def tiny_swin(**settings):
    """2 stages of 2 blocks, 8 x 8 patches of 4 px; anything else by argument."""
    patches = {"image_size": 32, "patch_size": 4, "encoder_stride": 8, "window_size": 4}
    return SwinConfig(**{**patches, **_STAGES, **_WIDTHS["swin"], **settings})


def tiny_config(model_type, image_size=32, **settings):
    """As `tiny_vit`, or with stages as `tiny_swin`, of any family."""
    family = FAMILIES[model_type]
    shape = {**(_STAGES if family.stages else _BLOCKS), **_WIDTHS.get(model_type, {"intermediate_size": 64})}
    patches = {"patch_size": 4 if family.stages else 8}
    return build_config(model_type, next(iter(family.sizes)), image_size, **{**patches, **shape, **settings})
