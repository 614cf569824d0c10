"""Find numbers that are not finite in weights and files."""

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from ..errors import InputError


def check_finite_weights(model: nn.Module, name: str) -> None:
    """Check the weights of a checkpoint that was loaded.

    Args:
        model: as it was loaded.
        name: of the checkpoint, for the message.

    Raises:
        InputError: if one of them is NaN or infinite.
    """
    _refuse(nonfinite_names(model_tensors(model)), name)


def check_finite_file(file: Path) -> None:
    """Check the weights of a safetensors file, one tensor at a time.

    Raises:
        InputError: if one of them is NaN or infinite, or the file cannot be read.
    """
    try:
        with safe_open(file, framework="pt") as tensors:
            _refuse(nonfinite_names((name, tensors.get_tensor(name)) for name in tensors.keys()), file)  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise InputError(f"{file} cannot be read: {error}; save it again") from error


def _refuse(names: list[str], place: object) -> None:
    if names:
        raise InputError(
            f"{place} holds weights that are NaN or infinite, in {len(names)} tensor(s), the first is {names[0]}; its "
            "training went wrong: take an earlier checkpoint"
        )


def model_tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Parameters and buffers with their names; of what is sharded the part of this process."""
    for name, tensor in itertools.chain(model.named_parameters(), model.named_buffers()):
        yield name, getattr(tensor, "to_local", lambda tensor=tensor: tensor)()


def nonfinite_names(tensors: Iterable[tuple[str, torch.Tensor]]) -> list[str]:
    """Names of the tensors that hold NaN or infinity."""
    return [name for name, tensor in tensors if tensor.is_floating_point() and not torch.isfinite(tensor).all()]
