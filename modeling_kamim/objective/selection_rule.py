"""Which share of the images to train on, by the errors of their patches.

`patch_aware` is this package's reading of PASS (arXiv:2407.13873, section 4.4), of which only the abstract is public.
"""

import math
from dataclasses import dataclass

import torch

from ..limits import check_choice, check_range

SELECTIONS = ("patch_aware", "random", "reversed")


@dataclass(frozen=True)
class SelectionRule:
    """Which share of the images is trained on.

    Args:
        name: "patch_aware" keeps the images with the highest scores of `disparity_score`, "reversed" those with the
            lowest, "random" any.
        ratio: share of the images that is kept, in (0, 1).
        every: epochs from one choice to the next, 1 or more.

    Raises:
        InputError: for an unknown name, or a number that is out of range.
    """

    name: str
    ratio: float
    every: int = 1

    def __post_init__(self):
        check_choice("selection", self.name, SELECTIONS)
        check_range("selection_ratio", self.ratio)
        check_range("selection_every", self.every)

    def count(self, num_images: int) -> int:
        """Return how many of so many images are kept, 1 or more."""
        return max(1, int(self.ratio * num_images))

    def choose(self, scores: torch.Tensor) -> torch.Tensor:
        """Return the numbers of the images that are kept, in rising order: int64.

        Args:
            scores: `(num_images,)`; of equal ones the earlier image comes first.
        """
        order = scores.argsort(descending=self.name == "patch_aware", stable=True)
        return order[: self.count(len(scores))].sort().values


def disparity_score(losses: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return the mean error of an image's masked patches, each weighted by the softmax of the errors: `(batch_size,)`.

    An image with a few patches that are much harder than the others scores higher than one with the same mean error
    everywhere.

    Args:
        losses: `(batch_size, num_patches)`, errors.
        mask: like `losses`, bool; at least one patch of an image is masked.
    """
    disparity = losses.float().masked_fill(~mask, -math.inf).softmax(dim=1)
    return (disparity * losses.float()).sum(dim=1)
