"""Position embeddings: MAE's sine-cosine ones, and those of a checkpoint for another image size."""

import copy
from collections.abc import Mapping

import torch
from torch import nn
from transformers import PreTrainedConfig

from .families import encoder_stride, num_prefix_tokens


def mae_positions(side: int, width: int) -> torch.Tensor:
    """MAE's fixed position embeddings (arXiv:2111.06377, `util/pos_embed.py` of its code).

    The first half of the channels tells the column x, the second the row y; a half holds sin(p w_k), then cos(p w_k),
    with w_k = 10000^(-k / n) for k = 0 .. n - 1 and n = width / 4. CLS has zeros.

    Args:
        side: patches on a side of the image.
        width: channels, a multiple of 4.

    Returns:
        `(1, side^2 + 1, width)`, float64.
    """
    frequencies = 10000.0 ** (-torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    places = torch.arange(side, dtype=torch.float64)
    rows, columns = (axis.flatten()[:, None] * frequencies for axis in torch.meshgrid(places, places, indexing="ij"))
    grid = torch.cat([columns.sin(), columns.cos(), rows.sin(), rows.cos()], dim=1)
    return torch.cat([torch.zeros(1, width, dtype=torch.float64), grid])[None]


def resized_config(config: PreTrainedConfig, image_size: int) -> PreTrainedConfig:
    """The config for another image size.

    A Swin or SwinV2 whose last stage is one window has one of the new size; SwinV2 goes on to measure distances in the
    old one (`pretrained_window_sizes`).
    """
    resized = copy.deepcopy(config)
    resized.image_size = image_size
    stride, window = encoder_stride(config), getattr(config, "window_size", None)
    if window and window * stride == config.image_size:
        resized.window_size = max(1, image_size // stride)
        if config.model_type == "swinv2" and not any(config.pretrained_window_sizes):
            resized.pretrained_window_sizes = [window] * len(config.depths)
    return resized


def resized_state_dict(
    state_dict: Mapping[str, torch.Tensor], old_config: PreTrainedConfig, new_config: PreTrainedConfig
) -> dict[str, torch.Tensor]:
    """Weights for another `image_size`, and of a Swin for another `window_size`.

    Position embeddings (all but CLS) and tables of relative position biases are interpolated bicubically, with
    `align_corners=False` and (but for DINOv2 with registers) without antialias, as transformers'
    `interpolate_pos_encoding` and the code of Swin (`load_pretrained`) do. SimMIM's own code resizes the tables by
    another rule, which keeps the biases of near tokens.

    Args:
        state_dict: of an encoder, or of a model with a decoder; `(1, tokens, hidden_size)` position embeddings and
            `((2 * window_size - 1) ** 2, num_heads)` tables (BEiT's with 3 rows more), rows before columns.
        old_config, new_config: of the weights as they are, and as they are to be.

    Returns:
        a new mapping; tensors that keep their size are the given ones.
    """
    old_side, new_side = (config.image_size // config.patch_size for config in (old_config, new_config))
    old_window, new_window = (getattr(config, "window_size", 0) for config in (old_config, new_config))
    if old_config.model_type == "beit":
        old_window, new_window = old_side, new_side
    num_prefix = 1 if "dinov2" in old_config.model_type else num_prefix_tokens(old_config)  # registers have no place
    antialias = old_config.model_type == "dinov2_with_registers"
    resized = dict(state_dict)
    for key, tensor in state_dict.items():
        if key.endswith(("position_embeddings", "decoder_pos_embed")) and old_side != new_side:
            prefix, grid = tensor[0, :num_prefix], tensor[0, num_prefix:]
            resized[key] = torch.cat([prefix, _resized_grid(grid, old_side, new_side, antialias)])[None]
        elif key.endswith("relative_position_bias_table") and old_window != new_window:
            grid, rest = tensor[: (2 * old_window - 1) ** 2], tensor[(2 * old_window - 1) ** 2 :]
            resized[key] = torch.cat([_resized_grid(grid, 2 * old_window - 1, 2 * new_window - 1), rest])
    return resized


def _resized_grid(grid: torch.Tensor, old_side: int, new_side: int, antialias: bool = False) -> torch.Tensor:
    """`(old_side ** 2, channels)`, rows before columns, to `(new_side ** 2, channels)`."""
    maps = grid.float().T.reshape(1, -1, old_side, old_side)
    size = (new_side, new_side)
    maps = nn.functional.interpolate(maps, size=size, mode="bicubic", align_corners=False, antialias=antialias)
    return maps[0].flatten(1).T.contiguous().to(grid.dtype)
