"""Find losses and gradients that are not finite before the optimizer's step, and name the images behind them."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


class NonfiniteGuard:
    """Remember the batches of the running optimizer step: the numbers of their samples, and their losses."""

    def __init__(self):
        self._batches: list[tuple[torch.Tensor | None, torch.Tensor]] = []

    def remember(self, sample_index: torch.Tensor | None, loss: torch.Tensor) -> None:
        """Add a batch: `sample_index` `(batch_size,)`, int64, None where samples have no numbers; `loss`, a scalar."""
        self._batches.append((sample_index, loss))

    def forget(self) -> None:
        """Begin the next step."""
        self._batches.clear()

    @property
    def losses(self) -> list[float]:
        """The losses of the batches."""
        return [float(loss) for _, loss in self._batches]

    def is_finite(self, gradient_norm: float, is_scaled: bool) -> bool:
        """Return whether the step's numbers are finite.

        Args:
            gradient_norm: of the whole step.
            is_scaled: whether fp16's gradient scaler is in use. An infinite norm only tells it that its scale is too
                large, and does not count.
        """
        return all(map(math.isfinite, self.losses)) and (is_scaled or math.isfinite(gradient_norm))

    def report(
        self, file: Path, step: int, epoch: float | None, gradient_norm: float, name_of: Callable[[int], dict[str, Any]]
    ) -> str:
        """Write JSON with the numbers of the step and the images of its batches.

        Args:
            file: where to write it; its folder is made.
            step, epoch: of the training.
            gradient_norm: of the step.
            name_of: from the number of a sample to what names it, such as its file.

        Returns:
            What happened, as a sentence.
        """
        indices = [[] if index is None else index.flatten().tolist() for index, _ in self._batches]
        samples = [[name_of(index) for index in batch] for batch in indices]
        losses = [f"{loss:g}" for loss in self.losses]  # as texts: JSON has no NaN
        numbers = {"losses": losses, "gradient_norm": f"{gradient_norm:g}"}
        report = {"step": step, "epoch": epoch, **numbers, "samples": samples}
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(report, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        return (
            f"step {step}: the loss is {self.losses} and the gradient's norm {gradient_norm:g}; {file} names the images"
        )
