"""Turn keypoint densities into loss weights (arXiv:2407.13873, Eq. 2); the controls of the experiments.

The loader finds the density of each image; the device computes the weights of a whole batch at once.

A weighting is a function `(density, temperature, cell_order) -> weights` over the cells of each image. To try another
one, write that function and add it to `WEIGHTINGS`; the command line, the map step and the trainer need nothing else.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from ..errors import InputError
from ..limits import check_choice, check_range

MAX_EXPONENT = 20.0
_TINY = torch.finfo(torch.float32).tiny
_CELLS = (-2, -1)
Weighting = Callable[[torch.Tensor, float, torch.Tensor | None], torch.Tensor]


def keypoint_weights(density: torch.Tensor, temperature: float, cell_order: torch.Tensor | None = None) -> torch.Tensor:
    """Return `W = exp(Omega / T) / min(exp(Omega / T))` (Eq. 2); Omega / T is clipped to [-20, 20], as released.

    Args:
        density: `(..., rows, columns)`, float, in [0, 1].
        temperature: T > 0; the smaller, the more the weights differ.

    Returns:
        `(..., rows, columns)`, float32, >= 1, the smallest of each image exactly 1.
    """
    exponent = (density.float() / max(temperature, _TINY)).clamp(-MAX_EXPONENT, MAX_EXPONENT)
    return torch.exp(exponent - exponent.amin(_CELLS, keepdim=True))


def constant_weights(density: torch.Tensor, temperature: float, cell_order: torch.Tensor | None = None) -> torch.Tensor:
    """Return the mean keypoint weight in every cell: the scale of KAMIM's loss, without a choice of cells."""
    return keypoint_weights(density, temperature).mean(_CELLS, keepdim=True).expand(density.shape)


def shuffled_weights(density: torch.Tensor, temperature: float, cell_order: torch.Tensor | None = None) -> torch.Tensor:
    """Return the keypoint weights with the cells permuted: the same values in other places.

    Args:
        cell_order: `(..., rows * columns)`, int64, a permutation for each image.

    Raises:
        ValueError: without a `cell_order`.
    """
    if cell_order is None:
        raise ValueError("shuffled weights need a cell_order, a permutation of the cells for each image")
    weights = keypoint_weights(density, temperature)
    return weights.flatten(-2).gather(-1, cell_order).view_as(weights)


def inverse_weights(density: torch.Tensor, temperature: float, cell_order: torch.Tensor | None = None) -> torch.Tensor:
    """Return `max(W) / W`: the same range, with the largest weights where there are the fewest keypoints."""
    weights = keypoint_weights(density, temperature)
    return weights.amax(_CELLS, keepdim=True) / weights


WEIGHTINGS: dict[str, Weighting] = {
    "keypoint": keypoint_weights,
    "constant": constant_weights,
    "shuffled": shuffled_weights,
    "inverse": inverse_weights,
    "predicted_loss": keypoint_weights,  # the density is that of a loss predictor, no keypoints
}
WEIGHT_NORMS = ("none", "mean")
# share of the way from the first temperature to the last, by the share of the training that is done
SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda done: 0.0,
    "linear": lambda done: done,
    "cosine": lambda done: (1 - math.cos(math.pi * done)) / 2,
}


def needs_keypoints(weighting: str) -> bool:
    """Return whether a weighting, or "none", is made of the densities of keypoints."""
    return weighting not in ("none", "predicted_loss")


def method_name(weighting: str, drops_masked: bool) -> str:
    """Return what a training is called: SimMIM, MAE, KAMIM, KAMIM-MAE, or KAMIM-shuffled and so on for the others.

    Args:
        weighting: a key of `WEIGHTINGS`, or "none".
        drops_masked: whether the encoder sees no masked patches, as in MAE.
    """
    if weighting == "none":
        return "MAE" if drops_masked else "SimMIM"
    name = "KAMIM-MAE" if drops_masked else "KAMIM"
    return name if weighting == "keypoint" else f"{name}-{weighting}"


@dataclass(frozen=True)
class CellWeighting:
    """A weighting by name with its temperature, norm and schedule: callable from density to weights.

    Args:
        name: a key of `WEIGHTINGS`.
        temperature: T > 0 of Eq. 2.
        norm: "none" (paper: the loss grows with W) or "mean" (W divided by its mean over the image, which takes the
            loss scale out of a comparison).
        schedule: a key of `SCHEDULES`: how the temperature moves during a training, see `at`.
        last_temperature: at the end of the training; None for "constant".

    Raises:
        InputError: for an unknown name, norm or schedule, a temperature that is not positive and finite, or a last one
            without a schedule, or the other way round.
    """

    name: str = "keypoint"
    temperature: float = 0.25
    norm: str = "none"
    schedule: str = "constant"
    last_temperature: float | None = None

    def __post_init__(self):
        check_choice("weighting", self.name, WEIGHTINGS)
        check_choice("weight_norm", self.norm, WEIGHT_NORMS)
        check_range("temperature", self.temperature)
        check_choice("temperature_schedule", self.schedule, SCHEDULES)
        if self.last_temperature is not None:
            check_range("temperature_end", self.last_temperature)
        if (self.last_temperature is None) != (self.schedule == "constant"):
            raise InputError(
                f"temperature_schedule is {self.schedule} and temperature_end is {self.last_temperature}; a linear or "
                "cosine schedule needs temperature_end, a constant temperature has none"
            )

    def at(self, done: float) -> "CellWeighting":
        """Return the weighting with the temperature that the schedule has then, and keeps.

        Args:
            done: share of the training's steps, in [0, 1].
        """
        if self.last_temperature is None:
            return self
        way = SCHEDULES[self.schedule](done)
        temperature = self.temperature + way * (self.last_temperature - self.temperature)
        return replace(self, temperature=temperature, schedule="constant", last_temperature=None)

    def __call__(self, density: torch.Tensor, cell_order: torch.Tensor | None = None) -> torch.Tensor:
        """Return the weights of images.

        Args:
            density: `(..., rows, columns)`, float, in [0, 1].
            cell_order: `(..., rows * columns)`, int64, permutations of the cells; for "shuffled" only.

        Returns:
            `(..., rows, columns)`, float32.
        """
        weights = WEIGHTINGS[self.name](density, self.temperature, cell_order)
        return weights / weights.mean(_CELLS, keepdim=True) if self.norm == "mean" else weights
