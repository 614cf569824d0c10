"""What a model fills in: the photograph with patches masked, the reconstruction, and its error."""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import numpy as np
import torch

from ..errors import InputError
from ..limits import check_range, height_and_width, size_in_words
from ..objective.masking import block_mask, upsample
from ..objective.targets import TARGETS
from ..training.figures import to_rgb
from .checkpoints import DemoModel
from .panels import Panel, enlarged, heat, section


@dataclass(frozen=True)
class Filling:
    """A photograph, masked and filled in by a model.

    Args:
        original, masked, filled: `(height, width, 3)`, float, in [0, 1]; the last keeps the visible pixels.
        mask: `(rows, columns)` of the patches, bool, True where masked.
        errors: `(rows, columns)`, mean absolute error of each patch in [0, 1]; 0 where it is visible.
    """

    original: np.ndarray
    masked: np.ndarray
    filled: np.ndarray
    mask: np.ndarray
    errors: np.ndarray

    @property
    def error(self) -> float:
        """Mean absolute error of the masked patches, in [0, 1]."""
        return float(self.errors[self.mask].mean())


@torch.no_grad()
def fill(model: DemoModel, photograph: np.ndarray, mask_ratio: float, block: int, seed: int) -> Filling:
    """Mask blocks of a photograph and let a model fill them in.

    Args:
        photograph: `(height, width, 3)`, uint8.
        mask_ratio: share of the blocks, in (0, 1).
        block: side of a masked block in pixels of the model's input; see `block_sizes`.
        seed: of the mask.

    Raises:
        InputError: if the model has no decoder, or the blocks do not fit.
    """
    if model.decoder is None:
        raise InputError(f"{model.name} cannot fill in: {model.refusal}")
    if block not in block_sizes(model):
        sizes = ", ".join(map(str, block_sizes(model)))
        raise InputError(f"masked blocks of {block} px do not fit {model.name}; give one of {sizes}")
    check_range("mask_ratio", mask_ratio)
    encoder, patch = model.encoder, model.decoder.config.patch_size
    height, width = height_and_width(encoder.image_size)
    flat = block_mask(encoder.image_size, block, patch, mask_ratio, Random(seed))
    mask = torch.from_numpy(flat).bool().unflatten(0, (height // patch, width // patch))
    pixels = encoder.pixels([model.seen(photograph)])
    output = model.decoder(pixel_values=pixels, bool_masked_pos=mask.flatten()[None].to(encoder.device))
    original, filled = (
        to_rgb(batch.float().cpu(), encoder.mean, encoder.std)[0] for batch in (pixels, output.reconstruction)
    )
    is_masked = upsample(mask[None], height, width)[0].unsqueeze(-1).numpy()
    filled = np.where(is_masked, filled, original)
    difference = np.abs(filled - original).mean(axis=2)
    errors = difference.reshape(height // patch, patch, width // patch, patch).mean(axis=(1, 3))
    return Filling(original, np.where(is_masked, 0.5, original), filled, mask.numpy(), errors)


def block_sizes(model: DemoModel) -> list[int]:
    """Return the sides of blocks in pixels that can be masked: multiples of a patch that divide the image."""
    assert model.decoder is not None
    patch, sides = model.decoder.config.patch_size, height_and_width(model.encoder.image_size)
    sizes = (patch * factor for factor in (1, 2, 4, 8))
    return [size for size in sizes if all(side % size == 0 and side > size for side in sides)]


def masked_page(models: Sequence[DemoModel], photograph: np.ndarray, mask_ratio: float, patches: int, seed: int) -> str:
    """Return the tab's page: the masked photograph and what each model makes of it.

    Args:
        patches: side of a masked block in patches; the largest that fits where a model has no block of so many.
    """
    sections = []
    for model in models:
        if model.decoder is None:
            sections.append(section([], model.name, f"It cannot fill in: {model.refusal}."))
            continue
        block = max(size for size in block_sizes(model) if size <= patches * model.decoder.config.patch_size)
        found = fill(model, photograph, mask_ratio, block, seed)
        size = size_in_words(model.encoder.image_size)
        panels = [
            Panel("What it sees", _shown(found.masked), f"{size} px, {found.mask.mean():.0%} masked"),
            Panel("What it fills in", _shown(found.filled)),
            Panel("Its error", enlarged(heat(found.errors, 0, 0.3), smooth=False), "", ("0", "0.3")),
            Panel("The photograph", _shown(found.original)),
        ]
        said = f"Wrong by {found.error:.3f} on average where it could not see (black is 0, white is 1)."
        if TARGETS[model.decoder.objective["target"]].is_normalized:
            said += " It predicts the pattern of each patch; brightness and contrast are given back for the picture."
        sections.append(section(panels, model.name, said))
    return "".join(sections)


def _shown(picture: np.ndarray) -> np.ndarray:
    return enlarged((picture * 255).round().astype(np.uint8))
