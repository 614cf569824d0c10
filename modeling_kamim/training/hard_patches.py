"""Put weights or masks where the model expects large errors (Hard Patches Mining, arXiv:2304.05919)."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..models.masked_image_modeling import KamimForMaskedImageModeling
from ..models.sizes import patch_grid
from ..objective.masking import num_masked_blocks, upsample
from ..objective.ranking import hard_mask, on_grid, ranks

LAST_SHARE = 0.5  # of the masked blocks that are chosen by score at the end of a training, as in the paper


@dataclass(frozen=True)
class HardPatches:
    """Callable that has a loss predictor look at a batch of whole images, and puts into it what follows.

    Args:
        num_cells: rows and columns of weight cells, which get the ranks of the scores as their density; None where
            weights are of something else.
        block_grid: rows and columns of masked blocks, of which a growing share is masked by score; None for the masks
            of the batch.
        mask_ratio: of these masks.
    """

    num_cells: tuple[int, int] | None
    block_grid: tuple[int, int] | None
    mask_ratio: float

    def __call__(self, batch: Mapping[str, Any], model: KamimForMaskedImageModeling, done: float) -> dict[str, Any]:
        """Return the batch with `keypoint_density` of the weight cells, and masks that are hard to fill in.

        Args:
            batch: `pixel_values`, normalized; with `block_order`, permutations of the blocks, new masks are made of it
                (validation has none, and keeps its masks).
            model: has a loss predictor; it stays in its mode, and gets no gradient.
            done: share of the training's steps, in [0, 1], by which the share of hard blocks grows.
        """
        batch = dict(batch)
        order = batch.pop("block_order", None)
        if self.num_cells is None and order is None:
            return batch
        scores = predicted_losses(model, batch["pixel_values"])
        if self.num_cells is not None:
            batch["keypoint_density"] = on_grid(ranks(scores), model.decoder_grid, self.num_cells)
        if self.block_grid is not None and order is not None:
            share = LAST_SHARE * done
            batch["bool_masked_pos"] = mask_by_score(model, scores, order, self.block_grid, self.mask_ratio, share)
        return batch


def mask_by_score(
    model: KamimForMaskedImageModeling,
    scores: torch.Tensor,
    order: torch.Tensor,
    block_grid: tuple[int, int],
    mask_ratio: float,
    share: float,
) -> torch.Tensor:
    """Return masks of the model's patches, `(batch_size, num_patches)`, bool, a share of whose blocks are the hardest.

    Args:
        scores: of `predicted_losses`.
        order, share: of `hard_mask`.
        block_grid: rows and columns of blocks, which are masked as a whole.
        mask_ratio: of them.
    """
    blocks = on_grid(scores, model.decoder_grid, block_grid).flatten(1)
    mask = hard_mask(blocks, order, num_masked_blocks(blocks.shape[1], mask_ratio), share)
    return upsample(mask.unflatten(1, block_grid), *patch_grid(model.config)).flatten(1)


@torch.no_grad()
def predicted_losses(model: KamimForMaskedImageModeling, pixel_values: torch.Tensor) -> torch.Tensor:
    """Return the scores of the patches of whole images: `(batch_size, num_patches)`, float32."""
    with in_evaluation(model):
        return model(pixel_values=pixel_values).predicted_losses.float()


@contextmanager
def in_evaluation(model: nn.Module) -> Iterator[None]:
    """Have a model in evaluation mode for a while, and every module in its own mode again behind it."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
