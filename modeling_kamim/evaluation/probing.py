"""Train linear probes on fixed features, several learning rates at once."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from tqdm import tqdm

logger = logging.getLogger(__name__)
LEARNING_RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)


@dataclass(frozen=True)
class LinearProbe:
    """Recipe of linear probes on fixed features: standardized features, AdamW without decay, a cosine to 0.

    Args:
        learning_rates: tried side by side; the best on the held-out part of the training images is taken.
        num_epochs, batch_size: of the training.
        held_out: share of the training images that chooses the learning rate.
        seed: of the order of images and of the held-out part.
    """

    learning_rates: Sequence[float] = LEARNING_RATES
    num_epochs: int = 100
    batch_size: int = 256
    held_out: float = 0.1
    seed: int = 0


@dataclass(frozen=True)
class ProbeResult:
    """What linear probes of several layers give.

    Args:
        logits: `(layers, num_images, num_classes)`, of the validation images, by the chosen probes.
        learning_rates: the chosen learning rate of each layer.
        held_out_accuracy: `(layers, learning_rates)`, in [0, 1], on the held-out training images.
    """

    logits: torch.Tensor
    learning_rates: list[float]
    held_out_accuracy: torch.Tensor


def probe(
    recipe: LinearProbe,
    features: torch.Tensor,
    labels: torch.Tensor,
    validation_features: torch.Tensor,
    num_classes: int,
) -> ProbeResult:
    """Train a linear probe on every layer, its learning rates side by side.

    The learning rate of a layer is chosen on a held-out part of the training images, never on the validation images;
    then its probe is trained on all training images. A layer's result is the same, bit by bit, whichever layers are
    probed with it.

    Args:
        features: `(num_images, layers, dimension)`, float.
        labels: `(num_images,)`, int64.
        validation_features: `(num_validation_images, layers, dimension)`, float.
    """
    kept, held_out = split_by_class(labels, recipe.held_out, recipe.seed)
    rates = torch.tensor(recipe.learning_rates)
    best = torch.tensor(len(rates) // 2)
    if len(held_out) == 0:
        logger.warning("No class has an image to hold out: taking the middle one of the learning rates")
    num_layers = features.shape[1]
    logits, chosen, accuracies = [], [], []
    for layer in range(num_layers):
        # One at a time and contiguous: in a batched product the last bits depend on the number of layers.
        train, validation = (split[:, layer].contiguous() for split in (features, validation_features))
        of = f"layer {layer + 1} of {num_layers}"
        trial = fit(recipe, train[kept], labels[kept], num_classes, rates, f"Choosing the learning rate, {of}")
        accuracy = (trial(train[held_out]).argmax(-1) == labels[held_out, None]).float().mean(0)
        if len(held_out):
            best = accuracy.argmax().cpu()
        probes = fit(recipe, train, labels, num_classes, rates[best, None], f"Training the probe, {of}")
        logits.append(probes(validation)[:, 0])
        chosen.append(recipe.learning_rates[int(best)])
        accuracies.append(accuracy)
    return ProbeResult(torch.stack(logits), chosen, torch.stack(accuracies))


def split_by_class(labels: torch.Tensor, share: float, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return row numbers of two parts of a data set; the second has the share of every class, in whole images.

    A class of a single image stays in the first part.
    """
    generator = torch.Generator().manual_seed(seed)
    first, second = [], []
    for label in labels.unique():
        rows = (labels == label).nonzero()[:, 0]
        rows = rows[torch.randperm(len(rows), generator=generator)]
        count = min(len(rows) - 1, max(1, round(share * len(rows))))
        first.append(rows[count:])
        second.append(rows[:count])
    return torch.cat(first).sort().values, torch.cat(second).sort().values


class Probes(nn.Module):
    """Linear heads for every learning rate, on standardized features.

    A head's weights are kept divided by its learning rate, so that one Adam with rate 1 trains every head at its own.

    Args:
        features: `(num_images, dimension)`, of which mean and deviation are taken.
        num_classes: outputs of each head.
        learning_rates: `(rates,)`.
    """

    def __init__(self, features: torch.Tensor, num_classes: int, learning_rates: torch.Tensor):
        super().__init__()
        deviation, mean = torch.std_mean(features, dim=0, correction=0)
        self.mean, self.scale = mean, 1.0 / deviation.clamp(min=1e-6)
        self.rates = learning_rates.to(features)[:, None]
        shape = (features.shape[1] + 1, len(learning_rates), num_classes)
        self.weights = nn.Parameter(torch.zeros(shape, device=features.device))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return logits `(num_images, rates, num_classes)`."""
        standardized = (features - self.mean) * self.scale
        weights = self.rates * self.weights
        logits = torch.addmm(weights[-1].flatten(), standardized, weights[:-1].flatten(1))
        return logits.unflatten(1, weights.shape[1:])


def fit(
    recipe: LinearProbe,
    features: torch.Tensor,
    labels: torch.Tensor,
    num_classes: int,
    learning_rates: torch.Tensor,
    description: str,
) -> Probes:
    """Train a head for each of the `learning_rates`, `(rates,)`; the heads do not influence each other."""
    probes = Probes(features, num_classes, learning_rates)
    num_batches = math.ceil(len(labels) / recipe.batch_size)
    optimizer = torch.optim.Adam(probes.parameters(), lr=1.0, eps=1e-12)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, recipe.num_epochs * num_batches)
    generator = torch.Generator().manual_seed(recipe.seed)
    for _ in tqdm(range(recipe.num_epochs), desc=description, unit="epoch", leave=False, disable=None):
        for rows in torch.randperm(len(labels), generator=generator).tensor_split(num_batches):
            logits = probes(features[rows])
            target = labels[rows, None].expand(logits.shape[:2])
            loss = nn.functional.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="sum") / len(rows)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return probes.requires_grad_(False)
