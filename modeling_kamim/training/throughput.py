"""Measure images per second, waiting for data, and clipped steps since the last log."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Throughput:
    """Count what happened since the last log.

    The trainer adds to `images` (over all devices), `data_wait` (seconds), `steps`, `clipped` (steps whose gradients
    were clipped), and to `means` scalars of every step by the name under which their mean is logged.
    """

    def __init__(self):
        self.start = time.perf_counter()
        self.images = self.steps = self.clipped = 0
        self.data_wait = 0.0
        self.means: dict[str, list[torch.Tensor]] = {}

    def add(self, name: str, scalar: torch.Tensor) -> None:
        """Take in a scalar of a step."""
        self.means.setdefault(name, []).append(scalar)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the time inside the block out of the measurement."""
        start = time.perf_counter()
        yield
        self.start += time.perf_counter() - start

    def summary(self) -> dict[str, float]:
        """Return `images_per_second`, `data_wait` (share of the time), where known `clipped_steps`, and the means."""
        elapsed = time.perf_counter() - self.start
        summary = {"images_per_second": self.images / elapsed, "data_wait": self.data_wait / elapsed}
        if self.steps:
            summary["clipped_steps"] = self.clipped / self.steps
        return summary | {name: torch.stack(scalars).mean().item() for name, scalars in self.means.items()}
