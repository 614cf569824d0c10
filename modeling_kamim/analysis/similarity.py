"""Similarity of layers and models (CKA), and effective rank of features (RankMe)."""

from collections.abc import Sequence

import numpy as np
import torch

CHUNK_SIZE = 256
LEAST_CHUNK = 8


def linear_cka(first: torch.Tensor, second: torch.Tensor) -> float:
    """Return linear centered kernel alignment of two representations (Kornblith et al. 2019, arXiv:1905.00414, Eq. 3).

    `|Y^T X|^2 / (|X^T X| |Y^T Y|)` (Frobenius norms) of centered features. Biased towards 1 where there are not many
    more examples than dimensions; `MinibatchCka` is not.

    Args:
        first, second: `(num_examples, dimension)` of the same examples; the dimensions may differ.

    Returns:
        In [0, 1]; 1 for equal representations up to rotation and isotropic scale.
    """
    first, second = (features.double() - features.double().mean(dim=0) for features in (first, second))
    across = (second.T @ first).square().sum()
    return float(across / ((first.T @ first).norm() * (second.T @ second).norm()))


def unbiased_hsic(grams: torch.Tensor) -> torch.Tensor:
    """Return the unbiased Hilbert-Schmidt independence criterion of all pairs (Song et al. 2012, Eq. 4).

    Args:
        grams: `(representations, n, n)`, symmetric Gram matrices of the same n >= 4 examples.

    Returns:
        `(representations, representations)`, float64.
    """
    n = grams.shape[-1]
    if n < 4:
        raise ValueError(f"unbiased HSIC needs at least 4 examples, got {n}")
    grams = grams.double() * (1 - torch.eye(n, dtype=torch.float64, device=grams.device))
    rows = grams.sum(dim=2)
    totals = rows.sum(dim=1)
    traces = grams.flatten(1) @ grams.flatten(1).T
    product = torch.outer(totals, totals) / ((n - 1) * (n - 2))
    return (traces + product - 2 / (n - 2) * rows @ rows.T) / (n * (n - 3))


class MinibatchCka:
    """Linear CKA between all representations of the same images, streamed (Nguyen et al. 2021, arXiv:2010.15327).

    Unbiased HSIC is averaged over chunks of `chunk_size` examples in their order, so that the result does not depend on
    the batches in which they come, and up to `chunk_size` examples give the unbiased CKA of all of them. A last chunk
    of fewer than 8 is left out, unless it is the only one.
    """

    def __init__(self, chunk_size: int = CHUNK_SIZE):
        self.chunk_size = chunk_size
        self._waiting: list[torch.Tensor] = []
        self._hsic = torch.zeros(())
        self._count = 0

    def update(self, features: Sequence[torch.Tensor]) -> None:
        """Add a batch.

        Args:
            features: of each representation `(batch_size, dimension)`; dimensions may differ.
        """
        batch = [part.detach().cpu().double() for part in features]
        pairs = zip(self._waiting or [part[:0] for part in batch], batch, strict=True)
        self._waiting = [torch.cat(parts) for parts in pairs]
        while len(self._waiting[0]) >= self.chunk_size:
            self._add([part[: self.chunk_size] for part in self._waiting])
            self._waiting = [part[self.chunk_size :] for part in self._waiting]

    def _add(self, chunk: list[torch.Tensor]) -> None:
        centered = [part - part.mean(dim=0) for part in chunk]
        # HSIC's scale cancels in CKA; a common one keeps wide layers from outweighing others in rounding
        hsic = unbiased_hsic(torch.stack([part @ part.T for part in centered]))
        self._hsic = self._hsic + len(chunk[0]) * hsic
        self._count += len(chunk[0])

    def result(self) -> np.ndarray:
        """Return `(representations, representations)`, float64, in [0, 1]; unbiased values can be a little below 0.

        NaN for a representation that is the same for all images.

        Raises:
            ValueError: for fewer than 4 examples.
        """
        rest = len(self._waiting[0]) if self._waiting else 0
        if rest >= LEAST_CHUNK or (self._count == 0 and rest):
            self._add(self._waiting)
            self._waiting = [part[rest:] for part in self._waiting]
        if self._count == 0:
            raise ValueError("CKA of no examples")
        own = self._hsic.diagonal()
        scale = torch.outer(own, own).sqrt()
        return torch.where(scale > 0, self._hsic / scale, torch.nan).numpy()


def effective_rank(singular_values: np.ndarray) -> float:
    """Return RankMe: exp of the entropy of the singular values (Garrido et al. 2023, arXiv:2210.02885, Eq. 1).

    Args:
        singular_values: `(n,)`, >= 0, not all 0.

    Returns:
        In [1, n]; n where all are equal.
    """
    values = np.asarray(singular_values, np.float64)
    shares = values[values > 0] / values.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))


class GramAccumulator:
    """Singular values of a matrix whose rows arrive in batches, through its Gram matrix in float64.

    Singular values below about 1e-8 of the largest are rounding noise, which does not show in an effective rank.
    """

    def __init__(self):
        self.num_rows = 0
        self._gram = self._sum = torch.zeros(())

    def update(self, rows: torch.Tensor) -> None:
        """Add rows `(num_rows, dimension)`."""
        rows = rows.detach()
        # float64 is not everywhere: mps has none
        rows = (rows.cpu() if rows.device.type == "mps" else rows).double()
        self._gram = self._gram + (rows.T @ rows).cpu()
        self._sum = self._sum + rows.sum(dim=0).cpu()
        self.num_rows += len(rows)

    def singular_values(self, centered: bool = False) -> np.ndarray:
        """Return the singular values `(dimension,)`, float64, >= 0, descending.

        Args:
            centered: take the mean row off first; as it is, RankMe counts the mean as one direction, often the largest.
        """
        if self.num_rows == 0:
            raise ValueError("singular values of no rows")
        gram = self._gram
        if centered:
            gram = gram - torch.outer(self._sum, self._sum) / self.num_rows
        return torch.linalg.eigvalsh(gram).flip(0).clamp(min=0.0).sqrt().numpy()
