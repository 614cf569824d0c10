"""Configs of models that take a moment."""

from transformers import SwinConfig, ViTConfig


def tiny_vit(**settings):
    """2 blocks of 32 channels, 4 x 4 patches of 8 px; anything else by argument."""
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    return ViTConfig(**{"image_size": 32, "patch_size": 8, "encoder_stride": 8, **shape, **settings})


def tiny_swin(**settings):
    """2 stages of 2 blocks, 8 x 8 patches of 4 px; anything else by argument."""
    shape = {"embed_dim": 16, "depths": [2, 2], "num_heads": [2, 2], "window_size": 4}
    return SwinConfig(**{"image_size": 32, "patch_size": 4, "encoder_stride": 8, **shape, **settings})
