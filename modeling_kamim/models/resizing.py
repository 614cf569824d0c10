"""Interpolate positions and tables of a checkpoint for another image size."""

from collections.abc import Mapping

import torch
from torch import nn
from transformers import SwinConfig, ViTConfig


def resized_state_dict(
    state_dict: Mapping[str, torch.Tensor], old_config: ViTConfig | SwinConfig, new_config: ViTConfig | SwinConfig
) -> dict[str, torch.Tensor]:
    """Weights of an encoder for another `image_size`, and of a Swin for another `window_size`.

    Position embeddings (all but CLS) and tables of relative position biases are interpolated bicubically, without
    antialias and with `align_corners=False`, as transformers' `interpolate_pos_encoding` and the code of Swin
    (`load_pretrained`) do. SimMIM's own code resizes the tables by another rule, which keeps the biases of near tokens.

    Args:
        state_dict: of a `ViTModel` or `SwinModel`; `(1, tokens, hidden_size)` position embeddings and
            `((2 * window_size - 1) ** 2, num_heads)` tables, rows before columns.
        old_config, new_config: of the weights as they are, and as they are to be.

    Returns:
        a new mapping; tensors that keep their size are the given ones.
    """
    num_prefix_tokens = 0 if isinstance(new_config, SwinConfig) else 1
    old_side, new_side = (config.image_size // config.patch_size for config in (old_config, new_config))
    resized = dict(state_dict)
    for key, tensor in state_dict.items():
        if key.endswith("position_embeddings") and old_side != new_side:
            prefix, grid = tensor[0, :num_prefix_tokens], tensor[0, num_prefix_tokens:]
            resized[key] = torch.cat([prefix, _resized_grid(grid, old_side, new_side)])[None]
        elif key.endswith("relative_position_bias_table") and old_config.window_size != new_config.window_size:
            resized[key] = _resized_grid(tensor, 2 * old_config.window_size - 1, 2 * new_config.window_size - 1)
    return resized


def _resized_grid(grid: torch.Tensor, old_side: int, new_side: int) -> torch.Tensor:
    """`(old_side ** 2, channels)`, rows before columns, to `(new_side ** 2, channels)`."""
    maps = grid.float().T.reshape(1, -1, old_side, old_side)
    maps = nn.functional.interpolate(maps, size=(new_side, new_side), mode="bicubic", align_corners=False)
    return maps[0].flatten(1).T.contiguous().to(grid.dtype)
