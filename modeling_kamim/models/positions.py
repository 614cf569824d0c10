"""Position embeddings: MAE's sine-cosine ones, and those of a checkpoint for another image size."""

import copy
import math
from collections.abc import Mapping, Sequence

import torch
from torch import nn
from transformers import PreTrainedConfig

from ..limits import height_and_width
from .families import encoder_stride, num_prefix_tokens
from .sizes import image_sides, largest_window, set_image_size


def mae_positions(grid: int | Sequence[int], width: int) -> torch.Tensor:
    """MAE's fixed position embeddings (arXiv:2111.06377, `util/pos_embed.py` of its code).

    The first half of the channels tells the column x, the second the row y; a half holds sin(p w_k), then cos(p w_k),
    with w_k = 10000^(-k / n) for k = 0 .. n - 1 and n = width / 4. CLS has zeros.

    Args:
        grid: patches on each side of the image, or their rows and columns.
        width: channels, a multiple of 4.

    Returns:
        `(1, 1 + rows * columns, width)`, float64; rows before columns.
    """
    frequencies = 10000.0 ** (-torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    places = [torch.arange(count, dtype=torch.float64) for count in height_and_width(grid)]
    rows, columns = (axis.flatten()[:, None] * frequencies for axis in torch.meshgrid(*places, indexing="ij"))
    positions = torch.cat([columns.sin(), columns.cos(), rows.sin(), rows.cos()], dim=1)
    return torch.cat([torch.zeros(1, width, dtype=torch.float64), positions])[None]


def resized_config(config: PreTrainedConfig, image_size: int | Sequence[int]) -> PreTrainedConfig:
    """The config for another image size.

    A Swin or SwinV2 whose windows are as large as its last stage allows has such windows of the new size; SwinV2 goes
    on to measure distances in the old ones (`pretrained_window_sizes`).
    """
    resized = copy.deepcopy(config)
    set_image_size(resized, image_size)
    stride, window = encoder_stride(config), getattr(config, "window_size", None)
    if window and window * stride == math.gcd(*image_sides(config)):
        resized.window_size = largest_window(resized)
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
    old_grid, new_grid = (_position_grid(config) for config in (old_config, new_config))
    old_window, new_window = (getattr(config, "window_size", 0) for config in (old_config, new_config))
    if old_config.model_type == "beit":
        old_window, new_window = old_grid[0], new_grid[0]  # squares alone
    num_prefix = 1 if "dinov2" in old_config.model_type else num_prefix_tokens(old_config)  # registers have no place
    antialias = old_config.model_type == "dinov2_with_registers"
    resized = dict(state_dict)
    for key, tensor in state_dict.items():
        if key.endswith(("position_embeddings", "decoder_pos_embed")) and old_grid != new_grid:
            prefix, grid = tensor[0, :num_prefix], tensor[0, num_prefix:]
            resized[key] = torch.cat([prefix, _resized_grid(grid, old_grid, new_grid, antialias)])[None]
        elif key.endswith("relative_position_bias_table") and old_window != new_window:
            grid, rest = tensor[: (2 * old_window - 1) ** 2], tensor[(2 * old_window - 1) ** 2 :]
            old_size, new_size = (2 * (2 * window - 1,) for window in (old_window, new_window))
            resized[key] = torch.cat([_resized_grid(grid, old_size, new_size), rest])
    return resized


def _position_grid(config: PreTrainedConfig) -> tuple[int, int]:
    """Rows and columns of the learned positions: of the patches, or of a square that is interpolated to them."""
    height, width = height_and_width(config.image_size)
    return height // config.patch_size, width // config.patch_size


def _resized_grid(
    grid: torch.Tensor, old_size: tuple[int, int], new_size: tuple[int, int], antialias: bool = False
) -> torch.Tensor:
    """`(old_rows * old_columns, channels)`, rows before columns, to `(new_rows * new_columns, channels)`."""
    maps = grid.float().T.reshape(1, -1, *old_size)
    maps = nn.functional.interpolate(maps, size=new_size, mode="bicubic", align_corners=False, antialias=antialias)
    return maps[0].flatten(1).T.contiguous().to(grid.dtype)
