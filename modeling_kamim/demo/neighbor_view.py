"""Neighbors: the tiles of the embedded photographs whose features are nearest to those of a photograph."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

from ..data.decoding import decode_image
from ..data.loading import keep_encoded
from ..data.photographs import PHOTOGRAPHS, load_photographs
from .checkpoints import DemoModel
from .panels import Panel, enlarged, section

TILES_OF_EACH = 8
_BATCH_SIZE = 16


class Gallery:
    """Tiles of the embedded photographs, and their features by each model, computed once.

    Args:
        models: whose features are compared.
    """

    def __init__(self, models: Sequence[DemoModel]):
        rows = keep_encoded(load_photographs()["train"], "image")
        labels = np.asarray(rows["label"])
        chosen = [index for label in range(len(PHOTOGRAPHS)) for index in _spread(np.flatnonzero(labels == label))]
        self.tiles = [decode_image(image) for image in rows.select(chosen)["image"]]
        self.names = [list(PHOTOGRAPHS)[labels[index]] for index in chosen]
        self._tokens = {model.name: mean_tokens(model, self.tiles) for model in models}

    def nearest(self, model: DemoModel, photograph: np.ndarray, number: int) -> list[tuple[int, float]]:
        """Return numbers and cosine similarities (less the mean of all tiles) of the nearest, the nearest first."""
        tiles, one = self._tokens[model.name], mean_tokens(model, [photograph])
        center = tiles.mean(dim=0)  # what all images share would hide how they differ
        similarity = F.cosine_similarity(tiles - center, one - center).numpy()
        order = np.argsort(-similarity, kind="stable")[:number]
        return [(int(index), float(similarity[index])) for index in order]


def _spread(indices: np.ndarray) -> np.ndarray:
    """Return up to `TILES_OF_EACH` numbers, evenly from all of them: tiles that follow each other overlap."""
    places = np.linspace(0, len(indices) - 1, min(TILES_OF_EACH, len(indices)))
    return indices[np.unique(places.round().astype(int))]


def mean_tokens(model: DemoModel, photographs: Sequence[np.ndarray]) -> torch.Tensor:
    """Return the mean patch tokens of photographs, `(number, dimension)`, float32."""
    parts = []
    for start in range(0, len(photographs), _BATCH_SIZE):
        batch = [model.seen(photograph) for photograph in photographs[start : start + _BATCH_SIZE]]
        parts.append(model.encoder(batch).final.float().mean(dim=1).cpu())
    return torch.cat(parts)


def middle_square(photograph: np.ndarray, share: float) -> np.ndarray:
    """Return the square in the middle of a photograph, of a share of its shorter side."""
    height, width = photograph.shape[:2]
    side = max(1, round(share * min(height, width)))
    top, left = (height - side) // 2, (width - side) // 2
    return photograph[top : top + side, left : left + side]


def neighbor_page(
    gallery: Gallery, models: Sequence[DemoModel], photograph: np.ndarray, share: float, number: int
) -> str:
    """Return the tab's page: the square that is looked for, and the nearest tiles by each model.

    Args:
        share: of the photograph's shorter side, see `middle_square`; tiles are a quarter of theirs.
    """
    square = middle_square(photograph, share)
    sections = [section([Panel("Looked for", enlarged(square))])]
    for model in models:
        found = gallery.nearest(model, square, number)
        panels = [
            Panel(f"{place}. {gallery.names[index]}", enlarged(gallery.tiles[index]), f"cosine {similarity:.3f}")
            for place, (index, similarity) in enumerate(found, start=1)
        ]
        sections.append(section(panels, model.name, f"The nearest of {len(gallery.tiles)} tiles."))
    return "".join(sections)
