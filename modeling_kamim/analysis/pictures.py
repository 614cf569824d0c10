"""Compute what the pictures of single images show; `plots` draws them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..objective.masking import upsample
from ..training.figures import to_rgb
from .encoders import AnalysisRefused, Encoder
from .gallery import AnalysisImages
from .measures import Reconstructor
from .tokens import neighbor_agreement, pca_together, relative_spread, tsne

Row = dict[str, Any]
TSNE_CLASSES, TSNE_IMAGES = 5, 4
MANY_IMAGES = (6, 6, 4)  # Figure 10 of arXiv:2407.13873: 16 images of three classes
QUERY_POINT = (0.5, 0.5)  # row and column as shares of the image
NUM_MAPS = 5
NUM_RECONSTRUCTIONS = 6


@dataclass(frozen=True)
class TokenPlane:
    """Tokens of a model in two dimensions.

    Args:
        model: its name.
        layer: block that they are from, or "final".
        points: `(num_tokens, 2)`.
        classes, images, stages: of each token; the stage is "before" or "after" self-attention, or "".
        explained: shares of the variance on the axes; None for t-SNE.
        spreads: `relative_spread` of the tokens of an image before and after self-attention, mean over the images.
        agreement: of t-SNE's tokens before their reduction, see `neighbor_agreement`.
    """

    model: str
    layer: int | str
    points: np.ndarray
    classes: list[str]
    images: list[int]
    stages: list[str]
    explained: np.ndarray | None = None
    spreads: tuple[float, float] | None = None
    agreement: tuple[float, float] | None = None

    def rows(self) -> list[Row]:
        """Return a row for each token."""
        return [
            {"model": self.model, "layer": self.layer, "image": image, "class": name, "stage": stage, "x": x, "y": y}
            for image, name, stage, (x, y) in zip(
                self.images, self.classes, self.stages, self.points.tolist(), strict=True
            )
        ]


def tsne_images(images: AnalysisImages) -> list[int]:
    """Return numbers of four images of each of five classes; with fewer classes, of all of them."""
    if images.classes is None:
        return list(range(min(TSNE_CLASSES, len(images))))
    most = min(TSNE_CLASSES, len(set(images.classes)))
    for num_images in (TSNE_IMAGES, 2, 1):
        try:
            return images.of_classes([num_images] * most)
        except AnalysisRefused:
            continue
    raise AnalysisRefused("there are no images")


def tsne_plane(encoder: Encoder, images: AnalysisImages, indices: Sequence[int], seed: int) -> TokenPlane:
    """Return t-SNE of the encoder's final patch tokens, as in Figure 3 of arXiv:2407.13873."""
    final = encoder(images.take(indices)).final.float().cpu()
    tokens = final.flatten(0, 1).numpy()
    owners = [index for index in indices for _ in range(final.shape[1])]
    classes = [images.name_of(index) for index in owners]
    agreement = neighbor_agreement(tokens, classes, owners)
    return TokenPlane(
        encoder.name, "final", tsne(tokens, seed), classes, owners, [""] * len(owners), agreement=agreement
    )


def pca_plane(encoder: Encoder, images: AnalysisImages, indices: Sequence[int], stages: Sequence[str]) -> TokenPlane:
    """Return principal components of patch tokens around the self-attention of the last block but one.

    In the paper that is block 11 of 12 (arXiv:2407.13873, Figures 8 to 10). "before" are the tokens that enter the
    self-attention module, "after" those that leave it, without the residual; both share one plane.

    Args:
        stages: "before", "after" or both.

    Raises:
        AnalysisRefused: if no self-attention modules are found.
    """
    transforms = encoder(images.take(indices), attention=True).transforms
    if not transforms:
        raise AnalysisRefused(f"no self-attention modules are found in {encoder.config.model_type}")
    index = max(len(transforms) - 2, 0)
    groups = dict(zip(("before", "after"), (part.float().cpu() for part in transforms[index]), strict=True))
    flat = {stage: tokens.flatten(0, 1).numpy() for stage, tokens in groups.items()}
    parts, explained = pca_together([flat[stage] for stage in stages])
    owners = [i for i in indices for _ in range(groups["before"].shape[1])]
    return TokenPlane(
        encoder.name,
        index + 1,
        np.concatenate(parts),
        [images.name_of(i) for i in owners] * len(stages),
        owners * len(stages),
        [stage for stage in stages for _ in owners],
        explained,
        (_mean_spread(groups["before"]), _mean_spread(groups["after"])),
    )


