"""Running mean and standard deviation over batches."""

import numpy as np
import torch


class RunningMoments:
    """Mean and standard deviation over the first axis of batches (Chan, Golub and LeVeque 1979)."""

    def __init__(self):
        self.count = 0
        self._mean = torch.zeros(())
        self._squares = torch.zeros(())

    def update(self, values: torch.Tensor) -> None:
        """Add a batch.

        Args:
            values: `(batch_size, ...)`, float, of one shape behind the first axis.
        """
        values = values.detach().cpu().double()
        added = len(values)
        if added == 0:
            return
        mean = values.mean(dim=0)
        squares = (values - mean).square().sum(dim=0)
        difference = mean - self._mean
        total = self.count + added
        self._squares = self._squares + squares + difference.square() * (self.count * added / total)
        self._mean = self._mean + difference * (added / total)
        self.count = total

    @property
    def mean(self) -> np.ndarray:
        """`(...)`, float64."""
        return self._mean.numpy()

    @property
    def std(self) -> np.ndarray:
        """`(...)`, float64, with ddof=1; NaN for fewer than two."""
        if self.count < 2:
            return np.full_like(self.mean, np.nan, dtype=float)
        return (self._squares / (self.count - 1)).sqrt().numpy()
