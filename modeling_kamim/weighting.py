"""From a keypoint map to the weights of the loss (arXiv:2407.13873, Eq. 2), and the controls beside it. Pure numpy.

A weighting is a function `(density, temperature, rng) -> weights` over the cells of one image. To try another one,
write that function and add it to `WEIGHTINGS`; the command line, the map step and the trainer need nothing else.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .errors import InputError

MAX_EXPONENT = 20.0
_TINY = np.finfo(np.float32).tiny

Weighting = Callable[[np.ndarray, float, np.random.Generator], np.ndarray]


def cell_density(keypoint_map: np.ndarray, cell_size: int) -> np.ndarray:
    """Omega of Eq. 2: the share of keypoint pixels in every `cell_size` x `cell_size` cell.

    Args:
        keypoint_map: `(height, width)`, values {0, 1}.
        cell_size: side of a cell (w_ps) in pixels; must divide height and width.

    Returns:
        `(height / cell_size, width / cell_size)`, float32 in [0, 1].

    Raises:
        ValueError: if `cell_size` does not divide the map.
    """
    height, width = keypoint_map.shape
    if height % cell_size or width % cell_size:
        raise ValueError(f"cell_size {cell_size} does not divide a {height}x{width} map")
    cells = keypoint_map.reshape(height // cell_size, cell_size, width // cell_size, cell_size)
    return cells.mean(axis=(1, 3), dtype=np.float32)


def resample_density(density: np.ndarray, box: tuple[float, float, float, float], num_cells: int) -> np.ndarray:
    """Density in the cells of a crop, by exact area averages of a density grid of the whole image.

    Args:
        density: `(rows, columns)`, in [0, 1], over the whole image.
        box: (top, left, bottom, right) of the crop as fractions of the image, in [0, 1].
        num_cells: cells of the result on each side.

    Returns:
        `(num_cells, num_cells)`, float32 in [0, 1].
    """
    top, left, bottom, right = box
    rows = _overlaps(density.shape[0], top, bottom, num_cells)
    columns = _overlaps(density.shape[1], left, right, num_cells)
    return (rows @ density.astype(np.float32) @ columns.T).clip(0.0, 1.0)


def _overlaps(num_source: int, start: float, stop: float, num_target: int) -> np.ndarray:
    """(num_target, num_source) share of each target interval that each source interval covers; rows sum to 1."""
    source = np.arange(num_source + 1)
    target = np.linspace(start, stop, num_target + 1) * num_source
    upper = np.minimum(target[1:, None], source[None, 1:])
    lower = np.maximum(target[:-1, None], source[None, :-1])
    lengths = (upper - lower).clip(min=0.0)
    return (lengths / lengths.sum(axis=1, keepdims=True)).astype(np.float32)


def keypoint_weights(density: np.ndarray, temperature: float, rng: np.random.Generator | None = None) -> np.ndarray:
    """Eq. 2: `W = exp(Omega / T) / min(exp(Omega / T))`, Omega / T clipped to [-20, 20] as in the released code.

    Args:
        density: `(rows, columns)`, in [0, 1].
        temperature: T > 0; the smaller, the more the weights differ.

    Returns:
        `(rows, columns)`, float32, >= 1, the smallest exactly 1.
    """
    exponent = np.clip(density / max(np.float32(temperature), _TINY), -MAX_EXPONENT, MAX_EXPONENT)
    return np.exp(exponent - exponent.min(), dtype=np.float32)


def constant_weights(density: np.ndarray, temperature: float, rng: np.random.Generator) -> np.ndarray:
    """The mean keypoint weight in every cell: KAMIM's loss scale without its selectivity."""
    return np.full_like(density, keypoint_weights(density, temperature).mean(), dtype=np.float32)


def shuffled_weights(density: np.ndarray, temperature: float, rng: np.random.Generator) -> np.ndarray:
    """The keypoint weights with the cells permuted: their distribution without their place."""
    return rng.permutation(keypoint_weights(density, temperature).ravel()).reshape(density.shape)


def inverse_weights(density: np.ndarray, temperature: float, rng: np.random.Generator) -> np.ndarray:
    """`max(W) / W`: the same range, with the most weight where there are the fewest keypoints."""
    weights = keypoint_weights(density, temperature)
    return weights.max() / weights


WEIGHTINGS: dict[str, Weighting] = {
    "keypoint": keypoint_weights,
    "constant": constant_weights,
    "shuffled": shuffled_weights,
    "inverse": inverse_weights,
}
WEIGHT_NORMS = ("none", "mean")


@dataclass(frozen=True)
class CellWeighting:
    """A weighting by name with its temperature and norm: callable from density to weights.

    Args:
        name: a key of `WEIGHTINGS`.
        temperature: T > 0 of Eq. 2.
        norm: "none" (paper: the loss grows with W) or "mean" (W divided by its mean over the image, which takes the
            loss scale out of a comparison).

    Raises:
        InputError: for an unknown name or norm, or a temperature that is not positive.
    """

    name: str = "keypoint"
    temperature: float = 0.25
    norm: str = "none"

    def __post_init__(self):
        if self.name not in WEIGHTINGS:
            raise InputError(f"weighting is {self.name!r}; allowed: {', '.join(WEIGHTINGS)}")
        if self.norm not in WEIGHT_NORMS:
            raise InputError(f"weight_norm is {self.norm!r}; allowed: {', '.join(WEIGHT_NORMS)}")
        if not self.temperature > 0:
            raise InputError(f"temperature is {self.temperature}; it must be greater than 0 (the paper uses 0.25)")

    def __call__(self, density: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Weights of one image.

        Args:
            density: `(rows, columns)`, in [0, 1].
            rng: used by the weightings that are random.

        Returns:
            `(rows, columns)`, float32.
        """
        weights = WEIGHTINGS[self.name](density, self.temperature, rng)
        return weights / weights.mean() if self.norm == "mean" else weights