def _mean_spread(tokens: torch.Tensor) -> float:
    return float(np.mean([relative_spread(image.numpy()) for image in tokens]))


@dataclass(frozen=True)
class AttentionMaps:
    """Attention of one query token of each image in the last layer, mean over heads.

    Args:
        model: its name.
        layer: number of the block.
        maps: `(num_images, rows, columns)`, each sums to 1.
        query: row and column of the token.
    """

    model: str
    layer: int
    maps: np.ndarray
    query: tuple[int, int]

    def rows(self, indices: Sequence[int]) -> list[Row]:
        """Return a row for each image and key."""
        _, rows, columns = self.maps.shape
        return [
            {
                "model": self.model,
                "layer": self.layer,
                "image": image,
                "query_row": self.query[0],
                "query_column": self.query[1],
                "key_row": row,
                "key_column": column,
                "attention": float(values[row, column]),
                "times_uniform": float(values[row, column]) * rows * columns,
            }
            for image, values in zip(indices, self.maps, strict=True)
            for row in range(rows)
            for column in range(columns)
        ]


def query_maps(encoder: Encoder, images: AnalysisImages, indices: Sequence[int]) -> AttentionMaps:
    """Return the attention of the token at `QUERY_POINT`, as in Figure 5 of arXiv:2407.13873.

    Raises:
        AnalysisRefused: if the last layer's attention is within windows, or the encoder gives none.
    """
    outputs = encoder(images.take(indices), attention=True)
    index = len(encoder.attention_maps(outputs)) - 1
    layer = encoder.layer_attention(outputs, index, len(indices))
    if layer.windows > 1:
        raise AnalysisRefused(
            f"its last layer attends within {layer.windows} windows of {' x '.join(map(str, layer.grid))} tokens, so "
            "that a token has no map over the image"
        )
    rows, columns = layer.grid
    query = (int(QUERY_POINT[0] * rows), int(QUERY_POINT[1] * columns))
    maps = layer.weights.mean(dim=1)[:, query[0] * columns + query[1]].unflatten(1, layer.grid)
    return AttentionMaps(encoder.name, index + 1, maps.cpu().numpy(), query)


@dataclass(frozen=True)
class Reconstructions:
    """Reconstructions by one model, as images.

    Args:
        model: its name.
        originals, masked, filled: `(num_images, height, width, 3)`, float, in [0, 1]; the last with the visible pixels.
        weights: `(num_images, rows, columns)`.
        errors: `(num_images,)`, mean absolute error over the masked pixels, normalized.
    """

    model: str
    originals: np.ndarray
    masked: np.ndarray
    filled: np.ndarray
    weights: np.ndarray
    errors: np.ndarray

    def rows(self, indices: Sequence[int]) -> list[Row]:
        """Return a row for each image."""
        return [
            {"model": self.model, "image": image, "masked_l1": float(error), "mean_weight": float(weights.mean())}
            for image, error, weights in zip(indices, self.errors, self.weights, strict=True)
        ]


def reconstruct(reconstructor: Reconstructor, images: AnalysisImages, indices: Sequence[int]) -> Reconstructions:
    """Return reconstructions of images, as in Figure 2 of arXiv:2407.13873, and the weights of their cells."""
    encoder, chosen = reconstructor.encoder, images.take(indices)
    weights = reconstructor.settings.weights([encoder.view(image) for image in chosen])
    pixels, reconstruction, mask = reconstructor(chosen, indices)
    pixel_mask = upsample(mask, *pixels.shape[2:])
    errors = (pixels - reconstruction).abs().mean(dim=1).mul(pixel_mask).sum(dim=(1, 2)) / pixel_mask.sum(dim=(1, 2))
    originals, outputs = (to_rgb(batch, encoder.mean, encoder.std) for batch in (pixels, reconstruction))
    is_masked = pixel_mask.unsqueeze(-1).numpy()
    return Reconstructions(
        encoder.name,
        originals,
        np.where(is_masked, 0.5, originals),
        np.where(is_masked, outputs, originals),
        weights.numpy(),
        errors.numpy(),
    )
