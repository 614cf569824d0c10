"""Directories of tiny learned density sources, with random weights."""

import torch
from tiny_models import tiny_config
from transformers import AutoModel, SuperPointConfig, SuperPointForKeypointDetection


def save_superpoint(folder, seed=0, **settings):
    """A SuperPoint of few channels, whose threshold lets a share of the pixels pass."""
    torch.manual_seed(seed)
    widths = {"encoder_hidden_sizes": [4, 4, 8, 8], "decoder_hidden_size": 8, "descriptor_decoder_dim": 8}
    config = SuperPointConfig(**{**widths, "keypoint_threshold": 1 / 65, "initializer_range": 0.5, **settings})
    SuperPointForKeypointDetection(config).save_pretrained(folder)
    return str(folder)


def save_encoder(folder, model_type="vit", seed=0, **settings):
    """An encoder of two blocks, with attention that is not uniform."""
    torch.manual_seed(seed)
    model = AutoModel.from_config(tiny_config(model_type, **{"initializer_range": 0.3, **settings}))
    model.save_pretrained(folder)
    return str(folder)
