"""SimMIM's block masks (arXiv:2111.09886, used unchanged by arXiv:2407.13873, section 4.1.1)."""

import math
from collections.abc import Sequence
from random import Random

import numpy as np
import torch

from ..limits import height_and_width


def block_mask(
    image_size: int | Sequence[int], mask_patch_size: int, patch_size: int, mask_ratio: float, rng: Random
) -> np.ndarray:
    """Draw a mask of square blocks over the model's tokens.

    Exactly `ceil(mask_ratio * number of blocks)` blocks are masked, never more or fewer.

    Args:
        image_size: side of the image in pixels, or its height and width.
        mask_patch_size: side of a block in pixels; divides the image.
        patch_size: side of a token in pixels; divides `mask_patch_size`.
        mask_ratio: share of blocks to mask, in (0, 1).
        rng: the only source of randomness.

    Returns:
        `(height / patch_size * width / patch_size,)`, bool, True where masked; rows before columns.
    """
    rows, columns = (side // mask_patch_size for side in height_and_width(image_size))
    num_blocks = rows * columns
    blocks = np.zeros(num_blocks, bool)
    blocks[random_order(num_blocks, rng)[: num_masked_blocks(num_blocks, mask_ratio)]] = True
    tokens = mask_patch_size // patch_size
    return blocks.reshape(rows, columns).repeat(tokens, 0).repeat(tokens, 1).ravel()


def num_masked_blocks(num_blocks: int, mask_ratio: float) -> int:
    """Return how many of an image's blocks are masked: `ceil(mask_ratio * num_blocks)`."""
    return math.ceil(mask_ratio * num_blocks)


def random_order(count: int, rng: Random) -> np.ndarray:
    """Draw a permutation of the numbers below `count`: `(count,)`, int64."""
    return np.frombuffer(rng.randbytes(8 * count), np.uint64).argsort(kind="stable")


def upsample(grid: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """Return a mask of tokens, or weights of cells, on a finer grid: `(batch_size, rows, columns)`.

    Args:
        grid: `(batch_size, old_rows, old_columns)`; rows and columns are multiples of these.
    """
    if grid.shape[1:] == (rows, columns):
        return grid
    return grid.repeat_interleave(rows // grid.shape[1], dim=1).repeat_interleave(columns // grid.shape[2], dim=2)
