"""A head that predicts which patches of an image are hard to fill in, saved beside the model."""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from ..errors import InputError

LOSS_PREDICTOR_FILE = "loss_predictor.safetensors"
PREFIX = "loss_predictor."  # of its names in the state of a model


class LossPredictor(nn.Module):
    """From the tokens that a decoder reads, `(batch_size, num_patches, width)`, to a score for each patch.

    Of two patches the one with the higher score is expected to have the larger error (arXiv:2304.05919, whose predictor
    is a decoder of its own).
    """

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.hidden = nn.Linear(width, width)
        self.score = nn.Linear(width, 1)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """`(batch_size, num_patches)`."""
        hidden = nn.functional.gelu(self.hidden(self.norm(tokens)))
        return self.score(hidden)[..., 0]

    def save(self, folder: str | Path, state: dict[str, torch.Tensor] | None = None) -> None:
        """Write the head into a checkpoint directory; `state` stands for its own, where weights are in shards."""
        tensors = self.state_dict() if state is None else state
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, Path(folder) / LOSS_PREDICTOR_FILE)


def load_loss_predictor(checkpoint: str | Path) -> dict[str, torch.Tensor]:
    """State of the head that a checkpoint directory holds, by the names in the state of a model.

    Raises:
        InputError: if there is none that can be read.
    """
    try:
        state = load_file(Path(checkpoint) / LOSS_PREDICTOR_FILE)
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"{checkpoint} holds no {LOSS_PREDICTOR_FILE} that can be read: it was saved without --loss_predictor, or "
            "not to its end; resume from another checkpoint"
        ) from error
    return {f"{PREFIX}{name}": tensor for name, tensor in state.items()}
