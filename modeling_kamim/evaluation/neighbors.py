"""Weighted k nearest neighbors."""

import torch
from torch import nn

NUM_NEIGHBORS, TEMPERATURE = 20, 0.07


@torch.no_grad()
def nearest_neighbors(
    features: torch.Tensor,
    labels: torch.Tensor,
    validation_features: torch.Tensor,
    num_classes: int,
    num_neighbors: int = NUM_NEIGHBORS,
    temperature: float = TEMPERATURE,
) -> torch.Tensor:
    """Let the k nearest neighbors vote, as in DINO (arXiv:2104.14294); a vote weighs exp(cosine / temperature).

    Args:
        features: `(num_images, dimension)`, float.
        labels: `(num_images,)`, int64.
        validation_features: `(num_validation_images, dimension)`, float.
        num_neighbors: k; at most all images vote.

    Returns:
        `(num_validation_images, num_classes)`, float32: the votes for each class.
    """
    features, validation_features = features.contiguous(), validation_features.contiguous()
    features = nn.functional.normalize(features, dim=1)
    votes = []
    for part in nn.functional.normalize(validation_features, dim=1).split(512):
        cosine, nearest = (part @ features.T).topk(min(num_neighbors, len(features)), dim=1)
        weights = torch.exp((cosine - 1.0) / temperature)  # minus 1: exp(1 / 0.07) would lose digits
        votes.append(torch.zeros(len(part), num_classes, device=part.device).scatter_add_(1, labels[nearest], weights))
    return torch.cat(votes)
